//! The build command as a child process: the descriptors and signals it gets, its limits, its end.
//!
//! It is a child and not an `execve` in buildlock's place, because something has to verify, release
//! and report afterwards. Strictly it is a grandchild: the [`keeper`] stands between the two and
//! holds the locks if buildlock is killed.
//!
//! What runs between fork and exec, and waiting for children, needs `unsafe`. It is allowed here and
//! below, in [`crate::spawn`] and in [`crate::signals`].

#![allow(unsafe_code)]

mod ended;
mod keeper;
mod open_files;
mod program;
pub mod reap;
mod request;
mod running;
pub mod signals;
mod start;
mod stdin;
mod tree;

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::libc;

pub(crate) use self::ended::Ended;
use self::ended::Left;
pub use self::ended::NotRun;
pub(crate) use self::open_files::make_room;
pub(crate) use self::request::RunRequest;
use self::running::{Running, Watched};
use self::signals::{Arrived, Signals};
use self::start::start;
pub(crate) use self::stdin::stdin_can_be_read_again;
pub(crate) use self::tree::send;
use crate::exit::Exit;
use crate::expiry::Expiry;

/// Runs the build command to its end, and passes on the signals that arrive meanwhile. Unless it
/// succeeds, ends everything it has left behind, too.
///
/// # Errors
/// The build command did not run, and nothing of it exists.
pub(crate) fn run(request: &RunRequest<'_>, signals: &Signals) -> Result<Ended, NotRun> {
    if request.expiry.is_some_and(Expiry::must_end) {
        // buildlock was stopped, or waited for another lock.
        let exit = Exit::Code(crate::exit::FAILURE);
        let (elapsed, left) = (Duration::ZERO, Left::default());
        return Ok(Ended { exit, elapsed, interrupted: None, timed_out: false, lost: true, left });
    }
    let are_children = adopt_orphans().map_err(NotRun::Prepare)?;
    let started = Instant::now();
    let kept = start(request, signals.inherited()).map_err(NotRun::Prepare)?;
    // From here on the build command may be running.
    let mut running = Running::new(request, started, kept, are_children);
    // The kernel sends no further signal for children that ended before.
    running.reap();
    // Signals from before the build command existed have reached buildlock alone.
    while let Some(arrived) = signals.next(Some(started), &[]) {
        running.pass_on(Arrived { from_terminal: false, ..arrived });
    }
    let exit = match running.watch(signals) {
        Watched::Ended(exit) => Some(exit),
        Watched::IsLeft => None,
        Watched::NotRun(why) => {
            running.let_keeper_go();
            return Err(why);
        }
    };
    // A Ctrl-C that killed the build command counts for buildlock, too, even if buildlock hears of
    // the death first.
    while let Some(arrived) = signals.next(Some(started), &[]) {
        running.note(arrived.signal);
    }
    // A buildlock that was stopped finds out only now.
    running.note_expiry();
    let is_well = exit == Some(Exit::SUCCESS) && running.is_undisturbed();
    let left = match exit {
        // A daemon may stay.
        Some(_) if is_well => Left::default(),
        // What a failed build command leaves behind may still be building.
        Some(_) => running.end_what_is_left(signals, libc::SIGTERM),
        None => running.end_what_is_left(signals, libc::SIGKILL),
    };
    if !is_well {
        running.note_expiry();
    }
    Ok(running.ended(exit, left))
}

/// Makes buildlock the new parent of the build command's orphans in case the keeper is killed.
/// Returns whether all children of buildlock belong to the build command then.
fn adopt_orphans() -> io::Result<bool> {
    // In a second run, what the first one left behind belongs to the build command, too.
    static ARE_COMMANDS: OnceLock<bool> = OnceLock::new();
    // The program that this process was before execve(2) may have had children. Their orphans are
    // not our concern.
    let are_commands = *ARE_COMMANDS.get_or_init(|| tree::children().is_empty());
    if are_commands {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    Ok(are_commands)
}
