//! Docker's clients.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::debian13::{Bridge, Engine, Store};

/// A docker client, one of its builders, and the engine that it talks to.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) program: PathBuf,
    /// BuildKit, or else the legacy builder.
    pub buildkit: bool,
    /// None: the machine's own.
    pub engine: Option<&'static Engine>,
    /// Whether client and buildlock run where that engine runs, rather than on the machine.
    pub(super) is_inside: bool,
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} BUILDKIT={}", self.program.display(), self.builder())?;
        match self.engine {
            None => Ok(()),
            Some(engine) if self.is_inside => write!(f, " in Debian 13, {:?}", engine.store),
            Some(engine) => write!(f, " and Debian 13's engine, {:?}", engine.store),
        }
    }
}

impl Client {
    pub(super) fn new(program: &Path, engine: Option<&'static Engine>) -> Self {
        Client { program: program.to_owned(), buildkit: false, engine, is_inside: false }
    }

    /// Returns Debian 13's own client.
    pub(super) fn inside(engine: &'static Engine) -> Self {
        let own = Client::new(Path::new("/usr/bin/docker"), Some(engine));
        Client { is_inside: true, ..own }
    }

    /// Returns PATH with this client in front.
    pub fn search_path(&self) -> OsString {
        let outside = std::env::var_os("PATH").unwrap_or_default();
        let own = self.program.parent().unwrap().to_owned();
        std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&outside))).unwrap()
    }

    /// Returns its file, where it runs.
    pub fn file(&self) -> &Path {
        &self.program
    }

    /// Returns the value of `DOCKER_BUILDKIT` that chooses the builder.
    pub fn builder(&self) -> &'static str {
        if self.buildkit { "1" } else { "0" }
    }

    /// Runs the client for the test itself, in bounded time, for engines hang.
    pub fn docker<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Prepares the same.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after", "5", "60"]).args(self.words_in_front()).arg(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DOCKER_") {
                command.env_remove(name);
            }
        }
        command.args(args).env("DOCKER_BUILDKIT", self.builder());
        command.envs(self.engine.map(|engine| ("DOCKER_HOST", engine.endpoint())));
        command
    }

    /// Are client and engine of the same release?
    pub fn is_beside_engine(&self) -> bool {
        self.engine.is_none() || self.is_inside
    }

    /// Makes a server of this machine reachable for client and engine until the value is dropped.
    pub fn reaches(&self, address: &str) -> Option<Bridge> {
        self.engine.map(|engine| engine.reaches(address))
    }

    pub(super) fn words_in_front(&self) -> Vec<OsString> {
        let engine = self.engine.filter(|_| self.is_inside);
        engine.map(Engine::words_in_front).unwrap_or_default()
    }

    /// Runs the client, which must succeed, and returns its stdout.
    #[track_caller]
    pub fn ask<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let output = self.docker(args);
        assert!(output.status.success(), "{self:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Does an image stay when another one gets its tag? BuildKit removes it from containerd's
    /// store.
    pub fn keeps_images_that_lose_their_tag(&self) -> bool {
        !(self.buildkit && self.has_containerds_store())
    }

    /// Does a push send a single OCI image? That is what the legacy builder makes in containerd's
    /// store.
    pub fn pushes_single_oci_images(&self) -> bool {
        !self.buildkit && self.has_containerds_store()
    }

    /// Can one image be for several platforms? Only BuildKit makes it, only in containerd's store, and
    /// only for a client with buildx, as Debian 13's.
    pub fn builds_for_several_platforms(&self) -> bool {
        self.buildkit && self.is_inside && self.has_containerds_store()
    }

    /// Are images in containerd's store?
    pub fn has_containerds_store(&self) -> bool {
        self.engine.is_some_and(|engine| engine.store == Store::Containerd)
    }

    /// Returns where the engine listens, if that is a socket here.
    pub fn socket(&self) -> Option<PathBuf> {
        let endpoint = self.ask(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]);
        endpoint.strip_prefix("unix://").map(PathBuf::from)
    }
}
