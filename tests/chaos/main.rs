//! Chaos: hundreds of calls over many tags, named locks and caches, beside a saboteur.
//!
//! The saboteur kills, stops, removes, fills and breaks whatever can be killed, stopped, removed,
//! filled and broken. If root runs it, ordinary users meddle with the lock folder, and pids are
//! reused. The promise is checked during the run and afterwards:
//!
//! - no two builds of a tag, or under one named lock, overlapped under the same lock file;
//! - each exit 0 was true: the engine's last answer to this very process was that the image is
//!   present, and with `--force` its own build had succeeded;
//! - nothing was built because a look-up failed;
//! - no build overlapped with one that had their cache for itself, and none shared a cache that was
//!   not warm for its files;
//! - a caller that waits to have a cache alone is not overtaken by later callers;
//! - a build that fails beside others runs once more, alone, and no more often;
//! - each other exit status had its cause;
//! - no call waits for ever, and nothing is left behind: processes, locks, descriptors, files.
//!
//! The seed decides everything that is left to chance, except for scheduling:
//! `cargo test --test chaos -- --seed 7 --seconds 600`.
//!
//! This program plays six parts: the test with the engine and the saboteur; the engine's client
//! (when it is called `docker`); a foreign program that holds a lock (`hold`); an ordinary user who
//! meddles with the lock folder (`neighbour`); a process with a chosen pid (`reborn`); and itself
//! again in a mount namespace with a small disk for the lock folder, where that is allowed.

mod caches;
mod calls;
mod client;
mod engine;
mod meddling;
mod neighbour;
mod plan;
mod reborn;
mod saboteur;
mod world;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::world::World;

/// The seed of the run that `cargo test` includes.
const SEED: u64 = 1;
/// The length of that run.
const SECONDS: u64 = 12;
/// The longest wait for calls that still run when the sabotage is over.
const ALL_END_WITHIN: Duration = Duration::from_secs(60);
/// The size of the lock folder's disk, in KiB: a page for each record, including removed files.
const DISK_KIB: u32 = 4096;
/// Set for the run in a mount namespace.
const ON_SMALL_DISK: &str = "BUILDLOCK_CHAOS_FOLDER";

const NAME: &str = "the_promise_holds_in_chaos";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if Path::new(&words[0]).file_name().is_some_and(|name| name == "docker") {
        return client::build();
    }
    if words.get(1).is_some_and(|word| word == "hold") {
        return client::hold(&words[2..]);
    }
    if words.get(1).is_some_and(|word| word == "neighbour") {
        return neighbour::program();
    }
    if words.get(1).is_some_and(|word| word == "reborn") {
        return reborn::program(&words[2..]);
    }
    let Some(options) = Options::parse(&words[1..]) else { return ExitCode::SUCCESS };
    if let Some(folder) = std::env::var_os(ON_SMALL_DISK) {
        return run(&options, PathBuf::from(folder), true);
    }
    let folder = tempfile::Builder::new().prefix("buildlock-chaos-").tempdir().unwrap();
    match run_on_small_disk(folder.path()) {
        Some(status) => status,
        None => {
            println!("skipped in part: needs root, unshare and mount to fill a disk of its own");
            run(&options, folder.path().to_owned(), false)
        }
    }
}

/// The command line, with the words that cargo and nextest use for test programs.
struct Options {
    seed: u64,
    duration: Duration,
}

impl Options {
    fn parse(words: &[String]) -> Option<Self> {
        let mut options = Options { seed: SEED, duration: Duration::from_secs(SECONDS) };
        let (mut filtered, mut matches) = (false, false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|word| word.parse().ok());
            match word.as_str() {
                "--list" => {
                    println!("{NAME}: test");
                    return None;
                }
                "--ignored" => return None,
                "--seed" => options.seed = number().expect("--seed N"),
                "--seconds" => {
                    options.duration = Duration::from_secs(number().expect("--seconds N"))
                }
                "--test-threads" | "--format" | "--color" | "--skip" | "--logfile" => {
                    words.next();
                }
                flag if flag.starts_with('-') => {}
                filter => {
                    filtered = true;
                    matches |= NAME.contains(filter);
                }
            }
        }
        (!filtered || matches).then_some(options)
    }
}

/// Runs this program again with a small disk in `folder`. Returns none where that is not allowed.
///
/// The disk disappears with the last process that sees it.
fn run_on_small_disk(folder: &Path) -> Option<ExitCode> {
    let disk = folder.join("disk");
    std::fs::create_dir(&disk).unwrap();
    let script = format!("mount -t tmpfs -o size={DISK_KIB}k,mode=755 chaos \"$0\" && exec \"$@\"");
    let in_namespace = |words: &[std::ffi::OsString]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        command.arg(&disk).args(words);
        command
    };
    let allowed = in_namespace(&["true".into()]).output().is_ok_and(|it| it.status.success());
    if !allowed {
        return None;
    }
    let words: Vec<_> = std::iter::once(std::env::current_exe().unwrap().into_os_string())
        .chain(std::env::args_os().skip(1))
        .collect();
    let status = in_namespace(&words).env(ON_SMALL_DISK, folder).status().unwrap();
    Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(options: &Options, folder: PathBuf, on_small_disk: bool) -> ExitCode {
    let Options { seed, duration } = *options;
    // Room for removed files that stay open.
    let room = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: room.maximum, ..room };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).unwrap();
    println!("chaos: seed {seed}, {} s, {} at once", duration.as_secs(), plan::AT_ONCE);
    let world = Arc::new(World::new(seed, folder, on_small_disk));
    if world.is_root && !world.can_choose_numbers {
        println!("skipped in part: needs root and Linux 5.5 to choose a process's number");
    }
    let engine = engine::start(&world);
    let descriptors = own_descriptors();
    let end = Instant::now() + duration;
    let saboteur = saboteur::start(&world, end);
    calls::launch_until(&world, end);
    saboteur.join().expect("the saboteur");
    calls::wait_for_all(&world, ALL_END_WITHIN);
    world.check_what_is_left(descriptors);
    engine.stop(&world);
    let whole_run = duration >= Duration::from_secs(SECONDS);
    world.report(whole_run)
}

/// Returns how many descriptors this process has open.
fn own_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
