//! Events in logs.

use serde_json::Value;

use super::super::Finished;

/// Returns the events in what buildlock wrote to stderr, without the build command's own lines.
pub fn events(stderr: &str) -> Vec<Value> {
    let lines = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|value| value.get("event").is_some()).collect()
}

/// Returns how many events of this name there are.
pub fn count(runs: &[Finished], event: &str) -> usize {
    runs.iter().flat_map(|run| events(&run.stderr)).filter(|e| e["event"] == event).count()
}

/// Returns what all of them wrote, for messages.
pub fn all_output(runs: &[Finished]) -> String {
    runs.iter().map(|run| format!("{run}\n")).collect()
}
