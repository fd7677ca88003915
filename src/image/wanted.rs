//! What the build command says about the image it makes, as far as a look-up depends on it.

use super::missing::{Instead, Why};
use super::platform::{Platform, list};
use crate::command::{BuildOptions, Command};
use crate::reference::Tag;

/// What an image must be, to be the one that the build command makes.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The platforms it has to be for.
    pub(crate) platforms: Vec<Platform>,
    /// A name of a platform that is not known here.
    pub(crate) unknown_platform: Option<String>,
    /// The manifest list that the build command adds its image to (`podman build --manifest`).
    manifest: Option<Tag>,
}

impl Wanted {
    /// Reads the build command. `default_platform` tells what it builds for if it does not say.
    pub(crate) fn by(
        command: &Command,
        default_platform: impl FnOnce(&BuildOptions) -> Option<String>,
    ) -> Self {
        let Some(build) = command.build() else {
            return Wanted { platforms: Vec::new(), unknown_platform: None, manifest: None };
        };
        let manifest = build.manifest.as_ref().and_then(|name| name.parse().ok());
        let (platforms, unknown_platform) = platforms_of(build, default_platform);
        Wanted { platforms, unknown_platform, manifest }
    }

    pub(crate) fn is_for_several_platforms(&self) -> bool {
        self.platforms.len() > 1
    }

    /// Returns whether `tag` names the manifest list that the build command adds to.
    pub(crate) fn is_list(&self, tag: &Tag) -> bool {
        self.manifest.as_ref().is_some_and(|manifest| manifest.is_same_name(tag))
    }

    /// Returns whether an image for the platforms `there` is for at least one wanted platform.
    pub(crate) fn is_partly_met_by(&self, there: &[Platform]) -> bool {
        self.platforms.iter().any(|wanted| is_met(wanted, there))
    }

    /// Returns what an image for the platforms `there` lacks.
    ///
    /// An engine that names no platform has images for its own.
    pub(crate) fn shortfall(&self, there: &[Platform]) -> Option<Why> {
        let unmet: Vec<_> = self.unmet_by(there).collect();
        if unmet.is_empty() || there.is_empty() {
            return None;
        }
        Some(Why::Other(Instead { there: list(there), wanted: list(unmet) }))
    }

    fn unmet_by(&self, there: &[Platform]) -> impl Iterator<Item = &Platform> {
        self.platforms.iter().filter(move |wanted| !is_met(wanted, there))
    }
}

fn is_met(wanted: &Platform, there: &[Platform]) -> bool {
    there.iter().any(|it| wanted.is_met_by(it))
}

/// Returns the platforms that the build command builds for, if it names any, and a name that is not
/// known.
fn platforms_of(
    build: &BuildOptions,
    default_platform: impl FnOnce(&BuildOptions) -> Option<String>,
) -> (Vec<Platform>, Option<String>) {
    let by_default = build.platforms.is_empty().then(|| default_platform(build)).flatten();
    let (mut platforms, mut unknown) = (Vec::new(), None);
    for name in build.platforms.iter().chain(&by_default).filter(|name| !name.is_empty()) {
        match Platform::parse(name) {
            Some(platform) => platforms.push(platform),
            None => unknown = Some(name.clone()),
        }
    }
    platforms.dedup();
    (platforms, unknown)
}
