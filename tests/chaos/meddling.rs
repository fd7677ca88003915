//! Ordinary users do whatever the kernel lets them do in a lock folder that root owns, and still no
//! two builds may overlap. They may keep calls waiting and make a lock file unusable. That is
//! undone after a moment, so that the run goes on.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::Instant;

use crate::neighbour::{Deed, RangeKind};
use crate::plan::{CACHES, Resource};
use crate::saboteur::{Repair, Saboteur, open_lock_file};
use crate::world::{GUARD, files_below};

pub const MADE: &str = "user makes lock files";
pub const UNLINKED: &str = "user unlinks a lock file that is held";
pub const RENAMED: &str = "user renames a lock file";
pub const FORGED: &str = "user forges a record";

/// A deed that is undone after a moment.
#[derive(Clone, Debug)]
pub enum Undo {
    /// Something in the place of this lock file that is not a usable lock file.
    Obstacle { user: usize, file: String },
    /// A link to this lock file in the user's own folder.
    Elsewhere { user: usize, file: String, path: PathBuf },
    /// Nothing is left to undo, but calls may have failed of it.
    Nothing { file: String },
}

impl Undo {
    fn file(&self) -> &str {
        match self {
            Undo::Obstacle { file, .. } | Undo::Elsewhere { file, .. } | Undo::Nothing { file } => {
                file
            }
        }
    }
}

impl Saboteur<'_> {
    /// Lets one of the users do something.
    pub fn meddle(&mut self) {
        match self.rng.u32(..41) {
            0..8 => self.make_lock_files(),
            8..9 => self.make_by_path(),
            9..18 => self.unlink_own(),
            18..22 => self.rename_own(),
            22..25 => self.link_elsewhere(),
            25..27 => self.link_back(),
            27..31 => self.forge_a_record(),
            31..33 => self.touch(),
            33..35 => self.take_a_flock(),
            35..37 => self.take_a_range_lock(),
            37..38 => self.change_a_mode(),
            38..39 => self.take_a_lease(),
            _ => self.plant_an_obstacle(),
        }
    }

    /// Makes lock files before any call does.
    pub fn make_lock_files(&mut self) {
        const AT_ONCE: usize = 24;
        let user = self.choose_user();
        let mut missing = self.missing();
        self.rng.shuffle(&mut missing);
        for file in missing.into_iter().take(AT_ONCE) {
            self.make(user, &file);
        }
    }

    fn make(&mut self, user: usize, file: &str) {
        if self.tell(user, &Deed::Create { path: self.path(file), mode: 0o666 }) {
            self.count(MADE);
        }
    }

    fn make_by_path(&mut self) {
        let user = self.choose_user();
        let user = self.neighbours[user].user;
        let start = Instant::now();
        let images = Resource::all().into_iter().filter(|it| it.file.starts_with("image-locks"));
        let resource = self.rng.choice(images.collect::<Vec<_>>()).unwrap();
        let mut command = self.world.command(self.world.buildlock());
        command.args(["path", &resource.text]).uid(user).gid(user);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let mut state = self.world.state();
        state.strike("user runs path");
        let excused = !state.troubles_since(start).is_empty()
            || state.was_meddled(start, |file| file == resource.file && said.contains(file));
        if !output.status.success() && !excused {
            state.violations.push(format!("path: {}: {said}", output.status));
        }
    }

    /// Unlinks a lock file of the user's, even while it is held. Sometimes another takes its place
    /// at once.
    pub fn unlink_own(&mut self) {
        let user = self.choose_user();
        let Some((file, inode)) = self.choose_own(user) else { return };
        self.world.state().meddled.insert(file.clone(), None);
        if self.tell(user, &Deed::Remove(self.path(&file))) {
            let is_held = self.world.state().active.iter().any(|build| build.holds(inode));
            self.count(if is_held { UNLINKED } else { "user unlinks a lock file" });
            if self.rng.bool() {
                self.make(user, &file);
            }
        }
        self.undo(&Undo::Nothing { file });
    }

    /// Renames a lock file of the user's: to that of another one or of a missing one, or away. So
    /// it sometimes comes back.
    pub fn rename_own(&mut self) {
        let user = self.choose_user();
        let Some((from, inode)) = self.choose_own(user) else { return };
        let others: Vec<String> = match self.rng.u32(..3) {
            0 => self.missing(),
            1 => self.own(user).into_iter().map(|it| it.0).collect(),
            _ => vec![],
        };
        let to = self.rng.choice(others.into_iter().filter(|it| *it != from).collect::<Vec<_>>());
        let path = match &to {
            Some(to) => self.path(to),
            None => self.elsewhere(user),
        };
        let Ok(opened) = open_lock_file(&self.path(&from)) else { return };
        if opened.metadata().unwrap().ino() != inode {
            return;
        }
        {
            let mut state = self.world.state();
            for file in [Some(&from), to.as_ref()].into_iter().flatten() {
                state.meddled.insert(file.clone(), None);
            }
            // Noted before it has another name, since a build that begins may be quick.
            let (names, _) = state.renamed.entry(inode).or_insert((String::new(), opened));
            names.push_str(&format!("({from}) "));
        }
        if self.tell(user, &Deed::Rename { from: self.path(&from), to: path.clone() }) {
            self.count(RENAMED);
        }
        self.undo(&Undo::Nothing { file: from.clone() });
        match to {
            Some(file) => self.undo(&Undo::Nothing { file }),
            None => {
                self.later(20, 2000, Repair::Meddled(Undo::Elsewhere { user, file: from, path }))
            }
        }
    }

    /// Links any lock file elsewhere. A lock file with two links is refused.
    fn link_elsewhere(&mut self) {
        let user = self.choose_user();
        let Some(file) = self.choose_file() else { return };
        let (from, to) = (self.path(&file), self.elsewhere(user));
        self.world.state().meddled.insert(file.clone(), None);
        if self.tell(user, &Deed::HardLink { from, to: to.clone() }) {
            self.count("user links a lock file elsewhere");
        }
        self.later(20, 300, Repair::Meddled(Undo::Elsewhere { user, file, path: to }));
    }

    /// Links a file from the user's own folder to the place of a missing lock file.
    fn link_back(&mut self) {
        let user = self.choose_user();
        let folder = self.world.elsewhere(self.neighbours[user].user);
        let Some(from) = self.rng.choice(files_below(&folder)) else { return };
        let Ok(found) = fs::symlink_metadata(&from) else { return };
        // A file that a cleaner has removed is judged by its inode, and must not come back.
        if self.world.state().displaced.contains_key(&found.ino()) {
            return;
        }
        let Some(file) = self.rng.choice(self.missing()) else { return };
        self.world.state().meddled.insert(file.clone(), None);
        if self.tell(user, &Deed::Rename { from, to: self.path(&file) }) {
            self.count("user links a file back");
        }
        self.later(20, 300, Repair::Meddled(Undo::Obstacle { user, file }));
    }

    /// Writes a record that another process holds the lock, or that a build failed. Sometimes the
    /// user holds the lock.
    pub fn forge_a_record(&mut self) {
        let user = self.choose_user();
        let Some(file) = self.choose_file() else { return };
        let text = self.forged();
        if self.tell(user, &Deed::Write { path: self.path(&file), text }) {
            self.count(FORGED);
            if self.rng.u32(..3) == 0 {
                self.take_the_flock_of(user, &file);
            }
        }
    }

    fn forged(&mut self) -> String {
        // A process above all calls, one of the calls, process 1, or none at all.
        let calls: Vec<u32> = self.world.state().calls.keys().copied().collect();
        let of_a_call = self.rng.choice(calls).unwrap_or(1);
        let us = std::process::id();
        let pid = self.rng.choice([us, of_a_call, of_a_call, 1, u32::MAX]).unwrap();
        let resource = self.rng.choice(Resource::all()).unwrap();
        let (tag, n) = (resource.text, self.rng.u8(..));
        match self.rng.u32(..6) {
            0 => "\u{1b}[2J nonsense".to_owned(),
            1 => format!("{{\"build\":\"{n}\",\"status\":0}}\n"),
            2 => format!("{{\"build\":\"{n}\",\"status\":{n}}}\n"),
            _ => format!(
                "{{\"pid\":{pid},\"user\":\"root\",\"host\":\"host\",\"tag\":\"{tag}\",\
                 \"command\":\"docker build\",\"since\":\"2000-01-01T00:00:00Z\",\
                 \"version\":\"0.1.0\",\"build\":\"{n}\"}}\n"
            ),
        }
    }

    fn touch(&mut self) {
        let user = self.choose_user();
        let Some(path) = self.choose_file().map(|file| self.path(&file)) else { return };
        let deed = if self.rng.bool() { Deed::Truncate(path) } else { Deed::Touch(path) };
        if self.tell(user, &deed) {
            self.count("user empties or touches a file");
        }
    }

    fn take_a_flock(&mut self) {
        let user = self.choose_user();
        let Some(file) = self.choose_file_or_guard() else { return };
        self.take_the_flock_of(user, &file);
    }

    fn take_the_flock_of(&mut self, user: usize, file: &str) {
        let (shared, milliseconds) = (self.rng.bool(), self.rng.u64(1..150));
        if self.tell(user, &Deed::Flock { path: self.path(file), shared, milliseconds }) {
            self.count("user takes a flock");
        }
    }

    fn take_a_range_lock(&mut self) {
        let user = self.choose_user();
        let Some(file) = self.choose_file_or_guard() else { return };
        let all = [RangeKind::Process, RangeKind::OpenFile, RangeKind::Shared];
        let deed = Deed::Range {
            path: self.path(&file),
            start: if self.rng.bool() { 0 } else { self.rng.i64(0..i64::MAX / 2) },
            length: if self.rng.bool() { 0 } else { self.rng.i64(1..i64::MAX / 2) },
            kind: self.rng.choice(all).unwrap(),
            milliseconds: self.rng.u64(1..150),
        };
        if self.tell(user, &deed) {
            self.count("user takes a range lock");
        }
    }

    /// Takes a lease on a lock file of the user's, so that no other process can open it.
    fn take_a_lease(&mut self) {
        let user = self.choose_user();
        let Some((file, _)) = self.rng.choice(self.own(user)) else { return };
        let deed = Deed::Lease { path: self.path(&file), milliseconds: self.rng.u64(1..150) };
        if self.tell(user, &deed) {
            self.count("user takes a lease");
        }
    }

    fn change_a_mode(&mut self) {
        let user = self.choose_user();
        let Some((file, _)) = self.choose_own(user) else { return };
        let mode = self.choose_mode();
        self.world.state().meddled.insert(file.clone(), None);
        if self.tell(user, &Deed::Chmod { path: self.path(&file), mode }) {
            self.count("user changes a mode");
        }
        self.later(20, 300, Repair::Meddled(Undo::Obstacle { user, file }));
    }

    fn choose_mode(&mut self) -> u32 {
        self.rng.choice([0, 0o400, 0o444, 0o600, 0o644, 0o2666, 0o4777, 0o1000]).unwrap()
    }

    /// Puts something else in the place of a lock file.
    fn plant_an_obstacle(&mut self) {
        let user = self.choose_user();
        let own = self.choose_own(user).filter(|_| self.rng.u32(..4) == 0);
        let Some(file) = own.map(|it| it.0).or_else(|| self.rng.choice(self.missing())) else {
            return;
        };
        let path = self.path(&file);
        self.world.state().meddled.insert(file.clone(), None);
        if path.exists() {
            self.tell(user, &Deed::Remove(path.clone()));
        }
        let deed = match self.rng.u32(..6) {
            0 => Deed::Folder(path),
            1 => Deed::Pipe(path),
            2 => Deed::Symlink { to: self.world.precious(), path },
            3 => Deed::Symlink { to: self.choose_target(), path },
            _ => Deed::Create { path, mode: self.choose_mode() },
        };
        if self.tell(user, &deed) {
            self.count("user plants an obstacle");
        }
        self.later(20, 300, Repair::Meddled(Undo::Obstacle { user, file }));
    }

    fn choose_target(&mut self) -> PathBuf {
        let resource = self.rng.choice(Resource::all()).unwrap();
        self.path(&resource.file)
    }

    /// Undoes what a user has done, as that user if the kernel allows it.
    pub fn undo(&mut self, undo: &Undo) {
        let file = match undo {
            Undo::Obstacle { user, file } => {
                self.clear(*user, file);
                file
            }
            Undo::Elsewhere { user, file, path } => {
                self.tell(*user, &Deed::Remove(path.clone()));
                file
            }
            Undo::Nothing { file } => file,
        };
        // Another deed may have been done to it meanwhile, which is not over yet.
        let is_of_file =
            |repair: &Repair| matches!(repair, Repair::Meddled(it) if it.file() == file);
        let is_over = !self.due.iter().any(|(_, repair)| is_of_file(repair));
        let mut state = self.world.state();
        if is_over {
            state.meddled.insert(file.clone(), Some(Instant::now()));
        }
        // A caller in a turnstile may have lost it.
        for (id, _) in CACHES {
            if Resource::new(crate::plan::CACHE_LOCKS, id).files().contains(file) {
                state.caches.turnstile_gone(id);
            }
        }
    }

    fn clear(&mut self, user: usize, file: &str) {
        let path = self.path(file);
        let Ok(found) = fs::symlink_metadata(&path) else { return };
        let is_usable = found.is_file() && found.mode() & 0o7777 == 0o666;
        if is_usable && found.nlink() == 1 {
            return;
        }
        if found.is_file() && !is_usable && self.rng.bool() {
            self.tell(user, &Deed::Chmod { path: path.clone(), mode: 0o666 });
        } else {
            self.tell(user, &Deed::Remove(path.clone()));
        }
        // Root must repair what root owns. A lock file under its own name is left there.
        let Ok(found) = fs::symlink_metadata(&path) else { return };
        if found.is_file() && found.nlink() > 1 {
            _ = fs::remove_file(path);
        } else if found.is_file() && found.mode() & 0o7777 != 0o666 {
            _ = fs::set_permissions(path, fs::Permissions::from_mode(0o666));
        }
    }

    /// Lets a user do something. Returns whether the kernel allowed it.
    fn tell(&mut self, user: usize, deed: &Deed) -> bool {
        let done = self.neighbours[user].order(deed);
        let mut state = self.world.state();
        self.world
            .note(&mut state, format!("user {}: {deed:?}: {done:?}", self.neighbours[user].user));
        if done.is_err() {
            state.strike("user is refused");
        }
        done.is_ok()
    }

    fn count(&self, what: &'static str) {
        self.world.state().strike(what);
    }

    fn path(&self, file: &str) -> PathBuf {
        self.world.lock_folder().join(file)
    }

    fn elsewhere(&mut self, user: usize) -> PathBuf {
        let name = format!("{:x}", self.rng.u32(..));
        self.world.elsewhere(self.neighbours[user].user).join(name)
    }

    fn choose_user(&mut self) -> usize {
        self.rng.usize(..self.neighbours.len())
    }

    /// Returns the names of lock files that any call may want. The caches' memory is left alone.
    fn names(&self) -> Vec<String> {
        let files = Resource::all().into_iter().flat_map(|it| it.files());
        files.filter(|file| file.ends_with(".lock")).collect()
    }

    fn missing(&self) -> Vec<String> {
        let mut names = self.names();
        names.retain(|file| fs::symlink_metadata(self.path(file)).is_err());
        names
    }

    /// Returns a user's own lock files, with their inodes.
    fn own(&self, user: usize) -> Vec<(String, u64)> {
        let user = self.neighbours[user].user;
        let own = |file: String| {
            let found = fs::symlink_metadata(self.path(&file)).ok()?;
            (found.is_file() && found.uid() == user).then(|| (file, found.ino()))
        };
        self.names().into_iter().filter_map(own).collect()
    }

    /// Chooses a lock file of the user's, mostly one that a build will hold for long.
    fn choose_own(&mut self, user: usize) -> Option<(String, u64)> {
        let own = self.own(user);
        if self.rng.u32(..8) == 0 {
            return self.rng.choice(own);
        }
        let state = self.world.state();
        let held_until = |inode| {
            let builds = state.active.iter().filter(|build| build.holds(inode));
            builds.map(|build| build.until).max()
        };
        let held = own.into_iter().filter_map(|it| Some((held_until(it.1)?, it)));
        held.max_by_key(|it| it.0).map(|it| it.1)
    }

    /// Chooses a lock file, mostly one that a build needs.
    fn choose_file(&mut self) -> Option<String> {
        let needed: Vec<String> =
            self.world.state().active.iter().flat_map(|build| build.lock_files()).collect();
        let chosen = if self.rng.u32(..3) > 0 { self.rng.choice(needed) } else { None };
        chosen.or_else(|| self.rng.choice(self.names()))
    }

    fn choose_file_or_guard(&mut self) -> Option<String> {
        let guard = GUARD.trim_start_matches('/').to_owned();
        if self.rng.u32(..3) == 0 { Some(guard) } else { self.choose_file() }
    }
}
