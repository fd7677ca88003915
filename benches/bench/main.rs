//! Compares buildlock with what people use without it: `make bench`.
//!
//! One run on the real engine measures all alternatives in turns, and each row shows the median of
//! its runs. The bench fails, and prints no table, if a command fails, if an image is missing in the
//! end, or if buildlock builds more than once.

mod cases;
mod if_changed;
mod measure;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::cases::Which;
use crate::measure::Bench;
use crate::table::Case;

/// Compares buildlock with what people use without it, on the real engine.
#[derive(Parser)]
struct Options {
    /// Program to measure; by default the one that cargo has just built
    #[arg(long, value_name = "FILE")]
    buildlock: Option<PathBuf>,

    /// Only this case (repeatable)
    #[arg(long, value_enum, value_name = "CASE")]
    only: Vec<Which>,

    /// Also write the table to a file
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Write all figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Accepted because cargo passes it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    measure(&Options::parse()).map_or_else(
        |error| {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn measure(options: &Options) -> Result<()> {
    // Docker's client decides the same way.
    let buildkit = std::env::var("DOCKER_BUILDKIT").is_ok_and(|value| value == "1");
    let Some(site) = support::engine::site(buildkit) else {
        bail!("no engine to measure on");
    };
    let built = || assert_cmd::cargo::cargo_bin!("buildlock").to_owned();
    let buildlock = options.buildlock.clone().unwrap_or_else(built);
    // The commands run in other folders.
    let buildlock = buildlock.canonicalize().with_context(|| format!("{}", buildlock.display()))?;
    ensure!(buildlock.to_str().is_some(), "{} is not UTF-8", buildlock.display());
    let bench = Bench::new(&site, buildlock);
    let machine = bench.machine()?;
    eprintln!("bench: {machine}");

    let mut measured: Vec<Case> = Vec::new();
    for which in Which::all().filter(|it| options.only.is_empty() || options.only.contains(it)) {
        eprintln!("bench: {which}");
        measured.push(which.measure(&bench).with_context(|| format!("cannot measure {which}"))?);
    }

    let text = format!("{machine}\n\n{}", table::markdown(&measured));
    print!("{text}");
    if let Some(path) = &options.markdown {
        fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", table::json(&machine, &measured));
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
