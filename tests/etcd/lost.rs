//! Locks that are lost while they are held or waited for.

use std::fs;
use std::time::{Duration, Instant};

use crate::cluster::Plan;
use crate::member;
use crate::site::{
    ENDLESS, SOON, Site, TICKING, TTL, assert_lost, now, own_site, site, takes_the_machine,
};
use crate::support::state;
use crate::support::{Fixture, send_signal};

#[test]
fn next_host_continues_within_a_second_after_the_lease_of_a_killed_holder() {
    let _machine = takes_the_machine();
    let Some(site) = site() else { return };
    // etcd checks its leases only every half second, so a busy machine gets several tries.
    let mut took = Vec::new();
    for _ in 0..3 {
        took.push(time_from_kill_to_next(&site));
        if took.last().is_some_and(|took| *took < TTL + Duration::from_secs(1)) {
            return;
        }
    }
    panic!("{took:?}");
}

fn time_from_kill_to_next(site: &Site) -> Duration {
    let first = site.ticking("a", ENDLESS).env("STUBBORN", "1").start();
    site.wait_for_tick("a");
    let waiter = site.on_second_host(site.ticking("b", "5")).start();
    waiter.wait_for_stderr("waiting for");
    let killed = now();
    first.signal("KILL");
    first.wait().assert_signal(9);
    waiter.wait().assert_code(0);
    // The build command continued for a while, since only KILL ends it.
    site.assert_apart("a", "b");
    assert!(*site.ticks("a").last().unwrap() > killed + 100_000_000, "{}", site.f.scene());
    site.assert_nothing_left();
    let next = site.ticks("b")[0];
    for what in ["ticks", "images/env:abc"] {
        fs::remove_file(site.f.path(what)).unwrap();
    }
    Duration::from_nanos((next - killed).try_into().unwrap())
}

#[test]
fn holder_stopped_for_longer_than_its_lease_notices_and_its_build_has_ended() {
    let Some(site) = site() else { return };
    let first = site.ticking("a", ENDLESS).env("STUBBORN", "1").start();
    site.wait_for_tick("a");
    let waiter = site.on_second_host(site.ticking("b", "50")).start();
    waiter.wait_for_stderr("waiting for");
    first.signal("STOP");
    let stopped = now();
    site.wait_for_tick("b");
    assert_eq!(state(first.pid()), 'T');
    first.signal("CONT");
    assert_lost(&first.wait());
    waiter.wait().assert_code(0);
    site.assert_apart("a", "b");
    let last = *site.ticks("a").last().unwrap();
    assert!(last < stopped + TTL.as_nanos(), "{}", site.f.scene());
    site.assert_nothing_left();
}

#[test]
fn holder_whose_lease_is_revoked_ends_its_build_and_says_so() {
    let _machine = takes_the_machine();
    let Some(site) = site() else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    // The key is watched after the first renewal, at a third of the lease. The second renewal comes
    // another third later.
    let started = Instant::now();
    site.f.wait_for("a renewal", || started.elapsed() > TTL * 2 / 5);
    site.cluster.etcdctl(&["lease", "revoke", &site.lease("env:abc")]);
    let revoked = Instant::now();
    assert_lost(&first.wait());
    assert!(revoked.elapsed() < TTL / 5, "{:?}", revoked.elapsed());
    // Another call builds the image.
    site.ticking("b", "1").run().assert_code(0);
    site.assert_apart("a", "b");
    site.assert_nothing_left();
}

#[test]
fn holder_whose_key_is_deleted_by_hand_ends_its_build() {
    let Some(site) = site() else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    site.cluster.etcdctl(&["del", &site.keys_of("env:abc")[0]]);
    let deleted = Instant::now();
    assert_lost(&first.wait());
    assert!(deleted.elapsed() < TTL, "{:?}", deleted.elapsed());
    site.assert_nothing_left();
}

#[test]
fn holder_that_has_lost_a_lock_gives_the_others_back_at_once() {
    let Some(site) = own_site(Plan { members: 1, ..Plan::default() }, "1m") else { return };
    let words = ["-t", "env:abc", "-t", "env:other", "--", "ticking", "a", ENDLESS, "env:abc"];
    let first = site.buildlock(&words).start();
    site.wait_for_tick("a");
    site.cluster.etcdctl(&["del", &site.keys_of("env:abc")[0]]);
    assert_lost(&first.wait());
    site.assert_nothing_left();
    assert_eq!(site.cluster.leases(), [""; 0]);
}

#[test]
fn build_whose_keeper_was_killed_still_ends_before_its_lease() {
    let Some(site) = own_site(Plan { members: 1, ..Plan::default() }, "5s") else { return };
    let words = ["-k", "0", "-t", "env:abc", "--", "ticking", "a", ENDLESS, "env:abc"];
    let build = site.buildlock(&words).env("STUBBORN", "1").start();
    site.wait_for_tick("a");
    let pid = build.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    send_signal(children.trim().parse().unwrap(), "KILL");
    build.wait_for_stderr("lock-keeper");
    // The build ignores TERM, and its lease is still renewed.
    let so_far = site.ticks("a").len();
    site.f.wait_for("the build to continue", || site.ticks("a").len() > so_far + 300);
    let killed = now();
    site.cluster.kill(0);
    assert_lost(&build.wait());
    let lasted = site.ticks("a").last().unwrap().saturating_sub(killed);
    assert!(lasted < TTL.as_nanos(), "{lasted} ns");
}

/// Starts the only member of a cluster that grants every lock. A leader of the given term renews
/// leases, while the current term is 2. The member dies after some requests. Returns its port.
fn only_member(cluster: &'static str, term: u8, requests: usize) -> u16 {
    member::answering(requests, move |path| {
        let mut answer = member::generous(cluster, path);
        if path == "/v3/lease/keepalive" {
            answer["result"]["header"]["raft_term"] = term.to_string().into();
        }
        answer
    })
}

#[test]
fn renewal_by_a_leader_that_was_deposed_does_not_count() {
    let fixtures = [Fixture::new(), Fixture::new()];
    let builds = [1, 2].map(|term| {
        let f = &fixtures[term - 1];
        f.install_script("ticking", TICKING);
        let port = only_member("1", term.try_into().unwrap(), usize::MAX);
        let store = format!("etcd://127.0.0.1:{port}/p?ttl=5s");
        let words = ["-t", "env:abc", "--", "ticking", "a", ENDLESS, "env:abc"];
        f.buildlock(words).env("BUILDLOCK_STORE", store).start()
    });
    let [deposed, leading] = builds;
    let deposed = deposed.wait();
    assert_lost(&deposed);
    assert!(deposed.elapsed < TTL, "{deposed}");
    // The other build continues for longer than a lease.
    let so_far = fixtures[1].lines("ticks").len();
    fixtures[1]
        .wait_for("the build to continue", || fixtures[1].lines("ticks").len() > so_far + 100);
    leading.signal("TERM");
    leading.wait().assert_signal(15);
}

#[test]
fn members_of_different_clusters_are_not_taken_for_one() {
    let f = Fixture::new();
    let [one, other] = ["1", "2"].map(|cluster| only_member(cluster, 2, 1));
    let store = format!("etcd://127.0.0.1:{one},127.0.0.1:{other}/p?ttl=5s");
    let done = f.docker_build("env:abc").env("BUILDLOCK_STORE", store).run();
    done.assert_code(125).assert_stderr("different clusters");
    assert_eq!(f.build_count("env:abc"), 0);
}

#[test]
fn waiter_whose_lease_is_revoked_queues_again() {
    let Some(site) = site() else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let own = site.keys_of("env:abc");
    let words = ["--force", "-t", "env:abc", "--", "ticking", "b", "1", "env:abc"];
    let waiter = site.buildlock(&words).start();
    let others = || -> Vec<String> {
        site.keys_of("env:abc").into_iter().filter(|key| !own.contains(key)).collect()
    };
    site.f.wait_for("a waiter in the queue", || others().len() == 1);
    let lease = others()[0].rsplit('/').next().unwrap().to_owned();
    site.cluster.etcdctl(&["lease", "revoke", &lease]);
    first.signal("TERM");
    first.wait().assert_signal(15);
    waiter.wait().assert_code(0);
    let gap = site.assert_apart("a", "b");
    assert!(gap < SOON, "{gap:?}");
    site.assert_nothing_left();
}

#[test]
fn waiter_that_was_stopped_for_most_of_its_lease_does_not_wait_for_itself() {
    let _machine = takes_the_machine();
    let Some(site) = own_site(Plan { members: 1, ..Plan::default() }, "9s") else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let words = ["--force", "-t", "env:abc", "--", "ticking", "b", "1", "env:abc"];
    let waiter = site.buildlock(&words).start();
    site.f.wait_for("a waiter in the queue", || site.keys_of("env:abc").len() == 2);
    waiter.signal("STOP");
    let stopped = Instant::now();
    // After two thirds of its lease, the waiter no longer relies on it.
    site.f.wait_for("most of a lease", || stopped.elapsed() > Duration::from_millis(6500));
    first.signal("TERM");
    first.wait().assert_signal(15);
    assert_eq!(site.keys_of("env:abc").len(), 1, "the waiter's lease is over");
    waiter.signal("CONT");
    let went_on = now();
    waiter.wait().assert_code(0);
    let took = Duration::from_nanos((site.ticks("b")[0] - went_on).try_into().unwrap());
    assert!(took < Duration::from_secs(2), "{took:?}");
    site.assert_nothing_left();
}
