//! Finds targets of a bake file that build the same image.
//!
//! Bake itself is asked, since groups, inheritance, matrices and variables decide which tags a
//! target has. Without docker buildx, a file in JSON is read as it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value};

use super::compose::Place;
use super::finding::{Level, WrongKind};
use super::position::Positions;
use super::walk;
use crate::image::bake_plan;
use crate::reference::Tag;
use crate::targets::bake::{members, output_without_image};

/// A target that builds the same image as an earlier one.
#[derive(Debug)]
pub(super) struct Duplicate {
    pub(super) place: Place,
    /// An error if one group has both.
    pub(super) level: Level,
    pub(super) message: String,
}

/// Returns the targets that build the image of another one.
///
/// # Errors
/// The file is not JSON, if its name says so.
pub(super) fn read(path: &Path, text: &[u8]) -> Result<Vec<Duplicate>> {
    let files: Vec<PathBuf> =
        [Some(path.to_owned()), walk::bake_override_of(path)].into_iter().flatten().collect();
    let blocks = Blocks::read(path, text)?;
    let asked: Vec<&str> =
        blocks.targets.keys().chain(&blocks.groups).map(String::as_str).collect();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let all = ask(&files, &asked);
    let default = all.as_ref().and_then(|_| ask(&files, &[]));
    let Some(all) = all.or_else(|| blocks.json.clone()) else { return Ok(Vec::new()) };
    let groups = Groups::of(&all, default.as_ref());
    let nothing = Map::new();
    let targets = all["target"].as_object().unwrap_or(&nothing);
    Ok(duplicates(targets, &groups, |target| blocks.place(path, &all, target)))
}

fn ask(files: &[PathBuf], names: &[&str]) -> Option<Value> {
    bake_plan(files.iter().map(PathBuf::as_path), names)
}

/// What a file defines.
struct Blocks {
    /// The line and column of each target.
    targets: BTreeMap<String, (usize, usize)>,
    groups: Vec<String>,
    /// The file, if it is JSON.
    json: Option<Value>,
}

impl Blocks {
    fn read(path: &Path, text: &[u8]) -> Result<Self> {
        match path.extension().is_some_and(|extension| extension == "json") {
            true => Self::read_json(path, text),
            false => Ok(Self::read_hcl(text)),
        }
    }

    fn read_json(path: &Path, text: &[u8]) -> Result<Self> {
        let json: Value = serde_json::from_slice(text)
            .map_err(|why| WrongKind(format!("{}: not JSON: {why}", path.display())))?;
        let names = |key: &str| json[key].as_object().into_iter().flat_map(|it| it.keys().cloned());
        let position = |name: &str| Positions::new(text).of(offset_of_target(text, name));
        let targets = names("target").map(|name| (name.clone(), position(&name))).collect();
        let groups = names("group").filter(|name| name != "default").collect();
        Ok(Blocks { targets, groups, json: Some(json) })
    }

    fn read_hcl(text: &[u8]) -> Self {
        let mut blocks = Blocks { targets: BTreeMap::new(), groups: Vec::new(), json: None };
        let (mut at, mut positions) = (0, Positions::new(text));
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            match block_header(&String::from_utf8_lossy(line)) {
                Some(("target", name)) => {
                    blocks.targets.insert(name.to_owned(), positions.of(at));
                }
                Some(("group", name)) if name != "default" => blocks.groups.push(name.to_owned()),
                _ => {}
            }
            at += line.len();
        }
        blocks
    }

    /// Returns where a target is defined. A matrix makes targets of other names.
    fn place(&self, path: &Path, plan: &Value, target: &str) -> Place {
        let makes_it = |name: &&String| {
            let made = plan["group"][name.as_str()]["targets"].as_array();
            made.is_some_and(|made| made.iter().any(|it| it == target))
        };
        let made_by = || self.targets.keys().find(makes_it).and_then(|name| self.targets.get(name));
        let (line, column) = *self.targets.get(target).or_else(made_by).unwrap_or(&(1, 1));
        Place { path: path.to_owned(), line, column }
    }
}

/// Returns where a target of a file in JSON is defined: its name as a key, behind the key `target`.
fn offset_of_target(text: &[u8], name: &str) -> usize {
    let find = |name: &str, from: usize| {
        let quoted = format!("\"{name}\"");
        let is_key = |at: &usize| {
            let rest = text[*at..].strip_prefix(quoted.as_bytes());
            rest.is_some_and(|rest| rest.trim_ascii_start().starts_with(b":"))
        };
        (from..text.len()).find(is_key)
    };
    find(name, find("target", 0).unwrap_or_default()).unwrap_or_default()
}

/// Reads the first line of a block of HCL: `target "api" {`.
fn block_header(line: &str) -> Option<(&str, &str)> {
    let (kind, rest) = line.split_once(char::is_whitespace)?;
    let name = rest.trim_start().strip_prefix('"')?.split_once('"')?.0;
    Some((kind, name))
}

/// Which targets one call builds.
struct Groups(Vec<BTreeSet<String>>);

impl Groups {
    /// `all` is the plan for all names, whose default group is not the file's own.
    fn of(all: &Value, default: Option<&Value>) -> Self {
        let names = all["group"].as_object().into_iter().flat_map(|groups| groups.keys());
        let of_all = names.filter(|name| *name != "default").map(|name| members(all, name));
        let of_default = default.map(|plan| members(plan, "default"));
        let of_file = default.is_none().then(|| members(all, "default"));
        Groups(of_all.chain(of_default).chain(of_file).collect())
    }

    fn have_both(&self, one: &str, other: &str) -> bool {
        self.0.iter().any(|group| group.contains(one) && group.contains(other))
    }
}

/// Returns all but the first of the targets that build one image.
fn duplicates(
    targets: &Map<String, Value>,
    groups: &Groups,
    place: impl Fn(&str) -> Place,
) -> Vec<Duplicate> {
    let mut by_tag: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut found = Vec::new();
    for (name, target) in targets {
        if output_without_image(target).is_some() {
            continue;
        }
        let mut reported = BTreeSet::new();
        for text in target["tags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let tag = text.parse::<Tag>().map_or(text.to_owned(), |tag| tag.to_string());
            let earlier = by_tag.entry(tag).or_default();
            let others = || earlier.iter().copied().filter(|other| other != name);
            let other = others().find(|other| groups.have_both(other, name));
            if let Some(other) = other.or_else(|| others().next())
                && reported.insert(other)
            {
                let is_one_call = groups.have_both(other, name);
                let mut message = format!("the targets {other} and {name} both build {text}");
                if !is_one_call {
                    message += ", if they are built together";
                }
                let level = if is_one_call { Level::Error } else { Level::Note };
                found.push(Duplicate { place: place(name), level, message });
            }
            earlier.push(name);
        }
    }
    found
}
