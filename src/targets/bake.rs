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
    // In this group `--print` puts what is named. The other targets are those that these read.
    let requested = members(&plan, "default");
    targets
        .iter()
        .filter(|(name, _)| requested.contains(*name))
        .map(|(name, target)| read(name, target, targets))
        .collect()
}

/// Returns the targets of a group and of the groups in it, and their names.
pub(crate) fn members(plan: &Value, group: &str) -> BTreeSet<String> {
    let (mut open, mut found) = (vec![group], BTreeSet::new());
    while let Some(name) = open.pop() {
        if found.insert(name.to_owned()) {
            open.extend(strings(&plan["group"][name]["targets"]));
        }
    }
    found
}

/// Returns an output that is only a file or folder, if a target has no other.
pub(crate) fn output_without_image(target: &Value) -> Option<String> {
    let outputs = outputs(target);
    let is_elsewhere = outputs.iter().all(|output| goes_elsewhere(output));
    outputs.into_iter().next().filter(|_| is_elsewhere)
}

fn read(name: &str, target: &Value, all: &Map<String, Value>) -> Result<Target> {
    if let Some(output) = output_without_image(target) {
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
