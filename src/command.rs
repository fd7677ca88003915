//! What COMMAND is: its program, engine and global flags, and what it builds.
//!
//! Nothing here runs anything or asks anybody; it only reads words, as docker, podman, nerdctl and
//! the wrappers in front of them would read them.

mod several;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

pub use self::several::{Several, Tool};
use crate::user;
use crate::visible::is_visible;

/// An engine whose client buildlock can talk through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// Docker Engine
    Docker,
    /// Podman
    Podman,
    /// containerd, through nerdctl
    Nerdctl,
}

impl Engine {
    /// The name of its client.
    pub fn client(self) -> &'static str {
        match self {
            Engine::Docker => "docker",
            Engine::Podman => "podman",
            Engine::Nerdctl => "nerdctl",
        }
    }

    fn of_program(name: &str) -> Option<Self> {
        match name {
            "docker" | "docker-buildx" => Some(Engine::Docker),
            // They share their storage.
            "podman" | "buildah" => Some(Engine::Podman),
            "nerdctl" => Some(Engine::Nerdctl),
            _ => None,
        }
    }

    /// Global flags that take a value, from the clients' own help.
    fn global_values(self) -> Flags {
        match self {
            Engine::Docker => Flags {
                short: "cHl",
                long: &["config", "context", "host", "log-level", "tlscacert", "tlscert", "tlskey"],
            },
            Engine::Podman => Flags {
                short: "cH",
                long: &[
                    "cdi-spec-dir",
                    "cgroup-manager",
                    "config",
                    "conmon",
                    "connection",
                    "context",
                    "cpu-profile",
                    "default-mounts-file",
                    "events-backend",
                    "hooks-dir",
                    "host",
                    "identity",
                    "imagestore",
                    "log-level",
                    "max-workers",
                    "memory-profile",
                    "module",
                    "namespace",
                    "network-backend",
                    "network-cmd-path",
                    "network-config-dir",
                    "out",
                    "pull-option",
                    "registries-conf",
                    "registries-conf-dir",
                    "root",
                    "runroot",
                    "runtime",
                    "runtime-flag",
                    "short-name-alias-conf",
                    "ssh",
                    "storage-driver",
                    "storage-opt",
                    "tls-ca",
                    "tls-cert",
                    "tls-details",
                    "tls-key",
                    "tmpdir",
                    "url",
                    "userns-gid-map",
                    "userns-uid-map",
                    "volumepath",
                ],
            },
            Engine::Nerdctl => Flags {
                short: "aHn",
                long: &[
                    "address",
                    "bridge-ip",
                    "cdi-spec-dirs",
                    "cgroup-manager",
                    "cni-netconfpath",
                    "cni-path",
                    "data-root",
                    "global-dns",
                    "global-dns-opts",
                    "global-dns-search",
                    "host",
                    "host-gateway-ip",
                    "hosts-dir",
                    "namespace",
                    "snapshotter",
                    "storage-driver",
                    "userns-remap",
                ],
            },
        }
    }
}

/// Flags of one program, by the letters and the names they go by.
#[derive(Clone, Copy)]
struct Flags {
    short: &'static str,
    long: &'static [&'static str],
}

/// A program that runs another one: which of its options take a value, and how many words of its
/// own come before the other program.
struct Wrapper {
    names: &'static [&'static str],
    values: Flags,
    operands: usize,
    assignments: bool,
    /// Whether what it does to its command decides which images that command sees.
    matters: Matters,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Matters {
    /// nice, time, …: the look-up needs no such words.
    No,
    /// sudo: the look-up has to go through it.
    Always,
    /// env: with -i, -u or -C so; otherwise it only sets variables.
    Environment,
}

impl Matters {
    /// Whether this option may have the command run in another folder.
    fn changes_folder(self, option: &str) -> bool {
        match self {
            Matters::No => false,
            Matters::Always => matches!(option, "D" | "chdir" | "R" | "chroot" | "i" | "login"),
            Matters::Environment => matches!(option, "C" | "chdir"),
        }
    }
}

const WRAPPERS: &[Wrapper] = &[
    Wrapper {
        names: &["sudo"],
        values: Flags {
            short: "CDghpRrtTUu",
            long: &[
                "close-from",
                "chdir",
                "group",
                "host",
                "prompt",
                "chroot",
                "role",
                "type",
                "command-timeout",
                "other-user",
                "user",
            ],
        },
        operands: 0,
        assignments: true,
        matters: Matters::Always,
    },
    Wrapper {
        names: &["doas"],
        values: Flags { short: "Cu", long: &[] },
        operands: 0,
        assignments: false,
        matters: Matters::Always,
    },
    Wrapper {
        names: &["env"],
        values: Flags { short: "uC", long: &["unset", "chdir"] },
        operands: 0,
        assignments: true,
        matters: Matters::Environment,
    },
    Wrapper {
        names: &["nice"],
        values: Flags { short: "n", long: &["adjustment"] },
        operands: 0,
        assignments: false,
        matters: Matters::No,
    },
    Wrapper {
        names: &["ionice"],
        values: Flags { short: "cn", long: &["class", "classdata"] },
        operands: 0,
        assignments: false,
        matters: Matters::No,
    },
    Wrapper {
        names: &["time"],
        values: Flags { short: "fo", long: &["format", "output"] },
        operands: 0,
        assignments: false,
        matters: Matters::No,
    },
    Wrapper {
        names: &["timeout"],
        values: Flags { short: "ks", long: &["kill-after", "signal"] },
        operands: 1,
        assignments: false,
        matters: Matters::No,
    },
    Wrapper {
        names: &["stdbuf"],
        values: Flags { short: "ioe", long: &["input", "output", "error"] },
        operands: 0,
        assignments: false,
        matters: Matters::No,
    },
    Wrapper {
        names: &["nohup", "setsid", "chronic", "unbuffer"],
        values: Flags { short: "", long: &[] },
        operands: 0,
        assignments: false,
        matters: Matters::No,
    },
];

/// Flags of the build commands of docker (with and without buildx), podman and nerdctl that take
/// *no* value; all others do. From the programs' own help and source, hidden flags and global ones
/// that may stand behind the command included.
const BUILD_SWITCHES: Flags = Flags {
    short: "qD",
    long: &[
        "all-platforms",
        "check",
        "compat-volumes",
        "compress",
        "created-annotation",
        "debug",
        "debug-full",
        "detach",
        "disable-compression",
        "disable-content-trust",
        "experimental",
        "force-compression",
        "force-rm",
        "help",
        "http-proxy",
        "identity-label",
        "inherit-annotations",
        "inherit-labels",
        "insecure-registry",
        "kube-hide-dupe",
        "layers",
        "load",
        "log-rusage",
        "logsplit",
        "no-cache",
        "no-hostname",
        "no-hosts",
        "omit-history",
        "pull",
        "pull-always",
        "pull-never",
        "purge",
        "push",
        "quiet",
        "rewrite-timestamp",
        "rm",
        "save-stages",
        "selinux-enabled",
        "skip-unused-stages",
        "squash",
        "squash-all",
        "stage-labels",
        "stdin",
        "stream",
        "syslog",
        "tls-verify",
        "trace",
        "transient-store",
    ],
};

/// COMMAND, understood as far as that goes.
#[derive(Debug)]
pub struct Command {
    argv: Vec<OsString>,
    client: Option<Client>,
    build: Option<Build>,
    caches: Caches,
    /// Whether what stands in front of the client may read its stdin.
    front_may_read: bool,
    /// What compose or bake is to do, if it is one of them.
    several: Option<Several>,
    /// What an engine's client is to do, up to its first operand: `push`, `image push`.
    subcommand: Vec<String>,
}

/// What COMMAND says of the builder's caches, be it a known build command or another one (bake,
/// compose, a script).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Caches {
    /// `--builder`: whose they are.
    builder: Option<String>,
    /// Whether it is buildx by name, which has a builder of its own choice.
    of_buildx: bool,
    /// `--no-cache`, or `--no-cache-filter` for a part of them.
    unused: bool,
}

/// An engine's client within COMMAND.
#[derive(Clone, Debug)]
pub struct Client {
    /// Which engine's.
    pub engine: Engine,
    /// The program as COMMAND names it.
    pub program: OsString,
    /// Its global flags, as COMMAND gives them.
    pub globals: Vec<OsString>,
    /// Words to put in front of it, so that it sees what COMMAND will see (`sudo -n`).
    pub in_front: Vec<OsString>,
    /// Whether these words change who asks, or with which environment.
    pub behind_others: bool,
    /// Whether they may change the folder in which it runs.
    pub may_run_elsewhere: bool,
    /// Variables that `env NAME=VALUE` sets for it.
    pub environment: Vec<(OsString, OsString)>,
}

/// What a known build command says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// The names that its image gets, as typed: what `-t` says, or else `-o type=image,name=…`;
    /// and what `--manifest` says.
    pub tags: Vec<String>,
    /// The manifest list that it adds its image to (`podman build --manifest`).
    pub manifest: Option<String>,
    /// What `-o` and `--output` say.
    pub outputs: Vec<String>,
    /// `--load`
    pub load: bool,
    /// `--push`
    pub push: bool,
    /// The build argument BUILDKIT_CACHE_MOUNT_NS, which is put before the ids of cache mounts
    /// (<https://docs.docker.com/reference/dockerfile/#buildkit-built-in-build-args>).
    pub cache_namespace: Option<String>,
    /// Platforms that `--platform` names, or podman's `--os`, `--arch` and `--variant`.
    pub platforms: Vec<String>,
    /// Flags that make it write something beside the image and its id (`--metadata-file m`).
    pub side_outputs: Vec<String>,
    /// `-q`: it prints the image's id.
    pub prints_id: bool,
    /// `--iidfile`: it writes the image's id there.
    pub id_file: Option<PathBuf>,
    /// A flag that makes it build nothing (`--check`, `--call=outline`).
    pub builds_nothing: Option<String>,
    /// Whether it reads the context or the Dockerfile from its stdin (`-`, `-f -`).
    pub reads_stdin: bool,
}

impl Command {
    /// Reads COMMAND's words.
    pub fn new(argv: Vec<OsString>) -> Self {
        // Options and names are ASCII; what is not UTF-8 can only be a value, and those that matter
        // here are not.
        let lossy: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
        let words: Vec<&str> = lossy.iter().map(AsRef::as_ref).collect();
        let Some(understood) = understand(&argv, &words) else {
            // What it calls its builder may be anything.
            let caches = Caches { builder: None, ..Caches::among(&words) };
            return Command {
                client: None,
                build: None,
                caches,
                front_may_read: false,
                several: None,
                subcommand: Vec::new(),
                argv,
            };
        };
        let Understood { client, build, caches, front_may_read, several, subcommand } = understood;
        Command { client: Some(client), build, caches, front_may_read, several, subcommand, argv }
    }

    /// The program to run. Empty only if COMMAND is.
    pub fn program(&self) -> &OsStr {
        self.argv.first().map_or(OsStr::new(""), OsString::as_os_str)
    }

    /// The program's arguments.
    pub fn arguments(&self) -> &[OsString] {
        self.argv.get(1..).unwrap_or_default()
    }

    /// The engine's client in it, if it is or runs one.
    pub fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Whether it may read its stdin: a known build command only does if it says so, and what is
    /// not known may. So may sudo, also where its command does not.
    pub fn may_read_stdin(&self) -> bool {
        self.front_may_read || self.build.as_ref().is_none_or(|build| build.reads_stdin)
    }

    /// Whether it says that it pushes what it builds.
    pub fn pushes(&self) -> bool {
        let pushes =
            |build: &Build| build.push || build.outputs.iter().any(|it| goes_to_registry(it));
        self.build.as_ref().is_some_and(pushes)
            || self.several.as_ref().is_some_and(|several| several.pushes)
    }

    /// What compose or bake is to do, if it is one of them.
    pub fn several(&self) -> Option<&Several> {
        self.several.as_ref()
    }

    /// What the client is to do beside building, if that is to push an image, or to run one.
    pub fn does_more_than_build(&self) -> Option<String> {
        let words: Vec<&str> = self.subcommand.iter().map(String::as_str).collect();
        let pushes_or_runs = match words.as_slice() {
            ["push" | "run", ..] => 1,
            ["image" | "manifest", "push", ..] | ["container", "run", ..] => 2,
            _ => return None,
        };
        Some(words[..pushes_or_runs].join(" "))
    }

    /// The tags that build commands in it name, where it is a script for a shell (`sh -c '…'`).
    pub fn tags_in_script(&self) -> Vec<String> {
        const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "ash"];
        let name = Path::new(self.program()).file_name().and_then(OsStr::to_str);
        if !name.is_some_and(|name| SHELLS.contains(&name)) {
            return Vec::new();
        }
        let is_flag = |word: &&OsString| {
            let word = word.to_string_lossy();
            word.starts_with('-') && !word.starts_with("--") && word.contains('c')
        };
        let words = self.arguments();
        let script = words.iter().position(|word| is_flag(&word)).and_then(|at| words.get(at + 1));
        script.map_or_else(Vec::new, |script| several::tags_in_script(&script.to_string_lossy()))
    }

    /// The builder that it names.
    pub fn builder(&self) -> Option<&str> {
        self.caches.builder.as_deref()
    }

    /// Whether it is buildx by name. `docker build` does not build where `docker buildx use` says.
    pub fn is_buildx(&self) -> bool {
        self.caches.of_buildx
    }

    /// Whether it says that it uses no cache. BuildKit empties its cache mounts first then
    /// (moby/buildkit#2447).
    pub fn empties_caches(&self) -> bool {
        self.caches.unused
    }

    /// What it says it builds, if it is a known build command.
    pub fn build(&self) -> Option<&Build> {
        self.build.as_ref()
    }
}

impl Caches {
    /// Reads words that may mean anything else.
    fn among(words: &[&str]) -> Self {
        let mut caches = Caches::default();
        for (at, word) in words.iter().enumerate().filter(|(_, word)| word.starts_with("--")) {
            let (name, value) = match word[2..].split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (&word[2..], None),
            };
            let next = words.get(at + 1).copied().filter(|_| name == "builder");
            caches.note(&Opt { name, value: value.or(next), words: 1 });
        }
        caches
    }

    fn note(&mut self, opt: &Opt<'_>) {
        match opt.name {
            "no-cache" => self.unused = is_on(opt),
            "no-cache-filter" => self.unused = true,
            "builder" => self.builder = opt.value.map(str::to_owned),
            _ => {}
        }
    }
}

impl Client {
    /// Its global flags: letter or name, and the value, which is empty where it takes none.
    pub fn global_flags(&self) -> Vec<(String, String)> {
        let lossy: Vec<_> = self.globals.iter().map(|word| word.to_string_lossy()).collect();
        let words: Vec<&str> = lossy.iter().map(AsRef::as_ref).collect();
        let mut values = Vec::new();
        let takes_value = |name: &str| self.engine.global_values().has(name);
        skip_options(&words, 0, takes_value, |opt| {
            values.push((opt.name.to_owned(), opt.value.unwrap_or_default().to_owned()));
        });
        values
    }

    /// An environment variable as the client will see it; one that is set to nothing is none.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        self.variable_as_set(name).filter(|value| !value.is_empty())
    }

    /// The same, where being set to nothing makes a difference.
    pub fn variable_as_set(&self, name: &str) -> Option<OsString> {
        let given = self.environment.iter().rev().find(|(given, _)| given == name);
        given.map(|(_, value)| value.clone()).or_else(|| std::env::var_os(name))
    }

    /// The folder of docker's configuration, as its client finds it.
    pub fn configuration(&self) -> Option<PathBuf> {
        let flag = self.global_flags().into_iter().rev().find(|(name, _)| name == "config");
        flag.map(|(_, folder)| PathBuf::from(folder))
            .or_else(|| self.variable("DOCKER_CONFIG").map(PathBuf::from))
            .or_else(|| {
                let home = self
                    .variable("HOME")
                    .map(PathBuf::from)
                    .or_else(|| Some(user::ourselves()?.home))?;
                Some(home.join(".docker"))
            })
    }
}

impl std::fmt::Display for Command {
    /// For people: quoted as a shell needs it, without secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&describe(&self.argv))
    }
}

/// One option as pflag and getopt read it.
struct Opt<'a> {
    name: &'a str,
    value: Option<&'a str>,
    /// Words that it took.
    words: usize,
}

/// Reads the option at the start of `words`, which starts with `-`. `takes_value` says so of a
/// letter or a name. Several letters in one word (`-qt x`) come out as one call each by way of
/// `each`; the result is the number of words taken.
fn read_option<'a>(
    words: &[&'a str],
    takes_value: impl Fn(&str) -> bool,
    mut each: impl FnMut(Opt<'a>),
) -> usize {
    let word = words[0];
    let next = words.get(1).copied();
    if let Some(long) = word.strip_prefix("--") {
        let opt = match long.split_once('=') {
            Some((name, value)) => Opt { name, value: Some(value), words: 1 },
            None if takes_value(long) => Opt { name: long, value: next, words: 2 },
            None => Opt { name: long, value: None, words: 1 },
        };
        let taken = opt.words;
        each(opt);
        return taken.min(words.len());
    }
    let letters = &word[1..];
    for (at, letter) in letters.char_indices() {
        let name = &letters[at..at + letter.len_utf8()];
        let rest = &letters[at + letter.len_utf8()..];
        if takes_value(name) {
            let (value, taken) = match rest {
                "" => (next, 2),
                _ => (Some(rest.strip_prefix('=').unwrap_or(rest)), 1),
            };
            each(Opt { name, value, words: taken });
            return taken.min(words.len());
        }
        each(Opt { name, value: None, words: 1 });
    }
    1
}

impl Flags {
    fn has(self, name: &str) -> bool {
        match name.len() {
            1 => self.short.contains(name),
            _ => self.long.contains(&name),
        }
    }
}

/// What stands in front of the program that COMMAND is about.
#[derive(Debug, Default)]
struct Front {
    /// Where that program stands.
    program: usize,
    /// Words that a look-up has to go through.
    kept: Vec<OsString>,
    behind_others: bool,
    may_run_elsewhere: bool,
    may_read_stdin: bool,
    environment: Vec<(OsString, OsString)>,
}

/// Reads sudo, env, nice, … in front of a program. None where that cannot be done: `env -S` splits
/// a string by rules of its own.
fn read_front(argv: &[OsString], words: &[&str]) -> Option<Front> {
    let mut front = Front::default();
    let mut at = 0;
    while let Some(wrapper) = words.get(at).and_then(|word| wrapper(word)) {
        let start = at;
        at += 1;
        let mut has_options = false;
        while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
            if *word == "--" {
                at += 1;
                break;
            }
            has_options = true;
            if wrapper.matters == Matters::Environment && names_a_string(word) {
                return None;
            }
            // nice -10, and a lone dash, which env reads as -i.
            at += read_option(
                &words[at..],
                |name| wrapper.values.has(name),
                |opt| front.may_run_elsewhere |= wrapper.matters.changes_folder(opt.name),
            );
        }
        at += wrapper.operands;
        while wrapper.assignments && words.get(at).is_some_and(|word| is_assignment(word)) {
            if let Some((name, value)) = words[at].split_once('=') {
                front.environment.push((name.into(), value.into()));
            }
            at += 1;
        }
        front.behind_others |= match wrapper.matters {
            Matters::No => false,
            Matters::Always => true,
            Matters::Environment => has_options,
        };
        // For a password.
        front.may_read_stdin |= wrapper.matters == Matters::Always;
        if wrapper.matters != Matters::No {
            front.kept.extend_from_slice(argv.get(start..at)?);
        }
    }
    front.program = at;
    Some(front)
}

/// A COMMAND that is an engine's client, or runs one.
struct Understood {
    client: Client,
    build: Option<Build>,
    caches: Caches,
    front_may_read: bool,
    several: Option<Several>,
    subcommand: Vec<String>,
}

fn understand(argv: &[OsString], words: &[&str]) -> Option<Understood> {
    let front = read_front(argv, words)?;
    let mut at = front.program;

    let program = argv.get(at)?;
    let name = Path::new(program).file_name()?.to_str()?;
    if let Some(engine) = compose_of(name) {
        return Some(understand_compose(engine, front, words));
    }
    let engine = Engine::of_program(name)?;
    at += 1;
    let standalone = name == "docker-buildx";
    let globals_start = at;
    if !standalone {
        at = skip_options(words, at, |name| engine.global_values().has(name), |_| ());
    }
    let globals = argv.get(globals_start..at)?.to_vec();
    let globals_end = at;
    let client = Client {
        engine,
        program: if standalone { "docker".into() } else { program.clone() },
        globals,
        in_front: front.kept,
        behind_others: front.behind_others,
        may_run_elsewhere: front.may_run_elsewhere,
        environment: front.environment,
    };
    let buildx = standalone || words.get(at) == Some(&"buildx");
    let mut caches = Caches { of_buildx: buildx, ..Caches::default() };
    if buildx {
        at += usize::from(!standalone);
        at = skip_options(words, at, |name| name == "builder", |opt| caches.note(&opt));
    } else if matches!(words.get(at), Some(&("image" | "builder"))) {
        at += 1;
    }
    let is_build = match words.get(at) {
        Some(&"build") => true,
        Some(&"b") => buildx,
        Some(&("bud" | "build-using-dockerfile")) => name == "buildah",
        _ => false,
    };
    let rest = words.get(at + 1..).unwrap_or_default();
    let several = match words.get(at) {
        Some(&"compose") => Several::compose(&format!("{name} compose"), rest),
        Some(&("bake" | "f")) if buildx => Some(Several::bake(rest)),
        _ => None,
    };
    let subcommand = words.get(globals_end..).unwrap_or_default();
    let subcommand = subcommand.iter().take(2).map(|&word| word.to_owned()).collect();
    let build = match is_build {
        true => Some(read_build(rest, engine, &mut caches)),
        false => {
            let Caches { builder, unused, .. } = Caches::among(rest);
            caches = Caches { builder: builder.or(caches.builder), unused, ..caches };
            None
        }
    };
    let front_may_read = front.may_read_stdin;
    Some(Understood { client, build, caches, front_may_read, several, subcommand })
}

/// The engine of a program that is compose alone.
fn compose_of(name: &str) -> Option<Engine> {
    match name {
        "docker-compose" => Some(Engine::Docker),
        "podman-compose" => Some(Engine::Podman),
        _ => None,
    }
}

/// Reads docker-compose, whose options for the engine are docker's.
fn understand_compose(engine: Engine, front: Front, words: &[&str]) -> Understood {
    const OF_THE_ENGINE: [&str; 9] =
        ["H", "host", "c", "context", "tls", "tlscacert", "tlscert", "tlskey", "tlsverify"];
    let program = words[front.program];
    let rest = &words[front.program + 1..];
    let mut globals = Vec::new();
    skip_options(
        rest,
        0,
        |name| several::COMPOSE_VALUES.has(name),
        |opt| {
            if OF_THE_ENGINE.contains(&opt.name) && engine == Engine::Docker {
                let dashes = if opt.name.len() == 1 { "-" } else { "--" };
                globals.push(OsString::from(format!("{dashes}{}", opt.name)));
                globals.extend(opt.value.map(OsString::from));
            }
        },
    );
    let several = Several::compose(program, rest);
    let client = Client {
        engine,
        program: engine.client().into(),
        globals,
        in_front: front.kept,
        behind_others: front.behind_others,
        may_run_elsewhere: front.may_run_elsewhere,
        environment: front.environment,
    };
    let caches = Caches::among(rest);
    let front_may_read = front.may_read_stdin;
    Understood { client, build: None, caches, front_may_read, several, subcommand: Vec::new() }
}

fn wrapper(word: &str) -> Option<&'static Wrapper> {
    let name = Path::new(word).file_name()?.to_str()?;
    WRAPPERS.iter().find(|wrapper| wrapper.names.contains(&name))
}

/// `env -S 'A=1 docker build'`, also as `-vS…` and `--split-string=…`.
fn names_a_string(word: &str) -> bool {
    word.starts_with("--split-string")
        || (!word.starts_with("--") && word.contains('S') && !word.contains(['u', 'C']))
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
    })
}

fn skip_options<'a>(
    words: &[&'a str],
    mut at: usize,
    takes_value: impl Fn(&str) -> bool,
    mut each: impl FnMut(Opt<'a>),
) -> usize {
    while words.get(at).is_some_and(|word| word.len() > 1 && word.starts_with('-')) {
        if words[at] == "--" {
            return at + 1;
        }
        at += read_option(&words[at..], &takes_value, &mut each);
    }
    at
}

/// Reads the flags of a build command. Its only operand is the context, which may stand anywhere.
fn read_build(words: &[&str], engine: Engine, caches: &mut Caches) -> Build {
    const STDIN: [&str; 3] = ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];
    let names_stdin = |word: &&str| STDIN.iter().any(|stdin| word.contains(stdin));
    let mut build = Build { reads_stdin: words.iter().any(names_stdin), ..Build::default() };
    let mut platform = [None; 3];
    let mut at = 0;
    while at < words.len() {
        let word = words[at];
        if word == "--" {
            build.reads_stdin |= words[at..].contains(&"-");
            break;
        }
        if word.len() < 2 || !word.starts_with('-') {
            build.reads_stdin |= word == "-";
            at += 1;
            continue;
        }
        at += read_option(
            &words[at..],
            |name| !BUILD_SWITCHES.has(name),
            |opt| {
                let part = ["os", "arch", "variant"].iter().position(|name| *name == opt.name);
                if let Some(part) = part {
                    platform[part] = opt.value;
                }
                note(&mut build, &opt);
                caches.note(&opt);
            },
        );
    }
    if build.platforms.is_empty() && platform.iter().any(Option::is_some) {
        let [os, architecture, variant] = platform;
        let (os, architecture) =
            (os.unwrap_or("linux"), architecture.unwrap_or(std::env::consts::ARCH));
        let parts = [Some(os), Some(architecture), variant];
        build.platforms.push(parts.into_iter().flatten().collect::<Vec<_>>().join("/"));
    }
    // With -t, buildx and nerdctl mind no other name (buildx, build/opt.go). Podman never does.
    if build.tags.is_empty() && engine != Engine::Podman {
        let makes_image = |output: &&String| !goes_elsewhere(output);
        let names = build.outputs.iter().filter(makes_image).flat_map(|it| names_of_output(it));
        build.tags = names.collect();
    }
    build.tags.extend(build.manifest.clone());
    build
}

/// Is this switch on?
fn is_on(opt: &Opt<'_>) -> bool {
    !matches!(opt.value, Some("false" | "0" | "f" | "F" | "FALSE" | "False"))
}

fn note(build: &mut Build, opt: &Opt<'_>) {
    let value = || opt.value.unwrap_or_default().to_owned();
    let on = is_on(opt);
    match opt.name {
        "t" | "tag" => build.tags.push(value()),
        "o" | "output" => {
            if goes_elsewhere(&value()) {
                build.side_outputs.push(format!("-o {}", value()));
            }
            // Without a file to write to, this is what --load stands for.
            build.load |= output_field(&value(), "type").is_some_and(|kind| kind == "docker")
                && !goes_elsewhere(&value());
            build.outputs.push(value());
        }
        "manifest" => build.manifest = opt.value.map(str::to_owned),
        "f" | "file" => build.reads_stdin |= opt.value == Some("-"),
        "load" => build.load = on,
        "push" => build.push = on,
        "build-arg" => {
            let namespace = opt.value.and_then(|arg| arg.strip_prefix("BUILDKIT_CACHE_MOUNT_NS="));
            build.cache_namespace = namespace.map(str::to_owned).or(build.cache_namespace.take());
        }
        "platform" => build.platforms.extend(value().split(',').map(|p| p.trim().to_owned())),
        "metadata-file" => build.side_outputs.push(format!("--metadata-file {}", value())),
        // Without a name, docker writes none.
        "iidfile" => build.id_file = opt.value.filter(|name| !name.is_empty()).map(PathBuf::from),
        "q" | "quiet" => build.prints_id = on,
        "check" if on => build.builds_nothing = Some("--check".to_owned()),
        "call" if opt.value.is_some_and(|call| call != "build") => {
            build.builds_nothing = Some(format!("--call={}", value()));
        }
        _ => {}
    }
}

/// Does `-o VALUE` write to a file or folder (`-o DIR`, `-o -`, `type=local`, `type=tar`,
/// `type=oci`, `type=docker,dest=FILE`)? See <https://docs.docker.com/build/exporters/>.
pub fn goes_elsewhere(output: &str) -> bool {
    match output_field(output, "type").as_deref() {
        Some("local" | "tar" | "oci" | "cacheonly") => true,
        Some("docker") => output_field(output, "dest").is_some(),
        Some(_) => false,
        // Short for type=local,dest=VALUE, or type=tar,dest=-.
        None => !output.contains('='),
    }
}

/// The names that `-o type=image,name=VALUE` gives the image: a list, if the field is quoted.
fn names_of_output(output: &str) -> Vec<String> {
    let names = output_field(output, "name").unwrap_or_default();
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn output_field(output: &str, name: &str) -> Option<String> {
    csv_fields(output).into_iter().find_map(|field| {
        let (key, value) = field.split_once('=')?;
        (key.trim().eq_ignore_ascii_case(name)).then(|| value.trim().to_owned())
    })
}

/// Splits a line as buildx does: at commas, but for those within double quotes (RFC 4180).
fn csv_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        let Some(field) = fields.last_mut() else { break };
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

/// Does `-o VALUE` write to the image's registry (`type=registry`, `type=image,push=true`)?
pub fn goes_to_registry(output: &str) -> bool {
    match output_field(output, "type").as_deref() {
        Some("registry") => true,
        Some("image") => matches!(
            output_field(output, "push").as_deref(),
            Some("true" | "1" | "t" | "T" | "TRUE" | "True")
        ),
        _ => false,
    }
}

/// COMMAND for people and for the holder record: quoted as a shell needs it, shortened, and
/// without what may be secret. Of `--build-arg` only the name is kept, of `--secret` only the id,
/// of `NAME=value` in front of a program the name, of a URL no user and password.
pub fn describe(argv: &[OsString]) -> String {
    /// Enough for any command that a person wants to read in a message, in bytes.
    const LONGEST: usize = 4096;
    let mut words: Vec<String> = Vec::with_capacity(argv.len());
    let mut expected = None;
    let lossy: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
    let views: Vec<&str> = lossy.iter().map(AsRef::as_ref).collect();
    let program = read_front(argv, &views).map_or(argv.len(), |front| front.program);
    for (at, word) in lossy.iter().enumerate() {
        let hidden = match (expected.take(), secret_flag(word)) {
            (Some(kind), flag) => {
                // Or is it a flag, and what stands before it another one's value?
                expected = flag.and_then(|(kind, value)| value.is_none().then_some(kind));
                hide(kind, word)
            }
            (None, Some((kind, None))) => {
                expected = Some(kind);
                word.to_string()
            }
            (None, Some((kind, Some((name, value))))) => format!("{name}={}", hide(kind, value)),
            (None, None) if at < program && is_assignment(word) => hide_value(word),
            // docker run -e NAME=value
            (None, None) if at > 0 && lossy[at - 1] == "-e" && is_assignment(word) => {
                hide_value(word)
            }
            (None, None) if word.strip_prefix("-e").is_some_and(is_assignment) => hide_value(word),
            (None, None) => hide_in_text(word),
        };
        let clean: String = hidden.chars().map(|c| if is_visible(c) { c } else { ' ' }).collect();
        words.push(
            shlex::try_quote(&clean).map_or_else(|_| clean.clone(), |quoted| quoted.into_owned()),
        );
    }
    let mut text = words.join(" ");
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[derive(Clone, Copy)]
enum Secret {
    /// `NAME=value`: the name may be shown.
    Assignment,
    /// `id=name,src=file`: the id may be shown.
    Mount,
    /// Nothing may be shown.
    Whole,
}

type NameAndValue<'a> = (&'a str, &'a str);

fn secret_flag(word: &str) -> Option<(Secret, Option<NameAndValue<'_>>)> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some((name, value))),
        None => (word, None),
    };
    let kind = match name {
        "--build-arg" | "--env" => Secret::Assignment,
        "--secret" => Secret::Mount,
        "--creds" | "--password" | "--token" => Secret::Whole,
        _ => return None,
    };
    Some((kind, value))
}

fn hide(kind: Secret, value: &str) -> String {
    match kind {
        Secret::Assignment => hide_in_text(value.split('=').next().unwrap_or_default()),
        Secret::Mount => {
            let ids = value.split(',').filter(|part| part.starts_with("id="));
            hide_in_text(&ids.collect::<Vec<_>>().join(","))
        }
        Secret::Whole => "…".to_owned(),
    }
}

fn hide_value(assignment: &str) -> String {
    assignment.split_once('=').map_or_else(String::new, |(name, _)| format!("{name}=…"))
}

/// What stands within a longer word: a script for `sh -c`, a URL, an option of buildctl.
fn hide_in_text(word: &str) -> String {
    let text = hide_behind_flags(word);
    let text = if word.contains(char::is_whitespace) { hide_assignments(&text) } else { text };
    hide_user_in_urls(&hide_secret_fields(&text))
}

/// Hides the values of `NAME=value` in a script: of variables in front of a command, of `export`,
/// of `docker run -e`. What looks like one may be something else; better too much than too little.
fn hide_assignments(script: &str) -> String {
    /// What may stand before a word of a script.
    const BEFORE: &str = "'\"`;&|(){}";
    let mut shown = String::with_capacity(script.len());
    let mut begins_word = true;
    let mut rest = script;
    while let Some(c) = rest.chars().next() {
        let name = if begins_word { assigned_name(rest) } else { None };
        let taken = name.map_or(c.len_utf8(), str::len);
        shown.push_str(&rest[..taken]);
        rest = &rest[taken..];
        begins_word = c.is_whitespace() || BEFORE.contains(c);
        if name.is_some() {
            let (hidden, after) = rest.split_at(end_of_shell_word(rest));
            shown.push_str(if hidden.is_empty() { "" } else { "…" });
            rest = after;
        }
    }
    shown
}

/// What a word gives a value to, up to and with the `=`: `NAME=`, `-eNAME=`, `--env=NAME=`.
fn assigned_name(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--env=").or_else(|| word.strip_prefix("-e")).unwrap_or(word);
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let length = name.find(|c| !is_part(c)).filter(|&length| length > 0)?;
    let end = word.len() - name.len() + length + 1;
    (name[length..].starts_with('=')).then(|| &word[..end])
}

/// Of `type=s3,secret_access_key=…` and its like, what is secret by its name.
fn hide_secret_fields(text: &str) -> String {
    let is_secret = |name: &str| ["secret", "token", "password"].iter().any(|it| name.contains(it));
    let field = |part: &str| match part.split_once('=') {
        Some((name, value)) if is_secret(&name.to_ascii_lowercase()) => {
            let end = value.trim_end().len();
            format!("{name}=…{}", &value[end..])
        }
        _ => part.to_owned(),
    };
    let fields = |word: &str| match word.contains(',') {
        true => word.split(',').map(field).collect::<Vec<_>>().join(","),
        false => word.to_owned(),
    };
    text.split_inclusive(char::is_whitespace).map(fields).collect()
}

/// Cuts the shell word behind each flag of a secret in a script; up to its first `=` where the flag
/// is one of build arguments.
fn hide_behind_flags(text: &str) -> String {
    /// More than is ever shown of one word, in bytes.
    const ENOUGH: usize = 8192;
    const FLAGS: [&str; 6] =
        ["--build-arg", "build-arg:", "--secret", "--creds", "--password", "--token"];
    // --password-stdin is another flag.
    let is_flag_at = |text: &str, flag: &str| {
        text.strip_prefix(flag).is_some_and(|rest| {
            flag.ends_with(':')
                || !rest.starts_with(|c: char| c == '-' || c == '_' || c.is_ascii_alphanumeric())
        })
    };
    let flag_at = |text: &str| FLAGS.into_iter().find(|flag| is_flag_at(text, flag));
    let next_flag = |text: &str| {
        let within_word = |c: char| c == '-' || c.is_alphanumeric();
        let mut starts =
            text.match_indices(['-', 'b']).filter(|(at, _)| !text[..*at].ends_with(within_word));
        starts.find_map(|(at, _)| flag_at(&text[at..]).map(|flag| (at, flag)))
    };
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, flag)) = next_flag(rest) {
        let (before, after) = rest.split_at(at + flag.len());
        shown.push_str(before);
        let value = behind_separators(after);
        shown.push_str(&after[..after.len() - value.len()]);
        if shown.len() > ENOUGH {
            // Others' commands are shown too, and may be made to keep us busy.
            return shown + "…";
        }
        rest = value;
        if flag_at(value).is_some() {
            continue;
        }
        // Where quotes do not match, another flag seems to stand in the value.
        let end = end_of_shell_word(value);
        let end = next_flag(value).map_or(end, |(flag, _)| flag.min(end));
        let (value, behind) = value.split_at(end);
        match (flag.contains("build-arg"), value.split_once('=')) {
            (true, Some((name, _))) => shown.push_str(&format!("{name}=…")),
            // A name alone takes its value from the environment.
            (true, None) => continue,
            (false, _) => shown.push('…'),
        }
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

/// `text` from the first value on. A backslash at the end of a line joins it with the next.
fn behind_separators(mut text: &str) -> &str {
    let separator = |c: char| c == '=' || c.is_whitespace();
    while let Some(rest) = text.strip_prefix("\\\n").or_else(|| text.strip_prefix(separator)) {
        text = rest;
    }
    text
}

/// Where the shell word at the start of `text` ends, quotes and backslashes respected, in bytes.
fn end_of_shell_word(text: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    // How many $( are open.
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (None, '\'' | '"' | '`') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, '(') => depth += 1,
            (None, ')') if depth > 0 => depth -= 1,
            (None, _) if depth > 0 => {}
            (None, c) if c.is_whitespace() || matches!(c, ';' | '&' | '|' | ')') => return at,
            _ => {}
        }
    }
    text.len()
}

/// `https://user:token@host/` without the user and the token. A user alone is no secret where it
/// is part of the address (`ssh://git@host`).
fn hide_user_in_urls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let authority = after.find(['/', ' ', '\'', '"', '?', '#']).unwrap_or(after.len());
        rest = match after[..authority].rfind('@') {
            Some(user) if after[..user].contains(':') || !before.ends_with("ssh://") => {
                shown.push('…');
                &after[user..]
            }
            _ => after,
        };
    }
    shown.push_str(rest);
    shown
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
    fn what_is_no_build_command_names_no_tags() {
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
    fn the_client_keeps_its_global_flags_and_what_decides_whom_it_asks() {
        let line = "timeout 9 sudo -n env A=b docker --context ci -H ssh://h build -t a .";
        let client = command(line).client().cloned().unwrap();
        assert_eq!(client.engine, Engine::Docker);
        assert_eq!(client.globals, ["--context", "ci", "-H", "ssh://h"]);
        assert_eq!(client.in_front, ["sudo", "-n", "env", "A=b"]);
        assert!(client.behind_others);

        let client =
            command("env DOCKER_HOST=unix:///s nice docker build .").client().cloned().unwrap();
        assert_eq!(client.environment, [("DOCKER_HOST".into(), "unix:///s".into())]);
        assert!(!client.behind_others);
        assert!(command("env -u DOCKER_HOST docker build .").client().unwrap().behind_others);
    }

    #[test]
    fn what_a_build_writes_and_where_is_found() {
        let line = "docker buildx build --push --builder b --platform linux/amd64,linux/arm64 \
                    -o type=local,dest=out --iidfile id --metadata-file=m -q --check -t a .";
        let command = command(line);
        assert_eq!(
            command.build(),
            Some(&Build {
                tags: vec!["a".into()],
                manifest: None,
                outputs: vec!["type=local,dest=out".into()],
                load: false,
                push: true,
                platforms: vec!["linux/amd64".into(), "linux/arm64".into()],
                side_outputs: vec!["-o type=local,dest=out".into(), "--metadata-file m".into()],
                prints_id: true,
                id_file: Some("id".into()),
                builds_nothing: Some("--check".into()),
                cache_namespace: None,
                reads_stdin: false,
            })
        );
        assert_eq!(command.builder(), Some("b"));
    }

    #[test]
    fn the_builder_and_what_empties_its_caches_are_found_also_where_a_build_is_not_known() {
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
    fn who_may_read_stdin_is_known() {
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

    #[test]
    fn outputs_that_make_no_image_are_known() {
        for output in [
            "out",
            "-",
            "type=local,dest=out",
            "type=tar,dest=x.tar",
            "type=oci,dest=x",
            "dest=x,type=docker",
            "type=cacheonly",
        ] {
            assert!(goes_elsewhere(output), "{output}");
        }
        for output in ["type=docker", "type=image", "type=image,push=true", "type=registry"] {
            assert!(!goes_elsewhere(output), "{output}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for (line, shown) in [
            (
                "docker build --build-arg TOKEN=s3cret -t a .",
                "docker build --build-arg TOKEN -t a .",
            ),
            ("docker build --build-arg=TOKEN=s3cret .", "docker build --build-arg=TOKEN ."),
            ("docker build --build-arg TOKEN .", "docker build --build-arg TOKEN ."),
            ("docker build --secret id=t,env=s3cret .", "docker build --secret id=t ."),
            ("docker build --secret=id=t,src=s3cret .", "docker build --secret=id=t ."),
            ("podman build --creds u:s3cret .", "podman build --creds … ."),
            ("env TOKEN=s3cret docker build .", "env 'TOKEN=…' docker build ."),
            ("sudo -n TOKEN=s3cret docker build .", "sudo -n 'TOKEN=…' docker build ."),
            ("sudo -u root TOKEN=s3cret make", "sudo -u root TOKEN=… make"),
            ("timeout 60 env -u A TOKEN=s3cret make", "timeout 60 env -u A TOKEN=… make"),
            ("nice -n 5 env TOKEN=s3cret make x=1", "nice -n 5 env TOKEN=… make x=1"),
            ("env -S TOKEN=s3cret make", "env -S TOKEN=… make"),
            (
                "docker build --cache-to type=s3,bucket=b,secret_access_key=s3cret .",
                "docker build --cache-to type=s3,bucket=b,secret_access_key=… .",
            ),
            ("docker build https://u:s3cret@h/r.git", "docker build 'https://…@h/r.git'"),
            ("docker build ssh://git@h/r.git", "docker build ssh://git@h/r.git"),
            (
                "sh -c 'docker build --build-arg TOKEN=s3cret -t a . && x'",
                "sh -c 'docker build --build-arg TOKEN=… -t a . && x'",
            ),
            (
                "sh -c 'docker build --build-arg \"TOKEN=s3cret word\" -t a .; x --secret=id=s3cret'",
                "sh -c 'docker build --build-arg \"TOKEN=… -t a .; x --secret=…'",
            ),
            // A flag that may be another one's value hides what follows all the same.
            (
                "docker build -t --build-arg --build-arg TOKEN=s3cret .",
                "docker build -t --build-arg --build-arg TOKEN .",
            ),
            ("podman build --secret --creds u:s3cret .", "podman build --secret  … ."),
            (
                "docker build --build-arg https://u:s3cret@h .",
                "docker build --build-arg https://…@h .",
            ),
            (
                "sh -c 'docker build --build-arg\tTOKEN=s3cret --token s3cret --secret --creds s3cret .'",
                "sh -c 'docker build --build-arg TOKEN=… --token … --secret --creds … .'",
            ),
            (
                "sh -c 'docker build --build-arg \\\n  TOKEN=s3cret .'",
                r"sh -c 'docker build --build-arg \\   TOKEN=… .'",
            ),
            (
                "sh -c 'docker build --cache-to type=s3,session_token=s3cret -t a .'",
                "sh -c 'docker build --cache-to type=… -t a .'",
            ),
            (
                "sh -c 'docker build --build-arg \"A --password s3cret B=c'",
                "sh -c 'docker build --build-arg A --password … B=…'",
            ),
            (
                r"sh -c 'x --creds\ --secret s3cret --password a\ --build-arg\ A=s3cret b'",
                r"sh -c 'x --creds…--secret … --password …--build-arg\\ A=… b'",
            ),
            (
                "sh -c 'docker login --password-stdin && x'",
                "sh -c 'docker login --password-stdin && x'",
            ),
            ("docker run -e TOKEN=s3cret x", "docker run -e TOKEN=… x"),
            ("docker run -eTOKEN=s3cret x", "docker run -eTOKEN=… x"),
            ("docker compose run --env TOKEN=s3cret x", "docker compose run --env TOKEN x"),
            ("docker run --env=TOKEN=s3cret x", "docker run --env=TOKEN x"),
            ("docker run -e TOKEN x", "docker run -e TOKEN x"),
            ("sh -ec 'TOKEN=s3cret docker build .'", "sh -ec TOKEN=… docker build ."),
            ("sh -c 'a; TOKEN=s3cret b'", "sh -c a; TOKEN=… b"),
            ("sh -c 'export TOKEN=\"s3cret s3cret\" && b'", "sh -c export TOKEN=… && b"),
            ("sh -c '(TOKEN=s3cret b)'", "sh -c (TOKEN=… b)"),
            ("sh -c 'b $(TOKEN=s3cret c)'", "sh -c b $(TOKEN=… c)"),
            ("sh -c 'TOKEN=$(echo s3cret s3cret) b'", "sh -c TOKEN=… b"),
            ("sh -c 'TOKEN=`echo s3cret s3cret` b'", "sh -c TOKEN=… b"),
            ("sh -c 'docker run -eTOKEN=s3cret x'", "sh -c docker run -eTOKEN=… x"),
            ("sh -c 'docker run --env=TOKEN=s3cret x'", "sh -c docker run --env=TOKEN=… x"),
            ("env -S 'TOKEN=s3cret make'", "env -S TOKEN=…"),
            (
                "sh -c 'docker build --build-arg A=`echo s3cret s3cret` .'",
                "sh -c docker build --build-arg A=… .",
            ),
            (
                "buildctl build --opt build-arg:TOKEN=s3cret",
                "buildctl build --opt 'build-arg:TOKEN=…'",
            ),
        ] {
            let said = command(line).to_string();
            assert!(!said.contains("s3cret"), "{said}");
            assert_eq!(said.replace(['\'', '"'], ""), shown.replace(['\'', '"'], ""), "{line}");
        }
    }

    #[test]
    fn control_characters_and_endless_commands_are_tamed() {
        let said = describe(&["a\u{1b}[31m\n".into(), "b".repeat(100_000).into()]);
        assert!(!said.contains(char::is_control) && said.len() < 5000, "{said}");
    }

    proptest! {
        #[test]
        fn variable_in_a_script_never_shows_its_value(
            before in prop_oneof![
                "[a-z ]{0,9}[;&|(\n ]", Just(String::new()), Just("bash -c '".to_owned()),
            ],
            flag in prop_oneof![Just(""), Just("-e"), Just("--env="), Just("export ")],
            quote in prop_oneof![Just(""), Just("'"), Just("\""), Just("`")],
            after in "[a-z ;=']{0,12}",
        ) {
            let script = format!("{before}{flag}TOKEN={quote}s3cret{quote} docker build {after}");
            let said = describe(&["sh".into(), "-c".into(), script.into()]);
            prop_assert!(!said.contains("s3cret"), "{said}");
        }

        #[test]
        fn nothing_makes_the_reader_panic(words in proptest::collection::vec(
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
