//! The seam between a look-up and the engine that is asked.

use std::fmt::{Debug, Display};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::command::{BuildOptions, Client};
use crate::image::answer::{Answer, CacheMount, EngineProcess, Identity, Unanswered};
use crate::image::wanted::Wanted;
use crate::reference::Tag;

/// An engine that can be asked for images. As text, it says how.
///
/// Whatever is asked is asked once.
pub(crate) trait Backend: Debug + Display + Send + Sync {
    /// Returns the client of this engine.
    fn client(&self) -> &Client;

    /// Looks for an image on the engine.
    ///
    /// # Errors
    /// The engine said neither that the image is there nor that it is not.
    fn look(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered>;

    /// Asks for the ID of an image on the engine.
    ///
    /// # Errors
    /// The engine gave no certain answer.
    fn identity(&self, tag: &Tag, wanted: &Wanted) -> Result<Identity, Unanswered>;

    /// Checks that [`Backend::look_in_registry`] can get an answer.
    ///
    /// # Errors
    /// It cannot; the message says what to do instead.
    fn can_ask_a_registry(&self) -> Result<()> {
        Ok(())
    }

    /// Looks for an image in its registry, as a push and a pull would reach it.
    ///
    /// # Errors
    /// The answer was neither that the image is there nor that it is not.
    fn look_in_registry(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered>;

    /// Returns where the engine is, to distinguish it from other engines within `scope`.
    fn place(&self, scope: Scope) -> String;

    /// Returns the builder that the build command may use, if it is not the engine's own.
    fn builder(&self) -> Option<String> {
        None
    }

    /// Returns the cache mounts on the engine, or nothing if it does not list them in time.
    fn cache_mounts(&self, _within: Duration) -> Option<Vec<CacheMount>> {
        None
    }

    /// Tells whether the engine has pruned its build cache since then, or nothing if it does not say
    /// so in time.
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

/// What is known of an engine's client, whatever stands behind it.
pub(crate) struct ClientRules {
    /// The environment variables that name the engine to talk to.
    pub(crate) endpoint_variables: &'static [&'static str],
    /// The platform that a build is for if it names none, where that matters.
    pub(crate) default_platform: fn(&Client, &BuildOptions) -> Option<String>,
}

/// The engines among which one must be distinguished.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    ThisHost,
    AllHosts,
}

impl Scope {
    /// Returns this machine's name where other machines matter.
    pub(crate) fn host(self) -> String {
        match self {
            Scope::ThisHost => String::new(),
            Scope::AllHosts => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    /// Returns what distinguishes the engine that a user has on this machine.
    pub(crate) fn user_and_host(self) -> String {
        format!("{} {}", rustix::process::getuid().as_raw(), self.host())
    }
}
