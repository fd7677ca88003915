//! The build command while it runs: its signals, its limits, and the end of all it has started.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::ended::{Ended, Left, NotRun};
use super::keeper::{End, Kept};
use super::reap;
use super::request::RunRequest;
use super::signals::{self, Arrived, Signals};
use super::tree::{self, Family, Found, Process};
use crate::exit::{self, Exit};
use crate::expiry::{Expiry, went_off};
use crate::proc;

/// How long processes may take to end after SIGKILL. A frozen cgroup, or a network file system
/// whose server is away, can hold them for any time.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// How long a build command that is still being executed may take to end by a signal before it is
/// killed.
const EXECUTION_GRACE: Duration = Duration::from_millis(100);

/// How soon to look again at what is left of the build command while ending it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(super) struct Running<'a> {
    request: &'a RunRequest<'a>,
    start: Instant,
    kept: Kept,
    /// Whether all our children belong to the build command.
    are_children: bool,
    interrupted: Option<i32>,
    timed_out: bool,
    lost: bool,
}

/// What came of watching the build command.
pub(super) enum Watched {
    /// It ended.
    Ended(Exit),
    /// It was sent SIGKILL, and has not ended.
    IsLeft,
    /// It never ran, and never will.
    NotRun(NotRun),
}

impl<'a> Running<'a> {
    pub(super) fn new(
        request: &'a RunRequest<'a>,
        start: Instant,
        kept: Kept,
        are_children: bool,
    ) -> Self {
        Running {
            request,
            start,
            kept,
            are_children,
            interrupted: None,
            timed_out: false,
            lost: false,
        }
    }

    /// Waits for the end of the build command, and ends it if it takes too long.
    pub(super) fn watch(&mut self, signals: &Signals) -> Watched {
        let mut limit = self.request.limit.and_then(|limit| self.start.checked_add(limit));
        let (mut kill, mut give_up) = (None, None);
        let (mut killed, mut is_doomed) = (false, false);
        loop {
            if let Some(end) = self.end(is_doomed) {
                return end;
            }
            let is_in_exec = self.kept.is_in_exec();
            let must_end = self.interrupted.is_some() || self.timed_out;
            if is_in_exec && must_end && !is_doomed {
                // Nothing has begun that could end in order. Not every signal ends a process that
                // hangs: SIGQUIT waits to dump its core.
                is_doomed = true;
                kill = from_now(Some(EXECUTION_GRACE));
            }
            let expiry = self.next_expiry().filter(|_| !killed);
            let news: Vec<_> = self.kept.news().into_iter().chain(expiry).collect();
            let until = [limit, kill, give_up].into_iter().flatten().min();
            match signals.next(until, &news) {
                Some(arrived) => self.pass_on(arrived),
                None if expiry.is_some_and(went_off) => {
                    // The keeper also sends the SIGKILL, in case buildlock is stopped.
                    let signal = if self.lost { libc::SIGKILL } else { libc::SIGTERM };
                    killed = self.lost;
                    if !self.lost {
                        tracing::error!(
                            "the lock runs out and cannot be renewed: ending the build command"
                        );
                    }
                    self.lost = true;
                    self.signal_all(signal);
                    // If the lock is renewed after all, the second timer never goes off.
                    kill = kill.or(from_now(self.request.kill_after)).filter(|_| !killed);
                    give_up = killed.then(|| from_now(Some(KILL_GRACE))).flatten();
                }
                None if has_passed(give_up) => return Watched::IsLeft,
                None if has_passed(kill) => {
                    kill = None;
                    self.signal_all(libc::SIGKILL);
                    give_up = from_now(Some(KILL_GRACE));
                }
                None if has_passed(limit) => {
                    limit = None;
                    self.timed_out = true;
                    kill = from_now(self.request.kill_after);
                    self.warn_of_limit(is_in_exec);
                    self.signal_all(libc::SIGTERM);
                }
                None => {}
            }
            if give_up.is_some() && self.is_beyond_reach() {
                // It runs as another user, and nothing tells for how long.
                return Watched::IsLeft;
            }
        }
    }

    /// Returns what became of the build command, once that is known. A build command that is doomed
    /// was killed because of the signal that interrupted it, so it counts as ended by that signal.
    fn end(&mut self, is_doomed: bool) -> Option<Watched> {
        let end = self.kept.end();
        // The keeper enforces the limit if buildlock was stopped.
        self.timed_out |= self.kept.hit_limit;
        Some(match end? {
            End::Ended(exit) => {
                let was_killed = is_doomed && exit == Exit::Signal(libc::SIGKILL);
                let why = self.interrupted.filter(|_| was_killed);
                Watched::Ended(why.map_or(exit, Exit::Signal))
            }
            End::NotRun(why) => Watched::NotRun(why),
        })
    }

    /// Returns the timer that goes off next as the locks run out: first to end the build command,
    /// then to kill it.
    fn next_expiry(&self) -> Option<BorrowedFd<'a>> {
        self.request
            .expiry
            .map(|expiry| if self.lost { expiry.kill_timer() } else { expiry.end_timer() })
    }

    fn warn_of_limit(&self, is_in_exec: bool) {
        let limit = humantime::format_duration(self.request.limit.unwrap_or_default());
        if is_in_exec {
            tracing::warn!(
                "the build command has not begun within {limit} (--build-timeout): ending it; \
                 does the file system that its program lies on answer?"
            );
        } else {
            tracing::warn!("the build command has run for {limit} (--build-timeout): ending it");
        }
    }

    fn is_beyond_reach(&self) -> bool {
        let command = self.kept.command_pid();
        command.is_some_and(|pid| tree::send(pid, 0) == Err(Errno::EPERM))
    }

    /// Passes a signal on to the build command unless the command has it already: a terminal
    /// signals the whole foreground group.
    pub(super) fn pass_on(&mut self, arrived: Arrived) {
        let Arrived { signal, from_terminal } = arrived;
        if signal == libc::SIGCHLD {
            return self.reap();
        }
        let command = self.kept.command_pid();
        self.note(signal);
        // What an ended build command leaves behind is ended in any case.
        let Some(command) = command else { return };
        // When a terminal is gone, the kernel tells only the leader of its session, which buildlock
        // is under `ssh -t` or `docker run -t` (tty_signal_session_leader() in Linux).
        let to_us_alone = signal == libc::SIGHUP && tree::are_we_session_leader();
        if from_terminal && !to_us_alone && tree::is_in_our_group(command) {
            return;
        }
        let name = Exit::Signal(signal);
        match tree::send(command, signal) {
            Ok(()) => {
                tracing::debug!("passed {name} on to the build command");
                if signals::is_terminating(signal) {
                    // As timeout(1) does: a stopped process takes no other signal.
                    _ = tree::send(command, libc::SIGCONT);
                }
            }
            Err(error) => tracing::warn!(
                "cannot pass {name} on to the build command (pid {command}): {}",
                error.desc()
            ),
        }
    }

    /// Reaps children that nothing else waits for.
    pub(super) fn reap(&self) {
        if let Some(keeper) = self.kept.pid() {
            reap::strangers(keeper);
        }
    }

    /// Remembers a terminating signal.
    pub(super) fn note(&mut self, signal: i32) {
        if signals::is_terminating(signal) {
            self.interrupted = Some(signal);
        }
    }

    /// Remembers that a lock ran out, if one has.
    pub(super) fn note_expiry(&mut self) {
        self.lost |= self.request.expiry.is_some_and(Expiry::must_end);
    }

    /// Returns whether no signal, limit or lost lock has interfered so far.
    pub(super) fn is_undisturbed(&self) -> bool {
        self.interrupted.is_none() && !self.timed_out && !self.lost
    }

    fn signal_all(&self, signal: libc::c_int) {
        for process in self.family().look().members {
            // Processes that have ended meanwhile or are beyond our reach are dealt with at the end.
            _ = process.send(signal);
            // A stopped process takes no other signal.
            _ = process.send(libc::SIGCONT);
        }
        // The keeper starts over with each order, so send one only.
        match signal {
            libc::SIGKILL if !proc::is_ours() => self.kept.kill_all(),
            _ if !proc::is_ours() => self.kept.end_all(),
            _ => self.kept.relieve(),
        }
    }

    fn family(&self) -> Family {
        Family {
            keeper: self.kept.pid(),
            command: self.kept.command_pid(),
            are_children: self.are_children,
        }
    }

    /// Ends what is left of the build command, which may still be building, before the locks run
    /// out. Begins with the signal `first`: SIGTERM, or SIGKILL if SIGTERM was sent before. Returns
    /// what cannot be ended.
    pub(super) fn end_what_is_left(&mut self, signals: &Signals, first: libc::c_int) -> Left {
        let mut told: Vec<Process> = Vec::new();
        let mut unreachable: Vec<Process> = Vec::new();
        let mut kill = from_now(self.request.kill_after);
        let mut give_up = None;
        let mut signal = first;
        let unseen = !proc::is_ours();
        if unseen {
            self.kept.end_all();
        }
        loop {
            // The keeper would kill them, but it may be gone.
            if self.request.expiry.is_some_and(|expiry| went_off(expiry.kill_timer())) {
                signal = libc::SIGKILL;
            }
            let Found { members: mut left, may_have_more } =
                if unseen { Found::default() } else { self.family().look() };
            left.retain(|process| !unreachable.contains(process));
            let are_unknown = may_have_more || unseen && self.kept.is_ending();
            if left.is_empty() && !are_unknown {
                unreachable.retain(|process| process.is_there());
                // Since the keeper was killed, orphans may have gone to another process, or to us
                // where we cannot see them.
                let is_gone = self.kept.pid().is_none();
                let are_unknown = is_gone && (unseen || !self.are_children);
                return Left { processes: numbers(&unreachable), are_unknown };
            }
            if has_passed(give_up) {
                left.extend(unreachable.into_iter().filter(|process| process.is_there()));
                return Left { processes: numbers(&left), are_unknown };
            }
            let new = left.iter().filter(|process| !told.contains(process)).count();
            if new > 0 {
                tracing::debug!(
                    "sending signal {signal} to what the build command left behind: {:?}",
                    numbers(&left)
                );
            }
            let is_to_be_told =
                |process: &&Process| signal == libc::SIGKILL || !told.contains(process);
            for &process in left.iter().filter(is_to_be_told) {
                match process.send(signal) {
                    Err(Errno::EPERM) => unreachable.push(process),
                    _ => _ = process.send(libc::SIGCONT),
                }
            }
            told.extend(left);
            if signal == libc::SIGKILL && give_up.is_none() {
                give_up = from_now(Some(KILL_GRACE));
                if unseen {
                    self.kept.kill_all();
                }
            }
            // The kernel tells the parent of an end, and buildlock is not the parent. A process that
            // is ending may also have forked meanwhile.
            let until = [kill, give_up, from_now(Some(LOOK_AGAIN))].into_iter().flatten().min();
            match signals.next(until, &[]) {
                Some(arrived) if arrived.signal == libc::SIGCHLD => self.pass_on(arrived),
                Some(arrived) if signals::is_terminating(arrived.signal) => {
                    // The sender has lost patience.
                    self.interrupted = Some(arrived.signal);
                    signal = libc::SIGKILL;
                }
                None if has_passed(kill) => {
                    kill = None;
                    signal = libc::SIGKILL;
                }
                Some(_) | None => {}
            }
        }
    }

    /// Ends the keeper: nothing of the build command exists.
    pub(super) fn let_keeper_go(self) {
        self.kept.finish();
    }

    /// Says how the build command ended, `exit` being none if it could not be ended. The keeper
    /// stays if something is left that it must wait for.
    pub(super) fn ended(self, exit: Option<Exit>, left: Left) -> Ended {
        let Running { start, kept, interrupted, timed_out, lost, .. } = self;
        let exit = exit.unwrap_or(match interrupted {
            Some(signal) => Exit::Signal(signal),
            None => Exit::Code(exit::TIMEOUT),
        });
        if left.is_empty() {
            kept.finish()
        } else {
            kept.leave()
        }
        Ended { exit, elapsed: start.elapsed(), interrupted, timed_out, lost, left }
    }
}

fn numbers(processes: &[Process]) -> Vec<u32> {
    processes.iter().map(|process| process.pid).collect()
}

fn from_now(duration: Option<Duration>) -> Option<Instant> {
    duration.and_then(|duration| Instant::now().checked_add(duration))
}

fn has_passed(moment: Option<Instant>) -> bool {
    moment.is_some_and(|moment| moment <= Instant::now())
}
