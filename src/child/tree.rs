//! COMMAND's descendants: find them, signal them, take their statuses.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid};

use crate::proc::{PARENT, is_zombie, stat_field};

fn pid_of(pid: u32) -> Pid {
    // The kernel's process ids fit: the largest is 2^22 (proc_sys_kernel(5)).
    Pid::from_raw(pid.cast_signed())
}

/// Sends a signal to one of our descendants.
///
/// # Errors
/// As kill(2): ESRCH, and EPERM for a setuid program.
pub(super) fn send(pid: u32, signal: impl Into<Option<Signal>>) -> Result<(), Errno> {
    kill(pid_of(pid), signal)
}

/// Is there such a process?
pub(super) fn exists(pid: u32) -> bool {
    send(pid, None) != Err(Errno::ESRCH)
}

/// Does what a terminal sends to our process group reach this process too?
pub(super) fn is_in_our_group(pid: u32) -> bool {
    getpgid(Some(pid_of(pid))) == Ok(getpgrp())
}

/// Did this process begin its session, so that no shell stands between it and the terminal?
pub(super) fn are_we_session_leader() -> bool {
    getsid(None) == Ok(getpid())
}

/// This process's children.
pub(super) fn children() -> Vec<u32> {
    children_of(std::process::id())
}

/// All living descendants of this process but `keeper` itself and those by way of `spared`.
pub(super) fn descendants(keeper: Option<u32>, spared: &[u32]) -> Vec<u32> {
    let adopted = || {
        let by_keeper = keeper.map(children_of).unwrap_or_default();
        [children(), by_keeper].concat()
    };
    let mut found = Vec::new();
    let mut seen: Vec<u32> = keeper.into_iter().chain(spared.iter().copied()).collect();
    let mut ask = adopted();
    while let Some(pid) = ask.pop() {
        if seen.contains(&pid) {
            continue;
        }
        seen.push(pid);
        if is_zombie(pid) {
            continue;
        }
        ask.extend(children_of(pid));
        found.push(pid);
    }
    if found.is_empty() {
        // Who has forked and ended since we saw it hides its child, which is the keeper's now; or
        // ours, if that has ended. Nothing is left only if there is nobody new.
        found = adopted();
        found.retain(|pid| !seen.contains(pid));
    }
    found
}

/// The children of all threads of a process (`/proc/PID/task/TID/children`, proc_pid_tid_children(5)).
fn children_of(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return children };
    for thread in threads.flatten() {
        match std::fs::read_to_string(thread.path().join("children")) {
            Ok(text) => {
                children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()))
            }
            // A kernel without CONFIG_PROC_CHILDREN, or a thread that has just ended.
            Err(_) => return children_by_search(pid),
        }
    }
    children
}

fn children_by_search(parent: u32) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| stat_field(pid, PARENT).and_then(|field| field.parse().ok()) == Some(parent))
        .collect()
}
