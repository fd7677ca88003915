//! What the keeper does after the fork. It makes system calls only.

use std::io;
use std::os::fd::RawFd;

use nix::libc;
use rustix::time::{ClockId, clock_gettime};

use super::children::for_each_child;
use super::protocol::{COMMAND, EMPTY, ENDED, LIMIT, NAME, Report, order};

/// How soon to look for ended children when no signal tells of them, in milliseconds.
const LOOK_AGAIN: libc::c_int = 100;
/// How soon to send SIGKILL again while the build command must be dead, in milliseconds.
const KILL_AGAIN: libc::c_int = 10;
/// The longest this pause becomes.
const KILL_AGAIN_MAX: libc::c_int = 1000;
/// How long after `--kill-after` buildlock may take to kill what it has told to end, in
/// milliseconds.
const BUILDLOCKS_GRACE: i64 = 1000;

/// What the forked process needs to know, prepared before the fork.
#[derive(Clone, Debug)]
pub(crate) struct KeepersSide {
    pub(super) orders: RawFd,
    pub(super) reports: RawFd,
    /// Both ends of both pipes.
    pub(super) line: [RawFd; 4],
    pub(super) expiry: RawFd,
    pub(super) limit: RawFd,
    /// In milliseconds.
    pub(super) kill_after: Option<i64>,
    pub(super) has_proc: bool,
    pub(super) words: Option<(usize, usize)>,
    /// All descriptors the keeper needs, sorted.
    pub(super) kept: Vec<RawFd>,
}

/// How far the keeper has got with ending everything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// buildlock does it, and has until this moment, in milliseconds of the monotonic clock.
    Relieved(Option<i64>),
    /// All have been sent SIGTERM, and get SIGKILL at this moment.
    Terminating(Option<i64>),
    /// They are sent SIGKILL, and again after this pause.
    Killing(libc::c_int),
}

impl KeepersSide {
    /// Forks, with all signals blocked in both processes. Returns in the child, which becomes the
    /// build command. The parent becomes the keeper. For use between fork and exec.
    ///
    /// # Errors
    /// No further process can be created.
    pub(crate) fn split(&self) -> io::Result<()> {
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
            0 => {
                // The execution would close them, but may hang. Meanwhile the end of the orders
                // must tell the keeper that buildlock is gone, and the end of the reports must tell
                // buildlock that the keeper is gone.
                for end in self.line {
                    // SAFETY: a system call; this process does not use the descriptor.
                    unsafe { libc::close(end) };
                }
                Ok(())
            }
            command => self.keep(command),
        }
    }

    /// Lives as the keeper.
    fn keep(&self, command: libc::pid_t) -> ! {
        self.close_the_rest();
        self.take_name();
        // SAFETY: system calls only, on memory of this stack frame.
        unsafe {
            // A keeper that is stopped when buildlock ends must continue, to end the build command.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCONT);
            libc::setsid();
            self.report([COMMAND, command, 0]);
            let mut child_ended: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut child_ended);
            libc::sigaddset(&raw mut child_ended, libc::SIGCHLD);
            let deaths = libc::signalfd(-1, &raw const child_ended, libc::SFD_NONBLOCK);

            let mut life = Life {
                side: self,
                command,
                ended: false,
                alone: false,
                ordered: false,
                limit: self.limit,
                ending: Ending::No,
                told: [0; TOLD_MAX],
                told_count: 0,
            };
            loop {
                if !life.reap() {
                    if life.alone {
                        libc::_exit(0)
                    }
                    if std::mem::take(&mut life.ordered) {
                        self.report([EMPTY, 0, 0]);
                    }
                }
                life.end_what_is_left();
                let orders = if life.alone { -1 } else { self.orders };
                let mut all = [deaths, orders, self.expiry, life.limit].map(polled);
                // Without the descriptor (the system is out of them), look for deaths instead.
                let timeout = life.poll_timeout(if deaths < 0 { LOOK_AGAIN } else { -1 });
                libc::poll(all.as_mut_ptr(), 4, timeout);
                let mut told: libc::signalfd_siginfo = std::mem::zeroed();
                libc::read(deaths, (&raw mut told).cast(), size_of_val(&told));
                if all[1].revents != 0 {
                    life.listen();
                }
                if all[2].revents != 0 {
                    life.runs_out();
                }
                if all[3].revents != 0 {
                    life.takes_too_long();
                }
            }
        }
    }

    /// Takes the keeper's name, so that `pkill buildlock` or `pkill -f` does not find it.
    fn take_name(&self) {
        // SAFETY: a system call with a constant string that ends with NUL. The words lie in memory
        // of our own, copied by fork(2), which nothing reads any more.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
            if let Some((start, end)) = self.words {
                let words = start as *mut u8;
                std::ptr::write_bytes(words, 0, end - start);
                let name = NAME.to_bytes();
                // The last byte stays NUL.
                let length = name.len().min(end - start - 1);
                std::ptr::copy_nonoverlapping(name.as_ptr(), words, length);
            }
        }
    }

    /// Closes all descriptors but those needed, since pipes of others would otherwise stay open.
    /// buildlock, for one, waits for the end of a pipe to know that the build command was executed.
    fn close_the_rest(&self) {
        let mut first = 0;
        for &kept in &self.kept {
            close_from_to(first, kept - 1);
            first = kept + 1;
        }
        close_from_to(first, RawFd::MAX);
    }

    fn report(&self, report: Report) {
        // SAFETY: a system call that reads `report`.
        unsafe { libc::write(self.reports, report.as_ptr().cast(), size_of_val(&report)) };
    }
}

/// How many processes are remembered as having been sent SIGTERM. Any others get SIGKILL only.
const TOLD_MAX: usize = 1024;

/// What the keeper has learnt since the fork.
struct Life<'a> {
    side: &'a KeepersSide,
    command: libc::pid_t,
    /// Whether the build command has ended.
    ended: bool,
    /// Whether buildlock has ended.
    alone: bool,
    /// Whether buildlock wants to know when nothing is left.
    ordered: bool,
    limit: RawFd,
    ending: Ending,
    told: [libc::pid_t; TOLD_MAX],
    told_count: usize,
}

impl Life<'_> {
    /// Reaps ended children. Returns whether any children exist.
    ///
    /// The build command's status is reported, but the build command is not reaped as long as
    /// buildlock may send it signals, so that no other process gets its process id.
    fn reap(&mut self) -> bool {
        // SAFETY: system calls only, on memory of this stack frame.
        unsafe {
            loop {
                let mut about: libc::siginfo_t = std::mem::zeroed();
                let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
                match libc::waitid(libc::P_ALL, 0, &raw mut about, look) {
                    0 if about.si_pid() == 0 => return true,
                    0 => {}
                    _ if *libc::__errno_location() == libc::EINTR => continue,
                    _ => return false,
                }
                if about.si_pid() == self.command && !self.ended {
                    self.ended = true;
                    self.side.report([ENDED, about.si_code, about.si_status()]);
                }
                if about.si_pid() == self.command && !self.alone && !self.ordered {
                    return true;
                }
                libc::waitpid(about.si_pid(), std::ptr::null_mut(), libc::WNOHANG);
            }
        }
    }

    fn listen(&mut self) {
        let mut order = 0_u8;
        // SAFETY: a system call on memory of this stack frame.
        match unsafe { libc::read(self.side.orders, (&raw mut order).cast(), 1) } {
            0 => {
                self.alone = true;
                // docker's client then cancels the build.
                self.send_to_command(libc::SIGTERM);
            }
            1 => match order {
                order::RELIEVED => {
                    self.limit = -1;
                    let until = self.kill_at().map(|at| at.saturating_add(BUILDLOCKS_GRACE));
                    self.ending = Ending::Relieved(until);
                }
                order::END | order::KILL => {
                    self.ordered = true;
                    self.limit = -1;
                    match order {
                        order::KILL => self.ending = Ending::Killing(KILL_AGAIN),
                        _ => self.end(),
                    }
                }
                // SAFETY: it does not return.
                _ => unsafe { libc::_exit(0) },
            },
            // Interrupted.
            _ => {}
        }
    }

    /// Kills everything because the locks run out.
    fn runs_out(&mut self) {
        self.send_to_command(libc::SIGKILL);
        for_each_child(self.side.has_proc, |pid| kill(pid, libc::SIGKILL));
        // SAFETY: system calls only, on memory of this stack frame.
        unsafe {
            // The timer stays readable unless the lock is renewed after all, so look again soon.
            // Processes of another user cannot be killed.
            let again = if self.alone { 10 * KILL_AGAIN } else { KILL_AGAIN };
            libc::poll(std::ptr::null_mut(), 0, again);
        }
    }

    /// Ends everything because the build command takes too long and buildlock has not ended it.
    fn takes_too_long(&mut self) {
        self.limit = -1;
        if !self.ended || self.alone {
            self.side.report([LIMIT, 0, 0]);
            self.end();
        }
    }

    fn kill_at(&self) -> Option<i64> {
        self.side.kill_after.map(|after| now().saturating_add(after))
    }

    fn end(&mut self) {
        self.ending = Ending::Terminating(self.kill_at());
    }

    /// Sends what is left SIGTERM, once each, or SIGKILL.
    fn end_what_is_left(&mut self) {
        if let Ending::Terminating(Some(kill_at)) | Ending::Relieved(Some(kill_at)) = self.ending
            && now() >= kill_at
        {
            self.ending = Ending::Killing(KILL_AGAIN);
        }
        match self.ending {
            Ending::No | Ending::Relieved(_) => {}
            Ending::Terminating(_) => {
                let (mut told, mut count) = (self.told, self.told_count);
                for_each_child(self.side.has_proc, |pid| {
                    if count < TOLD_MAX && !told[..count].contains(&pid) {
                        told[count] = pid;
                        count += 1;
                        kill(pid, libc::SIGTERM);
                        // A stopped process takes no other signal.
                        kill(pid, libc::SIGCONT);
                    }
                });
                (self.told, self.told_count) = (told, count);
            }
            Ending::Killing(pause) => {
                for_each_child(self.side.has_proc, |pid| kill(pid, libc::SIGKILL));
                self.ending = Ending::Killing((2 * pause).min(KILL_AGAIN_MAX));
            }
        }
    }

    /// Returns how long to wait for news, in milliseconds; -1 means without a limit.
    fn poll_timeout(&self, otherwise: libc::c_int) -> libc::c_int {
        let ending = match self.ending {
            Ending::Terminating(Some(kill_at)) | Ending::Relieved(Some(kill_at)) => {
                (kill_at - now()).clamp(0, 60_000) as libc::c_int
            }
            Ending::Killing(pause) => pause,
            Ending::No | Ending::Terminating(None) | Ending::Relieved(None) => return otherwise,
        };
        if otherwise < 0 { ending } else { ending.min(otherwise) }
    }

    fn send_to_command(&self, signal: libc::c_int) {
        if !self.ended {
            kill(self.command, signal);
            // A stopped process takes no other signal.
            kill(self.command, libc::SIGCONT);
        }
    }
}

fn kill(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: a system call without pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Returns the monotonic clock's time, in milliseconds.
fn now() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

fn polled(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Closes the descriptors from `first` to `last`, both included.
fn close_from_to(first: RawFd, last: RawFd) {
    /// The last descriptor to close where the kernel cannot close a range (before Linux 5.9).
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
