//! The engine's client that a build command runs.

use std::ffi::OsString;
use std::path::PathBuf;

use super::engine::Engine;
use super::options::skip_options;
use super::wrappers::Front;
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
    /// Words to put in front of the program, such as `sudo -n`.
    pub in_front: Vec<OsString>,
    /// Whether those words change the user or the environment.
    pub behind_others: bool,
    /// Whether those words may change the folder that the program runs in.
    pub may_run_elsewhere: bool,
    /// Variables that `env NAME=VALUE` sets for the program.
    pub environment: Vec<(OsString, OsString)>,
}

impl Client {
    pub(super) fn behind(
        front: &Front,
        engine: Engine,
        program: OsString,
        globals: Vec<OsString>,
    ) -> Self {
        Client {
            engine,
            program,
            globals,
            in_front: front.kept.clone(),
            behind_others: front.behind_others,
            may_run_elsewhere: front.may_run_elsewhere,
            environment: front.environment.clone(),
        }
    }

    /// Returns the letter or name of each global option, with its value. A switch has an empty
    /// value.
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
    pub fn configuration(&self) -> Option<PathBuf> {
        let flag = self.global_flags().into_iter().rev().find(|(name, _)| name == "config");
        let folder = flag.map(|(_, folder)| PathBuf::from(folder));
        folder.or_else(|| self.variable("DOCKER_CONFIG").map(PathBuf::from)).or_else(|| {
            let home = self.variable("HOME").map(PathBuf::from);
            Some(home.or_else(|| Some(user::ourselves()?.home))?.join(".docker"))
        })
    }
}
