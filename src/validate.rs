//! What can be wrong with a job, and be known before anybody waits; and, afterwards, the likely
//! causes of what went wrong.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use crate::child::NotRun;
use crate::command::{Build, Client, Command, Engine, goes_elsewhere};
use crate::exit::{self, Failure};
use crate::image::{Check, Instead, Missing};
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
            bail!(match command.build() {
                Some(_) =>
                    "no tag: COMMAND has no -t TAG, so say which image it builds: buildlock -t TAG -- …",
                None =>
                    "no tag: COMMAND is no build command that buildlock knows, so say which image it builds: buildlock -t TAG -- …",
            });
        }
        let valid = |(text, tag): (&str, Result<Tag, _>)| {
            tag.map_err(|error| anyhow!("COMMAND's tag '{text}': {error}"))
        };
        return named.into_iter().map(valid).collect();
    }
    if command.build().is_some() {
        for tag in &given {
            if !named.iter().any(|(_, other)| other.as_ref() == Ok(tag)) {
                tracing::warn!(
                    "{tag}: COMMAND does not give its image this tag; it says {}",
                    said(&named)
                );
            }
        }
    }
    Ok(given)
}

fn said<T>(named: &[(&str, T)]) -> String {
    match named {
        [] => "no -t at all".to_owned(),
        _ => named.iter().map(|(text, _)| format!("-t {text}")).collect::<Vec<_>>().join(" "),
    }
}

/// COMMAND's program exists and may be executed. Returns where it is.
///
/// # Errors
/// With the status that a shell would give.
pub fn program(command: &Command) -> Result<PathBuf> {
    let program = Path::new(command.program());
    // What execvp(3) falls back to.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let here = std::env::current_dir().unwrap_or_default();
    if let Ok(found) = which::which_in(program, Some(&path), here) {
        return Ok(found);
    }
    let shown = program.display();
    let in_path = || -> Vec<PathBuf> {
        std::env::split_paths(&path).map(|folder| folder.join(program)).collect()
    };
    let has_folder = command.program().as_encoded_bytes().contains(&b'/')
        || [".", ".."].iter().any(|it| command.program() == *it);
    let candidates = if has_folder { vec![program.to_owned()] } else { in_path() };
    // A folder in PATH of that name is not what anybody means; one that was named is.
    let there = candidates.iter().find(|path| path.exists() && (has_folder || !path.is_dir()));
    Err(match there {
        Some(path) if path.is_dir() => Failure::new(
            exit::CANNOT_EXECUTE,
            format!("{} is a folder, not a COMMAND", path.display()),
        ),
        Some(path) => Failure::new(
            exit::CANNOT_EXECUTE,
            format!("COMMAND cannot be executed: {}: permission denied", path.display()),
        ),
        None => Failure::new(exit::NOT_FOUND, format!("COMMAND was not found: {shown}")),
    }
    .into())
}

/// Why COMMAND did not start.
pub fn cannot_run(command: &Command, why: NotRun) -> anyhow::Error {
    let (status, error) = match why {
        NotRun::Prepare(error) => (exit::FAILURE, error),
        NotRun::Execute(error) if error.kind() == ErrorKind::NotFound => (exit::NOT_FOUND, error),
        NotRun::Execute(error) => (exit::CANNOT_EXECUTE, error),
    };
    Failure::new(status, format!("COMMAND cannot be run: {}: {error}", command.program().display()))
        .into()
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
    match container_builder(command, client) {
        Some(builder) if build.outputs.is_empty() => bail!(
            "COMMAND makes no image on the engine: the builder '{builder}' keeps what it builds to itself; add --load"
        ),
        Some(builder) => tracing::warn!(
            "COMMAND's builder '{builder}' may keep what it builds to itself; see --load"
        ),
        None if build.push && build.outputs.is_empty() => tracing::warn!(
            "COMMAND has --push and no --load: with a container builder no image will be on the engine"
        ),
        None => {}
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

/// The builder that COMMAND chooses, if that is known to be one in a container, which does not
/// give its images to the engine.
fn container_builder(command: &Command, client: &Client) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Instance {
        driver: String,
        #[serde(default)]
        nodes: Vec<Node>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Node {
        #[serde(default)]
        driver_opts: Option<std::collections::BTreeMap<String, String>>,
    }
    let chosen = client.variable("BUILDX_BUILDER").and_then(|name| name.into_string().ok());
    let builder = command.builder().map(str::to_owned).or(chosen)?;
    let config = client.variable("BUILDX_CONFIG").map(PathBuf::from);
    let config = config.or_else(|| Some(client.configuration()?.join("buildx")))?;
    let name = Path::new(&builder).file_name()?;
    let text = std::fs::read(config.join("instances").join(name)).ok()?;
    let instance: Instance = serde_json::from_slice(&text).ok()?;
    let loads = |node: &Node| {
        node.driver_opts
            .as_ref()
            .and_then(|opts| opts.get("default-load"))
            .is_some_and(|value| value == "true")
    };
    (instance.driver != "docker" && !instance.nodes.iter().any(loads)).then_some(builder)
}

/// Warns in a container whose lock folder nobody outside sees.
pub fn lock_folder_is_shared(folder: &Path) {
    if folder != Path::new(crate::lock::DEFAULT_DIR) || !has_container_mark() {
        return;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if is_container(&mounts) && !is_mounted(folder, &mounts) {
        tracing::warn!(
            "this is a container, and {} is its own: builds outside it, or in another one, are not \
             excluded; mount the host's folder there, or name another one with --lock-dir",
            folder.display()
        );
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

/// Why the image may be missing, where `check` has looked for it, although COMMAND ended with 0.
pub fn why_missing(command: &Command, missing: &Missing<'_>, check: &Check) -> String {
    let tag = missing.tag;
    if let Check::Command(_) = check {
        return format!("there is no image {tag}, says the command of --check");
    }
    if let Some(Instead { there, wanted }) = &missing.instead {
        return format!("{tag} is an image for {there}, not for {wanted}, which COMMAND names");
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
            if !build.tags.iter().any(|text| text.parse::<Tag>().as_ref() == Ok(tag)) {
                format!("COMMAND says {}", said(&named))
            } else if *check == Check::Registry {
                match command.client() {
                    Some(client) if !command.pushes() => {
                        format!("COMMAND does not push; {}", how_to_push(client))
                    }
                    _ => "was it removed meanwhile, or does a mirror answer for it?".to_owned(),
                }
            } else if !build.outputs.is_empty() {
                format!(
                    "COMMAND writes what it builds elsewhere: -o {}",
                    build.outputs.join(" -o ")
                )
            } else if build.push {
                "COMMAND has --push and no --load, and its builder keeps the image to itself"
                    .to_owned()
            } else {
                match command.client().map(|client| client.engine) {
                    Some(Engine::Docker) => {
                        "is its builder one in a container? Then add --load".to_owned()
                    }
                    Some(Engine::Podman) => format!(
                        "podman gives a short name to an image of the same name from a registry, where \
                         it has one; say -t {}",
                        tag.podman_name()
                    ),
                    _ => "was it removed meanwhile?".to_owned(),
                }
            }
        }
    };
    format!("there is no image {tag}{where_to}; {cause}")
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
