//! The words of a `--mount`, as BuildKit's `parseMount` reads them
//! (frontend/dockerfile/instructions/commands_runmount.go).

use super::mixed::Shared;
use super::stages::Stages;
use crate::{dockerfile, go_bool};

/// A `--mount`, as far as lint needs it. What stands last counts.
#[derive(Debug)]
pub(super) struct Mount {
    /// `None` if only the build knows.
    kind: Option<String>,
    pub(super) target: Target,
    /// `shared` if the mount does not say. `None` if only the build knows.
    pub(super) sharing: Option<String>,
    pub(super) says_sharing: bool,
    read_only: bool,
    id: Id,
    /// A key that BuildKit would refuse.
    pub(super) unknown_key: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Target {
    /// As the file has it.
    pub(super) shown: Option<String>,
    /// With its variables expanded. `None` if only the build knows.
    expanded: Option<String>,
    /// The same, in the working folder.
    pub(super) path: Option<String>,
}

#[derive(Debug)]
enum Id {
    /// The mount has none, so its target is the id.
    Target,
    Known(String),
    Unknown,
}

/// The other keys that BuildKit knows.
const OTHER_KEYS: [&str; 9] =
    ["from", "source", "src", "required", "size", "mode", "uid", "gid", "env"];

impl Mount {
    /// Reads `type=cache,target=/a`.
    pub(super) fn read(text: &str, stages: &Stages) -> Self {
        let mut mount = Mount {
            kind: None,
            target: Target::default(),
            sharing: Some("shared".to_owned()),
            says_sharing: false,
            read_only: false,
            id: Id::Target,
            unknown_key: None,
        };
        for field in dockerfile::fields(text) {
            let (key, value) = field.split_once('=').unwrap_or((&field, ""));
            mount.set(&key.to_lowercase(), value, stages);
        }
        mount
    }

    fn set(&mut self, key: &str, value: &str, stages: &Stages) {
        let expanded = || stages.expand(value);
        let lower_case = || expanded().map(|value| value.to_lowercase());
        match key {
            "type" => self.kind = lower_case(),
            "target" | "dst" | "destination" => {
                let expanded = expanded();
                self.target = Target {
                    shown: Some(value.to_owned()),
                    path: expanded.as_deref().map(|path| stages.in_workdir(path)),
                    expanded,
                };
            }
            "sharing" => {
                self.says_sharing = true;
                self.sharing = lower_case();
            }
            "ro" | "readonly" => self.read_only = is_true(value),
            "rw" | "readwrite" => self.read_only = !is_true(value),
            "id" => self.id = expanded().map_or(Id::Unknown, Id::Known),
            known if OTHER_KEYS.contains(&known) || known.contains('$') => {}
            _ => self.unknown_key = Some(key.to_owned()),
        }
    }

    /// Returns whether it is a cache that the `RUN` can write to.
    pub(super) fn is_writable_cache(&self) -> bool {
        self.kind.as_deref() == Some("cache") && !self.read_only
    }

    /// Returns this mount as one of several that may share a cache. `None` if it has none that it
    /// writes to, or if only the build knows which. `end` is where its flag can be extended.
    pub(super) fn shared(
        &self,
        at: usize,
        end: Option<usize>,
        is_accepted: bool,
    ) -> Option<Shared> {
        let is_locked = match self.sharing.as_deref() {
            Some("shared") => false,
            Some("locked") => true,
            _ => return None,
        };
        if !self.is_writable_cache() {
            return None;
        }
        let target = self.target.shown.clone()?;
        let id = match &self.id {
            Id::Target => cleaned(self.target.expanded.as_deref()?),
            Id::Known(id) => id.clone(),
            Id::Unknown => return None,
        };
        let fix = end.filter(|_| !self.says_sharing);
        Some(Shared { id, at, target, is_locked, fix, is_accepted })
    }
}

/// Returns a path without doubled slashes and `.`, as Go's `path.Clean` does.
fn cleaned(path: &str) -> String {
    let components: Vec<_> = path.split('/').filter(|it| !it.is_empty() && *it != ".").collect();
    let start = if path.starts_with('/') { "/" } else { "" };
    format!("{start}{}", components.join("/"))
}

/// A key without a value is true.
fn is_true(value: &str) -> bool {
    value.is_empty() || go_bool::parse(value) == Some(true)
}
