//! The kinds of build command that buildlock knows.
//!
//! Each kind is a file below this one. A new kind is a new file and a line in [`KINDS`].

mod bake;
mod build;
mod compose;
mod other;

use std::ffi::OsString;

use super::call::{Call, Known};

/// Recognizes one kind of build command. Returns `None` for all others.
type Kind = fn(&Call<'_>) -> Option<Known>;

const KINDS: &[Kind] = &[
    build::recognize,
    compose::recognize,
    bake::recognize,
    // The last resort: an engine's client that does something else.
    other::recognize,
];

/// Recognizes the command `argv`. `words` is `argv` as text.
pub(super) fn recognize(argv: &[OsString], words: &[&str]) -> Option<Known> {
    let call = Call::read(argv, words)?;
    KINDS.iter().find_map(|recognize| recognize(&call))
}
