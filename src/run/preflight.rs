//! What can be wrong with a call, and can be known before any waiting.

mod lock_folder;
mod program;
mod tags;

use std::path::Path;

use anyhow::{Result, bail};

use super::builder;
use crate::command::{BuildOptions, Client, Command, ComposeOrBake, Engine, Tool, goes_elsewhere};
use crate::image::Check;
use crate::interpreter;
use crate::reference::Tag;

pub(super) use self::lock_folder::warn_if_engine_sees_another_folder;
pub(super) use self::program::{check_interpreter, does_not_run, program};
pub(super) use self::tags::{Builds, builds, builds_images, warn_if_a_script_builds};

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
    let build = match several.is_podmans() {
        true => format!("buildlock -t TAG -- {called} build SERVICE"),
        false => format!("buildlock --each -- {called} build"),
    };
    format!(
        "'{called} {verb}' does more than build, and is not run where its image is present; build \
         first, '{build}', then '{called} {then}'"
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
    let limit =
        several.parallel().map(str::to_owned).or_else(|| variable("COMPOSE_PARALLEL_LIMIT"));
    let is_limited = limit.as_deref() == Some("1");
    match several.tool {
        Tool::Bake => Some("give --each"),
        // Version 1 is a Python script. It builds side by side only if told to.
        Tool::Compose if is_docker_compose(several) && interpreter::is_script(program) => {
            several.parallel().map(|_| "give --each, or leave out --parallel")
        }
        Tool::Compose if several.called.starts_with("podman-compose") => (!is_limited).then_some(
            "add --parallel 1 (podman-compose --parallel 1 build), or call buildlock once for each \
             service",
        ),
        // Since 2.37 Compose builds with bake, which knows no limit (docker/buildx#359).
        Tool::Compose => {
            let without_bake = variable("COMPOSE_BAKE")
                .is_some_and(|bake| ["false", "0"].contains(&bake.as_str()));
            (!(is_limited && without_bake)).then_some(
                "give --each; or, up to Compose 2, have it build without bake and one after the \
                 other: COMPOSE_BAKE=false docker compose --parallel 1 build",
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
