//! `docker buildx bake`.

use crate::command::call::{Call, Known};
use crate::command::options::{Names, Valued, operands};
use crate::command::task::{ComposeOrBake, Given, Task, Tool};

const VALUED: Valued = Valued::Only(Names {
    short: "f",
    long: &[
        "allow",
        "builder",
        "call",
        "file",
        "list",
        "metadata-file",
        "progress",
        "provenance",
        "sbom",
        "set",
        "var",
    ],
});

pub(super) fn recognize(call: &Call<'_>) -> Option<Known> {
    let bake = call
        .client_call
        .as_ref()
        .filter(|it| it.builder.is_buildx && matches!(it.verb, Some("bake" | "f")))?;
    let builder = bake.builder.clone().with_words(bake.rest);
    let task = Task::ComposeOrBake(read(bake.rest, call.position(bake.rest)));
    Some(call.known(bake.client.clone(), task, builder))
}

/// Reads the words after `bake`, which begin at this position of the build command.
fn read(words: &[&str], position: usize) -> ComposeOrBake {
    let mut given = Vec::new();
    let named = operands(words, VALUED, |opt| given.push(Given::of(opt, VALUED)));
    ComposeOrBake {
        tool: Tool::Bake,
        called: "docker buildx".to_owned(),
        subcommand: "bake".to_owned(),
        options_at: position,
        at: position - 1,
        named: named.iter().map(|&at| words[at].to_owned()).collect(),
        named_at: named.iter().map(|at| position + at).collect(),
        given,
    }
}
