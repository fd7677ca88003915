//! What buildlock makes of COMMAND and of its own environment.

mod common;

use std::fs;

use common::{Finished, Fixture, kernel_locks};
use serde_json::Value;

/// A fixture in which programs that run others are scripts that write down that they did.
fn with_wrappers() -> Fixture {
    let f = Fixture::new();
    f.install_engine("podman");
    f.install_engine("nerdctl");
    // Options first, then assignments, then the program; as far as the tests go.
    let wrapper = "#!/bin/sh\n\
        echo \"${0##*/} $*\" >>\"${0%/*}/../wrappers.log\"\n\
        while :; do\n\
            case $1 in\n\
            -u | -g | -f | -o | --user) shift 2 ;;\n\
            --) shift; break ;;\n\
            -*) shift ;;\n\
            *=*) export \"$1\"; shift ;;\n\
            *) break ;;\n\
            esac\n\
        done\n\
        exec \"$@\"\n";
    f.install_script("sudo", wrapper);
    f.install_script("time", wrapper);
    f
}

/// The tags that buildlock says it builds.
fn tags_built(finished: &Finished) -> Vec<String> {
    let lines = finished.stderr.lines();
    let mut events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let building = events.find(|event| event["event"] == "building");
    let building = building.unwrap_or_else(|| panic!("no build\n{finished}"));
    let tags = building["tags"].as_array().unwrap();
    tags.iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

/// Runs `buildlock -- COMMAND`, which must infer and build these tags.
fn assert_inferred(command: &str, tags: &[&str]) {
    let f = with_wrappers();
    let words = command.split(' ').map(|word| word.replace("BIN", f.path("bin").to_str().unwrap()));
    let finished = f.buildlock(["--log-format", "json", "--"]).args(words).run();

    finished.assert_code(0);
    assert_eq!(tags_built(&finished), tags, "{finished}");
    for tag in tags {
        let prefix =
            if command.contains("podman") && !tag.contains('.') { "localhost/" } else { "" };
        let tag = format!("{prefix}{tag}");
        assert!(f.has_image(&tag), "{tag}\n{}", f.scene());
        assert_eq!(f.build_count(&tag), 1, "{}", f.scene());
    }
}

#[test]
fn tag_is_inferred_however_it_is_written() {
    for options in [
        "-t env:abc .",
        "--tag env:abc .",
        "--tag=env:abc .",
        "-tenv:abc .",
        "-t=env:abc .",
        "-qt env:abc .",
        "-qtenv:abc .",
        ". -t env:abc",
        "-f Dockerfile -t env:abc --pull .",
        "--network none --no-cache -t env:abc .",
        "--label -t -t env:abc .",
        "--build-arg --tag=x -t env:abc .",
        "-t docker.io/library/env:abc .",
    ] {
        assert_inferred(&format!("docker build {options}"), &["env:abc"]);
    }
}

#[test]
fn all_tags_are_inferred_in_sorted_order() {
    assert_inferred("docker build -t env:b --tag=env:a -tenv:c .", &["env:a", "env:b", "env:c"]);
    assert_inferred("docker build -t env -t docker.io/library/env:latest .", &["env:latest"]);
    assert_inferred("docker build -t ghcr.io/a/b -t env .", &["env:latest", "ghcr.io/a/b:latest"]);
}

#[test]
fn tag_is_inferred_from_every_form_of_the_build_command() {
    for command in [
        "docker image build",
        "docker buildx build",
        "docker buildx b",
        "docker builder build",
        "docker --context c build",
        "docker --context=c image build",
        "docker -c c -H tcp://127.0.0.1:1 --config /nowhere buildx build",
        "docker -D --log-level debug build",
        "BIN/docker build",
        "podman build",
        "podman image build",
        "podman --log-level debug build",
        "nerdctl build",
        "nerdctl --namespace k8s.io build",
        "nerdctl image build",
    ] {
        assert_inferred(&format!("{command} -t env:abc ."), &["env:abc"]);
    }
}

#[test]
fn tag_is_inferred_behind_programs_that_run_others() {
    for wrapper in [
        "sudo",
        "sudo -E -n",
        "sudo -u root -g root",
        "sudo --user=root --",
        "sudo A=b",
        "env",
        "env A=b C=d",
        "env -u A B=c",
        "nice",
        "nice -n 5",
        "nice -5",
        "time",
        "time -p",
        "time -o /dev/null",
        "timeout 60",
        "timeout -k 5 --signal=TERM 60",
        "nohup",
        "BIN/sudo -n",
        "sudo env A=b nice -n 5 time",
        "stdbuf -oL",
    ] {
        assert_inferred(&format!("{wrapper} docker build -t env:abc ."), &["env:abc"]);
    }
    assert_inferred("sudo podman build -t env:abc .", &["env:abc"]);
}

#[test]
fn tag_of_the_option_comes_before_those_of_command() {
    let f = Fixture::new();
    f.hold_builds();
    let args = ["-t", "env:a", "--", "docker", "build", "-t", "env:a", "-t", "env:b", "."];

    let build = f.buildlock(args).start();
    f.wait_for_builds(2);

    assert_eq!(f.wait_for_holder(&f.lock_file("env:a")), build.pid());
    assert_eq!(kernel_locks(&f.lock_file("env:b")), []);
    f.release_builds();
    build.wait().assert_code(0);
}

#[test]
fn unknown_program_needs_a_tag() {
    let f = Fixture::new();
    f.install_script("make-image", "#!/bin/sh\nexec docker build -t env:abc .\n");

    f.buildlock(["--", "make-image"]).run().assert_code(125).assert_stderr("-t");
    assert_eq!(f.build_events(), []);

    f.buildlock(["-t", "env:abc", "--", "make-image"]).run().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 1);
}

#[test]
fn command_gets_its_arguments_untouched() {
    let f = Fixture::new();
    let script =
        f.install_script("show", "#!/bin/sh\nprintf '<%s>' \"$@\"\ndocker build -t a:1 .\n");
    let words = ["", " ", "a b", "'", "\"", "$HOME", "*", "--", "-t", "\\", "\n", "ü"];

    let finished = f.buildlock(["-t", "a:1", "--"]).arg(&script).args(words).run();

    let shown: String = words.iter().map(|word| format!("<{word}>")).collect();
    finished.assert_code(0).assert_stdout(shown);
}

#[test]
fn command_runs_in_the_same_folder_and_environment() {
    let f = Fixture::new();
    f.install_script("show", "#!/bin/sh\npwd -P\necho \"$MARK\"\ndocker build -t a:1 .\n");

    let finished = f.buildlock(["-t", "a:1", "--", "show"]).env("MARK", "a mark").run();

    let folder = fs::canonicalize(f.work_dir()).unwrap();
    finished.assert_code(0).assert_stdout(format!("{}\na mark\n", folder.display()));
}

// The look-up asks the engine that COMMAND builds on.

/// The words of the first look-up, behind ` : `.
fn first_look(f: &Fixture) -> String {
    let looks = f.looks();
    let first = looks.first().unwrap_or_else(|| panic!("nobody looked\n{}", f.scene()));
    first.split_once(" : ").unwrap().1.to_owned()
}

#[test]
fn look_up_carries_the_global_flags_of_command() {
    for (globals, engine) in [
        (&["--context", "ci"][..], "docker"),
        (&["--context=ci", "-H", "ssh://build@ci", "--config", "/some/where"], "docker"),
        (&["-Htcp://127.0.0.1:1", "--tls"], "docker"),
        (&["--url", "ssh://ci", "--log-level=warn"], "podman"),
        (&["--namespace", "k8s.io"], "nerdctl"),
    ] {
        let f = with_wrappers();
        let build = ["build", "-t", "env:abc", "."];

        f.buildlock(["--", engine].iter().chain(globals).chain(&build)).run().assert_code(0);

        let look = first_look(&f);
        let wanted = format!("{engine} {} image ", globals.join(" "));
        assert!(look.starts_with(&wanted), "{look}\nis not {wanted}");
        assert_eq!(
            f.lines("args.log"),
            [format!("{engine} {} build -t env:abc .", globals.join(" "))]
        );
    }
}

#[test]
fn look_up_has_the_environment_of_command() {
    let f = Fixture::new();

    let build = f.docker_build("env:abc");
    build.env("DOCKER_HOST", "tcp://127.0.0.1:1").env("STANDIN_MARK", "outer").run().assert_code(0);

    let look = &f.looks()[0];
    assert!(look.contains("STANDIN_MARK=outer DOCKER_HOST=tcp://127.0.0.1:1 "), "{look}");
}

#[test]
fn look_up_has_the_environment_that_env_sets() {
    let f = Fixture::new();
    let command =
        ["env", "STANDIN_MARK=inner", "DOCKER_CONTEXT=ci", "docker", "build", "-tenv", "."];

    f.buildlock(["--"].iter().chain(&command)).env("STANDIN_MARK", "outer").run().assert_code(0);

    let look = &f.looks()[0];
    assert!(look.contains("STANDIN_MARK=inner ") && look.contains("DOCKER_CONTEXT=ci "), "{look}");
}

#[test]
fn look_up_lacks_what_env_takes_away() {
    for taken_away in [&["-u", "STANDIN_MARK"][..], &["--unset=STANDIN_MARK"]] {
        let f = Fixture::new();
        let command = ["docker", "build", "-t", "env", "."];

        let build = f.buildlock(["--", "env"].iter().chain(taken_away).chain(&command));
        build.env("STANDIN_MARK", "outer").run().assert_code(0);

        assert!(f.looks()[0].contains("STANDIN_MARK= "), "{:?}", f.looks());
    }
}

#[test]
fn look_up_goes_through_sudo() {
    let f = with_wrappers();
    let command =
        ["sudo", "-n", "-u", "root", "docker", "--context", "ci", "build", "-tenv:abc", "."];

    f.buildlock(["--"].iter().chain(&command)).run().assert_code(0);

    let wrapped = f.lines("wrappers.log");
    assert!(wrapped[0].starts_with("sudo -n -u root docker --context ci image "), "{wrapped:?}");
    assert_eq!(first_look(&f).split(" image ").next(), Some("docker --context ci"));
}

#[test]
fn look_up_does_not_go_through_wrappers_that_change_nothing() {
    let f = with_wrappers();

    let args = ["--", "time", "-p", "docker", "build", "-t", "env:abc", "."];
    f.buildlock(args).run().assert_code(0);

    assert_eq!(f.lines("wrappers.log"), ["time -p docker build -t env:abc ."]);
}

#[test]
fn engine_is_asked_with_an_explicit_tag() {
    for (tag, wanted) in [("env", "env:latest"), ("deadbeef", "deadbeef:latest")] {
        let f = Fixture::new();
        f.docker_build(tag).run().assert_code(0);
        assert!(first_look(&f).ends_with(&format!(" {wanted}")), "{:?}", f.looks());
    }
}

#[test]
fn podman_is_asked_by_its_own_name_for_the_image() {
    for (tag, wanted) in [
        ("env:abc", "localhost/env:abc"),
        ("env", "localhost/env:latest"),
        ("alice/env:abc", "localhost/alice/env:abc"),
        ("localhost/env:abc", "localhost/env:abc"),
        ("ghcr.io/a/b:c", "ghcr.io/a/b:c"),
    ] {
        let f = with_wrappers();

        let args = ["--", "podman", "build", "-t", tag, "."];
        f.buildlock(args).run().assert_code(0);

        assert_eq!(first_look(&f), format!("podman image exists {wanted}"));
        f.buildlock(args).run().assert_code(0);
        assert_eq!(f.build_count(wanted), 1, "{}", f.scene());
    }
}

#[test]
fn failure_of_podman_is_not_missing() {
    let f = with_wrappers();
    f.steer("STANDIN_LOOK_STATUS=125 STANDIN_LOOK_ERR='Error: unable to connect to Podman socket'");

    let finished = f.buildlock(["--", "podman", "build", "-t", "env:abc", "."]).run();

    finished.assert_code(125).assert_stderr("unable to connect to Podman socket");
    assert_eq!(f.build_events(), []);
}

#[test]
fn failure_of_nerdctl_is_not_missing() {
    let f = with_wrappers();
    f.steer("STANDIN_LOOK_STATUS=1 STANDIN_LOOK_ERR='cannot access containerd socket'");

    let finished = f.buildlock(["--", "nerdctl", "build", "-t", "env:abc", "."]).run();

    finished.assert_code(125).assert_stderr("cannot access containerd socket");
    assert_eq!(f.build_events(), []);
}

#[test]
fn nerdctl_skips_an_image_that_is_present() {
    let f = with_wrappers();
    let args = ["--", "nerdctl", "build", "-t", "env:abc", "."];

    f.buildlock(args).run().assert_code(0);
    f.buildlock(args).run().assert_code(0);

    assert_eq!(f.build_count("env:abc"), 1);
}

/// Which client a command that says nothing of it is looked up with.
fn engine_asked(args: &[&str], variable: Option<&str>, command: &[&str]) -> String {
    let f = with_wrappers();
    f.steer("STANDIN_DOWN=1");
    let mut build = f.buildlock(args.iter().chain(&["-t", "env:abc", "--"]).chain(command));
    if let Some(engine) = variable {
        build = build.env("BUILDLOCK_ENGINE", engine);
    }
    build.run().assert_code(125);
    first_look(&f).split(' ').next().unwrap().to_owned()
}

#[test]
fn engine_is_the_one_that_was_chosen() {
    let podman = ["podman", "build", "-t", "env:abc", "."];
    assert_eq!(engine_asked(&[], None, &["true"]), "docker");
    assert_eq!(engine_asked(&["--engine", "podman"], None, &["true"]), "podman");
    assert_eq!(engine_asked(&["--engine=nerdctl"], None, &["true"]), "nerdctl");
    assert_eq!(engine_asked(&[], Some("podman"), &["true"]), "podman");
    assert_eq!(engine_asked(&["--engine", "docker"], Some("podman"), &["true"]), "docker");
    assert_eq!(engine_asked(&[], None, &podman), "podman");
    assert_eq!(engine_asked(&["--engine", "docker"], None, &podman), "docker");
}

// What a skip leaves out, and platforms.

#[test]
fn skip_says_what_it_leaves_out() {
    for (options, wanted) in [
        (&["--iidfile", "id"][..], "--iidfile"),
        (&["--iidfile=id"], "--iidfile"),
        (&["--metadata-file", "meta.json"], "--metadata-file"),
        (&["-q"], "-q"),
        (&["--quiet"], "-q|--quiet"),
    ] {
        let f = Fixture::new();
        f.make_image("env:abc");
        let build = ["--", "docker", "build", "-t", "env:abc"];

        let finished = f.buildlock(build.iter().chain(options).chain(&["."])).run();

        finished.assert_code(0).assert_stderr_matches(wanted).assert_stdout("");
        assert_eq!(f.build_count("env:abc"), 0);
    }
}

#[test]
fn skip_that_leaves_out_nothing_says_nothing_of_it() {
    let f = Fixture::new();
    f.make_image("env:abc");

    f.buildlock(["-q", "--", "docker", "build", "-t", "env:abc", "."]).run().assert_code(0);

    let finished = f.docker_build("env:abc").run();
    assert_eq!(finished.assert_code(0).stderr.lines().count(), 1, "{finished}");
}

#[test]
fn build_writes_what_a_skip_would_leave_out() {
    let f = Fixture::new();
    let args = ["--", "docker", "build", "-q", "--iidfile", "id", "-t", "env:abc", "."];

    let finished = f.buildlock(args).run();

    finished.assert_code(0).assert_stdout(format!("sha256:{:064}\n", 0));
    assert!(f.path("work/id").exists());
}

#[test]
fn image_of_another_platform_is_not_present() {
    let f = Fixture::new();
    f.make_image("env:abc");
    let build = |platform| ["--", "docker", "build", "--platform", platform, "-t", "env:abc", "."];

    f.buildlock(build("linux/amd64")).run().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 0);

    f.buildlock(build("linux/arm64")).run().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 1);

    f.buildlock(build("linux/arm64")).run().assert_code(0);
    assert_eq!(f.build_count("env:abc"), 1);

    // Of several an engine may have any one.
    f.buildlock(build("linux/amd64,linux/s390x")).run().assert_code(0).assert_stderr("present");
    assert_eq!(f.build_count("env:abc"), 1);
}

// buildlock's own environment.

#[test]
fn time_limit_comes_from_the_environment_and_flags_win() {
    let f = Fixture::new();
    let held = f.hold_lock(&f.lock_file("env:abc"));

    f.docker_build("env:abc").env("BUILDLOCK_TIMEOUT", "0s").run().assert_code(124);

    let args = ["-w", "none", "--", "docker", "build", "-t", "env:abc", "."];
    let patient = f.buildlock(args).env("BUILDLOCK_TIMEOUT", "0s").start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);
    drop(held);
    patient.wait().assert_code(0);
}

#[test]
fn limit_of_the_build_comes_from_the_environment_and_flags_win() {
    let f = Fixture::new();
    f.hold_builds();
    let run = |args: &[&str]| {
        let command = ["--", "docker", "build", "-t", "env:abc", "."];
        f.buildlock(args.iter().chain(&command)).env("BUILDLOCK_BUILD_TIMEOUT", "200ms").start()
    };

    run(&[]).wait().assert_code(124);

    f.steer("STANDIN_SLEEP=0.4");
    let builds = f.build_count("env:abc");
    let patient = run(&["--build-timeout", "none"]);
    f.wait_for_builds(builds + 1);
    f.release_builds();
    patient.wait().assert_code(0);
}

#[test]
fn what_to_do_on_failure_comes_from_the_environment_and_flags_win() {
    for (args, builds) in [(&[][..], 1), (&["--on-failure", "retry"], 2)] {
        let f = Fixture::new();
        f.steer("STANDIN_BUILD_STATUS=3");
        f.hold_builds();
        let start = || {
            let command = ["--", "docker", "build", "-t", "env:abc", "."];
            f.buildlock(args.iter().chain(&command)).env("BUILDLOCK_ON_FAILURE", "share").start()
        };
        let first = start();
        f.wait_for_builds(1);
        let second = start();
        f.wait_for_waiters(&f.lock_file("env:abc"), 1);
        f.release_builds();

        first.wait().assert_code(3);
        second.wait().assert_code(3);
        assert_eq!(f.build_count("env:abc"), builds, "{}", f.scene());
    }
}

#[test]
fn lock_folder_comes_from_the_environment_and_flags_win() {
    let f = Fixture::new();
    f.docker_build("env:abc").run().assert_code(0);
    assert!(f.lock_file("env:abc").exists());

    let other = f.path("other");
    let build = ["--", "docker", "build", "-t", "env:def", "."];
    f.buildlock(["--lock-dir"]).arg(&other).args(build).run().assert_code(0);
    assert!(!f.lock_file("env:def").exists());
    assert!(other.join("image-locks").is_dir());
}

#[test]
fn empty_variables_count_as_unset() {
    let f = Fixture::new();
    let mut build = f.docker_build("env:abc");
    for name in ["TIMEOUT", "BUILD_TIMEOUT", "ON_FAILURE", "ENGINE", "LOG", "LOG_FORMAT"] {
        build = build.env(&format!("BUILDLOCK_{name}"), "");
    }

    build.run().assert_code(0).assert_stderr("buildlock: env:abc");
}

#[test]
fn log_format_comes_from_the_environment_and_flags_win() {
    let f = Fixture::new();
    f.make_image("env:abc");
    let run = |args: &[&str]| {
        let command = ["--", "docker", "build", "-t", "env:abc", "."];
        f.buildlock(args.iter().chain(&command)).env("BUILDLOCK_LOG_FORMAT", "json").run()
    };

    assert!(run(&[]).assert_code(0).stderr.starts_with('{'));
    assert!(run(&["--log-format", "text"]).assert_code(0).stderr.starts_with("buildlock: "));
}

#[test]
fn variable_for_building_is_nothing_to_other_subcommands() {
    let f = Fixture::new();
    for name in ["BUILDLOCK_TIMEOUT", "BUILDLOCK_ENGINE", "BUILDLOCK_ON_FAILURE"] {
        f.buildlock(["status"]).env(name, "nonsense").run().assert_code(0);
        f.buildlock(["path", "env:abc"]).env(name, "nonsense").run().assert_code(0);
    }
    f.buildlock(["status"]).env("BUILDLOCK_LOG_FORMAT", "nonsense").run().assert_code(2);
}

#[test]
fn of_an_option_that_is_given_twice_the_last_counts() {
    let f = Fixture::new();
    f.make_image("env:abc");
    f.docker_build("env:abc").run().assert_code(0);
    let options = ["--timeout", "1h", "--timeout", "0s", "-E", "3", "-E", "75"];
    let _held = f.hold_lock(&f.lock_file("env:new"));
    let build = ["--", "docker", "build", "-t", "env:new", "."];
    f.buildlock(options.iter().chain(&build)).run().assert_code(75);
}

#[test]
fn podman_makes_its_image_whatever_its_output_says() {
    let f = Fixture::new();
    f.install_engine("podman");
    let build = ["--", "podman", "build", "-o", "out", "-t", "env:abc", "."];
    f.buildlock(build).run().assert_code(0);
    let skip = f.buildlock(build).run();
    skip.assert_code(0).assert_stderr("does not write -o out");
    assert_eq!(f.build_count("localhost/env:abc").max(f.build_count("env:abc")), 1);
}
