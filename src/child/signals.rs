//! Signals: which ones reach us while COMMAND runs, what it gets of them, and how to end by one.
//!
//! Who sends what to whom, and so what is done with it while COMMAND runs:
//!
//! - INT, TERM, HUP, QUIT from `kill`, a CI system or a supervisor go to this process alone: passed
//!   on.
//! - INT, QUIT, WINCH (and HUP) from the terminal go to the whole foreground group, so COMMAND has
//!   them already: not passed on. But of the terminal's end the kernel tells the leader of its
//!   session alone: if that is us, HUP is passed on.
//! - USR1, USR2, the real-time signals and others that programs give a meaning of their own are
//!   meant for the command, and so are ALRM, XCPU and the like, which a caller may have arranged
//!   for before execve(2): passed on.
//! - TSTP, TTIN, TTOU stop buildlock as if it had not taken them in. From the terminal they stop
//!   the whole group; what `kill` sends to buildlock alone is passed on first. CONT is passed on.
//! - KILL and STOP cannot be taken in. CHLD is for buildlock itself. PIPE and XFSZ come of its own
//!   writing; SEGV, BUS, FPE, ILL and TRAP of its own mistakes. The C library keeps 32 and 33.
//!
//! While looking and waiting there is nothing to pass on: INT, TERM, HUP and QUIT end the process
//! at once, by that signal, and the kernel its locks. All others do what they do by default.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Instant;

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Signals that are not taken in, by number.
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

/// All that are taken in while COMMAND runs.
fn taken_in() -> impl Iterator<Item = libc::c_int> {
    (1..=libc::SIGRTMAX()).filter(|signal| !LEFT_ALONE.contains(signal))
}

/// Does it mean that the build must end?
pub(super) fn is_terminating(signal: libc::c_int) -> bool {
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

/// Does a terminal send it, to the whole foreground group?
fn is_a_terminals(signal: libc::c_int) -> bool {
    let others = [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGWINCH];
    stops(signal) || others.contains(&signal)
}

/// Does it stop a process by default?
fn stops(signal: libc::c_int) -> bool {
    matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

/// A signal that has come in.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Which, by its number.
    pub signal: i32,
    /// Whether the kernel sent it for a terminal (Ctrl-C, Ctrl-\, a resize), and so to the whole
    /// group.
    pub from_terminal: bool,
}

/// The part of our state at the start that COMMAND must have too, and that std changes: before
/// main, or between fork and exec.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inherited {
    mask: SigSet,
    ignores_pipe: bool,
    ignores_file_size: bool,
    closed: [bool; STREAMS],
}

/// Standard input, output and error.
const STREAMS: usize = 3;

impl Inherited {
    /// Puts it back. For use between fork and exec.
    pub(super) fn restore(&self) -> io::Result<()> {
        let pipe = if self.ignores_pipe { SigHandler::SigIgn } else { SigHandler::SigDfl };
        set_action(Signal::SIGPIPE, pipe)?;
        if !self.ignores_file_size {
            set_action(Signal::SIGXFSZ, SigHandler::SigDfl)?;
        }
        // The kernel does it too, but only once the program was read: while that hangs, a signal
        // with a handler would not end the process.
        for signal in ENDED_BY {
            if !is_ignored(signal as libc::c_int) {
                set_action(signal, SigHandler::SigDfl)?;
            }
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?;
        for (stream, &closed) in (0..).zip(&self.closed) {
            if closed {
                // SAFETY: it is the /dev/null that std has put there, which nobody uses here.
                unsafe { libc::close(stream) };
            }
        }
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
    // Where files may not grow (RLIMIT_FSIZE), a record or a line of log that cannot be written is
    // no reason to die.
    IGNORED_FILE_SIZE_AT_START.store(is_ignored(libc::SIGXFSZ), Ordering::Relaxed);
    _ = set_action(Signal::SIGXFSZ, SigHandler::SigIgn);
    let is_process_1 = std::process::id() == 1;
    // The others keep their default action as long as that does: it also ends a process that hangs
    // on a file system, and a handler does not.
    catch(|signal| is_process_1 || dumps_core(signal));
}

/// Has signals wipe the live line before they end the process.
pub fn wipe_live_line_at_end() {
    catch(|_| true);
}

/// Those that end a process that waits. But an abort() of our own is a mistake, and its core may
/// tell which.
const ENDED_BY: [Signal; 9] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGXCPU,
    Signal::SIGSYS,
];

fn dumps_core(signal: Signal) -> bool {
    matches!(signal, Signal::SIGQUIT | Signal::SIGXCPU | Signal::SIGSYS)
}

/// Has some of the signals that are not ignored end the process by way of [`end_at_once`].
fn catch(some: impl Fn(Signal) -> bool) {
    for signal in ENDED_BY.into_iter().filter(|&signal| some(signal)) {
        if !is_ignored(signal as libc::c_int) {
            // It can only fail for a signal that does not exist.
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
    /// One that stops us, once the caller has done with it.
    stopping: Cell<Option<libc::c_int>>,
}

impl Signals {
    /// Starts to take signals in. What was ignored or blocked when buildlock was started stays so.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn take_in() -> io::Result<Self> {
        let mask = SigSet::thread_get_mask()?;
        // A blocked signal is kept by the kernel even where its action is to ignore it.
        let wanted = taken_in().filter(|&signal| !is_in(&mask, signal) && !is_ignored(signal));
        let ours = set_of(wanted);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ours), None)?;
        let descriptor =
            SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let ignores_pipe = IGNORED_PIPE_AT_START.load(Ordering::Relaxed);
        let ignores_file_size = IGNORED_FILE_SIZE_AT_START.load(Ordering::Relaxed);
        let closed = CLOSED_AT_START.each_ref().map(|it| it.load(Ordering::Relaxed));
        let inherited = Inherited { mask, ignores_pipe, ignores_file_size, closed };
        Ok(Signals { descriptor, inherited, stopping: Cell::new(None) })
    }

    pub(super) fn inherited(&self) -> Inherited {
        self.inherited
    }

    /// The next signal; none by `until`, or when some `news` can be read. Without either it waits
    /// as long as it takes.
    pub(super) fn next(&self, until: Option<Instant>, news: &[BorrowedFd<'_>]) -> Option<Arrived> {
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
            // EINTR, or time passed: either way we look again.
            let polled_well = rustix::event::poll(&mut polled, left.as_ref()).is_ok();
            if polled_well && polled[1..].iter().any(|news| !news.revents().is_empty()) {
                return None;
            }
        }
    }

    /// Stops this process as the signal does by default, until it is continued; a process whose
    /// group nobody could continue does not stop.
    fn stop_if_told(&self) {
        let Some(signal) = self.stopping.take() else { return };
        let just_it = set_of([signal].into_iter());
        // SAFETY: it is blocked, so it takes effect below. They can only fail for bad arguments.
        unsafe { libc::raise(signal) };
        _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&just_it), None);
        _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&just_it), None);
    }

    /// Does `work` on another thread, unless a terminating signal arrives: then that is returned,
    /// and the work goes on until the process ends.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn unless_ended<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Result<T, i32>> {
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
        let others = |&signal: &libc::c_int| {
            !is_terminating(signal) && !stops(signal) && signal != libc::SIGCHLD
        };
        for signal in taken_in().filter(others) {
            // SAFETY: SIG_IGN runs no code of ours. By number: nix has no names for real-time
            // signals.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        // What else has come in since takes its action now. It can only fail for bad arguments.
        _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.inherited.mask), None);
    }
}

/// Ends this process by `signal`, as `timeout(1)` does, so that a shell loop or make around it sees
/// that it was a signal and stops. Without a core dump: whatever went wrong was not here. Makes
/// system calls only, so that a signal handler may call it.
pub fn end_by(signal: i32) -> ! {
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    _ = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
    // Where a program takes the cores, the limit does not stop it (core(5)).
    _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // SAFETY: system calls on memory of this stack frame; the default action runs no code of ours.
    // By number: nix has no names for real-time signals. Not by the C library where that keeps a
    // signal for itself: it lets nobody send or unblock one.
    unsafe {
        // All zero is SIG_DFL, and no flags, for the kernel's own struct sigaction.
        let default = [0_u64; 8];
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            default.as_ptr(),
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        );
        let just_it = 1_u64 << (signal - 1);
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_UNBLOCK,
            &raw const just_it,
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        );
        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal);
        // It is one that does not end a process, or not process 1.
        libc::_exit(128 + signal)
    }
}

fn set_action(signal: Signal, action: SigHandler) -> nix::Result<()> {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours, and the one handler is async-signal-safe.
    unsafe { nix::sys::signal::signal(signal, action) }.map(drop)
}

fn set_of(signals: impl Iterator<Item = libc::c_int>) -> SigSet {
    // SAFETY: sigemptyset initializes the set, and sigaddset refuses numbers that are no signals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        signals.for_each(|signal| _ = libc::sigaddset(&raw mut set, signal));
        SigSet::from_sigset_t_unchecked(set)
    }
}

fn is_in(set: &SigSet, signal: libc::c_int) -> bool {
    // SAFETY: it reads an initialized set.
    unsafe { libc::sigismember(set.as_ref(), signal) == 1 }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null pointer for the new action only asks; the kernel fills in the old one, and a
    // zeroed sigaction is a valid one in any case.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

static IGNORED_FILE_SIZE_AT_START: AtomicBool = AtomicBool::new(false);
static IGNORED_PIPE_AT_START: AtomicBool = AtomicBool::new(false);

static CLOSED_AT_START: [AtomicBool; STREAMS] = [const { AtomicBool::new(false) }; STREAMS];

/// Notes what std changes before `main`, so that later it is too late to know. It ignores SIGPIPE,
/// and sets it to its default in children; and it opens /dev/null as each standard stream that is
/// closed.
extern "C" fn note_state_at_start() {
    IGNORED_PIPE_AT_START.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    for (stream, closed) in (0..).zip(&CLOSED_AT_START) {
        // SAFETY: a system call without pointers.
        let flags = unsafe { libc::fcntl(stream, libc::F_GETFD) };
        closed.store(flags == -1, Ordering::Relaxed);
    }
}

// SAFETY: the linker puts this pointer among the functions that the C library calls before main
// (System V ABI, initialization functions); it only asks the kernel.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE_STATE_AT_START: extern "C" fn() = note_state_at_start;
