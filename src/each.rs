//! `--each`: one build for each image of a call of compose or bake, at the same time.
//!
//! Each build is a call of buildlock of its own, with its own lock, look and verification. This
//! process holds no lock. It starts the calls, passes on signals and output, and ends with the
//! status of the first one that failed.

mod calls;
mod output;
mod plan;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::calls::{Calls, State};
use self::output::Output;
use self::plan::Plan;
use crate::child::signals::{Signals, is_terminating};
use crate::cli::{BuildArgs, CommonArgs};
use crate::exit::Exit;
use crate::log::LogFormat;

/// How often the live line is drawn.
const REFRESH: Duration = Duration::from_millis(250);

/// Builds every image of the build command.
///
/// # Errors
/// The build command is not one of compose or bake, or what it builds cannot be found out or
/// contradicts itself. A call cannot be started.
pub fn run(args: BuildArgs, common: &CommonArgs) -> Result<Exit> {
    if !args.tags.is_empty() {
        bail!("--each finds the tags itself; leave out -t");
    }
    let plan = Plan::new(args.command)?;
    let signals = Signals::take_in()?;
    let output = Output::new(common.log.log_format == LogFormat::Json)?;
    let mut calls = Calls::new(&plan, &output);
    let exit = run_calls(&mut calls, &signals, args.fail_fast, &output)?;
    output.finish(&signals);
    if exit != Exit::SUCCESS {
        report(&calls);
    }
    Ok(exit)
}

/// Starts the calls as far as their needs allow, and waits until all have ended.
fn run_calls(
    calls: &mut Calls<'_>,
    signals: &Signals,
    fail_fast: bool,
    output: &Output,
) -> Result<Exit> {
    let start = Instant::now();
    let mut interrupted = None;
    loop {
        if interrupted.is_none() {
            calls.start_ready(signals.inherited())?;
        }
        if calls.running().next().is_none() {
            break;
        }
        let until = output.is_live().then(|| Instant::now() + REFRESH);
        match signals.next(until, &calls.ends()) {
            Some(arrived) => {
                if is_terminating(arrived.signal) {
                    interrupted = interrupted.or(Some(arrived.signal));
                }
                // A terminal has sent its signals to all of this process group.
                if !arrived.from_terminal {
                    calls.send(arrived.signal);
                }
            }
            None => {
                let failed = calls.reap()?;
                if failed && fail_fast && interrupted.is_none() {
                    calls.cancel();
                }
            }
        }
        output.show(calls, start.elapsed());
    }
    Ok(match (interrupted, calls.first_failure()) {
        (_, None) if calls.all_succeeded() => Exit::SUCCESS,
        (Some(signal), _) => Exit::Signal(signal),
        (None, failure) => failure.unwrap_or(Exit::Code(crate::exit::FAILURE)),
    })
}

/// Warns which services or targets failed, and which were not built.
fn report(calls: &Calls<'_>) {
    let (mut failed, mut missing) = (Vec::new(), Vec::new());
    for (unit, state) in calls.states() {
        match state {
            State::Ended(Exit::SUCCESS) => {}
            State::Ended(Exit::Signal(_)) if calls.are_cancelled() => {
                missing.push(unit.name.clone())
            }
            State::Ended(exit) => failed.push(format!("{} ({exit})", unit.name)),
            State::Waiting | State::Cancelled | State::Running(_) => {
                missing.push(unit.name.clone())
            }
        }
    }
    let list = |names: &[String]| names.join(", ");
    if !failed.is_empty() {
        tracing::warn!("failed: {}", list(&failed));
    }
    if !missing.is_empty() {
        tracing::warn!("not built: {}", list(&missing));
    }
}
