//! What a known build command reads, as far as its words tell.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use super::bases::Finder;
use super::builder::{Builder, client_sizes};
use super::contexts::ContextSource;
use super::dockerfile::{self, Build, NotRead, Reader, Role};
use super::entries::to_bytes;
use super::file::Found;
use super::ignore::IgnoreRules;
use super::options::{Context, Options, Variables, shown};
use super::source;
use super::sum::Sum;
use super::syntax::Syntax;
use super::value::Kind;
use crate::command::{BuildOptions, Client, Command, Engine};
use crate::dockerfile::Dialect;
use crate::image::{Images, OwnBuilder, Platform, is_buildah};
use crate::reference::Tag;

/// What a known build command reads.
#[derive(Debug)]
pub(super) struct Known {
    builder: Builder,
    client: Client,
    options: Options,
    context: PathBuf,
    /// Whether the builder may ask the registry for a newer image than the one it has: buildah 1.28
    /// does by default.
    pulls_newer: bool,
}

impl Known {
    /// Reads the words of a build command.
    ///
    /// # Errors
    /// What it reads cannot be known.
    pub(super) fn of(command: &Command, client: &Client, images: &Images) -> Result<Self> {
        let build = command.build().context("not a build command")?;
        let engine = engine_of(client, images);
        if engine == Engine::Podman {
            refuse_several_platforms_of_podman(build, images)?;
        }
        if build.reads_stdin {
            bail!(
                "--if-changed: the context or the Dockerfile comes from stdin, and cannot be known"
            );
        }
        let variables = Variables {
            get: &|name| client.variable_as_set(name),
            are_known: !client.wrapper_changes_user_or_env,
        };
        let options = Options::read(build, engine, &variables)
            .map_err(|error| anyhow!("--if-changed: {error:#}"))?;
        let context = match &options.context {
            Context::Folder(folder) => folder.clone(),
            Context::Remote(..) => PathBuf::new(),
            Context::Stdin => {
                bail!("--if-changed: the context comes from stdin, and cannot be known")
            }
        };
        refuse_paths_of_another_folder(client, &context, &options)?;
        let mut known = Known {
            builder: Builder::of(command, client, engine),
            client: client.clone(),
            pulls_newer: is_buildah(client) && !options.keeps_local_bases,
            options,
            context,
        };
        if images.engine_is_not_that_of(client) {
            let why = "--engine names another engine than the one that builds".to_owned();
            known.options.never_skip.push(why);
        }
        if let Some(platform) = images.unknown_platform() {
            let why = format!("buildlock does not know the platform {platform}");
            known.options.never_skip.push(why);
        }
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
            if let (_, Found::File(contents)) =
                source::dockerfile(self.builder, &self.context, given)?
            {
                self.refuse_foreign_syntax(&contents.bytes)?;
            }
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

    /// Returns the files that the build command itself writes. In the context, they are not inputs.
    pub(super) fn written_files(&self) -> Vec<PathBuf> {
        // In which other folder they would be is not known.
        let is_known = |file: &&PathBuf| file.is_absolute() || !self.client.may_run_elsewhere;
        self.options.written_files.iter().filter(is_known).cloned().collect()
    }

    /// Adds all that the build command reads.
    ///
    /// # Errors
    /// An input cannot be read, or the engine gave no certain answer.
    pub(super) fn add_to(
        &self,
        sum: &mut Sum,
        images: &Images,
        finder: &mut Finder<'_>,
        tags: &[Tag],
    ) -> Result<()> {
        let Options { never_skip, entries, files, .. } = &self.options;
        never_skip.iter().for_each(|why| sum.never(why.clone()));
        sum.add(Kind::Options, &to_bytes(entries));
        entries.iter().for_each(|it| sum.detail(Kind::Options, || it.to_string()));
        for (option, path) in files {
            sum.add_path(Kind::Options, path, option)?;
        }
        let native = sum.add_platform(&self.builder_text(images, finder), images)?;
        if let Context::Remote(url, _) = &self.options.context {
            sum.never(format!("the Dockerfile is in the context {}", shown(url)));
            return Ok(());
        }
        let mut bases = Bases { finder, images, tags, native };
        self.add_sources(sum, &mut bases)
    }

    /// Returns the builder as the fingerprint has it.
    fn builder_text(&self, images: &Images, finder: &Finder<'_>) -> String {
        let mut text = self.builder.name().to_owned();
        if let (Some(name), []) = (finder.own_builder().name(), images.platforms()) {
            // It builds for the platform of its own machine.
            text.push_str(&format!(" {name}"));
        }
        if self.builder == Builder::OneOfDockers {
            text.push_str(&format!(", client {}", client_sizes(&self.client)));
        }
        text
    }

    fn add_sources(&self, sum: &mut Sum, bases: &mut Bases<'_, '_>) -> Result<()> {
        sum.add_way(&self.context)?;
        let mut rules: Option<IgnoreRules> = None;
        let mut sees_all = false;
        for given in self.given_dockerfiles() {
            let (path, found) = source::dockerfile(self.builder, &self.context, given)?;
            let contents = match found {
                Found::File(contents) => contents,
                Found::LeadsElsewhere => {
                    add_unread(sum, &path);
                    return Ok(());
                }
            };
            self.refuse_foreign_syntax(&contents.bytes)?;
            sum.add_way(&path)?;
            sum.add(Kind::Dockerfile, &contents.bytes);
            sum.detail(Kind::Dockerfile, || path.display().to_string());
            sum.changed(Some(contents.changed));
            let ignore_file = self.options.ignore_file.as_deref();
            let ignored = source::ignored(self.builder, &self.context, &path, ignore_file)?;
            sum.changed(ignored.changed);
            for path in &ignored.found {
                sum.add_way(path)?;
            }
            if let Some(link) = &ignored.leads_elsewhere {
                add_unread(sum, link);
                return Ok(());
            }
            rules = Some(match rules {
                None => ignored.rules,
                Some(rules) => rules.or(ignored.rules),
            });
            // One of several may not even be a Dockerfile without the others.
            if self.options.dockerfiles.len() < 2 {
                sees_all |= self.add_bases(sum, bases, &path, &contents.bytes)?;
            }
        }
        let rules = rules.filter(|_| !sees_all).unwrap_or_else(IgnoreRules::none);
        sum.add_folder(Kind::Context, &self.context, &rules)?;
        for context in &self.options.contexts {
            let ContextSource::Path(path) = &context.source else { continue };
            sum.add(Kind::Context, context.name.as_bytes());
            // BuildKit reads a .dockerignore there. Without it, more counts.
            sum.add_path(Kind::Context, path, "--build-context")?;
        }
        if self.pulls_newer && sum.has_bases() {
            sum.never(
                "buildah may ask the registry for a newer base image (not with --pull=missing)"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Adds the images that a Dockerfile reads. Returns whether it also sees the files of the context
    /// that the ignore file leaves out.
    fn add_bases(
        &self,
        sum: &mut Sum,
        bases: &mut Bases<'_, '_>,
        path: &Path,
        dockerfile: &[u8],
    ) -> Result<bool> {
        let mut sees_all = false;
        let named = bases.images.platforms();
        let targets: Vec<_> = match named {
            [] => vec![None],
            several => several.iter().map(Some).collect(),
        };
        let natives = bases.natives();
        for target in targets {
            for native in &natives {
                for &dialect in self.builder.dialects() {
                    let build = Build {
                        dialect,
                        build_args: &self.options.build_args,
                        contexts: &self.options.contexts,
                        from: self.options.from.as_deref(),
                        target: target.or(native.as_ref()),
                        native: native.as_ref(),
                    };
                    let not_read =
                        |it: NotRead| anyhow!("{}:{}: {}", path.display(), it.line, it.why);
                    let reader = Reader::read(dockerfile, &build).map_err(not_read)?;
                    // BuildKit takes no image for another platform. The others do, unless the
                    // command names one.
                    let wanted = if dialect == Dialect::BuildKit { build.target } else { target };
                    sees_all |= bases.add(sum, &reader, wanted).map_err(|error| match error {
                        NotAdded::Refused(it) => not_read(it),
                        NotAdded::Failed(error) => error,
                    })?;
                }
            }
        }
        Ok(sees_all)
    }
}

/// Adds the images that Dockerfiles read.
struct Bases<'f, 'i> {
    finder: &'f mut Finder<'i>,
    images: &'f Images,
    tags: &'f [Tag],
    /// The engine's own platform.
    native: Option<Platform>,
}

/// Why the images that a Dockerfile reads cannot be added.
enum NotAdded {
    /// The builder would refuse a trigger.
    Refused(NotRead),
    Failed(anyhow::Error),
}

impl Bases<'_, '_> {
    /// Returns the platforms that the builder may have; none for one that is not known.
    fn natives(&self) -> Vec<Option<Platform>> {
        match self.finder.own_builder() {
            OwnBuilder::None => vec![self.native.clone()],
            OwnBuilder::Certain(_) => vec![None],
            OwnBuilder::Perhaps(_) => vec![self.native.clone(), None],
        }
    }

    /// Adds what a Dockerfile reads, on a builder that wants images for this platform. Returns
    /// whether it sees the whole context.
    fn add(
        &mut self,
        sum: &mut Sum,
        reader: &Reader<'_>,
        wanted: Option<&Platform>,
    ) -> Result<bool, NotAdded> {
        let mut sees_all = reader.reads().sees_all;
        for base in &reader.reads().bases {
            let triggers = self.add_one(sum, base, wanted)?;
            if base.role != Role::From || triggers.is_empty() {
                continue;
            }
            let more = reader.triggers(base, &triggers).map_err(NotAdded::Refused)?;
            for base in &more.bases {
                self.add_one(sum, base, wanted)?;
            }
            sees_all |= more.sees_all;
            sum.add_moving(&more);
        }
        sum.add_moving(reader.reads());
        Ok(sees_all)
    }

    fn add_one(
        &mut self,
        sum: &mut Sum,
        base: &dockerfile::Base,
        wanted: Option<&Platform>,
    ) -> Result<Vec<String>, NotAdded> {
        sum.add_base(self.finder, base, wanted, self.tags).map_err(NotAdded::Failed)
    }
}

/// Returns the engine that builds: podman may be called docker.
fn engine_of(client: &Client, images: &Images) -> Engine {
    match client.engine {
        Engine::Docker if !images.engine_is_not_that_of(client) && images.engine_is_podman() => {
            Engine::Podman
        }
        engine => engine,
    }
}

/// Adds a link that is not read. Without it, nothing is known of what else the build reads.
fn add_unread(sum: &mut Sum, link: &Path) {
    sum.never(format!(
        "{} is a link that leads out of its folder, where builders differ",
        link.display()
    ));
    sum.add(Kind::Dockerfile, b"a link that is not read");
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
fn refuse_several_platforms_of_podman(build: &BuildOptions, images: &Images) -> Result<()> {
    if build.manifest.is_some() || images.platforms().len() > 1 {
        bail!(
            "--if-changed: podman's images for several platforms cannot be compared; call \
             buildlock once for each platform, with a tag for each"
        );
    }
    Ok(())
}
