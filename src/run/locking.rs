//! Taking all locks of a build within one deadline, or learning that there is nothing to build.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};

use super::job::Job;
use super::look::Look;
use super::open_store::OpenStore;
use super::slots::{Again, Next};
use crate::cache::{Asked, Want};
use crate::child::signals::Work;
use crate::duration::Deadline;
use crate::exit::Exit;
use crate::fingerprint::Fingerprint;
use crate::lock::{self, Held, HeldLocks, Key, LockMode, Patience, Turn};
use crate::log;
use crate::record::Holder;
use crate::subject::Subject;

/// That many rounds in which a lock was lost, before anything is built, are not bad luck.
const LOST_ROUNDS_MAX: usize = 100;

/// How long after the deadline locks that are free are still taken.
const LATE: Duration = Duration::from_millis(50);

/// How the wait for all locks ended.
pub(super) enum Locked {
    /// The locks are ours, and this is what has to be built.
    Ours(HeldLocks, Option<Fingerprint>),
    /// Every image is present by now.
    Present,
    /// The build that was waited for failed with this status, and its failure is shared.
    Failed(u8),
    TimedOut,
    /// This signal arrived first.
    Interrupted(i32),
}

impl Job {
    /// Takes all locks, looks again, and takes them once more if one was lost meanwhile.
    ///
    /// # Errors
    /// A lock cannot be taken, or a look failed.
    pub(super) fn lock_and_look_again(
        self: &Arc<Self>,
        deadline: Deadline,
        store: &OpenStore,
    ) -> Result<Locked> {
        let job = Arc::clone(self);
        let work = move || job.lock_until_none_is_lost(deadline, Again::No);
        Ok(match store.unless_interrupted(work)? {
            Work::Done(locked) => locked,
            Work::Interrupted(signal) => Locked::Interrupted(signal),
        })
    }

    /// Takes all locks, and with `--max-builds` a slot, and looks again. `again` says whether the
    /// build command has run before.
    ///
    /// # Errors
    /// A lock cannot be taken, or a look failed.
    pub(super) fn lock_until_none_is_lost(
        &self,
        deadline: Deadline,
        again: Again,
    ) -> Result<Locked> {
        let mut lost_rounds = 0;
        let mut waited_for = Vec::new();
        let mut slots = self.slots(again)?;
        loop {
            let turn = match slots.next() {
                Next::Locks => self.lock(deadline, &mut waited_for, again.want())?,
                Next::Slot => match slots.wait(self, deadline)? {
                    Some(turn) => turn,
                    None => continue,
                },
            };
            let locked = match turn {
                Turn::Held(locks) => match self.look()? {
                    Look::ToBuild(it) => Some((locks, it.inputs)),
                    Look::Present => None,
                },
                Turn::Settled => None,
                Turn::Failed(status) => {
                    self.warn_of_other_builds("the failure", &waited_for);
                    return Ok(Locked::Failed(status));
                }
                Turn::TimedOut => return Ok(Locked::TimedOut),
            };
            let Some((locks, inputs)) = locked else {
                // With --if-changed, the image was built from these very inputs.
                if self.inputs.is_none() {
                    self.warn_of_other_builds("the image", &waited_for);
                }
                return Ok(Locked::Present);
            };
            // A lock may have been lost during the wait for another lock or for the engine.
            let lost = locks.iter().find_map(|lock| lock.lost());
            if let Some(why) = lost {
                drop(locks);
                lost_rounds += 1;
                if lost_rounds == LOST_ROUNDS_MAX {
                    bail!("{why}");
                }
                tracing::warn!("{why}; locking again before anything is built");
                continue;
            }
            if let Some(locks) = slots.complete(locks, deadline)? {
                return Ok(Locked::Ours(locks, inputs));
            }
        }
    }

    /// Takes every tag's lock in sorted order, then the named ones, then those of caches, within one
    /// deadline. Notes the holders of tags that it waits for.
    fn lock(
        &self,
        deadline: Deadline,
        waited_for: &mut Vec<(Subject, Holder)>,
        want: Want,
    ) -> Result<Turn<HeldLocks>> {
        // A fault of the last lock must not surface after a wait for the first.
        self.caches.read_files(&self.images, self.store.scope())?;
        for subject in &self.subjects {
            self.store.check(&Key::new(subject.clone()), deadline)?;
        }
        let mut ours = HeldLocks::default();
        for subject in &self.subjects {
            // Taking a lock takes the kernel long while somebody holds very many.
            let is_late =
                !deadline.is_at_once() && deadline.left_with(LATE) == Some(Duration::ZERO);
            if is_late && ours.iter().next().is_some() {
                log::timeout(subject, None, deadline.so_far());
                return Ok(Turn::TimedOut);
            }
            match self.lock_one(subject, deadline, waited_for, want)? {
                Turn::Held(lock) => {
                    lock.record();
                    ours.push(lock);
                }
                Turn::Settled => return Ok(Turn::Settled),
                Turn::Failed(status) => {
                    let exit = Exit::Code(status);
                    log::failed(&self.what(), exit, None, "the build that was waited for failed");
                    return Ok(Turn::Failed(status));
                }
                Turn::TimedOut => return Ok(Turn::TimedOut),
            }
        }
        Ok(Turn::Held(ours))
    }

    fn lock_one(
        &self,
        subject: &Subject,
        deadline: Deadline,
        waited_for: &mut Vec<(Subject, Holder)>,
        want: Want,
    ) -> Result<Turn> {
        let is_image = subject.tag().is_some();
        // A wait for another lock may be for nothing by now.
        if !is_image && self.is_present()? {
            return Ok(Turn::Settled);
        }
        if let Some(turn) = self.named.take(subject, &self.store, deadline) {
            return turn;
        }
        let (store, images) = (&self.store, &self.images);
        if let Some(turn) = self.caches.take(subject, store, images, deadline, want) {
            return turn;
        }
        let mut settled = || self.is_present();
        let patience = Patience {
            deadline,
            share_failure: self.share_failure,
            settled: (!self.force).then_some(&mut settled),
        };
        let (turn, holder) = lock::take(&self.store, subject.clone(), patience)?;
        waited_for.extend(holder.map(|it| (subject.clone(), it)));
        Ok(turn)
    }

    /// Takes all locks in the same order, if none of them is busy. Waits for nobody. What may take
    /// time, to write who holds them and to log that, is left to the caller.
    ///
    /// # Errors
    /// A lock cannot be taken.
    pub(super) fn try_lock(&self, want: Want, asked: &Asked) -> Result<Option<HeldLocks>> {
        let mut ours = HeldLocks::default();
        for subject in &self.subjects {
            let store = &self.store;
            let named = || self.named.try_take(subject, store);
            let tried = match self.caches.try_take(subject, store, want, asked).or_else(named) {
                Some(tried) => tried?,
                None => lock::try_take(store, subject.clone())?,
            };
            let Some(lock) = tried else { return Ok(None) };
            ours.push(lock);
        }
        Ok(Some(ours))
    }

    /// Logs a lock that was taken without waiting.
    pub(super) fn log_taken(&self, lock: &dyn Held, want: Want) {
        let (subject, shared) = (lock.subject(), lock.mode() == LockMode::Shared);
        let at_once = Duration::ZERO;
        match self.caches.reason(lock, want) {
            Some(why) => log::acquired_cache(subject, shared, &why, at_once),
            None if subject.name().is_some() => log::acquired_named(subject, shared, at_once),
            None => log::acquired(subject, at_once),
        }
    }

    /// Warns if the build that was waited for, and that left `result`, ran another command than this
    /// call would, or ran it in another folder.
    fn warn_of_other_builds(&self, result: &str, waited_for: &[(Subject, Holder)]) {
        let ours = self.ourselves();
        // A holder without a build is somebody's script.
        let is_other =
            |theirs: &Holder| theirs.build.is_some() && !theirs.builds_the_same_as(&ours);
        for (subject, theirs) in waited_for.iter().filter(|(_, theirs)| is_other(theirs)) {
            log::built_otherwise(subject, result, theirs, &ours);
        }
    }
}
