//! `# syntax=IMAGE`: the image that reads the Dockerfile.

use crate::reference::Tag;

/// The image that a Dockerfile asks to be read by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Syntax {
    pub(crate) image: String,
    /// Whether it may read another language than Docker's own image does. Docker's is believed to
    /// read each Dockerfile as it always has, whatever its version.
    pub(crate) is_foreign: bool,
}

impl Syntax {
    /// Reads the first directive of a Dockerfile that names an image.
    ///
    /// Versions of BuildKit differ about which comments end the directives, so this looks past all
    /// comments that look like one.
    pub(crate) fn of_dockerfile(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_start_matches('\u{feff}');
        let mut lines = text.lines().peekable();
        lines.next_if(|line| line.starts_with("#!"));
        let directives = lines.map_while(|line| {
            let comment = line.trim_start();
            comment.strip_prefix('#').or_else(|| comment.strip_prefix("//"))?.split_once('=')
        });
        directives
            .filter(|(name, _)| name.trim().eq_ignore_ascii_case("syntax"))
            .find_map(|(_, value)| Self::of(value))
    }

    /// Reads the value of the directive, or of the build argument BUILDKIT_SYNTAX.
    pub(crate) fn of(value: &str) -> Option<Self> {
        let image = value.split_whitespace().next()?.to_owned();
        let is_foreign = !is_dockers(&image);
        Some(Syntax { image, is_foreign })
    }
}

fn is_dockers(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default();
    name.parse::<Tag>().is_ok_and(|tag| {
        let (registry, name) = tag.in_registry();
        let repository = name.split(':').next().unwrap_or_default();
        registry == crate::reference::DOCKER_HUB
            && matches!(repository, "docker/dockerfile" | "docker/dockerfile-upstream")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_images_are_not_foreign() {
        for (text, wanted) in [
            ("FROM a\n# syntax=x\n", None),
            ("# a comment\n# syntax=x\n", None),
            ("# syntax=\n", None),
            ("# syntax=docker/dockerfile:1\n", Some(("docker/dockerfile:1", false))),
            ("\u{feff}#SYNTAX = docker/dockerfile\r\n", Some(("docker/dockerfile", false))),
            ("#!/bin/x\n# syntax=docker/dockerfile\n", Some(("docker/dockerfile", false))),
            (
                "# escape=`\n#syntax=docker.io/docker/dockerfile:1.7-labs a b\n",
                Some(("docker.io/docker/dockerfile:1.7-labs", false)),
            ),
            (
                "# syntax=docker/dockerfile:1@sha256:00\n",
                Some(("docker/dockerfile:1@sha256:00", false)),
            ),
            ("# other=a\n# syntax=x/y\n", Some(("x/y", true))),
            ("// syntax=x/y\n", Some(("x/y", true))),
            ("# syntax=dockerfile\n", Some(("dockerfile", true))),
            ("# syntax=ghcr.io/docker/dockerfile:1\n", Some(("ghcr.io/docker/dockerfile:1", true))),
            ("# syntax=UPPER\n", Some(("UPPER", true))),
        ] {
            let read = Syntax::of_dockerfile(text.as_bytes());
            let read = read.as_ref().map(|it| (it.image.as_str(), it.is_foreign));
            assert_eq!(read, wanted, "{text:?}");
        }
    }
}
