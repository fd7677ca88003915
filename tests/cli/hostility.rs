//! A user who may write to the lock folder can stop a build. Such a user must not make buildlock
//! write anywhere else, hang, or believe in a build that never ran.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::notes::{self, assert_locks_exclude, calling, wait_for_calls};
use crate::support::{
    Finished, Fixture, Namespace, OTHER_USER, Running, buildlock_path, has, is_root,
    open_to_everybody, python, sha256, waiters, with_faults,
};

const TAG: &str = "env:abc";
const BUILD: [&str; 8] = ["-t", TAG, "--", "docker", "build", "-t", TAG, "."];

// Files that must not change.

/// A file and a folder that are not buildlock's.
struct Victim<'f> {
    f: &'f Fixture,
    file: PathBuf,
    folder: PathBuf,
    seen: String,
}

impl<'f> Victim<'f> {
    fn new(f: &'f Fixture) -> Self {
        let (file, folder) = (f.path("victim"), f.path("victims"));
        fs::write(&file, "precious\n").unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("kept"), "precious\n").unwrap();
        let mut victim = Self { f, file, folder, seen: String::new() };
        victim.seen = victim.look();
        victim
    }

    /// Returns everything there is to see of it, except for its number of links.
    fn look(&self) -> String {
        let mut seen = String::new();
        for path in [&self.file, &self.folder, &self.folder.join("kept")] {
            let found = fs::symlink_metadata(path).unwrap();
            let (mode, owner, inode) = (found.mode(), found.uid(), found.ino());
            let written = (found.mtime(), found.mtime_nsec(), found.len());
            seen += &format!("{path:?} {mode:o} {owner} {inode} {written:?}\n");
        }
        for file in [&self.file, &self.folder.join("kept")] {
            seen += &fs::read_to_string(file).unwrap();
        }
        let entries = fs::read_dir(&self.folder).unwrap().flatten();
        seen + &format!("{:?}", entries.map(|entry| entry.file_name()).collect::<Vec<_>>())
    }

    #[track_caller]
    fn assert_unharmed(&self) {
        assert_eq!(self.look(), self.seen);
        let made = fs::symlink_metadata(self.f.path("never"));
        assert!(made.is_err(), "what a dangling link named was made");
    }
}

/// What can be put in the place of a lock file.
const KINDS: [&str; 8] =
    ["symlink", "dangling", "folder link", "hard link", "fifo", "socket", "folder", "device"];

/// Puts something there. Returns false if this machine does not allow it.
fn plant(kind: &str, victim: &Victim<'_>, place: &Path) -> bool {
    let run = |command: &mut Command| command.status().unwrap().success();
    match kind {
        "symlink" => symlink(&victim.file, place).unwrap(),
        "dangling" => symlink(victim.f.path("never"), place).unwrap(),
        "folder link" => symlink(&victim.folder, place).unwrap(),
        "hard link" => fs::hard_link(&victim.file, place).unwrap(),
        "fifo" => assert!(run(Command::new("mkfifo").arg(place))),
        "socket" => {
            // The place's path may be too long for a socket.
            drop(UnixListener::bind(victim.f.path("socket")).unwrap());
            fs::rename(victim.f.path("socket"), place).unwrap();
        }
        "folder" => fs::create_dir(place).unwrap(),
        "device" => {
            return is_root() && run(Command::new("mknod").arg(place).args(["c", "1", "3"]));
        }
        kind => panic!("{kind}"),
    }
    true
}

/// Replaces what is there, in one step: otherwise a waiter could make a new lock file between.
fn swap(f: &Fixture, kind: &str, victim: &Victim<'_>, place: &Path) -> bool {
    let fresh = f.path("fresh");
    let planted = plant(kind, victim, &fresh);
    // Only a folder cannot replace a file.
    while planted && fs::rename(&fresh, place).is_err() {
        clear(place);
    }
    planted
}

/// Removes what is there.
fn clear(place: &Path) {
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(place).unwrap(),
        Ok(_) => fs::remove_file(place).unwrap(),
        Err(_) => {}
    }
}

#[track_caller]
fn assert_names(refused: &Finished, culprit: &Path) {
    refused.assert_code(125).assert_stdout("").assert_stderr(culprit.to_str().unwrap());
}

// One swap at a chosen moment.

#[test]
fn anything_in_the_place_of_a_lock_file_is_refused_and_left_alone() {
    let f = Fixture::new();
    let victim = Victim::new(&f);
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    for kind in KINDS {
        clear(&lock);
        if !plant(kind, &victim, &lock) {
            continue;
        }
        for args in [&BUILD[..], &["--force", "-w", "0s", "-t", TAG, "--", "true"], &["path", TAG]]
        {
            assert_names(&f.buildlock(args).run(), &lock);
        }
        f.buildlock(["status"]).run().assert_code(0);
        f.buildlock(["prune"]).run().assert_code(0);
        // prune removes a link to another file. The other kinds are no lock files, and stay.
        let is_there = fs::symlink_metadata(&lock).is_ok();
        assert_eq!(is_there, kind != "hard link", "prune and a {kind}");
        victim.assert_unharmed();
    }
    assert_eq!(f.build_count(TAG), 0);
}

#[test]
fn lock_file_that_is_swapped_during_a_wait_is_refused() {
    for kind in KINDS {
        for options in [&[][..], &["--force"]] {
            let f = Fixture::new();
            let victim = Victim::new(&f);
            let lock = f.lock_file(TAG);
            let holder = f.hold_lock(&lock);
            let waiting = f.buildlock(options).args(BUILD).start();
            f.wait_for_waiters(&lock, 1);
            if !swap(&f, kind, &victim, &lock) {
                continue;
            }
            drop(holder);
            assert_names(&waiting.wait(), &lock);
            victim.assert_unharmed();
            assert_eq!(f.build_count(TAG), 0, "{kind}");
        }
    }
}

#[test]
fn lock_file_that_is_swapped_during_a_build_is_reported_and_left_alone() {
    for kind in KINDS {
        for status in ["0", "7"] {
            let f = Fixture::new();
            let victim = Victim::new(&f);
            let lock = f.lock_file(TAG);
            f.hold_builds();
            let build = f.docker_build(TAG).env("STANDIN_BUILD_STATUS", status).start();
            f.wait_for_builds(1);
            if !swap(&f, kind, &victim, &lock) {
                continue;
            }
            f.release_builds();
            let build = build.wait();
            build.assert_code(status.parse().unwrap());
            build.assert_stderr_matches("warning: .*while it was held");
            victim.assert_unharmed();
        }
    }
}

// A moment after a folder was made, its name may lead elsewhere: the owner of the folder above can
// replace it by a link.
#[test]
fn folders_above_the_lock_folder_are_not_changed_by_their_names() {
    let f = Fixture::new();
    let faults = ["chmod:EIO", "fchmodat:EIO"];
    let Some(buildlock) = with_faults(&f, &faults) else { return };
    let path = buildlock.args(["path", TAG, "--lock-dir"]).arg(f.path("a/b/locks")).run();
    path.assert_code(0);
    for folder in ["a", "a/b"] {
        assert_eq!(fs::metadata(f.path(folder)).unwrap().mode() & 0o7777, 0o755);
    }
}

/// Returns the lock folder, and the one in it.
fn folders(f: &Fixture) -> [PathBuf; 2] {
    [f.lock_dir().join("image-locks"), f.lock_dir()]
}

#[test]
fn folder_that_becomes_a_link_during_a_wait_is_refused() {
    for n in 0..2 {
        let f = Fixture::new();
        let victim = Victim::new(&f);
        let folder = &folders(&f)[n];
        let lock = f.lock_file(TAG);
        let holder = f.hold_lock(&lock);
        let waiting = f.docker_build(TAG).start();
        f.wait_for_waiters(&lock, 1);
        fs::rename(folder, f.path("away")).unwrap();
        symlink(&victim.folder, folder).unwrap();
        drop(holder);
        let refused = waiting.wait();
        assert_names(&refused, folder);
        victim.assert_unharmed();
        assert_eq!(f.build_count(TAG), 0);
    }
}

#[test]
fn folder_that_becomes_a_link_during_a_build_is_reported() {
    for n in 0..2 {
        let f = Fixture::new();
        let victim = Victim::new(&f);
        let folder = &folders(&f)[n];
        f.hold_builds();
        let build = f.docker_build(TAG).start();
        f.wait_for_builds(1);
        fs::rename(folder, f.path("away")).unwrap();
        symlink(&victim.folder, folder).unwrap();
        f.release_builds();
        build.wait().assert_code(0).assert_stderr_matches("warning: .*while it was held");
        victim.assert_unharmed();
    }
}

#[test]
fn file_of_an_ancestor_moved_into_the_place_of_a_held_lock_file_does_not_make_a_call_nested() {
    for kind in ["--exclusive", "--shared"] {
        let f = Fixture::new();
        symlink(buildlock_path(), f.path("bin/buildlock")).unwrap();
        f.hold_builds();
        let build = f.docker_build(TAG).start();
        f.wait_for_builds(1);
        fs::write(f.path("own"), "").unwrap();
        fs::set_permissions(f.path("own"), fs::Permissions::from_mode(0o666)).unwrap();
        // A script holds a file of its own, which another user may rename.
        let script = format!(
            "mv -T own '{}' && exec buildlock --force -w 0s -E 75 {}",
            f.lock_file(TAG).display(),
            BUILD.join(" ")
        );
        let call =
            f.program("flock").args([kind, "own", "sh", "-c", &script]).current_dir(f.path(""));
        call.run().assert_code(75);
        assert_eq!(f.build_count(TAG), 1, "{}", f.scene());
        f.release_builds();
        build.wait().assert_code(0).assert_stderr_matches("warning: .*while it was held");
    }
}

// No script is told where the locks of caches are, so none can have taken one before a nested call.
#[test]
fn file_of_an_ancestor_in_the_place_of_a_caches_lock_does_not_make_a_call_nested() {
    for (name, kind) in [(".turnstile", "--exclusive"), ("", "--shared")] {
        let f = Fixture::new();
        symlink(buildlock_path(), f.path("bin/buildlock")).unwrap();
        fs::write(f.work_dir().join("Cargo.lock"), "").unwrap();
        let cached = || f.buildlock(["--force", "--cache", "cargo=Cargo.lock"]).args(BUILD);
        // The first build has the cache for itself; the second shares it.
        cached().run().assert_code(0);
        f.hold_builds();
        let build = cached().start();
        f.wait_for_builds(2);
        fs::write(f.path("own"), "").unwrap();
        fs::set_permissions(f.path("own"), fs::Permissions::from_mode(0o666)).unwrap();
        let lock = f.lock_dir().join(format!("cache-locks/{}{name}.lock", sha256("cargo")));
        let script = format!(
            "mv -T own '{}' && exec buildlock --cache cargo -w 1s -E 75 -t env:other -- \
             sh -c ': >\"$STANDIN/built\"'",
            lock.display()
        );
        let call =
            f.program("flock").args([kind, "own", "sh", "-c", &script]).current_dir(f.path(""));
        call.run().assert_code(75);
        assert!(!f.path("built").exists(), "{}", f.scene());
        f.release_builds();
        build.wait().assert_code(0);
    }
}

#[test]
fn waiters_whose_folder_was_replaced_still_exclude_each_other() {
    for n in 0..2 {
        let f = Fixture::new();
        let folder = &folders(&f)[n];
        let lock = f.lock_file(TAG);
        let holder = f.hold_lock(&lock);
        let start = || f.buildlock(["--force"]).args(BUILD).start();
        let mut all: Vec<_> = (0..4).map(|_| start()).collect();
        f.wait_for_waiters(&lock, 4);
        fs::rename(folder, f.path("away")).unwrap();
        drop(f.open_lock_file(&lock));
        // Callers that come later know only the new file.
        all.extend((0..4).map(|_| start()));
        f.wait_for_builds(1);
        drop(holder);
        for one in all {
            one.wait().assert_code(0);
        }
        assert_eq!(f.build_count(TAG), 8);
        f.assert_no_overlap();
    }
}

// Endless swaps.

/// Replaces what is in a place by something else, over and over, until it is told to stop. Each
/// swap is one step where the kernel can do that.
const SWAPPER: &str = r#"
import os, random, socket, stat, sys, time
standin, place, kinds = sys.argv[1], sys.argv[2], sys.argv[3:]
fresh, count = place + ".fresh", 0

def make(kind, at):
    if kind == "symlink": os.symlink(standin + "/victim", at)
    if kind == "dangling": os.symlink(standin + "/never", at)
    if kind == "folder link": os.symlink(standin + "/victims", at)
    if kind == "hard link": os.link(standin + "/victim", at)
    if kind == "fifo": os.mkfifo(at)
    if kind == "socket":
        socket.socket(socket.AF_UNIX).bind(standin + "/socket")
        os.rename(standin + "/socket", at)
    if kind == "folder": os.mkdir(at)
    if kind == "file": open(at, "x").close()
    if kind == "device": os.mknod(at, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    if kind in ("folder", "file"): os.chmod(at, 0o1777 if kind == "folder" else 0o666)

def away():
    global count
    count += 1
    try:
        os.rename(place, "%s/away/%d" % (standin, count))
    except FileNotFoundError:
        pass

os.mkdir(standin + "/away")
order, made = [], set()
while not os.path.exists(standin + "/stop"):
    if not order:
        order = kinds + ["nothing"] * len(kinds)
        random.shuffle(order)
    kind = order.pop()
    try:
        if kind == "nothing":
            away()
        elif kind == "back":
            away()
            os.rename("%s/away/%d" % (standin, random.randint(1, count)), place)
        else:
            make(kind, fresh)
            if random.random() < 0.5:
                away()
            os.rename(fresh, place)
        made.add(kind)
    except OSError:
        # Something is in its way, or is not there: the next one.
        away()
        try:
            os.rename(fresh, "%s/away/fresh.%d" % (standin, count))
        except OSError:
            pass
    rest = 0.02 if kind in ("nothing", "file", "back", "folder") else 0.003
    time.sleep(random.expovariate(1 / rest))
away()
print(count, *sorted(made), sep=", ")
"#;

fn assert_swaps_do_no_harm(place: impl Fn(&Fixture) -> PathBuf, kinds: &[&str]) {
    let Some(python) = python() else { return };
    let f = Fixture::new();
    notes::install(&f);
    let victim = Victim::new(&f);
    let place = place(&f);
    f.buildlock(["path", TAG]).run().assert_code(0);
    let swapper = f.program(python).args(["-c", SWAPPER]).arg(f.path("").join(""));
    let swapper = swapper.arg(&place).args(kinds).start();
    f.wait_for("the swapper", || f.path("away").exists());

    // A call ends with 0 only if it has built.
    let forced = ["--force", "-w", "5s", "-t", TAG, "--", "noting", TAG];
    let all: Vec<Running<'_>> =
        (0..4).map(|_| calling(&f, "0 124 125", 12, &forced).start()).collect();
    let ended = wait_for_calls(&f, 48, all);
    let statuses = f.lines("statuses");
    let succeeded = statuses.iter().filter(|status| *status == "0").count();
    let built = f.lines("notes").iter().filter(|note| note.starts_with("end ")).count();
    assert!(succeeded > 0 && succeeded <= built, "{succeeded} of {built}");
    for one in ended {
        for error in one.stderr.lines().filter(|line| line.starts_with("buildlock: error: ")) {
            assert!(error.contains(f.lock_dir().to_str().unwrap()), "{error}");
        }
        one.assert_no_stderr("panicked");
    }

    fs::write(f.path("stop"), "").unwrap();
    let swapped = swapper.wait();
    swapped.assert_code(0);
    victim.assert_unharmed();
    let overlaps = assert_locks_exclude(&f);
    let swaps = swapped.stdout_line();
    println!("swaps: {swaps}; {succeeded} of 48 built, {overlaps} beside another");
    clear(&place);
    f.buildlock(forced).run().assert_code(0).assert_no_stderr("error");
    assert!(waiters(&f.lock_file(TAG)).is_empty());
}

#[test]
fn lock_file_that_is_swapped_again_and_again_harms_nothing() {
    let mut kinds = KINDS.to_vec();
    kinds.extend(["file", "back"]);
    assert_swaps_do_no_harm(|f| f.lock_file(TAG), &kinds);
}

#[test]
fn folder_of_locks_that_is_swapped_again_and_again_harms_nothing() {
    let kinds = ["folder link", "dangling", "symlink", "fifo", "folder", "back"];
    assert_swaps_do_no_harm(|f| folders(f)[0].clone(), &kinds);
}

#[test]
fn lock_folder_that_is_swapped_again_and_again_harms_nothing() {
    let kinds = ["folder link", "dangling", "symlink", "fifo", "folder", "back"];
    assert_swaps_do_no_harm(|f| folders(f)[1].clone(), &kinds);
}

// False records.

#[test]
fn planted_result_never_counts_as_a_build() {
    let results = [
        r#"{"build":"x","status":0}"#,
        r#"{"build":"x","status":5}"#,
        r#"{"build":"x","status":125}"#,
        r#"{"build":"x","status":256}"#,
        r#"{"build":"x","status":-1}"#,
        r#"{"build":"","status":false}"#,
        r#"{"status":0}"#,
    ];
    for result in results {
        let f = Fixture::new();
        let lock = f.lock_file(TAG);
        let share = ["--on-failure", "share"];
        let start = || f.buildlock(share).args(BUILD).start();

        // Written before the wait: it is not from a build that was waited for.
        let holder = f.hold_lock(&lock);
        fs::write(&lock, format!("{result}\n")).unwrap();
        let waiting = start();
        f.wait_for_waiters(&lock, 1);
        drop(holder);
        waiting.wait().assert_code(0);
        assert_eq!(f.build_count(TAG), 1, "{result}");

        // Written during the wait: at most a failure is believed.
        fs::remove_file(f.path("images").join(TAG)).unwrap();
        let holder = f.hold_lock(&lock);
        let waiting = start();
        f.wait_for_waiters(&lock, 1);
        fs::write(&lock, format!("{result}\n")).unwrap();
        drop(holder);
        let code = waiting.wait().status.code();
        let built = f.build_count(TAG) == 2;
        assert!(built && code == Some(0) || !built && code == Some(5), "{result}: {code:?}");

        // Without a holder, neither a failure nor a success is believed.
        clear(&f.path("images").join(TAG));
        fs::write(f.path("builds.log"), "").unwrap();
        fs::write(&lock, format!("{result}\n")).unwrap();
        start().wait().assert_code(0);
        assert_eq!(f.build_count(TAG), 1, "{result}");
    }
}

#[test]
fn oversized_record_is_neither_read_nor_shown() {
    const ROOM: &str = "ulimit -v 400000 && exec \"$0\" \"$@\"";
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    let buildlock = || f.program("sh").args(["-c", ROOM]).arg(buildlock_path());
    let escapes = b"\x1b]0;mallory\x07\x1b[2J\x9b5n\xe2\x80\xaemallory\r\n".repeat(100);
    let noise: Vec<u8> =
        (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let long = format!("{{\"pid\":1,\"command\":\"mallory{}\"}}", "x".repeat(64 * 1024));
    for (kind, bytes, length) in [
        ("1 GiB", &b""[..], Some(1 << 30)),
        ("1 GiB after a word", b"mallory", Some(1 << 30)),
        ("noise", &noise, None),
        ("escapes", &escapes, None),
        ("64 KiB without an end", &b"mallory ".repeat(8 * 1024), None),
        ("a record too long", long.as_bytes(), None),
    ] {
        let plant = || {
            fs::write(&lock, bytes).unwrap();
            if let Some(length) = length {
                fs::OpenOptions::new().write(true).open(&lock).unwrap().set_len(length).unwrap();
            }
        };
        clear(&f.path("images").join(TAG));
        let holder = f.hold_lock(&lock);
        plant();
        let status = buildlock().arg("status").run();
        let json = buildlock().args(["status", "--json"]).run();
        let waited = buildlock().args(["-w", "300ms"]).args(BUILD).run();
        waited.assert_code(124).assert_stderr(&format!("pid {}", holder.pid()));
        let shown = String::from_utf8(status.stdout.clone()).unwrap();
        assert!(shown.contains(&format!("pid {}", holder.pid())), "{kind}: {shown}");
        for text in [&shown, &String::from_utf8(json.stdout.clone()).unwrap(), &waited.stderr] {
            assert!(!text.contains("mallory"), "{kind}: {text}");
            let odd = text.chars().find(|&c| c.is_control() && c != '\n');
            assert_eq!(odd, None, "{kind}: {text}");
        }
        status.assert_code(0);
        json.assert_code(0);
        drop(holder);

        fs::write(f.path("builds.log"), "").unwrap();
        plant();
        buildlock().args(BUILD).run().assert_code(0);
        assert_eq!(f.build_count(TAG), 1, "{kind}");
        let left = length.unwrap_or_default();
        assert_eq!(fs::metadata(&lock).unwrap().len(), left, "{kind}");
    }
}

// To empty or free a file with many blocks, the kernel needs minutes that no time limit reaches.
#[test]
fn lock_file_that_was_made_large_is_neither_emptied_nor_freed() {
    const LARGE: u64 = 4 << 20;
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    let fill = || fs::write(&lock, vec![b'x'; LARGE as usize]).unwrap();
    let inode = || fs::metadata(&lock).unwrap().ino();
    let ours = inode();

    // A script may be waiting for this very file.
    fill();
    let built = f.buildlock(["--force"]).args(BUILD).run();
    built.assert_code(0).assert_stderr("cannot name its holder").assert_stderr("prune");
    assert_eq!((inode(), fs::metadata(&lock).unwrap().len()), (ours, LARGE));
    // While it is held.
    fs::write(&lock, "").unwrap();
    let large = format!("head -c {LARGE} /dev/zero >>'{}'", lock.display());
    f.buildlock(["--force", "-t", TAG, "--", "sh", "-c", &large]).run().assert_code(0);
    assert!(fs::metadata(&lock).unwrap().len() > LARGE);

    if is_root() {
        std::os::unix::fs::chown(&lock, Some(OTHER_USER), None).unwrap();
        f.buildlock(["--force"]).args(BUILD).run().assert_code(0).assert_no_stderr("warning");
        let replaced = fs::metadata(&lock).unwrap();
        assert_eq!((replaced.uid(), replaced.len()), (0, 0));
        let moved =
            f.lock_files().into_iter().find(|file| fs::metadata(file).unwrap().ino() == ours);
        assert!(fs::metadata(moved.unwrap()).unwrap().len() > LARGE);
    }
    f.buildlock(["prune"]).run().assert_code(0);
    assert_eq!(f.lock_files(), Vec::<PathBuf>::new());
}

#[test]
fn note_that_was_made_large_is_replaced() {
    let f = Fixture::new();
    fs::write(f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let build = |tag| {
        let cache = f.buildlock(["--cache=cargo=Cargo.lock"]);
        cache.args(["--", "docker", "build", "-t", tag, "."]).run()
    };
    build("env:a").assert_code(0);
    let note = f.path(format!("locks/cache-locks/{}.json", sha256("cargo")));
    let small = fs::metadata(&note).unwrap();
    fs::OpenOptions::new().write(true).open(&note).unwrap().set_len(4 << 20).unwrap();
    fs::write(f.work_dir().join("Cargo.lock"), "two\n").unwrap();
    build("env:b").assert_code(0).assert_no_stderr("warning");
    let fresh = fs::metadata(&note).unwrap();
    assert!(fresh.ino() != small.ino() && fresh.len() < 4096, "{}", fresh.len());
    build("env:c").assert_code(0).assert_stderr("cache=cargo warm");
}

// Without access to the kernel's information.

#[test]
fn locks_hold_without_proc() {
    let f = Fixture::new();
    let Some(there) = Namespace::new(&f, "mount -t tmpfs none /proc") else { return };
    fs::remove_dir(f.lock_dir()).unwrap();
    f.hold_builds();
    let first = there.docker_build(TAG).start();
    f.wait_for_builds(1);
    let others: Vec<_> = (0..3).map(|_| there.docker_build(TAG).start()).collect();
    for one in &others {
        one.wait_for_stderr("waiting for");
    }
    f.wait_for_waiters(&f.lock_file(TAG), 3);
    there.buildlock(["-w", "0s"]).args(BUILD).run().assert_code(124);
    there.buildlock(["status"]).run().assert_code(0);
    there.buildlock(["prune"]).run().assert_code(0);
    assert!(f.lock_file(TAG).exists());
    f.let_builds_go(1);
    first.wait().assert_code(0);
    for one in others {
        one.wait().assert_code(0);
    }
    assert_eq!(f.build_count(TAG), 1);

    // A holder that is killed leaves the lock to the next caller here, too.
    clear(&f.path("images").join(TAG));
    let first = there.docker_build(TAG).start();
    f.wait_for_builds(2);
    let second = there.docker_build(TAG).start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);
    first.signal("KILL");
    f.wait_for_builds(3);
    f.release_builds();
    second.wait().assert_code(0);
    f.assert_no_overlap();
    let files = f.lock_files();
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().mode() & 0o777 == 0o666));
    there.buildlock(["prune"]).run().assert_code(0);
    assert!(f.lock_files().is_empty());
}

#[test]
fn locks_hold_where_other_users_processes_are_hidden() {
    if !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let hidden = "mount -t proc -o hidepid=2 proc /proc";
    let Some(there) = Namespace::new(&f, hidden) else { return };
    fs::remove_dir(f.lock_dir()).unwrap();
    let program = open_to_everybody(&f);
    let lock = f.lock_file(TAG);
    let id = OTHER_USER.to_string();
    let other = || {
        let drop = ["--reuid", &id, "--regid", &id, "--clear-groups", "--"];
        there.program("setpriv").args(drop).arg(&program)
    };
    f.hold_builds();
    let first = there.program(&program).args(BUILD).start();
    f.wait_for_builds(1);
    let second = other().args(BUILD).start();
    second.wait_for_stderr("waiting for");
    f.wait_for_waiters(&lock, 1);
    other().args(["-w", "0s"]).args(BUILD).run().assert_code(124);
    other().arg("status").run().assert_code(0);
    f.let_builds_go(1);
    first.wait().assert_code(0);
    second.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);

    clear(&f.path("images").join(TAG));
    let first = there.program(&program).args(BUILD).start();
    f.wait_for_builds(2);
    let second = other().args(BUILD).start();
    f.wait_for_waiters(&lock, 1);
    first.signal("KILL");
    f.wait_for_builds(3);
    f.release_builds();
    second.wait().assert_code(0);
    f.assert_no_overlap();
}
