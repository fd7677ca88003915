//! Two hosts, one tag: two real engines, one real registry, and locks in a real cluster of etcd.
//!
//! The second host is an engine in a network of its own. The lock and the image need one name for
//! the registry, so in each network a program serves the same storage at the same address.

use std::path::PathBuf;

use crate::cluster::{Cluster, Plan};
use crate::support::engine::{SecondEngine, Site, count, events, for_one_client, skip};
use crate::support::registry::{Front, Registry};
use crate::support::{Finished, Gate, Invocation};

/// Everything that two hosts have.
struct Hosts<'s> {
    site: &'s Site,
    registry: Registry,
    // Dropped before the engine whose network it uses.
    _front: Front,
    second: SecondEngine,
    cluster: Cluster,
    store: String,
}

/// A lease that lasts on a machine that is busy with two engines.
const LONG: &str = "20s";
/// The shortest lease, for a test that waits for its end.
const SHORT: &str = "5s";

/// Runs a test with two hosts, whose locks have leases of this length.
fn with_two_hosts(lease: &str, test: impl Fn(&Hosts<'_>) + Sync) {
    for_one_client(|site| {
        let Some(registry) = Registry::start() else {
            return skip("docker-registry is not installed");
        };
        let Some(cluster) = Cluster::start(Plan::default()) else {
            return skip("etcd is not installed");
        };
        match SecondEngine::start() {
            Ok(second) => {
                let _front = registry.also_in_network_of(second.pid());
                let (store, _) = cluster.store(lease);
                test(&Hosts { site, registry, _front, second, cluster, store });
            }
            Err(why) => skip(why),
        }
    });
}

impl Hosts<'_> {
    /// Returns a tag of the registry. The image that has it on the first engine in the end is
    /// removed.
    fn tag(&self, name: &str) -> String {
        let tag = format!("{}/{}:1", self.registry.address(), self.site.name(name));
        self.site.remove_at_the_end(&tag);
        tag
    }

    /// Returns the file in which builds note their start and end.
    fn notes(&self) -> PathBuf {
        self.site.f.path("builds")
    }

    /// Returns a shell command that builds an image, pushes it, and notes when. Each host's image
    /// differs.
    fn build_and_push(&self, tag: &str, host: usize) -> String {
        let context = self.site.context("FROM scratch\nARG BY\nLABEL by=$BY\nCOPY file /\n");
        format!(
            "set -e; echo begin-{host} >>{notes}; docker build -q --build-arg BY=$$ -t {tag} {} >&2; \
             docker push -q {tag} >&2; echo end-{host} >>{notes}",
            context.display(),
            notes = self.notes().display(),
        )
    }

    /// Prepares `buildlock -t TAG -- sh -c COMMAND` on a host: 0 or 1.
    fn on(&self, host: usize, options: &[&str], tag: &str, command: &str) -> Invocation<'_> {
        let common = ["--store", &self.store, "--check", "registry", "-t", tag];
        let call = self.site.buildlock(common).args(options).args(["--", "sh", "-c", command]);
        // The two hosts do not share a lock folder.
        let folder = self.site.f.path(format!("locks-of-host-{host}"));
        let call = call.env("BUILDLOCK_DIR", folder);
        if host == 0 { call } else { call.env("DOCKER_HOST", self.second.endpoint()) }
    }

    fn noted(&self) -> Vec<String> {
        self.site.f.lines("builds")
    }
}

#[test]
fn two_hosts_build_and_push_one_tag_once() {
    with_two_hosts(LONG, |hosts| {
        let tag = hosts.tag("one");
        let calls = (0..50).map(|n| {
            let host = n % 2;
            hosts.on(host, &[], &tag, &hosts.build_and_push(&tag, host)).start()
        });
        let calls: Vec<_> = calls.collect();
        let ended: Vec<Finished> = calls.into_iter().map(|call| call.wait()).collect();
        for call in &ended {
            call.assert_code(0);
        }
        assert_eq!(hosts.noted().len(), 2, "{:?}", hosts.noted());
        assert!(hosts.registry.has(&tag));
        assert_eq!((count(&ended, "building"), count(&ended, "present")), (1, 49));
        // The other host finds it in the registry, which is asked instead of the engine.
        let builder: usize = hosts.noted()[0].strip_prefix("begin-").unwrap().parse().unwrap();
        let skipped = hosts.on(1 - builder, &[], &tag, "exit 9").run();
        skipped.assert_code(0).assert_stderr("present");
        let pulled = hosts.site.program("docker").args(["pull", "-q", &tag]);
        let pulled = match builder {
            0 => pulled.env("DOCKER_HOST", hosts.second.endpoint()),
            _ => pulled,
        };
        pulled.run().assert_code(0);
    });
}

#[test]
fn waiting_host_names_the_one_that_builds() {
    with_two_hosts(LONG, |hosts| {
        let tag = hosts.tag("named");
        let gate = Gate::new(&hosts.site.f, "named.gate");
        let build = hosts.build_and_push(&tag, 0);
        let slow = format!("read _ <{}; {build}", hosts.site.f.path("named.gate").display());
        let builder = hosts.on(0, &[], &tag, &slow).start();
        builder.wait_for_stderr("building");
        let waiter = hosts.on(1, &[], &tag, "exit 9").start();
        waiter.wait_for_stderr("waiting");
        let said = events(&waiter.stderr());
        let waiting = said.iter().find(|event| event["event"] == "waiting").unwrap();
        assert_eq!(waiting["holder"]["pid"], builder.pid(), "{waiting}");
        assert!(waiting["holder"]["host"].is_string(), "{waiting}");
        gate.open();
        builder.wait().assert_code(0);
        waiter.wait().assert_code(0).assert_stderr("present");
    });
}

#[test]
fn tag_of_a_host_whose_build_was_killed_goes_to_the_other_host() {
    with_two_hosts(SHORT, |hosts| {
        let tag = hosts.tag("killed");
        let builder = hosts.on(0, &[], &tag, "sleep 1000").start();
        builder.wait_for_stderr("building");
        let next = hosts.on(1, &[], &tag, &hosts.build_and_push(&tag, 1)).start();
        next.wait_for_stderr("waiting");
        builder.signal("KILL");
        next.wait().assert_code(0);
        assert_eq!(hosts.noted(), ["begin-1", "end-1"]);
        assert!(hosts.registry.has(&tag));
        assert_eq!(hosts.cluster.leases(), Vec::<String>::new());
    });
}

#[test]
fn cache_that_hosts_share_by_name_is_warm_for_each_engine_by_itself() {
    with_two_hosts(LONG, |hosts| {
        std::fs::write(hosts.site.f.work_dir().join("Cargo.lock"), "one\n").unwrap();
        let cache = ["--cache", "cargo=Cargo.lock"];
        for (host, name, said) in [
            (0, "a", "cache=cargo cold"),
            (0, "b", "cache=cargo warm"),
            (1, "c", "cache=cargo cold"),
            (1, "d", "cache=cargo warm"),
            (0, "e", "cache=cargo warm"),
        ] {
            let tag = hosts.tag(name);
            let built = hosts.on(host, &cache, &tag, &hosts.build_and_push(&tag, host)).run();
            built.assert_code(0).assert_stderr(said);
        }
    });
}
