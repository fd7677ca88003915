//! COMMAND while it runs: its signals, its limits, and the end of all that it has started.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::keeper::{End, Kept};
use super::signals::{self, Arrived, Signals};
use super::tree::{self, Family};
use super::{Ended, Job, Left, NotRun, reap};
use crate::exit::Exit;
use crate::expiry::went_off;
use crate::proc;

/// How long what was sent SIGKILL may take to end. A frozen cgroup and a network file system whose
/// server is away hold processes for as long as they like.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// How long what is still being executed may take to end by a signal before it is killed.
const EXECUTION_GRACE: Duration = Duration::from_millis(100);

pub(super) struct Running<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) start: Instant,
    pub(super) kept: Kept,
    /// Whether all children of ours are COMMAND's.
    pub(super) are_children: bool,
    pub(super) interrupted: Option<i32>,
    pub(super) timed_out: bool,
    pub(super) lost: bool,
}

/// What came of watching the build command.
pub(super) enum Watched {
    /// It ended.
    Ended(Exit),
    /// It was killed, and has not ended.
    IsLeft,
    /// It never ran, and never will.
    NotRun(NotRun),
}

impl Running<'_> {
    /// Waits for the end of the build command, and brings it about if it takes too long.
    pub(super) fn watch(&mut self, signals: &Signals) -> Watched {
        let mut limit = self.job.limit.and_then(|limit| self.start.checked_add(limit));
        let (mut kill, mut give_up) = (None, None);
        let (mut killed, mut is_doomed) = (false, false);
        loop {
            let end = self.kept.end();
            // We were stopped, and the keeper was not.
            self.timed_out |= self.kept.hit_limit;
            match end {
                Some(End::Ended(exit)) => {
                    let was_killed = is_doomed && exit == Exit::Signal(libc::SIGKILL);
                    let why = self.interrupted.filter(|_| was_killed);
                    return Watched::Ended(why.map_or(exit, Exit::Signal));
                }
                Some(End::NotRun(why)) => return Watched::NotRun(why),
                None => {}
            }
            let is_being_executed = self.kept.is_being_executed();
            let must_end = self.interrupted.is_some() || self.timed_out;
            if is_being_executed && must_end && !is_doomed {
                // Nothing has begun that could end in order, and not every signal ends a process
                // that hangs: SIGQUIT waits to dump its core.
                is_doomed = true;
                kill = from_now(Some(EXECUTION_GRACE));
            }
            let expiry =
                self.job.expiry.map(|expiry| if self.lost { expiry.kill() } else { expiry.end() });
            let expiry = expiry.filter(|_| !killed);
            let news: Vec<_> = self.kept.news().into_iter().chain(expiry).collect();
            let until = [limit, kill, give_up].into_iter().flatten().min();
            match signals.next(until, &news) {
                Some(arrived) => self.pass_on(arrived),
                None if expiry.is_some_and(went_off) => {
                    // The keeper does the second part, too, should we be stopped.
                    let signal = if self.lost { libc::SIGKILL } else { libc::SIGTERM };
                    killed = self.lost;
                    if !self.lost {
                        tracing::error!("the lock runs out and cannot be renewed: ending COMMAND");
                    }
                    self.lost = true;
                    self.signal_all(signal);
                    // Should it be renewed after all, and so never be over.
                    kill = kill.or(from_now(self.job.kill_after)).filter(|_| !killed);
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
                    kill = from_now(self.job.kill_after);
                    let limit = humantime::format_duration(self.job.limit.unwrap_or_default());
                    match is_being_executed {
                        false => tracing::warn!(
                            "COMMAND has run for {limit} (--build-timeout): ending it"
                        ),
                        true => tracing::warn!(
                            "the build command has not begun within {limit} (--build-timeout): \
                             ending it; does the file system that its program lies on answer?"
                        ),
                    }
                    self.signal_all(libc::SIGTERM);
                }
                None => {}
            }
            if give_up.is_some() && self.is_beyond_reach() {
                // It runs as somebody else, and nobody knows for how long.
                return Watched::IsLeft;
            }
        }
    }

    fn is_beyond_reach(&self) -> bool {
        let command = self.kept.command_itself();
        command.is_some_and(|pid| tree::send(pid, 0) == Err(Errno::EPERM))
    }

    /// Passes a signal on to COMMAND, unless it has it already: what a terminal sends goes to the
    /// whole foreground group.
    pub(super) fn pass_on(&mut self, arrived: Arrived) {
        let Arrived { signal, from_terminal } = arrived;
        if signal == libc::SIGCHLD {
            return self.reap();
        }
        let command = self.kept.command_itself();
        self.note(signal);
        // What it leaves behind is ended in any case.
        let Some(command) = command else { return };
        // But the leader of a session, as under `ssh -t` or `docker run -t`, is the only one that
        // hears from the kernel that its terminal is gone (tty_signal_session_leader() in Linux).
        let to_us_alone = signal == libc::SIGHUP && tree::are_we_session_leader();
        if from_terminal && !to_us_alone && tree::is_in_our_group(command) {
            return;
        }
        let name = Exit::Signal(signal);
        match tree::send(command, signal) {
            Ok(()) => {
                tracing::debug!("passed {name} on to COMMAND");
                if signals::is_terminating(signal) {
                    // As timeout(1) does it: a stopped process takes no other signal.
                    _ = tree::send(command, libc::SIGCONT);
                }
            }
            Err(error) => tracing::warn!(
                "{name} cannot be passed on to COMMAND (pid {command}): {}",
                error.desc()
            ),
        }
    }

    /// Takes the statuses of children that nobody else waits for.
    pub(super) fn reap(&self) {
        if let Some(keeper) = self.kept.pid() {
            reap::strangers(keeper);
        }
    }

    pub(super) fn note(&mut self, signal: i32) {
        if signals::is_terminating(signal) {
            self.interrupted = Some(signal);
        }
    }

    fn signal_all(&self, signal: libc::c_int) {
        for pid in self.family().members() {
            // What has ended meanwhile, or is beyond our reach, is dealt with at the end.
            _ = tree::send(pid, signal);
            // A stopped process takes no other signal.
            _ = tree::send(pid, libc::SIGCONT);
        }
        // Each order would have it begin anew.
        match signal {
            libc::SIGKILL if !proc::is_ours() => self.kept.kill_all(),
            _ if !proc::is_ours() => self.kept.end_all(),
            _ => self.kept.relieve(),
        }
    }

    fn family(&self) -> Family {
        Family {
            keeper: self.kept.pid(),
            command: self.kept.command_itself(),
            are_children: self.are_children,
        }
    }

    /// Ends what is left of the build command, which may still build, before the locks run out:
    /// with SIGTERM first, unless it has had that. Returns what cannot be ended.
    pub(super) fn end_what_is_left(&mut self, signals: &Signals, first: libc::c_int) -> Left {
        let mut told: Vec<u32> = Vec::new();
        let mut unreachable: Vec<u32> = Vec::new();
        let mut kill = from_now(self.job.kill_after);
        let mut give_up = None;
        let mut signal = first;
        let unseen = !proc::is_ours();
        if unseen {
            self.kept.end_all();
        }
        loop {
            // There may be no keeper to see to that.
            if self.job.expiry.is_some_and(|expiry| went_off(expiry.kill())) {
                signal = libc::SIGKILL;
            }
            let mut left = if unseen { Vec::new() } else { self.family().members() };
            left.retain(|pid| !unreachable.contains(pid));
            let are_unknown = unseen && self.kept.is_ending();
            if left.is_empty() && !are_unknown {
                unreachable.retain(|&pid| tree::exists(pid));
                // What has lost its parent since the keeper was killed may be anywhere, or is ours
                // and cannot be seen.
                let is_gone = self.kept.pid().is_none();
                let are_unknown = is_gone && (unseen || !self.are_children);
                return Left { processes: unreachable, are_unknown };
            }
            if has_passed(give_up) {
                left.extend(unreachable.into_iter().filter(|&pid| tree::exists(pid)));
                return Left { processes: left, are_unknown };
            }
            let new = left.iter().filter(|pid| !told.contains(pid)).count();
            if new > 0 {
                tracing::debug!("sending signal {signal} to what COMMAND left behind: {left:?}");
            }
            for &pid in left.iter().filter(|pid| signal == libc::SIGKILL || !told.contains(pid)) {
                match tree::send(pid, signal) {
                    Err(Errno::EPERM) => unreachable.push(pid),
                    _ => _ = tree::send(pid, libc::SIGCONT),
                }
            }
            told.extend(left);
            if signal == libc::SIGKILL && give_up.is_none() {
                give_up = from_now(Some(KILL_GRACE));
                if unseen {
                    self.kept.kill_all();
                }
            }
            // The parent is told of an end, not buildlock; and what is ending may have forked meanwhile.
            let until = [kill, give_up, from_now(Some(LOOK_AGAIN))].into_iter().flatten().min();
            match signals.next(until, &[]) {
                Some(arrived) if arrived.signal == libc::SIGCHLD => self.pass_on(arrived),
                Some(arrived) if signals::is_terminating(arrived.signal) => {
                    // Somebody loses patience.
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

    /// Lets the keeper go, unless something is left that it must wait for.
    pub(super) fn ended(self, exit: Exit, left: Left) -> Ended {
        let Running { start, kept, interrupted, timed_out, lost, .. } = self;
        if left.is_empty() {
            kept.finish()
        } else {
            kept.leave()
        }
        Ended { exit, elapsed: start.elapsed(), interrupted, timed_out, lost, left }
    }
}

/// How soon what is left of COMMAND is looked at again while it is being ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn from_now(duration: Option<Duration>) -> Option<Instant> {
    duration.and_then(|duration| Instant::now().checked_add(duration))
}

fn has_passed(moment: Option<Instant>) -> bool {
    moment.is_some_and(|moment| moment <= Instant::now())
}
