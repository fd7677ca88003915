//! Build steps, as processes of this machine.

use std::fs;
use std::time::Duration;

use super::super::{is_alive, send_signal};

/// Sleeps between two looks at all processes of the machine, which take time from the builds.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Returns all processes.
pub fn process_ids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Returns the processes that have this argument.
fn processes_with(argument: &str) -> impl Iterator<Item = u32> {
    process_ids().filter(move |pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|&b| b == 0).any(|word| word == argument.as_bytes())
    })
}

/// Does a build step run that has `marker`, the time it sleeps, among its arguments?
pub fn runs_step(marker: &str) -> bool {
    processes_with(marker).next().is_some()
}

/// Ends the sleep of the build steps that [`runs_step`] finds.
pub fn end_steps(marker: &str) {
    processes_with(marker).for_each(|pid| send_signal(pid, "KILL"));
}

/// Returns the living processes below this one.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split(' ').nth(1)?.parse().ok()
    };
    let is_below = |pid: u32| {
        let mut chain = std::iter::successors(parent(pid), |&pid| parent(pid));
        chain.any(|pid| pid == ancestor)
    };
    process_ids().filter(|&pid| is_below(pid) && is_alive(pid)).collect()
}

/// Returns the name of a process's program, from its first word.
pub fn program_name(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = words.split(|&b| b == 0).next().unwrap_or_default();
    let path = String::from_utf8_lossy(first).into_owned();
    path.rsplit('/').next().unwrap_or_default().to_owned()
}
