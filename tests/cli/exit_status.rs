//! Exit statuses, in the order of their table.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::support::{Finished, Fixture, is_alive, python, skip};

const BUILD: [&str; 6] = ["--", "docker", "build", "-t", "env:abc", "."];

// The build command's own.

#[test]
fn status_of_the_build_command_is_passed_on() {
    for status in [1, 2, 42, 123, 124, 125, 126, 127, 130, 255] {
        let f = Fixture::new();
        f.steer(&format!("STANDIN_BUILD_STATUS={status}"));

        f.docker_build("env:abc").run().assert_code(status);

        assert_eq!(f.build_count("env:abc"), 1);
        assert!(!f.has_image("env:abc"));
    }
}

#[test]
fn zero_means_that_the_image_was_built() {
    let f = Fixture::new();

    f.docker_build("env:abc").run().assert_code(0);

    assert!(f.has_image("env:abc"));
}

#[test]
fn zero_means_that_the_image_was_present() {
    let f = Fixture::new();
    f.make_image("env:abc");

    f.docker_build("env:abc").run().assert_code(0);
}

// 124

#[test]
fn wait_that_takes_too_long_ends_with_124() {
    let f = Fixture::new();
    let _held = f.hold_lock(&f.lock_file("env:abc"));

    f.docker_build("env:abc").env("BUILDLOCK_TIMEOUT", "100ms").run().assert_code(124);
}

/// Runs a build that hangs into `--build-timeout`, which must end all of it.
fn run_into_build_timeout(f: &Fixture, args: &[&str]) -> Finished {
    f.hold_builds();
    let finished = f.buildlock(args.iter().chain(&BUILD)).run();
    assert_eq!(
        f.processes(),
        [] as [u32; 0],
        "something was left running\n{finished}\n{}",
        f.scene()
    );
    assert_eq!(f.build_count("env:abc"), 1);
    finished
}

#[test]
fn build_that_takes_too_long_is_ended_with_124() {
    let f = Fixture::new();

    let finished = run_into_build_timeout(&f, &["--build-timeout", "1s"]);

    finished.assert_code(124).assert_stderr("env:abc");
    assert!(finished.elapsed >= Duration::from_secs(1), "{:?}", finished.elapsed);
    let ends: Vec<_> = f.build_events().into_iter().filter_map(|e| e.end).collect();
    assert_eq!(ends, ["143"], "SIGTERM comes first");
}

#[test]
fn chosen_conflict_status_does_not_apply_to_a_build_that_takes_too_long() {
    run_into_build_timeout(&Fixture::new(), &["-E", "75", "--build-timeout", "1s"])
        .assert_code(124);
}

#[test]
fn build_that_ignores_sigterm_is_killed() {
    let f = Fixture::new();
    f.steer("STANDIN_IGNORE_TERM=1");

    let finished = run_into_build_timeout(&f, &["--build-timeout", "1s", "-k", "300ms"]);

    finished.assert_code(124);
    assert!(finished.elapsed >= Duration::from_millis(1300), "{:?}", finished.elapsed);
}

#[test]
fn build_that_takes_too_long_is_ended_with_all_its_descendants() {
    let kinds = ["plain", "setsid", "stubborn", "stubborn-setsid"];
    let fixtures = kinds.map(|kind| {
        let f = Fixture::new();
        f.steer(&format!("STANDIN_CHILD={kind}"));
        f.hold_builds();
        f
    });
    let args = ["--build-timeout", "2s", "--kill-after", "300ms"];
    let builds = fixtures.each_ref().map(|f| f.buildlock(args.iter().chain(&BUILD)).start());

    for ((kind, f), build) in kinds.iter().zip(&fixtures).zip(builds) {
        build.wait().assert_code(124);

        let child: u32 = f.wait_for_file("child.pid").trim().parse().unwrap();
        assert!(!is_alive(child), "{kind} was left running\n{}", f.scene());
        assert_eq!(f.processes(), [] as [u32; 0], "{kind}\n{}", f.scene());
    }
}

#[test]
fn waiter_builds_after_a_build_that_took_too_long() {
    let f = Fixture::new();
    f.hold_builds();
    let first = f.docker_build("env:abc").env("BUILDLOCK_BUILD_TIMEOUT", "3s").start();
    f.wait_for_builds(1);
    let second = f.docker_build("env:abc").env("BUILDLOCK_ON_FAILURE", "share").start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);
    first.wait().assert_code(124);

    f.release_builds();

    second.wait().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 2);
    f.assert_no_overlap();
}

#[test]
fn zero_of_a_command_that_was_ended_by_the_limit_is_not_believed() {
    let f = Fixture::new();
    f.make_image("env:abc");
    let script = "trap 'exit 0' TERM; echo $$ >../child.pid; while :; do sleep 0.05; done";
    let args = ["-f", "--build-timeout", "1s", "-t", "env:abc", "--", "sh", "-c", script];

    let finished = f.buildlock(args).run();

    assert!(f.path("child.pid").exists(), "it never ran\n{finished}");
    finished.assert_code(124);
}

#[test]
fn zero_of_a_command_that_was_told_to_end_is_not_believed() {
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        let f = Fixture::new();
        f.make_image("env:abc");
        let script = format!("trap 'exit 0' {name}; echo $$ >../pid; while :; do sleep 0.05; done");
        let build = f.buildlock(["-f", "-t", "env:abc", "--", "sh", "-c", &script]).start();
        f.wait_for_file("pid");

        build.signal(name);

        let finished = build.wait();
        let status = finished.status.code().or(finished.status.signal().map(|n| 128 + n));
        assert!(status == Some(125) || status == Some(128 + number), "SIG{name}: {finished}");
    }
}

#[test]
fn limit_on_the_build_does_not_affect_a_quick_one() {
    let f = Fixture::new();

    f.buildlock(["--build-timeout", "1h"].iter().chain(&BUILD)).run().assert_code(0);
}

// 125

#[test]
fn wrong_usage_ends_with_125() {
    Fixture::new().buildlock(["--no-such-option"]).run().assert_code(125);
}

#[test]
fn lock_folder_that_is_a_file_ends_with_125() {
    let f = Fixture::new();
    std::fs::write(f.lock_dir(), "").unwrap();

    f.docker_build("env:abc").run().assert_code(125).assert_stderr("locks");
}

#[test]
fn engine_that_cannot_be_reached_ends_with_125() {
    let f = Fixture::new();
    f.steer("STANDIN_DOWN=1");

    f.docker_build("env:abc").run().assert_code(125);
}

#[test]
fn image_that_is_missing_after_a_build_that_succeeded_ends_with_125() {
    let f = Fixture::new();
    f.steer("STANDIN_NO_IMAGE=1");

    f.docker_build("env:abc").run().assert_code(125).assert_stderr("env:abc");

    assert_eq!(f.build_count("env:abc"), 1);
}

#[test]
fn one_image_of_two_that_is_missing_after_the_build_ends_with_125() {
    let f = Fixture::new();

    let args = ["-t", "env:abc", "-t", "env:def", "--", "docker", "build", "-t", "env:abc", "."];
    let finished = f.buildlock(args).run();

    finished.assert_code(125).assert_stderr("env:def");
    assert!(f.has_image("env:abc"));
}

#[test]
fn cause_of_a_missing_image_is_named() {
    // The build command has another tag.
    let f = Fixture::new();
    let args = ["-t", "env:abc", "--", "docker", "build", "-t", "env:other", "."];
    f.buildlock(args).run().assert_code(125).assert_stderr("env:abc").assert_stderr("env:other");

    // The builder keeps its result to itself.
    let f = Fixture::new();
    f.steer("STANDIN_NO_IMAGE=1");
    let args = ["--", "docker", "buildx", "build", "-t", "env:abc", "."];
    f.buildlock(args).run().assert_code(125).assert_stderr("env:abc").assert_stderr("--load");

    // buildlock cannot see what the build command does.
    let f = Fixture::new();
    let args = ["-t", "env:abc", "--", "true"];
    f.buildlock(args).run().assert_code(125).assert_stderr("env:abc").assert_stderr("another tag");
}

// 126 and 127

#[test]
fn command_that_cannot_be_executed_ends_with_126() {
    let f = Fixture::new();
    std::fs::write(f.work_dir().join("script"), "#!/bin/sh\n").unwrap();

    for command in ["./script", "/", "./"] {
        let args = ["-t", "env:abc", "--", command];
        f.buildlock(args).run().assert_code(126).assert_stderr(command);
    }
    assert_eq!(f.looks(), [] as [&str; 0], "looked before it checked the build command");
}

#[test]
fn command_that_is_not_found_ends_with_127() {
    let f = Fixture::new();

    for command in ["no-such-command", "./no-such-command", "/no/such/command"] {
        let args = ["-t", "env:abc", "--", command];
        f.buildlock(args).run().assert_code(127).assert_stderr(command);
    }
    assert_eq!(f.looks(), [] as [&str; 0], "looked before it checked the build command");
}

// As with env(1): 127 only means that the path does not exist.
#[test]
fn command_whose_path_leads_nowhere_ends_with_126() {
    let f = Fixture::new();
    std::fs::write(f.work_dir().join("file"), "").unwrap();
    std::os::unix::fs::symlink("loop", f.work_dir().join("loop")).unwrap();
    let long = "x".repeat(300);
    for command in ["./file/script", "./loop", &format!("./{long}"), &long] {
        f.buildlock(["-t", "env:abc", "--", command]).run().assert_code(126).assert_stderr(command);
        let env = f.program("env").arg(command).run();
        env.assert_code(126);
    }
    assert_eq!(f.looks(), [] as [&str; 0], "looked before it checked the build command");
}

#[test]
fn script_whose_interpreter_is_missing_does_not_end_with_its_own_status() {
    let f = Fixture::new();
    let script = f.write_executable("work/script", "#!/no/such/interpreter\n");

    let finished = f.buildlock(["-t", "env:abc", "--"]).arg(&script).run();

    assert!(matches!(finished.status.code(), Some(126 | 127)), "{finished}");
    finished.assert_stderr("script");
}

#[test]
fn script_without_an_interpreter_line_runs_as_it_would_in_a_shell() {
    let f = Fixture::new();
    f.write_executable("work/script", "docker build -t env:abc .\n");

    f.buildlock(["-t", "env:abc", "--", "./script"]).run().assert_code(0);

    assert_eq!(f.build_count("env:abc"), 1);
}

// 128+N

#[test]
fn death_of_the_build_command_by_a_signal_is_passed_on() {
    for (name, number) in [("KILL", 9), ("TERM", 15), ("INT", 2), ("HUP", 1), ("SEGV", 11)] {
        let f = Fixture::new();

        let script = format!("ulimit -c 0; kill -s {name} $$");
        let finished = f.buildlock(["-t", "env:abc", "--", "sh", "-c", &script]).run();

        finished.assert_signal(number);
    }
}

#[test]
fn death_by_a_signal_that_the_c_library_keeps_for_itself_is_passed_on() {
    let Some(python) = python() else { return };
    // Tests start programs by posix_spawn(3), which ignores those signals.
    let script = "
import ctypes, os, platform, sys, time
number = int(sys.argv[1])
action = {'x86_64': 13, 'aarch64': 134}[platform.machine()]
ctypes.CDLL(None).syscall(action, number, bytes(64), None, 8)
os.kill(os.getpid(), number)
time.sleep(5)";
    for number in [32, 33, 34, 64] {
        let f = Fixture::new();
        let words = ["-t", "env:abc", "--", python, "-c", script, &number.to_string()];
        f.buildlock(words).run().assert_signal(number);
    }
}

#[test]
fn shell_sees_128_and_the_number_of_the_signal() {
    let f = Fixture::new();

    let finished = f
        .program("sh")
        .args(["-c", "\"$0\" -t env:abc -- sh -c 'kill -s TERM $$'; echo $?"])
        .arg(assert_cmd::cargo::cargo_bin!("buildlock"))
        .run();

    finished.assert_stdout("143\n");
}

#[test]
fn signal_while_waiting_ends_buildlock_by_that_signal() {
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        let f = Fixture::new();
        let _held = f.hold_lock(&f.lock_file("env:abc"));
        let waiter = f.docker_build("env:abc").start();
        f.wait_for_waiters(&f.lock_file("env:abc"), 1);

        waiter.signal(name);

        waiter.wait().assert_signal(number);
        assert_eq!(f.build_events(), []);
    }
}

#[test]
fn signal_while_building_ends_the_build_and_buildlock() {
    for (name, number, status) in [("INT", 2, "130"), ("TERM", 15, "143"), ("HUP", 1, "129")] {
        let f = Fixture::new();
        f.hold_builds();
        let build = f.docker_build("env:abc").start();
        f.wait_for_builds(1);

        build.signal(name);

        build.wait().assert_signal(number);
        let ends: Vec<_> = f.build_events().into_iter().filter_map(|e| e.end).collect();
        assert_eq!(ends, [status], "SIG{name}\n{}", f.scene());
        assert_eq!(f.processes(), [] as [u32; 0], "{}", f.scene());
    }
}

#[test]
fn command_is_found_without_path_where_execvp_finds_it() {
    let f = Fixture::new();
    // Without PATH there is no stand-in. The error about it comes after the build command was
    // found.
    let call = f.buildlock(["-t", "env:abc", "--", "sh", "-c", "exit 4"]);
    let finished = call.env_remove("PATH").env("DOCKER_HOST", "unix:///nowhere").run();
    finished.assert_code(125).assert_stderr("no engine answers at /nowhere");
}

#[test]
fn too_few_descriptors_are_a_failure_of_buildlock_itself() {
    let f = Fixture::new();
    for limit in [5, 12] {
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let path = f.install_buildlock();
        let call = f.program("sh").args(["-c", &script, "sh"]).arg(path);
        let finished = call.args(["-t", "env:abc", "--", "true"]).run();
        finished.assert_code(125).assert_no_stderr("remove it");
    }
}

/// Makes a script for each way in which an interpreter may be broken, with env(1)'s exit status.
fn broken_scripts(f: &Fixture) -> Vec<(std::path::PathBuf, i32, String)> {
    let missing = f.write_executable("missing", "#!/nowhere/sh -e\ntrue\n");
    let plain = f.path("plain");
    std::fs::write(&plain, "").unwrap();
    let says = |what: &str| what.to_owned();
    let crlf = "names the interpreter /bin/sh, ends with a carriage return (CRLF)";
    let nested = format!("#!{}\n", missing.display());
    let denied = |path: &str| format!("its interpreter {path} cannot be executed: Permission");
    vec![
        (missing, 127, says("its interpreter /nowhere/sh is missing")),
        (f.write_executable("crlf", "#!/bin/sh\r\ntrue\r\n"), 127, says(crlf)),
        (
            f.write_executable("nested", &nested),
            127,
            says("its interpreter /nowhere/sh is missing"),
        ),
        (f.write_executable("folder", "#! /usr\n"), 126, denied("/usr")),
        (
            f.write_executable("mode", &format!("#!{}", plain.display())),
            126,
            denied(plain.to_str().unwrap()),
        ),
        (
            f.write_executable("below", &format!("#!{}/sh\n", plain.display())),
            126,
            format!("its interpreter {}/sh cannot be executed: Not a directory", plain.display()),
        ),
    ]
}

#[test]
fn broken_interpreter_is_named_before_any_waiting() {
    let f = Fixture::new();
    let scripts = broken_scripts(&f);
    let held = f.hold_lock(&f.lock_file("env:abc"));
    for (script, status, said) in &scripts {
        f.program("env").arg(script).run().assert_code(*status);
        let done = f.buildlock(["-t", "env:abc", "--"]).arg(script).run();
        done.assert_code(*status).assert_stderr(said).assert_no_stderr("waiting");
        done.assert_no_stderr("No such file");
    }
    drop(held);
    // Nothing is checked that is not needed.
    f.make_image("env:abc");
    for (script, ..) in &scripts {
        f.buildlock(["-t", "env:abc", "--"]).arg(script).run().assert_code(0);
    }
}

#[test]
fn interpreter_of_a_script_in_path_is_named_if_there_is_no_other_program() {
    let f = Fixture::new();
    let call = || f.buildlock(["-t", "env:abc", "--", "tool"]);
    f.install_script("tool", "#!/nowhere/sh\n");
    call().run().assert_code(127).assert_stderr("its interpreter /nowhere/sh is missing");
    std::fs::create_dir(f.path("more")).unwrap();
    f.write_executable("more/tool", "#!/bin/sh\nexec docker build -t env:abc .\n");
    let mut path = f.search_path();
    path.push(":");
    path.push(f.path("more"));
    call().env("PATH", path).run().assert_code(0).assert_stderr("built");
}

#[test]
fn missing_loader_of_a_binary_is_named() {
    let f = Fixture::new();
    let mut binary = std::fs::read("/bin/true").unwrap();
    let Some(name) = binary.windows(4).position(|it| it == b"/ld-") else {
        return skip("needs a /bin/true that is linked dynamically");
    };
    let start = name - binary[..name].iter().rev().take_while(|c| c.is_ascii_graphic()).count();
    let end = name + binary[name..].iter().position(|&c| c == 0).unwrap();
    binary[start + 1..start + 4].copy_from_slice(b"nop");
    let loader = String::from_utf8(binary[start..end].to_vec()).unwrap();
    // Another process writes it, as in write_executable().
    let (source, path) = (f.path("binary.source"), f.path("binary"));
    std::fs::write(&source, binary).unwrap();
    let install =
        std::process::Command::new("install").arg("-m755").args([&source, &path]).status();
    assert!(install.unwrap().success());
    f.program("env").arg(&path).run().assert_code(127);
    let done = f.buildlock(["-t", "env:abc", "--"]).arg(&path).run();
    done.assert_code(127).assert_stderr(&format!("its interpreter {loader} is missing"));
}
