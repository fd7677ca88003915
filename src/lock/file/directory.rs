//! Opens and creates the lock folder and the folders in it, without following symbolic links.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::open::{ROOT, VANISHED_MAX};
use super::umask::whatever_the_umask;
use crate::user;

/// Everybody may create and lock files in a folder, and nobody may remove another user's.
const FOLDER_MODE: u32 = 0o1777;
/// The bit that lets everybody write.
const ALL_MAY_WRITE: u32 = 0o002;

/// Opens an existing folder, without following a symbolic link.
pub(super) fn open_directory(parent: impl AsFd, name: impl AsRef<Path>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (none, name) = (Mode::empty(), name.as_ref());
    let links = ResolveFlags::NO_SYMLINKS;
    match retry_on_intr(|| rustix::fs::openat2(&parent, name, flags, none, links)) {
        // Linux before 5.6, and containers that do not know this system call.
        Err(Errno::NOSYS | Errno::PERM) => {
            retry_on_intr(|| rustix::fs::openat(&parent, name, flags, none))
        }
        opened => opened,
    }
}

/// Opens a folder, if it exists.
pub(super) fn find_folder(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<Option<OwnedFd>> {
    match open_directory(parent, name) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(folder_error(path, error)),
    }
}

/// Opens the lock folder. Creates it first if it does not exist, with the folders above it.
pub(super) fn open_lock_folder(path: &Path) -> Result<OwnedFd> {
    if let Some(folder) = find_folder(CWD, path.as_os_str(), path)? {
        return Ok(folder);
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(folder_error(path, Errno::NOENT));
    };
    for _ in 0..VANISHED_MAX {
        let parent = open_or_create_above(above).with_context(|| {
            format!(
                "cannot create {}, which must contain the lock folder (see --lock-dir)",
                above.display()
            )
        })?;
        if let Some(folder) = open_or_create(&parent, name, path)? {
            return Ok(folder);
        }
    }
    Err(folder_error(path, Errno::NOENT))
}

/// Opens a folder, or creates it with its mode. Returns none if `parent` no longer exists, or if
/// another process has removed the new folder at once.
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

/// Opens the folder above the lock folder. Creates it and those above it if they are missing, open
/// to everybody whatever the umask.
///
/// `path` contains no links (see [`super::real_path`]). One that another user has planted since is
/// not followed: each folder is opened, and the next one looked up in it.
fn open_or_create_above(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let none = Mode::empty();
    let mut folder = retry_on_intr(|| rustix::fs::open("/", flags, none))?;
    for name in path.components().filter(|it| matches!(it, Component::Normal(_))) {
        let name = name.as_os_str();
        let open = || retry_on_intr(|| rustix::fs::openat(&folder, name, flags, none));
        let next = match open() {
            Err(Errno::NOENT) => {
                // The mode is not set by name afterwards, because the owner of the folder above may
                // have put something else there by then.
                let mode = Mode::from_raw_mode(0o755);
                match whatever_the_umask(|| rustix::fs::mkdirat(&folder, name, mode)) {
                    // Another process was faster. The mode of its folder is not ours to change.
                    Ok(()) | Err(Errno::EXIST) => open(),
                    Err(error) => Err(error),
                }
            }
            opened => opened,
        };
        folder = next?;
    }
    Ok(folder)
}

/// Creates a folder for everybody. A default ACL above may remove bits from its mode. They are not
/// put back, because another process may have put a different folder there by then.
fn create_folder(parent: BorrowedFd<'_>, name: &Path) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(FOLDER_MODE);
    match whatever_the_umask(|| rustix::fs::mkdirat(parent, name, mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Explains why the lock folder, or a folder in it, cannot be opened.
pub(super) fn folder_error(path: &Path, error: Errno) -> anyhow::Error {
    let shown = path.display();
    let what = std::fs::symlink_metadata(path).map(|found| found.file_type());
    match (error, what) {
        (Errno::LOOP | Errno::NOTDIR, Ok(kind)) if kind.is_symlink() => anyhow!(
            "the lock folder {shown} is a symbolic link, which is not followed; name the real folder \
             with --lock-dir"
        ),
        (Errno::NOTDIR, Ok(kind)) if !kind.is_dir() => {
            anyhow!("the lock folder {shown} is not a folder; choose another one with --lock-dir")
        }
        (error, _) => anyhow!(
            "the lock folder {shown} cannot be used: {error}; choose another one with --lock-dir"
        ),
    }
}

/// Warns of a folder from which other users may remove lock files: its owner always may, and
/// whoever may write to it may if it is not sticky.
pub(super) fn warn_of_owner(folder: &OwnedFd, path: &Path) {
    let Ok(stat) = rustix::fs::fstat(folder) else { return };
    let shown = path.display();
    if let Some(owner) = other_owner(&stat) {
        tracing::warn!(
            "the lock folder {shown} is owned by {owner}, who can break its locks; let root create it \
             ('make install' adds a line for tmpfiles.d that does)"
        );
    } else if let Some(who) = who_may_remove(&stat, path) {
        tracing::warn!(
            "{who} may remove files from the lock folder {shown}; make it sticky: chmod +t {shown}"
        );
    }
}

/// Warns of folders above the lock folder that another user may rename or replace, and the lock
/// folder with them: their owner always may, and whoever may write to them may if they are not
/// sticky.
pub(super) fn warn_of_owners_above(path: &Path) {
    for above in path.ancestors().skip(1) {
        let Ok(stat) = rustix::fs::stat(above) else { continue };
        let Some(who) = other_owner(&stat).or_else(|| who_may_remove(&stat, above)) else {
            continue;
        };
        return tracing::warn!(
            "{} contains the lock folder {} and can be changed by {who}: another folder put in its \
             place breaks the locks; choose a lock folder below folders of root's with --lock-dir",
            above.display(),
            path.display()
        );
    }
}

/// Returns the owner of a folder, if that is neither root nor this user.
fn other_owner(folder: &Stat) -> Option<String> {
    let owner = folder.st_uid;
    let is_other = owner != ROOT && owner != rustix::process::geteuid().as_raw();
    (is_other && is_mapped(owner)).then(|| user::name(owner))
}

/// Returns who, beside its owner, may remove other users' files from a folder.
fn who_may_remove(folder: &Stat, path: &Path) -> Option<String> {
    const STICKY: u32 = 0o1000;
    const GROUP_MAY_WRITE: u32 = 0o020;
    // With an access control list, these bits are its mask: somebody on it may write (acl(5)).
    let has_list =
        || rustix::fs::lgetxattr(path, "system.posix_acl_access", &mut [0; 0][..]).is_ok();
    match folder.st_mode {
        mode if mode & STICKY != 0 => None,
        mode if mode & ALL_MAY_WRITE != 0 => Some("everybody".to_owned()),
        mode if mode & GROUP_MAY_WRITE == 0 => None,
        _ if has_list() => Some("whoever its access control list lets write".to_owned()),
        // Many systems give each user a group of their own, and let it write.
        _ if user::is_alone_in_group(folder.st_uid, folder.st_gid) => None,
        _ => Some(format!("everybody in the group with the number {}", folder.st_gid)),
    }
}

/// Returns whether this number is a user in our user namespace. Users of the machine that are none,
/// root perhaps, all have one number there (user_namespaces(7)).
fn is_mapped(user: u32) -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return true };
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(count))) = (numbers.next(), numbers.nth(1)) else {
            return true;
        };
        (first..first.saturating_add(count)).contains(&user)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_that_was_planted_above_the_lock_folder_meanwhile_is_not_followed() {
        let there = tempfile::tempdir().unwrap();
        let there = there.path().canonicalize().unwrap();
        std::fs::create_dir(there.join("target")).unwrap();
        std::os::unix::fs::symlink("target", there.join("link")).unwrap();
        open_or_create_above(&there.join("link/new")).unwrap_err();
        assert_eq!(std::fs::read_dir(there.join("target")).unwrap().count(), 0);
        open_or_create_above(&there.join("a/b")).unwrap();
        assert!(there.join("a/b").is_dir());
    }
}
