//! What has to be built, and how: the command line, checked.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::Rlimit;

use super::named::NamedLocks;
use super::preflight::Builds;
use super::{nested, preflight, skip};
use crate::cache::Caches;
use crate::child;
use crate::cli::{BuildArgs, CommonArgs, OnFailure};
use crate::command::Command;
use crate::duration::Limit;
use crate::exit::Exit;
use crate::fingerprint::Inputs;
use crate::image::{Check, Images};
use crate::lock::place::Place;
use crate::lock::{Slots, Store};
use crate::log;
use crate::record::{Holder, Ourselves};
use crate::reference::Tag;
use crate::subject::Subject;
use crate::targets::Target;
use crate::targets::equivalent::Labelled;

/// What has to be built, and how.
pub(super) struct Job {
    /// In the order in which their locks are taken, each once. None if the command only runs under
    /// named locks.
    pub(super) tags: Vec<Tag>,
    /// What its locks protect, in the order in which they are taken.
    pub(super) subjects: Vec<Subject>,
    pub(super) named: NamedLocks,
    pub(super) caches: Caches,
    pub(super) command: Arc<Command>,
    pub(super) images: Images,
    /// The service or target that is built, if its label needs it.
    pub(super) target: Option<Target>,
    /// What the build command reads, with `--if-changed`.
    pub(super) inputs: Option<Inputs>,
    pub(super) store: Arc<dyn Store>,
    /// How many builds may run at once, if that is limited.
    pub(super) max_builds: Option<u16>,
    pub(super) timeout: Limit,
    pub(super) build_timeout: Option<Duration>,
    pub(super) kill_after: Option<Duration>,
    pub(super) conflict_exit_code: u8,
    pub(super) share_failure: bool,
    /// Whether the build command gets a second try when it may have failed because of a cache.
    pub(super) retry: bool,
    pub(super) force: bool,
    /// The limit on open files that the build command gets.
    pub(super) open_files: Rlimit,
    /// This build's random id.
    pub(super) id: String,
    /// The lock folder, if the locks are in a folder.
    pub(super) lock_folder: Option<PathBuf>,
}

impl Job {
    /// Validates the command line, as far as a skip needs it, raises the limit on open files, and
    /// opens the store, which may create the lock folder.
    ///
    /// # Errors
    /// The command line is wrong, the build command cannot be run, or the store cannot be used.
    pub(super) fn new(args: BuildArgs, common: &CommonArgs) -> Result<Self> {
        if args.command.is_empty() {
            bail!(
                "no build command; give it after '--', as in: buildlock -t env:abc -- docker build -t \
                 env:abc ."
            );
        }
        let command = Arc::new(Command::new(args.command));
        let named = NamedLocks::new(args.locks, args.shares)?;
        let has_images =
            named.is_empty() || !args.tags.is_empty() || preflight::builds_images(&command);
        let program = preflight::program(&command)?;
        let check = match has_images {
            true => args.check.unwrap_or(Check::Local),
            // Nothing is looked up.
            false => Check::Command(String::new()),
        };
        let mut builds = Builds::of(Vec::new());
        if has_images {
            preflight::check_that_it_only_builds(&command, &check)?;
            // With --inputs, the user says what is read, and sets the label.
            let needs_inputs = args.if_changed && args.inputs.is_empty();
            builds = preflight::builds(args.tags, &command, needs_inputs)?;
            preflight::check_that_it_ends_with_an_image(&command, &check)?;
        } else {
            preflight::warn_if_a_script_builds(&command);
        }
        preflight::warn_if_a_cache_has_several_writers(&command, &program, !args.caches.is_empty());
        let reads = builds.reads(&command)?;
        let program = preflight::program(&reads)?;
        let images = Images::of(&reads, &program, args.engine, check.clone())?;
        let Builds { mut tags, others: mut locked, target } = builds;
        let inputs = match args.if_changed && has_images {
            true => Some(Inputs::of(&reads, args.inputs, &tags, &images)?),
            false if !args.inputs.is_empty() && !has_images => {
                bail!("--inputs says what an image is built from, and this call has no image (-t)")
            }
            false if !args.inputs.is_empty() => {
                bail!("--inputs says what --if-changed looks at; give both")
            }
            false => None,
        };
        if images.are_podmans() {
            tags = tags.into_iter().map(Tag::in_podman).collect();
        }
        sort(&mut tags);
        locked.extend(tags.iter().cloned());
        sort(&mut locked);
        if check == Check::Registry {
            preflight::warn_if_no_registry_is_named(&tags);
        }
        let caches = Caches::new(args.caches, &command)?;

        // Without an image there is no build to count.
        let max_builds = args.max_builds.0.filter(|_| has_images);
        let slots = max_builds.map_or(0, Slots::locks_at_once);
        let open_files = child::make_room(locked.len() + named.len() + caches.len() + slots);
        let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let place = Place::of(common.store.as_deref(), &common.lock_dir)?;
        let lock_folder = place.folder().map(ToOwned::to_owned);
        if max_builds.is_some() && lock_folder.is_none() {
            bail!(
                "--max-builds counts the builds of one machine by locks in its lock folder, and \
                 --store names a store for many machines; leave out one of them (--max-builds none)"
            );
        }
        let images_of = locked.iter().map(Subject::from);
        let others = named.subjects().chain(caches.subjects());
        let subjects: Vec<Subject> = images_of.chain(others).collect();
        let ourselves = ourselves(Arc::clone(&command), id.clone());
        let store = place.open(ourselves, &subjects)?;
        Ok(Job {
            max_builds,
            force: has_images && args.force || nested::is_forced_by_ancestor(&tags, &*store),
            store,
            images,
            target,
            inputs,
            command,
            tags,
            subjects,
            named,
            caches,
            timeout: args.timeout,
            build_timeout: args.build_timeout.unless_zero(),
            kill_after: args.kill_after.unless_zero(),
            conflict_exit_code: args.conflict_exit_code,
            share_failure: args.on_failure == OnFailure::Share,
            retry: !args.no_retry,
            open_files,
            id,
            lock_folder,
        })
    }

    /// Returns what this call is about, for messages.
    pub(super) fn what(&self) -> log::What<'_> {
        log::What { tags: &self.tags, subjects: &self.subjects }
    }

    /// Returns this call as others read of it, without a lock and the time.
    pub(super) fn ourselves(&self) -> Holder {
        Holder::ourselves(self.command.to_string(), self.id.clone())
    }

    /// Returns the build command with a label for its image, if buildlock knows how it is given one.
    ///
    /// # Errors
    /// Compose's file cannot be written.
    pub(super) fn labelled(&self, label: &str) -> Result<Option<Labelled>> {
        match &self.target {
            Some(target) => target.with_label(&self.command, label).map(Some),
            None => Ok(self.command.with_label(label).map(Labelled::from)),
        }
    }

    /// Says that there is nothing to build, and does what else the build command would have done for
    /// its caller.
    ///
    /// # Errors
    /// The engine gave no certain answer, or the image's ID cannot be written.
    pub(super) fn skip(&self) -> Result<Exit> {
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
                 the registry was not asked for it; --check registry looks there"
            );
        }
        Ok(Exit::SUCCESS)
    }
}

/// Puts tags in the order in which their locks are taken, each once.
fn sort(tags: &mut Vec<Tag>) {
    tags.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    tags.dedup();
}

/// Returns this call as others read of it. That is found out only when it is needed: it may ask a
/// directory service.
fn ourselves(command: Arc<Command>, id: String) -> Ourselves {
    Arc::new(move || Holder::ourselves(command.to_string(), id.clone()))
}
