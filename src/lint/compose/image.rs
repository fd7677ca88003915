//! The images that services build.

use serde_json::Value;

use super::layer::Place;

/// An image that a service builds.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) service: String,
    pub(super) name: String,
    pub(super) named_by: NamedBy,
    /// The profiles of the service.
    pub(super) profiles: Vec<String>,
    /// How it is built.
    pub(super) build: Value,
    pub(super) place: Place,
}

/// Where an image's name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamedBy {
    File,
    /// The file has no name, and compose made one.
    Compose,
    /// The same, by docker-compose 1 or `--compatibility`.
    OldCompose,
}

/// Returns the names that compose gives to the image of a service without `image:`
/// (`GetImageNameOrDefault` in docker/compose's pkg/api/api.go; docker-compose 1 separates by `_`).
pub(super) fn default_names(project: &str, service: &str) -> [(String, NamedBy); 2] {
    [
        (format!("{project}-{service}"), NamedBy::Compose),
        (format!("{project}_{service}"), NamedBy::OldCompose),
    ]
}
