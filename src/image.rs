//! Is the image there?
//!
//! The engine that COMMAND will build on is asked: over its API where it listens on a local
//! socket, else through its own client. Or the registry is, by way of that engine or client; or a
//! command that the user gives. Whatever is not a certain answer is an error, never «missing».

pub mod client;
pub mod engine;
pub mod registry;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, anyhow, bail};
use serde::Deserialize;

use crate::command::{Client, Command, Engine};
use crate::reference::Tag;

/// How often an engine is asked that cannot answer for a cause that may pass.
const TRIES: u32 = 5;
/// The pause before the second try; it doubles from try to try.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for one answer. An engine under load takes seconds, a sick one for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Where COMMAND's images are looked up.
#[derive(Debug)]
pub struct Images {
    client: Client,
    way: Way,
    check: Check,
    /// Those that an image has to be for.
    platforms: Vec<Platform>,
    /// The builder that COMMAND names.
    builder: Option<String>,
    /// Whether COMMAND is buildx by name.
    is_buildx: bool,
    /// Whether COMMAND says that it pushes.
    pushes: bool,
    /// What it puts before the ids of its cache mounts.
    cache_namespace: Option<String>,
}

/// Where an image has to be, to count as present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// On the engine.
    Local,
    /// In the registry that its name says.
    Registry,
    /// Where this command for `sh -c` looks.
    Command(String),
}

/// How the engine is asked.
#[derive(Debug)]
enum Way {
    /// Over its API, on this socket.
    Socket(PathBuf),
    /// Through docker's or nerdctl's client.
    Inspect,
    /// Through podman's client, or docker's name for it.
    PodmanExists,
}

/// What an engine or a registry knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has no such image.
    Missing,
    /// It has one, for these platforms; none where it did not say.
    Present(Vec<Platform>),
}

/// Why nobody answered for certain.
#[derive(Debug)]
pub struct Unanswered {
    /// A sentence for the user.
    pub why: String,
    /// Whether it is worth asking again.
    pub passes: bool,
}

/// An image's platform, normalized as containerd does it
/// (<https://pkg.go.dev/github.com/containerd/platforms#Normalize>).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(rename = "Os", default)]
    os: String,
    #[serde(rename = "Architecture", default)]
    architecture: String,
    #[serde(rename = "Variant", default)]
    variant: String,
}

/// An image that is not there.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing<'a> {
    /// What it would be called.
    pub tag: &'a Tag,
    /// The image that has this name instead.
    pub instead: Option<Instead>,
}

/// An image that is not for all platforms that it has to be for.
#[derive(Debug, PartialEq, Eq)]
pub struct Instead {
    /// Those that it is for.
    pub there: String,
    /// Those that it is not for.
    pub wanted: String,
}

/// A cache that builds on an engine share (`RUN --mount=type=cache`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMount {
    /// The engine's id of it, which it never has again once it is gone.
    pub id: String,
    /// When a build used it last.
    pub last_used: Option<SystemTime>,
}

impl Images {
    /// Where the images of `command`, whose program is the file `program`, are looked up: on the
    /// engine that it names, or on `chosen`; or where `check` says.
    ///
    /// # Errors
    /// A registry is to be asked, and there is no way to.
    pub fn of(
        command: &Command,
        program: &Path,
        chosen: Option<Engine>,
        check: Check,
    ) -> Result<Self> {
        let named = command.client().filter(|client| chosen.is_none_or(|it| it == client.engine));
        let client =
            named.cloned().unwrap_or_else(|| Client::plain(chosen.unwrap_or(Engine::Docker)));
        let is_command = client.program == command.program();
        let way = way_to(&client, is_command.then_some(program));
        tracing::debug!("images are looked up on {client}, {way}");
        if check == Check::Registry && client.engine == Engine::Nerdctl {
            bail!("nerdctl cannot ask a registry for certain; give --check a command that can");
        }
        let builder = command.builder().map(str::to_owned);
        let cache_namespace = command.build().and_then(|build| build.cache_namespace.clone());
        let platforms = platforms_of(command, &client, &check);
        let (pushes, is_buildx) = (command.pushes(), command.is_buildx());
        Ok(Images { way, check, platforms, builder, is_buildx, pushes, cache_namespace, client })
    }

    /// Where an image has to be.
    pub fn check(&self) -> &Check {
        &self.check
    }

    /// The first of `tags` whose image is not there, if any.
    ///
    /// # Errors
    /// The engine gave no certain answer, also when asked again.
    pub fn first_missing<'a>(&self, tags: &'a [Tag]) -> Result<Option<Missing<'a>>> {
        for tag in tags {
            let there = match self.look(tag)? {
                Answer::Missing => return Ok(Some(Missing { tag, instead: None })),
                Answer::Present(there) if there.is_empty() => continue,
                Answer::Present(there) => there,
            };
            let is_met = |wanted: &&Platform| there.iter().any(|it| wanted.is_met_by(it));
            let (_, unmet): (_, Vec<_>) = self.platforms.iter().partition(is_met);
            if !unmet.is_empty() {
                let instead = Instead { there: list(&there), wanted: list(unmet) };
                return Ok(Some(Missing { tag, instead: Some(instead) }));
            }
        }
        Ok(None)
    }

    /// What tells the engine, and the builder on it, from others: their build caches differ. It may
    /// tell two that are the same, which costs a build that is alone; not the other way round. With
    /// `on_all_hosts` that is so beyond this machine; then a local engine is asked for its id.
    pub fn engine(&self, on_all_hosts: bool) -> String {
        let variables = match self.client.engine {
            Engine::Docker => &["DOCKER_HOST", "DOCKER_CONTEXT"][..],
            Engine::Podman => &["CONTAINER_HOST", "CONTAINER_CONNECTION"],
            Engine::Nerdctl => &["CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "BUILDKIT_HOST"],
        };
        let variables = variables.iter().filter_map(|name| {
            Some(format!("{name}={}", self.client.variable(name)?.to_string_lossy()))
        });
        let host = if on_all_hosts { host() } else { String::new() };
        let user = rustix::process::getuid().as_raw();
        let at = match &self.way {
            Way::Socket(path) if on_all_hosts => engine::id(path).unwrap_or(host),
            Way::Socket(path) => path.display().to_string(),
            Way::Inspect if self.client.engine == Engine::Docker => {
                match engine::endpoint(&self.client).unwrap_or_default() {
                    local if local.is_empty() || local.starts_with("unix:") => local + &host,
                    remote => remote,
                }
            }
            // Without root, everybody has engines of his own.
            Way::Inspect => format!("{user} {host}"),
            // Without a service, everybody builds in a storage of his own.
            Way::PodmanExists => {
                format!("{user} {host} {}", client::podman_connections(&self.client))
            }
        };
        let globals = self.client.globals.iter().map(|it| it.to_string_lossy().into_owned());
        let namespace = self.cache_namespace.iter().cloned();
        let named = globals.chain(variables).chain(self.builder()).chain(namespace).chain([at]);
        let named: Vec<_> = named.collect();
        format!("{} {}", self.client, named.join("\0"))
    }

    /// The builder that COMMAND may use, if that is not the engine's own.
    fn builder(&self) -> Option<String> {
        if self.client.engine != Engine::Docker {
            return None;
        }
        self.named_builder().or_else(|| engine::chosen_builder(&self.client))
    }

    /// The one that COMMAND or its environment names.
    fn named_builder(&self) -> Option<String> {
        self.builder.clone().or_else(|| {
            Some(self.client.variable("BUILDX_BUILDER")?.to_string_lossy().into_owned())
        })
    }

    /// The engine's cache mounts; none if it does not say within that time, or has no word of them:
    /// another builder than its own keeps its caches to itself.
    pub fn cache_mounts(&self, within: Duration) -> Option<Vec<CacheMount>> {
        match &self.way {
            Way::Socket(path) if self.builder().is_none() => engine::cache_mounts(path, within),
            Way::Socket(_) | Way::Inspect | Way::PodmanExists => None,
        }
    }

    fn look(&self, tag: &Tag) -> Result<Answer> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        for tried in 1.. {
            match self.ask(tag) {
                Ok(answer) => {
                    tracing::debug!("{tag}: {answer:?}");
                    return Ok(answer);
                }
                Err(error) if error.passes && tried < TRIES && start.elapsed() < ANSWER_WITHIN => {
                    tracing::debug!("{tag}: {}; asking again", error.why);
                    std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64()));
                    pause *= 2;
                }
                Err(error) => {
                    return Err(anyhow!(
                        "{tag}: cannot tell whether the image is there: {}",
                        error.why
                    ));
                }
            }
        }
        unreachable!("the last try returns")
    }

    fn ask(&self, tag: &Tag) -> Result<Answer, Unanswered> {
        match &self.check {
            Check::Local => self.ask_engine(tag),
            Check::Registry => self.ask_registry(tag),
            Check::Command(command) => client::check(command, tag),
        }
    }

    fn ask_registry(&self, tag: &Tag) -> Result<Answer, Unanswered> {
        let with_platform = !self.platforms.is_empty();
        let ask_buildx =
            || registry::imagetools(&self.client, self.builder.as_deref(), tag, with_platform);
        let says_no_platform =
            |answer: &Answer| matches!(answer, Answer::Present(there) if there.is_empty());
        let engine = match &self.way {
            Way::Socket(path) if !self.is_pushed_by_buildx(path) => Some(path),
            _ => None,
        };
        let mut answer = match (engine, &self.way) {
            (Some(path), _) => registry::over_engine(&self.client, path, tag),
            (None, Way::Socket(_) | Way::Inspect) => ask_buildx(),
            (None, Way::PodmanExists) => registry::skopeo(&self.client, tag, with_platform),
        }?;
        // Of a single image in OCI's format the engine does not know it; buildx does, if it is there.
        if with_platform
            && says_no_platform(&answer)
            && let (Some(_), Ok(Answer::Present(there))) = (engine, ask_buildx())
        {
            answer = Answer::Present(there);
        }
        if with_platform && says_no_platform(&answer) {
            // An engine has images of its own platform; a registry has any.
            return Err(Unanswered::lasting(format!(
                "the registry has it, but does not say whether for {}; leave --platform away, or \
                 give --check a command that can tell",
                list(&self.platforms)
            )));
        }
        Ok(answer)
    }

    /// Is it a builder of buildx that pushes, and not the engine on `socket`? It has mirrors and
    /// certificates of its own, and there need be no engine at all.
    fn is_pushed_by_buildx(&self, socket: &Path) -> bool {
        /// The builder that is the engine's own.
        const DEFAULT: &str = "default";
        // What was chosen by `docker buildx use` counts for buildx alone (docker/cli, forwarding of
        // `docker build`).
        let builder = if self.is_buildx { self.builder() } else { self.named_builder() };
        builder.is_some_and(|builder| builder != DEFAULT) || self.pushes && !socket.exists()
    }

    fn ask_engine(&self, tag: &Tag) -> Result<Answer, Unanswered> {
        match &self.way {
            Way::Socket(path) => engine::ask(path, tag.as_str()),
            Way::Inspect => client::inspect(&self.client, tag.as_str()),
            Way::PodmanExists => {
                client::podman(&self.client, tag.podman_name(), !self.platforms.is_empty())
            }
        }
    }
}

/// This machine's name.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The way to ask; the client is the file `program`, if that is known already.
fn way_to(client: &Client, program: Option<&Path>) -> Way {
    match client.engine {
        Engine::Podman => return Way::PodmanExists,
        Engine::Nerdctl => return Way::Inspect,
        Engine::Docker => {}
    }
    match docker_program(client, program) {
        Program::Podman => Way::PodmanExists,
        Program::Script => Way::Inspect,
        Program::Binary if client.behind_others => Way::Inspect,
        Program::Binary => engine::local_socket(client).map_or(Way::Inspect, Way::Socket),
    }
}

/// What answers to the name of docker.
enum Program {
    Binary,
    Script,
    Podman,
}

fn docker_program(client: &Client, program: Option<&Path>) -> Program {
    /// What a script begins with (execve(2)).
    const MARK: [u8; 2] = *b"#!";
    /// A stand-in for docker is a line or two.
    const START: u64 = 4096;
    let found = program.map(Path::to_owned);
    let Some(path) = found.or_else(|| which::which(&client.program).ok()) else {
        return Program::Binary;
    };
    let real = path.canonicalize().unwrap_or(path);
    if real.file_name().is_some_and(|name| name == "podman") {
        return Program::Podman;
    }
    // What cannot be read is no script either: its interpreter could not.
    let Ok(mut file) = std::fs::File::open(&real) else { return Program::Binary };
    let mut mark = [0; MARK.len()];
    if file.read_exact(&mut mark).is_err() || mark != MARK {
        return Program::Binary;
    }
    let mut start = Vec::new();
    _ = file.take(START).read_to_end(&mut start);
    // The package podman-docker: exec /usr/bin/podman "$@"
    match String::from_utf8_lossy(&start).contains("podman \"$@\"") {
        true => Program::Podman,
        false => Program::Script,
    }
}

/// The platforms that COMMAND builds for, if it says so. Of several an engine's own image may have
/// any one; what is pushed has all of them.
fn platforms_of(command: &Command, client: &Client, check: &Check) -> Vec<Platform> {
    let Some(build) = command.build() else { return Vec::new() };
    let by_default = match build.platforms.as_slice() {
        [] if client.engine == Engine::Docker => client.variable("DOCKER_DEFAULT_PLATFORM"),
        _ => None,
    };
    let by_default = by_default.and_then(|platform| platform.into_string().ok());
    let named: Vec<_> = build.platforms.iter().chain(&by_default).collect();
    if named.len() > 1 && *check != Check::Registry {
        return Vec::new();
    }
    named.into_iter().filter_map(|platform| Platform::parse(platform)).collect()
}

fn list<'p>(platforms: impl IntoIterator<Item = &'p Platform>) -> String {
    platforms.into_iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

impl Platform {
    /// `linux/arm64`, `linux/arm/v7`, `amd64`. What is not understood (`local`) is no platform.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (os, architecture) = match (parts.next()?, parts.next()) {
            (architecture, None) if is_architecture(architecture) => ("linux", architecture),
            (_, None) => return None,
            (os, Some(architecture)) => (os, architecture),
        };
        let variant = parts.next().unwrap_or_default();
        let own = |text: &str| text.to_ascii_lowercase();
        Some(
            Platform { os: own(os), architecture: own(architecture), variant: own(variant) }
                .normalized(),
        )
    }

    fn normalized(mut self) -> Self {
        let (architecture, variant) = match (self.architecture.as_str(), self.variant.as_str()) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686", _) => ("386", ""),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("amd64", "v1") => ("amd64", ""),
            same => same,
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }

    /// Would `docker build --platform self` be content with an image of the platform `there`?
    fn is_met_by(&self, there: &Platform) -> bool {
        let there = there.clone().normalized();
        // Older engines do not say the variant.
        let same_variant =
            there.variant == self.variant || there.variant.is_empty() || self.architecture != "arm";
        there.os == self.os && there.architecture == self.architecture && same_variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

fn is_architecture(text: &str) -> bool {
    matches!(
        text,
        "amd64"
            | "x86_64"
            | "x86-64"
            | "386"
            | "i386"
            | "arm64"
            | "aarch64"
            | "arm"
            | "armhf"
            | "armel"
            | "ppc64le"
            | "s390x"
            | "riscv64"
            | "mips64le"
            | "loong64"
    )
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Way::Socket(path) => write!(f, "over its API at {}", path.display()),
            Way::Inspect => f.write_str("through its client"),
            Way::PodmanExists => f.write_str("through podman"),
        }
    }
}

impl Unanswered {
    fn passing(why: impl Into<String>) -> Self {
        Unanswered { why: why.into(), passes: true }
    }

    fn lasting(why: impl Into<String>) -> Self {
        Unanswered { why: why.into(), passes: false }
    }
}

/// Is this an engine's own word that there is no such image? Docker and nerdctl say «No such
/// image: NAME», podman «NAME: image not known».
fn says_no_such_image(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    // An engine that refuses the name says «no such image: NAME: invalid reference format».
    (message.contains("no such image") || message.contains("image not known"))
        && !message.contains("invalid reference format")
}

/// The start of what somebody said, for a message.
fn excerpt(text: &[u8]) -> String {
    const LONGEST: usize = 300;
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined = lines.join("; ");
    match joined.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &joined[..end]),
        None if joined.is_empty() => "nothing".to_owned(),
        None => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Option<String> {
        Platform::parse(text).map(|platform| platform.to_string())
    }

    #[test]
    fn platforms_are_normalized_as_containerd_does_it() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(platform(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(platform("local"), None);
        assert_eq!(platform(""), None);
    }

    #[test]
    fn an_image_of_another_platform_does_not_do() {
        let meets = |wanted: &str, there: &str| {
            Platform::parse(wanted).unwrap().is_met_by(&Platform::parse(there).unwrap())
        };
        assert!(meets("linux/amd64", "linux/amd64"));
        assert!(meets("linux/arm64", "linux/arm64/v8"));
        assert!(!meets("linux/arm64", "linux/amd64"));
        assert!(!meets("linux/arm/v6", "linux/arm/v7"));
        assert!(!meets("linux/amd64", "windows/amd64"));
    }

    #[test]
    fn only_the_engines_own_word_means_missing() {
        for said in [
            "No such image: env:abc",
            "no such image: nope:x: No such image: nope:x",
            "Error response from daemon: No such image: env:abc",
            "level=fatal msg=\"1 errors: [no such image: env:abc]\"",
            "failed to find image env:abc: env:abc: image not known",
        ] {
            assert!(says_no_such_image(said), "{said}");
        }
        for said in [
            "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
            "page not found",
            "no such host",
            "Error response from daemon: no such image: A/b: invalid reference format",
            "",
        ] {
            assert!(!says_no_such_image(said), "{said}");
        }
    }
}
