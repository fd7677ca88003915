//! What the calls of a stage tell about its tools: versions, and what is installed.

use std::collections::HashMap;

use super::super::shell::Call;
use super::table::TOOLS;

/// What the `RUN`s of a stage have done so far.
#[derive(Clone, Debug, Default)]
pub(in crate::lint) struct Ran {
    /// Versions of packages that are fixed in some version: `pip==25.3`, `npm@11.6.1`.
    versions: HashMap<String, Vec<u32>>,
    /// Whether npm has installed the project's dependencies.
    has_node_modules: bool,
}

impl Ran {
    /// Adds what these calls do.
    pub(in crate::lint) fn note(&mut self, calls: &[Call]) {
        for call in calls {
            self.has_node_modules |= call.program() == "npm"
                && ["ci", "i", "install"].iter().any(|word| call.has_argument(word))
                && !call.has_argument("-g")
                && !call.has_argument("--global");
            self.versions.extend(call.words.iter().skip(1).filter_map(|word| version(word)));
        }
    }

    /// Returns whether a version is visible that no longer races.
    pub(super) fn has_version(&self, package: &str, fixed: &[u32]) -> bool {
        self.versions.get(package).is_some_and(|version| version.as_slice() >= fixed)
    }

    /// Returns whether a call does not write to its tool's cache.
    pub(super) fn spares_cache(&self, call: &Call) -> bool {
        match call.program() {
            "pip" => call.has_argument("--no-cache-dir") || is_set(call, "PIP_NO_CACHE_DIR"),
            "npx" => {
                let has_any = |words: &[&str]| words.iter().any(|word| call.has_argument(word));
                let downloads = has_any(&["-y", "--yes", "-p", "--package"]);
                let package = call.words.iter().skip(1).find(|word| !word.starts_with('-'));
                // Of @scope/name, the first @ is no version.
                let has_version = package.is_some_and(|it| it.chars().skip(1).any(|c| c == '@'));
                has_any(&["--no-install", "--no"])
                    || self.has_node_modules && !downloads && !has_version
            }
            _ => false,
        }
    }
}

/// Reads a word such as `pip==25.3` if the package's version matters.
fn version(word: &str) -> Option<(String, Vec<u32>)> {
    let split = |operator: &&str| word.split_once(*operator);
    let (package, version) = ["==", ">=", "~=", "@"].iter().find_map(split)?;
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    let matters = || TOOLS.iter().filter_map(|tool| tool.until).any(|(name, _)| name == package);
    (!numbers.is_empty() && matters()).then(|| (package.to_owned(), numbers))
}

fn is_set(call: &Call, name: &str) -> bool {
    let value = call.env.iter().rev().find(|(variable, _)| variable == name);
    value.is_some_and(|(_, value)| !["", "0", "false", "no", "off"].contains(&value.as_str()))
}
