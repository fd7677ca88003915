//! Nested calls.

use crate::site::site;

#[test]
fn nested_call_does_not_wait_for_itself() {
    let Some(site) = site() else { return };
    let nested = ["buildlock", "-w0s", "-t", "env:abc", "--", "docker", "build", "-t", "env:abc"];
    let done = site.buildlock(&["-t", "env:abc", "--"]).args(nested).arg(".").run();
    done.assert_code(0).assert_no_stderr("waiting");
    assert_eq!(site.f.build_count("env:abc"), 1);
    let deeper =
        "buildlock -t env:b -- sh -c 'buildlock -t env:b -- docker build -t env:b .; exit $?'";
    let done = site.buildlock(&["-t", "env:b", "--", "sh", "-c", deeper]).run();
    done.assert_code(0).assert_no_stderr("waiting");
    site.assert_nothing_left();
}

#[test]
fn two_nested_calls_exclude_each_other_and_others() {
    let Some(site) = site() else { return };
    let script = "one() { buildlock -t env:a -- docker build -t env:a . ; }; \
        one & first=$!; one & second=$!; wait $first || exit 1; wait $second || exit 2";
    site.f.hold_builds();
    let outer = site.buildlock(&["-t", "env:a", "--", "sh", "-c", script]).start();
    site.f.wait_for_builds(1);
    outer.wait_for_stderr("waiting for");
    let other = site.on_second_host(site.buildlock(&["-w0s", "-t", "env:a", "--", "true"])).run();
    other.assert_code(124).assert_stderr(&format!("pid {}", outer.pid()));
    site.f.release_builds();
    outer.wait().assert_code(0);
    assert_eq!(site.f.build_count("env:a"), 1);
    site.f.assert_no_overlap();
    site.assert_nothing_left();
}
