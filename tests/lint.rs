//! `buildlock lint`: the corpus and the forms in `tests/lint/`, verdicts, compose files, `--fix`,
//! exit statuses.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{
    Finished, Fixture, Namespace, OTHER_USER, as_other_user, has, open_to_everybody, skip,
};

#[test]
fn every_dockerfile_of_the_corpus_has_the_findings_in_the_file_beside_it() {
    let f = Fixture::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lint");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "Dockerfile") {
            continue;
        }
        let wanted = fs::read_to_string(path.with_extension("expected")).unwrap();
        let run = f.buildlock(["lint", "--format", "json"]).arg(&path).run();
        let found: Vec<Value> = serde_json::from_slice(&run.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let lines = found.iter().map(|it| {
            format!(
                "{}:{} {} {}\n",
                it["line"],
                it["column"],
                text(&it["level"]),
                text(&it["rule"])
            )
        });
        match wanted.as_str() {
            "unreadable\n" => assert_eq!(run.assert_code(125).stdout, b"[]\n"),
            _ => {
                assert_eq!(lines.collect::<String>(), wanted, "{path:?}");
                run.assert_code(i32::from(wanted.contains(" error ")));
            }
        }
        seen += 1;
    }
    assert!(seen >= 40, "only {seen}");
}

/// The rules that `# RULE, RULE` above a form of `tests/lint/forms/` stands for. `None` for other
/// comments.
fn wanted_rules(line: &str) -> Option<Vec<&str>> {
    const RULES: [&str; 4] = ["race", "mixed", "unknown", "variable"];
    match line.strip_prefix("# ")? {
        "clean" => Some(Vec::new()),
        rules => {
            let rules: Vec<_> = rules.split(", ").collect();
            rules.iter().all(|rule| RULES.contains(rule)).then_some(rules)
        }
    }
}

#[test]
fn every_real_world_form_has_the_verdict_above_it() {
    let f = Fixture::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lint/forms");
    let mut wanted = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let mut name = String::new();
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(rules) = wanted_rules(line) {
                name = format!("{stem}-line-{number}.Dockerfile");
                write(&f, &name, "FROM a\n");
                let rules = rules.iter().map(|rule| format!("cache-mount-{}", of_output(rule)));
                wanted.insert(name.clone(), rules.collect::<Vec<_>>());
            }
            let file = fs::File::options().append(true).open(f.work_dir().join(&name));
            writeln!(file.unwrap(), "{line}").unwrap();
        }
    }
    let run = f.buildlock(["lint", "--format", "json"]).run();
    run.assert_stderr(&format!("looked at {} files", wanted.len()));
    let mut found: BTreeMap<_, Vec<String>> =
        wanted.keys().map(|name| (name.clone(), Vec::new())).collect();
    for finding in serde_json::from_slice::<Vec<Value>>(&run.stdout).unwrap() {
        let text = |key: &str| finding[key].as_str().unwrap().to_owned();
        found.get_mut(&text("path")).unwrap().push(text("rule"));
    }
    let wrong: Vec<_> = wanted.iter().filter(|(name, rules)| found[*name] != **rules).collect();
    let is: Vec<_> = wrong.iter().map(|(name, _)| &found[*name]).collect();
    assert!(wrong.is_empty(), "wanted {wrong:#?}, found {is:#?}");
    assert!(wanted.len() >= 250, "only {}", wanted.len());
}

/// The rule's name in lint's output.
fn of_output(rule: &str) -> &str {
    if rule == "mixed" { "mixed-sharing" } else { rule }
}

#[test]
fn tree_of_two_thousand_files_takes_a_fraction_of_a_second() {
    let f = Fixture::new();
    let dockerfile = "FROM golang AS build\nWORKDIR /src\nCOPY . .\nRUN --mount=type=cache,\
                      target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build go build \
                      -o /out .\nFROM scratch\nCOPY --from=build /out /app\nCMD [\"/app\"]\n";
    for n in 0..2000 {
        write_below(&f, &format!("{}/{n}/Dockerfile", n % 40), dockerfile);
    }
    // Processor time: it stays the same on a busy machine. A release build needs less than 0.1 s.
    let script = "\"$0\" lint || exit; times";
    let run = f.program("sh").args(["-c", script, env!("CARGO_BIN_EXE_buildlock")]).run();
    let times = text(run.assert_code(0).assert_stderr("looked at 2000 files"));
    let children = times.lines().last().unwrap();
    let seconds: f64 = children
        .split_whitespace()
        .map(|time| {
            let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
            minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
        })
        .sum();
    assert!(seconds < 5.0, "{times}");
}

#[test]
fn fix_adds_the_lock_keeps_the_mode_and_leaves_clean_files_alone() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let f = Fixture::new();
    let path = f.work_dir().join("Dockerfile");
    let text = "FROM a\r\nRUN --mount=type=cache,target=/root/.m2 mvn\r\n";
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    f.buildlock(["lint"]).run().assert_code(1);
    f.buildlock(["lint", "--fix"]).run().assert_code(0);
    let fixed = text.replace(".m2 ", ".m2,sharing=locked ");
    assert_eq!(fs::read_to_string(&path).unwrap(), fixed);
    let before = fs::metadata(&path).unwrap();
    assert_eq!(before.permissions().mode() & 0o7777, 0o640);
    f.buildlock(["lint", "--fix"]).run().assert_code(0).assert_stdout("");
    assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
    f.buildlock(["lint", "--fix", "-"]).stdin(text).run().assert_code(0).assert_stdout(fixed);
}

#[test]
fn no_file_to_check_is_125_and_wrong_usage_is_2() {
    let f = Fixture::new();
    f.buildlock(["lint"]).run().assert_code(125).assert_stderr("no Dockerfile");
    f.buildlock(["lint", "missing"]).run().assert_code(125).assert_stderr("cannot read missing");
    f.buildlock(["lint", "--format", "xml"]).run().assert_code(2);
}

#[test]
fn lower_case_dockerfile_is_read_too() {
    let f = Fixture::new();
    write(&f, "dockerfile", RACE);
    write(&f, "web.dockerfile", RACE);
    write(&f, "mydockerfile", RACE);
    let run = f.buildlock(["lint"]).run();
    let found = text(run.assert_code(1));
    assert_eq!(found.matches(": error: ").count(), 2, "{found}");
}

#[test]
fn file_or_folder_that_cannot_be_read_is_an_error() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let f = Fixture::new();
    write(&f, "ok.Dockerfile", RACE);
    symlink("nowhere", f.work_dir().join("Dockerfile")).unwrap();
    let run = f.buildlock(["lint"]).run();
    run.assert_code(125).assert_stderr("cannot read Dockerfile");
    assert!(text(&run).starts_with("ok.Dockerfile:2:5: error: "), "{}", text(&run));
    // An editor's mark of an open file is hidden.
    fs::rename(f.work_dir().join("Dockerfile"), f.work_dir().join(".#ok.Dockerfile")).unwrap();
    f.buildlock(["lint"]).run().assert_code(1);

    // Its files can be listed, but not opened.
    let closed = f.work_dir().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("Dockerfile"), RACE).unwrap();
    fs::create_dir(closed.join("Dockerfile.d")).unwrap();
    let set_mode = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o644);
    // Modes do not stop root.
    let run = match rustix::process::geteuid().is_root() {
        true if !has("setpriv") => return skip("needs setpriv"),
        true => as_other_user(&f, &open_to_everybody(&f)).arg("lint").arg(&closed).run(),
        false => f.buildlock(["lint"]).arg(&closed).run(),
    };
    run.assert_code(125).assert_stderr("cannot read");
    set_mode(0o755);
    f.buildlock(["lint"]).arg(&closed).run().assert_code(1);
}

/// Writes a file below the work folder, and creates the folders above it.
fn write_below(f: &Fixture, name: &str, text: &str) {
    fs::create_dir_all(f.work_dir().join(name).parent().unwrap()).unwrap();
    write(f, name, text);
}

#[test]
fn folders_are_searched_recursively_as_ripgrep_does() {
    use std::os::unix::fs::symlink;
    let f = Fixture::new();
    let seen = [
        "a/Dockerfile-dev",
        "a/b/Dockerfile_x",
        "a/b/c/Dockerfile",
        "a/b/c/Dockerfile.dev",
        "a.Containerfile",
    ];
    for name in seen {
        write_below(&f, name, RACE);
    }
    for name in [".hidden/Dockerfile", "ignored/Dockerfile", "a/ignored.Dockerfile", "a/notes"] {
        write_below(&f, name, RACE);
    }
    fs::create_dir(f.work_dir().join(".git")).unwrap();
    write(&f, ".gitignore", "/ignored\n/a/ignored.*\n");
    symlink(".", f.work_dir().join("a/round")).unwrap();
    let run = f.buildlock(["lint"]).run();
    let found = text(run.assert_code(1).assert_stderr("looked at 5 files: 5 errors, 0 notes"));
    let files: Vec<_> = found.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(files, seen);
    // A folder named by the user is searched even if it is hidden.
    let run = f.buildlock(["lint", ".hidden", "a/b/c/Dockerfile"]).run();
    let found = text(run.assert_code(1).assert_stderr("looked at 2 files"));
    assert!(found.starts_with(".hidden/Dockerfile:2:5: error: "), "{found}");
    // Machine-readable output is alone on stdout.
    let run = f.buildlock(["lint", "--format", "json"]).run();
    assert_eq!(serde_json::from_slice::<Vec<Value>>(&run.stdout).unwrap().len(), 5);
    run.assert_stderr("looked at 5 files");
    let run = f.buildlock(["lint", "-q", "a/b/c/Dockerfile"]).run();
    assert_eq!(run.assert_code(1).stderr, "");
}

#[test]
fn file_that_is_not_what_its_name_says_is_a_warning_unless_the_user_named_it() {
    let f = Fixture::new();
    write_below(&f, "a/Dockerfile.template", "{{ if }}\n");
    write_below(&f, "a/compose.prod.yaml", "services: [");
    write_below(&f, "b/Dockerfile", RACE);
    let run = f.buildlock(["lint"]).run();
    run.assert_code(1)
        .assert_stderr("warning: a/Dockerfile.template:1:1: not a Dockerfile")
        .assert_stderr("warning: a/compose.prod.yaml: not YAML")
        .assert_stderr("looked at 1 file: 1 error, 0 notes");
    assert_eq!(text(&run).lines().count(), 1, "{}", text(&run));
    f.buildlock(["lint", "a"]).run().assert_code(0).assert_stdout("");
    let run = f.buildlock(["lint", "a/Dockerfile.template"]).run();
    run.assert_code(125).assert_stderr("error: a/Dockerfile.template:1:1: not a Dockerfile");
}

#[test]
fn pre_commit_hook_takes_the_files_that_lint_finds_by_itself() {
    let f = Fixture::new();
    let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join(".pre-commit-hooks.yaml");
    let hooks = fs::read_to_string(hooks).unwrap();
    let pattern = |key: &str| {
        let line = hooks.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        regex::Regex::new(line.trim()).unwrap()
    };
    let (files, exclude) = (pattern("  files:"), pattern("  exclude:"));
    let names = [
        "a/Dockerfile",
        "a/dockerfile",
        "a/Dockerfile.dev",
        "a/Dockerfile.py",
        "a/Dockerfile-1.2",
        "a/Dockerfile_x",
        "a/Containerfile",
        "a/Containerfile.x",
        "a/x.Dockerfile",
        "a/x.dockerfile",
        "a/x.Containerfile",
        "a/compose.yaml",
        "a/docker-compose.prod.yml",
        "a/compose-x.yml",
        "a/Dockerfile.dockerignore",
        "a/Dockerfile.md",
        "a/Dockerfile.orig",
        "a/Dockerfile~",
        "a/Dockerfile_test.go",
        "a/Dockerfile-x.sh",
        "a/Dockerfiles",
        "a/mydockerfile",
        "a/dockerfile.rs",
        "a/composer.yaml",
        "a/my-compose.yaml",
    ];
    for name in names {
        let is_yaml = name.ends_with(".yaml") || name.ends_with(".yml");
        write_below(&f, name, if is_yaml { TWO_OF_ONE } else { RACE });
    }
    let run = f.buildlock(["lint", "--format", "json"]).run();
    let found: Vec<Value> = serde_json::from_slice(&run.stdout).unwrap();
    let found: BTreeSet<_> = found.iter().map(|it| it["path"].as_str().unwrap()).collect();
    let taken: BTreeSet<_> =
        names.into_iter().filter(|it| files.is_match(it) && !exclude.is_match(it)).collect();
    assert_eq!(taken, found);
    assert_eq!(found.len(), 14);
}

const UNKNOWN: &str = "FROM a\nRUN --mount=type=cache,target=/strange x\n";
const RACE: &str = "FROM a\nRUN --mount=type=cache,target=/root/.m2 mvn\n";
const TWO_OF_ONE: &str = "\
services:
  a: {build: ., image: \"x:1\"}
  b:
    build: {context: .}
    image: x:1
  c: {image: x:1}
";

fn write(f: &Fixture, name: &str, text: &str) {
    fs::write(f.work_dir().join(name), text).unwrap();
}

#[test]
fn unknown_cache_is_a_note_and_with_strict_an_error() {
    let f = Fixture::new();
    write(&f, "Dockerfile", UNKNOWN);
    let noted = f.buildlock(["lint"]).run();
    let text = String::from_utf8(noted.assert_code(0).stdout.clone()).unwrap();
    assert!(text.starts_with("Dockerfile:2:5: note: "), "{text}");
    let strict = f.buildlock(["lint", "--strict"]).run();
    let text = String::from_utf8(strict.assert_code(1).stdout.clone()).unwrap();
    assert!(text.starts_with("Dockerfile:2:5: error: "), "{text}");
}

#[test]
fn github_gets_workflow_commands() {
    let f = Fixture::new();
    write(&f, "a,b:c%.Dockerfile", RACE);
    let run = f.buildlock(["lint", "--format", "github", "a,b:c%.Dockerfile"]).run();
    let text = String::from_utf8(run.assert_code(1).stdout.clone()).unwrap();
    let start = "::error file=a%2Cb%3Ac%25.Dockerfile,line=2,col=5,title=cache-mount-race::";
    assert!(text.starts_with(start) && text.lines().count() == 1, "{text}");
    // The file's text must not control the terminal of someone who reads the log.
    write(&f, "Dockerfile", &UNKNOWN.replace("/strange", "/100%\u{1b}[2J"));
    let run = f.buildlock(["lint", "--format", "github"]).run();
    let text = self::text(&run);
    assert!(text.contains("cache mount /100%25\\u{1b}[2J is"), "{text}");
}

#[test]
fn sarif_has_the_rule_the_file_and_the_position() {
    let f = Fixture::new();
    write(&f, "Dockerfile", &format!("{RACE}{}", "RUN --mount=type=cache,target=/strange x\n"));
    let run = f.buildlock(["lint", "--format", "sarif"]).run();
    let sarif: Value = serde_json::from_slice(&run.assert_code(1).stdout).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    let rules = sarif["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
    let found: Vec<_> = results.iter().map(|it| (&it["ruleId"], &it["level"])).collect();
    assert_eq!(found.len(), 2, "{sarif}");
    assert_eq!(
        (found[0].0.as_str(), found[0].1.as_str()),
        (Some("cache-mount-race"), Some("error"))
    );
    assert_eq!(found[1].1, "note");
    assert!(found.iter().all(|(id, _)| rules.iter().any(|rule| rule["id"] == **id)), "{sarif}");
    let place = &results[0]["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "Dockerfile");
    assert_eq!(place["region"]["startLine"], 2);
}

/// Returns what a run printed on stdout.
fn text(run: &Finished) -> String {
    String::from_utf8(run.stdout.clone()).unwrap()
}

/// Runs lint on a compose file in which two services build one image, the second at this line.
fn assert_two_of_one(f: &Fixture, line: u32) {
    let run = f.buildlock(["lint", "--format", "json", "compose.yaml"]).run();
    let found: Vec<Value> = serde_json::from_slice(&run.assert_code(1).stdout).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["rule"], "compose-same-image");
    assert_eq!(found[0]["line"], line);
    let message = found[0]["message"].as_str().unwrap();
    assert!(message.contains("a and b both build x:1"), "{message}");
}

#[test]
fn services_that_build_one_image_are_found_without_a_client_that_knows_compose() {
    let f = Fixture::new();
    write(&f, "compose.yaml", TWO_OF_ONE);
    assert_two_of_one(&f, 5);
    // One service builds the image, and the other uses it.
    write(&f, "compose.yaml", &TWO_OF_ONE.replace("    build: {context: .}\n", ""));
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    let merged = TWO_OF_ONE.replace("services:", "x-it: &it {image: \"x:1\"}\nservices:");
    let merged = merged.replace("    image: x:1", "    <<: *it");
    write(&f, "compose.yaml", &merged);
    f.buildlock(["lint"]).run().assert_code(1);
    write(&f, "compose.yaml", "services: [");
    f.buildlock(["lint", "compose.yaml"]).run().assert_code(125).assert_stderr("compose.yaml");
}

#[test]
fn compose_file_is_read_together_with_its_override() {
    let f = Fixture::new();
    let of_two = TWO_OF_ONE.replace("image: x:1\n  c", "image: x:2\n  c");
    write(&f, "compose.yaml", &of_two);
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    write(&f, "docker-compose.override.yaml", "services: {b: {image: \"x:1\"}}\n");
    let run = f.buildlock(["lint"]).run();
    let found = text(run.assert_code(1));
    let start = "docker-compose.override.yaml:1:23: error: the services a and b both build x:1";
    assert!(found.starts_with(start) && found.lines().count() == 1, "{found}");
    // compose takes the first override that exists.
    write(&f, "compose.override.yml", "services: {c: {build: {tags: [\"x:2\"]}}}\n");
    let run = f.buildlock(["lint"]).run();
    let found = text(run.assert_code(1));
    assert_eq!(found.matches(": error: ").count(), 2, "{found}");
    assert!(found.contains("a and c both build x:1"), "{found}");
    assert!(found.contains("b and c both build x:2"), "{found}");
    // A file with another name has no override.
    write(&f, "other.yaml", &of_two);
    f.buildlock(["lint", "other.yaml"]).run().assert_code(0).assert_stdout("");

    write(&f, "compose.yaml", TWO_OF_ONE);
    write(&f, "compose.override.yml", "services: {b: {build: !reset null}}\n");
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    write(&f, "compose.override.yml", "services: [");
    let run = f.buildlock(["lint", "compose.yaml"]).run();
    run.assert_code(125).assert_stderr("compose.override.yml: not YAML");
}

#[test]
fn docker_compose_is_asked_what_a_variable_becomes() {
    let f = Fixture::new();
    let asked = f.path("asked");
    let config = r#"{"services":{"a":{"build":{"context":"."},"image":"x:1"},"b":{"build":{"context":"."},"image":"x:1"}}}"#;
    fs::remove_file(f.path("bin/docker")).unwrap();
    f.install_script(
        "docker",
        &format!("#!/bin/sh\necho \"$@\" >'{}'\necho '{config}'\n", asked.display()),
    );
    // Only docker compose knows the variable.
    write(&f, "compose.yaml", &TWO_OF_ONE.replace("image: x:1", "image: \"${IT}\""));
    assert_two_of_one(&f, 5);
    let words = fs::read_to_string(&asked).unwrap();
    assert!(words.contains("-f compose.yaml config --format json"), "{words}");
    write(&f, "compose.override.yaml", "services: {}\n");
    assert_two_of_one(&f, 5);
    let words = fs::read_to_string(&asked).unwrap();
    assert!(words.contains("-f compose.yaml -f compose.override.yaml config"), "{words}");
}

/// Returns what lint prints about this compose file.
fn said_of(f: &Fixture, compose: &str) -> String {
    write(f, "compose.yaml", compose);
    text(&f.buildlock(["lint", "compose.yaml"]).run())
}

#[test]
fn services_of_different_profiles_are_an_error_only_if_one_call_builds_both() {
    let f = Fixture::new();
    let with = |a: &str, b: &str| {
        let service = |name: &str, profiles: &str| {
            format!("  {name}: {{build: ., image: x, profiles: [{profiles}]}}\n")
        };
        format!("services:\n{}{}", service("a", a), service("b", b))
    };
    let note = "compose.yaml:3:24: note: the services a and b both build x, if their profiles are";
    assert!(said_of(&f, &with("one", "two")).starts_with(note), "{}", said_of(&f, &with("1", "2")));
    f.buildlock(["lint", "compose.yaml"]).run().assert_code(0);
    f.buildlock(["lint", "--strict", "compose.yaml"]).run().assert_code(1);
    for (a, b) in [("one", "one, two"), ("", "two"), ("one", "")] {
        let said = said_of(&f, &with(a, b));
        assert!(said.contains(": error: the services a and b both build x;"), "{said}");
    }
    // Of three services, the two that one call builds are reported.
    let third = format!("{}  c: {{build: ., image: x, profiles: [two]}}\n", with("one", "two"));
    let said = said_of(&f, &third);
    assert!(said.contains(": error: the services b and c both build x;"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn image_without_a_name_gets_the_one_from_compose() {
    let f = Fixture::new();
    let services = "services:\n  a: {build: .}\n  b: {build: ., image: n-a}\n";
    let error =
        "compose.yaml:4:24: error: the services a and b both build n-a: a has no image:, so";
    let said = said_of(&f, &format!("name: n\n{services}"));
    assert!(said.starts_with(error), "{said}");
    // The name belongs to another project.
    assert_eq!(said_of(&f, services), "");
    assert_eq!(said_of(&f, &format!("name: m\n{services}")), "");
    // The project is named after its folder, unless .env names it.
    let of_folder = services.replace("n-a", "work-a");
    assert!(said_of(&f, &of_folder).contains("both build work-a"), "{}", said_of(&f, &of_folder));
    write(&f, ".env", "COMPOSE_PROJECT_NAME=n\n");
    assert_eq!(said_of(&f, &of_folder), "");
    assert!(said_of(&f, &format!("name: m\n{services}")).starts_with(error));
    // Only docker-compose 1 uses this name.
    let old = said_of(&f, &services.replace("n-a", "n_a"));
    assert!(
        old.contains(": note: with docker-compose 1 or --compatibility, the services"),
        "{old}"
    );
}

#[test]
fn compose_file_is_read_as_compose_reads_it() {
    let f = Fixture::new();
    // Brackets that close at their key's column, a scalar that continues there, tabs in brackets.
    let accepted = "services:\n  a:\n    command: [\n      x\n    ]\n    build: .\n    image: x\n  \
                    b:\n    build: {\n\t\tcontext: .\n    }\n    command: \"a\n  b\"\n    image: x\n";
    let said = said_of(&f, accepted);
    assert!(said.starts_with("compose.yaml:14:12: error: the services a and b both"), "{said}");
}

#[test]
fn image_that_a_service_takes_from_an_anchor_is_reported_at_the_service() {
    let f = Fixture::new();
    let anchors = "x-it: &it {build: ., image: x}\nservices:\n  a: {<<: *it}\n  b:\n    <<: *it\n  \
                   c: *it\n";
    let said = said_of(&f, anchors);
    let places: Vec<_> = said.lines().map(|line| line.split(" error").next().unwrap()).collect();
    assert_eq!(places, ["compose.yaml:4:3:", "compose.yaml:6:3:"], "{said}");
}

#[test]
fn docker_compose_is_looked_for_once_and_only_if_the_files_do_not_tell() {
    let f = Fixture::new();
    let asked = f.path("asked");
    fs::remove_file(f.path("bin/docker")).unwrap();
    let script = format!("#!/bin/sh\necho \"$@\" >>'{}'\nexit 1\n", asked.display());
    f.install_script("docker", &script);
    for n in 0..5 {
        write_below(&f, &format!("{n}/compose.yaml"), TWO_OF_ONE);
    }
    let run = f.buildlock(["lint"]).run();
    run.assert_code(1).assert_stderr("looked at 5 files: 5 errors");
    assert!(!asked.exists(), "{}", fs::read_to_string(&asked).unwrap());
    for n in 0..5 {
        let open = TWO_OF_ONE.replace("x:1", "x:$TAG");
        write_below(&f, &format!("{n}/compose.yaml"), &open);
    }
    let run = f.buildlock(["lint"]).run();
    run.assert_code(1).assert_stderr("looked at 5 files: 5 errors");
    assert_eq!(fs::read_to_string(&asked).unwrap(), "compose version\n");
}

#[test]
fn dockerfiles_that_a_compose_file_builds_from_are_checked() {
    let f = Fixture::new();
    for name in ["built/build.docker", "above/Dockerfile", "project/.own/Dockerfile"] {
        write_below(&f, name, RACE);
    }
    let compose = "services:\n  a: {build: {context: ../built, dockerfile: build.docker}}\n  \
                   b: {build: ../above}\n  c: {build: ./.own}\n  d: {build: .own/}\n  \
                   e: {build: \"https://example.com/x.git\"}\n  f: {build: missing}\n";
    write_below(&f, "project/compose.yaml", compose);
    let run = f.buildlock(["lint", "project"]).run();
    let found = text(run.assert_code(1).assert_stderr("looked at 4 files: 3 errors"));
    let files: Vec<_> = found.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(files, ["built/build.docker", "above/Dockerfile", "project/.own/Dockerfile"]);
    // None is checked twice.
    let run = f.buildlock(["lint", "project", "above"]).run();
    run.assert_code(1).assert_stderr("looked at 4 files: 3 errors");
}

#[test]
fn dockerfile_inside_a_compose_file_is_checked() {
    let f = Fixture::new();
    let compose = "services:\n  a:\n    build:\n      dockerfile_inline: |\n        FROM a\n\n        \
                   RUN --mount=type=cache,target=/root/.m2 mvn\n";
    let said = said_of(&f, compose);
    assert!(said.starts_with("compose.yaml:7:13: error: cache mount /root/.m2 races"), "{said}");
    let fix = f.buildlock(["lint", "--fix", "compose.yaml"]).run();
    fix.assert_code(1);
    assert_eq!(fs::read_to_string(f.work_dir().join("compose.yaml")).unwrap(), compose);
    let quoted = r#"services: {a: {build: {dockerfile_inline: "FROM a\nRUN --mount=type=cache,target=/root/.m2 x"}}}"#;
    let said = said_of(&f, quoted);
    assert!(said.starts_with("compose.yaml:1:43: error: cache mount"), "{said}");
}

#[test]
fn quiet_lint_prints_no_notes() {
    let f = Fixture::new();
    write(&f, "a.Dockerfile", UNKNOWN);
    f.buildlock(["lint", "-q"]).run().assert_code(0).assert_stdout("");
    f.buildlock(["lint", "-q", "--format", "json"]).run().assert_stdout("[]\n");
    write(&f, "b.Dockerfile", RACE);
    let run = f.buildlock(["lint", "-q"]).run();
    assert_eq!(text(run.assert_code(1)).lines().count(), 1, "{}", text(&run));
    f.buildlock(["lint", "-q", "--strict", "a.Dockerfile"]).run().assert_code(1);
}

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
    let said = text(&f.buildlock(["lint"]).run());
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
    let said = text(&f.buildlock(["lint"]).run());
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
    let found = text(&run);
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
    assert!(text(run.assert_code(1)).contains("write sharing=locked instead of sharing=shared"));
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
    let said = text(without.assert_code(1));
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

#[test]
fn chain_of_stages_needs_memory_in_proportion_to_its_text() {
    let f = Fixture::new();
    let stage = |n: usize| {
        let value = "v".repeat(200);
        format!("FROM s{n} AS s{}\nENV NAME_{n}={value}\n", n + 1)
    };
    let stages: String = (0..5000).map(stage).collect();
    let last = "RUN --mount=type=cache,target=/$NAME_0 x\n";
    write(&f, "Dockerfile", &format!("{stages}{last}"));
    let path = f.work_dir().join("Dockerfile");
    // If each stage copied the variables of those before it, that would be 2.5 GB.
    let script = "ulimit -v 400000 && exec \"$0\" lint \"$1\"";
    let run =
        f.program("sh").args(["-c", script, env!("CARGO_BIN_EXE_buildlock")]).arg(&path).run();
    let said = text(run.assert_code(0));
    assert!(said.contains(":10001:5: note: cache mount /$NAME_0 is shared"), "{said}");
}

#[test]
fn fix_keeps_links() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let f = Fixture::new();
    let work = f.work_dir();
    let fixed = RACE.replace(".m2 ", ".m2,sharing=locked ");
    write(&f, "real", RACE);
    symlink("real", work.join("linked.Dockerfile")).unwrap();
    f.buildlock(["lint", "--fix", "linked.Dockerfile"]).run().assert_code(0);
    assert!(fs::symlink_metadata(work.join("linked.Dockerfile")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(work.join("real")).unwrap(), fixed);

    write(&f, "one.Dockerfile", RACE);
    fs::hard_link(work.join("one.Dockerfile"), work.join("other")).unwrap();
    f.buildlock(["lint", "--fix", "one.Dockerfile"]).run().assert_code(0);
    assert_eq!(fs::read_to_string(work.join("other")).unwrap(), fixed);
    assert_eq!(fs::metadata(work.join("other")).unwrap().nlink(), 2);
}

#[test]
fn fix_needs_to_write_the_file_but_not_its_folder() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let f = Fixture::new();
    let folder = f.work_dir().join("closed");
    let path = folder.join("Dockerfile");
    fs::create_dir(&folder).unwrap();
    fs::write(&path, RACE).unwrap();
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // Modes do not stop root.
    let root = rustix::process::geteuid().is_root();
    if root && !has("setpriv") {
        skip("needs setpriv");
        return;
    }
    let program = root.then(|| open_to_everybody(&f));
    let fix = || match &program {
        Some(program) => as_other_user(&f, program).args(["lint", "--fix"]).arg(&path).run(),
        None => f.buildlock(["lint", "--fix"]).arg(&path).run(),
    };
    if root {
        chown(&path, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    }
    mode(&folder, 0o555);

    mode(&path, 0o444);
    let run = fix();
    run.assert_code(125).assert_stderr("cannot write");
    assert!(text(&run).contains("error: "), "{}", text(&run));
    assert_eq!(fs::read_to_string(&path).unwrap(), RACE);

    mode(&path, 0o644);
    let before = fs::metadata(&path).unwrap().ino();
    fix().assert_code(0);
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
    assert_eq!(fs::read_to_string(&path).unwrap(), RACE.replace(".m2 ", ".m2,sharing=locked "));
    mode(&folder, 0o755);
}

#[test]
fn fix_keeps_attributes() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let f = Fixture::new();
    write(&f, "Dockerfile", RACE);
    let path = f.work_dir().join("Dockerfile");
    if setxattr(&path, "user.whose", b"mine", XattrFlags::empty()).is_err() {
        skip("needs a file system with attributes");
        return;
    }
    f.buildlock(["lint", "--fix"]).run().assert_code(0);
    assert!(fs::read_to_string(&path).unwrap().contains("sharing=locked"));
    let mut value = [0; 8];
    let length = getxattr(&path, "user.whose", &mut value);
    assert_eq!(length.map(|length| &value[..length]), Ok(&b"mine"[..]));
}

#[test]
fn disk_without_room_for_the_fix_leaves_the_file_as_it_was() {
    let f = Fixture::new();
    let folder = f.work_dir().join("full");
    fs::create_dir(&folder).unwrap();
    // The disk has two pages.
    let script = "mount -t tmpfs -o size=8k none \"$STANDIN/work/full\"";
    let Some(there) = Namespace::new(&f, script) else { return };
    let inside = there.path(&folder);
    // A little less than a page: the fix needs a second one.
    let whole = format!("{RACE}{}\n", "#".repeat(4090 - RACE.len()));
    fs::write(inside.join("Dockerfile"), &whole).unwrap();
    fs::write(inside.join("other"), [0; 4096]).unwrap();
    let assert_unchanged = || {
        let run = there.buildlock(["lint", "--fix", "full/Dockerfile"]).run();
        run.assert_code(125).assert_stderr("cannot write");
        assert!(text(&run).contains("error: "), "{}", text(&run));
        assert_eq!(fs::read_to_string(inside.join("Dockerfile")).unwrap(), whole);
    };
    let written = || fs::metadata(inside.join("Dockerfile")).unwrap().modified().unwrap();
    let before = written();
    assert_unchanged();
    assert_eq!(written(), before);
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 2);
    // A file with two names is not replaced, but written.
    fs::hard_link(inside.join("Dockerfile"), inside.join("same")).unwrap();
    assert_unchanged();
}

#[test]
fn fix_leaves_no_other_file_behind() {
    let f = Fixture::new();
    write(&f, "Dockerfile", RACE);
    f.buildlock(["lint", "--fix"]).run().assert_code(0);
    let names: Vec<_> =
        fs::read_dir(f.work_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["Dockerfile"]);
}

#[test]
fn long_file_takes_time_in_proportion_to_its_length() {
    let f = Fixture::new();
    let run = "RUN --mount=type=cache,target=/root/.m2 <<EOF\nmvn\nEOF\n";
    write(&f, "Dockerfile", &format!("FROM a\n{}", run.repeat(20_000)));
    let start = Instant::now();
    let run = f.buildlock(["lint"]).run();
    // This takes a second or two, and a minute if lines are counted from the start each time.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(text(run.assert_code(1)).lines().count(), 20_000);
    assert!(text(&run).contains("\nDockerfile:59999:5: error: "));
}

#[test]
fn example_in_the_repository_is_clean() {
    let f = Fixture::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/compose-services");
    f.buildlock(["lint", "--strict"]).arg(&example).run().assert_code(0).assert_stdout("");
    let dockerfile = fs::read_to_string(example.join("Dockerfile")).unwrap();
    assert!(dockerfile.contains("--mount=type=cache,"), "{dockerfile}");
    write(&f, "Dockerfile", &dockerfile.replace("target=/cargo ", "target=/cargo/registry "));
    f.buildlock(["lint"]).run().assert_code(1);
}
