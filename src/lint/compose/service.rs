//! A service that is built: its images and its Dockerfile.

use std::path::{Component, Path, PathBuf};

use super::image::{self, Image, NamedBy};
use super::layer::{Layer, Place};
use crate::yaml::Node;

/// A service that is built. The last layer that says something counts.
pub(super) struct Service<'a, 'b> {
    name: &'a str,
    layers: &'b [Layer<'a>],
    /// The `build` of each layer that has one.
    builds: Vec<(&'b Layer<'a>, Node<'a>)>,
}

/// A Dockerfile in a compose file (`dockerfile_inline`).
#[derive(Debug)]
pub(in crate::lint) struct Inline {
    pub(in crate::lint) text: String,
    /// Where the value begins.
    pub(in crate::lint) place: Place,
    /// How far its lines are indented, if they are the file's lines after `place`. `None` if not,
    /// as in a quoted value; then only the beginning is known.
    pub(in crate::lint) indent: Option<usize>,
}

impl<'a, 'b> Service<'a, 'b> {
    /// Returns the service if it is built.
    pub(super) fn find(layers: &'b [Layer<'a>], name: &'a str) -> Option<Self> {
        let builds: Vec<_> =
            layers.iter().filter_map(|layer| Some((layer, layer.value(name, "build")?))).collect();
        let is_built = builds.last().is_some_and(|(_, build)| !build.is_null());
        is_built.then_some(Service { name, layers, builds })
    }

    /// Returns the images that it builds: its own and all tags.
    pub(super) fn images(&self, project: &dyn Fn() -> String) -> Vec<Image> {
        let mut images = match self.named_image() {
            Some(image) => vec![image],
            None => self.unnamed_images(project),
        };
        for (layer, build) in &self.builds {
            let tags = build.get("tags").map(Node::items).unwrap_or_default();
            images.extend(tags.into_iter().filter_map(|tag| {
                let place = layer.place_in(self.name, tag);
                Some(self.image(tag.text()?.to_owned(), NamedBy::File, place))
            }));
        }
        images
    }

    fn named_image(&self) -> Option<Image> {
        let (layer, image) = self.values("image").next_back()?;
        let name = image.text().filter(|text| !text.is_empty())?;
        Some(self.image(name.to_owned(), NamedBy::File, layer.place_in(self.name, image)))
    }

    fn unnamed_images(&self, project: &dyn Fn() -> String) -> Vec<Image> {
        let place = self.builds.iter().find_map(|(layer, _)| layer.place_of_name(self.name));
        let Some(place) = place else { return Vec::new() };
        let names = image::default_names(&project(), self.name).into_iter();
        names.map(|(name, named_by)| self.image(name, named_by, place.clone())).collect()
    }

    fn image(&self, name: String, named_by: NamedBy, place: Place) -> Image {
        let profiles = self.values("profiles").flat_map(|(_, list)| list.items());
        let profiles = profiles.filter_map(Node::text).map(str::to_owned).collect();
        let build = self.builds.last().map(|(_, build)| build.to_json()).unwrap_or_default();
        Image { service: self.name.to_owned(), name, named_by, profiles, build, place }
    }

    /// Returns what each layer has under a key of the service.
    fn values(
        &self,
        key: &'static str,
    ) -> impl DoubleEndedIterator<Item = (&'b Layer<'a>, Node<'a>)> {
        let name = self.name;
        self.layers.iter().filter_map(move |layer| Some((layer, layer.value(name, key)?)))
    }

    /// Returns what counts under a key of its `build`.
    fn build(&self, key: &str) -> Option<(&'b Layer<'a>, Node<'a>)> {
        self.builds.iter().rev().find_map(|(layer, build)| Some((*layer, build.get(key)?)))
    }

    /// Returns its Dockerfile, if that is a file on this machine.
    pub(super) fn dockerfile(&self, compose_file: &Path) -> Option<PathBuf> {
        if self.build("dockerfile_inline").is_some() {
            return None;
        }
        let text = |key| self.build(key).and_then(|(_, node)| node.text());
        let short = self.builds.last().and_then(|(_, build)| build.text());
        let context = short.or_else(|| text("context")).unwrap_or(".");
        let dockerfile = text("dockerfile").unwrap_or("Dockerfile");
        // A repository, or a path that depends on a variable.
        if [context, dockerfile].iter().any(|it| it.contains('$') || it.contains(':')) {
            return None;
        }
        let folder = compose_file.parent().unwrap_or(Path::new(""));
        let path = normalized(&folder.join(context).join(dockerfile));
        path.is_file().then_some(path)
    }

    /// Returns the Dockerfile that is in the compose file itself.
    pub(super) fn inline(&self) -> Option<Inline> {
        let (layer, node) = self.build("dockerfile_inline")?;
        // compose leaves `$$` to the Dockerfile as `$`.
        let text = node.text()?.replace("$$", "$");
        let place = layer.place(node);
        let indent = node.is_literal().then(|| indent(&layer.source.text, place.line, &text));
        Some(Inline { text, place, indent: indent.flatten() })
    }
}

/// Returns how far the lines of `text` are indented in the file, where they come after `line`.
fn indent(file: &[u8], line: usize, text: &str) -> Option<usize> {
    let blanks = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let says_something = |line: &&str| !line.trim().is_empty();
    let file = String::from_utf8_lossy(file);
    let in_file = file.lines().skip(line).find(says_something).map(blanks)?;
    let own = text.lines().find(says_something).map_or(0, blanks);
    Some(in_file.saturating_sub(own))
}

/// Returns a path without `.`, and without a `..` after a folder's name.
fn normalized(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for component in path.components() {
        let is_in_folder =
            || matches!(normalized.components().next_back(), Some(Component::Normal(_)));
        match component {
            Component::CurDir => {}
            Component::ParentDir if is_in_folder() => _ = normalized.pop(),
            other => normalized.push(other),
        }
    }
    normalized
}
