//! Opening lock files and their folders, and creating them: what stands in their place may be
//! anything.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use crate::user;

/// How often a lock file may vanish before that is an error. Each time another process has just
/// removed it, so this many in a row are not an accident.
pub(super) const VANISHED_MAX: usize = 1000;
/// Everybody may create and lock files in it, nobody remove another's.
const FOLDER_MODE: u32 = 0o1777;
/// Everybody may lock it, and leave a record in it.
const FILE_MODE: u32 = 0o666;
/// The bit of [`FILE_MODE`] that lets everybody write.
const ALL_MAY_WRITE: u32 = 0o002;
/// The sticky bit, and everybody may write.
const STICKY_FOR_ALL: u32 = 0o1002;
const ROOT: u32 = 0;

/// Why a name is not a lock file that can be used.
pub(super) enum NotALock {
    /// There is nothing of that name.
    Missing,
    /// Somebody unlinked it while we opened it.
    Unlinked,
    /// Somebody has a lease on it (fcntl(2), F_SETLEASE), which the kernel now ends; that takes up
    /// to `/proc/sys/fs/lease-break-time` seconds.
    Leased,
    /// It is a lock file, and has other names as well.
    Linked(File),
    /// It is something else.
    Because(String),
    /// It cannot be opened, for a reason that may not be its own.
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
    /// What opening one of its folders may end with.
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

/// Opens a lock file, if it is one. It can be written only if that is safe: see [`may_be_written`].
pub(super) fn open_existing(folder: &OwnedFd, name: &OsStr) -> Result<File, NotALock> {
    // One that may only be read can be locked as well; then nobody learns who holds it.
    let file = match open(folder, name, OFlags::RDWR) {
        Err(NotALock::Failed(Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
            open(folder, name, OFlags::RDONLY)?
        }
        opened => opened?,
    };
    let stat = rustix::fs::fstat(&file).map_err(NotALock::Failed)?;
    match (FileType::from_raw_mode(stat.st_mode), stat.st_nlink) {
        (FileType::RegularFile, 0) => Err(NotALock::Unlinked),
        (FileType::RegularFile, 1) => {
            let folder_stat = rustix::fs::fstat(folder).map_err(NotALock::Failed)?;
            if may_be_written(&stat, &folder_stat) {
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
    // A planted FIFO or terminal must neither hang us nor become ours.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match retry_on_intr(|| rustix::fs::openat(folder, name, flags | access, Mode::empty())) {
        Ok(file) => Ok(file.into()),
        Err(Errno::NOENT) => Err(NotALock::Missing),
        // A network file system's word for a file that somebody has unlinked.
        Err(Errno::STALE) => Err(NotALock::Unlinked),
        Err(Errno::WOULDBLOCK) => Err(NotALock::Leased),
        Err(Errno::LOOP) => Err(NotALock::Because("it is a symbolic link".into())),
        Err(Errno::ISDIR) => Err(NotALock::Because("it is a folder".into())),
        Err(Errno::NXIO) => Err(NotALock::Because("it is a socket or a device".into())),
        Err(error) => Err(NotALock::Failed(error)),
    }
}

/// How many names a file has, for people.
pub(super) fn links(file: &File) -> String {
    file.metadata().map_or_else(|_| "several".to_owned(), |file| file.nlink().to_string())
}

/// Writing is safe only into a file that everybody may write, as each lock file is made: where
/// others may put files into the folder, they can move one of ours there that is precious. A file
/// system without modes has no such folders.
fn may_be_written(file: &Stat, folder: &Stat) -> bool {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    let is_private = folder.st_mode & OTHERS_MAY_WRITE == 0 && folder.st_uid == file.st_uid;
    file.st_mode & ALL_MAY_WRITE != 0 || is_private
}

/// Must root replace this file by one of its own? In root's folder, the user who created it could
/// unlink it while somebody holds it, and so let the next caller create another one (sticky
/// directories in chmod(2)).
///
/// It is not just given to root: its owner may have it open, and give it other names and another
/// mode.
pub(super) fn is_foreign(file: &Stat, folder: &OwnedFd) -> bool {
    may_be_foreign(file) && rustix::fs::fstat(folder).is_ok_and(|folder| folder.st_uid == ROOT)
}

/// The same, as far as that can be told without the folder.
pub(super) fn may_be_foreign(file: &Stat) -> bool {
    rustix::process::geteuid().is_root() && file.st_uid != ROOT
}

/// Can nobody rename or unlink this file but root, ourselves and the folder's owner? The folder is
/// sticky.
pub(super) fn is_out_of_reach(file: &Stat, folder: &OwnedFd) -> bool {
    file.st_uid == ROOT
        || file.st_uid == rustix::process::geteuid().as_raw()
        || rustix::fs::fstat(folder).is_ok_and(|folder| folder.st_uid == file.st_uid)
}

/// Removes a file from the place of the guard that root must replace. Returns whether it has.
pub(super) fn remove_foreign(folder: &OwnedFd, name: &OsStr) -> bool {
    let there = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    there.is_ok_and(|there| is_foreign(&there, folder))
        && rustix::fs::unlinkat(folder, name, AtFlags::empty()).is_ok()
}

/// Does `name` in `folder` name this very file?
pub(super) fn is_named(file: &File, folder: &OwnedFd, name: &OsStr) -> bool {
    let there = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    there.is_ok_and(|there| is_same(file, &there))
}

fn is_same(file: &File, stat: &Stat) -> bool {
    let ours = rustix::fs::fstat(file);
    ours.is_ok_and(|ours| (ours.st_dev, ours.st_ino) == (stat.st_dev, stat.st_ino))
}

/// Creates a lock file whole, with its mode, and puts it in place; one that is there already wins.
pub(super) fn create_file(folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(FILE_MODE);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let nameless =
        rustix::fs::openat(folder, ".", flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR).and_then(
            |file| {
                rustix::fs::fchmod(&file, mode)?;
                // linkat(2): AT_EMPTY_PATH would need a privilege.
                let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
                rustix::fs::linkat(CWD, itself, folder, name, AtFlags::SYMLINK_FOLLOW)
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

/// The absolute path of the lock folder, with the links above it followed. The folder itself need
/// not be there, and is not followed if it is a link.
///
/// # Errors
/// It is `/`, which would get a folder for everybody; or a link on the way is one that another user
/// may have planted.
pub(super) fn real_path(path: &Path) -> Result<PathBuf> {
    let cannot = || format!("'{}' cannot be the lock folder (see --lock-dir)", path.display());
    let absolute = std::path::absolute(path).with_context(cannot)?;
    let real = follow(&absolute).with_context(cannot)?;
    if real.parent().is_none() {
        bail!("{}: choose a folder of its own", cannot());
    }
    Ok(real)
}

/// Follows the links above `path` as the kernel does with `fs.protected_symlinks`
/// (proc_sys_fs(5)), whether or not that is set: in a sticky folder that everybody may write, a
/// link counts only if it is our own or the folder owner's.
fn follow(path: &Path) -> Result<PathBuf> {
    /// As many as the kernel follows (path_resolution(7)).
    const LINKS_MAX: usize = 40;
    let mut links = 0;
    let mut left = VecDeque::new();
    let mut found = PathBuf::from("/");
    prepend(&mut left, path);
    while let Some(name) = left.pop_front() {
        if name == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&name);
        let link = std::fs::symlink_metadata(&next).ok().filter(std::fs::Metadata::is_symlink);
        let Some(link) = link.filter(|_| !left.is_empty()) else {
            found = next;
            continue;
        };
        let folder = std::fs::metadata(&found)?;
        let ours = rustix::process::geteuid().as_raw();
        if folder.mode() & STICKY_FOR_ALL == STICKY_FOR_ALL
            && link.uid() != ours
            && link.uid() != folder.uid()
        {
            bail!(
                "{} is a symbolic link of {}, in a folder where everybody may put one; name the real folder",
                next.display(),
                user::name(link.uid())
            );
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(std::io::Error::from(Errno::LOOP).into());
        }
        let target = std::fs::read_link(&next)?;
        if target.has_root() {
            found = PathBuf::from("/");
        }
        prepend(&mut left, &target);
    }
    Ok(found)
}

fn prepend(left: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        if matches!(component, Component::Normal(_) | Component::ParentDir) {
            left.push_front(component.as_os_str().to_owned());
        }
    }
}

/// Opens a folder that is there, without following a symbolic link.
pub(super) fn open_directory(parent: impl AsFd, name: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (none, name) = (Mode::empty(), name.as_ref());
    let links = ResolveFlags::NO_SYMLINKS;
    match retry_on_intr(|| rustix::fs::openat2(&parent, name, flags, none, links)) {
        // Linux before 5.6, and containers that know no such call.
        Err(Errno::NOSYS | Errno::PERM) => {
            retry_on_intr(|| rustix::fs::openat(&parent, name, flags, none))
        }
        opened => opened,
    }
}

/// Opens a folder if there is one.
pub(super) fn find_folder(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<Option<OwnedFd>> {
    match open_directory(parent, name) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(folder_error(path, error)),
    }
}

/// Opens the lock folder, and creates it, with what is missing above it, if there is none.
pub(super) fn open_lock_folder(path: &Path) -> Result<OwnedFd> {
    for _ in 0..VANISHED_MAX {
        if let Some(folder) = open_or_create(CWD, path.as_os_str(), path)? {
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
pub(super) fn open_or_create(
    parent: impl AsFd,
    name: &OsStr,
    path: &Path,
) -> Result<Option<OwnedFd>> {
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
        // Another process was faster; its mode is not ours to change.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// A default ACL above may take bits from its mode. They are not put back: by then, somebody else
/// may have put another folder in its place.
fn create_folder(parent: BorrowedFd<'_>, name: &Path) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(FOLDER_MODE);
    match whatever_the_umask(|| rustix::fs::mkdirat(parent, name, mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn folder_error(path: &Path, error: Errno) -> anyhow::Error {
    let shown = path.display();
    let what = std::fs::symlink_metadata(path).map(|found| found.file_type());
    match (error, what) {
        (Errno::LOOP | Errno::NOTDIR, Ok(kind)) if kind.is_symlink() => anyhow!(
            "the lock folder {shown} is a symbolic link, and is not followed; name the real folder with --lock-dir"
        ),
        (Errno::NOTDIR, Ok(kind)) if !kind.is_dir() => {
            anyhow!("the lock folder {shown} is not a folder; choose another one with --lock-dir")
        }
        (error, _) => {
            anyhow!(
                "the lock folder {shown} cannot be used: {error}; choose another one with --lock-dir"
            )
        }
    }
}

/// The folder's owner can remove other users' lock files, and so can everybody where it is not
/// sticky.
pub(super) fn warn_of_owner(folder: &OwnedFd, path: &Path) {
    let Ok(stat) = rustix::fs::fstat(folder) else { return };
    let shown = path.display();
    if stat.st_uid != ROOT && stat.st_uid != rustix::process::geteuid().as_raw() {
        tracing::warn!(
            "the lock folder {shown} is owned by {}, who can break its locks; let root make it (make \
             install ships a line for tmpfiles.d that does)",
            user::name(stat.st_uid)
        );
    } else if stat.st_mode & STICKY_FOR_ALL == ALL_MAY_WRITE {
        tracing::warn!(
            "everybody may remove files from the lock folder {shown}; make it sticky: chmod +t {shown}"
        );
    }
}
