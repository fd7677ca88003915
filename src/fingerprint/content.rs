//! Hashes the content of files, with several threads where there is enough to hash.

use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::hash_cache::Digest;
use super::stamp::{Stamp, kind};

/// What is read at once.
const BUFFER: usize = 128 * 1024;
/// A file that another process writes may be still the next time.
const TRIES: usize = 3;

/// A file to hash.
pub(super) struct Job {
    /// Where its entry stands among those of the walk.
    pub(super) entry: usize,
    pub(super) size: u64,
}

/// A file that was hashed.
pub(super) struct Hashed {
    pub(super) entry: usize,
    /// As it was when its content was read.
    pub(super) stat: Stat,
    pub(super) digest: Digest,
}

/// Why something in a context cannot be hashed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Problem {
    Failed(Errno),
    /// It changed while it was read.
    Changing,
    /// Another program has a lease on it, and is asked to give it up.
    Leased,
}

impl From<Errno> for Problem {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::NXIO => {
                Problem::Changing
            }
            Errno::AGAIN => Problem::Leased,
            error => Problem::Failed(error),
        }
    }
}

/// Hashes files, whose paths are relative to the root. After a problem, returns the entry that has
/// it.
pub(super) fn hash_all<'p>(
    root: &OwnedFd,
    jobs: &[Job],
    path: impl Fn(usize) -> &'p [u8] + Sync,
) -> Result<Vec<Hashed>, (usize, Problem)> {
    /// A thread that takes several at once disturbs the others less.
    const CHUNK: usize = 16;
    let next = AtomicUsize::new(0);
    let has_failed = AtomicBool::new(false);
    let results = Mutex::new((Vec::with_capacity(jobs.len()), None));
    let work = || {
        let mut buffer = vec![0; BUFFER];
        while !has_failed.load(Ordering::Relaxed) {
            let chunk = jobs.chunks(CHUNK).nth(next.fetch_add(1, Ordering::Relaxed));
            let Some(chunk) = chunk else { return };
            let mut hashed = Vec::with_capacity(CHUNK);
            let mut failed = None;
            for job in chunk {
                match hash_file(root, path(job.entry), &mut buffer) {
                    Ok((stat, digest)) => hashed.push(Hashed { entry: job.entry, stat, digest }),
                    Err(problem) => {
                        has_failed.store(true, Ordering::Relaxed);
                        failed = Some((job.entry, problem));
                        break;
                    }
                }
            }
            let Ok(mut results) = results.lock() else { return };
            results.0.append(&mut hashed);
            results.1 = results.1.or(failed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads(jobs) {
            // With fewer threads it takes longer.
            _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let (hashed, failed) = results.into_inner().unwrap_or_default();
    failed.map_or(Ok(hashed), Err)
}

/// Starting a thread takes as long as hashing some files.
fn threads(jobs: &[Job]) -> usize {
    const ENOUGH_FILES: usize = 128;
    const ENOUGH_BYTES: u64 = 4 << 20;
    const MAX: usize = 8;
    let bytes: u64 = jobs.iter().map(|job| job.size).sum();
    if jobs.len() < ENOUGH_FILES && bytes < ENOUGH_BYTES {
        return 1;
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.min(MAX).min(jobs.len())
}

fn hash_file(root: &OwnedFd, path: &[u8], buffer: &mut [u8]) -> Result<(Stat, Digest), Problem> {
    for _ in 0..TRIES {
        let file = open_in(root, path, OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let before = rustix::fs::fstat(&file)?;
        if kind(&before) != FileType::RegularFile {
            return Err(Problem::Changing);
        }
        let mut file = std::fs::File::from(file);
        let attributes = attributes(&file)?;
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        loop {
            let count = match file.read(buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO).into());
                }
            };
            size += count as u64;
            hasher.update(&buffer[..count]);
            // A file that grows without end must not keep this process reading.
            if count == 0 || size > Stamp::new(&before).size {
                break;
            }
        }
        let after = rustix::fs::fstat(&file)?;
        if Stamp::new(&before) == Stamp::new(&after) && size == Stamp::new(&after).size {
            let content = *hasher.finalize().as_bytes();
            return Ok((after, with_attributes(content, attributes)));
        }
    }
    Err(Problem::Changing)
}

/// Opens something below the root without following links.
pub(super) fn open_in(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let none = Mode::empty();
    let below = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match retry_on_intr(|| rustix::fs::openat2(root, path, flags, none, below)) {
        // Linux before 5.6, and containers that do not know this system call.
        Err(Errno::NOSYS | Errno::PERM) => {
            retry_on_intr(|| rustix::fs::openat(root, path, flags, none))
        }
        opened => opened,
    }
}

/// Adds extended attributes to a digest, if there are any.
pub(super) fn with_attributes(content: Digest, attributes: Option<Digest>) -> Digest {
    let Some(attributes) = attributes else { return content };
    let mut hasher = blake3::Hasher::new_derive_key("buildlock: with extended attributes");
    hasher.update(&content);
    hasher.update(&attributes);
    *hasher.finalize().as_bytes()
}

/// Returns the hash of those extended attributes that can get into an image. `COPY` keeps them, and
/// `security.capability` makes a program more powerful than others.
pub(super) fn attributes(file: impl AsFd) -> Result<Option<Digest>, Errno> {
    /// In bytes, of a list and of a value (linux/limits.h).
    const LONGEST: usize = 65536;
    let mut small = [0; 256];
    let list = match rustix::fs::flistxattr(&file, &mut small[..]) {
        Ok(0) => return Ok(None),
        Ok(length) => small[..length].to_vec(),
        Err(Errno::RANGE) => {
            let mut list = vec![0; LONGEST];
            let length = rustix::fs::flistxattr(&file, &mut list[..])?;
            list.truncate(length);
            list
        }
        // The file system has none.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut names: Vec<&[u8]> = list.split(|byte| *byte == 0).filter(|it| counts(it)).collect();
    if names.is_empty() {
        return Ok(None);
    }
    names.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    let mut value = vec![0; LONGEST];
    for name in names {
        let length = match rustix::fs::fgetxattr(&file, name, &mut value[..]) {
            Ok(length) => length,
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => continue,
            Err(error) => return Err(error),
        };
        for part in [name, &value[..length]] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
    Ok(Some(*hasher.finalize().as_bytes()))
}

/// Returns whether BuildKit's own cache looks at an attribute (`contenthash`). The others belong to
/// the machine, like labels of SELinux.
fn counts(name: &[u8]) -> bool {
    let is_of_machine = name.starts_with(b"security.") || name.starts_with(b"system.");
    !name.is_empty() && (name == b"security.capability" || !is_of_machine)
}
