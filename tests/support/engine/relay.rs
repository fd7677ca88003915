//! A socket that passes everything on to the engine's, and notes the requests.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A relay. Its threads end with the process, or when both peers have gone.
pub struct Relay {
    socket: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    /// Listens on `socket`.
    pub fn start(socket: &Path, engine: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (engine, notes) = (engine.to_owned(), Arc::clone(&requests));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = UnixStream::connect(&engine) else { return };
                let notes = Arc::clone(&notes);
                std::thread::spawn(move || relay(client, server, &notes));
            }
        });
        Self { socket: socket.to_owned(), requests }
    }

    /// Returns its address for `DOCKER_HOST`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Returns the first line of each connection so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn relay(client: UnixStream, server: UnixStream, notes: &Mutex<Vec<String>>) {
    let (answers, questions) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let back = std::thread::spawn(move || copy(answers, client, |_| ()));
    let mut start = Some(Vec::new());
    copy(questions, server, |bytes| {
        let Some(seen) = &mut start else { return };
        seen.extend_from_slice(bytes);
        if let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") {
            notes.lock().unwrap().push(String::from_utf8_lossy(&seen[..end]).into_owned());
            start = None;
        }
    });
    let _ = back.join();
}

// `note` comes before the bytes go on, so that every request with an answer has been noted.
fn copy(mut from: UnixStream, mut to: UnixStream, mut note: impl FnMut(&[u8])) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        note(&buffer[..n]);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    // Only this direction ends. The other may go on, as in the answer to an upload.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
