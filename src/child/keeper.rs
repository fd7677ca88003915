//! A process between buildlock and COMMAND that holds the locks for as long as anything of COMMAND
//! runs, should buildlock be killed.
//!
//! COMMAND inherits the locks' descriptors, but sudo and others close what they do not know, Python
//! does so for its children, and a setuid program gets no death signal. The keeper has copies of
//! its own, is COMMAND's parent, and adopts what COMMAND leaves behind (it is a subreaper), so the
//! kernel tells it when the last of them has ended.
//!
//! Locks that have to be renewed it cannot hold. It kills COMMAND, with all that has come of it, when
//! they are about to run out: buildlock may be stopped, or dead.
//!
//! It is forked and never executes another program: it makes system calls only, which is all that
//! may be done between fork and exec. It has a session of its own, so that what is sent to the
//! job's process group does not reach it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags};

use super::tree;
use crate::exit::Exit;

/// buildlock to keeper: COMMAND has been executed.
const STARTED: u8 = b's';
/// buildlock to keeper: everything is over, go.
const DONE: u8 = b'd';
/// How long a keeper whose COMMAND has ended waits to hear that it was executed, in milliseconds.
/// Where it was not, buildlock waits for the keeper's end to learn of that.
const STARTED_WITHIN: libc::c_int = 100;

/// How soon what has come of COMMAND is killed again while it is to be dead, in milliseconds.
const KILL_AGAIN: libc::c_int = 10;
/// The longest that this becomes.
const KILL_AGAIN_MAX: libc::c_int = 1000;

/// How long a keeper may take to report before we see to it that it is not stopped.
const STOPPED_AFTER: Duration = Duration::from_millis(100);

/// The pipes between buildlock and the keeper.
#[derive(Debug)]
pub(super) struct Line {
    to_keeper: (OwnedFd, OwnedFd),
    from_keeper: (OwnedFd, OwnedFd),
}

impl Line {
    pub(super) fn new() -> io::Result<Self> {
        let to_keeper = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let from_keeper = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Line { to_keeper, from_keeper })
    }

    /// The keeper's side, for use in the forked process, with the locks that it is to hold, and the
    /// timer that goes off when COMMAND is to be dead.
    pub(super) fn keepers_side(&self, locks: &[RawFd], kill: Option<RawFd>) -> KeepersSide {
        let (orders, reports) = (self.to_keeper.0.as_raw_fd(), self.from_keeper.1.as_raw_fd());
        let mut kept: Vec<RawFd> =
            locks.iter().copied().chain([orders, reports]).chain(kill).collect();
        kept.sort_unstable();
        // poll(2) leaves out what is negative.
        KeepersSide { orders, reports, kill: kill.unwrap_or(-1), kept }
    }
}

/// The keeper ended before it could report COMMAND's process id.
pub(super) fn killed() -> io::Error {
    io::Error::other("buildlock-keep, the process behind which it runs, was killed")
}

/// A COMMAND that was started behind a keeper.
#[derive(Debug)]
pub(super) struct Kept {
    keeper: duct::Handle,
    orders: File,
    reports: File,
    /// COMMAND's process id.
    pub(super) command: u32,
    /// Readable once COMMAND has ended, whatever the keeper does (pidfd_open(2), Linux 5.3).
    ended: Option<OwnedFd>,
    /// Somebody killed the keeper.
    is_gone: bool,
}

impl Kept {
    /// After the keeper, and COMMAND behind it, were started.
    pub(super) fn new(keeper: duct::Handle, line: Line) -> io::Result<Self> {
        let mut orders = File::from(line.to_keeper.1);
        let mut reports = File::from(line.from_keeper.0);
        drop(line.from_keeper.1);
        // Nothing can be done where the keeper has been killed already; its end tells.
        _ = orders.write_all(&[STARTED]);
        let keeper_pid = keeper.pids().first().copied().unwrap_or_default();
        while !becomes_readable(&reports, STOPPED_AFTER) {
            _ = tree::send(keeper_pid, Signal::SIGCONT);
        }
        let mut pid = [0; size_of::<libc::pid_t>()];
        reports.read_exact(&mut pid).map_err(|_| killed())?;
        rustix::io::ioctl_fionbio(&reports, true)?;
        let command = libc::pid_t::from_ne_bytes(pid);
        let ended = Pid::from_raw(command)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        Ok(Kept {
            keeper,
            orders,
            reports,
            command: command.cast_unsigned(),
            ended,
            is_gone: false,
        })
    }

    /// The keeper's process id, unless it has ended and another may have got it.
    pub(super) fn pid(&self) -> Option<u32> {
        self.keeper.pids().first().copied().filter(|_| !self.is_gone)
    }

    /// One of them is readable as soon as there is something new about COMMAND.
    pub(super) fn news(&self) -> Vec<BorrowedFd<'_>> {
        [self.reports.as_fd()].into_iter().chain(self.ended.as_ref().map(AsFd::as_fd)).collect()
    }

    /// Somebody may have stopped the keeper. When there is something to do for it, it goes on.
    fn wake(&self) {
        _ = self.pid().map(|pid| tree::send(pid, Signal::SIGCONT));
    }

    /// How COMMAND ended, if it has.
    pub(super) fn exit(&mut self) -> io::Result<Option<Exit>> {
        let mut report = [0; 2 * size_of::<libc::c_int>()];
        match self.reports.read(&mut report) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let ended = |fd| becomes_readable(fd, Duration::ZERO);
                if self.ended.as_ref().is_some_and(ended) {
                    self.ended = None;
                    self.wake();
                }
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
            Ok(read) if read == report.len() => {
                let number = |at: usize| {
                    let mut bytes = [0; size_of::<libc::c_int>()];
                    bytes.copy_from_slice(&report[at..at + size_of::<libc::c_int>()]);
                    libc::c_int::from_ne_bytes(bytes)
                };
                let (how, status) = (number(0), number(size_of::<libc::c_int>()));
                let exited = how == libc::CLD_EXITED;
                Ok(Some(if exited { Exit::Code(status as u8) } else { Exit::Signal(status) }))
            }
            // COMMAND gets its death signal, and is our child now.
            Ok(_) => {
                let exit = Exit::from(self.keeper.wait()?.status);
                self.is_gone = true;
                tracing::error!(
                    "buildlock-keep, the process behind which COMMAND runs, ended by {exit}"
                );
                Ok(Some(exit))
            }
        }
    }

    /// Nothing of COMMAND is to be waited for any more: the keeper ends.
    pub(super) fn finish(mut self) {
        if self.orders.write_all(&[DONE]).is_ok() {
            self.wake();
            _ = self.keeper.wait();
        }
    }

    /// The keeper holds the locks until everything of COMMAND has ended, also beyond our own end.
    pub(super) fn leave(self) {
        // Our end closes it, and that is the keeper's sign.
        std::mem::forget(self.orders);
    }
}

fn becomes_readable(descriptor: &impl AsFd, within: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let within = Timespec::try_from(within).ok();
    rustix::event::poll(&mut polled, within.as_ref()).is_ok_and(|ready| ready > 0)
}

/// What the forked process knows.
#[derive(Clone, Debug)]
pub(super) struct KeepersSide {
    orders: RawFd,
    reports: RawFd,
    kill: RawFd,
    /// All descriptors that the keeper needs, sorted.
    kept: Vec<RawFd>,
}

impl KeepersSide {
    /// Forks: returns in the child, which is to become COMMAND; the parent becomes the keeper. With
    /// all signals blocked in both. For use between fork and exec.
    ///
    /// # Errors
    /// There can be no more processes.
    pub(super) fn split(&self) -> io::Result<()> {
        // SAFETY: system calls only, on memory of this stack frame.
        let forked = unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
            libc::fork()
        };
        match forked {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(()),
            command => self.keep(command),
        }
    }

    /// The keeper's life.
    fn keep(&self, command: libc::pid_t) -> ! {
        self.close_the_rest();
        // SAFETY: system calls only, on memory of this stack frame and a constant string that ends
        // with NUL.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, c"buildlock-keep".as_ptr());
            libc::setsid();
            report(self.reports, &command.to_ne_bytes());
            let mut child_ended: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut child_ended);
            libc::sigaddset(&raw mut child_ended, libc::SIGCHLD);
            let deaths = libc::signalfd(-1, &raw const child_ended, libc::SFD_NONBLOCK);

            let mut ended = false;
            let mut started = false;
            loop {
                ended = ended || self.reap(command);
                let mut all = [deaths, self.orders, self.kill].map(polled);
                // Without a descriptor for deaths (the system is out of them) we look for them.
                let unsure = (ended && !started) || deaths < 0;
                let patience = if unsure { STARTED_WITHIN } else { -1 };
                if libc::poll(all.as_mut_ptr(), 3, patience) == 0 && ended && !started {
                    libc::_exit(1);
                }
                if all[2].revents != 0 {
                    if !ended {
                        libc::kill(command, libc::SIGKILL);
                    }
                    kill_children();
                    // It stays readable unless the lock is renewed after all: look again soon.
                    libc::poll(std::ptr::null_mut(), 0, KILL_AGAIN);
                    if ended && !started {
                        let mut orders = [polled(self.orders)];
                        if libc::poll(orders.as_mut_ptr(), 1, STARTED_WITHIN) == 0 {
                            libc::_exit(1);
                        }
                    }
                }
                let mut told: libc::signalfd_siginfo = std::mem::zeroed();
                libc::read(deaths, (&raw mut told).cast(), size_of_val(&told));
                if all[1].revents != 0 {
                    let mut order = 0_u8;
                    match libc::read(self.orders, (&raw mut order).cast(), 1) {
                        1 if order == STARTED => started = true,
                        1 => libc::_exit(0),
                        // buildlock has ended.
                        0 => break,
                        // Interrupted.
                        _ => {}
                    }
                }
            }
            if !ended {
                // docker's client then cancels the build.
                libc::kill(command, libc::SIGTERM);
                // A stopped process takes no other signal.
                libc::kill(command, libc::SIGCONT);
            }
            // Until there is no child any more. What has no parent becomes ours.
            if self.kill >= 0 {
                let mut pause = KILL_AGAIN;
                while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) >= 0
                    || *libc::__errno_location() == libc::EINTR
                {
                    let mut polled = [deaths, self.kill].map(polled);
                    let patience = if deaths < 0 { STARTED_WITHIN } else { -1 };
                    libc::poll(polled.as_mut_ptr(), 2, patience);
                    let mut told: libc::signalfd_siginfo = std::mem::zeroed();
                    libc::read(deaths, (&raw mut told).cast(), size_of_val(&told));
                    if polled[1].revents != 0 {
                        kill_children();
                        // What is somebody else's cannot be killed, and ends when it will.
                        libc::poll(std::ptr::null_mut(), 0, pause);
                        pause = (2 * pause).min(KILL_AGAIN_MAX);
                    }
                }
            }
            while libc::waitpid(-1, std::ptr::null_mut(), 0) > 0
                || *libc::__errno_location() == libc::EINTR
            {}
            libc::_exit(0)
        }
    }

    /// Takes the statuses of ended children, up to COMMAND's, which is reported but left alone so
    /// that its process id stays its own. Has COMMAND ended?
    fn reap(&self, command: libc::pid_t) -> bool {
        // SAFETY: system calls only, on memory of this stack frame.
        unsafe {
            loop {
                let mut about: libc::siginfo_t = std::mem::zeroed();
                let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
                if libc::waitid(libc::P_ALL, 0, &raw mut about, look) != 0 || about.si_pid() == 0 {
                    return false;
                }
                if about.si_pid() == command {
                    let how = [about.si_code.to_ne_bytes(), about.si_status().to_ne_bytes()];
                    report(self.reports, how.as_flattened());
                    return true;
                }
                libc::waitpid(about.si_pid(), std::ptr::null_mut(), libc::WNOHANG);
            }
        }
    }

    /// Closes all descriptors but those needed: pipes of others would stay open with us, and std
    /// waits for the end of one to know that COMMAND was executed.
    fn close_the_rest(&self) {
        let mut first = 0;
        for &kept in &self.kept {
            close_from_to(first, kept - 1);
            first = kept + 1;
        }
        close_from_to(first, RawFd::MAX);
    }
}

fn polled(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Kills all children of the keeper. Theirs become the keeper's, and are for the next time.
///
/// `/proc/thread-self/children` (proc_pid_tid_children(5)) has their numbers with a space behind each.
fn kill_children() {
    /// Whoever does not fit is for the next time, too.
    const AT_ONCE: usize = 4096;
    let mut text = [0_u8; AT_ONCE];
    // SAFETY: system calls only, on memory of this stack frame and a constant string that ends with
    // NUL.
    unsafe {
        let children =
            libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let read = libc::read(children, text.as_mut_ptr().cast(), text.len());
        libc::close(children);
        let mut pid: libc::pid_t = 0;
        for &c in &text[..usize::try_from(read).unwrap_or_default()] {
            match c {
                b'0'..=b'9' => pid = pid.wrapping_mul(10).wrapping_add(libc::pid_t::from(c - b'0')),
                _ => {
                    if pid > 0 {
                        libc::kill(pid, libc::SIGKILL);
                    }
                    pid = 0;
                }
            }
        }
    }
}

/// Closes the descriptors from `first` to `last`, both included.
fn close_from_to(first: RawFd, last: RawFd) {
    /// What is closed one by one where the kernel cannot close many at once (before Linux 5.9).
    const ONE_BY_ONE_MAX: RawFd = 4096;
    if first > last {
        return;
    }
    // SAFETY: system calls only; the forked process uses none of these descriptors.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, last, 0) != 0 {
            for descriptor in first..=last.min(ONE_BY_ONE_MAX) {
                libc::close(descriptor);
            }
        }
    }
}

/// Tells buildlock something. A few bytes go into a pipe whole or not at all (pipe(7)).
fn report(reports: RawFd, bytes: &[u8]) {
    // SAFETY: a system call that reads `bytes`.
    unsafe { libc::write(reports, bytes.as_ptr().cast(), bytes.len()) };
}
