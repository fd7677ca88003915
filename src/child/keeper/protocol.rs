//! What buildlock and the keeper say to each other, and the keeper's name.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;

use nix::libc;

/// The keeper's name in the list of processes.
pub(super) const NAME: &CStr = c"lock-keeper";

/// What buildlock tells the keeper, one byte each.
pub(super) mod order {
    /// Everything is over: exit.
    pub(crate) const DONE: u8 = b'd';
    /// buildlock itself ends what has run for too long.
    pub(crate) const RELIEVED: u8 = b'r';
    /// End everything.
    pub(crate) const END: u8 = b'e';
    /// Kill everything.
    pub(crate) const KILL: u8 = b'k';
}

/// What the keeper tells buildlock: one of the kinds below, and two numbers. A report goes into the
/// pipe whole or not at all (pipe(7)).
pub(super) type Report = [libc::c_int; 3];
/// The build command's process id.
pub(super) const COMMAND: libc::c_int = 1;
/// How the build command ended, and its status or signal (`si_code` and `si_status`, waitid(2)).
pub(super) const ENDED: libc::c_int = 2;
/// The time limit has passed, and the keeper ends everything.
pub(super) const LIMIT: libc::c_int = 3;
/// After [`order::END`]: nothing is left.
pub(super) const EMPTY: libc::c_int = 4;

/// Reads a report.
pub(super) fn numbers(bytes: [u8; size_of::<Report>()]) -> Report {
    const EACH: usize = size_of::<libc::c_int>();
    let mut numbers = [0; 3];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(EACH)) {
        let mut own = [0; EACH];
        own.copy_from_slice(bytes);
        *number = libc::c_int::from_ne_bytes(own);
    }
    numbers
}

/// Returns the error for a keeper that ended before it could report the build command's process id.
pub(crate) fn killed() -> io::Error {
    io::Error::other(format!("{}, which holds the locks for buildlock, was killed", name()))
}

pub(super) fn name() -> Cow<'static, str> {
    NAME.to_string_lossy()
}
