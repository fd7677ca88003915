//! The words of the build command: which images it builds, whether it does more than build, and
//! what buildlock says before it runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::engine::debian13;
use crate::support::{Finished, Fixture, sha256, skip};

/// Runs `buildlock ARGS -- COMMAND`, where the build command is a script that notes its calls.
fn call(f: &Fixture, args: &[&str], command: &[&str]) -> Finished {
    let script = "#!/bin/sh\necho \"${0##*/} $*\" >>\"$STANDIN/called\"\n";
    for program in ["docker-compose", "podman-compose", "bake", "pack", "buildctl", "make"] {
        if command[0] == program {
            f.install_script(program, script);
        }
    }
    f.buildlock(args).arg("--").args(command).run()
}

#[test]
fn command_that_does_more_than_build_is_refused_even_if_its_image_is_present() {
    for command in [
        "docker compose up --build -d",
        "docker compose -f a.yaml --profile x up",
        "docker --context default compose run --build api",
        "docker-compose up",
        "docker-compose -p app push",
        "docker compose pull",
        "docker compose watch",
        "docker push env:abc",
        "docker image push env:abc",
        "docker run env:abc",
        "sudo -n docker run env:abc",
        "podman push env:abc",
    ] {
        let f = Fixture::new();
        f.install_engine("podman");
        f.install_script("sudo", "#!/bin/sh\nshift\nexec \"$@\"\n");
        f.make_image("env:abc");
        f.make_image("localhost/env:abc");
        let words: Vec<_> = command.split(' ').collect();
        let done = call(&f, &["-t", "env:abc"], &words);
        done.assert_code(125).assert_no_stderr(": present");
        let advice = if command.contains("compose") { "build first" } else { "is not run where" };
        done.assert_stderr(advice);
        if command.contains(" up") {
            done.assert_stderr("up --no-build");
        }
        assert!(f.lines("called").is_empty(), "{done}");
    }
}

#[test]
fn push_is_accepted_if_the_image_is_looked_up_in_the_registry() {
    let f = Fixture::new();
    for command in [["docker", "push", "env:abc"], ["docker-compose", "push", "api"]] {
        let done = call(&f, &["--check", "true", "-t", "env:abc"], &["docker", "push", "env:abc"]);
        done.assert_code(0);
        let registry = ["--check", "registry", "-t", "registry.example/env:abc"];
        let done = call(&f, &registry, &command);
        done.assert_no_stderr("does more than build").assert_no_stderr("is not run where");
    }
}

#[test]
fn error_about_a_missing_tag_says_what_to_write() {
    for (command, said) in [
        ("docker build .", "the build command has no -t TAG"),
        ("podman-compose build", "buildlock -t TAG -- podman-compose build SERVICE"),
        ("podman-compose build api", "buildlock -t TAG -- podman-compose build api"),
        ("podman-compose build api worker", "once for each of them"),
        ("pack build env:abc", "buildlock -t TAG -- …"),
        ("make", "buildlock -t TAG -- …"),
    ] {
        let f = Fixture::new();
        let words: Vec<_> = command.split(' ').collect();
        call(&f, &[], &words).assert_code(125).assert_stderr("no tag: ").assert_stderr(said);
    }
    for (script, said) in [
        ("docker build -t env:abc .", "buildlock -t env:abc -- …"),
        ("cd x && A=b docker build -qt env:abc . | cat", "buildlock -t env:abc -- …"),
        ("docker build -t a .; podman build -t b .", "buildlock -t a -t b -- …"),
        ("docker build -t $TAG .", "not a build command that buildlock knows"),
        ("make", "not a build command that buildlock knows"),
    ] {
        let f = Fixture::new();
        for shell in [["sh", "-c"], ["bash", "-ec"]] {
            let done = call(&f, &[], &[shell[0], shell[1], script]);
            done.assert_code(125).assert_stderr("no tag: ").assert_stderr(said);
        }
    }
}

#[test]
fn name_of_the_image_may_be_in_the_output_or_the_manifest() {
    for (command, tags) in [
        ("docker buildx build -o type=image,name=env:abc .", "env:abc"),
        ("docker buildx build -o type=docker,name=env:abc .", "env:abc"),
        ("docker buildx build --output=type=image,\"name=a:1,b:1\" .", "a:1 b:1"),
        ("docker buildx build -o type=registry,name=env:abc .", "env:abc"),
        ("docker buildx build -o type=docker,dest=x,name=no:1 -o type=image,name=a:1 .", "a:1"),
        ("nerdctl build -o type=image,name=env:abc .", "env:abc"),
        // With -t, every client ignores the name in -o.
        ("docker build -t a:1 -o type=image,name=b:1 .", "a:1"),
        ("docker build -o type=image,name=b:1 -t a:1 .", "a:1"),
        ("podman build -t a:1 -o type=local,dest=x,name=b:1 .", "localhost/a:1"),
        ("podman build -t a:1 --manifest b:1 .", "localhost/a:1 localhost/b:1"),
    ] {
        let f = Fixture::new();
        f.install_engine("podman");
        f.install_engine("nerdctl");
        for tag in tags.split(' ') {
            f.make_image(tag);
        }
        let done = f.buildlock(["--"]).args(command.split(' ')).run();
        done.assert_code(0).assert_no_stderr("no tag");
        let present = done.stderr.lines().filter(|line| line.contains(": present")).count();
        assert_eq!(present, tags.split(' ').count(), "{done}");
        for tag in tags.split(' ') {
            done.assert_stderr(&format!("{tag}: present"));
        }
    }
}

#[test]
fn image_id_is_refused_as_a_tag() {
    let id = "a".repeat(64);
    for tag in [&format!("sha256:{id}"), "sha256", "docker.io/library/sha256:1", &id] {
        let f = Fixture::new();
        // An engine that has an image for every id.
        let docker = "#!/bin/sh\ncase $* in image*) echo '[{\"Id\":\"sha256:1\"}]';; esac\n";
        fs::remove_file(f.path("bin/docker")).unwrap();
        f.install_script("docker", docker);
        for words in [&["-t", tag, "--", "true"][..], &["--", "docker", "build", "-t", tag, "."]] {
            f.buildlock(words).run().assert_code(125).assert_no_stderr("present");
        }
    }
}

#[test]
fn container_builder_that_buildx_has_chosen_is_recognised_before_the_build() {
    let f = Fixture::new();
    fs::create_dir_all(f.path("buildx/instances")).unwrap();
    let instance = r#"{"Name":"far","Driver":"docker-container","Nodes":[]}"#;
    fs::write(f.path("buildx/instances/far"), instance).unwrap();
    let current = |text: &str| fs::write(f.path("buildx/current"), text).unwrap();
    let build = |words: &str, variables: &[(&str, &str)]| {
        let words = format!("{words} -t env:abc .");
        let call = f.buildlock(["--"]).args(words.split(' '));
        let call = call.env("BUILDX_CONFIG", f.path("buildx")).env("DOCKER_CONFIG", f.path("conf"));
        variables.iter().fold(call, |call, (name, value)| call.env(name, value)).run()
    };
    let said = "the builder 'far' keeps what it builds to itself";
    let is_refused = |words: &str, variables: &[(&str, &str)]| {
        let builds = f.build_count("env:abc");
        build(words, variables).assert_code(125).assert_stderr(said);
        assert_eq!(f.build_count("env:abc"), builds);
    };
    let is_built = |words: &str, variables: &[(&str, &str)]| {
        let _ = fs::remove_file(f.path("images/env:abc"));
        build(words, variables).assert_code(0).assert_no_stderr("far").assert_stderr("built");
    };

    // The builder was chosen for this engine, known by its address or its context.
    current(r#"{"Key":"unix:///s","Name":"far"}"#);
    is_refused("docker -H unix:///s buildx build", &[]);
    is_refused("docker buildx build", &[("DOCKER_HOST", "unix:///s")]);
    is_built("docker -H unix:///other buildx build", &[]);
    is_built("docker buildx build", &[]);
    is_built("docker buildx build", &[("DOCKER_HOST", "unix:///s"), ("BUILDX_BUILDER", "default")]);
    current(r#"{"Key":"unix:///var/run/docker.sock","Name":"far"}"#);
    is_refused("docker buildx build", &[]);
    is_built("docker buildx build", &[("DOCKER_HOST", "unix:///s")]);
    current(r#"{"Key":"ci","Name":"Far"}"#);
    let refused = build("docker --context ci buildx build", &[]);
    refused.assert_code(125).assert_stderr("the builder 'Far' keeps");
    // Chosen for every engine (--global), or as the default of an engine that is not in use.
    current(r#"{"Key":"ci","Name":"far","Global":true}"#);
    is_refused("docker buildx build", &[]);
    current(r#"{"Key":"ci","Name":""}"#);
    is_built("docker buildx build", &[]);
    let file = &sha256("unix:///var/run/docker.sock")[..20];
    fs::create_dir_all(f.path("buildx/defaults")).unwrap();
    fs::write(f.path("buildx/defaults").join(file), "far").unwrap();
    is_refused("docker buildx build", &[]);
    is_built("docker buildx build --builder near", &[]);
    // Only the output that --load stands for gives the image to the engine.
    for output in ["--push", "-o type=image", "-o type=registry", "-o type=image,push=true"] {
        is_refused(&format!("docker buildx build {output}"), &[]);
    }
    build("docker buildx build --push", &[]).assert_stderr("--load, or look in the registry with");
    build("docker buildx build", &[]).assert_no_stderr("--check registry");
    is_built("docker buildx build -o type=docker", &[]);
    is_built("docker buildx build --load --push", &[]);

    // `docker build` uses it only after `docker buildx install`.
    is_built("docker build", &[]);
    fs::create_dir_all(f.path("conf")).unwrap();
    fs::write(f.path("conf/config.json"), r#"{"aliases":{"builder":"buildx"}}"#).unwrap();
    is_refused("docker build", &[]);
    is_built("docker build", &[("DOCKER_BUILDKIT", "0")]);
    is_built("docker build", &[("DOCKER_BUILDKIT", "0"), ("BUILDX_BUILDER", "far")]);
    fs::remove_file(f.path("conf/config.json")).unwrap();
    is_refused("docker build", &[("BUILDX_BUILDER", "far")]);
    is_built("docker build", &[]);
}

#[test]
fn image_that_vanishes_after_its_build_is_reported_as_removed() {
    let f = Fixture::new();
    fs::remove_file(f.path("bin/docker")).unwrap();
    let docker =
        "#!/bin/sh\n[ $1 != image ] || { echo \"Error: No such image: $3\" >&2; exit 1; }\n";
    f.install_script("docker", docker);
    f.install_script("nerdctl", "#!/bin/sh\nexec docker \"$@\"\n");
    f.install_script(
        "podman",
        "#!/bin/sh\n[ $1 != image ] || exit 1\n[ $1 != manifest ] || exit 1\n",
    );
    let removed = "removed as soon as it was built";
    for (command, said, not_said) in [
        ("docker build -t env:abc .", removed, "--load"),
        ("docker build --push -t env:abc .", removed, "--load"),
        ("docker build -o type=image -t env:abc .", removed, "elsewhere"),
        ("docker build -o type=docker -t env:abc .", "'docker rmi'", "elsewhere"),
        ("docker build -o type=image,name=env:abc .", removed, "elsewhere"),
        ("docker buildx build --load -t env:abc .", removed, "--load)"),
        ("docker buildx build -t env:abc .", "in a container (then add --load)", "far"),
        ("docker build --builder far -t env:abc .", "its builder 'far' may keep", "rmi"),
        ("docker build --builder far --load -t env:abc .", removed, "far'"),
        ("docker build --builder default -t env:abc .", removed, "--load"),
        ("nerdctl build -t env:abc .", "'nerdctl rmi'", "--load"),
        ("podman build -t env:abc .", "(then say -t localhost/env:abc)", "the build command says"),
        ("podman build -t r.example/env:abc .", "'podman rmi'", "short name"),
        ("podman build --manifest r.example/env:abc .", "'podman rmi'", "no tag at all"),
    ] {
        let done = f.buildlock(["--"]).args(command.split(' ')).run();
        done.assert_code(125).assert_stderr(said);
        let end = done.stderr.lines().last().unwrap_or_default();
        assert!(!end.contains(not_said), "{done}");
    }
}

#[test]
fn tag_that_the_build_command_gives_in_other_words_causes_no_warning() {
    for (tag, command) in [
        ("localhost/env:abc", "podman build -t env:abc ."),
        ("env:abc", "podman build -t localhost/env:abc ."),
        ("docker.io/library/env:abc", "docker build -t env:abc ."),
        ("env:abc", "docker build -o type=image,name=env:abc ."),
        ("env:abc", "podman build --manifest env:abc ."),
    ] {
        let f = Fixture::new();
        f.install_engine("podman");
        f.make_image("env:abc");
        f.make_image("localhost/env:abc");
        let done = f.buildlock(["-t", tag, "--"]).args(command.split(' ')).run();
        done.assert_code(0).assert_no_stderr("does not give its image this tag");
    }
    let f = Fixture::new();
    let done = f.buildlock(["-t", "env:abc", "--", "docker", "build", "."]).run();
    done.assert_stderr("does not give its image this tag").assert_stderr("no tag at all");
}

#[test]
fn correction_of_a_misspelt_subcommand_is_suggested() {
    let f = Fixture::new();
    for (typed, meant) in [("statsu", "status"), ("prun", "prune"), ("lnit", "lint")] {
        let done = f.buildlock([typed]).run();
        done.assert_code(125).assert_stderr(&format!("did you mean '{meant}'?"));
        done.assert_stderr("after '--'");
    }
    f.buildlock(["make"]).run().assert_no_stderr("did you mean");
}

#[test]
fn builds_side_by_side_with_one_cache_cause_a_warning() {
    let per_service = Some("give --each");
    for (variables, command, how) in [
        ("", "docker compose build", per_service),
        ("", "docker compose build", Some("COMPOSE_BAKE=false docker compose --parallel 1 build")),
        ("", "docker compose build api worker", per_service),
        ("", "docker compose build api", None),
        ("", "docker compose build --provenance false --builder x api", None),
        // Bake ignores the limit, and Compose has used bake since 2.37.
        ("", "docker compose --parallel 1 build", per_service),
        ("COMPOSE_BAKE=false", "docker compose --parallel 1 build", None),
        ("COMPOSE_BAKE=false", "docker compose --parallel=2 build", per_service),
        ("COMPOSE_BAKE=false COMPOSE_PARALLEL_LIMIT=1", "docker compose build", None),
        ("COMPOSE_PARALLEL_LIMIT=1", "docker compose build", per_service),
        // Version 1 is a script, as the one here.
        ("", "docker-compose build", None),
        ("", "docker-compose build --parallel", Some("leave out --parallel")),
        ("", "podman-compose build", Some("add --parallel 1")),
        ("", "podman-compose --parallel 1 build", None),
        ("COMPOSE_PARALLEL_LIMIT=1", "podman-compose build", None),
        ("", "docker buildx bake", Some("give --each")),
        ("", "docker buildx bake api", None),
        ("", "docker build -t env:abc .", None),
    ] {
        let f = Fixture::new();
        f.install_script("docker-compose", "#!/bin/sh\n");
        f.install_script("podman-compose", "#!/bin/sh\n");
        let build = f.buildlock(["--cache", "cargo", "-t", "env:abc", "--"]);
        let variables = variables.split_whitespace().filter_map(|it| it.split_once('='));
        let build = variables.fold(build, |build, (name, value)| build.env(name, value));
        let done = build.args(command.split(' ')).run();
        match how {
            Some(how) => done.assert_stderr("does not keep them apart").assert_stderr(how),
            None => done.assert_no_stderr("keep them apart"),
        };
    }
}

#[test]
fn docker_compose_that_is_not_a_script_builds_side_by_side() {
    let f = Fixture::new();
    // Any binary will do.
    f.install(Path::new("/bin/true"), "bin/docker-compose");
    let words = ["--cache", "cargo", "-t", "env:abc", "--", "docker-compose", "build"];
    f.buildlock(words).run().assert_stderr("does not keep them apart");
}

#[test]
fn skip_of_a_command_that_pushes_says_that_nothing_is_pushed() {
    for (command, pushes) in [
        ("docker build --push -t env:abc .", true),
        ("docker buildx build --push -t env:abc .", true),
        ("docker buildx build -o type=registry -t env:abc .", true),
        ("docker buildx build -o type=image,push=true -t env:abc .", true),
        ("docker buildx build -o type=image,\"name=env:abc\",push=1 .", true),
        ("docker buildx build -o type=registry,name=env:abc .", true),
        ("docker buildx bake --push api", true),
        ("docker buildx bake --set *.output=type=registry api", true),
        ("docker compose build --push api", true),
        ("docker buildx build --push=false -t env:abc .", false),
        ("docker buildx build -o type=image,push=false -t env:abc .", false),
        ("docker buildx bake api", false),
        ("docker compose build api", false),
    ] {
        let f = Fixture::new();
        f.make_image("env:abc");
        let done = f.buildlock(["-t", "env:abc", "--"]).args(command.split(' ')).run();
        done.assert_code(0).assert_stderr("env:abc: present");
        match pushes {
            true => done.assert_stderr("nothing is pushed").assert_stderr("--check registry"),
            false => done.assert_no_stderr("pushed"),
        };
        assert_eq!(f.build_count("env:abc"), 0);
    }
}

#[test]
fn podmans_short_name_and_its_localhost_name_share_a_lock() {
    for client in ["podman", "buildah"] {
        let f = Fixture::new();
        f.install_engine("podman");
        f.install_script("buildah", BUILDAH);
        f.hold_builds();
        let build = |tag: &str| f.buildlock(["--", client, "build", "-t", tag, "."]);
        let first = build("env:abc").start();
        f.wait_for_builds(1);
        let second = build("localhost/env:abc").start();
        second.wait_for_stderr("localhost/env:abc: waiting for");
        f.let_builds_go(1);
        first.wait().assert_code(0);
        second.wait().assert_code(0).assert_stderr("localhost/env:abc: present");
        assert_eq!(f.build_events().len(), 2, "{}", f.scene());
    }
}

/// buildah in front of the stand-in's podman, since the two share their storage.
const BUILDAH: &str = r#"#!/bin/sh
case " $* " in
*" inspect "*)
    for name; do :; done
    podman image exists "$name" && echo '{"FromImageID":"1","OCIv1":{}}' ||
        { echo "Error: importing settings: $name: image not known" >&2; exit 125; };;
*) exec podman "$@";;
esac
"#;

#[test]
fn buildah_is_recognised_and_asked_itself() {
    for verb in ["build", "bud"] {
        let f = Fixture::new();
        f.install_engine("podman");
        f.install_script("buildah", &BUILDAH.replace("exec podman", "shift; exec podman build"));
        f.make_image("env:abc");
        let call = || f.buildlock(["--", "buildah", verb, "-t", "env:abc", "."]).run();
        // Docker has another image of that name.
        call().assert_code(0).assert_stderr("localhost/env:abc: building");
        call().assert_code(0).assert_stderr("localhost/env:abc: present");
    }
    let f = Fixture::new();
    f.install_script("buildah", "#!/bin/sh\necho 'Error: mkdir: no space left' >&2\nexit 125\n");
    let done = f.buildlock(["--", "buildah", "build", "-t", "env:abc", "."]).run();
    done.assert_code(125).assert_stderr("cannot tell").assert_no_stderr("building");
}

#[test]
fn compose_of_another_engine_is_looked_up_there() {
    let f = Fixture::new();
    let host = format!("unix://{}", f.path("nowhere.sock").display());
    for words in [
        vec!["docker-compose", "-H", &host, "build", "api"],
        vec!["docker-compose", "--host", &host, "-f", "x.yaml", "build", "api"],
        vec!["docker", "-H", &host, "compose", "build", "api"],
    ] {
        f.make_image("env:abc");
        let done = call(&f, &["-v", "-t", "env:abc"], &words);
        done.assert_stderr(&host);
    }
    let done = call(&f, &["-v", "-t", "env:abc"], &["podman-compose", "build", "api"]);
    done.assert_stderr("images are looked up on 'podman'");
}

/// Returns the long flags in a build command's help, and whether each takes a value.
fn flags_in(help: &str) -> Vec<(String, bool)> {
    let flags = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.split_once(", --").map_or(line.strip_prefix("--"), |(short, long)| {
            (short.len() == 2 && short.starts_with('-')).then_some(long)
        })?;
        let name = line.split([' ', '=', '\t']).next()?;
        let rest = &line[name.len()..];
        // A type follows after one space, a description after several.
        let has_type = rest.starts_with(' ') && !rest.starts_with("  ") && rest.len() > 1;
        // A value that may be left out must follow a `=`: string[="true"].
        let is_optional = rest.split_whitespace().next().is_some_and(|kind| kind.contains("[="));
        Some((name.to_owned(), has_type && !is_optional))
    });
    flags.collect()
}

/// Checks that buildlock reads this flag as the client does.
///
/// With the flag, and a value if it takes one, `line` must still be a build of `env:abc`.
fn assert_reads(line: &str, flag: &str, takes_value: bool) {
    // A flag that is taken for the other kind swallows the next word, or leaves its value.
    let value = if takes_value { " -tno:1" } else { "" };
    let line = line.replace("FLAG", &format!("--{flag}{value}"));
    let command = buildlock::command::Command::new(line.split(' ').map(Into::into).collect());
    let tags = command.build().map(|build| build.tags.clone());
    assert_eq!(tags.as_deref(), Some(&["env:abc".to_owned()][..]), "{line}");
}

/// Flags that name the image or replace the build.
const OTHER: [&str; 4] = ["tag", "help", "manifest", "version"];

/// Flags of build commands, those without a value first.
///
/// They come from the sources of buildx (0.13 and of August 2026), docker 28, buildah and podman
/// (of May 2026) and nerdctl 2. So hidden flags, and clients that are not installed, are covered.
const FLAGS: [(&str, &str, &str); 4] = [
    (
        "docker",
        "check compress debug detach disable-content-trust force-rm load no-cache pull push quiet rm \
         squash stream",
        "add-host allow annotation attest build-arg build-context builder cache-from cache-to call \
         cgroup-parent cpu-period cpu-quota cpu-shares cpuset-cpus cpuset-mems file iidfile invoke \
         isolation label memory memory-swap metadata-file network no-cache-filter output platform \
         policy print progress provenance resource root sbom secret security-opt server-config \
         shm-size ssh target ulimit",
    ),
    (
        "podman",
        "all-platforms compat-volumes compress created-annotation disable-compression \
         disable-content-trust force-compression force-rm http-proxy identity-label \
         inherit-annotations inherit-labels layers load log-rusage logsplit no-cache no-hostname \
         no-hosts omit-history pull pull-always pull-never purge quiet rewrite-timestamp rm save-stages \
         skip-unused-stages squash squash-all stage-labels stdin syslog tls-verify trace \
         transient-store",
        PODMAN_VALUES,
    ),
    (
        "buildah",
        "all-platforms compat-volumes compress created-annotation debug disable-compression \
         disable-content-trust force-compression force-rm http-proxy identity-label \
         inherit-annotations inherit-labels layers log-rusage logsplit no-cache no-hostname no-hosts \
         omit-history pull pull-always pull-never purge quiet rewrite-timestamp rm save-stages \
         skip-unused-stages squash stage-labels stdin tls-verify transient-store",
        PODMAN_VALUES,
    ),
    (
        "nerdctl",
        "debug debug-full experimental insecure-registry kube-hide-dupe no-cache pull quiet rm \
         selinux-enabled",
        "add-host address allow attest build-arg build-context buildkit-host cache-from cache-to file \
         iidfile label namespace network output platform progress provenance sbom secret snapshotter \
         source-policy-file ssh target",
    ),
];
const PODMAN_VALUES: &str = "add-host annotation arch authfile blob-cache build-arg build-arg-file \
    build-context cache-from cache-to cache-ttl cap-add cap-drop cdi-config-dir cert-dir \
    cgroup-manager cgroup-parent cgroupns cni-config-dir cni-plugin-path compression-format \
    compression-level cpp-flag cpu-period cpu-quota cpu-shares cpuset-cpus cpuset-mems creds cw \
    decryption-key device dns dns-option dns-search env file format from group-add hooks-dir \
    ignorefile iidfile iidfile-raw ipc isolation jobs label layer-label log-level logfile loglevel \
    memory memory-swap metadata-file mount network os os-feature os-version output pid platform \
    retry retry-delay root runroot runtime runtime-flag rusage-logfile sbom sbom-image-output \
    sbom-image-purl-output sbom-merge-strategy sbom-output sbom-purl-output sbom-scanner-command \
    sbom-scanner-image secret security-opt shm-size sign-by signature-policy source-date-epoch \
    source-policy-file ssh storage-driver storage-opt target timestamp ulimit unsetannotation \
    unsetenv unsetlabel userns userns-gid-map userns-gid-map-group userns-uid-map \
    userns-uid-map-user uts variant volume";

#[test]
fn flags_of_build_commands_are_read_as_their_clients_read_them() {
    for (client, switches, values) in FLAGS {
        for (flags, takes_value) in [(switches, false), (values, true)] {
            assert!(flags.split(' ').count() > 5);
            for flag in flags.split_whitespace() {
                assert_reads(&format!("{client} build FLAG -t env:abc ."), flag, takes_value);
            }
        }
    }
}

/// Flags before the client's subcommand, those without a value first.
const GLOBAL_FLAGS: [(&str, &str, &str); 4] = [
    ("docker", "debug tls tlsverify", "config context host log-level tlscacert tlscert tlskey"),
    (
        "podman",
        "debug noout remote syslog trace transient-store",
        "cdi-spec-dir cgroup-manager config conmon connection context cpu-profile default-mounts-file \
         events-backend hooks-dir host identity imagestore log-level max-workers memory-profile module \
         namespace network-backend network-cmd-path network-config-dir out pull-option \
         registries-conf root runroot runtime runtime-flag ssh storage-driver storage-opt tls-ca \
         tls-cert tls-details tls-key tmpdir url volumepath",
    ),
    (
        "buildah",
        "debug transient-store",
        "cgroup-manager cpu-profile default-mounts-file imagestore log-level memory-profile \
         registries-conf registries-conf-dir root runroot short-name-alias-conf storage-driver \
         storage-opt userns-gid-map userns-uid-map",
    ),
    (
        "nerdctl",
        "debug debug-full experimental insecure-registry kube-hide-dupe selinux-enabled",
        "address bridge-ip cdi-spec-dirs cgroup-manager cni-netconfpath cni-path data-root host \
         host-gateway-ip hosts-dir namespace snapshotter storage-driver userns-remap",
    ),
];

#[test]
fn flags_in_front_of_the_command_are_read_as_their_clients_read_them() {
    for (client, switches, values) in GLOBAL_FLAGS {
        for (flags, takes_value) in [(switches, false), (values, true)] {
            for flag in flags.split_whitespace() {
                assert_reads(&format!("{client} FLAG build -t env:abc ."), flag, takes_value);
            }
        }
    }
}

#[test]
fn flags_are_read_as_the_help_of_the_clients_here_says() {
    let inside = debian13::words_in_front(Path::new("/"));
    let clients = [
        ("docker", "docker FLAG build -t env:abc ."),
        ("/usr/bin/docker", "docker FLAG build -t env:abc ."),
        ("/usr/local/bin/docker", "docker FLAG build -t env:abc ."),
        ("podman", "podman FLAG build -t env:abc ."),
        ("buildah", "buildah FLAG build -t env:abc ."),
        ("docker build", "docker build FLAG -t env:abc ."),
        ("/usr/bin/docker build", "docker build FLAG -t env:abc ."),
        ("/usr/local/bin/docker build", "docker build FLAG -t env:abc ."),
        ("docker buildx build", "docker buildx build FLAG -t env:abc ."),
        ("podman build", "podman build FLAG -t env:abc ."),
        ("buildah build", "buildah build FLAG -t env:abc ."),
        ("nerdctl", "nerdctl FLAG build -t env:abc ."),
        ("nerdctl build", "nerdctl build FLAG -t env:abc ."),
    ];
    let mut seen = 0;
    for front in [Some(Vec::new()), inside.ok()].iter().flatten() {
        for (client, line) in clients {
            let words = front.iter().cloned().chain(client.split(' ').map(Into::into));
            let words: Vec<std::ffi::OsString> = words.collect();
            let mut help = Command::new(&words[0]);
            help.args(&words[1..]).arg("--help").stdin(Stdio::null());
            help.env("DOCKER_BUILDKIT", "1").env("BUILDX_EXPERIMENTAL", "1");
            let Ok(help) = help.output() else { continue };
            let text = String::from_utf8_lossy(&help.stdout);
            // A client without buildx shows another help.
            let is_own = !client.contains(' ') || text.contains(" build [");
            if !help.status.success() || !is_own {
                continue;
            }
            seen += 1;
            let flags = flags_in(&text);
            assert!(flags.len() > 5, "{client}: {text}");
            for (flag, takes_value) in flags.iter().filter(|(flag, _)| !OTHER.contains(&&**flag)) {
                assert_reads(line, flag, *takes_value);
            }
        }
    }
    if seen == 0 {
        skip("there is no client whose help could be read");
    }
}
