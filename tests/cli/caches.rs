//! `--cache`: builds that write one cache run one at a time, or together once the cache is warm.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::fake_engine::{FakeEngine, found, missing, response, send, stay_silent};
use crate::support::{
    BuildEvent, Fixture, Gate, Invocation, Running, buildlock_path, cpu_seconds, is_free, sha256,
};

const WARM: &str = "--cache=cargo=Cargo.lock";

fn fixture() -> Fixture {
    let f = Fixture::new();
    fs::write(f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    f
}

/// Prepares `buildlock OPTIONS -- docker build` of a tag.
fn build<'f>(f: &'f Fixture, tag: &str, options: &[&str]) -> Invocation<'f> {
    f.buildlock(options).args(["--", "docker", "build", "-t", tag, "."])
}

fn cache_lock(f: &Fixture, id: &str) -> std::path::PathBuf {
    f.lock_dir().join("cache-locks").join(format!("{}.lock", sha256(id)))
}

fn turnstile(f: &Fixture, id: &str) -> std::path::PathBuf {
    f.lock_dir().join("cache-locks").join(format!("{}.turnstile.lock", sha256(id)))
}

/// Returns how many builds run at this moment.
fn running(f: &Fixture) -> usize {
    let events = f.build_events();
    let starts = events.iter().filter(|event| event.is_start()).count();
    starts - (events.len() - starts)
}

fn warm_up(f: &Fixture) {
    let warmed = build(f, "env:first", &[WARM]).run();
    warmed.assert_code(0).assert_stderr("cache=cargo cold");
}

#[test]
fn builds_with_one_cache_run_one_at_a_time() {
    let f = fixture();
    f.hold_builds();
    let tags: Vec<String> = (0..8).map(|n| format!("env:{n}")).collect();
    let builds: Vec<_> =
        tags.iter().map(|tag| build(&f, tag, &["--cache=cargo"]).start()).collect();
    for n in 1..=tags.len() {
        f.wait_for_builds(n);
        assert_eq!(running(&f), 1);
        f.let_builds_go(1);
    }
    for build in builds {
        build.wait().assert_code(0).assert_stderr("alone (cache=cargo)");
    }
}

#[test]
fn builds_with_different_caches_do_not_wait_for_each_other() {
    let f = fixture();
    f.hold_builds();
    let one = build(&f, "env:one", &["--cache=cargo"]).start();
    let other = build(&f, "env:other", &["--cache=npm"]).start();
    f.wait_for_builds(2);
    f.release_builds();
    one.wait().assert_code(0);
    other.wait().assert_code(0);
}

#[test]
fn cold_cache_is_warmed_by_one_build_and_then_shared_by_all_waiters() {
    let f = fixture();
    f.hold_builds();
    let tags: Vec<String> = (0..6).map(|n| format!("env:{n}")).collect();
    let builds: Vec<_> = tags.iter().map(|tag| build(&f, tag, &[WARM]).start()).collect();
    f.wait_for_builds(1);
    f.wait_for_waiters(&turnstile(&f, "cargo"), tags.len() - 2);
    assert_eq!(running(&f), 1);
    f.let_builds_go(1);
    // All of them are at the gate at once.
    f.wait_for_builds(tags.len());
    assert_eq!(running(&f), tags.len() - 1);
    f.release_builds();
    let said: String =
        builds.into_iter().map(|build| build.wait().assert_code(0).stderr.clone()).collect();
    assert_eq!(said.matches("alone, until it is warm (cache=cargo cold)").count(), 1, "{said}");
    assert_eq!(said.matches("shared (cache=cargo warm)").count(), tags.len() - 1, "{said}");
}

#[test]
fn warm_cache_is_shared_at_once() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let builds = ["env:a", "env:b"].map(|tag| build(&f, tag, &[WARM]).start());
    f.wait_for_builds(3);
    f.release_builds();
    for build in builds {
        build.wait().assert_code(0).assert_stderr("shared (cache=cargo warm)");
    }
}

#[test]
fn other_files_or_another_engine_make_the_cache_cold_again() {
    let f = fixture();
    warm_up(&f);
    let other_engine =
        build(&f, "env:other", &[WARM]).env("DOCKER_HOST", "tcp://elsewhere:1").run();
    other_engine.assert_code(0).assert_stderr("cache=cargo cold");
    fs::write(f.work_dir().join("Cargo.lock"), "two\n").unwrap();
    build(&f, "env:two", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo cold");
    // A branch that comes back finds its cache warm.
    fs::write(f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    build(&f, "env:one", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo warm");
}

#[test]
fn another_engine_or_builder_makes_the_cache_cold_however_it_is_named() {
    let f = fixture();
    let folder = |name: &str, files: &[(&str, &str)]| {
        for (file, text) in files {
            let path = f.path(name).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        f.path(name).display().to_string()
    };
    let context = |name: &str, host: &str| {
        let meta = format!("contexts/meta/{}/meta.json", sha256("ci"));
        let host = format!(r#"{{"Endpoints":{{"docker":{{"Host":"{host}"}}}}}}"#);
        folder(name, &[("config.json", r#"{"currentContext":"ci"}"#), (&meta, &host)])
    };
    f.install_engine("nerdctl");
    f.install_engine("podman");
    let (one, other) = (context("one", "tcp://one:2375"), context("other", "tcp://other:2375"));
    let chosen = folder("chosen", &[("buildx/current", r#"{"Key":"","Name":"own"}"#)]);
    let buildx = folder("buildx", &[("current", r#"{"Key":"","Name":"another"}"#)]);
    let podman = folder("podman", &[("containers/podman-connections.json", "{}")]);
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("docker", &[]),
        ("docker", &[("DOCKER_HOST", "tcp://elsewhere:2375")]),
        ("docker", &[("DOCKER_CONFIG", &one)]),
        ("docker", &[("DOCKER_CONFIG", &other)]),
        ("docker", &[("DOCKER_CONFIG", &chosen)]),
        ("docker", &[("BUILDX_CONFIG", &buildx)]),
        ("docker", &[("BUILDX_BUILDER", "third")]),
        ("nerdctl", &[]),
        ("nerdctl", &[("CONTAINERD_ADDRESS", "/run/other.sock")]),
        ("nerdctl", &[("CONTAINERD_NAMESPACE", "ci")]),
        ("nerdctl", &[("BUILDKIT_HOST", "unix:///run/other.sock")]),
        ("podman", &[]),
        ("podman", &[("CONTAINER_HOST", "tcp://elsewhere:1")]),
        ("podman", &[("CONTAINER_CONNECTION", "ci")]),
        ("podman", &[("XDG_CONFIG_HOME", &podman)]),
    ];
    for round in ["cold", "warm"] {
        for (n, (program, variables)) in cases.iter().enumerate() {
            let tag = format!("env:{round}-{n}");
            let mut call = f.buildlock([WARM]).args(["--", program, "build", "-t", &tag, "."]);
            for (name, value) in *variables {
                call = call.env(name, value);
            }
            let built = call.run();
            built.assert_code(0).assert_stderr(&format!("cache=cargo {round}"));
        }
    }
}

#[test]
fn build_without_a_cache_empties_the_mount_and_so_runs_alone() {
    let f = fixture();
    warm_up(&f);
    let emptying =
        f.buildlock([WARM]).args(["--", "docker", "build", "--no-cache", "-t", "env:a", "."]);
    let said = "alone, because --no-cache empties it (cache=cargo)";
    emptying.run().assert_code(0).assert_stderr(said);
    build(&f, "env:b", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo warm");
    // The same for any other build command.
    f.install_script("build-all", "#!/bin/sh\nexec docker build -t \"$1\" .\n");
    let emptying = [WARM, "-t", "env:all", "--", "build-all", "env:all", "--no-cache"];
    f.buildlock(emptying).run().assert_code(0).assert_stderr(said);
    // A build that has emptied the cache and failed before it was full again.
    f.steer("STANDIN_BUILD_STATUS=3");
    let emptying =
        ["--", "docker", "build", "--no-cache-filter=deps", "-t", "env:c", "."].map(String::from);
    f.buildlock([WARM]).args(emptying).run().assert_code(3).assert_stderr(said);
    f.steer("");
    build(&f, "env:d", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo cold");
}

#[test]
fn second_run_makes_only_the_shared_caches_cold() {
    let f = fixture();
    fs::write(f.work_dir().join("other"), "other\n").unwrap();
    warm_up(&f);
    build(&f, "env:other", &["--cache=cargo=other"]).run().assert_code(0);
    build(&f, "env:npm", &["--cache=npm=other"]).run().assert_code(0).assert_stderr("cold");
    // The npm cache is cold for this file, so it was not shared.
    f.steer("STANDIN_BUILD_STATUS=3 STANDIN_FAIL_TIMES=1");
    fs::write(f.path("builds.log"), "").unwrap();
    let both = build(&f, "env:both", &[WARM, "--cache=npm=Cargo.lock"]).run();
    both.assert_code(0).assert_stderr("cache=cargo warm").assert_stderr("cache=npm cold");
    f.steer("");
    let known = |tag: &str, cache: &str, said: &str| {
        build(&f, tag, &[cache]).run().assert_code(0).assert_stderr(said);
    };
    known("env:1", "--cache=npm=other", "cache=npm warm");
    known("env:2", WARM, "cache=cargo warm");
    known("env:3", "--cache=cargo=other", "cache=cargo cold");
}

#[test]
fn failed_build_warms_nothing() {
    let f = fixture();
    f.steer("STANDIN_BUILD_STATUS=3");
    build(&f, "env:a", &[WARM]).run().assert_code(3);
    f.steer("STANDIN_NO_IMAGE=1");
    build(&f, "env:a", &[WARM]).run().assert_code(125);
    f.steer("");
    build(&f, "env:a", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo cold");
}

#[test]
fn build_that_fails_with_a_shared_cache_is_run_again_alone() {
    let f = fixture();
    warm_up(&f);
    f.steer("STANDIN_BUILD_STATUS=3 STANDIN_FAIL_TIMES=1");
    fs::write(f.path("builds.log"), "").unwrap();
    let built = build(&f, "env:a", &[WARM]).run();
    built.assert_code(0).assert_stderr("once more").assert_stderr("alone, to try again");
    assert_eq!(f.build_count("env:a"), 2);
    // The second run had the cache for itself, so the cache is warm.
    build(&f, "env:b", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo warm");
}

#[test]
fn second_run_waits_for_the_others_to_end() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let other = build(&f, "env:other", &[WARM]).start();
    f.wait_for_builds(2);
    let fails_once = "[ -e failed ] || { : >failed; exit 5; }; exec docker build -t env:a .";
    let options = [WARM, "-t", "env:a", "--", "sh", "-c", fails_once];
    let failing = f.buildlock(options).start();
    failing.wait_for_stderr("once more");
    f.wait_for_waiters(&cache_lock(&f, "cargo"), 1);
    assert_eq!(f.build_count("env:a"), 0);
    f.release_builds();
    other.wait().assert_code(0);
    failing.wait().assert_code(0);
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn build_that_fails_twice_ends_with_its_status_and_the_cache_stays_warm() {
    let f = fixture();
    warm_up(&f);
    f.steer("STANDIN_BUILD_STATUS=3");
    build(&f, "env:a", &[WARM]).run().assert_code(3);
    assert_eq!(f.build_count("env:a"), 2);
    f.steer("");
    build(&f, "env:a", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo warm");
}

#[test]
fn no_retry_lets_the_first_failure_count() {
    let f = fixture();
    warm_up(&f);
    f.steer("STANDIN_BUILD_STATUS=3");
    build(&f, "env:a", &[WARM, "--no-retry"]).run().assert_code(3);
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn build_command_that_may_have_read_its_stdin_is_not_run_again() {
    let f = fixture();
    warm_up(&f);
    f.make_image("env:a");
    let script = "exit 7\n";
    let forced = [WARM, "--force", "-t", "env:a", "--", "sh"];
    let said = "it may have read its stdin";
    f.buildlock(forced).stdin(script).run().assert_code(7).assert_stderr(said);
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, script.as_bytes()).unwrap();
    drop(writer);
    let piped = f.buildlock(forced).into_command().stdin(reader).status().unwrap();
    assert_eq!(piped.code(), Some(7));
}

#[test]
fn build_command_that_ignores_stdin_is_run_again_whatever_stdin_is() {
    let f = fixture();
    warm_up(&f);
    let all = [
        (&["."][..], 2),
        (&["-"], 1),
        (&["-f", "-", "."], 1),
        (&["-f-", "."], 1),
        (&["--file=/dev/stdin", "."], 1),
        (&["-f", "Dockerfile", "."], 2),
    ];
    for (n, (words, runs)) in all.into_iter().enumerate() {
        let tag = format!("env:{n}");
        f.steer("STANDIN_BUILD_STATUS=3");
        let call = f.buildlock([WARM]).args(["--", "docker", "build", "-t", &tag]).args(words);
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(call.into_command().stdin(reader).status().unwrap().code(), Some(3));
        assert_eq!(f.build_count(&tag), runs, "{words:?}");
    }
    // The same behind env.
    let behind_env = |tag: &str| {
        let words = ["env", "DOCKER_BUILDKIT=1", "docker", "build", "-t", tag, "."];
        f.buildlock([WARM, "--"]).args(words)
    };
    f.steer("");
    behind_env("env:warm").run().assert_code(0);
    f.steer("STANDIN_BUILD_STATUS=3");
    let (reader, _writer) = std::io::pipe().unwrap();
    let ended = behind_env("env:again").into_command().stdin(reader).status().unwrap();
    assert_eq!((ended.code(), f.build_count("env:again")), (Some(3), 2));
}

#[test]
fn build_that_a_signal_or_a_limit_ended_is_not_run_again() {
    let f = fixture();
    warm_up(&f);
    f.steer("STANDIN_KILL=KILL");
    build(&f, "env:a", &[WARM]).run().assert_signal(9);
    let shell = [WARM, "-t", "env:c", "--", "sh", "-c", "docker build -t env:c .; exit $?"];
    f.buildlock(shell).run().assert_code(128 + 9);
    assert_eq!(f.build_count("env:c"), 1);
    f.steer("");
    f.hold_builds();
    build(&f, "env:b", &[WARM, "--build-timeout=100ms"]).run().assert_code(124);
    assert_eq!(f.build_count("env:a"), 1);
    assert_eq!(f.build_count("env:b"), 1);
}

#[test]
fn failure_counts_if_the_caches_cannot_be_locked_again_in_time() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let other = build(&f, "env:other", &[WARM]).start();
    f.wait_for_builds(2);
    let options = [WARM, "--timeout=200ms", "-t", "env:a", "--", "sh", "-c", "exit 7"];
    let failed = f.buildlock(options).run();
    failed.assert_code(7).assert_stderr("gave up after");
    f.release_builds();
    other.wait().assert_code(0);
}

#[test]
fn interrupt_ends_the_second_wait_for_the_caches() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let other = build(&f, "env:other", &[WARM]).start();
    f.wait_for_builds(2);
    let waiting = f.buildlock([WARM, "-t", "env:a", "--", "sh", "-c", "exit 7"]).start();
    waiting.wait_for_stderr("once more");
    f.wait_for_waiters(&cache_lock(&f, "cargo"), 1);
    waiting.signal("TERM");
    waiting.wait().assert_signal(15);
    f.release_builds();
    other.wait().assert_code(0);
}

#[test]
fn caller_that_needs_the_cache_alone_does_not_wait_for_later_callers() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let first = build(&f, "env:shared-1", &[WARM]).start();
    f.wait_for_builds(2);
    let alone = build(&f, "env:alone", &["--cache=cargo"]).start();
    f.wait_for_waiters(&cache_lock(&f, "cargo"), 1);
    let later = build(&f, "env:shared-2", &[WARM]).start();
    f.wait_for_waiters(&turnstile(&f, "cargo"), 1);
    f.let_builds_go(1);
    f.wait_for_builds(3);
    assert_eq!(f.build_count("env:alone"), 1);
    assert_eq!(f.build_count("env:shared-2"), 0);
    f.release_builds();
    for build in [first, alone, later] {
        build.wait().assert_code(0);
    }
}

#[test]
fn waiting_for_holders_that_share_a_cache_uses_no_processor() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let sharing = build(&f, "env:shared", &[WARM]).start();
    f.wait_for_builds(2);
    let alone = build(&f, "env:alone", &["--cache=cargo"]).start();
    f.wait_for_waiters(&cache_lock(&f, "cargo"), 1);
    let before = cpu_seconds(alone.pid());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(cpu_seconds(alone.pid()) - before < 0.1);
    f.release_builds();
    sharing.wait().assert_code(0);
    alone.wait().assert_code(0);
}

#[test]
fn wait_for_a_held_cache_is_logged_and_ends_in_time() {
    let f = fixture();
    f.hold_builds();
    let holder = build(&f, "env:holder", &["--cache=cargo"]).start();
    f.wait_for_builds(1);
    for limit in ["0s", "200ms"] {
        let gave_up = build(&f, "env:other", &["--cache=cargo", "-w", limit]).run();
        gave_up.assert_code(124).assert_stderr("cache cargo: waiting for");
        gave_up.assert_stderr("docker build -t env:holder");
    }
    let status = f.buildlock(["status"]).run();
    assert!(String::from_utf8_lossy(&status.stdout).contains("cache cargo"), "{:?}", status.stdout);
    f.release_builds();
    holder.wait().assert_code(0);
}

#[test]
fn killed_holder_leaves_the_cache_cold_and_free() {
    let f = fixture();
    f.hold_builds();
    let holder = build(&f, "env:holder", &[WARM]).start();
    f.wait_for_builds(1);
    let next = build(&f, "env:next", &[WARM]).start();
    f.wait_for_waiters(&cache_lock(&f, "cargo"), 1);
    holder.signal("KILL");
    f.wait_for_builds(2);
    f.release_builds();
    next.wait().assert_code(0).assert_stderr("cache=cargo cold");
}

#[test]
fn nested_call_does_not_wait_for_the_cache_that_its_outer_one_holds() {
    const ALONE: &str = "alone (cache=cargo)";
    const COLD: &str = "alone, until it is warm (cache=cargo cold)";
    const SHARED: &str = "shared (cache=cargo warm)";
    let f = fixture();
    for (outer, inner, modes) in [
        ("--cache=cargo", WARM, [ALONE, COLD]),
        (WARM, "--cache=cargo", [SHARED, ALONE]),
        (WARM, WARM, [SHARED, SHARED]),
    ] {
        let inner = format!(
            "{} {inner} -w 20s --force -t env:inner -- docker build -t env:inner . && docker build -t env:outer .",
            buildlock_path().display()
        );
        let options = [outer, "--force", "-t", "env:outer", "--", "sh", "-c", &inner];
        let ended = f.buildlock(options).run();
        ended.assert_code(0).assert_no_stderr("waiting");
        let locked = |line: &str| Some(line.split_once("cache cargo: locked: ")?.1.to_owned());
        assert_eq!(ended.stderr.lines().filter_map(locked).collect::<Vec<_>>(), modes, "{ended}");
        let is_beside = modes == [SHARED, ALONE];
        assert_eq!(ended.stderr.contains("an outer call shares it"), is_beside, "{ended}");
    }
}

/// Builds `outer` through a shell that runs `script` first, with the cache shared.
fn outer_that_shares<'f>(f: &'f Fixture, script: &str) -> Running<'f> {
    let script = format!("{script}\nwait\ndocker build -t env:outer .");
    let options = [WARM, "-t", "env:outer", "--", "sh", "-c", &script];
    f.buildlock(options).env("BUILDLOCK", buildlock_path()).start()
}

#[test]
fn nested_calls_that_share_exclude_one_that_does_not() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let inner = |cache: &str, tag: &str| {
        format!("\"$BUILDLOCK\" {cache} -t {tag} -- docker build -t {tag} .")
    };
    let script = format!("{} & {} &", inner(WARM, "env:a"), inner("--cache=cargo", "env:b"));
    let outer = outer_that_shares(&f, &script);
    outer.wait_for_stderr("cache cargo: waiting for");
    f.wait_for_builds(2);
    assert_eq!(running(&f), 1, "{}", outer.stderr());
    f.release_builds();
    outer.wait().assert_code(0);
    let of_nested = |event: &&BuildEvent| ["env:a", "env:b"].contains(&event.tag.as_str());
    let events = f.build_events();
    let tags: Vec<_> = events.iter().filter(of_nested).map(|event| &event.tag).collect();
    assert_eq!((tags.len(), tags[0], tags[2]), (4, tags[1], tags[3]), "{events:?}");
}

#[test]
fn second_run_of_a_nested_call_waits_for_the_calls_beside_it() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let gate = Gate::new(&f, "nested.gate");
    let outer = outer_that_shares(
        &f,
        &format!(
            "\"$BUILDLOCK\" {WARM} -t env:long -- docker build -t env:long . & \
             read _ <\"$STANDIN/nested.gate\"; \
             \"$BUILDLOCK\" {WARM} -t env:a -- sh -c \
             '[ -e failed ] || {{ : >failed; exit 5; }}; exec docker build -t env:a .'"
        ),
    );
    f.wait_for_builds(2);
    gate.open();
    outer.wait_for_stderr("running it once more, with the cache alone");
    outer.wait_for_stderr("cache cargo: waiting for");
    assert_eq!(f.build_count("env:a"), 0);
    f.release_builds();
    outer.wait().assert_code(0).assert_stderr("alone, to try again");
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn nested_call_does_not_warm_a_cache_that_its_outer_one_shares() {
    let f = fixture();
    warm_up(&f);
    fs::write(f.work_dir().join("other"), "other\n").unwrap();
    let other = "--cache=cargo=other";
    let inner = format!(
        "{} {other} -t env:inner -- docker build -t env:inner . && docker build -t env:outer .",
        buildlock_path().display()
    );
    let outer = f.buildlock([WARM, "-t", "env:outer", "--", "sh", "-c", &inner]).run();
    outer.assert_code(0).assert_stderr("cache=cargo warm").assert_stderr("cache=cargo cold");
    build(&f, "env:a", &[other]).run().assert_code(0).assert_stderr("cache=cargo cold");
    build(&f, "env:b", &[other]).run().assert_code(0).assert_stderr("cache=cargo warm");
}

#[test]
fn nested_call_against_the_order_of_locks_warns_of_a_cache_that_its_outer_one_shares() {
    for other_has_ended in [false, true] {
        let f = fixture();
        warm_up(&f);
        f.hold_builds();
        let gate = Gate::new(&f, "nested.gate");
        let script = format!(
            "read _ <\"$STANDIN/nested.gate\"; {} --lock storage --cache cargo -t env:inner -- \
             docker build -t env:inner . && docker build -t env:outer .",
            buildlock_path().display()
        );
        let outer = f.buildlock([WARM, "-t", "env:outer", "--", "sh", "-c", &script]).start();
        outer.wait_for_stderr("building");
        // The record names the last holder.
        let other = build(&f, "env:other", &[WARM]).start();
        f.wait_for_builds(2);
        if other_has_ended {
            f.let_builds_go(1);
            other.wait().assert_code(0);
        }
        let held = f.hold_lock(&f.named_lock_file("storage"));
        gate.open();
        outer.wait_for_stderr("deadlock");
        let text = outer.stderr();
        let warning = text.lines().find(|line| line.contains("deadlock")).unwrap();
        for name in ["lock storage", "cache cargo"] {
            assert!(warning.contains(name), "{text}");
        }
        drop(held);
        // With another holder beside it, the outer call is still recognised as one.
        outer.wait_for_stderr("cache cargo: locked: alone (cache=cargo)");
        f.release_builds();
        outer.wait().assert_code(0);
    }
}

/// Returns what `buildlock status --json` shows, without the locks of tags.
fn held_caches(f: &Fixture) -> Vec<Value> {
    let status = f.buildlock(["status", "--json"]).run();
    let mut held: Vec<Value> = serde_json::from_slice(&status.stdout).unwrap();
    held.retain(|lock| lock["lock"].as_str().unwrap().contains("cache-locks"));
    held
}

#[test]
fn status_shows_every_holder_that_shares_a_cache_and_counts_each_waiter_once() {
    let f = fixture();
    let with_secret = |tag: &'static str| {
        f.buildlock([WARM, "--", "env", "TOKEN=hunter2", "docker", "build", "-t", tag, "."])
    };
    with_secret("env:first").run().assert_code(0);
    f.hold_builds();
    let a = with_secret("env:a").start();
    f.wait_for_builds(2);
    let b = with_secret("env:b").start();
    f.wait_for_builds(3);
    let alone = build(&f, "env:alone", &["--cache=cargo"]).start();
    f.wait_for_waiters(&cache_lock(&f, "cargo"), 1);
    let later = build(&f, "env:later", &[WARM]).start();
    f.wait_for_waiters(&turnstile(&f, "cargo"), 1);

    let held = held_caches(&f);
    let expected =
        [(b.pid(), "docker build -t env:b .", 2), (a.pid(), "docker build -t env:a .", 0)];
    assert_eq!(held.len(), expected.len(), "{held:?}");
    for (lock, (pid, command, waiters)) in held.iter().zip(expected) {
        assert_eq!((&lock["cache"], &lock["shared"]), (&"cargo".into(), &true.into()), "{lock}");
        assert_eq!((&lock["holder"]["pid"], &lock["waiters"]), (&pid.into(), &waiters.into()));
        let shown = lock["holder"]["command"].as_str().unwrap();
        assert!(shown.ends_with(command) && !shown.contains("hunter2"), "{lock}");
    }
    let table = f.buildlock(["status"]).run();
    let table = table.stdout_line();
    let row = |pid: u32| table.lines().find(|row| row.contains(&format!("pid {pid} (shared)")));
    let (a_row, b_row) = (row(a.pid()).unwrap(), row(b.pid()).unwrap());
    assert!(a_row.starts_with("cache cargo ") && b_row.starts_with("cache cargo "), "{table}");
    assert!(b_row.contains(" 2  ") && a_row.contains("?           "), "{table}");
    assert!(!table.contains("hunter2"), "{table}");
    // Of several holders, the message names the one with a record.
    let message = format!("pid {} (shared), building for", b.pid());
    assert!(alone.stderr().contains(&message), "{}", alone.stderr());

    // Its record goes with it.
    b.signal("TERM");
    b.wait().assert_signal(15);
    let held = held_caches(&f);
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!((&held[0]["cache"], &held[0]["waiters"]), (&"cargo".into(), &2.into()), "{held:?}");
    assert_eq!(held[0]["holder"]["pid"], a.pid(), "{held:?}");
    f.release_builds();
    for build in [a, alone, later] {
        build.wait().assert_code(0);
    }
    assert_eq!(held_caches(&f), Vec::<Value>::new());
}

/// Returns the messages about waiting for the cache, as JSON.
fn waits(stderr: &str) -> Vec<Value> {
    let lines = stderr.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == "waiting" && line["cache"] == "cargo").collect()
}

#[test]
fn wait_for_the_turnstile_and_then_for_the_cache_is_one_wait() {
    let f = fixture();
    let in_turnstile = f.hold_lock(&turnstile(&f, "cargo"));
    let holder = f.hold_lock(&cache_lock(&f, "cargo"));
    let waiting = build(&f, "env:a", &["--cache=cargo", "--log-format=json"]).start();
    waiting.wait_for_stderr("waiting for");
    drop(in_turnstile);
    // This message is due after five seconds.
    f.wait_for("a second message", || waits(&waiting.stderr()).len() > 1);
    let said = waits(&waiting.stderr());
    assert!(said.iter().all(|line| line["holder"]["pid"] == holder.pid()), "{said:?}");
    assert!((5.0..10.0).contains(&said[1]["waited_s"].as_f64().unwrap()), "{said:?}");
    drop(holder);
    waiting.wait().assert_code(0);
}

#[test]
fn caller_in_the_turnstile_is_named_while_the_cache_is_free_and_the_time_counts_on() {
    let f = fixture();
    let in_turnstile = f.hold_lock(&turnstile(&f, "cargo"));
    let waiting = build(&f, "env:a", &["--cache=cargo", "--log-format=json"]).start();
    waiting.wait_for_stderr("waiting for");
    let since = Instant::now();
    let first_pid = in_turnstile.pid();
    let holder = f.hold_lock(&cache_lock(&f, "cargo"));
    f.wait_for("a measurable time", || since.elapsed() > Duration::from_millis(300));
    let waited = since.elapsed().as_secs_f64();
    drop(in_turnstile);
    f.wait_for("a second message", || waits(&waiting.stderr()).len() > 1);
    let said = waits(&waiting.stderr());
    assert_eq!(said[0]["holder"]["pid"], first_pid, "{said:?}");
    assert_eq!(said[1]["holder"]["pid"], holder.pid(), "{said:?}");
    assert!(said[1]["waited_s"].as_f64().unwrap() >= waited, "{said:?}");
    drop(holder);
    waiting.wait().assert_code(0);
}

#[test]
fn faulty_cache_is_refused_before_any_waiting() {
    let f = fixture();
    let _held = f.hold_lock(&f.lock_file("env:a"));
    let fifo = std::process::Command::new("mkfifo").arg(f.work_dir().join("fifo")).status();
    assert!(fifo.unwrap().success());
    for (caches, said) in [
        (&["--cache=a=none.lock"][..], "cannot read none.lock"),
        (&["--cache=a=."], ". is not a file"),
        (&["--cache=a=fifo"], "fifo is not a file"),
        (&["--cache=a", "--cache=a=Cargo.lock"], "--cache a is given twice"),
        (&["--cache="], "needs an id"),
        (&["--cache=a="], "a file name is missing"),
        (&["--cache=a\nb"], "no control characters"),
    ] {
        let refused = build(&f, "env:a", caches).run();
        refused.assert_code(125).assert_stderr(said);
        assert!(!refused.stderr.contains("waiting"), "{}", refused.stderr);
    }
}

#[test]
fn known_caches_are_listed_and_forgotten() {
    let f = fixture();
    warm_up(&f);
    let listed = f.buildlock(["cache", "ls"]).run();
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("cargo ")), "{text}");
    let listed = f.buildlock(["cache", "ls", "--json"]).run();
    let json: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(json[0]["cache"], "cargo", "{json}");
    f.buildlock(["cache", "forget", "cargo"]).run().assert_code(0);
    let listed = f.buildlock(["cache", "ls", "--json"]).run();
    assert_eq!(String::from_utf8(listed.stdout).unwrap().trim(), "[]");
    build(&f, "env:a", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo cold");
}

#[test]
fn nothing_in_a_caches_note_reaches_a_reader_unescaped() {
    let f = fixture();
    let lock = cache_lock(&f, "cargo");
    drop(f.open_lock_file(&lock));
    // Control sequences of terminals, and an override of the direction of text.
    let bad = "a\u{9b}2J\u{202e}";
    let note = json!({"cache": bad, "forgotten": bad,
        "warm": [{"files": bad, "since": bad, "mounts": [bad]}]});
    fs::write(lock.with_extension("json"), format!("{note}\n")).unwrap();
    for words in [&["cache", "ls"][..], &["cache", "ls", "--json"]] {
        let listed = f.buildlock(words).run();
        let text = String::from_utf8(listed.stdout.clone()).unwrap();
        listed.assert_code(0);
        assert!(text.contains("u{9b}") && !text.contains(['\u{9b}', '\u{202e}']), "{text}");
    }
}

#[test]
fn notes_of_64_kib_each_are_listed_in_little_memory() {
    const ROOM: &str = "ulimit -v 300000 && exec \"$0\" cache ls";
    let f = fixture();
    warm_up(&f);
    for n in 0..6000 {
        let name = format!("locks/cache-locks/{n:064x}.json");
        let note = fs::File::create(f.path(name)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&note, b"\n", 65_534).unwrap();
    }
    let listed = f.program("sh").args(["-c", ROOM]).arg(buildlock_path()).run();
    listed.assert_code(0);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("cargo "), "{listed}");
}

#[test]
fn cache_that_is_forgotten_while_a_build_warms_it_stays_cold() {
    for was_warm in [false, true] {
        let f = fixture();
        if was_warm {
            warm_up(&f);
            fs::write(f.path("work/Cargo.lock"), "another\n").unwrap();
        }
        f.hold_builds();
        let built = f.build_events().len() / 2;
        let warming = build(&f, "env:b", &["-v", WARM]).start();
        f.wait_for_builds(built + 1);
        f.buildlock(["cache", "forget", "cargo"]).run().assert_code(0);
        f.release_builds();
        warming.wait().assert_code(0).assert_stderr("forgotten while the build ran");
        build(&f, "env:c", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo cold");
        // This cache was not forgotten.
        build(&f, "env:d", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo warm");
    }
}

#[test]
fn forgetting_an_unknown_cache_leaves_no_trace() {
    let f = fixture();
    for _ in 0..2 {
        let forgotten = f.buildlock(["cache", "forget", "crago"]).run();
        forgotten.assert_code(0).assert_stderr("nothing is remembered about cache crago");
        assert_eq!(f.lock_files(), Vec::<std::path::PathBuf>::new());
        // And once more in a folder that exists.
        drop(f.open_lock_file(&cache_lock(&f, "crago")));
        fs::remove_file(cache_lock(&f, "crago")).unwrap();
    }
    build(&f, "env:a", &["--cache=crago"]).run().assert_code(0);
    assert!(!cache_lock(&f, "crago").with_extension("json").exists());
    warm_up(&f);
    let forget = || f.buildlock(["cache", "forget", "cargo"]).run();
    forget().assert_code(0).assert_no_stderr("nothing is remembered");
    forget().assert_code(0).assert_stderr("nothing is remembered about cache cargo");
}

#[test]
fn prune_keeps_warm_caches_and_removes_forgotten_ones() {
    let f = fixture();
    warm_up(&f);
    f.buildlock(["prune"]).run().assert_code(0);
    let memory = cache_lock(&f, "cargo").with_extension("json");
    assert_eq!(f.lock_files(), std::slice::from_ref(&memory));
    build(&f, "env:a", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo warm");
    f.buildlock(["cache", "forget", "cargo"]).run().assert_code(0);
    // Another process is writing it.
    let writing = f.hold_lock(&memory);
    f.buildlock(["prune"]).run().assert_code(0);
    assert_eq!(f.lock_files(), std::slice::from_ref(&memory));
    drop(writing);
    f.buildlock(["prune"]).run().assert_code(0);
    assert_eq!(f.lock_files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn locked_memory_of_a_cache_delays_no_build() {
    let f = fixture();
    let memory = cache_lock(&f, "cargo").with_extension("json");
    let writing = f.hold_lock(&memory);
    build(&f, "env:a", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo cold");
    drop(writing);
    build(&f, "env:b", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo cold");
    build(&f, "env:c", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo warm");
}

#[test]
fn turnstile_that_is_not_a_lock_file_is_refused_before_any_waiting() {
    let f = fixture();
    let held = f.hold_lock(&f.lock_file("env:a"));
    drop(f.open_lock_file(&cache_lock(&f, "cargo")));
    fs::create_dir(turnstile(&f, "cargo")).unwrap();
    let refused = build(&f, "env:a", &[WARM]).run();
    refused.assert_code(125).assert_stderr("turnstile.lock").assert_stderr("it is a folder");
    refused.assert_no_stderr("waiting");
    drop(held);
}

#[test]
fn memory_that_is_not_a_file_causes_a_warning_and_no_hang() {
    let f = fixture();
    let lock = cache_lock(&f, "cargo");
    drop(f.open_lock_file(&lock));
    let memory = lock.with_extension("json");
    let make_fifo = || drop(Gate::new(&f, memory.to_str().unwrap()));
    let make_folder = || fs::create_dir(&memory).unwrap();
    let kinds: [(&str, &dyn Fn()); 2] = [("a folder", &make_folder), ("a FIFO", &make_fifo)];
    for (kind, make) in kinds {
        make();
        let built = build(&f, "env:a", &[WARM, "--force"]).run();
        built.assert_code(0).assert_stderr("cache=cargo cold");
        built.assert_stderr("cache cargo: it cannot be remembered").assert_stderr(kind);
        f.buildlock(["cache", "ls"]).run().assert_code(0);
        f.buildlock(["prune"]).run().assert_code(0);
        assert!(memory.exists());
        fs::remove_dir(&memory).or_else(|_| fs::remove_file(&memory)).unwrap();
    }
}

#[test]
fn anything_in_the_place_of_a_caches_memory_is_harmless() {
    let f = fixture();
    warm_up(&f);
    let memory = cache_lock(&f, "cargo").with_extension("json");
    for (n, text) in ["", "\n", "{", "[]", "{\"warm\":3}", "\u{0}\u{1}\n"].into_iter().enumerate() {
        fs::write(&memory, text).unwrap();
        let built = build(&f, &format!("env:{n}"), &[WARM]).run();
        built.assert_code(0).assert_stderr("cache=cargo cold");
    }
}

/// Starts an engine whose image is present after the first look, with these cache mounts.
fn engine(f: &Fixture, name: &str, mounts: &'static str) -> FakeEngine {
    FakeEngine::start(&f.path(name), move |_, head, stream| {
        let tag = head.split("/images/").nth(1).and_then(|rest| rest.split("/json").next());
        let body = match tag {
            Some(_) if head.contains("there") => found(),
            Some(tag) => missing(tag),
            None => response("200 OK", "application/json", mounts),
        };
        send(stream, body);
    })
}

#[test]
fn engine_that_has_lost_the_mount_makes_the_cache_cold() {
    const MOUNT: &str = r#"{"BuildCache":[{"ID":"m1","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00.5Z"}]}"#;
    const OTHER: &str = r#"{"BuildCache":[{"ID":"m2","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00Z"}]}"#;
    const BOTH: &str = r#"{"BuildCache":[
        {"ID":"m1","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00Z"},
        {"ID":"m2","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00Z"}]}"#;
    const OLD: &str = r#"{"BuildCache":[{"ID":"m4","Type":"exec.cachemount","LastUsedAt":"2001-01-01T00:00:00Z"}]}"#;
    const ZONED: &str = r#"{"BuildCache":[{"ID":"m3","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00+02:00"}]}"#;
    let f = fixture();
    // An engine is known by its address, so each one that starts here counts as the same.
    let with = |mounts: &'static str, tag: &str, options: &[&str], status: i32, said: &str| {
        let engine = engine(&f, "engine.sock", mounts);
        // The client is a binary, so buildlock asks the engine itself.
        let options =
            [&["--force", "-t", tag], options, &["--", "sh", "-c", "exit $STATUS"]].concat();
        let call = f.buildlock(options).env("DOCKER_HOST", engine.endpoint());
        let status_text = status.to_string();
        let call = call.env("STATUS", &status_text).env("PATH", plain_path(&f));
        let ended = call.run();
        ended.assert_code(status).assert_stderr(said);
        drop(engine);
        fs::remove_file(f.path("engine.sock")).unwrap();
    };
    with(MOUNT, "there:1", &[WARM], 0, "cache=cargo cold");
    with(MOUNT, "there:2", &[WARM], 0, "cache=cargo warm");
    with(MOUNT, "there:3", &[WARM], 9, "once more");
    with(OTHER, "there:4", &[WARM], 0, "cache=cargo cold");
    // One of the two mounts may belong to another build.
    with(BOTH, "there:5", &["--cache=both=Cargo.lock"], 0, "cache=both cold");
    with(BOTH, "there:6", &["--cache=both=Cargo.lock"], 0, "cache=both warm");
    let lost = "alone, until it is warm (cache=both cold: the engine has lost its mounts)";
    with(MOUNT, "there:6", &["--cache=both=Cargo.lock"], 0, lost);
    // A build whose steps were all in the layer cache used no mount, and has warmed none.
    with(MOUNT, "there:9", &["--cache=kept=Cargo.lock"], 0, "cache=kept cold");
    with(OLD, "there:10", &["--cache=kept=Cargo.lock"], 0, "cache=kept cold");
    with(OLD, "there:11", &["--cache=kept=Cargo.lock"], 0, "cache=kept cold");
    // The daemon may have another time zone.
    with(ZONED, "there:7", &["--cache=zoned=Cargo.lock"], 0, "cache=zoned cold");
    with(MOUNT, "there:8", &["--cache=zoned=Cargo.lock"], 0, "cache=zoned cold");
}

#[test]
fn engine_that_is_already_counting_is_asked_again() {
    const BUSY: &str = r#"{"message":"a disk usage operation is already running"}"#;
    const MOUNT: &str = r#"{"BuildCache":[{"ID":"m1","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00Z"}]}"#;
    // Engines up to 20.10 describe an empty list like this.
    const NONE: &str = r#"{"BuildCache":null}"#;
    let f = fixture();
    let counted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&counted);
    let engine = FakeEngine::start(&f.path("engine.sock"), move |_, head, stream| {
        if head.contains("/images/") {
            return send(stream, found());
        }
        if !head.contains("/system/df") {
            return send(stream, response("200 OK", "application/json", ""));
        }
        let (status, body) = match count.fetch_add(1, Ordering::SeqCst) {
            0 | 2 => ("500 Internal Server Error", BUSY),
            1 => ("200 OK", MOUNT),
            _ => ("200 OK", NONE),
        };
        send(stream, response(status, "application/json", body));
    });
    for _ in ["to note what was used", "to see that it is gone"] {
        let call = f.buildlock([WARM, "--force", "-t", "there:1", "--", "true"]);
        let call = call.env("DOCKER_HOST", engine.endpoint()).env("PATH", plain_path(&f));
        call.run().assert_code(0).assert_stderr("cache=cargo cold");
    }
    assert_eq!(counted.load(Ordering::SeqCst), 5);
}

#[test]
fn engine_is_asked_again_after_a_wait_for_the_cache() {
    const MOUNT: &str = r#"{"BuildCache":[{"ID":"m1","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00Z"}]}"#;
    const NONE: &str = r#"{"BuildCache":[]}"#;
    let f = fixture();
    let pruned = Arc::new(AtomicBool::new(false));
    let is_pruned = Arc::clone(&pruned);
    let engine = FakeEngine::start(&f.path("engine.sock"), move |_, head, stream| {
        let body = if is_pruned.load(Ordering::SeqCst) { NONE } else { MOUNT };
        let answer = response("200 OK", "application/json", body);
        send(stream, if head.contains("/images/") { found() } else { answer });
    });
    let call = |options: &[&str]| {
        let options = [options, &["--force", "-t", "there:1", "--", "true"]].concat();
        f.buildlock(options).env("DOCKER_HOST", engine.endpoint()).env("PATH", plain_path(&f))
    };
    call(&[WARM]).run().assert_code(0).assert_stderr("cache=cargo cold");
    let held = f.hold_lock(&cache_lock(&f, "cargo"));
    let start = Instant::now();
    let waiting = call(&[WARM]).start();
    f.wait_for_waiters(&cache_lock(&f, "cargo"), 1);
    pruned.store(true, Ordering::SeqCst);
    // The engine's last answer still counts.
    f.wait_for("a second", || start.elapsed() > Duration::from_millis(1500));
    drop(held);
    waiting.wait().assert_code(0).assert_stderr("the engine has lost its mounts");
}

/// Between two steps of a build, nothing protects a cache mount. What the first step filled is gone,
/// and the second one makes the mount again.
#[test]
fn cache_that_was_pruned_during_the_build_is_not_warm() {
    const MOUNT: &str = r#"{"BuildCache":[{"ID":"m1","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00Z"}]}"#;
    const PRUNE: &str =
        r#"{"Type":"builder","Action":"prune","Actor":{"Attributes":{"reclaimed":"4096"}}}"#;
    for (event, is_warm) in [(PRUNE, false), ("", true)] {
        let f = fixture();
        let engine = FakeEngine::start(&f.path("engine.sock"), move |_, head, stream| {
            if head.contains("/images/") {
                return send(stream, found());
            }
            let body = if head.contains("GET /events?since=") { event } else { MOUNT };
            send(stream, response("200 OK", "application/json", body));
        });
        let call = f.buildlock([WARM, "--force", "-t", "there:1", "--", "true"]);
        let call = call.env("DOCKER_HOST", engine.endpoint()).env("PATH", plain_path(&f));
        let done = call.run();
        done.assert_code(0).assert_stderr("cache=cargo cold");
        let listed = f.buildlock(["cache", "ls"]).run();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert_eq!(listed.contains("cargo"), is_warm, "{event}: {listed}\n{done}");
        assert_eq!(done.stderr.contains("pruned while the build ran"), !is_warm, "{done}");
    }
}

#[test]
fn only_callers_that_want_the_cache_wait_while_the_engine_counts() {
    let f = fixture();
    let engine = FakeEngine::start(&f.path("engine.sock"), move |_, head, stream| {
        if head.contains("/images/") { send(stream, found()) } else { stay_silent(stream) }
    });
    let options = [WARM, "--lock=rig", "--force", "-t", "there:1", "--", "true"];
    let call = f.buildlock(options).env("DOCKER_HOST", engine.endpoint());
    let call = call.env("PATH", plain_path(&f)).start();
    f.wait_for("the engine is asked for its mounts", || {
        engine.requests().iter().any(|line| line.contains("/system/df"))
    });
    assert!(is_free(&f.lock_file("there:1")));
    assert!(!is_free(&cache_lock(&f, "cargo")));
    let start = Instant::now();
    call.signal("TERM");
    call.wait().assert_signal(15);
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    let listed = f.buildlock(["cache", "ls"]).run();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("cargo"), "{:?}", listed.stdout);
}

#[test]
fn slow_engine_is_not_waited_for_beyond_the_limit() {
    const MOUNT: &str = r#"{"BuildCache":[{"ID":"m1","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00Z"}]}"#;
    let f = fixture();
    let slow = Arc::new(AtomicBool::new(false));
    let is_slow = Arc::clone(&slow);
    let engine = FakeEngine::start(&f.path("engine.sock"), move |_, head, stream| {
        if head.contains("/images/") {
            send(stream, found());
        } else if is_slow.load(Ordering::SeqCst) {
            stay_silent(stream);
        } else {
            send(stream, response("200 OK", "application/json", MOUNT));
        }
    });
    let call = |tag: &str, limit: &str| {
        let options = [WARM, "-w", limit, "--force", "-t", tag, "--", "true"];
        let call = f.buildlock(options).env("DOCKER_HOST", engine.endpoint());
        call.env("PATH", plain_path(&f)).run()
    };
    call("there:1", "1h").assert_code(0).assert_stderr("cache=cargo cold");
    slow.store(true, Ordering::SeqCst);
    for limit in ["0s", "300ms"] {
        let built = call("there:2", limit);
        built.assert_code(0).assert_stderr("cache=cargo warm");
        assert!(built.elapsed < Duration::from_secs(5), "{:?}", built.elapsed);
    }
}

#[test]
fn engine_is_not_asked_for_the_caches_of_another_builder() {
    const NONE: &str = r#"{"BuildCache":[]}"#;
    let f = fixture();
    let engine = engine(&f, "engine.sock", NONE);
    for said in ["cache=cargo cold", "cache=cargo warm"] {
        let call = f.buildlock([WARM, "--force", "-t", "there:1", "--", "true"]);
        let call = call.env("DOCKER_HOST", engine.endpoint()).env("BUILDX_BUILDER", "other");
        call.env("PATH", plain_path(&f)).run().assert_code(0).assert_stderr(said);
    }
    let asked = engine.requests();
    assert!(
        !asked.is_empty() && asked.iter().all(|line| !line.contains("/system/df")),
        "{asked:?}"
    );
}

/// Returns a PATH in which docker is a binary rather than a script.
fn plain_path(f: &Fixture) -> String {
    let folder = f.path("plain");
    if !folder.exists() {
        fs::create_dir(&folder).unwrap();
        fs::copy("/bin/true", folder.join("docker")).unwrap();
    }
    format!("{}:/usr/bin:/bin", folder.display())
}
