//! Taking all locks of a build within one deadline, or learning that there is nothing to build.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::job::Job;
use super::look::Look;
use super::open_store::OpenStore;
use crate::child::signals::Work;
use crate::duration::Deadline;
use crate::exit::Exit;
use crate::fingerprint::Fingerprint;
use crate::lock::{self, HeldLocks, Key, Patience, Turn};
use crate::log;
use crate::record::Holder;
use crate::subject::Subject;

/// That many rounds in which a lock was lost, before anything is built, are not bad luck.
const LOST_ROUNDS_MAX: usize = 100;

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
        let work = move || job.lock_until_none_is_lost(deadline);
        Ok(match store.unless_interrupted(work)? {
            Work::Done(locked) => locked,
            Work::Interrupted(signal) => Locked::Interrupted(signal),
        })
    }

    fn lock_until_none_is_lost(&self, deadline: Deadline) -> Result<Locked> {
        let mut lost_rounds = 0;
        let mut waited_for = Vec::new();
        loop {
            let locked = match self.lock(deadline, &mut waited_for)? {
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
            let Some(why) = locks.iter().find_map(|lock| lock.lost()) else {
                return Ok(Locked::Ours(locks, inputs));
            };
            drop(locks);
            lost_rounds += 1;
            if lost_rounds == LOST_ROUNDS_MAX {
                bail!("{why}");
            }
            tracing::warn!("{why}; locking again before anything is built");
        }
    }

    /// Takes every tag's lock in sorted order, then the named ones, then those of caches, within one
    /// deadline. Notes the holders of tags that it waits for.
    fn lock(
        &self,
        deadline: Deadline,
        waited_for: &mut Vec<(Subject, Holder)>,
    ) -> Result<Turn<HeldLocks>> {
        // A fault of the last lock must not surface after a wait for the first.
        self.caches.read_files(&self.images, self.store.scope())?;
        for subject in &self.subjects {
            self.store.check(&Key::new(subject.clone()), deadline)?;
        }
        let mut ours = HeldLocks::default();
        for subject in &self.subjects {
            match self.lock_one(subject, deadline, waited_for)? {
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
    ) -> Result<Turn> {
        let is_image = subject.tag().is_some();
        // A wait for another lock may be for nothing by now.
        if !is_image && self.is_present()? {
            return Ok(Turn::Settled);
        }
        if let Some(turn) = self.named.take(subject, &self.store, deadline) {
            return turn;
        }
        if let Some(turn) = self.caches.take(subject, &self.store, &self.images, deadline) {
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
