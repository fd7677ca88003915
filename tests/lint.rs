//! `buildlock lint`: the corpus in `tests/lint/`, what `--fix` writes, exit statuses.

mod common;
#[path = "common/mounts.rs"]
mod mounts;
#[path = "common/outside.rs"]
mod outside;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Finished, Fixture};
use mounts::Namespace;
use outside::{OTHER_USER, as_other_user, has, open_to_everybody};
use serde_json::Value;

#[test]
fn every_dockerfile_of_the_corpus_has_the_findings_beside_it() {
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
fn nothing_to_look_at_is_125_and_wrong_usage_is_2() {
    let f = Fixture::new();
    f.buildlock(["lint"]).run().assert_code(125).assert_stderr("no Dockerfile");
    f.buildlock(["lint", "missing"]).run().assert_code(125).assert_stderr("cannot read missing");
    f.buildlock(["lint", "--format", "xml"]).run().assert_code(2);
}

#[test]
fn dockerfile_in_small_letters_is_one_too() {
    let f = Fixture::new();
    write(&f, "dockerfile", RACE);
    write(&f, "web.dockerfile", RACE);
    write(&f, "mydockerfile", RACE);
    let run = f.buildlock(["lint"]).run();
    let found = text(run.assert_code(1));
    assert_eq!(found.matches(": error: ").count(), 2, "{found}");
}

#[test]
fn what_cannot_be_looked_at_is_not_left_out_of_a_folder() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let f = Fixture::new();
    write(&f, "ok.Dockerfile", RACE);
    symlink("nowhere", f.work_dir().join("Dockerfile")).unwrap();
    let run = f.buildlock(["lint"]).run();
    run.assert_code(125).assert_stderr("cannot read Dockerfile");
    assert!(text(&run).starts_with("ok.Dockerfile:2:5: error: "), "{}", text(&run));
    // But it is no file that an editor marks as open.
    fs::rename(f.work_dir().join("Dockerfile"), f.work_dir().join(".#ok.Dockerfile")).unwrap();
    f.buildlock(["lint"]).run().assert_code(1);

    // Its files have names, and no more.
    let closed = f.work_dir().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("Dockerfile"), RACE).unwrap();
    fs::create_dir(closed.join("Dockerfile.d")).unwrap();
    let set_mode = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o644);
    // root is refused nothing by a mode.
    let run = match rustix::process::geteuid().is_root() {
        true if !has("setpriv") => return common::skip("needs setpriv"),
        true => as_other_user(&f, &open_to_everybody(&f)).arg("lint").arg(&closed).run(),
        false => f.buildlock(["lint"]).arg(&closed).run(),
    };
    run.assert_code(125).assert_stderr("cannot read");
    set_mode(0o755);
    f.buildlock(["lint"]).arg(&closed).run().assert_code(1);
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
fn unknown_cache_is_a_note_and_an_error_only_where_all_is_strict() {
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
    // What is in the file must not play with the terminal of who reads the log.
    write(&f, "Dockerfile", &UNKNOWN.replace("/strange", "/100%\u{1b}[2J"));
    let run = f.buildlock(["lint", "--format", "github"]).run();
    let text = self::text(&run);
    assert!(text.contains("cache mount /100%25\\u{1b}[2J is"), "{text}");
}

#[test]
fn sarif_names_the_rule_the_file_and_the_place() {
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

/// What it says on stdout.
fn text(run: &Finished) -> String {
    String::from_utf8(run.stdout.clone()).unwrap()
}

/// What lint says of a compose file, which two services of build one image.
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
    // One builds it, and the other takes it.
    write(&f, "compose.yaml", &TWO_OF_ONE.replace("    build: {context: .}\n", ""));
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    let merged = TWO_OF_ONE.replace("services:", "x-it: &it {image: \"x:1\"}\nservices:");
    let merged = merged.replace("    image: x:1", "    <<: *it");
    write(&f, "compose.yaml", &merged);
    f.buildlock(["lint"]).run().assert_code(1);
    write(&f, "compose.yaml", "services: [");
    f.buildlock(["lint"]).run().assert_code(125).assert_stderr("compose.yaml");
}

#[test]
fn compose_file_counts_with_the_one_that_overrides_it() {
    let f = Fixture::new();
    let of_two = TWO_OF_ONE.replace("image: x:1\n  c", "image: x:2\n  c");
    write(&f, "compose.yaml", &of_two);
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    write(&f, "docker-compose.override.yaml", "services: {b: {image: \"x:1\"}}\n");
    let run = f.buildlock(["lint"]).run();
    let found = text(run.assert_code(1));
    let start = "docker-compose.override.yaml:1:23: error: the services a and b both build x:1";
    assert!(found.starts_with(start) && found.lines().count() == 1, "{found}");
    // compose takes the first of those that it knows.
    write(&f, "compose.override.yml", "services: {c: {build: {tags: [\"x:2\"]}}}\n");
    let run = f.buildlock(["lint"]).run();
    let found = text(run.assert_code(1));
    assert_eq!(found.matches(": error: ").count(), 2, "{found}");
    assert!(found.contains("a and c both build x:1"), "{found}");
    assert!(found.contains("b and c both build x:2"), "{found}");
    // One that somebody names is not overridden.
    write(&f, "other.yaml", &of_two);
    f.buildlock(["lint", "other.yaml"]).run().assert_code(0).assert_stdout("");

    write(&f, "compose.yaml", TWO_OF_ONE);
    write(&f, "compose.override.yml", "services: {b: {build: !reset null}}\n");
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    write(&f, "compose.override.yml", "services: [");
    f.buildlock(["lint"]).run().assert_code(125).assert_stderr("compose.override.yml: not YAML");
}

#[test]
fn client_that_knows_compose_says_what_becomes_of_the_file() {
    let f = Fixture::new();
    let asked = f.path("asked");
    let config = r#"{"services":{"a":{"build":{"context":"."},"image":"x:1"},"b":{"build":{"context":"."},"image":"x:1"}}}"#;
    fs::remove_file(f.path("bin/docker")).unwrap();
    f.install_script(
        "docker",
        &format!("#!/bin/sh\necho \"$@\" >'{}'\necho '{config}'\n", asked.display()),
    );
    // Only the client knows the variable.
    write(&f, "compose.yaml", &TWO_OF_ONE.replace("image: x:1", "image: \"${IT}\""));
    assert_two_of_one(&f, 5);
    let words = fs::read_to_string(&asked).unwrap();
    assert!(words.contains("-f compose.yaml config --format json"), "{words}");
    write(&f, "compose.override.yaml", "services: {}\n");
    assert_two_of_one(&f, 5);
    let words = fs::read_to_string(&asked).unwrap();
    assert!(words.contains("-f compose.yaml -f compose.override.yaml config"), "{words}");
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
fn fix_does_without_a_folder_that_it_may_write_but_not_without_a_file() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let f = Fixture::new();
    let folder = f.work_dir().join("closed");
    let path = folder.join("Dockerfile");
    fs::create_dir(&folder).unwrap();
    fs::write(&path, RACE).unwrap();
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // root is refused nothing by a mode.
    let root = rustix::process::geteuid().is_root();
    if root && !has("setpriv") {
        common::skip("needs setpriv");
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
fn attributes_of_what_is_fixed_stay() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let f = Fixture::new();
    write(&f, "Dockerfile", RACE);
    let path = f.work_dir().join("Dockerfile");
    if setxattr(&path, "user.whose", b"mine", XattrFlags::empty()).is_err() {
        common::skip("needs a file system with attributes");
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
    // Two pages.
    let script = "mount -t tmpfs -o size=8k none \"$STANDIN/work/full\"";
    let Some(there) = Namespace::new(&f, script) else { return };
    let inside = there.path(&folder);
    // A bit less than a page, so that it needs another one.
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
    // This one cannot be replaced.
    fs::hard_link(inside.join("Dockerfile"), inside.join("same")).unwrap();
    assert_unchanged();
}

#[test]
fn nothing_is_left_beside_what_was_fixed() {
    let f = Fixture::new();
    write(&f, "Dockerfile", RACE);
    f.buildlock(["lint", "--fix"]).run().assert_code(0);
    let names: Vec<_> =
        fs::read_dir(f.work_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["Dockerfile"]);
}

#[test]
fn long_file_takes_no_longer_than_it_is() {
    let f = Fixture::new();
    let run = "RUN --mount=type=cache,target=/root/.m2 <<EOF\nmvn\nEOF\n";
    write(&f, "Dockerfile", &format!("FROM a\n{}", run.repeat(20_000)));
    let start = Instant::now();
    let run = f.buildlock(["lint"]).run();
    // A second or two; a minute if every finding's line is counted from the start.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(text(run.assert_code(1)).lines().count(), 20_000);
    assert!(text(&run).contains("\nDockerfile:59999:5: error: "));
}

#[test]
fn example_is_clean_and_is_looked_at() {
    let f = Fixture::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/compose-services");
    f.buildlock(["lint", "--strict"]).arg(&example).run().assert_code(0).assert_stdout("");
    let dockerfile = fs::read_to_string(example.join("Dockerfile")).unwrap();
    assert!(dockerfile.contains("--mount=type=cache,"), "{dockerfile}");
    write(&f, "Dockerfile", &dockerfile.replace("target=/cargo ", "target=/cargo/registry "));
    f.buildlock(["lint"]).run().assert_code(1);
}
