//! containerd, asked through nerdctl.

use std::fmt;

use anyhow::{Result, bail};

use super::backend::{Backend, ClientRules, OwnBuilder};
use super::inspect;
use crate::command::Client;
use crate::image::answer::{Answer, Identity, Unanswered};
use crate::image::description::Description;
use crate::image::wanted::Wanted;
use crate::reference::Tag;
use crate::scope::Scope;

pub(crate) const RULES: ClientRules = ClientRules {
    endpoint_variables: &["CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "BUILDKIT_HOST"],
    default_platform: |_, _| None,
};

const CANNOT_ASK_A_REGISTRY: &str =
    "nerdctl cannot ask a registry reliably; give --check a command that can";

/// nerdctl.
#[derive(Debug)]
pub(crate) struct Nerdctl {
    client: Client,
}

impl Nerdctl {
    pub(crate) fn new(client: Client) -> Self {
        Nerdctl { client }
    }
}

impl Backend for Nerdctl {
    fn client(&self) -> &Client {
        &self.client
    }

    fn look(&self, tag: &Tag, wanted: &Wanted) -> Result<Answer, Unanswered> {
        inspect::look(&self.client, tag, wanted)
    }

    fn identity(&self, tag: &Tag, _: &Wanted) -> Result<Identity, Unanswered> {
        inspect::identity(&self.client, tag.as_str())
    }

    fn describe(&self, name: &str) -> Result<Option<Description>, Unanswered> {
        inspect::describe(&self.client, name, Description::of_engine)
    }

    fn describe_in_registry(&self, _: &Tag) -> Result<Option<Vec<Description>>, Unanswered> {
        Err(Unanswered::permanent(CANNOT_ASK_A_REGISTRY))
    }

    fn digest_in_registry(&self, _: &Tag) -> Result<Option<String>, Unanswered> {
        Err(Unanswered::permanent(CANNOT_ASK_A_REGISTRY))
    }

    fn own_platform(&self) -> Result<String, Unanswered> {
        Ok(format!("linux/{}", std::env::consts::ARCH))
    }

    fn check_registry_access(&self) -> Result<()> {
        bail!(CANNOT_ASK_A_REGISTRY)
    }

    fn look_in_registry(&self, _: &Tag, _: &Wanted) -> Result<Answer, Unanswered> {
        Err(Unanswered::permanent(CANNOT_ASK_A_REGISTRY))
    }

    /// Its BuildKit asks the registry.
    fn own_builder(&self) -> OwnBuilder {
        OwnBuilder::Certain("buildkitd".to_owned())
    }

    /// Without root, each user has an engine of their own.
    fn location_key(&self, scope: Scope) -> String {
        scope.user_and_host()
    }
}

impl fmt::Display for Nerdctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("through its client")
    }
}
