//! Reads time limits. The parser accepts or refuses a text, and never panics. An accepted limit can
//! be read back from the text that shows it.
#![no_main]

use std::time::Duration;

use buildlock::duration::{Deadline, for_people, parse_limit};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let limit = match parse_limit(text) {
        Ok(limit) => limit,
        Err(why) => {
            assert!(!why.is_empty());
            // Digits alone are a number of seconds, however many they are.
            assert!(
                text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()),
                "{text:?}: {why}"
            );
            return;
        }
    };
    let said = limit.to_string();
    assert_eq!(parse_limit(&said), Ok(limit), "{text:?} is shown as {said:?}");
    if let Ok(seconds @ 0..=0xffff_ffff) = text.parse::<u64>() {
        let expected = (seconds > 0).then(|| Duration::from_secs(seconds));
        assert_eq!(limit.unless_zero(), expected, "{text:?}");
    }

    let deadline = Deadline::after(limit);
    match deadline.left() {
        None => assert!(!deadline.has_passed()),
        Some(left) if deadline.is_at_once() => assert_eq!(left, Duration::ZERO),
        Some(left) => assert!(limit.unless_zero().is_some_and(|limit| left <= limit)),
    }
    if let Some(duration) = limit.unless_zero() {
        // It is rounded to the nearest second, or below one second to a millisecond.
        let shown = for_people(duration).to_string();
        let shown = parse_limit(&shown).expect("the text for people is a duration").unless_zero();
        let off = shown.unwrap_or_default().abs_diff(duration);
        // The seconds are a float, which has 53 bits.
        let rounding = Duration::from_millis(501).max(duration / (1 << 30));
        assert!(off <= rounding, "{duration:?} is shown as {shown:?}");
    }
});
