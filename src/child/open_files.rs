//! The limit on open files.

use std::os::fd::{AsFd, RawFd};

use rustix::process::{Resource, Rlimit};

use crate::spawn::{HIGH, copy_from};

/// Raises the limit on open files to what `locks` locks need, as far as the hard limit allows.
/// Returns the limit that was in force before. Must run before the first thread is started.
pub(crate) fn make_room(locks: usize) -> Rlimit {
    /// The standard streams, pipes, the engine, a folder that is read.
    const OTHERS: u64 = 32;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    /// A lock file, and the high copy that the build command inherits. To wait for one of several
    /// locks, the file and the guard.
    const FOR_EACH: u64 = 2;
    let needed = HIGH as u64 + FOR_EACH * locks as u64 + OTHERS;
    if limit.current.is_some_and(|current| current < needed) {
        let current = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
        let raised = Rlimit { current: Some(current), ..limit };
        // If this is refused, opening one file too many reports it.
        _ = rustix::process::setrlimit(Resource::Nofile, raised);
    }
    // Grow the table of descriptors to the high numbers now. If it grew while there are two
    // threads, the kernel would first wait until no processor reads the old table (expand_fdtable()
    // and synchronize_rcu() in Linux): up to 20 ms, with the lock held.
    let highest = HIGH.saturating_add(RawFd::try_from(locks + 1).unwrap_or(RawFd::MAX));
    drop(copy_from(std::io::stderr().as_fd(), highest));
    limit
}
