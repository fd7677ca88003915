//! The caches of one build: taking their locks, alone or shared, and remembering them as warm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::spec::Use;
use super::warmth::{Account, Cache};
use crate::command::Command;
use crate::duration::Deadline;
use crate::image::Images;
use crate::lock::{self, Held, HeldLocks, LockMode, Store, Turn};
use crate::log;
use crate::scope::Scope;
use crate::subject::Subject;

/// How old the engine's answer about a cache may be when its lock is acquired. A caller that waited
/// longer asks again.
const ENGINE_ANSWER_MAX_AGE: Duration = Duration::from_secs(1);

/// The caches that the build command writes, in the order in which their locks are taken.
#[derive(Debug)]
pub(crate) struct Caches(Vec<Cache>);

impl Caches {
    /// Checks the values of `--cache`.
    ///
    /// # Errors
    /// A file cannot be opened, or a cache is named twice.
    pub(crate) fn new(uses: Vec<Use>, command: &Command) -> Result<Self> {
        Cache::all(uses, command).map(Caches)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn subjects(&self) -> impl Iterator<Item = Subject> {
        self.0.iter().map(Cache::subject)
    }

    /// Reads the files that decide whether each cache is warm, unless that was done before.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn read_files(&self, images: &Images, scope: Scope) -> Result<()> {
        self.0.iter().try_for_each(|cache| cache.read(images, scope))
    }

    /// Takes the lock of the cache that `subject` names: shared if it is warm. Returns `None` if
    /// `subject` is not one of these caches.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn take(
        &self,
        subject: &Subject,
        store: &Arc<dyn Store>,
        images: &Images,
        deadline: Deadline,
        want: Want,
    ) -> Option<Result<Turn>> {
        let cache = self.find(subject)?;
        Some(take(store, images, cache, deadline, want))
    }

    /// Asks the engine whether the caches still exist, before [`Caches::try_take`].
    pub(crate) fn ask(&self, store: &dyn Store, images: &Images, deadline: Deadline) -> Asked {
        self.0.iter().for_each(|cache| cache.ask(store, images, deadline.left()));
        Asked(Instant::now())
    }

    /// Takes the lock of the cache that `subject` names, unless that means to wait. Returns `None` if
    /// `subject` is not one of these caches.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn try_take(
        &self,
        subject: &Subject,
        store: &Arc<dyn Store>,
        want: Want,
        asked: &Asked,
    ) -> Option<Result<Option<Box<dyn Held>>>> {
        let cache = self.find(subject)?;
        Some(try_take(store, cache, want, asked))
    }

    /// Returns why this lock is held as it is, if it is that of one of these caches.
    pub(crate) fn reason(&self, lock: &dyn Held, want: Want) -> Option<String> {
        let cache = self.find(lock.subject())?;
        Some(reason(cache, lock.mode() == LockMode::Shared, want))
    }

    /// Returns whether one of these locks is a cache's, and shared.
    pub(crate) fn are_shared(&self, locks: &HeldLocks) -> bool {
        locks
            .iter()
            .any(|lock| lock.mode() == LockMode::Shared && self.find(lock.subject()).is_some())
    }

    /// Remembers as warm the caches that a successful build had to itself. First forgets what was
    /// remembered of those in `at_fault`, because the build failed while it shared them.
    pub(crate) fn remember(
        &self,
        locks: &HeldLocks,
        account: &Account,
        at_fault: &[Subject],
        store: &dyn Store,
    ) {
        for cache in self.had_alone(locks) {
            if at_fault.contains(&cache.subject()) {
                cache.forget(store);
            }
            cache.remember(store, account);
        }
    }

    /// Returns whether a build with these locks may have warmed a cache.
    pub(crate) fn may_be_warm_now(&self, locks: &HeldLocks) -> bool {
        self.had_alone(locks).next().is_some()
    }

    fn had_alone<'a>(&'a self, locks: &'a HeldLocks) -> impl Iterator<Item = &'a Cache> {
        let alone = locks.iter().filter(|lock| lock.mode() == LockMode::Exclusive);
        let caches = alone.filter_map(|lock| self.find(lock.subject()));
        caches.filter(|cache| cache.has_files())
    }

    fn find(&self, subject: &Subject) -> Option<&Cache> {
        self.0.iter().find(|cache| subject.cache() == Some(cache.id()))
    }
}

/// Takes all caches' locks, each exclusively, whatever is remembered of them. Returns `None` if the
/// deadline passed first.
///
/// # Errors
/// The store failed.
pub(crate) fn take_all_alone(
    caches: &Caches,
    store: &Arc<dyn Store>,
    images: &Images,
    deadline: Deadline,
) -> Result<Option<HeldLocks>> {
    let mut ours = HeldLocks::default();
    for cache in &caches.0 {
        match take(store, images, cache, deadline, Want::Alone)? {
            Turn::Held(lock) => ours.push(lock),
            _ => return Ok(None),
        }
    }
    Ok(Some(ours))
}

/// When the engine was asked about caches.
pub(crate) struct Asked(Instant);

/// How a build needs its caches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Shared, if they are warm.
    SharedIfWarm,
    /// To run the build command again after it failed with a shared cache.
    Alone,
}

fn take(
    store: &Arc<dyn Store>,
    images: &Images,
    cache: &Cache,
    deadline: Deadline,
    want: Want,
) -> Result<Turn> {
    let start = Instant::now();
    loop {
        if want == Want::SharedIfWarm {
            cache.ask(&**store, images, deadline.left());
        }
        let asked = Instant::now();
        let mut mode = || match want {
            Want::SharedIfWarm => Ok(cache.mode(&**store)),
            Want::Alone => Ok(LockMode::Exclusive),
        };
        let mut ancestor_shares = false;
        let mut inside = |theirs| {
            ancestor_shares |= theirs == LockMode::Shared;
            Ok(())
        };
        let turn = lock::take_in_turn(store, cache.subject(), deadline, &mut mode, &mut inside)?;
        let Turn::Held(lock) = turn else { return Ok(turn) };
        let shared = lock.mode() == LockMode::Shared;
        if shared && asked.elapsed() > ENGINE_ANSWER_MAX_AGE {
            // It may have been pruned in the meantime.
            cache.ask(&**store, images, deadline.left());
            if cache.mode(&**store) == LockMode::Exclusive {
                lock.release(None);
                continue;
            }
        }
        log::acquired_cache(lock.subject(), shared, &reason(cache, shared, want), start.elapsed());
        note_taken(store, cache, shared, ancestor_shares);
        return Ok(Turn::Held(lock));
    }
}

fn try_take(
    store: &Arc<dyn Store>,
    cache: &Cache,
    want: Want,
    asked: &Asked,
) -> Result<Option<Box<dyn Held>>> {
    let mode = match want {
        Want::SharedIfWarm => cache.mode(&**store),
        Want::Alone => LockMode::Exclusive,
    };
    let shared = mode == LockMode::Shared;
    if shared && asked.0.elapsed() > ENGINE_ANSWER_MAX_AGE {
        // It may have been pruned in the meantime. A caller that waits for the lock asks again.
        return Ok(None);
    }
    let mut ancestor_shares = false;
    let mut inside = |theirs| {
        ancestor_shares |= theirs == LockMode::Shared;
        Ok(())
    };
    let lock = lock::try_in_turn(store, cache.subject(), mode, &mut inside)?;
    if lock.is_some() {
        note_taken(store, cache, shared, ancestor_shares);
    }
    Ok(lock)
}

/// Notes what follows from having the lock.
fn note_taken(store: &Arc<dyn Store>, cache: &Cache, shared: bool, ancestor_shares: bool) {
    if ancestor_shares && !shared {
        tracing::warn!(
            "cache {}: an outer call shares it, so others may write it beside the build command; \
             give the outer call the same --cache option",
            cache.id()
        );
        cache.note_sharing_ancestor();
    }
    if cache.is_emptied() {
        cache.forget(&**store);
    }
    if !shared && cache.has_files() {
        cache.note_forgotten(&**store);
    }
}

/// Says why the lock is held as it is.
fn reason(cache: &Cache, shared: bool, want: Want) -> String {
    let id = cache.id();
    match (shared, want, cache.can_be_shared()) {
        (true, ..) => format!("shared (cache={id} warm)"),
        (_, Want::Alone, _) => format!("alone, to try again (cache={id})"),
        (_, _, true) if cache.has_lost_mounts() => {
            format!("alone, until it is warm (cache={id} cold: the engine has lost its mounts)")
        }
        (_, _, true) => format!("alone, until it is warm (cache={id} cold)"),
        (_, _, false) if cache.is_emptied() => {
            format!("alone, because --no-cache empties it (cache={id})")
        }
        (_, _, false) => format!("alone (cache={id})"),
    }
}
