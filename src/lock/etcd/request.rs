//! The parts of a transaction, as etcd's JSON gateway takes them: comparisons and operations. Keys
//! and values are base64, and numbers are strings.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// Compares: no key has this prefix.
pub(super) fn none_with_prefix(prefix: &str) -> Value {
    json!({ "target": "CREATE", "result": "EQUAL", "create_revision": "0",
            "key": encode(prefix), "range_end": encode_end(prefix) })
}

/// Compares: the key exists, and was created at this revision.
pub(super) fn created_at(key: &str, revision: i64) -> Value {
    json!({ "target": "CREATE", "result": "EQUAL", "create_revision": revision.to_string(),
            "key": encode(key) })
}

/// Compares: the key does not exist.
pub(super) fn missing(key: &str) -> Value {
    created_at(key, 0)
}

/// Compares: the key has this value or, for none, does not exist.
pub(super) fn has_value(key: &str, value: Option<&[u8]>) -> Value {
    match value {
        Some(value) => json!({ "key": encode(key), "target": "VALUE", "result": "EQUAL",
                               "value": BASE64.encode(value) }),
        None => missing(key),
    }
}

/// Puts a value under the key, for as long as the lease lasts; lease 0 means for ever.
pub(super) fn put(key: &str, value: &[u8], lease: i64) -> Value {
    json!({ "request_put": { "key": encode(key), "value": BASE64.encode(value), "lease": lease.to_string() } })
}

/// Deletes the key.
pub(super) fn delete(key: &str) -> Value {
    json!({ "request_delete_range": { "key": encode(key) } })
}

/// Reads one key.
pub(super) fn read(key: &str) -> Value {
    json!({ "request_range": { "key": encode(key) } })
}

/// Reads all keys with this prefix, in the order in which they were created.
pub(super) fn read_all(prefix: &str) -> Value {
    json!({ "request_range": { "key": encode(prefix), "range_end": encode_end(prefix),
            "sort_order": "ASCEND", "sort_target": "CREATE" } })
}

/// Watches one key for its deletion after the revision `from`.
pub(super) fn watch_deletion(key: &str, from: i64) -> Value {
    json!({ "create_request": {
        "key": encode(key), "start_revision": from.to_string(), "filters": ["NOPUT"],
    }})
}

fn encode(key: &str) -> String {
    BASE64.encode(key)
}

/// Returns the first key after all keys with this prefix.
fn encode_end(prefix: &str) -> String {
    let mut end = prefix.as_bytes().to_vec();
    // Our prefixes end with '/', never with 0xff.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    BASE64.encode(end)
}
