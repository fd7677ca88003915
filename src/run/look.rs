//! Is there nothing to do?

use anyhow::Result;

use super::job::Job;
use crate::image::Missing;

/// What a look at the images found.
pub(super) enum Look<'a> {
    Present,
    /// The first image that does not count as present.
    Missing(Missing<'a>),
    /// With `--force`, nobody looks.
    Forced,
}

impl Job {
    /// 2. and 4. Looks whether every image is present. This takes no lock.
    ///
    /// # Errors
    /// The engine, the registry or the command of `--check` gave no certain answer.
    pub(super) fn look(&self) -> Result<Look<'_>> {
        if self.force {
            return Ok(Look::Forced);
        }
        let missing = self.images.first_missing(&self.tags)?;
        Ok(missing.map_or(Look::Present, Look::Missing))
    }

    /// Returns whether a look finds every image present.
    ///
    /// # Errors
    /// As for [`Job::look`].
    pub(super) fn is_present(&self) -> Result<bool> {
        Ok(matches!(self.look()?, Look::Present))
    }
}
