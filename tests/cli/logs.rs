//! Logs: what buildlock says, to whom, and what it keeps secret.

use std::fs;

use serde_json::Value;

use crate::support::{Finished, Fixture, Running, stand_in};

const BUILD: [&str; 6] = ["--", "docker", "build", "-t", "env:abc", "."];

// JSON.

/// Returns the log as JSON. Fails unless each line is an object with the fields that all must have.
fn events(stderr: &str) -> Vec<Value> {
    let events: Vec<Value> = stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}\n{stderr}")))
        .collect();
    for event in &events {
        let timestamp = event["timestamp"].as_str().unwrap_or_else(|| panic!("{event}"));
        humantime::parse_rfc3339_weak(timestamp).unwrap_or_else(|e| panic!("{e}: {event}"));
        let level = event["level"].as_str().unwrap_or_else(|| panic!("{event}")).to_lowercase();
        assert!(["error", "warn", "info", "debug", "trace"].contains(&level.as_str()), "{event}");
    }
    events
}

/// Returns the only event of this name.
#[track_caller]
fn event(events: &[Value], name: &str) -> Value {
    let found: Vec<_> = events.iter().filter(|event| event["event"] == name).collect();
    assert_eq!(found.len(), 1, "{name} in {events:#?}");
    found[0].clone()
}

/// Returns the names of the events, in order.
fn names(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["event"].as_str()).collect()
}

fn level(event: &Value) -> String {
    event["level"].as_str().unwrap().to_lowercase()
}

#[test]
fn build_is_logged_as_acquired_building_built() {
    let f = Fixture::new();

    let finished = f.buildlock(["--log-format", "json"].iter().chain(&BUILD)).run();

    let events = events(&finished.assert_code(0).stderr);
    assert_eq!(names(&events), ["acquired", "building", "built"]);
    let acquired = event(&events, "acquired");
    assert_eq!(acquired["tag"], "env:abc");
    assert!(acquired["waited_s"].is_number(), "{acquired}");
    let building = event(&events, "building");
    assert_eq!(building["tags"], serde_json::json!(["env:abc"]));
    assert_eq!(building["command"], "docker build -t env:abc .");
    let built = event(&events, "built");
    assert_eq!(built["tags"], serde_json::json!(["env:abc"]));
    assert!(built["elapsed_s"].is_number(), "{built}");
    assert!(events.iter().all(|event| level(event) == "info"), "{events:#?}");
}

#[test]
fn present_image_is_logged_as_present() {
    let f = Fixture::new();
    f.make_image("env:abc");

    let finished = f.docker_build("env:abc").env("BUILDLOCK_LOG_FORMAT", "json").run();

    let events = events(&finished.assert_code(0).stderr);
    assert_eq!(names(&events), ["present"]);
    assert_eq!(event(&events, "present")["tag"], "env:abc");
}

#[test]
fn each_of_several_images_is_logged_as_present() {
    let f = Fixture::new();
    f.make_image("a:1");
    f.make_image("b:1");
    let args = ["--log-format=json", "--", "docker", "build", "-t", "b:1", "-t", "a:1", "."];

    let events = events(&f.buildlock(args).run().assert_code(0).stderr);

    let mut tags: Vec<_> = events.iter().map(|event| event["tag"].as_str().unwrap()).collect();
    tags.sort_unstable();
    assert_eq!(tags, ["a:1", "b:1"]);
}

#[test]
fn failed_build_is_logged_with_its_status() {
    let f = Fixture::new();
    f.steer("STANDIN_BUILD_STATUS=42");

    let finished = f.docker_build("env:abc").env("BUILDLOCK_LOG_FORMAT", "json").run();

    let events = events(&finished.assert_code(42).stderr);
    let failed = event(&events, "failed");
    assert_eq!(failed["tags"], serde_json::json!(["env:abc"]));
    assert_eq!(failed["status"], 42);
    assert!(["warn", "error"].contains(&level(&failed).as_str()), "{failed}");
}

#[test]
fn build_that_died_of_a_signal_is_logged_with_the_status_that_a_shell_shows() {
    let f = Fixture::new();
    f.steer("STANDIN_KILL=KILL");

    let finished = f.docker_build("env:abc").env("BUILDLOCK_LOG_FORMAT", "json").run();

    let events = events(&finished.assert_signal(9).stderr);
    assert_eq!(event(&events, "failed")["status"], 137);
}

/// Starts one call that builds and is held at the gate, and one that waits for it.
fn builder_and_waiter<'f>(f: &'f Fixture, waiter_args: &[&str]) -> (Running<'f>, Running<'f>) {
    f.hold_builds();
    let builder = f.docker_build("env:abc").start();
    f.wait_for_builds(1);
    let waiter = f.buildlock(waiter_args.iter().chain(&BUILD)).start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);
    (builder, waiter)
}

/// Returns the name of the user who runs the test.
fn user_name() -> String {
    let id = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(id.stdout).unwrap().trim().to_owned()
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

#[track_caller]
fn assert_holder(event: &Value, builder: u32) {
    let holder = &event["holder"];
    assert_eq!(holder["pid"], builder, "{event}");
    assert_eq!(holder["user"], user_name(), "{event}");
    assert_eq!(holder["host"], host_name(), "{event}");
    assert_eq!(holder["command"], "docker build -t env:abc .", "{event}");
    let since = holder["since"].as_str().unwrap_or_else(|| panic!("{event}"));
    let since = humantime::parse_rfc3339_weak(since).unwrap_or_else(|e| panic!("{e}: {event}"));
    let age = since.elapsed().unwrap_or_else(|e| panic!("in the future by {e}: {event}"));
    assert!(age < std::time::Duration::from_secs(30), "{event}");
}

#[test]
fn wait_is_logged_with_its_holder() {
    let f = Fixture::new();
    let (builder, waiter) = builder_and_waiter(&f, &["--log-format", "json"]);
    waiter.wait_for_stderr("\n");
    let builder_pid = builder.pid();

    f.release_builds();

    builder.wait().assert_code(0);
    let events = events(&waiter.wait().assert_code(0).stderr);
    assert_eq!(names(&events), ["waiting", "present"]);
    let waiting = event(&events, "waiting");
    assert_eq!(waiting["tag"], "env:abc");
    assert_eq!(waiting["lock"], f.lock_file("env:abc").to_str().unwrap());
    assert!(waiting["waited_s"].is_number(), "{waiting}");
    assert_holder(&waiting, builder_pid);
    assert_eq!(level(&waiting), "info");
}

#[test]
fn timeout_is_logged_with_its_holder() {
    let f = Fixture::new();
    let (builder, waiter) = builder_and_waiter(&f, &["--log-format", "json", "-w", "300ms"]);

    let events = events(&waiter.wait().assert_code(124).stderr);

    let timeout = event(&events, "timeout");
    assert_eq!(timeout["tag"], "env:abc");
    // The limit counts from a moment before this lock was found to be held.
    assert!(timeout["waited_s"].as_f64().unwrap() >= 0.1, "{timeout}");
    assert_holder(&timeout, builder.pid());
}

#[test]
fn holder_that_left_no_record_is_shown_as_far_as_the_kernel_knows_it() {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));
    let args = ["--log-format", "json", "-w", "1s"];

    let events = events(&f.buildlock(args.iter().chain(&BUILD)).run().assert_code(124).stderr);

    for name in ["waiting", "timeout"] {
        let event = event(&events, name);
        let holder = event["holder"].as_object().unwrap_or_else(|| panic!("{event}"));
        assert_eq!(holder["pid"], held.pid(), "{event}");
        for field in ["host", "since"] {
            assert!(holder.get(field).is_some_and(Value::is_null), "{event}");
        }
    }
}

#[test]
fn secret_in_the_command_line_of_a_foreign_holder_is_kept_secret() {
    let f = Fixture::new();
    f.hold_builds();
    let path = f.lock_file("env:abc");
    drop(f.open_lock_file(&path));
    let build = ["docker", "build", "--build-arg", "TOKEN=hunter2", "-t", "env:abc", "."];
    let _foreign = f.program("flock").arg("--no-fork").arg(&path).args(build).start();
    f.wait_for_builds(1);

    let finished = f.buildlock(["-v", "-w", "200ms"].iter().chain(&BUILD)).run();

    finished.assert_code(124).assert_no_stderr(SECRET);
}

#[test]
fn record_of_a_process_that_does_not_hold_the_lock_is_not_shown() {
    let f = Fixture::new();
    let path = f.lock_file("env:abc");
    let _held = f.hold_lock(&path);
    let record = r#"{"pid":1,"user":"mallory","host":"elsewhere","tag":"env:abc","command":"rm"}"#;
    fs::write(&path, format!("{record}\n")).unwrap();

    let finished = f.buildlock(["-w", "200ms"].iter().chain(&BUILD)).run();

    finished.assert_code(124).assert_no_stderr("mallory").assert_no_stderr("elsewhere");
}

#[test]
fn errors_are_json_too() {
    let f = Fixture::new();
    f.steer("STANDIN_DOWN=1");

    let finished = f.docker_build("env:abc").env("BUILDLOCK_LOG_FORMAT", "json").run();

    let events = events(&finished.assert_code(125).stderr);
    let last = events.last().expect("nothing was said");
    assert_eq!(level(last), "error");
    assert!(last.to_string().contains("Cannot connect to the Docker daemon"), "{last}");
}

#[test]
fn build_that_took_too_long_is_logged_as_failed() {
    let f = Fixture::new();
    f.hold_builds();
    let args = ["--log-format=json", "--build-timeout", "200ms"];

    let events = events(&f.buildlock(args.iter().chain(&BUILD)).run().assert_code(124).stderr);

    assert_eq!(event(&events, "failed")["status"], 124);
}

// Text.

#[test]
fn text_of_a_wait_says_who_builds_what() {
    let f = Fixture::new();
    let (builder, waiter) = builder_and_waiter(&f, &["-w", "300ms"]);

    let pattern = format!(
        r"(?m)^buildlock: env:abc: waiting for {}@{}, pid {}, building for [0-9][^:]*: docker build -t env:abc \.",
        regex::escape(&user_name()),
        regex::escape(&host_name()),
        builder.pid(),
    );
    waiter.wait().assert_code(124).assert_stderr_matches(&pattern);
}

#[test]
fn each_line_starts_with_the_name_of_the_program() {
    let f = Fixture::new();
    let (builder, waiter) = builder_and_waiter(&f, &[]);
    waiter.wait_for_stderr("\n");

    f.release_builds();

    for finished in [builder.wait(), waiter.wait()] {
        finished.assert_code(0);
        assert!(!finished.stderr.is_empty(), "{finished}");
        assert!(finished.stderr.lines().all(|l| l.starts_with("buildlock: ")), "{finished}");
    }
}

#[test]
fn wait_is_logged_at_once_and_again_after_5_seconds() {
    let f = Fixture::new();
    let _held = f.hold_lock(&f.lock_file("env:abc"));
    let args = ["--log-format", "json", "-w", "5500ms"];

    let events = events(&f.buildlock(args.iter().chain(&BUILD)).run().assert_code(124).stderr);

    let waits = events.iter().filter(|event| event["event"] == "waiting");
    let waited: Vec<f64> = waits.map(|event| event["waited_s"].as_f64().unwrap()).collect();
    assert_eq!(waited.len(), 2, "{events:#?}");
    assert!(waited[0] < 1.0 && waited[1] >= 5.0, "{waited:?}");
}

#[test]
fn output_to_a_file_has_no_escape_sequences() {
    let f = Fixture::new();
    let (builder, waiter) = builder_and_waiter(&f, &[]);
    waiter.wait_for_stderr("\n");

    f.release_builds();

    builder.wait().assert_code(0).assert_no_stderr("\x1b").assert_no_stderr("\r");
    waiter.wait().assert_code(0).assert_no_stderr("\x1b").assert_no_stderr("\r");
}

#[test]
fn colours_can_be_turned_on_and_off() {
    let f = Fixture::new();
    f.make_image("env:abc");
    let run = |args: &[&str], no_color| {
        let build = f.buildlock(args.iter().chain(&BUILD));
        build.env("NO_COLOR", no_color).run()
    };

    run(&["--color", "always"], "").assert_code(0).assert_stderr("\x1b[");
    run(&["--color", "never"], "").assert_code(0).assert_no_stderr("\x1b");
    run(&["--color", "auto"], "1").assert_code(0).assert_no_stderr("\x1b");
}

// Verbosity.

#[test]
fn quiet_does_not_log_success() {
    let f = Fixture::new();
    let (builder, waiter) = builder_and_waiter(&f, &["--quiet"]);

    f.release_builds();

    builder.wait().assert_code(0);
    assert_eq!(waiter.wait().assert_code(0).stderr, "");
    assert_eq!(f.buildlock(["-fq"].iter().chain(&BUILD)).run().assert_code(0).stderr, "");
}

#[test]
fn quiet_still_logs_failures() {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));
    let run = || f.buildlock(["-q", "-w", "0s"].iter().chain(&BUILD)).run();

    run().assert_code(124).assert_stderr("env:abc");

    drop(held);
    f.steer("STANDIN_NO_IMAGE=1");
    run().assert_code(125).assert_stderr("env:abc");
    f.steer("STANDIN_DOWN=1");
    run().assert_code(125).assert_stderr("Cannot connect to the Docker daemon");
}

#[test]
fn release_is_logged_in_verbose_mode_only() {
    let released = |args: &[&str], filter: Option<&str>| {
        let f = Fixture::new();
        let mut build = f.buildlock(["--log-format", "json"].iter().chain(args).chain(&BUILD));
        if let Some(filter) = filter {
            build = build.env("BUILDLOCK_LOG", filter);
        }
        let events = events(&build.run().assert_code(0).stderr);
        let released = events.iter().find(|event| event["event"] == "released").cloned();
        if let Some(released) = &released {
            assert_eq!(released["tag"], "env:abc");
            assert_eq!(level(released), "debug");
        }
        released.is_some()
    };

    assert!(!released(&[], None));
    assert!(released(&["-v"], None));
    assert!(released(&["--verbose"], Some("error")), "flags win over the environment");
    assert!(released(&[], Some("debug")));
    assert!(released(&[], Some("buildlock=debug")));
    assert!(!released(&[], Some("buildlock=info")));
    assert!(!released(&["-q"], Some("debug")), "flags win over the environment");
}

#[test]
fn filter_of_the_environment_can_silence() {
    let f = Fixture::new();

    let finished = f.docker_build("env:abc").env("BUILDLOCK_LOG", "warn").run();

    assert_eq!(finished.assert_code(0).stderr, "");
}

#[test]
fn invalid_filter_is_refused() {
    let f = Fixture::new();

    let finished = f.docker_build("env:abc").env("BUILDLOCK_LOG", "buildlock=loud").run();

    finished.assert_code(125).assert_stderr("BUILDLOCK_LOG");
    assert_eq!(f.build_events(), []);
}

// The build command's stdin, stdout and stderr.

#[test]
fn stdout_is_what_the_build_command_wrote_byte_for_byte() {
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let f = Fixture::new();

    let args = ["-v", "-t", "env:abc", "--", "sh", "-c", "cat; docker build -q -t env:abc . >&2"];
    let finished = f.buildlock(args).stdin(every_byte.clone()).run();

    finished.assert_code(0);
    assert!(finished.stdout == every_byte, "stdout differs");
}

#[test]
fn stdout_of_a_waiter_is_what_its_own_command_wrote() {
    let f = Fixture::new();
    f.steer("STANDIN_OUT=output");
    let (builder, waiter) = builder_and_waiter(&f, &["-v"]);

    f.release_builds();

    builder.wait().assert_code(0).assert_stdout("output");
    waiter.wait().assert_code(0).assert_stdout("");
}

#[test]
fn stderr_of_the_build_command_is_passed_on() {
    let f = Fixture::new();
    f.steer("STANDIN_ERR='#1 [internal] load build definition'");

    let finished = f.buildlock(["-q"].iter().chain(&BUILD)).run();

    assert_eq!(finished.assert_code(0).stderr, "#1 [internal] load build definition");
}

#[test]
fn build_command_can_read_stdin() {
    let f = Fixture::new();
    f.steer("STANDIN_STDIN=1");
    let args = ["--", "docker", "build", "-t", "env:abc", "-"];

    f.buildlock(args).stdin("FROM scratch\n").run().assert_code(0).assert_stdout("FROM scratch\n");
}

#[test]
fn look_up_does_not_read_stdin() {
    let f = Fixture::new();
    fs::remove_file(f.path("bin/docker")).unwrap();
    let engine = stand_in();
    f.install_script(
        "docker",
        &format!(
            "#!/bin/sh\ncase \"$*\" in *inspect*) cat >/dev/null ;; esac\nexec {} \"$@\"\n",
            engine.display()
        ),
    );
    f.steer("STANDIN_STDIN=1");
    let args = ["--", "docker", "build", "-t", "env:abc", "-"];

    f.buildlock(args).stdin("FROM scratch\n").run().assert_code(0).assert_stdout("FROM scratch\n");
}

// Secrets.

const SECRET: &str = "hunter2";

/// Fails if the holder, a waiter, `status` or a lock file shows the secret.
fn assert_kept_secret(command: &[&str]) {
    for format in ["text", "json"] {
        let f = Fixture::new();
        f.hold_builds();
        let start = || {
            let args = ["-v", "--log-format", format, "-t", "env:abc", "--"];
            f.buildlock(args.iter().chain(command)).env("BUILDLOCK_LOG", "trace").start()
        };
        let builder = start();
        f.wait_for_builds(1);
        let waiter = start();
        f.wait_for_waiters(&f.lock_file("env:abc"), 1);
        waiter.wait_for_stderr("docker");

        assert_eq!(f.lock_files().len(), 1);
        for path in f.lock_files() {
            let record = fs::read_to_string(path).unwrap();
            assert!(record.contains("build"), "no command in {record}");
            assert!(!record.contains(SECRET), "{record}");
        }
        for args in [&["status"][..], &["status", "--json"]] {
            // More than once: the kernel's list may miss a line while other locks come and go.
            f.wait_for("the lock in the list of status", || {
                let status = f.buildlock(args).run();
                assert!(!status.assert_code(0).stdout_line().contains(SECRET), "{status}");
                status.stdout_line().contains("env:abc")
            });
        }

        f.release_builds();
        builder.wait().assert_code(0).assert_no_stderr(SECRET).assert_stderr("docker");
        waiter.wait().assert_code(0).assert_no_stderr(SECRET).assert_stderr("docker");
        for path in f.lock_files() {
            assert!(!fs::read_to_string(path).unwrap().contains(SECRET));
        }
        assert!(
            f.lines("args.log")[0].contains(SECRET),
            "the build command must get it: {}",
            f.scene()
        );
    }
}

#[test]
fn value_of_a_build_argument_is_kept_secret() {
    assert_kept_secret(&["docker", "build", "--build-arg", "TOKEN=hunter2", "-t", "env:abc", "."]);
    assert_kept_secret(&["docker", "build", "--build-arg=TOKEN=hunter2", "-t", "env:abc", "."]);
}

#[test]
fn secret_options_are_kept_secret() {
    assert_kept_secret(&["docker", "build", "--secret", "id=x,src=hunter2", "-t", "env:abc", "."]);
    assert_kept_secret(&["docker", "build", "--secret=id=x,env=hunter2", "-t", "env:abc", "."]);
}

#[test]
fn secrets_within_a_shell_command_are_kept_secret() {
    let script = "docker build --build-arg TOKEN=hunter2 -t env:abc .";
    assert_kept_secret(&["sh", "-c", script]);
    let script = "cd . && docker build --build-arg=TOKEN='hunter2' -t env:abc .";
    assert_kept_secret(&["sh", "-c", script]);
    let script =
        "docker build --build-arg \"TOKEN=a hunter2\" --secret 'id=x,src=hunter2' -t env:abc .";
    assert_kept_secret(&["sh", "-ec", script]);
}

#[test]
fn name_of_a_build_argument_is_shown() {
    let f = Fixture::new();
    let args = ["--", "docker", "build", "--build-arg", "TOKEN=hunter2", "-t", "env:abc", "."];

    f.buildlock(args).run().assert_code(0).assert_stderr("TOKEN").assert_no_stderr(SECRET);
}

#[test]
fn secret_of_a_failing_build_is_kept_secret() {
    let f = Fixture::new();
    f.steer("STANDIN_NO_IMAGE=1");
    let args = ["-v", "--", "docker", "build", "--build-arg", "T=hunter2", "-t", "env:abc", "."];

    f.buildlock(args).run().assert_code(125).assert_no_stderr(SECRET);

    let args = ["-t", "env:abc", "--", "no-such-command", "--build-arg", "T=hunter2"];
    f.buildlock(args).run().assert_code(127).assert_no_stderr(SECRET);
}

// On a terminal.

/// Starts buildlock on a terminal of 100 columns, whose output becomes stdout.
fn start_on_terminal<'f>(f: &'f Fixture, args: &[&str]) -> Running<'f> {
    let words = args.iter().chain(&BUILD).map(|word| format!(" '{word}'")).collect::<String>();
    let program = assert_cmd::cargo::cargo_bin!("buildlock");
    let line = format!("stty cols 100 rows 30; exec '{}'{words}", program.display());
    f.program("script").args(["-qefc", &line, "/dev/null"]).env("TERM", "xterm").start()
}

/// Returns the screen as a terminal would show it, after each byte that moves to a line's start.
fn screens(output: &str) -> Vec<Vec<String>> {
    let mut screens = Vec::new();
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0, 0);
    let mut characters = output.chars();
    while let Some(c) = characters.next() {
        match c {
            '\r' | '\n' => {
                screens.push(lines.iter().map(|line| line.iter().collect()).collect());
                column = 0;
                if c == '\n' {
                    row += 1;
                    lines.resize(lines.len().max(row + 1), Vec::new());
                }
            }
            '\x1b' => {
                assert_eq!(characters.next(), Some('['), "{output:?}");
                let sequence: String =
                    characters.by_ref().take_while_inclusive(|c| !c.is_ascii_alphabetic());
                let (digits, kind) = sequence.split_at(sequence.len() - 1);
                let number: usize = digits.parse().unwrap_or(0);
                match kind {
                    "A" => row = row.saturating_sub(number.max(1)),
                    "K" if number == 2 => lines[row].clear(),
                    "K" => lines[row].truncate(column),
                    "J" => {
                        lines[row].truncate(column);
                        lines.truncate(row + 1);
                    }
                    // Colours, and showing or hiding the cursor.
                    "m" | "h" | "l" => {}
                    _ => panic!("unknown sequence {sequence:?} in {output:?}"),
                }
            }
            c => {
                if lines[row].len() <= column {
                    lines[row].resize(column + 1, ' ');
                }
                lines[row][column] = c;
                column += 1;
            }
        }
    }
    screens.push(lines.iter().map(|line| line.iter().collect()).collect());
    screens
}

/// Like `take_while`, but keeps the character that ends it.
trait TakeWhileInclusive: Iterator<Item = char> {
    fn take_while_inclusive(self, wanted: impl Fn(&char) -> bool) -> String;
}

impl<I: Iterator<Item = char>> TakeWhileInclusive for I {
    fn take_while_inclusive(self, wanted: impl Fn(&char) -> bool) -> String {
        let mut text = String::new();
        for c in self {
            text.push(c);
            if !wanted(&c) {
                break;
            }
        }
        text
    }
}

fn count_waiting(screen: &[String]) -> usize {
    screen.iter().filter(|line| line.contains("waiting")).count()
}

#[test]
fn wait_on_a_terminal_is_one_live_line_that_disappears() {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));
    let waiter = start_on_terminal(&f, &[]);
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);
    // Until the elapsed time on the live line has moved.
    f.wait_for("a live line", || waiter.stdout().contains("1s"));

    f.make_image("env:abc");
    drop(held);

    let finished: Finished = waiter.wait();
    finished.assert_code(0);
    let output = String::from_utf8_lossy(&finished.stdout);
    let screens = screens(&output);
    assert!(screens.iter().any(|screen| count_waiting(screen) == 1), "{output:?}");
    for screen in &screens {
        assert!(count_waiting(screen) <= 1, "{screen:#?}\n{output:?}");
    }
    let last = screens.last().unwrap();
    assert_eq!(count_waiting(last), 0, "it was left there: {last:#?}\n{output:?}");
    assert!(last.iter().any(|line| line.starts_with("buildlock: env:abc")), "{last:#?}");
}

#[test]
fn live_line_disappears_when_the_limit_passes() {
    let f = Fixture::new();
    let _held = f.hold_lock(&f.lock_file("env:abc"));

    let finished = start_on_terminal(&f, &["-w", "500ms"]).wait();

    finished.assert_code(124);
    let output = String::from_utf8_lossy(&finished.stdout);
    let screens = screens(&output);
    let last: Vec<_> = screens.last().unwrap().iter().filter(|l| !l.trim().is_empty()).collect();
    assert!(screens.iter().any(|screen| count_waiting(screen) == 1), "{output:?}");
    assert!(last.iter().all(|line| line.starts_with("buildlock: ")), "{last:#?}\n{output:?}");
}

#[test]
fn json_and_quiet_have_no_live_line_on_a_terminal() {
    let f = Fixture::new();
    let _held = f.hold_lock(&f.lock_file("env:abc"));

    let json = start_on_terminal(&f, &["-w", "300ms", "--log-format", "json"]).wait();
    let text = String::from_utf8_lossy(&json.assert_code(124).stdout).replace('\r', "");
    assert_eq!(names(&events(&text)), ["waiting", "timeout"]);

    let quiet = start_on_terminal(&f, &["-q", "-w", "300ms"]).wait();
    let text = String::from_utf8_lossy(&quiet.assert_code(124).stdout).replace('\r', "");
    assert_eq!(text.lines().count(), 1, "{text:?}");
}

#[test]
fn misspelt_level_in_the_filter_silences_no_error() {
    let f = Fixture::new();
    let finished = f.buildlock(["-t", "env:abc", "--", "nope"]).env("BUILDLOCK_LOG", "wran").run();
    finished.assert_code(127).assert_stderr("was not found: nope");
}

#[test]
fn wrong_usage_is_a_line_of_json_if_json_was_asked_for() {
    let f = Fixture::new();
    let finished = f.buildlock(["--log-format", "json", "-w", "soon", "-t", "env:abc"]).run();
    finished.assert_code(125);
    let line: serde_json::Value = serde_json::from_str(&finished.stderr).unwrap();
    assert_eq!((&line["level"], &line["event"]), (&"ERROR".into(), &"error".into()), "{line}");
    assert!(line["message"].as_str().unwrap().contains("invalid value 'soon'"), "{line}");
}

#[test]
fn secret_of_a_script_or_a_container_is_in_neither_the_logs_nor_the_lock_file() {
    for words in [
        &["sh", "-c", "PASSWORD=s3cret docker build -t env:abc ."][..],
        &["sh", "-c", "export PASSWORD='s3cret s3cret'; docker build -t env:abc ."],
        &["env", "PASSWORD=s3cret", "docker", "build", "-t", "env:abc", "."],
        &["sh", "-c", "docker build -t env:abc . # docker run -e PASSWORD=s3cret x"],
    ] {
        let f = Fixture::new();
        f.hold_builds();
        let build = f.buildlock(["-v", "-t", "env:abc", "--"]).args(words).start();
        f.wait_for_builds(1);
        let record = fs::read_to_string(f.lock_file("env:abc")).unwrap();
        assert!(record.contains("PASSWORD=…") && !record.contains("s3cret"), "{record}");
        f.release_builds();
        let build = build.wait();
        build.assert_code(0).assert_stderr("PASSWORD=…").assert_no_stderr("s3cret");
    }
}
