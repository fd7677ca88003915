//! Compose: `docker compose`, `docker-compose`, `podman-compose`.

use std::ffi::OsString;

use crate::command::builder::BuilderUse;
use crate::command::call::{Call, Known};
use crate::command::client::Client;
use crate::command::engine::Engine;
use crate::command::options::{Names, Valued, operands, skip_options};
use crate::command::task::{ComposeOrBake, Given, Task, Tool};

/// Global options that take a value: those of `docker compose`, and those of docker-compose 1.
const VALUED: Valued = Valued::Only(Names {
    short: "fpcH",
    long: &[
        "ansi",
        "context",
        "env-file",
        "file",
        "host",
        "log-level",
        "parallel",
        "profile",
        "progress",
        "project-directory",
        "project-name",
        "tlscacert",
        "tlscert",
        "tlskey",
        "workdir",
    ],
});
const BUILD_VALUED: Valued = Valued::Only(Names {
    short: "m",
    long: &["build-arg", "builder", "memory", "progress", "provenance", "sbom", "ssh"],
});

pub(super) fn recognize(call: &Call<'_>) -> Option<Known> {
    match call.name {
        "docker-compose" => Some(standalone(call, Engine::Docker)),
        "podman-compose" => Some(standalone(call, Engine::Podman)),
        _ => plugin(call),
    }
}

/// Recognizes `docker compose`.
fn plugin(call: &Call<'_>) -> Option<Known> {
    let compose = call.client_call.as_ref().filter(|it| it.verb == Some("compose"))?;
    let called = format!("{} compose", call.name);
    let several = read(&called, compose.rest, call.position(compose.rest))?;
    let builder = compose.builder.clone().with_words(compose.rest);
    Some(call.known(compose.client.clone(), Task::ComposeOrBake(several), builder))
}

/// Reads a call of a program that is compose alone.
fn standalone(call: &Call<'_>, engine: Engine) -> Known {
    let globals = match engine {
        Engine::Docker => docker_options(call.arguments),
        _ => Vec::new(),
    };
    let client = Client::with_wrappers(&call.wrappers, engine, engine.client().into(), globals);
    let task = read(call.program, call.arguments, call.position(call.arguments))
        .map_or(Task::Other { push_or_run_verb: None }, Task::ComposeOrBake);
    call.known(client, task, BuilderUse::among(call.arguments))
}

/// Returns those global options of docker-compose that docker has, too: they choose the engine.
fn docker_options(words: &[&str]) -> Vec<OsString> {
    const SHARED: [&str; 9] =
        ["H", "host", "c", "context", "tls", "tlscacert", "tlscert", "tlskey", "tlsverify"];
    let mut options = Vec::new();
    skip_options(words, VALUED, |opt| {
        if SHARED.contains(&opt.name) {
            let dashes = if opt.name.len() == 1 { "-" } else { "--" };
            options.push(OsString::from(format!("{dashes}{}", opt.name)));
            options.extend(opt.value.map(OsString::from));
        }
    });
    options
}

/// Reads the words after `docker compose` or `docker-compose`, which begin at this position of the
/// build command. Returns `None` without a subcommand.
fn read(called: &str, words: &[&str], position: usize) -> Option<ComposeOrBake> {
    let mut given = Vec::new();
    let at = skip_options(words, VALUED, |opt| given.push(Given::of(opt, VALUED)));
    let subcommand = (*words.get(at)?).to_owned();
    let rest = &words[at + 1..];
    let named = operands(rest, BUILD_VALUED, |opt| given.push(Given::of(opt, BUILD_VALUED)));
    Some(ComposeOrBake {
        tool: Tool::Compose,
        called: called.to_owned(),
        subcommand,
        options_at: position,
        at: position + at,
        named: named.iter().map(|&at| rest[at].to_owned()).collect(),
        named_at: named.iter().map(|named| position + at + 1 + named).collect(),
        given,
    })
}
