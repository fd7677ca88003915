//! Services of a compose file that build the same image: the one that is built last wins.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use saphyr::{LoadableYamlNode, MarkedYaml};
use serde_json::Value;

use crate::image::client;
use crate::reference::Tag;

/// How deep a compose file may be nested; the parser refuses to go deeper between brackets, too.
const DEEPEST: usize = 250;

/// What compose reads besides the file with the usual name, the first that is there
/// (compose-go's `DefaultOverrideFileNames`).
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// A service that builds what another one builds too.
#[derive(Debug)]
pub struct Found {
    /// Where its image is.
    pub place: Place,
    /// What it is.
    pub message: String,
}

/// A place in one of the files.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// An image that a service builds.
struct Built {
    service: String,
    image: String,
    place: Place,
}

/// A document of a compose file. What it says counts for more than what those before it say.
struct Layer<'a> {
    path: &'a Path,
    document: MarkedYaml<'a>,
}

impl<'a> Layer<'a> {
    fn services(&self) -> Option<&MarkedYaml<'a>> {
        value(&self.document, "services")
    }

    fn service(&self, name: &str) -> Option<&MarkedYaml<'a>> {
        value(self.services()?, name)
    }

    fn place(&self, node: &MarkedYaml<'a>) -> Place {
        let start = node.span.start;
        Place { path: self.path.to_owned(), line: start.line(), column: start.col() + 1 }
    }
}

/// Finds them, in a file and in the one that overrides it.
///
/// docker compose knows what variables, profiles and included files make of it, and is asked where
/// it is there and answers in time. What it leaves out is read from the files.
///
/// # Errors
/// One of them is not YAML, or the second one cannot be read.
pub fn check(path: &Path, text: Vec<u8>) -> Result<Vec<Found>> {
    let mut files = vec![(path.to_owned(), text)];
    if let Some(path) = override_of(path) {
        let text =
            super::read(&path, false).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((path, text));
    }
    let mut layers = Vec::new();
    for (path, text) in &files {
        let documents = documents(text).map_err(|why| anyhow!("{}: {why}", path.display()))?;
        layers.extend(documents.into_iter().map(|document| Layer { path, document }));
    }
    let written = services(&layers);
    let paths = files.iter().map(|(path, _)| path.as_path());
    let Some(config) = client::compose_config(paths) else { return Ok(twice(written)) };
    let start = Place { path: path.to_owned(), line: 1, column: 1 };
    let mut built = configured(&config, &layers, &written, &start);
    let is_known = |service: &str| config["services"].get(service).is_some();
    built.extend(written.into_iter().filter(|built| !is_known(&built.service)));
    Ok(twice(built))
}

/// The file that compose reads besides this one.
fn override_of(path: &Path) -> Option<PathBuf> {
    let is_usual = path.file_name().is_some_and(super::is_compose_file);
    OVERRIDES.iter().map(|name| path.with_file_name(name)).find(|path| is_usual && path.is_file())
}

fn documents(text: &[u8]) -> std::result::Result<Vec<MarkedYaml<'_>>, String> {
    let text = std::str::from_utf8(text).map_err(|error| format!("not UTF-8: {error}"))?;
    if text
        .lines()
        .any(|line| line.len() - line.trim_start_matches([' ', '-', '?']).len() > DEEPEST)
    {
        // The parser would need a stack for it.
        return Err("not a compose file: it is nested too deep".to_owned());
    }
    MarkedYaml::load_from_str(text).map_err(|error| format!("not YAML: {error}"))
}

/// What `docker compose config` says, with where that is written; `start` is for what is not.
fn configured(
    config: &Value,
    layers: &[Layer<'_>],
    written: &[Built],
    start: &Place,
) -> Vec<Built> {
    let mut built = Vec::new();
    for (name, service) in config["services"].as_object().into_iter().flatten() {
        let Some(build) = service.get("build").filter(|build| !build.is_null()) else { continue };
        let tags = build["tags"].as_array().into_iter().flatten();
        for image in service["image"].as_str().into_iter().chain(tags.filter_map(Value::as_str)) {
            let mine = |built: &&Built| built.service == *name;
            let same = written.iter().filter(mine).find(|built| built.image == image);
            let place = same.or_else(|| written.iter().find(mine)).map(|it| it.place.clone());
            let of_service =
                || layers.iter().find_map(|layer| Some(layer.place(layer.service(name)?)));
            let place = place.or_else(of_service).unwrap_or_else(|| start.clone());
            built.push(Built { service: name.clone(), image: image.to_owned(), place });
        }
    }
    built
}

/// All but the first of those that build one image.
fn twice(built: Vec<Built>) -> Vec<Found> {
    let mut first: BTreeMap<String, &Built> = BTreeMap::new();
    let mut found = Vec::new();
    for built in &built {
        // A name with variables is compared as it is written.
        let key = built.image.parse::<Tag>().map_or(built.image.clone(), |tag| tag.to_string());
        match first.get(&key) {
            Some(other) if other.service != built.service => found.push(Found {
                place: built.place.clone(),
                message: format!(
                    "the services {} and {} both build {}",
                    other.service, built.service, built.image
                ),
            }),
            Some(_) => {}
            None => {
                first.insert(key, built);
            }
        }
    }
    found
}

/// The images that the services build.
fn services(layers: &[Layer<'_>]) -> Vec<Built> {
    let mut seen = HashSet::new();
    let all = layers.iter().filter_map(|layer| layer.services()?.data.as_mapping());
    let names = all.flat_map(|services| services.keys().filter_map(|name| name.data.as_str()));
    names.filter(|name| seen.insert(*name)).flat_map(|name| images(layers, name)).collect()
}

/// The images that a service builds: what the last layer says that says something, and all tags.
fn images(layers: &[Layer<'_>], service: &str) -> Vec<Built> {
    let said = |key| {
        let of_layer =
            |layer| Some((layer, extended(layer, layer.service(service)?, key, DEEPEST)?));
        layers.iter().filter_map(of_layer).collect::<Vec<_>>()
    };
    let (builds, image) = (said("build"), said("image").pop());
    if builds.last().is_none_or(|(_, build)| build.data.is_null()) {
        return Vec::new();
    }
    let tags = builds.iter().flat_map(|(layer, build)| {
        let tags = value(build, "tags").and_then(|tags| tags.data.as_vec());
        tags.into_iter().flatten().map(|tag| (*layer, tag))
    });
    let built = |(layer, image): (&Layer<'_>, &MarkedYaml<'_>)| {
        let (service, place) = (service.to_owned(), layer.place(image));
        Some(Built { service, image: image.data.as_str()?.to_owned(), place })
    };
    image.into_iter().chain(tags).filter_map(built).collect()
}

/// What a service has under a key, itself or from the one in this layer that it extends.
fn extended<'a, 'b>(
    layer: &'b Layer<'a>,
    service: &'b MarkedYaml<'a>,
    key: &str,
    depth: usize,
) -> Option<&'b MarkedYaml<'a>> {
    if let Some(own) = value(service, key) {
        return Some(own);
    }
    let extends = value(service, "extends").filter(|extends| value(extends, "file").is_none())?;
    let name = value(extends, "service").unwrap_or(extends).data.as_str()?;
    extended(layer, layer.service(name)?, key, depth.checked_sub(1)?)
}

/// What a mapping has under a key, itself or through its merge keys
/// (<https://yaml.org/type/merge.html>).
fn value<'a, 'b>(node: &'b MarkedYaml<'a>, key: &str) -> Option<&'b MarkedYaml<'a>> {
    if let Some(value) = node.data.as_mapping_get(key) {
        return Some(untagged(value));
    }
    let merged = node.data.as_mapping_get("<<")?;
    match merged.data.as_vec() {
        Some(all) => all.iter().find_map(|one| value(one, key)),
        None => value(merged, key),
    }
}

/// compose's `!override`; what has `!reset` is null as a rule.
fn untagged<'a, 'b>(node: &'b MarkedYaml<'a>) -> &'b MarkedYaml<'a> {
    node.data.get_tagged_node().map_or(node, untagged)
}
