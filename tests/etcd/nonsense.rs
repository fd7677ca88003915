//! Servers whose answers make no sense. Such a server may refuse a lock. It must neither make
//! buildlock panic nor make it rely on a longer lease than it requested.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::Plan;
use crate::member::{answering, generous};
use crate::site::{ENDLESS, TICKING, TTL, assert_lost, own_site};
use crate::support::{Finished, Fixture, sha256};

/// Runs a build whose only member answers as [`generous`], with `change` applied.
fn build(requests: usize, change: impl Fn(&str, &mut Value) + Send + 'static) -> Finished {
    build_with("5s", requests, change)
}

/// As [`build`], with a time to live, which also bounds how long an answer may take.
fn build_with(
    ttl: &str,
    requests: usize,
    change: impl Fn(&str, &mut Value) + Send + 'static,
) -> Finished {
    let f = Fixture::new();
    f.install_script("ticking", TICKING);
    let port = answering(requests, move |path| {
        let mut answer = generous("1", path);
        change(path, &mut answer);
        answer
    });
    let store = format!("etcd://127.0.0.1:{port}/p?ttl={ttl}");
    let words = ["-t", "env:abc", "--", "ticking", "a", ENDLESS, "env:abc"];
    let done = f.buildlock(words).env("BUILDLOCK_STORE", store).run();
    done.assert_no_stderr("panicked");
    done
}

#[test]
fn lease_is_never_believed_to_be_longer_than_was_asked_for() {
    let leases = [json!("9000000000000000000"), json!(9_000_000_000_000_000_000_u64), json!(3600)];
    std::thread::scope(|scope| {
        for ttl in leases {
            scope.spawn(move || {
                // After some renewals, the member no longer answers.
                let done = build(16, move |path, answer| match path {
                    "/v3/lease/grant" => answer["TTL"] = ttl.clone(),
                    "/v3/lease/keepalive" => answer["result"]["TTL"] = ttl.clone(),
                    _ => {}
                });
                assert_lost(&done);
                assert!(done.elapsed < 4 * TTL, "{done}");
            });
        }
    });
}

#[test]
fn lease_that_makes_no_sense_is_an_error() {
    let leases = [json!(0), json!("-1"), json!("soon"), json!(1.5), json!({}), json!(u64::MAX)];
    for ttl in leases {
        let shown = ttl.to_string();
        let done = build(usize::MAX, move |path, answer| {
            if path == "/v3/lease/grant" {
                answer["TTL"] = ttl.clone();
            }
        });
        let text = format!("TTL is {shown}");
        done.assert_code(125).assert_stderr("makes no sense").assert_stderr(&text);
        assert!(done.elapsed < TTL, "{done}");
    }
}

#[test]
fn renewal_that_makes_no_sense_ends_the_build_in_time() {
    std::thread::scope(|scope| {
        for ttl in [json!("-9000000000000000000"), json!("soon"), json!(u64::MAX), json!(0)] {
            scope.spawn(move || {
                let done = build(usize::MAX, move |path, answer| {
                    if path == "/v3/lease/keepalive" {
                        answer["result"]["TTL"] = ttl.clone();
                    }
                });
                assert_lost(&done);
                assert!(done.elapsed < 2 * TTL, "{done}");
            });
        }
    });
}

#[test]
fn numbers_and_keys_that_make_no_sense_are_errors() {
    let max = i64::MAX.to_string();
    let range = |kv: Value| json!([{ "response_range": { "kvs": [kv] } }]);
    type Change = Box<dyn Fn(&str, &mut Value) + Send>;
    let in_grant = |name: &'static str, value: Value| -> Change {
        Box::new(move |path, answer| {
            if path == "/v3/lease/grant" {
                answer[name] = value.clone();
            }
        })
    };
    let in_txn = |change: Box<dyn Fn(&mut Value) + Send>| -> Change {
        Box::new(move |path, answer| {
            if path == "/v3/kv/txn" {
                change(answer);
            }
        })
    };
    let revision =
        |value: Value| in_txn(Box::new(move |answer| answer["header"]["revision"] = value.clone()));
    let kv = |kv: Value| {
        let responses = range(kv);
        in_txn(Box::new(move |answer| answer["responses"] = responses.clone()))
    };
    let changes = [
        ("ID", in_grant("ID", json!("0"))),
        ("ID", in_grant("ID", json!("-7"))),
        ("ID", in_grant("ID", json!("seven"))),
        ("revision", revision(json!(max))),
        ("revision", revision(json!("-1"))),
        ("revision", revision(json!(1e300))),
        ("create_revision", kv(json!({ "create_revision": "0" }))),
        ("create_revision", kv(json!({ "create_revision": max }))),
        ("create_revision", kv(json!({ "create_revision": [] }))),
        ("key", kv(json!({ "key": "***", "create_revision": "5" }))),
        ("value", kv(json!({ "value": 7, "create_revision": "5" }))),
    ];
    for (what, change) in changes {
        let done = build(usize::MAX, change);
        done.assert_code(125).assert_stderr("makes no sense").assert_stderr(what);
        assert!(done.elapsed < TTL, "{done}");
    }
}

#[test]
fn answer_that_is_too_large_is_an_error() {
    // The test's own server needs seconds to write this much on a slow machine.
    const LEASE: Duration = Duration::from_secs(60);
    let done = build_with("60s", usize::MAX, |path, answer| {
        if path == "/v3/kv/txn" {
            answer["more"] = "x".repeat(17 << 20).into();
        }
    });
    done.assert_code(125).assert_stderr("makes no sense").assert_stderr("MiB");
    assert!(done.elapsed < LEASE, "{done}");
}

#[test]
fn message_of_a_server_is_shown_in_part_and_without_control_characters() {
    let done = build(usize::MAX, |_, answer| {
        let message = format!("no\x1b[2J\u{202e} {}", "x".repeat(1 << 20));
        *answer = json!({ "error": message, "message": message, "code": 3 });
    });
    done.assert_code(125).assert_stderr("etcd refuses: no");
    done.assert_no_stderr("\x1b[2J").assert_no_stderr("\u{202e}");
    assert!(done.stderr.len() < 4096, "{} bytes", done.stderr.len());
}

#[test]
fn keys_beyond_the_first_hundred_are_looked_after_as_well() {
    let plan = Plan { members: 1, ..Plan::default() };
    let Some(site) = own_site(plan, "5s") else { return };
    let locks: Vec<String> = (0..120).map(|n| format!("lock-{n:03}")).collect();
    let call = site.buildlock(&["-t", "env:abc"]);
    let call = call.args(locks.iter().map(|name| format!("--lock={name}")));
    let build = call.args(["--", "ticking", "a", ENDLESS, "env:abc"]).start();
    site.wait_for_tick("a");
    // All keys exist, so the build continues.
    site.f.wait_for("more of the build than a lease", || site.ticks("a").len() > 300);
    let folder = format!("locks/named-locks/{}/", sha256(&locks[119]));
    let keys = site.keys();
    let last = keys.iter().find(|key| key.contains(&folder)).unwrap();
    let deleted = std::time::Instant::now();
    site.cluster.etcdctl(&["del", last]);
    assert_lost(&build.wait());
    assert!(deleted.elapsed() < TTL + Duration::from_secs(1), "{:?}", deleted.elapsed());
}
