//! Exit statuses, as `timeout(1)`, `env(1)` and `docker run` have them.

use std::fmt;

/// A time limit passed.
pub const TIMEOUT: u8 = 124;
/// buildlock itself failed.
pub const FAILURE: u8 = 125;
/// COMMAND cannot be executed.
pub const CANNOT_EXECUTE: u8 = 126;
/// COMMAND was not found.
pub const NOT_FOUND: u8 = 127;
/// Wrong usage of a subcommand other than the main job.
pub const SUBCOMMAND_USAGE: u8 = 2;

/// How a process ended, or how buildlock is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(u8),
    /// By this signal. A shell shows it as 128+N.
    Signal(i32),
}

impl Exit {
    /// Everything went well.
    pub const SUCCESS: Exit = Exit::Code(0);

    /// The number that a shell shows: the status, or 128+N for signal N
    /// (<https://www.gnu.org/software/bash/manual/html_node/Exit-Status.html>).
    pub fn shell_status(self) -> i32 {
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
            // wait(2) without WUNTRACED and WCONTINUED knows no third way to end.
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
    /// `why` is a sentence for the user.
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

/// The status to end with after `error`: 125, unless it has its own.
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
