//! The keeper, and which processes belong to a build: all that the build command has started are
//! ended, and no others.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{
    Fixture, Namespace, Running, build_that_sees_overlap, buildlock_path, cpu_seconds, has,
    install_polite, install_stubborn, is_alive, is_free, is_root, send_signal, skip, state,
};

const TAG: &str = "env:abc";

/// Returns the process between buildlock and the build command.
fn keeper_of(f: &Fixture, buildlock: u32) -> u32 {
    let children = format!("/proc/{buildlock}/task/{buildlock}/children");
    let mut keeper = None;
    f.wait_for("the keeper", || {
        let text = fs::read_to_string(&children).unwrap_or_default();
        keeper = text.split_whitespace().find_map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim_end() == "lock-keeper").then(|| pid.parse().unwrap())
        });
        keeper.is_some()
    });
    keeper.unwrap()
}

/// Starts a call whose build command is this script.
fn start<'f>(f: &'f Fixture, options: &[&str], script: &str) -> Running<'f> {
    f.buildlock(options).args(["--force", "-t", TAG, "--", "sh", "-c", script]).start()
}

#[test]
fn keeper_has_nothing_of_buildlocks_name() {
    let f = Fixture::new();
    f.hold_builds();
    let build = f.docker_build(TAG).start();
    f.wait_for_builds(1);
    let keeper = keeper_of(&f, build.pid());
    // pkill looks at the name and, with -f, at the command line.
    let name = fs::read_to_string(format!("/proc/{keeper}/comm")).unwrap();
    let words = fs::read_to_string(format!("/proc/{keeper}/cmdline")).unwrap();
    assert_eq!((name.trim_end(), words.trim_end_matches('\0')), ("lock-keeper", "lock-keeper"));
    f.release_builds();
    build.wait().assert_code(0);
}

#[test]
fn keeper_that_was_stopped_goes_on_when_buildlock_is_killed() {
    let f = Fixture::new();
    let _gate = install_polite(&f);
    // With exec, for a shell would leave it behind.
    let build = start(&f, &[], "exec polite");
    let polite = f.wait_for_pid("polite.pid");
    let keeper = keeper_of(&f, build.pid());
    send_signal(keeper, "STOP");
    f.wait_for("the keeper to stop", || state(keeper) == 'T');
    build.signal("KILL");
    f.wait_for_death(polite);
    f.wait_for_death(keeper);
    assert!(is_free(&f.lock_file(TAG)), "{}", f.scene());
}

#[test]
fn build_of_a_stopped_buildlock_is_ended_at_its_limit() {
    for helper in ["polite", "stubborn"] {
        let f = Fixture::new();
        let _gates = (install_polite(&f), install_stubborn(&f));
        let options = ["--build-timeout", "500ms", "-k", "500ms"];
        // The build command's children as well.
        let build = start(&f, &options, &format!("{helper} & wait"));
        let pid = f.wait_for_pid(&format!("{helper}.pid"));
        build.signal("STOP");
        f.wait_for("buildlock to stop", || state(build.pid()) == 'T');
        let next = build_that_sees_overlap(&f).start();
        f.wait_for_death(pid);
        assert_eq!(state(build.pid()), 'T');
        build.signal("CONT");
        build.wait().assert_code(124).assert_stderr("--build-timeout");
        next.wait().assert_code(0);
        assert_eq!(f.lines("overlap"), Vec::<String>::new());
    }
}

#[test]
fn build_of_a_buildlock_that_was_stopped_after_the_first_signal_is_killed() {
    for signal in ["STOP", "KILL"] {
        let f = Fixture::new();
        let _gate = install_stubborn(&f);
        let build = start(&f, &["--build-timeout", "1s", "-k", "1s"], "stubborn");
        let stubborn = f.wait_for_pid("stubborn.pid");
        build.wait_for_stderr("ending it");
        build.signal(signal);
        f.wait_for_death(stubborn);
        if signal == "STOP" {
            assert_eq!(state(build.pid()), 'T');
            build.signal("CONT");
            build.wait().assert_code(124);
        }
        f.wait_for("the lock to be free", || is_free(&f.lock_file(TAG)));
    }
}

#[test]
fn build_of_a_killed_buildlock_is_ended_at_its_limit() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let build = start(&f, &["--build-timeout", "1s", "-k", "200ms"], "stubborn");
    let stubborn = f.wait_for_pid("stubborn.pid");
    build.signal("KILL");
    f.wait_for_death(stubborn);
    f.wait_for("the lock to be free", || is_free(&f.lock_file(TAG)));
}

#[test]
fn time_in_the_message_lasts_until_all_processes_have_ended() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let build = start(&f, &["-k", "1s", "--log-format", "json"], "stubborn & wait");
    f.wait_for_pid("stubborn.pid");
    send_signal(keeper_of(&f, build.pid()), "KILL");
    let killed = build.wait();
    let failed = killed.stderr.lines().find(|line| line.contains("\"failed\"")).unwrap();
    let failed: serde_json::Value = serde_json::from_str(failed).unwrap();
    assert!(failed["elapsed_s"].as_f64().unwrap() >= 1.0, "{failed}");
}

// Processes that belong to the build, and others.

/// Makes a script that starts jobs in the background and then becomes buildlock.
fn exec_beside(f: &Fixture, jobs: &str, options: &str, command: &str) -> PathBuf {
    f.write_executable(
        "script",
        &format!(
            "#!/bin/bash\n{jobs}\nexec '{}' {options} --force -t {TAG} -- {command}\n",
            buildlock_path().display()
        ),
    )
}

#[test]
fn jobs_of_the_script_that_became_buildlock_do_not_belong_to_the_build() {
    if !has("bash") {
        return;
    }
    let f = Fixture::new();
    let gate = install_polite(&f);
    // The job ends during the build, and leaves a child behind.
    let jobs = "( polite & until [ -e \"$STANDIN/up\" ]; do sleep 0.02; done ) &";
    let options = "--build-timeout 1s -k 300ms";
    let command = "sh -c 'until [ -e \"$STANDIN/polite.pid\" ]; do sleep 0.02; done; \
        echo >\"$STANDIN/up\"; sleep 600'";
    let script = exec_beside(&f, jobs, options, command);
    let build = f.program(script).start();
    let polite = f.wait_for_pid("polite.pid");
    build.wait().assert_code(124);
    assert!(is_alive(polite), "{}", f.scene());
    assert_eq!(f.lines("polite.term"), Vec::<String>::new());
    gate.open();
    f.wait_for_death(polite);
}

#[test]
fn process_that_may_be_such_a_job_keeps_the_lock() {
    if !has("bash") {
        return;
    }
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let script = exec_beside(&f, "sleep 600 &", "-k 300ms", "sh -c 'stubborn & wait'");
    let build = f.program(script).start();
    let stubborn = f.wait_for_pid("stubborn.pid");
    send_signal(keeper_of(&f, build.pid()), "KILL");
    let next = build_that_sees_overlap(&f).start();
    build.wait().assert_stderr("left processes, if any, that cannot be found from here");
    // The death signal has ended the shell. It is unknown who started the rest.
    assert!(is_alive(stubborn) && !is_free(&f.lock_file(TAG)), "{}", f.scene());
    send_signal(stubborn, "KILL");
    next.wait().assert_code(0);
    assert_eq!(f.lines("overlap"), Vec::<String>::new());
}

#[test]
fn second_run_ends_what_the_first_one_left_behind() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    fs::write(f.work_dir().join("file"), "1").unwrap();
    let cache = ["--cache", "c=file", "-k", "300ms"];
    f.buildlock(cache)
        .args(["-t", TAG, "--", "docker", "build", "-t", TAG, "."])
        .run()
        .assert_code(0);
    // The first run fails beside a process that ends by TERM and stays as a zombie of buildlock.
    let script =
        "if mkdir \"$STANDIN/first\" 2>/dev/null; then (sleep 600 &); exit 1; fi; stubborn & wait";
    let build = start(&f, &cache, script);
    f.wait_for_pid("stubborn.pid");
    send_signal(keeper_of(&f, build.pid()), "KILL");
    let next = build_that_sees_overlap(&f).start();
    build.wait();
    next.wait().assert_code(0);
    assert_eq!(f.lines("overlap"), Vec::<String>::new());
}

#[test]
fn jobs_of_the_script_that_became_buildlock_are_reaped() {
    if !has("bash") {
        return;
    }
    let f = Fixture::new();
    let _gate = install_polite(&f);
    let jobs = "for n in {1..20}; do { until [ -e \"$STANDIN/polite.pid\" ]; do sleep 0.02; done; } & done";
    let script = exec_beside(&f, jobs, "", "polite");
    let build = f.program(script).start();
    f.wait_for_pid("polite.pid");
    let zombies = || {
        let path = format!("/proc/{0}/task/{0}/children", build.pid());
        let children = fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().filter(|pid| state(pid.parse().unwrap()) == 'Z').count()
    };
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", build.pid());
        fs::read_to_string(path).unwrap_or_default().split_whitespace().count()
    };
    // Only the keeper is left.
    f.wait_for("the jobs to be reaped", || children() == 1);
    assert_eq!(zombies(), 0);
    build.signal("TERM");
    build.wait();
}

#[test]
fn jobs_that_ended_before_the_build_are_reaped_too() {
    if !has("bash") {
        return;
    }
    let f = Fixture::new();
    let _gate = install_polite(&f);
    // The jobs end, and the script becomes buildlock without having waited for them.
    let jobs = "for n in {1..20}; do true & done; sleep 0.2; exec 8>&-";
    let script = exec_beside(&f, jobs, "", "polite");
    let build = f.program(script).start();
    f.wait_for_pid("polite.pid");
    let path = format!("/proc/{0}/task/{0}/children", build.pid());
    let children = || fs::read_to_string(&path).unwrap_or_default().split_whitespace().count();
    f.wait_for("the jobs to be reaped", || children() == 1);
    build.signal("TERM");
    build.wait();
}

// Without a /proc that shows our processes.

#[test]
fn killed_keeper_without_proc_is_not_waited_for() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let Some(there) = Namespace::new(&f, "mount -t tmpfs none /proc") else { return };
    fs::remove_dir(f.lock_dir()).unwrap();
    // With -k 0 there is no SIGKILL that would bound it.
    let options = ["-k", "0", "--force", "-t", TAG, "--"];
    let build = there.buildlock(options).args(["sh", "-c", "stubborn & wait"]).start();
    let stubborn = f.wait_for_pid("stubborn.pid");
    send_signal(keeper_of(&f, build.pid()), "KILL");
    build.wait().assert_stderr("left processes, if any, that cannot be found from here");
    // The lock stays with the process that has inherited it.
    assert!(is_alive(stubborn) && !is_free(&f.lock_file(TAG)), "{}", f.scene());
    send_signal(stubborn, "KILL");
    f.wait_for("the lock to be free", || is_free(&f.lock_file(TAG)));
}

#[test]
fn keeper_without_proc_rests_while_it_ends_a_build() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let Some(there) = Namespace::new(&f, "mount -t tmpfs none /proc") else { return };
    fs::remove_dir(f.lock_dir()).unwrap();
    let options = ["--build-timeout", "300ms", "-k", "3s", "--force", "-t", TAG, "--"];
    let build = there.buildlock(options).args(["stubborn"]).start();
    let stubborn = f.wait_for_pid("stubborn.pid");
    build.wait_for_stderr("ending it");
    let keeper = keeper_of(&f, build.pid());
    let start = (Instant::now(), cpu_seconds(keeper));
    let mut used = 0.0;
    while start.0.elapsed() < Duration::from_secs(2) {
        assert!(is_alive(stubborn));
        used = cpu_seconds(keeper) - start.1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(used < 0.5, "{used} s");
    build.wait().assert_code(124);
}

#[test]
fn build_is_ended_at_its_limit_without_proc() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let Some(there) = Namespace::new(&f, "mount -t tmpfs none /proc") else { return };
    fs::remove_dir(f.lock_dir()).unwrap();
    // A process without a parent that ignores TERM, and the child, which does not.
    let script = "(stubborn &); trap 'echo term >\"$STANDIN/term\"; exit 5' TERM; \
        echo $$ >\"$STANDIN/child.pid\"; while :; do sleep 0.05; done";
    let options = ["--build-timeout", "1s", "-k", "500ms", "--force", "-t", TAG, "--"];
    let build = there.buildlock(options).args(["sh", "-c", script]).start();
    let pids = ["child.pid", "stubborn.pid"].map(|name| f.wait_for_pid(name));
    let ended = build.wait();
    ended.assert_code(124).assert_no_stderr("cannot be ended");
    for pid in pids {
        assert!(!is_alive(pid), "{ended}\n{}", f.scene());
    }
    assert_eq!(f.lines("term"), ["term"]);
    assert!(ended.elapsed < Duration::from_secs(4), "{ended}");
    assert!(is_free(&f.lock_file(TAG)));
}

#[test]
fn processes_of_another_namespace_are_left_alone() {
    if !is_root() || !has("unshare") {
        return;
    }
    let f = Fixture::new();
    let _gates = (install_polite(&f), install_stubborn(&f));
    // /proc shows the outer namespace. There, the parent of the innocent process has the number
    // that buildlock has in the inner one.
    let inner = format!(
        "exec '{}' --build-timeout 1s -k 300ms --force -t {TAG} -- stubborn",
        buildlock_path().display()
    );
    let outer = format!(
        "polite & until [ -e \"$STANDIN/polite.pid\" ]; do sleep 0.02; done\n\
         unshare --pid --fork sh -c '{}'; echo $? >\"$STANDIN/status\"; \
         [ ! -e \"$STANDIN/polite.term\" ]",
        inner.replace('\'', "'\\''")
    );
    let namespace = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut there = f.program("unshare").args(namespace).args(["sh", "-c", &outer]).start();
    let mut ended = false;
    f.wait_for("the build, or no namespaces", || {
        ended = there.has_ended();
        ended || f.path("stubborn.pid").exists()
    });
    if ended && !f.path("polite.pid").exists() {
        return skip("needs PID namespaces");
    }
    there.wait().assert_code(0);
    assert_eq!(f.lines("status"), ["124"]);
}

/// A frozen cgroup: its processes do not even end by SIGKILL.
struct Frozen(PathBuf);

impl Frozen {
    fn new(f: &Fixture) -> Option<Self> {
        let name = f.path("").file_name()?.to_str()?.to_owned();
        // Version 1, or version 2.
        let root = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup"].map(Path::new);
        let root = root.into_iter().find(|root| root.exists())?;
        let group = root.join(name);
        fs::create_dir(&group).ok()?;
        let frozen = Self(group);
        frozen.0.join("cgroup.procs").exists().then_some(frozen)
    }

    fn set(&self, frozen: bool) -> bool {
        let old = self.0.join("freezer.state");
        match old.exists() {
            true => fs::write(old, if frozen { "FROZEN" } else { "THAWED" }).is_ok(),
            false => {
                fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" }).is_ok()
            }
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.set(false);
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn what_cannot_be_killed_is_left_to_the_keeper() {
    let f = Fixture::new();
    let _gate = install_stubborn(&f);
    let Some(frozen) = Frozen::new(&f) else { return skip("needs cgroups") };
    // A cgroup of version 2 can be killed while it is frozen.
    if !frozen.0.join("freezer.state").exists() {
        return skip("needs the freezer of cgroup v1");
    }
    let build = start(&f, &["--build-timeout", "1s", "-k", "300ms"], "stubborn");
    let stubborn = f.wait_for_pid("stubborn.pid");
    fs::write(frozen.0.join("cgroup.procs"), stubborn.to_string()).unwrap();
    assert!(frozen.set(true));
    let start = Instant::now();
    build.wait().assert_code(124).assert_stderr("cannot be ended");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(!is_free(&f.lock_file(TAG)));
    frozen.set(false);
    f.wait_for("the lock to be free", || is_free(&f.lock_file(TAG)));
}

#[test]
fn both_killed_leaves_the_lock_to_what_has_inherited_it() {
    let f = Fixture::new();
    let gate = install_polite(&f);
    // The death signal ends the build command itself. What it has started goes on, with the lock.
    let build = start(&f, &[], "polite & wait");
    let polite = f.wait_for_pid("polite.pid");
    let keeper = keeper_of(&f, build.pid());
    send_signal(build.pid(), "STOP");
    send_signal(keeper, "KILL");
    build.signal("KILL");
    f.wait_for_death(keeper);
    assert!(is_alive(polite));
    assert!(!is_free(&f.lock_file(TAG)), "{}", f.scene());
    gate.open();
    f.wait_for_death(polite);
    f.wait_for("the lock to be free", || is_free(&f.lock_file(TAG)));
}
