//! Compose 2 and later: `docker compose config`.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::target::LabelledBy;
use super::{Question, Target, strings, tags, values_after};
use crate::reference::Tag;

/// Asks with the global options of the build command and the services that it names. To name a
/// service enables its profile, as in a build.
pub(super) fn find(question: &Question<'_>) -> Result<Vec<Target>> {
    let mut words = question.words_before();
    words.extend(["config", "--format", "json"].map(Into::into));
    words.extend(question.call.named.iter().map(Into::into));
    let config = Arc::new(question.ask_for_json(&words)?);
    let nothing = Map::new();
    let services = config["services"].as_object().unwrap_or(&nothing);
    let selected = selected_services(question, services);
    services
        .iter()
        .filter(|(name, service)| selected.contains(&name.as_str()) && service["build"].is_object())
        .map(|(name, service)| target(question, &config, name, service))
        .collect()
}

/// Returns the services that the command selects, including dependencies with
/// `--with-dependencies`. Some may have nothing to build.
fn selected_services<'a>(
    question: &Question<'_>,
    services: &'a Map<String, Value>,
) -> Vec<&'a str> {
    let named = services.keys().map(String::as_str).filter(|name| question.is_selected(name));
    let mut built: Vec<&str> = named.collect();
    if !question.call.has("with-dependencies") {
        return built;
    }
    let mut at = 0;
    while let Some(&name) = built.get(at) {
        let needs = services.get(name).and_then(|service| service["depends_on"].as_object());
        for need in needs.into_iter().flat_map(|needs| needs.keys()) {
            if !built.contains(&need.as_str()) {
                built.push(need);
            }
        }
        at += 1;
    }
    built
}

fn target(
    question: &Question<'_>,
    config: &Arc<Value>,
    name: &str,
    service: &Value,
) -> Result<Target> {
    let build = &service["build"];
    let mut definition = build.clone();
    if let (None, Some(platform)) = (build.get("platforms"), service.get("platform")) {
        definition["platforms"] = json!([platform]);
    }
    Ok(Target {
        name: name.to_owned(),
        tags: images(question, config, name)?,
        others: images_of_read(question, config, name)?,
        needs: read_by(build).map(str::to_owned).collect(),
        definition,
        labelled_by: Some(LabelledBy::File(Arc::clone(config))),
    })
}

/// Returns the images that a service builds.
fn images(question: &Question<'_>, config: &Value, name: &str) -> Result<Vec<Tag>> {
    let service = &config["services"][name];
    let project = config["name"].as_str().unwrap_or_default();
    // GetImageNameOrDefault in docker/compose's pkg/api/api.go.
    let separator = if is_compatible(question) { '_' } else { '-' };
    let default = || format!("{project}{separator}{name}");
    let own = service["image"].as_str().map_or_else(default, str::to_owned);
    tags("service", name, [own.as_str()].into_iter().chain(strings(&service["build"]["tags"])))
}

/// Returns the services whose images a build reads.
fn read_by(build: &Value) -> impl Iterator<Item = &str> {
    values_after("service:", &build["additional_contexts"])
}

/// Returns the images of the services that this one reads, itself or through others: compose builds
/// them, too.
fn images_of_read(question: &Question<'_>, config: &Value, name: &str) -> Result<Vec<Tag>> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    let mut open: Vec<&str> = read_by(&config["services"][name]["build"]).collect();
    while let Some(name) = open.pop() {
        let service = &config["services"][name];
        if seen.insert(name) && service.is_object() {
            found.extend(images(question, config, name)?);
            open.extend(read_by(&service["build"]));
        }
    }
    Ok(found)
}

/// Returns whether images are named as by docker-compose 1 (`--compatibility`).
fn is_compatible(question: &Question<'_>) -> bool {
    let variable = || question.client.variable("COMPOSE_COMPATIBILITY");
    // StringToBool in docker/compose's pkg/utils/stringutils.go.
    let is_true = |value: &str| ["1", "t", "true", "y", "yes"].contains(&value);
    let is_set = || variable().is_some_and(|it| is_true(&it.to_string_lossy().to_lowercase()));
    question.call.has("compatibility") || is_set()
}
