//! Present: the engine has the image.

use super::meaning::Meaning;
use crate::image::answer::{Answer, Identity, Unanswered};
use crate::image::description::Description;
use crate::image::engine::backend::Backend;
use crate::image::missing::Why;
use crate::image::platform::{Platform, list};
use crate::image::wanted::Wanted;
use crate::reference::Tag;

/// The image is on the engine.
#[derive(Debug)]
pub(crate) struct OnEngine;

impl Meaning for OnEngine {
    fn look(&self, engine: &dyn Backend, wanted: &Wanted, tag: &Tag) -> Result<Answer, Unanswered> {
        engine.look(tag, wanted)
    }

    fn describe(
        &self,
        engine: &dyn Backend,
        wanted: &Wanted,
        tag: &Tag,
    ) -> Result<Option<Vec<Description>>, Unanswered> {
        let name = if engine.has_podman_names() { tag.podman_name() } else { tag.as_str() };
        let Some(mut image) = engine.describe(name)? else { return Ok(None) };
        if wanted.is_for_several_platforms() {
            // The engine shows one platform of several.
            image.platform = None;
        }
        Ok(Some(vec![image]))
    }

    fn shortfall(
        &self,
        engine: &dyn Backend,
        wanted: &Wanted,
        tag: &Tag,
        there: &[Platform],
    ) -> Option<Why> {
        // Podman builds for each platform and, without a list of them, tags the last image only.
        let tags_one_of_several = engine.has_podman_names() && !wanted.is_list(tag);
        if tags_one_of_several {
            return wanted.shortfall(there).filter(|_| !wanted.is_partly_met_by(there));
        }
        if there.is_empty() && wanted.is_for_several_platforms() {
            return Some(Why::PlatformsNotShown(list(&wanted.platforms)));
        }
        wanted.shortfall(there)
    }

    fn identity(
        &self,
        engine: &dyn Backend,
        wanted: &Wanted,
        tag: &Tag,
    ) -> Result<Identity, Unanswered> {
        engine.identity(tag, wanted)
    }
}
