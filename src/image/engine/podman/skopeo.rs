//! The registry, asked by skopeo, which has podman's credentials and its registries.conf.

use serde_json::Value;

use crate::command::{Client, Engine};
use crate::image::answer::{Answer, Unanswered};
use crate::image::description::Description;
use crate::image::engine::client::{ClientOutput, run};
use crate::image::engine::unknown_manifest::{
    full_name, is_harbors_not_found, says_unknown, split_tag, with_advice,
};
use crate::image::platform::platforms_in;
use crate::reference::{Tag, sha256_hex};

/// Runs `skopeo inspect docker://NAME` through the build command's wrappers. Podman itself would
/// answer from its own storage where it can.
///
/// # Errors
/// It said neither that the image is present nor that it is missing.
pub(crate) fn look(client: &Client, tag: &Tag, with_platform: bool) -> Result<Answer, Unanswered> {
    match inspect(client, tag, &["--raw"])?.0 {
        // A manifest list names its platforms. For a single image, its configuration does.
        answer if answer.names_no_platform() && with_platform => {
            Ok(inspect(client, tag, &["--config"])?.0)
        }
        answer => Ok(answer),
    }
}

/// Describes the image in its registry, for this machine's platform. Returns none if there is no
/// such image.
///
/// # Errors
/// As [`look`].
pub(crate) fn describe(client: &Client, tag: &Tag) -> Result<Option<Vec<Description>>, Unanswered> {
    let (answer, said) = inspect(client, tag, &["--config"])?;
    if answer == Answer::Missing {
        return Ok(None);
    }
    let image: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
    let image = Description::of_oci(&image);
    if image.platform.is_none() {
        return Err(said.unanswered(client));
    }
    Ok(Some(vec![image]))
}

/// Returns the digest of the image in its registry, or none if there is no such image.
///
/// # Errors
/// As [`look`].
pub(crate) fn digest(client: &Client, tag: &Tag) -> Result<Option<String>, Unanswered> {
    let (answer, said) = inspect(client, tag, &["--raw"])?;
    // The digest of an image is that of its manifest.
    Ok((answer != Answer::Missing).then(|| format!("sha256:{}", sha256_hex(&said.stdout))))
}

fn inspect(
    client: &Client,
    tag: &Tag,
    options: &[&str],
) -> Result<(Answer, ClientOutput), Unanswered> {
    let skopeo = Client {
        engine: Engine::Podman,
        program: "skopeo".into(),
        globals: Vec::new(),
        ..client.clone()
    };
    let name = format!("docker://{}", full_name(tag));
    let words: Vec<&str> = ["inspect"].iter().chain(options).copied().chain([&*name]).collect();
    let said = run(&skopeo, &words).map_err(with_advice)?;
    match read_skopeo(&said, tag) {
        Some(answer) => Ok((answer, said)),
        None => Err(with_advice(said.unanswered(&skopeo))),
    }
}

/// Reads what skopeo said about an image in its registry, if anything in it is certain.
pub fn read_skopeo(said: &ClientOutput, tag: &Tag) -> Option<Answer> {
    if said.status? == 0 {
        let json: Value = serde_json::from_slice(&said.stdout).ok()?;
        return Some(Answer::Present(platforms_in(&json)));
    }
    let name = full_name(tag);
    let (repository, tag_part) = split_tag(&name);
    let reading = format!("reading manifest {tag_part} in {repository}: ");
    let text = String::from_utf8_lossy(&said.stderr);
    let mut reasons = text.lines().filter_map(|line| Some(line.split_once(&reading)?.1));
    reasons
        .any(|reason| {
            // logrus quotes its messages.
            let reason = reason.trim_end().trim_end_matches('"');
            says_unknown(reason) || is_harbors_not_found(reason, tag)
        })
        .then_some(Answer::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "registry.example/a/b:1";

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
    fn skopeo_means_missing_where_it_read_this_manifest() {
        let line = |said: &str| {
            format!(
                "time=\"t\" level=fatal msg=\"Error parsing image name \\\"docker://x\\\": {said}\"\n"
            )
        };
        let missing = |reason: &str| read_skopeo(&said(1, "", &line(reason)), &tag(NAME));
        let reading = "reading manifest 1 in registry.example/a/b: ";
        for reason in [
            "manifest unknown",
            "manifest unknown: manifest unknown",
            "name unknown: The repository does not exist",
            "unknown: artifact a/b:1 not found",
        ] {
            assert_eq!(missing(&format!("{reading}{reason}")), Some(Answer::Missing), "{reason}");
        }
        for reason in ["unauthorized", "denied: denied", "StatusCode: 404, <html>", ""] {
            assert_eq!(missing(&format!("{reading}{reason}")), None, "{reason}");
        }
        assert_eq!(missing("reading manifest 1 in registry.example/a/bc: manifest unknown"), None);
        assert_eq!(missing("pinging container registry registry.example: manifest unknown"), None);
        assert_eq!(read_skopeo(&said(0, "", ""), &tag(NAME)), None);
        let list =
            r#"{"manifests":[{"digest":"x","platform":{"os":"linux","architecture":"s390x"}}]}"#;
        assert_eq!(platforms(read_skopeo(&said(0, list, ""), &tag(NAME))), ["linux/s390x"]);
        let config = r#"{"created":"t","os":"linux","architecture":"amd64"}"#;
        assert_eq!(platforms(read_skopeo(&said(0, config, ""), &tag(NAME))), ["linux/amd64"]);
    }

    proptest! {
        #[test]
        fn nothing_that_skopeo_says_makes_us_panic_or_means_missing_by_chance(
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
                prop_assert!(read_skopeo(&said, &tag(NAME)) != Some(Answer::Missing));
            }
        }
    }
}
