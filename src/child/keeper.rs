//! A process that does nothing but hold the locks until another one has ended.
//!
//! COMMAND inherits the locks' descriptors, so that they stay held if buildlock is killed and the
//! build goes on. sudo and others close descriptors that they do not know, and a setuid program
//! gets no death signal: for those the keeper has copies of its own. It is in a session of its own,
//! so that what is sent to the job's process group does not reach it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::libc;
use rustix::pipe::PipeFlags;
use rustix::process::{PidfdFlags, WaitOptions};

/// A running keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    pid: rustix::process::Pid,
    /// Closed by our end, in whatever way we end.
    alive: OwnedFd,
}

/// Starts a keeper that holds all locks which this process has open, until both this process and
/// `command` have ended. None where the kernel has no pidfd_open (before Linux 5.3): then the
/// inherited descriptors alone have to do.
pub(super) fn start(command: u32) -> Option<Keeper> {
    let command = rustix::process::Pid::from_raw(command.cast_signed())?;
    let watched = rustix::process::pidfd_open(command, PidfdFlags::empty()).ok()?;
    let (until, alive) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).ok()?;
    // SAFETY: other threads may exist, so the child may only make system calls: `keep` does so.
    match unsafe { libc::fork() } {
        0 => keep(until.as_raw_fd(), alive.as_raw_fd(), watched.as_raw_fd()),
        pid => Some(Keeper { pid: rustix::process::Pid::from_raw(pid)?, alive }),
    }
}

/// What the keeper does, from fork to end.
fn keep(until: RawFd, alive: RawFd, watched: RawFd) -> ! {
    // SAFETY: plain system calls on descriptors that are ours since the fork, and a constant
    // string that ends with NUL. Signals that could end us stay blocked, as they are when we fork.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"buildlock-keep".as_ptr());
        libc::setsid();
        libc::close(alive);
        for descriptor in [until, watched] {
            let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
            while libc::poll(&raw mut poll, 1, -1) < 0 && *libc::__errno_location() == libc::EINTR {
            }
        }
        libc::_exit(0)
    }
}

impl Keeper {
    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// COMMAND has ended: so does the keeper.
    pub(super) fn end(self) {
        drop(self.alive);
        // Its status may have been taken already.
        _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
    }

    /// Leaves it to watch on when we have ended.
    pub(super) fn leave(self) {
        // The descriptor is closed by our end.
        std::mem::forget(self.alive);
    }
}
