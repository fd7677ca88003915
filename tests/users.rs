//! Several users of one machine: whoever comes first, both take the same locks.

mod common;
#[path = "common/mounts.rs"]
mod mounts;
#[path = "common/outside.rs"]
mod outside;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Fixture, Invocation, is_root};
use mounts::Namespace;
use outside::{OTHER_USER, as_other_user, has, open_to_everybody, wait_for_waiters};

const TAG: &str = "env:abc";

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// fs.protected_regular as it was, when this is dropped.
struct Protection(String);

impl Protection {
    const PATH: &str = "/proc/sys/fs/protected_regular";

    /// Only where the machine is CI's: the setting is everybody's.
    fn strict() -> Option<Self> {
        std::env::var_os("BUILDLOCK_REQUIRE_ENGINE")?;
        let before = fs::read_to_string(Self::PATH).ok()?;
        fs::write(Self::PATH, "2").ok()?;
        Some(Self(before))
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, &self.0);
    }
}

/// A way to start buildlock, with its first arguments to come.
type Start<'a, 'f> = &'a dyn Fn() -> Invocation<'f>;

/// `first` uses a fresh folder before `second` does; then each excludes the other, whoever of the
/// two was first to have the lock.
///
/// Warnings about whose folder it is are another test's.
fn assert_exclude_each_other<'f>(f: &'f Fixture, first: Start<'_, 'f>, second: Start<'_, 'f>) {
    fs::remove_dir_all(f.lock_dir()).ok();
    let lock = f.lock_file(TAG);
    let mut inodes = Vec::new();
    for one in [first, second] {
        one().args(["path", TAG]).run().assert_code(0);
        inodes.push(fs::metadata(&lock).unwrap().ino());
    }
    assert_eq!(inodes[0], inodes[1]);
    f.hold_builds();
    let words = ["--force", "-t", TAG, "--", "docker", "build", "-t", TAG, "."];
    for (one, other) in [(first, second), (second, first)] {
        let build = one().args(words).start();
        f.wait_for_holder(&lock);
        // That it has a name there: the record is written after the lock was taken.
        f.wait_for("the record", || fs::read(&lock).unwrap().ends_with(b"\n"));
        let refused = other().args(["-w", "0s"]).args(words).run();
        refused.assert_code(124).assert_stderr_matches("@.*, pid [0-9]+, building");
        let waiter = other().args(words).start();
        wait_for_waiters(f, &lock, 1);
        f.let_builds_go(2);
        build.wait().assert_code(0);
        waiter.wait().assert_code(0);
    }
    f.assert_no_overlap();
    assert_eq!(f.build_count(TAG), 4);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&f.lock_dir()), 0o1777);
    assert_eq!(mode(&f.lock_dir().join("image-locks")), 0o1777);
    assert!(f.lock_files().iter().all(|file| mode(file) == 0o666));
    fs::remove_file(f.path("gate")).unwrap();
    fs::write(f.path("builds.log"), "").unwrap();
}

/// A fixture for all, with an image that all may write, whatever the umask.
fn fixture() -> (Fixture, PathBuf) {
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    f.make_image(TAG);
    set_mode(&f.path("images").join(TAG), 0o666);
    (f, program)
}

/// With each of these masks, in both orders.
fn assert_exclude_whatever_the_umask<'f>(
    f: &'f Fixture,
    root: &dyn Fn(&str) -> Invocation<'f>,
    other: &dyn Fn(&str) -> Invocation<'f>,
) {
    for umask in ["077", "000"] {
        let (root, other) = (|| root(umask), || other(umask));
        assert_exclude_each_other(f, &root, &other);
        assert_exclude_each_other(f, &other, &root);
    }
}

/// `$0 umask`, and the rest is a program with its arguments.
const WITH_UMASK: [&str; 2] = ["-c", "umask \"$0\" && exec \"$@\""];

#[test]
fn two_users_exclude_each_other_whoever_comes_first() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let (f, program) = fixture();
    let sh = Path::new("sh");
    let root = |umask: &str| f.program(sh).args(WITH_UMASK).arg(umask).arg(&program);
    let other = |umask: &str| as_other_user(&f, sh).args(WITH_UMASK).arg(umask).arg(&program);
    // One test, for the setting is the machine's: as it is, and then as strict as can be.
    assert_exclude_whatever_the_umask(&f, &root, &other);
    let Some(_strict) = Protection::strict() else {
        common::skip("BUILDLOCK_REQUIRE_ENGINE sets fs.protected_regular for a moment");
        return;
    };
    assert_exclude_whatever_the_umask(&f, &root, &other);
}

#[test]
fn user_without_a_name_on_this_machine_is_called_as_his_session_calls_him_or_by_his_number() {
    /// That no `/etc/passwd` has.
    const NOBODYS: &str = "3141592";
    if !is_root() || !has("setpriv") {
        return;
    }
    let (f, program) = fixture();
    let show = format!("cat '{}'", f.lock_file(TAG).display());
    let called = |variables: [&str; 2]| {
        let call = f.program("setpriv").args(["--reuid", NOBODYS, "--regid", NOBODYS]);
        let call = call.args(["--clear-groups", "env"]).args(variables).arg(&program);
        let built = call.args(["--force", "-t", TAG, "--", "sh", "-c", &show]).run();
        built.assert_code(0);
        let record: serde_json::Value = serde_json::from_slice(&built.stdout).unwrap();
        record["user"].as_str().unwrap().to_owned()
    };
    assert_eq!(called(["LOGNAME=carol", "USER=dave"]), "carol");
    assert_eq!(called(["LOGNAME=", "USER=dave"]), "dave");
    assert_eq!(called(["--unset=LOGNAME", "--unset=USER"]), NOBODYS);
}

/// What sudo takes out of the environment.
fn environment(f: &Fixture) -> Vec<String> {
    let lock_dir = f.lock_dir();
    let path = f.search_path().into_string().unwrap();
    let show = |path: &Path| path.to_str().unwrap().to_owned();
    let standin = format!("STANDIN={}", show(&f.path("").join("")).trim_end_matches('/'));
    vec![standin, format!("BUILDLOCK_DIR={}", show(&lock_dir)), format!("PATH={path}")]
}

#[test]
fn user_with_sudo_and_without_excludes_himself() {
    if !is_root() || !has("setpriv") || !has("sudo") {
        return;
    }
    let (f, program) = fixture();
    // Seen only in there.
    let rules = f.path("sudoers");
    fs::write(&rules, format!("root,#{OTHER_USER} ALL=(ALL:ALL) NOPASSWD: ALL\n")).unwrap();
    set_mode(&rules, 0o440);
    let Some(there) = Namespace::new(&f, "mount --bind \"$STANDIN/sudoers\" /etc/sudoers") else {
        return;
    };
    fs::remove_dir(f.lock_dir()).unwrap();
    let id = OTHER_USER.to_string();
    let user = |program: &str| {
        let drop = ["--reuid", &id, "--regid", &id, "--clear-groups", "--"];
        there.program("setpriv").args(drop).arg(program)
    };
    let plain = |umask: &str| user("sh").args(WITH_UMASK).arg(umask).arg(&program);
    let as_root = |umask: &str| {
        let sudo = user("sudo").args(["-n", "env"]).args(environment(&f));
        sudo.arg("sh").args(WITH_UMASK).arg(umask).arg(&program)
    };
    assert_exclude_whatever_the_umask(&f, &as_root, &plain);

    // And root, who becomes somebody else.
    let root = |umask: &str| there.program("sh").args(WITH_UMASK).arg(umask).arg(&program);
    let as_user = |umask: &str| {
        let sudo = there.program("sudo").args(["-u", &format!("#{id}"), "env"]);
        sudo.args(environment(&f)).arg("sh").args(WITH_UMASK).arg(umask).arg(&program)
    };
    assert_exclude_whatever_the_umask(&f, &root, &as_user);
}

#[test]
fn build_behind_sudo_excludes_the_one_of_a_user_without() {
    if !is_root() || !has("setpriv") || !has("sudo") {
        return;
    }
    let (f, program) = fixture();
    let lock = f.lock_file(TAG);
    // `sudo docker` finds its docker by the environment, as the look-up does.
    let environment = environment(&f);
    let variables: Vec<&str> = environment.iter().map(String::as_str).collect();
    let behind = [&["--force", "-t", TAG, "--", "sudo", "-n", "env"][..], &variables].concat();
    let behind = [&behind[..], &["docker", "build", "-t", TAG, "."]].concat();
    let plain = ["--force", "-t", TAG, "--", "docker", "build", "-t", TAG, "."];
    f.hold_builds();
    let first = f.program(&program).args(&behind).start();
    f.wait_for_builds(1);
    let second = as_other_user(&f, &program).args(plain).start();
    wait_for_waiters(&f, &lock, 1);
    f.let_builds_go(1);
    first.wait().assert_code(0);
    f.wait_for_builds(2);
    let third = f.program(&program).args(&behind).start();
    wait_for_waiters(&f, &lock, 1);
    f.let_builds_go(2);
    second.wait().assert_code(0);
    third.wait().assert_code(0);
    f.assert_no_overlap();
    assert_eq!(f.build_count(TAG), 3);
}

#[test]
fn folder_of_a_third_user_gets_a_warning() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    f.buildlock(["path", TAG]).run().assert_code(0);
    let third = 4242;
    let give = |path: &Path, user| std::os::unix::fs::chown(path, Some(user), None).unwrap();
    let folder = f.lock_dir();
    let words = ["--force", "-t", TAG, "--", "docker", "build", "-t", TAG, "."];

    give(&folder, third);
    for one in [f.program(&program), as_other_user(&f, &program)] {
        let warned = one.args(words).run();
        warned.assert_code(0).assert_stderr_matches("warning: ");
        warned.assert_stderr(folder.to_str().unwrap());
    }
    give(&folder, OTHER_USER);
    as_other_user(&f, &program).args(words).run().assert_code(0).assert_no_stderr("warning");
    f.program(&program).args(words).run().assert_code(0).assert_stderr_matches("warning: ");
    give(&folder, 0);
    as_other_user(&f, &program).args(words).run().assert_code(0).assert_no_stderr("warning");
}

#[test]
fn user_who_may_not_write_the_folder_can_use_the_files_in_it() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    f.buildlock(["path", TAG]).run().assert_code(0);
    for folder in [f.lock_dir(), f.lock_dir().join("image-locks")] {
        set_mode(&folder, 0o755);
    }
    let words = ["-t", TAG, "--", "docker", "build", "-t", TAG, "."];
    as_other_user(&f, &program).args(words).run().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

/// An ordinary user may not look at root's descriptors, so the holder's name has to be asked for.
#[test]
fn build_of_root_by_another_command_is_warned_of_where_only_warnings_are_wanted() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    f.hold_builds();
    let words = ["--", "docker", "build", "-f", "Dockerfile.other", "-t", TAG, "."];
    let build = f.buildlock(words).start();
    f.wait_for_builds(1);
    let waiter =
        as_other_user(&f, &program).args(["-t", TAG, "--", "docker", "build", "-t", TAG, "."]);
    // As -q does, but for what tells that the name is known.
    let waiter = waiter.env("BUILDLOCK_LOG", "warn,buildlock::log=info").start();
    waiter.wait_for_stderr(&format!("pid {}", build.pid()));
    f.release_builds();
    build.wait().assert_code(0);
    let waiter = waiter.wait();
    waiter
        .assert_code(0)
        .assert_stderr("ran, by its own account, docker build -f Dockerfile.other");
}

#[test]
fn id_file_that_a_build_of_root_has_left_is_replaced() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let (f, program) = fixture();
    set_mode(&f.work_dir(), 0o777);
    fs::write(f.path("work/id"), "sha256:0000").unwrap();
    let build = ["docker", "build", "--iidfile", "id", "-t", TAG, "."];
    let done = as_other_user(&f, &program).arg("--").args(build).run();
    done.assert_code(0).assert_stderr("present");
    assert!(fs::read_to_string(f.path("work/id")).unwrap().ends_with("00000"), "{done}");

    set_mode(&f.work_dir(), 0o755);
    let done = as_other_user(&f, &program).args(["--", "env", "-u", "NO"]).args(build).run();
    done.assert_code(125).assert_stderr("cannot write the image's id to id: Permission denied");
    done.assert_stderr("put sudo in front of buildlock");
}
