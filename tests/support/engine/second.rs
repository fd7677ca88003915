//! A second Docker Engine, as another host has one: a dockerd with its own folders, socket and
//! network namespace. In ours, it would take the bridge from the first engine.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::{BOUND, send_signal};

/// How long dockerd may take to end by itself, with its containerd.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// The engine, until it is dropped.
pub struct SecondEngine {
    dockerd: Child,
    dir: TempDir,
}

impl SecondEngine {
    /// Starts one, and waits until it answers. Where that is impossible, says why.
    pub fn start() -> Result<Self, &'static str> {
        if !rustix::process::geteuid().is_root() {
            return Err("a second engine needs root");
        }
        for program in ["dockerd", "unshare", "ip"] {
            which::which(program).map_err(|_| "dockerd, unshare and ip make a second engine")?;
        }
        let dir = tempfile::Builder::new().prefix("buildlock-host-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let log = File::create(dir.path().join("log")).unwrap();
        // The configuration of the machine's engine must not apply.
        fs::write(dir.path().join("daemon.json"), "{}").unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh", "dockerd"]);
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        command.args([
            format!("--config-file={}", at("daemon.json")),
            format!("--data-root={}", at("data")),
            format!("--exec-root={}", at("exec")),
            format!("--pidfile={}", at("pid")),
            format!("--host=unix://{}", at("docker.sock")),
            "--storage-driver=vfs".to_owned(),
        ]);
        let dockerd = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut engine = Self { dockerd, dir };
        let start = Instant::now();
        while !engine.answers() {
            let ended = engine.dockerd.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < BOUND, "{}", engine.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(engine)
    }

    /// Returns its address for `DOCKER_HOST`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Returns a process in its network.
    pub fn pid(&self) -> u32 {
        self.dockerd.id()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = UnixStream::connect(self.socket()) else { return false };
        let asked = stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n");
        let mut answer = String::new();
        asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.ends_with("OK")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for SecondEngine {
    fn drop(&mut self) {
        send_signal(self.dockerd.id(), "TERM");
        let start = Instant::now();
        while self.dockerd.try_wait().is_ok_and(|ended| ended.is_none()) {
            if start.elapsed() > ENDS_WITHIN {
                let _ = self.dockerd.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        unmount_below(self.dir.path());
    }
}

/// Unmounts what an engine has left mounted, so that its folder can be removed.
fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(folder)) {
        let _ = Command::new("umount").args(["--lazy", point]).status();
    }
}
