//! What lint finds, and how serious it is.

use serde::Serialize;

/// A finding as users see it.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) path: String,
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    pub(super) level: Level,
    pub(super) rule: Rule,
    pub(super) message: String,
    pub(super) advice: String,
    /// Whether `--fix` has dealt with it.
    pub(super) fixed: bool,
}

/// A finding in a text, before its line and column are known.
#[derive(Debug)]
pub(super) struct TextFinding {
    /// Its first byte.
    pub(super) at: usize,
    pub(super) rule: Rule,
    pub(super) message: String,
    pub(super) advice: &'static str,
    /// The byte at which `--fix` can insert its text.
    pub(super) fix: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Error,
    Note,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Rule {
    #[serde(rename = "cache-mount-race")]
    Race,
    #[serde(rename = "cache-mount-mixed-sharing")]
    Mixed,
    #[serde(rename = "cache-mount-unknown")]
    Unknown,
    #[serde(rename = "cache-mount-variable")]
    Variable,
    #[serde(rename = "compose-same-image")]
    SameImage,
    #[serde(rename = "bake-same-image")]
    SameImageInBake,
}

impl Level {
    /// Returns the word for it in every output format.
    pub(super) fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Note => "note",
        }
    }
}

impl Rule {
    pub(super) const ALL: [Rule; 6] = [
        Rule::Race,
        Rule::Mixed,
        Rule::Unknown,
        Rule::Variable,
        Rule::SameImage,
        Rule::SameImageInBake,
    ];

    /// Returns the rule's name in output and in comments that ignore it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Rule::Race => "cache-mount-race",
            Rule::Mixed => "cache-mount-mixed-sharing",
            Rule::Unknown => "cache-mount-unknown",
            Rule::Variable => "cache-mount-variable",
            Rule::SameImage => "compose-same-image",
            Rule::SameImageInBake => "bake-same-image",
        }
    }

    /// Returns a sentence about the rule for tools that list rules.
    pub(super) fn description(self) -> &'static str {
        match self {
            Rule::Race => "Concurrent builds can break each other's files in a cache mount",
            Rule::Mixed => "A cache mount is shared in one place and locked in another",
            Rule::Unknown => "A cache mount is shared, and the tool that writes to it is unknown",
            Rule::Variable => "Whether a cache mount races depends on a variable of the build",
            Rule::SameImage => "Two services build the same image",
            Rule::SameImageInBake => "Two targets build the same image",
        }
    }

    /// Returns how serious a finding of this rule is. `strict` turns notes into errors.
    pub(super) fn level(self, strict: bool) -> Level {
        match self {
            Rule::Race | Rule::Mixed | Rule::SameImage | Rule::SameImageInBake => Level::Error,
            Rule::Unknown | Rule::Variable if strict => Level::Error,
            Rule::Unknown | Rule::Variable => Level::Note,
        }
    }
}

/// The file could be read, but it is not what its name says.
#[derive(Debug)]
pub(super) struct WrongKind(pub(super) String);

impl std::fmt::Display for WrongKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongKind {}
