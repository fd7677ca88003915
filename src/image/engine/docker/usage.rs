//! The engine's own account of its cache mounts: `GET /system/df`, and `GET /events` for prunes.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;

use super::error::error_message;
use super::http;
use crate::image::answer::CacheMount;

/// Asks the engine that listens on `socket` for its cache mounts. Returns `None` if it does not
/// list them in time.
pub(crate) fn cache_mounts(socket: &Path, within: Duration) -> Option<Vec<CacheMount>> {
    /// How it refuses to count twice at the same time (moby, daemon/disk_usage.go, until 20.10).
    const IS_COUNTING: &str = "already running";
    const PAUSE: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        // Engines before API 1.42 ignore the type and answer with everything.
        let response = http::get(socket, "/system/df?type=build-cache", "", left).ok()?;
        if response.status == 200 {
            return mounts_in(&response.body).ok();
        }
        if !error_message(&response.body)?.contains(IS_COUNTING) {
            return None;
        }
        std::thread::sleep(PAUSE.min(left).mul_f64(0.5 + fastrand::f64()));
    }
}

/// Returns whether the engine that listens on `socket` has pruned its build cache since `since`, or
/// none if it does not answer in time.
///
/// Neither `docker buildx prune` nor BuildKit's own garbage collection leaves an event.
pub(crate) fn was_pruned(socket: &Path, since: SystemTime, within: Duration) -> Option<bool> {
    /// {"type":["builder"],"event":["prune"]}
    const PRUNES: &str = "%7B%22type%22%3A%5B%22builder%22%5D%2C%22event%22%3A%5B%22prune%22%5D%7D";
    let seconds = |time: SystemTime| {
        let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
    };
    // Without an end, the engine would wait for further events.
    let (since, until) = (seconds(since), seconds(SystemTime::now()));
    let ask = format!("/events?since={since}&until={until}&filters={PRUNES}");
    let response = http::get(socket, &ask, "", within).ok()?;
    // Some proxies in front of an engine let nobody ask for events.
    Some(response.status == 200 && has_prune(&response.body))
}

/// Returns whether one of these events, a JSON object each, is a prune of the build cache.
fn has_prune(events: &[u8]) -> bool {
    let events = serde_json::Deserializer::from_slice(events).into_iter::<serde_json::Value>();
    let mut events = events.map_while(Result::ok);
    events.any(|event| event["Type"] == "builder" && event["Action"] == "prune")
}

/// Reads the cache mounts in the engine's answer.
fn mounts_in(answer: &[u8]) -> serde_json::Result<Vec<CacheMount>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Usage {
        // Up to 20.10, null if there are none.
        build_cache: Option<Vec<Record>>,
    }
    #[derive(Deserialize)]
    struct Record {
        #[serde(rename = "ID")]
        id: String,
        #[serde(rename = "Type")]
        kind: String,
        #[serde(rename = "LastUsedAt")]
        last_used: Option<String>,
    }
    let usage: Usage = serde_json::from_slice(answer)?;
    let mounts =
        usage.build_cache.into_iter().flatten().filter(|record| record.kind == "exec.cachemount");
    let mounts = mounts.map(|Record { id, last_used, .. }| CacheMount {
        id,
        last_used: last_used.and_then(|time| moment(&time)),
    });
    Ok(mounts.collect())
}

/// Reads a moment as Go writes it: RFC 3339 in the daemon's time zone. humantime only reads UTC.
fn moment(time: &str) -> Option<SystemTime> {
    if time.ends_with('Z') {
        return humantime::parse_rfc3339(time).ok();
    }
    let (local, offset) = time.split_at_checked(time.len().checked_sub("+00:00".len())?)?;
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.len() == 2);
    let offset_by = Duration::from_secs(number(hours)? * 3600 + number(minutes)? * 60);
    match offset.as_bytes()[0] {
        b'+' => local.checked_sub(offset_by),
        b'-' => local.checked_add(offset_by),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_moment_is_read_in_any_time_zone() {
        let utc = humantime::parse_rfc3339("2024-02-29T23:30:00.5Z").unwrap();
        for same in [
            "2024-02-29T23:30:00.5Z",
            "2024-03-01T01:30:00.5+02:00",
            "2024-02-29T18:00:00.500000000-05:30",
        ] {
            assert_eq!(moment(same), Some(utc), "{same}");
        }
        for none in ["", "Z", "+02:00", "2024-02-29T23:30:00", "2024-02-29T23:30:00*02:00", "é2:00"]
        {
            assert_eq!(moment(none), None, "{none}");
        }
    }

    #[test]
    fn prune_is_found_among_events() {
        let prune = r#"{"Type":"builder","Action":"prune","Actor":{"ID":"","Attributes":{"reclaimed":"0"}}}"#;
        assert!(has_prune(
            format!("{{\"Type\":\"image\",\"Action\":\"prune\"}}\n{prune}\n").as_bytes()
        ));
        assert!(!has_prune(br#"{"Type":"builder","Action":"create"} {"BuildCache":[]}"#));
        assert!(!has_prune(b""));
    }

    proptest! {
        #[test]
        fn nothing_that_an_engine_lists_makes_us_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = mounts_in(&bytes);
            moment(&String::from_utf8_lossy(&bytes));
            has_prune(&bytes);
        }
    }
}
