//! The saboteur: lets everything go wrong that can, one thing after the other.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;
use rustix::fd::OwnedFd;
use rustix::fs::CWD;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::caches::USAGES;
use crate::calls::launch_reborn;
use crate::engine::{FAULTS, Fault};
use crate::meddling::{FORGED, MADE, RENAMED, UNLINKED, Undo};
use crate::neighbour::Neighbour;
use crate::plan::{BUILD_SLOTS, BUSY, CACHE_LOCKS, CACHES, Resource, USERS};
use crate::reborn::REUSED;
use crate::world::{World, files_below, make_shared_folder};

/// What must be repaired after a while.
pub enum Repair {
    Continue(OwnedFd),
    Engine,
    Usage,
    Disk,
    /// The content of a removed file, which takes room.
    Content(File),
    /// What an ordinary user has done to a lock file or its name.
    Meddled(Undo),
}

pub fn start(world: &Arc<World>, end: Instant) -> JoinHandle<()> {
    let world = Arc::clone(world);
    std::thread::spawn(move || {
        let users = USERS.iter().filter(|_| world.has_neighbours);
        let mut saboteur = Saboteur {
            world: &world,
            rng: Rng::with_seed(!world.seed),
            due: vec![],
            neighbours: users.map(|&user| Neighbour::start(&world, user)).collect(),
        };
        while Instant::now() < end {
            saboteur.repair(Instant::now());
            saboteur.strike();
            std::thread::sleep(Duration::from_millis(saboteur.rng.u64(1..30)));
        }
        saboteur.repair_all();
        saboteur.neighbours.into_iter().for_each(Neighbour::stop);
    })
}

/// Only done where no ordinary user meddles, since it voids the promise.
pub const GUARD_REMOVED: &str = "guard removed";

pub type Strike = fn(&mut Saboteur<'_>);

/// Strikes that a run must have seen, without those that need a disk of its own.
pub const MUST_HAPPEN: &[(&str, Strike)] = &[
    ("KILL of buildlock", |it| it.signal_a_call(Signal::KILL, "KILL of buildlock")),
    ("TERM of buildlock", |it| it.signal_a_call(Signal::TERM, "TERM of buildlock")),
    ("STOP of buildlock", |it| it.signal_a_call(Signal::STOP, "STOP of buildlock")),
    ("KILL of a build", |it| it.signal_a_build(Signal::KILL, "KILL of a build")),
    ("image removed", |it| it.remove_an_image()),
    ("lock file removed", |it| it.remove_a_lock_file()),
    ("engine down", |it| it.break_the_engine(Fault::Down)),
    ("engine sick", |it| it.break_the_engine(Fault::Another404)),
    ("prune", |it| _ = it.run("prune", &["prune"])),
    ("cache forgotten", |it| it.forget_a_cache()),
    ("file of a cache changed", |it| it.change_a_file()),
    ("cache mounts lost", |it| it.lose_cache_mounts()),
    ("no word of cache mounts", |it| it.break_the_usage()),
];

/// Strikes that a run with ordinary users must have seen.
pub const USERS_MUST: &[(&str, Strike)] = &[
    (MADE, |it| it.make_lock_files()),
    (UNLINKED, |it| it.unlink_own()),
    (RENAMED, |it| it.rename_own()),
    (FORGED, |it| it.forge_a_record()),
];

/// Strikes that a run must have seen if processes can have chosen pids.
pub const NUMBERS_MUST: &[(&str, Strike)] = &[(REUSED, |it| it.reuse_a_number())];

pub struct Saboteur<'a> {
    pub world: &'a Arc<World>,
    pub rng: Rng,
    pub due: Vec<(Instant, Repair)>,
    pub neighbours: Vec<Neighbour>,
}

impl Saboteur<'_> {
    fn strike(&mut self) {
        // Sometimes a strike that is still missing comes first, since a run must see everything.
        let struck = self.world.state().struck.clone();
        let missing: Vec<_> =
            (self.world.must_happen()).filter(|(what, _)| !struck.contains_key(what)).collect();
        if let (Some((_, strike)), true) = (self.rng.choice(missing), self.rng.bool()) {
            return strike(self);
        }
        if self.world.has_neighbours && self.rng.u32(..4) == 0 {
            return self.meddle();
        }
        if self.world.can_choose_numbers && self.rng.u32(..12) == 0 {
            return self.reuse_a_number();
        }
        match self.rng.u32(..106) {
            0..22 => {
                let (signal, what) = self.choose_signal();
                self.signal_a_call(signal, what);
            }
            22..36 => {
                let (signal, what) = match self.rng.u32(..4) {
                    0 => (Signal::TERM, "TERM of a build"),
                    1 => (Signal::STOP, "STOP of a build"),
                    _ => (Signal::KILL, "KILL of a build"),
                };
                self.signal_a_build(signal, what);
            }
            36..41 => self.signal_a_keeper(),
            41..64 => self.remove_an_image(),
            64..76 if !self.world.has_neighbours && self.rng.u32(..6) == 0 => {
                self.remove_the_guard();
            }
            64..76 => self.remove_a_lock_file(),
            76..77 => self.move_a_folder_away(),
            77..79 => {
                let fault = self.rng.choice(FAULTS).unwrap();
                self.break_the_engine(fault);
            }
            79..82 => self.fill_the_disk(),
            82..87 => {
                self.run("prune", &["prune"]);
                if self.world.has_neighbours && self.rng.bool() {
                    self.make_lock_files();
                }
            }
            87..89 => _ = self.run("status", &["status", "--json"]),
            89..90 => _ = self.run("cache ls", &["cache", "ls", "--json"]),
            90..92 => self.forget_a_cache(),
            92..95 => self.change_a_file(),
            95..97 => self.lose_cache_mounts(),
            97..99 => self.break_the_usage(),
            _ => self.hold_a_lock(),
        }
    }

    pub fn later(&mut self, from: u64, to: u64, repair: Repair) {
        let after = Duration::from_millis(self.rng.u64(from..to));
        self.due.push((Instant::now() + after, repair));
    }

    fn repair(&mut self, now: Instant) {
        let (due, later) =
            std::mem::take(&mut self.due).into_iter().partition(|(at, _)| *at <= now);
        self.due = later;
        let due: Vec<(Instant, Repair)> = due;
        for (_, repair) in due {
            match repair {
                Repair::Continue(process) => {
                    _ = rustix::process::pidfd_send_signal(process, Signal::CONT);
                }
                Repair::Engine => {
                    self.world.state().fault = None;
                    while !self.world.socket().exists() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let mut state = self.world.state();
                    state.end_trouble("engine");
                    self.world.note(&mut state, "the engine is well again");
                }
                Repair::Usage => {
                    let mut state = self.world.state();
                    state.caches.usage = None;
                    self.world.note(&mut state, "the engine tells its cache mounts again");
                }
                Repair::Meddled(undo) => self.undo(&undo),
                Repair::Content(file) => _ = file.set_len(0),
                Repair::Disk => {
                    _ = fs::remove_file(self.filler());
                    let mut state = self.world.state();
                    state.end_trouble("disk");
                    self.world.note(&mut state, "the disk has room again");
                }
            }
        }
    }

    fn repair_all(&mut self) {
        let far = Instant::now() + Duration::from_secs(3600);
        self.repair(far);
    }

    /// Sends a signal to a call alone, as CI systems and people do.
    fn signal_a_call(&mut self, signal: Signal, what: &'static str) {
        let mut state = self.world.state();
        let Some(&pid) = self.rng.choice(state.calls.keys().collect::<Vec<_>>()) else { return };
        let call = state.calls[&pid];
        state.disturbed.insert(call);
        // It may be a zombie, but it has not been reaped, since that needs the state.
        let Some(process) = open(pid) else { return };
        _ = rustix::process::pidfd_send_signal(&process, signal);
        state.strike(what);
        self.world.note(&mut state, format!("call {call} (pid {pid}): {what}"));
        drop(state);
        if signal == Signal::STOP {
            self.later(30, 1200, Repair::Continue(process));
        }
    }

    fn choose_signal(&mut self) -> (Signal, &'static str) {
        match self.rng.u32(..10) {
            0..3 => (Signal::KILL, "KILL of buildlock"),
            3..5 => (Signal::TERM, "TERM of buildlock"),
            5 => (Signal::INT, "INT of buildlock"),
            6 => (Signal::HUP, "HUP of buildlock"),
            7 => (Signal::QUIT, "QUIT of buildlock"),
            _ => (Signal::STOP, "STOP of buildlock"),
        }
    }

    fn signal_a_build(&mut self, signal: Signal, what: &'static str) {
        let mut state = self.world.state();
        let Some(build) = self.rng.choice(&state.active) else { return };
        let (call, pid) = (build.call, build.pid);
        let Some(process) = build.handle.as_ref().and_then(|it| it.try_clone().ok()) else {
            return;
        };
        if rustix::process::pidfd_send_signal(&process, signal).is_err() {
            return;
        }
        state.disturbed.insert(call);
        state.strike(what);
        self.world.note(&mut state, format!("call {call}: {what} {pid}"));
        drop(state);
        if signal == Signal::STOP {
            self.later(30, 600, Repair::Continue(process));
        }
    }

    /// Sends a signal to the process between buildlock and the build command.
    fn signal_a_keeper(&mut self) {
        let (signal, what) = match self.rng.u32(..3) {
            0 => (Signal::STOP, "STOP of a keeper"),
            _ => (Signal::KILL, "KILL of a keeper"),
        };
        let mut state = self.world.state();
        let Some(build) = self.rng.choice(&state.active) else { return };
        let (call, client) = (build.call, build.pid);
        if signal == Signal::KILL && self.world.plan(call).closes {
            // If buildlock were killed too, no process would be left to hold the lock.
            return;
        }
        let Some(keeper) = keeper_of(client) else { return };
        let Some(process) = open(keeper) else { return };
        // It is still the keeper, and not another process with its pid.
        if keeper_of(client) != Some(keeper) {
            return;
        }
        _ = rustix::process::pidfd_send_signal(&process, signal);
        state.disturbed.insert(call);
        state.strike(what);
        self.world.note(&mut state, format!("call {call}: {what} {keeper}"));
        drop(state);
        if signal == Signal::STOP {
            self.later(30, 600, Repair::Continue(process));
        }
    }

    /// Kills a buildlock whose build goes on, and lets another call run below a process that gets
    /// its pid.
    fn reuse_a_number(&mut self) {
        /// The time that this process needs to start.
        const LEFT: Duration = Duration::from_millis(150);
        let late_enough = Instant::now() + LEFT;
        let mut state = self.world.state();
        let victims: Vec<(u32, usize)> = (state.calls.iter())
            .map(|(&pid, &call)| (pid, call))
            .filter(|(_, call)| self.world.plan(*call).outlives_buildlock())
            .filter(|(_, call)| {
                state.active.iter().any(|it| it.call == *call && it.until > late_enough)
            })
            .collect();
        let Some((pid, call)) = self.rng.choice(victims) else { return };
        let Some(process) = open(pid) else { return };
        state.disturbed.insert(call);
        _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
        state.strike("KILL for its number");
        self.world.note(&mut state, format!("call {call} (pid {pid}): KILL for its number"));
        drop(state);
        launch_reborn(self.world, call, pid);
    }

    fn remove_an_image(&mut self) {
        let mut state = self.world.state();
        let mut images: Vec<String> = state.images.keys().cloned().collect();
        images.sort();
        let Some(image) = self.rng.choice(images) else { return };
        state.images.remove(&image);
        state.strike("image removed");
        // A caller that has just built it finds it missing.
        state.begin_trouble("image");
        state.end_trouble("image");
        self.world.note(&mut state, format!("image {image} is removed"));
    }

    /// Removes a lock file, even while it is held, as a cleaner of /tmp does.
    fn remove_a_lock_file(&mut self) {
        let Some(resource) = self.rng.choice(Resource::all()) else { return };
        let file = match (resource.is_cache(), self.rng.u32(..4)) {
            (_, 0) if resource.can_be_shared() => resource.turnstile(),
            (true, 1) => resource.memory(),
            _ => resource.file.clone(),
        };
        let path = self.world.lock_folder().join(&file);
        let from = SystemTime::now();
        let Ok(opened) = open_lock_file(&path) else { return };
        let mut state = self.world.state();
        let inode = opened.metadata().unwrap().ino();
        // Noted before it is gone, since the next caller may be quick. Another process may have
        // removed the file and made a new one.
        if fs::symlink_metadata(&path).is_ok_and(|there| there.is_file() && there.ino() == inode) {
            self.due.extend(room_of(&opened));
            state.displaced.insert(inode, (SystemTime::now(), opened));
            if file == resource.turnstile() && resource.is_cache() {
                state.caches.turnstile_gone(&resource.text);
            }
            _ = fs::remove_file(&path);
            if file == resource.memory() {
                state.caches.forgotten(&resource.text, from);
            }
            state.strike("lock file removed");
            self.world.note(&mut state, format!("{file} of {} ({inode}) is gone", resource.text));
        }
    }

    /// Removes the guard. From now on, removing a lock file that is held can let two builds
    /// overlap.
    fn remove_the_guard(&mut self) {
        let mut state = self.world.state();
        state.strike(GUARD_REMOVED);
        _ = fs::remove_file(self.world.guard());
        self.world.note(&mut state, "the guard is gone");
    }

    /// Moves a folder away with all lock files in it.
    fn move_a_folder_away(&mut self) {
        let mut state = self.world.state();
        let folder = self.world.lock_folder();
        let names = ["image-locks", "named-locks", CACHE_LOCKS, BUILD_SLOTS];
        let name = self.rng.choice(names).unwrap();
        let moved = self.world.moved();
        _ = fs::create_dir(&moved);
        let moved = moved.join(format!("{:x}", self.rng.u64(..)));
        state.begin_trouble("folder");
        let now = SystemTime::now();
        let path = folder.join(name);
        // The new one must also be root's from its first moment.
        let done = if self.world.has_neighbours {
            make_shared_folder(&moved);
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(CWD, &path, CWD, &moved, flags).is_ok()
        } else {
            fs::rename(path, &moved).is_ok()
        };
        if done {
            for (id, _) in CACHES.iter().filter(|_| name == CACHE_LOCKS) {
                state.caches.turnstile_gone(id);
                state.caches.forgotten(id, now);
            }
            for file in files_below(&moved) {
                let Ok(file) = open_lock_file(&file) else { continue };
                self.due.extend(room_of(&file));
                state.displaced.insert(file.metadata().unwrap().ino(), (now, file));
            }
            state.strike("folder moved away");
            self.world.note(&mut state, format!("{name} is moved away"));
        }
        state.end_trouble("folder");
    }

    fn break_the_engine(&mut self, fault: Fault) {
        let mut state = self.world.state();
        if state.fault.is_some() {
            return;
        }
        state.fault = Some(fault);
        state.begin_trouble("engine");
        state.strike(if fault == Fault::Down { "engine down" } else { "engine sick" });
        self.world.note(&mut state, format!("the engine: {fault:?}"));
        drop(state);
        // Sometimes longer than buildlock keeps asking.
        let longest = if self.rng.u32(..4) == 0 { 3000 } else { 400 };
        self.later(20, longest, Repair::Engine);
    }

    /// Forgets a cache, as a user does who knows that it is gone.
    fn forget_a_cache(&mut self) {
        let (id, _) = self.choose_cache();
        let from = SystemTime::now();
        if self.run("cache forgotten", &["cache", "forget", id]) {
            let mut state = self.world.state();
            state.caches.forgotten(id, from);
            self.world.note(&mut state, format!("cache {id} is forgotten"));
        }
    }

    /// Chooses a cache. The busy one is mostly left alone, since it must stay busy.
    fn choose_cache(&mut self) -> (&'static str, &'static [&'static str]) {
        let cache = self.rng.choice(CACHES).unwrap();
        let again = self.rng.u32(..4) > 0 && cache.0 == BUSY;
        if again { CACHES[0] } else { cache }
    }

    fn change_a_file(&mut self) {
        let (_, files) = self.choose_cache();
        let &file = self.rng.choice(files).unwrap();
        let again = self.rng.u32(..4) == 0;
        let mut state = self.world.state();
        state.caches.change(&self.world.files(), file, again);
        state.strike("file of a cache changed");
        self.world.note(&mut state, format!("{file} is another"));
    }

    /// Loses cache mounts, as by `docker builder prune`.
    fn lose_cache_mounts(&mut self) {
        let mut guard = self.world.state();
        let state = &mut *guard;
        let active = &state.active;
        state.caches.lose_mounts(|id| active.iter().any(|build| build.uses_cache(id)));
        state.strike("cache mounts lost");
        self.world.note(state, "cache mounts are lost");
    }

    fn break_the_usage(&mut self) {
        let usage = self.rng.choice(USAGES).unwrap();
        let mut state = self.world.state();
        if state.caches.usage.is_some() {
            return;
        }
        state.caches.usage = Some(usage);
        state.strike("no word of cache mounts");
        self.world.note(&mut state, format!("the engine's word on cache mounts: {usage:?}"));
        drop(state);
        self.later(20, 400, Repair::Usage);
    }

    fn filler(&self) -> std::path::PathBuf {
        self.world.folder.join("disk/filler")
    }

    fn fill_the_disk(&mut self) {
        if !self.world.on_small_disk || self.filler().exists() {
            return;
        }
        let mut state = self.world.state();
        state.begin_trouble("disk");
        let Ok(mut filler) = File::create(self.filler()) else { return };
        let page = [b'x'; 4096];
        while filler.write_all(&page).is_ok() {}
        state.strike("disk full");
        self.world.note(&mut state, "the disk is full");
        drop(state);
        self.later(50, 500, Repair::Disk);
    }

    /// Runs another subcommand beside the calls.
    fn run(&mut self, what: &'static str, words: &[&str]) -> bool {
        let start = Instant::now();
        let output = self.world.command(self.world.buildlock()).args(words).output().unwrap();
        let mut state = self.world.state();
        state.strike(what);
        let said = String::from_utf8_lossy(&output.stderr);
        // The folder may be moved away while it is read, and there may be no room for a new file.
        let is_full =
            said.contains("No space left") && state.troubles_since(start).contains(&"disk");
        let excused = is_full || state.struck.contains_key("folder moved away");
        if !output.status.success() && !excused {
            state.violations.push(format!("{what}: {}: {said}", output.status));
        }
        if words.contains(&"--json") && output.status.success() {
            let read = serde_json::from_slice::<Vec<serde_json::Value>>(&output.stdout);
            if let Err(error) = read {
                state.violations.push(format!("{what} is no list: {error}"));
            }
        }
        output.status.success()
    }

    fn hold_a_lock(&mut self) {
        let Some(resource) = self.rng.choice(Resource::all()) else { return };
        let path = self.world.lock_folder().join(&resource.file);
        let kind = if self.rng.bool() { "shared" } else { "exclusive" };
        let milliseconds = self.rng.u64(5..150).to_string();
        let mut command = self.world.command(std::env::current_exe().unwrap());
        command.arg("hold").arg(path).args([&milliseconds, kind]);
        if let Ok(mut child) = command.spawn() {
            std::thread::spawn(move || child.wait());
            self.world.state().strike("foreign lock");
        }
    }
}

/// Opens a lock file, but nothing else that an ordinary user may have put in its place.
pub fn open_lock_file(path: &std::path::Path) -> std::io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

/// Returns the repair that empties a removed file, which stays open. Otherwise it would fill the
/// disk for longer than a process may hold it.
fn room_of(file: &File) -> Option<(Instant, Repair)> {
    const HELD_MAX: Duration = Duration::from_secs(20);
    Some((Instant::now() + HELD_MAX, Repair::Content(file.try_clone().ok()?)))
}

fn open(pid: u32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()
}

/// Returns the keeper among the parents of a client, if it is near.
fn keeper_of(client: u32) -> Option<u32> {
    let mut pid = client;
    for _ in 0..3 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        pid = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        if name.trim() == "lock-keeper" {
            return Some(pid);
        }
    }
    None
}
