//! Whether the cluster answers, and how long a question may take.
//!
//! A wait for locks ends at its limit, whatever the cluster does. So the current wait bounds each
//! question. A cluster that has just left a question unanswered is not asked another one that only
//! serves messages or tidiness.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::duration::Deadline;

/// How long a question may take in total, whichever member answers. An election takes a second or
/// two.
pub(super) const WITHIN: Duration = Duration::from_secs(10);
/// How long a question may take that only serves messages or tidiness; and how long all questions
/// of a caller that does not wait (`--timeout 0s`) may take in total.
pub(super) const SHORTLY: Duration = Duration::from_secs(2);
/// How long a watch may be silent before it is made anew: a member that is cut off from the others
/// is silent, too.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The average pause before a question is asked again that was refused or not answered.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// A question counts as unanswered after this time.
const TIME_TO_ANSWER: Duration = Duration::from_millis(500);
/// How long after its limit a wait may still ask for the holder's name. The process must end within
/// 100 ms of the limit, and give back its lease before that.
const GRACE: Duration = Duration::from_millis(25);
/// The least time for a question: enough for a member nearby.
const LEAST: Duration = Duration::from_millis(20);

/// What all threads of this process know of the cluster's answers.
#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The limit of the current wait, if there is one.
    wait: Option<Deadline>,
    /// Whether the cluster last said that another process holds the lock.
    is_busy: bool,
    /// How many questions are waiting for an answer.
    asking: usize,
    /// Since when questions have been waiting without any answer.
    silent_since: Option<Instant>,
    /// When a question was last given up, if none has been answered since.
    given_up: Option<Instant>,
    /// Why a member last gave no answer, if none has answered since.
    why: Option<String>,
}

impl Reach {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a wait for locks begins.
    pub(super) fn begin_wait(&self, deadline: Deadline) {
        self.state().wait = Some(deadline);
    }

    /// Notes that the wait is over: something runs under the locks.
    pub(super) fn end_wait(&self) {
        self.state().wait = None;
    }

    /// Notes whether the cluster says that another process holds the lock.
    pub(super) fn set_busy(&self, is_busy: bool) {
        self.state().is_busy = is_busy;
    }

    /// Notes that a question is asked.
    pub(super) fn begin_question(&self) {
        let mut state = self.state();
        state.asking += 1;
        state.silent_since.get_or_insert_with(Instant::now);
    }

    /// Notes that a member did not answer. The question goes to the next one.
    pub(super) fn note_failure(&self, why: &str) {
        self.state().why = Some(why.to_owned());
    }

    /// Notes that a question was answered.
    pub(super) fn note_answer(&self) {
        let mut state = self.state();
        state.asking = state.asking.saturating_sub(1);
        state.silent_since = (state.asking > 0).then(Instant::now);
        (state.given_up, state.why) = (None, None);
    }

    /// Notes that a question was given up without an answer.
    pub(super) fn note_given_up(&self) {
        let mut state = self.state();
        state.asking = state.asking.saturating_sub(1);
        state.given_up = Some(Instant::now());
    }

    /// Returns why there is no answer to a question that there was no time to ask.
    pub(super) fn why_unanswered(&self) -> String {
        self.state().why.clone().unwrap_or_else(|| "there was no time to ask".to_owned())
    }

    /// Returns why it is unknown whether the lock is held, if it is unknown: no question has been
    /// answered for a while, or none since the wait began.
    pub(super) fn silence(&self) -> Option<String> {
        let state = self.state();
        let silent = state.silent_since?.elapsed();
        let is_silent = !state.is_busy || silent >= TIME_TO_ANSWER;
        let no_answer = || format!("no answer for {}", crate::duration::for_people(silent));
        is_silent.then(|| state.why.clone().unwrap_or_else(no_answer))
    }

    /// Returns whether the caller does not wait at all (`--timeout 0s`).
    pub(super) fn is_at_once(&self) -> bool {
        self.state().wait.is_some_and(|deadline| deadline.is_at_once())
    }

    /// Returns how long a question may take that only serves messages or tidiness, `longest` at most.
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

    /// Returns how long a look at a held lock may take. No wait depends on it.
    pub(super) fn unless_silent(&self) -> Duration {
        let given_up = self.state().given_up;
        if given_up.is_some_and(|at| at.elapsed() < SHORTLY) { Duration::ZERO } else { SHORTLY }
    }

    /// Returns how long giving back the lease may take. A caller that is ended while it waits must
    /// end at once.
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
/// not wait for a lock still waits for the cluster's answer, but not for long.
pub(super) fn within(deadline: Deadline) -> Duration {
    if deadline.is_at_once() {
        return SHORTLY.saturating_sub(deadline.so_far()).max(GRACE);
    }
    deadline.left().map_or(WITHIN, |left| left.clamp(LEAST, WITHIN))
}

/// Returns a random pause before a question is asked again.
pub(super) fn pause() -> Duration {
    ASK_AGAIN.mul_f64(0.5 + fastrand::f64())
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
    fn silent_cluster_is_asked_nothing_that_only_serves_messages() {
        let reach = Reach::default();
        reach.begin_wait(limit("1h"));
        reach.begin_question();
        assert_eq!(reach.limited(SHORTLY), SHORTLY);
        reach.note_failure("refused");
        reach.note_given_up();
        assert_eq!((reach.limited(SHORTLY), reach.unless_silent()), Default::default());
        assert_eq!(reach.to_leave(false), LEAST);
        assert_eq!(reach.silence().as_deref(), Some("refused"));
        reach.begin_question();
        reach.note_answer();
        assert_eq!((reach.limited(SHORTLY), reach.silence()), (SHORTLY, None));
        reach.end_wait();
        assert_eq!((reach.to_leave(false), reach.to_leave(true)), (SHORTLY, TIME_TO_ANSWER));
    }

    #[test]
    fn short_pause_is_not_silence_if_the_lock_was_seen_to_be_held() {
        let reach = Reach::default();
        reach.begin_question();
        assert!(reach.silence().is_some());
        reach.set_busy(true);
        assert_eq!(reach.silence(), None);
        std::thread::sleep(TIME_TO_ANSWER);
        assert!(reach.silence().is_some());
    }
}
