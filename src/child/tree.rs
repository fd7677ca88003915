//! COMMAND's descendants: find them, signal them, take their statuses.

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid};

use crate::proc::{self, is_zombie};

fn pid_of(pid: u32) -> Pid {
    // The kernel's process ids fit: the largest is 2^22 (proc_sys_kernel(5)).
    Pid::from_raw(pid.cast_signed())
}

/// Sends a signal, by its number, to one of our descendants; 0 only asks whether that may be done.
///
/// # Errors
/// As kill(2): ESRCH, and EPERM for a setuid program.
pub(super) fn send(pid: u32, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: a system call without pointers. nix has no names for real-time signals.
    Errno::result(unsafe { libc::kill(pid.cast_signed(), signal) }).map(drop)
}

/// Is there such a process?
pub(super) fn exists(pid: u32) -> bool {
    send(pid, 0) != Err(Errno::ESRCH)
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

/// Where the build command's processes are found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// The keeper, which adopts those that have lost their parent; none once it has ended.
    pub(super) keeper: Option<u32>,
    /// The build command itself, while it certainly runs.
    pub(super) command: Option<u32>,
    /// Whether all other children of ours are the build command's, too: we adopt them once there is
    /// no keeper. What we were before execve(2) may have had children of its own.
    pub(super) are_children: bool,
}

impl Family {
    /// All of it that lives, but for the keeper. None of it can be seen without `/proc`, but for
    /// the build command.
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
            // What has forked and ended since we saw it hides its child, which is the keeper's now;
            // or ours, if that has ended. Nothing is left only if there is nobody new.
            found = roots();
            found.retain(|pid| !seen.contains(pid));
        }
        found
    }
}

/// The children of all threads of a process (`/proc/PID/task/TID/children`,
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
