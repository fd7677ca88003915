//! Gates that hold scripts up until the test lets them go on.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::fixture::Fixture;

/// Something that scripts wait at (`read _ <"$STANDIN/NAME"`) until the test lets them go on.
pub struct Gate {
    /// The path, for scripts.
    pub path: PathBuf,
    file: File,
}

impl Gate {
    /// Makes a closed gate.
    pub fn new(f: &Fixture, name: &str) -> Self {
        let path = f.path(name);
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success(), "mkfifo {path:?}");
        // Opened for both directions, so that nobody blocks in open or meets an end of file.
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Self { path, file }
    }

    /// Lets one reader go on, now or later.
    pub fn open(&self) {
        self.say("");
    }

    /// Lets one reader go on, and tells it something.
    pub fn say(&self, line: &str) {
        (&self.file).write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Returns the path, for arguments.
    pub fn arg(&self) -> &str {
        self.path.to_str().unwrap()
    }
}
