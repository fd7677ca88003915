//! What all parts share: the places of things, what has happened, and what is wrong with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::caches::{Caches, Caller};
use crate::client::Descriptor;
use crate::engine::{Answer, Build, Built, Fault};
use crate::plan::{BUILD_SLOTS, CACHE_LOCKS, Plan, Resource, USERS};
use crate::saboteur::{MUST_HAPPEN, NUMBERS_MUST, Strike, USERS_MUST};

/// The file in the lock folder of which all may lock ranges, as an installation provides it.
pub const GUARD: &str = "/guard";
/// With a seed that this divides, no ordinary user meddles, and the calls make the lock folder.
const ALONE_EVERY: u64 = 4;
/// The content of a file that must not change.
const PRECIOUS: &str = "precious\n";

/// The world of one run.
pub struct World {
    pub seed: u64,
    pub folder: PathBuf,
    /// Whether the lock folder's disk may be filled.
    pub on_small_disk: bool,
    pub is_root: bool,
    /// Whether ordinary users meddle with the lock folder, which root owns.
    pub has_neighbours: bool,
    /// Whether processes can be started with a chosen pid.
    pub can_choose_numbers: bool,
    pub start: Instant,
    /// Descriptors that this program was started with, which all others inherit.
    pub from_outside: Vec<Descriptor>,
    state: Mutex<State>,
}

/// The state that changes.
#[derive(Default)]
pub struct State {
    /// Images by their tags, and whether the build that made each one had lost its lock by then.
    pub images: HashMap<String, bool>,
    pub fault: Option<Fault>,
    /// Builds that run.
    pub active: Vec<Build>,
    /// What the engine told each process.
    pub answers: HashMap<Process, Vec<Answer>>,
    /// What is known of build caches.
    pub caches: Caches,
    /// When each call was started.
    pub called: HashMap<usize, SystemTime>,
    /// How builds ended, by the number of their call.
    pub built: HashMap<usize, Vec<Built>>,
    /// Calls that have not been waited for, by process id.
    pub calls: BTreeMap<u32, usize>,
    /// Calls that were disturbed, or whose build was.
    pub disturbed: HashSet<usize>,
    /// Lock files that the saboteur removed from their place, by inode, and when. They stay open,
    /// so that no other file gets the same inode.
    pub displaced: HashMap<u64, (SystemTime, File)>,
    /// Lock files that an ordinary user renamed: the earlier names by inode. They stay open, too.
    pub renamed: HashMap<u64, (String, File)>,
    /// Lock files that an ordinary user changed so that a call may fail, and until when that
    /// lasted, by their names in the lock folder.
    pub meddled: HashMap<String, Option<Instant>>,
    /// Times in which something was broken, so that a call may fail.
    pub troubles: Vec<Trouble>,
    /// How often each outcome was seen.
    pub counts: BTreeMap<&'static str, usize>,
    /// How often each strike was made.
    pub struck: BTreeMap<&'static str, usize>,
    pub violations: Vec<String>,
    journal: Vec<String>,
}

/// A process: its pid, which may be reused, and when it began, in ticks.
pub type Process = (u32, u64);

/// A reason why a call may fail.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// None while it lasts.
    pub to: Option<Instant>,
    pub what: &'static str,
}

impl World {
    pub fn new(seed: u64, folder: PathBuf, on_small_disk: bool) -> Self {
        let is_root = rustix::process::geteuid().is_root();
        let mut world = World {
            seed,
            folder,
            on_small_disk,
            is_root,
            has_neighbours: is_root && !seed.is_multiple_of(ALONE_EVERY),
            can_choose_numbers: false,
            start: Instant::now(),
            from_outside: crate::client::inherited(),
            state: Mutex::default(),
        };
        // The last is that of the lock folder, like /tmp.
        let folders = [("", 0o755), ("bin", 0o755), ("out", 0o755), ("files", 0o755)];
        for (name, mode) in folders.into_iter().chain([("disk", 0o1777)]) {
            let path = world.folder.join(name);
            _ = fs::create_dir(&path);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        // Another process copies them. If one were open for writing here while a thread forks, its
        // execution would fail with ETXTBSY.
        for (program, name) in [
            (assert_cmd::cargo::cargo_bin!("buildlock").to_path_buf(), "buildlock"),
            (std::env::current_exe().unwrap(), "docker"),
        ] {
            let copy = world.folder.join("bin").join(name);
            let copied = Command::new("install").args(["-m", "755"]).args([program, copy]).status();
            assert!(copied.unwrap().success(), "install {name}");
        }
        if world.has_neighbours {
            world.make_lock_folder();
        }
        world.can_choose_numbers = is_root && crate::reborn::is_possible(&world);
        for file in crate::caches::files() {
            world.state().caches.change(&world.files(), file, false);
        }
        world
    }

    /// Makes the lock folder as an installation does at boot, with everything that ordinary users
    /// must not own.
    fn make_lock_folder(&self) {
        let lock_folder = self.lock_folder();
        let folders = ["image-locks", "named-locks", CACHE_LOCKS, BUILD_SLOTS];
        let folders = folders.map(|it| lock_folder.join(it));
        for folder in [lock_folder.clone()].into_iter().chain(folders) {
            make_shared_folder(&folder);
        }
        let guard = self.guard();
        fs::write(&guard, "").unwrap();
        fs::set_permissions(guard, fs::Permissions::from_mode(0o666)).unwrap();
        for user in USERS {
            fs::create_dir(self.elsewhere(user)).unwrap();
            std::os::unix::fs::chown(self.elsewhere(user), Some(user), Some(user)).unwrap();
        }
        fs::write(self.precious(), PRECIOUS).unwrap();
        fs::set_permissions(self.precious(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Returns the strikes that a run must have seen here.
    pub fn must_happen(&self) -> impl Iterator<Item = &'static (&'static str, Strike)> {
        let users = USERS_MUST.iter().filter(|_| self.has_neighbours);
        let numbers = NUMBERS_MUST.iter().filter(|_| self.can_choose_numbers);
        MUST_HAPPEN.iter().chain(users).chain(numbers)
    }

    pub fn plan(&self, call: usize) -> Plan {
        Plan::new(self.seed, call, self.is_root)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the folder of the caches' files.
    pub fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    pub fn buildlock(&self) -> PathBuf {
        self.folder.join("bin/buildlock")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("engine.sock")
    }

    pub fn lock_folder(&self) -> PathBuf {
        self.folder.join("disk/locks")
    }

    /// Returns the folder for lock files that were moved away.
    pub fn moved(&self) -> PathBuf {
        self.folder.join("disk/moved")
    }

    pub fn guard(&self) -> PathBuf {
        self.folder.join(format!("disk/locks{GUARD}"))
    }

    /// Returns this user's folder on the lock folder's disk.
    pub fn elsewhere(&self, user: u32) -> PathBuf {
        self.folder.join(format!("disk/of-{user}"))
    }

    /// Returns a file of root's to which links in the lock folder lead.
    pub fn precious(&self) -> PathBuf {
        self.folder.join("precious")
    }

    /// Prepares `buildlock`, or another program that sees the same world.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", format!("{}:{path}", self.folder.join("bin").display()))
            .env("LC_ALL", "C")
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("BUILDLOCK_DIR", self.lock_folder())
            .env("BUILDLOCK_LOG_FORMAT", "json")
            .env("CHAOS", &self.folder)
            .current_dir(&self.folder);
        command
    }

    /// Returns the time since the start, for people.
    pub fn clock(&self) -> String {
        format!("{:8.3}", self.start.elapsed().as_secs_f64())
    }

    /// Writes down what happened, in case something is wrong.
    pub fn note(&self, state: &mut State, what: impl AsRef<str>) {
        state.journal.push(format!("{} {}", self.clock(), what.as_ref()));
    }

    /// Returns the processes of this run, without this one and without zombies.
    fn processes(&self) -> Vec<(u32, String)> {
        let mark = format!("CHAOS={}", self.folder.display()).into_bytes();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|&pid| pid != std::process::id())
            .filter_map(|pid| {
                let variables = fs::read(format!("/proc/{pid}/environ")).ok()?;
                let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let words = String::from_utf8_lossy(&words).replace('\0', " ");
                variables.split(|&b| b == 0).any(|it| it == mark).then_some((pid, words))
            })
            .collect()
    }

    /// Checks that nothing is left once everything is over.
    pub fn check_what_is_left(&self, descriptors: usize) {
        // Daemons that a build has left take a while, and so does the kernel.
        let until = Instant::now() + Duration::from_secs(10);
        while !self.processes().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut wrong = Vec::new();
        for (pid, words) in self.processes() {
            wrong.push(format!("process {pid} is left: {words}"));
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            wrong.push(status.lines().take(8).collect::<Vec<_>>().join(" | "));
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let guard = GUARD.trim_start_matches('/').to_owned();
        let files = Resource::all().into_iter().flat_map(|it| it.files());
        let known: HashSet<String> = files.chain([guard]).collect();
        for file in files_below(&self.lock_folder()) {
            let relative = file.strip_prefix(self.lock_folder()).unwrap().to_str().unwrap();
            let metadata = fs::symlink_metadata(&file).unwrap();
            let is_known = known.contains(relative) || relative.starts_with(BUILD_SLOTS);
            if !is_known && relative != "guard" {
                wrong.push(format!("{relative} is left in the lock folder"));
            } else if metadata.mode() & 0o7777 != 0o666 {
                wrong.push(format!("{relative} has the mode {:o}", metadata.mode()));
            } else if fs2::FileExt::try_lock_exclusive(&File::open(&file).unwrap()).is_err() {
                let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
                wrong.push(format!("{relative} ({}) is still locked:\n{locks}", metadata.ino()));
            }
        }
        wrong.extend(self.has_neighbours.then(|| self.broken_in_lock_folder()).flatten());
        let pruned = self.command(self.buildlock()).arg("prune").output().unwrap();
        if !pruned.status.success() {
            wrong.push(format!("prune: {}", String::from_utf8_lossy(&pruned.stderr)));
        }
        // The caches' memory stays, and so does the guard.
        let mut left = files_below(&self.lock_folder());
        left.retain(|file| file.extension().is_none_or(|it| it != "json") && *file != self.guard());
        if !left.is_empty() {
            wrong.push(format!("prune left {left:?}"));
        }
        let kept = |state: &State| state.displaced.len() + state.renamed.len();
        let descriptors = descriptors + kept(&self.state());
        // The engine's threads close their descriptors a moment after their client has gone.
        let until = Instant::now() + Duration::from_secs(5);
        let mut open = crate::own_descriptors();
        while open > descriptors && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            open = crate::own_descriptors();
        }
        if open > descriptors {
            wrong.push(format!("{open} descriptors are open, and were {descriptors} at the start"));
        }
        self.state().violations.extend(wrong);
    }

    /// Returns what is no longer as root made it.
    fn broken_in_lock_folder(&self) -> Option<String> {
        let folders = ["", "image-locks", "named-locks", CACHE_LOCKS, BUILD_SLOTS, "guard"];
        for path in folders.map(|it| self.lock_folder().join(it)) {
            let mode = if path == self.guard() { 0o100_666 } else { 0o041_777 };
            let found = fs::symlink_metadata(&path).map(|it| (it.mode(), it.uid()));
            if !found.as_ref().is_ok_and(|it| *it == (mode, 0)) {
                return Some(format!("{} is not root's any more: {found:?}", path.display()));
            }
        }
        let guard = File::options().write(true).open(self.guard()).unwrap();
        let all = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::fcntl_lock(&guard, all).is_err() {
            return Some("a range of the guard is still locked".into());
        }
        let precious = fs::symlink_metadata(self.precious()).unwrap();
        let as_before = (precious.mode(), precious.uid(), precious.nlink()) == (0o100_600, 0, 1)
            && fs::read(self.precious()).is_ok_and(|it| it == PRECIOUS.as_bytes());
        (!as_before).then(|| format!("what a planted link led to was touched: {precious:?}"))
    }

    /// Prints what happened. A whole run fails if something never happened, since it proves
    /// nothing.
    pub fn report(&self, whole_run: bool) -> ExitCode {
        let mut state = self.state();
        let in_one_line = |counts: &BTreeMap<&str, usize>| {
            let counts = counts.iter().map(|(what, n)| format!("{what}: {n}"));
            counts.collect::<Vec<_>>().join("; ")
        };
        println!("sabotage: {}", in_one_line(&state.struck));
        println!("calls: {}", in_one_line(&state.counts));
        let mut must = vec!["started", "exit 0", "builds", "waited", "skipped after waiting"];
        must.extend(["alone with a cache", "shares a cache with others", "run again, alone"]);
        must.extend([
            "shares a named lock with others",
            "takes the last slot",
            "waited for a slot",
        ]);
        must.extend(self.must_happen().map(|(what, _)| *what));
        if self.on_small_disk {
            must.push("disk full");
        }
        for what in must.into_iter().filter(|_| whole_run) {
            if !state.counts.contains_key(what) && !state.struck.contains_key(what) {
                state.violations.push(format!("never happened in the whole run: {what}"));
            }
        }
        if state.violations.is_empty() {
            println!("chaos: no violation");
            return ExitCode::SUCCESS;
        }
        let journal = std::env::temp_dir().join(format!("buildlock-chaos-{}.log", self.seed));
        _ = fs::write(&journal, state.journal.join("\n"));
        println!("chaos: seed {}: {} VIOLATIONS", self.seed, state.violations.len());
        for violation in state.violations.iter().take(20) {
            println!("- {violation}");
        }
        println!("what happened: {}", journal.display());
        ExitCode::FAILURE
    }
}

impl State {
    /// Returns a call, as the caches know it.
    pub fn caller<'a>(&self, call: usize, plan: &'a Plan) -> Caller<'a> {
        let called = self.called[&call];
        Caller { call, plan, called, disturbed: self.disturbed.contains(&call) }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Counts something that was done to the calls.
    pub fn strike(&mut self, what: &'static str) {
        *self.struck.entry(what).or_default() += 1;
    }

    /// Adds the earlier names of lock files, which may have been renamed since they were locked.
    pub fn add_earlier_names(&self, descriptors: &mut [Descriptor]) {
        for Descriptor { link, inode, .. } in descriptors {
            if let Some((names, _)) = self.renamed.get(inode) {
                link.insert_str(0, names);
            }
        }
    }

    /// Has an ordinary user meddled since `from` with a lock file for which `is_it` holds?
    pub fn was_meddled(&self, from: Instant, is_it: impl Fn(&str) -> bool) -> bool {
        let since = |to: &Option<Instant>| to.is_none_or(|to| to >= from);
        self.meddled.iter().any(|(file, to)| since(to) && is_it(file))
    }

    /// Has one of these lock files been removed?
    pub fn has_lost_one(&self, inodes: &[u64]) -> bool {
        inodes.iter().any(|inode| self.displaced.contains_key(inode))
    }

    /// Notes that something begins of which a call may fail.
    pub fn begin_trouble(&mut self, what: &'static str) {
        self.troubles.push(Trouble { to: None, what });
    }

    pub fn end_trouble(&mut self, what: &'static str) {
        let now = Instant::now();
        for trouble in self.troubles.iter_mut().filter(|it| it.what == what && it.to.is_none()) {
            trouble.to = Some(now);
        }
    }

    /// Returns what was broken at some time since `from`.
    pub fn troubles_since(&self, from: Instant) -> Vec<&'static str> {
        let since = |trouble: &&Trouble| trouble.to.is_none_or(|to| to >= from);
        self.troubles.iter().filter(since).map(|trouble| trouble.what).collect()
    }
}

/// Makes a folder in which all users may create files, and remove their own.
pub fn make_shared_folder(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o1777)).unwrap();
}

/// Returns every file below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

/// Returns when a process began, in ticks since the machine started (proc_pid_stat(5)).
pub fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}
