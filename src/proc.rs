//! Reads what `/proc` says about processes.
//!
//! `/proc` belongs to the PID namespace in which it was mounted. In a new namespace without a new
//! `/proc` (`unshare --pid --fork`), its numbers belong to other processes than ours do. Such a
//! `/proc` counts as missing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};

// Numbers of fields for `stat_field`.
const STATE: usize = 0;
const PARENT: usize = 1;
const THREADS: usize = 17;
/// When the process started, in clock ticks after the machine did.
pub(crate) const STARTED: usize = 19;

/// Returns whether the process IDs in `/proc` are those that system calls take.
pub(crate) fn is_ours() -> bool {
    static IS_OURS: OnceLock<bool> = OnceLock::new();
    *IS_OURS.get_or_init(|| {
        let Some(status) = read("/proc/self/status") else { return false };
        numbers_agree(&status, std::process::id())
    })
}

/// Returns whether `/proc` is of our own PID namespace. The line `NSpid` has our number in each
/// namespace from that of `/proc` down to our own (proc_pid_status(5)), so one number means that
/// they are the same. Linux before 4.1 and some imitations have only `Pid`.
fn numbers_agree(status: &str, ours: u32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let numbers = field("NSpid:").or_else(|| field("Pid:")).unwrap_or_default();
    numbers.split_whitespace().eq([ours.to_string().as_str()])
}

/// Returns where `/proc` keeps something about a process, if its numbers are ours.
pub(crate) fn path(pid: u32, name: &str) -> Option<PathBuf> {
    is_ours().then(|| PathBuf::from(format!("/proc/{pid}/{name}")))
}

/// What `/proc/PID/stat` says about a process at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) parent: u32,
    /// When it was started, in ticks of the kernel's clock.
    pub(crate) started: u64,
    /// Whether its first thread has ended. The others may go on, but then `/proc` shows neither the
    /// descriptors of the process nor its command line.
    has_lost_its_first_thread: bool,
    threads: u32,
}

impl Look {
    /// Returns `None` if the process cannot be seen.
    pub(crate) fn at(pid: u32) -> Option<Self> {
        let stat = stat(pid)?;
        let number = |place| field(&stat, place)?.parse().ok();
        Some(Look {
            parent: number(PARENT)?,
            started: field(&stat, STARTED)?.parse().ok()?,
            has_lost_its_first_thread: matches!(field(&stat, STATE), Some("Z" | "X")),
            threads: number(THREADS).unwrap_or_default(),
        })
    }

    /// Returns whether the process has ended, and only its status is left for its parent.
    pub(crate) fn is_zombie(self) -> bool {
        self.has_lost_its_first_thread && self.threads <= 1
    }

    /// Returns whether the process runs although its first thread has ended.
    pub(crate) fn runs_without_its_first_thread(self) -> bool {
        self.has_lost_its_first_thread && self.threads > 1
    }
}

/// Returns whether a process has ended, and only its status is left for its parent. False if the
/// process cannot be seen.
pub(crate) fn is_zombie(pid: u32) -> bool {
    Look::at(pid).is_some_and(Look::is_zombie)
}

/// Opens `/proc/PID`. What is read below it is of this very process, even if another one gets its
/// number.
pub(crate) fn open(pid: u32) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path(pid, "")?, flags, Mode::empty()).ok()
}

/// Returns the path of something below what [`open`] returned.
pub(crate) fn below(process: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", process.as_raw_fd()))
}

/// Returns the parent of a process, if the process can be seen.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    stat_field(pid, PARENT)?.parse().ok()
}

/// Longest chain of parents that is followed. `/proc` is read piece by piece while processes come
/// and go, so the chain that we see could form a loop.
const ANCESTORS_MAX: usize = 1000;

/// Returns the ancestors of this process, nearest first.
pub(crate) fn ancestors() -> Vec<u32> {
    std::iter::successors(parent(std::process::id()), |&pid| parent(pid))
        .take_while(|&pid| pid > 0)
        .take(ANCESTORS_MAX)
        .collect()
}

/// Returns the user of a process, even of one that we may not trace.
pub(crate) fn user(pid: u32) -> Option<u32> {
    user_in(&path(pid, "status")?)
}

/// Returns the user that a file `status` names: the real one, not that of a setuid program.
pub(crate) fn user_in(status: &Path) -> Option<u32> {
    let status = read(status)?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Returns whether looking at the memory and the descriptors of this user's processes cannot block.
/// Another user could make it wait in the kernel, with a file system in user space for example.
pub(crate) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Returns a field of `/proc/PID/stat` (proc_pid_stat(5)), counted from the one after the program's
/// name.
pub(crate) fn stat_field(pid: u32, number: usize) -> Option<String> {
    field(&stat(pid)?, number).map(str::to_owned)
}

fn stat(pid: u32) -> Option<String> {
    read(path(pid, "stat")?)
}

/// Reads a file of `/proc`. It need not be UTF-8: a process may have any bytes as its name.
fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read(path).ok().map(|text| String::from_utf8_lossy(&text).into_owned())
}

fn field(stat: &str, number: usize) -> Option<&str> {
    // The program's name is in parentheses, and may contain more of them.
    stat.rsplit_once(')')?.1.split_whitespace().nth(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_of_another_namespace_is_recognised_by_its_numbers() {
        assert!(numbers_agree("Name:\tx\nPid:\t7\nNSpid:\t7\n", 7));
        assert!(numbers_agree("Name:\tx\nPid:\t7\n", 7));
        // A process of an inner namespace, seen from outside, in the end with the same number by chance.
        assert!(!numbers_agree("Pid:\t4242\nNSpid:\t4242\t7\n", 7));
        assert!(!numbers_agree("Pid:\t7\nNSpid:\t7\t7\n", 7));
        assert!(!numbers_agree("", 7));
    }

    #[test]
    fn this_process_is_seen_with_its_user_and_parent() {
        let ours = std::process::id();
        assert!(is_ours() && !is_zombie(ours));
        assert_eq!(parent(ours), Some(std::os::unix::process::parent_id()));
        assert_eq!(ancestors().first().copied(), Some(std::os::unix::process::parent_id()));
        assert_eq!(user(ours), Some(rustix::process::getuid().as_raw()));
    }
}
