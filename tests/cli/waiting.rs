//! How long buildlock waits, and what it does when the engine fails meanwhile.

use std::time::{Duration, Instant};

use crate::support::{Finished, Fixture, cpu_seconds, is_alive};

/// How late a wait may end here, where many tests share a machine.
const SLACK: Duration = Duration::from_secs(3);

const BUILD: [&str; 6] = ["--", "docker", "build", "-t", "env:abc", "."];

fn run_against_held_lock(f: &Fixture, args: &[&str]) -> Finished {
    let _held = f.hold_lock(&f.lock_file("env:abc"));
    let finished = f.buildlock(args.iter().chain(&BUILD)).run();
    assert_eq!(f.build_count("env:abc"), 0, "{}", f.scene());
    finished
}

#[test]
fn wait_ends_at_its_time_limit() {
    for (limit, milliseconds) in [("500ms", 500), ("1", 1000), ("1s 200ms", 1200)] {
        let f = Fixture::new();

        let finished = run_against_held_lock(&f, &["--timeout", limit]);

        finished.assert_code(124).assert_stderr("env:abc");
        let limit = Duration::from_millis(milliseconds);
        assert!(finished.elapsed >= limit, "after {:?}: {finished}", finished.elapsed);
        assert!(finished.elapsed < limit + SLACK, "after {:?}: {finished}", finished.elapsed);
    }
}

#[test]
fn limit_of_zero_does_not_wait() {
    for limit in ["0s", "0", "0ms"] {
        let f = Fixture::new();

        let finished = run_against_held_lock(&f, &["-w", limit]);

        finished.assert_code(124).assert_stderr("env:abc");
        assert!(finished.elapsed < SLACK, "after {:?}: {finished}", finished.elapsed);
    }
}

#[test]
fn limit_of_zero_builds_when_the_lock_is_free() {
    let f = Fixture::new();

    f.buildlock(["-w", "0s"].iter().chain(&BUILD)).run().assert_code(0);

    assert_eq!(f.build_count("env:abc"), 1);
}

#[test]
fn wait_without_a_limit_ends_with_the_lock() {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));
    let waiter = f.buildlock(["--timeout", "none"].iter().chain(&BUILD)).start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    drop(held);

    waiter.wait().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 1);
}

#[test]
fn status_after_a_passed_limit_can_be_chosen() {
    for args in [["-E", "75", "-w", "100ms"], ["--conflict-exit-code", "75", "-w", "0s"]] {
        run_against_held_lock(&Fixture::new(), &args).assert_code(75);
    }
}

#[test]
fn message_of_a_passed_limit_names_the_option_that_raises_it() {
    let finished = run_against_held_lock(&Fixture::new(), &["-w", "100ms"]);

    finished.assert_code(124).assert_stderr_matches("--timeout|BUILDLOCK_TIMEOUT");
}

#[test]
fn all_locks_together_have_one_limit() {
    let f = Fixture::new();
    let first = f.hold_lock(&f.lock_file("a:1"));
    let _second = f.hold_lock(&f.lock_file("b:1"));
    let start = Instant::now();
    let waiter = f.buildlock(["-w", "3s", "--", "docker", "build", "-ta:1", "-tb:1", "."]).start();
    f.wait_for_waiters(&f.lock_file("a:1"), 1);

    // The test is about time: most of the limit is spent on the first lock.
    std::thread::sleep(Duration::from_secs(2).saturating_sub(start.elapsed()));
    drop(first);
    f.wait_for_waiters(&f.lock_file("b:1"), 1);

    let finished = waiter.wait();
    finished.assert_code(124).assert_stderr("b:1");
    // With a limit for each lock, the call would end after 5 s.
    assert!(finished.elapsed < Duration::from_millis(4800), "{:?}: {finished}", finished.elapsed);
    assert_eq!(f.build_events(), []);
}

#[test]
fn named_lock_counts_in_the_limit() {
    let f = Fixture::new();
    let _held = f.hold_lock(&f.named_lock_file("disk"));

    let finished = f.buildlock(["-w", "200ms", "--lock", "disk"].iter().chain(&BUILD)).run();

    finished.assert_code(124).assert_stderr("disk");
    assert_eq!(f.build_count("env:abc"), 0);
}

#[test]
fn limit_of_the_wait_does_not_end_a_build() {
    let f = Fixture::new();

    let build = f.buildlock(["-w", "100ms"].iter().chain(&BUILD)).env("STANDIN_SLEEP", "0.5");

    build.run().assert_code(0);
}

#[test]
fn lock_is_not_left_behind_by_a_wait_that_timed_out() {
    let f = Fixture::new();
    run_against_held_lock(&f, &["-w", "200ms"]).assert_code(124);

    f.buildlock(["-w", "0s"].iter().chain(&BUILD)).run().assert_code(0);
}

#[test]
fn foreign_shared_lock_is_waited_for_without_spinning() {
    let f = Fixture::new();
    let held = f.hold_lock_shared(&f.lock_file("env:abc"));
    let waiter = f.buildlock(BUILD).start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    // The test is about time: a busy loop would use up all of it.
    let before = cpu_seconds(waiter.pid());
    std::thread::sleep(Duration::from_millis(700));
    let used = cpu_seconds(waiter.pid()) - before;
    assert!(used < 0.15, "{used} of 0.7 seconds used up while waiting");
    assert_eq!(f.build_count("env:abc"), 0);

    drop(held);
    waiter.wait().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 1);
}

#[test]
fn waiter_whose_holder_was_killed_builds() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build("env:abc").start();
    f.wait_for_builds(1);
    let second = f.docker_build("env:abc").start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    first.signal("KILL");
    first.wait().assert_signal(9);
    let build = f.build_events()[0].pid;
    f.release_builds();

    second.wait().assert_code(0);
    assert!(!is_alive(build));
    f.assert_no_overlap();
}

// The engine.

const CANNOT_CONNECT: &str = "Cannot connect to the Docker daemon";

#[test]
fn nothing_is_built_while_the_engine_is_down() {
    let f = Fixture::new();
    f.steer("STANDIN_DOWN=1");

    f.docker_build("env:abc").run().assert_code(125).assert_stderr(CANNOT_CONNECT);

    assert_eq!(f.build_events(), []);
    assert!(f.looks().len() > 1, "one failure was enough to give up\n{}", f.scene());
}

#[test]
fn engine_that_comes_back_is_asked_again() {
    let f = Fixture::new();
    f.steer("STANDIN_DOWN=1");
    let build = f.docker_build("env:abc").start();
    f.wait_for("a failed look-up", || !f.looks().is_empty());

    f.steer("");

    build.wait().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 1);
}

#[test]
fn nothing_is_built_when_the_engine_goes_down_during_the_wait() {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));
    let waiter = f.docker_build("env:abc").start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    f.steer("STANDIN_DOWN=1");
    drop(held);

    waiter.wait().assert_code(125).assert_stderr(CANNOT_CONNECT);
    assert_eq!(f.build_events(), []);
}

#[test]
fn success_is_not_reported_when_the_engine_cannot_be_asked_after_the_build() {
    let f = Fixture::new();
    f.hold_builds();
    let build = f.docker_build("env:abc").start();
    f.wait_for_builds(1);

    f.steer(&format!("STANDIN_LOOK_STATUS=1 STANDIN_LOOK_ERR='{CANNOT_CONNECT}'"));
    f.release_builds();

    build.wait().assert_code(125).assert_stderr(CANNOT_CONNECT);
}

/// Checks that an answer of `docker image inspect` that says neither "present" nor "missing" is an
/// error.
fn assert_not_missing(status: i32, stdout: &str, stderr: &str) {
    let f = Fixture::new();
    f.steer(&format!(
        "STANDIN_LOOK_STATUS={status} STANDIN_LOOK_OUT='{stdout}' STANDIN_LOOK_ERR='{stderr}'"
    ));

    let finished = f.docker_build("env:abc").run();

    finished.assert_code(125).assert_stderr(stderr);
    assert_eq!(f.build_events(), [], "{finished}");
}

#[test]
fn answers_that_make_no_sense_do_not_count_as_missing() {
    assert_not_missing(1, "[]", "permission denied while trying to connect to the Docker daemon");
    assert_not_missing(1, "", "Error response from daemon: 404 page not found");
    assert_not_missing(1, "[]", "Error: request returned Not Found for API route and version");
    assert_not_missing(1, "<html><h1>Not Found</h1></html>", "Error: invalid character");
    assert_not_missing(1, "", "");
    assert_not_missing(255, "[]", "kex_exchange_identification: Connection closed by remote host");
    assert_not_missing(1, "", "error during connect: no such host");
}

#[test]
fn success_of_the_client_with_nonsensical_output_does_not_count_as_present() {
    assert_not_missing(0, "<html><h1>It works!</h1></html>", "");
    assert_not_missing(0, "[]", "");
}

#[test]
fn home_made_client_may_answer_with_its_exit_status_alone() {
    let f = Fixture::new();
    f.steer("STANDIN_LOOK_STATUS=0");

    f.docker_build("env:abc").run().assert_code(0);

    assert_eq!(f.build_events(), []);
}

#[test]
fn engine_that_starts_to_answer_nonsense_during_the_wait_is_not_believed() {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));
    let waiter = f.docker_build("env:abc").start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    f.steer("STANDIN_LOOK_STATUS=1 STANDIN_LOOK_ERR='404 page not found'");
    drop(held);

    waiter.wait().assert_code(125).assert_stderr("404 page not found");
    assert_eq!(f.build_events(), []);
}
