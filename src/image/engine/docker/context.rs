//! Docker's contexts: the one in use, and the address of its engine, as docker's client reads them
//! (<https://docs.docker.com/engine/manage-resources/contexts/>).

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use crate::go_json;
use crate::reference::sha256_hex;

/// Why buildlock does not know which engine docker's client would talk to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ContextError {
    /// Only the client itself can tell.
    AskClient,
    /// The client would use a context that does not exist; a sentence for the user.
    NoSuchContext(String),
}

/// A context.
#[derive(Debug)]
pub(crate) struct NamedContext {
    pub(crate) name: String,
    /// What names it, in words for the user.
    pub(crate) source: String,
}

/// Returns the context that the configuration in this folder names, if any.
///
/// # Errors
/// The file cannot be read or is not JSON. The client warns and ignores the file, so ask the
/// client.
pub(crate) fn current_context(config: &Path) -> Result<Option<NamedContext>, ContextError> {
    let file = config.join("config.json");
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        // If `config` is a file, the client only warns, and goes on without a context. For a
        // `meta.json` it would fail.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(_) => return Err(ContextError::AskClient),
    };
    let context = context_in(&text).map_err(|_| ContextError::AskClient)?;
    let source = format!("currentContext in {}", file.display());
    Ok(context.map(|name| NamedContext { name, source }))
}

/// Reads the context that the text of docker's `config.json` names, if any.
///
/// # Errors
/// The text is not JSON.
pub fn context_in(config: &[u8]) -> serde_json::Result<Option<String>> {
    #[derive(Default)]
    struct Config {
        current_context: String,
    }
    go_json::fields!(Config { "currentContext" => current_context });
    let config: Config = go_json::read_config(config)?;
    Ok(Some(config.current_context).filter(|context| !context.is_empty()))
}

/// Returns the address of the engine in a context's `meta.json`.
///
/// # Errors
/// There is no such context, or the file is malformed or cannot be read. If it is not missing, the
/// client reports the problem itself.
pub(crate) fn context_host(config: &Path, context: &NamedContext) -> Result<String, ContextError> {
    let NamedContext { name, source } = context;
    let file = config.join("contexts/meta").join(sha256_hex(name)).join("meta.json");
    let text = std::fs::read(&file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => ContextError::NoSuchContext(format!(
            "docker's context '{name}', which {source} names, does not exist: there is no {}; \
             'docker context ls' lists the existing ones",
            file.display()
        )),
        _ => ContextError::AskClient,
    })?;
    let host = host_in(&text).map_err(|_| ContextError::AskClient)?;
    // Docker's client expands a bare unix:// to the default socket in DOCKER_HOST, but not in a
    // context.
    if host == "unix://" { Err(ContextError::AskClient) } else { Ok(host) }
}

/// Returns the engine's address from the text of a context's `meta.json`; empty if its docker
/// endpoint has no `Host`.
///
/// # Errors
/// The text is not valid for docker's client, or has no docker endpoint.
pub fn host_in(meta: &[u8]) -> serde_json::Result<String> {
    // These are all fields whose type the client checks.
    #[derive(Default)]
    struct Meta {
        name: String,
        metadata: Metadata,
        endpoints: BTreeMap<String, Option<Docker>>,
    }
    go_json::fields!(Meta { "Name" => name, "Metadata" => metadata, "Endpoints" => endpoints });
    #[derive(Default)]
    struct Metadata;
    go_json::fields!(Metadata {});
    #[derive(Default)]
    struct Docker {
        host: String,
        skip_tls_verify: bool,
    }
    go_json::fields!(Docker { "Host" => host, "SkipTLSVerify" => skip_tls_verify });
    let mut meta: Meta = go_json::read(meta)?;
    match meta.endpoints.remove("docker").flatten() {
        Some(docker) => Ok(docker.host),
        None => Err(serde::de::Error::missing_field("docker")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expected results are those of docker's client, 20.10 and 28.

    #[test]
    fn the_current_context_is_read_as_dockers_client_reads_it() {
        for (config, expected) in [
            (r#"{"currentContext":"m"}"#, Some("m")),
            (r#"{"CurrentContext":"m"}"#, Some("m")),
            (r#"{"CURRENTCONTEXT":"n","currentContext":"m"}"#, Some("m")),
            (r#"{"currentContext":"m","CURRENTCONTEXT":"n"}"#, Some("n")),
            (r#"{"currentContext":"m","currentContext":null}"#, Some("m")),
            (r#"{"currentContext":"m","CurrentContext":""}"#, None),
            (r#"{"currentContext":7}"#, None),
            (r#"{"currentContext":7,"currentContext":"m"}"#, Some("m")),
            (r#"{"currentContext":"m","currentContext":7}"#, Some("m")),
            (r#"{"auths":[],"currentContext":"m"}"#, Some("m")),
            (r#"{"currentContext":"m"}{"currentContext":"n"}"#, Some("m")),
            (r#"{"current-context":"m"}"#, None),
            ("[]", None),
            ("null", None),
            ("", None),
        ] {
            assert_eq!(context_in(config.as_bytes()).unwrap().as_deref(), expected, "{config}");
        }
        for config in ["nonsense", r#"{"currentContext":"m",}"#, "\u{feff}{}"] {
            assert!(context_in(config.as_bytes()).is_err(), "{config}");
        }
    }

    #[test]
    fn the_host_of_a_context_is_read_as_dockers_client_reads_it() {
        let a = r#"{"Host":"unix:///a"}"#;
        for (endpoints, expected) in [
            (format!(r#""Endpoints":{{"docker":{a}}}"#), Some("unix:///a")),
            (format!(r#""endpoints":{{"docker":{a}}}"#), Some("unix:///a")),
            (format!(r#""Endpoints":{{"Docker":{a}}}"#), None),
            (format!(r#""Endpoints":{{"docker":{a},"docKer":{{}}}}"#), Some("unix:///a")),
            (r#""Endpoints":{"docker":{"HoſT":"unix:///a"}}"#.into(), Some("unix:///a")),
            (r#""Endpoints":{"docker":{"Host":"x","HOST":"unix:///a"}}"#.into(), Some("unix:///a")),
            (r#""Endpoints":{"docker":{"HOST":"x","Host":"unix:///a"}}"#.into(), Some("unix:///a")),
            (
                r#""Endpoints":{"docker":{"Host":"unix:///a","HOST":null}}"#.into(),
                Some("unix:///a"),
            ),
            (format!(r#""Endpoints":{{"docker":{a}}},"ENDPOINTS":{{"docker":{{}}}}"#), Some("")),
            (
                format!(r#""Endpoints":{{"docker":{a}}},"ENDPOINTS":{{"x":{{}}}}"#),
                Some("unix:///a"),
            ),
            (format!(r#""Endpoints":{{"docker":{a}}},"ENDPOINTS":null"#), None),
            (r#""Endpoints":{"docker":null}"#.into(), None),
            (r#""Endpoints":{"docker":{"Host":null}}"#.into(), Some("")),
            (r#""Endpoints":{"docker":{"Host":7}}"#.into(), None),
            (r#""Endpoints":{"docker":{"Host":"x","SkipTLSVerify":"no"}}"#.into(), None),
            (format!(r#""Endpoints":{{"docker":{a},"kubernetes":7}}"#), None),
            (format!(r#""Name":7,"Endpoints":{{"docker":{a}}}"#), None),
            (format!(r#""Metadata":7,"Endpoints":{{"docker":{a}}}"#), None),
            (format!(r#""Metadata":null,"Endpoints":{{"docker":{a}}}"#), Some("unix:///a")),
            (String::new(), None),
        ] {
            let meta = format!("{{{endpoints}}}");
            assert_eq!(host_in(meta.as_bytes()).ok().as_deref(), expected, "{meta}");
        }
        assert!(host_in(format!("{{\"Endpoints\":{{\"docker\":{a}}}}} x").as_bytes()).is_err());
    }
}
