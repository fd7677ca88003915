//! COMMAND as a child: the descriptors and signals that it gets, its limits, its end.
//!
//! It is a child and not an `execve` in our place, because somebody has to verify, release and
//! report afterwards; and strictly a grandchild, because somebody has to hold the locks should we
//! be killed (see [`keeper`]). Everything that needs `unsafe` (what runs between fork and exec, and what
//! touches signal actions) is in this file.

#![allow(unsafe_code)]

mod keeper;
pub mod signals;
mod tree;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit};

use self::keeper::{Kept, Line};
use self::signals::{Arrived, Inherited, Signals};
use crate::command::Command;
use crate::exit::Exit;
use crate::expiry::{Expiry, went_off};

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
    // Each one, and the copy that COMMAND inherits, with its high number.
    let needed = HIGH as u64 + 2 * locks as u64 + OTHERS;
    if limit.current.is_some_and(|current| current < needed) {
        let current = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
        let raised = Rlimit { current: Some(current), ..limit };
        // Where that is not allowed, opening one too many will say so.
        _ = rustix::process::setrlimit(Resource::Nofile, raised);
    }
    // The table of descriptors grows to the high numbers now. Were it to grow while there are two
    // threads, the kernel would first wait until no processor reads the old one (expand_fdtable()
    // in Linux, synchronize_rcu()): up to 20 ms, with the lock held.
    drop(high_copy(std::io::stderr().as_fd()));
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
    /// Processes of it that are beyond our reach and still run.
    pub left: Vec<u32>,
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

/// Why COMMAND did not run.
#[derive(Debug)]
pub enum NotRun {
    /// It could not be executed.
    Execute(io::Error),
    /// There were no descriptors or processes to be had for it.
    Prepare(io::Error),
}

impl From<io::Error> for NotRun {
    fn from(error: io::Error) -> Self {
        NotRun::Prepare(error)
    }
}

/// Runs COMMAND to its end, and what is left of it too if it was ended. Signals that arrive
/// meanwhile are passed on.
///
/// # Errors
/// It could not be started.
pub fn run(job: &Job<'_>, signals: &Signals) -> Result<Ended, NotRun> {
    if job.expiry.is_some_and(Expiry::is_over) {
        // We were stopped, or waited for another one.
        let exit = Exit::Code(crate::exit::FAILURE);
        let elapsed = Duration::ZERO;
        let (interrupted, timed_out, lost, left) = (None, false, true, Vec::new());
        return Ok(Ended { exit, elapsed, interrupted, timed_out, lost, left });
    }
    // Whoever started us may have had children before it became us by execve: not COMMAND's.
    let spared = tree::children();
    // Should the keeper be killed, what it has becomes ours.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(io::Error::from)?;
    let start = Instant::now();
    let kept = match spawn(job, signals.inherited()) {
        Ok(kept) => kept,
        Err(why) => {
            // A keeper that was killed before it could report leaves a COMMAND that may well run.
            let (left, interrupted) = end_descendants(None, &spared, job, signals);
            if left.is_empty() {
                return Err(why);
            }
            tracing::error!("COMMAND cannot be watched over: {why:?}");
            let exit = Exit::Code(crate::exit::FAILURE);
            return Ok(Ended {
                exit,
                elapsed: start.elapsed(),
                interrupted,
                timed_out: false,
                lost: job.expiry.is_some_and(Expiry::is_over),
                left,
            });
        }
    };
    let mut running =
        Running { job, kept, spared, interrupted: None, timed_out: false, lost: false };
    // What came in before COMMAND was there has reached nobody else.
    while let Some(arrived) = signals.next(Some(start), &[]) {
        running.pass_on(Arrived { from_terminal: false, ..arrived });
    }

    let mut limit = job.limit.and_then(|limit| start.checked_add(limit));
    let mut kill = None;
    let mut killed = false;
    let exit = loop {
        if let Some(exit) = running.kept.exit()? {
            break Some(exit);
        }
        let expiry =
            job.expiry.map(|expiry| if running.lost { expiry.kill() } else { expiry.end() });
        let expiry = expiry.filter(|_| !killed);
        let news: Vec<_> = running.kept.news().into_iter().chain(expiry).collect();
        match signals.next(earlier(limit, kill), &news) {
            Some(arrived) => running.pass_on(arrived),
            None if expiry.is_some_and(went_off) => {
                // The keeper does the second part, too, should we be stopped.
                let signal = if running.lost { Signal::SIGKILL } else { Signal::SIGTERM };
                killed = running.lost;
                if !running.lost {
                    tracing::error!("the lock runs out and cannot be renewed: ending COMMAND");
                }
                running.lost = true;
                running.signal_all(signal);
                // Should it be renewed after all, and so never be over.
                kill = kill.or(from_now(job.kill_after)).filter(|_| !killed);
                if killed && tree::send(running.kept.command, None) == Err(Errno::EPERM) {
                    // It runs as somebody else, and nobody knows for how long.
                    break None;
                }
            }
            None if has_passed(kill) => {
                kill = None;
                running.signal_all(Signal::SIGKILL);
                if tree::send(running.kept.command, None) == Err(Errno::EPERM) {
                    // It runs as somebody else, and nobody knows for how long.
                    break None;
                }
            }
            None if has_passed(limit) => {
                limit = None;
                running.timed_out = true;
                kill = from_now(job.kill_after);
                tracing::warn!(
                    "COMMAND has run for {} (--build-timeout): ending it",
                    humantime::format_duration(job.limit.unwrap_or_default())
                );
                running.signal_all(Signal::SIGTERM);
            }
            None => {}
        }
    };
    let elapsed = start.elapsed();
    // A Ctrl-C that COMMAND died of is ours too, though we may hear of its death first.
    while let Some(arrived) = signals.next(Some(start), &[]) {
        running.note(arrived.signal);
    }
    // Who was stopped himself finds out only now.
    running.lost |= job.expiry.is_some_and(Expiry::is_over);
    let ended = !matches!(exit, Some(Exit::Code(_)))
        || running.interrupted.is_some()
        || running.timed_out
        || running.lost;
    let left = if ended { running.end_what_is_left(signals) } else { Vec::new() };
    running.lost |= ended && job.expiry.is_some_and(Expiry::is_over);
    let Running { kept, interrupted, timed_out, lost, .. } = running;
    let exit = exit.unwrap_or(Exit::Code(crate::exit::TIMEOUT));
    if left.is_empty() {
        kept.finish()
    } else {
        kept.leave()
    }
    Ok(Ended { exit, elapsed, interrupted, timed_out, lost, left })
}

struct Running<'a> {
    job: &'a Job<'a>,
    kept: Kept,
    /// Children of ours that are not of COMMAND.
    spared: Vec<u32>,
    interrupted: Option<i32>,
    timed_out: bool,
    lost: bool,
}

impl Running<'_> {
    /// Passes a signal on to COMMAND, unless it has it already: what a terminal sends goes to the
    /// whole foreground group.
    fn pass_on(&mut self, arrived: Arrived) {
        let Arrived { signal, from_terminal } = arrived;
        self.note(signal);
        // But the leader of a session, as under `ssh -t` or `docker run -t`, is the only one that
        // hears from the kernel that its terminal is gone (tty_signal_session_leader() in Linux).
        let to_us_alone = signal == Signal::SIGHUP && tree::are_we_session_leader();
        if from_terminal && !to_us_alone && tree::is_in_our_group(self.kept.command) {
            return;
        }
        match tree::send(self.kept.command, signal) {
            Ok(()) => {
                tracing::debug!("passed {signal} on to COMMAND");
                if signals::is_terminating(signal) {
                    // As timeout(1) does it: a stopped process takes no other signal.
                    _ = tree::send(self.kept.command, Signal::SIGCONT);
                }
            }
            Err(error) => tracing::warn!(
                "{signal} cannot be passed on to COMMAND (pid {}): {}",
                self.kept.command,
                error.desc()
            ),
        }
    }

    fn note(&mut self, signal: Signal) {
        if signals::is_terminating(signal) {
            self.interrupted = Some(signal as i32);
        }
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.descendants() {
            // What has ended meanwhile, or is beyond our reach, is dealt with at the end.
            _ = tree::send(pid, signal);
            // A stopped process takes no other signal.
            _ = tree::send(pid, Signal::SIGCONT);
        }
    }

    fn descendants(&self) -> Vec<u32> {
        tree::descendants(self.kept.pid(), &self.spared)
    }

    /// Ends what is left of a COMMAND that was ended: its descendants may still build. Returns
    /// those that cannot be ended.
    fn end_what_is_left(&mut self, signals: &Signals) -> Vec<u32> {
        let (left, signal) = end_descendants(self.kept.pid(), &self.spared, self.job, signals);
        self.interrupted = signal.or(self.interrupted);
        left
    }
}

/// Ends all our descendants but the keeper and those that are spared, before the locks run out.
/// Returns those that cannot be ended, and the last terminating signal that reached us meanwhile.
fn end_descendants(
    keeper: Option<u32>,
    spared: &[u32],
    job: &Job<'_>,
    signals: &Signals,
) -> (Vec<u32>, Option<i32>) {
    let mut told: Vec<u32> = Vec::new();
    let mut unreachable: Vec<u32> = Vec::new();
    let mut interrupted = None;
    let mut kill = from_now(job.kill_after);
    let mut signal = Signal::SIGTERM;
    loop {
        // There may be no keeper to see to that.
        if job.expiry.is_some_and(|expiry| went_off(expiry.kill())) {
            signal = Signal::SIGKILL;
        }
        let mut left = tree::descendants(keeper, spared);
        left.retain(|pid| !unreachable.contains(pid));
        if left.is_empty() {
            unreachable.retain(|&pid| tree::exists(pid));
            return (unreachable, interrupted);
        }
        let new = left.iter().filter(|pid| !told.contains(pid)).count();
        if new > 0 {
            tracing::debug!("sending {signal} to what COMMAND left behind: {left:?}");
        }
        for &pid in left.iter().filter(|pid| signal == Signal::SIGKILL || !told.contains(pid)) {
            match tree::send(pid, signal) {
                Err(Errno::EPERM) => unreachable.push(pid),
                _ => _ = tree::send(pid, Signal::SIGCONT),
            }
        }
        told.extend(left);
        // Who ends is told to its parent, not to us; and it may have forked meanwhile.
        match signals.next(earlier(kill, from_now(Some(LOOK_AGAIN))), &[]) {
            Some(arrived) if signals::is_terminating(arrived.signal) => {
                // Somebody loses patience.
                interrupted = Some(arrived.signal as i32);
                signal = Signal::SIGKILL;
            }
            None if has_passed(kill) => {
                kill = None;
                signal = Signal::SIGKILL;
            }
            Some(_) | None => {}
        }
    }
}

/// How soon what is left of COMMAND is looked at again while it is being ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

fn from_now(duration: Option<Duration>) -> Option<Instant> {
    duration.and_then(|duration| Instant::now().checked_add(duration))
}

fn has_passed(moment: Option<Instant>) -> bool {
    moment.is_some_and(|moment| moment <= Instant::now())
}

fn spawn(job: &Job<'_>, inherited: Inherited) -> Result<Kept, NotRun> {
    let locks: Vec<OwnedFd> =
        job.locks.iter().map(|&lock| high_copy(lock)).collect::<io::Result<_>>()?;
    let numbers: Vec<RawFd> = locks.iter().map(AsRawFd::as_raw_fd).collect();
    let line = Line::new()?;
    let kill = job.expiry.map(|expiry| expiry.kill().as_raw_fd());
    let keepers_side = line.keepers_side(&numbers, kill);
    let open_files = job.open_files;
    let mut expression = duct::cmd(job.command.program(), job.command.arguments()).unchecked();
    for (name, value) in &job.environment {
        expression = expression.env(name, value);
    }
    let keeper = expression
        .before_spawn(move |command| {
            let (numbers, keepers_side) = (numbers.clone(), keepers_side.clone());
            let between_fork_and_exec = move || {
                let keeper = rustix::process::getpid();
                keepers_side.split()?;
                for &number in &numbers {
                    keep_across_exec(number)?;
                }
                // What is open stays open.
                rustix::process::setrlimit(Resource::Nofile, open_files)?;
                die_with(keeper)?;
                inherited.restore()
            };
            // SAFETY: the closure only makes system calls, which are async-signal-safe, and
            // allocates nothing.
            unsafe { command.pre_exec(between_fork_and_exec) };
            Ok(())
        })
        .start()
        .map_err(|error| match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            // fork(2) failed, or the keeper's.
            Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE => NotRun::Prepare(error),
            // No execve(2) says so: die_with() found no keeper any more.
            Errno::ESRCH => NotRun::Prepare(keeper::killed()),
            _ => NotRun::Execute(error),
        })?;
    // The copies are closed here: COMMAND and the keeper have their own.
    Ok(Kept::new(keeper, line)?)
}

/// Where the copies' numbers start: below the usual soft limit of 1,024 open files, and above what
/// anybody uses.
const HIGH: RawFd = 1000;

/// A copy of a lock's descriptor with a number that nobody else uses. make's jobserver, bash and
/// many scripts have low numbers in fixed use (`MAKEFLAGS` names 3 and 4), and would read a lock
/// file in their place, or write into it.
fn high_copy(lock: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// Above what shell scripts can name in all shells.
    const LOWEST: RawFd = 10;
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    let just_below =
        limit.and_then(|limit| RawFd::try_from(limit).ok()).map_or(HIGH, |limit| limit - 8);
    let mut failed = io::ErrorKind::Other.into();
    for lowest in [HIGH, just_below, LOWEST] {
        if lowest < LOWEST {
            continue;
        }
        // SAFETY: F_DUPFD_CLOEXEC reads and writes no memory of ours.
        let copy = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
        if copy >= 0 {
            // SAFETY: the kernel has just given us this descriptor; nobody else has it.
            return Ok(unsafe { OwnedFd::from_raw_fd(copy) });
        }
        failed = match Errno::last() {
            // It is the limit that has no such number.
            Errno::EINVAL => Errno::EMFILE.into(),
            error => error.into(),
        };
    }
    Err(failed)
}

/// Lets a descriptor survive execve. For use between fork and exec.
fn keep_across_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD reads and writes no memory of ours.
    match unsafe { libc::fcntl(number, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has the process sent SIGTERM when the thread that starts it ends, and so when we do.
pub fn ended_with_us(expression: duct::Expression) -> duct::Expression {
    expression.before_spawn(|command| {
        let us = rustix::process::getpid();
        // SAFETY: the closure only makes system calls, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // We may have them blocked: the client could not be ended, nor end what it starts.
                signals::restore_mask()?;
                die_with(us)
            })
        };
        Ok(())
    })
}

/// Has the process and all that it starts killed when the result is dropped, and so when we end, be
/// it by SIGKILL. What makes a process group of its own is spared, as daemons do, and so is what runs
/// as somebody else, or has closed what it inherited.
///
/// It is the kernel that kills them: they are a session, which has no terminal, and inherit a pipe
/// for whose signals the group is down, and which has no other end then (fcntl(2), F_SETOWN and
/// F_SETSIG).
///
/// # Errors
/// There were no descriptors to be had.
pub fn killed_with_all_it_starts(
    expression: duct::Expression,
) -> io::Result<(duct::Expression, OwnedFd)> {
    let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let theirs = high_copy(theirs.as_fd())?;
    let expression = expression.before_spawn(move |command| {
        let pipe = theirs.as_raw_fd();
        // SAFETY: the closure only makes system calls, which are async-signal-safe.
        unsafe { command.pre_exec(move || kill_group_at_end_of(pipe)) };
        Ok(())
    });
    Ok((expression, ours))
}

/// For use between fork and exec, in the first process of a group.
fn kill_group_at_end_of(pipe: RawFd) -> io::Result<()> {
    /// libc does not have it (linux/include/uapi/asm-generic/fcntl.h).
    const F_SETSIG: libc::c_int = 10;
    let group = rustix::process::setsid()?.as_raw_pid();
    let whom = (libc::F_SETOWN, -group);
    for (what, argument) in [whom, (F_SETSIG, libc::SIGKILL), (libc::F_SETFL, libc::O_ASYNC)] {
        // SAFETY: none of these reads or writes memory of ours.
        if unsafe { libc::fcntl(pipe, what, argument) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    keep_across_exec(pipe)
}

/// Has this process sent SIGTERM when `parent` ends, should even that be killed. For use between
/// fork and exec.
fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    match rustix::process::getppid() {
        Some(now) if now == parent => Ok(()),
        // It ended before we asked.
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
