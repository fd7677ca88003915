//! The stages of a Dockerfile: their variables, working folders, and what their `RUN`s have done.

use std::collections::HashMap;

use super::super::shell::Call;
use super::super::tools::{Ran, VARIABLES};
use crate::dockerfile::{self, Instruction, Kind, Unreadable, Value};

/// What the instructions so far have set.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// The escape character of the Dockerfile.
    escape: char,
    /// ARG in front of the first FROM. `None` without a default.
    global: HashMap<String, Option<String>>,
    /// The stages that have ended and have a name.
    ended: Vec<Stage>,
    by_name: HashMap<String, usize>,
    name: Option<String>,
    current: Stage,
    in_stage: bool,
}

#[derive(Debug, Default)]
struct Stage {
    /// The stage that this one is built from. Its variables are looked up there: with copies, a long
    /// chain of stages would need memory quadratic in its length.
    parent: Option<usize>,
    /// `None` if only the build knows.
    env: HashMap<String, Option<String>>,
    arg: HashMap<String, Option<String>>,
    workdir: Option<String>,
    ran: Ran,
}

impl Stages {
    pub(super) fn new(escape: char) -> Self {
        Stages { escape, ..Stages::default() }
    }

    /// Applies an instruction.
    ///
    /// # Errors
    /// BuildKit would refuse its arguments.
    pub(super) fn apply(&mut self, instruction: &Instruction<'_>) -> Result<(), Unreadable> {
        let arguments = instruction.arguments.as_str();
        let refused = |why: &str| Unreadable::new(instruction.at, why);
        match instruction.kind {
            _ if instruction.on_build => {}
            Kind::From => {
                let (base, name) = dockerfile::from_words(arguments)
                    .ok_or_else(|| refused("FROM takes IMAGE or IMAGE AS NAME"))?;
                self.begin(&base.to_lowercase(), name.map(str::to_lowercase));
            }
            Kind::Arg => {
                for (name, value) in dockerfile::arg_pairs(arguments, self.escape) {
                    let value = value.map(|value| self.expand(&value));
                    self.declare(name, value);
                }
            }
            Kind::Env => {
                let pairs = dockerfile::env_pairs(arguments, self.escape)
                    .ok_or_else(|| refused("ENV needs a name and a value"))?;
                // None of the values sees the others.
                let expand = |(name, value): (String, String)| {
                    (self.expand(&name).unwrap_or(name), self.expand(&value))
                };
                let values: Vec<_> = pairs.into_iter().map(expand).collect();
                self.current.env.extend(values);
            }
            Kind::Workdir => {
                let path = self.expand(arguments);
                let path = path.map(|path| self.in_workdir(&path));
                self.current.workdir = path;
            }
            Kind::Add | Kind::Copy | Kind::Run | Kind::Other => {}
        }
        Ok(())
    }

    fn begin(&mut self, base: &str, name: Option<String>) {
        let ended = std::mem::take(&mut self.current);
        if let Some(name) = self.name.take() {
            self.by_name.insert(name, self.ended.len());
            self.ended.push(ended);
        }
        let parent = self.by_name.get(base).copied();
        let (workdir, ran) = match parent.and_then(|parent| self.ended.get(parent)) {
            Some(parent) => (parent.workdir.clone(), parent.ran.clone()),
            None => Default::default(),
        };
        self.current = Stage { parent, workdir, ran, ..Stage::default() };
        self.name = name;
        self.in_stage = true;
    }

    /// Records the calls of a `RUN`.
    pub(super) fn note(&mut self, calls: &[Call]) {
        self.current.ran.note(calls);
    }

    /// Returns what the `RUN`s of this stage and of those below it have done.
    pub(super) fn ran(&self) -> &Ran {
        &self.current.ran
    }

    /// Declares an ARG. `value` is `None` without a default.
    fn declare(&mut self, name: String, value: Option<Option<String>>) {
        if !self.in_stage {
            self.global.insert(name, value.unwrap_or_default());
            return;
        }
        match value.or_else(|| self.global.get(&name).cloned().filter(Option::is_some)) {
            Some(value) => _ = self.current.arg.insert(name, value),
            // It keeps the value it has, for instance from the stage below.
            None if self.arg(&name).is_some() => {}
            None => _ = self.current.arg.insert(name, None),
        }
    }

    /// Returns the current stage, the one it is built from, and so on.
    fn lineage(&self) -> impl Iterator<Item = &Stage> {
        let parent = |stage: &&Stage| stage.parent.and_then(|parent| self.ended.get(parent));
        std::iter::successors(Some(&self.current), parent)
    }

    fn env(&self, name: &str) -> Option<&Option<String>> {
        self.lineage().find_map(|stage| stage.env.get(name))
    }

    fn arg(&self, name: &str) -> Option<&Option<String>> {
        self.lineage().find_map(|stage| stage.arg.get(name))
    }

    /// Returns a variable that the Dockerfile sets.
    pub(super) fn set_value(&self, name: &str) -> Option<&str> {
        self.env(name).or_else(|| self.arg(name))?.as_deref()
    }

    /// Returns a variable: as the Dockerfile sets it, or as official images set it.
    pub(super) fn value(&self, name: &str) -> Value {
        let or = |value: &Option<String>, otherwise| value.clone().map_or(otherwise, Value::Known);
        if let Some(value) = self.env(name) {
            return or(value, Value::Unknown);
        }
        if let Some(value) = self.arg(name) {
            return or(value, Value::Declared);
        }
        if !self.in_stage {
            return self
                .global
                .get(name)
                .map_or(Value::Unknown, |value| or(value, Value::Declared));
        }
        let usual = VARIABLES.iter().find(|(variable, _)| *variable == name);
        usual.map_or(Value::Unknown, |(_, path)| Value::Known((*path).to_owned()))
    }

    /// Expands the variables in a text. Returns `None` if only the build knows the result.
    pub(super) fn expand(&self, text: &str) -> Option<String> {
        dockerfile::expand(text, self.escape, &|name| self.value(name))
    }

    /// Returns a path as seen from the working folder.
    pub(super) fn in_workdir(&self, path: &str) -> String {
        match &self.current.workdir {
            Some(workdir) if !path.starts_with('/') => format!("{workdir}/{path}"),
            _ => path.to_owned(),
        }
    }
}
