//! Several users of one machine take the same locks, whatever the order in which they come.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::support::{
    Fixture, Invocation, Namespace, OTHER_USER, as_other_user, has, is_root, open_to_everybody,
    skip,
};

const TAG: &str = "env:abc";

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The value of fs.protected_regular, which is restored when this is dropped.
struct Protection(String);

impl Protection {
    const PATH: &str = "/proc/sys/fs/protected_regular";

    /// Makes the setting strict. Only in CI, since it concerns the whole machine.
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

/// A way to start buildlock, without its arguments.
type Start<'a, 'f> = &'a dyn Fn() -> Invocation<'f>;

/// Lets `first` make the lock folder before `second` uses it, and checks that each excludes the
/// other.
///
/// Another test is about the warnings on the folder's owner.
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
        // The record is written after the lock was taken.
        f.wait_for("the record", || fs::read(&lock).unwrap().ends_with(b"\n"));
        let refused = other().args(["-w", "0s"]).args(words).run();
        refused.assert_code(124).assert_stderr_matches("@.*, pid [0-9]+, building");
        let waiter = other().args(words).start();
        f.wait_for_waiters(&lock, 1);
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

/// Returns a fixture that every user may use, with an image that all may write.
fn fixture() -> (Fixture, PathBuf) {
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    f.make_image(TAG);
    set_mode(&f.path("images").join(TAG), 0o666);
    (f, program)
}

/// Checks it with each umask, in both orders.
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

/// Arguments of `sh` that set a umask and run a program: `UMASK PROGRAM [ARG]...` follows.
const WITH_UMASK: [&str; 2] = ["-c", "umask \"$0\" && exec \"$@\""];

#[test]
fn two_users_exclude_each_other_in_either_order() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let (f, program) = fixture();
    let sh = Path::new("sh");
    let root = |umask: &str| f.program(sh).args(WITH_UMASK).arg(umask).arg(&program);
    let other = |umask: &str| as_other_user(&f, sh).args(WITH_UMASK).arg(umask).arg(&program);
    // Both in one test, since the setting is the machine's: first as it is, and then strict.
    assert_exclude_whatever_the_umask(&f, &root, &other);
    let Some(_strict) = Protection::strict() else {
        skip("BUILDLOCK_REQUIRE_ENGINE sets fs.protected_regular for a moment");
        return;
    };
    assert_exclude_whatever_the_umask(&f, &root, &other);
}

#[test]
fn user_without_an_account_is_named_by_the_session_or_the_user_id() {
    /// An id without an entry in `/etc/passwd`.
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

/// Returns the variables that sudo removes from the environment.
fn environment(f: &Fixture) -> Vec<String> {
    let lock_dir = f.lock_dir();
    let path = f.search_path().into_string().unwrap();
    let show = |path: &Path| path.to_str().unwrap().to_owned();
    let standin = format!("STANDIN={}", show(&f.path("").join("")).trim_end_matches('/'));
    vec![standin, format!("BUILDLOCK_DIR={}", show(&lock_dir)), format!("PATH={path}")]
}

#[test]
fn one_user_with_and_without_sudo_is_excluded_by_the_other_call() {
    if !is_root() || !has("setpriv") || !has("sudo") {
        return;
    }
    let (f, program) = fixture();
    // Only seen in there.
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

    // And root, who becomes another user.
    let root = |umask: &str| there.program("sh").args(WITH_UMASK).arg(umask).arg(&program);
    let as_user = |umask: &str| {
        let sudo = there.program("sudo").args(["-u", &format!("#{id}"), "env"]);
        sudo.args(environment(&f)).arg("sh").args(WITH_UMASK).arg(umask).arg(&program)
    };
    assert_exclude_whatever_the_umask(&f, &root, &as_user);
}

#[test]
fn build_behind_sudo_excludes_a_build_without_it() {
    if !is_root() || !has("setpriv") || !has("sudo") {
        return;
    }
    let (f, program) = fixture();
    let lock = f.lock_file(TAG);
    // `sudo docker` and the look-up find docker by the environment.
    let environment = environment(&f);
    let variables: Vec<&str> = environment.iter().map(String::as_str).collect();
    let behind = [&["--force", "-t", TAG, "--", "sudo", "-n", "env"][..], &variables].concat();
    let behind = [&behind[..], &["docker", "build", "-t", TAG, "."]].concat();
    let plain = ["--force", "-t", TAG, "--", "docker", "build", "-t", TAG, "."];
    f.hold_builds();
    let first = f.program(&program).args(&behind).start();
    f.wait_for_builds(1);
    let second = as_other_user(&f, &program).args(plain).start();
    f.wait_for_waiters(&lock, 1);
    f.let_builds_go(1);
    first.wait().assert_code(0);
    f.wait_for_builds(2);
    let third = f.program(&program).args(&behind).start();
    f.wait_for_waiters(&lock, 1);
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

// In a user namespace, all owners that are not in it have nobody's number.
#[test]
fn folder_of_root_gets_no_warning_in_a_user_namespace() {
    if !is_root() || !has("setpriv") || !has("unshare") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    f.buildlock(["path", TAG]).run().assert_code(0);
    let namespace = || {
        as_other_user(&f, Path::new("unshare")).args(["--user", "--map-root-user"]).arg(&program)
    };
    let call = namespace().args(["-t", TAG, "--", "docker", "build", "-t", TAG, "."]).run();
    if call.stderr.contains("unshare") {
        return skip("needs user namespaces");
    }
    call.assert_code(0).assert_no_stderr("warning");
}

#[test]
fn folder_that_a_group_may_write_gets_a_warning_unless_it_is_sticky() {
    if !is_root() || !has("setpriv") {
        return;
    }
    const GROUP: u32 = 31_415;
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    f.buildlock(["path", TAG]).run().assert_code(0);
    let above = f.path("above");
    fs::create_dir(&above).unwrap();
    fs::rename(f.lock_dir(), above.join("locks")).unwrap();
    let call = || {
        let call = as_other_user(&f, &program).arg("--lock-dir").arg(above.join("locks"));
        call.args(["--force", "-t", TAG, "--", "docker", "build", "-t", TAG, "."]).run()
    };
    call().assert_code(0).assert_no_stderr("warning");
    for folder in [above.join("locks"), above.join("locks/image-locks"), above.clone()] {
        let before = fs::metadata(&folder).unwrap();
        std::os::unix::fs::chown(&folder, None, Some(GROUP)).unwrap();
        set_mode(&folder, 0o2775);
        let warned = call();
        warned.assert_code(0).assert_stderr(folder.to_str().unwrap());
        warned.assert_stderr_matches(&format!("warning: .*group with the number {GROUP}"));
        set_mode(&folder, 0o3775);
        call().assert_code(0).assert_no_stderr("warning");
        std::os::unix::fs::chown(&folder, None, Some(before.gid())).unwrap();
        set_mode(&folder, before.mode() & 0o7777);
    }
    // Many systems give each user a group of their own: root has one everywhere.
    set_mode(&above, 0o775);
    call().assert_code(0).assert_no_stderr("warning");
}

// Only a directory service may know the user. Anybody may write a name into the record.
#[test]
fn holder_without_an_account_is_shown_by_number_whatever_the_record_says() {
    const NOBODYS: &str = "3141592";
    if !is_root() || !has("setpriv") {
        return;
    }
    let (f, program) = fixture();
    f.hold_builds();
    let call = f.program("setpriv").args(["--reuid", NOBODYS, "--regid", NOBODYS]);
    let call = call.args(["--clear-groups", "env", "LOGNAME=the.admin"]).arg(&program);
    let build = call.args(["--force", "-t", TAG, "--", "docker", "build", "-t", TAG, "."]).start();
    f.wait_for_builds(1);
    let status = f.buildlock(["status", "--json"]).run();
    let shown: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(shown[0]["holder"]["user"], NOBODYS, "{status}");
    f.release_builds();
    build.wait().assert_code(0);
}

#[test]
fn folder_above_the_lock_folder_that_a_third_user_may_replace_gets_a_warning() {
    if !is_root() || !has("setpriv") {
        return;
    }
    let f = Fixture::new();
    let program = open_to_everybody(&f);
    let above = f.path("above");
    fs::create_dir(&above).unwrap();
    let locks = above.join("locks");
    let call = || {
        let call = as_other_user(&f, &program).arg("--lock-dir").arg(&locks);
        call.args(["--force", "-t", TAG, "--", "true"]).run()
    };
    f.buildlock(["--lock-dir"]).arg(&locks).args(["path", TAG]).run().assert_code(0);
    f.make_image(TAG);
    call().assert_no_stderr("warning");
    std::os::unix::fs::chown(&above, Some(4242), None).unwrap();
    call().assert_stderr_matches("warning: .*/above contains the lock folder");
    std::os::unix::fs::chown(&above, Some(0), None).unwrap();
    set_mode(&above, 0o777);
    call().assert_stderr_matches("warning: .*/above .* everybody");
    set_mode(&above, 0o1777);
    call().assert_no_stderr("warning");
}

#[test]
fn user_that_may_not_write_the_folder_can_use_the_files_in_it() {
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

// An ordinary user may not see root's descriptors, so the holder's name comes from the record.
#[test]
fn build_of_root_by_another_command_causes_a_warning_even_when_only_warnings_are_logged() {
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
    // As with -q, but with the message that shows that the name is known.
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
fn id_file_that_roots_build_has_left_is_replaced() {
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
