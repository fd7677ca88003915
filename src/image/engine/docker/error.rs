//! Errors of the engine: what it says, and why it may not say anything.

use std::io::{Error, ErrorKind};
use std::path::Path;

use serde_json::Value;

use crate::image::answer::{ANSWER_WITHIN, Unanswered};

/// Returns the text of an engine's error: `{"message": "…"}`.
pub(crate) fn error_message(body: &[u8]) -> Option<String> {
    // A derived type would also accept a list.
    Some(serde_json::from_slice::<Value>(body).ok()?.get("message")?.as_str()?.to_owned())
}

/// Explains why the engine that should listen on `socket` gave no answer.
pub(crate) fn explain(socket: &Path, error: &Error) -> Unanswered {
    let at = socket.display();
    match error.kind() {
        ErrorKind::PermissionDenied => Unanswered::permanent(format!(
            "no permission to ask the engine at {at}: {error}; may this user use docker (group \
             docker)?"
        )),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Unanswered::permanent(format!(
            "the engine at {at} did not answer within {}",
            humantime::format_duration(ANSWER_WITHIN)
        )),
        ErrorKind::InvalidData => {
            Unanswered::permanent(format!("what listens on {at} is not an engine: {error}"))
        }
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            Unanswered::transient(format!("no engine answers at {at}: {error}; is it running?"))
        }
        _ => Unanswered::transient(format!("the engine at {at} did not answer: {error}")),
    }
}
