//! What `--if-changed` counts as an input, as `buildlock fingerprint -v` shows it.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::support::{Finished, Fixture, Invocation, python};

/// A docker, buildah or podman that answers questions with the files of a test:
///   image.json    what it shows of each image
///   digest        the digest of each image in its registry; without it, the registry is silent
///   config.N.json the configuration of the image with the tag N in its registry
///   asked         a line for each question to the registry
const CLIENT: &str = r#"
case "$*" in
*"imagetools inspect"*json*)
    for name in "$@"; do
        case $name in */*) cat "$STANDIN/config.${name##*:}.json" && exit ;; esac
    done ;;
*"imagetools inspect"*)
    echo asked >>"$STANDIN/asked"
    exec cat "$STANDIN/digest" ;;
*"version --format"*|*"info --format"*) echo linux/amd64 ;;
*inspect*) exec cat "$STANDIN/image.json" ;;
*) exit 1 ;;
esac
"#;

/// What docker shows of an image.
fn image() -> Value {
    json!([{"Id": "sha256:1", "Os": "linux", "Architecture": "amd64",
            "RootFS": {"Layers": ["sha256:2"]}, "Config": {}}])
}

struct Project {
    f: Fixture,
}

impl Project {
    fn new(dockerfile: &str) -> Self {
        Self::with_client("docker", "", dockerfile)
    }

    fn with_client(name: &str, comment: &str, dockerfile: &str) -> Self {
        let f = Fixture::new();
        _ = fs::remove_file(f.path("bin").join(name));
        f.install_script(name, &format!("#!/bin/sh\n{comment}\n{CLIENT}"));
        let it = Project { f };
        it.write("context/Dockerfile", dockerfile);
        it.write("context/file", "content\n");
        it.write("image.json", image().to_string());
        it
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.f.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Prepares `buildlock fingerprint OPTIONS -- COMMAND CONTEXT`.
    fn call(&self, options: &str, command: &str) -> Invocation<'_> {
        let call = self.f.buildlock(["fingerprint"]).args(options.split_whitespace());
        let call = call.arg("--").args(command.split_whitespace()).arg(self.f.path("context"));
        call.env("DOCKER_CONFIG", self.f.path("config")).env("DOCKER_BUILDKIT", "1")
    }

    fn explain(&self, command: &str) -> String {
        text(&self.call("-v", command).run())
    }

    fn value(&self, command: &str) -> String {
        text(&self.call("", command).run())
    }
}

#[track_caller]
fn text(run: &Finished) -> String {
    run.assert_code(0);
    String::from_utf8(run.stdout.clone()).unwrap()
}

#[track_caller]
fn assert_has(text: &str, part: &str) {
    assert!(text.contains(part), "no {part:?} in:\n{text}");
}

#[test]
fn builder_of_its_own_finds_base_images_in_the_registry() {
    const LOCAL: &str = "h/base:1, local, ";
    const REMOTE: &str = "h/base:1, in its registry, sha256:3";
    const EITHER: &str = ", or in its registry, sha256:3";
    let it = Project::new("FROM h/base:1\n");
    it.write("digest", "sha256:3\n");
    let explain = |command: &str, variables: &[(&str, &str)]| {
        let call = it.call("-v", command);
        text(&variables.iter().fold(call, |call, (name, value)| call.env(name, value)).run())
    };
    let named = ("BUILDX_BUILDER", "own");
    let legacy = ("DOCKER_BUILDKIT", "0");
    for (command, variables, expected) in [
        ("docker build", &[][..], LOCAL),
        ("docker buildx build", &[], LOCAL),
        ("docker build", &[named], EITHER),
        ("docker build", &[named, legacy], LOCAL),
        ("docker build --builder own", &[], EITHER),
        ("docker buildx build", &[named], REMOTE),
        ("docker buildx build", &[named, legacy], REMOTE),
        ("docker buildx --builder own build", &[], REMOTE),
        ("docker buildx build --builder default", &[named], LOCAL),
        ("docker buildx build --builder here", &[("DOCKER_CONTEXT", "here")], LOCAL),
        ("docker buildx build --builder there", &[("DOCKER_CONTEXT", "here")], REMOTE),
        // Another user's configuration may choose another one.
        ("env -u X docker build", &[], LOCAL),
        ("env -u X docker build", &[named], EITHER),
        ("env -u X docker buildx build", &[], EITHER),
        ("env -u X docker buildx build --builder default", &[], LOCAL),
    ] {
        let said = explain(command, variables);
        assert!(said.contains(expected), "{command} {variables:?}: no {expected} in\n{said}");
        assert!(!said.contains("never skipped"), "{command}\n{said}");
    }
    it.write("config/buildx/instances/chosen", "{}");
    it.write("config/buildx/current", r#"{"Name":"chosen","Global":true}"#);
    assert_has(&explain("docker build", &[]), LOCAL);
    assert_has(&explain("docker buildx build", &[]), REMOTE);
    it.write("config/config.json", r#"{"aliases":{"builder":"buildx"}}"#);
    assert_has(&explain("docker build", &[]), EITHER);
    // It builds for the platform of its own machine.
    assert_has(&explain("docker buildx build", &[]), "built by buildkit chosen");
    let named = explain("docker buildx build --platform linux/arm64", &[]);
    assert_has(&named, "linux/arm64, built by buildkit\n");
}

#[test]
fn base_that_only_the_platform_of_an_unknown_builder_tells_is_never_skipped() {
    let of_builder = |dockerfile: &str| {
        let it = Project::new(dockerfile);
        it.write("digest", "sha256:3\n");
        text(&it.call("-v", "docker buildx build").env("BUILDX_BUILDER", "own").run())
    };
    assert_has(&of_builder("FROM h/base:$BUILDARCH\n"), "never skipped: ");
    let same = of_builder("FROM --platform=$BUILDPLATFORM h/base:1\n");
    assert_has(&same, "h/base:1, in its registry");
    assert!(!same.contains("never skipped"), "{same}");
}

#[test]
fn buildkit_takes_no_base_image_for_another_platform() {
    let it = Project::new("FROM h/base:1\n");
    it.write("digest", "sha256:3\n");
    let mut other = image();
    other[0]["Architecture"] = "arm64".into();
    it.write("image.json", other.to_string());
    // It may take it if its machine can run it, and then it counts as well.
    assert_has(&it.explain("docker build"), ", or in its registry, sha256:3");
    let said = it.explain("docker build --platform linux/arm64");
    assert_has(&said, "h/base:1, local");
    assert!(!said.contains("in its registry"), "{said}");
    let legacy = it.call("-v", "docker build").env("DOCKER_BUILDKIT", "0").run();
    let said = text(&legacy);
    assert!(said.contains("h/base:1, local") && !said.contains("in its registry"), "{said}");
}

#[test]
fn base_image_without_a_platform_is_not_known() {
    let it = Project::new("FROM h/base:1\n");
    let mut image = image();
    image[0].as_object_mut().unwrap().remove("Os");
    it.write("image.json", image.to_string());
    assert_has(&it.explain("docker build"), "does not say for which platform it is");
}

#[test]
fn registry_that_does_not_answer_is_asked_once() {
    let it = Project::new("FROM h/base:1\nFROM h/base:2\nCOPY --from=h/base:3 / /\n");
    let call = it.call("-v", "docker buildx build").env("BUILDX_BUILDER", "own");
    assert_has(&text(&call.run()), "never skipped: h/base:1");
    assert_eq!(it.f.lines("asked").len(), 1);
}

#[test]
fn platform_that_is_not_known_is_never_skipped() {
    let it = Project::new("FROM scratch\nCOPY file /\n");
    for platform in ["mips64", "riscv", "windows", "linux/amd64,wasm"] {
        let said = it.explain(&format!("docker build --platform {platform}"));
        assert_has(&said, "never skipped: buildlock does not know the platform");
    }
    for platform in ["linux/mips64", "windows/amd64"] {
        let said = it.explain(&format!("docker build --platform {platform}"));
        assert!(!said.contains("never skipped"), "{said}");
    }
}

#[test]
fn another_client_is_another_builder_unless_a_variable_says_which() {
    let it = Project::new("FROM scratch\nCOPY file /\n");
    let values = || {
        let unset = it.call("", "docker build").env_remove("DOCKER_BUILDKIT").run();
        [text(&unset), it.value("docker build")]
    };
    let before = values();
    assert_eq!(values(), before);
    let plugin = "config/cli-plugins/docker-buildx";
    it.write(plugin, "a plugin");
    let after = values();
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1], before[1]);
    let client = fs::read_to_string(it.f.path("bin/docker")).unwrap();
    it.f.install_script("docker", &(client + "\n# another version\n"));
    assert_ne!(values()[0], after[0]);
}

#[test]
fn link_that_leads_out_of_its_folder_is_never_skipped() {
    for name in ["Dockerfile", ".dockerignore", "Dockerfile.dockerignore"] {
        let it = Project::new("FROM scratch\nCOPY file /\n");
        let context = it.f.path("context");
        it.write("outside", if name == "Dockerfile" { "FROM scratch\n" } else { "x\n" });
        it.write("context/inside", fs::read(it.f.path("outside")).unwrap());
        for (target, never) in
            [("inside".into(), false), ("../outside".into(), true), (context.join("inside"), true)]
        {
            _ = fs::remove_file(context.join(name));
            symlink(&target, context.join(name)).unwrap();
            let said = it.explain("docker build");
            let expected = "is a link that leads out of its folder";
            assert_eq!(said.contains(expected), never, "{name}: {}\n{said}", target.display());
        }
    }
}

// The caller may be able to read what the owner of the link is not.
#[test]
fn link_that_leads_out_of_its_folder_is_not_read() {
    for name in ["Dockerfile", ".dockerignore"] {
        let it = Project::new("FROM scratch\nCOPY file /\n");
        it.write("outside", "TOKEN=s3cret[\n");
        _ = fs::remove_file(it.f.path("context").join(name));
        symlink("../outside", it.f.path("context").join(name)).unwrap();
        let run = it.call("-v", "docker build").run();
        let said = text(&run) + &run.stderr;
        assert!(said.contains("never skipped") && !said.contains("s3cret"), "{said}");
        let before = it.value("docker build");
        it.write("outside", "other\n");
        assert_eq!(it.value("docker build"), before);
    }
}

// A lease (fcntl(2), F_SETLEASE) lets nobody open the file until its holder gives it back.
#[test]
fn input_with_a_lease_is_an_error_that_says_so() {
    let Some(python) = python() else { return };
    let it = Project::new("FROM scratch\nCOPY file /\n");
    let script = "import fcntl, signal, sys\n\
        signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
        file = open(sys.argv[1], 'r+')\n\
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
        print('leased', flush=True)\n\
        signal.pause()\n";
    for name in ["Dockerfile", "file"] {
        let path = it.f.path("context").join(name);
        let lease = it.f.program(python).args(["-c", script]).arg(&path).start();
        it.f.wait_for("the lease", || lease.stdout() == "leased\n");
        it.call("", "docker build").run().assert_code(125).assert_stderr("has a lease on it");
        lease.signal("KILL");
        lease.wait();
    }
}

#[test]
fn names_and_words_are_escaped() {
    let it = Project::new("FROM \u{1b}[2J$Y\nCOPY . /\n");
    it.write("context/a\n1234567890abcdef  forged", "");
    it.write("context/\u{1b}]0;owned\u{7}", "");
    let said = it.explain("docker build");
    assert_has(&said, "a\\n1234567890abcdef  forged");
    assert_has(&said, "never skipped: buildlock cannot tell which image \\u{1b}[2J");
    let diff = it.call("--diff", "docker build -t a").run();
    let all = said + &String::from_utf8_lossy(&diff.stdout) + &diff.stderr;
    assert_has(&all, "always built: ");
    assert!(!all.replace('\n', "").contains(char::is_control), "{all:?}");
}

#[test]
fn file_that_the_build_command_writes_is_not_an_input() {
    let it = Project::new("FROM scratch\nCOPY . /\n");
    let context = it.f.path("context").display().to_string();
    let command =
        format!("docker build --iidfile {context}/id --metadata-file={context}/new/meta.json");
    fs::create_dir(it.f.path("context/new")).unwrap();
    let before = it.value(&command);
    it.write("context/id", "sha256:1");
    it.write("context/new/meta.json", "{}");
    assert_eq!(it.value(&command), before);
    assert_ne!(it.value("docker build"), before);
}

#[test]
fn docker_that_is_podman_has_podmans_rules() {
    let it = Project::with_client("docker", "# exec podman \"$@\"", "FROM scratch\nCOPY . /\n");
    assert_has(&it.explain("docker build"), "built by buildah");
    it.write("context/.containerignore", "file\n");
    let before = it.value("docker build");
    it.write("context/file", "other\n");
    assert_eq!(it.value("docker build"), before);
    let several = it.call("", "docker build --platform linux/amd64,linux/arm64 -t a").run();
    several.assert_code(125).assert_stderr("podman's images for several platforms");
}

#[test]
fn base_image_of_podman_that_may_have_triggers_is_never_skipped() {
    let it = Project::with_client("podman", "", "FROM localhost/base:1\n");
    let show = |steps: &[&str]| {
        let mut image = image();
        image[0]["History"] = steps.iter().map(|step| json!({"created_by": step})).collect();
        it.write("image.json", image.to_string());
        it.explain("podman build")
    };
    let plain = show(&["ADD file:1 in /"]);
    assert_has(&plain, "localhost/base:1, local, ");
    assert!(!plain.contains("never skipped"), "{plain}");
    assert_ne!(show(&["ADD file:1 in /", "SHELL [\"/bin/ash\"]"]), plain);
    let triggers = show(&["ADD file:1 in /", "/bin/sh -c #(nop) ONBUILD COPY . /x"]);
    assert_has(&triggers, "never skipped: podman does not show the ONBUILD instructions");
}

#[test]
fn buildah_that_asks_the_registry_for_newer_base_images_is_never_skipped() {
    const WHY: &str = "never skipped: buildah may ask the registry";
    let oci = json!({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {}});
    let image = json!({"FromImageID": "1", "OCIv1": oci, "Docker": oci}).to_string();
    for (dockerfile, command, never) in [
        ("FROM h/base:1\n", "buildah bud", true),
        ("FROM h/base:1\n", "buildah build --pull", true),
        ("FROM h/base:1\n", "buildah build --pull=missing --pull=true", true),
        ("FROM h/base:1\n", "buildah build --pull=false", false),
        ("FROM h/base:1\n", "buildah bud --pull=missing", false),
        ("FROM h/base:1\n", "buildah bud --pull-never", false),
        ("FROM scratch\nCOPY file /\n", "buildah bud", false),
    ] {
        let it = Project::with_client("buildah", "", dockerfile);
        it.write("image.json", &image);
        let said = it.explain(command);
        assert_eq!(said.contains("never skipped"), never, "{command} {dockerfile}\n{said}");
        assert!(!never || command.contains("--pull") || said.contains(WHY), "{said}");
    }
}

#[test]
fn mount_of_the_context_shows_buildah_what_is_ignored() {
    let run = "RUN --mount=type=bind,target=/src cp /src/ignored /\n";
    for (step, counts) in [(run, true), ("COPY . /\n", false)] {
        let it = Project::with_client("buildah", "", &format!("FROM scratch\n{step}"));
        it.write("context/.dockerignore", "ignored\n");
        it.write("context/ignored", "1");
        let before = it.value("buildah bud");
        it.write("context/ignored", "2");
        assert_eq!(it.value("buildah bud") != before, counts, "{step}");
    }
}

#[test]
fn tags_of_several_images_in_a_registry_are_not_up_to_date() {
    let it = Project::new("FROM scratch\nCOPY file /\n");
    let words = "docker buildx build -t h/a:1 -t h/a:2";
    let diff = || it.call("--diff --check registry", words).run();
    let label = it.value(words);
    let push = |tag: &str, layer: &str| {
        let image = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [layer]},
                           "config": {"Labels": {"buildlock.inputs": label.trim()}}});
        it.write(&format!("config.{tag}.json"), image.to_string());
    };
    push("1", "sha256:1");
    push("2", "sha256:1");
    diff().assert_code(0).assert_stdout("");
    push("2", "sha256:2");
    diff().assert_code(1).assert_stdout("h/a:2: its tags are several images\n");
}

#[test]
fn several_dockerfiles_are_never_skipped_and_need_not_be_whole() {
    let it = Project::with_client("podman", "", "FROM scratch\n");
    it.write("context/rest", "COPY file /\n");
    let at = |name: &str| it.f.path("context").join(name).display().to_string();
    let command = format!("podman build -f {} -f {}", at("Dockerfile"), at("rest"));
    assert_has(&it.explain(&command), "never skipped: it has several Dockerfiles");
}
