//! The engine's client, as the build command runs it, and a foreign program that holds a lock.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the client asks the engine for, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub call: usize,
    /// The descriptors that it has inherited, from 3 on.
    pub inherited: Vec<Descriptor>,
}

/// An open descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    pub number: u32,
    /// What it refers to.
    pub link: String,
    pub inode: u64,
    /// The lock that it keeps, as the kernel tells it.
    pub lock: Option<Lock>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lock {
    Exclusive,
    Shared,
}

/// Plays `docker build …`. The engine knows what is built, and how that ends, by the call's number.
pub fn build() -> ExitCode {
    let inherited = inherited();
    if std::env::var_os("CHAOS_IGNORE_TERM").is_some() {
        use nix::sys::signal::{SigHandler, Signal, signal};
        // SAFETY: no handler is installed, and none is replaced.
        #[allow(unsafe_code)]
        unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }.unwrap();
    }
    if std::env::var_os("CHAOS_CLOSE").is_some() {
        for Descriptor { number, .. } in &inherited {
            // SAFETY: nothing in this program uses what it has inherited.
            #[allow(unsafe_code)]
            unsafe {
                nix::libc::close(number.cast_signed())
            };
        }
    }
    let variable = |name| std::env::var(name).unwrap_or_else(|_| panic!("no {name}"));
    let order = Order { call: variable("CHAOS_CALL").parse().unwrap(), inherited };
    let host = variable("DOCKER_HOST");
    let cannot = |error: std::io::Error| {
        eprintln!("Cannot connect to the Docker daemon at {host}: {error}");
        ExitCode::FAILURE
    };
    let mut engine = match UnixStream::connect(host.trim_start_matches("unix://")) {
        Ok(engine) => engine,
        Err(error) => return cannot(error),
    };
    let line = format!("BUILD {}\n", serde_json::to_string(&order).unwrap());
    let mut status = String::new();
    let answered =
        engine.write_all(line.as_bytes()).and_then(|()| engine.read_to_string(&mut status));
    match (answered, status.trim().parse::<u8>()) {
        (Ok(_), Ok(status)) => ExitCode::from(status),
        (Ok(_), Err(_)) => cannot(std::io::ErrorKind::UnexpectedEof.into()),
        (Err(error), _) => cannot(error),
    }
}

/// Returns the open descriptors from 3 on.
pub fn inherited() -> Vec<Descriptor> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        let link = link.to_string_lossy().into_owned();
        // Without the one by which they are listed.
        if number < 3 || link.starts_with("/proc/") {
            continue;
        }
        let inode = std::fs::metadata(entry.path()).map_or(0, |metadata| metadata.ino());
        found.push(Descriptor { number, link, inode, lock: lock_of(number) });
    }
    found
}

/// Returns the lock of one of our open files, whichever process took it (proc_pid_fdinfo(5)).
fn lock_of(number: u32) -> Option<Lock> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
    let line = info.lines().find(|line| line.starts_with("lock:") && line.contains("FLOCK"))?;
    Some(if line.contains("WRITE") { Lock::Exclusive } else { Lock::Shared })
}

/// Plays `hold FILE MILLISECONDS shared|exclusive`: takes a lock as a foreign script does.
pub fn hold(words: &[String]) -> ExitCode {
    // It may have been removed.
    let Ok(file) = File::open(&words[0]) else { return ExitCode::SUCCESS };
    let tried = match words[2].as_str() {
        "shared" => fs2::FileExt::try_lock_shared(&file),
        _ => fs2::FileExt::try_lock_exclusive(&file),
    };
    if tried.is_ok() {
        std::thread::sleep(Duration::from_millis(words[1].parse().unwrap()));
    }
    ExitCode::SUCCESS
}
