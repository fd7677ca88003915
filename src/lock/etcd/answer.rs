//! What etcd answers, read from the JSON of its gateway. Keys and values are base64, numbers are
//! strings, and zero or empty fields are left out.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::problem::Problem;

/// A key with its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    /// The revision of the store at which the key was created. No two keys have the same.
    pub(super) created: i64,
}

/// The answer to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The revision of the store at that moment.
    pub(super) revision: i64,
    /// The election term of the leader, as the member knows it.
    term: Value,
    /// Whether all comparisons held.
    pub(super) succeeded: bool,
    /// What was read: one list for each range.
    pub(super) read: Vec<Vec<Entry>>,
}

impl Answer {
    /// Reads the answer to a transaction.
    ///
    /// A key that cannot be read makes the whole answer nonsense, for it may be the holder's.
    pub(super) fn of(answer: &Value) -> Result<Self, Problem> {
        let read = answer["responses"].as_array().into_iter().flatten();
        let read = read.filter_map(|response| response.get("response_range"));
        let entries =
            |range: &Value| range["kvs"].as_array().into_iter().flatten().map(entry).collect();
        Ok(Answer {
            revision: number(&answer["header"], "revision", 0)?,
            term: term(answer).clone(),
            succeeded: answer["succeeded"] == true,
            read: read.map(entries).collect::<Result<_, Problem>>()?,
        })
    }

    /// Returns whether another answer was given in the same election term.
    pub(super) fn is_of_same_term(&self, other: &Value) -> bool {
        self.term == *term(other)
    }

    /// Returns everything that was read, in one sequence.
    pub(super) fn entries(self) -> impl Iterator<Item = Entry> {
        self.read.into_iter().flatten()
    }
}

fn term(answer: &Value) -> &Value {
    &answer["header"]["raft_term"]
}

fn entry(kv: &Value) -> Result<Entry, Problem> {
    let bytes = |name: &str| match &kv[name] {
        Value::Null => Ok(Vec::new()),
        text => text
            .as_str()
            .and_then(|text| BASE64.decode(text).ok())
            .ok_or_else(|| Problem::nonsense(name, text)),
    };
    Ok(Entry {
        key: String::from_utf8_lossy(&bytes("key")?).into_owned(),
        value: bytes("value")?,
        created: number(kv, "create_revision", 1)?,
    })
}

/// Reads a number that must be at least `least`, and not the largest possible one.
pub(super) fn number(answer: &Value, name: &str, least: i64) -> Result<i64, Problem> {
    let number = int(&answer[name]).filter(|number| (least..i64::MAX).contains(number));
    number.ok_or_else(|| Problem::nonsense(name, &answer[name]))
}

pub(super) fn seconds(number: i64) -> Duration {
    Duration::from_secs(number.try_into().unwrap_or_default())
}

/// Reads a whole number; one that is left out is zero.
pub(super) fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Null => Some(0),
        Value::String(text) => text.parse().ok(),
        number => number.as_i64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_whole_and_within_their_bounds() {
        let answer =
            json!({ "a": "7", "b": 7, "max": i64::MAX.to_string(), "c": "7.5", "d": 1e300 });
        assert_eq!((number(&answer, "a", 1), number(&answer, "b", 1)), (Ok(7), Ok(7)));
        assert_eq!(number(&answer, "left out", 0), Ok(0));
        for name in ["left out", "max", "c", "d"] {
            assert!(matches!(number(&answer, name, 1), Err(Problem::Nonsense(_))), "{name}");
        }
    }
}
