//! Compose and bake on real engines: docker-compose 1 on this machine's engine, Compose 2 and bake
//! on Debian 13's with each store.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::support::engine::{
    Recipe, Relay, Site, all_output, count, for_each_store, pause, site_of_this_machine, skip,
};
use crate::support::{Finished, Invocation, Running};

/// A tool that builds what a file lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    /// docker-compose 1, building through the engine's API.
    Compose1,
    /// docker-compose 1, building with `docker build`.
    Compose1WithClient,
    /// `docker compose`
    Compose2,
    /// `docker buildx bake`
    Bake,
}

/// Runs a test with each version of compose.
pub(super) fn for_each_compose(test: impl Fn(&Site, Tool) + Sync) {
    with_compose1(&test);
    for_each_store(|site| test(site, Tool::Compose2));
}

/// Runs a test with each tool.
pub(super) fn for_each_tool(test: impl Fn(&Site, Tool) + Sync) {
    with_compose1(&test);
    for_each_store(|site| [Tool::Compose2, Tool::Bake].iter().for_each(|&tool| test(site, tool)));
}

/// Runs a test with docker-compose 1, with each of its two ways to build.
fn with_compose1(test: impl Fn(&Site, Tool)) {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    let is_there = IS_THERE.get_or_init(|| {
        let version = Command::new("docker-compose").args(["version", "--short"]).output();
        version.is_ok_and(|version| version.stdout.starts_with(b"1."))
    });
    if !is_there {
        return skip("docker-compose 1 is not installed");
    }
    for (tool, buildkit) in [(Tool::Compose1, false), (Tool::Compose1WithClient, true)] {
        if let Some(site) = site_of_this_machine(buildkit) {
            test(&site, tool);
        }
    }
}

/// Services, or targets, and the folder with the file that lists them.
pub(super) struct Project<'s> {
    site: &'s Site,
    pub(super) tool: Tool,
    pub(super) folder: PathBuf,
    pub(super) name: String,
}

impl<'s> Project<'s> {
    /// Makes a project of these services, each with its name, image and build.
    pub(super) fn new(site: &'s Site, tool: Tool, services: &[(&str, &str, &Recipe)]) -> Self {
        let folder = tempfile::Builder::new().prefix("project-").tempdir_in(site.f.work_dir());
        let folder = folder.unwrap().keep();
        let (file, text) = match tool {
            Tool::Bake => ("docker-bake.json", bake_file(services)),
            _ => ("compose.yaml", compose_file(services)),
        };
        fs::write(folder.join(file), text.to_string()).unwrap();
        Self { site, tool, folder, name: site.name(&format!("{tool:?}").to_lowercase()) }
    }

    /// Returns the tool's command line, with options of the engine's client and words of its own.
    pub(super) fn command(&self, globals: &[&str], words: &[&str]) -> Vec<String> {
        let (program, tool): (&str, &[&str]) = match self.tool {
            Tool::Compose1 | Tool::Compose1WithClient => ("docker-compose", &["-p", &self.name]),
            Tool::Compose2 => ("docker", &["compose", "-p", &self.name]),
            Tool::Bake => ("docker", &["buildx"]),
        };
        let words = [&[program], globals, tool, words].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// Returns the command that builds, followed by these words.
    pub(super) fn build(&self, words: &[&str]) -> Vec<String> {
        let verb = if self.tool == Tool::Bake { "bake" } else { "build" };
        self.command(&[], &[&[verb], words].concat())
    }

    /// Prepares `buildlock OPTIONS -- COMMAND`.
    pub(super) fn buildlock(&self, options: &[&str], command: &[String]) -> Invocation<'s> {
        self.set_up(self.site.buildlock(options).arg("--").args(command))
    }

    /// Lets a call run in the project's folder and build in the tool's way.
    pub(super) fn set_up<'a>(&self, call: Invocation<'a>) -> Invocation<'a> {
        let by_client = if self.tool == Tool::Compose1 { "0" } else { "1" };
        call.env("COMPOSE_DOCKER_CLI_BUILD", by_client).current_dir(&self.folder)
    }

    /// Returns the containers that compose has created.
    fn containers(&self) -> String {
        let filter = format!("label=com.docker.compose.project={}", self.name);
        self.site.client.ask(["ps", "-aq", "--filter", &filter])
    }
}

fn compose_file(services: &[(&str, &str, &Recipe)]) -> Value {
    let service = |(name, image, recipe): &(&str, &str, &Recipe)| {
        let build = json!({ "context": recipe.context, "network": "none" });
        let service = json!({
            "image": image, "build": build, "network_mode": "none", "command": "true",
        });
        ((*name).to_owned(), service)
    };
    json!({ "services": services.iter().map(service).collect::<Map<_, _>>() })
}

fn bake_file(targets: &[(&str, &str, &Recipe)]) -> Value {
    let target = |(name, image, recipe): &(&str, &str, &Recipe)| {
        // Bake 0.13 has no option for the network.
        let file = recipe.context.join("Dockerfile");
        let text = fs::read_to_string(&file).unwrap().replace("RUN ", "RUN --network=none ");
        fs::write(file, text).unwrap();
        let target = json!({ "context": recipe.context, "tags": [image] });
        ((*name).to_owned(), target)
    };
    let names: Vec<_> = targets.iter().map(|(name, ..)| name).collect();
    json!({
        "group": { "default": { "targets": names } },
        "target": targets.iter().map(target).collect::<Map<_, _>>(),
    })
}

/// Returns a tag for this tool alone.
pub(super) fn tag(site: &Site, tool: Tool, name: &str) -> String {
    site.tag(&format!("{name}-{tool:?}").to_lowercase())
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn simultaneous_callers_build_once() {
    for_each_tool(|site, tool| {
        let tag = tag(site, tool, "once");
        let recipe = site.slow_recipe(600, "true");
        let project = Project::new(site, tool, &[("api", &tag, &recipe)]);
        let before = site.image_count();
        let start = || project.buildlock(&["-t", &tag], &project.build(&[])).start();

        let first = start();
        site.wait_for_step(&recipe);
        let mut running: Vec<_> = (0..3).map(|_| start()).collect();
        site.f.wait_for_waiters(&site.f.lock_file(&tag), 3);
        site.end_step(&recipe);
        running.insert(0, first);
        let ended: Vec<Finished> = running.into_iter().map(Running::wait).collect();

        for run in &ended {
            run.assert_code(0);
        }
        ended[0].assert_stderr("\"built\"");
        assert_eq!(count(&ended, "building"), 1, "{}", all_output(&ended));
        assert_eq!(count(&ended, "present"), 3, "{}", all_output(&ended));
        assert!(site.image_id(&tag).is_some(), "no image\n{}", all_output(&ended));
        assert_eq!(site.image_count() - before, 1, "images made\n{}", all_output(&ended));
        start().wait().assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
    });
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn failed_build_ends_with_the_tools_status() {
    for_each_tool(|site, tool| {
        let tag = tag(site, tool, "fails");
        let recipe = site.recipe("exit 7");
        let project = Project::new(site, tool, &[("api", &tag, &recipe)]);
        let run = project.buildlock(&["-t", &tag], &project.build(&["api"])).run();
        run.assert_stderr("\"failed\"");
        let bare = project.build(&["api"]);
        let bare = project.set_up(site.program(&bare[0]).args(&bare[1..])).run();
        assert!(matches!(bare.status.code(), Some(1..124)), "{bare}");
        assert_eq!(run.status.code(), bare.status.code(), "{run}{bare}");
        assert_eq!(site.image_id(&tag), None, "{run}");
    });
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn look_up_asks_the_engine_that_the_command_names() {
    for_each_tool(|site, tool| {
        if tool == Tool::Compose1WithClient {
            // It builds on the engine of `docker build`, whatever its own -H says.
            return;
        }
        let Some(socket) = site.client.socket() else {
            return skip("the engine does not listen on a socket of this machine");
        };
        let relay = Relay::start(&site.f.path(format!("{tool:?}.sock")), &socket);
        let tag = tag(site, tool, "engine");
        let recipe = site.recipe("true");
        let project = Project::new(site, tool, &[("api", &tag, &recipe)]);
        let verb = if tool == Tool::Bake { "bake" } else { "build" };
        let command = project.command(&["-H", &relay.endpoint()], &[verb]);
        let run = || {
            let nothing = "unix:///nonexistent/buildlock-test.sock";
            project.buildlock(&["-t", &tag], &command).env("DOCKER_HOST", nothing).run()
        };
        // The requests of the tools themselves have a version in their path.
        let look = format!("GET /images/{tag}/json HTTP/1.1");
        let looks = || relay.requests().iter().filter(|&request| *request == look).count();

        run().assert_code(0).assert_stderr("\"built\"");
        // Asked before the lock, under it, and after the build.
        assert_eq!(looks(), 3, "{:#?}", relay.requests());
        run().assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
        assert_eq!(looks(), 4, "{:#?}", relay.requests());
        assert!(site.image_id(&tag).is_some());
    });
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn command_that_does_more_than_build_is_refused_and_nothing_happens() {
    for_each_compose(|site, tool| {
        let tag = tag(site, tool, "more");
        let recipe = site.recipe("true");
        let project = Project::new(site, tool, &[("api", &tag, &recipe)]);
        let refused = |words: &[&str]| {
            let run = project.buildlock(&["-t", &tag], &project.command(&[], words)).run();
            run.assert_code(125).assert_stderr("does more than build").assert_stderr("build first");
            run.assert_no_stderr("\"building\"").assert_no_stderr("\"present\"");
            assert_eq!(project.containers(), "", "{run}");
        };
        let commands: [&[&str]; 4] =
            [&["up", "--build", "-d"], &["run", "--build", "api"], &["push"], &["pull"]];
        commands.iter().for_each(|words| refused(words));
        assert_eq!(site.image_id(&tag), None, "built");

        // The advice works.
        let build = project.buildlock(&["-t", &tag], &project.build(&["api"])).run();
        build.assert_code(0).assert_stderr("\"built\"");
        commands.iter().for_each(|words| refused(words));
        let up = project.command(&[], &["up", "--no-build", "-d"]);
        let up = site.program(&up[0]).args(&up[1..]).current_dir(&project.folder).run();
        up.assert_code(0);
        assert_ne!(project.containers(), "", "nothing was started\n{up}");
        let down = project.command(&[], &["down"]);
        site.program(&down[0]).args(&down[1..]).current_dir(&project.folder).run().assert_code(0);
    });
}

/// Two services, each of which builds for as long as the test wants.
struct Two<'s> {
    project: Project<'s>,
    images: [(String, Recipe); 2],
}

impl<'s> Two<'s> {
    fn new(site: &'s Site, tool: Tool, name: &str) -> Self {
        let service = |which: &str| {
            let tag = tag(site, tool, &format!("{name}-{which}"));
            (tag, site.slow_recipe(600, "true"))
        };
        let images = ["a", "b"].map(service);
        let [a, b] = &images;
        let project = Project::new(site, tool, &[("a", &a.0, &a.1), ("b", &b.0, &b.1)]);
        Self { project, images }
    }

    /// Prepares a build of both, with a cache that both write.
    fn build(&self, command: &[String]) -> Invocation<'s> {
        let [a, b] = &self.images;
        self.project.buildlock(&["--cache", "go", "-t", &a.0, "-t", &b.0], command)
    }

    /// Checks that both are built at the same time, and that buildlock warns.
    fn are_built_side_by_side(&self, run: Invocation<'_>, advice: &str) {
        let running = run.start();
        let site = self.project.site;
        self.images.iter().for_each(|(_, recipe)| site.wait_for_step(recipe));
        self.images.iter().for_each(|(_, recipe)| site.end_step(recipe));
        let run = running.wait();
        run.assert_code(0).assert_stderr("--cache does not keep them apart").assert_stderr(advice);
    }

    /// Checks that one is built after the other, and that buildlock does not warn.
    fn are_built_one_by_one(&self, run: Invocation<'_>) {
        let running = run.start();
        let site = self.project.site;
        let [a, b] = &self.images;
        let mut first = None;
        site.f.wait_for("a build step", || {
            pause();
            first = [a, b].into_iter().find(|(_, recipe)| site.engine_runs(recipe));
            first.is_some()
        });
        let first = first.unwrap();
        let second = if first.0 == a.0 { b } else { a };
        assert!(!site.engine_runs(&second.1), "side by side\n{}", running.stderr());
        site.end_step(&first.1);
        site.wait_for_step(&second.1);
        assert!(site.image_id(&first.0).is_some(), "side by side\n{}", running.stderr());
        site.end_step(&second.1);
        let run = running.wait();
        run.assert_code(0).assert_stderr("\"built\"").assert_no_stderr("keep them apart");
    }
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn builds_side_by_side_with_one_cache_cause_a_warning() {
    for_each_tool(|site, tool| {
        let two = Two::new(site, tool, "side");
        let (words, advice): (&[&str], _) = match tool {
            Tool::Compose1 | Tool::Compose1WithClient => {
                (&["--parallel"], "give --each, or leave out --parallel")
            }
            Tool::Compose2 => (&[], "COMPOSE_BAKE=false docker compose --parallel 1 build"),
            Tool::Bake => (&[], "give --each"),
        };
        two.are_built_side_by_side(two.build(&two.project.build(words)), advice);
    });
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn builds_one_by_one_with_one_cache_cause_no_warning() {
    for_each_compose(|site, tool| {
        let two = Two::new(site, tool, "one-by-one");
        let run = match tool {
            Tool::Compose2 => {
                let words = two.project.command(&[], &["--parallel", "1", "build"]);
                two.build(&words).env("COMPOSE_BAKE", "false")
            }
            _ => two.build(&two.project.build(&[])),
        };
        two.are_built_one_by_one(run);
    });
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn two_builds_of_one_project_at_once_do_not_fail() {
    const ROUNDS: usize = 5;
    for_each_store(|site| {
        // Without buildlock, such calls can fail there: "image ... already exists".
        if !site.client.has_containerds_store() {
            return;
        }
        for (round, tool) in
            (0..ROUNDS).flat_map(|n| [Tool::Compose2, Tool::Bake].map(|it| (n, it)))
        {
            let tags = ["a", "b"].map(|which| tag(site, tool, &format!("race-{round}-{which}")));
            let recipes = [site.recipe("true"), site.recipe("true")];
            let services = [("a", &*tags[0], &recipes[0]), ("b", &*tags[1], &recipes[1])];
            let project = Project::new(site, tool, &services);
            let start = || {
                let options = ["-t", &tags[0], "-t", &tags[1]];
                project.buildlock(&options, &project.build(&[])).start()
            };
            let ended = [start(), start()].map(Running::wait);
            for run in &ended {
                run.assert_code(0);
            }
            assert_eq!(count(&ended, "building"), 1, "{}", all_output(&ended));
            for tag in &tags {
                assert!(site.image_id(tag).is_some(), "{}", all_output(&ended));
            }
        }
    });
}
