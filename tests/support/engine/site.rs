//! The surroundings of one test with one client.

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::{Fixture, Invocation, buildlock_path, send_signal};
use super::base_image::root_archive;
use super::client::Client;
use super::steps::{end_steps, pause, runs_step};

/// What a build does.
pub struct Recipe {
    /// The folder with the Dockerfile.
    pub context: PathBuf,
    /// An argument that only the process of its build step has.
    pub marker: String,
}

/// The surroundings of one test with one client.
pub struct Site {
    /// Folder, lock folder, processes.
    pub f: Fixture,
    /// The client.
    pub client: Client,
    number: usize,
    recipes: Cell<usize>,
    base: OnceCell<String>,
    images: RefCell<Vec<String>>,
}

impl Site {
    pub(super) fn new(client: &Client) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        Self {
            f: Fixture::new(),
            client: client.clone(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            recipes: Cell::new(0),
            base: OnceCell::new(),
            images: RefCell::default(),
        }
    }

    /// Returns a tag of this test alone. The image that has it in the end is removed.
    pub fn tag(&self, name: &str) -> String {
        let tag = format!("{}:1", self.name(name));
        self.remove_at_the_end(&tag);
        tag
    }

    /// Returns a name of this test alone.
    pub fn name(&self, name: &str) -> String {
        format!("buildlock-test-{}-{}-{name}", std::process::id(), self.number)
    }

    /// Has an image removed with this site.
    pub fn remove_at_the_end(&self, image: &str) {
        self.images.borrow_mut().push(image.to_owned());
    }

    // Images that are built from this test's base image inherit it, and can be found by it.
    fn label(&self) -> String {
        format!("buildlock-test={}-{}", std::process::id(), self.number)
    }

    /// Returns the tag of this test's base image.
    pub fn base(&self) -> &str {
        self.base.get_or_init(|| {
            let tag = self.tag("base");
            let archive = self.f.path("root.tar");
            fs::write(&archive, root_archive()).unwrap();
            let label = format!("LABEL {}", self.label());
            self.client.ask(["import", "--change", &label, archive.to_str().unwrap(), &tag]);
            tag
        })
    }

    /// Makes a Dockerfile whose one step runs these shell commands, in a base image.
    ///
    /// Each build of it makes another image, so that images can be counted.
    pub fn recipe(&self, commands: &str) -> Recipe {
        self.slow_recipe(0, commands)
    }

    /// Makes a build that takes this many seconds and then runs these commands (`true`, `exit 7`).
    pub fn slow_recipe(&self, seconds: u32, commands: &str) -> Recipe {
        let n = self.recipes.get();
        self.recipes.set(n + 1);
        // A number of seconds that no other process on this machine sleeps.
        let marker = format!("{seconds}.00{}{:04}{n:03}", std::process::id(), self.number);
        let context = self.context(&format!(
            "FROM {}\nRUN cat /proc/sys/kernel/random/uuid >/id; sleep {marker}; {commands}\n",
            self.base()
        ));
        Recipe { context, marker }
    }

    /// Makes a build that runs nothing, and takes as little time as the engine can.
    pub fn quick_recipe(&self) -> Recipe {
        let context = self.context("FROM scratch\nCOPY Dockerfile file /\n");
        fs::write(context.join("file"), context.as_os_str().as_encoded_bytes()).unwrap();
        Recipe { context, marker: String::new() }
    }

    /// Makes a folder with this Dockerfile, and a file to copy.
    pub fn context(&self, dockerfile: &str) -> PathBuf {
        let context = tempfile::Builder::new().prefix("context-").tempdir_in(self.f.path("work"));
        let context = context.unwrap().keep();
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        fs::write(context.join("file"), "content\n").unwrap();
        context
    }

    /// Returns `docker build ... -t TAG CONTEXT`.
    pub fn build_words(&self, tag: &str, recipe: &Recipe) -> Vec<String> {
        let mut words = vec!["docker", "build", "--network", "none", "--no-cache"];
        if !self.client.buildkit {
            // By default, the legacy builder leaves the container of a failed build.
            words.push("--force-rm");
        }
        words.extend(["-t", tag, recipe.context.to_str().unwrap()]);
        words.into_iter().map(str::to_owned).collect()
    }

    /// Prepares `buildlock ARGS` with this client and builder in front, logging JSON.
    pub fn buildlock<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation<'_> {
        let buildlock = self.program(buildlock_path());
        buildlock.args(["--log-format", "json"]).args(args)
    }

    /// Prepares `buildlock -- docker build ... -t TAG CONTEXT`.
    pub fn docker_build(&self, tag: &str, recipe: &Recipe) -> Invocation<'_> {
        self.buildlock(["--"]).args(self.build_words(tag, recipe))
    }

    /// Prepares the same with signals at their defaults. A runner in the background of a shell may
    /// have left SIGINT ignored, and buildlock keeps that.
    pub fn docker_build_with_default_signals<A: AsRef<OsStr>>(
        &self,
        tag: &str,
        command: impl IntoIterator<Item = A>,
    ) -> Invocation<'_> {
        let buildlock = buildlock_path();
        let env = self.program("env").arg("--default-signal").arg(buildlock);
        env.args(["--log-format", "json", "-t", tag, "--"]).args(command)
    }

    /// Prepares any program, with this client and builder in front.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Invocation<'_> {
        let mut words = self.client.words_in_front();
        words.push(program.as_ref().to_owned());
        let invocation = self.f.program(&words[0]).args(&words[1..]);
        let invocation = invocation
            .env("PATH", self.client.search_path())
            .env("DOCKER_BUILDKIT", self.client.builder());
        match self.client.engine {
            Some(engine) => invocation.env("DOCKER_HOST", engine.endpoint()),
            None => invocation,
        }
    }

    /// Returns the image's id; none if there is no such image.
    pub fn image_id(&self, tag: &str) -> Option<String> {
        let output = self.client.docker(["image", "inspect", "--format", "{{.Id}}", tag]);
        if output.status.success() {
            return Some(String::from_utf8(output.stdout).unwrap().trim().to_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(message.contains("no such image"), "{output:?}");
        None
    }

    /// Returns how many images this test's builds have made from its base image, including those
    /// that have lost their name.
    pub fn image_count(&self) -> usize {
        let filter = format!("label={}", self.label());
        let list = self.client.ask(["image", "ls", "-q", "--no-trunc", "--filter", &filter]);
        let base = self.image_id(self.base());
        let mut ids: Vec<_> = list.lines().filter(|id| Some(*id) != base.as_deref()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    /// Is the engine running this recipe's build step?
    pub fn engine_runs(&self, recipe: &Recipe) -> bool {
        runs_step(&recipe.marker)
    }

    /// Ends the sleep of this recipe's build step, which then runs its commands.
    pub fn end_step(&self, recipe: &Recipe) {
        end_steps(&recipe.marker);
    }

    /// Waits until the engine runs this recipe's build step.
    pub fn wait_for_step(&self, recipe: &Recipe) {
        self.f.wait_for("the build step's process", || {
            let runs = self.engine_runs(recipe);
            pause();
            runs
        });
    }

    fn clean_engine(&self) {
        let remove = |kind: &[&str], names: &[String]| {
            if !names.is_empty() {
                self.client.docker(kind.iter().copied().chain(names.iter().map(String::as_str)));
            }
        };
        remove(&["image", "rm", "--force"], &self.images.borrow());
        if self.base.get().is_none() {
            return;
        }
        let filter = format!("label={}", self.label());
        let list = |kind: &[&str]| -> Vec<String> {
            let output = self.client.docker(kind.iter().chain(&["--filter", &filter]));
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        };
        // More than once: a cancelled build may not have ended, and children go first.
        for _ in 0..20 {
            let containers = list(&["ps", "-aq"]);
            let images = list(&["image", "ls", "-aq"]);
            if containers.is_empty() && images.is_empty() {
                break;
            }
            remove(&["rm", "--force", "--volumes"], &containers);
            remove(&["image", "rm", "--force"], &images);
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for pid in self.f.processes() {
            send_signal(pid, "KILL");
        }
        self.clean_engine();
    }
}
