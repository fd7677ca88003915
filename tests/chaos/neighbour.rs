//! An ordinary user beside the calls: a process that does to the lock folder what it is told to do,
//! as far as the kernel allows it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigHandler, Signal};
use serde::{Deserialize, Serialize};

use crate::world::World;

/// Something that an ordinary user may try.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Deed {
    /// Creates a regular file.
    Create {
        path: PathBuf,
        mode: u32,
    },
    Folder(PathBuf),
    Pipe(PathBuf),
    Symlink {
        to: PathBuf,
        path: PathBuf,
    },
    /// Removes a file or an empty folder.
    Remove(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    HardLink {
        from: PathBuf,
        to: PathBuf,
    },
    /// Replaces the content of a file.
    Write {
        path: PathBuf,
        text: String,
    },
    /// Empties the file.
    Truncate(PathBuf),
    /// Sets its times.
    Touch(PathBuf),
    Chmod {
        path: PathBuf,
        mode: u32,
    },
    /// Takes `flock(2)` for some time, if the lock is free.
    Flock {
        path: PathBuf,
        shared: bool,
        milliseconds: u64,
    },
    /// Locks a range of bytes for some time, up to the end if `length` is 0.
    Range {
        path: PathBuf,
        start: i64,
        length: i64,
        kind: RangeKind,
        milliseconds: u64,
    },
    /// Takes a lease (`F_SETLEASE`) for some time, so that no other process can open the file.
    Lease {
        path: PathBuf,
        milliseconds: u64,
    },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum RangeKind {
    /// A lock of the process, for writing.
    Process,
    /// A lock of the open file, for writing.
    OpenFile,
    /// A lock of the open file, for reading.
    Shared,
}

/// The process of one user.
pub struct Neighbour {
    pub user: u32,
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Neighbour {
    pub fn start(world: &World, user: u32) -> Self {
        // The copy in the world's folder, since other users may not enter this program's folder.
        let mut process = world
            .command(world.folder.join("bin/docker"))
            .arg0("chaos")
            .arg("neighbour")
            .uid(user)
            .gid(user)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a neighbour");
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Neighbour { user, process, orders, answers }
    }

    /// Lets it do something, and returns the kernel's answer.
    pub fn order(&mut self, deed: &Deed) -> Result<(), String> {
        writeln!(self.orders, "{}", serde_json::to_string(deed).unwrap()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        match serde_json::from_str::<Option<String>>(&answer).expect("the neighbour's answer") {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Ends it, which releases all its locks.
    pub fn stop(self) {
        let Neighbour { mut process, orders, .. } = self;
        drop(orders);
        _ = process.wait();
    }
}

/// Plays `neighbour`: does what each line of stdin says, and answers each with a line.
pub fn program() -> ExitCode {
    // SIGIO says that a lease must be given back, which happens soon enough anyway.
    // SAFETY: no handler is installed, and none is replaced.
    #[allow(unsafe_code)]
    unsafe { nix::sys::signal::signal(Signal::SIGIO, SigHandler::SigIgn) }.unwrap();
    for line in std::io::stdin().lines() {
        let deed = serde_json::from_str(&line.unwrap()).unwrap();
        let error = deed_done(deed).err().map(|error| error.to_string());
        println!("{}", serde_json::to_string(&error).unwrap());
    }
    ExitCode::SUCCESS
}

fn deed_done(deed: Deed) -> std::io::Result<()> {
    // Another user's pipe must not block it.
    let open = |path: &PathBuf| {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        File::options().read(true).write(true).custom_flags(flags).open(path)
    };
    match deed {
        Deed::Create { path, mode } => {
            let file = File::options().write(true).create_new(true).mode(mode).open(path)?;
            file.set_permissions(fs::Permissions::from_mode(mode))
        }
        Deed::Folder(path) => fs::create_dir(path),
        Deed::Pipe(path) => {
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            let kind = rustix::fs::FileType::Fifo;
            Ok(rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0)?)
        }
        Deed::Symlink { to, path } => std::os::unix::fs::symlink(to, path),
        Deed::Remove(path) => fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)),
        Deed::Rename { from, to } => fs::rename(from, to),
        Deed::HardLink { from, to } => fs::hard_link(from, to),
        Deed::Write { path, text } => {
            let mut file = open(&path)?;
            file.set_len(0)?;
            file.write_all(text.as_bytes())
        }
        Deed::Truncate(path) => open(&path)?.set_len(0),
        Deed::Touch(path) => open(&path)?.set_modified(std::time::SystemTime::now()),
        Deed::Chmod { path, mode } => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        Deed::Flock { path, shared, milliseconds } => {
            let file = open(&path)?;
            if shared {
                fs2::FileExt::try_lock_shared(&file)?;
            } else {
                fs2::FileExt::try_lock_exclusive(&file)?;
            }
            keep_open(file, milliseconds);
            Ok(())
        }
        Deed::Lease { path, milliseconds } => {
            let file = open(&path)?;
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            // SAFETY: a system call on an open descriptor.
            #[allow(unsafe_code)]
            let leased = unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) };
            if leased == -1 {
                return Err(std::io::Error::last_os_error());
            }
            keep_open(file, milliseconds);
            Ok(())
        }
        Deed::Range { path, start, length, kind, milliseconds } => {
            let file = open(&path)?;
            lock_range(&file, start, length, kind)?;
            keep_open(file, milliseconds);
            Ok(())
        }
    }
}

fn keep_open(file: File, milliseconds: u64) {
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(milliseconds));
        drop(file);
    });
}

fn lock_range(file: &File, start: i64, length: i64, kind: RangeKind) -> std::io::Result<()> {
    let (command, kind) = match kind {
        RangeKind::Process => (libc::F_SETLK, libc::F_WRLCK),
        RangeKind::OpenFile => (libc::F_OFD_SETLK, libc::F_WRLCK),
        RangeKind::Shared => (libc::F_OFD_SETLK, libc::F_RDLCK),
    };
    // SAFETY: zeros are valid for this type, and the kernel reads it before it returns.
    #[allow(unsafe_code)]
    let locked = unsafe {
        let mut range: libc::flock = std::mem::zeroed();
        range.l_type = kind as libc::c_short;
        range.l_whence = libc::SEEK_SET as libc::c_short;
        range.l_start = start;
        range.l_len = length;
        libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(file), command, &raw const range)
    };
    if locked == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
