//! Compose files.

use std::fs;

use serde_json::Value;

use super::files::{RACE, TWO_OF_ONE, stdout, write, write_below};
use super::support::Fixture;

/// Runs lint on a compose file in which two services build one image, the second at this line.
fn assert_two_of_one(f: &Fixture, line: u32) {
    let run = f.buildlock(["lint", "--format", "json", "compose.yaml"]).run();
    let found: Vec<Value> = serde_json::from_slice(&run.assert_code(1).stdout).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["rule"], "compose-same-image");
    assert_eq!(found[0]["line"], line);
    let message = found[0]["message"].as_str().unwrap();
    assert!(message.contains("a and b both build x:1"), "{message}");
}

#[test]
fn services_that_build_one_image_are_found_without_a_client_that_knows_compose() {
    let f = Fixture::new();
    write(&f, "compose.yaml", TWO_OF_ONE);
    assert_two_of_one(&f, 5);
    // One service builds the image, and the other uses it.
    write(&f, "compose.yaml", &TWO_OF_ONE.replace("    build: {context: .}\n", ""));
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    let merged = TWO_OF_ONE.replace("services:", "x-it: &it {image: \"x:1\"}\nservices:");
    let merged = merged.replace("    image: x:1", "    <<: *it");
    write(&f, "compose.yaml", &merged);
    f.buildlock(["lint"]).run().assert_code(1);
    write(&f, "compose.yaml", "services: [");
    f.buildlock(["lint", "compose.yaml"]).run().assert_code(125).assert_stderr("compose.yaml");
}

#[test]
fn compose_file_is_read_together_with_its_override() {
    let f = Fixture::new();
    let of_two = TWO_OF_ONE.replace("image: x:1\n  c", "image: x:2\n  c");
    write(&f, "compose.yaml", &of_two);
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    write(&f, "docker-compose.override.yaml", "services: {b: {image: \"x:1\"}}\n");
    let run = f.buildlock(["lint"]).run();
    let found = stdout(run.assert_code(1));
    let start = "docker-compose.override.yaml:1:23: error: the services a and b both build x:1";
    assert!(found.starts_with(start) && found.lines().count() == 1, "{found}");
    // compose takes the first override that exists.
    write(&f, "compose.override.yml", "services: {c: {build: {tags: [\"x:2\"]}}}\n");
    let run = f.buildlock(["lint"]).run();
    let found = stdout(run.assert_code(1));
    assert_eq!(found.matches(": error: ").count(), 2, "{found}");
    assert!(found.contains("a and c both build x:1"), "{found}");
    assert!(found.contains("b and c both build x:2"), "{found}");
    // A file with another name has no override.
    write(&f, "other.yaml", &of_two);
    f.buildlock(["lint", "other.yaml"]).run().assert_code(0).assert_stdout("");

    write(&f, "compose.yaml", TWO_OF_ONE);
    write(&f, "compose.override.yml", "services: {b: {build: !reset null}}\n");
    f.buildlock(["lint"]).run().assert_code(0).assert_stdout("");
    write(&f, "compose.override.yml", "services: [");
    let run = f.buildlock(["lint", "compose.yaml"]).run();
    run.assert_code(125).assert_stderr("compose.override.yml: not YAML");
}

#[test]
fn docker_compose_is_asked_what_a_variable_becomes() {
    let f = Fixture::new();
    let asked = f.path("asked");
    let config = r#"{"services":{"a":{"build":{"context":"."},"image":"x:1"},"b":{"build":{"context":"."},"image":"x:1"}}}"#;
    fs::remove_file(f.path("bin/docker")).unwrap();
    f.install_script(
        "docker",
        &format!("#!/bin/sh\necho \"$@\" >'{}'\necho '{config}'\n", asked.display()),
    );
    // Only docker compose knows the variable.
    write(&f, "compose.yaml", &TWO_OF_ONE.replace("image: x:1", "image: \"${IT}\""));
    assert_two_of_one(&f, 5);
    let words = fs::read_to_string(&asked).unwrap();
    assert!(words.contains("-f compose.yaml config --format json"), "{words}");
    write(&f, "compose.override.yaml", "services: {}\n");
    assert_two_of_one(&f, 5);
    let words = fs::read_to_string(&asked).unwrap();
    assert!(words.contains("-f compose.yaml -f compose.override.yaml config"), "{words}");
}

/// Returns what lint prints about this compose file.
fn said_of(f: &Fixture, compose: &str) -> String {
    write(f, "compose.yaml", compose);
    stdout(&f.buildlock(["lint", "compose.yaml"]).run())
}

#[test]
fn services_of_different_profiles_are_an_error_only_if_one_call_builds_both() {
    let f = Fixture::new();
    let with = |a: &str, b: &str| {
        let service = |name: &str, profiles: &str| {
            format!("  {name}: {{build: ., image: x, profiles: [{profiles}]}}\n")
        };
        format!("services:\n{}{}", service("a", a), service("b", b))
    };
    let note = "compose.yaml:3:24: note: the services a and b both build x, if their profiles are";
    assert!(said_of(&f, &with("one", "two")).starts_with(note), "{}", said_of(&f, &with("1", "2")));
    f.buildlock(["lint", "compose.yaml"]).run().assert_code(0);
    f.buildlock(["lint", "--strict", "compose.yaml"]).run().assert_code(1);
    for (a, b) in [("one", "one, two"), ("", "two"), ("one", "")] {
        let said = said_of(&f, &with(a, b));
        assert!(said.contains(": error: the services a and b both build x;"), "{said}");
    }
    // Of three services, the two that one call builds are reported.
    let third = format!("{}  c: {{build: ., image: x, profiles: [two]}}\n", with("one", "two"));
    let said = said_of(&f, &third);
    assert!(said.contains(": error: the services b and c both build x;"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn image_without_a_name_gets_the_one_from_compose() {
    let f = Fixture::new();
    let services = "services:\n  a: {build: .}\n  b: {build: ., image: n-a}\n";
    let error =
        "compose.yaml:4:24: error: the services a and b both build n-a: a has no image:, so";
    let said = said_of(&f, &format!("name: n\n{services}"));
    assert!(said.starts_with(error), "{said}");
    // The name belongs to another project.
    assert_eq!(said_of(&f, services), "");
    assert_eq!(said_of(&f, &format!("name: m\n{services}")), "");
    // The project is named after its folder, unless .env names it.
    let of_folder = services.replace("n-a", "work-a");
    assert!(said_of(&f, &of_folder).contains("both build work-a"), "{}", said_of(&f, &of_folder));
    write(&f, ".env", "COMPOSE_PROJECT_NAME=n\n");
    assert_eq!(said_of(&f, &of_folder), "");
    assert!(said_of(&f, &format!("name: m\n{services}")).starts_with(error));
    // Only docker-compose 1 uses this name.
    let old = said_of(&f, &services.replace("n-a", "n_a"));
    assert!(
        old.contains(": note: with docker-compose 1 or --compatibility, the services"),
        "{old}"
    );
}

#[test]
fn compose_file_is_read_as_compose_reads_it() {
    let f = Fixture::new();
    // Brackets that close at their key's column, a scalar that continues there, tabs in brackets.
    let accepted = "services:\n  a:\n    command: [\n      x\n    ]\n    build: .\n    image: x\n  \
                    b:\n    build: {\n\t\tcontext: .\n    }\n    command: \"a\n  b\"\n    image: x\n";
    let said = said_of(&f, accepted);
    assert!(said.starts_with("compose.yaml:14:12: error: the services a and b both"), "{said}");
}

#[test]
fn image_that_a_service_takes_from_an_anchor_is_reported_at_the_service() {
    let f = Fixture::new();
    let anchors = "x-it: &it {build: ., image: x}\nservices:\n  a: {<<: *it}\n  b:\n    <<: *it\n  \
                   c: *it\n";
    let said = said_of(&f, anchors);
    let places: Vec<_> = said.lines().map(|line| line.split(" error").next().unwrap()).collect();
    assert_eq!(places, ["compose.yaml:4:3:", "compose.yaml:6:3:"], "{said}");
}

#[test]
fn docker_compose_is_looked_for_once_and_only_if_the_files_do_not_tell() {
    let f = Fixture::new();
    let asked = f.path("asked");
    fs::remove_file(f.path("bin/docker")).unwrap();
    let script = format!("#!/bin/sh\necho \"$@\" >>'{}'\nexit 1\n", asked.display());
    f.install_script("docker", &script);
    for n in 0..5 {
        write_below(&f, &format!("{n}/compose.yaml"), TWO_OF_ONE);
    }
    let run = f.buildlock(["lint"]).run();
    run.assert_code(1).assert_stderr("looked at 5 files: 5 errors");
    assert!(!asked.exists(), "{}", fs::read_to_string(&asked).unwrap());
    for n in 0..5 {
        let open = TWO_OF_ONE.replace("x:1", "x:$TAG");
        write_below(&f, &format!("{n}/compose.yaml"), &open);
    }
    let run = f.buildlock(["lint"]).run();
    run.assert_code(1).assert_stderr("looked at 5 files: 5 errors");
    assert_eq!(fs::read_to_string(&asked).unwrap(), "compose version\n");
}

#[test]
fn dockerfiles_that_a_compose_file_builds_from_are_checked() {
    let f = Fixture::new();
    for name in ["built/build.docker", "above/Dockerfile", "project/.own/Dockerfile"] {
        write_below(&f, name, RACE);
    }
    let compose = "services:\n  a: {build: {context: ../built, dockerfile: build.docker}}\n  \
                   b: {build: ../above}\n  c: {build: ./.own}\n  d: {build: .own/}\n  \
                   e: {build: \"https://example.com/x.git\"}\n  f: {build: missing}\n";
    write_below(&f, "project/compose.yaml", compose);
    let run = f.buildlock(["lint", "project"]).run();
    let found = stdout(run.assert_code(1).assert_stderr("looked at 4 files: 3 errors"));
    let files: Vec<_> = found.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(files, ["built/build.docker", "above/Dockerfile", "project/.own/Dockerfile"]);
    // None is checked twice.
    let run = f.buildlock(["lint", "project", "above"]).run();
    run.assert_code(1).assert_stderr("looked at 4 files: 3 errors");
}

#[test]
fn dockerfile_inside_a_compose_file_is_checked() {
    let f = Fixture::new();
    let compose = "services:\n  a:\n    build:\n      dockerfile_inline: |\n        FROM a\n\n        \
                   RUN --mount=type=cache,target=/root/.m2 mvn\n";
    let said = said_of(&f, compose);
    assert!(said.starts_with("compose.yaml:7:13: error: cache mount /root/.m2 races"), "{said}");
    let fix = f.buildlock(["lint", "--fix", "compose.yaml"]).run();
    fix.assert_code(1);
    assert_eq!(fs::read_to_string(f.work_dir().join("compose.yaml")).unwrap(), compose);
    let quoted = r#"services: {a: {build: {dockerfile_inline: "FROM a\nRUN --mount=type=cache,target=/root/.m2 x"}}}"#;
    let said = said_of(&f, quoted);
    assert!(said.starts_with("compose.yaml:1:43: error: cache mount"), "{said}");
}
