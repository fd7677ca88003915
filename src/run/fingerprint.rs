//! `buildlock fingerprint`: what `--if-changed` compares.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::preflight::{self, Builds};
use crate::cli::FingerprintArgs;
use crate::command::Command;
use crate::exit::Exit;
use crate::fingerprint::{Detail, Fingerprint, Inputs, Kind};
use crate::image::{Check, Images, UpToDate, Why};
use crate::reference::Tag;
use crate::visible::escaped;

/// Prints the fingerprint of what a build command reads; or, with `--diff`, in what it differs from
/// that of the image.
///
/// # Errors
/// An input cannot be read, or the engine gave no certain answer.
pub fn fingerprint(args: FingerprintArgs, verbose: bool, out: &mut impl Write) -> Result<Exit> {
    let command = Arc::new(Command::new(args.command));
    preflight::program(&command)?;
    let needs_inputs = args.inputs.is_empty();
    let builds = match preflight::builds(args.tags, &command, needs_inputs) {
        Ok(builds) => builds,
        Err(error) if args.diff || command.build().is_none() => return Err(error),
        Err(_) => Builds::of(Vec::new()),
    };
    let command = builds.reads(&command)?;
    let program = preflight::program(&command)?;
    let check = args.check.unwrap_or(Check::Local);
    let images = Images::of(&command, &program, args.engine, check)?;
    let tags = builds.tags;
    let podman = images.are_podmans();
    let tags: Vec<Tag> =
        tags.into_iter().map(|tag| if podman { tag.in_podman() } else { tag }).collect();
    let inputs = Inputs::of(&command, args.inputs, &tags, &images)?;
    let (fingerprint, details) = inputs.explain(&images)?;
    if args.diff {
        return print_difference(&fingerprint, &images, &tags, out);
    }
    writeln!(out, "{}", fingerprint.value())?;
    if verbose {
        print_details(&fingerprint, &details, out)?;
    }
    Ok(Exit::SUCCESS)
}

fn print_details(
    fingerprint: &Fingerprint,
    details: &[Detail],
    out: &mut impl Write,
) -> Result<()> {
    for kind in Kind::ALL {
        for detail in details.iter().filter(|detail| detail.kind == kind) {
            let hash = detail.hash.map(|hash| format!("{hash:016x}  ")).unwrap_or_default();
            print_line(out, &format!("{}  {hash}{}", kind.word(), detail.text))?;
        }
    }
    if let Some(reason) = fingerprint.never_skipped() {
        print_line(out, &format!("never skipped: {reason}"))?;
    }
    Ok(())
}

/// Prints names of files and words of a Dockerfile, which may contain any characters, as one line.
fn print_line(out: &mut impl Write, line: &str) -> Result<()> {
    Ok(writeln!(out, "{}", escaped(line))?)
}

/// Prints one line for each kind of input that differs. The status is 1 if there is any.
fn print_difference(
    fingerprint: &Fingerprint,
    images: &Images,
    tags: &[Tag],
    out: &mut impl Write,
) -> Result<Exit> {
    if tags.is_empty() {
        bail!("no tag: say with -t which image to compare with");
    }
    if let Some(reason) = fingerprint.never_skipped() {
        print_line(out, &format!("always built: {reason}"))?;
    }
    let missing = match images.first_outdated(tags, fingerprint.value())? {
        UpToDate::Yes { .. } if fingerprint.never_skipped().is_none() => return Ok(Exit::SUCCESS),
        UpToDate::Yes { .. } => return Ok(Exit::Code(1)),
        UpToDate::No(missing) => missing,
    };
    match missing.why {
        Why::Outdated(label) => {
            for line in fingerprint.differences(label.as_deref()) {
                print_line(out, &format!("{}: {line}", missing.tag))?;
            }
        }
        Why::NoImage => writeln!(out, "{}: there is no image", missing.tag)?,
        Why::Several => writeln!(out, "{}: its tags are several images", missing.tag)?,
        _ => writeln!(out, "{}: the image is for another platform", missing.tag)?,
    }
    Ok(Exit::Code(1))
}
