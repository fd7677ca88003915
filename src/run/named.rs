//! Locks with names of their own: `--lock` takes one alone, and `--share` with others that share it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::duration::Deadline;
use crate::lock::{self, LockMode, Store, Turn};
use crate::log;
use crate::subject::Subject;

/// The named locks of one call, in the order in which they are taken.
pub(super) struct NamedLocks(BTreeMap<String, LockMode>);

impl NamedLocks {
    /// # Errors
    /// A name is both locked and shared.
    pub(super) fn new(locks: Vec<String>, shares: Vec<String>) -> Result<Self> {
        let mut all: BTreeMap<String, LockMode> =
            shares.into_iter().map(|name| (name, LockMode::Shared)).collect();
        for name in locks {
            if let Some(LockMode::Shared) = all.insert(name.clone(), LockMode::Exclusive) {
                bail!(
                    "--lock {name} and --share {name}: one call has a lock either alone or shared; \
                     leave out one of them"
                );
            }
        }
        Ok(NamedLocks(all))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn subjects(&self) -> impl Iterator<Item = Subject> {
        self.0.keys().cloned().map(Subject::Named)
    }

    /// Takes the lock that `subject` names. All callers go through its turnstile, so that those that
    /// share it do not starve one that needs it alone. Returns `None` if `subject` is not one of
    /// these locks.
    ///
    /// # Errors
    /// The store failed, or an outer call shares what this one needs alone.
    pub(super) fn take(
        &self,
        subject: &Subject,
        store: &Arc<dyn Store>,
        deadline: Deadline,
    ) -> Option<Result<Turn>> {
        let mode = *self.0.get(subject.name()?)?;
        let start = Instant::now();
        let mut inside = |theirs| refuse_to_exclude_others(subject, mode, theirs);
        let turn =
            lock::take_in_turn(store, subject.clone(), deadline, &mut || Ok(mode), &mut inside);
        if let Ok(Turn::Held(_)) = turn {
            log::acquired_named(subject, mode == LockMode::Shared, start.elapsed());
        }
        Some(turn)
    }

    /// Takes the lock that `subject` names, unless that means to wait. Returns `None` if `subject`
    /// is not one of these locks.
    ///
    /// # Errors
    /// As for [`NamedLocks::take`].
    pub(super) fn try_take(
        &self,
        subject: &Subject,
        store: &Arc<dyn Store>,
    ) -> Option<Result<Option<Box<dyn lock::Held>>>> {
        let mode = *self.0.get(subject.name()?)?;
        let mut inside = |theirs| refuse_to_exclude_others(subject, mode, theirs);
        Some(lock::try_in_turn(store, subject.clone(), mode, &mut inside))
    }
}

/// Fails if this call needs the lock alone and an outer call shares it: others share it, too, and
/// this call would run beside them.
fn refuse_to_exclude_others(subject: &Subject, ours: LockMode, theirs: LockMode) -> Result<()> {
    if (ours, theirs) == (LockMode::Exclusive, LockMode::Shared) {
        bail!(
            "{subject}: an outer call shares it, so this call cannot have it alone; give the outer \
             call --lock instead of --share, or run this call outside of it"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_in_one_order_whatever_their_mode() {
        let text = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let named = NamedLocks::new(text(&["b", "d", "b"]), text(&["c", "a", "c"])).unwrap();
        let names: Vec<Subject> = named.subjects().collect();
        assert_eq!(names, ["a", "b", "c", "d"].map(|name| Subject::Named(name.to_owned())));
        assert!(NamedLocks::new(text(&["a", "b"]), text(&["b"])).is_err());
    }
}
