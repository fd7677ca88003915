//! Compares ways to run five builds at once that share cargo's cache mount: `make bench-caches`.
//!
//! Each build fetches the crates of this project's own `Cargo.lock` into a mount over
//! `$CARGO_HOME/registry`, where simultaneous builds collide. It then sleeps for the time that
//! compiling would take. Crates come from the registry that this machine uses.

#[path = "../../tests/support/mod.rs"]
mod support;
#[allow(dead_code)]
#[path = "../bench/table.rs"]
mod table;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use crate::support::engine::rust_image::{CacheMounts, Rust, build_flags, rust};
use crate::table::median;

/// The builds that run at once.
const SERVICES: [&str; 5] = ["api", "executor", "worker", "sensor", "notifier"];

/// Compares ways to run five builds at once that share cargo's cache mount, on the real engine.
#[derive(Parser)]
struct Options {
    /// Program to measure; by default the one that cargo has just built
    #[arg(long, value_name = "FILE")]
    buildlock: Option<PathBuf>,

    /// How often to measure everything, in turns
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,

    /// How long a build sleeps after fetching its crates
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    work: u32,

    /// Only this method (repeatable)
    #[arg(long, value_enum, value_name = "METHOD")]
    only: Vec<Method>,

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

/// A way to share the cache.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// All at once
    Parallel,
    /// All at once; BuildKit gives the mount to one build after the other
    Locked,
    /// One first, then the others at once
    Warm,
    /// All at once, behind an exclusive lock of buildlock
    Cache,
    /// All at once, behind buildlock, which lets one build fill the cache first
    CacheFiles,
    /// The same, with a cache that was filled and then removed
    CacheFilesPruned,
    /// One call of docker-compose, behind buildlock, which builds each image by itself
    Each,
}

impl Method {
    fn title(self) -> &'static str {
        match self {
            Method::Parallel => "parallel without a lock",
            Method::Locked => "`sharing=locked`",
            Method::Warm => "warm, then parallel",
            Method::Cache => "`buildlock --cache cargo`",
            Method::CacheFiles => "`buildlock --cache cargo=Cargo.lock`",
            Method::CacheFilesPruned => "the same after `docker builder prune`",
            Method::Each => "`buildlock --each --cache cargo=Cargo.lock -- docker-compose build`",
        }
    }

    /// Returns the options of its mounts after their ID.
    fn sharing(self) -> &'static str {
        if self == Method::Locked { ",sharing=locked" } else { "" }
    }

    /// Returns the value of `--cache`, if this method uses buildlock.
    fn cache(self, id: &str, lock_file: &Path) -> Option<String> {
        match self {
            Method::Parallel | Method::Locked | Method::Warm => None,
            Method::Cache => Some(id.to_owned()),
            Method::CacheFiles | Method::CacheFilesPruned | Method::Each => {
                Some(format!("{id}={}", lock_file.display()))
            }
        }
    }
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
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    let Some(rust) = rust() else {
        bail!("no engine, or no image that contains Rust");
    };
    let built = || assert_cmd::cargo::cargo_bin!("buildlock").to_owned();
    let buildlock = options.buildlock.clone().unwrap_or_else(built);
    // The commands run in other folders.
    let buildlock = buildlock.canonicalize().with_context(|| format!("{}", buildlock.display()))?;
    let bench = Bench { rust: &rust, buildlock, work: options.work };
    let machine = bench.machine()?;
    eprintln!("bench: {machine}");

    let wanted = |method: &&Method| options.only.is_empty() || options.only.contains(method);
    let mut measured: Vec<Figures> = Method::value_variants()
        .iter()
        .filter(wanted)
        .map(|&method| Figures { method, rounds: Vec::new() })
        .collect();
    for round in 1..=options.rounds {
        for figures in &mut measured {
            let title = figures.method.title();
            eprintln!("bench: round {round} of {}: {title}", options.rounds);
            let name = format!("{round}-{}", figures.method as usize);
            let figure = bench.round(figures.method, &name).context(title)?;
            figures.rounds.push(figure);
        }
    }

    let text = format!("{machine}\n\n{}", markdown(&measured));
    print!("{text}");
    if let Some(path) = &options.markdown {
        fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", json(&machine, &measured));
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The place of all measurements.
struct Bench<'a> {
    rust: &'a Rust,
    buildlock: PathBuf,
    work: u32,
}

impl Bench<'_> {
    /// Describes the engine, the machine and the builds.
    fn machine(&self) -> Result<String> {
        let cores = std::thread::available_parallelism()?;
        let format = "Docker Engine {{.Server.Version}}, client {{.Client.Version}}";
        let engine = self.rust.site.client.ask(["version", "--format", format]);
        let builds = SERVICES.len();
        let work = self.work;
        Ok(format!("{engine}, BuildKit; {cores} cores; {builds} builds of {work} s behind a fetch"))
    }

    /// Measures a method once, with a new cache mount.
    fn round(&self, method: Method, name: &str) -> Result<Round> {
        let site = &self.rust.site;
        let caches = CacheMounts::new(site, name);
        let recipe = Recipe {
            bench: self,
            method,
            name,
            context: self.context(method, &caches.name)?,
            id: &caches.name,
        };
        let first = match method {
            Method::Warm => {
                let one = recipe.build("first", &SERVICES[..1])?;
                one.and(recipe.build("first", &SERVICES[1..])?)
            }
            Method::CacheFilesPruned => {
                recipe.build("before", &SERVICES)?;
                ensure!(caches.remove() > 0, "no cache mount to remove");
                recipe.build("first", &SERVICES)?
            }
            _ => recipe.build("first", &SERVICES)?,
        };
        let incremental = recipe.build("incremental", &SERVICES)?;
        Ok(Round { first, incremental })
    }

    /// Makes a build context with this project's dependencies and nothing to compile.
    fn context(&self, method: Method, id: &str) -> Result<PathBuf> {
        let site = &self.rust.site;
        let (image, sharing, work) = (self.rust.image, method.sharing(), self.work);
        let context = site.context(&format!(
            "FROM {image}\n\
             ENV CARGO_HOME=/cargo\n\
             WORKDIR /src\n\
             COPY . .\n\
             ARG BUILD\n\
             RUN --mount=type=cache,id={id},target=/cargo/registry{sharing} \
             : {id} $BUILD; cargo fetch --locked && sleep {work}\n"
        ));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::copy(root.join("Cargo.lock"), context.join("Cargo.lock"))?;
        let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
        fs::write(context.join("Cargo.toml"), dependencies(&manifest))?;
        fs::create_dir(context.join("src"))?;
        fs::write(context.join("src/lib.rs"), "")?;
        Ok(context)
    }
}

/// Returns a manifest without its targets, because the context does not contain their files.
fn dependencies(manifest: &str) -> String {
    let mut wanted = false;
    let lines = manifest.lines().filter(|line| {
        if line.starts_with('[') {
            wanted = ["[package]", "[dependencies]", "[dev-dependencies]"].contains(line);
        }
        wanted
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// What to build, and how.
struct Recipe<'a> {
    bench: &'a Bench<'a>,
    method: Method,
    /// The name of the round.
    name: &'a str,
    context: PathBuf,
    /// The ID of the cache mount.
    id: &'a str,
}

impl Recipe<'_> {
    /// Builds these services at once.
    fn build(&self, phase: &str, services: &[&str]) -> Result<Builds> {
        if self.method == Method::Each {
            return self.compose(phase, services);
        }
        let site = &self.bench.rust.site;
        let mut commands = Vec::new();
        for service in services {
            let log = site.f.path(format!("{}-{phase}-{service}", self.id));
            // Each build needs an image of its own, because buildlock skips an image that exists.
            let mut command = self.command(&site.tag(&format!("{}-{phase}-{service}", self.name)));
            // The argument makes the step run whatever was built before. --no-cache would also empty
            // the cache mounts.
            command.arg("--build-arg").arg(format!("BUILD={phase}-{service}"));
            let stderr = File::create(&log)?;
            command.stdin(Stdio::null()).stdout(stderr.try_clone()?).stderr(stderr);
            commands.push((command, log));
        }
        let start = Instant::now();
        let mut running: Vec<(Child, PathBuf)> = Vec::new();
        for (mut command, log) in commands {
            let child = command.spawn().with_context(|| format!("cannot start {command:?}"));
            running.push((child?, log));
        }
        let mut builds = Builds { seconds: 0.0, started: running.len(), failures: Vec::new() };
        for (child, log) in &mut running {
            if !child.wait()?.success() {
                let text = fs::read(log)?;
                builds.failures.push(reason(&String::from_utf8_lossy(&text)));
            }
        }
        builds.seconds = start.elapsed().as_secs_f64();
        for failure in &builds.failures {
            eprintln!("bench:   a build failed: {failure}");
        }
        Ok(builds)
    }

    /// Builds these services with one call of docker-compose.
    fn compose(&self, phase: &str, services: &[&str]) -> Result<Builds> {
        let site = &self.bench.rust.site;
        let image = |service: &str| site.tag(&format!("{}-{phase}-{service}", self.name));
        let service = |service: &&str| {
            let args = json!({ "BUILD": format!("{phase}-{service}") });
            let build = json!({ "context": self.context, "network": "host", "args": args });
            ((*service).to_owned(), json!({ "image": image(service), "build": build }))
        };
        let services_of_file: serde_json::Map<_, _> = services.iter().map(service).collect();
        let folder = site.f.path(format!("{}-{phase}", self.id));
        fs::create_dir(&folder)?;
        fs::write(
            folder.join("compose.yaml"),
            json!({ "services": services_of_file }).to_string(),
        )?;
        let cache = self.method.cache(self.id, &self.context.join("Cargo.lock"));
        let cache = cache.context("the method uses a cache")?;
        let call = site.program(&self.bench.buildlock).env("COMPOSE_DOCKER_CLI_BUILD", "1");
        let call = call.args(["--each", "--cache", &cache, "--", "docker-compose", "build"]);
        let mut call = call.args(&build_flags()[2..]).current_dir(&folder).into_command();
        let log = folder.join("log");
        let stderr = File::create(&log)?;
        call.stdin(Stdio::null()).stdout(stderr.try_clone()?).stderr(stderr);
        let start = Instant::now();
        let status = call.spawn().with_context(|| format!("cannot start {call:?}"))?.wait()?;
        let seconds = start.elapsed().as_secs_f64();
        let missing = services.iter().filter(|it| site.image_id(&image(it)).is_none()).count();
        ensure!(status.success() == (missing == 0), "{status}, but {missing} images are missing");
        let text = fs::read(log)?;
        let failures = vec![reason(&String::from_utf8_lossy(&text)); missing];
        Ok(Builds { seconds, started: services.len(), failures })
    }

    fn command(&self, tag: &str) -> Command {
        let site = &self.bench.rust.site;
        let invocation = match self.method.cache(self.id, &self.context.join("Cargo.lock")) {
            None => site.program("docker"),
            Some(cache) => {
                site.program(&self.bench.buildlock).args(["--cache", &cache, "--", "docker"])
            }
        };
        let invocation = invocation.args(["build", "-t", tag]).args(build_flags());
        invocation.arg(&self.context).into_command()
    }
}

/// Returns the innermost cause that cargo or the engine gives.
fn reason(text: &str) -> String {
    let mut errors = text.lines().filter(|line| line.contains("(os error"));
    let line = errors.next_back().or_else(|| text.trim_end().lines().last()).unwrap_or_default();
    // The number of the step and its time are left out.
    let words = line.split_whitespace();
    let word = |word: &&str| word.starts_with('#') || word.parse::<f64>().is_ok();
    words.skip_while(word).collect::<Vec<_>>().join(" ")
}

/// The results of builds that were started at once.
struct Builds {
    /// The time until the last build had ended.
    seconds: f64,
    started: usize,
    failures: Vec<String>,
}

impl Builds {
    /// Adds the results of builds that were started later.
    fn and(mut self, later: Builds) -> Builds {
        self.seconds += later.seconds;
        self.started += later.started;
        self.failures.extend(later.failures);
        self
    }
}

struct Round {
    first: Builds,
    incremental: Builds,
}

/// The results of all rounds of a method.
struct Figures {
    method: Method,
    rounds: Vec<Round>,
}

impl Figures {
    fn seconds(&self, of: fn(&Round) -> &Builds) -> Vec<f64> {
        self.rounds.iter().map(|round| of(round).seconds).collect()
    }

    fn failures(&self, of: fn(&Round) -> &Builds) -> (usize, usize) {
        let builds = || self.rounds.iter().map(of);
        (builds().map(|it| it.failures.len()).sum(), builds().map(|it| it.started).sum())
    }

    fn failed(&self) -> String {
        let (failed, started) = self.failures(|round| &round.first);
        match self.failures(|round| &round.incremental) {
            (0, _) => format!("{failed} of {started}"),
            (later, all) => format!("{failed} of {started}, {later} of {all} incremental"),
        }
    }
}

fn markdown(measured: &[Figures]) -> String {
    let head = ["method", "first build", "incremental", "failed builds"];
    let seconds = |runs: Vec<f64>| format!("{:.1} s", median(&runs));
    let line = |it: &Figures| {
        let first = seconds(it.seconds(|round| &round.first));
        let incremental = seconds(it.seconds(|round| &round.incremental));
        [it.method.title().to_owned(), first, incremental, it.failed()]
    };
    let lines: Vec<[String; 4]> =
        std::iter::once(head.map(str::to_owned)).chain(measured.iter().map(line)).collect();
    table::grid(&lines)
}

/// Returns all figures.
fn json(machine: &str, measured: &[Figures]) -> Value {
    let builds = |of: fn(&Round) -> &Builds, it: &Figures| {
        let (failed, started) = it.failures(of);
        let reasons: Vec<&String> =
            it.rounds.iter().flat_map(|round| &of(round).failures).collect();
        json!({
            "seconds": it.seconds(of),
            "median": median(&it.seconds(of)),
            "builds": started,
            "failed": failed,
            "reasons": reasons,
        })
    };
    let method = |it: &Figures| {
        json!({
            "method": it.method.title(),
            "first": builds(|round| &round.first, it),
            "incremental": builds(|round| &round.incremental, it),
        })
    };
    json!({ "machine": machine, "methods": measured.iter().map(method).collect::<Vec<_>>() })
}
