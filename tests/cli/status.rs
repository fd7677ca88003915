//! `buildlock status` shows locks without touching them; `buildlock prune` removes idle lock files.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{
    Finished, Fixture, Gate, buildlock_path, has, holders, install_stubborn, is_alive, is_free,
    python, skip, waiters,
};

const TAG: &str = "env:abc";

/// Returns the entries of `buildlock status --json`.
fn json(f: &Fixture) -> Vec<Value> {
    let status = f.buildlock(["status", "--json"]).run();
    status.assert_code(0);
    match serde_json::from_slice(&status.stdout) {
        Ok(Value::Array(entries)) => entries,
        other => panic!("no array: {other:?}\n{status}"),
    }
}

/// Returns the table.
fn table(f: &Fixture) -> String {
    let status = f.buildlock(["status"]).run();
    status.assert_code(0);
    String::from_utf8(status.stdout).unwrap()
}

/// Returns the lines of the table that contain this word.
fn rows<'a>(table: &'a str, word: &str) -> Vec<&'a str> {
    table.lines().filter(|line| line.contains(word)).collect()
}

#[test]
fn status_without_a_lock_folder_is_empty_and_makes_none() {
    let f = Fixture::new();
    assert_eq!(json(&f), Vec::<Value>::new());
    assert_eq!(rows(&table(&f), ".lock"), Vec::<&str>::new());
    assert!(!f.lock_dir().exists());
}

#[test]
fn status_is_empty_when_nothing_is_held() {
    let f = Fixture::new();
    f.docker_build(TAG).run().assert_code(0);
    f.docker_build("env:b").env("STANDIN_BUILD_STATUS", "3").run().assert_code(3);
    assert_eq!(json(&f), Vec::<Value>::new());
    assert_eq!(rows(&table(&f), "env:"), Vec::<&str>::new());
}

#[test]
fn status_shows_each_held_lock_with_its_holder_and_waiters() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let other = f.docker_build("env:other").start();
    f.wait_for_builds(2);
    let waiting: Vec<_> = (0..3).map(|_| f.docker_build(TAG).start()).collect();
    f.wait_for_waiters(&f.lock_file(TAG), 3);

    let mut entries = json(&f);
    entries.sort_by_key(|entry| entry["tag"].to_string());
    assert_eq!(entries.len(), 2, "{entries:?}");
    let user = f.program("id").arg("-un").run().stdout_line().to_owned();
    let host = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    for (entry, tag, build, n) in
        [(&entries[0], TAG, &first, 3), (&entries[1], "env:other", &other, 0)]
    {
        assert_eq!(entry["tag"], tag, "{entry}");
        assert_eq!(entry["lock"], f.lock_file(tag).to_str().unwrap(), "{entry}");
        assert_eq!(entry["waiters"], n, "{entry}");
        let holder = &entry["holder"];
        assert_eq!(holder["pid"], build.pid(), "{entry}");
        assert_eq!(holder["user"], user.as_str(), "{entry}");
        assert_eq!(holder["host"], host.as_str(), "{entry}");
        assert_eq!(holder["command"], format!("docker build -t {tag} .").as_str(), "{entry}");
        humantime::parse_rfc3339_weak(holder["since"].as_str().unwrap()).unwrap();
    }

    let table = table(&f);
    for (tag, build, n) in [(TAG, &first, "3"), ("env:other", &other, "0")] {
        let found = rows(&table, tag);
        assert_eq!(found.len(), 1, "{tag} has to have one line:\n{table}");
        let words: Vec<&str> = found[0].split_whitespace().collect();
        assert!(found[0].contains(&build.pid().to_string()), "{table}");
        assert!(words.contains(&n), "{n} waiters: {table}");
        assert!(found[0].contains(&format!("docker build -t {tag} .")), "{table}");
    }

    f.release_builds();
    first.wait().assert_code(0);
    other.wait().assert_code(0);
    for one in waiting {
        one.wait().assert_code(0);
    }
    assert_eq!(json(&f), Vec::<Value>::new());
}

#[test]
fn status_shows_several_tags_of_one_build_and_named_locks() {
    let f = Fixture::new();
    f.hold_builds();
    let words = ["-t", "env:a", "-t", "env:b", "--lock", "storage", "--"];
    let build = f.buildlock(words).args(["docker", "build", "-t", "env:a", "-t", "env:b", "."]);
    let build = build.start();
    f.wait_for_builds(2);
    let entries = json(&f);
    let locks: Vec<&str> = entries.iter().filter_map(|entry| entry["lock"].as_str()).collect();
    let files = [f.lock_file("env:a"), f.lock_file("env:b"), f.named_lock_file("storage")];
    for file in &files {
        assert!(locks.contains(&file.to_str().unwrap()), "{file:?} is not in {entries:?}");
    }
    assert_eq!(entries.len(), 3, "{entries:?}");
    assert_eq!(rows(&table(&f), "storage").len(), 1);
    f.release_builds();
    build.wait().assert_code(0);
}

#[test]
fn status_shows_a_foreign_holder() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    f.buildlock(["path", TAG]).run().assert_code(0);
    let foreign = f.hold_lock(&lock);
    let waiter = f.docker_build(TAG).start();
    f.wait_for_waiters(&lock, 1);
    let entries = json(&f);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0]["lock"], lock.to_str().unwrap());
    assert_eq!(entries[0]["waiters"], 1);
    let table = table(&f);
    assert!(table.contains(&foreign.pid().to_string()), "{table}");
    drop(foreign);
    waiter.wait().assert_code(0);
}

#[test]
fn status_does_not_take_a_foreign_holder_for_the_one_in_the_record() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let _foreign = f.hold_lock(&lock);
    let record = r#"{"pid":1,"user":"mallory","host":"elsewhere","tag":"env:abc","command":"evil","since":"2024-01-01T00:00:00Z","version":"0.1.0"}"#;
    fs::write(&lock, record).unwrap();
    let entries = json(&f);
    assert_eq!(entries.len(), 1, "{entries:?}");
    for wrong in ["mallory", "elsewhere", "evil"] {
        assert!(!entries[0].to_string().contains(wrong), "{entries:?}");
        assert!(!table(&f).contains(wrong), "{}", table(&f));
    }
}

#[test]
fn folder_in_a_record_is_a_claim_unless_the_holder_runs_there() {
    let f = Fixture::new();
    f.hold_builds();
    let build = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let holder = || json(&f)[0]["holder"].clone();
    let true_one = holder();
    assert_eq!(true_one["directory"], f.work_dir().to_str().unwrap(), "{true_one}");
    // More than once: the kernel's list may miss a line while other locks come and go.
    f.wait_for("a record that the kernel confirms", || holder()["claimed"] != true);

    let lock = f.lock_file(TAG);
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&lock).unwrap()).unwrap();
    record["directory"] = "/elsewhere".into();
    fs::write(&lock, format!("{record}\n")).unwrap();
    assert_eq!(holder()["claimed"], true, "{}", holder());

    let waiter = f.docker_build(TAG).start();
    f.wait_for_waiters(&lock, 1);
    f.release_builds();
    build.wait().assert_code(0);
    let waiter = waiter.wait();
    waiter.assert_code(0).assert_stderr("ran, by its own account, docker build");
    waiter.assert_stderr("(in /elsewhere)");
}

#[test]
fn status_leaves_out_stale_records_of_free_locks() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    for pid in [4_194_304, std::process::id()] {
        let record = serde_json::json!({
            "pid": pid, "user": "alice", "host": "here", "tag": TAG, "command": "docker build",
            "since": "2024-01-01T00:00:00Z", "version": "0.1.0",
        });
        fs::write(&lock, format!("{record}\n")).unwrap();
        assert_eq!(json(&f), Vec::<Value>::new());
        assert_eq!(rows(&table(&f), "alice"), Vec::<&str>::new());
    }
}

/// Does this say that the holder has ended, and that a part of it holds the lock?
fn says_orphan(text: &str) -> bool {
    ["orphan", "left behind", "\"gone\":true", "\"ended\":true"].iter().any(|w| text.contains(w))
}

#[test]
fn status_shows_an_orphan_that_holds_the_lock() {
    let f = Fixture::new();
    let gate = install_stubborn(&f);
    let lock = f.lock_file(TAG);
    let build = f.buildlock(["-t", TAG, "--kill-after", "0", "--", "stubborn"]).start();
    let stubborn = f.wait_for_pid("stubborn.pid");
    assert!(!says_orphan(&json(&f)[0].to_string()) && !says_orphan(rows(&table(&f), TAG)[0]));
    build.signal("KILL");
    build.wait();
    assert!(is_alive(stubborn) && !is_free(&lock));
    let entries = json(&f);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0]["tag"], TAG);
    assert_eq!(entries[0]["lock"], lock.to_str().unwrap());
    assert!(says_orphan(&entries[0].to_string()), "{entries:?}");
    let table = table(&f);
    assert!(says_orphan(rows(&table, TAG)[0]), "{table}");
    gate.open();
    f.wait_for_death(stubborn);
    f.wait_for("the lock to be free", || holders(&lock).is_empty());
    assert_eq!(json(&f), Vec::<Value>::new());
}

#[test]
fn status_escapes_control_characters_of_records() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let foreign = f.hold_lock(&lock);
    let record = serde_json::json!({
        "pid": foreign.pid(), "user": "a\u{1b}[2Jb", "host": "c\rd", "tag": TAG,
        "command": "make\u{1b}]0;x\u{7}\nenv:evil 1 2 3", "since": "2024-01-01T00:00:00Z\u{9b}5n",
        "version": "0.1.0",
    });
    fs::write(&lock, format!("{record}\n")).unwrap();
    for text in [table(&f), json(&f)[0].to_string()] {
        assert!(text.contains("make"), "{text:?}");
        let odd = text.chars().find(|&c| c.is_control() && c != '\n');
        assert_eq!(odd, None, "{text:?}");
    }
    let table = table(&f);
    assert!(!table.lines().any(|line| line.starts_with("env:evil")), "{table}");
}

#[test]
fn status_never_asks_the_kernel_for_a_lock() {
    if !has("strace") {
        return;
    }
    let f = Fixture::new();
    f.hold_builds();
    f.buildlock(["path", "env:idle"]).run().assert_code(0);
    let build = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let trace = f.path("trace");
    let traced = |words: &[&str]| -> Finished {
        let strace = f.program("strace").args(["-f", "-e", "trace=flock,fcntl", "-o"]).arg(&trace);
        strace.arg(buildlock_path()).args(words).run()
    };
    // Where tracing is forbidden, there is nothing to see.
    if !traced(&["path", TAG]).status.success() {
        skip("needs to trace");
    } else {
        traced(&["status"]).assert_code(0);
        let calls = fs::read_to_string(&trace).unwrap();
        assert!(calls.contains("exited with 0"), "{calls}");
        let locking = |line: &&str| {
            line.contains("flock(") || line.contains("SETLK") || line.contains("GETLK")
        };
        assert_eq!(calls.lines().filter(locking).count(), 0, "{calls}");
    }
    f.release_builds();
    build.wait().assert_code(0);
}

#[test]
fn status_never_makes_another_callers_try_fail() {
    let Some(python) = python() else { return };
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    let gate = Gate::new(&f, "end");
    let script = "
import fcntl, os, select, sys
end = os.open(sys.argv[2], os.O_RDONLY)
tries = failures = 0
while not select.select([end], [], [], 0)[0]:
    lock = os.open(sys.argv[1], os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        failures += 1
    # By itself: whoever lists this process's descriptors delays what close alone would do.
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)
    tries += 1
    if tries == 1:
        open(sys.argv[3], 'w').write('begun\\n')
print('failures', failures)
sys.exit(tries < 100)";
    let tries = f.program(python).args(["-c", script]).arg(&lock).arg(&gate.path);
    let tries = tries.arg(f.path("begun")).start();
    f.wait_for_file("begun");
    for _ in 0..50 {
        f.buildlock(["status"]).run().assert_code(0);
    }
    gate.open();
    tries.wait().assert_code(0).assert_stdout("failures 0\n");
}

#[test]
fn status_reads_files_that_it_may_not_write() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let _foreign = f.hold_lock(&lock);
    // Other files and folders do no harm.
    fs::write(f.lock_dir().join("README"), "hello").unwrap();
    fs::create_dir(f.lock_dir().join("image-locks/folder.lock")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", f.lock_dir().join("image-locks/link.lock")).unwrap();
    assert_eq!(json(&f).len(), 1);
}

#[test]
fn status_with_wrong_usage_ends_with_2() {
    let f = Fixture::new();
    f.buildlock(["status", "--no-such-option"]).run().assert_code(2);
    f.buildlock(["prune", "too", "much"]).run().assert_code(2);
    f.buildlock(["path", "UPPER/case"]).run().assert_code(2);
}

// prune.

#[test]
fn prune_without_a_lock_folder_has_nothing_to_do() {
    let f = Fixture::new();
    f.buildlock(["prune"]).run().assert_code(0);
    assert!(!f.lock_dir().exists());
}

#[test]
fn prune_removes_idle_lock_files_and_the_next_build_works() {
    let f = Fixture::new();
    f.docker_build(TAG).run().assert_code(0);
    f.buildlock(["path", "env:b"]).run().assert_code(0);
    f.buildlock(["path", "--lock", "storage"]).run().assert_code(0);
    assert!(f.lock_files().len() >= 3);
    f.buildlock(["prune"]).run().assert_code(0);
    assert_eq!(f.lock_files(), Vec::<std::path::PathBuf>::new());
    f.docker_build("env:b").run().assert_code(0);
    assert_eq!(f.build_count("env:b"), 1);
}

#[test]
fn prune_leaves_files_alone_that_are_held_or_waited_for() {
    let f = Fixture::new();
    f.hold_builds();
    let build = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let waiter = f.docker_build(TAG).start();
    let foreign = f.hold_lock(&f.lock_file("env:foreign"));
    let shared = f.hold_lock_shared(&f.lock_file("env:shared"));
    f.buildlock(["path", "env:idle"]).run().assert_code(0);
    f.wait_for_waiters(&f.lock_file(TAG), 1);

    f.buildlock(["prune"]).run().assert_code(0);
    for (tag, stays) in [(TAG, true), ("env:foreign", true), ("env:shared", true)]
        .into_iter()
        .chain([("env:idle", false)])
    {
        assert_eq!(f.lock_file(tag).exists(), stays, "{tag}\n{}", f.scene());
    }
    assert_eq!(holders(&f.lock_file(TAG)), [build.pid()]);
    assert_eq!(waiters(&f.lock_file(TAG)), [waiter.pid()]);
    drop((foreign, shared));
    f.release_builds();
    build.wait().assert_code(0).assert_no_stderr("warning");
    waiter.wait().assert_code(0).assert_no_stderr("warning");
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn prune_leaves_alone_what_is_not_its_own() {
    let f = Fixture::new();
    f.buildlock(["path", TAG]).run().assert_code(0);
    let inner = f.lock_dir().join("image-locks");
    let others = [f.lock_dir().join("README"), inner.join("notes.txt"), f.path("victim")];
    for other in &others {
        fs::write(other, "precious").unwrap();
    }
    let link = inner.join(format!("{}.lock", "0".repeat(64)));
    std::os::unix::fs::symlink(f.path("victim"), &link).unwrap();
    // It may report something odd, but does what it can.
    f.buildlock(["prune"]).run();
    for other in &others {
        assert_eq!(fs::read_to_string(other).unwrap(), "precious", "{other:?}");
    }
    assert!(!f.lock_file(TAG).exists());
}

#[test]
fn prune_refuses_a_lock_folder_that_is_a_symlink() {
    let f = Fixture::new();
    let elsewhere = f.path("elsewhere");
    f.buildlock(["path", TAG, "--lock-dir"]).arg(&elsewhere).run().assert_code(0);
    std::os::unix::fs::symlink(&elsewhere, f.lock_dir()).unwrap();
    let prune = f.buildlock(["prune"]).run();
    assert!(!prune.status.success(), "{prune}");
    let name = f.lock_file(TAG).file_name().unwrap().to_owned();
    assert!(Path::new(&elsewhere).join("image-locks").join(name).exists());
}

#[test]
fn prune_beside_many_builds_never_lets_two_overlap() {
    let f = Fixture::new();
    f.install_script(
        "pruning",
        "#!/bin/sh\nwhile [ ! -e \"$STANDIN/stop\" ]; do \"$1\" prune -q || exit 1; \
         echo >>\"$STANDIN/rounds\"; done\n",
    );
    let pruning = f.program("pruning").arg(buildlock_path()).start();
    f.install_script(
        "building",
        "#!/bin/sh\nfor n in 1 2 3 4 5 6; do \"$1\" -q --force -t env:abc -- \
         docker build -t env:abc . || exit 1; done\n",
    );
    let building: Vec<_> =
        (0..6).map(|_| f.program("building").arg(buildlock_path()).start()).collect();
    for one in building {
        one.wait().assert_code(0).assert_no_stderr("warning");
    }
    fs::write(f.path("stop"), "").unwrap();
    pruning.wait().assert_code(0);
    assert!(f.lines("rounds").len() > 5, "it hardly ran");
    assert_eq!(f.build_count(TAG), 36);
    f.assert_no_overlap();
}

#[test]
fn status_shows_a_lock_that_is_shared_by_others() {
    let f = Fixture::new();
    let file = f.lock_file("env:abc");
    let _held = f.hold_lock_shared(&file);
    let shown = f.buildlock(["status"]).run();
    shown.assert_code(0);
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains(&file.display().to_string()),
        "{shown}"
    );
}
