//! Registries for tests that push and look: distribution's own program on a port of this machine,
//! and one whose answers a test decides.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The program, as Debian names it.
const PROGRAM: &str = "docker-registry";
/// The header in which a registry gives its ID, to tell it from a later one on the same port.
const ID_HEADER: &str = "X-Test-Registry";
/// The users of a registry that has some: `htpasswd -Bbn alice s3cret`.
const USERS: &str = "alice:$2y$05$gFE58oblEP5wLCxN2nUFJuOKbpJRiirgRtodjzKIFKAg.Ln7uMP2q\n";
/// The name of that user.
pub const USER: &str = "alice";
/// The password of that user.
pub const PASSWORD: &str = "s3cret";
/// Both as docker's configuration has them: `printf alice:s3cret | base64`.
pub const AUTH: &str = "YWxpY2U6czNjcmV0";

/// An empty registry, until it is stopped or dropped.
pub struct Registry {
    child: Child,
    address: String,
    dir: TempDir,
}

impl Registry {
    /// Starts one that everybody may read and write. Returns none where the program is missing.
    pub fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// Starts one that only [`USER`] may read and write.
    pub fn start_with_users() -> Option<Self> {
        Self::start_with("auth:\n  htpasswd:\n    realm: test\n    path: USERS\n")
    }

    fn start_with(auth: &str) -> Option<Self> {
        which::which(PROGRAM).ok()?;
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("users");
        fs::write(&users, USERS).unwrap();
        let auth = auth.replace("USERS", users.to_str().unwrap());
        let id = dir.path().file_name().unwrap().to_str().unwrap();
        // Another process, such as another test's registry, may take the port first.
        for _ in 0..10 {
            let address = free_address();
            let config = dir.path().join("config.yml");
            let text = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: {address}\n  headers:\n    {ID_HEADER}: [{id}]\n{auth}",
                dir.path().join("data").display()
            );
            fs::write(&config, text).unwrap();
            let mut command = Command::new(PROGRAM);
            command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
            let mut child = command.stderr(Stdio::null()).spawn().unwrap();
            if answers(&address, id, &mut child) {
                return Some(Self { child, address, dir });
            }
        }
        panic!("{PROGRAM} does not start");
    }

    /// Returns its address, as an image's name begins.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Serves the same registry at the same address of another network, that of the process `pid`.
    pub fn also_in_network_of(&self, pid: u32) -> Front {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{pid}/ns/net")).args([PROGRAM, "serve"]);
        command.arg(self.dir.path().join("config.yml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Front(command.spawn().unwrap())
    }

    /// Does it have this image? It is asked itself.
    pub fn has(&self, tag: &str) -> bool {
        let name = tag.strip_prefix(&self.address).unwrap().trim_start_matches('/');
        let (repository, tag) = name.rsplit_once(':').unwrap();
        let kinds = [
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
        ];
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!(
            "GET /v2/{repository}/manifests/{tag} HTTP/1.0\r\nHost: {}\r\nAccept: {}\r\n\
             Authorization: Basic {AUTH}\r\n\r\n",
            self.address,
            kinds.join(", ")
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        match answer.split(' ').nth(1) {
            Some("200") => true,
            Some("404") => false,
            _ => panic!("{answer}"),
        }
    }

    /// Stops it: its port is closed afterwards.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A registry's program in front of another one's storage, until it is dropped.
pub struct Front(Child);

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Waits until the registry with this ID answers. Returns false if `child` ends before.
fn answers(address: &str, id: &str, child: &mut Child) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if greeting(address).is_ok_and(|greeting| greeting.contains(id)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

fn greeting(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What an odd registry says of every manifest.
pub enum Says {
    /// HTTP status, type and body.
    This(&'static str, &'static str, String),
    /// Nothing, for ever, not even that it is a registry.
    Nothing,
}

/// A registry whose answers a test decides, until it is dropped.
pub struct OddRegistry {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl OddRegistry {
    /// Starts one that answers every question about a manifest with this.
    pub fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (heard, end, says) = (Arc::clone(&requests), Arc::clone(&over), Arc::new(says));
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (says, heard, end) = (Arc::clone(&says), Arc::clone(&heard), Arc::clone(&end));
                let mut stream = stream.unwrap();
                std::thread::spawn(move || answer(&mut stream, &says, &heard, &end));
            }
        });
        Self { address, requests, over, listening: Some(listening) }
    }

    /// Returns its address, as an image's name begins.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Returns how many requests it has had.
    pub fn asked(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// Returns the first line of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for OddRegistry {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if TcpStream::connect(self.address).is_ok()
            && let Some(listening) = self.listening.take()
        {
            let _ = listening.join();
        }
    }
}

fn answer(stream: &mut TcpStream, says: &Says, heard: &Mutex<Vec<String>>, end: &AtomicBool) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
        head.push(byte[0]);
        // How TLS begins (RFC 8446, 5.1), which engines try first.
        if head == [0x16] && !matches!(says, Says::Nothing) {
            return;
        }
    }
    let first_line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    heard.lock().unwrap().push(first_line);
    let (status, kind, body) = match says {
        Says::Nothing => {
            // Until the client has had enough.
            while stream.read(&mut byte).map_or(!end.load(Ordering::SeqCst), |n| n == 1) {}
            return;
        }
        Says::This(..) if head.starts_with(b"GET /v2/ ") => ("200 OK", "application/json", "{}"),
        Says::This(status, kind, body) => (*status, *kind, body.as_str()),
    };
    let sent = if head.starts_with(b"HEAD ") { "" } else { body };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n{sent}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes());
}
