//! Finds the cache mounts of a Dockerfile that race.

mod accepted;
mod flags;
mod instruction;
mod joined;
mod mixed;
mod mount;
mod mounts;
mod places;
mod stages;
mod unreadable;
mod variables;

use accepted::Accepted;
use instruction::{Instruction, Kind};
use mounts::Mounts;
use stages::Stages;
pub(super) use unreadable::Unreadable;

use super::finding::TextFinding;
use super::shell;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Returns the cache mounts that race or may race. `strict` turns notes into errors.
///
/// # Errors
/// It is not a Dockerfile that BuildKit would build.
pub(super) fn check(bytes: &[u8], strict: bool) -> Result<Vec<TextFinding>, Unreadable> {
    let offset = if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    let text = same_length_text(&bytes[offset..]);
    let mut findings =
        check_text(&text, strict).map_err(|error| Unreadable { at: error.at + offset, ..error })?;
    for finding in &mut findings {
        finding.at += offset;
        finding.fix = finding.fix.map(|fix| fix + offset);
    }
    Ok(findings)
}

/// Replaces bytes that are not UTF-8, in a comment for instance, so that all others stay in place.
fn same_length_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    text
}

fn check_text(text: &str, strict: bool) -> Result<Vec<TextFinding>, Unreadable> {
    let dockerfile = instruction::read(text)?;
    let mut stages = Stages::default();
    let mut mounts = Mounts::default();
    for instruction in &dockerfile.instructions {
        if instruction.kind == Kind::Run {
            let mut calls = shell::calls(&command(instruction));
            places::add_environment(&stages, &mut calls);
            stages.note(&calls);
            let accepted = Accepted::above(text, instruction.at);
            mounts.add(instruction, &accepted, &calls, &stages)?;
        }
        stages.apply(instruction, dockerfile.escape)?;
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
