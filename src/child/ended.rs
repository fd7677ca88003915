//! How the build command ended, or why it did not run.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::exit::Exit;

/// How the build command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status, or the signal that killed it.
    pub(crate) exit: Exit,
    /// How long it ran.
    pub(crate) elapsed: Duration,
    /// The last terminating signal that reached buildlock meanwhile, from any sender.
    pub(crate) interrupted: Option<i32>,
    /// Whether it ran longer than its limit.
    pub(crate) timed_out: bool,
    /// Whether a lock ran out meanwhile.
    pub(crate) lost: bool,
    /// What buildlock could not end.
    pub(crate) left: Left,
}

impl Ended {
    /// Returns whether the build command ended by itself, without a signal or a limit.
    pub(crate) fn by_itself(&self) -> bool {
        matches!(self.exit, Exit::Code(_))
            && self.interrupted.is_none()
            && !self.timed_out
            && !self.lost
            && self.left.is_empty()
    }
}

/// Processes of the build command that buildlock cannot end.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The known ones.
    pub(crate) processes: Vec<u32>,
    /// Whether there may be others.
    pub(crate) are_unknown: bool,
}

impl Left {
    pub(crate) fn is_empty(&self) -> bool {
        self.processes.is_empty() && !self.are_unknown
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pids: Vec<_> = self.processes.iter().map(u32::to_string).collect();
        if pids.is_empty() {
            f.write_str("processes, if any, that cannot be found from here")
        } else {
            write!(f, "processes that cannot be ended from here (pid {})", pids.join(", "))
        }
    }
}

/// Why the build command did not run.
///
/// The locks are released on this, so it must be certain. That is why no other error converts into
/// it.
#[derive(Debug)]
pub enum NotRun {
    /// It could not be executed.
    Execute(io::Error),
    /// No descriptors or processes were available for it.
    Prepare(io::Error),
}
