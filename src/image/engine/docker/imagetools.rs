//! The registry, asked by buildx, whose builder may have mirrors and certificates of its own.

use serde_json::Value;

use super::builders::Builders;
use crate::command::Client;
use crate::image::answer::{Answer, Unanswered};
use crate::image::description::Description;
use crate::image::engine::client::{ClientOutput, run};
use crate::image::engine::unknown_manifest::{full_name, with_advice};
use crate::image::platform::{OciPlatform, Platform};
use crate::reference::Tag;

/// Runs `docker buildx imagetools inspect NAME` through the build command's wrappers and with its
/// builder.
///
/// # Errors
/// buildx said neither that the image is present nor that it is missing.
pub(crate) fn look(
    client: &Client,
    builders: &Builders,
    tag: &Tag,
    with_platform: bool,
) -> Result<Answer, Unanswered> {
    let format = with_platform.then_some(IMAGE);
    Ok(inspect(client, builders, tag, format)?.0)
}

/// Describes the image in its registry: one description for each of its platforms, or none if there
/// is no such image.
///
/// # Errors
/// As [`look`].
pub(crate) fn describe(
    client: &Client,
    builders: &Builders,
    tag: &Tag,
) -> Result<Option<Vec<Description>>, Unanswered> {
    let (answer, said) = inspect(client, builders, tag, Some(IMAGE))?;
    if answer == Answer::Missing {
        return Ok(None);
    }
    let image: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
    describe_all(&image).map(Some).ok_or_else(|| said.unanswered(client))
}

/// Describes the image, or each one of an index but the attestations. Returns none if one of them
/// does not say for which platform it is, for it could be the one that somebody pulls.
fn describe_all(image: &Value) -> Option<Vec<Description>> {
    let single = Description::of_oci(image);
    if single.platform.is_some() {
        return Some(vec![single]);
    }
    let mut all = Vec::new();
    for (key, image) in image.as_object()? {
        let is_attestation = key == "unknown/unknown"
            || image["os"] == "unknown" && image["architecture"] == "unknown";
        if !is_attestation {
            all.push(Some(Description::of_oci(image)).filter(|it| it.platform.is_some())?);
        }
    }
    Some(all).filter(|all| !all.is_empty())
}

/// Returns the digest of the image in its registry, or none if there is no such image.
///
/// # Errors
/// As [`look`].
pub(crate) fn digest(
    client: &Client,
    builders: &Builders,
    tag: &Tag,
) -> Result<Option<String>, Unanswered> {
    let (answer, said) = inspect(client, builders, tag, Some("{{.Manifest.Digest}}"))?;
    let digest = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    match answer {
        Answer::Missing => Ok(None),
        Answer::Present(_) if digest.starts_with("sha256:") => Ok(Some(digest)),
        Answer::Present(_) => Err(said.unanswered(client)),
    }
}

/// The configuration of the image, or of each platform's.
const IMAGE: &str = "{{json .Image}}";

fn inspect(
    client: &Client,
    builders: &Builders,
    tag: &Tag,
    format: Option<&str>,
) -> Result<(Answer, ClientOutput), Unanswered> {
    let name = full_name(tag);
    let builder = builders.by_flag();
    let mut words = vec!["buildx"];
    words.extend(builder.iter().flat_map(|builder| ["--builder", builder]));
    words.extend(["imagetools", "inspect", &name]);
    words.extend(format.iter().flat_map(|format| ["--format", format]));
    let said = run(client, &words).map_err(with_advice)?;
    match read_imagetools(&said, tag) {
        Some(answer) => Ok((answer, said)),
        None => Err(with_advice(said.unanswered(client))),
    }
}

/// Reads what buildx said about an image in its registry, if anything in it is certain.
pub fn read_imagetools(said: &ClientOutput, tag: &Tag) -> Option<Answer> {
    match said.status? {
        0 => Some(Answer::Present(platforms_in(&said.stdout))),
        _ => says_not_found(&said.stderr, tag).then_some(Answer::Missing),
    }
}

/// Reads the configuration of one image, or several of them by their platforms.
fn platforms_in(output: &[u8]) -> Vec<Platform> {
    let image: Value = serde_json::from_slice(output).unwrap_or_default();
    images_in(&image).into_iter().filter_map(OciPlatform::read).collect()
}

fn images_in(image: &Value) -> Vec<&Value> {
    let several = image.as_object().into_iter().flat_map(|images| images.values());
    [image].into_iter().chain(several).collect()
}

fn says_not_found(complaint: &[u8], tag: &Tag) -> bool {
    const ERROR: &str = "error: ";
    let not_found = format!("{}: not found", full_name(tag));
    let text = String::from_utf8_lossy(complaint);
    text.lines().map(str::trim).any(|line| {
        line.split_at_checked(ERROR.len())
            .is_some_and(|(start, rest)| start.eq_ignore_ascii_case(ERROR) && rest == not_found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "registry.example/a/b:1";

    #[test]
    fn image_of_an_index_without_a_platform_is_not_passed_over() {
        let described = |text: &str| {
            let image = serde_json::from_str(text).unwrap();
            describe_all(&image).map(|all| all.len())
        };
        let image = r#"{"os":"linux","architecture":"amd64","config":{}}"#;
        let unknown = r#"{"os":"unknown","architecture":"unknown"}"#;
        assert_eq!(described(image), Some(1));
        for (rest, expected) in [
            (r#""linux/arm64":{"os":"linux","architecture":"arm64"}"#.to_owned(), Some(2)),
            (r#""unknown/unknown":{}"#.to_owned(), Some(1)),
            (format!(r#""":{unknown}"#), Some(1)),
            (r#""":{}"#.to_owned(), None),
            (r#""linux/arm64":{"config":{}}"#.to_owned(), None),
        ] {
            let text = format!("{{\"linux/amd64\":{image},{rest}}}");
            assert_eq!(described(&text), expected, "{text}");
        }
        assert_eq!(described("{}"), None);
    }

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn said(status: i32, stdout: &str, stderr: &str) -> ClientOutput {
        ClientOutput { status: Some(status), stdout: stdout.into(), stderr: stderr.into() }
    }

    fn platforms(answer: Option<Answer>) -> Vec<String> {
        match answer {
            Some(Answer::Present(platforms)) => platforms.iter().map(ToString::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_this_very_name_not_found_means_missing() {
        let missing = |stderr: &str| read_imagetools(&said(1, "", stderr), &tag(NAME));
        for stderr in [
            "ERROR: registry.example/a/b:1: not found\n",
            "error: registry.example/a/b:1: not found\n",
            "WARNING: no builder\nERROR: registry.example/a/b:1: not found",
        ] {
            assert_eq!(missing(stderr), Some(Answer::Missing), "{stderr}");
        }
        for stderr in [
            "",
            "registry.example/a/b:1: not found",
            "ERROR: registry.example/a/b:12: not found",
            "ERROR: registry.example/a/b:1: not found: 401",
            "ERROR: failed to do request: registry.example/a/b:1: not found",
            "sudo: docker: command not found",
            "docker: 'buildx' is not a docker command.",
            "é",
        ] {
            assert_eq!(missing(stderr), None, "{stderr}");
        }
        let hub = read_imagetools(
            &said(1, "", "ERROR: docker.io/library/env:abc: not found"),
            &tag("env:abc"),
        );
        assert_eq!(hub, Some(Answer::Missing));
        let killed = ClientOutput {
            status: None,
            stdout: vec![],
            stderr: "ERROR: registry.example/a/b:1: not found".into(),
        };
        assert_eq!(read_imagetools(&killed, &tag(NAME)), None);
        assert_eq!(
            read_imagetools(
                &said(0, "Name: x", "ERROR: registry.example/a/b:1: not found"),
                &tag(NAME)
            ),
            Some(Answer::Present(Vec::new()))
        );
    }

    #[test]
    fn buildx_names_the_platforms() {
        let there = |json: &str| platforms(read_imagetools(&said(0, json, ""), &tag(NAME)));
        assert_eq!(
            there(r#"{"architecture":"arm64","os":"linux","config":{"Env":[]}}"#),
            ["linux/arm64"]
        );
        let several = r#"{"linux/386":{"architecture":"386","os":"linux"},
            "linux/arm/v7":{"architecture":"arm","os":"linux","variant":"v7"}}"#;
        assert_eq!(there(several), ["linux/386", "linux/arm/v7"]);
    }

    proptest! {
        #[test]
        fn nothing_that_buildx_says_makes_us_panic_or_means_missing_by_chance(
            code in -1..3_i32,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            text in ".{0,60}",
        ) {
            for said in [
                ClientOutput {
                    status: Some(code),
                    stdout: bytes.clone(),
                    stderr: text.clone().into(),
                },
                ClientOutput { status: Some(code), stdout: text.into(), stderr: bytes },
            ] {
                prop_assert!(read_imagetools(&said, &tag(NAME)) != Some(Answer::Missing));
            }
        }

        #[test]
        fn anything_after_the_right_words_makes_them_an_error(after in "[^\\s:].{0,9}") {
            let line = format!("ERROR: {NAME}: not found");
            let of = |text: String| read_imagetools(&said(1, "", &text), &tag(NAME));
            prop_assert_eq!(of(format!("{line}{}", after.trim())), None);
        }
    }
}
