//! `buildlock lint`: the corpus in `tests/lint/`, what `--fix` writes, exit statuses.

mod common;

use std::fs;
use std::path::Path;

use common::Fixture;
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
