//! The look-up of a build command's images.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};

use super::answer::{Answer, CacheMount, EngineProcess, Identity};
use super::check::Check;
use super::description::Description;
use super::engine;
use super::engine::backend::{Backend, OwnBuilder};
use super::missing::{Missing, Why};
use super::platform::Platform;
use super::present;
use super::present::meaning::Meaning;
use super::retry::insist;
use super::wanted::Wanted;
use crate::command::{Client, Command, Engine};
use crate::reference::Tag;
use crate::scope::Scope;

/// Where the images of a build command are looked up.
#[derive(Debug)]
pub struct Images {
    engine: Box<dyn Backend>,
    check: Check,
    present: Box<dyn Meaning>,
    wanted: Wanted,
    /// What the build command puts before the IDs of its cache mounts.
    cache_namespace: Option<String>,
}

/// What a look for images that were built from certain inputs found.
pub(crate) enum UpToDate<'a> {
    /// They all were, and are one image, which has this ID if it is on the engine.
    Yes { id: Option<String> },
    /// The first one that was not.
    No(Missing<'a>),
}

impl Images {
    /// Finds out where the images of `command` are looked up: on the engine that it names, or on
    /// `chosen`; or where `check` says. `program` is the file of the command's program.
    ///
    /// # Errors
    /// Docker's context does not exist, or the engine cannot ask a registry.
    pub(crate) fn of(
        command: &Command,
        program: &Path,
        chosen: Option<Engine>,
        check: Check,
    ) -> Result<Self> {
        let client = client_of(command, chosen);
        let program = (client.program == command.program()).then_some(program);
        let rules = engine::rules(client.engine);
        let wanted = Wanted::by(command, |build| (rules.default_platform)(&client, build));
        let engine = engine::open(command, client, program, &check)?;
        tracing::debug!("images are looked up on {}, {engine}", engine.client());
        let present = present::of(&check, &*engine)?;
        let cache_namespace = command.build().and_then(|build| build.cache_namespace.clone());
        Ok(Images { engine, check, present, wanted, cache_namespace })
    }

    /// Returns where an image has to be.
    pub(crate) fn check(&self) -> &Check {
        &self.check
    }

    /// Returns whether a name without a registry belongs to `localhost/`.
    pub(crate) fn are_podmans(&self) -> bool {
        self.present.uses_names_of_the_engine() && self.engine.has_podman_names()
    }

    /// Returns the process that listens on the engine's socket, if that is known.
    pub(crate) fn engine_process(&self) -> Option<EngineProcess> {
        self.engine.process()
    }

    /// Returns the first of `tags` whose image does not count as present, if any. Those of which
    /// that is certain come first.
    ///
    /// # Errors
    /// The engine gave no certain answer, even when asked again.
    pub(crate) fn first_missing<'a>(&self, tags: &'a [Tag]) -> Result<Option<Missing<'a>>> {
        let mut untold = None;
        for tag in tags {
            match self.why_missing(tag)? {
                None => {}
                Some(why @ Why::PlatformsNotShown(_)) => {
                    untold = untold.or(Some(Missing { tag, why }))
                }
                Some(why) => return Ok(Some(Missing { tag, why })),
            }
        }
        Ok(untold)
    }

    fn why_missing(&self, tag: &Tag) -> Result<Option<Why>> {
        let (engine, wanted) = (&*self.engine, &self.wanted);
        Ok(match insist(tag, || self.present.look(engine, wanted, tag))? {
            Answer::Missing => Some(Why::NoImage),
            Answer::Present(there) => self.present.shortfall(engine, wanted, tag, &there),
        })
    }

    /// Looks whether the image of each tag was built from the inputs with this fingerprint, and
    /// whether they are one image.
    ///
    /// # Errors
    /// As for [`Images::first_missing`].
    pub(crate) fn first_outdated<'a>(&self, tags: &'a [Tag], inputs: &str) -> Result<UpToDate<'a>> {
        let mut first: Option<Vec<Description>> = None;
        for tag in tags {
            let (engine, wanted) = (&*self.engine, &self.wanted);
            let Some(images) = insist(tag, || self.present.describe(engine, wanted, tag))? else {
                return Ok(UpToDate::No(Missing { tag, why: Why::NoImage }));
            };
            let outdated = images.iter().find(|image| image.inputs.as_deref() != Some(inputs));
            let there: Vec<_> = images.iter().filter_map(|it| it.platform.clone()).collect();
            let why = match outdated {
                Some(image) => Some(Why::Outdated(image.inputs.clone())),
                None => self.present.shortfall(engine, wanted, tag, &there),
            };
            if let Some(why) = why {
                return Ok(UpToDate::No(Missing { tag, why }));
            }
            if first.as_ref().is_some_and(|first| !are_same(first, &images)) {
                return Ok(UpToDate::No(Missing { tag, why: Why::Several }));
            }
            first = Some(images);
        }
        Ok(UpToDate::Yes { id: first.as_deref().and_then(id_of).map(str::to_owned) })
    }

    /// Describes an image that a Dockerfile names, as the engine has it. Returns none if the engine
    /// does not have it.
    ///
    /// # Errors
    /// The engine gave no certain answer, even when asked again.
    pub(crate) fn describe(&self, name: &str) -> Result<Option<Description>> {
        insist(&name, || self.engine.describe(name))
    }

    /// Returns the platforms that the build command names.
    pub(crate) fn platforms(&self) -> &[Platform] {
        &self.wanted.platforms
    }

    /// Returns a platform that the build command names and buildlock does not know.
    pub(crate) fn unknown_platform(&self) -> Option<&str> {
        self.wanted.unknown_platform.as_deref()
    }

    /// Returns the digest that a reference has in its registry. Returns none if there is no such
    /// image.
    ///
    /// # Errors
    /// There was no certain answer.
    pub(crate) fn digest_in_registry(&self, tag: &Tag) -> Result<Option<String>> {
        self.engine.digest_in_registry(tag).map_err(|error| anyhow!(error.why))
    }

    /// Returns the platform that the engine builds for if nothing else is said.
    ///
    /// # Errors
    /// The engine gave no certain answer, even when asked again.
    pub(crate) fn own_platform(&self) -> Result<String> {
        insist(&self.engine.client(), || self.engine.own_platform())
    }

    /// Returns whether a builder of its own builds. It takes base images from the registry, and not
    /// from the engine.
    pub(crate) fn own_builder(&self) -> OwnBuilder {
        self.engine.own_builder()
    }

    /// Returns whether the engine is podman, by whichever name it is called.
    pub(crate) fn engine_is_podman(&self) -> bool {
        self.engine.has_podman_names()
    }

    /// Returns whether images are looked up on another engine than that of `client`.
    pub(crate) fn engine_is_not_that_of(&self, client: &Client) -> bool {
        self.engine.client().engine != client.engine
    }

    /// Returns the ID of an image on the engine. With `--check registry` or a command, the image
    /// may be elsewhere.
    ///
    /// # Errors
    /// The engine gave no certain answer, even when asked again.
    pub(crate) fn identity(&self, tag: &Tag) -> Result<Identity> {
        insist(tag, || self.present.identity(&*self.engine, &self.wanted, tag))
    }

    /// Returns what distinguishes the engine, and the builder on it, from others: their build
    /// caches differ.
    ///
    /// Two names for one engine cost a build that runs alone. One name for two engines would be
    /// wrong. If the name has to hold on all hosts, a local engine is asked for its ID.
    pub(crate) fn engine(&self, scope: Scope) -> String {
        let client = self.engine.client();
        let variables = engine::rules(client.engine).endpoint_variables.iter().filter_map(|name| {
            Some(format!("{name}={}", client.variable(name)?.to_string_lossy()))
        });
        let globals = client.globals.iter().map(|it| it.to_string_lossy().into_owned());
        let namespace = self.cache_namespace.iter().cloned();
        let location = self.engine.location_key(scope);
        let named: Vec<_> = globals
            .chain(variables)
            .chain(self.engine.builder())
            .chain(namespace)
            .chain([location])
            .collect();
        format!("{client} {}", named.join("\0"))
    }

    /// Returns the engine's cache mounts, or nothing if it does not list them in time. A builder
    /// other than the engine's own keeps its caches to itself.
    pub(crate) fn cache_mounts(&self, within: Duration) -> Option<Vec<CacheMount>> {
        self.engine.cache_mounts(within)
    }

    /// Returns whether the engine has pruned its build cache since `since`, or none if it does not
    /// answer in time.
    pub(crate) fn was_cache_pruned(&self, since: SystemTime, within: Duration) -> Option<bool> {
        self.engine.was_pruned(since, within)
    }
}

fn id_of(images: &[Description]) -> Option<&str> {
    images.iter().find_map(|image| image.id.as_deref())
}

/// Returns whether two tags name the same image, or the same images for several platforms. In a
/// registry, images have no ID, and so all that is known of them is compared.
fn are_same(one: &[Description], other: &[Description]) -> bool {
    match (id_of(one), id_of(other)) {
        (None, None) => one == other,
        (one, other) => one == other,
    }
}

/// Returns the client of the engine to ask: the build command's, unless another engine is `chosen`.
fn client_of(command: &Command, chosen: Option<Engine>) -> Client {
    let named = command.client().filter(|client| chosen.is_none_or(|it| it == client.engine));
    named.cloned().unwrap_or_else(|| Client::plain(chosen.unwrap_or(Engine::Docker)))
}
