//! Commands of the engines that build one image: `docker build`, `docker buildx build`,
//! `podman build`, `buildah bud`, `nerdctl build`.

use std::path::PathBuf;

use crate::command::call::{Call, ClientCall, Known};
use crate::command::engine::Engine;
use crate::command::options::{Names, Opt, Valued, is_option, read_option};
use crate::command::output::{goes_elsewhere, goes_to_engine, image_names};
use crate::command::task::{BuildOptions, Given, Task};

/// The options of all these commands take a value, except for these.
///
/// The list comes from the programs' own help and source. It includes hidden options, and global
/// ones that may follow the verb.
const VALUED: Valued = Valued::AllBut(Names {
    short: "qD",
    long: &[
        "all-platforms",
        "check",
        "compat-volumes",
        "compress",
        "created-annotation",
        "debug",
        "debug-full",
        "detach",
        "disable-compression",
        "disable-content-trust",
        "experimental",
        "force-compression",
        "force-rm",
        "help",
        "http-proxy",
        "identity-label",
        "inherit-annotations",
        "inherit-labels",
        "insecure-registry",
        "kube-hide-dupe",
        "layers",
        "load",
        "log-rusage",
        "logsplit",
        "no-cache",
        "no-hostname",
        "no-hosts",
        "omit-history",
        "pull",
        "pull-always",
        "pull-never",
        "purge",
        "push",
        "quiet",
        "rewrite-timestamp",
        "rm",
        "save-stages",
        "selinux-enabled",
        "skip-unused-stages",
        "squash",
        "squash-all",
        "stage-labels",
        "stdin",
        "stream",
        "syslog",
        "tls-verify",
        "trace",
        "transient-store",
    ],
});

pub(super) fn recognize(call: &Call<'_>) -> Option<Known> {
    let client_call = call.client_call.as_ref().filter(|it| is_build(call.name, it))?;
    let client = client_call.client.clone();
    let mut builder = client_call.builder.clone();
    let build = read(client_call.rest, client.engine, |opt| builder.note(opt));
    Some(call.known(client, Task::Build(build), builder))
}

fn is_build(program: &str, call: &ClientCall<'_>) -> bool {
    match call.verb {
        Some("build") => true,
        Some("b") => call.builder.is_buildx,
        Some("bud" | "build-using-dockerfile") => program == "buildah",
        _ => false,
    }
}

/// Reads the options of a build command. Its only operand is the context, which may stand anywhere.
fn read(words: &[&str], engine: Engine, mut each: impl FnMut(Opt<'_>)) -> BuildOptions {
    let mut build =
        BuildOptions { reads_stdin: words.iter().any(names_stdin), ..BuildOptions::default() };
    let mut platform = PlatformParts::default();
    let mut at = 0;
    while let Some(&word) = words.get(at) {
        if word == "--" {
            let operands = &words[at + 1..];
            build.reads_stdin |= operands.contains(&"-");
            build.operands.extend(operands.iter().map(|word| (*word).to_owned()));
            break;
        }
        if !is_option(word) {
            build.reads_stdin |= word == "-";
            build.operands.push(word.to_owned());
            at += 1;
            continue;
        }
        at += read_option(&words[at..], VALUED, |opt| {
            platform.note(opt);
            note(&mut build, opt);
            build.given.push(Given::of(opt, VALUED));
            each(opt);
        });
    }
    if build.platforms.is_empty() {
        build.platforms.extend(platform.joined());
    }
    // buildx and nerdctl ignore these names if there is a -t (buildx, build/opt.go). podman always
    // ignores them.
    if build.tags.is_empty() && engine != Engine::Podman {
        let of_images = build.outputs.iter().filter(|output| !goes_elsewhere(output));
        build.tags = of_images.flat_map(|output| image_names(output)).collect();
    }
    build.tags.extend(build.manifest.clone());
    build
}

fn names_stdin(word: &&str) -> bool {
    ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].iter().any(|stdin| word.contains(stdin))
}

fn note(build: &mut BuildOptions, opt: Opt<'_>) {
    let value = || opt.value.unwrap_or_default().to_owned();
    match opt.name {
        "t" | "tag" => build.tags.push(value()),
        "o" | "output" => note_output(build, value()),
        "manifest" => build.manifest = opt.value.map(str::to_owned),
        "f" | "file" => build.reads_stdin |= opt.value == Some("-"),
        "load" => build.load = opt.is_on(),
        "push" => build.push = opt.is_on(),
        "build-arg" => {
            let namespace = opt.value.and_then(|arg| arg.strip_prefix("BUILDKIT_CACHE_MOUNT_NS="));
            build.cache_namespace = namespace.map(str::to_owned).or(build.cache_namespace.take());
        }
        "platform" => build.platforms.extend(value().split(',').map(|p| p.trim().to_owned())),
        "metadata-file" => build.side_outputs.push(format!("--metadata-file {}", value())),
        // docker writes no file if the name is empty.
        "iidfile" => build.id_file = opt.value.filter(|name| !name.is_empty()).map(PathBuf::from),
        "q" | "quiet" => build.prints_id = opt.is_on(),
        "check" if opt.is_on() => build.no_build_option = Some("--check".to_owned()),
        "call" if opt.value.is_some_and(|call| call != "build") => {
            build.no_build_option = Some(format!("--call={}", value()));
        }
        _ => {}
    }
}

fn note_output(build: &mut BuildOptions, output: String) {
    if goes_elsewhere(&output) {
        build.side_outputs.push(format!("-o {output}"));
    }
    build.load |= goes_to_engine(&output);
    build.outputs.push(output);
}

/// podman's `--os`, `--arch` and `--variant`.
#[derive(Default)]
struct PlatformParts {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl PlatformParts {
    fn note(&mut self, opt: Opt<'_>) {
        let part = match opt.name {
            "os" => &mut self.os,
            "arch" => &mut self.architecture,
            "variant" => &mut self.variant,
            _ => return,
        };
        *part = opt.value.map(str::to_owned);
    }

    /// Joins them to a platform as `--platform` would name it, if any is given.
    fn joined(self) -> Option<String> {
        let PlatformParts { os, architecture, variant } = self;
        if os.is_none() && architecture.is_none() && variant.is_none() {
            return None;
        }
        let os = os.unwrap_or_else(|| "linux".to_owned());
        let architecture = architecture.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let parts = [Some(os), Some(architecture), variant];
        Some(parts.into_iter().flatten().collect::<Vec<_>>().join("/"))
    }
}
