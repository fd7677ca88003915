//! A store for many hosts: locks are keys in etcd (<https://etcd.io>).
//!
//! Whoever wants a lock has a key of his own in the lock's folder, and the one that was created
//! first holds it: `<prefix>/<lock>/w/<lease>` for one holder, `…/r/<lease>` for those who share
//! it. All keys of a process hang on one lease, which a thread renews. Who dies leaves a lease that
//! runs out, and his keys go with it; who cannot renew it ends what he does before that, by his own
//! clock's rate and never by anybody's time of day (see [`Expiry`]).
//!
//! It is the queue of etcd's own recipe for locks
//! (<https://pkg.go.dev/go.etcd.io/etcd/client/v3/concurrency>), so who waits in line is served in
//! line, and each waits for one key alone.

mod address;
mod client;
mod names;
mod punctual;
mod reach;

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

pub use self::address::Address;
use self::client::{Answer, Client, Entry, Problem, Watched};
use self::reach::{SHORTLY, WITHIN, within};
use super::holder;
use super::key::{Key, LockMode};
use super::store::{Held, HeldLock, Inspect, Locks, Notes, Passing, Pruned, Scope, Try, in_order};
use crate::duration::Deadline;
use crate::expiry::{Expiry, Moment};
use crate::record::{FailedBuild, Holder};
use crate::subject::Subject;

/// After so long without a word, a watch is made anew: a member that is cut off says nothing
/// either.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The pause before what was refused, or not answered by anybody, is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// For how long the end of a failed build is kept for those who have waited for it.
const RESULT_KEPT: Duration = Duration::from_secs(300);
/// What is remembered of caches is read again up to this many bytes, as in a store of files.
const MEMORY_MAX: usize = 64 << 10;

/// So many keys are looked at in one transaction when a lease is renewed: etcd's own bound is 128.
const LOOK_MAX: usize = 100;
/// So many keys are watched between renewals, each over a connection of its own.
const WATCH_MAX: usize = 100;
/// Why a lease is lost that may still be there.
const NOT_IN_TIME: &str = "its lease was not renewed in time";

/// Folders under the prefix.
const LOCKS: &str = "locks";
const RESULTS: &str = "results";
const MEMORIES: &str = "memories";

/// Locks as keys in etcd.
pub struct EtcdStore {
    address: Address,
    client: OnceLock<Arc<Client>>,
    /// What is said of us, but for the lock and the time.
    ourselves: Holder,
    session: Mutex<Current>,
}

/// The lease of this process.
#[derive(Default)]
enum Current {
    /// There is none yet, or no more.
    #[default]
    None,
    /// There is one.
    Session(Arc<Session>),
    /// There will be none.
    Finished,
}

/// The lease that all our keys hang on, while it lasts.
struct Session {
    client: Arc<Client>,
    lease: i64,
    ttl: Duration,
    expiry: Arc<Expiry>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Nobody needs it any more.
    is_over: bool,
    /// Why it is lost, if it is. That never changes again.
    lost: Option<String>,
    /// When all that runs under it is to be dead.
    kill: Option<Moment>,
    /// The keys of the locks that this process has, and when they were created.
    held: Vec<(String, i64)>,
}

/// What stands under a key of a lock.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    holder: Holder,
    /// Which process it is, of all there are or were on all hosts.
    #[serde(default)]
    process: String,
}

/// Those who have a lock, and those who wait in line for it.
#[derive(Debug, Default)]
struct Line {
    revision: i64,
    /// In the order in which they came.
    entries: Vec<Entry>,
}

impl EtcdStore {
    /// Locks in the cluster at `address`, which is asked when it is needed first; `ourselves` is
    /// what others read of us.
    pub fn new(address: Address, ourselves: Holder) -> Self {
        EtcdStore { address, client: OnceLock::new(), ourselves, session: Mutex::default() }
    }

    fn client(&self) -> &Arc<Client> {
        self.client.get_or_init(|| Arc::new(self.address.client()))
    }

    /// The lease of this process: a new one if there is none, or if the last one was lost.
    fn session(&self, within: Duration) -> Result<Arc<Session>> {
        let mut current = lock(&self.session);
        match &*current {
            Current::Session(session) if session.lost().is_none() => {
                return Ok(Arc::clone(session));
            }
            Current::Finished => bail!("{}: this process is about to end", self.address),
            // Its keys may still be there, and we would wait for ourselves. But what runs under a
            // lock may just be ending, while this thread waits for one that nobody needs any more.
            Current::Session(lost) if lock(&lost.state).held.is_empty() => lost.end(),
            Current::Session(_) | Current::None => {}
        }
        *current = Current::None;
        let Address { prefix, ttl, .. } = &self.address;
        let new = Session::begin(self.client(), prefix, *ttl, within);
        let new = new.map_err(|why| self.error(why))?;
        *current = Current::Session(Arc::clone(&new));
        Ok(new)
    }

    fn error(&self, why: Problem) -> anyhow::Error {
        let message = format!("{}: {why}", self.address);
        match why {
            Problem::Unreachable(_) | Problem::NoLease => Passing(message).into(),
            Problem::Refused(_) | Problem::Nonsense(_) => anyhow!(message),
        }
    }

    /// The same where something was to hang on the session's lease.
    fn session_error(&self, session: &Session, why: Problem) -> anyhow::Error {
        if why == Problem::NoLease {
            // Sooner than its thread finds out. The next one gets a new lease.
            session.lose(&why.to_string());
        }
        self.error(why)
    }

    fn path(&self, folder: &str, key: &Key) -> String {
        let name = key.relative_path().with_extension("");
        format!("{}/{folder}/{}", self.address.prefix, name.display())
    }

    /// What people read of the folder of a lock.
    fn shown(&self, folder: &str) -> String {
        let locks = format!("{}/{LOCKS}", self.address.prefix);
        format!("{}{}", self.address, folder.strip_prefix(&locks).unwrap_or(folder))
    }

    /// Where the lock's keys are; with a slash at its end.
    fn folder(&self, key: &Key) -> String {
        format!("{}/", self.path(LOCKS, key))
    }

    fn own_key(&self, key: &Key, mode: LockMode, session: &Session) -> String {
        format!("{}{}/{:016x}", self.folder(key), mode_name(mode), session.lease)
    }

    fn record(&self, subject: &Subject) -> Vec<u8> {
        Record::line(&self.ourselves, subject)
    }

    fn line(&self, key: &Key, within: Duration) -> Result<Line, Problem> {
        let read = [client::read_all(&self.folder(key))];
        let answer = self.client().transact(&[], &read, &[], within)?;
        Ok(Line::of(answer))
    }

    fn held_lock(
        &self,
        key: &Key,
        mode: LockMode,
        session: Arc<Session>,
        created: i64,
    ) -> Box<dyn Held> {
        let own_key = self.own_key(key, mode, &session);
        self.client().reach.is_busy(false);
        lock(&session.state).held.push((own_key.clone(), created));
        Box::new(HeldKey {
            own_key,
            folder: self.folder(key),
            result_key: self.path(RESULTS, key),
            ourselves: self.ourselves.clone(),
            location: self.location(key),
            subject: key.subject().clone(),
            session,
            mode,
            created: Cell::new(created),
            is_nested: key.is_nested(),
        })
    }

    fn lines(&self) -> Result<Vec<Line>> {
        let all = [client::read_all(&format!("{}/{LOCKS}/", self.address.prefix))];
        let within = self.client().reach.limited(WITHIN);
        let answer =
            self.client().transact(&[], &all, &[], within).map_err(|why| self.error(why))?;
        let mut entries: Vec<Entry> =
            answer.read.into_iter().flatten().filter(is_of_a_line).collect();
        entries.sort_by(|a, b| (folder_of(a), a.created).cmp(&(folder_of(b), b.created)));
        let lines = entries.chunk_by(|a, b| folder_of(a) == folder_of(b));
        Ok(lines.map(|line| Line { revision: answer.revision, entries: line.to_vec() }).collect())
    }

    /// Waits until the key is gone, or it is time to look again.
    fn wait_deleted(&self, key: &str, from: i64, time: &Time) -> Result<Watched> {
        let within = time.to_watch();
        if within.is_zero() {
            // Who waits for this thread says so himself.
            std::thread::sleep(SHORTLY);
            bail!("the time for waiting is over");
        }
        Ok(self.client().wait_deleted(key, from, within))
    }

    /// Runs what asks the cluster until it answers, or the deadline passes.
    fn insist<T>(&self, deadline: Deadline, mut ask: impl FnMut(&Time) -> Result<T>) -> Result<T> {
        self.client().reach.waits(deadline);
        let time = Time { deadline };
        let mut is_said = false;
        loop {
            match ask(&time) {
                Err(error) if error.is::<Passing>() && deadline.has_passed() => {
                    // The caller of this thread gives up by itself, and knows whether the cluster
                    // answers (see is_answering).
                    std::thread::sleep(SHORTLY);
                    return Err(error);
                }
                Err(error) if error.is::<Passing>() => {
                    match std::mem::replace(&mut is_said, true) {
                        false => tracing::warn!("{error}; asking again"),
                        true => {
                            tracing::debug!("{error}; asking again");
                            std::thread::sleep(ASK_AGAIN.mul_f64(0.5 + fastrand::f64()));
                        }
                    }
                }
                done => return done,
            }
        }
    }
}

/// What is left of the time for waiting.
struct Time {
    deadline: Deadline,
}

impl Time {
    /// How long a question may take.
    fn to_ask(&self) -> Duration {
        self.deadline.left().map_or(WITHIN, |left| left.min(WITHIN))
    }

    /// How long to watch a key. A watch is silent for both reasons, a holder that builds and a
    /// cluster that is gone. So the cluster is asked once more before the time is up.
    fn to_watch(&self) -> Duration {
        const LAST_LOOK: Duration = Duration::from_secs(1);
        let Some(left) = self.deadline.left() else { return SILENCE_MAX };
        match left.saturating_sub(LAST_LOOK) {
            Duration::ZERO => left,
            before => before.min(SILENCE_MAX),
        }
    }
}

impl Locks for EtcdStore {
    fn check(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.client().reach.waits(deadline);
        self.line(key, within(deadline)).map(drop).map_err(|why| self.error(why))
    }

    fn try_acquire(&self, key: &Key, mode: LockMode, deadline: Deadline) -> Result<Try> {
        self.client().reach.waits(deadline);
        let session = self.session(within(deadline))?;
        let (folder, own) = (self.folder(key), self.own_key(key, mode, &session));
        let mut free = vec![client::none_with_prefix(&format!("{folder}w/"))];
        free.push(match mode {
            LockMode::Exclusive => client::none_with_prefix(&format!("{folder}r/")),
            // What is put a second time was not created then.
            LockMode::Shared => client::created_at(&own, 0),
        });
        let result = self.path(RESULTS, key);
        let put = client::put(&own, &self.record(key.subject()), session.lease);
        let answer = session
            .client
            .transact(
                &free,
                &[put],
                &[client::read_all(&folder), client::read(&result)],
                within(deadline),
            )
            .map_err(|why| self.session_error(&session, why))?;
        self.client().reach.is_busy(!answer.succeeded);
        if answer.succeeded {
            let lock = self.held_lock(key, mode, session, answer.revision);
            return Ok(Try::Held(lock));
        }
        // A member that failed after the others had agreed: it was ours.
        let failure = failure_in(answer.read.iter().flatten(), &result);
        let line = Line::of(answer);
        let created = line.entries.iter().find(|it| it.key == own).map(|it| it.created);
        match created {
            Some(created) if line.before(created, mode, session.lease).is_none() => {
                Ok(Try::Held(self.held_lock(key, mode, session, created)))
            }
            _ => Ok(Try::Busy(failure)),
        }
    }

    fn wait_released(&self, key: &Key, deadline: Deadline) -> Result<Option<FailedBuild>> {
        self.insist(deadline, |time| {
            loop {
                let line = self.line(key, time.to_ask()).map_err(|why| self.error(why))?;
                // Those who share it let others who do so in; and what a try of ours has left that
                // came to nothing as far as we heard, nobody takes away but us.
                let ours = self.session(time.to_ask())?.lease;
                let is_waited_for =
                    |it: &&Entry| mode_of(it) == LockMode::Exclusive && !is_of(it, ours);
                let first = line.entries.first().filter(is_waited_for);
                self.client().reach.is_busy(first.is_some());
                let Some(first) = first else { break };
                if self.wait_deleted(&first.key, line.revision + 1, time)? == Watched::Deleted {
                    break;
                }
            }
            Ok(last_failure(self.client(), &self.path(RESULTS, key)))
        })
    }

    fn acquire(&self, key: &Key, mode: LockMode, deadline: Deadline) -> Result<Box<dyn Held>> {
        self.insist(deadline, |time| {
            let session = self.session(time.to_ask())?;
            let own = self.own_key(key, mode, &session);
            let stand_in_line = [client::put(&own, &self.record(key.subject()), session.lease)];
            let look = [client::read_all(&self.folder(key))];
            let mut answer = session
                .client
                .transact(
                    &[client::created_at(&own, 0)],
                    &[&stand_in_line[..], &look[..]].concat(),
                    &look,
                    time.to_ask(),
                )
                .map_err(|why| self.session_error(&session, why))?;
            loop {
                let line = Line::of(answer);
                let ours = line.entries.iter().find(|it| it.key == own);
                let Some(created) = ours.map(|it| it.created) else {
                    return Err(Passing("its place in the line was lost".into()).into());
                };
                let before = line.before(created, mode, session.lease);
                self.client().reach.is_busy(before.is_some());
                let Some(before) = before else {
                    return Ok(self.held_lock(key, mode, session, created));
                };
                self.wait_deleted(&before.key, line.revision + 1, time)?;
                answer = session
                    .client
                    .transact(&[], &look, &[], time.to_ask())
                    .map_err(|why| self.error(why))?;
            }
        })
    }

    fn holder(&self, key: &Key, _known: Option<u32>) -> Option<Holder> {
        let line = self.line(key, self.client().reach.limited(SHORTLY)).ok()?;
        let ancestors = ancestors_everywhere();
        let holders = line.holders();
        let is_ancestors = |entry: &&&Entry| Record::of(entry).is_one_of(&ancestors);
        let holder = holders.iter().find(is_ancestors).or_else(|| holders.first())?;
        let shares = mode_of(holder) == LockMode::Shared;
        Some(Holder { shares, ..Record::of(holder).into_holder(&ancestors) })
    }

    fn held_by_ancestors(&self) -> Vec<Subject> {
        let ancestors = ancestors_everywhere();
        let lines = self.lines().unwrap_or_default();
        let records = lines.iter().flat_map(|line| line.holders().into_iter().map(Record::of));
        records.filter(|it| it.is_one_of(&ancestors)).filter_map(|it| it.holder.subject()).collect()
    }

    fn location(&self, key: &Key) -> PathBuf {
        self.shown(&self.path(LOCKS, key)).into()
    }

    fn scope(&self) -> Scope {
        Scope::AllHosts
    }

    fn is_answering(&self) -> Result<()> {
        match self.client().reach.silence() {
            Some(why) => Err(self.error(Problem::Unreachable(why))),
            None => Ok(()),
        }
    }

    fn close(&self) {
        // A thread that was left behind while it asked for a lease keeps it until that runs out.
        let Ok(mut current) = self.session.try_lock() else { return };
        if let Current::Session(session) = std::mem::replace(&mut *current, Current::Finished) {
            session.end();
        }
    }
}

impl Notes for EtcdStore {
    fn note(&self, key: &Key) -> Option<Vec<u8>> {
        let read = [client::read(&self.path(MEMORIES, key))];
        let within = self.client().reach.limited(SHORTLY);
        let answer = self.client().transact(&[], &read, &[], within).ok()?;
        let entry = answer.read.into_iter().flatten().next()?;
        (entry.value.len() <= MEMORY_MAX).then_some(entry.value)
    }

    fn notes(&self, folder: &str) -> Result<Vec<Vec<u8>>> {
        let all = [client::read_all(&format!("{}/{MEMORIES}/{folder}/", self.address.prefix))];
        let answer =
            self.client().transact(&[], &all, &[], WITHIN).map_err(|why| self.error(why))?;
        Ok(answer.read.into_iter().flatten().map(|entry| entry.value).collect())
    }

    fn replace_note(&self, key: &Key, before: Option<&[u8]>, after: Option<&[u8]>) -> Result<bool> {
        let path = self.path(MEMORIES, key);
        let is_unchanged = client::has_value(&path, before);
        let change = match after {
            Some(line) => client::put(&path, line, 0),
            None => client::delete(&path),
        };
        let within = self.client().reach.limited(WITHIN);
        let answer = self.client().transact(&[is_unchanged], &[change], &[], within);
        answer.map(|answer| answer.succeeded).map_err(|why| self.error(why))
    }
}

impl Inspect for EtcdStore {
    fn held(&self) -> Result<Vec<HeldLock>> {
        let ancestors = ancestors_everywhere();
        let mut held: Vec<HeldLock> = Vec::new();
        let mut turnstiles = Vec::new();
        for line in self.lines()? {
            let folder = line.entries.first().map(folder_of).unwrap_or_default();
            if let Some(behind) = folder.strip_suffix(".turnstile") {
                // Who stands in it waits for the lock behind it, and is counted there.
                turnstiles.push((self.shown(behind).into(), line.entries.len() - 1));
                continue;
            }
            let holders = line.holders();
            let shared = holders.iter().any(|it| mode_of(it) == LockMode::Shared);
            let mut waiters = line.entries.len() - holders.len();
            for entry in holders {
                let holder = Record::of(entry).into_holder(&ancestors);
                let lock = folder_of(entry);
                held.push(HeldLock {
                    tag: holder.tag.clone(),
                    name: holder.name.clone(),
                    cache: holder.cache.clone(),
                    lock: self.shown(lock).into(),
                    shared,
                    waiters: std::mem::take(&mut waiters),
                    holder,
                });
            }
        }
        Ok(in_order(held, turnstiles))
    }

    /// Nothing is left of what nobody has any more: its lease has taken it along.
    fn prune(&self) -> Result<Pruned> {
        Ok(Pruned::default())
    }

    fn file(&self, key: &Key) -> Result<PathBuf> {
        bail!(
            "{} is no file: {} has keys, and only buildlock locks them",
            self.location(key).display(),
            self.address
        )
    }
}

impl Line {
    fn of(answer: Answer) -> Self {
        let mut entries: Vec<Entry> =
            answer.read.into_iter().flatten().filter(is_of_a_line).collect();
        entries.sort_by_key(|entry| entry.created);
        Line { revision: answer.revision, entries }
    }

    /// Whom one waits for who came at the revision `created`, with this lease: the last one before
    /// him that he does not share the lock with.
    fn before(&self, created: i64, mode: LockMode, lease: i64) -> Option<&Entry> {
        let others = self.entries.iter().rev().filter(|entry| !is_of(entry, lease));
        let before = others.filter(|entry| entry.created < created);
        let mut before = before
            .filter(|entry| mode == LockMode::Exclusive || mode_of(entry) == LockMode::Exclusive);
        before.next()
    }

    /// Those at its head who have the lock.
    fn holders(&self) -> Vec<&Entry> {
        match self.entries.first() {
            Some(first) if mode_of(first) == LockMode::Exclusive => vec![first],
            _ => self.entries.iter().take_while(|it| mode_of(it) == LockMode::Shared).collect(),
        }
    }
}

impl Record {
    /// What is written of this process, which has or waits for a lock from now on.
    fn line(holder: &Holder, subject: &Subject) -> Vec<u8> {
        let since = Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        let record = Record {
            holder: Holder { since, ..holder.clone() }.of_lock(subject),
            process: holder::process_everywhere(std::process::id()).unwrap_or_default(),
        };
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// Anything may stand there.
    fn of(entry: &Entry) -> Self {
        let record: Record = serde_json::from_slice(&entry.value).unwrap_or_default();
        Record { holder: record.holder.escaped(), ..record }
    }

    fn is_one_of(&self, processes: &[String]) -> bool {
        !self.process.is_empty() && processes.contains(&self.process)
    }

    fn into_holder(self, ancestors: &[String]) -> Holder {
        let is_our_ancestor = self.is_one_of(ancestors);
        Holder { is_our_ancestor, ..self.holder }
    }
}

impl Session {
    fn begin(
        client: &Arc<Client>,
        prefix: &str,
        ttl: Duration,
        within: Duration,
    ) -> Result<Arc<Self>, Problem> {
        let sent = Moment::now();
        let (lease, ttl) = client.grant(ttl, within)?;
        let failed = |error: &dyn std::fmt::Display| Problem::Refused(error.to_string());
        let expiry = Arc::new(Expiry::new().map_err(|error| failed(&error))?);
        let session = Arc::new(Session {
            client: Arc::clone(client),
            lease,
            ttl,
            expiry,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let probe = format!("{prefix}/{LOCKS}/");
        _ = session.renewed(sent, ttl);
        let renewing = Arc::clone(&session);
        std::thread::Builder::new()
            .name("lease".into())
            .spawn(move || {
                // Signals are the main thread's. It can only fail for bad arguments.
                _ = nix::sys::signal::SigSet::all().thread_block();
                renewing.keep_alive(&probe);
            })
            .map_err(|error| failed(&error))?;
        Ok(session)
    }

    /// It lasts for `ttl` from the moment on at which we asked for that: the cluster counts from
    /// later. A third of that is for ending what runs under it; half of the third, after which
    /// nothing runs any more, for clocks that do not go alike and for an engine that takes a moment
    /// to cancel a build. False if it was too late: what ran under it has been told to end.
    #[must_use]
    fn renewed(&self, sent: Moment, ttl: Duration) -> bool {
        let mut state = lock(&self.state);
        if self.lost_by(&mut state).is_some() {
            return false;
        }
        let kill = sent.after(ttl * 5 / 6);
        state.kill = Some(kill);
        self.expiry.set(sent.after(ttl * 2 / 3), kill);
        true
    }

    fn keep_alive(self: &Arc<Self>, probe: &str) {
        let mut watched: Vec<(String, i64)> = Vec::new();
        let mut sent = Moment::now();
        let mut ttl = self.ttl;
        loop {
            let next = sent.after(ttl / 3);
            if self.is_over_within(next.left()) {
                return;
            }
            // We were stopped. It may still be there, and is not to last any longer.
            if self.lost().is_some() {
                return;
            }
            let asked = Moment::now();
            let until = sent.after(ttl * 2 / 3);
            let held = lock(&self.state).held.clone();
            let read = |held: &[(String, i64)]| {
                held.iter().map(|(key, _)| client::read(key)).collect::<Vec<_>>()
            };
            let looks: Vec<_> = match &held[..] {
                [] => vec![vec![client::read(probe)]],
                held => held.chunks(LOOK_MAX).map(read).collect(),
            };
            // At least once, however late it is: it may still be there.
            let within = until.left().max(SHORTLY);
            match self.client.keep_alive(self.lease, self.ttl, &looks, within) {
                Ok((new, found)) => {
                    if !self.renewed(asked, new) {
                        return self.lose(NOT_IN_TIME);
                    }
                    (sent, ttl) = (asked, new);
                    let is_there = |(at, (_, created)): (usize, &(String, i64))| {
                        found.get(at).is_none_or(|it| it.iter().any(|it| it.created == *created))
                    };
                    let gone: Vec<_> =
                        held.iter().enumerate().filter(|it| !is_there(*it)).collect();
                    // What was given back meanwhile is gone with good reason.
                    let still_held = &lock(&self.state).held.clone();
                    if let Some((_, (key, _))) =
                        gone.iter().find(|(_, key)| still_held.contains(key))
                    {
                        return self.lose(&key_gone(key));
                    }
                    // Whoever builds for longer than this is to know at once. Of further keys it
                    // learns with the next renewal.
                    watched.retain(|key| still_held.contains(key));
                    for key in held.into_iter().filter(|it| still_held.contains(it)) {
                        if watched.len() < WATCH_MAX && !watched.contains(&key) {
                            self.watch_over(key.clone());
                            watched.push(key);
                        }
                    }
                }
                Err(Problem::NoLease) => return self.lose(&Problem::NoLease.to_string()),
                // Whatever it is, it may pass while there is time.
                Err(why) if until.left().is_zero() => return self.lose(&why.to_string()),
                Err(why) => {
                    tracing::debug!("its lease is not renewed yet: {why}");
                    if self.is_over_within(ASK_AGAIN.mul_f64(0.5 + fastrand::f64())) {
                        return;
                    }
                }
            }
        }
    }

    /// Sees to it that nobody deletes the key of a lock that is held without our notice: by hand,
    /// or with its lease, which a leader that was deposed may still end (etcd-io/etcd#15247).
    fn watch_over(self: &Arc<Self>, key: (String, i64)) {
        let session = Arc::clone(self);
        let watch = move || {
            _ = nix::sys::signal::SigSet::all().thread_block();
            let is_held = || {
                let state = lock(&session.state);
                !state.is_over && state.lost.is_none() && state.held.contains(&key)
            };
            while is_held() {
                let look = [client::read(&key.0)];
                // Where nobody answers, the lease tells.
                let Ok(answer) = session.client.transact(&[], &look, &[], WITHIN) else {
                    std::thread::sleep(ASK_AGAIN.mul_f64(0.5 + fastrand::f64()));
                    continue;
                };
                let is_there = answer.read.iter().flatten().any(|it| it.created == key.1);
                let from = answer.revision + 1;
                let deleted = || session.client.wait_deleted(&key.0, from, SILENCE_MAX);
                if (!is_there || deleted() == Watched::Deleted) && is_held() {
                    session.lose(&key_gone(&key.0));
                }
            }
        };
        if let Err(why) = std::thread::Builder::new().name("watch".into()).spawn(watch) {
            tracing::debug!("nobody watches over a lock's key: {why}");
        }
    }

    /// Waits so long, or until nobody needs it any more.
    fn is_over_within(&self, duration: Duration) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, duration, |state| !state.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_over
    }

    fn lose(&self, why: &str) {
        let mut state = lock(&self.state);
        state.lost.get_or_insert_with(|| why.to_owned());
        // Somebody else may have the lock already. What runs has a moment to end well, and never a
        // longer one than it had.
        let now = Moment::now();
        let soon = now.after(self.ttl / 6);
        self.expiry.set(now, state.kill.map_or(soon, |kill| kill.min(soon)));
    }

    /// Why it is lost, if it is.
    fn lost(&self) -> Option<String> {
        self.lost_by(&mut lock(&self.state))
    }

    /// Once it has run out by our clock, it stays so.
    fn lost_by(&self, state: &mut State) -> Option<String> {
        if self.expiry.is_over() {
            state.lost.get_or_insert_with(|| NOT_IN_TIME.to_owned());
        }
        state.lost.clone()
    }

    fn end(&self) {
        lock(&self.state).is_over = true;
        self.changed.notify_all();
        // One that is lost may still have keys, too. But then it may well be that nobody answers.
        let within = self.client.reach.to_leave(self.lost().is_some());
        if let Err(why) = self.client.revoke(self.lease, within) {
            tracing::debug!("lease {:x} is left to run out: {why}", self.lease);
        }
    }
}

/// A lock that this process has.
struct HeldKey {
    session: Arc<Session>,
    own_key: String,
    folder: String,
    result_key: String,
    ourselves: Holder,
    location: PathBuf,
    subject: Subject,
    mode: LockMode,
    /// The revision at which its key was created.
    created: Cell<i64>,
    /// Whether an ancestor has the lock for the same subject.
    is_nested: bool,
}

impl HeldKey {
    /// It is about to be gone with good reason.
    fn forget(&self) {
        lock(&self.session.state).held.retain(|(key, _)| *key != self.own_key);
    }

    /// Does something with the key, if it is still ours.
    fn if_ours(&self, then: &[serde_json::Value], within: Duration) -> Result<Answer, Problem> {
        let ours = client::created_at(&self.own_key, self.created.get());
        self.session.client.transact(&[ours], then, &[], within)
    }
}

impl Held for HeldKey {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn record(&self) {
        let text = Record::line(&self.ourselves, &self.subject);
        let put = client::put(&self.own_key, &text, self.session.lease);
        if let Err(why) = self.if_ours(&[put], self.session.client.reach.limited(SHORTLY)) {
            tracing::debug!("{}: cannot say who holds the lock: {why}", self.location.display());
        }
    }

    fn last_failure(&self) -> Option<FailedBuild> {
        last_failure(&self.session.client, &self.result_key)
    }

    fn lost(&self) -> Option<String> {
        // A transaction that neither reads nor writes is answered by one member alone.
        let read = [client::read(&self.own_key)];
        let within = self.session.client.reach.unless_silent();
        let why = self.session.lost().or_else(|| match self.if_ours(&read, within) {
            Ok(answer) if answer.succeeded => None,
            Ok(_) => Some(key_gone(&self.own_key)),
            // The lease tells.
            Err(_) => None,
        })?;
        Some(format!("{} was lost while it was held: {why}", self.location.display()))
    }

    fn mode(&self) -> LockMode {
        self.mode
    }

    fn share(&mut self) -> Result<bool> {
        let shared = format!("{}r/{:016x}", self.folder, self.session.lease);
        let value =
            self.session.client.transact(&[], &[client::read(&self.own_key)], &[], WITHIN)?;
        let value = value.read.into_iter().flatten().next().unwrap_or_default().value;
        let look = client::read_all(&self.folder);
        let change = [
            client::put(&shared, &value, self.session.lease),
            client::delete(&self.own_key),
            look.clone(),
        ];
        self.forget();
        let ours = client::created_at(&self.own_key, self.created.get());
        let line = Line::of(self.session.client.transact(&[ours], &change, &[look], WITHIN)?);
        // Where a member failed after the others had agreed, it was done already.
        let Some(created) = line.entries.iter().find(|it| it.key == shared).map(|it| it.created)
        else {
            bail!("{} was lost while it was held", self.location.display());
        };
        (self.own_key, self.mode) = (shared, LockMode::Shared);
        self.created.set(created);
        let has_it = line.before(created, self.mode, self.session.lease).is_none();
        if has_it {
            lock(&self.session.state).held.push((self.own_key.clone(), created));
        } else {
            _ = self.if_ours(&[client::delete(&self.own_key)], WITHIN);
        }
        Ok(has_it)
    }

    /// COMMAND is about to run under it.
    fn expiry(&self) -> Option<Arc<Expiry>> {
        self.session.client.reach.has_waited();
        Some(Arc::clone(&self.session.expiry))
    }

    fn fence(&self) -> Option<i64> {
        (!self.is_nested).then(|| self.created.get())
    }

    fn release(self: Box<Self>, failure: Option<&FailedBuild>) {
        self.forget();
        if self.session.lost().is_some() {
            return;
        }
        let mut changes = vec![client::delete(&self.own_key)];
        let result = failure.filter(|_| self.subject.cache().is_none());
        let reach = &self.session.client.reach;
        let grant = || self.session.client.grant(RESULT_KEPT, reach.limited(SHORTLY));
        let kept = result.and_then(|_| grant().ok());
        match (result, kept) {
            (Some(failure), Some((lease, _))) => {
                let text = serde_json::to_vec(failure).unwrap_or_default();
                changes.push(client::put(&self.result_key, &text, lease));
            }
            _ => changes.push(client::delete(&self.result_key)),
        }
        if let Err(why) = self.if_ours(&changes, reach.limited(SHORTLY)) {
            tracing::warn!(
                "{}: cannot be released now, and runs out: {why}",
                self.location.display()
            );
        }
    }
}

fn last_failure(client: &Client, key: &str) -> Option<FailedBuild> {
    let within = client.reach.limited(SHORTLY);
    let answer = client.transact(&[], &[client::read(key)], &[], within).ok()?;
    failure_in(answer.read.iter().flatten(), key)
}

/// Returns the failed build that was read under this key.
fn failure_in<'a>(mut read: impl Iterator<Item = &'a Entry>, key: &str) -> Option<FailedBuild> {
    serde_json::from_slice(&read.find(|entry| entry.key == key)?.value).ok()
}

/// Why locks are lost whose lease may still be there.
fn key_gone(key: &str) -> String {
    format!("the key {key} is gone")
}

/// This process's chain of parents, as records name processes.
fn ancestors_everywhere() -> Vec<String> {
    crate::proc::ancestors().into_iter().filter_map(holder::process_everywhere).collect()
}

/// The folder of the lock that a key is for.
fn folder_of(entry: &Entry) -> &str {
    entry.key.rsplitn(3, '/').nth(2).unwrap_or(&entry.key)
}

fn mode_name(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Exclusive => "w",
        LockMode::Shared => "r",
    }
}

/// Is it a key of the process with this lease?
fn is_of(entry: &Entry, lease: i64) -> bool {
    entry.key.rsplit('/').next() == Some(&format!("{lease:016x}"))
}

/// What stands elsewhere in a lock's folder is nobody's, for who tries and for who waits.
fn is_of_a_line(entry: &Entry) -> bool {
    matches!(entry.key.rsplit('/').nth(1), Some("w" | "r"))
}

fn mode_of(entry: &Entry) -> LockMode {
    let is_shared = entry.key.rsplit('/').nth(1) == Some("r");
    if is_shared { LockMode::Shared } else { LockMode::Exclusive }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
