//! buildlock inside buildlock: a call must not wait for its own ancestors, but for everyone else.

use std::fs;
use std::path::Path;

use crate::support::{
    Finished, Fixture, Gate, Invocation, buildlock_path, has, holders, install_stubborn, is_free,
    is_root, python, send_signal,
};

/// Returns a fixture with buildlock in PATH, as build commands call it.
fn fixture() -> Fixture {
    let f = Fixture::new();
    std::os::unix::fs::symlink(buildlock_path(), f.path("bin/buildlock")).unwrap();
    f
}

/// Prepares `buildlock -t env:a -- sh -c SCRIPT`.
fn outer<'f>(f: &'f Fixture, script: &str) -> Invocation<'f> {
    f.buildlock(["-t", "env:a", "--", "sh", "-c", script])
}

fn assert_built_once(f: &Fixture, done: &Finished) {
    done.assert_code(0).assert_no_stderr("warning").assert_no_stderr("waiting");
    assert_eq!(f.build_count("env:a"), 1, "{done}");
    assert!(is_free(&f.lock_file("env:a")));
}

fn make<'f>(f: &'f Fixture, makefile: &str, words: &[&str]) -> Invocation<'f> {
    let tabs = makefile.replace("    ", "\t");
    fs::write(f.work_dir().join("Makefile"), tabs).unwrap();
    f.buildlock(["-t", "env:a", "--", "make"]).args(words)
}

#[test]
fn nested_call_for_the_same_tag_builds_at_once() {
    let f = fixture();
    let nested = ["buildlock", "-t", "env:a", "--", "docker", "build", "-t", "env:a", "."];
    let done = f.buildlock(["-t", "env:a", "--"]).args(nested).run();
    assert_built_once(&f, &done);
}

#[test]
fn nested_call_works_with_a_limit_of_zero() {
    let f = fixture();
    let nested = "buildlock -w 0s -t env:a -- docker build -t env:a .";
    assert_built_once(&f, &outer(&f, nested).run());
}

#[test]
fn nested_call_is_recognised_through_a_shell_and_in_other_spellings() {
    let f = fixture();
    let nested = "buildlock -t docker.io/library/env:a -- docker build -t env:a . ; exit $?";
    assert_built_once(&f, &outer(&f, nested).run());
}

#[test]
fn nested_call_is_recognised_without_its_environment() {
    let f = fixture();
    let script = r#"env -i PATH="$PATH" STANDIN="$STANDIN" BUILDLOCK_DIR="$BUILDLOCK_DIR" \
        buildlock -t env:a -- docker build -t env:a ."#;
    assert_built_once(&f, &outer(&f, script).run());
}

#[test]
fn nested_call_is_recognised_through_make() {
    if !has("make") {
        return;
    }
    let f = fixture();
    let makefile = "image:\n    buildlock -t env:a -- docker build -t env:a .\n";
    assert_built_once(&f, &make(&f, makefile, &["image"]).run());
}

#[test]
fn nested_calls_may_be_three_levels_deep() {
    let f = fixture();
    let script = "buildlock -t env:a -- sh -c \
        'buildlock -t env:a -- buildlock -t env:a -- docker build -t env:a . ; exit $?'";
    assert_built_once(&f, &outer(&f, script).run());
}

#[test]
fn nested_call_is_recognised_through_sudo() {
    if !is_root() || !has("sudo") {
        return;
    }
    let f = fixture();
    let script = r#"sudo env PATH="$PATH" STANDIN="$STANDIN" BUILDLOCK_DIR="$BUILDLOCK_DIR" \
        buildlock -t env:a -- docker build -t env:a ."#;
    let done = outer(&f, script).run();
    done.assert_code(0).assert_no_stderr("waiting");
    assert_eq!(f.build_count("env:a"), 1, "{done}");
}

#[test]
fn status_of_a_failed_nested_call_reaches_the_outer_one() {
    let f = fixture();
    let script = "buildlock -t env:a -- docker build -t env:a .";
    outer(&f, script).env("STANDIN_BUILD_STATUS", "9").run().assert_code(9);
    assert!(is_free(&f.lock_file("env:a")));
}

#[test]
fn outer_lock_is_still_held_after_a_nested_call_has_ended() {
    let f = fixture();
    let gate = Gate::new(&f, "go");
    let script = "buildlock -t env:a -- docker build -t env:a . && echo >\"$STANDIN/done\" && \
        read _ <\"$STANDIN/go\"";
    let done = outer(&f, script).start();
    f.wait_for_file("done");
    assert_eq!(holders(&f.lock_file("env:a")), [done.pid()], "{}", f.scene());
    assert!(!is_free(&f.lock_file("env:a")));
    let text = fs::read_to_string(f.lock_file("env:a")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["pid"], done.pid(), "the outer call's record was overwritten: {text}");
    gate.open();
    done.wait().assert_code(0);
}

#[test]
fn nested_call_finds_its_outer_calls_cache_although_the_guard_was_removed() {
    let f = fixture();
    let script = "rm \"$BUILDLOCK_DIR/guard\" && \
        buildlock -w 0s --cache cargo -t env:b -- docker build -t env:b . && \
        docker build -t env:a .";
    let done = f.buildlock(["--cache", "cargo", "-t", "env:a", "--", "sh", "-c", script]).run();
    done.assert_code(0).assert_no_stderr("waiting");
}

#[test]
fn two_nested_calls_exclude_each_other_and_the_second_skips() {
    let f = fixture();
    f.hold_builds();
    let script = "one() { buildlock -t env:a -- docker build -t env:a . ; }; \
        one & first=$!; one & second=$!; wait $first || exit 1; wait $second || exit 2";
    let both = outer(&f, script).start();
    f.wait_for_builds(1);
    both.wait_for_stderr("waiting");
    assert_eq!(f.build_count("env:a"), 1, "{}", f.scene());
    f.release_builds();
    let both = both.wait();
    both.assert_code(0).assert_stderr("present");
    assert_eq!(f.build_count("env:a"), 1, "{both}");
}

#[test]
fn two_nested_calls_with_force_build_one_after_the_other() {
    let f = fixture();
    f.hold_builds();
    let script = "one() { buildlock --force -t env:a -- docker build -t env:a . ; }; \
        one & first=$!; one & second=$!; wait $first || exit 1; wait $second || exit 2";
    let both = outer(&f, script).start();
    f.wait_for_builds(1);
    both.wait_for_stderr("waiting");
    f.release_builds();
    both.wait().assert_code(0);
    assert_eq!(f.build_count("env:a"), 2);
    f.assert_no_overlap();
}

#[test]
fn many_nested_calls_of_a_parallel_make_build_once() {
    if !has("make") {
        return;
    }
    let f = fixture();
    let makefile = "all: 1 2 3 4 5 6 7 8\n\
        1 2 3 4 5 6 7 8:\n    buildlock -t env:a -- docker build -t env:a .\n";
    make(&f, makefile, &["-j8", "all"]).run().assert_code(0);
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn nested_call_for_another_tag_takes_that_lock_too() {
    let f = fixture();
    let script = "buildlock -t env:b -- docker build -t env:b . && docker build -t env:a .";
    f.hold_builds();
    let done = outer(&f, script).start();
    f.wait_for_builds(1);
    assert!(!is_free(&f.lock_file("env:a")));
    assert!(!is_free(&f.lock_file("env:b")));
    let waiter = f.docker_build("env:b").start();
    f.wait_for_waiters(&f.lock_file("env:b"), 1);
    f.release_builds();
    done.wait().assert_code(0).assert_no_stderr("warning");
    waiter.wait().assert_code(0);
    assert_eq!((f.build_count("env:a"), f.build_count("env:b")), (1, 1));
}

#[test]
fn nested_call_against_the_order_of_locks_warns_and_names_both() {
    let f = fixture();
    let held = f.hold_lock(&f.lock_file("env:a"));
    let script = "buildlock -t env:a -- docker build -t env:a . && docker build -t env:b .";
    let done = f.buildlock(["-t", "env:b", "--", "sh", "-c", script]).start();
    done.wait_for_stderr("warning");
    let text = done.stderr();
    let warning = text.lines().find(|line| line.contains("warning")).unwrap();
    assert!(warning.contains("env:a") && warning.contains("env:b"), "{text}");
    assert!(warning.contains("deadlock"), "{text}");
    drop(held);
    done.wait().assert_code(0);
}

#[test]
fn nested_call_in_the_order_of_locks_does_not_warn_though_it_waits() {
    let f = fixture();
    let held = f.hold_lock(&f.lock_file("env:b"));
    let script = "buildlock -t env:b -- docker build -t env:b . && docker build -t env:a .";
    let done = outer(&f, script).start();
    done.wait_for_stderr("waiting");
    drop(held);
    done.wait().assert_code(0).assert_no_stderr("warning");
}

#[test]
fn nested_call_without_a_wait_does_not_warn_about_the_order() {
    let f = fixture();
    let script = "buildlock -t env:a -- docker build -t env:a . && docker build -t env:b .";
    let done = f.buildlock(["-t", "env:b", "--", "sh", "-c", script]).run();
    done.assert_code(0).assert_no_stderr("warning");
}

// Locks that no ancestor holds.

/// Runs an outer call with `options` that leaves a daemon behind. The daemon runs `script` once the
/// gate opens.
fn leave_daemon(f: &Fixture, options: &[&str], script: &str) -> Gate {
    let gate = Gate::new(f, "daemon.gate");
    f.install_script(
        "daemon",
        &format!("#!/bin/sh\necho $$ >\"$STANDIN/daemon.pid\"\nread _ <\"$STANDIN/daemon.gate\"\n{script}\n"),
    );
    let leave = "setsid daemon >/dev/null 2>&1 & \
        until [ -s \"$STANDIN/daemon.pid\" ]; do :; done; docker build -t env:a .";
    let outer = f.buildlock(["-t", "env:a"]).args(options).args(["--", "sh", "-c", leave]);
    outer.run().assert_code(0);
    f.wait_for_file("daemon.pid");
    gate
}

#[test]
fn lock_of_an_outer_call_that_has_ended_is_not_held_by_its_daemon() {
    let f = fixture();
    let script = "buildlock --force -w 0s -E 75 -t env:a -- docker build -t env:a .\n\
        echo $? >\"$STANDIN/daemon.status\"";
    let gate = leave_daemon(&f, &[], script);
    // The daemon has the environment and the descriptors of a call that once held this lock.
    f.hold_builds();
    let another = f.buildlock(["--force", "-t", "env:a", "--", "docker", "build", "-t"]);
    let another = another.args(["env:a", "."]).start();
    f.wait_for_builds(2);
    gate.open();
    assert_eq!(f.wait_for_file("daemon.status"), "75\n");
    assert_eq!(f.build_count("env:a"), 2, "{}", f.scene());
    f.release_builds();
    another.wait().assert_code(0);
}

/// Runs a command below a shell that has a given pid: `with_number N COMMAND`.
///
/// Since other processes start as well, it tries more than once, and ends with 71 if it fails.
const WITH_NUMBER: &str = r#"#!/bin/sh
number=$1; shift
try=0
while [ $try -lt 100 ]; do
    try=$((try + 1))
    echo $((number - 1)) >/proc/sys/kernel/ns_last_pid || exit 70
    sh -c '[ $$ -eq "$0" ] || exit 71; echo got >>"$STANDIN/numbers"; "$@"; exit $?' "$number" "$@"
    status=$?
    [ $status -eq 71 ] || exit $status
done
exit 71
"#;

/// A call that does not wait. It builds if it believes that an ancestor holds the lock.
const CALL: &str = "buildlock -w 0s -E 75 --force -t env:a -- docker build -t env:a .";

/// Runs a script that calls buildlock below a process with a reused pid: that of a process that
/// took the lock and has ended. The kernel notes the pid outside of all PID namespaces.
fn assert_number_proves_nothing(f: &Fixture, script: &str) {
    if let Some(call) = with_number_reused(f, script) {
        call.assert_code(75);
    }
}

/// Runs the script until it has got its pid. Only root can.
fn with_number_reused(f: &Fixture, script: &str) -> Option<Finished> {
    if !is_root() {
        return None;
    }
    f.install_script("with_number", WITH_NUMBER);
    for attempt in 0.. {
        let call = f.program("sh").args(["-c", script]).run();
        // Another process has got the number, and lives on.
        if call.status.code() != Some(71) || attempt == 10 {
            assert_eq!(f.lines("numbers"), ["got"]);
            assert_eq!(f.build_count("env:a"), 0);
            return Some(call);
        }
        for file in ["stubborn.pid", "taker", "taken"] {
            _ = fs::remove_file(f.path(file));
        }
        for pid in f.processes() {
            send_signal(pid, "KILL");
        }
    }
    unreachable!("there is a last attempt")
}

#[test]
fn reused_pid_of_a_killed_holder_does_not_make_another_process_the_holder() {
    let f = fixture();
    let _gate = install_stubborn(&f);
    let script = format!(
        "buildlock -t env:a -- stubborn & holder=$!\n\
         until [ -e \"$STANDIN/stubborn.pid\" ]; do sleep 0.02; done\n\
         kill -9 $holder; wait $holder\n\
         with_number $holder {CALL}"
    );
    assert_number_proves_nothing(&f, &script);
}

#[test]
fn reused_pid_of_a_program_that_took_a_lock_for_a_shell_does_not_make_another_process_the_holder() {
    let f = fixture();
    f.buildlock(["path", "env:a"]).run().assert_code(0);
    // flock(1) ends, and the shell keeps the lock.
    let script = format!(
        "lock=$(buildlock path env:a)\n\
         sh -c 'exec 9<\"$0\"; flock 9 & echo $! >\"$STANDIN/taker\"; wait; echo >\"$STANDIN/taken\"; \
         sleep 600' \"$lock\" &\n\
         until [ -e \"$STANDIN/taken\" ]; do sleep 0.02; done\n\
         with_number \"$(cat \"$STANDIN/taker\")\" {CALL}"
    );
    assert_number_proves_nothing(&f, &script);
}

#[test]
fn process_with_the_reused_pid_of_a_holder_is_not_shown_as_the_holder() {
    let f = fixture();
    f.buildlock(["path", "env:a"]).run().assert_code(0);
    let script = "lock=$(buildlock path env:a)\n\
         sh -c 'exec 9<\"$0\"; flock 9 & echo $! >\"$STANDIN/taker\"; wait; echo >\"$STANDIN/taken\"; \
         sleep 600' \"$lock\" &\n\
         until [ -e \"$STANDIN/taken\" ]; do sleep 0.02; done\n\
         with_number \"$(cat \"$STANDIN/taker\")\" buildlock status";
    let Some(status) = with_number_reused(&f, script) else { return };
    status.assert_code(0);
    let table = String::from_utf8(status.stdout.clone()).unwrap();
    let taker = f.wait_for_file("taker");
    let line = table.lines().find(|line| line.contains(taker.trim()));
    assert!(line.is_some_and(|line| !line.contains("root")), "{table}");
}

#[test]
fn environment_and_record_of_a_holder_do_not_make_a_stranger_its_child() {
    let f = fixture();
    f.hold_builds();
    let holder = outer(&f, "env -0 >\"$STANDIN/environment\"; docker build -t env:a .").start();
    f.wait_for_builds(1);
    let bytes = fs::read(f.path("environment")).unwrap();
    let mut stranger = f.buildlock(["-w", "0s", "-t", "env:a", "--", "false"]);
    for variable in bytes.split(|&byte| byte == 0) {
        let text = std::str::from_utf8(variable).unwrap();
        if let Some((name, value)) = text.split_once('=') {
            stranger = stranger.env(name, value);
        }
    }
    stranger.run().assert_code(124);
    f.release_builds();
    holder.wait().assert_code(0);
}

#[test]
fn record_that_names_an_ancestor_does_not_make_the_lock_ours() {
    let f = fixture();
    let lock = f.lock_file("env:b");
    let _foreign = f.hold_lock(&lock);
    // The shell is the nested call's parent. Another process is the holder.
    let script = format!(
        "echo '{{\"pid\":'$$',\"user\":\"me\",\"host\":\"here\",\"tag\":\"env:b\",\
         \"command\":\"x\",\"since\":\"2024-01-01T00:00:00Z\",\"version\":\"0.1.0\"}}' >'{}'; \
         buildlock -w 0s -E 75 -t env:b -- docker build -t env:b . ; exit $?",
        lock.display()
    );
    f.program("sh").args(["-c", &script]).run().assert_code(75);
    assert_eq!(f.build_count("env:b"), 0);
}

#[test]
fn lock_that_a_parent_took_by_hand_is_held_by_an_ancestor() {
    let f = fixture();
    let Some(python) = python() else { return };
    f.buildlock(["path", "env:a"]).run().assert_code(0);
    let script = "
import fcntl, os, subprocess, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
sys.exit(subprocess.call(['buildlock', '-t', 'env:a', '--', 'docker', 'build', '-t', 'env:a', '.']))";
    let parent = f.program(python).args(["-c", script]).arg(f.lock_file("env:a"));
    assert_built_once(&f, &parent.run());
}

#[test]
fn two_locks_of_two_outer_calls_are_not_each_others() {
    let f = fixture();
    let gate = Gate::new(&f, "go");
    let other = f.buildlock(["-t", "env:b", "--", "sh", "-c", "read _ <\"$STANDIN/go\""]).start();
    f.wait_for_holder(&f.lock_file("env:b"));
    let script = "buildlock -w 0s -E 75 -t env:b -- docker build -t env:b .";
    outer(&f, script).run().assert_code(75);
    f.make_image("env:b");
    gate.open();
    other.wait().assert_code(0);
}

// --force.

#[test]
fn force_reaches_nested_calls_for_the_same_tag() {
    let f = fixture();
    f.make_image("env:a");
    let nested = ["buildlock", "-t", "env:a", "--", "docker", "build", "-t", "env:a", "."];
    f.buildlock(["--force", "-t", "env:a", "--"]).args(nested).run().assert_code(0);
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn force_reaches_nested_calls_through_make() {
    if !has("make") {
        return;
    }
    let f = fixture();
    f.make_image("env:a");
    let makefile = "image:\n\tbuildlock -t env:a -- docker build -t env:a .\n";
    fs::write(f.work_dir().join("Makefile"), makefile).unwrap();
    f.buildlock(["--force", "-t", "env:a", "--", "make", "image"]).run().assert_code(0);
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn force_does_not_reach_nested_calls_for_another_tag() {
    let f = fixture();
    f.make_image("env:a");
    f.make_image("env:b");
    let script = "buildlock -t env:b -- docker build -t env:b .";
    f.buildlock(["--force", "-t", "env:a", "--", "sh", "-c", script]).run().assert_code(0);
    assert_eq!(f.build_count("env:b"), 0);
}

#[test]
fn nested_call_without_force_skips_an_image_that_exists_by_then() {
    let f = fixture();
    let script = "docker build -t env:a . && buildlock -t env:a -- docker build -t env:a .";
    outer(&f, script).run().assert_code(0).assert_stderr("present");
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn force_ends_with_the_outer_call() {
    let f = fixture();
    let script = "buildlock -t env:a -- docker build -t env:a .\n\
        echo $? >\"$STANDIN/daemon.status\"";
    let gate = leave_daemon(&f, &["--force"], script);
    assert_eq!(f.build_count("env:a"), 1);
    gate.open();
    assert_eq!(f.wait_for_file("daemon.status"), "0\n");
    assert_eq!(f.build_count("env:a"), 1, "{}", f.scene());
}

// make's jobserver.

/// A makefile whose two targets end only if both run at the same time.
const INNER: &str = "\
both: left right
left:
\techo >\"$$STANDIN/left.gate\"; read _ <\"$$STANDIN/right.gate\"
right:
\techo >\"$$STANDIN/right.gate\"; read _ <\"$$STANDIN/left.gate\"
";

/// Runs `make -j8` over buildlock over another make.
fn jobserver(f: &Fixture, recipe: &str) -> Finished {
    fs::write(f.work_dir().join("inner.mk"), INNER).unwrap();
    let makefile = format!("image:\n\t{recipe}\n");
    fs::write(f.work_dir().join("Makefile"), makefile).unwrap();
    f.install_script("descriptors", "#!/bin/sh\nls -l /proc/$$/fd >\"$STANDIN/descriptors.txt\"\n");
    f.program("make").args(["-j8", "image"]).run()
}

/// Returns the build command's descriptors, and what each one was.
fn seen_descriptors(f: &Fixture) -> Vec<(u32, String)> {
    let pattern = regex::Regex::new(r" (\d+) -> (.*)").unwrap();
    let lines = f.lines("descriptors.txt");
    let all = lines.iter().filter_map(|line| pattern.captures(line));
    all.map(|c| (c[1].parse().unwrap(), c[2].to_owned())).collect()
}

fn assert_locks_are_out_of_the_way(f: &Fixture) {
    let lock_dir = f.lock_dir();
    let seen = seen_descriptors(f);
    let locks: Vec<_> = seen.iter().filter(|(_, p)| Path::new(p).starts_with(&lock_dir)).collect();
    assert!(!locks.is_empty(), "no lock is inherited: {seen:?}");
    assert!(locks.iter().all(|(n, _)| *n >= 1000), "{locks:?}");
}

#[test]
fn inner_make_keeps_the_jobserver_of_the_outer_one() {
    if !has("make") {
        return;
    }
    let f = fixture();
    let _gates = [Gate::new(&f, "left.gate"), Gate::new(&f, "right.gate")];
    let recipe = "+buildlock -t env:a -- sh -c \
        'descriptors; $(MAKE) -f inner.mk both && docker build -t env:a .'";
    let done = jobserver(&f, recipe);
    done.assert_code(0);
    let told = String::from_utf8_lossy(&done.stdout).into_owned() + &done.stderr;
    assert!(!told.contains("jobserver"), "{done}");
    assert_locks_are_out_of_the_way(&f);
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn lock_file_is_not_taken_for_the_jobserver_that_make_closed() {
    if !has("make") {
        return;
    }
    let f = fixture();
    // Without + or $(MAKE), make closes the jobserver and still names its descriptors.
    let inner = "inner: ; docker build -t env:a .\n";
    let recipe = "buildlock -t env:a -- sh -c 'descriptors; make -f other.mk -j8 inner'";
    fs::write(f.work_dir().join("other.mk"), inner).unwrap();
    jobserver(&f, recipe).assert_code(0);
    assert_locks_are_out_of_the_way(&f);
    let seen = seen_descriptors(&f);
    let outside = seen.iter().filter(|(n, path)| (3..10).contains(n) && path.contains("/locks/"));
    assert_eq!(outside.count(), 0, "{seen:?}");
    assert_eq!(f.build_count("env:a"), 1);
    let after = fs::read_to_string(f.lock_file("env:a")).unwrap();
    assert!(!after.contains('+'), "a job token was written into the lock file: {after:?}");
}

#[test]
fn nested_call_does_not_wait_for_an_outer_one_that_was_killed() {
    nested_call_goes_on_after_its_outer_one_was_killed(true);
}

#[test]
fn nested_call_does_not_wait_for_an_outer_one_that_was_killed_and_is_a_zombie() {
    nested_call_goes_on_after_its_outer_one_was_killed(false);
}

fn nested_call_goes_on_after_its_outer_one_was_killed(reap: bool) {
    let f = fixture();
    let gate = f.path("go");
    // The build command outlives its death signal, and then calls buildlock for the tag again.
    let script = format!(
        "trap '' TERM; echo up >{}; while [ ! -e {} ]; do sleep 0.02; done; \
         buildlock -t env:a -- docker build -t env:a . ; echo $? >{}",
        f.path("up").display(),
        gate.display(),
        f.path("status").display(),
    );
    let killed = outer(&f, &script).start();
    f.wait_for_file("up");
    killed.signal("KILL");
    // Once with the killed call's status taken, once while it is a zombie.
    let zombie = if reap {
        killed.wait().assert_signal(9);
        None
    } else {
        Some(killed)
    };
    fs::write(&gate, "").unwrap();
    f.wait_for("the nested call ends", || {
        fs::read_to_string(f.path("status")).is_ok_and(|status| status == "0\n")
    });
    assert_eq!(f.build_count("env:a"), 1);
    f.wait_for("the lock is free", || is_free(&f.lock_file("env:a")));
    drop(zombie);
}

#[test]
fn nested_call_does_not_wait_for_a_lock_that_only_it_has_inherited() {
    let f = fixture();
    // The processes between the two are gone when the nested call wants the lock.
    let inner = "while [ ! -e \"$STANDIN/go\" ]; do sleep 0.02; done; \
                 exec buildlock -w none -t env:a -- docker build -t env:a .";
    let script = format!("({inner}) & echo $! >\"$STANDIN/inner\"; wait");
    let killed = outer(&f, &script).start();
    let inner: u32 = f.wait_for_file("inner").trim().parse().unwrap();
    let parent = |pid| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = |pid: u32| -> u32 {
        parent(pid).rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let shell = parent(inner);
    let keeper = parent(shell);
    for pid in [killed.pid(), keeper, shell] {
        send_signal(pid, "KILL");
        f.wait_for_death(pid);
    }
    fs::write(f.path("go"), "").unwrap();
    f.wait_for_death(inner);
    assert_eq!(f.build_count("env:a"), 1, "{}", f.scene());
    assert!(f.has_image("env:a"));
    f.wait_for("the lock is free", || is_free(&f.lock_file("env:a")));
    drop(killed);
}

#[test]
fn call_in_a_script_that_took_the_lock_itself_does_not_wait_for_the_script() {
    let f = fixture();
    // flock(1), which took the lock, has ended. The shell has its descriptor.
    let script = "exec 9<\"$(buildlock path env:a)\" && flock 9 && \
                  buildlock -w 5s -t env:a -- docker build -t env:a .";
    f.program("sh").args(["-c", script]).run().assert_code(0);
    assert_eq!(f.build_count("env:a"), 1);
}

#[test]
fn script_that_releases_the_lock_during_a_call_inside_of_it_lets_nobody_else_build() {
    let f = fixture();
    let gate = Gate::new(&f, "script.gate");
    let script = "exec 9<\"$(buildlock path env:a)\" && flock 9 && \
                  { buildlock -w 5s -t env:a -- docker build -t env:a . & } && \
                  read _ <\"$STANDIN/script.gate\"; flock -u 9; wait";
    f.hold_builds();
    let call = f.program("sh").args(["-c", script]).start();
    f.wait_for_builds(1);
    gate.open();
    let lock = f.lock_file("env:a");
    f.wait_for("the script's release", || is_free(&lock));
    let other = ["--force", "-w", "0s", "-E", "75", "-t", "env:a", "--", "true"];
    f.buildlock(other).run().assert_code(75);
    f.release_builds();
    call.wait().assert_code(0);
    f.buildlock(other).run().assert_code(0);
}

#[test]
fn wrapper_that_calls_buildlock_again_is_told_which_program_to_name() {
    let f = Fixture::new();
    // In front of the stand-in, under the same name.
    fs::create_dir(f.path("wrappers")).unwrap();
    let buildlock = assert_cmd::cargo::cargo_bin!("buildlock").display();
    let wrapper = format!(
        "#!/bin/sh\n[ \"$1\" = build ] || exec {docker} \"$@\"\necho called >>\"$STANDIN/called\"\n\
         exec {buildlock} -- docker \"$@\"\n",
        docker = f.path("bin/docker").display()
    );
    f.write_executable("wrappers/docker", &wrapper);
    let path = format!("{}:{}", f.path("wrappers").display(), f.search_path().display());
    let call = f.program(f.path("wrappers/docker")).args(["build", "-t", "env:abc", "."]);
    let done = call.env("PATH", &path).run();
    done.assert_code(125).assert_stderr("a wrapper that calls buildlock again");
    // The advice names another docker in PATH, which is not a script if possible.
    done.assert_stderr_matches("as in: buildlock -- /[^ ]*/docker \\.\\.\\.");
    done.assert_no_stderr("wrappers/docker ...");
    assert_eq!(f.lines("called").len(), 2, "{done}");
    assert_eq!(f.build_count("env:abc"), 0);

    // With other words, or in another folder, it is another call.
    let inner = format!("{buildlock} -t env:abc -- sh build.sh");
    f.write_executable("work/build.sh", "docker build -t env:abc .");
    f.write_executable("images/build.sh", "docker build -t env:abc .");
    let outer = format!("cd {} && {inner}", f.path("images").display());
    let outer = f.buildlock(["-t", "env:abc", "--", "sh", "-c", &outer]).run();
    outer.assert_code(0).assert_no_stderr("a wrapper");
}
