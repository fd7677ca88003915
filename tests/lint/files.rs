//! Files that many of these tests write.

use std::fs;

use super::support::{Finished, Fixture};

pub const RACE: &str = "FROM a\nRUN --mount=type=cache,target=/root/.m2 mvn\n";

pub const UNKNOWN: &str = "FROM a\nRUN --mount=type=cache,target=/strange x\n";

pub const TWO_OF_ONE: &str = "\
services:
  a: {build: ., image: \"x:1\"}
  b:
    build: {context: .}
    image: x:1
  c: {image: x:1}
";

pub fn write(f: &Fixture, name: &str, text: &str) {
    fs::write(f.work_dir().join(name), text).unwrap();
}

/// Writes a file below the work folder, and creates the folders above it.
pub fn write_below(f: &Fixture, name: &str, text: &str) {
    fs::create_dir_all(f.work_dir().join(name).parent().unwrap()).unwrap();
    write(f, name, text);
}

/// Returns what a run printed on stdout.
pub fn stdout(run: &Finished) -> String {
    String::from_utf8(run.stdout.clone()).unwrap()
}
