//! One GET over the engine's local socket. Nothing else speaks HTTP to the engine.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::image::answer::{EngineProcess, excerpt};

/// Largest response that is read, in bytes. An image's JSON has some ten thousand.
const RESPONSE_MAX: usize = 16 << 20;
const TOO_LARGE: &str = "its answer is larger than 16 MiB";
/// Largest head of a response that is read, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// Most header fields that are read.
const HEADERS_MAX: usize = 100;

/// The response to a GET.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The body, without the framing of chunks.
    pub body: Vec<u8>,
}

impl Response {
    /// Returns whether the same request may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        self.status >= 500 || self.status == 429
    }
}

/// Sends one GET. `fields` are further header lines, each with its line end.
pub(crate) fn get(socket: &Path, path: &str, fields: &str, within: Duration) -> Result<Response> {
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

/// Returns the process that listens on `socket`.
///
/// The kernel records it with the socket (unix(7), SO_PEERCRED). In a PID namespace that does not
/// have the process, the number reads as 0.
pub(crate) fn listener(socket: &Path) -> Option<EngineProcess> {
    const WITHIN: Duration = Duration::from_secs(2);
    let stream = connect(socket, WITHIN).ok()?;
    // rustix has no type for the number 0.
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
    match u32::try_from(peer.ok()?.pid()).ok()? {
        0 => Some(EngineProcess::Elsewhere),
        pid => Some(EngineProcess::Visible(pid)),
    }
}

/// Connects within the time that an answer may take.
///
/// If nobody accepts and the queue is full, connect(2) waits as long as the socket's limit for
/// sending says.
fn connect(socket: &Path, within: Duration) -> Result<UnixStream> {
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
    // With a time limit, the kernel does not resume by itself after an interruption.
    rustix::io::retry_on_intr(|| rustix::net::connect(&stream, &address))?;
    Ok(stream.into())
}

/// A stream whose reads fail after the deadline.
struct Timely {
    stream: UnixStream,
    deadline: Instant,
}

impl Read for Timely {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(into)
    }
}

/// Reads one response from an engine.
///
/// # Errors
/// The response cannot be read, ends too early, is too large, or is not HTTP.
pub fn receive(source: &mut impl Read) -> Result<Response> {
    let mut received = Received::default();
    let mut piece = [0; 16 << 10];
    loop {
        let read = match source.read(&mut piece) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Some(response) = received.take(&piece[..read])? {
            return Ok(response);
        }
        if read == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "its answer ends too early"));
        }
        if received.bytes.len() > RESPONSE_MAX {
            return Err(invalid(TOO_LARGE));
        }
    }
}

fn invalid(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// What has been received so far of a response.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    head: Option<Head>,
    chunks: Chunks,
}

impl Received {
    /// Takes the next piece; an empty one is the end. Returns the response once it is complete.
    fn take(&mut self, piece: &[u8]) -> Result<Option<Response>> {
        self.bytes.extend_from_slice(piece);
        if self.head.is_none() {
            self.head = Head::parse(&self.bytes)?;
        }
        let Some(Head { status, framing, start }) = &self.head else { return Ok(None) };
        let body = &self.bytes[*start..];
        let body = match *framing {
            Framing::Length(length) => body.get(..length).map(<[u8]>::to_vec),
            Framing::ToTheEnd => piece.is_empty().then(|| body.to_vec()),
            Framing::Chunked => {
                self.chunks.take(body)?.then(|| std::mem::take(&mut self.chunks.body))
            }
        };
        Ok(body.map(|body| Response { status: *status, body }))
    }
}

/// The head of a response.
struct Head {
    status: u16,
    framing: Framing,
    /// Where the body begins.
    start: usize,
}

/// Where a body ends.
#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
    ToTheEnd,
}

impl Head {
    /// Parses a head. Returns `None` if some of it is still to come.
    fn parse(received: &[u8]) -> Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let start = match head.parse(received) {
            Ok(httparse::Status::Complete(start)) => start,
            Ok(httparse::Status::Partial) if received.len() > HEAD_MAX => {
                return Err(invalid("the head of its answer is larger than 64 KiB"));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(invalid(&format!("{error}: {}", excerpt(received)))),
        };
        let framing = Framing::of(head.headers)?;
        Ok(Some(Head { status: head.code.unwrap_or_default(), framing, start }))
    }
}

impl Framing {
    fn of(headers: &[httparse::Header<'_>]) -> Result<Self> {
        let field = |name: &str| {
            let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok().map(str::trim)
        };
        let is_chunked = field("transfer-encoding")
            .is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked"));
        match field("content-length") {
            _ if is_chunked => Ok(Framing::Chunked),
            Some(length) => {
                let length = length
                    .parse()
                    .map_err(|_| invalid("the Content-Length of its answer is not a number"))?;
                Ok(Framing::Length(length))
            }
            None => Ok(Framing::ToTheEnd),
        }
    }
}

/// A chunked body (RFC 9112, 7.1), put together as it arrives.
#[derive(Default)]
struct Chunks {
    body: Vec<u8>,
    /// How much of what was received is in `body` already.
    taken: usize,
}

impl Chunks {
    /// Takes the chunks that have arrived since. Returns whether the last one was among them.
    fn take(&mut self, received: &[u8]) -> Result<bool> {
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
            let end = end.filter(|&end| end <= RESPONSE_MAX).ok_or_else(|| invalid(TOO_LARGE))?;
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

    /// What an engine sends. Without an end the connection stays open and silent.
    struct Sent<'a>(&'a [u8], bool);

    impl Read for Sent<'_> {
        fn read(&mut self, into: &mut [u8]) -> Result<usize> {
            match self.0.read(into)? {
                0 if !self.1 => Err(ErrorKind::TimedOut.into()),
                read => Ok(read),
            }
        }
    }

    fn body(sent: &[u8], at_end: bool) -> Option<Vec<u8>> {
        receive(&mut Sent(sent, at_end)).ok().map(|response| response.body)
    }

    /// Returns the time that this thread has run. Unlike wall-clock time, it does not depend
    /// on what else the machine does.
    fn cpu_time() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(time).unwrap()
    }

    #[test]
    fn a_body_in_many_chunks_is_read_in_linear_time() {
        let took = |chunks: usize| {
            let mut sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for _ in 0..chunks {
                sent.extend_from_slice(b"40\r\n");
                sent.extend_from_slice(&[b'x'; 64]);
                sent.extend_from_slice(b"\r\n");
            }
            sent.extend_from_slice(b"0\r\n\r\n");
            let start = cpu_time();
            assert_eq!(body(&sent, true).unwrap().len(), 64 * chunks);
            cpu_time() - start
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
        }
    }
}
