//! Compose and bake files as `docker compose` and `docker buildx bake` themselves understand them.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

use super::client::run_within;
use crate::command::{Client, Engine};

/// Longest wait for one answer.
const WITHIN: Duration = Duration::from_secs(10);

/// Whether docker's client has compose. A client without it takes its time to say so, so it is
/// asked once and not for each file.
static KNOWS_COMPOSE: LazyLock<bool> = LazyLock::new(|| {
    let said = run_within(&docker(), &["compose", "version"], WITHIN);
    said.is_ok_and(|said| said.status == Some(0))
});

/// Returns what `docker compose` makes of a file and of those that override it, if it is installed
/// and answers in time.
pub(crate) fn compose_config<'a>(files: impl IntoIterator<Item = &'a Path>) -> Option<Value> {
    if !*KNOWS_COMPOSE {
        return None;
    }
    let mut words = vec!["compose", "--profile", "*"];
    for file in files {
        words.extend(["-f", file.to_str()?]);
    }
    words.extend(["config", "--format", "json"]);
    let said = run_within(&docker(), &words, WITHIN).ok()?;
    let config = serde_json::from_slice::<Value>(&said.stdout).ok()?;
    (said.status == Some(0) && config["services"].is_object()).then_some(config)
}

/// Whether docker's client has buildx.
static KNOWS_BUILDX: LazyLock<bool> = LazyLock::new(|| {
    let said = run_within(&docker(), &["buildx", "version"], WITHIN);
    said.is_ok_and(|said| said.status == Some(0))
});

/// Returns the plan of `docker buildx bake` for these files and targets, if buildx is installed and
/// answers in time. Without targets, it is that of the default group.
pub(crate) fn bake_plan<'a>(
    files: impl IntoIterator<Item = &'a Path>,
    targets: &[&str],
) -> Option<Value> {
    if !*KNOWS_BUILDX {
        return None;
    }
    let mut words = vec!["buildx", "bake"];
    for file in files {
        words.extend(["-f", file.to_str()?]);
    }
    words.push("--print");
    words.extend(targets);
    let said = run_within(&docker(), &words, WITHIN).ok()?;
    let plan = serde_json::from_slice::<Value>(&said.stdout).ok()?;
    (said.status == Some(0) && plan["target"].is_object()).then_some(plan)
}

fn docker() -> Client {
    Client::plain(Engine::Docker)
}
