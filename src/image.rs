//! Is the image there?
//!
//! The engine that COMMAND will build on is asked: over its API where it listens on a local
//! socket, else through its own client. Or the registry is, by way of that engine or client; or a
//! command that the user gives. Whatever is not a certain answer is an error, never «missing».

pub mod buildx;
pub mod client;
pub mod engine;
pub mod registry;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
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
    /// The manifest list that the build command adds its image to (`podman build --manifest`).
    manifest: Option<Tag>,
    /// The builder that COMMAND names.
    builder: Option<String>,
    /// The builder that `docker buildx use` has chosen for it, where the registry is asked.
    chosen_builder: Option<String>,
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
    /// Through buildah, whose storage is podman's.
    Buildah,
}

/// What an engine or a registry knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has no such image.
    Missing,
    /// It has one, for these platforms; none where it did not say.
    Present(Vec<Platform>),
}

/// The id of an image, as the engine shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The engine has no image of that name.
    Missing,
    /// What `image inspect` calls `Id`.
    Known(String),
    /// The image may be there, but the engine does not tell its id.
    Unknown,
}

/// The process that listens on an engine's local socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineProcess {
    /// The one with this number.
    Visible(u32),
    /// One outside of this PID namespace.
    Elsewhere,
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
    /// What there is of it.
    pub why: Why,
}

/// Why an image does not count as present.
#[derive(Debug, PartialEq, Eq)]
pub enum Why {
    /// The engine has no image of that name.
    None,
    /// There is one, for other platforms.
    Other(Instead),
    /// There is one, and the engine does not say whether it is for all of these platforms.
    Untold(String),
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
        let way = match way_to(&client, is_command.then_some(program)) {
            Ok(way) => way,
            // The registry, or the user's own command, may answer all the same.
            Err(no_such_context) if check == Check::Local => bail!(no_such_context),
            Err(_) => Way::Inspect,
        };
        tracing::debug!("images are looked up on {client}, {way}");
        if check == Check::Registry && client.engine == Engine::Nerdctl {
            bail!("nerdctl cannot ask a registry for certain; give --check a command that can");
        }
        let builder = command.builder().map(str::to_owned);
        let cache_namespace = command.build().and_then(|build| build.cache_namespace.clone());
        let platforms = platforms_of(command, &client);
        let manifest = command.build().and_then(|build| build.manifest.as_ref()?.parse().ok());
        let is_docker = client.engine == Engine::Docker && check == Check::Registry;
        let chosen_builder = is_docker.then(|| buildx::chosen_builder(command, &client)).flatten();
        let pushes = command.pushes();
        Ok(Images {
            way,
            check,
            platforms,
            manifest,
            builder,
            chosen_builder,
            pushes,
            cache_namespace,
            client,
        })
    }

    /// Which process listens on the engine's socket; none where that is not known.
    pub fn engine_process(&self) -> Option<EngineProcess> {
        match &self.way {
            Way::Socket(path) => engine::listener(path),
            Way::Inspect | Way::PodmanExists | Way::Buildah => None,
        }
    }

    /// Whether a name without a registry is one of `localhost/`.
    pub fn are_podmans(&self) -> bool {
        self.check != Check::Registry && self.is_podmans()
    }

    fn is_podmans(&self) -> bool {
        matches!(self.way, Way::PodmanExists | Way::Buildah)
    }

    /// Where an image has to be.
    pub fn check(&self) -> &Check {
        &self.check
    }

    /// The first of `tags` whose image is not there, if any; else the first that the engine cannot
    /// tell for all platforms.
    ///
    /// # Errors
    /// The engine gave no certain answer, also when asked again.
    pub fn first_missing<'a>(&self, tags: &'a [Tag]) -> Result<Option<Missing<'a>>> {
        let mut untold = None;
        for tag in tags {
            let there = match self.look(tag)? {
                Answer::Missing => return Ok(Some(Missing { tag, why: Why::None })),
                Answer::Present(there) => there,
            };
            match self.lacks(tag, &there) {
                Some(why @ Why::Untold(_)) => untold = untold.or(Some(Missing { tag, why })),
                Some(why) => return Ok(Some(Missing { tag, why })),
                None => {}
            }
        }
        Ok(untold)
    }

    /// What an image with this name lacks that is for the platforms `there`.
    fn lacks(&self, tag: &Tag, there: &[Platform]) -> Option<Why> {
        let is_met = |wanted: &&Platform| there.iter().any(|it| wanted.is_met_by(it));
        let (met, unmet): (Vec<_>, Vec<_>) = self.platforms.iter().partition(is_met);
        // One that builds for several and makes no list of them gives its tag to the last one.
        let has_one_of_all = self.check == Check::Local && self.is_podmans() && !self.is_list(tag);
        if unmet.is_empty() || has_one_of_all && !met.is_empty() {
            return None;
        }
        match there {
            [] if self.check == Check::Local && self.platforms.len() > 1 && !has_one_of_all => {
                Some(Why::Untold(list(&self.platforms)))
            }
            // An engine that does not say has images for its own platform.
            [] => None,
            _ => Some(Why::Other(Instead { there: list(there), wanted: list(unmet) })),
        }
    }

    /// Whether this is the name of the manifest list that the build command adds to.
    fn is_list(&self, tag: &Tag) -> bool {
        self.manifest.as_ref().is_some_and(|manifest| manifest.is_same_name(tag))
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
            Way::PodmanExists | Way::Buildah => {
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
            Way::Socket(_) | Way::Inspect | Way::PodmanExists | Way::Buildah => None,
        }
    }

    /// The id of an image on the engine. With `--check registry` or a command, the image may be
    /// elsewhere.
    ///
    /// # Errors
    /// The engine gave no certain answer, also when asked again.
    pub fn identity(&self, tag: &Tag) -> Result<Identity> {
        // A list has an id of its own, which is not that of the image in it.
        if self.check != Check::Local || self.is_podmans() && self.is_list(tag) {
            return Ok(Identity::Unknown);
        }
        insist(tag, || match &self.way {
            Way::Socket(path) => engine::identity(path, tag.as_str()),
            Way::Inspect => client::identity(&self.client, tag.as_str()),
            Way::PodmanExists => client::identity(&self.client, tag.podman_name()),
            Way::Buildah => client::buildah_identity(&self.client, tag.podman_name()),
        })
    }

    fn look(&self, tag: &Tag) -> Result<Answer> {
        insist(tag, || self.ask(tag))
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
            (None, Way::PodmanExists | Way::Buildah) => {
                registry::skopeo(&self.client, tag, with_platform)
            }
        }?;
        // Of a single image in OCI's format the engine does not know it; buildx does, if it is
        // there.
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
        let builder = self.named_builder().or_else(|| self.chosen_builder.clone());
        builder.is_some_and(|builder| builder != DEFAULT) || self.pushes && !socket.exists()
    }

    fn ask_engine(&self, tag: &Tag) -> Result<Answer, Unanswered> {
        let several = self.platforms.len() > 1;
        match &self.way {
            Way::Socket(path) => match self.platforms.as_slice() {
                [] => engine::ask(path, tag.as_str()),
                _ => engine::ask_for_platforms(path, tag.as_str(), several),
            },
            // It shows one of them.
            Way::Inspect if several => match client::inspect(&self.client, tag.as_str())? {
                Answer::Present(_) => Ok(Answer::Present(Vec::new())),
                missing => Ok(missing),
            },
            Way::Inspect => client::inspect(&self.client, tag.as_str()),
            Way::PodmanExists | Way::Buildah if self.is_list(tag) => {
                client::manifest(&self.client, tag.podman_name())
            }
            Way::PodmanExists => {
                client::podman(&self.client, tag.podman_name(), !self.platforms.is_empty())
            }
            Way::Buildah => client::buildah(&self.client, tag.podman_name()),
        }
    }
}

/// Asks again and again where no answer came for a cause that passes.
fn insist<T: std::fmt::Debug>(tag: &Tag, ask: impl Fn() -> Result<T, Unanswered>) -> Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    for tried in 1.. {
        match ask() {
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
                bail!("{tag}: cannot tell whether the image is there: {}", error.why);
            }
        }
    }
    unreachable!("the last try returns")
}

/// This machine's name.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The way to ask; the client is the file `program`, if that is known already.
///
/// # Errors
/// Returns a sentence for the user: there is no such engine.
fn way_to(client: &Client, program: Option<&Path>) -> Result<Way, String> {
    match client.engine {
        Engine::Podman if is_buildah(client) => return Ok(Way::Buildah),
        Engine::Podman => return Ok(Way::PodmanExists),
        Engine::Nerdctl => return Ok(Way::Inspect),
        Engine::Docker => {}
    }
    Ok(match docker_program(client, program) {
        Program::Podman => Way::PodmanExists,
        Program::Script => Way::Inspect,
        Program::Binary if client.behind_others => Way::Inspect,
        Program::Binary => match engine::local_socket(client) {
            Ok(socket) => Way::Socket(socket),
            Err(engine::Unknown::AskClient) => Way::Inspect,
            Err(engine::Unknown::NoSuchContext(why)) => return Err(why),
        },
    })
}

/// Whether this is buildah, which shares podman's storage and most of its words.
pub fn is_buildah(client: &Client) -> bool {
    Path::new(&client.program).file_name().is_some_and(|name| name == "buildah")
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
    // A snap has its own home folder, and its docker reads its files there.
    if real.file_name().is_some_and(|name| name == "snap") {
        return Program::Script;
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

/// The platforms that the build command builds for, if it says so. A manifest list may be there
/// without the one that is built by default, which is this machine's.
fn platforms_of(command: &Command, client: &Client) -> Vec<Platform> {
    let Some(build) = command.build() else { return Vec::new() };
    let by_default = match build.platforms.as_slice() {
        [] if client.engine == Engine::Docker => client.variable("DOCKER_DEFAULT_PLATFORM"),
        [] if build.manifest.is_some() => Some(std::env::consts::ARCH.into()),
        _ => None,
    };
    let by_default = by_default.and_then(|platform| platform.into_string().ok());
    let named = build.platforms.iter().chain(&by_default);
    let mut platforms: Vec<_> = named.filter_map(|platform| Platform::parse(platform)).collect();
    platforms.dedup();
    platforms
}

fn list<'p>(platforms: impl IntoIterator<Item = &'p Platform>) -> String {
    platforms.into_iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

impl Platform {
    fn new(os: String, architecture: String, variant: String) -> Self {
        Platform { os, architecture, variant }.normalized()
    }

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
            Way::Buildah => f.write_str("through buildah"),
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

/// Returns whether `message`, all of it, is an engine's own word that it has no image `name`.
///
/// Only these forms are known. Another image that is missing says nothing of this one.
fn says_no_such_image(message: &str, name: &str) -> bool {
    /// What Docker says (moby, `ErrImageDoesNotExist`).
    const MISSING: &str = "o such image: ";
    let without_no = message.strip_prefix(['N', 'n']);
    if let Some(rest) = without_no.and_then(|message| message.strip_prefix(MISSING)) {
        // From 17.05 to 20.10 it names the image as asked for, and then as it knows it.
        return match rest.split_once(": No such image: ") {
            Some((asked, known)) => is_spelling_of(asked, name) && is_spelling_of(known, name),
            None => is_spelling_of(rest, name),
        };
    }
    // Podman's API that is compatible with Docker's; the reason is Podman's own or its storage's.
    let Some(rest) = message.strip_prefix("failed to find image ") else { return false };
    let Some((asked, rest)) = rest.split_once(": ") else { return false };
    ["No such image", "image not known"].into_iter().any(|reason| {
        let known = rest.strip_suffix(reason).and_then(|known| known.strip_suffix(": "));
        known.is_some_and(|known| is_spelling_of(asked, name) && is_spelling_of(known, name))
    })
}

/// Returns whether a client says, whatever else it says, that there is no image `name`, and says it
/// of no other image.
///
/// Docker and nerdctl say `No such image: NAME`, podman `NAME: image not known`.
fn complains_of_no_such_image(complaint: &str, name: &str) -> bool {
    let lower = complaint.to_ascii_lowercase();
    // An engine that refuses the name says "no such image: NAME: invalid reference format".
    if lower.contains("invalid reference format") {
        return false;
    }
    // These end a name: nerdctl quotes its message, and escapes the line ends in it.
    let ends_name = |c: char| c.is_whitespace() || "\"'\\,;".contains(c);
    let is_this = |word: &str| {
        let word = word.trim_end_matches(':');
        // nerdctl may print a list in brackets.
        is_spelling_of(word, name)
            || word.strip_suffix(']').is_some_and(|word| is_spelling_of(word, name))
    };
    let mut mentions = ["no such image", "image not known"]
        .into_iter()
        .flat_map(|reason| lower.match_indices(reason))
        .map(|(at, reason)| {
            let (before, after) = (&complaint[..at], &complaint[at + reason.len()..]);
            if let Some(after) = after.strip_prefix(": ") {
                return is_this(after.split(ends_name).next().unwrap_or_default());
            }
            let is_end = after.is_empty() || after.starts_with(['\n', '\r', '"', '\\', ']']);
            before
                .strip_suffix(": ")
                .filter(|_| is_end)
                .is_some_and(|before| is_this(before.rsplit(ends_name).next().unwrap_or_default()))
        })
        .peekable();
    mentions.peek().is_some() && mentions.all(|is_this| is_this)
}

/// Returns whether `spelled` is the image `name`, in full or in Docker's familiar form.
fn is_spelling_of(spelled: &str, name: &str) -> bool {
    let same_image = || {
        let tag = |text: &str| text.parse::<Tag>().ok();
        tag(spelled).is_some_and(|tag_spelled| tag(name).as_ref() == Some(&tag_spelled))
    };
    // Docker's own familiar form of docker.io/localhost/env leaves the registry out.
    spelled == name || name.strip_prefix("docker.io/") == Some(spelled) || same_image()
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
    fn docker_from_a_snap_is_asked_through_its_client() {
        let folder = tempfile::tempdir().unwrap();
        let way = |file: &str| {
            std::fs::write(folder.path().join(file), "\x7fELF").unwrap();
            let docker = folder.path().join(format!("docker-is-{file}"));
            std::os::unix::fs::symlink(file, &docker).unwrap();
            let mut client = Client::plain(Engine::Docker);
            client.globals = ["-H", "unix:///s"].map(Into::into).into();
            way_to(&client, Some(&docker)).unwrap().to_string()
        };
        assert_eq!(way("binary"), "over its API at /s");
        assert_eq!(way("snap"), "through its client");
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

    /// What Docker, from 1.12 to 28, and Podman answer for an image that they do not have.
    const MISSING: [&str; 12] = [
        "No such image: env:abc",
        "no such image: env:abc: No such image: env:abc",
        "no such image: docker.io/library/env:abc: No such image: env:abc",
        "No such image: docker.io/library/env:abc",
        "failed to find image env:abc: docker.io/library/env:abc: No such image",
        "failed to find image env:abc: env:abc: image not known",
        "No such image: env:latest",
        "No such image: env",
        "failed to find image env: docker.io/library/env: No such image",
        "No such image: r.example:5000/a/env:1",
        "failed to find image r.example:5000/a/env:1: r.example:5000/a/env:1: No such image",
        "no such image: docker.io/localhost/env:1: No such image: localhost/env:1",
    ];
    const NAMES: [&str; 4] =
        ["env:abc", "env:latest", "r.example:5000/a/env:1", "docker.io/localhost/env:1"];

    /// Which of `MISSING` speaks of the image of this place in `NAMES`.
    fn is_of(at: usize) -> usize {
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3][at]
    }

    #[test]
    fn only_the_engines_own_word_of_this_image_means_missing() {
        for (at, said) in MISSING.iter().enumerate() {
            for (of, name) in NAMES.iter().enumerate() {
                assert_eq!(says_no_such_image(said, name), of == is_of(at), "{name}: {said}");
            }
        }
        for said in [
            "no such image: env:abc: no space left on device",
            "no such image: env:abc: No such image: other:1",
            "no such image: other:1: No such image: env:abc",
            "No such image: env:abc ",
            "No such image: env:abc: invalid reference format",
            "No such image: library/other:abc",
            "No such image: localhost/env:abc",
            "No such image: ",
            "no such image",
            "error: No such image: env:abc",
            "failed to find image env:abc: docker.io/library/other:1: No such image",
            "failed to find image env:abc: database is locked",
            "failed to find image env:abc: No such image",
            "page not found",
            "",
        ] {
            assert!(!says_no_such_image(said, "env:abc"), "{said}");
        }
    }

    #[test]
    fn only_a_clients_word_of_this_image_means_missing() {
        for (at, said) in MISSING.iter().enumerate() {
            for (of, name) in NAMES.iter().enumerate() {
                let line = format!("WARNING: x\nError response from daemon: {said}\n");
                let says_so = complains_of_no_such_image(&line, name);
                assert_eq!(says_so, of == is_of(at), "{name}: {said}");
            }
        }
        for said in [
            "Error: No such image: env:abc\n",
            "time=\"t\" level=fatal msg=\"1 errors:\\nno such image: env:abc\"\n",
            "level=fatal msg=\"1 errors: [no such image: env:abc]\"",
            "Error: env:abc: image not known",
            "Error: inspecting object: env:abc: image not known",
            "Error: unable to inspect \"env:abc\": no such image: env:abc",
        ] {
            assert!(complains_of_no_such_image(said, "env:abc"), "{said}");
            assert!(!complains_of_no_such_image(said, "env:ab"), "{said}");
        }
        let address = "[::1]:5000/env:1";
        assert!(complains_of_no_such_image(&format!("[no such image: {address}]"), address));
        for said in [
            "Error: No such image: other:1",
            "Error: No such image: env:abcd",
            "Error: No such image: env:abc\nError: No such image: other:1",
            "Error: other:1: image not known",
            "no such image",
            "base of env:abc: no such image found",
            "env:abc: no such image format",
            "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
            "page not found",
            "no such host",
            "Error response from daemon: no such image: A/b: invalid reference format",
            "",
        ] {
            assert!(!complains_of_no_such_image(said, "env:abc"), "{said}");
        }
    }
}
