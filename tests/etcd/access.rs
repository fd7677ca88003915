//! Servers that refuse, and access to a cluster.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use crate::cluster::{Cluster, Plan};
use crate::member::dead_port;
use crate::site::{ENDLESS, SOON, as_ci, ended, own_site};
use crate::support::{Finished, Fixture};

#[test]
fn cluster_that_cannot_be_reached_is_an_error() {
    let f = Fixture::new();
    let port = dead_port();
    let store = format!("etcd://127.0.0.1:{port}/p?ttl=5s");
    let call = f.docker_build("env:abc").env("BUILDLOCK_STORE", &store).start();
    let status = f.buildlock(["status"]).env("BUILDLOCK_STORE", &store).start();
    for done in [call.wait(), status.wait()] {
        done.assert_code(125).assert_stderr(&format!("127.0.0.1:{port}")).assert_stderr("reached");
    }
    assert_eq!(f.build_count("env:abc"), 0);
}

#[test]
fn waiter_reports_a_cluster_that_is_gone_at_its_deadline() {
    let stop_during_a_wait = |stop: fn(&Cluster, usize), limit: u64| {
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
        scope.spawn(|| stop_during_a_wait(Cluster::kill, 4));
        scope.spawn(|| stop_during_a_wait(Cluster::pause, 5));
        scope.spawn(|| stop_during_a_wait(Cluster::pause, 13));
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
fn server_that_is_not_etcd_is_an_error() {
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
    // Tokens last for a second here, and a restarted member knows none of them.
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
    // Two hosts over TLS.
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
    // The image is present.
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
    // The end of a failed build is kept for a while, for the callers that waited for it.
    site.buildlock(&["-t", "env:f", "--", "false"]).run().assert_code(1);
    assert_eq!(site.keys().iter().filter(|key| key.contains("/locks/")).count(), 0);
    assert_eq!(site.cluster.leases().len(), 1);
}
