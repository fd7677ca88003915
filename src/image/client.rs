//! The engine's own client, for endpoints and engines without a local API: remote hosts, podman,
//! nerdctl, and a docker that is a script or stands behind sudo.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde_json::Value;

use super::{ANSWER_WITHIN, Answer, Platform, Unanswered, excerpt, says_no_such_image};
use crate::command::{Client, Engine};
use crate::reference::Tag;

/// More than a client answers, in bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// Most that is read of what a client prints, in bytes.
const OUTPUT_MAX: u64 = 16 << 20;

/// `docker image inspect NAME`.
///
/// Its exit status is 1 for «no such image» and for everything else that goes wrong, so only its
/// words tell.
///
/// # Errors
/// It said neither that the image is there nor that it is not.
pub(super) fn inspect(client: &Client, name: &str) -> Result<Answer, Unanswered> {
    let said = run(client, &["image", "inspect", name])?;
    inspected(client.engine, &said).ok_or_else(|| said.unanswered(client))
}

/// What a client's answer to `image inspect` says, if anything is certain.
pub fn inspected(engine: Engine, said: &Said) -> Option<Answer> {
    let images = serde_json::from_slice::<Value>(&said.stdout).ok();
    let first = images.as_ref().and_then(|images| images.get(0));
    match said.status {
        // nerdctl 2.0.0 to 2.0.2 end with 0 although there is no such image.
        Some(0) if first.is_some() => {
            Some(Answer::Present(first.and_then(platform).into_iter().collect()))
        }
        // A script in docker's name may only give a status.
        Some(0) if engine == Engine::Docker && said.stdout.is_empty() => {
            Some(Answer::Present(Vec::new()))
        }
        Some(_) if says_no_such_image(&String::from_utf8_lossy(&said.stderr)) => {
            Some(Answer::Missing)
        }
        _ => None,
    }
}

/// `podman image exists NAME`: 0 there, 1 not there, anything else an error (podman-image-exists(1)).
///
/// # Errors
/// It said neither.
pub(super) fn podman(
    client: &Client,
    name: &str,
    with_platform: bool,
) -> Result<Answer, Unanswered> {
    let said = run(client, &["image", "exists", name])?;
    match existed(&said) {
        Some(Answer::Present(_)) if with_platform => inspect(client, name),
        answer => answer.ok_or_else(|| said.unanswered(client)),
    }
}

/// Which services podman knows, and which of them is its default (podman-system-connection(1)), as
/// its file has them; empty where there is none.
pub(super) fn podman_connections(client: &Client) -> String {
    let file = client.variable("PODMAN_CONNECTIONS_CONF").map(PathBuf::from).or_else(|| {
        let home = || Some(PathBuf::from(client.variable("HOME")?).join(".config"));
        let folder = client.variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home)?;
        Some(folder.join("containers/podman-connections.json"))
    });
    file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
}

/// What podman's answer to `image exists` says, if anything is certain.
pub fn existed(said: &Said) -> Option<Answer> {
    match said.status {
        Some(0) => Some(Answer::Present(Vec::new())),
        Some(1) if only_remarks(&said.stderr) => Some(Answer::Missing),
        _ => None,
    }
}

/// Are these nothing but podman's warnings? A sudo that refuses ends with 1 as well.
fn only_remarks(stderr: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stderr);
    let remark = |line: &str| {
        line.starts_with("WARN[")
            || line.starts_with("Emulate Docker CLI")
            || line.starts_with("time=") && line.contains("level=warning")
    };
    text.lines().map(str::trim).filter(|line| !line.is_empty()).all(remark)
}

/// The user's own command, which ends with 0 if the image is there and with 1 if it is not.
///
/// # Errors
/// It ended in another way, or not in time.
pub(super) fn check(command: &str, tag: &Tag) -> Result<Answer, Unanswered> {
    const NAME: &str = "the command of --check";
    let shell = duct::cmd("sh", ["-c", command]).env("BUILDLOCK_TAG", tag.as_str());
    // What it has started may be what does not end.
    let (shell, _alive) = crate::child::killed_with_all_it_starts(shell)
        .map_err(|error| Unanswered::lasting(format!("cannot run {NAME}: {error}")))?;
    let said = run_expression(&NAME, shell, ANSWER_WITHIN)?;
    match said.status {
        Some(0) => Ok(Answer::Present(Vec::new())),
        Some(1) => Ok(Answer::Missing),
        // It knows itself what is worth a second try.
        _ => Err(Unanswered { passes: false, ..said.unanswered(&NAME) }),
    }
}

/// What `docker compose` makes of a file and of those that override it, if it is there and says so
/// in time.
pub fn compose_config<'a>(files: impl IntoIterator<Item = &'a Path>) -> Option<Value> {
    const WITHIN: Duration = Duration::from_secs(10);
    let mut words = vec!["compose", "--profile", "*"];
    for file in files {
        words.extend(["-f", file.to_str()?]);
    }
    words.extend(["config", "--format", "json"]);
    let said = run_within(&Client::plain(Engine::Docker), &words, WITHIN).ok()?;
    let config = serde_json::from_slice::<Value>(&said.stdout).ok()?;
    (said.status == Some(0) && config["services"].is_object()).then_some(config)
}

fn platform(image: &Value) -> Option<Platform> {
    serde_json::from_value::<Platform>(image.clone()).ok()?.known()
}

/// How a client ended, and what it printed.
#[derive(Debug)]
pub struct Said {
    /// None if it was killed.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
}

impl Said {
    pub(super) fn unanswered(&self, client: &dyn Display) -> Unanswered {
        let said = match self.stderr.trim_ascii().is_empty() {
            true => excerpt(&self.stdout),
            false => excerpt(&self.stderr),
        };
        let how = match self.status {
            Some(status) => format!("with status {status}"),
            None => "by a signal".to_owned(),
        };
        Unanswered::passing(format!("{client} ended {how} and said: {said}"))
    }
}

pub(super) fn run(client: &Client, arguments: &[&str]) -> Result<Said, Unanswered> {
    run_within(client, arguments, ANSWER_WITHIN)
}

/// Runs the client in COMMAND's words with other arguments.
fn run_within(client: &Client, arguments: &[&str], limit: Duration) -> Result<Said, Unanswered> {
    let (program, rest) = client.words(arguments);
    if let Err(error) = which::which(&program) {
        return Err(Unanswered::lasting(format!(
            "the client {client} was not found: {error}; images are looked up through it (see --engine)"
        )));
    }
    run_expression(client, duct::cmd(program, rest), limit)
}

/// Runs what is called `name` in messages, with nothing to read unless it says what.
///
/// What it prints goes to files, not pipes: a helper that it leaves behind (the master connection
/// of ssh) would keep a pipe open, and us waiting for its end.
pub(super) fn run_expression(
    name: &dyn Display,
    expression: duct::Expression,
    limit: Duration,
) -> Result<Said, Unanswered> {
    let failed = |error: std::io::Error| Unanswered::lasting(format!("cannot run {name}: {error}"));
    let may_grow = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    if may_grow.is_some_and(|most| most < ANSWER_MAX) {
        // What is cut off, or not there at all, could be taken for another answer.
        return Err(Unanswered::lasting(format!(
            "{name} is asked through files, and none may grow to {ANSWER_MAX} bytes (ulimit -f)"
        )));
    }
    let (mut stdout, mut stderr) =
        (nameless_file().map_err(failed)?, nameless_file().map_err(failed)?);
    // A client of a sick engine would stay for ever where we are ended before our time for it is.
    let handle = crate::child::ended_with_us(expression)
        .stdin_null()
        .stdout_file(stdout.try_clone().map_err(failed)?)
        .stderr_file(stderr.try_clone().map_err(failed)?)
        .unchecked()
        .start()
        .map_err(failed)?;
    match wait(handle, limit).map_err(failed)? {
        Some(status) => Ok(Said {
            status: status.code(),
            stdout: contents(&mut stdout).map_err(failed)?,
            stderr: contents(&mut stderr).map_err(failed)?,
        }),
        None => Err(Unanswered::lasting(format!(
            "{name} did not answer within {}",
            humantime::format_duration(limit)
        ))),
    }
}

/// Waits for a client, and ends one that takes longer than `limit`: None.
///
/// duct's own wait with a limit listens for SIGCHLD, which goes elsewhere while COMMAND runs.
fn wait(handle: duct::Handle, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let handle = Arc::new(handle);
    let (sender, receiver) = mpsc::sync_channel(1);
    let waited_for = Arc::clone(&handle);
    let waiter = std::thread::Builder::new().name("client".into()).spawn(move || {
        // Nobody may be there any more to take the result.
        _ = sender.send(waited_for.wait().map(|output| output.status));
    });
    if let Err(error) = waiter {
        _ = handle.kill();
        return Err(error);
    }
    match receiver.recv_timeout(limit) {
        Ok(status) => status.map(Some),
        Err(_) => {
            // It may be beyond our reach (sudo); then it ends when it ends.
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
    /// The client alone, without flags.
    pub fn plain(engine: Engine) -> Self {
        Client {
            engine,
            program: engine.client().into(),
            globals: Vec::new(),
            in_front: Vec::new(),
            behind_others: false,
            environment: Vec::new(),
        }
    }

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

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (program, rest) = self.words(&[]);
        let words: Vec<OsString> = [program].into_iter().chain(rest).collect();
        write!(f, "'{}'", crate::command::describe(&words))
    }
}
