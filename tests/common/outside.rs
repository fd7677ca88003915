//! Programs beside buildlock, for the tests of locks and signals: gates that hold scripts up, a
//! COMMAND that notes its signals, a terminal, another user.
#![allow(dead_code, unreachable_pub)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;

use crate::common::{Fixture, Invocation, KernelLock, Running, kernel_locks, skip, stand_in};

/// The program under test, for scripts that start it.
pub fn buildlock_path() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("buildlock").to_path_buf()
}

/// The number of a signal by its name without SIG.
pub fn number(signal: &str) -> i32 {
    match signal {
        "RTMIN" => nix::libc::SIGRTMIN(),
        name => format!("SIG{name}").parse::<Signal>().unwrap() as i32,
    }
}

/// Is this program in PATH? Says so if not.
#[track_caller]
pub fn has(program: &str) -> bool {
    let found = which::which(program).is_ok();
    if !found {
        skip(&format!("needs {program}"));
    }
    found
}

/// Python itself: behind a shim in PATH, signals and pids would be the shim's for a while.
pub fn python() -> Option<&'static str> {
    static PYTHON: OnceLock<Option<String>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| {
        let show = "import sys; print(sys.executable)";
        let output = Command::new("python3").args(["-c", show]).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !path.is_empty()).then_some(path)
    });
    if python.is_none() {
        skip("needs python3");
    }
    python.as_deref()
}

/// Something that scripts wait at (`read _ <"$STANDIN/NAME"`) until the test lets them go on.
pub struct Gate {
    /// For scripts.
    pub path: PathBuf,
    file: File,
}

impl Gate {
    /// A closed one.
    pub fn new(f: &Fixture, name: &str) -> Self {
        let path = f.path(name);
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success(), "mkfifo {path:?}");
        // For both, so that nobody blocks in open or meets an end of file.
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Self { path, file }
    }

    /// Lets one reader go on, now or later.
    pub fn open(&self) {
        self.say("");
    }

    /// Lets one reader go on, and tells it something.
    pub fn say(&self, line: &str) {
        (&self.file).write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The path, for arguments.
    pub fn arg(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// A lock held by a program that knows nothing of buildlock, until this is dropped.
///
/// Not by the test itself: that is an ancestor of what it starts, and the lock of an ancestor is
/// no reason to wait.
pub struct ForeignLock<'f> {
    program: Option<Running<'f>>,
    gate: Gate,
}

impl<'f> ForeignLock<'f> {
    /// As somebody who builds by hand has it.
    pub fn exclusive(f: &'f Fixture, lock_file: &Path) -> Self {
        Self::new(f, "--exclusive", lock_file)
    }

    /// As a reader may have it.
    pub fn shared(f: &'f Fixture, lock_file: &Path) -> Self {
        Self::new(f, "--shared", lock_file)
    }

    fn new(f: &'f Fixture, kind: &str, lock_file: &Path) -> Self {
        drop(f.open_lock_file(lock_file));
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("foreign.{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let gate = Gate::new(f, &name);
        let script = "read _ <\"$0\"";
        let program = f.program("flock").arg(kind).arg(lock_file).args(["sh", "-c", script]);
        let program = program.arg(&gate.path).start();
        let pid = program.pid();
        f.wait_for("a foreign program's lock", || holders(lock_file).contains(&pid));
        Self { program: Some(program), gate }
    }

    /// The pid that the kernel names as the holder.
    pub fn pid(&self) -> u32 {
        self.program.as_ref().unwrap().pid()
    }
}

impl Drop for ForeignLock<'_> {
    fn drop(&mut self) {
        self.gate.open();
        let program = self.program.take().unwrap();
        // A test that has failed already says so better than this could.
        if !std::thread::panicking() {
            program.wait();
        }
    }
}

/// Puts `stubborn` into PATH: it holds `alive` for as long as it runs, ignores TERM, writes its
/// pid to `stubborn.pid`, and ends once the gate lets it.
pub fn install_stubborn(f: &Fixture) -> Gate {
    let gate = Gate::new(f, "stubborn.gate");
    f.install_script(
        "stubborn",
        r#"#!/bin/sh
trap '' TERM
exec 8>>"$STANDIN/alive"
flock 8
echo $$ >"$STANDIN/stubborn.pid"
read _ <"$STANDIN/stubborn.gate"
"#,
    );
    gate
}

/// Puts `polite` into PATH: it holds `alive` for as long as it runs, and ends on TERM, after it
/// has noted it in `polite.term`. Its pid is in `polite.pid`.
pub fn install_polite(f: &Fixture) -> Gate {
    let gate = Gate::new(f, "polite.gate");
    f.install_script(
        "polite",
        r#"#!/bin/sh
trap 'echo term >>"$STANDIN/polite.term"; exit 0' TERM
exec 8>>"$STANDIN/alive"
flock 8
echo $$ >"$STANDIN/polite.pid"
read _ <"$STANDIN/polite.gate"
"#,
    );
    gate
}

/// A build of `env:abc` that notes in `overlap` if it runs beside `stubborn` or `polite`.
///
/// The kernel tells it, so that neither zombies nor reused pids can.
pub fn build_that_sees_overlap(f: &Fixture) -> Invocation<'_> {
    f.install_script(
        "alone",
        r#"#!/bin/sh
flock -n "$STANDIN/alive" true || echo overlap >>"$STANDIN/overlap"
exec docker build -t env:abc .
"#,
    );
    f.buildlock(["-t", "env:abc", "--", "alone"])
}

/// The pid in a file of the fixture, as soon as it is there.
pub fn wait_for_pid(f: &Fixture, name: &str) -> u32 {
    f.wait_for_file(name).trim().parse().unwrap()
}

/// The kernel hands its list out a page at a time, so that a line may come twice or not at all
/// while other locks come and go: what it says twice counts.
fn steady_locks(lock_file: &Path) -> Vec<KernelLock> {
    let read = || {
        let mut locks = kernel_locks(lock_file);
        locks.sort_by_key(|lock| (lock.pid, lock.waiting, lock.exclusive));
        locks.dedup();
        locks
    };
    let mut last = read();
    for _ in 0..50 {
        let next = read();
        if next == last {
            break;
        }
        last = next;
    }
    last
}

/// Who holds this lock file, as the kernel tells it.
pub fn holders(lock_file: &Path) -> Vec<u32> {
    steady_locks(lock_file).into_iter().filter(|l| !l.waiting).map(|l| l.pid).collect()
}

/// Who waits for this lock file, as the kernel tells it.
pub fn waiters(lock_file: &Path) -> Vec<u32> {
    steady_locks(lock_file).into_iter().filter(|l| l.waiting).map(|l| l.pid).collect()
}

/// Waits until this many processes wait for this lock file.
pub fn wait_for_waiters(f: &Fixture, lock_file: &Path, n: usize) {
    f.wait_for(&format!("{n} waiters for {lock_file:?}"), || waiters(lock_file).len() >= n);
}

/// Can this lock be had right now?
pub fn is_free(lock_file: &Path) -> bool {
    let file = File::open(lock_file).unwrap();
    fs2::FileExt::try_lock_exclusive(&file).is_ok()
}

/// The open descriptors of a process, with what they are.
pub fn descriptors(pid: u32) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect();
    found.sort();
    found
}

/// Processor time that a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks: u32 = rest.split(' ').skip(11).take(2).map(|n| n.parse::<u32>().unwrap()).sum();
    // USER_HZ, which is 100 wherever Rust's targets run Linux.
    f64::from(ticks) / 100.0
}

/// R, S, T, Z: as ps shows it; - for none.
pub fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

/// The hexadecimal mask on a line (`SigIgn`, `SigBlk`) of a `/proc/PID/status`.
pub fn signal_mask(status: &str, line: &str) -> u64 {
    let start = format!("{line}:");
    let found = status.lines().find_map(|l| l.strip_prefix(&start));
    let hex = found.unwrap_or_else(|| panic!("no {line} in\n{status}")).trim();
    u64::from_str_radix(hex, 16).unwrap()
}

/// Is this signal (by its name without SIG) in the mask?
pub fn is_in(mask: u64, signal: &str) -> bool {
    mask & (1 << (number(signal) - 1)) != 0
}

/// A COMMAND that notes each signal that reaches it, and ends when it is told to.
pub struct Recorder<'f> {
    f: &'f Fixture,
    gate: Gate,
    python: &'static str,
}

/// It takes signals one by one: a handler would count two that come close together as one.
const RECORDER: &str = r#"
import os, signal, sys, threading
notes = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
def end():
    gate = os.open(sys.argv[2], os.O_RDONLY)
    while True:
        word = os.read(gate, 1)
        if word != b"\n":
            os._exit(int(word))
names = """INT TERM HUP QUIT USR1 USR2 WINCH CONT
           ALRM VTALRM PROF XCPU SYS PWR IO RTMIN""".split()
numbers = [getattr(signal, "SIG" + name) for name in names]
# Those that are ignored stay so: blocked, they would arrive all the same.
numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
threading.Thread(target=end).start()
os.write(notes, ("pid %d\n" % os.getpid()).encode())
while True:
    number = signal.sigwaitinfo(numbers).si_signo
    os.write(notes, (signal.Signals(number).name[3:] + "\n").encode())
"#;

impl<'f> Recorder<'f> {
    /// One a fixture; none without Python.
    pub fn new(f: &'f Fixture) -> Option<Self> {
        let python = python()?;
        Some(Self { f, gate: Gate::new(f, "recorder.gate"), python })
    }

    /// Its command line.
    pub fn words(&self) -> Vec<OsString> {
        let notes = self.f.path("notes");
        vec![
            self.python.into(),
            "-c".into(),
            RECORDER.into(),
            notes.into(),
            self.gate.path.clone().into(),
        ]
    }

    /// Waits until it runs, and says as which process.
    pub fn wait_until_ready(&self) -> u32 {
        self.f.wait_for("the recorder", || !self.notes().is_empty());
        self.notes()[0].strip_prefix("pid ").unwrap().parse().unwrap()
    }

    /// What it has noted so far, its pid first.
    pub fn notes(&self) -> Vec<String> {
        self.f.lines("notes")
    }

    /// How often this signal reached it.
    pub fn count(&self, signal: &str) -> usize {
        self.notes().iter().filter(|note| *note == signal).count()
    }

    /// Waits until this signal has reached it.
    pub fn wait_for(&self, signal: &str) {
        self.f.wait_for(&format!("{signal} at COMMAND"), || self.count(signal) > 0);
    }

    /// Lets it end with this status, of one digit.
    pub fn end(&self, status: u8) {
        self.gate.say(&status.to_string());
    }
}

/// A program on a terminal of its own, as the leader of its session.
pub struct Terminal<'f> {
    f: &'f Fixture,
    driver: Running<'f>,
    orders: Gate,
}

const TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, struct, sys, termios
child, master = pty.fork()
if child == 0:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(sys.argv[3], sys.argv[3:])
orders = os.open(sys.argv[1], os.O_RDONLY)
screen = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
sources, pending, done = [master, orders], b"", 0
while not done:
    done, status = os.waitpid(child, os.WNOHANG)
    ready = select.select(sources, [], [], 0 if done else 0.02)[0]
    if master in ready and master in sources:
        try:
            os.write(screen, os.read(master, 65536))
        except OSError:
            sources.remove(master)
    if orders in ready:
        pending += os.read(orders, 4096)
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            order, _, what = line.decode().partition(" ")
            if order == "type":
                os.write(master, bytes.fromhex(what))
            elif order == "resize":
                size = struct.pack("HHHH", *map(int, what.split()), 0, 0)
                fcntl.ioctl(master, termios.TIOCSWINSZ, size)
            elif order == "hangup":
                sources = [orders]
                os.close(master)
if os.WIFSIGNALED(status):
    print("signal", os.WTERMSIG(status))
else:
    print("code", os.WEXITSTATUS(status))
"#;

impl<'f> Terminal<'f> {
    /// Starts a program there; none without Python.
    pub fn start(f: &'f Fixture, words: &[OsString]) -> Option<Self> {
        let python = python()?;
        let orders = Gate::new(f, "terminal.orders");
        let driver = f.program(python).args(["-c", TERMINAL, orders.arg()]);
        let driver = driver.arg(f.path("screen")).args(words).env("TERM", "xterm").start();
        Some(Self { f, driver, orders })
    }

    /// Types these bytes: `\x03` is Ctrl-C.
    pub fn press(&self, keys: &str) {
        let hex: String = keys.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.orders.say(&format!("type {hex}"));
    }

    /// Gives its window another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        self.orders.say(&format!("resize {rows} {columns}"));
    }

    /// Takes it away, as a closed window or a lost connection does.
    pub fn hang_up(&self) {
        self.orders.say("hangup");
    }

    /// Everything that was written to it.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.f.path("screen")).unwrap_or_default()).into_owned()
    }

    /// Waits until its program has ended: `signal 2`, `code 0`.
    pub fn end(self) -> String {
        let finished = self.driver.wait();
        finished.assert_code(0);
        finished.stdout_line().to_owned()
    }
}

/// Makes a fixture usable for every user, and returns a copy of the program that all may run.
pub fn open_to_everybody(f: &Fixture) -> PathBuf {
    let set = |path: PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    // The checkout and its target folder may lie where others cannot look.
    let program = f.path("buildlock");
    let copied = Command::new("cp").arg(buildlock_path()).arg(&program).status().unwrap();
    assert!(copied.success(), "cp to {program:?}");
    set(program.clone(), 0o755);
    let engine = f.path("bin/docker");
    fs::remove_file(&engine).unwrap();
    let copied = Command::new("cp").arg(stand_in()).arg(&engine).status().unwrap();
    assert!(copied.success(), "cp to {engine:?}");
    set(engine, 0o755);
    for folder in ["", "images", "work"] {
        set(f.path(folder), 0o777);
    }
    for log in ["builds.log", "looks.log", "args.log"] {
        fs::write(f.path(log), "").unwrap();
        set(f.path(log), 0o666);
    }
    program
}

/// Another user's id; nobody's, as it happens.
pub const OTHER_USER: u32 = 65534;

/// A program as that other user; only root can start it.
pub fn as_other_user<'f>(f: &'f Fixture, program: &Path) -> Invocation<'f> {
    let id = OTHER_USER.to_string();
    f.program("setpriv").args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program)
}

/// Is this path a FIFO?
pub fn is_fifo(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_fifo())
}
