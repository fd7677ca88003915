//! The engine's client that a build command runs.

use std::ffi::OsString;
use std::path::PathBuf;

use super::engine::Engine;
use super::options::skip_options;
use super::wrappers::Wrappers;
use crate::user;

/// An engine's client, and how to call it so that it asks the engine that the build command will
/// build on.
#[derive(Clone, Debug)]
pub struct Client {
    /// The engine that it belongs to.
    pub engine: Engine,
    /// The program, as the build command names it.
    pub program: OsString,
    /// Its global options, as the build command gives them.
    pub globals: Vec<OsString>,
    /// The words of wrappers to put before the program, such as `sudo -n`.
    pub wrapper_words: Vec<OsString>,
    /// Whether these wrappers change the user or the environment.
    pub wrapper_changes_user_or_env: bool,
    /// Whether the program may run in another folder.
    pub may_run_elsewhere: bool,
    /// Variables that `env NAME=VALUE` sets for the program.
    pub environment: Vec<(OsString, OsString)>,
}

impl Client {
    pub(super) fn with_wrappers(
        wrappers: &Wrappers,
        engine: Engine,
        program: OsString,
        globals: Vec<OsString>,
    ) -> Self {
        Client {
            engine,
            program,
            globals,
            wrapper_words: wrappers.kept.clone(),
            wrapper_changes_user_or_env: wrappers.change_user_or_env,
            may_run_elsewhere: wrappers.may_run_elsewhere,
            environment: wrappers.environment.clone(),
        }
    }

    /// Returns each global option, by letter or name, with its value. A switch has an empty value.
    pub fn global_flags(&self) -> Vec<(String, String)> {
        let lossy: Vec<_> = self.globals.iter().map(|word| word.to_string_lossy()).collect();
        let words: Vec<&str> = lossy.iter().map(AsRef::as_ref).collect();
        let mut flags = Vec::new();
        skip_options(&words, self.engine.global_options(), |opt| {
            flags.push((opt.name.to_owned(), opt.value.unwrap_or_default().to_owned()));
        });
        flags
    }

    /// Returns an environment variable as the client will see it. An empty one counts as unset.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        self.variable_as_set(name).filter(|value| !value.is_empty())
    }

    /// Returns an environment variable as the client will see it, even if it is empty.
    pub(crate) fn variable_as_set(&self, name: &str) -> Option<OsString> {
        let given = self.environment.iter().rev().find(|(given, _)| given == name);
        given.map(|(_, value)| value.clone()).or_else(|| std::env::var_os(name))
    }

    /// Returns the folder in which the client looks for docker's configuration.
    pub fn config_folder(&self) -> Option<PathBuf> {
        let flag = self.global_flags().into_iter().rev().find(|(name, _)| name == "config");
        if let Some((_, folder)) = flag {
            return Some(folder.into());
        }
        if let Some(folder) = self.variable("DOCKER_CONFIG") {
            return Some(folder.into());
        }
        let home = match self.variable("HOME") {
            Some(home) => home.into(),
            None => user::ourselves()?.home,
        };
        Some(home.join(".docker"))
    }
}
