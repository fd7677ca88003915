//! What a build command reads, and the fingerprint of it all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::time::{ClockId, clock_gettime};

use super::bases::Finder;
use super::builder::Builder;
use super::contexts::ContextSource;
use super::dockerfile::{Build, NotRead, Reader, Role};
use super::entries::to_bytes;
use super::ignore::IgnoreRules;
use super::moment::Fingerprint;
use super::options::{Context, Options, Variables, shown};
use super::source;
use super::stamp::Time;
use super::sum::{Detail, Sum};
use super::syntax::Syntax;
use super::value::Kind;
use crate::command::{Client, Command, Engine};
use crate::image::{Check, Images, Platform};
use crate::reference::Tag;

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
            (Some(_), Some(client)) => {
                refuse_several_platforms_of_podman(command, client, images)?;
                Some(Known::of(command, client)?)
            }
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
        let (fingerprint, _) = self.compute(images, Sum::new(false))?;
        // What was changed in this very tick of the clock can change again without a trace.
        if fingerprint.newest().is_none_or(|newest| newest < started) {
            return Ok(fingerprint);
        }
        std::thread::sleep(TICK);
        Ok(self.compute(images, Sum::new(false))?.0)
    }

    /// Computes the fingerprint of the inputs as they are now, and returns what went into it.
    ///
    /// # Errors
    /// As for [`Inputs::fingerprint`].
    pub(crate) fn explain(&self, images: &Images) -> Result<(Fingerprint, Vec<Detail>)> {
        self.compute(images, Sum::new(true))
    }

    fn compute(&self, images: &Images, mut sum: Sum) -> Result<(Fingerprint, Vec<Detail>)> {
        match &self.known {
            Some(known) => known.add_to(&mut sum, images, &self.tags)?,
            None => {
                let mut words = vec![self.command.program()];
                words.extend(self.command.arguments().iter().map(|it| it.as_os_str()));
                for word in words {
                    sum.add(Kind::Options, word.as_encoded_bytes());
                }
                sum.detail(Kind::Options, || self.command.to_string());
                sum.add_platform(None, images)?;
            }
        }
        for path in &self.paths {
            sum.add_path(Kind::Paths, path, "--inputs")?;
        }
        if self.command.pushes() && *images.check() == Check::Local {
            sum.never(
                "the build command pushes, and a push that failed leaves an image on the engine \
                 (--check registry looks in the registry)"
                    .to_owned(),
            );
        }
        Ok(sum.finish())
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
        refuse_paths_of_another_folder(client, &context, &options)?;
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
        for given in self.given_dockerfiles() {
            let (_, contents) = source::dockerfile(self.builder, &self.context, given)?;
            self.refuse_foreign_syntax(&contents.bytes)?;
        }
        Ok(())
    }

    /// Returns the values of `-f`, or none for the Dockerfile in the context.
    fn given_dockerfiles(&self) -> Vec<Option<&Path>> {
        match self.options.dockerfiles.as_slice() {
            [] => vec![None],
            files => files.iter().map(|file| Some(&**file)).collect(),
        }
    }

    fn refuse_foreign_syntax(&self, dockerfile: &[u8]) -> Result<()> {
        let named = self.options.syntax().and_then(Syntax::of);
        match named.or_else(|| Syntax::of_dockerfile(dockerfile)) {
            Some(syntax) if syntax.is_foreign && self.builder != Builder::Legacy => bail!(
                "--if-changed: the Dockerfile is read by {} (# syntax=), and buildlock does not know \
                 what that reads",
                syntax.image
            ),
            _ => Ok(()),
        }
    }

    fn add_to(&self, sum: &mut Sum, images: &Images, tags: &[Tag]) -> Result<()> {
        let Options { never_skip, entries, files, .. } = &self.options;
        never_skip.iter().for_each(|why| sum.never(why.clone()));
        sum.add(Kind::Options, &to_bytes(entries));
        entries.iter().for_each(|it| sum.detail(Kind::Options, || it.to_string()));
        for (option, path) in files {
            sum.add_path(Kind::Options, path, option)?;
        }
        let native = sum.add_platform(Some(self.builder), images)?;
        if let Context::Remote(url, _) = &self.options.context {
            sum.never(format!("the Dockerfile is in the context {}", shown(url)));
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
        let mut rules: Option<IgnoreRules> = None;
        for given in self.given_dockerfiles() {
            let (path, contents) = source::dockerfile(self.builder, &self.context, given)?;
            self.refuse_foreign_syntax(&contents.bytes)?;
            sum.add(Kind::Dockerfile, &contents.bytes);
            sum.detail(Kind::Dockerfile, || path.display().to_string());
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
                let not_read = |it: NotRead| anyhow!("{}:{}: {}", path.display(), it.line, it.why);
                let reader = Reader::read(dockerfile, &build).map_err(not_read)?;
                for base in &reader.reads().bases {
                    let triggers = sum.add_base(&mut finder, base, target, tags)?;
                    if base.role != Role::From || triggers.is_empty() {
                        continue;
                    }
                    let more = reader.triggers(base, &triggers).map_err(not_read)?;
                    for base in &more.bases {
                        sum.add_base(&mut finder, base, target, tags)?;
                    }
                    sum.add_moving(&more);
                }
                sum.add_moving(reader.reads());
            }
        }
        Ok(())
    }
}

/// Refuses relative paths if the build command may look them up in another folder than ours.
fn refuse_paths_of_another_folder(
    client: &Client,
    context: &Path,
    options: &Options,
) -> Result<()> {
    let mut paths = std::iter::once(context).chain(options.paths());
    match paths.find(|path| client.may_run_elsewhere && path.is_relative()) {
        None => Ok(()),
        Some(path) => bail!(
            "--if-changed: the build command may run in another folder, where {} is something else; \
             give its full path",
            path.display()
        ),
    }
}

/// Refuses what cannot be compared: podman's tag names only one of several images, and a manifest
/// list has no label.
fn refuse_several_platforms_of_podman(
    command: &Command,
    client: &Client,
    images: &Images,
) -> Result<()> {
    let is_list = command.build().is_some_and(|build| build.manifest.is_some());
    if client.engine == Engine::Podman && (is_list || images.platforms().len() > 1) {
        bail!(
            "--if-changed: podman's images for several platforms cannot be compared; call \
               buildlock once for each platform, with a tag for each"
        );
    }
    Ok(())
}

/// Returns the time by the clock that gives files theirs.
fn now() -> Time {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or_default())
}
