//! Asking again when no answer came for a reason that may pass.

use std::fmt::{Debug, Display};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::answer::{ANSWER_WITHIN, Unanswered};

/// How often an engine is asked that cannot answer for a reason that may pass.
const TRIES: u32 = 5;
/// The pause before the second try. It doubles from try to try.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Asks until there is an answer, or a reason not to ask again.
pub(crate) fn insist<T: Debug>(
    asked: &dyn Display,
    ask: impl Fn() -> Result<T, Unanswered>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut tried = 1;
    loop {
        let error = match ask() {
            Ok(answer) => {
                tracing::debug!("{asked}: {answer:?}");
                return Ok(answer);
            }
            Err(error) => error,
        };
        if !error.is_transient || tried == TRIES || start.elapsed() >= ANSWER_WITHIN {
            bail!("{asked}: cannot tell whether the image is present: {}", error.why);
        }
        tracing::debug!("{asked}: {}; asking again", error.why);
        std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64()));
        pause *= 2;
        tried += 1;
    }
}
