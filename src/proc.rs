//! What `/proc` says of processes.
//!
//! `/proc` belongs to the PID namespace in which it was mounted. In a new namespace without a new
//! `/proc` (`unshare --pid --fork`), each number in there names another process than it does to us.
//! Such a `/proc` is treated as if there were none.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The state's place among the fields of [`stat_field`].
const STATE: usize = 0;
/// The parent's.
pub const PARENT: usize = 1;
/// That of the number of threads.
const THREADS: usize = 17;
/// That of the moment at which it was started, in ticks of the kernel's clock since that was.
pub const STARTED: usize = 19;

/// Returns whether process ids in `/proc` are the ones that system calls take.
pub fn is_ours() -> bool {
    static IS_OURS: OnceLock<bool> = OnceLock::new();
    *IS_OURS.get_or_init(|| {
        let Some(status) = read("/proc/self/status") else { return false };
        numbers_agree(&status, std::process::id())
    })
}

/// The line `NSpid` has our number in each PID namespace from that of `/proc` down to our own
/// (proc_pid_status(5)), so there is one number if both are the same. Linux before 4.1 and some
/// imitations have only `Pid`.
fn numbers_agree(status: &str, ours: u32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let numbers = field("NSpid:").or_else(|| field("Pid:")).unwrap_or_default();
    numbers.split_whitespace().eq([ours.to_string().as_str()])
}

/// Where `/proc` keeps something about a process; none if it cannot say anything about it.
pub fn path(pid: u32, name: &str) -> Option<PathBuf> {
    is_ours().then(|| PathBuf::from(format!("/proc/{pid}/{name}")))
}

/// Has it ended, so that only its status is left for its parent? False where it cannot be seen.
pub fn is_zombie(pid: u32) -> bool {
    let Some(stat) = stat(pid) else { return false };
    // One whose first thread has ended before the others is shown as a zombie, and goes on.
    matches!(field(&stat, STATE), Some("Z" | "X"))
        && matches!(field(&stat, THREADS), None | Some("0" | "1"))
}

/// The parent of a process, if it can be seen.
pub fn parent(pid: u32) -> Option<u32> {
    stat_field(pid, PARENT)?.parse().ok()
}

/// No chain of parents is longer; a loop cannot be, but /proc is read piece by piece.
const ANCESTORS_MAX: usize = 1000;

/// This process's chain of parents, nearest first.
pub fn ancestors() -> Vec<u32> {
    std::iter::successors(parent(std::process::id()), |&pid| parent(pid))
        .take_while(|&pid| pid > 0)
        .take(ANCESTORS_MAX)
        .collect()
}

/// The user that a process belongs to, whether or not it may be traced.
pub fn user(pid: u32) -> Option<u32> {
    let status = read(path(pid, "status")?)?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// A field of `/proc/PID/stat` (proc_pid_stat(5)), counted from the one behind the program's name.
pub fn stat_field(pid: u32, number: usize) -> Option<String> {
    field(&stat(pid)?, number).map(str::to_owned)
}

fn stat(pid: u32) -> Option<String> {
    read(path(pid, "stat")?)
}

/// The name of a process may be any bytes.
fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read(path).ok().map(|text| String::from_utf8_lossy(&text).into_owned())
}

fn field(stat: &str, number: usize) -> Option<&str> {
    // The name stands in parentheses, and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_of_another_namespace_is_told_by_its_numbers() {
        assert!(numbers_agree("Name:\tx\nPid:\t7\nNSpid:\t7\n", 7));
        assert!(numbers_agree("Name:\tx\nPid:\t7\n", 7));
        // A process of an inner namespace, seen from outside: by chance with the same number, too.
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
