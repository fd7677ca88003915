//! Build caches that several builds write (`--cache`): one at a time; or one alone, until it has
//! been warmed for these very files, and then all at once.
//!
//! That a cache is warm is remembered beside its lock, and never evidence: builders lose caches. So
//! the engine is asked where it can tell, and a build that fails beside others is run once more,
//! alone, before its failure counts.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::image::Images;
use crate::lock::{Key, LockMode, Store, Subject};
use crate::reference::sha256_hex;
use crate::visible::escaped;

/// How many sets of files are remembered for a cache: branches, and engines.
const REMEMBERED_MAX: usize = 64;
/// How many mounts are remembered for each: all in all it must not be more than is read again.
const MOUNTS_MAX: usize = 16;

/// How long the engine may take to say which mounts there are: it may add up all sizes first.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The least of that, also for who does not wait for locks.
const ANSWER_AT_LEAST: Duration = Duration::from_millis(300);
/// The same after a build, while others may wait for the cache. What it does not say in time is not
/// remembered, and a failure will tell.
const NOTE_WITHIN: Duration = Duration::from_secs(2);

/// A cache that COMMAND writes, as typed: `ID` or `ID=FILE,...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    id: String,
    files: Vec<PathBuf>,
}

impl Use {
    /// Reads `ID` or `ID=FILE,...`.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn parse(text: &OsStr) -> Result<Self, &'static str> {
        /// It stands in messages and in the lock file, which people read.
        const LONGEST: usize = 1024;
        let mut parts = text.as_bytes().splitn(2, |&c| c == b'=');
        let id = parts.next().unwrap_or_default();
        let id = std::str::from_utf8(id).map_err(|_| "a cache's id is UTF-8")?;
        if id.is_empty() {
            return Err("a cache needs an id");
        }
        if id.len() > LONGEST {
            return Err("a cache's id has at most 1,024 bytes");
        }
        if id.chars().any(char::is_control) {
            return Err("a cache's id has no control characters");
        }
        let files = match parts.next() {
            None => Vec::new(),
            Some(files) => {
                files.split(|&c| c == b',').map(|it| OsStr::from_bytes(it).into()).collect()
            }
        };
        if files.iter().any(|file: &PathBuf| file.as_os_str().is_empty()) {
            return Err("a file's name is missing behind '=' or ','");
        }
        Ok(Use { id: id.to_owned(), files })
    }
}

/// A cache that COMMAND writes, and what it has to be warm for to be shared.
#[derive(Debug)]
pub struct Cache {
    id: String,
    /// Empty if it is never shared.
    files: Vec<PathBuf>,
    /// Whether COMMAND empties it first.
    emptied: bool,
    /// Whether COMMAND is a build whose caches are the engine's mounts, and nothing else.
    is_of_mounts: bool,
    /// The mark of the last `cache forget`, as it was when the lock was taken.
    forgotten_before: Mutex<Option<String>>,
    /// Set once it is known that an outer call shares it.
    shared_by_ancestor: OnceLock<()>,
    /// The hash of the files, and of the engine whose cache it is. Read when it is needed first.
    wanted: OnceLock<String>,
    /// What the engine has said last of the mounts that were remembered then: are they all there?
    asked: Mutex<Option<(Vec<String>, bool)>>,
}

/// What is remembered of a cache, as one line of JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    cache: String,
    /// The newest last.
    warm: Vec<Warmth>,
    /// A mark that each `cache forget` replaces, so that a build under way does not undo it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten: Option<String>,
}

/// A build that has warmed a cache.
#[derive(Debug, Serialize, Deserialize)]
struct Warmth {
    files: String,
    /// When (RFC 3339).
    since: String,
    /// The engine's ids of the cache mounts that it used, as far as the engine says so.
    mounts: Vec<String>,
}

impl Cache {
    /// The caches that COMMAND writes, in the order in which their locks are taken.
    ///
    /// # Errors
    /// A file cannot be opened; a cache is named twice.
    pub fn all(uses: Vec<Use>, command: &Command) -> Result<Vec<Self>> {
        let mut caches = uses.into_iter().map(Self::new).collect::<Result<Vec<_>>>()?;
        if command.empties_caches() {
            caches.iter_mut().for_each(|cache| cache.emptied = true);
        }
        let is_build = command.build().is_some();
        caches.iter_mut().for_each(|cache| cache.is_of_mounts = is_build);
        caches.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(twice) = caches.windows(2).find(|two| two[0].id == two[1].id) {
            bail!("--cache {} is there twice; name all its files in one", twice[0].id);
        }
        Ok(caches)
    }

    fn new(Use { id, files }: Use) -> Result<Self> {
        for file in &files {
            let it = || format!("--cache {id}: cannot read {}", file.display());
            // Before it is opened: a FIFO would wait for its other end.
            if !std::fs::metadata(file).with_context(it)?.is_file() {
                bail!("--cache {id}: {} is no file", file.display());
            }
            File::open(file).with_context(it)?;
        }
        Ok(Cache {
            id,
            files,
            emptied: false,
            is_of_mounts: false,
            forgotten_before: Mutex::default(),
            shared_by_ancestor: OnceLock::new(),
            wanted: OnceLock::new(),
            asked: Mutex::default(),
        })
    }

    /// Reads the files, if there are any and they were not read before. What is remembered of them
    /// is for this machine, or for all hosts.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(&self, images: &Images, on_all_hosts: bool) -> Result<()> {
        if self.files.is_empty() || self.wanted.get().is_some() {
            return Ok(());
        }
        let mut hashes = sha256_hex(images.engine(on_all_hosts));
        for file in &self.files {
            let content = std::fs::read(file)
                .with_context(|| format!("--cache {}: cannot read {}", self.id, file.display()))?;
            hashes.push_str(&sha256_hex(content));
        }
        self.wanted.get_or_init(|| sha256_hex(hashes));
        Ok(())
    }

    /// What its lock is for.
    pub fn subject(&self) -> Subject {
        Subject::Cache(self.id.clone())
    }

    /// Whether it can be remembered that it is warm, for its files.
    pub fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Whether it can be shared once it is warm.
    pub fn can_be_shared(&self) -> bool {
        !self.files.is_empty() && !self.emptied
    }

    /// Whether COMMAND empties it first, and so is to have it alone.
    pub fn is_emptied(&self) -> bool {
        self.emptied
    }

    /// An outer call shares it, so nobody has it for himself within that one: it will not be
    /// remembered that it is warm.
    pub fn note_sharing_ancestor(&self) {
        _ = self.shared_by_ancestor.set(());
    }

    /// Asks the engine, if it is remembered that the cache is warm, whether it is still there:
    /// somebody may have pruned it. Before anybody has to wait for us, and within what is `left` of
    /// the time for waiting, for it may take its time.
    pub fn ask(&self, store: &dyn Store, images: &Images, left: Option<Duration>) {
        let within = left.map_or(ANSWER_WITHIN, |left| left.clamp(ANSWER_AT_LEAST, ANSWER_WITHIN));
        let Some(warmth) = self.remembered(store).filter(|warmth| !warmth.mounts.is_empty()) else {
            return;
        };
        // Where the engine does not say, a failure will.
        if let Some(there) = images.cache_mounts(within) {
            // Among them may be those of builds that ran at the same time, and are nothing to us. But
            // a build that is alone for nothing costs less than several that fail.
            let is_left = warmth.mounts.iter().all(|mount| there.iter().any(|it| it.id == *mount));
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((warmth.mounts, is_left));
        }
    }

    /// How its lock is to be taken now: shared if it is warm.
    pub fn mode(&self, store: &dyn Store) -> LockMode {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_warm = self.remembered(store).is_some_and(|warmth| {
            // What has been remembered since then is newer than what the engine said.
            asked.as_ref().is_none_or(|(mounts, is_left)| *is_left || *mounts != warmth.mounts)
        });
        if is_warm && !self.emptied { LockMode::Shared } else { LockMode::Exclusive }
    }

    /// Whether the engine has said that it was warm, and is no more.
    pub fn has_lost_mounts(&self) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.as_ref().is_some_and(|(_, is_there)| !is_there)
    }

    fn remembered(&self, store: &dyn Store) -> Option<Warmth> {
        let wanted = self.wanted.get()?;
        let (memory, _) = Memory::of(store, &self.key());
        memory.warm.into_iter().find(|warmth| warmth.files == *wanted)
    }

    /// Notes the mark of the last `cache forget` before the build command runs.
    pub fn note_forgotten(&self, store: &dyn Store) {
        let forgotten = Memory::of(store, &self.key()).0.forgotten;
        *self.forgotten_before.lock().unwrap_or_else(PoisonError::into_inner) = forgotten;
    }

    /// Remembers that a build that had it alone, and used these mounts if that is known, has warmed
    /// it. A failure is no error: the next build is alone, too.
    pub fn remember(&self, store: &dyn Store, mounts: Option<&[String]>) {
        let Some(wanted) = self.wanted.get() else { return };
        if self.shared_by_ancestor.get().is_some() {
            return;
        }
        let changed = update(store, &self.key(), |memory| self.add(memory, wanted, mounts));
        if let Err(error) = changed {
            tracing::warn!("cache {}: cannot remember that it is warm: {error:#}", self.id);
        }
    }

    /// Adds that a build for these files has warmed it. Returns false if that would be wrong.
    fn add(&self, memory: &mut Memory, wanted: &str, mounts: Option<&[String]>) -> bool {
        let before = self.forgotten_before.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.forgotten != *before {
            tracing::info!("cache {}: forgotten while the build ran, so not warm", self.id);
            return false;
        }
        let had_mounts = |warmth: &Warmth| warmth.files == wanted && !warmth.mounts.is_empty();
        if mounts.is_some_and(<[_]>::is_empty)
            && (self.is_of_mounts || memory.warm.iter().any(had_mounts))
        {
            // All its steps were in the layer cache, or somebody has pruned what it had filled.
            tracing::debug!("cache {}: the engine has no mount that the build used", self.id);
            return false;
        }
        let warmth = Warmth {
            files: wanted.to_owned(),
            since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            mounts: mounts.unwrap_or_default().iter().take(MOUNTS_MAX).cloned().collect(),
        };
        memory.cache.clone_from(&self.id);
        memory.warm.retain(|warmth| warmth.files != wanted);
        let surplus = (memory.warm.len() + 1).saturating_sub(REMEMBERED_MAX);
        memory.warm.drain(..surplus);
        memory.warm.push(warmth);
        true
    }

    /// Forgets that it was warm, because COMMAND empties it or has failed beside others.
    pub fn forget(&self, store: &dyn Store) {
        let changed =
            update(store, &self.key(), |memory| !std::mem::take(&mut memory.warm).is_empty());
        if let Err(error) = changed {
            tracing::warn!("cache {}: cannot forget that it was warm: {error:#}", self.id);
        }
    }

    /// The id.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn key(&self) -> Key {
        Key::new(self.subject())
    }
}

/// The engine's cache mounts that builds have used since then, if it says so soon.
pub fn mounts_used_since(images: &Images, start: SystemTime) -> Option<Vec<String>> {
    let mounts = images.cache_mounts(NOTE_WITHIN)?.into_iter();
    let used = mounts.filter(|mount| mount.last_used.is_some_and(|used| used >= start));
    Some(used.map(|mount| mount.id).collect())
}

/// Prints what is remembered of caches, as a table or as a JSON array.
///
/// # Errors
/// Nobody takes the output.
pub fn list(lines: &[Vec<u8>], json: bool, out: &mut impl Write) -> Result<()> {
    let memories = lines.iter().filter_map(|line| serde_json::from_slice::<Memory>(line).ok());
    let mut memories: Vec<Memory> = memories.filter(|memory| !memory.warm.is_empty()).collect();
    memories.sort_by(|a, b| a.cache.cmp(&b.cache));
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&memories)?)?;
        return Ok(());
    }
    let id = |memory: &Memory| escaped(&memory.cache);
    let width = memories.iter().map(|memory| id(memory).chars().count()).max().unwrap_or_default();
    let width = width.max("CACHE".len());
    writeln!(out, "{:width$}  {:20}  FILES", "CACHE", "WARM SINCE")?;
    for memory in &memories {
        for warmth in memory.warm.iter().rev() {
            let files: String = warmth.files.chars().take(12).collect();
            let (since, files) = (escaped(&warmth.since), escaped(&files));
            writeln!(out, "{:width$}  {since:20}  {files}", id(memory))?;
        }
    }
    Ok(())
}

impl Memory {
    /// Anybody may have written anything there.
    fn of(store: &dyn Store, key: &Key) -> (Self, Option<Vec<u8>>) {
        let line = store.remembered(key);
        let memory = line.as_deref().and_then(|line| serde_json::from_slice(line).ok());
        (memory.unwrap_or_default(), line)
    }
}

/// Changes what is remembered, whoever else does so at the same time.
fn update(store: &dyn Store, key: &Key, mut change: impl FnMut(&mut Memory) -> bool) -> Result<()> {
    /// So many changes in between are no accident.
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        let (mut memory, before) = Memory::of(store, key);
        if !change(&mut memory) {
            return Ok(());
        }
        let line = serde_json::to_vec(&memory).unwrap_or_default();
        if store.remember(key, before.as_deref(), Some(&line))? {
            return Ok(());
        }
    }
    bail!("{} is changed as fast as it is read", key.subject())
}

/// `buildlock cache forget`: a build that is under way does not undo it. Returns whether there was
/// anything to forget.
///
/// # Errors
/// It cannot be written.
pub fn forget(store: &dyn Store, id: String) -> Result<bool> {
    let key = Key::new(Subject::Cache(id.clone()));
    let (memory, before) = Memory::of(store, &key);
    let was_warm = !memory.warm.is_empty();
    let is_in_use = store.held()?.iter().any(|held| held.cache.as_ref() == Some(&id));
    // Nobody would look for a mark, and nothing has to be left.
    if !is_in_use && (before.is_none() || store.remember(&key, before.as_deref(), None)?) {
        return Ok(was_warm);
    }
    update(store, &key, |memory| {
        memory.warm.clear();
        memory.cache.clone_from(&id);
        memory.forgotten = Some(format!("{:016x}", fastrand::u64(..)));
        true
    })?;
    Ok(was_warm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Use, &'static str> {
        Use::parse(OsStr::new(text))
    }

    #[test]
    fn a_cache_is_an_id_with_or_without_files() {
        let of = |id: &str, files: &[&str]| {
            Ok(Use { id: id.into(), files: files.iter().map(PathBuf::from).collect() })
        };
        assert_eq!(parse("cargo"), of("cargo", &[]));
        assert_eq!(parse("cargo=Cargo.lock"), of("cargo", &["Cargo.lock"]));
        assert_eq!(parse("npm cache=a/b,c=d"), of("npm cache", &["a/b", "c=d"]));
    }

    #[test]
    fn what_is_no_cache_is_refused() {
        for text in ["", "=a", "a=", "a=b,", "a=,b", "a\n", "\u{7f}", &"x".repeat(1025)] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
