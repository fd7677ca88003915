//! Image references: parsing, the canonical form, and the hash that names a lock file.
//!
//! The rules are those of the distribution reference grammar
//! (<https://pkg.go.dev/github.com/distribution/reference>), as Docker's client applies them to
//! `-t`. A name without a registry belongs to Docker Hub, and is shown without it.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Longest name (registry and repository together) that the grammar allows, in characters.
const NAME_MAX: usize = 255;
/// The registry of names that do not say one.
pub const DOCKER_HUB: &str = "docker.io";
/// Longest tag that the grammar allows, in characters.
const TAG_MAX: usize = 128;

/// A name that a build can give to its image.
///
/// Two tags are equal if they name the same image for Docker.
#[derive(Clone, Debug)]
pub struct Tag {
    canonical: String,
    podman: String,
}

impl Tag {
    /// Returns Docker's familiar form with an explicit tag: `env:latest` for
    /// `docker.io/library/env`.
    pub fn as_str(&self) -> &str {
        &self.canonical
    }

    /// Returns the name under which podman keeps what it builds. Without a registry, that is
    /// `localhost/env:latest`.
    pub fn podman_name(&self) -> &str {
        &self.podman
    }

    /// Returns the registry that the image is pushed to, and its name there: `docker.io` and
    /// `library/env:abc` for `env:abc`.
    pub fn in_registry(&self) -> (&str, String) {
        match split_registry(&self.canonical) {
            (Some(DOCKER_HUB), rest) | (None, rest) => (DOCKER_HUB, library(rest)),
            (Some(registry), rest) => (registry, rest.to_owned()),
        }
    }

    /// Returns the tag as podman and buildah understand it: `env` is their `localhost/env`, and
    /// Docker Hub's image is `docker.io/library/env`.
    #[must_use]
    pub fn in_podman(self) -> Self {
        let canonical = if self.is_short() { self.podman.clone() } else { self.canonical };
        Tag { canonical, podman: self.podman }
    }

    /// Returns whether both were given as the same name, whether podman's or docker's.
    pub fn is_same_name(&self, other: &Self) -> bool {
        self.podman == other.podman
    }

    /// Returns whether the tag was given without a registry.
    pub fn is_short(&self) -> bool {
        self.podman.starts_with("localhost/") && !self.canonical.starts_with("localhost/")
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical)
    }
}

impl PartialEq for Tag {
    fn eq(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for Tag {}

/// Returns the SHA-256 of these bytes in lower-case hex, as `sha256sum` prints it.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    sha256(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the SHA-256 of these bytes.
pub fn sha256(bytes: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(bytes.as_ref()).into()
}

/// Why a text is not a tag that a build can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is empty.
    Empty,
    /// It has a digest (`name@sha256:…`).
    Digest,
    /// It looks like an image ID: 64 hex digits.
    Identifier,
    /// Its name is that of a digest algorithm.
    Algorithm,
    /// The repository has an upper-case letter.
    Uppercase,
    /// The name is longer than 255 characters.
    TooLong,
    /// The part before the first `/` is not a registry.
    Registry,
    /// The repository does not match the grammar.
    Repository,
    /// The tag does not match the grammar.
    TagPart,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Empty => "an image reference cannot be empty",
            Error::Digest => "a build cannot choose its digest; give name:tag",
            Error::Identifier => "64 hex digits are an image ID, not a name",
            Error::Algorithm => {
                "'sha256' is the start of an image ID, not a name; docker rejects it, too"
            }
            Error::Uppercase => "the repository must be in lower case (the tag after ':' need not be)",
            Error::TooLong => "the name is longer than 255 characters",
            Error::Registry => "the part before the first '/' is not a registry host",
            Error::Repository => {
                "a repository consists of a-z and 0-9, with single separators ('.', '_', '__', '-', '/') between them"
            }
            Error::TagPart => {
                "a tag has 1 to 128 characters of A-Z, a-z, 0-9, '_', '.' and '-', and does not start with '.' or '-'"
            }
        })
    }
}

impl std::error::Error for Error {}

impl FromStr for Tag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        check_form(text)?;
        let (registry, rest) = split_registry(text);
        let (path, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
        check_parts(registry, path, tag)?;
        let on_hub = matches!(registry, None | Some(DOCKER_HUB | "index.docker.io"));
        if on_hub && library(path) == "library/sha256" {
            return Err(Error::Algorithm);
        }
        let name = match registry {
            Some(registry) if !on_hub => format!("{registry}/{path}"),
            _ => format!("{DOCKER_HUB}/{}", library(path)),
        };
        if name.len() > NAME_MAX {
            return Err(Error::TooLong);
        }
        let canonical = if on_hub { familiar(path) } else { name.clone() };
        let podman = if registry.is_some() { name } else { format!("localhost/{path}") };
        Ok(Tag { canonical: format!("{canonical}:{tag}"), podman: format!("{podman}:{tag}") })
    }
}

/// Rejects references that are not names with a tag.
fn check_form(text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::Empty);
    }
    if text.contains('@') {
        return Err(Error::Digest);
    }
    if text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Error::Identifier);
    }
    Ok(())
}

/// Checks the parts of a reference against the grammar.
fn check_parts(registry: Option<&str>, path: &str, tag: &str) -> Result<(), Error> {
    if registry.is_some_and(|registry| !is_registry(registry)) {
        return Err(Error::Registry);
    }
    if path.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err(Error::Uppercase);
    }
    if !path.split('/').all(is_path_component) {
        return Err(Error::Repository);
    }
    if !is_tag(tag) {
        return Err(Error::TagPart);
    }
    Ok(())
}

/// Splits a reference at its first `/` if the part before it is a registry: one with a `.` or a
/// `:`, or `localhost`.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) if looks_like_registry(first) => (Some(first), rest),
        _ => (None, text),
    }
}

fn looks_like_registry(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost"
}

/// Returns an image's repository on Docker Hub: `env` is `library/env`.
fn library(path: &str) -> String {
    if path.contains('/') { path.to_owned() } else { format!("library/{path}") }
}

/// Returns the short form of a repository on Docker Hub, unless that would name another
/// registry.
fn familiar(path: &str) -> String {
    let short = match path.strip_prefix("library/") {
        Some(official) if !official.contains('/') => official,
        _ => path,
    };
    match split_registry(short) {
        (None, _) => short.to_owned(),
        (Some(_), _) => format!("docker.io/{path}"),
    }
}

/// Matches `HOST` or `HOST:PORT`, where the host is a name or an IPv6 address in brackets.
fn is_registry(text: &str) -> bool {
    let (is_host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => (is_address(address), port),
            None => return false,
        },
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (name.split('.').all(is_label), port)
        }
    };
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_address(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b':')
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}

/// Matches `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_path_component(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_digit() || c.is_ascii_lowercase();
    let separator =
        |run: &[u8]| matches!(run, b"." | b"_" | b"__") || run.iter().all(|&c| c == b'-');
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|&c| word(c))
        && bytes.last().is_some_and(|&c| word(c))
        && bytes.split(|&c| word(c)).filter(|run| !run.is_empty()).all(separator)
}

/// Matches `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
fn is_tag(text: &str) -> bool {
    text.len() <= TAG_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;

    fn canonical(text: &str) -> Result<String, Error> {
        text.parse::<Tag>().map(|tag| tag.as_str().to_owned())
    }

    #[test]
    fn the_canonical_form_is_dockers_familiar_form_with_a_tag() {
        for (text, expected) in [
            ("env", "env:latest"),
            ("env:abc", "env:abc"),
            ("env:ABC", "env:ABC"),
            ("docker.io/library/env", "env:latest"),
            ("docker.io/env", "env:latest"),
            ("index.docker.io/library/env:latest", "env:latest"),
            ("library/env", "env:latest"),
            ("docker.io/team/env:1", "team/env:1"),
            ("library/team/env", "library/team/env:latest"),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
            ("localhost/env", "localhost/env:latest"),
            ("localhost:5000/env:1", "localhost:5000/env:1"),
            ("localhost:5000", "localhost:5000"),
            ("[::1]:5000/env", "[::1]:5000/env:latest"),
            ("GHCR.io/a/b", "GHCR.io/a/b:latest"),
            ("deadbeef", "deadbeef:latest"),
            ("a__b--c/d.e", "a__b--c/d.e:latest"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_hub_image_that_looks_like_another_registrys_keeps_its_registry() {
        assert_eq!(canonical("docker.io/localhost/env").unwrap(), "docker.io/localhost/env:latest");
        assert_ne!(canonical("docker.io/localhost/env"), canonical("localhost/env"));
    }

    #[test]
    fn podman_keeps_short_names_under_localhost() {
        let podman = |text: &str| text.parse::<Tag>().unwrap().podman_name().to_owned();
        assert_eq!(podman("env"), "localhost/env:latest");
        assert_eq!(podman("team/env:1"), "localhost/team/env:1");
        assert_eq!(podman("docker.io/library/env:1"), "docker.io/library/env:1");
        assert_eq!(podman("docker.io/env:1"), "docker.io/library/env:1");
        assert_eq!(podman("ghcr.io/a/b"), "ghcr.io/a/b:latest");
    }

    #[test]
    fn a_registry_knows_the_image_by_its_full_name() {
        for (text, registry, name, is_short) in [
            ("env:abc", "docker.io", "library/env:abc", true),
            ("team/env", "docker.io", "team/env:latest", true),
            ("docker.io/env", "docker.io", "library/env:latest", false),
            ("index.docker.io/team/env:1", "docker.io", "team/env:1", false),
            ("docker.io/a.b/env:1", "docker.io", "a.b/env:1", false),
            ("localhost/env", "localhost", "env:latest", false),
            ("localhost:5000/a/env:1", "localhost:5000", "a/env:1", false),
            ("localhost:5000", "docker.io", "library/localhost:5000", true),
            ("[::1]:5000/env", "[::1]:5000", "env:latest", false),
        ] {
            let tag: Tag = text.parse().unwrap();
            assert_eq!(tag.in_registry(), (registry, name.to_owned()), "{text}");
            assert_eq!(tag.is_short(), is_short, "{text}");
        }
    }

    #[test]
    fn a_tag_that_docker_rejects_is_rejected_with_its_reason() {
        for (text, expected) in [
            ("", Error::Empty),
            ("Env", Error::Uppercase),
            ("Env:abc", Error::Uppercase),
            ("ghcr.io/A/b", Error::Uppercase),
            ("Team/env", Error::Uppercase),
            (
                "env@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                Error::Digest,
            ),
            ("env:abc@sha256:00", Error::Digest),
            (&"a".repeat(64), Error::Identifier),
            (&"a".repeat(250), Error::TooLong),
            (&format!("env:{}", "a".repeat(129)), Error::TagPart),
            ("env:", Error::TagPart),
            ("env:.a", Error::TagPart),
            ("env:a:b", Error::TagPart),
            ("env:a/b", Error::Registry),
            ("a_b.c/d", Error::Registry),
            (":abc", Error::Repository),
            ("-env", Error::Repository),
            ("env-", Error::Repository),
            ("a..b", Error::Repository),
            ("a___b", Error::Repository),
            ("a._b", Error::Repository),
            ("a//b", Error::Repository),
            ("env/", Error::Repository),
            ("/env", Error::Repository),
            ("env abc", Error::Repository),
            ("énv", Error::Repository),
            ("-a.b/env", Error::Registry),
            ("a.b:port/env", Error::Registry),
            ("[::1/env", Error::Registry),
        ] {
            assert_eq!(canonical(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_key_is_what_sha256sum_prints() {
        // printf env:abc | sha256sum
        assert_eq!(
            sha256_hex("env:abc"),
            "1dba84eb058647a9bd2b8b72086401013998e3ecab53a3857521cd43a8fc4b15"
        );
    }

    /// Returns the grammar as the distribution project writes it, assembled from its parts.
    fn grammar() -> Regex {
        let domain = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*";
        let host = format!(r"(?:{domain}|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?");
        let component = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*";
        Regex::new(&format!(
            r"^(?:{host}/)?{component}(?:/{component})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?$"
        ))
        .unwrap()
    }

    proptest! {
        #[test]
        fn what_is_accepted_matches_the_grammar(text in r"[a-zA-Z0-9._:/\[\]-]{1,24}") {
            if text.parse::<Tag>().is_ok() {
                prop_assert!(grammar().is_match(&text), "{}", text);
            }
        }

        #[test]
        fn what_matches_the_grammar_is_accepted(
            host in r"((localhost|[a-z0-9]{1,8}\.[a-zA-Z]{2,3}|\[[a-f0-9]{1,4}::[a-f0-9]{1,4}\])(:[0-9]{1,5})?/)?",
            path in r"[a-z0-9]{1,5}((\.|_|__|-{1,3}|/)[a-z0-9]{1,5}){0,4}",
            tag in r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
        ) {
            let text = format!("{host}{path}{tag}");
            prop_assert!(grammar().is_match(&text));
            // Docker reads the first part of "a_b.c/d" as a host, which it cannot be.
            prop_assume!(!host.is_empty() || !looks_like_registry(path.split('/').next().unwrap()));
            prop_assert!(text.parse::<Tag>().is_ok(), "{}: {:?}", text, canonical(&text));
        }

        #[test]
        fn the_canonical_form_of_a_canonical_form_is_itself(text in r"([a-z0-9]{1,4}[./:]){0,3}[a-z0-9]{1,4}(:[a-z0-9]{1,4})?") {
            if let Ok(first) = canonical(&text) {
                prop_assert_eq!(canonical(&first), Ok(first));
            }
        }

        #[test]
        fn nothing_makes_the_parser_panic(text in ".{0,80}") {
            let _ = text.parse::<Tag>();
        }
    }
}
