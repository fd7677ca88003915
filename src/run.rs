//! The main job: one build per tag, however many processes ask for it.
//!
//! Validate, look, lock, look again, build, verify, release. The postcondition is the product:
//! exit 0 means that the image exists.

mod builder;
mod caches;
mod diagnose;
mod job;
mod locking;
mod nested;
mod preflight;
mod recursion;
mod skip;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};

use self::job::Job;
use crate::child::signals::{Signals, Work};
use crate::child::{self, Ended};
use crate::cli::{BuildArgs, CommonArgs};
use crate::duration::Deadline;
use crate::exit::{self, Exit};
use crate::image::{Missing, Why};
use crate::lock::{Held, Scope, Turn, release};
use crate::log;
use crate::record::FailedBuild;
use crate::subject::Subject;

/// Builds what is not there yet.
///
/// # Errors
/// buildlock itself failed; see [`exit::of`] for the status.
pub fn run(args: BuildArgs, common: &CommonArgs) -> Result<Exit> {
    let job = Job::validate(args, common)?;
    if job.look()? {
        return job.skip();
    }
    job.validate_before_waiting()?;
    let job = Arc::new(job);
    // When a signal ends a process that waits, the kernel gives back only what it holds on this
    // host.
    let must_give_back = job.store.scope() == Scope::AllHosts;
    let mut signals = must_give_back.then(Signals::take_in).transpose()?;
    let end = job.lock_and_build(&mut signals);
    if !matches!(end, Ok(End { has_survivors: true, .. })) {
        job.store.close();
    }
    // A signal that is still pending takes effect only now, when nothing is left to give back.
    drop(signals);
    end?.exit
}

/// How a job ended.
struct End {
    exit: Result<Exit>,
    /// Whether a part of the build command that cannot be ended still runs and keeps the locks.
    has_survivors: bool,
}

impl From<Exit> for End {
    fn from(exit: Exit) -> Self {
        End { exit: Ok(exit), has_survivors: false }
    }
}

/// A build under way.
struct Build {
    locks: Vec<Box<dyn Held>>,
    /// What is left of the time for waiting; no limit if `None`.
    left: Option<Duration>,
    /// When the build command was last started.
    started: SystemTime,
    /// The caches that were shared when the build command failed, if it was run again.
    at_fault: Vec<Subject>,
}

impl Job {
    /// 1. Validate what a skip does not need.
    fn validate_before_waiting(&self) -> Result<()> {
        recursion::refuse(&self.command)?;
        preflight::has_an_interpreter(&self.command)?;
        if let Some(folder) = &self.lock_folder {
            preflight::lock_folder_is_shared(folder, &self.images);
        }
        Ok(())
    }

    /// 2. Look whether every image is present. This takes no lock.
    fn look(&self) -> Result<bool> {
        if self.force {
            return Ok(false);
        }
        let missing = self.images.first_missing(&self.tags)?;
        missing.iter().for_each(diagnose::why_untold);
        Ok(missing.is_none())
    }

    /// 3. to 7.
    fn lock_and_build(self: &Arc<Self>, signals: &mut Option<Signals>) -> Result<End> {
        let deadline = Deadline::after(self.timeout);
        let job = Arc::clone(self);
        let lock = move || job.lock_and_look_again(deadline);
        let turn = match signals {
            None => lock()?,
            Some(signals) => match signals.unless_interrupted(lock)? {
                Work::Done(turn) => turn,
                Work::Interrupted(signal) => return Ok(Exit::Signal(signal).into()),
            },
        };
        let locks = match turn {
            Turn::Held(locks) => locks,
            Turn::Settled => return Ok(self.skip()?.into()),
            Turn::Failed(status) => return Ok(Exit::Code(status).into()),
            Turn::TimedOut => return Ok(Exit::Code(self.conflict_exit_code).into()),
        };
        let (left, started) = (deadline.left(), SystemTime::now());
        let mut build = Build { locks, left, started, at_fault: Vec::new() };
        // From here on, signals are for us to handle.
        let built =
            take_in(signals).and_then(|signals| Ok((self.build(&mut build, signals)?, signals)));
        match built {
            Ok((ended, signals)) => Ok(self.verify_and_release(build, &ended, signals)),
            Err(error) => {
                release(build.locks, None);
                Err(error)
            }
        }
    }

    /// 3. Lock each tag, in sorted order, within one deadline.
    /// 4. Look again.
    fn lock_and_look_again(&self, deadline: Deadline) -> Result<Turn<Vec<Box<dyn Held>>>> {
        /// That many locks lost in a row, before anything is built, are not an accident.
        const LOST_MAX: usize = 100;
        let mut lost = 0;
        let mut waited_for = Vec::new();
        loop {
            let turn = self.lock(deadline, &mut waited_for)?;
            let turn = self.unless_present(turn)?;
            match &turn {
                Turn::Settled => self.warn_of_other_builds("the image", &waited_for),
                Turn::Failed(_) => self.warn_of_other_builds("the failure", &waited_for),
                Turn::Held(_) | Turn::TimedOut => {}
            }
            let Turn::Held(locks) = turn else { return Ok(turn) };
            // One may have been lost while we waited for another, or for the engine.
            let Some(why) = locks.iter().find_map(|lock| lock.lost()) else {
                return Ok(Turn::Held(locks));
            };
            release(locks, None);
            lost += 1;
            if lost == LOST_MAX {
                bail!("{why}");
            }
            tracing::warn!("{why}; locking again before anything is built");
        }
    }

    /// 5. Run the build command while holding the locks; once more if a shared cache may have made
    ///    it fail.
    fn build(self: &Arc<Self>, build: &mut Build, signals: &Signals) -> Result<Ended> {
        let ended = self.run_command(&build.locks, signals)?;
        match self.may_have_failed_of_a_cache(&ended, &build.locks) {
            true => self.run_again_alone(build, ended, signals),
            false => Ok(ended),
        }
    }

    fn run_command(&self, locks: &[Box<dyn Held>], signals: &Signals) -> Result<Ended> {
        log::building(&self.tags, &self.command.to_string());
        let expiry = locks.iter().find_map(|lock| lock.expiry());
        // The first tag's: the next holder gets a larger number, whatever else was waited for.
        let fence = locks.first().and_then(|lock| lock.fence());
        let fence = fence.map(|fence| ("BUILDLOCK_FENCE", fence.to_string().into()));
        let forced = nested::forced_by_us(self.force, &self.tags);
        let job = child::Job {
            command: &self.command,
            environment: forced.into_iter().chain(fence).collect(),
            locks: locks.iter().flat_map(|lock| lock.descriptors()).collect(),
            expiry: expiry.as_deref(),
            limit: self.build_timeout,
            kill_after: self.kill_after,
            open_files: self.open_files,
        };
        child::run(&job, signals).map_err(|why| diagnose::cannot_run(&self.command, why))
    }

    fn verify_and_release(self: &Arc<Self>, build: Build, ended: &Ended, signals: &Signals) -> End {
        let Build { locks, started, at_fault, .. } = build;
        locks.iter().filter_map(|lock| lock.lost()).for_each(|why| tracing::warn!("{why}"));
        let has_survivors = !ended.left.is_empty();
        if has_survivors {
            let until = match self.store.scope() {
                Scope::ThisHost => "the lock stays held until they end",
                Scope::AllHosts => {
                    "the lock stays held until its lease runs out, although they may go on"
                }
            };
            tracing::warn!("the build command left {}: {until}", ended.left);
        }
        let verified = self.verify(ended, signals);
        let (caches, locks): (Vec<_>, _) =
            locks.into_iter().partition(|lock| lock.subject().cache().is_some());
        self.release(locks, ended);
        let exit = verified.map(|exit| match exit {
            Exit::SUCCESS => self.remember_warm_caches(&caches, started, &at_fault, signals),
            exit => exit,
        });
        self.release(caches, ended);
        End { exit, has_survivors }
    }

    /// 6. Verify: if the build command exited 0, every image must now be present.
    fn verify(self: &Arc<Self>, ended: &Ended, signals: &Signals) -> Result<Exit> {
        let failed = |exit, why| {
            log::failed(&self.tags, exit, Some(ended.elapsed), why);
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
                "the lock ran out while the build command ran, which was ended: another caller may \
                 be building now"
            );
        }
        if ended.exit != Exit::SUCCESS {
            return failed(ended.exit, "the build command failed");
        }
        if let (true, Some(signal)) = (self.force, ended.interrupted) {
            // The image may be the one that was there before.
            let why = "the build command was interrupted; that it exited 0 proves nothing";
            return failed(Exit::Signal(signal), why);
        }
        let job = Arc::clone(self);
        let look = move || match job.images.first_missing(&job.tags) {
            Ok(None | Some(Missing { why: Why::Untold(_), .. })) => Ok(()),
            Ok(Some(missing)) => {
                let why = diagnose::why_missing(&job.command, &missing, job.images.check());
                Err(anyhow!("the build command exited 0, but {why}"))
            }
            Err(error) => Err(error.context("the build command exited 0, but that proves nothing")),
        };
        match signals.unless_interrupted(look)? {
            Work::Done(()) => {
                log::built(&self.tags, ended.elapsed);
                Ok(Exit::SUCCESS)
            }
            Work::Interrupted(signal) => {
                failed(Exit::Signal(signal), "interrupted before the image could be verified")
            }
        }
    }

    /// 7. Release, unless something is still building.
    fn release(&self, locks: Vec<Box<dyn Held>>, ended: &Ended) {
        if !ended.left.is_empty() {
            // Closed, not unlocked: the copies of what still runs keep the lock.
            return drop(locks);
        }
        let failure = match ended.exit {
            Exit::Code(status @ 1..) if ended.by_itself() => {
                Some(FailedBuild { build: self.id.clone(), status })
            }
            _ => None,
        };
        release(locks, failure.as_ref());
    }
}

/// Returns the signals that arrive from now on.
fn take_in(signals: &mut Option<Signals>) -> Result<&Signals> {
    if signals.is_none() {
        *signals = Some(Signals::take_in()?);
    }
    signals.as_ref().ok_or_else(|| anyhow!("signals cannot be taken in"))
}
