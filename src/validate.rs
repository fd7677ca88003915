//! What can be wrong with a job, and be known before anybody waits; and, afterwards, the likely
//! causes of what went wrong.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use crate::child::NotRun;
use crate::command::{Build, Client, Command, Engine, Several, Tool, goes_elsewhere};
use crate::exit::{self, Failure};
use crate::go_json;
use crate::image::{Check, EngineProcess, Images, Instead, Missing, Why, buildx};
use crate::interpreter;
use crate::reference::Tag;

/// The tags to build: those given, else those that COMMAND names.
///
/// # Errors
/// There are none, or COMMAND's are no references.
pub fn tags(given: Vec<Tag>, command: &Command) -> Result<Vec<Tag>> {
    let named: Vec<(&str, Result<Tag, _>)> = command
        .build()
        .iter()
        .flat_map(|build| &build.tags)
        .map(|text| (text.as_str(), text.parse::<Tag>()))
        .collect();
    if given.is_empty() {
        if named.is_empty() {
            bail!(no_tag(command));
        }
        let valid = |(text, tag): (&str, Result<Tag, _>)| {
            tag.map_err(|error| anyhow!("COMMAND's tag '{text}': {error}"))
        };
        return named.into_iter().map(valid).collect();
    }
    if command.build().is_some() {
        // Its x is its localhost/x.
        let names_are_podmans =
            command.client().is_some_and(|client| client.engine == Engine::Podman);
        for tag in &given {
            let is_it = |other: &Tag| other == tag || names_are_podmans && other.is_same_name(tag);
            if !named.iter().any(|(_, other)| other.as_ref().is_ok_and(is_it)) {
                tracing::warn!(
                    "{tag}: the build command does not give its image this tag; it says {}",
                    said(&named)
                );
            }
        }
    }
    Ok(given)
}

/// What to do where nothing says which image is built.
fn no_tag(command: &Command) -> String {
    if let Some(several) = command.several().filter(|several| several.only_builds()) {
        let (called, verb) = (&several.called, &several.subcommand);
        let what = if several.tool == Tool::Bake { "TARGET" } else { "SERVICE" };
        return match several.named.as_slice() {
            [one] => format!(
                "no tag: '{called} {verb}' takes the image's name from its file; say which one \
                 {one} is: buildlock -t TAG -- {called} {verb} {one}"
            ),
            _ => format!(
                "no tag: '{called} {verb}' may build several images; call buildlock once for each \
                 of them: buildlock -t TAG -- {called} {verb} {what}"
            ),
        };
    }
    if command.build().is_some() {
        return "no tag: the build command has no -t TAG, so say which image it builds: \
                buildlock -t TAG -- …"
            .to_owned();
    }
    match command.tags_in_script().as_slice() {
        [] => "no tag: this is not a build command that buildlock knows, so say which image it \
               builds: buildlock -t TAG -- …"
            .to_owned(),
        tags => format!(
            "no tag: of a script, buildlock locks only what it is told; this one seems to build {}, \
             so say: buildlock {} -- …",
            tags.join(" and "),
            tags.iter().map(|tag| format!("-t {tag}")).collect::<Vec<_>>().join(" ")
        ),
    }
}

/// Does the command do nothing but build?
///
/// # Errors
/// It does more: where its image is present, that would not be done, and the exit status would be 0
/// all the same.
pub fn only_builds(command: &Command, check: &Check) -> Result<()> {
    if let Some(several) = command.several()
        && !several.only_builds()
        && !(several.subcommand == "push" && *check == Check::Registry)
    {
        let (called, verb) = (&several.called, &several.subcommand);
        let then = match verb.as_str() {
            "up" => format!("then '{called} up --no-build'"),
            "run" => format!("then '{called} run'"),
            "watch" => format!("then '{called} watch --no-up'"),
            _ => format!("then '{called} {verb}'"),
        };
        bail!(
            "'{called} {verb}' does more than build, and is not run where its image is present; \
             build first, 'buildlock -t TAG -- {called} build SERVICE', {then}"
        );
    }
    match command.does_more_than_build() {
        Some(verb) if verb.ends_with("push") && *check != Check::Local => Ok(()),
        Some(verb) if verb.ends_with("push") => bail!(
            "'{verb}' is not run where the image is present on the engine; to look for it in the \
             registry, give --check registry"
        ),
        Some(verb) => bail!(
            "'{verb}' does more than build, and is not run where the image is present; build the \
             image with buildlock first, and then run it"
        ),
        None => Ok(()),
    }
}

/// Warns where builds that are started side by side share a cache.
pub fn cache_has_one_writer(command: &Command, program: &Path, caches: bool) {
    let (Some(several), true) = (command.several().filter(|it| it.builds_several()), caches) else {
        return;
    };
    let variable = |name: &str| command.client()?.variable(name)?.into_string().ok();
    let limit = several.parallel.clone().or_else(|| variable("COMPOSE_PARALLEL_LIMIT"));
    let is_limited = limit.as_deref() == Some("1");
    let how = match several.tool {
        Tool::Bake => "call buildlock once for each target",
        // Version 1 is a script in Python, and builds in parallel if told so.
        Tool::Compose if is_docker_compose(several) && interpreter::is_script(program) => {
            if several.parallel.is_none() {
                return;
            }
            "leave --parallel away, or call buildlock once for each service"
        }
        Tool::Compose if several.called.starts_with("podman-compose") => {
            if is_limited {
                return;
            }
            "add --parallel 1 (podman-compose --parallel 1 build), or call buildlock once for each \
             service"
        }
        // Bake has no limit (docker/buildx#359), and Compose builds with it since 2.37.
        Tool::Compose => {
            let without_bake = variable("COMPOSE_BAKE")
                .is_some_and(|bake| ["false", "0"].contains(&bake.as_str()));
            if is_limited && without_bake {
                return;
            }
            "call buildlock once for each service; or, up to Compose 2, have it build without bake \
             and one after the other: COMPOSE_BAKE=false docker compose --parallel 1 build"
        }
    };
    tracing::warn!(
        "'{} {}' may build several images at the same time, which all write the cache under one \
         lock: --cache does not keep them apart; {how}",
        several.called,
        several.subcommand
    );
}

fn is_docker_compose(several: &Several) -> bool {
    Path::new(&several.called).file_name().is_some_and(|name| name == "docker-compose")
}

fn said<T>(named: &[(&str, T)]) -> String {
    match named {
        [] => "no tag at all".to_owned(),
        _ => named.iter().map(|(text, _)| format!("-t {text}")).collect::<Vec<_>>().join(" "),
    }
}

/// COMMAND's program exists and may be executed. Returns where it is.
///
/// # Errors
/// With the status that env(1) gives: 127 if it is not there, 126 if it cannot be executed.
pub fn program(command: &Command) -> Result<PathBuf> {
    let program = Path::new(command.program());
    // What execvp(3) falls back to.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let here = std::env::current_dir().unwrap_or_default();
    if let Ok(found) = which::which_in(program, Some(&path), here) {
        return Ok(found);
    }
    let has_folder = command.program().as_encoded_bytes().contains(&b'/')
        || [".", ".."].iter().any(|it| command.program() == *it);
    let candidates: Vec<PathBuf> = match has_folder {
        true => vec![program.to_owned()],
        false => std::env::split_paths(&path).map(|folder| folder.join(program)).collect(),
    };
    let mut why = None;
    for candidate in candidates {
        match candidate.metadata() {
            // A folder in PATH of that name is not what anybody means; one that was named is.
            Ok(found) if found.is_dir() && !has_folder => {}
            Ok(found) => why = why.or(Some((candidate, cannot_execute(&found)))),
            Err(error) if is_not_there(&error, has_folder) => {}
            Err(error) => why = why.or_else(|| Some((candidate, error.to_string()))),
        }
    }
    Err(match why {
        Some((path, why)) => Failure::new(
            exit::CANNOT_EXECUTE,
            format!("COMMAND cannot be executed: {}: {why}", path.display()),
        ),
        None => {
            let shown = program.display();
            Failure::new(exit::NOT_FOUND, format!("COMMAND was not found: {shown}"))
        }
    }
    .into())
}

fn cannot_execute(found: &Metadata) -> String {
    if found.is_dir() { "it is a folder" } else { "permission denied" }.to_owned()
}

/// Is there nothing of that name? execvp(3) goes on to the next folder in PATH also after one that
/// is none.
fn is_not_there(error: &std::io::Error, has_folder: bool) -> bool {
    error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::NotADirectory && !has_folder
}

/// Why COMMAND did not start.
pub fn cannot_run(command: &Command, why: NotRun) -> anyhow::Error {
    let (status, error) = match why {
        NotRun::Prepare(error) => (exit::FAILURE, error),
        NotRun::Execute(error) if error.kind() == ErrorKind::NotFound => (exit::NOT_FOUND, error),
        NotRun::Execute(error) => (exit::CANNOT_EXECUTE, error),
    };
    let broken = program(command).ok().and_then(|program| interpreter::broken(&program));
    let why = broken.map_or_else(|| error.to_string(), |broken| broken.to_string());
    does_not_run(command, status, &why)
}

/// The interpreter of a script can be executed. That is asked only where there is something to
/// build: it means reading the script.
///
/// # Errors
/// With the status that a shell and env(1) give: 127 if it is not there, 126 if it cannot be
/// executed.
pub fn has_an_interpreter(command: &Command) -> Result<()> {
    // From a folder in PATH without one execvp(3) goes on to the next.
    if !command.program().as_encoded_bytes().contains(&b'/') {
        return Ok(());
    }
    match interpreter::broken_of_script(Path::new(command.program())) {
        None => Ok(()),
        Some(broken) if broken.is_missing() => {
            Err(does_not_run(command, exit::NOT_FOUND, &broken.to_string()))
        }
        Some(broken) => Err(does_not_run(command, exit::CANNOT_EXECUTE, &broken.to_string())),
    }
}

fn does_not_run(command: &Command, status: u8, why: &str) -> anyhow::Error {
    let program = command.program().display();
    Failure::new(status, format!("the build command cannot be run: {program}: {why}")).into()
}

/// Does COMMAND end with an image where `check` looks for it, as far as its words tell?
///
/// # Errors
/// It certainly does not. Where that is only likely, a warning says so.
pub fn ends_with_an_image(command: &Command, check: &Check) -> Result<()> {
    let (Some(build), Some(client)) = (command.build(), command.client()) else { return Ok(()) };
    if let Check::Command(_) = check {
        return Ok(());
    }
    if let Some(flag) = &build.builds_nothing {
        bail!("COMMAND builds no image: {flag}");
    }
    if *check == Check::Registry {
        return ends_in_the_registry(command, build, client);
    }
    // podman makes its image in any case; -o writes it elsewhere too.
    if build.load || client.engine == Engine::Podman {
        return Ok(());
    }
    let elsewhere = |output: &&String| goes_elsewhere(output);
    match (
        build.outputs.iter().find(elsewhere),
        build.outputs.iter().all(|output| goes_elsewhere(output)),
    ) {
        (Some(output), true) => bail!(
            "COMMAND makes no image on the engine: -o {output} writes it elsewhere; add --load, or leave -o away"
        ),
        (Some(output), false) => {
            tracing::warn!("COMMAND's -o {output} writes elsewhere than to the engine")
        }
        (None, _) => {}
    }
    // Of all outputs, only type=docker would give it to the engine; that stands for --load.
    if let Some(builder) = container_builder(command, client) {
        // Where it pushes, the registry has what its caller is after.
        let or =
            if command.pushes() { ", or look in the registry with --check registry" } else { "" };
        bail!(
            "the build command makes no image on the engine: the builder '{builder}' keeps what it \
             builds to itself; add --load{or}"
        );
    }
    Ok(())
}

fn ends_in_the_registry(command: &Command, build: &Build, client: &Client) -> Result<()> {
    if command.pushes() {
        return Ok(());
    }
    // podman pushes nothing by itself, and minds no -o.
    let elsewhere = build.outputs.iter().find(|output| goes_elsewhere(output));
    if let (Some(output), Engine::Docker) = (elsewhere, client.engine) {
        bail!(
            "COMMAND pushes no image: -o {output} writes it elsewhere; add --push, or leave -o away"
        );
    }
    let how = how_to_push(client);
    tracing::warn!("COMMAND does not push, and --check registry looks in the registry; {how}");
    Ok(())
}

fn how_to_push(client: &Client) -> &'static str {
    match client.engine {
        Engine::Docker => {
            "add --push (docker buildx build), or give a script that builds and pushes"
        }
        Engine::Podman | Engine::Nerdctl => "give a script that builds and pushes",
    }
}

/// Warns of tags whose registry nobody has named: it is Docker Hub.
pub fn registries_are_named(tags: &[Tag]) {
    for tag in tags.iter().filter(|tag| tag.is_short()) {
        let (registry, name) = tag.in_registry();
        tracing::warn!("{tag}: names no registry, so it is looked up as {registry}/{name}");
    }
}

/// The builder that the build command chooses by a flag or a variable, or that `docker buildx use`
/// has chosen for it.
fn chosen_builder(command: &Command, client: &Client) -> Option<String> {
    if !command.is_buildx() && buildx::is_turned_off(client) {
        return None;
    }
    let by_variable = || client.variable("BUILDX_BUILDER")?.into_string().ok();
    let by_use = || buildx::chosen_builder(command, client);
    command.builder().map(str::to_owned).or_else(by_variable).or_else(by_use)
}

/// The builder that COMMAND chooses, if that is known to be one in a container, which does not
/// give its images to the engine.
fn container_builder(command: &Command, client: &Client) -> Option<String> {
    #[derive(Default)]
    struct Instance {
        driver: String,
        nodes: Vec<Node>,
    }
    go_json::fields!(Instance { "Driver" => driver, "Nodes" => nodes });
    #[derive(Default)]
    struct Node {
        driver_opts: BTreeMap<String, String>,
    }
    go_json::fields!(Node { "DriverOpts" => driver_opts });
    let builder = chosen_builder(command, client)?;
    let text = std::fs::read(buildx::instance(&buildx::folder(client)?, &builder)?).ok()?;
    let instance: Instance = go_json::read(&text).ok()?;
    let loads =
        |node: &Node| node.driver_opts.get("default-load").is_some_and(|value| value == "true");
    let is_known = !matches!(instance.driver.as_str(), "" | "docker");
    (is_known && !instance.nodes.iter().any(loads)).then_some(builder)
}

/// Warns in a container whose lock folder the engine does not see, so that callers elsewhere use
/// another one.
pub fn lock_folder_is_shared(folder: &Path, images: &Images) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !is_container(&mounts) || is_mounted(folder, &mounts) {
        return;
    }
    let is_own = match images.engine_process() {
        Some(EngineProcess::Visible(pid)) => sees_another(pid, folder),
        Some(EngineProcess::Elsewhere) => true,
        None => has_container_mark(),
    };
    if is_own {
        tracing::warn!(
            "the engine does not see the lock folder {}, which is this container's own: builds \
             outside of it, or in another one, are not excluded; mount the host's folder there, or \
             name one that is mounted with --lock-dir",
            folder.display()
        );
    }
}

/// Does this process see another folder of that name, or none? False where buildlock may not look.
fn sees_another(pid: u32, folder: &Path) -> bool {
    let Some(root) = crate::proc::path(pid, "root") else { return false };
    // Reading the link takes the same permission as following it.
    if std::fs::read_link(&root).is_err() {
        return false;
    }
    let place = |folder: &Path| rustix::fs::stat(folder).map(|found| (found.st_dev, found.st_ino));
    match (place(folder), place(&root.join(folder.strip_prefix("/").unwrap_or(folder)))) {
        (Ok(ours), Ok(theirs)) => ours != theirs,
        (Ok(_), Err(error)) => error == rustix::io::Errno::NOENT,
        (Err(_), _) => false,
    }
}

/// Docker and podman leave these in their containers.
fn has_container_mark() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists())
}

/// A machine that was made from a container image has the mark too; but its root is a whole disk,
/// which a container's is not. The fields are in proc_pid_mountinfo(5).
fn is_container(mounts: &str) -> bool {
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"));
    let whole_disk = root.is_some_and(|line| {
        let source = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
        line.split(' ').nth(3) == Some("/")
            && source.is_some_and(|source| source.starts_with("/dev/"))
    });
    !whole_disk
}

fn is_mounted(folder: &Path, mounts: &str) -> bool {
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    points.any(|point| point != Path::new("/") && folder.starts_with(point))
}

/// Says why an image that may well be there is built all the same.
pub fn why_untold(missing: &Missing<'_>) {
    if let Why::Untold(wanted) = &missing.why {
        tracing::warn!(
            "{}: there is an image, but the engine does not say whether it is for all of {wanted}, \
             so it is built again each time; Docker 28 says so where it has the containerd image \
             store, and --check registry looks in the registry",
            missing.tag
        );
    }
}

/// Why the image may be missing, where `check` has looked for it, although COMMAND ended with 0.
pub fn why_missing(command: &Command, missing: &Missing<'_>, check: &Check) -> String {
    let tag = missing.tag;
    if let Check::Command(_) = check {
        return format!("there is no image {tag}, says the command of --check");
    }
    if let Why::Other(Instead { there, wanted }) = &missing.why {
        return format!(
            "{tag} is an image for {there}, not for {wanted}, which the build command is for"
        );
    }
    let where_to = match check {
        Check::Registry => format!(" in the registry {}", tag.in_registry().0),
        _ => String::new(),
    };
    let cause = match command.build() {
        None if *check == Check::Registry => "was it pushed?".to_owned(),
        None => "does COMMAND build another tag, or on another engine (see --engine)?".to_owned(),
        Some(build) => {
            let named: Vec<_> = build.tags.iter().map(|text| (text.as_str(), ())).collect();
            let is_this = |text: &&String| {
                text.parse::<Tag>().is_ok_and(|named| named == *tag || named.is_same_name(tag))
            };
            match build.tags.iter().find(is_this) {
                None => format!("the build command says {}", said(&named)),
                Some(_) if *check == Check::Registry => match command.client() {
                    Some(client) if !command.pushes() => {
                        format!("the build command does not push; {}", how_to_push(client))
                    }
                    _ => "was it removed meanwhile, or does a mirror answer for it?".to_owned(),
                },
                Some(typed) => why_not_on_the_engine(command, build, typed),
            }
        }
    };
    format!("there is no image {tag}{where_to}; {cause}")
}

/// Why an image is not on the engine whose build command ended with 0 and gives it the tag `typed`;
/// the likeliest cause first.
fn why_not_on_the_engine(command: &Command, build: &Build, typed: &str) -> String {
    let Some(client) = command.client() else { return "it was removed meanwhile".to_owned() };
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
    let called = client.engine.client();
    let removed = format!(
        "it was removed as soon as it was built ('{called} image prune', '{called} rmi'), or built \
         on another engine"
    );
    match client.engine {
        Engine::Podman => match typed.parse::<Tag>() {
            Ok(tag) if tag.is_short() => format!(
                "{removed}; or podman gave the short name to an image of the same name from a \
                 registry (then say -t {})",
                tag.podman_name()
            ),
            _ => removed,
        },
        Engine::Docker if command.is_buildx() && !build.load => {
            format!("{removed}, or kept by a builder in a container (then add --load)")
        }
        _ => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_told_from_a_machine_by_its_root() {
        let machine = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw";
        let overlay = "600 500 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/l";
        let vfs = "600 500 254:0 /var/lib/docker/vfs/dir/0 / rw - ext4 /dev/vda rw";
        assert!(!is_container(machine) && is_container(overlay) && is_container(vfs));
    }

    #[test]
    fn a_lock_folder_is_mounted_where_it_or_a_folder_above_is() {
        let mounts = |point: &str| {
            format!("1 0 0:1 / / rw - overlay o rw\n2 1 0:2 / {point} rw - ext4 /dev/vda rw")
        };
        let folder = Path::new("/tmp/buildlock");
        assert!(
            is_mounted(folder, &mounts("/tmp/buildlock")) && is_mounted(folder, &mounts("/tmp"))
        );
        assert!(!is_mounted(folder, &mounts("/var")) && !is_mounted(folder, &mounts("/tmp/build")));
    }
}
