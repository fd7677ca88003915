//! Lock files that are removed by `prune` or by a cleaner of temporary folders.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::notes::{
    self, assert_alone, assert_locks_exclude, builds, calling, wait_for_calls,
};
use crate::support::{
    Fixture, Running, as_other_user, buildlock_path, has, is_free, is_root, open_to_everybody,
    python, waiters,
};

const TAG: &str = "env:abc";
const FORCED: [&str; 7] = ["-q", "--force", "-t", TAG, "--", "noting", TAG];

/// Removes lock files, and the folders that are then empty, until it is told to stop.
///
/// It notes each file and keeps it open. It pauses for a long or a short while, so that even on a
/// busy machine a lock can be taken at some moment.
const CLEANER: &str = r#"
import os, random, sys, time
standin, folder, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
notes = os.open(standin + "/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
kept, removed = [], 0
while not os.path.exists(standin + "/stop"):
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            try:
                file = os.open(os.path.join(place, name), os.O_RDONLY)
                os.unlink(os.path.join(place, name))
            except FileNotFoundError:
                continue
            os.write(notes, b"removed %d\n" % os.fstat(file).st_ino)
            kept.append(file)
            removed += 1
        if sys.argv[4] == "folders":
            try:
                os.rmdir(place)
            except OSError:
                pass
    time.sleep(random.expovariate(1 / pause))
print(removed)
"#;

fn cleaner<'f>(f: &'f Fixture, what: &str, pause: &str) -> Option<Running<'f>> {
    let words = [f.path(""), f.lock_dir()];
    let cleaner = f.program("sh").args(["-c", "ulimit -n 65536; exec \"$@\"", "sh", python()?]);
    Some(cleaner.args(["-c", CLEANER]).args(words).args([pause, what]).start())
}

fn stop(f: &Fixture, what: Running<'_>) -> usize {
    fs::write(f.path("stop"), "").unwrap();
    let done = what.wait();
    done.assert_code(0);
    done.stdout_line().parse().unwrap_or(0)
}

fn assert_locks_exclude_beside_a_cleaner(what: &str, pause: &str, times: usize) {
    let f = Fixture::new();
    notes::install(&f);
    let Some(cleaner) = cleaner(&f, what, pause) else { return };
    let all: Vec<_> = (0..8).map(|_| calling(&f, "0", times, &FORCED).start()).collect();
    wait_for_calls(&f, 8 * times, all);
    let removed = stop(&f, cleaner);
    assert_eq!(builds(&f), 8 * times);
    assert!(removed > 20, "it removed only {removed}");
    let overlaps = assert_locks_exclude(&f);
    println!("{removed} files removed, {overlaps} builds beside another");
}

#[test]
fn no_two_builds_have_one_lock_beside_a_cleaner() {
    assert_locks_exclude_beside_a_cleaner("folders", "0.01", 20);
}

#[test]
fn no_two_builds_have_one_lock_beside_a_cleaner_that_hardly_pauses() {
    assert_locks_exclude_beside_a_cleaner("files", "0.003", 10);
}

/// Starts `prune` again and again, as fast as it can.
fn pruning(f: &Fixture) -> Running<'_> {
    let script = "while [ ! -e \"$STANDIN/stop\" ]; do \"$0\" prune -q || exit; \
        echo >>\"$STANDIN/rounds\"; done";
    f.program("sh").args(["-c", script]).arg(buildlock_path()).start()
}

#[test]
fn prune_beside_hundreds_of_calls_harms_none_of_them() {
    let f = Fixture::new();
    notes::install(&f);
    let pruning = pruning(&f);
    let at_once = [&["-w", "0s"][..], &FORCED].concat();
    let plain = ["-q", "-t", TAG, "--", "noting", TAG];
    let path = ["path", TAG];
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(calling(&f, "0", 15, &FORCED).start());
        all.push(calling(&f, "0 124", 15, &at_once).start());
        all.push(calling(&f, "0", 15, &plain).start());
        all.push(calling(&f, "0", 15, &path).start());
    }
    for one in wait_for_calls(&f, 180, all) {
        one.assert_no_stderr("warning");
    }
    assert!(waiters(&f.lock_file(TAG)).is_empty());
    stop(&f, pruning);
    assert!(f.lines("rounds").len() > 20, "it hardly ran: {}", f.lines("rounds").len());
    assert!(builds(&f) >= 45);
    assert_alone(&f);
    f.buildlock(["prune"]).run().assert_code(0);
    assert_eq!(f.lock_files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn lock_file_that_prune_has_removed_is_made_again() {
    let f = Fixture::new();
    let pruning = pruning(&f);
    notes::install(&f);
    // Takes the lock as scripts do. If the file was removed meanwhile, it tries again.
    f.install_script(
        "taking",
        "#!/bin/bash\nuntil exec 9<\"$(\"$1\" path env:abc)\"; do :; done 2>/dev/null\nflock 9\n",
    );
    let all: Vec<_> = (0..4)
        .map(|_| {
            let taking = f.program("calling").args(["0", "25", "taking"]);
            taking.arg(buildlock_path()).start()
        })
        .collect();
    wait_for_calls(&f, 100, all);
    stop(&f, pruning);
    assert!(f.lines("rounds").len() > 5, "it hardly ran");
}

#[test]
fn prune_of_another_user_removes_only_that_users_files() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    let count = |folder: &Path| fs::read_dir(folder).map_or(0, Iterator::count);
    let folder = f.lock_dir().join("image-locks");
    f.buildlock(["path", "env:root"]).run().assert_code(0);
    as_other_user(&f, &program).args(["path", "env:other"]).run().assert_code(0);
    assert_eq!(count(&folder), 2);
    as_other_user(&f, &program).arg("prune").run().assert_code(0);
    assert_eq!(f.lock_files(), [f.lock_file("env:root")]);
    // The user can lock it, so it must not stay locked.
    assert!(is_free(&f.lock_file("env:root")));

    notes::install(&f);
    fs::write(f.path("notes"), "").unwrap();
    fs::set_permissions(f.path("notes"), fs::Permissions::from_mode(0o666)).unwrap();
    let script = "while [ ! -e \"$STANDIN/stop\" ]; do \"$0\" prune -q || exit; done";
    let pruning = as_other_user(&f, Path::new("sh")).args(["-c", script]).arg(&program).start();
    let all: Vec<_> = (0..4).map(|_| calling(&f, "0", 10, &FORCED).start()).collect();
    wait_for_calls(&f, 40, all);
    stop(&f, pruning);
    assert_eq!(builds(&f), 40);
    assert_alone(&f);
    f.buildlock(["prune"]).run().assert_code(0);
    assert_eq!(count(&folder), 0);
}
