//! A site: a fixture with a store in a cluster, and what tests of it share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, Plan};
use crate::support::buildlock_path;
use crate::support::{Finished, Fixture, Invocation, Running, sha256};

/// The shortest time to live that is allowed.
pub(crate) const TTL: Duration = Duration::from_secs(5);
/// Less than that, so waiting for a lease to run out takes longer.
pub(crate) const SOON: Duration = Duration::from_secs(4);

/// A fixture, and a prefix in a cluster that no other test uses.
pub(crate) struct Site {
    pub(crate) f: Fixture,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) store: String,
    pub(crate) prefix: String,
}

/// Keeps tests that start many processes apart from tests that measure short times.
pub(crate) fn takes_the_machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a site in the cluster shared by all tests that do not break it.
pub(crate) fn site() -> Option<Site> {
    Some(Site::new(shared_cluster()?, "5s"))
}

pub(crate) fn shared_cluster() -> Option<Arc<Cluster>> {
    static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut shared = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = shared.upgrade() {
        return Some(cluster);
    }
    let new = Arc::new(Cluster::start(Plan::default())?);
    *shared = Arc::downgrade(&new);
    Some(new)
}

/// Returns a site in a cluster of its own.
pub(crate) fn own_site(plan: Plan<'_>, ttl: &str) -> Option<Site> {
    Some(Site::new(Arc::new(Cluster::start(plan)?), ttl))
}

/// A build command, `ticking NAME TIMES TAG`, that writes to `ticks` every 20 ms and makes its image
/// at the end. It ignores TERM if STUBBORN is set.
pub(crate) const TICKING: &str = r#"#!/bin/sh
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
pub(crate) const ENDLESS: &str = "100000";

impl Site {
    pub(crate) fn new(cluster: Arc<Cluster>, ttl: &str) -> Self {
        let f = Fixture::new();
        f.install_script("ticking", TICKING);
        std::os::unix::fs::symlink(buildlock_path(), f.path("bin/buildlock")).unwrap();
        let (store, prefix) = cluster.store(ttl);
        Site { f, cluster, store, prefix }
    }

    pub(crate) fn buildlock(&self, words: &[&str]) -> Invocation<'_> {
        self.f.buildlock(words).env("BUILDLOCK_STORE", &self.store)
    }

    pub(crate) fn docker_build(&self, tag: &str) -> Invocation<'_> {
        self.f.docker_build(tag).env("BUILDLOCK_STORE", &self.store)
    }

    /// Prepares `buildlock -t env:abc -- ticking NAME TIMES env:abc`.
    pub(crate) fn ticking(&self, name: &str, times: &str) -> Invocation<'_> {
        self.buildlock(&["-t", "env:abc", "--", "ticking", name, times, "env:abc"])
    }

    /// Moves a call to the second host, which has its own lock folder.
    pub(crate) fn on_second_host<'f>(&'f self, invocation: Invocation<'f>) -> Invocation<'f> {
        invocation.env("BUILDLOCK_DIR", self.f.path("locks-of-the-second-host"))
    }

    pub(crate) fn wait_for_tick(&self, name: &str) {
        self.f.wait_for(&format!("a tick of {name}"), || !self.ticks(name).is_empty());
    }

    /// Returns the times of a build's ticks, in nanoseconds since 1970.
    pub(crate) fn ticks(&self, name: &str) -> Vec<u128> {
        let lines = self.f.lines("ticks");
        let words = lines.iter().filter_map(|line| line.split_once(' '));
        let own = words.filter(|(who, _)| *who == name);
        // The last line may be incomplete.
        own.filter_map(|(_, when)| when.parse().ok()).collect()
    }

    /// Asserts that both builds ran, the first one ending before the other began. Returns the time
    /// between them.
    pub(crate) fn assert_apart(&self, first: &str, then: &str) -> Duration {
        let (first, then) = (self.ticks(first), self.ticks(then));
        let (last, next) = (*first.last().unwrap(), then[0]);
        assert!(last < next, "{} ms of overlap\n{}", (last - next) / 1_000_000, self.f.scene());
        Duration::from_nanos((next - last).try_into().unwrap())
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.cluster.keys(&self.prefix)
    }

    /// Returns the keys of an image's holder and waiters.
    pub(crate) fn keys_of(&self, tag: &str) -> Vec<String> {
        let folder = format!("locks/image-locks/{}/", sha256(tag));
        self.keys().into_iter().filter(|key| key.contains(&folder)).collect()
    }

    /// Returns the lease of an image's holder, as a hexadecimal number.
    pub(crate) fn lease(&self, tag: &str) -> String {
        let keys = self.keys_of(tag);
        assert_eq!(keys.len(), 1, "{keys:?}");
        keys[0].rsplit('/').next().unwrap().to_owned()
    }

    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.keys(), [""; 0]);
    }

    pub(crate) fn status(&self) -> Vec<Value> {
        let done = self.buildlock(&["status", "--json"]).run();
        done.assert_code(0);
        serde_json::from_slice(&done.stdout).unwrap()
    }
}

/// Adds a user name and password, and logs everything.
pub(crate) fn as_ci<'f>(call: Invocation<'f>, password: &str) -> Invocation<'f> {
    call.env("BUILDLOCK_ETCD_USER", "ci")
        .env("BUILDLOCK_ETCD_PASSWORD", password)
        .env("BUILDLOCK_LOG", "trace")
}

pub(crate) fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

pub(crate) fn ended(running: Vec<Running<'_>>) -> Vec<Finished> {
    running.into_iter().map(Running::wait).collect()
}

pub(crate) fn assert_lost(done: &Finished) {
    done.assert_code(125).assert_stderr("the lock ran out");
}
