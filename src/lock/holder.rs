//! Who holds a lock: what the holder wrote about itself, and what the kernel knows.
//!
//! The record in a lock file is for people and never evidence: anybody may write one. The kernel's
//! list of locks (`/proc/locks`, proc_locks(5)) says which process took a lock; the record is
//! believed only where it speaks of that process.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use super::{FailedBuild, Key, LockMode, Subject};
use crate::duration::for_people;
use crate::proc;
use crate::user;
use crate::visible::escaped;

/// Largest record that is read, in bytes.
const RECORD_MAX: usize = 64 * 1024;
/// No chain of parents is longer; a loop cannot be, but /proc is read piece by piece.
const ANCESTORS_MAX: usize = 1000;

/// What a holder writes into its lock file, as one line of JSON, and what is known of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its user's name, or number where that has no name.
    pub user: Option<String>,
    /// The host's name.
    pub host: Option<String>,
    /// The canonical tag, if the lock is one for an image.
    pub tag: Option<String>,
    /// The lock's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The cache's id, if the lock is one for a build cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// COMMAND, without secrets.
    pub command: Option<String>,
    /// When it took the lock (RFC 3339).
    pub since: Option<String>,
    /// Its version of buildlock.
    pub version: Option<String>,
    /// The build's random id, by which waiters know its result from another's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// Whether the process has ended, so that something it left behind holds the lock.
    #[serde(skip_deserializing, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// Whether it is this process's parent, or a parent of that, and so on; or one of these holds
    /// the lock since it has ended.
    #[serde(skip)]
    pub is_our_ancestor: bool,
    /// Whether it shares the lock.
    #[serde(skip)]
    pub shares: bool,
}

impl Holder {
    /// A record about this process, but for the lock and the time.
    pub fn ourselves(command: String, build: String) -> Self {
        Holder {
            pid: std::process::id(),
            user: Some(user::our_name()),
            host: Some(rustix::system::uname().nodename().to_string_lossy().into_owned()),
            tag: None,
            name: None,
            cache: None,
            command: Some(command),
            since: None,
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            build: Some(build),
            ..Holder::default()
        }
    }

    /// Who holds the lock on `file`, if the kernel can tell: what the record says if it is about
    /// that process, else what `/proc` says of it. Of several that share it, an ancestor of ours
    /// goes first, and then the one of the record. `known` had it when we last asked.
    pub(super) fn of(file: &File, known: Option<u32>) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        let record = read_record(file);
        let recorded = record.as_ref().map(|record| record.pid);
        let ancestors = ancestors();
        let ourselves = std::process::id();
        // Where the process that took it has ended, an ancestor may have its descriptor; and where
        // the ancestors have ended, too, we have inherited it ourselves. But a thread of ours that
        // waited may just have had it.
        let is_ancestors = |pid: u32| {
            let has = |process| has_locked(process, pid, stat.st_ino).is_some();
            ancestors.contains(&pid)
                || pid != ourselves && has(ourselves)
                || is_gone(pid) && ancestors.iter().copied().any(has)
        };
        // For its whole list the kernel stops everybody who takes or releases any lock; a thousand
        // waiters that ask for it at once stop the machine. So the likely ones are asked about first.
        // But one of several that share it is not enough: an ancestor may be another one.
        let mut likely = recorded.into_iter().chain(known);
        let alone =
            likely.find(|&pid| has_locked(pid, pid, stat.st_ino) == Some(LockMode::Exclusive));
        let (holders, shares) = match alone {
            Some(pid) => (vec![pid], false),
            None => agreed(|| {
                let locks = KernelLocks::read_once();
                (locks.holders(&stat, file), locks.is_shared(&stat, file))
            }),
        };
        let ancestors_own = holders.iter().copied().find(|&pid| is_ancestors(pid));
        let is_recorded = |pid: &u32| recorded == Some(*pid);
        let pid = ancestors_own
            .or_else(|| holders.iter().copied().find(is_recorded))
            .or_else(|| holders.first().copied())?;
        let is_our_ancestor = ancestors_own.is_some();
        Some(Holder { is_our_ancestor, shares, ..Self::with_pid(pid, record) })
    }

    /// The same for this lock.
    #[must_use]
    pub(super) fn of_lock(self, subject: &Subject) -> Self {
        Holder {
            tag: subject.tag().map(str::to_owned),
            name: subject.name().map(str::to_owned),
            cache: subject.cache().map(str::to_owned),
            ..self
        }
    }

    /// What the lock is for, as it says itself.
    pub(super) fn subject(&self) -> Option<Subject> {
        match (&self.tag, &self.name, &self.cache) {
            (Some(tag), ..) => Some(Subject::Image(tag.clone())),
            (None, Some(name), _) => Some(Subject::Named(name.clone())),
            (None, None, cache) => cache.clone().map(Subject::Cache),
        }
    }

    /// What is known of the process `pid` that holds a lock, given the lock's record.
    pub(super) fn with_pid(pid: u32, record: Option<Holder>) -> Self {
        let gone = is_gone(pid);
        match record.filter(|record| record.pid == pid) {
            Some(record) => Holder { gone, ..record },
            None => Holder { pid, gone, ..Self::from_proc(pid) },
        }
    }

    fn from_proc(pid: u32) -> Self {
        use std::os::unix::fs::MetadataExt;
        let folder = format!("/proc/{pid}");
        let command = std::fs::read(format!("{folder}/cmdline")).ok().map(|line| {
            use std::os::unix::ffi::OsStrExt;
            let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|&c| c == 0);
            let words: Vec<_> =
                words.map(|word| std::ffi::OsStr::from_bytes(word).to_owned()).collect();
            // Of one of us COMMAND, as in a record.
            let is_ours = words.first().is_some_and(|word| word.as_bytes().ends_with(b"buildlock"));
            let command =
                words.iter().position(|word| is_ours && word == "--").map_or(0, |at| at + 1);
            crate::command::describe(&words[command..])
        });
        Holder {
            user: std::fs::metadata(&folder).ok().map(|meta| user::name(meta.uid())),
            command: command.filter(|command| !command.is_empty()),
            ..Holder::default()
        }
    }

    /// How long it has held the lock, by the wall clock.
    pub fn held_for(&self) -> Option<Duration> {
        let since = humantime::parse_rfc3339(self.since.as_deref()?).ok()?;
        // A clock that was set back makes it zero. The record has whole seconds.
        let held_for = SystemTime::now().duration_since(since).unwrap_or_default();
        Some(Duration::from_secs(held_for.as_secs()))
    }
}

impl std::fmt::Display for Holder {
    /// `alice@ci-3, pid 4242, building for 2m 3s: docker build -t env:abc .`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.gone {
            write!(f, "something that pid {} left behind when it ended", self.pid)?;
        } else {
            match (&self.user, &self.host) {
                (Some(user), Some(host)) => write!(f, "{user}@{host}, pid {}", self.pid)?,
                (Some(user), None) => write!(f, "{user}, pid {}", self.pid)?,
                (None, _) => write!(f, "pid {}", self.pid)?,
            }
        }
        if let Some(held_for) = self.held_for() {
            write!(f, ", building for {}", for_people(held_for))?;
        }
        match &self.command {
            Some(command) => write!(f, ": {command}"),
            None => Ok(()),
        }
    }
}

fn is_gone(pid: u32) -> bool {
    // A zombie is a process to kill(2), but it holds nothing any more.
    proc::is_zombie(pid)
        || rustix::process::test_kill_process(pid_of(pid)) == Err(rustix::io::Errno::SRCH)
}

fn pid_of(pid: u32) -> rustix::process::Pid {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap_or(rustix::process::Pid::INIT)
}

/// The first line of a lock file. Anything may stand there.
pub(super) fn read_line(file: &File) -> Option<Vec<u8>> {
    let mut text = vec![0; RECORD_MAX];
    let mut length = 0;
    loop {
        match file.read_at(&mut text[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    text.truncate(length);
    text.iter().position(|&c| c == b'\n').map(|end| text[..end].to_vec())
}

/// The holder's record in a lock file. Whatever else stands there is none.
pub fn read_record(file: &File) -> Option<Holder> {
    read_unescaped(file).map(cleaned)
}

/// What the lock at `path` is for, as the record in it says, whoever wrote that: the file's name is
/// a hash, and tells a lie.
pub(super) fn read_subject(file: &File, path: &Path) -> Option<Subject> {
    let subject = read_unescaped(file)?.subject()?;
    let expected = Key::new(subject.clone()).relative_path();
    // A nested call's lock has its level behind a dot.
    let hash = |path: &Path| Some(path.file_name()?.to_str()?.split('.').next()?.to_owned());
    let is_it = hash(path) == hash(&expected) && path.parent()?.ends_with(expected.parent()?);
    is_it.then(|| match subject {
        Subject::Image(tag) => Subject::Image(escaped(&tag)),
        Subject::Named(name) => Subject::Named(escaped(&name)),
        Subject::Cache(id) => Subject::Cache(escaped(&id)),
    })
}

fn read_unescaped(file: &File) -> Option<Holder> {
    serde_json::from_slice(&read_line(file)?).ok()
}

/// Anybody may write a record.
pub(super) fn cleaned(record: Holder) -> Holder {
    let clean = |text: Option<String>| text.map(|text| escaped(&text));
    Holder {
        user: clean(record.user),
        host: clean(record.host),
        tag: clean(record.tag),
        name: clean(record.name),
        cache: clean(record.cache),
        command: clean(record.command),
        since: clean(record.since),
        version: clean(record.version),
        ..record
    }
}

/// The result that a build left in a lock file. Whatever else stands there is none.
pub fn read_result(file: &File) -> Option<FailedBuild> {
    /// As a holder's record is no mistake but the usual case, it is read without one, too.
    #[derive(Deserialize)]
    struct Line {
        build: Option<String>,
        status: Option<u8>,
    }
    let Line { build, status } = serde_json::from_slice(&read_line(file)?).ok()?;
    Some(FailedBuild { build: build?, status: status? })
}

/// Replaces what stands in a lock file by `line`, or by nothing.
///
/// # Errors
/// The file cannot be written.
pub fn write_line(file: &File, line: Option<&impl Serialize>) -> std::io::Result<()> {
    let Some(line) = line else { return file.set_len(0) };
    replace_text(file, &serde_json::to_vec(line)?)
}

/// Replaces what stands in a file by this line.
pub(super) fn replace_text(file: &File, line: &[u8]) -> std::io::Result<()> {
    // Emptied first: a full disk may leave half a line, which nobody believes unless it ends with
    // what stood there before. Of two who write at once, the later one's line is the first.
    file.set_len(0)?;
    file.write_all_at(&[line, b"\n"].concat(), 0)
}

/// The parent of `pid`, if it can be seen.
fn parent(pid: u32) -> Option<u32> {
    proc::stat_field(pid, proc::PARENT)?.parse().ok()
}

/// This process's chain of parents, nearest first.
pub(super) fn ancestors() -> Vec<u32> {
    std::iter::successors(parent(std::process::id()), |&pid| parent(pid))
        .take_while(|&pid| pid > 0)
        .take(ANCESTORS_MAX)
        .collect()
}

/// What tells a process from all others, on all hosts and at all times: where and when its kernel was
/// started, its namespace, its number there, and when it was started. None where it cannot be seen.
#[cfg(feature = "etcd")]
pub(super) fn process_everywhere(pid: u32) -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let started = proc::stat_field(pid, proc::STARTED)?;
    Some(format!("{} {} {pid} {started}", boot.trim(), namespace.display()))
}

/// The lock that `taker` took on the inode, if `process` has an open descriptor with it. The kernel
/// lists locks there too (proc_pid_fdinfo(5)), for those who may look.
fn has_locked(process: u32, taker: u32, inode: u64) -> Option<LockMode> {
    /// A record may name a process with any number of them.
    const DESCRIPTORS_MAX: usize = 4096;
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fdinfo")).ok()?;
    descriptors.flatten().take(DESCRIPTORS_MAX).find_map(|descriptor| {
        let text = std::fs::read_to_string(descriptor.path()).unwrap_or_default();
        let mut locks =
            text.lines().filter_map(|line| KernelLock::parse(line.strip_prefix("lock:")?));
        let lock = locks.find(|lock| lock.pid == taker && lock.inode == inode)?;
        Some(if lock.shared { LockMode::Shared } else { LockMode::Exclusive })
    })
}

/// What two readings in a row agree on, or the last of several: the kernel hands its list of locks
/// out in pieces of a page, so while other locks come and go a line may be missing or come twice.
fn agreed<T: PartialEq>(mut read: impl FnMut() -> T) -> T {
    const READINGS_MAX: usize = 8;
    let mut last = read();
    for _ in 1..READINGS_MAX {
        let now = read();
        if now == last {
            break;
        }
        last = now;
    }
    last
}

/// The kernel's list of `flock(2)` locks at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KernelLocks {
    locks: Vec<KernelLock>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct KernelLock {
    /// Somebody who waits, not somebody who holds.
    waiting: bool,
    /// Shared locks sort behind exclusive ones.
    shared: bool,
    pid: u32,
    device: (u32, u32),
    inode: u64,
}

impl KernelLocks {
    /// What at least two of three readings show. Empty where there is no such list.
    pub fn read() -> Self {
        let readings = [Self::read_once(), Self::read_once(), Self::read_once()];
        let mut all: Vec<KernelLock> =
            readings.into_iter().flat_map(|reading| reading.locks).collect();
        all.sort_unstable();
        let twice = all.chunk_by(|a, b| a == b).filter(|same| same.len() > 1);
        KernelLocks { locks: twice.map(|same| same[0]).collect() }
    }

    /// Reads it as it comes: a line may be missing.
    pub(super) fn read_once() -> Self {
        /// More than the kernel gives at once, so that it tears the list as seldom as it can.
        const AT_ONCE: usize = 64 * 1024;
        let mut text = Vec::new();
        let mut piece = vec![0; AT_ONCE];
        if let Ok(mut list) = File::open("/proc/locks") {
            while let Ok(read @ 1..) = list.read(&mut piece) {
                text.extend_from_slice(&piece[..read]);
            }
        }
        Self::parse(&String::from_utf8_lossy(&text))
    }

    /// Reads the kernel's list; a line that is none of `flock(2)` is left out.
    pub fn parse(text: &str) -> Self {
        let mut locks: Vec<KernelLock> = text.lines().filter_map(KernelLock::parse).collect();
        locks.sort_unstable();
        locks.dedup();
        KernelLocks { locks }
    }

    fn on<'a>(
        &'a self,
        stat: &'a Stat,
        file: &File,
    ) -> impl Iterator<Item = &'a KernelLock> + use<'a> {
        let same_inode = |lock: &&KernelLock| lock.inode == stat.st_ino;
        let same_device = |lock: &KernelLock| {
            lock.device == (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev))
        };
        // An overlay or btrfs shows a file under another device than the kernel's list does.
        let devices_differ = !self.locks.iter().any(|lock| same_inode(&lock) && same_device(lock))
            && shows_another_device(file);
        self.locks.iter().filter(same_inode).filter(move |lock| devices_differ || same_device(lock))
    }

    /// The processes that took the lock on the file: one, or all that share it.
    pub fn holders(&self, stat: &Stat, file: &File) -> Vec<u32> {
        self.on(stat, file).filter(|lock| !lock.waiting).map(|lock| lock.pid).collect()
    }

    /// Whether the lock on the file is one that others may share.
    pub fn is_shared(&self, stat: &Stat, file: &File) -> bool {
        self.on(stat, file).any(|lock| !lock.waiting && lock.shared)
    }

    /// How many wait for the lock on the file.
    pub fn waiters(&self, stat: &Stat, file: &File) -> usize {
        self.on(stat, file).filter(|lock| lock.waiting).count()
    }

    /// Inodes that one of `pids` has locked.
    pub fn inodes_held_by(&self, pids: &[u32]) -> Vec<u64> {
        let held = |lock: &&KernelLock| !lock.waiting && pids.contains(&lock.pid);
        self.locks.iter().filter(held).map(|lock| lock.inode).collect()
    }

    /// Inodes that anybody has locked.
    pub fn inodes_held(&self) -> Vec<u64> {
        self.locks.iter().filter(|lock| !lock.waiting).map(|lock| lock.inode).collect()
    }
}

impl KernelLock {
    /// `1: FLOCK  ADVISORY  WRITE 4242 fe:00:131090 0 EOF`; a waiter has `->` behind the number.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1).peekable();
        let waiting = words.next_if_eq(&"->").is_some();
        if words.next()? != "FLOCK" {
            return None;
        }
        let shared = words.nth(1)? != "WRITE";
        let pid = words.next()?.parse().ok()?;
        let mut place = words.next()?.split(':');
        let mut hex = || u32::from_str_radix(place.next()?, 16).ok();
        let device = (hex()?, hex()?);
        let inode = place.next()?.parse().ok()?;
        Some(KernelLock { waiting, shared, pid, device, inode })
    }
}

/// Does this file's file system show files under another device number than the kernel's own?
fn shows_another_device(file: &File) -> bool {
    /// From linux/magic.h.
    const OVERLAYFS: u32 = 0x794c_7630;
    const BTRFS: u32 = 0x9123_683e;
    rustix::fs::fstatfs(file).is_ok_and(|fs| matches!(fs.f_type as u32, OVERLAYFS | BTRFS))
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

    #[test]
    fn the_kernels_list_of_locks_is_read() {
        let locks = KernelLocks::parse(LIST).locks;
        let lock = |waiting, shared, pid, device, inode| KernelLock {
            waiting,
            shared,
            pid,
            device,
            inode,
        };
        assert_eq!(
            locks,
            [
                lock(false, false, 4242, (0xfe, 0), 131_090),
                lock(false, true, 4245, (0, 0x1a), 9),
                lock(true, false, 4243, (0xfe, 0), 131_090),
                lock(true, true, 4244, (0xfe, 0), 131_090),
            ]
        );
    }

    #[test]
    fn the_chain_of_parents_starts_with_ours() {
        assert_eq!(ancestors().first().copied(), Some(std::os::unix::process::parent_id()));
    }

    #[test]
    fn records_are_written_read_and_replaced() {
        let file = tempfile::tempfile().unwrap();
        let holder = Holder::ourselves("docker build .".into(), "b1".into());
        write_line(&file, Some(&holder)).unwrap();
        assert_eq!(read_record(&file), Some(holder));
        assert_eq!(read_result(&file), None);
        let result = FailedBuild { build: "b1".into(), status: 3 };
        write_line(&file, Some(&result)).unwrap();
        assert_eq!((read_result(&file), read_record(&file)), (Some(result), None));
        write_line(&file, None::<&Holder>).unwrap();
        assert_eq!((read_result(&file), read_record(&file)), (None, None));
    }

    #[test]
    fn a_record_without_an_end_or_beyond_all_bounds_is_none() {
        let file = tempfile::tempfile().unwrap();
        for text in ["", "\n", "{\"pid\":1}", "{\"pid\":-1}\n", "\0\0\0\n"] {
            file.set_len(0).unwrap();
            file.write_all_at(text.as_bytes(), 0).unwrap();
            assert_eq!(read_record(&file), None, "{text:?}");
        }
        file.write_all_at(&vec![b' '; 1 << 20], 0).unwrap();
        file.write_all_at(b"\n", 1 << 20).unwrap();
        assert_eq!(read_record(&file), None);
    }

    #[test]
    fn a_record_cannot_turn_or_hide_what_a_reader_sees() {
        let file = tempfile::tempfile().unwrap();
        let text = Some("a\u{202e}b\u{1b}c\u{200b}".to_owned());
        let holder = Holder { user: text.clone(), command: text, ..Holder::default() };
        write_line(&file, Some(&holder)).unwrap();
        let read = read_record(&file).unwrap();
        let shown = r"a\u{202e}b\u{1b}c\u{200b}";
        assert_eq!(read.to_string(), format!("{shown}, pid 0: {shown}"));
    }

    proptest! {
        #[test]
        fn nothing_in_a_record_or_list_makes_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            let _ = (read_record(&file), read_result(&file));
            KernelLocks::parse(&text);
        }
    }
}
