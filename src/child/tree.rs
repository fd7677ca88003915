//! The build command's descendants: finding and signalling them.

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid};

use crate::proc::{self, is_zombie};

fn pid_of(pid: u32) -> Pid {
    // A process id fits: the largest is 2^22 (proc_sys_kernel(5)).
    Pid::from_raw(pid.cast_signed())
}

/// Sends a signal, by number, to one of our descendants. Signal 0 only checks for permission.
///
/// # Errors
/// As kill(2): ESRCH, and EPERM for a setuid program.
pub(super) fn send(pid: u32, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: a system call without pointers. nix has no names for real-time signals.
    Errno::result(unsafe { libc::kill(pid.cast_signed(), signal) }).map(drop)
}

/// Does the process exist?
pub(super) fn exists(pid: u32) -> bool {
    send(pid, 0) != Err(Errno::ESRCH)
}

/// Is the process in our group, so that signals from a terminal reach it, too?
pub(super) fn is_in_our_group(pid: u32) -> bool {
    getpgid(Some(pid_of(pid))) == Ok(getpgrp())
}

/// Does buildlock lead its session, so that no shell stands between it and the terminal?
pub(super) fn are_we_session_leader() -> bool {
    getsid(None) == Ok(getpid())
}

/// Returns buildlock's children.
pub(super) fn children() -> Vec<u32> {
    children_of(std::process::id())
}

/// Where to find the build command's processes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// The keeper, which adopts orphans; none once it has ended.
    pub(super) keeper: Option<u32>,
    /// The build command itself, as long as it certainly runs.
    pub(super) command: Option<u32>,
    /// Whether all our other children belong to the build command, too: buildlock adopts them if the
    /// keeper is gone. False if the program before execve(2) had children of its own.
    pub(super) are_children: bool,
}

impl Family {
    /// Returns all live processes of the build command, without the keeper. Where there is no
    /// `/proc`, only the build command itself can be seen.
    pub(super) fn members(&self) -> Vec<u32> {
        let roots = || {
            let mut roots = self.keeper.map(children_of).unwrap_or_default();
            if self.are_children {
                roots.extend(children());
            }
            roots.extend(self.command);
            roots
        };
        let mut found = Vec::new();
        let mut seen: Vec<u32> = self.keeper.into_iter().collect();
        let mut ask = roots();
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
            // A process that forked and ended since we saw it hides its child. The keeper has
            // adopted that child, or we have if the keeper is gone. Nothing is left only if neither
            // has a new child.
            found = roots();
            found.retain(|pid| !seen.contains(pid));
        }
        found
    }
}

/// Returns the children of all threads of a process (`/proc/PID/task/TID/children`,
/// proc_pid_tid_children(5)).
fn children_of(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    let Some(Ok(threads)) = proc::path(pid, "task").map(std::fs::read_dir) else { return children };
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
    pids.filter(|&pid| proc::parent(pid) == Some(parent)).collect()
}
