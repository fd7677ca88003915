//! Findings as text, and in the forms that machines read.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Finding, Level, Rule};
use crate::cli::LintFormat;
use crate::visible::escaped;

/// Prints what was found.
///
/// # Errors
/// Nobody takes the output.
pub(super) fn print(
    findings: &[Finding],
    format: LintFormat,
    out: &mut impl Write,
) -> io::Result<()> {
    match format {
        LintFormat::Text => findings.iter().try_for_each(|finding| text(finding, out)),
        LintFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(findings)?),
        LintFormat::Github => left(findings).try_for_each(|finding| github(finding, out)),
        LintFormat::Sarif => writeln!(out, "{}", serde_json::to_string_pretty(&sarif(findings))?),
    }
}

/// What was mended needs nobody's attention any more.
fn left(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(|finding| !finding.fixed)
}

fn text(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let Finding { path, line, column, message, advice, .. } = finding;
    let (path, message) = (escaped(path), escaped(message));
    match finding.fixed {
        true => writeln!(out, "{path}:{line}:{column}: fixed: {message}"),
        false => {
            let level = finding.level.name();
            writeln!(out, "{path}:{line}:{column}: {level}: {message}; {advice}")
        }
    }
}

/// Workflow commands, escaped as actions/toolkit does it (packages/core/src/command.ts).
fn github(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let command = match finding.level {
        Level::Error => "error",
        Level::Note => "notice",
    };
    writeln!(
        out,
        "::{command} file={},line={},col={},title={}::{}",
        property(&finding.path),
        finding.line,
        finding.column,
        property(finding.rule.name()),
        data(&escaped(&format!("{}; {}", finding.message, finding.advice))),
    )
}

/// <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>
fn sarif(findings: &[Finding]) -> Value {
    let rules = Rule::ALL.map(|rule| {
        json!({
            "id": rule.name(),
            "shortDescription": { "text": rule.describe() },
            "defaultConfiguration": { "level": rule.level(false).name() },
        })
    });
    let result = |finding: &Finding| {
        json!({
            "ruleId": finding.rule.name(),
            "level": finding.level.name(),
            "message": { "text": format!("{}; {}", finding.message, finding.advice) },
            "locations": [{
                "physicalLocation": {
                    "artifactLocation": { "uri": uri(&finding.path) },
                    "region": { "startLine": finding.line, "startColumn": finding.column },
                },
            }],
        })
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {
                "driver": {
                    "name": "buildlock",
                    "version": env!("CARGO_PKG_VERSION"),
                    "rules": rules,
                },
            },
            "columnKind": "unicodeCodePoints",
            "results": left(findings).map(result).collect::<Vec<_>>(),
        }],
    })
}

/// A path as a reference (RFC 3986); an absolute one becomes a URI.
fn uri(path: &str) -> String {
    let mut uri = String::from(if path.starts_with('/') { "file://" } else { "" });
    for byte in path.bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => uri.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => uri.push(char::from(byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Note => "note",
        }
    }
}

impl Rule {
    const ALL: [Rule; 5] =
        [Rule::Race, Rule::Mixed, Rule::Unknown, Rule::Variable, Rule::SameImage];

    /// What it is called in output and in comments that ignore it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Rule::Race => "cache-mount-race",
            Rule::Mixed => "cache-mount-mixed-sharing",
            Rule::Unknown => "cache-mount-unknown",
            Rule::Variable => "cache-mount-variable",
            Rule::SameImage => "compose-same-image",
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Rule::Race => "Builds that run at the same time break each other's cache mount",
            Rule::Mixed => "A cache mount is shared in one place and locked in another",
            Rule::Unknown => "A cache mount is shared, and it is not known what writes to it",
            Rule::Variable => "Whether a cache mount races depends on a variable of the build",
            Rule::SameImage => "Two services build one image",
        }
    }
}
