//! Signals: which ones reach us while COMMAND runs, what it gets of them, and how to end by one.
//!
//! Who sends what to whom, and so what is done with it while COMMAND runs:
//!
//! - INT, TERM, HUP, QUIT from `kill`, a CI system or a supervisor go to this process alone: passed
//!   on.
//! - INT, QUIT, WINCH (and HUP) from the terminal go to the whole foreground group, so COMMAND has
//!   them already: not passed on. But of the terminal's end the kernel tells the leader of its
//!   session alone: if that is us, HUP is passed on.
//! - USR1, USR2 are meant for COMMAND (dd, nginx, …): passed on.
//! - TSTP, CONT, TTIN, TTOU are left alone: the terminal stops and continues the whole group.
//!
//! While looking and waiting there is nothing to pass on: INT, TERM, HUP and QUIT end the process
//! at once, by that signal, and the kernel its locks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Instant;

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Signals that are passed on to COMMAND.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Does it mean that the build is to end?
pub(super) fn is_terminating(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT)
}

/// A signal that has come in.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Which.
    pub signal: Signal,
    /// Whether the kernel sent it (Ctrl-C, Ctrl-\, a resize), and so to the whole group.
    pub from_terminal: bool,
}

/// The part of our signal state at the start that COMMAND is to have too, and that std would
/// change between fork and exec.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inherited {
    mask: SigSet,
    ignores_pipe: bool,
    ignores_file_size: bool,
}

impl Inherited {
    /// Puts it back. For use between fork and exec.
    pub(super) fn restore(&self) -> io::Result<()> {
        if self.ignores_pipe {
            set_action(Signal::SIGPIPE, SigHandler::SigIgn)?;
        }
        if !self.ignores_file_size {
            set_action(Signal::SIGXFSZ, SigHandler::SigDfl)?;
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?;
        Ok(())
    }
}

/// What was blocked when we were started.
static MASK_AT_START: OnceLock<SigSet> = OnceLock::new();

/// Blocks what was blocked when we were started, and nothing else. For use between fork and exec.
pub(super) fn restore_mask() -> io::Result<()> {
    let mask = MASK_AT_START.get().copied().unwrap_or_else(SigSet::empty);
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?)
}

/// Makes the actions that were inherited fit to work with. Before the first child.
pub fn prepare() {
    if let Ok(mask) = SigSet::thread_get_mask() {
        _ = MASK_AT_START.set(mask);
    }
    // An «ignore» of SIGCHLD would make wait() lose the status of children. It can only fail for a
    // signal that does not exist, as below.
    _ = set_action(Signal::SIGCHLD, SigHandler::SigDfl);
    // Where files may not grow (RLIMIT_FSIZE), a record or a line of log that cannot be written is no
    // reason to die.
    IGNORED_FILE_SIZE_AT_START.store(is_ignored(Signal::SIGXFSZ), Ordering::Relaxed);
    _ = set_action(Signal::SIGXFSZ, SigHandler::SigIgn);
    for signal in PASSED_ON.into_iter().filter(|&signal| is_terminating(signal)) {
        if !is_ignored(signal) {
            _ = set_action(signal, SigHandler::Handler(end_at_once));
        }
    }
}

/// Ends the process as the default action would, but without a core dump (QUIT), without leaving
/// half a line on the terminal, and also as process 1, which the kernel spares those actions.
extern "C" fn end_at_once(signal: libc::c_int) {
    if crate::log::live_line_is_shown() {
        wipe_line();
    }
    end_by(signal)
}

/// Clears the line of the terminal that the cursor is on, unless that would have to wait.
fn wipe_line() {
    /// To the first column, and erase to the end (ECMA-48, EL).
    const WIPE: &[u8] = b"\r\x1b[K";
    let mut terminal = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: async-signal-safe calls on memory of this stack frame and a constant.
    unsafe {
        if libc::poll(&raw mut terminal, 1, 0) == 1 {
            libc::write(libc::STDERR_FILENO, WIPE.as_ptr().cast(), WIPE.len());
        }
    }
}

/// While this exists, signals arrive here and nowhere else.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
    inherited: Inherited,
}

impl Signals {
    /// Starts to take signals in. What was ignored or blocked when buildlock was started stays so.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn take_in() -> io::Result<Self> {
        let mut ours = SigSet::empty();
        let mask = SigSet::thread_get_mask()?;
        for signal in PASSED_ON {
            // A blocked signal is kept by the kernel even where its action is to ignore it.
            if !mask.contains(signal) && !is_ignored(signal) {
                ours.add(signal);
            }
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ours), None)?;
        let descriptor =
            SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let ignores_pipe = IGNORED_PIPE_AT_START.load(Ordering::Relaxed);
        let ignores_file_size = IGNORED_FILE_SIZE_AT_START.load(Ordering::Relaxed);
        let inherited = Inherited { mask, ignores_pipe, ignores_file_size };
        Ok(Signals { descriptor, inherited })
    }

    pub(super) fn inherited(&self) -> Inherited {
        self.inherited
    }

    /// The next signal; none by `until`, or when some `news` can be read. Without either it waits as
    /// long as it takes.
    pub(super) fn next(&self, until: Option<Instant>, news: &[BorrowedFd<'_>]) -> Option<Arrived> {
        loop {
            if let Ok(Some(info)) = self.descriptor.read_signal()
                && let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed())
            {
                return Some(Arrived { signal, from_terminal: info.ssi_code == libc::SI_KERNEL });
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
            // EINTR, or time passed: either way we look again.
            let polled_well = rustix::event::poll(&mut polled, left.as_ref()).is_ok();
            if polled_well && polled[1..].iter().any(|news| !news.revents().is_empty()) {
                return None;
            }
        }
    }

    /// Does `work` on another thread, unless a terminating signal arrives: then that is returned,
    /// and the work goes on until the process ends.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn unless_ended<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Result<T, Signal>> {
        let (done, signal_done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("look".into()).spawn(move || {
            // Nobody may be there any more to take the result.
            _ = sender.send(work());
            drop(signal_done);
        })?;
        loop {
            match self.next(None, &[done.as_fd()]) {
                Some(arrived) if is_terminating(arrived.signal) => {
                    if crate::log::end_live_line() {
                        wipe_line();
                    }
                    return Ok(Err(arrived.signal));
                }
                // There is nobody to pass it on to any more.
                Some(_) => {}
                None => {
                    let result = receiver
                        .recv()
                        .map_err(|_| io::Error::other("the thread that looked is gone"));
                    return result.map(Ok);
                }
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // These were for COMMAND, which is no more, and would end us although all went well: what
        // has come in is discarded, and what comes is ignored.
        for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
            _ = set_action(signal, SigHandler::SigIgn);
        }
        // What else has come in since takes its action now. It can only fail for bad arguments.
        _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.inherited.mask), None);
    }
}

/// Ends this process by `signal`, as `timeout(1)` does, so that a shell loop or make around it
/// sees that it was a signal and stops. Without a core dump: whatever went wrong was not here. Makes
/// system calls only, so that a signal handler may call it.
pub fn end_by(signal: i32) -> ! {
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    _ = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
    // Where a program takes the cores, the limit does not stop it (core(5)).
    _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // SAFETY: system calls on memory of this stack frame; the default action runs no code of ours.
    // By number: nix has no names for real-time signals.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut just_it: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut just_it);
        libc::sigaddset(&raw mut just_it, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const just_it, std::ptr::null_mut());
        libc::raise(signal);
        // It is one that does not end a process, or not process 1.
        libc::_exit(128 + signal)
    }
}

fn set_action(signal: Signal, action: SigHandler) -> nix::Result<()> {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours, and the one handler is async-signal-safe.
    unsafe { nix::sys::signal::signal(signal, action) }.map(drop)
}

fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null pointer for the new action only asks; the kernel fills in the old one, and a
    // zeroed sigaction is a valid one in any case.
    let action = unsafe {
        libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

static IGNORED_FILE_SIZE_AT_START: AtomicBool = AtomicBool::new(false);
static IGNORED_PIPE_AT_START: AtomicBool = AtomicBool::new(false);

/// Notes what SIGPIPE did when we were started. Rust ignores it before `main`, and std sets it to
/// its default in children, so later it is too late to know.
extern "C" fn note_pipe_action() {
    IGNORED_PIPE_AT_START.store(is_ignored(Signal::SIGPIPE), Ordering::Relaxed);
}

// SAFETY: the linker puts this pointer among the functions that the C library calls before main
// (System V ABI, initialization functions); it only asks for a signal's action.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE_PIPE_ACTION: extern "C" fn() = note_pipe_action;
