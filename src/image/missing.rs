//! An image that does not count as present, and why not.

use crate::reference::Tag;

/// An image that does not count as present.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing<'a> {
    /// The name it would have.
    pub(crate) tag: &'a Tag,
    /// Why it does not count.
    pub(crate) why: Why,
}

/// Why an image does not count as present.
#[derive(Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no image of that name.
    NoImage,
    /// There is one, but not for every platform it has to be for.
    Other(Instead),
    /// There is one, but it was not built from the current inputs. Its label is this, if it has
    /// one.
    Outdated(Option<String>),
    /// There is one that was built from the current inputs, but a build was interrupted before it
    /// could be verified.
    Unverified,
    /// There is one whose label says that it was built from the current inputs, but it is not the
    /// image that was: labels are inherited.
    Inherited,
    /// There is one whose label says that it was built from the current inputs, but neither the
    /// caller nor root has verified this very image here.
    Unproved,
    /// The images of these tags are not the same one.
    Several,
    /// There is one, but the build is never skipped, for this reason.
    NeverSkipped(String),
    /// There is one, but the engine does not say whether it is for all of these platforms.
    PlatformsNotShown(String),
}

/// The platforms of an image that is not for every platform it has to be for.
#[derive(Debug, PartialEq, Eq)]
pub struct Instead {
    /// The platforms it is for.
    pub(crate) there: String,
    /// The platforms it lacks.
    pub(crate) wanted: String,
}
