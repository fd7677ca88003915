//! The keeper: a process between buildlock and the build command. It holds the locks for as long as
//! anything of the build command runs, even if buildlock is killed.
//!
//! The build command inherits the locks' descriptors, but that is not enough: sudo and others close
//! what they do not know, Python does so for its children, and a setuid program gets no death
//! signal. The keeper has copies of its own, is the build command's parent, and adopts what the
//! build command leaves behind (it is a subreaper). So the kernel tells it when the last of these
//! processes has ended.
//!
//! It ends the build command and its descendants in these cases:
//!
//! - The locks run out while buildlock is stopped or dead and cannot renew them.
//! - `--build-timeout` passes while buildlock is stopped or dead.
//! - Without `/proc`, buildlock does not see what the build command has started. The keeper finds
//!   its own children even then.
//!
//! It is forked and never executes another program. Between fork and exec only async-signal-safe
//! calls are allowed, so it makes only system calls. It has a session of its own, so that signals
//! to the job's process group do not reach it. It has a name of its own, so that a
//! `pkill buildlock` does not kill both.

mod children;
mod life;
mod line;
pub(super) mod protocol;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

pub(super) use self::line::{Line, Watch};
use self::protocol::{COMMAND, EMPTY, ENDED, LIMIT, Report, name, numbers, order};
use super::ended::NotRun;
use super::program::Execution;
use super::tree;
use crate::exit::Exit;
use crate::expiry::went_off;

/// How long to wait for the keeper's first report before continuing it, in case it was stopped.
const STOPPED_AFTER: Duration = Duration::from_millis(100);

/// A build command that was started behind a keeper.
#[derive(Debug)]
pub(super) struct Kept {
    /// The keeper's process id.
    keeper: u32,
    orders: File,
    reports: File,
    execution: Execution,
    /// The build command's process id; none if the keeper was killed before it could report it.
    command: Option<u32>,
    /// Readable once the build command has ended, whatever the keeper does (pidfd_open(2), Linux
    /// 5.3). `None` once that was seen.
    exit_pidfd: Option<OwnedFd>,
    /// Whether buildlock has seen that the build command ended.
    exit_seen: bool,
    /// Whether the keeper has enforced the time limit.
    pub(super) hit_limit: bool,
    /// Whether the keeper has reported, after [`end_all`](Self::end_all), that nothing is left.
    nothing_left: bool,
    /// Whether the keeper was killed.
    is_gone: bool,
}

/// What became of the build command.
#[derive(Debug)]
pub(super) enum End {
    /// It ended.
    Ended(Exit),
    /// It never ran, and never will.
    NotRun(NotRun),
}

impl Kept {
    /// Takes charge of a keeper that was just started, and of the build command behind it.
    ///
    /// This cannot fail, since the build command may already run. Trouble with the keeper shows in
    /// [`end`](Self::end).
    pub(super) fn new(keeper: libc::pid_t, line: Line, execution: Execution) -> Self {
        let keeper = keeper.cast_unsigned();
        let orders = File::from(line.to_keeper.1);
        let mut reports = File::from(line.from_keeper.0);
        drop(line.from_keeper.1);
        while !becomes_readable(&reports, STOPPED_AFTER) {
            _ = tree::send(keeper, libc::SIGCONT);
        }
        let mut bytes = [0; size_of::<Report>()];
        let command = match reports.read(&mut bytes).map(|_| numbers(bytes)) {
            Ok([COMMAND, command, _]) => Pid::from_raw(command),
            _ => None,
        };
        let exit_pidfd =
            command.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        Kept {
            keeper,
            orders,
            reports,
            execution,
            command: command.map(|pid| pid.as_raw_pid().cast_unsigned()),
            exit_pidfd,
            exit_seen: false,
            hit_limit: false,
            nothing_left: false,
            is_gone: false,
        }
    }

    /// Returns the keeper's process id, unless the keeper has ended and another process may have it.
    pub(super) fn pid(&self) -> Option<u32> {
        (!self.is_gone).then_some(self.keeper)
    }

    /// Returns whether execve(2) has not yet returned for the build command. Until then it cannot
    /// handle signals.
    pub(super) fn is_in_exec(&mut self) -> bool {
        self.execution.goes_on()
    }

    /// Returns the build command's process id while no other process can have it.
    pub(super) fn command_pid(&self) -> Option<u32> {
        let runs = match &self.exit_pidfd {
            Some(exited) => !went_off(exited.as_fd()),
            // On an old kernel, the keeper reserves the number.
            None => !self.exit_seen && !self.is_gone,
        };
        self.command.filter(|_| runs)
    }

    /// Returns descriptors, one of which is readable as soon as there is news of the build command.
    pub(super) fn news(&self) -> Vec<BorrowedFd<'_>> {
        let exited = self.exit_pidfd.as_ref().map(AsFd::as_fd);
        [self.reports.as_fd()].into_iter().chain(exited).chain(self.execution.news()).collect()
    }

    /// Sends an order. If the keeper has ended, [`exit`](Self::exit) notices.
    fn order(&self, order: u8) -> bool {
        let given = (&self.orders).write_all(&[order]).is_ok();
        self.wake();
        given
    }

    /// Continues the keeper, which may have been stopped, because there is something for it to do.
    fn wake(&self) {
        _ = self.pid().map(|pid| tree::send(pid, libc::SIGCONT));
    }

    /// Returns what became of the build command, once that is known.
    pub(super) fn end(&mut self) -> Option<End> {
        let exit = self.exit()?;
        // A process that cannot execute the build command says so before it ends.
        Some(self.execution.failed().map_or(End::Ended(exit), End::NotRun))
    }

    fn exit(&mut self) -> Option<Exit> {
        loop {
            let mut bytes = [0; size_of::<Report>()];
            match self.reports.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.exit_pidfd.as_ref().is_some_and(|exited| went_off(exited.as_fd())) {
                        self.exit_pidfd = None;
                        self.exit_seen = true;
                        self.wake();
                    }
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) if read == bytes.len() => match numbers(bytes) {
                    [ENDED, libc::CLD_EXITED, status] => return Some(Exit::Code(status as u8)),
                    [ENDED, _, signal] => return Some(Exit::Signal(signal)),
                    [LIMIT, ..] => self.hit_limit = true,
                    [EMPTY, ..] => self.nothing_left = true,
                    _ => {}
                },
                // The keeper is gone. The kernel sends the build command its parent-death signal,
                // and may make it a child of buildlock, which is a subreaper.
                Ok(_) | Err(_) => {
                    let was_gone = std::mem::replace(&mut self.is_gone, true);
                    let exit = wait_for(self.keeper);
                    // A keeper that could not fork has reported that itself.
                    if !was_gone && exit != Exit::Code(crate::exit::NOT_FOUND) {
                        tracing::error!(
                            "{}, which holds the locks for buildlock, ended unexpectedly ({exit}), \
                             so the build command is ended too",
                            name()
                        );
                    }
                    return Some(exit);
                }
            }
        }
    }

    /// Tells the keeper that buildlock itself ends the build command.
    pub(super) fn relieve(&self) {
        _ = self.order(order::RELIEVED);
    }

    /// Has the keeper end everything it can find: SIGTERM, and SIGKILL after `--kill-after`.
    pub(super) fn end_all(&self) {
        _ = self.order(order::END);
    }

    /// Has the keeper kill everything it can find.
    pub(super) fn kill_all(&self) {
        _ = self.order(order::KILL);
    }

    /// Returns whether the keeper may still be ending something, after [`end_all`](Self::end_all).
    pub(super) fn is_ending(&mut self) -> bool {
        // Reads the reports.
        self.exit();
        !self.nothing_left && !self.is_gone
    }

    /// Ends the keeper once no process of the build command is left to wait for.
    pub(super) fn finish(self) {
        if self.order(order::DONE) {
            wait_for(self.keeper);
        }
    }

    /// Leaves the locks to the keeper, which holds them until everything of the build command has
    /// ended, even after buildlock has.
    pub(super) fn leave(self) {
        // Keep the pipe open until buildlock exits: its end tells the keeper that buildlock is
        // gone.
        std::mem::forget(self.orders);
    }
}

/// Waits for a child to end. If its status is gone, it counts as killed.
fn wait_for(child: u32) -> Exit {
    let mut status = 0;
    loop {
        // SAFETY: a system call on memory of this stack frame.
        match unsafe { libc::waitpid(child.cast_signed(), &raw mut status, 0) } {
            -1 if nix::errno::Errno::last() == nix::errno::Errno::EINTR => {}
            -1 => return Exit::Signal(libc::SIGKILL),
            _ => return Exit::from(ExitStatus::from_raw(status)),
        }
    }
}

fn becomes_readable(descriptor: &impl AsFd, within: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let within = Timespec::try_from(within).ok();
    rustix::event::poll(&mut polled, within.as_ref()).is_ok_and(|ready| ready > 0)
}
