//! `--max-builds N`: at most N builds at once, whatever they build.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    BuildEvent, Finished, Fixture, Gate, Invocation, Running, buildlock_path, cpu_seconds,
    install_stubborn, is_alive, is_free, send_signal,
};

/// Prepares `buildlock --max-builds LIMIT -- docker build` of a tag.
fn build<'f>(f: &'f Fixture, limit: usize, tag: &str) -> Invocation<'f> {
    let limit = format!("--max-builds={limit}");
    f.buildlock([&limit, "--", "docker", "build", "-t", tag, "."])
}

fn slot(f: &Fixture, name: &str) -> PathBuf {
    f.lock_dir().join("build-slots").join(format!("{name}.lock"))
}

/// Waits until a call says that it waits for a slot.
fn wait_for_wait(call: &Running<'_>) {
    call.wait_for_stderr("waiting for a free slot");
}

/// Returns the most builds that ran at one time.
fn most_at_once(events: &[BuildEvent]) -> usize {
    let mut events: Vec<&BuildEvent> = events.iter().collect();
    // An end and a start in one nanosecond do not overlap.
    events.sort_by_key(|event| (event.nanoseconds, event.is_start()));
    let mut running = 0_usize;
    let mut most = 0;
    for event in events {
        if event.is_start() {
            running += 1;
        } else {
            running -= 1;
        }
        most = most.max(running);
    }
    most
}

/// Returns the tags in the order in which their builds began.
fn order(f: &Fixture) -> Vec<String> {
    f.build_events().into_iter().filter(BuildEvent::is_start).map(|event| event.tag).collect()
}

fn with_buildlock_in_path() -> Fixture {
    let f = Fixture::new();
    std::os::unix::fs::symlink(buildlock_path(), f.path("bin/buildlock")).unwrap();
    f
}

/// Returns how many builds run at this moment.
fn running(f: &Fixture) -> usize {
    let events = f.build_events();
    let starts = events.iter().filter(|event| event.is_start()).count();
    starts - (events.len() - starts)
}

#[test]
fn never_more_than_n_builds_run_whatever_they_build_and_a_free_slot_is_taken_at_once() {
    let f = Fixture::new();
    f.hold_builds();
    let tags: Vec<String> = (0..40).map(|n| format!("env:{n}")).collect();
    let calls: Vec<_> = tags.iter().map(|tag| build(&f, 4, tag).start()).collect();
    for started in 4..=tags.len() {
        f.wait_for_builds(started);
        assert!(running(&f) <= 4, "{}", f.scene());
        f.let_builds_go(1);
    }
    f.release_builds();
    for call in calls {
        call.wait().assert_code(0);
    }
    let events = f.build_events();
    assert_eq!((events.len(), most_at_once(&events)), (80, 4));
}

#[test]
fn many_callers_with_few_tags_and_few_slots_build_each_tag_once() {
    let f = Fixture::new();
    f.steer("STANDIN_SLEEP=0.05");
    let calls: Vec<_> = (0..36).map(|n| build(&f, 2, &format!("env:{}", n % 6)).start()).collect();
    for call in calls {
        call.wait().assert_code(0);
    }
    let events = f.build_events();
    assert_eq!(events.len(), 12, "{events:?}");
    assert_eq!(most_at_once(&events), 2);
    assert!(is_free(&slot(&f, "1")) && is_free(&slot(&f, "2")));
}

#[test]
fn callers_with_force_and_one_tag_all_build_beside_others() {
    let f = Fixture::new();
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let tag = format!("env:{}", n % 2);
            let words = ["--force", "--max-builds=2", "--", "docker", "build", "-t", &tag, "."];
            f.buildlock(words).start()
        })
        .collect();
    for call in calls {
        call.wait().assert_code(0);
    }
    assert_eq!(f.build_events().len(), 40);
    assert!(most_at_once(&f.build_events()) <= 2);
    f.assert_no_overlap();
}

#[ignore = "measures time, on a quiet machine: make test-scale"]
#[test]
fn slots_are_never_idle_for_long() {
    let f = Fixture::new();
    f.steer("STANDIN_SLEEP=0.5");
    let tags: Vec<String> = (0..100).map(|n| format!("env:{n}")).collect();
    let calls: Vec<_> = tags.iter().map(|tag| build(&f, 4, tag).start()).collect();
    for call in calls {
        call.wait().assert_code(0);
    }
    let events = f.build_events();
    assert!(most_at_once(&events) <= 4);
    let at = |event: &BuildEvent| event.nanoseconds as f64 / 1e9;
    let begin = events.iter().map(at).fold(f64::MAX, f64::min);
    let end = events.iter().map(at).fold(0.0, f64::max);
    let work: f64 = events.iter().map(|it| if it.is_start() { -at(it) } else { at(it) }).sum();
    let ratio = (end - begin) / (work / 4.0);
    println!("{ratio:.3} of the ideal schedule");
    assert!(ratio < 1.2, "{ratio:.3} of the ideal schedule");
}

#[test]
fn waiter_holds_no_lock_and_says_what_it_waits_for() {
    let f = Fixture::new();
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    let waiter = build(&f, 1, "env:b").start();
    waiter.wait_for_stderr("waiting for a free slot: 1 of 1 builds are running");
    assert!(is_free(&f.lock_file("env:b")));
    // A caller that does not count is not kept back.
    let other = f.docker_build("env:b").start();
    f.wait_for_builds(2);
    f.release_builds();
    other.wait().assert_code(0);
    holder.wait().assert_code(0);
    waiter.wait().assert_code(0).assert_stderr("present");
    assert_eq!(f.build_count("env:b"), 1);
}

#[test]
fn what_is_present_needs_no_slot_nor_does_a_command_without_an_image() {
    let f = Fixture::new();
    f.make_image("env:there");
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    build(&f, 1, "env:there").run().assert_code(0).assert_no_stderr("slot");
    let command = f.buildlock(["--max-builds=1", "--lock=x", "--", "true"]).run();
    command.assert_code(0).assert_no_stderr("slot");
    f.release_builds();
    holder.wait().assert_code(0);
}

#[test]
fn limit_on_waiting_counts_for_a_slot() {
    let f = Fixture::new();
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    let late = |options: &[&str]| {
        let words = ["--max-builds=1", "--", "docker", "build", "-t", "env:b", "."];
        f.buildlock(options).args(words).run()
    };
    let done = late(&["-w", "300ms"]);
    done.assert_code(124).assert_stderr("gave up after").assert_stderr("1 of 1 builds are running");
    assert!(done.elapsed >= Duration::from_millis(300), "{done}");
    assert!(done.elapsed < Duration::from_secs(2), "{done}");
    // Others in line make no difference.
    let waiter = build(&f, 1, "env:c").start();
    wait_for_wait(&waiter);
    late(&["-w", "300ms", "-E", "75"]).assert_code(75);
    late(&["-w", "0s"]).assert_code(124).assert_stderr("(--timeout): waiting for a free slot");
    f.release_builds();
    holder.wait().assert_code(0);
    waiter.wait().assert_code(0);
    assert_eq!(f.build_count("env:b"), 0);
    late(&["-w", "0s"]).assert_code(0);
}

#[test]
fn holder_that_is_killed_frees_its_slot() {
    let f = Fixture::new();
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    let waiter = build(&f, 1, "env:b").start();
    wait_for_wait(&waiter);
    holder.signal("KILL");
    f.wait_for_builds(2);
    assert_eq!(order(&f), ["env:a", "env:b"]);
    assert_eq!(most_at_once(&f.build_events()[..3]), 1, "{:?}", f.build_events());
    f.release_builds();
    waiter.wait().assert_code(0);
}

#[test]
fn slot_is_held_for_as_long_as_anything_of_the_build_runs() {
    let f = Fixture::new();
    let gate = install_stubborn(&f);
    let words = ["--max-builds=1", "-t", "env:a", "--", "stubborn"];
    let holder = f.buildlock(words).start();
    let stubborn = f.wait_for_pid("stubborn.pid");
    let waiter = build(&f, 1, "env:b").start();
    wait_for_wait(&waiter);
    holder.signal("KILL");
    f.wait_for_death(holder.pid());
    assert!(is_alive(stubborn) && !is_free(&slot(&f, "1")));
    assert_eq!(f.build_count("env:b"), 0);
    gate.open();
    waiter.wait().assert_code(0);
}

#[test]
fn daemon_of_a_build_that_succeeded_keeps_no_slot() {
    let f = Fixture::new();
    f.steer("STANDIN_CHILD=plain");
    build(&f, 1, "env:a").run().assert_code(0);
    f.wait_for_file("child.pid");
    f.steer("");
    build(&f, 1, "env:b").run().assert_code(0).assert_no_stderr("waiting");
}

#[test]
fn callers_in_line_may_be_killed() {
    let f = Fixture::new();
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    let waiters: Vec<_> = (0..4)
        .map(|n| {
            let waiter = build(&f, 1, &format!("env:{n}")).start();
            wait_for_wait(&waiter);
            waiter
        })
        .collect();
    let first = f.wait_for_holder(&slot(&f, "1.turnstile"));
    assert_eq!(first, waiters[0].pid());
    let helpers: Vec<u32> =
        f.processes().into_iter().filter(|&pid| parent(pid) == Some(first)).collect();
    assert_eq!(helpers.len(), 1, "{}", f.scene());
    // The first one, with its helper, and one in the middle.
    send_signal(first, "KILL");
    waiters[2].signal("TERM");
    for helper in helpers {
        f.wait_for_death(helper);
    }
    f.release_builds();
    holder.wait().assert_code(0);
    let mut ends: Vec<Finished> = waiters.into_iter().map(Running::wait).collect();
    ends.remove(3).assert_code(0);
    ends.remove(2).assert_signal(15);
    ends.remove(1).assert_code(0);
    ends.remove(0).assert_signal(9);
}

#[test]
fn helper_that_is_killed_is_replaced() {
    let f = Fixture::new();
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    let waiter = build(&f, 1, "env:b").start();
    wait_for_wait(&waiter);
    let helpers = || -> Vec<u32> {
        let first = waiter.pid();
        f.processes().into_iter().filter(|&pid| parent(pid) == Some(first)).collect()
    };
    f.wait_for("a helper", || helpers().len() == 1);
    let killed = helpers()[0];
    send_signal(killed, "KILL");
    f.wait_for("another helper", || helpers().first().is_some_and(|&pid| pid != killed));
    f.release_builds();
    holder.wait().assert_code(0);
    waiter.wait().assert_code(0);
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn waiting_for_a_slot_uses_no_processor() {
    let f = Fixture::new();
    f.hold_builds();
    let holders = ["env:a", "env:b", "env:c"].map(|tag| build(&f, 3, tag).start());
    f.wait_for_builds(3);
    let waiters = ["env:d", "env:e"].map(|tag| build(&f, 3, tag).start());
    waiters.iter().for_each(wait_for_wait);
    let before: f64 = waiters.iter().map(|it| cpu_seconds(it.pid())).sum();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let used = waiters.iter().map(|it| cpu_seconds(it.pid())).sum::<f64>() - before;
    assert!(used < 0.1, "{used} s");
    f.release_builds();
    for call in holders.into_iter().chain(waiters) {
        call.wait().assert_code(0);
    }
}

#[test]
fn callers_build_roughly_in_the_order_in_which_they_came() {
    let f = Fixture::new();
    f.hold_builds();
    let holder = build(&f, 1, "env:first").start();
    f.wait_for_builds(1);
    let waiters: Vec<_> = (0..8)
        .map(|n| {
            let waiter = build(&f, 1, &format!("env:{n}")).start();
            wait_for_wait(&waiter);
            waiter
        })
        .collect();
    for n in 1..=waiters.len() {
        f.let_builds_go(1);
        f.wait_for_builds(n + 1);
    }
    f.release_builds();
    holder.wait().assert_code(0);
    for waiter in waiters {
        waiter.wait().assert_code(0);
    }
    let order = order(&f);
    println!("{order:?}");
    let number = |tag: &String| tag["env:".len()..].parse::<usize>().unwrap();
    let mut overtaken = 0;
    for (at, tag) in order[1..].iter().enumerate() {
        overtaken += number(tag).abs_diff(at);
    }
    assert_eq!(number(&order[1]), 0, "{order:?}");
    assert!(overtaken <= 8, "{order:?}");
}

#[test]
fn caller_that_cannot_use_its_slot_leaves_it_to_the_next() {
    let f = Fixture::new();
    f.hold_builds();
    let full = build(&f, 1, "env:full").start();
    f.wait_for_builds(1);
    let first = build(&f, 1, "env:busy").start();
    wait_for_wait(&first);
    let second = build(&f, 1, "env:other").start();
    wait_for_wait(&second);
    // It does not count, so it needs no slot.
    let busy = f.docker_build("env:busy").start();
    f.wait_for_builds(2);
    f.let_builds_go(1);
    f.wait_for("one build less", || f.build_events().iter().any(|it| !it.is_start()));
    if f.has_image("env:full") {
        f.wait_for_builds(3);
        assert_eq!(f.build_count("env:other"), 1, "{}", f.scene());
        assert_eq!(f.build_count("env:busy"), 1, "{}", f.scene());
        first.wait_for_stderr("env:busy: waiting for");
    }
    f.release_builds();
    for call in [full, first, second, busy] {
        call.wait().assert_code(0);
    }
    assert_eq!(f.build_count("env:busy"), 1);
}

#[test]
fn each_caller_sees_at_most_its_own_limit() {
    let f = Fixture::new();
    f.hold_builds();
    let holders = ["env:a", "env:b", "env:c"].map(|tag| build(&f, 8, tag).start());
    f.wait_for_builds(3);
    let few = build(&f, 2, "env:few").start();
    few.wait_for_stderr("waiting for a free slot: 3 builds are running, and 2 may");
    // It keeps nobody back who may have more.
    let more = build(&f, 4, "env:more").start();
    f.wait_for_builds(4);
    let full = build(&f, 4, "env:full").start();
    full.wait_for_stderr("waiting for a free slot: 4 of 4 builds are running");
    assert_eq!(f.build_count("env:few"), 0);
    f.let_builds_go(1);
    f.wait_for_builds(5);
    assert_eq!((f.build_count("env:full"), f.build_count("env:few")), (1, 0));
    f.let_builds_go(2);
    f.wait_for("three ends", || f.build_events().iter().filter(|it| !it.is_start()).count() == 3);
    // Two builds run. One of them is not enough.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(f.build_count("env:few"), 0);
    f.let_builds_go(1);
    f.wait_for_builds(6);
    assert_eq!(f.build_count("env:few"), 1);
    f.release_builds();
    for call in holders.into_iter().chain([few, more, full]) {
        call.wait().assert_code(0);
    }
}

#[test]
fn nested_build_uses_the_slot_of_its_outer_call() {
    let f = with_buildlock_in_path();
    f.hold_builds();
    let script = "buildlock --max-builds 1 -t env:in -- docker build -t env:in . && \
                  buildlock --max-builds 1 -t env:out -- docker build -t env:out .";
    let outer = f.buildlock(["--max-builds=1", "-t", "env:out", "--", "sh", "-c", script]).start();
    f.wait_for_builds(1);
    let other = build(&f, 1, "env:other").start();
    wait_for_wait(&other);
    f.let_builds_go(1);
    f.wait_for_builds(2);
    assert_eq!(order(&f), ["env:in", "env:out"]);
    f.release_builds();
    outer.wait().assert_code(0).assert_no_stderr("waiting");
    other.wait().assert_code(0);
}

#[test]
fn further_nested_builds_need_slots_of_their_own_or_wait_for_the_first() {
    for (limit, at_once) in [("1", 1), ("2", 2)] {
        let f = with_buildlock_in_path();
        f.steer("STANDIN_SLEEP=0.1");
        let script = "for n in 1 2 3 4; do \
                buildlock -t env:$n -- docker build -t env:$n . & \
            done; wait; docker build -t env:out .";
        let outer = f.buildlock(["-t", "env:out", "--", "sh", "-c", script]);
        let outer = outer.env("BUILDLOCK_MAX_BUILDS", limit).run();
        outer.assert_code(0).assert_stderr("waiting for a free slot").assert_no_stderr("deadlock");
        assert_eq!(most_at_once(&f.build_events()), at_once);
        assert_eq!(f.build_events().len(), 10);
    }
}

#[test]
fn nested_build_finds_its_outer_calls_slot_although_its_files_were_removed() {
    for lost in
        ["rm \"$BUILDLOCK_DIR/guard\"", "rm -r \"$BUILDLOCK_DIR/build-slots\"", ": >\"$SLOT\""]
    {
        let f = with_buildlock_in_path();
        let script = format!(
            "{lost}; buildlock -w 0s --max-builds 1 -t env:in -- docker build -t env:in . && \
             docker build -t env:out ."
        );
        let outer = f.buildlock(["--max-builds=1", "-t", "env:out", "--", "sh", "-c", &script]);
        outer.env("SLOT", slot(&f, "1")).run().assert_code(0);
    }
}

#[test]
fn nested_calls_three_levels_deep_use_one_slot() {
    let f = with_buildlock_in_path();
    let script = "buildlock -t env:b -- sh -c '\
        buildlock -t env:c -- docker build -t env:c . && docker build -t env:b .' && \
        docker build -t env:a .";
    let outer = f.buildlock(["-t", "env:a", "--", "sh", "-c", script]);
    let outer = outer.env("BUILDLOCK_MAX_BUILDS", "1").run();
    outer.assert_code(0).assert_no_stderr("waiting");
}

#[test]
fn nested_call_in_an_outer_one_without_a_slot_is_warned_of() {
    let f = with_buildlock_in_path();
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    let script = "buildlock --max-builds 1 -t env:in -- docker build -t env:in . ; \
                  exec docker build -t env:out .";
    let outer = f.buildlock(["-t", "env:out", "--", "sh", "-c", script]).start();
    outer.wait_for_stderr("this wait for a free slot can deadlock: an outer call holds env:out");
    f.release_builds();
    holder.wait().assert_code(0);
    outer.wait().assert_code(0);
}

#[test]
fn second_run_gives_its_slot_back_first() {
    let f = Fixture::new();
    fs::write(f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let warm = "--cache=cargo=Cargo.lock";
    let cached = |tag: &str, script: &str| {
        let words = [warm, "--max-builds=2", "-t", tag, "--", "sh", "-c", script];
        f.buildlock(words)
    };
    cached("env:warm", "docker build -t env:warm .").run().assert_code(0);
    f.hold_builds();
    let sharing = cached("env:b", "docker build -t env:b .").start();
    f.wait_for_builds(2);
    let fails_once = "[ -e failed ] || { : >failed; exit 5; }; exec docker build -t env:a .";
    let failing = cached("env:a", fails_once).start();
    failing.wait_for_stderr("once more");
    // Its slot is free while it waits for the cache.
    let other = build(&f, 2, "env:other").start();
    f.wait_for_builds(3);
    assert_eq!(order(&f)[2], "env:other");
    f.release_builds();
    for call in [sharing, other] {
        call.wait().assert_code(0);
    }
    failing.wait().assert_code(0).assert_stderr("alone, to try again");
    assert!(most_at_once(&f.build_events()) <= 2);
    // The cache stays warm.
    f.buildlock([warm, "--", "docker", "build", "-t", "env:c", "."]).run().assert_stderr("warm");
}

#[test]
fn second_run_waits_for_a_slot_without_its_locks() {
    let f = Fixture::new();
    fs::write(f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let warm = "--cache=cargo=Cargo.lock";
    build(&f, 1, "env:warm").arg("--quiet").run().assert_code(0);
    f.buildlock([warm, "--", "docker", "build", "-t", "env:c", "."]).run().assert_code(0);
    f.hold_builds();
    let gate = Gate::new(&f, "failing.gate");
    let fails_once = "[ -e failed ] || { : >failed; read _ <\"$STANDIN/failing.gate\"; exit 5; }; \
                      exec docker build -t env:a .";
    let words = [warm, "--max-builds=1", "-t", "env:a", "--", "sh", "-c", fails_once];
    let failing = f.buildlock(words).start();
    f.wait_for("the first run", || f.work_dir().join("failed").exists());
    let other = build(&f, 1, "env:other").start();
    wait_for_wait(&other);
    gate.open();
    failing.wait_for_stderr("once more");
    f.wait_for_builds(3);
    // Either of them has the slot, and both get it.
    f.release_builds();
    other.wait().assert_code(0);
    failing.wait().assert_code(0).assert_stderr("alone, to try again");
    assert!(is_free(&slot(&f, "1")));
}

#[test]
fn status_shows_slots_in_use_and_who_waits() {
    let f = Fixture::new();
    f.hold_builds();
    let holders = ["env:a", "env:b"].map(|tag| build(&f, 2, tag).start());
    f.wait_for_builds(2);
    let waiters = ["env:c", "env:d"].map(|tag| {
        let waiter = build(&f, 2, tag).start();
        wait_for_wait(&waiter);
        waiter
    });
    f.wait_for_waiters(&slot(&f, "2.turnstile"), 1);
    let status = f.buildlock(["status", "--json"]).run();
    let locks: Vec<Value> = serde_json::from_slice(&status.stdout).unwrap();
    let slots: Vec<&Value> = locks.iter().filter(|lock| !lock["slot"].is_null()).collect();
    assert_eq!(slots.len(), 2, "{locks:?}");
    assert_eq!(locks.len(), 4, "{locks:?}");
    assert_eq!((&slots[0]["slot"], &slots[1]["slot"]), (&1.into(), &2.into()));
    assert_eq!((&slots[0]["waiters"], &slots[1]["waiters"]), (&2.into(), &0.into()));
    let mut pids: Vec<u64> = slots.iter().map(|it| it["holder"]["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    assert_eq!(pids, holders.each_ref().map(|it| u64::from(it.pid())));
    let waiting = slots[0]["waiting"].as_array().unwrap();
    let of = |n: usize| (&waiting[n]["pid"], &waiting[n]["command"]);
    assert_eq!(of(0), (&waiters[0].pid().into(), &"docker build -t env:c .".into()));
    assert_eq!(of(1), (&waiters[1].pid().into(), &"docker build -t env:d .".into()));
    let table = f.buildlock(["status"]).run();
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let rows = |start: &str| table.lines().filter(|row| row.starts_with(start)).count();
    assert_eq!((rows("slot "), rows("waits for a slot")), (2, 2), "{table}");
    f.release_builds();
    for call in holders.into_iter().chain(waiters) {
        call.wait().assert_code(0);
    }
    f.buildlock(["status", "--json"]).run().assert_stdout("[]\n");
}

#[test]
fn prune_leaves_slots_that_are_in_use() {
    let f = Fixture::new();
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    let waiter = build(&f, 1, "env:b").start();
    wait_for_wait(&waiter);
    f.buildlock(["prune"]).run().assert_code(0);
    assert!(slot(&f, "1").exists() && slot(&f, "1.turnstile").exists());
    f.release_builds();
    holder.wait().assert_code(0);
    waiter.wait().assert_code(0);
    f.buildlock(["prune"]).run().assert_code(0);
    assert_eq!(f.lock_files(), Vec::<PathBuf>::new());
    build(&f, 1, "env:c").run().assert_code(0);
}

#[test]
fn removed_slot_files_let_nobody_in() {
    let f = Fixture::new();
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    fs::remove_dir_all(f.lock_dir().join("build-slots")).unwrap();
    let before = Instant::now();
    let waiter = build(&f, 1, "env:b").start();
    wait_for_wait(&waiter);
    while before.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(f.build_count("env:b"), 0);
    assert!(cpu_seconds(waiter.pid()) < 0.2, "it does not wait in the kernel");
    f.release_builds();
    holder.wait().assert_code(0);
    waiter.wait().assert_code(0);
}

#[test]
fn limit_is_a_number_or_none_and_may_come_from_the_environment() {
    let f = Fixture::new();
    for wrong in ["0", "257", "-1", "many", ""] {
        let option = format!("--max-builds={wrong}");
        let done = f.buildlock([&option, "--", "docker", "build", "-t", "env:a", "."]).run();
        done.assert_code(125).assert_stderr("--max-builds");
    }
    let wrong = f.docker_build("env:a").env("BUILDLOCK_MAX_BUILDS", "0").run();
    wrong.assert_code(125).assert_stderr("BUILDLOCK_MAX_BUILDS");
    f.hold_builds();
    let holder = build(&f, 1, "env:a").start();
    f.wait_for_builds(1);
    let limited = f.docker_build("env:b").env("BUILDLOCK_MAX_BUILDS", "1").start();
    wait_for_wait(&limited);
    let free = f.buildlock(["--max-builds", "none", "--", "docker", "build", "-t", "env:c", "."]);
    let free = free.env("BUILDLOCK_MAX_BUILDS", "1").start();
    f.wait_for_builds(2);
    f.release_builds();
    for call in [holder, limited, free] {
        call.wait().assert_code(0);
    }
}

#[test]
fn store_for_many_hosts_has_no_slots() {
    let f = Fixture::new();
    let words = ["--max-builds=2", "--store=etcd://127.0.0.1:1/x", "--"];
    let done = f.buildlock(words).args(["docker", "build", "-t", "env:a", "."]).run();
    done.assert_code(125).assert_stderr("--max-builds counts the builds of one machine");
}
