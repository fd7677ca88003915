//! The main job on a real engine, with every docker client and builder that works here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::engine::rust_image::CacheMounts;
use crate::support::engine::{
    Recipe, Relay, Site, all_output, count, descendants, events, for_each_builder, for_each_client,
    pause, program_name, skip, with_a_client,
};
use crate::support::fake_engine::{FakeEngine, found, response, send};
use crate::support::{Finished, Running, is_alive, sha256};

/// Starts this many processes for one missing tag, and checks that one of them built.
fn builds_once_among(site: &Site, processes: usize) {
    let tag = site.tag(&format!("one-of-{processes}"));
    // Long enough for the last caller to find the first one building.
    let recipe = site.slow_recipe(if processes > 8 { 2 } else { 1 }, "true");
    let before = site.image_count();

    let running: Vec<_> =
        (0..processes).map(|_| site.docker_build(&tag, &recipe).start()).collect();
    let ended: Vec<_> = running.into_iter().map(Running::wait).collect();

    for run in &ended {
        run.assert_code(0);
    }
    assert_eq!(count(&ended, "building"), 1, "{}", all_output(&ended));
    assert_eq!(count(&ended, "built"), 1, "{}", all_output(&ended));
    assert_eq!(count(&ended, "present"), processes - 1, "{}", all_output(&ended));
    assert!(count(&ended, "waiting") > 0, "nobody waited\n{}", all_output(&ended));
    assert!(site.image_id(&tag).is_some(), "no image\n{}", all_output(&ended));
    assert_eq!(site.image_count() - before, 1, "images made\n{}", all_output(&ended));
}

#[test]
fn two_and_eight_processes_on_one_missing_tag_build_it_once() {
    for_each_builder(|site| {
        builds_once_among(site, 2);
        builds_once_among(site, 8);
    });
}

#[test]
fn sixty_four_processes_on_one_missing_tag_build_it_once() {
    for_each_builder(|site| builds_once_among(site, 64));
}

#[test]
fn eight_tags_are_built_in_parallel() {
    for_each_builder(|site| {
        let tags: Vec<_> = (0..8).map(|n| site.tag(&format!("parallel-{n}"))).collect();
        // A recipe for each, since BuildKit makes one image of identical builds.
        let recipes: Vec<_> = tags.iter().map(|_| site.slow_recipe(600, "true")).collect();
        let start = |(tag, recipe): (&String, _)| site.docker_build(tag, recipe).start();
        let mut running: Vec<_> = tags.iter().zip(&recipes).map(start).collect();
        for run in &running {
            run.wait_for_stderr("\"building\"");
        }
        let done = running.iter().filter(|run| run.stderr().contains("\"built\"")).count();
        assert_eq!(done, 0, "a build had ended before the last began\n{}", site.f.scene());
        site.f.wait_for("the end of all builds", || {
            pause();
            recipes.iter().for_each(|recipe| site.end_step(recipe));
            running.iter_mut().all(Running::has_ended)
        });

        let ended: Vec<_> = running.into_iter().map(Running::wait).collect();
        for (run, tag) in ended.iter().zip(&tags) {
            run.assert_code(0);
            assert!(site.image_id(tag).is_some(), "{run}");
        }
        assert_eq!(count(&ended, "waiting"), 0, "{}", all_output(&ended));
        assert_eq!(site.image_count(), 8, "{}", all_output(&ended));
    });
}

#[test]
fn waiter_skips_build_once_image_exists() {
    for_each_builder(|site| {
        let tag = site.tag("skip");
        let (recipe, broken) = (site.slow_recipe(600, "true"), site.recipe("exit 9"));
        let first = site.docker_build(&tag, &recipe).start();
        site.wait_for_step(&recipe);
        let waiter = site.docker_build(&tag, &broken).start();
        waiter.wait_for_stderr("\"waiting\"");
        assert!(site.engine_runs(&recipe), "the build was over too early\n{}", site.f.scene());

        site.end_step(&recipe);
        let first = first.wait();
        first.assert_code(0);
        let waiter = waiter.wait();
        waiter.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
        let waiting = events(&waiter.stderr).into_iter().find(|e| e["event"] == "waiting").unwrap();
        assert_eq!(waiting["tag"], Value::from(tag.as_str()), "{waiting}");
        assert_eq!(
            waiting["lock"],
            Value::from(site.f.lock_file(&tag).to_str().unwrap()),
            "{waiting}"
        );

        let later = site.docker_build(&tag, &broken).run();
        later.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"waiting\"");
    });
}

#[test]
fn stdout_belongs_to_the_client() {
    for_each_builder(|site| {
        let tag = site.tag("stdout");
        let recipe = site.quick_recipe();
        let mut words = site.build_words(&tag, &recipe);
        words.insert(2, "--quiet".to_owned());
        let run = site.buildlock(["--"]).args(&words).run();
        run.assert_code(0).assert_stdout(format!("{}\n", site.image_id(&tag).unwrap()));
        words.retain(|word| word != "--quiet");
        let skipped = site.buildlock(["--"]).args(&words).run();
        skipped.assert_code(0).assert_stdout("").assert_stderr("\"present\"");
    });
}

#[test]
fn skip_prints_the_id_that_the_build_has_printed() {
    for_each_builder(|site| {
        let tag = site.tag("id");
        let id_file = site.f.path("work/id");
        let mut words = site.build_words(&tag, &site.quick_recipe());
        let options = ["--quiet", "--iidfile", id_file.to_str().unwrap()];
        words.splice(2..2, options.map(str::to_owned));
        let built = site.buildlock(["--"]).args(&words).run();
        built.assert_code(0).assert_stderr("\"built\"");
        let written = fs::read_to_string(&id_file).unwrap();
        let skipped = site.buildlock(["--"]).args(&words).run();
        skipped.assert_code(0).assert_stderr("\"present\"").assert_stdout(&built.stdout);
        // With --quiet, the legacy builder ends the line.
        assert_eq!(fs::read_to_string(&id_file).unwrap(), written.trim_end(), "{skipped}");
    });
}

/// Runs a build that fails once a second call waits for it. Returns how both ended, and the tag.
fn first_fails_while_second_waits(site: &Site, options: &[&str]) -> (Finished, Finished, String) {
    let tag = site.tag("fails");
    let (broken, whole) = (site.slow_recipe(600, "exit 7"), site.quick_recipe());
    let first = site.buildlock(options).arg("--").args(site.build_words(&tag, &broken)).start();
    site.wait_for_step(&broken);
    let second = site.buildlock(options).arg("--").args(site.build_words(&tag, &whole)).start();
    second.wait_for_stderr("\"waiting\"");
    assert!(site.engine_runs(&broken), "the build was over too early\n{}", site.f.scene());
    site.end_step(&broken);
    (first.wait(), second.wait(), tag)
}

/// Returns the exit status of the client alone when a step ends with 7. The builders differ.
fn status_of_failing_client(site: &Site) -> i32 {
    let words = site.build_words(&site.tag("alone"), &site.recipe("exit 7"));
    let status = site.client.docker(&words[1..]).status.code().unwrap();
    assert_ne!(status, 0);
    status
}

#[test]
fn failed_build_ends_with_the_clients_status_and_the_next_waiter_builds() {
    for_each_builder(|site| {
        let status = status_of_failing_client(site);
        let (first, second, tag) = first_fails_while_second_waits(site, &[]);
        first.assert_code(status).assert_stderr("\"failed\"");
        second.assert_code(0).assert_stderr("\"built\"");
        assert!(site.image_id(&tag).is_some(), "{second}");
    });
}

#[test]
fn waiter_shares_the_failed_builds_status_if_told_to() {
    for_each_builder(|site| {
        let status = status_of_failing_client(site);
        let options = ["--on-failure", "share"];
        let (first, second, tag) = first_fails_while_second_waits(site, &options);
        first.assert_code(status).assert_stderr("\"failed\"");
        second.assert_code(status).assert_no_stderr("\"building\"");
        assert_eq!(site.image_id(&tag), None, "{second}");
    });
}

#[test]
fn forced_builds_of_an_existing_image_run_one_at_a_time() {
    for_each_builder(|site| {
        let tag = site.tag("force");
        site.docker_build(&tag, &site.recipe("true")).run().assert_code(0);
        let before = site.image_id(&tag).unwrap();

        let recipes = [site.slow_recipe(600, "true"), site.slow_recipe(600, "true")];
        let mut running = recipes.each_ref().map(|recipe| {
            site.buildlock(["--force", "--"]).args(site.build_words(&tag, recipe)).start()
        });
        let mut seen = [false, false];
        site.f.wait_for("both forced builds", || {
            let now = recipes.each_ref().map(|recipe| site.engine_runs(recipe));
            pause();
            assert_ne!(now, [true, true], "both at once\n{}", site.f.scene());
            seen = [seen[0] || now[0], seen[1] || now[1]];
            // The first build goes on once the second call waits for it.
            if running.iter().any(|run| run.stderr().contains("\"waiting\"")) {
                let seen_now = recipes.iter().zip(now).filter(|&(_, is_running)| is_running);
                seen_now.for_each(|(recipe, _)| site.end_step(recipe));
            }
            running.iter_mut().all(Running::has_ended)
        });
        let ended = running.map(Running::wait);
        for run in &ended {
            run.assert_code(0).assert_stderr("\"built\"");
        }
        assert_eq!(seen, [true, true], "{}", all_output(&ended));
        assert!(count(&ended, "waiting") > 0, "nobody waited\n{}", all_output(&ended));
        assert_ne!(site.image_id(&tag).unwrap(), before);
        let images = if site.client.keeps_images_that_lose_their_tag() { 3 } else { 1 };
        assert_eq!(site.image_count(), images, "{}", all_output(&ended));
    });
}

#[test]
fn success_without_the_image_asked_for_is_an_error() {
    for_each_builder(|site| {
        let (wanted, other) = (site.tag("wanted"), site.tag("other"));
        let words = site.build_words(&other, &site.quick_recipe());
        let run = site.buildlock(["-t", &wanted, "--"]).args(words).run();
        run.assert_code(125).assert_stderr("\"building\"").assert_stderr(&wanted);
        assert!(site.image_id(&other).is_some(), "the build command did not run\n{run}");
    });
}

#[test]
fn output_to_a_folder_is_refused_before_anything_is_built() {
    for_each_client(|site| {
        let tag = site.tag("output");
        let context = site.context("FROM scratch\nCOPY file /file\n");
        let words = ["--", "docker", "build", "-o", "out", "-t", &tag, context.to_str().unwrap()];
        let run = site.buildlock(words).run();
        run.assert_code(125).assert_no_stderr("\"building\"").assert_no_stderr("\"acquired\"");
        assert!(!site.f.work_dir().join("out").exists(), "{run}");
    });
}

#[test]
fn output_to_a_folder_in_a_shell_command_is_found_out_afterwards() {
    for_each_builder(|site| {
        if !site.client.buildkit {
            return;
        }
        let tag = site.tag("output");
        let context = site.context("FROM scratch\nCOPY file /file\n");
        let build = format!("docker build -o out -t {tag} {}", context.display());
        let run = site.buildlock(["-t", &tag, "--", "sh", "-c", &build]).run();
        run.assert_code(125).assert_stderr("\"building\"").assert_stderr(&tag);
        let written = site.f.work_dir().join("out/file");
        assert!(written.is_file(), "the client was to end with 0 here\n{run}");
    });
}

/// Sends a signal to a holder while another caller waits, and checks that the second build begins
/// once the first one has ended.
fn next_build_waits_for_the_end_of_one_that_gets(site: &Site, signal: &str, words: &BuildWords) {
    let tag = site.tag("signal");
    let recipe = site.slow_recipe(words.seconds, "true");
    let first =
        site.docker_build_with_default_signals(&tag, (words.of)(site, &tag, &recipe)).start();
    site.wait_for_step(&recipe);
    // The client's plugins (docker-buildx) are processes of their own.
    let is_client = |&pid: &u32| program_name(pid).starts_with("docker");
    let clients: Vec<_> = descendants(first.pid()).into_iter().filter(is_client).collect();
    assert!(!clients.is_empty(), "{}", site.f.scene());

    // The next build first looks for the first client. A zombie has no exe.
    let next = site.slow_recipe(600, "true");
    let pids: String = clients.iter().map(|pid| format!(" {pid}")).collect();
    let script = format!(
        "for pid in{pids}; do [ ! -e /proc/$pid/exe ] || echo overlap >overlap; done\n\
         echo >started; exec \"$@\""
    );
    let second = site
        .buildlock(["-t", &tag, "--", "sh", "-c", &script, "sh"])
        .args(site.build_words(&tag, &next))
        .start();
    second.wait_for_stderr("\"waiting\"");
    let started = site.f.work_dir().join("started");
    assert!(!started.exists() && clients.iter().all(|&pid| is_alive(pid)), "{}", site.f.scene());

    first.signal(signal);
    let first = first.wait();
    assert!(!first.status.success() || words.may_succeed, "{first}");
    let (mut second, mut is_seen) = (second, false);
    site.f.wait_for("the second build's step", || {
        pause();
        is_seen = site.engine_runs(&next);
        is_seen || second.has_ended()
    });
    assert!(!is_seen || !site.engine_runs(&recipe), "the engine runs both\n{}", site.f.scene());
    site.end_step(&next);
    let second = second.wait();
    second.assert_code(0);
    assert!(is_seen || words.may_succeed, "the second build did not run\n{first}\n{second}");
    let overlap = site.f.work_dir().join("overlap");
    assert!(!overlap.exists(), "began beside the first client\n{first}\n{second}");
    assert!(site.image_id(&tag).is_some(), "{second}");
    assert!(!site.engine_runs(&recipe), "the engine still builds\n{first}\n{second}");
    if signal != "KILL" {
        assert_eq!(count(&[first], "failed"), 1, "the build's end was not reported");
    }
}

/// The build that a test interrupts.
struct BuildWords {
    of: fn(&Site, &str, &Recipe) -> Vec<String>,
    seconds: u32,
    /// Whether the client may ignore the signal.
    may_succeed: bool,
}

/// A client that ends when it is told to.
const PLAIN: BuildWords = BuildWords { of: Site::build_words, seconds: 300, may_succeed: false };

/// A shell that a signal ends at once, while its client still runs.
const IN_A_SHELL: BuildWords = BuildWords {
    of: |site, tag, recipe| {
        let words = site.build_words(tag, recipe).join(" ");
        ["sh", "-c", &format!("{words}; exit $?")].map(str::to_owned).to_vec()
    },
    seconds: 300,
    may_succeed: false,
};

/// With --quiet, some clients build to the end whatever signal they get.
const QUIET: BuildWords = BuildWords {
    of: |site, tag, recipe| {
        let mut words = site.build_words(tag, recipe);
        words.insert(2, "--quiet".to_owned());
        words
    },
    seconds: 2,
    may_succeed: true,
};

#[test]
fn build_is_over_after_sigterm_when_the_next_one_starts() {
    for_each_builder(|site| next_build_waits_for_the_end_of_one_that_gets(site, "TERM", &PLAIN));
}

#[test]
fn build_is_over_after_sigint_when_the_next_one_starts() {
    for_each_builder(|site| next_build_waits_for_the_end_of_one_that_gets(site, "INT", &PLAIN));
}

#[test]
fn build_in_a_shell_is_over_after_sigterm_when_the_next_one_starts() {
    for_each_builder(|site| {
        next_build_waits_for_the_end_of_one_that_gets(site, "TERM", &IN_A_SHELL);
    });
}

#[test]
fn build_is_over_after_sigkill_of_buildlock_when_the_next_one_starts() {
    for_each_builder(|site| next_build_waits_for_the_end_of_one_that_gets(site, "KILL", &PLAIN));
}

#[test]
fn quiet_build_is_over_after_sigkill_of_buildlock_when_the_next_one_starts() {
    for_each_builder(|site| next_build_waits_for_the_end_of_one_that_gets(site, "KILL", &QUIET));
}

#[test]
fn nested_calls_through_make_build_once() {
    for_each_builder(|site| {
        let tag = site.tag("nested");
        let recipe = site.slow_recipe(1, "true");
        let buildlock = assert_cmd::cargo::cargo_bin!("buildlock").display().to_string();
        let makefile = format!(
            "image:\n\t+{buildlock} --log-format json -t {tag} -- {}\n",
            site.build_words(&tag, &recipe).join(" ")
        );
        fs::write(site.f.work_dir().join("Makefile"), makefile).unwrap();

        let running: Vec<_> = (0..4)
            .map(|_| site.buildlock(["-t", &tag, "--", "make", "-j2", "image"]).start())
            .collect();
        let ended: Vec<_> = running.into_iter().map(Running::wait).collect();
        for run in &ended {
            run.assert_code(0);
        }
        // The outer call runs make, and the inner one the client.
        assert_eq!(count(&ended, "building"), 2, "{}", all_output(&ended));
        assert_eq!(site.image_count(), 1, "{}", all_output(&ended));
        assert!(site.image_id(&tag).is_some());
    });
}

/// Builds and skips with this environment and these words before `build`. Every look-up must come
/// through the relay.
fn looks_up_through(site: &Site, relay: &Relay, environment: &[(&str, &str)], flags: &[&str]) {
    let tag = site.tag("endpoint");
    let mut words = site.build_words(&tag, &site.quick_recipe());
    words.splice(1..1, flags.iter().map(|&flag| flag.to_owned()));
    let start = || {
        let mut run = site.buildlock(["--"]).args(&words).env_remove("DOCKER_HOST");
        for (name, value) in environment {
            run = run.env(name, value);
        }
        run.run()
    };
    let look_up = format!("GET /images/{tag}/json HTTP/1.1");
    start().assert_code(0).assert_stderr("\"built\"");
    let seen = relay.requests();
    // Asked before the lock, under it, and after the build.
    assert_eq!(seen.iter().filter(|&r| *r == look_up).count(), 3, "{seen:#?}");
    start().assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
    let seen = relay.requests();
    assert_eq!(seen.iter().filter(|&r| *r == look_up).count(), 4, "{seen:#?}");
    assert!(site.image_id(&tag).is_some());
}

/// Starts a relay to the engine's socket, which shows what was asked.
fn relay_to_engine(site: &Site) -> Option<Relay> {
    let Some(socket) = site.client.socket() else {
        skip("the engine does not listen on a socket of this machine");
        return None;
    };
    Some(Relay::start(&site.f.path("relay.sock"), &socket))
}

const NOTHING: &str = "unix:///nonexistent/buildlock-test.sock";

#[test]
fn engine_is_found_through_the_host_flag() {
    for_each_client(|site| {
        let Some(relay) = relay_to_engine(site) else { return };
        let host = relay.endpoint();
        looks_up_through(site, &relay, &[("DOCKER_HOST", NOTHING)], &["-H", &host]);
    });
}

#[test]
fn engine_is_found_through_docker_host() {
    for_each_client(|site| {
        let Some(relay) = relay_to_engine(site) else { return };
        looks_up_through(site, &relay, &[("DOCKER_HOST", &relay.endpoint())], &[]);
    });
}

/// Makes a configuration folder for the client, whose only context, `ci`, leads to the relay.
fn make_context(folder: &Path, relay: &Relay) {
    let meta = folder.join("contexts/meta").join(sha256("ci"));
    fs::create_dir_all(&meta).unwrap();
    let context = json!({
        "Name": "ci",
        "Metadata": {},
        "Endpoints": { "docker": { "Host": relay.endpoint(), "SkipTLSVerify": false } },
    });
    fs::write(meta.join("meta.json"), context.to_string()).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
}

#[test]
fn engine_is_found_through_docker_context() {
    for_each_client(|site| {
        let Some(relay) = relay_to_engine(site) else { return };
        let config = site.f.path("config");
        make_context(&config, &relay);
        let environment = [("DOCKER_CONFIG", config.to_str().unwrap()), ("DOCKER_CONTEXT", "ci")];
        looks_up_through(site, &relay, &environment, &[]);
    });
}

#[test]
fn engine_is_found_through_the_context_flag() {
    for_each_client(|site| {
        let Some(relay) = relay_to_engine(site) else { return };
        let config = site.f.path("config");
        make_context(&config, &relay);
        // The flag wins over a variable that leads nowhere.
        let environment = [("DOCKER_CONFIG", config.to_str().unwrap()), ("DOCKER_HOST", NOTHING)];
        looks_up_through(site, &relay, &environment, &["--context", "ci"]);
    });
}

#[test]
fn engine_is_found_through_the_configurations_current_context() {
    for_each_client(|site| {
        let Some(relay) = relay_to_engine(site) else { return };
        let config = site.f.path("config");
        make_context(&config, &relay);
        fs::write(config.join("config.json"), r#"{"currentContext":"ci"}"#).unwrap();
        let environment = [("DOCKER_CONFIG", config.to_str().unwrap())];
        looks_up_through(site, &relay, &environment, &[]);
    });
}

/// Starts an engine that has every image.
fn engine_with_everything(socket: &Path) -> FakeEngine {
    FakeEngine::start(socket, |_, head, stream| {
        let ping = response("200 OK", "text/plain", "");
        send(stream, if head.contains("_ping") { ping } else { found() });
    })
}

#[test]
fn dockers_client_and_buildlock_take_the_same_engine_from_odd_files() {
    /// `config.json`, and `meta.json` of the context m. A and B stand for two engines.
    const FILES: [(&str, &str); 24] = [
        (r#"{"CurrentContext":"m"}"#, r#"{"endpoints":{"docker":{"host":"A"}}}"#),
        (
            r#"{"currentContext":"n","CURRENTCONTEXT":"m"}"#,
            r#"{"endpointſ":{"docker":{"HoſT":"A"}}}"#,
        ),
        (r#"{"CURRENTCONTEXT":"m","currentContext":"n"}"#, "{}"),
        (r#"{"currentContext":"n","CurrentContext":""}"#, "{}"),
        (r#"{"currentContext":"n","CurrentContext":null}"#, "{}"),
        (r#"{"currentContext":"n","currentContext":7,"auths":[]}"#, "{}"),
        (r#"{"currentContext":7}"#, "{}"),
        (r#"{"currentContext":"n"} {"currentContext":"m"} x"#, "{}"),
        (r#"{"currentContext":"n",}"#, "{}"),
        (r#"{"currentContext":"gone"}"#, "{}"),
        ("", "{}"),
        ("[]", "{}"),
        ("M", r#"{"Endpoints":{"Docker":{"Host":"A"}}}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"B","HOST":"A"}}}"#),
        ("M", r#"{"Endpoints":{"docker":{"HOST":"B","Host":"A"},"docKer":{"Host":"B"}}}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"A","HOST":null}}}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"A"}},"ENDPOINTS":{"docker":{}}}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"A"}},"ENDPOINTS":{"x":{}}}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"A"}},"ENDPOINTS":null}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"A"},"docker":null}}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"A"}},"Metadata":7}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"A"}},"Name":"other"}"#),
        ("M", r#"{"Endpoints":{"docker":{"Host":"A"}}} x"#),
        ("M", "nonsense"),
    ];
    for_each_client(|site| {
        let folder = site.f.path("config");
        for name in ["m", "n"] {
            fs::create_dir_all(folder.join("contexts/meta").join(sha256(name))).unwrap();
        }
        let write = |name: &str, text: &str| {
            let meta = folder.join("contexts/meta").join(sha256(name)).join("meta.json");
            fs::write(meta, text).unwrap();
        };
        let [a, b] = ["a", "b"].map(|name| engine_with_everything(&site.f.path(name)));
        write("n", &format!(r#"{{"Endpoints":{{"docker":{{"Host":"{}"}}}}}}"#, b.endpoint()));
        // Which engine was asked since then: A, B, this machine's, or none.
        let asked = |since: (usize, usize), is_local: bool| {
            let by = (a.heads().len() > since.0, b.heads().len() > since.1);
            match by {
                (true, false) => "a",
                (false, true) => "b",
                (false, false) if is_local => "this machine's",
                (false, false) => "none",
                (true, true) => "both",
            }
        };
        let tag = site.tag("nowhere");
        for (config, meta) in FILES {
            let config = config.replace('M', r#"{"currentContext":"m"}"#);
            fs::write(folder.join("config.json"), &config).unwrap();
            let meta = meta.replace("\"A\"", &format!("{:?}", a.endpoint()));
            write("m", &meta.replace("\"B\"", &format!("{:?}", b.endpoint())));

            let before = (a.heads().len(), b.heads().len());
            let words = ["image", "inspect", tag.as_str()];
            let output = site.client.command(words).env("DOCKER_CONFIG", &folder).output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr).to_lowercase();
            let dockers = asked(before, complaint.contains("no such image"));

            let before = (a.heads().len(), b.heads().len());
            let words = ["-t", &tag, "--", "sh", "-c", "exit 7"];
            let run = site.buildlock(words).env("DOCKER_CONFIG", &folder).run();
            let ours = asked(before, run.status.code() == Some(7));
            assert_eq!(ours, dockers, "{config} {meta}\n{complaint}\n{run}");
        }
    });
}

#[test]
fn engine_that_cannot_be_reached_is_an_error_and_nothing_is_built() {
    for_each_client(|site| {
        // The second endpoint is asked through the client.
        for host in [NOTHING, "tcp://127.0.0.1:1"] {
            let words = site.build_words(&site.tag("nothing"), &site.quick_recipe());
            let run = site.buildlock(["--"]).args(words).env("DOCKER_HOST", host).run();
            run.assert_code(125).assert_no_stderr("\"building\"");
        }
    });
}

#[test]
fn client_behind_sudo_builds_once() {
    with_a_client(|site| {
        let sudo = Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
        if !sudo.is_ok_and(|status| status.success()) {
            skip("no sudo without a password");
            return;
        }
        let tag = site.tag("sudo");
        let context = site.recipe("true").context;
        let start = || {
            let words = ["--", "sudo", "-n", "docker", "build", "--network", "none", "--no-cache"];
            site.buildlock(words).args(["-t", &tag]).arg(&context).start()
        };
        let running: Vec<_> = (0..4).map(|_| start()).collect();
        let ended: Vec<_> = running.into_iter().map(Running::wait).collect();
        for run in &ended {
            run.assert_code(0);
        }
        assert_eq!(count(&ended, "building"), 1, "{}", all_output(&ended));
        assert_eq!(site.image_count(), 1, "{}", all_output(&ended));
    });
}

#[test]
fn tag_that_is_the_start_of_another_images_id_is_built() {
    for_each_client(|site| {
        let first = site.tag("id");
        let words = site.build_words(&first, &site.quick_recipe());
        site.client.ask(&words[1..]);
        let id = site.image_id(&first).unwrap();
        let hex = &id["sha256:".len()..][..12];
        assert_eq!(site.image_id(hex).as_ref(), Some(&id), "a bare id is looked up as such");

        site.remove_at_the_end(hex);
        let recipe = site.quick_recipe();
        site.docker_build(hex, &recipe).run().assert_code(0).assert_stderr("\"built\"");
        let built = site.image_id(&format!("{hex}:latest"));
        assert!(built.is_some_and(|built| built != id));
        site.docker_build(hex, &recipe).run().assert_code(0).assert_stderr("\"present\"");
    });
}

#[test]
fn image_of_another_platform_does_not_count() {
    for_each_builder(|site| {
        let tag = site.tag("platform");
        let context = site.quick_recipe().context;
        let words = |platform: &str| {
            let words = ["docker", "build", "--no-cache", "--platform", platform, "-t", &tag];
            let words = words.into_iter().chain([context.to_str().unwrap()]);
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let platform = || {
            let format = "{{.Os}}/{{.Architecture}}";
            site.client.ask(["image", "inspect", "--format", format, &tag])
        };
        site.client.ask(&words("linux/arm64")[1..]);
        assert_eq!(platform(), "linux/arm64");
        site.remove_at_the_end(&site.image_id(&tag).unwrap());

        let same = site.buildlock(["--"]).args(words("linux/arm64")).run();
        same.assert_code(0).assert_stderr("\"present\"");
        let other = site.buildlock(["--"]).args(words("linux/amd64")).run();
        other.assert_code(0).assert_stderr("\"built\"");
        assert_eq!(platform(), "linux/amd64", "{other}");
        let again = site.buildlock(["--"]).args(words("linux/amd64")).run();
        again.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
    });
}

#[test]
fn image_for_one_platform_is_not_taken_for_one_for_several() {
    let tried = AtomicUsize::new(0);
    for_each_builder(|site| {
        if !site.client.builds_for_several_platforms() {
            return;
        }
        tried.fetch_add(1, Ordering::Relaxed);
        let tag = site.tag("platforms");
        let context = site.quick_recipe().context;
        let build = |platforms: &str| {
            let words = ["--", "docker", "build", "--platform", platforms, "-t", &tag];
            site.buildlock(words).arg(&context).run()
        };
        build("linux/amd64").assert_code(0).assert_stderr("\"built\"");
        build("linux/amd64").assert_code(0).assert_stderr("\"present\"");
        // Docker 26 shows one platform, even if there are more.
        for _ in 0..2 {
            let both = build("linux/amd64,linux/arm64");
            both.assert_code(0).assert_stderr("\"built\"").assert_stderr("does not say whether");
        }
    });
    if tried.into_inner() == 0 {
        skip("no engine here makes images for several platforms");
    }
}

/// A call in a container that has the engine's socket.
struct InContainer<'s> {
    site: &'s Site,
    socket: PathBuf,
    tag: String,
    recipe: Recipe,
}

impl<'s> InContainer<'s> {
    fn new(site: &'s Site, name: &str) -> Option<Self> {
        let Some(socket) = site.client.socket() else {
            skip("the engine does not listen on a socket of this machine");
            return None;
        };
        Some(Self { site, socket, tag: site.tag(name), recipe: site.quick_recipe() })
    }

    /// Builds the tag with this lock folder and these folders of the machine, in a container
    /// without docker's marker file.
    fn build(&self, lock_dir: &str, mounts: &[&str], options: &str) -> Output {
        let context = self.recipe.context.display().to_string();
        let buildlock = assert_cmd::cargo::cargo_bin!("buildlock").display().to_string();
        let mut words: Vec<String> = ["run", "--rm", "--network", "none"].map(str::to_owned).into();
        let mut mount = |from: &str, to: &str, how: &str| {
            words.extend(["-v".to_owned(), format!("{from}:{to}:{how}")]);
        };
        mount(&self.socket.display().to_string(), "/var/run/docker.sock", "rw");
        mount(&buildlock, "/bin/buildlock", "ro");
        // Debian 13's engine sees only some folders of the machine, and this is in one of them.
        let client = self.site.f.path("docker-client");
        std::fs::copy(self.site.client.file(), &client).unwrap();
        mount(&client.display().to_string(), "/bin/docker", "ro");
        mount(&context, &context, "ro");
        // The programs' libraries and their loader.
        let libraries = ["/lib", "/lib64"].into_iter().filter(|folder| Path::new(folder).exists());
        libraries.for_each(|folder| mount(folder, folder, "ro"));
        mounts.iter().for_each(|folder| mount(folder, folder, "rw"));
        let script = format!(
            "busybox rm -f /.dockerenv
             export BUILDLOCK_DIR={lock_dir} DOCKER_BUILDKIT=0
             exec buildlock {options} -- {}",
            self.site.build_words(&self.tag, &self.recipe).join(" ")
        );
        words.extend([self.site.base(), "sh", "-c", &script].map(str::to_owned));
        self.site.client.docker(words)
    }
}

fn output_of(done: &Output) -> String {
    let [stdout, stderr] = [&done.stdout, &done.stderr].map(|it| String::from_utf8_lossy(it));
    format!("{stdout}{stderr}")
}

#[test]
fn lock_folder_that_only_a_container_has_causes_a_warning_without_dockers_marker_file() {
    for_each_client(|site| {
        for (n, lock_dir) in ["/tmp/buildlock", "/own/locks"].into_iter().enumerate() {
            let Some(container) = InContainer::new(site, &format!("own-{n}")) else { return };
            let done = container.build(lock_dir, &[], "");
            let output = output_of(&done);
            let warning = format!("does not see the lock folder {lock_dir}, which is this");
            assert!(output.contains(&warning), "{output}");
            assert!(done.status.success(), "{output}");
            assert!(site.image_id(&container.tag).is_some(), "{output}");
        }
    });
}

#[test]
fn lock_folder_of_the_machine_excludes_containers_and_causes_no_warning() {
    for_each_client(|site| {
        let Some(container) = InContainer::new(site, "shared") else { return };
        let folder = site.f.lock_dir().display().to_string();
        let held = site.f.hold_lock(&site.f.lock_file(&container.tag));
        let build = |options| {
            let done = container.build(&folder, &[&folder], options);
            let output = output_of(&done);
            assert!(!output.contains("lock folder"), "{output}");
            (done.status.code(), output)
        };
        let (status, output) = build("--timeout 0s");
        assert_eq!(status, Some(124), "{output}");
        assert_eq!(site.image_id(&container.tag), None, "{output}");
        drop(held);
        let (status, output) = build("");
        assert_eq!(status, Some(0), "{output}");
        assert!(site.image_id(&container.tag).is_some(), "{output}");
    });
}

/// Between two steps, nothing in the engine protects a cache mount. What the first one filled is
/// gone, and the second one makes the mount again.
#[ignore = "the engine keeps 256 events, and the other tests make many; see make test-engines"]
#[test]
fn cache_that_is_pruned_between_two_steps_is_not_warm() {
    for_each_builder(|site| {
        if !site.client.buildkit {
            return;
        }
        for is_pruned in [false, true] {
            let mounts = CacheMounts::new(site, if is_pruned { "pruned" } else { "kept" });
            let name = &mounts.name;
            let mount = format!("--mount=type=cache,id={name},target=/cache");
            let recipe = site.slow_recipe(600, "true");
            let dockerfile = recipe.context.join("Dockerfile");
            let slow = fs::read_to_string(&dockerfile).unwrap();
            let (from, step) = slow.split_once('\n').unwrap();
            let text = format!(
                "{from}\nRUN {mount} echo {name} >/cache/first\n{step}RUN {mount} echo {name}\n"
            );
            fs::write(&dockerfile, text).unwrap();
            fs::write(site.f.path("work/files"), "1\n").unwrap();
            let tag = site.tag(name);
            let cache = format!("--cache={name}={}", site.f.path("work/files").display());
            let build = ["--", "docker", "build", "--network", "none", "-t"];
            let build = site.buildlock([&cache]).args(build);
            let build = build.arg(&tag).arg(&recipe.context).start();
            site.wait_for_step(&recipe);
            assert_eq!(
                if is_pruned { mounts.remove_by_the_api() } else { 1 },
                1,
                "{}",
                site.f.scene()
            );
            site.end_step(&recipe);
            build.wait().assert_code(0);
            let listed = site.f.buildlock(["cache", "ls"]).run();
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert_eq!(listed.contains(name.as_str()), !is_pruned, "{listed}\n{}", site.f.scene());
        }
    });
}
