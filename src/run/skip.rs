//! The image's id, where the build command would have given it to its caller.

use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::command::{Build, Client, Command};
use crate::image::{Identity, Images, is_buildah};
use crate::reference::Tag;

/// Prints the id of the image that is present, with `-q`, and writes it to the file of
/// `--iidfile`.
///
/// The engine is asked for it only here: a call that gives no id makes no request for it.
///
/// # Errors
/// The engine gave no certain answer, the image was removed meanwhile, or the id cannot be written.
pub(super) fn give_id(command: &Command, images: &Images, tags: &[Tag]) -> Result<()> {
    let (Some(build), Some(client)) = (command.build(), command.client()) else { return Ok(()) };
    if !build.prints_id && build.id_file.is_none() {
        return Ok(());
    }
    let file = build.id_file.as_deref();
    let (file, elsewhere) = match client.may_run_elsewhere {
        true => (file.filter(|file| file.is_absolute()), file.filter(|file| file.is_relative())),
        false => (file, None),
    };
    if let Some(file) = elsewhere {
        tracing::warn!(
            "the build command is not run, so it does not write --iidfile {}: in which folder it \
             would is not known",
            file.display()
        );
    }
    if let Some(file) = file {
        remove_old(file).map_err(|error| cannot_write(file, client, &error))?;
    }
    let Some(tag) = named_first(build, tags) else { return Ok(()) };
    let Some(id) = known(images, tag)? else {
        let file = file.map(|file| format!("--iidfile {}", file.display()));
        let printed = build.prints_id.then(|| "the image id that -q prints".to_owned());
        for output in file.into_iter().chain(printed) {
            tracing::warn!("the build command is not run, so it does not write {output}");
        }
        return Ok(());
    };
    for other in tags.iter().filter(|other| *other != tag) {
        if known(images, other)?.is_some_and(|other| other != id) {
            tracing::warn!(
                "{other}: another image than {tag}, whose id is given; use --force to build both as \
                 one image"
            );
        }
    }
    if let Some(file) = file {
        // podman prints it without the algorithm, and writes it with it.
        let algorithm = if id.contains(':') { "" } else { "sha256:" };
        std::fs::write(file, format!("{algorithm}{id}"))
            .map_err(|error| cannot_write(file, client, &error))?;
    }
    // buildah does the one or the other.
    if build.prints_id && !(is_buildah(client) && build.id_file.is_some()) {
        writeln!(std::io::stdout(), "{id}").context("cannot print the image's id (-q)")?;
    }
    Ok(())
}

fn known(images: &Images, tag: &Tag) -> Result<Option<String>> {
    match images.identity(tag)? {
        Identity::Known(id) => Ok(Some(id)),
        Identity::Unknown => Ok(None),
        Identity::Missing => bail!("{tag}: the image was removed after it was seen; call again"),
    }
}

/// The tag that the build command names first. Others may be those of another image by now.
fn named_first<'t>(build: &Build, tags: &'t [Tag]) -> Option<&'t Tag> {
    let first = build.tags.iter().find_map(|text| text.parse::<Tag>().ok());
    let is_first = |tag: &&Tag| first.as_ref().is_some_and(|first| first.is_same_name(tag));
    tags.iter().find(is_first).or_else(|| tags.first())
}

/// Removes the file of an earlier build, as docker does: its id must not pass for this image's. It
/// may also be another user's, of a build behind sudo. Links and devices stay.
fn remove_old(file: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(file) {
        Ok(found) if found.is_file() => std::fs::remove_file(file),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn cannot_write(file: &Path, client: &Client, error: &std::io::Error) -> anyhow::Error {
    let hint = match client.behind_others && error.kind() == ErrorKind::PermissionDenied {
        true => "; the build command may run as another user: put sudo in front of buildlock",
        false => "",
    };
    anyhow!("cannot write the image's id to {}: {error}{hint}", file.display())
}
