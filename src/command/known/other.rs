//! An engine's client that does not build.

use crate::command::call::{Call, Known};
use crate::command::task::Task;

pub(super) fn recognize(call: &Call<'_>) -> Option<Known> {
    let other = call.client_call.as_ref()?;
    let builder = other.builder.clone().with_words(other.rest);
    let task = Task::Other { push_or_run_verb: push_or_run_verb(other.arguments) };
    Some(call.known(other.client.clone(), task, builder))
}

/// Returns the subcommand if it pushes an image, or runs one.
fn push_or_run_verb(words: &[&str]) -> Option<String> {
    let length = match words {
        ["push" | "run", ..] => 1,
        ["image" | "manifest", "push", ..] | ["container", "run", ..] => 2,
        _ => return None,
    };
    Some(words[..length].join(" "))
}
