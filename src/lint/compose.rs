//! Reads a compose file: the images that its services build, and the Dockerfiles they are built from.

mod config;
mod duplicates;
mod image;
mod layer;
mod project;
mod service;

use std::cell::LazyCell;
use std::path::{Path, PathBuf};

use anyhow::Result;
use duplicates::Duplicate;
use image::Image;
pub(super) use layer::Place;
use layer::{Layer, Source};
pub(super) use service::Inline;
use service::Service;

use super::finding::WrongKind;
use super::{file, walk};
use crate::yaml::Yaml;

/// What is in a compose file.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) duplicates: Vec<Duplicate>,
    /// The Dockerfiles that its services are built from.
    pub(super) dockerfiles: Vec<PathBuf>,
    /// The Dockerfiles in the file itself.
    pub(super) inline: Vec<Inline>,
}

/// Reads a compose file together with the one that overrides it.
///
/// This asks docker compose only where the files alone do not tell: they include or extend other
/// files, or a variable decides the name of an image.
///
/// # Errors
/// One of them is not YAML, or the second one cannot be read.
pub(super) fn read(path: &Path, text: Vec<u8>) -> Result<Read> {
    let mut sources = vec![Source { path: path.to_owned(), text }];
    if let Some(path) = walk::override_of(path) {
        let text = file::read(&path)?;
        sources.push(Source { path, text });
    }
    let yaml = sources.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let layers: Vec<_> = sources
        .iter()
        .zip(&yaml)
        .flat_map(|(source, yaml)| yaml.documents().map(move |it| Layer::new(source, it)))
        .collect();
    let project = LazyCell::new(|| {
        let name = layers.iter().rev().find_map(|layer| layer.document.get("name")?.text());
        project::name(path, name)
    });
    let mut read = Read::default();
    let mut written = Vec::new();
    for name in layer::service_names(&layers) {
        let Some(service) = Service::find(&layers, name) else { continue };
        read.dockerfiles.extend(service.dockerfile(path));
        read.inline.extend(service.inline());
        written.extend(service.images(&|| project.clone()));
    }
    let images = if needs_compose(&layers, &written) {
        config::images(&sources, &layers, written)
    } else {
        written
    };
    read.duplicates = duplicates::find(&images);
    Ok(read)
}

fn parse(source: &Source) -> Result<Yaml, WrongKind> {
    Yaml::read(&source.text)
        .map_err(|why| WrongKind(format!("{}: not YAML: {why}", source.path.display())))
}

/// Returns whether only compose itself can tell which images are built.
fn needs_compose(layers: &[Layer<'_>], written: &[Image]) -> bool {
    let reads_more = |layer: &Layer<'_>| {
        let mut services = layer.services.values();
        layer.document.get("include").is_some()
            || services.any(|(_, it)| it.get("extends").is_some_and(|it| it.get("file").is_some()))
    };
    let has_variable = written.iter().any(|image| image.name.contains('$'));
    let has_several = || written.iter().any(|image| image.service != written[0].service);
    layers.iter().any(reads_more) || has_variable && has_several()
}
