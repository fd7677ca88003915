//! The lock folder on each kind of file system, on a full one, and on one that refuses calls.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::{
    Finished, Fixture, Namespace, buildlock_path, has, is_free, is_root, opening_lock_file,
    opening_nameless, skip, with_faults,
};

const TAG: &str = "env:abc";
const BUILD: [&str; 7] = ["-t", TAG, "--", "docker", "build", "-t", TAG];

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{path:?}: {e}")).mode() & 0o7777
}

/// Fails unless the call ended with 125 and named the culprit and the way out.
#[track_caller]
fn assert_refused(refused: &Finished, culprit: &Path) {
    refused.assert_code(125).assert_stdout("");
    refused.assert_stderr(culprit.to_str().unwrap()).assert_stderr("--lock-dir");
}

// Every kind.

/// Checks what users rely on, with the lock folder on what `script` mounts there.
fn assert_locks_on(script: &str) {
    let f = Fixture::new();
    let Some(there) = Namespace::new(&f, script) else { return };
    f.hold_builds();
    one_build_for_eight_calls(&f, &there);
    killed_holder_is_followed_by_a_waiter(&f, &there);
    removed_lock_file_is_noticed(&f, &there);
    f.assert_no_overlap();

    let found = |folder: &str| {
        let folder = there.path(&f.lock_dir()).join(folder);
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    assert_eq!(mode(&there.path(&f.lock_dir()).join("image-locks")), 0o1777);
    assert_eq!(found("image-locks"), [there.path(&f.lock_file(TAG))]);
    assert_eq!(mode(&there.path(&f.lock_file(TAG))), 0o666);
    there.buildlock(["prune"]).run().assert_code(0);
    assert!(found("image-locks").is_empty());
    assert!(!f.lock_dir().join("image-locks").exists(), "it was not where the test thought");
}

fn one_build_for_eight_calls(f: &Fixture, there: &Namespace<'_>) {
    let first = there.docker_build(TAG).start();
    f.wait_for_builds(1);
    let others: Vec<_> = (0..7).map(|_| there.docker_build(TAG).start()).collect();
    for one in &others {
        one.wait_for_stderr("waiting for");
        let holder = format!("pid {}, building", first.pid());
        assert!(one.stderr().contains(&holder), "{holder}: {}", one.stderr());
    }
    let held = || {
        let status = there.buildlock(["status", "--json"]).run();
        status.assert_code(0);
        serde_json::from_slice::<serde_json::Value>(&status.stdout).unwrap()
    };
    f.wait_for("seven waiters in the status", || held()[0]["waiters"] == 7);
    let held = held();
    assert_eq!(held.as_array().unwrap().len(), 1, "{held}");
    assert_eq!((&held[0]["tag"], &held[0]["holder"]["pid"]), (&TAG.into(), &first.pid().into()));
    there.buildlock(["prune"]).run().assert_code(0);
    assert!(there.path(&f.lock_file(TAG)).exists(), "prune removed a lock that was held");
    f.let_builds_go(1);
    first.wait().assert_code(0).assert_no_stderr("warning");
    for one in others {
        one.wait().assert_code(0);
    }
    assert_eq!(f.build_count(TAG), 1);
}

fn killed_holder_is_followed_by_a_waiter(f: &Fixture, there: &Namespace<'_>) {
    fs::remove_file(f.path("images").join(TAG)).unwrap();
    let first = there.docker_build(TAG).start();
    f.wait_for_builds(2);
    let second = there.docker_build(TAG).start();
    second.wait_for_stderr("waiting for");
    first.signal("KILL");
    f.wait_for_builds(3);
    f.let_builds_go(1);
    second.wait().assert_code(0);
    assert!(f.has_image(TAG));
}

fn removed_lock_file_is_noticed(f: &Fixture, there: &Namespace<'_>) {
    let build = there.buildlock(["--force"]).args(BUILD).arg(".").start();
    f.wait_for_builds(4);
    fs::remove_file(there.path(&f.lock_file(TAG))).unwrap();
    f.let_builds_go(1);
    build.wait().assert_code(0).assert_stderr_matches("warning: .*removed while it was held");
    there.docker_build(TAG).run().assert_code(0);
    there.buildlock(["path", TAG]).run().assert_code(0);
}

/// Checks it on an image of a file system of this kind.
fn assert_locks_on_image(kind: &str) {
    let program = format!("mkfs.{kind}");
    if !is_root() || !has(&program) {
        return;
    }
    assert_locks_on(&format!(
        "truncate -s 512M \"$STANDIN/disk\"; {program} -q \"$STANDIN/disk\"
        mount -o loop \"$STANDIN/disk\" \"$BUILDLOCK_DIR\"; chmod 1777 \"$BUILDLOCK_DIR\"
        rm -rf \"$BUILDLOCK_DIR/lost+found\""
    ));
}

#[test]
fn locks_hold_on_ext4() {
    assert_locks_on_image("ext4");
}

#[test]
fn locks_hold_on_xfs() {
    assert_locks_on_image("xfs");
}

#[test]
fn locks_hold_on_btrfs() {
    assert_locks_on_image("btrfs");
}

#[test]
fn locks_hold_on_tmpfs() {
    assert_locks_on("mount -t tmpfs none \"$BUILDLOCK_DIR\"");
}

const LAYERS: &str = "mkdir \"$STANDIN/layers\"; mount -t tmpfs none \"$STANDIN/layers\"
    cd \"$STANDIN/layers\"; mkdir lower upper work; chmod 1777 lower upper
    layers=lowerdir=lower,upperdir=upper,workdir=work";

#[test]
fn locks_hold_on_an_overlay() {
    assert_locks_on(&format!("{LAYERS}\nmount -t overlay -o $layers none \"$BUILDLOCK_DIR\""));
}

#[test]
fn locks_hold_on_an_overlay_whose_lower_layer_has_the_lock_file() {
    let f = Fixture::new();
    let lower = "BUILDLOCK_DIR=$STANDIN/layers/lower \"$BUILDLOCK\" path env:abc";
    let script = format!(
        "BUILDLOCK={:?}\n{LAYERS}\n{lower}\nmount -t overlay -o $layers none \"$BUILDLOCK_DIR\"",
        buildlock_path()
    );
    // The first process to open it for writing copies it up. Processes that have the lower file
    // open then have another file.
    let Some(there) = Namespace::new(&f, &script) else { return };
    f.hold_builds();
    one_build_for_eight_calls(&f, &there);
    f.assert_no_overlap();
}

#[test]
fn locks_hold_in_user_space() {
    if !is_root() || !has("fuse-overlayfs") {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        skip("needs /dev/fuse");
        return;
    }
    assert_locks_on(&format!("{LAYERS}\nfuse-overlayfs -o $layers \"$BUILDLOCK_DIR\""));
}

// Without room, and without permission.

/// Makes a namespace with one lock file, in which `script` then runs.
fn namespace_with_lock_file<'f>(
    f: &'f Fixture,
    options: &str,
    script: &str,
) -> Option<Namespace<'f>> {
    let mount = format!("mount -t tmpfs {options} none \"$BUILDLOCK_DIR\"");
    let path = format!("{:?} path {TAG} >&2", buildlock_path());
    Namespace::new(f, &format!("{mount}\nchmod 1777 \"$BUILDLOCK_DIR\"\n{path}\n{script}"))
}

/// Checks that an existing lock file can be taken, waited for and given back.
fn assert_lock_file_works(f: &Fixture, there: &Namespace<'_>) {
    f.hold_builds();
    let first = there.docker_build(TAG).start();
    f.wait_for_builds(1);
    let second = there.docker_build(TAG).start();
    second.wait_for_stderr("waiting for");
    assert!(second.stderr().contains(&format!("pid {}", first.pid())), "{}", second.stderr());
    f.release_builds();
    first.wait().assert_code(0);
    second.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
    there.buildlock(["--force", "-w", "0s"]).args(BUILD).arg(".").run().assert_code(0);
    assert!(is_free(&there.path(&f.lock_file(TAG))));
}

#[test]
fn lock_files_work_on_a_read_only_mount_and_new_ones_are_refused() {
    let f = Fixture::new();
    let read_only = "mount -o remount,ro \"$BUILDLOCK_DIR\"";
    let Some(there) = namespace_with_lock_file(&f, "", read_only) else { return };
    assert_lock_file_works(&f, &there);
    let refused = there.docker_build("env:new").run();
    assert_refused(&refused, &f.lock_file("env:new"));
    refused.assert_stderr_matches("(?i)read-only");
    assert_eq!(f.build_count("env:new"), 0);
}

#[test]
fn full_disk_is_room_enough_for_a_lock() {
    let f = Fixture::new();
    let fill = "cat /dev/zero >\"$BUILDLOCK_DIR/fill\" 2>/dev/null || true";
    let Some(there) = namespace_with_lock_file(&f, "-o size=64k", fill) else { return };
    assert_lock_file_works(&f, &there);
    // On this file system, a name takes no block.
    there.docker_build("env:new").run().assert_code(0);
    assert_eq!(f.build_count("env:new"), 1);
}

#[test]
fn lack_of_inodes_is_reported_and_leaves_nothing_behind() {
    let f = Fixture::new();
    let fill = "n=0; while touch \"$BUILDLOCK_DIR/$n\" 2>/dev/null; do n=$((n + 1)); done";
    let Some(there) = namespace_with_lock_file(&f, "-o nr_inodes=20", fill) else { return };
    assert_lock_file_works(&f, &there);
    for refused in [there.docker_build("env:new").run(), there.buildlock(["path", "env:new"]).run()]
    {
        assert_refused(&refused, &f.lock_file("env:new"));
        refused.assert_stderr_matches("(?i)no space left");
    }
    // Both locks are tried before any wait, and the one that was free is free again.
    let both = there.buildlock(["-t", "env:new"]).args(["--force"]).args(BUILD).arg(".").run();
    assert_refused(&both, &f.lock_file("env:new"));
    assert!(is_free(&there.path(&f.lock_file(TAG))));
    assert_eq!(f.build_count("env:new"), 0);
    let left: Vec<_> =
        fs::read_dir(there.path(&f.lock_dir()).join("image-locks")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

// File systems that refuse calls, as NFS does in many ways.

#[test]
fn file_system_that_cannot_lock_is_an_error_and_never_builds() {
    for error in ["EOPNOTSUPP", "ENOSYS", "EINVAL", "EPERM", "EIO", "EBADF", "EACCES"] {
        let f = Fixture::new();
        let Some(buildlock) = with_faults(&f, &[&format!("flock:{error}")]) else { return };
        let refused = buildlock.args(BUILD).arg(".").run();
        assert_refused(&refused, &f.lock_file(TAG));
        assert_eq!(f.build_count(TAG), 0, "{error}");
        assert!(is_free(&f.lock_file(TAG)));
    }
}

#[test]
fn lock_manager_that_stays_away_is_an_error_at_the_deadline() {
    for error in ["ENOLCK", "ESTALE"] {
        let f = Fixture::new();
        let Some(buildlock) = with_faults(&f, &[&format!("flock:{error}")]) else { return };
        let refused = buildlock.args(["-w", "300ms"]).args(BUILD).arg(".").run();
        assert_refused(&refused, &f.lock_file(TAG));
        assert_eq!(f.build_count(TAG), 0, "{error}");
        assert!(refused.elapsed.as_secs() < 10, "{refused}");
    }
}

#[test]
fn lock_manager_that_comes_back_is_asked_again() {
    for error in ["ENOLCK", "ESTALE", "EINTR"] {
        for options in [&[][..], &["--force"]] {
            let f = Fixture::new();
            let Some(buildlock) = with_faults(&f, &[&format!("flock:{error}:4")]) else { return };
            let built = buildlock.args(options).args(BUILD).arg(".").run();
            built.assert_code(0);
            assert_eq!(f.build_count(TAG), 1, "{error} {options:?}: {built}");
            assert!(is_free(&f.lock_file(TAG)));
        }
    }
}

#[test]
fn interrupted_wait_goes_on() {
    let f = Fixture::new();
    let holder = f.hold_lock(&f.lock_file(TAG));
    // The first try, and then each blocking call.
    let Some(buildlock) = with_faults(&f, &["flock:EINTR:3"]) else { return };
    let build = buildlock.args(BUILD).arg(".").start();
    f.wait_for_waiters(&f.lock_file(TAG), 1);
    assert_eq!(f.build_count(TAG), 0);
    drop(holder);
    build.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn lock_file_that_went_stale_is_an_error_and_never_builds() {
    let f = Fixture::new();
    // As on Linux before 5.6: the flags of openat2 cannot be seen in its arguments.
    let rules = ["openat2:ENOSYS", &opening_lock_file("ESTALE")];
    let Some(buildlock) = with_faults(&f, &rules) else { return };
    let refused = buildlock.args(BUILD).arg(".").run();
    refused.assert_code(125).assert_stderr(f.lock_file(TAG).to_str().unwrap());
    assert_eq!(f.build_count(TAG), 0);
}

#[test]
fn locks_are_made_even_if_the_usual_ways_are_refused() {
    let nameless = ["EOPNOTSUPP", "EINVAL", "EISDIR"].map(opening_nameless);
    let mut ways: Vec<Vec<&str>> = nameless.iter().map(|rule| vec![rule.as_str()]).collect();
    for links in ["linkat:EPERM", "linkat:EOPNOTSUPP", "linkat:ENOENT"] {
        ways.push(vec![links]);
    }
    for moves in ["renameat2:EINVAL", "renameat2:ENOSYS", "renameat2:EPERM"] {
        ways.push(vec![moves]);
    }
    for moves in ["renameat2:EINVAL", "renameat2:ENOSYS"] {
        ways.push(vec![&nameless[0], moves]);
        ways.push(vec!["linkat:EPERM", moves]);
        ways.push(vec![&nameless[0], "linkat:EPERM", moves]);
    }
    for rules in ways {
        let f = Fixture::new();
        let start = || {
            let script = "umask 077 && exec \"$@\"";
            let mut faulty = with_faults(&f, &rules)?;
            let words: Vec<_> = faulty.command().get_args().map(ToOwned::to_owned).collect();
            let python = faulty.command().get_program().to_owned();
            let shell = f.program("sh").args(["-c", script, "sh"]).arg(python).args(words);
            Some(shell.args(BUILD).arg(".").start())
        };
        let Some(first) = start() else { return };
        let all: Vec<_> = std::iter::once(first).chain((0..3).filter_map(|_| start())).collect();
        for one in all {
            one.wait().assert_code(0).assert_no_stderr("warning");
        }
        assert_eq!(f.build_count(TAG), 1, "{rules:?}: {}", f.scene());
        assert_eq!(f.lock_files(), [f.lock_file(TAG)], "{rules:?}");
        assert_eq!(mode(&f.lock_file(TAG)), 0o666, "{rules:?}");
        assert_eq!(mode(&f.lock_dir()), 0o1777, "{rules:?}");
        assert_eq!(mode(&f.lock_dir().join("image-locks")), 0o1777, "{rules:?}");
        let beside = fs::read_dir(f.path("")).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> =
            beside.filter(|name| name.to_str().unwrap().contains("buildlock-")).collect();
        assert!(left.is_empty(), "{rules:?}: {left:?}");
    }
}

#[test]
fn holder_that_cannot_be_recorded_still_excludes() {
    let f = Fixture::new();
    f.hold_builds();
    let Some(buildlock) = with_faults(&f, &["pwrite64:ENOSPC"]) else { return };
    let first = buildlock.args(BUILD).arg(".").start();
    f.wait_for_builds(1);
    let second = f.docker_build(TAG).start();
    second.wait_for_stderr("waiting for");
    // The kernel knows the pid.
    assert!(second.stderr().contains(&format!("pid {}", first.pid())), "{}", second.stderr());
    f.release_builds();
    first.wait().assert_code(0);
    second.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

/// Its first try failed, so it cannot tell whether a result was there before it waited.
#[test]
fn failure_is_not_shared_with_a_caller_that_waited_for_nobody() {
    let f = Fixture::new();
    f.docker_build(TAG).run().assert_code(0);
    let lock = f.lock_file(TAG);
    std::fs::write(&lock, "{\"build\":\"00\",\"status\":3}\n").unwrap();
    let Some(buildlock) = with_faults(&f, &["flock:ENOLCK:1"]) else { return };
    let built = buildlock.args(["--on-failure", "share", "--force"]).args(BUILD).arg(".").run();
    built.assert_code(0);
    let Some(buildlock) = with_faults(&f, &["flock:ENOLCK:1"]) else { return };
    std::fs::write(&lock, "{\"build\":\"00\",\"status\":3}\n").unwrap();
    std::fs::remove_file(f.path("images").join(TAG)).unwrap();
    let built = buildlock.args(["--on-failure", "share"]).args(BUILD).arg(".").run();
    built.assert_code(0).assert_stderr("built");
}
