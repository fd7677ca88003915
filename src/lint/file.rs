//! Reads the files that lint looks at, and writes the fixed ones.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

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
/// # Errors
/// The file could not be written, or another process has changed it. Then its text stays.
pub(super) fn write(path: &Path, before: &[u8], text: &[u8]) -> Result<()> {
    // Symbolic links stay.
    let path = fs::canonicalize(path)?;
    let old = fs::metadata(&path)?;
    if !old.is_file() {
        bail!("it is not a file");
    }
    // A file that we may not write is not replaced either.
    let file = File::options().read(true).write(true).open(&path)?;
    let mut now = Vec::new();
    (&file).take(LONGEST + 1).read_to_end(&mut now)?;
    if now != before {
        bail!("it has changed in the meantime; run lint again");
    }
    if old.nlink() > 1 || has_attributes(&file) {
        return Ok(overwrite(&file, before, text)?);
    }
    match replace(&path, &old, text) {
        Ok(()) => Ok(()),
        // Then the old file cannot grow either.
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            Err(error.into())
        }
        Err(_) => Ok(overwrite(&file, before, text)?),
    }
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

/// Puts a new file with the same owner and mode in the old one's place.
fn replace(path: &Path, old: &fs::Metadata, text: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.tmp", fastrand::u64(..)));
    let fresh = path.with_file_name(name);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let placed = (|| {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    if placed.is_err() {
        _ = fs::remove_file(&fresh);
    }
    placed
}

#[cfg(test)]
mod tests {
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
