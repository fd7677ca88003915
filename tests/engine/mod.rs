//! Docker as it is on this machine, for the tests that build for real.
//!
//! [`for_each_builder`] runs a test once with every client in PATH and every builder of it that can
//! be shown to work, each time on a [`Site`] of its own: a [`Fixture`] (folder, lock folder,
//! processes) plus names for images that nobody else has, all of them removed afterwards.
#![allow(dead_code, unreachable_pub)]

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::common::{Finished, Fixture, Invocation, is_alive, send_signal};
use debian13::{Bridge, Engine, Store};

pub mod debian13;

/// With this in the environment, a test that would be skipped fails instead.
const REQUIRE: &str = "BUILDLOCK_REQUIRE_ENGINE";

/// With `all` in it, tests run with each client and each engine that there is.
const ENGINES: &str = "BUILDLOCK_TEST_ENGINES";

/// More clients than these at once, in several tests at once, leave none of them its time.
const AT_ONCE: usize = 5;

/// A docker client together with one of its builders, and the engine that it talks to.
#[derive(Clone, Debug)]
pub struct Client {
    program: PathBuf,
    /// BuildKit, or else the builder that came before it.
    pub buildkit: bool,
    /// The machine's own if none.
    pub engine: Option<&'static Engine>,
    /// Whether client and buildlock run where that engine runs, and not on the machine.
    is_inside: bool,
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} BUILDKIT={}", self.program.display(), self.builder())?;
        match self.engine {
            None => Ok(()),
            Some(engine) if self.is_inside => write!(f, " in Debian 13, {:?}", engine.store),
            Some(engine) => write!(f, " and Debian 13's engine, {:?}", engine.store),
        }
    }
}

impl Client {
    fn new(program: &Path, engine: Option<&'static Engine>) -> Self {
        Client { program: program.to_owned(), buildkit: false, engine, is_inside: false }
    }

    /// Debian 13's own client.
    fn inside(engine: &'static Engine) -> Self {
        let own = Client::new(Path::new("/usr/bin/docker"), Some(engine));
        Client { is_inside: true, ..own }
    }

    /// PATH with this client in front.
    pub fn search_path(&self) -> OsString {
        let outside = std::env::var_os("PATH").unwrap_or_default();
        let own = self.program.parent().unwrap().to_owned();
        std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&outside))).unwrap()
    }

    /// Its file, where it runs.
    pub fn file(&self) -> &Path {
        &self.program
    }

    /// The value of `DOCKER_BUILDKIT` that chooses the builder.
    pub fn builder(&self) -> &'static str {
        if self.buildkit { "1" } else { "0" }
    }

    /// The client, for what a test itself asks of the engine; in bounded time, for engines hang.
    pub fn docker<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// The same, not started yet.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after", "5", "60"]).args(self.words_in_front()).arg(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DOCKER_") {
                command.env_remove(name);
            }
        }
        command.args(args).env("DOCKER_BUILDKIT", self.builder());
        command.envs(self.engine.map(|engine| ("DOCKER_HOST", engine.endpoint())));
        command
    }

    /// Whether client and engine are of the same release.
    pub fn is_beside_engine(&self) -> bool {
        self.engine.is_none() || self.is_inside
    }

    /// Has a server of this machine where client and engine reach it, until the value is dropped.
    pub fn reaches(&self, address: &str) -> Option<Bridge> {
        self.engine.map(|engine| engine.reaches(address))
    }

    fn words_in_front(&self) -> Vec<OsString> {
        let engine = self.engine.filter(|_| self.is_inside);
        engine.map(Engine::words_in_front).unwrap_or_default()
    }

    /// The same, for what has to work: its stdout.
    #[track_caller]
    pub fn ask<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let output = self.docker(args);
        assert!(output.status.success(), "{self:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// BuildKit in containerd's store has an image no longer once another one gets its tag.
    pub fn keeps_images_that_lose_their_tag(&self) -> bool {
        !(self.buildkit && self.has_containerds_store())
    }

    /// What the classic builder makes in containerd's store, and pushes as it is.
    pub fn pushes_single_oci_images(&self) -> bool {
        !self.buildkit && self.has_containerds_store()
    }

    /// Only BuildKit makes one image for several platforms, and only in containerd's store.
    pub fn builds_for_several_platforms(&self) -> bool {
        self.buildkit && self.has_containerds_store()
    }

    /// Whether images are in containerd's store.
    pub fn has_containerds_store(&self) -> bool {
        self.engine.is_some_and(|engine| engine.store == Store::Containerd)
    }

    /// Where the engine listens, if that is a socket here.
    pub fn socket(&self) -> Option<PathBuf> {
        let endpoint = self.ask(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]);
        endpoint.strip_prefix("unix://").map(PathBuf::from)
    }
}

/// Runs a test once with each client and builder that works, side by side.
///
/// Where there is none it says so in one line, and fails if that is asked for.
pub fn for_each_builder(test: impl Fn(&Site) + Sync) {
    if let Some(clients) = clients() {
        with_all(clients, test);
    }
}

/// The same once with each client, for what has nothing to do with the builder.
pub fn for_each_client(test: impl Fn(&Site) + Sync) {
    if let Some(clients) = clients() {
        let mut one_each = clients.to_vec();
        one_each.dedup_by(|a, b| {
            (&a.program, a.engine, a.is_inside) == (&b.program, b.engine, b.is_inside)
        });
        with_all(&one_each, test);
    }
}

/// The same with the first client alone, for what has nothing to do with the client either.
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
/// When the environment says that nothing may be skipped.
#[track_caller]
pub fn skip(reason: &str) {
    assert!(std::env::var_os(REQUIRE).is_none(), "{reason}, but {REQUIRE} is set");
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// A site with the first client in PATH that builds in this way.
///
/// Where there is none it says so in one line, and fails if that is asked for.
#[track_caller]
pub fn site(buildkit: bool) -> Option<Site> {
    let client = clients()?.iter().find(|client| client.buildkit == buildkit);
    if client.is_none() {
        skip(if buildkit { "no client builds with BuildKit" } else { "BuildKit is all there is" });
    }
    client.map(Site::new)
}

/// The same with a client of the machine's own engine.
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
/// Where there is none it says so in one line, and fails if that is asked for.
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

/// The engines of Debian 13, with its own client and, where all is asked for, the machine's.
///
/// One of them stands for all where it is not: that with containerd's store, and its own client.
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

/// Every docker client in PATH. Not scripts: those are somebody's wrappers, or podman.
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

fn is_elf(file: &Path) -> bool {
    let mut start = [0; 4];
    fs::File::open(file).is_ok_and(|mut file| file.read_exact(&mut start).is_ok())
        && start == *b"\x7fELF"
}

/// A build that works shows more than any version number.
fn can_build(client: &Client) -> bool {
    let site = Site::new(client);
    let tag = site.tag("probe");
    let recipe = site.recipe("true");
    let words = site.build_words(&tag, &recipe);
    client.docker(&words[1..]).status.success() && site.image_id(&tag).is_some()
}

/// A busybox that runs in an image that has nothing else.
pub fn static_busybox() -> Option<PathBuf> {
    let folders = ["/bin", "/usr/bin", "/usr/local/bin", "/sbin"];
    let mut programs = folders.iter().flat_map(|folder| {
        ["busybox", "busybox.static", "busybox-static"].map(|name| Path::new(folder).join(name))
    });
    programs.find(|program| {
        // A dynamic program names its loader.
        let ldd = Command::new("ldd").arg(program).output();
        is_elf(program) && ldd.is_ok_and(|ldd| !ldd.status.success())
    })
}

/// A root folder for images: busybox under the names of its applets.
fn make_root_folder(folder: &Path) {
    let busybox = static_busybox().expect("looked for before");
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for name in ["tmp", "etc", "proc", "sys", "dev"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    fs::copy(busybox, bin.join("busybox")).unwrap();
    fs::set_permissions(bin.join("busybox"), Permissions::from_mode(0o755)).unwrap();
    for name in ["sh", "sleep", "cat", "true", "echo"] {
        symlink("busybox", bin.join(name)).unwrap();
    }
}

/// The archive of a root folder.
///
/// The same bytes each time: the engine then keeps one layer of it, not one a test.
pub fn root_archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        make_root_folder(&dir.path().join("root"));
        let tar = Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-C"])
            .arg(dir.path().join("root"))
            .args(["-c", "."])
            .output()
            .unwrap();
        assert!(tar.status.success(), "{tar:?}");
        tar.stdout
    })
}

/// What a build does.
pub struct Recipe {
    /// The folder with the Dockerfile.
    pub context: PathBuf,
    /// An argument of the process that the engine runs for it, which no other process has.
    pub marker: String,
}

/// The surroundings of one test with one client.
pub struct Site {
    /// Folder, lock folder, processes.
    pub f: Fixture,
    /// The client to be used.
    pub client: Client,
    number: usize,
    recipes: Cell<usize>,
    base: OnceCell<String>,
    images: RefCell<Vec<String>>,
}

impl Site {
    fn new(client: &Client) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        Self {
            f: Fixture::new(),
            client: client.clone(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            recipes: Cell::new(0),
            base: OnceCell::new(),
            images: RefCell::default(),
        }
    }

    /// A tag of this test alone; what has it in the end is removed.
    pub fn tag(&self, name: &str) -> String {
        let tag = format!("{}:1", self.name(name));
        self.remove_at_the_end(&tag);
        tag
    }

    /// A name of this test alone.
    pub fn name(&self, name: &str) -> String {
        format!("buildlock-test-{}-{}-{name}", std::process::id(), self.number)
    }

    /// Has an image removed with this site.
    pub fn remove_at_the_end(&self, image: &str) {
        self.images.borrow_mut().push(image.to_owned());
    }

    // What is built from this test's base image inherits it, and can be found by it.
    fn label(&self) -> String {
        format!("buildlock-test={}-{}", std::process::id(), self.number)
    }

    /// The tag of this test's base image.
    pub fn base(&self) -> &str {
        self.base.get_or_init(|| {
            let tag = self.tag("base");
            let archive = self.f.path("root.tar");
            fs::write(&archive, root_archive()).unwrap();
            let label = format!("LABEL {}", self.label());
            self.client.ask(["import", "--change", &label, archive.to_str().unwrap(), &tag]);
            tag
        })
    }

    /// A Dockerfile whose one step runs these shell commands, in a base image.
    ///
    /// No two builds of it make the same image, so that images can be counted.
    pub fn recipe(&self, commands: &str) -> Recipe {
        self.slow_recipe(0, commands)
    }

    /// A build that takes this many seconds and then runs these commands (`true`, `exit 7`).
    pub fn slow_recipe(&self, seconds: u32, commands: &str) -> Recipe {
        let n = self.recipes.get();
        self.recipes.set(n + 1);
        // A number of seconds that no other process on this machine sleeps.
        let marker = format!("{seconds}.00{}{:04}{n:03}", std::process::id(), self.number);
        let context = self.context(&format!(
            "FROM {}\nRUN cat /proc/sys/kernel/random/uuid >/id; sleep {marker}; {commands}\n",
            self.base()
        ));
        Recipe { context, marker }
    }

    /// A build that runs nothing, and takes as little time as the engine can.
    pub fn quick_recipe(&self) -> Recipe {
        let context = self.context("FROM scratch\nCOPY Dockerfile file /\n");
        fs::write(context.join("file"), context.as_os_str().as_encoded_bytes()).unwrap();
        Recipe { context, marker: String::new() }
    }

    /// A folder with this Dockerfile, and a file to copy.
    pub fn context(&self, dockerfile: &str) -> PathBuf {
        let context = tempfile::Builder::new().prefix("context-").tempdir_in(self.f.path("work"));
        let context = context.unwrap().keep();
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        fs::write(context.join("file"), "content\n").unwrap();
        context
    }

    /// `docker build ... -t TAG CONTEXT`.
    pub fn build_words(&self, tag: &str, recipe: &Recipe) -> Vec<String> {
        let mut words = vec!["docker", "build", "--network", "none", "--no-cache"];
        if !self.client.buildkit {
            // Of a failed build the old builder leaves the container, if not told otherwise.
            words.push("--force-rm");
        }
        words.extend(["-t", tag, recipe.context.to_str().unwrap()]);
        words.into_iter().map(str::to_owned).collect()
    }

    /// `buildlock ARGS` with this client and builder in front, logging JSON.
    pub fn buildlock<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation<'_> {
        let buildlock = self.program(assert_cmd::cargo::cargo_bin!("buildlock"));
        buildlock.args(["--log-format", "json"]).args(args)
    }

    /// `buildlock -- docker build ... -t TAG CONTEXT`
    pub fn docker_build(&self, tag: &str, recipe: &Recipe) -> Invocation<'_> {
        self.buildlock(["--"]).args(self.build_words(tag, recipe))
    }

    /// The same, with the signals at their defaults: a runner in the background of a shell may
    /// have left SIGINT ignored, and buildlock keeps that.
    pub fn docker_build_with_default_signals<A: AsRef<OsStr>>(
        &self,
        tag: &str,
        command: impl IntoIterator<Item = A>,
    ) -> Invocation<'_> {
        let buildlock = assert_cmd::cargo::cargo_bin!("buildlock");
        let env = self.program("env").arg("--default-signal").arg(buildlock);
        env.args(["--log-format", "json", "-t", tag, "--"]).args(command)
    }

    /// Any program, with this client and builder in front.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Invocation<'_> {
        let mut words = self.client.words_in_front();
        words.push(program.as_ref().to_owned());
        let invocation = self.f.program(&words[0]).args(&words[1..]);
        let invocation = invocation
            .env("PATH", self.client.search_path())
            .env("DOCKER_BUILDKIT", self.client.builder());
        match self.client.engine {
            Some(engine) => invocation.env("DOCKER_HOST", engine.endpoint()),
            None => invocation,
        }
    }

    /// The image's id; none if there is no such image.
    pub fn image_id(&self, tag: &str) -> Option<String> {
        let output = self.client.docker(["image", "inspect", "--format", "{{.Id}}", tag]);
        if output.status.success() {
            return Some(String::from_utf8(output.stdout).unwrap().trim().to_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(message.contains("no such image"), "{output:?}");
        None
    }

    /// How many images this test's builds have made from its base image, those that have lost
    /// their name included.
    pub fn image_count(&self) -> usize {
        let filter = format!("label={}", self.label());
        let list = self.client.ask(["image", "ls", "-q", "--no-trunc", "--filter", &filter]);
        let base = self.image_id(self.base());
        let mut ids: Vec<_> = list.lines().filter(|id| Some(*id) != base.as_deref()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    /// Is the engine running this recipe's build step?
    pub fn engine_runs(&self, recipe: &Recipe) -> bool {
        runs_step(&recipe.marker)
    }

    /// Ends the sleep of this recipe's build step, which then runs its commands.
    pub fn end_step(&self, recipe: &Recipe) {
        end_steps(&recipe.marker);
    }

    /// Waits until the engine runs this recipe's build step.
    pub fn wait_for_step(&self, recipe: &Recipe) {
        self.f.wait_for("the build step's process", || {
            let runs = self.engine_runs(recipe);
            pause();
            runs
        });
    }

    fn clean_engine(&self) {
        let remove = |kind: &[&str], names: &[String]| {
            if !names.is_empty() {
                self.client.docker(kind.iter().copied().chain(names.iter().map(String::as_str)));
            }
        };
        remove(&["image", "rm", "--force"], &self.images.borrow());
        if self.base.get().is_none() {
            return;
        }
        let filter = format!("label={}", self.label());
        let list = |kind: &[&str]| -> Vec<String> {
            let output = self.client.docker(kind.iter().chain(&["--filter", &filter]));
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        };
        // More than once: a cancelled build may still be on its way, and children go first.
        for _ in 0..20 {
            let containers = list(&["ps", "-aq"]);
            let images = list(&["image", "ls", "-aq"]);
            if containers.is_empty() && images.is_empty() {
                break;
            }
            remove(&["rm", "--force", "--volumes"], &containers);
            remove(&["image", "rm", "--force"], &images);
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for pid in self.f.processes() {
            send_signal(pid, "KILL");
        }
        self.clean_engine();
    }
}

/// Between two looks at all processes of the machine, which cost the builds their time.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

/// The processes there are.
pub fn process_ids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The processes that have this argument.
fn processes_with(argument: &str) -> impl Iterator<Item = u32> {
    process_ids().filter(move |pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|&b| b == 0).any(|word| word == argument.as_bytes())
    })
}

/// Whether a build step runs that has `marker`, the time it sleeps, among its arguments.
pub fn runs_step(marker: &str) -> bool {
    processes_with(marker).next().is_some()
}

/// Ends the sleep of the build steps that [`runs_step`] finds.
pub fn end_steps(marker: &str) {
    processes_with(marker).for_each(|pid| send_signal(pid, "KILL"));
}

/// The living processes below this one.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split(' ').nth(1)?.parse().ok()
    };
    let is_below = |pid: u32| {
        let mut chain = std::iter::successors(parent(pid), |&pid| parent(pid));
        chain.any(|pid| pid == ancestor)
    };
    process_ids().filter(|&pid| is_below(pid) && is_alive(pid)).collect()
}

/// The program's name of a process, as its first word has it.
pub fn program_name(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = words.split(|&b| b == 0).next().unwrap_or_default();
    let path = String::from_utf8_lossy(first).into_owned();
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

/// The events in what buildlock wrote to stderr, COMMAND's own lines left out.
pub fn events(stderr: &str) -> Vec<Value> {
    let lines = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|value| value.get("event").is_some()).collect()
}

/// How many events of this name there are.
pub fn count(runs: &[Finished], event: &str) -> usize {
    runs.iter().flat_map(|run| events(&run.stderr)).filter(|e| e["event"] == event).count()
}

/// What all of them wrote, for messages.
pub fn all_output(runs: &[Finished]) -> String {
    runs.iter().map(|run| format!("{run}\n")).collect()
}
