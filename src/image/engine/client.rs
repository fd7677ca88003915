//! Asking by running a client: the engine's own, or another program that answers questions.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{Read, Seek};
use std::process::ExitStatus;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::command::{Client, Engine};
use crate::image::answer::{ANSWER_WITHIN, Unanswered, excerpt};

/// More than any client answers, in bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// Most that is read of what a client prints, in bytes.
const OUTPUT_MAX: u64 = 16 << 20;

/// How a client ended, and what it printed.
#[derive(Debug)]
pub struct Said {
    /// Its exit status, or nothing if a signal ended it.
    pub status: Option<i32>,
    /// Its output.
    pub stdout: Vec<u8>,
    /// Its complaints.
    pub stderr: Vec<u8>,
}

impl Said {
    /// Makes an error of words that are not a certain answer.
    pub(crate) fn unanswered(&self, client: &dyn Display) -> Unanswered {
        let said = match self.stderr.trim_ascii().is_empty() {
            true => excerpt(&self.stdout),
            false => excerpt(&self.stderr),
        };
        let how = match self.status {
            Some(status) => format!("exited with status {status}"),
            None => "was ended by a signal".to_owned(),
        };
        Unanswered::transient(format!("{client} {how} and said: {said}"))
    }
}

/// Runs the client of the build command with other arguments.
pub(crate) fn run(client: &Client, arguments: &[&str]) -> Result<Said, Unanswered> {
    run_within(client, arguments, ANSWER_WITHIN)
}

pub(crate) fn run_within(
    client: &Client,
    arguments: &[&str],
    limit: Duration,
) -> Result<Said, Unanswered> {
    let (program, rest) = client.words(arguments);
    if let Err(error) = which::which(&program) {
        return Err(Unanswered::permanent(format!(
            "the client {client} was not found: {error}; images are looked up through it (see \
             --engine)"
        )));
    }
    run_expression(client, duct::cmd(program, rest), limit)
}

/// Runs a program that messages call `name`. Its stdin is empty unless the expression sets one.
///
/// What it prints goes to files, not pipes. A helper that it leaves behind (the master connection
/// of ssh) would keep a pipe open, and we would wait for its end.
pub(crate) fn run_expression(
    name: &dyn Display,
    expression: duct::Expression,
    limit: Duration,
) -> Result<Said, Unanswered> {
    let failed =
        |error: std::io::Error| Unanswered::permanent(format!("cannot run {name}: {error}"));
    let may_grow = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    if may_grow.is_some_and(|most| most < ANSWER_MAX) {
        // An answer that is cut short could be taken for another one.
        return Err(Unanswered::permanent(format!(
            "{name} prints to a file, and no file may grow to {ANSWER_MAX} bytes; raise the limit \
             (ulimit -f)"
        )));
    }
    let (mut stdout, mut stderr) =
        (nameless_file().map_err(failed)?, nameless_file().map_err(failed)?);
    // If we are ended before the time limit, a client of an engine that hangs would stay for ever.
    let expression = crate::spawn::ended_with_us(expression)
        .stdin_null()
        .stdout_file(stdout.try_clone().map_err(failed)?)
        .stderr_file(stderr.try_clone().map_err(failed)?)
        .unchecked();
    match run_on_a_thread(expression, limit).map_err(failed)? {
        Some(status) => Ok(Said {
            status: status.code(),
            stdout: contents(&mut stdout).map_err(failed)?,
            stderr: contents(&mut stderr).map_err(failed)?,
        }),
        None => Err(Unanswered::permanent(format!(
            "{name} did not answer within {}",
            humantime::format_duration(limit)
        ))),
    }
}

/// Starts a client and waits for it. Ends it, and returns nothing, if it takes longer than `limit`.
///
/// Starting may already hang if the client's file system does not answer. duct's own wait with a
/// limit listens for SIGCHLD, which goes elsewhere while the build command runs.
fn run_on_a_thread(
    expression: duct::Expression,
    limit: Duration,
) -> std::io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    let (started, handles) = mpsc::sync_channel(1);
    let (ended, statuses) = mpsc::sync_channel(1);
    // The receiver may have given up, so sending may fail.
    std::thread::Builder::new().name("client".into()).spawn(move || {
        let handle = expression.start().map(Arc::new);
        let waited_for = handle.as_ref().ok().cloned();
        _ = started.send(handle);
        if let Some(handle) = waited_for {
            _ = ended.send(handle.wait().map(|output| output.status));
        }
    })?;
    // A client whose start hangs ends when we do.
    let left = || until.saturating_duration_since(Instant::now());
    let Ok(handle) = handles.recv_timeout(left()) else { return Ok(None) };
    let handle = handle?;
    match statuses.recv_timeout(left()) {
        Ok(status) => status.map(Some),
        Err(_) => {
            // It may be out of reach (sudo). Then it ends by itself or not at all.
            _ = handle.kill();
            Ok(None)
        }
    }
}

fn nameless_file() -> std::io::Result<File> {
    Ok(rustix::fs::memfd_create("client", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

fn contents(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_MAX).read_to_end(&mut text)?;
    Ok(text)
}

impl Client {
    /// Returns the engine's client without any flags.
    pub(crate) fn plain(engine: Engine) -> Self {
        Client {
            engine,
            program: engine.client().into(),
            globals: Vec::new(),
            in_front: Vec::new(),
            behind_others: false,
            may_run_elsewhere: false,
            environment: Vec::new(),
        }
    }

    /// Splits the client's words and these arguments into the program and the rest.
    fn words(&self, arguments: &[&str]) -> (OsString, Vec<OsString>) {
        let arguments = arguments.iter().map(OsString::from);
        let mut words = self
            .in_front
            .iter()
            .chain([&self.program])
            .chain(&self.globals)
            .cloned()
            .chain(arguments);
        let program = words.next().unwrap_or_default();
        (program, words.collect())
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (program, rest) = self.words(&[]);
        let words: Vec<OsString> = [program].into_iter().chain(rest).collect();
        write!(f, "'{}'", crate::command::describe(&words))
    }
}
