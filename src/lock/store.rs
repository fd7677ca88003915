//! What a place for locks has to offer, by purpose: taking locks, keeping notes, inspection.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Serialize;

use super::key::{Key, LockMode};
use crate::duration::Deadline;
use crate::expiry::Expiry;
use crate::record::{FailedBuild, Holder};
use crate::scope::Scope;
use crate::subject::Subject;

/// A place for locks, with all that it offers.
pub trait Store: Locks + Several + Notes + Inspect {}

impl<T: Locks + Several + Notes + Inspect> Store for T {}

/// Takes locks and waits for them.
///
/// The operations that wait take as long as they need. They run on a thread of their own, which a
/// caller abandons when its time is up.
pub trait Locks: Send + Sync {
    /// Finds out whether the lock can be taken at all, without taking it. The deadline bounds how
    /// long a store may take to answer.
    ///
    /// # Errors
    /// The lock cannot be taken now or later.
    fn check(&self, key: &Key, deadline: Deadline) -> Result<()>;

    /// Takes the lock, or says at once that it is busy. A store that does not answer may take until
    /// the deadline.
    ///
    /// # Errors
    /// The store cannot be used; [`Passing`] if that may be different in a moment.
    fn try_acquire(&self, key: &Key, mode: LockMode, deadline: Deadline) -> Result<Try>;

    /// Waits until nobody holds the lock exclusively, and returns the result of the last build if
    /// that failed. All processes that wait in this way continue together. Never call it twice in a
    /// row: waiters that do nothing else can keep each other from ever getting the lock.
    ///
    /// # Errors
    /// The store cannot be used.
    fn wait_released(&self, key: &Key, deadline: Deadline) -> Result<Option<FailedBuild>>;

    /// Takes the lock, in line with all other processes that wait in this way.
    ///
    /// # Errors
    /// The store cannot be used.
    fn acquire(&self, key: &Key, mode: LockMode, deadline: Deadline) -> Result<Box<dyn Held>>;

    /// Returns the holder of the lock, if it is known for certain. Of several that share it, an
    /// ancestor of this process goes first. Asking whether the process `known` still holds it is
    /// cheaper.
    fn holder(&self, key: &Key, known: Option<u32>) -> Option<Holder>;

    /// Returns the same if it is known without asking a cluster or reading the kernel's list. The
    /// main thread asks this, before a wait begins and before each message.
    fn holder_at_once(&self, _key: &Key) -> Option<Holder> {
        None
    }

    /// Returns how calls that this one runs inside of hold the lock, if they do.
    ///
    /// # Errors
    /// It takes too long to find out. A caller must not wait then: if they do, it would wait for its
    /// own ancestor.
    fn held_by_ancestors_as(&self, key: &Key) -> Result<Option<LockMode>> {
        let holder = self.holder(key, None).filter(|holder| holder.is_our_ancestor);
        let mode = |shares| if shares { LockMode::Shared } else { LockMode::Exclusive };
        Ok(holder.map(|holder| mode(holder.shares)))
    }

    /// Returns false if it is clear at once that ancestors of this process hold no locks.
    fn may_be_held_by_ancestors(&self) -> bool {
        true
    }

    /// Returns what ancestors of this process hold in this store. This can take long.
    ///
    /// # Errors
    /// It takes too long to find out.
    fn held_by_ancestors(&self) -> Result<Vec<Subject>>;

    /// Returns where a person finds the lock.
    fn location(&self, key: &Key) -> PathBuf;

    /// Returns the hosts whose callers these locks exclude.
    ///
    /// On one host, the kernel releases a caller's locks when it ends. On several, a caller that
    /// ends has to give back what it holds, or others wait until that runs out.
    fn scope(&self) -> Scope;

    /// Distinguishes a lock that was held until a caller's time was up from a store that is silent.
    ///
    /// # Errors
    /// The store does not answer, so nobody can say whether the lock is held.
    fn is_answering(&self) -> Result<()> {
        Ok(())
    }

    /// Gives back what the store keeps elsewhere for this process, with all its locks. No more are
    /// taken.
    fn close(&self) {}
}

/// How a try to take a lock ended.
pub enum Try {
    /// This process holds the lock.
    Held(Box<dyn Held>),
    /// Another process holds it.
    Busy(Before),
}

/// What is known of the last build under a lock that is busy. This caller did not wait for that
/// build, and does not share its failure.
pub enum Before {
    /// It failed, or there is no failure.
    Known(Option<FailedBuild>),
    /// The lock file could not be read.
    Unknown,
}

impl Try {
    /// Returns the lock.
    pub fn held(self) -> Option<Box<dyn Held>> {
        match self {
            Try::Held(lock) => Some(lock),
            Try::Busy(_) => None,
        }
    }
}

/// Looks at several locks at once, and waits for any of them.
pub trait Several: Send + Sync {
    /// Returns which of these locks are held, without taking any. The keys are of one kind.
    ///
    /// # Errors
    /// The store cannot be used, or cannot do this.
    fn held_among(&self, _keys: &[Key]) -> Result<Vec<Key>> {
        bail!("this store has no slots");
    }

    /// Returns which of these locks ancestors of this process hold. The keys are of one kind.
    ///
    /// # Errors
    /// As for [`Locks::held_by_ancestors_as`].
    fn held_by_ancestors_among(&self, _keys: &[Key]) -> Result<Vec<Key>> {
        Ok(Vec::new())
    }

    /// Waits without polling until nobody holds one of `watched`, or until `wanted` is ours.
    ///
    /// # Errors
    /// The store cannot be used, or cannot do this.
    fn wait_for_any(&self, _watched: &[Key], _wanted: Option<&Key>) -> Result<Woken> {
        bail!("this store has no slots");
    }
}

/// What ended a wait for any of several locks.
pub enum Woken {
    /// The lock that was wanted is ours.
    Held(Box<dyn Held>),
    /// The watched lock with this number is free, or was when we looked.
    Free(usize),
}

/// Turns a note into its successor.
type Change<'a> = dyn FnMut(Option<&[u8]>) -> Option<Vec<u8>> + 'a;

/// Keeps notes for later callers: a line under each key.
pub trait Notes: Send + Sync {
    /// Returns the line under this key, if there is one and it can be read.
    fn note(&self, key: &Key) -> Option<Vec<u8>>;

    /// Calls `visit` with each line under keys of one kind, by its folder's name. Anybody can make
    /// them too many to keep them all.
    ///
    /// # Errors
    /// The store cannot be read.
    fn each_note(&self, folder: &str, visit: &mut dyn FnMut(&[u8])) -> Result<()>;

    /// Replaces the line `before` by `after`. Returns false if `before` is no longer there.
    ///
    /// # Errors
    /// The line cannot be written.
    fn replace_note(&self, key: &Key, before: Option<&[u8]>, after: Option<&[u8]>) -> Result<bool>;

    /// Changes the line under this key, without losing what another caller changes at the same
    /// time: `change` may be called several times, each time with the latest line, until nobody
    /// has come in between. It returns `None` to leave the line as it is.
    ///
    /// # Errors
    /// The line cannot be written.
    fn update_note(&self, key: &Key, change: &mut Change<'_>) -> Result<()> {
        /// So many changes in between are not an accident.
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let before = self.note(key);
            let Some(after) = change(before.as_deref()) else { return Ok(()) };
            if self.replace_note(key, before.as_deref(), Some(&after))? {
                return Ok(());
            }
        }
        bail!("{} is changed as fast as it is read", key.subject())
    }
}

/// Shows and tidies up what is in a store.
pub trait Inspect: Send + Sync {
    /// Returns all locks that are held, as far as that is known for certain, sorted by what they
    /// protect. Takes none.
    ///
    /// # Errors
    /// The store cannot be read.
    fn held(&self) -> Result<Overview>;

    /// Removes what is left of locks that nobody holds or waits for, and notes that are empty.
    ///
    /// # Errors
    /// The store cannot be read or changed.
    fn prune(&self) -> Result<Pruned>;

    /// Returns the lock as a file that any program can lock with flock(2). Creates the file.
    ///
    /// # Errors
    /// The file cannot be opened or created, or this store has no files.
    fn file(&self, key: &Key) -> Result<PathBuf>;
}

/// A lock that this process holds. Dropping it without [`Held::release`] leaves it to the processes
/// that inherited it.
pub trait Held: Send {
    /// Returns what the lock protects.
    fn subject(&self) -> &Subject;

    /// Writes into the lock that this process holds it now, for people to read. A failure to do so
    /// is not an error.
    fn record(&self);

    /// Returns the result of the last build under the lock, if that failed. After
    /// [`Held::record`] it is gone.
    fn last_failure(&self) -> Option<FailedBuild>;

    /// Returns why the lock may no longer exclude others, if so.
    fn lost(&self) -> Option<String>;

    /// Returns how the lock is held.
    fn mode(&self) -> LockMode;

    /// Turns an exclusive lock into a shared one. Returns false if another process has taken it in
    /// between, so that this one no longer holds it.
    ///
    /// # Errors
    /// The store cannot be used; the lock is no longer held.
    fn share(&mut self) -> Result<bool>;

    /// Returns the descriptors that keep the lock held in a child that inherits them. Several locks
    /// may have one in common.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Returns when the lock runs out, if it has to be renewed.
    fn expiry(&self) -> Option<Arc<Expiry>> {
        None
    }

    /// Returns a number larger than that of all earlier holders, for systems that refuse what comes
    /// from a caller that has lost the lock. A nested call has its outer call's number.
    fn fence(&self) -> Option<i64> {
        None
    }

    /// Removes the record, leaves `failure` in its place, and unlocks: all copies of the
    /// descriptor, also those in a daemon that the build left behind. What the lock protects may
    /// stay in the record where others still share the lock.
    fn release(self: Box<Self>, failure: Option<&FailedBuild>);
}

/// Why a lock could not be taken just now, where another try may succeed.
#[derive(Debug)]
pub struct Passing(pub String);

impl std::fmt::Display for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Passing {}

/// Locks that are held.
pub struct Overview {
    /// Those that are known.
    pub held: Vec<HeldLock>,
    /// Why there may be others.
    pub incomplete: Option<anyhow::Error>,
}

/// What is known of a lock that is held. Of a shared lock there is one for each holder.
#[derive(Debug, Serialize)]
pub struct HeldLock {
    /// The canonical tag, if the lock protects an image and a holder has said so.
    pub tag: Option<String>,
    /// The name, if it is a named lock and a holder has said so.
    pub name: Option<String>,
    /// The id, if it protects a build cache and a holder has said so.
    pub cache: Option<String>,
    /// The number, if it is a slot and its holder has said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u16>,
    /// The lock file, or the address of a lock that has no file.
    #[serde(serialize_with = "as_text")]
    pub lock: PathBuf,
    /// Its holder; what is unknown is null.
    pub holder: Holder,
    /// Whether others may hold it, too.
    pub shared: bool,
    /// How many callers wait for it. They are counted with the first of several holders, so that
    /// the numbers can be added up.
    pub waiters: usize,
    /// For slots, the callers that wait, with the first slot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Holder>,
}

impl HeldLock {
    /// Describes a lock that one process holds alone, and that nobody waits for.
    pub(super) fn of(holder: Holder, subject: Option<&Subject>, lock: PathBuf) -> Self {
        HeldLock {
            tag: subject.and_then(Subject::tag).map(str::to_owned),
            name: subject.and_then(Subject::name).map(str::to_owned),
            cache: subject.and_then(Subject::cache).map(str::to_owned),
            slot: subject.and_then(Subject::slot),
            lock,
            holder,
            shared: false,
            waiters: 0,
            waiting: Vec::new(),
        }
    }
}

/// Sorts locks by what they protect, and counts the waiters in a turnstile with the lock behind it.
pub(super) fn in_order(
    mut held: Vec<HeldLock>,
    turnstiles: Vec<(PathBuf, usize)>,
) -> Vec<HeldLock> {
    for (behind, waiters) in turnstiles {
        if let Some(first) = held.iter_mut().find(|lock| lock.lock == behind) {
            first.waiters += waiters;
        }
    }
    held.sort_by_cached_key(|it| {
        (it.slot, it.tag.clone(), it.name.clone(), it.cache.clone(), it.lock.clone())
    });
    held
}

/// JSON knows only text: other bytes in a path are shown as U+FFFD.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What [`Inspect::prune`] did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pruned {
    /// How many locks' remains it removed.
    pub removed: usize,
    /// How many files of other users it may not remove.
    pub others: usize,
}
