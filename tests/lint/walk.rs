//! Which files lint reads.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::files::{RACE, TWO_OF_ONE, stdout, write, write_below};
use super::support::{self, Fixture};
use super::support::{as_other_user, has, open_to_everybody};

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
    let found = stdout(run.assert_code(1));
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
    assert!(stdout(&run).starts_with("ok.Dockerfile:2:5: error: "), "{}", stdout(&run));
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
        true if !has("setpriv") => return support::skip("needs setpriv"),
        true => as_other_user(&f, &open_to_everybody(&f)).arg("lint").arg(&closed).run(),
        false => f.buildlock(["lint"]).arg(&closed).run(),
    };
    run.assert_code(125).assert_stderr("cannot read");
    set_mode(0o755);
    f.buildlock(["lint"]).arg(&closed).run().assert_code(1);
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
    let found = stdout(run.assert_code(1).assert_stderr("looked at 5 files: 5 errors, 0 notes"));
    let files: Vec<_> = found.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(files, seen);
    // A folder named by the user is searched even if it is hidden.
    let run = f.buildlock(["lint", ".hidden", "a/b/c/Dockerfile"]).run();
    let found = stdout(run.assert_code(1).assert_stderr("looked at 2 files"));
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
    assert_eq!(stdout(&run).lines().count(), 1, "{}", stdout(&run));
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
