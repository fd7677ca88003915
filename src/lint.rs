//! `buildlock lint`: what in Dockerfiles and compose files makes builds race.

mod accepted;
mod compose;
mod dockerfile;
mod heredoc;
mod mixed;
mod project;
mod report;
mod shell;
mod tools;
mod walk;
mod yaml;

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cli::LintFormat;
use crate::exit::{self, Exit};
use crate::log;
use walk::Candidate;

/// No Dockerfile is as long, in bytes.
const LONGEST: u64 = 16 << 20;

/// What to look at, and what to make of it.
#[derive(Debug)]
pub struct Options {
    /// Write `sharing=locked` where it is missing.
    pub fix: bool,
    /// Notes are errors.
    pub strict: bool,
    /// Leave notes out.
    pub quiet: bool,
    /// How to print what was found.
    pub format: LintFormat,
    /// Files, folders, or `-` for stdin; none is the current folder.
    pub paths: Vec<PathBuf>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Error,
    Note,
}

/// What kind of thing a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Rule {
    #[serde(rename = "cache-mount-race")]
    Race,
    #[serde(rename = "cache-mount-mixed-sharing")]
    Mixed,
    #[serde(rename = "cache-mount-unknown")]
    Unknown,
    #[serde(rename = "cache-mount-variable")]
    Variable,
    #[serde(rename = "compose-same-image")]
    SameImage,
}

/// Something that was found.
#[derive(Debug, Serialize)]
struct Finding {
    path: String,
    /// From 1.
    line: usize,
    /// From 1, in characters.
    column: usize,
    level: Level,
    rule: Rule,
    message: String,
    advice: String,
    /// It was mended.
    fixed: bool,
}

/// Why a file that could be read is not what its name says.
#[derive(Debug)]
struct NotThat(String);

impl std::fmt::Display for NotThat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotThat {}

/// Looks at all of it, prints what was found, and says how to end: 0 clean, 1 findings, 125 if
/// something could not be read (the rest was looked at all the same).
///
/// # Errors
/// There is nothing to look at, or nobody takes the output.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Exit> {
    let (files, mut all_read) = walk::files(&options.paths)?;
    let mut findings = Vec::new();
    let mut fixed_text = None;
    let mut looked_at = 0;
    let mut queue = VecDeque::from(files);
    let mut known: HashSet<_> =
        queue.iter().filter_map(|it| fs::canonicalize(&it.path).ok()).collect();
    while let Some(file) = queue.pop_front() {
        match look(&file.path, options, &mut findings) {
            Ok(Looked { fixed, leads_to }) => {
                looked_at += 1;
                fixed_text = fixed.or(fixed_text);
                let is_new =
                    |path: &PathBuf| fs::canonicalize(path).is_ok_and(|it| known.insert(it));
                let fresh = leads_to.into_iter().filter(is_new);
                queue.extend(fresh.map(|path| Candidate { path, is_named: false }));
            }
            // Its name alone made us look at it: it may be a template, say.
            Err(error) if error.is::<NotThat>() && !file.is_named => log::left_out(&error),
            Err(error) => {
                log::error(&error);
                all_read = false;
            }
        }
    }
    let count =
        |level| findings.iter().filter(|it: &&Finding| it.level == level && !it.fixed).count();
    let (errors, notes) = (count(Level::Error), count(Level::Note));
    log::linted(looked_at, errors, notes);
    if options.quiet {
        findings.retain(|finding| finding.level == Level::Error);
    }
    match fixed_text {
        // stdout is for the text.
        Some(text) => {
            out.write_all(&text)?;
            report::print(&findings, options.format, &mut io::stderr().lock())?;
        }
        None => report::print(&findings, options.format, out)?,
    }
    Ok(match all_read {
        false => Exit::Code(exit::FAILURE),
        true => Exit::Code(u8::from(errors > 0)),
    })
}

/// What comes of looking at a file.
#[derive(Debug, Default)]
struct Looked {
    /// The fixed text of stdin, if it is to be fixed.
    fixed: Option<Vec<u8>>,
    /// Files to look at as well.
    leads_to: Vec<PathBuf>,
}

/// Finds what is in one file.
fn look(path: &Path, options: &Options, findings: &mut Vec<Finding>) -> Result<Looked> {
    let is_stdin = path.as_os_str() == "-";
    let shown = if is_stdin { "<stdin>".into() } else { path.to_string_lossy().into_owned() };
    let text = read(path, is_stdin).with_context(|| format!("cannot read {shown}"))?;
    let extension = path.extension().unwrap_or_default();
    let name = path.file_name().unwrap_or_default();
    if (extension == "yaml" || extension == "yml") && !walk::is_dockerfile(name) {
        return look_at_compose(path, text, options, findings);
    }
    let found = dockerfile::check(&text, options.strict).map_err(|error| {
        let (line, column) = Places::new(&text).position(error.at);
        NotThat(format!("{shown}:{line}:{column}: not a Dockerfile: {}", error.why))
    })?;
    let mends = |found: &dockerfile::Found| {
        options.fix && found.rule.level(options.strict) == Level::Error && found.fix.is_some()
    };
    let places: Vec<usize> =
        found.iter().filter(|found| mends(found)).filter_map(|found| found.fix).collect();
    let fixed = mended(&text, &places);
    let written = match is_stdin || places.is_empty() {
        true => Ok(()),
        false => write(path, &text, &fixed).with_context(|| format!("cannot write {shown}")),
    };
    let mut in_text = Places::new(&text);
    findings.extend(found.into_iter().map(|found| {
        let (line, column) = in_text.position(found.at);
        Finding {
            path: shown.clone(),
            line,
            column,
            level: found.rule.level(options.strict),
            rule: found.rule,
            fixed: written.is_ok() && mends(&found),
            message: found.message,
            advice: found.advice.to_owned(),
        }
    }));
    written.map(|()| Looked {
        fixed: (is_stdin && options.fix).then_some(fixed),
        leads_to: Vec::new(),
    })
}

/// Finds what is in a compose file and in the Dockerfiles that are written in it.
fn look_at_compose(
    path: &Path,
    text: Vec<u8>,
    options: &Options,
    findings: &mut Vec<Finding>,
) -> Result<Looked> {
    let compose::Read { found, dockerfiles, inline } = compose::read(path, text)?;
    let finding = |place: &compose::Place, level, rule, message, advice: &str| Finding {
        path: place.path.to_string_lossy().into_owned(),
        line: place.line,
        column: place.column,
        level: if options.strict { Level::Error } else { level },
        rule,
        message,
        advice: advice.to_owned(),
        fixed: false,
    };
    findings.extend(found.into_iter().map(|found| {
        let advice = "build it in one service, and use the image in the others";
        finding(&found.place, found.level, Rule::SameImage, found.message, advice)
    }));
    for dockerfile in inline {
        let text = dockerfile.text.as_bytes();
        let start = &dockerfile.place;
        let found = dockerfile::check(text, options.strict).map_err(|error| {
            let (path, line) = (start.path.display(), start.line);
            NotThat(format!("{path}:{line}: dockerfile_inline is not a Dockerfile: {}", error.why))
        })?;
        let mut places = Places::new(text);
        findings.extend(found.into_iter().map(|found| {
            let mut place = start.clone();
            if let Some(indent) = dockerfile.indent {
                let (line, column) = places.position(found.at);
                (place.line, place.column) = (start.line + line, indent + column);
            }
            finding(&place, found.rule.level(false), found.rule, found.message, found.advice)
        }));
    }
    Ok(Looked { fixed: None, leads_to: dockerfiles })
}

fn read(path: &Path, is_stdin: bool) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    match is_stdin {
        true => io::stdin().lock().take(LONGEST + 1).read_to_end(&mut text)?,
        false => File::open(path)?.take(LONGEST + 1).read_to_end(&mut text)?,
    };
    match text.len() as u64 > LONGEST {
        true => Err(io::Error::other("it is longer than 16 MiB")),
        false => Ok(text),
    }
}

/// The text with the fix put in at these places, which are in order.
fn mended(text: &[u8], places: &[usize]) -> Vec<u8> {
    let mut mended = Vec::with_capacity(text.len() + places.len() * dockerfile::FIX.len());
    let mut from = 0;
    for &place in places {
        mended.extend(&text[from..place]);
        mended.extend(dockerfile::FIX.as_bytes());
        from = place;
    }
    mended.extend(&text[from..]);
    mended
}

/// Lines and columns of bytes that come in order, so that none is counted twice.
struct Places<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    column: usize,
}

impl<'a> Places<'a> {
    fn new(text: &'a [u8]) -> Self {
        Places { text, at: 0, line: 1, column: 1 }
    }

    /// Line and column of a byte, from 1. It does not lie before the last one.
    fn position(&mut self, at: usize) -> (usize, usize) {
        let at = at.clamp(self.at, self.text.len());
        let between = &self.text[self.at..at];
        self.at = at;
        self.line += between.iter().filter(|&&b| b == b'\n').count();
        let mut of_line = between;
        if let Some(newline) = between.iter().rposition(|&b| b == b'\n') {
            of_line = &between[newline + 1..];
            self.column = 1;
        }
        self.column += String::from_utf8_lossy(of_line).chars().count();
        (self.line, self.column)
    }
}

/// Writes a new file in the old one's place, as whole as it was; where that cannot be (its folder
/// is not ours to write to, its owner would change, it has other names), into the old one.
fn write(path: &Path, before: &[u8], text: &[u8]) -> Result<()> {
    // A link stays a link.
    let path = fs::canonicalize(path)?;
    let old = fs::metadata(&path)?;
    if !old.is_file() {
        bail!("it is not a file");
    }
    // What may not be written is not replaced either.
    let file = File::options().read(true).write(true).open(&path)?;
    let mut now = Vec::new();
    (&file).take(LONGEST + 1).read_to_end(&mut now)?;
    if now != before {
        bail!("somebody has changed it meanwhile; start again");
    }
    if old.nlink() > 1 || has_attributes(&file) {
        return Ok(overwrite(&file, before, text)?);
    }
    match replace(&path, &old, text) {
        Ok(()) => Ok(()),
        // There is no room for the old one to grow either.
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            Err(error.into())
        }
        Err(_) => Ok(overwrite(&file, before, text)?),
    }
}

/// Has it what a new file would not have, such as an access list?
fn has_attributes(file: &File) -> bool {
    let mut names = [0; 4096];
    match rustix::fs::flistxattr(file, &mut names) {
        // A new file gets that one from its folder.
        Ok(length) => names[..length]
            .split(|&b| b == 0)
            .any(|name| !name.is_empty() && name != b"security.selinux"),
        Err(error) => error != rustix::io::Errno::NOTSUP,
    }
}

/// Writes into the file itself. If not all of it can be written, what was there comes back.
fn overwrite(file: &File, before: &[u8], text: &[u8]) -> io::Result<()> {
    let put = |text: &[u8]| {
        file.write_all_at(text, 0)?;
        file.set_len(text.len() as u64)
    };
    put(text).inspect_err(|_| _ = put(before))
}

fn replace(path: &Path, old: &fs::Metadata, text: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.tmp", fastrand::u64(..)));
    let fresh = path.with_file_name(name);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let placed = (|| {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    if placed.is_err() {
        _ = fs::remove_file(&fresh);
    }
    placed
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn places(text: &[u8]) -> Vec<usize> {
        let found = dockerfile::check(text, false).expect("a Dockerfile");
        found.iter().filter_map(|found| found.fix).collect()
    }

    /// Mends a text, and sees that nothing else has changed and nothing is left to mend.
    fn assert_mended(text: &[u8]) -> usize {
        let places = places(text);
        let once = mended(text, &places);
        let mut undone = once.clone();
        for place in &places {
            let there: Vec<u8> = undone.drain(*place..*place + dockerfile::FIX.len()).collect();
            assert_eq!(there, dockerfile::FIX.as_bytes());
        }
        assert_eq!(undone, text, "something else has changed");
        assert_eq!(
            self::places(&once),
            Vec::<usize>::new(),
            "in {:?}",
            String::from_utf8_lossy(&once)
        );
        places.len()
    }

    /// A text with the number of mounts in it that race.
    type Piece = (String, usize);

    /// `\n` stands for any end of line, `\u{1}` for the escape character.
    fn piece(texts: &'static [(&'static str, usize)]) -> impl Strategy<Value = Piece> {
        proptest::sample::select(texts).prop_map(|(text, races)| (text.to_owned(), races))
    }

    fn flag() -> impl Strategy<Value = Piece> {
        piece(&[
            ("--mount=type=cache,target=/root/.m2", 1),
            ("--mount=type=cache,\u{1}\ntarget=/root/\u{1} \n# no\n.m2,id=a", 1),
            ("--mount=\"type=cache,target=/root/.m2\"", 1),
            ("--mount='type=cache,target=/root/.m2'", 1),
            ("--mount=type=cache,dst=\"/root/.gradle\"", 1),
            ("--mount='type=cache,\"target=/a,b/.m2\"'", 1),
            ("--\"mount=type=cache,target=/root/.m2\"", 1),
            ("--mo'un't=type=cache,target=/root/.m2", 1),
            ("--moun\\t=type=cache,\u{1}\ntarget=\"/root/.m2\"", 1),
            ("--mount=type=cache,target=\"/grüße 😀/.m2\"", 1),
            ("--mount=type=cache,target=/root/.m2,sharing=locked", 0),
            ("--mount=type=cache,target=/root/.m2,sharing=shared", 0),
            ("--mount=type=cache,target=/root/.m2,ro", 0),
            ("--mount=type=cache,target=/root/.npm", 0),
            ("--mount=type=bind,target=/root/.m2", 0),
            ("--network=none", 0),
        ])
    }

    fn gap() -> impl Strategy<Value = Piece> {
        piece(&[
            (" ", 0),
            ("\t  ", 0),
            (" \u{1}\n", 0),
            (" \u{1}\n\u{a0}# no\n\u{2003}\n ", 0),
            (" \u{1} \t\n  # a comment \u{1}\n\n    ", 0),
            ("\u{1}\n# --mount=type=cache,target=/root/.m2\n ", 0),
        ])
    }

    fn command() -> impl Strategy<Value = Piece> {
        piece(&[
            ("mvn --mount=type=cache,target=/root/.m2\n", 0),
            ("mvn \u{1}\n && \u{1}\n# no\n true\n", 0),
            ("[\"mvn\", \"<<EOF\"]\n", 0),
            ("<<<EOF mvn\n", 0),
            ("<<EOF\nRUN --mount=type=cache,target=/root/.m2 a\nEOF \n\u{1}\nEOF\n", 0),
            ("sh <<-'A B' && cat 3<<B\nFROM x\n\t\tA B\nRUN <<EOF\n\nB\n", 0),
        ])
    }

    fn run() -> impl Strategy<Value = Piece> {
        let keyword = piece(&[
            ("RUN", 0),
            ("run", 0),
            (" \tONBUILD RUN", 0),
            ("R\u{1}\nUN", 0),
            ("\u{2003}\u{a0}RUN", 0),
        ]);
        let flags = vec((gap(), flag()), 0..4);
        (keyword, flags, gap(), command()).prop_map(|(keyword, flags, gap, command)| {
            let flags = flags.into_iter().flat_map(|(gap, flag)| [gap, flag]);
            joined([keyword].into_iter().chain(flags).chain([gap, command]))
        })
    }

    fn joined(pieces: impl IntoIterator<Item = Piece>) -> Piece {
        pieces
            .into_iter()
            .fold((String::new(), 0), |(text, races), (more, also)| (text + &more, races + also))
    }

    fn instruction() -> impl Strategy<Value = Piece> {
        prop_oneof![
            3 => run(),
            1 => piece(&[
                ("\n", 0),
                ("# RUN --mount=type=cache,target=/root/.m2 a \u{1}\n", 0),
                ("FROM b AS c\n", 0),
                ("ENV A=b \u{1}\n  # no\n  C=\"d e\"\n", 0),
                ("COPY <<A <<\"B\" /x/\nRUN --mount=type=cache,target=/root/.m2 a\nA\n<<C\nB\n", 0),
                ("LABEL a=\"<<EOF\"\n", 0),
                ("ENTRYPOINT []\n\u{3000}onbuild entry\u{1}\npoint\n", 0),
                ("SHELL [\"/bin/sh\", \u{1}\n# no\n\"-c\"] # a\n", 0),
                ("COPY \u{1}\n<<A [\nRUN --mount=type=cache,target=/root/.m2 a\nA\n", 0),
                ("\u{a0} # RUN --mount=type=cache,target=/root/.m2 a\n", 0),
            ]),
        ]
    }

    fn dockerfile() -> impl Strategy<Value = (Vec<u8>, usize)> {
        let body = vec(instruction(), 0..8);
        let blanks = proptest::sample::select(&["", " \t", "\u{a0}"][..]);
        (body, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), blanks).prop_map(
            |(body, crlf, backtick, mark, cut, blanks)| {
                let (mut text, races) = joined(body);
                text.insert_str(0, if backtick { "# escape=`\nFROM a\n" } else { "FROM a\n" });
                text.insert_str(0, blanks);
                text = text.replace('\u{1}', if backtick { "`" } else { "\\" });
                if cut {
                    text.truncate(text.trim_end_matches('\n').len());
                }
                text = if crlf { text.replace('\n', "\r\n") } else { text };
                let mut bytes = if mark { "\u{feff}".into() } else { String::new() }.into_bytes();
                bytes.extend(text.bytes());
                (bytes, races)
            },
        )
    }

    proptest! {
        #[test]
        fn every_mount_that_races_is_found_and_mended_and_nothing_else_changes(
            (text, races) in dockerfile(),
        ) {
            prop_assert_eq!(assert_mended(&text), races, "{}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn whatever_is_read_as_a_dockerfile_is_mended_once(
            text in "(# escape=`\n)?FROM a\n([a-c\\\\`\"'<$ \t\r\n#,=]|RUN |--mount=|type=cache,|target=/|<<EOF|\nEOF\n|\\$\\{A:-|--|mount|CMD |é|\u{a0}){0,60}",
        ) {
            if dockerfile::check(text.as_bytes(), false).is_ok() {
                assert_mended(text.as_bytes());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(text in vec(any::<u8>(), 0..200)) {
            let mut dockerfile = b"FROM a\nRUN --mount=".to_vec();
            dockerfile.extend(text);
            _ = dockerfile::check(&dockerfile, false);
        }
    }

    #[test]
    fn the_new_text_stands_within_the_quotes_that_are_around_everything() {
        let after = |text: &str| {
            let text = format!("FROM a\nRUN {text} mvn\n");
            let mended = mended(text.as_bytes(), &places(text.as_bytes()));
            String::from_utf8(mended).unwrap().lines().nth(1).unwrap().to_owned()
        };
        assert_eq!(
            after("--mount=\"type=cache,target=/root/.m2\""),
            "RUN --mount=\"type=cache,target=/root/.m2,sharing=locked\" mvn"
        );
        assert_eq!(
            after("--\"mount=type=cache,target=/root/.m2\""),
            "RUN --\"mount=type=cache,target=/root/.m2,sharing=locked\" mvn"
        );
        assert_eq!(
            after("--\"mount\"=type=cache,target=/root/.m2"),
            "RUN --\"mount\"=type=cache,target=/root/.m2,sharing=locked mvn"
        );
        assert_eq!(
            after("--mount=type=cache,target=\"/root/.m2\""),
            "RUN --mount=type=cache,target=\"/root/.m2\",sharing=locked mvn"
        );
        assert_eq!(
            after("--mount=\"type=cache\",target=\"/root/.m2\""),
            "RUN --mount=\"type=cache\",target=\"/root/.m2\",sharing=locked mvn"
        );
        assert_eq!(
            after("--mount=type=cache,target=/root/.m2\\\n"),
            "RUN --mount=type=cache,target=/root/.m2,sharing=locked\\"
        );
    }

    #[test]
    fn nothing_is_put_into_a_character_that_buildkit_cuts() {
        let text = "FROM a\nRUN --mount=type=cache,target=/root/.m2,id=a\u{a0}mvn\n";
        let found = dockerfile::check(text.as_bytes(), false).unwrap();
        assert_eq!((found.len(), found[0].fix), (1, None));
        assert!(found[0].advice.contains("half of a character"), "{}", found[0].advice);
        assert_mended(text.as_bytes());
    }

    #[test]
    fn variables_grow_neither_over_the_memory_nor_over_the_stack() {
        let doubled = "ENV A=$A$A\n".repeat(60);
        let nested = format!("{}{}", "${B:-".repeat(100_000), "}".repeat(100_000));
        for text in [
            format!("FROM a\nENV A=xy\n{doubled}RUN --mount=type=cache,target=$A/.m2 mvn\n"),
            format!("FROM a\nARG B\nRUN --mount=type=cache,target={nested}/.m2 mvn\n"),
        ] {
            let found = dockerfile::check(text.as_bytes(), false).unwrap();
            assert_eq!(found.iter().map(|it| it.rule).collect::<Vec<_>>(), [Rule::Variable]);
        }
    }

    #[test]
    fn what_somebody_else_has_written_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Dockerfile");
        fs::write(&path, "new").unwrap();
        let error = write(&path, b"old", b"fixed").unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        write(&path, b"new", b"fixed").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"fixed");
    }

    #[test]
    fn columns_are_counted_in_characters() {
        let mut places = Places::new("a\nüü😀x\ny".as_bytes());
        assert_eq!([2, 4, 10, 12].map(|at| places.position(at)), [(2, 1), (2, 2), (2, 4), (3, 1)]);
        assert_eq!(Places::new(b"").position(0), (1, 1));
    }
}
