//! What buildlock says, and how: one line an event to stderr, as text for people or JSON for
//! machines.
//!
//! The events and their fields are a promise to those who read them by program; each has a
//! function of its own here, and nothing else in the program writes to stderr.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::child::signals;
use crate::cli::{ColorChoice, CommonArgs, LogFormat};
use crate::duration::for_people;
use crate::exit::Exit;
use crate::lock::{Holder, Subject};
use crate::reference::Tag;
use crate::visible::is_visible;

/// Starts logging as the options and `BUILDLOCK_LOG` say.
///
/// # Errors
/// `BUILDLOCK_LOG` is no filter.
pub fn start(options: &CommonArgs) -> Result<(), String> {
    let filter = match (options.quiet, options.verbose, std::env::var("BUILDLOCK_LOG")) {
        (true, ..) => Targets::new().with_default(LevelFilter::WARN),
        (_, true, _) => Targets::new().with_default(LevelFilter::DEBUG),
        (_, _, Ok(text)) if !text.trim().is_empty() => {
            let targets = Targets::from_str(&text)
                .map_err(|error| format!("BUILDLOCK_LOG='{text}' is no log filter: {error}"))?;
            // A filter that names targets only, or a level that is misspelt, silences no errors.
            let level = targets.default_level().unwrap_or(LevelFilter::WARN);
            targets.with_default(level)
        }
        _ => Targets::new().with_default(LevelFilter::INFO),
    };
    let style = match options.log_format {
        LogFormat::Json => Style::Json,
        LogFormat::Text if colour(options.color) => Style::ColouredText,
        LogFormat::Text => Style::Text,
    };
    let _ = LIVE_LINE.set(
        options.log_format == LogFormat::Text
            && options.color != ColorChoice::Never
            && !options.quiet
            && is_capable_terminal(),
    );
    // Only a second call could fail.
    let _ = tracing::subscriber::set_global_default(Stderr { style, filter });
    Ok(())
}

static LIVE_LINE: OnceLock<bool> = OnceLock::new();

/// On a terminal, one line that moves while we wait, instead of repeated ones. Cleared when
/// dropped.
pub struct LiveLine(ProgressBar);

impl LiveLine {
    /// The live line, where there is a terminal for one.
    pub fn start() -> Option<Self> {
        let wanted = LIVE_LINE.get().copied().unwrap_or(false) && tracing::enabled!(Level::INFO);
        wanted.then(|| {
            signals::wipe_live_line_at_end();
            // One line, cut at the terminal's width: a longer one would break and pile up.
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            LiveLine(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())))
        })
    }

    /// Shows who is waited for, and for how long.
    pub fn show(&mut self, subject: &Subject, holder: Option<&Holder>, waited: Duration) {
        let waiting = Waiting { subject, holder };
        if ENDED.load(Ordering::SeqCst) || !stderr_takes_more(Duration::ZERO) {
            return;
        }
        SHOWN.store(true, Ordering::SeqCst);
        self.0.set_message(one_line(&format!("[{}] {waiting}", for_people(waited))));
        self.0.tick();
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        if !stderr_takes_more(Duration::ZERO) {
            self.0.set_draw_target(ProgressDrawTarget::hidden());
        }
        self.0.finish_and_clear();
        SHOWN.store(false, Ordering::Relaxed);
    }
}

static SHOWN: AtomicBool = AtomicBool::new(false);
static ENDED: AtomicBool = AtomicBool::new(false);

/// No live line is drawn any more, whoever waits. Is there one that is to be wiped?
pub fn end_live_line() -> bool {
    ENDED.store(true, Ordering::SeqCst);
    live_line_is_shown()
}

/// Is there a live line on the terminal that somebody who ends the process is to wipe?
pub fn live_line_is_shown() -> bool {
    SHOWN.load(Ordering::Relaxed)
}

fn is_capable_terminal() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn colour(choice: ColorChoice) -> bool {
    // <https://no-color.org>: present and not empty.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => !no_color && is_capable_terminal(),
    }
}

/// The image exists: nothing to build. `check` is what said so, if not the engine.
pub fn present(tag: &Tag, check: Option<&str>) {
    let (event, name) = ("present", tag.as_str());
    match check {
        None => tracing::info!(event, tag = name, "{tag}: present, nothing to build"),
        Some(check) => tracing::info!(
            event,
            tag = name,
            check,
            "{tag}: present (--check {check}), nothing to build"
        ),
    }
}

/// What this call ends with comes from another build than it would have run itself. `result` says
/// what that is.
pub fn built_otherwise(subject: &Subject, result: &str, theirs: &Holder, ours: &Holder) {
    let build = |holder: &Holder| {
        let command = holder.command.as_deref().unwrap_or("a command that is not known");
        match &holder.directory {
            Some(directory) => format!("{command} (in {directory})"),
            None => command.to_owned(),
        }
    };
    let account = if theirs.claimed { ", by its own account," } else { "" };
    tracing::warn!(
        "{subject}: {result} may not be the one wanted here: the build that this call waited for \
         ran{account} {}, and this one would have run {}; images that differ need different tags",
        build(theirs),
        build(ours)
    );
}

/// Somebody else has the lock.
pub fn waiting(subject: &Subject, lock: &Path, holder: Option<&Holder>, waited: Duration) {
    let so_far = match waited.as_secs() {
        0 => String::new(),
        _ => format!(" (waited {} so far)", for_people(waited)),
    };
    tracing::info!(
        event = "waiting",
        tag = subject.tag(),
        name = subject.name(),
        cache = subject.cache(),
        lock = %lock.display(),
        holder.pid = holder.map(|holder| holder.pid),
        holder.user = holder.and_then(|holder| holder.user.as_deref()),
        holder.host = holder.and_then(|holder| holder.host.as_deref()),
        holder.command = holder.and_then(|holder| holder.command.as_deref()),
        holder.since = holder.and_then(|holder| holder.since.as_deref()),
        holder.claimed = holder.map(|holder| holder.claimed),
        waited_s = waited.as_secs_f64(),
        "{}{so_far}",
        Waiting { subject, holder }
    );
}

/// The text of a waiting message: `env:abc: waiting for alice@ci-3, pid 4242, building for 2m 3s:
/// docker build -t env:abc .`
pub struct Waiting<'a> {
    /// What is waited for.
    pub subject: &'a Subject,
    /// Who has it.
    pub holder: Option<&'a Holder>,
}

impl std::fmt::Display for Waiting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.holder {
            Some(holder) => write!(f, "{}: waiting for {holder}", self.subject),
            None => write!(
                f,
                "{}: waiting for its lock, held by a process that cannot be seen from here",
                self.subject
            ),
        }
    }
}

/// The lock is ours.
pub fn acquired(subject: &Subject, waited: Duration) {
    let tag = subject.tag();
    let name = subject.name();
    let waited_s = waited.as_secs_f64();
    match waited.as_secs() {
        0 => tracing::info!(event = "acquired", tag, name, waited_s, "{subject}: locked"),
        _ => tracing::info!(
            event = "acquired",
            tag,
            name,
            waited_s,
            "{subject}: locked after {}",
            for_people(waited)
        ),
    }
}

/// A build cache's lock is ours, alone or with others, and why.
pub fn acquired_cache(subject: &Subject, shared: bool, why: &str, waited: Duration) {
    let mode = if shared { "shared" } else { "exclusive" };
    let after = match waited.as_secs() {
        0 => String::new(),
        _ => format!(" after {}", for_people(waited)),
    };
    tracing::info!(
        event = "acquired",
        tag = subject.tag(),
        name = subject.name(),
        cache = subject.cache(),
        mode,
        reason = why,
        waited_s = waited.as_secs_f64(),
        "{subject}: locked{after}: {why}"
    );
}

/// COMMAND starts.
pub fn building(tags: &[Tag], command: &str) {
    tracing::info!(
        event = "building",
        tags = list(tags),
        command,
        "{}: building: {command}",
        Names(tags)
    );
}

/// COMMAND ended with 0, and every image is there.
pub fn built(tags: &[Tag], elapsed: Duration) {
    tracing::info!(
        event = "built",
        tags = list(tags),
        elapsed_s = elapsed.as_secs_f64(),
        "{}: built in {}",
        Names(tags),
        for_people(elapsed)
    );
}

/// COMMAND failed or was ended after `elapsed`; or another's did, and its failure is ours too.
pub fn failed(tags: &[Tag], exit: Exit, elapsed: Option<Duration>, why: &str) {
    let after =
        elapsed.map(|elapsed| format!(" after {}", for_people(elapsed))).unwrap_or_default();
    tracing::warn!(
        event = "failed",
        tags = list(tags),
        status = exit.shell_status(),
        elapsed_s = elapsed.map(|elapsed| elapsed.as_secs_f64()),
        "{}: {why}{after}: {exit}",
        Names(tags)
    );
}

/// A lock was not had in time: `waited` since the limit began to count, for all locks together.
pub fn timeout(subject: &Subject, holder: Option<&Holder>, waited: Duration) {
    tracing::error!(
        event = "timeout",
        tag = subject.tag(),
        name = subject.name(),
        cache = subject.cache(),
        waited_s = waited.as_secs_f64(),
        holder.pid = holder.map(|holder| holder.pid),
        holder.user = holder.and_then(|holder| holder.user.as_deref()),
        holder.host = holder.and_then(|holder| holder.host.as_deref()),
        holder.command = holder.and_then(|holder| holder.command.as_deref()),
        holder.since = holder.and_then(|holder| holder.since.as_deref()),
        holder.claimed = holder.map(|holder| holder.claimed),
        "gave up after {} (--timeout): {}",
        for_people(waited),
        Waiting { subject, holder }
    );
}

/// The lock is free again.
pub fn released(subject: &Subject) {
    tracing::debug!(
        event = "released",
        tag = subject.tag(),
        name = subject.name(),
        cache = subject.cache(),
        "{subject}: released"
    );
}

/// `lint` has looked at so many files, and found so much in them that is not mended.
pub fn linted(files: usize, errors: usize, notes: usize) {
    let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    tracing::info!(
        event = "linted",
        files,
        errors,
        notes,
        "looked at {}: {}, {}",
        many(files, "file"),
        many(errors, "error"),
        many(notes, "note")
    );
}

/// `lint` found a file that is not what its name says, and goes on without it.
pub fn left_out(error: &anyhow::Error) {
    tracing::warn!("{error:#}; left out");
}

/// The command line is wrong: in clap's words and colours, or as one line for machines.
pub fn usage(error: &clap::Error, options: Option<CommonArgs>) {
    match options {
        Some(options) if options.log_format == LogFormat::Json => {
            // A bad filter is one wrong thing too many to report.
            _ = start(&options);
            let text = error.to_string();
            tracing::error!("{}", text.trim_start_matches("error: ").trim_end());
        }
        Some(options) if options.color == ColorChoice::Never => {
            // Nobody may be there to read it.
            _ = write!(std::io::stderr(), "{error}");
        }
        _ => _ = error.print(),
    }
}

/// buildlock itself failed; the last line that it says.
pub fn error(error: &anyhow::Error) {
    tracing::error!("{error:#}");
}

/// tracing has no lists: they are recorded as JSON text in the fields named here, and unpacked by
/// the JSON writer.
const LISTS: &[&str] = &["tags"];

fn list(tags: &[Tag]) -> String {
    Value::from_iter(tags.iter().map(Tag::as_str)).to_string()
}

struct Names<'a>(&'a [Tag]);

impl std::fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, tag) in self.0.iter().enumerate() {
            write!(f, "{}{tag}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

enum Style {
    Text,
    ColouredText,
    Json,
}

/// Events as lines on stderr. There are no spans here, so there is no registry for them either: it
/// would cost more than all the rest of logging where there is nothing to say.
struct Stderr {
    style: Style,
    filter: Targets,
}

impl Subscriber for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.would_enable(metadata.target(), metadata.level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let levels = self.filter.iter().map(|(_, level)| level);
        levels.chain(self.filter.default_level()).max()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = event.metadata().level();
        let line = match self.style {
            Style::Json => fields.into_json(event),
            Style::Text => text(level, &fields.message, ["", "", "", ""]),
            Style::ColouredText => {
                text(level, &fields.message, ["\x1b[1m", "\x1b[33m", "\x1b[31m", "\x1b[0m"])
            }
        };
        to_stderr(line.as_bytes());
    }
}

/// Writes to stderr, as far as somebody takes it: a reader that has gone must not take the build
/// with it, and one that has stopped reading (a terminal after Ctrl-S, a full pipe) must not keep
/// limits and signals from doing their work, and others from the lock.
fn to_stderr(text: &[u8]) {
    /// How long we wait for such a reader, all lines together.
    const PATIENCE: Duration = Duration::from_secs(1);
    /// What a pipe that is ready takes without blocking, in bytes (pipe(7), PIPE_BUF).
    const PIECE: usize = 4096;
    static LEFT: Mutex<Duration> = Mutex::new(PATIENCE);
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    for piece in text.chunks(PIECE) {
        let start = Instant::now();
        let ready = stderr_takes_more(*left);
        *left = left.saturating_sub(start.elapsed());
        if !ready || std::io::stderr().lock().write_all(piece).is_err() {
            return;
        }
    }
}

/// Can stderr be written to, by `within` from now, without waiting for its reader?
fn stderr_takes_more(within: Duration) -> bool {
    let stderr = std::io::stderr();
    let until = Instant::now() + within;
    loop {
        let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
        let left = until.saturating_duration_since(Instant::now());
        match rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            // What cannot be polled can be tried.
            Err(_) => return true,
        }
    }
}

fn text(level: &Level, message: &str, [bold, yellow, red, plain]: [&str; 4]) -> String {
    let kind = match *level {
        Level::ERROR => format!("{red}error:{plain} "),
        Level::WARN => format!("{yellow}warning:{plain} "),
        _ => String::new(),
    };
    let mut line = format!("{bold}buildlock:{plain} {kind}");
    line.push_str(&one_line(message));
    line.push('\n');
    line
}

/// `text` in one line, with nothing in it that moves somebody's cursor or cannot be seen.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if !is_visible(c) => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

#[derive(Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn into_json(mut self, event: &Event<'_>) -> String {
        let metadata = event.metadata();
        let level = metadata.level().as_str();
        let mut line = Map::new();
        line.insert(
            "timestamp".into(),
            humantime::format_rfc3339_millis(SystemTime::now()).to_string().into(),
        );
        line.insert("level".into(), level.into());
        let event =
            self.values.remove("event").unwrap_or_else(|| level.to_ascii_lowercase().into());
        line.insert("event".into(), event);
        // What was declared and not recorded is unknown: null. Dotted names are members of objects;
        // an object of which nothing is known is null itself.
        for name in metadata.fields().iter().map(|field| field.name()) {
            if matches!(name, "event" | "message") {
                continue;
            }
            let value = self.values.remove(name).unwrap_or(Value::Null);
            match name.split_once('.') {
                None => _ = line.insert(name.into(), value),
                Some((object, member)) => {
                    let members = line.entry(object).or_insert_with(|| Map::new().into());
                    if let Value::Object(members) = members {
                        members.insert(member.into(), value);
                    }
                }
            }
        }
        for value in line.values_mut() {
            if value.as_object().is_some_and(|members| members.values().all(Value::is_null)) {
                *value = Value::Null;
            }
        }
        line.insert("message".into(), self.message.into());
        let mut text = String::new();
        let _ = writeln!(text, "{}", Value::Object(line));
        text
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // Milliseconds are as fine as anybody reads.
        self.values.insert(field.name().into(), ((value * 1000.0).round() / 1000.0).into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.values.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.values.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.values.insert(field.name().into(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let unpacked =
            LISTS.contains(&field.name()).then(|| serde_json::from_str(value).ok()).flatten();
        self.values.insert(field.name().into(), unpacked.unwrap_or_else(|| value.into()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            _ => _ = self.values.insert(field.name().into(), value.into()),
        }
    }
}
