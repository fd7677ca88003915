//! Is there nothing to do?

use anyhow::Result;

use super::job::Job;
use crate::fingerprint::Fingerprint;
use crate::image::Missing;

/// What a look at the images found.
pub(super) enum Look<'a> {
    Present,
    ToBuild(Box<ToBuild<'a>>),
}

/// What has to be built.
pub(super) struct ToBuild<'a> {
    /// The first image that does not count as present. None with `--force` or without an image: then nobody looks.
    pub(super) why: Option<Missing<'a>>,
    /// The fingerprint of what it is built from, with `--if-changed`.
    pub(super) inputs: Option<Fingerprint>,
}

impl<'a> Look<'a> {
    pub(super) fn to_build(why: Option<Missing<'a>>, inputs: Option<Fingerprint>) -> Self {
        Look::ToBuild(Box::new(ToBuild { why, inputs }))
    }
}

impl Job {
    /// 2. and 4. Looks whether every image is present. This takes no lock.
    ///
    /// # Errors
    /// The engine, the registry or the command of `--check` gave no certain answer, or an input of
    /// the build cannot be read.
    pub(super) fn look(&self) -> Result<Look<'_>> {
        let inputs = self.fingerprint()?;
        if self.force || self.tags.is_empty() {
            return Ok(Look::to_build(None, inputs));
        }
        if let Some(inputs) = inputs {
            return self.look_for_inputs(inputs);
        }
        let missing = self.images.first_missing(&self.tags)?;
        Ok(missing.map_or(Look::Present, |missing| Look::to_build(Some(missing), None)))
    }

    /// Returns whether a look finds every image present.
    ///
    /// # Errors
    /// As for [`Job::look`].
    pub(super) fn is_present(&self) -> Result<bool> {
        Ok(matches!(self.look()?, Look::Present))
    }
}
