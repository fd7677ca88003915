//! The name of one lock in a store.

use std::path::{Path, PathBuf};

use crate::reference::sha256_hex;
use crate::subject::Subject;

/// Folder of the locks for images.
pub const IMAGE_LOCKS: &str = "image-locks";
/// Folder of the locks with names.
pub const NAMED_LOCKS: &str = "named-locks";
/// Folder of the locks for build caches.
pub const CACHE_LOCKS: &str = "cache-locks";

/// Folder of the locks for slots.
pub const BUILD_SLOTS: &str = "build-slots";

/// One lock of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    subject: Subject,
    /// How many of our ancestors hold a lock for the same subject. Nested calls exclude each other
    /// with a lock of their own, one level down.
    level: usize,
    part: Part,
}

/// What a store keeps for one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The lock itself.
    Itself,
    /// A second lock, which callers take before the lock itself and release once they have it. It
    /// keeps those that share the lock from starving a caller that needs it exclusively.
    Turnstile,
    /// A third lock, which the holder of the lock itself also holds, and on which others wait until
    /// the lock is free. So a waiter that wakes is never taken for a holder.
    Bell,
    /// Not a lock: what one holder leaves for the next.
    Memory,
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// By one holder.
    Exclusive,
    /// By all holders that share it.
    Shared,
}

impl Key {
    /// Returns the lock for `subject`.
    pub fn new(subject: Subject) -> Self {
        Key { subject, level: 0, part: Part::Itself }
    }

    /// Returns the turnstile in front of the lock.
    #[must_use]
    pub(super) fn turnstile(&self) -> Self {
        Key { part: Part::Turnstile, ..self.clone() }
    }

    /// Returns the lock on which others wait until the lock itself is free.
    #[must_use]
    pub(super) fn bell(&self) -> Self {
        Key { part: Part::Bell, ..self.clone() }
    }

    /// Returns the lock behind the turnstile.
    #[must_use]
    pub(super) fn itself(&self) -> Self {
        Key { part: Part::Itself, ..self.clone() }
    }

    /// Returns the key of what one holder leaves for the next.
    #[must_use]
    pub fn memory(&self) -> Self {
        Key { part: Part::Memory, ..self.clone() }
    }

    /// Returns the lock with which nested calls exclude each other while an ancestor of theirs
    /// holds this one.
    #[must_use]
    pub fn nested(mut self) -> Self {
        self.level += 1;
        self
    }

    /// Returns what the lock protects.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(super) fn is_turnstile(&self) -> bool {
        self.part == Part::Turnstile
    }

    pub(super) fn is_memory(&self) -> bool {
        self.part == Part::Memory
    }

    #[cfg_attr(not(feature = "etcd"), expect(dead_code, reason = "only etcd needs it"))]
    pub(super) fn is_nested(&self) -> bool {
        self.level > 0
    }

    /// Returns the folder for locks of this kind in a store of files.
    pub fn folder(&self) -> &'static str {
        match self.subject {
            Subject::Image(_) => IMAGE_LOCKS,
            Subject::Named(_) => NAMED_LOCKS,
            Subject::Cache(_) => CACHE_LOCKS,
            Subject::Slot(_) => BUILD_SLOTS,
        }
    }

    /// Returns where a store of files keeps the lock, as in `image-locks/<sha256 of the tag>.lock`.
    pub fn relative_path(&self) -> PathBuf {
        let name = match &self.subject {
            Subject::Image(name) | Subject::Named(name) | Subject::Cache(name) => sha256_hex(name),
            Subject::Slot(number) => number.to_string(),
        };
        let level = match self.level {
            0 => String::new(),
            level => format!(".{level}"),
        };
        let file = match self.part {
            Part::Itself => format!("{name}{level}.lock"),
            Part::Turnstile => format!("{name}{level}.turnstile.lock"),
            Part::Bell => format!("{name}{level}.bell.lock"),
            Part::Memory => format!("{name}{level}.json"),
        };
        Path::new(self.folder()).join(file)
    }
}
