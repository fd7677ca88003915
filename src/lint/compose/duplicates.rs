//! Services that build the same image: whichever is built last wins.

use std::collections::BTreeMap;

use super::super::finding::Level;
use super::image::{Image, NamedBy};
use super::layer::Place;
use crate::reference::Tag;

/// A service that builds the same image as an earlier one.
#[derive(Debug)]
pub(in crate::lint) struct Duplicate {
    pub(in crate::lint) place: Place,
    /// An error if one call can build both.
    pub(in crate::lint) level: Level,
    pub(in crate::lint) message: String,
    pub(in crate::lint) advice: &'static str,
}

/// Returns all but the first of the services that build one image.
pub(super) fn find(images: &[Image]) -> Vec<Duplicate> {
    let mut by_tag: BTreeMap<String, Vec<&Image>> = BTreeMap::new();
    let mut found = Vec::new();
    for image in images {
        // A name with variables is not a tag, and is compared as it is.
        let tag = image.name.parse::<Tag>().map_or(image.name.clone(), |tag| tag.to_string());
        let earlier = by_tag.entry(tag).or_default();
        let others = || earlier.iter().filter(|other| other.service != image.service);
        let other = others().find(|other| one_call_builds(other, image));
        if let Some(other) = other.or_else(|| others().next()) {
            found.push(duplicate(other, image));
        }
        earlier.push(image);
    }
    found
}

/// Returns whether one call can build both. A service without profiles is part of every call.
fn one_call_builds(a: &Image, b: &Image) -> bool {
    let is_always_built = a.profiles.is_empty() || b.profiles.is_empty();
    let shares_profile = || a.profiles.iter().any(|profile| b.profiles.contains(profile));
    !has_old_name(a, b) && (is_always_built || shares_profile())
}

fn has_old_name(a: &Image, b: &Image) -> bool {
    [a, b].iter().any(|image| image.named_by == NamedBy::OldCompose)
}

fn duplicate(first: &Image, second: &Image) -> Duplicate {
    let services =
        format!("the services {} and {} both build {}", first.service, second.service, second.name);
    let mut message = if has_old_name(first, second) {
        format!("with docker-compose 1 or --compatibility, {services}")
    } else {
        services
    };
    if let Some(unnamed) = [first, second].iter().find(|it| it.named_by != NamedBy::File) {
        message += &format!(": {} has no image:, so compose gives it that name", unnamed.service);
    }
    let level = if one_call_builds(first, second) { Level::Error } else { Level::Note };
    if level == Level::Note && !has_old_name(first, second) {
        message += ", if their profiles are used together";
    }
    let advice = match first.build == second.build {
        true => {
            "build it with buildlock --each, which builds it once, or in one service, and use the \
             image in the others"
        }
        false => "their builds differ, so give them different images",
    };
    Duplicate { place: second.place.clone(), level, message, advice }
}
