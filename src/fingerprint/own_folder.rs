//! A folder of one user, for files that nobody else may have written.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::clock::Clock;
use super::owners::OTHERS_MAY_WRITE;

/// How the names of files begin that are not complete yet.
const TEMPORARY: &str = "new-";

/// An open folder.
#[derive(Debug)]
pub(super) struct OwnFolder {
    fd: OwnedFd,
    owner: u32,
    /// That of its files.
    mode: Mode,
}

impl OwnFolder {
    /// Takes an open folder, whose files get this mode.
    ///
    /// # Errors
    /// It belongs to another user than this one, or others may write there.
    pub(super) fn new(fd: OwnedFd, owner: u32, mode: Mode) -> Result<Self, String> {
        let stat = rustix::fs::fstat(&fd).map_err(|error| error.to_string())?;
        is_owned_by(owner, &stat)?;
        Ok(OwnFolder { fd, owner, mode })
    }

    /// Gives the folder its mode, whatever the umask was.
    ///
    /// # Errors
    /// It cannot be given.
    pub(super) fn set_mode(&self, mode: Mode) -> Result<(), std::io::Error> {
        Ok(rustix::fs::fchmod(&self.fd, mode)?)
    }

    /// Returns false if there is certainly no such file.
    pub(super) fn has(&self, name: &str) -> bool {
        !matches!(
            rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW),
            Err(rustix::io::Errno::NOENT)
        )
    }

    /// Opens one of our files, and returns it with its size, which is at most `largest`.
    ///
    /// # Errors
    /// It cannot be opened, is larger, or somebody else may have written it.
    pub(super) fn open_file(&self, name: &str, largest: u64) -> Result<(File, u64), String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.fd, name, flags, Mode::empty());
        let file = opened.map_err(|error| error.to_string())?;
        let stat = rustix::fs::fstat(&file).map_err(|error| error.to_string())?;
        is_owned_by(self.owner, &stat)?;
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
        let file = rustix::fs::openat(&self.fd, &*temporary, flags, self.mode)?;
        // Whatever the umask.
        rustix::fs::fchmod(&file, self.mode)?;
        let written = File::from(file)
            .write_all(content)
            .and_then(|()| Ok(rustix::fs::renameat(&self.fd, &*temporary, &self.fd, name)?));
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
            let is_useless = match is_temporary(&name) {
                true => self.modified(&name).is_some_and(|modified| modified < now - DAY),
                false => is_useless(&name),
            };
            if is_useless {
                self.remove(&name);
            }
        }
    }

    /// Removes all but the newest `kept` of the files that have such names.
    pub(super) fn keep_newest(&self, kept: usize, is_one: impl Fn(&str) -> bool) {
        let names = self.names().filter(|name| is_one(name));
        let mut all: Vec<_> = names.map(|name| (self.modified(&name), name)).collect();
        all.sort_unstable_by(|one, other| other.cmp(one));
        all.iter().skip(kept).for_each(|(_, name)| self.remove(name));
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let entries = rustix::fs::Dir::read_from(&self.fd).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(entry.file_name().to_str().ok()?.to_owned()))
    }

    /// Returns when a file was last written, in seconds.
    fn modified(&self, name: &str) -> Option<i64> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        #[allow(clippy::unnecessary_cast)]
        Some(stat.st_mtime as i64)
    }

    fn remove(&self, name: &str) {
        _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
    }
}

/// Returns whether [`OwnFolder::write`] gives a file this name before it is complete.
fn is_temporary(name: &str) -> bool {
    let numbers = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split_once('-'));
    numbers.is_some_and(|(process, random)| {
        process.parse::<u32>().is_ok() && random.len() == 8 && is_hex(random)
    })
}

pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Nobody but its owner may have written it.
pub(super) fn is_owned_by(owner: u32, stat: &Stat) -> Result<(), &'static str> {
    if stat.st_uid != owner {
        return Err("it belongs to another user");
    }
    if stat.st_mode & OTHERS_MAY_WRITE != 0 {
        return Err("other users may write it");
    }
    Ok(())
}
