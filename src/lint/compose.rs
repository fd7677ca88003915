//! Services of a compose file that build the same image: the one that is built last wins.

use std::collections::BTreeMap;
use std::path::Path;

use saphyr::{LoadableYamlNode, MarkedYaml, YamlData};
use serde_json::Value;

use crate::image::client;
use crate::reference::Tag;

/// How deep a compose file may be nested; the parser refuses to go deeper between brackets, too.
const DEEPEST: usize = 250;

/// A service that builds what another one builds too.
#[derive(Debug)]
pub struct Found {
    /// Of its image, from 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What it is.
    pub message: String,
}

/// An image that a service builds.
struct Built {
    service: String,
    image: String,
    line: usize,
    column: usize,
}

/// Finds them.
///
/// docker compose knows what variables, profiles and included files make of it, and is asked where
/// it is there and answers in time. What it leaves out is read from the file.
///
/// # Errors
/// It is not YAML.
pub fn check(path: &Path, text: &[u8]) -> Result<Vec<Found>, String> {
    let text = std::str::from_utf8(text).map_err(|error| format!("not UTF-8: {error}"))?;
    let documents = documents(text)?;
    let written: Vec<Built> = documents.iter().flat_map(services).collect();
    let Some(config) = client::compose_config(path) else { return Ok(twice(written)) };
    let mut built = configured(&config, &documents, &written);
    let is_known = |service: &str| config["services"].get(service).is_some();
    built.extend(written.into_iter().filter(|built| !is_known(&built.service)));
    Ok(twice(built))
}

fn documents(text: &str) -> Result<Vec<MarkedYaml<'_>>, String> {
    if text
        .lines()
        .any(|line| line.len() - line.trim_start_matches([' ', '-', '?']).len() > DEEPEST)
    {
        // The parser would need a stack for it.
        return Err("not a compose file: it is nested too deep".to_owned());
    }
    MarkedYaml::load_from_str(text).map_err(|error| format!("not YAML: {error}"))
}

/// What `docker compose config` says, with where that is written.
fn configured(config: &Value, documents: &[MarkedYaml<'_>], written: &[Built]) -> Vec<Built> {
    let mut built = Vec::new();
    for (name, service) in config["services"].as_object().into_iter().flatten() {
        let Some(build) = service.get("build").filter(|build| !build.is_null()) else { continue };
        let tags = build["tags"].as_array().into_iter().flatten();
        for image in service["image"].as_str().into_iter().chain(tags.filter_map(Value::as_str)) {
            let mine = |built: &&Built| built.service == *name;
            let same = written.iter().filter(mine).find(|built| built.image == image);
            let place = same.or_else(|| written.iter().find(mine)).map(|it| (it.line, it.column));
            let of_service = || documents.iter().find_map(|document| place_of(document, name));
            let (line, column) = place.or_else(of_service).unwrap_or((1, 1));
            built.push(Built { service: name.clone(), image: image.to_owned(), line, column });
        }
    }
    built
}

/// Where a service is.
fn place_of(document: &MarkedYaml<'_>, service: &str) -> Option<(usize, usize)> {
    let place = value(value(document, "services")?, service)?.span.start;
    Some((place.line(), place.col() + 1))
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
                line: built.line,
                column: built.column,
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

/// The images that the services of a document build.
fn services(document: &MarkedYaml<'_>) -> Vec<Built> {
    let mut built = Vec::new();
    let Some(all) = value(document, "services") else { return built };
    let YamlData::Mapping(services) = &all.data else { return built };
    for (name, service) in services {
        let of_service = |key| extended(all, service, key, DEEPEST);
        let (Some(name), Some(build)) = (name.data.as_str(), of_service("build")) else { continue };
        let tags = value(build, "tags").and_then(|tags| tags.data.as_vec());
        let images = of_service("image").into_iter().chain(tags.into_iter().flatten());
        built.extend(images.filter_map(|image| {
            Some(Built {
                service: name.to_owned(),
                image: image.data.as_str()?.to_owned(),
                line: image.span.start.line(),
                column: image.span.start.col() + 1,
            })
        }));
    }
    built
}

/// What a service has under a key, itself or from the one in this file that it extends.
fn extended<'a, 'b>(
    all: &'b MarkedYaml<'a>,
    service: &'b MarkedYaml<'a>,
    key: &str,
    depth: usize,
) -> Option<&'b MarkedYaml<'a>> {
    if let Some(own) = value(service, key) {
        return (!own.data.is_null()).then_some(own);
    }
    let extends = value(service, "extends").filter(|extends| value(extends, "file").is_none())?;
    let name = value(extends, "service").unwrap_or(extends).data.as_str()?;
    extended(all, value(all, name)?, key, depth.checked_sub(1)?)
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
