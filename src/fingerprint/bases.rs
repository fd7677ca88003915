//! What a build takes from other images, as its builder would find them now.

use std::collections::BTreeMap;

use anyhow::Result;

use super::value::hex;
use crate::image::{Description, Images, OwnBuilder, Platform};
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
    /// The builder would take one of these two: that depends on which builder it is.
    Either([u8; 32], String),
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
            Base::Either(local, remote) => {
                sha256([b"either ", &local[..], remote.as_bytes()].concat())
            }
            Base::Unknown(_) => sha256("unknown"),
        }
    }

    /// Returns whether this is what `before` was, or has become, at the start of the build: a builder
    /// may pull an image, which is local from then on.
    pub(super) fn still_is(&self, before: &Base) -> bool {
        match (before, self) {
            (Base::Remote(_) | Base::Either(..), Base::Local(_)) => true,
            (Base::Remote(before), Base::Either(_, now)) => before == now,
            (Base::Unknown(_), Base::Local(_) | Base::Either(..) | Base::Unknown(_)) => true,
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
            Base::Either(local, remote) => {
                write!(f, "local, {}, or in its registry, {remote}", hex(&local[..8]))
            }
            Base::Unknown(why) => write!(f, "not known: {why}"),
        }
    }
}

/// An image that a build reads, and the instructions that a build upon it executes (`ONBUILD`).
type Found = (Base, Vec<String>);

/// Finds images, each once.
pub(super) struct Finder<'i> {
    images: &'i Images,
    own_builder: OwnBuilder,
    found: BTreeMap<(String, String), Found>,
    /// Why a registry gave no certain answer. It is not asked again: that may take long.
    silent: BTreeMap<String, String>,
}

impl<'i> Finder<'i> {
    pub(super) fn new(images: &'i Images) -> Self {
        let own_builder = images.own_builder();
        Finder { images, own_builder, found: BTreeMap::new(), silent: BTreeMap::new() }
    }

    pub(super) fn own_builder(&self) -> &OwnBuilder {
        &self.own_builder
    }

    /// Returns what the reference is now, for this platform if the build names one.
    ///
    /// # Errors
    /// The engine gave no certain answer.
    pub(super) fn find(&mut self, reference: &str, platform: Option<&Platform>) -> Result<Found> {
        let key = (reference.to_owned(), platform.map(ToString::to_string).unwrap_or_default());
        if let Some(found) = self.found.get(&key) {
            return Ok(found.clone());
        }
        let found = self.look(reference, platform)?;
        Ok(self.found.entry(key).or_insert(found).clone())
    }

    fn look(&mut self, reference: &str, platform: Option<&Platform>) -> Result<Found> {
        let (name, digest) = match reference.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (reference, None),
        };
        let is_pinned = digest.is_some_and(|digest| digest.starts_with("sha256:"));
        let Ok(tag) = name.parse::<Tag>() else {
            return Ok(unknown(format!("{reference} is not the name of an image")));
        };
        if digest.is_some() && !is_pinned {
            return Ok(unknown(format!("the digest of {reference} is of an unknown kind")));
        }
        let local = match self.own_builder {
            OwnBuilder::Certain(_) => None,
            OwnBuilder::None | OwnBuilder::Perhaps(_) => self.images.describe(reference)?,
        };
        let Some(image) = local else {
            return match is_pinned {
                true => Ok((Base::Pinned, Vec::new())),
                false => Ok(self.only_in_registry(&tag)),
            };
        };
        let Some(there) = &image.platform else {
            return Ok(unknown(format!("{reference} does not say for which platform it is")));
        };
        if image.may_hide_on_build {
            return Ok(unknown(format!(
                "podman does not show the ONBUILD instructions that {reference} has or had"
            )));
        }
        let local = hash(&image, there);
        let fits = platform.is_none_or(|wanted| wanted.is_met_by(there));
        if is_pinned {
            return Ok((Base::Pinned, image.on_build));
        }
        if fits && self.own_builder == OwnBuilder::None {
            return Ok((Base::Local(local), image.on_build));
        }
        let triggers = if fits { image.on_build } else { Vec::new() };
        Ok(match self.in_registry(&tag) {
            // BuildKit may take an image for another platform that its machine can run, too.
            Ok(Some(remote)) => (Base::Either(local, remote), triggers),
            // A builder of its own could not build.
            Ok(None) if fits => (Base::Local(local), triggers),
            Ok(None) => unknown(format!("there is no image {tag} for the platform")),
            Err(why) => unknown(why),
        })
    }

    fn only_in_registry(&mut self, tag: &Tag) -> Found {
        match self.in_registry(tag) {
            Ok(Some(digest)) => (Base::Remote(digest), Vec::new()),
            Ok(None) => {
                unknown(format!("there is no image {tag} on the engine or in its registry"))
            }
            Err(why) => unknown(why),
        }
    }

    /// Returns the digest that the registry has, if there is such an image, or why that is not known.
    fn in_registry(&mut self, tag: &Tag) -> Result<Option<String>, String> {
        if self.images.engine_is_podman() && tag.is_short() {
            return Err(format!(
                "{tag} is not on the engine, and podman may pull it from any registry"
            ));
        }
        let (registry, _) = tag.in_registry();
        if let Some(why) = self.silent.get(registry) {
            return Err(format!("{tag}: {why}"));
        }
        self.images.digest_in_registry(tag).map_err(|error| {
            let why = format!("{error:#}");
            self.silent.insert(registry.to_owned(), why.clone());
            format!("{tag}: {why}")
        })
    }
}

fn unknown(why: String) -> Found {
    (Base::Unknown(why), Vec::new())
}

fn hash(image: &Description, platform: &Platform) -> [u8; 32] {
    let layers = image.layers.join(" ");
    sha256([platform.to_string(), layers, image.inherited.clone()].join("\0"))
}
