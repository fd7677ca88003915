//! What the build command is: its program, its engine, and what it builds.
//!
//! Nothing here runs a program or asks an engine. This module only reads words, as docker, podman,
//! nerdctl and the wrappers in front of them would read them.

mod builder;
mod call;
mod client;
mod engine;
mod known;
mod options;
mod output;
mod redact;
mod script;
mod task;
mod wrappers;

use std::ffi::{OsStr, OsString};

pub use self::client::Client;
pub use self::engine::Engine;
pub(crate) use self::output::{goes_elsewhere, output_fields};
pub use self::redact::describe;
pub use self::task::{BuildOptions, Given};
pub(crate) use self::task::{ComposeOrBake, OTHER_TARGETS, Tool};

use self::builder::BuilderUse;
use self::call::Known;
use self::output::goes_to_registry;
use self::task::Task;

/// The build command, understood as far as possible.
#[derive(Debug)]
pub struct Command {
    argv: Vec<OsString>,
    known: Option<Known>,
}

impl Command {
    /// Reads the words of a build command.
    pub fn new(argv: Vec<OsString>) -> Self {
        // Options and names are ASCII. A word that is not UTF-8 can only be a value, and no value
        // that matters here is such a word.
        let lossy: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
        let words: Vec<&str> = lossy.iter().map(AsRef::as_ref).collect();
        Command { known: known::recognize(&argv, &words), argv }
    }

    /// Returns this command with a label for the image that it builds, `NAME=VALUE`. Returns none if
    /// it is not known to build one image.
    pub(crate) fn with_label(&self, label: &str) -> Option<Self> {
        self.build()?;
        let at = self.known.as_ref()?.after_verb;
        let mut argv = self.argv.clone();
        argv.splice(at..at, ["--label".into(), label.into()]);
        Some(Command::new(argv))
    }

    /// Returns all words of the command.
    pub(crate) fn words(&self) -> &[OsString] {
        &self.argv
    }

    /// Returns the program to run. It is empty only if the command is.
    pub fn program(&self) -> &OsStr {
        self.argv.first().map_or(OsStr::new(""), OsString::as_os_str)
    }

    /// Returns the program's arguments.
    pub fn arguments(&self) -> &[OsString] {
        self.argv.get(1..).unwrap_or_default()
    }

    /// Returns the engine's client that the command is or runs.
    pub fn client(&self) -> Option<&Client> {
        self.known.as_ref().map(|known| &known.client)
    }

    /// Returns what the command builds, if it is known to build one image.
    pub fn build(&self) -> Option<&BuildOptions> {
        match self.task()? {
            Task::Build(build) => Some(build),
            _ => None,
        }
    }

    /// Returns the call of compose or bake, if the command is one.
    pub(crate) fn compose_or_bake(&self) -> Option<&ComposeOrBake> {
        match self.task()? {
            Task::ComposeOrBake(call) => Some(call),
            _ => None,
        }
    }

    /// Returns the subcommand of the engine's client if it pushes or runs an image.
    pub(crate) fn push_or_run_verb(&self) -> Option<&str> {
        match self.task()? {
            Task::Other { push_or_run_verb } => push_or_run_verb.as_deref(),
            _ => None,
        }
    }

    fn task(&self) -> Option<&Task> {
        self.known.as_ref().map(|known| &known.task)
    }

    /// Returns whether the command may read its stdin.
    ///
    /// A known build command reads it only if its words say so. Any other command may, and so may
    /// sudo in front of either.
    pub(crate) fn may_read_stdin(&self) -> bool {
        self.known.as_ref().is_none_or(|known| known.wrapper_may_read_stdin)
            || self.build().is_none_or(|build| build.reads_stdin)
    }

    /// Returns whether the command says that it pushes what it builds.
    pub(crate) fn pushes(&self) -> bool {
        match self.task() {
            Some(Task::Build(build)) => {
                build.push || build.outputs.iter().any(|output| goes_to_registry(output))
            }
            Some(Task::ComposeOrBake(call)) => call.pushes(),
            Some(Task::Other { .. }) | None => false,
        }
    }

    /// Returns the tags that build commands name in it, if it is a script for a shell.
    pub(crate) fn tags_in_script(&self) -> Vec<String> {
        let script = script::of_shell(self.program(), self.arguments());
        script.map_or_else(Vec::new, |script| script::tags(&script.to_string_lossy()))
    }

    /// Returns the builder that the command names. An unknown command may mean anything by
    /// `--builder`.
    pub(crate) fn builder(&self) -> Option<&str> {
        self.known.as_ref()?.builder.name.as_deref()
    }

    /// Returns whether the command calls buildx by name. `docker build` does not build where
    /// `docker buildx use` says.
    pub(crate) fn is_buildx(&self) -> bool {
        self.known.as_ref().is_some_and(|known| known.builder.is_buildx)
    }

    /// Returns whether the command says that it uses no cache. BuildKit then empties its cache
    /// mounts first (moby/buildkit#2447).
    pub(crate) fn empties_caches(&self) -> bool {
        if let Some(known) = &self.known {
            return known.builder.without_cache;
        }
        let lossy: Vec<_> = self.argv.iter().map(|word| word.to_string_lossy()).collect();
        let words: Vec<&str> = lossy.iter().map(AsRef::as_ref).collect();
        BuilderUse::among(&words).without_cache
    }
}

impl std::fmt::Display for Command {
    /// Writes the command for people: quoted as a shell needs it, and without secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&describe(&self.argv))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(line: &str) -> Command {
        Command::new(shlex::split(line).unwrap().into_iter().map(OsString::from).collect())
    }

    fn tags(line: &str) -> Vec<String> {
        command(line).build().map(|build| build.tags.clone()).unwrap_or_default()
    }

    #[test]
    fn tags_of_build_commands_are_found() {
        for line in [
            "docker build -t a .",
            "docker build . -t a",
            "docker build --tag a .",
            "docker build --tag=a .",
            "docker build -ta .",
            "docker build -t=a .",
            "docker build -qt a .",
            "docker build --no-cache --pull -q -t a -f Dockerfile .",
            "docker build --build-arg -t=b -t a .",
            "docker build -f -t -t a .",
            "docker --context ci -H ssh://h image build -t a .",
            "docker -D -Hunix:///s build -t a .",
            "docker --config=/c builder build -t a .",
            "docker buildx build -t a --load .",
            "docker buildx --builder x b -t a .",
            "docker-buildx build -t a .",
            "/usr/bin/docker build -t a .",
            "podman --root /r build -t a .",
            "podman build --layers --squash -t a .",
            "nerdctl -n k8s.io build -t a .",
            "sudo docker build -t a .",
            "sudo -n -u root -- docker build -t a .",
            "sudo -nE DOCKER_BUILDKIT=1 docker build -t a .",
            "doas -u root docker build -t a .",
            "env DOCKER_BUILDKIT=1 docker build -t a .",
            "env -i PATH=/bin docker build -t a .",
            "env -u X docker build -t a .",
            "nice docker build -t a .",
            "nice -n 10 docker build -t a .",
            "nice -10 docker build -t a .",
            "ionice -c2 -n 7 docker build -t a .",
            "/usr/bin/time -f %e docker build -t a .",
            "timeout -k 5 10m docker build -t a .",
            "timeout 10m nice -n5 sudo -n env A=b docker build -t a .",
            "stdbuf -oL docker build -t a .",
            "nohup setsid docker build -t a .",
        ] {
            assert_eq!(tags(line), ["a"], "{line}");
        }
        assert_eq!(tags("docker build -t a -t b --tag c:1 ."), ["a", "b", "c:1"]);
    }

    #[test]
    fn other_commands_name_no_tags() {
        for line in [
            "docker run -t a",
            "docker buildx bake -t a",
            "docker compose build -t a",
            "docker-compose build -t a",
            "docker tag -t a",
            "make -t a",
            "sh -c 'docker build -t a .'",
            "env -S 'docker build -t a .'",
            "docker build -- -t a",
            "docker build .",
            "docker",
            "sudo",
            "timeout 5",
        ] {
            assert!(tags(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn the_client_keeps_what_decides_which_engine_it_asks() {
        let line = "timeout 9 sudo -n env A=b docker --context ci -H ssh://h build -t a .";
        let client = command(line).client().cloned().unwrap();
        assert_eq!(client.engine, Engine::Docker);
        assert_eq!(client.globals, ["--context", "ci", "-H", "ssh://h"]);
        assert_eq!(client.wrapper_words, ["sudo", "-n", "env", "A=b"]);
        assert!(client.wrapper_changes_user_or_env);

        let client =
            command("env DOCKER_HOST=unix:///s nice docker build .").client().cloned().unwrap();
        assert_eq!(client.environment, [("DOCKER_HOST".into(), "unix:///s".into())]);
        assert!(!client.wrapper_changes_user_or_env);
        assert!(
            command("env -u DOCKER_HOST docker build .")
                .client()
                .unwrap()
                .wrapper_changes_user_or_env
        );
    }

    #[test]
    fn label_is_added_behind_the_verb() {
        let labelled = |line: &str| {
            let command = command(line).with_label("a=b")?;
            Some([&[command.program().to_owned()], command.arguments()].concat())
        };
        let words = |line: &str| Some(command(line).argv);
        for (line, expected) in [
            ("docker build -t a .", "docker build --label a=b -t a ."),
            ("docker image build -t a .", "docker image build --label a=b -t a ."),
            (
                "sudo -n docker --context x buildx --builder b build .",
                "sudo -n docker --context x buildx --builder b build --label a=b .",
            ),
            ("docker-buildx b .", "docker-buildx b --label a=b ."),
            ("buildah bud .", "buildah bud --label a=b ."),
            ("env A=b podman build", "env A=b podman build --label a=b"),
        ] {
            assert_eq!(labelled(line), words(expected), "{line}");
        }
        assert_eq!(labelled("make image"), None);
        assert_eq!(labelled("docker compose build"), None);
    }

    #[test]
    fn the_outputs_of_a_build_are_found() {
        let line = "docker buildx build --push --builder b --platform linux/amd64,linux/arm64 \
                    -o type=local,dest=out --iidfile id --metadata-file=m -q --check -t a .";
        let command = command(line);
        let build = command.build().unwrap();
        let given: Vec<_> = build.given.iter().map(|it| (&*it.name, it.value.as_deref())).collect();
        assert_eq!(
            given[..3],
            [("push", None), ("builder", Some("b")), ("platform", Some("linux/amd64,linux/arm64"))]
        );
        assert_eq!(
            given[3..6],
            [
                ("o", Some("type=local,dest=out")),
                ("iidfile", Some("id")),
                ("metadata-file", Some("m"))
            ]
        );
        assert_eq!(given[6..], [("q", None), ("check", None), ("t", Some("a"))]);
        assert_eq!(
            command.build(),
            Some(&BuildOptions {
                tags: vec!["a".into()],
                manifest: None,
                outputs: vec!["type=local,dest=out".into()],
                load: false,
                push: true,
                platforms: vec!["linux/amd64".into(), "linux/arm64".into()],
                side_outputs: vec!["-o type=local,dest=out".into(), "--metadata-file m".into()],
                prints_id: true,
                id_file: Some("id".into()),
                no_build_option: Some("--check".into()),
                cache_namespace: None,
                reads_stdin: false,
                given: build.given.clone(),
                operands: vec![".".into()],
            })
        );
        assert_eq!(command.builder(), Some("b"));
    }

    #[test]
    fn the_builder_and_no_cache_are_found_in_unknown_commands_too() {
        for (line, builder, empties) in [
            ("docker build --no-cache .", None, true),
            ("docker build --no-cache=false .", None, false),
            ("docker build --no-cache-filter=deps .", None, true),
            ("docker build -t --no-cache .", None, false),
            ("docker buildx --builder a build .", Some("a"), false),
            ("docker buildx --builder a build --builder=b .", Some("b"), false),
            ("docker buildx --builder a bake --no-cache api", Some("a"), true),
            ("docker buildx bake --builder b", Some("b"), false),
            ("docker compose build --builder=b --no-cache api", Some("b"), true),
            ("docker compose build --no-cache=false", None, false),
            ("./build --builder x --no-cache", None, true),
            ("make", None, false),
            ("docker buildx bake --builder", None, false),
        ] {
            let command = command(line);
            assert_eq!((command.builder(), command.empties_caches()), (builder, empties), "{line}");
        }
    }

    #[test]
    fn commands_that_may_read_stdin_are_known() {
        for (line, may) in [
            ("docker build .", false),
            ("env DOCKER_BUILDKIT=1 docker build .", false),
            ("timeout 9 nice env -i docker build .", false),
            ("docker build -", true),
            ("sudo docker build .", true),
            ("env A=b doas docker build .", true),
            ("docker buildx bake", true),
            ("make", true),
        ] {
            assert_eq!(command(line).may_read_stdin(), may, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_words_make_the_reader_panic(words in proptest::collection::vec(
            prop_oneof![
                ".{0,12}",
                "--?[a-zA-Z-]{0,9}=?.{0,3}",
                proptest::sample::select(vec![
                    "docker", "podman", "sudo", "env", "timeout", "build", "buildx", "--", "-t",
                    "--build-arg", "--secret", "A=b", "é", "-é",
                ]).prop_map(str::to_owned),
            ], 0..12)
        ) {
            let command = Command::new(words.into_iter().map(OsString::from).collect());
            let _ = command.to_string();
        }
    }
}
