//! A temporary folder with everything one test needs, and waiting for what happens in it.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::process::{is_alive, restore_signals, send_signal};

/// The longest wait for anything that must happen.
pub const BOUND: Duration = Duration::from_secs(120);

/// How long to sleep before looking again: soon at first, since most things happen at once.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(5);

/// A temporary folder with a stand-in engine in front of PATH and a lock folder.
pub struct Fixture {
    dir: TempDir,
    /// How many programs were started, to name their output.
    pub(super) runs: Cell<usize>,
    /// Where builds stop, if they do.
    pub(super) gate: RefCell<Option<File>>,
}

impl Fixture {
    /// Makes a fixture whose engine has no images. There is no lock folder yet.
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

    /// Returns the fixture's folder, which scripts know as `$STANDIN`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a path in the fixture's folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the folder in which buildlock and the build command run.
    pub fn work_dir(&self) -> PathBuf {
        self.path("work")
    }

    /// Returns the lock folder, which buildlock makes.
    pub fn lock_dir(&self) -> PathBuf {
        self.path("locks")
    }

    /// Puts a script into PATH.
    pub fn install_script(&self, name: &str, text: &str) -> PathBuf {
        self.write_executable(Path::new("bin").join(name), text)
    }

    /// Writes an executable file.
    ///
    /// Another process writes it. If it were open for writing here while another test forks, its
    /// execution would fail with ETXTBSY.
    pub fn write_executable(&self, name: impl AsRef<Path>, text: &str) -> PathBuf {
        let source = self.path("executable.txt");
        fs::write(&source, text).unwrap();
        self.install(&source, name)
    }

    /// Copies an executable file to here, in the way of [`Self::write_executable`].
    pub fn install(&self, source: &Path, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        let status = Command::new("install").args(["-m", "755"]).args([source, &path]).status();
        assert!(status.unwrap().success(), "install {path:?}");
        path
    }

    /// Returns the lines of a file of the fixture; none if the file is missing.
    pub fn lines(&self, name: impl AsRef<Path>) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until `happened` is true; fails after [`BOUND`] with everything there is to see.
    pub fn wait_for(&self, what: &str, happened: impl FnMut() -> bool) {
        self.wait_for_within(BOUND, what, happened);
    }

    /// The same with another bound.
    pub fn wait_for_within(&self, bound: Duration, what: &str, mut happened: impl FnMut() -> bool) {
        let start = Instant::now();
        let mut pause = LOOK_AGAIN;
        while !happened() {
            assert!(start.elapsed() < bound, "no sight of {what}\n{}", self.scene());
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOK_AGAIN_MAX);
        }
    }

    /// Waits until a file has a complete line, and returns its text.
    pub fn wait_for_file(&self, name: impl AsRef<Path>) -> String {
        let path = self.path(name);
        let mut text = String::new();
        self.wait_for(&format!("{path:?}"), || {
            text = fs::read_to_string(&path).unwrap_or_default();
            text.ends_with('\n')
        });
        text
    }

    /// Waits until a file of the fixture holds a pid, and returns it.
    pub fn wait_for_pid(&self, name: &str) -> u32 {
        self.wait_for_file(name).trim().parse().unwrap()
    }

    /// Waits until a process is gone.
    pub fn wait_for_death(&self, pid: u32) {
        self.wait_for(&format!("the end of process {pid}"), || !is_alive(pid));
    }

    /// Returns every file below the lock folder, except for the guard, which stays there.
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

    /// Returns the guard: the file of which each lock takes a byte.
    pub fn guard(&self) -> PathBuf {
        self.lock_dir().join("guard")
    }

    /// Describes everything there is to see, for messages of failed tests.
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

    /// Returns the processes of this test, except for this one. They have its folder in their
    /// environment or as their working folder.
    pub fn processes(&self) -> Vec<u32> {
        let mark = format!("STANDIN={}", self.dir.path().display()).into_bytes();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid: &u32| pid != std::process::id())
            .filter(|pid| {
                fs::read_link(format!("/proc/{pid}/cwd"))
                    .is_ok_and(|folder| folder.starts_with(self.dir.path()))
                    || fs::read(format!("/proc/{pid}/environ"))
                        .is_ok_and(|all| all.split(|&b| b == 0).any(|one| one == mark))
            })
            .filter(|&pid| is_alive(pid))
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

/// Returns the hash of a text in hexadecimal, as in the names of lock files.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
