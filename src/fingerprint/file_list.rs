//! The names of the files that a build read, so that it can be said later which of them changed.
//!
//! There is one list for each of the last fingerprints that were built here, in the cache folder.
//! Lists serve messages only: without one, a message is less exact.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use super::cache_folder::{self, is_short_hash};
use super::context::Entry;
use super::value::Kind;
use crate::reference::sha256_hex;
use crate::visible;

/// Changes with the format.
const MAGIC: &[u8; 16] = b"buildlock-list1\n";
/// In bytes: more than ten thousand files with long names.
const LARGEST: usize = 1 << 20;
/// How many lists are kept.
const KEPT: usize = 64;
const START: &str = "files-";

/// The files that a build read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileList {
    /// Each with the kind of input that it belongs to.
    Files(Vec<(Kind, Entry)>),
    /// There are too many to be remembered.
    TooMany,
}

impl Default for FileList {
    fn default() -> Self {
        FileList::Files(Vec::new())
    }
}

impl FileList {
    /// Adds files, unless there are too many.
    pub(super) fn add(&mut self, kind: Kind, entries: Vec<Entry>) {
        let FileList::Files(files) = self else { return };
        files.extend(entries.into_iter().map(|entry| (kind, entry)));
        if size(files) > LARGEST {
            *self = FileList::TooMany;
        }
    }

    /// Remembers the files of the build with this fingerprint.
    ///
    /// # Errors
    /// They cannot be written.
    pub(super) fn remember(&self, label: &str) -> Result<(), String> {
        let Some(home) = cache_folder::home() else { return Ok(()) };
        let folder = cache_folder::open_in(&home)?;
        folder.write(&name(label), &to_bytes(self)).map_err(|error| error.to_string())?;
        folder.keep_newest(KEPT, |name| name.strip_prefix(START).is_some_and(is_short_hash));
        Ok(())
    }

    /// Reads the list of the build with this fingerprint, if it is remembered.
    pub(super) fn read(label: &str) -> Option<Self> {
        let folder = cache_folder::open_in(&cache_folder::home()?).ok()?;
        let (mut file, _) = folder.open_file(&name(label), LARGEST as u64).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        from_bytes(&bytes)
    }

    /// Says which files of a kind differ between this list and that of `now`, if that is known.
    pub(super) fn difference(&self, kind: Kind, now: &FileList) -> Option<String> {
        match (self, now) {
            (FileList::Files(before), FileList::Files(now)) => {
                changes(&of_kind(before, kind), &of_kind(now, kind))
            }
            _ => Some("too many files to remember their names".to_owned()),
        }
    }
}

fn name(label: &str) -> String {
    format!("{START}{}", &sha256_hex(label)[..32])
}

/// The hashes of all files of a name: folders may have some in common.
type Hashes<'f> = BTreeMap<&'f PathBuf, Vec<u64>>;

fn of_kind(files: &[(Kind, Entry)], kind: Kind) -> Hashes<'_> {
    let mut hashes = Hashes::new();
    for (_, entry) in files.iter().filter(|(other, _)| *other == kind) {
        hashes.entry(&entry.path).or_default().push(entry.digest);
    }
    hashes
}

fn changes(before: &Hashes<'_>, now: &Hashes<'_>) -> Option<String> {
    /// More than these do not fit on a line.
    const SHOWN: usize = 5;
    let mut changes: BTreeMap<&PathBuf, &str> = BTreeMap::new();
    for (path, hashes) in now {
        match before.get(path) {
            None => _ = changes.insert(path, " (new)"),
            Some(before) if before != hashes => _ = changes.insert(path, ""),
            Some(_) => {}
        }
    }
    let gone = before.keys().filter(|path| !now.contains_key(*path));
    changes.extend(gone.map(|path| (*path, " (gone)")));
    let shown = changes.iter().take(SHOWN);
    let shown = shown.map(|(path, how)| visible::escaped(&path.to_string_lossy()) + how);
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = changes.len().checked_sub(SHOWN) {
        text += &format!(" and {more} more");
    }
    Some(text).filter(|text| !text.is_empty())
}

/// Beside a path, in bytes: the kind, the hash, and the path's length.
const HEAD: usize = 1 + 8 + 4;

fn size(files: &[(Kind, Entry)]) -> usize {
    let each = files.iter().map(|(_, entry)| HEAD + entry.path.as_os_str().len());
    MAGIC.len() + 1 + each.sum::<usize>()
}

/// Writes a list: [`MAGIC`], a new line, and for each file its [`HEAD`] and its path. Without the new
/// line, there are too many.
fn to_bytes(list: &FileList) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let FileList::Files(files) = list else { return bytes };
    bytes.push(b'\n');
    for (kind, Entry { path, digest }) in files {
        let path = path.as_os_str().as_bytes();
        bytes.push(*kind as u8);
        bytes.extend(digest.to_be_bytes());
        bytes.extend(u32::try_from(path.len()).unwrap_or_default().to_be_bytes());
        bytes.extend(path);
    }
    bytes
}

fn from_bytes(bytes: &[u8]) -> Option<FileList> {
    let mut rest = match bytes.strip_prefix(MAGIC)? {
        [] => return Some(FileList::TooMany),
        rest => rest.strip_prefix(b"\n")?,
    };
    let mut files = Vec::new();
    while let Some((kind, after)) = rest.split_first() {
        let kind = *Kind::ALL.get(usize::from(*kind))?;
        let (digest, after) = after.split_first_chunk()?;
        let (length, after) = after.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (path, after) = after.split_at_checked(length)?;
        let path = std::ffi::OsString::from_vec(path.to_vec()).into();
        files.push((kind, Entry { path, digest: u64::from_be_bytes(*digest) }));
        rest = after;
    }
    Some(FileList::Files(files))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(all: &[(&str, u64)]) -> FileList {
        let entry = |(path, digest): &(&str, u64)| Entry { path: path.into(), digest: *digest };
        let mut list = FileList::default();
        list.add(Kind::Context, all.iter().map(entry).collect());
        list
    }

    #[test]
    fn list_is_read_as_it_was_written() {
        let written = list(&[("a", 1), ("b/\u{e9}", u64::MAX)]);
        let bytes = to_bytes(&written);
        for end in 0..bytes.len() {
            let cut = from_bytes(&bytes[..end]);
            assert!(!matches!(&cut, Some(FileList::Files(files)) if files.len() > 1), "{end}");
        }
        let FileList::Files(files) = &written else { panic!("{written:?}") };
        assert_eq!(size(files), bytes.len());
        assert_eq!(from_bytes(&bytes), Some(written));
        assert_eq!(from_bytes(&to_bytes(&FileList::default())), Some(FileList::default()));
    }

    #[test]
    fn too_many_files_take_no_room() {
        let long = "x".repeat(1000);
        let many = list(&vec![(long.as_str(), 1); LARGEST / 1000]);
        assert_eq!(many, FileList::TooMany);
        let bytes = to_bytes(&many);
        assert_eq!(bytes.len(), MAGIC.len());
        assert_eq!(from_bytes(&bytes), Some(FileList::TooMany));
        for (before, now) in [(&many, &list(&[])), (&list(&[]), &many)] {
            let said = before.difference(Kind::Context, now).unwrap();
            assert!(said.contains("too many"), "{said}");
        }
    }

    #[test]
    fn a_few_files_that_changed_are_named() {
        let difference = |before: &[(&str, u64)], now: &[(&str, u64)]| {
            list(before).difference(Kind::Context, &list(now))
        };
        let before = [("a", 1), ("b", 1), ("c", 1)];
        assert_eq!(difference(&before, &before), None);
        let now = [("a", 1), ("b", 2), ("d\u{1b}", 1)];
        let said = difference(&before, &now).unwrap();
        assert_eq!(said, "b, c (gone), d\\u{1b} (new)");
        let many: Vec<_> = ["1", "2", "3", "4", "5", "6", "7"].map(|it| (it, 1)).into();
        let said = difference(&[], &many).unwrap();
        assert_eq!(said, "1 (new), 2 (new), 3 (new), 4 (new), 5 (new) and 2 more");
        let five = difference(&[], &many[..5]).unwrap();
        assert!(!five.contains("more"), "{five}");
        // Two folders have a file of this name.
        assert_eq!(difference(&[("a", 1), ("a", 2)], &[("a", 1), ("a", 3)]).unwrap(), "a");
    }
}
