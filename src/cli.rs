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
use crate::log;
use crate::reference::Tag;

/// Where lock files live by default: one folder per machine, like the engine.
const DEFAULT_DIR: &str = "/tmp/buildlock";

/// One docker build per tag, however many processes ask for it.
///
/// Takes a lock for the tag, looks again whether the image is there, and runs COMMAND only if it
/// is not. Others wait, and skip once the image exists. Exit 0 means that the image exists.
#[derive(Debug, Parser)]
#[command(
    name = "buildlock",
    version,
    max_term_width = 100,
    args_override_self = true,
    override_usage = "buildlock [OPTIONS] [-t TAG]... -- COMMAND [ARG]...\n       buildlock <SUBCOMMAND>",
    after_help = "See 'buildlock --help' for exit statuses and examples.",
    after_long_help = concat!(
        "Exit status:\n",
        "  0        the image exists: built now, or before\n",
        "  124      a time limit passed: --timeout (or what -E says), or --build-timeout\n",
        "  125      buildlock itself failed: wrong usage, lock folder, engine, no image after the build\n",
        "  126      COMMAND cannot be executed\n",
        "  127      COMMAND was not found\n",
        "  128+N    COMMAND, or buildlock while waiting, was ended by signal N\n",
        "  other    COMMAND's own\n",
        "\n",
        "Examples:\n",
        "  buildlock -- docker build -t env:abc .\n",
        "  buildlock -t env:abc -t env:latest -w 10m -- make image\n",
        "  buildlock --timeout 0s -E 75 -- podman build -t env:abc .",
    ),
)]
pub struct Cli {
    /// The main job, when no subcommand is given.
    #[command(flatten)]
    pub build: BuildArgs,

    /// Where and how to report; for every subcommand.
    #[command(flatten)]
    pub common: CommonArgs,

    /// Something other than the main job.
    #[command(subcommand)]
    pub subcommand: Option<Sub>,
}

/// Options of the main job.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Image that COMMAND builds (repeatable)
    ///
    /// Taken from the -t/--tag of COMMAND where that is a known build command (docker, podman or
    /// nerdctl build); required otherwise.
    #[arg(short, long = "tag", value_name = "TAG")]
    pub tags: Vec<Tag>,

    /// Longest wait for all locks
    ///
    /// A duration such as 90s, 10m or "1h 30m"; a bare number is seconds; 0s does not wait; none
    /// waits without a bound. [env: BUILDLOCK_TIMEOUT]
    #[arg(short = 'w', long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse_limit)]
    pub timeout: Limit,

    /// End a COMMAND that runs longer, with all its descendants
    ///
    /// SIGTERM first, SIGKILL after --kill-after. As in timeout(1), 0 means no limit, and the time
    /// for which the build is stopped (Ctrl-Z) counts: others may be waiting. [env:
    /// BUILDLOCK_BUILD_TIMEOUT]
    #[arg(long, value_name = "DURATION", default_value = "none", value_parser = duration::parse_limit)]
    pub build_timeout: Limit,

    /// From SIGTERM to SIGKILL
    ///
    /// For what --build-timeout ends, and for what a COMMAND leaves behind that failed or was
    /// interrupted. As in timeout(1), 0 means never.
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse_limit)]
    pub kill_after: Limit,

    /// Exit status when a lock was not had in time
    #[arg(short = 'E', long, value_name = "N", default_value_t = exit::TIMEOUT,
          value_parser = clap::value_parser!(u8).range(1..))]
    pub conflict_exit_code: u8,

    /// Build even when the image exists; still one at a time
    ///
    /// Reaches nested calls of buildlock for the same tags.
    #[arg(short, long)]
    pub force: bool,

    /// What to do when the build that was waited for failed
    ///
    /// [env: BUILDLOCK_ON_FAILURE]
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnFailure::Retry)]
    pub on_failure: OnFailure,

    /// One more exclusive lock, for a shared resource that is not an image (repeatable)
    ///
    /// A name has at most 1,024 bytes and no control characters.
    #[arg(long = "lock", value_name = "NAME", value_parser = parse_lock_name)]
    pub locks: Vec<String>,

    /// Build cache that COMMAND writes (repeatable)
    ///
    /// For builds that share a cache mount without sharing=locked. ID is the mount's, or any name
    /// that they agree on. Without files, COMMAND runs alone among them. With files, as in
    /// cargo=Cargo.lock, it runs alone until one build with these very files has succeeded, and
    /// from then on beside the others.
    #[arg(long = "cache", value_name = "ID[=FILE,...]",
          value_parser = OsStringValueParser::new().try_map(|text: OsString| cache::Use::parse(&text)))]
    pub caches: Vec<cache::Use>,

    /// Do not run COMMAND again, alone, when it failed with a shared cache
    #[arg(long)]
    pub no_retry: bool,

    /// Where images are looked up
    ///
    /// By default the engine that COMMAND names, else docker. [env: BUILDLOCK_ENGINE]
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub engine: Option<Engine>,

    /// Where the image has to be: local, registry, or a command that tells
    ///
    /// local, the default: on the engine. registry: in the registry that the tag names, asked with
    /// the user's own credentials and the engine's mirrors; COMMAND is expected to push. Anything
    /// else is a command for sh, which gets the tag in BUILDLOCK_TAG; it ends with 0 if the image
    /// is there and with 1 if it is not, and everything else is an error. [env: BUILDLOCK_CHECK]
    #[arg(long, value_name = "WHERE", value_parser = parse_check)]
    pub check: Option<Check>,

    /// The command that builds the image, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Options that every subcommand knows.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Where lock files live
    ///
    /// One folder per machine, shared by its users, as the engine is. [env: BUILDLOCK_DIR, an
    /// absolute path]
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_DIR,
          value_hint = clap::ValueHint::DirPath)]
    pub lock_dir: PathBuf,

    /// Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or
    /// etcds://
    ///
    /// The lock folder by default, which is for one machine. An etcd cluster is for many; its
    /// users, passwords and certificates come from BUILDLOCK_ETCD_USER, _PASSWORD, _PASSWORD_FILE,
    /// _CACERT, _CERT and _KEY. [env: BUILDLOCK_STORE]
    #[arg(long, value_name = "URL", global = true)]
    pub store: Option<String>,

    /// How to log.
    #[command(flatten)]
    pub log: log::Options,
}

/// The other subcommands.
#[derive(Debug, Subcommand)]
pub enum Sub {
    /// List held locks: tag, holder, since when, number of waiters, command
    ///
    /// Asks the kernel (/proc/locks); takes no lock itself.
    Status {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Print the path of a lock file, for scripts in other languages
    ///
    /// Creates the file if need be. In a shell: exec 9<"$(buildlock path env:abc)"; flock 9
    Path {
        /// Image reference
        #[arg(value_name = "TAG", required_unless_present = "lock")]
        tag: Option<Tag>,
        /// A named lock instead of a tag
        #[arg(long, value_name = "NAME", value_parser = parse_lock_name, conflicts_with = "tag")]
        lock: Option<String>,
    },
    /// Remove lock files that nobody holds or waits for
    Prune,
    /// What is known of build caches
    Cache {
        /// What to do.
        #[command(subcommand)]
        action: CacheAction,
    },
    /// Find what makes builds race: cache mounts without a lock, images that two services build
    ///
    /// Exit status: 0 clean, 1 findings, 2 wrong usage, 125 something cannot be read. Notes are no
    /// findings. Which caches need a lock, and why, is in docs/lint.md.
    Lint {
        /// Add sharing=locked to the cache mounts that race, and change nothing else
        #[arg(long)]
        fix: bool,
        /// Take notes for errors: caches of tools that buildlock does not know
        #[arg(long)]
        strict: bool,
        /// How to print what was found
        #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LintFormat::Text)]
        format: LintFormat,
        /// Dockerfiles, compose files, and folders with them; - is a Dockerfile from stdin
        ///
        /// Folders (the current one if none is given) are searched as ripgrep does it: with all
        /// that is below, without hidden folders and what .gitignore leaves out. The names that
        /// count are Dockerfile and Containerfile, also with more before or after them
        /// (api.Dockerfile, Dockerfile.dev, Dockerfile-dev), dockerfile, compose.yaml,
        /// docker-compose.yaml, and these with more words in them (compose.prod.yaml). A
        /// compose.yaml is taken with the compose.override.yaml beside it.
        #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
        paths: Vec<PathBuf>,
    },
    /// Print a completion script
    Completions {
        /// The shell to complete for
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print a manual page
    Man {
        /// The subcommand whose page to print; without one, buildlock(1)
        #[arg(value_name = "SUBCOMMAND", value_parser = ["status", "path", "prune", "cache", "lint", "completions", "man"])]
        page: Option<String>,
    },
}

/// What `buildlock cache` does.
#[derive(Debug, Subcommand)]
pub enum CacheAction {
    /// List the caches that are known to be warm: id, since when, for which files
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Forget that a cache is warm: the next build with it runs alone
    Forget {
        /// The cache's id
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// What a waiter does when the build that it waited for failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// Build it again
    Retry,
    /// End with the failed build's exit status
    Share,
}

/// How lint prints what it has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LintFormat {
    /// For people, and for editors: PATH:LINE:COLUMN: LEVEL: MESSAGE
    Text,
    /// An array of objects
    Json,
    /// Annotations of GitHub Actions
    Github,
    /// SARIF 2.1.0, for code scanning
    Sarif,
}

fn parse_check(text: &str) -> Result<Check, &'static str> {
    match text {
        "local" => Ok(Check::Local),
        "registry" => Ok(Check::Registry),
        _ if text.trim().is_empty() => Err("it is local, registry, or a command"),
        command => Ok(Check::Command(command.to_owned())),
    }
}

fn parse_lock_name(text: &str) -> Result<String, &'static str> {
    /// It stands in messages and in the lock file, which people read.
    const LONGEST: usize = 1024;
    match text {
        "" => Err("a lock needs a name"),
        _ if text.len() > LONGEST => Err("a lock's name has at most 1,024 bytes"),
        _ if text.chars().any(char::is_control) => Err("a lock's name has no control characters"),
        _ => Ok(text.to_owned()),
    }
}
