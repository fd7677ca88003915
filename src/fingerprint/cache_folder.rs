//! The folder where this user's buildlock keeps what spares it time: `$XDG_CACHE_HOME/buildlock`.
//!
//! Nobody else may write there, and a file that somebody else may have written is not read.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::own_folder::{OwnFolder, is_hex, is_owned_by};
use super::owners::is_root_or_caller;
use super::way::Way;

/// Returns the folder for caches of all programs, if the environment names one.
pub(super) fn home() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}

/// Opens the folder below [`home`], and makes it if it is missing.
///
/// # Errors
/// It cannot be opened, or others may write there.
pub(super) fn open_in(home: &Path) -> Result<OwnFolder, String> {
    let private = Mode::RWXU;
    let failed = |what: &Path, error: Errno| format!("{}: {error}", what.display());
    let folder = home.join("buildlock");
    // root with a user's HOME must not follow a link of that user's to a folder of root's.
    let way = Way::to(&folder, is_root_or_caller).map_err(|error| failed(&folder, error))?;
    if let Some((path, who)) = way.exchangeable {
        return Err(format!("{who} can put something else in the place of {}", path.display()));
    }
    if way.is_open {
        return Err(format!("everybody may write above {}", folder.display()));
    }
    let ours = rustix::process::geteuid().as_raw();
    let opened = match open_folder(&folder) {
        Err(Errno::NOENT) => {
            // root with a user's HOME must not leave its own folders there.
            match rustix::fs::mkdir(home, private) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(home, error)),
            }
            let above = rustix::fs::stat(home).map_err(|error| failed(home, error))?;
            is_owned_by(ours, &above).map_err(|why| format!("{}: {why}", home.display()))?;
            match rustix::fs::mkdir(&folder, private) {
                Ok(()) | Err(Errno::EXIST) => open_folder(&folder),
                Err(error) => Err(error),
            }
        }
        opened => opened,
    };
    let opened = opened.map_err(|error| failed(&folder, error))?;
    OwnFolder::new(opened, ours, Mode::RUSR | Mode::WUSR)
        .map_err(|why| format!("{}: {why}", folder.display()))
}

/// Returns whether this is the start of a hash that names a file.
pub(super) fn is_short_hash(name: &str) -> bool {
    name.len() == 32 && is_hex(name)
}

/// Opens a folder that is no link.
pub(super) fn open_folder(folder: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty())
}
