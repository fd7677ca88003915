//! The lock: what it is taken for, who has it, and how to wait for it.
//!
//! A [`Store`] knows how to take and to wait for one lock; what follows from a failed try (who is
//! said to hold it, nested calls, the order of waiting, the deadline) is the same for every store
//! and lives here. Nothing here knows of images.

#[cfg(feature = "etcd")]
pub mod etcd;
pub mod file;
pub mod holder;
pub mod kernel;
pub mod place;

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
use crate::expiry::Expiry;
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

/// What is known of a lock that somebody holds; of one that several share there is one for each.
#[derive(Debug, Serialize)]
pub struct HeldLock {
    /// The canonical tag, if it is an image's lock and a holder has said so.
    pub tag: Option<String>,
    /// The name, if it is a named lock and a holder has said so.
    pub name: Option<String>,
    /// The id, if it is a build cache's lock and a holder has said so.
    pub cache: Option<String>,
    /// The lock file, or the address of a lock that is none.
    #[serde(serialize_with = "as_text")]
    pub lock: PathBuf,
    /// Who holds it; what is unknown is null.
    pub holder: Holder,
    /// Whether others may hold it, too.
    pub shared: bool,
    /// How many wait for it: all of them with the first of those who share it, so that they can be
    /// added up.
    pub waiters: usize,
}

/// Sorts locks by what they are for, and counts who waits in a turnstile with the lock behind it.
fn in_order(mut held: Vec<HeldLock>, turnstiles: Vec<(PathBuf, usize)>) -> Vec<HeldLock> {
    for (behind, waiters) in turnstiles {
        if let Some(first) = held.iter_mut().find(|lock| lock.lock == behind) {
            first.waiters += waiters;
        }
    }
    held.sort_by_cached_key(|it| {
        (it.tag.clone(), it.name.clone(), it.cache.clone(), it.lock.clone())
    });
    held
}

/// JSON knows only text: what is none in a path is shown as U+FFFD.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What [`Store::prune`] did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pruned {
    /// How many locks' remains it removed.
    pub removed: usize,
    /// How many files it may not remove: they are other users'.
    pub others: usize,
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
/// [`last_failure`](Store::last_failure); the rest helps people. The operations that wait do so as
/// long as it takes; they run on a thread of their own, and who has no time left abandons them.
pub trait Store: Send + Sync {
    /// Finds out whether the lock can be taken at all, without taking it. Who may not wait for
    /// locks does not wait long for a store either.
    ///
    /// # Errors
    /// It can not.
    fn check(&self, key: &Key, deadline: Deadline) -> Result<()>;

    /// Takes the lock, or says at once that it is busy. A store that cannot be asked may take its
    /// time to say so, within the deadline.
    ///
    /// # Errors
    /// The store cannot be used; [`Passing`] if that may be different in a moment.
    fn try_acquire(
        &self,
        key: &Key,
        mode: LockMode,
        deadline: Deadline,
    ) -> Result<Option<Box<dyn Held>>>;

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

    /// Who holds the lock, as far as that can be known for certain; of several that share it, an
    /// ancestor of this process if there is one among them. It is cheaper to tell whether the
    /// process `known` still does.
    fn holder(&self, key: &Key, known: Option<u32>) -> Option<Holder>;

    /// The same as far as it can be known soon: it is asked before the wait begins.
    fn holder_at_once(&self, key: &Key) -> Option<Holder> {
        self.holder(key, None)
    }

    /// How calls hold the lock which this one runs inside of, if they do.
    fn held_by_ancestors_as(&self, key: &Key) -> Option<LockMode> {
        let holder = self.holder(key, None).filter(|holder| holder.is_our_ancestor)?;
        Some(if holder.shares { LockMode::Shared } else { LockMode::Exclusive })
    }

    /// What the last build under the lock ended with, if that was a failure.
    fn last_failure(&self, key: &Key) -> Option<FailedBuild>;

    /// What ancestors of this process hold in this store.
    fn held_by_ancestors(&self) -> Vec<Subject>;

    /// Where a person finds the lock.
    fn location(&self, key: &Key) -> PathBuf;

    /// Makes sure that locks for `subject` can be taken, as far as that can be known without asking
    /// anybody: what is wrong is to be known before anybody waits.
    ///
    /// # Errors
    /// They cannot.
    fn prepare(&self, _subject: &Subject) -> Result<()> {
        Ok(())
    }

    /// The lock as a file that anything can lock with flock(2); created if there is none.
    ///
    /// # Errors
    /// It cannot be opened or created, or this store has no files.
    fn file(&self, key: &Key) -> Result<PathBuf>;

    /// All locks that somebody holds, as far as that can be known for certain, sorted by what they
    /// are for. Takes none.
    ///
    /// # Errors
    /// The store cannot be read.
    fn held(&self) -> Result<Vec<HeldLock>>;

    /// Removes what is left of locks that nobody holds or waits for; beside them, what is not
    /// remembered any more.
    ///
    /// # Errors
    /// The store cannot be read, or not be changed.
    fn prune(&self) -> Result<Pruned>;

    /// All that is remembered of a kind of locks, by its folder's name; a line each.
    ///
    /// # Errors
    /// The store cannot be read.
    fn memories(&self, folder: &str) -> Result<Vec<Vec<u8>>>;

    /// Whether it keeps something for this process elsewhere, to be given back by
    /// [`Store::finish`].
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether a caller whose time is up has waited for a holder, and not for a store that is
    /// silent.
    ///
    /// # Errors
    /// The store does not answer, so nobody can say whether the lock is held.
    fn is_answering(&self) -> Result<()> {
        Ok(())
    }

    /// Gives back what the store keeps for this process, with all locks that it has. No more are
    /// taken.
    fn finish(&self) {}

    /// What is remembered under this key; nothing if that cannot be read.
    fn remembered(&self, key: &Key) -> Option<Vec<u8>>;

    /// Remembers a line in the place of `before`, or nothing any more. Returns whether that was
    /// still what was remembered.
    ///
    /// # Errors
    /// It cannot be written.
    fn remember(&self, key: &Key, before: Option<&[u8]>, line: Option<&[u8]>) -> Result<bool>;
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

    /// The descriptors that keep it held in a child that inherits them.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// When it runs out, if it has to be renewed.
    fn expiry(&self) -> Option<Arc<Expiry>> {
        None
    }

    /// A number that is larger than that of everybody who had it before, for systems that can
    /// refuse what comes from one who has lost it. A nested call has none but that of its outer
    /// call.
    fn fence(&self) -> Option<i64> {
        None
    }

    /// Takes the holder out of the record, leaves `failure` there, and unlocks: for every copy of
    /// the descriptor, also those in a daemon that the build left behind. What the lock is for may
    /// stay in the record: others may still share it.
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
/// Also returns who was waited for last, as far as that is known.
///
/// # Errors
/// The store, or `patience.settled`, failed.
pub fn take(
    store: &Arc<dyn Store>,
    subject: Subject,
    mut patience: Patience<'_>,
) -> Result<(Turn, Option<Holder>)> {
    let mut said = Said::nothing();
    let mut key = Key::new(subject);
    loop {
        let turn = take_or_descend(store, &key, LockMode::Exclusive, &mut patience, &mut said)?;
        if let Some(turn) = turn {
            if let Turn::Held(held) = &turn {
                log::acquired(held.subject(), said.start.elapsed());
            }
            return Ok((turn, said.waited_for));
        }
        tracing::debug!("{}: an ancestor of this process holds the lock", key.subject());
        key = key.nested();
    }
}

/// Takes a lock that may be shared, in the mode that is the right one when it is had. Everybody
/// goes through its turnstile, one after the other, so that who needs it for himself waits for
/// those who share it now and for nobody who comes later: flock(2) alone is not fair.
///
/// Also returns whether an ancestor shares it: what a descendant has for itself then, others may
/// still share, outside the ancestor's call and within.
///
/// # Errors
/// The store, or `mode`, failed.
pub fn take_in_turn(
    store: &Arc<dyn Store>,
    subject: Subject,
    deadline: Deadline,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<(Turn, bool)> {
    // To whoever waits, it is one wait.
    let mut said = Said::nothing();
    let mut key = Key::new(subject);
    let mut ancestor_shares = false;
    loop {
        // Who shared it with an ancestor would exclude nobody within that one's call, not even
        // those who need it for themselves there: all of them are one level down. Not asked within
        // the turnstile, where others would have to wait for the answer.
        let mut theirs = store.held_by_ancestors_as(&key);
        if theirs.is_none() {
            if let Some(turn) = take_through_turnstile(store, &key, deadline, &mut said, mode)? {
                return Ok((turn, ancestor_shares));
            }
            // It was seen only now.
            theirs = store.held_by_ancestors_as(&key);
        }
        tracing::debug!("{}: an ancestor of this process holds the lock", key.subject());
        ancestor_shares |= theirs == Some(LockMode::Shared);
        key = key.nested();
    }
}

/// None if an ancestor of this process has the lock.
fn take_through_turnstile(
    store: &Arc<dyn Store>,
    key: &Key,
    deadline: Deadline,
    said: &mut Said,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<Option<Turn>> {
    let mut patience = Patience { deadline, share_failure: false, settled: None };
    let exclusive = LockMode::Exclusive;
    let turnstile = match take_or_descend(store, &key.turnstile(), exclusive, &mut patience, said)?
    {
        Some(Turn::Held(turnstile)) => turnstile,
        without => return Ok(without),
    };
    let taken = take_behind_turnstile(store, key, &mut patience, said, mode);
    turnstile.release(None);
    taken
}

fn take_behind_turnstile(
    store: &Arc<dyn Store>,
    key: &Key,
    patience: &mut Patience<'_>,
    said: &mut Said,
    mode: &mut dyn FnMut() -> Result<LockMode>,
) -> Result<Option<Turn>> {
    let wanted = mode()?;
    let turn = take_or_descend(store, key, wanted, patience, said)?;
    let Some(Turn::Held(mut held)) = turn else { return Ok(turn) };
    // Whoever we waited for may have done what it was wanted exclusively for.
    if wanted == LockMode::Exclusive && mode()? == LockMode::Shared && !held.share()? {
        drop(held);
        return take_or_descend(store, key, LockMode::Shared, patience, said);
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
    said: &mut Said,
) -> Result<Option<Turn>> {
    let deadline = patience.deadline;
    if let Some(held) = unless_passing(store.try_acquire(key, mode, deadline))? {
        return Ok(Some(Turn::Held(held)));
    }
    if is_held_by_ancestors(store, key) {
        return Ok(None);
    }
    if deadline.is_at_once() {
        return try_for_a_moment(store, key, mode, deadline).map(Some);
    }

    let mut wait = Wait::begin(store, key, deadline, said);
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
        if let Some(held) = unless_passing(store.try_acquire(key, mode, deadline))? {
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

/// Who is waited for. Who stands in a turnstile waits himself, for him who has the lock behind it;
/// only while nobody has that, it is he.
fn who_has(store: &Arc<dyn Store>, key: &Key, known: Option<u32>) -> Option<Holder> {
    let in_turnstile = || (key.part == Part::Turnstile).then(|| store.holder(key, known)).flatten();
    store.holder(&key.itself(), known).or_else(in_turnstile)
}

fn is_held_by_ancestors(store: &Arc<dyn Store>, key: &Key) -> bool {
    let held = |key: &Key| store.held_by_ancestors_as(key).is_some();
    held(&key.itself()) || key.part == Part::Turnstile && held(key)
}

fn try_for_a_moment(
    store: &Arc<dyn Store>,
    key: &Key,
    mode: LockMode,
    deadline: Deadline,
) -> Result<Turn> {
    let start = Instant::now();
    let (sender, names) = mpsc::channel();
    ask_who_has(store, key, None, move |holder| _ = sender.send(holder));
    loop {
        std::thread::sleep(Duration::from_millis(fastrand::u64(2..8)));
        let tried = store.try_acquire(key, mode, deadline);
        let is_last = start.elapsed() >= NO_WAIT_GRACE;
        if let Some(held) = if is_last { tried? } else { unless_passing(tried)? } {
            return Ok(Turn::Held(held));
        }
        if is_last {
            break;
        }
    }
    let holder = names.recv_timeout(LAST_NAME_WITHIN).ok().flatten();
    log::timeout(key.subject(), holder.as_ref(), start.elapsed());
    Ok(Turn::TimedOut)
}

/// Finds out on a thread of its own who is waited for: a time limit must hold, and a result must be
/// noticed, while the kernel or a cluster takes its time to answer.
fn ask_who_has(
    store: &Arc<dyn Store>,
    key: &Key,
    known: Option<u32>,
    tell: impl FnOnce(Option<Holder>) + Send + 'static,
) {
    let (its, key) = (Arc::clone(store), key.clone());
    let asked = on_a_thread("names", &**store, move || tell(who_has(&its, &key, known)));
    if let Err(error) = asked {
        tracing::debug!("cannot find out who is waited for: {error}");
    }
}

fn on_a_thread(
    name: &str,
    store: &dyn Store,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let stack = if store.is_remote() { REMOTE_WAITER_STACK } else { WAITER_STACK };
    let work = move || {
        // Signals are the main thread's. It can only fail for bad arguments.
        _ = SigSet::all().thread_block();
        work();
    };
    std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(work).map(drop)
}

enum Waited<T> {
    Done(T),
    /// It would never end: the holder waits for us.
    ForAncestor,
    TimedOut,
}

/// What comes in during a wait.
enum News<T> {
    /// The wait is over.
    Done(Result<T>),
    /// The holder that is waited for, as far as it is known.
    Holder(Option<Box<Holder>>),
}

/// What has been said to people of waiting for a lock, whatever that is made of.
struct Said {
    /// When it began.
    start: Instant,
    /// When the next message is due, counted from the start.
    next_message: Duration,
    /// Whom the last one named.
    holder: Option<Holder>,
    /// Who was waited for last, named or not.
    waited_for: Option<Holder>,
}

impl Said {
    fn nothing() -> Self {
        Said { start: Instant::now(), next_message: Duration::ZERO, holder: None, waited_for: None }
    }
}

/// One wait for one lock: who is waited for, and what has been said of it.
struct Wait<'a> {
    store: &'a Arc<dyn Store>,
    key: &'a Key,
    deadline: Deadline,
    said: &'a mut Said,
    /// Who had the lock when we last asked.
    holder: Option<Holder>,
    /// The result that stood there when we began to wait: of a build that we did not wait for.
    failed_before: Option<FailedBuild>,
}

/// A thread that does nothing but block needs no more; the default of 2 MiB of address space each
/// is much for a thousand waiters under a memory limit.
const WAITER_STACK: usize = 128 * 1024;
/// One that talks to a cluster may have to check its certificates, which needs more.
const REMOTE_WAITER_STACK: usize = 2 << 20;
/// How long a wait goes on before anybody is told of it, and the holder's name is looked up. It may
/// be just writing its record; a busy lock may be the short shared lock of a waking waiter; and the
/// kernel's list of locks, which may be needed for it, stops all who lock anything.
const NAME_GRACE: Duration = Duration::from_millis(10);
/// How long a message about a wait is held back because the holder's name is not known yet.
const NAME_WITHIN: Duration = Duration::from_millis(500);
/// The same for the last message, after the deadline: a time limit must hold.
const LAST_NAME_WITHIN: Duration = Duration::from_millis(50);
/// How often the live line moves.
const TICK: Duration = Duration::from_millis(100);

impl<'a> Wait<'a> {
    fn begin(
        store: &'a Arc<dyn Store>,
        key: &'a Key,
        deadline: Deadline,
        said: &'a mut Said,
    ) -> Self {
        let failed_before = store.last_failure(key);
        Wait { store, key, deadline, said, holder: None, failed_before }
    }

    /// Runs `operation`, which blocks, on a thread of its own, and says meanwhile who is waited
    /// for. At the deadline the thread is abandoned: it ends with the process.
    fn until<T: Send + 'static>(
        &mut self,
        operation: impl FnOnce(&dyn Store, &Key, Deadline) -> Result<T> + Send + 'static,
    ) -> Result<Waited<T>> {
        let (sender, receiver) = mpsc::channel();
        let (store, key, deadline) = (Arc::clone(self.store), self.key.clone(), self.deadline);
        let done = sender.clone();
        on_a_thread("waiter", &**self.store, move || {
            // Nobody may be there any more to take the result.
            _ = done.send(News::Done(operation(&*store, &key, deadline)));
        })
        .context("cannot start a thread to wait for a lock")?;
        let will_be_told = tracing::enabled!(tracing::Level::INFO);
        let holder = self.store.holder_at_once(&self.key.itself());
        // In a turnstile one mostly just goes through.
        let has_build = |holder: &Holder| holder.build.is_some();
        let is_known = holder.as_ref().is_some_and(has_build) && self.key.part != Part::Turnstile;
        // An earlier wait was for somebody else, who has released the lock since.
        self.said.waited_for = None;
        self.note(holder);
        if !is_known {
            let grace = self.deadline.left().map_or(NAME_GRACE, |left| left.min(NAME_GRACE));
            if let Ok(News::Done(done)) = receiver.recv_timeout(grace) {
                return done.map(Waited::Done);
            }
        }
        // Until when an answer is waited for before people are told without it. Whoever hears only
        // warnings may still be warned of what the holder built.
        let will_be_warned = tracing::enabled!(tracing::Level::WARN);
        let mut asked = (will_be_warned && !is_known).then(|| self.ask(&sender));
        let mut is_fresh = is_known && self.said.start.elapsed() >= self.said.next_message;
        let mut live = log::LiveLine::start();
        loop {
            if self.holder.as_ref().is_some_and(|holder| holder.is_our_ancestor) {
                // It has taken the lock only now.
                return Ok(Waited::ForAncestor);
            }
            let is_due = self.said.start.elapsed() >= self.said.next_message;
            if is_due && will_be_told && !is_fresh && asked.is_none() {
                asked = Some(self.ask(&sender));
            }
            if is_due && asked.is_none_or(|until| until <= Instant::now()) {
                (asked, is_fresh) = (None, false);
                self.say(live.is_some());
            }
            if let Some(live) = &mut live {
                live.show(self.key.subject(), self.holder.as_ref(), self.said.start.elapsed());
            }
            let next = self.said.next_message.saturating_sub(self.said.start.elapsed());
            let patience = [
                self.deadline.left(),
                (!next.is_zero()).then_some(next),
                asked.map(|until| until.saturating_duration_since(Instant::now())),
                live.is_some().then_some(TICK),
            ];
            let patience = patience.into_iter().flatten().min().unwrap_or(Duration::MAX);
            match receiver.recv_timeout(patience) {
                Ok(News::Done(done)) => return done.map(Waited::Done),
                Ok(News::Holder(holder)) => {
                    self.note(holder.map(|it| *it));
                    let is_due = self.said.start.elapsed() >= self.said.next_message;
                    (asked, is_fresh) = (None, is_due);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("the thread that waited for a lock is gone");
                }
                Err(RecvTimeoutError::Timeout) if self.deadline.has_passed() => {
                    drop(live);
                    self.store.is_answering()?;
                    if asked.is_none() {
                        self.ask(&sender);
                    }
                    if let Ok(News::Holder(holder)) = receiver.recv_timeout(LAST_NAME_WITHIN) {
                        self.holder = holder.map(|it| *it).or(self.holder.take());
                    }
                    let so_far = self.deadline.so_far();
                    log::timeout(self.key.subject(), self.holder.as_ref(), so_far);
                    return Ok(Waited::TimedOut);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Takes in who is waited for, if that is known. A holder that people were not told of is named
    /// at once.
    fn note(&mut self, holder: Option<Holder>) {
        if holder.is_some() {
            self.said.waited_for.clone_from(&holder);
        }
        self.holder = holder.or(self.holder.take());
        if self.holder.is_some() && self.holder != self.said.holder {
            self.said.next_message = self.said.next_message.min(self.said.start.elapsed());
        }
    }

    /// Asks who is waited for now. Returns until when an answer is worth waiting for.
    fn ask<T: Send + 'static>(&self, sender: &mpsc::Sender<News<T>>) -> Instant {
        let known = self.holder.as_ref().map(|holder| holder.pid);
        let sender = sender.clone();
        let tell = move |holder: Option<Holder>| {
            _ = sender.send(News::Holder(holder.map(Box::new)));
        };
        ask_who_has(self.store, self.key, known, tell);
        Instant::now() + NAME_WITHIN
    }

    /// Says who is waited for: at once, then after 5, 10, 20 and 40 seconds and every full minute.
    /// On a terminal one live line says it all the time.
    fn say(&mut self, has_live_line: bool) {
        let waited = self.said.start.elapsed();
        self.said.holder.clone_from(&self.holder);
        if !has_live_line {
            let lock = self.store.location(&self.key.itself());
            log::waiting(self.key.subject(), &lock, self.holder.as_ref(), waited);
        }
        let seconds = waited.as_secs();
        let next = [5, 10, 20, 40].into_iter().find(|&next| next > seconds);
        self.said.next_message = Duration::from_secs(next.unwrap_or((seconds / 60 + 1) * 60));
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
