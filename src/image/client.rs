//! The engine's own client, for endpoints and engines without a local API: remote hosts, podman,
//! nerdctl, and a docker that is a script or stands behind sudo.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, LazyLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::registry::platforms_in;
use super::{
    ANSWER_WITHIN, Answer, Identity, Platform, Unanswered, complains_of_no_such_image, excerpt,
};
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
    inspected(client.engine, name, &said).ok_or_else(|| said.unanswered(client))
}

/// What a client's answer to `image inspect NAME` says, if anything is certain.
pub fn inspected(engine: Engine, name: &str, said: &Said) -> Option<Answer> {
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
        Some(_) if complains_of_no_such_image(&String::from_utf8_lossy(&said.stderr), name) => {
            Some(Answer::Missing)
        }
        _ => None,
    }
}

/// The image's id, as `image inspect NAME` shows it.
///
/// # Errors
/// It said neither that the image is there nor that it is not.
pub(super) fn identity(client: &Client, name: &str) -> Result<Identity, Unanswered> {
    let said = run(client, &["image", "inspect", name])?;
    let answer = inspected(client.engine, name, &said).ok_or_else(|| said.unanswered(client))?;
    let images = serde_json::from_slice::<Value>(&said.stdout).unwrap_or_default();
    Ok(match (answer, images[0]["Id"].as_str()) {
        (Answer::Missing, _) => Identity::Missing,
        (_, Some(id)) => Identity::Known(id.to_owned()),
        (_, None) => Identity::Unknown,
    })
}

/// `podman image exists NAME`: 0 there, 1 not there, anything else an error
/// (podman-image-exists(1)).
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

/// The manifest list NAME with the platforms that it has images for, through podman or buildah.
///
/// `image exists` says no of a list without an image for this machine's platform, and `manifest
/// inspect` asks a registry for a list that is not here (podman-manifest(1)).
///
/// # Errors
/// It said neither that the list is there nor that it is not; or it is an image, and no list.
pub(super) fn manifest(client: &Client, name: &str) -> Result<Answer, Unanswered> {
    let said = run(client, &["manifest", "exists", name])?;
    if existed(&said).ok_or_else(|| said.unanswered(client))? == Answer::Missing {
        return Ok(Answer::Missing);
    }
    let said = run(client, &["manifest", "inspect", name])?;
    match serde_json::from_slice::<Value>(&said.stdout) {
        Ok(list) if said.status == Some(0) && list["manifests"].is_array() => {
            Ok(Answer::Present(platforms_in(&list)))
        }
        _ => Err(said.unanswered(client)),
    }
}

/// `buildah inspect --type image NAME`: its JSON, or its word that there is none.
///
/// # Errors
/// It said neither.
pub(super) fn buildah(client: &Client, name: &str) -> Result<Answer, Unanswered> {
    let Some(image) = buildah_image(client, name)? else { return Ok(Answer::Missing) };
    let text = |name: &str| image["OCIv1"][name].as_str().unwrap_or_default().to_owned();
    let platform = Platform::new(text("os"), text("architecture"), text("variant"));
    Ok(Answer::Present(platform.known().into_iter().collect()))
}

/// The image's id, as buildah shows it.
///
/// # Errors
/// As [`buildah`].
pub(super) fn buildah_identity(client: &Client, name: &str) -> Result<Identity, Unanswered> {
    Ok(match buildah_image(client, name)? {
        None => Identity::Missing,
        Some(image) => {
            let id = image["FromImageID"].as_str();
            id.map_or(Identity::Unknown, |id| Identity::Known(id.to_owned()))
        }
    })
}

fn buildah_image(client: &Client, name: &str) -> Result<Option<Value>, Unanswered> {
    let said = run(client, &["inspect", "--type", "image", name])?;
    match (said.status, serde_json::from_slice::<Value>(&said.stdout)) {
        (Some(0), Ok(image)) if image["FromImageID"].is_string() => Ok(Some(image)),
        (Some(1..), _)
            if complains_of_no_such_image(&String::from_utf8_lossy(&said.stderr), name) =>
        {
            Ok(None)
        }
        _ => Err(said.unanswered(client)),
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
    // A client without compose takes its time to say so for each file.
    static KNOWS_COMPOSE: LazyLock<bool> = LazyLock::new(|| {
        let said = run_within(&Client::plain(Engine::Docker), &["compose", "version"], WITHIN);
        said.is_ok_and(|said| said.status == Some(0))
    });
    if !*KNOWS_COMPOSE {
        return None;
    }
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
    let expression = crate::child::ended_with_us(expression)
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
        None => Err(Unanswered::lasting(format!(
            "{name} did not answer within {}",
            humantime::format_duration(limit)
        ))),
    }
}

/// Starts a client and waits for it; ends one that takes longer than `limit`: None.
///
/// Starting it may take as long, where its file system does not answer. And duct's own wait with a
/// limit listens for SIGCHLD, which goes elsewhere while the build command runs.
fn run_on_a_thread(
    expression: duct::Expression,
    limit: Duration,
) -> std::io::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    let (started, handles) = mpsc::sync_channel(1);
    let (ended, statuses) = mpsc::sync_channel(1);
    // Nobody may be there any more to take what it sends.
    std::thread::Builder::new().name("client".into()).spawn(move || {
        let handle = expression.start().map(Arc::new);
        let waited_for = handle.as_ref().ok().cloned();
        _ = started.send(handle);
        if let Some(handle) = waited_for {
            _ = ended.send(handle.wait().map(|output| output.status));
        }
    })?;
    // One that cannot even be started ends with us.
    let left = || until.saturating_duration_since(Instant::now());
    let Ok(handle) = handles.recv_timeout(left()) else { return Ok(None) };
    let handle = handle?;
    match statuses.recv_timeout(left()) {
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
            may_run_elsewhere: false,
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
