//! Clusters of real etcd members on this machine, which tests can kill, pause and cut off.
//!
//! Members are child processes of the test and end with the [`Cluster`]. Their data is in a
//! temporary folder. Needs `etcd` and `etcdctl`, 3.4 or later.
#![allow(dead_code, unreachable_pub)]

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::network::{Network, enter};
use crate::support::{BOUND, has, send_signal, state};

/// How to set up a cluster.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// The number of members.
    pub members: usize,
    /// Whether clients and members authenticate each other with certificates.
    pub secure: bool,
    /// More flags for etcd.
    pub flags: &'a [&'a str],
    /// Gives each member a network of its own. Otherwise, all use the loopback.
    pub network: Option<&'a Network>,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Plan { members: 3, secure: false, flags: &[], network: None }
    }
}

/// A cluster, until it is dropped.
pub struct Cluster {
    members: Vec<Member>,
    secure: bool,
    /// The user and password for `etcdctl`, once there are users.
    login: Mutex<Option<String>>,
    prefixes: AtomicUsize,
    /// The network namespace that reaches all members, if that is not ours.
    namespace: Option<String>,
    // Dropped last, since members write there until they have ended.
    dir: TempDir,
}

struct Member {
    /// `HOST:PORT` for clients.
    client: String,
    words: Vec<String>,
    log: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Cluster {
    /// Starts a cluster, and waits until it answers. If etcd is not installed, says so and returns
    /// none.
    #[track_caller]
    pub fn start(plan: Plan<'_>) -> Option<Self> {
        if ["etcd", "etcdctl", "openssl"].into_iter().any(|program| !has(program)) {
            return None;
        }
        // Another process may take a port before etcd starts.
        (0..3).find_map(|_| Self::try_start(plan)).or_else(|| panic!("etcd does not start"))
    }

    fn try_start(plan: Plan<'_>) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("buildlock-etcd-").tempdir().unwrap();
        if plan.secure {
            make_certificates(dir.path());
        }
        let scheme = if plan.secure { "https" } else { "http" };
        let hosts: Vec<String> = match plan.network {
            Some(network) => network.ends.iter().map(|end| end.address.clone()).collect(),
            None => vec!["127.0.0.1".to_owned(); plan.members],
        };
        let ports: Vec<u16> = match plan.network {
            Some(_) => [2379, 2380].repeat(plan.members),
            None => free_ports(2 * plan.members),
        };
        let ports = ports.chunks(2).map(|two| (two[0], two[1]));
        let places: Vec<_> = hosts.iter().zip(ports).take(plan.members).collect();
        let all: Vec<String> = places
            .iter()
            .enumerate()
            .map(|(n, (host, (_, peer)))| format!("m{n}=http://{host}:{peer}"))
            .collect();
        let members = places.iter().enumerate().map(|(n, (host, (client, peer)))| {
            let client = format!("{host}:{client}");
            let (clients, peers) =
                (format!("{scheme}://{client}"), format!("http://{host}:{peer}"));
            let mut words: Vec<String> = match plan.network {
                Some(network) => enter(&network.ends[n].namespace),
                None => Vec::new(),
            };
            let flags = [
                ("name", format!("m{n}")),
                ("data-dir", dir.path().join(format!("m{n}")).display().to_string()),
                ("listen-client-urls", clients.clone()),
                ("advertise-client-urls", clients),
                ("listen-peer-urls", peers.clone()),
                ("initial-advertise-peer-urls", peers),
                ("initial-cluster", all.join(",")),
                ("initial-cluster-token", dir.path().display().to_string()),
                // Hash passwords quickly.
                ("bcrypt-cost", "4".to_owned()),
            ];
            words.push("etcd".to_owned());
            words.extend(flags.map(|(name, value)| format!("--{name}={value}")));
            words.extend(plan.flags.iter().map(|flag| (*flag).to_owned()));
            if plan.secure {
                let file = |name: &str| dir.path().join(name).display().to_string();
                words.extend([
                    format!("--cert-file={}", file("server.pem")),
                    format!("--key-file={}", file("server.key")),
                    format!("--trusted-ca-file={}", file("ca.pem")),
                    "--client-cert-auth".to_owned(),
                ]);
            }
            let log = dir.path().join(format!("m{n}.log"));
            Member { client, words, log, process: Mutex::default() }
        });
        let cluster = Cluster {
            members: members.collect(),
            secure: plan.secure,
            login: Mutex::default(),
            prefixes: AtomicUsize::new(0),
            namespace: plan.network.map(|network| network.hub.clone()),
            dir,
        };
        cluster.members.iter().for_each(Member::start);
        let start = Instant::now();
        while !cluster.is_healthy() {
            if cluster.members.iter().any(Member::has_ended) {
                return None;
            }
            assert!(start.elapsed() < BOUND, "etcd is not ready\n{}", cluster.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(cluster)
    }

    /// Returns an address with all members and this time to live, and its prefix, which no other
    /// test uses.
    pub fn store(&self, ttl: &str) -> (String, String) {
        let n = self.prefixes.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("test/{n}");
        (self.store_at(&(0..self.members.len()).collect::<Vec<_>>(), &prefix, ttl), prefix)
    }

    /// Returns an address with these members, in this order, and this prefix.
    pub fn store_at(&self, members: &[usize], prefix: &str, ttl: &str) -> String {
        let scheme = if self.secure { "etcds" } else { "etcd" };
        let members: Vec<_> = members.iter().map(|&n| self.members[n].client.as_str()).collect();
        format!("{scheme}://{}/{prefix}?ttl={ttl}", members.join(","))
    }

    /// Returns the path of `ca.pem`, `client.pem`, `client.key` or `other-ca.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    // Members.

    /// Returns the leader.
    pub fn leader(&self) -> usize {
        let mut leader = None;
        self.wait_for("a leader", || {
            leader = (0..self.members.len()).find(|&n| {
                let Some(status) = self.status(n) else { return false };
                status["leader"] == status["header"]["member_id"] && status["leader"] != Value::Null
            });
            leader.is_some()
        });
        leader.unwrap()
    }

    /// Waits until another member leads.
    pub fn wait_for_other_leader(&self, old: usize) {
        self.wait_for("another leader", || {
            (0..self.members.len()).filter(|&n| n != old).any(|n| {
                let Some(status) = self.status(n) else { return false };
                status["leader"] == status["header"]["member_id"] && status["leader"] != Value::Null
            })
        });
    }

    fn status(&self, n: usize) -> Option<Value> {
        if self.members[n].is_stopped() {
            return None;
        }
        let endpoint = format!("--endpoints={}", self.members[n].client);
        let words = [&endpoint, "--command-timeout=1s", "endpoint", "status", "--write-out=json"];
        let text = self.try_etcdctl(&words).ok()?;
        let status: Value = serde_json::from_str(&text).ok()?;
        Some(status[0]["Status"].clone())
    }

    /// Kills a member, but keeps its data.
    pub fn kill(&self, n: usize) {
        self.members[n].kill();
    }

    /// Restarts a member that was killed.
    pub fn restart(&self, n: usize) {
        self.members[n].start();
    }

    /// Stops a member, which keeps its connections.
    pub fn pause(&self, n: usize) {
        send_signal(self.members[n].pid(), "STOP");
    }

    /// Continues a member that was paused.
    pub fn resume(&self, n: usize) {
        send_signal(self.members[n].pid(), "CONT");
    }

    /// Returns the numbers of all members.
    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.members.len()
    }

    /// Waits until every member answers.
    pub fn wait_until_healthy(&self) {
        self.wait_for("all members", || self.is_healthy());
    }

    fn is_healthy(&self) -> bool {
        let endpoints: Vec<_> = self.members.iter().map(|it| it.client.as_str()).collect();
        let endpoints = format!("--endpoints={}", endpoints.join(","));
        self.try_etcdctl(&[&endpoints, "--command-timeout=2s", "endpoint", "health"]).is_ok()
    }

    fn wait_for(&self, what: &str, mut happened: impl FnMut() -> bool) {
        let start = Instant::now();
        while !happened() {
            assert!(start.elapsed() < BOUND, "no sight of {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    // Content.

    /// Uses up the quota, so that nothing more can be written.
    pub fn fill(&self) {
        let value = "x".repeat(20_000);
        self.wait_for("the end of its room", || {
            let key = format!("/full/{}", self.prefixes.fetch_add(1, Ordering::Relaxed));
            let put = self.try_etcdctl(&["put", &key, &value]);
            put.is_err_and(|said| said.contains("space exceeded"))
        });
    }

    /// Runs `etcdctl WORDS`, and returns what it prints.
    #[track_caller]
    pub fn etcdctl(&self, words: &[&str]) -> String {
        self.try_etcdctl(words).unwrap_or_else(|said| panic!("etcdctl {words:?}: {said}"))
    }

    /// Runs `etcdctl WORDS`, which may fail.
    pub fn try_etcdctl(&self, words: &[&str]) -> Result<String, String> {
        let mut all = match &self.namespace {
            Some(namespace) => enter(namespace),
            None => Vec::new(),
        };
        all.push("etcdctl".to_owned());
        if !words.iter().any(|word| word.starts_with("--endpoints")) {
            let endpoints: Vec<_> = self.members.iter().map(|it| it.client.as_str()).collect();
            all.push(format!("--endpoints={}", endpoints.join(",")));
        }
        if self.secure {
            for (flag, name) in
                [("cacert", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")]
            {
                all.push(format!("--{flag}={}", self.file(name).display()));
            }
        }
        if let Some(login) = &*lock(&self.login) {
            all.push(format!("--user={login}"));
        }
        let done = Command::new(&all[0])
            .args(&all[1..])
            .args(words)
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        if done.status.success() {
            return Ok(said);
        }
        Err(said + &String::from_utf8_lossy(&done.stderr))
    }

    /// Adds a user, and requires authentication from now on. `etcdctl` becomes root.
    pub fn enable_users(&self, user: &str, password: &str) {
        self.etcdctl(&["user", "add", "root:of-the-root"]);
        self.etcdctl(&["user", "grant-role", "root", "root"]);
        self.etcdctl(&["user", "add", &format!("{user}:{password}")]);
        self.etcdctl(&["role", "add", "locks"]);
        self.etcdctl(&[
            "role",
            "grant-permission",
            "--prefix=true",
            "locks",
            "readwrite",
            "/test/",
        ]);
        self.etcdctl(&["user", "grant-role", user, "locks"]);
        self.etcdctl(&["auth", "enable"]);
        *lock(&self.login) = Some("root:of-the-root".to_owned());
    }

    /// Returns the keys below a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let prefix = format!("/{prefix}/");
        let text = self.etcdctl(&["get", "--prefix", "--keys-only", &prefix]);
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Returns all leases, as hexadecimal numbers.
    pub fn leases(&self) -> Vec<String> {
        let text = self.etcdctl(&["lease", "list"]);
        text.lines().skip(1).map(|line| line.trim().to_owned()).collect()
    }

    /// Returns the revision at which a key was created.
    pub fn created(&self, key: &str) -> i64 {
        let text = self.etcdctl(&["get", key, "--write-out=json"]);
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["kvs"][0]["create_revision"].as_i64().unwrap_or_else(|| panic!("{key}: {answer}"))
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for member in &self.members {
            let log = fs::read(&member.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let last: Vec<&str> = log.lines().rev().take(10).collect();
            text.push_str(&format!("--- {:?}\n", member.log));
            last.iter().rev().for_each(|line| text.push_str(&format!("{line}\n")));
        }
        text
    }
}

impl Member {
    fn start(&self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(&self.words[0]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        command.args(&self.words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        *lock(&self.process) = Some(command.spawn().unwrap());
    }

    fn pid(&self) -> u32 {
        lock(&self.process).as_ref().expect("it was not killed").id()
    }

    fn has_ended(&self) -> bool {
        lock(&self.process).as_mut().is_none_or(|it| it.try_wait().unwrap().is_some())
    }

    /// Is the member killed or paused?
    fn is_stopped(&self) -> bool {
        self.has_ended() || state(self.pid()) == 'T'
    }

    fn kill(&self) {
        if let Some(mut process) = lock(&self.process).take() {
            _ = process.kill();
            _ = process.wait();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.iter().for_each(Member::kill);
    }
}

fn free_ports(n: usize) -> Vec<u16> {
    // Hold all of them at once, so that they differ.
    let held: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// Creates an authority with certificates for the server and a client, and another authority.
fn make_certificates(folder: &Path) {
    // etcd's gateway is itself a client of etcd, and uses the server's certificate.
    let extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
    fs::write(folder.join("extensions"), extensions).unwrap();
    let openssl = |words: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(words.split(' ')).current_dir(folder).stdin(Stdio::null());
        let done = openssl.output().unwrap();
        assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for authority in ["ca", "other-ca"] {
        openssl(&format!(
            "req -x509 {key} -keyout {authority}.key -out {authority}.pem -subj /CN={authority} -days 2"
        ));
    }
    for name in ["server", "client"] {
        openssl(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile extensions -out {name}.pem"
        ));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
