//! Standing in line for a slot, and what the user is told meanwhile.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::duration::Deadline;
use crate::lock::key::Key;
use crate::lock::store::{Store, Woken};
use crate::lock::wait::{Schedule, TICK, on_a_thread};
use crate::log;
use crate::terminal::LiveLine;

/// How long a wait is not worth a message.
const GRACE: Duration = Duration::from_millis(10);

/// One wait in line, from the user's point of view.
pub(super) struct Line {
    limit: u16,
    deadline: Deadline,
    /// How many builds run, as far as it is known.
    running: usize,
    schedule: Schedule,
}

impl Line {
    pub(super) fn begin(limit: u16, deadline: Deadline) -> Self {
        Line { limit, deadline, running: limit.into(), schedule: Schedule::start() }
    }

    pub(super) fn note_running(&mut self, running: usize) {
        self.running = running;
    }

    /// Waits until a bell rings, or until this caller is the first in line, and reports the wait.
    /// Returns `None` if the deadline passed, which was logged.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn wait(
        &mut self,
        store: &Arc<dyn Store>,
        bells: Vec<Key>,
        wanted: Option<Key>,
    ) -> Result<Option<Woken>> {
        if self.deadline.is_at_once() {
            self.give_up();
            return Ok(None);
        }
        let (sender, receiver) = mpsc::channel();
        let theirs = Arc::clone(store);
        on_a_thread("waiter", &**store, move || {
            // The receiver may be gone by then. What was taken is then released at once.
            _ = sender.send(theirs.wait_for_any(&bells, wanted.as_ref()));
        })?;
        let mut live = None;
        let begun = Instant::now();
        loop {
            if begun.elapsed() >= GRACE {
                live = live.or_else(LiveLine::start);
                self.report(live.as_mut());
            }
            let tick = live.is_some().then_some(TICK);
            let grace = (begun.elapsed() < GRACE).then_some(GRACE);
            let next = [self.deadline.left(), self.schedule.next_wake(), tick, grace];
            let next = next.into_iter().flatten().min().unwrap_or(Duration::MAX);
            match receiver.recv_timeout(next) {
                Ok(woken) => return woken.map(Some),
                Err(RecvTimeoutError::Timeout) if self.deadline.has_passed() => {
                    drop(live);
                    self.give_up();
                    return Ok(None);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the thread that waited is gone"),
            }
        }
    }

    fn report(&mut self, live: Option<&mut LiveLine>) {
        let waited = self.schedule.so_far();
        let is_due = self.schedule.is_message_due();
        match live {
            Some(live) => live.show(&self.waiting(), waited),
            None if is_due => log::waiting_for_slot(&self.waiting(), waited),
            None => {}
        }
        if is_due {
            self.schedule.note_reported(waited);
        }
    }

    /// Logs that the time is up.
    fn give_up(&self) {
        log::slot_timeout(&self.waiting(), self.deadline.so_far());
    }

    fn waiting(&self) -> log::WaitingForSlot {
        log::WaitingForSlot { running: self.running, limit: self.limit }
    }
}
