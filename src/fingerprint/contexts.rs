//! Named contexts: `--build-context name=value`.

use std::path::PathBuf;

use super::remote::Remote;
use crate::dockerfile::Dialect;
use crate::reference::Tag;

/// A context with a name, which may take the place of an image or a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedContext {
    pub(crate) name: String,
    pub(crate) source: ContextSource,
}

/// What a context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ContextSource {
    /// An image, by its reference.
    Image(String),
    /// A folder, or for buildah an archive.
    Path(PathBuf),
    /// What a URL leads to.
    Remote(String, Remote),
    /// Something that cannot be looked into here, such as `oci-layout://`.
    Other(String),
}

impl NamedContext {
    /// Reads `name=value`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty())?;
        Some(NamedContext { name: name.to_owned(), source: ContextSource::parse(value) })
    }

    /// Returns whether the context takes the place of the image or stage of this name.
    pub(crate) fn replaces(&self, name: &str, dialect: Dialect) -> bool {
        match dialect {
            Dialect::BuildKit => familiar(&self.name) == familiar(name),
            Dialect::Buildah => self.name == name,
            Dialect::Legacy => false,
        }
    }
}

impl ContextSource {
    fn parse(value: &str) -> Self {
        for scheme in ["docker-image://", "container-image://", "docker://"] {
            if let Some(image) = value.strip_prefix(scheme) {
                return ContextSource::Image(image.to_owned());
            }
        }
        match Remote::of_context(value) {
            _ if value.starts_with("oci-layout:") || value.starts_with("target:") => {
                ContextSource::Other(value.to_owned())
            }
            Some(remote) => ContextSource::Remote(value.to_owned(), remote),
            None => ContextSource::Path(PathBuf::from(value)),
        }
    }
}

/// Returns a reference as BuildKit compares it: Docker's short form, with a tag.
fn familiar(reference: &str) -> String {
    reference.parse::<Tag>().map_or_else(|_| reference.to_owned(), |tag| tag.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_images_paths_or_remote() {
        let source = |text: &str| NamedContext::parse(text).unwrap().source;
        assert_eq!(source("a=docker-image://b:1"), ContextSource::Image("b:1".into()));
        assert_eq!(source("a=../b"), ContextSource::Path("../b".into()));
        let url = "https://h/a.git";
        assert_eq!(source(&format!("a={url}")), ContextSource::Remote(url.into(), Remote::Moving));
        assert_eq!(source("a=oci-layout://b"), ContextSource::Other("oci-layout://b".into()));
        assert_eq!([NamedContext::parse("a"), NamedContext::parse("=b")], [None, None]);
    }

    #[test]
    fn context_replaces_what_has_its_name() {
        let context = NamedContext::parse("docker.io/library/alpine=b").unwrap();
        for (name, buildkit) in [
            ("alpine", true),
            ("alpine:latest", true),
            ("alpine:3", false),
            ("docker.io/library/alpine", true),
            ("ghcr.io/library/alpine", false),
        ] {
            assert_eq!(context.replaces(name, Dialect::BuildKit), buildkit, "{name}");
            assert!(!context.replaces(name, Dialect::Legacy), "{name}");
        }
        assert!(context.replaces("docker.io/library/alpine", Dialect::Buildah));
        assert!(!context.replaces("alpine", Dialect::Buildah));
    }
}
