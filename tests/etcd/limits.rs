//! Time limits when the cluster does not answer.

use std::fs;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Plan};
use crate::member::{answering, dead_port, generous, silent, trickling};
use crate::site::{ENDLESS, own_site, takes_the_machine};
use crate::support::number;
use crate::support::{Finished, Fixture};

/// Returns the longest time that a wait with this limit may take.
fn on_time(limit: Duration) -> Duration {
    limit + limit / 100 + Duration::from_millis(100)
}

/// Runs a call with this limit until one ends on time: a busy machine gets several tries.
#[track_caller]
fn ends_on_time(limit: Duration, call: impl Fn() -> Finished) -> Finished {
    let mut took = Vec::new();
    for _ in 0..4 {
        let done = call();
        assert!(done.elapsed >= limit, "too early: {done}");
        if done.elapsed <= on_time(limit) {
            return done;
        }
        took.push(done.elapsed);
    }
    panic!("a limit of {limit:?} took {took:?}");
}

fn wait_for_a_lock(f: &Fixture, store: &str, limit: Duration) -> Finished {
    let limit = format!("{}ms", limit.as_millis());
    let words = ["-w", &limit, "--check=false", "-t", "env:abc", "--", "true"];
    f.buildlock(words).env("BUILDLOCK_STORE", store).run()
}

#[test]
fn wait_ends_at_its_limit_whatever_kind_of_cluster_says_nothing() {
    let _machine = takes_the_machine();
    let stores = [
        format!("etcd://127.0.0.1:{}/p", silent()),
        format!("etcd://127.0.0.1:{}/p", dead_port()),
        format!("etcd://127.0.0.1:{},127.0.0.1:{}/p", silent(), dead_port()),
        format!(
            "etcd://127.0.0.1:{}/p",
            trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
        ),
        format!("etcd://127.0.0.1:{}/p", trickling(b"HTTP/1.1 200 OK\r\nX-Endless: ")),
        // A handshake that stalls, and one that never ends.
        format!("etcds://127.0.0.1:{}/p", silent()),
        format!("etcds://127.0.0.1:{}/p", trickling(&[0x16, 3, 3, 0x3f, 0, 2, 0, 0x3e, 0xfc])),
        "etcd://slow.invalid/p".to_owned(),
    ];
    std::thread::scope(|scope| {
        for store in &stores {
            scope.spawn(move || {
                let f = Fixture::new();
                f.install_script("getent", "#!/bin/sh\nexec sleep 30\n");
                for limit in [300, 1100] {
                    let limit = Duration::from_millis(limit);
                    let done = ends_on_time(limit, || wait_for_a_lock(&f, store, limit));
                    done.assert_code(125).assert_stderr("no member of etcd can be reached");
                }
            });
        }
    });
}

#[test]
fn caller_that_does_not_wait_gives_a_silent_cluster_two_seconds_and_a_dead_one_none() {
    let _machine = takes_the_machine();
    let f = Fixture::new();
    let at = |port: u16| format!("etcd://127.0.0.1:{port}/p");
    let least = Duration::from_secs(2);
    let done = ends_on_time(least, || {
        let done = wait_for_a_lock(&f, &at(silent()), Duration::ZERO);
        done.assert_code(125).assert_stderr("reached");
        done
    });
    assert!(done.elapsed >= least, "{done}");
    let dead = wait_for_a_lock(&f, &at(dead_port()), Duration::ZERO);
    dead.assert_code(125).assert_stderr("refused");
    assert!(dead.elapsed < Duration::from_secs(1), "{dead}");
}

#[test]
fn members_that_say_nothing_leave_time_for_one_that_answers() {
    let f = Fixture::new();
    let alive = answering(usize::MAX, |path| generous("1", path));
    let dumb = [silent(), silent()];
    let store = format!("etcd://127.0.0.1:{},127.0.0.1:{},127.0.0.1:{alive}/p", dumb[0], dumb[1]);
    // Chance decides which member is asked first.
    for _ in 0..4 {
        let done = wait_for_a_lock(&f, &store, Duration::from_secs(2));
        assert!(!done.stderr.contains("reached"), "{done}");
        done.assert_stderr("building");
    }
}

#[test]
fn cluster_that_stops_during_a_wait_ends_it_at_its_limit() {
    let _machine = takes_the_machine();
    let plan = Plan { members: 1, ..Plan::default() };
    let Some(site) = own_site(plan, "1m") else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let wait = |words: &[&str], limit: &str| {
        let call = site.buildlock(&["-w", limit, "--check=false", "-t", "env:abc"]);
        let waiter = call.args(words).args(["--", "true"]).start();
        waiter.wait_for_stderr("waiting for");
        site.cluster.pause(0);
        waiter
    };
    // A waiter that looks again when the lock is free, and one that queues.
    for words in [&[][..], &["--force"]] {
        let done = ends_on_time(Duration::from_secs(2), || {
            let done = wait(words, "2s").wait();
            site.cluster.resume(0);
            site.cluster.wait_until_healthy();
            done
        });
        done.assert_code(125).assert_stderr("reached").assert_no_stderr("gave up");
    }
    // Too short to count as silence: the waiter waited for the holder.
    let done = ends_on_time(Duration::from_millis(450), || {
        let done = wait(&[], "450ms").wait();
        site.cluster.resume(0);
        site.cluster.wait_until_healthy();
        done
    });
    done.assert_code(124).assert_stderr(&format!("pid {}", first.pid()));
    // A signal ends a waiter without an answer from the cluster.
    let waiter = wait(&["--force"], "1h");
    let sent = Instant::now();
    waiter.signal("TERM");
    waiter.wait().assert_signal(number("TERM"));
    assert!(sent.elapsed() < Duration::from_millis(1500), "{:?}", sent.elapsed());
    site.cluster.resume(0);
    first.signal("TERM");
    first.wait().assert_signal(number("TERM"));
}

#[test]
fn member_that_stops_does_not_hide_the_holder_that_is_waited_for() {
    let _machine = takes_the_machine();
    let Some(site) = own_site(Plan::default(), "1m") else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let leader = site.cluster.leader();
    // Without the leader, no member would answer until the next election.
    for member in site.cluster.all().filter(|member| *member != leader) {
        let done = ends_on_time(Duration::from_millis(1500), || {
            let call = site.buildlock(&["-w1500ms", "--force", "--check=false", "-t", "env:abc"]);
            let waiter = call.args(["--", "true"]).start();
            waiter.wait_for_stderr("waiting for");
            site.cluster.pause(member);
            let done = waiter.wait();
            site.cluster.resume(member);
            site.cluster.wait_until_healthy();
            done
        });
        done.assert_code(124).assert_stderr(&format!("pid {}", first.pid()));
    }
    first.signal("TERM");
    first.wait().assert_signal(number("TERM"));
}

#[test]
fn end_of_a_build_is_not_held_up_by_a_cluster_that_says_nothing() {
    let plan = Plan { members: 1, ..Plan::default() };
    let Some(site) = own_site(plan, "1m") else { return };
    let gate = site.f.path("gate");
    let wait = format!("touch started; until [ -e {} ]; do sleep 0.02; done", gate.display());
    let locks = ["-t", "env:a", "-t", "env:b", "-t", "env:c", "--lock=x", "--cache=y", "--cache=z"];
    for (end, status) in [("exit 3", 3), ("exit 0", 0)] {
        let script = format!("{wait}; touch {}; {end}", site.f.path("done").display());
        let check = format!("--check=test -e {}", site.f.path("done").display());
        let call = site.buildlock(&locks).args([&check, "--", "sh", "-c", &script]);
        let build = call.start();
        build.wait_for_stderr("building");
        site.f.wait_for("the build", || site.f.work_dir().join("started").exists());
        site.cluster.pause(0);
        let ended = Instant::now();
        fs::write(&gate, "").unwrap();
        build.wait().assert_code(status);
        // One question checks the locks, one releases them, and one gives back the lease.
        assert!(ended.elapsed() < Duration::from_secs(6), "{:?}", ended.elapsed());
        site.cluster.resume(0);
        site.cluster.wait_until_healthy();
        for file in [gate.clone(), site.f.path("done"), site.f.work_dir().join("started")] {
            fs::remove_file(file).unwrap();
        }
        for lease in site.cluster.leases() {
            _ = site.cluster.try_etcdctl(&["lease", "revoke", &lease]);
        }
    }
}

#[test]
fn subcommands_give_up_on_a_cluster_that_says_nothing() {
    let plan = Plan { members: 1, ..Plan::default() };
    let Some(site) = own_site(plan, "5s") else { return };
    Cluster::pause(&site.cluster, 0);
    let calls = [&["status"][..], &["cache", "ls"], &["cache", "forget", "c"]];
    let calls = calls.map(|words| site.buildlock(words).start());
    site.buildlock(&["prune"]).run().assert_code(0);
    for call in calls {
        let done = call.wait();
        done.assert_code(125).assert_stderr("reached");
        assert!(done.elapsed < Duration::from_secs(13), "{done}");
    }
    Cluster::resume(&site.cluster, 0);
}
