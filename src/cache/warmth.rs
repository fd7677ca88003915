//! Whether a cache is warm: what is remembered of it, and what the engine says.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::memory::{Memory, Warmth, update};
use super::spec::Use;
use crate::command::Command;
use crate::image::{CacheMount, Images};
use crate::lock::{Key, LockMode, Notes};
use crate::reference::sha256_hex;
use crate::scope::Scope;
use crate::subject::Subject;

/// How many mounts a note lists. More would exceed what is read back.
const MOUNTS_MAX: usize = 16;
/// How long the engine may take to list its mounts: it may add up all their sizes first.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Minimum of `ANSWER_WITHIN`, also for a caller that does not wait for locks.
const ANSWER_AT_LEAST: Duration = Duration::from_millis(300);
/// `ANSWER_WITHIN` after a build, while others may wait for the cache. What the engine does not say
/// in time is not remembered, and a failed build will show it.
const NOTE_WITHIN: Duration = Duration::from_secs(2);
/// How long the engine may take to list prunes, which is quick.
const EVENTS_WITHIN: Duration = Duration::from_secs(1);

/// A cache that the build command writes, and what it has to be warm for to be shared.
#[derive(Debug)]
pub(crate) struct Cache {
    id: String,
    /// Empty if it is never shared.
    files: Vec<PathBuf>,
    /// Whether the build command empties it first.
    is_emptied: bool,
    /// Whether the build command is a build, whose caches are the engine's mounts and nothing else.
    is_of_mounts: bool,
    /// The mark of the last `cache forget` when the lock was taken.
    forgotten_before: Mutex<Option<String>>,
    /// Set once an outer call is known to share it.
    shared_by_ancestor: OnceLock<()>,
    /// The hash of the files, and of the engine whose cache it is. Read when it is first needed.
    wanted: OnceLock<String>,
    /// The mounts that were remembered when the engine was last asked, and whether it still has all
    /// of them.
    asked: Mutex<Option<(Vec<String>, bool)>>,
}

impl Cache {
    /// Returns the caches that the build command writes, in the order in which their locks are
    /// taken.
    ///
    /// # Errors
    /// A file cannot be opened, or a cache is named twice.
    pub(super) fn all(uses: Vec<Use>, command: &Command) -> Result<Vec<Self>> {
        let is_emptied = command.empties_caches();
        let is_of_mounts = command.build().is_some();
        let new = |spec| Self::new(spec, is_emptied, is_of_mounts);
        let mut caches = uses.into_iter().map(new).collect::<Result<Vec<_>>>()?;
        caches.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(twice) = caches.windows(2).find(|two| two[0].id == two[1].id) {
            bail!("--cache {} is given twice; name all its files in one", twice[0].id);
        }
        Ok(caches)
    }

    fn new(Use { id, files }: Use, is_emptied: bool, is_of_mounts: bool) -> Result<Self> {
        for file in &files {
            let it = || format!("--cache {id}: cannot read {}", file.display());
            // Before it is opened: a FIFO would wait for its other end.
            if !std::fs::metadata(file).with_context(it)?.is_file() {
                bail!("--cache {id}: {} is not a file", file.display());
            }
            File::open(file).with_context(it)?;
        }
        Ok(Cache {
            id,
            files,
            is_emptied,
            is_of_mounts,
            forgotten_before: Mutex::default(),
            shared_by_ancestor: OnceLock::new(),
            wanted: OnceLock::new(),
            asked: Mutex::default(),
        })
    }

    /// Reads the files, unless that was done before. `scope` says for whose builds the result holds.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn read(&self, images: &Images, scope: Scope) -> Result<()> {
        if self.files.is_empty() || self.wanted.get().is_some() {
            return Ok(());
        }
        let mut hashes = sha256_hex(images.engine(scope));
        for file in &self.files {
            let content = std::fs::read(file)
                .with_context(|| format!("--cache {}: cannot read {}", self.id, file.display()))?;
            hashes.push_str(&sha256_hex(content));
        }
        self.wanted.get_or_init(|| sha256_hex(hashes));
        Ok(())
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn subject(&self) -> Subject {
        Subject::Cache(self.id.clone())
    }

    fn key(&self) -> Key {
        Key::new(self.subject())
    }

    /// Returns whether it can be remembered as warm, for its files.
    pub(super) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Returns whether it can be shared once it is warm.
    pub(super) fn can_be_shared(&self) -> bool {
        !self.files.is_empty() && !self.is_emptied
    }

    /// Returns whether the build command empties it first, and so must have it alone.
    pub(super) fn is_emptied(&self) -> bool {
        self.is_emptied
    }

    /// Notes that an outer call shares it. Nobody inside that call has it alone, so it will not be
    /// remembered as warm.
    pub(super) fn note_sharing_ancestor(&self) {
        _ = self.shared_by_ancestor.set(());
    }

    /// Asks the engine whether a cache that is remembered as warm is still there: it may have been
    /// pruned. This happens before others have to wait for us, and within what is `left` of the
    /// time for waiting.
    pub(super) fn ask(&self, notes: &dyn Notes, images: &Images, left: Option<Duration>) {
        let within = left.map_or(ANSWER_WITHIN, |left| left.clamp(ANSWER_AT_LEAST, ANSWER_WITHIN));
        let Some(warmth) = self.remembered(notes).filter(|warmth| !warmth.mounts.is_empty()) else {
            return;
        };
        // If the engine does not answer, a failed build will show it.
        if let Some(there) = images.cache_mounts(within) {
            // The mounts of builds that ran at the same time may be among them. But one build that
            // is alone for no reason costs less than several that fail.
            let is_left = warmth.mounts.iter().all(|mount| there.iter().any(|it| it.id == *mount));
            *self.asked() = Some((warmth.mounts, is_left));
        }
    }

    /// Returns how its lock has to be taken now: shared if it is warm.
    pub(super) fn mode(&self, notes: &dyn Notes) -> LockMode {
        let asked = self.asked();
        let is_warm = self.remembered(notes).is_some_and(|warmth| {
            // What has been remembered since then is newer than what the engine said.
            asked.as_ref().is_none_or(|(mounts, is_left)| *is_left || *mounts != warmth.mounts)
        });
        if is_warm && !self.is_emptied { LockMode::Shared } else { LockMode::Exclusive }
    }

    /// Returns whether the engine has lost what made it warm.
    pub(super) fn has_lost_mounts(&self) -> bool {
        self.asked().as_ref().is_some_and(|(_, is_there)| !is_there)
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Option<(Vec<String>, bool)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, notes: &dyn Notes) -> Option<Warmth> {
        Memory::of(notes, &self.key()).warmth_for(self.wanted.get()?)
    }

    /// Notes the mark of the last `cache forget` before the build command runs.
    pub(super) fn note_forgotten(&self, notes: &dyn Notes) {
        let forgotten = Memory::of(notes, &self.key()).forgotten;
        *self.forgotten_before.lock().unwrap_or_else(PoisonError::into_inner) = forgotten;
    }

    /// Remembers that a build that had the cache to itself warmed it, given the engine's account of
    /// that build. A failure is not an error: the next build is alone, too.
    pub(super) fn remember(&self, notes: &dyn Notes, account: &Account) {
        let Some(wanted) = self.wanted.get() else { return };
        if self.shared_by_ancestor.get().is_some() {
            return;
        }
        if account.was_pruned {
            tracing::info!("cache {}: pruned while the build ran, so not warm", self.id);
            return;
        }
        let mounts = account.mounts.as_deref();
        let changed = update(notes, &self.key(), |memory| self.add(memory, wanted, mounts));
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
        if mounts.is_some_and(<[_]>::is_empty)
            && (self.is_of_mounts || memory.had_mounts_for(wanted))
        {
            // All steps were in the layer cache, or what the build filled was pruned.
            tracing::debug!("cache {}: the engine has no mount that the build used", self.id);
            return false;
        }
        let warmth = Warmth {
            files: wanted.to_owned(),
            since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            mounts: mounts.unwrap_or_default().iter().take(MOUNTS_MAX).cloned().collect(),
        };
        memory.add(&self.id, warmth);
        true
    }

    /// Forgets that it was warm, because the build command empties it or failed beside others.
    pub(super) fn forget(&self, notes: &dyn Notes) {
        if let Err(error) = update(notes, &self.key(), Memory::cool) {
            tracing::warn!("cache {}: cannot forget that it was warm: {error:#}", self.id);
        }
    }
}

/// What the engine says about a build that used caches.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// The cache mounts that the build used, if the engine lists them.
    mounts: Option<Vec<String>>,
    /// Whether the engine's cache was pruned while the build ran: what an earlier step filled may be
    /// gone, although a later step used the mount again.
    was_pruned: bool,
}

impl Account {
    /// Asks the engine about the build that began at `start` and has ended now.
    pub(crate) fn since(start: SystemTime, images: &Images) -> Self {
        let mounts: Option<Vec<_>> = images.cache_mounts(NOTE_WITHIN).map(|mounts| {
            let used = |mount: &CacheMount| mount.last_used.is_some_and(|used| used >= start);
            mounts.into_iter().filter(used).map(|mount| mount.id).collect()
        });
        // A busy engine may not list its mounts in time, and still say what it pruned. One that lists
        // them and then falls silent may have pruned them.
        let was_pruned = images.was_cache_pruned(start, EVENTS_WITHIN);
        Account { was_pruned: was_pruned.unwrap_or(mounts.is_some()), mounts }
    }
}
