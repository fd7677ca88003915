//! What of a Dockerfile the parser should not see.
//!
//! parse-dockerfile knows a here-document only as the first word of a RUN, a flag's value only up
//! to the first blank, and blanks in front of a line only if they are ASCII and no directive stands
//! behind them; and it refuses instructions that BuildKit takes (`ENTRYPOINT []`). So it gets a
//! copy in which here-documents and what lint does not need are comments, blanks between quotes are
//! not blank, and those in front of a line are plain. The copy has the same length: every position
//! means the same in both. Lines are joined, and here-documents found, as BuildKit does it
//! (<https://github.com/moby/buildkit/blob/v0.30/frontend/dockerfile/parser/parser.go>).

use std::ops::Range;

/// The copy, and where the here-documents' lines are.
pub struct Masked {
    /// As long as the original.
    pub text: String,
    /// The lines of each here-document with the one that ends it.
    pub bodies: Vec<Range<usize>>,
}

/// A here-document that begins at this byte, and never ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Unterminated(pub usize);

/// Makes the copy. `escape` is what the escape directive says.
///
/// # Errors
/// A here-document has no end.
pub fn mask(text: &str, escape: u8) -> Result<Masked, Unterminated> {
    let bytes = text.as_bytes();
    let mut copy = bytes.to_vec();
    let mut bodies = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let instruction = join(text, at, escape, &mut copy);
        at = instruction.end;
        let (keyword, heredocs) = instruction.words(&mut copy);
        for heredoc in heredocs {
            let body = heredoc.body(text, at).ok_or(Unterminated(heredoc.at))?;
            at = body.end;
            comment_out(&mut copy[body.clone()]);
            bodies.push(body);
        }
        if UNNEEDED.contains(&&*keyword) {
            comment_out(&mut copy[start..instruction.end]);
        }
    }
    // Only whole lines and whole characters were replaced.
    let text = String::from_utf8(copy).unwrap_or_else(|_| text.to_owned());
    Ok(Masked { text, bodies })
}

/// They say nothing of mounts, nor of variables.
const UNNEEDED: &[&[u8]] = &[
    b"ADD",
    b"CMD",
    b"COPY",
    b"ENTRYPOINT",
    b"EXPOSE",
    b"HEALTHCHECK",
    b"LABEL",
    b"MAINTAINER",
    b"SHELL",
    b"STOPSIGNAL",
    b"USER",
    b"VOLUME",
];

/// What may stand behind ONBUILD and is read, or refused by BuildKit.
const ON_BUILD: &[&[u8]] =
    &[b"ADD", b"ARG", b"COPY", b"ENV", b"FROM", b"MAINTAINER", b"ONBUILD", b"RUN", b"WORKDIR"];

/// Where the line behind `at` begins, and where this one ends without its end of line.
pub fn line(bytes: &[u8], at: usize) -> (Range<usize>, usize) {
    let newline = bytes[at..].iter().position(|&b| b == b'\n').map(|n| at + n);
    let next = newline.map_or(bytes.len(), |n| n + 1);
    let mut end = newline.unwrap_or(bytes.len());
    while end > at && bytes[end - 1] == b'\r' {
        end -= 1;
    }
    (at..end, next)
}

/// Is there nothing in this line, or only a comment?
pub fn says_nothing(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// Makes the blanks in front of a line plain ones, and says where they end. Those in front of a
/// comment move into it: a directive's `#` must be the first for the parser.
fn plain_blanks(text: &str, line: Range<usize>, copy: &mut [u8]) -> usize {
    let start = line.start;
    let behind = line.end - text[line].trim_start().len();
    copy[start..behind].fill(b' ');
    if copy.get(behind) == Some(&b'#') {
        copy.swap(start, behind);
    }
    behind
}

/// The escape character at the end of a line that goes on in the next one. One that is escaped
/// itself does not count.
fn continuation(line: &[u8], escape: u8) -> Option<(usize, bool)> {
    let end = line.iter().rposition(|b| !b" \t".contains(b))?;
    (line[end] == escape).then(|| (end, end > 0 && line[end - 1] == escape))
}

/// An instruction's bytes in one line, with their positions.
struct Instruction {
    bytes: Vec<u8>,
    positions: Vec<usize>,
    end: usize,
}

struct Heredoc {
    /// Where its `<<` is.
    at: usize,
    delimiter: Vec<u8>,
    strips_tabs: bool,
}

fn join(text: &str, start: usize, escape: u8, copy: &mut [u8]) -> Instruction {
    let bytes = text.as_bytes();
    let mut joined = Instruction { bytes: Vec::new(), positions: Vec::new(), end: start };
    let mut goes_on = false;
    let mut last = start;
    while joined.end < bytes.len() {
        let (mut line, next) = line(bytes, joined.end);
        joined.end = next;
        let nothing = says_nothing(&text[line.clone()]);
        if nothing || !goes_on {
            line.start = plain_blanks(text, line.clone(), copy);
        }
        if nothing {
            if goes_on {
                continue;
            }
            break;
        }
        let continued = continuation(&bytes[line.clone()], escape);
        let end = match continued {
            Some((at, false)) => {
                last = line.start + at;
                last
            }
            Some((at, true)) => {
                // The parser does not look at what is before it.
                copy[line.start + at] = b'x';
                line.end
            }
            None => line.end,
        };
        joined.bytes.extend(&bytes[line.start..end]);
        joined.positions.extend(line.start..end);
        goes_on = matches!(continued, Some((_, false)));
        if !goes_on {
            break;
        }
    }
    if goes_on {
        // Nothing comes any more, which the parser does not forgive.
        copy[last] = b' ';
    }
    joined
}

impl Instruction {
    /// What it is (behind an ONBUILD), and the here-documents among its words. Hides the blanks in
    /// quoted flags on the way.
    fn words(&self, copy: &mut [u8]) -> (Vec<u8>, Vec<Heredoc>) {
        let mut words = Words { bytes: &self.bytes, at: 0 };
        let mut next =
            || words.next().map_or(Vec::new(), |word| self.bytes[word].to_ascii_uppercase());
        let mut keyword = next();
        if keyword == b"ONBUILD" {
            keyword = next();
            // BuildKit does not look at it before another build starts from this image.
            if !ON_BUILD.contains(&&*keyword) {
                return (UNNEEDED[0].to_vec(), Vec::new());
            }
        }
        if !matches!(&*keyword, b"RUN" | b"COPY" | b"ADD") {
            return (keyword, Vec::new());
        }
        let mut in_flags = true;
        let mut found = Vec::new();
        for word in words {
            in_flags = in_flags && self.bytes[word.clone()].starts_with(b"--");
            if in_flags {
                for at in word {
                    if self.bytes[at].is_ascii_whitespace() {
                        copy[self.positions[at]] = b'_';
                    }
                }
            } else {
                if self.bytes[word.clone()].starts_with(b"<<") {
                    // The parser would take it for its own kind, even a `<<<`.
                    copy[self.positions[word.start]] = b'_';
                }
                found.extend(self.heredoc(word));
            }
        }
        (keyword, found)
    }

    /// `<<EOF`, `3<<-"EOF"`.
    fn heredoc(&self, word: Range<usize>) -> Option<Heredoc> {
        let digits = self.bytes[word.clone()].iter().take_while(|b| b.is_ascii_digit()).count();
        let start = word.start + digits;
        let rest = self.bytes[start..word.end].strip_prefix(b"<<")?;
        let (rest, strips_tabs) = match rest.strip_prefix(b"-") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let delimiter = unquoted(rest);
        if delimiter.is_empty() || rest.contains(&b'<') {
            return None;
        }
        Some(Heredoc { at: self.positions[start], delimiter, strips_tabs })
    }
}

impl Heredoc {
    /// From the line behind the instruction to the end of the line that ends it.
    fn body(&self, text: &str, start: usize) -> Option<Range<usize>> {
        let bytes = text.as_bytes();
        let mut at = start;
        while at < bytes.len() {
            let (line, next) = line(bytes, at);
            let mut line = &bytes[line];
            while let Some(rest) = line.strip_prefix(b"\t").filter(|_| self.strips_tabs) {
                line = rest;
            }
            if line == self.delimiter {
                return Some(start..next);
            }
            at = next;
        }
        None
    }
}

/// Makes every line that is not empty a comment.
fn comment_out(lines: &mut [u8]) {
    for line in lines.split_mut(|&b| b == b'\n') {
        for byte in line {
            if *byte != b'\r' {
                *byte = b'#';
            }
        }
    }
}

fn unquoted(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut quote = None;
    let mut bytes = word.iter().copied();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None | Some(b'"'), b'\\') => plain.extend(bytes.next()),
            _ => plain.push(byte),
        }
    }
    plain
}

/// Words between blanks that are not quoted.
struct Words<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for Words<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.at + self.bytes[self.at..].iter().position(|b| !is_blank(*b))?;
        let mut quote = None;
        let mut at = start;
        while let Some(&byte) = self.bytes.get(at) {
            match (quote, byte) {
                (None, _) if is_blank(byte) => break,
                (Some(open), _) if byte == open => quote = None,
                (None, b'"' | b'\'') => quote = Some(byte),
                (None | Some(b'"'), b'\\') => at += 1,
                _ => {}
            }
            at += 1;
        }
        self.at = at.min(self.bytes.len());
        Some(start..self.at)
    }
}

fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0B
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        let masked = mask(text, b'\\').unwrap().text;
        assert_eq!(masked.len(), text.len());
        masked
    }

    #[test]
    fn here_documents_become_comments() {
        assert_eq!(
            masked("RUN cat <<EOF\nRUN x\r\n\nEOF\nRUN y\n"),
            "RUN cat _<EOF\n#####\r\n\n###\nRUN y\n"
        );
        assert_eq!(
            masked("run a <<-'A b' 3<<\"B\"\nx\n\tA b\nB\nFROM x"),
            "run a _<-'A b' 3<<\"B\"\n#\n####\n#\nFROM x"
        );
        assert_eq!(masked("ONBUILD RUN <<é\nä\né\n"), "ONBUILD RUN _<é\n##\n##\n");
    }

    #[test]
    fn what_is_no_here_document_stays() {
        assert_eq!(masked("RUN <<<EOF cat\nRUN y\n"), "RUN _<<EOF cat\nRUN y\n");
        for text in [
            "RUN cat '<<EOF'\nRUN y\n",
            "ENV a=<<EOF\nRUN y\n",
            "# RUN <<EOF\nRUN y\n",
            "RUN [\"a\", \"<<EOF\"]\n",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn what_lint_does_not_need_becomes_a_comment() {
        assert_eq!(masked("FROM a\nENTRYPOINT []\nRUN y\n"), "FROM a\n#############\nRUN y\n");
        assert_eq!(
            masked(" onbuild c\\\r\nmd [ \\\n\n # c\n 1 ]\r\nRUN y\n"),
            "###########\r\n######\n\n####\n####\r\nRUN y\n"
        );
        assert_eq!(masked("COPY \\\n<<A /\nRUN x\nA\nRUN y\n"), "######\n#####\n#####\n#\nRUN y\n");
    }

    #[test]
    fn blanks_in_front_of_lines_are_plain_and_those_of_comments_are_in_them() {
        assert_eq!(masked("\u{a0}\t# escape=`\n"), "#    escape=`\n");
        assert_eq!(masked("\u{2003}RUN a\u{a0}b\n"), "   RUN a\u{a0}b\n");
        assert_eq!(
            masked("RUN a \\\n\u{85}# c\n\u{3000}\n\u{a0}b\n"),
            "RUN a \\\n#   c\n   \n\u{a0}b\n"
        );
    }

    #[test]
    fn a_here_document_without_end_is_an_error() {
        assert_eq!(mask("FROM a\nRUN <<EOF\nEOF2\n", b'\\').err(), Some(Unterminated(11)));
    }

    #[test]
    fn lines_are_joined_as_the_escape_directive_has_it() {
        let text = "RUN a `\n# c\n\n  <<EOF `  \n b\nEOF\nRUN y\n";
        let there = "RUN a `\n# c\n\n  _<EOF `  \n b\n###\nRUN y\n";
        assert_eq!(mask(text, b'`').unwrap().text, there);
        assert_eq!(masked("RUN a \\\\\nRUN y\n"), "RUN a \\x\nRUN y\n");
    }

    #[test]
    fn blanks_in_quoted_flags_are_hidden() {
        assert_eq!(masked("RUN --a=\"b c\" 'd e'\n"), "RUN --a=\"b_c\" 'd e'\n");
    }
}
