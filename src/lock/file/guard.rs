//! The guard: one file in the lock folder, of which each lock also takes a byte.
//!
//! A lock file belongs to the user who created it, and that user may unlink it while somebody else
//! holds it. The next caller would create another one and lock that. The guard belongs to root
//! where root has made the folder, so no other user can unlink it.
//!
//! Locks of open file descriptions (fcntl(2), F_OFD_SETLK) work as those of flock(2) do: they go
//! with the descriptor to the keeper and to the build command, and end with its last copy. The lock
//! file is locked first, so nobody waits for a byte unless the lock file was unlinked.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{OFlags, StatVfsMountFlags};

use super::super::key::LockMode;
use super::open::{
    NotALock, VANISHED_MAX, create_file, is_named, open_existing, open_lock_folder, remove_foreign,
};
use crate::reference::sha256;

/// Its name in the lock folder.
const NAME: &str = "guard";

/// The guard, opened for one lock.
pub(super) struct Guard {
    pub(super) file: File,
    pub(super) byte: u64,
}

impl Guard {
    /// Opens the guard in the lock folder, for the lock of this relative path, and creates it if
    /// there is none. Returns none where there can be none: on a read-only file system, or where
    /// only the folder's owner may put files into it.
    ///
    /// # Errors
    /// Something else is in its place.
    pub(super) fn open(folder: &Path, lock: &Path) -> Result<Option<Self>> {
        if size_of::<libc::off_t>() < size_of::<u64>() {
            // A C library that has no such byte: all must agree on it.
            return Ok(None);
        }
        let path = folder.join(NAME);
        let refused = |why: &str| {
            anyhow::anyhow!(
                "{} cannot guard the locks: {why}; remove it, or choose another folder with --lock-dir",
                path.display()
            )
        };
        for _ in 0..VANISHED_MAX {
            // Anew each time: the folder, too, may be gone, or another.
            let folder = open_lock_folder(folder)?;
            // Where an ordinary user created it, root needs one that it alone can unlink.
            if remove_foreign(&folder, OsStr::new(NAME)) {
                continue;
            }
            let file = match open_existing(&folder, OsStr::new(NAME)) {
                // Nothing is ever written into it, so other names do no harm.
                Ok(file) | Err(NotALock::Linked(file)) => file,
                Err(NotALock::Missing) => match create_file(&folder, OsStr::new(NAME)) {
                    Ok(()) | Err(rustix::io::Errno::NOENT) => continue,
                    Err(rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS) => return Ok(None),
                    Err(error) => {
                        return Err(error).with_context(|| {
                            format!("cannot create {} (see --lock-dir)", path.display())
                        });
                    }
                },
                Err(NotALock::Unlinked) => continue,
                // Only its owner can have a lease on it, who could as well unlink it.
                Err(NotALock::Leased) => return Ok(None),
                Err(NotALock::Failed(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)) => {
                    return Err(refused("it cannot be opened: permission denied"));
                }
                // We may be out of descriptors.
                Err(NotALock::Failed(error)) => {
                    bail!("{} cannot be opened: {error}", path.display())
                }
                Err(NotALock::Because(why)) => return Err(refused(&why)),
            };
            return match is_writable(&file) {
                true => Ok(Some(Guard { file, byte: byte_of(lock) })),
                false if is_without_use(&folder) => Ok(None),
                false => Err(refused("not everybody may write it")),
            };
        }
        bail!("{} vanishes as fast as it is made; something is removing it", path.display())
    }

    /// Is it still the file of its name?
    pub(super) fn is_in_place(&self, folder: &OwnedFd) -> bool {
        is_named(&self.file, folder, OsStr::new(NAME))
    }

    /// Takes the byte, or returns false at once if that is taken.
    ///
    /// # Errors
    /// As fcntl(2).
    pub(super) fn try_lock(&self, mode: LockMode) -> nix::Result<bool> {
        match self.set(kind(mode), |range| FcntlArg::F_OFD_SETLK(range)) {
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            locked => locked.map(|()| true),
        }
    }

    /// Takes the byte as soon as it is free.
    ///
    /// # Errors
    /// As fcntl(2).
    pub(super) fn lock(&self, mode: LockMode) -> nix::Result<()> {
        self.set(kind(mode), |range| FcntlArg::F_OFD_SETLKW(range))
    }

    /// Gives the byte back, for all copies of the descriptor.
    ///
    /// # Errors
    /// As fcntl(2).
    pub(super) fn unlock(&self) -> nix::Result<()> {
        self.set(libc::F_UNLCK, |range| FcntlArg::F_OFD_SETLK(range))
    }

    fn set(
        &self,
        kind: libc::c_int,
        call: impl Fn(&libc::flock) -> FcntlArg<'_>,
    ) -> nix::Result<()> {
        let range = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: self.byte as libc::off_t,
            l_len: 1,
            // It has to be zero for an open file description's.
            l_pid: 0,
        };
        loop {
            match fcntl(&self.file, call(&range)) {
                Err(Errno::EINTR) => {}
                // Linux before 3.15, or a file system without such locks.
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => return Ok(()),
                done => return done.map(drop),
            }
        }
    }
}

fn kind(mode: LockMode) -> libc::c_int {
    match mode {
        LockMode::Exclusive => libc::F_WRLCK,
        LockMode::Shared => libc::F_RDLCK,
    }
}

/// The byte of a lock: two locks with one byte would only wait for each other for no reason.
fn byte_of(lock: &Path) -> u64 {
    let digest = sha256(lock.as_os_str().as_encoded_bytes());
    let mut start = [0; size_of::<u64>()];
    start.copy_from_slice(&digest[..size_of::<u64>()]);
    // What can be locked ends at the largest offset.
    u64::from_be_bytes(start) % i64::MAX.cast_unsigned()
}

fn is_writable(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR)
}

/// Can nobody but its owner unlink anything in this folder, or nobody at all?
fn is_without_use(folder: &OwnedFd) -> bool {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    let is_read_only = rustix::fs::fstatvfs(folder)
        .is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY));
    is_read_only || rustix::fs::fstat(folder).is_ok_and(|stat| stat.st_mode & OTHERS_MAY_WRITE == 0)
}
