//! `buildlock lint`: finds what makes builds race in Dockerfiles, compose files and bake files.

mod bake;
mod compose;
mod dockerfile;
mod file;
mod finding;
mod fix;
mod inspect;
mod place;
mod position;
mod report;
mod shell;
mod tools;
mod walk;

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use finding::{Finding, Level, WrongKind};
use inspect::Inspector;
use walk::Candidate;

use crate::cli::LintFormat;
use crate::exit::{self, Exit};
use crate::log;

/// What to look at, and how to report it.
#[derive(Debug)]
pub struct Options {
    /// Add the missing `sharing=locked`.
    pub fix: bool,
    /// Treat notes as errors.
    pub strict: bool,
    /// Leave notes out.
    pub quiet: bool,
    /// The format of the report.
    pub format: LintFormat,
    /// Files, folders, or `-` for stdin. If empty, the current folder.
    pub paths: Vec<PathBuf>,
}

/// What all files together have come to.
struct Outcome {
    findings: Vec<Finding>,
    /// The fixed text of stdin, with `--fix`.
    fixed_stdin: Option<Vec<u8>>,
    files: usize,
    /// Whether everything that was asked for could be read and written.
    is_complete: bool,
}

/// Looks at all files and prints the findings. Files that cannot be read do not keep it from
/// looking at the others.
///
/// # Errors
/// There is no file to look at, or the report cannot be written.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Exit> {
    let outcome = inspect_all(options)?;
    let errors = count(&outcome.findings, Level::Error);
    log::linted(outcome.files, errors, count(&outcome.findings, Level::Note));
    report(options, &outcome, out)?;
    Ok(if outcome.is_complete {
        Exit::Code(u8::from(errors > 0))
    } else {
        Exit::Code(exit::FAILURE)
    })
}

fn inspect_all(options: &Options) -> Result<Outcome> {
    let (candidates, mut is_complete) = walk::files(&options.paths)?;
    let mut inspector =
        Inspector { fix: options.fix, strict: options.strict, findings: Vec::new() };
    let (mut fixed_stdin, mut files) = (None, 0);
    let real_path = |candidate: &Candidate| fs::canonicalize(&candidate.path).ok();
    let mut known: HashSet<_> = candidates.iter().filter_map(real_path).collect();
    let mut queue = VecDeque::from(candidates);
    while let Some(candidate) = queue.pop_front() {
        match inspector.inspect(&candidate.path) {
            Ok(inspected) => {
                files += 1;
                fixed_stdin = inspected.fixed_stdin.or(fixed_stdin);
                let found = inspected.dockerfiles.into_iter();
                let found = found.map(|path| Candidate { path, is_named: false });
                queue.extend(found.filter(|it| real_path(it).is_some_and(|it| known.insert(it))));
            }
            // Only the name suggested that we look at it. It may be a template.
            Err(error) if error.is::<WrongKind>() && !candidate.is_named => log::left_out(&error),
            Err(error) => {
                log::error(&error);
                is_complete = false;
            }
        }
    }
    Ok(Outcome { findings: inspector.findings, fixed_stdin, files, is_complete })
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|finding| finding.level == level && !finding.fixed).count()
}

/// Prints the findings. If stdin was fixed, its text takes stdout, and the findings go to stderr.
fn report(options: &Options, outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let is_shown = |finding: &&Finding| !options.quiet || finding.level == Level::Error;
    let shown: Vec<_> = outcome.findings.iter().filter(is_shown).collect();
    match &outcome.fixed_stdin {
        Some(text) => {
            out.write_all(text)?;
            report::print(&shown, options.format, &mut io::stderr().lock())
        }
        None => report::print(&shown, options.format, out),
    }
}
