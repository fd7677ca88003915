//! What the kernel knows about locks: its list of them, and which process has a descriptor of one.
//!
//! The list (`/proc/locks`, proc_locks(5)) names the process that took a lock. That is good enough
//! to tell the user which holder is waited for, but proves nothing. The process may have ended
//! while another inherited its lock, and its number may belong to a new process by now.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::fs::{AtFlags, CWD, Stat, StatxFlags};
use rustix::time::{ClockId, clock_gettime};

use super::key::LockMode;
use crate::proc;

/// The kernel's list of `flock(2)` locks at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KernelLocks {
    locks: Vec<Entry>,
}

/// The system call that took a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// `flock(2)`, for the whole file.
    Flock,
    /// `fcntl(2)` with `F_OFD_SETLK`, from this byte on.
    Range(u64),
}

/// A line of the kernel's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The process waits for the lock, and does not hold it.
    waiting: bool,
    /// The lock is shared. Shared locks sort after exclusive ones.
    shared: bool,
    /// The process that took the lock. The kernel names none for a range.
    pid: u32,
    device: (u32, u32),
    inode: u64,
    kind: Kind,
}

impl KernelLocks {
    /// Reads the list three times, and returns what at least two readings show. Without such a
    /// list in /proc, returns no locks.
    ///
    /// # Errors
    /// The list takes too long to read: any user can take any number of locks.
    pub(crate) fn read() -> Result<Self> {
        const WITHIN: Duration = Duration::from_secs(10);
        let until = Instant::now() + WITHIN;
        let mut all: Vec<Entry> = Vec::new();
        for _ in 0..3 {
            let Some(reading) = Self::read_once(until) else {
                bail!(
                    "the kernel's list of locks (/proc/locks) takes too long to read, because \
                     somebody holds very many"
                );
            };
            all.extend(reading.locks);
        }
        all.sort_unstable();
        let twice = all.chunk_by(|a, b| a == b).filter(|same| same.len() > 1);
        Ok(KernelLocks { locks: twice.map(|same| same[0]).collect() })
    }

    /// Reads the list once, in which lines may be missing. Returns `None` if that takes
    /// too long.
    fn read_once(until: Instant) -> Option<Self> {
        /// More than the kernel returns at once, so that the list is cut as seldom as possible.
        const AT_ONCE: usize = 64 * 1024;
        let mut text = Vec::new();
        let mut piece = vec![0; AT_ONCE];
        // The numbers in it, too, are those of the namespace in which /proc was mounted.
        let list = proc::is_ours().then(|| File::open("/proc/locks").ok()).flatten();
        let Some(mut list) = list else { return Some(Self::default()) };
        while let Ok(read @ 1..) = list.read(&mut piece) {
            text.extend_from_slice(&piece[..read]);
            if Instant::now() >= until {
                return None;
            }
        }
        Some(Self::parse(&String::from_utf8_lossy(&text)))
    }

    /// Returns the holders of the lock on the file, and whether they share it, once two readings in a
    /// row agree. The kernel returns its list page by page, so while other locks come and go a line
    /// may be missing or appear twice. Returns `None` if that takes longer than `within`.
    pub(super) fn holders_within(
        within: Duration,
        stat: &Stat,
        file: &File,
    ) -> Option<(Vec<u32>, bool)> {
        let until = Instant::now() + within;
        let read = || {
            let locks = Self::read_once(until)?;
            Some((locks.holders(stat, file), locks.is_shared(stat, file)))
        };
        let mut last = read()?;
        while let Some(now) = read() {
            if now == last {
                break;
            }
            last = now;
        }
        Some(last)
    }

    /// Reads the text of the kernel's list. Ignores lines about locks other than those of `flock(2)`.
    pub fn parse(text: &str) -> Self {
        let entries = text.lines().filter_map(Entry::parse);
        let mut locks: Vec<Entry> = entries.filter(|it| it.kind == Kind::Flock).collect();
        locks.sort_unstable();
        locks.dedup();
        KernelLocks { locks }
    }

    /// Returns the lines about a file.
    fn on<'a>(&'a self, stat: &'a Stat, file: &File) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let same_inode = |lock: &&Entry| lock.inode == stat.st_ino;
        let same_device = |lock: &Entry| {
            lock.device == (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev))
        };
        // overlayfs and btrfs show a file under another device than the kernel's list does.
        let devices_differ = !self.locks.iter().any(|lock| same_inode(&lock) && same_device(lock))
            && shows_another_device(file);
        self.locks.iter().filter(same_inode).filter(move |lock| devices_differ || same_device(lock))
    }

    /// Returns the processes that took the lock on the file: one, or all that share it.
    pub(crate) fn holders(&self, stat: &Stat, file: &File) -> Vec<u32> {
        self.on(stat, file).filter(|lock| !lock.waiting).map(|lock| lock.pid).collect()
    }

    /// Returns whether the lock on the file is shared.
    pub(crate) fn is_shared(&self, stat: &Stat, file: &File) -> bool {
        self.on(stat, file).any(|lock| !lock.waiting && lock.shared)
    }

    /// Returns how many processes wait for the lock on the file.
    pub(crate) fn waiters(&self, stat: &Stat, file: &File) -> usize {
        self.waiting(stat, file).len()
    }

    /// Returns the processes that wait for the lock on the file.
    pub(crate) fn waiting(&self, stat: &Stat, file: &File) -> Vec<u32> {
        self.on(stat, file).filter(|lock| lock.waiting).map(|lock| lock.pid).collect()
    }

    /// Returns the inodes of all locked files.
    pub fn inodes_held(&self) -> Vec<u64> {
        self.locks.iter().filter(|lock| !lock.waiting).map(|lock| lock.inode).collect()
    }
}

impl Entry {
    /// Reads a line such as `1: FLOCK  ADVISORY  WRITE 4242 fe:00:131090 0 EOF`. A waiter has `->`
    /// after the number. A range has `OFDLCK`, -1 for the process, and its first and last byte.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1).peekable();
        let waiting = words.next_if_eq(&"->").is_some();
        let call = words.next()?;
        let shared = words.nth(1)? != "WRITE";
        let pid = words.next()?;
        let mut place = words.next()?.split(':');
        let mut hex = || u32::from_str_radix(place.next()?, 16).ok();
        let device = (hex()?, hex()?);
        let inode = place.next()?.parse().ok()?;
        let (kind, pid) = match call {
            "FLOCK" => (Kind::Flock, pid.parse().ok()?),
            "OFDLCK" => (Kind::Range(words.next()?.parse().ok()?), 0),
            _ => return None,
        };
        Some(Entry { waiting, shared, pid, device, inode, kind })
    }

    fn mode(&self) -> LockMode {
        if self.shared { LockMode::Shared } else { LockMode::Exclusive }
    }
}

/// Returns whether the file system of this file shows another device number than the kernel uses.
fn shows_another_device(file: &File) -> bool {
    // From linux/magic.h.
    const OVERLAYFS: u32 = 0x794c_7630;
    const BTRFS: u32 = 0x9123_683e;
    rustix::fs::fstatfs(file).is_ok_and(|fs| matches!(fs.f_type as u32, OVERLAYFS | BTRFS))
}

/// How much a search through the descriptors of other processes may read. For each descriptor, the
/// kernel lists all locks on its file, and any user can take many thousands of them.
///
/// The time is this thread's own, so a search finds the same on a busy machine. It belongs to the
/// thread that has made the bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    descriptors: usize,
    /// By the clock of the processor time of this thread.
    until: Duration,
    /// Whether a search has ended at them.
    are_reached: bool,
}

impl Bounds {
    /// Returns the bounds for our own ancestors.
    pub(super) fn generous() -> Self {
        Self::of(usize::MAX, Duration::from_secs(2))
    }

    /// Returns the bounds for a process that a record names.
    pub(super) fn narrow() -> Self {
        Self::of(256, Duration::from_millis(5))
    }

    fn of(descriptors: usize, time: Duration) -> Self {
        Bounds { descriptors, until: thread_time() + time, are_reached: false }
    }

    /// Returns whether the search has to end.
    fn reach(&mut self) -> bool {
        self.are_reached |= self.descriptors == 0 || thread_time() >= self.until;
        self.are_reached
    }

    /// Returns whether a search has ended before it had seen everything.
    pub(super) fn are_reached(&self) -> bool {
        self.are_reached
    }
}

/// Returns how long the processor has worked for this thread.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// A lock that a process holds through one of its descriptors.
#[derive(Debug)]
pub(super) struct OpenLock {
    entry: Entry,
    /// `/proc/PID/fd/N`, which leads to the file itself, whatever has happened to its name.
    descriptor: PathBuf,
    /// The descriptor is closed when the process executes another program.
    closed_on_exec: bool,
}

impl OpenLock {
    /// Returns all locks that a process of this user or of root holds. Returns `None` for another
    /// user's process: it could replace a descriptor, while we examine it, by one that the kernel
    /// does not describe while a thread waits in it (an epoll), and so keep us waiting for ever.
    pub(super) fn all_of_trusted(process: u32, bounds: &mut Bounds) -> Option<Vec<Self>> {
        let opened = proc::open(process)?;
        let user = proc::user_in(&proc::below(&opened, "status"))?;
        proc::is_trusted(user).then(|| Self::all_in(process, &opened, bounds))?
    }

    /// Returns all locks that `process`, which must be this one or an ancestor, holds. Returns
    /// `None` if we may not look.
    fn all_of(process: u32, bounds: &mut Bounds) -> Option<Vec<Self>> {
        Self::all_in(process, &proc::open(process)?, bounds)
    }

    /// For each descriptor, the kernel lists the locks that were taken through it or its copies
    /// (proc_pid_fdinfo(5)).
    fn all_in(process: u32, opened: &OwnedFd, bounds: &mut Bounds) -> Option<Vec<Self>> {
        let folder = proc::below(opened, "fdinfo");
        let mut found = Vec::new();
        for one in std::fs::read_dir(folder).ok()?.flatten() {
            if bounds.reach() {
                tracing::debug!(
                    "process {process} has too many descriptors or locks to look at them all"
                );
                break;
            }
            bounds.descriptors -= 1;
            found.extend(Self::by_descriptor(process, &one.file_name(), &one.path()));
        }
        Some(found)
    }

    /// Returns the locks that one descriptor of `process` holds.
    fn by_descriptor(process: u32, number: &OsStr, information: &Path) -> Vec<Self> {
        // The kernel's number of O_CLOEXEC on every architecture but alpha and sparc.
        const CLOSE_ON_EXEC: u32 = 0o2_000_000;
        let Some(descriptor) = proc::path(process, "fd").map(|fd| fd.join(number)) else {
            return Vec::new();
        };
        // The link of a file is a path; that of a pipe, a socket or an epoll is not. Reading about
        // those can block: the kernel does not describe an epoll while its process waits in it.
        let leads_to_file = |link: PathBuf| link.as_os_str().as_bytes().starts_with(b"/");
        if !std::fs::read_link(&descriptor).is_ok_and(leads_to_file) {
            return Vec::new();
        }
        let text = read_start(information);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let flags = field("flags:").and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let closed_on_exec = flags.is_none_or(|flags| flags & CLOSE_ON_EXEC != 0);
        let locks = text.lines().filter_map(|line| Entry::parse(line.strip_prefix("lock:")?));
        locks
            .map(|entry| OpenLock { entry, descriptor: descriptor.clone(), closed_on_exec })
            .collect()
    }

    /// Returns the mode of this lock if `taker` took it on the file of `stat` with flock(2).
    pub(super) fn was_taken_by(&self, taker: u32, stat: &Stat) -> Option<LockMode> {
        (self.entry.pid == taker && self.is_flock_on(stat)).then(|| self.entry.mode())
    }

    fn is_flock_on(&self, stat: &Stat) -> bool {
        self.entry.kind == Kind::Flock && self.is_on(stat)
    }

    fn is_byte_of(&self, guard: &Stat, byte: u64) -> bool {
        self.entry.kind == Kind::Range(byte) && self.is_on(guard)
    }

    /// Returns whether the lock is on the file of `stat`. The number of the inode is not enough:
    /// two file systems, two layers of an overlay and two subvolumes of btrfs use the same numbers,
    /// and the kernel's list does not distinguish the latter. Through its descriptor, the file
    /// shows the same device and inode as ours on all of them.
    fn is_on(&self, stat: &Stat) -> bool {
        if self.entry.inode != stat.st_ino {
            return false;
        }
        // What the kernel has in memory is enough. Asking the server of a network file system could
        // block.
        let ask = AtFlags::STATX_DONT_SYNC;
        let its = rustix::fs::statx(CWD, &self.descriptor, ask, StatxFlags::INO);
        its.is_ok_and(|its| {
            let device = rustix::fs::makedev(its.stx_dev_major, its.stx_dev_minor);
            (device, its.stx_ino) == (stat.st_dev, stat.st_ino)
        })
    }
}

/// Reads the first 4 MiB of a file in `/proc`: some 40,000 locks.
fn read_start(path: &Path) -> String {
    const LONGEST: u64 = 4 << 20;
    let mut text = Vec::new();
    _ = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

/// The locks that our ancestors hold.
///
/// A nested call must not wait for a lock that an ancestor releases only after the nested call has
/// ended. The proof is a descriptor of the lock: while an ancestor has one, or we have inherited
/// one, the lock is held. A descriptor can be neither forged nor reused, because the kernel says
/// which lock it has and which file it leads to. The number of the process that took the lock
/// proves nothing, because it may belong to a new process by now. The environment proves nothing
/// either, because in a daemon it outlives the lock.
///
/// Programs that close descriptors (sudo, Python) close only their own. buildlock and its keeper
/// are ancestors, too, and keep theirs. Ancestors that run as another user cannot be searched, and
/// their locks are not found.
#[derive(Debug)]
pub(super) struct AncestorsLocks {
    locks: Vec<OpenLock>,
    are_all: bool,
}

impl AncestorsLocks {
    pub(super) fn look() -> Self {
        Self::look_until(|_| false)
    }

    /// Looks until one has locked this byte of the guard, or at all of them.
    pub(super) fn look_for_byte(stat: &Stat, byte: u64) -> Self {
        Self::look_until(|lock| lock.is_byte_of(stat, byte))
    }

    fn look_until(is_enough: impl Fn(&OpenLock) -> bool) -> Self {
        Self::look_within(Bounds::generous(), is_enough)
    }

    fn look_within(mut bounds: Bounds, is_enough: impl Fn(&OpenLock) -> bool) -> Self {
        // Our own descriptors are closed on exec, and inherited ones are not. Only the latter count:
        // one of our threads that gave up waiting may just have taken the lock.
        let mut locks = OpenLock::all_of(std::process::id(), &mut bounds).unwrap_or_default();
        locks.retain(|lock| !lock.closed_on_exec);
        for ancestor in proc::ancestors() {
            if locks.iter().any(&is_enough) {
                break;
            }
            locks.extend(OpenLock::all_of(ancestor, &mut bounds).unwrap_or_default());
        }
        AncestorsLocks { locks, are_all: !bounds.are_reached() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// Returns whether there was time to look at all of them, or to find what was looked for.
    pub(super) fn are_all(&self) -> bool {
        self.are_all
    }

    /// Returns how our ancestors hold this lock file, if they do.
    pub(super) fn on(&self, stat: &Stat) -> Option<LockMode> {
        self.mode(|lock| lock.is_flock_on(stat))
    }

    /// Returns how our ancestors hold this byte of the guard, if they do.
    pub(super) fn on_byte(&self, stat: &Stat, byte: u64) -> Option<LockMode> {
        self.mode(|lock| lock.is_byte_of(stat, byte))
    }

    /// Returns whether our ancestors hold this byte of any file.
    pub(super) fn have_byte(&self, byte: u64) -> bool {
        self.locks.iter().any(|lock| lock.entry.kind == Kind::Range(byte))
    }

    fn mode(&self, is_it: impl Fn(&OpenLock) -> bool) -> Option<LockMode> {
        self.locks.iter().find(|lock| is_it(lock)).map(|lock| lock.entry.mode())
    }

    /// Returns the inodes of the files that our ancestors have locked.
    pub(super) fn inodes(&self) -> Vec<u64> {
        self.locks.iter().map(|lock| lock.entry.inode).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = "\
1: POSIX  ADVISORY  WRITE 7 fe:00:131090 0 EOF
2: FLOCK  ADVISORY  WRITE 4242 fe:00:131090 0 EOF
2: -> FLOCK  ADVISORY  WRITE 4243 fe:00:131090 0 EOF
2:  -> FLOCK  ADVISORY  READ 4244 fe:00:131090 0 EOF
3: FLOCK  ADVISORY  READ 4245 00:1a:9 0 EOF
4: OFDLCK ADVISORY  READ -1 00:06:1028 0 EOF
nonsense
";

    fn entry(waiting: bool, shared: bool, pid: u32, device: (u32, u32), inode: u64) -> Entry {
        Entry { waiting, shared, pid, device, inode, kind: Kind::Flock }
    }

    #[test]
    fn the_kernels_list_of_locks_is_read() {
        assert_eq!(
            KernelLocks::parse(LIST).locks,
            [
                entry(false, false, 4242, (0xfe, 0), 131_090),
                entry(false, true, 4245, (0, 0x1a), 9),
                entry(true, false, 4243, (0xfe, 0), 131_090),
                entry(true, true, 4244, (0xfe, 0), 131_090),
            ]
        );
    }

    #[test]
    fn range_is_read_with_its_first_byte() {
        let line = "1: OFDLCK ADVISORY  READ -1 00:06:1028 4611686018427387903 4611686018427387903";
        let expected =
            Entry { kind: Kind::Range(u64::MAX >> 2), ..entry(false, true, 0, (0, 6), 1028) };
        assert_eq!(Entry::parse(line), Some(expected));
    }

    #[test]
    fn lock_of_this_process_is_not_one_of_an_ancestor() {
        use std::os::fd::AsFd;
        let file = tempfile::tempfile().unwrap();
        fs2::FileExt::lock_exclusive(&file).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let ours = OpenLock::all_of(std::process::id(), &mut Bounds::generous()).unwrap();
        let taken = ours.iter().find_map(|lock| lock.was_taken_by(std::process::id(), &stat));
        assert_eq!(taken, Some(LockMode::Exclusive));
        assert_eq!(AncestorsLocks::look().on(&stat), None);
        // As if it had been inherited.
        rustix::io::fcntl_setfd(file.as_fd(), rustix::io::FdFlags::empty()).unwrap();
        assert_eq!(AncestorsLocks::look().on(&stat), Some(LockMode::Exclusive));
    }

    #[test]
    fn search_ends_at_its_bounds() {
        let file = tempfile::tempfile().unwrap();
        fs2::FileExt::lock_exclusive(&file).unwrap();
        let mut none = Bounds { descriptors: 0, ..Bounds::generous() };
        assert!(OpenLock::all_of(std::process::id(), &mut none).unwrap().is_empty());
        let mut late = Bounds { until: Duration::ZERO, ..Bounds::generous() };
        assert!(OpenLock::all_of(std::process::id(), &mut late).unwrap().is_empty());
    }

    #[test]
    fn search_that_ends_at_its_bounds_says_so_unless_it_has_found_what_it_looked_for() {
        assert!(
            !AncestorsLocks::look_within(Bounds::of(1, Duration::from_secs(60)), |_| false)
                .are_all()
        );
        assert!(AncestorsLocks::look_within(Bounds::generous(), |_| false).are_all());
        let file = tempfile::tempfile().unwrap();
        fs2::FileExt::lock_exclusive(&file).unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let ours = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let bounds = Bounds::of(ours + 8, Duration::from_secs(60));
        let found = AncestorsLocks::look_within(bounds, |lock| lock.is_flock_on(&stat));
        assert!(found.on(&stat).is_some() && found.are_all());
    }

    proptest! {
        #[test]
        fn no_list_makes_the_reader_panic(text in ".{0,200}") {
            KernelLocks::parse(&text);
        }
    }
}
