//! Looks into one file after the other.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::compose::{self, Inline, Place};
use super::finding::{Finding, Level, Rule, TextFinding, WrongKind};
use super::position::Positions;
use super::{bake, dockerfile, file, fix, walk};

/// Collects the findings of all files.
#[derive(Debug)]
pub(super) struct Inspector {
    pub(super) fix: bool,
    pub(super) strict: bool,
    pub(super) findings: Vec<Finding>,
}

/// What inspecting a file yields.
#[derive(Debug, Default)]
pub(super) struct Inspected {
    /// The fixed text of stdin, with `--fix`.
    pub(super) fixed_stdin: Option<Vec<u8>>,
    /// The Dockerfiles that a compose file builds from.
    pub(super) dockerfiles: Vec<PathBuf>,
}

impl Inspector {
    /// Looks into a file. `-` is stdin.
    ///
    /// # Errors
    /// The file cannot be read or written, or is not what its name says ([`WrongKind`]).
    pub(super) fn inspect(&mut self, path: &Path) -> Result<Inspected> {
        if path.as_os_str() == "-" {
            return self.inspect_stdin();
        }
        let text = file::read(path)?;
        let extension = path.extension().unwrap_or_default();
        let name = path.file_name().unwrap_or_default();
        if (extension == "yaml" || extension == "yml") && !walk::is_dockerfile(name) {
            self.inspect_compose_file(path, text)
        } else if walk::is_bake_file(name) {
            self.inspect_bake_file(path, &text)
        } else {
            self.inspect_dockerfile(path, &text)
        }
    }

    fn inspect_stdin(&mut self) -> Result<Inspected> {
        const SHOWN: &str = "<stdin>";
        let text = file::read_stdin()?;
        let found = self.check(SHOWN, &text)?;
        let fixed = fix::apply(&text, &self.fixes(&found));
        self.add(SHOWN, &text, found, true);
        Ok(Inspected { fixed_stdin: self.fix.then_some(fixed), dockerfiles: Vec::new() })
    }

    fn inspect_dockerfile(&mut self, path: &Path, text: &[u8]) -> Result<Inspected> {
        let shown = path.to_string_lossy();
        let found = self.check(&shown, text)?;
        let fixes = self.fixes(&found);
        let written = if fixes.is_empty() {
            Ok(())
        } else {
            file::write(path, text, &fix::apply(text, &fixes))
                .with_context(|| format!("cannot write {shown}"))
        };
        self.add(&shown, text, found, written.is_ok());
        written.map(|()| Inspected::default())
    }

    fn check(&self, shown: &str, text: &[u8]) -> Result<Vec<TextFinding>, WrongKind> {
        dockerfile::check(text, self.strict).map_err(|error| {
            let (line, column) = Positions::new(text).of(error.at);
            WrongKind(format!("{shown}:{line}:{column}: not a Dockerfile: {}", error.why))
        })
    }

    /// Returns where `--fix` inserts its text.
    fn fixes(&self, found: &[TextFinding]) -> Vec<usize> {
        found.iter().filter_map(|finding| self.fix_of(finding)).collect()
    }

    fn fix_of(&self, finding: &TextFinding) -> Option<usize> {
        let is_error = finding.rule.level(self.strict) == Level::Error;
        finding.fix.filter(|_| self.fix && is_error)
    }

    fn add(&mut self, shown: &str, text: &[u8], found: Vec<TextFinding>, is_written: bool) {
        let mut positions = Positions::new(text);
        for finding in found {
            let (line, column) = positions.of(finding.at);
            self.findings.push(Finding {
                path: shown.to_owned(),
                line,
                column,
                level: finding.rule.level(self.strict),
                rule: finding.rule,
                fixed: is_written && self.fix_of(&finding).is_some(),
                message: finding.message,
                advice: finding.advice.to_owned(),
            });
        }
    }

    fn inspect_compose_file(&mut self, path: &Path, text: Vec<u8>) -> Result<Inspected> {
        let compose::Read { duplicates, dockerfiles, inline } = compose::read(path, text)?;
        for duplicate in duplicates {
            self.add_at(
                &duplicate.place,
                duplicate.level,
                Rule::SameImage,
                duplicate.message,
                duplicate.advice,
            );
        }
        for dockerfile in inline {
            self.inspect_inline(&dockerfile)?;
        }
        Ok(Inspected { fixed_stdin: None, dockerfiles })
    }

    fn inspect_bake_file(&mut self, path: &Path, text: &[u8]) -> Result<Inspected> {
        for duplicate in bake::read(path, text)? {
            let advice = "give them different tags, or build one from the other";
            let rule = Rule::SameImageInBake;
            self.add_at(&duplicate.place, duplicate.level, rule, duplicate.message, advice);
        }
        Ok(Inspected::default())
    }

    fn inspect_inline(&mut self, dockerfile: &Inline) -> Result<()> {
        let text = dockerfile.text.as_bytes();
        let start = &dockerfile.place;
        let found = dockerfile::check(text, self.strict).map_err(|error| {
            let (path, line) = (start.path.display(), start.line);
            WrongKind(format!(
                "{path}:{line}: dockerfile_inline is not a Dockerfile: {}",
                error.why
            ))
        })?;
        let mut positions = Positions::new(text);
        for finding in found {
            let mut place = start.clone();
            if let Some(indent) = dockerfile.indent {
                let (line, column) = positions.of(finding.at);
                (place.line, place.column) = (start.line + line, indent + column);
            }
            let level = finding.rule.level(self.strict);
            self.add_at(&place, level, finding.rule, finding.message, finding.advice);
        }
        Ok(())
    }

    /// Adds a finding in a compose file or bake file, which `--fix` leaves alone.
    fn add_at(&mut self, place: &Place, level: Level, rule: Rule, message: String, advice: &str) {
        self.findings.push(Finding {
            path: place.path.to_string_lossy().into_owned(),
            line: place.line,
            column: place.column,
            level: if self.strict { Level::Error } else { level },
            rule,
            message,
            advice: advice.to_owned(),
            fixed: false,
        });
    }
}
