//! The holder's record: what a holder writes into its lock file about itself.
//!
//! A record is for people and never evidence: anybody may write one. `lock/holder.rs` compares it
//! with what the kernel knows of the process.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::duration::for_people;
use crate::subject::Subject;
use crate::user;
use crate::visible::escaped_and_shortened;

/// Largest record that is read or written, in bytes, with the end of its line.
const RECORD_MAX: usize = 64 * 1024;
/// Largest file that is emptied, in bytes. buildlock writes less.
const EMPTIED_MAX: u64 = 1 << 20;

/// A holder, as its record in the lock file (one line of JSON) and the kernel describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its user's name, or the user's number where that has no name.
    pub user: Option<String>,
    /// The host's name.
    pub host: Option<String>,
    /// The canonical tag, if the lock protects an image.
    pub tag: Option<String>,
    /// The lock's name, if it is a named lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The cache's id, if the lock protects a build cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// The slot's number, if the lock is a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u16>,
    /// The build command, without secrets.
    pub command: Option<String>,
    /// The folder in which the build command runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// When it took the lock (RFC 3339).
    pub since: Option<String>,
    /// Its version of buildlock.
    pub version: Option<String>,
    /// The build's random id, by which waiters tell its result from another's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// Whether the process has ended and something it left behind holds the lock.
    #[serde(skip_deserializing, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// Whether nothing confirms what the record says.
    #[serde(skip_deserializing, skip_serializing_if = "std::ops::Not::not")]
    pub claimed: bool,
    /// Whether this call runs inside one that holds the lock.
    #[serde(skip)]
    pub is_our_ancestor: bool,
    /// Whether it shares the lock.
    #[serde(skip)]
    pub shares: bool,
}

/// Returns this process as a holder, without the lock and the time.
pub type Ourselves = Arc<dyn Fn() -> Holder + Send + Sync>;

/// The result of a build that failed by itself, which its holder leaves in the place of its record
/// (one line of JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedBuild {
    /// The build's random id.
    pub build: String,
    /// The build command's exit status.
    pub status: u8,
}

impl Holder {
    /// Returns a record about this process, without the lock and the time.
    pub fn ourselves(command: String, build: String) -> Self {
        Holder {
            pid: std::process::id(),
            user: Some(user::our_name()),
            host: our_host(),
            command: Some(command),
            directory: std::env::current_dir().ok().map(|it| it.to_string_lossy().into_owned()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            build: Some(build),
            ..Holder::default()
        }
    }

    /// Returns the same record for this lock.
    #[must_use]
    pub(crate) fn of_lock(self, subject: &Subject) -> Self {
        Holder {
            tag: subject.tag().map(str::to_owned),
            name: subject.name().map(str::to_owned),
            cache: subject.cache().map(str::to_owned),
            slot: subject.slot(),
            ..self
        }
    }

    /// Returns what the lock protects, by the record's own account.
    pub(crate) fn subject(&self) -> Option<Subject> {
        match (&self.tag, &self.name, &self.cache) {
            (Some(tag), ..) => Some(Subject::Image(tag.clone())),
            (None, Some(name), _) => Some(Subject::Named(name.clone())),
            (None, None, Some(id)) => Some(Subject::Cache(id.clone())),
            (None, None, None) => self.slot.map(Subject::Slot),
        }
    }

    /// Returns whether it builds what `other` would build: the same command in the same folder, as
    /// far as both are known. Secrets are not known.
    pub fn builds_the_same_as(&self, other: &Holder) -> bool {
        let is_same = |theirs: &Option<String>, ours: &Option<String>| {
            theirs.is_none() || ours.is_none() || theirs == ours
        };
        is_same(&self.command, &other.command) && is_same(&self.directory, &other.directory)
    }

    /// Returns how long it has held the lock, in whole seconds of the wall clock.
    pub fn held_for(&self) -> Option<Duration> {
        let since = humantime::parse_rfc3339(self.since.as_deref()?).ok()?;
        // A clock that was set back makes it zero. The record has whole seconds.
        let held_for = SystemTime::now().duration_since(since).unwrap_or_default();
        Some(Duration::from_secs(held_for.as_secs()))
    }

    /// Escapes what moves a reader's cursor or cannot be seen, and shortens what is too long to be
    /// read: anybody may write a record.
    #[must_use]
    pub(crate) fn escaped(self) -> Self {
        let clean = |text: Option<String>| text.map(|text| escaped_and_shortened(&text));
        Holder {
            user: clean(self.user),
            host: clean(self.host),
            tag: clean(self.tag),
            directory: clean(self.directory),
            name: clean(self.name),
            cache: clean(self.cache),
            command: clean(self.command),
            since: clean(self.since),
            version: clean(self.version),
            build: clean(self.build),
            ..self
        }
    }
}

impl std::fmt::Display for Holder {
    /// `alice@ci-3, pid 4242, building for 2m 3s: docker build -t env:abc .`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.gone {
            write!(f, "something that pid {} left behind when it ended", self.pid)?;
        } else {
            match (&self.user, &self.host) {
                (Some(user), Some(host)) => write!(f, "{user}@{host}, pid {}", self.pid)?,
                (Some(user), None) => write!(f, "{user}, pid {}", self.pid)?,
                (None, _) => write!(f, "pid {}", self.pid)?,
            }
        }
        if self.shares {
            f.write_str(" (shared)")?;
        }
        if let Some(held_for) = self.held_for() {
            // The holder of a named lock need not build.
            let doing = if self.name.is_some() { "running" } else { "building" };
            write!(f, ", {doing} for {}", for_people(held_for))?;
        }
        if self.claimed && (self.since.is_some() || self.command.is_some()) {
            f.write_str(" by its own account")?;
        }
        match &self.command {
            Some(command) => write!(f, ": {command}"),
            None => Ok(()),
        }
    }
}

pub(crate) fn our_host() -> Option<String> {
    Some(rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Returns the first line of a lock file, whatever it contains.
pub(crate) fn read_line(file: &File) -> Option<Vec<u8>> {
    let mut text = vec![0; RECORD_MAX];
    let mut length = 0;
    loop {
        match file.read_at(&mut text[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    text.truncate(length);
    text.iter().position(|&c| c == b'\n').map(|end| text[..end].to_vec())
}

/// Returns the holder's record in a lock file, fit to be shown. Anything else there is ignored.
pub fn read_record(file: &File) -> Option<Holder> {
    read_unescaped(file).map(Holder::escaped)
}

/// Returns the holder's record as it was written.
pub(crate) fn read_unescaped(file: &File) -> Option<Holder> {
    serde_json::from_slice(&read_line(file)?).ok()
}

/// Returns the result that a build left in a lock file. Anything else there is ignored.
pub fn read_result(file: &File) -> Option<FailedBuild> {
    /// A lock file usually contains a record, so one that is not a result is not an error.
    #[derive(Deserialize)]
    struct Line {
        build: Option<String>,
        status: Option<u8>,
    }
    let Line { build, status } = serde_json::from_slice(&read_line(file)?).ok()?;
    Some(FailedBuild { build: build?, status: status? })
}

/// Replaces the content of a lock file by `line`, or by nothing.
///
/// # Errors
/// The file cannot be written.
pub fn write_line(file: &File, line: Option<&impl Serialize>) -> std::io::Result<()> {
    let Some(line) = line else { return empty(file) };
    let line = serde_json::to_vec(line)?;
    if line.len() >= RECORD_MAX {
        return Err(ErrorKind::InvalidInput.into());
    }
    replace_text(file, &line)
}

/// Replaces the content of a file by this line.
pub(crate) fn replace_text(file: &File, line: &[u8]) -> std::io::Result<()> {
    // The file is emptied first. A full disk may then leave half a line, which readers reject,
    // instead of a new start with an old end. If two processes write at once, the line of the
    // later one comes first.
    empty(file)?;
    file.write_all_at(&[line, b"\n"].concat(), 0)
}

/// Removes the content of a lock file or a note.
///
/// # Errors
/// The file is overgrown ([`ErrorKind::FileTooLarge`]), or cannot be written.
pub(crate) fn empty(file: &File) -> std::io::Result<()> {
    if is_overgrown(file) {
        return Err(Error::new(
            ErrorKind::FileTooLarge,
            "it has grown to more than buildlock writes; 'buildlock prune' removes it",
        ));
    }
    file.set_len(0)
}

/// Returns whether a file has more in it than buildlock writes. Anybody may add to it, and to empty
/// or free it, the kernel needs a time that grows with it and that no time limit reaches.
pub(crate) fn is_overgrown(file: &File) -> bool {
    const BLOCK: u64 = 512;
    // A file may have blocks beyond its end, and file systems add some.
    file.metadata().is_ok_and(|it| it.len() > EMPTIED_MAX || it.blocks() > 2 * EMPTIED_MAX / BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_written_read_and_replaced() {
        let file = tempfile::tempfile().unwrap();
        let holder = Holder::ourselves("docker build .".into(), "b1".into());
        write_line(&file, Some(&holder)).unwrap();
        assert_eq!(read_record(&file), Some(holder));
        assert_eq!(read_result(&file), None);
        let result = FailedBuild { build: "b1".into(), status: 3 };
        write_line(&file, Some(&result)).unwrap();
        assert_eq!((read_result(&file), read_record(&file)), (Some(result), None));
        write_line(&file, None::<&Holder>).unwrap();
        assert_eq!((read_result(&file), read_record(&file)), (None, None));
    }

    #[test]
    fn a_record_without_an_end_or_beyond_all_bounds_is_none() {
        let file = tempfile::tempfile().unwrap();
        for text in ["", "\n", "{\"pid\":1}", "{\"pid\":-1}\n", "\0\0\0\n"] {
            file.set_len(0).unwrap();
            file.write_all_at(text.as_bytes(), 0).unwrap();
            assert_eq!(read_record(&file), None, "{text:?}");
        }
        file.write_all_at(&vec![b' '; 1 << 20], 0).unwrap();
        file.write_all_at(b"\n", 1 << 20).unwrap();
        assert_eq!(read_record(&file), None);
    }

    #[test]
    fn file_that_others_have_made_large_is_not_emptied() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"x\n", EMPTIED_MAX).unwrap();
        let refused = write_line(&file, Some(&Holder::default())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FileTooLarge);
        assert_eq!(empty(&file).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(file.metadata().unwrap().len(), EMPTIED_MAX + 2);
    }

    #[test]
    fn record_that_nobody_would_read_is_not_written() {
        let file = tempfile::tempfile().unwrap();
        let long = Holder { command: Some("x".repeat(RECORD_MAX)), ..Holder::default() };
        write_line(&file, Some(&long)).unwrap_err();
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_record_cannot_turn_or_hide_what_a_reader_sees() {
        let file = tempfile::tempfile().unwrap();
        let text = Some("a\u{202e}b\u{1b}c\u{200b}".to_owned());
        let holder = Holder { user: text.clone(), command: text, ..Holder::default() };
        write_line(&file, Some(&holder)).unwrap();
        let read = read_record(&file).unwrap();
        let shown = r"a\u{202e}b\u{1b}c\u{200b}";
        assert_eq!(read.to_string(), format!("{shown}, pid 0: {shown}"));
    }

    #[test]
    fn a_record_cannot_fill_a_readers_screen() {
        let file = tempfile::tempfile().unwrap();
        let text = Some("\u{202e}".repeat(20_000));
        write_line(&file, Some(&Holder { command: text, ..Holder::default() })).unwrap();
        let shown = read_record(&file).unwrap().command.unwrap();
        assert!(shown.chars().count() < 10_000 && shown.ends_with('…'), "{}", shown.len());
    }

    proptest! {
        #[test]
        fn nothing_in_a_record_makes_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            let _ = (read_record(&file), read_result(&file));
        }
    }
}
