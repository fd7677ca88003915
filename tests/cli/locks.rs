//! The lock: it is flock on a known path, it outlives buildlock but not the build command, and no
//! waiter is left behind.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::support::{
    Fixture, Gate, Invocation, Running, build_that_sees_overlap, buildlock_path, cpu_seconds,
    descriptors, has, holders, install_polite, install_stubborn, is_alive, is_free, kernel_locks,
    number, python, sha256, skip, waiters,
};

const TAG: &str = "env:abc";

/// Prepares a build of [`TAG`] with these options and this build command.
fn command<'f>(f: &'f Fixture, options: &[&str], words: &[&str]) -> Invocation<'f> {
    f.buildlock(["-t", TAG]).args(options).arg("--").args(words)
}

fn assert_no_build_ran_beside(f: &Fixture) {
    assert_eq!(f.lines("overlap"), Vec::<String>::new(), "{}", f.scene());
}

// The path.

#[test]
fn path_is_the_sha256_of_the_canonical_tag() {
    let f = Fixture::new();
    for (spelling, canonical) in [
        ("env", "env:latest"),
        ("env:latest", "env:latest"),
        ("library/env", "env:latest"),
        ("docker.io/library/env", "env:latest"),
        ("docker.io/env", "env:latest"),
        ("index.docker.io/library/env:latest", "env:latest"),
        ("env:abc", "env:abc"),
        ("env:ABC", "env:ABC"),
        ("docker.io/library/env:abc", "env:abc"),
        ("me/env", "me/env:latest"),
        ("docker.io/me/env:1", "me/env:1"),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
        ("ghcr.io/a/b:1.2", "ghcr.io/a/b:1.2"),
        ("localhost/env", "localhost/env:latest"),
        ("localhost:5000/env:abc", "localhost:5000/env:abc"),
    ] {
        let printed = f.buildlock(["path", spelling]).run();
        printed.assert_code(0);
        let wanted = f.lock_file(canonical);
        assert_eq!(printed.stdout, format!("{}\n", wanted.display()).into_bytes(), "{spelling}");
        assert!(wanted.is_file(), "{spelling}: {wanted:?} was not made");
    }
    // Computed by sha256sum, in case the test's own way is wrong.
    assert_eq!(sha256(TAG), "1dba84eb058647a9bd2b8b72086401013998e3ecab53a3857521cd43a8fc4b15");
}

#[test]
fn path_of_a_named_lock_is_beside_those_of_tags() {
    let f = Fixture::new();
    let printed = f.buildlock(["path", "--lock", "storage"]).run();
    printed.assert_code(0);
    let wanted = f.named_lock_file("storage");
    assert_eq!(printed.stdout_line(), wanted.to_str().unwrap());
    assert!(wanted.is_file());
}

#[test]
fn build_takes_the_lock_that_path_prints() {
    let f = Fixture::new();
    f.hold_builds();
    let path = f.buildlock(["path", "docker.io/library/env:abc"]).run().stdout_line().to_owned();
    let build = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    assert_eq!(holders(path.as_ref()), [build.pid()], "{}", f.scene());
    f.release_builds();
    build.wait().assert_code(0);
    assert!(is_free(path.as_ref()));
}

// Other programs.

/// Checks that a try fails and a waiter waits while `holder` holds the lock, and that the waiter
/// builds once the holder is let go.
fn assert_respected(f: &Fixture, holder: Running, gate: &Gate) {
    let lock = f.lock_file(TAG);
    f.wait_for_holder(&lock);
    command(f, &["-w", "0s"], &["docker", "build", "-t", TAG, "."]).run().assert_code(124);
    let waiter = f.docker_build(TAG).start();
    f.wait_for_waiters(&lock, 1);
    assert_eq!(f.build_count(TAG), 0, "{}", f.scene());
    gate.open();
    holder.wait().assert_code(0);
    waiter.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn a_lock_held_by_pythons_flock_is_respected() {
    let Some(python) = python() else { return };
    let f = Fixture::new();
    let gate = Gate::new(&f, "go");
    let path = f.buildlock(["path", TAG]).run().stdout_line().to_owned();
    let script = "
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
os.read(os.open(sys.argv[2], os.O_RDONLY), 1)";
    let holder = f.program(python).args(["-c", script, &path, gate.arg()]).start();
    assert_respected(&f, holder, &gate);
}

#[test]
fn a_lock_held_by_the_flock_program_is_respected() {
    if !has("flock") {
        return;
    }
    let f = Fixture::new();
    let gate = Gate::new(&f, "go");
    let path = f.buildlock(["path", TAG]).run().stdout_line().to_owned();
    let wait = "read _ <\"$STANDIN/go\"";
    let holder = f.program("flock").args([&path, "sh", "-c", wait]).start();
    assert_respected(&f, holder, &gate);
}

#[test]
fn a_lock_held_by_a_shell_on_the_printed_path_is_respected() {
    if !has("flock") {
        return;
    }
    let f = Fixture::new();
    let gate = Gate::new(&f, "go");
    let script = r#"exec 9<"$("$0" path env:abc)"; flock 9 && read _ <"$STANDIN/go""#;
    let holder = f.program("sh").args(["-c", script]).arg(buildlock_path()).start();
    assert_respected(&f, holder, &gate);
}

#[test]
fn python_and_the_flock_program_respect_a_build() {
    let Some(python) = python() else { return };
    if !has("flock") {
        return;
    }
    let f = Fixture::new();
    f.hold_builds();
    let build = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let lock = f.lock_file(TAG);
    let path = lock.to_str().unwrap();

    let script = "
import fcntl, os, sys
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(75)";
    f.program(python).args(["-c", script, path]).run().assert_code(75);
    f.program("flock").args(["-n", path, "true"]).run().assert_code(1);
    let shell = r#"exec 9<"$("$0" path env:abc)"; flock -n 9 || exit 75"#;
    f.program("sh").args(["-c", shell]).arg(buildlock_path()).run().assert_code(75);

    let waiter = f.program("flock").args([path, "sh", "-c", "ls \"$STANDIN/images\""]).start();
    f.wait_for_waiters(&lock, 1);
    f.release_builds();
    build.wait().assert_code(0);
    waiter.wait().assert_code(0).assert_stdout("env:abc\n");
}

// When buildlock is killed.

/// Kills buildlock while its build command runs, of which `stubborn` is a part. No second build may
/// start before `stubborn` is gone.
fn assert_lock_outlives_buildlock(words: &[&str]) {
    let f = Fixture::new();
    let gate = install_stubborn(&f);
    let lock = f.lock_file(TAG);
    // Without a KILL for what goes on, to see whether the lock stays.
    let first = command(&f, &["--kill-after", "0"], words).start();
    let stubborn = f.wait_for_pid("stubborn.pid");
    let command_pid = f.lines("command.pid").first().map(|line| line.parse().unwrap());
    let second = build_that_sees_overlap(&f).start();
    f.wait_for_waiters(&lock, 1);

    first.signal("KILL");
    first.wait().assert_signal(number("KILL"));
    // The process that the death signal ends must be gone before the check.
    if let Some(pid) = command_pid {
        f.wait_for_death(pid);
    }
    assert!(is_alive(stubborn), "{}", f.scene());
    let now = holders(&lock);
    assert!(!now.is_empty() && !now.contains(&second.pid()), "held by {now:?}\n{}", f.scene());
    assert!(waiters(&lock).contains(&second.pid()), "{}", f.scene());
    command(&f, &["-w", "0s"], &["false"]).run().assert_code(124);

    gate.open();
    second.wait().assert_code(0);
    assert_no_build_ran_beside(&f);
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn killed_buildlock_keeps_the_lock_while_a_command_ignores_term() {
    assert_lock_outlives_buildlock(&["stubborn"]);
}

#[test]
fn killed_buildlock_keeps_the_lock_while_a_grandchild_goes_on() {
    let shell = "echo $$ >\"$STANDIN/command.pid\"; stubborn & wait";
    assert_lock_outlives_buildlock(&["sh", "-c", shell]);
}

#[test]
fn killed_buildlock_keeps_the_lock_while_a_command_goes_on_that_closed_its_descriptors() {
    let Some(python) = python() else { return };
    // As sudo does.
    let script = "
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.closerange(3, 100000)
os.execvp('stubborn', ['stubborn'])";
    assert_lock_outlives_buildlock(&[python, "-c", script]);
}

#[test]
fn killed_buildlock_keeps_the_lock_while_a_program_without_its_descriptors_goes_on() {
    let Some(python) = python() else { return };
    // Python closes every descriptor above 2 in what it starts.
    let script = "
import os, subprocess
with open(os.environ['STANDIN'] + '/command.pid', 'w') as file:
    print(os.getpid(), file=file)
subprocess.run(['stubborn'], close_fds=True)";
    assert_lock_outlives_buildlock(&[python, "-c", script]);
}

#[test]
fn killed_buildlock_ends_a_build_command_that_heeds_term_and_the_next_caller_goes_on_at_once() {
    let f = Fixture::new();
    let _gate = install_polite(&f);
    let first = command(&f, &[], &["polite"]).start();
    let polite = f.wait_for_pid("polite.pid");
    let second = build_that_sees_overlap(&f).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);

    let start = Instant::now();
    first.signal("KILL");
    first.wait();
    second.wait().assert_code(0);
    // --kill-after is 10 s by default, and must not have played a part.
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(!is_alive(polite));
    assert_eq!(f.lines("polite.term"), ["term"], "the death signal");
    assert_no_build_ran_beside(&f);
}

#[test]
fn killed_waiter_leaves_the_others_alone() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let waiting = [f.docker_build(TAG).start(), f.docker_build(TAG).start()];
    f.wait_for_waiters(&f.lock_file(TAG), 2);
    let [killed, left] = waiting;
    killed.signal("KILL");
    killed.wait();
    f.release_builds();
    first.wait().assert_code(0);
    left.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

// When the build command leaves something behind.

#[test]
fn daemon_left_by_a_build_that_succeeded_does_not_keep_the_lock() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let first = f.docker_build(TAG).env("STANDIN_CHILD", "setsid").start();
    let daemon = f.wait_for_pid("child.pid");
    first.wait().assert_code(0);

    assert!(is_alive(daemon), "{}", f.scene());
    let inherited = descriptors(daemon).into_iter().any(|(_, path)| path == lock);
    assert!(inherited, "the daemon has no descriptor of the lock: {:?}", descriptors(daemon));
    assert!(is_free(&lock), "{}", f.scene());
    f.docker_build(TAG).env("BUILDLOCK_TIMEOUT", "0s").run().assert_code(0);
    assert!(is_alive(daemon));
}

// What is left behind may be the build itself.
#[test]
fn what_a_build_that_failed_leaves_behind_is_ended_before_the_lock_is_released() {
    let started = "until [ -e \"$STANDIN/polite.pid\" ]; do sleep 0.02; done";
    for script in [
        format!("polite & {started}; exit 3"),
        format!("sh -c 'polite & {started}; kill -9 $$'; exit $?"),
    ] {
        let f = Fixture::new();
        let _gate = install_polite(&f);
        let first = command(&f, &[], &["sh", "-c", &script]).start();
        let pid = f.wait_for_pid("polite.pid");
        let second = build_that_sees_overlap(&f).start();
        let expected = if script.contains("exit 3") { 3 } else { 137 };
        first.wait().assert_code(expected);
        assert!(!is_alive(pid), "{}", f.scene());
        assert_eq!(f.lines("polite.term"), ["term"], "{}", f.scene());
        second.wait().assert_code(0);
        assert_no_build_ran_beside(&f);
    }
}

/// Ends the build command by TERM while `helper` (stubborn or polite) goes on below it.
fn interrupt_beside(f: &Fixture, helper: &str, words: &[&str], kill_after: &str) -> Duration {
    let first = command(f, &["--kill-after", kill_after], words).start();
    let pid = f.wait_for_pid(&format!("{helper}.pid"));
    let second = build_that_sees_overlap(f).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);

    let start = Instant::now();
    first.signal("TERM");
    first.wait().assert_signal(number("TERM"));
    let elapsed = start.elapsed();
    assert!(!is_alive(pid), "{helper} is left\n{}", f.scene());
    second.wait().assert_code(0);
    assert_no_build_ran_beside(f);
    assert_eq!(f.build_count(TAG), 1);
    elapsed
}

#[test]
fn what_an_interrupted_command_leaves_gets_term_before_the_lock_is_released() {
    let f = Fixture::new();
    let _gate = install_polite(&f);
    let elapsed = interrupt_beside(&f, "polite", &["sh", "-c", "polite & wait"], "20s");
    assert_eq!(f.lines("polite.term"), ["term"], "{}", f.scene());
    assert!(elapsed < Duration::from_secs(15), "it ended by TERM, but took {elapsed:?}");
}

#[test]
fn what_an_interrupted_command_leaves_gets_kill_after_kill_after() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let elapsed = interrupt_beside(&f, "stubborn", &["sh", "-c", "stubborn & wait"], "1s");
    assert!(elapsed >= Duration::from_millis(900), "KILL came after {elapsed:?}");
}

#[test]
fn daemon_of_an_interrupted_command_is_ended_before_the_lock_is_released() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    // It is neither a child of the build command nor in its session.
    let shell = "(setsid stubborn &); read _ <\"$STANDIN/never\"";
    let _never = Gate::new(&f, "never");
    interrupt_beside(&f, "stubborn", &["sh", "-c", shell], "1s");
}

#[test]
fn process_without_descriptors_is_ended_before_the_lock_is_released() {
    let Some(python) = python() else { return };
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let script = "import subprocess; subprocess.run(['stubborn'], close_fds=True)";
    interrupt_beside(&f, "stubborn", &[python, "-c", script], "1s");
}

#[test]
fn remains_of_a_command_that_died_of_a_signal_are_ended_first() {
    let f = Fixture::new();
    let _gate = install_polite(&f);
    let go = Gate::new(&f, "go");
    let shell = "polite & read _ <\"$STANDIN/go\"; kill -s KILL $$";
    let first = command(&f, &[], &["sh", "-c", shell]).start();
    let polite = f.wait_for_pid("polite.pid");
    let second = build_that_sees_overlap(&f).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);
    go.open();
    first.wait().assert_signal(number("KILL"));
    assert!(!is_alive(polite), "{}", f.scene());
    assert_eq!(f.lines("polite.term"), ["term"]);
    second.wait().assert_code(0);
    assert_no_build_ran_beside(&f);
}

// Descriptors.

/// Returns the descriptors in the stand-in's report, except for the one of its own script.
fn reported_descriptors(f: &Fixture) -> Vec<(u32, String)> {
    let pid = f.build_events().last().unwrap().pid;
    let pattern = regex::Regex::new(r" (\d+) -> (.*)").unwrap();
    let lines = f.lines(format!("report.{pid}"));
    let all = lines.iter().filter_map(|line| pattern.captures(line));
    let all = all.map(|c| (c[1].parse().unwrap(), c[2].to_owned()));
    all.filter(|(_, path)| !path.ends_with("/docker")).collect()
}

#[test]
fn build_command_inherits_the_lock_at_a_high_number_and_nothing_else() {
    let f = Fixture::new();
    f.program("docker").args(["build", "-t", TAG, "."]).env("STANDIN_REPORT", "1").run();
    let without: Vec<u32> = reported_descriptors(&f).iter().map(|(n, _)| *n).collect();
    fs::remove_file(f.path("images").join(TAG)).unwrap();

    let options = ["-t", TAG, "-t", "other:1", "--lock", "storage", "--"];
    let build = ["docker", "build", "-t", TAG, "-t", "other:1", "."];
    f.buildlock(options).args(build).env("STANDIN_REPORT", "1").run().assert_code(0);
    let lock_dir = f.lock_dir().to_str().unwrap().to_owned();
    let (locks, others): (Vec<_>, Vec<_>) =
        reported_descriptors(&f).into_iter().partition(|(_, path)| path.starts_with(&lock_dir));
    for file in [f.lock_file(TAG), f.lock_file("other:1"), f.named_lock_file("storage")] {
        let found = locks.iter().any(|(_, path)| path == file.to_str().unwrap());
        assert!(found, "{file:?} is not inherited: {locks:?}");
    }
    assert!(locks.iter().all(|(n, _)| *n >= 1000), "{locks:?}");
    let guards = locks.iter().filter(|(_, path)| path == f.guard().to_str().unwrap());
    assert_eq!(guards.count(), 1, "one descriptor of the guard is enough for all locks: {locks:?}");
    let others: Vec<u32> = others.iter().map(|(n, _)| *n).collect();
    assert_eq!(others, without, "the build command has other descriptors than without buildlock");
}

#[test]
fn few_descriptors_are_enough() {
    let f = Fixture::new();
    let script = "ulimit -n 32 && exec \"$0\" -t env:abc -- docker build -t env:abc .";
    let build = f.program("sh").args(["-c", script]).arg(buildlock_path());
    build.env("STANDIN_REPORT", "1").run().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
    let lock = f.lock_file(TAG).to_str().unwrap().to_owned();
    let numbers: Vec<u32> =
        reported_descriptors(&f).into_iter().filter(|(_, p)| *p == lock).map(|(n, _)| n).collect();
    assert!(!numbers.is_empty(), "not inherited");
    assert!(numbers.iter().all(|n| (10..32).contains(n)), "{numbers:?}");
}

// The holder's record.

#[test]
fn holder_is_in_the_lock_file_during_the_build_and_not_after() {
    let f = Fixture::new();
    f.hold_builds();
    let options = ["-t", TAG, "--", "docker", "build", "--build-arg", "TOKEN=hunter2"];
    let build = f.buildlock(options).args(["-t", TAG, "."]).start();
    f.wait_for_builds(1);

    let text = fs::read_to_string(f.lock_file(TAG)).unwrap();
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["pid"], build.pid(), "{text}");
    let user = f.program("id").arg("-un").run().stdout_line().to_owned();
    assert_eq!(record["user"], user.as_str(), "{text}");
    let host = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    assert_eq!(record["host"], host.as_str(), "{text}");
    assert_eq!(record["tag"], TAG, "{text}");
    let command = record["command"].as_str().unwrap();
    assert!(command.starts_with("docker build ") && command.contains("-t env:abc ."), "{text}");
    assert!(command.contains("TOKEN") && !text.contains("hunter2"), "{text}");
    let since = humantime::parse_rfc3339_weak(record["since"].as_str().unwrap()).unwrap();
    assert!(since.elapsed().unwrap() < Duration::from_secs(60), "{text}");
    assert_eq!(record["version"], env!("CARGO_PKG_VERSION"), "{text}");

    f.release_builds();
    build.wait().assert_code(0);
    let after = fs::read_to_string(f.lock_file(TAG)).unwrap();
    assert!(!after.contains("pid") && !after.contains("docker"), "{after:?}");
}

#[test]
fn holder_is_removed_from_the_lock_file_after_a_failure_too() {
    let f = Fixture::new();
    f.docker_build(TAG).env("STANDIN_BUILD_STATUS", "3").run().assert_code(3);
    let after = fs::read_to_string(f.lock_file(TAG)).unwrap();
    assert!(!after.contains("pid") && !after.contains("docker"), "{after:?}");
}

fn record(pid: u32, command: &str) -> String {
    let record = serde_json::json!({
        "pid": pid, "user": "mallory", "host": "elsewhere", "tag": TAG, "command": command,
        "since": "2024-01-01T00:00:00Z", "version": "0.1.0",
    });
    format!("{record}\n")
}

#[test]
fn false_record_is_never_shown_as_the_holder_and_skips_nothing() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    let mut living = f.program("sleep").arg("300").start();
    let false_records: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", b"".to_vec()),
        ("no JSON", b"mallory was here\n".to_vec()),
        ("a broken record", record(1, "evil").into_bytes()[..60].to_vec()),
        ("JSON of another kind", br#"["mallory", {"pid": "mallory"}, 1e999]"#.to_vec()),
        ("other types", br#"{"pid":"mallory","user":7,"command":["mallory"],"since":-1}"#.to_vec()),
        ("a huge number", br#"{"pid":99999999999999999999,"user":"mallory"}"#.to_vec()),
        ("a negative pid", br#"{"pid":-1,"user":"mallory","command":"mallory"}"#.to_vec()),
        ("pid 0", record(0, "mallory").into_bytes()),
        ("pid 1", record(1, "mallory").into_bytes()),
        ("a living process", record(living.pid(), "mallory").into_bytes()),
        ("a dead process", record(4_194_304, "mallory").into_bytes()),
        ("no UTF-8", b"{\"pid\":1,\"user\":\"mallory\xff\xfe\"}\n".to_vec()),
        ("NULs", vec![0; 4096]),
        ("1 MiB", b"mallory\n".repeat(1 << 17)),
        ("1 MiB of JSON", format!("{}\n", "[".repeat(1 << 20)).into_bytes()),
        ("escapes", b"\x1b]0;mallory\x07\x1b[2J\x1b[31mmallory\r\n\x9b5n".to_vec()),
        ("a result", br#"{"result":{"id":"mallory","status":0},"status":0}"#.to_vec()),
    ];
    for (kind, bytes) in &false_records {
        fs::write(&lock, bytes).unwrap();
        let holder = f.hold_lock(&lock);
        for format in ["text", "json"] {
            let options = ["-w", "20ms", "--log-format", format, "--on-failure", "share"];
            let words = ["docker", "build", "-t", TAG, "."];
            let waited = command(&f, &options, &words).run();
            waited.assert_code(124).assert_no_stderr("mallory").assert_no_stderr("elsewhere");
            let odd = waited.stderr.chars().find(|&c| c.is_control() && c != '\n');
            assert_eq!(odd, None, "{kind}: {waited}");
        }
        assert_eq!(f.build_count(TAG), 0, "{kind}: {}", f.scene());
        drop(holder);

        // Nor does the record count as a build.
        f.docker_build(TAG).run().assert_code(0).assert_no_stderr("mallory");
        assert_eq!(f.build_count(TAG), 1, "{kind}: {}", f.scene());
        fs::remove_file(f.path("images").join(TAG)).unwrap();
        fs::remove_file(f.path("builds.log")).unwrap();
    }
    assert!(!living.has_ended());
}

#[test]
fn record_of_the_true_holder_is_shown_as_its_claim_and_without_control_characters() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let holder = f.hold_lock(&lock);
    // It does hold the lock, so the kernel confirms the record.
    let evil = "make\x1b]0;title\x07 \x1b[2Jimage\r\nbuildlock: env:abc: built\u{9b}5n\u{202e}";
    fs::write(&lock, record(holder.pid(), evil)).unwrap();
    for format in ["text", "json"] {
        let options = ["-w", "300ms", "--log-format", format];
        let waited = command(&f, &options, &["docker", "build", "-t", TAG, "."]).run();
        // The kernel knows better who owns the process.
        waited.assert_code(124).assert_no_stderr("mallory").assert_stderr("make");
        let marked = if format == "text" { "by its own account: " } else { "\"claimed\":true" };
        waited.assert_stderr(marked);
        let odd = waited.stderr.chars().find(|&c| c.is_control() && c != '\n');
        assert_eq!(odd, None, "{waited}");
        assert!(!waited.stderr.lines().any(|l| l == "buildlock: env:abc: built"), "{waited}");
    }
}

#[test]
fn waiter_names_the_holder_and_the_lock_file() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let second = command(&f, &["--log-format", "json"], &["docker", "build", "-t", TAG, "."]);
    let second = second.start();
    second.wait_for_stderr("\"waiting\"");
    let waiting = second.stderr();
    let line = waiting.lines().find(|l| l.contains("\"waiting\"")).unwrap();
    let event: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(event["tag"], TAG, "{line}");
    assert_eq!(event["lock"], f.lock_file(TAG).to_str().unwrap(), "{line}");
    assert_eq!(event["holder"]["pid"], first.pid(), "{line}");
    assert_eq!(event["holder"]["command"], "docker build -t env:abc .", "{line}");
    f.release_builds();
    first.wait().assert_code(0);
    second.wait().assert_code(0);
}

// Waiting.

#[test]
fn waiter_behind_a_foreign_shared_lock_does_not_spin() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let shared = f.hold_lock_shared(&lock);
    let waiter = f.docker_build(TAG).start();
    // The second message comes after 5 s.
    f.wait_for("the second word of waiting", || waiter.stderr().matches("waiting").count() >= 2);
    let used = cpu_seconds(waiter.pid());
    assert!(used < 0.5, "waiting took {used} s of processor time\n{}", f.scene());
    assert!(f.looks().len() <= 5, "it looks again and again: {:?}", f.looks());
    assert_eq!(waiters(&lock), [waiter.pid()], "{}", f.scene());
    assert_eq!(f.build_count(TAG), 0);
    drop(shared);
    waiter.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

fn started<'f>(n: usize, start: impl Fn() -> Invocation<'f>, f: &'f Fixture) -> Vec<Running<'f>> {
    let all: Vec<_> = (0..n).map(|_| start().start()).collect();
    f.wait_for_waiters(&f.lock_file(TAG), n);
    all
}

#[test]
fn hundred_waiters_whose_builds_all_fail_all_end() {
    let f = Fixture::new();
    let lock = f.hold_lock(&f.lock_file(TAG));
    f.install_script(
        "failing",
        r#"#!/bin/sh
exec 8>>"$STANDIN/alive"
flock -n 8 || echo overlap >>"$STANDIN/overlap"
echo start >>"$STANDIN/starts"
exit 7
"#,
    );
    let all = started(100, || command(&f, &["-q"], &["failing"]), &f);
    drop(lock);
    for one in all {
        one.wait().assert_code(7);
    }
    assert_eq!(f.lines("starts").len(), 100);
    assert_no_build_ran_beside(&f);
}

#[test]
fn hundred_waiters_with_force_all_build_one_at_a_time() {
    let f = Fixture::new();
    let lock = f.hold_lock(&f.lock_file(TAG));
    let words = ["docker", "build", "-t", TAG, "."];
    let all = started(100, || command(&f, &["-q", "--force"], &words), &f);
    drop(lock);
    for one in all {
        one.wait().assert_code(0);
    }
    assert_eq!(f.build_count(TAG), 100);
    f.assert_no_overlap();
}

#[test]
fn lock_file_removed_while_others_wait_still_gives_one_build() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let holder = f.hold_lock(&lock);
    let all = started(8, || f.docker_build(TAG), &f);
    fs::remove_file(&lock).unwrap();
    drop(holder);
    for one in all {
        one.wait().assert_code(0);
    }
    assert_eq!(f.build_count(TAG), 1, "{}", f.scene());
    // The name leads to a new file, and there is no other.
    assert_eq!(f.lock_files(), [lock]);
}

#[test]
fn lock_file_put_in_anothers_place_while_others_wait_still_excludes() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let holder = f.hold_lock(&lock);
    let words = ["docker", "build", "-t", TAG, "."];
    let all = started(8, || command(&f, &["--force"], &words), &f);
    fs::remove_file(&lock).unwrap();
    drop(f.open_lock_file(&lock));
    drop(holder);
    for one in all {
        one.wait().assert_code(0);
    }
    assert_eq!(f.build_count(TAG), 8);
    f.assert_no_overlap();
}

#[test]
fn holder_whose_lock_file_was_removed_says_so() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let lock = f.lock_file(TAG);
    fs::remove_file(&lock).unwrap();
    f.release_builds();
    let first = first.wait();
    first.assert_code(0).assert_stderr_matches("warning: .*lock").assert_stderr(TAG);
}

#[test]
fn lock_whose_file_is_removed_during_a_build_is_still_waited_for() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    fs::remove_file(f.lock_file(TAG)).unwrap();
    command(&f, &["-w", "0s"], &["docker", "build", "-t", TAG, "."]).run().assert_code(124);
    let second = f.docker_build(TAG).start();
    second.wait_for_stderr("the lock is held by way of the guard alone");
    f.let_builds_go(1);
    first.wait().assert_code(0).assert_stderr_matches("warning: .*lock");
    second.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn holder_that_lost_the_lock_to_a_second_build_says_so() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    // Only the owner of the folder can do that.
    fs::remove_file(f.lock_file(TAG)).unwrap();
    fs::remove_file(f.guard()).unwrap();
    let second = f.docker_build(TAG).start();
    f.wait_for_builds(2);
    f.let_builds_go(2);
    first.wait().assert_code(0).assert_stderr_matches("warning: .*lock");
    second.wait().assert_code(0).assert_no_stderr("warning");
}

#[test]
fn holder_of_an_untouched_lock_gives_no_warning() {
    let f = Fixture::new();
    f.docker_build(TAG).run().assert_code(0).assert_no_stderr("warning");
}

#[test]
fn try_without_waiting_is_not_fooled_by_the_short_locks_of_waking_waiters() {
    let Some(python) = python() else { return };
    let f = Fixture::new();
    f.make_image(TAG);
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    // It holds the lock half of the time, so about 12 of 24 single tries would fail.
    let script = "
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDONLY)
while True:
    fcntl.flock(lock, fcntl.LOCK_SH)
    time.sleep(0.005)
    fcntl.flock(lock, fcntl.LOCK_UN)
    time.sleep(0.005)";
    let _stream = f.program(python).args(["-c", script]).arg(&lock).start();
    f.wait_for_holder(&lock);
    let tries = (0..24).filter(|_| {
        let one = command(&f, &["-w", "0s", "--force"], &["true"]).run();
        one.status.success()
    });
    let had = tries.count();
    // On a busy machine, a short lock may last longer, so that a few tries fail.
    assert!(had >= 20, "only {had} of 24 tries had the lock");
}

#[test]
fn try_without_waiting_for_a_lock_that_is_held_ends_soon() {
    let f = Fixture::new();
    let _holder = f.hold_lock(&f.lock_file(TAG));
    let tried = command(&f, &["-w", "0s"], &["false"]).run();
    tried.assert_code(124);
    assert!(tried.elapsed < Duration::from_secs(5), "{tried}");
}

#[test]
fn script_that_reads_the_lock_file_of_a_build_sees_one_line() {
    // `flock FILE CMD` and editors append. Old content must not run into the record.
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    File::options().append(true).open(&lock).unwrap().write_all(&[b'x'; 5000]).unwrap();
    f.hold_builds();
    let build = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let text = fs::read_to_string(&lock).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str::<serde_json::Value>(&text).unwrap();
    f.release_builds();
    build.wait().assert_code(0);
}

#[test]
fn table_of_descriptors_has_its_size_before_there_is_a_second_thread() {
    // If the table of descriptors grew afterwards, buildlock would wait with the lock held until no
    // processor reads the old table.
    if !has("strace") {
        return;
    }
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let trace = f.path("trace");
    let strace = f.program("strace").args(["-f", "-e", "trace=fcntl,clone,clone3", "-o"]);
    let second =
        strace.arg(&trace).arg(buildlock_path()).args(["--force", "-t", TAG, "--", "true"]);
    let mut second = second.start();
    f.wait_for("a waiter, or no tracing", || {
        second.has_ended() || kernel_locks(&f.lock_file(TAG)).iter().any(|l| l.waiting)
    });
    if second.has_ended() {
        return skip("needs to trace");
    }
    f.release_builds();
    first.wait().assert_code(0);
    second.wait().assert_code(0);
    let calls = fs::read_to_string(trace).unwrap();
    let number = |call: &str| call.rsplit(" = ").next().and_then(|made| made.parse().ok());
    let highest = calls.lines().filter(|line| line.contains("F_DUPFD")).filter_map(number).max();
    let highest: u32 = highest.expect("the build command inherits a copy of the lock");
    let (alone, _) = calls.split_once("CLONE_THREAD").expect("who waits has a thread for it");
    let room = alone.lines().filter(|line| line.contains("F_DUPFD")).filter_map(number).max();
    assert!(room >= Some(highest), "{calls}");
}
