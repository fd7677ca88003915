//! The main job: one build per tag, however many processes ask for it.
//!
//! Validate, look, lock, look again, build, verify, release. The postcondition is the product:
//! exit 0 means that the image exists.

mod builder;
mod caches;
mod diagnose;
mod fingerprint;
mod job;
mod locking;
mod look;
mod named;
mod nested;
mod open_store;
mod preflight;
mod recursion;
mod skip;
mod slots;
mod up_to_date;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};

pub use self::fingerprint::fingerprint;
use self::job::Job;
use self::locking::Locked;
use self::look::Look;
use self::open_store::OpenStore;
use crate::child::signals::{Signals, Work};
use crate::child::{self, Ended};
use crate::cli::{BuildArgs, CommonArgs};
use crate::duration::Deadline;
use crate::exit::{self, Exit};
use crate::fingerprint::Fingerprint;
use crate::image::{Missing, Why};
use crate::lock::HeldLocks;
use crate::log;
use crate::record::FailedBuild;
use crate::scope::Scope;
use crate::subject::Subject;

/// Builds what is not there yet.
///
/// # Errors
/// buildlock itself failed; see [`exit::of`] for the status.
pub fn run(args: BuildArgs, common: &CommonArgs) -> Result<Exit> {
    let job = Job::new(args, common)?; // 1. Validate.
    match job.look()? {
        Look::Present => return job.skip(), // 2. Look.
        Look::ToBuild(it) => it.why.iter().for_each(diagnose::why_built_again),
    }
    job.validate_build()?;
    let job = Arc::new(job);
    let mut store = OpenStore::new(&job.store)?;
    let deadline = Deadline::after(job.timeout);
    let (locks, inputs) = match job.lock_and_look_again(deadline, &store)? {
        Locked::Ours(locks, inputs) => (locks, inputs), // 3. Lock.
        Locked::Present => return store.skip(&job),     // 4. Look again.
        Locked::Failed(status) => return Ok(Exit::Code(status)),
        Locked::TimedOut => return Ok(Exit::Code(job.conflict_exit_code)),
        Locked::Interrupted(signal) => return Ok(Exit::Signal(signal)),
    };
    let mut build = RunningBuild::new(locks, inputs, deadline);
    let signals = store.signals()?;
    let ended = job.build(&mut build, signals)?; // 5. Build.
    let exit = job.verify(&build, &ended, signals); // 6. Verify.
    let exit = job.release(build, &ended, exit, signals); // 7. Release.
    if !ended.left.is_empty() {
        // Processes that the build left behind still hold the lock. The store must stay open for
        // them until its lease runs out.
        store.leave_open();
    }
    exit
}

/// A build under way.
struct RunningBuild {
    locks: HeldLocks,
    /// The fingerprint of what is built, with `--if-changed`.
    inputs: Option<Fingerprint>,
    /// What is left of the time for waiting; no limit if `None`.
    patience: Option<Duration>,
    /// When the build command was last started.
    started: SystemTime,
    /// The caches that were shared when the build command failed, if it was run again.
    at_fault: Vec<Subject>,
}

impl RunningBuild {
    fn new(locks: HeldLocks, inputs: Option<Fingerprint>, deadline: Deadline) -> Self {
        let (patience, started) = (deadline.left(), SystemTime::now());
        RunningBuild { locks, inputs, patience, started, at_fault: Vec::new() }
    }
}

impl Job {
    /// 1. Validates what only a build needs.
    fn validate_build(&self) -> Result<()> {
        recursion::refuse(&self.command)?;
        preflight::check_interpreter(&self.command)?;
        if let (Some(folder), false) = (&self.lock_folder, self.tags.is_empty()) {
            preflight::warn_if_engine_sees_another_folder(folder, &self.images);
        }
        Ok(())
    }

    /// 5. Runs the build command while holding the locks; once more if a shared cache may be the
    ///    cause of a failure, or if its inputs changed meanwhile.
    fn build(self: &Arc<Self>, build: &mut RunningBuild, signals: &Signals) -> Result<Ended> {
        build.inputs.iter().for_each(|inputs| self.distrust_images(inputs));
        let ended = self.run_command(build, signals)?;
        let ended =
            if self.cache_may_be_at_fault(&ended, &build.locks) && self.can_run_again(&ended) {
                self.run_again_alone(build, ended, signals)?
            } else {
                ended
            };
        let ended = self.build_changed_inputs(build, ended, signals)?;
        build.locks.iter().filter_map(|lock| lock.lost()).for_each(|why| tracing::warn!("{why}"));
        if ended.left.is_empty() {
            // Another call can build while this one verifies.
            drop(build.locks.take(|lock| lock.subject().slot().is_some()));
        } else {
            let until = match self.store.scope() {
                Scope::ThisHost => "the lock stays held until they end",
                Scope::AllHosts => {
                    "the lock is released when its lease runs out, even if they still run"
                }
            };
            tracing::warn!("the build command left {}: {until}", ended.left);
        }
        Ok(ended)
    }

    /// Runs the build command, which inherits the locks.
    fn run_command(&self, build: &RunningBuild, signals: &Signals) -> Result<Ended> {
        let RunningBuild { locks, inputs, .. } = build;
        log::building(&self.what(), &self.command.to_string());
        let expiry = locks.iter().find_map(|lock| lock.expiry());
        // The fence of the first tag's lock. The next holder of that lock gets a larger one,
        // whichever other locks it takes.
        let fence = locks.iter().next().and_then(|lock| lock.fence());
        let fence = fence.map(|fence| ("BUILDLOCK_FENCE", fence.to_string().into()));
        let forced = nested::forced_by_us(self.force, &self.tags);
        let label = inputs.as_ref().map(Fingerprint::label);
        let labelled = label.as_ref().map(|label| self.labelled(label)).transpose()?.flatten();
        let label = label.map(|label| ("BUILDLOCK_LABEL", label.into()));
        let request = child::RunRequest {
            command: labelled.as_ref().map_or(&self.command, |labelled| &labelled.command),
            environment: forced.into_iter().chain(fence).chain(label).collect(),
            lock_descriptors: locks.descriptors(),
            expiry: expiry.as_deref(),
            limit: self.build_timeout,
            kill_after: self.kill_after,
            open_files: self.open_files,
        };
        child::run(&request, signals).map_err(|why| diagnose::cannot_run(&self.command, why))
    }

    /// 6. Verifies: if the build command exited 0, every image must now be present.
    fn verify(
        self: &Arc<Self>,
        build: &RunningBuild,
        ended: &Ended,
        signals: &Signals,
    ) -> Result<Exit> {
        let failed = |exit, why| {
            log::failed(&self.what(), exit, Some(ended.elapsed), why);
            Ok(exit)
        };
        if ended.timed_out {
            let exit = Exit::Code(exit::TIMEOUT);
            return failed(
                exit,
                "the build command ran longer than --build-timeout, and was ended",
            );
        }
        if ended.lost {
            bail!(
                "the lock ran out during the build, so the build command was ended: another caller \
                 may be building now; call again"
            );
        }
        if ended.exit != Exit::SUCCESS {
            return failed(ended.exit, "the build command failed");
        }
        if let (true, Some(signal)) = (self.force, ended.interrupted) {
            // The image may be the one that was there before.
            let why = "the build command was interrupted, so its exit status 0 does not show that it \
                       built the image";
            return failed(Exit::Signal(signal), why);
        }
        if self.tags.is_empty() {
            log::built(&self.what(), ended.elapsed);
            return Ok(Exit::SUCCESS);
        }
        let (job, inputs) = (Arc::clone(self), build.inputs.clone());
        match signals.unless_interrupted(move || job.find_built_images(inputs.as_ref()))? {
            Work::Done(()) => {
                log::built(&self.what(), ended.elapsed);
                Ok(Exit::SUCCESS)
            }
            Work::Interrupted(signal) => {
                failed(Exit::Signal(signal), "interrupted before the image could be verified")
            }
        }
    }

    /// Fails unless every image is present after a build.
    fn find_built_images(&self, inputs: Option<&Fingerprint>) -> Result<()> {
        let missing = match inputs {
            Some(inputs) => self.verify_label(inputs),
            None => self.images.first_missing(&self.tags),
        };
        match missing {
            // Some engines do not say for which platforms an image is. Before a build, that means to
            // build. After a build that exited 0, there is no better answer.
            Ok(None | Some(Missing { why: Why::PlatformsNotShown(_), .. })) => Ok(()),
            Ok(Some(missing)) => {
                let why = diagnose::why_missing(&self.command, &missing, self.images.check());
                Err(anyhow!("the build command exited 0, but {why}"))
            }
            Err(error) => {
                Err(error.context("the build command exited 0, but the image cannot be verified"))
            }
        }
    }

    /// 7. Releases the locks. Waiters for the image need not wait for what is remembered of caches.
    fn release(
        self: &Arc<Self>,
        build: RunningBuild,
        ended: &Ended,
        exit: Result<Exit>,
        signals: &Signals,
    ) -> Result<Exit> {
        let RunningBuild { mut locks, started, at_fault, .. } = build;
        let caches = locks.take(|lock| lock.subject().cache().is_some());
        self.release_after(ended, locks);
        let interrupted = match exit {
            Ok(Exit::SUCCESS) => self.remember_warm_caches(&caches, started, &at_fault, signals),
            Ok(_) | Err(_) => None,
        };
        self.release_after(ended, caches);
        interrupted.map_or(exit, |signal| Ok(Exit::Signal(signal)))
    }

    /// Releases locks, unless something of the build still runs. A failure is left for waiters.
    fn release_after(&self, ended: &Ended, locks: HeldLocks) {
        if !ended.left.is_empty() {
            return locks.leave_to_heirs();
        }
        let failure = match ended.exit {
            Exit::Code(status @ 1..) if ended.by_itself() => {
                Some(FailedBuild { build: self.id.clone(), status })
            }
            _ => None,
        };
        locks.release(failure.as_ref());
    }
}
