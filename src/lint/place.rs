//! Finds a file to be written, without following links that another user may have planted.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlinkat};

use crate::components::Components;
use crate::user;

const ROOT: u32 = 0;

/// A name in an opened folder. Whatever another user does to the folders above, the name stays in
/// this one.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) folder: OwnedFd,
    pub(super) name: OsString,
}

impl Place {
    /// Follows a path one folder at a time, and symbolic links to where they lead.
    ///
    /// # Errors
    /// The path leads nowhere, or through a link that belongs neither to us nor to root. Its owner
    /// could have it lead into folders that only we may write.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let mut left = Components::of(path);
        let mut folder = open_start(path)?;
        while let Some(name) = left.next() {
            let there = openat(&folder, &name, looked_at(), Mode::empty())?;
            let stat = fstat(&there)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                if left.are_at_the_end() {
                    return Ok(Place { folder, name });
                }
                folder = there;
                continue;
            }
            if stat.st_uid != ROOT && stat.st_uid != rustix::process::geteuid().as_raw() {
                bail!(
                    "{} is a symbolic link that belongs to {}; name the file that it leads to",
                    name.display(),
                    user::name(stat.st_uid)
                );
            }
            // This reads the link that was opened, whatever has its name by now (readlink(2)).
            let target = readlinkat(&there, "", Vec::new())?.into_bytes();
            let target = PathBuf::from(OsString::from_vec(target));
            if target.has_root() {
                folder = open_start(&target)?;
            }
            left.follow(&target)?;
        }
        bail!("it is not a file")
    }
}

/// Opens the folder where a path begins.
fn open_start(path: &Path) -> Result<OwnedFd> {
    let start = if path.has_root() { "/" } else { "." };
    openat(CWD, start, looked_at(), Mode::empty()).with_context(|| format!("cannot open {start}"))
}

/// Opens whatever is there, a link too, without reading from it.
fn looked_at() -> OFlags {
    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC
}
