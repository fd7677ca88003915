//! The default store: `flock(2)` on files in a folder that all users of a machine share.
//!
//! The kernel releases such a lock when its last holder ends, however that comes to pass. This is
//! the only place that calls flock.

mod guard;
mod held;
mod open;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
// std's File has methods of the same names since Rust 1.89: fs2's are called by the trait's name.
use fs2::FileExt as Flock;
use rustix::fs::{AtFlags, CWD, Dir, Stat};
use rustix::io::Errno;

use self::guard::Guard;
use self::held::{LockFile, passes, would_block};
use self::open::{
    NotALock, create_file, find_folder, folder_error, is_foreign, is_named, is_out_of_reach, links,
    may_be_foreign, open_existing, open_lock_folder, open_or_create, real_path, warn_of_owner,
};
use super::holder::{self, Holder};
use super::kernel::{AncestorsLocks, KernelLocks};
use super::{
    CACHE_LOCKS, FailedBuild, Held, HeldLock, IMAGE_LOCKS, Key, LockMode, NAMED_LOCKS, Part,
    Passing, Pruned, Store, Subject, in_order,
};
use crate::duration::Deadline;

/// The folders of all kinds of locks.
const FOLDERS: [&str; 3] = [IMAGE_LOCKS, NAMED_LOCKS, CACHE_LOCKS];
/// How often a lock file may vanish under us before we say so: each time somebody else has just
/// removed it, so this many in a row are no accident.
const VANISHED_MAX: usize = 1000;
/// How long somebody else who writes what is remembered is waited for; he takes no time at all.
const WRITERS_GRACE: Duration = Duration::from_millis(500);

/// Lock files in one folder.
///
/// It keeps no descriptor of the folder: whoever comes later goes by its path, so that is what
/// counts, also where somebody has put another folder in its place meanwhile.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// Opens the lock folder, and creates it if there is none.
    ///
    /// # Errors
    /// It is no folder, or a symbolic link, or cannot be opened or created.
    pub fn open(path: &Path) -> Result<Self> {
        let path = real_path(path)?;
        warn_of_owner(&open_lock_folder(&path)?, &path);
        Ok(FileStore { path })
    }

    /// The lock folder, which need not be there.
    ///
    /// # Errors
    /// It is no folder, or a symbolic link, or cannot be opened.
    pub fn at(path: &Path) -> Result<Self> {
        let path = real_path(path)?;
        find_folder(CWD, path.as_os_str(), &path)?;
        Ok(FileStore { path })
    }

    /// Calls `visit` with each lock file whose inode is one of `inodes`.
    fn each_file(
        &self,
        inodes: &[u64],
        mut visit: impl FnMut(PathBuf, &File, &Stat),
    ) -> Result<()> {
        if inodes.is_empty() {
            return Ok(());
        }
        for folder in FOLDERS {
            let Some(folder_fd) = self.existing_folder(folder)? else { continue };
            let path = self.path.join(folder);
            for entry in entries(&folder_fd, &path, LOCK)? {
                if !inodes.contains(&entry.inode) {
                    continue;
                }
                // It may have been removed meanwhile, and then it is no lock file any more.
                let Ok(file) = open_existing(&folder_fd, &entry.name) else { continue };
                let Ok(stat) = rustix::fs::fstat(&file) else { continue };
                visit(path.join(&entry.name), &file, &stat);
            }
        }
        Ok(())
    }

    /// The folder for a lock, which is created if there is none.
    fn folder_of(&self, key: &Key) -> Result<OwnedFd> {
        let name = key.folder();
        let path = self.path.join(name);
        for _ in 0..VANISHED_MAX {
            let parent = open_lock_folder(&self.path)?;
            if let Some(folder) = open_or_create(&parent, OsStr::new(name), &path)? {
                return Ok(folder);
            }
        }
        Err(folder_error(&path, Errno::NOENT))
    }

    fn existing_folder(&self, name: &str) -> Result<Option<OwnedFd>> {
        match find_folder(CWD, self.path.as_os_str(), &self.path)? {
            Some(parent) => find_folder(&parent, OsStr::new(name), &self.path.join(name)),
            None => Ok(None),
        }
    }

    /// Opens the lock file and makes sure that it is one. Nothing is written before that.
    fn open_file(&self, key: &Key) -> Result<LockFile> {
        self.open_unless_leased(key)?.ok_or_else(|| {
            let path = self.location(key);
            Passing(format!("another process has a lease on {}", path.display())).into()
        })
    }

    /// The same; none while another process has a lease on it, which ends soon.
    fn open_unless_leased(&self, key: &Key) -> Result<Option<LockFile>> {
        let relative = key.relative_path();
        let name = relative.file_name().unwrap_or_default();
        let path = self.path.join(&relative);
        for _ in 0..VANISHED_MAX {
            // Anew each time: the folder, too, may be gone, or another.
            let folder = self.folder_of(key)?;
            match open_existing(&folder, name) {
                Ok(file) => return Ok(Some(LockFile { file, path, guard: None })),
                Err(NotALock::Missing) => match create_file(&folder, name) {
                    Ok(()) => {}
                    Err(Errno::NOENT) => {
                        tracing::debug!("{}: its folder has just been removed", path.display());
                    }
                    Err(error) => {
                        return Err(error).with_context(|| {
                            format!(
                                "cannot create the lock file {} (see --lock-dir)",
                                path.display()
                            )
                        });
                    }
                },
                Err(NotALock::Unlinked) => {}
                Err(NotALock::Leased) => return Ok(None),
                Err(NotALock::Linked(file)) => bail!(
                    "{} is not usable as a lock file: it has {} hard links, so it may be somebody \
                     else's file; 'buildlock prune' removes this name once nobody holds the lock",
                    path.display(),
                    links(&file)
                ),
                Err(NotALock::Failed(error)) => {
                    bail!(
                        "the lock file {} cannot be opened: {error} (see --lock-dir)",
                        path.display()
                    )
                }
                Err(NotALock::Because(why)) => bail!(
                    "{} is not usable as a lock file: {why}; remove it, or choose another folder with --lock-dir",
                    path.display()
                ),
            }
        }
        bail!(
            "the lock file {} vanishes as fast as it is made; something is removing it",
            path.display()
        )
    }

    /// Opens the guard for this lock. What is only remembered needs none.
    fn open_guard(&self, key: &Key) -> Result<Option<Guard>> {
        if key.part == Part::Memory {
            return Ok(None);
        }
        Guard::open(&self.path, &key.relative_path())
    }

    /// Locks a file, or says at once that it is busy.
    fn try_lock(&self, key: &Key, mode: LockMode) -> Result<Option<LockFile>> {
        let attempt = match mode {
            LockMode::Exclusive => Flock::try_lock_exclusive,
            LockMode::Shared => Flock::try_lock_shared,
        };
        for _ in 0..VANISHED_MAX {
            let Some(mut lock) = self.open_unless_leased(key)? else { return Ok(None) };
            match attempt(&lock.file) {
                Ok(()) => {}
                Err(error) if would_block(&error) => return Ok(None),
                Err(error) if passes(&error) => {
                    return Err(Passing(lock.cannot(&error).to_string()).into());
                }
                Err(error) => return Err(lock.cannot(&error)),
            }
            if self.is_replaced(&lock, mode)? {
                continue;
            }
            lock.guard = self.open_guard(key)?;
            match lock.guard.as_ref().map_or(Ok(true), |guard| guard.try_lock(mode)) {
                // Somebody unlinked it before we had it: it excludes nobody.
                Ok(true) if !lock.is_in_place() => {}
                Ok(true) => return Ok(Some(lock)),
                Ok(false) => return Ok(None),
                Err(error) => return Err(lock.cannot(&error.into())),
            }
        }
        Err(anyhow!(
            "{} vanishes whenever it is locked; something is removing it",
            self.location(key).display()
        ))
    }

    /// Removes a file that we alone have locked, where root must have one of its own. A waiter finds
    /// that it is no longer in place. Returns whether it must be opened anew.
    fn is_replaced(&self, lock: &LockFile, mode: LockMode) -> Result<bool> {
        let stat = rustix::fs::fstat(&lock.file)?;
        // Others may hold one that is shared, and the guard has to do for us.
        if mode == LockMode::Shared || !may_be_foreign(&stat) {
            return Ok(false);
        }
        let Ok(place) = lock.place() else { return Ok(true) };
        if !is_foreign(&stat, &place.folder) {
            return Ok(false);
        }
        if is_named(&lock.file, &place.folder, place.name) {
            // Where that is not possible, the guard has to do.
            return Ok(rustix::fs::unlinkat(&place.folder, place.name, AtFlags::empty()).is_ok());
        }
        Ok(true)
    }

    /// Opens the file and waits for a lock on it, again and again where that fails for a cause that
    /// passes, up to shortly before the deadline: so that a lasting cause is what is said at the
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
                // As a lock that is held, it is waited for until the deadline.
                None if !std::mem::replace(&mut is_leased, true) => tracing::warn!(
                    "{}: another process has a lease on it (fcntl(2), F_SETLEASE); waiting for it",
                    self.location(key).display()
                ),
                None => {}
            }
            let left = left.filter(|left| !left.is_zero());
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            std::thread::sleep(left.map_or(jittered, |left| left.min(jittered)));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns how ancestors hold this lock, if they do.
    ///
    /// The byte of the guard belongs to this lock alone. The lock file proves as much only where
    /// no other user can rename it: an ancestor may hold a file that was another lock's until its
    /// owner moved it here.
    fn mode_of(&self, ancestors: &AncestorsLocks, key: &Key) -> Option<LockMode> {
        let guard = self.open_guard(key).ok()?;
        let on_guard = guard
            .as_ref()
            .and_then(|guard| ancestors.on_byte(&rustix::fs::fstat(&guard.file).ok()?, guard.byte));
        on_guard.or_else(|| {
            let stat = rustix::fs::fstat(self.open_file(key).ok()?.file).ok()?;
            let is_fixed = guard.is_none() || is_out_of_reach(&stat, &self.folder_of(key).ok()?);
            ancestors.on(&stat).filter(|_| is_fixed)
        })
    }

    fn is_there(&self, key: &Key) -> bool {
        self.location(key).symlink_metadata().is_ok()
    }
}

impl Store for FileStore {
    fn check(&self, key: &Key, _deadline: Deadline) -> Result<()> {
        // A lease on it does not keep us from waiting.
        self.open_unless_leased(key)?;
        self.open_guard(key)?;
        if key.subject().cache().is_none() {
            return Ok(());
        }
        self.open_unless_leased(&key.turnstile())?;
        let memory = key.memory();
        // Nobody needs it to take the lock.
        if let Some(Err(error)) = self.is_there(&memory).then(|| self.open_file(&memory)) {
            tracing::warn!("{}: it cannot be remembered that it is warm: {error:#}", key.subject());
        }
        Ok(())
    }

    fn try_acquire(
        &self,
        key: &Key,
        mode: LockMode,
        _deadline: Deadline,
    ) -> Result<Option<Box<dyn Held>>> {
        Ok(self.try_lock(key, mode)?.map(|lock| lock.held(key, mode)))
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
            if !lock.is_in_place() || self.is_replaced(&lock, mode)? {
                continue;
            }
            if let Some(guard) = self.open_guard(key)? {
                let locked = match guard.try_lock(mode) {
                    Ok(false) => {
                        tracing::warn!(
                            "{}: the lock is held by way of the guard alone: the lock file was \
                             removed while it was held, or the guard itself was locked; waiting",
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
                return Ok(lock.held(key, mode));
            }
        }
    }

    fn holder(&self, key: &Key, known: Option<u32>) -> Option<Holder> {
        let lock = self.open_file(key).ok()?;
        Holder::of(&lock.file, known, self.held_by_ancestors_as(key))
    }

    fn holder_at_once(&self, key: &Key) -> Option<Holder> {
        Holder::recorded(&self.open_file(key).ok()?.file)
    }

    fn held_by_ancestors_as(&self, key: &Key) -> Option<LockMode> {
        let ancestors = AncestorsLocks::look();
        if ancestors.is_empty() {
            return None;
        }
        self.mode_of(&ancestors, key)
    }

    fn last_failure(&self, key: &Key) -> Option<FailedBuild> {
        self.open_file(key).ok()?.last_failure()
    }

    fn held_by_ancestors(&self) -> Vec<Subject> {
        let ancestors = AncestorsLocks::look();
        let mut subjects = Vec::new();
        // The folder is read only if an ancestor holds any lock at all.
        let read = self.each_file(&ancestors.inodes(), |path, file, stat| {
            // The record may be that of another who shares it.
            if ancestors.on(stat).is_some() {
                subjects.extend(holder::read_subject(file, &path));
            }
        });
        if let Err(error) = read {
            tracing::debug!("cannot see which locks our ancestors hold: {error:#}");
        }
        subjects.retain(|subject| self.mode_of(&ancestors, &Key::new(subject.clone())).is_some());
        subjects
    }

    fn location(&self, key: &Key) -> PathBuf {
        self.path.join(key.relative_path())
    }

    fn prepare(&self, subject: &Subject) -> Result<()> {
        let key = Key::new(subject.clone());
        let folder = self.folder_of(&key)?;
        warn_of_owner(&folder, &self.path.join(key.folder()));
        Ok(())
    }

    fn file(&self, key: &Key) -> Result<PathBuf> {
        self.open_file(key)?;
        self.open_guard(key)?;
        Ok(self.path.join(key.relative_path()))
    }

    fn held(&self) -> Result<Vec<HeldLock>> {
        let locks = KernelLocks::read()?;
        let mut held = Vec::new();
        let mut turnstiles = Vec::new();
        self.each_file(&locks.inodes_held(), |path, file, stat| {
            if let Some(behind) = behind_turnstile(&path) {
                // Who stands in it waits for the lock behind it, and is counted there.
                turnstiles.push((behind, locks.waiters(stat, file)));
                return;
            }
            let subject = holder::read_subject(file, &path);
            let subject = subject.as_ref();
            let record = holder::read_record(file);
            let shared = locks.is_shared(stat, file);
            let mut waiters = locks.waiters(stat, file);
            let mut holders = locks.holders(stat, file);
            // Of those who share it, most is known of the one in the record.
            holders.sort_by_key(|&pid| record.as_ref().is_none_or(|record| record.pid != pid));
            held.extend(holders.into_iter().map(|pid| HeldLock {
                tag: subject.and_then(Subject::tag).map(str::to_owned),
                name: subject.and_then(Subject::name).map(str::to_owned),
                cache: subject.and_then(Subject::cache).map(str::to_owned),
                lock: path.clone(),
                holder: Holder::with_pid(pid, record.clone(), stat),
                shared,
                waiters: std::mem::take(&mut waiters),
            }));
        })?;
        Ok(in_order(held, turnstiles))
    }

    fn prune(&self) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for folder in FOLDERS {
            let Some(folder_fd) = self.existing_folder(folder)? else { continue };
            let path = self.path.join(folder);
            let mut remove = |entry: &Entry, is_idle: fn(&File) -> bool| -> Result<bool> {
                let shown = path.join(&entry.name);
                let (file, is_linked) = match open_existing(&folder_fd, &entry.name) {
                    Ok(file) => (file, false),
                    Err(NotALock::Linked(file)) => (file, true),
                    Err(NotALock::Missing | NotALock::Unlinked) => return Ok(false),
                    Err(why) => {
                        tracing::warn!("{}: not removed: {why}", shown.display());
                        return Ok(false);
                    }
                };
                // Who waits has the file open, finds after locking it that it is no longer the
                // one of that name, and opens anew.
                let is_held = Flock::try_lock_exclusive(&file).is_err();
                if is_held && is_linked {
                    tracing::warn!(
                        "{}: not removed: it has {} hard links, and somebody holds it",
                        shown.display(),
                        links(&file)
                    );
                }
                // What a file with other names says is nobody's memory.
                if is_held || !(is_linked || is_idle(&file)) {
                    return Ok(false);
                }
                if !is_named(&file, &folder_fd, &entry.name) {
                    return Ok(false);
                }
                match rustix::fs::unlinkat(&folder_fd, &*entry.name, AtFlags::empty()) {
                    Ok(()) => Ok(true),
                    Err(Errno::PERM | Errno::ACCESS) => {
                        pruned.others += 1;
                        Ok(false)
                    }
                    Err(Errno::NOENT) => Ok(false),
                    Err(error) => {
                        Err(error).with_context(|| format!("cannot remove {}", shown.display()))
                    }
                }
            };
            let mut removed = 0;
            for entry in entries(&folder_fd, &path, LOCK)? {
                removed += usize::from(remove(&entry, |_| true)?);
            }
            let is_empty = |file: &File| file.metadata().is_ok_and(|it| it.len() == 0);
            for entry in entries(&folder_fd, &path, MEMORY)? {
                remove(&entry, is_empty)?;
            }
            pruned.removed += removed;
        }
        Ok(pruned)
    }

    fn memories(&self, folder: &str) -> Result<Vec<Vec<u8>>> {
        let Some(folder_fd) = self.existing_folder(folder)? else { return Ok(Vec::new()) };
        let entries = entries(&folder_fd, &self.path.join(folder), MEMORY)?;
        let files = entries.iter().filter_map(|it| open_existing(&folder_fd, &it.name).ok());
        Ok(files.filter_map(|file| holder::read_line(&file)).collect())
    }

    fn remembered(&self, key: &Key) -> Option<Vec<u8>> {
        let folder = self.existing_folder(key.folder()).ok()??;
        let relative = key.memory().relative_path();
        holder::read_line(&open_existing(&folder, relative.file_name()?).ok()?)
    }

    fn remember(&self, key: &Key, before: Option<&[u8]>, line: Option<&[u8]>) -> Result<bool> {
        let key = key.memory();
        let start = Instant::now();
        let LockFile { file, path, .. } = loop {
            if line.is_none() && !self.is_there(&key) {
                return Ok(before.is_none());
            }
            // One writer at a time, and none into a file that is just being removed.
            if let Some(lock) = self.try_lock(&key, LockMode::Exclusive)? {
                break lock;
            }
            if start.elapsed() >= WRITERS_GRACE {
                bail!("somebody else keeps {} locked", self.location(&key).display());
            }
            std::thread::sleep(Duration::from_millis(fastrand::u64(1..4)));
        };
        if holder::read_line(&file).as_deref() != before {
            return Ok(false);
        }
        let written = match line {
            Some(line) => holder::replace_text(&file, line),
            None => file.set_len(0),
        };
        written.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(true)
    }
}

/// The lock that the turnstile with this path stands before, if it is one.
fn behind_turnstile(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_suffix(".turnstile.lock")?;
    Some(path.with_file_name(format!("{name}.lock")))
}

struct Entry {
    name: std::ffi::OsString,
    inode: u64,
}

/// What lock files' names end with, behind a dot.
const LOCK: &str = "lock";
/// The same of files in which something is remembered.
const MEMORY: &str = "json";

/// Is it named as a lock is, by a sha256 in hex?
fn begins_with_hash(name: &OsStr) -> bool {
    const LENGTH: usize = 64;
    let hash = name.as_bytes().split(|&c| c == b'.').next().unwrap_or_default();
    hash.len() == LENGTH && hash.iter().all(u8::is_ascii_hexdigit)
}

/// The files in a folder with such a name.
fn entries(folder: &OwnedFd, path: &Path, kind: &str) -> Result<Vec<Entry>> {
    let unreadable = || format!("cannot read the lock folder {}", path.display());
    let mut found = Vec::new();
    for entry in Dir::read_from(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if Path::new(name).extension() == Some(OsStr::new(kind)) && begins_with_hash(name) {
            found.push(Entry { name: name.to_owned(), inode: entry.ino() });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::{Turn, take_in_turn};
    use super::*;

    fn store() -> (tempfile::TempDir, FileStore, Key) {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::open(&folder.path().join("locks")).unwrap();
        (folder, store, Key::new(Subject::Cache("cargo".into())))
    }

    #[test]
    fn who_slips_in_while_a_lock_becomes_shared_is_noticed() {
        let (_folder, store, key) = store();
        let mut held =
            store.try_acquire(&key, LockMode::Exclusive, Deadline::within(None)).unwrap().unwrap();
        // What the kernel may do first when a lock becomes another (flock(2)).
        let copy = held.descriptors()[0].try_clone_to_owned().unwrap();
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
        let turn = take_in_turn(&store, key.subject().clone(), no_bound, &mut mode).unwrap();
        let (Turn::Held(held), _) = turn else { panic!("there is no bound") };
        assert!(waited_for.load(Ordering::SeqCst));
        assert_eq!((held.mode(), held.lost()), (LockMode::Shared, None));
        assert!(
            store.try_acquire(&key, LockMode::Exclusive, Deadline::within(None)).unwrap().is_none()
        );
        assert!(
            store.try_acquire(&key, LockMode::Shared, Deadline::within(None)).unwrap().is_some()
        );
    }

    #[test]
    fn record_is_not_believed_to_be_of_another_lock_than_the_one_it_stands_in() {
        let (_folder, store, key) = store();
        let path = store.file(&key).unwrap();
        let file = File::options().write(true).read(true).open(&path).unwrap();
        let write = |record: Holder| holder::write_line(&file, Some(&record)).unwrap();
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
