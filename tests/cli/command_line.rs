//! How buildlock understands the build command and its own environment.

use std::fs;

use serde_json::Value;

use crate::support::{Finished, Fixture, kernel_locks};

/// Returns a fixture in which programs that run others are scripts that note it.
fn with_wrappers() -> Fixture {
    let f = Fixture::new();
    f.install_engine("podman");
    f.install_engine("nerdctl");
    // Options first, then assignments, then the program: that is all these tests need.
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

/// Returns the tags that buildlock says it builds.
fn tags_built(finished: &Finished) -> Vec<String> {
    let lines = finished.stderr.lines();
    let mut events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let building = events.find(|event| event["event"] == "building");
    let building = building.unwrap_or_else(|| panic!("no build\n{finished}"));
    let tags = building["tags"].as_array().unwrap();
    tags.iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

/// Runs `buildlock -- COMMAND`, which must find and build these tags.
fn assert_inferred(command: &str, tags: &[&str]) {
    let f = with_wrappers();
    let words = command.split(' ').map(|word| word.replace("BIN", f.path("bin").to_str().unwrap()));
    let finished = f.buildlock(["--log-format", "json", "--"]).args(words).run();

    finished.assert_code(0);
    let prefix = |tag: &str| command.contains("podman") && !tag.contains('.');
    let tags = tags.iter().map(|tag| match prefix(tag) {
        true => format!("localhost/{tag}"),
        false => (*tag).to_owned(),
    });
    let tags: Vec<String> = tags.collect();
    assert_eq!(tags_built(&finished), tags, "{finished}");
    for tag in tags {
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
fn tag_of_the_option_comes_before_those_of_the_build_command() {
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
fn build_command_gets_its_arguments_unchanged() {
    let f = Fixture::new();
    let script =
        f.install_script("show", "#!/bin/sh\nprintf '<%s>' \"$@\"\ndocker build -t a:1 .\n");
    let words = ["", " ", "a b", "'", "\"", "$HOME", "*", "--", "-t", "\\", "\n", "ü"];

    let finished = f.buildlock(["-t", "a:1", "--"]).arg(&script).args(words).run();

    let shown: String = words.iter().map(|word| format!("<{word}>")).collect();
    finished.assert_code(0).assert_stdout(shown);
}

#[test]
fn build_command_runs_in_the_same_folder_and_environment() {
    let f = Fixture::new();
    f.install_script("show", "#!/bin/sh\npwd -P\necho \"$MARK\"\ndocker build -t a:1 .\n");

    let finished = f.buildlock(["-t", "a:1", "--", "show"]).env("MARK", "a mark").run();

    let folder = fs::canonicalize(f.work_dir()).unwrap();
    finished.assert_code(0).assert_stdout(format!("{}\na mark\n", folder.display()));
}

// The look-up asks the engine that the build command uses.

/// Returns the words of the first look-up, which follow ` : `.
fn first_look(f: &Fixture) -> String {
    let looks = f.looks();
    let first = looks.first().unwrap_or_else(|| panic!("nobody looked\n{}", f.scene()));
    first.split_once(" : ").unwrap().1.to_owned()
}

#[test]
fn look_up_has_the_global_flags_of_the_build_command() {
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
fn look_up_has_the_environment_of_the_build_command() {
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
fn look_up_lacks_what_env_removes() {
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

/// Returns the client that the look-up uses for a command that names none.
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

// Skips that stand for the build command, and platforms.

#[test]
fn skip_warns_of_what_the_build_would_have_written() {
    for (options, wanted) in [
        (&["--metadata-file", "meta.json"][..], "--metadata-file"),
        (&["--metadata-file=meta.json"], "--metadata-file"),
    ] {
        let f = Fixture::new();
        f.make_image("env:abc");
        let build = ["--", "docker", "build", "-t", "env:abc"];

        let finished = f.buildlock(build.iter().chain(options).chain(&["."])).run();

        finished.assert_code(0).assert_stderr_matches(wanted).assert_stdout("");
        assert_eq!(f.build_count("env:abc"), 0);
    }
}

/// Replaces docker's and podman's `image inspect`: there is an image with this id.
fn engine_with_id(f: &Fixture, client: &str, id: &str) {
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>\"$STANDIN/asked\"\n\
         case \"$1 $2\" in 'image inspect') echo '[{{\"Id\":\"{id}\"}}]';; 'image exists') ;; *) exit 9;; esac\n"
    );
    let _ = fs::remove_file(f.path("bin").join(client));
    f.install_script(client, &script);
}

#[test]
fn skip_writes_the_images_id_as_the_build_would_have() {
    for (client, id, printed, written) in [
        ("docker", "sha256:1f", "sha256:1f\n", "sha256:1f"),
        ("nerdctl", "sha256:1f", "sha256:1f\n", "sha256:1f"),
        ("podman", "1f", "1f\n", "sha256:1f"),
        // The program called docker may be podman.
        ("docker", "1f", "1f\n", "sha256:1f"),
    ] {
        for (options, prints, writes) in [
            (&["-q"][..], true, false),
            (&["--quiet"], true, false),
            (&["--quiet=false"], false, false),
            (&["--iidfile", "id"], false, true),
            (&["-q", "--iidfile=id"], true, true),
            (&["-q", "--iidfile="], true, false),
        ] {
            let f = Fixture::new();
            engine_with_id(&f, client, id);
            let build = ["--", client, "build", "-t", "env:abc"];
            let done = f.buildlock(build.iter().chain(options).chain(&["."])).run();
            done.assert_code(0).assert_stdout(if prints { printed } else { "" });
            done.assert_no_stderr("does not write");
            let file = fs::read_to_string(f.path("work/id")).ok();
            assert_eq!(file.as_deref(), writes.then_some(written), "{done}");
        }
    }
}

#[test]
fn waiter_that_skips_writes_the_images_id_too() {
    let f = Fixture::new();
    f.hold_builds();
    let build = ["--", "docker", "build", "-q", "--iidfile", "id", "-t", "env:abc", "."];
    let first = f.buildlock(build).start();
    f.wait_for_builds(1);
    let second = f.buildlock(build).current_dir(f.path("images")).start();
    f.wait_for_waiters(&f.lock_file("env:abc"), 1);
    f.release_builds();
    first.wait().assert_code(0);
    let second = second.wait();
    second.assert_code(0).assert_stderr("present");
    let id = fs::read_to_string(f.path("images/id")).unwrap();
    second.assert_stdout(format!("{id}\n"));
    assert!(id.starts_with("sha256:"), "{id}");
}

#[test]
fn id_that_is_unknown_or_cannot_be_written_is_reported() {
    let f = Fixture::new();
    engine_with_id(&f, "docker", "sha256:1f");
    let call = |args: &[&str], build: &str| {
        f.buildlock(args).arg("--").args(build.split(' ')).args(["-t", "env:abc", "."]).run()
    };
    let done = call(&["--check", "true"], "docker build -q --iidfile id");
    done.assert_code(0).assert_stdout("").assert_stderr("does not write --iidfile id");
    done.assert_stderr("the image id that -q prints");

    let done = call(&[], "docker build --iidfile nowhere/id");
    done.assert_code(125).assert_stderr("cannot write the image's id to nowhere/id");

    // It is unknown in which folder sudo or env would have run the command.
    for front in ["env -C /tmp", "env --chdir=/tmp"] {
        let done = call(&[], &format!("{front} docker build --iidfile id"));
        done.assert_code(0).assert_stderr("in which folder it would is not known");
    }
    assert!(!f.path("work/id").exists());
    for front in ["stdbuf -i0", "nice -n 1", "env -u C", "timeout -k 1 60"] {
        let done = call(&[], &format!("{front} docker build --iidfile id"));
        done.assert_code(0).assert_no_stderr("not known");
        assert_eq!(fs::read_to_string(f.path("work/id")).unwrap(), "sha256:1f", "{done}");
        fs::remove_file(f.path("work/id")).unwrap();
    }
}

#[test]
fn id_of_an_earlier_build_does_not_stay_if_the_images_id_is_unknown() {
    let f = Fixture::new();
    engine_with_id(&f, "docker", "sha256:1f");
    fs::write(f.path("work/id"), "sha256:0000").unwrap();
    let build = ["docker", "build", "--iidfile", "id", "-t", "env:abc", "."];
    let done = f.buildlock(["--check", "true", "--"]).args(build).run();
    done.assert_code(0).assert_stderr("does not write --iidfile id");
    assert!(!f.path("work/id").exists());
    // Docker removes what is there first, so it does not write through somebody's link.
    fs::write(f.path("work/precious"), "precious\n").unwrap();
    std::os::unix::fs::symlink("precious", f.path("work/id")).unwrap();
    f.buildlock(["--"]).args(build).run().assert_code(0);
    assert_eq!(fs::read_to_string(f.path("work/precious")).unwrap(), "precious\n");
    assert!(!f.path("work/id").is_symlink());
    assert_eq!(fs::read_to_string(f.path("work/id")).unwrap(), "sha256:1f");
    let build = ["docker", "build", "--iidfile", "/dev/stdout", "-t", "env:abc", "."];
    f.buildlock(["--"]).args(build).run().assert_code(0).assert_stdout("sha256:1f");
}

#[test]
fn id_of_several_tags_is_that_of_the_first_and_other_images_cause_a_warning() {
    let f = Fixture::new();
    let _ = fs::remove_file(f.path("bin/docker"));
    let script = "#!/bin/sh\ncase $3 in *:b) id=2b ;; *) id=1f ;; esac\n\
                  echo \"[{\\\"Id\\\":\\\"sha256:$id\\\"}]\"\n";
    f.install_script("docker", script);
    let call = |tags: [&str; 2]| {
        let build = ["--", "docker", "build", "-q", "-t", tags[0], "-t", tags[1], "."];
        f.buildlock(build).run()
    };
    let done = call(["env:b", "env:a"]);
    done.assert_code(0).assert_stdout("sha256:2b\n");
    done.assert_stderr("env:a: another image than env:b, whose id is given");
    let done = call(["env:a", "env:c"]);
    done.assert_code(0).assert_stdout("sha256:1f\n").assert_no_stderr("another image");
}

#[test]
fn skipped_buildah_writes_the_id_in_one_place() {
    let f = Fixture::new();
    f.install_script("buildah", "#!/bin/sh\necho '{\"FromImageID\":\"1f\",\"OCIv1\":{}}'\n");
    let call = |options: &[&str]| {
        let build = ["--", "buildah", "build"].iter().chain(options);
        f.buildlock(build.chain(&["-t", "env:abc", "."])).run()
    };
    call(&["-q"]).assert_code(0).assert_stdout("1f\n");
    call(&["-q", "--iidfile", "id"]).assert_code(0).assert_stdout("");
    assert_eq!(fs::read_to_string(f.path("work/id")).unwrap(), "sha256:1f");
}

#[test]
fn skip_without_anything_to_write_does_not_warn() {
    let f = Fixture::new();
    f.make_image("env:abc");

    f.buildlock(["-q", "--", "docker", "build", "-t", "env:abc", "."]).run().assert_code(0);

    let finished = f.docker_build("env:abc").run();
    assert_eq!(finished.assert_code(0).stderr.lines().count(), 1, "{finished}");
}

#[test]
fn build_writes_what_a_skip_only_warns_of() {
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
}

#[test]
fn image_for_several_platforms_is_built_each_time_where_the_engine_does_not_show_them() {
    for client in ["docker", "nerdctl"] {
        let f = with_wrappers();
        f.make_image("env:abc");
        let platforms = "linux/amd64,linux/arm64";
        let build = ["--", client, "build", "--platform", platforms, "-t", "env:abc", "."];
        for builds in [1, 2] {
            let done = f.buildlock(build).run();
            done.assert_code(0).assert_stderr("does not say whether it is for all of");
            done.assert_stderr(&platforms.replace(',', ", "));
            assert_eq!(f.build_count("env:abc"), builds, "{done}");
        }
        // Said once, even after several looks.
        let done = f.buildlock(build).run();
        assert_eq!(done.stderr.matches("does not say whether").count(), 1, "{done}");
    }
}

#[test]
fn tag_that_podman_gives_to_one_of_several_platforms_may_be_for_any_of_them() {
    for (there, builds) in [("linux/arm64", 0), ("linux/s390x", 1)] {
        let f = with_wrappers();
        fs::create_dir_all(f.path("images/localhost")).unwrap();
        fs::write(f.path("images/localhost/env:abc"), there).unwrap();
        let platforms = ["--platform", "linux/amd64", "--platform=linux/arm64"];
        let build = ["--", "podman", "build", "-t", "env:abc", "."];
        let done = f.buildlock(build.iter().take(3).chain(&platforms).chain(&build[3..])).run();
        done.assert_no_stderr("does not say");
        assert_eq!(f.build_count("localhost/env:abc"), builds, "{done}");
    }
}

#[test]
fn platform_of_podmans_own_flags_counts() {
    let f = with_wrappers();
    f.make_image("localhost/env:abc");
    let build = |flags: &str| {
        let words = format!("podman build {flags} -t env:abc .");
        f.buildlock(["--"]).args(words.split(' ')).run()
    };
    build("--arch amd64").assert_code(0).assert_stderr("present");
    build("--os linux --arch=amd64").assert_code(0).assert_stderr("present");
    // The stand-in does not build for this platform.
    build("--arch arm64").assert_stderr("building").assert_stderr("not for linux/arm64");
    build("--os=windows").assert_stderr("building").assert_stderr("not for windows/");
}

#[test]
fn manifest_list_counts_if_it_has_the_platforms_of_the_build() {
    let ours = if cfg!(target_arch = "x86_64") { "linux/amd64" } else { "linux/arm64" };
    for client in ["podman", "buildah"] {
        let f = with_wrappers();
        f.install_script("buildah", "#!/bin/sh\nexec podman \"$@\"\n");
        let build = |flags: &str| {
            let words = format!("{client} build {flags} --manifest env:abc .");
            f.buildlock(["--"]).args(words.split_whitespace()).run()
        };
        build("--platform linux/s390x").assert_code(0).assert_stderr("building");
        build("--platform linux/s390x").assert_code(0).assert_stderr("present");
        // Another call adds a platform, and the stand-in makes a new list.
        build(&format!("--platform linux/s390x,{ours}")).assert_code(0).assert_stderr("building");
        build(&format!("--platform linux/s390x,{ours}")).assert_code(0).assert_stderr("present");
        build("").assert_code(0).assert_stderr("present");
        assert_eq!(f.build_count("localhost/env:abc"), 2, "{}", f.scene());
        fs::write(f.path("images/localhost/env:abc"), "linux/s390x").unwrap();
        build("").assert_stderr("building");

        f.steer("STANDIN_LOOK_STATUS=125 STANDIN_LOOK_ERR='image is not a manifest list'");
        let done = build("");
        done.assert_code(125).assert_stderr("not a manifest list").assert_no_stderr("building");
    }
}

// The environment of buildlock itself.

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
fn variable_of_the_main_job_does_not_concern_subcommands() {
    let f = Fixture::new();
    for name in ["BUILDLOCK_TIMEOUT", "BUILDLOCK_ENGINE", "BUILDLOCK_ON_FAILURE"] {
        f.buildlock(["status"]).env(name, "nonsense").run().assert_code(0);
        f.buildlock(["path", "env:abc"]).env(name, "nonsense").run().assert_code(0);
    }
    f.buildlock(["status"]).env("BUILDLOCK_LOG_FORMAT", "nonsense").run().assert_code(2);
}

#[test]
fn last_of_a_repeated_option_counts() {
    let f = Fixture::new();
    f.make_image("env:abc");
    f.docker_build("env:abc").run().assert_code(0);
    let options = ["--timeout", "1h", "--timeout", "0s", "-E", "3", "-E", "75"];
    let _held = f.hold_lock(&f.lock_file("env:new"));
    let build = ["--", "docker", "build", "-t", "env:new", "."];
    f.buildlock(options.iter().chain(&build)).run().assert_code(75);
}

#[test]
fn podman_makes_an_image_whatever_its_output_option() {
    let f = Fixture::new();
    f.install_engine("podman");
    let build = ["--", "podman", "build", "-o", "out", "-t", "env:abc", "."];
    f.buildlock(build).run().assert_code(0);
    let skip = f.buildlock(build).run();
    skip.assert_code(0).assert_stderr("does not write -o out");
    assert_eq!(f.build_count("localhost/env:abc").max(f.build_count("env:abc")), 1);
}
