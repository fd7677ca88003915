//! A file that hangs, as on a network mount whose server is away.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::fixture::Fixture;
use super::requirements::skip;

/// A file that cannot be executed or opened until this is dropped: every attempt waits.
///
/// The kernel asks a listener that never answers (fanotify(7), permission events). As with a server
/// that is away, only a signal that kills the process ends the wait.
pub struct Hang(OwnedFd);

impl Hang {
    /// Makes its execution hang. Returns none, and says so, where the kernel cannot do that.
    #[track_caller]
    pub fn of_execution(file: &Path) -> Option<Self> {
        Self::new(file, libc::FAN_OPEN_EXEC_PERM)
    }

    /// Makes opening it hang.
    #[track_caller]
    pub fn of_opening(file: &Path) -> Option<Self> {
        Self::new(file, libc::FAN_OPEN_PERM)
    }

    #[track_caller]
    fn new(file: &Path, event: u64) -> Option<Self> {
        let path = CString::new(file.as_os_str().as_bytes()).unwrap();
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        // SAFETY: system calls; the path is a string that ends with NUL, and the descriptor is new.
        let marked = unsafe {
            match libc::fanotify_init(flags, libc::O_RDONLY as u32) {
                -1 => Err(io::Error::last_os_error()),
                group => {
                    let group = OwnedFd::from_raw_fd(group);
                    let add = libc::FAN_MARK_ADD;
                    match libc::fanotify_mark(
                        group.as_raw_fd(),
                        add,
                        event,
                        libc::AT_FDCWD,
                        path.as_ptr(),
                    ) {
                        -1 => Err(io::Error::last_os_error()),
                        _ => Ok(group),
                    }
                }
            }
        };
        match marked {
            Ok(group) => Some(Self(group)),
            Err(error) => {
                skip(&format!("needs fanotify(7) with permission events: {error}"));
                None
            }
        }
    }

    /// Waits until a process hangs.
    pub fn wait(&self, f: &Fixture) {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        f.wait_for("a process that hangs", || {
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&at_once)).unwrap() > 0
        });
    }
}
