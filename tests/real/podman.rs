//! The main job on a real podman, which keeps everything in the test's folder.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::support::engine::{
    all_output, count, debian13, end_steps, root_archive, runs_step, skip, static_busybox,
};
use crate::support::registry::{AUTH, Registry};
use crate::support::{self, Finished, Fixture, Invocation, Running, send_signal};

mod if_changed;

const BASE: &str = "localhost/buildlock-test-base:1";

/// Podman with storage of its own.
struct Podman {
    f: Fixture,
    place: Place,
}

/// Which podman.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The one in PATH.
    Machine,
    Debian13,
}

/// Runs a test with each podman that runs here, and says so in one line where one does not.
fn with_podman(test: impl Fn(&Podman)) {
    static USABLE: [OnceLock<Result<(), String>>; 2] = [OnceLock::new(), OnceLock::new()];
    for place in [Place::Machine, Place::Debian13] {
        match USABLE[place as usize].get_or_init(|| is_usable(place)) {
            Ok(()) => test(&Podman::new(place).unwrap()),
            // A podman that answers must also be able to build.
            Err(reason) if reason.contains("cannot build") => skip(reason),
            Err(reason) => support::skip(reason),
        }
    }
}

fn is_usable(place: Place) -> Result<(), String> {
    if let Place::Debian13 = place {
        debian13::words_in_front(Path::new("/"))?;
    }
    if static_busybox().is_none() {
        return Err("no static busybox to make a base image from".to_owned());
    }
    let podman = Podman::empty(place);
    for (words, reason) in [("--version", "is not installed"), ("info", "cannot run here")] {
        if !podman.ask([words]).status.success() {
            return Err(format!("podman {reason} ({place:?})"));
        }
    }
    let built = Podman::new(place).and_then(|podman| podman.try_build());
    built.map_err(|error| format!("podman ({place:?}) cannot build: {}", error.replace('\n', " ")))
}

impl Podman {
    /// Makes an empty storage.
    fn empty(place: Place) -> Self {
        let podman = Self { f: Fixture::new(), place };
        // Not every test machine allows the defaults: more open files and processes, and another
        // kind of control groups.
        let limits = r#"default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]"#;
        let containers = format!("[containers]\n{limits}\n[engine]\nruntime = \"runc\"\n");
        fs::write(podman.f.path("containers.conf"), containers).unwrap();
        podman
    }

    /// Makes a storage with the base image.
    fn new(place: Place) -> Result<Self, String> {
        let podman = Self::empty(place);
        let archive = podman.f.path("root.tar");
        fs::write(&archive, root_archive()).unwrap();
        let output = podman.ask(["import", archive.to_str().unwrap(), BASE]);
        if output.status.success() { Ok(podman) } else { Err(format!("{output:?}")) }
    }

    fn try_build(&self) -> Result<(), String> {
        let output =
            self.ask(&self.build_words("probe", &self.recipe("true"))[self.flags().len()..]);
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    }

    /// Returns the global flags that keep podman in the test's folder.
    fn flags(&self) -> Vec<String> {
        let storage = self.f.path("storage");
        let mut words = vec!["podman".to_owned()];
        for (flag, folder) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            words.extend([flag.to_owned(), storage.join(folder).to_str().unwrap().to_owned()]);
        }
        // vfs works on every file system, and leaves no mounts behind.
        let rest = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"];
        words.extend(rest.map(str::to_owned));
        words
    }

    fn words_in_front(&self) -> Vec<OsString> {
        match self.place {
            Place::Machine => Vec::new(),
            Place::Debian13 => debian13::words_in_front(&self.f.work_dir()).unwrap(),
        }
    }

    fn variables(&self) -> Vec<(&'static str, OsString)> {
        match self.place {
            Place::Machine => Vec::new(),
            Place::Debian13 => vec![
                ("CONTAINERS_CONF", self.f.path("containers.conf").into()),
                ("PODMAN_IGNORE_CGROUPSV1_WARNING", "1".into()),
            ],
        }
    }

    /// Runs podman for the test itself.
    fn ask<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        let mut podman = Command::new("timeout");
        podman.args(["--kill-after", "5", "60"]).args(self.words_in_front());
        podman.args(self.flags()).args(args).envs(self.variables());
        podman.stdin(Stdio::null()).output().unwrap()
    }

    fn has(&self, name: &str) -> bool {
        let output = self.ask(["image", "exists", name]);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        output.status.success()
    }

    /// Makes a folder with a Dockerfile whose last step runs these shell commands.
    fn recipe(&self, commands: &str) -> PathBuf {
        let context = tempfile::Builder::new().prefix("context-").tempdir_in(self.f.work_dir());
        let context = context.unwrap().keep();
        let id = "cat /proc/sys/kernel/random/uuid >/id";
        let dockerfile = format!("FROM {BASE}\nLABEL buildlock-test=1\nRUN {id}; {commands}\n");
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        context
    }

    /// Returns `podman ... build -t TAG CONTEXT`.
    fn build_words(&self, tag: &str, context: &Path) -> Vec<String> {
        let mut words = self.flags();
        let build = ["build", "--network", "none", "--no-cache", "-t", tag];
        words.extend(build.map(str::to_owned));
        words.push(context.to_str().unwrap().to_owned());
        words
    }

    /// Prepares a program that runs where podman is.
    fn program(&self, program: impl AsRef<OsStr>) -> Invocation<'_> {
        let mut words = self.words_in_front();
        words.push(program.as_ref().to_owned());
        let invocation = self.f.program(&words[0]).args(&words[1..]);
        self.variables().into_iter().fold(invocation, |it, (name, value)| it.env(name, value))
    }

    /// Prepares `buildlock ARGS` with the real programs in PATH, logging JSON.
    fn buildlock<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation<'_> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let buildlock = self.program(assert_cmd::cargo::cargo_bin!("buildlock"));
        buildlock.args(["--log-format", "json"]).args(args).env("PATH", path)
    }

    /// Returns `buildah ... build -t TAG CONTEXT`, with podman's storage.
    fn buildah_words(&self, tag: &str, context: &Path) -> Vec<String> {
        self.buildah_words_with("root", tag, context)
    }

    /// Returns the same with a storage of this name.
    fn buildah_words_with(&self, root: &str, tag: &str, context: &Path) -> Vec<String> {
        let at = |name: &str| self.f.path("storage").join(name).to_str().unwrap().to_owned();
        let (root, run) = (at(root), at("run"));
        let context = context.to_str().unwrap();
        let storage = ["--root", &root, "--runroot", &run, "--storage-driver", "vfs"];
        // It needs no container runtime, and only takes the host's network.
        let how = ["--isolation", "chroot", "--no-cache"];
        let words = [&["buildah"], &storage[..], &["build"], &how, &["-t", tag, context]].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// Makes a folder with a Dockerfile whose last step goes on when [`end_steps`] is called with
    /// the returned text.
    fn held_recipe(&self) -> (PathBuf, String) {
        // A number of seconds that no other process on this machine sleeps.
        let marker = format!("600.00{}", fastrand::u32(100_000_000..));
        (self.recipe(&format!("sleep {marker}; true")), marker)
    }

    fn build(&self, tag: &str, context: &Path) -> Invocation<'_> {
        self.buildlock(["--"]).args(self.build_words(tag, context))
    }

    /// Returns how many images the builds have made, including those without a name.
    fn image_count(&self) -> usize {
        let words = ["image", "ls", "-q", "--no-trunc", "--filter", "label=buildlock-test=1"];
        let list = String::from_utf8(self.ask(words).stdout).unwrap();
        let mut ids: Vec<_> = list.lines().collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for pid in self.f.processes() {
            send_signal(pid, "KILL");
        }
        // Done by podman, since its files may belong to mapped users.
        self.ask(["rm", "--all", "--force"]);
        self.ask(["image", "rm", "--all", "--force"]);
    }
}

#[test]
fn eight_processes_on_one_missing_tag_build_it_once() {
    with_podman(|podman| {
        let context = podman.recipe("sleep 2");
        let running: Vec<_> = (0..8).map(|_| podman.build("env:abc", &context).start()).collect();
        let ended: Vec<Finished> = running.into_iter().map(Running::wait).collect();
        for run in &ended {
            run.assert_code(0);
        }
        assert_eq!(count(&ended, "building"), 1, "{}", all_output(&ended));
        assert_eq!(count(&ended, "present"), 7, "{}", all_output(&ended));
        assert!(count(&ended, "waiting") > 0, "nobody waited\n{}", all_output(&ended));
        assert!(podman.has("localhost/env:abc"));
        assert_eq!(podman.image_count(), 1, "{}", all_output(&ended));

        let later = podman.build("env:abc", &podman.recipe("exit 9")).run();
        later.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
    });
}

#[test]
fn skip_prints_the_id_that_podmans_build_has_printed() {
    with_podman(|podman| {
        let id_file = podman.f.path("work/id");
        let mut words = podman.build_words("env:abc", &podman.recipe("true"));
        let at = words.iter().position(|word| word == "build").unwrap() + 1;
        let options = ["-q", "--iidfile", id_file.to_str().unwrap()];
        words.splice(at..at, options.map(str::to_owned));
        let built = podman.buildlock(["--"]).args(&words).run();
        built.assert_code(0).assert_stderr("\"built\"");
        let written = fs::read_to_string(&id_file).unwrap();
        let skipped = podman.buildlock(["--"]).args(&words).run();
        skipped.assert_code(0).assert_stderr("\"present\"").assert_stdout(&built.stdout);
        assert_eq!(fs::read_to_string(&id_file).unwrap(), written, "{skipped}");
    });
}

#[test]
fn failing_build_ends_with_podmans_status() {
    with_podman(|podman| {
        let context = podman.recipe("exit 7");
        let words = podman.build_words("env:abc", &context);
        let alone = podman.ask(&words[podman.flags().len()..]).status.code().unwrap();
        assert_ne!(alone, 0);
        podman.build("env:abc", &context).run().assert_code(alone).assert_stderr("\"failed\"");
        assert!(!podman.has("localhost/env:abc"));
    });
}

#[test]
fn image_of_the_same_name_in_another_domain_does_not_count() {
    with_podman(|podman| {
        let tagged = podman.ask(["tag", BASE, "registry.example/env:abc"]);
        assert!(tagged.status.success(), "{tagged:?}");
        // podman's own look-up would accept the short name.
        assert!(podman.has("env:abc") && !podman.has("localhost/env:abc"));
        let run = podman.build("env:abc", &podman.recipe("true")).run();
        run.assert_stderr("\"building\"").assert_no_stderr("\"present\"");

        let tagged = podman.ask(["tag", BASE, "localhost/env:abc"]);
        assert!(tagged.status.success(), "{tagged:?}");
        let run = podman.build("env:abc", &podman.recipe("exit 9")).run();
        run.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
    });
}

#[test]
fn manifest_list_is_present_for_the_platforms_that_it_has() {
    with_podman(|podman| {
        let context = podman.recipe("true");
        fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n").unwrap();
        let build = |platform: &str| {
            let mut words = podman.flags();
            // A cached layer keeps the platform it was first built for.
            words.extend(["build", "--no-cache", "--platform", platform].map(str::to_owned));
            words.extend(["--manifest", "list:1"].map(str::to_owned));
            words.push(context.to_str().unwrap().to_owned());
            podman.buildlock(["--"]).args(words).run()
        };
        // `podman image exists` denies a list that has no image for this machine.
        for platform in ["linux/s390x", "linux/ppc64le"] {
            let first = build(platform);
            first.assert_code(0).assert_stderr("\"built\"");
            let again = build(platform);
            again.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
        }
        build("linux/s390x").assert_code(0).assert_stderr("\"present\"");
    });
}

#[test]
fn image_named_with_its_domain_is_looked_up_under_it() {
    with_podman(|podman| {
        let context = podman.recipe("true");
        let tag = "registry.example/team/env:abc";
        podman.build(tag, &context).run().assert_code(0).assert_stderr("\"built\"");
        assert!(podman.has(tag));
        podman.build(tag, &context).run().assert_code(0).assert_stderr("\"present\"");
    });
}

#[test]
fn success_without_the_image_asked_for_is_an_error() {
    with_podman(|podman| {
        let words = podman.build_words("other", &podman.recipe("true"));
        let run = podman.buildlock(["-t", "wanted", "--"]).args(words).run();
        run.assert_code(125).assert_stderr("\"building\"").assert_stderr("wanted");
        assert!(podman.has("localhost/other"), "the build command did not run\n{run}");
    });
}

#[test]
fn storage_that_cannot_be_opened_is_an_error_and_nothing_is_built() {
    with_podman(|podman| {
        let mut words = podman.build_words("env:abc", &podman.recipe("true"));
        let root = words.iter().position(|word| word == "--root").unwrap();
        words[root + 1] = "/dev/null/storage".to_owned();
        let run = podman.buildlock(["--"]).args(words).run();
        run.assert_code(125).assert_no_stderr("\"building\"");
    });
}

#[test]
fn podman_under_the_name_of_docker_builds_once() {
    with_podman(|podman| {
        // A script that passes everything on, as distributions install it.
        let flags = podman.flags()[1..].join(" ");
        fs::remove_file(podman.f.path("bin/docker")).unwrap();
        podman.f.install_script(
            "docker",
            &format!(
                "#!/bin/sh\necho 'Emulate Docker CLI using podman.' >&2\n\
                 exec podman {flags} \"$@\"\n"
            ),
        );
        let context = podman.recipe("sleep 2");
        let start = || {
            let words = ["--log-format", "json", "--", "docker", "build", "--network", "none"];
            let buildlock = podman.program(assert_cmd::cargo::cargo_bin!("buildlock")).args(words);
            buildlock.args(["--no-cache", "-t", "env:abc"]).arg(&context).start()
        };
        let running: Vec<_> = (0..4).map(|_| start()).collect();
        let ended: Vec<Finished> = running.into_iter().map(Running::wait).collect();
        for run in &ended {
            run.assert_code(0);
        }
        assert_eq!(count(&ended, "building"), 1, "{}", all_output(&ended));
        assert!(podman.has("localhost/env:abc"));
        assert_eq!(podman.image_count(), 1, "{}", all_output(&ended));
    });
}

/// Runs a test with each podman that has buildah beside it.
fn with_buildah(test: impl Fn(&Podman)) {
    with_podman(|podman| {
        let version = podman.program("buildah").arg("--version").run();
        match version.status.success() {
            true => test(podman),
            false => skip(&format!("buildah is not installed ({:?})", podman.place)),
        }
    });
}

#[test]
fn buildah_builds_once_and_skips_afterwards() {
    with_buildah(|podman| {
        let (context, marker) = podman.held_recipe();
        let words = podman.buildah_words("env:abc", &context);
        let start = || podman.buildlock(["--"]).args(&words).start();
        let mut running = vec![start()];
        podman.f.wait_for("the build step", || runs_step(&marker));
        running.extend((0..2).map(|_| start()));
        podman.f.wait_for_waiters(&podman.f.lock_file("localhost/env:abc"), 2);
        end_steps(&marker);
        let ended: Vec<Finished> = running.into_iter().map(Running::wait).collect();
        for run in &ended {
            run.assert_code(0);
        }
        assert_eq!(count(&ended, "building"), 1, "{}", all_output(&ended));
        assert_eq!(count(&ended, "present"), 2, "{}", all_output(&ended));
        assert!(podman.has("localhost/env:abc"));
        assert_eq!(podman.image_count(), 1, "{}", all_output(&ended));
        start().wait().assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
    });
}

#[test]
fn podman_and_buildah_share_the_lock_of_an_image() {
    with_buildah(|podman| {
        let (context, marker) = podman.held_recipe();
        let first = podman.build("env:abc", &context).start();
        podman.f.wait_for("the build step", || runs_step(&marker));
        let words = podman.buildah_words("localhost/env:abc", &context);
        let second = podman.buildlock(["--"]).args(words).start();
        podman.f.wait_for_waiters(&podman.f.lock_file("localhost/env:abc"), 1);
        end_steps(&marker);
        first.wait().assert_code(0).assert_stderr("\"built\"");
        let second = second.wait();
        second.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
    });
}

#[test]
fn image_is_looked_up_in_the_storage_that_buildah_names() {
    with_buildah(|podman| {
        let context = podman.recipe("true");
        fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n").unwrap();
        let build = |root: &str| {
            let words = podman.buildah_words_with(root, "env:abc", &context);
            podman.buildlock(["--"]).args(words).run()
        };
        build("root").assert_code(0).assert_stderr("\"built\"");
        build("other").assert_code(0).assert_stderr("\"built\"");
        for root in ["root", "other"] {
            let run = build(root);
            run.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
        }
    });
}

#[test]
fn skip_prints_the_id_that_buildahs_build_has_printed() {
    with_buildah(|podman| {
        let id_file = podman.f.path("work/id");
        let context = podman.recipe("true");
        let with_file = ["--iidfile", id_file.to_str().unwrap()];
        for (n, options) in [&["-q"][..], &with_file].into_iter().enumerate() {
            let mut words = podman.buildah_words(&format!("env:{n}"), &context);
            let at = words.iter().position(|word| word == "build").unwrap() + 1;
            words.splice(at..at, options.iter().map(|&option| option.to_owned()));
            let run = || {
                let run = podman.buildlock(["--"]).args(&words).run();
                run.assert_code(0);
                let id = if n == 0 { run.stdout.clone() } else { fs::read(&id_file).unwrap() };
                (run, id)
            };
            let (built, id) = run();
            built.assert_stderr("\"built\"");
            assert!(!id.is_empty(), "{built}");
            let (skipped, same) = run();
            skipped.assert_stderr("\"present\"").assert_no_stderr("\"building\"");
            assert_eq!(same, id, "{skipped}");
        }
    });
}

/// Runs a test with podman and a registry, if skopeo is installed to ask it.
fn with_registry(start: impl Fn() -> Option<Registry>, test: impl Fn(&Podman, Registry)) {
    let has_skopeo = Command::new("skopeo").arg("--version").output().is_ok();
    if !has_skopeo {
        return support::skip("skopeo is not installed");
    }
    with_podman(|podman| match start() {
        None => support::skip("docker-registry is not installed"),
        Some(registry) => {
            let folder = podman.f.path("home/.config/containers");
            fs::create_dir_all(&folder).unwrap();
            let address = registry.address();
            let text = format!("[[registry]]\nlocation = \"{address}\"\ninsecure = true\n");
            fs::write(folder.join("registries.conf"), text).unwrap();
            test(podman, registry);
        }
    });
}

impl Podman {
    /// Runs `buildlock --check registry -- podman ... build -t TAG CONTEXT`.
    fn look(&self, tag: &str, context: &Path) -> Finished {
        self.with_home(self.buildlock(["--check", "registry", "--"]))
            .args(self.build_words(tag, context))
            .run()
    }

    /// Sets the test's configuration for registries, without that of this machine's users.
    fn with_home<'f>(&self, invocation: Invocation<'f>) -> Invocation<'f> {
        let invocation = invocation.env("HOME", self.f.path("home"));
        invocation.env_remove("XDG_RUNTIME_DIR").env_remove("REGISTRY_AUTH_FILE")
    }

    fn push(&self, tag: &str) {
        let words = self.flags();
        let push = self.with_home(self.program(&words[0]).args(&words[1..]));
        push.args(["push", "-q", tag]).run().assert_code(0);
    }

    /// Makes an image that is in the registry but not in podman's storage.
    fn pushed(&self, registry: &Registry) -> String {
        let tag = format!("{}/a/env:abc", registry.address());
        assert!(self.ask(["tag", BASE, &tag]).status.success());
        self.push(&tag);
        assert!(self.ask(["untag", &tag]).status.success());
        assert!(registry.has(&tag) && !self.has(&tag));
        tag
    }
}

#[test]
fn image_in_the_registry_alone_is_present_if_the_registry_is_asked() {
    with_registry(Registry::start, |podman, mut registry| {
        let tag = podman.pushed(&registry);
        let fails = podman.recipe("exit 9");
        let run = podman.look(&tag, &fails);
        run.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");

        let words = podman.build_words(&tag, &fails);
        podman.buildlock(["--"]).args(words).run().assert_stderr("\"building\"");

        registry.stop();
        let run = podman.look(&tag, &fails);
        run.assert_code(125).assert_stderr("cannot tell").assert_no_stderr("\"building\"");
    });
}

#[test]
fn image_that_podman_has_does_not_count_if_the_registry_is_asked() {
    with_registry(Registry::start, |podman, registry| {
        let image = format!("{}/a/image:1", registry.address());
        let list = format!("{}/a/list:1", registry.address());
        assert!(podman.ask(["tag", BASE, &image]).status.success());
        assert!(podman.ask(["manifest", "create", &list]).status.success());
        assert!(podman.has(&image) && podman.ask(["manifest", "exists", &list]).status.success());
        for tag in [&image, &list] {
            let run = podman.look(tag, &podman.recipe("exit 9"));
            run.assert_stderr("\"building\"").assert_no_stderr("\"present\"");
        }

        let run = podman.look(&image, &podman.recipe("true"));
        run.assert_code(125)
            .assert_stderr_matches("in the registry.*the build command does not push");

        let words = podman.flags().join(" ");
        let context = podman.recipe("true");
        let script = format!(
            "{words} build -q --network none -t {image} {} && {words} push -q {image}",
            context.display()
        );
        let command = ["--engine", "podman", "-t", &image, "--", "sh", "-c", &script];
        let run = podman.with_home(podman.buildlock(["--check", "registry"]).args(command)).run();
        run.assert_code(0).assert_stderr("\"built\"");
        assert!(registry.has(&image));
    });
}

#[test]
fn platform_of_the_registrys_image_counts() {
    with_registry(Registry::start, |podman, registry| {
        let tag = podman.pushed(&registry);
        let info = podman.ask(["info", "--format", "{{.Host.OS}}/{{.Host.Arch}}"]);
        let ours = String::from_utf8(info.stdout).unwrap().trim().to_owned();
        let other = if ours.ends_with("arm64") { "linux/amd64" } else { "linux/arm64" };
        let build = |platform: &str| {
            let mut words = podman.build_words(&tag, &podman.recipe("exit 9"));
            words.splice(words.len() - 1..words.len() - 1, ["--platform".into(), platform.into()]);
            podman.with_home(podman.buildlock(["--check", "registry", "--"])).args(words).run()
        };
        build(&ours).assert_code(0).assert_stderr("\"present\"");
        build(other).assert_stderr("\"building\"").assert_no_stderr("\"present\"");
    });
}

#[test]
fn registry_that_refuses_podman_is_an_error() {
    with_registry(Registry::start_with_users, |podman, registry| {
        let folder = podman.f.path("home/.docker");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("config.json");
        let address = registry.address();
        fs::write(&file, format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"{AUTH}\"}}}}}}"))
            .unwrap();
        let tag = podman.pushed(&registry);
        let fails = podman.recipe("exit 9");
        podman.look(&tag, &fails).assert_code(0).assert_stderr("\"present\"");
        fs::remove_file(file).unwrap();
        let run = podman.look(&tag, &fails);
        run.assert_code(125).assert_stderr("authentication").assert_no_stderr("\"building\"");
    });
}
