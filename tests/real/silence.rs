//! Engines, registries and users' commands that never answer: an error within bounded time.
//!
//! Each of these tests takes half a minute, so they run only when asked for.

use std::time::{Duration, Instant};

use crate::support::engine::for_one_client;
use crate::support::fake_engine::{FakeEngine, fixture, found, send, socket, stay_silent};
use crate::support::registry::{OddRegistry, Says};
use crate::support::{Fixture, Hang, stand_in};

const TAG: &str = "env:abc";

/// The longest wait for a peer that never answers, with some slack.
const SILENCE: Duration = Duration::from_secs(50);

#[ignore = "takes half a minute: make test-scale"]
#[test]
fn engine_that_never_answers_or_stops_midway_is_an_error_in_bounded_time() {
    let start = found();
    let in_the_middle = start[..start.len() - 20].to_owned();
    // Side by side, since they only wait.
    std::thread::scope(|scope| {
        for said in [String::new(), in_the_middle] {
            scope.spawn(move || {
                let f = fixture();
                let engine = FakeEngine::start(&socket(&f), move |_, _, stream| {
                    send(stream, &said);
                    stay_silent(stream);
                });
                let words = ["-t", TAG, "--", "sh", "-c", "echo built >>built"];
                let run = f.buildlock(words).env("DOCKER_HOST", engine.endpoint());
                let mut run = run.start();
                let start = Instant::now();
                while !run.has_ended() {
                    assert!(start.elapsed() < SILENCE, "still asking\n{}", f.scene());
                    std::thread::sleep(Duration::from_millis(20));
                }
                let run = run.wait();
                run.assert_code(125).assert_stderr(TAG);
                assert!(!f.work_dir().join("built").exists(), "{run}");
                assert!(!engine.requests().is_empty(), "the engine was not asked\n{run}");
            });
        }
        scope.spawn(|| {
            let f = fixture();
            // With a full queue, connect(2) itself waits.
            let full = "import os, socket, sys, time\n\
                        s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(0)\n\
                        c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1])\n\
                        open(sys.argv[2], 'w').write('full\\n')\n\
                        time.sleep(120)";
            let paths = [socket(&f), f.path("full")];
            let _engine = f.program("python3").args(["-c", full]).args(&paths).start();
            f.wait_for_file("full");
            let endpoint = format!("unix://{}", socket(&f).display());
            let call = f.buildlock(["-t", TAG, "--", "sh", "-c", "echo built >>built"]);
            let mut run = call.env("DOCKER_HOST", endpoint).start();
            let start = Instant::now();
            while !run.has_ended() {
                assert!(start.elapsed() < SILENCE, "still connecting\n{}", f.scene());
                std::thread::sleep(Duration::from_millis(20));
            }
            run.wait().assert_code(125).assert_stderr("did not answer within");
            assert!(!f.work_dir().join("built").exists());
        });
    });
}

#[ignore = "takes half a minute: make test-scale"]
#[test]
fn check_command_that_does_not_end_is_an_error_and_is_ended() {
    let f = Fixture::new();
    let pid = f.path("pid");
    let check = format!("sh -c 'echo $$ >{}; exec sleep 600' | cat; exit 0", pid.display());
    let words = ["--check", &check, "-t", TAG, "--", "false"];
    let waiting = f.buildlock(words).start();
    let pid = f.wait_for_file("pid").trim().parse().unwrap();
    let done = waiting.wait_within(SILENCE);
    done.assert_code(125).assert_stderr("did not answer within 30s");
    f.wait_for_death(pid);
}

#[ignore = "takes a minute: make test-scale"]
#[test]
fn registry_that_never_answers_is_an_error() {
    for_one_client(|site| {
        let odd = OddRegistry::start(Says::Nothing);
        let tag = format!("{}/a/b:1", odd.address());
        let words = ["--check", "registry", "-t", &tag, "--", "sh", "-c", "echo built >>built"];
        // The engine gives up before buildlock does, and is asked once more.
        let run = site.buildlock(words).start().wait_within(2 * SILENCE);
        run.assert_code(125).assert_stderr("cannot tell").assert_stderr(&odd.address());
        assert!(!site.f.work_dir().join("built").exists(), "{run}");
        assert!(odd.asked() > 0, "{run}");
    });
}

#[ignore = "takes half a minute: make test-scale"]
#[test]
fn client_that_hangs_while_it_is_executed_is_an_error() {
    let f = Fixture::new();
    // A copy, since all tests share the stand-in.
    std::fs::remove_file(f.path("bin/docker")).unwrap();
    let stand_in = std::fs::read_to_string(stand_in()).unwrap();
    let Some(_hang) = Hang::of_execution(&f.install_script("docker", &stand_in)) else { return };
    let done = f.buildlock(["-t", TAG, "--", "false"]).start().wait_within(SILENCE);
    done.assert_code(125).assert_stderr("did not answer within 30s");
}
