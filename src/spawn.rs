//! Starting other programs: the descriptors they inherit, what ends them when buildlock ends, and how
//! long they may take.

#![allow(unsafe_code)]

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Output};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use rustix::process::{Pid, Resource};

use crate::signals;

/// More than any program answers, in bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// The most that is read of a program's output, in bytes.
const OUTPUT_MAX: u64 = 16 << 20;

/// The lowest number of a high copy: below the usual soft limit of 1,024 open files, and above the
/// numbers that scripts use.
pub(crate) const HIGH: RawFd = 1000;

/// Copies a descriptor to a number that no script uses.
///
/// make's jobserver, bash and many scripts expect certain low numbers (`MAKEFLAGS` names 3 and 4).
/// They would read from a lock file with such a number, or write to it.
pub(crate) fn high_copy(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    copy_from(descriptor, HIGH)
}

/// Copies a descriptor to a number of at least `high` if the limit on open files allows it, and
/// otherwise to one as high as the limit allows.
pub(crate) fn copy_from(descriptor: BorrowedFd<'_>, high: RawFd) -> io::Result<OwnedFd> {
    /// The first number that not all shells can name in a script.
    const LOWEST: RawFd = 10;
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    let just_below =
        limit.and_then(|limit| RawFd::try_from(limit).ok()).map_or(high, |limit| limit - 8);
    let mut failed = io::ErrorKind::Other.into();
    for lowest in [high, just_below, LOWEST] {
        if lowest < LOWEST {
            continue;
        }
        // SAFETY: F_DUPFD_CLOEXEC reads and writes no memory of ours.
        let copy = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
        if copy >= 0 {
            // SAFETY: the kernel has just given us this descriptor; nobody else has it.
            return Ok(unsafe { OwnedFd::from_raw_fd(copy) });
        }
        failed = match Errno::last() {
            // The limit on open files excludes this number.
            Errno::EINVAL => Errno::EMFILE.into(),
            error => error.into(),
        };
    }
    Err(failed)
}

/// Lets a descriptor survive execve(2). For use between fork and exec.
pub(crate) fn keep_across_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD reads and writes no memory of ours.
    match unsafe { libc::fcntl(number, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Asks the kernel to send this process SIGTERM when `parent` ends, even by SIGKILL. For use
/// between fork and exec.
pub(crate) fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    match rustix::process::getppid() {
        Some(now) if now == parent => Ok(()),
        // It ended before we asked.
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Has the program sent SIGTERM when the thread that starts it ends, and so when buildlock ends. It
/// gets the signal actions and the mask that buildlock has inherited.
pub(crate) fn end_with_us(command: &mut std::process::Command, inherited: signals::Inherited) {
    let us = rustix::process::getpid();
    // SAFETY: the closure only makes system calls, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            inherited.restore()?;
            die_with(us)
        });
    }
}

/// Has the program sent SIGTERM when the thread that starts it ends, and so when buildlock ends.
pub(crate) fn ended_with_us(expression: duct::Expression) -> duct::Expression {
    expression.before_spawn(|command| {
        let us = rustix::process::getpid();
        // SAFETY: the closure only makes system calls, which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // With our own blocked signals, the program could not be ended, nor could it end
                // what it starts.
                signals::restore_mask()?;
                die_with(us)
            })
        };
        Ok(())
    })
}

/// Has the program and everything it starts killed when the returned descriptor is closed, and so
/// when buildlock ends, even by SIGKILL.
///
/// This spares processes that make a process group of their own, as daemons do, that run as
/// another user, or that have closed what they inherited.
///
/// The kernel does the killing. The program becomes the leader of a session without a terminal. It
/// inherits a pipe that signals the whole group once the other end is closed (fcntl(2), F_SETOWN
/// and F_SETSIG), and the returned descriptor is that other end.
///
/// # Errors
/// The system is out of descriptors.
pub(crate) fn killed_with_all_it_starts(
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

/// Makes this process the leader of a group that the kernel kills when the other end of `pipe` is
/// closed. For use between fork and exec.
fn kill_group_at_end_of(pipe: RawFd) -> io::Result<()> {
    /// Missing from libc (linux/include/uapi/asm-generic/fcntl.h).
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

/// Why a program has no usable output.
#[derive(Debug)]
pub(crate) enum NoOutput {
    CannotRun(io::Error),
    /// Files may not grow enough to take an answer.
    FilesTooSmall,
    /// It took longer than this limit.
    TimedOut(Duration),
}

impl From<io::Error> for NoOutput {
    fn from(error: io::Error) -> Self {
        NoOutput::CannotRun(error)
    }
}

impl NoOutput {
    /// Returns a message about the program that messages call `name`.
    pub(crate) fn about(&self, name: &dyn Display) -> String {
        match self {
            NoOutput::CannotRun(error) => format!("cannot run {name}: {error}"),
            NoOutput::FilesTooSmall => format!(
                "{name} prints to a file, and no file may grow to {ANSWER_MAX} bytes; raise the \
                 limit (ulimit -f)"
            ),
            NoOutput::TimedOut(limit) => {
                format!("{name} did not answer within {}", humantime::format_duration(*limit))
            }
        }
    }
}

/// Runs a program to its end, which must come within `limit`. Its stdin is empty unless the
/// expression sets one.
///
/// The output goes to files, not pipes. A helper that the program leaves behind (the master
/// connection of ssh) would keep a pipe open, and we would wait for its end.
pub(crate) fn output_within(
    expression: duct::Expression,
    limit: Duration,
) -> Result<Output, NoOutput> {
    let may_grow = rustix::process::getrlimit(Resource::Fsize).current;
    if may_grow.is_some_and(|most| most < ANSWER_MAX) {
        // An answer that is cut short could be taken for another one.
        return Err(NoOutput::FilesTooSmall);
    }
    let (mut stdout, mut stderr) = (nameless_file()?, nameless_file()?);
    // If buildlock is ended before the limit, a program that hangs would stay for ever.
    let expression = ended_with_us(expression)
        .stdin_null()
        .stdout_file(stdout.try_clone()?)
        .stderr_file(stderr.try_clone()?)
        .unchecked();
    let status = run_on_a_thread(expression, limit)?.ok_or(NoOutput::TimedOut(limit))?;
    Ok(Output { status, stdout: contents(&mut stdout)?, stderr: contents(&mut stderr)? })
}

/// Starts a program and waits for it. Ends it, and returns nothing, if it takes longer than `limit`.
///
/// Starting may already hang if the program's file system does not answer. duct's own wait with a
/// limit listens for SIGCHLD, which goes elsewhere while the build command runs.
fn run_on_a_thread(
    expression: duct::Expression,
    limit: Duration,
) -> io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    let (started, handles) = mpsc::sync_channel(1);
    let (ended, statuses) = mpsc::sync_channel(1);
    // The receiver may have given up, so sending may fail.
    std::thread::Builder::new().name("client".into()).spawn(move || {
        let handle = expression.start().map(Arc::new);
        let waited_for = handle.as_ref().ok().cloned();
        _ = started.send(handle);
        if let Some(handle) = waited_for {
            _ = ended.send(handle.wait().map(|output| output.status));
        }
    })?;
    // A program whose start hangs ends when buildlock does.
    let left = || until.saturating_duration_since(Instant::now());
    let Ok(handle) = handles.recv_timeout(left()) else { return Ok(None) };
    let handle = handle?;
    match statuses.recv_timeout(left()) {
        Ok(status) => status.map(Some),
        Err(_) => {
            // It may be out of reach (sudo). Then it ends by itself or not at all.
            _ = handle.kill();
            Ok(None)
        }
    }
}

fn nameless_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("client", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

fn contents(file: &mut File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// Makes calls that may block for long, each in a process of its own, and returns the number of the
/// first process that has ended. The others are killed. Should this thread end before that, the
/// kernel kills them all.
///
/// What a call takes through a descriptor, such as a lock of flock(2), is this process's as well.
/// `call` makes system calls only.
///
/// # Errors
/// A process could not be started, or its call failed.
pub(crate) fn first_to_end(
    count: usize,
    call: impl Fn(usize) -> io::Result<()>,
) -> io::Result<usize> {
    let us = rustix::process::getpid();
    let mut helpers = Helpers(Vec::with_capacity(count));
    for number in 0..count {
        let (result, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // SAFETY: the child makes system calls only, and does not return.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                let errno = help(us, || call(number));
                _ = rustix::io::write(&writer, &errno.to_ne_bytes());
                // SAFETY: ends the process without running anything of the parent's.
                unsafe { libc::_exit(0) }
            }
            pid => helpers.0.push((pid, result)),
        }
    }
    let number = helpers.first()?;
    let mut errno = [0; size_of::<i32>()];
    match rustix::io::retry_on_intr(|| rustix::io::read(&helpers.0[number].1, &mut errno)) {
        Ok(read) if read == errno.len() && errno != [0; size_of::<i32>()] => {
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
        // One that was killed has said nothing. The caller looks whether there is news.
        _ => Ok(number),
    }
}

/// Makes the call in a process that the kernel kills when the thread that forked it ends. Returns
/// the number of the error, or 0.
fn help(parent: Pid, call: impl Fn() -> io::Result<()>) -> i32 {
    let die = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    if die.is_err() || rustix::process::getppid() != Some(parent) {
        return libc::ESRCH;
    }
    call().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0)
}

/// Processes that help this thread, with the pipe that each closes at its end. They are killed when
/// this is dropped.
struct Helpers(Vec<(libc::pid_t, OwnedFd)>);

impl Helpers {
    /// Waits for the first one that ends.
    fn first(&self) -> io::Result<usize> {
        let polled = |(_, pipe)| rustix::event::PollFd::new(pipe, rustix::event::PollFlags::IN);
        let mut polled: Vec<_> = self.0.iter().map(|(pid, pipe)| polled((pid, pipe))).collect();
        loop {
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))?;
            if let Some(number) = polled.iter().position(|one| !one.revents().is_empty()) {
                return Ok(number);
            }
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        for (pid, _) in &self.0 {
            // SAFETY: system calls without memory of ours. Nobody else waits for this child, so its
            // number is not another process's.
            unsafe {
                libc::kill(*pid, libc::SIGKILL);
                while libc::waitpid(*pid, std::ptr::null_mut(), 0) == -1
                    && Errno::last() == Errno::EINTR
                {}
            }
        }
    }
}
