//! The engine's API over its local socket: one blocking GET,
//! `/images/NAME/json` before all.
//!
//! No version stands in the path: the engine then speaks its own, where a version that is too new
//! for it is refused (<https://docs.docker.com/reference/api/engine/>). The endpoint is found as
//! docker's client finds it (<https://docs.docker.com/engine/manage-resources/contexts/>).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use super::buildx;
use super::registry::Described;
use super::{
    ANSWER_WITHIN, Answer, CacheMount, EngineProcess, Identity, Platform, Unanswered, excerpt,
    says_no_such_image,
};
use crate::command::Client;
use crate::go_json;
use crate::reference::sha256_hex;

/// Where the engine listens unless somebody says otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// Largest response that is read, in bytes. An image's JSON has some ten thousand.
const RESPONSE_MAX: usize = 16 << 20;
/// Largest head of a response that is read, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Most header fields that are read.
const HEADERS_MAX: usize = 100;

/// Why buildlock does not know which engine docker's client would talk to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Only the client itself can tell.
    AskClient,
    /// The client would name a context that does not exist; a sentence for the user.
    NoSuchContext(String),
}

/// Returns the socket on which the engine that `client` would talk to listens.
///
/// # Errors
/// Returns why not: that engine is not on a socket of this machine, or something about it is
/// unclear.
pub(super) fn local_socket(client: &Client) -> Result<PathBuf, Unknown> {
    socket_at(client, endpoint(client)?)
}

fn socket_at(client: &Client, endpoint: String) -> Result<PathBuf, Unknown> {
    // --tls and its like speak of TCP.
    if client.global_flags().iter().any(|(name, _)| name.starts_with("tls")) {
        return Err(Unknown::AskClient);
    }
    match endpoint.as_str() {
        "" | "unix://" => Ok(DEFAULT_SOCKET.into()),
        host => host.strip_prefix("unix://").map(PathBuf::from).ok_or(Unknown::AskClient),
    }
}

/// Returns the address of the engine that `client` would talk to; empty where nothing names one.
///
/// # Errors
/// Returns why it is not known.
pub(super) fn endpoint(client: &Client) -> Result<String, Unknown> {
    endpoint_with(client, &|name| client.variable_as_set(name))
}

fn endpoint_with(
    client: &Client,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<String, Unknown> {
    match target_with(client, variable)? {
        Target::Host(host) => Ok(host),
        Target::Context { config, name, named_by } => context_host(&config, &name, &named_by),
    }
}

/// What buildx calls the engine of `client` in its files: its context, or else its address.
pub(super) fn builder_key(client: &Client) -> Option<String> {
    match target_with(client, &|name| client.variable_as_set(name)).ok()? {
        Target::Context { name, .. } => Some(name),
        Target::Host(host) if host.is_empty() => Some(format!("unix://{DEFAULT_SOCKET}")),
        Target::Host(host) => Some(host),
    }
}

/// What names the engine.
enum Target {
    /// An address; empty where nothing names one.
    Host(String),
    /// A context in this folder of docker's configuration.
    Context { config: PathBuf, name: String, named_by: String },
}

/// The order is that of docker's client, `resolveContextName`.
fn target_with(
    client: &Client,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Target, Unknown> {
    /// The context that stands for flags and variables alone.
    const DEFAULT: &str = "default";
    let mut hosts = Vec::new();
    let mut context = None;
    for (name, value) in client.global_flags() {
        match name.as_str() {
            "H" | "host" => hosts.push(value),
            "c" | "context" => context = Some(value),
            _ => {}
        }
    }
    let by_flag = context.filter(|context| !context.is_empty());
    if hosts.len() > 1 || by_flag.is_some() && !hosts.is_empty() {
        // The client refuses both.
        return Err(Unknown::AskClient);
    }
    let text = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
    let (docker_host, docker_context) = (text("DOCKER_HOST"), text("DOCKER_CONTEXT"));
    let has_host = !hosts.is_empty() || docker_host.as_ref().is_some_and(|host| !host.is_empty());
    let default_host =
        || hosts.first().or(docker_host.as_ref()).map_or("", |host| host.trim()).to_owned();

    let config = client.configuration();
    let (name, named_by) = match by_flag {
        Some(context) => (context, "--context".to_owned()),
        None if has_host => return Ok(Target::Host(default_host())),
        None => {
            let by_variable = docker_context.as_ref().filter(|context| !context.is_empty());
            let named = match (by_variable, &config) {
                (Some(context), _) => Some((context.clone(), "DOCKER_CONTEXT".to_owned())),
                (None, Some(config)) => current_context(config)?,
                (None, None) => None,
            };
            let Some(named) = named else { return Ok(Target::Host(default_host())) };
            // A variable that is set to nothing is a choice of its own up to 20.10, and none later.
            let is_empty = |variable: &Option<String>| variable.as_deref() == Some("");
            if named.0 != DEFAULT && (is_empty(&docker_host) || is_empty(&docker_context)) {
                return Err(Unknown::AskClient);
            }
            named
        }
    };
    if name == DEFAULT {
        return Ok(Target::Host(default_host()));
    }
    Ok(Target::Context { config: config.ok_or(Unknown::AskClient)?, name, named_by })
}

/// The builder that buildx uses where neither COMMAND nor a variable names one (`docker buildx
/// use`).
///
/// It writes it down beside the engine for which it was chosen, and so does not use it for another;
/// that is not looked at here.
pub(super) fn chosen_builder(client: &Client) -> Option<String> {
    #[derive(Default)]
    struct Current {
        name: String,
    }
    go_json::fields!(Current { "Name" => name });
    let text = std::fs::read(buildx::folder(client)?.join("current")).ok()?;
    let Current { name } = go_json::read(&text).ok()?;
    Some(name).filter(|name| !name.is_empty())
}

/// Returns the context that docker's configuration names, if any, and where it does.
fn current_context(config: &Path) -> Result<Option<(String, String)>, Unknown> {
    let file = config.join("config.json");
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        // The client warns of a file that it may not read, and goes on without; let it.
        Err(_) => return Err(Unknown::AskClient),
    };
    // It does the same with a file that is not JSON.
    let context = context_in(&text).map_err(|_| Unknown::AskClient)?;
    Ok(context.map(|context| (context, format!("currentContext in {}", file.display()))))
}

/// Returns the context that the text of docker's `config.json` names, if any.
///
/// # Errors
/// Returns what is not JSON.
pub fn context_in(config: &[u8]) -> serde_json::Result<Option<String>> {
    #[derive(Default)]
    struct Config {
        current_context: String,
    }
    go_json::fields!(Config { "currentContext" => current_context });
    let config: Config = go_json::read_config(config)?;
    Ok(Some(config.current_context).filter(|context| !context.is_empty()))
}

/// Returns the engine's address in a context's `meta.json`. Where the file cannot be understood,
/// the client has its own words for that.
fn context_host(config: &Path, context: &str, named_by: &str) -> Result<String, Unknown> {
    let file = config.join("contexts/meta").join(sha256_hex(context)).join("meta.json");
    let text = std::fs::read(&file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Unknown::NoSuchContext(format!(
            "docker's context '{context}', which {named_by} names, does not exist: there is no \
             {}; 'docker context ls' lists those that do",
            file.display()
        )),
        _ => Unknown::AskClient,
    })?;
    let host = host_in(&text).map_err(|_| Unknown::AskClient)?;
    // Here the client does not complete it.
    if host == "unix://" { Err(Unknown::AskClient) } else { Ok(host) }
}

/// Returns the engine's address in the text of a context's `meta.json`; empty if it does not say.
///
/// # Errors
/// Returns what docker's client refuses.
pub fn host_in(meta: &[u8]) -> serde_json::Result<String> {
    // Every field whose type the client checks.
    #[derive(Default)]
    struct Meta {
        name: String,
        metadata: Metadata,
        endpoints: BTreeMap<String, Option<Docker>>,
    }
    go_json::fields!(Meta { "Name" => name, "Metadata" => metadata, "Endpoints" => endpoints });
    #[derive(Default)]
    struct Metadata;
    go_json::fields!(Metadata {});
    #[derive(Default)]
    struct Docker {
        host: String,
        skip_tls_verify: bool,
    }
    go_json::fields!(Docker { "Host" => host, "SkipTLSVerify" => skip_tls_verify });
    let mut meta: Meta = go_json::read(meta)?;
    match meta.endpoints.remove("docker").flatten() {
        Some(docker) => Ok(docker.host),
        None => Err(serde::de::Error::missing_field("docker")),
    }
}

/// Asks the engine that listens on `socket` for the image `name`.
///
/// # Errors
/// Anything but an image, or the engine's own word that there is none.
pub(super) fn ask(socket: &Path, name: &str) -> Result<Answer, Unanswered> {
    get(socket, &format!("/images/{name}/json"), "", ANSWER_WITHIN)
        .map_err(|error| explain(socket, &error))
        .and_then(|response| read_answer(&response, socket, name))
}

/// The same with all platforms that the image is there for; with none of them, if there are
/// `several` to tell and the engine cannot.
///
/// Engines tell since API 1.48 (Docker 28), and only where their store keeps images for several
/// platforms, which is containerd's. Older ones do not mind the parameter.
///
/// # Errors
/// As [`ask`].
pub(super) fn ask_for_platforms(
    socket: &Path,
    name: &str,
    several: bool,
) -> Result<Answer, Unanswered> {
    let response = get(socket, &format!("/images/{name}/json?manifests=1"), "", ANSWER_WITHIN)
        .map_err(|error| explain(socket, &error))?;
    Ok(match (read_answer(&response, socket, name)?, manifests_in(&response.body)) {
        (Answer::Present(_), Some(all)) => Answer::Present(all),
        (Answer::Present(_), None) if several => Answer::Present(Vec::new()),
        (answer, _) => answer,
    })
}

/// The platforms for which all of the image is there, if the engine says so.
fn manifests_in(image: &[u8]) -> Option<Vec<Platform>> {
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "Manifests")]
        manifests: Vec<Manifest>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Manifest {
        available: bool,
        image_data: Option<ImageData>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct ImageData {
        platform: Described,
    }
    let Image { manifests } = serde_json::from_slice(image).ok()?;
    let there = manifests.into_iter().filter(|manifest| manifest.available);
    // Attestations are no images.
    let platforms = there.filter_map(|manifest| manifest.image_data?.platform.known());
    Some(platforms.collect()).filter(|all: &Vec<_>| !all.is_empty())
}

/// Asks the engine that listens on `socket` for the id of the image `name`.
///
/// # Errors
/// As [`ask`].
pub(super) fn identity(socket: &Path, name: &str) -> Result<Identity, Unanswered> {
    let response = get(socket, &format!("/images/{name}/json"), "", ANSWER_WITHIN)
        .map_err(|error| explain(socket, &error))?;
    match read_answer(&response, socket, name)? {
        Answer::Missing => Ok(Identity::Missing),
        Answer::Present(_) => Ok(match serde_json::from_slice::<Image>(&response.body) {
            Ok(image) => Identity::Known(image.id),
            Err(_) => Identity::Unknown,
        }),
    }
}

/// Returns which process listens on `socket`. The kernel notes it with the socket (unix(7),
/// SO_PEERCRED), and shows the number 0 in a PID namespace that does not have the process.
pub(super) fn listener(socket: &Path) -> Option<EngineProcess> {
    const WITHIN: Duration = Duration::from_secs(2);
    let stream = connect(socket, WITHIN).ok()?;
    // rustix has no type for the number 0.
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
    match u32::try_from(peer.ok()?.pid()).ok()? {
        0 => Some(EngineProcess::Elsewhere),
        pid => Some(EngineProcess::Visible(pid)),
    }
}

/// What the response of the engine that listens on `socket` says of the image `name`.
///
/// # Errors
/// Anything but an image, or the engine's own word that there is none of that name.
pub fn read_answer(response: &Response, socket: &Path, name: &str) -> Result<Answer, Unanswered> {
    let at = socket.display();
    match response.status {
        200 => match serde_json::from_slice::<Image>(&response.body) {
            Ok(image) if !image.id.is_empty() => {
                Ok(Answer::Present(Vec::from_iter(image.platform.known())))
            }
            _ => Err(Unanswered::lasting(format!(
                "what listens on {at} answered with no image: {}",
                excerpt(&response.body)
            ))),
        },
        404 if error_message(&response.body)
            .is_some_and(|said| says_no_such_image(&said, name)) =>
        {
            Ok(Answer::Missing)
        }
        status => {
            let said = error_message(&response.body).unwrap_or_else(|| excerpt(&response.body));
            let why = format!("the engine at {at} answered with HTTP status {status}: {said}");
            Err(Unanswered { why, passes: status >= 500 || status == 429 })
        }
    }
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "Id")]
    id: String,
    #[serde(flatten)]
    platform: Platform,
}

impl Platform {
    /// None if the engine did not say.
    pub(super) fn known(self) -> Option<Self> {
        (!self.os.is_empty() && !self.architecture.is_empty()).then_some(self)
    }
}

/// What an engine's error says: `{"message": "…"}`.
pub(super) fn error_message(body: &[u8]) -> Option<String> {
    // Not as a type: a list would do for one as well.
    Some(serde_json::from_slice::<Value>(body).ok()?.get("message")?.as_str()?.to_owned())
}

pub(super) fn explain(socket: &Path, error: &std::io::Error) -> Unanswered {
    let at = socket.display();
    match error.kind() {
        ErrorKind::PermissionDenied => Unanswered::lasting(format!(
            "the engine at {at} may not be asked: {error}; may this user use docker (group docker)?"
        )),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Unanswered::lasting(format!(
            "the engine at {at} did not answer within {}",
            humantime::format_duration(ANSWER_WITHIN)
        )),
        ErrorKind::InvalidData => {
            Unanswered::lasting(format!("what listens on {at} is no engine: {error}"))
        }
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            Unanswered::passing(format!("no engine answers at {at}: {error}; is it running?"))
        }
        _ => Unanswered::passing(format!("the engine at {at} did not answer: {error}")),
    }
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Response {
    /// The status, 200 for an image.
    pub status: u16,
    /// The body, put together if it came in chunks.
    pub body: Vec<u8>,
}

/// What the engine that listens on `socket` says of its cache mounts; none if it does not, or not
/// in time.
pub(super) fn cache_mounts(socket: &Path, within: Duration) -> Option<Vec<CacheMount>> {
    /// How it refuses to count twice at the same time (moby, daemon/disk_usage.go, until 20.10).
    const IS_COUNTING: &str = "already running";
    const PAUSE: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Engines before API 1.42 know no type, and answer with everything.
        let ask = (!left.is_zero()).then(|| get(socket, "/system/df?type=build-cache", "", left));
        let response = ask?.ok()?;
        if response.status == 200 {
            return mounts_in(&response.body).ok();
        }
        if !error_message(&response.body)?.contains(IS_COUNTING) {
            return None;
        }
        std::thread::sleep(PAUSE.min(left).mul_f64(0.5 + fastrand::f64()));
    }
}

/// The id of the engine that listens on `socket`, which no other engine has.
pub(super) fn id(socket: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(rename = "ID")]
        id: String,
    }
    let response = get(socket, "/info", "", ANSWER_WITHIN).ok()?;
    let Info { id } = serde_json::from_slice(&response.body).ok()?;
    Some(id).filter(|id| !id.is_empty())
}

/// The cache mounts in the engine's answer to `GET /system/df`.
///
/// # Errors
/// It is no such answer.
fn mounts_in(answer: &[u8]) -> serde_json::Result<Vec<CacheMount>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Usage {
        // Null where there are none, up to 20.10.
        build_cache: Option<Vec<Record>>,
    }
    #[derive(Deserialize)]
    struct Record {
        #[serde(rename = "ID")]
        id: String,
        #[serde(rename = "Type")]
        kind: String,
        #[serde(rename = "LastUsedAt")]
        last_used: Option<String>,
    }
    let usage: Usage = serde_json::from_slice(answer)?;
    let mounts =
        usage.build_cache.into_iter().flatten().filter(|record| record.kind == "exec.cachemount");
    let mounts = mounts.map(|Record { id, last_used, .. }| CacheMount {
        id,
        last_used: last_used.and_then(|time| moment(&time)),
    });
    Ok(mounts.collect())
}

/// A moment as Go writes it: RFC 3339, in the daemon's time zone. humantime only reads UTC.
fn moment(time: &str) -> Option<SystemTime> {
    if time.ends_with('Z') {
        return humantime::parse_rfc3339(time).ok();
    }
    let (local, offset) = time.split_at_checked(time.len().checked_sub("+00:00".len())?)?;
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.len() == 2);
    let offset_by = Duration::from_secs(number(hours)? * 3600 + number(minutes)? * 60);
    match offset.as_bytes()[0] {
        b'+' => local.checked_sub(offset_by),
        b'-' => local.checked_add(offset_by),
        _ => None,
    }
}

/// One GET. `fields` are more lines of its head, each with its line end.
pub(super) fn get(
    socket: &Path,
    path: &str,
    fields: &str,
    within: Duration,
) -> std::io::Result<Response> {
    let deadline = Instant::now() + within;
    let mut stream = Timely { stream: connect(socket, within)?, deadline };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: docker\r\nUser-Agent: buildlock/{}\r\n\
         Accept: application/json\r\nConnection: close\r\n{fields}\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.stream.write_all(request.as_bytes())?;
    receive(&mut stream)
}

/// A stream that says nothing any more after its deadline.
struct Timely {
    stream: UnixStream,
    deadline: Instant,
}

impl Read for Timely {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(into)
    }
}

/// Reads one response from what an engine sends.
///
/// # Errors
/// It cannot be read, ends too early, has no end, or is no response.
pub fn receive(source: &mut impl Read) -> std::io::Result<Response> {
    let mut received = Vec::new();
    let mut head = None;
    let mut chunks = Chunks::default();
    let mut piece = [0; 16 << 10];
    loop {
        let read = match source.read(&mut piece) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        received.extend_from_slice(&piece[..read]);
        if head.is_none() {
            head = Head::parse(&received)?;
        }
        let body = match &head {
            None => None,
            Some(Head { start, framing, .. }) => {
                let body = &received[*start..];
                match *framing {
                    Framing::Length(length) => body.get(..length).map(<[u8]>::to_vec),
                    Framing::ToTheEnd => (read == 0).then(|| body.to_vec()),
                    Framing::Chunked => {
                        chunks.take(body)?.then(|| std::mem::take(&mut chunks.body))
                    }
                }
            }
        };
        if let (Some(body), Some(Head { status, .. })) = (body, &head) {
            return Ok(Response { status: *status, body });
        }
        if read == 0 {
            return Err(std::io::Error::new(ErrorKind::UnexpectedEof, "the answer ends too early"));
        }
        if received.len() > RESPONSE_MAX {
            return Err(invalid("its answer has no end"));
        }
    }
}

/// Connects within the time that an answer may take: where nobody accepts and the queue is full,
/// connect(2) waits, for as long as the socket's limit for sending says.
fn connect(socket: &Path, within: Duration) -> std::io::Result<UnixStream> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let address = match socket.as_os_str().as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(socket)?,
    };
    let stream = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&stream, Timeout::Send, Some(within))?;
    // With a limit on it, the kernel does not go on by itself after an interruption.
    rustix::io::retry_on_intr(|| rustix::net::connect(&stream, &address))?;
    Ok(stream.into())
}

fn invalid(why: &str) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, why)
}

/// The head of a response.
struct Head {
    status: u16,
    framing: Framing,
    /// Where the body begins.
    start: usize,
}

/// How long a body is.
#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
    ToTheEnd,
}

impl Head {
    /// Reads a head, or says that some of it is still to come.
    fn parse(received: &[u8]) -> std::io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let start = match head.parse(received) {
            Ok(httparse::Status::Complete(start)) => start,
            Ok(httparse::Status::Partial) if received.len() > HEAD_MAX => {
                return Err(invalid("its answer has no body"));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(invalid(&format!("{error}: {}", excerpt(received)))),
        };
        let field = |name: &str| {
            let found =
                head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok().map(str::trim)
        };
        let chunked = field("transfer-encoding")
            .is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked"));
        let framing = match field("content-length") {
            _ if chunked => Framing::Chunked,
            Some(length) => {
                Framing::Length(length.parse().map_err(|_| invalid("its answer has no length"))?)
            }
            None => Framing::ToTheEnd,
        };
        Ok(Some(Head { status: head.code.unwrap_or_default(), framing, start }))
    }
}

/// A chunked body (RFC 9112, 7.1), put together as it comes.
#[derive(Default)]
struct Chunks {
    body: Vec<u8>,
    /// How much of what was received is in it.
    taken: usize,
}

impl Chunks {
    /// Takes the chunks that have come since. Returns whether that was the last one.
    fn take(&mut self, received: &[u8]) -> std::io::Result<bool> {
        loop {
            let rest = &received[self.taken..];
            let (start, length) = match httparse::parse_chunk_size(rest) {
                Ok(httparse::Status::Complete((start, length))) => (start, length),
                Ok(httparse::Status::Partial) => return Ok(false),
                Err(_) => return Err(invalid("its answer is not chunked as it says")),
            };
            if length == 0 {
                return Ok(true);
            }
            let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
            let end = end
                .filter(|&end| end <= RESPONSE_MAX)
                .ok_or_else(|| invalid("its answer has no end"))?;
            match (rest.get(start..end), rest.get(end..end + 2)) {
                (Some(chunk), Some(b"\r\n")) => self.body.extend_from_slice(chunk),
                (Some(_), Some(_)) => return Err(invalid("its answer is not chunked as it says")),
                _ => return Ok(false),
            }
            self.taken += end + 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsString;

    fn client(globals: &[&str], environment: &[(&str, &str)]) -> Client {
        let mut client = Client::plain(crate::command::Engine::Docker);
        client.globals = globals.iter().map(OsString::from).collect();
        // What the tests' own environment says must not matter.
        client.environment = [("DOCKER_CONFIG", "")]
            .iter()
            .chain(environment)
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        client
    }

    /// A folder like ~/.docker with one context.
    fn configuration(current: &str, context: &str, host: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("config.json"),
            format!("{{\"currentContext\":\"{current}\"}}"),
        )
        .unwrap();
        let meta = folder.path().join("contexts/meta").join(sha256_hex(context));
        std::fs::create_dir_all(&meta).unwrap();
        let text = format!(
            "{{\"Name\":\"{context}\",\"Endpoints\":{{\"docker\":{{\"Host\":\"{host}\"}}}}}}"
        );
        std::fs::write(meta.join("meta.json"), text).unwrap();
        folder
    }

    fn socket(globals: &[&str], environment: &[(&str, &str)]) -> Result<String, Unknown> {
        let client = client(globals, environment);
        let set = |name: &str| environment.iter().rev().find(|(set, _)| *set == name);
        let endpoint = endpoint_with(&client, &|name| Some(set(name)?.1.into()))?;
        Ok(socket_at(&client, endpoint)?.display().to_string())
    }

    #[test]
    fn the_endpoint_is_found_as_dockers_client_finds_it() {
        let folder = configuration("here", "here", "unix:///ctx");
        let config = ("DOCKER_CONFIG", folder.path().to_str().unwrap());
        let host = ("DOCKER_HOST", "unix:///env");
        for (globals, environment, expected) in [
            (&[][..], &[("HOME", "/nowhere")][..], Some(DEFAULT_SOCKET)),
            (&[], &[config], Some("/ctx")),
            (&[], &[config, host], Some("/env")),
            (&["-H", "unix:///flag"], &[config, host], Some("/flag")),
            (&["--host=unix:///flag"], &[config, host], Some("/flag")),
            (&["--context", "here"], &[config, host], Some("/ctx")),
            (&["--context", ""], &[config], Some("/ctx")),
            (&["-c", "default"], &[config, host], Some("/env")),
            (&["-c", "unknown", "-c", "here"], &[config], Some("/ctx")),
            (&["-c", "here", "-H", "unix:///flag"], &[config], None),
            (&["-H", "unix:///flag", "-H", "unix:///other"], &[config], None),
            (&[], &[config, ("DOCKER_CONTEXT", "default")], Some(DEFAULT_SOCKET)),
            // Clients differ.
            (&[], &[config, ("DOCKER_HOST", "")], None),
            (&[], &[config, ("DOCKER_CONTEXT", "")], None),
            (&["-c", "here"], &[config, ("DOCKER_HOST", "")], Some("/ctx")),
            (&[], &[("HOME", "/nowhere"), ("DOCKER_HOST", "")], Some(DEFAULT_SOCKET)),
            (&[], &[("DOCKER_HOST", "tcp://h:2375")], None),
            (&[], &[("DOCKER_HOST", "ssh://h")], None),
            (&["--tlsverify", "-H", "unix:///s"], &[], None),
            (&[], &[("DOCKER_HOST", "unix://")], Some(DEFAULT_SOCKET)),
        ] {
            assert_eq!(
                socket(globals, environment),
                expected.map(str::to_owned).ok_or(Unknown::AskClient),
                "{globals:?} {environment:?}"
            );
        }
        let by_flag = ["--config", folder.path().to_str().unwrap()];
        assert_eq!(socket(&by_flag, &[]).as_deref(), Ok("/ctx"));
    }

    #[test]
    fn a_context_elsewhere_goes_through_the_client() {
        let folder = configuration("far", "far", "ssh://h");
        let config = ("DOCKER_CONFIG", folder.path().to_str().unwrap());
        assert_eq!(socket(&[], &[config]), Err(Unknown::AskClient));
    }

    #[test]
    fn a_context_that_does_not_exist_is_told_with_what_names_it() {
        let folder = configuration("gone", "here", "unix:///ctx");
        let config = ("DOCKER_CONFIG", folder.path().to_str().unwrap());
        for (globals, environment, named_by) in [
            (&[][..], &[config][..], "currentContext in "),
            (&[], &[config, ("DOCKER_CONTEXT", "gone")], "DOCKER_CONTEXT"),
            (&["-c", "gone"], &[config, ("DOCKER_HOST", "unix:///s")], "--context"),
        ] {
            match socket(globals, environment) {
                Err(Unknown::NoSuchContext(why)) => {
                    assert!(why.contains("'gone'") && why.contains(named_by), "{why}");
                }
                other => panic!("{globals:?} {environment:?}: {other:?}"),
            }
        }
        assert_eq!(socket(&[], &[config, ("DOCKER_CONTEXT", "here")]).as_deref(), Ok("/ctx"));
    }

    // What is expected below is what docker's client does with these texts, 20.10 and 28.

    #[test]
    fn current_context_is_read_as_dockers_client_reads_it() {
        for (config, expected) in [
            (r#"{"currentContext":"m"}"#, Some("m")),
            (r#"{"CurrentContext":"m"}"#, Some("m")),
            (r#"{"CURRENTCONTEXT":"n","currentContext":"m"}"#, Some("m")),
            (r#"{"currentContext":"m","CURRENTCONTEXT":"n"}"#, Some("n")),
            (r#"{"currentContext":"m","currentContext":null}"#, Some("m")),
            (r#"{"currentContext":"m","CurrentContext":""}"#, None),
            (r#"{"currentContext":7}"#, None),
            (r#"{"currentContext":7,"currentContext":"m"}"#, Some("m")),
            (r#"{"currentContext":"m","currentContext":7}"#, Some("m")),
            (r#"{"auths":[],"currentContext":"m"}"#, Some("m")),
            (r#"{"currentContext":"m"}{"currentContext":"n"}"#, Some("m")),
            (r#"{"current-context":"m"}"#, None),
            ("[]", None),
            ("null", None),
            ("", None),
        ] {
            assert_eq!(context_in(config.as_bytes()).unwrap().as_deref(), expected, "{config}");
        }
        for config in ["nonsense", r#"{"currentContext":"m",}"#, "\u{feff}{}"] {
            assert!(context_in(config.as_bytes()).is_err(), "{config}");
        }
    }

    #[test]
    fn host_of_a_context_is_read_as_dockers_client_reads_it() {
        let a = r#"{"Host":"unix:///a"}"#;
        for (endpoints, expected) in [
            (format!(r#""Endpoints":{{"docker":{a}}}"#), Some("unix:///a")),
            (format!(r#""endpoints":{{"docker":{a}}}"#), Some("unix:///a")),
            (format!(r#""Endpoints":{{"Docker":{a}}}"#), None),
            (format!(r#""Endpoints":{{"docker":{a},"docKer":{{}}}}"#), Some("unix:///a")),
            (r#""Endpoints":{"docker":{"HoſT":"unix:///a"}}"#.into(), Some("unix:///a")),
            (r#""Endpoints":{"docker":{"Host":"x","HOST":"unix:///a"}}"#.into(), Some("unix:///a")),
            (r#""Endpoints":{"docker":{"HOST":"x","Host":"unix:///a"}}"#.into(), Some("unix:///a")),
            (
                r#""Endpoints":{"docker":{"Host":"unix:///a","HOST":null}}"#.into(),
                Some("unix:///a"),
            ),
            (format!(r#""Endpoints":{{"docker":{a}}},"ENDPOINTS":{{"docker":{{}}}}"#), Some("")),
            (
                format!(r#""Endpoints":{{"docker":{a}}},"ENDPOINTS":{{"x":{{}}}}"#),
                Some("unix:///a"),
            ),
            (format!(r#""Endpoints":{{"docker":{a}}},"ENDPOINTS":null"#), None),
            (r#""Endpoints":{"docker":null}"#.into(), None),
            (r#""Endpoints":{"docker":{"Host":null}}"#.into(), Some("")),
            (r#""Endpoints":{"docker":{"Host":7}}"#.into(), None),
            (r#""Endpoints":{"docker":{"Host":"x","SkipTLSVerify":"no"}}"#.into(), None),
            (format!(r#""Endpoints":{{"docker":{a},"kubernetes":7}}"#), None),
            (format!(r#""Name":7,"Endpoints":{{"docker":{a}}}"#), None),
            (format!(r#""Metadata":7,"Endpoints":{{"docker":{a}}}"#), None),
            (format!(r#""Metadata":null,"Endpoints":{{"docker":{a}}}"#), Some("unix:///a")),
            (String::new(), None),
        ] {
            let meta = format!("{{{endpoints}}}");
            assert_eq!(host_in(meta.as_bytes()).ok().as_deref(), expected, "{meta}");
        }
        assert!(host_in(format!("{{\"Endpoints\":{{\"docker\":{a}}}}} x").as_bytes()).is_err());
        for (host, expected) in
            [("", Ok(DEFAULT_SOCKET)), ("unix://", Err(())), (" unix:///a", Err(()))]
        {
            let folder = configuration("here", "here", host);
            let config = ("DOCKER_CONFIG", folder.path().to_str().unwrap());
            assert_eq!(socket(&[], &[config]).as_deref().map_err(drop), expected, "{host}");
        }
    }

    #[test]
    fn moment_is_read_in_any_time_zone() {
        let utc = humantime::parse_rfc3339("2024-02-29T23:30:00.5Z").unwrap();
        for same in [
            "2024-02-29T23:30:00.5Z",
            "2024-03-01T01:30:00.5+02:00",
            "2024-02-29T18:00:00.500000000-05:30",
        ] {
            assert_eq!(moment(same), Some(utc), "{same}");
        }
        for none in ["", "Z", "+02:00", "2024-02-29T23:30:00", "2024-02-29T23:30:00*02:00", "é2:00"]
        {
            assert_eq!(moment(none), None, "{none}");
        }
    }

    /// What an engine sends; without an end it just says nothing more.
    struct Sent<'a>(&'a [u8], bool);

    impl Read for Sent<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(into)? {
                0 if !self.1 => Err(ErrorKind::TimedOut.into()),
                read => Ok(read),
            }
        }
    }

    fn body(sent: &[u8], at_end: bool) -> Option<Vec<u8>> {
        receive(&mut Sent(sent, at_end)).ok().map(|response| response.body)
    }

    #[test]
    fn body_in_many_chunks_takes_no_longer_than_its_length() {
        let took = |chunks: usize| {
            let mut sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for _ in 0..chunks {
                sent.extend_from_slice(b"40\r\n");
                sent.extend_from_slice(&[b'x'; 64]);
                sent.extend_from_slice(b"\r\n");
            }
            sent.extend_from_slice(b"0\r\n\r\n");
            let start = Instant::now();
            assert_eq!(body(&sent, true).unwrap().len(), 64 * chunks);
            start.elapsed()
        };
        let least = |chunks| (0..5).map(|_| took(chunks)).min().unwrap();
        // Sixteen times as much: a quadratic reader takes 256 times as long.
        let (short, long) = (least(10_000), least(160_000));
        assert!(long < short * 80, "{short:?}, {long:?}");
    }

    #[test]
    fn a_body_ends_where_its_head_says() {
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(body(sized, false).as_deref(), Some(&b"{}"[..]));
        assert_eq!(body(&sized[..sized.len() - 1], true), None);
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n";
        assert_eq!(body(chunked, false).as_deref(), Some(&b"{}"[..]));
        assert_eq!(body(&chunked[..chunked.len() - 8], true), None);
        let until_the_end = b"HTTP/1.0 200 OK\r\n\r\n{}";
        assert_eq!(body(until_the_end, false), None);
        assert_eq!(body(until_the_end, true).as_deref(), Some(&b"{}"[..]));
    }

    #[test]
    fn only_an_engines_own_404_means_missing() {
        let answer = |status, body: &str| {
            read_answer(&Response { status, body: body.into() }, Path::new("/s"), "a:b").ok()
        };
        assert_eq!(answer(404, r#"{"message":"No such image: a:b"}"#), Some(Answer::Missing));
        for (status, body) in [
            (404, r#"["No such image: a:b"]"#),
            (404, r#"{"message":["No such image: a:b"]}"#),
            (404, "No such image: a:b"),
            (404, r#"{"message":"page not found"}"#),
            (404, r#"{"message":"No such image: other:1"}"#),
            (404, r#"{"message":"no such image: A/b: invalid reference format"}"#),
            (400, r#"{"message":"No such image: a:b"}"#),
            (200, r#"{"message":"No such image: a:b"}"#),
            (200, r#"{"Id":""}"#),
        ] {
            assert_eq!(answer(status, body), None, "{status} {body}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_an_engine_sends_makes_us_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            chunked in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let _ = receive(&mut bytes.as_slice());
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            answer.extend(chunked);
            let _ = receive(&mut answer.as_slice());
            let _ = mounts_in(&bytes);
            moment(&String::from_utf8_lossy(&bytes));
        }
    }
}
