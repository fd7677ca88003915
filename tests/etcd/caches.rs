//! Build caches shared by hosts.

use std::fs;

use crate::site::{ended, site};

#[test]
fn nested_call_warms_no_cache_that_its_outer_one_shares() {
    let Some(site) = site() else { return };
    for (file, text) in [("Cargo.lock", "one\n"), ("other", "other\n")] {
        fs::write(site.f.work_dir().join(file), text).unwrap();
    }
    let (warm, other) = ("--cache=cargo=Cargo.lock", "--cache=cargo=other");
    let build = |cache: &str, tag: &str| {
        site.buildlock(&[cache, "--", "docker", "build", "-t", tag, "."]).run()
    };
    build(warm, "env:first").assert_code(0).assert_stderr("cache=cargo cold");
    let inner = format!(
        "buildlock {other} -t env:inner -- docker build -t env:inner . && docker build -t env:outer ."
    );
    let outer = site.buildlock(&[warm, "-t", "env:outer", "--", "sh", "-c", &inner]).run();
    outer.assert_code(0).assert_stderr("an outer call shares it");
    build(other, "env:a").assert_code(0).assert_stderr("cache=cargo cold");
    build(other, "env:b").assert_code(0).assert_stderr("cache=cargo warm");
    site.buildlock(&["cache", "forget", "cargo"]).run().assert_code(0);
    site.assert_nothing_left();
}

#[test]
fn cache_is_warmed_by_one_and_then_shared_on_all_hosts() {
    const WARM: &str = "--cache=cargo=Cargo.lock";
    let Some(site) = site() else { return };
    fs::write(site.f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let build = |tag: &str| {
        let call = site.buildlock(&[WARM, "--", "docker", "build", "-t", tag, "."]);
        if tag.ends_with('1') { site.on_second_host(call) } else { call }
    };
    let running = || {
        let events = site.f.build_events();
        2 * events.iter().filter(|event| event.is_start()).count() - events.len()
    };
    site.f.hold_builds();
    let tags: Vec<String> = (0..5).map(|n| format!("env:{n}")).collect();
    let builds: Vec<_> = tags.iter().map(|tag| build(tag).start()).collect();
    site.f.wait_for_builds(1);
    for call in &builds {
        site.f.wait_for("all to wait or build", || {
            call.stderr().contains("waiting for") || call.stderr().contains("building")
        });
    }
    assert_eq!(running(), 1);
    site.f.let_builds_go(1);
    // All others run at the same time.
    site.f.wait_for_builds(5);
    assert_eq!(running(), 4);
    let locks = site.status();
    assert_eq!(locks.iter().filter(|lock| lock["cache"] == "cargo").count(), 4, "{locks:?}");
    site.f.release_builds();
    let said: String = ended(builds).iter().map(|it| it.assert_code(0).stderr.clone()).collect();
    assert_eq!(said.matches("alone, until it is warm (cache=cargo cold)").count(), 1, "{said}");
    assert_eq!(said.matches("shared (cache=cargo warm)").count(), 4, "{said}");

    build("env:later").run().assert_code(0).assert_stderr("shared (cache=cargo warm)");
    let listed = site.buildlock(&["cache", "ls"]).run();
    assert!(listed.assert_code(0).stdout_line().contains("\ncargo "), "{listed}");
    site.buildlock(&["cache", "forget", "cargo"]).run().assert_code(0);
    build("env:cold").run().assert_code(0).assert_stderr("cache=cargo cold");
    // A build that fails with a shared cache runs again alone.
    site.f.steer("STANDIN_BUILD_STATUS=3 STANDIN_FAIL_TIMES=1");
    build("env:again").run().assert_code(0).assert_stderr("alone, to try again (cache=cargo)");
    site.buildlock(&["cache", "forget", "cargo"]).run().assert_code(0);
    assert_eq!(site.keys().iter().filter(|key| key.contains("/locks/")).count(), 0);
}

#[test]
fn build_alone_with_a_cache_is_not_overtaken_by_builds_that_share_it() {
    const WARM: &str = "--cache=cargo=Cargo.lock";
    let Some(site) = site() else { return };
    fs::write(site.f.work_dir().join("Cargo.lock"), "one\n").unwrap();
    let build =
        |tag: &str, cache: &str| site.buildlock(&[cache, "--", "docker", "build", "-t", tag, "."]);
    build("env:0", WARM).run().assert_code(0);
    site.f.hold_builds();
    let sharing = build("env:1", WARM).start();
    site.f.wait_for_builds(2);
    let alone = build("env:2", "--cache=cargo").start();
    alone.wait_for_stderr("waiting for");
    let later = build("env:3", WARM).start();
    later.wait_for_stderr("waiting for");
    site.f.let_builds_go(1);
    sharing.wait().assert_code(0);
    site.f.wait_for_builds(3);
    assert_eq!((site.f.build_count("env:2"), site.f.build_count("env:3")), (1, 0));
    site.f.release_builds();
    alone.wait().assert_code(0);
    later.wait().assert_code(0);
    site.f.assert_no_overlap();
}
