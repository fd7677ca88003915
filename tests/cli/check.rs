//! `--check`: a user's command that says whether the image is present, and registries that are
//! asked through clients.

use std::fs;

use crate::support::{Finished, Fixture};

const TAG: &str = "registry.example/env:abc";

/// Runs `buildlock --check CHECK -t TAG -- sh -c COMMAND`, where COMMAND notes that it ran.
fn run(f: &Fixture, check: &str, command: &str) -> Finished {
    let command = format!("echo built >>{}; {command}", f.path("built").display());
    f.buildlock(["--check", check, "-t", TAG, "--", "sh", "-c", &command]).run()
}

fn builds(f: &Fixture) -> usize {
    f.lines("built").len()
}

#[test]
fn command_that_ends_with_0_means_present() {
    let f = Fixture::new();
    run(&f, "true", "true").assert_code(0).assert_stderr("present (--check command)");
    let json = f.buildlock(["--log-format", "json", "-t", TAG, "--", "false"]);
    let json = json.env("BUILDLOCK_CHECK", "exit 0").run();
    json.assert_code(0)
        .assert_stderr("\"check\":\"command\"")
        .assert_stderr("\"event\":\"present\"");
    assert_eq!(builds(&f), 0);
    assert!(f.looks().is_empty(), "the engine was asked");
}

#[test]
fn command_that_ends_with_1_means_missing() {
    let f = Fixture::new();
    let there = f.path("there");
    let check = format!(
        "echo \"$BUILDLOCK_TAG\" >>{}; test -e {}",
        f.path("asked").display(),
        there.display()
    );
    let done = run(&f, &check, &format!("touch {}", there.display()));
    done.assert_code(0).assert_stderr("built");
    assert_eq!(builds(&f), 1, "{done}");
    // Asked before the lock, under it, and after the build, with the canonical name.
    assert_eq!(f.lines("asked"), [TAG; 3]);
    run(&f, &check, "true").assert_code(0).assert_stderr("present");
    assert_eq!(builds(&f), 1);
}

#[test]
fn image_still_missing_after_success_is_an_error() {
    let f = Fixture::new();
    let done = run(&f, "exit 1", "true");
    done.assert_code(125).assert_stderr("--check").assert_stderr(TAG);
    assert_eq!(builds(&f), 1, "{done}");
}

#[test]
fn command_that_ends_in_any_other_way_is_an_error_and_runs_once() {
    for (end, said) in [
        ("exit 2", "status 2"),
        ("exit 126", "status 126"),
        ("exit 255", "status 255"),
        ("no-such-program-anywhere", "status 127"),
        ("regsitry", "status 127"),
        ("(", "status 2"),
        ("kill -9 $$", "by a signal"),
        ("kill -TERM $$", "by a signal"),
    ] {
        let f = Fixture::new();
        let check = match end {
            "(" | "regsitry" => end.to_owned(),
            _ => {
                format!("echo asked >>{}; echo what it says >&2; {end}", f.path("asked").display())
            }
        };
        let done = run(&f, &check, "true");
        done.assert_code(125).assert_stderr("the command of --check").assert_stderr(said);
        if check != end {
            done.assert_stderr("what it says");
            assert_eq!(f.lines("asked").len(), 1, "{done}");
        }
        assert_eq!(builds(&f), 0, "{done}");
    }
}

#[test]
fn command_and_all_that_it_has_started_end_with_buildlock() {
    for (signal, number) in [("KILL", 9), ("TERM", 15), ("INT", 2)] {
        for there in ["", "touch there;"] {
            let f = Fixture::new();
            // During the first look, and during the last one, after a build.
            let check = format!(
                "[ -n '{there}' ] && [ ! -e there ] && exit 1; \
                 sh -c 'echo $$ >{}; exec sleep 600' | cat; exit 0",
                f.path("pid").display()
            );
            let command = format!("{there} true");
            let words = ["--check", &check, "-t", TAG, "--", "sh", "-c", &command];
            let waiting = f.buildlock(words).start();
            let pid = f.wait_for_file("pid").trim().parse().unwrap();
            waiting.signal(signal);
            f.wait_for_death(pid);
            waiting.wait().assert_signal(number);
        }
    }
}

#[test]
fn command_never_has_signals_blocked() {
    let f = Fixture::new();
    let (masks, there) = (f.path("masks"), f.path("there"));
    // The shell itself is looked at, since dash unblocks all signals for its children.
    let check = format!(
        "while read name value; do case $name in SigBlk:) echo $value >>{};; esac; done \
         </proc/self/status; test -e {}",
        masks.display(),
        there.display()
    );
    run(&f, &check, &format!("touch {}", there.display())).assert_code(0);
    // Asked before the lock, under it, and after the build.
    assert_eq!(f.lines("masks"), ["0000000000000000"; 3]);
}

#[test]
fn only_the_build_command_gets_stdin_and_stdout() {
    let f = Fixture::new();
    let there = f.path("there");
    let check = format!("cat; echo of the check; test -e {}", there.display());
    let command = format!("cat; touch {}", there.display());
    let words = ["--check", &check, "-t", TAG, "--", "sh", "-c", &command];
    let done = f.buildlock(words).stdin("of the command\n").run();
    done.assert_code(0).assert_stdout("of the command\n").assert_no_stderr("of the check");
}

#[test]
fn every_tag_is_checked_and_one_missing_is_enough_to_build() {
    let f = Fixture::new();
    let there = f.path("there");
    let check = format!("[ \"$BUILDLOCK_TAG\" = env:one ] || test -e {}", there.display());
    let command = format!("echo built >>{}; touch {}", f.path("built").display(), there.display());
    let build = || {
        let words =
            ["--check", &check, "-t", "env:one", "-t", "env:two", "--", "sh", "-c", &command];
        f.buildlock(words).run()
    };
    build().assert_code(0).assert_stderr("built");
    build().assert_code(0).assert_stderr("env:one: present").assert_stderr("env:two: present");
    assert_eq!(builds(&f), 1);
}

#[test]
fn waiters_skip_once_the_command_says_that_the_image_is_present() {
    let f = Fixture::new();
    let there = f.path("there");
    let check = format!("test -e {}", there.display());
    f.hold_builds();
    let start = || {
        let command = format!("docker build -t {TAG} . && touch {}", there.display());
        f.buildlock(["--check", &check, "-t", TAG, "--", "sh", "-c", &command]).start()
    };
    let first = start();
    f.wait_for_builds(1);
    let others: Vec<_> = (0..5).map(|_| start()).collect();
    f.wait_for_waiters(&f.lock_file(TAG), 5);
    f.release_builds();
    first.wait().assert_code(0).assert_stderr("built");
    for other in others {
        other.wait().assert_code(0).assert_stderr("present");
    }
    assert_eq!(f.build_count(TAG), 1);
}

#[test]
fn recipe_of_the_guide_does_not_take_a_half_written_file_for_the_image() {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/multi-host.md"));
    let guide = guide.unwrap();
    let (_, section) = guide.split_once("\n### Something other than a registry\n").unwrap();
    let recipe = section.split("```").nth(1).unwrap().strip_prefix("sh\n").unwrap();

    let f = Fixture::new();
    let images = f.path("of-all");
    fs::create_dir(&images).unwrap();
    f.write_docker(
        "[ $1 != build ] || { echo built >>\"$STANDIN/built\"; exit; }; echo half; \
         echo saving >\"$STANDIN/saving\"; read -r _ <\"$STANDIN/gate\"; echo whole",
    );
    f.hold_builds();
    let recipe = recipe.replace("/srv/images", images.to_str().unwrap());
    let recipe = recipe.replace("buildlock ", "\"$BUILDLOCK\" ");
    let start = || {
        let buildlock = assert_cmd::cargo::cargo_bin!("buildlock");
        f.program("sh").args(["-c", &recipe]).env("BUILDLOCK", buildlock).start()
    };
    let first = start();
    f.wait_for_file("saving");
    let second = start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);
    f.release_builds();
    first.wait().assert_code(0).assert_stderr("built");
    second.wait().assert_code(0).assert_stderr("present");
    assert_eq!(builds(&f), 1);
    let files: Vec<_> = fs::read_dir(&images).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files, [images.join("env:abc.tar")]);
    assert_eq!(fs::read_to_string(&files[0]).unwrap(), "half\nwhole\n");
}

#[test]
fn build_command_is_judged_by_where_the_image_must_be() {
    let warns = "does not push";
    for (check, words, code, said) in [
        ("registry", &["-o", "out"][..], 125, Some("pushes no image: -o out")),
        ("registry", &["-o", "type=tar,dest=x"], 125, Some("pushes no image")),
        ("registry", &["--check"], 125, Some("builds no image")),
        ("registry", &[], 1, Some(warns)),
        ("registry", &["--load"], 1, Some(warns)),
        ("registry", &["-o", "type=image"], 1, Some(warns)),
        ("registry", &["-o", "type=image,push=false"], 1, Some(warns)),
        ("registry", &["--push"], 1, None),
        ("registry", &["-o", "type=registry"], 1, None),
        ("registry", &["-o", "type=image,push=true"], 1, None),
        ("registry", &["-o", "out", "--push"], 1, None),
        ("exit 1", &["-o", "out"], 1, None),
        ("exit 1", &["--push"], 1, None),
        ("local", &["-o", "out"], 125, Some("makes no image on the engine")),
        ("local", &["--push"], 1, None),
        ("local", &["-o", "type=docker"], 1, None),
    ] {
        let f = Fixture::new();
        // The build fails, so there is no other message.
        f.write_docker(
            "case \"$*\" in *' inspect '*) echo \"ERROR: $NAME: not found\" >&2; \
                        echo \"Error: No such image: $NAME\" >&2;; esac; exit 1",
        );
        let command = ["--", "docker", "build", "-t", TAG].iter().chain(words).chain(&["."]);
        let done = f.buildlock(["--check", check]).args(command).env("NAME", TAG).run();
        done.assert_code(code);
        match said {
            Some(said) => done.assert_stderr(said),
            None => done.assert_no_stderr(warns).assert_no_stderr("--load"),
        };
    }
}

#[test]
fn builder_in_a_container_is_recognised_whatever_the_case_of_its_file() {
    let rejected = Some("keeps what it builds to itself");
    for (instance, said) in [
        (r#"{"Name":"far","Driver":"docker-container","Nodes":[{"DriverOpts":null}]}"#, rejected),
        (r#"{"name":"far","driver":"docker-container"}"#, rejected),
        (r#"{"Driver":"docker","DRIVER":"docker-container"}"#, rejected),
        (r#"{"DRIVER":"docker-container","Driver":"docker"}"#, None),
        (r#"{"driver":"docker-container","nodes":[{"driverOpts":{"default-load":"true"}}]}"#, None),
        (
            r#"{"Driver":"docker-container","Nodes":[{"DriverOpts":{"Default-Load":"true"}}]}"#,
            rejected,
        ),
    ] {
        let f = Fixture::new();
        fs::create_dir_all(f.path("buildx/instances")).unwrap();
        fs::write(f.path("buildx/instances/far"), instance).unwrap();
        let build = ["--", "docker", "build", "--builder", "far", "-t", "env:abc", "."];
        let run = f.buildlock(build).env("BUILDX_CONFIG", f.path("buildx")).run();
        match said {
            Some(said) => run.assert_code(125).assert_stderr(said).assert_stderr("'far'"),
            None => run.assert_code(0).assert_no_stderr("'far'"),
        };
    }
}

#[test]
fn client_that_misses_another_image_than_the_one_asked_for_is_an_error() {
    for (said, code) in [
        ("Error: No such image: env:abc", 7),
        ("Error response from daemon: no such image: env:abc: No such image: env:abc", 7),
        ("Error: No such image: other:1", 125),
        ("Error: No such image: env:abcd", 125),
        ("Error: base:1: image not known", 125),
    ] {
        let f = Fixture::new();
        f.write_docker(&format!("[ \"$1\" != image ] || {{ echo '{said}' >&2; exit 1; }}; exit 7"));
        let run = f.docker_build("env:abc").run();
        run.assert_code(code);
        if code == 125 {
            run.assert_stderr("cannot tell whether the image is present").assert_stderr(said);
        }
    }
}

#[test]
fn tag_without_a_registry_is_looked_up_at_docker_hub_with_a_warning() {
    let f = Fixture::new();
    f.write_docker("echo \"$*\" >>\"$STANDIN/asked\"; exit 0");
    let look = |tag: &str| f.buildlock(["--check", "registry", "-t", tag, "--", "false"]).run();
    let warning = "env:abc: names no registry, so it is looked up as docker.io/library/env:abc";
    look("env:abc").assert_code(0).assert_stderr(warning);
    look("docker.io/library/env:abc").assert_code(0).assert_no_stderr("names no registry");
    look(TAG).assert_code(0).assert_no_stderr("names no registry");
    let asked = ["docker.io/library/env:abc", "docker.io/library/env:abc", TAG];
    assert_eq!(f.lines("asked"), asked.map(|name| format!("buildx imagetools inspect {name}")));
}

#[test]
fn buildx_is_asked_as_the_build_command_calls_it_and_with_its_builder() {
    let f = Fixture::new();
    let inspected = r#"{"linux/arm64":{"os":"linux","architecture":"arm64"}}"#;
    f.write_docker(&format!(
        "echo \"$*\" >>\"$STANDIN/asked\"; case \"$*\" in *imagetools*) echo '{inspected}';; esac"
    ));
    let build = |platform: &str| {
        let front = ["--check", "registry", "--", "docker", "-H", "tcp://h:1", "buildx", "build"];
        let back = ["--builder", "far", "--push", "--platform", platform, "-t", TAG, "."];
        f.buildlock(front).args(back).run()
    };
    build("linux/arm64").assert_code(0).assert_stderr("present");
    let words = "-H tcp://h:1 buildx --builder far imagetools inspect";
    assert_eq!(f.lines("asked"), [format!("{words} {TAG} --format {{{{json .Image}}}}")]);
    let other = build("linux/amd64");
    other.assert_code(125).assert_stderr("building").assert_stderr("is an image for linux/arm64");
}

#[test]
fn image_in_the_registry_must_be_for_all_platforms_of_the_build_command() {
    let both = r#"{"linux/amd64":{"os":"linux","architecture":"amd64"},"linux/arm64":{"os":"linux","architecture":"arm64"}}"#;
    let one = r#"{"os":"linux","architecture":"amd64"}"#;
    for platforms in
        [&["--platform", "linux/amd64,linux/arm64"][..], &["--platform=amd64", "--platform=arm64"]]
    {
        for (there, code, said) in [
            (both, 0, "present (--check registry)"),
            (
                one,
                125,
                "is an image for linux/amd64, not for linux/arm64, which the build command is for",
            ),
            ("", 125, "does not say whether it is for linux/amd64, linux/arm64"),
        ] {
            let f = Fixture::new();
            let script =
                "case \"$*\" in *imagetools*) echo \"$THERE\";; *) echo >>$STANDIN/built;; esac";
            f.write_docker(script);
            let front = ["--check", "registry", "--", "docker", "buildx", "build", "--push"];
            let done = f.buildlock(front).args(platforms).args(["-t", TAG, "."]);
            let done = done.env("THERE", there).run();
            done.assert_code(code).assert_stderr(said);
            assert_eq!(builds(&f), usize::from(there == one), "{done}");
        }
    }
}

#[test]
fn client_that_says_anything_but_not_found_is_an_error() {
    for said in [
        "",
        "docker: 'buildx' is not a docker command.",
        "ERROR: registry.example/env:abcd: not found",
        "ERROR: failed to authorize: 401 Unauthorized",
        "ERROR: docker.io/library/env:abc: not found",
    ] {
        let f = Fixture::new();
        f.write_docker(&format!("echo \"{said}\" >&2; exit 1"));
        let done = run(&f, "registry", "true");
        done.assert_code(125).assert_stderr("give --check a command");
        assert_eq!(builds(&f), 0, "{done}");
    }
    let f = Fixture::new();
    f.write_docker(&format!("echo 'ERROR: {TAG}: not found' >&2; exit 1"));
    run(&f, "registry", "exit 7").assert_code(7);
    assert_eq!(builds(&f), 1);
}

#[test]
fn image_without_a_known_platform_is_an_error_if_the_build_command_names_one() {
    let f = Fixture::new();
    f.write_docker("exit 0");
    let words =
        ["--check", "registry", "--", "docker", "build", "--push", "--platform", "linux/amd64"];
    let done = f.buildlock(words).args(["-t", TAG, "."]).run();
    done.assert_code(125).assert_stderr("linux/amd64").assert_no_stderr("building");
}

#[test]
fn nerdctl_is_refused_before_any_waiting() {
    let f = Fixture::new();
    f.install_engine("nerdctl");
    let _held = f.hold_lock(&f.lock_file(TAG));
    for words in [&["--force"][..], &[]] {
        let done = f.buildlock(["--check", "registry", "-t", TAG]).args(words);
        let done = done.args(["--", "nerdctl", "build", "-t", TAG, "."]).run();
        done.assert_code(125).assert_stderr("nerdctl cannot ask a registry");
    }
}

#[test]
fn empty_check_is_refused_and_an_empty_variable_counts_as_unset() {
    let f = Fixture::new();
    f.make_image("env:abc");
    let look = |words: &[&str], variable: &str| {
        let words = words.iter().chain(&["-t", "env:abc", "--", "false"]);
        f.buildlock(words).env("BUILDLOCK_CHECK", variable).run()
    };
    look(&["--check", " "], "").assert_code(125).assert_stderr("local, registry, or a command");
    look(&[], "").assert_code(0).assert_stderr("env:abc: present, nothing to build");
    look(&[], " ").assert_code(125).assert_stderr("BUILDLOCK_CHECK");
    look(&["--check", "local"], "exit 2").assert_code(0).assert_no_stderr("--check");
    let words = ["--log-format", "json", "-t", "env:abc", "--", "false"];
    f.buildlock(words).run().assert_code(0).assert_no_stderr("\"check\"");
}

impl Fixture {
    /// Puts a script in docker's place.
    fn write_docker(&self, text: &str) {
        fs::remove_file(self.path("bin/docker")).unwrap();
        self.install_script("docker", &format!("#!/bin/sh\n{text}\n"));
    }
}
