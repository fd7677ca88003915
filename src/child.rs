//! COMMAND as a child: the descriptors and signals that it gets, its limits, its end.
//!
//! It is a child and not an `execve` in our place, because somebody has to verify, release and
//! report afterwards; and strictly a grandchild, because somebody has to hold the locks should we
//! be killed (see [`keeper`]). Everything that needs `unsafe` (what runs between fork and exec, and
//! what touches signal actions) is in this file and below.

#![allow(unsafe_code)]

mod keeper;
mod program;
pub mod reap;
mod running;
pub mod signals;
mod spawn;
mod tree;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::libc;
use rustix::process::{Resource, Rlimit};

use self::running::{Running, Watched};
use self::signals::{Arrived, Signals};
use self::spawn::{HIGH, copy_from, spawn};
pub use self::spawn::{ended_with_us, killed_with_all_it_starts};
use crate::command::Command;
use crate::exit::Exit;
use crate::expiry::Expiry;

/// How to run COMMAND.
#[derive(Debug)]
pub struct Job<'a> {
    /// COMMAND.
    pub command: &'a Command,
    /// Variables to set for it.
    pub environment: Vec<(&'static str, OsString)>,
    /// Locks that it inherits, so that they are held until it is over even if we are killed.
    pub locks: Vec<BorrowedFd<'a>>,
    /// When locks run out that have to be renewed: by then it is over.
    pub expiry: Option<&'a Expiry>,
    /// How long it may run.
    pub limit: Option<Duration>,
    /// From SIGTERM to SIGKILL, for what is ended.
    pub kill_after: Option<Duration>,
    /// The limit on open files that it gets: the one that we were started with.
    pub open_files: Rlimit,
}

/// Makes room for as many open files as `locks` locks need, as far as the hard limit allows, and
/// returns the limit that was there. Before the first thread.
pub fn make_room(locks: usize) -> Rlimit {
    /// What else is open: the standard streams, pipes, the engine, a folder being read.
    const OTHERS: u64 = 32;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    /// A lock file, the guard, and the copies of both that COMMAND inherits, with high numbers.
    const FOR_EACH: u64 = 4;
    let needed = HIGH as u64 + FOR_EACH * locks as u64 + OTHERS;
    if limit.current.is_some_and(|current| current < needed) {
        let current = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
        let raised = Rlimit { current: Some(current), ..limit };
        // Where that is not allowed, opening one too many will say so.
        _ = rustix::process::setrlimit(Resource::Nofile, raised);
    }
    // The table of descriptors grows to the high numbers now. Were it to grow while there are two
    // threads, the kernel would first wait until no processor reads the old one (expand_fdtable()
    // in Linux, synchronize_rcu()): up to 20 ms, with the lock held.
    let highest = HIGH.saturating_add(RawFd::try_from(2 * locks).unwrap_or(RawFd::MAX));
    drop(copy_from(std::io::stderr().as_fd(), highest));
    limit
}

/// Does a second COMMAND find stdin as the first one did: closed, a device, or a file of which
/// nothing was read?
pub fn stdin_can_be_read_again() -> bool {
    use rustix::fs::{FileType, SeekFrom};
    let stdin = std::io::stdin();
    let Ok(stat) = rustix::fs::fstat(&stdin) else { return true };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => true,
        FileType::RegularFile => rustix::fs::seek(&stdin, SeekFrom::Current(0)) == Ok(0),
        _ => false,
    }
}

/// How COMMAND ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status, or the signal that it died of.
    pub exit: Exit,
    /// How long it ran.
    pub elapsed: Duration,
    /// The last terminating signal that reached us while it ran, from anywhere.
    pub interrupted: Option<i32>,
    /// Whether it ran longer than it may.
    pub timed_out: bool,
    /// Whether a lock ran out while it ran.
    pub lost: bool,
    /// What still runs of it, beyond our reach.
    pub left: Left,
}

/// What cannot be ended of COMMAND.
#[derive(Debug, Default)]
pub struct Left {
    /// Those that are known.
    pub processes: Vec<u32>,
    /// Whether there may be others.
    pub are_unknown: bool,
}

impl Left {
    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && !self.are_unknown
    }
}

impl Ended {
    /// Did it end by itself, with nobody's help?
    pub fn by_itself(&self) -> bool {
        matches!(self.exit, Exit::Code(_))
            && self.interrupted.is_none()
            && !self.timed_out
            && !self.lost
            && self.left.is_empty()
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pids: Vec<_> = self.processes.iter().map(u32::to_string).collect();
        match pids.is_empty() {
            true => f.write_str("perhaps processes that cannot be found and ended from here"),
            false => {
                write!(f, "processes that cannot be ended from here (pid {})", pids.join(", "))
            }
        }
    }
}

/// Why the build command did not run.
///
/// That is certain, and so no error of another kind becomes one by itself: whoever reads this
/// releases the locks.
#[derive(Debug)]
pub enum NotRun {
    /// It could not be executed.
    Execute(io::Error),
    /// No descriptors or processes were available for it.
    Prepare(io::Error),
}

/// Runs COMMAND to its end, and what is left of it too unless it succeeded. Signals that arrive
/// meanwhile are passed on.
///
/// # Errors
/// It did not run: nothing of it is there.
pub fn run(job: &Job<'_>, signals: &Signals) -> Result<Ended, NotRun> {
    if job.expiry.is_some_and(Expiry::is_over) {
        // We were stopped, or waited for another one.
        let exit = Exit::Code(crate::exit::FAILURE);
        let (elapsed, left) = (Duration::ZERO, Left::default());
        return Ok(Ended { exit, elapsed, interrupted: None, timed_out: false, lost: true, left });
    }
    let are_children = adopt_orphans().map_err(NotRun::Prepare)?;
    let start = Instant::now();
    let kept = spawn(job, signals.inherited()).map_err(NotRun::Prepare)?;
    // From here on it may be running.
    let mut running = Running {
        job,
        start,
        kept,
        are_children,
        interrupted: None,
        timed_out: false,
        lost: false,
    };
    // Of those that ended before, we are told no more.
    running.reap();
    // What came in before COMMAND was there has reached nobody else.
    while let Some(arrived) = signals.next(Some(start), &[]) {
        running.pass_on(Arrived { from_terminal: false, ..arrived });
    }
    let exit = match running.watch(signals) {
        Watched::Ended(exit) => Some(exit),
        Watched::IsLeft => None,
        Watched::NotRun(why) => {
            running.kept.finish();
            return Err(why);
        }
    };
    // A Ctrl-C that COMMAND died of is ours too, though we may hear of its death first.
    while let Some(arrived) = signals.next(Some(start), &[]) {
        running.note(arrived.signal);
    }
    // A buildlock that was stopped finds out only now.
    running.lost |= job.expiry.is_some_and(Expiry::is_over);
    let is_well = exit == Some(Exit::SUCCESS)
        && running.interrupted.is_none()
        && !running.timed_out
        && !running.lost;
    let left = match exit {
        // A daemon may stay.
        Some(_) if is_well => Left::default(),
        // What a COMMAND leaves behind that has failed may still be building.
        Some(_) => running.end_what_is_left(signals, libc::SIGTERM),
        None => running.end_what_is_left(signals, libc::SIGKILL),
    };
    running.lost |= !is_well && job.expiry.is_some_and(Expiry::is_over);
    let exit = exit.unwrap_or(match running.interrupted {
        Some(signal) => Exit::Signal(signal),
        None => Exit::Code(crate::exit::TIMEOUT),
    });
    Ok(running.ended(exit, left))
}

/// Has processes that lose their parent become our children, should somebody kill the keeper.
/// Returns whether all children of ours are COMMAND's then.
fn adopt_orphans() -> io::Result<bool> {
    // Of a second run, those that the first one has left are COMMAND's, too.
    static ARE_COMMANDS: OnceLock<bool> = OnceLock::new();
    // What we were before execve(2) may have had children, whose orphans are none of our business.
    let are_commands = *ARE_COMMANDS.get_or_init(|| tree::children().is_empty());
    if are_commands {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    Ok(are_commands)
}
