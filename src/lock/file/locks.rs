//! Taking `flock(2)` locks, with a byte of the guard, and waiting for them.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
// Since Rust 1.89, std's File has methods of the same names: fs2's are called by the trait's name.
use fs2::FileExt as Flock;

use super::super::holder;
use super::super::kernel::AncestorsLocks;
use super::super::key::{Key, LockMode};
use super::super::store::{Before, Held, Locks, Passing, Try};
use super::folder::FileStore;
use super::guard::{self, Guard};
use super::held::{LockFile, passes, would_block};
use super::open::{VANISHED_MAX, discard, is_foreign, is_named, is_out_of_reach, may_be_foreign};
use crate::duration::Deadline;
use crate::record::{FailedBuild, Holder, is_overgrown};
use crate::scope::Scope;
use crate::subject::Subject;

/// How a try to lock a file ended.
pub(super) enum Locked {
    Ours(LockFile),
    Busy(Before),
}

impl Locked {
    pub(super) fn ours(self) -> Option<LockFile> {
        match self {
            Locked::Ours(lock) => Some(lock),
            Locked::Busy(_) => None,
        }
    }
}

fn busy(lock: &LockFile) -> Locked {
    Locked::Busy(Before::Known(lock.last_failure()))
}

impl Locks for FileStore {
    fn check(&self, key: &Key, _deadline: Deadline) -> Result<()> {
        // A lease on it does not keep us from waiting.
        self.open_unless_leased(key)?;
        self.guard(key)?;
        if key.subject().tag().is_some() {
            return Ok(());
        }
        self.open_unless_leased(&key.turnstile())?;
        if key.subject().cache().is_none() {
            return Ok(());
        }
        let memory = key.memory();
        // The lock can be taken without it.
        if let Some(Err(error)) = self.is_there(&memory).then(|| self.open_file(&memory)) {
            tracing::warn!("{}: it cannot be remembered that it is warm: {error:#}", key.subject());
        }
        Ok(())
    }

    fn try_acquire(&self, key: &Key, mode: LockMode, _deadline: Deadline) -> Result<Try> {
        Ok(match self.try_lock(key, mode)? {
            Locked::Ours(lock) => Try::Held(self.held(lock, key, mode)),
            Locked::Busy(before) => Try::Busy(before),
        })
    }

    fn wait_released(&self, key: &Key, deadline: Deadline) -> Result<Option<FailedBuild>> {
        let lock = self.block(key, deadline, Flock::lock_shared)?;
        let result = lock.last_failure();
        Flock::unlock(&lock.file).map_err(|error| lock.cannot(&error))?;
        Ok(result)
    }

    fn acquire(&self, key: &Key, mode: LockMode, deadline: Deadline) -> Result<Box<dyn Held>> {
        let flock = match mode {
            LockMode::Exclusive => Flock::lock_exclusive,
            LockMode::Shared => Flock::lock_shared,
        };
        loop {
            let mut lock = self.block(key, deadline, flock)?;
            if !lock.is_in_place() || self.is_replaced(&lock, key, mode)? {
                continue;
            }
            self.outer.give_back(key);
            if let Some(guard) = self.guard(key)? {
                let locked = match guard.try_lock(mode) {
                    Ok(false) if !lock.is_guarded_by(&guard) => {
                        self.guard.forget();
                        continue;
                    }
                    Ok(false) => {
                        tracing::warn!(
                            "{}: the lock is held by way of the guard alone: the lock file was \
                             removed while it was held, or the guard itself was locked, or a script \
                             released the lock before a call inside of it has ended; waiting",
                            lock.path.display()
                        );
                        guard.lock(mode)
                    }
                    tried => tried.map(drop),
                };
                locked.map_err(|error| lock.cannot(&error.into()))?;
                lock.guard = Some(guard);
            }
            if lock.is_in_place() {
                return Ok(self.held(lock, key, mode));
            }
            self.guard.forget();
        }
    }

    fn holder(&self, key: &Key, known: Option<u32>) -> Option<Holder> {
        let lock = self.open_file(key).ok()?;
        holder::find(&lock.file, known, self.held_by_ancestors_as(key).unwrap_or_default())
    }

    fn holder_at_once(&self, key: &Key) -> Option<Holder> {
        holder::find_recorded(&self.open_file(key).ok()?.file)
    }

    fn held_by_ancestors_as(&self, key: &Key) -> Result<Option<LockMode>> {
        let guard = self.guard(key).ok().flatten();
        let stat = guard.as_ref().and_then(|guard| Some((guard.stat().ok()?, guard.byte)));
        let ancestors = match &stat {
            Some((stat, byte)) => AncestorsLocks::look_for_byte(stat, *byte),
            None => AncestorsLocks::look(),
        };
        // Few calls run inside of another.
        let found = (!ancestors.is_empty()).then(|| self.found_by(&ancestors, key)).flatten();
        let Some(Found { mode, byte }) = found else {
            return self.complete(&ancestors).map(|()| None);
        };
        if let Some(byte) = byte {
            self.outer.keep(key, byte);
        }
        Ok(Some(mode))
    }

    fn may_be_held_by_ancestors(&self) -> bool {
        let ancestors = AncestorsLocks::look();
        !ancestors.is_empty() || !ancestors.are_all()
    }

    fn held_by_ancestors(&self) -> Result<Vec<Subject>> {
        let ancestors = AncestorsLocks::look();
        self.complete(&ancestors)?;
        let mut subjects = Vec::new();
        // The folder is read only if an ancestor holds any lock at all.
        let read = self.each_file(&ancestors.inodes(), |path, file, stat| {
            // The record may be that of another process that shares the lock.
            if ancestors.on(stat).is_some() {
                subjects.extend(holder::read_subject(file, &path));
            }
        });
        if let Err(error) = read {
            tracing::debug!("cannot see which locks our ancestors hold: {error:#}");
        }
        subjects.retain(|subject| self.found_by(&ancestors, &Key::new(subject.clone())).is_some());
        Ok(subjects)
    }

    fn location(&self, key: &Key) -> PathBuf {
        self.path_of(key)
    }

    fn scope(&self) -> Scope {
        Scope::ThisHost
    }
}

impl FileStore {
    pub(super) fn held(&self, lock: LockFile, key: &Key, mode: LockMode) -> Box<dyn Held> {
        lock.held(key, mode, self.ourselves.clone(), self.outer.take(key.subject()))
    }

    /// Locks a file, or says at once that it is busy.
    pub(super) fn try_lock(&self, key: &Key, mode: LockMode) -> Result<Locked> {
        let attempt = match mode {
            LockMode::Exclusive => Flock::try_lock_exclusive,
            LockMode::Shared => Flock::try_lock_shared,
        };
        for _ in 0..VANISHED_MAX {
            let Some(mut lock) = self.open_unless_leased(key)? else {
                return Ok(Locked::Busy(Before::Unknown));
            };
            match attempt(&lock.file) {
                Ok(()) => {}
                Err(error) if would_block(&error) => return Ok(busy(&lock)),
                Err(error) if passes(&error) => {
                    return Err(Passing(lock.cannot(&error).to_string()).into());
                }
                Err(error) => return Err(lock.cannot(&error)),
            }
            if self.is_replaced(&lock, key, mode)? {
                continue;
            }
            self.outer.give_back(key);
            lock.guard = self.guard(key)?;
            match lock.guard.as_ref().map_or(Ok(true), |guard| guard.try_lock(mode)) {
                Ok(true) if lock.is_in_place() => return Ok(Locked::Ours(lock)),
                Ok(false) if lock.is_in_place() => return Ok(busy(&lock)),
                // It was unlinked before we had it, so it excludes nobody.
                Ok(_) => self.guard.forget(),
                Err(error) => return Err(lock.cannot(&error.into())),
            }
        }
        Err(anyhow!(
            "{} vanishes whenever it is locked; something is removing it",
            self.path_of(key).display()
        ))
    }

    /// Removes a file that we alone have locked, where root must have one of its own, and a note that
    /// is overgrown. A waiter finds that it is no longer in place. Returns whether the file must be
    /// opened anew.
    ///
    /// An overgrown lock file stays, without a record: a script that waits for it by its path would
    /// not notice that it was removed.
    fn is_replaced(&self, lock: &LockFile, key: &Key, mode: LockMode) -> Result<bool> {
        let stat = rustix::fs::fstat(&lock.file)?;
        let is_useless = key.is_memory() && is_overgrown(&lock.file);
        // Others may hold a shared lock beside us, and the guard has to be enough.
        if mode == LockMode::Shared || !(is_useless || may_be_foreign(&stat)) {
            return Ok(false);
        }
        let Ok(place) = lock.place() else { return Ok(true) };
        if !is_useless && !is_foreign(&stat, &place.folder) {
            return Ok(false);
        }
        if is_named(&lock.file, &place.folder, place.name) {
            // Where that is not possible, the guard has to be enough.
            return Ok(discard(&lock.file, &place.folder, place.name).is_ok());
        }
        Ok(true)
    }

    /// Opens the file and waits for a lock on it. Where that fails for a cause that may pass, it
    /// tries again until shortly before the deadline, so that a lasting cause is reported at the
    /// end.
    fn block(
        &self,
        key: &Key,
        deadline: Deadline,
        lock: impl Fn(&File) -> std::io::Result<()>,
    ) -> Result<LockFile> {
        const FIRST_PAUSE: Duration = Duration::from_millis(10);
        const LONGEST_PAUSE: Duration = Duration::from_secs(10);
        const SHORTLY: Duration = Duration::from_millis(30);
        let mut pause = FIRST_PAUSE;
        let mut is_leased = false;
        loop {
            let left = deadline.left().map(|left| left.saturating_sub(SHORTLY));
            match self.open_unless_leased(key)? {
                Some(file) => match lock(&file.file) {
                    Ok(()) => return Ok(file),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) if !passes(&error) || left.is_some_and(|left| left.is_zero()) => {
                        return Err(file.cannot(&error));
                    }
                    Err(error) => {
                        tracing::warn!("{}; trying again", file.cannot(&error));
                    }
                },
                // Like a lock that is held, it is waited for until the deadline.
                None if !std::mem::replace(&mut is_leased, true) => tracing::warn!(
                    "{}: another process has a lease on it (fcntl(2), F_SETLEASE); waiting for it",
                    self.path_of(key).display()
                ),
                None => {}
            }
            let left = left.filter(|left| !left.is_zero());
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            std::thread::sleep(left.map_or(jittered, |left| left.min(jittered)));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Fails if there was no time to see all locks of our ancestors.
    pub(super) fn complete(&self, ancestors: &AncestorsLocks) -> Result<()> {
        if ancestors.are_all() {
            return Ok(());
        }
        bail!(
            "cannot tell whether this call runs inside of one that has its locks, and would wait for \
             that one: it takes too long to see what the processes above it have locked, because \
             somebody holds very many locks on {}, or they have very many files open",
            self.path.join(guard::NAME).display()
        )
    }

    /// Returns how ancestors hold this lock, if they do.
    ///
    /// The byte of the guard belongs to this lock alone. The lock file proves less. Another user may
    /// have moved a file here that an ancestor holds: another lock's file, or one of the ancestor's
    /// own. And the ancestor may release it while we build. So it must be a file that no other user
    /// can rename, and this call must get a share of the byte.
    pub(super) fn found_by(&self, ancestors: &AncestorsLocks, key: &Key) -> Option<Found> {
        let on_file = || {
            let stat = rustix::fs::fstat(self.open_file(key).ok()?.file).ok()?;
            Some((ancestors.on(&stat)?, stat))
        };
        // The share must outlive the locks that this process takes itself.
        let Some(guard) = self.own_guard(key).ok()? else {
            return on_file().map(|(mode, _)| Found { mode, byte: None });
        };
        let stat = guard.stat().ok()?;
        if let Some(mode) = ancestors.on_byte(&stat, guard.byte) {
            return Some(Found { mode, byte: None });
        }
        // A script that `buildlock path` told the file has locked it alone. No script is told the
        // files of caches and slots, so an ancestor that has one also has the byte: of a guard that
        // was removed since.
        let subject = key.subject();
        let may_be_a_scripts = subject.tag().is_some() || subject.name().is_some();
        if !may_be_a_scripts && !ancestors.have_byte(guard.byte) {
            return None;
        }
        let (mode, stat) = on_file()?;
        let is_proof = is_out_of_reach(&stat, &self.folder_of(key).ok()?)
            // A caller that has locked the file which was here before has the byte alone.
            && guard.try_lock(LockMode::Shared).ok()?;
        is_proof.then_some(Found { mode, byte: Some(guard) })
    }
}

/// How an ancestor holds a lock.
pub(super) struct Found {
    mode: LockMode,
    /// The guard with our share of the byte, if the lock file alone shows it.
    byte: Option<Guard>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::super::kernel::KernelLocks;
    use super::super::super::{Inspect as _, Store, Turn, take_in_turn};
    use super::*;
    use crate::record::write_line;

    fn store() -> (tempfile::TempDir, FileStore, Key) {
        let folder = tempfile::tempdir().unwrap();
        let store =
            FileStore::open(&folder.path().join("locks"), Arc::new(Holder::default), &[]).unwrap();
        (folder, store, Key::new(Subject::Cache("cargo".into())))
    }

    #[test]
    fn who_slips_in_while_a_lock_becomes_shared_is_noticed() {
        let (_folder, store, key) = store();
        let tried = store.try_acquire(&key, LockMode::Exclusive, Deadline::within(None));
        let mut held = tried.unwrap().held().unwrap();
        // What the kernel may do first when a lock becomes another (flock(2)).
        let copy = held.descriptors().pop().unwrap().try_clone_to_owned().unwrap();
        Flock::unlock(&File::from(copy)).unwrap();
        let foreign = File::open(store.location(&key)).unwrap();
        Flock::try_lock_exclusive(&foreign).unwrap();
        assert!(!held.share().unwrap());
        Flock::unlock(&foreign).unwrap();
        assert!(held.share().unwrap());
        assert_eq!(held.mode(), LockMode::Shared);
        Flock::try_lock_shared(&foreign).unwrap();
    }

    #[test]
    fn lock_that_is_lost_while_it_becomes_shared_is_waited_for_again() {
        let (_folder, store, key) = store();
        let lock = store.location(&key);
        let store: Arc<dyn Store> = Arc::new(store);
        let waited_for = Arc::new(AtomicBool::new(false));
        let mut is_warm = false;
        let mut mode = || {
            if !std::mem::replace(&mut is_warm, true) {
                return Ok(LockMode::Exclusive);
            }
            // We have it for ourselves. A cleaner takes the file away, and a script is the first to
            // lock the next one, until somebody waits for it.
            std::fs::remove_file(&lock)?;
            let foreign = File::create_new(&lock)?;
            Flock::try_lock_exclusive(&foreign)?;
            let waited_for = Arc::clone(&waited_for);
            std::thread::spawn(move || {
                let stat = rustix::fs::fstat(&foreign).unwrap();
                while KernelLocks::read().unwrap().waiters(&stat, &foreign) == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                waited_for.store(true, Ordering::SeqCst);
                drop(foreign);
            });
            Ok(LockMode::Shared)
        };
        let no_bound = Deadline::within(None);
        let mut inside = |_| panic!("this is not a nested call");
        let subject = key.subject().clone();
        let turn = take_in_turn(&store, subject, no_bound, &mut mode, &mut inside).unwrap();
        let Turn::Held(held) = turn else { panic!("there is no bound") };
        assert!(waited_for.load(Ordering::SeqCst));
        assert_eq!((held.mode(), held.lost()), (LockMode::Shared, None));
        assert!(
            store
                .try_acquire(&key, LockMode::Exclusive, Deadline::within(None))
                .unwrap()
                .held()
                .is_none()
        );
        assert!(
            store
                .try_acquire(&key, LockMode::Shared, Deadline::within(None))
                .unwrap()
                .held()
                .is_some()
        );
    }

    #[test]
    fn record_is_not_believed_to_be_of_another_lock_than_the_one_it_stands_in() {
        let (_folder, store, key) = store();
        let path = store.file(&key).unwrap();
        let file = File::options().write(true).read(true).open(&path).unwrap();
        let write = |record: Holder| write_line(&file, Some(&record)).unwrap();
        let some = |text: &str| Some(text.to_owned());
        write(Holder { cache: some("cargo"), ..Holder::default() });
        assert_eq!(holder::read_subject(&file, &path).as_ref(), Some(key.subject()));
        let nested = store.location(&key.clone().nested());
        assert_eq!(holder::read_subject(&file, &nested).as_ref(), Some(key.subject()));
        for lie in [
            Holder { cache: some("npm"), ..Holder::default() },
            Holder { name: some("cargo"), ..Holder::default() },
            Holder { tag: some("env:abc"), cache: some("cargo"), ..Holder::default() },
            Holder::default(),
        ] {
            write(lie);
            assert_eq!(holder::read_subject(&file, &path), None);
        }
    }
}
