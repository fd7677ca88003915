//! The build command's program: all that executing it takes, ready before the fork, and what the
//! forked process says if that fails.
//!
//! Nobody waits for the execution itself. It may take for ever: the kernel reads the program, and
//! its file system may be a network mount whose server is away. So what became of it arrives by a
//! pipe that can be polled beside signals and time limits.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::libc;
use rustix::pipe::PipeFlags;

use super::{Job, NotRun, keeper};

/// What a forked process says through the pipe when it cannot go on: which step, and `errno`.
type Complaint = [libc::c_int; 2];
/// Something before the execution.
const PREPARE: libc::c_int = 1;
/// The execution itself.
const EXECUTE: libc::c_int = 2;

/// Words and variables, as the kernel takes them.
#[derive(Debug)]
pub(super) struct Program {
    /// Pointers into `_texts`, and null.
    words: Vec<*const libc::c_char>,
    /// None where they are our own, untouched.
    variables: Option<Vec<*const libc::c_char>>,
    _texts: Vec<CString>,
}

impl Program {
    /// # Errors
    /// A word has a NUL in it.
    pub(super) fn of(job: &Job<'_>) -> io::Result<Self> {
        let mut texts = Vec::new();
        let mut keep = |text: Vec<u8>| -> io::Result<*const libc::c_char> {
            let text = CString::new(text)?;
            let pointer = text.as_ptr();
            texts.push(text);
            Ok(pointer)
        };
        let all = [job.command.program()].into_iter();
        let all = all.chain(job.command.arguments().iter().map(OsString::as_os_str));
        let mut words: Vec<_> =
            all.map(|word| keep(word.as_bytes().to_vec())).collect::<io::Result<_>>()?;
        words.push(std::ptr::null());
        let variables = match job.environment.is_empty() {
            true => None,
            false => {
                let is_replaced =
                    |name: &OsString| job.environment.iter().any(|(it, _)| name == it);
                let ours = std::env::vars_os().filter(|(name, _)| !is_replaced(name));
                let added = job.environment.iter().cloned();
                let added = added.map(|(name, value)| (OsString::from(name), value));
                let mut variables: Vec<_> = ours
                    .chain(added)
                    .map(|(name, value)| {
                        keep([&name.into_vec(), &b"="[..], &value.into_vec()].concat())
                    })
                    .collect::<io::Result<_>>()?;
                variables.push(std::ptr::null());
                Some(variables)
            }
        };
        Ok(Program { words, variables, _texts: texts })
    }

    /// Becomes the program. Returns why not. For use in a forked process.
    fn execute(&self) -> Errno {
        let (program, words) = (self.words[0], self.words.as_ptr());
        // SAFETY: arrays that end with null of strings that end with NUL, all of which this owns.
        unsafe {
            match &self.variables {
                None => libc::execvp(program, words),
                Some(variables) => libc::execvpe(program, words, variables.as_ptr()),
            }
        };
        Errno::last()
    }

    /// Prepares this process, and becomes the program; or says through the pipe why not, and ends.
    /// For use in a forked process: `prepare` makes system calls only.
    pub(super) fn become_it(&self, pipe: RawFd, prepare: impl FnOnce() -> io::Result<()>) -> ! {
        match prepare() {
            Ok(()) => complain(pipe, EXECUTE, self.execute() as libc::c_int),
            Err(error) => cannot_prepare(pipe, &error),
        }
    }
}

/// Says why this process does not get as far as executing anything, and ends it. For use in a
/// forked process.
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

/// The pipe through which it is known what became of the execution: it ends when that went well,
/// for the other end is closed on exec.
#[derive(Debug)]
pub(super) struct Execution {
    pipe: Option<File>,
    failed: Option<NotRun>,
}

impl Execution {
    /// Returns the end for the forked process, too.
    pub(super) fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Execution { pipe: Some(File::from(ours)), failed: None }, theirs))
    }

    /// Readable as soon as it is known what became of it; none once it is.
    pub(super) fn news(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Is it still under way?
    pub(super) fn goes_on(&mut self) -> bool {
        self.look();
        self.pipe.is_some()
    }

    /// Why the command did not run, once. Only the forked process itself can say so, in place of
    /// executing it.
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
            // It goes into a pipe whole or not at all (pipe(7)).
            Ok(read) if read == bytes.len() => {
                let (step, errno) = bytes.split_at(size_of::<libc::c_int>());
                let number = |bytes: &[u8]| bytes.try_into().map_or(0, libc::c_int::from_ne_bytes);
                let error = io::Error::from_raw_os_error(number(errno));
                self.failed = Some(match (number(step), number(errno)) {
                    (EXECUTE, _) => NotRun::Execute(error),
                    // It found no keeper any more.
                    (_, libc::ESRCH) => NotRun::Prepare(keeper::killed()),
                    _ => NotRun::Prepare(error),
                });
            }
            // Executed, or killed before that, which the kernel tells otherwise.
            Ok(_) | Err(_) => {}
        }
        self.pipe = None;
    }
}
