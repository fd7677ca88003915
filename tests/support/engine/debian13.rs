//! The Docker Engine of Debian 13, with either of its image stores, beside the machine's own.
//!
//! It runs in a root folder and in namespaces of its own; see `debian-13` beside this file.
//! Debian 13 shares the folder for temporary files and the checkout with the machine, so that paths
//! and sockets are the same on both sides. An engine starts with the first test that asks for it,
//! and ends with the tests' process, however that ends.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::net::Shutdown as Direction;
use rustix::thread::LinkNameSpaceType;

use super::super::BOUND;

/// Where the engine keeps its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Docker's own, one platform an image.
    Classic,
    /// containerd's, the default of new installations since Docker 29.
    Containerd,
}

/// An engine that runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Engine {
    pub store: Store,
    dir: PathBuf,
    pid: u32,
}

/// Returns the engine with this store, one for all tests of this process, or why it cannot run.
pub fn engine(store: Store) -> Result<&'static Engine, String> {
    static ENGINES: [OnceLock<Result<Engine, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    ENGINES[store as usize].get_or_init(|| Engine::start(store)).as_ref().map_err(Clone::clone)
}

/// Returns the machine's folders that Debian 13 sees too: temporary files, the checkout, the
/// programs under test.
fn shared_folders() -> [PathBuf; 3] {
    let buildlock = assert_cmd::cargo::cargo_bin!("buildlock").parent().unwrap().to_owned();
    let all = [std::env::temp_dir(), env!("CARGO_MANIFEST_DIR").into(), buildlock];
    all.map(|folder| fs::canonicalize(&folder).unwrap_or(folder))
}

/// Prepares `debian-13 VERB`.
fn script(verb: &str) -> Command {
    let mut script =
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/engine/debian-13"));
    script.arg(verb);
    script
}

/// Returns words that run what follows them in Debian 13, in this folder, without an engine.
pub fn words_in_front(work_dir: &Path) -> Result<Vec<OsString>, String> {
    let mut enter = script("enter");
    enter.args(shared_folders()).args(["--", "env", "--chdir"]).arg(work_dir);
    let words = std::iter::once(enter.get_program()).chain(enter.get_args());
    let words = words.map(OsString::from).collect();
    let done = enter.arg("true").output().map_err(|error| error.to_string())?;
    match done.status.success() {
        true => Ok(words),
        false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
    }
}

impl Engine {
    fn start(store: Store) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("buildlock-debian-13-").tempdir().unwrap().keep();
        let at = |name: &str| dir.join(name).display().to_string();
        let configuration = serde_json::json!({
            "features": { "containerd-snapshotter": store == Store::Containerd },
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "data-root": at("data"),
            "exec-root": at("exec"),
            "pidfile": at("pid"),
            "hosts": [format!("unix://{}", at("docker.sock"))],
        });
        fs::write(at("daemon.json"), configuration.to_string()).unwrap();
        let mut script = script("dockerd");
        // It ends when its stdin is closed, which happens at the end of this process.
        script.arg(&dir).args(shared_folders()).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut script = script.spawn().map_err(|error| error.to_string())?;
        let start = Instant::now();
        while UnixStream::connect(at("docker.sock")).is_err() {
            if script.try_wait().unwrap().is_some() {
                fs::remove_dir_all(&dir).unwrap();
                let output = script.wait_with_output().unwrap();
                return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
            }
            let log = || fs::read_to_string(at("log")).unwrap_or_default();
            assert!(start.elapsed() < BOUND, "Debian 13's dockerd does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let pid = fs::read_to_string(at("pid")).unwrap().trim().parse().unwrap();
        std::mem::forget(script.stdin.take());
        Ok(Self { store, dir, pid })
    }

    /// Returns its address for `DOCKER_HOST`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.dir.join("docker.sock").display())
    }

    /// Returns words that run what follows them beside the engine, with the same working folder.
    pub fn words_in_front(&self) -> Vec<OsString> {
        let enter = format!(
            "exec nsenter --mount=/proc/{0}/ns/mnt --net=/proc/{0}/ns/net --wdns=\"$PWD\" -- \"$@\"",
            self.pid
        );
        ["sh".to_owned(), "-c".to_owned(), enter, "enter".to_owned()].map(OsString::from).to_vec()
    }

    /// Makes a server of the machine reachable at the same address in the engine's network.
    pub fn reaches(&self, address: &str) -> Bridge {
        let (network, there) = (format!("/proc/{}/ns/net", self.pid), address.to_owned());
        // A socket stays in the network in which its thread made it.
        let in_network = move || {
            let network = File::open(network)?;
            let kind = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(network.as_fd(), kind)?;
            TcpListener::bind(there)
        };
        let listener: io::Result<TcpListener> = std::thread::spawn(in_network).join().unwrap();
        let listener = listener.unwrap();
        let (accepts, server) = (listener.try_clone().unwrap(), address.to_owned());
        std::thread::spawn(move || {
            for client in accepts.incoming().map_while(Result::ok) {
                // Without a server, the client's connection ends.
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || pass_on(client, server));
                std::thread::spawn(move || pass_on(back.0, back.1));
            }
        });
        Bridge(listener)
    }
}

/// A server's address in another network, until it is dropped.
pub struct Bridge(TcpListener);

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.0, Direction::Both);
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
