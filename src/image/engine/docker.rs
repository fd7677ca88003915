//! Docker, asked over its API where it listens on a local socket, otherwise through its client.

pub(crate) mod api;
pub(crate) mod builders;
pub(crate) mod buildx;
pub(crate) mod context;
mod credentials;
pub(crate) mod distribution;
pub(crate) mod endpoint;
mod error;
pub(crate) mod http;
pub(crate) mod imagetools;
pub(crate) mod program;
mod usage;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use self::builders::Builders;
use super::backend::{Backend, ClientRules, OwnBuilder};
use super::inspect;
use crate::command::Client;
use crate::image::answer::{Answer, CacheMount, EngineProcess, Identity, Unanswered};
use crate::image::description::Description;
use crate::image::wanted::Wanted;
use crate::reference::Tag;
use crate::scope::Scope;

pub(crate) const RULES: ClientRules = ClientRules {
    endpoint_variables: &["DOCKER_HOST", "DOCKER_CONTEXT"],
    default_platform: |client, _| client.variable("DOCKER_DEFAULT_PLATFORM")?.into_string().ok(),
};

/// Docker over its API.
#[derive(Debug)]
pub(crate) struct DockerSocket {
    client: Client,
    builders: Builders,
    socket: PathBuf,
}

impl DockerSocket {
    pub(crate) fn new(builders: Builders, client: Client, socket: PathBuf) -> Self {
        DockerSocket { client, builders, socket }
    }

    /// Returns whether a builder of buildx pushes, and not this engine. A builder has mirrors and
    /// certificates of its own, and may not need an engine at all.
    fn is_bypassed_by_pushes(&self) -> bool {
        self.builders.bypass_the_engine(&self.client)
            || self.builders.pushes && !self.socket.exists()
    }
}

impl Backend for DockerSocket {
    fn client(&self) -> &Client {
        &self.client
    }

    fn look(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered> {
        if wanted.platforms.is_empty() {
            api::look(&self.socket, tag.as_str())
        } else {
            api::look_for_platforms(&self.socket, tag.as_str(), wanted.is_for_several_platforms())
        }
    }

    fn identity(&self, tag: &Tag, _: &Wanted) -> Result<Identity, Unanswered> {
        api::identity(&self.socket, tag.as_str())
    }

    fn look_in_registry(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered> {
        let with_platform = !wanted.platforms.is_empty();
        let ask_buildx = || imagetools::look(&self.client, &self.builders, tag, with_platform);
        if self.is_bypassed_by_pushes() {
            return ask_buildx();
        }
        let answer = distribution::look(&self.client, &self.socket, tag)?;
        // The engine does not know the platform of a single image in OCI's format. buildx does, if
        // it is installed.
        if with_platform
            && answer.names_no_platform()
            && let Ok(answer @ Answer::Present(_)) = ask_buildx()
        {
            return Ok(answer);
        }
        Ok(answer)
    }

    fn describe(&self, name: &str) -> Result<Option<Description>, Unanswered> {
        api::describe(&self.socket, name)
    }

    fn describe_in_registry(&self, tag: &Tag) -> Result<Option<Vec<Description>>, Unanswered> {
        imagetools::describe(&self.client, &self.builders, tag)
    }

    fn digest_in_registry(&self, tag: &Tag) -> Result<Option<String>, Unanswered> {
        if self.own_builder() != OwnBuilder::None {
            return imagetools::digest(&self.client, &self.builders, tag);
        }
        distribution::digest(&self.client, &self.socket, tag)
    }

    fn own_platform(&self) -> Result<String, Unanswered> {
        api::platform(&self.socket)
    }

    fn location_key(&self, scope: Scope) -> String {
        match scope {
            Scope::ThisHost => self.socket.display().to_string(),
            Scope::AllHosts => api::id(&self.socket).unwrap_or_else(|| scope.host()),
        }
    }

    fn builder(&self) -> Option<String> {
        self.builders.in_use(&self.client)
    }

    fn own_builder(&self) -> OwnBuilder {
        self.builders.own(&self.client)
    }

    fn cache_mounts(&self, within: Duration) -> Option<Vec<CacheMount>> {
        match self.builder() {
            None => usage::cache_mounts(&self.socket, within),
            Some(_) => None,
        }
    }

    fn was_pruned(&self, since: SystemTime, within: Duration) -> Option<bool> {
        match self.builder() {
            None => usage::was_pruned(&self.socket, since, within),
            Some(_) => None,
        }
    }

    fn process(&self) -> Option<EngineProcess> {
        http::listener(&self.socket)
    }
}

impl fmt::Display for DockerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "over its API at {}", self.socket.display())
    }
}

/// Docker through its client: on another host, behind sudo, or a script of that name.
#[derive(Debug)]
pub(crate) struct DockerClient {
    client: Client,
    builders: Builders,
}

impl DockerClient {
    pub(crate) fn new(builders: Builders, client: Client) -> Self {
        DockerClient { client, builders }
    }
}

impl Backend for DockerClient {
    fn client(&self) -> &Client {
        &self.client
    }

    fn look(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered> {
        inspect::look(&self.client, tag, wanted)
    }

    fn identity(&self, tag: &Tag, _: &Wanted) -> Result<Identity, Unanswered> {
        inspect::identity(&self.client, tag.as_str())
    }

    fn look_in_registry(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered> {
        imagetools::look(&self.client, &self.builders, tag, !wanted.platforms.is_empty())
    }

    fn describe(&self, name: &str) -> Result<Option<Description>, Unanswered> {
        inspect::describe(&self.client, name, Description::of_engine)
    }

    fn describe_in_registry(&self, tag: &Tag) -> Result<Option<Vec<Description>>, Unanswered> {
        imagetools::describe(&self.client, &self.builders, tag)
    }

    fn digest_in_registry(&self, tag: &Tag) -> Result<Option<String>, Unanswered> {
        imagetools::digest(&self.client, &self.builders, tag)
    }

    fn own_platform(&self) -> Result<String, Unanswered> {
        inspect::line(&self.client, &["version", "--format", "{{.Server.Os}}/{{.Server.Arch}}"])
    }

    fn location_key(&self, scope: Scope) -> String {
        match endpoint::endpoint(&self.client).unwrap_or_default() {
            local if local.is_empty() || local.starts_with("unix:") => local + &scope.host(),
            remote => remote,
        }
    }

    fn builder(&self) -> Option<String> {
        self.builders.in_use(&self.client)
    }

    fn own_builder(&self) -> OwnBuilder {
        self.builders.own(&self.client)
    }
}

impl fmt::Display for DockerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("through its client")
    }
}
