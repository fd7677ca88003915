//! A single file that counts: a Dockerfile, an ignore file, what an option or `--inputs` names.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};
use nix::libc;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::stamp::{Stamp, Time, changed, kind, permissions};

/// In bytes. It is far more than a Dockerfile or an ignore file needs, and little to keep in memory.
const LARGEST: u64 = 16 << 20;

/// A file that was looked for.
#[derive(Debug)]
pub(super) enum Found {
    File(Contents),
    /// A link that leads out of its folder, or an absolute one. Some builders resolve such a link as
    /// if the folder were the root, and others refuse it. It may lead to anything that the caller can
    /// read and its owner cannot, so it is not read.
    LeadsElsewhere,
}

/// A file that has been read.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) bytes: Vec<u8>,
    pub(super) changed: Time,
}

/// Reads a file; a link is followed within its folder. Returns none if there is none. `what` names it
/// in messages.
///
/// # Errors
/// It cannot be read, is not a regular file, or is too large.
pub(super) fn read(path: &Path, what: &str) -> Result<Option<Found>> {
    let Some(mut handle) = find(path, what)? else { return Ok(None) };
    match find_in_folder(path) {
        Ok(Some(inside)) => handle = inside,
        Ok(None) if leads_elsewhere(path) => return Ok(Some(Found::LeadsElsewhere)),
        Ok(None) => {}
        Err(Errno::XDEV | Errno::LOOP) => return Ok(Some(Found::LeadsElsewhere)),
        Err(error) => bail!("cannot read {what} {}: {error}", path.display()),
    }
    let (file, stat) = open(&handle, path, what)?;
    let mut bytes = Vec::new();
    match file.take(LARGEST + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > LARGEST => bail!(
            "{what} {} is too large: buildlock reads at most {} MiB of it",
            path.display(),
            LARGEST >> 20
        ),
        Ok(_) => Ok(Some(Found::File(Contents { bytes, changed: changed(&stat) }))),
        Err(error) => bail!("cannot read {what} {}: {error}", path.display()),
    }
}

/// Hashes a file's content and permissions, however large it is. Returns none if there is none.
///
/// # Errors
/// It cannot be read, is not a regular file, or changes all the time.
pub(super) fn hash(path: &Path, what: &str) -> Result<Option<([u8; 32], Time)>> {
    /// A small file that another process writes may be still the next time. A large one may grow
    /// faster than it can be read.
    const TRIES: usize = 3;
    for _ in 0..TRIES {
        let Some(handle) = find(path, what)? else { return Ok(None) };
        let (file, stat) = open(&handle, path, what)?;
        let before = Stamp::new(&stat);
        let mut hasher = Sha256::new();
        hasher.update(permissions(&stat).to_be_bytes());
        // A file that grows without end must not keep this process reading.
        let mut rest = file.take(before.size + 1);
        let mut buffer = vec![0; 64 * 1024];
        let mut size = 0;
        loop {
            match rest.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    size += count as u64;
                    hasher.update(&buffer[..count]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => bail!("cannot read {what} {}: {error}", path.display()),
            }
        }
        let after = rustix::fs::fstat(rest.get_ref()).map(|stat| Stamp::new(&stat));
        if after == Ok(before) && size == before.size {
            return Ok(Some((hasher.finalize().into(), before.changed)));
        }
        if before.size > LARGEST {
            break;
        }
    }
    bail!("{what} {} changes while it is read; wait for whatever changes it", path.display())
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

/// Finds a regular file; a link is followed. Returns none if there is none. Nothing is opened: that
/// would have an effect on a device, and a FIFO would block.
fn find(path: &Path, what: &str) -> Result<Option<OwnedFd>> {
    match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(handle) if is_regular(&handle) => Ok(Some(handle)),
        Ok(_) => bail!("{what} {} is not a regular file", path.display()),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => bail!("cannot read {what} {}: {error}", path.display()),
    }
}

/// Finds the same file without following any link out of its folder. Returns none if the kernel
/// cannot do that.
fn find_in_folder(path: &Path) -> Result<Option<OwnedFd>, Errno> {
    /// A rename somewhere may disturb the kernel.
    const TRIES: usize = 100;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let (flags, none) = (OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let folder = rustix::fs::openat(CWD, folder, flags | OFlags::DIRECTORY, none)?;
    let mut last = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        let beneath = ResolveFlags::BENEATH;
        last = match rustix::fs::openat2(&folder, name, flags, none, beneath) {
            Err(Errno::AGAIN | Errno::INTR) => continue,
            // It has just been exchanged.
            Ok(handle) if !is_regular(&handle) => Err(Errno::STALE),
            Ok(handle) => Ok(Some(handle)),
            // Linux before 5.6, and containers that do not know this system call.
            Err(Errno::NOSYS | Errno::PERM) => Ok(None),
            Err(error) => Err(error),
        };
        break;
    }
    last
}

fn is_regular(handle: &OwnedFd) -> bool {
    rustix::fs::fstat(handle).is_ok_and(|stat| kind(&stat) == FileType::RegularFile)
}

/// Opens a file that was found.
fn open(handle: &OwnedFd, path: &Path, what: &str) -> Result<(File, Stat)> {
    let open = |path: &Path| {
        File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
    };
    let opened = match open(Path::new(&format!("/proc/self/fd/{}", handle.as_raw_fd()))) {
        // There is no /proc.
        Err(error) if error.kind() == ErrorKind::NotFound => open(path),
        opened => opened,
    };
    let place = |stat: &Stat| (stat.st_dev, stat.st_ino);
    let opened = opened.and_then(|file| {
        let (found, stat) = (rustix::fs::fstat(handle)?, rustix::fs::fstat(&file)?);
        let is_same = place(&found) == place(&stat);
        is_same.then_some((file, stat)).ok_or_else(|| Errno::STALE.into())
    });
    match opened {
        Ok(opened) => Ok(opened),
        Err(error) if error.kind() == ErrorKind::WouldBlock => bail!(
            "cannot read {what} {}: another program has a lease on it (fcntl, F_SETLEASE); end that \
             program",
            path.display()
        ),
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
        let found = read(&path, "the Dockerfile").unwrap().unwrap();
        let Found::File(contents) = found else { panic!("{found:?}") };
        assert_eq!(contents.bytes.len() as u64, LARGEST);
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
            if std::fs::metadata(&link).is_ok() {
                let found = read(&link, "the Dockerfile").unwrap().unwrap();
                assert_eq!(matches!(found, Found::LeadsElsewhere), expected, "{target}");
            }
        }
        assert!(!leads_elsewhere(&at("c/real")) && !leads_elsewhere(&at("c/none")));
    }

    #[test]
    fn file_with_more_content_than_its_size_is_not_read_to_its_end() {
        // The kernel says that it is empty, as of a file that has grown since.
        let error = hash(Path::new("/proc/version"), "--inputs").unwrap_err().to_string();
        assert!(error.contains("/proc/version changes while it is read"), "{error}");
    }

    #[test]
    fn device_is_not_opened() {
        let error = read(Path::new("/dev/zero"), "the Dockerfile").unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
    }
}
