//! The guard: one file in the lock folder, in which each holder also locks a byte.
//!
//! A lock file belongs to the user who created it, and that user may unlink it while another user
//! holds it. The next caller would create and lock another file. The guard prevents two holders: if
//! root created the folder, the guard belongs to root, and no other user can unlink it.
//!
//! Locks of open file descriptions (fcntl(2), F_OFD_SETLK) behave like those of flock(2). The keeper
//! and the build command inherit them with the descriptor, and they end with its last copy. Callers
//! lock the lock file first, so they wait for a byte only if the lock file was unlinked.
//!
//! A call takes all its bytes through one descriptor. Anybody can lock very many bytes of the guard,
//! and the kernel goes through all of them whenever a descriptor is closed or somebody asks what is
//! locked through it.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{OFlags, Stat, StatVfsMountFlags};
use rustix::io;

use super::super::key::LockMode;
use super::directory::open_lock_folder;
use super::exchange::replace_foreign;
use super::open::{NotALock, VANISHED_MAX, create_file, is_named, open_existing};
use crate::reference::sha256;

/// The guard's name in the lock folder.
pub(super) const NAME: &str = "guard";

/// The descriptor of the guard for all locks of a call, once it is open.
#[derive(Default)]
pub(super) struct OpenGuard(Mutex<Option<Arc<File>>>);

impl OpenGuard {
    /// Returns the byte of the lock at this relative path. The guard may have been replaced since it
    /// was opened. Whoever has locked the byte looks whether it is in place.
    ///
    /// # Errors
    /// As [`Guard::open`].
    pub(super) fn byte(&self, folder: &Path, lock: &Path) -> Result<Option<Guard>> {
        let mut open = self.open();
        if let Some(file) = &*open {
            return Ok(Some(Guard::new(Arc::clone(file), lock)));
        }
        let guard = Guard::open(folder, lock)?;
        *open = guard.as_ref().map(|guard| Arc::clone(&guard.file));
        Ok(guard)
    }

    /// Opens the guard anew for the next lock.
    pub(super) fn forget(&self) {
        *self.open() = None;
    }

    fn open(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A byte of the guard, for one lock. Dropping it unlocks it, unless the build command has inherited
/// it.
pub(super) struct Guard {
    file: Arc<File>,
    pub(super) byte: u64,
    is_to_unlock: Cell<bool>,
}

impl Guard {
    fn new(file: Arc<File>, lock: &Path) -> Self {
        Guard { file, byte: byte_of(lock), is_to_unlock: Cell::new(false) }
    }

    /// Opens the guard for the lock at this relative path alone, and creates it if necessary. Returns
    /// none if the folder cannot have a guard: on a read-only file system, or if only its owner may
    /// create files in it.
    ///
    /// # Errors
    /// The file cannot serve as a guard.
    pub(super) fn open(folder: &Path, lock: &Path) -> Result<Option<Self>> {
        if size_of::<libc::off_t>() < size_of::<u64>() {
            // This C library cannot name such a byte, and all callers must use the same one.
            return Ok(None);
        }
        let path = folder.join(NAME);
        for _ in 0..VANISHED_MAX {
            // Each time, because the folder may also have been removed or replaced.
            match open_once(&open_lock_folder(folder)?, &path)? {
                Opened::File(file) => return Ok(Some(Guard::new(Arc::new(file), lock))),
                Opened::NotPossible => return Ok(None),
                Opened::Changed => {}
            }
        }
        bail!("{} vanishes as fast as it is created; something is removing it", path.display())
    }

    /// Returns whether the guard's name still leads to this file.
    pub(super) fn is_in_place(&self, folder: &OwnedFd) -> bool {
        is_named(&self.file, folder, OsStr::new(NAME))
    }

    /// Locks the byte. Returns false at once if it is taken.
    ///
    /// # Errors
    /// fcntl(2) failed for another reason.
    pub(super) fn try_lock(&self, mode: LockMode) -> nix::Result<bool> {
        match self.set(kind(mode), |range| FcntlArg::F_OFD_SETLK(range)) {
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            locked => locked.map(|()| self.is_to_unlock.set(true)).map(|()| true),
        }
    }

    /// Waits for the byte, and locks it.
    ///
    /// # Errors
    /// fcntl(2) failed.
    pub(super) fn lock(&self, mode: LockMode) -> nix::Result<()> {
        self.set(kind(mode), |range| FcntlArg::F_OFD_SETLKW(range))?;
        self.is_to_unlock.set(true);
        Ok(())
    }

    /// Unlocks the byte, for all copies of the descriptor.
    ///
    /// # Errors
    /// fcntl(2) failed.
    pub(super) fn unlock(&self) -> nix::Result<()> {
        self.is_to_unlock.set(false);
        self.set(libc::F_UNLCK, |range| FcntlArg::F_OFD_SETLK(range))
    }

    /// Returns the descriptor for a child, which keeps the byte locked if this process ends.
    pub(super) fn leave_to_heirs(&self) -> BorrowedFd<'_> {
        self.is_to_unlock.set(false);
        self.file.as_fd()
    }

    /// Returns what the kernel says about the file.
    pub(super) fn stat(&self) -> io::Result<Stat> {
        rustix::fs::fstat(&self.file)
    }

    /// Returns whether somebody holds the byte of the lock at this relative path, through another
    /// descriptor than this one. Takes nothing.
    pub(super) fn is_held(&self, lock: &Path) -> bool {
        let mut found = Guard::range_of(byte_of(lock), libc::F_WRLCK);
        loop {
            match fcntl(&*self.file, FcntlArg::F_OFD_GETLK(&mut found)) {
                Err(Errno::EINTR) => {}
                asked => return asked.is_ok() && i32::from(found.l_type) != libc::F_UNLCK,
            }
        }
    }

    fn set(
        &self,
        kind: libc::c_int,
        call: impl Fn(&libc::flock) -> FcntlArg<'_>,
    ) -> nix::Result<()> {
        let range = Guard::range_of(self.byte, kind);
        loop {
            match fcntl(&*self.file, call(&range)) {
                Err(Errno::EINTR) => {}
                Err(error) if is_unsupported(error) => return Ok(()),
                done => return done.map(drop),
            }
        }
    }

    fn range_of(byte: u64, kind: libc::c_int) -> libc::flock {
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte as libc::off_t,
            l_len: 1,
            // fcntl(2) demands zero for a lock of an open file description.
            l_pid: 0,
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Other locks of this process may use the same descriptor, so that it stays open.
        if self.is_to_unlock.get() {
            _ = self.unlock();
        }
    }
}

/// Returns whether fcntl(2) cannot lock ranges: on Linux before 3.15, or on a file system without
/// such locks.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP)
}

/// What an attempt to open the guard led to.
enum Opened {
    File(File),
    /// The folder cannot have a guard.
    NotPossible,
    /// We or another process have just created or removed the guard.
    Changed,
}

/// Opens the guard in `folder`, or creates it, to be opened by the next attempt. `path` is its path
/// for messages.
fn open_once(folder: &OwnedFd, path: &Path) -> Result<Opened> {
    // If another user created the guard, root needs one that only root can unlink.
    if replace_foreign(folder, OsStr::new(NAME)) {
        return Ok(Opened::Changed);
    }
    match open_existing(folder, OsStr::new(NAME)) {
        // Nothing is ever written to the guard, so other names do no harm.
        Ok(file) | Err(NotALock::Linked(file)) if is_writable(&file) => Ok(Opened::File(file)),
        Ok(_) | Err(NotALock::Linked(_)) if needs_no_guard(folder) => Ok(Opened::NotPossible),
        Ok(_) | Err(NotALock::Linked(_)) => Err(refused(path, "not everybody may write to it")),
        Err(NotALock::Missing) => create(folder, path),
        Err(NotALock::Unlinked) => Ok(Opened::Changed),
        // Only the owner can have a lease on the guard, and could as well unlink it.
        Err(NotALock::Leased) => Ok(Opened::NotPossible),
        Err(NotALock::Failed(io::Errno::ACCESS | io::Errno::PERM)) => {
            Err(refused(path, "it cannot be opened: permission denied"))
        }
        // The guard need not be at fault: we may be out of descriptors.
        Err(NotALock::Failed(error)) => bail!("{} cannot be opened: {error}", path.display()),
        Err(NotALock::Because(why)) => Err(refused(path, &why)),
    }
}

fn create(folder: &OwnedFd, path: &Path) -> Result<Opened> {
    match create_file(folder, OsStr::new(NAME)) {
        Ok(()) | Err(io::Errno::NOENT) => Ok(Opened::Changed),
        Err(io::Errno::ACCESS | io::Errno::ROFS) => Ok(Opened::NotPossible),
        Err(error) => {
            Err(error).with_context(|| format!("cannot create {} (see --lock-dir)", path.display()))
        }
    }
}

fn refused(path: &Path, why: &str) -> anyhow::Error {
    anyhow!(
        "{} cannot guard the locks: {why}; remove it, or choose another folder with --lock-dir",
        path.display()
    )
}

fn kind(mode: LockMode) -> libc::c_int {
    match mode {
        LockMode::Exclusive => libc::F_WRLCK,
        LockMode::Shared => libc::F_RDLCK,
    }
}

/// Returns the byte of a lock. If two locks had the same byte, their callers would only wait for
/// each other needlessly.
pub(super) fn byte_of(lock: &Path) -> u64 {
    let digest = sha256(lock.as_os_str().as_encoded_bytes());
    let mut start = [0; size_of::<u64>()];
    start.copy_from_slice(&digest[..size_of::<u64>()]);
    // The largest offset is the last byte that can be locked.
    u64::from_be_bytes(start) % i64::MAX.cast_unsigned()
}

fn is_writable(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR)
}

/// Returns whether a guard would be useless in this folder: nobody but its owner can unlink files,
/// or nobody at all.
fn needs_no_guard(folder: &OwnedFd) -> bool {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    let is_read_only = rustix::fs::fstatvfs(folder)
        .is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY));
    is_read_only || rustix::fs::fstat(folder).is_ok_and(|stat| stat.st_mode & OTHERS_MAY_WRITE == 0)
}
