//! The builder of buildx that the build command uses, and whether it pushes.

use std::ffi::OsString;

use super::buildx;
use super::endpoint::builder_key;
use crate::command::{Client, Command};
use crate::image::engine::backend::OwnBuilder;

/// The builder that is the engine's own, whichever engine is in use.
const DEFAULT: &str = "default";

/// What decides which of docker's builders a build command uses.
#[derive(Debug)]
pub(crate) struct Builders {
    /// The builder that the build command or its environment names.
    named: Option<String>,
    /// The same, but only if a flag of the build command names it.
    by_flag: Option<String>,
    /// Whether the build command calls buildx by name.
    is_buildx: bool,
    /// Whether the build command says that it pushes.
    pub(crate) pushes: bool,
}

impl Builders {
    pub(crate) fn of(command: &Command, client: &Client) -> Self {
        let by_flag = command.builder().map(str::to_owned);
        let by_variable =
            || Some(client.variable("BUILDX_BUILDER")?.to_string_lossy().into_owned());
        Builders {
            named: by_flag.clone().or_else(by_variable),
            by_flag,
            is_buildx: command.is_buildx(),
            pushes: command.pushes(),
        }
    }

    /// Returns the builder that a flag of the build command names.
    pub(crate) fn by_flag(&self) -> Option<&str> {
        self.by_flag.as_deref()
    }

    /// Returns the builder that the build command may use, if it is not the engine's own.
    pub(crate) fn in_use(&self, client: &Client) -> Option<String> {
        let name = self.named.clone().or_else(|| buildx::current_builder(client));
        name.filter(|name| name != DEFAULT)
    }

    /// Returns whether a builder of its own builds.
    ///
    /// `docker build` goes by a flag or a variable only if it passes the build on to buildx, which
    /// depends on the client.
    pub(crate) fn own(&self, client: &Client) -> OwnBuilder {
        if !self.is_buildx && buildx::is_turned_off(client) {
            return OwnBuilder::None;
        }
        if self.by_flag.is_none() && may_differ_for_another_user(self.is_buildx, client) {
            return OwnBuilder::Perhaps("of another user".to_owned());
        }
        match self.chosen(client) {
            Some(name) if is_the_engines(&name, client) => OwnBuilder::None,
            Some(name) if self.is_buildx => OwnBuilder::Certain(name),
            Some(name) => OwnBuilder::Perhaps(name),
            None => OwnBuilder::None,
        }
    }

    /// Returns whether a builder other than the engine's own pushes.
    pub(crate) fn bypass_the_engine(&self, client: &Client) -> bool {
        self.chosen(client).is_some_and(|name| name != DEFAULT)
    }

    /// Returns the builder that is named, or that `docker buildx use` has chosen.
    fn chosen(&self, client: &Client) -> Option<String> {
        self.named.clone().or_else(|| buildx::chosen_builder(self.is_buildx, client))
    }
}

/// Returns whether this is the builder of the engine that the client talks to: each context has one
/// of its name.
fn is_the_engines(name: &str, client: &Client) -> bool {
    name == DEFAULT || builder_key(client).is_some_and(|key| key == name)
}

/// Returns whether sudo and the like in front may choose a builder: by a variable that they set, or
/// for buildx by another user's configuration.
fn may_differ_for_another_user(is_buildx: bool, client: &Client) -> bool {
    let names_it =
        |word: &OsString| word.to_str().is_some_and(|it| it.starts_with("BUILDX_BUILDER="));
    client.wrapper_changes_user_or_env
        && (is_buildx
            || client.variable("BUILDX_BUILDER").is_some()
            || client.wrapper_words.iter().any(names_it))
}
