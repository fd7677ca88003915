//! Signals that arrive while the build command runs, and which of them it gets.
//!
//! The sender decides what is done with a signal:
//!
//! - INT, TERM, HUP, QUIT from `kill`, a CI system or a supervisor reach this process alone. They
//!   are passed on.
//! - INT, QUIT, WINCH (and HUP) from the terminal reach the whole foreground group. The build
//!   command has them already, so they are not passed on. But when the terminal ends, the kernel
//!   tells only the leader of its session: if that is this process, HUP is passed on.
//! - USR1, USR2, the real-time signals and others to which programs give their own meaning are for
//!   the build command. So are ALRM, XCPU and the like, which this process may have arranged for
//!   before execve(2). They are passed on.
//! - TSTP, TTIN, TTOU stop buildlock as if it did not handle them. From the terminal they stop the
//!   whole group. When `kill` sends them to buildlock alone, they are passed on first. CONT is
//!   passed on.
//! - KILL and STOP cannot be handled. CHLD is for buildlock itself. PIPE and XFSZ come from its own
//!   writing, and SEGV, BUS, FPE, ILL and TRAP from its own mistakes. The C library keeps 32 and 33.
//!
//! During a look or a wait there is nothing to pass signals on to. INT, TERM, HUP and QUIT end the
//! process at once, by that signal, and the kernel releases its locks. All other signals take their
//! default action.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Result, anyhow};
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::signals::{self, Inherited, is_ignored, is_in, set_of};

/// Signals that buildlock does not handle, by number.
const LEFT_ALONE: [libc::c_int; 11] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGPIPE,
    libc::SIGXFSZ,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    // The C library's own.
    32,
    33,
];

/// Returns all signals that are taken in while the build command runs.
fn taken_in() -> impl Iterator<Item = libc::c_int> {
    (1..=libc::SIGRTMAX()).filter(|signal| !LEFT_ALONE.contains(signal))
}

/// Returns whether the signal means that the build must end.
pub(crate) fn is_terminating(signal: libc::c_int) -> bool {
    matches!(
        signal,
        libc::SIGINT
            | libc::SIGTERM
            | libc::SIGHUP
            | libc::SIGQUIT
            | libc::SIGABRT
            | libc::SIGALRM
            | libc::SIGVTALRM
            | libc::SIGPROF
            | libc::SIGXCPU
            | libc::SIGSYS
    )
}

/// Returns whether a terminal sends the signal to the whole foreground group.
fn is_a_terminals(signal: libc::c_int) -> bool {
    let others = [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGWINCH];
    stops(signal) || others.contains(&signal)
}

/// Returns whether the signal stops a process by default.
fn stops(signal: libc::c_int) -> bool {
    matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

/// A signal that has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// Whether the kernel sent it for a terminal (Ctrl-C, Ctrl-\, a resize), and so to the whole
    /// group.
    pub from_terminal: bool,
}

/// How work ended that a signal may interrupt.
pub enum Work<T> {
    /// It is done.
    Done(T),
    /// This signal arrived first.
    Interrupted(i32),
}

/// While this exists, signals arrive here and take no other effect.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
    inherited: Inherited,
    /// A signal that stops this process once it has been handled.
    stopping: Cell<Option<libc::c_int>>,
}

impl Signals {
    /// Starts to take signals in. Signals that were ignored or blocked when buildlock started stay so.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn take_in() -> io::Result<Self> {
        let mask = SigSet::thread_get_mask()?;
        // The kernel keeps a blocked signal even if its action is to ignore it.
        let wanted = taken_in().filter(|&signal| !is_in(&mask, signal) && !is_ignored(signal));
        let ours = set_of(wanted);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ours), None)?;
        let descriptor =
            SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let inherited = Inherited::with_mask(mask);
        Ok(Signals { descriptor, inherited, stopping: Cell::new(None) })
    }

    pub(crate) fn inherited(&self) -> Inherited {
        self.inherited
    }

    /// Returns the next signal, or `None` at `until` or once one of `news` can be read.
    pub(crate) fn next(&self, until: Option<Instant>, news: &[BorrowedFd<'_>]) -> Option<Arrived> {
        loop {
            self.stop_if_told();
            if let Ok(Some(info)) = self.descriptor.read_signal() {
                let signal = info.ssi_signo.cast_signed();
                self.stopping.set(stops(signal).then_some(signal));
                let from_terminal = is_a_terminals(signal) && info.ssi_code == libc::SI_KERNEL;
                return Some(Arrived { signal, from_terminal });
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let signals = self.descriptor.as_fd();
            let all = [signals].into_iter().chain(news.iter().copied());
            let mut polled: Vec<PollFd<'_>> =
                all.map(|one| PollFd::from_borrowed_fd(one, PollFlags::IN)).collect();
            // After EINTR or a timeout, the loop looks again.
            let polled_well = rustix::event::poll(&mut polled, left.as_ref()).is_ok();
            if polled_well && polled[1..].iter().any(|news| !news.revents().is_empty()) {
                return None;
            }
        }
    }

    /// Stops this process, as the signal does by default, until it is continued. The kernel does not
    /// stop a process in a group that nobody could continue.
    fn stop_if_told(&self) {
        let Some(signal) = self.stopping.take() else { return };
        let just_it = set_of([signal].into_iter());
        // SAFETY: the signal is blocked, so it takes effect below. The calls can only fail for bad
        // arguments.
        unsafe { libc::raise(signal) };
        _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&just_it), None);
        _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&just_it), None);
    }

    /// Does `work` on another thread. If a terminating signal arrives first, the work goes on until
    /// the process ends.
    ///
    /// # Errors
    /// The work failed, or no thread could be started.
    pub fn unless_interrupted<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Work<T>> {
        let (done, signal_done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("look".into()).spawn(move || {
            // The receiver may be gone by then.
            _ = sender.send(work());
            drop(signal_done);
        })?;
        loop {
            match self.next(None, &[done.as_fd()]) {
                Some(arrived) if is_terminating(arrived.signal) => {
                    signals::end_live_line();
                    return Ok(Work::Interrupted(arrived.signal));
                }
                // There is no build command to pass it on to.
                Some(_) => {}
                None => {
                    let gone = |_| anyhow!("the thread that looked is gone");
                    return receiver.recv().map_err(gone)?.map(Work::Done);
                }
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // These were for the build command, which has ended. They would end this process although
        // all went well, so those that are pending are discarded, and later ones ignored.
        let others = |&signal: &libc::c_int| {
            !is_terminating(signal) && !stops(signal) && signal != libc::SIGCHLD
        };
        for signal in taken_in().filter(others) {
            // SAFETY: SIG_IGN runs no code of ours. By number, because nix has no names for
            // real-time signals.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        // The other pending signals take effect now. The call can only fail for bad arguments.
        _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(self.inherited.mask()), None);
    }
}
