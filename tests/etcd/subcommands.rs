//! Subcommands, and keys that were not written by buildlock.

use std::fs;

use serde_json::Value;

use crate::site::{ENDLESS, site};
use crate::support::sha256;

#[test]
fn status_shows_locks_of_all_hosts() {
    let Some(site) = site() else { return };
    assert_eq!(site.status(), [Value::Null; 0]);
    site.f.hold_builds();
    let first = site.docker_build("env:abc").start();
    site.f.wait_for_builds(1);
    let waiter = site.buildlock(&["--force", "-t", "env:abc", "--", "true"]).start();
    site.f.wait_for("a waiter in the queue", || site.keys_of("env:abc").len() == 2);
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
fn garbage_in_the_place_of_a_holder_is_waited_for_and_does_no_harm() {
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
    // Other keys in the lock's folder are ignored.
    for name in ["x", "", "w", "x/0"] {
        site.cluster.etcdctl(&["put", &format!("{folder}/{name}"), "garbage"]);
    }
    let first = site.ticking("a", ENDLESS).start();
    site.wait_for_tick("a");
    let waiter = site.buildlock(&["--force", "-t", "env:abc", "--"]);
    let waiter = waiter.args(["ticking", "b", "1", "env:abc"]).start();
    site.f.wait_for("a waiter in the queue", || site.keys_of("env:abc").len() == 6);
    first.signal("TERM");
    first.wait().assert_signal(15);
    waiter.wait().assert_code(0);
    // The record of a warm cache may be garbage, too.
    fs::write(site.f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let memory = format!("/{}/memories/cache-locks/{}", site.prefix, sha256("cargo"));
    site.cluster.etcdctl(&["put", &memory, "garbage"]);
    let words = ["--cache=cargo=Cargo.lock", "--", "docker", "build", "-t", "env:c", "."];
    site.buildlock(&words).run().assert_code(0).assert_stderr("cache=cargo cold");
}
