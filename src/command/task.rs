//! What a build command does, as far as its words tell.

use std::path::PathBuf;

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

impl BuildOptions {
    /// Returns the tags as options, for messages.
    pub(crate) fn tag_options(&self) -> String {
        match self.tags.as_slice() {
            [] => "no tag at all".to_owned(),
            tags => tags.iter().map(|tag| format!("-t {tag}")).collect::<Vec<_>>().join(" "),
        }
    }
}

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
    /// The services or targets that the command names.
    pub named: Vec<String>,
    /// The value of `--parallel`, which limits how many builds run side by side. In docker-compose
    /// 1 this option is a switch.
    pub parallel: Option<String>,
    /// Whether an option makes the tool push what it builds: `--push`, or bake's `--set` with a
    /// registry as output.
    pub pushes: bool,
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
}
