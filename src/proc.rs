//! What `/proc` says of processes.

/// The state's place among the fields of [`stat_field`].
const STATE: usize = 0;
/// The parent's.
pub const PARENT: usize = 1;

/// Has it ended, so that only its status is left for its parent? False where it cannot be seen.
pub fn is_zombie(pid: u32) -> bool {
    stat_field(pid, STATE).is_some_and(|state| matches!(state.as_str(), "Z" | "X"))
}

/// A field of `/proc/PID/stat` (proc_pid_stat(5)), counted from the one behind the program's name.
pub fn stat_field(pid: u32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses, and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(field).map(str::to_owned)
}
