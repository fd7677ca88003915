//! Reads the instructions of a Dockerfile the way BuildKit does.
//!
//! BuildKit joins the lines of an instruction, drops the comments and empty lines between them, and
//! takes here-documents from the lines that follow
//! (<https://github.com/moby/buildkit/blob/v0.30/frontend/dockerfile/parser/parser.go>). Findings
//! and fixes need positions, so every byte of a joined line keeps its position in the file.

use std::ops::Range;

use super::flags::{self, Flag};
use super::joined::{BLANKS, Joined, line};
use super::unreadable::Unreadable;

/// A Dockerfile.
#[derive(Debug)]
pub(crate) struct Dockerfile<'a> {
    /// The character that continues a line (`# escape=`).
    pub(crate) escape: char,
    pub(crate) instructions: Vec<Instruction<'a>>,
}

/// An instruction with its lines joined.
#[derive(Debug)]
pub(crate) struct Instruction<'a> {
    pub(crate) kind: Kind,
    /// Whether it stands behind ONBUILD, and so is for the images built from this one.
    pub(crate) on_build: bool,
    /// Its first byte in the file.
    pub(crate) at: usize,
    pub(crate) flags: Vec<Flag>,
    /// The words behind the flags, without the here-documents' names.
    pub(crate) arguments: String,
    /// The text of each here-document.
    pub(crate) heredocs: Vec<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Add,
    Arg,
    Copy,
    Env,
    From,
    Run,
    Workdir,
    /// Says nothing about mounts, variables or other images.
    Other,
}

/// Instructions that say nothing about mounts, variables or other images.
const OTHER: [&str; 10] = [
    "CMD",
    "ENTRYPOINT",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
];

/// Reads all instructions.
///
/// # Errors
/// BuildKit would refuse the file.
pub(crate) fn read(text: &str) -> Result<Dockerfile<'_>, Unreadable> {
    let escape = escape(text)?;
    let mut in_stage = false;
    let instructions = instructions(text, escape, |instruction| match instruction.kind {
        Kind::From => {
            in_stage = true;
            Ok(())
        }
        Kind::Arg if !instruction.on_build => Ok(()),
        _ if in_stage => Ok(()),
        _ => Err(Unreadable::new(instruction.at, "FROM must come first")),
    })?;
    if in_stage {
        Ok(Dockerfile { escape, instructions })
    } else {
        Err(Unreadable::new(0, "it has no FROM"))
    }
}

/// Reads an `ONBUILD` trigger, as an image's configuration has it.
///
/// # Errors
/// BuildKit would refuse it.
pub(crate) fn read_trigger(text: &str) -> Result<Vec<Instruction<'_>>, Unreadable> {
    instructions(text, escape(text)?, |_| Ok(()))
}

fn instructions(
    text: &str,
    escape: char,
    mut check: impl FnMut(&Instruction<'_>) -> Result<(), Unreadable>,
) -> Result<Vec<Instruction<'_>>, Unreadable> {
    let mut instructions = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let joined = Joined::read(text, at, escape);
        at = joined.end;
        if !joined.line.trim().is_empty() {
            let instruction = instruction(text, &joined, &mut at)?;
            check(&instruction)?;
            instructions.push(instruction);
        }
    }
    Ok(instructions)
}

/// Returns the escape character, which a directive at the top of the file may change.
fn escape(text: &str) -> Result<char, Unreadable> {
    let mut seen = Vec::new();
    let mut escape = '\\';
    let mut at = 0;
    while at < text.len() {
        let (this, next) = line(text, at);
        let Some((name, value)) = directive(&text[this]) else { break };
        if seen.contains(&name) {
            return Err(Unreadable::new(at, format!("a second directive {name}")));
        }
        if name == "escape" {
            escape = match value {
                "\\" => '\\',
                "`" => '`',
                _ => return Err(Unreadable::new(at, "escape must be \\ or `")),
            };
        }
        seen.push(name);
        at = next;
    }
    Ok(escape)
}

/// Reads `# name=value`. Any other comment ends the directives.
fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let name = name.trim().to_ascii_lowercase();
    let value = value.trim();
    (["syntax", "escape", "check"].contains(&name.as_str()) && !value.is_empty())
        .then_some((name, value))
}

/// Reads one instruction, and moves `next` behind its here-documents.
fn instruction<'a>(
    text: &'a str,
    joined: &Joined,
    next: &mut usize,
) -> Result<Instruction<'a>, Unreadable> {
    let line = joined.line.as_str();
    let at = joined.position(line.len() - line.trim_start().len());
    let head = Head::read(text, joined);
    let kind = head.kind().map_err(|why| Unreadable { at, why })?;
    let words = if head.takes_heredocs() { heredocs(line) } else { Vec::new() };
    let mut bodies = Vec::new();
    for heredoc in &words {
        let body = heredoc.body(text, *next).ok_or_else(|| {
            let at = joined.position(heredoc.word.start);
            Unreadable::new(at, "this here-document has no end")
        })?;
        bodies.push(&text[body.text]);
        *next = body.end;
    }
    let arguments = without(line, head.end, words.iter().map(|heredoc| &heredoc.word));
    let needs_argument = matches!(kind, Kind::Arg | Kind::Env | Kind::From | Kind::Workdir);
    if needs_argument && !head.on_build && arguments.is_empty() {
        return Err(Unreadable::new(at, format!("{} needs an argument", head.keyword)));
    }
    let Head { on_build, flags, .. } = head;
    Ok(Instruction { kind, on_build, at, flags, arguments, heredocs: bodies })
}

/// What stands in front of an instruction's arguments.
struct Head<'l> {
    /// The keyword as the file has it.
    word: &'l str,
    /// The same in capitals.
    keyword: String,
    on_build: bool,
    flags: Vec<Flag>,
    /// Where the arguments begin in the line.
    end: usize,
}

impl<'l> Head<'l> {
    fn read(text: &str, joined: &'l Joined) -> Self {
        let (mut word, mut behind) = first_word(&joined.line, 0);
        let (mut flags, mut end) = flags::read(text, joined, behind);
        let on_build = word.eq_ignore_ascii_case("ONBUILD");
        if on_build {
            (word, behind) = first_word(&joined.line, end);
            (flags, end) = flags::read(text, joined, behind);
        }
        Head { word, keyword: word.to_ascii_uppercase(), on_build, flags, end }
    }

    /// Returns the kind of instruction, or why BuildKit would refuse it.
    fn kind(&self) -> Result<Kind, String> {
        match self.keyword.as_str() {
            "" | "FROM" | "MAINTAINER" | "ONBUILD" if self.on_build => {
                Err(format!("ONBUILD needs another instruction, not '{}'", self.word))
            }
            "ADD" => Ok(Kind::Add),
            "ARG" => Ok(Kind::Arg),
            "COPY" => Ok(Kind::Copy),
            "ENV" => Ok(Kind::Env),
            "FROM" => Ok(Kind::From),
            "RUN" => Ok(Kind::Run),
            "WORKDIR" => Ok(Kind::Workdir),
            // BuildKit reads a trigger only when an image is built from this one.
            other if self.on_build || OTHER.contains(&other) => Ok(Kind::Other),
            _ => {
                // Behind a `=` stands a value, which may be a secret.
                let name = self.word.split('=').next().unwrap_or_default();
                let shown: String = name.chars().take(32).collect();
                Err(format!("unknown instruction {shown}"))
            }
        }
    }

    fn takes_heredocs(&self) -> bool {
        matches!(self.keyword.as_str(), "RUN" | "COPY" | "ADD")
    }
}

/// Returns the first word from this byte on, and where it ends.
fn first_word(line: &str, from: usize) -> (&str, usize) {
    let rest = line.get(from..).unwrap_or_default().trim_start();
    let start = line.len() - rest.len();
    let length = rest.find(BLANKS).unwrap_or(rest.trim_end().len());
    (&rest[..length], start + length)
}

/// Returns the line from this byte on, without these words.
fn without<'w>(line: &str, start: usize, words: impl Iterator<Item = &'w Range<usize>>) -> String {
    let bytes = line.as_bytes();
    let mut kept = Vec::new();
    let mut from = start;
    for word in words.filter(|word| word.start >= start) {
        kept.extend(&bytes[from..word.start]);
        from = word.end;
    }
    kept.extend(&bytes[from..]);
    // BuildKit may have ended a flag within a character.
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// A here-document that an instruction announces: `<<EOF`, `3<<-"EOF"`.
struct Heredoc {
    /// Its bytes in the joined line.
    word: Range<usize>,
    delimiter: Vec<u8>,
    strips_tabs: bool,
}

/// The lines of a here-document.
struct Body {
    text: Range<usize>,
    /// Behind the line with the delimiter.
    end: usize,
}

fn heredocs(line: &str) -> Vec<Heredoc> {
    let words = Words { bytes: line.as_bytes(), at: 0 };
    words.filter_map(|word| Heredoc::read(line.as_bytes(), word)).collect()
}

impl Heredoc {
    fn read(bytes: &[u8], word: Range<usize>) -> Option<Self> {
        let digits = bytes[word.clone()].iter().take_while(|b| b.is_ascii_digit()).count();
        let rest = bytes[word.start + digits..word.end].strip_prefix(b"<<")?;
        let (rest, strips_tabs) = match rest.strip_prefix(b"-") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let delimiter = unquoted(rest);
        let is_here_string = rest.contains(&b'<');
        (!delimiter.is_empty() && !is_here_string).then_some(Heredoc {
            word,
            delimiter,
            strips_tabs,
        })
    }

    /// Returns the lines from `start` up to the delimiter, if there is one.
    fn body(&self, text: &str, start: usize) -> Option<Body> {
        let mut at = start;
        while at < text.len() {
            let (this, next) = line(text, at);
            let mut this = &text.as_bytes()[this];
            while let Some(rest) = this.strip_prefix(b"\t").filter(|_| self.strips_tabs) {
                this = rest;
            }
            if this == self.delimiter {
                return Some(Body { text: start..at, end: next });
            }
            at = next;
        }
        None
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

/// Words between blanks that are not quoted. Whatever the escape directive says, BuildKit looks for
/// here-documents with a backslash.
struct Words<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for Words<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let is_blank = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0B;
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

/// Reads `IMAGE` and `IMAGE AS NAME`.
pub(crate) fn from_words(arguments: &str) -> Option<(&str, Option<&str>)> {
    let words: Vec<_> = arguments.split(BLANKS).filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        [image] => Some((image, None)),
        [image, word, name] if word.eq_ignore_ascii_case("as") => Some((image, Some(name))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the arguments and here-documents of the instructions behind the FROM.
    fn said(text: &str) -> Vec<String> {
        let text = format!("FROM a\n{text}");
        let instructions = read(&text).unwrap().instructions.into_iter().skip(1);
        instructions.map(|it| format!("{}{:?}", it.arguments, it.heredocs)).collect()
    }

    fn refused(text: &str) -> Unreadable {
        read(text).unwrap_err()
    }

    #[test]
    fn here_documents_belong_to_their_instruction() {
        let said_of = said("RUN cat <<EOF\nRUN x\r\n\nEOF\nRUN y\n");
        assert_eq!(said_of, ["cat[\"RUN x\\r\\n\\n\"]", "y[]"]);
        let said_of = said("run a <<-'A b' 3<<\"B\"\nx\n\tA b\nB\nRUN x");
        assert_eq!(said_of, ["a[\"x\\n\", \"\"]", "x[]"]);
        assert_eq!(said("ONBUILD RUN <<é\nä\né\n"), ["[\"ä\\n\"]"]);
        assert_eq!(said("COPY \\\n<<A /\nRUN x\nA\nRUN y\n"), ["/[\"RUN x\\n\"]", "y[]"]);
    }

    #[test]
    fn what_only_looks_like_a_here_document_stays_a_word() {
        assert_eq!(said("RUN <<<EOF cat\nRUN y\n"), ["<<<EOF cat[]", "y[]"]);
        assert_eq!(said("RUN cat '<<EOF'\nRUN y\n"), ["cat '<<EOF'[]", "y[]"]);
        assert_eq!(said("ENV a=<<EOF\nRUN y\n"), ["a=<<EOF[]", "y[]"]);
        assert_eq!(said("# RUN <<EOF\nRUN y\n"), ["y[]"]);
        assert_eq!(said("RUN [\"a\", \"<<EOF\"]\n"), ["[\"a\", \"<<EOF\"][]"]);
    }

    #[test]
    fn here_document_without_an_end_is_an_error_at_its_word() {
        assert_eq!(refused("FROM a\nRUN <<EOF\nEOF2\n").at, 11);
        assert_eq!(refused("FROM a\nRUN \\\n 3<<EOF\nEOF2\n").at, 14);
    }

    #[test]
    fn instructions_are_known_in_any_case_and_behind_onbuild() {
        let kinds = |text: &str| {
            let dockerfile = read(text).unwrap();
            dockerfile.instructions.iter().map(|it| (it.kind, it.on_build)).collect::<Vec<_>>()
        };
        assert_eq!(
            kinds("ARG a\nfrom b\nOnBuild run x\nONBUILD whatever\nENTRYPOINT []\n"),
            [
                (Kind::Arg, false),
                (Kind::From, false),
                (Kind::Run, true),
                (Kind::Other, true),
                (Kind::Other, false)
            ]
        );
        assert_eq!(kinds("FROM a\nR\\\nUN x\n")[1], (Kind::Run, false));
    }

    #[test]
    fn what_buildkit_refuses_is_refused() {
        for (text, at) in [
            ("", 0),
            ("# a\n", 0),
            ("ARG a\n", 0),
            ("RUN a\nFROM b\n", 0),
            ("COPY a b\nFROM b\n", 0),
            ("FROM a\nWHATEVER b\n", 7),
            ("FROM a\n  ENV\n", 9),
            ("FROM a\nONBUILD\n", 7),
            ("FROM a\nONBUILD ONBUILD RUN x\n", 7),
            ("# escape=x\nFROM a\n", 0),
            ("# escape=`\n# escape=`\nFROM a\n", 11),
        ] {
            assert_eq!(refused(text).at, at, "{text:?}");
        }
    }

    #[test]
    fn value_in_an_unknown_instruction_is_not_shown() {
        assert_eq!(refused("FROM a\nTOKEN=s3cret\n").why, "unknown instruction TOKEN");
        assert_eq!(refused("FROM a\n=s3cret b\n").why, "unknown instruction ");
    }

    #[test]
    fn escape_directive_counts_only_among_the_directives_at_the_top() {
        let escape = |text: &str| escape(text).ok();
        assert_eq!(escape("# syntax=x\n#ESCAPE = `\nFROM a\n"), Some('`'));
        assert_eq!(escape(" \u{a0}\t# escape=`\r\n"), Some('`'));
        assert_eq!(escape("# a comment\n# escape=`\n"), Some('\\'));
        assert_eq!(escape("\n# escape=`\n"), Some('\\'));
        assert_eq!(escape("# other=x\n# escape=`\n"), Some('\\'));
    }

    #[test]
    fn base_and_name_are_words_between_ascii_blanks() {
        assert_eq!(from_words("a"), Some(("a", None)));
        assert_eq!(from_words("a \t aS b"), Some(("a", Some("b"))));
        assert_eq!(from_words("a\u{a0}b"), Some(("a\u{a0}b", None)));
        assert_eq!(
            [from_words("a b"), from_words("a AS"), from_words("a IS b"), from_words("a AS b c")],
            [None; 4]
        );
    }
}
