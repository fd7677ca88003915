//! Docker's ignore files: which paths of a context a builder leaves out.
//!
//! Clients differ. Until 20.10 they match patterns in another way than moby/patternmatcher does
//! today, and BuildKit looks into more of the folders that are left out than the legacy builder.
//! Each way is a [`Dialect`]. Where the builder is not certain, only what all dialects leave out is
//! left out.

use anyhow::{Result, bail};

use super::classes::is_valid;
use super::pattern::{Match, Pattern};

/// How a builder reads an ignore file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// BuildKit with buildx or with a client since 23.0
    BuildKit,
    /// BuildKit with a client until 20.10
    OldBuildKit,
    /// The legacy builder with a client since 23.0
    Legacy,
    /// The legacy builder with a client until 20.10
    OldLegacy,
}

impl Dialect {
    /// All that there are, for a builder that is not known and for podman, whose rules are between
    /// these.
    pub const ALL: [Dialect; 4] =
        [Dialect::BuildKit, Dialect::OldBuildKit, Dialect::Legacy, Dialect::OldLegacy];

    fn is_old(self) -> bool {
        matches!(self, Dialect::OldBuildKit | Dialect::OldLegacy)
    }
}

/// What an ignore file says, in one or more dialects.
#[derive(Debug)]
pub struct IgnoreRules(Vec<Rules>);

/// What is known of a folder while a walk is in it, for each dialect.
#[derive(Clone, Debug)]
pub struct Folder(Vec<Place>);

/// How one dialect sees a folder.
#[derive(Clone, Debug)]
enum Place {
    /// It may include something in here. Tells for each rule whether it matches the folder or one
    /// above it; this stays empty for the context itself.
    Visited(Vec<bool>),
    /// It leaves out everything.
    Skipped,
}

/// What the rules say about one path.
#[derive(Debug)]
pub struct Verdict {
    /// At least one dialect includes the path itself.
    pub is_included: bool,
    /// How to go on, if the path is a folder below which something may be included.
    pub folder: Option<Folder>,
}

impl IgnoreRules {
    /// Reads an ignore file.
    ///
    /// # Errors
    /// Docker refuses one of its patterns.
    pub fn read(text: &[u8], dialects: &[Dialect]) -> Result<Self> {
        let lines = patterns(text)?;
        let mut all: Vec<Rules> = Vec::new();
        for dialect in dialects {
            let rules = Rules::new(&lines, *dialect)?;
            // Most ignore files mean the same in all dialects.
            if !all.iter().any(|other| other.means_the_same(&rules)) {
                all.push(rules);
            }
        }
        Ok(Self(all))
    }

    /// Returns rules that leave out nothing.
    pub fn none() -> Self {
        Self(vec![Rules { dialect: Dialect::BuildKit, rules: Vec::new(), has_exceptions: false }])
    }

    /// Returns rules that leave out only what both leave out.
    #[must_use]
    pub(super) fn or(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Returns the context itself, where a walk begins.
    pub fn root(&self) -> Folder {
        Folder(self.0.iter().map(|_| Place::Visited(Vec::new())).collect())
    }

    /// Returns what the rules say about a path in a folder. It is relative to the context.
    pub fn look(&self, path: &[u8], is_folder: bool, folder: &Folder) -> Verdict {
        let mut is_included = false;
        let mut places = Vec::new();
        for (rules, place) in self.0.iter().zip(&folder.0) {
            let Place::Visited(above) = place else {
                places.push(Place::Skipped);
                continue;
            };
            let (is_left_out, matched) = rules.match_path(path, above);
            let descends = is_folder && (!is_left_out || rules.descends_into(path));
            is_included |= !is_left_out || (descends && rules.dialect == Dialect::OldBuildKit);
            places.push(if descends { Place::Visited(matched) } else { Place::Skipped });
        }
        let is_visited = places.iter().any(|place| matches!(place, Place::Visited(_)));
        Verdict { is_included, folder: is_visited.then_some(Folder(places)) }
    }
}

/// An ignore file in one dialect.
#[derive(Debug)]
struct Rules {
    dialect: Dialect,
    rules: Vec<Rule>,
    has_exceptions: bool,
}

#[derive(Debug)]
struct Rule {
    is_exception: bool,
    /// Without `!`.
    text: String,
    /// How many names the text consists of.
    depth: usize,
    pattern: Pattern,
}

impl Rules {
    fn new(lines: &[Line], dialect: Dialect) -> Result<Self> {
        let mut rules = Vec::new();
        for line in lines {
            let pattern = match line.is_clear {
                true if dialect.is_old() => Pattern::old(&line.text),
                true => Pattern::new(&line.text),
                false => Some(Pattern::Unclear),
            };
            let Some(pattern) = pattern else { bail!(line.refused()) };
            let (is_exception, text) = (line.is_exception, line.text.clone());
            let depth = text.split('/').count();
            rules.push(Rule { is_exception, text, depth, pattern });
        }
        let has_exceptions = rules.iter().any(|rule| rule.is_exception);
        Ok(Self { dialect, rules, has_exceptions })
    }

    /// Returns whether two dialects of one file cannot differ.
    fn means_the_same(&self, other: &Rules) -> bool {
        !self.has_exceptions
            && self.rules.iter().zip(&other.rules).all(|(a, b)| a.pattern == b.pattern)
    }

    /// Returns whether a path is left out, and which rules match it or a folder above it.
    fn match_path(&self, path: &[u8], above: &[bool]) -> (bool, Vec<bool>) {
        if self.dialect.is_old() {
            return (self.match_as_old(path), Vec::new());
        }
        let mut is_left_out = false;
        let mut matched = vec![false; self.rules.len()];
        for (n, rule) in self.rules.iter().enumerate() {
            let is_match = above.get(n).copied().unwrap_or_default()
                // A rule that cannot change anything is not tried, so it does not match below.
                || (rule.is_exception == is_left_out && rule.matches(path));
            matched[n] = is_match;
            if is_match {
                is_left_out = !rule.is_exception;
            }
        }
        (is_left_out, matched)
    }

    /// Old clients compare a rule with the path, and with only one of the folders above it: the one
    /// that has as many names as the rule.
    fn match_as_old(&self, path: &[u8]) -> bool {
        let mut is_left_out = false;
        for rule in &self.rules {
            let above = || folder_with_names(path, rule.depth).is_some_and(|it| rule.matches(it));
            if rule.is_exception == is_left_out && (rule.matches(path) || above()) {
                is_left_out = !rule.is_exception;
            }
        }
        is_left_out
    }

    /// Returns whether the builder looks for exceptions in a folder that is left out.
    fn descends_into(&self, folder: &[u8]) -> bool {
        let exceptions = self.rules.iter().filter(|rule| rule.is_exception);
        if self.dialect != Dialect::BuildKit {
            return exceptions.into_iter().any(|rule| is_at_or_above(folder, &rule.text));
        }
        let exceptions: Vec<_> = exceptions.map(|rule| without_last_stars(&rule.text)).collect();
        // Only if all exceptions are plain does BuildKit choose among folders.
        exceptions.iter().any(|text| text.contains(['*', '[', ']', '?', '^', '\\']))
            || exceptions.iter().any(|text| is_at_or_above(folder, text))
    }
}

impl Rule {
    /// Where the answer is not clear, more is included.
    fn matches(&self, path: &[u8]) -> bool {
        match self.pattern.matches(path) {
            Match::Yes => true,
            Match::No => false,
            Match::Unclear => self.is_exception,
        }
    }
}

/// Returns the folder above a path that has this many names.
fn folder_with_names(path: &[u8], count: usize) -> Option<&[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &path[..at]).nth(count.checked_sub(1)?)
}

fn is_at_or_above(folder: &[u8], path: &str) -> bool {
    let rest = path.as_bytes().strip_prefix(folder);
    rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn without_last_stars(text: &str) -> &str {
    let text = text.strip_suffix("/**").unwrap_or(text);
    text.strip_suffix("/*").unwrap_or(text)
}

/// A pattern in an ignore file.
#[derive(Debug)]
struct Line {
    number: usize,
    is_exception: bool,
    text: String,
    /// Whether it is known how each client passes the line on.
    is_clear: bool,
}

impl Line {
    fn refused(&self) -> String {
        format!(
            "Docker refuses the pattern '{}{}' in line {}; correct it or remove it",
            if self.is_exception { "!" } else { "" },
            self.text.escape_debug(),
            self.number
        )
    }
}

/// Reads the lines of an ignore file, as moby's `ignorefile.ReadAll` and `patternmatcher.New` do one
/// after the other.
fn patterns(text: &[u8]) -> Result<Vec<Line>> {
    /// Go's `bufio.Scanner` refuses longer lines.
    const LONGEST: usize = 64 * 1024;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut lines = Vec::new();
    for (number, bytes) in text.split(|byte| *byte == b'\n').enumerate() {
        let number = number + 1;
        if bytes.len() >= LONGEST {
            bail!("line {number} is too long for Docker; shorten it");
        }
        let line = String::from_utf8_lossy(bytes);
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let line_text = line.trim();
        let cleaned = match line_text.strip_prefix('!') {
            Some(exception) => format!("!{}", from_context(exception.trim())),
            None => from_context(line_text),
        };
        let cleaned = cleaned.trim();
        if cleaned.is_empty() {
            continue;
        }
        let cleaned = clean(cleaned);
        let exception = cleaned.strip_prefix('!');
        let (is_exception, text) = (exception.is_some(), exception.unwrap_or(&cleaned).to_owned());
        // BuildKit sends patterns as JSON, which has to be UTF-8; Go's scanner drops this mark.
        let is_clear = std::str::from_utf8(bytes).is_ok() && !text.starts_with('\u{feff}');
        let line = Line { number, is_exception, text, is_clear };
        if line.text.is_empty() || (is_clear && !is_valid(&line.text)) {
            bail!(line.refused());
        }
        lines.push(line);
    }
    Ok(lines)
}

/// Cleans a path that may begin with a slash, which stands for the context.
fn from_context(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    let path = clean(path);
    match path.strip_prefix('/') {
        Some(relative) if !relative.is_empty() => relative.to_owned(),
        _ => path,
    }
}

/// Removes what is not needed in a path, by its letters alone (Go's `filepath.Clean`).
fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => _ = names.pop(),
            ".." if is_absolute => {}
            name => names.push(name),
        }
    }
    match (is_absolute, names.join("/")) {
        (true, path) => format!("/{path}"),
        (false, path) if path.is_empty() => ".".to_owned(),
        (false, path) => path,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(ignore_file: &[u8]) -> Vec<String> {
        let lines = patterns(ignore_file).unwrap();
        let sign = |line: &Line| if line.is_exception { "!" } else { "" };
        lines.iter().map(|line| format!("{}{}", sign(line), line.text)).collect()
    }

    /// Walks down to a path as a builder does. Files only, so that folders are not on their own.
    fn is_included(rules: &IgnoreRules, path: &str) -> bool {
        let mut folder = rules.root();
        for (at, _) in path.match_indices('/') {
            match rules.look(&path.as_bytes()[..at], true, &folder).folder {
                Some(inner) => folder = inner,
                None => return false,
            }
        }
        rules.look(path.as_bytes(), false, &folder).is_included
    }

    fn includes(ignore_file: &str, dialect: Dialect, path: &str) -> bool {
        is_included(&IgnoreRules::read(ignore_file.as_bytes(), &[dialect]).unwrap(), path)
    }

    #[test]
    fn lines_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("\u{feff}a\n# no\n\n  b \t\r\n", vec!["a", "b"]),
            (" # a name", vec!["# a name"]),
            ("/a\n//a/\n./a\na/.\nx/../a", vec!["a"; 5]),
            ("! /a\n!/a\n!a/", vec!["!a"; 3]),
            ("\\!x\n\\#x\n!!x", vec!["\\!x", "\\#x", "!!x"]),
            ("/\n.\na/..", vec!["/", ".", "."]),
            ("../a\n/../a", vec!["../a", "a"]),
            ("a /", vec!["a"]),
        ] {
            assert_eq!(texts(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn patterns_that_docker_refuses_are_errors() {
        for text in [
            "!",
            "! ",
            "!/",
            "[",
            "a[",
            "[^",
            "[^bc",
            "[]a]",
            "[-]",
            "[x-]",
            "[-x]",
            "[a-b-c]",
            "\\",
            "a\\",
            "[Local-Only]",
            "[z-a]",
            "\\y*",
        ] {
            for dialect in Dialect::ALL {
                let read = IgnoreRules::read(format!("ok\n{text}").as_bytes(), &[dialect]);
                let message = read.expect_err(text).to_string();
                assert!(message.contains("line 2"), "{text}: {message}");
            }
        }
        assert!(IgnoreRules::read(&[b'a'; 70_000], &Dialect::ALL).is_err());
    }

    #[test]
    fn last_rule_that_matches_wins() {
        for dialect in Dialect::ALL {
            assert!(includes("a\n!a", dialect, "a"));
            assert!(!includes("!a\na", dialect, "a"));
            assert!(!includes("a\n!a/b\na/b/c", dialect, "a/b/c"));
            assert!(includes("a/\n!a/b", dialect, "a/b/y"));
            assert!(!includes("a/\n!a/b", dialect, "a/c"));
            assert!(includes("*\n!a/b/y", dialect, "a/b/y"));
            assert!(!includes("*\n!a/b/y", dialect, "a/b/z"));
            assert!(!includes("/\n.\n./", dialect, "") || includes(".", dialect, "a"));
        }
    }

    #[test]
    fn dialects_differ() {
        let included_by = |text: &str, path: &str| -> Vec<Dialect> {
            Dialect::ALL.into_iter().filter(|it| includes(text, *it, path)).collect()
        };
        use Dialect::{BuildKit, Legacy, OldBuildKit, OldLegacy};
        // Exceptions with wildcards, below a folder that is left out.
        assert_eq!(included_by("*\n!*/x", "a/x"), [BuildKit]);
        // `**` in front of a name, and parts of names.
        assert_eq!(included_by("**foo", "xfoo"), [OldBuildKit, OldLegacy]);
        // A rule for a folder at any depth.
        assert_eq!(included_by("**/d\n!a/b/d/y", "a/b/d/z"), [OldBuildKit, OldLegacy]);
        assert_eq!(included_by("**/d\n!a/b/d/y", "a/b/d/y"), Dialect::ALL);
        assert_eq!(included_by("c++", "c++"), [OldBuildKit, OldLegacy]);
        assert_eq!(included_by("c+d", "c-d"), [BuildKit, OldBuildKit, Legacy, OldLegacy]);
    }

    #[test]
    fn all_dialects_together_include_what_any_of_them_does() {
        let all = IgnoreRules::read(b"*\n!*/x\n**foo", &Dialect::ALL).unwrap();
        assert!(is_included(&all, "a/x"));
        assert!(!is_included(&all, "a/y"));
    }

    #[test]
    fn dialects_are_not_asked_twice_where_they_agree() {
        let all = IgnoreRules::read(b"*.log\ntarget\na?b/*\n", &Dialect::ALL).unwrap();
        assert_eq!(all.0.len(), 1);
    }

    #[test]
    fn names_that_are_not_text_can_be_matched() {
        let rules = IgnoreRules::read(b"a?", &[Dialect::BuildKit]).unwrap();
        let verdict = rules.look(b"a\xff", false, &rules.root());
        assert!(!verdict.is_included);
        // It is not certain what becomes of a pattern that is not text.
        let rules = IgnoreRules::read(b"a\xff", &Dialect::ALL).unwrap();
        assert!(rules.look(b"a\xff", false, &rules.root()).is_included);
    }

    proptest! {
        #[test]
        fn no_ignore_file_panics(text in "[a-c!#*?/.^\\[\\]\\\\ +(){}|\\-\n]{0,40}", path in "[a-c/.]{1,20}") {
            if let Ok(rules) = IgnoreRules::read(text.as_bytes(), &Dialect::ALL) {
                is_included(&rules, &path);
            }
        }

        #[test]
        fn any_bytes_can_be_read(bytes: Vec<u8>) {
            _ = IgnoreRules::read(&bytes, &Dialect::ALL);
        }

        #[test]
        fn all_dialects_include_at_least_what_each_does(
            text in "([!]?[ab*?]{1,3}(/[ab*?]{1,3}){0,2}\n){1,4}",
            path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
        ) {
            let all = IgnoreRules::read(text.as_bytes(), &Dialect::ALL).unwrap();
            for dialect in Dialect::ALL {
                prop_assert!(!includes(&text, dialect, &path) || is_included(&all, &path));
            }
        }
    }
}
