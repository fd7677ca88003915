//! A process between buildlock and the build command that holds the locks for as long as anything
//! of the command runs, should buildlock be killed.
//!
//! The command inherits the locks' descriptors, but sudo and others close what they do not know,
//! Python does so for its children, and a setuid program gets no death signal. The keeper has
//! copies of its own, is the command's parent, and adopts what the command leaves behind (it is a
//! subreaper), so the kernel tells it when the last of them has ended.
//!
//! It ends the command, with all that has come of it, where buildlock cannot:
//!
//! - Locks that must be renewed run out: buildlock may be stopped, or dead.
//! - `--build-timeout` has passed, and buildlock is stopped, or dead.
//! - Without `/proc`, buildlock does not see what the command has started. The keeper finds its own
//!   children also then.
//!
//! It is forked and never executes another program: it makes system calls only, which is all that
//! may be done between fork and exec. It has a session of its own, so that what is sent to the
//! job's process group does not reach it, and a name of its own, so that what kills buildlock by
//! its name does not kill both.

mod life;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags};

use self::life::KeepersSide;
use super::NotRun;
use super::program::Execution;
use super::tree;
use crate::exit::Exit;
use crate::expiry::went_off;
use crate::proc;

/// What a person sees in the list of processes.
const NAME: &std::ffi::CStr = c"lock-keeper";

/// What buildlock tells the keeper, a byte each.
mod order {
    /// Everything is over, go.
    pub(super) const DONE: u8 = b'd';
    /// buildlock ends what has run for too long.
    pub(super) const RELIEVED: u8 = b'r';
    /// End all that there is.
    pub(super) const END: u8 = b'e';
    /// Kill all that there is.
    pub(super) const KILL: u8 = b'k';
}

/// What the keeper tells buildlock: which of these, and two numbers. It goes into a pipe whole or
/// not at all (pipe(7)).
type Report = [libc::c_int; 3];
/// The command's process id.
const COMMAND: libc::c_int = 1;
/// How the command ended, and its status or signal (`si_code` and `si_status`, waitid(2)).
const ENDED: libc::c_int = 2;
/// The time limit has passed, and the keeper ends everything.
const LIMIT: libc::c_int = 3;
/// After [`order::END`]: nothing is left.
const EMPTY: libc::c_int = 4;

/// How long a keeper may take to report before we see to it that it is not stopped.
const STOPPED_AFTER: Duration = Duration::from_millis(100);

/// The pipes between buildlock and the keeper.
#[derive(Debug)]
pub(super) struct Line {
    to_keeper: (OwnedFd, OwnedFd),
    from_keeper: (OwnedFd, OwnedFd),
}

/// What the keeper watches.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    /// The locks to hold.
    pub(super) locks: &'a [RawFd],
    /// Goes off when the command must be dead, for the locks run out.
    pub(super) expiry: Option<BorrowedFd<'a>>,
    /// Goes off when the command has run for too long, and buildlock has not ended it.
    pub(super) limit: Option<BorrowedFd<'a>>,
    /// From SIGTERM to SIGKILL; none for never.
    pub(super) kill_after: Option<Duration>,
}

impl Line {
    pub(super) fn new() -> io::Result<Self> {
        let to_keeper = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let from_keeper = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&from_keeper.0, true)?;
        Ok(Line { to_keeper, from_keeper })
    }

    /// The keeper's side, for use in the forked process.
    pub(super) fn keepers_side(&self, watch: &Watch<'_>) -> KeepersSide {
        let (orders, reports) = (self.to_keeper.0.as_raw_fd(), self.from_keeper.1.as_raw_fd());
        let timers = [watch.expiry, watch.limit].map(|timer| timer.map(|it| it.as_raw_fd()));
        let mut kept: Vec<RawFd> = watch.locks.iter().copied().chain([orders, reports]).collect();
        kept.extend(timers.into_iter().flatten());
        kept.sort_unstable();
        // poll(2) leaves out what is negative.
        let [expiry, limit] = timers.map(|timer| timer.unwrap_or(-1));
        let milliseconds = |limit: Duration| limit.as_millis().try_into().unwrap_or(i64::MAX);
        KeepersSide {
            orders,
            reports,
            line: [orders, reports, self.to_keeper.1.as_raw_fd(), self.from_keeper.0.as_raw_fd()],
            expiry,
            limit,
            kill_after: watch.kill_after.map(milliseconds),
            has_proc: proc::is_ours(),
            words: words_in_memory(),
            kept,
        }
    }
}

/// Where the command line of this process lies in its memory (`arg_start` and `arg_end`,
/// proc_pid_stat(5)).
fn words_in_memory() -> Option<(usize, usize)> {
    const ARG_START: usize = 45;
    let field = |number| proc::stat_field(std::process::id(), number)?.parse().ok();
    let (start, end) = (field(ARG_START)?, field(ARG_START + 1)?);
    (start != 0 && start < end).then_some((start, end))
}

/// The keeper ended before it could report the command's process id.
pub(super) fn killed() -> io::Error {
    io::Error::other(format!("{}, the process behind which it runs, was killed", name()))
}

fn name() -> std::borrow::Cow<'static, str> {
    NAME.to_string_lossy()
}

/// A command that was started behind a keeper.
#[derive(Debug)]
pub(super) struct Kept {
    /// The keeper's process id.
    keeper: u32,
    orders: File,
    reports: File,
    execution: Execution,
    /// The command's process id; none where the keeper was killed before it could report it.
    command: Option<u32>,
    /// Readable once the command has ended, whatever the keeper does (pidfd_open(2), Linux 5.3).
    ended: Option<OwnedFd>,
    has_ended: bool,
    /// The keeper has ended what ran for too long.
    pub(super) hit_limit: bool,
    is_empty: bool,
    /// Somebody killed the keeper.
    is_gone: bool,
}

/// What became of a command.
#[derive(Debug)]
pub(super) enum End {
    /// It ended.
    Ended(Exit),
    /// It never ran, and never will.
    NotRun(NotRun),
}

impl Kept {
    /// After the keeper, and the command behind it, were started. Nothing can go wrong here: the
    /// command may run already, and what is wrong with the keeper shows in its [`end`](Self::end).
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
        let ended =
            command.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        Kept {
            keeper,
            orders,
            reports,
            execution,
            command: command.map(|pid| pid.as_raw_pid().cast_unsigned()),
            ended,
            has_ended: false,
            hit_limit: false,
            is_empty: false,
            is_gone: false,
        }
    }

    /// The keeper's process id, unless it has ended and another may have got it.
    pub(super) fn pid(&self) -> Option<u32> {
        (!self.is_gone).then_some(self.keeper)
    }

    /// Is the command still being executed, so that no signal means anything to it yet?
    pub(super) fn is_being_executed(&mut self) -> bool {
        self.execution.goes_on()
    }

    /// The command's process id, unless it has ended, so that it may be another's by now.
    pub(super) fn command_itself(&self) -> Option<u32> {
        let runs = match &self.ended {
            Some(ended) => !went_off(ended.as_fd()),
            // On an old kernel, the keeper keeps the number for it.
            None => !self.has_ended && !self.is_gone,
        };
        self.command.filter(|_| runs)
    }

    /// One of them is readable as soon as there is something new about the command.
    pub(super) fn news(&self) -> Vec<BorrowedFd<'_>> {
        let ended = self.ended.as_ref().map(AsFd::as_fd);
        [self.reports.as_fd()].into_iter().chain(ended).chain(self.execution.news()).collect()
    }

    /// Gives an order. The keeper's end tells of itself.
    fn order(&self, order: u8) -> bool {
        let given = (&self.orders).write_all(&[order]).is_ok();
        self.wake();
        given
    }

    /// Somebody may have stopped the keeper. When there is something to do for it, it goes on.
    fn wake(&self) {
        _ = self.pid().map(|pid| tree::send(pid, libc::SIGCONT));
    }

    /// What became of the command, if that is known.
    pub(super) fn end(&mut self) -> Option<End> {
        let exit = self.exit()?;
        // It says so before it ends.
        Some(self.execution.failed().map_or(End::Ended(exit), End::NotRun))
    }

    fn exit(&mut self) -> Option<Exit> {
        loop {
            let mut bytes = [0; size_of::<Report>()];
            match self.reports.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.ended.as_ref().is_some_and(|ended| went_off(ended.as_fd())) {
                        self.ended = None;
                        self.has_ended = true;
                        self.wake();
                    }
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) if read == bytes.len() => match numbers(bytes) {
                    [ENDED, libc::CLD_EXITED, status] => return Some(Exit::Code(status as u8)),
                    [ENDED, _, signal] => return Some(Exit::Signal(signal)),
                    [LIMIT, ..] => self.hit_limit = true,
                    [EMPTY, ..] => self.is_empty = true,
                    _ => {}
                },
                // The command gets its death signal, and may be our child now.
                Ok(_) | Err(_) => {
                    let was_gone = std::mem::replace(&mut self.is_gone, true);
                    let exit = wait_for(self.keeper);
                    // One that could not be forked says so itself.
                    if !was_gone && exit != Exit::Code(crate::exit::NOT_FOUND) {
                        tracing::error!(
                            "{}, the process behind which the build command runs, ended by {exit}",
                            name()
                        );
                    }
                    return Some(exit);
                }
            }
        }
    }

    /// buildlock itself ends what has run for too long.
    pub(super) fn relieve(&self) {
        _ = self.order(order::RELIEVED);
    }

    /// Has the keeper end all that it can find: SIGTERM, and SIGKILL after --kill-after.
    pub(super) fn end_all(&self) {
        _ = self.order(order::END);
    }

    /// Has the keeper kill all that it can find.
    pub(super) fn kill_all(&self) {
        _ = self.order(order::KILL);
    }

    /// After [`end_all`](Self::end_all): may something be left that the keeper is still ending?
    pub(super) fn is_ending(&mut self) -> bool {
        // Only its reports matter.
        self.exit();
        !self.is_empty && !self.is_gone
    }

    /// Nothing of the command needs to be waited for any more: the keeper ends.
    pub(super) fn finish(self) {
        if self.order(order::DONE) {
            wait_for(self.keeper);
        }
    }

    /// The keeper holds the locks until everything of the command has ended, also beyond our own
    /// end.
    pub(super) fn leave(self) {
        // Our end closes it, and that is the keeper's sign.
        std::mem::forget(self.orders);
    }
}

/// Waits for the end of a child; one that somebody else has waited for is taken for killed.
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

fn numbers(bytes: [u8; size_of::<Report>()]) -> Report {
    const EACH: usize = size_of::<libc::c_int>();
    let mut numbers = [0; 3];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(EACH)) {
        let mut own = [0; EACH];
        own.copy_from_slice(bytes);
        *number = libc::c_int::from_ne_bytes(own);
    }
    numbers
}

fn becomes_readable(descriptor: &impl AsFd, within: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let within = Timespec::try_from(within).ok();
    rustix::event::poll(&mut polled, within.as_ref()).is_ok_and(|ready| ready > 0)
}
