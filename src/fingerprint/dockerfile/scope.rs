//! The variables of a Dockerfile, with the values that this build gives them.
//!
//! See BuildKit's `buildMetaArgs` and `dispatchArg` (frontend/dockerfile/dockerfile2llb), and the
//! legacy builder's `BuildArgs`.

use std::collections::{BTreeMap, HashMap};

use super::build::Build;
use crate::dockerfile::{self, Dialect, Instruction, Kind, Value};
use crate::image::Platform;

/// Variables that the client may set from its own configuration.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Variables whose value depends on the builder's version.
const VARYING: [&str; 3] = ["TARGETSTAGE", "TARGETOSVERSION", "BUILDOSVERSION"];

/// The variables of a whole Dockerfile.
#[derive(Debug)]
pub(super) struct Scopes<'b> {
    build_args: &'b BTreeMap<String, String>,
    dialect: Dialect,
    escape: char,
    /// What counts in front of the first FROM, and in each FROM.
    global: HashMap<String, Value>,
    stages: Vec<Scope>,
}

/// The variables of a stage.
#[derive(Clone, Debug)]
struct Scope {
    /// The stage that this one is built from. Its variables are looked up there: with copies, a
    /// long chain of stages would need memory quadratic in its length.
    parent: Option<usize>,
    /// Whether it begins with nothing: an image may have any variable.
    is_from_scratch: bool,
    variables: HashMap<String, Variable>,
}

#[derive(Clone, Debug)]
struct Variable {
    value: Value,
    is_env: bool,
}

impl<'b> Scopes<'b> {
    pub(super) fn new(build: &'b Build<'_>, escape: char) -> Self {
        let mut scopes = Scopes {
            build_args: build.build_args,
            dialect: build.dialect,
            escape,
            global: HashMap::new(),
            stages: Vec::new(),
        };
        if build.dialect != Dialect::Legacy {
            scopes.predefine("TARGET", build.target);
            scopes.predefine("BUILD", build.native);
            let varying = VARYING.map(|name| (name.to_owned(), Value::Unknown));
            scopes.global.extend(varying);
        }
        scopes
    }

    /// Defines `TARGETPLATFORM` and the like.
    fn predefine(&mut self, prefix: &str, platform: Option<&Platform>) {
        let platform_text = platform.map(Platform::to_string);
        let values = [
            ("PLATFORM", platform_text.as_deref()),
            ("OS", platform.map(Platform::os)),
            ("ARCH", platform.map(Platform::architecture)),
            ("VARIANT", platform.map(Platform::variant)),
        ];
        for (suffix, value) in values {
            let name = format!("{prefix}{suffix}");
            let value = match (self.build_args.get(&name), value) {
                // Builders differ about who wins.
                (Some(_), _) | (None, None) => Value::Unknown,
                (None, Some(value)) => Value::Known(value.to_owned()),
            };
            self.global.insert(name, value);
        }
    }

    /// Begins a stage. `parent` is the stage that it is built from.
    pub(super) fn begin(&mut self, parent: Option<usize>, is_from_scratch: bool) {
        self.stages.push(Scope { parent, is_from_scratch, variables: HashMap::new() });
    }

    /// Applies an ARG or ENV to the stage that has begun last, or to the whole file. Returns whether
    /// the builder would accept it.
    pub(super) fn apply(&mut self, instruction: &Instruction<'_>) -> bool {
        let arguments = instruction.arguments.as_str();
        match instruction.kind {
            Kind::Arg => {
                for (name, default) in dockerfile::arg_pairs(arguments, self.escape) {
                    self.declare(name, default);
                }
                true
            }
            Kind::Env => {
                let Some(pairs) = dockerfile::env_pairs(arguments, self.escape) else {
                    return false;
                };
                // None of the values sees the others.
                let values: Vec<_> = pairs
                    .into_iter()
                    .map(|(name, value)| (self.expand(&name), known(self.expand(&value))))
                    .collect();
                for (name, value) in values {
                    match name {
                        Some(name) => self.set(name, value, true),
                        None => self.forget(),
                    }
                }
                true
            }
            _ => true,
        }
    }

    fn declare(&mut self, name: String, default: Option<String>) {
        let given = self.build_args.get(&name).cloned().map(Value::Known);
        let by_default = |default: String| known(self.expand(&default));
        let value = given.or_else(|| default.map(by_default));
        if self.stages.is_empty() {
            let is_platform = self.global.get(&name) == Some(&Value::Unknown);
            let value = if is_platform { Some(Value::Unknown) } else { value };
            self.global.extend(value.map(|value| (name, value)));
            return;
        }
        // Without a value, it keeps the one it has, for instance from the image below.
        if let Some(value) = value.or_else(|| self.global.get(&name).cloned()) {
            self.set(name, value, false);
        }
    }

    fn set(&mut self, name: String, value: Value, is_env: bool) {
        let is_env_already =
            self.lineage().find_map(|it| it.variables.get(&name)).map(|it| it.is_env);
        let is_from_scratch = self.is_from_scratch();
        // For BuildKit the last instruction counts, for the others ENV does.
        let env_wins = self.dialect != Dialect::BuildKit && !is_env;
        let value = match is_env_already {
            Some(true) if env_wins => return,
            None if env_wins && !is_from_scratch => Value::Unknown,
            _ => value,
        };
        if let Some(stage) = self.stages.last_mut() {
            stage.variables.insert(name, Variable { value, is_env });
        }
    }

    /// Forgets everything about the stage: a variable was set whose name cannot be told.
    fn forget(&mut self) {
        if let Some(stage) = self.stages.last_mut() {
            *stage = Scope { parent: None, is_from_scratch: false, variables: HashMap::new() };
        }
    }

    /// Returns the stage that has begun last, the one it is built from, and so on.
    fn lineage(&self) -> impl Iterator<Item = &Scope> {
        let parent = |stage: &&Scope| self.stages.get(stage.parent?);
        std::iter::successors(self.stages.last(), parent)
    }

    fn is_from_scratch(&self) -> bool {
        self.lineage().last().is_some_and(|stage| stage.is_from_scratch)
    }

    /// Returns what is known about a variable in the stage that has begun last.
    fn value(&self, name: &str) -> Value {
        for (above, stage) in self.lineage().enumerate() {
            let Some(variable) = stage.variables.get(name) else { continue };
            match self.dialect {
                _ if above == 0 || variable.is_env => {}
                // An ARG of the stage below.
                Dialect::BuildKit => {}
                Dialect::Legacy => continue,
                Dialect::Buildah => return Value::Unknown,
            }
            return variable.value.clone();
        }
        if self.is_from_scratch() && name != "PATH" && !is_proxy(name) {
            Value::Unset
        } else {
            Value::Unknown
        }
    }

    /// Returns the variables of a stage that begins with an image.
    pub(super) fn for_triggers(&self) -> Self {
        let stage = Scope { parent: None, is_from_scratch: false, variables: HashMap::new() };
        Scopes {
            build_args: self.build_args,
            dialect: self.dialect,
            escape: '\\',
            global: self.global.clone(),
            stages: vec![stage],
        }
    }

    /// Expands a text within the stage that has begun last, or in front of all stages. Returns
    /// `None` if only the build knows the result.
    pub(super) fn expand(&self, text: &str) -> Option<String> {
        if self.stages.is_empty() {
            return self.expand_in_from(text);
        }
        self.expand_with(text, &|name| self.value(name))
    }

    /// Expands a text of a FROM.
    pub(super) fn expand_in_from(&self, text: &str) -> Option<String> {
        self.expand_with(text, &|name| match self.global.get(name) {
            Some(value) => value.clone(),
            None if is_proxy(name) => Value::Unknown,
            None => Value::Unset,
        })
    }

    fn expand_with(&self, text: &str, value: &impl Fn(&str) -> Value) -> Option<String> {
        if self.dialect == Dialect::Buildah && !(self.escape == '\\' && is_plain(text)) {
            return None;
        }
        dockerfile::expand(text, self.escape, value)
    }
}

fn known(value: Option<String>) -> Value {
    value.map_or(Value::Unknown, Value::Known)
}

fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

/// Returns whether a text has only those forms of variables that mean the same to buildah.
fn is_plain(text: &str) -> bool {
    text.split("${").skip(1).all(|variable| {
        let rest = variable.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        ["}", ":-", ":+"].iter().any(|form| rest.starts_with(form))
    })
}
