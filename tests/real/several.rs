//! Which images compose and bake really build, and one build for each of them, on real engines.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::compose::{Project, Tool, for_each_compose, for_each_tool, tag};
use crate::support::Finished;
use crate::support::engine::{Recipe, Site, all_output, count, for_each_store};

/// Runs `buildlock OPTIONS -- TOOL build WORDS`.
fn run(project: &Project<'_>, options: &[&str], words: &[&str]) -> Finished {
    project.buildlock(options, &project.build(words)).run()
}

/// Writes the compose file of a project.
fn write(project: &Project<'_>, services: &Value) {
    let file = project.folder.join("compose.yaml");
    fs::write(file, json!({ "services": services }).to_string()).unwrap();
}

fn build_of(recipe: &Recipe) -> Value {
    json!({ "context": recipe.context, "network": "none" })
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn each_image_is_built_alone_and_then_skipped() {
    for_each_tool(|site, tool| {
        let tags = ["a", "b"].map(|name| tag(site, tool, &format!("each-{name}")));
        let recipes = [site.slow_recipe(600, "true"), site.slow_recipe(600, "true")];
        let services = [("a", &*tags[0], &recipes[0]), ("b", &*tags[1], &recipes[1])];
        let project = Project::new(site, tool, &services);
        let running = project.buildlock(&["--each"], &project.build(&[])).start();
        // Both at the same time.
        recipes.iter().for_each(|recipe| site.wait_for_step(recipe));
        recipes.iter().for_each(|recipe| site.end_step(recipe));
        let built = running.wait();
        built.assert_code(0);
        assert_eq!(built.stderr.matches("\"building\"").count(), 2, "{built}");
        for tag in &tags {
            assert!(site.image_id(tag).is_some(), "{built}");
        }
        for options in [&["--each"][..], &[]] {
            let again = run(&project, options, &[]);
            again.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
        }
    });
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn failure_of_one_image_is_the_status_of_all() {
    for_each_tool(|site, tool| {
        let tags = ["bad", "good"].map(|name| tag(site, tool, &format!("each-{name}")));
        let recipes = [site.recipe("exit 7"), site.recipe("true")];
        let services = [("bad", &*tags[0], &recipes[0]), ("good", &*tags[1], &recipes[1])];
        let project = Project::new(site, tool, &services);
        let done = run(&project, &["--each"], &[]);
        done.assert_stderr("failed: bad (status ");
        assert!(matches!(done.status.code(), Some(1..124)), "{done}");
        assert!(site.image_id(&tags[1]).is_some(), "{done}");
    });
}

/// Compose builds what buildlock says that it builds: the call exits with 0 only if all of that is
/// there afterwards, and nothing else may have been made.
#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn names_of_images_are_those_that_compose_gives() {
    for_each_compose(|site, tool| {
        let named = tag(site, tool, "named");
        let extra = tag(site, tool, "extra");
        // Each with a result of its own, so that images can be counted.
        let recipes: Vec<Recipe> =
            ["named", "plain", "opt"].map(|name| site.recipe(&format!("true {name}"))).into();
        let project = Project::new(site, tool, &[]);
        let separator = if tool == Tool::Compose2 { '-' } else { '_' };
        let default = |service: &str| {
            let name = format!("{}{separator}{service}:latest", project.name);
            site.remove_at_the_end(&name);
            name
        };
        let mut first = build_of(&recipes[0]);
        if tool == Tool::Compose2 {
            first["tags"] = json!([extra]);
        }
        write(
            &project,
            &json!({
                "named": { "image": named, "build": first },
                "plain": { "build": build_of(&recipes[1]), "depends_on": ["named"] },
                "opt": { "build": build_of(&recipes[2]), "profiles": ["p"] },
                "other": { "image": site.base() },
            }),
        );
        let opt = default("opt");
        let before = site.image_count();
        let plain = run(&project, &[], &["plain"]);
        plain.assert_code(0).assert_stderr(&default("plain"));
        assert_eq!(site.image_count() - before, 1, "{plain}");
        let all = run(&project, &[], &[]);
        all.assert_code(0);
        assert_eq!(site.image_count() - before, 2, "{all}");
        assert!(site.image_id(&named).is_some(), "{all}");
        assert_eq!(site.image_id(&extra).is_some(), tool == Tool::Compose2, "{all}");
        assert_eq!(site.image_id(&opt), None, "{all}");
        // To name a service enables its profile.
        run(&project, &["--each"], &["opt"]).assert_code(0).assert_stderr(&opt);
        assert!(site.image_id(&opt).is_some());
    });
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn services_of_one_image_never_fail() {
    const ROUNDS: usize = 50;
    for_each_store(|site| {
        // Without buildlock, such calls fail there: "image ... already exists".
        if !site.client.has_containerds_store() {
            return;
        }
        let recipe = site.recipe("true");
        for round in 0..ROUNDS {
            let image = tag(site, Tool::Compose2, &format!("one-image-{round}"));
            let services = ["a", "b", "c"].map(|name| (name, &*image, &recipe));
            let project = Project::new(site, Tool::Compose2, &services);
            let done = run(&project, &["--each"], &[]);
            done.assert_code(0);
            let done = [done];
            assert_eq!(count(&done, "building"), 1, "{}", all_output(&done));
            assert!(site.image_id(&image).is_some(), "{}", all_output(&done));
        }
    });
}

/// A target that another one reads is built and tagged with it, and so has to be locked.
#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn target_that_another_one_reads_is_locked_with_it() {
    for_each_store(|site: &Site| {
        let tags = ["reads", "base"].map(|name| tag(site, Tool::Bake, name));
        let recipes = [site.recipe("true reads"), site.recipe("true base")];
        let services = [("reads", &*tags[0], &recipes[0]), ("base", &*tags[1], &recipes[1])];
        let project = Project::new(site, Tool::Bake, &services);
        let file = project.folder.join("docker-bake.json");
        let mut bake: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        bake["target"]["reads"]["contexts"] = json!({ "other": "target:base" });
        fs::write(&file, bake.to_string()).unwrap();
        let dockerfile = recipes[0].context.join("Dockerfile");
        let text = fs::read_to_string(&dockerfile).unwrap();
        fs::write(&dockerfile, format!("{text}\nCOPY --from=other / /other\n")).unwrap();

        let done = run(&project, &[], &["reads"]);
        done.assert_code(0).assert_stderr(&tags[1]);
        for tag in &tags {
            assert!(site.image_id(tag).is_some(), "{done}");
            assert!(site.f.lock_file(tag).exists(), "{tag}");
        }
    });
}

/// Runs a test with each tool whose files buildlock fingerprints.
fn for_each_fingerprinted(test: impl Fn(&Site, Tool) + Sync) {
    for_each_store(|site| [Tool::Compose2, Tool::Bake].iter().for_each(|&tool| test(site, tool)));
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn only_what_has_changed_is_built_again() {
    for_each_fingerprinted(|site, tool| {
        let tags = ["a", "b"].map(|name| tag(site, tool, &format!("changed-{name}")));
        // Each leaves something of its own, so that a build makes another image.
        let recipes = ["a", "b"].map(|name| site.recipe(&format!("true {name}")));
        for recipe in &recipes {
            let file = recipe.context.join("Dockerfile");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(file, format!("{text}\nCOPY data /data\n")).unwrap();
            fs::write(recipe.context.join("data"), "1").unwrap();
        }
        let services = [("a", &*tags[0], &recipes[0]), ("b", &*tags[1], &recipes[1])];
        let project = Project::new(site, tool, &services);
        let built = || {
            let done = run(&project, &["--each", "--if-changed"], &[]);
            done.assert_code(0);
            let says = |line: &str, tag: &str| line.contains("\"built\"") && line.contains(tag);
            let is_built = |tag: &String| done.stderr.lines().any(|line| says(line, tag));
            (tags.iter().map(is_built).collect::<Vec<_>>(), done)
        };
        let (first, done) = built();
        assert_eq!(first, [true, true], "{done}");
        let (second, done) = built();
        assert_eq!(second, [false, false], "{done}");
        fs::write(recipes[1].context.join("data"), "2").unwrap();
        let (third, done) = built();
        assert_eq!(third, [false, true], "{done}");

        // A bare build of the same sources has no label, and none that it inherits counts.
        let bare = project.build(&["a"]);
        project.set_up(site.program(&bare[0]).args(&bare[1..])).run().assert_code(0);
        let (fourth, done) = built();
        assert_eq!(fourth, [true, false], "{done}");

        // A changed definition counts as a changed file does.
        change_definition(&project);
        let (fifth, done) = built();
        assert_eq!(fifth, [true, false], "{done}");
    });
}

/// Gives the first service another build argument.
fn change_definition(project: &Project<'_>) {
    let file = match project.tool {
        Tool::Bake => "docker-bake.json",
        _ => "compose.yaml",
    };
    let file = project.folder.join(file);
    let mut text: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    match project.tool {
        Tool::Bake => text["target"]["a"]["args"] = json!({ "NEW": "$$1" }),
        _ => text["services"]["a"]["build"]["args"] = json!({ "NEW": "$$1" }),
    }
    fs::write(file, text.to_string()).unwrap();
}

#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn several_images_have_several_fingerprints() {
    for_each_fingerprinted(|site, tool| {
        let tags = ["a", "b"].map(|name| tag(site, tool, &format!("prints-{name}")));
        let recipes = [site.recipe("true"), site.recipe("true")];
        let services = [("a", &*tags[0], &recipes[0]), ("b", &*tags[1], &recipes[1])];
        let project = Project::new(site, tool, &services);
        run(&project, &["--if-changed"], &[]).assert_code(125).assert_stderr("build with --each");
        run(&project, &["--if-changed"], &["a"]).assert_code(0).assert_stderr("\"built\"");
        run(&project, &["--if-changed"], &["a"]).assert_code(0).assert_stderr("\"present\"");
        let same = project.buildlock(&["fingerprint", "--diff"], &project.build(&["a"])).run();
        same.assert_code(0);
    });
}

/// A call exits with 0 only if the image that it looked for is there after compose has built it.
#[ignore = "takes most of a minute: make test-engines"]
#[test]
fn projects_are_named_as_compose_names_them() {
    for_each_compose(|site, tool| {
        let recipe = site.recipe("true");
        let named = site.name(&format!("named-{tool:?}").to_lowercase());
        let folder = site.name(&format!("My_Dir.{tool:?}"));
        let of_folder: String = folder
            .to_lowercase()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
            .collect();
        let project = Project::new(site, tool, &[]);
        write(&project, &json!({ "api": { "build": build_of(&recipe) } }));
        let text = fs::read(project.folder.join("compose.yaml")).unwrap();
        let place = |name: &str| {
            let folder = site.f.work_dir().join(format!("{name}-{tool:?}")).join(&folder);
            fs::create_dir_all(folder.join("below")).unwrap();
            fs::write(folder.join("compose.yaml"), &text).unwrap();
            folder
        };
        let program: &[&str] = match tool {
            Tool::Compose2 => &["docker", "compose"],
            _ => &["docker-compose"],
        };
        let separator = if tool == Tool::Compose2 { '-' } else { '_' };
        let check = |options: &[&str], variable: Option<&str>, folder: &Path, expected: &str| {
            let image = format!("{expected}{separator}api:latest");
            site.remove_at_the_end(&image);
            let command = [program, options, &["build"]].concat();
            let call = site.buildlock(["--"]).args(command);
            let call = project.set_up(call).current_dir(folder);
            let call = match variable {
                Some(name) => call.env("COMPOSE_PROJECT_NAME", name),
                None => call,
            };
            call.run().assert_code(0).assert_stderr(&format!("\"{image}\""));
        };
        let plain = place("plain");
        check(&[], None, &plain, &of_folder);
        check(&[], None, &plain.join("below"), &of_folder);
        check(&["-p", &named], Some("other"), &plain, &named);
        check(
            &["-f", &format!("{folder}/compose.yaml")],
            None,
            plain.parent().unwrap(),
            &of_folder,
        );
        check(&["--project-directory", "below"], None, &plain, "below");
        check(&[], Some(&format!("{named}-v")), &plain, &format!("{named}-v"));
        let with_file = place("file");
        fs::write(with_file.join(".env"), format!("COMPOSE_PROJECT_NAME={named}-f\n")).unwrap();
        check(&[], None, &with_file, &format!("{named}-f"));
    });
}
