//! Reads tags. The parser accepts exactly what Docker accepts, and the canonical form is that of the
//! same image and parses to itself.
#![no_main]

use std::sync::LazyLock;

use buildlock::lock::Key;
use buildlock::reference::Tag;
use buildlock::subject::Subject;
use libfuzzer_sys::fuzz_target;
use regex::Regex;

/// The grammar of the distribution project, composed as in its source
/// (<https://github.com/distribution/reference/blob/main/regexp.go>), without digests.
static GRAMMAR: LazyLock<Regex> = LazyLock::new(|| {
    let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let host = format!(r"(?:{label}(?:\.{label})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?");
    let component = "[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*";
    let path = format!("{component}(?:/{component})*");
    let tag = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
    Regex::new(&format!("^(?:({host})/)?({path})(?::({tag}))?$")).unwrap()
});

/// Returns the registry, path and tag that Docker reads. Written anew after `ParseNormalizedNamed`.
fn docker(text: &str) -> Option<(String, String, String)> {
    if text.len() == 64 && text.chars().all(|c| "0123456789abcdef".contains(c)) {
        return None;
    }
    let (registry, rest) = match text.find('/').map(|at| (&text[..at], &text[at + 1..])) {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", text),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    // By the grammar alone, a first part with capital letters would be a host.
    let path = rest.split(':').next()?;
    let rest = match registry {
        "docker.io" if !path.contains('/') => format!("library/{rest}"),
        _ => rest.to_owned(),
    };
    let whole = format!("{registry}/{rest}");
    let found = GRAMMAR.captures(&whole)?;
    let group = |at| found.get(at).map(|part| part.as_str().to_owned());
    let (host, path) = (group(1)?, group(2)?);
    if host != registry || host.len() + 1 + path.len() > 255 {
        return None;
    }
    Some((host, path, group(3).unwrap_or_else(|| "latest".into())))
}

fuzz_target!(|text: &str| {
    let ours = text.parse::<Tag>();
    let dockers = docker(text);
    let Ok(tag) = ours else {
        assert_eq!(dockers, None, "{text:?} is refused: {ours:?}");
        return;
    };
    let canonical = tag.as_str();
    let Some((host, path, name)) = dockers else { panic!("{text:?} is taken: {canonical}") };

    // The canonical form is a shorter name of the same image.
    assert_eq!(docker(canonical), Some((host, path, name.clone())), "{text:?}");
    assert!(canonical.ends_with(&format!(":{name}")), "{text:?}");
    assert!(!canonical.contains(char::is_control) && canonical.is_ascii());
    assert!(canonical.len() <= 255 + 1 + 128 && !canonical.contains('@'));

    // The canonical form is its own canonical form, and has the same lock.
    let again: Tag = canonical.parse().expect("the canonical form parses");
    assert_eq!(again.as_str(), canonical);
    assert_eq!(again, tag);
    let lock = |tag: &Tag| Key::new(Subject::from(tag)).relative_path();
    assert_eq!(lock(&again), lock(&tag));
    let lock = lock(&tag).into_os_string().into_string().expect("a path in ASCII");
    let digest = lock.strip_prefix("image-locks/").and_then(|it| it.strip_suffix(".lock"));
    let hex = |digest: &str| digest.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    assert!(digest.is_some_and(|digest| digest.len() == 64 && hex(digest)), "{lock}");

    // Podman's name is fully qualified, and parses to itself.
    let podman: Tag = tag.podman_name().parse().expect("podman's name parses");
    assert_eq!(podman.podman_name(), tag.podman_name());
});
