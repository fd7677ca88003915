//! The image's ID for the caller, if the build command is skipped but would have given it.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::command::{BuildOptions, Client, Command};
use crate::image::{Identity, Images, is_buildah};
use crate::reference::Tag;

/// Gives the ID of the image that is present to the caller: prints it with `-q`, and writes it to
/// the file of `--iidfile`.
///
/// Asks the engine for the ID only if it is wanted.
///
/// # Errors
/// Fails if the engine gives no certain answer, if the image was removed meanwhile, or if the ID
/// cannot be written.
pub(super) fn give_id(command: &Command, images: &Images, tags: &[Tag]) -> Result<()> {
    let (Some(build), Some(client)) = (command.build(), command.client()) else { return Ok(()) };
    if !build.prints_id && build.id_file.is_none() {
        return Ok(());
    }
    let file = file_within_reach(build, client);
    if let Some(file) = file {
        remove_old(file).map_err(|error| cannot_write(file, client, &error))?;
    }
    let Some(tag) = named_first(build, tags) else { return Ok(()) };
    let Some(id) = id_of(images, tag)? else {
        warn_without_id(build, file);
        return Ok(());
    };
    warn_of_other_images(images, tags, tag, &id)?;
    if let Some(file) = file {
        write(file, &id).map_err(|error| cannot_write(file, client, &error))?;
    }
    // With --iidfile, buildah prints nothing.
    if build.prints_id && !(is_buildah(client) && build.id_file.is_some()) {
        writeln!(std::io::stdout(), "{id}").context("cannot print the image's id (-q)")?;
    }
    Ok(())
}

/// Returns the file of `--iidfile`. Warns instead if the build command may look for it in another
/// folder than ours.
fn file_within_reach<'b>(build: &'b BuildOptions, client: &Client) -> Option<&'b Path> {
    let file = build.id_file.as_deref()?;
    if client.may_run_elsewhere && file.is_relative() {
        tracing::warn!(
            "the build command is not run, so it does not write --iidfile {}: in which folder it \
             would is not known",
            file.display()
        );
        return None;
    }
    Some(file)
}

fn warn_without_id(build: &BuildOptions, file: Option<&Path>) {
    let file = file.map(|file| format!("--iidfile {}", file.display()));
    let printed = build.prints_id.then(|| "the image id that -q prints".to_owned());
    for output in file.into_iter().chain(printed) {
        tracing::warn!("the build command is not run, so it does not write {output}");
    }
}

fn warn_of_other_images(images: &Images, tags: &[Tag], tag: &Tag, id: &str) -> Result<()> {
    for other in tags.iter().filter(|other| *other != tag) {
        if id_of(images, other)?.is_some_and(|other| other != id) {
            tracing::warn!(
                "{other}: another image than {tag}, whose id is given; use --force to build both \
                 as one image"
            );
        }
    }
    Ok(())
}

/// Returns the image's ID, or none if the engine does not tell it.
fn id_of(images: &Images, tag: &Tag) -> Result<Option<String>> {
    match images.identity(tag)? {
        Identity::Known(id) => Ok(Some(id)),
        Identity::Unknown => Ok(None),
        Identity::Missing => bail!("{tag}: the image was removed after it was seen; call again"),
    }
}

/// Returns the tag that the build command names first. The other tags may belong to another image
/// by now.
fn named_first<'t>(build: &BuildOptions, tags: &'t [Tag]) -> Option<&'t Tag> {
    let first = build.tags.iter().find_map(|text| text.parse::<Tag>().ok());
    let is_first = |tag: &&Tag| first.as_ref().is_some_and(|first| first.is_same_name(tag));
    tags.iter().find(is_first).or_else(|| tags.first())
}

/// Removes the file of an earlier build, as docker does: that build's ID must not pass for this
/// image's, and in a folder of many users the file may be somebody's link to another one.
fn remove_old(file: &Path) -> std::io::Result<()> {
    if is_of_the_system(file) {
        return Ok(());
    }
    match std::fs::remove_file(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Writes the ID to a file that was removed before.
fn write(file: &Path, id: &str) -> std::io::Result<()> {
    // podman prints the ID without the algorithm, but writes it with it.
    let algorithm = if id.contains(':') { "" } else { "sha256:" };
    let stays = is_of_the_system(file);
    let mut file = OpenOptions::new().write(true).truncate(stays).create_new(!stays).open(file)?;
    write!(file, "{algorithm}{id}")
}

/// Returns whether it is a stream or a device such as `/dev/stdout`, `/dev/fd/3` or `/dev/null`,
/// which must stay. Users may put files of their own into other folders there, such as `/dev/shm`.
fn is_of_the_system(file: &Path) -> bool {
    let folders = ["/dev", "/dev/fd", "/dev/pts"];
    let is_in = |folder: &&str| file.parent() == Some(Path::new(folder));
    folders.iter().any(is_in) || file.starts_with("/proc")
}

fn cannot_write(file: &Path, client: &Client, error: &std::io::Error) -> anyhow::Error {
    let hint =
        match client.wrapper_changes_user_or_env && error.kind() == ErrorKind::PermissionDenied {
            true => "; the build command may run as another user: put sudo in front of buildlock",
            false => "",
        };
    anyhow!("cannot write the image's id to {}: {error}{hint}", file.display())
}
