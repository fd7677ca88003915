//! Reads a command line, and the environment variables that stand for options.
//!
//! Also explains wrong command lines, where clap knows too little to say what the user meant.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches};

use super::{BuildArgs, Cli, CommonArgs};
use crate::exit;
use crate::log;

/// Options whose default an environment variable may set.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("timeout", "BUILDLOCK_TIMEOUT"),
    ("build_timeout", "BUILDLOCK_BUILD_TIMEOUT"),
    ("if_changed", "BUILDLOCK_IF_CHANGED"),
    ("on_failure", "BUILDLOCK_ON_FAILURE"),
    ("max_builds", "BUILDLOCK_MAX_BUILDS"),
    ("engine", "BUILDLOCK_ENGINE"),
    ("check", "BUILDLOCK_CHECK"),
    ("lock_dir", "BUILDLOCK_DIR"),
    ("store", "BUILDLOCK_STORE"),
    ("log_format", "BUILDLOCK_LOG_FORMAT"),
];

/// Reads a command line, with the program's name as its first word.
///
/// # Errors
/// The command line is wrong. To clap, `--help` and `--version` are errors, too.
pub fn command_line(words: &[OsString]) -> Result<Cli, clap::Error> {
    if let Some(build) = parse_build(words) {
        return Ok(build);
    }
    let mut matches = parse_any(words).map_err(|error| explain(error, words))?;
    refuse_build_options_with_subcommand(&matches)?;
    Cli::from_arg_matches_mut(&mut matches)
}

/// Returns the exit status for a wrong command line. The main job ends with 125, as `timeout`,
/// `env` and `docker run` do; the subcommands end with 2.
pub fn usage_status(words: &[OsString]) -> u8 {
    if names_subcommand(words) { exit::SUBCOMMAND_USAGE } else { exit::FAILURE }
}

/// Returns the log options of a wrong command line, if they can be read.
pub fn log_options(words: &[OsString]) -> Option<log::Options> {
    log::Options::from_arg_matches(&parse_tolerantly(words)?).ok()
}

/// Reads a valid command line of the main job. Almost every call is one, and without the
/// subcommands the grammar costs a third less.
///
/// Returns `None` for anything else; [`parse_any`] then reports the error.
fn parse_build(words: &[OsString]) -> Option<Cli> {
    let grammar = clap::Command::new("buildlock").args_override_self(true);
    let grammar = CommonArgs::augment_args(BuildArgs::augment_args(grammar));
    let mut matches = with_environment(grammar, |_| true).try_get_matches_from(words).ok()?;
    Some(Cli {
        build: BuildArgs::from_arg_matches_mut(&mut matches).ok()?,
        common: CommonArgs::from_arg_matches_mut(&mut matches).ok()?,
        subcommand: None,
    })
}

/// Reads a command line of the main job or of a subcommand. A subcommand ignores variables that
/// stand for options of the main job, even if their values are wrong.
fn parse_any(words: &[OsString]) -> Result<ArgMatches, clap::Error> {
    let grammar = with_environment(Cli::command(), |_| true);
    grammar.try_get_matches_from(words).or_else(|error| {
        if names_subcommand(words) {
            grammar_for_subcommands().try_get_matches_from(words)
        } else {
            Err(error)
        }
    })
}

/// Returns as much of a wrong command line as can be understood.
fn parse_tolerantly(words: &[OsString]) -> Option<ArgMatches> {
    grammar_for_subcommands().ignore_errors(true).try_get_matches_from(words).ok()
}

fn names_subcommand(words: &[OsString]) -> bool {
    parse_tolerantly(words).is_some_and(|matches| matches.subcommand_name().is_some())
}

/// Returns the whole grammar, with the variables of only those options that subcommands have, too.
fn grammar_for_subcommands() -> clap::Command {
    let common = CommonArgs::augment_args(clap::Command::new(""));
    let is_common = |option: &str| common.get_arguments().any(|arg| arg.get_id() == option);
    with_environment(Cli::command(), is_common)
}

/// Adds the variables of the options that `accepts` accepts to a grammar. An empty variable counts
/// as unset, because CI systems often define variables as empty.
fn with_environment(grammar: clap::Command, accepts: impl Fn(&str) -> bool) -> clap::Command {
    let is_set = |variable: &str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    let is_used = |(option, variable): &&(&str, &str)| accepts(option) && is_set(variable);
    let grammar =
        ENVIRONMENT.iter().filter(is_used).fold(grammar, |grammar, (option, variable)| {
            grammar.mut_arg(option, |arg| arg.env(variable).hide_env(true))
        });
    // `fingerprint` looks where the main job looks.
    let has_fingerprint = grammar.find_subcommand("fingerprint").is_some();
    let shared = ENVIRONMENT.iter().filter(|(option, variable)| {
        has_fingerprint && is_set(variable) && ["check", "engine"].contains(option)
    });
    shared.fold(grammar, |grammar, (option, variable)| {
        grammar.mut_subcommand("fingerprint", |subcommand| {
            subcommand.mut_arg(option, |arg| arg.env(variable).hide_env(true))
        })
    })
}

/// Refuses options of the main job in front of a subcommand, where they would have no effect:
/// `buildlock -t a status`.
fn refuse_build_options_with_subcommand(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(subcommand) = matches.subcommand_name() else { return Ok(()) };
    let mut main_job = BuildArgs::augment_args(clap::Command::new(""));
    // clap completes its arguments in this step. It builds no image.
    main_job.build();
    let is_given =
        |id: &clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    match main_job.get_arguments().find(|arg| is_given(arg.get_id())) {
        Some(arg) => Err(Cli::command().error(
            ErrorKind::ArgumentConflict,
            format!("'{arg}' is for building, and cannot be used with '{subcommand}'; remove it"),
        )),
        None => Ok(()),
    }
}

/// Adds to clap's error what clap cannot know.
fn explain(error: clap::Error, words: &[OsString]) -> clap::Error {
    let error = name_variable(error);
    match unexpected_word(&error, words) {
        Some(word) => missing_dashes(error.kind(), &word),
        None => error,
    }
}

/// Names the variable that a wrong value comes from: the user did not type the option.
fn name_variable(error: clap::Error) -> clap::Error {
    let context = |kind| error.get(kind).map(ToString::to_string);
    let (Some(arg), Some(value)) =
        (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue))
    else {
        return error;
    };
    let is_source = |(option, variable): &&(&str, &str)| {
        arg.starts_with(&format!("--{} ", option.replace('_', "-")))
            && std::env::var(variable).is_ok_and(|set| set == value)
    };
    match ENVIRONMENT.iter().find(is_source) {
        Some((_, variable)) => {
            let text = error.to_string();
            let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Cli::command().error(error.kind(), format!("{reason} (from {variable})"))
        }
        None => error,
    }
}

/// Returns the word that clap did not expect, if it may be the start of a build command without
/// `--` in front of it.
fn unexpected_word(error: &clap::Error, words: &[OsString]) -> Option<String> {
    let is_unexpected =
        matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand);
    if !is_unexpected || names_subcommand(words) || words.iter().any(|word| word == "--") {
        return None;
    }
    let kinds = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand];
    let word = kinds.iter().find_map(|&kind| error.get(kind)).map(ToString::to_string);
    word.filter(|word| !word.starts_with('-'))
}

/// Explains `buildlock -t a docker build .`. clap would only say that `docker` is unexpected.
fn missing_dashes(kind: ErrorKind, word: &str) -> clap::Error {
    let advice = format!("the build command goes after '--', as in: buildlock -t TAG -- {word} …");
    let is_program = which::which(word).is_ok();
    let similar = (!is_program).then(|| similar_subcommand(word)).flatten();
    let advice = match similar {
        Some(subcommand) => format!("did you mean '{subcommand}'? {advice}"),
        None => advice,
    };
    Cli::command().error(kind, format!("unexpected argument '{word}': {advice}"))
}

/// Returns the subcommand that `typed` may have been meant for.
fn similar_subcommand(typed: &str) -> Option<String> {
    // clap makes no suggestion in a grammar with positional arguments, so this one has none.
    let all = Cli::command().get_subcommands().cloned().collect::<Vec<_>>();
    let alone = clap::Command::new("buildlock").subcommands(all);
    let error = alone.try_get_matches_from(["buildlock", typed]).err()?;
    match error.get(ContextKind::SuggestedSubcommand)? {
        ContextValue::Strings(names) => names.first().cloned(),
        name => Some(name.to_string()),
    }
}
