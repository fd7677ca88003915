//! Judges cache folders: which tools can share one, and which need a lock around it.
//!
//! A tool's lock protects a cache mount only if the lock's file lies *inside* the mount. Everything
//! else in a container belongs to that container alone.

mod moved;
mod pattern;
mod ran;
mod table;

pub(super) use moved::{MOVED, Move, VARIABLES, moves};
use pattern::components;
pub(super) use ran::Ran;
use table::{EMPTIES, HARMLESS, TOOLS, Tool};

use super::shell::Call;

/// What happens when two builds use the same folder at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They can break each other's files: why, as the second half of a sentence.
    Races(&'static str),
    /// The tool prevents that itself, or nothing is written there.
    Safe,
    /// The tool that writes there is not in the table.
    Unknown,
}

/// Where a mount's folder would be if nothing had moved it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: String,
    /// Whether it is only a part of the mount. Then it counts if the `RUN` starts its tool.
    pub(super) is_part: bool,
}

/// Judges a cache mount by the usual places of its folder, and by what the `RUN` starts.
pub(super) fn judge(target: &str, places: &[Place], calls: &[Call], ran: &Ran) -> Verdict {
    let mount = Mount::new(places, calls, ran);
    if removes(calls, target) || mount.is_emptied() {
        return Verdict::Races("the RUN empties it while other builds may be using it");
    }
    let direct = mount.direct_tools();
    let inner = mount.inner_tools();
    // A tool's own folder says more than a folder in it, because its lock may be there.
    let counts = |part: &&&Tool| {
        let own = direct.iter().any(|tool| tool.programs == part.programs);
        let has_lock = inner.iter().any(|tool| mount.is_safe(tool) && tool.is_around(part));
        !own && !has_lock
    };
    let mut racing =
        direct.iter().chain(inner.iter().filter(counts)).filter(|tool| !mount.is_safe(tool));
    match racing.next() {
        Some(tool) => Verdict::Races(tool.why),
        None if direct.is_empty() && inner.is_empty() => Verdict::Unknown,
        None => Verdict::Safe,
    }
}

/// Returns whether one of the calls removes a folder, all that is in it, or a folder around it.
fn removes(calls: &[Call], folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    let is_around = |word: &String| {
        let removed = word.trim_end_matches(['/', '*']);
        let rest = folder.strip_prefix(removed).filter(|_| !removed.is_empty());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    calls.iter().any(|call| call.program() == "rm" && call.words.iter().skip(1).any(is_around))
}

/// A cache mount, with what its `RUN` starts.
struct Mount<'a> {
    folders: Vec<Folder<'a>>,
    calls: &'a [Call],
    ran: &'a Ran,
}

struct Folder<'a> {
    path: Vec<&'a str>,
    is_part: bool,
}

impl Folder<'_> {
    /// Returns whether it is the tool's folder, or in it.
    fn is_of(&self, tool: &Tool) -> bool {
        tool.paths.iter().any(|pattern| pattern::matches(pattern, &self.path))
    }

    /// Returns whether the tool's folder is in it.
    fn is_above(&self, tool: &Tool) -> bool {
        tool.paths.iter().any(|pattern| pattern::is_above(pattern, &self.path))
    }
}

impl<'a> Mount<'a> {
    fn new(places: &'a [Place], calls: &'a [Call], ran: &'a Ran) -> Self {
        let folder = |it: &'a Place| Folder { path: components(&it.path), is_part: it.is_part };
        Mount { folders: places.iter().map(folder).collect(), calls, ran }
    }

    /// Returns whether the `RUN` starts the tool, and lets it write to its cache.
    fn starts(&self, tool: &Tool) -> bool {
        let mut calls = self.calls.iter().filter(|it| tool.programs.contains(&it.program()));
        calls.any(|call| !self.ran.spares_cache(call))
    }

    /// Returns the tools whose folders the mount is, or is in. Those that the `RUN` starts count for
    /// more than the others.
    fn direct_tools(&self) -> Vec<&'static Tool> {
        let tool_of = |folder: &Folder<'_>| {
            TOOLS.iter().find(|tool| {
                folder.is_of(tool) && (!(tool.must_start || folder.is_part) || self.starts(tool))
            })
        };
        let mut tools: Vec<_> = self.folders.iter().filter_map(tool_of).collect();
        if tools.iter().any(|tool| self.starts(tool)) {
            tools.retain(|tool| self.starts(tool));
        }
        tools
    }

    /// Returns the tools that the `RUN` starts and whose folders are in the mount.
    fn inner_tools(&self) -> Vec<&'static Tool> {
        let is_above = |tool: &Tool| self.folders.iter().any(|folder| folder.is_above(tool));
        TOOLS.iter().filter(|tool| is_above(tool) && self.starts(tool)).collect()
    }

    fn is_safe(&self, tool: &Tool) -> bool {
        let is_fixed = |(package, version)| self.ran.has_version(package, version);
        !tool.races
            || tool.until.is_some_and(is_fixed)
            || !self.starts(tool) && self.leaves_alone(tool)
    }

    /// Returns whether the `RUN` names the tool, but starts nothing that would use its cache: the
    /// tool is told not to, or uv does its work.
    fn leaves_alone(&self, tool: &Tool) -> bool {
        let spares =
            |call: &Call| tool.programs.contains(&call.program()) && self.ran.spares_cache(call);
        let replaces = |call: &Call| {
            call.program() == "uv" && tool.programs.iter().any(|it| call.has_argument(it))
        };
        self.calls.iter().any(|call| spares(call) || replaces(call))
            && self.calls.iter().all(|call| HARMLESS.contains(&call.program()) || spares(call))
    }

    /// Returns whether the `RUN` calls a tool to empty its cache in this mount.
    fn is_emptied(&self) -> bool {
        EMPTIES.iter().any(|(program, words, usual)| {
            let empties = |call: &Call| {
                call.program() == *program && words.iter().all(|word| call.has_argument(word))
            };
            let usual = Folder { path: components(usual), is_part: false };
            let has = |tool: &Tool| {
                let mut folders = self.folders.iter();
                folders.any(|it| it.is_of(tool) || it.is_above(tool) && self.starts(tool))
            };
            self.calls.iter().any(empties)
                && TOOLS.iter().any(|tool| usual.is_of(tool) && has(tool))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::shell::calls;
    use super::*;

    fn races(target: &str, command: &str) -> Option<bool> {
        let place = Place { path: target.to_owned(), is_part: false };
        let calls = calls(command);
        let mut ran = Ran::default();
        ran.note(&calls);
        match judge(target, &[place], &calls, &ran) {
            Verdict::Races(_) => Some(true),
            Verdict::Safe => Some(false),
            Verdict::Unknown => None,
        }
    }

    #[test]
    fn a_lock_protects_only_the_mount_that_it_lies_in() {
        assert_eq!(races("/usr/local/cargo/registry", ""), Some(true));
        assert_eq!(races("/usr/local/cargo/registry/cache/", ""), Some(true));
        assert_eq!(races("/usr/local/cargo", ""), Some(false));
        assert_eq!(races("/home/me/.cargo//./git/db", ""), Some(true));
        assert_eq!(races("/opt/home/registry", "cargo fetch"), Some(true));
        assert_eq!(races("/opt/home/registry", "cargofetch"), None);
        assert_eq!(races("/src/target", "cargo build"), Some(false));
        assert_eq!(races("/src/target", "mvn package"), None);
        assert_eq!(races("target/release", "cd a&&cargo build"), Some(false));
        assert_eq!(races("/src/target/release/deps", "cargo build"), Some(true));
    }

    #[test]
    fn a_pattern_is_the_end_of_a_path_by_component() {
        assert_eq!(races("/srv/var/cache/apt", ""), None);
        assert_eq!(races("/var/cache/aptitude", ""), None);
        assert_eq!(races("/var/cache/apt/archives", ""), Some(true));
        assert_eq!(races("/go", ""), Some(false));
        assert_eq!(races("/src/go", ""), None);
        assert_eq!(races("/", ""), None);
        assert_eq!(races("", ""), None);
    }

    #[test]
    fn variables_that_move_a_cache_lead_to_one_that_is_known() {
        for (name, path) in VARIABLES {
            if !["HOME", "XDG_CACHE_HOME"].contains(name) {
                assert_ne!(races(path, ""), None, "{name}");
            }
        }
    }
}
