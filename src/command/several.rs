//! Commands that may build several images or do more than build: compose and bake.

use super::{Flags, Opt, goes_to_registry, is_on, skip_options};

/// Global options of compose that take a value: of `docker compose`, and of docker-compose 1.
pub(super) const COMPOSE_VALUES: Flags = Flags {
    short: "fpcH",
    long: &[
        "ansi",
        "context",
        "env-file",
        "file",
        "host",
        "log-level",
        "parallel",
        "profile",
        "progress",
        "project-directory",
        "project-name",
        "tlscacert",
        "tlscert",
        "tlskey",
        "workdir",
    ],
};
const COMPOSE_BUILD_VALUES: Flags = Flags {
    short: "m",
    long: &["build-arg", "builder", "memory", "progress", "provenance", "sbom", "ssh"],
};
const BAKE_VALUES: Flags = Flags {
    short: "f",
    long: &[
        "allow",
        "builder",
        "call",
        "file",
        "list",
        "metadata-file",
        "progress",
        "provenance",
        "sbom",
        "set",
        "var",
    ],
};

/// The tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `docker compose`, `docker-compose`, `podman-compose`
    Compose,
    /// `docker buildx bake`
    Bake,
}

/// What such a command says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Several {
    /// Which tool it is.
    pub tool: Tool,
    /// What it calls the tool: `docker compose`.
    pub called: String,
    /// What it has compose do (`build`, `up`); `bake` for bake.
    pub subcommand: String,
    /// The services or targets that it names.
    pub named: Vec<String>,
    /// What it says of builds side by side: `--parallel 1`, or docker-compose 1's `--parallel`.
    pub parallel: Option<String>,
    /// Whether it says that it pushes what it builds.
    pub pushes: bool,
}

impl Several {
    /// Reads the words behind `docker compose` or `docker-compose`.
    pub(super) fn compose(called: &str, words: &[&str]) -> Option<Self> {
        let (mut parallel, mut pushes) = (None, false);
        let mut note = |opt: &Opt<'_>| match opt.name {
            "parallel" => parallel = Some(opt.value.unwrap_or("true").to_owned()),
            "push" => pushes = is_on(opt),
            _ => {}
        };
        let at = skip_options(words, 0, |name| COMPOSE_VALUES.has(name), |opt| note(&opt));
        let subcommand = (*words.get(at)?).to_owned();
        let rest = words.get(at + 1..).unwrap_or_default();
        let named = operands(rest, COMPOSE_BUILD_VALUES, note);
        Some(Several {
            tool: Tool::Compose,
            called: called.into(),
            subcommand,
            named,
            parallel,
            pushes,
        })
    }

    /// Reads the words behind `docker buildx bake`.
    pub(super) fn bake(words: &[&str]) -> Self {
        let mut pushes = false;
        let named = operands(words, BAKE_VALUES, |opt| match opt.name {
            "push" => pushes = is_on(opt),
            // --set *.output=type=registry
            "set" => {
                let output = opt.value.and_then(|set| Some(set.split_once("output=")?.1));
                pushes |= output.is_some_and(goes_to_registry);
            }
            _ => {}
        });
        Several {
            tool: Tool::Bake,
            called: "docker buildx".to_owned(),
            subcommand: "bake".to_owned(),
            named,
            parallel: None,
            pushes,
        }
    }

    /// Whether it only builds.
    pub fn only_builds(&self) -> bool {
        matches!(self.subcommand.as_str(), "build" | "bake")
    }

    /// Whether it may build several images.
    pub fn builds_several(&self) -> bool {
        self.only_builds() && self.named.len() != 1
    }
}

fn operands(words: &[&str], values: Flags, mut each: impl FnMut(&Opt<'_>)) -> Vec<String> {
    let mut named = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if word.len() > 1 && word.starts_with('-') {
            at += super::read_option(&words[at..], |name| values.has(name), |opt| each(&opt));
        } else {
            named.push((*word).to_owned());
            at += 1;
        }
    }
    named
}

/// The build commands in a script for `sh -c`: what each gives as `-t`.
pub(super) fn tags_in_script(script: &str) -> Vec<String> {
    let parts = script.split(['\n', ';', '&', '|', '(', ')']);
    let commands = parts.filter_map(shlex::split).filter(|words| !words.is_empty());
    let commands = commands.map(|words| {
        // Assignments in front of a command are the shell's own.
        let start = words.iter().position(|word| !super::is_assignment(word)).unwrap_or(0);
        super::Command::new(words[start..].iter().map(Into::into).collect())
    });
    let builds = commands.filter_map(|command| command.build);
    // What a variable makes of it is not known.
    builds.flat_map(|build| build.tags).filter(|tag| !tag.contains(['$', '`'])).collect()
}
