//! Who holds a lock: what the holder wrote about itself, and what the kernel knows.
//!
//! The record in a lock file is for people and never evidence: anybody may write one. It is shown
//! only while the kernel says that this process took the lock, with the user that the kernel names;
//! what else it says is marked as a claim, unless the process's own command line confirms it.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use super::kernel::{Bounds, KernelLocks, OpenLock};
use super::{FailedBuild, Key, LockMode, Subject};
use crate::duration::for_people;
use crate::proc;
use crate::user;
use crate::visible::escaped;

/// Largest record that is read, in bytes.
const RECORD_MAX: usize = 64 * 1024;
/// How long the kernel's list of locks may take to read, for a name in a message: to read it again
/// and again would keep everybody else from locking anything.
const LIST_WITHIN: Duration = Duration::from_millis(200);

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
    /// The folder in which it runs the build command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
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
    /// Whether nothing confirms what the record says.
    #[serde(skip_deserializing, skip_serializing_if = "std::ops::Not::not")]
    pub claimed: bool,
    /// Whether this call runs inside of one that holds the lock.
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
            host: our_host(),
            tag: None,
            name: None,
            cache: None,
            command: Some(command),
            directory: std::env::current_dir().ok().map(|it| it.to_string_lossy().into_owned()),
            since: None,
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            build: Some(build),
            ..Holder::default()
        }
    }

    /// Returns the holder of the lock on `file`, if the kernel can tell. Of several that share it,
    /// the one of the record goes first. `known` had it when we last asked; `ancestors` is how
    /// calls hold it which this one runs inside of.
    pub(super) fn of(file: &File, known: Option<u32>, ancestors: Option<LockMode>) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        let record = read_record(file);
        let recorded = record.as_ref().map(|record| record.pid);
        // For its whole list the kernel stops everybody who takes or releases any lock; a thousand
        // waiters that ask for it at once stop the machine. So the likely ones are asked about
        // first.
        let is_alone = |&pid: &u32| has_alone(pid, &stat);
        let (holders, shares) = match recorded.into_iter().chain(known).find(is_alone) {
            Some(pid) => (vec![pid], false),
            None => KernelLocks::holders_within(LIST_WITHIN, &stat, file),
        };
        let is_our_ancestor = ancestors.is_some();
        let shares = ancestors.map_or(shares, |mode| mode == LockMode::Shared);
        let is_recorded = |pid: &u32| recorded == Some(*pid);
        // We may have the lock file, and wait for the byte of one whose lock file is gone.
        let others = || holders.iter().copied().filter(|&pid| pid != std::process::id());
        let one = others().find(is_recorded).or_else(|| others().next());
        match one {
            Some(pid) => {
                Some(Holder { is_our_ancestor, shares, ..Self::with_pid(pid, record, &stat) })
            }
            // Its lock file may have been removed while an ancestor holds it.
            None => {
                is_our_ancestor.then(|| Holder { is_our_ancestor, shares, ..Holder::default() })
            }
        }
    }

    /// Returns the holder that the record names, if that process has the lock alone, as far as it
    /// may be looked at.
    pub(super) fn recorded(file: &File) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        let record = read_record(file)?;
        let pid = record.pid;
        has_alone(pid, &stat).then(|| Self::with_pid(pid, Some(record), &stat))
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

    /// What is known of the process `pid` that took a lock on `stat`'s file, given the lock's
    /// record.
    pub(super) fn with_pid(pid: u32, record: Option<Holder>, stat: &Stat) -> Self {
        let mut bounds = Bounds::narrow();
        let has_lock = |lock: &OpenLock| lock.was_taken_by(pid, stat).is_some();
        let has_it = OpenLock::all_of(pid, &mut bounds)
            .map(|locks| locks.iter().any(has_lock))
            .filter(|&has_it| has_it || !bounds.are_reached());
        // One without it has only got the number.
        let gone = is_gone(pid) || has_it == Some(false);
        let uid = proc::user(pid).filter(|_| !gone);
        let command = uid.and_then(|uid| command_of(pid, uid));
        let host = uid.and_then(|_| our_host());
        let Some(record) = record.filter(|record| record.pid == pid) else {
            // Another user's has only given itself a name.
            let claimed = uid.is_some_and(|uid| !is_readable(uid));
            let user = uid.map(user::name);
            return Holder { pid, user, command, gone, claimed, ..Holder::default() };
        };
        // The process can confirm what it runs, and that it has run for long enough.
        let claimed = has_it.is_none()
            || record.command.is_none()
            || record.command != command
            || !runs_in(pid, record.directory.as_deref())
            || !has_run_for(pid, record.held_for().unwrap_or_default());
        // Without a process there is no user that the kernel could name.
        let user = uid.map(|uid| match (user::find_name(uid), record.user) {
            (Some(name), _) => name,
            // A directory service may know the user.
            (None, Some(claim)) if user::may_be_called(&claim) => format!("{claim} (uid {uid})"),
            (None, _) => uid.to_string(),
        });
        Holder { user, host, gone, claimed: claimed || gone, ..record }
    }

    /// Whether it builds what `other` would: the same command in the same folder, as far as both
    /// are known. Secrets are not.
    pub fn builds_the_same_as(&self, other: &Holder) -> bool {
        let is_same = |theirs: &Option<String>, ours: &Option<String>| {
            theirs.is_none() || ours.is_none() || theirs == ours
        };
        is_same(&self.command, &other.command) && is_same(&self.directory, &other.directory)
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
        if self.claimed && (self.since.is_some() || self.command.is_some()) {
            f.write_str(" by its own account")?;
        }
        match &self.command {
            Some(command) => write!(f, ": {command}"),
            None => Ok(()),
        }
    }
}

/// Has this process taken the lock for itself? It is not looked at for long: a record may name any
/// process.
fn has_alone(pid: u32, stat: &Stat) -> bool {
    let locks = OpenLock::all_of(pid, &mut Bounds::narrow()).unwrap_or_default();
    let mut modes = locks.iter().filter_map(|lock| lock.was_taken_by(pid, stat));
    modes.next() == Some(LockMode::Exclusive)
}

/// Is this the process's folder, as far as its record names one? The kernel tells without looking
/// at the folder itself, which may lie on a file system that never answers.
fn runs_in(pid: u32, directory: Option<&str>) -> bool {
    let Some(directory) = directory else { return true };
    let folder = proc::path(pid, "cwd").and_then(|link| std::fs::read_link(link).ok());
    folder.is_some_and(|folder| escaped(&folder.to_string_lossy()) == directory)
}

/// Was the process started that long ago?
fn has_run_for(pid: u32, time: Duration) -> bool {
    /// The record and the kernel's clock have their own ways of rounding.
    const ROUNDING: f64 = 2.0;
    let started = || proc::stat_field(pid, proc::STARTED)?.parse::<f64>().ok();
    let uptime = || {
        let text = std::fs::read_to_string("/proc/uptime").ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    let (Some(started), Some(uptime)) = (started(), uptime()) else { return false };
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    time.as_secs_f64() <= uptime - started / ticks + ROUNDING
}

fn our_host() -> Option<String> {
    Some(rustix::system::uname().nodename().to_string_lossy().into_owned())
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

/// Can this user's processes be asked for their command lines?
fn is_readable(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// What a holder without a record runs; of buildlock, the build command, as a record has it.
///
/// The command line stands in the process's own memory, which may lie in a file system in user
/// space that never answers. So another user's is not read, but for root's.
fn command_of(pid: u32, uid: u32) -> Option<String> {
    const LONGEST: u64 = 256 * 1024;
    if !is_readable(uid) {
        let name = std::fs::read(proc::path(pid, "comm")?).ok()?;
        return Some(escaped(String::from_utf8_lossy(&name).trim_end()));
    }
    let mut line = Vec::new();
    File::open(proc::path(pid, "cmdline")?).ok()?.take(LONGEST).read_to_end(&mut line).ok()?;
    let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|&c| c == 0);
    let words: Vec<_> = words.map(|word| std::ffi::OsStr::from_bytes(word).to_owned()).collect();
    let is_ours = words.first().is_some_and(|word| word.as_bytes().ends_with(b"buildlock"));
    let command = words.iter().position(|word| is_ours && word == "--").map_or(0, |at| at + 1);
    Some(crate::command::describe(&words[command..])).filter(|command| !command.is_empty())
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
        directory: clean(record.directory),
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

/// What tells a process from all others, on all hosts and at all times: where and when its kernel
/// was started, its namespace, its number there, and when it was started. None where it cannot be
/// seen.
#[cfg(feature = "etcd")]
pub(super) fn process_everywhere(pid: u32) -> Option<String> {
    let started = proc::stat_field(pid, proc::STARTED)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {} {pid} {started}", boot.trim(), namespace.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        fn nothing_in_a_record_makes_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            let _ = (read_record(&file), read_result(&file));
        }
    }
}
