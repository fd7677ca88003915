//! Which clients, builders and engines a test runs with.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::base_image::static_busybox;
use super::client::Client;
use super::debian13::{self, Store};
use super::site::Site;

/// With this in the environment, a test that would be skipped fails instead.
const REQUIRE: &str = "BUILDLOCK_REQUIRE_ENGINE";

/// With `all` in it, tests run with each client and each engine that there is.
const ENGINES: &str = "BUILDLOCK_TEST_ENGINES";

/// How many clients run at once. With more, and several tests at once, none of them gets its time.
const AT_ONCE: usize = 5;

/// Runs a test with each client and builder that works, side by side.
///
/// Where there is none, it says so in one line, or fails if `BUILDLOCK_REQUIRE_ENGINE` is set.
pub fn for_each_builder(test: impl Fn(&Site) + Sync) {
    if let Some(clients) = clients() {
        with_all(clients, test);
    }
}

/// Runs a test with each client, for what has nothing to do with the builder.
pub fn for_each_client(test: impl Fn(&Site) + Sync) {
    if let Some(clients) = clients() {
        let mut one_each = clients.to_vec();
        one_each.dedup_by(|a, b| {
            (&a.program, a.engine, a.is_inside) == (&b.program, b.engine, b.is_inside)
        });
        with_all(&one_each, test);
    }
}

/// Runs a test with the first client, for what has nothing to do with the client either.
pub fn for_one_client(test: impl Fn(&Site) + Sync) {
    if let Some(clients) = clients() {
        with_all(&clients[..1], test);
    }
}

fn with_all(clients: &[Client], test: impl Fn(&Site) + Sync) {
    clients.chunks(AT_ONCE).for_each(|clients| with_some(clients, &test));
}

fn with_some(clients: &[Client], test: impl Fn(&Site) + Sync) {
    std::thread::scope(|scope| {
        let runs = clients.iter().map(|client| {
            let test = &test;
            std::thread::Builder::new()
                .name(client.to_string())
                .spawn_scoped(scope, move || test(&Site::new(client)))
                .unwrap()
        });
        let runs: Vec<_> = runs.collect();
        let failed = runs.into_iter().filter_map(|run| {
            let name = run.thread().name().unwrap_or_default().to_owned();
            run.join().err().map(|_| name)
        });
        let failed: Vec<_> = failed.collect();
        assert!(failed.is_empty(), "failed with {failed:?}; see above");
    });
}

/// Runs a test with one client and builder.
pub fn with_a_client(test: impl Fn(&Site)) {
    if let Some(clients) = clients() {
        test(&Site::new(&clients[0]));
    }
}

/// Says in one line, past the test runner's capture, that something cannot be tested here.
///
/// # Panics
/// If `BUILDLOCK_REQUIRE_ENGINE` is set, whoever runs the tests.
#[track_caller]
pub fn skip(reason: &str) {
    assert!(std::env::var_os(REQUIRE).is_none(), "{reason}, but {REQUIRE} is set");
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Returns a site with the first client in PATH that has this builder.
///
/// Where there is none, it says so in one line, or fails if `BUILDLOCK_REQUIRE_ENGINE` is set.
#[track_caller]
pub fn site(buildkit: bool) -> Option<Site> {
    let client = clients()?.iter().find(|client| client.buildkit == buildkit);
    if client.is_none() {
        skip(if buildkit { "no client builds with BuildKit" } else { "only BuildKit works here" });
    }
    client.map(Site::new)
}

/// Returns a site with a client of the machine's own engine that has this builder.
#[track_caller]
pub fn site_of_this_machine(buildkit: bool) -> Option<Site> {
    let mut clients = clients()?.iter().filter(|client| client.engine.is_none());
    let client = clients.find(|client| client.buildkit == buildkit);
    if client.is_none() {
        let builder = if buildkit { "with BuildKit" } else { "without BuildKit" };
        skip(&format!("no client builds {builder} on this machine's engine"));
    }
    client.map(Site::new)
}

/// Runs a test with Debian 13's own client and BuildKit, on its engine with each store, side by
/// side.
///
/// Where there is none, it says so in one line, or fails if `BUILDLOCK_REQUIRE_ENGINE` is set.
#[track_caller]
pub fn for_each_store(test: impl Fn(&Site) + Sync) {
    if static_busybox().is_none() {
        return skip("no static busybox to make a base image from");
    }
    let mut clients = Vec::new();
    for store in [Store::Classic, Store::Containerd] {
        match debian13::engine(store) {
            Ok(engine) => clients.push(Client { buildkit: true, ..Client::inside(engine) }),
            Err(reason) => return skip(&reason),
        }
    }
    with_all(&clients, test);
}

/// Returns the clients that work; where there is none, says why.
fn clients() -> Option<&'static [Client]> {
    static CLIENTS: OnceLock<Result<Vec<Client>, &str>> = OnceLock::new();
    let found = CLIENTS.get_or_init(|| {
        let programs = docker_programs();
        let answering = |program: &PathBuf| {
            let client = Client::new(program, None);
            client.docker(["version", "--format", "{{.Server.Version}}"]).status.success()
        };
        let programs: Vec<_> = programs.into_iter().filter(answering).collect();
        if programs.is_empty() {
            return Err("no engine answers");
        }
        if static_busybox().is_none() {
            return Err("no static busybox to make a base image from");
        }
        let mut all: Vec<_> = programs.iter().map(|program| Client::new(program, None)).collect();
        all.extend(with_debian13(&programs));
        let all: Vec<_> = all
            .into_iter()
            .flat_map(|client| [false, true].map(|buildkit| Client { buildkit, ..client.clone() }))
            .collect();
        let works: Vec<_> = std::thread::scope(|scope| {
            let probes = all.iter().map(|client| scope.spawn(|| can_build(client)));
            let probes: Vec<_> = probes.collect();
            probes.into_iter().map(|probe| probe.join().unwrap()).collect()
        });
        let working =
            all.into_iter().zip(works).filter_map(|(client, works)| works.then_some(client));
        let working: Vec<_> = working.collect();
        if working.is_empty() { Err("no engine answers with a build") } else { Ok(working) }
    });
    match found {
        Ok(clients) => Some(clients),
        Err(reason) => {
            skip(reason);
            None
        }
    }
}

/// Returns clients of Debian 13's engines: its own and, where all are wanted, the machine's.
///
/// Otherwise one stands for all: its own client, and the engine with containerd's store.
fn with_debian13(programs: &[PathBuf]) -> Vec<Client> {
    let are_all_wanted = std::env::var_os(ENGINES).is_some_and(|engines| engines == "all");
    let stores: &[_] =
        if are_all_wanted { &[Store::Containerd, Store::Classic] } else { &[Store::Containerd] };
    let mut clients = Vec::new();
    for store in stores {
        match debian13::engine(*store) {
            Ok(engine) => {
                clients.push(Client::inside(engine));
                if are_all_wanted {
                    clients.extend(programs.iter().map(|it| Client::new(it, Some(engine))));
                }
            }
            Err(reason) => skip(&reason),
        }
    }
    clients
}

/// Returns every docker client in PATH. Scripts do not count: they are wrappers, or podman.
fn docker_programs() -> Vec<PathBuf> {
    let mut real = Vec::new();
    let mut found = Vec::new();
    for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        let program = folder.join("docker");
        let Ok(target) = fs::canonicalize(&program) else { continue };
        if is_elf(&target) && !target.ends_with("podman") && !real.contains(&target) {
            real.push(target);
            found.push(program);
        }
    }
    found
}

pub(super) fn is_elf(file: &Path) -> bool {
    let mut start = [0; 4];
    fs::File::open(file).is_ok_and(|mut file| file.read_exact(&mut start).is_ok())
        && start == *b"\x7fELF"
}

/// Can this client build? A build that works shows more than any version number.
fn can_build(client: &Client) -> bool {
    let site = Site::new(client);
    let tag = site.tag("probe");
    let recipe = site.recipe("true");
    let words = site.build_words(&tag, &recipe);
    client.docker(&words[1..]).status.success() && site.image_id(&tag).is_some()
}
