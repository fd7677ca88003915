//! Generated files, what `make install` puts where, and names of tests in the documentation.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Fixture, skip};

const STALE: &str = "run `make completions man`";

/// The completion scripts and their shells.
const COMPLETIONS: [(&str, &str); 5] = [
    ("buildlock.bash", "bash"),
    ("_buildlock", "zsh"),
    ("buildlock.fish", "fish"),
    ("buildlock.elv", "elvish"),
    ("_buildlock.ps1", "powershell"),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns what buildlock prints with these arguments.
fn print(args: &[&str]) -> Vec<u8> {
    let f = Fixture::new();
    let run = f.buildlock(args).run();
    run.assert_code(0).assert_no_stderr("warning");
    assert!(!run.stdout.is_empty(), "{run}");
    run.stdout
}

/// Returns the subcommands that the help lists, except for `help` itself.
fn subcommands() -> Vec<String> {
    let help = String::from_utf8(print(&["--help"])).unwrap();
    let list = help.split_once("\nCommands:\n").unwrap_or_else(|| panic!("no commands in\n{help}"));
    let lines = list.1.lines().take_while(|line| !line.trim().is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Fails unless the folder holds exactly these files.
fn assert_contents(folder: &str, wanted: &[(String, Vec<u8>)]) {
    let path = repository().join(folder);
    let there: BTreeSet<String> = fs::read_dir(&path)
        .unwrap_or_else(|e| panic!("{path:?}: {e}; {STALE}"))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let names: BTreeSet<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(there, names, "the files of {folder}/; {STALE}");
    for (name, text) in wanted {
        let file = fs::read(path.join(name)).unwrap();
        assert!(file == *text, "{folder}/{name} is out of date: {STALE}");
    }
}

#[test]
fn completions_are_what_the_binary_prints() {
    let wanted = COMPLETIONS.map(|(name, shell)| (name.to_owned(), print(&["completions", shell])));
    assert_contents("completions", &wanted);
}

#[test]
fn manual_pages_are_what_the_binary_prints() {
    let mut wanted = vec![("buildlock.1".to_owned(), print(&["man"]))];
    let subcommands = subcommands();
    for name in ["status", "path", "prune", "completions", "man"] {
        assert!(subcommands.iter().any(|other| other == name), "{name} is not in {subcommands:?}");
    }
    for name in subcommands {
        wanted.push((format!("buildlock-{name}.1"), print(&["man", &name])));
    }
    assert_contents("man", &wanted);
}

#[test]
fn exit_statuses_are_the_same_in_help_man_page_and_documentation() {
    let help = String::from_utf8(print(&["--help"])).unwrap();
    let (_, rows) = help.split_once("\nExit status:\n").unwrap();
    let rows = rows.lines().take_while(|line| !line.is_empty());
    let rows: Vec<_> = rows.map(|row| row.trim().split_once("  ").unwrap()).collect();
    assert!(rows.len() >= 7, "{rows:?}");
    let man = String::from_utf8(print(&["man"])).unwrap().replace('\\', "");
    let page = fs::read_to_string(repository().join("docs/exit-status.md")).unwrap();
    for (status, meaning) in rows {
        let meaning = meaning.trim();
        assert!(man.contains(&format!("fB{status}fR\n{meaning}\n")), "{status} {meaning}: {man}");
        let row = format!("\n| {status} | {meaning} |\n");
        assert!(page.replace('`', "").contains(&row), "{row:?} is not in docs/exit-status.md");
    }
}

#[test]
fn manual_page_of_an_unknown_subcommand_is_wrong_usage() {
    let f = Fixture::new();
    f.buildlock(["man", "nonsense"])
        .run()
        .assert_code(2)
        .assert_stderr("nonsense")
        .assert_stdout("");
}

#[test]
fn bash_completion_is_valid_and_completes_subcommands() {
    let script = repository().join("completions/buildlock.bash");
    let check = format!(
        "source '{}' && COMP_WORDS=(buildlock sta) COMP_CWORD=1 && _buildlock buildlock sta \
         buildlock && printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let Ok(output) = Command::new("bash").args(["--norc", "-c", &check]).output() else {
        skip("needs bash");
        return;
    };
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(words.lines().any(|word| word == "status"), "{output:?}");
}

/// Runs `make ARGS` in the repository with the binary under test.
fn make(args: &[&str]) -> String {
    let mut make = Command::new("make");
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CARGO_MAKEFLAGS", "DESTDIR", "PREFIX"] {
        make.env_remove(name);
    }
    let binary = assert_cmd::cargo::cargo_bin!("buildlock").display().to_string();
    make.arg("-C").arg(repository()).args(args).arg(format!("BINARY={binary}"));
    // make must not build it, even if a source file is newer.
    make.args(["-o", &binary]);
    let output = make.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns every file below a folder, by its path from there, with its mode.
fn files(folder: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            found.push((name, mode));
        }
    }
    found.sort();
    found
}

#[test]
fn install_puts_everything_in_place_and_uninstall_removes_it() {
    for (argument, prefix) in [(None, "usr/local"), (Some("PREFIX=/usr"), "usr")] {
        let f = Fixture::new();
        let destination = f.path("destination");
        let variables = [format!("DESTDIR={}", destination.display())];
        let variables = variables.iter().map(String::as_str).chain(argument);
        let with = |target: &'static str| -> Vec<&str> {
            std::iter::once(target).chain(variables.clone()).collect()
        };
        make(&with("install"));
        let mut wanted = vec![
            (format!("{prefix}/bin/buildlock"), 0o755),
            (format!("{prefix}/lib/tmpfiles.d/buildlock.conf"), 0o644),
            (format!("{prefix}/share/bash-completion/completions/buildlock"), 0o644),
            (format!("{prefix}/share/fish/vendor_completions.d/buildlock.fish"), 0o644),
            (format!("{prefix}/share/man/man1/buildlock.1"), 0o644),
            (format!("{prefix}/share/zsh/site-functions/_buildlock"), 0o644),
        ];
        for name in subcommands() {
            wanted.push((format!("{prefix}/share/man/man1/buildlock-{name}.1"), 0o644));
        }
        wanted.sort();
        assert_eq!(files(&destination), wanted);

        make(&with("uninstall"));
        assert_eq!(files(&destination), []);
    }
}

/// Returns the words of the installed tmpfiles.d lines.
fn tmpfiles_lines() -> Vec<Vec<String>> {
    let f = Fixture::new();
    let destination = f.path("destination");
    make(&["install", &format!("DESTDIR={}", destination.display())]);
    let file = destination.join("usr/local/lib/tmpfiles.d/buildlock.conf");
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn tmpfiles_lines_make_the_folders_and_the_guard_that_buildlock_uses() {
    let mut lines = tmpfiles_lines();
    let guard = lines.pop().unwrap();
    assert_eq!(guard, ["f", "/tmp/buildlock/guard", "0666", "root", "root", "-"]);
    // Others read there what root has verified.
    let verified = lines.pop().unwrap();
    assert_eq!(verified, ["d", "/tmp/buildlock/verified.0", "0755", "root", "root", "-"]);
    let folders: Vec<PathBuf> = lines.iter().map(|line| PathBuf::from(&line[1])).collect();
    let wanted = ["", "image-locks", "named-locks", "cache-locks", "build-slots"];
    assert_eq!(folders, wanted.map(|name| Path::new("/tmp/buildlock").join(name)));
    for line in &lines {
        assert_eq!(line[0], "d", "{line:?}");
        assert_eq!(line[2..], ["1777", "root", "root", "-"], "{line:?}");
    }

    // It is the binary's default.
    let help = String::from_utf8(print(&["--help"])).unwrap();
    assert!(help.contains("[default: /tmp/buildlock]"), "{help}");

    // The binary makes the same folders.
    let f = Fixture::new();
    f.buildlock(["path", "env:abc"]).run().assert_code(0);
    f.buildlock(["path", "--lock", "name"]).run().assert_code(0);
    for name in ["", "image-locks", "named-locks"] {
        let mode = fs::metadata(f.lock_dir().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o1777, "{name:?}");
    }
    let mode = fs::metadata(f.guard()).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o666);
}

#[test]
fn help_of_make_names_every_target() {
    let help = make(&["--no-print-directory", "help"]);
    for target in [
        "all",
        "install",
        "uninstall",
        "test",
        "lint",
        "bench",
        "demo",
        "completions",
        "man",
        "clean",
        "help",
    ] {
        let lines = help.lines().filter(|line| line.split_whitespace().next() == Some(target));
        assert_eq!(lines.count(), 1, "{target} in\n{help}");
    }
}

/// Returns the files that may have a module's tests: its own, and those in the folder beside it.
fn files_of_tests(module: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for binary in ["", "alone", "cli", "real"] {
        let file = repository().join("tests").join(binary).join(module).with_extension("rs");
        let below = fs::read_dir(file.with_extension("")).into_iter().flatten().flatten();
        files.extend(below.map(|entry| entry.path()));
        files.push(file);
    }
    files
}

#[test]
fn every_test_that_the_documentation_names_exists() {
    let page = |name| fs::read_to_string(repository().join("docs/dev").join(name)).unwrap();
    let text = page("promises.md") + &page("comparison.md");
    let named = regex::Regex::new("`([a-z_]+)::([a-z0-9_]+)`").unwrap();
    let mut found = 0;
    for name in named.captures_iter(&text) {
        let mut files = files_of_tests(&name[1]).into_iter();
        let test = format!("#[test]\nfn {}() {{", &name[2]);
        let has_it = |path| fs::read_to_string(path).is_ok_and(|text| text.contains(&test));
        assert!(files.any(has_it), "{} names no test", &name[0]);
        found += 1;
    }
    assert!(found > 80, "only {found} tests are named");
}
