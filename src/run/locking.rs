//! Taking all locks of a build within one deadline, or learning that there is nothing to build.

use anyhow::Result;

use super::job::Job;
use crate::duration::Deadline;
use crate::exit::Exit;
use crate::lock::{self, Held, Key, Patience, Turn, release};
use crate::log;
use crate::record::Holder;
use crate::subject::Subject;

impl Job {
    /// Takes every tag's lock in sorted order, then the named ones, then those of caches, within one
    /// deadline. Notes the holders of tags that it waits for.
    ///
    /// # Errors
    /// A lock cannot be taken, or a look failed.
    pub(super) fn lock(
        &self,
        deadline: Deadline,
        waited_for: &mut Vec<(Subject, Holder)>,
    ) -> Result<Turn<Vec<Box<dyn Held>>>> {
        // A fault of the last lock must not surface after a wait for the first.
        self.caches.read_files(&self.images, self.store.scope())?;
        for subject in &self.subjects {
            self.store.check(&Key::new(subject.clone()), deadline)?;
        }
        let mut ours: Vec<Box<dyn Held>> = Vec::new();
        for subject in &self.subjects {
            let turn = match self.lock_one(subject, deadline, waited_for) {
                Ok(Turn::Held(lock)) => {
                    lock.record();
                    ours.push(lock);
                    continue;
                }
                Ok(Turn::Settled) => Ok(Turn::Settled),
                Ok(Turn::Failed(status)) => {
                    let exit = Exit::Code(status);
                    log::failed(&self.tags, exit, None, "the build that was waited for failed");
                    Ok(Turn::Failed(status))
                }
                Ok(Turn::TimedOut) => Ok(Turn::TimedOut),
                Err(error) => Err(error),
            };
            release(ours, None);
            return turn;
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
        if let Some(turn) = self.caches.take(subject, &self.store, &self.images, deadline) {
            return turn;
        }
        let mut settled = || self.is_present();
        let patience = Patience {
            deadline,
            // The holder of a named lock builds something else.
            share_failure: self.share_failure && is_image,
            settled: (!self.force).then_some(&mut settled),
        };
        let (turn, holder) = lock::take(&self.store, subject.clone(), patience)?;
        waited_for.extend(holder.filter(|_| is_image).map(|it| (subject.clone(), it)));
        Ok(turn)
    }

    /// Looks again under the locks, and releases them if every image is present.
    ///
    /// # Errors
    /// The look failed; the locks are released.
    pub(super) fn unless_present(
        &self,
        turn: Turn<Vec<Box<dyn Held>>>,
    ) -> Result<Turn<Vec<Box<dyn Held>>>> {
        let Turn::Held(locks) = turn else { return Ok(turn) };
        match self.is_present() {
            Ok(false) => Ok(Turn::Held(locks)),
            done => {
                release(locks, None);
                done.map(|_| Turn::Settled)
            }
        }
    }

    /// Warns where the build that was waited for, and that left `result`, ran another command than
    /// this call would, or ran it in another folder.
    pub(super) fn warn_of_other_builds(&self, result: &str, waited_for: &[(Subject, Holder)]) {
        let ours = self.ourselves();
        // A holder without a build is somebody's script.
        let is_other =
            |theirs: &Holder| theirs.build.is_some() && !theirs.builds_the_same_as(&ours);
        for (subject, theirs) in waited_for.iter().filter(|(_, theirs)| is_other(theirs)) {
            log::built_otherwise(subject, result, theirs, &ours);
        }
    }

    fn is_present(&self) -> Result<bool> {
        Ok(!self.force && self.images.first_missing(&self.tags)?.is_none())
    }
}
