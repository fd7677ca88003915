//! The engine's API for images: `GET /images/NAME/json`.
//!
//! The path names no version. The engine then speaks its own, while it would refuse a version that
//! is too new for it (<https://docs.docker.com/reference/api/engine/>).

use std::path::Path;

use serde::Deserialize;

use super::error::{error_message, explain};
use super::http::{self, Response};
use crate::image::answer::{ANSWER_WITHIN, Answer, Identity, Unanswered, excerpt};
use crate::image::description::Description;
use crate::image::engine::no_such_image::says_no_such_image;
use crate::image::platform::{OciPlatform, Platform};

/// Looks for the image `name` on the engine that listens on `socket`.
///
/// # Errors
/// The answer was neither an image nor the engine's own statement that it has none.
pub(crate) fn look(socket: &Path, name: &str) -> Result<Answer, Unanswered> {
    read_image(&get(socket, &format!("/images/{name}/json"))?, socket, name)
}

/// Looks for the image and all its platforms. If there are `several` to look for and
/// the engine cannot tell, the answer names no platform.
///
/// Engines can tell since API 1.48 (Docker 28), and only with containerd's image store, which keeps
/// images for several platforms. Older ones ignore the parameter.
///
/// # Errors
/// As [`look`].
pub(crate) fn look_for_platforms(
    socket: &Path,
    name: &str,
    several: bool,
) -> Result<Answer, Unanswered> {
    let response = get(socket, &format!("/images/{name}/json?manifests=1"))?;
    Ok(match (read_image(&response, socket, name)?, platforms_of_manifests(&response.body)) {
        (Answer::Present(_), Some(all)) => Answer::Present(all),
        (Answer::Present(_), None) if several => Answer::Present(Vec::new()),
        (answer, _) => answer,
    })
}

/// Asks for the ID of the image `name`.
///
/// # Errors
/// As [`look`].
pub(crate) fn identity(socket: &Path, name: &str) -> Result<Identity, Unanswered> {
    let response = get(socket, &format!("/images/{name}/json"))?;
    match read_image(&response, socket, name)? {
        Answer::Missing => Ok(Identity::Missing),
        Answer::Present(_) => Ok(match serde_json::from_slice::<Image>(&response.body) {
            Ok(image) => Identity::Known(image.id),
            Err(_) => Identity::Unknown,
        }),
    }
}

/// Describes the image `name`, or returns none if there is none.
///
/// # Errors
/// As [`look`].
pub(crate) fn describe(socket: &Path, name: &str) -> Result<Option<Description>, Unanswered> {
    let response = get(socket, &format!("/images/{name}/json"))?;
    match read_image(&response, socket, name)? {
        Answer::Missing => Ok(None),
        Answer::Present(_) => {
            let image = serde_json::from_slice::<serde_json::Value>(&response.body);
            match image.ok().and_then(|image| Description::of_engine(&image)) {
                Some(image) => Ok(Some(image)),
                None => Err(Unanswered::permanent(format!(
                    "the engine at {} does not describe the image {name}: {}",
                    socket.display(),
                    excerpt(&response.body)
                ))),
            }
        }
    }
}

/// Asks for the platform of the engine.
///
/// # Errors
/// The engine did not name it.
pub(crate) fn platform(socket: &Path) -> Result<String, Unanswered> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Version {
        os: String,
        arch: String,
    }
    let response = get(socket, "/version")?;
    match serde_json::from_slice(&response.body) {
        Ok(Version { os, arch }) if response.status == 200 => Ok(format!("{os}/{arch}")),
        _ => Err(Unanswered {
            why: format!(
                "the engine at {} does not say for which platform it builds: {}",
                socket.display(),
                excerpt(&response.body)
            ),
            is_transient: response.is_transient(),
        }),
    }
}

/// Asks for the ID of the engine itself. Every engine has its own.
pub(crate) fn id(socket: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(rename = "ID")]
        id: String,
    }
    let Info { id } = serde_json::from_slice(&get(socket, "/info").ok()?.body).ok()?;
    Some(id).filter(|id| !id.is_empty())
}

fn get(socket: &Path, path: &str) -> Result<Response, Unanswered> {
    http::get(socket, path, "", ANSWER_WITHIN).map_err(|error| explain(socket, &error))
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "Id")]
    id: String,
    #[serde(flatten)]
    platform: Platform,
}

/// Reads what the engine that listens on `socket` answered about the image `name`.
///
/// # Errors
/// The answer was neither an image nor the engine's own statement that it has none of that name.
pub fn read_image(response: &Response, socket: &Path, name: &str) -> Result<Answer, Unanswered> {
    let at = socket.display();
    match response.status {
        200 => match serde_json::from_slice::<Image>(&response.body) {
            Ok(image) if !image.id.is_empty() => {
                Ok(Answer::Present(Vec::from_iter(image.platform.known())))
            }
            _ => Err(Unanswered::permanent(format!(
                "what listens on {at} answered, but not with an image: {}",
                excerpt(&response.body)
            ))),
        },
        404 if error_message(&response.body)
            .is_some_and(|said| says_no_such_image(&said, name)) =>
        {
            Ok(Answer::Missing)
        }
        status => {
            let said = error_message(&response.body).unwrap_or_else(|| excerpt(&response.body));
            let why = format!("the engine at {at} answered with HTTP status {status}: {said}");
            Err(Unanswered { why, is_transient: response.is_transient() })
        }
    }
}

/// Returns the platforms for which all of the image is there, if the engine lists its manifests.
fn platforms_of_manifests(image: &[u8]) -> Option<Vec<Platform>> {
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "Manifests")]
        manifests: Vec<Manifest>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Manifest {
        available: bool,
        // Attestations have none.
        image_data: Option<ImageData>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct ImageData {
        platform: OciPlatform,
    }
    let Image { manifests } = serde_json::from_slice(image).ok()?;
    let there = manifests.into_iter().filter(|manifest| manifest.available);
    let platforms = there.filter_map(|manifest| manifest.image_data?.platform.known());
    Some(platforms.collect()).filter(|all: &Vec<_>| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_engines_own_404_means_missing() {
        let answer = |status, body: &str| {
            read_image(&Response { status, body: body.into() }, Path::new("/s"), "a:b").ok()
        };
        assert_eq!(answer(404, r#"{"message":"No such image: a:b"}"#), Some(Answer::Missing));
        for (status, body) in [
            (404, r#"["No such image: a:b"]"#),
            (404, r#"{"message":["No such image: a:b"]}"#),
            (404, "No such image: a:b"),
            (404, r#"{"message":"page not found"}"#),
            (404, r#"{"message":"No such image: other:1"}"#),
            (404, r#"{"message":"no such image: A/b: invalid reference format"}"#),
            (400, r#"{"message":"No such image: a:b"}"#),
            (200, r#"{"message":"No such image: a:b"}"#),
            (200, r#"{"Id":""}"#),
        ] {
            assert_eq!(answer(status, body), None, "{status} {body}");
        }
    }
}
