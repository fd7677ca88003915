//! The queue for a lock: who holds it, and who waits for it in which order.

use super::answer::{Answer, Entry};
use super::keys::{folder_of, is_in_queue, is_of, mode_of};
use crate::lock::LockMode;

/// The holders of a lock, and those that wait in the queue for it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The revision of the store at that moment.
    pub(super) revision: i64,
    /// In the order in which they came. Never empty in [`Queue::all_of`].
    pub(super) entries: Vec<Entry>,
}

impl Queue {
    /// Reads a lock's folder.
    pub(super) fn of(answer: Answer) -> Self {
        let revision = answer.revision;
        let mut entries: Vec<Entry> = answer.entries().filter(is_in_queue).collect();
        entries.sort_by_key(|entry| entry.created);
        Queue { revision, entries }
    }

    /// Reads the folders of all locks.
    pub(super) fn all_of(answer: Answer) -> Vec<Self> {
        let revision = answer.revision;
        let mut entries: Vec<Entry> = answer.entries().filter(is_in_queue).collect();
        entries.sort_by(|a, b| (folder_of(a), a.created).cmp(&(folder_of(b), b.created)));
        let queues = entries.chunk_by(|a, b| folder_of(a) == folder_of(b));
        queues.map(|entries| Queue { revision, entries: entries.to_vec() }).collect()
    }

    /// Returns the revision at which a key was created, if it is in the queue.
    pub(super) fn created(&self, key: &str) -> Option<i64> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.created)
    }

    /// Returns the entry that the owner of `lease`, which came at the revision `created`, waits
    /// for: the last one before it with which it cannot share the lock.
    pub(super) fn blocker(&self, created: i64, mode: LockMode, lease: i64) -> Option<&Entry> {
        self.entries
            .iter()
            .rev()
            .filter(|entry| !is_of(entry, lease))
            .filter(|entry| entry.created < created)
            .find(|entry| mode == LockMode::Exclusive || mode_of(entry) == LockMode::Exclusive)
    }

    /// Returns the exclusive holder, unless it is the owner of `lease`.
    pub(super) fn foreign_exclusive_holder(&self, lease: i64) -> Option<&Entry> {
        let is_foreign =
            |entry: &&Entry| mode_of(entry) == LockMode::Exclusive && !is_of(entry, lease);
        self.entries.first().filter(is_foreign)
    }

    /// Returns the holders: those at the head that hold the lock together.
    pub(super) fn holders(&self) -> Vec<&Entry> {
        match self.entries.first() {
            Some(first) if mode_of(first) == LockMode::Exclusive => vec![first],
            _ => self.entries.iter().take_while(|it| mode_of(it) == LockMode::Shared).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(keys: &[(&str, i64)]) -> Queue {
        let entry = |&(key, created): &(&str, i64)| Entry {
            key: format!("/p/locks/image-locks/x/{key}"),
            value: Vec::new(),
            created,
        };
        Queue { revision: 9, entries: keys.iter().map(entry).collect() }
    }

    #[test]
    fn those_who_share_wait_only_for_those_who_do_not() {
        let (first, second) = (format!("r/{:016x}", 1), format!("r/{:016x}", 2));
        let third = format!("w/{:016x}", 3);
        let queue = queue(&[(&first, 4), (&second, 5), (&third, 6)]);
        assert_eq!(queue.holders().len(), 2);
        assert_eq!(queue.blocker(5, LockMode::Shared, 2), None);
        assert_eq!(queue.blocker(6, LockMode::Exclusive, 3).map(|it| it.created), Some(5));
        assert_eq!(queue.blocker(7, LockMode::Shared, 4).map(|it| it.created), Some(6));
    }

    #[test]
    fn process_does_not_wait_for_its_own_keys() {
        let own = format!("w/{:016x}", 1);
        let queue = queue(&[(&own, 4)]);
        assert_eq!(queue.blocker(5, LockMode::Exclusive, 1), None);
        assert_eq!(queue.foreign_exclusive_holder(1), None);
        assert!(queue.foreign_exclusive_holder(2).is_some());
    }
}
