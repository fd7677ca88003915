//! `docker buildx bake --print`.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde_json::{Map, Value};

use super::target::LabelledBy;
use super::{Question, Target, strings, tags, values_after};
use crate::command::goes_elsewhere;
use crate::reference::Tag;

/// Asks with all words of the build command. Groups, matrices, inheritance, variables and
/// overrides are resolved in the answer.
pub(super) fn find(question: &Question<'_>) -> Result<Vec<Target>> {
    let mut words = question.command.words().to_vec();
    words.insert(question.call.at + 1, "--print".into());
    let plan = question.ask_for_json(&words)?;
    let nothing = Map::new();
    let targets = plan["target"].as_object().unwrap_or(&nothing);
    let requested = requested(&plan);
    targets
        .iter()
        .filter(|(name, _)| requested.contains(name.as_str()))
        .map(|(name, target)| read(name, target, targets))
        .collect()
}

/// Returns the targets of the group `default`, in which `--print` puts what is named. The other
/// targets of the answer are those that these read.
fn requested(plan: &Value) -> BTreeSet<&str> {
    let group = |name: &str| plan["group"].get(name).map(|group| strings(&group["targets"]));
    let (mut open, mut seen) = (vec!["default"], BTreeSet::new());
    while let Some(name) = open.pop() {
        if seen.insert(name) {
            open.extend(group(name).into_iter().flatten());
        }
    }
    seen
}

fn read(name: &str, target: &Value, all: &Map<String, Value>) -> Result<Target> {
    let outputs = outputs(target);
    if let Some(output) = outputs.first().filter(|_| outputs.iter().all(|it| goes_elsewhere(it))) {
        bail!("target {name} makes no image: its output is {output}");
    }
    let own = tags("target", name, strings(&target["tags"]))?;
    if own.is_empty() {
        bail!(
            "no tag: target {name} has no tags, so nothing tells which image it builds; give it \
             tags, or name the other targets"
        );
    }
    Ok(Target {
        name: name.to_owned(),
        tags: own,
        others: tags_of_read(target, all)?,
        needs: values_after("target:", &target["contexts"]).map(str::to_owned).collect(),
        definition: target.clone(),
        labelled_by: Some(LabelledBy::Option),
    })
}

/// Returns the tags of the targets that this one reads, themselves or through others: bake builds
/// and tags them, too.
fn tags_of_read(target: &Value, all: &Map<String, Value>) -> Result<Vec<Tag>> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    let mut open: Vec<&str> = values_after("target:", &target["contexts"]).collect();
    while let Some(name) = open.pop() {
        let Some(target) = all.get(name).filter(|_| seen.insert(name)) else { continue };
        found.extend(tags("target", name, strings(&target["tags"]))?);
        open.extend(values_after("target:", &target["contexts"]));
    }
    Ok(found)
}

/// Returns the outputs of a target, as `-o` has them.
pub(crate) fn outputs(target: &Value) -> Vec<String> {
    target["output"].as_array().into_iter().flatten().map(output).collect()
}

/// Returns an output as `-o` has it. Newer versions print an object of its fields.
fn output(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| {
                format!("{key}={}", value.as_str().unwrap_or_default())
            };
            fields.iter().map(field).collect::<Vec<_>>().join(",")
        }
        _ => String::new(),
    }
}
