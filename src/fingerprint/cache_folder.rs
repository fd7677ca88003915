//! The folder where this user's buildlock keeps what spares it time: `$XDG_CACHE_HOME/buildlock`.
//!
//! Nobody else may write there, and a file that somebody else may have written is not read.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::clock::Clock;

/// How the names of files begin that are not complete yet.
const TEMPORARY: &str = "new-";

/// An open folder.
#[derive(Debug)]
pub(super) struct CacheFolder(OwnedFd);

/// Returns the folder for caches of all programs, if the environment names one.
pub(super) fn home() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}

impl CacheFolder {
    /// Opens the folder below [`home`], and makes it if it is missing.
    ///
    /// # Errors
    /// It cannot be opened, or others may write there.
    pub(super) fn open_in(home: &Path) -> Result<Self, String> {
        let private = Mode::RWXU;
        let failed = |what: &Path, error: Errno| format!("{}: {error}", what.display());
        let folder = home.join("buildlock");
        let opened = match open_folder(&folder) {
            Err(Errno::NOENT) => {
                // root with a user's HOME must not leave its own folders there.
                match rustix::fs::mkdir(home, private) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed(home, error)),
                }
                let above = rustix::fs::stat(home).map_err(|error| failed(home, error))?;
                is_own(&above).map_err(|why| format!("{}: {why}", home.display()))?;
                match rustix::fs::mkdir(&folder, private) {
                    Ok(()) | Err(Errno::EXIST) => open_folder(&folder),
                    Err(error) => Err(error),
                }
            }
            opened => opened,
        };
        let opened = opened.map_err(|error| failed(&folder, error))?;
        let stat = rustix::fs::fstat(&opened).map_err(|error| failed(&folder, error))?;
        is_own(&stat).map_err(|why| format!("{}: {why}", folder.display()))?;
        Ok(CacheFolder(opened))
    }

    /// Opens one of our files, and returns it with its size, which is at most `largest`.
    ///
    /// # Errors
    /// It cannot be opened, is larger, or somebody else may have written it.
    pub(super) fn open_file(&self, name: &str, largest: u64) -> Result<(File, u64), String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.0, name, flags, Mode::empty());
        let file = opened.map_err(|error| error.to_string())?;
        let stat = rustix::fs::fstat(&file).map_err(|error| error.to_string())?;
        is_own(&stat)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err("it is not a regular file".to_owned());
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        if size > largest {
            return Err("it is too large".to_owned());
        }
        Ok((file.into(), size))
    }

    /// Writes a file in one step, so that no reader sees a part of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), std::io::Error> {
        let temporary = format!("{TEMPORARY}{}-{:08x}", std::process::id(), fastrand::u32(..));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.0, &*temporary, flags, mode)?;
        let written = File::from(file)
            .write_all(content)
            .and_then(|()| Ok(rustix::fs::renameat(&self.0, &*temporary, &self.0, name)?));
        if written.is_err() {
            self.remove(&temporary);
        }
        written
    }

    /// Removes what interrupted writes have left, and the files that are useless. Looks at so many.
    pub(super) fn remove_leftovers(&self, at_once: usize, is_useless: impl Fn(&str) -> bool) {
        const DAY: i64 = 24 * 60 * 60;
        let now = Clock::now().time.0;
        for name in self.names().take(at_once) {
            let is_useless = match name.starts_with(TEMPORARY) {
                true => self.modified(&name).is_some_and(|modified| modified < now - DAY),
                false => is_useless(&name),
            };
            if is_useless {
                self.remove(&name);
            }
        }
    }

    /// Removes all but the newest `kept` of the files whose names begin like this.
    pub(super) fn keep_newest(&self, start: &str, kept: usize) {
        let names = self.names().filter(|name| name.starts_with(start));
        let mut all: Vec<_> = names.map(|name| (self.modified(&name), name)).collect();
        all.sort_unstable_by(|one, other| other.cmp(one));
        all.iter().skip(kept).for_each(|(_, name)| self.remove(name));
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let entries = rustix::fs::Dir::read_from(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(entry.file_name().to_str().ok()?.to_owned()))
    }

    /// Returns when a file was last written, in seconds.
    fn modified(&self, name: &str) -> Option<i64> {
        let stat = rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        #[allow(clippy::unnecessary_cast)]
        Some(stat.st_mtime as i64)
    }

    fn remove(&self, name: &str) {
        _ = rustix::fs::unlinkat(&self.0, name, AtFlags::empty());
    }
}

fn open_folder(folder: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty())
}

/// Nobody else may have written it.
fn is_own(stat: &Stat) -> Result<(), &'static str> {
    const OTHERS_MAY_WRITE: u32 = 0o022;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err("it belongs to another user");
    }
    if stat.st_mode & OTHERS_MAY_WRITE != 0 {
        return Err("other users may write it");
    }
    Ok(())
}
