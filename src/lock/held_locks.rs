//! The locks that one call holds together.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::store::Held;
use crate::log;
use crate::record::FailedBuild;

/// Locks that this process holds together, in the order in which they were taken. Dropping them
/// releases them.
#[derive(Default)]
pub struct HeldLocks(Vec<Box<dyn Held>>);

impl HeldLocks {
    /// Adds a lock that was taken after all the others.
    pub(crate) fn push(&mut self, lock: Box<dyn Held>) {
        self.0.push(lock);
    }

    /// Adds locks that were taken after all the others.
    pub(crate) fn append(&mut self, mut later: HeldLocks) {
        self.0.append(&mut later.0);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn Held> {
        self.0.iter().map(|lock| &**lock)
    }

    /// Returns the descriptors that keep the locks held in a child that inherits them.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = Vec::new();
        for descriptor in self.iter().flat_map(Held::descriptors) {
            let is_it = |other: &BorrowedFd<'_>| other.as_raw_fd() == descriptor.as_raw_fd();
            if !all.iter().any(is_it) {
                all.push(descriptor);
            }
        }
        all
    }

    /// Removes the locks for which `is_one` is true, and returns them.
    pub(crate) fn take(&mut self, is_one: impl Fn(&dyn Held) -> bool) -> HeldLocks {
        HeldLocks(self.0.extract_if(.., |lock| is_one(&**lock)).collect())
    }

    /// Releases them, the last one first, and leaves `failure` in them.
    pub(crate) fn release(mut self, failure: Option<&FailedBuild>) {
        self.release_all(failure);
    }

    /// Closes them without unlocking: processes that have inherited their descriptors keep them.
    pub(crate) fn leave_to_heirs(mut self) {
        self.0.clear();
    }

    fn release_all(&mut self, failure: Option<&FailedBuild>) {
        while let Some(lock) = self.0.pop() {
            let subject = lock.subject().clone();
            lock.release(failure);
            log::released(&subject);
        }
    }
}

impl Drop for HeldLocks {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The build command may still run. The keeper has the locks, too.
            return self.0.clear();
        }
        self.release_all(None);
    }
}
