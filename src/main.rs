//! Builds a Docker image once, however many processes ask for it at the same time.
//!
//! This file only reads the command line, starts the log, calls a module, and turns the result into
//! an exit status.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use buildlock::cli::{CacheAction, Cli, Sub, parse};
use buildlock::exit::{self, Exit, Failure};
use buildlock::lock::place::Place;
use buildlock::lock::{Key, Overview, Pruned};
use buildlock::record::Holder;
use buildlock::subject::Subject;
use buildlock::{cache, each, generate, lint, log, run, signals, status};
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    signals::prepare();
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse::command_line(&words) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            log::usage(&error, parse::log_options(&words));
            return ExitCode::from(parse::usage_status(&words));
        }
        Err(help) => {
            // A reader who has gone, as in `buildlock --help | head -1`, is not an error.
            _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if let Err(error) = log::start(&cli.common.log) {
        _ = writeln!(std::io::stderr(), "buildlock: error: {error}");
        return ExitCode::from(parse::usage_status(&words));
    }
    let exit = call(cli).unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return Exit::Signal(Signal::SIGPIPE as i32);
        }
        log::error(&error);
        exit::of(&error)
    });
    match exit {
        Exit::Code(code) => ExitCode::from(code),
        Exit::Signal(signal) => signals::end_by(signal),
    }
}

fn call(cli: Cli) -> Result<Exit> {
    let Cli { build, common, subcommand } = cli;
    let Some(subcommand) = subcommand else {
        return if build.each { each::run(build, &common) } else { run::run(build, &common) };
    };
    let mut out = std::io::stdout().lock();
    let place = || {
        let usage = |error| Failure::new(exit::SUBCOMMAND_USAGE, format!("{error:#}"));
        Place::of(common.store.as_deref(), &common.lock_dir).map_err(usage)
    };
    match subcommand {
        Sub::Status { json } => {
            let Overview { held, incomplete } = place()?.look()?.held()?;
            status::print(&held, json, &mut out)?;
            if let Some(why) = incomplete {
                return Err(why);
            }
        }
        Sub::Path { tag, lock } => {
            let subject = tag.as_ref().map(Subject::from).or(lock.map(Subject::Named));
            if let Some(subject) = subject {
                print_path(place()?, subject, &mut out)?;
            }
        }
        Sub::Prune => print_pruned(&place()?.look()?.prune()?, &mut out)?,
        Sub::Cache { action: CacheAction::Ls { json } } => {
            cache::list(&*place()?.look()?, json, &mut out)?;
        }
        Sub::Cache { action: CacheAction::Forget { id } } => {
            let subject = Subject::Cache(id.clone());
            if !cache::forget(&*place()?.look()?, &id)? {
                tracing::warn!("nothing is remembered about {subject}");
            }
        }
        Sub::Lint { fix, strict, format, paths } => {
            let options = lint::Options { fix, strict, quiet: common.log.quiet, format, paths };
            return lint::run(&options, &mut out);
        }
        Sub::Fingerprint { inputs } => {
            return run::fingerprint(inputs, common.log.verbose, &mut out);
        }
        Sub::Completions { shell } => generate::completions(shell, &mut out)?,
        Sub::Man { page } => generate::man(page.as_deref(), &mut out)?,
    }
    Ok(Exit::SUCCESS)
}

fn print_path(place: Place, subject: Subject, out: &mut impl Write) -> Result<()> {
    let file = place.open(Arc::new(Holder::default), &[])?.file(&Key::new(subject))?;
    // The bytes as they are: scripts open this path, and a path need not be UTF-8.
    out.write_all(file.as_os_str().as_bytes())?;
    Ok(writeln!(out)?)
}

fn print_pruned(pruned: &Pruned, out: &mut impl Write) -> Result<()> {
    let Pruned { removed, others } = *pruned;
    let files = |count| if count == 1 { "lock file" } else { "lock files" };
    write!(out, "{removed} {} removed", files(removed))?;
    if others > 0 {
        write!(out, "; {others} {} of other users left", files(others))?;
    }
    Ok(writeln!(out)?)
}

/// Returns whether the reader of stdout has gone, as in `buildlock status | head -1`. Only
/// subcommands that print a result write to stdout.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}
