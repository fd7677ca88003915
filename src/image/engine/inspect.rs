//! `image inspect` and what docker, nerdctl and podman answer to it.
//!
//! It exits with 1 for "no such image" and for everything else that goes wrong, so only its words
//! can tell.

use serde_json::Value;

use super::client::{ClientOutput, run};
use super::no_such_image::complains_of_no_such_image;
use crate::command::{Client, Engine};
use crate::image::answer::{Answer, Identity, Unanswered};
use crate::image::description::Description;
use crate::image::platform::Platform;
use crate::image::wanted::Wanted;
use crate::reference::Tag;

/// Looks for the image that is wanted, through docker or nerdctl.
///
/// # Errors
/// The client said neither that the image is present nor that it is missing.
pub(crate) fn look(client: &Client, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered> {
    match inspect(client, tag.as_str())? {
        // It shows one platform of several.
        Answer::Present(_) if wanted.is_for_several_platforms() => Ok(Answer::Present(Vec::new())),
        answer => Ok(answer),
    }
}

/// Runs `image inspect NAME`.
///
/// # Errors
/// The client said neither that the image is present nor that it is missing.
pub(crate) fn inspect(client: &Client, name: &str) -> Result<Answer, Unanswered> {
    let said = run(client, &["image", "inspect", name])?;
    read_inspect(client.engine, name, &said).ok_or_else(|| said.unanswered(client))
}

/// Asks for the image's ID, as `image inspect NAME` shows it.
///
/// # Errors
/// The client said neither that the image is present nor that it is missing.
pub(crate) fn identity(client: &Client, name: &str) -> Result<Identity, Unanswered> {
    let said = run(client, &["image", "inspect", name])?;
    let answer = read_inspect(client.engine, name, &said).ok_or_else(|| said.unanswered(client))?;
    let images = serde_json::from_slice::<Value>(&said.stdout).unwrap_or_default();
    Ok(match (answer, images[0]["Id"].as_str()) {
        (Answer::Missing, _) => Identity::Missing,
        (_, Some(id)) => Identity::Known(id.to_owned()),
        (_, None) => Identity::Unknown,
    })
}

/// Describes the image `name`, or returns none if there is none. `read` reads what the client shows
/// of an image.
///
/// # Errors
/// The client said neither that the image is present nor that it is missing.
pub(crate) fn describe(
    client: &Client,
    name: &str,
    read: fn(&Value) -> Option<Description>,
) -> Result<Option<Description>, Unanswered> {
    let said = run(client, &["image", "inspect", name])?;
    let answer = read_inspect(client.engine, name, &said).ok_or_else(|| said.unanswered(client))?;
    if answer == Answer::Missing {
        return Ok(None);
    }
    let images = serde_json::from_slice::<Value>(&said.stdout).unwrap_or_default();
    match read(&images[0]) {
        Some(image) => Ok(Some(image)),
        // A script called docker may only give a status.
        None => Err(said.unanswered(client)),
    }
}

/// Asks a client for one line.
///
/// # Errors
/// It failed, or said nothing.
pub(crate) fn line(client: &Client, words: &[&str]) -> Result<String, Unanswered> {
    let said = run(client, words)?;
    let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if said.status != Some(0) || text.is_empty() || text.contains('\n') {
        return Err(said.unanswered(client));
    }
    Ok(text)
}

/// Reads what a client answered to `image inspect NAME`, if anything in it is certain.
pub fn read_inspect(engine: Engine, name: &str, said: &ClientOutput) -> Option<Answer> {
    let images = serde_json::from_slice::<Value>(&said.stdout).ok();
    let first = images.as_ref().and_then(|images| images.get(0));
    match said.status {
        // nerdctl 2.0.0 to 2.0.2 exit with 0 although there is no such image.
        Some(0) if first.is_some() => {
            Some(Answer::Present(first.and_then(platform).into_iter().collect()))
        }
        // A script called docker may only give a status.
        Some(0) if engine == Engine::Docker && said.stdout.is_empty() => {
            Some(Answer::Present(Vec::new()))
        }
        Some(_) if complains_of_no_such_image(&String::from_utf8_lossy(&said.stderr), name) => {
            Some(Answer::Missing)
        }
        _ => None,
    }
}

fn platform(image: &Value) -> Option<Platform> {
    serde_json::from_value::<Platform>(image.clone()).ok()?.known()
}
