//! `--lock` and `--share`: locks with names, with an image and without.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Fixture, Gate, Invocation, Running, buildlock_path, is_free, sha256};

fn turnstile(f: &Fixture, name: &str) -> PathBuf {
    f.lock_dir().join("named-locks").join(format!("{}.turnstile.lock", sha256(name)))
}

/// Prepares `buildlock OPTION -- sh -c SCRIPT`.
fn under<'f>(f: &'f Fixture, option: &str, script: &str) -> Invocation<'f> {
    f.buildlock([option, "--", "sh", "-c", script])
}

/// Starts a call that notes its name in `started` and waits at a gate of this name.
fn started<'f>(f: &'f Fixture, option: &str, name: &str) -> (Running<'f>, Gate) {
    let gate = Gate::new(f, name);
    let script = format!("echo {name} >>\"$STANDIN/started\"; read _ <\"$STANDIN/{name}\"");
    (under(f, option, &script).start(), gate)
}

fn has_started(f: &Fixture, name: &str) -> bool {
    f.lines("started").iter().any(|line| line == name)
}

fn wait_for_start(f: &Fixture, name: &str) {
    f.wait_for(&format!("the start of {name}"), || has_started(f, name));
}

fn with_buildlock_in_path() -> Fixture {
    let f = Fixture::new();
    std::os::unix::fs::symlink(buildlock_path(), f.path("bin/buildlock")).unwrap();
    f
}

#[test]
fn command_without_an_image_runs_under_its_lock_and_its_status_counts() {
    let f = Fixture::new();
    for status in [0, 7] {
        for option in ["--lock=deploy", "--share=deploy"] {
            under(&f, option, &format!("exit {status}")).run().assert_code(status);
        }
    }
    assert_eq!(f.looks(), Vec::<String>::new());
    let done = under(&f, "--lock=deploy", "echo out; flock -n \"$LOCK\" true || exit 3");
    let done = done.env("LOCK", f.named_lock_file("deploy")).run();
    done.assert_code(3).assert_stdout("out\n").assert_stderr("lock deploy: running: sh -c");
    assert!(is_free(&f.named_lock_file("deploy")));
    under(&f, "--lock=deploy", "kill -TERM $$").run().assert_signal(15);
}

#[test]
fn command_without_an_image_needs_no_engine() {
    let f = Fixture::new();
    std::fs::remove_file(f.path("bin/docker")).unwrap();
    let call = || under(&f, "--lock=deploy", "exit 0");
    call().env("DOCKER_CONTEXT", "no-such-context").run().assert_code(0);
    call()
        .env("BUILDLOCK_IF_CHANGED", "true")
        .env("BUILDLOCK_CHECK", "exit 9")
        .run()
        .assert_code(0);
}

#[test]
fn command_without_an_image_may_do_anything_but_a_known_build_needs_its_tag() {
    let f = Fixture::new();
    for words in [["docker", "run", "env:abc"], ["docker", "system", "prune"]] {
        let done = f.buildlock(["--share", "gc", "--"]).args(words).run();
        done.assert_code(1).assert_stderr("is not a command of the stand-in");
    }
    for words in [["docker", "build", "."], ["docker", "compose", "build"]] {
        let done = f.buildlock(["--lock", "gc", "--"]).args(words).run();
        done.assert_code(125).assert_stderr("buildlock -t TAG");
    }
    f.buildlock(["--", "make", "deploy"]).run().assert_code(125).assert_stderr("--lock NAME");
    let script = "docker build -t env:abc .";
    let done = under(&f, "--lock=gc", script).run();
    done.assert_code(0).assert_stderr("this call has no tag").assert_stderr("buildlock -t env:abc");
    let inputs = f.buildlock(["--lock", "gc", "--inputs", ".", "--", "true"]).run();
    inputs.assert_code(125).assert_stderr("this call has no image");
}

#[test]
fn name_that_is_both_locked_and_shared_is_refused() {
    let f = Fixture::new();
    let done = f.buildlock(["--lock", "gc", "--share", "gc", "--", "true"]).run();
    done.assert_code(125).assert_stderr("--lock gc and --share gc");
}

#[test]
fn callers_that_share_run_side_by_side_and_one_that_locks_waits_for_them() {
    let f = Fixture::new();
    let (first, first_gate) = started(&f, "--share=gc", "first");
    let (second, second_gate) = started(&f, "--share=gc", "second");
    wait_for_start(&f, "first");
    wait_for_start(&f, "second");
    let prune = under(&f, "--lock=gc", "echo prune >>\"$STANDIN/started\"").start();
    f.wait_for_waiters(&f.named_lock_file("gc"), 1);
    prune.wait_for_stderr("(shared), running for");
    first_gate.open();
    first.wait().assert_code(0).assert_stderr("lock gc: locked, shared");
    assert!(!has_started(&f, "prune"));
    second_gate.open();
    second.wait().assert_code(0);
    prune.wait().assert_code(0);
    assert!(has_started(&f, "prune"));
}

#[test]
fn caller_that_locks_does_not_wait_for_later_callers_that_share() {
    let f = Fixture::new();
    let (first, first_gate) = started(&f, "--share=gc", "first");
    wait_for_start(&f, "first");
    let (prune, prune_gate) = started(&f, "--lock=gc", "prune");
    f.wait_for_waiters(&f.named_lock_file("gc"), 1);
    let (later, later_gate) = started(&f, "--share=gc", "later");
    f.wait_for_waiters(&turnstile(&f, "gc"), 1);
    first_gate.open();
    first.wait().assert_code(0);
    wait_for_start(&f, "prune");
    assert!(!has_started(&f, "later"));
    prune_gate.open();
    prune.wait().assert_code(0);
    wait_for_start(&f, "later");
    later_gate.open();
    later.wait().assert_code(0);
}

#[test]
fn limit_on_waiting_counts_for_shared_locks_in_both_directions() {
    let f = Fixture::new();
    let waits = |option: &str, held: &str, holders_name: &str| {
        let (holder, gate) = started(&f, held, holders_name);
        wait_for_start(&f, holders_name);
        let done = f.buildlock(["-w", "200ms", "-E", "75", option, "--", "true"]).run();
        done.assert_code(75).assert_stderr("gave up after");
        f.buildlock(["-w", "0s", option, "--", "true"]).run().assert_code(124);
        gate.open();
        holder.wait().assert_code(0);
    };
    waits("--lock=gc", "--share=gc", "one");
    waits("--share=gc", "--lock=gc", "two");
    waits("--lock=gc", "--lock=gc", "three");
}

#[test]
fn status_shows_who_shares_a_lock_and_who_waits_for_it() {
    let f = Fixture::new();
    let (first, first_gate) = started(&f, "--share=gc", "first");
    let (second, second_gate) = started(&f, "--share=gc", "second");
    wait_for_start(&f, "first");
    wait_for_start(&f, "second");
    let prune = f.buildlock(["--lock=gc", "--", "true"]).start();
    f.wait_for_waiters(&f.named_lock_file("gc"), 1);
    let later = f.buildlock(["--share=gc", "--", "true"]).start();
    f.wait_for_waiters(&turnstile(&f, "gc"), 1);
    let status = f.buildlock(["status", "--json"]).run();
    let locks: Vec<Value> = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(locks.len(), 2, "{locks:?}");
    assert!(locks.iter().all(|it| it["name"] == "gc" && it["shared"] == true), "{locks:?}");
    let waiters: u64 = locks.iter().map(|it| it["waiters"].as_u64().unwrap()).sum();
    assert_eq!(waiters, 2, "{locks:?}");
    first_gate.open();
    second_gate.open();
    for call in [first, second, prune, later] {
        call.wait().assert_code(0);
    }
}

#[test]
fn nested_call_may_share_what_an_outer_one_shares_or_has_alone() {
    let f = with_buildlock_in_path();
    for outer in ["--share=gc", "--lock=gc"] {
        for script in [
            "buildlock -w 0s --share gc -- true",
            "buildlock -w 0s --share gc -- buildlock -w 0s --share gc -- true",
        ] {
            under(&f, outer, script).run().assert_code(0).assert_no_stderr("waiting");
        }
    }
    under(&f, "--lock=gc", "buildlock -w 0s --lock gc -- true").run().assert_code(0);
}

#[test]
fn nested_call_cannot_have_alone_what_an_outer_one_shares() {
    let f = with_buildlock_in_path();
    for outer in ["", "buildlock --lock gc -- "] {
        let script = format!("{outer}buildlock --share gc -- buildlock --lock gc -- true");
        let done = f.program("sh").args(["-c", &script]).run();
        done.assert_code(125).assert_stderr("an outer call shares it");
    }
}

#[test]
fn image_is_built_while_a_named_lock_is_shared() {
    let f = Fixture::new();
    f.hold_builds();
    let tags = ["env:a", "env:b"];
    let build = |tag| f.buildlock(["--share=gc", "--", "docker", "build", "-t", tag, "."]).start();
    let builds = tags.map(build);
    f.wait_for_builds(2);
    let prune = f.buildlock(["--lock=gc", "--", "true"]).start();
    f.wait_for_waiters(&f.named_lock_file("gc"), 1);
    f.release_builds();
    for call in builds {
        call.wait().assert_code(0);
    }
    prune.wait().assert_code(0);
    // Nothing to do takes no lock at all.
    let (held, gate) = started(&f, "--lock=gc", "held");
    wait_for_start(&f, "held");
    build("env:a").wait().assert_code(0).assert_stderr("present");
    gate.open();
    held.wait().assert_code(0);
}
