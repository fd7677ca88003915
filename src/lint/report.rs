//! Prints findings, as text and in the formats that machines read.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::finding::{Finding, Level, Rule};
use crate::cli::LintFormat;
use crate::visible::escaped;

/// Prints the findings.
pub(super) fn print(
    findings: &[&Finding],
    format: LintFormat,
    out: &mut impl Write,
) -> io::Result<()> {
    match format {
        LintFormat::Text => findings.iter().try_for_each(|finding| text(finding, out)),
        LintFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(findings)?),
        LintFormat::Github => unfixed(findings).try_for_each(|finding| github(finding, out)),
        LintFormat::Sarif => writeln!(out, "{}", serde_json::to_string_pretty(&sarif(findings))?),
    }
}

/// Returns the findings that still need attention.
fn unfixed<'a>(findings: &[&'a Finding]) -> impl Iterator<Item = &'a Finding> {
    findings.iter().copied().filter(|finding| !finding.fixed)
}

fn text(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let Finding { path, line, column, message, advice, .. } = finding;
    let (path, message) = (escaped(path), escaped(message));
    if finding.fixed {
        writeln!(out, "{path}:{line}:{column}: fixed: {message}")
    } else {
        let level = finding.level.name();
        writeln!(out, "{path}:{line}:{column}: {level}: {message}; {advice}")
    }
}

/// Prints a workflow command, escaped as in actions/toolkit (packages/core/src/command.ts).
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
        property(&escaped(&finding.path)),
        finding.line,
        finding.column,
        property(finding.rule.name()),
        data(&escaped(&format!("{}; {}", finding.message, finding.advice))),
    )
}

/// Returns the findings as SARIF,
/// <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>
fn sarif(findings: &[&Finding]) -> Value {
    let rules = Rule::ALL.map(|rule| {
        json!({
            "id": rule.name(),
            "shortDescription": { "text": rule.description() },
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
            "results": unfixed(findings).map(result).collect::<Vec<_>>(),
        }],
    })
}

/// Returns a path as a relative reference (RFC 3986), or as a URI if it is absolute.
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
