//! Finds the files that lint looks at: those that were named, and those in and below folders.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, bail};
use ignore::WalkBuilder;

use crate::log;

/// A file to look at.
#[derive(Debug)]
pub(super) struct Candidate {
    /// `-` is stdin.
    pub(super) path: PathBuf,
    /// Whether the user named this file. Then it is an error if it is something else.
    pub(super) is_named: bool,
}

/// Returns the files to look at, and whether everything that was named could be read.
pub(super) fn files(paths: &[PathBuf]) -> Result<(Vec<Candidate>, bool)> {
    let current = [PathBuf::from(".")];
    let (mut files, mut all_read) = (Vec::new(), true);
    for path in if paths.is_empty() { &current[..] } else { paths } {
        if path.as_os_str() == "-" || !path.is_dir() {
            files.push(Candidate { path: path.clone(), is_named: true });
        } else {
            all_read &= walk(path, &mut files);
        }
    }
    if files.is_empty() && all_read {
        bail!(
            "there is no Dockerfile, Containerfile, compose file or bake file here or below; name the file \
             (lint skips hidden folders and whatever .gitignore excludes)"
        );
    }
    Ok((files, all_read))
}

/// Adds the files in and below a folder. Like ripgrep, this skips hidden folders, links to folders,
/// and whatever `.gitignore` and `.ignore` exclude. Returns false if a part cannot be read.
fn walk(folder: &Path, files: &mut Vec<Candidate>) -> bool {
    let mut all_read = true;
    let mut found = Vec::new();
    for entry in WalkBuilder::new(folder).build() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let failed = format!("cannot read the folder {}", folder.display());
                log::error(&Error::new(error).context(failed));
                all_read = false;
                continue;
            }
        };
        let name = entry.file_name();
        let is_candidate = is_dockerfile(name) || is_compose_file(name) || is_bake_file(name);
        if !is_candidate || entry.file_type().is_none_or(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.into_path();
        // Reading a FIFO would block. A file that cannot be examined stays: reading it says why.
        let is_other = fs::metadata(&path).is_ok_and(|it| !it.is_file());
        if !is_other && !is_override(&path) {
            // As a user would type it.
            found.push(path.strip_prefix("./").map(Path::to_owned).unwrap_or(path));
        }
    }
    found.sort();
    files.extend(found.into_iter().map(|path| Candidate { path, is_named: false }));
    all_read
}

/// Returns whether a file is a Dockerfile by its name, which can have more before or after it.
pub(super) fn is_dockerfile(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    // Without a Dockerfile, docker build takes a dockerfile.
    if ["Dockerfile", "dockerfile", "Containerfile"].contains(&&*name) {
        return true;
    }
    let ends = [".Dockerfile", ".dockerfile", ".Containerfile", ".containerfile"];
    if ends.iter().any(|end| name.ends_with(end)) {
        return true;
    }
    let begins = |start: &str| name.strip_prefix(start)?.strip_prefix(['.', '-', '_']);
    let Some(rest) = begins("Dockerfile").or_else(|| begins("Containerfile")) else {
        return false;
    };
    let extension = rest.rsplit('.').next().unwrap_or_default();
    // Dockerfile.py can be the Dockerfile of something in Python; Dockerfile_test.py cannot.
    let is_source = !name.contains("file.") && rest.contains('.') && SOURCES.contains(&extension);
    !is_source && !NO_DOCKERFILES.contains(&extension) && !name.ends_with('~')
}

/// Extensions of files that have a Dockerfile's name but another purpose: ignore files,
/// documentation, and what editors and merges leave behind.
const NO_DOCKERFILES: [&str; 8] =
    ["dockerignore", "containerignore", "md", "orig", "rej", "bak", "swp", "tmp"];

/// Extensions of programs and data about Dockerfiles.
const SOURCES: [&str; 15] = [
    "bats", "c", "go", "java", "js", "json", "kt", "php", "pl", "py", "rb", "rs", "sh", "ts",
    "yaml",
];

/// Where no file is named, compose reads the first of these that exists (compose-go's
/// `DefaultFileNames`).
const COMPOSE_FILES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// Together with one of those, compose reads the first of these that exists (compose-go's
/// `DefaultOverrideFileNames`).
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// Returns whether a file is a compose file by its name, which can have more words in it
/// (compose.prod.yaml).
pub(super) fn is_compose_file(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let stem = name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml"));
    let more =
        stem.and_then(|stem| stem.strip_prefix("docker-").unwrap_or(stem).strip_prefix("compose"));
    more.is_some_and(|more| more.is_empty() || more.starts_with(['.', '-', '_']))
}

/// Bake files, each with the one beside it that bake merges into it.
const BAKE_FILES: [(&str, &str); 2] = [
    ("docker-bake.json", "docker-bake.override.json"),
    ("docker-bake.hcl", "docker-bake.override.hcl"),
];

/// Returns whether a file is a bake file by its name.
pub(super) fn is_bake_file(name: &OsStr) -> bool {
    BAKE_FILES.iter().any(|(usual, _)| name == *usual)
}

/// Returns the file that bake reads together with this one.
pub(super) fn bake_override_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let (_, other) = BAKE_FILES.iter().find(|(usual, _)| name == *usual)?;
    Some(path.with_file_name(other)).filter(|file| file.is_file())
}

/// Returns the file that compose reads together with this one.
pub(super) fn override_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let is_usual = COMPOSE_FILES.iter().any(|usual| name == *usual);
    OVERRIDES.iter().map(|name| path.with_file_name(name)).find(|path| is_usual && path.is_file())
}

/// Returns whether it overrides a file beside it. Then lint reads it together with that one.
fn is_override(path: &Path) -> bool {
    let has_name = path.file_name().is_some_and(|name| OVERRIDES.iter().any(|it| name == *it));
    has_name && COMPOSE_FILES.iter().any(|usual| path.with_file_name(usual).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_dockerfiles_are_known() {
        for name in [
            "Dockerfile",
            "dockerfile",
            "Containerfile",
            "Dockerfile.dev",
            "Dockerfile.py",
            "Dockerfile-1.2",
            "Dockerfile_x",
            "Containerfile.x",
            "a.Dockerfile",
            "a.dockerfile",
            "a.Containerfile",
        ] {
            assert!(is_dockerfile(OsStr::new(name)), "{name}");
        }
        for name in [
            "Dockerfile.dockerignore",
            "Dockerfile.md",
            "Dockerfile_test.go",
            "Dockerfile-x.sh",
            "Dockerfiles",
            "mydockerfile",
            "Dockerfile.orig",
            "Dockerfile~",
            "dockerfile.go",
            "Dockerfile.dev~",
        ] {
            assert!(!is_dockerfile(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn names_of_compose_files_are_known() {
        for name in [
            "compose.yaml",
            "compose.yml",
            "docker-compose.yml",
            "compose.prod.yaml",
            "docker-compose-dev.yml",
            "docker-compose.override.yaml",
            "compose_test.yml",
        ] {
            assert!(is_compose_file(OsStr::new(name)), "{name}");
        }
        for name in ["composer.yaml", "compose", "my-compose.yaml", "compose.yaml.j2"] {
            assert!(!is_compose_file(OsStr::new(name)), "{name}");
        }
    }
}
