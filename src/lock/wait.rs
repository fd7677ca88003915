//! One wait for one lock, and what people are told of it.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::SigSet;

use super::key::Key;
use super::store::{Before, Store};
use crate::duration::Deadline;
use crate::log;
use crate::record::{FailedBuild, Holder};
use crate::scope::Scope;
use crate::terminal::LiveLine;

/// Stack of a thread that does nothing but block, in bytes. The default of 2 MiB of address space
/// each is too much for a thousand waiters under a memory limit.
const WAITER_STACK: usize = 128 * 1024;
/// Stack of a thread that may have to check a cluster's certificates, in bytes.
const REMOTE_WAITER_STACK: usize = 2 << 20;
/// How long a wait goes on before people are told of it and the holder's name is looked up. The
/// holder may be about to write its record. A busy lock may be the short shared lock of a waiter
/// that wakes. And the kernel's list of locks, which the name may need, stops all other processes
/// that take a lock.
const NAME_GRACE: Duration = Duration::from_millis(10);
/// How long a message about a wait is held back while the holder's name is not known yet.
const NAME_WITHIN: Duration = Duration::from_millis(500);
/// The same for the last message, after the deadline: a time limit must hold.
pub(super) const LAST_NAME_WITHIN: Duration = Duration::from_millis(50);
/// How often the live line moves.
const TICK: Duration = Duration::from_millis(100);

/// How a blocking operation of a store ended.
pub(super) enum Waited<T> {
    Done(T),
    /// It would never end: the holder waits for us.
    ForAncestor,
    TimedOut,
}

/// What arrives during a wait.
enum News<T> {
    /// The wait is over.
    Done(Result<T>),
    /// The holder that is waited for, as far as it is known.
    Holder(Option<Box<Holder>>),
}

/// What people have been told of waiting for a lock, whatever waits that consists of.
pub(super) struct Said {
    /// When the waiting began.
    start: Instant,
    /// When the next message is due, counted from the start.
    next_message: Duration,
    /// The holder that the last message named.
    holder: Option<Holder>,
    /// The holder that was waited for last, named or not.
    pub(super) waited_for: Option<Holder>,
}

impl Said {
    pub(super) fn nothing() -> Self {
        Said { start: Instant::now(), next_message: Duration::ZERO, holder: None, waited_for: None }
    }

    pub(super) fn so_far(&self) -> Duration {
        self.start.elapsed()
    }

    fn is_due(&self) -> bool {
        self.so_far() >= self.next_message
    }
}

/// One wait for one lock.
pub(super) struct Wait<'a> {
    store: &'a Arc<dyn Store>,
    key: &'a Key,
    deadline: Deadline,
    said: &'a mut Said,
    /// The holder when we last asked.
    holder: Option<Holder>,
    /// The result that was there when the wait began: of a build that we did not wait for.
    before: Before,
}

impl<'a> Wait<'a> {
    pub(super) fn begin(
        store: &'a Arc<dyn Store>,
        key: &'a Key,
        deadline: Deadline,
        said: &'a mut Said,
        before: Before,
    ) -> Self {
        Wait { store, key, deadline, said, holder: None, before }
    }

    /// Runs `operation`, which blocks, on a thread of its own, and meanwhile says who is waited for.
    /// At the deadline the thread is abandoned and ends with the process.
    pub(super) fn until<T: Send + 'static>(
        &mut self,
        operation: impl FnOnce(&dyn Store, &Key, Deadline) -> Result<T> + Send + 'static,
    ) -> Result<Waited<T>> {
        let (sender, receiver) = mpsc::channel();
        let (store, key, deadline) = (Arc::clone(self.store), self.key.clone(), self.deadline);
        let done = sender.clone();
        on_a_thread("waiter", &**self.store, move || {
            // The receiver may be gone by then.
            _ = done.send(News::Done(operation(&*store, &key, deadline)));
        })
        .context("cannot start a thread to wait for a lock")?;
        let will_be_told = tracing::enabled!(tracing::Level::INFO);
        let holder = self.store.holder_at_once(&self.key.itself());
        // A caller usually passes a turnstile at once.
        let has_build = |holder: &Holder| holder.build.is_some();
        let is_known = holder.as_ref().is_some_and(has_build) && !self.key.is_turnstile();
        // An earlier wait was for another holder, which has released the lock since.
        self.said.waited_for = None;
        self.note(holder);
        if !is_known {
            let grace = self.deadline.left().map_or(NAME_GRACE, |left| left.min(NAME_GRACE));
            if let Ok(News::Done(done)) = receiver.recv_timeout(grace) {
                return done.map(Waited::Done);
            }
        }
        // Until when to wait for an answer before people are told without it. Even if only warnings
        // are shown, there may be one about what the holder built.
        let will_be_warned = tracing::enabled!(tracing::Level::WARN);
        let mut asked = (will_be_warned && !is_known).then(|| self.ask(&sender));
        let mut is_fresh = is_known && self.said.is_due();
        let mut live = LiveLine::start();
        loop {
            if self.holder.as_ref().is_some_and(|holder| holder.is_our_ancestor) {
                // It has taken the lock only now.
                return Ok(Waited::ForAncestor);
            }
            let is_due = self.said.is_due();
            if is_due && will_be_told && !is_fresh && asked.is_none() && !self.holder_is_the_same()
            {
                asked = Some(self.ask(&sender));
            }
            if is_due && asked.is_none_or(|until| until <= Instant::now()) {
                (asked, is_fresh) = (None, false);
                self.say(live.is_some());
            }
            if let Some(live) = &mut live {
                let waiting =
                    log::Waiting { subject: self.key.subject(), holder: self.holder.as_ref() };
                live.show(&waiting, self.said.so_far());
            }
            let next = self.said.next_message.saturating_sub(self.said.so_far());
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
                    (asked, is_fresh) = (None, self.said.is_due());
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

    /// Returns the status to end with, if a build failed while we waited for it: its result was not
    /// there when the wait began. Statuses from 124 on have meanings of their own and are not
    /// shared.
    pub(super) fn shared(&mut self, failure: Option<&FailedBuild>, share: bool) -> Option<u8> {
        let before = std::mem::replace(&mut self.before, Before::Known(failure.cloned()));
        let Before::Known(before) = before else { return None };
        let failure = failure.filter(|_| share && failure != before.as_ref())?;
        (1..=123).contains(&failure.status).then_some(failure.status)
    }

    /// Warns of a nested call that waits for a lock against the order in which locks are taken: its
    /// holder may wait for our ancestors. Looks on a thread of its own, because anybody can make the
    /// lock folder too long to read within a time limit.
    pub(super) fn warn_of_deadlock(&self) {
        // Most calls need no thread for this, and may not be able to start one.
        if !self.store.may_be_held_by_ancestors() {
            return;
        }
        let (store, ours) = (Arc::clone(self.store), self.key.subject().clone());
        let asked = on_a_thread("order", &**self.store, move || {
            let theirs = store.held_by_ancestors().into_iter().find(|theirs| *theirs > ours);
            if let Some(theirs) = theirs {
                tracing::warn!(
                    "{ours}: waiting for this lock while an ancestor of this process holds that of \
                     {theirs}, which is taken later in order: this can deadlock with a call that \
                     takes both; name both tags in the outer call"
                );
            }
        });
        if let Err(error) = asked {
            tracing::debug!("cannot look which locks our ancestors hold: {error}");
        }
    }

    /// Takes in the holder, if it is known. One that people were not told of is named at once.
    fn note(&mut self, holder: Option<Holder>) {
        if holder.is_some() {
            self.said.waited_for.clone_from(&holder);
        }
        self.holder = holder.or(self.holder.take());
        if self.holder.is_some() && self.holder != self.said.holder {
            self.said.next_message = self.said.next_message.min(self.said.so_far());
        }
    }

    /// Returns whether the holder that we know still holds the lock, if that is known at once. Then
    /// no thread has to wake for a message.
    fn holder_is_the_same(&mut self) -> bool {
        let Some(known) = self.holder.as_ref().map(|holder| holder.pid) else { return false };
        let now = self.store.holder_at_once(&self.key.itself());
        let is_it = now.as_ref().is_some_and(|now| now.pid == known);
        if is_it {
            self.note(now);
        }
        is_it
    }

    /// Asks who holds the lock now. Returns until when an answer is worth waiting for.
    fn ask<T: Send + 'static>(&self, sender: &mpsc::Sender<News<T>>) -> Instant {
        let known = self.holder.as_ref().map(|holder| holder.pid);
        let sender = sender.clone();
        ask_who_holds(self.store, self.key, known, move |holder| {
            _ = sender.send(News::Holder(holder.map(Box::new)));
        });
        Instant::now() + NAME_WITHIN
    }

    /// Says who is waited for: at once, then after 5, 10, 20 and 40 seconds and every full minute.
    /// On a terminal the live line says it all the time.
    fn say(&mut self, has_live_line: bool) {
        let waited = self.said.so_far();
        self.said.holder.clone_from(&self.holder);
        if !has_live_line {
            let lock = self.store.location(&self.key.itself());
            log::waiting(self.key.subject(), &lock, self.holder.as_ref(), waited);
        }
        let seconds = waited.as_secs();
        let next = [5, 10, 20, 40].into_iter().find(|&next| next > seconds);
        self.said.next_message = Duration::from_secs(next.unwrap_or((seconds / 60 + 1) * 60));
    }
}

/// Finds out who holds the lock. The answer arrives in the channel.
pub(super) fn ask_for_holder(store: &Arc<dyn Store>, key: &Key) -> mpsc::Receiver<Option<Holder>> {
    let (sender, receiver) = mpsc::channel();
    ask_who_holds(store, key, None, move |holder| _ = sender.send(holder));
    receiver
}

/// Finds out on a thread of its own who holds the lock. A time limit must hold, and a result must be
/// noticed, while the kernel or a cluster takes its time to answer.
fn ask_who_holds(
    store: &Arc<dyn Store>,
    key: &Key,
    known: Option<u32>,
    tell: impl FnOnce(Option<Holder>) + Send + 'static,
) {
    let (its, key) = (Arc::clone(store), key.clone());
    let asked = on_a_thread("names", &**store, move || tell(holder(&*its, &key, known)));
    if let Err(error) = asked {
        tracing::debug!("cannot find out who holds the lock: {error}");
    }
}

/// Returns the holder that is waited for. A caller in a turnstile waits itself for the holder of the
/// lock behind it, so it is named only while nobody has that lock. It releases the turnstile soon,
/// so it does not count as an ancestor that waits for us.
fn holder(store: &dyn Store, key: &Key, known: Option<u32>) -> Option<Holder> {
    let in_turnstile = || {
        let holder = key.is_turnstile().then(|| store.holder(key, known)).flatten()?;
        Some(Holder { is_our_ancestor: false, ..holder })
    };
    store.holder(&key.itself(), known).or_else(in_turnstile)
}

fn on_a_thread(
    name: &str,
    store: &dyn Store,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let stack = match store.scope() {
        Scope::AllHosts => REMOTE_WAITER_STACK,
        Scope::ThisHost => WAITER_STACK,
    };
    let work = move || {
        // Signals are the main thread's. It can only fail for bad arguments.
        _ = SigSet::all().thread_block();
        work();
    };
    std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(work).map(drop)
}
