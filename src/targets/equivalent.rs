//! The `docker build` that is equivalent to what compose or bake does for one target, and the label
//! that `--if-changed` gives its image.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use super::bake::outputs;
use super::target::{LabelledBy, Target};
use crate::command::{Command, ComposeOrBake, Given, OTHER_TARGETS, Tool};

/// Keys of a definition that are read in a way of their own, or do not influence the image.
const SPECIAL: [&str; 5] = ["context", "dockerfile", "name", "output", "tags"];

/// Keys whose name as an option of `docker build` is another one.
const OPTIONS: [(&str, &str); 8] = [
    ("args", "build-arg"),
    ("labels", "label"),
    ("contexts", "build-context"),
    ("additional-contexts", "build-context"),
    ("platforms", "platform"),
    ("extra-hosts", "add-host"),
    ("ulimits", "ulimit"),
    ("secrets", "secret"),
];

/// Options of `compose build` that `docker build` has as well. Bake's are part of its plan.
const GIVEN: [&str; 8] =
    ["build-arg", "memory", "m", "no-cache", "provenance", "pull", "push", "sbom"];

/// A build command with a label for its image, and the file that it reads in place of its own.
pub(crate) struct Labelled {
    pub(crate) command: Command,
    _file: Option<OwnedFd>,
}

impl From<Command> for Labelled {
    fn from(command: Command) -> Self {
        Labelled { command, _file: None }
    }
}

impl Target {
    /// Returns the `docker build` that reads what the build of this target reads. Compose and bake
    /// build with buildx, except compose with `DOCKER_BUILDKIT=0`.
    ///
    /// # Errors
    /// There is no such command.
    pub(crate) fn equivalent(&self, command: &Command) -> Result<Command> {
        let (Some(call), Some(client)) = (command.compose_or_bake(), command.client()) else {
            bail!("not a call of compose or bake");
        };
        let Some(labelled_by) = &self.labelled_by else {
            bail!(
                "--if-changed does not know what docker-compose 1 reads; use Compose 2 (docker \
                 compose), or call docker build for each image"
            );
        };
        let mut words = client.wrapper_words.clone();
        words.push(client.program.clone());
        words.extend(client.globals.iter().cloned());
        let is_legacy = *labelled_by != LabelledBy::Option
            && client.variable("DOCKER_BUILDKIT").is_some_and(|value| value == "0");
        if !is_legacy {
            words.push("buildx".into());
        }
        words.push("build".into());
        words.extend(self.options(call, command.builder())?.into_iter().map(OsString::from));
        Ok(Command::new(words))
    }

    /// Returns the words after `build`.
    fn options(&self, call: &ComposeOrBake, builder: Option<&str>) -> Result<Vec<String>> {
        let text = |key: &str| self.definition[key].as_str().map(|text| self.unescaped(text));
        let context = text("context").unwrap_or_else(|| ".".to_owned());
        let mut words = Vec::new();
        let Some(definition) = self.definition.as_object() else { bail!("no definition") };
        for (key, value) in definition {
            let key = key.replace('_', "-");
            if key == "dockerfile-inline" {
                bail!(
                    "--if-changed: {} has its Dockerfile in the file itself (dockerfile_inline), \
                     which buildlock does not read; put it into a file of its own",
                    self.name
                );
            }
            if SPECIAL.contains(&&*key) {
                continue;
            }
            if !self.needs.is_empty() && matches!(&*key, "contexts" | "additional-contexts") {
                // Those are built again with this one, from inputs of their own.
                words.push(format!("--{OTHER_TARGETS}={}", self.needs.join(",")));
                continue;
            }
            let named = OPTIONS.iter().find(|(of, _)| *of == key).map(|(_, option)| *option);
            self.add(named.unwrap_or(&key), value, &mut words);
        }
        words.extend(outputs(&self.definition).iter().map(|output| format!("--output={output}")));
        let given = call.given.iter().filter(|it| GIVEN.contains(&&*it.name));
        words.extend(given.filter(|_| call.tool == Tool::Compose).map(option));
        words.extend(builder.map(|builder| format!("--builder={builder}")));
        if let Some(file) = text("dockerfile") {
            // Of a context elsewhere, no file is read here.
            words.push(format!("--file={}", Path::new(&context).join(file).display()));
        }
        words.extend(["--".to_owned(), context]);
        Ok(words)
    }

    /// Adds an option, once for each item of a list and each pair of an object.
    fn add(&self, name: &str, value: &Value, words: &mut Vec<String>) {
        match value {
            Value::Null | Value::Bool(false) => {}
            Value::Bool(true) if matches!(name, "no-cache" | "pull") => {
                words.push(format!("--{name}"));
            }
            Value::Array(items) if name == "platform" => {
                let platforms: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                if !platforms.is_empty() {
                    words.push(format!("--platform={}", platforms.join(",")));
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.add(name, item, words)),
            Value::Object(pairs) => {
                for (key, value) in pairs {
                    let value = self.text(value);
                    words.push(format!("--{name}={key}={value}"));
                }
            }
            other => words.push(format!("--{name}={}", self.text(other))),
        }
    }

    fn text(&self, value: &Value) -> String {
        match value {
            Value::String(text) => self.unescaped(text),
            other => other.to_string(),
        }
    }

    /// Returns a text of the definition as the build sees it. Compose escapes `$` in what it prints.
    fn unescaped(&self, text: &str) -> String {
        match self.labelled_by {
            Some(LabelledBy::File(_)) => text.replace("$$", "$"),
            _ => text.to_owned(),
        }
    }

    /// Returns the build command with a label, `NAME=VALUE`, for the image of this target.
    ///
    /// # Errors
    /// Compose's file cannot be written.
    pub(crate) fn with_label(&self, command: &Command, label: &str) -> Result<Labelled> {
        let Some(call) = command.compose_or_bake() else { bail!("not a call of compose or bake") };
        let mut words = command.words().to_vec();
        match &self.labelled_by {
            Some(LabelledBy::Option) => {
                let set = format!("{}.labels.{label}", self.name);
                words.splice(call.at + 1..call.at + 1, ["--set".into(), set.into()]);
                Ok(Command::new(words).into())
            }
            Some(LabelledBy::File(project)) => {
                let file = labelled_project(project, &self.name, label)?;
                let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
                let words = with_file(&words, call, path);
                Ok(Labelled { command: Command::new(words), _file: Some(file) })
            }
            None => bail!("docker-compose 1 is given no label"),
        }
    }
}

fn option(given: &Given) -> String {
    let dashes = if given.name.len() == 1 { "-" } else { "--" };
    match &given.value {
        Some(value) => format!("{dashes}{}={value}", given.name),
        None => format!("{dashes}{}", given.name),
    }
}

/// Writes compose's resolved configuration, with a label for the image of one service, to a file
/// that has no name: it holds secrets.
fn labelled_project(project: &Value, service: &str, label: &str) -> Result<OwnedFd> {
    let mut project = project.clone();
    let build = &mut project["services"][service]["build"];
    let (name, value) = label.split_once('=').context("a label without a value")?;
    if !build["labels"].is_object() {
        build["labels"] = json!({});
    }
    build["labels"][name] = value.into();
    let file = rustix::fs::memfd_create("compose.json", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(project.to_string().as_bytes())?;
    Ok(file.into())
}

/// Returns the words of a call of compose with another file in the place of those that it names.
/// Everything in that file is resolved, so the project's folder does not matter.
fn with_file(words: &[OsString], call: &ComposeOrBake, path: String) -> Vec<OsString> {
    let mut replaced = words[..call.options_at].to_vec();
    replaced.extend(["-f".into(), path.into()]);
    if call.value(&["project-directory", "workdir"]).is_none() {
        replaced.extend(["--project-directory".into(), ".".into()]);
    }
    let mut rest = words[call.options_at..call.at].iter();
    while let Some(word) = rest.next() {
        let text = word.to_string_lossy();
        if text == "-f" || text == "--file" {
            rest.next();
        } else if !(text.starts_with("--file=") || text.starts_with("-f")) {
            replaced.push(word.clone());
        }
    }
    replaced.extend_from_slice(&words[call.at..]);
    replaced
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::sync::Arc;

    use super::*;

    fn command(line: &str) -> Command {
        Command::new(shlex::split(line).unwrap().into_iter().map(OsString::from).collect())
    }

    fn target(definition: Value, labelled_by: LabelledBy) -> Target {
        Target {
            name: "api".to_owned(),
            tags: vec!["api:1".parse().unwrap()],
            others: Vec::new(),
            needs: Vec::new(),
            definition,
            labelled_by: Some(labelled_by),
        }
    }

    fn equivalent(line: &str, target: &Target) -> String {
        let words = target.equivalent(&command(line)).unwrap();
        let words: Vec<_> = words.words().iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn build_of_a_service_becomes_a_docker_build() {
        let build = json!({
            "context": "/src", "dockerfile": "sub/Dockerfile", "target": "t", "network": "none",
            "args": { "A": "1$$2", "N": 3 }, "labels": { "l": "x" }, "pull": true, "no_cache": false,
            "additional_contexts": { "lib": "/lib" }, "platforms": ["linux/amd64", "linux/arm64"],
            "extra_hosts": ["a=1.2.3.4"], "tags": ["x:2"], "shm_size": "64", "x_new": ["y"],
        });
        let service = target(build, LabelledBy::File(Arc::new(json!({}))));
        let line = "sudo -n docker --context ci compose -f a.yaml build --build-arg B=2 -q api";
        assert_eq!(
            equivalent(line, &service),
            "sudo -n docker --context ci buildx build --target=t --network=none \
             --build-arg=A=1$2 --build-arg=N=3 --label=l=x --pull --build-context=lib=/lib \
             --platform=linux/amd64,linux/arm64 --add-host=a=1.2.3.4 --shm-size=64 --x-new=y \
             --build-arg=B=2 --file=/src/sub/Dockerfile -- /src"
        );
        let old = "env DOCKER_BUILDKIT=0 docker compose build api";
        assert!(equivalent(old, &service).starts_with("env DOCKER_BUILDKIT=0 docker build "));
        assert!(
            equivalent("docker-compose build api", &service).starts_with("docker buildx build")
        );
    }

    #[test]
    fn target_of_bake_becomes_a_docker_build() {
        let definition = json!({
            "args": { "A": "1$$2" }, "dockerfile": "Dockerfile", "tags": ["x:2"],
            "contexts": { "lib": "lib" }, "output": [{ "type": "docker" }],
        });
        let bake = target(definition, LabelledBy::Option);
        let expected = "docker buildx build --build-arg=A=1$$2 --build-context=lib=lib \
                        --output=type=docker --builder=b --file=./Dockerfile -- .";
        assert_eq!(equivalent("docker buildx --builder b bake api", &bake), expected);
        assert_eq!(equivalent("docker-buildx bake --builder b api", &bake), expected);
        let reads = Target { needs: vec!["base".to_owned()], ..bake };
        assert!(equivalent("docker buildx bake api", &reads).contains("--other-targets=base"));
    }

    #[test]
    fn dockerfile_inside_the_file_is_refused() {
        let inline = target(json!({ "dockerfile_inline": "FROM x" }), LabelledBy::Option);
        let error = inline.equivalent(&command("docker buildx bake api")).unwrap_err();
        assert!(error.to_string().contains("dockerfile_inline"), "{error}");
    }

    #[test]
    fn label_is_given_by_an_option_or_by_a_file() {
        let bake = target(json!({}), LabelledBy::Option);
        let labelled = bake.with_label(&command("docker buildx bake -f x api"), "a.b=c").unwrap();
        let expected = command("docker buildx bake --set api.labels.a.b=c -f x api");
        assert_eq!(labelled.command.words(), expected.words());

        let project = json!({ "services": { "api": { "build": { "labels": { "x": "y" } } } } });
        let service = target(json!({}), LabelledBy::File(Arc::new(project)));
        let line = "docker compose -f a --file b --file=c -fd -p p --profile q build --pull api";
        let labelled = service.with_label(&command(line), "a.b=c").unwrap();
        let file = labelled._file.unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let expected = format!(
            "docker compose -f {path} --project-directory . -p p --profile q build --pull api"
        );
        assert_eq!(labelled.command.words(), command(&expected).words());
        let mut text = String::new();
        File::open(path).unwrap().read_to_string(&mut text).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        let labels = &written["services"]["api"]["build"]["labels"];
        assert_eq!(labels, &json!({ "x": "y", "a.b": "c" }));
        assert!(
            rustix::io::fcntl_getfd(file.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
        );
    }
}
