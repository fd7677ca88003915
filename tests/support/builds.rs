//! The stand-in engine: what it is told, and what it has built.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fixture::Fixture;

impl Fixture {
    /// Puts the stand-in into PATH under this name (docker, podman, nerdctl).
    pub fn install_engine(&self, name: &str) {
        symlink(stand_in(), self.path("bin").join(name)).unwrap();
    }

    /// Sets what the stand-in does from now on: assignments of a shell, replacing earlier ones.
    pub fn steer(&self, assignments: &str) {
        let fresh = self.path("steer.new");
        fs::write(&fresh, assignments).unwrap();
        fs::rename(fresh, self.path("steer")).unwrap();
    }

    /// Makes each build stop at the gate from now on.
    pub fn hold_builds(&self) {
        let gate = self.path("gate");
        let status = Command::new("mkfifo").arg(&gate).status().unwrap();
        assert!(status.success(), "mkfifo {gate:?}");
        // Opened for both directions, so that neither side blocks in open, and kept open, so that
        // no reader meets an end of file.
        let file = OpenOptions::new().read(true).write(true).open(gate).unwrap();
        *self.gate.borrow_mut() = Some(file);
    }

    /// Lets this many builds pass the gate, now or later.
    pub fn let_builds_go(&self, n: usize) {
        let gate = self.gate.borrow();
        let mut gate = gate.as_ref().expect("hold_builds comes first");
        gate.write_all("\n".repeat(n).as_bytes()).unwrap();
    }

    /// Lets all builds pass the gate, now and later.
    pub fn release_builds(&self) {
        self.let_builds_go(30_000);
    }

    /// Makes an image appear.
    pub fn make_image(&self, tag: &str) {
        let path = self.path("images").join(tag);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "linux/amd64\n").unwrap();
    }

    /// Does the engine have this image? The name must include the tag.
    pub fn has_image(&self, tag: &str) -> bool {
        self.path("images").join(tag).is_file()
    }

    /// Returns the starts and ends of builds, in the order in which they happened.
    pub fn build_events(&self) -> Vec<BuildEvent> {
        self.lines("builds.log").iter().map(|line| BuildEvent::parse(line)).collect()
    }

    /// Returns how many builds of this tag have started.
    pub fn build_count(&self, tag: &str) -> usize {
        self.build_events().iter().filter(|e| e.is_start() && e.tag == tag).count()
    }

    /// Waits until this many builds have started, of any tag.
    pub fn wait_for_builds(&self, n: usize) {
        self.wait_for(&format!("{n} builds to start"), || {
            self.build_events().iter().filter(|e| e.is_start()).count() >= n
        });
    }

    /// Fails if two builds of one tag overlapped.
    pub fn assert_no_overlap(&self) {
        let mut running: Vec<BuildEvent> = Vec::new();
        for event in self.build_events() {
            if event.is_start() {
                let other = running.iter().find(|e| e.tag == event.tag);
                assert!(other.is_none(), "{event:?} began beside {other:?}\n{}", self.scene());
                running.push(event);
            } else {
                running.retain(|e| (&e.tag, e.pid) != (&event.tag, event.pid));
            }
        }
    }

    /// Returns the look-ups, a line each: `look TAG PID ANSWER VARIABLES : WORDS`.
    pub fn looks(&self) -> Vec<String> {
        self.lines("looks.log")
    }
}

/// One line of the stand-in's list of builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildEvent {
    /// The tag, as the engine keeps it.
    pub tag: String,
    /// The client's process.
    pub pid: u32,
    /// Since 1970.
    pub nanoseconds: u128,
    /// How the build ended (`0`, `143`, `killed`); none for a start.
    pub end: Option<String>,
}

impl BuildEvent {
    /// Is this the start of a build?
    pub fn is_start(&self) -> bool {
        self.end.is_none()
    }

    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        Self {
            tag: words[1].to_owned(),
            pid: words[2].parse().unwrap(),
            nanoseconds: words[3].parse().unwrap_or_default(),
            end: (words[0] == "end").then(|| words[4].to_owned()),
        }
    }
}

/// Returns the stand-in engine's script.
pub fn stand_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-in/docker")
}
