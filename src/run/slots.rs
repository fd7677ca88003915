//! Building only while fewer than N builds run (`--max-builds`): when a call waits for its locks, and
//! when for a slot. `lock/slots.rs` says why it never waits for the one while it holds the other.

use anyhow::Result;

use super::job::Job;
use crate::cache::{Asked, Want};
use crate::duration::Deadline;
use crate::lock::{Held, HeldLocks, Slots, Turn, Turned};
use crate::log;

/// Whether the build command has run before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    No,
    /// It has failed with a shared cache, and runs once more with the cache alone.
    Yes,
}

impl Again {
    pub(super) fn want(self) -> Want {
        match self {
            Again::No => Want::SharedIfWarm,
            Again::Yes => Want::Alone,
        }
    }
}

/// What a call waits for next.
pub(super) enum Next {
    /// For its locks, without a slot.
    Locks,
    /// For a slot, without locks.
    Slot,
}

/// A call's way to its slot, if it needs one.
pub(super) struct WayToSlot {
    slots: Option<Slots>,
    limit: u16,
    want: Want,
    waits_for_slot: bool,
    /// Whether the call has had a slot, and gave it back because it could not use it.
    has_been_first: bool,
}

impl Job {
    /// Begins the way to a slot. A call that gave its slot back after a first run need not stand in
    /// line again.
    ///
    /// # Errors
    /// It cannot be seen which slots outer calls hold.
    pub(super) fn slots(&self, again: Again) -> Result<WayToSlot> {
        Ok(WayToSlot {
            slots: self.max_builds.map(|limit| Slots::new(&self.store, limit)).transpose()?,
            limit: self.max_builds.unwrap_or_default(),
            want: again.want(),
            waits_for_slot: false,
            has_been_first: again == Again::Yes,
        })
    }
}

impl WayToSlot {
    pub(super) fn next(&self) -> Next {
        if self.waits_for_slot { Next::Slot } else { Next::Locks }
    }

    /// Adds a slot to all locks, unless they have one or need none. If none is free, releases the
    /// locks: the call waits for a slot next.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn complete(
        &mut self,
        locks: HeldLocks,
        deadline: Deadline,
    ) -> Result<Option<HeldLocks>> {
        let Some(slots) = self.slots.as_ref().filter(|_| !self.waits_for_slot) else {
            return Ok(Some(locks));
        };
        let added = slots.try_add(locks, self.has_been_first, deadline)?;
        self.waits_for_slot = added.is_none();
        Ok(added.map(|(slot, locks)| self.with_slot(locks, slot)))
    }

    /// Waits for a slot, and takes all locks with it. Returns `None` if one of them is busy: the call
    /// has given the slot back, and waits for its locks next.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn wait(
        &mut self,
        job: &Job,
        deadline: Deadline,
    ) -> Result<Option<Turn<HeldLocks>>> {
        let Some(slots) = &self.slots else { return Ok(None) };
        // The engine may take its time, and nobody else gets through the door meanwhile.
        let mut ask = || job.caches.ask(&*job.store, &job.images, deadline);
        let mut take_locks = |asked: &Asked| job.try_lock(self.want, asked);
        Ok(match slots.take_in_turn(deadline, &mut ask, &mut take_locks)? {
            Turned::Taken(slot, locks) => {
                for lock in locks.iter() {
                    lock.record();
                    job.log_taken(lock, self.want);
                }
                Some(Turn::Held(self.with_slot(locks, slot)))
            }
            Turned::TimedOut => Some(Turn::TimedOut),
            Turned::OthersAreBusy => {
                self.waits_for_slot = false;
                self.has_been_first = true;
                None
            }
        })
    }

    fn with_slot(&self, mut locks: HeldLocks, slot: Box<dyn Held>) -> HeldLocks {
        log::acquired_slot(slot.subject(), self.limit);
        slot.record();
        locks.push(slot);
        locks
    }
}
