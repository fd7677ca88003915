//! What a build reads because its Dockerfile says so: base images, and what `ADD` fetches.
//!
//! All stages count, also those that `--target` does not need. BuildKit leaves them out and the
//! legacy builder does not, and one base too many only leads to a build too many.

mod build;
mod scope;

use std::collections::HashMap;

pub(crate) use self::build::Build;
use self::scope::Scopes;
use super::contexts::{ContextSource, NamedContext};
use super::remote::{Remote, could_become_remote};
use crate::dockerfile::{
    self, Dialect, Instruction, Kind, Text, Unreadable, from_words, words_or_list,
};
use crate::image::Platform;

/// What a Dockerfile reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) bases: Vec<Base>,
    /// What `ADD` fetches, or may fetch, and what can change meanwhile.
    pub(crate) moving: Vec<Moving>,
    /// Whether it mounts the context, which with buildah shows also what the ignore file leaves out.
    pub(crate) sees_all: bool,
}

/// An image that the build reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) reference: Reference,
    /// The platform that it is wanted for, if the Dockerfile says one.
    pub(crate) platform: Option<Platform>,
    pub(crate) role: Role,
    /// The stage that reads it. Where a stage begins with it, its triggers run there.
    pub(crate) stage: usize,
    /// The line of the Dockerfile, from 1 on; 0 if the Dockerfile does not name it.
    pub(crate) line: usize,
}

/// The name of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Image(String),
    /// Only the build knows the name. This is what the Dockerfile has.
    Unknown(String),
}

/// What an image is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    From,
    Copy,
    Mount,
    /// It is a named context that the Dockerfile does not read.
    Unused,
}

/// A source that can change without a change of the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    /// As the Dockerfile has it.
    pub(crate) source: String,
    pub(crate) line: usize,
}

/// A Dockerfile that has been read.
#[derive(Debug)]
pub(crate) struct Reader<'b> {
    build: Build<'b>,
    escape: char,
    scopes: Scopes<'b>,
    /// The stages that have a name.
    by_name: HashMap<String, usize>,
    /// The number of stages that have begun.
    stages: usize,
    reads: Reads,
}

/// Why a Dockerfile cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotRead {
    pub(crate) line: usize,
    pub(crate) why: String,
}

impl<'b> Reader<'b> {
    /// Reads a Dockerfile.
    ///
    /// # Errors
    /// The builder would refuse it.
    pub(crate) fn read(bytes: &[u8], build: &'b Build<'b>) -> Result<Self, NotRead> {
        let text = Text::of(bytes);
        let not_read = |error: Unreadable| NotRead { line: text.line(error.at), why: error.why };
        let dockerfile = text.read().map_err(not_read)?;
        let mut reader = Reader {
            build: *build,
            escape: dockerfile.escape,
            scopes: Scopes::new(build, dockerfile.escape),
            by_name: HashMap::new(),
            stages: 0,
            reads: Reads::default(),
        };
        for instruction in &dockerfile.instructions {
            let line = text.line(instruction.at);
            reader.apply(instruction, line).map_err(|why| NotRead { line, why })?;
        }
        reader.add_unused_contexts();
        Ok(reader)
    }

    /// Returns what the Dockerfile itself reads.
    pub(crate) fn reads(&self) -> &Reads {
        &self.reads
    }

    /// Returns what the `ONBUILD` triggers of a base image read, where a stage begins with it.
    ///
    /// # Errors
    /// The builder would refuse one of them.
    pub(crate) fn triggers(&self, base: &Base, triggers: &[String]) -> Result<Reads, NotRead> {
        let mut by_name = self.by_name.clone();
        by_name.retain(|_, stage| *stage < base.stage);
        let mut reader = Reader {
            build: self.build,
            escape: '\\',
            scopes: self.scopes.for_triggers(),
            by_name,
            stages: base.stage + 1,
            reads: Reads::default(),
        };
        for trigger in triggers {
            let refused = |why: String| {
                // The rest may hold a secret, and it is in none of the user's files.
                let word = trigger.split_whitespace().next().unwrap_or_default();
                let keyword = word.split('=').next().unwrap_or_default();
                NotRead { line: base.line, why: format!("ONBUILD {keyword}: {why}") }
            };
            let instructions =
                dockerfile::read_trigger(trigger).map_err(|error| refused(error.why))?;
            for instruction in &instructions {
                if instruction.kind == Kind::From {
                    return Err(refused("FROM is not for triggers".to_owned()));
                }
                reader.apply(instruction, base.line).map_err(refused)?;
            }
        }
        Ok(reader.reads)
    }

    /// Applies an instruction. What stands behind ONBUILD counts at once: a stage that is built
    /// from this one runs it.
    fn apply(&mut self, instruction: &Instruction<'_>, line: usize) -> Result<(), String> {
        let is_here = !instruction.on_build;
        match instruction.kind {
            Kind::From => self.begin(instruction, line)?,
            // A variable of a trigger is not one of this stage.
            Kind::Arg | Kind::Env if !is_here => {}
            Kind::Arg | Kind::Env => {
                if !self.scopes.apply(instruction) {
                    return Err("ENV needs a name and a value".to_owned());
                }
            }
            Kind::Copy | Kind::Add => {
                for from in flags(instruction, "from=") {
                    self.copy_from(from, is_here, line);
                }
                if instruction.kind == Kind::Add {
                    self.add(instruction, line);
                }
            }
            Kind::Run => {
                for mount in flags(instruction, "mount=") {
                    self.mount(mount, is_here, line);
                }
            }
            Kind::Workdir | Kind::Other => {}
        }
        Ok(())
    }

    fn begin(&mut self, from: &Instruction<'_>, line: usize) -> Result<(), String> {
        let (written, name) =
            from_words(&from.arguments).ok_or("FROM takes IMAGE or IMAGE AS NAME")?;
        let name = name.map(str::to_lowercase);
        let stage = self.stages;
        self.stages += 1;
        let instead = self.build.from.filter(|_| stage == 0).map(str::to_owned);
        let base = instead.or_else(|| self.scopes.expand_in_from(written));
        let parent = base.as_ref().and_then(|base| self.stage(base));
        let is_scratch = parent.is_none() && base.as_deref() == Some("scratch");
        let context = name.as_ref().and_then(|name| self.context(name)).cloned();
        // With BuildKit, a context takes the place of the whole stage.
        if let (Some(context), Dialect::BuildKit) = (context, self.build.dialect) {
            let platform = self.platform(from);
            self.add_context(&context, platform, Role::From, line);
            self.scopes.begin(None, false);
        } else {
            self.scopes.begin(parent, is_scratch);
            if parent.is_none() && !is_scratch {
                let platform = self.platform(from);
                self.add_base(base, written, platform, Role::From, line);
            }
        }
        self.by_name.extend(name.map(|name| (name, stage)));
        Ok(())
    }

    /// Returns the platform that a FROM asks for. The error is one that only the build knows.
    fn platform(&self, from: &Instruction<'_>) -> Result<Option<Platform>, CannotTell> {
        let Some(written) = flags(from, "platform=").last() else { return Ok(None) };
        if self.is_the_builders(written) {
            return Ok(None);
        }
        let text = self.scopes.expand_in_from(written).ok_or(CannotTell)?;
        Platform::parse(&text).map(Some).ok_or(CannotTell)
    }

    /// Returns whether a FROM asks for the platform of a builder whose platform is not known. That
    /// builder takes images from a registry, whose digest is the same for all platforms.
    fn is_the_builders(&self, platform: &str) -> bool {
        let name = platform.trim_start_matches('$').trim_matches(['{', '}']);
        platform.starts_with('$')
            && match name {
                "BUILDPLATFORM" => self.build.native.is_none(),
                "TARGETPLATFORM" => self.build.target.is_none(),
                _ => false,
            }
    }

    fn copy_from(&mut self, from: &str, is_here: bool, line: usize) {
        let is_number = from.parse::<i64>().is_ok();
        if from.is_empty() || is_number {
            return;
        }
        self.read_from(from, is_here, Role::Copy, line);
    }

    fn mount(&mut self, mount: &str, is_here: bool, line: usize) {
        let fields = dockerfile::fields(mount);
        // What stands last counts.
        let from = fields.iter().rev().find_map(|field| {
            field.split_once('=').filter(|(key, _)| key.eq_ignore_ascii_case("from"))
        });
        let from = from.map(|(_, from)| from).unwrap_or_default();
        if from.is_empty() {
            self.reads.sees_all |= self.build.dialect == Dialect::Buildah && may_be_bind(&fields);
            return;
        }
        // Only buildah takes a number for a stage here.
        let is_stage = self.build.dialect == Dialect::Buildah && from.parse::<i64>().is_ok();
        if !is_stage {
            self.read_from(from, is_here, Role::Mount, line);
        }
    }

    /// Adds what `--from` names, if it is not a stage. `is_here` says whether it sees the variables
    /// of this stage.
    fn read_from(&mut self, written: &str, is_here: bool, role: Role, line: usize) {
        // Docker's builders refuse variables here, and buildah expands them.
        let is_literal = !written.contains(['$', '\'', '"', '\\', self.escape]);
        let from = match self.build.dialect {
            _ if is_literal => Some(written.to_owned()),
            Dialect::Buildah if is_here => self.scopes.expand(written),
            _ => None,
        };
        if from.as_ref().is_some_and(|from| from == "scratch" || self.stage(from).is_some()) {
            return;
        }
        self.add_base(from, written, Ok(None), role, line);
    }

    fn stage_now(&self) -> usize {
        self.stages.saturating_sub(1)
    }

    /// Returns the earlier stage of this name.
    fn stage(&self, name: &str) -> Option<usize> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    fn context(&self, name: &str) -> Option<&NamedContext> {
        // The last one of several with one name counts.
        let mut contexts = self.build.contexts.iter().rev();
        contexts.find(|context| context.replaces(name, self.build.dialect))
    }

    fn add_base(
        &mut self,
        name: Option<String>,
        written: &str,
        platform: Result<Option<Platform>, CannotTell>,
        role: Role,
        line: usize,
    ) {
        let context = name.as_ref().and_then(|name| self.context(name)).cloned();
        if let Some(context) = context {
            return self.add_context(&context, platform, role, line);
        }
        let is_name = |name: &String| {
            !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        let (reference, platform) = match (name.filter(is_name), platform) {
            (Some(name), Ok(platform)) => (Reference::Image(name), platform),
            _ => (Reference::Unknown(written.to_owned()), None),
        };
        let stage = self.stage_now();
        self.reads.bases.push(Base { reference, platform, role, stage, line });
    }

    /// Adds a context that takes an image's place. If it is not an image, the command's options
    /// say what it is.
    fn add_context(
        &mut self,
        context: &NamedContext,
        platform: Result<Option<Platform>, CannotTell>,
        role: Role,
        line: usize,
    ) {
        let ContextSource::Image(image) = &context.source else { return };
        if image == "scratch" {
            return;
        }
        let (reference, platform) = match platform {
            Ok(platform) => (Reference::Image(image.clone()), platform),
            Err(CannotTell) => (Reference::Unknown(image.clone()), None),
        };
        let stage = self.stage_now();
        self.reads.bases.push(Base { reference, platform, role, stage, line });
    }

    fn add_unused_contexts(&mut self) {
        for context in self.build.contexts {
            let ContextSource::Image(image) = &context.source else { continue };
            let is_this = |base: &Base| base.reference == Reference::Image(image.clone());
            if !self.reads.bases.iter().any(is_this) {
                self.add_context(context, Ok(None), Role::Unused, 0);
            }
        }
    }

    /// Adds the sources of an ADD that can change.
    fn add(&mut self, add: &Instruction<'_>, line: usize) {
        let mut words = words_or_list(&add.arguments);
        // The last word is where it goes.
        words.pop();
        let checksum = flags(add, "checksum=").last();
        let checksum = checksum.and_then(|checksum| self.scopes.expand(checksum));
        let dialect = self.build.dialect;
        for written in words {
            // A trigger sees the variables of another stage.
            let expanded = if add.on_build && written.contains('$') {
                None
            } else {
                self.scopes.expand(&written)
            };
            let is_moving = match expanded {
                Some(source) => {
                    Remote::of_add(&source, checksum.as_deref(), dialect) == Some(Remote::Moving)
                }
                None => {
                    let is_plain = |c: char| !matches!(c, '$' | '\'' | '"' | '\\' | '`');
                    let end = written.find(|c| !is_plain(c)).unwrap_or(written.len());
                    could_become_remote(&written[..end], dialect)
                }
            };
            if is_moving {
                self.reads.moving.push(Moving { source: written, line });
            }
        }
    }
}

/// Only the build knows.
#[derive(Clone, Copy, Debug)]
struct CannotTell;

/// Returns whether a mount may be of the type `bind`, which is the default.
fn may_be_bind(fields: &[String]) -> bool {
    const OTHERS: [&str; 4] = ["cache", "secret", "ssh", "tmpfs"];
    let kind = fields.iter().rev().find_map(|field| {
        field.split_once('=').filter(|(key, _)| key.eq_ignore_ascii_case("type"))
    });
    kind.is_none_or(|(_, kind)| !OTHERS.contains(&kind.to_ascii_lowercase().as_str()))
}

/// Returns the values of an instruction's flags that begin like this.
fn flags<'i>(instruction: &'i Instruction<'_>, start: &str) -> impl Iterator<Item = &'i str> {
    instruction.flags.iter().filter_map(move |flag| flag.text.strip_prefix(start))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    /// What the tests give to a Dockerfile.
    struct Given {
        dialect: Dialect,
        build_args: BTreeMap<String, String>,
        contexts: Vec<NamedContext>,
    }

    impl Given {
        fn new(dialect: Dialect, build_args: &[(&str, &str)], contexts: &[&str]) -> Self {
            let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            Given {
                dialect,
                build_args: build_args.iter().map(pair).collect(),
                contexts: contexts.iter().map(|it| NamedContext::parse(it).unwrap()).collect(),
            }
        }

        fn with<T>(&self, run: impl FnOnce(&Build<'_>) -> T) -> T {
            let platform = |text: &str| Platform::parse(text).unwrap();
            run(&Build {
                dialect: self.dialect,
                build_args: &self.build_args,
                contexts: &self.contexts,
                from: None,
                target: Some(&platform("linux/arm64")),
                native: Some(&platform("linux/amd64")),
            })
        }

        fn read(&self, text: &str) -> Result<Reads, NotRead> {
            self.with(|build| Reader::read(text.as_bytes(), build).map(|it| it.reads().clone()))
        }

        /// Returns the images that are read, each with its platform. `?` is one that only the build
        /// knows.
        fn bases(&self, text: &str) -> Vec<String> {
            shown(&self.read(text).unwrap())
        }
    }

    fn shown(reads: &Reads) -> Vec<String> {
        let base = |base: &Base| {
            let platform = base.platform.as_ref().map(|it| format!(" {it}")).unwrap_or_default();
            match &base.reference {
                Reference::Image(image) => format!("{image}{platform}"),
                Reference::Unknown(written) => format!("?{written}"),
            }
        };
        reads.bases.iter().map(base).collect()
    }

    const DIALECTS: [Dialect; 3] = [Dialect::BuildKit, Dialect::Legacy, Dialect::Buildah];

    #[track_caller]
    fn check(dialects: &[Dialect], cases: &[(&str, &[&str])]) {
        for dialect in dialects {
            let given = Given::new(*dialect, &[("GIVEN", "g"), ("GIVEN2", "g2")], &[]);
            for (text, wanted) in cases {
                assert_eq!(given.bases(text), *wanted, "{dialect:?} {text}");
            }
        }
    }

    #[test]
    fn images_are_read_by_from_copy_and_mount_and_stages_are_not() {
        check(
            &DIALECTS,
            &[
                ("FROM a:1", &["a:1"]),
                ("FROM scratch", &[]),
                ("FROM a AS b\nFROM B\nFROM b AS c", &["a"]),
                ("FROM a AS a\nFROM a", &["a"]),
                ("FROM a\nFROM b AS a\nFROM a", &["a", "b"]),
                ("FROM scratch AS b\nFROM b\nCOPY --from=B /x /\nCOPY --from=0 /x /", &[]),
                ("FROM scratch\nCOPY --chown=1 --from=img:2 /x /", &["img:2"]),
                ("FROM scratch\nADD --from=img:2 /x /", &["img:2"]),
                ("FROM scratch\nCOPY --from=later /x /\nFROM scratch AS later", &["later"]),
                ("FROM scratch\nCOPY --from=scratch /x /", &[]),
                ("FROM scratch\nRUN --mount=type=bind,from=img x", &["img"]),
                ("FROM scratch\nRUN --mount=FROM=a,type=cache,from=img x", &["img"]),
                ("FROM scratch\nRUN --mount=type=cache,target=/from=x x", &[]),
                ("FROM scratch\nONBUILD COPY --from=img /x /", &["img"]),
                ("FROM a@sha256:00 AS b\nRUN <<E\nFROM c\nE\n", &["a@sha256:00"]),
                ("from a\n# FROM b\nCOPY x \\\n --from=y /", &["a"]),
            ],
        );
        let mounted = &[("FROM scratch\nRUN --mount=from=0 x", &["0"] as &[_])];
        check(&[Dialect::BuildKit], mounted);
        check(&[Dialect::Buildah], &[("FROM scratch\nRUN --mount=from=0 x", &[])]);
    }

    #[test]
    fn global_arguments_are_expanded_in_from() {
        check(
            &DIALECTS,
            &[
                ("ARG A=1\nFROM x:$A", &["x:1"]),
                ("ARG A=1 B=2\nARG C=$A$B\nFROM x:${C}", &["x:12"]),
                ("ARG A\nFROM x:${A:-2}", &["x:2"]),
                ("ARG GIVEN\nFROM x:${GIVEN:-2}", &["x:g"]),
                ("ARG GIVEN=1 GIVEN2=$GIVEN\nFROM x:$GIVEN2$GIVEN", &["x:g2g"]),
                ("FROM x:${GIVEN:-undeclared}", &["x:undeclared"]),
                ("ARG A='1'\nFROM \"x\":$A", &["x:1"]),
                ("ARG A=1\nFROM scratch\nARG A=2\nFROM x:$A", &["x:1"]),
                ("FROM scratch\nARG A=1\nFROM x:${A:-0}", &["x:0"]),
                ("ARG A=b\nFROM x AS b\nFROM $A", &["x"]),
                ("ARG A=scratch\nFROM $A", &[]),
                ("FROM $HTTP_PROXY", &["?$HTTP_PROXY"]),
                ("FROM ${A^^}", &["?${A^^}"]),
                ("ARG A\nFROM $A", &["?$A"]),
            ],
        );
        let patterns = "ARG A=b/c:1\nFROM ${A#*/}";
        check(&[Dialect::BuildKit], &[(patterns, &["c:1"])]);
        check(&[Dialect::Buildah], &[(patterns, &["?${A#*/}"])]);
    }

    #[test]
    fn platforms_are_known_in_from() {
        check(
            &[Dialect::BuildKit, Dialect::Buildah],
            &[
                ("FROM --platform=$BUILDPLATFORM x", &["x linux/amd64"]),
                ("FROM --platform=linux/arm/v7 x", &["x linux/arm/v7"]),
                ("FROM x-$TARGETARCH-$TARGETOS-${TARGETVARIANT:-none}", &["x-arm64-linux-none"]),
                ("ARG TARGETPLATFORM\nFROM --platform=$TARGETPLATFORM x", &["x linux/arm64"]),
                ("FROM --platform=$OTHER x", &["?x"]),
                ("FROM --platform=local x", &["?x"]),
                ("FROM x-$TARGETSTAGE", &["?x-$TARGETSTAGE"]),
            ],
        );
        check(&[Dialect::Legacy], &[("FROM x-${TARGETARCH:-none}", &["x-none"])]);
        let given = Given::new(Dialect::BuildKit, &[("TARGETARCH", "s390x")], &[]);
        assert_eq!(given.bases("FROM x-$TARGETARCH"), ["?x-$TARGETARCH"]);
    }

    #[test]
    fn variables_behind_from_equals_are_for_buildah_alone() {
        let text = "FROM scratch\nARG A=1\nENV B=2\nCOPY --from=x:$A$B /x /";
        check(&[Dialect::BuildKit, Dialect::Legacy], &[(text, &["?x:$A$B"])]);
        check(&[Dialect::Buildah], &[(text, &["x:12"])]);
        let text = "FROM base\nARG A=1\nRUN --mount=from=x:$A x";
        // The image may set the variable, too.
        check(&DIALECTS, &[(text, &["base", "?x:$A"])]);
    }

    #[test]
    fn contexts_replace_images_and_stages() {
        let given = |context: &str| Given::new(Dialect::BuildKit, &[], &[context]);
        let image = given("alpine=docker-image://other:2");
        assert_eq!(image.bases("FROM alpine:latest"), ["other:2"]);
        assert_eq!(image.bases("FROM alpine:3"), ["alpine:3", "other:2"]);
        assert_eq!(image.bases("FROM scratch\nCOPY --from=alpine / /"), ["other:2"]);
        assert_eq!(image.bases("FROM x AS alpine\nFROM alpine"), ["other:2"]);
        let platform = "FROM --platform=linux/s390x alpine";
        assert_eq!(image.bases(platform), ["other:2 linux/s390x"]);
        let folder = given("alpine=../folder");
        assert!(folder.bases("FROM alpine\nRUN --mount=from=alpine x").is_empty());
        assert_eq!(folder.bases("FROM x AS alpine\nCOPY --from=img / /"), ["img"]);
        let legacy = Given::new(Dialect::Legacy, &[], &["alpine=docker-image://other:2"]);
        assert_eq!(legacy.bases("FROM alpine"), ["alpine", "other:2"]);
    }

    #[test]
    fn what_add_fetches_is_found_unless_it_cannot_change() {
        let digest = "a".repeat(64);
        for (text, is_moving) in [
            ("ADD a.tar /", false),
            ("ADD https://h/a.tar /", true),
            ("ADD [\"b\", \"https://h/a b\", \"/\"] rest", true),
            ("ADD --checksum=sha256:DIGEST https://h/a.tar /", false),
            ("ARG SUM=sha256:DIGEST\nADD --checksum=$SUM https://h/a.tar /", false),
            ("ADD --checksum=sha256:1 https://h/a.tar /", true),
            ("ENV URL=https://h/a\nADD $URL /", true),
            ("ARG NAME=a\nADD $NAME.tar /", false),
            ("ADD $OTHER /", true),
            ("ADD dist/app-$OTHER.tar /", false),
            ("ONBUILD ADD $OTHER /", true),
            ("ONBUILD ADD https://h/a /", true),
            ("ADD git@h:a/b /", true),
            ("ADD <<EOF /https://\nx\nEOF", false),
            ("COPY https://h/a /", false),
        ] {
            let text = format!("FROM base\n{text}\n").replace("DIGEST", &digest);
            let read = Given::new(Dialect::BuildKit, &[], &[]).read(&text).unwrap();
            assert_eq!(!read.moving.is_empty(), is_moving, "{text}");
            assert!(read.moving.iter().all(|it| it.line >= 2), "{text}");
        }
        // The image below may set NAME, and then the legacy builder takes that.
        let text = "FROM base\nARG NAME=a\nADD $NAME.tar /\n";
        assert_eq!(Given::new(Dialect::Legacy, &[], &[]).read(text).unwrap().moving.len(), 1);
    }

    #[test]
    fn variables_of_a_stage_go_to_the_stages_built_from_it() {
        let text = "FROM scratch AS a\nARG A=x\nENV E=https://h/\nFROM a\nADD $A $E /\n";
        let sources = |dialect| {
            let read = Given::new(dialect, &[], &[]).read(text).unwrap();
            read.moving.into_iter().map(|it| it.source).collect::<Vec<_>>()
        };
        assert_eq!(sources(Dialect::BuildKit), ["$E"]);
        assert_eq!(sources(Dialect::Buildah), ["$A", "$E"]);
    }

    #[test]
    fn option_takes_the_place_of_the_first_image() {
        let given = Given::new(Dialect::Buildah, &[], &[]);
        given.with(|build| {
            let build = Build { from: Some("other:2"), ..*build };
            let reader = Reader::read(b"FROM $A^ AS a\nFROM a\nFROM b", &build).unwrap();
            assert_eq!(shown(reader.reads()), ["other:2", "b"]);
        });
    }

    #[test]
    fn triggers_are_read_where_their_image_begins_a_stage() {
        let given = Given::new(Dialect::BuildKit, &[], &[]);
        given.with(|build| {
            let text = b"FROM scratch AS first\nFROM base\nENV X=y\nFROM scratch AS later\n";
            let reader = Reader::read(text, build).unwrap();
            let base = &reader.reads().bases[0];
            assert_eq!((base.stage, base.line), (1, 2));
            let triggers = [
                "COPY --from=img / /",
                "COPY --from=first / /",
                "COPY --from=later / /",
                "RUN --mount=from=img2,target=/x true",
                "ADD https://h/a /",
                "ENV V=dist/a",
                "ADD $V /",
                "ADD $X /",
            ];
            let reads = reader.triggers(base, &triggers.map(str::to_owned)).unwrap();
            assert_eq!(shown(&reads), ["img", "later", "img2"]);
            let moving: Vec<_> = reads.moving.iter().map(|it| it.source.as_str()).collect();
            assert_eq!(moving, ["https://h/a", "$X"]);
            for (refused, why) in [
                ("FROM s3cret", "ONBUILD FROM: FROM is not for triggers"),
                ("WHATEVER s3cret", "ONBUILD WHATEVER: unknown instruction WHATEVER"),
                ("TOKEN=s3cret", "ONBUILD TOKEN: unknown instruction TOKEN"),
                ("ENV s3cret", "ONBUILD ENV: ENV needs a name and a value"),
            ] {
                let error = reader.triggers(base, &[refused.to_owned()]).unwrap_err();
                assert_eq!(error.why, why);
            }
        });
    }

    #[test]
    fn mount_of_the_context_shows_buildah_all_files() {
        for (text, sees_all) in [
            ("RUN --mount=target=/x true", true),
            ("RUN --mount=type=bind,target=/x true", true),
            ("RUN --mount=type=bind,from=,target=/x true", true),
            ("RUN --mount=type=$KIND,target=/x true", true),
            ("ONBUILD RUN --mount=target=/x true", true),
            ("RUN --mount=type=bind,from=other,target=/x true", false),
            ("RUN --mount=type=cache,target=/x true", false),
            ("RUN --mount=type=Secret,id=x true", false),
            ("RUN true", false),
        ] {
            let text = format!("FROM base\n{text}\n");
            let sees = |dialect| Given::new(dialect, &[], &[]).read(&text).unwrap().sees_all;
            assert_eq!(sees(Dialect::Buildah), sees_all, "{text}");
            assert!(!sees(Dialect::BuildKit), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_dockerfile_is_refused_with_its_line() {
        let given = Given::new(Dialect::BuildKit, &[], &[]);
        for (text, line) in [
            ("", 1),
            ("# only a comment\n", 1),
            ("FROM a\n\nWHATEVER\n", 3),
            ("FROM a\nENV x\n", 2),
            ("\u{feff}FROM a\nFROM a b\n", 2),
            ("FROM a\nRUN x \\\n  y\nRUN <<E\n", 4),
        ] {
            assert_eq!(given.read(text).unwrap_err().line, line, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(
            lines in proptest::collection::vec(
                prop_oneof![
                    "(FROM|ARG|ENV|COPY|ADD|RUN|ONBUILD ADD|# escape=) [ -~]{0,30}",
                    r#"FROM [$]\{?[A-C][:+#%/-]{0,2}[a-z$*]{0,4}\}?( AS [a-c])?"#,
                    "(ARG|ENV) [A-C]=[$a-z{}]{0,6}",
                    "(COPY|ADD) --from=[a-c0-2] [a-z$A-C:/]{0,9} /",
                    "\\PC{0,20}",
                ],
                0..8,
            )
        ) {
            for dialect in DIALECTS {
                let given = Given::new(dialect, &[("A", "$B${C}")], &["a=docker-image://b"]);
                _ = given.read(&lines.join("\n"));
            }
        }
    }
}
