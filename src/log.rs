//! The events that buildlock logs, one line each, to stderr.
//!
//! Programs read the events and their fields, so both are a promise. Each event has a function here.

mod lines;

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};

use self::lines::{Stderr, Style, list};
use crate::duration::for_people;
use crate::exit::Exit;
use crate::record::Holder;
use crate::reference::Tag;
use crate::subject::Subject;
use crate::terminal;

/// Options of the log.
#[derive(Clone, Copy, Debug, Args)]
pub struct Options {
    /// Only warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say more
    ///
    /// For finer control, BUILDLOCK_LOG takes a filter of tracing, such as buildlock=debug.
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// How to write the log, to stderr
    ///
    /// text for people, json for machines: one object per line. [env: BUILDLOCK_LOG_FORMAT]
    #[arg(long = "log-format", value_name = "FORMAT", value_enum, global = true, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// When to use colours and a live line while waiting
    ///
    /// NO_COLOR is honoured.
    #[arg(long, value_name = "WHEN", value_enum, global = true, default_value_t = ColorChoice::Auto)]
    pub color: ColorChoice,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// For machines
    Json,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Starts logging as the options and `BUILDLOCK_LOG` say.
///
/// # Errors
/// `BUILDLOCK_LOG` is not a filter.
pub fn start(options: &Options) -> Result<(), String> {
    let filter = match (options.quiet, options.verbose, std::env::var("BUILDLOCK_LOG")) {
        (true, ..) => Targets::new().with_default(LevelFilter::WARN),
        (_, true, _) => Targets::new().with_default(LevelFilter::DEBUG),
        (_, _, Ok(text)) if !text.trim().is_empty() => {
            let targets = Targets::from_str(&text)
                .map_err(|error| format!("BUILDLOCK_LOG='{text}' is not a log filter: {error}"))?;
            // A filter that only names targets, or misspells a level, does not silence errors.
            let level = targets.default_level().unwrap_or(LevelFilter::WARN);
            targets.with_default(level)
        }
        _ => Targets::new().with_default(LevelFilter::INFO),
    };
    let style = match options.log_format {
        LogFormat::Json => Style::Json,
        LogFormat::Text if is_coloured(options.color) => Style::ColouredText,
        LogFormat::Text => Style::Text,
    };
    let is_for_people = options.log_format == LogFormat::Text && !options.quiet;
    terminal::allow_live_line(is_for_people && options.color != ColorChoice::Never);
    // Only a second call could fail.
    _ = tracing::subscriber::set_global_default(Stderr { style, filter });
    Ok(())
}

fn is_coloured(choice: ColorChoice) -> bool {
    // <https://no-color.org>: present and not empty.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => !no_color && terminal::is_capable(),
    }
}

/// The image exists and nothing is built. `check` is what said so, if not the engine.
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

/// This call ends with the `result` of a build that differs from its own.
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

/// Another process holds the lock.
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
        holder.shares = holder.filter(|holder| holder.shares).map(|_| true),
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
    /// Its holder.
    pub holder: Option<&'a Holder>,
}

impl std::fmt::Display for Waiting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.holder {
            Some(holder) => write!(f, "{}: waiting for {holder}", self.subject),
            None => {
                write!(f, "{}: waiting for its lock; it is not known who holds it", self.subject)
            }
        }
    }
}

/// As many builds run as may.
pub struct WaitingForSlot {
    /// How many run.
    pub running: usize,
    /// How many may, by this call's own account.
    pub limit: u16,
}

impl std::fmt::Display for WaitingForSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let WaitingForSlot { running, limit } = self;
        if *running <= usize::from(*limit) {
            write!(f, "waiting for a free slot: {running} of {limit} builds are running")
        } else {
            write!(f, "waiting for a free slot: {running} builds are running, and {limit} may")
        }
    }
}

/// This call waits for a slot.
pub fn waiting_for_slot(waiting: &WaitingForSlot, waited: Duration) {
    let so_far = match waited.as_secs() {
        0 => String::new(),
        _ => format!(" (waited {} so far)", for_people(waited)),
    };
    tracing::info!(
        event = "waiting",
        running = waiting.running,
        max_builds = waiting.limit,
        waited_s = waited.as_secs_f64(),
        "{waiting}{so_far}"
    );
}

/// No slot was free in time.
pub fn slot_timeout(waiting: &WaitingForSlot, waited: Duration) {
    tracing::error!(
        event = "timeout",
        running = waiting.running,
        max_builds = waiting.limit,
        waited_s = waited.as_secs_f64(),
        "gave up after {} (--timeout): {waiting}",
        for_people(waited)
    );
}

/// This call waits for a slot inside of another call that has a lock and no slot.
pub fn slot_may_deadlock(theirs: &Subject) {
    tracing::warn!(
        "this wait for a free slot can deadlock: an outer call holds {theirs}, and no slot; give the \
         outer call --max-builds, too (or set BUILDLOCK_MAX_BUILDS for both)"
    );
}

/// This process has a slot.
pub fn acquired_slot(subject: &Subject, limit: u16) {
    tracing::debug!(
        event = "acquired",
        slot = subject.slot(),
        max_builds = limit,
        "{subject}: taken, of {limit}"
    );
}

/// This process holds the lock.
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

/// This process holds a named lock, alone or with others that share it.
pub fn acquired_named(subject: &Subject, shared: bool, waited: Duration) {
    let after = match waited.as_secs() {
        0 => String::new(),
        _ => format!(" after {}", for_people(waited)),
    };
    tracing::info!(
        event = "acquired",
        tag = subject.tag(),
        name = subject.name(),
        mode = mode(shared),
        waited_s = waited.as_secs_f64(),
        "{subject}: locked{after}{}",
        if shared { ", shared" } else { "" }
    );
}

/// This process holds a build cache's lock, alone or with others, for this reason.
pub fn acquired_cache(subject: &Subject, shared: bool, why: &str, waited: Duration) {
    let after = match waited.as_secs() {
        0 => String::new(),
        _ => format!(" after {}", for_people(waited)),
    };
    tracing::info!(
        event = "acquired",
        tag = subject.tag(),
        name = subject.name(),
        cache = subject.cache(),
        mode = mode(shared),
        reason = why,
        waited_s = waited.as_secs_f64(),
        "{subject}: locked{after}: {why}"
    );
}

fn mode(shared: bool) -> &'static str {
    if shared { "shared" } else { "exclusive" }
}

/// The build command starts.
pub fn building(what: &What<'_>, command: &str) {
    let doing = if what.tags.is_empty() { "running" } else { "building" };
    tracing::info!(
        event = "building",
        tags = list(what.tags),
        command,
        "{what}: {doing}: {command}"
    );
}

/// The build command exited 0, and every image is present.
pub fn built(what: &What<'_>, elapsed: Duration) {
    let done = if what.tags.is_empty() { "done" } else { "built" };
    tracing::info!(
        event = "built",
        tags = list(what.tags),
        elapsed_s = elapsed.as_secs_f64(),
        "{what}: {done} in {}",
        for_people(elapsed)
    );
}

/// The build command failed or was ended after `elapsed`, or a failure of another build is shared.
pub fn failed(what: &What<'_>, exit: Exit, elapsed: Option<Duration>, why: &str) {
    let after =
        elapsed.map(|elapsed| format!(" after {}", for_people(elapsed))).unwrap_or_default();
    tracing::warn!(
        event = "failed",
        tags = list(what.tags),
        status = exit.shell_status(),
        elapsed_s = elapsed.map(|elapsed| elapsed.as_secs_f64()),
        "{what}: failed{after} ({exit}): {why}"
    );
}

/// The lock was not acquired in time. `waited` counts for all locks together.
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

/// This process has released the lock.
pub fn released(subject: &Subject) {
    tracing::debug!(
        event = "released",
        tag = subject.tag(),
        name = subject.name(),
        cache = subject.cache(),
        slot = subject.slot(),
        "{subject}: released"
    );
}

/// `lint` looked at so many files and left so many findings in them.
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

/// The command line is wrong. Says so in clap's words and colours, or in one line for machines.
pub fn usage(error: &clap::Error, options: Option<Options>) {
    match options {
        Some(options) if options.log_format == LogFormat::Json => {
            // The command line is what is reported, not a filter that is wrong as well.
            _ = start(&options);
            let text = error.to_string();
            tracing::error!("{}", text.trim_start_matches("error: ").trim_end());
        }
        Some(options) if options.color == ColorChoice::Never => {
            terminal::write(error.to_string().as_bytes());
        }
        _ => _ = error.print(),
    }
}

/// buildlock itself failed.
pub fn error(error: &anyhow::Error) {
    tracing::error!("{error:#}");
}

/// What a call is about: its images, or without any the locks under which its command runs.
pub struct What<'a> {
    /// The images.
    pub tags: &'a [Tag],
    /// What its locks protect.
    pub subjects: &'a [Subject],
}

impl std::fmt::Display for What<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let locks = self.subjects.iter().filter(|_| self.tags.is_empty());
        let tags = self.tags.iter().map(|tag| tag as &dyn std::fmt::Display);
        let all = tags.chain(locks.map(|subject| subject as &dyn std::fmt::Display));
        for (at, one) in all.enumerate() {
            write!(f, "{}{one}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
