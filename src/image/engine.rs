//! The engine's API over its local socket: one blocking GET,
//! `/images/NAME/json` before all.
//!
//! No version stands in the path: the engine then speaks its own, where a version that is too new
//! for it is refused (<https://docs.docker.com/reference/api/engine/>). The endpoint is found as
//! docker's client finds it (<https://docs.docker.com/engine/manage-resources/contexts/>).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use super::{ANSWER_WITHIN, Answer, CacheMount, Platform, Unanswered, excerpt, says_no_such_image};
use crate::command::Client;
use crate::reference::sha256_hex;

/// Where the engine listens unless somebody says otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// Largest response that is read, in bytes. An image's JSON has some ten thousand.
const RESPONSE_MAX: usize = 16 << 20;
/// Largest head of a response that is read, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Most header fields that are read.
const HEADERS_MAX: usize = 100;

/// The socket on which the engine that `client` would talk to listens, if that is one on this
/// machine and nothing about it is unclear.
pub fn local_socket(client: &Client) -> Option<PathBuf> {
    // --tls and its like speak of TCP.
    if client.global_flags().iter().any(|(name, _)| name.starts_with("tls")) {
        return None;
    }
    match endpoint(client)?.as_str() {
        "" | "unix://" => Some(DEFAULT_SOCKET.into()),
        host => host.strip_prefix("unix://").map(PathBuf::from),
    }
}

/// The address of the engine that `client` would talk to, if nothing about it is unclear; empty
/// where nobody names one.
pub(super) fn endpoint(client: &Client) -> Option<String> {
    let mut host = None;
    let mut context = None;
    for (name, value) in client.global_flags() {
        match name.as_str() {
            "H" | "host" => host = Some(value),
            "c" | "context" => context = Some(value),
            _ => {}
        }
    }
    let config = client.configuration();
    let text = |name| client.variable(name).map(|value| value.to_string_lossy().into_owned());

    // The order is that of docker's client.
    let default_host = || host.clone().or_else(|| text("DOCKER_HOST"));
    let context = match (context, &host) {
        (Some(context), _) => Some(context),
        (None, Some(_)) => None,
        (None, None) if text("DOCKER_HOST").is_some() => None,
        (None, None) => match text("DOCKER_CONTEXT") {
            Some(context) => Some(context),
            None => current_context(config.as_deref())?,
        },
    };
    let host = match context.as_deref() {
        None | Some("default" | "") => default_host().unwrap_or_default(),
        Some(context) => context_host(&config?, context)?,
    };
    Some(host.trim().to_owned())
}

/// The builder that buildx uses where neither COMMAND nor a variable names one (`docker buildx use`).
///
/// It writes it down beside the engine for which it was chosen, and so does not use it for another;
/// that is not looked at here.
pub(super) fn chosen_builder(client: &Client) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Current {
        name: String,
    }
    let folder = client.variable("BUILDX_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(client.configuration()?.join("buildx")))?;
    let text = std::fs::read(folder.join("current")).ok()?;
    let Current { name } = serde_json::from_slice(&text).ok()?;
    Some(name).filter(|name| !name.is_empty())
}

/// The context that docker's configuration names: `Some(None)` where it names none, `None` where
/// it cannot be understood.
fn current_context(config: Option<&Path>) -> Option<Option<String>> {
    let Some(config) = config else { return Some(None) };
    match std::fs::read(config.join("config.json")) {
        Ok(text) => context_in(&text).ok(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Some(None)
        }
        // The client warns of a file that it may not read, and goes on without; let it.
        Err(_) => None,
    }
}

/// The context that the text of docker's `config.json` names, if any.
///
/// # Errors
/// It is no such text.
pub fn context_in(config: &[u8]) -> serde_json::Result<Option<String>> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "currentContext", default)]
        current_context: String,
    }
    let config: Config = serde_json::from_slice(config)?;
    Ok(Some(config.current_context).filter(|context| !context.is_empty()))
}

fn context_host(config: &Path, context: &str) -> Option<String> {
    let folder = config.join("contexts/meta").join(sha256_hex(context));
    host_in(&std::fs::read(folder.join("meta.json")).ok()?).ok()
}

/// The engine's address in the text of a context's `meta.json`; empty if it does not say.
///
/// # Errors
/// It is no such text.
pub fn host_in(meta: &[u8]) -> serde_json::Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Meta {
        endpoints: Endpoints,
    }
    #[derive(Deserialize)]
    struct Endpoints {
        docker: Docker,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Docker {
        #[serde(default)]
        host: String,
    }
    Ok(serde_json::from_slice::<Meta>(meta)?.endpoints.docker.host)
}

/// Asks the engine that listens on `socket` for the image `name`.
///
/// # Errors
/// Anything but an image, or the engine's own word that there is none.
pub(super) fn ask(socket: &Path, name: &str) -> Result<Answer, Unanswered> {
    get(socket, &format!("/images/{name}/json"), "", ANSWER_WITHIN)
        .map_err(|error| explain(socket, &error))
        .and_then(|response| read_answer(&response, socket))
}

/// What the response of the engine that listens on `socket` says of an image.
///
/// # Errors
/// Anything but an image, or the engine's own word that there is none.
pub fn read_answer(response: &Response, socket: &Path) -> Result<Answer, Unanswered> {
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
        404 if error_message(&response.body).is_some_and(|said| says_no_such_image(&said)) => {
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
    let mut chunk = [0; 16 << 10];
    loop {
        let read = match source.read(&mut chunk) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        received.extend_from_slice(&chunk[..read]);
        if let Some(response) = parse(&received, read == 0)? {
            return Ok(response);
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

/// The response in `received`, or none while something is still to come.
fn parse(received: &[u8], at_end: bool) -> std::io::Result<Option<Response>> {
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
    let body = &received[start..];
    let field = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::trim)
    };
    let chunked = field("transfer-encoding")
        .is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked"));
    let body = if chunked {
        unchunk(body)?
    } else if let Some(length) = field("content-length") {
        let length: usize = length.parse().map_err(|_| invalid("its answer has no length"))?;
        body.get(..length).map(<[u8]>::to_vec)
    } else {
        at_end.then(|| body.to_vec())
    };
    Ok(body.map(|body| Response { status: head.code.unwrap_or_default(), body }))
}

/// Puts a chunked body together (RFC 9112, 7.1), or says that some is still to come.
fn unchunk(mut rest: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let (start, length) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete((start, length))) => (start, length),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(invalid("its answer is not chunked as it says")),
        };
        if length == 0 {
            return Ok(Some(body));
        }
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        let end = end
            .filter(|&end| end <= RESPONSE_MAX)
            .ok_or_else(|| invalid("its answer has no end"))?;
        match (rest.get(start..end), rest.get(end..end + 2)) {
            (Some(chunk), Some(b"\r\n")) => body.extend_from_slice(chunk),
            (Some(_), Some(_)) => return Err(invalid("its answer is not chunked as it says")),
            _ => return Ok(None),
        }
        rest = &rest[end + 2..];
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
        let unset = ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"].map(|name| (name, ""));
        client.environment = unset
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

    fn socket(globals: &[&str], environment: &[(&str, &str)]) -> Option<String> {
        local_socket(&client(globals, environment)).map(|path| path.display().to_string())
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
            (&["-c", "default"], &[config, host], Some("/env")),
            (&[], &[config, ("DOCKER_CONTEXT", "default")], Some(DEFAULT_SOCKET)),
            (&[], &[config, ("DOCKER_CONTEXT", "unknown")], None),
            (&[], &[("DOCKER_HOST", "tcp://h:2375")], None),
            (&[], &[("DOCKER_HOST", "ssh://h")], None),
            (&["--tlsverify", "-H", "unix:///s"], &[], None),
            (&[], &[("DOCKER_HOST", "unix://")], Some(DEFAULT_SOCKET)),
        ] {
            assert_eq!(
                socket(globals, environment).as_deref(),
                expected,
                "{globals:?} {environment:?}"
            );
        }
        let by_flag = ["--config", folder.path().to_str().unwrap()];
        assert_eq!(socket(&by_flag, &[]).as_deref(), Some("/ctx"));
    }

    #[test]
    fn a_context_elsewhere_goes_through_the_client() {
        let folder = configuration("far", "far", "ssh://h");
        assert_eq!(socket(&[], &[("DOCKER_CONFIG", folder.path().to_str().unwrap())]), None);
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

    fn body(received: &[u8], at_end: bool) -> Option<Vec<u8>> {
        parse(received, at_end).unwrap().map(|response| response.body)
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
            read_answer(&Response { status, body: body.into() }, Path::new("/s")).ok()
        };
        assert_eq!(answer(404, r#"{"message":"No such image: a:b"}"#), Some(Answer::Missing));
        for (status, body) in [
            (404, r#"["No such image: a:b"]"#),
            (404, r#"{"message":["No such image: a:b"]}"#),
            (404, "No such image: a:b"),
            (404, r#"{"message":"page not found"}"#),
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
            let _ = parse(&bytes, true);
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            answer.extend(chunked);
            let _ = parse(&answer, true);
            let _ = mounts_in(&bytes);
            moment(&String::from_utf8_lossy(&bytes));
        }
    }
}
