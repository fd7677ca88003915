//! `--store etcd://…`: what many hosts may rely on, on a cluster of real members.
//!
//! Where etcd is not installed, each test says so in one line and is skipped; with
//! `BUILDLOCK_REQUIRE_ENGINE=1` it fails instead. Images are the stand-in's: two hosts see the
//! same.

#[path = "etcd/cluster.rs"]
mod cluster;
mod common;
#[path = "etcd/limits.rs"]
mod limits;
#[path = "etcd/member.rs"]
mod member;
#[path = "etcd/nonsense.rs"]
mod nonsense;
#[path = "common/outside.rs"]
mod outside;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;

use cluster::{Cluster, Network, Plan};
use common::{Finished, Fixture, Invocation, Running, is_alive, send_signal, sha256};
use outside::{Gate, buildlock_path, state};

/// The shortest lease that is allowed.
const TTL: Duration = Duration::from_secs(5);
/// Less than that: what waits for a lease to end takes longer.
const SOON: Duration = Duration::from_secs(4);

/// A fixture, and a prefix of its own in a cluster.
struct Site {
    f: Fixture,
    cluster: Arc<Cluster>,
    store: String,
    prefix: String,
}

/// Who starts many processes, and who measures how soon something happens: never both at once.
fn takes_the_machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A site in the cluster that all tests share which do not break it.
fn site() -> Option<Site> {
    Some(Site::new(shared_cluster()?, "5s"))
}

fn shared_cluster() -> Option<Arc<Cluster>> {
    static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut shared = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = shared.upgrade() {
        return Some(cluster);
    }
    let new = Arc::new(Cluster::start(Plan::default())?);
    *shared = Arc::downgrade(&new);
    Some(new)
}

/// A site in a cluster of its own.
fn own_site(plan: Plan<'_>, ttl: &str) -> Option<Site> {
    Some(Site::new(Arc::new(Cluster::start(plan)?), ttl))
}

/// COMMAND as one that notes in `ticks` that it still runs, every 20 ms: `ticking NAME TIMES TAG`
/// makes its image at the end. TERM does nothing to it if STUBBORN is set.
const TICKING: &str = r#"#!/bin/sh
name=$1 left=$2 tag=$3
[ -z "$STUBBORN" ] || trap '' TERM
echo "$BUILDLOCK_FENCE" >>"$STANDIN/fences"
while [ "$left" -gt 0 ]; do
    echo "$name $(date +%s%N)" >>"$STANDIN/ticks"
    left=$((left - 1))
    sleep 0.02
done
echo linux/amd64 >"$STANDIN/images/$tag"
"#;

/// More ticks than a test lasts.
const ENDLESS: &str = "100000";

impl Site {
    fn new(cluster: Arc<Cluster>, ttl: &str) -> Self {
        let f = Fixture::new();
        f.install_script("ticking", TICKING);
        std::os::unix::fs::symlink(buildlock_path(), f.path("bin/buildlock")).unwrap();
        let (store, prefix) = cluster.store(ttl);
        Site { f, cluster, store, prefix }
    }

    fn buildlock(&self, words: &[&str]) -> Invocation<'_> {
        self.f.buildlock(words).env("BUILDLOCK_STORE", &self.store)
    }

    fn docker_build(&self, tag: &str) -> Invocation<'_> {
        self.f.docker_build(tag).env("BUILDLOCK_STORE", &self.store)
    }

    /// `buildlock -t env:abc -- ticking NAME TIMES`
    fn ticking(&self, name: &str, times: &str) -> Invocation<'_> {
        self.buildlock(&["-t", "env:abc", "--", "ticking", name, times, "env:abc"])
    }

    /// The same on the second host: what hosts have of their own is another one.
    fn on_second_host<'f>(&'f self, invocation: Invocation<'f>) -> Invocation<'f> {
        invocation.env("BUILDLOCK_DIR", self.f.path("locks-of-the-second-host"))
    }

    fn wait_for_tick(&self, name: &str) {
        self.f.wait_for(&format!("a tick of {name}"), || !self.ticks(name).is_empty());
    }

    /// When it ticked, in nanoseconds since 1970.
    fn ticks(&self, name: &str) -> Vec<u128> {
        let lines = self.f.lines("ticks");
        let words = lines.iter().filter_map(|line| line.split_once(' '));
        let own = words.filter(|(who, _)| *who == name);
        // The last line may be half written.
        own.filter_map(|(_, when)| when.parse().ok()).collect()
    }

    /// Fails unless everything that `first` did was over before `then` began, and both did
    /// something. Returns how long nobody did anything.
    fn assert_apart(&self, first: &str, then: &str) -> Duration {
        let (first, then) = (self.ticks(first), self.ticks(then));
        let (last, next) = (*first.last().unwrap(), then[0]);
        assert!(last < next, "{} ms of overlap\n{}", (last - next) / 1_000_000, self.f.scene());
        Duration::from_nanos((next - last).try_into().unwrap())
    }

    fn keys(&self) -> Vec<String> {
        self.cluster.keys(&self.prefix)
    }

    /// The keys of those who have or want an image's lock.
    fn keys_of(&self, tag: &str) -> Vec<String> {
        let folder = format!("locks/image-locks/{}/", sha256(tag));
        self.keys().into_iter().filter(|key| key.contains(&folder)).collect()
    }

    /// The lease of the one who has an image's lock, by its hexadecimal name.
    fn lease(&self, tag: &str) -> String {
        let keys = self.keys_of(tag);
        assert_eq!(keys.len(), 1, "{keys:?}");
        keys[0].rsplit('/').next().unwrap().to_owned()
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.keys(), [""; 0]);
    }

    fn status(&self) -> Vec<Value> {
        let done = self.buildlock(&["status", "--json"]).run();
        done.assert_code(0);
        serde_json::from_slice(&done.stdout).unwrap()
    }
}

/// With a user's name and password; everything is said.
fn as_ci<'f>(call: Invocation<'f>, password: &str) -> Invocation<'f> {
    call.env("BUILDLOCK_ETCD_USER", "ci")
        .env("BUILDLOCK_ETCD_PASSWORD", password)
        .env("BUILDLOCK_LOG", "trace")
}

fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

fn ended(running: Vec<Running<'_>>) -> Vec<Finished> {
    running.into_iter().map(Running::wait).collect()
}

fn assert_lost(done: &Finished) {
    done.assert_code(125).assert_stderr("the lock ran out");
}

// One build.

#[test]
fn fifty_calls_on_two_hosts_build_one_tag_once() {
    let _machine = takes_the_machine();
    let Some(site) = site() else { return };
    site.f.steer("STANDIN_SLEEP=1");
    let calls = (0..50).map(|n| match n % 2 {
        0 => site.docker_build("env:abc").start(),
        // The same members by their name.
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
    assert!(count("waiting for") > 0, "nobody waited");
    assert_eq!(site.f.build_count("env:abc"), 1);
    site.f.assert_no_overlap();
    site.assert_nothing_left();
}

#[test]
fn two_hundred_waiters_go_on_as_soon_as_the_image_is_there() {
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
fn builds_that_fail_are_built_by_one_after_the_other_and_never_beside_each_other() {
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
    // It has the tag, and waits for the rest.
    let words = ["--lock=x", "-t", "env:abc", "--", "buildlock", "-t", "env:abc", "--"];
    let first = site.buildlock(&words).args(["ticking", "a", "3", "env:abc"]).start();
    first.wait_for_stderr("waiting for");
    let words = ["--force", "-t", "env:abc", "--", "ticking", "b", "3", "env:abc"];
    let second = site.buildlock(&words).start();
    site.f.wait_for("a waiter in line", || site.keys_of("env:abc").len() == 2);
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
fn image_that_is_there_needs_no_cluster() {
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
    // By files, nobody has it.
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

// Waiting.

#[test]
fn who_has_no_time_is_told_who_holds_the_lock_and_where() {
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
fn who_is_ended_while_he_waits_leaves_nothing_and_is_not_waited_for() {
    let Some(site) = site() else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    for signal in ["TERM", "INT", "HUP"] {
        // With --force it stands in line.
        let waiter = site.buildlock(&["--force", "-t", "env:abc", "--", "true"]).start();
        site.f.wait_for("a waiter in line", || site.keys_of("env:abc").len() == 2);
        let sent = Instant::now();
        // Whoever is in a hurry sends more than one.
        (0..3).for_each(|_| waiter.signal(signal));
        waiter.wait().assert_signal(outside::number(signal));
        site.f.wait_for("its key to be gone", || site.keys_of("env:abc").len() == 1);
        assert!(sent.elapsed() < SOON, "{:?}", sent.elapsed());
    }
    first.signal("TERM");
    first.wait().assert_signal(15);
}

#[test]
fn who_is_ended_while_he_builds_gives_the_lock_back_at_once() {
    let Some(site) = site() else { return };
    for (n, signal) in ["TERM", "INT"].into_iter().enumerate() {
        let (a, b) = (format!("a{n}"), format!("b{n}"));
        let first = site.ticking(&a, ENDLESS).start();
        site.wait_for_tick(&a);
        let waiter = site.on_second_host(site.ticking(&b, "3")).start();
        waiter.wait_for_stderr("waiting for");
        let sent = now();
        (0..3).for_each(|_| first.signal(signal));
        first.wait().assert_signal(outside::number(signal));
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
    let daemon = outside::wait_for_pid(&site.f, "child.pid");
    assert!(is_alive(daemon));
    site.assert_nothing_left();
}

#[test]
fn failure_is_shared_with_those_who_waited_for_it() {
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
    // It is nothing to who comes later.
    site.docker_build("env:abc").env("BUILDLOCK_ON_FAILURE", "share").run().assert_code(7);
    assert_eq!(site.f.build_count("env:abc"), 2);
}

/// Of two builds that are waited for, the second makes the image.
#[test]
fn image_of_another_command_is_warned_of_by_the_build_that_was_waited_for_last() {
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
        // While its next look is held up, another build begins.
        let look = Gate::new(f, "look.gate");
        f.let_builds_go(1);
        failing.wait().assert_code(3);
        f.wait_for_file("held.log");
        let second = build(&["--force", "--"], last).start();
        f.wait_for_builds(2);
        // And all that come later.
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

// Nested calls.

#[test]
fn nested_call_does_not_wait_for_itself() {
    let Some(site) = site() else { return };
    let nested = ["buildlock", "-w0s", "-t", "env:abc", "--", "docker", "build", "-t", "env:abc"];
    let done = site.buildlock(&["-t", "env:abc", "--"]).args(nested).arg(".").run();
    done.assert_code(0).assert_no_stderr("waiting");
    assert_eq!(site.f.build_count("env:abc"), 1);
    let deeper =
        "buildlock -t env:b -- sh -c 'buildlock -t env:b -- docker build -t env:b .; exit $?'";
    let done = site.buildlock(&["-t", "env:b", "--", "sh", "-c", deeper]).run();
    done.assert_code(0).assert_no_stderr("waiting");
    site.assert_nothing_left();
}

#[test]
fn two_nested_calls_exclude_each_other_and_others() {
    let Some(site) = site() else { return };
    let script = "one() { buildlock -t env:a -- docker build -t env:a . ; }; \
        one & first=$!; one & second=$!; wait $first || exit 1; wait $second || exit 2";
    site.f.hold_builds();
    let outer = site.buildlock(&["-t", "env:a", "--", "sh", "-c", script]).start();
    site.f.wait_for_builds(1);
    outer.wait_for_stderr("waiting for");
    let other = site.on_second_host(site.buildlock(&["-w0s", "-t", "env:a", "--", "true"])).run();
    other.assert_code(124).assert_stderr(&format!("pid {}", outer.pid()));
    site.f.release_builds();
    outer.wait().assert_code(0);
    assert_eq!(site.f.build_count("env:a"), 1);
    site.f.assert_no_overlap();
    site.assert_nothing_left();
}

// Caches.

#[test]
fn nested_call_warms_no_cache_that_its_outer_one_shares() {
    let Some(site) = site() else { return };
    for (file, text) in [("Cargo.lock", "one\n"), ("other", "other\n")] {
        fs::write(site.f.work_dir().join(file), text).unwrap();
    }
    let (warm, other) = ("--cache=cargo=Cargo.lock", "--cache=cargo=other");
    let build = |cache: &str, tag: &str| {
        site.buildlock(&[cache, "--", "docker", "build", "-t", tag, "."]).run()
    };
    build(warm, "env:first").assert_code(0).assert_stderr("cache=cargo cold");
    let inner = format!(
        "buildlock {other} -t env:inner -- docker build -t env:inner . && docker build -t env:outer ."
    );
    let outer = site.buildlock(&[warm, "-t", "env:outer", "--", "sh", "-c", &inner]).run();
    outer.assert_code(0).assert_stderr("an outer call shares it");
    build(other, "env:a").assert_code(0).assert_stderr("cache=cargo cold");
    build(other, "env:b").assert_code(0).assert_stderr("cache=cargo warm");
    site.buildlock(&["cache", "forget", "cargo"]).run().assert_code(0);
    site.assert_nothing_left();
}

#[test]
fn cache_is_warmed_by_one_and_then_shared_on_all_hosts() {
    const WARM: &str = "--cache=cargo=Cargo.lock";
    let Some(site) = site() else { return };
    fs::write(site.f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let build = |tag: &str| {
        let call = site.buildlock(&[WARM, "--", "docker", "build", "-t", tag, "."]);
        if tag.ends_with('1') { site.on_second_host(call) } else { call }
    };
    let running = || {
        let events = site.f.build_events();
        2 * events.iter().filter(|event| event.is_start()).count() - events.len()
    };
    site.f.hold_builds();
    let tags: Vec<String> = (0..5).map(|n| format!("env:{n}")).collect();
    let builds: Vec<_> = tags.iter().map(|tag| build(tag).start()).collect();
    site.f.wait_for_builds(1);
    for call in &builds {
        site.f.wait_for("all to wait or build", || {
            call.stderr().contains("waiting for") || call.stderr().contains("building")
        });
    }
    assert_eq!(running(), 1);
    site.f.let_builds_go(1);
    // All of them stand at the gate at once.
    site.f.wait_for_builds(5);
    assert_eq!(running(), 4);
    let locks = site.status();
    assert_eq!(locks.iter().filter(|lock| lock["cache"] == "cargo").count(), 4, "{locks:?}");
    site.f.release_builds();
    let said: String = ended(builds).iter().map(|it| it.assert_code(0).stderr.clone()).collect();
    assert_eq!(said.matches("alone, until it is warm (cache=cargo cold)").count(), 1, "{said}");
    assert_eq!(said.matches("shared (cache=cargo warm)").count(), 4, "{said}");

    build("env:later").run().assert_code(0).assert_stderr("shared (cache=cargo warm)");
    let listed = site.buildlock(&["cache", "ls"]).run();
    assert!(listed.assert_code(0).stdout_line().contains("\ncargo "), "{listed}");
    site.buildlock(&["cache", "forget", "cargo"]).run().assert_code(0);
    build("env:cold").run().assert_code(0).assert_stderr("cache=cargo cold");
    // Who shares it fails with it, and is run again alone.
    site.f.steer("STANDIN_BUILD_STATUS=3 STANDIN_FAIL_TIMES=1");
    build("env:again").run().assert_code(0).assert_stderr("alone, to try again (cache=cargo)");
    site.buildlock(&["cache", "forget", "cargo"]).run().assert_code(0);
    assert_eq!(site.keys().iter().filter(|key| key.contains("/locks/")).count(), 0);
}

#[test]
fn who_wants_a_cache_alone_is_not_overtaken_by_those_who_share_it() {
    const WARM: &str = "--cache=cargo=Cargo.lock";
    let Some(site) = site() else { return };
    fs::write(site.f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let build =
        |tag: &str, cache: &str| site.buildlock(&[cache, "--", "docker", "build", "-t", tag, "."]);
    build("env:0", WARM).run().assert_code(0);
    site.f.hold_builds();
    let sharing = build("env:1", WARM).start();
    site.f.wait_for_builds(2);
    let alone = build("env:2", "--cache=cargo").start();
    alone.wait_for_stderr("waiting for");
    let later = build("env:3", WARM).start();
    later.wait_for_stderr("waiting for");
    site.f.let_builds_go(1);
    sharing.wait().assert_code(0);
    site.f.wait_for_builds(3);
    assert_eq!((site.f.build_count("env:2"), site.f.build_count("env:3")), (1, 0));
    site.f.release_builds();
    alone.wait().assert_code(0);
    later.wait().assert_code(0);
    site.f.assert_no_overlap();
}

// Subcommands.

#[test]
fn status_shows_locks_of_all_hosts() {
    let Some(site) = site() else { return };
    assert_eq!(site.status(), [Value::Null; 0]);
    site.f.hold_builds();
    let first = site.docker_build("env:abc").start();
    site.f.wait_for_builds(1);
    let waiter = site.buildlock(&["--force", "-t", "env:abc", "--", "true"]).start();
    site.f.wait_for("a waiter in line", || site.keys_of("env:abc").len() == 2);
    let locks = site.status();
    assert_eq!(locks.len(), 1, "{locks:?}");
    let (lock, holder) = (&locks[0], &locks[0]["holder"]);
    assert_eq!((&lock["tag"], &lock["waiters"]), (&"env:abc".into(), &1.into()), "{lock}");
    assert_eq!(holder["pid"], first.pid(), "{lock}");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(holder["host"], host, "{lock}");
    let table = site.on_second_host(site.buildlock(&["status"])).run();
    table.assert_code(0);
    let table = String::from_utf8(table.stdout).unwrap();
    let row = table.lines().find(|row| row.starts_with("env:abc ")).unwrap();
    assert!(row.contains(&format!("@{host}, pid {}", first.pid())), "{table}");
    assert!(row.contains("docker build -t env:abc ."), "{table}");
    drop(waiter);
    site.f.release_builds();
    first.wait().assert_code(0);
}

#[test]
fn prune_has_nothing_to_do_and_there_are_no_paths() {
    let Some(site) = site() else { return };
    let pruned = site.buildlock(&["prune"]).run();
    pruned.assert_code(0).assert_stdout("0 lock files removed\n");
    let path = site.buildlock(&["path", "env:abc"]).run();
    path.assert_code(125).assert_stdout("").assert_stderr("is not a file");
}

#[test]
fn garbage_in_the_place_of_a_holder_is_waited_for_and_harms_nobody() {
    let Some(site) = site() else { return };
    let folder = format!("/{}/locks/image-locks/{}", site.prefix, sha256("env:abc"));
    let evil = "{\"pid\":-1,\"host\":\"\x1b[2J\u{202e}\",\"process\":[]}";
    for (n, (name, value)) in
        [("w/garbage", "garbage"), ("w/", "[[[[[["), ("r/1", evil)].into_iter().enumerate()
    {
        let key = format!("{folder}/{name}");
        site.cluster.etcdctl(&["put", &key, value]);
        let busy = site.buildlock(&["-w0s", "-t", "env:abc", "--", "true"]).run();
        busy.assert_code(124).assert_no_stderr("\x1b").assert_no_stderr("\u{202e}");
        let table = site.buildlock(&["status"]).run();
        let shown = String::from_utf8(table.assert_code(0).stdout.clone()).unwrap();
        assert!(!shown.contains(['\x1b', '\u{202e}']), "{shown:?}");
        let tick = n.to_string();
        let waiter = site.ticking(&tick, "1").start();
        waiter.wait_for_stderr("waiting for");
        site.cluster.etcdctl(&["del", &key]);
        waiter.wait().assert_code(0);
        assert_eq!(site.ticks(&tick).len(), 1);
        fs::remove_file(site.f.path("images/env:abc")).unwrap();
    }
    // What is no place of a holder is nobody's.
    for name in ["x", "", "w", "x/0"] {
        site.cluster.etcdctl(&["put", &format!("{folder}/{name}"), "garbage"]);
    }
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let waiter = site.buildlock(&["--force", "-t", "env:abc", "--"]);
    let waiter = waiter.args(["ticking", "b", "1", "env:abc"]).start();
    site.f.wait_for("a waiter in line", || site.keys_of("env:abc").len() == 6);
    first.signal("TERM");
    first.wait().assert_signal(15);
    waiter.wait().assert_code(0);
    // What is remembered of caches may be anything, too.
    fs::write(site.f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let memory = format!("/{}/memories/cache-locks/{}", site.prefix, sha256("cargo"));
    site.cluster.etcdctl(&["put", &memory, "garbage"]);
    let words = ["--cache=cargo=Cargo.lock", "--", "docker", "build", "-t", "env:c", "."];
    site.buildlock(&words).run().assert_code(0).assert_stderr("cache=cargo cold");
}

// Locks that are lost.

#[test]
fn next_host_goes_on_within_a_second_of_the_time_to_live_of_one_that_was_killed() {
    let _machine = takes_the_machine();
    let Some(site) = site() else { return };
    // etcd itself takes up to half of that second to look, so a busy machine has more than one try.
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
    // COMMAND went on for a while: nothing but KILL ends it.
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
fn one_that_was_stopped_for_longer_than_its_lease_notices_and_its_build_had_ended() {
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
fn one_whose_lease_is_revoked_ends_its_build_and_says_so() {
    let _machine = takes_the_machine();
    let Some(site) = site() else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    // It watches from the first renewal on, after a third; the second comes after another.
    let started = Instant::now();
    site.f.wait_for("a renewal", || started.elapsed() > TTL * 2 / 5);
    site.cluster.etcdctl(&["lease", "revoke", &site.lease("env:abc")]);
    let revoked = Instant::now();
    assert_lost(&first.wait());
    assert!(revoked.elapsed() < TTL / 5, "{:?}", revoked.elapsed());
    // Somebody else builds in its place.
    site.ticking("b", "1").run().assert_code(0);
    site.assert_apart("a", "b");
    site.assert_nothing_left();
}

#[test]
fn one_whose_key_is_deleted_by_hand_ends_its_build() {
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
fn one_that_has_lost_a_lock_gives_the_others_back_at_once() {
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
fn build_whose_keeper_was_killed_ends_before_its_lease_all_the_same() {
    let Some(site) = own_site(Plan { members: 1, ..Plan::default() }, "5s") else { return };
    let words = ["-k", "0", "-t", "env:abc", "--", "ticking", "a", ENDLESS, "env:abc"];
    let build = site.buildlock(&words).env("STUBBORN", "1").start();
    site.wait_for_tick("a");
    let pid = build.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    send_signal(children.trim().parse().unwrap(), "KILL");
    build.wait_for_stderr("lock-keeper");
    // It takes no TERM, and its lease is renewed.
    let so_far = site.ticks("a").len();
    site.f.wait_for("a build that goes on", || site.ticks("a").len() > so_far + 300);
    let killed = now();
    site.cluster.kill(0);
    assert_lost(&build.wait());
    let lasted = site.ticks("a").last().unwrap().saturating_sub(killed);
    assert!(lasted < TTL.as_nanos(), "{lasted} ns");
}

/// The only member of a cluster that gives everybody his lock, and where leases are renewed by one
/// who led in this term, while the term is 2. It dies after so many requests. Its port.
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
    // The other one goes on, for longer than a lease.
    let so_far = fixtures[1].lines("ticks").len();
    fixtures[1]
        .wait_for("a build that goes on", || fixtures[1].lines("ticks").len() > so_far + 100);
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
fn waiter_whose_lease_is_revoked_stands_in_line_again() {
    let Some(site) = site() else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let own = site.keys_of("env:abc");
    let words = ["--force", "-t", "env:abc", "--", "ticking", "b", "1", "env:abc"];
    let waiter = site.buildlock(&words).start();
    let others = || -> Vec<String> {
        site.keys_of("env:abc").into_iter().filter(|key| !own.contains(key)).collect()
    };
    site.f.wait_for("a waiter in line", || others().len() == 1);
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
    site.f.wait_for("a waiter in line", || site.keys_of("env:abc").len() == 2);
    waiter.signal("STOP");
    let stopped = Instant::now();
    // Longer than two thirds, after which it does not believe in its lease any more.
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

// Clusters that break.

#[test]
fn leader_may_die_while_somebody_waits_and_while_somebody_builds() {
    let Some(site) = own_site(Plan::default(), "10s") else { return };
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let waiter = site.on_second_host(site.ticking("b", "3")).start();
    waiter.wait_for_stderr("waiting for");
    let leader = site.cluster.leader();
    site.cluster.kill(leader);
    site.cluster.wait_for_other_leader(leader);
    // Longer than what is left of a lease.
    let so_far = site.ticks("a").len();
    site.f.wait_for("a build that goes on", || site.ticks("a").len() > so_far + 300);
    assert!(site.ticks("b").is_empty());
    // Somebody comes who finds one member gone.
    let busy = site.buildlock(&["-w0s", "-t", "env:abc", "--", "true"]).run();
    busy.assert_code(124);
    first.signal("TERM");
    first.wait().assert_signal(15);
    waiter.wait().assert_code(0);
    // It was told, by another member than before; the look of every ten seconds would be late.
    let gap = site.assert_apart("a", "b");
    assert!(gap < SOON, "{gap:?}");
    site.cluster.restart(leader);
    site.cluster.wait_until_healthy();
    site.assert_nothing_left();
}

/// A build, and one that waits for it, while no member answers for longer than the time to live.
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
fn member_may_be_paused_and_go_on_late() {
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
        site.f.wait_for("a build that goes on", || site.ticks("a").len() > so_far + n);
    };
    // Far short of the time to live, also on a busy machine: the old leader must not think that
    // leases are over, for it would end them (etcd-io/etcd#15247).
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
    // Now the leader, while another waits.
    let words = ["--force", "-t", "env:abc", "--", "ticking", "c", "3", "env:abc"];
    let at = network.at_hub();
    let third = site.f.program(&at[0]).args(&at[1..]).arg(buildlock_path()).args(words);
    let third = third.env("BUILDLOCK_STORE", &site.store).start();
    site.f.wait_for("a waiter in line", || site.keys_of("env:abc").len() == 2);
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

// What is no cluster, or not for us.

#[test]
fn cluster_that_cannot_be_reached_is_an_error() {
    let f = Fixture::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let store = format!("etcd://127.0.0.1:{port}/p?ttl=5s");
    let call = f.docker_build("env:abc").env("BUILDLOCK_STORE", &store).start();
    let status = f.buildlock(["status"]).env("BUILDLOCK_STORE", &store).start();
    for done in [call.wait(), status.wait()] {
        done.assert_code(125).assert_stderr(&format!("127.0.0.1:{port}")).assert_stderr("reached");
    }
    assert_eq!(f.build_count("env:abc"), 0);
}

#[test]
fn cluster_that_is_gone_is_what_a_waiter_reports_at_its_deadline() {
    let stop_while_somebody_waits = |stop: fn(&Cluster, usize), limit: u64| {
        let plan = Plan { members: 1, ..Plan::default() };
        let Some(site) = own_site(plan, "1m") else { return };
        let first = site.ticking("a", ENDLESS).start();
        site.wait_for_tick("a");
        let words = ["-w", &limit.to_string(), "-t", "env:abc", "--", "true"];
        let waiter = site.buildlock(&words).start();
        waiter.wait_for_stderr("waiting for");
        stop(&site.cluster, 0);
        let gave_up = waiter.wait();
        gave_up.assert_code(125).assert_stderr("reached").assert_no_stderr("gave up");
        assert!(gave_up.elapsed < Duration::from_secs(limit + 2), "{gave_up}");
        first.signal("KILL");
        first.wait().assert_signal(9);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| stop_while_somebody_waits(Cluster::kill, 4));
        scope.spawn(|| stop_while_somebody_waits(Cluster::pause, 5));
        scope.spawn(|| stop_while_somebody_waits(Cluster::pause, 13));
    });
}

#[test]
fn cluster_that_is_full_is_an_error_at_once() {
    let plan = Plan { members: 1, flags: &["--quota-backend-bytes=200000"], ..Plan::default() };
    let Some(site) = own_site(plan, "5s") else { return };
    site.docker_build("env:before").run().assert_code(0);
    site.cluster.fill();
    for limit in ["0s", "1h"] {
        let done = site.buildlock(&["-w", limit, "-t", "env:abc", "--", "true"]).run();
        done.assert_code(125).assert_stderr("space exceeded");
        assert!(done.elapsed < SOON, "{done}");
    }
}

#[test]
fn server_that_is_no_etcd_is_an_error() {
    let f = Fixture::new();
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\n<html>\x1b[2J no",
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "garbage\r\n\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                _ = stream.read(&mut [0; 4096]);
                _ = stream.write_all(answer.as_bytes());
            }
        });
        let store = format!("etcd://127.0.0.1:{port}/p?ttl=5s");
        let done = f.docker_build("env:abc").env("BUILDLOCK_STORE", &store).run();
        done.assert_code(125).assert_stderr(&format!("127.0.0.1:{port}"));
        done.assert_no_stderr("\x1b[2J");
        assert!(done.elapsed < Duration::from_secs(5), "{done}");
    }
    assert_eq!(f.build_count("env:abc"), 0);
}

#[test]
fn users_need_their_password_and_it_is_never_shown() {
    const SECRET: &str = "of-the-locksmith";
    let flags = ["--auth-token-ttl=1"];
    let plan = Plan { members: 1, flags: &flags, ..Plan::default() };
    let Some(site) = own_site(plan, "5s") else { return };
    site.cluster.enable_users("ci", SECRET);
    let file = site.f.path("password");
    fs::write(&file, format!("{SECRET}\n")).unwrap();
    let mut said = String::new();
    let mut keep = |done: Finished| {
        said.push_str(&done.stderr);
        done
    };
    let nobody = keep(site.docker_build("env:abc").run());
    nobody.assert_code(125).assert_stderr("etcd refuses");
    let wrong = keep(as_ci(site.docker_build("env:abc"), "wrong-password").run());
    wrong.assert_code(125).assert_stderr("etcd refuses").assert_no_stderr("wrong-password");
    assert!(wrong.elapsed < Duration::from_secs(5), "{wrong}");
    let elsewhere = site.cluster.store_at(&[0], "other", "5s");
    let elsewhere = as_ci(site.f.docker_build("env:abc"), SECRET).env("BUILDLOCK_STORE", elsewhere);
    keep(elsewhere.run()).assert_code(125).assert_stderr("permission denied");
    assert_eq!(site.f.build_count("env:abc"), 0);

    let by_file = site.docker_build("env:file").env("BUILDLOCK_ETCD_USER", "ci");
    keep(by_file.env("BUILDLOCK_ETCD_PASSWORD_FILE", &file).run()).assert_code(0);
    // Tokens last for a second here, and a member that is started again knows none of them.
    let build = as_ci(site.ticking("a", "200"), SECRET).start();
    site.wait_for_tick("a");
    let waiter = as_ci(site.on_second_host(site.ticking("b", "1")), SECRET).start();
    waiter.wait_for_stderr("waiting for");
    site.cluster.kill(0);
    site.cluster.restart(0);
    site.cluster.wait_until_healthy();
    keep(build.wait()).assert_code(0);
    keep(waiter.wait()).assert_code(0);
    assert!(site.ticks("b").is_empty());
    site.assert_nothing_left();
    assert!(!said.contains(SECRET), "{said}");

    let user_in_address = site.store.replace("etcd://", &format!("etcd://ci:{SECRET}@"));
    let refused = site.f.docker_build("env:c").env("BUILDLOCK_STORE", user_in_address).run();
    assert_ne!(refused.status.code(), Some(0), "{refused}");
    refused.assert_no_stderr(SECRET).assert_stderr("BUILDLOCK_ETCD_USER");
}

#[test]
fn certificates_are_asked_for_and_checked() {
    let plan = Plan { members: 1, secure: true, ..Plan::default() };
    let Some(site) = own_site(plan, "5s") else { return };
    let file = |name: &str| site.cluster.file(name);
    let with = |ca: &str, tag: &str| {
        site.docker_build(tag)
            .env("BUILDLOCK_ETCD_CACERT", file(ca))
            .env("BUILDLOCK_ETCD_CERT", file("client.pem"))
            .env("BUILDLOCK_ETCD_KEY", file("client.key"))
    };
    let plain = site.store.replace("etcds://", "etcd://");
    let plain = site.f.docker_build("env:b").env("BUILDLOCK_STORE", plain).start();
    with("ca.pem", "env:a").run().assert_code(0);
    let wrong = with("other-ca.pem", "env:b").run();
    wrong.assert_code(125).assert_stderr_matches("(?i)certificate");
    let unknown = site.docker_build("env:b").run();
    unknown.assert_code(125).assert_stderr_matches("(?i)certificate");
    let nobody = site.docker_build("env:b").env("BUILDLOCK_ETCD_CACERT", file("ca.pem")).run();
    nobody.assert_code(125).assert_stderr_matches("(?i)certificate");
    for refused in [wrong, unknown, nobody] {
        assert!(refused.elapsed < Duration::from_secs(5), "{refused}");
    }
    let missing = with("none.pem", "env:b").run();
    missing.assert_code(125).assert_stderr("none.pem");
    // Two hosts, encrypted.
    site.f.hold_builds();
    let first = with("ca.pem", "env:c").start();
    site.f.wait_for_builds(2);
    let waiter = site.on_second_host(with("ca.pem", "env:c")).start();
    waiter.wait_for_stderr("waiting for");
    site.f.release_builds();
    first.wait().assert_code(0);
    waiter.wait().assert_code(0);
    assert_eq!(site.f.build_count("env:c"), 1);
    plain.wait().assert_code(125);
    assert_eq!(site.f.build_count("env:b"), 0);
    site.assert_nothing_left();
}

#[test]
fn calls_that_have_ended_leave_no_lease_and_no_key() {
    let plan = Plan { members: 1, ..Plan::default() };
    let Some(site) = own_site(plan, "1m") else { return };
    let calls: Vec<_> = (0..6).map(|_| site.docker_build("env:abc").start()).collect();
    for call in ended(calls) {
        call.assert_code(0);
    }
    let words = ["--lock=x", "--cache=c", "--", "docker", "build", "-t", "env:b", "."];
    site.buildlock(&words).run().assert_code(0);
    // The image is there.
    site.ticking("a", ENDLESS).run().assert_code(0);
    let first = site.buildlock(&["-t", "env:d", "--", "ticking", "a", ENDLESS, "env:d"]).start();
    site.wait_for_tick("a");
    let late = site.buildlock(&["-w1s", "-t", "env:d", "--", "true"]).run();
    late.assert_code(124);
    let waiter = site.buildlock(&["-t", "env:d", "--", "true"]).start();
    waiter.wait_for_stderr("waiting for");
    waiter.signal("TERM");
    waiter.wait().assert_signal(15);
    let missing = site.buildlock(&["-t", "env:e", "--", "true"]).run();
    missing.assert_code(125);
    for reader in [&["status"][..], &["cache", "ls"], &["prune"]] {
        site.buildlock(reader).run().assert_code(0);
    }
    assert_eq!(site.cluster.leases(), [site.lease("env:d")]);
    first.signal("INT");
    first.wait().assert_signal(2);
    assert_eq!(site.cluster.leases(), [""; 0]);
    assert_eq!(site.cluster.keys("test"), [""; 0]);
    // But how a build failed is kept for a while, for those who waited for it.
    site.buildlock(&["-t", "env:f", "--", "false"]).run().assert_code(1);
    assert_eq!(site.keys().iter().filter(|key| key.contains("/locks/")).count(), 0);
    assert_eq!(site.cluster.leases().len(), 1);
}
