//! Which keys the store has in the cluster, all below its prefix:
//!
//! - `locks/<lock>/w/<lease>` and `locks/<lock>/r/<lease>` for those who want a lock, exclusively or
//!   shared.
//! - `results/<lock>` for the end of a build that failed.
//! - `memories/<lock>` for what is remembered of a cache.

use super::answer::Entry;
use crate::lock::{Key, LockMode};

const LOCKS: &str = "locks";
const RESULTS: &str = "results";
const MEMORIES: &str = "memories";

/// The keys below one prefix.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    /// In front of all keys; without a slash at its end.
    pub(super) prefix: &'a str,
}

impl Keys<'_> {
    /// The folder of all locks, with a slash at its end.
    pub(super) fn locks(&self) -> String {
        format!("{}/{LOCKS}/", self.prefix)
    }

    /// A lock's folder, with a slash at its end.
    pub(super) fn folder(&self, key: &Key) -> String {
        format!("{}/", self.of(LOCKS, key))
    }

    /// The key of the process with this lease.
    pub(super) fn own(&self, key: &Key, mode: LockMode, lease: i64) -> String {
        own_key(&self.folder(key), mode, lease)
    }

    pub(super) fn result(&self, key: &Key) -> String {
        self.of(RESULTS, key)
    }

    pub(super) fn memory(&self, key: &Key) -> String {
        self.of(MEMORIES, key)
    }

    /// The folder of what is remembered of a kind of locks, with a slash at its end.
    pub(super) fn memories(&self, kind: &str) -> String {
        format!("{}/{MEMORIES}/{kind}/", self.prefix)
    }

    /// A lock's folder as shown to the user: what comes after the folder of all locks, with the slash
    /// before it.
    pub(super) fn shown<'f>(&self, folder: &'f str) -> &'f str {
        let locks = format!("{}/{LOCKS}", self.prefix);
        folder.strip_prefix(&locks).unwrap_or(folder).trim_end_matches('/')
    }

    fn of(&self, folder: &str, key: &Key) -> String {
        let name = key.relative_path().with_extension("");
        format!("{}/{folder}/{}", self.prefix, name.display())
    }
}

/// Returns the key in a lock's folder of the process with this lease.
pub(super) fn own_key(folder: &str, mode: LockMode, lease: i64) -> String {
    format!("{}{lease:016x}", all_in_mode(folder, mode))
}

/// Returns the prefix of all keys in a lock's folder for this mode.
pub(super) fn all_in_mode(folder: &str, mode: LockMode) -> String {
    match mode {
        LockMode::Exclusive => format!("{folder}w/"),
        LockMode::Shared => format!("{folder}r/"),
    }
}

/// Returns the folder of the lock that a key is for, without a slash at its end.
pub(super) fn folder_of(entry: &Entry) -> &str {
    entry.key.rsplitn(3, '/').nth(2).unwrap_or(&entry.key)
}

pub(super) fn mode_of(entry: &Entry) -> LockMode {
    let is_shared = entry.key.rsplit('/').nth(1) == Some("r");
    if is_shared { LockMode::Shared } else { LockMode::Exclusive }
}

/// Returns whether the key belongs to the process with this lease.
pub(super) fn is_of(entry: &Entry, lease: i64) -> bool {
    entry.key.rsplit('/').next() == Some(&format!("{lease:016x}"))
}

/// Returns whether the key belongs to a holder or a waiter. Anything else in a lock's folder is
/// ignored.
pub(super) fn is_in_queue(entry: &Entry) -> bool {
    matches!(entry.key.rsplit('/').nth(1), Some("w" | "r"))
}
