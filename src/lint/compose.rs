//! Services of a compose file that build the same image: the one that is built last wins.

use std::collections::BTreeMap;
use std::path::Path;

use saphyr::{LoadableYamlNode, MarkedYaml, YamlData};

use crate::reference::Tag;

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
/// # Errors
/// It is not YAML.
pub fn check(_path: &Path, text: &[u8]) -> Result<Vec<Found>, String> {
    let text = std::str::from_utf8(text).map_err(|error| format!("not UTF-8: {error}"))?;
    let documents =
        MarkedYaml::load_from_str(text).map_err(|error| format!("not YAML: {error}"))?;
    Ok(twice(documents.iter().flat_map(services).collect()))
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
    let Some(YamlData::Mapping(services)) = value(document, "services").map(|node| &node.data)
    else {
        return built;
    };
    for (name, service) in services {
        let (Some(name), Some(build)) = (name.data.as_str(), value(service, "build")) else {
            continue;
        };
        let tags = value(build, "tags").and_then(|tags| tags.data.as_vec());
        let images = value(service, "image").into_iter().chain(tags.into_iter().flatten());
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

/// What a mapping has under a key, itself or through its merge keys
/// (<https://yaml.org/type/merge.html>).
fn value<'a, 'b>(node: &'b MarkedYaml<'a>, key: &str) -> Option<&'b MarkedYaml<'a>> {
    // An alias in itself is refused by the parser; this is for the depth of what is merged.
    const DEEPEST: usize = 64;
    fn look<'a, 'b>(
        node: &'b MarkedYaml<'a>,
        key: &str,
        depth: usize,
    ) -> Option<&'b MarkedYaml<'a>> {
        if depth == 0 {
            return None;
        }
        if let Some(value) = node.data.as_mapping_get(key) {
            return Some(value);
        }
        let merged = node.data.as_mapping_get("<<")?;
        match merged.data.as_vec() {
            Some(all) => all.iter().find_map(|one| look(one, key, depth - 1)),
            None => look(merged, key, depth - 1),
        }
    }
    look(node, key, DEEPEST)
}
