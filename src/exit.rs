//! Exit statuses, with the numbers that `timeout(1)`, `env(1)` and `docker run` use.

use std::fmt;

/// A time limit passed.
pub(crate) const TIMEOUT: u8 = 124;
/// buildlock itself failed.
pub(crate) const FAILURE: u8 = 125;
/// The build command cannot be executed.
pub(crate) const CANNOT_EXECUTE: u8 = 126;
/// The build command was not found.
pub(crate) const NOT_FOUND: u8 = 127;
/// Wrong usage of a subcommand.
pub const SUBCOMMAND_USAGE: u8 = 2;

/// What each status of the main job means, for the help and the man page. A line of the help has
/// at most 100 columns, so nothing in here is longer than 89 characters.
pub(crate) const MEANINGS: [(&str, &str); 7] = [
    ("0", "every image exists: just built, or present before"),
    (
        "124",
        "a time limit passed: waiting for a lock or a slot (-E changes this), or --build-timeout",
    ),
    (
        "125",
        "buildlock itself failed: usage, lock folder, engine, lost lock, no image after the build",
    ),
    ("126", "the build command, or the interpreter in its first line, cannot be executed"),
    ("127", "the build command, or the interpreter in its first line, was not found"),
    ("128+N", "signal N ended the build command, or buildlock while it looked, waited or verified"),
    (
        "other",
        "the build command, or with --on-failure share the one waited for, failed with this status",
    ),
];

/// How a process ended, or how buildlock must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// Everything went well.
    pub const SUCCESS: Exit = Exit::Code(0);

    /// Returns the number that a shell shows: the status, or 128+N for signal N
    /// (<https://www.gnu.org/software/bash/manual/html_node/Exit-Status.html>).
    pub(crate) fn shell_status(self) -> i32 {
        match self {
            Exit::Code(code) => i32::from(code),
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

impl From<std::process::ExitStatus> for Exit {
    fn from(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code as u8),
            (None, Some(signal)) => Exit::Signal(signal),
            // wait(2) without WUNTRACED and WCONTINUED reports no third way to end.
            (None, None) => Exit::Code(FAILURE),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "status {code}"),
            Exit::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "{name}"),
                Err(_) => write!(f, "signal {signal}"),
            },
        }
    }
}

/// An error that has an exit status of its own.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    why: String,
}

impl Failure {
    /// Makes an error that ends buildlock with `status`. `why` is for the user.
    pub fn new(status: u8, why: String) -> Self {
        Failure { status, why }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Failure {}

/// Returns the status to end with after `error`: its own, or else 125.
pub fn of(error: &anyhow::Error) -> Exit {
    Exit::Code(error.downcast_ref::<Failure>().map_or(FAILURE, |failure| failure.status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    #[test]
    fn a_wait_status_becomes_what_a_shell_shows() {
        assert_eq!(Exit::from(ExitStatus::from_raw(0)), Exit::SUCCESS);
        assert_eq!(Exit::from(ExitStatus::from_raw(42 << 8)).shell_status(), 42);
        assert_eq!(Exit::from(ExitStatus::from_raw(15)), Exit::Signal(15));
        assert_eq!(Exit::from(ExitStatus::from_raw(9 | 0x80)).shell_status(), 137);
        assert_eq!(Exit::Signal(2).to_string(), "SIGINT");
    }
}
