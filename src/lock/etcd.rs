//! A store for many hosts: locks are keys in etcd (<https://etcd.io>).
//!
//! Each process that wants a lock puts a key of its own into the lock's folder, and the one whose
//! key was created first holds the lock. The key is `<prefix>/<lock>/w/<lease>` for an exclusive
//! lock and `…/r/<lease>` for a shared one. All keys of a process are attached to one lease, which
//! a thread renews. When the process dies, the lease runs out, and etcd deletes its keys. A process
//! that cannot renew its lease ends its build before that. It measures this by the rate of its own
//! clock, so no time of day matters (see [`Expiry`](crate::expiry::Expiry)).
//!
//! The queue is that of etcd's own recipe for locks
//! (<https://pkg.go.dev/go.etcd.io/etcd/client/v3/concurrency>): waiters are served in the order in
//! which they came, and each watches one key only.

mod address;
mod answer;
mod client;
mod held;
mod keys;
mod members;
mod names;
mod problem;
mod punctual;
mod queue;
mod reach;
mod record;
mod renewal;
mod request;
mod session;
mod verdict;
mod wait;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

pub use self::address::Address;
use self::answer::Answer;
use self::client::{Client, Watched};
use self::held::{HeldKey, Place};
use self::keys::{Keys, folder_of, mode_of};
use self::problem::Problem;
use self::queue::Queue;
use self::reach::{Reach, SHORTLY, WITHIN, within};
use self::record::{Record, ancestors_everywhere};
use self::session::Session;
use super::key::{Key, LockMode};
use super::store::{
    Before, Held, HeldLock, Inspect, Locks, Notes, Overview, Passing, Pruned, Several, Try,
    in_order,
};
use crate::duration::Deadline;
use crate::record::{FailedBuild, Holder};
use crate::scope::Scope;
use crate::subject::Subject;

/// The most that is read of what is remembered of caches, in bytes, as in a store of files.
const MEMORY_MAX: usize = 64 << 10;

/// Locks as keys in etcd.
pub struct EtcdStore {
    address: Address,
    client: OnceLock<Arc<Client>>,
    /// What the record says of this process, except for the lock and the time.
    ourselves: Holder,
    session: Mutex<Current>,
}

/// The session of this process.
#[derive(Default)]
enum Current {
    /// None at the moment.
    #[default]
    None,
    Session(Arc<Session>),
    /// None any more.
    Finished,
}

impl EtcdStore {
    /// Returns a store in the cluster at `address`, which is not contacted before it is needed.
    /// `ourselves` is what others read about this process.
    pub fn new(address: Address, ourselves: Holder) -> Self {
        EtcdStore { address, client: OnceLock::new(), ourselves, session: Mutex::default() }
    }

    fn client(&self) -> &Arc<Client> {
        self.client.get_or_init(|| Arc::new(self.address.client()))
    }

    fn reach(&self) -> &Reach {
        self.client().reach()
    }

    fn keys(&self) -> Keys<'_> {
        Keys { prefix: &self.address.prefix }
    }

    /// Returns the session of this process. Begins a new one if there is none, or if the last one
    /// was lost.
    fn session(&self, within: Duration) -> Result<Arc<Session>> {
        let mut current = self.current();
        match &*current {
            Current::Session(session) if session.lost().is_none() => {
                return Ok(Arc::clone(session));
            }
            Current::Finished => bail!("{}: this process is about to end", self.address),
            // The keys of the lost session may still exist, and we would wait for ourselves. But
            // if a build under one of them is just ending, this thread's lock is not needed any
            // more, and the keys must stay.
            Current::Session(lost) if lost.held().is_empty() => lost.end(),
            Current::Session(_) | Current::None => {}
        }
        *current = Current::None;
        let new =
            renewal::start_session(self.client(), self.keys().locks(), self.address.ttl, within);
        let new = new.map_err(|why| self.error(why))?;
        *current = Current::Session(Arc::clone(&new));
        Ok(new)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, why: Problem) -> anyhow::Error {
        let message = format!("{}: {why}", self.address);
        match why {
            Problem::Unreachable(_) | Problem::NoLease => Passing(message).into(),
            Problem::Refused(_) | Problem::Nonsense(_) => anyhow!(message),
        }
    }

    /// Returns the error for a request that was to attach a key to the session's lease.
    fn session_error(&self, session: &Session, why: Problem) -> anyhow::Error {
        if why == Problem::NoLease {
            // The session's thread would find out later. The next request gets a new lease.
            session.lose(&why.to_string());
        }
        self.error(why)
    }

    /// Returns a lock's folder as shown to the user.
    fn shown(&self, folder: &str) -> PathBuf {
        format!("{}{}", self.address, self.keys().shown(folder)).into()
    }

    fn record(&self, subject: &Subject) -> Vec<u8> {
        Record::line(&self.ourselves, subject)
    }

    fn queue(&self, key: &Key, within: Duration) -> Result<Queue, Problem> {
        let read = [request::read_all(&self.keys().folder(key))];
        Ok(Queue::of(self.client().transact(&[], &read, &[], within)?))
    }

    fn all_queues(&self) -> Result<Vec<Queue>> {
        let all = [request::read_all(&self.keys().locks())];
        let within = self.reach().limited(WITHIN);
        let answer = self.client().transact(&[], &all, &[], within);
        answer.map(Queue::all_of).map_err(|why| self.error(why))
    }

    fn held_lock(
        &self,
        key: &Key,
        mode: LockMode,
        session: Arc<Session>,
        created: i64,
    ) -> Box<dyn Held> {
        self.reach().set_busy(false);
        let place = Place {
            folder: self.keys().folder(key),
            result_key: self.keys().result(key),
            ourselves: self.ourselves.clone(),
            location: self.location(key),
            subject: key.subject().clone(),
            is_nested: key.is_nested(),
        };
        Box::new(HeldKey::new(session, place, mode, created))
    }

    /// Puts our key into the queue, unless it is there already, and reads the queue.
    fn stand_in_queue(
        &self,
        key: &Key,
        own: &str,
        session: &Session,
        within: Duration,
    ) -> Result<Answer, Problem> {
        let put = request::put(own, &self.record(key.subject()), session.lease);
        let look = request::read_all(&self.keys().folder(key));
        let then = [put, look.clone()];
        session.client.transact(&[request::missing(own)], &then, &[look], within)
    }
}

impl Locks for EtcdStore {
    fn check(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.reach().begin_wait(deadline);
        self.queue(key, within(deadline)).map(drop).map_err(|why| self.error(why))
    }

    fn try_acquire(&self, key: &Key, mode: LockMode, deadline: Deadline) -> Result<Try> {
        self.reach().begin_wait(deadline);
        let session = self.session(within(deadline))?;
        let folder = self.keys().folder(key);
        let own = self.keys().own(key, mode, session.lease);
        let is_free_of = |mode| request::none_with_prefix(&keys::all_in_mode(&folder, mode));
        let is_free = [
            is_free_of(LockMode::Exclusive),
            match mode {
                LockMode::Exclusive => is_free_of(LockMode::Shared),
                // A second put would not create the key, and so not set its revision.
                LockMode::Shared => request::missing(&own),
            },
        ];
        let result = self.keys().result(key);
        let look = [request::read_all(&folder), request::read(&result)];
        let put = request::put(&own, &self.record(key.subject()), session.lease);
        let answer = session
            .client
            .transact(&is_free, &[put], &look, within(deadline))
            .map_err(|why| self.session_error(&session, why))?;
        self.reach().set_busy(!answer.succeeded);
        if answer.succeeded {
            let lock = self.held_lock(key, mode, session, answer.revision);
            return Ok(Try::Held(lock));
        }
        // If a member failed after the others had agreed, our key exists already.
        let failure = record::failure_in(&answer, &result);
        let queue = Queue::of(answer);
        match queue.created(&own) {
            Some(created) if queue.blocker(created, mode, session.lease).is_none() => {
                Ok(Try::Held(self.held_lock(key, mode, session, created)))
            }
            _ => Ok(Try::Busy(Before::Known(failure))),
        }
    }

    fn wait_released(&self, key: &Key, deadline: Deadline) -> Result<Option<FailedBuild>> {
        wait::insist(self.client(), deadline, |time| {
            loop {
                let queue = self.queue(key, time.to_ask()).map_err(|why| self.error(why))?;
                // Shared holders let others share. A key of our own may be left from a try whose
                // answer was lost, and only we could delete it.
                let ours = self.session(time.to_ask())?.lease;
                let holder = queue.foreign_exclusive_holder(ours);
                self.reach().set_busy(holder.is_some());
                let Some(holder) = holder else { break };
                let from = queue.revision + 1;
                if time.wait_deleted(self.client(), &holder.key, from)? == Watched::Deleted {
                    break;
                }
            }
            Ok(record::last_failure(self.client(), &self.keys().result(key)))
        })
    }

    fn acquire(&self, key: &Key, mode: LockMode, deadline: Deadline) -> Result<Box<dyn Held>> {
        wait::insist(self.client(), deadline, |time| {
            let session = self.session(time.to_ask())?;
            let own = self.keys().own(key, mode, session.lease);
            let mut queue = self
                .stand_in_queue(key, &own, &session, time.to_ask())
                .map(Queue::of)
                .map_err(|why| self.session_error(&session, why))?;
            loop {
                let Some(created) = queue.created(&own) else {
                    return Err(Passing("its place in the queue was lost".into()).into());
                };
                let blocker = queue.blocker(created, mode, session.lease);
                self.reach().set_busy(blocker.is_some());
                let Some(blocker) = blocker else {
                    return Ok(self.held_lock(key, mode, session, created));
                };
                time.wait_deleted(self.client(), &blocker.key, queue.revision + 1)?;
                queue = self.queue(key, time.to_ask()).map_err(|why| self.error(why))?;
            }
        })
    }

    fn holder(&self, key: &Key, _known: Option<u32>) -> Option<Holder> {
        let queue = self.queue(key, self.reach().limited(SHORTLY)).ok()?;
        let ancestors = ancestors_everywhere();
        let holders = queue.holders();
        let is_ancestor = |entry: &&&answer::Entry| Record::of(entry).is_one_of(&ancestors);
        let holder = holders.iter().find(is_ancestor).or_else(|| holders.first())?;
        let shares = mode_of(holder) == LockMode::Shared;
        Some(Holder { shares, ..Record::of(holder).into_holder(&ancestors) })
    }

    fn held_by_ancestors(&self) -> Result<Vec<Subject>> {
        let ancestors = ancestors_everywhere();
        let queues = self.all_queues().unwrap_or_default();
        let records = queues.iter().flat_map(|queue| queue.holders().into_iter().map(Record::of));
        let theirs = records.filter(|it| it.is_one_of(&ancestors));
        Ok(theirs.filter_map(|it| it.holder.subject()).collect())
    }

    fn location(&self, key: &Key) -> PathBuf {
        self.shown(&self.keys().folder(key))
    }

    fn scope(&self) -> Scope {
        Scope::AllHosts
    }

    fn is_answering(&self) -> Result<()> {
        match self.reach().silence() {
            Some(why) => Err(self.error(Problem::Unreachable(why))),
            None => Ok(()),
        }
    }

    fn close(&self) {
        // If an abandoned thread is just requesting a lease, that lease is left to run out.
        let Ok(mut current) = self.session.try_lock() else { return };
        if let Current::Session(session) = std::mem::replace(&mut *current, Current::Finished) {
            session.end();
        }
    }
}

/// Slots count the builds of one machine. A cluster has none.
impl Several for EtcdStore {}

impl Notes for EtcdStore {
    fn note(&self, key: &Key) -> Option<Vec<u8>> {
        let read = [request::read(&self.keys().memory(key))];
        let within = self.reach().limited(SHORTLY);
        let answer = self.client().transact(&[], &read, &[], within).ok()?;
        let value = answer.entries().next()?.value;
        (value.len() <= MEMORY_MAX).then_some(value)
    }

    fn each_note(&self, folder: &str, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        let all = [request::read_all(&self.keys().memories(folder))];
        let answer =
            self.client().transact(&[], &all, &[], WITHIN).map_err(|why| self.error(why))?;
        answer.entries().for_each(|entry| visit(&entry.value));
        Ok(())
    }

    fn replace_note(&self, key: &Key, before: Option<&[u8]>, after: Option<&[u8]>) -> Result<bool> {
        let memory = self.keys().memory(key);
        let is_unchanged = request::has_value(&memory, before);
        let change = match after {
            Some(line) => request::put(&memory, line, 0),
            None => request::delete(&memory),
        };
        let within = self.reach().limited(WITHIN);
        let answer = self.client().transact(&[is_unchanged], &[change], &[], within);
        answer.map(|answer| answer.succeeded).map_err(|why| self.error(why))
    }
}

impl Inspect for EtcdStore {
    fn held(&self) -> Result<Overview> {
        let ancestors = ancestors_everywhere();
        let mut held: Vec<HeldLock> = Vec::new();
        let mut turnstiles = Vec::new();
        for queue in self.all_queues()? {
            let folder = queue.entries.first().map(folder_of).unwrap_or_default();
            if let Some(behind) = folder.strip_suffix(".turnstile") {
                // Waiters in the turnstile wait for the lock behind it, and are counted there.
                turnstiles.push((self.shown(behind), queue.entries.len() - 1));
                continue;
            }
            let holders = queue.holders();
            let shared = holders.iter().any(|it| mode_of(it) == LockMode::Shared);
            let mut waiters = queue.entries.len() - holders.len();
            for entry in holders {
                let holder = Record::of(entry).into_holder(&ancestors);
                held.push(HeldLock {
                    tag: holder.tag.clone(),
                    name: holder.name.clone(),
                    cache: holder.cache.clone(),
                    slot: None,
                    waiting: Vec::new(),
                    lock: self.shown(folder),
                    shared,
                    waiters: std::mem::take(&mut waiters),
                    holder,
                });
            }
        }
        Ok(Overview { held: in_order(held, turnstiles), incomplete: None })
    }

    /// Removes nothing: what a holder leaves behind ends with its lease.
    fn prune(&self) -> Result<Pruned> {
        Ok(Pruned::default())
    }

    fn file(&self, key: &Key) -> Result<PathBuf> {
        bail!(
            "{} is not a file: {} stores locks as keys, which only buildlock can lock",
            self.location(key).display(),
            self.address
        )
    }
}
