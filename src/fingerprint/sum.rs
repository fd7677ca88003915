//! A fingerprint in the making: everything that counts is added to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};

use super::bases::{Base, Finder};
use super::context::hash_context;
use super::dockerfile::{self, Reads, Reference};
use super::file;
use super::file_list::FileList;
use super::hash_cache::HashCache;
use super::ignore::IgnoreRules;
use super::moment::Fingerprint;
use super::options::shown;
use super::owners::is_trusted;
use super::stamp::{Time, changed};
use super::value::{Digest, Kind, Value};
use super::way::{Step, Way};
use crate::image::{Images, Platform};
use crate::reference::{Tag, sha256};

/// Something that counts, for `buildlock fingerprint -v`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Detail {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// Of an entry of the context.
    pub(crate) hash: Option<u64>,
}

/// A fingerprint in the making.
#[derive(Default)]
pub(super) struct Sum {
    /// What counts of each kind, in the order of [`Kind::ALL`]: a list of hashes.
    parts: [Vec<u8>; Kind::ALL.len()],
    never_skipped: Option<String>,
    bases: Vec<Base>,
    /// What is in the folders that count.
    files: FileList,
    /// The files that the build command writes.
    written: Vec<PathBuf>,
    /// Everything that counts, if it is wanted. A look at an image does not need it.
    details: Option<Vec<Detail>>,
    newest_change: Option<Time>,
    newest_folder_change: Option<Time>,
    steps: Vec<Step>,
    is_exchangeable: bool,
    is_open: bool,
}

impl Sum {
    /// Begins with nothing. The files that are `written` by the build command itself do not count.
    pub(super) fn new(with_details: bool, written: Vec<PathBuf>) -> Self {
        Sum { details: with_details.then(Vec::new), written, ..Self::default() }
    }

    pub(super) fn add(&mut self, kind: Kind, bytes: &[u8]) {
        self.parts[kind as usize].extend(sha256(bytes));
    }

    pub(super) fn detail(&mut self, kind: Kind, text: impl FnOnce() -> String) {
        if let Some(details) = &mut self.details {
            details.push(Detail { kind, text: text(), hash: None });
        }
    }

    pub(super) fn never(&mut self, why: String) {
        self.never_skipped.get_or_insert(why);
    }

    pub(super) fn changed(&mut self, when: Option<Time>) {
        self.newest_change = self.newest_change.max(when);
    }

    /// Adds the way to a file or folder. It does not count, but must be the same after the build.
    pub(super) fn add_way(&mut self, path: &Path) -> Result<()> {
        // Within its folder, the times of a file and of a link say what becomes of them.
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let in_way = |error| anyhow!("cannot follow the path {}: {error}", path.display());
        let way = Way::to(folder, is_trusted).map_err(in_way)?;
        if let Some((step, who)) = way.exchangeable {
            self.is_exchangeable = true;
            self.never(format!(
                "{who} can put something else in the place of {} during a build",
                step.display()
            ));
        }
        self.is_open |= way.is_open;
        self.steps.extend(way.steps);
        self.changed(way.changed);
        if path.is_symlink() {
            self.changed(rustix::fs::lstat(path).ok().map(|stat| changed(&stat)));
        }
        Ok(())
    }

    /// Adds a file or a whole folder. Its path does not count.
    pub(super) fn add_path(&mut self, kind: Kind, path: &Path, option: &str) -> Result<()> {
        self.add_way(path)?;
        if path.is_dir() {
            return self.add_folder(kind, path, &IgnoreRules::none());
        }
        let Some((hash, changed)) = file::hash(path, option)? else {
            bail!("{option} {} does not exist", path.display());
        };
        // Two options that exchange their files make another image.
        self.add(kind, option.as_bytes());
        self.add(kind, &hash);
        self.changed(Some(changed));
        self.detail(kind, || format!("{option} {}", path.display()));
        Ok(())
    }

    pub(super) fn add_folder(
        &mut self,
        kind: Kind,
        folder: &Path,
        rules: &IgnoreRules,
    ) -> Result<()> {
        let mut cache = HashCache::open(folder);
        let written = below(folder, &self.written);
        let context = hash_context(folder, rules, &written, &mut cache)?;
        cache.save();
        self.add(kind, &context.digest);
        self.changed(context.newest_change);
        self.newest_folder_change = self.newest_folder_change.max(context.newest_folder_change);
        if let Some(details) = &mut self.details {
            details.extend(context.entries.iter().map(|entry| Detail {
                kind,
                text: entry.path.display().to_string(),
                hash: Some(entry.digest),
            }));
        }
        self.files.add(kind, context.entries);
        Ok(())
    }

    /// Adds the builder, and the platforms that it builds for. Returns the engine's own.
    pub(super) fn add_platform(
        &mut self,
        builder: &str,
        images: &Images,
    ) -> Result<Option<Platform>> {
        let own = images.own_platform()?;
        let named: Vec<_> = images.platforms().iter().map(ToString::to_string).collect();
        let platforms = if named.is_empty() { own.clone() } else { named.join(",") };
        let text = format!("{platforms}, built by {builder}");
        self.add(Kind::Platform, text.as_bytes());
        self.detail(Kind::Platform, || text);
        Ok(Platform::parse(&own))
    }

    /// Adds an image that the build reads, for the platform that is `wanted` if the Dockerfile names
    /// none. Returns the instructions that a build upon it executes.
    pub(super) fn add_base(
        &mut self,
        finder: &mut Finder<'_>,
        base: &dockerfile::Base,
        wanted: Option<&Platform>,
        tags: &[Tag],
    ) -> Result<Vec<String>> {
        let is_ours = |name: &str| {
            let tag = name.parse::<Tag>();
            tag.is_ok_and(|tag| tags.iter().any(|ours| ours.is_same_name(&tag)))
        };
        let (name, (found, triggers)) = match &base.reference {
            Reference::Image(name) if is_ours(name) => {
                self.never(format!("it is built upon itself ({name})"));
                (name, (Base::Own, Vec::new()))
            }
            Reference::Image(name) => (name, finder.find(name, base.platform.as_ref().or(wanted))?),
            Reference::Unknown(written) => {
                let why = format!("buildlock cannot tell which image {written} is");
                (written, (Base::Unknown(why), Vec::new()))
            }
        };
        if let Base::Unknown(why) = &found {
            self.never(why.clone());
        }
        self.add(Kind::Bases, &found.digest());
        self.detail(Kind::Bases, || format!("{name}, {found}"));
        self.bases.push(found);
        Ok(triggers)
    }

    /// Returns whether the build reads any image.
    pub(super) fn has_bases(&self) -> bool {
        !self.bases.is_empty()
    }

    pub(super) fn add_moving(&mut self, reads: &Reads) {
        if let Some(moving) = reads.moving.first() {
            self.never(format!("ADD fetches {}, which can change", shown(&moving.source)));
        }
    }

    /// Returns the fingerprint, and the details if they were wanted.
    pub(super) fn finish(self) -> (Fingerprint, Vec<Detail>) {
        let digests: [Digest; Kind::ALL.len()] = self.parts.map(sha256);
        let fingerprint = Fingerprint {
            value: Value::of(digests),
            never_skipped: self.never_skipped,
            bases: self.bases,
            files: Arc::new(self.files),
            newest_change: self.newest_change,
            newest_folder_change: self.newest_folder_change,
            steps: Arc::new(self.steps),
            is_exchangeable: self.is_exchangeable,
            is_open: self.is_open,
        };
        (fingerprint, self.details.unwrap_or_default())
    }
}

/// Returns those of the files that are below a folder, as paths relative to it.
fn below(folder: &Path, files: &[PathBuf]) -> Vec<PathBuf> {
    if files.is_empty() {
        return Vec::new();
    }
    let Ok(folder) = folder.canonicalize() else { return Vec::new() };
    let relative = |file: &PathBuf| {
        let above = match file.parent() {
            Some(above) if above.as_os_str().is_empty() => Path::new("."),
            above => above?,
        };
        let inside = above.canonicalize().ok()?.strip_prefix(&folder).ok()?.to_owned();
        Some(inside.join(file.file_name()?))
    };
    files.iter().filter_map(relative).collect()
}

#[cfg(test)]
mod tests {
    use super::super::moment::Change;
    use super::*;

    #[test]
    fn options_that_exchange_their_files_make_another_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let (one, two) = (file("one"), file("two"));
        let value = |files: [(&str, &Path); 2]| {
            let mut sum = Sum::new(false, Vec::new());
            for (option, path) in files {
                sum.add_path(Kind::Options, path, option).unwrap();
            }
            sum.finish().0.value().to_owned()
        };
        let before = value([("--a", &one), ("--b", &two)]);
        assert_eq!(before, value([("--a", &one), ("--b", &two)]));
        assert_ne!(before, value([("--b", &one), ("--a", &two)]));
        assert_ne!(before, value([("--a", &two), ("--b", &one)]));
    }

    fn fingerprint_of(file: &Path) -> Fingerprint {
        let mut sum = Sum::new(false, Vec::new());
        sum.add_path(Kind::Paths, file, "--inputs").unwrap();
        sum.finish().0
    }

    #[test]
    fn link_above_an_input_that_leads_elsewhere_and_back_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("good")).unwrap();
        std::fs::write(at("good/file"), "").unwrap();
        let point = |target: &str| {
            std::os::unix::fs::symlink(target, at("new")).unwrap();
            std::fs::rename(at("new"), at("current")).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        point("good");
        let before = fingerprint_of(&at("current/file"));
        assert_eq!(before.change(&fingerprint_of(&at("current/file"))), None);
        point("evil");
        point("good");
        let after = fingerprint_of(&at("current/file"));
        assert_eq!(before.value(), after.value());
        assert_eq!(before.change(&after), Some(Change::Contents));
        assert!(!after.is_exchangeable() && after.never_skipped().is_none());
    }

    #[test]
    fn input_in_a_folder_of_another_user_is_never_skipped() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("theirs/context")).unwrap();
        std::fs::write(at("theirs/context/file"), "").unwrap();
        std::os::unix::fs::chown(at("theirs"), Some(12345), None).unwrap();
        let fingerprint = fingerprint_of(&at("theirs/context/file"));
        assert!(fingerprint.is_exchangeable());
        let why = fingerprint.never_skipped().unwrap();
        assert!(why.starts_with("12345 can put something else in the place of "), "{why}");
        assert!(why.contains("/theirs/context during a build"), "{why}");
    }
}
