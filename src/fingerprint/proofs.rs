//! Which images a user has verified, where no other user can write it: the notes of each user have a
//! folder of their own in the lock folder, `verified.<number of the user>`.
//!
//! A caller believes its own notes and root's.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::Mode;
use rustix::io::Errno;

use super::cache_folder::open_folder;
use super::own_folder::OwnFolder;
use crate::reference::{Tag, sha256_hex};

/// What is found in the place of a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    Nothing,
    /// Something that cannot be read, or that anybody may have put there.
    Untrusted,
    Line(Vec<u8>),
}

/// The notes of this user and of root.
#[derive(Debug)]
pub(crate) struct Proofs {
    lock_folder: PathBuf,
}

impl Proofs {
    pub(crate) fn of(lock_folder: &Path) -> Self {
        Proofs { lock_folder: lock_folder.to_owned() }
    }

    /// Makes sure that nothing else stands in the place of this user's folder.
    ///
    /// # Errors
    /// Something does. Whoever put it there could take it away later, and nothing would be left that
    /// says what was verified.
    pub(super) fn check(&self) -> Result<()> {
        self.open(ours()).map(drop)
    }

    /// Returns what this user and root have noted of a tag.
    pub(super) fn read(&self, tag: &Tag) -> [Noted; 2] {
        [ours(), 0].map(|user| self.read_of(user, tag))
    }

    fn read_of(&self, user: u32, tag: &Tag) -> Noted {
        /// In bytes: far more than a note has.
        const LARGEST: u64 = 64 << 10;
        let folder = match self.open(user) {
            Ok(Some(folder)) => folder,
            Ok(None) => return Noted::Nothing,
            Err(_) => return Noted::Untrusted,
        };
        let name = sha256_hex(tag.as_str());
        if !folder.has(&name) {
            return Noted::Nothing;
        }
        let mut line = Vec::new();
        let file = folder.open_file(&name, LARGEST).ok();
        match file.and_then(|(mut file, _)| file.read_to_end(&mut line).ok()) {
            Some(_) => Noted::Line(line),
            None => Noted::Untrusted,
        }
    }

    /// Writes this user's note of a tag.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, tag: &Tag, line: &[u8]) -> Result<()> {
        let path = self.path(ours());
        let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        match rustix::fs::mkdir(&path, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(anyhow!("cannot create {}: {error}", path.display())),
        }
        let folder = self.open(ours())?.with_context(|| format!("no {}", path.display()))?;
        let written =
            folder.set_mode(mode).and_then(|()| folder.write(&sha256_hex(tag.as_str()), line));
        written.with_context(|| format!("cannot write into {}", path.display()))
    }

    fn path(&self, user: u32) -> PathBuf {
        self.lock_folder.join(format!("verified.{user}"))
    }

    /// Opens the folder of a user, if there is one.
    fn open(&self, user: u32) -> Result<Option<OwnFolder>> {
        let path = self.path(user);
        let refused = |why: &dyn std::fmt::Display| {
            anyhow!(
                "{} is not usable: {why}; it says which images were verified for --if-changed, so \
                 let its owner or root remove what is there",
                path.display()
            )
        };
        let folder = match open_folder(&path) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(refused(&error)),
        };
        let readable = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        OwnFolder::new(folder, user, readable).map(Some).map_err(|why| refused(&why))
    }
}

fn ours() -> u32 {
    rustix::process::geteuid().as_raw()
}
