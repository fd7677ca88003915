//! The calls of buildlock that `--each` makes, from their start to their end.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::output::{Output, Stream};
use super::plan::{Plan, Unit};
use crate::child;
use crate::duration::for_people;
use crate::exit::Exit;
use crate::signals::Inherited;
use crate::spawn;

/// All calls of a plan.
pub(super) struct Calls<'a> {
    units: &'a [Unit],
    states: Vec<State>,
    output: &'a Output,
    first_failure: Option<Exit>,
    /// Whether the others were ended after a failure.
    cancelled: bool,
}

/// How far a call is.
pub(super) enum State {
    /// It waits for what it needs.
    Waiting,
    Running(Running),
    Ended(Exit),
    /// It is not made, because what it needs has failed or all others are ended.
    Cancelled,
}

/// A call that runs.
pub(super) struct Running {
    child: Child,
    /// It can be read once the child has ended.
    end: OwnedFd,
    started: Instant,
}

impl<'a> Calls<'a> {
    pub(super) fn new(plan: &'a Plan, output: &'a Output) -> Self {
        let states = plan.units.iter().map(|_| State::Waiting).collect();
        Calls { units: &plan.units, states, output, first_failure: None, cancelled: false }
    }

    pub(super) fn states(&self) -> impl Iterator<Item = (&'a Unit, &State)> {
        self.units.iter().zip(&self.states)
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Running> {
        self.states.iter().filter_map(|state| match state {
            State::Running(running) => Some(running),
            _ => None,
        })
    }

    /// Returns descriptors that can be read once a call has ended.
    pub(super) fn ends(&self) -> Vec<BorrowedFd<'_>> {
        self.running().map(|running| running.end.as_fd()).collect()
    }

    /// Starts the calls whose needs have succeeded, and cancels those whose needs have not.
    pub(super) fn start_ready(&mut self, inherited: Inherited) -> Result<()> {
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for (at, unit) in self.units.iter().enumerate() {
                if !matches!(self.states[at], State::Waiting) {
                    continue;
                }
                let mut needs = unit.needs.iter().map(|&need| &self.states[need]);
                if needs.clone().all(|need| matches!(need, State::Ended(Exit::SUCCESS))) {
                    self.states[at] = State::Running(start(unit, self.output, inherited)?);
                } else if needs.any(|need| match need {
                    State::Ended(exit) => *exit != Exit::SUCCESS,
                    State::Cancelled => true,
                    State::Waiting | State::Running(_) => false,
                }) {
                    self.states[at] = State::Cancelled;
                    changed = true;
                }
            }
        }
        Ok(())
    }

    /// Notes which calls have ended. Returns whether one of them has failed.
    pub(super) fn reap(&mut self) -> Result<bool> {
        let mut failed = false;
        for state in &mut self.states {
            let State::Running(running) = state else { continue };
            let Some(status) = running.child.try_wait()? else { continue };
            let exit = Exit::from(status);
            if exit != Exit::SUCCESS {
                failed = true;
                self.first_failure.get_or_insert(Exit::Code(shell_status(exit)));
            }
            *state = State::Ended(exit);
        }
        Ok(failed)
    }

    /// Sends a signal to all calls that run.
    pub(super) fn send(&self, signal: i32) {
        for running in self.running() {
            // It has not been waited for, so nobody else has its number.
            _ = child::send(running.child.id(), signal);
        }
    }

    /// Ends the calls that run, and makes no others.
    pub(super) fn cancel(&mut self) {
        self.cancelled = true;
        self.send(nix::libc::SIGTERM);
        for state in &mut self.states {
            if matches!(state, State::Waiting) {
                *state = State::Cancelled;
            }
        }
    }

    pub(super) fn are_cancelled(&self) -> bool {
        self.cancelled
    }

    pub(super) fn first_failure(&self) -> Option<Exit> {
        self.first_failure
    }

    pub(super) fn all_succeeded(&self) -> bool {
        self.states.iter().all(|state| matches!(state, State::Ended(Exit::SUCCESS)))
    }
}

impl std::fmt::Display for Calls<'_> {
    /// `2 of 5 done; api 12s, worker 3s`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.states().count();
        let done = self.states().filter(|(_, it)| matches!(it, State::Ended(_))).count();
        write!(f, "{done} of {all} done")?;
        let mut separator = "; ";
        for (unit, state) in self.states() {
            if let State::Running(running) = state {
                write!(f, "{separator}{} {}", unit.name, for_people(running.started.elapsed()))?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// Returns what a shell shows of it. This process was not ended by that signal.
fn shell_status(exit: Exit) -> u8 {
    u8::try_from(exit.shell_status()).unwrap_or(u8::MAX)
}

/// Starts buildlock for one unit. It gets SIGTERM if this process is ended, even by SIGKILL.
fn start(unit: &Unit, output: &Output, inherited: Inherited) -> Result<Running> {
    let program = std::env::current_exe().ok().filter(|program| program.exists());
    let mut call = Command::new(program.unwrap_or_else(|| PathBuf::from("/proc/self/exe")));
    let mut words = std::env::args_os();
    call.arg0(words.next().unwrap_or_else(|| "buildlock".into()));
    call.args(options(words));
    for tag in unit.tags.iter().filter(|_| !unit.builds_others) {
        call.args(["-t", tag.as_str()]);
    }
    call.arg("--").args(&unit.command);
    call.stdin(Stdio::null());
    call.stdout(output.pipe(Stream::Stdout, &unit.name)?);
    call.stderr(output.pipe(Stream::Stderr, &unit.name)?);
    spawn::end_with_us(&mut call, inherited);
    let child = call.spawn().context("cannot start buildlock for one of the images")?;
    let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let end = pidfd_open(number.context("the child has no valid PID")?, PidfdFlags::empty())?;
    Ok(Running { child, end, started: Instant::now() })
}

/// Returns the options of this call that count for each of its builds.
fn options(words: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let ours = ["--each", "--fail-fast"];
    words.take_while(|word| word != "--").filter(move |word| !ours.iter().any(|it| word == it))
}
