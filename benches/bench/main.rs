//! buildlock beside what people use without it: `make bench`.
//!
//! What is compared is measured in turns, in one run, on the real engine; every row is the median
//! of its runs. Nothing is printed of a run in which a command failed, an image is missing in the
//! end, or buildlock built more than once.

mod cases;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/engine/mod.rs"]
mod engine;
mod measure;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::cases::Which;
use crate::measure::Bench;
use crate::table::Case;

/// Times of buildlock beside what people use without it, on the real engine.
#[derive(Parser)]
struct Options {
    /// Only this case (repeatable)
    #[arg(long, value_enum, value_name = "CASE")]
    only: Vec<Which>,

    /// Write the table to a file, too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Write every single figure to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    // As docker's client decides it.
    let buildkit = std::env::var("DOCKER_BUILDKIT").is_ok_and(|value| value == "1");
    let Some(site) = engine::site(buildkit) else {
        bail!("no engine to measure anything on");
    };
    let bench = Bench::new(&site);
    let machine = bench.machine()?;
    eprintln!("bench: {machine}");

    let mut measured: Vec<Case> = Vec::new();
    for which in Which::all().filter(|it| options.only.is_empty() || options.only.contains(it)) {
        eprintln!("bench: {which}");
        measured.push(which.measure(&bench).with_context(|| format!("{which}: no figures"))?);
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
    Ok(ExitCode::SUCCESS)
}
