//! What `--if-changed` costs: a large context, a first fingerprint, and a small context.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cases::{case, in_turns, seconds};
use crate::measure::Bench;
use crate::table::{Case, Row, Unit};

const FOLDERS: usize = 100;
const FILES_OF_EACH: usize = 100;
const BYTES_OF_EACH: usize = 30_000;

/// A context of 10,000 files and 300 MB, in a git repository.
struct Large {
    context: PathBuf,
    build: Vec<String>,
}

impl Large {
    fn new(bench: &Bench<'_>) -> Result<Self> {
        let context = bench.site.context(&format!("FROM {}\nCOPY . /src\n", bench.site.base()));
        for folder in 0..FOLDERS {
            let folder = context.join(format!("folder-{folder}"));
            fs::create_dir(&folder)?;
            for file in 0..FILES_OF_EACH {
                let name = folder.join(format!("file-{file}"));
                fs::write(&name, name.as_os_str().as_encoded_bytes().repeat(BYTES_OF_EACH / 40))?;
            }
        }
        for words in [
            &["init", "-q"][..],
            &["add", "."],
            &["-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-qm", "x"],
        ] {
            bench.seconds(git(bench, &context, words))?;
        }
        fs::write(context.join(".dockerignore"), ".git\n")?;
        Ok(Large { build: build(bench, &context), context })
    }
}

/// `docker build -t TAG CONTEXT`, which may take everything from the builder's cache.
fn build(bench: &Bench<'_>, context: &Path) -> Vec<String> {
    let context = context.to_str().expect("a path of ours");
    let words = ["docker", "build", "--network", "none", "-t", &bench.tag, context];
    words.map(str::to_owned).to_vec()
}

fn git(bench: &Bench<'_>, folder: &Path, words: &[&str]) -> Command {
    let folder = folder.to_str().expect("a path of ours");
    bench.program(["git", "-C", folder].iter().chain(words))
}

/// Nothing has changed in a large context.
pub fn large(bench: &Bench<'_>) -> Result<Case> {
    let large = Large::new(bench)?;
    let skip = || bench.buildlock(&["-q", "--if-changed"], &large.build);
    bench.remove_image()?;
    bench.seconds(skip())?;
    bench.check_image()?;
    // The label makes it another build.
    let bare: Vec<String> =
        large.build.iter().map(|word| word.replace(&bench.tag, &bare_tag(bench))).collect();
    bench.site.remove_at_the_end(&bare_tag(bench));
    bench.seconds(bench.program(&bare))?;
    let before = bench.site.image_id(&bench.tag);
    let [buildlock, cached, status] = in_turns(9, || {
        Ok([
            bench.seconds(skip())?,
            bench.seconds(bench.program(&bare))?,
            bench.seconds(git(bench, &large.context, &["status", "--short"]))?,
        ])
    })?;
    ensure!(bench.site.image_id(&bench.tag) == before, "the image was built again");
    let limit = if bench.site.client.buildkit { 0.15 } else { 0.02 };
    let others = [
        seconds("docker build, completely cached", cached).at_most(limit),
        seconds("git status", status).at_most(2.0),
    ];
    let title = "--if-changed: nothing changed in 10,000 files, 300 MB";
    Ok(case(title, seconds("buildlock", buildlock), others))
}

fn bare_tag(bench: &Bench<'_>) -> String {
    format!("{}-bare", bench.tag)
}

/// The first fingerprint of a large context, whose files are in memory.
pub fn first(bench: &Bench<'_>) -> Result<Case> {
    let large = Large::new(bench)?;
    let context = large.context.to_str().context("UTF-8")?.to_owned();
    let empty = bench.site.f.path("no-cache");
    let fingerprint = || -> Result<Command> {
        _ = fs::remove_dir_all(&empty);
        fs::create_dir(&empty)?;
        let mut command = bench.buildlock(&["fingerprint"], &large.build);
        command.env("XDG_CACHE_HOME", &empty);
        Ok(command)
    };
    let sum = || bench.program(["sh", "-c", r#"tar -C "$0" -cf - . | sha256sum"#, &context]);
    let [buildlock, tar, memory] = in_turns(7, || {
        Ok([bench.seconds(fingerprint()?)?, bench.seconds(sum())?, largest_memory(fingerprint()?)?])
    })?;
    let others = [seconds("tar, then sha256sum", tar).at_most(0.3)];
    let title = "--if-changed: first fingerprint of 10,000 files, 300 MB";
    let mut case = case(title, seconds("buildlock fingerprint", buildlock), others);
    case.rows.push(Row::new("its largest memory", Unit::MiB, memory).at_most(30.0));
    Ok(case)
}

/// Returns the largest resident memory of a command, in MiB.
fn largest_memory(mut command: Command) -> Result<f64> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut largest = 0.0;
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        largest = number.unwrap_or(largest);
        std::thread::sleep(Duration::from_micros(500));
    };
    ensure!(ended.success() && largest > 0.0, "{ended}");
    Ok(largest / 1024.0)
}

/// What a small context adds to a skip.
pub fn small(bench: &Bench<'_>) -> Result<Case> {
    const FILES: usize = 20;
    let context = bench.site.context(&format!("FROM {}\nCOPY . /src\n", bench.site.base()));
    for file in 0..FILES {
        fs::write(context.join(format!("file-{file}")), format!("{file}"))?;
    }
    let build = build(bench, &context);
    bench.remove_image()?;
    bench.seconds(bench.buildlock(&["-q", "--if-changed"], &build))?;
    bench.check_image()?;
    let [with, without] = in_turns(60, || {
        Ok([
            bench.seconds(bench.buildlock(&["-q", "--if-changed"], &build))?,
            bench.seconds(bench.buildlock(&["-q"], &build))?,
        ])
    })?;
    let more = with.iter().zip(&without).map(|(with, without)| with - without).collect();
    let others = [seconds("the same without --if-changed", without)];
    let title = "--if-changed: nothing changed in 20 files";
    let mut case = case(title, seconds("buildlock", with), others);
    case.rows.push(seconds("what --if-changed adds", more).at_most(0.001));
    Ok(case)
}
