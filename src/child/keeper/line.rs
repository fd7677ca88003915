//! The pipes between buildlock and the keeper, and the keeper's end of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::pipe::PipeFlags;

use super::life::KeepersSide;
use crate::proc;

/// The pipes between buildlock and the keeper.
#[derive(Debug)]
pub(crate) struct Line {
    pub(super) to_keeper: (OwnedFd, OwnedFd),
    pub(super) from_keeper: (OwnedFd, OwnedFd),
}

/// What the keeper watches.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    /// The locks to hold.
    pub(crate) locks: &'a [RawFd],
    /// Goes off when the build command must be dead, because the locks run out.
    pub(crate) expiry: Option<BorrowedFd<'a>>,
    /// Goes off when the build command has run for too long, and buildlock has not ended it.
    pub(crate) limit: Option<BorrowedFd<'a>>,
    /// The time between SIGTERM and SIGKILL; none means no SIGKILL.
    pub(crate) kill_after: Option<Duration>,
}

impl Line {
    pub(crate) fn new() -> io::Result<Self> {
        let to_keeper = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let from_keeper = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&from_keeper.0, true)?;
        Ok(Line { to_keeper, from_keeper })
    }

    /// Returns the keeper's side, for use in the forked process.
    pub(crate) fn keepers_side(&self, watch: &Watch<'_>) -> KeepersSide {
        let (orders, reports) = (self.to_keeper.0.as_raw_fd(), self.from_keeper.1.as_raw_fd());
        let timers = [watch.expiry, watch.limit].map(|timer| timer.map(|it| it.as_raw_fd()));
        let mut kept: Vec<RawFd> = watch.locks.iter().copied().chain([orders, reports]).collect();
        kept.extend(timers.into_iter().flatten());
        kept.sort_unstable();
        // poll(2) ignores negative descriptors.
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

/// Returns where this process's command line lies in its memory (`arg_start` and `arg_end`,
/// proc_pid_stat(5)).
fn words_in_memory() -> Option<(usize, usize)> {
    const ARG_START: usize = 45;
    let field = |number| proc::stat_field(std::process::id(), number)?.parse().ok();
    let (start, end) = (field(ARG_START)?, field(ARG_START + 1)?);
    (start != 0 && start < end).then_some((start, end))
}
