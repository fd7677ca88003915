//! Joins the lines of an instruction.

use std::ops::Range;

/// What separates the words of an instruction for BuildKit.
pub(crate) const BLANKS: [char; 5] = ['\t', '\x0B', '\x0C', '\r', ' '];

/// An instruction's lines as one, without the comments and empty lines between them.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) line: String,
    /// The position in the file of each byte of `line`.
    positions: Vec<usize>,
    /// Behind the last of the lines in the file.
    pub(crate) end: usize,
}

impl Joined {
    /// Joins the lines from this byte on. A line that says nothing, where an instruction could
    /// begin, is joined to nothing.
    pub(crate) fn read(text: &str, start: usize, escape: char) -> Self {
        let mut joined = Joined { line: String::new(), positions: Vec::new(), end: start };
        let mut goes_on = false;
        while joined.end < text.len() {
            let (mut this, next) = line(text, joined.end);
            joined.end = next;
            let without_blanks = text[this.clone()].trim_start();
            if without_blanks.is_empty() || without_blanks.starts_with('#') {
                if goes_on { continue } else { break }
            }
            if !goes_on {
                this.start = this.end - without_blanks.len();
            }
            let continued = continuation(&text[this.clone()], escape);
            let end = continued.map_or(this.end, |length| this.start + length);
            joined.line.push_str(&text[this.start..end]);
            joined.positions.extend(this.start..end);
            goes_on = continued.is_some();
            if !goes_on {
                break;
            }
        }
        joined
    }

    /// Returns where a byte of the joined line stands in the file. Behind the last byte, that is
    /// the place where more can be written.
    pub(crate) fn position(&self, at: usize) -> usize {
        match self.positions.get(at) {
            Some(position) => *position,
            None => self.positions.last().map_or(self.end, |last| last + 1),
        }
    }

    /// Returns where more can be written behind the byte before this one.
    pub(crate) fn position_behind(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(self.position(at), |last| self.position(last) + 1)
    }
}

/// Returns the line from this byte on, without its end, and where the next one begins.
pub(crate) fn line(text: &str, at: usize) -> (Range<usize>, usize) {
    let newline = text[at..].find('\n').map(|length| at + length);
    let line = text[at..newline.unwrap_or(text.len())].trim_end_matches('\r');
    (at..at + line.len(), newline.map_or(text.len(), |newline| newline + 1))
}

/// Returns how long a line is without its escape character, if it continues in the next one. An
/// escape character that is escaped itself does not count.
fn continuation(line: &str, escape: char) -> Option<usize> {
    let rest = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!rest.ends_with(escape)).then_some(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(text: &str, escape: char) -> String {
        Joined::read(text, 0, escape).line
    }

    #[test]
    fn lines_are_joined_by_the_escape_character_without_what_stands_between() {
        assert_eq!(joined("RUN a `\n# c\n\n  <<EOF `  \n b\nEOF\n", '`'), "RUN a   <<EOF  b");
        assert_eq!(joined(" c\\\r\nmd [ \\\n\n # c\n 1 ]\r\nRUN y\n", '\\'), "cmd [  1 ]");
        assert_eq!(
            joined("pip install \\\n  # why; npx\n\n  --no-cache-dir a#b", '\\'),
            "pip install   --no-cache-dir a#b"
        );
        assert_eq!(joined("RUN a \\\n\u{85}# c\n\u{3000}\n\u{a0}b\n", '\\'), "RUN a \u{a0}b");
    }

    #[test]
    fn escaped_escape_character_ends_the_line() {
        assert_eq!(joined("RUN echo \\\\\nRUN y\n", '\\'), "RUN echo \\\\");
        assert_eq!(joined("RUN echo \\\nRUN y\n", '`'), "RUN echo \\");
    }

    #[test]
    fn blanks_in_front_of_an_instruction_are_left_out() {
        assert_eq!(joined("\u{2003}\t RUN a\u{a0}b\n", '\\'), "RUN a\u{a0}b");
        assert_eq!(joined("\u{a0}\t# a\nRUN b\n", '\\'), "");
    }

    #[test]
    fn every_byte_keeps_its_position() {
        let joined = Joined::read(" ab\\\n# c\nd\n", 0, '\\');
        assert_eq!(joined.line, "abd");
        assert_eq!([0, 1, 2, 3].map(|at| joined.position(at)), [1, 2, 9, 10]);
        assert_eq!([2, 3].map(|at| joined.position_behind(at)), [3, 10]);
        assert_eq!(joined.end, 11);
    }
}
