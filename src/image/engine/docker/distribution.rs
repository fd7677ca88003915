//! The registry, asked by the engine: `GET /distribution/NAME/json`.
//!
//! The engine has the mirrors, the certificates and the insecure registries that a push and a pull
//! will use. The credentials are the user's own, which docker's client would send along.
//!
//! `docker manifest inspect` does not do: of a registry without TLS it says "no such manifest"
//! although the image is present.

use std::path::Path;

use serde::Deserialize;

use super::credentials::{Credential, Registry, in_configuration, in_variable};
use super::error::{error_message, explain};
use super::http::{self, Response};
use crate::command::Client;
use crate::image::answer::{ANSWER_WITHIN, Answer, Unanswered, excerpt};
use crate::image::engine::unknown_manifest::{is_harbors_not_found, says_unknown};
use crate::image::platform::OciPlatform;
use crate::reference::Tag;

/// What the engine says if a registry wants credentials and it was given none (distribution,
/// `ErrNoBasicAuthCredentials`).
const NO_CREDENTIALS: &str = "no basic auth credentials";

/// Asks the registry by way of the engine that listens on `socket`.
///
/// # Errors
/// The answer was neither that the image is present nor that it is missing.
pub(crate) fn look(client: &Client, socket: &Path, tag: &Tag) -> Result<Answer, Unanswered> {
    read_distribution(&ask_for(client, socket, tag)?, tag)
}

/// Asks the registry, by way of the engine, for the digest of the image. Returns none if there is
/// no such image.
///
/// # Errors
/// As [`look`].
pub(crate) fn digest(
    client: &Client,
    socket: &Path,
    tag: &Tag,
) -> Result<Option<String>, Unanswered> {
    let response = ask_for(client, socket, tag)?;
    match read_distribution(&response, tag)? {
        Answer::Missing => Ok(None),
        Answer::Present(_) => Ok(serde_json::from_slice::<Distribution>(&response.body)
            .ok()
            .map(|there| there.descriptor.digest)),
    }
}

fn ask_for(client: &Client, socket: &Path, tag: &Tag) -> Result<Response, Unanswered> {
    let (registry, name) = tag.in_registry();
    let path = format!("/distribution/{registry}/{name}/json");
    let registry = Registry::new(registry);
    let ask = |credential: Option<Credential>| {
        let fields = credential.map(|credential| credential.header_line(registry));
        http::get(socket, &path, &fields.unwrap_or_default(), ANSWER_WITHIN).map_err(|error| {
            explain(socket, &error)
                .map_why(|why| format!("{why} (it was asked about the registry {})", registry.name))
        })
    };
    let given = in_variable(client, registry).map(|given| ask(Some(given))).transpose()?;
    let response = match given {
        Some(response) if !is_refusal(&response) => response,
        // Clients before 28.3 ignore the variable, and push with what their configuration has.
        refused => match (in_configuration(client, registry)?, refused) {
            (None, Some(refused)) => refused,
            (written, _) => ask(written)?,
        },
    };
    Ok(response)
}

/// Returns whether the registry wants other credentials, or any. Without any, the engine itself
/// gives up.
fn is_refusal(response: &Response) -> bool {
    matches!(response.status, 401 | 403)
        || error_message(&response.body).is_some_and(|said| said.contains(NO_CREDENTIALS))
}

/// The engine's description of an image in a registry
/// (<https://docs.docker.com/reference/api/engine/>, DistributionInspect).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Distribution {
    descriptor: Descriptor,
    /// None for a single image in OCI's format: the engine does not look into it.
    #[serde(default)]
    platforms: Option<Vec<OciPlatform>>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(default)]
    digest: String,
}

/// Reads what the engine answered about an image in its registry.
///
/// The engine passes on the registry's own words. It answers 404 of its own accord only where the
/// registry's code has that status (moby, statusCodeFromDistributionError).
///
/// # Errors
/// The answer was neither an image nor the registry's own statement that it has none.
pub fn read_distribution(response: &Response, tag: &Tag) -> Result<Answer, Unanswered> {
    let (registry, _) = tag.in_registry();
    let said = error_message(&response.body);
    match response.status {
        200 => present_for(&response.body).ok_or_else(|| {
            Unanswered::permanent(format!(
                "the engine says nothing certain about the registry {registry}: {}",
                excerpt(&response.body)
            ))
        }),
        404 if said.as_deref().is_some_and(says_unknown) => Ok(Answer::Missing),
        // The engine answers 500 for a code that it does not know.
        500 if said.as_deref().is_some_and(|said| is_harbors_not_found(said, tag)) => {
            Ok(Answer::Missing)
        }
        status => {
            let said = said.unwrap_or_else(|| excerpt(&response.body));
            let refused = is_refusal(response);
            let login = if refused {
                format!("; is this user logged in (docker login {registry})?")
            } else {
                String::new()
            };
            let why = format!(
                "the registry {registry}, by way of the engine: HTTP status {status}: {said}{login}"
            );
            Err(Unanswered { why, is_transient: !refused && response.is_transient() })
        }
    }
}

fn present_for(body: &[u8]) -> Option<Answer> {
    let there: Distribution = serde_json::from_slice(body).ok()?;
    let platforms = there.platforms.unwrap_or_default().into_iter().filter_map(OciPlatform::known);
    (!there.descriptor.digest.is_empty()).then(|| Answer::Present(platforms.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const NAME: &str = "registry.example/a/b:1";

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn answer(status: u16, body: &str) -> Option<Answer> {
        read_distribution(&Response { status, body: body.into() }, &tag(NAME)).ok()
    }

    fn message(status: u16, message: &str) -> Option<Answer> {
        answer(status, &json!({ "message": message }).to_string())
    }

    fn platforms(answer: Option<Answer>) -> Vec<String> {
        match answer {
            Some(Answer::Present(platforms)) => platforms.iter().map(ToString::to_string).collect(),
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
    fn an_image_is_present_for_the_platforms_that_the_engine_names() {
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

    proptest! {
        #[test]
        fn nothing_that_an_engine_says_makes_us_panic_or_means_missing_by_chance(
            status in prop_oneof![Just(200_u16), Just(404), Just(500), any::<u16>()],
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            text in ".{0,60}",
        ) {
            let is_missing = |answer: Option<Answer>| answer == Some(Answer::Missing);
            let response = Response { status, body: bytes };
            prop_assert!(!is_missing(read_distribution(&response, &tag(NAME)).ok()));
            prop_assert!(!is_missing(message(status, &text)) || status == 404 && text.contains("unknown"));
        }

        #[test]
        fn anything_around_the_right_words_makes_an_error_of_them(
            before in ".{1,9}", after in "[^\\s:].{0,9}",
        ) {
            let right = "manifest unknown";
            prop_assert_eq!(message(404, &format!("{before}{right}")), None);
            prop_assert_eq!(message(404, &format!("{right}{after}")), None);
        }
    }
}
