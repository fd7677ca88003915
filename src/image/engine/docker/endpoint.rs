//! Where the engine listens that docker's client would talk to.

use std::ffi::OsString;
use std::path::PathBuf;

use super::context::{ContextError, NamedContext, context_host, current_context};
use crate::command::Client;

/// Where the engine listens unless something says otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Returns the socket of the engine that `client` would talk to.
///
/// # Errors
/// The engine is not on a socket of this machine, or something about it is unclear.
pub(crate) fn local_socket(client: &Client) -> Result<PathBuf, ContextError> {
    socket_at(client, &endpoint(client)?)
}

fn socket_at(client: &Client, endpoint: &str) -> Result<PathBuf, ContextError> {
    // --tls and similar flags are about TCP.
    if client.global_flags().iter().any(|(name, _)| name.starts_with("tls")) {
        return Err(ContextError::AskClient);
    }
    match endpoint {
        "" | "unix://" => Ok(DEFAULT_SOCKET.into()),
        host => host.strip_prefix("unix://").map(PathBuf::from).ok_or(ContextError::AskClient),
    }
}

/// Returns the address of the engine that `client` would talk to. It is empty if nothing names one.
///
/// # Errors
/// The address is not known.
pub(crate) fn endpoint(client: &Client) -> Result<String, ContextError> {
    endpoint_with(client, &|name| client.variable_as_set(name))
}

fn endpoint_with(client: &Client, variable: &Variables<'_>) -> Result<String, ContextError> {
    match target_with(client, variable)? {
        Target::Host(host) => Ok(host),
        Target::Context { config, context } => context_host(&config, &context),
    }
}

/// Returns what buildx calls the engine of `client` in its files: its context or else its address.
pub(crate) fn builder_key(client: &Client) -> Option<String> {
    match target_with(client, &|name| client.variable_as_set(name)).ok()? {
        Target::Context { context, .. } => Some(context.name),
        Target::Host(host) if host.is_empty() => Some(format!("unix://{DEFAULT_SOCKET}")),
        Target::Host(host) => Some(host),
    }
}

/// Environment variables by their names. One that is set to nothing is not the same as none.
type Variables<'v> = dyn Fn(&str) -> Option<OsString> + 'v;

/// What names the engine.
enum Target {
    /// An address. It is empty if nothing names one.
    Host(String),
    /// A context in this folder of docker's configuration.
    Context { config: PathBuf, context: NamedContext },
}

/// The context that stands for flags and variables alone.
const DEFAULT_CONTEXT: &str = "default";

/// Finds out what names the engine, in the order of docker's client (`resolveContextName`).
fn target_with(client: &Client, variable: &Variables<'_>) -> Result<Target, ContextError> {
    let flags = Flags::of(client)?;
    let docker_host = text_of(variable, "DOCKER_HOST");
    let names_a_host =
        flags.host.is_some() || docker_host.as_ref().is_some_and(|host| !host.is_empty());
    let host = || {
        let host = flags.host.as_ref().or(docker_host.as_ref());
        Target::Host(host.map_or("", |host| host.trim()).to_owned())
    };
    let config = client.config_folder();
    let context = match flags.context {
        Some(name) => NamedContext { name, source: "--context".to_owned() },
        None if names_a_host => return Ok(host()),
        None => match context_without_flags(config.as_ref(), variable)? {
            Some(context) => context,
            None => return Ok(host()),
        },
    };
    if context.name == DEFAULT_CONTEXT {
        return Ok(host());
    }
    Ok(Target::Context { config: config.ok_or(ContextError::AskClient)?, context })
}

/// Returns the context that a variable or the configuration names.
fn context_without_flags(
    config: Option<&PathBuf>,
    variable: &Variables<'_>,
) -> Result<Option<NamedContext>, ContextError> {
    let by_variable = text_of(variable, "DOCKER_CONTEXT").filter(|context| !context.is_empty());
    let context = match (by_variable, config) {
        (Some(name), _) => Some(NamedContext { name, source: "DOCKER_CONTEXT".to_owned() }),
        (None, Some(config)) => current_context(config)?,
        (None, None) => None,
    };
    // Up to 20.10, a variable that is set to nothing chooses the default; later it is ignored.
    let is_set_to_nothing = |name| text_of(variable, name).is_some_and(|text| text.is_empty());
    if context.as_ref().is_some_and(|context| context.name != DEFAULT_CONTEXT)
        && (is_set_to_nothing("DOCKER_HOST") || is_set_to_nothing("DOCKER_CONTEXT"))
    {
        return Err(ContextError::AskClient);
    }
    Ok(context)
}

fn text_of(variable: &Variables<'_>, name: &str) -> Option<String> {
    variable(name).map(|value| value.to_string_lossy().into_owned())
}

/// The global flags that name an engine.
#[derive(Default)]
struct Flags {
    host: Option<String>,
    context: Option<String>,
}

impl Flags {
    /// Reads the client's flags. It refuses several hosts, and a host together with a context; let
    /// it say so.
    fn of(client: &Client) -> Result<Self, ContextError> {
        let mut flags = Flags::default();
        for (name, value) in client.global_flags() {
            match name.as_str() {
                "H" | "host" if flags.host.is_some() => return Err(ContextError::AskClient),
                "H" | "host" => flags.host = Some(value),
                "c" | "context" => flags.context = Some(value),
                _ => {}
            }
        }
        flags.context = flags.context.filter(|context| !context.is_empty());
        match flags {
            Flags { host: Some(_), context: Some(_) } => Err(ContextError::AskClient),
            flags => Ok(flags),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::sha256_hex;

    fn client(globals: &[&str], environment: &[(&str, &str)]) -> Client {
        let mut client = Client::plain(crate::command::Engine::Docker);
        client.globals = globals.iter().map(OsString::from).collect();
        // The environment of the tests must not matter.
        client.environment = [("DOCKER_CONFIG", "")]
            .iter()
            .chain(environment)
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        client
    }

    /// Makes a folder like ~/.docker with one context.
    fn configuration(current: &str, context: &str, host: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("config.json"),
            format!("{{\"currentContext\":\"{current}\"}}"),
        )
        .unwrap();
        let meta = folder.path().join("contexts/meta").join(sha256_hex(context));
        std::fs::create_dir_all(&meta).unwrap();
        let text = format!(
            "{{\"Name\":\"{context}\",\"Endpoints\":{{\"docker\":{{\"Host\":\"{host}\"}}}}}}"
        );
        std::fs::write(meta.join("meta.json"), text).unwrap();
        folder
    }

    fn socket(globals: &[&str], environment: &[(&str, &str)]) -> Result<String, ContextError> {
        let client = client(globals, environment);
        let set = |name: &str| environment.iter().rev().find(|(set, _)| *set == name);
        let endpoint = endpoint_with(&client, &|name| Some(set(name)?.1.into()))?;
        Ok(socket_at(&client, &endpoint)?.display().to_string())
    }

    #[test]
    fn the_endpoint_is_found_as_dockers_client_finds_it() {
        let folder = configuration("here", "here", "unix:///ctx");
        let config = ("DOCKER_CONFIG", folder.path().to_str().unwrap());
        let host = ("DOCKER_HOST", "unix:///env");
        for (globals, environment, expected) in [
            (&[][..], &[("HOME", "/nowhere")][..], Some(DEFAULT_SOCKET)),
            (&[], &[config], Some("/ctx")),
            (&[], &[config, host], Some("/env")),
            (&["-H", "unix:///flag"], &[config, host], Some("/flag")),
            (&["--host=unix:///flag"], &[config, host], Some("/flag")),
            (&["--context", "here"], &[config, host], Some("/ctx")),
            (&["--context", ""], &[config], Some("/ctx")),
            (&["-c", "default"], &[config, host], Some("/env")),
            (&["-c", "unknown", "-c", "here"], &[config], Some("/ctx")),
            (&["-c", "here", "-H", "unix:///flag"], &[config], None),
            (&["-H", "unix:///flag", "-H", "unix:///other"], &[config], None),
            (&[], &[config, ("DOCKER_CONTEXT", "default")], Some(DEFAULT_SOCKET)),
            // Clients differ.
            (&[], &[config, ("DOCKER_HOST", "")], None),
            (&[], &[config, ("DOCKER_CONTEXT", "")], None),
            (&["-c", "here"], &[config, ("DOCKER_HOST", "")], Some("/ctx")),
            (&[], &[("HOME", "/nowhere"), ("DOCKER_HOST", "")], Some(DEFAULT_SOCKET)),
            (&[], &[("DOCKER_HOST", "tcp://h:2375")], None),
            (&[], &[("DOCKER_HOST", "ssh://h")], None),
            (&["--tlsverify", "-H", "unix:///s"], &[], None),
            (&[], &[("DOCKER_HOST", "unix://")], Some(DEFAULT_SOCKET)),
        ] {
            assert_eq!(
                socket(globals, environment),
                expected.map(str::to_owned).ok_or(ContextError::AskClient),
                "{globals:?} {environment:?}"
            );
        }
        let by_flag = ["--config", folder.path().to_str().unwrap()];
        assert_eq!(socket(&by_flag, &[]).as_deref(), Ok("/ctx"));
    }

    #[test]
    fn a_context_elsewhere_goes_through_the_client() {
        let folder = configuration("far", "far", "ssh://h");
        let config = ("DOCKER_CONFIG", folder.path().to_str().unwrap());
        assert_eq!(socket(&[], &[config]), Err(ContextError::AskClient));
    }

    #[test]
    fn a_context_that_does_not_exist_is_reported_with_what_names_it() {
        let folder = configuration("gone", "here", "unix:///ctx");
        let config = ("DOCKER_CONFIG", folder.path().to_str().unwrap());
        for (globals, environment, named_by) in [
            (&[][..], &[config][..], "currentContext in "),
            (&[], &[config, ("DOCKER_CONTEXT", "gone")], "DOCKER_CONTEXT"),
            (&["-c", "gone"], &[config, ("DOCKER_HOST", "unix:///s")], "--context"),
        ] {
            match socket(globals, environment) {
                Err(ContextError::NoSuchContext(why)) => {
                    assert!(why.contains("'gone'") && why.contains(named_by), "{why}");
                }
                other => panic!("{globals:?} {environment:?}: {other:?}"),
            }
        }
        assert_eq!(socket(&[], &[config, ("DOCKER_CONTEXT", "here")]).as_deref(), Ok("/ctx"));
    }

    #[test]
    fn a_host_of_a_context_may_be_empty_but_not_incomplete() {
        for (host, expected) in
            [("", Ok(DEFAULT_SOCKET)), ("unix://", Err(())), (" unix:///a", Err(()))]
        {
            let folder = configuration("here", "here", host);
            let config = ("DOCKER_CONFIG", folder.path().to_str().unwrap());
            assert_eq!(socket(&[], &[config]).as_deref().map_err(drop), expected, "{host}");
        }
    }
}
