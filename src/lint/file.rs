//! Reads the files that lint looks at, and writes the fixed ones.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::place::Place;
use crate::user;

/// More bytes than any Dockerfile has.
const LONGEST: u64 = 16 << 20;

/// Reads a file that is not absurdly long.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let text = File::open(path).and_then(bounded);
    text.with_context(|| format!("cannot read {}", path.display()))
}

/// Reads stdin, up to the same length.
pub(super) fn read_stdin() -> Result<Vec<u8>> {
    bounded(io::stdin().lock()).context("cannot read stdin")
}

fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(LONGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST {
        Err(io::Error::other("it is longer than 16 MiB"))
    } else {
        Ok(text)
    }
}

/// Replaces the text `before` of a file. A new file takes the old one's place, so that readers see
/// one or the other. The file itself is written if we may not write to its folder, or if a new file
/// would lose its owner, its other names or its attributes.
///
/// Another user may exchange files and folders meanwhile, and we may be root. So the folder is
/// opened once, and from then on everything is done by descriptors and by names in that folder.
///
/// # Errors
/// The file could not be written, or another process has changed it, or another user may have put
/// it there. Then its text stays.
pub(super) fn write(path: &Path, before: &[u8], text: &[u8]) -> Result<()> {
    // Symbolic links stay.
    let place = Place::of(path)?;
    // A file that we may not write is not replaced either. What another user puts there must
    // neither block us nor become our terminal.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(&place.folder, &place.name, flags | OFlags::CLOEXEC, Mode::empty())?;
    let file = File::from(file);
    let old = file.metadata()?;
    if !old.is_file() {
        bail!("it is not a file");
    }
    refuse_if_planted(&place, &old)?;
    let mut now = Vec::new();
    (&file).take(LONGEST + 1).read_to_end(&mut now)?;
    if now != before {
        bail!(CHANGED);
    }
    // A new file that already belongs to its owner must not get these bits: the owner may have
    // changed its text.
    const SET_ID: u32 = 0o6000;
    if old.nlink() > 1 || old.mode() & SET_ID != 0 || has_attributes(&file) {
        return Ok(overwrite(&file, before, text)?);
    }
    match replace(&place, &old, text) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::StaleNetworkFileHandle => bail!(CHANGED),
        // Then the old file cannot grow either.
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            Err(error.into())
        }
        Err(_) => Ok(overwrite(&file, before, text)?),
    }
}

const CHANGED: &str = "it has changed in the meantime; run lint again";

/// As root, refuses a file of somebody else's in a user's folder. That user may have moved or
/// linked it there.
fn refuse_if_planted(place: &Place, file: &Metadata) -> Result<()> {
    const ROOT: u32 = 0;
    let owner = rustix::fs::fstat(&place.folder)?.st_uid;
    if rustix::process::geteuid().is_root() && owner != ROOT && file.uid() != owner {
        let owner = user::name(owner);
        bail!(
            "it belongs to {}, but its folder to {owner}, who may have put it there; run lint \
             --fix as {owner}, or change the owner of the file",
            user::name(file.uid())
        );
    }
    Ok(())
}

/// Returns whether the file has attributes that a new one would lack, such as an access list.
fn has_attributes(file: &File) -> bool {
    let mut names = [0; 4096];
    match rustix::fs::flistxattr(file, &mut names) {
        // A new file inherits this one from its folder.
        Ok(length) => names[..length]
            .split(|&b| b == 0)
            .any(|name| !name.is_empty() && name != b"security.selinux"),
        Err(error) => error != rustix::io::Errno::NOTSUP,
    }
}

/// Writes the file itself. If that fails halfway, the old text is written back.
fn overwrite(file: &File, before: &[u8], text: &[u8]) -> io::Result<()> {
    let put = |text: &[u8]| {
        file.write_all_at(text, 0)?;
        file.set_len(text.len() as u64)
    };
    put(text).inspect_err(|_| _ = put(before))
}

/// Puts a new file with the same owner and mode in the old one's place. Fails with `ESTALE` if
/// another file has the name by then.
fn replace(place: &Place, old: &Metadata, text: &[u8]) -> io::Result<()> {
    let Place { folder, name } = place;
    let mut fresh = name.clone();
    fresh.push(format!(".{:016x}.tmp", fastrand::u64(..)));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut file = File::from(openat(folder, &fresh, flags | OFlags::CLOEXEC, mode)?);
    let placed = (|| {
        file.write_all(text)?;
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        file.sync_all()?;
        let there = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (there.st_dev, there.st_ino) != (old.dev(), old.ino()) {
            return Err(Errno::STALE.into());
        }
        Ok(renameat(folder, &fresh, folder, name)?)
    })();
    if placed.is_err() {
        _ = unlinkat(folder, &fresh, AtFlags::empty());
    }
    placed
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn text_that_another_process_has_written_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Dockerfile");
        fs::write(&path, "new").unwrap();
        let error = write(&path, b"old", b"fixed").unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        write(&path, b"new", b"fixed").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"fixed");
    }
}
