//! `--check registry` with a real registry and a real engine, and with the answers that registries
//! and proxies in front of them give on a bad day.
//!
//! Only a registry's own "not found" may lead to a build.

use std::fs;

use crate::support::engine::{Recipe, Site, all_output, count, for_each_client, skip};
use crate::support::registry::{AUTH, OddRegistry, PASSWORD, Registry, Says, USER};
use crate::support::{self, Finished, Invocation, Running};

/// Runs a test with each client and a registry of its own, or says in one line that it cannot.
fn with_registry(test: impl Fn(&Site, Registry) + Sync) {
    for_each_client(|site| match Registry::start() {
        Some(registry) => {
            let _bridge = site.client.reaches(registry.address());
            test(site, registry);
        }
        None => skip("docker-registry is not installed"),
    });
}

/// The same with a registry that has users.
fn with_users(test: impl Fn(&Site, Registry) + Sync) {
    for_each_client(|site| match Registry::start_with_users() {
        Some(registry) => {
            let _bridge = site.client.reaches(registry.address());
            test(site, registry);
        }
        None => skip("docker-registry is not installed"),
    });
}

/// Returns a tag of this registry. The image that has it on the engine in the end is removed.
fn tag_at(site: &Site, address: &str, name: &str) -> String {
    let tag = format!("{address}/{}:1", site.name(name));
    site.remove_at_the_end(&tag);
    tag
}

/// Returns a shell command that notes that it ran, and builds the image.
fn build(site: &Site, tag: &str) -> String {
    let words = site.build_words(tag, &site.quick_recipe()).join(" ");
    format!("echo built >>{}; {words} >&2", site.f.path("built").display())
}

/// Builds the image on the engine, without a push.
fn build_here(site: &Site, tag: &str, recipe: &Recipe) {
    site.client.ask(&site.build_words(tag, recipe)[1..]);
}

/// Returns a shell command that builds and pushes the image.
fn build_and_push(site: &Site, tag: &str) -> String {
    format!("{} && docker push -q {tag} >&2", build(site, tag))
}

fn builds(site: &Site) -> usize {
    site.f.lines("built").len()
}

/// Prepares `buildlock --check registry -t TAG -- sh -c COMMAND`, with the test's configuration.
fn look<'s>(site: &'s Site, tag: &str, command: &str) -> Invocation<'s> {
    let words = ["--check", "registry", "-t", tag, "--", "sh", "-c", command];
    site.buildlock(words).env("DOCKER_CONFIG", site.f.path("config"))
}

fn write_config(site: &Site, text: &str) {
    let folder = site.f.path("config");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.json"), text).unwrap();
}

/// Puts a script in the place of buildx, docker's plugin.
fn install_buildx(site: &Site, script: &str) {
    let metadata = r#"{"SchemaVersion":"0.1.0","Vendor":"test","Version":"v1"}"#;
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != docker-cli-plugin-metadata ] || {{ echo '{metadata}'; exit; }}\n{script}\n"
    );
    write_config(site, "{}");
    fs::create_dir_all(site.f.path("config/cli-plugins")).unwrap();
    site.f.write_executable("config/cli-plugins/docker-buildx", &text);
}

fn log_in(site: &Site, registry: &Registry) {
    let address = registry.address();
    write_config(site, &format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"{AUTH}\"}}}}}}"));
}

/// Makes an image that is in the registry but not on the engine.
fn pushed(site: &Site, registry: &Registry, name: &str) -> String {
    let tag = tag_at(site, registry.address(), name);
    build_here(site, &tag, &site.quick_recipe());
    let push = site.program("docker").args(["push", "-q", &tag]);
    push.env("DOCKER_CONFIG", site.f.path("config")).run().assert_code(0);
    site.client.ask(["image", "rm", "--force", &tag]);
    assert!(registry.has(&tag) && site.image_id(&tag).is_none());
    tag
}

#[test]
fn image_in_the_registry_alone_is_present() {
    with_registry(|site, registry| {
        let tag = pushed(site, &registry, "there");
        let run = look(site, &tag, &build(site, &tag)).run();
        run.assert_code(0).assert_stderr("\"present\"").assert_stderr("\"check\":\"registry\"");
        let words = ["-t", &tag, "--", "sh", "-c", &build(site, &tag)];
        site.buildlock(words).env("BUILDLOCK_CHECK", "registry").run().assert_code(0);
        assert_eq!(builds(site), 0, "{run}");

        // It is missing on the engine, which counts without the option.
        let words = ["-t", &tag, "--", "sh", "-c", &build(site, &tag)];
        site.buildlock(words).run().assert_code(0).assert_stderr("\"building\"");
        assert_eq!(builds(site), 1);
    });
}

#[test]
fn image_on_the_engine_alone_is_built_and_pushed() {
    with_registry(|site, registry| {
        let tag = tag_at(site, registry.address(), "local");
        build_here(site, &tag, &site.quick_recipe());
        assert!(site.image_id(&tag).is_some() && !registry.has(&tag));

        let run = look(site, &tag, &build_and_push(site, &tag)).run();
        run.assert_code(0).assert_stderr("\"built\"");
        assert_eq!(builds(site), 1, "{run}");
        assert!(registry.has(&tag), "{run}");

        let again = look(site, &tag, &build_and_push(site, &tag)).run();
        again.assert_code(0).assert_stderr("\"present\"");
        assert_eq!(builds(site), 1, "{again}");
    });
}

#[test]
fn missing_tag_of_an_existing_repository_is_built() {
    with_registry(|site, registry| {
        let there = pushed(site, &registry, "repository");
        let tag = format!("{}2", there);
        site.remove_at_the_end(&tag);
        look(site, &tag, &build_and_push(site, &tag)).run().assert_code(0);
        assert_eq!(builds(site), 1);
        assert!(registry.has(&tag) && registry.has(&there));
    });
}

#[test]
fn eight_simultaneous_calls_build_and_push_once() {
    with_registry(|site, registry| {
        let tag = tag_at(site, registry.address(), "once");
        let command = build_and_push(site, &tag);
        let running: Vec<_> = (0..8).map(|_| look(site, &tag, &command).start()).collect();
        let ended: Vec<Finished> = running.into_iter().map(Running::wait).collect();
        for run in &ended {
            run.assert_code(0);
        }
        assert_eq!(builds(site), 1, "{}", all_output(&ended));
        assert_eq!(count(&ended, "present"), 7, "{}", all_output(&ended));
    });
}

#[test]
fn command_that_does_not_push_is_an_error_with_the_cause() {
    with_registry(|site, registry| {
        let tag = tag_at(site, registry.address(), "unpushed");
        let run = look(site, &tag, &build(site, &tag)).run();
        run.assert_code(125).assert_stderr(registry.address()).assert_stderr("was it pushed?");
        assert_eq!(builds(site), 1, "{run}");
        assert!(site.image_id(&tag).is_some(), "{run}");

        let words = site.build_words(&tag, &site.quick_recipe());
        let run = site.buildlock(["--check", "registry", "--"]).args(words).run();
        run.assert_code(125).assert_stderr_matches("\"WARN\".*does not push.*--push");
        run.assert_stderr_matches("\"ERROR\".*in the registry.*the build command does not push");
    });
}

#[test]
fn registry_that_is_stopped_is_an_error_and_nothing_is_built() {
    with_registry(|site, mut registry| {
        let tag = pushed(site, &registry, "stopped");
        registry.stop();
        let run = look(site, &tag, &build_and_push(site, &tag)).run();
        run.assert_code(125).assert_stderr(registry.address());
        assert_eq!(builds(site), 0, "{run}");
    });
}

#[test]
fn registry_that_stops_during_the_build_prevents_success() {
    with_registry(|site, mut registry| {
        let tag = tag_at(site, registry.address(), "stops");
        let gate = site.f.path("gate");
        let command = format!(
            "{}; echo >{}; until [ -e {} ]; do sleep 0.02; done",
            build_and_push(site, &tag),
            site.f.path("pushed").display(),
            gate.display()
        );
        let run = look(site, &tag, &command).start();
        site.f.wait_for_file("pushed");
        assert!(registry.has(&tag));
        registry.stop();
        fs::write(gate, "").unwrap();
        run.wait().assert_code(125).assert_stderr("the image cannot be verified");
    });
}

#[test]
fn image_for_another_platform_than_the_commands_does_not_count() {
    with_registry(|site, registry| {
        let tag = pushed(site, &registry, "platform");
        let engine = site.client.ask(["version", "--format", "{{.Server.Os}}/{{.Server.Arch}}"]);
        let other = if engine.ends_with("arm64") { "linux/amd64" } else { "linux/arm64" };
        let recipe = site.quick_recipe();
        let build = |platform: &str| {
            let mut words = site.build_words(&tag, &recipe);
            words.splice(2..2, ["--platform".to_owned(), platform.to_owned()]);
            site.buildlock(["--check", "registry", "--"]).args(words).run()
        };
        if site.client.pushes_single_oci_images() && !site.client.is_beside_engine() {
            // The engine does not say the image's platform, and there is no buildx to ask.
            build(&engine).assert_code(125).assert_stderr("does not say").assert_no_stderr("built");
            return;
        }
        build(&engine).assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
        let both = format!("{engine},{other}");
        for wanted in [other, &both] {
            build(wanted).assert_stderr("\"building\"").assert_no_stderr("\"present\"");
        }
    });
}

#[test]
fn buildx_is_asked_for_the_platform_of_a_single_oci_image() {
    with_registry(|site, registry| {
        if which::which("skopeo").is_err() {
            return support::skip("skopeo is not installed");
        }
        if !site.client.is_beside_engine() {
            // Debian 12's skopeo is too old for newer engines.
            return;
        }
        let tag = tag_at(site, registry.address(), "oci");
        let recipe = site.quick_recipe();
        build_here(site, &tag, &recipe);
        let engine = format!("unix://{}", site.client.socket().unwrap().display());
        let skopeo = site.program("skopeo").args(["copy", "-q", "--format", "oci"]).args([
            "--dest-tls-verify=false",
            &format!("--src-daemon-host={engine}"),
            &format!("docker-daemon:{tag}"),
            &format!("docker://{tag}"),
        ]);
        skopeo.run().assert_code(0);
        assert!(registry.has(&tag));

        let buildx = |script: &str| install_buildx(site, script);
        let build = |platform: &str| {
            let mut words = site.build_words(&tag, &recipe);
            words.splice(2..2, ["--platform".to_owned(), platform.to_owned()]);
            let run = site.buildlock(["--check", "registry", "--"]).args(words);
            run.env("DOCKER_CONFIG", site.f.path("config")).run()
        };
        buildx("echo '{\"architecture\":\"s390x\",\"os\":\"linux\"}'");
        build("linux/s390x").assert_code(0).assert_stderr("\"present\"");
        build("linux/riscv64").assert_stderr("\"building\"").assert_no_stderr("\"present\"");
        buildx("echo 'ERROR: no such builder' >&2; exit 1");
        let run = build("linux/s390x");
        run.assert_code(125).assert_stderr("does not say").assert_no_stderr("\"building\"");
    });
}

#[test]
fn builder_of_buildx_is_asked_instead_of_the_engine_if_it_pushes() {
    let tag = "registry.example/a/env:1";
    for_each_client(|site| {
        let (asked, pushed) = (site.f.path("asked"), site.f.path("pushed"));
        install_buildx(
            site,
            &format!(
                "case \"$*\" in\n\
                 *imagetools*) echo \"$*\" >>{asked}\n\
                 [ -e {pushed} ] || {{ echo 'ERROR: {tag}: not found' >&2; exit 1; }};;\n\
                 *) echo built >>{built}; touch {pushed};;\nesac",
                asked = asked.display(),
                pushed = pushed.display(),
                built = site.f.path("built").display(),
            ),
        );
        let engine = format!("unix://{}", site.client.socket().unwrap().display());
        let nowhere = format!("unix://{}", site.f.path("nowhere.sock").display());
        let look = |tag: &str, host: &str, words: &[&str]| {
            let front = ["--check", "registry", "--", "docker", "buildx", "build", "--push"];
            let run = site.buildlock(front).args(words).args(["-t", tag, "."]);
            run.env("DOCKER_CONFIG", site.f.path("config")).env("DOCKER_HOST", host)
        };
        let is_built_once = |words: &str, look: &dyn Fn() -> Finished| {
            look().assert_code(0).assert_stderr("\"built\"");
            look().assert_code(0).assert_stderr("\"present\"");
            assert_eq!(builds(site), 1);
            // Asked before the lock, under it, after the build, and by the second call.
            let words = format!("buildx {words}imagetools inspect {tag}");
            assert_eq!(site.f.lines("asked"), vec![words; 4]);
            for file in [&asked, &pushed, &site.f.path("built")] {
                fs::remove_file(file).unwrap();
            }
        };
        let far = ["--builder", "far"];
        for host in [&engine, &nowhere] {
            is_built_once("--builder far ", &|| look(tag, host, &far).run());
            is_built_once("", &|| look(tag, host, &[]).env("BUILDX_BUILDER", "far").run());
        }
        is_built_once("", &|| look(tag, &nowhere, &[]).run());
        let buildx = site.f.path("config/buildx");
        fs::create_dir_all(buildx.join("instances")).unwrap();
        fs::write(buildx.join("instances/far"), r#"{"Name":"far"}"#).unwrap();
        let current = serde_json::json!({"Key": engine, "Name": "far"}).to_string();
        fs::write(buildx.join("current"), current).unwrap();
        is_built_once("", &|| look(tag, &engine, &[]).run());

        // The engine's own builder counts as the engine.
        let odd = OddRegistry::start(Says::This("403 Forbidden", "text/plain", "no".to_owned()));
        let _bridge = site.client.reaches(&odd.address());
        let run =
            look(&format!("{}/a/b:1", odd.address()), &engine, &["--builder", "default"]).run();
        run.assert_code(125).assert_stderr("by way of the engine");
        // The same if `docker buildx use` has chosen another builder, but the command is not
        // buildx.
        let tag = format!("{}/a/b:1", odd.address());
        let plain = ["--check", "registry", "--", "docker", "build", "--push", "-t", &tag, "."];
        let plain = site.buildlock(plain).env("DOCKER_CONFIG", site.f.path("config"));
        let plain = plain.env("DOCKER_HOST", &engine).run();
        plain.assert_code(125).assert_stderr("by way of the engine");
        assert!(!asked.exists() && builds(site) == 0, "{run}");
    });
}

#[test]
fn users_own_credentials_are_used() {
    with_users(|site, registry| {
        log_in(site, &registry);
        let tag = pushed(site, &registry, "private");
        let missing = tag_at(site, registry.address(), "private-missing");
        let address = registry.address();
        let present = |run: Finished| {
            run.assert_code(0).assert_stderr("\"present\"");
        };
        let refused = |run: Finished| {
            run.assert_code(125).assert_stderr(&format!("docker login {address}"));
            run.assert_no_stderr(PASSWORD).assert_no_stderr(AUTH);
        };
        let command = build(site, &tag);
        present(look(site, &tag, &command).run());

        // An image that may not be seen is neither present nor missing.
        write_config(site, "{}");
        refused(look(site, &tag, &command).run());
        refused(look(site, &missing, &command).run());
        fs::remove_file(site.f.path("config/config.json")).unwrap();
        refused(look(site, &tag, &command).run());
        // printf alice:wrong | base64
        let wrong = format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"YWxpY2U6d3Jvbmc=\"}}}}}}");
        write_config(site, &wrong);
        refused(look(site, &tag, &command).run());
        write_config(site, &format!("{{\"auths\":{{\"other.example\":{{\"auth\":\"{AUTH}\"}}}}}}"));
        refused(look(site, &tag, &command).run());

        // The variable by which a CI system may pass them.
        let variable = format!("{{\"auths\":{{\"{address}\":{{\"auth\":\"{AUTH}\"}}}}}}");
        present(look(site, &tag, &command).env("DOCKER_AUTH_CONFIG", &variable).run());
        refused(look(site, &tag, &command).env("DOCKER_AUTH_CONFIG", "{nonsense").run());
        // Clients before 28.3 ignore the variable, so the credentials of their push must do.
        log_in(site, &registry);
        for another in [wrong.as_str(), "{nonsense", "{}"] {
            present(look(site, &tag, &command).env("DOCKER_AUTH_CONFIG", another).run());
        }
        write_config(site, &wrong);
        present(look(site, &tag, &command).env("DOCKER_AUTH_CONFIG", &variable).run());
        refused(look(site, &tag, &command).env("DOCKER_AUTH_CONFIG", &wrong).run());

        // A configuration that the build command names.
        log_in(site, &registry);
        let config = site.f.path("config");
        let words = ["--check", "registry", "--", "docker", "--config", config.to_str().unwrap()];
        let run = site.buildlock(words).args(["build", "-t", &tag, "."]).run();
        run.assert_code(0).assert_stderr("\"present\"");
        assert_eq!(builds(site), 0);
    });
}

#[test]
fn credential_helper_is_asked_and_its_failure_is_an_error() {
    with_users(|site, registry| {
        log_in(site, &registry);
        let there = pushed(site, &registry, "helped");
        let address = registry.address().to_owned();
        let asked = site.f.path("asked");
        let helper = |text: &str| {
            site.f.install_script(
                "docker-credential-test",
                &format!(
                    "#!/bin/sh\nread -r server\necho \"$1 $server\" >>{}\n{text}\n",
                    asked.display()
                ),
            );
        };
        let path = || {
            let path = site.client.search_path();
            let folders = [site.f.path("bin")].into_iter().chain(std::env::split_paths(&path));
            std::env::join_paths(folders).unwrap()
        };
        let look = |tag: &str, command: &str| look(site, tag, command).env("PATH", path());
        // buildlock must not find the stand-in.
        fs::remove_file(site.f.path("bin/docker")).unwrap();
        let answer = |password: &str| {
            format!(
                "echo '{{\"ServerURL\":\"{address}\",\"Username\":\"{USER}\",\"Secret\":\"{password}\"}}'"
            )
        };
        let helpers = format!("{{\"credHelpers\":{{\"{address}\":\"test\"}}}}");
        // Old credentials in the file do not count beside a store.
        let store = format!(
            "{{\"credsStore\":\"test\",\"auths\":{{\"{address}\":{{\"auth\":\"YWxpY2U6d3Jvbmc=\"}}}}}}"
        );
        for config in [&helpers, &store] {
            write_config(site, config);
            helper(&answer(PASSWORD));
            look(&there, &build(site, &there)).run().assert_code(0).assert_stderr("\"present\"");
            assert_eq!(site.f.lines("asked"), [format!("get {address}")]);

            helper(&answer("wrong"));
            let run = look(&there, &build(site, &there)).run();
            run.assert_code(125).assert_stderr("docker login").assert_no_stderr("wrong");

            helper("echo 'credentials not found in native keychain'; exit 1");
            look(&there, &build(site, &there)).run().assert_code(125).assert_stderr("docker login");

            // Also after a build, when signals are handled differently.
            helper(&answer(PASSWORD));
            let tag = tag_at(site, &address, if config == &helpers { "one" } else { "two" });
            look(&tag, &build_and_push(site, &tag)).run().assert_code(0).assert_stderr("\"built\"");
            assert!(registry.has(&tag));
            let before = builds(site);

            // With variables that the build command sets.
            helper(&format!("[ \"$VAULT\" = open ] || exit 9\n{}", answer(PASSWORD)));
            for (vault, code) in [("VAULT=open", 0), ("VAULT=shut", 125)] {
                let words = ["--check", "registry", "--", "env", vault, "docker", "build", "-t"];
                let run = site.buildlock(words).args([&there, "."]).env("PATH", path());
                let run = run.env("DOCKER_CONFIG", site.f.path("config")).run();
                run.assert_code(code).assert_no_stderr("\"building\"");
            }

            helper("echo 'the keychain is locked'; exit 1");
            let run = look(&there, &build(site, &there)).run();
            run.assert_code(125).assert_stderr("the keychain is locked");
            assert_eq!(builds(site), before, "{run}");
            fs::remove_file(&asked).unwrap();
        }
        write_config(site, &helpers.replace("test", "nowhere"));
        look(&there, &build(site, &there)).run().assert_code(125).assert_stderr("credential");
        assert_eq!(builds(site), 2);
    });
}

/// Checks that the answer of an odd registry is an error for the engine and for us.
fn means_error(site: &Site, says: Says) {
    let odd = OddRegistry::start(says);
    let _bridge = site.client.reaches(&odd.address());
    let tag = format!("{}/a/b:1", odd.address());
    let run = look(site, &tag, &build(site, &tag)).run();
    run.assert_code(125).assert_stderr("cannot tell").assert_stderr(&odd.address());
    assert_eq!(builds(site), 0, "{run}");
    assert!(odd.asked() > 0, "{run}");
}

fn error(code: &str, message: &str) -> String {
    format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"{message}\"}}]}}")
}

#[test]
fn anything_but_the_registrys_own_not_found_is_an_error() {
    const JSON: &str = "application/json";
    let two = "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"manifest unknown\"},\
               {\"code\":\"DENIED\",\"message\":\"denied\"}]}";
    for_each_client(|site| {
        let html = "<html><body><h1>404 Not Found</h1></body></html>";
        for (status, kind, body) in [
            ("403 Forbidden", JSON, error("DENIED", "requested access is denied")),
            ("500 Internal Server Error", JSON, error("UNKNOWN", "manifest unknown")),
            ("503 Service Unavailable", "text/plain", "manifest unknown".to_owned()),
            ("404 Not Found", "text/html", html.to_owned()),
            ("404 Not Found", "text/plain", String::new()),
            ("404 Not Found", JSON, "{}".to_owned()),
            ("404 Not Found", JSON, error("NOT_FOUND", "artifact a/c:1 not found")),
            ("404 Not Found", JSON, error("BLOB_UNKNOWN", "blob unknown to registry")),
            ("404 Not Found", JSON, two.to_owned()),
            ("429 Too Many Requests", JSON, error("TOOMANYREQUESTS", "slow down")),
        ] {
            means_error(site, Says::This(status, kind, body));
        }
    });
}

#[test]
fn words_of_other_registries_for_not_found_lead_to_a_build() {
    for_each_client(|site| {
        for body in [
            error("MANIFEST_UNKNOWN", "Requested image not found"),
            error("NAME_UNKNOWN", "The repository with name 'a/b' does not exist"),
            error("NOT_FOUND", "artifact a/b:1 not found"),
            error("NOT_FOUND", "repository a/b not found"),
        ] {
            let odd = OddRegistry::start(Says::This("404 Not Found", "application/json", body));
            let _bridge = site.client.reaches(&odd.address());
            let tag = format!("{}/a/b:1", odd.address());
            let before = builds(site);
            let built = site.f.path("built");
            let command = format!("echo built >>{}; exit 7", built.display());
            let run = look(site, &tag, &command).run();
            run.assert_code(7);
            assert_eq!(builds(site), before + 1, "{run}");
        }
    });
}
