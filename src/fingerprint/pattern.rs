//! Matches one pattern of an ignore file, as moby/patternmatcher does.
//!
//! Docker translates a pattern to a regular expression of Go, with quirks: `[*]` is the class
//! `[[^/]*]`, for example. So this translates to the same expression, and matches that. It matches
//! in one pass over the path, with all places in the expression that the path so far can lead to.

use super::classes::{NotMatchable, Set, class, escaped};

/// How a cleaned pattern matches.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// It is the path.
    Exact(String),
    /// The path begins with it (`dir/**`).
    Prefix(String),
    /// The path ends with it (`**/dir`).
    Suffix(String),
    /// Go's regular expression matches.
    Expression(Expression),
    /// Only Go knows: an escape that Go's regular expressions read in a special way (`\d`).
    Unclear,
}

/// Whether a pattern matches a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Yes,
    No,
    Unclear,
}

/// A regular expression, from the start to the end of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expression {
    pieces: Vec<Piece>,
    /// What every matching path begins and ends with. Most paths are rejected by these alone.
    prefix: String,
    suffix: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// One character of a set.
    One(Set),
    /// Any number of characters of a set.
    Many(Set),
    /// `(.*/)?`: any number of folders. The next piece is [`Piece::Inside`].
    Folders,
    /// Within those folders.
    Inside,
    /// The start of the path.
    Start,
}

impl Pattern {
    /// Translates a cleaned pattern without `!`. None: Docker refuses it.
    pub(super) fn new(pattern: &str) -> Option<Self> {
        let (kind, expression) = translate(pattern, false);
        let pattern = match kind {
            Kind::Exact => Pattern::Exact(pattern.to_owned()),
            Kind::Prefix => Pattern::Prefix(pattern.strip_suffix("**")?.to_owned()),
            Kind::Suffix => Pattern::Suffix(pattern.strip_prefix("**")?.to_owned()),
            Kind::Expression => match Expression::parse(&expression) {
                Ok(expression) => Pattern::Expression(expression),
                Err(NotMatchable::Unclear) => Pattern::Unclear,
                Err(NotMatchable::Refused) => return None,
            },
        };
        Some(pattern)
    }

    /// Translates a pattern as clients until 20.10 do: always to an expression, with fewer of its
    /// characters escaped.
    pub(super) fn old(pattern: &str) -> Option<Self> {
        match Expression::parse(&translate(pattern, true).1) {
            // It means the same as it does now. A plain comparison is faster.
            Ok(expression) => Some(expression.plain().unwrap_or(Pattern::Expression(expression))),
            Err(NotMatchable::Unclear) => Some(Pattern::Unclear),
            Err(NotMatchable::Refused) => None,
        }
    }

    pub(super) fn matches(&self, path: &[u8]) -> Match {
        let is_match = match self {
            Pattern::Exact(text) => path == text.as_bytes(),
            Pattern::Prefix(text) => path.starts_with(text.as_bytes()),
            Pattern::Suffix(text) => {
                let whole = text.strip_prefix('/');
                path.ends_with(text.as_bytes()) || whole.is_some_and(|it| path == it.as_bytes())
            }
            Pattern::Expression(expression) => expression.matches(path),
            Pattern::Unclear => return Match::Unclear,
        };
        if is_match { Match::Yes } else { Match::No }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exact,
    Prefix,
    Suffix,
    Expression,
}

/// Translates a pattern step by step as patternmatcher's `compile` does.
fn translate(pattern: &str, is_old: bool) -> (Kind, String) {
    let mut kind = Kind::Exact;
    let mut expression = String::new();
    let mut rest = pattern.chars().peekable();
    let mut is_first = true;
    while let Some(c) = rest.next() {
        match c {
            '*' if rest.next_if_eq(&'*').is_some() => {
                rest.next_if_eq(&'/');
                if rest.peek().is_some() {
                    expression.push_str("(.*/)?");
                    kind = Kind::Expression;
                } else if kind == Kind::Exact && !is_old {
                    kind = Kind::Prefix;
                } else {
                    expression.push_str(".*");
                    kind = Kind::Expression;
                }
                if is_first {
                    kind = Kind::Suffix;
                }
            }
            '*' => {
                expression.push_str("[^/]*");
                kind = Kind::Expression;
            }
            '?' => {
                expression.push_str("[^/]");
                kind = Kind::Expression;
            }
            '.' | '$' => expression.extend(['\\', c]),
            '+' | '(' | ')' | '|' | '{' | '}' if !is_old => expression.extend(['\\', c]),
            '\\' => {
                expression.push('\\');
                if let Some(next) = rest.next() {
                    expression.push(next);
                    kind = Kind::Expression;
                }
            }
            '[' | ']' => {
                expression.push(c);
                kind = Kind::Expression;
            }
            _ => expression.push(c),
        }
        is_first = false;
    }
    (kind, expression)
}

impl Expression {
    fn parse(text: &str) -> Result<Self, NotMatchable> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("(.*/)?") {
                pieces.extend([Piece::Folders, Piece::Inside]);
                rest = after;
                continue;
            }
            rest = &rest[c.len_utf8()..];
            let set = match c {
                '^' => {
                    pieces.push(Piece::Start);
                    continue;
                }
                '[' => class(&mut rest)?,
                '\\' => Set::Char(escaped(&mut rest)?),
                '.' => Set::NotNewline,
                // An old client has left it without an escape.
                '+' | '(' | ')' | '|' | '{' | '}' => return Err(NotMatchable::Unclear),
                c => Set::Char(c),
            };
            match rest.strip_prefix('*') {
                Some(after) => {
                    pieces.push(Piece::Many(set));
                    rest = after;
                }
                None => pieces.push(Piece::One(set)),
            }
        }
        let prefix = literals(pieces.iter()).collect();
        let suffix: Vec<char> = literals(pieces.iter().rev()).collect();
        Ok(Self { prefix, suffix: suffix.into_iter().rev().collect(), pieces })
    }

    /// Returns the same as a plain comparison, if it is one.
    fn plain(&self) -> Option<Pattern> {
        (literals(self.pieces.iter()).count() == self.pieces.len())
            .then(|| Pattern::Exact(self.prefix.clone()))
    }

    fn matches(&self, path: &[u8]) -> bool {
        if !path.starts_with(self.prefix.as_bytes()) || !path.ends_with(self.suffix.as_bytes()) {
            return false;
        }
        let end = self.pieces.len();
        let mut now = States::new(end + 1);
        let mut next = States::new(end + 1);
        self.enter(&mut now, 0, true);
        let mut rest = path;
        while !rest.is_empty() && !now.list.is_empty() {
            let (c, length) = decode(rest);
            rest = &rest[length..];
            next.clear();
            for &state in &now.list {
                match self.pieces.get(state) {
                    Some(Piece::One(set)) if set.contains(c) => {
                        self.enter(&mut next, state + 1, false);
                    }
                    Some(Piece::Many(set)) if set.contains(c) => {
                        self.enter(&mut next, state, false);
                    }
                    Some(Piece::Inside) if c != '\n' => {
                        next.add(state);
                        if c == '/' {
                            self.enter(&mut next, state + 1, false);
                        }
                    }
                    _ => {}
                }
            }
            std::mem::swap(&mut now, &mut next);
        }
        now.has(end)
    }

    /// Adds a state, and those that follow without another character.
    fn enter(&self, states: &mut States, mut state: usize, is_start: bool) {
        while states.add(state) {
            match self.pieces.get(state) {
                Some(Piece::Many(_)) => state += 1,
                Some(Piece::Start) if is_start => state += 1,
                Some(Piece::Folders) => {
                    states.add(state + 1);
                    state += 2;
                }
                _ => return,
            }
        }
    }
}

/// Returns the characters that stand for themselves, up to the first piece that does not.
fn literals<'p>(pieces: impl Iterator<Item = &'p Piece>) -> impl Iterator<Item = char> {
    pieces.map_while(|piece| match piece {
        // To Go, each byte that is not UTF-8 is this character, too.
        Piece::One(Set::Char(c)) if *c != char::REPLACEMENT_CHARACTER => Some(*c),
        _ => None,
    })
}

/// A set of places in an expression.
struct States {
    list: Vec<usize>,
    has: Vec<bool>,
}

impl States {
    fn new(count: usize) -> Self {
        Self { list: Vec::new(), has: vec![false; count] }
    }

    /// Returns whether the state is new.
    fn add(&mut self, state: usize) -> bool {
        let is_new = !std::mem::replace(&mut self.has[state], true);
        if is_new {
            self.list.push(state);
        }
        is_new
    }

    fn has(&self, state: usize) -> bool {
        self.has[state]
    }

    fn clear(&mut self) {
        for state in self.list.drain(..) {
            self.has[state] = false;
        }
    }
}

/// Returns the first character and its length. As in Go, a byte that is not UTF-8 is one
/// replacement character.
fn decode(bytes: &[u8]) -> (char, usize) {
    let first = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(first) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&first[..error.valid_up_to()]).unwrap_or_default(),
    };
    valid.chars().next().map_or((char::REPLACEMENT_CHARACTER, 1), |c| (c, c.len_utf8()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(path.as_bytes()) == Match::Yes
    }

    #[test]
    fn patterns_match_as_in_docker() {
        for (pattern, matching, others) in [
            ("**", &["file", "dir/file", ".x"][..], &[][..]),
            ("**/**", &["dir/file", "x"], &[]),
            ("dir/**", &["dir/file", "dir/a/file"], &["dir", "dirx/y"]),
            ("**/dir", &["dir", "a/dir", "a/b/dir"], &["xdir", "dir/a"]),
            ("**/dir2/*", &["dir2/f", "a/dir2/f"], &["dir2", "a/dir2/f/g"]),
            ("**file", &["file", "a/file", "xfile"], &["filex"]),
            ("**/file*.txt", &["file.txt", "a/b/file1.txt"], &["a/xfile.txt", "file.txtx"]),
            ("**/**/*.txt", &["a.txt", "a/b/c.txt"], &["a.txt2"]),
            ("a**/*.txt", &["a/f.txt", "a/b/c/f.txt", "a.txt"], &["b/f.txt"]),
            ("a/*.txt", &["a/f.txt"], &["a/b/f.txt"]),
            ("a[b-d]e", &["ace"], &["ae", "aae"]),
            ("a[^b-d]e", &["aze", "a/e"], &["ace"]),
            (".*", &[".foo"], &["foo"]),
            ("abc.def", &["abc.def"], &["abcZdef"]),
            ("abc?def", &["abcZdef"], &["abcdef", "abc/def"]),
            ("a\\\\*", &["a\\", "a\\b"], &["a"]),
            ("a\\*b", &["a*b"], &["axb", "ab"]),
            ("a(b)c|{1}$+", &["a(b)c|{1}$+"], &["abc"]),
            ("a*b*c*d*e*/f", &["axbxcxdxe/f"], &["axbxcxdxe/x/f"]),
            ("a?b", &["a☺b"], &["a☺☺b"]),
            ("[a-ζ]*", &["α"], &["A"]),
            ("[\\]a]", &["]", "a"], &["b"]),
            ("[\\-x]", &["-", "x"], &["a"]),
            // A star in a class is translated, too, and so stands for a part of a name.
            ("[*]", &["]", "^/^]"], &["*"]),
            ("^*", &["x"], &["^x/"]),
            ("x^*", &[], &["x^y"]),
        ] {
            for path in matching {
                assert!(matches(pattern, path), "{pattern} {path}");
            }
            for path in others {
                assert!(!matches(pattern, path), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn what_only_go_knows_is_unclear() {
        for pattern in ["\\d*", "[[:alpha:]]", "\\pL*", "a\\b*"] {
            assert!(matches!(Pattern::new(pattern), Some(Pattern::Unclear)), "{pattern}");
        }
        assert!(matches!(Pattern::old("a(b)"), Some(Pattern::Unclear)));
    }

    #[test]
    fn many_stars_take_no_longer_than_few() {
        let pattern = Pattern::new(&"*a".repeat(100)).unwrap();
        let folders = Pattern::new(&format!("{}b", "**/a*".repeat(100))).unwrap();
        let begin = Instant::now();
        assert_eq!(pattern.matches("a".repeat(4000).as_bytes()), Match::Yes);
        assert_eq!(folders.matches("a/".repeat(2000).as_bytes()), Match::No);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
