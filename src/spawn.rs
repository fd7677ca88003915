//! Starting other programs: the descriptors they inherit, and what ends them when buildlock ends.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;

use nix::errno::Errno;
use nix::libc;
use rustix::process::{Pid, Resource};

use crate::signals;

/// The lowest number of a high copy: below the usual soft limit of 1,024 open files, and above the
/// numbers that scripts use.
pub(crate) const HIGH: RawFd = 1000;

/// Copies a descriptor to a number that no script uses.
///
/// make's jobserver, bash and many scripts expect certain low numbers (`MAKEFLAGS` names 3 and 4).
/// They would read from a lock file with such a number, or write to it.
pub(crate) fn high_copy(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    copy_from(descriptor, HIGH)
}

/// Copies a descriptor to a number of at least `high` if the limit on open files allows it, and
/// otherwise to one as high as the limit allows.
pub(crate) fn copy_from(descriptor: BorrowedFd<'_>, high: RawFd) -> io::Result<OwnedFd> {
    /// The first number that not all shells can name in a script.
    const LOWEST: RawFd = 10;
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    let just_below =
        limit.and_then(|limit| RawFd::try_from(limit).ok()).map_or(high, |limit| limit - 8);
    let mut failed = io::ErrorKind::Other.into();
    for lowest in [high, just_below, LOWEST] {
        if lowest < LOWEST {
            continue;
        }
        // SAFETY: F_DUPFD_CLOEXEC reads and writes no memory of ours.
        let copy = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
        if copy >= 0 {
            // SAFETY: the kernel has just given us this descriptor; nobody else has it.
            return Ok(unsafe { OwnedFd::from_raw_fd(copy) });
        }
        failed = match Errno::last() {
            // The limit on open files excludes this number.
            Errno::EINVAL => Errno::EMFILE.into(),
            error => error.into(),
        };
    }
    Err(failed)
}

/// Lets a descriptor survive execve(2). For use between fork and exec.
pub(crate) fn keep_across_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD reads and writes no memory of ours.
    match unsafe { libc::fcntl(number, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Asks the kernel to send this process SIGTERM when `parent` ends, even by SIGKILL. For use
/// between fork and exec.
pub(crate) fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    match rustix::process::getppid() {
        Some(now) if now == parent => Ok(()),
        // It ended before we asked.
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Has the program sent SIGTERM when the thread that starts it ends, and so when buildlock ends.
pub(crate) fn ended_with_us(expression: duct::Expression) -> duct::Expression {
    expression.before_spawn(|command| {
        let us = rustix::process::getpid();
        // SAFETY: the closure only makes system calls, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // With our own blocked signals, the program could not be ended, nor could it end
                // what it starts.
                signals::restore_mask()?;
                die_with(us)
            })
        };
        Ok(())
    })
}

/// Has the program and everything it starts killed when the returned descriptor is closed, and so
/// when buildlock ends, even by SIGKILL.
///
/// This spares processes that make a process group of their own, as daemons do, that run as
/// another user, or that have closed what they inherited.
///
/// The kernel does the killing. The program becomes the leader of a session without a terminal. It
/// inherits a pipe that signals the whole group once the other end is closed (fcntl(2), F_SETOWN
/// and F_SETSIG), and the returned descriptor is that other end.
///
/// # Errors
/// The system is out of descriptors.
pub(crate) fn killed_with_all_it_starts(
    expression: duct::Expression,
) -> io::Result<(duct::Expression, OwnedFd)> {
    let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let theirs = high_copy(theirs.as_fd())?;
    let expression = expression.before_spawn(move |command| {
        let pipe = theirs.as_raw_fd();
        // SAFETY: the closure only makes system calls, which are async-signal-safe.
        unsafe { command.pre_exec(move || kill_group_at_end_of(pipe)) };
        Ok(())
    });
    Ok((expression, ours))
}

/// Makes this process the leader of a group that the kernel kills when the other end of `pipe` is
/// closed. For use between fork and exec.
fn kill_group_at_end_of(pipe: RawFd) -> io::Result<()> {
    /// Missing from libc (linux/include/uapi/asm-generic/fcntl.h).
    const F_SETSIG: libc::c_int = 10;
    let group = rustix::process::setsid()?.as_raw_pid();
    let whom = (libc::F_SETOWN, -group);
    for (what, argument) in [whom, (F_SETSIG, libc::SIGKILL), (libc::F_SETFL, libc::O_ASYNC)] {
        // SAFETY: none of these reads or writes memory of ours.
        if unsafe { libc::fcntl(pipe, what, argument) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    keep_across_exec(pipe)
}
