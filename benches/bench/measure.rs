//! Measures commands: starts them at once, takes the time until the last has ended, and checks that
//! they did what they are measured for.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::support::engine::{Recipe, Site};

/// The place of all measurements: an engine, a lock folder, and a file for flock(1).
pub struct Bench<'a> {
    pub site: &'a Site,
    pub tag: String,
    /// The program to measure.
    pub buildlock: PathBuf,
    flock: PathBuf,
    stderr: PathBuf,
}

impl<'a> Bench<'a> {
    pub fn new(site: &'a Site, buildlock: PathBuf) -> Self {
        Bench {
            site,
            buildlock,
            tag: site.tag("image"),
            flock: site.f.path("flock"),
            stderr: site.f.path("stderr"),
        }
    }

    /// Describes the engine and the machine.
    pub fn machine(&self) -> Result<String> {
        let cores = std::thread::available_parallelism()?;
        let format = "Docker Engine {{.Server.Version}}, client {{.Client.Version}}";
        let engine = self.site.client.ask(["version", "--format", format]);
        let builder = if self.site.client.buildkit { "BuildKit" } else { "classic builder" };
        Ok(format!("{engine}, {builder}; {cores} cores"))
    }

    // The commands that are compared.

    /// Returns the words of a `docker build` whose recipe is not in the engine's cache.
    pub fn build(&self, recipe: &Recipe) -> Vec<String> {
        self.site.build_words(&self.tag, recipe)
    }

    pub fn program<A: AsRef<str>>(&self, words: impl IntoIterator<Item = A>) -> Command {
        let mut words = words.into_iter();
        let program = words.next().expect("a command has a first word");
        let invocation = self.site.program(program.as_ref());
        invocation.args(words.map(|word| word.as_ref().to_owned())).into_command()
    }

    /// `buildlock OPTIONS -- COMMAND`
    pub fn buildlock<A: AsRef<str>>(
        &self,
        options: &[&str],
        command: impl IntoIterator<Item = A>,
    ) -> Command {
        let words = std::iter::once(self.buildlock.to_str().expect("looked at before"))
            .chain(options.iter().copied())
            .chain(["--"]);
        let command = command.into_iter().map(|word| word.as_ref().to_owned());
        self.program(words.map(str::to_owned).chain(command))
    }

    /// `docker image inspect TAG`
    pub fn inspect(&self) -> Command {
        self.program(["docker", "image", "inspect", &self.tag])
    }

    /// `docker image inspect TAG || docker build`
    pub fn inspect_or(&self, build: &[String]) -> Command {
        self.program(self.words_of_inspect_or(build))
    }

    /// `flock FILE COMMAND`
    pub fn flock<A: AsRef<str>>(&self, command: impl IntoIterator<Item = A>) -> Command {
        let file = self.flock.to_str().expect("a path of ours");
        let command = command.into_iter().map(|word| word.as_ref().to_owned());
        self.program(["flock".to_owned(), file.to_owned()].into_iter().chain(command))
    }

    /// `flock FILE sh -c 'docker image inspect TAG || docker build'`
    pub fn flock_and_inspect_or(&self, build: &[String]) -> Command {
        self.flock(self.words_of_inspect_or(build))
    }

    fn words_of_inspect_or(&self, build: &[String]) -> Vec<String> {
        let script = format!(
            r#"docker image inspect "$0" >/dev/null 2>&1 || {{ echo '{BUILDING}' >&2; exec "$@"; }}"#
        );
        let words = ["sh", "-c", &script, &self.tag].map(str::to_owned);
        words.into_iter().chain(build.iter().cloned()).collect()
    }

    // Measurements.

    /// Returns how many seconds a command takes.
    ///
    /// # Errors
    /// Fails if the command fails.
    pub fn seconds(&self, command: Command) -> Result<f64> {
        self.seconds_of_all(vec![command])
    }

    /// Starts these commands at once, and returns how many seconds pass until all have ended.
    ///
    /// # Errors
    /// Fails if a command fails.
    pub fn seconds_of_all(&self, commands: Vec<Command>) -> Result<f64> {
        let stderr = File::create(&self.stderr)?;
        let start = Instant::now();
        let mut children = Vec::with_capacity(commands.len());
        for command in commands {
            children.push(start_with(command, &stderr)?);
        }
        let failed = children
            .iter_mut()
            .map(Child::wait)
            .filter(|ended| !ended.as_ref().is_ok_and(|status| status.success()));
        let failed = failed.count();
        let elapsed = start.elapsed();
        ensure!(failed == 0, "{failed} of {} failed: {}", children.len(), self.last_words());
        Ok(elapsed.as_secs_f64())
    }

    /// Removes the image, and returns how many seconds these commands take to build it once.
    ///
    /// # Errors
    /// Fails if a command fails, if the image is missing afterwards, or if it was not built exactly
    /// once.
    pub fn seconds_to_build_once(&self, commands: Vec<Command>) -> Result<f64> {
        let seconds = self.seconds_to_build(commands)?;
        let said = fs::read_to_string(&self.stderr)?;
        let builds = said.lines().filter(|line| line.contains(BUILDING)).count();
        ensure!(builds == 1, "built {builds} times: {}", self.last_words());
        Ok(seconds)
    }

    /// Removes the image, and returns how many seconds these commands take to build it, however often
    /// they do.
    ///
    /// # Errors
    /// Fails if a command fails, or if the image is missing afterwards.
    pub fn seconds_to_build(&self, commands: Vec<Command>) -> Result<f64> {
        self.remove_image()?;
        let seconds = self.seconds_of_all(commands)?;
        self.check_image()?;
        Ok(seconds)
    }

    /// Starts commands that all write to one stderr, a file with this name.
    pub fn start(&self, commands: Vec<Command>, name: &str) -> Result<Started> {
        let path = self.site.f.path(name);
        let stderr = File::create(&path)?;
        let children =
            commands.into_iter().map(|command| start_with(command, &stderr)).collect::<Result<_>>();
        Ok(Started { children: children?, stderr: path })
    }

    /// # Errors
    /// Fails if the image is missing.
    pub fn check_image(&self) -> Result<()> {
        ensure!(self.site.image_id(&self.tag).is_some(), "no image: {}", self.last_words());
        Ok(())
    }

    /// # Errors
    /// Fails if the image still exists afterwards.
    pub fn remove_image(&self) -> Result<()> {
        self.site.client.docker(["image", "rm", "--force", &self.tag]);
        ensure!(self.site.image_id(&self.tag).is_none(), "the image cannot be removed");
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.stderr).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

/// What buildlock and the scripts write to stderr for each build.
pub const BUILDING: &str = ": building: ";

fn start_with(mut command: Command, stderr: &File) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone()?);
    command.spawn().with_context(|| format!("cannot start {command:?}"))
}

/// Commands that are running.
pub struct Started {
    children: Vec<Child>,
    stderr: PathBuf,
}

impl Started {
    /// Returns how often their threads have given up the processor of their own accord, which is how
    /// often they have woken.
    pub fn wake_ups(&self) -> Result<usize> {
        let mut switches = 0;
        for child in &self.children {
            for task in fs::read_dir(format!("/proc/{}/task", child.id()))? {
                let status = fs::read_to_string(task?.path().join("status"))?;
                switches += number_after(&status, "voluntary_ctxt_switches:")?;
            }
        }
        Ok(switches)
    }

    /// Returns the private memory of each, in MiB.
    pub fn private_memory(&self) -> Result<Vec<f64>> {
        let of = |child: &Child| {
            let sums = fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id()))?;
            let clean = number_after(&sums, "Private_Clean:")?;
            let dirty = number_after(&sums, "Private_Dirty:")?;
            Ok((clean + dirty) as f64 / 1024.0)
        };
        self.children.iter().map(of).collect()
    }

    /// Returns how many lines of their stderr contain this text.
    pub fn lines_with(&self, text: &str) -> Result<usize> {
        let said = fs::read_to_string(&self.stderr)?;
        Ok(said.lines().filter(|line| line.contains(text)).count())
    }

    /// Waits until that many lines contain this text.
    ///
    /// # Errors
    /// Fails after a minute.
    pub fn wait_for_lines_with(&self, text: &str, lines: usize) -> Result<()> {
        let start = Instant::now();
        while self.lines_with(text)? < lines {
            if start.elapsed() > Duration::from_secs(60) {
                bail!("fewer than {lines} lines with {text:?} in a minute");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// Fails if a command failed.
    pub fn wait(mut self) -> Result<()> {
        for child in &mut self.children {
            let status = child.wait()?;
            ensure!(status.success(), "{status}: {}", fs::read_to_string(&self.stderr)?);
        }
        Ok(())
    }
}

fn number_after(text: &str, name: &str) -> Result<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).with_context(|| format!("no {name}"))
}
