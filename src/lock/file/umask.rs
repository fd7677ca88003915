//! Creates files and folders with a mode that the umask does not change.

use std::sync::{Mutex, PoisonError};

use rustix::fs::Mode;

/// Creates something that has its final mode from the first moment on. Changing the mode afterwards
/// would be too late: another process may already have met the wrong one.
pub(super) fn whatever_the_umask<T>(create: impl FnOnce() -> T) -> T {
    // The mask belongs to the process, and another thread may be creating something as well.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mask = rustix::process::umask(Mode::empty());
    let created = create();
    rustix::process::umask(mask);
    created
}
