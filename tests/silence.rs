//! Engines, registries and commands of the user's that never answer: an error, in bounded time.
//!
//! Each of these waits for half a minute to pass, and so they wait together.

mod common;
#[path = "engine/mod.rs"]
mod engine;
#[path = "engine/fake.rs"]
mod fake;
#[path = "common/hang.rs"]
mod hang;
#[path = "engine/registry.rs"]
mod registry;

use std::time::{Duration, Instant};

use common::Fixture;
use engine::for_one_client;
use fake::{FakeEngine, fixture, found, send, socket, stay_silent};
use hang::Hang;
use registry::{OddRegistry, Says};

const TAG: &str = "env:abc";

/// What a user may have to wait for somebody who says nothing, and then some.
const SILENCE: Duration = Duration::from_secs(50);

#[ignore = "takes half a minute: make test-scale"]
#[test]
fn engine_that_never_answers_or_stops_in_the_middle_is_an_error_in_bounded_time() {
    let start = found();
    let in_the_middle = start[..start.len() - 20].to_owned();
    // Side by side, for there is nothing to do but to wait.
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
            // A queue of one that is full: connect(2) itself waits.
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
fn command_of_check_that_does_not_end_is_an_error_and_is_ended() {
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
        // The engine gives up before we do, and is asked once more.
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
    // Of its own, for all tests share the stand-in.
    std::fs::remove_file(f.path("bin/docker")).unwrap();
    let stand_in = std::fs::read_to_string(common::stand_in()).unwrap();
    let Some(_hang) = Hang::of_execution(&f.install_script("docker", &stand_in)) else { return };
    let done = f.buildlock(["-t", TAG, "--", "false"]).start().wait_within(SILENCE);
    done.assert_code(125).assert_stderr("did not answer within 30s");
}
