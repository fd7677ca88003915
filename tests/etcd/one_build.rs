//! One build at a time for a tag, on all hosts.

use std::time::{Duration, Instant};

use crate::site::{ENDLESS, TTL, ended, site, takes_the_machine};
use crate::support::Fixture;

#[test]
fn fifty_calls_on_two_hosts_build_one_tag_once() {
    let _machine = takes_the_machine();
    let Some(site) = site() else { return };
    site.f.steer("STANDIN_SLEEP=1");
    let calls = (0..50).map(|n| match n % 2 {
        0 => site.docker_build("env:abc").start(),
        // The same members, by host name.
        _ => {
            let store = site.store.replace("127.0.0.1", "localhost");
            let call = site.on_second_host(site.docker_build("env:abc"));
            call.env("BUILDLOCK_STORE", store).start()
        }
    });
    let calls = ended(calls.collect());
    for call in &calls {
        call.assert_code(0);
    }
    let count = |what: &str| calls.iter().filter(|call| call.stderr.contains(what)).count();
    assert!(count("waiting for") > 0, "no call waited");
    assert_eq!(site.f.build_count("env:abc"), 1);
    site.f.assert_no_overlap();
    site.assert_nothing_left();
}

#[test]
fn two_hundred_waiters_continue_as_soon_as_the_image_is_present() {
    let _machine = takes_the_machine();
    let Some(site) = site() else { return };
    site.f.hold_builds();
    let first = site.docker_build("env:abc").start();
    site.f.wait_for_builds(1);
    let waiters: Vec<_> = (0..200).map(|_| site.docker_build("env:abc").start()).collect();
    for waiter in &waiters {
        waiter.wait_for_stderr("waiting for");
    }
    site.f.release_builds();
    first.wait().assert_code(0);
    let released = Instant::now();
    for waiter in waiters {
        waiter.wait().assert_code(0);
    }
    assert!(released.elapsed() < Duration::from_secs(10), "{:?}", released.elapsed());
    assert_eq!(site.f.build_count("env:abc"), 1);
    site.assert_nothing_left();
}

#[test]
fn failing_builds_run_one_after_the_other_and_never_together() {
    let Some(site) = site() else { return };
    site.f.steer("STANDIN_BUILD_STATUS=7");
    let calls = (0..12).map(|n| match n % 2 {
        0 => site.docker_build("env:abc").start(),
        _ => site.on_second_host(site.docker_build("env:abc")).start(),
    });
    for call in ended(calls.collect()) {
        call.assert_code(7);
    }
    assert_eq!(site.f.build_count("env:abc"), 12);
    site.f.assert_no_overlap();
    assert_eq!(site.keys_of("env:abc"), [""; 0]);
}

#[test]
fn forced_builds_run_one_at_a_time_and_their_fence_grows() {
    let Some(site) = site() else { return };
    let calls = (0..8).map(|n| {
        let call = site.buildlock(&["--force", "-t", "env:abc", "--"]);
        let call = call.args(["ticking", &n.to_string(), "3", "env:abc"]);
        if n % 2 == 0 { call.start() } else { site.on_second_host(call).start() }
    });
    for call in ended(calls.collect()) {
        call.assert_code(0);
    }
    let ticks = site.f.lines("ticks");
    let mut names: Vec<_> = ticks.iter().map(|line| line.split(' ').next().unwrap()).collect();
    names.dedup();
    assert_eq!((names.len(), ticks.len()), (8, 24), "{ticks:?}");
    let fences: Vec<i64> =
        site.f.lines("fences").iter().map(|line| line.parse().unwrap()).collect();
    assert!(fences.is_sorted_by(|a, b| a < b) && fences.len() == 8, "{fences:?}");
}

#[test]
fn fence_is_the_revision_at_which_the_key_was_created() {
    let Some(site) = site() else { return };
    let build = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let created = site.cluster.created(&site.keys_of("env:abc")[0]);
    assert_eq!(site.f.lines("fences"), [created.to_string()]);
    build.signal("TERM");
    build.wait().assert_signal(15);
}

#[test]
fn fence_of_a_tag_grows_whatever_else_is_locked_and_however_calls_are_nested() {
    let Some(site) = site() else { return };
    let words = ["--lock=x", "-t", "env:z", "--", "ticking", "z", ENDLESS, "env:z"];
    let holder_of_x = site.buildlock(&words).start();
    site.wait_for_tick("z");
    // The first call holds the tag, and waits for the other lock.
    let words = ["--lock=x", "-t", "env:abc", "--", "buildlock", "-t", "env:abc", "--"];
    let first = site.buildlock(&words).args(["ticking", "a", "3", "env:abc"]).start();
    first.wait_for_stderr("waiting for");
    let words = ["--force", "-t", "env:abc", "--", "ticking", "b", "3", "env:abc"];
    let second = site.buildlock(&words).start();
    site.f.wait_for("a waiter in the queue", || site.keys_of("env:abc").len() == 2);
    holder_of_x.signal("TERM");
    holder_of_x.wait().assert_signal(15);
    first.wait().assert_code(0);
    second.wait().assert_code(0);
    site.assert_apart("a", "b");
    let fences: Vec<i64> =
        site.f.lines("fences").iter().skip(1).map(|line| line.parse().unwrap()).collect();
    assert!(fences.is_sorted_by(|a, b| a < b) && fences.len() == 2, "{fences:?}");
}

#[test]
fn present_image_needs_no_cluster() {
    let f = Fixture::new();
    f.make_image("env:abc");
    let done = f.docker_build("env:abc").env("BUILDLOCK_STORE", "etcd://127.0.0.1:1/p").run();
    done.assert_code(0);
    assert!(done.elapsed < Duration::from_secs(5), "{done}");
}

#[test]
fn flag_wins_over_the_variable() {
    let Some(site) = site() else { return };
    site.f.hold_builds();
    let first = site.docker_build("env:abc").start();
    site.f.wait_for_builds(1);
    // In a store of files, the lock is free.
    let second = site.buildlock(&["--store=file:", "-t", "env:abc", "--"]);
    let second = second.args(["docker", "build", "-t", "env:abc", "."]).start();
    site.f.wait_for_builds(2);
    let flag = format!("--store={}", site.store);
    let third = site.f.buildlock([&flag, "-w0s", "-t", "env:abc", "--", "true"]).run();
    third.assert_code(124);
    site.f.release_builds();
    first.wait().assert_code(0);
    second.wait().assert_code(0);
}

#[test]
fn build_that_lasts_several_leases_keeps_its_lock() {
    let Some(site) = site() else { return };
    site.f.hold_builds();
    let build = site.docker_build("env:abc").start();
    site.f.wait_for_builds(1);
    let started = Instant::now();
    let waiter = site.on_second_host(site.docker_build("env:abc")).start();
    waiter.wait_for_stderr("waiting for");
    site.f.wait_for("two leases to be over", || started.elapsed() > 2 * TTL);
    site.f.release_builds();
    build.wait().assert_code(0);
    waiter.wait().assert_code(0);
    assert_eq!(site.f.build_count("env:abc"), 1);
    site.assert_nothing_left();
}

#[test]
fn two_tags_in_one_call_are_both_locked() {
    let Some(site) = site() else { return };
    let words =
        ["-t", "env:a", "-t", "env:b", "--", "docker", "build", "-t", "env:a", "-t", "env:b"];
    site.f.hold_builds();
    let both = site.buildlock(&words).arg(".").start();
    site.f.wait_for_builds(1);
    for tag in ["env:a", "env:b"] {
        let one = site.buildlock(&["-w0s", "-t", tag, "--", "true"]).run();
        one.assert_code(124).assert_stderr(tag);
    }
    let tags: Vec<_> = site.status().into_iter().map(|lock| lock["tag"].clone()).collect();
    assert_eq!(tags, ["env:a", "env:b"]);
    site.f.release_builds();
    both.wait().assert_code(0);
    site.assert_nothing_left();
}

#[test]
fn named_lock_is_for_all_tags() {
    let Some(site) = site() else { return };
    site.f.hold_builds();
    let tags: Vec<String> = (0..4).map(|n| format!("env:{n}")).collect();
    let calls: Vec<_> = tags
        .iter()
        .map(|tag| {
            site.buildlock(&["--lock=port", "--", "docker", "build", "-t", tag, "."]).start()
        })
        .collect();
    for n in 1..=tags.len() {
        site.f.wait_for_builds(n);
        let events = site.f.build_events();
        let starts = events.iter().filter(|event| event.is_start()).count();
        assert_eq!(2 * starts - events.len(), 1, "{events:?}");
        site.f.let_builds_go(1);
    }
    for call in ended(calls) {
        call.assert_code(0);
    }
    site.assert_nothing_left();
}

#[test]
fn named_lock_is_shared_by_hosts_and_waited_for_by_one_that_needs_it_alone() {
    let Some(site) = site() else { return };
    site.f.hold_builds();
    let builds = ["env:a", "env:b"].map(|tag| {
        let call = site.buildlock(&["--share=gc", "--", "docker", "build", "-t", tag, "."]);
        if tag == "env:b" { site.on_second_host(call).start() } else { call.start() }
    });
    site.f.wait_for_builds(2);
    let prune = site.buildlock(&["--lock=gc", "--", "touch", "pruned"]).start();
    prune.wait_for_stderr("(shared)");
    let later = site.buildlock(&["-w0s", "--share=gc", "--", "true"]).run();
    later.assert_code(124);
    let nested = ["--share=n", "--", "buildlock", "--lock=n", "--", "true"];
    site.buildlock(&nested).run().assert_code(125).assert_stderr("an outer call shares it");
    assert!(!site.f.work_dir().join("pruned").exists());
    site.f.release_builds();
    for build in builds {
        build.wait().assert_code(0);
    }
    prune.wait().assert_code(0);
    // The failure of the nested call stays, for those who share it.
    assert!(site.keys().iter().all(|key| key.contains("/results/")), "{:?}", site.keys());
}
