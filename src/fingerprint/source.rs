//! Where a build command finds its Dockerfile, its ignore files and its context.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::builder::Builder;
use super::file::{self, Found};
use super::ignore::{Dialect, IgnoreRules};
use super::stamp::Time;

/// Finds and reads the Dockerfile: the file of `-f`, or else the one in the context.
///
/// # Errors
/// There is none, or it cannot be read.
pub(super) fn dockerfile(
    builder: Builder,
    context: &Path,
    given: Option<&Path>,
) -> Result<(PathBuf, Found)> {
    const WHAT: &str = "the Dockerfile";
    let in_context = |names: &[&str]| names.iter().map(|name| context.join(name)).collect();
    let places: Vec<PathBuf> = match (given, builder) {
        (None, Builder::Buildah) => in_context(&["Containerfile", "Dockerfile"]),
        // Both of docker's builders know the second name as well.
        (None, _) => in_context(&["Dockerfile", "dockerfile"]),
        // buildx and buildah look in the context if there is no such file here.
        (Some(path), _) => vec![path.to_owned(), context.join(path)],
    };
    for place in &places {
        if let Some(found) = file::read(place, WHAT)? {
            return Ok((place.clone(), found));
        }
    }
    bail!("{WHAT} {} does not exist", places[0].display())
}

/// The ignore files that may be in force.
pub(super) struct Ignored {
    pub(super) rules: IgnoreRules,
    /// Those that were read.
    pub(super) found: Vec<PathBuf>,
    /// When one of them was last changed.
    pub(super) changed: Option<Time>,
    /// One of them that is a link out of its folder. It is not read.
    pub(super) leads_elsewhere: Option<PathBuf>,
}

/// Reads the ignore files. Where it is not certain which one is in force, only what all of them
/// leave out is left out.
///
/// # Errors
/// One of them cannot be read, or the builder would refuse it.
pub(super) fn ignored(
    builder: Builder,
    context: &Path,
    dockerfile: &Path,
    given: Option<&Path>,
) -> Result<Ignored> {
    let beside = |extension: &str| {
        let mut path = OsString::from(dockerfile);
        path.push(extension);
        PathBuf::from(path)
    };
    let in_context = context.join(".dockerignore");
    // The first file of each row that exists is in force for one of the builders in question.
    let rows: Vec<(Vec<PathBuf>, &[Dialect])> = match (builder, given) {
        (Builder::BuildKit, _) => {
            vec![(
                vec![beside(".dockerignore"), in_context],
                &[Dialect::BuildKit, Dialect::OldBuildKit],
            )]
        }
        (Builder::Legacy, _) => vec![(vec![in_context], &[Dialect::Legacy, Dialect::OldLegacy])],
        (Builder::OneOfDockers, _) => vec![
            (
                vec![beside(".dockerignore"), in_context.clone()],
                &[Dialect::BuildKit, Dialect::OldBuildKit],
            ),
            (vec![in_context], &[Dialect::Legacy, Dialect::OldLegacy]),
        ],
        (Builder::Buildah, Some(given)) => vec![(vec![given.to_owned()], &Dialect::ALL)],
        // Versions differ about the order.
        (Builder::Buildah, None) => {
            let names = [
                beside(".containerignore"),
                beside(".dockerignore"),
                context.join(".containerignore"),
                in_context,
            ];
            let there = names.into_iter().filter(|name| name.exists());
            there.map(|name| (vec![name], &Dialect::ALL[..])).collect()
        }
    };
    let mut all: Option<IgnoreRules> = None;
    let (mut found, mut changed, mut leads_elsewhere) = (Vec::new(), None, None);
    for (places, dialects) in rows {
        let mut rules = IgnoreRules::none();
        for place in places {
            let contents = match file::read(&place, "the ignore file")? {
                None => continue,
                Some(Found::File(contents)) => contents,
                Some(Found::LeadsElsewhere) => {
                    leads_elsewhere = Some(place);
                    break;
                }
            };
            changed = changed.max(Some(contents.changed));
            found.push(place.clone());
            rules = match IgnoreRules::read(&contents.bytes, dialects) {
                Ok(rules) => rules,
                Err(error) => bail!("{}: {error}", place.display()),
            };
            break;
        }
        all = Some(match all {
            None => rules,
            Some(all) => all.or(rules),
        });
    }
    Ok(Ignored { rules: all.unwrap_or_else(IgnoreRules::none), found, changed, leads_elsewhere })
}
