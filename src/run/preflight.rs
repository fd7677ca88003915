//! What can be wrong with a call, and can be known before any waiting.

mod lock_folder;
mod program;

use std::path::Path;

use anyhow::{Result, anyhow, bail};

use super::builder;
use crate::command::{BuildOptions, Client, Command, ComposeOrBake, Engine, Tool, goes_elsewhere};
use crate::image::Check;
use crate::interpreter;
use crate::reference::Tag;

pub(super) use self::lock_folder::warn_if_engine_sees_another_folder;
pub(super) use self::program::{check_interpreter, does_not_run, program};

/// Returns the tags to build: those given with `-t`, or else those that the build command names.
///
/// # Errors
/// Fails if there are none, or if the build command's tags are not valid.
pub(super) fn tags(given: Vec<Tag>, command: &Command) -> Result<Vec<Tag>> {
    if given.is_empty() {
        return named_tags(command);
    }
    if let Some(build) = command.build() {
        warn_of_other_tags(&given, command, build);
    }
    Ok(given)
}

/// Returns whether buildlock knows that the command builds images. Such a command needs a tag, even
/// under a named lock.
pub(super) fn builds_images(command: &Command) -> bool {
    command.build().is_some() || command.compose_or_bake().is_some_and(ComposeOrBake::only_builds)
}

/// Warns if the command of a call without an image is a script that seems to build one.
pub(super) fn warn_if_a_script_builds(command: &Command) {
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
    if let Some(several) = command.compose_or_bake().filter(|several| several.only_builds()) {
        return no_tag_of_several(several);
    }
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

/// Checks that the build command does nothing but build.
///
/// # Errors
/// Fails if it does more. With the image present, buildlock would not do the rest, but would still
/// exit with 0.
pub(super) fn check_that_it_only_builds(command: &Command, check: &Check) -> Result<()> {
    if let Some(several) = command.compose_or_bake().filter(|several| !several.only_builds())
        && !(several.subcommand == "push" && *check == Check::Registry)
    {
        bail!(build_first(several));
    }
    match command.push_or_run_verb() {
        None => Ok(()),
        Some(verb) if verb.ends_with("push") && *check != Check::Local => Ok(()),
        Some(verb) if verb.ends_with("push") => bail!(
            "'{verb}' is not run where the image is present on the engine; to look for it in the \
             registry, give --check registry"
        ),
        Some(verb) => bail!(
            "'{verb}' does more than build, and is not run where the image is present; build the \
             image with buildlock first, and then run it"
        ),
    }
}

fn build_first(several: &ComposeOrBake) -> String {
    let (called, verb) = (&several.called, &several.subcommand);
    let then = match verb.as_str() {
        "up" => "up --no-build",
        "watch" => "watch --no-up",
        verb => verb,
    };
    format!(
        "'{called} {verb}' does more than build, and is not run where its image is present; build \
         first, 'buildlock -t TAG -- {called} build SERVICE', then '{called} {then}'"
    )
}

/// Warns if builds that are started side by side share a cache.
pub(super) fn warn_if_a_cache_has_several_writers(command: &Command, program: &Path, caches: bool) {
    let several = command.compose_or_bake().filter(|several| caches && several.may_build_several());
    let Some(several) = several else { return };
    if let Some(advice) = how_to_build_in_turn(several, command, program) {
        tracing::warn!(
            "'{} {}' may build several images at the same time, and all of them write the cache \
             under one lock, so --cache does not keep them apart; {advice}",
            several.called,
            several.subcommand
        );
    }
}

/// Returns how to have the images built one after the other, unless they are.
fn how_to_build_in_turn(
    several: &ComposeOrBake,
    command: &Command,
    program: &Path,
) -> Option<&'static str> {
    let variable = |name: &str| command.client()?.variable(name)?.into_string().ok();
    let limit = several.parallel.clone().or_else(|| variable("COMPOSE_PARALLEL_LIMIT"));
    let is_limited = limit.as_deref() == Some("1");
    match several.tool {
        Tool::Bake => Some("call buildlock once for each target"),
        // Version 1 is a Python script. It builds side by side only if told to.
        Tool::Compose if is_docker_compose(several) && interpreter::is_script(program) => several
            .parallel
            .as_ref()
            .map(|_| "leave out --parallel, or call buildlock once for each service"),
        Tool::Compose if several.called.starts_with("podman-compose") => (!is_limited).then_some(
            "add --parallel 1 (podman-compose --parallel 1 build), or call buildlock once for each \
             service",
        ),
        // Since 2.37 Compose builds with bake, which knows no limit (docker/buildx#359).
        Tool::Compose => {
            let without_bake = variable("COMPOSE_BAKE")
                .is_some_and(|bake| ["false", "0"].contains(&bake.as_str()));
            (!(is_limited && without_bake)).then_some(
                "call buildlock once for each service; or, up to Compose 2, have it build without \
                 bake and one after the other: COMPOSE_BAKE=false docker compose --parallel 1 \
                 build",
            )
        }
    }
}

fn is_docker_compose(several: &ComposeOrBake) -> bool {
    Path::new(&several.called).file_name().is_some_and(|name| name == "docker-compose")
}

/// Checks that the build command leaves an image where `check` looks for it, as far as its words
/// tell. Warns if it is only likely that it does not.
///
/// # Errors
/// Fails if it certainly does not.
pub(super) fn check_that_it_ends_with_an_image(command: &Command, check: &Check) -> Result<()> {
    let (Some(build), Some(client)) = (command.build(), command.client()) else { return Ok(()) };
    if let Check::Command(_) = check {
        return Ok(());
    }
    if let Some(flag) = &build.no_build_option {
        bail!("the build command builds no image: {flag}");
    }
    match check {
        Check::Registry => ends_in_the_registry(command, build, client),
        _ => ends_on_the_engine(command, build, client),
    }
}

fn ends_on_the_engine(command: &Command, build: &BuildOptions, client: &Client) -> Result<()> {
    // podman always makes its image. With -o it also writes it elsewhere.
    if build.load || client.engine == Engine::Podman {
        return Ok(());
    }
    let elsewhere = build.outputs.iter().find(|output| goes_elsewhere(output));
    if let Some(output) = elsewhere {
        if build.outputs.iter().all(|output| goes_elsewhere(output)) {
            bail!(
                "the build command makes no image on the engine: -o {output} writes it elsewhere; \
                 add --load, or leave out -o"
            );
        }
        tracing::warn!("the build command's -o {output} does not write to the engine");
    }
    // Among outputs, only type=docker would give the image to the engine. It counts as --load.
    if let Some(builder) = builder::container_builder(command, client) {
        // A caller that pushes wants the image in the registry.
        let or =
            if command.pushes() { ", or look in the registry with --check registry" } else { "" };
        bail!(
            "the build command makes no image on the engine: the builder '{builder}' keeps what it \
             builds to itself; add --load{or}"
        );
    }
    Ok(())
}

fn ends_in_the_registry(command: &Command, build: &BuildOptions, client: &Client) -> Result<()> {
    if command.pushes() {
        return Ok(());
    }
    // podman pushes nothing by itself, with or without -o.
    let elsewhere = build.outputs.iter().find(|output| goes_elsewhere(output));
    if let (Some(output), Engine::Docker) = (elsewhere, client.engine) {
        bail!(
            "the build command pushes no image: -o {output} writes it elsewhere; add --push, or \
             leave out -o"
        );
    }
    tracing::warn!(
        "the build command does not push, and --check registry looks in the registry; {}",
        how_to_push(client)
    );
    Ok(())
}

/// Returns how to have the image pushed.
pub(super) fn how_to_push(client: &Client) -> &'static str {
    match client.engine {
        Engine::Docker => {
            "add --push (docker buildx build), or give a script that builds and pushes"
        }
        Engine::Podman | Engine::Nerdctl => "give a script that builds and pushes",
    }
}

/// Warns of tags that name no registry: they are looked up on Docker Hub.
pub(super) fn warn_if_no_registry_is_named(tags: &[Tag]) {
    for tag in tags.iter().filter(|tag| tag.is_short()) {
        let (registry, name) = tag.in_registry();
        tracing::warn!("{tag}: names no registry, so it is looked up as {registry}/{name}");
    }
}
