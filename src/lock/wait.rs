//! One wait for one lock, and what the user is told about it.

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
use crate::subject::Subject;
use crate::terminal::LiveLine;

/// Stack of a thread that does nothing but block, in bytes. The default of 2 MiB of address space
/// each is too much for a thousand waiters under a memory limit.
const WAITER_STACK: usize = 128 * 1024;
/// Stack of a thread that may have to check a cluster's certificates, in bytes.
const REMOTE_WAITER_STACK: usize = 2 << 20;
/// How long to wait before reporting and looking up the holder. Until then the holder may still be
/// writing its record, or a waking waiter may have the lock only for a moment. Reading the kernel's
/// list of locks also stalls every process that takes a lock.
const NAME_GRACE: Duration = Duration::from_millis(10);
/// How long a message about a wait is held back while the holder's name is not known yet.
const NAME_WITHIN: Duration = Duration::from_millis(500);
/// The same for the last message, after the deadline: a time limit must hold.
pub(super) const LAST_NAME_WITHIN: Duration = Duration::from_millis(50);
/// How often the live line moves.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// How a blocking operation of a store ended.
pub(super) enum Waited<T> {
    Done(T),
    /// It would never end: the holder waits for us.
    ForAncestor,
    TimedOut,
}

/// What arrives during a wait.
enum WaitEvent<T> {
    /// The wait is over.
    Done(Result<T>),
    /// The holder that is waited for, as far as it is known.
    Holder(Option<Box<Holder>>),
}

/// What the user has been told about waiting for a lock. Waiting for a turnstile and then for the
/// lock counts as one wait.
pub(super) struct Reported {
    schedule: Schedule,
    /// The holder that the last message named.
    holder: Option<Holder>,
    /// The holder that was waited for last, named or not.
    pub(super) waited_for: Option<Holder>,
}

impl Reported {
    pub(super) fn nothing() -> Self {
        Reported { schedule: Schedule::start(), holder: None, waited_for: None }
    }

    pub(super) fn so_far(&self) -> Duration {
        self.schedule.so_far()
    }
}

/// When to ask who holds the lock, and when to report the wait.
///
/// A message names the holder as of the moment when it is due. So the holder is looked up then, and
/// the message waits for the answer, but only for a while.
pub(super) struct Schedule {
    /// When the waiting began.
    start: Instant,
    /// When the next message is due, counted from the start.
    next_message: Duration,
    /// When to report without the holder's name. Set while a question is unanswered.
    answer_due: Option<Instant>,
    /// Whether the holder was looked up after the next message had become due.
    is_fresh: bool,
}

impl Schedule {
    /// The first message is due at once.
    pub(super) fn start() -> Self {
        Schedule {
            start: Instant::now(),
            next_message: Duration::ZERO,
            answer_due: None,
            is_fresh: false,
        }
    }

    pub(super) fn so_far(&self) -> Duration {
        self.start.elapsed()
    }

    /// Begins the next wait. `is_known` says whether the holder was found at once.
    fn begin_wait(&mut self, is_known: bool) {
        self.answer_due = None;
        self.is_fresh = is_known && self.is_message_due();
    }

    pub(super) fn is_message_due(&self) -> bool {
        self.so_far() >= self.next_message
    }

    /// Makes the next message due now.
    fn make_due(&mut self) {
        self.next_message = self.next_message.min(self.so_far());
    }

    /// Notes that the holder was asked for.
    fn note_asked(&mut self) {
        self.answer_due = Some(Instant::now() + NAME_WITHIN);
    }

    /// Notes the answer. It counts for the next message only if that is due by now.
    fn note_answered(&mut self) {
        self.answer_due = None;
        self.is_fresh = self.is_message_due();
    }

    /// Returns whether an answer is still to come.
    fn is_asked(&self) -> bool {
        self.answer_due.is_some()
    }

    /// Returns whether the holder must be looked up before the message that is due.
    fn needs_holder(&self) -> bool {
        !self.is_fresh && !self.is_asked()
    }

    /// Returns whether the message that is due must not wait for an answer, or not any longer.
    fn is_answer_overdue(&self) -> bool {
        self.answer_due.is_none_or(|until| until <= Instant::now())
    }

    /// Notes a message. The next ones are due after 5, 10, 20 and 40 seconds and every full minute.
    pub(super) fn note_reported(&mut self, waited: Duration) {
        self.answer_due = None;
        self.is_fresh = false;
        let seconds = waited.as_secs();
        let next = [5, 10, 20, 40].into_iter().find(|&next| next > seconds);
        self.next_message = Duration::from_secs(next.unwrap_or((seconds / 60 + 1) * 60));
    }

    /// Returns how long nothing has to be done, if anything has to be done at all.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        let next = self.next_message.saturating_sub(self.so_far());
        let answer = self.answer_due.map(|it| it.saturating_duration_since(Instant::now()));
        (!next.is_zero()).then_some(next).into_iter().chain(answer).min()
    }
}

/// One wait for one lock.
pub(super) struct Wait<'a> {
    store: &'a Arc<dyn Store>,
    key: &'a Key,
    deadline: Deadline,
    reported: &'a mut Reported,
    /// The holder when we last asked.
    holder: Option<Holder>,
    /// The result of the build before this wait. Its failure is not shared.
    before: Before,
}

impl<'a> Wait<'a> {
    pub(super) fn begin(
        store: &'a Arc<dyn Store>,
        key: &'a Key,
        deadline: Deadline,
        reported: &'a mut Reported,
        before: Before,
    ) -> Self {
        Wait { store, key, deadline, reported, holder: None, before }
    }

    /// Runs `operation`, which blocks, on a thread of its own, and meanwhile reports who is waited
    /// for. At the deadline the thread is abandoned and ends with the process.
    pub(super) fn until<T: Send + 'static>(
        &mut self,
        operation: impl FnOnce(&dyn Store, &Key, Deadline) -> Result<T> + Send + 'static,
    ) -> Result<Waited<T>> {
        let (sender, receiver) = mpsc::channel();
        self.run(operation, sender.clone())?;
        let holder = self.store.holder_at_once(&self.key.itself());
        // A caller usually passes a turnstile at once.
        let has_build = |holder: &Holder| holder.build.is_some();
        let is_known = holder.as_ref().is_some_and(has_build) && !self.key.is_turnstile();
        // An earlier wait was for another holder, which has released the lock since.
        self.reported.waited_for = None;
        self.note(holder);
        if !is_known {
            let grace = self.deadline.left().map_or(NAME_GRACE, |left| left.min(NAME_GRACE));
            if let Ok(WaitEvent::Done(done)) = receiver.recv_timeout(grace) {
                return done.map(Waited::Done);
            }
        }
        self.reported.schedule.begin_wait(is_known);
        // Ask even if only warnings are shown, because one of them names what the holder built.
        if !is_known && tracing::enabled!(tracing::Level::WARN) {
            self.ask(&sender);
        }
        let mut live = LiveLine::start();
        loop {
            if self.holder.as_ref().is_some_and(|holder| holder.is_our_ancestor) {
                // The ancestor took the lock after this call had checked.
                return Ok(Waited::ForAncestor);
            }
            self.report_if_due(&sender, live.is_some());
            if let Some(live) = &mut live {
                let waiting =
                    log::Waiting { subject: self.key.subject(), holder: self.holder.as_ref() };
                live.show(&waiting, self.reported.so_far());
            }
            let tick = live.is_some().then_some(TICK);
            let next_wake = [self.deadline.left(), self.reported.schedule.next_wake(), tick];
            let next_wake = next_wake.into_iter().flatten().min().unwrap_or(Duration::MAX);
            match receiver.recv_timeout(next_wake) {
                Ok(WaitEvent::Done(done)) => return done.map(Waited::Done),
                Ok(WaitEvent::Holder(holder)) => {
                    self.note(holder.map(|it| *it));
                    self.reported.schedule.note_answered();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("the thread that waited for a lock is gone");
                }
                Err(RecvTimeoutError::Timeout) if self.deadline.has_passed() => {
                    drop(live);
                    self.give_up(&sender, &receiver)?;
                    return Ok(Waited::TimedOut);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Runs `operation` on a thread. Its result arrives in the channel.
    fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&dyn Store, &Key, Deadline) -> Result<T> + Send + 'static,
        sender: mpsc::Sender<WaitEvent<T>>,
    ) -> Result<()> {
        let (store, key, deadline) = (Arc::clone(self.store), self.key.clone(), self.deadline);
        on_a_thread("waiter", &**self.store, move || {
            // The receiver may be gone by then.
            _ = sender.send(WaitEvent::Done(operation(&*store, &key, deadline)));
        })
        .context("cannot start a thread to wait for a lock")
    }

    /// Reports the wait if a message is due, or asks for the holder that it should name.
    fn report_if_due<T: Send + 'static>(
        &mut self,
        sender: &mpsc::Sender<WaitEvent<T>>,
        has_live_line: bool,
    ) {
        if !self.reported.schedule.is_message_due() {
            return;
        }
        let is_shown = tracing::enabled!(tracing::Level::INFO);
        if is_shown && self.reported.schedule.needs_holder() && !self.holder_is_the_same() {
            self.ask(sender);
        }
        if self.reported.schedule.is_answer_overdue() {
            self.report(has_live_line);
        }
    }

    /// Logs that the deadline has passed, and who holds the lock.
    ///
    /// # Errors
    /// The store does not answer.
    fn give_up<T: Send + 'static>(
        &mut self,
        sender: &mpsc::Sender<WaitEvent<T>>,
        receiver: &mpsc::Receiver<WaitEvent<T>>,
    ) -> Result<()> {
        self.store.is_answering()?;
        if !self.reported.schedule.is_asked() {
            self.ask(sender);
        }
        if let Ok(WaitEvent::Holder(holder)) = receiver.recv_timeout(LAST_NAME_WITHIN) {
            self.holder = holder.map(|it| *it).or(self.holder.take());
        }
        log::timeout(self.key.subject(), self.holder.as_ref(), self.deadline.so_far());
        Ok(())
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

    /// Warns if this nested call waits for a lock that must be taken before one its ancestor holds.
    /// The holder may be waiting for that ancestor. Looks on a thread of its own, because anybody can make the
    /// lock folder too long to read within a time limit.
    pub(super) fn warn_of_deadlock(&self) {
        // Most calls need no thread for this, and may not be able to start one.
        if !self.store.may_be_held_by_ancestors() {
            return;
        }
        let (store, ours) = (Arc::clone(self.store), self.key.subject().clone());
        let asked = on_a_thread("order", &**self.store, move || {
            let is_later = |theirs: &Subject| theirs.slot().is_none() && *theirs > ours;
            let theirs = store.held_by_ancestors().unwrap_or_default().into_iter().find(is_later);
            if let Some(theirs) = theirs {
                tracing::warn!(
                    "{ours}: this wait can deadlock: an outer call holds {theirs}, which must be taken \
                     after it; give both to the outer call"
                );
            }
        });
        if let Err(error) = asked {
            tracing::debug!("cannot look which locks our ancestors hold: {error}");
        }
    }

    /// Takes in the holder, if it is known. One that the user was not told about is named at once.
    fn note(&mut self, holder: Option<Holder>) {
        if holder.is_some() {
            self.reported.waited_for.clone_from(&holder);
        }
        self.holder = holder.or(self.holder.take());
        if self.holder.is_some() && self.holder != self.reported.holder {
            self.reported.schedule.make_due();
        }
    }

    /// Returns whether the known holder certainly still holds the lock. Asks only what can be
    /// answered at once, so that no thread is started.
    fn holder_is_the_same(&mut self) -> bool {
        let Some(known) = self.holder.as_ref().map(|holder| holder.pid) else { return false };
        let now = self.store.holder_at_once(&self.key.itself());
        let is_it = now.as_ref().is_some_and(|now| now.pid == known);
        if is_it {
            self.note(now);
        }
        is_it
    }

    /// Asks who holds the lock now. The answer arrives in the channel.
    fn ask<T: Send + 'static>(&mut self, sender: &mpsc::Sender<WaitEvent<T>>) {
        let known = self.holder.as_ref().map(|holder| holder.pid);
        let sender = sender.clone();
        ask_who_holds(self.store, self.key, known, move |holder| {
            _ = sender.send(WaitEvent::Holder(holder.map(Box::new)));
        });
        self.reported.schedule.note_asked();
    }

    /// Logs who is waited for. On a terminal the live line shows it all the time.
    fn report(&mut self, has_live_line: bool) {
        let waited = self.reported.so_far();
        self.reported.holder.clone_from(&self.holder);
        if !has_live_line {
            let lock = self.store.location(&self.key.itself());
            log::waiting(self.key.subject(), &lock, self.holder.as_ref(), waited);
        }
        self.reported.schedule.note_reported(waited);
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

pub(super) fn on_a_thread(
    name: &str,
    store: &dyn Store,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let stack = match store.scope() {
        Scope::AllHosts => REMOTE_WAITER_STACK,
        Scope::ThisHost => WAITER_STACK,
    };
    let work = move || {
        // Only the main thread handles signals. The call fails only for bad arguments.
        _ = SigSet::all().thread_block();
        work();
    };
    std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(work).map(drop)
}
