//! The tags to build: those given with `-t`, those that the words of the build command name, and
//! those that compose or bake say.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};

use crate::command::{BuildOptions, Command, ComposeOrBake, Engine, Tool};
use crate::reference::Tag;
use crate::targets::{self, Target};

/// What a build command builds.
#[derive(Debug)]
pub(crate) struct Builds {
    pub(crate) tags: Vec<Tag>,
    /// Images that are built as well, because the build reads them. They are locked, and not looked
    /// for.
    pub(crate) others: Vec<Tag>,
    /// The one service or target, with `--if-changed`.
    pub(crate) target: Option<Target>,
}

impl Builds {
    /// Returns a build of these images alone.
    pub(crate) fn of(tags: Vec<Tag>) -> Self {
        Builds { tags, others: Vec::new(), target: None }
    }

    /// Returns the command whose words say what is read: of compose and bake, that is in a file.
    ///
    /// # Errors
    /// There is no such command.
    pub(crate) fn reads(&self, command: &Arc<Command>) -> Result<Arc<Command>> {
        match &self.target {
            Some(target) => Ok(Arc::new(target.equivalent(command)?)),
            None => Ok(Arc::clone(command)),
        }
    }
}

/// Finds the tags to build: those given with `-t`, or else those that the build command names.
/// `needs_inputs` says that it has to be known what the build reads.
///
/// # Errors
/// Fails if there are none, or if the build command's tags are not valid.
pub(crate) fn builds(given: Vec<Tag>, command: &Command, needs_inputs: bool) -> Result<Builds> {
    if let Some(several) = command.compose_or_bake().filter(|several| several.only_builds()) {
        return builds_of_several(given, command, several, needs_inputs);
    }
    let tags = if given.is_empty() { named_tags(command)? } else { given };
    if let Some(build) = command.build() {
        warn_of_other_tags(&tags, command, build);
    }
    Ok(Builds::of(tags))
}

/// Returns the tags of a call of compose or bake. Where one service is named, a given tag is taken
/// for its image. Otherwise the given tags may be a part of what is built, and a look at them would
/// say nothing of the rest.
fn builds_of_several(
    given: Vec<Tag>,
    command: &Command,
    several: &ComposeOrBake,
    needs_inputs: bool,
) -> Result<Builds> {
    if !given.is_empty() && !several.may_build_several() && !needs_inputs {
        return Ok(Builds::of(given));
    }
    let mut found = match targets::find(command, several) {
        Ok(Some(found)) => found,
        Ok(None) if given.is_empty() => bail!(no_tag_of_several(several)),
        Ok(None) => return Ok(Builds::of(given)),
        Err(error) if needs_inputs => return Err(error),
        Err(error) if given.is_empty() => bail!(
            "{error:#}; if nothing is wrong with that, name the images: buildlock -t TAG -- …"
        ),
        Err(error) => {
            tracing::warn!("{error:#}; only the tags given with -t are locked and looked up");
            return Ok(Builds::of(given));
        }
    };
    if let Some((one, other, tag)) = targets::pairs_of_one_image(&found).next() {
        tracing::warn!(
            "{tag}: {} and {} both build it, at the same time; --each builds each image once",
            one.name,
            other.name
        );
    }
    let mut tags = given;
    for tag in found.iter().flat_map(|target| &target.tags) {
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    let others = found.iter().flat_map(|target| &target.others);
    let others = others.filter(|tag| !tags.contains(tag)).cloned().collect();
    let target = found.pop().filter(|_| needs_inputs && found.is_empty());
    if needs_inputs && target.is_none() {
        bail!(
            "'{} {}' builds several images, each from inputs of its own; build with --each, or name a \
             single service or target",
            several.called,
            several.subcommand
        );
    }
    Ok(Builds { tags, others, target })
}

/// Returns whether buildlock knows that the command builds images. Such a command needs a tag, even
/// under a named lock.
pub(crate) fn builds_images(command: &Command) -> bool {
    command.build().is_some() || command.compose_or_bake().is_some_and(ComposeOrBake::only_builds)
}

/// Warns if the command of a call without an image is a script that seems to build one.
pub(crate) fn warn_if_a_script_builds(command: &Command) {
    let tags = command.tags_in_script();
    if !tags.is_empty() {
        tracing::warn!(
            "this call has no tag, so it only runs its command under the lock; to have {} built \
             once and verified, say: buildlock {} -- …",
            tags.join(" and "),
            options(&tags)
        );
    }
}

fn options(tags: &[String]) -> String {
    tags.iter().map(|tag| format!("-t {tag}")).collect::<Vec<_>>().join(" ")
}

fn named_tags(command: &Command) -> Result<Vec<Tag>> {
    let named = command.build().map_or(&[][..], |build| &build.tags);
    if named.is_empty() {
        bail!(no_tag(command));
    }
    let parse = |text: &String| {
        text.parse().map_err(|error| anyhow!("the build command's tag '{text}': {error}"))
    };
    named.iter().map(parse).collect()
}

fn warn_of_other_tags(given: &[Tag], command: &Command, build: &BuildOptions) {
    let named: Vec<Tag> = build.tags.iter().filter_map(|text| text.parse().ok()).collect();
    // To podman, x is localhost/x.
    let is_podman = command.client().is_some_and(|client| client.engine == Engine::Podman);
    for tag in given {
        let is_it = |other: &Tag| other == tag || is_podman && other.is_same_name(tag);
        if !named.iter().any(is_it) {
            tracing::warn!(
                "{tag}: the build command does not give its image this tag; it says {}",
                build.tag_options()
            );
        }
    }
}

/// Says what to do if nothing tells which image is built.
fn no_tag(command: &Command) -> String {
    if command.build().is_some() {
        return "no tag: the build command has no -t TAG, so say which image it builds: \
                buildlock -t TAG -- …"
            .to_owned();
    }
    match command.tags_in_script().as_slice() {
        [] => "no tag: this is not a build command that buildlock knows, so say which image it \
               builds: buildlock -t TAG -- …; a command that builds none can run under a lock: \
               buildlock --lock NAME -- …"
            .to_owned(),
        tags => format!(
            "no tag: buildlock does not take tags from a script; this one seems to build {}, so \
             say: buildlock {} -- …",
            tags.join(" and "),
            options(tags)
        ),
    }
}

fn no_tag_of_several(several: &ComposeOrBake) -> String {
    let (called, verb) = (&several.called, &several.subcommand);
    let what = match several.tool {
        Tool::Bake => "TARGET",
        Tool::Compose => "SERVICE",
    };
    match several.named.as_slice() {
        [one] => format!(
            "no tag: '{called} {verb}' takes the image's name from its file; say which image {one} \
             is: buildlock -t TAG -- {called} {verb} {one}"
        ),
        _ => format!(
            "no tag: '{called} {verb}' may build several images; call buildlock once for each of \
             them: buildlock -t TAG -- {called} {verb} {what}"
        ),
    }
}
