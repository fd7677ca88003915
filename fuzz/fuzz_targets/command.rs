//! Reads the words of build commands. No list of words causes a panic, no secret is shown, and the
//! tags found are those that docker's client would use.
//!
//! These secrets are never shown, whatever words stand around them, in the text of a script, too:
//!
//! - the value of `--build-arg NAME=…`, `--creds`, `--password` and `--token`
//! - everything in `--secret` but the ID
//! - the user and password in a URL
//! - fields with a secret name, as in `type=s3,secret_access_key=…`
//! - the value of `NAME=…` between `env` or `sudo` and the program
//!
//! The input serves as a list of words, split at NUL, or at the line ends if it contains no NUL.
//! `arbitrary` also makes two commands from it: one that contains secrets, and one with known tags.
#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use arbitrary::{Arbitrary, Unstructured};
use buildlock::command::{Command, describe};
use buildlock::reference::Tag;
use libfuzzer_sys::fuzz_target;

/// The text that every secret contains, and nothing else does.
const MARK: &str = "s3cr3tMARK";
/// The longest text that is shown, in bytes, including the "…" at its end.
const SHOWN_MAX: usize = 4096 + 3;

fn read(words: &[&str]) -> Command {
    Command::new(words.iter().map(OsString::from).collect())
}

fn check_shown(shown: &str) {
    assert!(!shown.contains(char::is_control), "{shown:?}");
    assert!(!shown.contains(['\u{202e}', '\u{2066}', '\u{2028}', '\u{200b}']), "{shown:?}");
    assert!(shown.len() <= SHOWN_MAX, "{} bytes", shown.len());
}

fn any_words(data: &[u8]) {
    let separator = if data.contains(&0) { 0 } else { b'\n' };
    let words: Vec<OsString> =
        data.split(|&c| c == separator).map(|word| OsStr::from_bytes(word).into()).collect();
    let command = Command::new(words.clone());
    check_shown(&command.to_string());
    check_shown(&describe(command.arguments()));
    assert_eq!(command.program(), words[0]);
    assert_eq!(command.arguments(), &words[1..]);
    if let Some(client) = command.client() {
        assert!(client.globals.len() + client.wrapper_words.len() < words.len() + 1);
        client.global_flags();
        client.config_folder();
        client.variable("DOCKER_HOST");
        check_shown(&client.to_string());
    }
    let text: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
    let Some(words) = text else { return };
    let flags = match words.as_slice() {
        ["docker", "build", flags @ ..] | ["docker", "image" | "builder", "build", flags @ ..] => {
            flags
        }
        ["docker", "buildx", "build" | "b", flags @ ..] => flags,
        _ => return,
    };
    if let Some(tags) = docker_tags(flags).filter(|tags| tags.iter().all(|tag| is_tag(tag))) {
        let build = command.build().expect("a build command");
        assert_eq!(build.tags, tags, "{words:?}");
    }
}

fn is_tag(text: &str) -> bool {
    text.parse::<Tag>().is_ok()
}

/// Returns the values of `-t` and `--tag` as pflag's `parseArgs` finds them. Returns `None` if
/// docker would refuse the command, or if this function does not know a flag.
fn docker_tags(words: &[&str]) -> Option<Vec<String>> {
    const VALUES: &[&str] = &[
        "add-host",
        "allow",
        "annotation",
        "attest",
        "build-arg",
        "build-context",
        "builder",
        "cache-from",
        "cache-to",
        "call",
        "cgroup-parent",
        "file",
        "iidfile",
        "label",
        "memory",
        "metadata-file",
        "network",
        "no-cache-filter",
        "output",
        "platform",
        "progress",
        "provenance",
        "sbom",
        "secret",
        "shm-size",
        "ssh",
        "tag",
        "target",
        "ulimit",
        "t",
        "f",
        "o",
        "m",
        "c",
    ];
    const SWITCHES: &[&str] = &[
        "check", "load", "no-cache", "pull", "push", "quiet", "rm", "force-rm", "compress",
        "squash", "q",
    ];
    const BOOLEANS: &[&str] =
        &["1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"];
    let mut tags = Vec::new();
    let mut set = |name: &str, value: &str| -> Option<()> {
        if SWITCHES.contains(&name) {
            return BOOLEANS.contains(&value).then_some(());
        }
        if matches!(name, "t" | "tag") {
            tags.push(value.to_owned());
        }
        VALUES.contains(&name).then_some(())
    };
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, value),
                None if SWITCHES.contains(&long) => (long, "true"),
                None => (long, words.next()?),
            };
            if name.len() < 2 {
                return None;
            }
            set(name, value)?;
        } else if let Some(mut letters) = word.strip_prefix('-').filter(|it| !it.is_empty()) {
            while let Some(letter) = letters.chars().next() {
                let (name, rest) = letters.split_at(letter.len_utf8());
                if rest.len() > 1 && rest.starts_with('=') {
                    set(name, &rest[1..])?;
                    break;
                }
                if SWITCHES.contains(&name) {
                    set(name, "true")?;
                    letters = rest;
                    continue;
                }
                set(name, if rest.is_empty() { words.next()? } else { rest })?;
                break;
            }
        }
    }
    Some(tags)
}

/// The words in front of the program, which may set a variable.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Front {
    Nothing,
    Env,
    EnvWithOptions,
    Sudo,
    NiceEnv,
    TimeoutSudo,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Way {
    OneWord,
    TwoWords,
    Script,
    ScriptTwoWords,
    ScriptTab,
    ScriptNextLine,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum What {
    BuildArg,
    Secret,
    SecretEnv,
    Creds,
    Password,
    Token,
}

/// A part of a command, with or without a secret.
#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Word(&'a str),
    Known(u8),
    Flag(What, Way, &'a str),
    Url { scheme: u8, user: bool, before: &'a str, behind: &'a str },
    Fields { name: u8, before: &'a str, quoted: bool },
}

#[derive(Arbitrary, Debug)]
struct Secretive<'a> {
    front: Front,
    name: &'a str,
    parts: Vec<Part<'a>>,
}

const KNOWN: &[&str] = &[
    "docker",
    "podman",
    "build",
    "buildx",
    "-t",
    "a",
    ".",
    "--",
    "-",
    "sudo",
    "env",
    "-S",
    "sh",
    "-c",
    "--build-arg",
    "--secret",
    "--password",
    "--creds",
    "--token",
    "--build-arg=",
    "=",
    "://",
    "@",
    "--password-stdin",
    "--opt",
    "build-arg:",
    ",",
    "'",
    "\"",
    "\\",
    "A=b",
    "id=",
    "type=s3,",
    "https://",
    "--context",
    "-e",
    "--cache-to",
];

impl Part<'_> {
    fn words(&self) -> Vec<String> {
        match *self {
            Part::Word(word) => vec![word.to_owned()],
            Part::Known(at) => vec![KNOWN[usize::from(at) % KNOWN.len()].to_owned()],
            Part::Flag(what, way, text) => {
                let (flag, value) = match what {
                    What::BuildArg => ("--build-arg", format!("TOKEN={MARK}")),
                    What::Secret => ("--secret", format!("id=t,src={MARK}")),
                    What::SecretEnv => ("--secret", format!("type=env,env={MARK},id=t")),
                    What::Creds => ("--creds", format!("user:{MARK}")),
                    What::Password => ("--password", MARK.to_owned()),
                    What::Token => ("--token", MARK.to_owned()),
                };
                match way {
                    Way::OneWord => vec![format!("{flag}={value}")],
                    Way::TwoWords => vec![flag.to_owned(), value],
                    Way::Script => vec![format!("{text} {flag}={value} {text}")],
                    Way::ScriptTwoWords => vec![format!("{text} {flag} {value} {text}")],
                    Way::ScriptTab => vec![format!("{text}\t{flag} \t{value};{text}")],
                    Way::ScriptNextLine => vec![format!("{text} {flag} \\\n  {value}\n{text}")],
                }
            }
            Part::Url { scheme, user, before, behind } => {
                let scheme = ["https", "http", "git+https", "s3"][usize::from(scheme) % 4];
                let user = if user { "user:" } else { "" };
                vec![format!("{before}{scheme}://{user}{MARK}@host/{behind}")]
            }
            Part::Fields { name, before, quoted } => {
                let names = ["secret_access_key", "session_token", "Password", "client-secret"];
                let name = names[usize::from(name) % names.len()];
                let quote = if quoted { "\"" } else { "" };
                vec![format!("{before}{quote}type=s3,bucket=b,{name}={MARK}{quote},region=x")]
            }
        }
    }
}

fn assert_no_secret_is_shown(command: &Secretive<'_>) {
    let letters: String = command.name.chars().filter(char::is_ascii_alphanumeric).collect();
    let assignment = format!("N{letters}={MARK}");
    let front = match command.front {
        Front::Nothing => vec![],
        Front::Env => vec!["env", "A=b", &assignment],
        Front::EnvWithOptions => vec!["env", "-u", "X", &assignment, "A=b"],
        Front::Sudo => vec!["sudo", "-n", &assignment],
        Front::NiceEnv => vec!["nice", "-n", "5", "/usr/bin/env", "--", &assignment],
        Front::TimeoutSudo => vec!["timeout", "-k", "5", "10m", "sudo", "-u", "r", &assignment],
    };
    let mut words: Vec<String> = front.into_iter().map(str::to_owned).collect();
    words.extend(command.parts.iter().flat_map(Part::words));
    let all = words.concat();
    let placed = command.parts.iter().filter(|it| !matches!(it, Part::Word(_) | Part::Known(_)));
    let placed = placed.count() + usize::from(!matches!(command.front, Front::Nothing));
    if all.matches(MARK).count() != placed {
        // The fuzzer has produced the text of the mark itself, or split one.
        return;
    }
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let shown = Command::new(words.clone()).to_string();
    check_shown(&shown);
    assert!(!shown.contains(MARK), "{words:?} is shown as {shown}");
}

/// A word of `docker build`, by its meaning to docker.
#[derive(Arbitrary, Debug)]
enum Word<'a> {
    Tag { name: u8, form: u8 },
    Value { flag: u8, one_word: bool, value: &'a str },
    Switch(u8),
    Context(&'a str),
}

#[derive(Arbitrary, Debug)]
struct Build<'a> {
    front: u8,
    words: Vec<Word<'a>>,
    end: Option<Vec<&'a str>>,
}

fn assert_known_tags_are_found(build: &Build<'_>) {
    const FRONTS: &[&[&str]] = &[
        &["docker", "build"],
        &["docker", "buildx", "build"],
        &["docker", "-D", "--context", "build", "image", "build"],
        &["docker", "--host=unix:///s", "-c", "x", "builder", "build"],
        &["docker", "buildx", "--builder", "b", "b"],
        &["docker-buildx", "build"],
        &["sudo", "-u", "root", "A=b", "/usr/bin/docker", "build"],
        &["env", "-u", "X", "Y=z", "nice", "-n", "5", "docker", "build"],
        &["timeout", "-k", "5", "10m", "podman", "--root", "/r", "build"],
        &["nerdctl", "-n", "k8s.io", "build"],
    ];
    let front = FRONTS[usize::from(build.front) % FRONTS.len()];
    let mut words: Vec<String> = front.iter().map(|&word| word.to_owned()).collect();
    let mut expected = Vec::new();
    for word in &build.words {
        match *word {
            Word::Tag { name, form } => {
                let tag = format!("env{name}:x");
                match form % 6 {
                    0 => words.extend(["-t".to_owned(), tag.clone()]),
                    1 => words.extend(["--tag".to_owned(), tag.clone()]),
                    2 => words.push(format!("--tag={tag}")),
                    3 => words.push(format!("-t{tag}")),
                    4 => words.push(format!("-qt={tag}")),
                    _ => words.extend(["-qt".to_owned(), tag.clone()]),
                }
                expected.push(tag);
            }
            Word::Value { flag, one_word, value } => {
                let long = ["file", "build-arg", "label", "target", "network", "cache-from"];
                let long = long[usize::from(flag) % long.len()];
                match (flag % 3, one_word) {
                    (0, true) if !value.is_empty() => words.push(format!("-f{value}")),
                    (0, _) => words.extend(["-f".to_owned(), value.to_owned()]),
                    (_, true) => words.push(format!("--{long}={value}")),
                    (_, false) => words.extend([format!("--{long}"), value.to_owned()]),
                }
            }
            Word::Switch(at) => {
                let switches = ["-q", "--no-cache", "--pull", "--rm", "--squash", "--quiet=true"];
                words.push(switches[usize::from(at) % switches.len()].to_owned());
            }
            Word::Context(text) if text.starts_with('-') => words.push("-".to_owned()),
            Word::Context(text) => words.push(text.to_owned()),
        }
    }
    if let Some(end) = &build.end {
        words.push("--".to_owned());
        words.extend(end.iter().map(|&word| word.to_owned()));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = read(&words);
    assert_eq!(command.build().expect("a build command").tags, expected, "{words:?}");
}

fuzz_target!(|data: &[u8]| {
    any_words(data);
    if let Ok(command) = Secretive::arbitrary(&mut Unstructured::new(data)) {
        assert_no_secret_is_shown(&command);
    }
    if let Ok(build) = Build::arbitrary(&mut Unstructured::new(data)) {
        assert_known_tags_are_found(&build);
    }
});
