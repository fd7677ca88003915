//! Looking at several lock files at once, and waiting for any of them.
//!
//! The kernel lets a thread wait for one lock only. So each lock is waited for by a small process of
//! its own, with a descriptor that this process has, too: a lock that the small process is given is
//! ours at once. The first one that ends wakes us, and the others are killed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use fs2::FileExt as Flock;

use super::super::kernel::AncestorsLocks;
use super::super::key::{Key, LockMode};
use super::super::store::{Locks, Several, Woken};
use super::folder::{FileStore, LOCK, entries};
use super::guard::{Guard, byte_of};
use super::held::{LockFile, would_block};
use super::open::{NotALock, open_existing};
use crate::duration::Deadline;
use crate::spawn;

impl Several for FileStore {
    fn held_among(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let Some(files) = Files::of(self, keys)? else { return Ok(Vec::new()) };
        let is_held = |key: &&Key| {
            let path = key.relative_path();
            // The byte is held even if the lock file was removed.
            files.guard.as_ref().is_some_and(|guard| guard.is_held(&path))
                || files.contain(&path)
                    && match open_existing(&files.folder, path.file_name().unwrap_or_default()) {
                        Ok(file) | Err(NotALock::Linked(file)) => is_locked(&file),
                        // Whoever tries to take it finds out more.
                        Err(_) => false,
                    }
        };
        Ok(keys.iter().filter(is_held).cloned().collect())
    }

    fn held_by_ancestors_among(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let ancestors = AncestorsLocks::look();
        self.complete(&ancestors)?;
        if ancestors.is_empty() {
            return Ok(Vec::new());
        }
        let Ok(Some(files)) = Files::of(self, keys) else { return Ok(Vec::new()) };
        let guard = files.guard.as_ref();
        let guard = guard.and_then(|guard| guard.stat().ok());
        let is_theirs = |key: &&Key| {
            let path = key.relative_path();
            let has_byte = |guard| ancestors.on_byte(guard, byte_of(&path)).is_some();
            guard.as_ref().is_some_and(has_byte)
                || files.contain(&path) && self.found_by(&ancestors, key).is_some()
        };
        Ok(keys.iter().filter(is_theirs).cloned().collect())
    }

    fn wait_for_any(&self, watched: &[Key], wanted: Option<&Key>) -> Result<Woken> {
        if let ([], Some(wanted)) = (watched, wanted) {
            let no_bound = Deadline::within(None);
            return self.acquire(wanted, LockMode::Exclusive, no_bound).map(Woken::Held);
        }
        loop {
            let mut files = Vec::new();
            for key in watched.iter().chain(wanted) {
                files.push(self.open_to_wait(key)?);
            }
            let wait = |(number, lock): (usize, &LockFile)| wait_for(lock, number < watched.len());
            let first = spawn::first_to_end(files.len(), |number| wait((number, &files[number])))
                .context("cannot wait for a free slot")?;
            if first < watched.len() {
                return Ok(Woken::Free(first));
            }
            let (Some(lock), Some(wanted)) = (files.pop(), wanted) else { continue };
            // A helper may have been killed before it had the lock.
            let ours = lock.is_in_place() && is_ours(&lock)?;
            if ours {
                return Ok(Woken::Held(self.held(lock, wanted, LockMode::Exclusive)));
            }
        }
    }
}

/// What there is of locks of one kind.
struct Files {
    guard: Option<Guard>,
    folder: OwnedFd,
    names: Vec<OsString>,
}

impl Files {
    /// Returns none if there are no keys.
    fn of(store: &FileStore, keys: &[Key]) -> Result<Option<Self>> {
        let Some(first) = keys.first() else { return Ok(None) };
        let guard = store.own_guard(first)?;
        let folder = store.folder_of(first)?;
        let entries = entries(&folder, &store.path.join(first.folder()), LOCK)?;
        let names = entries.into_iter().map(|entry| entry.name).collect();
        Ok(Some(Files { guard, folder, names }))
    }

    fn contain(&self, path: &Path) -> bool {
        self.names.iter().any(|name| Some(name.as_os_str()) == path.file_name())
    }
}

impl FileStore {
    /// Opens a lock file and its byte of the guard. Waits while another process has a lease on it,
    /// which the kernel ends.
    fn open_to_wait(&self, key: &Key) -> Result<LockFile> {
        const PAUSE: Duration = Duration::from_millis(50);
        loop {
            if let Some(lock) = self.open_unless_leased(key)? {
                return Ok(LockFile { guard: self.own_guard(key)?, ..lock });
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Waits for a lock: until it can be shared, or until it is ours alone. Makes system calls only.
fn wait_for(lock: &LockFile, is_watched: bool) -> io::Result<()> {
    type Take = (fn(&File) -> io::Result<()>, LockMode);
    let (flock, mode): Take = match is_watched {
        true => (Flock::lock_shared, LockMode::Shared),
        false => (Flock::lock_exclusive, LockMode::Exclusive),
    };
    loop {
        match flock(&lock.file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    // If the lock file was removed while it was held, its holder still has the byte.
    lock.guard.as_ref().map_or(Ok(()), |guard| guard.lock(mode).map_err(io::Error::from))
}

/// Returns whether this descriptor has its lock alone. If it has, taking it again changes nothing.
fn is_ours(lock: &LockFile) -> Result<bool> {
    match Flock::try_lock_exclusive(&lock.file) {
        Err(error) if would_block(&error) => return Ok(false),
        locked => locked.map_err(|error| lock.cannot(&error))?,
    }
    match &lock.guard {
        Some(guard) => Ok(guard.try_lock(LockMode::Exclusive)?),
        None => Ok(true),
    }
}

fn is_locked(file: &File) -> bool {
    let tried = Flock::try_lock_shared(file);
    let is_locked = tried.as_ref().is_err_and(would_block);
    if tried.is_ok() {
        _ = Flock::unlock(file);
    }
    is_locked
}
