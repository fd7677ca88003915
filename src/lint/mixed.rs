//! Mounts of one cache that say different things of how to share it.
//!
//! BuildKit gives a mount that says `shared` a new, empty folder while another one has the cache
//! locked (`cacheRefs` in its solver/llbsolver/mounts/mount.go), so a lock in one place alone takes
//! the cache away in the others.

use std::collections::HashMap;

use super::Rule;
use super::dockerfile::Found;

/// A cache mount that others may share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The cache.
    pub(super) id: String,
    /// Where its `--mount` begins, in bytes.
    pub(super) at: usize,
    /// Its target as it is written.
    pub(super) target: String,
    /// It is locked; otherwise shared.
    pub(super) is_locked: bool,
    /// Where `,sharing=locked` would mend it, in bytes.
    pub(super) fix: Option<usize>,
    /// A comment accepts it.
    pub(super) is_accepted: bool,
}

/// Adds the mounts that share a cache which another one locks, or has to: `found` says which do.
pub(super) fn add(
    found: &mut Vec<Found>,
    mounts: &[Shared],
    text: &str,
    is_error: impl Fn(Rule) -> bool,
) {
    let errors: HashMap<usize, bool> = found
        .iter()
        .filter(|found| is_error(found.rule))
        .map(|found| (found.at, found.fix.is_some()))
        .collect();
    let mut locks: HashMap<&str, &Shared> = HashMap::new();
    for mount in mounts {
        if mount.is_locked || errors.get(&mount.at) == Some(&true) {
            locks.entry(&mount.id).or_insert(mount);
        }
    }
    let mut mixed = Vec::new();
    // In the order of the text, so that no line is counted twice.
    let mut line = Lines { text, at: 0, line: 1, known: HashMap::new() };
    for mount in mounts.iter().filter(|it| !it.is_locked && !it.is_accepted) {
        let Some(lock) = locks.get(mount.id.as_str()) else { continue };
        if errors.contains_key(&mount.at) {
            continue;
        }
        let there = line.of(lock.at);
        let (target, id) = (&mount.target, &mount.id);
        let message = match lock.is_locked {
            true => format!(
                "cache mount {target} is shared, and the same cache ({id}) is locked in line \
                 {there}: while that one runs, this one gets an empty folder"
            ),
            false => {
                format!("cache mount {target} has the cache ({id}) that races in line {there}")
            }
        };
        let advice = match mount.fix {
            Some(_) => "add sharing=locked here as well",
            None => "say sharing=locked instead of shared, here as well",
        };
        mixed.push(Found { at: mount.at, rule: Rule::Mixed, message, advice, fix: mount.fix });
    }
    if !mixed.is_empty() {
        let is_replaced = |at: usize| mixed.binary_search_by_key(&at, |found| found.at).is_ok();
        found.retain(|found| !is_replaced(found.at));
        found.extend(mixed);
        found.sort_by_key(|found| found.at);
    }
}

/// The lines of places that come nearly in order.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    known: HashMap<usize, usize>,
}

impl Lines<'_> {
    fn of(&mut self, at: usize) -> usize {
        if let Some(line) = self.known.get(&at) {
            return *line;
        }
        if at < self.at {
            (self.at, self.line) = (0, 1);
        }
        let between = &self.text.as_bytes()[self.at..at];
        self.line += between.iter().filter(|byte| **byte == b'\n').count();
        self.at = at;
        self.known.insert(at, self.line);
        self.line
    }
}
