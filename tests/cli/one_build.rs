//! One build of each tag, however many processes ask for it at the same time.

use crate::support::{Finished, Fixture, Running, kernel_locks};

/// Starts this many calls at once. Returns when one builds and the others wait for it.
fn start_contenders<'f>(f: &'f Fixture, n: usize, args: &[&str]) -> Vec<Running<'f>> {
    f.hold_builds();
    let contenders = (0..n)
        .map(|_| {
            let build = ["-t", "env:abc", "--", "docker", "build", "-t", "env:abc", "."];
            f.buildlock(args.iter().chain(&build)).start()
        })
        .collect();
    f.wait_for_builds(1);
    f.wait_for_waiters(&f.lock_file("env:abc"), n - 1);
    contenders
}

/// Starts one call, and the others once it builds.
fn start_waiters<'f>(f: &'f Fixture, n: usize, args: &[&str]) -> Vec<Running<'f>> {
    let mut contenders = start_contenders(f, 1, args);
    let build = ["-t", "env:abc", "--", "docker", "build", "-t", "env:abc", "."];
    contenders.extend((1..n).map(|_| f.buildlock(args.iter().chain(&build)).start()));
    f.wait_for_waiters(&f.lock_file("env:abc"), n - 1);
    contenders
}

/// Returns the exit statuses, in order of size.
fn statuses(contenders: Vec<Running<'_>>) -> Vec<i32> {
    let mut codes: Vec<i32> = contenders
        .into_iter()
        .map(|contender| {
            let finished = contender.wait();
            finished.status.code().unwrap_or_else(|| panic!("{finished}"))
        })
        .collect();
    codes.sort_unstable();
    codes
}

fn assert_one_build_for(n: usize) {
    let f = Fixture::new();
    let contenders = start_contenders(&f, n, &[]);

    f.release_builds();

    assert_eq!(statuses(contenders), vec![0; n], "{}", f.scene());
    assert_eq!(f.build_count("env:abc"), 1, "{}", f.scene());
    assert!(f.has_image("env:abc"));
}

#[test]
fn two_processes_on_one_missing_tag_make_one_build() {
    assert_one_build_for(2);
}

#[test]
fn eight_processes_on_one_missing_tag_make_one_build() {
    assert_one_build_for(8);
}

#[test]
fn sixty_four_processes_on_one_missing_tag_make_one_build() {
    assert_one_build_for(64);
}

#[test]
fn processes_that_are_not_in_step_make_one_build() {
    let f = Fixture::new();

    let contenders = (0..32).map(|_| f.docker_build("env:abc").start()).collect();

    assert_eq!(statuses(contenders), vec![0; 32], "{}", f.scene());
    assert_eq!(f.build_count("env:abc"), 1, "{}", f.scene());
}

#[test]
fn processes_on_different_tags_build_in_parallel() {
    let f = Fixture::new();
    f.hold_builds();
    let tags: Vec<String> = (0..8).map(|n| format!("env:{n}")).collect();

    let builders: Vec<_> = tags.iter().map(|tag| f.docker_build(tag).start()).collect();
    f.wait_for_builds(8);
    f.release_builds();

    assert_eq!(statuses(builders), vec![0; 8], "{}", f.scene());
    let events = f.build_events();
    assert!(events[..8].iter().all(|e| e.is_start()), "one ended before all began: {events:#?}");
    assert!(tags.iter().all(|tag| f.build_count(tag) == 1 && f.has_image(tag)), "{}", f.scene());
}

#[test]
fn waiter_skips_build_once_image_exists() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build("env:abc").start();
    f.wait_for_builds(1);
    let second = f.docker_build("env:abc").start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    f.release_builds();

    first.wait().assert_code(0);
    second
        .wait()
        .assert_code(0)
        .assert_stderr("waiting for")
        .assert_stderr_matches("env:abc.*exist|env:abc.*present");
    assert_eq!(f.build_count("env:abc"), 1);
}

#[test]
fn waiter_skips_build_when_image_appears_from_elsewhere() {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));
    let waiter = f.docker_build("env:abc").start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    f.make_image("env:abc");
    drop(held);

    waiter.wait().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 0);
}

#[test]
fn image_that_is_present_is_not_built_and_needs_no_lock() {
    let f = Fixture::new();
    f.make_image("env:abc");

    f.docker_build("env:abc").run().assert_code(0).assert_stderr("env:abc").assert_stdout("");

    assert_eq!(f.build_count("env:abc"), 0);
    assert_eq!(f.lock_files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn image_that_is_present_is_not_waited_for() {
    let f = Fixture::new();
    f.make_image("env:abc");
    let _held = f.hold_lock(&f.lock_file("env:abc"));

    f.docker_build("env:abc").run().assert_code(0).assert_no_stderr("waiting");
}

#[test]
fn lock_is_free_after_the_build() {
    let f = Fixture::new();

    f.docker_build("env:abc").run().assert_code(0);

    let file = f.open_lock_file(&f.lock_file("env:abc"));
    fs2::FileExt::try_lock_exclusive(&file).expect("somebody still holds the lock");
}

#[test]
fn spellings_of_one_image_share_a_lock() {
    for (one, other) in [
        ("env", "docker.io/library/env:latest"),
        ("env:latest", "index.docker.io/library/env"),
        ("library/env", "docker.io/env"),
        ("alice/env", "docker.io/alice/env:latest"),
    ] {
        let f = Fixture::new();
        f.hold_builds();
        let first = f.docker_build(one).start();
        f.wait_for_builds(1);
        let second = f.docker_build(other).start();
        second.wait_for_stderr("waiting");

        f.release_builds();

        first.wait().assert_code(0);
        second.wait().assert_code(0);
        assert_eq!(f.build_events().len(), 2, "{one} and {other}\n{}", f.scene());
    }
}

#[test]
fn tags_that_differ_in_case_or_registry_do_not_share_a_lock() {
    let f = Fixture::new();
    f.hold_builds();

    let tags = ["env:abc", "env:ABC", "ghcr.io/env:abc", "localhost:5000/env:abc", "a/env:abc"];
    let builders: Vec<_> = tags.iter().map(|tag| f.docker_build(tag).start()).collect();
    f.wait_for_builds(tags.len());
    f.release_builds();

    assert_eq!(statuses(builders), vec![0; tags.len()], "{}", f.scene());
}

// A build that fails.

#[test]
fn next_waiter_builds_after_a_failed_build() {
    let f = Fixture::new();
    f.steer("STANDIN_BUILD_STATUS=3 STANDIN_FAIL_TIMES=1");
    let contenders = start_contenders(&f, 2, &[]);

    f.release_builds();

    assert_eq!(statuses(contenders), [0, 3], "{}", f.scene());
    assert_eq!(f.build_count("env:abc"), 2);
    f.assert_no_overlap();
}

#[test]
fn one_of_many_waiters_builds_after_a_failed_build_and_the_others_skip() {
    let f = Fixture::new();
    f.steer("STANDIN_BUILD_STATUS=3 STANDIN_FAIL_TIMES=1");
    let contenders = start_contenders(&f, 6, &["--on-failure", "retry"]);

    f.release_builds();

    assert_eq!(statuses(contenders), [0, 0, 0, 0, 0, 3], "{}", f.scene());
    assert_eq!(f.build_count("env:abc"), 2, "{}", f.scene());
    f.assert_no_overlap();
}

#[test]
fn each_waiter_builds_in_turn_while_builds_fail() {
    let f = Fixture::new();
    f.steer("STANDIN_BUILD_STATUS=3");
    let contenders = start_contenders(&f, 6, &[]);

    f.release_builds();

    assert_eq!(statuses(contenders), [3; 6], "{}", f.scene());
    assert_eq!(f.build_count("env:abc"), 6);
    f.assert_no_overlap();
}

#[test]
fn waiters_end_with_the_status_of_the_failed_build_when_they_share_it() {
    let f = Fixture::new();
    f.steer("STANDIN_BUILD_STATUS=3");
    let contenders = start_waiters(&f, 6, &["--on-failure", "share"]);

    f.release_builds();

    assert_eq!(statuses(contenders), [3; 6], "{}", f.scene());
    assert_eq!(f.build_count("env:abc"), 1, "{}", f.scene());
}

#[test]
fn one_waiter_ends_with_the_status_of_the_failed_build_when_it_shares_it() {
    for status in [1, 42, 123] {
        let f = Fixture::new();
        f.steer(&format!("STANDIN_BUILD_STATUS={status}"));
        let contenders = start_waiters(&f, 2, &["--on-failure=share"]);

        f.release_builds();

        assert_eq!(statuses(contenders), [status; 2], "{}", f.scene());
        assert_eq!(f.build_count("env:abc"), 1, "{}", f.scene());
    }
}

#[test]
fn waiter_for_one_of_several_tags_shares_the_status_of_their_build() {
    for tag in ["env:a", "env:b"] {
        let f = Fixture::new();
        f.steer("STANDIN_BUILD_STATUS=3");
        f.hold_builds();
        let both = ["--", "docker", "build", "-t", "env:a", "-t", "env:b", "."];
        let first = f.buildlock(both).start();
        f.wait_for_builds(2);
        let waiter = f.docker_build(tag).env("BUILDLOCK_ON_FAILURE", "share").start();
        f.wait_for_waiters(&f.lock_file(tag), 1);

        f.release_builds();

        first.wait().assert_code(3);
        waiter.wait().assert_code(3);
        assert_eq!(f.build_count(tag), 1, "{}", f.scene());
    }
}

#[test]
fn waiters_that_share_skip_when_the_build_succeeds() {
    let f = Fixture::new();
    let contenders = start_contenders(&f, 4, &["--on-failure", "share"]);

    f.release_builds();

    assert_eq!(statuses(contenders), [0; 4], "{}", f.scene());
    assert_eq!(f.build_count("env:abc"), 1);
}

#[test]
fn waiter_that_came_after_the_failed_build_does_not_share_its_status() {
    let f = Fixture::new();
    f.steer("STANDIN_BUILD_STATUS=3 STANDIN_FAIL_TIMES=1");
    f.docker_build("env:abc").run().assert_code(3);
    // The result is still in the lock file, but this caller waits for another holder.
    let held = f.hold_lock(&f.lock_file("env:abc"));
    let late =
        f.buildlock(["--on-failure", "share", "--", "docker", "build", "-t", "env:abc", "."]);
    let late = late.start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    drop(held);

    late.wait().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 2);
}

/// Checks that a result is not shared if it says nothing about the next build.
fn assert_not_shared(variable: &str, value: &str, first_ends: impl Fn(&Finished)) {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build("env:abc").env(variable, value).start();
    f.wait_for_builds(1);
    let second = f.docker_build("env:abc").env("BUILDLOCK_ON_FAILURE", "share").start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);

    f.release_builds();

    first_ends(&first.wait());
    second.wait().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 2, "{}", f.scene());
    assert!(f.has_image("env:abc"));
}

#[test]
fn statuses_above_123_are_not_shared() {
    for status in [124, 125, 126, 127, 137, 255] {
        assert_not_shared("STANDIN_BUILD_STATUS", &status.to_string(), |first| {
            first.assert_code(status);
        });
    }
}

#[test]
fn death_of_a_build_by_a_signal_is_not_shared() {
    assert_not_shared("STANDIN_KILL", "KILL", |first| {
        first.assert_signal(9);
    });
}

#[test]
fn build_without_an_image_is_not_shared() {
    assert_not_shared("STANDIN_NO_IMAGE", "1", |first| {
        first.assert_code(125);
    });
}

// --force

#[test]
fn forced_builds_of_one_tag_run_one_after_the_other() {
    let f = Fixture::new();
    let contenders = start_contenders(&f, 6, &["--force"]);

    f.release_builds();

    assert_eq!(statuses(contenders), [0; 6], "{}", f.scene());
    assert_eq!(f.build_count("env:abc"), 6);
    f.assert_no_overlap();
}

#[test]
fn forced_build_runs_even_if_the_image_exists() {
    let f = Fixture::new();
    f.make_image("env:abc");

    f.docker_build("env:abc").run().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 0);

    f.buildlock(["-f", "--", "docker", "build", "-t", "env:abc", "."]).run().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 1);
}

// Several tags, and named locks.

/// Starts `buildlock -f -t A -t B -- docker build -t A -t B .`
fn force_both<'f>(f: &'f Fixture, a: &str, b: &str) -> Running<'f> {
    f.buildlock(["-f", "-t", a, "-t", b, "--", "docker", "build", "-t", a, "-t", b, "."]).start()
}

#[test]
fn build_of_two_tags_excludes_builds_of_either() {
    let f = Fixture::new();
    f.hold_builds();
    let args = ["-t", "a:1", "-t", "b:1", "--", "docker", "build", "-t", "a:1", "-t", "b:1", "."];
    let both = f.buildlock(args).start();
    f.wait_for_builds(2);

    let a = f.docker_build("a:1").start();
    let b = f.docker_build("b:1").start();
    f.wait_for_waiters(&f.lock_file("a:1"), 1);
    f.wait_for_waiters(&f.lock_file("b:1"), 1);
    f.release_builds();

    assert_eq!(statuses(vec![both, a, b]), [0, 0, 0], "{}", f.scene());
    assert_eq!((f.build_count("a:1"), f.build_count("b:1")), (1, 1));
}

#[test]
fn build_of_two_tags_runs_when_one_of_them_is_missing() {
    let f = Fixture::new();
    f.make_image("a:1");

    f.buildlock(["--", "docker", "build", "-t", "a:1", "-t", "b:1", "."]).run().assert_code(0);

    assert_eq!(f.build_count("b:1"), 1);
    assert!(f.has_image("b:1"));
}

#[test]
fn tag_that_is_given_twice_is_locked_once() {
    let f = Fixture::new();

    let args = ["-t", "env", "-t", "env:latest", "-w", "5s", "--", "docker", "build", "-tenv", "."];
    f.buildlock(args).run().assert_code(0);

    assert_eq!(f.build_count("env:latest"), 1);
}

#[test]
fn two_tags_in_opposite_order_do_not_deadlock() {
    let f = Fixture::new();
    for round in 1..=50 {
        let one = force_both(&f, "a:1", "b:1");
        let other = force_both(&f, "b:1", "a:1");
        assert_eq!(statuses(vec![one, other]), [0, 0], "round {round}\n{}", f.scene());
    }
    assert_eq!((f.build_count("a:1"), f.build_count("b:1")), (100, 100));
    f.assert_no_overlap();
}

#[test]
fn tags_are_locked_in_sorted_order() {
    for (a, b) in [("a:1", "b:1"), ("b:1", "a:1")] {
        let f = Fixture::new();
        let held = f.hold_lock(&f.lock_file("a:1"));
        let build = force_both(&f, a, b);
        f.wait_for_waiters(&f.lock_file("a:1"), 1);
        assert_eq!(kernel_locks(&f.lock_file("b:1")), [], "b:1 was locked before a:1");
        drop(held);
        build.wait().assert_code(0);

        let held = f.hold_lock(&f.lock_file("b:1"));
        let build = force_both(&f, a, b);
        f.wait_for_waiters(&f.lock_file("b:1"), 1);
        assert_eq!(f.wait_for_holder(&f.lock_file("a:1")), build.pid());
        drop(held);
        build.wait().assert_code(0);
    }
}

#[test]
fn named_lock_serialises_builds_of_different_tags() {
    let f = Fixture::new();
    f.hold_builds();
    let build = |tag| {
        let args = ["--lock", "builder storage", "--", "docker", "build", "-t", tag, "."];
        f.buildlock(args).start()
    };
    let a = build("a:1");
    f.wait_for_builds(1);
    let b = build("b:1");
    f.wait_for_waiters(&f.named_lock_file("builder storage"), 1);
    assert_eq!(f.build_events().len(), 1, "{}", f.scene());

    f.release_builds();

    assert_eq!(statuses(vec![a, b]), [0, 0], "{}", f.scene());
    let kinds: Vec<bool> = f.build_events().iter().map(|e| e.is_start()).collect();
    assert_eq!(kinds, [true, false, true, false], "{}", f.scene());
}

#[test]
fn locks_of_different_names_do_not_exclude_each_other() {
    let f = Fixture::new();
    f.hold_builds();

    let build =
        |tag, name| f.buildlock(["--lock", name, "--", "docker", "build", "-t", tag, "."]).start();
    let builders = vec![build("a:1", "one"), build("b:1", "two")];
    f.wait_for_builds(2);
    f.release_builds();

    assert_eq!(statuses(builders), [0, 0], "{}", f.scene());
}

#[test]
fn tags_are_locked_before_named_locks() {
    let f = Fixture::new();
    let tag = f.lock_file("zzz:1");
    let name = f.named_lock_file("aaa");
    let start = || {
        f.buildlock(["-f", "--lock", "aaa", "--", "docker", "build", "-t", "zzz:1", "."]).start()
    };

    let held = f.hold_lock(&name);
    let build = start();
    f.wait_for_waiters(&name, 1);
    assert_eq!(f.wait_for_holder(&tag), build.pid());
    drop(held);
    build.wait().assert_code(0);

    let held = f.hold_lock(&tag);
    let build = start();
    f.wait_for_waiters(&tag, 1);
    assert_eq!(kernel_locks(&name), [], "the named lock was taken first");
    drop(held);
    build.wait().assert_code(0);
}

#[test]
fn name_and_tag_of_the_same_text_are_different_locks() {
    let f = Fixture::new();

    let args = ["--lock", "env:abc", "-w", "5s", "--", "docker", "build", "-t", "env:abc", "."];
    f.buildlock(args).run().assert_code(0);

    assert!(f.lock_file("env:abc").exists() && f.named_lock_file("env:abc").exists());
}

#[test]
fn failure_of_another_image_under_the_same_named_lock_is_not_shared() {
    let f = Fixture::new();
    f.hold_builds();
    let share = ["--on-failure", "share", "--lock", "disk", "--"];
    let script = "docker build -t env:a . ; exit 7";
    let failing = f.buildlock(["-t", "env:a"]).args(share).args(["sh", "-c", script]).start();
    f.wait_for_builds(1);
    let other = f.buildlock(share).args(["docker", "build", "-t", "env:b", "."]).start();
    f.wait_for_waiters(&f.named_lock_file("disk"), 1);
    f.release_builds();
    failing.wait().assert_code(7);
    other.wait().assert_code(0);
    assert_eq!(f.build_count("env:b"), 1);
}

#[test]
fn image_of_another_command_or_folder_causes_a_warning() {
    let other = ["docker", "build", "-f", "Dockerfile.other", "-t", "env:abc", "."];
    let same = ["docker", "build", "-t", "env:abc", "."];
    for (words, folder, warns) in
        [(&other[..], "work", true), (&same, "images", true), (&same, "work", false)]
    {
        for quiet in [false, true] {
            let f = Fixture::new();
            f.hold_builds();
            let first = f.buildlock(["--"]).args(same).start();
            f.wait_for_builds(1);
            let args = if quiet { &["-q", "--"][..] } else { &["--"] };
            let second = f.buildlock(args).args(words).current_dir(f.path(folder)).start();
            f.wait_for_waiters(&f.lock_file("env:abc"), 1);
            f.release_builds();
            first.wait().assert_code(0).assert_no_stderr("may not be the one wanted");
            let second = second.wait();
            second.assert_code(0);
            if !warns {
                second.assert_no_stderr("may not be the one wanted");
                continue;
            }
            let theirs = format!("{} (in {}", same.join(" "), f.work_dir().display());
            let ours = format!("{} (in {}", words.join(" "), f.path(folder).display());
            second.assert_stderr("warning").assert_stderr(&theirs).assert_stderr(&ours);
        }
    }
}

#[test]
fn shared_failure_of_another_command_causes_a_warning() {
    let other = ["docker", "build", "-f", "Dockerfile.other", "-t", "env:abc", "."];
    for (words, warns) in [(&other[..], true), (&["docker", "build", "-t", "env:abc", "."], false)]
    {
        let f = Fixture::new();
        f.steer("STANDIN_BUILD_STATUS=3");
        f.hold_builds();
        let first = f.buildlock(["--"]).args(words).start();
        f.wait_for_builds(1);
        let waiter = f.docker_build("env:abc").env("BUILDLOCK_ON_FAILURE", "share").start();
        f.wait_for_waiters(&f.lock_file("env:abc"), 1);
        f.release_builds();
        first.wait().assert_code(3);
        let waiter = waiter.wait();
        waiter.assert_code(3);
        assert_eq!(f.build_count("env:abc"), 1, "{}", f.scene());
        match warns {
            true => waiter.assert_stderr("the failure may not be the one wanted here"),
            false => waiter.assert_no_stderr("may not be the one wanted"),
        };
    }
}
