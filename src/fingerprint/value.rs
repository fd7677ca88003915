//! The fingerprint of a build's inputs, as an image carries it.
//!
//! `1.<hash>.<parts>`: the version of the rules, a SHA-256 over everything that counts, and a short
//! hash for each kind of input. The short hashes are keyed with the long one, so that two images
//! cannot be compared by them, and each covers a whole kind. So they do not help to guess one value,
//! such as a build argument.

use crate::image::LABEL;
use crate::reference::sha256;

/// The version of the rules by which the fingerprint is computed. A new one makes every image
/// outdated.
const VERSION: &str = "1";

/// The kinds of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dockerfile,
    Context,
    Options,
    Platform,
    Bases,
    Paths,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] =
        [Kind::Dockerfile, Kind::Context, Kind::Options, Kind::Platform, Kind::Bases, Kind::Paths];

    /// Returns the kind as one word, for lists.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Dockerfile => "dockerfile",
            Kind::Context => "context",
            Kind::Options => "option",
            Kind::Platform => "platform",
            Kind::Bases => "base",
            Kind::Paths => "input",
        }
    }

    /// Returns the kind as messages call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Dockerfile => "the Dockerfile",
            Kind::Context => "the context",
            Kind::Options => "the options",
            Kind::Platform => "the platform or the builder",
            Kind::Bases => "a base image",
            Kind::Paths => "what --inputs names",
        }
    }
}

/// A hash over everything of one kind.
pub(crate) type Digest = [u8; 32];

/// A fingerprint, written as the label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    text: String,
    parts: Vec<Digest>,
}

impl Value {
    /// Computes the value from the digests of all kinds, in the order of [`Kind::ALL`].
    pub(crate) fn of(parts: [Digest; Kind::ALL.len()]) -> Self {
        let whole = sha256(parts.concat());
        let short = parts.iter().map(|part| short(&whole, part)).collect::<String>();
        Value { text: format!("{VERSION}.{}.{short}", hex(&whole)), parts: parts.to_vec() }
    }

    /// Returns the hash of one kind.
    pub(crate) fn part(&self, kind: Kind) -> &Digest {
        &self.parts[kind as usize]
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the kinds that differ from those of an image with this label, or why that cannot be
    /// told.
    pub(crate) fn kinds_unlike(&self, label: &str) -> Result<Vec<Kind>, &'static str> {
        let Some(rest) = label.strip_prefix(VERSION).and_then(|rest| rest.strip_prefix('.')) else {
            return Err("another version of buildlock made its label");
        };
        let whole = rest.split_once('.').and_then(|(whole, parts)| Some((unhex(whole)?, parts)));
        let Some((whole, parts)) = whole else { return Err("its label is damaged") };
        let theirs = |at: usize| parts.get(at * SHORT * 2..(at + 1) * SHORT * 2);
        let differs = |at: usize| theirs(at) != Some(&*short(&whole, &self.parts[at]));
        Ok((0..Kind::ALL.len()).filter(|&at| differs(at)).map(|at| Kind::ALL[at]).collect())
    }

    /// Says in what the inputs differ from those of an image with this label, if it has one.
    pub(crate) fn difference(&self, label: Option<&str>) -> String {
        let Some(label) = label else { return format!("it has no label {LABEL}") };
        match self.kinds_unlike(label) {
            Err(why) => why.to_owned(),
            Ok(kinds) => {
                let names: Vec<_> = kinds.into_iter().map(Kind::name).collect();
                match names.as_slice() {
                    [] => "its label is of another build".to_owned(),
                    [one] => format!("{one} changed"),
                    [others @ .., last] => format!("{} and {last} changed", others.join(", ")),
                }
            }
        }
    }
}

/// How much of a kind's hash the label has, in bytes: enough to tell that it changed.
const SHORT: usize = 4;

fn short(key: &Digest, part: &Digest) -> String {
    hex(&sha256([&key[..], &part[..]].concat())[..SHORT])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Digest> {
    let digits = text.as_bytes();
    let mut bytes = Digest::default();
    if digits.len() != bytes.len() * 2 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(context: u8, options: u8) -> Value {
        let mut parts = [Digest::default(); 6];
        parts[1][0] = context;
        parts[2][0] = options;
        Value::of(parts)
    }

    #[test]
    fn label_says_which_kinds_of_input_differ() {
        let label = value(1, 1);
        let now = |context, options| value(context, options).difference(Some(label.as_str()));
        assert_eq!(now(2, 1), "the context changed");
        assert_eq!(now(2, 2), "the context and the options changed");
        assert_eq!(value(1, 1), label);
        assert_ne!(value(2, 1).as_str(), label.as_str());
    }

    #[test]
    fn short_hashes_of_equal_parts_differ_between_images() {
        let parts = |value: &Value| value.as_str().rsplit('.').next().unwrap().to_owned();
        let (a, b) = (parts(&value(1, 1)), parts(&value(2, 1)));
        assert_eq!(a.len(), 6 * SHORT * 2);
        assert!((0..6).all(|at| a[at * 8..at * 8 + 8] != b[at * 8..at * 8 + 8]));
    }

    #[test]
    fn foreign_labels_are_told_apart() {
        let now = value(1, 1);
        assert_eq!(now.difference(None), "it has no label buildlock.inputs");
        for label in ["", "2.a.b", "nonsense"] {
            assert_eq!(now.difference(Some(label)), "another version of buildlock made its label");
        }
        for label in ["1.", "1.a.b", "1.\u{e9}.b"] {
            assert_eq!(now.difference(Some(label)), "its label is damaged");
        }
        let cut = &now.as_str()[..now.as_str().len() - 8];
        assert_eq!(now.difference(Some(cut)), "what --inputs names changed");
    }
}
