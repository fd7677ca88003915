//! Finds the cache mounts of a Dockerfile that race.

mod accepted;
mod mixed;
mod mount;
mod mounts;
mod places;
mod stages;

use accepted::Accepted;
use mounts::Mounts;
use stages::Stages;

use super::finding::TextFinding;
use super::shell;
use crate::dockerfile::{Instruction, Kind, Text, Unreadable};

/// Returns the cache mounts that race or may race. `strict` turns notes into errors.
///
/// # Errors
/// It is not a Dockerfile that BuildKit would build.
pub(super) fn check(bytes: &[u8], strict: bool) -> Result<Vec<TextFinding>, Unreadable> {
    let text = Text::of(bytes);
    let offset = text.offset;
    let mut findings =
        check_text(&text, strict).map_err(|error| Unreadable { at: error.at + offset, ..error })?;
    for finding in &mut findings {
        finding.at += offset;
        finding.fix = finding.fix.map(|fix| fix + offset);
    }
    Ok(findings)
}

fn check_text(text: &Text, strict: bool) -> Result<Vec<TextFinding>, Unreadable> {
    let dockerfile = text.read()?;
    let text = &text.text;
    let mut stages = Stages::new(dockerfile.escape);
    let mut mounts = Mounts::default();
    for instruction in &dockerfile.instructions {
        if instruction.kind == Kind::Run {
            let mut calls = shell::calls(&command(instruction));
            places::add_environment(&stages, &mut calls);
            stages.note(&calls);
            let accepted = Accepted::above(text, instruction.at);
            mounts.add(instruction, &accepted, &calls, &stages)?;
        }
        stages.apply(instruction)?;
    }
    let Mounts { mut findings, shared } = mounts;
    mixed::add(&mut findings, &shared, text, strict);
    Ok(findings)
}

/// Returns what a `RUN` runs, with its here-documents.
fn command(run: &Instruction<'_>) -> String {
    let mut command = run.arguments.clone();
    for heredoc in &run.heredocs {
        command.push('\n');
        command.push_str(heredoc);
    }
    command
}
