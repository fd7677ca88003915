//! Likely causes of what went wrong.

use std::io::ErrorKind;

use super::builder::chosen_builder;
use super::preflight::{does_not_run, how_to_push, program};
use crate::child::NotRun;
use crate::command::{BuildOptions, Client, Command, Engine, goes_elsewhere};
use crate::exit;
use crate::image::{Check, Instead, LABEL, Missing, Why};
use crate::interpreter;
use crate::reference::Tag;

/// Says why an image that may be present is built all the same.
pub(super) fn why_built_again(missing: &Missing<'_>) {
    let tag = missing.tag;
    match &missing.why {
        Why::PlatformsNotShown(wanted) => tracing::warn!(
            "{tag}: there is an image, but the engine does not say whether it is for all of \
             {wanted}, so it is built again each time; Docker 28 says so where it has the containerd \
             image store, and --check registry looks in the registry"
        ),
        Why::NeverSkipped(reason) => tracing::info!("{tag}: {reason}, so it is always built"),
        Why::Outdated(_) | Why::Unverified | Why::Inherited | Why::Unproved | Why::Several => {
            tracing::info!("{tag}: {}", why_outdated(&missing.why));
        }
        Why::NoImage | Why::Other(_) => {}
    }
}

/// Returns why a present image does not count with `--if-changed`.
fn why_outdated(why: &Why) -> String {
    match why {
        Why::Outdated(Some(difference)) => format!("not up to date: {difference}"),
        Why::Unverified => "not up to date: the build that made it was interrupted".to_owned(),
        Why::Inherited => {
            "not up to date: its label is that of another image, from which it was made".to_owned()
        }
        Why::Unproved => {
            "its label says that it is up to date, but neither you nor root has verified this image \
             here, so its label may be inherited"
                .to_owned()
        }
        Why::Several => "not up to date: its tags are several images".to_owned(),
        Why::Outdated(None)
        | Why::NoImage
        | Why::Other(_)
        | Why::PlatformsNotShown(_)
        | Why::NeverSkipped(_) => "not up to date".to_owned(),
    }
}

/// Returns why the build command did not start.
pub(super) fn cannot_run(command: &Command, why: NotRun) -> anyhow::Error {
    let (status, error) = match why {
        NotRun::Prepare(error) => (exit::FAILURE, error),
        NotRun::Execute(error) if error.kind() == ErrorKind::NotFound => (exit::NOT_FOUND, error),
        NotRun::Execute(error) => (exit::CANNOT_EXECUTE, error),
    };
    let broken = program(command).ok().and_then(|program| interpreter::broken(&program));
    let why = broken.map_or_else(|| error.to_string(), |broken| broken.to_string());
    does_not_run(command, status, &why)
}

/// Returns why the image may be missing where `check` looks for it, although the build command
/// exited with 0.
pub(super) fn why_missing(command: &Command, missing: &Missing<'_>, check: &Check) -> String {
    let tag = missing.tag;
    if let Check::Command(_) = check {
        return format!("there is no image {tag}, says the command of --check");
    }
    if missing.why == Why::Several {
        return format!(
            "the tags are several images, among them {tag}; did another build take one of the names?"
        );
    }
    if let Why::Outdated(_) = &missing.why {
        return format!(
            "{tag} does not have the label {LABEL} of this build; did another build take the name, \
             or does the build command not use $BUILDLOCK_LABEL?"
        );
    }
    if let Why::Other(Instead { there, wanted }) = &missing.why {
        return format!(
            "{tag} is an image for {there}, not for {wanted}, which the build command is for"
        );
    }
    match check {
        Check::Registry => format!(
            "there is no image {tag} in the registry {}; {}",
            tag.in_registry().0,
            why_not_in_the_registry(command, tag)
        ),
        _ => format!("there is no image {tag}; {}", why_not_on_the_engine(command, tag)),
    }
}

fn why_not_in_the_registry(command: &Command, tag: &Tag) -> String {
    let Some(build) = command.build() else { return "was it pushed?".to_owned() };
    if as_typed(build, tag).is_none() {
        return names_other_tags(build);
    }
    match command.client() {
        Some(client) if !command.pushes() => {
            format!("the build command does not push; {}", how_to_push(client))
        }
        _ => "was it removed meanwhile, or does a mirror answer for it?".to_owned(),
    }
}

fn why_not_on_the_engine(command: &Command, tag: &Tag) -> String {
    let (Some(build), Some(client)) = (command.build(), command.client()) else {
        return "does it build another tag, or on another engine (see --engine)?".to_owned();
    };
    let Some(typed) = as_typed(build, tag) else { return names_other_tags(build) };
    let elsewhere = build.outputs.iter().find(|output| goes_elsewhere(output));
    if let (Some(output), false) = (elsewhere, build.load || client.engine == Engine::Podman) {
        return format!("the build command writes what it builds elsewhere: -o {output}");
    }
    let builder = match client.engine {
        Engine::Docker => chosen_builder(command, client).filter(|name| name != "default"),
        Engine::Podman | Engine::Nerdctl => None,
    };
    if let (Some(builder), false) = (builder, build.load) {
        return format!(
            "its builder '{builder}' may keep what it builds to itself (then add --load), or the \
             image was removed as soon as it was built"
        );
    }
    let is_kept = client.engine == Engine::Docker && command.is_buildx() && !build.load;
    was_removed(client, typed, is_kept)
}

/// Returns the tag as the build command names it, if it does.
fn as_typed<'b>(build: &'b BuildOptions, tag: &Tag) -> Option<&'b str> {
    let is_this = |text: &&String| {
        text.parse::<Tag>().is_ok_and(|named| named == *tag || named.is_same_name(tag))
    };
    build.tags.iter().find(is_this).map(String::as_str)
}

fn names_other_tags(build: &BuildOptions) -> String {
    format!("the build command says {}", build.tag_options())
}

/// Says that the image was removed, and what else may be the cause. `may_be_kept` means that a
/// builder in a container may have kept it.
fn was_removed(client: &Client, typed: &str, may_be_kept: bool) -> String {
    let called = client.engine.client();
    let removed = format!(
        "it was removed as soon as it was built ('{called} image prune', '{called} rmi'), or built \
         on another engine"
    );
    if may_be_kept {
        return format!("{removed}, or kept by a builder in a container (then add --load)");
    }
    let short = typed.parse::<Tag>().ok().filter(Tag::is_short);
    match short.filter(|_| client.engine == Engine::Podman) {
        Some(tag) => format!(
            "{removed}; or podman gave the short name to an image of the same name from a registry \
             (then say -t {})",
            tag.podman_name()
        ),
        None => removed,
    }
}
