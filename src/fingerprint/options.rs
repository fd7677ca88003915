//! What counts of the words of a known build command, and of the variables beside them.
//!
//! Every option counts except those that are known not to influence the image. Paths never count,
//! only what they lead to, so that two worktrees agree. Secrets, SSH keys and proxies from docker's
//! configuration do not count.

mod names;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use self::names::Meaning;
use super::contexts::{ContextSource, NamedContext};
use super::entries::{Entry, EntryKind};
use super::remote::Remote;
use crate::command::{BuildOptions, Engine, Given, output_fields};
use crate::go_bool;
use crate::image::LABEL;
use crate::visible::escaped;

/// What the words of a build command say about its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) context: Context,
    /// The values of `-f`. Only buildah takes several.
    pub(crate) dockerfiles: Vec<PathBuf>,
    pub(crate) ignore_file: Option<PathBuf>,
    pub(crate) target: Option<String>,
    /// The image in place of the Dockerfile's first one (buildah's `--from`).
    pub(crate) from: Option<String>,
    /// The build arguments that have a value.
    pub(crate) build_args: BTreeMap<String, String>,
    /// Named contexts. Of those with one name, only the last.
    pub(crate) contexts: Vec<NamedContext>,
    /// Further files whose content counts, with the option or variable that names each.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// Whether the command says that images of the engine are good enough as base images. For
    /// buildah, they are not by default.
    pub(crate) keeps_local_bases: bool,
    /// The files that the command writes beside the image.
    pub(crate) written_files: Vec<PathBuf>,
    /// Why the build must not be skipped, whatever the fingerprint says. Each for a message.
    pub(crate) never_skip: Vec<String>,
    /// What counts of the options, in an order that does not depend on that of the words where the
    /// image does not.
    pub(crate) entries: Vec<Entry>,
}

/// The build context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    Folder(PathBuf),
    /// A URL, or buildkit's `github.com/a/b`. If there is a folder of this name, that is meant.
    Remote(String, Remote),
    Stdin,
}

/// The variables that the client will see.
pub(crate) struct Variables<'v> {
    /// Returns a variable's value, also if it is empty.
    pub(crate) get: &'v dyn Fn(&str) -> Option<OsString>,
    /// Whether `get` knows them: sudo may change them.
    pub(crate) are_known: bool,
}

impl Options {
    /// Reads the options of a build command.
    ///
    /// # Errors
    /// They make no sense together, or the user sets the label that buildlock sets.
    pub(crate) fn read(
        build: &BuildOptions,
        engine: Engine,
        variables: &Variables<'_>,
    ) -> Result<Self> {
        let mut reader = Reader {
            engine,
            variables,
            labels: BTreeMap::new(),
            counting: BTreeMap::new(),
            options: Options {
                context: context(&build.operands, engine)?,
                dockerfiles: Vec::new(),
                ignore_file: None,
                target: None,
                from: None,
                build_args: BTreeMap::new(),
                contexts: Vec::new(),
                files: Vec::new(),
                keeps_local_bases: false,
                written_files: Vec::new(),
                never_skip: Vec::new(),
                entries: Vec::new(),
            },
        };
        for given in &build.given {
            reader.option(given)?;
        }
        reader.variables();
        Ok(reader.finish())
    }

    /// Returns all paths that the options name.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        let contexts = self.contexts.iter().filter_map(|context| match &context.source {
            ContextSource::Path(path) => Some(path),
            _ => None,
        });
        let files = self.files.iter().map(|(_, path)| path);
        let all = self.dockerfiles.iter().chain(&self.ignore_file).chain(files).chain(contexts);
        all.map(PathBuf::as_path)
    }

    /// Returns the image that the command wants the Dockerfile to be read by.
    pub(crate) fn syntax(&self) -> Option<&str> {
        self.build_args.get("BUILDKIT_SYNTAX").map(String::as_str)
    }
}

struct Reader<'v> {
    engine: Engine,
    variables: &'v Variables<'v>,
    labels: BTreeMap<String, String>,
    /// The options that count, by name, each with its values in order.
    counting: BTreeMap<String, Vec<String>>,
    options: Options,
}

impl Reader<'_> {
    fn option(&mut self, given: &Given) -> Result<()> {
        let name = names::long_name(&given.name, self.engine);
        let value = given.value.as_deref();
        // A stage or a file may be called "f".
        let is_on = !given.is_switch || is_on(value);
        match name {
            written if names::WRITTEN.contains(&written) => {
                self.options.written_files.extend(value.map(PathBuf::from));
            }
            "pull" => self.options.keeps_local_bases = !is_on || keeps_local(value),
            "pull-never" => self.options.keeps_local_bases = is_on,
            _ => {}
        }
        match names::meaning(name) {
            Meaning::Nothing => {}
            Meaning::Special => self.special(name, value.unwrap_or_default())?,
            Meaning::Rebuild if is_on && !keeps_local(value) => {
                self.never_skip(format!("--{name} asks for a build"));
            }
            // An `=false` that stands last.
            Meaning::Rebuild if !is_on => self.forget_rebuild(name),
            Meaning::Unseen if is_on => {
                self.never_skip(format!("buildlock does not look into what --{name} names"));
            }
            Meaning::Unseen => {}
            Meaning::OtherTargets => self.never_skip(format!(
                "the build command also builds {}, which this image reads, and buildlock does not \
                 look into what is built for another image",
                escaped(&value.unwrap_or_default().replace(',', ", "))
            )),
            Meaning::File => {
                let path = PathBuf::from(value.unwrap_or_default());
                self.options.files.push((format!("--{name}"), path));
            }
            Meaning::LastCounts => {
                self.counting.insert(name.to_owned(), vec![value.unwrap_or_default().to_owned()]);
            }
            _ if given.is_switch => {
                let value = value.unwrap_or("true");
                let value = go_bool::parse(value).map_or(value.to_owned(), |on| on.to_string());
                self.counting.insert(name.to_owned(), vec![value]);
            }
            Meaning::AllCount | Meaning::Rebuild => self.count(name, value.unwrap_or_default()),
        }
        self.refuse_lost_text(name, value);
        Ok(())
    }

    fn special(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "build-arg" => self.build_arg(value),
            "label" => self.label(value)?,
            "env" => self.env(value),
            "output" => {
                let fields = output_fields(value).into_iter().filter(|field| {
                    let key = field.split('=').next().unwrap_or_default().trim();
                    !["dest", "push", "name"].iter().any(|it| it.eq_ignore_ascii_case(key))
                });
                // Without any `=`, it is a path.
                let fields: Vec<_> = fields.filter(|_| value.contains('=')).collect();
                self.count("output", &fields.join(","));
            }
            "file" => self.dockerfile(value),
            "ignorefile" => self.options.ignore_file = Some(PathBuf::from(value)),
            "target" => self.options.target = Some(value.to_owned()),
            "from" => self.options.from = Some(value.to_owned()),
            "build-context" => {
                let Some(context) = NamedContext::parse(value) else {
                    bail!("--build-context {value}: it needs the form name=value");
                };
                self.options.contexts.retain(|other| other.name != context.name);
                self.options.contexts.push(context);
            }
            _ => {}
        }
        Ok(())
    }

    fn build_arg(&mut self, argument: &str) {
        if let Some((name, value)) = argument.split_once('=') {
            self.options.build_args.insert(name.to_owned(), value.to_owned());
            return;
        }
        match self.variable(argument) {
            Some(value) => _ = self.options.build_args.insert(argument.to_owned(), value),
            None if self.options.build_args.contains_key(argument) => self.never_skip(format!(
                "--build-arg {argument} is given twice, once without any value"
            )),
            None => {}
        }
    }

    fn label(&mut self, label: &str) -> Result<()> {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        if name == LABEL {
            bail!("--label {LABEL}: this label is buildlock's own; leave it out");
        }
        self.labels.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Counts podman's `--env NAME=value`, or `NAME` alone for that of the environment.
    fn env(&mut self, env: &str) {
        if env.ends_with('*') && !env.contains('=') {
            return self.never_skip("--env takes several variables at once".to_owned());
        }
        let value = match env.contains('=') {
            true => env.to_owned(),
            false => self.variable(env).map_or_else(|| env.to_owned(), |it| format!("{env}={it}")),
        };
        self.count("env", &value);
    }

    fn dockerfile(&mut self, file: &str) {
        if self.engine == Engine::Podman {
            self.options.dockerfiles.extend(file.split(',').map(PathBuf::from));
        } else {
            self.options.dockerfiles = vec![PathBuf::from(file)];
        }
    }

    /// Returns a variable as the client will see it.
    fn variable(&mut self, name: &str) -> Option<String> {
        if !self.variables.are_known {
            self.never_skip(format!("a program in front may change the variable {name}"));
        }
        let value = (self.variables.get)(name)?;
        let text = value.to_str().map(str::to_owned);
        if text.is_none() {
            self.never_skip(format!("the variable {name} is not UTF-8"));
        }
        text
    }

    /// Counts the variables that change an image.
    fn variables(&mut self) {
        for name in names::variables(self.engine) {
            let value = (self.variables.get)(name).unwrap_or_default();
            if !value.is_empty() {
                let value = value.to_string_lossy().into_owned();
                let name = (*name).to_owned();
                self.options.entries.push(Entry { kind: EntryKind::Variable, name, value });
            }
        }
        if self.engine != Engine::Docker {
            return;
        }
        let policy = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";
        if (self.variables.get)(policy).is_some_and(|path| !path.is_empty()) {
            self.never_skip(format!("buildlock does not look into what {policy} names"));
        }
        let labels = (self.variables.get)("BUILDX_GIT_LABELS").unwrap_or_default();
        if labels == "full" || labels.to_str().and_then(go_bool::parse) == Some(true) {
            self.never_skip(
                "BUILDX_GIT_LABELS adds labels that buildlock does not know".to_owned(),
            );
        }
    }

    fn finish(mut self) -> Options {
        let options = &mut self.options;
        // buildah runs these through the C preprocessor, which may include other files.
        let is_template = |file: &PathBuf| file.extension().is_some_and(|it| it == "in");
        if self.engine == Engine::Podman && options.dockerfiles.iter().any(is_template) {
            options.never_skip.push("the Dockerfile is a template (.in)".to_owned());
        }
        let is_url = |file: &PathBuf| file.to_string_lossy().contains("://");
        if options.dockerfiles.iter().any(is_url) {
            options.never_skip.push("the Dockerfile is remote".to_owned());
        }
        if options.dockerfiles.len() > 1 {
            // buildah joins them, and so a stage of one can be the base of another.
            options.never_skip.push("it has several Dockerfiles".to_owned());
        }
        if let Context::Remote(url, Remote::Moving) = &options.context {
            options.never_skip.push(format!("the context {} can change", shown(url)));
        }
        options.contexts.sort_by(|a, b| a.name.cmp(&b.name));
        for context in &options.contexts {
            let source = match &context.source {
                ContextSource::Remote(url, Remote::Moving) | ContextSource::Other(url) => url,
                _ => continue,
            };
            options.never_skip.push(format!(
                "buildlock does not look into the context {}={}",
                context.name,
                shown(source)
            ));
        }
        let entries = &mut options.entries;
        let mut add = |kind, name: &str, value: &str| {
            entries.push(Entry { kind, name: name.to_owned(), value: value.to_owned() });
        };
        for (name, values) in &self.counting {
            values.iter().for_each(|value| add(EntryKind::Option, name, value));
        }
        if let Some(target) = &options.target {
            // Stages are found in any case.
            add(EntryKind::Option, "target", &target.to_lowercase());
        }
        if let Some(from) = &options.from {
            add(EntryKind::Option, "from", from);
        }
        for context in &options.contexts {
            let source = match &context.source {
                ContextSource::Image(image) => image.as_str(),
                ContextSource::Remote(url, _) | ContextSource::Other(url) => url.as_str(),
                // What the path leads to counts elsewhere.
                ContextSource::Path(_) => "",
            };
            add(EntryKind::Option, "build-context", &format!("{}={source}", context.name));
        }
        if let Context::Remote(url, _) = &options.context {
            add(EntryKind::Option, "context", url);
        }
        for (name, value) in &options.build_args {
            add(EntryKind::BuildArg, name, value);
        }
        for (name, value) in &self.labels {
            add(EntryKind::Label, name, value);
        }
        // Stable: values of one option keep their order.
        entries.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        options.never_skip.sort();
        options.never_skip.dedup();
        self.options
    }

    fn count(&mut self, name: &str, value: &str) {
        self.counting.entry(name.to_owned()).or_default().push(value.to_owned());
    }

    fn never_skip(&mut self, why: String) {
        self.options.never_skip.push(why);
    }

    /// `--pull=false` behind `--pull` turns it off.
    fn forget_rebuild(&mut self, name: &str) {
        self.options.never_skip.retain(|why| !why.starts_with(&format!("--{name} asks")));
    }

    /// Words are text here. One that is not UTF-8 has lost some of it, and could be any other.
    fn refuse_lost_text(&mut self, name: &str, value: Option<&str>) {
        if value.is_some_and(|value| value.contains('\u{fffd}')) {
            self.never_skip(format!("the value of --{name} is not UTF-8"));
        }
    }
}

/// Reads the operand. Only buildah's is optional.
fn context(operands: &[String], engine: Engine) -> Result<Context> {
    let operand = match operands {
        [operand] => operand.as_str(),
        [] if engine == Engine::Podman => ".",
        [] => bail!("the build command names no context"),
        [_, second, ..] => bail!("the build command has a second context, {}", shown(second)),
    };
    Ok(match Remote::of_context(operand) {
        _ if operand == "-" => Context::Stdin,
        Some(remote) => Context::Remote(operand.to_owned(), remote),
        None => Context::Folder(PathBuf::from(operand)),
    })
}

/// Returns a word as it may be shown.
pub(super) fn shown(word: &str) -> String {
    crate::command::describe(&[word.into()])
}

/// Returns whether a switch is on. It needs no value.
fn is_on(value: Option<&str>) -> bool {
    value.and_then(go_bool::parse) != Some(false)
}

/// Returns whether a value of buildah's `--pull` makes it take the image that is there.
fn keeps_local(value: Option<&str>) -> bool {
    let keeps = ["missing", "ifmissing", "notpresent", "ifnotpresent", "never"];
    value.is_some_and(|value| keeps.iter().any(|it| it.eq_ignore_ascii_case(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use proptest::prelude::*;

    const VARIABLES: [(&str, &str); 3] =
        [("FROM_ENV", "e"), ("SOURCE_DATE_EPOCH", "7"), ("EMPTY", "")];

    fn read_with(line: &str, variables: &[(&str, &str)]) -> Result<Options> {
        let argv = shlex::split(line).unwrap().into_iter().map(OsString::from).collect();
        let command = Command::new(argv);
        let get = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let engine = command.client().unwrap().engine;
        let variables = Variables { get: &get, are_known: true };
        Options::read(command.build().unwrap(), engine, &variables)
    }

    fn read(line: &str) -> Options {
        read_with(line, &[]).unwrap()
    }

    fn bytes(line: &str) -> Vec<u8> {
        super::super::entries::to_bytes(&read(line).entries)
    }

    #[test]
    fn targets_that_read_others_are_never_skipped() {
        let options = read_with("docker buildx build --other-targets=base,tools .", &[]).unwrap();
        let [why] = &*options.never_skip else { panic!("{:?}", options.never_skip) };
        assert!(why.starts_with("the build command also builds base, tools, which"), "{why}");
    }

    #[test]
    fn options_that_do_not_influence_the_image_do_not_count() {
        let plain = bytes("docker build .");
        for options in [
            "-t a -t b",
            "-q --progress=plain --load --push",
            "--iidfile a --metadata-file b",
            "--cache-from a --cache-to type=local,dest=b",
            "--builder b -m 1g --memory-swap 2g --cpu-shares 3 -c 4 --cpuset-cpus 0",
            "--rm=false --force-rm --compress --resource memory=1g",
            "--secret id=a,src=b --ssh default",
            "-f other/Dockerfile --platform linux/arm64",
        ] {
            assert_eq!(bytes(&format!("docker build {options} .")), plain, "{options}");
        }
        assert_eq!(bytes("docker build /elsewhere"), plain);
        let podman = bytes("podman build .");
        for options in [
            "--creds u:p --authfile a --tls-verify=false --jobs 4 --logfile l --retry 2",
            "--ignorefile a --arch arm64 --os linux --variant v8 --manifest m",
        ] {
            assert_eq!(bytes(&format!("podman build {options} .")), podman, "{options}");
        }
        assert_eq!(bytes("buildah bud"), podman);
    }

    #[test]
    fn every_other_option_counts() {
        let plain = bytes("docker build .");
        for options in [
            "--build-arg A=",
            "--label a=b",
            "--target a",
            "--network host",
            "--add-host a:1.2.3.4",
            "--ulimit nofile=1",
            "--shm-size 1g",
            "--squash",
            "--isolation x",
            "--security-opt a",
            "--provenance=false",
            "--sbom=true",
            "--attest type=sbom",
            "--annotation a=b",
            "--allow security.insecure",
            "--disable-content-trust=false",
            "--an-option-of-tomorrow a",
            "-o type=docker,compression=zstd",
            "--build-context a=docker-image://b",
            "--build-context a=folder",
        ] {
            assert_ne!(bytes(&format!("docker build {options} .")), plain, "{options}");
        }
    }

    #[test]
    fn order_counts_only_where_the_image_depends_on_it() {
        for (one, other) in [
            ("--build-arg A=1 --build-arg B=2", "--build-arg=B=2 --build-arg A=1"),
            ("--build-arg A=1 --build-arg A=2", "--build-arg A=2"),
            ("--label a=1 --label b=2 --label a=3", "--label b=2 --label a=3"),
            ("--network none --target a", "--target A --network host --network=none"),
            ("--squash=false --squash=1", "--squash"),
            (
                "--build-context a=docker-image://x --build-context b=y",
                "--build-context b=z --build-context a=docker-image://x",
            ),
            ("-o type=docker,dest=a,name=b,push=true", "-o name=c,type=docker"),
            ("-q --shm-size 1g --add-host a:1", "--add-host=a:1 --shm-size=1g"),
        ] {
            let line = |options: &str| format!("docker build {options} .");
            assert_eq!(bytes(&line(one)), bytes(&line(other)), "{one} / {other}");
        }
        for (one, other) in [
            ("--add-host a:1 --add-host a:2", "--add-host a:2 --add-host a:1"),
            ("--build-arg A=1", "--build-arg A=2"),
            ("--build-arg A=1", "--label A=1"),
            ("--annotation x=y --annotation 1", "--annotation 1"),
        ] {
            let line = |options: &str| format!("docker build {options} .");
            assert_ne!(bytes(&line(one)), bytes(&line(other)), "{one} / {other}");
        }
    }

    #[test]
    fn variables_give_values_and_count() {
        let read = |line: &str| read_with(line, &VARIABLES).unwrap();
        let options = read("docker build --build-arg FROM_ENV --build-arg EMPTY --build-arg NO .");
        let args: Vec<_> =
            options.build_args.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(args, [("EMPTY", ""), ("FROM_ENV", "e")]);
        let shown: Vec<_> = options.entries.iter().map(Entry::to_string).collect();
        assert_eq!(shown, ["--build-arg EMPTY", "--build-arg FROM_ENV", "SOURCE_DATE_EPOCH=7"]);
        assert!(options.never_skip.is_empty());
        let env = read("podman build --env FROM_ENV --env A=b .");
        let values: Vec<_> =
            env.entries.iter().filter(|it| it.name == "env").map(|it| it.value.as_str()).collect();
        assert_eq!(values, ["FROM_ENV=e", "A=b"]);
        let policy = [("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", "p.json")];
        let why = read_with("docker build .", &policy).unwrap().never_skip;
        assert_eq!(why.len(), 1, "{why:?}");
    }

    #[test]
    fn what_the_command_names_is_returned() {
        let options = read(
            "docker build -f a/D --target t --build-arg BUILDKIT_SYNTAX=x/y -f b/D \
             --build-context z=1 --build-context c=../d --build-context z=docker-image://i dir",
        );
        assert_eq!(options.context, Context::Folder("dir".into()));
        assert_eq!(options.dockerfiles, [PathBuf::from("b/D")]);
        assert_eq!((options.target.as_deref(), options.syntax()), (Some("t"), Some("x/y")));
        let names: Vec<_> = options.contexts.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["c", "z"]);
        let options = read("podman build -f a,b -f c --ignorefile i --from x:1 --env-file f");
        assert_eq!(options.context, Context::Folder(".".into()));
        assert_eq!(options.dockerfiles, ["a", "b", "c"].map(PathBuf::from));
        assert_eq!(options.ignore_file, Some(PathBuf::from("i")));
        assert_eq!(options.from.as_deref(), Some("x:1"));
        assert_eq!(options.files, [("--env-file".to_owned(), PathBuf::from("f"))]);
        assert_eq!(read("docker build -").context, Context::Stdin);
        assert_eq!(read("docker build -- x").context, Context::Folder("x".into()));
    }

    #[test]
    fn some_builds_are_never_skipped() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (line, is_skippable) in [
            ("docker build .", true),
            ("docker build --pull .", false),
            ("docker build --pull=false .", true),
            ("docker build --pull --pull=false .", true),
            ("docker build --no-cache .", false),
            ("docker build --no-cache=0 .", true),
            ("docker build --no-cache-filter a .", false),
            ("docker build --no-cache-filter f .", false),
            ("podman build --pull=newer .", false),
            ("podman build --pull=never .", true),
            ("podman build --pull-always .", false),
            ("podman build -v /a:/b .", false),
            ("podman build -f Containerfile.in .", false),
            ("docker build -f Dockerfile.in .", true),
            ("docker build -f https://h/Dockerfile .", false),
            ("docker build https://h/a.git", false),
            ("docker build https://h/a.git#COMMIT", true),
            ("docker build github.com/a/b", false),
            ("docker build --build-context a=https://h/x.git .", false),
            ("docker build --build-context a=https://h/x.git#COMMIT .", true),
            ("docker build --build-context a=oci-layout://x .", false),
            ("docker build --policy filename=a .", false),
            ("docker build --source-policy-file p.json .", false),
            ("podman build --build-arg-file f .", false),
            ("podman build -f a .", true),
            ("podman build -f a,b .", false),
            ("podman build -f a -f b .", false),
            ("docker build -f a -f b .", true),
            ("docker build --build-arg A=1 --build-arg A .", false),
            ("docker build --build-arg A=\u{fffd} .", false),
        ] {
            let line = line.replace("COMMIT", commit);
            let why = read(&line).never_skip;
            assert_eq!(why.is_empty(), is_skippable, "{line}: {why:?}");
        }
        let labels = |value| {
            let variables = [("BUILDX_GIT_LABELS", value)];
            read_with("docker build .", &variables).unwrap().never_skip.len()
        };
        assert_eq!(["full", "1", "0", ""].map(labels), [1, 1, 0, 0]);
    }

    #[test]
    fn variables_that_a_wrapper_may_change_are_not_believed() {
        let command =
            Command::new(["docker", "build", "--build-arg", "A", "."].map(OsString::from).into());
        let variables =
            Variables { get: &|name| (name == "A").then(|| "x".into()), are_known: false };
        let read = Options::read(command.build().unwrap(), Engine::Docker, &variables).unwrap();
        assert_eq!(read.never_skip, ["a program in front may change the variable A"]);
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for line in [
            "docker build --label buildlock.inputs=x .",
            "docker build --label buildlock.inputs .",
            "docker build --build-context a .",
            "docker build",
            "docker build a b",
        ] {
            assert!(read_with(line, &[]).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(words in proptest::collection::vec(
            prop_oneof![
                "--?[a-z-]{0,12}=?\\PC{0,8}",
                proptest::sample::select(vec![
                    "-t", "--label", "--build-arg", "--build-context", "-o", "--pull", "a=b,c",
                ]).prop_map(str::to_owned),
            ], 0..9)
        ) {
            let argv = ["docker", "build"].map(str::to_owned).into_iter().chain(words);
            let command = Command::new(argv.map(OsString::from).collect());
            let variables = Variables { get: &|_| None, are_known: true };
            _ = Options::read(command.build().unwrap(), Engine::Docker, &variables);
        }
    }
}
