//! A registry's own words for "there is no such image".

use crate::image::answer::Unanswered;
use crate::reference::Tag;

/// Returns whether `message` is a registry's statement that it has no such manifest, or no such
/// repository.
///
/// It has the form `CODE: MESSAGE`. The code is that of the distribution specification, in lower
/// case and without underscores
/// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes>). With
/// several errors, each has its own line, and the message is not that statement alone.
pub(crate) fn says_unknown(message: &str) -> bool {
    let message = message.trim_end();
    ["manifest unknown", "name unknown"].iter().any(|code| {
        message.strip_prefix(code).is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
    })
}

/// Returns whether `message` is Harbor's statement that it has no such image.
///
/// Harbor answers 404 with a code of its own, `NOT_FOUND`, so only the message can tell
/// (<https://github.com/goharbor/harbor/issues/17852>).
pub(crate) fn is_harbors_not_found(message: &str, tag: &Tag) -> bool {
    let (_, name) = tag.in_registry();
    let (repository, _) = split_tag(&name);
    message == format!("unknown: artifact {name} not found")
        || message == format!("unknown: repository {repository} not found")
}

pub(crate) fn split_tag(name: &str) -> (&str, &str) {
    // A canonical name always has a tag.
    name.rsplit_once(':').unwrap_or((name, "latest"))
}

/// Returns the image's name with its registry.
pub(crate) fn full_name(tag: &Tag) -> String {
    let (registry, name) = tag.in_registry();
    format!("{registry}/{name}")
}

/// Tells the user what to do if a client cannot ask the registry.
pub(crate) fn with_advice(error: Unanswered) -> Unanswered {
    error
        .map_why(|why| format!("{why}; to ask the registry in another way, give --check a command"))
}
