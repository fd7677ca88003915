//! The forked process: it makes system calls only.

use std::io;
use std::os::fd::RawFd;

use nix::libc;
use rustix::time::{ClockId, clock_gettime};

use super::{COMMAND, EMPTY, ENDED, LIMIT, NAME, Report, order};

/// How soon a keeper looks for ends of which it is not told, in milliseconds.
const LOOK_AGAIN: libc::c_int = 100;
/// How soon what has come of the command is killed again while it must be dead, in milliseconds.
const KILL_AGAIN: libc::c_int = 10;
/// The longest that this becomes.
const KILL_AGAIN_MAX: libc::c_int = 1000;
/// How much longer buildlock may take to kill what it has told to end, in milliseconds.
const BUILDLOCKS_GRACE: i64 = 1000;

/// What the forked process knows.
#[derive(Clone, Debug)]
pub(in crate::child) struct KeepersSide {
    pub(super) orders: RawFd,
    pub(super) reports: RawFd,
    /// Both ends of both.
    pub(super) line: [RawFd; 4],
    pub(super) expiry: RawFd,
    pub(super) limit: RawFd,
    /// In milliseconds.
    pub(super) kill_after: Option<i64>,
    pub(super) has_proc: bool,
    pub(super) words: Option<(usize, usize)>,
    /// All descriptors that the keeper needs, sorted.
    pub(super) kept: Vec<RawFd>,
}

/// How far the keeper is with ending everything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// buildlock does it, and has until this moment.
    Relieved(Option<i64>),
    /// All have been sent SIGTERM, and get SIGKILL at this moment, in milliseconds of the monotonic
    /// clock.
    Terminating(Option<i64>),
    /// They are killed, and once more after this pause.
    Killing(libc::c_int),
}

impl KeepersSide {
    /// Forks: returns in the child, which becomes the command; the parent becomes the keeper. With
    /// all signals blocked in both. For use between fork and exec.
    ///
    /// # Errors
    /// There can be no more processes.
    pub(in crate::child) fn split(&self) -> io::Result<()> {
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
                // The execution would close them, but may take for ever. Meanwhile the end of the orders
                // must tell the keeper that buildlock is gone, and that of the reports buildlock that
                // the keeper is.
                for end in self.line {
                    // SAFETY: a system call; this process has no use for it.
                    unsafe { libc::close(end) };
                }
                Ok(())
            }
            command => self.keep(command),
        }
    }

    /// The keeper's life.
    fn keep(&self, command: libc::pid_t) -> ! {
        self.close_the_rest();
        self.take_name();
        // SAFETY: system calls only, on memory of this stack frame.
        unsafe {
            // Somebody may have stopped us when buildlock ends, and then nobody would wake us.
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
                // Without a descriptor for deaths (the system is out of them) we look for them.
                let patience = life.patience(if deaths < 0 { LOOK_AGAIN } else { -1 });
                libc::poll(all.as_mut_ptr(), 4, patience);
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

    /// What kills processes by the name of buildlock, or by its command line, must not find us.
    fn take_name(&self) {
        // SAFETY: a system call with a constant string that ends with NUL. The words lie in memory
        // of our own, a copy since fork(2), which nobody reads any more.
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

    /// Closes all descriptors but those needed: pipes of others would stay open with us, and
    /// buildlock waits for the end of one to know that the command was executed.
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

/// How many processes are remembered as having got SIGTERM. What does not fit gets SIGKILL only.
const TOLD_MAX: usize = 1024;

/// What the keeper has learnt.
struct Life<'a> {
    side: &'a KeepersSide,
    command: libc::pid_t,
    /// The command has ended.
    ended: bool,
    /// buildlock has ended.
    alone: bool,
    /// buildlock wants to know when nothing is left.
    ordered: bool,
    limit: RawFd,
    ending: Ending,
    told: [libc::pid_t; TOLD_MAX],
    told_count: usize,
}

impl Life<'_> {
    /// Takes the statuses of ended children. That of the command is reported, but left there for as
    /// long as buildlock may send it signals, so that its process id stays its own. Returns false
    /// if there are no children any more.
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

    /// The locks run out.
    fn runs_out(&mut self) {
        self.send_to_command(libc::SIGKILL);
        self.for_each_child(|pid| kill(pid, libc::SIGKILL));
        // SAFETY: system calls only, on memory of this stack frame.
        unsafe {
            // It stays readable unless the lock is renewed after all: look again soon. What is
            // somebody else's cannot be killed, and ends when it will.
            let again = if self.alone { 10 * KILL_AGAIN } else { KILL_AGAIN };
            libc::poll(std::ptr::null_mut(), 0, again);
        }
    }

    /// The command takes too long, and buildlock has not ended it.
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

    /// What is left gets its SIGTERM, once, or its SIGKILL.
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
                self.for_each_child(|pid| {
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
                self.for_each_child(|pid| kill(pid, libc::SIGKILL));
                self.ending = Ending::Killing((2 * pause).min(KILL_AGAIN_MAX));
            }
        }
    }

    /// How long to wait for news, in milliseconds; -1 for as long as it takes.
    fn patience(&self, otherwise: libc::c_int) -> libc::c_int {
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

    /// Calls `act` with each child. Theirs become the keeper's, and are for the next time.
    ///
    /// `/proc/thread-self/children` (proc_pid_tid_children(5)) has their numbers with a space
    /// behind each. Without it, waitid(2) tells of a number whether it is a child's.
    fn for_each_child(&self, mut act: impl FnMut(libc::pid_t)) {
        /// What does not fit is for the next time.
        const AT_ONCE: usize = 4096;
        /// The largest number of a process, unless more are allowed (proc_sys_kernel(5)).
        const PID_MAX: libc::pid_t = 1 << 15;
        /// The largest that can be allowed.
        const PID_MAX_LIMIT: libc::pid_t = 1 << 22;
        let mut text = [0_u8; AT_ONCE];
        let mut read = -1;
        if self.side.has_proc {
            // SAFETY: system calls only, on memory of this stack frame and a constant string that
            // ends with NUL.
            unsafe {
                let path = c"/proc/thread-self/children".as_ptr();
                let children = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
                read = libc::read(children, text.as_mut_ptr().cast(), text.len());
                libc::close(children);
            }
        }
        let Ok(length) = usize::try_from(read) else {
            // Numbers are given out in turn, so the children's lie between our own and the next.
            // SAFETY: system calls only; the new process does nothing but end.
            let (own, next) = unsafe {
                // As fork(2), but without a signal at its end, which would wake us to do it again.
                let next = libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) as libc::pid_t;
                match next {
                    0 => libc::_exit(0),
                    -1 => (0, PID_MAX_LIMIT),
                    _ => {
                        libc::waitpid(next, std::ptr::null_mut(), libc::__WALL);
                        (libc::getpid(), next)
                    }
                }
            };
            // Unless they have begun again from the lowest.
            let highest = if own <= PID_MAX { PID_MAX } else { PID_MAX_LIMIT };
            let (up_to, lowest) = if own < next { (next, next) } else { (highest, 1) };
            return (own..=up_to).chain(lowest..=next).filter(|&pid| is_child(pid)).for_each(act);
        };
        let mut pid: libc::pid_t = 0;
        for &c in &text[..length] {
            match c {
                b'0'..=b'9' => pid = pid.wrapping_mul(10).wrapping_add(libc::pid_t::from(c - b'0')),
                _ => {
                    if pid > 0 {
                        act(pid);
                    }
                    pid = 0;
                }
            }
        }
    }
}

fn is_child(pid: libc::pid_t) -> bool {
    // SAFETY: a system call on memory of this stack frame.
    unsafe {
        let mut about: libc::siginfo_t = std::mem::zeroed();
        let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut about, look) == 0
    }
}

fn kill(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: a system call without pointers.
    unsafe { libc::kill(pid, signal) };
}

/// The monotonic clock, in milliseconds.
fn now() -> i64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

fn polled(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
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
