//! What a build with caches does beside building: run again, alone, after a failure that a shared
//! cache may have caused, and remember caches as warm after a success.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Result;

use super::RunningBuild;
use super::job::Job;
use super::locking::Locked;
use super::slots::Again;
use crate::cache::{self, Account};
use crate::child::signals::{Signals, Work};
use crate::child::{self, Ended};
use crate::duration::Deadline;
use crate::exit::Exit;
use crate::lock::{Held, HeldLocks, LockMode};
use crate::subject::Subject;

impl Job {
    /// Returns whether a shared cache may be the cause of a failure. That a cache is warm is only
    /// remembered, and builders lose caches.
    pub(super) fn cache_may_be_at_fault(&self, ended: &Ended, locks: &HeldLocks) -> bool {
        // A shell says 128+N of a command that signal N ended, and there are 64 signals.
        let ended_within_a_shell = matches!(ended.exit, Exit::Code(129..=192));
        self.retry
            && ended.by_itself()
            && !ended_within_a_shell
            && ended.exit != Exit::SUCCESS
            && self.caches.are_shared(locks)
    }

    /// Returns whether the build command can run once more. A second run would miss what the first
    /// one has read of its stdin.
    pub(super) fn can_run_again(&self, ended: &Ended) -> bool {
        let can = !self.command.may_read_stdin() || child::stdin_can_be_read_again();
        if !can {
            tracing::warn!(
                "the build command failed with a shared cache: {}; it is not run again, because it \
                 may have read its stdin (give it another, as in </dev/null)",
                ended.exit
            );
        }
        can
    }

    /// Runs the build command once more, with its caches alone, if their locks can be taken within
    /// what is left of the time for waiting. Otherwise the first failure counts.
    ///
    /// # Errors
    /// The build command cannot be run.
    pub(super) fn run_again_alone(
        self: &Arc<Self>,
        build: &mut RunningBuild,
        ended: Ended,
        signals: &Signals,
    ) -> Result<Ended> {
        tracing::warn!(
            "the build command failed with a shared cache: {}; running it once more, with the cache \
             alone",
            ended.exit
        );
        // Whoever waits for a slot or has one must not keep others from anything, so a build with a
        // slot begins anew.
        let begins_anew = self.max_builds.is_some();
        let had = build.locks.take(|lock| begins_anew || lock.subject().cache().is_some());
        let is_shared_cache =
            |lock: &&dyn Held| lock.subject().cache().is_some() && lock.mode() == LockMode::Shared;
        let shared = had.iter().filter(is_shared_cache);
        let shared: Vec<Subject> = shared.map(|lock| lock.subject().clone()).collect();
        drop(had);
        let deadline = Deadline::within(build.patience);
        let job = Arc::clone(self);
        let take_all = move || match begins_anew {
            true => job.lock_until_none_is_lost(deadline, Again::Yes),
            false => job.take_caches_alone(deadline),
        };
        match signals.unless_interrupted(take_all) {
            Ok(Work::Done(Locked::Ours(locks, inputs))) => {
                build.locks.append(locks);
                build.inputs = inputs.or(build.inputs.take());
                // Without our lock, another call may have noted something else.
                build.inputs.iter().for_each(|inputs| self.distrust_images(inputs));
                build.at_fault = shared;
                build.started = SystemTime::now();
                self.run_command(build, signals)
            }
            Ok(Work::Done(Locked::Present)) => {
                tracing::info!("another call has built the image meanwhile");
                Ok(Ended { exit: Exit::SUCCESS, ..ended })
            }
            Ok(Work::Done(_)) => Ok(ended),
            Ok(Work::Interrupted(signal)) => {
                Ok(Ended { exit: Exit::Signal(signal), interrupted: Some(signal), ..ended })
            }
            Err(error) => {
                tracing::warn!("{error:#}; so its failure counts");
                Ok(ended)
            }
        }
    }

    fn take_caches_alone(&self, deadline: Deadline) -> Result<Locked> {
        let taken = cache::take_all_alone(&self.caches, &self.store, &self.images, deadline)?;
        let Some(caches) = taken else { return Ok(Locked::TimedOut) };
        caches.iter().for_each(|lock| lock.record());
        Ok(Locked::Ours(caches, None))
    }

    /// Remembers the caches that this build had alone as warm. Returns a signal that arrived while
    /// the engine was asked about them.
    pub(super) fn remember_warm_caches(
        self: &Arc<Self>,
        locks: &HeldLocks,
        started: SystemTime,
        at_fault: &[Subject],
        signals: &Signals,
    ) -> Option<i32> {
        if !self.caches.may_be_warm_now(locks) {
            return None;
        }
        let job = Arc::clone(self);
        let ask = move || Ok(Account::since(started, &job.images));
        let (account, interrupted) = match signals.unless_interrupted(ask) {
            Ok(Work::Done(account)) => (account, None),
            Ok(Work::Interrupted(signal)) => (Account::default(), Some(signal)),
            // No thread could be started for it.
            Err(_) => (Account::default(), None),
        };
        self.caches.remember(locks, &account, at_fault, &*self.store);
        interrupted
    }
}
