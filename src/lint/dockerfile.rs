//! The cache mounts of a Dockerfile: where they are, what they say, what that means.

use std::collections::HashMap;
use std::ops::Range;

use parse_dockerfile::{Command, Instruction, RunInstruction};

use super::accepted::{Accepted, Answer};
use super::heredoc::{self, Masked};
use super::mixed::{self, Shared};
use super::shell::{self, Call};
use super::tools::{self, MOVED, Place, Ran, VARIABLES, Verdict};
use super::{Level, Rule};

/// What is wrong with a mount.
#[derive(Debug)]
pub struct Found {
    /// Where its `--mount` begins, in bytes.
    pub at: usize,
    /// What kind of thing it is.
    pub rule: Rule,
    /// What it is.
    pub message: String,
    /// What to do.
    pub advice: &'static str,
    /// Where `,sharing=locked` would mend it, in bytes.
    pub fix: Option<usize>,
}

/// Why a Dockerfile cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// Where, in bytes.
    pub at: usize,
    /// Why.
    pub why: String,
}

/// What is to be written behind a mount.
pub const FIX: &str = ",sharing=locked";

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Finds the cache mounts that race, or may. If it is `strict`, notes are errors.
///
/// # Errors
/// It is not a Dockerfile.
pub fn check(bytes: &[u8], strict: bool) -> Result<Vec<Found>, Unreadable> {
    let offset = if bytes.starts_with(BOM) { BOM.len() } else { 0 };
    let text = same_length_text(&bytes[offset..]);
    let mut found = check_text(&text, strict).map_err(|mut unreadable| {
        unreadable.at += offset;
        unreadable
    })?;
    for found in &mut found {
        found.at += offset;
        found.fix = found.fix.map(|fix| fix + offset);
    }
    Ok(found)
}

/// Bytes that are no text, in a comment say, must not move what comes behind them.
fn same_length_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    text
}

fn check_text(text: &str, strict: bool) -> Result<Vec<Found>, Unreadable> {
    let escape = escape(text);
    let Masked { text: masked, bodies } = heredoc::mask(text, escape).map_err(|error| {
        Unreadable { at: error.0, why: "this here-document has no end".to_owned() }
    })?;
    let failed = |error: parse_dockerfile::Error| Unreadable {
        at: start_of_line(text, error.line()),
        // With «#», without the position.
        why: format!("{error:#}"),
    };
    let mut scopes = Scopes::default();
    let (mut found, mut mounts) = (Vec::new(), Vec::new());
    for instruction in parse_dockerfile::parse_iter(&masked).map_err(failed)? {
        let instruction = instruction.map_err(failed)?;
        if let Some(run) = run_of(&instruction) {
            let source = Source { text, escape, bodies: &bodies };
            let mut calls = shell::calls(&source.command(run));
            scopes.set_for(&mut calls);
            scopes.stage.ran.note(&calls);
            source.check_all(run, &calls, &scopes, &mut found, &mut mounts)?;
        }
        scopes.pass(&instruction, escape)?;
    }
    mixed::add(&mut found, &mounts, text, |rule| rule.level(strict) == Level::Error);
    Ok(found)
}

fn run_of<'a, 'b>(instruction: &'b Instruction<'a>) -> Option<&'b RunInstruction<'a>> {
    match instruction {
        Instruction::Run(run) => Some(run),
        Instruction::Onbuild(onbuild) => run_of(&onbuild.instruction),
        _ => None,
    }
}

/// What the escape directive says. The parser tells it only with a whole Dockerfile.
fn escape(text: &str) -> u8 {
    let lines = text.split_inclusive('\n').map(str::trim_start);
    let mut directives: String = lines.take_while(|line| line.starts_with('#')).collect();
    directives.push_str("\nFROM scratch\n");
    let parsed = parse_dockerfile::parse(&directives);
    match parsed.ok().and_then(|file| file.parser_directives.escape).map(|escape| escape.value) {
        Some(escape) if escape.value == '`' => b'`',
        _ => b'\\',
    }
}

fn start_of_line(text: &str, line: usize) -> usize {
    text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum()
}

struct Source<'a> {
    text: &'a str,
    escape: u8,
    bodies: &'a [Range<usize>],
}

impl Source<'_> {
    /// Adds what is wrong with the mounts of a RUN, and its cache mounts.
    ///
    /// # Errors
    /// BuildKit would not take one of them.
    fn check_all(
        &self,
        run: &RunInstruction<'_>,
        calls: &[Call],
        scopes: &Scopes,
        found: &mut Vec<Found>,
        mounts: &mut Vec<Shared>,
    ) -> Result<(), Unreadable> {
        let accepted = Accepted::above(self.text, run.run.span.start);
        for flag in &run.options {
            // Its name may be quoted as well, which the parser does not know.
            let word = self.flag_word(flag.name.span.start);
            if word.chars.is_empty() {
                // Behind a lone `--` is the command.
                break;
            }
            if let Some(mount) = word.chars.strip_prefix(&MOUNT) {
                let at = flag.span().start;
                let mount = Mount::read(mount, scopes);
                if let Some(key) = &mount.unknown {
                    let why = format!("BuildKit knows no '{key}' in a --mount");
                    return Err(Unreadable { at, why });
                }
                let mut wrong = Self::check(at, &mount, word.end, calls, scopes);
                if let Some(it) = &mut wrong {
                    match accepted.answer(it.rule.name()) {
                        Answer::Accepted => wrong = None,
                        Answer::WithoutReason => {
                            it.message.push_str(" (the comment that ignores it gives no reason)");
                        }
                        Answer::Nothing => {}
                    }
                }
                found.extend(wrong);
                let is_accepted = accepted.answer(Rule::Mixed.name()) == Answer::Accepted;
                mounts.extend(mount.shared(at, word.end, is_accepted));
            }
            if word.end.is_none() {
                // The parser has not seen the blank, so what comes next may be the command.
                break;
            }
        }
        Ok(())
    }

    fn check(
        at: usize,
        mount: &Mount,
        end: Option<usize>,
        calls: &[Call],
        scopes: &Scopes,
    ) -> Option<Found> {
        if mount.kind.as_deref() != Some("cache") || mount.read_only {
            return None;
        }
        let fix = end.filter(|_| !mount.says_sharing);
        let target = mount.target.shown.as_deref()?;
        let note = |rule, why: String, advice, fix| {
            let message = format!("cache mount {target} {why}");
            let advice = if end.is_some() { advice } else { CUT_ADVICE };
            Some(Found { at, rule, message, advice, fix })
        };
        match mount.sharing.as_deref() {
            Some("shared") => {}
            // What BuildKit does not know is for BuildKit to say.
            Some(_) => return None,
            None => {
                let why = "says its sharing with a variable that only a build knows".to_owned();
                return note(Rule::Variable, why, "see that it is locked or private", None);
            }
        }
        let Some(path) = &mount.target.path else {
            let why = "is at a place that only a build knows".to_owned();
            return note(Rule::Variable, why, UNKNOWN_ADVICE, fix);
        };
        if target.starts_with('~') {
            let why =
                "is a folder named ~ and not in the home folder, where tools write".to_owned();
            return note(Rule::Unknown, why, "write the whole path", None);
        }
        let places = scopes.places(path, &tools::moves(calls));
        match tools::judge(path, &places, calls, &scopes.stage.ran) {
            Verdict::Safe => None,
            Verdict::Races(why) => {
                let advice = match fix {
                    Some(_) => "add sharing=locked",
                    None => "say sharing=locked instead of shared",
                };
                note(Rule::Race, format!("races: {why}"), advice, fix)
            }
            // Somebody has looked at it.
            Verdict::Unknown if mount.says_sharing => None,
            Verdict::Unknown => {
                let why = "is shared, and buildlock does not know what writes to it".to_owned();
                note(Rule::Unknown, why, UNKNOWN_ADVICE, fix)
            }
        }
    }

    /// A flag without its dashes, as BuildKit's extractBuilderFlags takes it out of the line: quotes
    /// go away, a backslash makes the next byte an ordinary one. It looks at bytes, not characters.
    fn flag_word(&self, start: usize) -> Word {
        let text = self.text.as_bytes();
        let (mut bytes, mut quote, mut at, mut end) = (Vec::new(), None, start, start);
        // Behind the name's `=`, and where the first pair of quotes is.
        let (mut value, mut opened, mut closed) = (None, None, None);
        while let Some(&byte) = text.get(at) {
            if let Some(next) = self.continued(at) {
                at = next;
                continue;
            }
            let escaped = text.get(at + 1).filter(|byte| **byte != b'\n');
            match (quote, byte, escaped) {
                (_, b'\n', _) => break,
                (None, ..) if is_space(byte) => break,
                (Some(open), ..) if byte == open => {
                    quote = None;
                    closed = closed.or(Some(at));
                }
                (None, b'"' | b'\'', _) => {
                    quote = Some(byte);
                    opened = opened.or(Some(at));
                }
                (_, b'\\', Some(escaped)) => {
                    bytes.push(*escaped);
                    at += 1;
                }
                _ => bytes.push(byte),
            }
            at += 1;
            end = at;
            value = value.or_else(|| (byte == b'=').then_some(at));
        }
        // Before the quote if all of it, or of the value, is in one pair of them.
        let is_quoted = opened.is_some_and(|opened| opened == start || value == Some(opened));
        let end = closed.filter(|closed| is_quoted && closed + 1 == end).unwrap_or(end);
        let chars = String::from_utf8_lossy(&bytes).chars().collect();
        Word { chars, end: self.text.is_char_boundary(end).then_some(end) }
    }

    /// Where the text goes on behind a line that is continued here.
    fn continued(&self, at: usize) -> Option<usize> {
        let bytes = self.text.as_bytes();
        let rest = bytes[at..].strip_prefix(&[self.escape])?;
        let blanks = rest.iter().take_while(|b| b" \t\r".contains(b)).count();
        if rest.get(blanks) != Some(&b'\n') {
            return None;
        }
        let mut next = at + 1 + blanks + 1;
        while next < bytes.len() {
            let (line, behind) = heredoc::line(bytes, next);
            if !heredoc::says_nothing(&self.text[line]) {
                break;
            }
            next = behind;
        }
        Some(next)
    }

    /// What a RUN runs, with its here-documents.
    fn command(&self, run: &RunInstruction<'_>) -> String {
        let span = match &run.arguments {
            Command::Exec(words) => words.span.clone(),
            Command::Shell(words) => words.span.clone(),
            _ => return String::new(),
        };
        let behind = heredoc::line(self.text.as_bytes(), span.end).1;
        let mut command = self.text[span].to_owned();
        let mut next = behind;
        let first = self.bodies.partition_point(|body| body.start < behind);
        for body in self.bodies[first..].iter().take_while(|body| {
            let follows = body.start == next;
            next = body.end;
            follows
        }) {
            command.push('\n');
            command.push_str(&self.text[body.clone()]);
        }
        command
    }
}

const MOUNT: [char; 6] = ['m', 'o', 'u', 'n', 't', '='];

const UNKNOWN_ADVICE: &str =
    "add sharing=locked unless the tool may be run twice on one folder at the same time";

const CUT_ADVICE: &str = "BuildKit takes half of a character in it for a blank: replace that, or \
                          put quotes around all of it";

/// Go's unicode.IsSpace, of a byte that is taken for a character.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0x85 | 0xA0)
}

struct Word {
    chars: Vec<char>,
    /// Where more can be written. None: it ends within a character.
    end: Option<usize>,
}

/// A `--mount`, as far as it matters here.
#[derive(Debug, Default)]
struct Mount {
    kind: Option<String>,
    target: Target,
    says_sharing: bool,
    /// None: only a build knows.
    sharing: Option<String>,
    read_only: bool,
    /// None: only a build knows, or it is the target.
    id: Option<String>,
    has_id: bool,
    /// A key that BuildKit would refuse.
    unknown: Option<String>,
}

#[derive(Debug, Default)]
struct Target {
    /// As it is written.
    shown: Option<String>,
    /// With its variables. None: only a build knows.
    written: Option<String>,
    /// The same in the working folder.
    path: Option<String>,
}

impl Mount {
    /// Reads `type=cache,target=/a`. What stands last counts, as in BuildKit
    /// (frontend/dockerfile/instructions/commands_runmount.go).
    fn read(chars: &[char], scopes: &Scopes) -> Mount {
        let mut mount = Mount { sharing: Some("shared".to_owned()), ..Mount::default() };
        for field in fields(chars) {
            let (key, value) = match field.iter().position(|c| *c == '=') {
                Some(equals) => (&field[..equals], Some(&field[equals + 1..])),
                None => (&field[..], None),
            };
            let key: String = key.iter().collect::<String>().to_lowercase();
            let value = value.unwrap_or_default();
            match key.as_str() {
                "type" => mount.kind = scopes.expand(value).map(|kind| kind.to_lowercase()),
                "target" | "dst" | "destination" => {
                    let written = scopes.expand(value);
                    mount.target = Target {
                        shown: Some(value.iter().collect()),
                        path: written.clone().map(|path| scopes.in_workdir(path)),
                        written,
                    };
                }
                "sharing" => {
                    mount.says_sharing = true;
                    mount.sharing = scopes.expand(value).map(|sharing| sharing.to_lowercase());
                }
                "ro" | "readonly" => mount.read_only = is_true(value),
                "rw" | "readwrite" => mount.read_only = !is_true(value),
                "id" => {
                    mount.has_id = true;
                    mount.id = scopes.expand(value);
                }
                known if KEYS.contains(&known) || known.contains('$') => {}
                _ => mount.unknown = Some(key),
            }
        }
        mount
    }

    /// This mount as one of those that share a cache. None: it is none, only reads, or only a build
    /// knows which one.
    fn shared(&self, at: usize, end: Option<usize>, is_accepted: bool) -> Option<Shared> {
        let is_locked = match self.sharing.as_deref() {
            Some("shared") => false,
            Some("locked") => true,
            _ => return None,
        };
        if self.kind.as_deref() != Some("cache") || self.read_only {
            return None;
        }
        let target = self.target.shown.clone()?;
        let id = match self.has_id {
            true => self.id.clone()?,
            false => self.target.written.as_deref().map(clean)?,
        };
        let fix = end.filter(|_| !self.says_sharing);
        Some(Shared { id, at, target, is_locked, fix, is_accepted })
    }
}

/// What else a mount may say (BuildKit's `parseMount`).
const KEYS: [&str; 9] = ["from", "source", "src", "required", "size", "mode", "uid", "gid", "env"];

/// A path without its end and doubled slashes, as Go's path.Clean leaves it.
fn clean(path: &str) -> String {
    let components: Vec<_> = path.split('/').filter(|it| !it.is_empty() && *it != ".").collect();
    let start = if path.starts_with('/') { "/" } else { "" };
    format!("{start}{}", components.join("/"))
}

/// Go's ParseBool; a word without a value is true.
fn is_true(value: &[char]) -> bool {
    let value: String = value.iter().collect();
    ["", "1", "t", "T", "true", "TRUE", "True"].contains(&&*value)
}

/// The fields of one line of CSV.
fn fields(chars: &[char]) -> Vec<Vec<char>> {
    let mut fields = vec![Vec::new()];
    let mut quoted = false;
    let mut rest = chars.iter().copied().peekable();
    while let Some(c) = rest.next() {
        let is_empty = fields.last().is_none_or(Vec::is_empty);
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => {
                rest.next();
                fields.last_mut().into_iter().for_each(|field| field.push('"'));
            }
            '"' if quoted => quoted = false,
            '"' if is_empty => quoted = true,
            ',' if !quoted => fields.push(Vec::new()),
            _ => fields.last_mut().into_iter().for_each(|field| field.push(c)),
        }
    }
    fields
}

/// What is known of variables and of the working folder.
#[derive(Debug, Default)]
struct Scopes {
    /// ARG in front of the first FROM. None: it has no default.
    global: HashMap<String, Option<String>>,
    /// Those that have ended.
    stages: Vec<Stage>,
    names: HashMap<String, usize>,
    name: Option<String>,
    stage: Stage,
    in_stage: bool,
}

#[derive(Debug, Default)]
struct Stage {
    /// The one that it is built from. What that one knows is looked up there, not copied: of a long
    /// row of stages each would have a copy of all before it.
    parent: Option<usize>,
    /// None: only a build knows.
    env: HashMap<String, Option<String>>,
    arg: HashMap<String, Option<String>>,
    workdir: Option<String>,
    ran: Ran,
}

/// No path is as long, in bytes (PATH_MAX). Without a bound, variables that hold each other twice
/// grow until there is no memory left, and defaults of defaults until there is no stack.
const LONGEST_VALUE: usize = 4096;

/// What a variable has.
enum Value {
    Known(String),
    /// Declared, with nothing in it.
    Unset,
    Unknown,
}

impl Scopes {
    /// Takes in what an instruction says.
    ///
    /// # Errors
    /// BuildKit would not take it.
    fn pass(&mut self, instruction: &Instruction<'_>, escape: u8) -> Result<(), Unreadable> {
        match instruction {
            Instruction::From(from) => {
                self.end_stage();
                let base = from.image.value.to_lowercase();
                let parent = self.names.get(&base).copied();
                let (workdir, ran) = match parent.and_then(|parent| self.stages.get(parent)) {
                    Some(parent) => (parent.workdir.clone(), parent.ran.clone()),
                    None => Default::default(),
                };
                self.stage = Stage { parent, workdir, ran, ..Stage::default() };
                self.name = from.as_.as_ref().map(|(_, name)| name.value.to_lowercase());
                self.in_stage = true;
            }
            Instruction::Arg(arg) => {
                for word in shell_words(&arg.arguments.value, escape) {
                    let (name, value) = assignment(&word);
                    let value = value.map(|value| self.expand_marked(value));
                    self.declare(name, value);
                }
            }
            Instruction::Env(env) => {
                let words = shell_words(&env.arguments.value, escape);
                // All of a line see what was before it.
                let values: Vec<_> = match words.first() {
                    // ENV name the rest is the value
                    Some(first) if !first.iter().any(|(c, _)| *c == '=') => {
                        if words.len() < 2 {
                            let why = "ENV needs a name and a value".to_owned();
                            return Err(Unreadable { at: env.env.span.start, why });
                        }
                        let rest: Vec<_> = words[1..].join(&[(' ', false)][..]);
                        vec![(first.iter().map(|(c, _)| c).collect(), self.expand_marked(&rest))]
                    }
                    _ => words
                        .iter()
                        .map(|word| {
                            let (name, value) = assignment(word);
                            (name, self.expand_marked(value.unwrap_or_default()))
                        })
                        .collect(),
                };
                self.stage.env.extend(values);
            }
            Instruction::Workdir(workdir) => {
                let path: Vec<char> = workdir.arguments.value.chars().collect();
                self.stage.workdir = self.expand(&path).map(|path| self.in_workdir(path));
            }
            _ => {}
        }
        Ok(())
    }

    fn end_stage(&mut self) {
        if let Some(name) = self.name.take() {
            self.names.insert(name, self.stages.len());
            self.stages.push(std::mem::take(&mut self.stage));
        }
    }

    /// This stage, the one that it is built from, and so on.
    fn line_of_stages(&self) -> impl Iterator<Item = &Stage> {
        let parent = |stage: &&Stage| stage.parent.and_then(|parent| self.stages.get(parent));
        std::iter::successors(Some(&self.stage), parent)
    }

    fn env(&self, name: &str) -> Option<&Option<String>> {
        self.line_of_stages().find_map(|stage| stage.env.get(name))
    }

    fn arg(&self, name: &str) -> Option<&Option<String>> {
        self.line_of_stages().find_map(|stage| stage.arg.get(name))
    }

    fn declare(&mut self, name: String, value: Option<Option<String>>) {
        if !self.in_stage {
            self.global.insert(name, value.unwrap_or_default());
            return;
        }
        match value.or_else(|| self.global.get(&name).cloned().filter(Option::is_some)) {
            Some(value) => _ = self.stage.arg.insert(name, value),
            // What it has stays, from the parent stage say.
            None if self.arg(&name).is_some() => {}
            None => _ = self.stage.arg.insert(name, None),
        }
    }

    fn value(&self, name: &str) -> Value {
        let stage = self.env(name).map(|value| value.clone().map_or(Value::Unknown, Value::Known));
        let or_unset = |value: &Option<String>| value.clone().map_or(Value::Unset, Value::Known);
        if let Some(value) = stage.or_else(|| self.arg(name).map(or_unset)) {
            return value;
        }
        if !self.in_stage {
            return self.global.get(name).map_or(Value::Unknown, or_unset);
        }
        let usual = VARIABLES.iter().find(|(variable, _)| *variable == name);
        usual.map_or(Value::Unknown, |(_, path)| Value::Known((*path).to_owned()))
    }

    fn expand(&self, text: &[char]) -> Option<String> {
        let marked: Vec<_> = text.iter().map(|c| (*c, true)).collect();
        self.expand_marked(&marked)
    }

    /// Puts in what variables have; `$` of characters that are marked with false is just that.
    /// None: only a build knows, or it is longer than any path.
    fn expand_marked(&self, text: &[(char, bool)]) -> Option<String> {
        if text.len() > LONGEST_VALUE {
            return None;
        }
        let mut expanded = String::new();
        let mut rest = text;
        while let Some(((c, expands), behind)) = rest.split_first() {
            rest = behind;
            if !(*c == '$' && *expands) {
                expanded.push(*c);
                continue;
            }
            let is_name = |(c, _): &&(char, bool)| c.is_ascii_alphanumeric() || *c == '_';
            let braces = rest.first().is_some_and(|(c, _)| *c == '{');
            rest = if braces { &rest[1..] } else { rest };
            let (name, behind) = rest.split_at(rest.iter().take_while(is_name).count());
            rest = behind;
            let name: String = name.iter().map(|(c, _)| c).collect();
            let value = self.value(&name);
            if !braces {
                match value {
                    Value::Known(value) if !name.is_empty() => expanded.push_str(&value),
                    _ => return None,
                }
                continue;
            }
            let end = closing_brace(rest)?;
            let (operator, behind) = (&rest[..end], &rest[end + 1..]);
            rest = behind;
            let (empty_counts, operator) = match operator.split_first() {
                Some(((':', _), operator)) => (false, operator),
                _ => (true, operator),
            };
            match (operator.split_first(), value) {
                (_, Value::Unknown) => return None,
                (None, Value::Known(value)) if empty_counts => expanded.push_str(&value),
                (Some((('-', _), _)), Value::Known(value)) if empty_counts || !value.is_empty() => {
                    expanded.push_str(&value);
                }
                (Some((('-', _), word)), _) => expanded.push_str(&self.expand_marked(word)?),
                (Some((('+', _), word)), Value::Known(value))
                    if empty_counts || !value.is_empty() =>
                {
                    expanded.push_str(&self.expand_marked(word)?);
                }
                (Some((('+', _), _)), _) => {}
                _ => return None,
            }
        }
        (expanded.len() <= LONGEST_VALUE).then_some(expanded)
    }

    fn in_workdir(&self, path: String) -> String {
        match &self.stage.workdir {
            Some(workdir) if !path.starts_with('/') => format!("{workdir}/{path}"),
            _ => path,
        }
    }

    /// Gives calls the variables that the Dockerfile sets and that say whether caches are used.
    fn set_for(&self, calls: &mut [Call]) {
        const NAME: &str = "PIP_NO_CACHE_DIR";
        let set = self.env(NAME).or_else(|| self.arg(NAME)).cloned().flatten();
        let Some(value) = set else { return };
        for call in calls {
            call.env.insert(0, (NAME.to_owned(), value.clone()));
        }
    }

    /// Where the folder `path` would usually be: where the variables of this stage, and what the RUN
    /// itself says (`moves`), have put caches. A cache below it is a part of it.
    fn places(&self, path: &str, moves: &[(&'static str, String)]) -> Vec<Place> {
        let path = path.trim_end_matches('/');
        let mut places = Vec::new();
        let mut closest = 0;
        for (name, usual) in VARIABLES.iter().chain(MOVED) {
            let moved = moves.iter().filter(|(it, _)| it == name).filter_map(|(_, value)| {
                let value: Vec<char> = value.chars().collect();
                self.expand(&value).map(|value| self.in_workdir(value))
            });
            let value = match self.value(name) {
                Value::Known(value) => Some(value),
                _ => None,
            };
            for place in moved.chain(value) {
                let place = place.trim_end_matches('/');
                if place.is_empty() {
                    continue;
                }
                let below =
                    path.strip_prefix(place).filter(|it| it.is_empty() || it.starts_with('/'));
                if let Some(below) = below {
                    closest = closest.max(place.len());
                    places.push((
                        place.len(),
                        Place { path: format!("{usual}{below}"), is_part: false },
                    ));
                } else if place.strip_prefix(path).is_some_and(|it| it.starts_with('/')) {
                    let part = Place { path: (*usual).to_owned(), is_part: true };
                    places.push((usize::MAX, part));
                }
            }
        }
        // Of variables that lead there, the one nearest to it tells what it is.
        places.retain(|(length, _)| *length >= closest);
        let mut places: Vec<_> = places.into_iter().map(|(_, place)| place).collect();
        if closest == 0 {
            places.push(Place { path: path.to_owned(), is_part: false });
        }
        places
    }
}

/// Where the `}` is that belongs to a `{` in front.
fn closing_brace(text: &[(char, bool)]) -> Option<usize> {
    let mut depth = 0;
    text.iter().position(|(c, _)| match c {
        '{' => {
            depth += 1;
            false
        }
        '}' if depth > 0 => {
            depth -= 1;
            false
        }
        '}' => true,
        _ => false,
    })
}

/// `name=value`, or `name`.
fn assignment(word: &[(char, bool)]) -> (String, Option<&[(char, bool)]>) {
    let name = word.iter().take_while(|(c, _)| *c != '=').count();
    (word[..name].iter().map(|(c, _)| c).collect(), word.get(name + 1..))
}

/// Words without their quotes; each character with whether a `$` would still mean a variable.
fn shell_words(text: &str, escape: u8) -> Vec<Vec<(char, bool)>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<(char, bool)>> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, _) if c.is_whitespace() => {
                words.extend(word.take());
                continue;
            }
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), _) if c == char::from(escape) => {
                word.get_or_insert_default().extend(chars.next().map(|c| (c, false)));
            }
            _ => word.get_or_insert_default().push((c, quote != Some('\''))),
        }
    }
    words.extend(word);
    words
}

impl Rule {
    /// How bad it is.
    pub fn level(self, strict: bool) -> Level {
        match self {
            Rule::Race | Rule::Mixed | Rule::SameImage => Level::Error,
            Rule::Unknown | Rule::Variable if strict => Level::Error,
            Rule::Unknown | Rule::Variable => Level::Note,
        }
    }
}
