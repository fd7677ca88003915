//! What a build takes from other images, as its builder would find them now.

use std::collections::BTreeMap;

use anyhow::Result;

use super::value::hex;
use crate::image::{Description, Images, Platform};
use crate::reference::{Tag, sha256};

/// What an image that a build reads is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// The reference itself says which image it is.
    Pinned,
    /// It is the image that the build itself replaces. Such a build is never skipped.
    Own,
    /// The engine has it: a hash of what a build takes from it. Its ID does not count, because the
    /// containerd image store gives a new one to the same image with every rebuild.
    Local([u8; 32]),
    /// The builder would pull the image with this digest.
    Remote(String),
    /// It cannot be determined, for this reason.
    Unknown(String),
}

impl Base {
    /// Returns it as the fingerprint has it. What is not known is never equal to anything, because
    /// such a build is never skipped.
    pub(super) fn digest(&self) -> [u8; 32] {
        match self {
            Base::Pinned => sha256("pinned"),
            Base::Own => sha256("own"),
            Base::Local(digest) => sha256([b"local ", &digest[..]].concat()),
            Base::Remote(digest) => sha256(format!("remote {digest}")),
            Base::Unknown(_) => sha256("unknown"),
        }
    }

    /// Returns whether this is what `before` was, or has become, at the start of the build: a builder
    /// may pull an image, which is local from then on.
    pub(super) fn still_is(&self, before: &Base) -> bool {
        match (before, self) {
            (Base::Remote(_) | Base::Unknown(_), Base::Local(_)) => true,
            (Base::Unknown(_), Base::Unknown(_)) => true,
            (before, now) => before == now,
        }
    }
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Base::Pinned => f.write_str("pinned by its digest"),
            Base::Own => f.write_str("built anew"),
            Base::Local(digest) => write!(f, "local, {}", hex(&digest[..8])),
            Base::Remote(digest) => write!(f, "in its registry, {digest}"),
            Base::Unknown(why) => write!(f, "not known: {why}"),
        }
    }
}

/// Finds images, each once.
pub(super) struct Finder<'i> {
    images: &'i Images,
    /// Whether the builder uses the engine's images. A builder of its own pulls them.
    uses_engine: bool,
    found: BTreeMap<(String, String), (Base, Vec<String>)>,
}

impl<'i> Finder<'i> {
    pub(super) fn new(images: &'i Images) -> Self {
        Finder { images, uses_engine: images.are_the_builders(), found: BTreeMap::new() }
    }

    /// Returns what the reference is now, for this platform if the build names one, and the
    /// instructions that a build upon it executes (`ONBUILD`).
    ///
    /// # Errors
    /// The engine gave no certain answer.
    pub(super) fn find(
        &mut self,
        reference: &str,
        platform: Option<&Platform>,
    ) -> Result<(Base, Vec<String>)> {
        let key = (reference.to_owned(), platform.map(ToString::to_string).unwrap_or_default());
        if let Some(found) = self.found.get(&key) {
            return Ok(found.clone());
        }
        let found = self.look(reference, platform)?;
        Ok(self.found.entry(key).or_insert(found).clone())
    }

    fn look(&self, reference: &str, platform: Option<&Platform>) -> Result<(Base, Vec<String>)> {
        let alone = |base| Ok((base, Vec::new()));
        let unknown = |why: String| alone(Base::Unknown(why));
        let (name, digest) = match reference.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (reference, None),
        };
        let is_pinned = digest.is_some_and(|digest| digest.starts_with("sha256:"));
        let Ok(tag) = name.parse::<Tag>() else {
            return unknown(format!("{reference} is not the name of an image"));
        };
        if digest.is_some() && !is_pinned {
            return unknown(format!("the digest of {reference} is of an unknown kind"));
        }
        if self.uses_engine
            && let Some(image) = self.images.describe(reference)?
            && fits(&image, platform)
        {
            let base = if is_pinned { Base::Pinned } else { Base::Local(hash(&image)) };
            return Ok((base, image.on_build));
        }
        if is_pinned {
            return alone(Base::Pinned);
        }
        if self.images.are_podmans() && tag.is_short() {
            return unknown(format!(
                "{tag} is not on the engine, and podman may pull it from any registry"
            ));
        }
        match self.images.digest_in_registry(&tag) {
            Ok(Some(digest)) => alone(Base::Remote(digest)),
            Ok(None) => {
                unknown(format!("there is no image {tag} on the engine or in its registry"))
            }
            Err(error) => unknown(format!("{tag} is not on the engine, and {error:#}")),
        }
    }
}

/// Returns whether a builder would take this image for the platform that is wanted.
fn fits(image: &Description, wanted: Option<&Platform>) -> bool {
    let there = image.platform.as_ref();
    wanted.is_none_or(|wanted| there.is_some_and(|there| wanted.is_met_by(there)))
}

fn hash(image: &Description) -> [u8; 32] {
    let platform = image.platform.as_ref().map(ToString::to_string).unwrap_or_default();
    let layers = image.layers.join(" ");
    sha256([platform, layers, image.inherited.clone()].join("\0"))
}
