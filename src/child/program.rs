//! The build command's program: everything its execution needs, ready before the fork, and what the
//! forked process reports if the execution fails.
//!
//! buildlock does not wait for the execution itself, which may hang: the kernel reads the program,
//! whose file system may be a network mount with a server that is away. So its outcome arrives
//! through a pipe that is polled beside signals and time limits.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::libc;
use rustix::pipe::PipeFlags;

use super::ended::NotRun;
use super::keeper::protocol::killed;
use super::request::RunRequest;

/// What a forked process reports through the pipe when it cannot go on: which step failed, and
/// `errno`.
type Complaint = [libc::c_int; 2];
/// A step before the execution.
const PREPARE: libc::c_int = 1;
/// The execution itself.
const EXECUTE: libc::c_int = 2;

/// Arguments and environment, in the form the kernel takes.
#[derive(Debug)]
pub(super) struct Program {
    /// Pointers into `_texts`, and null.
    words: Vec<*const libc::c_char>,
    /// None if they are buildlock's own, unchanged.
    variables: Option<Vec<*const libc::c_char>>,
    _texts: Vec<CString>,
}

impl Program {
    /// Prepares the execution of the build command of a request.
    ///
    /// # Errors
    /// An argument contains a NUL.
    pub(super) fn of(request: &RunRequest<'_>) -> io::Result<Self> {
        let mut texts = Vec::new();
        let mut keep = |text: Vec<u8>| -> io::Result<*const libc::c_char> {
            let text = CString::new(text)?;
            let pointer = text.as_ptr();
            texts.push(text);
            Ok(pointer)
        };
        let all = [request.command.program()].into_iter();
        let all = all.chain(request.command.arguments().iter().map(OsString::as_os_str));
        let mut words: Vec<_> =
            all.map(|word| keep(word.as_bytes().to_vec())).collect::<io::Result<_>>()?;
        words.push(std::ptr::null());
        let variables = if request.environment.is_empty() {
            None
        } else {
            let is_replaced =
                |name: &OsString| request.environment.iter().any(|(it, _)| name == it);
            let ours = std::env::vars_os().filter(|(name, _)| !is_replaced(name));
            let added = request.environment.iter().cloned();
            let added = added.map(|(name, value)| (OsString::from(name), value));
            let mut variables: Vec<_> = ours
                .chain(added)
                .map(|(name, value)| {
                    keep([&name.into_vec(), &b"="[..], &value.into_vec()].concat())
                })
                .collect::<io::Result<_>>()?;
            variables.push(std::ptr::null());
            Some(variables)
        };
        Ok(Program { words, variables, _texts: texts })
    }

    /// Becomes the program, or returns why it cannot. For use in a forked process.
    fn execute(&self) -> Errno {
        let (program, words) = (self.words[0], self.words.as_ptr());
        // SAFETY: null-terminated arrays of NUL-terminated strings, all owned by this.
        unsafe {
            match &self.variables {
                None => libc::execvp(program, words),
                Some(variables) => libc::execvpe(program, words, variables.as_ptr()),
            }
        };
        Errno::last()
    }

    /// Prepares this process and becomes the program, or reports through the pipe why it cannot
    /// and exits. For use in a forked process: `prepare` must make system calls only.
    pub(super) fn become_it(&self, pipe: RawFd, prepare: impl FnOnce() -> io::Result<()>) -> ! {
        match prepare() {
            Ok(()) => complain(pipe, EXECUTE, self.execute() as libc::c_int),
            Err(error) => cannot_prepare(pipe, &error),
        }
    }
}

/// Reports why this process cannot execute anything, and exits. For use in a forked process.
pub(super) fn cannot_prepare(pipe: RawFd, error: &io::Error) -> ! {
    complain(pipe, PREPARE, error.raw_os_error().unwrap_or(libc::EINVAL))
}

fn complain(pipe: RawFd, step: libc::c_int, errno: libc::c_int) -> ! {
    let complaint: Complaint = [step, errno];
    // SAFETY: system calls that read memory of this stack frame.
    unsafe {
        libc::write(pipe, complaint.as_ptr().cast(), size_of_val(&complaint));
        libc::_exit(i32::from(crate::exit::NOT_FOUND))
    }
}

/// The pipe that tells the outcome of the execution. Its other end is closed on exec, so a pipe
/// that ends without a complaint means success.
#[derive(Debug)]
pub(super) struct Execution {
    pipe: Option<File>,
    failed: Option<NotRun>,
}

impl Execution {
    /// Creates the pipe. Also returns the forked process's end.
    pub(super) fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Execution { pipe: Some(File::from(ours)), failed: None }, theirs))
    }

    /// Returns a descriptor that is readable as soon as the outcome is known; none afterwards.
    pub(super) fn news(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Returns whether the execution is still under way.
    pub(super) fn goes_on(&mut self) -> bool {
        self.look();
        self.pipe.is_some()
    }

    /// Returns, once, why the build command did not run. Only the forked process itself can report
    /// this, instead of executing the build command.
    pub(super) fn failed(&mut self) -> Option<NotRun> {
        self.look();
        self.failed.take()
    }

    fn look(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut bytes = [0; size_of::<Complaint>()];
        match pipe.read(&mut bytes) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return;
            }
            // A complaint goes into the pipe whole or not at all (pipe(7)).
            Ok(read) if read == bytes.len() => {
                let (step, errno) = bytes.split_at(size_of::<libc::c_int>());
                let number = |bytes: &[u8]| bytes.try_into().map_or(0, libc::c_int::from_ne_bytes);
                let error = io::Error::from_raw_os_error(number(errno));
                self.failed = Some(match (number(step), number(errno)) {
                    (EXECUTE, _) => NotRun::Execute(error),
                    // The keeper was already gone.
                    (_, libc::ESRCH) => NotRun::Prepare(killed()),
                    _ => NotRun::Prepare(error),
                });
            }
            // Executed, or killed before that, which shows in its exit status.
            Ok(_) | Err(_) => {}
        }
        self.pipe = None;
    }
}
