//! How one lock is taken, in any store: try, take the nested lock if an ancestor holds this one, or
//! wait in turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::key::{Key, LockMode};
use super::store::{Before, Held, Passing, Store, Try};
use super::wait::{LAST_NAME_WITHIN, Reported, Wait, Waited, ask_for_holder};
use crate::duration::Deadline;
use crate::log;
use crate::record::Holder;
use crate::subject::Subject;

/// How a wait for one lock or several ended.
pub enum Turn<L = Box<dyn Held>> {
    /// This process holds what it waited for.
    Held(L),
    /// The lock is no longer needed: for an image, every image is present.
    Settled,
    /// The build that was waited for failed with this status, and its failure is shared.
    Failed(u8),
    /// The deadline passed. It was logged.
    TimedOut,
}

/// What bounds and shortens a wait.
pub struct Patience<'a> {
    /// When to give up.
    pub deadline: Deadline,
    /// Whether the failure of a build that was waited for counts for this caller.
    pub share_failure: bool,
    /// Returns whether the lock is no longer needed. `None` if it is always needed.
    pub settled: Option<&'a mut dyn FnMut() -> Result<bool>>,
}

/// How long a caller with `--timeout 0s` retries a busy lock. A waiter that wakes holds a short
/// shared lock, which makes a try fail although nobody builds.
const NO_WAIT_GRACE: Duration = Duration::from_millis(100);

/// Takes the lock for `subject`, waiting as `patience` allows. Also returns the holder that was
/// waited for last, if it is known.
///
/// # Errors
/// The store or `patience.settled` failed.
pub fn take(
    store: &Arc<dyn Store>,
    subject: Subject,
    mut patience: Patience<'_>,
) -> Result<(Turn, Option<Holder>)> {
    let mut reported = Reported::nothing();
    let mut key = Key::new(subject);
    loop {
        let turn = take_unless_ancestor_holds(
            store,
            &key,
            LockMode::Exclusive,
            &mut patience,
            &mut reported,
        )?;
        if let Some(turn) = turn {
            if let Turn::Held(held) = &turn {
                log::acquired(held.subject(), reported.so_far());
            }
            return Ok((turn, reported.waited_for));
        }
        tracing::debug!("{}: an ancestor of this process holds the lock", key.subject());
        key = key.nested();
    }
}

/// Takes a lock that may be shared, in the mode that is right at the moment when it is taken. All
/// callers go through its turnstile, one after the other. So a caller that needs the lock
/// exclusively waits for those that share it now, and for none that come later: flock(2) alone is
/// not fair.
///
/// `inside` is told how each ancestor holds the lock, if any do, before this call waits. Inside of
/// one that shares it, even an exclusive lock of this call does not exclude the others that share
/// the ancestor's.
///
/// # Errors
/// The store, `mode` or `inside` failed.
pub fn take_in_turn(
    store: &Arc<dyn Store>,
    subject: Subject,
    deadline: Deadline,
    mode: &mut dyn FnMut() -> Result<LockMode>,
    inside: &mut dyn FnMut(LockMode) -> Result<()>,
) -> Result<Turn> {
    // The user sees one wait.
    let mut reported = Reported::nothing();
    let mut key = Key::new(subject);
    loop {
        // Never share a lock with an ancestor. Other calls inside that ancestor take the nested
        // lock, so sharing here would not exclude them. Ask before entering the turnstile, so that
        // nobody waits there for the answer.
        let mut theirs = store.held_by_ancestors_as(&key)?;
        if theirs.is_none() {
            if let Some(turn) = take_through_turnstile(store, &key, deadline, &mut reported, mode)?
            {
                return Ok(turn);
            }
            // An ancestor has taken it in the meantime, unless it had the turnstile alone.
            theirs = store.held_by_ancestors_as(&key)?;
        }
        let Some(theirs) = theirs else { continue };
        tracing::debug!("{}: an ancestor of this process holds the lock", key.subject());
        inside(theirs)?;
        key = key.nested();
    }
}

/// Takes the lock through its turnstile. Returns `None` if an ancestor of this process holds it.
fn take_through_turnstile(
    store: &Arc<dyn Store>,
    key: &Key,
    deadline: Deadline,
    reported: &mut Reported,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<Option<Turn>> {
    let mut patience = Patience { deadline, share_failure: false, settled: None };
    let exclusive = LockMode::Exclusive;
    let turnstile = match take_unless_ancestor_holds(
        store,
        &key.turnstile(),
        exclusive,
        &mut patience,
        reported,
    )? {
        Some(Turn::Held(turnstile)) => turnstile,
        without => return Ok(without),
    };
    let taken = take_behind_turnstile(store, key, &mut patience, reported, mode);
    turnstile.release(None);
    taken
}

fn take_behind_turnstile(
    store: &Arc<dyn Store>,
    key: &Key,
    patience: &mut Patience<'_>,
    reported: &mut Reported,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<Option<Turn>> {
    let wanted = mode()?;
    let turn = take_unless_ancestor_holds(store, key, wanted, patience, reported)?;
    let Some(Turn::Held(mut held)) = turn else { return Ok(turn) };
    // The holder we waited for may have done what we wanted exclusive access for.
    if wanted == LockMode::Exclusive && mode()? == LockMode::Shared && !held.share()? {
        drop(held);
        return take_unless_ancestor_holds(store, key, LockMode::Shared, patience, reported);
    }
    Ok(Some(Turn::Held(held)))
}

/// Takes the lock for `subject` unless another process holds it. Waits for nobody.
///
/// # Errors
/// The store failed.
pub fn try_take(store: &Arc<dyn Store>, subject: Subject) -> Result<Option<Box<dyn Held>>> {
    let mut key = Key::new(subject);
    loop {
        if let Try::Held(held) = try_at_once(store, &key, LockMode::Exclusive)? {
            return Ok(Some(held));
        }
        if store.held_by_ancestors_as(&key)?.is_none() {
            return Ok(None);
        }
        key = key.nested();
    }
}

/// Takes a lock that may be shared, as [`take_in_turn`] does, unless that means to wait: for its
/// holder, or for those that wait for it.
///
/// # Errors
/// The store or `inside` failed.
pub fn try_in_turn(
    store: &Arc<dyn Store>,
    subject: Subject,
    mode: LockMode,
    inside: &mut dyn FnMut(LockMode) -> Result<()>,
) -> Result<Option<Box<dyn Held>>> {
    let mut key = Key::new(subject);
    while let Some(theirs) = store.held_by_ancestors_as(&key)? {
        inside(theirs)?;
        key = key.nested();
    }
    let Try::Held(turnstile) = try_at_once(store, &key.turnstile(), LockMode::Exclusive)? else {
        return Ok(None);
    };
    let tried = try_at_once(store, &key, mode);
    turnstile.release(None);
    Ok(tried?.held())
}

fn try_at_once(store: &Arc<dyn Store>, key: &Key, mode: LockMode) -> Result<Try> {
    try_or_busy(store, key, mode, Deadline::within(Some(Duration::ZERO)))
}

/// Takes one lock. Returns `None` if an ancestor of this process holds it: it would wait for us.
fn take_unless_ancestor_holds(
    store: &Arc<dyn Store>,
    key: &Key,
    mode: LockMode,
    patience: &mut Patience<'_>,
    reported: &mut Reported,
) -> Result<Option<Turn>> {
    let deadline = patience.deadline;
    let before = match try_or_busy(store, key, mode, deadline)? {
        Try::Held(held) => return Ok(Some(Turn::Held(held))),
        Try::Busy(before) => before,
    };
    if store.held_by_ancestors_as(&key.itself())?.is_some() {
        return Ok(None);
    }
    if deadline.is_at_once() {
        return try_for_a_moment(store, key, mode, deadline).map(Some);
    }

    let mut wait = Wait::begin(store, key, deadline, reported, before);
    wait.warn_of_deadlock();

    // All waiters for an image wake together and look in parallel. That is usually the end.
    if let Some(settled) = &mut patience.settled {
        let failure = match wait.until(|store, key, deadline| store.wait_released(key, deadline))? {
            Waited::Done(failure) => failure,
            Waited::ForAncestor => return Ok(None),
            Waited::TimedOut => return Ok(Some(Turn::TimedOut)),
        };
        if settled()? {
            return Ok(Some(Turn::Settled));
        }
        if let Some(status) = wait.shared(failure.as_ref(), patience.share_failure) {
            return Ok(Some(Turn::Failed(status)));
        }
        if let Try::Held(held) = try_or_busy(store, key, mode, deadline)? {
            return Ok(Some(Turn::Held(held)));
        }
    }

    // Two shared waits in a row would let waiters keep each other out for ever. From here on we
    // stand in line.
    let held = match wait.until(move |store, key, deadline| store.acquire(key, mode, deadline))? {
        Waited::Done(held) => held,
        Waited::ForAncestor => return Ok(None),
        Waited::TimedOut => return Ok(Some(Turn::TimedOut)),
    };
    let failure = held.last_failure();
    let Some(status) = wait.shared(failure.as_ref(), patience.share_failure) else {
        return Ok(Some(Turn::Held(held)));
    };
    let settled = patience.settled.as_mut().map_or(Ok(false), |settled| settled());
    // The failure stays there for the next in line.
    held.release(failure.as_ref());
    Ok(Some(if settled? { Turn::Settled } else { Turn::Failed(status) }))
}

/// Tries to take the lock. A transient failure counts as a busy lock.
fn try_or_busy(
    store: &Arc<dyn Store>,
    key: &Key,
    mode: LockMode,
    deadline: Deadline,
) -> Result<Try> {
    match store.try_acquire(key, mode, deadline) {
        Err(error) if error.is::<Passing>() => Ok(Try::Busy(Before::Unknown)),
        tried => tried,
    }
}

fn try_for_a_moment(
    store: &Arc<dyn Store>,
    key: &Key,
    mode: LockMode,
    deadline: Deadline,
) -> Result<Turn> {
    let start = Instant::now();
    let name = ask_for_holder(store, key);
    loop {
        std::thread::sleep(Duration::from_millis(fastrand::u64(2..8)));
        let is_last = start.elapsed() >= NO_WAIT_GRACE;
        let tried = if is_last {
            store.try_acquire(key, mode, deadline)?
        } else {
            try_or_busy(store, key, mode, deadline)?
        };
        if let Try::Held(held) = tried {
            return Ok(Turn::Held(held));
        }
        if is_last {
            break;
        }
    }
    let holder = name.recv_timeout(LAST_NAME_WITHIN).ok().flatten();
    log::timeout(key.subject(), holder.as_ref(), start.elapsed());
    Ok(Turn::TimedOut)
}
