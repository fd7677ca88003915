//! What a call passes on to the calls inside its build: the tags that `--force` builds.

use std::ffi::OsString;

use crate::lock::{Key, Locks};
use crate::reference::Tag;

/// Tags that an outer call builds with `--force`, separated by spaces. The variable counts only
/// while the kernel says that an ancestor holds the tag's lock: in daemons it outlives the lock.
const FORCED: &str = "BUILDLOCK_FORCED_TAGS";

/// Returns the variable for the build command, given whether this call has `--force`.
pub(super) fn forced_by_us(force: bool, tags: &[Tag]) -> Option<(&'static str, OsString)> {
    /// In bytes: the kernel takes 128 KiB in one variable (execve(2), MAX_ARG_STRLEN).
    const LONGEST: usize = 120 << 10;
    let outer = std::env::var(FORCED).unwrap_or_default();
    let ours = tags.iter().map(Tag::as_str);
    let all = outer.split_whitespace().chain(ours).collect::<Vec<_>>().join(" ");
    if force && all.len() > LONGEST {
        tracing::warn!("too many tags for --force to reach nested calls");
    }
    (force && all.len() <= LONGEST).then(|| (FORCED, all.into()))
}

/// Tells whether an ancestor that holds one of these tags' locks builds it with `--force`.
pub(super) fn is_forced_by_ancestor(tags: &[Tag], locks: &dyn Locks) -> bool {
    let Ok(forced) = std::env::var(FORCED) else { return false };
    tags.iter()
        .filter(|tag| forced.split(' ').any(|it| it == tag.as_str()))
        // If that cannot be seen, better build once too often.
        .any(|tag| !matches!(locks.held_by_ancestors_as(&Key::new(tag.into())), Ok(None)))
}
