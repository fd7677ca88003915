//! Signal actions of this process: what it inherited, what ends it while it waits, and how it ends
//! by a signal.
//!
//! nix offers no signal by number, and no handler without `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};

/// State at our start that std changes before `main`, or between fork and exec, and that the build
/// command must have too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    mask: SigSet,
    ignores_pipe: bool,
    ignores_file_size: bool,
    closed: [bool; STREAMS],
}

/// Standard input, output and error.
const STREAMS: usize = 3;

impl Inherited {
    /// Returns the state at our start, with this signal mask.
    pub(crate) fn with_mask(mask: SigSet) -> Self {
        let ignores_pipe = IGNORED_PIPE_AT_START.load(Ordering::Relaxed);
        let ignores_file_size = IGNORED_FILE_SIZE_AT_START.load(Ordering::Relaxed);
        let closed = CLOSED_AT_START.each_ref().map(|it| it.load(Ordering::Relaxed));
        Inherited { mask, ignores_pipe, ignores_file_size, closed }
    }

    pub(crate) fn mask(&self) -> &SigSet {
        &self.mask
    }

    /// Restores it. For use between fork and exec.
    pub(crate) fn restore(&self) -> io::Result<()> {
        let pipe = if self.ignores_pipe { SigHandler::SigIgn } else { SigHandler::SigDfl };
        set_action(Signal::SIGPIPE, pipe)?;
        if !self.ignores_file_size {
            set_action(Signal::SIGXFSZ, SigHandler::SigDfl)?;
        }
        // The kernel does this too, but only after it has read the program. While that hangs, a
        // signal with a handler would not end the process.
        for signal in ENDED_BY {
            if !is_ignored(signal as libc::c_int) {
                set_action(signal, SigHandler::SigDfl)?;
            }
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?;
        for (stream, &closed) in (0..).zip(&self.closed) {
            if closed {
                // SAFETY: it is the /dev/null that std opened there, which nothing here uses.
                unsafe { libc::close(stream) };
            }
        }
        Ok(())
    }
}

/// The signals that were blocked when this process started.
static MASK_AT_START: OnceLock<SigSet> = OnceLock::new();

/// Blocks the signals that were blocked when this process started, and no others. For use between
/// fork and exec.
pub(crate) fn restore_mask() -> io::Result<()> {
    let mask = MASK_AT_START.get().copied().unwrap_or_else(SigSet::empty);
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?)
}

/// Changes inherited actions that would disturb our work. Call it before the first child starts.
pub fn prepare() {
    if let Ok(mask) = SigSet::thread_get_mask() {
        _ = MASK_AT_START.set(mask);
    }
    // If SIGCHLD were ignored, wait() would lose the status of children. This can only fail for a
    // signal that does not exist, as below.
    _ = set_action(Signal::SIGCHLD, SigHandler::SigDfl);
    // Where files may not grow (RLIMIT_FSIZE), a record or a log line that cannot be written is not
    // a reason to die.
    IGNORED_FILE_SIZE_AT_START.store(is_ignored(libc::SIGXFSZ), Ordering::Relaxed);
    _ = set_action(Signal::SIGXFSZ, SigHandler::SigIgn);
    let is_process_1 = std::process::id() == 1;
    // The other signals keep their default action as long as it is enough: it also ends a process
    // that hangs on a file system, and a handler does not.
    catch(|signal| is_process_1 || dumps_core(signal));
}

/// Makes signals wipe the live line before they end the process.
pub fn wipe_live_line_at_end() {
    catch(|_| true);
}

/// Signals that end a process while it waits. ABRT is not among them: an abort() of our own is a
/// mistake, which its core dump may explain.
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

/// Makes [`end_at_once`] the handler of some of these signals, unless they are ignored.
fn catch(some: impl Fn(Signal) -> bool) {
    for signal in ENDED_BY.into_iter().filter(|&signal| some(signal)) {
        if !is_ignored(signal as libc::c_int) {
            // It can only fail for a signal that does not exist.
            _ = set_action(signal, SigHandler::Handler(end_at_once));
        }
    }
}

/// Ends the process as the default action would, but without a core dump (QUIT) and without leaving
/// half a line on the terminal. It also works as process 1, to which default actions do not apply.
extern "C" fn end_at_once(signal: libc::c_int) {
    wipe_live_line();
    end_by(signal)
}

/// Whether there is a live line on the terminal.
static LIVE_LINE_SHOWN: AtomicBool = AtomicBool::new(false);
/// Whether no live line may be drawn any more.
static LIVE_LINE_ENDED: AtomicBool = AtomicBool::new(false);

/// Notes that a live line is drawn now, which must be wiped at the end. Returns false if none may be
/// drawn any more.
pub(crate) fn note_live_line() -> bool {
    if LIVE_LINE_ENDED.load(Ordering::SeqCst) {
        return false;
    }
    LIVE_LINE_SHOWN.store(true, Ordering::SeqCst);
    true
}

/// Notes that the live line was cleared.
pub(crate) fn forget_live_line() {
    LIVE_LINE_SHOWN.store(false, Ordering::Relaxed);
}

/// Wipes the live line, and lets no thread draw it again.
pub(crate) fn end_live_line() {
    LIVE_LINE_ENDED.store(true, Ordering::SeqCst);
    wipe_live_line();
}

/// Clears the terminal's line that the cursor is on, if that is the live line and the terminal takes
/// it at once.
fn wipe_live_line() {
    if !LIVE_LINE_SHOWN.load(Ordering::Relaxed) {
        return;
    }
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

/// Ends this process by `signal`, as `timeout(1)` does, so that a shell loop or make around it sees
/// the signal and stops. Leaves no core dump: the fault was not here. Makes system calls only, so
/// that a signal handler may call it.
pub fn end_by(signal: i32) -> ! {
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    _ = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
    // Where a program takes the cores, the limit does not stop it (core(5)).
    _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // SAFETY: system calls on memory of this stack frame; the default action runs no code of ours.
    // By number, because nix has no names for real-time signals. By system call, because the C
    // library does not let a program send or unblock the signals it keeps for itself.
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
        // The signal does not end a process, or not process 1.
        libc::_exit(128 + signal)
    }
}

fn set_action(signal: Signal, action: SigHandler) -> nix::Result<()> {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours, and the one handler is async-signal-safe.
    unsafe { nix::sys::signal::signal(signal, action) }.map(drop)
}

pub(crate) fn set_of(signals: impl Iterator<Item = libc::c_int>) -> SigSet {
    // SAFETY: sigemptyset initializes the set, and sigaddset refuses numbers that are no signals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        signals.for_each(|signal| _ = libc::sigaddset(&raw mut set, signal));
        SigSet::from_sigset_t_unchecked(set)
    }
}

pub(crate) fn is_in(set: &SigSet, signal: libc::c_int) -> bool {
    // SAFETY: it reads an initialized set.
    unsafe { libc::sigismember(set.as_ref(), signal) == 1 }
}

pub(crate) fn is_ignored(signal: libc::c_int) -> bool {
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

/// Notes what std changes before `main`. It ignores SIGPIPE, and resets it in children. And it opens
/// /dev/null as each standard stream that is closed.
extern "C" fn note_state_at_start() {
    IGNORED_PIPE_AT_START.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    for (stream, closed) in (0..).zip(&CLOSED_AT_START) {
        // SAFETY: a system call without pointers.
        let flags = unsafe { libc::fcntl(stream, libc::F_GETFD) };
        closed.store(flags == -1, Ordering::Relaxed);
    }
}

// SAFETY: the linker puts this pointer among the functions that the C library calls before main
// (System V ABI, initialization functions). The function only asks the kernel.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE_STATE_AT_START: extern "C" fn() = note_state_at_start;
