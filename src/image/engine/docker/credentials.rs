//! The user's credentials for a registry, as docker's client finds them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde_json::json;

use crate::command::Client;
use crate::go_json;
use crate::image::answer::{ANSWER_WITHIN, Unanswered};
use crate::image::engine::client::run_expression;
use crate::reference::DOCKER_HUB;

/// The name of Docker Hub in docker's configuration.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What `docker login` writes as `auth`; other tools leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A registry, and its name in docker's configuration.
#[derive(Clone, Copy)]
pub(crate) struct Registry<'r> {
    pub(crate) name: &'r str,
    key: &'r str,
}

impl<'r> Registry<'r> {
    pub(crate) fn new(name: &'r str) -> Self {
        Registry { name, key: if name == DOCKER_HUB { HUB_KEY } else { name } }
    }
}

/// What a user logs in with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    IdentityToken(String),
    Password { username: String, password: String },
}

impl Credential {
    /// Returns the header line that hands the credential to the engine: JSON in base64url.
    pub(crate) fn header_line(&self, registry: Registry<'_>) -> String {
        let fields = match self {
            Credential::IdentityToken(token) => {
                json!({ "identitytoken": token, "serveraddress": registry.key })
            }
            Credential::Password { username, password } => {
                json!({ "username": username, "password": password, "serveraddress": registry.key })
            }
        };
        format!("X-Registry-Auth: {}\r\n", URL_SAFE.encode(fields.to_string()))
    }
}

/// Returns the credentials in `DOCKER_AUTH_CONFIG`.
///
/// Docker's client ignores what it cannot read there, and helpers
/// (<https://github.com/docker/cli/pull/6008>). These credentials come before those of its
/// configuration.
pub(crate) fn in_variable(client: &Client, registry: Registry<'_>) -> Option<Credential> {
    let text = client.variable("DOCKER_AUTH_CONFIG")?.into_encoded_bytes();
    let given: Configuration = go_json::read_config(&text).ok()?;
    given.written(registry.key).ok()?
}

/// Returns the credentials that docker's configuration names, if any.
///
/// # Errors
/// There are some, but they are not available. Asking without them could get another answer, even
/// "not found".
pub(crate) fn in_configuration(
    client: &Client,
    registry: Registry<'_>,
) -> Result<Option<Credential>, Unanswered> {
    let Some(file) = client.config_folder().map(|folder| folder.join("config.json")) else {
        return Ok(None);
    };
    let unavailable = |why: String| {
        format!(
            "the credentials for the registry {} are not available: {why} ({})",
            registry.name,
            file.display()
        )
    };
    let unreadable = |why: String| Unanswered::permanent(unavailable(why));
    let Some(text) = read_if_there(&file).map_err(|error| unreadable(error.to_string()))? else {
        return Ok(None);
    };
    let configuration: Configuration =
        go_json::read_config(&text).map_err(|error| unreadable(error.to_string()))?;
    match configuration.helper(registry.key) {
        Some(helper) => {
            ask_helper(client, helper, registry.key).map_err(|error| error.map_why(unavailable))
        }
        None => configuration.written(registry.key).map_err(|why| unreadable(why.to_owned())),
    }
}

fn read_if_there(file: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::read(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What docker's configuration says about credentials.
#[derive(Default)]
struct Configuration {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}
go_json::fields!(Configuration {
    "auths" => auths,
    "credsStore" => creds_store,
    "credHelpers" => cred_helpers,
});

/// What is written down for one registry. Empty fields do not count.
#[derive(Default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identity_token: String,
}
go_json::fields!(Entry {
    "auth" => auth,
    "username" => username,
    "password" => password,
    "identitytoken" => identity_token,
});

impl Configuration {
    /// Returns the helper that has the credentials for a registry. If there is one, what is written
    /// down does not count (docker/cli, `getConfiguredCredentialStore`).
    fn helper(&self, key: &str) -> Option<&str> {
        let helper = self.cred_helpers.get(key).unwrap_or(&self.creds_store);
        Some(helper.as_str()).filter(|name| !name.is_empty())
    }

    /// Returns what is written down for a registry, by its name or else by a URL of it.
    ///
    /// # Errors
    /// The entry cannot be decoded.
    fn written(&self, key: &str) -> Result<Option<Credential>, &'static str> {
        let by_url = || self.auths.iter().find(|(url, _)| host_name(url) == key);
        let by_url = || by_url().map(|(_, entry)| entry);
        match self.auths.get(key).or_else(by_url) {
            Some(entry) => entry.credential(),
            None => Ok(None),
        }
    }
}

impl Entry {
    /// Returns the credential that docker's client makes of the entry: a token comes first, and
    /// `auth` comes before the other fields.
    fn credential(&self) -> Result<Option<Credential>, &'static str> {
        Ok(if !self.identity_token.is_empty() {
            Some(Credential::IdentityToken(self.identity_token.clone()))
        } else if !self.auth.is_empty() {
            Some(decode_auth(&self.auth).ok_or("'auth' is not USER:PASSWORD in base64")?)
        } else if !self.username.is_empty() && !self.password.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            Some(Credential::Password { username, password })
        } else {
            None
        })
    }
}

fn decode_auth(auth: &str) -> Option<Credential> {
    let text = String::from_utf8(BASE64.decode(auth).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credential::Password { username: username.to_owned(), password: password.to_owned() })
}

/// Returns the host in a URL (docker/cli, `ConvertToHostname`).
fn host_name(url: &str) -> &str {
    let name = url.split_once("://").map_or(url, |(_, name)| name);
    name.split_once('/').map_or(name, |(host, _)| host)
}

/// Runs `docker-credential-NAME get` with the variables that the build command sets for its client
/// (<https://github.com/docker/docker-credential-helpers>). Returns `None` if the helper has no
/// credentials for this registry.
fn ask_helper(client: &Client, helper: &str, key: &str) -> Result<Option<Credential>, Unanswered> {
    /// `errCredentialsNotFoundMessage`
    const HAS_NONE: &[u8] = b"credentials not found in native keychain";
    let name = format!("docker-credential-{helper}");
    let get = duct::cmd(&name, ["get"]).stdin_bytes(key);
    let get = client.environment.iter().fold(get, |get, (name, value)| get.env(name, value));
    let said = run_expression(&name, get, ANSWER_WITHIN)?;
    match said.status {
        Some(0) => match read_secret(&said.stdout) {
            Some(credential) => Ok(Some(credential)),
            // The output is not shown: it may be half of a secret.
            None => Err(Unanswered::permanent(format!("{name} did not print a credential"))),
        },
        _ if said.stdout.trim_ascii() == HAS_NONE => Ok(None),
        // It may have asked something that is busy, so this may pass.
        _ => Err(said.unanswered(&name)),
    }
}

/// Reads what a helper prints.
fn read_secret(output: &[u8]) -> Option<Credential> {
    #[derive(Default)]
    struct Secret {
        username: Option<String>,
        secret: Option<String>,
    }
    go_json::fields!(Secret { "Username" => username, "Secret" => secret });
    /// The user name that marks a secret as a token.
    const TOKEN: &str = "<token>";
    let Secret { username, secret } = go_json::read(output).ok()?;
    let (username, secret) = (username?, secret?);
    Some(match username.as_str() {
        TOKEN => Credential::IdentityToken(secret),
        _ => Credential::Password { username, password: secret },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_found_as_docker_finds_them() {
        let auth = |config: &str| {
            let config: Configuration = go_json::read_config(config.as_bytes()).unwrap();
            (config.helper("h:5").map(str::to_owned), config.written("h:5").ok().flatten())
        };
        let written = |key: &str| auth(&format!(r#"{{"auths":{{"{key}":{{"auth":"YTpi"}}}}}}"#));
        let a_b = || Credential::Password { username: "a".into(), password: "b".into() };
        for key in ["h:5", "http://h:5", "https://h:5/v1/", "h:5/v1/", "h:5/"] {
            assert_eq!(written(key), (None, Some(a_b())), "{key}");
        }
        for key in ["h", "h:50", "https://h/h:5", "a/h:5", ""] {
            assert_eq!(written(key), (None, None), "{key}");
        }
        let by_name = r#"{"auths":{"h:5/v1/":{"auth":"!"},"h:5":{"auth":"YTpi"}}}"#;
        assert_eq!(auth(by_name).1, Some(a_b()));
        for (fields, expected) in [
            (r#""auth":"","identitytoken":"""#, None),
            (r#""auth":"","username":"a","password":"b""#, Some(a_b())),
            (r#""auth":"","identitytoken":"t""#, Some(Credential::IdentityToken("t".into()))),
            (r#""auth":"YTpi","identitytoken":"""#, Some(a_b())),
        ] {
            let config = format!("{{\"auths\":{{\"h:5\":{{{fields}}}}}}}");
            assert_eq!(auth(&config), (None, expected), "{fields}");
        }
        for (config, helper) in [
            (r#"{"credsStore":"s","credHelpers":null}"#, Some("s")),
            (r#"{"credsStore":"s","credHelpers":{"h":"x","h:5":"c"}}"#, Some("c")),
            (r#"{"credsStore":"s","credHelpers":{"h:5":""}}"#, None),
            (r#"{"credsStore":"","credHelpers":{"h":"x"},"auths":null}"#, None),
        ] {
            assert_eq!(auth(config).0.as_deref(), helper, "{config}");
        }
    }

    #[test]
    fn entries_are_read_by_the_rules_of_go() {
        let read =
            |config: &str| -> Configuration { go_json::read_config(config.as_bytes()).unwrap() };
        let user = |config: &str| match read(config).written("h:5").unwrap() {
            Some(Credential::Password { username, .. }) => Some(username),
            Some(Credential::IdentityToken(token)) => Some(format!("token {token}")),
            None => None,
        };
        // printf a:b | base64; printf x:y | base64
        for (config, expected) in [
            (r#"{"Auths":{"h:5":{"Auth":"YTpi"}}}"#, Some("a")),
            (r#"{"auths":{"H:5":{"auth":"YTpi"}}}"#, None),
            (r#"{"auths":{"h:5":{"auth":"eDp5"}},"AUTHS":{"h:5":{"auth":"YTpi"}}}"#, Some("a")),
            (r#"{"AUTHS":{"h:5":{"auth":"YTpi"}},"auths":{"g":{"auth":"eDp5"}}}"#, Some("a")),
            (r#"{"auths":{"h:5":{"auth":"YTpi"}},"Auths":null}"#, None),
            (r#"{"auths":{"h:5":{"auth":"YTpi"},"h:5":{}}}"#, None),
            (r#"{"auths":{"h:5":{"auth":"eDp5","AUTH":"YTpi"}}}"#, Some("a")),
            (r#"{"auths":{"h:5":{"auth":"YTpi","Auth":null}}}"#, Some("a")),
            (r#"{"auths":{"h:5":{"UserName":"a","paſſword":"b"}}}"#, Some("a")),
            (r#"{"auths":{"h:5":{"IdentityToken":"t"}}}"#, Some("token t")),
            (r#"{"auths":{"h:5":{"auth":"YTpi"},"g":7},"HttpHeaders":7}"#, Some("a")),
            (r#"{"auths":{"h:5":7}}"#, None),
            ("", None),
        ] {
            assert_eq!(user(config).as_deref(), expected, "{config}");
        }
        for (config, expected) in [
            (r#"{"CredsStore":"s"}"#, Some("s")),
            (r#"{"credsStore":"s","CREDSSTORE":"t"}"#, Some("t")),
            (r#"{"credsStore":"s","CredsStore":null}"#, Some("s")),
            (r#"{"CredHelpers":{"h:5":"c"}}"#, Some("c")),
            (r#"{"credHelpers":{"H:5":"c"}}"#, None),
            (r#"{"credsStore":"s","credHelpers":{"h:5":null}}"#, None),
            (r#"{"credsStore":"s","credHelpers":{"h:5":"c"},"Credhelpers":null}"#, Some("s")),
        ] {
            assert_eq!(read(config).helper("h:5"), expected, "{config}");
        }
    }

    #[test]
    fn auth_is_a_name_and_a_password_in_base64_with_or_without_padding() {
        let a = |password: &str| {
            Some(Credential::Password { username: "a".into(), password: password.into() })
        };
        // printf a:b:c | base64; printf a:bc | base64; printf a: | base64
        for (auth, expected) in [
            ("YTpiOmM=", a("b:c")),
            ("YTpiOmM", a("b:c")),
            ("YTpiYw==", a("bc")),
            ("YTpiYw", a("bc")),
            ("YTo=", a("")),
        ] {
            assert_eq!(decode_auth(auth), expected, "{auth}");
        }
        // printf ab | base64; printf 'a:\377' | base64
        for wrong in ["YWI=", "YTr/", "!", "YTpi YTpi", ""] {
            assert_eq!(decode_auth(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn auth_comes_before_a_name_and_a_password_as_with_docker() {
        let config = r#"{"auths":{"h":{"auth":"YTpi","username":"x","password":"y"}}}"#;
        let config: Configuration = go_json::read_config(config.as_bytes()).unwrap();
        let expected = Credential::Password { username: "a".into(), password: "b".into() };
        assert_eq!(config.written("h"), Ok(Some(expected)));
    }

    #[test]
    fn auth_that_cannot_be_decoded_is_an_error_and_not_no_credential() {
        let config: Configuration =
            go_json::read_config(br#"{"auths":{"h":{"auth":"!"}}}"#).unwrap();
        assert!(config.written("h").is_err());
    }

    proptest! {
        #[test]
        fn no_configuration_makes_us_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            auth in ".{0,30}",
        ) {
            let _ = go_json::read_config::<Configuration>(&bytes).map(|it| it.written("h").is_ok());
            decode_auth(&auth);
        }
    }
}
