//! What an engine, a registry or a command answers, and why there may be no answer.
//!
//! The fuzz targets use what is `pub` here.

use std::time::{Duration, SystemTime};

use super::platform::Platform;

/// Longest wait for one answer. An engine under load takes seconds; a broken one never answers.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What an engine or a registry knows about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has no such image.
    Missing,
    /// It has one, for these platforms. The list is empty if they are unknown.
    Present(Vec<Platform>),
}

impl Answer {
    /// Returns whether the image is present but its platforms are unknown.
    pub(crate) fn names_no_platform(&self) -> bool {
        matches!(self, Answer::Present(there) if there.is_empty())
    }
}

/// The ID of an image, as the engine shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The engine has no image of that name.
    Missing,
    /// What `image inspect` calls `Id`.
    Known(String),
    /// The image may be there, but the engine does not tell its ID.
    Unknown,
}

/// The process that listens on an engine's local socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineProcess {
    /// The process with this number.
    Visible(u32),
    /// A process outside this PID namespace.
    Elsewhere,
}

/// A cache that builds on an engine share (`RUN --mount=type=cache`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheMount {
    /// The engine's ID for it. The engine never reuses an ID.
    pub(crate) id: String,
    /// When a build last used it.
    pub(crate) last_used: Option<SystemTime>,
}

/// Why there is no certain answer.
#[derive(Debug)]
pub struct Unanswered {
    /// A sentence for the user.
    pub why: String,
    /// Whether it is worth asking again.
    pub is_transient: bool,
}

impl Unanswered {
    pub(crate) fn transient(why: impl Into<String>) -> Self {
        Unanswered { why: why.into(), is_transient: true }
    }

    pub(crate) fn permanent(why: impl Into<String>) -> Self {
        Unanswered { why: why.into(), is_transient: false }
    }

    /// Rewords the reason.
    pub(crate) fn map_why(self, reword: impl FnOnce(String) -> String) -> Self {
        Unanswered { why: reword(self.why), ..self }
    }
}

/// Returns the first 300 characters of some output on one line, for a message. Returns "nothing" if
/// the output is empty.
pub(crate) fn excerpt(text: &[u8]) -> String {
    const LONGEST: usize = 300;
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined = lines.join("; ");
    match joined.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &joined[..end]),
        None if joined.is_empty() => "nothing".to_owned(),
        None => joined,
    }
}
