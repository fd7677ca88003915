//! The seam between a look-up and the engine that is asked.

use std::fmt::{Debug, Display};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::command::{BuildOptions, Client};
use crate::image::answer::{Answer, CacheMount, EngineProcess, Identity, Unanswered};
use crate::image::description::Description;
use crate::image::wanted::Wanted;
use crate::reference::Tag;
use crate::scope::Scope;

/// An engine that can be asked for images. Its `Display` says how it is reached.
///
/// No method retries: the module `retry` does.
pub(crate) trait Backend: Debug + Display + Send + Sync {
    /// Returns the client of this engine.
    fn client(&self) -> &Client;

    /// Looks for an image on the engine.
    ///
    /// # Errors
    /// The engine said neither that the image is present nor that it is missing.
    fn look(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered>;

    /// Asks for the ID of an image on the engine.
    ///
    /// # Errors
    /// The engine gave no certain answer.
    fn identity(&self, tag: &Tag, wanted: &Wanted) -> Result<Identity, Unanswered>;

    /// Describes an image on the engine, by a name or a reference as a Dockerfile has it. Returns
    /// none if there is no such image.
    ///
    /// # Errors
    /// The engine gave no certain answer.
    fn describe(&self, name: &str) -> Result<Option<Description>, Unanswered>;

    /// Describes an image in its registry, with one description for each of its platforms. Returns
    /// none if there is no such image.
    ///
    /// # Errors
    /// The answer was neither that the image is present nor that it is missing, or the registry cannot be
    /// asked for more than that.
    fn describe_in_registry(&self, tag: &Tag) -> Result<Option<Vec<Description>>, Unanswered>;

    /// Returns the digest that a reference has in its registry, as this engine would pull it.
    /// Returns none if there is no such image.
    ///
    /// # Errors
    /// The answer was neither that the image is present nor that it is missing.
    fn digest_in_registry(&self, tag: &Tag) -> Result<Option<String>, Unanswered>;

    /// Returns the platform that the engine builds for if nothing else is said.
    ///
    /// # Errors
    /// The engine gave no certain answer.
    fn own_platform(&self) -> Result<String, Unanswered>;

    /// Checks that [`Backend::look_in_registry`] can get an answer.
    ///
    /// # Errors
    /// No answer is possible; the message says what to do instead.
    fn check_registry_access(&self) -> Result<()> {
        Ok(())
    }

    /// Looks for an image in its registry, as a push and a pull would reach it.
    ///
    /// # Errors
    /// The answer was neither that the image is present nor that it is missing.
    fn look_in_registry(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered>;

    /// Returns a key for where the engine is, which no other engine within `scope` has.
    fn location_key(&self, scope: Scope) -> String;

    /// Returns the builder that the build command may use, if it is not the engine's own.
    fn builder(&self) -> Option<String> {
        None
    }

    /// Returns whether a builder of its own builds. Such a builder does not see the engine's images.
    fn own_builder(&self) -> OwnBuilder {
        OwnBuilder::None
    }

    /// Returns the cache mounts on the engine, or `None` if it does not list them in time.
    fn cache_mounts(&self, _within: Duration) -> Option<Vec<CacheMount>> {
        None
    }

    /// Returns whether the engine has pruned its build cache since `since`, or none if it does not
    /// answer in time.
    fn was_pruned(&self, _since: SystemTime, _within: Duration) -> Option<bool> {
        None
    }

    /// Returns the process that listens on the engine's socket, if that is known.
    fn process(&self) -> Option<EngineProcess> {
        None
    }

    /// Returns whether images have podman's names: `env` is `localhost/env`.
    fn has_podman_names(&self) -> bool {
        false
    }
}

/// A builder that is not the engine's, and has images of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OwnBuilder {
    /// The engine builds.
    None,
    /// The builder of this name builds.
    Certain(String),
    /// One of the two does. That depends on the client's version and its plugins.
    Perhaps(String),
}

impl OwnBuilder {
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            OwnBuilder::None => None,
            OwnBuilder::Certain(name) | OwnBuilder::Perhaps(name) => Some(name),
        }
    }
}

/// What is known of an engine's client, whatever stands behind it.
pub(crate) struct ClientRules {
    /// The environment variables that name the engine to talk to.
    pub(crate) endpoint_variables: &'static [&'static str],
    /// The platform that a build is for if it names none, where that matters.
    pub(crate) default_platform: fn(&Client, &BuildOptions) -> Option<String>,
}
