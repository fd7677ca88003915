//! What `/proc` says of processes.

/// The state's place among the fields of [`stat_field`].
const STATE: usize = 0;
/// The parent's.
pub const PARENT: usize = 1;
/// That of the number of threads.
const THREADS: usize = 17;
/// That of the moment at which it was started, in ticks of the kernel's clock since that was.
pub const STARTED: usize = 19;

/// Has it ended, so that only its status is left for its parent? False where it cannot be seen.
pub fn is_zombie(pid: u32) -> bool {
    let Some(stat) = stat(pid) else { return false };
    // One whose first thread has ended before the others is shown as a zombie, and goes on.
    matches!(field(&stat, STATE), Some("Z" | "X"))
        && matches!(field(&stat, THREADS), None | Some("0" | "1"))
}

/// A field of `/proc/PID/stat` (proc_pid_stat(5)), counted from the one behind the program's name.
pub fn stat_field(pid: u32, number: usize) -> Option<String> {
    field(&stat(pid)?, number).map(str::to_owned)
}

fn stat(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

fn field(stat: &str, number: usize) -> Option<&str> {
    // The name stands in parentheses, and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(number)
}
