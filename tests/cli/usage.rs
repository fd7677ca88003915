//! Wrong input gets a clear error before any waiting.
//!
//! In each case another process holds the lock, and the wait has no limit: a call that waits before
//! it checks its input would not come back.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use crate::support::{Finished, Fixture, ForeignLock, Invocation, stand_in};

/// Returns a fixture whose lock for `env:abc` is held until the second value is dropped.
fn contended() -> (Fixture, ForeignLock) {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));
    (f, held)
}

fn run_contended(invocation: Invocation<'_>) -> Finished {
    let finished = invocation.env("BUILDLOCK_TIMEOUT", "none").run();
    finished.assert_no_stderr("waiting for").assert_no_stderr("panicked").assert_stdout("");
    finished
}

/// Runs a call while the lock is held. Fails unless it ends with this status and stderr matches
/// each of the patterns.
fn assert_refused(args: &[&str], status: i32, patterns: &[&str]) {
    let (f, _held) = contended();
    let finished = run_contended(f.buildlock(args));
    finished.assert_code(status);
    for pattern in patterns {
        finished.assert_stderr_matches(pattern);
    }
    assert_eq!(f.build_events(), [], "{finished}");
    assert_eq!(f.looks(), [] as [&str; 0], "the engine was asked: {finished}");
}

#[test]
fn separator_before_the_build_command_is_required() {
    assert_refused(&["-t", "env:abc", "docker", "build", "."], 125, &["docker", "--"]);
    assert_refused(&["docker", "build", "-t", "env:abc", "."], 125, &["docker", "--"]);
}

#[test]
fn build_command_is_required() {
    for args in [&[][..], &["-t", "env:abc"], &["-t", "env:abc", "--"], &["--"]] {
        assert_refused(args, 125, &["(?i)command"]);
    }
    assert_refused(&["-t", "env:abc", "--", ""], 127, &[]);
}

#[test]
fn tag_is_required_where_none_can_be_inferred() {
    for command in [
        &["true"][..],
        &["sh", "-c", "docker build -t env:abc ."],
        &["docker", "build", "."],
        &["docker", "ps"],
        &["docker"],
    ] {
        let args: Vec<_> = ["--"].iter().chain(command).copied().collect();
        assert_refused(&args, 125, &["(?i)tag", "-t"]);
    }
}

#[test]
fn tag_must_be_one_that_can_be_built() {
    for (tag, pattern) in [
        ("Env:abc", "(?i)lower[- ]?case|upper[- ]?case"),
        ("ghcr.io/Alice/env:abc", "(?i)lower[- ]?case|upper[- ]?case"),
        ("env@sha256:0000000000000000000000000000000000000000000000000000000000000000", "digest"),
        (
            "env:abc@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "digest",
        ),
        ("", "(?i)empty|reference|name"),
        ("env:", "env:"),
        (":abc", ":abc"),
        ("env abc", "env abc"),
        ("env:a/b", "env:a/b"),
        ("-env", "-env"),
        ("https://ghcr.io/a/b:c", "https://ghcr.io/a/b:c"),
        ("env:-abc", "env:-abc"),
        ("a//b", "a//b"),
    ] {
        assert_refused(&[&format!("--tag={tag}"), "--", "true"], 125, &[pattern, "(?i)tag|image"]);
    }
    let long = format!("--tag=env:{}", "a".repeat(129));
    assert_refused(&[&long, "--", "true"], 125, &["(?i)tag"]);
}

#[test]
fn wrong_tag_in_a_build_command_is_refused_too() {
    assert_refused(&["--", "docker", "build", "-t", "Env:abc", "."], 125, &["Env:abc"]);
    assert_refused(&["--", "docker", "build", "."], 125, &["(?i)tag"]);
    assert_refused(&["--", "docker", "build", "-t"], 125, &["(?i)tag"]);
}

#[test]
fn wrong_durations_are_refused() {
    for option in ["--timeout", "--build-timeout", "--kill-after"] {
        for value in ["soon", "", "-1", "5 parsecs", "1.2.3", "10m10"] {
            let argument = format!("{option}={value}");
            let args = [&argument, "--", "docker", "build", "-t", "env:abc", "."];
            assert_refused(&args, 125, &[option]);
        }
    }
}

#[test]
fn wrong_values_of_options_are_refused() {
    for (argument, pattern) in [
        ("--engine=lxc", "docker.*podman.*nerdctl"),
        ("--on-failure=ignore", "retry.*share"),
        ("--log-format=xml", "text.*json"),
        ("--conflict-exit-code=0", "--conflict-exit-code"),
        ("--conflict-exit-code=256", "--conflict-exit-code"),
        ("--conflict-exit-code=x", "--conflict-exit-code"),
        ("--lock=", "--lock"),
        ("--no-such-option", "--no-such-option"),
        ("--lock-dir=", "--lock-dir"),
    ] {
        assert_refused(&[argument, "--", "docker", "build", "-t", "env:abc", "."], 125, &[pattern]);
    }
    let args = ["-q", "-v", "--", "docker", "build", "-t", "env:abc", "."];
    assert_refused(&args, 125, &["--quiet", "--verbose"]);
}

#[test]
fn wrong_values_in_the_environment_are_refused_by_name() {
    for (name, value) in [
        ("BUILDLOCK_TIMEOUT", "soon"),
        ("BUILDLOCK_BUILD_TIMEOUT", "soon"),
        ("BUILDLOCK_ON_FAILURE", "ignore"),
        ("BUILDLOCK_ENGINE", "lxc"),
        ("BUILDLOCK_LOG_FORMAT", "xml"),
    ] {
        let (f, _held) = contended();
        // Not by `run_contended`, which sets one of these variables.
        let finished = f.docker_build("env:abc").env(name, value).run();
        finished.assert_code(125).assert_stderr(name).assert_stderr(value);
        assert_eq!(f.looks(), [] as [&str; 0], "{finished}");
    }
}

#[test]
fn command_that_cannot_be_run_is_refused() {
    assert_refused(&["-t", "env:abc", "--", "no-such-command"], 127, &["no-such-command"]);
    assert_refused(&["-t", "env:abc", "--", "/"], 126, &["/"]);
}

#[test]
fn output_that_makes_no_image_is_refused() {
    for output in [
        &["-o", "out"][..],
        &["-oout"],
        &["--output", "out"],
        &["--output=out"],
        &["-o", "-"],
        &["--output", "type=local,dest=out"],
        &["--output=type=tar,dest=out.tar"],
    ] {
        let build = ["--", "docker", "build", "-t", "env:abc"];
        let args: Vec<_> = build.iter().chain(output).chain(&["."]).copied().collect();
        assert_refused(&args, 125, &["env:abc|image", "-o |--output"]);
    }
}

#[test]
fn command_that_only_checks_is_refused() {
    for option in ["--check", "--call=outline"] {
        assert_refused(&["--", "docker", "build", option, "-t", "env:abc", "."], 125, &[option]);
    }
}

#[test]
fn push_with_the_engines_own_builder_causes_no_warning() {
    let (f, _held) = contended();
    let args = ["-w", "0s", "--", "docker", "buildx", "build", "--push", "-t", "env:abc", "."];

    f.buildlock(args).run().assert_code(124).assert_no_stderr("warning");
}

#[test]
fn output_that_makes_an_image_is_accepted() {
    for output in [&["-o", "type=docker"][..], &["--output=type=docker"], &["--load"]] {
        let f = Fixture::new();
        let build = ["--", "docker", "buildx", "build", "-t", "env:abc"];
        f.buildlock(build.iter().chain(output).chain(&["."])).run().assert_code(0);
        assert!(f.has_image("env:abc"));
    }
}

#[test]
fn tag_that_the_build_command_does_not_build_causes_a_warning() {
    let (f, _held) = contended();
    let args = ["-w", "0s", "-t", "env:abc", "--", "docker", "build", "-t", "env:def", "."];

    let finished = f.buildlock(args).run();

    finished.assert_code(124).assert_stderr_matches("(?i)warning.*env:abc");
}

#[test]
fn tags_that_the_build_command_spells_differently_cause_no_warning() {
    let f = Fixture::new();
    let args = ["-q", "-t", "env", "--", "docker", "build", "-t", "docker.io/library/env", "."];

    f.buildlock(args).run().assert_code(0).assert_no_stderr("buildlock:");
}

// The lock folder.

#[test]
fn lock_folder_that_is_a_file_is_refused() {
    let f = Fixture::new();
    fs::write(f.lock_dir(), "precious").unwrap();

    let finished = run_contended(f.docker_build("env:abc"));

    finished.assert_code(125).assert_stderr(f.lock_dir().to_str().unwrap());
    assert_eq!(fs::read_to_string(f.lock_dir()).unwrap(), "precious");
    assert_eq!(f.build_events(), []);
}

#[test]
fn lock_folder_that_is_a_symbolic_link_is_refused() {
    let (f, _held) = contended();
    let link = f.path("link");
    symlink(f.lock_dir(), &link).unwrap();

    let finished = run_contended(f.docker_build("env:abc").env("BUILDLOCK_DIR", &link));

    finished.assert_code(125).assert_stderr(link.to_str().unwrap());
    finished.assert_stderr_matches("(?i)link");
    assert_eq!(f.build_events(), []);
}

#[test]
fn lock_folder_where_nothing_can_be_made_is_refused() {
    let f = Fixture::new();

    let finished = run_contended(f.docker_build("env:abc").env("BUILDLOCK_DIR", "/proc/buildlock"));

    finished.assert_code(125).assert_stderr("/proc/buildlock").assert_stderr("--lock-dir");
    assert_eq!(f.build_events(), []);
}

/// Prepares a call by a user other than root. The program and the engine are copied to the
/// fixture's folder, where every user may execute them.
fn as_ordinary_user<'f>(f: &'f Fixture, args: &[&str]) -> Invocation<'f> {
    let program = f.install_buildlock();
    fs::remove_file(f.path("bin/docker")).unwrap();
    f.install_script("docker", &fs::read_to_string(stand_in()).unwrap());
    for folder in ["", "bin", "images", "work"] {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(f.path(folder), mode).unwrap();
    }
    let mut invocation = f.program(program).args(args);
    if rustix::process::geteuid().is_root() {
        invocation.command().uid(65534).gid(65534);
    }
    invocation
}

#[test]
fn unwritable_lock_folder_is_refused() {
    let f = Fixture::new();
    fs::create_dir(f.lock_dir()).unwrap();
    fs::set_permissions(f.lock_dir(), fs::Permissions::from_mode(0o555)).unwrap();

    let build = ["--", "docker", "build", "-t", "env:abc", "."];
    let finished = run_contended(as_ordinary_user(&f, &build));

    finished.assert_code(125).assert_stderr(f.lock_dir().to_str().unwrap());
    finished.assert_stderr_matches("(?i)permission|denied|writ");
    assert_eq!(f.build_events(), []);
}

// Lock files.

/// Lets `make` put something else in the place of the lock file, which must be refused. Another
/// process holds `env:aaa`, which sorts first.
fn assert_lock_file_refused(pattern: &str, make: impl Fn(&Fixture, &PathBuf)) {
    for args in [
        &["--", "docker", "build", "-t", "env:abc", "."][..],
        &["--", "docker", "build", "-t", "env:aaa", "-t", "env:abc", "."],
    ] {
        let f = Fixture::new();
        let _held = f.hold_lock(&f.lock_file("env:aaa"));
        let path = f.lock_file("env:abc");
        make(&f, &path);

        let finished = run_contended(f.buildlock(args));

        finished.assert_code(125).assert_stderr(path.to_str().unwrap());
        finished.assert_stderr_matches(pattern);
        assert_eq!(f.build_events(), [], "{finished}");
    }
}

#[test]
fn lock_file_that_is_a_symbolic_link_is_refused() {
    assert_lock_file_refused("(?i)link", |f, path| {
        fs::write(f.path("target"), "precious").unwrap();
        symlink(f.path("target"), path).unwrap();
    });
}

#[test]
fn lock_file_that_is_a_dangling_symbolic_link_is_refused() {
    assert_lock_file_refused("(?i)link", |f, path| symlink(f.path("nowhere"), path).unwrap());
}

#[test]
fn lock_file_that_is_a_hard_link_is_refused_and_left_alone() {
    let f = Fixture::new();
    let path = f.lock_file("env:abc");
    drop(f.open_lock_file(&path));
    let target = f.path("target");
    fs::write(&target, "precious").unwrap();
    fs::remove_file(&path).unwrap();
    fs::hard_link(&target, &path).unwrap();

    let finished = run_contended(f.docker_build("env:abc"));

    finished.assert_code(125).assert_stderr(path.to_str().unwrap()).assert_stderr_matches("link");
    assert_eq!(fs::read_to_string(target).unwrap(), "precious");
    assert_eq!(f.build_events(), []);

    assert_lock_file_refused("(?i)link", |f, path| {
        fs::write(f.path("target"), "").unwrap();
        fs::hard_link(f.path("target"), path).unwrap();
    });
}

#[test]
fn lock_file_that_is_a_fifo_is_refused() {
    assert_lock_file_refused("(?i)regular|fifo|pipe", |_, path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    });
}

#[test]
fn lock_file_that_is_a_folder_is_refused() {
    assert_lock_file_refused("(?i)regular|directory|folder", |_, path| {
        fs::create_dir(path).unwrap();
    });
}

// The other subcommands.

#[test]
fn wrong_usage_of_a_subcommand_ends_with_2() {
    for args in [
        &["status", "--no-such-option"][..],
        &["status", "surplus"],
        &["path"],
        &["path", "Env:abc"],
        &["path", "env@sha256:0000000000000000000000000000000000000000000000000000000000000000"],
        &["path", "env:a", "env:b"],
        &["prune", "surplus"],
        &["completions"],
        &["completions", "no-such-shell"],
        &["status", "--store", "redis://host"],
        &["prune", "--store", "etcd://host/p?ttl=1s"],
        &["cache", "ls", "--store", "etcd://host:port"],
    ] {
        let f = Fixture::new();
        let finished = f.buildlock(args).run();
        finished.assert_code(2).assert_stdout("");
        assert!(!finished.stderr.is_empty(), "{finished}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    let f = Fixture::new();
    for option in ["--help", "-h"] {
        let finished = f.buildlock([option]).run();
        finished.assert_code(0);
        assert_eq!(finished.stderr, "");
        for word in ["--tag", "--timeout", "--build-timeout", "--on-failure", "COMMAND"] {
            assert!(finished.stdout_line().contains(word), "{word}\n{finished}");
        }
    }
    let version = format!("buildlock {}\n", env!("CARGO_PKG_VERSION"));
    f.buildlock(["--version"]).run().assert_code(0).assert_stdout(version);
}

#[test]
fn option_after_the_separator_belongs_to_the_build_command() {
    let f = Fixture::new();
    let args =
        ["-t", "env:abc", "--", "docker", "build", "--timeout", "soon", "-t", "env:abc", "."];

    f.buildlock(args).run().assert_code(0);

    assert_eq!(f.lines("args.log"), ["docker build --timeout soon -t env:abc ."]);
}

#[test]
fn inputs_that_cannot_be_known_are_refused_before_any_waiting() {
    fn build<'w>(words: &[&'w str]) -> Vec<&'w str> {
        [&["--if-changed", "--", "docker", "build", "-t", "env:abc"], words].concat()
    }
    assert_refused(&build(&["-"]), 125, &["stdin"]);
    assert_refused(&build(&["-f", "-", "."]), 125, &["stdin"]);
    assert_refused(&build(&["/missing"]), 125, &["context /missing is not a folder"]);
    assert_refused(&build(&["/dev/null"]), 125, &["not a folder"]);
    assert_refused(&build(&["-f", "/missing", "."]), 125, &["Dockerfile /missing does not exist"]);
    assert_refused(&build(&["-f", "/dev/null", "."]), 125, &["not a regular file"]);
    let own = build(&["--label", "buildlock.inputs=x", "."]);
    assert_refused(&own, 125, &["buildlock's own"]);
    let script = ["--if-changed", "-t", "env:abc", "--", "sh", "-c", "true"];
    assert_refused(&script, 125, &["--inputs PATH"]);
    let missing = ["--if-changed", "--inputs", "/missing", "-t", "env:abc", "--", "true"];
    assert_refused(&missing, 125, &["--inputs /missing"]);
    let alone = ["--inputs", "/", "-t", "env:abc", "--", "true"];
    assert_refused(&alone, 125, &["give both"]);
    let check = ["--if-changed", "--check", "true", "--inputs", "/", "-t", "env:abc", "--", "true"];
    assert_refused(&check, 125, &["must be local or registry"]);
}

#[test]
fn dockerfile_that_a_foreign_program_reads_is_refused_before_any_waiting() {
    let (f, _held) = contended();
    let run = |syntax: &str| {
        let text = format!("# syntax={syntax}\nFROM scratch\n");
        fs::write(f.path("work/Dockerfile"), text).unwrap();
        let words = ["--if-changed", "-w", "0s", "--", "docker", "build", "-t", "env:abc", "."];
        f.buildlock(words).run()
    };
    run("example.com/other:1").assert_code(125).assert_stderr("# syntax=");
    run("docker/dockerfile:1").assert_no_stderr("# syntax=");
}
