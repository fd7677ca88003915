//! Compose and bake: which images a call builds, and one build for each of them (`--each`).

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Finished, Fixture, Invocation, Running, is_alive, send_signal};

/// A service or target: its name, its images, and how it is built.
type Service<'a> = (&'a str, &'a [&'a str], Value);

fn here() -> Value {
    json!({ "context": "." })
}

/// A fixture in which compose has these services.
fn compose(services: &[Service<'_>]) -> Fixture {
    let of = |(name, images, build): &Service<'_>| {
        let mut build = build.clone();
        build["tags"] = images[1..].into();
        ((*name).to_owned(), json!({ "image": images[0], "build": build }))
    };
    let mut all: serde_json::Map<_, _> = services.iter().map(of).collect();
    all.insert("redis".to_owned(), json!({ "image": "redis:7" }));
    with_plan(&json!({ "name": "project", "services": all }), services)
}

/// A fixture in which bake has these targets, all in the group default.
fn bake(targets: &[Service<'_>]) -> Fixture {
    let of = |(name, images, build): &Service<'_>| {
        let mut target = build.clone();
        target["tags"] = (*images).into();
        ((*name).to_owned(), target)
    };
    let all: serde_json::Map<_, _> = targets.iter().map(of).collect();
    let names: Vec<_> = targets.iter().map(|(name, ..)| *name).collect();
    with_plan(&json!({ "group": { "default": { "targets": names } }, "target": all }), targets)
}

fn with_plan(plan: &Value, services: &[Service<'_>]) -> Fixture {
    let f = Fixture::new();
    fs::write(f.path("plan"), plan.to_string()).unwrap();
    let line = |(name, images, _): &Service<'_>| format!("{name} {}\n", images.join(" "));
    fs::write(f.path("services"), services.iter().map(line).collect::<String>()).unwrap();
    f
}

/// A call with these options and this build command.
fn call<'f>(f: &'f Fixture, line: &str) -> Invocation<'f> {
    f.buildlock(line.split(' '))
}

fn starts(f: &Fixture) -> Vec<String> {
    f.lines("builds.log").into_iter().filter(|line| line.starts_with("start ")).collect()
}

/// Returns the calls that build.
fn build_calls(f: &Fixture) -> Vec<String> {
    let is_build = |line: &String| !line.contains(" config") && !line.contains(" --print");
    f.lines("args.log").into_iter().filter(is_build).collect()
}

#[test]
fn images_of_compose_are_those_that_it_says() {
    let f = compose(&[("api", &["api:1", "api:latest"], here()), ("web", &["web:1"], here())]);
    let line = "-- docker compose -f a.yaml --profile p build --no-cache";
    call(&f, line).run().assert_code(0);
    for tag in ["api:1", "api:latest", "web:1"] {
        assert!(f.lock_file(tag).exists(), "{tag}");
        assert!(f.has_image(tag), "{tag}");
    }
    assert!(f.looks().iter().all(|look| !look.contains("redis")));
    let asked = "docker compose -f a.yaml --profile p config --format json";
    assert_eq!(f.lines("args.log")[0], asked);
    let again = call(&f, line).run();
    again.assert_code(0).assert_stderr("web:1: present");
    assert_eq!(build_calls(&f).len(), 1);
}

#[test]
fn one_missing_image_of_compose_makes_a_build() {
    let f = compose(&[("api", &["api:1"], here()), ("web", &["web:1"], here())]);
    f.make_image("api:1");
    call(&f, "-- docker compose build").run().assert_code(0);
    assert!(f.has_image("web:1"));
}

#[test]
fn named_services_alone_count() {
    let f = compose(&[("api", &["api:1"], here()), ("web", &["web:1"], here())]);
    call(&f, "-- docker compose build api").run().assert_code(0);
    assert_eq!(f.lines("args.log")[0], "docker compose config --format json api");
    assert!(f.has_image("api:1") && !f.has_image("web:1"));
    assert!(!f.lock_file("web:1").exists());
}

#[test]
fn service_without_an_image_is_named_after_its_project() {
    let services = json!({ "api": { "build": here() } });
    for (options, image) in [("", "my-api:latest"), ("--compatibility ", "my_api:latest")] {
        let f =
            with_plan(&json!({ "name": "my", "services": services }), &[("api", &[image], here())]);
        call(&f, &format!("-- docker compose {options}build")).run().assert_code(0);
        assert!(f.lock_file(image).exists(), "{image}");
    }
}

#[test]
fn given_tags_of_several_images_are_completed() {
    let f = compose(&[("api", &["api:1"], here()), ("web", &["web:1"], here())]);
    f.make_image("api:1");
    call(&f, "-t api:1 -- docker compose build").run().assert_code(0);
    assert!(f.has_image("web:1"));
    // One service is what its tag says, and nothing is asked.
    fs::remove_file(f.path("plan")).unwrap();
    call(&f, "-t api:1 -- docker compose build api").run().assert_code(0);
    // Without an answer, the tags that are given are all that is known.
    let unasked = call(&f, "-t api:1 -- docker compose build").run();
    unasked.assert_code(0).assert_stderr("only the tags given with -t");
}

#[test]
fn failure_of_config_is_reported_before_any_build() {
    let f = compose(&[("api", &["api:1"], here())]);
    fs::remove_file(f.path("plan")).unwrap();
    for options in ["", "--each "] {
        let done = call(&f, &format!("{options}-- docker compose build")).run();
        done.assert_code(125).assert_stderr("no configuration file provided: not found");
    }
    fs::write(f.path("plan"), "no JSON").unwrap();
    call(&f, "-- docker compose build").run().assert_code(125).assert_stderr("printed no JSON");
    assert!(starts(&f).is_empty());
}

#[test]
fn what_compose_says_is_never_shown() {
    let f = compose(&[("api", &["api:1"], json!({ "context": ".", "args": { "T": "s3cret" } }))]);
    let done = call(&f, "-v -- docker compose build").run();
    done.assert_code(0).assert_no_stderr("s3cret");
    fs::write(f.path("plan"), r#"{"services": {"s3cret": "#).unwrap();
    call(&f, "-v -- docker compose build").run().assert_code(125).assert_no_stderr("s3cret");
}

#[test]
fn calls_that_cannot_be_asked_are_refused() {
    let f = compose(&[("api", &["api:1"], here())]);
    for (line, said) in [
        ("-- docker compose --dry-run build", "builds no image: --dry-run"),
        ("-- docker compose -f - build", "reads its file from stdin"),
        ("-- docker buildx bake --print", "builds no image: --print"),
        ("-- docker buildx bake --call=check", "builds no image: --call=check"),
        ("-- docker buildx bake -f -", "reads its file from stdin"),
        ("-- docker compose up --build", "build first"),
        ("--each -- docker compose up --build", "--each is for commands that build"),
        ("--each -- docker build -t env:abc .", "--each is for commands that build"),
        ("--each -t env:abc -- docker compose build", "leave out -t"),
        ("--each -- docker buildx bake --metadata-file m", "--metadata-file m"),
        ("--fail-fast -- docker compose build", "--each"),
    ] {
        call(&f, line).run().assert_code(125).assert_stderr(said);
    }
    assert!(starts(&f).is_empty());
}

#[test]
fn images_of_bake_are_those_of_its_targets_and_of_what_they_read() {
    let reads = json!({ "context": ".", "contexts": { "base": "target:base" } });
    let f = bake(&[("api", &["api:1", "api:2"], reads), ("web", &["web:1"], here())]);
    let mut plan: Value = serde_json::from_slice(&fs::read(f.path("plan")).unwrap()).unwrap();
    plan["target"]["base"] = json!({ "context": ".", "tags": ["base:1"] });
    plan["target"]["other"] = json!({ "context": ".", "tags": ["other:1"] });
    fs::write(f.path("plan"), plan.to_string()).unwrap();
    fs::write(f.path("services"), "all api:1 api:2 web:1 base:1\n").unwrap();
    call(&f, "-- docker buildx bake -f x.hcl --set *.pull=true").run().assert_code(0);
    assert_eq!(f.lines("args.log")[0], "docker buildx bake --print -f x.hcl --set *.pull=true");
    for tag in ["api:1", "api:2", "web:1", "base:1"] {
        assert!(f.lock_file(tag).exists(), "{tag}");
    }
    assert!(!f.lock_file("other:1").exists());
}

#[test]
fn services_that_a_build_reads_are_locked_and_built_before() {
    let reads = json!({ "context": ".", "additional_contexts": { "x": "service:base" } });
    let f = compose(&[("api", &["api:1"], reads), ("base", &["base:1"], here())]);
    call(&f, "-- docker compose build api").run().assert_code(0);
    assert!(f.lock_file("base:1").exists());
    assert!(f.looks().iter().all(|look| !look.contains("base:1")));

    let reads = json!({ "context": ".", "additional_contexts": { "x": "service:base" } });
    let f = compose(&[("api", &["api:1"], reads), ("base", &["base:1"], here())]);
    call(&f, "--each -- docker compose build").run().assert_code(0);
    let events = f.lines("builds.log");
    assert!(events[0].starts_with("start base:1") && events[1].starts_with("end base:1"));
}

#[test]
fn services_with_one_build_and_different_tags_are_no_contradiction() {
    let f = compose(&[("a", &["x:1", "a:1"], here()), ("b", &["x:1", "b:1"], here())]);
    call(&f, "--each -- docker compose build").run().assert_code(0);
    for tag in ["x:1", "a:1", "b:1"] {
        assert!(f.has_image(tag), "{tag}");
    }
}

#[test]
fn target_without_an_image_is_refused() {
    let local = json!({ "context": ".", "output": ["type=local,dest=out"] });
    let newer = json!({ "context": ".", "output": [{ "type": "local", "dest": "out" }] });
    for (tags, target, said) in [
        (&[][..], here(), "target x has no tags"),
        (&["x:1"], local, "target x makes no image"),
        (&["x:1"], newer, "target x makes no image"),
        (&["X:1"], here(), "the tag 'X:1' of target x"),
    ] {
        let f = bake(&[("x", tags, target)]);
        call(&f, "-- docker buildx bake").run().assert_code(125).assert_stderr(said);
    }
}

#[test]
fn each_image_is_built_by_a_command_of_its_own() {
    for (f, line, built) in [
        (
            compose(&[("api", &["api:1"], here()), ("web", &["web:1"], here())]),
            "--each -- docker compose -p p build --pull api web",
            "docker compose -p p build --pull",
        ),
        (
            bake(&[("api", &["api:1"], here()), ("web", &["web:1"], here())]),
            "--each -- docker buildx bake --pull",
            "docker buildx bake --pull",
        ),
    ] {
        let done = call(&f, line).run();
        done.assert_code(0).assert_stderr("api | buildlock: api:1: built in");
        let mut words = build_calls(&f);
        words.sort();
        assert_eq!(words, [format!("{built} api"), format!("{built} web")]);
        let again = call(&f, line).run();
        again.assert_code(0).assert_stderr("web | buildlock: web:1: present");
        assert_eq!(starts(&f).len(), 2);
    }
}

#[test]
fn images_are_built_at_the_same_time_and_once_for_all_callers() {
    let f = compose(&[("a", &["a:1"], here()), ("b", &["b:1"], here()), ("c", &["c:1"], here())]);
    f.hold_builds();
    let calls: Vec<_> =
        (0..4).map(|_| call(&f, "--each -- docker compose build").start()).collect();
    f.wait_for_builds(3);
    for tag in ["a:1", "b:1", "c:1"] {
        f.wait_for_waiters(&f.lock_file(tag), 3);
    }
    f.release_builds();
    for call in calls {
        call.wait().assert_code(0);
    }
    assert_eq!(starts(&f).len(), 3);
}

#[test]
fn services_of_one_image_are_built_once_or_refused() {
    let f = compose(&[("api", &["x:1"], here()), ("worker", &["x:1"], here())]);
    call(&f, "--each -- docker compose build").run().assert_code(0).assert_stderr("api+worker | ");
    assert_eq!(starts(&f).len(), 1);
    // Without --each, compose itself builds it twice at the same time.
    let warned = call(&f, "-- docker compose build").run();
    warned.assert_stderr("api and worker both build it");

    let other = json!({ "context": "sub" });
    let f = compose(&[("api", &["x:1"], here()), ("worker", &["x:1"], other)]);
    let refused = call(&f, "--each -- docker compose build").run();
    refused.assert_code(125).assert_stderr("api and worker build x:1 in different ways");
    assert!(starts(&f).is_empty());
}

#[test]
fn image_that_others_read_is_built_first() {
    let reads = json!({ "context": ".", "contexts": { "base": "target:base" } });
    let f = bake(&[("api", &["api:1"], reads), ("base", &["base:1"], here())]);
    call(&f, "--each -- docker buildx bake").run().assert_code(0);
    let events = f.lines("builds.log");
    assert!(events[0].starts_with("start base:1") && events[1].starts_with("end base:1"));
    assert!(events[2].starts_with("start api:1"), "{events:?}");
}

#[test]
fn what_needs_a_failed_image_is_not_built() {
    let reads =
        |name: &str| json!({ "context": ".", "contexts": { "x": format!("target:{name}") } });
    let f = bake(&[
        ("top", &["top:1"], reads("middle")),
        ("middle", &["middle:1"], reads("base")),
        ("base", &["base:1"], here()),
    ]);
    f.steer("STANDIN_BUILD_STATUS=3");
    let done = call(&f, "--each -- docker buildx bake").run();
    done.assert_code(3).assert_stderr("failed: base (status 3)");
    done.assert_stderr("not built: top, middle");
    assert_eq!(starts(&f).len(), 1);
}

/// Makes `a` fail at once, while the builds of others are held.
fn fails_first(options: &str) -> (Fixture, Finished) {
    let f = compose(&[("a", &["a:1"], here()), ("b", &["b:1"], here())]);
    f.steer(
        "case \"$*\" in \
         'compose build b') STANDIN_SLEEP=600 ;; \
         'compose build a') STANDIN_BUILD_STATUS=7; \
         until grep -q 'start b' \"$STANDIN/builds.log\" 2>/dev/null; do sleep 0.02; done ;; esac",
    );
    let line = format!("--each {options}-- docker compose build");
    let running = call(&f, &line).start();
    running.wait_for_stderr("a | buildlock: warning: a:1: failed");
    if options.is_empty() {
        f.steer("");
        let sleep = f.processes().into_iter().find(|&pid| is_sleep(pid)).unwrap();
        send_signal(sleep, "TERM");
    }
    let done = running.wait();
    (f, done)
}

fn is_sleep(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}

#[test]
fn others_finish_after_a_failure() {
    let (f, done) = fails_first("");
    done.assert_code(7).assert_stderr("failed: a (status 7)");
    assert!(f.has_image("b:1"));
}

#[test]
fn others_are_ended_after_a_failure_with_fail_fast() {
    let (f, done) = fails_first("--fail-fast ");
    done.assert_code(7).assert_stderr("failed: a (status 7)").assert_stderr("not built: b");
    assert!(!f.has_image("b:1"));
    f.wait_for("no process is left", || f.processes().is_empty());
}

#[test]
fn interruption_reaches_all_builds() {
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        let f = compose(&[("a", &["a:1"], here()), ("b", &["b:1"], here())]);
        f.hold_builds();
        let running = call(&f, "--each -- docker compose build").start();
        f.wait_for_builds(2);
        running.signal(signal);
        running.wait().assert_signal(number);
        f.wait_for("no process is left", || f.processes().is_empty());
        let ended = f.lines("builds.log").iter().filter(|it| it.starts_with("end ")).count();
        assert_eq!(ended, 2);
    }
}

#[test]
fn builds_end_when_their_parent_is_killed() {
    let f = compose(&[("a", &["a:1"], here()), ("b", &["b:1"], here())]);
    f.hold_builds();
    let running: Running<'_> = call(&f, "--each -- docker compose build").start();
    f.wait_for_builds(2);
    let parent = running.pid();
    running.signal("KILL");
    running.wait().assert_signal(9);
    assert!(!is_alive(parent));
    f.wait_for("no process is left", || f.processes().is_empty());
    f.release_builds();
    call(&f, "--each -w 0s -- docker compose build").run().assert_code(0);
}

#[test]
fn output_goes_to_its_own_stream_line_by_line() {
    let f = compose(&[("a", &["a:1"], here())]);
    f.steer("STANDIN_OUT=\"one\ntwo\" STANDIN_ERR=\"three\n\"");
    let done = call(&f, "--each -- docker compose build").run();
    done.assert_code(0).assert_stdout("a | one\na | two\n").assert_stderr("a | three\n");
    // Log lines that are JSON stay so.
    let f = compose(&[("a", &["a:1"], here())]);
    let done = call(&f, "--each --log-format json -- docker compose build").run();
    for line in done.stderr.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(event.is_object());
    }
}

#[test]
fn process_that_a_build_leaves_behind_does_not_keep_the_call() {
    let f = compose(&[("a", &["a:1"], here())]);
    f.steer("STANDIN_CHILD=setsid");
    let running = call(&f, "--each -- docker compose build").start();
    running.wait_within(Duration::from_secs(30)).assert_code(0);
    send_signal(f.wait_for_pid("child.pid"), "KILL");
}

#[test]
fn never_more_builds_run_at_once_than_there_are_slots() {
    let names: Vec<String> = (0..12).map(|n| format!("s{n}")).collect();
    let images: Vec<[String; 1]> = names.iter().map(|name| [format!("{name}:1")]).collect();
    let images: Vec<[&str; 1]> = images.iter().map(|image| [image[0].as_str()]).collect();
    let services: Vec<Service<'_>> =
        names.iter().zip(&images).map(|(name, image)| (&**name, &image[..], here())).collect();
    let f = compose(&services);
    f.hold_builds();
    let running = call(&f, "--each --max-builds 3 -- docker compose build").start();
    for started in 3..=12 {
        f.wait_for_builds(started);
        f.let_builds_go(1);
    }
    f.release_builds();
    running.wait().assert_code(0);
    let (mut now, mut most) = (0_usize, 0);
    for event in f.build_events() {
        now = if event.is_start() { now + 1 } else { now - 1 };
        most = most.max(now);
    }
    assert_eq!((most, starts(&f).len()), (3, 12));
}

#[test]
fn builds_warm_their_cache_one_alone_and_then_share_it() {
    let services: [Service<'_>; 3] =
        [("a", &["a:1"], here()), ("b", &["b:1"], here()), ("c", &["c:1"], here())];
    let f = compose(&services);
    fs::write(f.work_dir().join("Cargo.lock"), "x").unwrap();
    f.hold_builds();
    let running = call(&f, "--each --cache cargo=Cargo.lock -- docker compose build").start();
    f.wait_for_builds(1);
    f.let_builds_go(1);
    // Two at the same time: neither has ended.
    f.wait_for("two share the cache", || starts(&f).len() == 3);
    assert_eq!(f.lines("builds.log").iter().filter(|it| it.starts_with("end ")).count(), 1);
    f.release_builds();
    running.wait().assert_code(0);
}
