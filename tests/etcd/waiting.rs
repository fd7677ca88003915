//! Waiting for a lock, and ending while waiting or building.

use std::fs;
use std::time::{Duration, Instant};

use crate::site::{ENDLESS, SOON, now, site};
use crate::support::Gate;
use crate::support::is_alive;
use crate::support::number;

#[test]
fn caller_without_time_is_told_who_holds_the_lock_and_where() {
    let Some(site) = site() else { return };
    site.f.hold_builds();
    let first = site.docker_build("env:abc").start();
    site.f.wait_for_builds(1);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let holder = format!("@{host}, pid {}", first.pid());
    for (timeout, status) in [("0s", "124"), ("1s", "124"), ("0s", "9")] {
        let words = ["-w", timeout, "-E", status, "-t", "env:abc", "--", "true"];
        let done = site.on_second_host(site.buildlock(&words)).run();
        done.assert_code(status.parse().unwrap()).assert_stderr(&holder);
        assert!(done.elapsed < SOON, "{done}");
    }
    assert_eq!(site.keys_of("env:abc").len(), 1);
    site.f.release_builds();
    first.wait().assert_code(0);
}

#[test]
fn waiter_that_is_ended_leaves_nothing_and_is_not_waited_for() {
    let Some(site) = site() else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    for signal in ["TERM", "INT", "HUP"] {
        // With --force, the waiter queues at once.
        let waiter = site.buildlock(&["--force", "-t", "env:abc", "--", "true"]).start();
        site.f.wait_for("a waiter in the queue", || site.keys_of("env:abc").len() == 2);
        let sent = Instant::now();
        // An impatient user sends several.
        (0..3).for_each(|_| waiter.signal(signal));
        waiter.wait().assert_signal(number(signal));
        site.f.wait_for("its key to be gone", || site.keys_of("env:abc").len() == 1);
        assert!(sent.elapsed() < SOON, "{:?}", sent.elapsed());
    }
    first.signal("TERM");
    first.wait().assert_signal(15);
}

#[test]
fn holder_that_is_ended_gives_the_lock_back_at_once() {
    let Some(site) = site() else { return };
    for (n, signal) in ["TERM", "INT"].into_iter().enumerate() {
        let (a, b) = (format!("a{n}"), format!("b{n}"));
        let first = site.ticking(&a, ENDLESS).start();
        site.wait_for_tick(&a);
        let waiter = site.on_second_host(site.ticking(&b, "3")).start();
        waiter.wait_for_stderr("waiting for");
        let sent = now();
        (0..3).for_each(|_| first.signal(signal));
        first.wait().assert_signal(number(signal));
        waiter.wait().assert_code(0);
        site.assert_apart(&a, &b);
        let took = Duration::from_nanos((site.ticks(&b)[0] - sent).try_into().unwrap());
        assert!(took < SOON, "{took:?}");
        fs::remove_file(site.f.path("images/env:abc")).unwrap();
    }
    site.assert_nothing_left();
}

#[test]
fn lock_is_free_after_a_build_that_ran_too_long_or_left_a_daemon_behind() {
    let Some(site) = site() else { return };
    let late = site.buildlock(&["--build-timeout=300ms", "-t", "env:abc", "--"]);
    late.args(["ticking", "a", ENDLESS, "env:abc"]).run().assert_code(124);
    site.f.steer("STANDIN_CHILD=setsid");
    site.docker_build("env:abc").run().assert_code(0);
    let daemon = site.f.wait_for_pid("child.pid");
    assert!(is_alive(daemon));
    site.assert_nothing_left();
}

#[test]
fn failure_is_shared_with_those_that_waited_for_it() {
    let Some(site) = site() else { return };
    site.f.hold_builds();
    site.f.steer("STANDIN_BUILD_STATUS=7");
    let first = site.docker_build("env:abc").start();
    site.f.wait_for_builds(1);
    let waiters: Vec<_> = (0..5)
        .map(|_| site.docker_build("env:abc").env("BUILDLOCK_ON_FAILURE", "share").start())
        .collect();
    for waiter in &waiters {
        waiter.wait_for_stderr("waiting for");
    }
    site.f.release_builds();
    first.wait().assert_code(7);
    for waiter in waiters {
        waiter.wait().assert_code(7).assert_stderr("the build that was waited for failed");
    }
    assert_eq!(site.f.build_count("env:abc"), 1);
    // A later call does not share the failure.
    site.docker_build("env:abc").env("BUILDLOCK_ON_FAILURE", "share").run().assert_code(7);
    assert_eq!(site.f.build_count("env:abc"), 2);
}

/// The waiter waits for two builds, and the second one makes the image.
#[test]
fn warning_of_another_command_is_about_the_build_waited_for_last() {
    let ours = ["docker", "build", "-t", "env:abc", "."];
    let other = ["docker", "build", "-f", "Dockerfile.other", "-t", "env:abc", "."];
    for (first, last) in [(&ours[..], &other[..]), (&other, &ours)] {
        let Some(site) = site() else { return };
        let f = &site.f;
        let build = |args: &[&str], words: &[&str]| site.buildlock(args).args(words);
        f.steer("STANDIN_BUILD_STATUS=3 STANDIN_FAIL_TIMES=1");
        f.hold_builds();
        let failing = build(&["--"], first).start();
        f.wait_for_builds(1);
        let waiter = build(&["--"], &ours).start();
        waiter.wait_for_stderr(&format!("pid {}", failing.pid()));
        // Another build begins while the waiter's next look is delayed.
        let look = Gate::new(f, "look.gate");
        f.let_builds_go(1);
        failing.wait().assert_code(3);
        f.wait_for_file("held.log");
        let second = build(&["--force", "--"], last).start();
        f.wait_for_builds(2);
        // Let this look and all later ones pass.
        (0..10).for_each(|_| look.open());
        waiter.wait_for_stderr(&format!("pid {}", second.pid()));
        f.release_builds();
        second.wait().assert_code(0);
        let waiter = waiter.wait();
        waiter.assert_code(0);
        match last == ours {
            true => waiter.assert_no_stderr("may not be the one wanted"),
            false => waiter.assert_stderr(&format!("ran {} (in ", last.join(" "))),
        };
        assert_eq!(f.build_count("env:abc"), 2);
        site.assert_nothing_left();
    }
}
