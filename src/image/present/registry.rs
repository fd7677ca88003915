//! Present: the registry that the image's name says has it (`--check registry`).

use anyhow::Result;

use super::meaning::Meaning;
use crate::image::answer::{Answer, Unanswered};
use crate::image::description::Description;
use crate::image::engine::backend::Backend;
use crate::image::platform::list;
use crate::image::wanted::Wanted;
use crate::reference::Tag;

/// The image is in its registry.
#[derive(Debug)]
pub(crate) struct InRegistry(());

impl InRegistry {
    /// Takes an engine that can ask a registry.
    pub(crate) fn of(engine: &dyn Backend) -> Result<Self> {
        engine.check_registry_access()?;
        Ok(InRegistry(()))
    }
}

impl Meaning for InRegistry {
    fn look(&self, engine: &dyn Backend, wanted: &Wanted, tag: &Tag) -> Result<Answer, Unanswered> {
        let answer = engine.look_in_registry(tag, wanted)?;
        if !wanted.platforms.is_empty() && answer.names_no_platform() {
            // An engine has images for its own platform; a registry has any.
            return Err(Unanswered::permanent(format!(
                "the registry has it, but does not say whether it is for {}; leave out --platform, \
                 or give --check a command that can tell",
                list(&wanted.platforms)
            )));
        }
        Ok(answer)
    }

    fn describe(
        &self,
        engine: &dyn Backend,
        _: &Wanted,
        tag: &Tag,
    ) -> Result<Option<Vec<Description>>, Unanswered> {
        engine.describe_in_registry(tag)
    }

    fn uses_names_of_the_engine(&self) -> bool {
        false
    }
}
