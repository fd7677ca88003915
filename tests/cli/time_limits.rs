//! Time limits: a wait ends within a tenth of a second, a build with its last process.
//!
//! On a busy machine, a process may be late through no fault of its own. So one of ten attempts
//! must be in time; the first that is ends the test. No attempt may be early.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::support::{
    Finished, Fixture, Terminal, build_that_sees_overlap, buildlock_path, has, is_alive, is_free,
    python, send_signal,
};

const TAG: &str = "env:abc";
const BUILD: [&str; 7] = ["-t", TAG, "--", "docker", "build", "-t", TAG];

/// How many attempts there are, of which one must be in time.
const ATTEMPTS: usize = 10;

/// Returns how late a wait may end.
fn lateness(limit: Duration) -> Duration {
    Duration::from_millis(100) + limit / 100
}

/// Returns how late the whole process may end, which must also start, look and clean up.
fn lateness_of_process(limit: Duration) -> Duration {
    lateness(limit) + Duration::from_secs(5)
}

/// What one attempt measured.
struct Measured {
    /// From the message about the wait to the message about the limit.
    waited: Duration,
    /// From before the start of the process to after its end.
    process: Duration,
}

/// Fails unless one of several attempts is in time, and none is early.
fn assert_holds(limit: Duration, mut attempt: impl FnMut() -> Measured) {
    let mut late = Vec::new();
    for _ in 0..ATTEMPTS {
        let Measured { waited, process } = attempt();
        assert!(process >= limit, "gave up after {process:?} of {limit:?}");
        if waited <= limit + lateness(limit) && process <= limit + lateness_of_process(limit) {
            return;
        }
        late.push((waited, process));
    }
    panic!("a limit of {limit:?} was never kept: {late:?}");
}

/// Returns how long a call waited into its limit, by its own log.
///
/// On a busy machine, the limit may pass before the call says that it waits. Such an attempt is not
/// in time.
fn waited(finished: &Finished) -> Duration {
    let timeout = time_of("timeout", finished).unwrap_or_else(|| panic!("no timeout\n{finished}"));
    match time_of("waiting", finished) {
        // A clock that is set back must not fail the test.
        Some(waiting) => timeout.duration_since(waiting).unwrap_or_default(),
        None => Duration::MAX,
    }
}

/// Returns when the first line about this event was written.
fn time_of(event: &str, finished: &Finished) -> Option<SystemTime> {
    let lines = finished.stderr.lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{line}: {e}"))
    });
    let found = lines.into_iter().find(|line| line["event"] == event)?;
    Some(humantime::parse_rfc3339(found["timestamp"].as_str().unwrap()).unwrap())
}

/// Runs a call into its limit for locks that are held.
fn run_into(f: &Fixture, limit: Duration, options: &[&str]) -> Measured {
    let wait = format!("{}ms", limit.as_millis());
    let call = f.buildlock(["--log-format", "json", "-w", &wait]).args(options).args(BUILD);
    let before = Instant::now();
    let finished = call.arg(".").run();
    let process = before.elapsed();
    finished.assert_code(124);
    Measured { waited: waited(&finished), process }
}

/// Processors that are busy until this is dropped.
struct Load {
    over: std::sync::Arc<AtomicBool>,
    loops: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn new(loops: usize) -> Self {
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let spin = || {
            let over = std::sync::Arc::clone(&over);
            std::thread::spawn(move || {
                // It ends, whatever goes wrong in the test.
                while !over.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(60) {
                    std::hint::spin_loop();
                }
            })
        };
        let loops = (0..loops).map(|_| spin()).collect();
        Self { over, loops }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for one in self.loops.drain(..) {
            let _ = one.join();
        }
    }
}

// Waiting.

#[test]
fn limit_of_a_wait_holds() {
    for milliseconds in [200, 1000, 3000] {
        let f = Fixture::new();
        let _lock = f.hold_lock(&f.lock_file(TAG));
        let limit = Duration::from_millis(milliseconds);
        assert_holds(limit, || run_into(&f, limit, &[]));
        assert_eq!(f.build_count(TAG), 0);
    }
}

#[test]
fn limit_of_a_wait_holds_on_a_busy_machine() {
    for loops in [2, 4] {
        let f = Fixture::new();
        let _lock = f.hold_lock(&f.lock_file(TAG));
        let _load = Load::new(loops);
        let limit = Duration::from_millis(500);
        assert_holds(limit, || run_into(&f, limit, &[]));
    }
}

#[test]
fn limit_of_a_wait_holds_while_the_holder_is_stopped() {
    // A foreign holder, and a buildlock with everything that it runs.
    let f = Fixture::new();
    let lock = f.hold_lock(&f.lock_file(TAG));
    send_signal(lock.pid(), "STOP");
    let limit = Duration::from_millis(500);
    assert_holds(limit, || run_into(&f, limit, &[]));

    let f = Fixture::new();
    f.hold_builds();
    let build = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let stopped = f.processes();
    assert!(stopped.len() >= 3 && stopped.contains(&build.pid()), "{stopped:?}");
    stopped.iter().for_each(|&pid| send_signal(pid, "STOP"));
    assert_holds(limit, || run_into(&f, limit, &[]));
    stopped.iter().for_each(|&pid| send_signal(pid, "CONT"));
    f.release_builds();
    build.wait().assert_code(0);
}

#[test]
fn limit_of_a_wait_holds_among_two_hundred_others() {
    let f = Fixture::new();
    let lock_file = f.lock_file(TAG);
    let lock = f.hold_lock(&lock_file);
    let others = (0..200).map(|_| f.buildlock(["-q", "-w", "2m"]).args(BUILD).arg(".").start());
    let others: Vec<_> = others.collect();
    f.wait_for_waiters(&lock_file, 200);

    let limit = Duration::from_millis(500);
    assert_holds(limit, || run_into(&f, limit, &[]));

    f.make_image(TAG);
    drop(lock);
    for other in others {
        other.wait().assert_code(0);
    }
    assert_eq!(f.build_count(TAG), 0);
}

#[test]
fn several_locks_one_after_the_other_have_one_limit() {
    let f = Fixture::new();
    let limit = Duration::from_secs(1);
    assert_holds(limit, || {
        let names = ["a", "b", "c"];
        let mut locks: Vec<_> =
            names.iter().map(|name| f.hold_lock(&f.named_lock_file(name))).collect();
        let call = f.buildlock(["--log-format", "json", "-w", "1s", "-f"]);
        let call = call.args(names.iter().flat_map(|name| ["--lock", name])).args(BUILD).arg(".");
        let before = Instant::now();
        let call = call.start();
        // Each of the first two locks takes a third of the limit. The test measures this time.
        for _ in 0..2 {
            std::thread::sleep(limit / 3);
            locks.remove(0);
        }
        let finished = call.wait();
        let process = before.elapsed();
        finished.assert_code(124).assert_stderr("lock c");
        // Only a call that waited for all three is in time.
        let waits = finished.stderr.matches("\"event\":\"waiting\"").count();
        assert!(waits <= 3, "{finished}");
        let waited = if waits == 3 { waited(&finished) } else { Duration::MAX };
        Measured { waited, process }
    });
    assert_eq!(f.build_count(TAG), 0);
}

#[test]
fn limit_of_a_wait_holds_with_a_live_line_on_a_terminal() {
    if python().is_none() {
        return;
    }
    let limit = Duration::from_millis(1000);
    assert_holds(limit, || {
        let f = Fixture::new();
        let _lock = f.hold_lock(&f.lock_file(TAG));
        let words = [buildlock_path().into(), "-w".into(), "1s".into()];
        let words: Vec<_> =
            words.into_iter().chain(BUILD.map(Into::into)).chain([".".into()]).collect();
        let before = Instant::now();
        let terminal = Terminal::start(&f, &words).unwrap();
        let seen = |text: &str| {
            f.wait_for(text, || terminal.screen().contains(text));
            Instant::now()
        };
        let waiting = seen("waiting for");
        let given_up = seen("gave up");
        assert_eq!(terminal.end(), "code 124");
        // Starting Python takes a fifth of a second, which does not count.
        Measured { waited: given_up - waiting, process: before.elapsed() }
    });
}

// Building.

/// Runs a build command that starts processes into its limit. Fails if one of them is left when the
/// lock is free again.
///
/// The script is for `sh`, and each process that it starts must run `mark`. `mark` notes the pid
/// and keeps `alive` locked for as long as the process lives, which the next build would see. On a
/// slow machine the processes may not all have started when the limit passes, so it is then raised.
fn assert_ends_all(processes: usize, kill_after: &str, script: &str) {
    assert_ends_all_behind(&[], processes, kill_after, script);
}

/// The same for a buildlock that `front` starts.
fn assert_ends_all_behind(front: &[&str], processes: usize, kill_after: &str, script: &str) {
    for limit in ["500ms", "2s", "8s"] {
        let f = Fixture::new();
        f.install_script(
            "mark",
            r#"#!/bin/sh
# mark WORD...: becomes WORD..., known to the test.
exec 8>>"$STANDIN/alive"
flock --shared 8
echo $$ >>"$STANDIN/pids"
exec "$@"
"#,
        );
        let options = ["--build-timeout", limit, "-k", kill_after, "-t", TAG, "--"];
        let before = Instant::now();
        let words = front.iter().map(Into::into).chain([buildlock_path().into_os_string()]);
        let words: Vec<_> = words.collect();
        let build = f.program(&words[0]).args(&words[1..]).args(options);
        let build = build.args(["sh", "-c", script]).start();
        f.wait_for_holder(&f.lock_file(TAG));
        let next = build_that_sees_overlap(&f).start();
        let build = build.wait();
        let elapsed = before.elapsed();
        // Before the next build, whose processes would be found, too.
        let left: Vec<u32> =
            pids(&f).into_iter().filter(|&pid| is_alive(pid) && is_of(&f, pid)).collect();
        build.assert_code(124).assert_stderr("--build-timeout");
        assert!(left.is_empty(), "{left:?} of {limit}\n{build}\n{}", f.scene());
        assert!(elapsed >= humantime::parse_duration(limit).unwrap(), "{elapsed:?}");
        next.wait().assert_code(0);
        assert_eq!(f.lines("overlap"), [] as [&str; 0], "{build}");
        assert_eq!(f.processes(), [] as [u32; 0], "{build}\n{}", f.scene());
        assert!(is_free(&f.lock_file(TAG)));
        if pids(&f).len() >= processes {
            return;
        }
    }
    panic!("no machine is so slow that {processes} processes do not start in 8 s");
}

fn pids(f: &Fixture) -> Vec<u32> {
    f.lines("pids").iter().map(|pid| pid.parse().unwrap()).collect()
}

/// Is this pid still of this test, rather than reused?
fn is_of(f: &Fixture, pid: u32) -> bool {
    f.processes().contains(&pid)
}

#[test]
fn build_limit_ends_children_in_sessions_of_their_own() {
    assert_ends_all(
        3,
        "10s",
        "setsid mark sleep 100 & setsid setsid mark sleep 100 & mark sleep 100 & wait",
    );
}

#[test]
fn build_limit_kills_processes_that_ignore_term() {
    let script = "trap '' TERM; mark sleep 100 & setsid mark sleep 100 & \
                  mark sh -c 'mark sleep 100; mark sleep 100; mark sleep 100'";
    assert_ends_all(4, "200ms", script);
}

#[test]
fn build_limit_ends_daemons_that_were_forked_twice() {
    // Their parents have ended, and so have the group and the session that they came from.
    let script = "for i in 1 2 3 4; do (setsid sh -c 'mark sleep 100 & exit' &); done; \
                  mark sleep 100";
    assert_ends_all(5, "10s", script);
    // The same with processes that ignore TERM.
    let script = "trap '' TERM; (setsid sh -c '(mark sleep 100 &) &' &); mark sleep 100";
    assert_ends_all(2, "200ms", script);
}

#[test]
fn build_limit_ends_a_tree_of_fifty_processes() {
    // One process with eight children, each with five of its own.
    let branch = "for i in 1 2 3 4 5; do mark sleep 100 & done; mark sleep 100";
    let script = format!("for i in 1 2 3 4 5 6 7 8; do sh -c '{branch}' & done; mark sleep 100");
    assert_ends_all(49, "10s", &script);
}

#[test]
fn build_limit_ends_children_that_are_stopped() {
    let stopped = "mark sh -c 'kill -s STOP $$; sleep 100'";
    assert_ends_all(3, "10s", &format!("{stopped} & setsid {stopped} & {stopped}"));
    let stubborn = format!("trap '' TERM; {stopped} & {stopped}");
    assert_ends_all(2, "200ms", &stubborn);
}

#[test]
fn build_limit_ends_a_command_that_ended_its_own_shell() {
    // On TERM, the build command starts more processes.
    let script = "trap 'trap \"\" TERM; mark sleep 100 & mark sleep 100 & exit 0' TERM; \
                  mark sleep 100 & wait";
    assert_ends_all(3, "500ms", script);
}

/// Forks again and again while it is ended. Each process lives for as long as it takes to fork the
/// next, and the last one stays. The number of forks is bounded.
const CHAIN: &str = r#"
import fcntl, os, signal, sys, time
alive = os.open(os.environ["STANDIN"] + "/alive", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
fcntl.flock(alive, fcntl.LOCK_SH)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pids = os.open(os.environ["STANDIN"] + "/pids", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
pause, end = float(sys.argv[1]), time.monotonic() + float(sys.argv[2])
if os.fork():
    time.sleep(100)
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
    if pause:
        time.sleep(pause)
os.write(pids, b"%d\n" % os.getpid())
time.sleep(100)
"#;

#[test]
fn build_limit_ends_a_chain_of_processes_that_keeps_forking() {
    let Some(python) = python() else { return };
    let chain = |pause, seconds| {
        let words = format!("exec {python} -c \"$CHAIN\" {pause} {seconds}");
        format!("CHAIN='{CHAIN}'; export CHAIN; {words}")
    };
    assert_ends_all(0, "50ms", &chain("0.01", "3"));
    assert_ends_all(0, "50ms", &chain("0", "3"));
    // A buildlock that opens files slowly sees each process only once it has forked and ended.
    let slowly = ["strace", "-e", "trace=openat", "-e", "inject=openat:delay_enter=5000"];
    let slowly = [&slowly[..], &["-o", "/dev/null"]].concat();
    if has("strace")
        && Command::new("strace")
            .args(&slowly[1..])
            .arg("true")
            .status()
            .is_ok_and(|it| it.success())
    {
        assert_ends_all_behind(&slowly, 0, "50ms", &chain("0.002", "1"));
    }
}

#[test]
fn build_limit_ends_a_process_that_lives_on_without_its_first_thread() {
    let Some(python) = python() else { return };
    // In /proc it looks like a zombie, yet it runs.
    let script = format!(
        "mark {python} -c '
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(100,)).start()
ctypes.CDLL(None).pthread_exit(None)
' & mark sleep 100"
    );
    assert_ends_all(2, "200ms", &script);
}

#[test]
fn lock_is_held_until_the_last_process_of_a_build_is_gone() {
    if !has("setsid") {
        return;
    }
    let f = Fixture::new();
    let script = "trap '' TERM; setsid sh -c 'echo $$ >>\"$STANDIN/pids\"; exec sleep 100' & wait";
    let options = ["--build-timeout", "700ms", "-k", "400ms", "-t", TAG, "--", "sh", "-c", script];
    let build = f.buildlock(options).start();
    f.wait_for_holder(&f.lock_file(TAG));
    build.wait_for_stderr("--build-timeout");
    // Between TERM, which the process ignores, and KILL.
    assert!(!is_free(&f.lock_file(TAG)));
    build.wait().assert_code(124);
    assert!(is_free(&f.lock_file(TAG)));
    assert!(pids(&f).iter().all(|&pid| !is_alive(pid)));
    assert_eq!(fs::read_to_string(f.lock_file(TAG)).unwrap(), "");
}
