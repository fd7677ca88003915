//! The images of a compose file as docker compose itself sees them.

use serde_json::Value;

use super::image::{self, Image, NamedBy};
use super::layer::{Layer, Place, Source};
use crate::image::compose_config;

/// Returns the images that docker compose reports. For services that it leaves out, or if it cannot
/// be asked, these are the images `written` in the files.
pub(super) fn images(sources: &[Source], layers: &[Layer<'_>], written: Vec<Image>) -> Vec<Image> {
    let paths = sources.iter().map(|source| source.path.as_path());
    let Some(config) = compose_config(paths) else { return written };
    let start = Place { path: sources[0].path.clone(), line: 1, column: 1 };
    let mut images = reported(&config, layers, &written, &start);
    let is_reported = |service: &str| config["services"].get(service).is_some();
    images.extend(written.into_iter().filter(|image| !is_reported(&image.service)));
    images
}

/// Returns the images of the configuration with their places. What is in none of the files is at
/// `start`.
fn reported(config: &Value, layers: &[Layer<'_>], written: &[Image], start: &Place) -> Vec<Image> {
    let mut images = Vec::new();
    for (service, said) in config["services"].as_object().into_iter().flatten() {
        let Some(build) = said.get("build").filter(|build| !build.is_null()) else { continue };
        let own = match said["image"].as_str() {
            Some(name) => vec![(name.to_owned(), NamedBy::File)],
            None => {
                let project = config["name"].as_str().unwrap_or_default();
                image::default_names(project, service).to_vec()
            }
        };
        let tags = strings(&build["tags"]).into_iter().map(|tag| (tag, NamedBy::File));
        for (name, named_by) in own.into_iter().chain(tags) {
            let place = place(service, &name, layers, written);
            images.push(Image {
                service: service.clone(),
                name,
                named_by,
                profiles: strings(&said["profiles"]),
                build: build.clone(),
                place: place.unwrap_or_else(|| start.clone()),
            });
        }
    }
    images
}

/// Returns where the files have this image, else another one of the service, else the service.
fn place(service: &str, name: &str, layers: &[Layer<'_>], written: &[Image]) -> Option<Place> {
    let of_service = || written.iter().filter(|image| image.service == service);
    let image = of_service().find(|image| image.name == name).or_else(|| of_service().next());
    match image {
        Some(image) => Some(image.place.clone()),
        None => layers.iter().find_map(|layer| layer.place_of_name(service)),
    }
}

fn strings(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}
