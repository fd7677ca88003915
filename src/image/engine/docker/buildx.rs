//! The builder that buildx uses if the build command names none.
//!
//! This follows buildx's own reading of its files (buildx, store/store.go and
//! util/imagetools/storeutil). If one of them is missing, the answer is nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::endpoint::builder_key;
use crate::command::Client;
use crate::reference::sha256_hex;
use crate::{go_bool, go_json};

/// Returns the builder that `docker buildx use` has chosen for the engine of `client`, if the build
/// command goes by that. `docker buildx build` does (`is_buildx`), and `docker build` after `docker
/// buildx install`.
pub(crate) fn chosen_builder(is_buildx: bool, client: &Client) -> Option<String> {
    let folder = folder(client)?;
    let current = read_current(&folder)?;
    // Few users have that file. All others are spared the rest.
    (is_buildx || is_alias(client)).then(|| chosen_in(&folder, &current, client))?
}

/// Returns the builder that `docker buildx use` chose last, whichever engine it was chosen for.
pub(crate) fn current_builder(client: &Client) -> Option<String> {
    #[derive(Default)]
    struct Current {
        name: String,
    }
    go_json::fields!(Current { "Name" => name });
    let Current { name } = go_json::read(&read_current(&folder(client)?)?).ok()?;
    Some(name).filter(|name| !name.is_empty())
}

/// Returns whether `docker build` does not use BuildKit, but the builder that preceded it.
pub(crate) fn is_turned_off(client: &Client) -> bool {
    let variable = client.variable("DOCKER_BUILDKIT");
    variable.is_some_and(|value| value.to_str().and_then(go_bool::parse) == Some(false))
}

/// Returns the folder where buildx keeps its files.
pub(crate) fn folder(client: &Client) -> Option<PathBuf> {
    let folder = client.variable("BUILDX_CONFIG").map(PathBuf::from);
    folder.or_else(|| Some(client.config_folder()?.join("buildx")))
}

/// Returns the file that describes the builder `name`, whose case does not matter.
pub(crate) fn instance(folder: &Path, name: &str) -> Option<PathBuf> {
    let name = name.to_ascii_lowercase();
    Some(folder.join("instances").join(Path::new(&name).file_name()?))
}

/// Reads the file in which `docker buildx use` notes its choice.
fn read_current(folder: &Path) -> Option<Vec<u8>> {
    std::fs::read(folder.join("current")).ok()
}

fn chosen_in(folder: &Path, current: &[u8], client: &Client) -> Option<String> {
    #[derive(Default)]
    struct Current {
        /// The engine for which the builder was chosen.
        key: String,
        name: String,
        /// Whether it was chosen for every engine.
        global: bool,
    }
    go_json::fields!(Current { "Key" => key, "Name" => name, "Global" => global });
    let is_there = |name: &String| instance(folder, name).is_some_and(|file| file.exists());
    let Current { key, name, global } = go_json::read(current).ok()?;
    if global && !name.is_empty() && is_there(&name) {
        return Some(name);
    }
    let ours = builder_key(client)?;
    if key == ours && !name.is_empty() {
        return Some(name).filter(is_there);
    }
    let by_default = folder.join("defaults").join(&sha256_hex(ours)[..20]);
    std::fs::read_to_string(by_default).ok().filter(is_there)
}

/// Returns whether `docker buildx install` has made `docker build` an alias of buildx. Only then
/// does it go by `docker buildx use` (docker/cli, cmd/docker/builder.go).
fn is_alias(client: &Client) -> bool {
    #[derive(Default)]
    struct Config {
        aliases: BTreeMap<String, String>,
    }
    go_json::fields!(Config { "aliases" => aliases });
    let file = client.config_folder().map(|folder| folder.join("config.json"));
    let text = file.and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
    let config: Config = go_json::read_config(&text).unwrap_or_default();
    !is_turned_off(client) && config.aliases.get("builder").is_some_and(|alias| alias == "buildx")
}
