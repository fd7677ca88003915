//! Open lock files, and lock files that this process has locked.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Result, anyhow};
use fs2::FileExt as Flock;
use rustix::fs::CWD;
use rustix::io::Errno;

use super::super::key::{Key, LockMode};
use super::super::store::Held;
use super::directory::open_directory;
use super::guard::Guard;
use super::open::{NotALock, is_named, open_existing};
use crate::record::{FailedBuild, Holder, Ourselves, read_record, read_result, write_line};
use crate::subject::Subject;

/// An open lock file.
pub(super) struct LockFile {
    /// The guard, once we have locked its byte as well. It is dropped first, because the next holder
    /// of the file needs it at once.
    pub(super) guard: Option<Guard>,
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl LockFile {
    /// Returns whether the file's path still leads to it. If the file was unlinked, or its folder
    /// was moved away, our lock does not exclude later callers.
    pub(super) fn is_in_place(&self) -> bool {
        self.place().is_ok_and(|place| {
            is_named(&self.file, &place.folder, place.name)
                && self.guard.as_ref().is_none_or(|guard| guard.is_in_place(&place.lock_folder))
        })
    }

    /// Returns whether the guard's path still leads to this guard.
    pub(super) fn is_guarded_by(&self, guard: &Guard) -> bool {
        self.place().is_ok_and(|place| guard.is_in_place(&place.lock_folder))
    }

    /// Opens the lock file that has this path now.
    fn open_anew(&self) -> Result<File, NotALock> {
        let place = self.place()?;
        open_existing(&place.folder, place.name)
    }

    /// Opens the folders that the file's path leads through now.
    pub(super) fn place(&self) -> Result<Place<'_>, NotALock> {
        let mut folders = self.path.ancestors().skip(1);
        let missing = || NotALock::Missing;
        let folder = folders.next().ok_or_else(missing)?;
        let lock_folder = folders.next().ok_or_else(missing)?;
        let lock_folder = open_directory(CWD, lock_folder.as_os_str())?;
        let folder = open_directory(&lock_folder, folder.file_name().unwrap_or_default())?;
        Ok(Place { lock_folder, folder, name: self.path.file_name().unwrap_or_default() })
    }

    pub(super) fn last_failure(&self) -> Option<FailedBuild> {
        read_result(&self.file)
    }

    pub(super) fn held(
        self,
        key: &Key,
        mode: LockMode,
        ourselves: Ourselves,
        outer: Vec<Guard>,
    ) -> Box<dyn Held> {
        Box::new(HeldFile {
            lock: self,
            outer,
            mode,
            ourselves,
            subject: key.subject().clone(),
            recorded: Cell::new(false),
        })
    }

    pub(super) fn cannot(&self, error: &std::io::Error) -> anyhow::Error {
        anyhow!(
            "{} cannot be locked: {error}; with --lock-dir, choose a folder on a file system that \
             supports locks",
            self.path.display()
        )
    }
}

/// The folders of a lock file, opened, and its name in the inner one.
pub(super) struct Place<'a> {
    lock_folder: OwnedFd,
    pub(super) folder: OwnedFd,
    pub(super) name: &'a OsStr,
}

/// A lock file that this process has locked.
struct HeldFile {
    lock: LockFile,
    /// The guard for each outer level whose byte we share.
    outer: Vec<Guard>,
    mode: LockMode,
    ourselves: Ourselves,
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

    fn record(&self) {
        let since = Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        let record = self.record_of(Holder { since, ..(self.ourselves)() });
        self.recorded.set(true);
        let path = self.lock.path.display();
        match write_line(&self.lock.file, Some(&record)) {
            Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                tracing::warn!("{path} cannot name its holder: {error}");
            }
            Err(error) => tracing::debug!("{path}: cannot say who holds the lock: {error}"),
            Ok(()) => {}
        }
    }

    fn last_failure(&self) -> Option<FailedBuild> {
        self.lock.last_failure()
    }

    fn lost(&self) -> Option<String> {
        let path = self.lock.path.display();
        match self.lock.open_anew() {
            Ok(_) if !self.lock.is_in_place() => Some(format!(
                "{path} was removed and created again while it was held; is something cleaning that \
                 folder?"
            )),
            Ok(anew) => {
                let beside = match self.mode {
                    // If a shared lock is possible beside ours, ours is gone.
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
            Err(NotALock::Linked(_)) if !self.lock.is_in_place() => Some(format!(
                "{path} was replaced, while it was held, by a file that has other names as well"
            )),
            // Our lock still holds. The next caller reports the link.
            Err(NotALock::Linked(_)) => None,
            // These prove nothing: we may be out of descriptors, for example.
            Err(NotALock::Failed(_) | NotALock::Leased) => None,
        }
    }

    fn mode(&self) -> LockMode {
        self.mode
    }

    fn share(&mut self) -> Result<bool> {
        self.mode = LockMode::Shared;
        // The kernel releases the exclusive lock first (flock(2)). No other caller can take it,
        // because we are in the turnstile. But a script that locks the file by its path does not use
        // the turnstile, and something may remove the file meanwhile.
        match Flock::try_lock_shared(&self.lock.file) {
            Ok(()) => {
                if let Some(guard) = &self.lock.guard {
                    guard.try_lock(LockMode::Shared)?;
                }
                Ok(self.lock.is_in_place())
            }
            Err(error) if would_block(&error) || passes(&error) => Ok(false),
            Err(error) => Err(self.lock.cannot(&error)),
        }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let guards = self.lock.guard.iter().chain(&self.outer).map(Guard::leave_to_heirs);
        guards.chain([self.lock.file.as_fd()]).collect()
    }

    fn release(self: Box<Self>, failure: Option<&FailedBuild>) {
        let is_ours = || {
            let record = read_record(&self.lock.file);
            record.is_none_or(|record| record.pid == std::process::id())
        };
        // No waiter for a cache asks how the last build ended.
        let failure = failure.filter(|_| self.subject.cache().is_none());
        let left = match (failure, self.mode) {
            (None, _) if !self.recorded.get() => Ok(()),
            // Others may still hold the lock, and the record must say what they share.
            (None, LockMode::Shared) if is_ours() => {
                write_line(&self.lock.file, Some(&self.record_of(Holder::default())))
            }
            (None, LockMode::Shared) => Ok(()),
            (failure, _) => write_line(&self.lock.file, failure),
        };
        if let Err(error) = left {
            tracing::debug!("{}: cannot be cleared: {error}", self.lock.path.display());
        }
        // Closing the descriptors is not enough, because a daemon may have inherited copies. The
        // guard goes first: the next holder of the lock file needs it at once.
        for guard in self.lock.guard.iter().chain(&self.outer) {
            if let Err(error) = guard.unlock() {
                tracing::warn!(
                    "{}: its guard cannot be unlocked: {error}",
                    self.lock.path.display()
                );
            }
        }
        if let Err(error) = Flock::unlock(&self.lock.file) {
            tracing::warn!("{}: cannot be unlocked: {error}", self.lock.path.display());
        }
    }
}

pub(super) fn would_block(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock
}

/// Returns whether a failure of flock(2) is temporary.
pub(super) fn passes(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOLCK | Errno::STALE | Errno::INTR))
}
