//! Reads a Dockerfile as BuildKit does: its lines, instructions, flags and variables.

mod expand;
mod fields;
mod flags;
mod instruction;
mod joined;
mod pattern;
mod unreadable;
mod words;

pub(crate) use self::expand::{Value, expand};
pub(crate) use self::fields::fields;
pub(crate) use self::instruction::{Dockerfile, Instruction, Kind, from_words, read_trigger};
pub(crate) use self::unreadable::Unreadable;
pub(crate) use self::words::{arg_pairs, env_pairs, words_or_list};

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The kinds of builders that read a Dockerfile. They do not agree about everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    BuildKit,
    /// Docker's builder before BuildKit.
    Legacy,
    /// The builder of buildah and podman.
    Buildah,
}

/// A Dockerfile's text, with every byte where the file has it.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) text: String,
    /// How many bytes of the file stand in front of the text: those of a byte order mark.
    pub(crate) offset: usize,
    /// Where its lines end.
    newlines: Vec<usize>,
}

impl Text {
    /// Decodes a file. Bytes that are not UTF-8, in a comment for instance, become `?`, so that all
    /// others stay in place.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let offset = if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        let bytes = &bytes[offset..];
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '?'));
        }
        let newlines = text.match_indices('\n').map(|(at, _)| at).collect();
        Text { text, offset, newlines }
    }

    /// Returns the line that a byte of the text is in, from 1 on.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.newlines.partition_point(|newline| *newline < at) + 1
    }

    /// Reads all instructions.
    ///
    /// # Errors
    /// BuildKit would refuse the file.
    pub(crate) fn read(&self) -> Result<Dockerfile<'_>, Unreadable> {
        instruction::read(&self.text)
    }
}
