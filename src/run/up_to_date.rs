//! `--if-changed`: an image counts only if it was built from what the build command would read now.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::RunningBuild;
use super::job::Job;
use super::look::Look;
use crate::child::signals::{Signals, Work};
use crate::child::{self, Ended};
use crate::exit::Exit;
use crate::fingerprint::note::Ledger;
use crate::fingerprint::{Change, Fingerprint};
use crate::image::{Missing, UpToDate, Why};
use crate::lock::Key;

impl Job {
    /// Returns the fingerprint of the inputs as they are now, or none without `--if-changed`.
    ///
    /// # Errors
    /// An input cannot be read, or the engine gave no certain answer about a base image.
    pub(super) fn fingerprint(&self) -> Result<Option<Fingerprint>> {
        self.inputs.as_ref().map(|inputs| inputs.fingerprint(&self.images)).transpose()
    }

    /// Returns the notes about images.
    fn ledger(&self) -> Ledger<'_> {
        // As the store has it, with all links resolved.
        let lock = self.tags.first().map(|tag| self.store.location(&Key::new(tag.into())));
        let real = lock.and_then(|lock| Some(lock.parent()?.parent()?.to_owned()));
        let lock_folder = self.lock_folder.as_ref().and(real);
        Ledger { shared: &*self.store, lock_folder }
    }

    /// Looks whether every image was built from the inputs as they are now.
    ///
    /// # Errors
    /// The engine or the registry gave no certain answer, or what is verified could not be noted.
    pub(super) fn look_for_inputs(&self, now: Fingerprint) -> Result<Look<'_>> {
        self.ledger().check()?;
        let missing = match now.never_skipped() {
            Some(reason) => {
                Some(Missing { tag: &self.tags[0], why: Why::NeverSkipped(reason.to_owned()) })
            }
            None => self.first_not_built_from(&now)?,
        };
        Ok(match missing {
            None => Look::Present,
            why => Look::to_build(why, Some(now)),
        })
    }

    fn first_not_built_from(&self, now: &Fingerprint) -> Result<Option<Missing<'_>>> {
        let id = match self.images.first_outdated(&self.tags, now.value())? {
            UpToDate::Yes { id } => id,
            UpToDate::No(Missing { tag, why: Why::Outdated(label) }) => {
                let difference = now.difference(label.as_deref());
                return Ok(Some(Missing { tag, why: Why::Outdated(Some(difference)) }));
            }
            UpToDate::No(missing) => return Ok(Some(missing)),
        };
        let ledger = self.ledger();
        let distrusted = |tag| {
            let why = ledger.distrust(tag, now.value(), id.as_deref())?;
            Some(Missing { tag, why })
        };
        Ok(self.tags.iter().find_map(distrusted))
    }

    /// Notes that images with this fingerprint count for nothing until this build is verified.
    pub(super) fn distrust_images(&self, inputs: &Fingerprint) {
        for tag in &self.tags {
            if let Err(error) = self.ledger().begin(tag, inputs.value()) {
                tracing::warn!(
                    "{tag}: cannot note that its image is not verified yet, so after a crash it may \
                     count as up to date: {error:#}"
                );
            }
        }
    }

    /// Runs the build command once more if its inputs have changed since it began: its image may be
    /// a mixture.
    ///
    /// # Errors
    /// The inputs have changed again, or cannot be read any more.
    pub(super) fn build_changed_inputs(
        self: &Arc<Self>,
        build: &mut RunningBuild,
        mut ended: Ended,
        signals: &Signals,
    ) -> Result<Ended> {
        for is_last in [false, true] {
            let Some(before) = &build.inputs else { break };
            if ended.exit != Exit::SUCCESS || !ended.by_itself() {
                break;
            }
            let job = Arc::clone(self);
            let now = match signals.unless_interrupted(move || job.fingerprint())? {
                Work::Done(now) => now,
                Work::Interrupted(signal) => {
                    let (exit, interrupted) = (Exit::Signal(signal), Some(signal));
                    return Ok(Ended { exit, interrupted, ..ended });
                }
            };
            let change = now.as_ref().and_then(|now| before.change(now));
            let (Some(change), Some(now)) = (change, now) else { break };
            if is_last && change == Change::Folders {
                // Something that does not count comes and goes there all the time.
                build.inputs.iter_mut().for_each(Fingerprint::folders_changed);
                break;
            }
            if is_last {
                bail!(
                    "the inputs changed while the build command ran ({}), and again while it ran \
                     once more, so the image may be a mixture; call again when they are settled",
                    before.what_changed(&now)
                );
            }
            if self.command.may_read_stdin() && !child::stdin_can_be_read_again() {
                bail!(
                    "the inputs changed while the build command ran ({}), so the image may be a \
                     mixture; the build command is not run again, because it may have read its stdin \
                     (give it another, as in </dev/null)",
                    before.what_changed(&now)
                );
            }
            tracing::warn!(
                "the inputs changed while the build command ran ({}); running it once more",
                before.what_changed(&now)
            );
            self.distrust_images(&now);
            build.inputs = Some(now);
            ended = self.run_command(build, signals)?;
        }
        Ok(ended)
    }

    /// Checks that each image carries the fingerprint of what was built, and notes that it does.
    ///
    /// # Errors
    /// An image carries another one, or none, or the engine gave no certain answer.
    pub(super) fn verify_label(&self, inputs: &Fingerprint) -> Result<Option<Missing<'_>>> {
        let id = match self.images.first_outdated(&self.tags, inputs.value())? {
            UpToDate::Yes { id } => id,
            // What the engine does not tell is no reason to doubt a build that exited 0.
            UpToDate::No(Missing { why: Why::PlatformsNotShown(_), .. }) => None,
            UpToDate::No(missing) => return Ok(Some(missing)),
        };
        if inputs.is_exchangeable() {
            // What the build command has read may have been something else.
            return Ok(None);
        }
        for tag in &self.tags {
            let noted = self.ledger().verified(tag, inputs.value(), id.as_deref());
            if let Err(error) = noted {
                tracing::warn!("{tag}: cannot note that its image was verified: {error:#}");
            }
        }
        inputs.remember_files();
        Ok(None)
    }
}
