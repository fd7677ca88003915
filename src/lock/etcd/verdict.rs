//! What the answer of one member means: a result, a reason to ask another member, or a refusal.

use std::io::ErrorKind;

use serde_json::Value;
use ureq::http::StatusCode;

use super::answer::int;
use super::problem::{Problem, quoted};

/// Codes of gRPC (<https://grpc.io/docs/guides/status-codes/>), as the gateway gives them.
mod code {
    pub(super) const CANCELED: i64 = 1;
    /// Errors for which etcd has no code, such as a leader that is just being replaced
    /// (etcd-io/etcd#21671).
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const DEADLINE_EXCEEDED: i64 = 4;
    pub(super) const NOT_FOUND: i64 = 5;
    pub(super) const RESOURCE_EXHAUSTED: i64 = 8;
    pub(super) const ABORTED: i64 = 10;
    pub(super) const INTERNAL: i64 = 13;
    pub(super) const UNAVAILABLE: i64 = 14;
    pub(super) const UNAUTHENTICATED: i64 = 16;
}

/// Why one member gave no result.
pub(super) enum NoResult {
    /// Another member may give one.
    Elsewhere(String, Hope),
    /// The token is no longer accepted: ask again with a new one.
    StaleToken,
    /// No member will give one.
    Final(Problem),
}

/// Whether the same member may give a result later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    Some,
    /// Nothing listens there. A member may be about to start.
    Little,
    None,
}

impl Hope {
    /// Judges a failed request. A certificate that does not fit will not fit later, and a server
    /// that does not speak HTTP will not learn it.
    fn after(why: &ureq::Error) -> Self {
        match why {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Protocol(_) => Hope::None,
            // How rustls reports it.
            ureq::Error::Io(why) if why.kind() == ErrorKind::InvalidData => Hope::None,
            ureq::Error::Io(why) if why.kind() == ErrorKind::ConnectionRefused => Hope::Little,
            _ => Hope::Some,
        }
    }
}

/// Judges a request that got no complete answer of at most `largest` bytes.
pub(super) fn of_failure(why: &ureq::Error, largest: u64) -> NoResult {
    match why {
        ureq::Error::BodyExceedsLimit(_) => {
            let what = format!("it has more than {} MiB", largest >> 20);
            NoResult::Final(Problem::Nonsense(what))
        }
        ureq::Error::Timeout(_) => NoResult::Elsewhere("no answer".into(), Hope::Some),
        why => NoResult::Elsewhere(why.to_string(), Hope::after(why)),
    }
}

/// Judges an answer. `has_user` tells whether a token was sent for a user.
pub(super) fn of_answer(status: StatusCode, text: &str, has_user: bool) -> Result<Value, NoResult> {
    let mut answer: Value = serde_json::from_str(text).unwrap_or_default();
    // Answers that are streams in the API are wrapped.
    if let Some(result) = answer.get_mut("result").map(Value::take) {
        answer = result;
    }
    if status == StatusCode::OK && !cluster_id(&answer).is_null() {
        return Ok(answer);
    }
    let error = answer.get("error").filter(|error| error.is_object()).unwrap_or(&answer);
    match error["message"].as_str().or(answer["error"].as_str()) {
        Some(message) => {
            let code = |name: &str| int(&error[name]).unwrap_or_default();
            Err(of_error(code("code").max(code("grpc_code")), message, has_user))
        }
        // A proxy in front of a member that is down.
        None if status.is_server_error() => {
            Err(NoResult::Elsewhere(format!("HTTP {status}"), Hope::Some))
        }
        None => Err(NoResult::Final(Problem::not_etcd(text))),
    }
}

/// Returns the id of the cluster that gave the answer.
pub(super) fn cluster_id(answer: &Value) -> &Value {
    &answer["header"]["cluster_id"]
}

fn of_error(code: i64, message: &str, has_user: bool) -> NoResult {
    match code {
        // "mvcc: database space exceeded" lasts until an administrator makes room.
        code::RESOURCE_EXHAUSTED if message.contains("space exceeded") => {
            NoResult::Final(Problem::refused(message))
        }
        code::UNAVAILABLE
        | code::DEADLINE_EXCEEDED
        | code::RESOURCE_EXHAUSTED
        | code::CANCELED
        | code::UNKNOWN
        | code::ABORTED
        | code::INTERNAL => NoResult::Elsewhere(quoted(message), Hope::Some),
        code::UNAUTHENTICATED if has_user => NoResult::StaleToken,
        // Users or roles have changed since the token was issued.
        _ if has_user && message.contains("auth store is old") => NoResult::StaleToken,
        code::NOT_FOUND if message.contains("lease") => NoResult::Final(Problem::NoLease),
        _ => NoResult::Final(Problem::refused(message)),
    }
}
