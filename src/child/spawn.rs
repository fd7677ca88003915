//! Starting programs: the descriptors they get, and what ends them with us.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use rustix::process::{Pid, Resource};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::Job;
use super::keeper::{Kept, Line, Watch};
use super::program::{Execution, Program, cannot_prepare};
use crate::expiry::Expiry;
use crate::signals::{self, Inherited};

/// Starts the build command behind a keeper. Whether it can be executed at all is known later: see
/// [`Execution`].
///
/// # Errors
/// Nothing was started.
pub(super) fn spawn(job: &Job<'_>, inherited: Inherited) -> io::Result<Kept> {
    let locks: Vec<OwnedFd> =
        job.locks.iter().map(|&lock| high_copy(lock)).collect::<io::Result<_>>()?;
    let numbers: Vec<RawFd> = locks.iter().map(AsRawFd::as_raw_fd).collect();
    let line = Line::new()?;
    let (execution, executing) = Execution::pipe()?;
    let limit = job.limit.map(keepers_limit).transpose()?;
    let keepers_side = line.keepers_side(&Watch {
        locks: &numbers,
        expiry: job.expiry.map(Expiry::kill),
        limit: limit.as_ref().map(AsFd::as_fd),
        kill_after: job.kill_after,
    });
    let program = Program::of(job)?;
    let pipe = executing.as_raw_fd();
    // SAFETY: the child makes system calls only, on memory that is ready, and does not return.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let keeper = rustix::process::getpid();
            if let Err(error) = keepers_side.split() {
                cannot_prepare(pipe, &error);
            }
            program.become_it(pipe, || {
                for &number in &numbers {
                    keep_across_exec(number)?;
                }
                // What is open stays open.
                rustix::process::setrlimit(Resource::Nofile, job.open_files)?;
                die_with(keeper)?;
                inherited.restore()
            })
        }
        // Our copies are closed here: the command and the keeper have their own.
        keeper => Ok(Kept::new(keeper, line, execution)),
    }
}

/// A timer for the keeper, which ends what has run for too long only if we do not: we may be
/// stopped.
fn keepers_limit(limit: Duration) -> io::Result<OwnedFd> {
    const OUR_GRACE: Duration = Duration::from_secs(1);
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A limit beyond the clock's range is none.
    if let Ok(at) = Timespec::try_from(limit.saturating_add(OUR_GRACE)) {
        let once = Itimerspec { it_interval: never, it_value: at };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    }
    Ok(timer)
}

/// Where the copies' numbers start: below the usual soft limit of 1,024 open files, and above what
/// anybody uses.
pub(super) const HIGH: RawFd = 1000;

/// A copy of a lock's descriptor with a number that nobody else uses. make's jobserver, bash and
/// many scripts have low numbers in fixed use (`MAKEFLAGS` names 3 and 4), and would read a lock
/// file in their place, or write into it.
fn high_copy(lock: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    copy_from(lock, HIGH)
}

/// A copy with a number of at least `high`, if the limit on open files allows for that, and
/// otherwise with one as high as it allows.
pub(super) fn copy_from(lock: BorrowedFd<'_>, high: RawFd) -> io::Result<OwnedFd> {
    /// Above what shell scripts can name in all shells.
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
        let copy = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
        if copy >= 0 {
            // SAFETY: the kernel has just given us this descriptor; nobody else has it.
            return Ok(unsafe { OwnedFd::from_raw_fd(copy) });
        }
        failed = match Errno::last() {
            // It is the limit that has no such number.
            Errno::EINVAL => Errno::EMFILE.into(),
            error => error.into(),
        };
    }
    Err(failed)
}

/// Lets a descriptor survive execve. For use between fork and exec.
fn keep_across_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD reads and writes no memory of ours.
    match unsafe { libc::fcntl(number, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has the process sent SIGTERM when the thread that starts it ends, and so when we do.
pub fn ended_with_us(expression: duct::Expression) -> duct::Expression {
    expression.before_spawn(|command| {
        let us = rustix::process::getpid();
        // SAFETY: the closure only makes system calls, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // We may have them blocked: the client could not be ended, nor end what it starts.
                signals::restore_mask()?;
                die_with(us)
            })
        };
        Ok(())
    })
}

/// Has the process and all that it starts killed when the result is dropped, and so when we end, be
/// it by SIGKILL. What makes a process group of its own is spared, as daemons do, and so is what
/// runs as somebody else, or has closed what it inherited.
///
/// It is the kernel that kills them: they are a session, which has no terminal, and inherit a pipe
/// for whose signals the group is down, and which has no other end then (fcntl(2), F_SETOWN and
/// F_SETSIG).
///
/// # Errors
/// The system is out of descriptors.
pub fn killed_with_all_it_starts(
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

/// For use between fork and exec, in the first process of a group.
fn kill_group_at_end_of(pipe: RawFd) -> io::Result<()> {
    /// libc does not have it (linux/include/uapi/asm-generic/fcntl.h).
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

/// Has this process sent SIGTERM when `parent` ends, should even that be killed. For use between
/// fork and exec.
fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    match rustix::process::getppid() {
        Some(now) if now == parent => Ok(()),
        // It ended before we asked.
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
