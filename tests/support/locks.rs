//! Lock files: where they are, what the kernel says of them, and locks of foreign programs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::fixture::{Fixture, sha256};
use super::program::Running;
use super::requirements::python;

impl Fixture {
    /// Returns the lock file of a canonical tag (`env:abc`, `ghcr.io/a/b:latest`).
    pub fn lock_file(&self, tag: &str) -> PathBuf {
        self.lock_dir().join("image-locks").join(format!("{}.lock", sha256(tag)))
    }

    /// Returns the lock file of a named lock.
    pub fn named_lock_file(&self, name: &str) -> PathBuf {
        self.lock_dir().join("named-locks").join(format!("{}.lock", sha256(name)))
    }

    /// Waits until a process holds this lock file, and returns its pid.
    pub fn wait_for_holder(&self, lock_file: &Path) -> u32 {
        let mut holder = None;
        self.wait_for(&format!("a holder of {lock_file:?}"), || {
            holder = holders(lock_file).first().copied();
            holder.is_some()
        });
        holder.unwrap()
    }

    /// Waits until this many processes wait for this lock file.
    pub fn wait_for_waiters(&self, lock_file: &Path, n: usize) {
        self.wait_for(&format!("{n} waiters for {lock_file:?}"), || waiters(lock_file).len() >= n);
    }

    /// Holds a lock file exclusively, as a foreign program would, until the value is dropped.
    ///
    /// The file and its folders are made if need be.
    pub fn hold_lock(&self, lock_file: &Path) -> ForeignLock {
        self.flock(lock_file, "--exclusive")
    }

    /// Holds a lock file shared, as a reader would.
    pub fn hold_lock_shared(&self, lock_file: &Path) -> ForeignLock {
        self.flock(lock_file, "--shared")
    }

    /// Locks this many bytes of the guard with fcntl(2), as any user may, until the value is dropped.
    /// Every caller of the kernel has to go through all of them.
    pub fn lock_bytes_of_guard(&self, n: usize) -> Option<Running<'_>> {
        // One range, in which every other byte is unlocked from its end on: that is the fastest way.
        let script = "
import fcntl, struct, sys, time
guard, n = open(sys.argv[1], 'r+b'), int(sys.argv[2])
F_OFD_SETLK = 37
def lock(kind, start, length):
    fcntl.fcntl(guard, F_OFD_SETLK, struct.pack('hhqqi', kind, 0, start, length, 0))
lock(fcntl.F_WRLCK, 0, 2 * n)
for i in range(n - 1, 0, -1):
    lock(fcntl.F_UNLCK, 2 * i - 1, 1)
print('locked', flush=True)
time.sleep(600)";
        self.buildlock(["path", "any:1"]).run().assert_code(0);
        let program = self.program(python()?).args(["-c", script]).arg(self.guard());
        let holder = program.arg(n.to_string()).start();
        self.wait_for("the locks", || holder.stdout() == "locked\n");
        Some(holder)
    }

    // The test itself cannot hold it: it is an ancestor of what it starts, and buildlock does not
    // wait for a lock that its ancestor holds.
    fn flock(&self, lock_file: &Path, kind: &str) -> ForeignLock {
        drop(self.open_lock_file(lock_file));
        let mut flock = Command::new("flock");
        flock.args([kind, "--no-fork"]).arg(lock_file).args(["sleep", "600"]);
        let child = flock.current_dir(self.work_dir()).stdin(Stdio::null()).spawn();
        let holder = ForeignLock(child.unwrap_or_else(|e| panic!("flock(1): {e}")));
        self.wait_for(&format!("the holder of {lock_file:?}"), || {
            holders(lock_file).contains(&holder.pid())
        });
        holder
    }

    /// Opens a lock file. If it is missing, it is made as buildlock makes it.
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
}

/// A lock that flock(1), which knows nothing of buildlock, holds until this is dropped.
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

/// Returns who holds a file or waits for it, as the kernel tells it; nobody if it is missing.
///
/// The kernel hands the table out a page at a time. While locks elsewhere come and go, a line may
/// be missing or come twice, so the table is read until two readings agree.
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

/// Returns the pids of those who hold a lock file, as the kernel tells it.
pub fn holders(lock_file: &Path) -> Vec<u32> {
    kernel_locks(lock_file).into_iter().filter(|l| !l.waiting).map(|l| l.pid).collect()
}

/// Returns the pids of those who wait for a lock file, as the kernel tells it.
pub fn waiters(lock_file: &Path) -> Vec<u32> {
    kernel_locks(lock_file).into_iter().filter(|l| l.waiting).map(|l| l.pid).collect()
}

/// Is this lock free right now?
pub fn is_free(lock_file: &Path) -> bool {
    let file = File::open(lock_file).unwrap();
    fs2::FileExt::try_lock_exclusive(&file).is_ok()
}
