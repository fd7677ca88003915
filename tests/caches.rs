//! `--cache`: builds that write one cache run one at a time, or together once it is warm.

mod common;
#[path = "engine/fake.rs"]
mod fake;
#[path = "common/outside.rs"]
mod outside;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Fixture, Invocation};
use fake::{FakeEngine, found, missing, response, send};
use outside::{cpu_seconds, wait_for_waiters};

const WARM: &str = "--cache=cargo=Cargo.lock";

fn fixture() -> Fixture {
    let f = Fixture::new();
    fs::write(f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    f
}

/// `buildlock OPTIONS -- docker build` of a tag.
fn build<'f>(f: &'f Fixture, tag: &str, options: &[&str]) -> Invocation<'f> {
    f.buildlock(options).args(["--", "docker", "build", "-t", tag, "."])
}

fn cache_lock(f: &Fixture, id: &str) -> std::path::PathBuf {
    f.lock_dir().join("cache-locks").join(format!("{}.lock", common::sha256(id)))
}

fn turnstile(f: &Fixture, id: &str) -> std::path::PathBuf {
    f.lock_dir().join("cache-locks").join(format!("{}.turnstile.lock", common::sha256(id)))
}

/// How many builds run at this moment.
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
fn cold_cache_is_warmed_by_one_build_and_then_shared_by_all_who_waited() {
    let f = fixture();
    f.hold_builds();
    let tags: Vec<String> = (0..6).map(|n| format!("env:{n}")).collect();
    let builds: Vec<_> = tags.iter().map(|tag| build(&f, tag, &[WARM]).start()).collect();
    f.wait_for_builds(1);
    wait_for_waiters(&f, &turnstile(&f, "cargo"), tags.len() - 2);
    assert_eq!(running(&f), 1);
    f.let_builds_go(1);
    // All of them stand at the gate at once.
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
    // A branch that comes back finds it warm.
    fs::write(f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    build(&f, "env:one", &[WARM]).run().assert_code(0).assert_stderr("cache=cargo warm");
}

#[test]
fn build_without_the_cache_empties_it_and_so_is_alone() {
    let f = fixture();
    warm_up(&f);
    let emptying =
        f.buildlock([WARM]).args(["--", "docker", "build", "--no-cache", "-t", "env:a", "."]);
    emptying.run().assert_code(0).assert_stderr("alone (cache=cargo)");
}

#[test]
fn build_that_fails_warms_nothing() {
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
    // It had the cache for itself, and so it is warm.
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
    wait_for_waiters(&f, &cache_lock(&f, "cargo"), 1);
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
fn command_that_may_have_read_its_stdin_is_not_run_again() {
    let f = fixture();
    warm_up(&f);
    f.make_image("env:a");
    let script = "exit 7\n";
    let forced = [WARM, "--force", "-t", "env:a", "--", "sh"];
    f.buildlock(forced).stdin(script).run().assert_code(7);
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, script.as_bytes()).unwrap();
    drop(writer);
    let piped = f.buildlock(forced).into_command().stdin(reader).status().unwrap();
    assert_eq!(piped.code(), Some(7));
}

#[test]
fn what_was_ended_by_a_signal_or_a_limit_is_not_run_again() {
    let f = fixture();
    warm_up(&f);
    f.steer("STANDIN_KILL=KILL");
    build(&f, "env:a", &[WARM]).run().assert_signal(9);
    f.steer("");
    f.hold_builds();
    build(&f, "env:b", &[WARM, "--build-timeout=100ms"]).run().assert_code(124);
    assert_eq!(f.build_count("env:a"), 1);
    assert_eq!(f.build_count("env:b"), 1);
}

#[test]
fn failure_counts_where_the_caches_cannot_be_had_again_in_time() {
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
fn interrupt_while_the_caches_are_waited_for_again_ends_it() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let other = build(&f, "env:other", &[WARM]).start();
    f.wait_for_builds(2);
    let waiting = f.buildlock([WARM, "-t", "env:a", "--", "sh", "-c", "exit 7"]).start();
    waiting.wait_for_stderr("once more");
    wait_for_waiters(&f, &cache_lock(&f, "cargo"), 1);
    waiting.signal("TERM");
    waiting.wait().assert_signal(15);
    f.release_builds();
    other.wait().assert_code(0);
}

#[test]
fn who_needs_the_cache_alone_waits_for_nobody_who_comes_later() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let first = build(&f, "env:shared-1", &[WARM]).start();
    f.wait_for_builds(2);
    let alone = build(&f, "env:alone", &["--cache=cargo"]).start();
    wait_for_waiters(&f, &cache_lock(&f, "cargo"), 1);
    let later = build(&f, "env:shared-2", &[WARM]).start();
    wait_for_waiters(&f, &turnstile(&f, "cargo"), 1);
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
fn waiting_for_those_who_share_a_cache_costs_nothing() {
    let f = fixture();
    warm_up(&f);
    f.hold_builds();
    let sharing = build(&f, "env:shared", &[WARM]).start();
    f.wait_for_builds(2);
    let alone = build(&f, "env:alone", &["--cache=cargo"]).start();
    wait_for_waiters(&f, &cache_lock(&f, "cargo"), 1);
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
fn cache_that_is_held_is_said_to_be_and_given_up_in_time() {
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
fn killed_holder_leaves_a_cold_cache_that_the_next_one_gets() {
    let f = fixture();
    f.hold_builds();
    let holder = build(&f, "env:holder", &[WARM]).start();
    f.wait_for_builds(1);
    let next = build(&f, "env:next", &[WARM]).start();
    wait_for_waiters(&f, &cache_lock(&f, "cargo"), 1);
    holder.signal("KILL");
    f.wait_for_builds(2);
    f.release_builds();
    next.wait().assert_code(0).assert_stderr("cache=cargo cold");
}

#[test]
fn nested_call_does_not_wait_for_the_cache_that_its_outer_one_holds() {
    let f = fixture();
    for (outer, inner) in [("--cache=cargo", WARM), (WARM, "--cache=cargo"), (WARM, WARM)] {
        let inner = format!(
            "{} {inner} -w 20s --force -t env:inner -- docker build -t env:inner . && docker build -t env:outer .",
            outside::buildlock_path().display()
        );
        let options = [outer, "--force", "-t", "env:outer", "--", "sh", "-c", &inner];
        f.buildlock(options).run().assert_code(0);
    }
}

#[test]
fn what_is_wrong_with_a_cache_is_said_before_any_waiting() {
    let f = fixture();
    let _held = f.hold_lock(&f.lock_file("env:a"));
    let fifo = std::process::Command::new("mkfifo").arg(f.work_dir().join("fifo")).status();
    assert!(fifo.unwrap().success());
    for (caches, said) in [
        (&["--cache=a=none.lock"][..], "cannot read none.lock"),
        (&["--cache=a=."], ". is no file"),
        (&["--cache=a=fifo"], "fifo is no file"),
        (&["--cache=a", "--cache=a=Cargo.lock"], "--cache a is there twice"),
        (&["--cache="], "needs an id"),
        (&["--cache=a="], "a file's name is missing"),
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
fn whatever_stands_where_warmth_is_remembered_is_no_error() {
    let f = fixture();
    warm_up(&f);
    let memory = cache_lock(&f, "cargo").with_extension("json");
    for (n, text) in ["", "\n", "{", "[]", "{\"warm\":3}", "\u{0}\u{1}\n"].into_iter().enumerate() {
        fs::write(&memory, text).unwrap();
        let built = build(&f, &format!("env:{n}"), &[WARM]).run();
        built.assert_code(0).assert_stderr("cache=cargo cold");
    }
}

/// An engine with an image that is there after the first look, and these cache mounts.
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
    let f = fixture();
    // An engine is known by its address, so it is the same one each time, started anew.
    let with = |mounts: &'static str, tag: &str, options: &[&str], status: i32, said: &str| {
        let engine = engine(&f, "engine.sock", mounts);
        // The client is no script, so that the engine is asked itself.
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
    // Two, of which one may have been another build's: a failure will tell.
    with(BOTH, "there:5", &["--cache=both=Cargo.lock"], 0, "cache=both cold");
    with(MOUNT, "there:6", &["--cache=both=Cargo.lock"], 0, "cache=both warm");
}

#[test]
fn engine_that_is_slow_to_say_what_it_has_is_not_waited_for_beyond_the_limit() {
    const MOUNT: &str = r#"{"BuildCache":[{"ID":"m1","Type":"exec.cachemount","LastUsedAt":"2999-01-01T00:00:00Z"}]}"#;
    let f = fixture();
    let slow = Arc::new(AtomicBool::new(false));
    let is_slow = Arc::clone(&slow);
    let engine = FakeEngine::start(&f.path("engine.sock"), move |_, head, stream| {
        if head.contains("/images/") {
            send(stream, found());
        } else if is_slow.load(Ordering::SeqCst) {
            fake::stay_silent(stream);
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

/// A PATH in which docker is a program and no script.
fn plain_path(f: &Fixture) -> String {
    let folder = f.path("plain");
    if !folder.exists() {
        fs::create_dir(&folder).unwrap();
        fs::copy("/bin/true", folder.join("docker")).unwrap();
    }
    format!("{}:/usr/bin:/bin", folder.display())
}
