//! Everything around buildlock that may be many, long, strange, missing or broken.
//!
//! A thousand processes take long on a small machine. So the tests start `BUILDLOCK_TEST_SCALE` of
//! them: 200 by default, a thousand in `make test-scale`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::support::fake_engine::{FakeEngine, found, missing, send};
use crate::support::{
    BOUND, Finished, Fixture, Gate, Invocation, Running, buildlock_path, descriptors, has, is_free,
    is_root, send_signal, skip, waiters as waiters_of,
};

const TAG: &str = "env:abc";

/// Makes the image and notes that it was built, in one process.
const BUILD: &str = r#"echo built >>"$STANDIN/built"; : >"$STANDIN/images/env:abc""#;

/// Returns how many processes to start where a thousand are promised.
fn scale() -> usize {
    let given = std::env::var("BUILDLOCK_TEST_SCALE").ok();
    given.map_or(200, |n| n.parse().expect("BUILDLOCK_TEST_SCALE is a number"))
}

/// Returns the longest wait for the end of that many.
fn bound() -> Duration {
    BOUND / 4 * u32::try_from(scale().div_ceil(200)).unwrap()
}

/// A fixture with an engine on a socket, which costs less than the stand-in where many calls look.
///
/// The engine has the images of the fixture's folder.
struct Site {
    f: Fixture,
    engine: FakeEngine,
}

impl Site {
    fn new() -> Self {
        let f = Fixture::new();
        // With any binary as the client, buildlock itself asks the engine.
        fs::remove_file(f.path("bin/docker")).unwrap();
        f.install(Path::new("/bin/true"), "bin/docker");
        let images = f.path("images");
        let engine = FakeEngine::start(&f.path("docker.sock"), move |_, head, stream| {
            let path = head.split(' ').nth(1).unwrap_or_default();
            let name = path.trim_start_matches("/images/").trim_end_matches("/json");
            let name = name.replace("%3A", ":");
            let there = images.join(&name).is_file();
            send(stream, if there { found() } else { missing(&name) });
        });
        Self { f, engine }
    }

    /// Prepares `buildlock ARGS` with this engine.
    fn buildlock<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation<'_> {
        self.f.buildlock(args).env("DOCKER_HOST", self.engine.endpoint())
    }

    /// Prepares `buildlock -t env:abc -- sh -c SCRIPT`.
    fn script(&self, script: &str) -> Invocation<'_> {
        self.buildlock(["-t", TAG, "--", "sh", "-c", script])
    }

    /// Prepares `sh -c SCRIPT buildlock -t env:abc -- sh -c BUILD`, where the script ends with
    /// `exec "$0" "$@"`.
    fn build_behind(&self, script: &str) -> Invocation<'_> {
        let shell = self.f.program("sh").args(["-c", script]).arg(buildlock_path());
        let shell = shell.args(["-t", TAG, "--", "sh", "-c", BUILD]);
        shell.env("DOCKER_HOST", self.engine.endpoint())
    }

    fn builds(&self) -> usize {
        self.f.lines("built").len()
    }

    fn lock(&self) -> PathBuf {
        self.f.lock_file(TAG)
    }

    /// Fails unless there was one build, and nothing of it is left in the lock file.
    #[track_caller]
    fn assert_built_once(&self) {
        assert_eq!(self.builds(), 1, "{}", self.f.scene());
        assert!(self.f.has_image(TAG));
        assert!(is_free(&self.lock()));
        assert_eq!(fs::read_to_string(self.lock()).unwrap(), "");
    }

    /// Fails if there was a build, or if the lock is held.
    #[track_caller]
    fn assert_nothing_built(&self) {
        assert_eq!(self.builds(), 0, "{}", self.f.scene());
        assert!(!self.lock().exists() || is_free(&self.lock()), "{}", self.f.scene());
    }
}

// Many callers, tags and files.

/// Starts many calls at once, and waits until all of them wait for the lock.
fn waiters<'f>(n: usize, start: impl Fn() -> Invocation<'f>, site: &'f Site) -> Vec<Running<'f>> {
    let all: Vec<_> = (0..n).map(|_| start().start()).collect();
    let waiting = || waiters_of(&site.lock()).len() >= n;
    site.f.wait_for_within(bound(), &format!("{n} waiters"), waiting);
    all
}

#[test]
fn a_thousand_waiters_share_one_build() {
    let site = Site::new();
    let gate = Gate::new(&site.f, "go");
    let script = format!("read _ <\"$STANDIN/go\"; {BUILD}");
    let first = site.script(&script).start();
    site.f.wait_for_holder(&site.lock());
    let all = waiters(scale() - 1, || site.script(&script), &site);
    assert_eq!(site.builds(), 0);

    gate.open();

    first.wait_within(bound()).assert_code(0);
    for one in all {
        one.wait_within(bound()).assert_code(0).assert_stderr("present");
    }
    site.assert_built_once();
}

#[test]
fn a_thousand_waiters_whose_builds_all_fail_all_end() {
    let site = Site::new();
    let lock = site.f.hold_lock(&site.lock());
    let all = waiters(scale(), || site.buildlock(["-t", TAG, "--", "false"]), &site);

    drop(lock);

    for one in all {
        // All of them build, one after the other, since no image appears.
        one.wait_within(bound()).assert_code(1).assert_stderr("building");
    }
    assert!(is_free(&site.lock()));
}

#[test]
fn a_thousand_calls_with_a_tag_each_all_build() {
    let site = Site::new();
    let n = scale();
    let start = |i| {
        let script = format!(": >\"$STANDIN/images/env:{i}\"; echo {i} >>\"$STANDIN/built\"");
        let tag = format!("env:{i}");
        site.buildlock(["-t", &tag, "--", "sh", "-c", &script]).start()
    };
    let all: Vec<_> = (0..n).map(start).collect();
    for one in all {
        one.wait_within(bound()).assert_code(0);
    }
    let mut built: Vec<usize> =
        site.f.lines("built").iter().map(|line| line.parse().unwrap()).collect();
    built.sort_unstable();
    assert_eq!(built, (0..n).collect::<Vec<_>>());
}

#[test]
fn one_call_with_a_thousand_tags_builds_once_under_the_usual_limit_of_descriptors() {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if hard.is_some_and(|hard| hard < 8192) {
        skip("needs 8,192 descriptors");
        return;
    }
    let site = Site::new();
    let tags: Vec<String> = (0..1000).map(|i| format!("env:{i}")).collect();
    let build = r#"
(ulimit -Sn; ulimit -Hn) >"$STANDIN/command.limits"
for i in $(seq 0 999); do : >"$STANDIN/images/env:$i"; done"#;
    let limited = r#"
ulimit -Sn 1024 && (ulimit -Sn; ulimit -Hn) >"$STANDIN/outer.limits" && exec "$0" "$@""#;
    let call = site.f.program("sh").args(["-c", limited]).arg(buildlock_path());
    let call = call.args(tags.iter().flat_map(|tag| ["-t", tag])).args(["--", "sh", "-c", build]);

    call.env("DOCKER_HOST", site.engine.endpoint()).start().wait_within(BOUND).assert_code(0);

    let limits = site.f.lines("command.limits");
    assert_eq!(limits, site.f.lines("outer.limits"));
    assert_eq!(limits[0], "1024");
    for tag in &tags {
        assert!(is_free(&site.f.lock_file(tag)), "{tag}");
    }
}

/// Fills a folder of locks with idle lock files that no tag or name has.
fn fill(folder: &Path, n: usize) {
    use rustix::fs::{FileType, Mode, mknodat};
    let folder = File::open(folder).unwrap();
    for i in 0..n {
        let name = format!("{i:064x}.lock");
        mknodat(&folder, name, FileType::RegularFile, Mode::from_raw_mode(0o666), 0).unwrap();
    }
}

/// Returns the system calls in a trace that read folders below this one.
fn folders_read(locks: &Path, trace: &Path) -> Vec<String> {
    let calls = fs::read_to_string(trace).unwrap();
    assert!(calls.contains("exited with "), "{calls}");
    let folder = locks.to_str().unwrap();
    calls.lines().filter(|line| line.contains(folder)).map(str::to_owned).collect()
}

#[test]
fn lock_folder_of_a_hundred_thousand_files_is_not_read_on_the_way_to_a_build() {
    let site = Site::new();
    // In memory, if there is such a folder: on a disk, that many files take long.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { memory.to_owned() } else { site.f.path("") };
    let folder = tempfile::Builder::new().prefix("buildlock-test-").tempdir_in(folder).unwrap();
    let locks = folder.path().join("locks");
    let lock_file = locks.join(site.lock().strip_prefix(site.f.lock_dir()).unwrap());
    let call = |program: &Path, args: &[&str]| {
        let call = site.f.program(program).args(args).env("BUILDLOCK_DIR", &locks);
        call.env("DOCKER_HOST", site.engine.endpoint())
    };
    let buildlock = |args: &[&str]| call(&buildlock_path(), args);
    for path in [&["path", TAG][..], &["path", "--lock", "x"]] {
        buildlock(path).start().wait_within(BOUND).assert_code(0);
    }
    fill(lock_file.parent().unwrap(), 100_000);

    let trace = site.f.path("trace");
    let program = buildlock_path();
    let traced = |args: &[&str]| {
        let strace = ["-f", "-y", "-e", "trace=getdents,getdents64", "-o"];
        let front = [&strace[..], &[trace.to_str().unwrap(), program.to_str().unwrap()]].concat();
        call(Path::new("strace"), &[&front, args].concat())
    };
    let read = || folders_read(&locks, &trace);
    if has("strace") && traced(&["path", TAG]).start().wait_within(BOUND).status.success() {
        // A trace that shows nothing would prove nothing.
        let lock = site.f.hold_lock(&lock_file);
        traced(&["status"]).start().wait_within(BOUND).assert_code(0);
        assert_ne!(read(), [] as [&str; 0]);

        // The wait, and the build.
        let build = ["-t", TAG, "--", "sh", "-c", BUILD];
        let waiter = traced(&build).start();
        site.f.wait_for_waiters(&lock_file, 1);
        drop(lock);
        waiter.wait_within(BOUND).assert_code(0);
        if ancestors_hold_locks() {
            println!("not shown: a process above this one holds a lock");
        } else {
            assert_eq!(read(), [] as [&str; 0]);
        }
        assert_eq!(site.builds(), 1);

        // The skip.
        traced(&build).start().wait_within(BOUND).assert_code(0).assert_stderr("present");
        assert_eq!(read(), [] as [&str; 0]);

        // The build that does not wait.
        fs::remove_file(site.f.path("images").join(TAG)).unwrap();
        traced(&build).start().wait_within(BOUND).assert_code(0);
        assert_eq!(read(), [] as [&str; 0]);
        assert_eq!(site.builds(), 2);
    } else {
        skip("needs to trace");
    }

    let lock = site.f.hold_lock(&lock_file);
    let status = buildlock(&["status", "--json"]).start().wait_within(BOUND);
    status.assert_code(0);
    let held: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(held.as_array().unwrap().len(), 1, "{held}");
    // All but the one that is held, including that of the named lock.
    buildlock(&["prune"])
        .start()
        .wait_within(BOUND)
        .assert_code(0)
        .assert_stdout("100001 lock files removed\n");
    drop(lock);
    buildlock(&["prune"])
        .start()
        .wait_within(BOUND)
        .assert_code(0)
        .assert_stdout("1 lock file removed\n");
}

/// Does a process above this one hold a lock? Then buildlock looks for the locks of its ancestors.
fn ancestors_hold_locks() -> bool {
    let parent = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok().filter(|&pid: &u32| pid > 0)
    };
    let above: Vec<u32> = std::iter::successors(Some(std::process::id()), parent).collect();
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"FLOCK")
            && words.get(4).and_then(|pid| pid.parse().ok()).is_some_and(|pid| above.contains(&pid))
    })
}

// Long arguments and environments.

/// A build command that notes its arguments as the kernel has them, and waits at the gate `go`.
const NOTE: &str = r#"cat /proc/$$/cmdline >"$STANDIN/arguments"; read _ <"$STANDIN/go"; exit 3"#;

/// Returns what the kernel shows for these arguments.
fn command_line<A: AsRef<OsStr>>(words: impl IntoIterator<Item = A>) -> Vec<u8> {
    words.into_iter().flat_map(|word| [word.as_ref().as_bytes(), b"\0"].concat()).collect()
}

fn is_same(got: &[u8], wanted: &[u8]) {
    let differ = got.iter().zip(wanted).position(|(a, b)| a != b);
    let lengths = (got.len(), wanted.len());
    assert!(got == wanted, "they differ at {differ:?}, of lengths {lengths:?}");
}

/// Checks that the build command gets these arguments, and that others see a part of them.
fn assert_long_command_line(arguments: &[String]) {
    let site = Site::new();
    let gate = Gate::new(&site.f, "go");
    let words = ["sh", "-c", NOTE, "sh"].map(str::to_owned);
    let words: Vec<String> = words.into_iter().chain(arguments.iter().cloned()).collect();
    let build = site.buildlock(["-t", TAG, "--log-format", "json", "--"]).args(&words).start();
    site.f.wait_for("the build command's arguments", || {
        fs::read(site.f.path("arguments")).is_ok_and(|got| got.ends_with(b"\0"))
    });

    let record = fs::read(site.lock()).unwrap();
    assert!(record.len() < 64 * 1024, "{} bytes", record.len());
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let command = record["command"].as_str().unwrap();
    assert!(command.contains('…') && command.starts_with("sh -c"), "{command}");
    let waiter = site.buildlock(["-w", "500ms", "-t", TAG, "--", "false"]).run();
    waiter.assert_code(124).assert_stderr("sh -c").assert_stderr("…");
    waiter.assert_stderr(&format!("pid {}", build.pid()));
    for line in waiter.stderr.lines() {
        assert!(line.len() < 16 * 1024, "a line of {} bytes", line.len());
    }
    site.buildlock(["status"]).run().assert_code(0);

    gate.open();
    let build = build.wait();
    build.assert_code(3);
    assert!(build.stderr.lines().all(|line| line.len() < 64 * 1024));
    is_same(&fs::read(site.f.path("arguments")).unwrap(), &command_line(&words));
}

#[test]
fn argument_of_64_kib_is_passed_on_whole_and_shown_shortened() {
    let text = "ä0123456789'\"\\\n\t $x".chars().cycle().take(64 * 1024).collect::<String>();
    assert_long_command_line(&[text]);
}

#[test]
fn ten_thousand_arguments_are_passed_on_whole_and_shown_shortened() {
    let arguments: Vec<String> = (0..10_000).map(|i| format!("{i}")).collect();
    assert_long_command_line(&arguments);
}

#[test]
fn environment_of_a_mebibyte_is_passed_on() {
    let site = Site::new();
    let build = format!("cat /proc/$$/environ >\"$STANDIN/environment\"; {BUILD}");
    let value = "x".repeat(64 * 1024);
    let names: Vec<String> = (0..16).map(|i| format!("LONG_{i}")).collect();
    let many: Vec<String> = (0..3000).map(|i| format!("MANY_{i}")).collect();
    let mut call = site.script(&build);
    for name in &names {
        call = call.env(name, &value);
    }
    for name in &many {
        call = call.env(name, "1");
    }

    call.run().assert_code(0);

    let got = fs::read(site.f.path("environment")).unwrap();
    let got: Vec<&[u8]> = got.split(|&b| b == 0).collect();
    let wanted = names.iter().map(|name| format!("{name}={value}"));
    for variable in wanted.chain(many.iter().map(|name| format!("{name}=1"))) {
        assert!(got.contains(&variable.as_bytes()), "no {}", &variable[..10]);
    }
    site.assert_built_once();
}

// Bytes that are not text.

fn bytes(text: &[u8]) -> OsString {
    OsString::from_vec(text.to_vec())
}

#[test]
fn arguments_and_environment_that_are_not_utf_8_reach_the_build_command_unchanged() {
    let site = Site::new();
    let script = format!(
        "cat /proc/$$/cmdline >\"$STANDIN/arguments\"; \
         cat /proc/$$/environ >\"$STANDIN/environment\"; {BUILD}"
    );
    let all: Vec<u8> = (1..=255).collect();
    let words = [
        bytes(b"sh"),
        bytes(b"-c"),
        script.into(),
        bytes(b"\xff\xfe"),
        bytes(b"--build-arg=A=\xc3\x28"),
        bytes(b"\xed\xa0\x80"),
        bytes(b""),
        bytes(&all),
    ];
    let call = site.buildlock(["-t", TAG, "--"]).args(&words).env("ODD", bytes(b"a\xffb"));
    let mut call = call.env("ALL", bytes(&all));
    call.command().env(bytes(b"N\xffME"), "1");

    call.run().assert_code(0);

    is_same(&fs::read(site.f.path("arguments")).unwrap(), &command_line(&words));
    let environment = fs::read(site.f.path("environment")).unwrap();
    let variables: Vec<&[u8]> = environment.split(|&b| b == 0).collect();
    for wanted in [&b"ODD=a\xffb"[..], b"N\xffME=1", &[b"ALL=".as_slice(), &all].concat()] {
        assert!(variables.contains(&wanted), "no {:?}", String::from_utf8_lossy(wanted));
    }
    site.assert_built_once();
}

#[test]
fn folders_whose_names_are_not_utf_8_work_like_any_other() {
    let site = Site::new();
    let work = site.f.path(bytes(b"work\xff"));
    let locks = site.f.path(bytes(b"locks\xfe\n"));
    fs::create_dir(&work).unwrap();
    let script = format!("readlink /proc/$$/cwd >\"$STANDIN/folder\"; {BUILD}");
    let call = |args: &[&OsStr]| site.buildlock(args).current_dir(&work);
    let words = ["-t", TAG, "--", "sh", "-c", &script].map(OsStr::new);
    let with_flag = [&[OsStr::new("--lock-dir"), locks.as_os_str()], &words[..]].concat();

    call(&with_flag).run().assert_code(0);

    assert_eq!(site.builds(), 1);
    let folder = fs::read(site.f.path("folder")).unwrap();
    assert_eq!(folder.strip_suffix(b"\n").unwrap(), work.as_os_str().as_bytes());
    let file = locks.join(site.lock().strip_prefix(site.f.lock_dir()).unwrap());
    assert!(file.is_file());
    assert!(!site.f.lock_dir().exists());
    // The same by the environment, while another process holds the lock.
    let lock = site.f.hold_lock(&file);
    let other = site.buildlock(["-f", "-w", "0s"]).args(words).env("BUILDLOCK_DIR", &locks).run();
    other.assert_code(124);
    let held = site.buildlock(["status", "--json"]).env("BUILDLOCK_DIR", &locks).run();
    held.assert_code(0).assert_no_stderr("error");
    drop(lock);
}

#[test]
fn printed_path_of_a_lock_file_is_its_path_byte_for_byte() {
    let site = Site::new();
    let locks = site.f.path(bytes(b"locks\xfe"));

    let printed = site.buildlock(["path", TAG]).env("BUILDLOCK_DIR", &locks).run();

    printed.assert_code(0);
    let file = locks.join(site.lock().strip_prefix(site.f.lock_dir()).unwrap());
    assert_eq!(printed.stdout.strip_suffix(b"\n").unwrap(), file.as_os_str().as_bytes());
    assert!(file.is_file());
}

#[test]
fn tag_that_is_not_utf_8_is_wrong_usage() {
    let site = Site::new();
    let odd = bytes(b"env:\xff");
    let command = ["sh", "-c", BUILD].map(OsString::from);
    let by_option = ["-t".into(), odd.clone(), "--".into()].into_iter().chain(command);
    site.buildlock(by_option).run().assert_code(125);
    let inferred = ["--", "docker", "build", "-t"].map(OsString::from).into_iter();
    let inferred = inferred.chain([odd, ".".into()]);
    site.buildlock(inferred).run().assert_code(125);
    let environment = site.script(BUILD).env("BUILDLOCK_TIMEOUT", bytes(b"1\xff"));
    environment.run().assert_code(125);
    site.assert_nothing_built();
}

// Standard streams.

#[test]
fn lock_files_never_take_the_numbers_of_closed_streams() {
    let closings = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"];
    for closed in closings {
        let site = Site::new();
        // The build command's output goes nowhere, and certainly not into a lock file.
        let noisy = format!(
            "ls -l /proc/$$/fd >\"$STANDIN/fds\"; echo out; echo err >&2; \
             cat \"$BUILDLOCK_DIR\"/image-locks/*.lock >\"$STANDIN/record\"; {BUILD}"
        );
        let script = format!("exec \"$0\" \"$@\" {closed}");
        let call = site.f.program("sh").args(["-c", &script]).arg(buildlock_path());
        let call = call.args(["-t", TAG, "--", "sh", "-c", &noisy]);
        let call = call.env("DOCKER_HOST", site.engine.endpoint());

        call.run().assert_code(0);

        site.assert_built_once();
        let locks = site.f.lock_dir().to_str().unwrap().to_owned();
        let fds = site.f.lines("fds");
        let kept: Vec<_> = fds.iter().filter(|line| line.contains(&locks)).collect();
        let number = |line: &str| -> Option<u32> {
            line.split_once(" -> ")?.0.rsplit(' ').next()?.parse().ok()
        };
        // The lock file and the guard.
        assert_eq!(kept.len(), 2, "{closed}: {fds:?}");
        assert!(kept.iter().all(|line| number(line) > Some(9)), "{closed}: {fds:?}");
        for (stream, closing) in [(0, "<&-"), (2, "2>&-")] {
            let is_open = fds.iter().any(|line| number(line) == Some(stream));
            assert_ne!(is_open, closed.split(' ').any(|it| it == closing), "{closed}: {fds:?}");
        }
        let record = fs::read(site.f.path("record")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&record).unwrap();
    }
}

#[test]
fn waiting_works_with_closed_streams() {
    let site = Site::new();
    let lock = site.f.hold_lock(&site.lock());
    let waiter = site.build_behind("exec \"$0\" \"$@\" <&- >&- 2>&-").start();
    site.f.wait_for_waiters(&site.lock(), 1);
    let open = descriptors(waiter.pid());
    for number in 0..3 {
        let (_, path) = open.iter().find(|(n, _)| *n == number).unwrap();
        assert!(!path.starts_with(site.f.lock_dir()), "{open:?}");
    }
    drop(lock);
    waiter.wait().assert_code(0);
    site.assert_built_once();
}

/// A program that was started with streams of its own; killed when this is dropped.
struct Started<'f> {
    f: &'f Fixture,
    child: Child,
}

impl<'f> Started<'f> {
    fn new(f: &'f Fixture, mut call: Invocation<'f>, stdout: Stdio, stderr: Stdio) -> Self {
        let command = call.command().stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Self { f, child: command.spawn().unwrap() }
    }

    fn wait(mut self) -> ExitStatus {
        let mut status = None;
        self.f.wait_for("the end of buildlock", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a pipe without a reader.
fn broken() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    OwnedFd::from(writer).into()
}

/// Returns a disk that is always full.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn output_that_nobody_reads_does_no_harm() {
    for format in ["text", "json"] {
        for stream in [broken, full] {
            let site = Site::new();
            let call = || site.script(BUILD).env("BUILDLOCK_LOG_FORMAT", format).env("V", "1");

            // The build, and the skip.
            for _ in 0..2 {
                let ended = Started::new(&site.f, call(), stream(), stream()).wait();
                assert_eq!(ended.code(), Some(0), "{format}");
            }
            site.assert_built_once();

            // The wait.
            fs::remove_file(site.f.path("images").join(TAG)).unwrap();
            let lock = site.f.hold_lock(&site.lock());
            let waiter = Started::new(&site.f, call(), stream(), stream());
            site.f.wait_for_waiters(&site.lock(), 1);
            drop(lock);
            assert_eq!(waiter.wait().code(), Some(0), "{format}");
            assert_eq!(site.builds(), 2);

            // A failure, a limit, and wrong usage.
            let verbose = ["-v", "-f", "-t", TAG, "--", "sh", "-c", "exit 3"];
            let failing = site.buildlock(verbose).env("BUILDLOCK_LOG_FORMAT", format);
            assert_eq!(Started::new(&site.f, failing, stream(), stream()).wait().code(), Some(3));
            let lock = site.f.hold_lock(&site.lock());
            let limited = ["-w", "50ms", "-f", "-t", TAG, "--", "true"];
            let limited = site.buildlock(limited).env("BUILDLOCK_LOG_FORMAT", format);
            assert_eq!(Started::new(&site.f, limited, stream(), stream()).wait().code(), Some(124));
            drop(lock);
            let wrong = site.buildlock(["--wrong"]).env("BUILDLOCK_LOG_FORMAT", format);
            assert_eq!(Started::new(&site.f, wrong, stream(), stream()).wait().code(), Some(125));
        }
    }
}

/// Returns a full pipe, and its reader, which does not read.
fn stalled() -> (Stdio, std::io::PipeReader) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while writer.write_all(b"x").is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (OwnedFd::from(writer).into(), reader)
}

#[test]
fn stalled_reader_neither_stops_a_limit_nor_keeps_a_lock() {
    let site = Site::new();
    let started = |options: &[&str], script: &str| {
        let words = [options, &["-v", "-f", "-t", TAG, "--", "sh", "-c", script]].concat();
        let (stderr, reader) = stalled();
        (Started::new(&site.f, site.buildlock(words), Stdio::null(), stderr), reader)
    };
    let (limited, _reader) = started(&["-k", "1s", "--build-timeout", "200ms"], "sleep 600");
    assert_eq!(limited.wait().code(), Some(124));
    let (failing, _reader) = started(&[], "exit 3");
    assert_eq!(failing.wait().code(), Some(3));
    let (signalled, _reader) = started(&[], "echo $$ >\"$STANDIN/began\"; exec sleep 600");
    site.f.wait_for_file("began");
    send_signal(signalled.child.id(), "TERM");
    assert_eq!(signalled.wait().signal(), Some(15));
    let lock = site.f.hold_lock(&site.lock());
    let (waiter, _reader) = started(&["-w", "200ms"], "true");
    assert_eq!(waiter.wait().code(), Some(124));
    drop(lock);
    assert!(is_free(&site.lock()));
}

// Limits of the kernel.

/// Fails unless the call built, or said that it cannot; no lock may be left, and no build may run
/// without one.
#[track_caller]
fn assert_built_or_said(site: &Site, ended: &Finished, what: &str) {
    match ended.status.code() {
        Some(0) => site.assert_built_once(),
        Some(125) => {
            assert!(!ended.stderr.is_empty(), "{what}: {ended}");
            assert!(!site.lock().exists() || is_free(&site.lock()), "{what}: {ended}");
            // It may have failed when it was about to look whether the image is present.
            assert!(site.builds() <= 1, "{what}: {ended}");
        }
        _ => panic!("{what}: {ended}"),
    }
}

#[test]
fn with_few_descriptors_it_builds_or_says_why_not() {
    let limits = 5..=32;
    let sites: Vec<(i32, Site)> = limits.map(|limit| (limit, Site::new())).collect();
    let calls = sites.iter().map(|(limit, site)| {
        let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
        (*limit, site, site.build_behind(&script).start())
    });
    for (limit, site, call) in calls.collect::<Vec<_>>() {
        let ended = call.wait();
        assert_built_or_said(site, &ended, &format!("{limit} descriptors"));
        // A build needs ten, and the shell may have some open.
        if limit >= 24 {
            ended.assert_code(0);
        }
    }
}

#[test]
fn with_few_descriptors_it_waits_or_says_why_not() {
    let limits = 5..=32;
    let sites: Vec<(i32, Site)> = limits.map(|limit| (limit, Site::new())).collect();
    let locks: Vec<_> = sites.iter().map(|(_, site)| site.f.hold_lock(&site.lock())).collect();
    let calls = sites.iter().map(|(limit, site)| {
        let script = format!("ulimit -n {limit} && exec \"$0\" -w 300ms \"$@\"");
        (*limit, site, site.build_behind(&script).start())
    });
    for (limit, site, call) in calls.collect::<Vec<_>>() {
        let ended = call.wait();
        let clear = matches!(ended.status.code(), Some(124 | 125));
        assert!(clear && !ended.stderr.is_empty(), "{limit} descriptors: {ended}");
        assert_eq!(site.builds(), 0, "{limit} descriptors: {ended}");
        if limit >= 24 {
            ended.assert_code(124);
        }
    }
    drop(locks);
}

/// Prepares `buildlock OPTIONS -t env:abc -- sh -c BUILD` as a user who may have this many
/// processes, and who has no others.
fn with_processes<'f>(site: &'f Site, limit: u32, options: &[&str]) -> Invocation<'f> {
    let program = site.f.install_buildlock();
    for folder in ["", "images", "work", "docker.sock"] {
        fs::set_permissions(site.f.path(folder), Permissions::from_mode(0o777)).unwrap();
    }
    let user = (1_000_000 + std::process::id()).to_string();
    let limited = site.f.program("prlimit").arg(format!("--nproc={limit}:{limit}"));
    let limited = limited.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]);
    let limited = limited.arg("--").arg(program).args(options);
    let limited = limited.args(["-t", TAG, "--", "sh", "-c", BUILD]);
    limited.env("DOCKER_HOST", site.engine.endpoint())
}

#[test]
fn with_few_processes_it_builds_or_says_why_not() {
    if !is_root() || !has("setpriv") || !has("prlimit") {
        return;
    }
    // buildlock, the keeper, the build command, and what a look needs.
    for limit in 1..=6 {
        let site = Site::new();
        let ended = with_processes(&site, limit, &[]).run();
        assert_built_or_said(&site, &ended, &format!("{limit} processes"));
        ended.assert_code(if limit < 3 { 125 } else { 0 });

        let site = Site::new();
        let lock = site.f.hold_lock(&site.lock());
        let ended = with_processes(&site, limit, &["-w", "100ms"]).run();
        ended.assert_code(if limit < 2 { 125 } else { 124 });
        drop(lock);
        site.assert_nothing_built();
    }
}

#[test]
fn with_little_memory_it_builds_or_ends_without_a_lock() {
    let sizes = [2_000, 4_000, 6_000, 8_000, 12_000, 16_000, 24_000, 48_000, 200_000];
    for size in sizes {
        let site = Site::new();
        // Only the soft limit, which the build command could raise.
        let script = format!("ulimit -c 0; ulimit -Sv {size} && exec \"$0\" \"$@\"");
        let ended = site.build_behind(&script).run();
        if ended.status.success() {
            site.assert_built_once();
        } else {
            assert!(!site.lock().exists() || is_free(&site.lock()), "{size} KiB: {ended}");
            // If it cannot even be loaded, the kernel ends it without a message.
            let loaded = ended.status.signal() != Some(11);
            assert!(!loaded || !ended.stderr.is_empty(), "{size} KiB: {ended}");
        }
        if size >= 200_000 {
            ended.assert_code(0);
        }
    }
}

#[test]
fn limit_on_the_size_of_files_does_no_harm() {
    // The record of the holder and what a failed build leaves cannot be written.
    let site = Site::new();
    let script = "ulimit -f 0; exec \"$0\" \"$@\"";
    let reader = "cat >>\"$STANDIN/stderr\"";
    let piped = format!("{{ ( {script} ) 2>&1; echo $? >&3; }} 3>\"$STANDIN/status\" | {reader}");
    let build = ": >\"$STANDIN/images/env:abc\"; mkdir \"$STANDIN/built.once\"";
    let call = |options: &[&str], command: &str| {
        let shell = site.f.program("sh").args(["-c", &piped]).arg(buildlock_path()).args(options);
        let shell = shell.args(["-t", TAG, "--", "sh", "-c", command]);
        shell.env("DOCKER_HOST", site.engine.endpoint()).run().assert_code(0);
        site.f.wait_for_file("status").trim().to_owned()
    };
    assert_eq!(call(&[], build), "0", "{}", site.f.scene());
    assert!(site.f.path("built.once").is_dir());
    assert_eq!(call(&["-f"], "exit 3"), "3", "{}", site.f.scene());
    assert!(is_free(&site.lock()));
    let lock = site.f.hold_lock(&site.lock());
    assert_eq!(call(&["-f", "-w", "50ms"], "exit 3"), "124", "{}", site.f.scene());
    drop(lock);
    // The build command dies of the limit, as it would without buildlock.
    assert_eq!(call(&["-f"], "echo long >\"$STANDIN/long\"; exit 3"), call_alone(&site, script));
    assert!(is_free(&site.lock()));
}

// The client's message would be lost, so a sudo that asks for a password could count as "missing".
#[test]
fn client_whose_answer_may_not_grow_is_not_asked() {
    let f = Fixture::new();
    f.install_engine("podman");
    let script = "(ulimit -f 0; exec \"$0\" \"$@\") 2>&1 | cat";
    let words = ["-t", TAG, "--", "podman", "build", "-t", TAG, "."];
    let call = f.program("sh").args(["-c", script]).arg(buildlock_path()).args(words);
    let call = call.env("STANDIN_LOOK_STATUS", "1").env("STANDIN_LOOK_ERR", "sudo: a password");
    let said = String::from_utf8(call.run().stdout).unwrap();
    assert!(said.contains("error: ") && said.contains("ulimit -f"), "{said}");
    assert_eq!(f.build_events(), []);
}

/// Returns the exit status of a shell that writes a file which may not grow.
fn call_alone(site: &Site, limit: &str) -> String {
    let command = "echo long >\"$STANDIN/long\"; exit 3";
    let ended = site.f.program("sh").args(["-c", limit, "sh", "-c", command]).run();
    let status = ended.status;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap()).to_string()
}

// Missing things.

#[test]
fn home_may_be_anything_or_missing() {
    let homes: [Option<&str>; 7] = [
        None,
        Some(""),
        Some("/proc"),
        Some("/dev/null"),
        Some("/no/such/folder"),
        Some("relative"),
        Some("/etc/passwd"),
    ];
    for home in homes {
        let site = Site::new();
        let call = site.script(BUILD);
        let call = match home {
            Some(home) => call.env("HOME", home),
            None => call.env_remove("HOME"),
        };
        call.run().assert_code(0).assert_no_stderr("warning").assert_no_stderr("HOME");
        site.assert_built_once();
    }
}

#[test]
fn temporary_folder_may_be_anything() {
    for folder in ["", "/no/such/folder", "/dev/null", "\n"] {
        let site = Site::new();
        let call = site.script(BUILD).env("TMPDIR", folder).env("TMP", folder).env("TEMP", folder);
        call.run().assert_code(0);
        site.assert_built_once();
    }
}

#[test]
fn environment_may_be_empty() {
    let f = Fixture::new();
    let engine = f.path("bin/docker");
    let call = f.program("env").arg("-i").arg(buildlock_path()).arg("--lock-dir");
    let call = call.arg(f.lock_dir()).arg("--").arg(engine).args(["build", "-t", TAG, "."]);

    call.run().assert_code(0);

    assert_eq!(f.build_count(TAG), 1);
    assert!(f.has_image(TAG));
    assert!(is_free(&f.lock_file(TAG)));
}

#[test]
fn empty_search_path_finds_no_command_but_runs_one_that_is_named_by_its_path() {
    let site = Site::new();
    let shell = which::which("sh").unwrap();
    let build = format!("PATH=/bin:/usr/bin; {BUILD}");
    let call = site.buildlock(["-t", TAG, "--", "no-such-command"]).env("PATH", "");
    call.run().assert_code(127);
    site.assert_nothing_built();
    let call = site.buildlock(["-t", TAG, "--"]).arg(shell).args(["-c", &build]).env("PATH", "");
    call.run().assert_code(0);
    site.assert_built_once();
}

#[test]
fn working_folder_may_be_gone() {
    let gone = "mkdir gone && cd gone && rmdir ../gone && exec \"$0\" \"$@\"";
    let site = Site::new();
    site.build_behind(gone).run().assert_code(0);
    site.assert_built_once();

    // Without a working folder, a relative lock folder cannot be found.
    let site = Site::new();

    let relative = gone.replace("\"$0\"", "\"$0\" --lock-dir locks");
    let relative = site.build_behind(&relative).run();
    relative.assert_code(125).assert_stderr("--lock-dir");
    site.assert_nothing_built();
}

// The clock.

#[test]
fn holder_that_began_in_the_future_has_built_for_no_time() {
    let site = Site::new();
    let gate = Gate::new(&site.f, "go");
    let script = format!("read _ <\"$STANDIN/go\"; {BUILD}");
    let build = site.script(&script).start();
    site.f.wait_for("the record", || {
        fs::read(site.lock()).is_ok_and(|record| record.ends_with(b"}\n"))
    });
    let record = fs::read(site.lock()).unwrap();
    for (since, shown) in [
        ("2999-01-01T00:00:00Z", "building for 0s"),
        ("1970-01-01T00:00:00Z", "building for "),
        // A time that cannot be read is not shown.
        ("0000-00-00T00:00:00Z", "sh -c"),
        ("99999-01-01T00:00:00Z", "sh -c"),
        ("", "sh -c"),
    ] {
        let mut changed: serde_json::Value = serde_json::from_slice(&record).unwrap();
        changed["since"] = since.into();
        // Written in place, as the holder does.
        fs::write(site.lock(), format!("{changed}\n")).unwrap();
        let before = Instant::now();
        let limited = site.buildlock(["-w", "200ms", "-t", TAG, "--", "false"]).run();
        limited.assert_code(124).assert_stderr(shown);
        limited.assert_stderr(&format!("pid {}", build.pid()));
        assert!(before.elapsed() >= Duration::from_millis(200), "{limited}");
        site.buildlock(["status"]).run().assert_code(0).assert_no_stderr("error");
    }
    let waiter = site.script(BUILD).start();
    site.f.wait_for_waiters(&site.lock(), 1);
    gate.open();
    build.wait().assert_code(0);
    waiter.wait().assert_code(0);
    site.assert_built_once();
}

#[test]
fn clock_that_is_set_back_does_not_move_a_limit() {
    let libraries = ["x86_64-linux-gnu", "aarch64-linux-gnu", "riscv64-linux-gnu", ""];
    let libraries = libraries
        .map(|machine| PathBuf::from(format!("/usr/lib/{machine}/faketime/libfaketime.so.1")));
    let Some(library) = libraries.into_iter().find(|library| library.exists()) else {
        skip("needs libfaketime (faketime)");
        return;
    };
    let site = Site::new();
    let clock = site.f.path("clock");
    let set_clock = |to: &str| {
        let fresh = site.f.path("clock.new");
        fs::write(&fresh, format!("{to}\n")).unwrap();
        fs::rename(fresh, &clock).unwrap();
    };
    let under_it = |options: &[&str], script: &str| {
        let call = site.buildlock(options).args(["-t", TAG, "--", "sh", "-c", script]);
        // Only the clock that users can set. CLOCK_MONOTONIC cannot be changed.
        let call = call.env("LD_PRELOAD", &library).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        call.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_TIMESTAMP_FILE", &clock).start()
    };
    let gate = Gate::new(&site.f, "go");
    set_clock("@2030-01-01 00:00:00");
    let build = under_it(&[], &format!("read _ <\"$STANDIN/go\"; {BUILD}"));
    site.f.wait_for("the record", || {
        fs::read(site.lock()).is_ok_and(|record| record.ends_with(b"}\n"))
    });
    let record = fs::read_to_string(site.lock()).unwrap();
    assert!(record.contains("\"since\":\"20") && !record.contains(&today()), "{record}");

    let before = Instant::now();
    let limited = under_it(&["-w", "1s", "--log-format", "json"], "false");
    let patient = under_it(&[], BUILD);
    limited.wait_for_stderr("waiting");
    patient.wait_for_stderr("waiting");
    set_clock("@2020-01-01 00:00:00");
    let late = under_it(&["-w", "200ms"], "false").wait();
    late.assert_code(124).assert_stderr("building for 0s");
    let limited = limited.wait();
    limited.assert_code(124).assert_stderr("\"timestamp\":\"2020-01-01");
    assert!(before.elapsed() >= Duration::from_secs(1), "{limited}");
    assert!(before.elapsed() < Duration::from_secs(10), "{limited}");

    gate.open();
    let build = build.wait();
    build.assert_code(0).assert_no_stderr("error");
    patient.wait().assert_code(0).assert_no_stderr("error");
    site.assert_built_once();
}

/// Returns the date, as times in records begin.
fn today() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()[..10].to_owned()
}
