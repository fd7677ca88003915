//! Counts the instructions that buildlock needs if the image is present: `make bench-check`.
//!
//! callgrind counts the instructions, while a stand-in plays the engine on a socket. Unlike a time,
//! the number is the same on a busy machine.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::support::Fixture;
use crate::support::fake_engine::{FakeEngine, found, send};

/// The limits: a third more than the 376,000 (static) and 677,000 (dynamic) instructions that Rust
/// 1.95 and glibc 2.36 needed on x86-64 when this was written. The second number includes loading
/// the libraries.
const STATIC_MAX: u64 = 500_000;
const DYNAMIC_MAX: u64 = 900_000;

/// Counts the instructions of a call whose image is present.
#[derive(Parser)]
struct Options {
    /// Program to measure; by default the one that cargo has just built
    #[arg(long, value_name = "FILE")]
    buildlock: Option<PathBuf>,

    /// Accepted because cargo passes it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    check(Options::parse().buildlock).map_or_else(
        |error| {
            eprintln!("bench-check: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn check(buildlock: Option<PathBuf>) -> Result<()> {
    let buildlock = buildlock.unwrap_or_else(|| assert_cmd::cargo::cargo_bin!("buildlock").into());
    let buildlock = fs::canonicalize(&buildlock)
        .with_context(|| format!("cannot measure {}", buildlock.display()))?;
    let (linked, most) = match is_static(&buildlock)? {
        true => ("static", STATIC_MAX),
        false => ("dynamic", DYNAMIC_MAX),
    };
    let taken = instructions(&buildlock)?;
    println!("image exists: {taken} instructions, at most {most} ({linked})");
    ensure!(taken <= most, "a skip needs more instructions than before; see docs/performance.md");
    Ok(())
}

fn instructions(buildlock: &Path) -> Result<u64> {
    let f = Fixture::new();
    let engine = FakeEngine::start(&f.path("engine.sock"), |_, _, stream| send(stream, found()));
    // buildlock would run a script instead of asking the engine's socket, so this is a binary.
    let bin = f.path("elf");
    fs::create_dir(&bin)?;
    fs::copy("/bin/true", bin.join("docker"))?;
    let valgrind = which::which("valgrind").context("valgrind is needed to count instructions")?;
    let output = f
        .program(valgrind)
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(buildlock)
        .args(["-q", "--", "docker", "build", "-t", "env:abc", "."])
        .env("DOCKER_HOST", engine.endpoint())
        .env("PATH", &bin)
        .run();
    output.assert_code(0);
    ensure!(
        engine.requests().len() == 1,
        "the engine was not asked exactly once: {:?}",
        engine.requests()
    );
    let count = output.stderr.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = count.with_context(|| format!("no count in {}", output.stderr))?;
    count.trim().parse().with_context(|| format!("no count: {count}"))
}

fn is_static(program: &Path) -> Result<bool> {
    let ldd = Command::new("ldd").arg(program).output().context("ldd")?;
    let said = String::from_utf8_lossy(&[ldd.stdout, ldd.stderr].concat()).into_owned();
    Ok(said.contains("statically linked") || said.contains("not a dynamic executable"))
}
