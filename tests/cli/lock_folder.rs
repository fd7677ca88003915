//! The lock folder: what may be in its place, who may use it, and how it is made.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    Finished, Fixture, Gate, as_other_user, buildlock_path, is_root, open_to_everybody, python,
    skip,
};

const TAG: &str = "env:abc";

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{path:?}: {e}")).mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Fails unless both the main job and `path` end with 125 and name the culprit, without a build.
fn assert_refused(f: &Fixture, culprit: &Path) {
    let refused = [f.docker_build(TAG).run(), f.buildlock(["path", TAG]).run()];
    for one in refused {
        assert_names(&one, culprit);
    }
    assert_eq!(f.build_count(TAG), 0);
}

#[track_caller]
fn assert_names(refused: &Finished, culprit: &Path) {
    refused.assert_code(125).assert_stderr(culprit.to_str().unwrap()).assert_stdout("");
}

// The folder.

#[test]
fn lock_folder_that_is_a_file_is_refused() {
    let f = Fixture::new();
    fs::write(f.lock_dir(), "precious").unwrap();
    assert_refused(&f, &f.lock_dir());
    assert_eq!(fs::read_to_string(f.lock_dir()).unwrap(), "precious");
}

#[test]
fn lock_folder_that_is_a_symlink_is_refused() {
    let f = Fixture::new();
    let target = f.path("target");
    fs::create_dir(&target).unwrap();
    symlink(&target, f.lock_dir()).unwrap();
    assert_refused(&f, &f.lock_dir());
    assert_eq!(fs::read_dir(target).unwrap().count(), 0);
}

#[test]
fn lock_folder_that_is_a_dangling_symlink_is_refused() {
    let f = Fixture::new();
    symlink(f.path("target"), f.lock_dir()).unwrap();
    assert_refused(&f, &f.lock_dir());
    assert!(!f.path("target").exists());
}

#[test]
fn lock_folder_below_a_symlink_works_like_any_other() {
    let f = Fixture::new();
    fs::create_dir(f.path("disk")).unwrap();
    symlink(f.path("disk"), f.path("link")).unwrap();
    let build = f.docker_build(TAG).env("BUILDLOCK_DIR", f.path("link/locks"));
    build.run().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
    assert!(f.path("disk/locks/image-locks").is_dir());
}

#[test]
fn folder_of_image_locks_that_is_a_file_or_a_symlink_is_refused() {
    let f = Fixture::new();
    fs::create_dir(f.lock_dir()).unwrap();
    let inner = f.lock_dir().join("image-locks");
    fs::write(&inner, "precious").unwrap();
    assert_refused(&f, &inner);
    assert_eq!(fs::read_to_string(&inner).unwrap(), "precious");

    fs::remove_file(&inner).unwrap();
    fs::create_dir(f.path("target")).unwrap();
    symlink(f.path("target"), &inner).unwrap();
    assert_refused(&f, &inner);
    assert_eq!(fs::read_dir(f.path("target")).unwrap().count(), 0);
}

#[test]
fn lock_folder_is_made_with_its_parents() {
    let f = Fixture::new();
    let folder = f.path("no/such/locks");
    f.docker_build(TAG).env("BUILDLOCK_DIR", &folder).run().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
    assert_eq!(mode(&folder), 0o1777);
    assert!(folder.join("image-locks").is_dir());
}

#[test]
fn flag_wins_over_the_environment() {
    let f = Fixture::new();
    let folder = f.path("other");
    let path = f.buildlock(["path", TAG, "--lock-dir"]).arg(&folder).run();
    path.assert_code(0);
    assert!(path.stdout_line().starts_with(folder.to_str().unwrap()));
    assert!(!f.lock_dir().exists());
}

#[test]
fn relative_lock_folder_gives_the_same_lock_as_the_full_path() {
    let f = Fixture::new();
    let full = f.buildlock(["path", TAG, "--lock-dir"]).arg(f.work_dir().join("locks")).run();
    let relative = f.buildlock(["path", TAG, "--lock-dir", "locks"]).run();
    full.assert_code(0);
    relative.assert_code(0);
    let relative = f.work_dir().join(relative.stdout_line());
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(ino(Path::new(full.stdout_line())), ino(&relative));
}

#[test]
fn relative_lock_folder_from_the_environment_is_refused() {
    let f = Fixture::new();
    for (variable, value) in [("BUILDLOCK_DIR", "locks"), ("BUILDLOCK_STORE", "file:locks")] {
        for args in [&["-t", TAG, "--", "docker", "build", "-t", TAG, "."][..], &["path", TAG]] {
            let refused = f.buildlock(args).env(variable, value).run();
            refused.assert_stderr(variable).assert_stderr("absolute");
            assert_ne!(refused.status.code(), Some(0));
        }
    }
    assert_eq!(f.build_count(TAG), 0);
    assert!(!f.work_dir().join("locks").exists());
}

#[test]
fn root_folder_is_refused_as_a_lock_folder() {
    let f = Fixture::new();
    for folder in ["/", "//", "/tmp/.."] {
        let refused = f.buildlock(["path", TAG, "--lock-dir", folder]).run();
        refused.assert_code(125).assert_stderr(folder);
    }
    assert!(!Path::new("/image-locks").exists());
}

#[test]
fn prune_on_a_read_only_file_system_is_an_error() {
    let private = ["-m", "sh", "-c"];
    let may = Command::new("unshare").args(private).arg("mount -t tmpfs none /mnt").output();
    if !may.is_ok_and(|output| output.status.success()) {
        return skip("needs a mount namespace");
    }
    let f = Fixture::new();
    f.buildlock(["path", TAG]).run().assert_code(0);
    let script = "mount --bind \"$BUILDLOCK_DIR\" \"$BUILDLOCK_DIR\" && \
                  mount -o remount,ro,bind \"$BUILDLOCK_DIR\" && exec \"$@\"";
    let program = f.program("unshare").args(private).args([script, "sh"]);
    let refused = program.arg(buildlock_path()).arg("prune").run();
    assert_names(&refused, &f.lock_file(TAG));
    refused.assert_stderr_matches("(?i)read-only");
}

// A lease (fcntl(2), F_SETLEASE) blocks every open of the file until its holder gives it back.
#[test]
fn lease_on_a_lock_file_is_waited_for() {
    let Some(python) = python() else { return };
    let f = Fixture::new();
    f.buildlock(["path", TAG]).run().assert_code(0);
    let script = "
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
lock = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(lock, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('leased', flush=True)
open(sys.argv[2]).readline()";
    let gate = Gate::new(&f, "give back");
    let lease =
        f.program(python).args(["-c", script]).arg(f.lock_file(TAG)).arg(&gate.path).start();
    f.wait_for("the lease", || lease.stdout() == "leased\n");
    let words = ["-t", TAG, "--", "docker", "build", "-t", TAG, "."];
    for limit in ["0s", "1s"] {
        f.buildlock(["-w", limit]).args(words).run().assert_code(124);
    }
    let waiting = f.buildlock(words).start();
    waiting.wait_for_stderr("waiting");
    gate.open();
    waiting.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn unwritable_lock_folder_is_reported() {
    let f = Fixture::new();
    fs::create_dir(f.lock_dir()).unwrap();
    set_mode(&f.lock_dir(), 0o555);
    let root = rustix::process::geteuid().is_root();
    let program = open_to_everybody(&f);
    for words in [&["-t", TAG, "--", "docker", "build", "."][..], &["path", TAG]] {
        // Root may write anywhere.
        let start = if root { as_other_user(&f, &program) } else { f.program(&program) };
        let refused = start.args(words).run();
        assert_names(&refused, &f.lock_dir());
        refused.assert_stderr_matches("(?i)permission denied");
    }
    assert_eq!(f.build_count(TAG), 0);
    set_mode(&f.lock_dir(), 0o755);
}

#[test]
fn lock_folder_on_a_read_only_file_system_is_reported() {
    let private = ["-m", "sh", "-c"];
    let may = Command::new("unshare").args(private).arg("mount -t tmpfs none /mnt").output();
    if !may.is_ok_and(|output| output.status.success()) {
        skip("needs a mount namespace");
        return;
    }
    let f = Fixture::new();
    fs::create_dir(f.lock_dir()).unwrap();
    let script = "mount -t tmpfs -o ro none \"$BUILDLOCK_DIR\" && exec \"$@\"";
    let words = ["-t", TAG, "--", "docker", "build", "-t", TAG, "."];
    let program = f.program("unshare").args(private).args([script, "sh"]);
    let refused = program.arg(buildlock_path()).args(words).run();
    assert_names(&refused, &f.lock_dir());
    refused.assert_stderr_matches("(?i)read-only");
    assert_eq!(f.build_count(TAG), 0);
}

#[test]
fn mode_of_an_existing_folder_is_never_changed() {
    let f = Fixture::new();
    let inner = f.lock_dir().join("image-locks");
    fs::create_dir(f.lock_dir()).unwrap();
    for (outer_mode, inner_mode) in [(0o755, 0o700), (0o700, 0o755), (0o777, 0o1770)] {
        set_mode(&f.lock_dir(), outer_mode);
        let _ = fs::create_dir(&inner);
        set_mode(&inner, inner_mode);
        f.buildlock(["path", TAG]).run().assert_code(0);
        f.docker_build(TAG).run().assert_code(0);
        assert_eq!(mode(&f.lock_dir()), outer_mode);
        assert_eq!(mode(&inner), inner_mode);
    }
}

#[test]
fn folders_and_files_are_open_to_everybody_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        for job in ["path env:abc", "-f -t env:abc --lock storage -- docker build -t env:abc ."] {
            let f = Fixture::new();
            f.make_image(TAG);
            let folders = [f.lock_dir(), f.lock_dir().join("image-locks")];
            // The test must be able to read what the stand-in writes.
            for log in ["builds.log", "looks.log", "args.log"] {
                fs::write(f.path(log), "").unwrap();
            }
            let script = format!("umask {umask} && exec \"$0\" {job}");
            f.program("sh").args(["-c", &script]).arg(buildlock_path()).run().assert_code(0);
            for folder in folders {
                assert_eq!(mode(&folder), 0o1777, "{folder:?} with umask {umask}, {job}");
            }
            let files = f.lock_files();
            assert!(!files.is_empty());
            for file in files {
                assert_eq!(mode(&file), 0o666, "{file:?} with umask {umask}, {job}");
            }
        }
    }
}

#[test]
fn build_command_has_the_umask_that_buildlock_was_started_with() {
    let f = Fixture::new();
    f.make_image(TAG);
    let script = "umask 037 && exec \"$0\" -f -t env:abc -- sh -c umask";
    let build = f.program("sh").args(["-c", script]).arg(buildlock_path()).run();
    build.assert_code(0).assert_stdout("0037\n");
}

#[test]
fn many_processes_may_make_the_folder_at_once() {
    for round in 0..20 {
        let f = Fixture::new();
        let tags: Vec<String> = (0..64).map(|n| format!("env:{}", n % 8)).collect();
        let all: Vec<_> = tags.iter().map(|tag| f.buildlock(["path", tag]).start()).collect();
        for one in all {
            one.wait().assert_code(0).assert_no_stderr("warning");
        }
        let mut found = f.lock_files();
        found.sort();
        let mut wanted: Vec<PathBuf> = (0..8).map(|n| f.lock_file(&format!("env:{n}"))).collect();
        wanted.sort();
        assert_eq!(found, wanted, "round {round}: something else was left");
        assert!(found.iter().all(|file| mode(file) == 0o666));
        assert_eq!(mode(&f.lock_dir()), 0o1777);
        let beside: Vec<_> = fs::read_dir(f.path("")).unwrap().flatten().collect();
        let left = beside.iter().find(|e| e.file_name().to_str().unwrap().contains("locks."));
        assert!(left.is_none(), "round {round}: {left:?} was left beside the folder");
    }
}

#[test]
fn nothing_temporary_is_left_in_the_folder() {
    let f = Fixture::new();
    f.docker_build(TAG).run().assert_code(0);
    let mut names = Vec::new();
    for folder in fs::read_dir(f.lock_dir()).unwrap().flatten() {
        if folder.path() == f.guard() {
            assert_eq!(fs::metadata(f.guard()).unwrap().len(), 0);
            continue;
        }
        let name = folder.file_name().into_string().unwrap();
        assert!(["image-locks", "named-locks", "cache-locks"].contains(&&*name), "{name}");
        names.extend(fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path()));
    }
    // There may also be the lock under which nested calls exclude each other, with a similar name.
    assert!(names.contains(&f.lock_file(TAG)), "{names:?}");
    assert!(names.iter().all(|name| name.extension().is_some_and(|e| e == "lock")), "{names:?}");
}

// The file.

#[test]
fn lock_file_that_is_a_symlink_is_refused_and_its_target_left_alone() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    fs::remove_file(&lock).unwrap();
    let victim = f.path("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, &lock).unwrap();
    assert_refused(&f, &lock);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(fs::symlink_metadata(&lock).unwrap().is_symlink());
}

#[test]
fn lock_file_that_is_a_dangling_symlink_is_refused_and_makes_nothing() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    fs::remove_file(&lock).unwrap();
    symlink(f.path("victim"), &lock).unwrap();
    assert_refused(&f, &lock);
    assert!(!f.path("victim").exists());
}

#[test]
fn lock_file_that_is_a_hard_link_is_refused_and_the_other_link_left_alone() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    fs::remove_file(&lock).unwrap();
    let victim = f.path("victim");
    fs::write(&victim, "precious").unwrap();
    fs::hard_link(&victim, &lock).unwrap();
    let before = fs::metadata(&victim).unwrap();
    assert_refused(&f, &lock);
    let after = fs::metadata(&victim).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(
        (before.mtime_nsec(), before.mode(), before.nlink()),
        (after.mtime_nsec(), after.mode(), after.nlink())
    );
}

#[test]
fn lock_file_that_is_a_fifo_is_refused_and_does_not_hang() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    fs::remove_file(&lock).unwrap();
    assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success());
    assert_refused(&f, &lock);
    assert!(fs::symlink_metadata(&lock).unwrap().file_type().is_fifo());
}

#[test]
fn lock_file_that_is_a_folder_is_refused() {
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    assert_refused(&f, &lock);
}

#[test]
fn lock_file_that_is_a_device_is_refused() {
    if !is_root() {
        return;
    }
    let f = Fixture::new();
    let lock = f.lock_file(TAG);
    drop(f.open_lock_file(&lock));
    fs::remove_file(&lock).unwrap();
    if !Command::new("mknod").arg(&lock).args(["c", "1", "3"]).status().unwrap().success() {
        skip("needs to make a device");
        return;
    }
    assert_refused(&f, &lock);
}

#[test]
fn bad_lock_file_is_reported_before_any_waiting() {
    let f = Fixture::new();
    let [first, second] = ["env:a", "env:b"].map(|tag| f.lock_file(tag));
    let _held = f.hold_lock(&first);
    assert!(Command::new("mkfifo").arg(&second).status().unwrap().success());
    let words = ["-t", "env:a", "-t", "env:b", "-w", "none", "--", "true"];
    assert_names(&f.buildlock(words).run(), &second);
}

/// What is created in such a folder inherits its list, and the mode no longer tells who may write.
#[test]
fn lock_folder_with_a_default_access_control_list_works() {
    let f = Fixture::new();
    let Some(python) = python() else { return };
    fs::create_dir(f.lock_dir()).unwrap();
    fs::set_permissions(f.lock_dir(), fs::Permissions::from_mode(0o1777)).unwrap();
    // Version 2; then owner, user 65534, group, mask and others, with all permissions.
    let script = r#"
import os, struct, sys
none = 0xffffffff
entries = [(1, 7, none), (2, 7, 65534), (4, 7, none), (0x10, 7, none), (0x20, 7, none)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
os.setxattr(sys.argv[1], "system.posix_acl_default", acl)"#;
    let done = f.program(python).args(["-c", script]).arg(f.lock_dir()).run();
    if done.stderr.contains("Operation not supported") {
        return skip("needs a file system with access control lists");
    }
    done.assert_code(0);
    f.docker_build("env:a").run().assert_code(0);
    f.docker_build("env:b").run().assert_code(0);
    f.buildlock(["--force", "-t", "env:a", "--", "true"]).run().assert_code(0);
}
