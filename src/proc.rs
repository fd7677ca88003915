//! What `/proc` says of processes.

/// The state's place among the fields of [`stat_field`].
pub const STATE: usize = 0;
/// The parent's.
pub const PARENT: usize = 1;

/// A field of `/proc/PID/stat` (proc_pid_stat(5)), counted from the one behind the program's name.
pub fn stat_field(pid: u32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses, and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(field).map(str::to_owned)
}
