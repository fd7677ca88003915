//! Opens and creates lock files. Anything may stand in the place of a lock file.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

use super::umask::whatever_the_umask;
use crate::record::is_overgrown;

/// How often a lock file may vanish before that is an error. Each time, another process has just
/// removed it, so that many in a row are not a coincidence.
pub(super) const VANISHED_MAX: usize = 1000;
pub(super) const ROOT: u32 = 0;
/// Everybody may lock a file, and leave a record in it.
const FILE_MODE: u32 = 0o666;
/// The bits of [`FILE_MODE`] that let everybody write.
const ALL_MAY_WRITE: u32 = 0o222;

/// Why a file cannot be used as a lock file.
pub(super) enum NotALock {
    /// No file has that name.
    Missing,
    /// Another process unlinked it while we opened it.
    Unlinked,
    /// Another process has a lease on it (fcntl(2), F_SETLEASE). The kernel now ends the lease,
    /// which takes up to `/proc/sys/fs/lease-break-time` seconds.
    Leased,
    /// It is a lock file, but has other names as well.
    Linked(File),
    /// It is something else.
    Because(String),
    /// It cannot be opened. The reason may have nothing to do with the file.
    Failed(Errno),
}

impl std::fmt::Display for NotALock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotALock::Missing => f.write_str("there is no such file"),
            NotALock::Unlinked => f.write_str("it has just been removed"),
            NotALock::Leased => f.write_str("another process has a lease on it"),
            NotALock::Linked(file) => write!(f, "it has {} hard links", links(file)),
            NotALock::Because(why) => f.write_str(why),
            NotALock::Failed(error) => write!(f, "it cannot be opened: {error}"),
        }
    }
}

impl From<Errno> for NotALock {
    /// Converts an error of opening one of the file's folders.
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT => NotALock::Missing,
            Errno::STALE => NotALock::Unlinked,
            Errno::LOOP | Errno::NOTDIR => {
                NotALock::Because("its folder is no longer a folder".into())
            }
            error => NotALock::Failed(error),
        }
    }
}

/// Opens an existing lock file; for writing only if that is safe (see [`may_be_written`]).
pub(super) fn open_existing(folder: &OwnedFd, name: &OsStr) -> Result<File, NotALock> {
    // A file that we may only read can still be locked, but then it cannot name the holder. Nobody
    // may write a file that is being executed.
    let file = match open(folder, name, OFlags::RDWR) {
        Err(NotALock::Failed(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY)) => {
            open(folder, name, OFlags::RDONLY)?
        }
        opened => opened?,
    };
    let stat = rustix::fs::fstat(&file).map_err(NotALock::Failed)?;
    match (FileType::from_raw_mode(stat.st_mode), stat.st_nlink) {
        (FileType::RegularFile, 0) => Err(NotALock::Unlinked),
        (FileType::RegularFile, 1) => {
            let folder_stat = rustix::fs::fstat(folder).map_err(NotALock::Failed)?;
            if may_be_written(&file, &stat, &folder_stat) {
                return Ok(file);
            }
            let read_only = open(folder, name, OFlags::RDONLY)?;
            if is_same(&read_only, &stat) { Ok(read_only) } else { Err(NotALock::Unlinked) }
        }
        (FileType::RegularFile, _) => Err(NotALock::Linked(file)),
        (FileType::Fifo, _) => Err(NotALock::Because("it is a FIFO".into())),
        (_, _) => Err(NotALock::Because("it is not a regular file".into())),
    }
}

fn open(folder: &OwnedFd, name: &OsStr, access: OFlags) -> Result<File, NotALock> {
    // A planted FIFO must not block us, and a terminal must not become our controlling terminal.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match open_in(folder, name, flags | access) {
        Ok(file) => Ok(file.into()),
        Err(Errno::XDEV) => Err(NotALock::Because(
            "something is mounted over it, which umount(8) takes away".into(),
        )),
        Err(Errno::NOENT) => Err(NotALock::Missing),
        // A network file system reports a file that was unlinked like this.
        Err(Errno::STALE) => Err(NotALock::Unlinked),
        Err(Errno::WOULDBLOCK) => Err(NotALock::Leased),
        Err(Errno::LOOP) => Err(NotALock::Because("it is a symbolic link".into())),
        Err(Errno::ISDIR) => Err(NotALock::Because("it is a folder".into())),
        Err(Errno::NXIO) => Err(NotALock::Because("it is a socket or a device".into())),
        Err(error) => Err(NotALock::Failed(error)),
    }
}

/// Opens a file in this folder and on its file system. Where users may mount file systems of their
/// own (fusermount3), they can mount one over any file that they may write. That file system could
/// give each caller another file, or never answer.
fn open_in(folder: &OwnedFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let here = ResolveFlags::NO_XDEV;
    let none = Mode::empty();
    match retry_on_intr(|| rustix::fs::openat2(folder, name, flags, none, here)) {
        // Linux before 5.6, and containers that do not know this system call.
        Err(Errno::NOSYS | Errno::PERM) => {
            retry_on_intr(|| rustix::fs::openat(folder, name, flags, none))
        }
        opened => opened,
    }
}

/// Returns what stands under a name in this folder, without opening it.
pub(super) fn look(folder: &OwnedFd, name: &OsStr) -> Result<Stat, Errno> {
    rustix::fs::fstat(open_in(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?)
}

/// Returns how many names a file has, for people.
pub(super) fn links(file: &File) -> String {
    file.metadata().map_or_else(|_| "several".to_owned(), |file| file.nlink().to_string())
}

/// Returns whether it is safe to write to a file. If other users may put files into the folder, they
/// could move one of our precious files there. So there, the file must be one that everybody may
/// write, as every new lock file is. On a file system without modes, no such folder exists.
fn may_be_written(file: &File, stat: &Stat, folder: &Stat) -> bool {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    let is_private = folder.st_mode & OTHERS_MAY_WRITE == 0 && folder.st_uid == stat.st_uid;
    // The class that a user is in counts, not the one with more rights.
    let all_may_write = || {
        stat.st_mode & ALL_MAY_WRITE == ALL_MAY_WRITE
            && access_control_list(file).is_none_or(|list| lets_all_write(&list))
    };
    is_private || all_may_write()
}

/// Returns the access control list of a file, if it has one. With one, the mode does not tell who
/// may write (acl(5)).
fn access_control_list(file: &File) -> Option<Vec<u8>> {
    /// In bytes; a list that lets everybody write needs less. A longer one does not count as such.
    const LONGEST: usize = 4096;
    let mut list = vec![0; LONGEST];
    match rustix::fs::fgetxattr(file, "system.posix_acl_access", &mut list[..]) {
        Ok(length) => list.truncate(length),
        Err(Errno::RANGE) => list.clear(),
        Err(_) => return None,
    }
    Some(list)
}

/// Reads a list as the kernel gives it (linux/posix_acl_xattr.h): a version, and then for each entry
/// its kind, permissions and ID.
fn lets_all_write(list: &[u8]) -> bool {
    const HEADER: usize = 4;
    const ENTRY: usize = 8;
    const WRITE: u8 = 2;
    let entries = list.get(HEADER..).unwrap_or_default();
    !entries.is_empty()
        && entries.chunks(ENTRY).all(|it| it.get(2).is_some_and(|it| it & WRITE != 0))
}

/// Returns whether root must replace this file with one of its own. In root's sticky folder, the
/// user who created the file could unlink it while another process holds it (chmod(2)). The next
/// caller would then create and lock another file.
///
/// Changing the owner would not help: the old owner may have the file open, or may have given it
/// other names and another mode.
pub(super) fn is_foreign(file: &Stat, folder: &OwnedFd) -> bool {
    may_be_foreign(file) && rustix::fs::fstat(folder).is_ok_and(|folder| folder.st_uid == ROOT)
}

/// Returns whether the answer of [`is_foreign`] may be yes, without a look at the folder.
pub(super) fn may_be_foreign(file: &Stat) -> bool {
    rustix::process::geteuid().is_root() && file.st_uid != ROOT
}

/// Returns whether only root, we and the owner of the folder can rename or unlink this file, in a
/// sticky folder.
pub(super) fn is_out_of_reach(file: &Stat, folder: &OwnedFd) -> bool {
    file.st_uid == ROOT
        || file.st_uid == rustix::process::geteuid().as_raw()
        || rustix::fs::fstat(folder).is_ok_and(|folder| folder.st_uid == file.st_uid)
}

/// Takes a file's name away. An overgrown one only gets another name, which 'buildlock prune'
/// removes: with its last name, we would free it when we close it.
pub(super) fn discard(file: &File, folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    if !is_overgrown(file) {
        return rustix::fs::unlinkat(folder, name, AtFlags::empty());
    }
    let bytes = name.as_bytes();
    let stem = bytes.split(|&c| c == b'.').next().unwrap_or_default();
    let aside = [stem, format!(".discarded-{:016x}.lock", fastrand::u64(..)).as_bytes()].concat();
    rustix::fs::renameat(folder, name, folder, &*aside)
}

/// Returns whether this file is the one that `name` in `folder` names.
///
/// Nothing is opened for that: anybody can lock very many bytes of the guard, and the kernel goes
/// through all of them whenever a descriptor of it is closed. Nor is anything asked of the file
/// system that a user may have mounted there.
pub(super) fn is_named(file: &File, folder: &OwnedFd, name: &OsStr) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match retry_on_intr(|| rustix::fs::statx(folder, name, flags, StatxFlags::INO)) {
        Ok(there) => rustix::fs::fstat(file).is_ok_and(|ours| {
            let device = rustix::fs::makedev(there.stx_dev_major, there.stx_dev_minor);
            (ours.st_dev, ours.st_ino) == (device, there.stx_ino)
        }),
        // A container that does not know this system call.
        Err(Errno::NOSYS | Errno::PERM) => {
            look(folder, name).is_ok_and(|there| is_same(file, &there))
        }
        Err(_) => false,
    }
}

fn is_same(file: &File, stat: &Stat) -> bool {
    let ours = rustix::fs::fstat(file);
    ours.is_ok_and(|ours| (ours.st_dev, ours.st_ino) == (stat.st_dev, stat.st_ino))
}

/// Creates a lock file completely, with its mode, and then puts it in place. An existing file is
/// kept.
pub(super) fn create_file(folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(FILE_MODE);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let nameless =
        rustix::fs::openat(folder, ".", flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR).and_then(
            |file| {
                rustix::fs::fchmod(&file, mode)?;
                // AT_EMPTY_PATH would need a privilege (linkat(2)).
                let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
                rustix::fs::linkat(CWD, itself, folder, name, AtFlags::SYMLINK_FOLLOW)
            },
        );
    match nameless {
        Ok(()) | Err(Errno::EXIST) => return Ok(()),
        Err(error @ (Errno::ACCESS | Errno::ROFS | Errno::NOSPC | Errno::DQUOT)) => {
            return Err(error);
        }
        // Some file systems have no nameless files, and some containers have no /proc.
        Err(_) => {}
    }
    // Without a temporary name, a process that is killed here leaves nothing behind.
    let create = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let created = whatever_the_umask(|| {
        let file = rustix::fs::openat(folder, name, create, mode)?;
        // A default ACL removes bits whatever the umask. A file system without modes (vfat, SMB)
        // gives all files the same.
        match rustix::fs::fchmod(file, mode) {
            Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
            changed => changed,
        }
    });
    match created {
        Err(Errno::EXIST) => Ok(()),
        created => created,
    }
}
