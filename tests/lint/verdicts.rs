//! Verdicts on cache mounts.

use std::fs;

use serde_json::Value;

use super::files::{RACE, UNKNOWN, stdout, write};
use super::support::Fixture;

/// Returns the level of what lint finds in a `RUN` with this mount, or `clean`.
fn verdict(f: &Fixture, before: &str, target: &str, run: &str) -> String {
    let text = format!("FROM a\n{before}\nRUN --mount=type=cache,target={target} {run}\n");
    let lint = f.buildlock(["lint", "--format", "json", "-"]).stdin(text).run();
    let found: Vec<Value> = serde_json::from_slice(&lint.stdout).unwrap();
    match found.as_slice() {
        [] => "clean".to_owned(),
        [one] => one["level"].as_str().unwrap().to_owned(),
        more => panic!("{more:?}"),
    }
}

/// Checks a table: the line before the `RUN`, the target, the command, the verdict.
fn assert_verdicts(table: &[(&str, &str, &str, &str)]) {
    let f = Fixture::new();
    let wrong: Vec<_> = table
        .iter()
        .map(|line| (line, verdict(&f, line.0, line.1, line.2)))
        .filter(|(line, verdict)| verdict != line.3)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tool_that_no_longer_races_is_clean_where_its_version_is_visible() {
    assert_verdicts(&[
        ("", "/root/.cache/pip", "pip install x", "error"),
        ("", "/root/.cache/pip", "pip install pip==25.3 && pip install x", "clean"),
        ("RUN pip install 'pip>=25.3'", "/root/.cache/pip", "pip install x", "clean"),
        ("RUN pip install pip==25.2", "/root/.cache/pip", "pip install x", "error"),
        ("RUN pip install pip==26", "/root/.cache/pip", "pip install x", "clean"),
        ("RUN npm install -g npm@11.6.1", "/root/.npm", "npx x", "clean"),
        ("RUN npm install -g npm@11.6.0", "/root/.npm", "npx x", "error"),
        (
            "RUN corepack prepare yarn@4.5.0 --activate",
            "/root/.cache/yarn",
            "yarn install",
            "clean",
        ),
        ("RUN corepack prepare yarn@1.22.22", "/root/.cache/yarn", "yarn install", "error"),
    ]);
    let f = Fixture::new();
    write(
        &f,
        "Dockerfile",
        "FROM a\nRUN --mount=type=cache,target=/root/.cache/pip pip install x\n",
    );
    let said = stdout(&f.buildlock(["lint"]).run());
    assert!(said.contains("races: pip before 25.3 copies"), "{said}");
}

#[test]
fn folder_above_caches_is_judged_by_the_tools_that_the_run_starts() {
    assert_verdicts(&[
        ("", "/root/.cache", "pip install x", "error"),
        ("", "/root/.cache", "go build ./...", "clean"),
        ("", "/root/.cache", "uv sync", "clean"),
        ("", "/root/.cache", "go build ./... && pip install x", "error"),
        ("", "/root/.cache", "./build.sh", "note"),
        ("", "/home/me/.cache", "python3 -m pip install x", "error"),
        ("", "/root", "cargo build", "clean"),
        ("", "/root", "mvn package", "error"),
        ("", "/var/cache", "apt-get install -y x", "error"),
        ("", "/var/cache", "apk add x", "note"),
        ("", "/var/lib", "apt-get update", "error"),
        ("ENV PIP_CACHE_DIR=/c/pip GOCACHE=/c/go", "/c", "go build", "clean"),
        ("ENV PIP_CACHE_DIR=/c/pip GOCACHE=/c/go", "/c", "pip install x", "error"),
        ("ENV PIP_CACHE_DIR=/c GOCACHE=/c", "/c", "go build && pip install x", "error"),
        ("ENV PIP_CACHE_DIR=/c GOCACHE=/c", "/c", "go build", "clean"),
        ("", "/root", "yarn install", "error"),
        ("RUN corepack prepare yarn@4.5.0", "/root", "corepack yarn install", "clean"),
        ("", "/root/.yarn/berry/cache", "yarn install", "clean"),
        ("", "/root/.cache", "golangci-lint run", "error"),
        ("ENV GOLANGCI_LINT_CACHE=/c", "/c", "golangci-lint run", "error"),
        ("", "/var/cache/yum", "microdnf install -y x", "error"),
        ("", "/var/cache/yum", "yum install -y x", "note"),
        // cargo's lock is in the mount, with all that it protects.
        ("", "/src/target", "cargo build", "clean"),
    ]);
}

#[test]
fn cache_that_the_run_empties_races() {
    assert_verdicts(&[
        ("", "/root/.npm", "npm ci && npm cache clean --force", "error"),
        ("", "/go/pkg/mod", "go build && go clean -modcache", "error"),
        ("", "/root/.cache/go-build", "go build && go clean -modcache", "clean"),
        ("", "/root/.cache", "go build && go clean -cache", "error"),
        ("", "/src/target", "cargo clean && cargo build", "error"),
        ("", "/root/.cache/uv", "uv sync && rm -rf /root/.cache/uv", "error"),
        ("", "/root/.cache/uv", "uv sync && rm -rf /root/.cache/uv/*", "error"),
        ("", "/root/.cache/uv", "uv sync && rm -rf /root/.cache/other", "clean"),
    ]);
}

#[test]
fn cache_that_the_run_itself_moves_is_followed() {
    assert_verdicts(&[
        ("", "/c", "pip install --cache-dir /c x", "error"),
        ("", "/c", "pip install --cache-dir=/c/pip x", "error"),
        ("", "/c", "YARN_CACHE_FOLDER=/c yarn install", "error"),
        ("", "/c", "yarn install --cache-folder /c", "error"),
        ("", "/c", "mvn -Dmaven.repo.local=/c package", "error"),
        ("", "/c", "./gradlew --gradle-user-home /c build", "error"),
        ("", "/c", "GOCACHE=/c go build", "clean"),
        ("", "/c", "export GOCACHE=/c && go build", "clean"),
        ("", "/c", "npm ci --cache /c", "clean"),
        ("", "/c", "sh -c 'GOCACHE=/c go build'", "clean"),
        ("ENV CARGO_TARGET_DIR=/c", "/c", "cargo build", "clean"),
        ("ENV CARGO_TARGET_DIR=/c", "/c/release/deps", "cargo build", "error"),
        ("", "/c", "cargo build --target-dir /c", "clean"),
    ]);
}

#[test]
fn npx_is_judged_by_the_arguments_of_the_command() {
    assert_verdicts(&[
        ("", "/root/.npm", "npx x", "error"),
        ("", "/root/.npm", "npm exec x", "error"),
        ("", "/root/.npm", "npm create vite", "error"),
        ("", "/root/.npm", "npm init vite@latest", "error"),
        ("", "/root/.npm", "npm init -y", "clean"),
        ("", "/root/.npm", "npm ci && npx tsc", "clean"),
        ("RUN npm ci", "/root/.npm", "npx tsc", "clean"),
        ("RUN npm install -g x", "/root/.npm", "npx tsc", "error"),
        ("RUN npm ci", "/root/.npm", "npx tsc@5", "error"),
        ("RUN npm ci", "/root/.npm", "npx --yes tsc", "error"),
        ("", "/root/.npm", "npx --no-install tsc", "clean"),
        ("", "/root/.npm", "npm ci # not npx", "clean"),
        ("", "/root/.npm", "npm ci \\\n  # npx is not needed\n  --omit=dev", "clean"),
        ("", "/root/.npm", "npm run npx", "clean"),
    ]);
}

#[test]
fn tool_that_writes_elsewhere_is_not_an_error() {
    assert_verdicts(&[
        ("", "/root/.cache/pip", "uv pip install x", "clean"),
        ("", "/root/.cache/pip", "uv pip install x && ./more.sh", "error"),
        ("", "/root/.cache/pip", "pip install --no-cache-dir x", "clean"),
        ("ENV PIP_NO_CACHE_DIR=1", "/root/.cache/pip", "pip install x", "clean"),
        ("ENV PIP_NO_CACHE_DIR=0", "/root/.cache/pip", "pip install x", "error"),
        ("", "/root/.cache/pip", "pip install --no-cache-dir x && pip install y", "error"),
        ("", "~/.cache/pip", "pip install x", "note"),
        ("", "/root/../root/.cache/uv", "uv sync", "clean"),
        ("WORKDIR /a", "../root/.m2", "mvn package", "error"),
    ]);
    let f = Fixture::new();
    write(&f, "Dockerfile", "FROM a\nRUN --mount=type=cache,target=~/.m2 mvn\n");
    let said = stdout(&f.buildlock(["lint"]).run());
    assert!(said.contains("cache mount ~/.m2 is a folder named ~ and not in the home"), "{said}");
}

#[test]
fn cache_that_is_locked_in_one_place_and_shared_in_another_is_fixed() {
    let f = Fixture::new();
    let dockerfile = "FROM a\nRUN --mount=type=cache,target=/root/.m2,id=m mvn a\nRUN \
                --mount=type=cache,target=/x,id=m mvn b\nRUN \
                --mount=type=cache,target=/root/.npm,sharing=locked npm ci\nRUN \
                --mount=type=cache,target=/root//.npm/ npm ci\nRUN \
                --mount=type=cache,target=/root/.npm,id=other npm ci\nRUN \
                --mount=type=cache,target=/root/.npm,sharing=private npm ci\n";
    write(&f, "Dockerfile", dockerfile);
    let run = f.buildlock(["lint"]).run();
    let found = stdout(&run);
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines.len(), 3, "{found}");
    assert!(lines[0].starts_with("Dockerfile:2:5: error: cache mount /root/.m2 races"), "{found}");
    let second = "Dockerfile:3:5: error: cache mount /x has the cache (m) that races in line 2;";
    assert!(lines[1].starts_with(second), "{found}");
    let third = "Dockerfile:5:5: error: cache mount /root//.npm/ is shared, and the same cache \
                 (/root/.npm) is locked in line 4";
    assert!(lines[2].starts_with(third), "{found}");
    f.buildlock(["lint", "--fix"]).run().assert_code(0);
    let fixed = dockerfile
        .replace(".m2,id=m", ".m2,id=m,sharing=locked")
        .replace("/x,id=m", "/x,id=m,sharing=locked")
        .replace("/.npm/ ", "/.npm/,sharing=locked ");
    assert_eq!(fs::read_to_string(f.work_dir().join("Dockerfile")).unwrap(), fixed);
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    // An explicit sharing is neither changed nor called clean.
    write(&f, "Dockerfile", &fixed.replace("/.npm/,sharing=locked", "/.npm/,sharing=shared"));
    let run = f.buildlock(["lint", "--fix"]).run();
    assert!(stdout(run.assert_code(1)).contains("write sharing=locked instead of sharing=shared"));
}

#[test]
fn finding_is_accepted_by_a_comment_with_a_reason_or_an_explicit_shared() {
    let f = Fixture::new();
    let with = |comment: &str| RACE.replace("RUN", &format!("{comment}\nRUN"));
    let lint = |text: &str| f.buildlock(["lint", "--strict", "-"]).stdin(text).run();
    lint(&with("# buildlock ignore=cache-mount-race: one builder"))
        .assert_code(0)
        .assert_stdout("");
    let without = lint(&with("# buildlock ignore=cache-mount-race"));
    let said = stdout(without.assert_code(1));
    assert!(said.contains("(the comment that ignores it gives no reason)"), "{said}");
    lint(&with("# buildlock ignore=cache-mount-unknown: no")).assert_code(1);
    lint(&format!("{}RUN x", with("# buildlock ignore=cache-mount-race: one"))).assert_code(0);
    // A comment applies to one instruction.
    let second = RACE.replace("FROM a\n", "");
    lint(&format!("{}{second}", with("# buildlock ignore=cache-mount-race: a"))).assert_code(1);

    lint(UNKNOWN).assert_code(1);
    lint(&UNKNOWN.replace("/strange", "/strange,sharing=shared")).assert_code(0).assert_stdout("");
    lint(&RACE.replace(".m2", ".m2,sharing=shared")).assert_code(1);
}

#[test]
fn dockerfile_is_accepted_and_refused_as_buildkit_does() {
    let f = Fixture::new();
    let lint = |text: &str| f.buildlock(["lint", "-"]).stdin(text).run();
    for accepted in [
        "FROM a \\\n",
        "FROM a \\",
        "FROM a\nRUN x \\\n# the end\n\n",
        "FROM a\nONBUILD WHATEVER x\n",
        "FROM a\nENV A=\nENV B c\n",
    ] {
        let run = lint(accepted);
        run.assert_stderr("looked at 1 file");
        run.assert_code(0);
    }
    let refused = [
        ("FROM a\nENV A\n", "<stdin>:2:1: not a Dockerfile: ENV needs a name and a value"),
        ("FROM a\nENV A=b C\n", "<stdin>:2:1: not a Dockerfile: ENV needs a name and a value"),
        ("FROM a\n\nFROM b c\n", "<stdin>:3:1: not a Dockerfile: FROM takes IMAGE or IMAGE AS"),
        ("RUN a\nFROM b\n", "<stdin>:1:1: not a Dockerfile: FROM must come first"),
        (
            "FROM a\nRUN --mount=type=cache,target=/root/.m2,shared=no x\n",
            "BuildKit knows no 'shared' in",
        ),
    ];
    for (text, why) in refused {
        lint(text).assert_code(125).assert_stderr(why);
    }
    let unfixed = refused.last().unwrap().0;
    write(&f, "Dockerfile", unfixed);
    f.buildlock(["lint", "--fix", "Dockerfile"]).run().assert_code(125);
    assert_eq!(fs::read_to_string(f.work_dir().join("Dockerfile")).unwrap(), unfixed);
}
