//! What a build command does, as far as its words tell.

use std::path::PathBuf;

use super::options::{Opt, Valued};
use super::output::goes_to_registry;

/// What the program in a build command is called for.
#[derive(Debug)]
pub(super) enum Task {
    /// To build one image.
    Build(BuildOptions),
    /// To run compose or bake, which may build several images.
    ComposeOrBake(ComposeOrBake),
    /// To do something else.
    Other {
        /// The subcommand, if that pushes or runs an image: `push`, `image push`, `run`.
        push_or_run_verb: Option<String>,
    },
}

/// What the words of a command that builds one image say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// The names that the image gets, as typed: the values of `-t`, or else of
    /// `-o type=image,name=…`, and the value of `--manifest`.
    pub tags: Vec<String>,
    /// The manifest list that the image is added to (`podman build --manifest`).
    pub manifest: Option<String>,
    /// The values of `-o` and `--output`.
    pub outputs: Vec<String>,
    /// `--load`
    pub load: bool,
    /// `--push`
    pub push: bool,
    /// The build argument BUILDKIT_CACHE_MOUNT_NS, which BuildKit puts before the IDs of cache
    /// mounts (<https://docs.docker.com/reference/dockerfile/#buildkit-built-in-build-args>).
    pub cache_namespace: Option<String>,
    /// The platforms that `--platform` names, or podman's `--os`, `--arch` and `--variant`.
    pub platforms: Vec<String>,
    /// Options that make the command write more than the image and its ID, such as
    /// `--metadata-file m`.
    pub side_outputs: Vec<String>,
    /// Whether the command prints the image's ID (`-q`).
    pub prints_id: bool,
    /// The file that the command writes the image's ID to (`--iidfile`).
    pub id_file: Option<PathBuf>,
    /// An option that makes the command build nothing (`--check`, `--call=outline`).
    pub no_build_option: Option<String>,
    /// Whether the command reads the context or the Dockerfile from stdin (`-`, `-f -`).
    pub reads_stdin: bool,
    /// All options, in order.
    pub given: Vec<Given>,
    /// The words that are neither options nor their values: the context.
    pub operands: Vec<String>,
}

/// An option of a build command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The letter or the name, without dashes.
    pub name: String,
    /// The value, if the option has one.
    pub value: Option<String>,
    /// Whether it is one that needs no value.
    pub is_switch: bool,
}

impl Given {
    pub(super) fn of(opt: Opt<'_>, valued: Valued) -> Self {
        let value = opt.value.map(str::to_owned);
        Given { name: opt.name.to_owned(), value, is_switch: !valued.has(opt.name) }
    }

    /// Returns whether this switch is on: `--load`, `--load=true`.
    fn is_on(&self) -> bool {
        Opt { name: &self.name, value: self.value.as_deref() }.is_on()
    }
}

impl BuildOptions {
    /// Returns the tags as options, for messages.
    pub(crate) fn tag_options(&self) -> String {
        match self.tags.as_slice() {
            [] => "no tag at all".to_owned(),
            tags => tags.iter().map(|tag| format!("-t {tag}")).collect::<Vec<_>>().join(" "),
        }
    }
}

/// Stands among the options of a `docker build` for the targets of compose or bake that it reads. It
/// is no option of docker.
pub(crate) const OTHER_TARGETS: &str = "other-targets";

/// A tool that may build several images at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// `docker compose`, `docker-compose`, `podman-compose`
    Compose,
    /// `docker buildx bake`
    Bake,
}

/// A call of compose or bake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ComposeOrBake {
    pub tool: Tool,
    /// The words that call the tool, such as `docker compose`.
    pub called: String,
    /// The subcommand of compose (`build`, `up`), or `bake`.
    pub subcommand: String,
    /// Where the tool's own options begin in the build command.
    pub options_at: usize,
    /// Where the subcommand stands in it.
    pub at: usize,
    /// The services or targets that the command names.
    pub named: Vec<String>,
    /// Where they stand in it.
    pub named_at: Vec<usize>,
    /// All options, in order.
    pub given: Vec<Given>,
}

impl ComposeOrBake {
    /// Returns whether the tool does nothing but build.
    pub(crate) fn only_builds(&self) -> bool {
        matches!(self.subcommand.as_str(), "build" | "bake")
    }

    /// Returns whether the tool may build several images.
    pub(crate) fn may_build_several(&self) -> bool {
        self.only_builds() && self.named.len() != 1
    }

    /// Returns whether the tool is podman's.
    pub(crate) fn is_podmans(&self) -> bool {
        self.called.ends_with("podman-compose") || self.called.starts_with("podman ")
    }

    /// Returns the value of the last option with one of these names, if it has one.
    pub(crate) fn value(&self, names: &[&str]) -> Option<&str> {
        let given = self.given.iter().rev().find(|given| names.contains(&&*given.name));
        given?.value.as_deref()
    }

    /// Returns whether a switch is on.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.given.iter().rev().find(|given| given.name == name).is_some_and(Given::is_on)
    }

    /// Returns the value of `--parallel`, which limits how many builds run side by side. In
    /// docker-compose 1 this option is a switch.
    pub(crate) fn parallel(&self) -> Option<&str> {
        let given = self.given.iter().rev().find(|given| given.name == "parallel")?;
        Some(given.value.as_deref().unwrap_or("true"))
    }

    /// Returns whether an option makes the tool push what it builds: `--push`, or bake's `--set`
    /// with a registry as output.
    pub(crate) fn pushes(&self) -> bool {
        let sets_registry_output = |given: &Given| {
            let output = given.value.as_deref().and_then(|set| Some(set.split_once("output=")?.1));
            given.name == "set" && output.is_some_and(goes_to_registry)
        };
        self.has("push") || self.given.iter().any(sets_registry_output)
    }
}
