//! What is remembered of a cache from one build to the next: a note beside its lock.

use std::io::Write;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::lock::{CACHE_LOCKS, HeldLock, Key, Notes, Store};
use crate::subject::Subject;
use crate::visible::escaped_and_shortened;

/// How many sets of files are remembered for one cache: there are branches, and engines.
const REMEMBERED_MAX: usize = 64;

/// What is remembered of a cache, as one line of JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    cache: String,
    /// The newest last.
    warm: Vec<Warmth>,
    /// A mark that each `cache forget` replaces, so that a build under way does not undo it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) forgotten: Option<String>,
}

/// A build that has warmed a cache.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Warmth {
    /// The hash of the files and the engine that it was warmed for.
    pub(super) files: String,
    /// When (RFC 3339).
    pub(super) since: String,
    /// The engine's ids of the cache mounts that the build used, as far as the engine tells.
    pub(super) mounts: Vec<String>,
}

impl Memory {
    /// Returns what is remembered under this key; nothing if that cannot be read.
    pub(super) fn of(notes: &dyn Notes, key: &Key) -> Self {
        Self::read(notes.note(key).as_deref())
    }

    /// Anybody may have written anything there.
    fn read(line: Option<&[u8]>) -> Self {
        line.and_then(|line| serde_json::from_slice(line).ok()).unwrap_or_default()
    }

    /// Returns the build that warmed the cache for these files.
    pub(super) fn warmth_for(self, files: &str) -> Option<Warmth> {
        self.warm.into_iter().find(|warmth| warmth.files == files)
    }

    /// Returns whether a build with these files is known to have used mounts of the engine.
    pub(super) fn had_mounts_for(&self, files: &str) -> bool {
        self.warm.iter().any(|warmth| warmth.files == files && !warmth.mounts.is_empty())
    }

    /// Adds a build in the place of an earlier one for the same files. The oldest are dropped.
    pub(super) fn add(&mut self, cache: &str, warmth: Warmth) {
        cache.clone_into(&mut self.cache);
        self.warm.retain(|other| other.files != warmth.files);
        let surplus = (self.warm.len() + 1).saturating_sub(REMEMBERED_MAX);
        self.warm.drain(..surplus);
        self.warm.push(warmth);
    }

    /// Escapes what a terminal may take for commands, as `status --json` does.
    fn escaped(self) -> Self {
        let warm = self.warm.into_iter().map(|warmth| Warmth {
            files: escaped_and_shortened(&warmth.files),
            since: escaped_and_shortened(&warmth.since),
            mounts: warmth.mounts.iter().map(|id| escaped_and_shortened(id)).collect(),
        });
        Memory {
            cache: escaped_and_shortened(&self.cache),
            warm: warm.collect(),
            forgotten: self.forgotten.as_deref().map(escaped_and_shortened),
        }
    }

    /// Forgets all builds. Returns whether there was one.
    pub(super) fn cool(&mut self) -> bool {
        !std::mem::take(&mut self.warm).is_empty()
    }
}

/// Changes what is remembered, without losing what another process changes at the same time.
/// `change` returns false to leave it as it is.
pub(super) fn update(
    notes: &dyn Notes,
    key: &Key,
    mut change: impl FnMut(&mut Memory) -> bool,
) -> Result<()> {
    notes.update_note(key, &mut |line| {
        let mut memory = Memory::read(line);
        change(&mut memory).then(|| serde_json::to_vec(&memory).unwrap_or_default())
    })
}

/// Forgets that a cache is warm (`buildlock cache forget`). A build under way does not undo it.
/// Returns whether there was anything to forget.
///
/// # Errors
/// The store cannot be read or written.
pub fn forget(store: &dyn Store, id: &str) -> Result<bool> {
    let key = Key::new(Subject::Cache(id.to_owned()));
    let before = store.note(&key);
    let was_warm = Memory::read(before.as_deref()).cool();
    let is_held = |held: &HeldLock| held.cache.as_deref() == Some(id);
    // Any user can make the list of locks too long to read.
    let is_in_use = store
        .held()
        .map_or(true, |locks| locks.incomplete.is_some() || locks.held.iter().any(is_held));
    // Without a build under way nobody would look for a mark, and nothing has to be left.
    if !is_in_use && (before.is_none() || store.replace_note(&key, before.as_deref(), None)?) {
        return Ok(was_warm);
    }
    update(store, &key, |memory| {
        memory.cool();
        id.clone_into(&mut memory.cache);
        memory.forgotten = Some(format!("{:016x}", fastrand::u64(..)));
        true
    })?;
    Ok(was_warm)
}

/// Prints what is remembered of caches, as a table or as a JSON array.
///
/// # Errors
/// The store cannot be read, or the output cannot be written.
pub fn list(notes: &dyn Store, json: bool, out: &mut impl Write) -> Result<()> {
    let mut memories: Vec<Memory> = Vec::new();
    notes.each_note(CACHE_LOCKS, &mut |line| {
        let memory = Memory::read(Some(line));
        if !memory.warm.is_empty() {
            memories.push(memory);
        }
    })?;
    memories.sort_by(|a, b| a.cache.cmp(&b.cache));
    if json {
        let memories: Vec<Memory> = memories.into_iter().map(Memory::escaped).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&memories)?)?;
        return Ok(());
    }
    let id = |memory: &Memory| escaped_and_shortened(&memory.cache);
    let width = memories.iter().map(|memory| id(memory).chars().count()).max().unwrap_or_default();
    let width = width.max("CACHE".len());
    writeln!(out, "{:width$}  {:20}  FILES", "CACHE", "WARM SINCE")?;
    for memory in &memories {
        for warmth in memory.warm.iter().rev() {
            let files: String = warmth.files.chars().take(12).collect();
            let (since, files) =
                (escaped_and_shortened(&warmth.since), escaped_and_shortened(&files));
            writeln!(out, "{:width$}  {since:20}  {files}", id(memory))?;
        }
    }
    Ok(())
}
