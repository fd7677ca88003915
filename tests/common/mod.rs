//! What the tests share: a [`Fixture`] with its own folder, stand-in engine and lock folder.
//!
//! ```ignore
//! let f = Fixture::new();
//! f.hold_builds();                                  // builds stop at a gate
//! let first = f.docker_build("env:abc").start();    // buildlock -t env:abc -- docker build ...
//! f.wait_for_builds(1);                             // until the stand-in has begun
//! let second = f.docker_build("env:abc").start();
//! f.wait_for_waiters(&f.lock_file("env:abc"), 1);   // until the kernel says that it waits
//! f.release_builds();
//! first.wait().assert_code(0);
//! second.wait().assert_code(0).assert_stderr("env:abc");
//! assert_eq!(f.build_count("env:abc"), 1);
//! ```
//!
//! `f.buildlock([...])` takes any arguments, `.env(...)`, `.stdin(...)`; `.run()` is start and
//! wait. `f.steer("STANDIN_BUILD_STATUS=3")` orders faults, also while things run (see the head of
//! `tests/stand-in/docker`). Everything waits for events, and gives up after [`BOUND`] with what
//! there was to see. Whatever a test leaves running is killed, by pid, when its fixture goes.
// Each test file uses a part of it.
#![allow(dead_code, unreachable_pub)]

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The longest wait for anything that must happen.
pub const BOUND: Duration = Duration::from_secs(120);

/// A folder of its own with a stand-in engine in front of PATH and a lock folder.
pub struct Fixture {
    dir: TempDir,
    runs: Cell<usize>,
    gate: RefCell<Option<File>>,
}

impl Fixture {
    /// An engine without images, and no lock folder yet.
    pub fn new() -> Self {
        restore_signals();
        let dir = tempfile::Builder::new().prefix("buildlock-test-").tempdir().unwrap();
        let f = Self { dir, runs: Cell::new(0), gate: RefCell::new(None) };
        for folder in ["bin", "images", "out", "work"] {
            fs::create_dir(f.path(folder)).unwrap();
        }
        f.install_engine("docker");
        f
    }

    /// A path in the fixture's folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where COMMAND and buildlock run.
    pub fn work_dir(&self) -> PathBuf {
        self.path("work")
    }

    /// The lock folder; buildlock makes it.
    pub fn lock_dir(&self) -> PathBuf {
        self.path("locks")
    }

    /// Puts the stand-in into PATH under this name (docker, podman, nerdctl).
    pub fn install_engine(&self, name: &str) {
        symlink(stand_in(), self.path("bin").join(name)).unwrap();
    }

    /// Puts a script into PATH.
    pub fn install_script(&self, name: &str, text: &str) -> PathBuf {
        self.write_executable(Path::new("bin").join(name), text)
    }

    /// Writes an executable file.
    ///
    /// By another process: were the file open for writing here while a test beside this one
    /// forks, its execution would fail with ETXTBSY.
    pub fn write_executable(&self, name: impl AsRef<Path>, text: &str) -> PathBuf {
        let path = self.path(name);
        let source = self.path("executable.txt");
        fs::write(&source, text).unwrap();
        let status = Command::new("install").args(["-m", "755"]).args([&source, &path]).status();
        assert!(status.unwrap().success(), "install {path:?}");
        path
    }

    /// Puts a copy of buildlock here, for users who may not enter the folder where it was built.
    pub fn install_buildlock(&self) -> PathBuf {
        let path = self.path("buildlock");
        let program = assert_cmd::cargo::cargo_bin!("buildlock");
        let status = Command::new("install").args(["-m", "755"]).args([program, &path]).status();
        assert!(status.unwrap().success(), "install {path:?}");
        path
    }

    /// PATH as buildlock gets it.
    pub fn search_path(&self) -> OsString {
        let outside = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.path("bin")).chain(std::env::split_paths(&outside));
        std::env::join_paths(folders).unwrap()
    }

    /// `buildlock ARGS`, not started yet.
    pub fn buildlock<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation<'_> {
        self.program(assert_cmd::cargo::cargo_bin!("buildlock")).args(args)
    }

    /// `buildlock -t TAG -- docker build -t TAG .`
    pub fn docker_build(&self, tag: &str) -> Invocation<'_> {
        self.buildlock(["-t", tag, "--", "docker", "build", "-t", tag, "."])
    }

    /// Any program, in the same surroundings as buildlock.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Invocation<'_> {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ENGINE_VARIABLES.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.work_dir())
            .env("STANDIN", self.dir.path())
            .env("BUILDLOCK_DIR", self.lock_dir())
            .env("PATH", self.search_path())
            .env("LC_ALL", "C");
        Invocation { fixture: self, command, stdin: Vec::new() }
    }

    // The engine.

    /// Orders what the stand-in does from now on: assignments of a shell, replacing earlier ones.
    pub fn steer(&self, assignments: &str) {
        let fresh = self.path("steer.new");
        fs::write(&fresh, assignments).unwrap();
        fs::rename(fresh, self.path("steer")).unwrap();
    }

    /// From now on each build stops at the gate.
    pub fn hold_builds(&self) {
        let gate = self.path("gate");
        let status = Command::new("mkfifo").arg(&gate).status().unwrap();
        assert!(status.success(), "mkfifo {gate:?}");
        // Opened for both, so that neither side ever blocks in open, and kept open, so that no
        // reader meets an end of file.
        let file = OpenOptions::new().read(true).write(true).open(gate).unwrap();
        *self.gate.borrow_mut() = Some(file);
    }

    /// Lets this many of the builds go on that stop at the gate, now or later.
    pub fn let_builds_go(&self, n: usize) {
        let gate = self.gate.borrow();
        let mut gate = gate.as_ref().expect("hold_builds comes first");
        gate.write_all("\n".repeat(n).as_bytes()).unwrap();
    }

    /// Lets all builds go on, now and later.
    pub fn release_builds(&self) {
        self.let_builds_go(30_000);
    }

    /// Makes an image appear.
    pub fn make_image(&self, tag: &str) {
        let path = self.path("images").join(tag);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "linux/amd64\n").unwrap();
    }

    /// Does the engine have this image? By its name with a tag.
    pub fn has_image(&self, tag: &str) -> bool {
        self.path("images").join(tag).is_file()
    }

    /// The starts and ends of builds, in the order in which they happened.
    pub fn build_events(&self) -> Vec<BuildEvent> {
        self.lines("builds.log").iter().map(|line| BuildEvent::parse(line)).collect()
    }

    /// How many builds of this tag were started.
    pub fn build_count(&self, tag: &str) -> usize {
        self.build_events().iter().filter(|e| e.is_start() && e.tag == tag).count()
    }

    /// Waits until this many builds were started, of whatever tag.
    pub fn wait_for_builds(&self, n: usize) {
        self.wait_for(&format!("{n} builds to start"), || {
            self.build_events().iter().filter(|e| e.is_start()).count() >= n
        });
    }

    /// Fails if a build of a tag began before the one before it had ended.
    pub fn assert_no_overlap(&self) {
        let mut running: Vec<BuildEvent> = Vec::new();
        for event in self.build_events() {
            if event.is_start() {
                let other = running.iter().find(|e| e.tag == event.tag);
                assert!(other.is_none(), "{event:?} began beside {other:?}\n{}", self.scene());
                running.push(event);
            } else {
                running.retain(|e| (&e.tag, e.pid) != (&event.tag, event.pid));
            }
        }
    }

    /// The look-ups, a line each: `look TAG PID ANSWER VARIABLES : WORDS`.
    pub fn looks(&self) -> Vec<String> {
        self.lines("looks.log")
    }

    /// The lines of a file of the fixture; none if it is not there.
    pub fn lines(&self, name: impl AsRef<Path>) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    // Locks.

    /// The lock file of a canonical tag (`env:abc`, `ghcr.io/a/b:latest`).
    pub fn lock_file(&self, tag: &str) -> PathBuf {
        self.lock_dir().join("image-locks").join(format!("{}.lock", sha256(tag)))
    }

    /// The lock file of a named lock.
    pub fn named_lock_file(&self, name: &str) -> PathBuf {
        self.lock_dir().join("named-locks").join(format!("{}.lock", sha256(name)))
    }

    /// The file of which each lock takes a byte.
    pub fn guard(&self) -> PathBuf {
        self.lock_dir().join("guard")
    }

    /// Every file below the lock folder, but for the guard, which stays there.
    pub fn lock_files(&self) -> Vec<PathBuf> {
        fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { collect(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        collect(&self.lock_dir(), &mut found);
        found.retain(|file| *file != self.guard());
        found
    }

    /// Waits until somebody holds this lock file, and says who.
    pub fn wait_for_holder(&self, lock_file: &Path) -> u32 {
        let mut holder = 0;
        self.wait_for(&format!("a holder of {lock_file:?}"), || {
            let found = kernel_locks(lock_file).into_iter().find(|l| !l.waiting);
            holder = found.as_ref().map_or(0, |l| l.pid);
            found.is_some()
        });
        holder
    }

    /// Waits until this many processes wait for this lock file.
    pub fn wait_for_waiters(&self, lock_file: &Path, n: usize) {
        self.wait_for(&format!("{n} waiters for {lock_file:?}"), || {
            kernel_locks(lock_file).iter().filter(|l| l.waiting).count() >= n
        });
    }

    /// Holds a lock file exclusively, as a foreign program would, until this is dropped.
    ///
    /// The file and its folders are made if need be.
    pub fn hold_lock(&self, lock_file: &Path) -> ForeignLock {
        self.flock(lock_file, "--exclusive")
    }

    /// Holds a lock file shared.
    pub fn hold_lock_shared(&self, lock_file: &Path) -> ForeignLock {
        self.flock(lock_file, "--shared")
    }

    // Not locked here: this process is the parent of what it starts, and what an ancestor holds,
    // buildlock does not wait for.
    fn flock(&self, lock_file: &Path, kind: &str) -> ForeignLock {
        drop(self.open_lock_file(lock_file));
        let mut flock = Command::new("flock");
        flock.args([kind, "--no-fork"]).arg(lock_file).args(["sleep", "600"]);
        let child = flock.current_dir(self.work_dir()).stdin(Stdio::null()).spawn();
        let holder = ForeignLock(child.unwrap_or_else(|e| panic!("flock(1): {e}")));
        self.wait_for(&format!("the holder of {lock_file:?}"), || {
            let pid = holder.pid();
            kernel_locks(lock_file).iter().any(|lock| lock.pid == pid && !lock.waiting)
        });
        holder
    }

    /// Opens a lock file, made as buildlock makes it if it is not there.
    pub fn open_lock_file(&self, lock_file: &Path) -> File {
        for folder in [self.lock_dir(), lock_file.parent().unwrap().to_owned()] {
            if !folder.exists() {
                fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
            }
        }
        if !lock_file.exists() {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(lock_file);
            file.unwrap().set_permissions(fs::Permissions::from_mode(0o666)).unwrap();
        }
        OpenOptions::new().read(true).open(lock_file).unwrap()
    }

    // Waiting.

    /// Waits until `happened` is true; fails after [`BOUND`] with everything there is to see.
    pub fn wait_for(&self, what: &str, happened: impl FnMut() -> bool) {
        self.wait_for_within(BOUND, what, happened);
    }

    /// The same for what takes longer.
    pub fn wait_for_within(&self, bound: Duration, what: &str, mut happened: impl FnMut() -> bool) {
        let start = Instant::now();
        while !happened() {
            assert!(start.elapsed() < bound, "no sight of {what}\n{}", self.scene());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a file is there and not empty, and returns its text.
    pub fn wait_for_file(&self, name: impl AsRef<Path>) -> String {
        let path = self.path(name);
        let mut text = String::new();
        self.wait_for(&format!("{path:?}"), || {
            text = fs::read_to_string(&path).unwrap_or_default();
            text.ends_with('\n')
        });
        text
    }

    /// Waits until a process is gone.
    pub fn wait_for_death(&self, pid: u32) {
        self.wait_for(&format!("the end of process {pid}"), || !is_alive(pid));
    }

    /// What there is to see, for messages of failed tests.
    pub fn scene(&self) -> String {
        let mut text = String::from("--- processes of this test\n");
        for pid in self.processes() {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let _ = writeln!(text, "{pid} {}", String::from_utf8_lossy(&words).replace('\0', " "));
        }
        let folder = |name| fs::read_dir(self.path(name)).into_iter().flatten().flatten();
        let mut files: Vec<_> = folder("").chain(folder("out")).map(|entry| entry.path()).collect();
        files.extend(self.lock_files());
        files.sort();
        for path in files {
            // Not the gate: reading it would take what builds wait for. Nor a program.
            if fs::symlink_metadata(&path)
                .is_ok_and(|m| m.is_file() && (1..64 * 1024).contains(&m.len()))
            {
                let bytes = fs::read(&path).unwrap_or_default();
                let _ = writeln!(text, "--- {path:?}\n{}", String::from_utf8_lossy(&bytes));
            }
        }
        let _ = writeln!(text, "--- /proc/locks");
        text + &fs::read_to_string("/proc/locks").unwrap_or_default()
    }

    /// The processes of this test, but for this one: they have its folder in their environment or
    /// as their working folder.
    pub fn processes(&self) -> Vec<u32> {
        let mark = format!("STANDIN={}", self.dir.path().display()).into_bytes();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid: &u32| pid != std::process::id() && is_alive(pid))
            .filter(|pid| {
                let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
                variables.split(|&b| b == 0).any(|variable| variable == mark)
                    || folder.starts_with(self.dir.path())
            })
            .collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Again and again, for they may start others meanwhile.
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                send_signal(pid, "KILL");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Variables from outside that would steer buildlock, an engine's client or make.
const ENGINE_VARIABLES: [&str; 14] = [
    "BUILDLOCK_",
    "COMPOSE_",
    "DOCKER_",
    "BUILDKIT_",
    "BUILDX_",
    "CONTAINER",
    "PODMAN_",
    "NERDCTL_",
    "STANDIN",
    "MAKE",
    "CARGO_MAKEFLAGS",
    "MFLAGS",
    "NO_COLOR",
    "CLICOLOR",
];

/// A program with its arguments, to be started.
pub struct Invocation<'f> {
    fixture: &'f Fixture,
    command: Command,
    stdin: Vec<u8>,
}

impl<'f> Invocation<'f> {
    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// One more environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// One environment variable less.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Another working folder.
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// What it can read from stdin; nothing by default.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// For what has no method here.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// For what is started in another way.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Starts it. Output goes to files: a daemon that keeps a pipe open cannot hold the test up.
    pub fn start(mut self) -> Running<'f> {
        let n = self.fixture.runs.get() + 1;
        self.fixture.runs.set(n);
        let stdin = self.fixture.path(format!("out/{n}.in"));
        let stdout = self.fixture.path(format!("out/{n}.out"));
        let stderr = self.fixture.path(format!("out/{n}.err"));
        fs::write(&stdin, &self.stdin).unwrap();
        self.command.stdin(File::open(stdin).unwrap());
        self.command.stdout(Stdio::from(File::create(&stdout).unwrap()));
        self.command.stderr(Stdio::from(File::create(&stderr).unwrap()));
        let child = self.command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", self.command));
        let words = format!("{:?}", self.command);
        Running { fixture: self.fixture, child, stdout, stderr, words, start: Instant::now() }
    }

    /// Starts it and waits until it has ended.
    pub fn run(self) -> Finished {
        self.start().wait()
    }
}

/// A lock that flock(1) holds, until this is dropped.
pub struct ForeignLock(Child);

impl ForeignLock {
    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for ForeignLock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that was started; killed when this is dropped.
pub struct Running<'f> {
    fixture: &'f Fixture,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    words: String,
    start: Instant,
}

impl Running<'_> {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap()).into_owned()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap()).into_owned()
    }

    /// Waits until stderr contains this.
    pub fn wait_for_stderr(&self, text: &str) {
        self.fixture.wait_for(&format!("{text:?} on stderr of {}", self.words), || {
            self.stderr().contains(text)
        });
    }

    /// Sends a signal (`TERM`, `KILL`, ...).
    pub fn signal(&self, name: &str) {
        send_signal(self.pid(), name);
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended.
    pub fn wait(self) -> Finished {
        self.wait_within(BOUND)
    }

    /// The same for what takes longer.
    pub fn wait_within(mut self, bound: Duration) -> Finished {
        let mut status = None;
        self.fixture.wait_for_within(bound, &format!("the end of {}", self.words), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        Finished {
            status: status.unwrap(),
            stdout: fs::read(&self.stdout).unwrap(),
            stderr: self.stderr(),
            words: self.words.clone(),
            elapsed: self.start.elapsed(),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that has ended.
pub struct Finished {
    /// As the kernel tells it: a code or a signal.
    pub status: ExitStatus,
    /// The bytes of its stdout.
    pub stdout: Vec<u8>,
    /// The text of its stderr.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
    words: String,
}

impl Finished {
    /// Fails unless it ended with this exit status.
    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Fails unless it was ended by this signal.
    #[track_caller]
    pub fn assert_signal(&self, signal: i32) -> &Self {
        assert_eq!(self.status.signal(), Some(signal), "{self}");
        assert!(!self.status.core_dumped(), "dumped core: {self}");
        self
    }

    /// Fails unless stderr contains this.
    #[track_caller]
    pub fn assert_stderr(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "no {text:?} on stderr\n{self}");
        self
    }

    /// Fails if stderr contains this.
    #[track_caller]
    pub fn assert_no_stderr(&self, text: &str) -> &Self {
        assert!(!self.stderr.contains(text), "{text:?} on stderr\n{self}");
        self
    }

    /// Fails unless stderr matches this regular expression.
    #[track_caller]
    pub fn assert_stderr_matches(&self, pattern: &str) -> &Self {
        let pattern = regex::Regex::new(pattern).unwrap();
        assert!(pattern.is_match(&self.stderr), "no {pattern} on stderr\n{self}");
        self
    }

    /// Fails unless stdout is exactly this.
    #[track_caller]
    pub fn assert_stdout(&self, bytes: impl AsRef<[u8]>) -> &Self {
        let wanted = String::from_utf8_lossy(bytes.as_ref()).into_owned();
        assert_eq!(String::from_utf8_lossy(&self.stdout), wanted, "{self}");
        self
    }

    /// Stdout as text, without the newline at its end.
    pub fn stdout_line(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim_end_matches('\n')
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout);
        write!(f, "{}\n{}\n--- stdout\n{stdout}\n--- stderr\n", self.words, self.status)?;
        f.write_str(&self.stderr)
    }
}

/// One line of the stand-in's list of builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildEvent {
    /// Of the tag as the engine keeps it.
    pub tag: String,
    /// The client's process.
    pub pid: u32,
    /// Since 1970.
    pub nanoseconds: u128,
    /// What it ended with (`0`, `143`, `killed`); none for a start.
    pub end: Option<String>,
}

impl BuildEvent {
    /// Is this the start of a build?
    pub fn is_start(&self) -> bool {
        self.end.is_none()
    }

    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        Self {
            tag: words[1].to_owned(),
            pid: words[2].parse().unwrap(),
            nanoseconds: words[3].parse().unwrap_or_default(),
            end: (words[0] == "end").then(|| words[4].to_owned()),
        }
    }
}

/// A line of `/proc/locks` about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLock {
    /// The process that took the lock or waits for it.
    pub pid: u32,
    /// Or shared.
    pub exclusive: bool,
    /// Or held.
    pub waiting: bool,
}

/// Who holds this file or waits for it, as the kernel tells it; nobody if it is not there.
///
/// The kernel hands the table out a page at a time: while locks elsewhere come and go, a line may
/// be missing or come twice. So it is read until two readings agree.
pub fn kernel_locks(file: &Path) -> Vec<KernelLock> {
    let mut last = kernel_locks_once(file);
    for _ in 0..100 {
        let again = kernel_locks_once(file);
        if again == last {
            break;
        }
        last = again;
    }
    last
}

fn kernel_locks_once(file: &Path) -> Vec<KernelLock> {
    let Ok(metadata) = fs::metadata(file) else { return Vec::new() };
    let device = metadata.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let name = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let table = fs::read_to_string("/proc/locks").unwrap();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut locks = Vec::new();
    for mut words in lines {
        let waiting = words[1] == "->";
        if waiting {
            words.remove(1);
        }
        let [_, "FLOCK", _, kind, pid, place, ..] = words[..] else { continue };
        let Ok(pid) = pid.parse() else { continue };
        let lock = KernelLock { pid, exclusive: kind == "WRITE", waiting };
        if place == name && !locks.contains(&lock) {
            locks.push(lock);
        }
    }
    locks
}

/// Is there such a process, and no mere zombie?
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name before it, in parentheses, may hold anything.
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !state.starts_with(['Z', 'X'])
}

/// Sends a signal by its name without SIG; a process that is gone is no error.
pub fn send_signal(pid: u32, name: &str) {
    if name.starts_with("RT") {
        // nix has no names for real-time signals.
        let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
        return;
    }
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().unwrap();
    let _ = nix::sys::signal::kill(pid, signal);
}

/// Tests that run in the background of a shell start with signals ignored, and what they start
/// would have to keep it so.
fn restore_signals() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for name in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGTERM] {
            // SAFETY: no handler is installed, and none is replaced.
            #[allow(unsafe_code)]
            unsafe { signal(name, SigHandler::SigDfl) }.unwrap();
        }
    });
}

/// Says in one line, past the test runner's capture, what cannot be tested here and why.
///
/// # Panics
/// Where root runs the tests with `BUILDLOCK_REQUIRE_ENGINE`, as `.ci/run` does after it has
/// installed everything.
#[track_caller]
pub fn skip(reason: &str) {
    let must = std::env::var_os("BUILDLOCK_REQUIRE_ENGINE").is_some();
    let root = rustix::process::geteuid().is_root();
    assert!(!must || !root, "{reason}, and nothing is to be skipped");
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// True for root; otherwise says that the test is skipped.
#[track_caller]
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("needs root");
    }
    root
}

/// Hexadecimal, as in the names of lock files.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The stand-in engine's script.
pub fn stand_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-in/docker")
}
