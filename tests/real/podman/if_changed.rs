//! `--if-changed` with podman and buildah.

use std::fs;
use std::path::{Path, PathBuf};

use super::{BASE, Podman, with_buildah, with_podman};
use crate::support::Finished;

const IMAGE: &str = "localhost/env:abc";

/// Returns `podman ... build OPTIONS -t TAG CONTEXT`.
fn podman_words(podman: &Podman, options: &[&str], context: &Path) -> Vec<String> {
    let mut words = podman.flags();
    words.extend(["build", "--network", "none"].map(str::to_owned));
    words.extend(options.iter().map(|&option| option.to_owned()));
    words.extend(["-t".to_owned(), IMAGE.to_owned(), context.to_str().unwrap().to_owned()]);
    words
}

/// Returns `buildah ... build OPTIONS -t TAG CONTEXT`.
fn buildah_words(podman: &Podman, options: &[&str], context: &Path) -> Vec<String> {
    let mut words = podman.buildah_words(IMAGE, context);
    words.retain(|word| word != "--no-cache");
    let at = words.iter().position(|word| word == "build").unwrap() + 1;
    words.splice(at..at, options.iter().map(|&option| option.to_owned()));
    words
}

/// Makes a folder with this Dockerfile and a file.
fn context(podman: &Podman, dockerfile: &str) -> PathBuf {
    let folder = podman.recipe("true");
    fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
    fs::write(folder.join("file"), "content\n").unwrap();
    folder
}

fn call(podman: &Podman, words: &[String]) -> Finished {
    podman.buildlock(["-v", "--if-changed", "--"]).args(words).run()
}

#[track_caller]
fn assert_builds(podman: &Podman, words: &[String]) -> Finished {
    let run = call(podman, words);
    run.assert_code(0).assert_stderr("\"built\"");
    run
}

#[track_caller]
fn assert_skips(podman: &Podman, words: &[String]) {
    let run = call(podman, words);
    run.assert_code(0).assert_stderr("\"present\"").assert_no_stderr("\"building\"");
}

#[test]
fn podmans_image_is_built_again_if_its_base_has_another_shell() {
    with_podman(|podman| {
        let base = context(podman, &format!("FROM {BASE}\n"));
        let make_base = || {
            let options = ["build", "--network", "none", "--format", "docker", "-t", "middle:1"];
            let made = podman.ask(options.iter().copied().chain([base.to_str().unwrap()]));
            assert!(made.status.success(), "{made:?}");
        };
        make_base();
        let words =
            podman_words(podman, &[], &context(podman, "FROM localhost/middle:1\nCOPY file /\n"));
        assert_builds(podman, &words);
        assert_skips(podman, &words);
        fs::write(base.join("Dockerfile"), format!("FROM {BASE}\nSHELL [\"/bin/busybox\"]\n"))
            .unwrap();
        make_base();
        assert_builds(podman, &words).assert_stderr("a base image changed");
        assert_skips(podman, &words);
        fs::write(base.join("Dockerfile"), format!("FROM {BASE}\nONBUILD COPY file /more\n"))
            .unwrap();
        make_base();
        for _ in 0..2 {
            assert_builds(podman, &words).assert_stderr("podman does not show the ONBUILD");
        }
    });
}

#[test]
fn buildah_is_asked_for_the_triggers_of_a_base_image() {
    with_buildah(|podman| {
        let base = context(podman, &format!("FROM {BASE}\nONBUILD COPY file /more\n"));
        let options = ["build", "--network", "none", "--format", "docker", "-t", "middle:1"];
        let made = podman.ask(options.iter().copied().chain([base.to_str().unwrap()]));
        assert!(made.status.success(), "{made:?}");
        let folder = context(podman, "FROM localhost/middle:1\n");
        let words = buildah_words(podman, &["--pull=false"], &folder);
        assert_builds(podman, &words);
        assert_skips(podman, &words);
        fs::write(folder.join("file"), "other\n").unwrap();
        assert_builds(podman, &words);
        assert_skips(podman, &words);
    });
}

#[test]
fn ignored_file_that_buildah_mounts_counts() {
    with_buildah(|podman| {
        let mount = "RUN --mount=type=bind,target=/src cat /src/ignored >/copy";
        let folder = context(podman, &format!("FROM {BASE}\n{mount}\n"));
        fs::write(folder.join(".dockerignore"), "ignored\n").unwrap();
        fs::write(folder.join("ignored"), "1\n").unwrap();
        let words = buildah_words(podman, &["--pull=false"], &folder);
        assert_builds(podman, &words);
        assert_skips(podman, &words);
        fs::write(folder.join("ignored"), "2\n").unwrap();
        assert_builds(podman, &words).assert_stderr("the context changed");
    });
}

#[test]
fn log_file_in_the_context_is_not_an_input() {
    with_podman(|podman| {
        let folder = context(podman, &format!("FROM {BASE}\nCOPY file /\n"));
        let log = folder.join("log").to_str().unwrap().to_owned();
        let words = podman_words(podman, &["--logfile", &log], &folder);
        assert_builds(podman, &words).assert_no_stderr("changed while the build command ran");
        assert_skips(podman, &words);
    });
}
