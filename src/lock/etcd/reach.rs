//! Whether the cluster answers, and how long a question to it may take.
//!
//! A wait for locks ends at its limit, whatever the cluster does. So each question has a bound that
//! follows from the wait that is under way, and a cluster that has just left a question without an
//! answer is not asked another one that only serves people or tidiness.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::duration::Deadline;

/// How long a question may take in all, whichever member answers: an election takes a second or
/// two.
pub(super) const WITHIN: Duration = Duration::from_secs(10);
/// The same for what is only for people or for tidiness; and for all questions of a caller that
/// does not wait (`--timeout 0s`).
pub(super) const SHORTLY: Duration = Duration::from_secs(2);
/// A question that has gone unanswered for less may still get its answer.
const TIME_TO_ANSWER: Duration = Duration::from_millis(500);
/// How long after its limit a wait may still ask who it has waited for. The process ends within 100
/// ms of the limit, and has to give back its lease before.
const GRACE: Duration = Duration::from_millis(25);
/// The least that a question is given: enough for a member that is near.
const LEAST: Duration = Duration::from_millis(20);

/// What is known of the cluster's answers, for all threads of this process.
#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The limit of the wait that is under way, if there is one.
    wait: Option<Deadline>,
    /// Whether the cluster's last word was that somebody else holds the lock.
    is_busy: bool,
    /// How many questions are being asked.
    asking: usize,
    /// Since when questions have been asked without any answer.
    silent_since: Option<Instant>,
    /// When a question was given up, if none has been answered since.
    given_up: Option<Instant>,
    /// Why members gave no answer, since the last one.
    why: Option<String>,
}

impl Reach {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A wait for locks is under way.
    pub(super) fn waits(&self, deadline: Deadline) {
        self.state().wait = Some(deadline);
    }

    /// The wait is over: something runs under the locks.
    pub(super) fn has_waited(&self) {
        self.state().wait = None;
    }

    /// The cluster has said whether somebody else holds the lock.
    pub(super) fn is_busy(&self, is_busy: bool) {
        self.state().is_busy = is_busy;
    }

    /// A question is asked.
    pub(super) fn asks(&self) {
        let mut state = self.state();
        state.asking += 1;
        state.silent_since.get_or_insert_with(Instant::now);
    }

    /// One member did not answer a question, which goes on to the next.
    pub(super) fn missed(&self, why: &str) {
        self.state().why = Some(why.to_owned());
    }

    /// A question was answered.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        state.asking = state.asking.saturating_sub(1);
        state.silent_since = (state.asking > 0).then(Instant::now);
        (state.given_up, state.why) = (None, None);
    }

    /// A question was given up without an answer.
    pub(super) fn gave_up(&self) {
        let mut state = self.state();
        state.asking = state.asking.saturating_sub(1);
        state.given_up = Some(Instant::now());
    }

    /// Says why a question gets no answer that there is no time to ask.
    pub(super) fn why(&self) -> String {
        self.state().why.clone().unwrap_or_else(|| "there was no time to ask".to_owned())
    }

    /// Says why it is unknown whether the lock is held, if it is: no question has been answered for
    /// a while, or none since the lock was wanted.
    pub(super) fn silence(&self) -> Option<String> {
        let state = self.state();
        let silent = state.silent_since?.elapsed();
        let is_silent = !state.is_busy || silent >= TIME_TO_ANSWER;
        let no_answer = || format!("no answer for {}", crate::duration::for_people(silent));
        is_silent.then(|| state.why.clone().unwrap_or_else(no_answer))
    }

    /// Does the caller not wait at all?
    pub(super) fn is_at_once(&self) -> bool {
        self.state().wait.is_some_and(|deadline| deadline.is_at_once())
    }

    /// Returns how long a question may take that only serves people or tidiness: `longest` at most.
    pub(super) fn limited(&self, longest: Duration) -> Duration {
        let state = self.state();
        let was_given_up = state.given_up.is_some_and(|at| at.elapsed() < SHORTLY);
        let is_unanswered = state.silent_since.is_some_and(|at| at.elapsed() >= TIME_TO_ANSWER);
        match state.wait {
            _ if was_given_up || (state.asking > 0 && is_unanswered) => Duration::ZERO,
            Some(deadline) if deadline.is_at_once() => within(deadline).min(longest),
            Some(deadline) => {
                deadline.left_with(GRACE).map_or(longest, |left| left.max(LEAST).min(longest))
            }
            None => longest,
        }
    }

    /// Returns the same for a look at a lock that is held. No wait depends on it.
    pub(super) fn unless_silent(&self) -> Duration {
        let given_up = self.state().given_up;
        if given_up.is_some_and(|at| at.elapsed() < SHORTLY) { Duration::ZERO } else { SHORTLY }
    }

    /// Returns how long giving back the lease may take. A caller that ends while it waits ends at
    /// once.
    pub(super) fn to_leave(&self, is_lost: bool) -> Duration {
        let left = self.limited(SHORTLY);
        let is_waiting = self.state().wait.is_some();
        match (is_waiting, is_lost || left.is_zero()) {
            (true, _) => left.clamp(LEAST, TIME_TO_ANSWER),
            (false, true) => TIME_TO_ANSWER,
            (false, false) => left,
        }
    }
}

/// Returns how long a question may take that a wait until `deadline` depends on. A caller that does
/// not wait for a lock still waits for the cluster's word, but not for long.
pub(super) fn within(deadline: Deadline) -> Duration {
    if deadline.is_at_once() {
        return SHORTLY.saturating_sub(deadline.so_far()).max(GRACE);
    }
    deadline.left().map_or(WITHIN, |left| left.clamp(LEAST, WITHIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> Deadline {
        Deadline::after(crate::duration::parse_limit(text).unwrap())
    }

    #[test]
    fn questions_of_a_wait_end_with_it() {
        assert_eq!(within(limit("none")), WITHIN);
        assert_eq!(within(limit("1h")), WITHIN);
        let short = within(limit("100ms"));
        assert!(short <= Duration::from_millis(100), "{short:?}");
        let at_once = within(limit("0s"));
        assert!(at_once > GRACE && at_once <= SHORTLY, "{at_once:?}");
        let late = limit("1ms");
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(within(late), LEAST);
    }

    #[test]
    fn cluster_that_gave_no_answer_is_asked_nothing_for_people() {
        let reach = Reach::default();
        reach.waits(limit("1h"));
        reach.asks();
        assert_eq!(reach.limited(SHORTLY), SHORTLY);
        reach.missed("refused");
        reach.gave_up();
        assert_eq!((reach.limited(SHORTLY), reach.unless_silent()), Default::default());
        assert_eq!(reach.to_leave(false), LEAST);
        assert_eq!(reach.silence().as_deref(), Some("refused"));
        reach.asks();
        reach.answered();
        assert_eq!((reach.limited(SHORTLY), reach.silence()), (SHORTLY, None));
        reach.has_waited();
        assert_eq!((reach.to_leave(false), reach.to_leave(true)), (SHORTLY, TIME_TO_ANSWER));
    }

    #[test]
    fn moment_without_an_answer_is_no_silence_where_somebody_was_seen_to_hold_the_lock() {
        let reach = Reach::default();
        reach.asks();
        assert!(reach.silence().is_some());
        reach.is_busy(true);
        assert_eq!(reach.silence(), None);
        std::thread::sleep(TIME_TO_ANSWER);
        assert!(reach.silence().is_some());
    }
}
