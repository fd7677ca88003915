//! Mounts of one cache that disagree about sharing it.
//!
//! While one mount has the cache locked, BuildKit gives a mount that says `shared` a new, empty
//! folder (`cacheRefs` in its solver/llbsolver/mounts/mount.go). So a lock in one place takes the
//! cache away from the others.

use std::collections::HashMap;

use super::super::finding::{Level, Rule, TextFinding};
use super::super::position::Positions;

/// A cache mount that others may share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The cache's id.
    pub(super) id: String,
    /// The first byte of its `--mount`.
    pub(super) at: usize,
    /// Its target as the file has it.
    pub(super) target: String,
    /// Whether it is locked; otherwise it is shared.
    pub(super) is_locked: bool,
    /// The byte at which `--fix` can insert its text.
    pub(super) fix: Option<usize>,
    /// Whether a comment accepts it.
    pub(super) is_accepted: bool,
}

/// The first mount that locks a cache.
struct Lock {
    line: usize,
    /// Whether the file has the lock. Otherwise the mount has to get one.
    exists: bool,
}

/// Adds a finding for every shared mount of a cache that another mount locks, or has to lock because
/// of one of the `findings`.
pub(super) fn add(findings: &mut Vec<TextFinding>, mounts: &[Shared], text: &str, strict: bool) {
    let is_fixable: HashMap<usize, bool> = findings
        .iter()
        .filter(|finding| finding.rule.level(strict) == Level::Error)
        .map(|finding| (finding.at, finding.fix.is_some()))
        .collect();
    let mut locks: HashMap<&str, Lock> = HashMap::new();
    let mut positions = Positions::new(text.as_bytes());
    for mount in mounts {
        if mount.is_locked || is_fixable.get(&mount.at) == Some(&true) {
            locks.entry(&mount.id).or_insert_with(|| {
                let (line, _) = positions.of(mount.at);
                Lock { line, exists: mount.is_locked }
            });
        }
    }
    let mut mixed = Vec::new();
    for mount in mounts.iter().filter(|it| !it.is_locked && !it.is_accepted) {
        let Some(lock) = locks.get(mount.id.as_str()) else { continue };
        if !is_fixable.contains_key(&mount.at) {
            mixed.push(finding(mount, lock));
        }
    }
    if !mixed.is_empty() {
        let is_replaced = |at: usize| mixed.binary_search_by_key(&at, |it| it.at).is_ok();
        findings.retain(|finding| !is_replaced(finding.at));
        findings.extend(mixed);
        findings.sort_by_key(|finding| finding.at);
    }
}

fn finding(mount: &Shared, lock: &Lock) -> TextFinding {
    let Shared { at, target, id, fix, .. } = mount;
    let line = lock.line;
    let message = if lock.exists {
        format!(
            "cache mount {target} is shared, and the same cache ({id}) is locked in line {line}: \
             while that step runs, this one gets an empty folder"
        )
    } else {
        format!("cache mount {target} has the cache ({id}) that races in line {line}")
    };
    let advice = match fix {
        Some(_) => "add sharing=locked here as well",
        None => "write sharing=locked instead of sharing=shared here as well",
    };
    TextFinding { at: *at, rule: Rule::Mixed, message, advice, fix: *fix }
}
