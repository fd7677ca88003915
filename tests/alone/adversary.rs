//! An ordinary user beside root, in a lock folder that root owns. Nothing that the user can do
//! there may let two builds run at once, hang a call, or reach a file of root's.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::support::{
    BOUND, Fixture, Gate, Invocation, Namespace, OTHER_USER, Running, as_other_user, has, is_free,
    is_root, open_to_everybody, python, skip,
};

const TAG: &str = "env:abc";
const BUILD: [&str; 9] = ["--force", "-t", TAG, "--", "docker", "build", "-t", TAG, "."];
/// A user who is neither root nor [`OTHER_USER`].
const THIRD_USER: u32 = 4242;

/// The kernel's list of locks, which tests fill that have it alone, and which all others need.
static LIST: RwLock<()> = RwLock::new(());

/// Root's lock folder, with a program and an engine that all may use.
struct Scene {
    f: Fixture,
    program: PathBuf,
    /// Held to the end of the test. Dropped last, after what the test has started.
    _list: ListGuard,
}

#[expect(dead_code, reason = "only held")]
enum ListGuard {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Scene {
    /// Returns none unless root runs the tests: only root can act as other users.
    fn new() -> Option<Self> {
        Self::with(ListGuard::Shared(LIST.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The same for a test that fills the kernel's list of locks.
    fn alone_with_the_list() -> Option<Self> {
        Self::with(ListGuard::Alone(LIST.write().unwrap_or_else(PoisonError::into_inner)))
    }

    fn with(list: ListGuard) -> Option<Self> {
        if !is_root() || !has("setpriv") {
            return None;
        }
        let f = Fixture::new();
        let program = open_to_everybody(&f);
        let scene = Self { f, program, _list: list };
        scene.make_folders();
        Some(scene)
    }

    /// Makes the folders as tmpfiles.d does.
    fn make_folders(&self) {
        let f = &self.f;
        for folder in ["", "image-locks", "named-locks", "cache-locks", "build-slots"] {
            let folder = f.lock_dir().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
        }
    }

    fn make_guard(&self) {
        fs::write(self.f.guard(), "").unwrap();
        fs::set_permissions(self.f.guard(), fs::Permissions::from_mode(0o666)).unwrap();
    }

    fn root(&self) -> Invocation<'_> {
        self.f.program(&self.program)
    }

    fn user(&self) -> Invocation<'_> {
        as_other_user(&self.f, &self.program)
    }

    fn third_user(&self) -> Invocation<'_> {
        let id = THIRD_USER.to_string();
        let drop = ["--reuid", &id, "--regid", &id, "--clear-groups", "--"];
        self.f.program("setpriv").args(drop).arg(&self.program)
    }

    /// Prepares a Python script that the ordinary user runs.
    fn script(&self, script: &str, argument: &Path) -> Invocation<'_> {
        let python = python().expect("asked for before");
        as_other_user(&self.f, Path::new(python)).args(["-c", script]).arg(argument)
    }

    /// Starts a process of the ordinary user that takes the lock, leaves this record (a Python
    /// dictionary, without the pid), and then runs `then`. Returns none without Python.
    fn holder(&self, lock: &Path, record: &str, then: &str) -> Option<Running<'_>> {
        python()?;
        let script = format!(
            r#"
import ctypes, fcntl, json, os, platform, sys, threading, time
lock = os.fdopen(os.open(sys.argv[1], os.O_RDWR if os.path.exists(sys.argv[1]) else
    os.O_RDWR | os.O_CREAT, 0o666), "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
record = {record}
record["pid"] = os.getpid()
lock.write(json.dumps(record, ensure_ascii=False) + "\n")
lock.flush()
print("held", flush=True)
{then}"#
        );
        let holder = self.script(&script, lock).start();
        self.f.wait_for("the lock", || holder.stdout() == "held\n");
        Some(holder)
    }

    /// Starts a second call while the first one builds, after `between`. Fails if the builds
    /// overlap.
    fn assert_exclude(
        &self,
        first: Invocation<'_>,
        second: Invocation<'_>,
        between: impl FnOnce(&Running<'_>),
    ) {
        let f = &self.f;
        let built = f.build_events().len() / 2;
        let first = first.start();
        f.wait_for_builds(built + 1);
        between(&first);
        let mut second = second.start();
        second.wait_for_stderr("waiting");
        assert!(!second.has_ended());
        f.let_builds_go(2);
        first.wait().assert_code(0);
        second.wait().assert_code(0);
        f.assert_no_overlap();
        assert_eq!(f.build_events().len() / 2, built + 2);
    }
}

#[test]
fn user_who_made_a_lock_file_cannot_remove_it_under_root() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    f.hold_builds();
    for (lock, args) in
        [(f.lock_file(TAG), &[][..]), (f.named_lock_file("deploy"), &["--lock", "deploy"])]
    {
        let path =
            if args.is_empty() { vec!["path", TAG] } else { vec!["path", "--lock", "deploy"] };
        scene.user().args(path).run().assert_code(0);
        assert_eq!(fs::metadata(&lock).unwrap().uid(), OTHER_USER);
        let call = || scene.root().args(args).args(BUILD);
        scene.assert_exclude(call(), call(), |_| {
            // By now it is another file, which root owns.
            assert_eq!(fs::metadata(&lock).unwrap().uid(), 0);
            let rm = as_other_user(f, Path::new("rm")).arg("-f").arg(&lock).run();
            assert_ne!(rm.status.code(), Some(0), "the user could unlink {lock:?}");
        });
    }
}

#[test]
fn user_who_unlinks_a_lock_file_cannot_make_other_users_build_twice() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    scene.make_guard();
    f.hold_builds();
    let lock = f.lock_file(TAG);
    for round in 0..2 {
        scene.user().args(["path", TAG]).run().assert_code(0);
        let unlink = |_: &Running<'_>| {
            assert_eq!(fs::metadata(&lock).unwrap().uid(), OTHER_USER);
            as_other_user(f, Path::new("rm")).arg("-f").arg(&lock).run().assert_code(0);
            // The same as after a build: root's next call finds a file that the user owns.
            scene.user().args(["path", TAG]).run().assert_code(0);
        };
        match round {
            0 => scene.assert_exclude(
                scene.third_user().args(BUILD),
                scene.third_user().args(BUILD),
                unlink,
            ),
            _ => scene.assert_exclude(
                scene.third_user().args(BUILD),
                scene.root().args(BUILD),
                unlink,
            ),
        }
    }
}

#[test]
fn user_who_made_the_guard_loses_it_to_root() {
    for make in [
        ": >guard; chmod 666 guard",
        ": >guard; chmod 667 guard",
        ": >guard; chmod 4666 guard",
        "umask 077; : >guard",
        ": >guard; chmod 622 guard",
        ": >guard; chmod 666 guard; ln guard other",
    ] {
        let Some(scene) = Scene::new() else { return };
        let f = &scene.f;
        f.hold_builds();
        let lock = f.lock_file(TAG);
        let make = format!("cd \"$0\"; {make}; : >\"$1\"; chmod 667 \"$1\"");
        let sh = as_other_user(f, Path::new("sh")).args(["-c", &make]);
        sh.arg(f.lock_dir()).arg(&lock).run().assert_code(0);
        let call = || scene.root().args(BUILD);
        scene.assert_exclude(call(), call(), |_| {
            for file in [f.guard(), lock.clone()] {
                assert_eq!(fs::metadata(&file).unwrap().uid(), 0, "{make}: {file:?}");
                as_other_user(f, Path::new("rm")).arg("-f").arg(&file).run();
                assert!(file.exists(), "{make}: the user could unlink {file:?}");
            }
        });
        // Every user can use it.
        f.let_builds_go(1);
        scene.third_user().args(BUILD).run().assert_code(0);
    }
}

// A file that the user has open, or has linked elsewhere, must stay the user's.
#[test]
fn file_of_a_user_never_becomes_roots() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    for place in [f.lock_file(TAG), f.guard()] {
        _ = fs::remove_file(&place);
        let other = f.path("images").join("other");
        let make = ": >\"$0\"; chmod 666 \"$0\"; ln \"$0\" \"$1\"";
        let sh = as_other_user(f, Path::new("sh")).args(["-c", make]);
        sh.arg(&other).arg(f.path("images/second")).run().assert_code(0);
        let mv = as_other_user(f, Path::new("mv")).arg(f.path("images/second")).arg(&place).run();
        mv.assert_code(0);
        let rm = as_other_user(f, Path::new("rm")).arg(&other);
        let (inode, keep) = (fs::metadata(&place).unwrap().ino(), fs::File::open(&other).unwrap());
        rm.run().assert_code(0);
        scene.root().args(BUILD).run().assert_code(0);
        let now = fs::metadata(&place).unwrap();
        assert!(now.uid() == 0 && now.ino() != inode, "{place:?}");
        assert_eq!(keep.metadata().unwrap().uid(), OTHER_USER);
    }
}

#[test]
fn lock_file_that_a_user_shares_is_not_replaced_by_root_that_shares_it() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    scene.make_guard();
    fs::write(f.work_dir().join("Cargo.lock"), "1").unwrap();
    fn with<'f>(call: Invocation<'f>, tag: &str) -> Invocation<'f> {
        let cache = ["--cache", "cargo=Cargo.lock", "--force", "-t", tag, "--"];
        call.args(cache).args(["docker", "build", "-t", tag, "."])
    }
    // The user warms the cache, and so owns its lock files.
    with(scene.user(), "env:a").run().assert_code(0);
    f.hold_builds();
    let theirs = with(scene.user(), "env:b").start();
    f.wait_for_builds(2);
    let ours = with(scene.root(), "env:c").start();
    f.wait_for_builds(3);
    f.let_builds_go(2);
    ours.wait().assert_code(0).assert_stderr("shared");
    theirs.wait().assert_code(0).assert_no_stderr("removed");
}

#[test]
fn lease_on_the_guard_does_not_keep_root_from_it() {
    let Some(scene) = Scene::new() else { return };
    if python().is_none() {
        return;
    }
    let f = &scene.f;
    let script = r#"
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
guard = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
os.fchmod(guard, 0o666)
fcntl.fcntl(guard, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
time.sleep(600)"#;
    let lease = scene.script(script, &f.guard()).start();
    f.wait_for("the lease", || lease.stdout() == "leased\n");
    scene.root().args(BUILD).run().assert_code(0);
    assert_eq!(fs::metadata(f.guard()).unwrap().uid(), 0);
}

#[test]
fn anything_else_in_the_place_of_the_guard_is_refused_and_named() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    let guard = f.guard();
    let shown = guard.to_str().unwrap();
    for make in
        ["ln -s /etc/passwd \"$1\"", "mkfifo \"$1\"", "mkdir \"$1\"", "umask 077; : >\"$1\""]
    {
        let sh = as_other_user(f, Path::new("sh")).args(["-c", make, "sh", shown]).run();
        sh.assert_code(0);
        scene.third_user().args(BUILD).run().assert_code(125).assert_stderr(shown);
        // Root replaces everything with a file of its own, except for a folder.
        let root = scene.root().args(BUILD).run();
        if make.starts_with("mkdir") {
            root.assert_code(125).assert_stderr(shown);
        } else {
            root.assert_code(0);
            assert_eq!(fs::metadata(&guard).unwrap().uid(), 0);
            fs::remove_file(&guard).unwrap();
            continue;
        }
        let rm = ["-rf", shown];
        as_other_user(f, Path::new("rm")).args(rm).run().assert_code(0);
    }
    assert_eq!(f.build_count(TAG), 3);
    // Nothing is ever written into the guard, so a second link to it does no harm.
    scene.make_guard();
    let link = f.path("images/link");
    as_other_user(f, Path::new("ln")).arg(&guard).arg(&link).run().assert_code(0);
    scene.root().args(BUILD).run().assert_code(0);
}

// The kernel goes through all of them for each descriptor of the guard that it is asked about.
#[test]
fn nested_call_is_recognised_although_somebody_has_locked_very_many_bytes_of_the_guard() {
    let Some(scene) = Scene::alone_with_the_list() else { return };
    let (f, Some(python)) = (&scene.f, python()) else { return };
    std::os::unix::fs::symlink(&scene.program, f.path("bin/buildlock")).unwrap();
    let Some(_locks) = f.lock_bytes_of_guard(300_000) else { return };
    // Python closes all descriptors.
    let script = "import subprocess; subprocess.run('buildlock -w 5s -t env:24 -- \
                  docker build -t env:24 .'.split())";
    let mut call = f.buildlock([""; 0]);
    for n in 1..=24 {
        call = call.args(["-t", &format!("env:{n}")]);
    }
    let done = call.args(["--", python, "-c", script]).run();
    assert_eq!(f.build_count("env:24"), 1, "{done}");
    done.assert_no_stderr("waiting");
}

#[test]
fn user_who_holds_a_lock_cannot_pass_for_root() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    let lock = f.lock_file(TAG);
    scene.root().args(["path", TAG]).run().assert_code(0);
    let record = r#"{"user": "root", "host": "ci", "tag": "env:abc",
    "command": "docker build -t env:abc .", "since": "2020-01-01T00:00:00Z"}"#;
    let Some(_holder) = scene.holder(&lock, record, "time.sleep(600)") else { return };
    let user = fs::read_to_string("/etc/passwd").unwrap();
    let user = user.lines().find(|line| line.split(':').nth(2) == Some("65534"));
    let user = user.map_or("65534", |line| line.split(':').next().unwrap());

    let waited = scene.root().args(["-w", "0s"]).args(BUILD).run();
    waited.assert_code(124).assert_stderr(&format!("{user}@"));
    waited.assert_no_stderr("root@").assert_stderr("by its own account: docker build");
    let status = scene.root().args(["status", "--json"]).run();
    let held: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(held[0]["holder"]["user"], user, "{held}");
    assert_eq!(held[0]["holder"]["claimed"], true, "{held}");
    let table = scene.root().arg("status").run();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains(user) && !table.contains("root@"), "{table}");
}

#[test]
fn hard_link_to_a_lock_file_is_reported_and_removed_by_prune() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    f.hold_builds();
    let lock = f.lock_file(TAG);
    let elsewhere = f.path("images/link");
    let build = scene.root().args(BUILD).start();
    f.wait_for_builds(1);
    as_other_user(f, Path::new("ln")).arg(&lock).arg(&elsewhere).run().assert_code(0);

    // While the file is locked, the message does not advise removing it.
    let next = scene.root().args(["-w", "0s"]).args(BUILD).run();
    next.assert_code(125).assert_stderr("2 hard links").assert_stderr("buildlock prune");
    next.assert_no_stderr("remove it");
    let prune = scene.root().arg("prune").run();
    prune.assert_code(0).assert_stdout("0 lock files removed\n");
    prune.assert_stderr(lock.to_str().unwrap()).assert_stderr("another process holds it");
    f.let_builds_go(1);
    build.wait().assert_code(0).assert_no_stderr("replaced").assert_no_stderr("removed");

    scene.root().args(BUILD).run().assert_code(125);
    scene.root().arg("prune").run().assert_code(0).assert_stdout("1 lock file removed\n");
    assert_eq!(fs::read(&elsewhere).unwrap(), b"");
    f.let_builds_go(1);
    scene.root().args(BUILD).run().assert_code(0);
}

#[test]
fn prune_reports_what_it_may_not_remove() {
    let Some(scene) = Scene::new() else { return };
    scene.root().args(["path", TAG]).run().assert_code(0);
    scene.user().args(["path", "env:b"]).run().assert_code(0);
    let prune = scene.user().arg("prune").run();
    prune.assert_code(0).assert_stdout("1 lock file removed; 1 lock file of other users left\n");
    // A file that may not even be opened makes its tag unusable.
    let f = &scene.f;
    let closed = f.lock_file("env:c");
    fs::write(&closed, "").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    let prune = scene.user().arg("prune").run();
    prune.assert_code(0).assert_stderr(closed.to_str().unwrap()).assert_stderr("not removed");
}

#[test]
fn file_of_roots_that_a_user_moves_into_place_is_not_written() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    // On the same file system, in a folder that the user owns.
    let (folder, precious) = (f.path("theirs"), f.path("theirs/precious"));
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(OTHER_USER), None).unwrap();
    fs::write(f.work_dir().join("Cargo.lock"), "1").unwrap();
    let mut places = vec![f.lock_file(TAG)];
    scene.root().args(["--cache", "cargo=Cargo.lock"]).args(BUILD).run().assert_code(0);
    places.extend(f.lock_files().into_iter().filter(|path| path.extension().unwrap() == "json"));
    assert_eq!(places.len(), 2, "{}", f.scene());
    // The user may be in a group that may not write, although all others may.
    let modes = [0o600, 0o644, 0o646, 0o606, 0o664];
    for (place, mode) in places.iter().flat_map(|place| modes.map(|mode| (place, mode))) {
        fs::write(&precious, "precious\n").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(mode)).unwrap();
        fs::remove_file(place).unwrap();
        let mv = as_other_user(f, Path::new("mv")).arg(&precious).arg(place).run();
        mv.assert_code(0);
        scene.root().args(["--cache", "cargo=Cargo.lock"]).args(BUILD).run().assert_code(0);
        scene.root().args(["cache", "forget", "cargo"]).run();
        assert_eq!(fs::read_to_string(place).unwrap(), "precious\n", "{place:?} {mode:o}");
        assert_eq!(fs::metadata(place).unwrap().mode() & 0o7777, mode);
    }
}

#[test]
fn link_of_another_user_above_the_lock_folder_is_not_followed() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    let (shared, target) = (f.path("shared"), f.path("target"));
    for folder in [&shared, &target] {
        fs::create_dir(folder).unwrap();
    }
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    let link = shared.join("link");
    as_other_user(f, Path::new("ln")).arg("-s").arg(&target).arg(&link).run().assert_code(0);
    let call =
        |call: Invocation<'_>| call.arg("--lock-dir").arg(link.join("locks")).args(BUILD).run();
    call(scene.root()).assert_code(125).assert_stderr(link.to_str().unwrap());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    // The owner of the link may follow it.
    fs::set_permissions(&target, fs::Permissions::from_mode(0o777)).unwrap();
    call(scene.user()).assert_code(0);
}

#[test]
fn thousands_of_range_locks_do_not_delay_a_time_limit() {
    let Some(scene) = Scene::alone_with_the_list() else { return };
    if python().is_none() {
        return;
    }
    let lock = scene.f.lock_file(TAG);
    scene.root().args(["path", TAG]).run().assert_code(0);
    // The record names a process that has many other locks.
    let script = r#"
import fcntl, json, os, resource, sys, tempfile, time
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, 1200))
lock = open(sys.argv[1], "r+")
lock.write(json.dumps({"pid": os.getpid(), "tag": "env:abc", "command": "x"}) + "\n")
lock.flush()
if os.fork() == 0:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(600)
lock.close()
other = tempfile.TemporaryFile()
for n in range(10000):
    fcntl.lockf(other, fcntl.LOCK_EX, 1, 2 * n)
for n in range(1000):
    os.dup(other.fileno())
print("ready", flush=True)
time.sleep(600)"#;
    let holder = scene.script(script, &lock).start();
    let ready = || holder.stdout().lines().count() == 2;
    scene.f.wait_for_within(BOUND, "the locks", ready);
    let start = Instant::now();
    scene.root().args(["-w", "1s"]).args(BUILD).run().assert_code(124);
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_millis(1500), "{elapsed:?}");
}

// Reading a long list of the kernel's locks keeps all other processes from locking.
#[test]
fn long_list_of_locks_does_not_delay_a_time_limit() {
    let Some(scene) = Scene::alone_with_the_list() else { return };
    if python().is_none() {
        return;
    }
    let lock = scene.f.lock_file(TAG);
    scene.root().args(["path", TAG]).run().assert_code(0);
    // No record names the holder.
    let script = r#"
import fcntl, sys, tempfile, time
lock = open(sys.argv[1], "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
files = [tempfile.TemporaryFile() for n in range(200)]
for file in files:
    for n in range(250):
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * n)
print("ready", flush=True)
time.sleep(600)"#;
    let holder = scene.script(script, &lock).start();
    scene.f.wait_for_within(BOUND, "the locks", || holder.stdout() == "ready\n");
    for limit in [0, 1] {
        // On a busy machine, one of several attempts must be in time.
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            let limit = format!("{limit}s");
            scene.root().args(["-w", &limit]).args(BUILD).run().assert_code(124);
            fastest = fastest.min(start.elapsed());
        }
        // The time limit, 100 ms and 1 %, and 100 ms for a start and an end.
        assert!(fastest < Duration::from_millis(limit * 1010 + 300), "{limit} s: {fastest:?}");
    }
}

// Whether an ancestor's lock is one in the folder takes a look at the whole folder.
#[test]
fn many_files_in_the_lock_folder_do_not_delay_a_time_limit() {
    let Some(scene) = Scene::alone_with_the_list() else { return };
    if python().is_none() {
        return;
    }
    let f = &scene.f;
    let lock = f.lock_file(TAG);
    scene.root().args(["path", TAG]).run().assert_code(0);
    // Links are made faster than files, but a file cannot have as many.
    let script = r#"
import fcntl, os, sys, time
lock = open(sys.argv[1], "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
folder = os.path.dirname(sys.argv[1]) + "/../named-locks/"
for n in range(200000):
    name = "%s%064x.lock" % (folder, n)
    if n % 50000 == 0:
        first = name
        open(name, "x").close()
    else:
        os.link(first, name)
print("ready", flush=True)
time.sleep(600)"#;
    let holder = scene.script(script, &lock).start();
    f.wait_for_within(BOUND, "the files", || holder.stdout() == "ready\n");
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let call = f.program("flock").arg(f.path("own")).arg(&scene.program);
        call.args(["-w", "100ms"]).args(BUILD).run().assert_code(124);
        fastest = fastest.min(start.elapsed());
    }
    // The time limit, 150 ms and 1 %, and 50 ms for the start of two programs.
    assert!(fastest < Duration::from_millis(301), "{fastest:?}");
}

/// Makes a lock file with a given inode in a given place, locks it, and writes a record that names
/// a given pid as its holder.
const SAME_INODE: &str = r#"
import fcntl, os, sys, time
wanted, place = int(sys.argv[1]), sys.argv[2]
folder = os.path.dirname(place)
for n in range(100000):
    name = "%s/%d" % (folder, n)
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
    inode = os.stat(name).st_ino
    if inode == wanted:
        os.chmod(name, 0o666)
        os.rename(name, place)
        break
    os.unlink(name)
    assert inode < wanted, (inode, wanted)
lock = open(place, "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write('{"pid":%s}\n' % sys.argv[3])
lock.flush()
print("held", flush=True)
time.sleep(600)"#;

/// Runs a call inside a build, which must not take another process's lock for the outer call's.
///
/// The other lock file is on another file system and has the same inode.
fn assert_inode_alone_proves_nothing(mount_theirs: &str) {
    let Some(scene) = Scene::new() else { return };
    let (f, Some(python)) = (&scene.f, python()) else { return };
    let (ours, theirs) = (f.path("ours"), f.path("theirs"));
    fs::create_dir_all(&ours).unwrap();
    fs::create_dir_all(&theirs).unwrap();
    let mount = format!(
        "mount -t tmpfs ours \"$STANDIN/ours\"\n{mount_theirs}\nchmod 755 \"$STANDIN\"/ours \"$STANDIN\"/theirs\n\
         mkdir -p \"$STANDIN\"/theirs/locks/image-locks\n\
         chmod 1777 \"$STANDIN\"/theirs/locks \"$STANDIN\"/theirs/locks/image-locks\n\
         n=0; while [ $n -lt 300 ]; do : >\"$STANDIN/ours/$n\"; n=$((n+1)); done"
    );
    let Some(there) = Namespace::new(f, &mount) else { return };
    let locks = |folder: &Path| folder.join("locks");
    let name = f.lock_file(TAG).file_name().unwrap().to_owned();
    let lock = |folder: &Path| locks(folder).join("image-locks").join(&name);

    let gate = Gate::new(f, "go");
    let nested = format!(
        "read _ <\"$STANDIN/go\"; '{}' -w 0s --lock-dir '{}' {}",
        scene.program.display(),
        locks(&theirs).display(),
        BUILD.join(" ")
    );
    let outer = there.program(&scene.program).arg("--lock-dir").arg(locks(&ours));
    let outer = outer.args(["--force", "-t", TAG, "--", "sh", "-c", &nested]).start();
    let seen = there.path(&lock(&ours));
    f.wait_for("the outer lock", || fs::metadata(&seen).is_ok_and(|file| file.len() > 0));
    let inode = fs::metadata(&seen).unwrap().ino().to_string();
    let id = OTHER_USER.to_string();
    let user =
        there.program("setpriv").args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
    let user = user.arg(python).args(["-c", SAME_INODE, &inode]).arg(lock(&theirs));
    let user = user.arg(outer.pid().to_string()).start();
    f.wait_for("the user's lock", || user.stdout() == "held\n");
    let theirs = fs::metadata(there.path(&lock(&theirs))).unwrap();
    assert_eq!(theirs.ino().to_string(), inode);
    gate.open();
    outer.wait().assert_code(124).assert_stderr("gave up");
    assert_eq!(f.build_count(TAG), 0);
}

#[test]
fn inode_of_another_file_system_does_not_make_a_lock_an_ancestors() {
    assert_inode_alone_proves_nothing("mount -t tmpfs theirs \"$STANDIN/theirs\"");
}

#[test]
fn inode_on_an_overlay_does_not_make_a_lock_an_ancestors() {
    assert_inode_alone_proves_nothing(
        "mkdir \"$STANDIN\"/l \"$STANDIN\"/u; mount -t tmpfs l \"$STANDIN/l\"; \
         mount -t tmpfs u \"$STANDIN/u\"; mkdir \"$STANDIN\"/u/u \"$STANDIN\"/u/w; \
         mount -t overlay -o lowerdir=\"$STANDIN/l\",upperdir=\"$STANDIN/u/u\",workdir=\"$STANDIN/u/w\" \
         theirs \"$STANDIN/theirs\"",
    );
}

#[test]
fn lock_file_that_is_moved_to_another_locks_place_does_not_make_a_call_nested() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    scene.make_guard();
    f.hold_builds();
    fs::set_permissions(f.work_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let (mine, theirs) = (f.lock_file("env:mine"), f.lock_file(TAG));
    scene.user().args(["path", "env:mine"]).run().assert_code(0);
    scene.user().args(["path", TAG]).run().assert_code(0);
    let first = scene.third_user().args(BUILD).start();
    f.wait_for_builds(1);
    // The outer call has the lock of env:mine. Its file now takes the place of the other one.
    let (moved, inner) = (Gate::new(f, "moved"), scene.program.display());
    let script = format!(
        "echo begun >begun; read _ <{}; exec {inner} -w 1s {}",
        moved.arg(),
        BUILD.map(|word| format!("'{word}'")).join(" ")
    );
    let outer = ["--check=false", "-t", "env:mine", "--", "sh", "-c", &script];
    let outer = scene.third_user().args(outer).start();
    f.wait_for_file("work/begun");
    as_other_user(f, Path::new("mv")).arg("-f").args([&mine, &theirs]).run().assert_code(0);
    moved.open();
    outer.wait().assert_code(124).assert_stderr("env:abc: waiting for");
    f.let_builds_go(1);
    first.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

/// Holds the lock while one of its threads waits in an epoll for memory that never comes. The
/// kernel then lets no process read what the epoll's descriptor is.
const HELD_BEHIND_AN_EPOLL: &str = r#"
import ctypes, fcntl, json, mmap, os, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
lock = open(sys.argv[1], "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(json.dumps({"pid": os.getpid(), "tag": "env:abc", "command": "x"}) + "\n")
lock.flush()
faults = libc.syscall({"x86_64": 323, "aarch64": 282}[os.uname().machine], os.O_CLOEXEC)
if faults < 0:
    print("no userfaultfd", flush=True)
    sys.exit()
page = mmap.mmap(-1, mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
fcntl.ioctl(faults, 0xc018aa3f, struct.pack("QQQ", 0xaa, 0, 0))
fcntl.ioctl(faults, 0xc020aa00, bytearray(struct.pack("QQQQ", start, mmap.PAGESIZE, 1, 0)))
epoll, (end, other_end) = libc.epoll_create1(0), os.pipe()
libc.epoll_ctl(epoll, 1, other_end, ctypes.create_string_buffer(struct.pack("=IQ", 4, 0)))
threading.Thread(target=libc.epoll_wait, args=(epoll, ctypes.c_void_p(start), 1, -1)).start()
os.read(faults, 32)
print("held", flush=True)"#;

#[test]
fn process_whose_descriptors_cannot_be_read_does_not_delay_a_time_limit() {
    let Some(scene) = Scene::new() else { return };
    let Some(python) = python() else { return };
    let f = &scene.f;
    scene.root().args(["path", TAG]).run().assert_code(0);
    let holder = f.program(python).args(["-c", HELD_BEHIND_AN_EPOLL]).arg(f.lock_file(TAG)).start();
    f.wait_for("the lock", || holder.stdout().ends_with('\n'));
    if holder.stdout() != "held\n" {
        return skip("there is no userfaultfd");
    }
    for limit in [0, 2] {
        let mut waited = scene.root().args(["-w", &limit.to_string()]).args(BUILD).start();
        let (start, bound) = (Instant::now(), Duration::from_secs(limit + 3));
        while !waited.has_ended() && start.elapsed() < bound {
            std::thread::sleep(Duration::from_millis(20));
        }
        if !waited.has_ended() {
            // Nothing else would end the call, not even SIGKILL.
            holder.signal("KILL");
        }
        let waited = waited.wait();
        waited.assert_code(124);
        assert!(waited.elapsed < bound, "{waited}");
        // Without a wait, a busy machine may leave no time to find the name.
        if limit > 0 {
            waited.assert_stderr(&format!("pid {}", holder.pid()));
        }
    }
}

#[test]
fn user_in_the_record_of_a_dead_process_is_not_shown() {
    let Some(scene) = Scene::new() else { return };
    if python().is_none() {
        return;
    }
    let f = &scene.f;
    let script = r#"
import fcntl, json, os, sys, time
lock = open(sys.argv[1], "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
taker = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == taker:
    time.sleep(0.01)
lock.write(json.dumps({"pid": taker, "user": "root", "host": "ci-7", "tag": "env:abc",
    "command": "docker build -t env:abc .", "since": "2020-01-01T00:00:00Z"}) + "\n")
lock.flush()
os.rename("claim", "claimed")
time.sleep(600)"#;
    scene.root().args(["path", TAG]).run().assert_code(0);
    fs::write(f.path("work/claim"), "made\n").unwrap();
    fs::set_permissions(f.work_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    scene.script(script, &f.lock_file(TAG)).run().assert_code(0);
    f.wait_for_file("work/claimed");
    // More than once: the kernel's list may miss a line while other locks come and go.
    let mut held = serde_json::Value::Null;
    f.wait_for("the lock in the list of status", || {
        let status = scene.root().args(["status", "--json"]).run();
        held = serde_json::from_slice(&status.stdout).unwrap();
        held[0].is_object()
    });
    assert_eq!(held[0]["holder"]["gone"], true, "{held}");
    assert_eq!(held[0]["holder"]["user"], serde_json::Value::Null, "{held}");
    assert_eq!(held[0]["holder"]["host"], serde_json::Value::Null, "{held}");
    let mut table = String::new();
    f.wait_for("the lock in the table of status", || {
        table = String::from_utf8(scene.root().arg("status").run().stdout).unwrap();
        table.contains("env:abc")
    });
    assert!(table.contains("ended; something it left behind"), "{table}");
    assert!(!table.contains('@') && table.contains("ago (by its own account)"), "{table}");
}

/// Nobody may write a file that is being executed, but everybody can lock it.
#[test]
fn lock_file_that_its_owner_executes_is_locked_and_replaced_by_root() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    let lock = f.lock_file(TAG);
    scene.user().args(["path", TAG]).run().assert_code(0);
    let sleep = fs::read(which::which("sleep").unwrap()).unwrap();
    fs::write(&lock, sleep).unwrap();
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(fs::metadata(&lock).unwrap().uid(), OTHER_USER);
    let flock = as_other_user(f, Path::new("flock")).arg("--no-fork");
    let flock = flock.arg(&lock).arg(&lock).arg("600").start();
    f.wait_for("the lock", || !is_free(&lock));

    scene.root().args(["-w", "0s"]).args(BUILD).run().assert_code(124);
    let table = String::from_utf8(scene.root().arg("status").run().stdout).unwrap();
    assert!(table.contains(lock.to_str().unwrap()), "{table}");
    drop(flock);
    let executes = as_other_user(f, &lock).arg("600").start();
    f.wait_for("the program", || {
        let program = fs::read_link(format!("/proc/{}/exe", executes.pid()));
        program.is_ok_and(|program| program == lock)
    });
    scene.root().args(BUILD).run().assert_code(0);
    assert_eq!(fs::metadata(&lock).unwrap().uid(), 0);
}

/// `/proc` shows no descriptors of a process whose first thread has ended.
#[test]
fn holder_whose_first_thread_has_ended_is_named() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    let lock = f.lock_file(TAG);
    scene.root().args(["path", TAG]).run().assert_code(0);
    let record = r#"{"user": "root", "host": "ci", "tag": "env:abc",
    "command": "docker build -t env:abc .", "since": "2020-01-01T00:00:00Z"}"#;
    let then = r#"
threading.Thread(target=time.sleep, args=(600,)).start()
exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
ctypes.CDLL(None).syscall(exit_thread, 0)"#;
    let Some(holder) = scene.holder(&lock, record, then) else { return };
    f.wait_for("the end of its first thread", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", holder.pid())).unwrap_or_default();
        stat.contains(") Z ")
    });
    let status = scene.root().args(["status", "--json"]).run();
    let held: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(held[0]["holder"]["gone"], serde_json::Value::Null, "{held}");
    assert_eq!(held[0]["holder"]["claimed"], true, "{held}");
    let user = held[0]["holder"]["user"].as_str().unwrap();
    assert!(user != "root" && !user.is_empty(), "{held}");
    let waited = scene.root().args(["-w", "0s"]).args(BUILD).run();
    waited.assert_code(124).assert_stderr(&format!("{user}@")).assert_no_stderr("left behind");
}

#[test]
fn nothing_in_a_record_reaches_a_reader_unescaped() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    let lock = f.lock_file(TAG);
    scene.root().args(["path", TAG]).run().assert_code(0);
    let record = r#"{name: "\u009b31m\u202e" for name in ("user", "host", "tag", "name",
    "cache", "command", "directory", "since", "version", "build")}"#;
    let Some(holder) = scene.holder(&lock, record, "time.sleep(600)") else { return };
    for arguments in [&["status"][..], &["status", "--json"]] {
        let shown = String::from_utf8(scene.root().args(arguments).run().stdout).unwrap();
        assert!(shown.contains(&holder.pid().to_string()), "{shown}");
        assert!(!shown.contains(['\u{9b}', '\u{202e}']), "{shown:?}");
    }
    let waited = scene.root().args(["-w", "0s"]).args(BUILD).run();
    waited.assert_code(124);
    assert!(!waited.stderr.contains(['\u{9b}', '\u{202e}']), "{waited}");
}

/// The width of a column has a bound in Rust's formatter.
#[test]
fn record_of_any_length_does_not_break_status() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    let tag = "\u{202e}".repeat(9000);
    let lock = f.lock_file(&tag);
    scene.user().args(["path", TAG]).run().assert_code(0);
    let record = r#"{"tag": "\u202e" * 9000, "command": "\u202e" * 9000}"#;
    let Some(holder) = scene.holder(&lock, record, "time.sleep(600)") else { return };
    for arguments in [&["status"][..], &["status", "--json"]] {
        let shown = scene.root().args(arguments).run();
        shown.assert_code(0);
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&holder.pid().to_string()) && shown.len() < 60_000, "{shown}");
    }
}

/// Where users may mount file systems in user space, they can mount one over any file that they may
/// write. Here root stands in for the setuid program that does it for them.
#[test]
fn file_system_over_the_guard_or_a_lock_file_is_refused_and_not_asked() {
    let Some(scene) = Scene::new() else { return };
    let f = &scene.f;
    scene.make_guard();
    scene.root().args(["path", TAG]).run().assert_code(0);
    for covered in [f.guard(), f.lock_file(TAG)] {
        let script = format!(
            "touch \"$STANDIN/other\" && mount --bind \"$STANDIN/other\" '{0}' && exec \"$0\" \"$@\"",
            covered.display()
        );
        let words = ["--mount", "--propagation", "private", "sh", "-c", &script];
        let call = f.program("unshare").args(words).arg(&scene.program).args(BUILD);
        call.run().assert_code(125).assert_stderr("something is mounted over it");
    }
    scene.root().args(BUILD).run().assert_code(0);
}
