//! Clusters whose members fail.

use std::time::Duration;

use crate::cluster::{Cluster, Plan};
use crate::network::Network;
use crate::site::{ENDLESS, SOON, TTL, assert_lost, now, own_site, site};
use crate::support::buildlock_path;

#[test]
fn leader_may_die_during_a_wait_and_a_build() {
    let Some(site) = own_site(Plan::default(), "10s") else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let waiter = site.on_second_host(site.ticking("b", "3")).start();
    waiter.wait_for_stderr("waiting for");
    let leader = site.cluster.leader();
    site.cluster.kill(leader);
    site.cluster.wait_for_other_leader(leader);
    // Longer than the rest of the lease.
    let so_far = site.ticks("a").len();
    site.f.wait_for("the build to continue", || site.ticks("a").len() > so_far + 300);
    assert!(site.ticks("b").is_empty());
    // A new call finds one member gone.
    let busy = site.buildlock(&["-w0s", "-t", "env:abc", "--", "true"]).run();
    busy.assert_code(124);
    first.signal("TERM");
    first.wait().assert_signal(15);
    waiter.wait().assert_code(0);
    // Another member told the waiter. The regular look, every ten seconds, would be later.
    let gap = site.assert_apart("a", "b");
    assert!(gap < SOON, "{gap:?}");
    site.cluster.restart(leader);
    site.cluster.wait_until_healthy();
    site.assert_nothing_left();
}

/// Runs a build and a waiter, while no member answers for longer than a lease lasts.
fn all_members_are_gone_for_longer_than_a_lease(
    stop: impl Fn(&Cluster, usize),
    go_on: impl Fn(&Cluster, usize),
) {
    let Some(site) = own_site(Plan::default(), "5s") else { return };
    let first = site.ticking("a", ENDLESS).env("STUBBORN", "1").start();
    site.wait_for_tick("a");
    let waiter = site.on_second_host(site.ticking("b", "3")).start();
    waiter.wait_for_stderr("waiting for");
    let stopped = now();
    site.cluster.all().for_each(|n| stop(&site.cluster, n));
    assert_lost(&first.wait());
    let last = *site.ticks("a").last().unwrap();
    let lasted = Duration::from_nanos(last.saturating_sub(stopped).try_into().unwrap());
    assert!(lasted < TTL, "{lasted:?}");
    let gone = || Duration::from_nanos((now() - stopped).try_into().unwrap());
    site.f.wait_for("all leases to be over", || gone() > TTL + Duration::from_secs(1));
    assert!(site.ticks("b").is_empty());
    site.cluster.all().for_each(|n| go_on(&site.cluster, n));
    waiter.wait().assert_code(0);
    site.assert_apart("a", "b");
    site.assert_nothing_left();
}

#[test]
fn build_ends_in_time_when_all_members_are_stopped() {
    all_members_are_gone_for_longer_than_a_lease(Cluster::pause, Cluster::resume);
}

#[test]
fn build_ends_in_time_when_all_members_are_dead() {
    all_members_are_gone_for_longer_than_a_lease(Cluster::kill, Cluster::restart);
}

#[test]
fn member_may_be_paused_and_continue_late() {
    let Some(site) = own_site(Plan::default(), "8s") else { return };
    let leader = site.cluster.leader();
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let waiter = site.on_second_host(site.ticking("b", "3")).start();
    waiter.wait_for_stderr("waiting for");
    site.cluster.pause(leader);
    site.cluster.wait_for_other_leader(leader);
    let so_far = site.ticks("a").len();
    let ticks = |n: usize| {
        site.f.wait_for("the build to continue", || site.ticks("a").len() > so_far + n);
    };
    // Far less than a lease, even on a busy machine: if the old leader thinks that leases have run
    // out, it ends them (etcd-io/etcd#15247).
    ticks(60);
    site.cluster.resume(leader);
    ticks(210);
    assert!(site.ticks("b").is_empty());
    first.signal("TERM");
    first.wait().assert_signal(15);
    waiter.wait().assert_code(0);
    site.assert_apart("a", "b");
    site.assert_nothing_left();
}

#[test]
fn host_or_leader_that_is_cut_off_is_not_believed() {
    let Some(network) = Network::new(4) else { return };
    let plan = Plan { network: Some(&network), ..Plan::default() };
    let Some(site) = own_site(plan, "8s") else { return };
    let call = |at: Vec<String>, name: &str, times: &str| {
        let words = ["-t", "env:abc", "--", "ticking", name, times, "env:abc"];
        let program = site.f.program(&at[0]).args(&at[1..]).arg(buildlock_path()).args(words);
        program.env("BUILDLOCK_STORE", &site.store).env("STUBBORN", "1")
    };
    let first = call(network.at(3), "a", ENDLESS).start();
    site.wait_for_tick("a");
    let waiter = call(network.at_hub(), "b", "400").start();
    waiter.wait_for_stderr("waiting for");
    network.cut(3);
    site.wait_for_tick("b");
    assert_lost(&first.wait());
    site.assert_apart("a", "b");
    network.mend(3);
    // Now cut off the leader while another call waits.
    let words = ["--force", "-t", "env:abc", "--", "ticking", "c", "3", "env:abc"];
    let at = network.at_hub();
    let third = site.f.program(&at[0]).args(&at[1..]).arg(buildlock_path()).args(words);
    let third = third.env("BUILDLOCK_STORE", &site.store).start();
    site.f.wait_for("a waiter in the queue", || site.keys_of("env:abc").len() == 2);
    let leader = site.cluster.leader();
    network.cut(leader);
    site.f.wait_for("more of the build than a lease", || site.ticks("b").len() >= 330);
    network.mend(leader);
    waiter.wait().assert_code(0);
    third.wait().assert_code(0);
    site.assert_apart("b", "c");
}

#[test]
fn first_member_of_the_list_may_be_down_and_old_revisions_gone() {
    let Some(site) = site() else { return };
    let rest = site.store.strip_prefix("etcd://").unwrap();
    let store = format!("etcd://127.0.0.1:1,{rest}");
    for n in 0..3 {
        let tag = format!("env:{n}");
        site.f.docker_build(&tag).env("BUILDLOCK_STORE", &store).run().assert_code(0);
    }
    site.f.hold_builds();
    let first = site.f.docker_build("env:abc").env("BUILDLOCK_STORE", &store).start();
    site.f.wait_for_builds(4);
    let waiter = site.docker_build("env:abc").start();
    waiter.wait_for_stderr("waiting for");
    let revision = site.cluster.created(&site.keys_of("env:abc")[0]) + 1;
    site.cluster.etcdctl(&["put", &format!("/{}/other", site.prefix), "x"]);
    site.cluster.etcdctl(&["compact", &revision.to_string()]);
    site.f.release_builds();
    first.wait().assert_code(0);
    waiter.wait().assert_code(0);
    assert_eq!(site.f.build_count("env:abc"), 1);
}
