//! The command line as clap types. Their doc comments are the help, the man pages and, through
//! them, the contract that users read.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

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
    #[arg(short, long = "tag", value_name = "TAG", value_parser = parse_tag)]
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
        #[arg(value_name = "TAG", value_parser = parse_tag, required_unless_present = "lock")]
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

/// Options that an environment variable may set, for those who give no flag.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("timeout", "BUILDLOCK_TIMEOUT"),
    ("build_timeout", "BUILDLOCK_BUILD_TIMEOUT"),
    ("on_failure", "BUILDLOCK_ON_FAILURE"),
    ("engine", "BUILDLOCK_ENGINE"),
    ("check", "BUILDLOCK_CHECK"),
    ("lock_dir", "BUILDLOCK_DIR"),
    ("store", "BUILDLOCK_STORE"),
    ("log_format", "BUILDLOCK_LOG_FORMAT"),
];

/// Those of them that every subcommand knows.
const COMMON: &[&str] = &["lock_dir", "store", "log_format"];

/// The grammar with what the environment says of the options that `counts` is true of.
fn grammar(counts: impl Fn(&str) -> bool) -> clap::Command {
    with_environment(Cli::command(), counts)
}

/// A variable that is set to nothing counts as unset, as CI systems leave them.
fn with_environment(grammar: clap::Command, counts: impl Fn(&str) -> bool) -> clap::Command {
    let set = |variable: &str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    let of_use = |(option, variable): &&(&str, &str)| counts(option) && set(variable);
    ENVIRONMENT.iter().filter(of_use).fold(grammar, |grammar, (option, variable)| {
        grammar.mut_arg(option, |arg| arg.env(variable).hide_env(true))
    })
}

/// The main job, if that is what is asked for and nothing is wrong with it. Nearly every call is
/// one, and reading it takes a third less where no subcommand has to be made known first.
fn parse_job(words: &[OsString]) -> Option<Cli> {
    let grammar = clap::Command::new("buildlock").args_override_self(true);
    let grammar = CommonArgs::augment_args(BuildArgs::augment_args(grammar));
    let mut matches = with_environment(grammar, |_| true).try_get_matches_from(words).ok()?;
    Some(Cli {
        build: BuildArgs::from_arg_matches_mut(&mut matches).ok()?,
        common: CommonArgs::from_arg_matches_mut(&mut matches).ok()?,
        subcommand: None,
    })
}

/// The command line of this process.
///
/// # Errors
/// What clap says of a wrong one. `--help` and `--version` come as errors too, as clap has it.
pub fn parse() -> Result<Cli, clap::Error> {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(job) = parse_job(&words) {
        return Ok(job);
    }
    let explain = |error| explain_missing_dashes(name_variable(error), &words);
    let mut matches = grammar(|_| true)
        .try_get_matches_from(&words)
        .or_else(|error| match names_subcommand() {
            // What a variable says of building is nothing to them.
            true => grammar(|option| COMMON.contains(&option)).try_get_matches_from(&words),
            false => Err(error),
        })
        .map_err(explain)?;
    refuse_job_beside_subcommand(&matches)?;
    Cli::from_arg_matches_mut(&mut matches)
}

/// Exit status for a wrong command line: 125 for the main job, as `timeout`, `env` and
/// `docker run` have it; 2 for the other subcommands.
pub fn usage_status() -> u8 {
    if names_subcommand() { exit::SUBCOMMAND_USAGE } else { exit::FAILURE }
}

fn names_subcommand() -> bool {
    what_is_right().is_some_and(|matches| matches.subcommand_name().is_some())
}

/// What can be understood of a wrong command line.
fn what_is_right() -> Option<ArgMatches> {
    grammar(|option| COMMON.contains(&option)).ignore_errors(true).try_get_matches().ok()
}

/// Returns how to report a wrong command line, as far as that can be understood.
pub fn how_to_report() -> Option<log::Options> {
    log::Options::from_arg_matches(&what_is_right()?).ok()
}

/// `buildlock -t a status`: the tag would be for nothing.
fn refuse_job_beside_subcommand(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(subcommand) = matches.subcommand_name() else { return Ok(()) };
    let mut job = BuildArgs::augment_args(clap::Command::new(""));
    job.build();
    let given = |id: &clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    match job.get_arguments().find(|arg| given(arg.get_id())) {
        Some(arg) => Err(Cli::command().error(
            ErrorKind::ArgumentConflict,
            format!("'{arg}' is for building, and cannot be used with '{subcommand}'"),
        )),
        None => Ok(()),
    }
}

/// Where a wrong value comes from the environment, say so: nobody typed the option.
fn name_variable(error: clap::Error) -> clap::Error {
    let said = |kind| error.get(kind).map(ToString::to_string);
    let (Some(arg), Some(value)) = (said(ContextKind::InvalidArg), said(ContextKind::InvalidValue))
    else {
        return error;
    };
    let is_it = |(option, variable): &&(&str, &str)| {
        arg.starts_with(&format!("--{} ", option.replace('_', "-")))
            && std::env::var(variable).is_ok_and(|set| set == value)
    };
    match ENVIRONMENT.iter().find(is_it) {
        Some((_, variable)) => {
            let text = error.to_string();
            let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Cli::command().error(error.kind(), format!("{reason} (from {variable})"))
        }
        None => error,
    }
}

/// `buildlock -t a docker build .`: say what is missing, not that `docker` is unexpected.
fn explain_missing_dashes(error: clap::Error, words: &[OsString]) -> clap::Error {
    let kinds = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand];
    let unexpected =
        matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand)
            && !names_subcommand();
    let said = kinds.iter().find_map(|&kind| error.get(kind)).map(ToString::to_string);
    match said {
        Some(said)
            if unexpected && !said.starts_with('-') && words.iter().all(|word| word != "--") =>
        {
            let example = format!("COMMAND goes behind '--', as in: buildlock -t TAG -- {said} …");
            let is_program = which::which(&said).is_ok();
            let similar = (!is_program).then(|| similar_subcommand(&said)).flatten();
            let example = match similar {
                Some(subcommand) => format!("did you mean '{subcommand}'? {example}"),
                None => example,
            };
            Cli::command().error(error.kind(), format!("unexpected argument '{said}': {example}"))
        }
        _ => error,
    }
}

/// The subcommand that `typed` may have been meant for.
fn similar_subcommand(typed: &str) -> Option<String> {
    // clap has no such idea where there may be operands, so it is asked without any.
    let all = Cli::command().get_subcommands().cloned().collect::<Vec<_>>();
    let alone = clap::Command::new("buildlock").subcommands(all);
    let error = alone.try_get_matches_from(["buildlock", typed]).err()?;
    match error.get(ContextKind::SuggestedSubcommand)? {
        ContextValue::Strings(names) => names.first().cloned(),
        name => Some(name.to_string()),
    }
}

fn parse_tag(text: &str) -> Result<Tag, crate::reference::Error> {
    text.parse()
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
