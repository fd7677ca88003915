//! An engine whose answers a test decides: a socket served by threads of the test.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fixture::Fixture;
use super::program::buildlock_path;

/// Answers a request, given its number (from 0) and its head.
pub type Answer = dyn Fn(usize, &str, &mut UnixStream) + Send + Sync;

/// An engine on a socket, until it is dropped.
pub struct FakeEngine {
    socket: PathBuf,
    heads: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl FakeEngine {
    /// Listens on `socket`. Each connection is for one request.
    pub fn start(
        socket: &Path,
        answer: impl Fn(usize, &str, &mut UnixStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let answer: Arc<Answer> = Arc::new(answer);
        let (notes, end) = (Arc::clone(&heads), Arc::clone(&over));
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, notes) = (Arc::clone(&answer), Arc::clone(&notes));
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let head = read_head(&mut stream);
                    let number = {
                        let mut notes = notes.lock().unwrap();
                        notes.push(head.clone());
                        notes.len() - 1
                    };
                    answer(number, &head, &mut stream);
                });
            }
        });
        Self { socket: socket.to_owned(), heads, over, listening: Some(listening) }
    }

    /// Returns its address for `DOCKER_HOST`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Returns the heads of the requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Returns the first lines of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        let first_line = |head: String| head.lines().next().unwrap_or_default().to_owned();
        self.heads().into_iter().map(first_line).collect()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is over. A test may have closed the socket.
        let _ = fs::set_permissions(&self.socket, Permissions::from_mode(0o600));
        let woken = UnixStream::connect(&self.socket).is_ok();
        if woken && let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

fn read_head(stream: &mut UnixStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    // read() may be interrupted; read_exact goes on.
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Writes; a peer that has gone does not matter.
pub fn send(stream: &mut UnixStream, bytes: impl AsRef<[u8]>) {
    let _ = stream.write_all(bytes.as_ref());
}

/// Writes again and again until the peer has gone, or for far longer than that may take.
pub fn send_endlessly(stream: &mut UnixStream, bytes: &[u8]) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) && stream.write_all(bytes).is_ok() {}
}

/// Stays silent until the peer has gone.
pub fn stay_silent(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|n| n == 1) {}
}

/// Returns an answer with its length, as the engine gives it.
pub fn response(status: &str, content_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nApi-Version: 1.41\r\nContent-Type: {content_type}\r\n\
         Server: Docker/20.10.24 (linux)\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns an answer in chunks of that many bytes, as the engine gives longer ones.
pub fn chunked_response(status: &str, body: &str, size: usize) -> String {
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    for chunk in body.as_bytes().chunks(size) {
        let chunk = std::str::from_utf8(chunk).unwrap();
        text += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
    }
    text + "0\r\n\r\n"
}

/// Returns what the engine says of an image that is present.
pub fn image(platform: &str) -> String {
    let (os, architecture) = platform.split_once('/').unwrap();
    format!(
        "{{\"Id\":\"sha256:{:064}\",\"RepoTags\":[\"env:abc\"],\"Parent\":\"\",\
         \"Config\":{{\"Env\":[\"A=\\\"No such image\\\"\"]}},\
         \"Architecture\":\"{architecture}\",\"Os\":\"{os}\",\"Size\":1}}\n",
        7
    )
}

/// Returns the engine's answer for an image that is present.
pub fn found() -> String {
    response("200 OK", "application/json", &image("linux/amd64"))
}

/// Returns the engine's answer for an image that is missing.
pub fn missing(tag: &str) -> String {
    let body = format!("{{\"message\":\"No such image: {tag}\"}}\n");
    response("404 Not Found", "application/json", &body)
}

/// Makes a fixture where `docker` is a binary, so that buildlock itself asks the engine.
pub fn fixture() -> Fixture {
    let f = Fixture::new();
    fs::remove_file(f.path("bin/docker")).unwrap();
    // Any binary will do, so long as it never says that an image is present or missing.
    f.install(&buildlock_path(), "bin/docker");
    f
}

/// Returns where its engine must listen.
pub fn socket(f: &Fixture) -> PathBuf {
    f.path("docker.sock")
}
