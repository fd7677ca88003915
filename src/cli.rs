//! The command line as clap types. Their doc comments are the help and the man pages, and so the
//! contract that users read.

pub mod parse;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cache;
use crate::command::Engine;
use crate::duration::{self, Limit};
use crate::exit;
use crate::image::check::Check;
use crate::lock::SLOTS_MAX;
use crate::log;
use crate::reference::Tag;

/// The default lock folder: one per machine, like the engine.
const DEFAULT_DIR: &str = "/tmp/buildlock";

/// One docker build per tag, however many processes ask for it.
///
/// Locks the tag, checks again whether the image exists, and runs the build command only if it does
/// not. Other callers wait, and skip the build once the image exists. Exit status 0 means that the
/// image exists.
#[derive(Debug, Parser)]
#[command(
    name = "buildlock",
    version,
    max_term_width = 100,
    args_override_self = true,
    override_usage = "buildlock [OPTIONS] [-t TAG]... -- COMMAND [ARG]...\n       buildlock <SUBCOMMAND>",
    after_help = "See 'buildlock --help' for exit statuses and examples.",
    after_long_help = after_long_help(),
)]
pub struct Cli {
    /// The main job, when no subcommand is given.
    #[command(flatten)]
    pub build: BuildArgs,

    /// Options of the main job and of every subcommand.
    #[command(flatten)]
    pub common: CommonArgs,

    /// Something other than the main job.
    #[command(subcommand)]
    pub subcommand: Option<Sub>,
}

/// Options of the main job.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Image that the build command builds (repeatable)
    ///
    /// By default the -t/--tag of a known build command (docker, podman or nerdctl build). Required
    /// with any other build command.
    #[arg(short, long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<Tag>,

    /// Longest wait for all locks, and for a slot of --max-builds
    ///
    /// A duration such as 90s, 10m or "1h 30m". A bare number is seconds, 0s does not wait, and none
    /// waits without a limit. [env: BUILDLOCK_TIMEOUT]
    #[arg(short = 'w', long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse_limit)]
    pub(crate) timeout: Limit,

    /// End a build that runs longer, with all its descendants
    ///
    /// Sends SIGTERM first, and SIGKILL after --kill-after. As in timeout(1), 0 means no limit. The
    /// time for which the build is stopped (Ctrl-Z) counts, because other callers may be waiting.
    /// [env: BUILDLOCK_BUILD_TIMEOUT]
    #[arg(long, value_name = "DURATION", default_value = "none", value_parser = duration::parse_limit)]
    pub(crate) build_timeout: Limit,

    /// Time between SIGTERM and SIGKILL
    ///
    /// Applies to a build that --build-timeout ends, and to what a failed or interrupted build
    /// command leaves behind. As in timeout(1), 0 means never to send SIGKILL.
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse_limit)]
    pub(crate) kill_after: Limit,

    /// Exit status when a lock or a slot was not acquired in time
    #[arg(short = 'E', long, value_name = "N", default_value_t = exit::TIMEOUT,
          value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) conflict_exit_code: u8,

    /// Build even if the image exists; still one at a time
    ///
    /// Also applies to nested calls of buildlock for the same tags.
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Build if the image was not built from the current inputs
    ///
    /// Without it, an image that exists is enough. The inputs are the build context as .dockerignore
    /// leaves it, the Dockerfile, the options, the platform, and the base images. The image carries
    /// their fingerprint in the label buildlock.inputs, which buildlock adds to the build command.
    /// docs/if-changed.md says what counts. [env: BUILDLOCK_IF_CHANGED, true or false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", hide_possible_values = true,
          action = clap::ArgAction::Set, hide_default_value = true)]
    pub(crate) if_changed: bool,

    /// File or folder that the build command reads, for --if-changed (repeatable)
    ///
    /// For a build command that buildlock cannot read. The command itself has to set the label, which
    /// it finds in BUILDLOCK_LABEL: docker build --label "$BUILDLOCK_LABEL" …
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    pub(crate) inputs: Vec<PathBuf>,

    /// Build each image of docker compose build or docker buildx bake by itself, at the same time
    ///
    /// One build for each service or target, with its own lock, look and verification. Services that
    /// build one image alike are built once. What a build reads of others is built first.
    #[arg(long)]
    pub each: bool,

    /// With --each, end all other builds as soon as one has failed
    #[arg(long, requires = "each")]
    pub(crate) fail_fast: bool,

    /// What a waiter does when the build that it waited for failed
    ///
    /// [env: BUILDLOCK_ON_FAILURE]
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnFailure::Retry)]
    pub(crate) on_failure: OnFailure,

    /// Another exclusive lock, for a shared resource that is not an image (repeatable)
    ///
    /// Also works without an image: buildlock --lock deploy -- make deploy only runs the command
    /// under the lock. A name has at most 1,024 bytes and no control characters.
    #[arg(long = "lock", value_name = "NAME", value_parser = parse_lock_name)]
    pub(crate) locks: Vec<String>,

    /// The same lock, shared with other callers that say --share (repeatable)
    ///
    /// Callers that share a lock run side by side. A caller that says --lock with this name waits
    /// for them, and holds back those that come later.
    #[arg(long = "share", value_name = "NAME", value_parser = parse_lock_name)]
    pub(crate) shares: Vec<String>,

    /// Build only if fewer than N builds run that say --max-builds, whatever they build
    ///
    /// Counts the builds of all callers with the same lock folder, and so of one machine. A caller
    /// waits for a free slot without holding a lock. 1 to 256, or none. [env: BUILDLOCK_MAX_BUILDS]
    #[arg(long, value_name = "N", default_value = "none", value_parser = MaxBuilds::parse)]
    pub(crate) max_builds: MaxBuilds,

    /// Build cache that the build command writes (repeatable)
    ///
    /// For builds that share a cache mount without sharing=locked. ID is the ID of the mount, or any
    /// name that the builds agree on. Without files, the build command runs alone among the builds
    /// with this cache. With files, as in cargo=Cargo.lock, it runs alone until one build with
    /// exactly these files has succeeded. After that, such builds run side by side.
    #[arg(long = "cache", value_name = "ID[=FILE,...]",
          value_parser = OsStringValueParser::new().try_map(|text: OsString| cache::Use::parse(&text)))]
    pub(crate) caches: Vec<cache::Use>,

    /// After a failure with a shared cache, do not run the build command again alone
    #[arg(long)]
    pub(crate) no_retry: bool,

    /// Engine where images are looked up
    ///
    /// By default the engine of the build command, or docker if it has none. [env: BUILDLOCK_ENGINE]
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub(crate) engine: Option<Engine>,

    /// Where the image must be: local, registry, or a command that checks
    ///
    /// local, the default, means on the engine. registry means in the registry that the tag names:
    /// buildlock asks it with the user's own credentials and the engine's mirrors, and the build
    /// command must push. Anything else is a command for sh, with the tag in BUILDLOCK_TAG. The
    /// command exits with 0 if the image exists and with 1 if it does not; any other status is an
    /// error. [env: BUILDLOCK_CHECK]
    #[arg(long, value_name = "WHERE", value_parser = parse_check)]
    pub(crate) check: Option<Check>,

    /// The build command, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Options of the main job and of every subcommand.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// The lock folder, where lock files live
    ///
    /// One folder per machine, which all users share, as they share the engine. [env: BUILDLOCK_DIR,
    /// an absolute path]
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_DIR,
          value_hint = clap::ValueHint::DirPath)]
    pub lock_dir: PathBuf,

    /// Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://
    ///
    /// By default the lock folder, which serves one machine. An etcd cluster serves many. Its user,
    /// password and certificates come from BUILDLOCK_ETCD_USER, _PASSWORD, _PASSWORD_FILE, _CACERT,
    /// _CERT and _KEY. [env: BUILDLOCK_STORE]
    #[arg(long, value_name = "URL", global = true)]
    pub store: Option<String>,

    /// Where and how to log.
    #[command(flatten)]
    pub log: log::Options,
}

/// Everything but the main job.
#[derive(Debug, Subcommand)]
pub enum Sub {
    /// List held locks: tag, holder, since when, number of waiters, command
    ///
    /// Asks the kernel (/proc/locks), and takes no lock itself.
    Status {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Print the path of a lock file, for scripts in other languages
    ///
    /// Creates the file if it does not exist. In a shell: exec 9<"$(buildlock path env:abc)"; flock 9
    Path {
        /// Image reference
        #[arg(value_name = "TAG", required_unless_present = "lock")]
        tag: Option<Tag>,
        /// Name of a lock (--lock), instead of a tag
        #[arg(long, value_name = "NAME", value_parser = parse_lock_name, conflicts_with = "tag")]
        lock: Option<String>,
    },
    /// Remove lock files that nobody holds or waits for
    Prune,
    /// List or forget the build caches that are known to be warm
    Cache {
        /// What to do with them.
        #[command(subcommand)]
        action: CacheAction,
    },
    /// Find what makes builds race: cache mounts without a lock, images that are built twice
    ///
    /// Exit status: 0 no findings, 1 findings, 2 wrong usage, 125 something cannot be read. Notes do
    /// not count as findings. docs/lint.md says which caches need a lock, and why.
    Lint {
        /// Add sharing=locked to the cache mounts that race, and change nothing else
        #[arg(long)]
        fix: bool,
        /// Treat notes as errors: caches of tools that buildlock does not know
        #[arg(long)]
        strict: bool,
        /// How to print the findings
        #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LintFormat::Text)]
        format: LintFormat,
        /// Dockerfiles, compose and bake files, folders that contain them; - is a Dockerfile from stdin
        ///
        /// By default the current folder. Folders are searched as ripgrep does it: recursively, but
        /// without hidden folders and what .gitignore excludes. These names count: Dockerfile and
        /// Containerfile, also with something before or after them (api.Dockerfile, Dockerfile.dev,
        /// Dockerfile-dev); dockerfile; compose.yaml and docker-compose.yaml, also with more words
        /// in them (compose.prod.yaml); docker-bake.hcl and docker-bake.json. A compose.yaml or bake
        /// file is read together with the override beside it.
        #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
        paths: Vec<PathBuf>,
    },
    /// Print the fingerprint of what a build command reads, as --if-changed computes it
    ///
    /// With -v, also what went into it, without secrets. With --diff, instead, in what the inputs
    /// differ from those of the image that exists: one line for each kind of input.
    ///
    /// Exit status: 0; with --diff 1 if they differ; 2 wrong usage, 125 an input cannot be read.
    Fingerprint {
        /// What to look at.
        #[command(flatten)]
        inputs: FingerprintArgs,
    },
    /// Print a completion script
    Completions {
        /// Shell to complete for
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print a man page
    Man {
        /// Subcommand whose page to print; by default buildlock(1)
        #[arg(value_name = "SUBCOMMAND", value_parser = ["status", "path", "prune", "cache", "lint", "fingerprint", "completions", "man"])]
        page: Option<String>,
    },
}

/// Options of `buildlock fingerprint`.
#[derive(Debug, Args)]
pub struct FingerprintArgs {
    /// Say in what the inputs differ from those of the image
    #[arg(long)]
    pub(crate) diff: bool,

    /// Image that the build command builds (repeatable)
    #[arg(short, long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<Tag>,

    /// File or folder that the build command reads (repeatable)
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    pub(crate) inputs: Vec<PathBuf>,

    /// Engine where images are looked up
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub(crate) engine: Option<Engine>,

    /// Where the image must be: local or registry
    #[arg(long, value_name = "WHERE", value_parser = parse_check)]
    pub(crate) check: Option<Check>,

    /// The build command, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// What `buildlock cache` does.
#[derive(Debug, Subcommand)]
pub enum CacheAction {
    /// List the caches that are known to be warm: ID, since when, for which files
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Forget that a cache is warm, so that the next build with it runs alone
    Forget {
        /// ID of the cache
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// What a waiter does when the build that it waited for failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// Build again
    Retry,
    /// Exit with the status of the failed build
    Share,
}

/// How `lint` prints its findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LintFormat {
    /// For people and editors: PATH:LINE:COLUMN: LEVEL: MESSAGE
    Text,
    /// A JSON array of objects
    Json,
    /// Annotations for GitHub Actions
    Github,
    /// SARIF 2.1.0, for code scanning
    Sarif,
}

/// Returns the end of `buildlock --help`.
fn after_long_help() -> String {
    let mut text = "Exit status:\n".to_owned();
    for (status, meaning) in exit::MEANINGS {
        text.push_str(&format!("  {status:<7}  {meaning}\n"));
    }
    text.push_str(
        "\n\
         Examples:\n  \
           buildlock -- docker build -t env:abc .\n  \
           buildlock -t env:abc -t env:latest -w 10m -- make image\n  \
           buildlock --timeout 0s -E 75 -- podman build -t env:abc .",
    );
    text
}

/// How many builds may run at once, if that is limited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaxBuilds(pub(crate) Option<u16>);

impl MaxBuilds {
    fn parse(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number @ 1..=SLOTS_MAX) => Ok(MaxBuilds(Some(number))),
            _ if text == "none" => Ok(MaxBuilds(None)),
            _ => Err(format!("a number from 1 to {SLOTS_MAX}, or none")),
        }
    }
}

impl std::fmt::Display for MaxBuilds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("none"),
        }
    }
}

fn parse_check(text: &str) -> Result<Check, &'static str> {
    match text {
        "local" => Ok(Check::Local),
        "registry" => Ok(Check::Registry),
        _ if text.trim().is_empty() => Err("it must be local, registry, or a command"),
        command => Ok(Check::Command(command.to_owned())),
    }
}

fn parse_lock_name(text: &str) -> Result<String, &'static str> {
    /// People read it in messages and in the lock file.
    const LONGEST: usize = 1024;
    match text {
        "" => Err("a lock needs a name"),
        _ if text.len() > LONGEST => Err("the name of a lock has at most 1,024 bytes"),
        _ if text.chars().any(char::is_control) => {
            Err("the name of a lock has no control characters")
        }
        _ => Ok(text.to_owned()),
    }
}
