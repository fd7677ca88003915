//! The lock folder, and the files in it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Dir, Stat};
use rustix::io::Errno;

use super::super::key::{BUILD_SLOTS, CACHE_LOCKS, IMAGE_LOCKS, Key, NAMED_LOCKS};
use super::super::store::Passing;
use super::directory::{
    find_folder, folder_error, open_lock_folder, open_or_create, warn_of_owner,
    warn_of_owners_above,
};
use super::guard::{Guard, OpenGuard};
use super::held::LockFile;
use super::open::{NotALock, VANISHED_MAX, create_file, links, look, open_existing};
use super::outer::OuterBytes;
use super::real_path::real_path;
use crate::record::{Holder, Ourselves};
use crate::subject::Subject;

/// The folders of all kinds of locks.
pub(super) const FOLDERS: [&str; 4] = [IMAGE_LOCKS, NAMED_LOCKS, CACHE_LOCKS, BUILD_SLOTS];

/// What the names of lock files end with, after a dot.
pub(super) const LOCK: &str = "lock";
/// What the names of notes end with, after a dot.
pub(super) const NOTE: &str = "json";

/// Lock files in one folder.
///
/// It keeps no descriptor of the folder. Later callers go by its path, so the path counts, even if
/// another folder is put in its place.
pub struct FileStore {
    pub(super) path: PathBuf,
    pub(super) ourselves: Ourselves,
    pub(super) outer: OuterBytes,
    pub(super) guard: OpenGuard,
}

impl FileStore {
    /// Opens the lock folder, to take locks for these subjects in. It is created if there is none.
    ///
    /// # Errors
    /// It is not a folder, or a symbolic link, or cannot be opened or created.
    pub fn open(path: &Path, ourselves: Ourselves, subjects: &[Subject]) -> Result<Self> {
        let store = FileStore::new(real_path(path)?, ourselves);
        warn_of_owner(&open_lock_folder(&store.path)?, &store.path);
        warn_of_owners_above(&store.path);
        let keys = subjects.iter().map(|subject| Key::new(subject.clone()));
        let kinds: Vec<Key> = keys.collect();
        for same in kinds.chunk_by(|a, b| a.folder() == b.folder()) {
            let folder = store.folder_of(&same[0])?;
            warn_of_owner(&folder, &store.path.join(same[0].folder()));
        }
        Ok(store)
    }

    /// Opens the lock folder to look at it. It need not exist.
    ///
    /// # Errors
    /// It is not a folder, or a symbolic link, or cannot be opened.
    pub fn at(path: &Path) -> Result<Self> {
        let path = real_path(path)?;
        find_folder(CWD, path.as_os_str(), &path)?;
        Ok(FileStore::new(path, Arc::new(Holder::default)))
    }

    fn new(path: PathBuf, ourselves: Ourselves) -> Self {
        FileStore { path, ourselves, outer: OuterBytes::default(), guard: OpenGuard::default() }
    }

    pub(super) fn path_of(&self, key: &Key) -> PathBuf {
        self.path.join(key.relative_path())
    }

    pub(super) fn is_there(&self, key: &Key) -> bool {
        let folder = self.existing_folder(key.folder());
        let name = key.relative_path();
        let name = name.file_name().unwrap_or_default();
        let is_there = |folder: OwnedFd| !matches!(look(&folder, name), Err(Errno::NOENT));
        folder.ok().flatten().is_some_and(is_there)
    }

    /// Returns the folder for a lock, which is created if there is none.
    pub(super) fn folder_of(&self, key: &Key) -> Result<OwnedFd> {
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

    pub(super) fn existing_folder(&self, name: &str) -> Result<Option<OwnedFd>> {
        match find_folder(CWD, self.path.as_os_str(), &self.path)? {
            Some(parent) => find_folder(&parent, OsStr::new(name), &self.path.join(name)),
            None => Ok(None),
        }
    }

    /// Opens the lock file and makes sure that it is one. Nothing is written before that.
    pub(super) fn open_file(&self, key: &Key) -> Result<LockFile> {
        self.open_unless_leased(key)?.ok_or_else(|| {
            let path = self.path_of(key);
            Passing(format!("another process has a lease on {}", path.display())).into()
        })
    }

    /// Opens the lock file. Returns `None` while another process has a lease on it, which ends soon.
    pub(super) fn open_unless_leased(&self, key: &Key) -> Result<Option<LockFile>> {
        let relative = key.relative_path();
        let name = relative.file_name().unwrap_or_default();
        let path = self.path.join(&relative);
        for _ in 0..VANISHED_MAX {
            // Each time anew: the folder, too, may have been removed or replaced.
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

    /// Returns this lock's byte of the guard. Notes need none.
    pub(super) fn guard(&self, key: &Key) -> Result<Option<Guard>> {
        if key.is_memory() {
            return Ok(None);
        }
        self.guard.byte(&self.path, &key.relative_path())
    }

    /// Returns the same through a descriptor of its own, so that it excludes this process's locks.
    pub(super) fn own_guard(&self, key: &Key) -> Result<Option<Guard>> {
        Guard::open(&self.path, &key.relative_path())
    }

    /// Calls `visit` with each lock file whose inode is one of `inodes`.
    pub(super) fn each_file(
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
                // It may have been removed in the meantime, and then it is no longer a lock file.
                let Ok(file) = open_existing(&folder_fd, &entry.name) else { continue };
                let Ok(stat) = rustix::fs::fstat(&file) else { continue };
                visit(path.join(&entry.name), &file, &stat);
            }
        }
        Ok(())
    }
}

/// A file in a folder.
pub(super) struct Entry {
    pub(super) name: OsString,
    inode: u64,
}

/// Returns the files in a folder that are named like locks or notes.
pub(super) fn entries(folder: &OwnedFd, path: &Path, kind: &str) -> Result<Vec<Entry>> {
    let unreadable = || format!("cannot read the lock folder {}", path.display());
    let mut found = Vec::new();
    for entry in Dir::read_from(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let is_one =
            if path.ends_with(BUILD_SLOTS) { begins_with_number } else { begins_with_hash };
        if Path::new(name).extension() == Some(OsStr::new(kind)) && is_one(name) {
            found.push(Entry { name: name.to_owned(), inode: entry.ino() });
        }
    }
    Ok(found)
}

/// Returns whether the name begins as a slot's does.
fn begins_with_number(name: &OsStr) -> bool {
    let number = name.as_bytes().split(|&c| c == b'.').next().unwrap_or_default();
    !number.is_empty() && number.iter().all(u8::is_ascii_digit)
}

/// Returns whether the name begins as a lock's does, with a sha256 in hex.
fn begins_with_hash(name: &OsStr) -> bool {
    const LENGTH: usize = 64;
    let hash = name.as_bytes().split(|&c| c == b'.').next().unwrap_or_default();
    hash.len() == LENGTH && hash.iter().all(u8::is_ascii_hexdigit)
}
