//! A single file that counts: a Dockerfile, an ignore file, what an option or `--inputs` names.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};
use nix::libc;
use sha2::{Digest as _, Sha256};

use super::stamp::Time;

/// In bytes. It is far more than a Dockerfile or an ignore file needs, and little to keep in memory.
const LARGEST: u64 = 16 << 20;

/// A file that has been read.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) bytes: Vec<u8>,
    pub(super) changed: Time,
    /// Whether it is a link that leads out of its folder, or an absolute one. Some builders resolve
    /// such a link as if the folder were the root.
    pub(super) leads_elsewhere: bool,
}

/// Reads a file; a link is followed. Returns none if there is none. `what` names it in messages.
///
/// # Errors
/// It cannot be read, is not a regular file, or is too large.
pub(super) fn read(path: &Path, what: &str) -> Result<Option<Contents>> {
    let Some((file, changed)) = open(path, what)? else { return Ok(None) };
    let mut bytes = Vec::new();
    match file.take(LARGEST + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > LARGEST => bail!(
            "{what} {} is too large: buildlock reads at most {} MiB of it",
            path.display(),
            LARGEST >> 20
        ),
        Ok(_) => Ok(Some(Contents { bytes, changed, leads_elsewhere: leads_elsewhere(path) })),
        Err(error) => bail!("cannot read {what} {}: {error}", path.display()),
    }
}

/// Hashes a file's content and permissions, however large it is. Returns none if there is none.
///
/// # Errors
/// As for [`read`].
pub(super) fn hash(path: &Path, what: &str) -> Result<Option<([u8; 32], Time)>> {
    let Some((mut file, changed)) = open(path, what)? else { return Ok(None) };
    let mut hasher = Sha256::new();
    let mode = file.metadata().map_or(0, |stat| stat.mode() & 0o7777);
    hasher.update(mode.to_be_bytes());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some((hasher.finalize().into(), changed))),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => bail!("cannot read {what} {}: {error}", path.display()),
        }
    }
}

/// Returns whether a path is a link that leads out of its folder on any way, or an absolute one.
fn leads_elsewhere(path: &Path) -> bool {
    /// As in the kernel.
    const MOST_LINKS: usize = 40;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return false };
    let mut inside = PathBuf::new();
    let mut left = vec![name.to_owned()];
    let mut links = 0;
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) if !inside.pop() => return true,
            Some(Component::Normal(part)) => inside.push(part),
            _ => continue,
        }
        let Ok(target) = folder.join(&inside).read_link() else { continue };
        links += 1;
        if target.is_absolute() || links > MOST_LINKS {
            return true;
        }
        inside.pop();
        left.extend(target.components().rev().map(|part| part.as_os_str().to_owned()));
    }
    false
}

fn open(path: &Path, what: &str) -> Result<Option<(File, Time)>> {
    // A FIFO would block.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let opened = opened.and_then(|file| Ok((file.metadata()?, file)));
    match opened {
        Ok((stat, file)) if stat.is_file() => {
            Ok(Some((file, (stat.ctime(), u32::try_from(stat.ctime_nsec()).unwrap_or_default()))))
        }
        Ok(_) => bail!("{what} {} is not a regular file", path.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => bail!("cannot read {what} {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn file_that_is_too_large_is_refused_and_not_read_into_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Dockerfile");
        let file = File::create(&path).unwrap();
        file.set_len(LARGEST).unwrap();
        assert_eq!(read(&path, "the Dockerfile").unwrap().unwrap().bytes.len() as u64, LARGEST);
        // A sparse file that no memory could hold.
        file.set_len(1 << 40).unwrap();
        let error = read(&path, "the Dockerfile").unwrap_err().to_string();
        assert!(error.contains("is too large"), "{error}");
    }

    #[test]
    fn link_out_of_the_folder_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("c/sub")).unwrap();
        for name in ["c/real", "c/sub/real", "outside"] {
            std::fs::write(at(name), "").unwrap();
        }
        let absolute = at("c/real").to_str().unwrap().to_owned();
        for (number, (target, expected)) in [
            ("real", false),
            ("./sub/../real", false),
            ("sub/real", false),
            ("../outside", true),
            ("../c/real", true),
            (&*absolute, true),
            ("0", false),
            ("5", true),
            ("8", true),
        ]
        .into_iter()
        .enumerate()
        {
            let link = at(&format!("c/{number}"));
            symlink(target, &link).unwrap();
            assert_eq!(leads_elsewhere(&link), expected, "{target}");
        }
        assert!(!leads_elsewhere(&at("c/real")) && !leads_elsewhere(&at("c/none")));
    }
}
