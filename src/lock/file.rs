//! The default store: `flock(2)` on files in a folder that all users of a machine share.
//!
//! The kernel releases such a lock when its last holder ends, however that comes to pass. This is
//! the only place that calls flock.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
// std's File has methods of the same names since Rust 1.89: fs2's are called by the trait's name.
use fs2::FileExt as Flock;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::holder::{self, Holder, KernelLocks};
use super::{
    CACHE_LOCKS, FailedBuild, Held, HeldLock, IMAGE_LOCKS, Key, LockMode, NAMED_LOCKS, Passing,
    Store, Subject, in_order,
};
use crate::duration::Deadline;
use crate::user;

/// Everybody may create and lock files in it, nobody remove another's.
const FOLDER_MODE: u32 = 0o1777;
/// Everybody may lock it, and say in it that he did.
const FILE_MODE: u32 = 0o666;
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
        find_folder(rustix::fs::CWD, path.as_os_str(), &path)?;
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
        match find_folder(rustix::fs::CWD, self.path.as_os_str(), &self.path)? {
            Some(parent) => find_folder(&parent, OsStr::new(name), &self.path.join(name)),
            None => Ok(None),
        }
    }

    /// Opens the lock file and makes sure that it is one. Nothing is written before that.
    fn open_file(&self, key: &Key) -> Result<LockFile> {
        let relative = key.relative_path();
        let name = relative.file_name().unwrap_or_default();
        let path = self.path.join(&relative);
        for _ in 0..VANISHED_MAX {
            // Anew each time: the folder, too, may be gone, or another.
            let folder = self.folder_of(key)?;
            match open_existing(&folder, name) {
                Ok(file) => return Ok(LockFile { file, path }),
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

    /// Locks a file, or says at once that it is busy.
    fn try_lock(&self, key: &Key, mode: LockMode) -> Result<Option<LockFile>> {
        let attempt = match mode {
            LockMode::Exclusive => Flock::try_lock_exclusive,
            LockMode::Shared => Flock::try_lock_shared,
        };
        for _ in 0..VANISHED_MAX {
            let lock = self.open_file(key)?;
            match attempt(&lock.file) {
                Ok(()) if lock.is_in_place() => return Ok(Some(lock)),
                // Somebody unlinked it before we had it: it excludes nobody.
                Ok(()) => {}
                Err(error) if would_block(&error) => return Ok(None),
                Err(error) if passes(&error) => {
                    return Err(Passing(lock.cannot(&error).to_string()).into());
                }
                Err(error) => return Err(lock.cannot(&error)),
            }
        }
        Err(anyhow!(
            "{} vanishes whenever it is locked; something is removing it",
            self.location(key).display()
        ))
    }

    fn is_there(&self, key: &Key) -> bool {
        self.location(key).symlink_metadata().is_ok()
    }
}

impl Store for FileStore {
    fn check(&self, key: &Key, _deadline: Deadline) -> Result<()> {
        self.open_file(key)?;
        if key.subject().cache().is_none() {
            return Ok(());
        }
        self.open_file(&key.turnstile())?;
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
        let lock = self.open_file(key)?;
        lock.block(deadline, Flock::lock_shared)?;
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
            let lock = self.open_file(key)?;
            lock.block(deadline, flock)?;
            if lock.is_in_place() {
                return Ok(lock.held(key, mode));
            }
        }
    }

    fn holder(&self, key: &Key, known: Option<u32>) -> Option<Holder> {
        let lock = self.open_file(key).ok()?;
        Holder::of(&lock.file, known)
    }

    fn last_failure(&self, key: &Key) -> Option<FailedBuild> {
        self.open_file(key).ok()?.last_failure()
    }

    fn held_by_ancestors(&self) -> Vec<Subject> {
        let ancestors = holder::ancestors();
        let locks = KernelLocks::read_once();
        let mut subjects = Vec::new();
        // The folder is read only if an ancestor holds any lock at all.
        let read = self.each_file(&locks.inodes_held_by(&ancestors), |path, file, stat| {
            // The record may be that of another who shares it.
            if locks.holders(stat, file).iter().any(|pid| ancestors.contains(pid)) {
                subjects.extend(holder::read_subject(file, &path));
            }
        });
        if let Err(error) = read {
            tracing::debug!("cannot see which locks our ancestors hold: {error:#}");
        }
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
        Ok(self.path.join(key.relative_path()))
    }

    fn held(&self) -> Result<Vec<HeldLock>> {
        let locks = KernelLocks::read();
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
                holder: Holder::with_pid(pid, record.clone()),
                shared,
                waiters: std::mem::take(&mut waiters),
            }));
        })?;
        Ok(in_order(held, turnstiles))
    }

    fn prune(&self) -> Result<usize> {
        let mut removed = 0;
        for folder in FOLDERS {
            let Some(folder_fd) = self.existing_folder(folder)? else { continue };
            let remove = |entry: &Entry, is_idle: fn(&File) -> bool| {
                let Ok(file) = open_existing(&folder_fd, &entry.name) else { return false };
                // Who waits has the file open, finds after locking it that it is no longer the
                // one of that name, and opens anew.
                Flock::try_lock_exclusive(&file).is_ok()
                    && is_idle(&file)
                    && is_named(&file, &folder_fd, &entry.name)
                    && rustix::fs::unlinkat(&folder_fd, &*entry.name, AtFlags::empty()).is_ok()
            };
            let path = self.path.join(folder);
            let locks = entries(&folder_fd, &path, LOCK)?;
            removed += locks.iter().filter(|entry| remove(entry, |_| true)).count();
            let is_empty = |file: &File| file.metadata().is_ok_and(|it| it.len() == 0);
            for entry in entries(&folder_fd, &path, MEMORY)? {
                remove(&entry, is_empty);
            }
        }
        Ok(removed)
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

    fn remember(&self, key: &Key, line: Option<&[u8]>) -> Result<()> {
        let key = key.memory();
        let start = Instant::now();
        let LockFile { file, path } = loop {
            if line.is_none() && !self.is_there(&key) {
                return Ok(());
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
        let written = match line {
            Some(line) => holder::replace_text(&file, line),
            None => file.set_len(0),
        };
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The lock that the turnstile with this path stands before, if it is one.
fn behind_turnstile(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_suffix(".turnstile.lock")?;
    Some(path.with_file_name(format!("{name}.lock")))
}

/// An open lock file.
struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Is it still the file of its name? One that was unlinked, or whose folder was moved away,
    /// excludes nobody who comes later.
    fn is_in_place(&self) -> bool {
        self.place().is_ok_and(|(folder, name)| is_named(&self.file, &folder, name))
    }

    /// Opens whatever lock file has its name now.
    fn open_anew(&self) -> Result<File, NotALock> {
        let (folder, name) = self.place()?;
        open_existing(&folder, name)
    }

    /// The folder where its path leads now, and its name there.
    fn place(&self) -> Result<(OwnedFd, &OsStr), NotALock> {
        let mut folders = self.path.ancestors().skip(1);
        let missing = || NotALock::Missing;
        let folder = folders.next().ok_or_else(missing)?;
        let parent = folders.next().ok_or_else(missing)?;
        let parent = open_directory(rustix::fs::CWD, parent.as_os_str())?;
        let folder = open_directory(&parent, folder.file_name().unwrap_or_default())?;
        Ok((folder, self.path.file_name().unwrap_or_default()))
    }

    fn last_failure(&self) -> Option<FailedBuild> {
        holder::read_result(&self.file)
    }

    fn held(self, key: &Key, mode: LockMode) -> Box<dyn Held> {
        Box::new(HeldFile {
            lock: self,
            mode,
            subject: key.subject().clone(),
            recorded: Cell::new(false),
        })
    }

    /// Takes a blocking lock, again and again where that fails for a cause that passes, up to
    /// shortly before the deadline: so that a lasting cause is what is said at the end.
    fn block(&self, deadline: Deadline, lock: impl Fn(&File) -> std::io::Result<()>) -> Result<()> {
        const FIRST_PAUSE: Duration = Duration::from_millis(10);
        const LONGEST_PAUSE: Duration = Duration::from_secs(10);
        const SHORTLY: Duration = Duration::from_millis(30);
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match lock(&self.file) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let left = deadline.left().map(|left| left.saturating_sub(SHORTLY));
            if !passes(&error) || left.is_some_and(|left| left.is_zero()) {
                return Err(self.cannot(&error));
            }
            tracing::warn!("{}: {error}; trying again", self.path.display());
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            std::thread::sleep(left.map_or(jittered, |left| left.min(jittered)));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn cannot(&self, error: &std::io::Error) -> anyhow::Error {
        anyhow!(
            "{} cannot be locked: {error}; choose a folder on a file system that can lock with --lock-dir",
            self.path.display()
        )
    }
}

/// A lock file that this process has locked.
struct HeldFile {
    lock: LockFile,
    mode: LockMode,
    subject: Subject,
    recorded: Cell<bool>,
}

impl HeldFile {
    fn record_of(&self, holder: Holder) -> Holder {
        holder.of_lock(&self.subject)
    }
}

impl Held for HeldFile {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn record(&self, holder: &Holder) {
        let since = Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        let record = self.record_of(Holder { since, ..holder.clone() });
        self.recorded.set(true);
        if let Err(error) = holder::write_line(&self.lock.file, Some(&record)) {
            tracing::debug!("{}: cannot say who holds the lock: {error}", self.lock.path.display());
        }
    }

    fn last_failure(&self) -> Option<FailedBuild> {
        self.lock.last_failure()
    }

    fn lost(&self) -> Option<String> {
        let path = self.lock.path.display();
        match self.lock.open_anew() {
            Ok(_) if !self.lock.is_in_place() => Some(format!(
                "{path} was removed and made anew while it was held; is something cleaning that folder?"
            )),
            Ok(anew) => {
                let beside = match self.mode {
                    // A shared one beside ours means that ours is gone.
                    LockMode::Exclusive => Flock::try_lock_shared(&anew),
                    LockMode::Shared => Flock::try_lock_exclusive(&anew),
                };
                beside
                    .is_ok()
                    .then(|| format!("{path} is no longer locked; did something unlock it?"))
            }
            Err(NotALock::Missing | NotALock::Unlinked) => Some(format!(
                "{path} was removed while it was held; is something cleaning that folder?"
            )),
            Err(NotALock::Because(why)) => {
                Some(format!("{path} was replaced while it was held: {why}"))
            }
            // For want of descriptors, say.
            Err(NotALock::Failed(_)) => None,
        }
    }

    fn mode(&self) -> LockMode {
        self.mode
    }

    fn share(&mut self) -> Result<bool> {
        self.mode = LockMode::Shared;
        // The kernel gives the old lock back first (flock(2)). Nobody else is in the turnstile, but
        // a script that takes the lock by its path knows none, and a cleaner may be faster, too.
        match Flock::try_lock_shared(&self.lock.file) {
            Ok(()) => Ok(self.lock.is_in_place()),
            Err(error) if would_block(&error) || passes(&error) => Ok(false),
            Err(error) => Err(self.lock.cannot(&error)),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.lock.file.as_fd())
    }

    fn release(self: Box<Self>, failure: Option<&FailedBuild>) {
        let is_ours = || {
            let record = holder::read_record(&self.lock.file);
            record.is_none_or(|record| record.pid == std::process::id())
        };
        // Of a cache nobody asks what the last build ended with.
        let failure = failure.filter(|_| self.subject.cache().is_none());
        let left = match (failure, self.mode) {
            (None, _) if !self.recorded.get() => Ok(()),
            // Others may go on, and what they share is to be known.
            (None, LockMode::Shared) if is_ours() => {
                holder::write_line(&self.lock.file, Some(&self.record_of(Holder::default())))
            }
            (None, LockMode::Shared) => Ok(()),
            (failure, _) => holder::write_line(&self.lock.file, failure),
        };
        if let Err(error) = left {
            tracing::debug!("{}: cannot be cleared: {error}", self.lock.path.display());
        }
        // Not just by closing it: a daemon may have inherited a copy.
        if let Err(error) = Flock::unlock(&self.lock.file) {
            tracing::warn!("{}: cannot be unlocked: {error}", self.lock.path.display());
        }
    }
}

/// Why a name is not a lock file that can be used.
enum NotALock {
    /// There is nothing of that name.
    Missing,
    /// Somebody unlinked it while we opened it.
    Unlinked,
    /// It is something else.
    Because(String),
    /// It cannot be opened, for a reason that may not be its own.
    Failed(Errno),
}

impl From<Errno> for NotALock {
    /// What opening one of its folders may end with.
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT => NotALock::Missing,
            Errno::STALE => NotALock::Unlinked,
            Errno::LOOP | Errno::NOTDIR => NotALock::Because("its folder is none any more".into()),
            error => NotALock::Failed(error),
        }
    }
}

fn open_existing(folder: &OwnedFd, name: &OsStr) -> Result<File, NotALock> {
    // A planted FIFO or terminal must neither hang us nor become ours.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |access| rustix::fs::openat(folder, name, flags | access, Mode::empty());
    // One that may only be read can be locked as well; then nobody learns who holds it.
    let opened = match retry_on_intr(|| open(OFlags::RDWR)) {
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => retry_on_intr(|| open(OFlags::RDONLY)),
        opened => opened,
    };
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Err(NotALock::Missing),
        // A network file system's word for a file that somebody has unlinked.
        Err(Errno::STALE) => return Err(NotALock::Unlinked),
        Err(Errno::LOOP) => return Err(NotALock::Because("it is a symbolic link".into())),
        Err(Errno::ISDIR) => return Err(NotALock::Because("it is a folder".into())),
        Err(Errno::NXIO) => return Err(NotALock::Because("it is a socket or a device".into())),
        Err(error) => return Err(NotALock::Failed(error)),
    };
    let stat = rustix::fs::fstat(&file).map_err(NotALock::Failed)?;
    match (FileType::from_raw_mode(stat.st_mode), stat.st_nlink) {
        (FileType::RegularFile, 0) => Err(NotALock::Unlinked),
        (FileType::RegularFile, 1) => Ok(file),
        (FileType::RegularFile, links) => {
            Err(NotALock::Because(format!("it has {links} hard links")))
        }
        (FileType::Fifo, _) => Err(NotALock::Because("it is a FIFO".into())),
        (_, _) => Err(NotALock::Because("it is no regular file".into())),
    }
}

/// Does `name` in `folder` name this very file?
fn is_named(file: &File, folder: &OwnedFd, name: &OsStr) -> bool {
    let there = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    let ours = rustix::fs::fstat(file);
    matches!((there, ours), (Ok(there), Ok(ours))
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino))
}

/// Creates a lock file whole, with its mode, and puts it in place; one that is there already wins.
fn create_file(folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(FILE_MODE);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let nameless =
        rustix::fs::openat(folder, ".", flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR).and_then(
            |file| {
                rustix::fs::fchmod(&file, mode)?;
                // linkat(2): AT_EMPTY_PATH would need a privilege.
                let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
                rustix::fs::linkat(rustix::fs::CWD, itself, folder, name, AtFlags::SYMLINK_FOLLOW)
            },
        );
    match nameless {
        Ok(()) | Err(Errno::EXIST) => return Ok(()),
        Err(error @ (Errno::ACCESS | Errno::ROFS | Errno::NOSPC | Errno::DQUOT)) => {
            return Err(error);
        }
        // Not every file system has nameless files, and not everybody has /proc.
        Err(_) => {}
    }
    // No temporary name: who is killed here leaves nothing behind.
    let create = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    match whatever_the_umask(|| rustix::fs::openat(folder, name, create, mode)) {
        // A default ACL takes bits away, whatever the umask. A file system that keeps no modes
        // (vfat, SMB) gives all its files the same.
        Ok(file) => match rustix::fs::fchmod(file, mode) {
            Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
            changed => changed,
        },
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates something with the mode that it is to have from its first moment on: what is changed
/// afterwards, somebody else may have met before.
fn whatever_the_umask<T>(create: impl FnOnce() -> T) -> T {
    // The mask is the process's, and another thread may create something as well.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mask = rustix::process::umask(Mode::empty());
    let created = create();
    rustix::process::umask(mask);
    created
}

/// An absolute path, without a slash at the end, which would follow a symbolic link.
fn real_path(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).with_context(|| {
        format!("'{}' cannot be the lock folder (see --lock-dir)", path.display())
    })?;
    Ok(absolute.components().collect())
}

/// Opens a folder that is there, without following a symbolic link.
fn open_directory(parent: impl AsFd, name: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| rustix::fs::openat(&parent, name.as_ref(), flags, Mode::empty()))
}

/// Opens a folder if there is one.
fn find_folder(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<Option<OwnedFd>> {
    match open_directory(parent, name) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(folder_error(path, error)),
    }
}

/// Opens the lock folder, and creates it, with what is missing above it, if there is none.
fn open_lock_folder(path: &Path) -> Result<OwnedFd> {
    for _ in 0..VANISHED_MAX {
        if let Some(folder) = open_or_create(rustix::fs::CWD, path.as_os_str(), path)? {
            return Ok(folder);
        }
        let above = path.parent().unwrap_or(path);
        create_folders_above(above).with_context(|| {
            format!(
                "cannot create {}, the folder of the lock folder (see --lock-dir)",
                above.display()
            )
        })?;
    }
    Err(folder_error(path, Errno::NOENT))
}

/// Opens a folder, or creates it with its mode if there is none. None if it cannot be there, or has
/// just been removed: `parent` is missing.
fn open_or_create(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<Option<OwnedFd>> {
    if let Some(folder) = find_folder(&parent, name, path)? {
        return Ok(Some(folder));
    }
    match create_folder(parent.as_fd(), Path::new(name)) {
        Ok(()) => find_folder(&parent, name, path),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(folder_error(path, error)),
    }
}

/// Creates the folders above the lock folder that are missing, for all to pass whatever the umask.
fn create_folders_above(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), create_folders_above)?;
    // Not by its name afterwards: there, whoever owns the folder above may have put a link.
    match whatever_the_umask(|| std::fs::DirBuilder::new().mode(0o755).create(path)) {
        Ok(()) => Ok(()),
        // Somebody else was faster, and has his reasons for its mode.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// A default ACL above may take bits from its mode. They are not put back: by then, somebody else may
/// have put another folder in its place.
fn create_folder(parent: BorrowedFd<'_>, name: &Path) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(FOLDER_MODE);
    match whatever_the_umask(|| rustix::fs::mkdirat(parent, name, mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn folder_error(path: &Path, error: Errno) -> anyhow::Error {
    let shown = path.display();
    let what = std::fs::symlink_metadata(path).map(|found| found.file_type());
    match (error, what) {
        (Errno::LOOP | Errno::NOTDIR, Ok(kind)) if kind.is_symlink() => anyhow!(
            "the lock folder {shown} is a symbolic link, and is not followed; name the real folder with --lock-dir"
        ),
        (Errno::NOTDIR, Ok(kind)) if !kind.is_dir() => {
            anyhow!("the lock folder {shown} is no folder; choose another one with --lock-dir")
        }
        (error, _) => {
            anyhow!(
                "the lock folder {shown} cannot be used: {error}; choose another one with --lock-dir"
            )
        }
    }
}

/// Who owns the folder can remove other people's lock files, and so can everybody where it is not
/// sticky.
fn warn_of_owner(folder: &OwnedFd, path: &Path) {
    let Ok(stat) = rustix::fs::fstat(folder) else { return };
    let shown = path.display();
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        tracing::warn!(
            "the lock folder {shown} is owned by {}, who can break its locks; let root make it (make \
             install ships a line for tmpfiles.d that does)",
            user::name(stat.st_uid)
        );
    } else if stat.st_mode & 0o1002 == 0o0002 {
        tracing::warn!(
            "everybody may remove files from the lock folder {shown}; make it sticky: chmod +t {shown}"
        );
    }
}

struct Entry {
    name: std::ffi::OsString,
    inode: u64,
}

/// What lock files' names end with, behind a dot.
const LOCK: &str = "lock";
/// The same of files in which something is remembered.
const MEMORY: &str = "json";

/// The files in a folder with such a name.
fn entries(folder: &OwnedFd, path: &Path, kind: &str) -> Result<Vec<Entry>> {
    let unreadable = || format!("cannot read the lock folder {}", path.display());
    let mut found = Vec::new();
    for entry in Dir::read_from(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if Path::new(name).extension() == Some(OsStr::new(kind)) {
            found.push(Entry { name: name.to_owned(), inode: entry.ino() });
        }
    }
    Ok(found)
}

fn would_block(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock
}

/// Failures of flock(2) that go away by themselves.
fn passes(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOLCK | Errno::STALE | Errno::INTR))
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
        let copy = held.descriptor().unwrap().try_clone_to_owned().unwrap();
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
                while KernelLocks::read().waiters(&stat, &foreign) == 0 {
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
