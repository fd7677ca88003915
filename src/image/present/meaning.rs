//! The seam between a look-up and what "present" means for it.

use std::fmt::Debug;

use crate::image::answer::{Answer, Identity, Unanswered};
use crate::image::description::Description;
use crate::image::engine::backend::Backend;
use crate::image::missing::Why;
use crate::image::platform::Platform;
use crate::image::wanted::Wanted;
use crate::reference::Tag;

/// One meaning of "present".
pub(crate) trait Meaning: Debug + Send + Sync {
    /// Looks for the image once.
    ///
    /// # Errors
    /// The answer was neither that the image is present nor that it is missing.
    fn look(&self, engine: &dyn Backend, wanted: &Wanted, tag: &Tag) -> Result<Answer, Unanswered>;

    /// Describes the image where it has to be, once for each of its platforms. Returns
    /// none if it is not there.
    ///
    /// # Errors
    /// There was no certain answer.
    fn describe(
        &self,
        engine: &dyn Backend,
        wanted: &Wanted,
        tag: &Tag,
    ) -> Result<Option<Vec<Description>>, Unanswered>;

    /// Returns why an image for the platforms `there` does not count, if it does not.
    fn shortfall(
        &self,
        _engine: &dyn Backend,
        wanted: &Wanted,
        _tag: &Tag,
        there: &[Platform],
    ) -> Option<Why> {
        wanted.shortfall(there)
    }

    /// Asks once for the image's ID on the engine, if that is where a present image is.
    ///
    /// # Errors
    /// The engine gave no certain answer.
    fn identity(
        &self,
        _engine: &dyn Backend,
        _wanted: &Wanted,
        _tag: &Tag,
    ) -> Result<Identity, Unanswered> {
        Ok(Identity::Unknown)
    }

    /// Returns whether a short name is read as the engine reads it.
    fn uses_names_of_the_engine(&self) -> bool {
        true
    }
}
