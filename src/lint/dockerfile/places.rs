//! Where a cache folder would be if no variable or option had moved it.

use super::super::shell::Call;
use super::super::tools::{MOVED, Move, Place, VARIABLES};
use super::stages::Stages;
use crate::dockerfile::Value;

/// Gives calls the variables of the Dockerfile that turn caches off.
pub(super) fn add_environment(stages: &Stages, calls: &mut [Call]) {
    const NAME: &str = "PIP_NO_CACHE_DIR";
    let Some(value) = stages.set_value(NAME) else { return };
    for call in calls {
        call.env.insert(0, (NAME.to_owned(), value.to_owned()));
    }
}

/// Returns the usual places of the folder `path`, as the stage's variables and the `RUN` itself
/// (`moves`) have moved caches there. A cache below the folder is part of it.
pub(super) fn usual(stages: &Stages, path: &str, moves: &[Move]) -> Vec<Place> {
    let path = path.trim_end_matches('/');
    let mut around = Vec::new();
    let mut parts = Vec::new();
    for (name, usual) in VARIABLES.iter().chain(MOVED) {
        for folder in values(stages, name, moves) {
            let folder = folder.trim_end_matches('/');
            if folder.is_empty() {
                continue;
            }
            if let Some(below) = below(folder, path) {
                around.push((folder.len(), format!("{usual}{below}")));
            } else if below(path, folder).is_some() {
                parts.push(Place { path: (*usual).to_owned(), is_part: true });
            }
        }
    }
    let mut places = parts;
    // Of several folders around this one, the nearest tells what it is.
    let nearest = around.iter().map(|(length, _)| *length).max();
    let around = around.into_iter().filter(|(length, _)| Some(*length) == nearest);
    places.extend(around.map(|(_, path)| Place { path, is_part: false }));
    if nearest.is_none() {
        places.push(Place { path: path.to_owned(), is_part: false });
    }
    places
}

/// Returns what a variable has here: for the calls, and for the stage.
fn values(stages: &Stages, name: &str, moves: &[Move]) -> Vec<String> {
    let moved = moves.iter().filter(|it| it.variable == name).filter_map(|it| {
        let value = stages.expand(&it.value)?;
        Some(stages.in_workdir(&value))
    });
    let of_stage = match stages.value(name) {
        Value::Known(value) => Some(value),
        Value::Unset | Value::Declared | Value::Unknown => None,
    };
    moved.chain(of_stage).collect()
}

/// Returns the rest of a path that is a folder, or below it.
fn below<'a>(folder: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(folder).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}
