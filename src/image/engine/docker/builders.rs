//! The builder of buildx that the build command uses, and whether it pushes.

use super::buildx;
use crate::command::{Client, Command};
use crate::image::check::Check;

/// What decides which of docker's builders a build command uses.
#[derive(Debug)]
pub(crate) struct Builders {
    /// The builder that the build command or its environment names.
    named: Option<String>,
    /// The same, but only if a flag of the build command names it.
    by_flag: Option<String>,
    /// The builder that `docker buildx use` has chosen for the build command. Only a look in the
    /// registry needs it.
    chosen: Option<String>,
    /// Whether the build command says that it pushes.
    pub(crate) pushes: bool,
}

impl Builders {
    pub(crate) fn of(command: &Command, client: &Client, check: &Check) -> Self {
        let by_flag = command.builder().map(str::to_owned);
        let by_variable =
            || Some(client.variable("BUILDX_BUILDER")?.to_string_lossy().into_owned());
        let asks_registry = *check == Check::Registry;
        Builders {
            named: by_flag.clone().or_else(by_variable),
            by_flag,
            chosen: asks_registry.then(|| buildx::chosen_builder(command, client)).flatten(),
            pushes: command.pushes(),
        }
    }

    /// Returns the builder that a flag of the build command names.
    pub(crate) fn by_flag(&self) -> Option<&str> {
        self.by_flag.as_deref()
    }

    /// Returns the builder that the build command may use, if it is not the engine's own.
    pub(crate) fn in_use(&self, client: &Client) -> Option<String> {
        self.named.clone().or_else(|| buildx::current_builder(client))
    }

    /// Returns whether a builder other than the engine's own pushes.
    pub(crate) fn bypass_the_engine(&self) -> bool {
        /// The builder that is the engine's own.
        const DEFAULT: &str = "default";
        self.named.as_ref().or(self.chosen.as_ref()).is_some_and(|builder| builder != DEFAULT)
    }
}
