//! Programs that a test starts: buildlock and others, in the surroundings of a fixture.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::fixture::{BOUND, Fixture};
use super::process::send_signal;

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

/// Returns the program under test, for scripts that start it.
pub fn buildlock_path() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("buildlock").to_path_buf()
}

impl Fixture {
    /// Returns PATH as buildlock gets it.
    pub fn search_path(&self) -> OsString {
        let outside = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.path("bin")).chain(std::env::split_paths(&outside));
        std::env::join_paths(folders).unwrap()
    }

    /// Puts a copy of buildlock here, for users who may not enter the folder where it was built.
    pub fn install_buildlock(&self) -> PathBuf {
        self.install(&buildlock_path(), "buildlock")
    }

    /// Prepares `buildlock ARGS`.
    pub fn buildlock<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation<'_> {
        self.program(buildlock_path()).args(args)
    }

    /// Prepares `buildlock -t TAG -- docker build -t TAG .`
    pub fn docker_build(&self, tag: &str) -> Invocation<'_> {
        self.buildlock(["-t", tag, "--", "docker", "build", "-t", tag, "."])
    }

    /// Prepares any program, in the same surroundings as buildlock.
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
            .env("STANDIN", self.dir())
            .env("BUILDLOCK_DIR", self.lock_dir())
            .env("PATH", self.search_path())
            .env("LC_ALL", "C");
        Invocation { fixture: self, command, stdin: Vec::new() }
    }
}

/// A program with its arguments, ready to be started.
pub struct Invocation<'f> {
    fixture: &'f Fixture,
    command: Command,
    stdin: Vec<u8>,
}

impl<'f> Invocation<'f> {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the working folder.
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets what it can read from stdin; nothing by default.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Gives access to what has no method here.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Returns the command, to start it in another way.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Starts it. Output goes to files, so that a daemon with an open pipe cannot hold the test up.
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
        // Before the program has begun: this thread may not run again soon.
        let start = Instant::now();
        let child = self.command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", self.command));
        let words = format!("{:?}", self.command);
        Running { fixture: self.fixture, child, stdout, stderr, words, start }
    }

    /// Starts it and waits until it has ended.
    pub fn run(self) -> Finished {
        self.start().wait()
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
    /// Returns its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it has written to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap()).into_owned()
    }

    /// Returns what it has written to stdout so far.
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

    /// The same with another bound.
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
    /// A code or a signal.
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

    /// Returns stdout as text, without the newline at its end.
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
