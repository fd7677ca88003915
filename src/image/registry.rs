//! Does the registry have the image?
//!
//! An engine with a local socket is asked to ask (`GET /distribution/NAME/json`): it has the
//! mirrors, the certificates and the insecure registries that a push and a pull will have. The
//! credentials are the user's own, which docker's client would send along. Elsewhere, and where a
//! builder of buildx pushes, it is buildx or skopeo that asks.
//!
//! Not `docker manifest inspect`: of a registry without TLS it says «no such manifest» of what is
//! there.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine as _;
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{self, Said};
use super::engine::{self, Response, error_message};
use super::{ANSWER_WITHIN, Answer, Platform, Unanswered, excerpt};
use crate::command::{Client, Engine};
use crate::go_json;
use crate::reference::{DOCKER_HUB, Tag};

/// The name of Docker Hub in docker's configuration.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What the engine says where a registry wants credentials and it has none (distribution,
/// `ErrNoBasicAuthCredentials`).
const NO_CREDENTIALS: &str = "no basic auth credentials";

/// Asks the registry by way of the engine that listens on `socket`.
///
/// # Errors
/// It said neither that the image is there nor that it is not.
pub(super) fn over_engine(client: &Client, socket: &Path, tag: &Tag) -> Result<Answer, Unanswered> {
    let (registry, name) = tag.in_registry();
    let key = if registry == DOCKER_HUB { HUB_KEY } else { registry };
    let path = format!("/distribution/{registry}/{name}/json");
    let ask = |credential: Option<DockerCredential>| {
        let field = credential.map(|credential| header_field(credential, key));
        engine::get(socket, &path, &field.unwrap_or_default(), ANSWER_WITHIN).map_err(|error| {
            let Unanswered { why, passes } = engine::explain(socket, &error);
            Unanswered { why: format!("{why} (it was to ask the registry {registry})"), passes }
        })
    };
    let given = in_variable(client, key).map(|given| ask(Some(given))).transpose()?;
    let response = match given {
        Some(response) if !is_refusal(&response) => response,
        // Clients before 28.3 do not mind the variable, and push with what is in their
        // configuration.
        refused => match (in_configuration(client, registry, key)?, refused) {
            (None, Some(refused)) => refused,
            (written, _) => ask(written)?,
        },
    };
    read_answer(&response, tag)
}

/// Does the registry want other credentials, or any? Without any it is the engine itself that gives
/// up.
fn is_refusal(response: &Response) -> bool {
    matches!(response.status, 401 | 403)
        || error_message(&response.body).is_some_and(|said| said.contains(NO_CREDENTIALS))
}

/// What the engine's response says of an image in its registry. The engine passes on the
/// registry's own words; of its answers with 404 it only makes one itself where the registry's
/// code has that status (moby, statusCodeFromDistributionError).
///
/// # Errors
/// Anything but an image, or the registry's own word that there is none.
pub fn read_answer(response: &Response, tag: &Tag) -> Result<Answer, Unanswered> {
    let (registry, _) = tag.in_registry();
    let said = error_message(&response.body);
    match response.status {
        200 => match serde_json::from_slice::<Distribution>(&response.body) {
            Ok(there) if !there.descriptor.digest.is_empty() => Ok(Answer::Present(
                there
                    .platforms
                    .unwrap_or_default()
                    .into_iter()
                    .filter_map(Described::known)
                    .collect(),
            )),
            _ => Err(Unanswered::lasting(format!(
                "the engine says nothing certain of the registry {registry}: {}",
                excerpt(&response.body)
            ))),
        },
        404 if said.as_deref().is_some_and(says_unknown) => Ok(Answer::Missing),
        // A code that the engine does not know is 500 to it.
        500 if said.as_deref().is_some_and(|said| is_harbors_not_found(said, tag)) => {
            Ok(Answer::Missing)
        }
        status => {
            let said = said.unwrap_or_else(|| excerpt(&response.body));
            let refused = is_refusal(response);
            let login = match refused {
                true => format!("; is this user logged in (docker login {registry})?"),
                false => String::new(),
            };
            let why = format!(
                "the registry {registry}, by way of the engine: HTTP status {status}: {said}{login}"
            );
            Err(Unanswered { why, passes: !refused && (status >= 500 || status == 429) })
        }
    }
}

/// Is this a registry's word that it has no such manifest, or no such repository? `CODE: MESSAGE`,
/// with the code as the distribution specification has it, in lower case and without underscores
/// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes>). Of
/// several errors, each has a line of its own; then it is not that one alone.
fn says_unknown(message: &str) -> bool {
    let unknown = |text: &str| {
        ["manifest unknown", "name unknown"].iter().any(|code| {
            text.strip_prefix(code).is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
        })
    };
    unknown(message.trim_end())
}

/// Harbor answers 404 with a code of its own, `NOT_FOUND`, for which its message has to do
/// (<https://github.com/goharbor/harbor/issues/17852>).
fn is_harbors_not_found(message: &str, tag: &Tag) -> bool {
    let (_, name) = tag.in_registry();
    let (repository, _) = split_tag(&name);
    message == format!("unknown: artifact {name} not found")
        || message == format!("unknown: repository {repository} not found")
}

fn split_tag(name: &str) -> (&str, &str) {
    // A canonical tag has one.
    name.rsplit_once(':').unwrap_or((name, "latest"))
}

/// The answer to `GET /distribution/NAME/json`
/// (<https://docs.docker.com/reference/api/engine/>, DistributionInspect).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Distribution {
    descriptor: Descriptor,
    /// None for a single image in OCI's format: the engine does not look into it.
    #[serde(default)]
    platforms: Option<Vec<Described>>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(default)]
    digest: String,
}

/// A platform as OCI writes it.
#[derive(Deserialize)]
pub(super) struct Described {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Described {
    /// None for what is no image, such as an attestation (`unknown/unknown`).
    pub(super) fn known(self) -> Option<Platform> {
        let Described { os, architecture, variant } = self;
        let platform = Platform { os, architecture, variant }.known()?;
        (platform.os != "unknown").then_some(platform)
    }

    fn read(json: &Value) -> Option<Platform> {
        serde_json::from_value::<Self>(json.clone()).ok()?.known()
    }
}

/// A credential as the engine wants it, in a line of the head: JSON in base64url.
fn header_field(credential: DockerCredential, key: &str) -> String {
    let fields = match credential {
        DockerCredential::IdentityToken(token) => {
            json!({ "identitytoken": token, "serveraddress": key })
        }
        DockerCredential::UsernamePassword(username, password) => {
            json!({ "username": username, "password": password, "serveraddress": key })
        }
    };
    let secret = base64::engine::general_purpose::URL_SAFE.encode(fields.to_string());
    format!("X-Registry-Auth: {secret}\r\n")
}

/// The credentials of `DOCKER_AUTH_CONFIG`, of which docker's client minds nothing that it cannot
/// read, and no helpers (<https://github.com/docker/cli/pull/6008>). Where its configuration has
/// some, too, these come first.
fn in_variable(client: &Client, key: &str) -> Option<DockerCredential> {
    let text = client.variable("DOCKER_AUTH_CONFIG")?.into_encoded_bytes();
    let given: Configuration = go_json::read_config(&text).ok()?;
    given.written(key).ok()?
}

/// The credentials that docker's client has by its configuration. None if it has none.
///
/// # Errors
/// They cannot be had. To ask without would get another answer, which may well be «not found».
fn in_configuration(
    client: &Client,
    registry: &str,
    key: &str,
) -> Result<Option<DockerCredential>, Unanswered> {
    let Some(file) = client.configuration().map(|folder| folder.join("config.json")) else {
        return Ok(None);
    };
    let failed = |why: String| {
        format!(
            "the credentials for the registry {registry} cannot be had: {why} ({})",
            file.display()
        )
    };
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Unanswered::lasting(failed(error.to_string()))),
    };
    let configuration: Configuration = go_json::read_config(&text)
        .map_err(|error| Unanswered::lasting(failed(error.to_string())))?;
    match configuration.helper(key) {
        Some(helper) => ask_helper(client, helper, key)
            .map_err(|error| Unanswered { why: failed(error.why), ..error }),
        None => configuration
            .written(key)
            .map_err(|error| Unanswered::lasting(failed(error.to_string()))),
    }
}

/// What docker's configuration says of credentials.
#[derive(Default)]
struct Configuration {
    auths: BTreeMap<String, Credential>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}
go_json::fields!(Configuration {
    "auths" => auths,
    "credsStore" => creds_store,
    "credHelpers" => cred_helpers,
});

/// What is written down for one registry.
#[derive(Default)]
struct Credential {
    auth: String,
    username: String,
    password: String,
    identity_token: String,
}
go_json::fields!(Credential {
    "auth" => auth,
    "username" => username,
    "password" => password,
    "identitytoken" => identity_token,
});

impl Configuration {
    /// The helper that has the credentials for a registry. What was written into the file before
    /// there was one does not count (docker/cli, `getConfiguredCredentialStore`).
    fn helper(&self, key: &str) -> Option<&str> {
        let helper = self.cred_helpers.get(key).unwrap_or(&self.creds_store);
        Some(helper.as_str()).filter(|name| !name.is_empty())
    }

    /// What is written down for a registry, by its name or else by a URL of it. A field that is set
    /// to nothing is none.
    fn written(&self, key: &str) -> Result<Option<DockerCredential>, CredentialRetrievalError> {
        let by_url = || self.auths.iter().find(|(url, _)| host_name(url) == key);
        let by_url = || by_url().map(|(_, entry)| entry);
        let Some(entry) = self.auths.get(key).or_else(by_url) else { return Ok(None) };
        let fields = [
            ("auth", &entry.auth),
            ("username", &entry.username),
            ("password", &entry.password),
            ("identitytoken", &entry.identity_token),
        ];
        let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let fields: BTreeMap<_, _> = fields.collect();
        let config = json!({ "auths": { key: fields } }).to_string();
        match get_credential_from_reader(config.as_bytes(), key) {
            Ok(credential) => Ok(Some(credential)),
            Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// As docker/cli has it, `ConvertToHostname`.
fn host_name(url: &str) -> &str {
    let name = url.split_once("://").map_or(url, |(_, name)| name);
    name.split_once('/').map_or(name, |(host, _)| host)
}

/// `docker-credential-NAME get`, with the variables that COMMAND sets for its client
/// (<https://github.com/docker/docker-credential-helpers>). None if it has none for this registry.
fn ask_helper(
    client: &Client,
    helper: &str,
    key: &str,
) -> Result<Option<DockerCredential>, Unanswered> {
    #[derive(Default)]
    struct Secret {
        username: Option<String>,
        secret: Option<String>,
    }
    go_json::fields!(Secret { "Username" => username, "Secret" => secret });
    /// `errCredentialsNotFoundMessage`
    const HAS_NONE: &[u8] = b"credentials not found in native keychain";
    /// What stands in the place of a user's name where the secret is a token.
    const TOKEN: &str = "<token>";
    let name = format!("docker-credential-{helper}");
    let get = duct::cmd(&name, ["get"]).stdin_bytes(key);
    let get = client.environment.iter().fold(get, |get, (name, value)| get.env(name, value));
    let said = client::run_expression(&name, get, ANSWER_WITHIN)?;
    match said.status {
        Some(0) => match go_json::read(&said.stdout) {
            Ok(Secret { username: Some(username), secret: Some(secret) }) => {
                Ok(Some(match username.as_str() {
                    TOKEN => DockerCredential::IdentityToken(secret),
                    _ => DockerCredential::UsernamePassword(username, secret),
                }))
            }
            // Not what it said: it may be half of a secret.
            _ => Err(Unanswered::lasting(format!("{name} said something else"))),
        },
        _ if said.stdout.trim_ascii() == HAS_NONE => Ok(None),
        // It asks others, who may be busy.
        _ => Err(said.unanswered(&name)),
    }
}

/// `docker buildx imagetools inspect NAME`, behind COMMAND's words and with its builder, whose
/// mirrors and certificates it uses.
///
/// # Errors
/// It said neither that the image is there nor that it is not.
pub(super) fn imagetools(
    client: &Client,
    builder: Option<&str>,
    tag: &Tag,
    with_platform: bool,
) -> Result<Answer, Unanswered> {
    let name = full_name(tag);
    let mut words = vec!["buildx"];
    words.extend(builder.iter().flat_map(|builder| ["--builder", builder]));
    words.extend(["imagetools", "inspect", &name]);
    if with_platform {
        words.extend(["--format", "{{json .Image}}"]);
    }
    let said = client::run(client, &words).map_err(with_advice)?;
    imagetools_said(&said, tag).ok_or_else(|| with_advice(said.unanswered(client)))
}

/// What buildx said of an image in its registry, if anything is certain.
pub fn imagetools_said(said: &Said, tag: &Tag) -> Option<Answer> {
    match said.status? {
        0 => {
            let image: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            // Of one image its configuration, of several one each by their platforms.
            let several = image.as_object().into_iter().flat_map(|images| images.values());
            let platforms = [&image].into_iter().chain(several).filter_map(Described::read);
            Some(Answer::Present(platforms.collect()))
        }
        _ => {
            let not_found = format!("{}: not found", full_name(tag));
            let text = String::from_utf8_lossy(&said.stderr);
            let mut lines = text.lines().map(str::trim);
            let says_so = lines.any(|line| {
                let error = line.get(.."error: ".len());
                let is_error = error.is_some_and(|start| start.eq_ignore_ascii_case("error: "));
                is_error && line["error: ".len()..] == not_found
            });
            says_so.then_some(Answer::Missing)
        }
    }
}

/// `skopeo inspect docker://NAME`, behind COMMAND's words: podman itself answers from its own
/// storage where it can. Skopeo has podman's credentials and its registries.conf.
///
/// # Errors
/// It said neither that the image is there nor that it is not.
pub(super) fn skopeo(
    client: &Client,
    tag: &Tag,
    with_platform: bool,
) -> Result<Answer, Unanswered> {
    let skopeo = Client {
        engine: Engine::Podman,
        program: "skopeo".into(),
        globals: Vec::new(),
        ..client.clone()
    };
    let name = format!("docker://{}", full_name(tag));
    let inspect = |what: &str| {
        let said = client::run(&skopeo, &["inspect", what, &name]).map_err(with_advice)?;
        skopeo_said(&said, tag).ok_or_else(|| with_advice(said.unanswered(&skopeo)))
    };
    match inspect("--raw")? {
        // A list of images says for which platforms they are; one image's configuration does.
        Answer::Present(platforms) if platforms.is_empty() && with_platform => inspect("--config"),
        answer => Ok(answer),
    }
}

/// What skopeo said of an image in its registry, if anything is certain.
pub fn skopeo_said(said: &Said, tag: &Tag) -> Option<Answer> {
    if said.status? == 0 {
        let json: Value = serde_json::from_slice(&said.stdout).ok()?;
        return Some(Answer::Present(platforms_in(&json)));
    }
    let name = full_name(tag);
    let (repository, tag_part) = split_tag(&name);
    let reading = format!("reading manifest {tag_part} in {repository}: ");
    let text = String::from_utf8_lossy(&said.stderr);
    let mut reasons = text.lines().filter_map(|line| Some(line.split_once(&reading)?.1));
    // logrus puts what it says between quotes.
    reasons
        .any(|reason| {
            let reason = reason.trim_end().trim_end_matches('"');
            says_unknown(reason) || is_harbors_not_found(reason, tag)
        })
        .then_some(Answer::Missing)
}

/// The platforms in a list of images, or in one image's configuration.
pub(super) fn platforms_in(json: &Value) -> Vec<Platform> {
    let manifests = json["manifests"].as_array().into_iter().flatten();
    let platforms = manifests.map(|manifest| &manifest["platform"]).chain([json]);
    platforms.filter_map(Described::read).collect()
}

fn full_name(tag: &Tag) -> String {
    let (registry, name) = tag.in_registry();
    format!("{registry}/{name}")
}

fn with_advice(error: Unanswered) -> Unanswered {
    let why = format!("{}; to ask the registry in another way, give --check a command", error.why);
    Unanswered { why, ..error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "registry.example/a/b:1";

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn answer(status: u16, body: &str) -> Option<Answer> {
        read_answer(&Response { status, body: body.into() }, &tag(NAME)).ok()
    }

    fn message(status: u16, message: &str) -> Option<Answer> {
        answer(status, &json!({ "message": message }).to_string())
    }

    fn said(status: i32, stdout: &str, stderr: &str) -> Said {
        Said { status: Some(status), stdout: stdout.into(), stderr: stderr.into() }
    }

    fn platforms(answer: Option<Answer>) -> Vec<String> {
        match answer {
            Some(Answer::Present(platforms)) => platforms.iter().map(Platform::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_registrys_own_not_found_means_missing() {
        for (status, said) in [
            (404, "manifest unknown: manifest unknown"),
            (404, "manifest unknown: Requested image not found"),
            (404, "manifest unknown"),
            (404, "name unknown: repository name not known to registry"),
            (500, "unknown: artifact a/b:1 not found"),
            (500, "unknown: repository a/b not found"),
        ] {
            assert_eq!(message(status, said), Some(Answer::Missing), "{status} {said}");
        }
        for (status, said) in [
            (500, "manifest unknown: manifest unknown"),
            (200, "manifest unknown: manifest unknown"),
            (404, "page not found"),
            (404, "blob unknown: blob unknown to registry"),
            (404, "errors:\nmanifest unknown: a\ndenied: b\n"),
            (404, "manifest unknowns"),
            (404, "denied: manifest unknown: x"),
            (404, "No such image: a/b:1"),
            (404, ""),
            (401, "unauthorized: authentication required"),
            (403, "denied: requested access to the resource is denied"),
            (500, "unknown: artifact a/b:2 not found"),
            (500, "unknown: repository a/bc not found"),
            (500, "error parsing HTTP 404 response body: invalid character '<'"),
            (500, "received unexpected HTTP status: 502 Bad Gateway"),
        ] {
            assert_eq!(message(status, said), None, "{status} {said}");
        }
        assert_eq!(answer(404, "manifest unknown: manifest unknown"), None);
        assert_eq!(answer(404, r#"["manifest unknown: manifest unknown"]"#), None);
    }

    #[test]
    fn image_is_present_for_the_platforms_that_the_engine_names() {
        let there = |rest: &str| {
            answer(200, &format!("{{\"Descriptor\":{{\"digest\":\"sha256:0\"}}{rest}}}"))
        };
        assert_eq!(there(""), Some(Answer::Present(Vec::new())));
        assert_eq!(there(",\"Platforms\":null"), Some(Answer::Present(Vec::new())));
        let several = r#","Platforms":[{"architecture":"amd64","os":"linux"},
            {"architecture":"arm","os":"linux","variant":"v7"},
            {"architecture":"unknown","os":"unknown"}]"#;
        assert_eq!(platforms(there(several)), ["linux/amd64", "linux/arm/v7"]);
        for nothing in [
            "{}",
            "[]",
            "null",
            "",
            "OK",
            r#"{"Descriptor":{}}"#,
            r#"{"Descriptor":{"digest":""}}"#,
        ] {
            assert_eq!(answer(200, nothing), None, "{nothing}");
        }
    }

    #[test]
    fn buildx_means_missing_by_this_very_name_alone() {
        let missing = |stderr: &str| imagetools_said(&said(1, "", stderr), &tag(NAME));
        for stderr in [
            "ERROR: registry.example/a/b:1: not found\n",
            "error: registry.example/a/b:1: not found\n",
            "WARNING: no builder\nERROR: registry.example/a/b:1: not found",
        ] {
            assert_eq!(missing(stderr), Some(Answer::Missing), "{stderr}");
        }
        for stderr in [
            "",
            "registry.example/a/b:1: not found",
            "ERROR: registry.example/a/b:12: not found",
            "ERROR: registry.example/a/b:1: not found: 401",
            "ERROR: failed to do request: registry.example/a/b:1: not found",
            "sudo: docker: command not found",
            "docker: 'buildx' is not a docker command.",
            "é",
        ] {
            assert_eq!(missing(stderr), None, "{stderr}");
        }
        let hub = imagetools_said(
            &said(1, "", "ERROR: docker.io/library/env:abc: not found"),
            &tag("env:abc"),
        );
        assert_eq!(hub, Some(Answer::Missing));
        let killed = Said {
            status: None,
            stdout: vec![],
            stderr: "ERROR: registry.example/a/b:1: not found".into(),
        };
        assert_eq!(imagetools_said(&killed, &tag(NAME)), None);
        assert_eq!(
            imagetools_said(
                &said(0, "Name: x", "ERROR: registry.example/a/b:1: not found"),
                &tag(NAME)
            ),
            Some(Answer::Present(Vec::new()))
        );
    }

    #[test]
    fn buildx_names_the_platforms() {
        let there = |json: &str| platforms(imagetools_said(&said(0, json, ""), &tag(NAME)));
        assert_eq!(
            there(r#"{"architecture":"arm64","os":"linux","config":{"Env":[]}}"#),
            ["linux/arm64"]
        );
        let several = r#"{"linux/386":{"architecture":"386","os":"linux"},
            "linux/arm/v7":{"architecture":"arm","os":"linux","variant":"v7"}}"#;
        assert_eq!(there(several), ["linux/386", "linux/arm/v7"]);
    }

    #[test]
    fn skopeo_means_missing_where_it_read_this_manifest() {
        let line = |said: &str| {
            format!(
                "time=\"t\" level=fatal msg=\"Error parsing image name \\\"docker://x\\\": {said}\"\n"
            )
        };
        let missing = |reason: &str| skopeo_said(&said(1, "", &line(reason)), &tag(NAME));
        let reading = "reading manifest 1 in registry.example/a/b: ";
        for reason in [
            "manifest unknown",
            "manifest unknown: manifest unknown",
            "name unknown: The repository does not exist",
            "unknown: artifact a/b:1 not found",
        ] {
            assert_eq!(missing(&format!("{reading}{reason}")), Some(Answer::Missing), "{reason}");
        }
        for reason in ["unauthorized", "denied: denied", "StatusCode: 404, <html>", ""] {
            assert_eq!(missing(&format!("{reading}{reason}")), None, "{reason}");
        }
        assert_eq!(missing("reading manifest 1 in registry.example/a/bc: manifest unknown"), None);
        assert_eq!(missing("pinging container registry registry.example: manifest unknown"), None);
        assert_eq!(skopeo_said(&said(0, "", ""), &tag(NAME)), None);
        let list =
            r#"{"manifests":[{"digest":"x","platform":{"os":"linux","architecture":"s390x"}}]}"#;
        assert_eq!(platforms(skopeo_said(&said(0, list, ""), &tag(NAME))), ["linux/s390x"]);
        let config = r#"{"created":"t","os":"linux","architecture":"amd64"}"#;
        assert_eq!(platforms(skopeo_said(&said(0, config, ""), &tag(NAME))), ["linux/amd64"]);
    }

    #[test]
    fn entries_are_found_as_docker_finds_them() {
        let auth = |config: &str| {
            let config: Configuration = go_json::read_config(config.as_bytes()).unwrap();
            (config.helper("h:5").map(str::to_owned), config.written("h:5").ok().flatten())
        };
        let written = |key: &str| auth(&format!(r#"{{"auths":{{"{key}":{{"auth":"YTpi"}}}}}}"#));
        let a_b = || DockerCredential::UsernamePassword("a".into(), "b".into());
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
            (r#""auth":"","identitytoken":"t""#, Some(DockerCredential::IdentityToken("t".into()))),
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
            Some(DockerCredential::UsernamePassword(user, _)) => Some(user),
            Some(DockerCredential::IdentityToken(token)) => Some(format!("token {token}")),
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

    proptest! {
        #[test]
        fn nothing_that_anybody_says_makes_us_panic_or_means_missing_by_chance(
            status in prop_oneof![Just(200_u16), Just(404), Just(500), any::<u16>()],
            code in -1..3_i32,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            text in ".{0,60}",
        ) {
            let is_missing = |answer: Option<Answer>| answer == Some(Answer::Missing);
            let response = Response { status, body: bytes.clone() };
            prop_assert!(!is_missing(read_answer(&response, &tag(NAME)).ok()));
            prop_assert!(!is_missing(message(status, &text)) || status == 404 && text.contains("unknown"));
            for said in [
                Said { status: Some(code), stdout: bytes.clone(), stderr: text.clone().into() },
                Said { status: Some(code), stdout: text.into(), stderr: bytes.clone() },
            ] {
                prop_assert!(!is_missing(imagetools_said(&said, &tag(NAME))));
                prop_assert!(!is_missing(skopeo_said(&said, &tag(NAME))));
            }
            let _ = go_json::read_config::<Configuration>(&bytes).map(|it| it.written("h").is_ok());
        }

        #[test]
        fn what_stands_around_the_right_words_makes_an_error_of_them(
            before in ".{1,9}", after in "[^\\s:].{0,9}",
        ) {
            let right = "manifest unknown";
            prop_assert_eq!(message(404, &format!("{before}{right}")), None);
            prop_assert_eq!(message(404, &format!("{right}{after}")), None);
            let line = format!("ERROR: {NAME}: not found");
            let of = |text: String| imagetools_said(&said(1, "", &text), &tag(NAME));
            prop_assert_eq!(of(format!("{line}{}", after.trim())), None);
        }
    }
}
