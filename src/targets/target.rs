//! What compose and bake build one image from.

use std::sync::Arc;

use serde_json::Value;

use crate::reference::Tag;

/// A service that compose builds, or a target of bake.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// The names that its image gets.
    pub(crate) tags: Vec<Tag>,
    /// The names of other images that building it builds, too.
    pub(crate) others: Vec<Tag>,
    /// The targets that its build reads, by name.
    pub(crate) needs: Vec<String>,
    /// How it is built, as the tool says.
    pub(crate) definition: Value,
    /// How its image is given a label, if it can be.
    pub(crate) labelled_by: Option<LabelledBy>,
}

impl Target {
    /// Returns whether this target and the other one are built in the same way, whatever tags they
    /// give to what comes out.
    pub(crate) fn is_built_like(&self, other: &Target) -> bool {
        let without_tags = |target: &Target| {
            let mut definition = target.definition.clone();
            definition.as_object_mut().map(|keys| keys.shift_remove("tags"));
            definition
        };
        without_tags(self) == without_tags(other)
    }
}

/// How the image of a target is given a label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LabelledBy {
    /// By bake's `--set`.
    Option,
    /// By a file in the place of compose's own: this one, with the label in it.
    File(Arc<Value>),
}
