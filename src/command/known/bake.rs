//! `docker buildx bake`.

use crate::command::call::{Call, Known};
use crate::command::options::{Names, Opt, Valued, operands};
use crate::command::output::goes_to_registry;
use crate::command::task::{ComposeOrBake, Task, Tool};

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
    Some(call.known(bake.client.clone(), Task::ComposeOrBake(read(bake.rest)), builder))
}

/// Reads the words after `bake`.
fn read(words: &[&str]) -> ComposeOrBake {
    let mut pushes = false;
    let named = operands(words, VALUED, |opt| match opt.name {
        "push" => pushes = opt.is_on(),
        "set" => pushes |= sets_registry_output(opt),
        _ => {}
    });
    ComposeOrBake {
        tool: Tool::Bake,
        called: "docker buildx".to_owned(),
        subcommand: "bake".to_owned(),
        named,
        parallel: None,
        pushes,
    }
}

/// Recognizes `--set *.output=type=registry`.
fn sets_registry_output(set: Opt<'_>) -> bool {
    let output = set.value.and_then(|value| Some(value.split_once("output=")?.1));
    output.is_some_and(goes_to_registry)
}
