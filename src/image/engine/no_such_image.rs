//! An engine's own words for "there is no such image".

use crate::reference::Tag;

/// Returns whether the whole of `message` is an engine's statement that it has no image `name`.
///
/// The forms below are all that are known. That another image is missing says nothing about this
/// one.
pub(crate) fn says_no_such_image(message: &str, name: &str) -> bool {
    /// Docker's words (moby, `ErrImageDoesNotExist`).
    const MISSING: &str = "o such image: ";
    let without_no = message.strip_prefix(['N', 'n']);
    if let Some(rest) = without_no.and_then(|message| message.strip_prefix(MISSING)) {
        // Docker 17.05 to 20.10 name the image as it was asked for, then as they know it.
        return match rest.split_once(": No such image: ") {
            Some((asked, known)) => is_spelling_of(asked, name) && is_spelling_of(known, name),
            None => is_spelling_of(rest, name),
        };
    }
    // Podman's API that is compatible with Docker's. The reason comes from Podman or its storage.
    let Some(rest) = message.strip_prefix("failed to find image ") else { return false };
    let Some((asked, rest)) = rest.split_once(": ") else { return false };
    ["No such image", "image not known"].into_iter().any(|reason| {
        let known = rest.strip_suffix(reason).and_then(|known| known.strip_suffix(": "));
        known.is_some_and(|known| is_spelling_of(asked, name) && is_spelling_of(known, name))
    })
}

/// Returns whether a client says that there is no image `name`, whatever else it says, and does not
/// say it of another image.
///
/// Docker and nerdctl say `No such image: NAME`, podman `NAME: image not known`.
pub(crate) fn complains_of_no_such_image(complaint: &str, name: &str) -> bool {
    let lower = complaint.to_ascii_lowercase();
    // An engine that refuses the name says "no such image: NAME: invalid reference format".
    if lower.contains("invalid reference format") {
        return false;
    }
    // These end a name. nerdctl quotes its message and escapes the line ends in it.
    let ends_name = |c: char| c.is_whitespace() || "\"'\\,;".contains(c);
    let is_this = |word: &str| {
        let word = word.trim_end_matches(':');
        // nerdctl may print a list in brackets.
        is_spelling_of(word, name)
            || word.strip_suffix(']').is_some_and(|word| is_spelling_of(word, name))
    };
    let mut mentions = ["no such image", "image not known"]
        .into_iter()
        .flat_map(|reason| lower.match_indices(reason))
        .map(|(at, reason)| {
            let (before, after) = (&complaint[..at], &complaint[at + reason.len()..]);
            if let Some(after) = after.strip_prefix(": ") {
                return is_this(after.split(ends_name).next().unwrap_or_default());
            }
            let is_end = after.is_empty() || after.starts_with(['\n', '\r', '"', '\\', ']']);
            before
                .strip_suffix(": ")
                .filter(|_| is_end)
                .is_some_and(|before| is_this(before.rsplit(ends_name).next().unwrap_or_default()))
        })
        .peekable();
    mentions.peek().is_some() && mentions.all(|is_this| is_this)
}

/// Returns whether `spelled` is the image `name`, in full or in Docker's familiar form.
fn is_spelling_of(spelled: &str, name: &str) -> bool {
    let same_image = || {
        let tag = |text: &str| text.parse::<Tag>().ok();
        tag(spelled).is_some_and(|tag_spelled| tag(name).as_ref() == Some(&tag_spelled))
    };
    // Docker's own familiar form of docker.io/localhost/env leaves the registry out.
    spelled == name || name.strip_prefix("docker.io/") == Some(spelled) || same_image()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Docker 1.12 to 28 and Podman answer about an image that they do not have.
    const MISSING: [&str; 12] = [
        "No such image: env:abc",
        "no such image: env:abc: No such image: env:abc",
        "no such image: docker.io/library/env:abc: No such image: env:abc",
        "No such image: docker.io/library/env:abc",
        "failed to find image env:abc: docker.io/library/env:abc: No such image",
        "failed to find image env:abc: env:abc: image not known",
        "No such image: env:latest",
        "No such image: env",
        "failed to find image env: docker.io/library/env: No such image",
        "No such image: r.example:5000/a/env:1",
        "failed to find image r.example:5000/a/env:1: r.example:5000/a/env:1: No such image",
        "no such image: docker.io/localhost/env:1: No such image: localhost/env:1",
    ];
    const NAMES: [&str; 4] =
        ["env:abc", "env:latest", "r.example:5000/a/env:1", "docker.io/localhost/env:1"];

    /// Returns which of `NAMES` the message at this place in `MISSING` is about.
    fn is_of(at: usize) -> usize {
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3][at]
    }

    #[test]
    fn only_the_engines_own_statement_about_this_image_means_missing() {
        for (at, said) in MISSING.iter().enumerate() {
            for (of, name) in NAMES.iter().enumerate() {
                assert_eq!(says_no_such_image(said, name), of == is_of(at), "{name}: {said}");
            }
        }
        for said in [
            "no such image: env:abc: no space left on device",
            "no such image: env:abc: No such image: other:1",
            "no such image: other:1: No such image: env:abc",
            "No such image: env:abc ",
            "No such image: env:abc: invalid reference format",
            "No such image: library/other:abc",
            "No such image: localhost/env:abc",
            "No such image: ",
            "no such image",
            "error: No such image: env:abc",
            "failed to find image env:abc: docker.io/library/other:1: No such image",
            "failed to find image env:abc: database is locked",
            "failed to find image env:abc: No such image",
            "page not found",
            "",
        ] {
            assert!(!says_no_such_image(said, "env:abc"), "{said}");
        }
    }

    #[test]
    fn only_a_clients_statement_about_this_image_means_missing() {
        for (at, said) in MISSING.iter().enumerate() {
            for (of, name) in NAMES.iter().enumerate() {
                let line = format!("WARNING: x\nError response from daemon: {said}\n");
                let says_so = complains_of_no_such_image(&line, name);
                assert_eq!(says_so, of == is_of(at), "{name}: {said}");
            }
        }
        for said in [
            "Error: No such image: env:abc\n",
            "time=\"t\" level=fatal msg=\"1 errors:\\nno such image: env:abc\"\n",
            "level=fatal msg=\"1 errors: [no such image: env:abc]\"",
            "Error: env:abc: image not known",
            "Error: inspecting object: env:abc: image not known",
            "Error: unable to inspect \"env:abc\": no such image: env:abc",
        ] {
            assert!(complains_of_no_such_image(said, "env:abc"), "{said}");
            assert!(!complains_of_no_such_image(said, "env:ab"), "{said}");
        }
        let address = "[::1]:5000/env:1";
        assert!(complains_of_no_such_image(&format!("[no such image: {address}]"), address));
        for said in [
            "Error: No such image: other:1",
            "Error: No such image: env:abcd",
            "Error: No such image: env:abc\nError: No such image: other:1",
            "Error: other:1: image not known",
            "no such image",
            "base of env:abc: no such image found",
            "env:abc: no such image format",
            "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
            "page not found",
            "no such host",
            "Error response from daemon: no such image: A/b: invalid reference format",
            "",
        ] {
            assert!(!complains_of_no_such_image(said, "env:abc"), "{said}");
        }
    }
}
