//! Why the cluster did not do what it was asked.

use std::fmt;

use crate::visible;

/// Longest message of a server that is repeated, in characters.
const MESSAGE_MAX: usize = 500;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// No member could be asked, or none that has a leader. This may pass.
    Unreachable(String),
    /// The lease does not exist.
    NoLease,
    /// The cluster refuses the request.
    Refused(String),
    /// The answer is impossible.
    Nonsense(String),
}

impl Problem {
    /// Quotes what a server says about its refusal.
    pub(super) fn refused(message: &str) -> Self {
        Problem::Refused(quoted(message))
    }

    /// Quotes a server that does not speak etcd's API.
    pub(super) fn not_etcd(said: &str) -> Self {
        Problem::Refused(format!("the server is not etcd; it says: {}", shown(said, 200)))
    }

    /// Names the part of an answer that is impossible.
    pub(super) fn nonsense(name: &str, value: &serde_json::Value) -> Self {
        Problem::Nonsense(format!("{name} is {}", shown(&value.to_string(), 50)))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unreachable(why) => write!(f, "no member of etcd can be reached: {why}"),
            Problem::NoLease => f.write_str("its lease is gone"),
            Problem::Refused(why) => write!(f, "etcd refuses: {why}"),
            Problem::Nonsense(what) => write!(f, "etcd's answer makes no sense: {what}"),
        }
    }
}

impl std::error::Error for Problem {}

/// Quotes a server's message, shortened and without control characters.
pub(super) fn quoted(message: &str) -> String {
    shown(message, MESSAGE_MAX)
}

fn shown(said: &str, most: usize) -> String {
    let start: String = said.chars().take(most).collect();
    visible::escaped(&start)
}
