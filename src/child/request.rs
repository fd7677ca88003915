//! What to run, and under which limits.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::process::Rlimit;

use crate::command::Command;
use crate::expiry::Expiry;

/// A request to run the build command once.
#[derive(Debug)]
pub(crate) struct RunRequest<'a> {
    pub(crate) command: &'a Command,
    /// Variables to set in the build command's environment.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// Inherited by the keeper and the build command, so that the locks stay held until the build
    /// command has ended, even if buildlock is killed.
    pub(crate) lock_descriptors: Vec<BorrowedFd<'a>>,
    /// When the locks run out, if they must be renewed. The build command must be dead by then.
    pub(crate) expiry: Option<&'a Expiry>,
    /// How long the build command may run.
    pub(crate) limit: Option<Duration>,
    /// The time between SIGTERM and SIGKILL; none means no SIGKILL.
    pub(crate) kill_after: Option<Duration>,
    /// The limit on open files that the build command gets: the one buildlock was started with.
    pub(crate) open_files: Rlimit,
}
