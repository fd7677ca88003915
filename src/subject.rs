//! What a lock protects.

use crate::reference::Tag;

/// What a lock protects. Ordered as locks are taken: all tags, then named locks, then caches, each
/// sorted. Slots are outside of that order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// An image, by its canonical tag.
    Image(String),
    /// A resource with a name of its own (`--lock`).
    Named(String),
    /// A build cache, by its id (`--cache`).
    Cache(String),
    /// One of the places for builds (`--max-builds`), by its number.
    Slot(u16),
}

impl Subject {
    /// Returns the canonical tag of an image.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Subject::Image(tag) => Some(tag),
            Subject::Named(_) | Subject::Cache(_) | Subject::Slot(_) => None,
        }
    }

    /// Returns the name of a named lock.
    pub fn name(&self) -> Option<&str> {
        match self {
            Subject::Named(name) => Some(name),
            Subject::Image(_) | Subject::Cache(_) | Subject::Slot(_) => None,
        }
    }

    /// Returns the id of a build cache.
    pub fn cache(&self) -> Option<&str> {
        match self {
            Subject::Cache(id) => Some(id),
            Subject::Image(_) | Subject::Named(_) | Subject::Slot(_) => None,
        }
    }

    /// Returns the number of a slot.
    pub fn slot(&self) -> Option<u16> {
        match self {
            Subject::Slot(number) => Some(*number),
            Subject::Image(_) | Subject::Named(_) | Subject::Cache(_) => None,
        }
    }
}

impl From<&Tag> for Subject {
    fn from(tag: &Tag) -> Self {
        Subject::Image(tag.as_str().to_owned())
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Image(tag) => f.write_str(tag),
            Subject::Named(name) => write!(f, "lock {name}"),
            Subject::Cache(id) => write!(f, "cache {id}"),
            Subject::Slot(number) => write!(f, "slot {number}"),
        }
    }
}
