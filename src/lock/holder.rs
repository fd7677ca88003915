//! The process that holds a lock, as the kernel and its record in the lock file describe it.
//!
//! A record is shown only while the kernel says that its process took the lock, with the user that
//! the kernel names. Anything else in it is marked as a claim, unless the process's own command
//! line confirms it.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Stat;

use super::kernel::{Bounds, KernelLocks, OpenLock};
use super::key::{Key, LockMode};
use crate::proc::{self, Look};
use crate::record::{Holder, our_host, read_record, read_unescaped};
use crate::subject::Subject;
use crate::user;
use crate::visible::{escaped, escaped_and_shortened};

/// How long the kernel's list of locks may take to read for a name in a message. While it is read,
/// nobody else can take a lock.
const LIST_WITHIN: Duration = Duration::from_millis(200);

/// Returns the holder of the lock on `file`, if the kernel can tell. Of several that share it, the
/// one in the record goes first. `known` had the lock when we last asked. `ancestors` is how calls
/// that this one runs inside of hold it.
pub(super) fn find(file: &File, known: Option<u32>, ancestors: Option<LockMode>) -> Option<Holder> {
    let stat = rustix::fs::fstat(file).ok()?;
    let record = read_record(file);
    let recorded = record.as_ref().map(|record| record.pid);
    // To write its whole list, the kernel stops all processes that take or release a lock. A
    // thousand waiters that ask for it at once stop the machine, so likely holders are looked at
    // first.
    let is_alone = |&pid: &u32| holds_alone(pid, &stat, Bounds::narrow());
    let (holders, shares) = match recorded.into_iter().chain(known).find(is_alone) {
        Some(pid) => (vec![pid], false),
        None => KernelLocks::holders_within(LIST_WITHIN, &stat, file).unwrap_or_else(|| {
            tracing::warn!(
                "it could not be found out in time who holds a lock, because somebody holds very \
                 many: the kernel's list of them (/proc/locks) is long"
            );
            (Vec::new(), false)
        }),
    };
    let is_our_ancestor = ancestors.is_some();
    let shares = ancestors.map_or(shares, |mode| mode == LockMode::Shared);
    let is_recorded = |pid: &u32| recorded == Some(*pid);
    // This process may hold the lock file and wait for the guard's byte of an earlier one that was
    // removed.
    let others = || holders.iter().copied().filter(|&pid| pid != std::process::id());
    let one = others().find(is_recorded).or_else(|| others().next());
    match one {
        Some(pid) => Some(Holder { is_our_ancestor, shares, ..describe(pid, record, &stat) }),
        // An ancestor may hold a lock whose file was removed.
        None => is_our_ancestor.then(|| Holder { is_our_ancestor, shares, ..Holder::default() }),
    }
}

/// Returns the holder that the record names, if that process alone holds the lock, as far as we may
/// look at it.
pub(super) fn find_recorded(file: &File) -> Option<Holder> {
    find_recorded_within(file, Bounds::narrow())
}

/// Returns the same, and takes longer for a process with many descriptors or locks.
pub(super) fn find_recorded_patiently(file: &File) -> Option<Holder> {
    find_recorded_within(file, Bounds::generous())
}

fn find_recorded_within(file: &File, bounds: Bounds) -> Option<Holder> {
    let stat = rustix::fs::fstat(file).ok()?;
    let record = read_record(file)?;
    let pid = record.pid;
    holds_alone(pid, &stat, bounds).then(|| describe(pid, Some(record), &stat))
}

/// Describes the process `pid` that took a lock on `stat`'s file, given the record there.
pub(super) fn describe(pid: u32, record: Option<Holder>, stat: &Stat) -> Holder {
    let mut bounds = Bounds::narrow();
    let has_lock = |lock: &OpenLock| lock.was_taken_by(pid, stat).is_some();
    let shows_its_descriptors = || !Look::at(pid).is_some_and(Look::runs_without_its_first_thread);
    let has_it = OpenLock::all_of_trusted(pid, &mut bounds)
        .map(|locks| locks.iter().any(has_lock))
        .filter(|&has_it| has_it || !bounds.are_reached() && shows_its_descriptors());
    let out_of_time = has_it.is_none() && bounds.are_reached();
    // A process without the lock was only given the number of the one that took it.
    let gone = is_gone(pid) || has_it == Some(false);
    // Nor is one shown that there was no time to look at.
    let uid = proc::user(pid).filter(|_| !gone && !out_of_time);
    let command = uid.and_then(|uid| command_of(pid, uid));
    let host = uid.and_then(|_| our_host());
    let Some(record) = record.filter(|record| record.pid == pid) else {
        // Another user's process may give itself any name, and one that we may not look at may only
        // have been given the number of the one that took the lock.
        let claimed = has_it.is_none() || uid.is_some_and(|uid| !proc::is_trusted(uid));
        let user = uid.map(user::name);
        return Holder { pid, user, command, gone, claimed, ..Holder::default() };
    };
    // The process can confirm what it runs, and that it has run for long enough.
    let claimed = has_it.is_none()
        || record.command.is_none()
        || record.command != command
        || !runs_in(pid, record.directory.as_deref())
        || !has_run_for(pid, record.held_for().unwrap_or_default());
    // The kernel can name the user of a running process only. The name in the record may be
    // anybody's invention.
    let user = uid.map(user::name);
    Holder { user, host, gone, claimed: claimed || gone, ..record }
}

/// Describes a process that waits for a lock, and has written nothing into it.
pub(super) fn describe_waiter(pid: u32) -> Holder {
    let uid = proc::user(pid);
    let command = uid.and_then(|uid| command_of(pid, uid));
    let claimed = uid.is_some_and(|uid| !proc::is_trusted(uid));
    Holder { pid, user: uid.map(user::name), command, claimed, ..Holder::default() }
}

/// Returns what the lock at `path` protects, if the record in it says so and fits the file's name,
/// which is a hash. Anybody may have written the record.
pub(super) fn read_subject(file: &File, path: &Path) -> Option<Subject> {
    let subject = read_unescaped(file)?.subject()?;
    let expected = Key::new(subject.clone()).relative_path();
    // A nested call's lock has its level after a dot.
    let hash = |path: &Path| Some(path.file_name()?.to_str()?.split('.').next()?.to_owned());
    let is_it = hash(path) == hash(&expected) && path.parent()?.ends_with(expected.parent()?);
    is_it.then(|| match subject {
        Subject::Image(tag) => Subject::Image(escaped_and_shortened(&tag)),
        Subject::Named(name) => Subject::Named(escaped_and_shortened(&name)),
        Subject::Cache(id) => Subject::Cache(escaped_and_shortened(&id)),
        Subject::Slot(number) => Subject::Slot(number),
    })
}

/// Returns whether this process holds the lock alone. It is not looked at for long: a record may
/// name any process.
fn holds_alone(pid: u32, stat: &Stat, mut bounds: Bounds) -> bool {
    let locks = OpenLock::all_of_trusted(pid, &mut bounds).unwrap_or_default();
    let mut modes = locks.iter().filter_map(|lock| lock.was_taken_by(pid, stat));
    modes.next() == Some(LockMode::Exclusive)
}

/// Returns whether the process runs in the folder that its record names, if it names one. The
/// folder itself is not looked at: it may lie on a file system that never answers.
fn runs_in(pid: u32, directory: Option<&str>) -> bool {
    let Some(directory) = directory else { return true };
    let folder = proc::path(pid, "cwd").and_then(|link| std::fs::read_link(link).ok());
    folder.is_some_and(|folder| escaped(&folder.to_string_lossy()) == directory)
}

/// Returns whether the process was started that long ago.
fn has_run_for(pid: u32, time: Duration) -> bool {
    /// The record and the kernel's clock round in different ways, in seconds.
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

fn is_gone(pid: u32) -> bool {
    // kill(2) finds a zombie, which holds nothing any more.
    proc::is_zombie(pid)
        || rustix::process::test_kill_process(pid_of(pid)) == Err(rustix::io::Errno::SRCH)
}

fn pid_of(pid: u32) -> rustix::process::Pid {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap_or(rustix::process::Pid::INIT)
}

/// Returns what a process runs; for buildlock, the build command as a record would have it.
///
/// The command line lies in the process's own memory, which may be mapped from a file system in
/// user space that never answers. So it is read for this user's and root's processes only, and the
/// others' short name is used.
fn command_of(pid: u32, uid: u32) -> Option<String> {
    const LONGEST: u64 = 256 * 1024;
    if !proc::is_trusted(uid) {
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

/// Returns what tells a process from all others, on all hosts and at all times: where and when its
/// kernel was started, its namespace, its number there, and when it was started.
#[cfg(feature = "etcd")]
pub(super) fn process_everywhere(pid: u32) -> Option<String> {
    let started = proc::stat_field(pid, proc::STARTED)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {} {pid} {started}", boot.trim(), namespace.display()))
}
