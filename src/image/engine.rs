//! The engines that can be asked. Each is a file of its own, behind `Backend`.

pub(super) mod backend;
pub(super) mod client;
pub(super) mod compose;
pub(super) mod docker;
pub(super) mod inspect;
pub(super) mod nerdctl;
mod no_such_image;
pub(super) mod podman;
mod unknown_manifest;

use std::path::Path;

use anyhow::{Result, bail};

use self::backend::{Backend, ClientRules};
use self::docker::builders::Builders;
use self::docker::context::ContextError;
use self::docker::endpoint::local_socket;
use self::docker::program::Program;
use self::docker::{DockerClient, DockerSocket};
use self::nerdctl::Nerdctl;
use self::podman::Podman;
use super::check::Check;
use crate::command::{Client, Command, Engine};

/// Returns what is known of the client of an engine.
pub(super) fn rules(engine: Engine) -> &'static ClientRules {
    match engine {
        Engine::Docker => &docker::RULES,
        Engine::Podman => &podman::RULES,
        Engine::Nerdctl => &nerdctl::RULES,
    }
}

/// Finds out how the engine of `client` is asked. The client is the file `program`, if that is
/// known already.
///
/// # Errors
/// Docker's context does not exist, and `check` looks on the engine.
pub(super) fn open(
    command: &Command,
    client: Client,
    program: Option<&Path>,
    check: &Check,
) -> Result<Box<dyn Backend>> {
    Ok(match client.engine {
        Engine::Docker => return open_docker(command, client, program, check),
        Engine::Podman => Box::new(Podman::new(client)),
        Engine::Nerdctl => Box::new(Nerdctl::new(client)),
    })
}

fn open_docker(
    command: &Command,
    client: Client,
    program: Option<&Path>,
    check: &Check,
) -> Result<Box<dyn Backend>> {
    let builders = |client: &Client| Builders::of(command, client);
    let through_client = |client: Client| Box::new(DockerClient::new(builders(&client), client));
    Ok(match Program::of(&client, program) {
        Program::Podman => Box::new(Podman::new(client)),
        Program::Script => through_client(client),
        Program::Binary if client.wrapper_changes_user_or_env => through_client(client),
        Program::Binary => match local_socket(&client) {
            Ok(socket) => Box::new(DockerSocket::new(builders(&client), client, socket)),
            Err(ContextError::NoSuchContext(why)) if *check == Check::Local => bail!(why),
            // Where the engine is not asked, the registry or the command may still answer.
            Err(ContextError::NoSuchContext(_) | ContextError::AskClient) => through_client(client),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_from_a_snap_is_asked_through_its_client() {
        let folder = tempfile::tempdir().unwrap();
        let way = |file: &str| {
            std::fs::write(folder.path().join(file), "\x7fELF").unwrap();
            let docker = folder.path().join(format!("docker-is-{file}"));
            std::os::unix::fs::symlink(file, &docker).unwrap();
            let mut client = Client::plain(Engine::Docker);
            client.globals = ["-H", "unix:///s"].map(Into::into).into();
            let command = Command::new(Vec::new());
            open(&command, client, Some(&docker), &Check::Local).unwrap().to_string()
        };
        assert_eq!(way("binary"), "over its API at /s");
        assert_eq!(way("snap"), "through its client");
    }
}
