//! Finds the real path of the lock folder, without following links that another user may have
//! planted.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::components::Components;
use crate::user;

/// A sticky folder where everybody may create files.
const STICKY_FOR_ALL: u32 = 0o1002;

/// Returns the absolute path of the lock folder, with the links above it followed. The folder itself
/// need not exist, and is not followed if it is a link.
///
/// # Errors
/// The path is `/`, which would get a mode for everybody, or another user may have planted a link
/// on the way.
pub(super) fn real_path(path: &Path) -> Result<PathBuf> {
    let cannot = || format!("'{}' cannot be the lock folder (see --lock-dir)", path.display());
    let absolute = std::path::absolute(path).with_context(cannot)?;
    let real = follow(&absolute).with_context(cannot)?;
    if real.parent().is_none() {
        bail!("{}: choose a folder only for locks", cannot());
    }
    Ok(real)
}

/// Follows the links above `path` as the kernel does with `fs.protected_symlinks`
/// (proc_sys_fs(5)), whether or not that is set. In a sticky folder where everybody may create
/// files, a link counts only if it belongs to us or to the owner of the folder.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut left = Components::of(path);
    let mut found = PathBuf::from("/");
    while let Some(name) = left.next() {
        if name == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&name);
        let link = std::fs::symlink_metadata(&next).ok().filter(std::fs::Metadata::is_symlink);
        let Some(link) = link.filter(|_| !left.are_at_the_end()) else {
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
                "{} is a symbolic link that belongs to {}, in a folder where everybody may create \
                 links; name the real folder",
                next.display(),
                user::name(link.uid())
            );
        }
        let target = std::fs::read_link(&next)?;
        if target.has_root() {
            found = PathBuf::from("/");
        }
        left.follow(&target).map_err(std::io::Error::from)?;
    }
    Ok(found)
}
