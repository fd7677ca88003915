//! The build command's descendants: finding and signalling them.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getsid};

use crate::proc::{self, Look};

fn pid_of(pid: u32) -> Pid {
    // A process id fits: the largest is 2^22 (proc_sys_kernel(5)).
    Pid::from_raw(pid.cast_signed())
}

/// Sends a signal, by number, to the keeper or to the build command itself while that certainly
/// runs: nothing else can have their numbers. Signal 0 only checks for permission.
///
/// # Errors
/// As kill(2): ESRCH, and EPERM for a setuid program.
pub(crate) fn send(pid: u32, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: a system call without pointers. nix has no names for real-time signals.
    Errno::result(unsafe { libc::kill(pid.cast_signed(), signal) }).map(drop)
}

/// One process, told from later ones with its number by the moment it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Nothing where `/proc` does not say so: there is none, or it hides other users' processes.
    started: Option<u64>,
}

impl Process {
    /// Sends a signal, by number.
    ///
    /// # Errors
    /// As kill(2). ESRCH also if another process has its number now.
    pub(super) fn send(self, signal: libc::c_int) -> Result<(), Errno> {
        // What is opened here stays the same process, whatever becomes of its number. So a look
        // after that tells which one it is.
        // SAFETY: a system call without pointers.
        let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let opened = Errno::result(opened).map(|fd| {
            // SAFETY: the kernel has just given us this descriptor.
            unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
        });
        if !self.is_there() {
            return Err(Errno::ESRCH);
        }
        match opened {
            Ok(process) => {
                let fd = process.as_raw_fd();
                let none = std::ptr::null::<libc::siginfo_t>();
                // SAFETY: a system call with a pointer that may be null.
                let sent =
                    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) };
                match Errno::result(sent).map(drop) {
                    // Some containers know the one call, and refuse the other.
                    Err(Errno::ENOSYS | Errno::EPERM) if send(self.pid, 0).is_ok() => {
                        send(self.pid, signal)
                    }
                    sent => sent,
                }
            }
            Err(Errno::ESRCH) => Err(Errno::ESRCH),
            // Linux before 5.3, or no descriptors.
            Err(_) => send(self.pid, signal),
        }
    }

    /// Returns whether it exists, if only as a zombie.
    pub(super) fn is_there(self) -> bool {
        match (self.started, Look::at(self.pid)) {
            (Some(started), Some(look)) => look.started == started,
            // Where /proc hides other users' processes (hidepid), it hides one that has executed a
            // setuid program.
            (_, None) => send(self.pid, 0) != Err(Errno::ESRCH),
            // It was hidden before, and may be another one. If it is the same, the next look finds it.
            (None, Some(_)) => false,
        }
    }

    /// Returns its live children. None of them is another process that has got a child's number.
    fn children(self) -> Vec<Process> {
        let children = children_of(self.pid);
        // If it has ended meanwhile, these may be another process's.
        if !self.is_there() {
            return Vec::new();
        }
        children.into_iter().filter_map(|pid| Child { pid, parent: self.pid }.live()).collect()
    }
}

/// Returns whether the process is in our group, so that signals from a terminal reach it, too.
pub(super) fn is_in_our_group(pid: u32) -> bool {
    getpgid(Some(pid_of(pid))) == Ok(getpgrp())
}

/// Returns whether buildlock leads its session, so that no shell stands between it and the
/// terminal.
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
    /// Looks for live processes of the build command, without the keeper. Where there is no `/proc`,
    /// only the build command itself can be seen.
    pub(super) fn look(&self) -> Found {
        let listed = self.listed();
        let mut ask: Vec<Process> = listed.iter().filter_map(|child| child.live()).collect();
        ask.extend(self.command.and_then(command_itself));
        let mut members: Vec<Process> = Vec::new();
        while let Some(process) = ask.pop() {
            if !members.contains(&process) {
                members.push(process);
                ask.extend(process.children());
            }
        }
        // A process that forked and ended since we looked hides its child. The keeper has adopted
        // that child, or we have if the keeper is gone. Nothing is left only if neither has a new
        // child.
        let is_new = |child: &Child| !listed.contains(child) || child.live().is_some();
        let may_have_more = members.is_empty() && self.listed().iter().any(is_new);
        Found { members, may_have_more }
    }

    /// Returns the children of the keeper, and ours if they belong to the build command, whether they
    /// still live or not.
    fn listed(&self) -> Vec<Child> {
        let ours = self.are_children.then(std::process::id);
        let parents = self.keeper.into_iter().chain(ours);
        let all = parents.flat_map(|parent| {
            children_of(parent).into_iter().map(move |pid| Child { pid, parent })
        });
        all.filter(|child| Some(child.pid) != self.keeper).collect()
    }
}

/// What a look at the build command's processes found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) members: Vec<Process>,
    /// Whether there is another one that was too fast to be told from others.
    pub(super) may_have_more: bool,
}

fn command_itself(pid: u32) -> Option<Process> {
    match Look::at(pid) {
        Some(look) if look.is_zombie() => None,
        look => Some(Process { pid, started: look.map(|look| look.started) }),
    }
}

/// A process as its parent's list has it. It may have ended since, and its number may be another
/// process's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Child {
    pid: u32,
    parent: u32,
}

impl Child {
    /// Returns the process with this number if it runs and has this parent.
    fn live(self) -> Option<Process> {
        let pid = self.pid;
        let Some(look) = Look::at(pid) else {
            // It has ended, or /proc hides it (hidepid): it is another user's by now.
            let hidden = Process { pid, started: None };
            return (hidden.is_there() && children_of(self.parent).contains(&pid))
                .then_some(hidden);
        };
        (look.parent == self.parent && !look.is_zombie())
            .then_some(Process { pid, started: Some(look.started) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn process_that_has_got_a_number_is_not_signalled_for_the_one_that_had_it() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let now = Child { pid: child.id(), parent: std::process::id() }.live().unwrap();
        let before = Process { started: now.started.map(|ticks| ticks - 1), ..now };
        assert_eq!(before.send(libc::SIGTERM), Err(Errno::ESRCH));
        assert!(!before.is_there() && before.children().is_empty());
        assert_eq!(now.send(0), Ok(()));
        assert_eq!(now.send(libc::SIGKILL), Ok(()));
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(now.send(libc::SIGKILL), Err(Errno::ESRCH));
    }

    #[test]
    fn child_of_another_process_is_none_of_ours() {
        let ours = std::process::id();
        let parent = proc::parent(ours).unwrap();
        assert!(Child { pid: ours, parent }.live().is_some());
        assert!(Child { pid: ours, parent: ours }.live().is_none());
    }
}
