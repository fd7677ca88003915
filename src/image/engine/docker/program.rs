//! What runs when docker is called: docker itself, a script, or podman.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::command::Client;

/// What answers to the name of docker.
pub(crate) enum Program {
    /// Docker's client.
    Binary,
    /// A script, or a client that does not see the same files as we do.
    Script,
    Podman,
}

impl Program {
    /// Finds out what `client` runs. That is the file `program`, if it is known already.
    pub(crate) fn of(client: &Client, program: Option<&Path>) -> Self {
        let found = program.map(Path::to_owned);
        let Some(path) = found.or_else(|| which::which(&client.program).ok()) else {
            return Program::Binary;
        };
        let real = path.canonicalize().unwrap_or(path);
        match real.file_name().and_then(|name| name.to_str()) {
            Some("podman") => Program::Podman,
            // A snap has its own home folder, and its docker reads its files there.
            Some("snap") => Program::Script,
            _ => Program::of_file(&real),
        }
    }

    fn of_file(file: &Path) -> Self {
        // A file that cannot be read is not a script: its interpreter could not read it either.
        let Some(script) = start_of_script(file) else { return Program::Binary };
        // The package podman-docker: exec /usr/bin/podman "$@"
        if String::from_utf8_lossy(&script).contains("podman \"$@\"") {
            Program::Podman
        } else {
            Program::Script
        }
    }
}

/// Returns the start of a file that is a script.
fn start_of_script(file: &Path) -> Option<Vec<u8>> {
    /// What a script begins with (execve(2)).
    const MARK: [u8; 2] = *b"#!";
    /// More than a stand-in for docker needs, which is a line or two.
    const START: u64 = 4096;
    let mut file = File::open(file).ok()?;
    let mut mark = [0; MARK.len()];
    file.read_exact(&mut mark).ok().filter(|()| mark == MARK)?;
    let mut start = Vec::new();
    _ = file.take(START).read_to_end(&mut start);
    Some(start)
}
