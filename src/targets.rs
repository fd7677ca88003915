//! What compose and bake build: one target for each service or bake target, with its tags.
//!
//! The tools themselves are asked, with the words of the build command, so that files, profiles,
//! variables and overrides count as they do in the build. Each tool is a file below this one.

pub(crate) mod bake;
mod compose;
mod compose1;
pub(crate) mod equivalent;
mod target;

use std::ffi::OsString;
use std::path::Path;

pub(crate) use self::target::Target;
use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use crate::command::{Client, Command, ComposeOrBake, Tool, describe};
use crate::image::{ANSWER_WITHIN, excerpt};
use crate::interpreter;
use crate::reference::Tag;
use crate::spawn;

/// Returns what a call of compose or bake builds, or `None` if the tool cannot be asked.
///
/// # Errors
/// The tool fails, so the build would fail, too. The command builds nothing. A target has no tag,
/// or makes no image.
pub(crate) fn find(command: &Command, call: &ComposeOrBake) -> Result<Option<Vec<Target>>> {
    let Some(client) = command.client() else { return Ok(None) };
    let question = Question { command, call, client };
    question.refuse_dry_runs()?;
    question.refuse_file_from_stdin()?;
    let targets = match call.tool {
        Tool::Bake => bake::find(&question)?,
        Tool::Compose if call.is_podmans() => return Ok(None),
        Tool::Compose if question.is_compose1() => compose1::find(&question)?,
        Tool::Compose => compose::find(&question)?,
    };
    if targets.is_empty() {
        bail!(
            "'{} {}' builds no image: nothing that it names has anything to build",
            call.called,
            call.subcommand
        );
    }
    Ok(Some(targets))
}

/// Returns each two targets that build one image, and that image.
pub(crate) fn pairs_of_one_image(
    targets: &[Target],
) -> impl Iterator<Item = (&Target, &Target, &Tag)> {
    targets.iter().enumerate().flat_map(|(at, one)| {
        targets[..at].iter().filter_map(move |other| {
            let shared = one.tags.iter().find(|tag| other.tags.contains(tag))?;
            Some((other, one, shared))
        })
    })
}

/// A question to the tool of a build command.
struct Question<'a> {
    command: &'a Command,
    call: &'a ComposeOrBake,
    client: &'a Client,
}

impl Question<'_> {
    fn refuse_dry_runs(&self) -> Result<()> {
        let checks = ["dry-run", "check", "print"].into_iter().find(|name| self.call.has(name));
        let checks = checks.map(|name| format!("--{name}"));
        let calls = self.call.value(&["call"]).filter(|it| *it != "build");
        let lists = self.call.value(&["list"]).map(|what| format!("--list={what}"));
        let option = checks.or_else(|| calls.map(|what| format!("--call={what}"))).or(lists);
        match option {
            None => Ok(()),
            Some(option) => bail!("the build command builds no image: {option}"),
        }
    }

    fn refuse_file_from_stdin(&self) -> Result<()> {
        let ComposeOrBake { called, subcommand, .. } = self.call;
        let files = self.call.given.iter().filter(|it| matches!(&*it.name, "f" | "file"));
        if files.filter_map(|it| it.value.as_deref()).any(|file| file == "-") {
            bail!(
                "'{called} {subcommand}' reads its file from stdin, which buildlock cannot read a \
                 second time; put it in a file"
            );
        }
        Ok(())
    }

    /// Returns whether the tool is docker-compose 1, which is a Python script.
    fn is_compose1(&self) -> bool {
        let is_standalone = Path::new(&self.call.called).ends_with("docker-compose");
        is_standalone && which::which(&self.call.called).is_ok_and(|it| interpreter::is_script(&it))
    }

    /// Returns the words of the build command before its subcommand.
    fn words_before(&self) -> Vec<OsString> {
        self.command.words()[..self.call.at].to_vec()
    }

    /// Runs the tool with these words, and returns what it prints.
    ///
    /// That holds secrets, such as the values of variables. So it is not logged.
    fn ask(&self, words: &[OsString]) -> Result<Vec<u8>> {
        let shown = format!("'{}'", describe(words));
        let [program, arguments @ ..] = words else { bail!("no program to ask") };
        let asked = duct::cmd(program, arguments);
        let output = spawn::output_within(asked, ANSWER_WITHIN);
        let output = output.map_err(|why| anyhow!(why.about(&shown)))?;
        if !output.status.success() {
            bail!("cannot find out what is built: {shown} failed: {}", last_lines(&output.stderr));
        }
        Ok(output.stdout)
    }

    /// Runs the tool with these words, and returns the JSON that it prints.
    fn ask_for_json(&self, words: &[OsString]) -> Result<Value> {
        serde_json::from_slice(&self.ask(words)?).map_err(|error| {
            anyhow!("cannot find out what is built: '{}' printed no JSON: {error}", describe(words))
        })
    }

    /// Returns whether the call builds this service: it names it, or names none.
    fn is_selected(&self, service: &str) -> bool {
        self.call.named.is_empty() || self.call.named.iter().any(|name| name == service)
    }
}

/// Returns the end of what a tool says, where its error stands. Warnings come before it.
fn last_lines(text: &[u8]) -> String {
    const MOST: usize = 3;
    let text = String::from_utf8_lossy(text);
    let is_error = |line: &&str| !line.trim().is_empty() && !line.contains("level=warning");
    let lines: Vec<&str> = text.lines().filter(is_error).collect();
    excerpt(lines[lines.len().saturating_sub(MOST)..].join("\n").as_bytes())
}

/// Reads the tags of a target. `kind` is what the tool calls a target.
fn tags<'a>(kind: &str, name: &str, tags: impl IntoIterator<Item = &'a str>) -> Result<Vec<Tag>> {
    let mut all: Vec<Tag> = Vec::new();
    for text in tags {
        let tag: Tag =
            text.parse().map_err(|error| anyhow!("the tag '{text}' of {kind} {name}: {error}"))?;
        if !all.contains(&tag) {
            all.push(tag);
        }
    }
    Ok(all)
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Returns the words after this prefix among the values of an object, as in
/// `{"base": "target:base"}`.
fn values_after<'a>(prefix: &str, object: &'a Value) -> impl Iterator<Item = &'a str> {
    let values = object.as_object().into_iter().flat_map(|object| object.values());
    values.filter_map(move |value| value.as_str()?.strip_prefix(prefix))
}
