//! The flags of an instruction, as BuildKit's `extractBuilderFlags` takes them out of its line.
//!
//! BuildKit looks at bytes and not at characters: the second byte of a no-break space is a blank
//! for it, and ends a flag.

use super::joined::Joined;

/// A word in front of an instruction's arguments that begins with `--`.
#[derive(Debug)]
pub(crate) struct Flag {
    /// The word without its dashes and quotes.
    pub(crate) text: String,
    /// Its first byte in the file.
    pub(crate) at: usize,
    /// Where its value can be extended in the file. `None` if it ends within a character.
    pub(crate) end: Option<usize>,
}

/// Reads the flags from this byte of the line on. Returns them with where the arguments begin.
pub(crate) fn read(text: &str, joined: &Joined, start: usize) -> (Vec<Flag>, usize) {
    let bytes = joined.line.as_bytes();
    let mut flags = Vec::new();
    let mut at = start;
    loop {
        at += bytes[at..].iter().take_while(|byte| is_space(**byte)).count();
        if !bytes[at..].starts_with(b"--") {
            return (flags, at);
        }
        let word = Word::read(bytes, at + 2);
        let extended = match word.closing_quote {
            Some(quote) => joined.position(quote),
            None => joined.position_behind(word.end),
        };
        let flag = Flag {
            text: String::from_utf8_lossy(&word.bytes).into_owned(),
            at: joined.position(at),
            end: text.is_char_boundary(extended).then_some(extended),
        };
        at = word.end;
        // A lone `--` ends the flags.
        if flag.text.is_empty() {
            return (flags, at);
        }
        flags.push(flag);
    }
}

struct Word {
    /// Without quotes.
    bytes: Vec<u8>,
    end: usize,
    /// The last byte, if it closes quotes around the whole word or the whole value.
    closing_quote: Option<usize>,
}

impl Word {
    /// Reads a word: quotes go away, and a backslash makes the next byte an ordinary one.
    fn read(line: &[u8], start: usize) -> Self {
        let (mut bytes, mut quote, mut at) = (Vec::new(), None, start);
        let (mut value, mut opened, mut closed) = (None, None, None);
        while let Some(&byte) = line.get(at) {
            match (quote, byte) {
                (None, _) if is_space(byte) => break,
                (Some(open), _) if byte == open => {
                    quote = None;
                    closed = closed.or(Some(at));
                }
                (None, b'"' | b'\'') => {
                    quote = Some(byte);
                    opened = opened.or(Some(at));
                }
                (_, b'\\') => {
                    at += 1;
                    bytes.extend(line.get(at));
                }
                _ => bytes.push(byte),
            }
            at += 1;
            value = value.or_else(|| (byte == b'=').then_some(at));
        }
        let end = at.min(line.len());
        let is_quoted = opened.is_some_and(|opened| opened == start || value == Some(opened));
        let closing_quote = closed.filter(|closed| is_quoted && closed + 1 == end);
        Word { bytes, end, closing_quote }
    }
}

/// Go's `unicode.IsSpace` of a byte.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0x85 | 0xA0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the flags in this line, and the arguments.
    fn split(line: &str) -> (Vec<String>, &str) {
        let (flags, start) = read(line, &Joined::read(line, 0, '`'), 0);
        (flags.into_iter().map(|flag| flag.text).collect(), &line[start..])
    }

    #[test]
    fn flags_lose_their_quotes_and_end_where_buildkit_ends_them() {
        let flags = |line: &str| split(line).0;
        assert_eq!(split("--a --b=\"c d\" e --f"), (vec!["a".into(), "b=c d".into()], "e --f"));
        assert_eq!(split("--a -- --b"), (vec!["a".into()], " --b"));
        assert_eq!(flags("--\"a b\"=c\\ d"), ["a b=c d"]);
        assert_eq!(flags("--a=b\\"), ["a=b"]);
        assert_eq!(split("--a=b\u{a0}c"), (vec!["a=b\u{fffd}".into()], "c"));
    }

    #[test]
    fn flags_are_extended_within_the_quotes_around_everything() {
        let ends = |line: &str| {
            let (flags, _) = read(line, &Joined::read(line, 0, '`'), 0);
            flags.into_iter().map(|flag| flag.end).collect::<Vec<_>>()
        };
        assert_eq!(ends("--a=b c"), [Some(5)]);
        assert_eq!(ends("--a=\"b c\""), [Some(8)]);
        assert_eq!(ends("--\"a=b c\""), [Some(8)]);
        assert_eq!(ends("--\"a\"=b"), [Some(7)]);
        assert_eq!(ends("--a=b,\"c\""), [Some(9)]);
        assert_eq!(ends("--a=b\u{a0}c"), [None]);
    }
}
