//! The documents of compose files, of which later ones override earlier ones.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::yaml::Node;

/// How many services may extend each other in a row.
const DEEPEST: usize = 250;

/// A file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: Vec<u8>,
}

/// A place in one of the files.
#[derive(Clone, Debug)]
pub(in crate::lint) struct Place {
    pub(in crate::lint) path: PathBuf,
    /// From 1.
    pub(in crate::lint) line: usize,
    /// From 1, in characters.
    pub(in crate::lint) column: usize,
}

/// A document of one of the files.
pub(super) struct Layer<'a> {
    pub(super) source: &'a Source,
    pub(super) document: Node<'a>,
    /// The keys and values of its services, by name.
    pub(super) services: HashMap<&'a str, (Node<'a>, Node<'a>)>,
}

impl<'a> Layer<'a> {
    pub(super) fn new(source: &'a Source, document: Node<'a>) -> Self {
        let services = document.get("services").map(Node::pairs).unwrap_or_default();
        let named = services.into_iter().rev().filter_map(|pair| Some((pair.0.text()?, pair)));
        Layer { source, document, services: named.collect() }
    }

    pub(super) fn place(&self, node: Node<'_>) -> Place {
        let (line, column) = node.position();
        Place { path: self.source.path.clone(), line, column }
    }

    /// Returns the place of a service's name, if the service is in this layer.
    pub(super) fn place_of_name(&self, service: &str) -> Option<Place> {
        self.services.get(service).map(|(key, _)| self.place(*key))
    }

    /// Returns the place of something that a service says. If that comes from elsewhere (an anchor,
    /// another service), this is the place of the service's name.
    pub(super) fn place_in(&self, service: &str, node: Node<'_>) -> Place {
        let Some((key, value)) = self.services.get(service) else { return self.place(node) };
        self.place(if value.contains(node) { node } else { *key })
    }

    /// Returns what a service has under a key, itself or from the service of this layer that it
    /// extends.
    pub(super) fn value(&self, service: &str, key: &str) -> Option<Node<'a>> {
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

/// Returns the names of all services, in the order of the files.
pub(super) fn service_names<'a>(layers: &[Layer<'a>]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let is_new = |name: &&&str| !layers[..n].iter().any(|it| it.services.contains_key(**name));
        let mut fresh: Vec<_> = layer.services.keys().filter(is_new).copied().collect();
        fresh.sort_by_key(|name| layer.services.get(name).map(|(key, _)| key.position()));
        names.extend(fresh);
    }
    names
}
