//! Which builder buildx uses where the build command names none.
//!
//! It follows buildx's own reading of its files (buildx, store/store.go and
//! util/imagetools/storeutil), and says nothing where one of them is missing.

use std::path::{Path, PathBuf};

use super::engine;
use crate::command::{Client, Command};
use crate::go_json;
use crate::reference::sha256_hex;

/// The builder that `docker buildx use` has chosen for the engine of `client`, if the build command
/// goes by that: `docker buildx build`, or `docker build` after `docker buildx install`.
pub fn chosen_builder(command: &Command, client: &Client) -> Option<String> {
    let folder = folder(client)?;
    let current = std::fs::read(folder.join("current")).ok()?;
    // Few users have the file above, and all others are spared the rest.
    (command.is_buildx() || is_alias(client)).then(|| chosen_in(&folder, &current, client))?
}

/// Whether `docker build` does not go to the builder at all, but to the one that came before it.
pub fn is_turned_off(client: &Client) -> bool {
    const OFF: [&str; 6] = ["0", "f", "F", "false", "False", "FALSE"];
    client.variable("DOCKER_BUILDKIT").is_some_and(|value| OFF.iter().any(|off| value == *off))
}

/// Where buildx keeps its files.
pub fn folder(client: &Client) -> Option<PathBuf> {
    let folder = client.variable("BUILDX_CONFIG").map(PathBuf::from);
    folder.or_else(|| Some(client.configuration()?.join("buildx")))
}

/// The file that describes the builder `name`, whose case does not matter.
pub fn instance(folder: &Path, name: &str) -> Option<PathBuf> {
    let name = name.to_ascii_lowercase();
    Some(folder.join("instances").join(Path::new(&name).file_name()?))
}

fn chosen_in(folder: &Path, current: &[u8], client: &Client) -> Option<String> {
    #[derive(Default)]
    struct Current {
        key: String,
        name: String,
        global: bool,
    }
    go_json::fields!(Current { "Key" => key, "Name" => name, "Global" => global });
    let is_there = |name: &String| instance(folder, name).is_some_and(|file| file.exists());
    let Current { key, name, global } = go_json::read(current).ok()?;
    if global && !name.is_empty() && is_there(&name) {
        return Some(name);
    }
    let ours = engine::builder_key(client)?;
    if key == ours && !name.is_empty() {
        return Some(name).filter(is_there);
    }
    let by_default = folder.join("defaults").join(&sha256_hex(ours)[..20]);
    std::fs::read_to_string(by_default).ok().filter(is_there)
}

/// Whether `docker buildx install` has made buildx what `docker build` stands for. Only then does
/// that go by `docker buildx use` (docker/cli, cmd/docker/builder.go).
fn is_alias(client: &Client) -> bool {
    #[derive(Default)]
    struct Config {
        aliases: std::collections::BTreeMap<String, String>,
    }
    go_json::fields!(Config { "aliases" => aliases });
    let file = client.configuration().map(|folder| folder.join("config.json"));
    let text = file.and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
    let config: Config = go_json::read_config(&text).unwrap_or_default();
    !is_turned_off(client) && config.aliases.get("builder").is_some_and(|alias| alias == "buildx")
}
