//! An engine that answers what a test wants: a socket served by threads of the test.
// Each test file uses a part of it.
#![allow(dead_code, unreachable_pub)]

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::Fixture;

/// Answers the request of this number (from 0), given its head.
pub type Answer = dyn Fn(usize, &str, &mut UnixStream) + Send + Sync;

/// An engine on a socket, until it is dropped.
pub struct FakeEngine {
    socket: PathBuf,
    heads: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl FakeEngine {
    /// Listens on `socket`; each connection is for one request, as the head is read only once.
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

    /// As `DOCKER_HOST` has it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The heads of the requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// The first lines of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        let first_line = |head: String| head.lines().next().unwrap_or_default().to_owned();
        self.heads().into_iter().map(first_line).collect()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is over; a test may have shut the door.
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
    // Not by read(): among a thousand threads it is interrupted now and then.
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Writes, and minds no peer that has gone.
pub fn send(stream: &mut UnixStream, bytes: impl AsRef<[u8]>) {
    let _ = stream.write_all(bytes.as_ref());
}

/// Writes again and again until the peer has had enough; far longer than it may take.
pub fn send_endlessly(stream: &mut UnixStream, bytes: &[u8]) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) && stream.write_all(bytes).is_ok() {}
}

/// Says nothing until the peer has gone.
pub fn stay_silent(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|n| n == 1) {}
}

/// An answer with its length, as the engine gives it.
pub fn response(status: &str, content_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nApi-Version: 1.41\r\nContent-Type: {content_type}\r\n\
         Server: Docker/20.10.24 (linux)\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The same in chunks of that many bytes, as the engine gives longer answers.
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

/// What the engine says of an image that is there.
pub fn image(platform: &str) -> String {
    let (os, architecture) = platform.split_once('/').unwrap();
    format!(
        "{{\"Id\":\"sha256:{:064}\",\"RepoTags\":[\"env:abc\"],\"Parent\":\"\",\
         \"Config\":{{\"Env\":[\"A=\\\"No such image\\\"\"]}},\
         \"Architecture\":\"{architecture}\",\"Os\":\"{os}\",\"Size\":1}}\n",
        7
    )
}

/// The engine's answer for an image that is there.
pub fn found() -> String {
    response("200 OK", "application/json", &image("linux/amd64"))
}

/// The engine's answer for an image that is not.
pub fn missing(tag: &str) -> String {
    let body = format!("{{\"message\":\"No such image: {tag}\"}}\n");
    response("404 Not Found", "application/json", &body)
}

/// A fixture where `docker` is a binary, so that the look-up is buildlock's own.
pub fn fixture() -> Fixture {
    let f = Fixture::new();
    let docker = f.path("bin/docker");
    fs::remove_file(&docker).unwrap();
    // Any binary will do, so long as it never says that an image is there or is not. By a process
    // of its own: see `Fixture::write_executable`.
    let buildlock = assert_cmd::cargo::cargo_bin!("buildlock");
    let install = std::process::Command::new("install")
        .args(["-m", "755"])
        .args([buildlock, &docker])
        .status();
    assert!(install.unwrap().success());
    f
}

/// Where its engine is to listen.
pub fn socket(f: &Fixture) -> PathBuf {
    f.path("docker.sock")
}
