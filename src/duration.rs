//! Time limits as users write them, and the deadlines that follow from them.

use std::time::{Duration, Instant};

/// A length of time, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(Option<Duration>);

impl Limit {
    /// Returns the length of time. As in `timeout(1)`, 0 means no limit.
    pub fn unless_zero(self) -> Option<Duration> {
        self.0.filter(|duration| !duration.is_zero())
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(duration) => humantime::format_duration(duration).fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Reads a time limit: `none`, a duration that humantime knows (`90s`, `1h 30m`), or a bare number
/// of seconds (`5`, `0.5`), which `timeout(1)` and `flock -w` take, too.
///
/// # Errors
/// The text is not a time limit; a message for the user.
pub fn parse_limit(text: &str) -> Result<Limit, String> {
    let text = text.trim();
    if text == "none" {
        return Ok(Limit(None));
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && text.bytes().all(|c| c.is_ascii_digit() || c == b'.')
    {
        let seconds: f64 =
            text.parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
        // More seconds than a Duration holds are longer than anybody can wait.
        return Ok(Limit(Duration::try_from_secs_f64(seconds).ok()));
    }
    match humantime::parse_duration(text) {
        Ok(duration) => Ok(Limit(Some(duration))),
        Err(error) => {
            Err(format!("{error}; write it as 90s, 10m, \"1h 30m\", a number of seconds, or none"))
        }
    }
}

/// The moment at which a wait ends.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    from: Instant,
    at: Option<Instant>,
    at_once: bool,
}

impl Deadline {
    /// Makes a deadline that is reached when `limit` has passed from now on.
    pub fn after(limit: Limit) -> Self {
        let from = Instant::now();
        Deadline {
            from,
            at: limit.0.and_then(|duration| from.checked_add(duration)),
            at_once: limit.0 == Some(Duration::ZERO),
        }
    }

    /// Makes a deadline with this much time left, or without a limit. No time left means not to
    /// wait at all.
    pub(crate) fn within(left: Option<Duration>) -> Self {
        Self::after(Limit(left))
    }

    /// Returns whether the limit was zero from the start: the caller does not want to wait at all.
    pub fn is_at_once(&self) -> bool {
        self.at_once
    }

    /// Returns how long ago the deadline was set.
    pub(crate) fn so_far(&self) -> Duration {
        self.from.elapsed()
    }

    /// Returns the time left: zero after the deadline, none without a limit.
    pub fn left(&self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Returns the time left until `grace` after the deadline: zero after that, none without a
    /// limit.
    pub(crate) fn left_with(&self, grace: Duration) -> Option<Duration> {
        let at = self.at?.checked_add(grace)?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Returns whether no time is left.
    pub fn has_passed(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }
}

/// Rounds a duration for people: to the nearest second, or below one second to a millisecond.
pub fn for_people(duration: Duration) -> humantime::FormattedDuration {
    let milliseconds = (duration.as_secs_f64() * 1e3).round() as u64;
    humantime::format_duration(match milliseconds {
        0..1000 => Duration::from_millis(milliseconds),
        _ => Duration::from_secs(duration.as_secs_f64().round() as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(text: &str) -> Option<f64> {
        parse_limit(text).unwrap().0.map(|duration| duration.as_secs_f64())
    }

    #[test]
    fn durations_are_read_as_flock_timeout_and_humantime_read_them() {
        for (text, expected) in [
            ("90", 90.0),
            ("0", 0.0),
            ("0.5", 0.5),
            (".5", 0.5),
            ("90s", 90.0),
            ("0s", 0.0),
            ("10m", 600.0),
            ("1h 30m", 5400.0),
            ("1h30m", 5400.0),
            ("250ms", 0.25),
            ("1d", 86400.0),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        assert_eq!(seconds("none"), None);
    }

    #[test]
    fn text_that_is_not_a_duration_is_refused() {
        for text in ["", " ", "-1", "-1s", "1x", "abc", "1.2.3", ".", "nan", "inf", "1e3", "NONE"] {
            assert!(parse_limit(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn people_read_durations_rounded() {
        for (seconds, expected) in [
            (0.0, "0s"),
            (0.23, "230ms"),
            (0.9999, "1s"),
            (2.99, "3s"),
            (123.4, "2m 3s"),
            (3600.0, "1h"),
        ] {
            let shown = for_people(Duration::from_secs_f64(seconds)).to_string();
            assert_eq!(shown, expected, "{seconds}");
        }
    }

    #[test]
    fn duration_beyond_all_time_is_no_limit() {
        assert_eq!(Deadline::after(parse_limit("99999999999999999999999").unwrap()).left(), None);
        assert_eq!(Deadline::after(parse_limit("18446744073709551615s").unwrap()).left(), None);
    }

    proptest! {
        #[test]
        fn a_bare_number_is_seconds(n in 0u32..) {
            prop_assert_eq!(seconds(&n.to_string()), Some(f64::from(n)));
        }

        #[test]
        fn what_humantime_prints_is_read_back(ms in 0u64..1_000_000_000_000) {
            let duration = Duration::from_millis(ms);
            let text = humantime::format_duration(duration).to_string();
            prop_assert_eq!(parse_limit(&text).unwrap().0, Some(duration));
        }

        #[test]
        fn nothing_makes_the_parser_panic(text in ".{0,40}") {
            let _ = parse_limit(&text);
        }
    }
}
