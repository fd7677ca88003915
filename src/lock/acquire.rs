//! How one lock is taken, in any store: try, descend below an ancestor's lock, or wait in turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::key::{Key, LockMode};
use super::store::{Before, Held, Passing, Store, Try};
use super::wait::{LAST_NAME_WITHIN, Said, Wait, Waited, ask_for_holder};
use crate::duration::Deadline;
use crate::log;
use crate::record::Holder;
use crate::subject::Subject;

/// How a wait for one lock or several ended.
pub enum Turn<L = Box<dyn Held>> {
    /// This process holds what it waited for.
    Held(L),
    /// What the lock was wanted for has come to be in the meantime.
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
    /// Returns whether what the lock is wanted for has come to be. `None` if that changes nothing.
    pub settled: Option<&'a mut dyn FnMut() -> Result<bool>>,
}

/// How long a caller that does not wait tries a busy lock again. A waiter that wakes holds a short
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
    let mut said = Said::nothing();
    let mut key = Key::new(subject);
    loop {
        let turn = take_or_descend(store, &key, LockMode::Exclusive, &mut patience, &mut said)?;
        if let Some(turn) = turn {
            if let Turn::Held(held) = &turn {
                log::acquired(held.subject(), said.so_far());
            }
            return Ok((turn, said.waited_for));
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
/// Also returns whether an ancestor shares the lock. A descendant that holds it exclusively still
/// has others beside it then, inside and outside the ancestor's call.
///
/// # Errors
/// The store or `mode` failed.
pub fn take_in_turn(
    store: &Arc<dyn Store>,
    subject: Subject,
    deadline: Deadline,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<(Turn, bool)> {
    // For people it is one wait, whatever it is made of.
    let mut said = Said::nothing();
    let mut key = Key::new(subject);
    let mut ancestor_shares = false;
    loop {
        // A call that shared the lock with its ancestor would exclude nobody inside that
        // ancestor's call, where all the others are one level down. This is asked before the
        // turnstile, because others would have to wait for the answer there.
        let mut theirs = store.held_by_ancestors_as(&key);
        if theirs.is_none() {
            if let Some(turn) = take_through_turnstile(store, &key, deadline, &mut said, mode)? {
                return Ok((turn, ancestor_shares));
            }
            // An ancestor has taken it in the meantime, unless it had the turnstile alone.
            theirs = store.held_by_ancestors_as(&key);
            if theirs.is_none() {
                continue;
            }
        }
        tracing::debug!("{}: an ancestor of this process holds the lock", key.subject());
        ancestor_shares |= theirs == Some(LockMode::Shared);
        key = key.nested();
    }
}

/// Returns `None` if an ancestor of this process holds the lock.
fn take_through_turnstile(
    store: &Arc<dyn Store>,
    key: &Key,
    deadline: Deadline,
    said: &mut Said,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<Option<Turn>> {
    let mut patience = Patience { deadline, share_failure: false, settled: None };
    let exclusive = LockMode::Exclusive;
    let turnstile = match take_or_descend(store, &key.turnstile(), exclusive, &mut patience, said)?
    {
        Some(Turn::Held(turnstile)) => turnstile,
        without => return Ok(without),
    };
    let taken = take_behind_turnstile(store, key, &mut patience, said, mode);
    turnstile.release(None);
    taken
}

fn take_behind_turnstile(
    store: &Arc<dyn Store>,
    key: &Key,
    patience: &mut Patience<'_>,
    said: &mut Said,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<Option<Turn>> {
    let wanted = mode()?;
    let turn = take_or_descend(store, key, wanted, patience, said)?;
    let Some(Turn::Held(mut held)) = turn else { return Ok(turn) };
    // The holder we waited for may have done what we wanted exclusive access for.
    if wanted == LockMode::Exclusive && mode()? == LockMode::Shared && !held.share()? {
        drop(held);
        return take_or_descend(store, key, LockMode::Shared, patience, said);
    }
    Ok(Some(Turn::Held(held)))
}

/// Takes one lock. Returns `None` if an ancestor of this process holds it: it would wait for us.
fn take_or_descend(
    store: &Arc<dyn Store>,
    key: &Key,
    mode: LockMode,
    patience: &mut Patience<'_>,
    said: &mut Said,
) -> Result<Option<Turn>> {
    let deadline = patience.deadline;
    let before = match try_unless_passing(store, key, mode, deadline)? {
        Try::Held(held) => return Ok(Some(Turn::Held(held))),
        Try::Busy(before) => before,
    };
    if store.held_by_ancestors_as(&key.itself()).is_some() {
        return Ok(None);
    }
    if deadline.is_at_once() {
        return try_for_a_moment(store, key, mode, deadline).map(Some);
    }

    let mut wait = Wait::begin(store, key, deadline, said, before);
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
        if let Try::Held(held) = try_unless_passing(store, key, mode, deadline)? {
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

/// Tries to take the lock. A failure that may pass counts as a busy lock.
fn try_unless_passing(
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
            try_unless_passing(store, key, mode, deadline)?
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
