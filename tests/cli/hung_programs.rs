//! Programs on a file system that does not answer: time limits and signals still work.

use std::fs;

use crate::support::{Fixture, Hang, Invocation, holders, is_free, stand_in};

const TAG: &str = "env:abc";

/// Prepares a call whose build command hangs while it is executed.
fn hung_build<'f>(f: &'f Fixture, options: &[&str]) -> Option<(Hang, Invocation<'f>)> {
    let program = f.install_script("hung", "#!/bin/sh\nexec docker build -t env:abc .\n");
    let hang = Hang::of_execution(&program)?;
    Some((hang, f.buildlock(options).args(["-t", TAG, "--", "hung"])))
}

#[test]
fn signal_ends_a_build_command_that_hangs_while_it_is_executed() {
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("QUIT", 3)] {
        let f = Fixture::new();
        let Some((hang, call)) = hung_build(&f, &[]) else { return };
        let call = call.start();
        hang.wait(&f);
        assert_eq!(holders(&f.lock_file(TAG)), [call.pid()]);
        call.signal(name);
        call.wait().assert_signal(number);
        assert!(is_free(&f.lock_file(TAG)), "{}", f.scene());
        f.docker_build(TAG).run().assert_code(0);
    }
}

#[test]
fn build_limit_holds_while_the_build_command_is_executed() {
    let f = Fixture::new();
    let Some((hang, call)) = hung_build(&f, &["--build-timeout", "200ms"]) else { return };
    let call = call.start();
    hang.wait(&f);
    let call = call.wait();
    call.assert_code(124).assert_stderr("has not begun within 200ms (--build-timeout)");
    assert!(is_free(&f.lock_file(TAG)), "{}", f.scene());
}

#[test]
fn hung_build_command_is_waited_for_if_there_is_no_limit() {
    let f = Fixture::new();
    let Some((hang, call)) = hung_build(&f, &[]) else { return };
    let call = call.start();
    hang.wait(&f);
    drop(hang);
    call.wait().assert_code(0);
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn killed_buildlock_leaves_nothing_of_a_build_command_that_hangs() {
    let f = Fixture::new();
    let Some((hang, call)) = hung_build(&f, &[]) else { return };
    let call = call.start();
    hang.wait(&f);
    call.signal("KILL");
    f.wait_for("the lock to be free", || is_free(&f.lock_file(TAG)));
    f.wait_for("the end of all processes", || f.processes().is_empty());
    drop(hang);
    assert_eq!(f.build_count(TAG), 0);
}

#[test]
fn signal_ends_a_call_that_hangs_before_any_waiting() {
    let f = Fixture::new();
    // A copy, since all tests share the stand-in.
    fs::remove_file(f.path("bin/docker")).unwrap();
    let docker = f.install_script("docker", &fs::read_to_string(stand_in()).unwrap());
    for (name, number) in [("INT", 2), ("TERM", 15)] {
        let Some(hang) = Hang::of_opening(&docker) else { return };
        let call = f.docker_build(TAG).start();
        hang.wait(&f);
        call.signal(name);
        call.wait().assert_signal(number);
    }
}
