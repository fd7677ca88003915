//! `--if-changed` on real engines: an image is skipped only if it was built from what the build
//! command would read now.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::engine::{Site, all_output, count, for_each_builder, for_each_client, skip};
use crate::support::registry::Registry;
use crate::support::{Finished, Invocation, Running};

/// A folder with a Dockerfile and files, and the tag that it is built as.
struct Project<'s> {
    site: &'s Site,
    folder: PathBuf,
    tag: String,
    options: Vec<String>,
}

impl<'s> Project<'s> {
    fn new(site: &'s Site, name: &str) -> Self {
        Self::with_dockerfile(site, name, "FROM {base}\nARG VALUE=none\nCOPY . /src\n")
    }

    /// Makes a project with this Dockerfile, in which `{base}` is the test's base image.
    fn with_dockerfile(site: &'s Site, name: &str, dockerfile: &str) -> Self {
        let folder = site.context(&dockerfile.replace("{base}", site.base()));
        Project { site, folder, tag: site.tag(name), options: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// Prepares `buildlock fingerprint OPTIONS -- docker build -t TAG FOLDER`.
    fn fingerprint(&self, options: &[&str]) -> Invocation<'s> {
        self.site.buildlock(["fingerprint"]).args(options).arg("--").args(self.words())
    }

    fn words(&self) -> Vec<String> {
        let mut words: Vec<String> =
            ["docker", "build", "--network", "none"].map(Into::into).into();
        words.extend(self.options.iter().cloned());
        words.extend(["-t".to_owned(), self.tag.clone()]);
        words.push(self.folder.to_str().unwrap().to_owned());
        words
    }

    /// Prepares `buildlock --if-changed -- docker build -t TAG FOLDER`.
    fn call(&self) -> Invocation<'s> {
        self.site.buildlock(["--if-changed", "--"]).args(self.words())
    }

    #[track_caller]
    fn assert_builds(&self) -> Finished {
        let run = self.call().run();
        run.assert_code(0).assert_stderr("\"built\"").assert_no_stderr("\"present\"");
        run
    }

    #[track_caller]
    fn assert_skips(&self) -> Finished {
        let run = self.call().run();
        run.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
        run
    }

    /// Builds without buildlock.
    fn build_bare(&self) {
        self.site.client.ask(&self.words()[1..]);
    }

    fn id(&self) -> String {
        self.site.image_id(&self.tag).expect("the image is there")
    }

    fn label(&self) -> String {
        let format = "{{index .Config.Labels \"buildlock.inputs\"}}";
        let label = self.site.client.ask(["image", "inspect", "--format", format, &self.tag]);
        label.trim().to_owned()
    }
}

#[test]
fn image_is_built_again_whenever_an_input_changes_and_skipped_otherwise() {
    for_each_builder(|site| {
        let mut it = Project::new(site, "changes");
        it.assert_builds();
        it.assert_skips();
        let step = |it: &Project<'_>, what: &str, change: &dyn Fn()| {
            change();
            let run = it.call().run();
            run.assert_code(0);
            assert_eq!(count(std::slice::from_ref(&run), "built"), 1, "{what}\n{run}");
            it.assert_skips();
        };
        step(&it, "content", &|| it.write("file", "other\n"));
        step(&it, "a new file", &|| it.write("folder/new", "x"));
        step(&it, "permissions", &|| {
            fs::set_permissions(it.path("file"), Permissions::from_mode(0o600)).unwrap();
        });
        step(&it, "a link", &|| symlink("file", it.path("link")).unwrap());
        step(&it, "the target of a link", &|| {
            fs::remove_file(it.path("link")).unwrap();
            symlink("folder/new", it.path("link")).unwrap();
        });
        step(&it, "an empty folder", &|| fs::create_dir(it.path("empty")).unwrap());
        step(&it, "a file that is gone", &|| fs::remove_file(it.path("folder/new")).unwrap());
        step(&it, "a rule to ignore", &|| it.write(".dockerignore", "folder\n"));
        step(&it, "the Dockerfile", &|| {
            it.write("Dockerfile", &format!("FROM {}\nARG VALUE\nCOPY . /dst\n", site.base()));
        });
        it.options = ["--build-arg", "VALUE=1"].map(Into::into).into();
        step(&it, "a build argument", &|| {});
        it.options = ["--build-arg", "VALUE=2"].map(Into::into).into();
        step(&it, "another build argument", &|| {});
        it.options = ["--label", "a=b"].map(Into::into).into();
        step(&it, "an option", &|| {});
    });
}

#[test]
fn what_does_not_change_the_image_does_not_cause_a_build() {
    for_each_builder(|site| {
        let mut it = Project::new(site, "same");
        it.write(".dockerignore", "ignored\n");
        it.write("ignored", "1");
        it.assert_builds();
        let id = it.id();
        it.write("ignored", "2");
        it.assert_skips();
        // The same content, with new times.
        it.write("file", "content\n");
        it.assert_skips();
        it.options = vec!["--quiet".into()];
        it.assert_skips().assert_stdout(format!("{id}\n"));
        it.options = vec!["--force-rm".into()];
        let elsewhere = site.f.path("work/elsewhere");
        let copied = site.f.program("cp").arg("-rp").arg(&it.folder).arg(&elsewhere).run();
        copied.assert_code(0);
        it.options.clear();
        it.folder = elsewhere;
        it.assert_skips();
        assert_eq!(it.id(), id);
    });
}

#[test]
fn two_worktrees_that_build_one_tag_in_turns_each_get_their_own_image() {
    for_each_builder(|site| {
        let (mut one, mut two) = (Project::new(site, "shared"), Project::new(site, "unused"));
        two.tag.clone_from(&one.tag);
        two.write("file", "two\n");
        for it in [&mut one, &mut two] {
            it.options = vec!["--quiet".into()];
        }
        for it in [&one, &two, &one, &two] {
            let printed = text(&it.assert_builds());
            assert_eq!(printed.trim(), it.id());
            let label = it.label();
            assert!(label.starts_with("1."), "{label}");
        }
        assert_eq!(text(&two.assert_skips()).trim(), two.id());
    });
}

#[test]
fn many_callers_after_a_change_make_one_build() {
    let is_thorough = std::env::var_os("BUILDLOCK_TEST_ENGINES").is_some();
    let callers = if is_thorough { 64 } else { 16 };
    for_each_builder(|site| {
        let it = Project::with_dockerfile(
            site,
            "many",
            "FROM {base}\nCOPY file /\nRUN sleep 1; cat /proc/sys/kernel/random/uuid >/id\n",
        );
        it.assert_builds();
        it.write("file", "other\n");
        let all: Vec<_> = (0..callers).map(|_| it.call().start()).collect();
        let all: Vec<_> = all.into_iter().map(Running::wait).collect();
        for run in &all {
            run.assert_code(0);
        }
        assert_eq!(count(&all, "built"), 1, "{}", all_output(&all));
        assert_eq!(count(&all, "present"), callers - 1, "{}", all_output(&all));
    });
}

#[test]
fn image_that_only_inherits_the_label_is_not_up_to_date() {
    for_each_builder(|site| {
        let it = Project::new(site, "inherited");
        it.assert_builds();
        // A build without buildlock, upon this very image.
        let upon = site.context(&format!("FROM {}\nCOPY file /more\n", it.tag));
        site.client.ask(["build", "--network", "none", "-t", &it.tag, upon.to_str().unwrap()]);
        it.assert_builds().assert_stderr("its label is that of another image");
        it.assert_skips();

        let container = format!("{}-container", it.tag.replace(':', "-"));
        site.client.ask(["create", "--name", &container, &it.tag, "true"]);
        site.client.ask(["commit", &container, &it.tag]);
        site.client.ask(["rm", &container]);
        it.assert_builds().assert_stderr("its label is that of another image");
        it.assert_skips();
        // A build without buildlock has no label.
        it.build_bare();
        it.assert_builds().assert_stderr("it has no label buildlock.inputs");
    });
}

#[test]
fn base_image_counts_by_what_a_build_takes_from_it() {
    for_each_builder(|site| {
        let base = site.tag("middle");
        let folder = site.context(&format!("FROM {}\nARG N=1\nCOPY file /base\n", site.base()));
        let build_base = |options: &[&str]| {
            let words = ["build", "--network", "none", "-t", &base, folder.to_str().unwrap()];
            site.client.ask(words.iter().chain(options));
        };
        build_base(&[]);
        let it = Project::with_dockerfile(site, "upon", &format!("FROM {base}\nCOPY file /\n"));
        it.assert_builds();
        it.assert_skips();
        // From its cache. On the containerd store it gets another ID.
        build_base(&[]);
        it.assert_skips();
        build_base(&["--label", "a=b"]);
        it.assert_builds().assert_stderr("a base image changed");
        fs::write(folder.join("file"), "other\n").unwrap();
        build_base(&["--label", "a=b"]);
        it.assert_builds().assert_stderr("a base image changed");
        it.assert_skips();
        // What its ONBUILD copies belongs to the context all the same, and its triggers count.
        fs::write(
            folder.join("Dockerfile"),
            format!("FROM {}\nONBUILD COPY file /trigger\n", site.base()),
        )
        .unwrap();
        build_base(&[]);
        it.assert_builds();
        it.write("file", "changed\n");
        it.assert_builds();
        it.assert_skips();
    });
}

/// Pushes an image with this content, and removes it from the engine. Returns its name.
fn push_base(site: &Site, registry: &Registry, content: &str) -> String {
    let base = format!("{}/{}:1", registry.address(), site.name("base"));
    site.remove_at_the_end(&base);
    let folder = site.context("FROM scratch\nCOPY file /base\n");
    fs::write(folder.join("file"), content).unwrap();
    site.client.ask(["build", "-t", &base, folder.to_str().unwrap()]);
    site.client.ask(["push", &base]);
    site.client.ask(["image", "rm", "--force", &base]);
    base
}

#[test]
fn base_image_that_is_not_local_is_looked_up_in_its_registry() {
    for_each_client(|site| {
        if !site.client.buildkit {
            // The legacy builder pulls it, and then it is local.
            return;
        }
        let Some(registry) = Registry::start() else {
            return skip("docker-registry is not installed");
        };
        let _bridge = site.client.reaches(registry.address());
        let base = push_base(site, &registry, "1\n");
        let it = Project::with_dockerfile(site, "remote", &format!("FROM {base}\nCOPY file /\n"));
        it.assert_builds();
        it.assert_skips();
        assert_eq!(push_base(site, &registry, "2\n"), base);
        it.assert_builds().assert_stderr("a base image changed");
        it.assert_skips();
    });
}

#[test]
fn input_that_changes_during_the_build_causes_another_one() {
    for_each_builder(|site| {
        let step = site.slow_recipe(600, "true");
        let dockerfile =
            format!("FROM {}\nCOPY file /\nRUN sleep {}; true\n", site.base(), step.marker);
        fs::write(step.context.join("Dockerfile"), dockerfile).unwrap();
        let (folder, tag) = (step.context.clone(), site.tag("during"));
        let it = Project { site, folder, tag, options: Vec::new() };
        let call = it.call().start();
        site.wait_for_step(&step);
        // There and back again: only the file's time of change shows it.
        it.write("file", "other\n");
        it.write("file", "content\n");
        site.end_step(&step);
        call.wait_for_stderr("the inputs changed while the build command ran");
        site.f.wait_for("the end of the second build", || {
            site.end_step(&step);
            call.stderr().contains("\"built\"")
        });
        call.wait().assert_code(0);
        it.assert_skips();
    });
}

#[test]
fn file_that_the_build_command_writes_into_its_context_is_not_an_input() {
    for_each_builder(|site| {
        let mut it = Project::new(site, "written");
        let id_file = it.path("id").to_str().unwrap().to_owned();
        it.options = vec!["--iidfile".to_owned(), id_file];
        it.assert_builds().assert_no_stderr("changed while the build command ran");
        it.assert_skips();
        assert_eq!(fs::read_to_string(it.path("id")).unwrap(), it.id());
        it.write("file", "other\n");
        it.assert_builds().assert_no_stderr("changed while the build command ran");
        it.assert_skips();
    });
}

#[test]
fn build_that_was_killed_before_it_was_verified_counts_for_nothing() {
    for_each_builder(|site| {
        let mut it = Project::new(site, "killed");
        let words = it.words();
        let (first, rest) = words.split_at(2);
        // The keeper is between the shell and buildlock.
        let script = format!(
            "{} --label \"$BUILDLOCK_LABEL\" {}; \
             [ -e kept ] || kill -9 $(ps -o ppid= -p $PPID)",
            first.join(" "),
            rest.join(" ")
        );
        let inputs = it.folder.clone();
        let call = |script: &str| {
            site.buildlock(["--if-changed", "--inputs"])
                .arg(&inputs)
                .args(["-t", &it.tag, "--", "sh", "-c", script])
                .current_dir(site.f.path("work"))
        };
        let killed = call(&script).run();
        assert_eq!(killed.status.code(), None, "{killed}");
        site.f.wait_for("the image", || site.image_id(&it.tag).is_some());
        fs::write(site.f.path("work/kept"), "").unwrap();
        let again = call(&script).run();
        again.assert_code(0).assert_stderr("the build that made it was interrupted");
        call(&script).run().assert_code(0).assert_stderr("\"present\"");
        it.write("file", "other\n");
        call(&script).run().assert_code(0).assert_stderr("what --inputs names changed");
        it.options.clear();
    });
}

#[test]
fn fingerprint_is_that_of_the_label_and_says_what_has_changed() {
    for_each_builder(|site| {
        let mut it = Project::new(site, "shown");
        it.options = ["--build-arg", "VALUE=s3cret"].map(Into::into).into();
        let missing = it.fingerprint(&["--diff"]).run();
        missing.assert_code(1).assert_stdout(format!("{}: there is no image\n", it.tag));
        it.assert_builds();
        it.fingerprint(&[]).run().assert_code(0).assert_stdout(format!("{}\n", it.label()));
        it.fingerprint(&["--diff"]).run().assert_code(0).assert_stdout("");
        let all = text(&it.fingerprint(&["-v"]).run());
        for shown in ["--build-arg VALUE", "file", site.base(), &it.label()] {
            assert!(all.contains(shown), "no {shown} in {all}");
        }
        assert!(!all.contains("s3cret"), "{all}");
        it.write("file", "other\n");
        it.write("folder/new", "");
        it.options = ["--build-arg", "VALUE=2"].map(Into::into).into();
        let diff = it.fingerprint(&["--diff"]).run();
        let context =
            format!("{}: the context changed: file, folder (new), folder/new (new)", it.tag);
        let expected = format!("{context}\n{}: the options changed\n", it.tag);
        diff.assert_code(1).assert_stdout(expected);
    });
}

#[test]
fn some_builds_are_never_skipped_and_say_why() {
    for_each_builder(|site| {
        let mut it = Project::new(site, "always");
        let assert_always = |it: &Project<'_>, why: &str| {
            for _ in 0..2 {
                it.assert_builds().assert_stderr(why).assert_stderr("so it is always built");
            }
        };
        it.options = vec!["--no-cache".into()];
        assert_always(&it, "--no-cache asks for a build");
        it.options.clear();
        it.write("Dockerfile", &format!("FROM {}\nCOPY file /more\n", it.tag));
        assert_always(&it, "it is built upon itself");
    });
}

#[test]
fn note_of_a_verified_image_survives_a_prune() {
    for_each_client(|site| {
        let it = Project::new(site, "pruned");
        it.assert_builds();
        site.f.buildlock(["prune"]).run().assert_code(0);
        let upon = site.context(&format!("FROM {}\nCOPY file /more\n", it.tag));
        site.client.ask(["build", "--network", "none", "-t", &it.tag, upon.to_str().unwrap()]);
        it.assert_builds().assert_stderr("its label is that of another image");
    });
}

#[test]
fn image_is_not_believed_for_what_anybody_may_write_or_remove() {
    for_each_client(|site| {
        let it = Project::new(site, "forged");
        it.assert_builds();
        let note = fs::read_dir(site.f.lock_dir().join("image-locks")).unwrap();
        let mut note = note.map(|entry| entry.unwrap().path());
        let note = note.find(|path| path.extension().is_some_and(|it| it == "json")).unwrap();
        let verified = fs::read_to_string(&note).unwrap();
        let upon = site.context(&format!("FROM {}\nCOPY file /more\n", it.tag));
        let id = site.image_id(&it.tag).unwrap();
        site.client.ask(["build", "--network", "none", "-t", &it.tag, upon.to_str().unwrap()]);
        let other = site.image_id(&it.tag).unwrap();
        fs::write(&note, verified.replace(&id, &other)).unwrap();
        it.assert_builds();
        site.client.ask(["build", "--network", "none", "-t", &it.tag, upon.to_str().unwrap()]);
        fs::write(&note, "").unwrap();
        it.assert_builds();
        site.client.ask(["build", "--network", "none", "-t", &it.tag, upon.to_str().unwrap()]);
        fs::remove_file(&note).unwrap();
        it.assert_builds();
        it.assert_skips();
    });
}

#[test]
fn command_that_may_have_read_its_stdin_is_not_run_again() {
    for_each_client(|site| {
        let it = Project::new(site, "stdin");
        let script = format!(
            "cat >/dev/null; docker build --network none -t {} --label \"$BUILDLOCK_LABEL\" {} && echo x >changing",
            it.tag,
            it.folder.display()
        );
        fs::write(site.f.path("work/changing"), "").unwrap();
        let call = site.buildlock(["--if-changed", "--inputs", "changing", "-t", &it.tag, "--"]);
        let call = call.args(["sh", "-c", &script]).current_dir(site.f.path("work"));
        let refused = call.stdin("words").run();
        refused.assert_code(125).assert_stderr("it may have read its stdin");
    });
}

#[test]
fn random_changes_are_never_skipped() {
    for_each_builder(|site| {
        let steps = std::env::var("BUILDLOCK_TEST_STEPS").map_or(5, |steps| steps.parse().unwrap());
        let it = Project::new(site, "random");
        let seed = std::env::var("BUILDLOCK_TEST_SEED")
            .map_or_else(|_| u64::from(std::process::id()) << 16 | 1, |seed| seed.parse().unwrap());
        let mut random = Random(seed);
        it.assert_builds();
        for step in 0..steps {
            let before = snapshot(&it.folder);
            let what = random.change(&it);
            if snapshot(&it.folder) == before {
                it.assert_skips();
            } else {
                let run = it.call().run();
                run.assert_code(0);
                assert_eq!(
                    count(std::slice::from_ref(&run), "built"),
                    1,
                    "seed {seed}, step {step}, {what}\n{run}"
                );
            }
            it.assert_skips();
        }
    });
}

/// A generator of numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    /// Changes something in the project, or nothing.
    fn change(&mut self, it: &Project<'_>) -> String {
        let name = ["a", "b", "folder/a", "folder/b"][self.below(4) as usize];
        let path = it.path(name);
        let number = self.below(3);
        match self.below(7) {
            0 if !path.is_symlink() => it.write(name, &number.to_string()),
            1 => _ = fs::remove_file(&path),
            2 if path.is_file() && !path.is_symlink() => {
                let mode = [0o644, 0o600, 0o755][number as usize];
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
            3 if !path.exists() && !path.is_symlink() => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                symlink(["a", "b", "folder"][number as usize], &path).unwrap();
            }
            4 => it.write("Dockerfile", &dockerfile(it.site.base(), number)),
            5 => _ = fs::create_dir(it.path(["x", "y", "folder/z"][number as usize])),
            _ => {}
        }
        format!("{name}, {number}")
    }
}

fn dockerfile(base: &str, number: u64) -> String {
    format!("FROM {base}\nARG VALUE=none\nCOPY . /src{number}\n")
}

/// Returns all that a build reads of a folder.
fn snapshot(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let (path, stat) = (entry.path(), entry.path().symlink_metadata().unwrap());
            let content = match stat.file_type() {
                kind if kind.is_dir() => {
                    folders.push(path.clone());
                    String::new()
                }
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                _ => fs::read_to_string(&path).unwrap(),
            };
            let mode = stat.permissions().mode();
            all.push(format!("{} {mode:o} {content}", path.display()));
        }
    }
    all.sort();
    all
}

fn text(run: &Finished) -> String {
    String::from_utf8(run.stdout.clone()).unwrap()
}
