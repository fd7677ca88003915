//! What a build command reads, and the fingerprint of it all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::time::{ClockId, clock_gettime};

use super::bases::{Base, Finder};
use super::builder::Builder;
use super::context::hash_context;
use super::contexts::ContextSource;
use super::dockerfile::{Build, Reader, Reads, Reference, Role};
use super::entries::{Entry, to_bytes};
use super::file;
use super::hash_cache::HashCache;
use super::ignore::IgnoreRules;
use super::options::{Context, Options, Variables};
use super::source;
use super::stamp::Time;
use super::syntax::Syntax;
use super::value::{Digest, Kind, Value};
use crate::command::{Client, Command};
use crate::image::{Check, Images, LABEL, Platform};
use crate::reference::{Tag, sha256};

/// What a build command reads.
#[derive(Debug)]
pub(crate) struct Inputs {
    command: Arc<Command>,
    /// None if it is not known what the command reads.
    known: Option<Known>,
    /// The files and folders that `--inputs` names.
    paths: Vec<PathBuf>,
    tags: Vec<Tag>,
}

/// What a known build command reads.
#[derive(Debug)]
struct Known {
    builder: Builder,
    options: Options,
    context: PathBuf,
}

/// The fingerprint of a build's inputs at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Fingerprint {
    value: Value,
    never_skipped: Option<String>,
    bases: Vec<Base>,
    /// A hash for each file or folder that counts, for people.
    details: Vec<Detail>,
    newest_change: Option<Time>,
    newest_folder_change: Option<Time>,
}

/// Something that counts, as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Detail {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// Of an entry of the context.
    pub(crate) hash: Option<u64>,
}

/// How inputs have changed since the start of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Something that counts was changed, perhaps there and back again.
    Contents,
    /// Something was created in a folder or removed from it that does not count now.
    Folders,
}

impl Inputs {
    /// Finds out what `command` reads, beside the `paths` of `--inputs`.
    ///
    /// # Errors
    /// That cannot be known.
    pub(crate) fn of(
        command: &Arc<Command>,
        paths: Vec<PathBuf>,
        tags: &[Tag],
        images: &Images,
    ) -> Result<Self> {
        if let Check::Command(_) = images.check() {
            bail!(
                "--if-changed needs images that have a label, so --check must be local or registry"
            );
        }
        let known = match (command.build(), command.client()) {
            (Some(_), Some(client)) => Some(Known::of(command, client)?),
            _ if paths.is_empty() => bail!(
                "--if-changed: buildlock cannot tell what this build command reads; name it with \
                 --inputs PATH, and have the command set the label: docker build --label \
                 \"$BUILDLOCK_LABEL\" ..."
            ),
            _ => None,
        };
        let inputs = Inputs { command: Arc::clone(command), known, paths, tags: tags.to_vec() };
        inputs.check_paths()?;
        Ok(inputs)
    }

    fn check_paths(&self) -> Result<()> {
        for path in &self.paths {
            std::fs::metadata(path).with_context(|| format!("--inputs {}", path.display()))?;
        }
        Ok(())
    }

    /// Computes the fingerprint of the inputs as they are now.
    ///
    /// # Errors
    /// An input cannot be read, or the engine gave no certain answer.
    pub(crate) fn fingerprint(&self, images: &Images) -> Result<Fingerprint> {
        /// More than the kernel's clock for files lags behind, in all its configurations.
        const TICK: Duration = Duration::from_millis(12);
        let started = now();
        let fingerprint = self.compute(images)?;
        // What was changed in this very tick of the clock can change again without a trace.
        if fingerprint.newest().is_none_or(|newest| newest < started) {
            return Ok(fingerprint);
        }
        std::thread::sleep(TICK);
        self.compute(images)
    }

    fn compute(&self, images: &Images) -> Result<Fingerprint> {
        let mut sum = Sum::default();
        match &self.known {
            Some(known) => known.add_to(&mut sum, images, &self.tags)?,
            None => {
                let mut words = vec![self.command.program()];
                words.extend(self.command.arguments().iter().map(|it| it.as_os_str()));
                for word in words {
                    sum.add(Kind::Options, word.as_encoded_bytes());
                }
                sum.detail(Kind::Options, self.command.to_string());
                sum.add_platform(None, images)?;
            }
        }
        for path in &self.paths {
            sum.add_path(Kind::Paths, path, "--inputs")?;
        }
        if self.command.pushes() && *images.check() == Check::Local {
            sum.never(
                "the build command pushes, and a push that failed leaves an image here; --check \
                 registry looks there"
                    .to_owned(),
            );
        }
        Ok(sum.fingerprint())
    }
}

impl Known {
    fn of(command: &Command, client: &Client) -> Result<Self> {
        let build = command.build().context("not a build command")?;
        if build.reads_stdin {
            bail!(
                "--if-changed: the context or the Dockerfile comes from stdin, and cannot be known"
            );
        }
        let variables = Variables {
            get: &|name| client.variable_as_set(name),
            are_known: !client.wrapper_changes_user_or_env,
        };
        let options = Options::read(build, client.engine, &variables)
            .map_err(|error| anyhow!("--if-changed: {error:#}"))?;
        let context = match &options.context {
            Context::Folder(folder) => folder.clone(),
            Context::Remote(..) => PathBuf::new(),
            Context::Stdin => {
                bail!("--if-changed: the context comes from stdin, and cannot be known")
            }
        };
        let is_relative = |path: &Path| path.is_relative();
        if client.may_run_elsewhere && is_relative(&context) {
            bail!(
                "--if-changed: the build command may run in another folder, where {} is something \
                 else; name the context with its full path",
                context.display()
            );
        }
        let known = Known { builder: Builder::of(command, client), options, context };
        known.check()?;
        Ok(known)
    }

    /// Refuses early what cannot be known. Everything is read again for each fingerprint.
    fn check(&self) -> Result<()> {
        if let Context::Remote(..) = self.options.context {
            return Ok(());
        }
        if !self.context.is_dir() {
            bail!("--if-changed: the context {} is not a folder", self.context.display());
        }
        let given = self.options.dockerfiles.first().map(PathBuf::as_path);
        let (_, contents) = source::dockerfile(self.builder, &self.context, given)?;
        let named = self.options.syntax().and_then(Syntax::of);
        match named.or_else(|| Syntax::of_dockerfile(&contents.bytes)) {
            Some(syntax) if syntax.is_foreign && self.builder != Builder::Legacy => bail!(
                "--if-changed: the Dockerfile is read by {} (# syntax=), and buildlock does not know \
                 what that reads",
                syntax.image
            ),
            _ => Ok(()),
        }
    }

    fn add_to(&self, sum: &mut Sum, images: &Images, tags: &[Tag]) -> Result<()> {
        self.check()?;
        let Options { never_skip, entries, files, .. } = &self.options;
        never_skip.iter().for_each(|why| sum.never(why.clone()));
        sum.add(Kind::Options, &to_bytes(entries));
        entries.iter().map(Entry::to_string).for_each(|it| sum.detail(Kind::Options, it));
        for (option, path) in files {
            sum.add_path(Kind::Options, path, option)?;
        }
        let native = sum.add_platform(Some(self.builder), images)?;
        if let Context::Remote(url, _) = &self.options.context {
            sum.never(format!("the Dockerfile is in the context {url}"));
            return Ok(());
        }
        self.add_sources(sum, images, tags, native.as_ref())
    }

    fn add_sources(
        &self,
        sum: &mut Sum,
        images: &Images,
        tags: &[Tag],
        native: Option<&Platform>,
    ) -> Result<()> {
        let mut given: Vec<_> = self.options.dockerfiles.iter().map(|it| Some(&**it)).collect();
        if given.is_empty() {
            given.push(None);
        }
        let mut rules: Option<IgnoreRules> = None;
        for given in given {
            let (path, contents) = source::dockerfile(self.builder, &self.context, given)?;
            sum.add(Kind::Dockerfile, &contents.bytes);
            sum.detail(Kind::Dockerfile, path.display().to_string());
            sum.changed(Some(contents.changed));
            let ignore_file = self.options.ignore_file.as_deref();
            let ignored = source::ignored(self.builder, &self.context, &path, ignore_file)?;
            sum.changed(ignored.changed);
            rules = Some(match rules {
                None => ignored.rules,
                Some(rules) => rules.or(ignored.rules),
            });
            self.add_bases(sum, images, tags, native, &path, &contents.bytes)?;
        }
        sum.add_folder(Kind::Context, &self.context, &rules.unwrap_or_else(IgnoreRules::none))?;
        for context in &self.options.contexts {
            let ContextSource::Path(path) = &context.source else { continue };
            sum.add(Kind::Context, context.name.as_bytes());
            // BuildKit reads a .dockerignore there. Without it, more counts.
            sum.add_path(Kind::Context, path, "--build-context")?;
        }
        Ok(())
    }

    fn add_bases(
        &self,
        sum: &mut Sum,
        images: &Images,
        tags: &[Tag],
        native: Option<&Platform>,
        path: &Path,
        dockerfile: &[u8],
    ) -> Result<()> {
        let mut finder = Finder::new(images);
        let wanted = images.platforms();
        let targets: Vec<Option<&Platform>> = match wanted {
            [] => vec![None],
            several => several.iter().map(Some).collect(),
        };
        let builder_platform = native.or(wanted.first());
        for target in targets {
            for &dialect in self.builder.dialects() {
                let build = Build {
                    dialect,
                    build_args: &self.options.build_args,
                    contexts: &self.options.contexts,
                    from: self.options.from.as_deref(),
                    target: target.or(builder_platform),
                    native: builder_platform,
                };
                let not_read = |it: super::dockerfile::NotRead| {
                    anyhow!("{}:{}: {}", path.display(), it.line, it.why)
                };
                let reader = Reader::read(dockerfile, &build).map_err(not_read)?;
                for base in &reader.reads().bases {
                    let triggers = sum.add_base(&mut finder, base, target, tags);
                    if base.role != Role::From || triggers.is_empty() {
                        continue;
                    }
                    let more = reader.triggers(base, &triggers).map_err(not_read)?;
                    more.bases
                        .iter()
                        .for_each(|it| _ = sum.add_base(&mut finder, it, target, tags));
                    sum.add_moving(&more);
                }
                sum.add_moving(reader.reads());
            }
        }
        Ok(())
    }
}

/// A fingerprint in the making.
#[derive(Default)]
struct Sum {
    /// What counts of each kind, in the order of [`Kind::ALL`]: a list of hashes.
    parts: [Vec<u8>; Kind::ALL.len()],
    never_skipped: Option<String>,
    bases: Vec<Base>,
    details: Vec<Detail>,
    newest_change: Option<Time>,
    newest_folder_change: Option<Time>,
}

impl Sum {
    fn add(&mut self, kind: Kind, bytes: &[u8]) {
        self.parts[kind as usize].extend(sha256(bytes));
    }

    fn detail(&mut self, kind: Kind, text: String) {
        self.details.push(Detail { kind, text, hash: None });
    }

    fn never(&mut self, why: String) {
        self.never_skipped.get_or_insert(why);
    }

    fn changed(&mut self, when: Option<Time>) {
        self.newest_change = self.newest_change.max(when);
    }

    /// Adds a file or a whole folder. Its path does not count.
    fn add_path(&mut self, kind: Kind, path: &Path, option: &str) -> Result<()> {
        if path.is_dir() {
            return self.add_folder(kind, path, &IgnoreRules::none());
        }
        let Some((hash, changed)) = file::hash(path, option)? else {
            bail!("{option} {} does not exist", path.display());
        };
        self.add(kind, &hash);
        self.changed(Some(changed));
        self.detail(kind, format!("{option} {}", path.display()));
        Ok(())
    }

    fn add_folder(&mut self, kind: Kind, folder: &Path, rules: &IgnoreRules) -> Result<()> {
        let mut cache = HashCache::open(folder);
        let context = hash_context(folder, rules, &mut cache)?;
        cache.save();
        self.add(kind, &context.digest);
        self.changed(context.newest_change);
        self.newest_folder_change =
            self.newest_folder_change.max(Some(context.newest_folder_change));
        self.details.extend(context.entries.into_iter().map(|entry| Detail {
            kind,
            text: entry.path.display().to_string(),
            hash: Some(entry.digest),
        }));
        Ok(())
    }

    /// Adds the builder's kind, and the platforms that it builds for. Returns the engine's own.
    fn add_platform(
        &mut self,
        builder: Option<Builder>,
        images: &Images,
    ) -> Result<Option<Platform>> {
        let builder = builder.map_or("unknown", Builder::name);
        let own = images.own_platform()?;
        let named: Vec<_> = images.platforms().iter().map(ToString::to_string).collect();
        let platforms = if named.is_empty() { own.clone() } else { named.join(",") };
        let text = format!("{platforms}, built by {builder}");
        self.add(Kind::Platform, text.as_bytes());
        self.detail(Kind::Platform, text);
        Ok(Platform::parse(&own))
    }

    /// Adds an image that the build reads. Returns the instructions that a build upon it executes.
    fn add_base(
        &mut self,
        finder: &mut Finder<'_>,
        base: &super::dockerfile::Base,
        target: Option<&Platform>,
        tags: &[Tag],
    ) -> Vec<String> {
        let (name, (found, triggers)) = match &base.reference {
            Reference::Image(name) => (name, finder.find(name, base.platform.as_ref().or(target))),
            Reference::Unknown(written) => {
                let why = format!("buildlock cannot tell which image {written} is");
                (written, (Base::Unknown(why), Vec::new()))
            }
        };
        let is_ours = |tag: &Tag| tags.iter().any(|ours| ours.is_same_name(tag));
        if name.parse::<Tag>().is_ok_and(|tag| is_ours(&tag)) {
            self.never(format!("it is built upon itself ({name})"));
        }
        if let Base::Unknown(why) = &found {
            self.never(why.clone());
        }
        self.add(Kind::Bases, &found.digest());
        self.detail(Kind::Bases, format!("{name}, {found}"));
        self.bases.push(found);
        triggers
    }

    fn add_moving(&mut self, reads: &Reads) {
        if let Some(moving) = reads.moving.first() {
            self.never(format!("ADD fetches {}, which can change", moving.source));
        }
    }

    fn fingerprint(self) -> Fingerprint {
        let digests: [Digest; Kind::ALL.len()] = self.parts.map(sha256);
        Fingerprint {
            value: Value::of(digests),
            never_skipped: self.never_skipped,
            bases: self.bases,
            details: self.details,
            newest_change: self.newest_change,
            newest_folder_change: self.newest_folder_change,
        }
    }
}

impl Fingerprint {
    /// Returns the label's value.
    pub(crate) fn value(&self) -> &str {
        self.value.as_str()
    }

    /// Returns the label: `NAME=VALUE`.
    pub(crate) fn label(&self) -> String {
        format!("{LABEL}={}", self.value())
    }

    /// Returns why such a build is never skipped, if it is not.
    pub(crate) fn never_skipped(&self) -> Option<&str> {
        self.never_skipped.as_deref()
    }

    /// Says in what the inputs differ from those of an image with this label.
    pub(crate) fn difference(&self, label: Option<&str>) -> String {
        self.value.difference(label)
    }

    /// Says the same, with one line for each kind of input.
    pub(crate) fn differences(&self, label: Option<&str>) -> Vec<String> {
        self.value.differences(label)
    }

    /// Returns how the inputs have changed between this moment and a later one.
    pub(crate) fn change(&self, later: &Fingerprint) -> Option<Change> {
        let is_same = |kind: Kind| self.value.part(kind) == later.value.part(kind);
        let are_same_bases = self.bases.len() == later.bases.len()
            && later.bases.iter().zip(&self.bases).all(|(now, before)| now.still_is(before));
        let others = Kind::ALL.into_iter().filter(|&kind| kind != Kind::Bases);
        if !others.into_iter().all(is_same)
            || !are_same_bases
            || self.newest_change != later.newest_change
        {
            return Some(Change::Contents);
        }
        (self.newest_folder_change != later.newest_folder_change).then_some(Change::Folders)
    }

    /// Says what has changed between this moment and a later one.
    pub(crate) fn what_changed(&self, later: &Fingerprint) -> String {
        match self.change(later) {
            Some(Change::Contents) if self.value == later.value => {
                "a file was changed and changed back".to_owned()
            }
            Some(Change::Folders) => "files came and went in a folder".to_owned(),
            _ => later.difference(Some(self.value())),
        }
    }

    /// Returns all that counts.
    pub(crate) fn details(&self) -> &[Detail] {
        &self.details
    }

    fn newest(&self) -> Option<Time> {
        self.newest_change.max(self.newest_folder_change)
    }
}

/// Returns the time by the clock that gives files theirs.
fn now() -> Time {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or_default())
}
