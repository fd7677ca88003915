//! How long a wait for a lock may ask and watch, and how it goes on when the cluster is silent.

use std::time::Duration;

use anyhow::{Result, bail};

use super::client::{Client, Watched};
use super::reach::{SHORTLY, SILENCE_MAX, WITHIN, pause};
use crate::duration::Deadline;
use crate::lock::Passing;

/// What is left of the time for waiting.
pub(super) struct Time {
    deadline: Deadline,
}

impl Time {
    /// Returns how long a question may take.
    pub(super) fn to_ask(&self) -> Duration {
        self.deadline.left().map_or(WITHIN, |left| left.min(WITHIN))
    }

    /// Returns how long to watch a key.
    ///
    /// A watch is silent for two reasons: the holder builds, or the cluster is gone. To tell them
    /// apart, the cluster is asked once more before the time is up.
    fn to_watch(&self) -> Duration {
        const LAST_LOOK: Duration = Duration::from_secs(1);
        let Some(left) = self.deadline.left() else { return SILENCE_MAX };
        match left.saturating_sub(LAST_LOOK) {
            Duration::ZERO => left,
            before => before.min(SILENCE_MAX),
        }
    }

    /// Waits until the key is deleted after the revision `from`, or it is time to look again.
    pub(super) fn wait_deleted(&self, client: &Client, key: &str, from: i64) -> Result<Watched> {
        let within = self.to_watch();
        if within.is_zero() {
            // The thread that waits for this one gives up by itself.
            std::thread::sleep(SHORTLY);
            bail!("the time for waiting is over");
        }
        Ok(client.wait_deleted(key, from, within))
    }
}

/// Repeats `ask` until the cluster answers, or the deadline passes.
pub(super) fn insist<T>(
    client: &Client,
    deadline: Deadline,
    mut ask: impl FnMut(&Time) -> Result<T>,
) -> Result<T> {
    client.reach().begin_wait(deadline);
    let time = Time { deadline };
    let mut is_said = false;
    loop {
        match ask(&time) {
            Err(error) if error.is::<Passing>() && deadline.has_passed() => {
                // The thread that waits for this one gives up by itself, and knows whether the
                // cluster answers (see Locks::is_answering).
                std::thread::sleep(SHORTLY);
                return Err(error);
            }
            Err(error) if error.is::<Passing>() => {
                if std::mem::replace(&mut is_said, true) {
                    tracing::debug!("{error}; asking again");
                    std::thread::sleep(pause());
                } else {
                    tracing::warn!("{error}; asking again");
                }
            }
            done => return done,
        }
    }
}
