//! The main job: one build per tag, however many processes ask for it.
//!
//! Validate, look, lock, look again, build, verify, release. The postcondition is the product:
//! exit 0 means that the image exists.

mod recursion;
mod skip;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, anyhow, bail};
use rustix::process::Rlimit;

use crate::cache::{self, Cache};
use crate::child::{self, Ended, signals::Signals};
use crate::cli::{BuildArgs, CommonArgs, OnFailure};
use crate::command::Command;
use crate::duration::{Deadline, Limit};
use crate::exit::{self, Exit};
use crate::image::{Check, Images, Missing, Why};
use crate::lock::place::Place;
use crate::lock::{self, FailedBuild, Held, Holder, Key, LockMode, Patience, Store, Subject, Turn};
use crate::log;
use crate::reference::Tag;
use crate::validate;

/// Builds what is not there yet.
///
/// # Errors
/// buildlock itself failed; see [`exit::of`] for the status.
pub fn run(args: BuildArgs, common: &CommonArgs) -> Result<Exit> {
    let job = Job::validate(args, common)?;
    if !job.force {
        match job.images.first_missing(&job.tags)? {
            None => return job.skip(),
            Some(missing) => validate::why_untold(&missing),
        }
    }
    recursion::refuse(&job.command)?;
    validate::has_an_interpreter(&job.command)?;
    if let Some(folder) = &job.lock_folder {
        validate::lock_folder_is_shared(folder, &job.images);
    }
    let job = Arc::new(job);
    // Elsewhere, nobody sees that a signal ends us while we wait.
    let mut signals = job.store.is_remote().then(Signals::take_in).transpose()?;
    let exit = job.run(&mut signals);
    if !job.is_left.load(Ordering::Relaxed) {
        job.store.finish();
    }
    // One that is still pending ends us only now, when nothing is left to give back.
    drop(signals);
    exit
}

/// How often locks may be lost before anything is built: that many times in a row are no accident.
const LOST_MAX: usize = 100;

/// What is to be built, and how.
struct Job {
    /// In the order in which their locks are taken, each once.
    tags: Vec<Tag>,
    named_locks: Vec<String>,
    /// In the order in which their locks are taken, each once.
    caches: Arc<Vec<Cache>>,
    command: Arc<Command>,
    images: Arc<Images>,
    store: Arc<dyn Store>,
    timeout: Limit,
    build_timeout: Option<Duration>,
    kill_after: Option<Duration>,
    conflict_exit_code: u8,
    share_failure: bool,
    /// Whether COMMAND gets a second try when a cache may be what it failed of.
    retry: bool,
    force: bool,
    /// The limit on open files that COMMAND gets.
    open_files: Rlimit,
    /// This build's random id.
    id: String,
    /// Where locks are, if that is a folder.
    lock_folder: Option<PathBuf>,
    /// Whether something of COMMAND still runs that cannot be ended.
    is_left: AtomicBool,
}

/// A build under way.
struct Build {
    locks: Vec<Box<dyn Held>>,
    /// What is left of the time for waiting; no bound if none.
    left: Option<Duration>,
    /// When COMMAND was started last.
    started: SystemTime,
    /// The caches that were shared when COMMAND failed, if it was run again.
    at_fault: Vec<String>,
}

/// What comes of steps 3 and 4.
enum Taken {
    Locks(Vec<Box<dyn Held>>),
    /// There is nothing to build, or no time.
    Over(Exit),
}

enum Locked {
    Ours(Vec<Box<dyn Held>>),
    Present,
    Failed(u8),
    TimedOut,
}

impl Job {
    /// 1. Everything that can be wrong and be known before any waiting.
    fn validate(args: BuildArgs, common: &CommonArgs) -> Result<Self> {
        if args.command.is_empty() {
            bail!(
                "no COMMAND; give it behind '--', as in: buildlock -t env:abc -- docker build -t env:abc ."
            );
        }
        let command = Command::new(args.command);
        let mut tags = validate::tags(args.tags, &command)?;
        let program = validate::program(&command)?;
        let check = args.check.unwrap_or(Check::Local);
        validate::only_builds(&command, &check)?;
        validate::ends_with_an_image(&command, &check)?;
        validate::cache_has_one_writer(&command, &program, !args.caches.is_empty());
        let images = Images::of(&command, &program, args.engine, check.clone())?;
        if images.are_podmans() {
            tags = tags.into_iter().map(Tag::in_podman).collect();
        }
        tags.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        tags.dedup();
        if check == Check::Registry {
            validate::registries_are_named(&tags);
        }
        let mut named_locks = args.locks;
        named_locks.sort();
        named_locks.dedup();

        let caches = Cache::all(args.caches, &command)?;

        let open_files = child::make_room(tags.len() + named_locks.len() + caches.len());
        let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let place = Place::of(common.store.as_deref(), &common.lock_dir)?;
        let lock_folder = place.folder().map(Path::to_owned);
        let store = place.open(|| Holder::ourselves(command.to_string(), id.clone()))?;
        store.prepare(&Subject::from(&tags[0]))?;
        if let Some(name) = named_locks.first() {
            store.prepare(&Subject::Named(name.clone()))?;
        }
        if let Some(cache) = caches.first() {
            store.prepare(&cache.subject())?;
        }
        Ok(Job {
            force: args.force || is_forced_by_ancestor(&tags, &*store),
            images: Arc::new(images),
            command: Arc::new(command),
            tags,
            named_locks,
            caches: Arc::new(caches),
            store,
            timeout: args.timeout,
            build_timeout: args.build_timeout.unless_zero(),
            kill_after: args.kill_after.unless_zero(),
            conflict_exit_code: args.conflict_exit_code,
            share_failure: args.on_failure == OnFailure::Share,
            retry: !args.no_retry,
            open_files,
            id,
            lock_folder,
            is_left: AtomicBool::new(false),
        })
    }

    /// 3. to 7., where there is something to do.
    fn run(self: &Arc<Self>, signals: &mut Option<Signals>) -> Result<Exit> {
        let deadline = Deadline::after(self.timeout);
        let taken = match signals {
            None => self.take_locks(deadline)?,
            Some(signals) => {
                let job = Arc::clone(self);
                match signals.unless_ended(move || job.take_locks(deadline))? {
                    Ok(taken) => taken?,
                    Err(signal) => return Ok(Exit::Signal(signal)),
                }
            }
        };
        let locks = match taken {
            Taken::Locks(locks) => locks,
            Taken::Over(exit) => return Ok(exit),
        };
        let started = SystemTime::now();
        let mut build = Build { locks, left: deadline.left(), started, at_fault: Vec::new() };
        // From here on signals are ours to take.
        let signals: &Signals = match signals {
            Some(signals) => signals,
            none => match Signals::take_in() {
                Ok(taken_in) => none.insert(taken_in),
                Err(error) => {
                    release(build.locks, None);
                    return Err(error.into());
                }
            },
        };
        let ended = match self.build(&mut build, signals) {
            Ok(ended) => ended,
            Err(error) => {
                release(build.locks, None);
                return Err(error);
            }
        };
        let Build { locks, started, at_fault, .. } = build;
        locks.iter().filter_map(|lock| lock.lost()).for_each(|why| tracing::warn!("{why}"));
        if !ended.left.is_empty() {
            self.is_left.store(true, Ordering::Relaxed);
            let until = match self.store.is_remote() {
                true => "the lock stays held until its lease runs out, although they may go on",
                false => "the lock stays held until they end",
            };
            tracing::warn!("COMMAND left {}: {until}", ended.left);
        }
        let exit = self.verify(&ended, signals);
        let (caches, locks) = locks.into_iter().partition(|lock| lock.subject().cache().is_some());
        self.release(locks, &ended);
        let exit = exit.map(|exit| match exit {
            Exit::SUCCESS => self.remember_warm_caches(&caches, started, &at_fault, signals),
            exit => exit,
        });
        self.release(caches, &ended);
        exit
    }

    /// 3. and 4. The locks, if there is something to do under them.
    fn take_locks(&self, deadline: Deadline) -> Result<Taken> {
        let mut lost = 0;
        let mut waited_for = Vec::new();
        let skip = |waited_for: &[(Subject, Holder)]| {
            self.warn_of_other_builds("the image", waited_for);
            Ok(Taken::Over(self.skip()?))
        };
        loop {
            let locks = match self.lock(deadline, &mut waited_for)? {
                Locked::Ours(locks) => locks,
                Locked::Present => return skip(&waited_for),
                Locked::Failed(status) => {
                    self.warn_of_other_builds("the failure", &waited_for);
                    return Ok(Taken::Over(Exit::Code(status)));
                }
                Locked::TimedOut => return Ok(Taken::Over(Exit::Code(self.conflict_exit_code))),
            };
            match self.is_present() {
                Ok(false) => {}
                done => {
                    release(locks, None);
                    done?;
                    return skip(&waited_for);
                }
            }
            // One may have been lost while we waited for another, or for the engine.
            let Some(why) = locks.iter().find_map(|lock| lock.lost()) else {
                return Ok(Taken::Locks(locks));
            };
            release(locks, None);
            lost += 1;
            if lost == LOST_MAX {
                bail!("{why}");
            }
            tracing::warn!("{why}; locking again before anything is built");
        }
    }

    /// 2. and 4. Is there nothing to do?
    fn is_present(&self) -> Result<bool> {
        Ok(!self.force && self.images.first_missing(&self.tags)?.is_none())
    }

    /// What others may read of us, but for the lock and the time.
    fn ourselves(&self) -> Holder {
        Holder::ourselves(self.command.to_string(), self.id.clone())
    }

    /// Says that there is nothing to do, and does what the build command would have done for its
    /// caller beside building.
    fn skip(&self) -> Result<Exit> {
        let check = match self.images.check() {
            Check::Local => None,
            Check::Registry => Some("registry"),
            Check::Command(_) => Some("command"),
        };
        self.tags.iter().for_each(|tag| log::present(tag, check));
        skip::give_id(&self.command, &self.images, &self.tags)?;
        for output in self.command.build().iter().flat_map(|build| &build.side_outputs) {
            tracing::warn!("the build command is not run, so it does not write {output}");
        }
        if self.command.pushes() && *self.images.check() == Check::Local {
            tracing::warn!(
                "the build command is not run, so nothing is pushed: the image is on the engine, and \
                 whether the registry has it was not looked at; --check registry looks there"
            );
        }
        Ok(Exit::SUCCESS)
    }

    /// Warns where the build that was waited for, and has left `result`, ran another command than
    /// ours, or ran it somewhere else.
    fn warn_of_other_builds(&self, result: &str, waited_for: &[(Subject, Holder)]) {
        let ours = self.ourselves();
        // What holds a lock without a build is somebody's script.
        let is_other =
            |theirs: &Holder| theirs.build.is_some() && !theirs.builds_the_same_as(&ours);
        for (subject, theirs) in waited_for.iter().filter(|(_, theirs)| is_other(theirs)) {
            log::built_otherwise(subject, result, theirs, &ours);
        }
    }

    /// 3. Every tag's lock in sorted order, then the named ones, then those of caches, within one
    ///    deadline.
    fn lock(&self, deadline: Deadline, waited_for: &mut Vec<(Subject, Holder)>) -> Result<Locked> {
        let images = self.tags.iter().map(Subject::from);
        let named = self.named_locks.iter().cloned().map(Subject::Named);
        let caches = self.caches.iter().map(Cache::subject);
        let subjects: Vec<Subject> = images.chain(named).chain(caches).collect();
        // What is wrong with the last is not to be found out after waiting for the first.
        self.caches
            .iter()
            .try_for_each(|cache| cache.read(&self.images, self.store.is_remote()))?;
        for subject in &subjects {
            self.store.check(&Key::new(subject.clone()), deadline)?;
        }
        let mut ours: Vec<Box<dyn Held>> = Vec::new();
        for subject in subjects {
            let is_image = subject.tag().is_some();
            if !is_image {
                match self.is_present() {
                    Ok(false) => {}
                    // Nothing to wait for any more.
                    done => {
                        release(ours, None);
                        return done.map(|_| Locked::Present);
                    }
                }
            }
            let mut settled = || self.is_present();
            let patience = Patience {
                deadline,
                // Who has a named lock builds something else.
                share_failure: self.share_failure && is_image,
                settled: (!self.force).then_some(&mut settled),
            };
            let cache = self.caches.iter().find(|cache| subject.cache() == Some(cache.id()));
            let turn = match cache {
                Some(cache) => take_cache(&self.store, &self.images, cache, deadline, false),
                None => lock::take(&self.store, subject.clone(), patience).map(|(turn, holder)| {
                    waited_for.extend(holder.filter(|_| is_image).map(|it| (subject, it)));
                    turn
                }),
            };
            let without = match turn {
                Ok(Turn::Held(lock)) => {
                    lock.record(&self.ourselves());
                    ours.push(lock);
                    continue;
                }
                Ok(Turn::Settled) => Ok(Locked::Present),
                Ok(Turn::Failed(status)) => {
                    log::failed(
                        &self.tags,
                        Exit::Code(status),
                        None,
                        "the build that was waited for failed",
                    );
                    Ok(Locked::Failed(status))
                }
                Ok(Turn::TimedOut) => Ok(Locked::TimedOut),
                Err(error) => Err(error),
            };
            release(ours, None);
            return without;
        }
        Ok(Locked::Ours(ours))
    }

    /// 5. The build command, holding the locks.
    fn build(&self, build: &mut Build, signals: &Signals) -> Result<Ended> {
        let ended = self.run_command(&build.locks, signals)?;
        if self.may_have_failed_of_a_cache(&ended, &build.locks) {
            return self.run_again_alone(build, ended, signals);
        }
        Ok(ended)
    }

    fn run_command(&self, locks: &[Box<dyn Held>], signals: &Signals) -> Result<Ended> {
        log::building(&self.tags, &self.command.to_string());
        let expiry = locks.iter().find_map(|lock| lock.expiry());
        // The first tag's: whoever has it after us gets a larger one, whatever else was waited for.
        let fence = locks.first().and_then(|lock| lock.fence());
        let fence = fence.map(|fence| ("BUILDLOCK_FENCE", fence.to_string().into()));
        let job = child::Job {
            command: &self.command,
            environment: forced_by_us(self.force, &self.tags).into_iter().chain(fence).collect(),
            locks: locks.iter().flat_map(|lock| lock.descriptors()).collect(),
            expiry: expiry.as_deref(),
            limit: self.build_timeout,
            kill_after: self.kill_after,
            open_files: self.open_files,
        };
        child::run(&job, signals).map_err(|why| validate::cannot_run(&self.command, why))
    }

    /// That a cache is warm is only remembered, and builders lose caches. But what a first run has
    /// read of its stdin a second one would miss.
    fn may_have_failed_of_a_cache(&self, ended: &Ended, locks: &[Box<dyn Held>]) -> bool {
        let is_shared = |cache: &Cache| {
            let lock = locks.iter().find(|lock| lock.subject().cache() == Some(cache.id()));
            lock.is_some_and(|lock| lock.mode() == LockMode::Shared)
        };
        // What a shell says of a command that a signal ended: 128+N, and there are 64 signals.
        let ended_within_a_shell = matches!(ended.exit, Exit::Code(129..=192));
        let may_have = self.retry
            && ended.by_itself()
            && !ended_within_a_shell
            && ended.exit != Exit::SUCCESS
            && self.caches.iter().any(is_shared);
        let may_be_run_again =
            || !self.command.may_read_stdin() || child::stdin_can_be_read_again();
        if may_have && !may_be_run_again() {
            tracing::warn!(
                "COMMAND failed with a shared cache: {}; it is not run again, for it may have read its \
                 stdin (give it another, as in </dev/null)",
                ended.exit
            );
            return false;
        }
        may_have
    }

    /// COMMAND once more, with the caches for itself, if they can be had within what is left of the
    /// time for waiting. Otherwise its failure counts.
    fn run_again_alone(&self, build: &mut Build, ended: Ended, signals: &Signals) -> Result<Ended> {
        tracing::warn!(
            "COMMAND failed with a shared cache: {}; running it once more, with the cache for itself",
            ended.exit
        );
        let is_cache = |lock: &mut Box<dyn Held>| lock.subject().cache().is_some();
        let had: Vec<_> = build.locks.extract_if(.., is_cache).collect();
        let shared = had.iter().filter(|lock| lock.mode() == LockMode::Shared);
        let shared: Vec<String> =
            shared.filter_map(|lock| lock.subject().cache().map(str::to_owned)).collect();
        release(had, None);
        let deadline = Deadline::within(build.left);
        let (store, images) = (Arc::clone(&self.store), Arc::clone(&self.images));
        let caches = Arc::clone(&self.caches);
        let take_all = move || -> Result<Option<Vec<Box<dyn Held>>>> {
            let mut ours = Vec::new();
            for cache in caches.iter() {
                match take_cache(&store, &images, cache, deadline, true)? {
                    Turn::Held(lock) => ours.push(lock),
                    _ => {
                        release(ours, None);
                        return Ok(None);
                    }
                }
            }
            Ok(Some(ours))
        };
        match signals.unless_ended(take_all).unwrap_or_else(|error| Ok(Err(error.into()))) {
            Ok(Ok(Some(caches))) => {
                caches.iter().for_each(|lock| lock.record(&self.ourselves()));
                build.locks.extend(caches);
                build.at_fault = shared;
                build.started = SystemTime::now();
                self.run_command(&build.locks, signals)
            }
            Ok(Ok(None)) => Ok(ended),
            Ok(Err(error)) => {
                tracing::warn!("{error:#}; so its failure counts");
                Ok(ended)
            }
            Err(signal) => {
                Ok(Ended { exit: Exit::Signal(signal), interrupted: Some(signal), ..ended })
            }
        }
    }

    /// A cache that a build has had for itself, and succeeded with, is warm. Whatever else was
    /// remembered of those `at_fault` when it failed beside others was wrong.
    fn remember_warm_caches(
        &self,
        locks: &[Box<dyn Held>],
        started: SystemTime,
        at_fault: &[String],
        signals: &Signals,
    ) -> Exit {
        let had_alone = |cache: &&Cache| {
            let lock = locks.iter().find(|lock| lock.subject().cache() == Some(cache.id()));
            lock.is_some_and(|lock| lock.mode() == LockMode::Exclusive) && cache.has_files()
        };
        let warm: Vec<&Cache> = self.caches.iter().filter(had_alone).collect();
        if warm.is_empty() {
            return Exit::SUCCESS;
        }
        let images = Arc::clone(&self.images);
        let ask = move || cache::mounts_used_since(&images, started);
        let (mounts, exit) = match signals.unless_ended(ask) {
            Ok(Err(signal)) => (None, Exit::Signal(signal)),
            Ok(Ok(mounts)) => (mounts, Exit::SUCCESS),
            // There is no thread to be had for it.
            Err(_) => (None, Exit::SUCCESS),
        };
        for cache in warm {
            if at_fault.iter().any(|id| id == cache.id()) {
                cache.forget(&*self.store);
            }
            cache.remember(&*self.store, mounts.as_deref());
        }
        exit
    }

    /// 6. What COMMAND's end is worth: a 0 must have made every image.
    fn verify(&self, ended: &Ended, signals: &Signals) -> Result<Exit> {
        let failed = |exit, why| {
            log::failed(&self.tags, exit, Some(ended.elapsed), why);
            Ok(exit)
        };
        if ended.timed_out {
            return failed(
                Exit::Code(exit::TIMEOUT),
                "COMMAND ran longer than --build-timeout, and was ended",
            );
        }
        if ended.lost {
            bail!(
                "the lock ran out while COMMAND ran, which was ended: somebody else may build now"
            );
        }
        if ended.exit != Exit::SUCCESS {
            return failed(ended.exit, "COMMAND failed");
        }
        if let (true, Some(signal)) = (self.force, ended.interrupted) {
            // The image may be the one that was there before.
            return failed(
                Exit::Signal(signal),
                "COMMAND was interrupted; that it ended with 0 proves nothing",
            );
        }
        let (images, tags) = (Arc::clone(&self.images), self.tags.clone());
        let command = Arc::clone(&self.command);
        let look = move || match images.first_missing(&tags) {
            Ok(None | Some(Missing { why: Why::Untold(_), .. })) => Ok(()),
            Ok(Some(missing)) => {
                let why = validate::why_missing(&command, &missing, images.check());
                Err(anyhow!("COMMAND ended with 0, but {why}"))
            }
            Err(error) => Err(error.context("COMMAND ended with 0, but that proves nothing")),
        };
        match signals.unless_ended(look)? {
            Ok(found) => found?,
            Err(signal) => {
                return failed(
                    Exit::Signal(signal),
                    "interrupted before the image could be verified",
                );
            }
        }
        log::built(&self.tags, ended.elapsed);
        Ok(Exit::SUCCESS)
    }

    /// 7. The locks are free again, unless something is still building.
    fn release(&self, locks: Vec<Box<dyn Held>>, ended: &Ended) {
        if !ended.left.is_empty() {
            // Closed, not unlocked: their copies, or those of whoever watches them, keep it.
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

/// How old what the engine said of a cache may be when its lock is had. Who has waited longer asks
/// again.
const NEWS_MAX: Duration = Duration::from_secs(1);

/// Takes a cache's lock: shared if it is warm, unless it is to be `alone` whatever is known of it.
fn take_cache(
    store: &Arc<dyn Store>,
    images: &Images,
    cache: &Cache,
    deadline: Deadline,
    alone: bool,
) -> Result<Turn> {
    let start = Instant::now();
    loop {
        if !alone {
            cache.ask(&**store, images, deadline.left());
        }
        let asked = Instant::now();
        let mut mode = || Ok(if alone { LockMode::Exclusive } else { cache.mode(&**store) });
        let (turn, ancestor_shares) =
            lock::take_in_turn(store, cache.subject(), deadline, &mut mode)?;
        let Turn::Held(lock) = turn else { return Ok(turn) };
        let shared = lock.mode() == LockMode::Shared;
        if shared && asked.elapsed() > NEWS_MAX {
            // Somebody may have pruned it meanwhile.
            cache.ask(&**store, images, deadline.left());
            if cache.mode(&**store) == LockMode::Exclusive {
                lock.release(None);
                continue;
            }
        }
        if ancestor_shares && !shared {
            tracing::warn!(
                "cache {}: an outer call shares it, so others may write it beside COMMAND; have the \
                 outer call take it as this one does",
                cache.id()
            );
            cache.note_sharing_ancestor();
        }
        let why = match (shared, alone, cache.can_be_shared()) {
            (true, ..) => format!("shared (cache={} warm)", cache.id()),
            (_, true, _) => format!("alone, to try again (cache={})", cache.id()),
            (_, _, true) if cache.has_lost_mounts() => format!(
                "alone, until it is warm (cache={} cold: the engine has lost its mounts)",
                cache.id()
            ),
            (_, _, true) => format!("alone, until it is warm (cache={} cold)", cache.id()),
            (_, _, false) if cache.is_emptied() => {
                format!("alone, for --no-cache empties it (cache={})", cache.id())
            }
            (_, _, false) => format!("alone (cache={})", cache.id()),
        };
        log::acquired_cache(lock.subject(), shared, &why, start.elapsed());
        if cache.is_emptied() {
            cache.forget(&**store);
        }
        if !shared && cache.has_files() {
            cache.note_forgotten(&**store);
        }
        return Ok(Turn::Held(lock));
    }
}

/// The last one taken goes first.
fn release(locks: Vec<Box<dyn Held>>, failure: Option<&FailedBuild>) {
    for lock in locks.into_iter().rev() {
        let subject = lock.subject().clone();
        lock.release(failure);
        log::released(&subject);
    }
}

/// Tags that an outer call builds with `--force`, for nested calls; one a word. It counts only
/// while the kernel says that an ancestor holds the tag's lock: a variable outlives its lock in
/// daemons.
const FORCED: &str = "BUILDLOCK_FORCED_TAGS";

fn forced_by_us(force: bool, tags: &[Tag]) -> Option<(&'static str, OsString)> {
    /// The kernel takes 128 KiB in one variable (execve(2), MAX_ARG_STRLEN).
    const LONGEST: usize = 120 << 10;
    let outer = std::env::var(FORCED).unwrap_or_default();
    let ours = tags.iter().map(Tag::as_str);
    let all = outer.split_whitespace().chain(ours).collect::<Vec<_>>().join(" ");
    if force && all.len() > LONGEST {
        tracing::warn!("too many tags for --force to reach nested calls");
    }
    (force && all.len() <= LONGEST).then(|| (FORCED, all.into()))
}

fn is_forced_by_ancestor(tags: &[Tag], store: &dyn Store) -> bool {
    let Ok(forced) = std::env::var(FORCED) else { return false };
    tags.iter()
        .filter(|tag| forced.split(' ').any(|it| it == tag.as_str()))
        .any(|tag| store.held_by_ancestors_as(&Key::new(tag.into())).is_some())
}
