//! Showing the locks in a lock folder, and tidying it up.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fs2::FileExt as Flock;
use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

use super::super::holder;
use super::super::kernel::KernelLocks;
use super::super::key::{BUILD_SLOTS, Key};
use super::super::store::{HeldLock, Inspect, Overview, Pruned, in_order};
use super::folder::{Entry, FOLDERS, FileStore, LOCK, NOTE, entries};
use super::open::{NotALock, is_named, links, open_existing};
use crate::record::{Holder, read_record};
use crate::subject::Subject;

impl Inspect for FileStore {
    fn held(&self) -> Result<Overview> {
        let locks = match KernelLocks::read() {
            Ok(locks) => locks,
            Err(why) => {
                let held = self.held_by_record()?;
                let why =
                    why.context("not all locks are shown, only those of your builds and root's");
                return Ok(Overview { held, incomplete: Some(why) });
            }
        };
        let mut held = Vec::new();
        let mut turnstiles = Vec::new();
        let mut waiting = Vec::new();
        self.each_file(&locks.inodes_held(), |path, file, stat| {
            if is_in(&path, BUILD_SLOTS) && !is_lock_itself(&path) {
                // Everybody passes the door, and has a slot's bell with the slot.
                if is_line(&path) {
                    waiting.extend(waiters_in_line(&locks, file, stat));
                }
                return;
            }
            if let Some(behind) = behind_turnstile(&path) {
                // Callers in it wait for the lock behind it, and are counted there.
                turnstiles.push((behind, locks.waiters(stat, file)));
                return;
            }
            let subject = holder::read_subject(file, &path);
            let subject = subject.as_ref();
            let record = read_record(file);
            let shared = locks.is_shared(stat, file);
            let mut waiters = locks.waiters(stat, file);
            let mut holders = locks.holders(stat, file);
            // Of several that share it, most is known of the one in the record.
            holders.sort_by_key(|&pid| record.as_ref().is_none_or(|record| record.pid != pid));
            held.extend(holders.into_iter().map(|pid| {
                let holder = holder::describe(pid, record.clone(), stat);
                let waiters = std::mem::take(&mut waiters);
                HeldLock { shared, waiters, ..HeldLock::of(holder, subject, path.clone()) }
            }));
        })?;
        let mut held = in_order(held, turnstiles);
        if let Some(first) = held.iter_mut().find(|lock| lock.slot.is_some()) {
            first.waiters = waiting.len();
            first.waiting = waiting;
        }
        Ok(Overview { held, incomplete: None })
    }

    fn prune(&self) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for name in FOLDERS {
            let Some(folder) = self.existing_folder(name)? else { continue };
            let path = self.path.join(name);
            for entry in entries(&folder, &path, LOCK)? {
                match remove(&folder, &path, &entry, |_| true)? {
                    Removal::Removed => pruned.removed += 1,
                    Removal::NotAllowed => pruned.others += 1,
                    Removal::Left => {}
                }
            }
            let is_empty = |file: &File| file.metadata().is_ok_and(|it| it.len() == 0);
            for entry in entries(&folder, &path, NOTE)? {
                if let Removal::NotAllowed = remove(&folder, &path, &entry, is_empty)? {
                    pruned.others += 1;
                }
            }
        }
        Ok(pruned)
    }

    fn file(&self, key: &Key) -> Result<PathBuf> {
        self.open_file(key)?;
        self.guard(key)?;
        Ok(self.path_of(key))
    }
}

impl FileStore {
    /// Returns the locks whose record names a process that has the lock, as its descriptors show. This
    /// needs no list of all locks.
    fn held_by_record(&self) -> Result<Vec<HeldLock>> {
        const WITHIN: Duration = Duration::from_secs(10);
        let until = Instant::now() + WITHIN;
        let mut held = Vec::new();
        for name in FOLDERS {
            let Some(folder) = self.existing_folder(name)? else { continue };
            let path = self.path.join(name);
            for entry in entries(&folder, &path, LOCK)? {
                let path = path.join(&entry.name);
                if !is_lock_itself(&path) || Instant::now() >= until {
                    continue;
                }
                let Ok(file) = open_existing(&folder, &entry.name) else { continue };
                let Some(holder) = holder::find_recorded_patiently(&file) else { continue };
                held.push(HeldLock::of(holder, holder::read_subject(&file, &path).as_ref(), path));
            }
        }
        Ok(in_order(held, Vec::new()))
    }
}

enum Removal {
    Removed,
    /// The file is needed, or is gone.
    Left,
    /// The file is another user's.
    NotAllowed,
}

/// Removes a file that nobody has locked and that is idle.
fn remove(
    folder: &OwnedFd,
    path: &Path,
    entry: &Entry,
    is_idle: impl Fn(&File) -> bool,
) -> Result<Removal> {
    let shown = path.join(&entry.name);
    let (file, is_linked) = match open_existing(folder, &entry.name) {
        Ok(file) => (file, false),
        Err(NotALock::Linked(file)) => (file, true),
        Err(NotALock::Missing | NotALock::Unlinked) => return Ok(Removal::Left),
        Err(why) => {
            tracing::warn!("{}: not removed: {why}", shown.display());
            return Ok(Removal::Left);
        }
    };
    // A waiter has the file open. Once it has locked it, it finds that the name leads to another
    // file, and opens that.
    let is_held = Flock::try_lock_exclusive(&file).is_err();
    if is_held && is_linked {
        tracing::warn!(
            "{}: not removed: it has {} hard links, and another process holds it",
            shown.display(),
            links(&file)
        );
    }
    // The content of a note with other names does not count.
    if is_held || !(is_linked || is_idle(&file)) || !is_named(&file, folder, &entry.name) {
        return Ok(Removal::Left);
    }
    match rustix::fs::unlinkat(folder, &*entry.name, AtFlags::empty()) {
        Ok(()) => Ok(Removal::Removed),
        Err(Errno::PERM | Errno::ACCESS) => Ok(Removal::NotAllowed),
        Err(Errno::NOENT) => Ok(Removal::Left),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", shown.display())),
    }
}

fn is_in(path: &Path, folder: &str) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with(folder))
}

/// Returns whether a file is a lock itself, and not its turnstile or bell.
fn is_lock_itself(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default().as_encoded_bytes();
    !name.ends_with(b".turnstile") && !name.ends_with(b".bell")
}

/// Returns whether callers stand in line for a slot behind this file, which is not the door.
fn is_line(path: &Path) -> bool {
    let door = Key::new(Subject::Slot(0)).turnstile().relative_path();
    behind_turnstile(path).is_some() && path.file_name() != door.file_name()
}

/// Returns the callers that stand in line behind this file, the first one first.
fn waiters_in_line(locks: &KernelLocks, file: &File, stat: &Stat) -> Vec<Holder> {
    let first = locks.holders(stat, file);
    let record = read_record(file);
    let firsts = first.iter().map(|&pid| holder::describe(pid, record.clone(), stat));
    let others = locks.waiting(stat, file);
    firsts.chain(others.iter().map(|&pid| holder::describe_waiter(pid))).collect()
}

/// Returns the lock behind the turnstile with this path, if it is one.
fn behind_turnstile(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_suffix(".turnstile.lock")?;
    Some(path.with_file_name(format!("{name}.lock")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::key::LockMode;
    use super::super::super::store::Locks as _;
    use super::*;
    use crate::duration::Deadline;

    #[test]
    fn locks_of_our_processes_are_found_without_the_kernels_list() {
        let folder = tempfile::tempdir().unwrap();
        let ourselves = || Holder::ourselves("true".into(), "b1".into());
        let path = folder.path().join("locks");
        let store = FileStore::open(&path, Arc::new(ourselves), &[]).unwrap();
        let now = Deadline::within(None);
        let take = |name: &str| {
            let key = Key::new(Subject::Named(name.into()));
            store.try_acquire(&key, LockMode::Exclusive, now).unwrap().held().unwrap()
        };
        let (first, second) = (take("a"), take("b"));
        first.record();
        second.record();
        second.release(None);
        let held = store.held_by_record().unwrap();
        let names: Vec<_> = held.iter().map(|lock| lock.name.as_deref()).collect();
        assert_eq!(names, [Some("a")]);
        assert_eq!(held[0].holder.pid, std::process::id());
        first.release(None);
        assert_eq!(store.held_by_record().unwrap().len(), 0);
    }
}
