//! Services of a compose file that build the same image: the one that is built last wins.

use std::cell::LazyCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::yaml::{Node, Yaml};
use super::{Level, NotThat, project, walk};
use crate::image::compose_config;
use crate::reference::Tag;

/// How many services may extend each other in a row.
const DEEPEST: usize = 250;

/// What is in a compose file.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Services that build what another one builds too.
    pub(super) found: Vec<Found>,
    /// The Dockerfiles that its services are built from.
    pub(super) dockerfiles: Vec<PathBuf>,
    /// The Dockerfiles that are written in it.
    pub(super) inline: Vec<Inline>,
}

/// A service that builds what another one builds too.
#[derive(Debug)]
pub(super) struct Found {
    /// Where its image is.
    pub(super) place: Place,
    /// An error if one call can build both.
    pub(super) level: Level,
    /// What it is.
    pub(super) message: String,
}

/// A Dockerfile that is written in a compose file (`dockerfile_inline`).
#[derive(Debug)]
pub(super) struct Inline {
    /// What it says.
    pub(super) text: String,
    /// Where that begins.
    pub(super) place: Place,
    /// How far its lines, which are those behind the place, are indented. None: they are other
    /// lines than the file's, and only where it begins is known.
    pub(super) indent: Option<usize>,
}

/// A place in one of the files.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The file.
    pub(super) path: PathBuf,
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
}

/// An image that a service builds.
struct Built {
    service: String,
    image: String,
    name: Name,
    profiles: Vec<String>,
    place: Place,
}

/// Who gave an image its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    /// The file.
    Written,
    /// compose, because the file gives none.
    Default,
    /// docker-compose 1, or compose with `--compatibility`, because the file gives none.
    OldDefault,
}

/// A document of a compose file. What it says counts for more than what those before it say.
struct Layer<'a> {
    path: &'a Path,
    text: &'a [u8],
    document: Node<'a>,
    /// The keys and values of its services.
    services: HashMap<&'a str, (Node<'a>, Node<'a>)>,
}

impl<'a> Layer<'a> {
    fn new((path, text): &'a (PathBuf, Vec<u8>), document: Node<'a>) -> Self {
        let services = document.get("services").map(Node::pairs).unwrap_or_default();
        let named = services.into_iter().rev().filter_map(|pair| Some((pair.0.text()?, pair)));
        Layer { path, text, document, services: named.collect() }
    }

    fn place(&self, node: Node<'_>) -> Place {
        let (line, column) = node.position();
        Place { path: self.path.to_owned(), line, column }
    }

    /// Where a service says something: there if it stands within the service, and otherwise (it was
    /// merged in, or is another service's) at the service's name.
    fn place_of(&self, service: &str, node: Node<'_>) -> Place {
        let Some((key, value)) = self.services.get(service) else { return self.place(node) };
        self.place(if value.holds(node) { node } else { *key })
    }

    /// What a service has under a key, itself or from the one in this layer that it extends.
    fn said(&self, service: &str, key: &str) -> Option<Node<'a>> {
        let mut name = service;
        for _ in 0..DEEPEST {
            let (_, service) = self.services.get(name)?;
            if let Some(own) = service.get(key) {
                return Some(own);
            }
            let extends = service.get("extends").filter(|it| it.get("file").is_none())?;
            name = extends.get("service").unwrap_or(extends).text()?;
        }
        None
    }
}

/// Reads a compose file, and the one that overrides it.
///
/// docker compose is asked only where the files leave open what they say: where they include or
/// extend other files, or where a variable decides about the name of an image.
///
/// # Errors
/// One of them is not YAML, or the second one cannot be read.
pub(super) fn read(path: &Path, text: Vec<u8>) -> Result<Read> {
    let mut files = vec![(path.to_owned(), text)];
    if let Some(path) = walk::override_of(path) {
        let text =
            super::read(&path, false).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((path, text));
    }
    let read = |(path, text): &(PathBuf, Vec<u8>)| {
        Yaml::read(text).map_err(|why| NotThat(format!("{}: not YAML: {why}", path.display())))
    };
    let yaml = files.iter().map(read).collect::<std::result::Result<Vec<_>, _>>()?;
    let with_path = files.iter().zip(&yaml);
    let layers: Vec<_> = with_path
        .flat_map(|(file, yaml)| yaml.documents().map(move |it| Layer::new(file, it)))
        .collect();
    let names = services(&layers);
    let project = LazyCell::new(|| {
        let name = layers.iter().rev().find_map(|layer| layer.document.get("name")?.text());
        project::name(path, name)
    });
    let mut read = Read::default();
    let mut written = Vec::new();
    for name in &names {
        let Some(service) = Service::of(&layers, name) else { continue };
        read.dockerfiles.extend(service.dockerfile(path));
        read.inline.extend(service.inline());
        written.extend(service.images(&|| project.clone()));
    }
    let built = match leaves_open(&layers, &written) {
        true => asked(&files, &layers, written),
        false => written,
    };
    read.found = twice(&built);
    Ok(read)
}

/// The names of all services, in the order in which they stand in the files.
fn services<'a>(layers: &[Layer<'a>]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let before = &layers[..n];
        let is_new = |name: &&&str| !before.iter().any(|layer| layer.services.contains_key(**name));
        let mut of_layer: Vec<_> = layer.services.keys().filter(is_new).copied().collect();
        of_layer.sort_by_key(|name| layer.services.get(name).map(|(key, _)| key.position()));
        names.extend(of_layer);
    }
    names
}

/// Does it take compose itself to tell which images are built?
fn leaves_open(layers: &[Layer<'_>], written: &[Built]) -> bool {
    let reads_more = |layer: &Layer<'_>| {
        let mut services = layer.services.values();
        layer.document.get("include").is_some()
            || services.any(|(_, it)| it.get("extends").is_some_and(|it| it.get("file").is_some()))
    };
    let has_variable = written.iter().any(|built| built.image.contains('$'));
    layers.iter().any(reads_more)
        || has_variable && written.iter().any(|built| built.service != written[0].service)
}

/// What compose says that is built, and what it leaves out as it is written.
fn asked(files: &[(PathBuf, Vec<u8>)], layers: &[Layer<'_>], written: Vec<Built>) -> Vec<Built> {
    let paths = files.iter().map(|(path, _)| path.as_path());
    let Some(config) = compose_config(paths) else { return written };
    let start = Place { path: files[0].0.clone(), line: 1, column: 1 };
    let mut built = configured(&config, layers, &written, &start);
    let is_known = |service: &str| config["services"].get(service).is_some();
    built.extend(written.into_iter().filter(|built| !is_known(&built.service)));
    built
}

/// What `docker compose config` says, with where that is written; `start` is for what is not.
fn configured(
    config: &Value,
    layers: &[Layer<'_>],
    written: &[Built],
    start: &Place,
) -> Vec<Built> {
    let mut built = Vec::new();
    let strings = |list: &Value| -> Vec<String> {
        let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    for (service, config_of) in config["services"].as_object().into_iter().flatten() {
        let Some(build) = config_of.get("build").filter(|build| !build.is_null()) else { continue };
        let images = match config_of["image"].as_str() {
            Some(image) => vec![(image.to_owned(), Name::Written)],
            None => default_names(config["name"].as_str().unwrap_or_default(), service),
        };
        let tags = strings(&build["tags"]).into_iter().map(|tag| (tag, Name::Written));
        for (image, name) in images.into_iter().chain(tags) {
            let mine = |built: &&Built| built.service == *service;
            let same = written.iter().filter(mine).find(|built| built.image == image);
            let place = same.or_else(|| written.iter().find(mine)).map(|it| it.place.clone());
            let of_service = || {
                layers.iter().find_map(|it| Some(it.place(it.services.get(service.as_str())?.0)))
            };
            let place = place.or_else(of_service).unwrap_or_else(|| start.clone());
            let (service, profiles) = (service.clone(), strings(&config_of["profiles"]));
            built.push(Built { service, image, name, profiles, place });
        }
    }
    built
}

/// The names that compose gives the image of a service that has no `image:`: `GetImageNameOrDefault`
/// of docker/compose (pkg/api/api.go), whose separator is `_` for docker-compose 1.
fn default_names(project: &str, service: &str) -> Vec<(String, Name)> {
    vec![
        (format!("{project}-{service}"), Name::Default),
        (format!("{project}_{service}"), Name::OldDefault),
    ]
}

/// A service that is built: what the last layer says that says something.
struct Service<'a, 'b> {
    name: &'a str,
    layers: &'b [Layer<'a>],
    /// What each layer says of how to build it.
    builds: Vec<(&'b Layer<'a>, Node<'a>)>,
}

impl<'a, 'b> Service<'a, 'b> {
    fn of(layers: &'b [Layer<'a>], name: &'a str) -> Option<Self> {
        let builds: Vec<_> =
            layers.iter().filter_map(|layer| Some((layer, layer.said(name, "build")?))).collect();
        let is_built = builds.last().is_some_and(|(_, build)| !build.is_null());
        is_built.then_some(Service { name, layers, builds })
    }

    /// The images that it builds: its own, and all tags.
    fn images(&self, project: &dyn Fn() -> String) -> Vec<Built> {
        let said =
            |key| self.layers.iter().filter_map(move |it| Some((it, it.said(self.name, key)?)));
        let profiles = said("profiles").flat_map(|(_, list)| list.items());
        let profiles: Vec<String> = profiles.filter_map(Node::text).map(str::to_owned).collect();
        let built = |image: String, name, place| Built {
            service: self.name.to_owned(),
            image,
            name,
            profiles: profiles.clone(),
            place,
        };
        let own = said("image").next_back().and_then(|(layer, image)| {
            let text = image.text().filter(|text| !text.is_empty())?;
            Some(built(text.to_owned(), Name::Written, layer.place_of(self.name, image)))
        });
        let mut images = match own {
            Some(own) => vec![own],
            None => {
                let place = self.builds.iter().find_map(|(layer, _)| {
                    layer.services.get(self.name).map(|(key, _)| layer.place(*key))
                });
                let names = place.map(|place| (place, default_names(&project(), self.name)));
                names
                    .into_iter()
                    .flat_map(|(place, names)| {
                        names.into_iter().map(move |(image, name)| (image, name, place.clone()))
                    })
                    .map(|(image, name, place)| built(image, name, place))
                    .collect()
            }
        };
        for (layer, build) in &self.builds {
            let tags = build.get("tags").map(Node::items).unwrap_or_default();
            images.extend(tags.into_iter().filter_map(|tag| {
                let place = layer.place_of(self.name, tag);
                Some(built(tag.text()?.to_owned(), Name::Written, place))
            }));
        }
        images
    }

    /// What the last layer that says something has under a key of its `build`.
    fn build(&self, key: &str) -> Option<(&'b Layer<'a>, Node<'a>)> {
        self.builds.iter().rev().find_map(|(layer, build)| Some((*layer, build.get(key)?)))
    }

    /// The Dockerfile on this machine that it is built from, if there is one.
    fn dockerfile(&self, compose_file: &Path) -> Option<PathBuf> {
        if self.build("dockerfile_inline").is_some() {
            return None;
        }
        let text = |key| self.build(key).and_then(|(_, node)| node.text());
        let short = self.builds.last().and_then(|(_, build)| build.text());
        let context = short.or_else(|| text("context")).unwrap_or(".");
        let dockerfile = text("dockerfile").unwrap_or("Dockerfile");
        // A repository, or whatever a variable makes of it.
        if [context, dockerfile].iter().any(|it| it.contains('$') || it.contains(':')) {
            return None;
        }
        let folder = compose_file.parent().unwrap_or(Path::new(""));
        let path = plain(&folder.join(context).join(dockerfile));
        path.is_file().then_some(path)
    }

    fn inline(&self) -> Option<Inline> {
        let (layer, node) = self.build("dockerfile_inline")?;
        // A `$` that compose leaves to the Dockerfile.
        let text = node.text()?.replace("$$", "$");
        let place = layer.place(node);
        let blanks = |line: &str| line.len() - line.trim_start_matches(' ').len();
        let of_file = String::from_utf8_lossy(layer.text);
        let first = |line: &&str| !line.trim().is_empty();
        let of_file = of_file.lines().skip(place.line).find(first).map(blanks);
        let own = text.lines().find(first).map_or(0, blanks);
        let indent =
            of_file.filter(|_| node.is_literal()).map(|of_file| of_file.saturating_sub(own));
        Some(Inline { text, place, indent })
    }
}

/// A path without `.`, and without the `..` that only lead back.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(plain.components().next_back(), Some(Component::Normal(_))) =>
            {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// All but the first of those that build one image.
fn twice(built: &[Built]) -> Vec<Found> {
    let mut images: BTreeMap<String, Vec<&Built>> = BTreeMap::new();
    let mut found = Vec::new();
    for built in built {
        // A name with variables is compared as it is written.
        let key = built.image.parse::<Tag>().map_or(built.image.clone(), |tag| tag.to_string());
        let before = images.entry(key).or_default();
        let others = || before.iter().filter(|other| other.service != built.service);
        let with = others().find(|other| at_once(other, built));
        if let Some(other) = with.or_else(|| others().next()) {
            found.push(both_build(other, built));
        }
        before.push(built);
    }
    found
}

/// Can one call build both? Without a profile a service is in every call.
fn at_once(a: &Built, b: &Built) -> bool {
    let is_old = [a, b].iter().any(|built| built.name == Name::OldDefault);
    let always = a.profiles.is_empty() || b.profiles.is_empty();
    !is_old && (always || a.profiles.iter().any(|profile| b.profiles.contains(profile)))
}

fn both_build(first: &Built, second: &Built) -> Found {
    let names = format!("{} and {} both build {}", first.service, second.service, second.image);
    let is_old = [first, second].iter().any(|built| built.name == Name::OldDefault);
    let mut message = match is_old {
        true => format!("with docker-compose 1 or --compatibility, the services {names}"),
        false => format!("the services {names}"),
    };
    if let Some(unnamed) = [first, second].iter().find(|built| built.name != Name::Written) {
        message += &format!(": {} has no image:, so compose gives it that name", unnamed.service);
    }
    let level = if at_once(first, second) { Level::Error } else { Level::Note };
    if level == Level::Note && !is_old {
        message += ", if their profiles are used together";
    }
    Found { place: second.place.clone(), level, message }
}
