//! The bytes of outer levels that a nested call shares, where a lock file alone shows that it is one.
//!
//! A script that locks a lock file by its path may release it before the call inside of it has
//! ended. Another caller that gets the file then finds the byte of the guard busy, and waits.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::key::Key;
use super::guard::Guard;
use crate::subject::Subject;

/// Descriptors of the guard, each with a shared lock on the byte of one lock.
#[derive(Default)]
pub(super) struct OuterBytes(Mutex<Vec<(Key, Guard)>>);

impl OuterBytes {
    /// Keeps a byte that was locked, until it is taken from here, or our process ends.
    pub(super) fn keep(&self, key: &Key, guard: Guard) {
        let mut kept = self.kept();
        if !kept.iter().any(|(other, _)| other == key) {
            kept.push((key.clone(), guard));
        }
    }

    /// Gives back the byte of a lock that we are about to take ourselves.
    pub(super) fn give_back(&self, key: &Key) {
        self.kept().retain(|(other, _)| other != key);
    }

    /// Takes out the bytes of all levels of a lock. Whoever holds the innermost one holds these too.
    pub(super) fn take(&self, subject: &Subject) -> Vec<Guard> {
        let of_subject = |(key, _): &mut (Key, Guard)| key.subject() == subject;
        self.kept().extract_if(.., of_subject).map(|(_, guard)| guard).collect()
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Key, Guard)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
