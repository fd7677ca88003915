//! The lock: what it is taken for, who has it, and how to wait for it.
//!
//! A [`Store`] knows how to take and to wait for one lock; what follows from a failed try (who is
//! said to hold it, nested calls, the order of waiting, the deadline) is the same for every store
//! and lives here. Nothing here knows of images.

pub mod file;
pub mod holder;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::SigSet;
use serde::{Deserialize, Serialize};

pub use self::holder::Holder;
use crate::duration::Deadline;
use crate::log;
use crate::reference::{Tag, sha256_hex};

/// Where lock files live unless somebody says otherwise: one folder per machine, as the engine is.
pub const DEFAULT_DIR: &str = "/tmp/buildlock";

/// Folder of the locks for images.
pub const IMAGE_LOCKS: &str = "image-locks";
/// Folder of the locks with names.
pub const NAMED_LOCKS: &str = "named-locks";
/// Folder of the locks for build caches.
pub const CACHE_LOCKS: &str = "cache-locks";

/// What a lock is for. Ordered as locks are taken: all tags, then named locks, then caches, each
/// sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// An image, by its canonical tag.
    Image(String),
    /// A resource with a name of its own (`--lock`).
    Named(String),
    /// A build cache, by its id (`--cache`).
    Cache(String),
}

impl Subject {
    /// The canonical tag, if it is an image.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Subject::Image(tag) => Some(tag),
            Subject::Named(_) | Subject::Cache(_) => None,
        }
    }

    /// The name, if it is a named lock.
    pub fn name(&self) -> Option<&str> {
        match self {
            Subject::Named(name) => Some(name),
            Subject::Image(_) | Subject::Cache(_) => None,
        }
    }

    /// The id, if it is a build cache.
    pub fn cache(&self) -> Option<&str> {
        match self {
            Subject::Cache(id) => Some(id),
            Subject::Image(_) | Subject::Named(_) => None,
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
        }
    }
}

/// One lock of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    subject: Subject,
    /// How many of our ancestors hold a lock for the same subject. A nested call excludes its
    /// siblings with a lock of its own, one level down.
    level: usize,
    part: Part,
}

/// What there is of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Itself,
    /// A second lock, which everybody takes first who wants the lock itself, and releases when he
    /// has it: so that who needs it for himself gets it from those who share it.
    Turnstile,
    /// No lock, but what is remembered from one holder to the next.
    Memory,
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// By one.
    Exclusive,
    /// By all who share it.
    Shared,
}

impl Key {
    /// The lock for `subject`.
    pub fn new(subject: Subject) -> Self {
        Key { subject, level: 0, part: Part::Itself }
    }

    /// The turnstile in front of the lock.
    #[must_use]
    fn turnstile(&self) -> Self {
        Key { part: Part::Turnstile, ..self.clone() }
    }

    /// The lock behind the turnstile.
    #[must_use]
    fn itself(&self) -> Self {
        Key { part: Part::Itself, ..self.clone() }
    }

    /// What is remembered from one holder to the next.
    #[must_use]
    pub fn memory(&self) -> Self {
        Key { part: Part::Memory, ..self.clone() }
    }

    /// What it is for.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The lock that nested calls exclude each other with while an ancestor of theirs has this one.
    #[must_use]
    pub fn nested(mut self) -> Self {
        self.level += 1;
        self
    }

    /// The folder for locks of its kind, in a store of files.
    pub fn folder(&self) -> &'static str {
        match self.subject {
            Subject::Image(_) => IMAGE_LOCKS,
            Subject::Named(_) => NAMED_LOCKS,
            Subject::Cache(_) => CACHE_LOCKS,
        }
    }

    /// `image-locks/<sha256 of the tag>.lock`, or its like: where a store of files keeps it.
    pub fn relative_path(&self) -> PathBuf {
        let digest = match &self.subject {
            Subject::Image(name) | Subject::Named(name) | Subject::Cache(name) => sha256_hex(name),
        };
        let level = match self.level {
            0 => String::new(),
            level => format!(".{level}"),
        };
        let file = match self.part {
            Part::Itself => format!("{digest}{level}.lock"),
            Part::Turnstile => format!("{digest}{level}.turnstile.lock"),
            Part::Memory => format!("{digest}{level}.json"),
        };
        Path::new(self.folder()).join(file)
    }
}

/// What a holder leaves behind, as one line of JSON, of a build that failed by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedBuild {
    /// The build's random id.
    pub build: String,
    /// COMMAND's exit status.
    pub status: u8,
}

/// A place where locks are taken.
///
/// A new one has to bring [`try_acquire`](Store::try_acquire), the two that wait and
/// [`last_failure`](Store::last_failure); the rest helps people. The operations that wait do so as long as it takes; they run on a thread of their own, and who
/// has no time left abandons them.
pub trait Store: Send + Sync {
    /// Finds out whether the lock can be taken at all, without taking it.
    ///
    /// # Errors
    /// It can not.
    fn check(&self, key: &Key) -> Result<()>;

    /// Takes the lock, or says at once that it is busy.
    ///
    /// # Errors
    /// The store cannot be used; [`Passing`] if that may be different in a moment.
    fn try_acquire(&self, key: &Key, mode: LockMode) -> Result<Option<Box<dyn Held>>>;

    /// Waits until nobody holds the lock exclusively, together with everybody else who does, and
    /// returns what the last build ended with if it failed. Never call this twice in a row: waiters
    /// that only do this can keep each other from ever getting the lock.
    ///
    /// # Errors
    /// The store cannot be used.
    fn wait_released(&self, key: &Key, deadline: Deadline) -> Result<Option<FailedBuild>>;

    /// Takes the lock, in line with everybody else who does.
    ///
    /// # Errors
    /// The store cannot be used.
    fn acquire(&self, key: &Key, mode: LockMode, deadline: Deadline) -> Result<Box<dyn Held>>;

    /// Who holds the lock, as far as that can be known for certain. It is cheaper to tell whether
    /// the process `known` still does.
    fn holder(&self, key: &Key, known: Option<u32>) -> Option<Holder>;

    /// What the last build under the lock ended with, if that was a failure.
    fn last_failure(&self, key: &Key) -> Option<FailedBuild>;

    /// What ancestors of this process hold in this store.
    fn held_by_ancestors(&self) -> Vec<Subject>;

    /// Where a person finds the lock.
    fn location(&self, key: &Key) -> PathBuf;

    /// What is remembered under this key; nothing if that cannot be read.
    fn remembered(&self, key: &Key) -> Option<Vec<u8>>;

    /// Remembers a line, or nothing any more.
    ///
    /// # Errors
    /// It cannot be written.
    fn remember(&self, key: &Key, line: Option<&[u8]>) -> Result<()>;
}

/// A lock that is held. Dropping it without [`Held::release`] leaves it to whoever inherited it.
pub trait Held: Send {
    /// What it is for.
    fn subject(&self) -> &Subject;

    /// Says who holds it, what for and since now. For people only, so a failure is no error.
    fn record(&self, holder: &Holder);

    /// What the last build under it ended with, if that was a failure.
    fn last_failure(&self) -> Option<FailedBuild>;

    /// Why it can no longer be believed to exclude others, if so.
    fn lost(&self) -> Option<String>;

    /// How it is held.
    fn mode(&self) -> LockMode;

    /// From now on it is shared; or, if somebody has slipped in meanwhile who does not, it is not
    /// held any more, and false is returned.
    ///
    /// # Errors
    /// The store cannot be used; it is no longer held.
    fn share(&mut self) -> Result<bool>;

    /// The descriptor that keeps it held in a child that inherits it.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Takes the holder out of the record, leaves `failure` there, and unlocks: for every copy of
    /// the descriptor, also those in a daemon that the build left behind.
    fn release(self: Box<Self>, failure: Option<&FailedBuild>);
}

/// Why a lock could not be taken just now, where trying again is worth while.
#[derive(Debug)]
pub struct Passing(pub String);

impl std::fmt::Display for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Passing {}

/// How a wait for one lock went.
pub enum Turn {
    /// The lock is ours.
    Held(Box<dyn Held>),
    /// What the lock was wanted for has come to be meanwhile.
    Settled,
    /// The build that was waited for failed with this status, and its failure is shared.
    Failed(u8),
    /// The deadline passed. Logged.
    TimedOut,
}

/// What bounds and shortens a wait.
pub struct Patience<'a> {
    /// When to give up.
    pub deadline: Deadline,
    /// Whether the failure of a build that was waited for is ours too.
    pub share_failure: bool,
    /// Whether what the lock is wanted for has come to be; `None` if that would change nothing.
    pub settled: Option<&'a mut dyn FnMut() -> Result<bool>>,
}

/// How long a busy lock is tried again for somebody who does not wait, because the short shared
/// locks of waking waiters make a try fail although nobody builds.
const NO_WAIT_GRACE: Duration = Duration::from_millis(100);

/// Takes the lock for `subject`, waiting as `patience` allows.
///
/// # Errors
/// The store, or `patience.settled`, failed.
pub fn take(store: &Arc<dyn Store>, subject: Subject, mut patience: Patience<'_>) -> Result<Turn> {
    let start = Instant::now();
    let mut key = Key::new(subject);
    loop {
        if let Some(turn) = take_or_descend(store, &key, LockMode::Exclusive, &mut patience)? {
            if let Turn::Held(held) = &turn {
                log::acquired(held.subject(), start.elapsed());
            }
            return Ok(turn);
        }
        tracing::debug!("{}: an ancestor of this process holds the lock", key.subject());
        key = key.nested();
    }
}

/// Takes a lock that may be shared, in the mode that is the right one when it is had. Everybody
/// goes through its turnstile, one after the other, so that who needs it for himself waits for
/// those who share it now and for nobody who comes later: flock(2) alone is not fair.
///
/// # Errors
/// The store, or `mode`, failed.
pub fn take_in_turn(
    store: &Arc<dyn Store>,
    subject: Subject,
    deadline: Deadline,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<Turn> {
    let mut key = Key::new(subject);
    loop {
        let mut patience = Patience { deadline, share_failure: false, settled: None };
        let turnstile = key.turnstile();
        let turnstile =
            match take_or_descend(store, &turnstile, LockMode::Exclusive, &mut patience)? {
                Some(Turn::Held(turnstile)) => Some(turnstile),
                Some(turn) => return Ok(turn),
                None => None,
            };
        let taken = match &turnstile {
            Some(_) => take_behind_turnstile(store, &key, &mut patience, mode),
            None => Ok(None),
        };
        // Closed, and nobody has inherited it.
        drop(turnstile);
        if let Some(turn) = taken? {
            return Ok(turn);
        }
        tracing::debug!("{}: an ancestor of this process holds the lock", key.subject());
        key = key.nested();
    }
}

fn take_behind_turnstile(
    store: &Arc<dyn Store>,
    key: &Key,
    patience: &mut Patience<'_>,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<Option<Turn>> {
    let wanted = mode()?;
    let turn = take_or_descend(store, key, wanted, patience)?;
    let Some(Turn::Held(mut held)) = turn else { return Ok(turn) };
    // Whoever we waited for may have done what it was wanted exclusively for.
    if wanted == LockMode::Exclusive && mode()? == LockMode::Shared && !held.share()? {
        drop(held);
        return take_or_descend(store, key, LockMode::Shared, patience);
    }
    Ok(Some(Turn::Held(held)))
}

/// Takes one lock; none if an ancestor of this process has it, so that waiting would be for
/// ourselves.
fn take_or_descend(
    store: &Arc<dyn Store>,
    key: &Key,
    mode: LockMode,
    patience: &mut Patience<'_>,
) -> Result<Option<Turn>> {
    if let Some(held) = unless_passing(store.try_acquire(key, mode))? {
        return Ok(Some(Turn::Held(held)));
    }
    // Who stands in a turnstile waits himself: for him who has the lock behind it.
    let holder = store.holder(&key.itself(), None);
    if is_held_by_ancestor(holder.as_ref()) {
        return Ok(None);
    }
    if patience.deadline.is_at_once() {
        return try_for_a_moment(store, key, mode).map(Some);
    }

    let mut wait = Wait::begin(store, key, patience.deadline, holder);
    wait.warn_of_deadlock();

    // Everybody who waits for an image wakes at once and looks at once. That is the usual end.
    if let Some(settled) = &mut patience.settled {
        let failure = match wait.until(|store, key, deadline| store.wait_released(key, deadline))? {
            Waited::Done(failure) => failure,
            Waited::ForAncestor => return Ok(None),
            Waited::TimedOut => return Ok(Some(Turn::TimedOut)),
        };
        if settled()? {
            return Ok(Some(Turn::Settled));
        }
        if let Some(status) = wait.shared(failure.as_ref(), patience.share_failure) {
            return Ok(Some(Turn::Failed(status)));
        }
        if let Some(held) = unless_passing(store.try_acquire(key, mode))? {
            return Ok(Some(Turn::Held(held)));
        }
    }

    // Two shared waits in a row would let waiters keep each other out for ever: from here on we
    // stand in line.
    let held = match wait.until(move |store, key, deadline| store.acquire(key, mode, deadline))? {
        Waited::Done(held) => held,
        Waited::ForAncestor => return Ok(None),
        Waited::TimedOut => return Ok(Some(Turn::TimedOut)),
    };
    let failure = held.last_failure();
    let Some(status) = wait.shared(failure.as_ref(), patience.share_failure) else {
        return Ok(Some(Turn::Held(held)));
    };
    let settled = patience.settled.as_mut().map_or(Ok(false), |settled| settled());
    // It stays there for the next in line.
    held.release(failure.as_ref());
    Ok(Some(if settled? { Turn::Settled } else { Turn::Failed(status) }))
}

/// Who can wait takes a failure that may pass for a busy lock.
fn unless_passing(tried: Result<Option<Box<dyn Held>>>) -> Result<Option<Box<dyn Held>>> {
    match tried {
        Err(error) if error.is::<Passing>() => Ok(None),
        tried => tried,
    }
}

fn is_held_by_ancestor(holder: Option<&Holder>) -> bool {
    holder.is_some_and(|holder| holder.is_our_ancestor)
}

fn try_for_a_moment(store: &Arc<dyn Store>, key: &Key, mode: LockMode) -> Result<Turn> {
    let start = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(fastrand::u64(2..8)));
        let tried = store.try_acquire(key, mode);
        let is_last = start.elapsed() >= NO_WAIT_GRACE;
        if let Some(held) = if is_last { tried? } else { unless_passing(tried)? } {
            return Ok(Turn::Held(held));
        }
        if is_last {
            break;
        }
    }
    log::timeout(key.subject(), store.holder(&key.itself(), None).as_ref(), start.elapsed());
    Ok(Turn::TimedOut)
}

enum Waited<T> {
    Done(T),
    /// It would never end: the holder waits for us.
    ForAncestor,
    TimedOut,
}

/// One wait for one lock: who is waited for, since when, and what has been said of it.
struct Wait<'a> {
    store: &'a Arc<dyn Store>,
    key: &'a Key,
    deadline: Deadline,
    start: Instant,
    /// Who had the lock when we last asked.
    holder: Option<Holder>,
    /// The result that stood there when we began to wait: of a build that we did not wait for.
    failed_before: Option<FailedBuild>,
    /// Whether nothing has been waited for yet, so that the holder is the one of a moment ago.
    is_first: bool,
    /// When the next message is due, counted from the start.
    next_message: Duration,
}

/// A thread that does nothing but block needs no more; the default of 2 MiB of address space each
/// is much for a thousand waiters under a memory limit.
const WAITER_STACK: usize = 128 * 1024;
/// How long a wait may go on before a holder without a name counts as one: it may be just writing
/// its record, and a busy lock without a holder may be the short shared lock of a waking waiter.
const RECORD_GRACE: Duration = Duration::from_millis(10);
/// How often the live line moves.
const TICK: Duration = Duration::from_millis(100);

impl<'a> Wait<'a> {
    fn begin(
        store: &'a Arc<dyn Store>,
        key: &'a Key,
        deadline: Deadline,
        holder: Option<Holder>,
    ) -> Self {
        Wait {
            store,
            key,
            deadline,
            start: Instant::now(),
            holder,
            failed_before: store.last_failure(key),
            is_first: true,
            next_message: Duration::ZERO,
        }
    }

    /// Runs `operation`, which blocks, on a thread of its own, and says meanwhile who is waited
    /// for. At the deadline the thread is abandoned: it ends with the process.
    fn until<T: Send + 'static>(
        &mut self,
        operation: impl FnOnce(&dyn Store, &Key, Deadline) -> Result<T> + Send + 'static,
    ) -> Result<Waited<T>> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (store, key, deadline) = (Arc::clone(self.store), self.key.clone(), self.deadline);
        std::thread::Builder::new()
            .name("waiter".into())
            .stack_size(WAITER_STACK)
            .spawn(move || {
                // Signals are the main thread's. It can only fail for bad arguments.
                _ = SigSet::all().thread_block();
                // Nobody may be there any more to take the result.
                _ = sender.send(operation(&*store, &key, deadline));
            })
            .context("cannot start a thread to wait for a lock")?;

        let before = self.holder.clone();
        if !std::mem::take(&mut self.is_first) {
            self.holder = self.who();
        }
        let will_be_told = tracing::enabled!(tracing::Level::INFO);
        if self.holder.as_ref().is_none_or(|holder| will_be_told && holder.build.is_none()) {
            match receiver.recv_timeout(RECORD_GRACE) {
                Ok(done) => return done.map(Waited::Done),
                Err(_) => self.holder = self.who(),
            }
        }
        if self.holder.is_some() && self.holder != before {
            self.next_message = self.start.elapsed();
        }

        let mut live = log::LiveLine::start();
        loop {
            if is_held_by_ancestor(self.holder.as_ref()) {
                // The kernel's list is read in pieces, and showed it only now.
                return Ok(Waited::ForAncestor);
            }
            self.say(live.as_mut());
            let patience = [
                self.deadline.left(),
                Some(self.next_message.saturating_sub(self.start.elapsed())),
                live.is_some().then_some(TICK),
            ];
            let patience = patience.into_iter().flatten().min().unwrap_or(Duration::MAX);
            match receiver.recv_timeout(patience) {
                Ok(done) => return done.map(Waited::Done),
                Err(RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("the thread that waited for a lock is gone");
                }
                Err(RecvTimeoutError::Timeout) if self.deadline.has_passed() => {
                    drop(live);
                    let holder = self.who();
                    log::timeout(self.key.subject(), holder.as_ref(), self.deadline.so_far());
                    return Ok(Waited::TimedOut);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Who holds the lock now.
    fn who(&self) -> Option<Holder> {
        self.store.holder(&self.key.itself(), self.holder.as_ref().map(|holder| holder.pid))
    }

    /// Says who is waited for, if it is time to: at once, then after 5, 10, 20 and 40 seconds and
    /// every full minute. On a terminal one live line says it all the time.
    fn say(&mut self, live: Option<&mut log::LiveLine>) {
        let waited = self.start.elapsed();
        if waited >= self.next_message {
            if !self.next_message.is_zero() {
                self.holder = self.who().or(self.holder.take());
            }
            if live.is_none() {
                let lock = self.store.location(&self.key.itself());
                log::waiting(self.key.subject(), &lock, self.holder.as_ref(), waited);
            }
            let seconds = waited.as_secs();
            let next = [5, 10, 20, 40].into_iter().find(|&next| next > seconds);
            self.next_message = Duration::from_secs(next.unwrap_or((seconds / 60 + 1) * 60));
        }
        if let Some(live) = live {
            live.show(self.key.subject(), self.holder.as_ref(), waited);
        }
    }

    /// The status to end with, if a build failed while we waited for it: its result was not there
    /// when we began to wait. Statuses from 124 on have meanings of their own, and are not shared.
    fn shared(&self, failure: Option<&FailedBuild>, share: bool) -> Option<u8> {
        let failure = failure.filter(|_| share && failure != self.failed_before.as_ref())?;
        (1..=123).contains(&failure.status).then_some(failure.status)
    }

    /// A nested call that waits for a lock against the order in which locks are taken may wait for
    /// somebody who waits for its ancestors.
    fn warn_of_deadlock(&self) {
        let ours = self.key.subject();
        if let Some(theirs) =
            self.store.held_by_ancestors().into_iter().find(|theirs| theirs > ours)
        {
            tracing::warn!(
                "{ours}: waiting for this lock while an ancestor of this process holds that of \
                 {theirs}, which is taken later in order: this can deadlock with a call that takes \
                 both; name both tags in the outer call"
            );
        }
    }
}
