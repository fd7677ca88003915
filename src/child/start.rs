//! Starting the build command behind a keeper.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::libc;
use rustix::process::Resource;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::keeper::{Kept, Line, Watch};
use super::program::{Execution, Program, cannot_prepare};
use super::request::RunRequest;
use crate::expiry::Expiry;
use crate::signals::Inherited;
use crate::spawn::{die_with, high_copy, keep_across_exec};

/// Starts the build command behind a keeper. Whether it can be executed becomes known later: see
/// [`Execution`].
///
/// # Errors
/// Nothing was started.
pub(super) fn start(request: &RunRequest<'_>, inherited: Inherited) -> io::Result<Kept> {
    let locks: Vec<OwnedFd> =
        request.lock_descriptors.iter().map(|&lock| high_copy(lock)).collect::<io::Result<_>>()?;
    let numbers: Vec<RawFd> = locks.iter().map(AsRawFd::as_raw_fd).collect();
    let line = Line::new()?;
    let (execution, executing) = Execution::pipe()?;
    let limit = request.limit.map(keepers_limit).transpose()?;
    let keepers_side = line.keepers_side(&Watch {
        locks: &numbers,
        expiry: request.expiry.map(Expiry::kill_timer),
        limit: limit.as_ref().map(AsFd::as_fd),
        kill_after: request.kill_after,
    });
    let program = Program::of(request)?;
    let pipe = executing.as_raw_fd();
    // SAFETY: the child makes system calls only, on memory that is ready, and does not return.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let keeper = rustix::process::getpid();
            if let Err(error) = keepers_side.split() {
                cannot_prepare(pipe, &error);
            }
            program.become_it(pipe, || {
                for &number in &numbers {
                    keep_across_exec(number)?;
                }
                // A lower limit does not close what is open.
                rustix::process::setrlimit(Resource::Nofile, request.open_files)?;
                die_with(keeper)?;
                inherited.restore()
            })
        }
        // Our copies are closed here: the command and the keeper have their own.
        keeper => Ok(Kept::new(keeper, line, execution)),
    }
}

/// Creates the keeper's timer. buildlock's own goes off earlier; the keeper ends the build command
/// only if buildlock is stopped or dead.
fn keepers_limit(limit: Duration) -> io::Result<OwnedFd> {
    const OUR_GRACE: Duration = Duration::from_secs(1);
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A limit beyond the clock's range is no limit.
    if let Ok(at) = Timespec::try_from(limit.saturating_add(OUR_GRACE)) {
        let once = Itimerspec { it_interval: never, it_value: at };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    }
    Ok(timer)
}
