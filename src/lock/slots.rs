//! Slots: at most N builds at once (`--max-builds N`), whatever they build.
//!
//! A build needs a slot and its locks, and nobody may wait for the one while holding the other: a
//! tag lock that is held behind a missing slot deadlocks with nested calls and with the second run
//! of a cache. So a caller does this:
//!
//! 1. It waits for its locks as ever, without a slot. Once it has them all, it tries to take a slot.
//!    If none is free, it releases its locks.
//! 2. It stands in line for a slot, without locks. Once it has one, it tries to take all its locks.
//!    If one is busy, it gives the slot back and goes on with step 1.
//!
//! Each of these tries is made behind the **door**, a lock that is held for the moment of the try
//! only. Behind it nobody waits, neither for a slot nor for a lock, and what was taken in vain is
//! given back there. (Only a bell, see below, may be busy for a moment, while those who waited on it
//! wake.) That is why:
//!
//! - *No deadlock.* Whoever waits for a slot holds no lock of its own, and whoever waits for a lock
//!   holds no slot of its own. A nested call waits while the outer call holds locks and a slot. But
//!   it can always use the outer call's slot, when its siblings do not. An outer call with locks and
//!   without a slot can deadlock, and causes a warning.
//! - *Never more than N.* Behind the door, a slot that is held is a build that runs, or that has just
//!   ended. A caller takes a slot only if fewer than its own N are held, by callers with any N. So it
//!   finds one among the first N.
//! - *No slot is idle while somebody could use it.* A caller that has all its locks and finds a free
//!   slot behind the door takes it, unless others stand in line. The first in line tries at once, and
//!   again whenever a build ends. If it cannot use its slot, it leaves the line, and the next one
//!   tries. Callers with different N stand in different lines, so that one whose N is reached does not
//!   keep back one whose N is not.
//! - *No livelock.* Behind the door, a slot is busy because of a build only, never because of a try.
//!   A lock may be busy because a caller of step 1 has it and has not come to the door yet. That one
//!   comes to the door soon, since locks are taken in order. If it finds a free slot there, it builds,
//!   unless others stand in line and it has not been the first in line itself since its last build.
//!   That can happen to each caller once. So callers cannot all fail for ever while no build starts or ends: one of
//!   them succeeds. The model in `slots/model.rs` goes through all orders in which
//!   a few callers can do all this.
//!
//! **Waiting for any of N.** Only the first in line waits for slots; the others wait for the
//! **line**, a lock that the first one holds. Nobody waits on a slot itself: a waiter that wakes would
//! hold it for a moment, and another caller behind the door would take that for a build. Each build
//! also holds its slot's **bell**, which it takes after the slot and releases after it. The first in
//! line waits on the bells of all busy slots at once, one small process for each, and goes to the
//! door when the first one rings. A bell that rings before the wait begins ends it at once, so no
//! wake-up is lost. Should a bell ring although its slot is held (a part of a killed build may have
//! closed one descriptor and not the other), the slot itself is waited for.
//!
//! **Crashes.** All of these are kernel locks. The build command and the keeper inherit slot and
//! bell, so the slot is taken for as long as anything of the build runs, and free after that. A
//! caller that is killed behind the door or in line leaves nothing. One that is stopped there (Ctrl-Z)
//! keeps others waiting, until their `--timeout`.

mod held;
mod line;
#[cfg(test)]
mod model;

use std::cell::Cell;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Result, bail};

use self::held::{Brief, HeldSlot};
use self::line::Line;
use super::key::{Key, LockMode};
use super::store::{Held, Store, Try, Woken};
use super::wait::on_a_thread;
use crate::duration::Deadline;
use crate::log;
use crate::subject::Subject;

/// The largest N. The first in line starts a process for each of N.
pub(crate) const SLOTS_MAX: u16 = 256;

/// How long a caller with `--timeout 0s` waits for the door.
const DOOR_GRACE: Duration = Duration::from_millis(100);

/// The slots of this machine, for a caller that says how many there may be.
pub struct Slots {
    store: Arc<dyn Store>,
    limit: u16,
    /// The place inside of each slot that an outer call holds: one nested build at a time uses it.
    inner: Vec<Key>,
    /// How many builds ran when this caller last looked.
    running: Cell<usize>,
}

/// How a try behind the door ended.
enum Tried {
    Taken(Box<dyn Held>),
    /// So many builds run, in these slots.
    Full(Vec<Key>),
    /// The time is up.
    TimedOut,
}

/// How a caller's turn for a slot ended.
pub enum Turned<T> {
    /// It has a slot, and what it took with it.
    Taken(Box<dyn Held>, T),
    /// It had a slot, but could not take the rest, and has given the slot back.
    OthersAreBusy,
    /// The deadline passed. It was logged.
    TimedOut,
}

/// Where a slot may be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Anywhere,
    /// In the slot of an outer call only: others are first in line for the rest.
    Inside,
}

impl Slots {
    /// Returns the slots for a caller that says that `limit` builds may run at once.
    ///
    /// # Errors
    /// It cannot be seen which of them outer calls hold.
    pub fn new(store: &Arc<dyn Store>, limit: u16) -> Result<Self> {
        let mut inner = Vec::new();
        for mut key in store.held_by_ancestors_among(&all_slots())? {
            while store.held_by_ancestors_as(&key)?.is_some() {
                key = key.nested();
            }
            inner.push(key);
        }
        Ok(Slots { store: Arc::clone(store), limit, inner, running: Cell::default() })
    }

    /// Returns how many lock files a caller may have open at once beside its own: to wait for that
    /// many bells, and for the slot, its bell, the door and the line.
    pub(crate) fn locks_at_once(limit: u16) -> usize {
        usize::from(limit) + 4
    }

    /// Takes a slot for a caller that has all its locks, without waiting for a build to end. If
    /// others stand in line, only a caller that `has_been_first` goes before them. Otherwise drops
    /// `locks`, still behind the door.
    ///
    /// # Errors
    /// The store failed.
    pub fn try_add<T>(
        &self,
        locks: T,
        has_been_first: bool,
        deadline: Deadline,
    ) -> Result<Option<(Box<dyn Held>, T)>> {
        let Some(_door) = self.open_door(deadline)? else { return Ok(None) };
        let from = match has_been_first || self.is_line_empty()? {
            true => From::Anywhere,
            false => From::Inside,
        };
        Ok(match self.take(from, deadline)? {
            Tried::Taken(slot) => Some((slot, locks)),
            Tried::Full(_) | Tried::TimedOut => {
                drop(locks);
                None
            }
        })
    }

    /// Stands in line for a slot, and then takes the rest with `take_others`, which must not wait.
    /// `prepare` is called before each try and may take its time.
    ///
    /// # Errors
    /// The store or `take_others` failed.
    pub fn take_in_turn<P, T>(
        &self,
        deadline: Deadline,
        prepare: &mut dyn FnMut() -> P,
        take_others: &mut dyn FnMut(&P) -> Result<Option<T>>,
    ) -> Result<Turned<T>> {
        let mut line = Line::begin(self.limit, deadline);
        let mut place: Option<Brief> = None;
        // The slots whose bell has rung although they were held.
        let mut doubtful: Vec<Key> = Vec::new();
        let mut rung: Option<Key> = None;
        self.warn_of_deadlock();
        loop {
            let mut busy = Vec::new();
            if place.is_some() || !self.inner.is_empty() {
                let from = if place.is_some() { From::Anywhere } else { From::Inside };
                match self.take_with_others(from, deadline, prepare, take_others)? {
                    Ok(turned) => return Ok(turned),
                    Err(full) => busy = full,
                }
            }
            line.note_running(self.running.get());
            busy.retain(|_| place.is_some());
            busy.extend(self.inner.iter().cloned());
            doubtful.retain(|slot| busy.contains(slot));
            doubtful.extend(rung.take().filter(|slot| busy.contains(slot)));
            let bell = |slot: &Key| match doubtful.contains(slot) {
                true => slot.clone(),
                false => slot.bell(),
            };
            let bells = busy.iter().map(bell).collect();
            let wanted = place.is_none().then(|| Key::new(Subject::Slot(self.limit)).turnstile());
            match line.wait(&self.store, bells, wanted)? {
                None => return Ok(Turned::TimedOut),
                Some(Woken::Held(first)) => {
                    first.record();
                    place = Some(Brief::new(first));
                }
                Some(Woken::Free(number)) => rung = busy.into_iter().nth(number),
            }
        }
    }

    /// Takes a slot and the rest, behind the door. Returns the busy slots if none is free.
    fn take_with_others<P, T>(
        &self,
        from: From,
        deadline: Deadline,
        prepare: &mut dyn FnMut() -> P,
        take_others: &mut dyn FnMut(&P) -> Result<Option<T>>,
    ) -> Result<Result<Turned<T>, Vec<Key>>> {
        let prepared = prepare();
        let timed_out = || {
            let running = self.running.get();
            log::slot_timeout(
                &log::WaitingForSlot { running, limit: self.limit },
                deadline.so_far(),
            );
            Ok(Ok(Turned::TimedOut))
        };
        let Some(_door) = self.open_door(deadline)? else { return timed_out() };
        let slot = match self.take(from, deadline)? {
            Tried::Taken(slot) => slot,
            Tried::Full(busy) => return Ok(Err(busy)),
            Tried::TimedOut => return timed_out(),
        };
        let Some(others) = take_others(&prepared)? else {
            slot.release(None);
            return Ok(Ok(Turned::OthersAreBusy));
        };
        Ok(Ok(Turned::Taken(slot, others)))
    }

    /// Takes a slot, behind the door.
    fn take(&self, from: From, deadline: Deadline) -> Result<Tried> {
        for key in &self.inner {
            if let Some(tried) = self.try_slot(key, deadline)? {
                return Ok(tried);
            }
        }
        let all = all_slots();
        let mut busy = self.store.held_among(&all)?;
        if from == From::Anywhere && busy.len() < usize::from(self.limit) {
            for key in &all[..usize::from(self.limit)] {
                if busy.contains(key) {
                    continue;
                }
                match self.try_slot(key, deadline)? {
                    Some(tried) => return Ok(tried),
                    // A script has locked it in this moment.
                    None => busy.push(key.clone()),
                }
            }
        }
        self.running.set(busy.len());
        Ok(Tried::Full(busy))
    }

    /// Takes this slot with its bell. Returns `None` if it is busy.
    fn try_slot(&self, key: &Key, deadline: Deadline) -> Result<Option<Tried>> {
        let Try::Held(slot) = self.store.try_acquire(key, LockMode::Exclusive, deadline)? else {
            return Ok(None);
        };
        // Somebody who waited on it may just be waking.
        let Some(bell) = self.acquire_shortly(&key.bell(), deadline)? else {
            slot.release(None);
            return Ok(Some(Tried::TimedOut));
        };
        Ok(Some(Tried::Taken(Box::new(HeldSlot::new(slot, bell)))))
    }

    /// Returns whether nobody with this limit stands in line.
    fn is_line_empty(&self) -> Result<bool> {
        let line = Key::new(Subject::Slot(self.limit)).turnstile();
        let no_time = Deadline::within(Some(Duration::ZERO));
        let Try::Held(free) = self.store.try_acquire(&line, LockMode::Exclusive, no_time)? else {
            return Ok(false);
        };
        free.release(None);
        Ok(true)
    }

    /// Waits for the door. Returns `None` if the time is up.
    fn open_door(&self, deadline: Deadline) -> Result<Option<Brief>> {
        let door = self.acquire_shortly(&Key::new(Subject::Slot(0)).turnstile(), deadline)?;
        Ok(door.map(Brief::new))
    }

    /// Takes a lock that others hold for a moment only.
    fn acquire_shortly(&self, key: &Key, deadline: Deadline) -> Result<Option<Box<dyn Held>>> {
        if let Try::Held(held) = self.store.try_acquire(key, LockMode::Exclusive, deadline)? {
            return Ok(Some(held));
        }
        let (sender, receiver) = mpsc::channel();
        let (store, key) = (Arc::clone(&self.store), key.clone());
        on_a_thread("waiter", &*self.store, move || {
            // The receiver may be gone by then.
            _ = sender.send(store.acquire(&key, LockMode::Exclusive, deadline));
        })?;
        let grace = if deadline.is_at_once() { DOOR_GRACE } else { Duration::ZERO };
        let left = deadline.left().map(|left| left.max(grace));
        match receiver.recv_timeout(left.unwrap_or(Duration::MAX)) {
            Ok(acquired) => acquired.map(Some),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the thread that waited is gone"),
        }
    }

    /// Warns if an outer call holds locks and no slot: a build in a slot may wait for such a lock,
    /// and so for this call. Looks on a thread of its own, because that can take long.
    fn warn_of_deadlock(&self) {
        if !self.inner.is_empty() || !self.store.may_be_held_by_ancestors() {
            return;
        }
        let store = Arc::clone(&self.store);
        let asked = on_a_thread("order", &*self.store, move || {
            let theirs = store.held_by_ancestors().unwrap_or_default();
            theirs.first().into_iter().for_each(log::slot_may_deadlock);
        });
        if let Err(error) = asked {
            tracing::debug!("cannot look which locks our ancestors hold: {error}");
        }
    }
}

fn all_slots() -> Vec<Key> {
    (1..=SLOTS_MAX).map(|number| Key::new(Subject::Slot(number))).collect()
}
