//! What a build command reads, and the fingerprint of it all.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};

use super::bases::Finder;
use super::known::Known;
use super::moment::Fingerprint;
use super::stamp::Time;
use super::sum::{Detail, Sum};
use super::value::Kind;
use crate::command::Command;
use crate::image::{Check, Images};
use crate::reference::Tag;

/// What a build command reads.
#[derive(Debug)]
pub(crate) struct Inputs {
    command: Arc<Command>,
    /// None if it is not known what the command reads.
    known: Option<Known>,
    /// The files and folders that `--inputs` names.
    paths: Vec<PathBuf>,
    tags: Vec<Tag>,
}

impl Inputs {
    /// Finds out what `command` reads, beside the `paths` of `--inputs`.
    ///
    /// # Errors
    /// That cannot be known.
    pub(crate) fn of(
        command: &Arc<Command>,
        paths: Vec<PathBuf>,
        tags: &[Tag],
        images: &Images,
    ) -> Result<Self> {
        if let Check::Command(_) = images.check() {
            bail!(
                "--if-changed needs images that have a label, so --check must be local or registry"
            );
        }
        let known = match (command.build(), command.client()) {
            (Some(_), Some(client)) => Some(Known::of(command, client, images)?),
            _ if paths.is_empty() => bail!(
                "--if-changed: buildlock cannot tell what this build command reads; name it with \
                 --inputs PATH, and have the command set the label: docker build --label \
                 \"$BUILDLOCK_LABEL\" ..."
            ),
            _ => None,
        };
        let inputs = Inputs { command: Arc::clone(command), known, paths, tags: tags.to_vec() };
        inputs.check_paths()?;
        Ok(inputs)
    }

    fn check_paths(&self) -> Result<()> {
        for path in &self.paths {
            std::fs::metadata(path).with_context(|| format!("--inputs {}", path.display()))?;
        }
        Ok(())
    }

    /// Computes the fingerprint of the inputs as they are now.
    ///
    /// # Errors
    /// An input cannot be read, or the engine gave no certain answer.
    pub(crate) fn fingerprint(&self, images: &Images) -> Result<Fingerprint> {
        /// More than the kernel's clock for files lags behind, in all its configurations.
        const TICK: Duration = Duration::from_millis(12);
        let started = now();
        let mut finder = Finder::new(images);
        let (fingerprint, _) = self.compute(images, &mut finder, false)?;
        // What was changed in this very tick of the clock can change again without a trace.
        if fingerprint.newest().is_none_or(|newest| newest < started) {
            return Ok(fingerprint);
        }
        std::thread::sleep(TICK);
        Ok(self.compute(images, &mut finder, false)?.0)
    }

    /// Computes the fingerprint of the inputs as they are now, and returns what went into it.
    ///
    /// # Errors
    /// As for [`Inputs::fingerprint`].
    pub(crate) fn explain(&self, images: &Images) -> Result<(Fingerprint, Vec<Detail>)> {
        self.compute(images, &mut Finder::new(images), true)
    }

    fn compute(
        &self,
        images: &Images,
        finder: &mut Finder<'_>,
        with_details: bool,
    ) -> Result<(Fingerprint, Vec<Detail>)> {
        let written = self.known.as_ref().map_or_else(Vec::new, Known::written_files);
        let mut sum = Sum::new(with_details, written);
        match &self.known {
            Some(known) => known.add_to(&mut sum, images, finder, &self.tags)?,
            None => {
                let mut words = vec![self.command.program()];
                words.extend(self.command.arguments().iter().map(|it| it.as_os_str()));
                for word in words {
                    sum.add(Kind::Options, word.as_encoded_bytes());
                }
                sum.detail(Kind::Options, || self.command.to_string());
                sum.add_platform("unknown", images)?;
            }
        }
        for path in &self.paths {
            sum.add_path(Kind::Paths, path, "--inputs")?;
        }
        if self.command.pushes() && *images.check() == Check::Local {
            sum.never(
                "the build command pushes, and a push that failed leaves an image on the engine \
                 (--check registry looks in the registry)"
                    .to_owned(),
            );
        }
        Ok(sum.finish())
    }
}

/// Returns the time by the clock that gives files theirs.
fn now() -> Time {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or_default())
}
