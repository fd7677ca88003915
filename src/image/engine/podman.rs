//! Podman, asked through its client or buildah's. Both share one storage.

pub(crate) mod skopeo;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::backend::{Backend, ClientRules};
use super::client::{ClientOutput, run};
use super::inspect;
use super::no_such_image::complains_of_no_such_image;
use crate::command::Client;
use crate::image::answer::{Answer, Identity, Unanswered};
use crate::image::description::Description;
use crate::image::platform::{Platform, platforms_in};
use crate::image::wanted::Wanted;
use crate::reference::Tag;
use crate::scope::Scope;

pub(crate) const RULES: ClientRules = ClientRules {
    endpoint_variables: &["CONTAINER_HOST", "CONTAINER_CONNECTION"],
    // A manifest list may be there without an image for this machine's platform, which is the one
    // that is built by default.
    default_platform: |_, build| build.manifest.as_ref().map(|_| std::env::consts::ARCH.to_owned()),
};

/// Podman, whichever of its clients is called.
#[derive(Debug)]
pub(crate) struct Podman {
    client: Client,
    tool: Tool,
}

#[derive(Clone, Copy, Debug)]
enum Tool {
    /// podman, or docker's name for it.
    Podman,
    Buildah,
}

impl Podman {
    pub(crate) fn new(client: Client) -> Self {
        let tool = if is_buildah(&client) { Tool::Buildah } else { Tool::Podman };
        Podman { client, tool }
    }
}

impl Backend for Podman {
    fn client(&self) -> &Client {
        &self.client
    }

    fn look(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered> {
        let name = tag.podman_name();
        if wanted.is_list(tag) {
            return look_for_list(&self.client, name);
        }
        match self.tool {
            Tool::Podman => look(&self.client, name, !wanted.platforms.is_empty()),
            Tool::Buildah => look_with_buildah(&self.client, name),
        }
    }

    fn identity(&self, tag: &Tag, wanted: &Wanted) -> Result<Identity, Unanswered> {
        // A list has an ID of its own, which is not that of the image in it.
        if wanted.is_list(tag) {
            return Ok(Identity::Unknown);
        }
        match self.tool {
            Tool::Podman => inspect::identity(&self.client, tag.podman_name()),
            Tool::Buildah => identity_with_buildah(&self.client, tag.podman_name()),
        }
    }

    fn look_in_registry(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered> {
        skopeo::look(&self.client, tag, !wanted.platforms.is_empty())
    }

    fn describe(&self, name: &str) -> Result<Option<Description>, Unanswered> {
        match self.tool {
            Tool::Podman => inspect::describe(&self.client, name, Description::of_podman),
            Tool::Buildah => {
                Ok(inspect_with_buildah(&self.client, name)?.map(|it| describe_with_buildah(&it)))
            }
        }
    }

    fn describe_in_registry(&self, tag: &Tag) -> Result<Option<Vec<Description>>, Unanswered> {
        skopeo::describe(&self.client, tag)
    }

    fn digest_in_registry(&self, tag: &Tag) -> Result<Option<String>, Unanswered> {
        skopeo::digest(&self.client, tag)
    }

    fn own_platform(&self) -> Result<String, Unanswered> {
        match self.tool {
            Tool::Podman => {
                inspect::line(&self.client, &["info", "--format", "{{.Host.OS}}/{{.Host.Arch}}"])
            }
            Tool::Buildah => Ok(format!("linux/{}", std::env::consts::ARCH)),
        }
    }

    /// Without a service, each user builds in a storage of their own.
    fn location_key(&self, scope: Scope) -> String {
        format!("{} {}", scope.user_and_host(), connections(&self.client))
    }

    fn has_podman_names(&self) -> bool {
        true
    }
}

impl fmt::Display for Podman {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.tool {
            Tool::Podman => "through podman",
            Tool::Buildah => "through buildah",
        })
    }
}

/// Returns whether this client is buildah, which understands most of podman's words.
pub(crate) fn is_buildah(client: &Client) -> bool {
    Path::new(&client.program).file_name().is_some_and(|name| name == "buildah")
}

/// Runs `podman image exists NAME`: 0 means present, 1 missing, anything else an error
/// (podman-image-exists(1)).
fn look(client: &Client, name: &str, with_platform: bool) -> Result<Answer, Unanswered> {
    let said = run(client, &["image", "exists", name])?;
    match read_exists(&said) {
        Some(Answer::Present(_)) if with_platform => inspect::inspect(client, name),
        answer => answer.ok_or_else(|| said.unanswered(client)),
    }
}

/// Looks for a manifest list and the platforms that it has images for, through podman or buildah.
///
/// `image exists` says no to a list without an image for this machine's platform. `manifest
/// inspect` asks a registry for a list that is not here (podman-manifest(1)).
///
/// # Errors
/// The name may also be that of an image.
fn look_for_list(client: &Client, name: &str) -> Result<Answer, Unanswered> {
    let said = run(client, &["manifest", "exists", name])?;
    if read_exists(&said).ok_or_else(|| said.unanswered(client))? == Answer::Missing {
        return Ok(Answer::Missing);
    }
    let said = run(client, &["manifest", "inspect", name])?;
    match serde_json::from_slice::<Value>(&said.stdout) {
        Ok(list) if said.status == Some(0) && list["manifests"].is_array() => {
            Ok(Answer::Present(platforms_in(&list)))
        }
        _ => Err(said.unanswered(client)),
    }
}

/// Reads what podman answered to `image exists`, if anything in it is certain.
pub fn read_exists(said: &ClientOutput) -> Option<Answer> {
    match said.status {
        Some(0) => Some(Answer::Present(Vec::new())),
        // A sudo that refuses exits with 1, too.
        Some(1) if only_warnings(&said.stderr) => Some(Answer::Missing),
        _ => None,
    }
}

/// Returns whether these are podman's own warnings and nothing else.
fn only_warnings(stderr: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stderr);
    let is_warning = |line: &str| {
        line.starts_with("WARN[")
            || line.starts_with("Emulate Docker CLI")
            || line.starts_with("time=") && line.contains("level=warning")
    };
    text.lines().map(str::trim).filter(|line| !line.is_empty()).all(is_warning)
}

fn look_with_buildah(client: &Client, name: &str) -> Result<Answer, Unanswered> {
    let Some(image) = inspect_with_buildah(client, name)? else { return Ok(Answer::Missing) };
    let text = |name: &str| image["OCIv1"][name].as_str().unwrap_or_default().to_owned();
    let platform = Platform::new(text("os"), text("architecture"), text("variant"));
    Ok(Answer::Present(platform.known().into_iter().collect()))
}

fn identity_with_buildah(client: &Client, name: &str) -> Result<Identity, Unanswered> {
    Ok(match inspect_with_buildah(client, name)? {
        None => Identity::Missing,
        Some(image) => {
            let id = image["FromImageID"].as_str();
            id.map_or(Identity::Unknown, |id| Identity::Known(id.to_owned()))
        }
    })
}

/// Reads what buildah shows of an image. `OCIv1` lacks `ONBUILD` and `SHELL`, which `Docker` has.
fn describe_with_buildah(image: &Value) -> Description {
    let id = image["FromImageID"].as_str().map(str::to_owned);
    let docker = &image["Docker"];
    if docker["config"].is_object() {
        return Description { id, ..Description::of_oci(docker) };
    }
    Description { id, may_hide_on_build: true, ..Description::of_oci(&image["OCIv1"]) }
}

/// Runs `buildah inspect --type image NAME`, which prints JSON or complains that there is no such
/// image.
fn inspect_with_buildah(client: &Client, name: &str) -> Result<Option<Value>, Unanswered> {
    let said = run(client, &["inspect", "--type", "image", name])?;
    match (said.status, serde_json::from_slice::<Value>(&said.stdout)) {
        (Some(0), Ok(image)) if image["FromImageID"].is_string() => Ok(Some(image)),
        (Some(1..), _)
            if complains_of_no_such_image(&String::from_utf8_lossy(&said.stderr), name) =>
        {
            Ok(None)
        }
        _ => Err(said.unanswered(client)),
    }
}

/// Returns podman's file of services and of the default among them
/// (podman-system-connection(1)). It is empty if there is no such file.
fn connections(client: &Client) -> String {
    let file = client.variable("PODMAN_CONNECTIONS_CONF").map(PathBuf::from).or_else(|| {
        let home = || Some(PathBuf::from(client.variable("HOME")?).join(".config"));
        let folder = client.variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home)?;
        Some(folder.join("containers/podman-connections.json"))
    });
    file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn triggers_and_shell_that_buildah_shows_count() {
        let image = |config: Value| {
            let oci = json!({"os": "linux", "architecture": "amd64", "config": {}});
            let docker = json!({"os": "linux", "architecture": "amd64", "config": config});
            describe_with_buildah(&json!({"FromImageID": "a", "OCIv1": oci, "Docker": docker}))
        };
        let plain = image(json!({}));
        assert_eq!(image(json!({"OnBuild": ["COPY . /x"]})).on_build, ["COPY . /x"]);
        assert_ne!(image(json!({"Shell": ["/bin/ash"]})).inherited, plain.inherited);
        assert!(!plain.may_hide_on_build);
        assert!(image(Value::Null).may_hide_on_build);
    }
}
