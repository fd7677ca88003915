//! Which builder a build command uses, as far as its words and the environment tell.

use std::path::PathBuf;

use crate::command::{Client, Command, Engine};
use crate::dockerfile::Dialect;
use crate::go_bool;

/// A kind of builder. They read ignore files by different rules, and make different images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builder {
    BuildKit,
    /// Docker's own, before BuildKit.
    Legacy,
    /// One of these two: it depends on the client, its plugins and the engine.
    OneOfDockers,
    /// Podman's and Buildah's.
    Buildah,
}

impl Builder {
    /// Returns the builder of a command. `engine` is the one that builds: podman may be called docker.
    pub(crate) fn of(command: &Command, client: &Client, engine: Engine) -> Self {
        match engine {
            Engine::Podman => Builder::Buildah,
            Engine::Nerdctl => Builder::BuildKit,
            Engine::Docker if command.is_buildx() => Builder::BuildKit,
            // sudo may drop the variable.
            Engine::Docker if client.wrapper_changes_user_or_env => Builder::OneOfDockers,
            Engine::Docker => {
                let variable = client.variable("DOCKER_BUILDKIT");
                match variable.as_deref().and_then(|value| go_bool::parse(value.to_str()?)) {
                    Some(true) => Builder::BuildKit,
                    Some(false) => Builder::Legacy,
                    None => Builder::OneOfDockers,
                }
            }
        }
    }

    /// Returns the ways in which it may read a Dockerfile.
    pub(crate) fn dialects(self) -> &'static [Dialect] {
        match self {
            Builder::BuildKit => &[Dialect::BuildKit],
            Builder::Legacy => &[Dialect::Legacy],
            Builder::OneOfDockers => &[Dialect::BuildKit, Dialect::Legacy],
            Builder::Buildah => &[Dialect::Buildah],
        }
    }

    /// Returns the builder as the fingerprint has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Builder::BuildKit => "buildkit",
            Builder::Legacy => "legacy",
            Builder::OneOfDockers => "docker",
            Builder::Buildah => "buildah",
        }
    }
}

/// Returns the sizes of the client's program and of its plugins for buildx, as far as they are found.
///
/// If nothing says which of docker's builders is used, they decide: another client may have another
/// default. Two versions hardly have one size.
pub(super) fn client_sizes(client: &Client) -> String {
    const PLUGINS: [&str; 4] = [
        "/usr/local/lib/docker/cli-plugins",
        "/usr/local/libexec/docker/cli-plugins",
        "/usr/lib/docker/cli-plugins",
        "/usr/libexec/docker/cli-plugins",
    ];
    let own = client.config_folder().map(|folder| folder.join("cli-plugins"));
    let folders = own.into_iter().chain(PLUGINS.map(PathBuf::from));
    let plugins = folders.map(|folder| folder.join("docker-buildx"));
    let program = which::which(&client.program).unwrap_or_default();
    let size = |file: PathBuf| std::fs::metadata(file).map_or(0, |file| file.len()).to_string();
    let sizes: Vec<_> = std::iter::once(program).chain(plugins).map(size).collect();
    sizes.join(" ")
}
