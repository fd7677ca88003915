//! Builds a Docker image once, however many processes ask for it at the same time.
//!
//! Parse, start logging, call, turn the result into an exit status; nothing else.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use buildlock::cli::{CacheAction, Cli, Sub, parse};
use buildlock::exit::{self, Exit, Failure};
use buildlock::lock::place::Place;
use buildlock::lock::{CACHE_LOCKS, Key, Pruned};
use buildlock::record::Holder;
use buildlock::subject::Subject;
use buildlock::{cache, generate, lint, log, run, signals, status};
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    signals::prepare();
    let cli = match parse::command_line() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            log::usage(&error, parse::how_to_report());
            return ExitCode::from(parse::usage_status());
        }
        Err(help) => {
            // Nobody may be there to read it.
            _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if let Err(error) = log::start(&cli.common.log) {
        _ = writeln!(std::io::stderr(), "buildlock: error: {error}");
        return ExitCode::from(parse::usage_status());
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
    let Some(subcommand) = subcommand else { return run::run(build, &common) };
    let mut out = std::io::stdout().lock();
    let place = || {
        let usage = |error| Failure::new(exit::SUBCOMMAND_USAGE, format!("{error:#}"));
        Place::of(common.store.as_deref(), &common.lock_dir).map_err(usage)
    };
    match subcommand {
        Sub::Status { json } => {
            status::print(&place()?.look()?.held()?, json, &mut out)?;
        }
        Sub::Path { tag, lock } => {
            let subject = tag.as_ref().map(Subject::from).or(lock.map(Subject::Named));
            if let Some(subject) = subject {
                let file =
                    place()?.open(Arc::new(Holder::default), &[])?.file(&Key::new(subject))?;
                // Byte for byte: it is for scripts to open, and need not be text.
                out.write_all(file.as_os_str().as_bytes())?;
                writeln!(out)?;
            }
        }
        Sub::Prune => {
            let Pruned { removed, others } = place()?.look()?.prune()?;
            let files = |count| if count == 1 { "lock file" } else { "lock files" };
            write!(out, "{removed} {} removed", files(removed))?;
            match others {
                0 => writeln!(out)?,
                _ => writeln!(out, "; {others} {} of other users left", files(others))?,
            }
        }
        Sub::Cache { action: CacheAction::Ls { json } } => {
            cache::list(&place()?.look()?.notes(CACHE_LOCKS)?, json, &mut out)?;
        }
        Sub::Cache { action: CacheAction::Forget { id } } => {
            let subject = Subject::Cache(id.clone());
            if !cache::forget(&*place()?.look()?, &id)? {
                tracing::warn!("nothing is remembered of {subject}");
            }
        }
        Sub::Lint { fix, strict, format, paths } => {
            let options = lint::Options { fix, strict, quiet: common.log.quiet, format, paths };
            return lint::run(&options, &mut out);
        }
        Sub::Completions { shell } => generate::completions(shell, &mut out)?,
        Sub::Man { page } => generate::man(page.as_deref(), &mut out)?,
    }
    Ok(Exit::SUCCESS)
}

/// `buildlock status | head -1`: nobody reads on, which is no error. Only a subcommand that prints
/// its result writes to stdout.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}
