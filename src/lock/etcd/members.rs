//! The members of a cluster: one is asked at a time, and the next one if it does not answer.

use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;

use super::problem::Problem;
use super::reach::Reach;
use super::verdict::{self, Hope, NoResult};

/// Largest answer that is read, in bytes: a listing of some ten thousand holders and waiters.
const ANSWER_MAX: u64 = 16 << 20;
/// The least time for one member where several share the time for a question.
const SHARE_MIN: Duration = Duration::from_millis(250);
/// The pause between two rounds through all members.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// A user of etcd.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

/// The members of a cluster.
pub(super) struct Members {
    agent: Agent,
    /// `http://host:2379`, and the like.
    urls: Vec<String>,
    /// The member that answered last, or the next one to try.
    current: AtomicUsize,
    login: Option<Login>,
    token: Mutex<Option<String>>,
    /// The cluster's id, once a member has said it.
    cluster: OnceLock<String>,
    /// How long one member may take.
    answer_within: Duration,
    /// Whether the cluster answers.
    pub(super) reach: Reach,
}

/// An answer that goes on, from the member with this number.
pub(super) struct Stream {
    pub(super) lines: BufReader<Box<dyn Read>>,
    pub(super) member: usize,
}

impl std::fmt::Debug for Login {
    /// Leaves out the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Members {
    pub(super) fn new(
        agent: Agent,
        urls: Vec<String>,
        login: Option<Login>,
        answer_within: Duration,
    ) -> Self {
        let current = AtomicUsize::new(fastrand::usize(..urls.len().max(1)));
        let (token, cluster, reach) = (Mutex::default(), OnceLock::new(), Reach::default());
        Members { agent, urls, current, login, token, cluster, answer_within, reach }
    }

    /// Asks the cluster a question.
    pub(super) fn call(
        &self,
        path: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Value, Problem> {
        if within.is_zero() {
            return Err(Problem::Unreachable(self.reach.why_unanswered()));
        }
        self.reach.begin_question();
        let answer = self.ask_all(path, &body.to_string(), within);
        match &answer {
            Err(Problem::Unreachable(_)) => self.reach.note_given_up(),
            _ => self.reach.note_answer(),
        }
        answer
    }

    /// Asks one member after the other until one answers.
    fn ask_all(&self, path: &str, body: &str, within: Duration) -> Result<Value, Problem> {
        let start = Instant::now();
        let mut last = self.reach.why_unanswered();
        let mut has_new_token = false;
        loop {
            let (mut hopeless, mut refused) = (0, 0);
            for others in (1..=self.urls.len()).rev() {
                let left = within.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return Err(Problem::Unreachable(last));
                }
                // A silent member must leave time to ask the others.
                let share = (left / others.try_into().unwrap_or(u32::MAX)).max(SHARE_MIN).min(left);
                let member = self.current.load(Ordering::Relaxed);
                match self.ask(member, path, body, share) {
                    Ok(answer) => return Ok(answer),
                    Err(NoResult::Elsewhere(why, hope)) => {
                        hopeless += usize::from(hope == Hope::None);
                        refused += usize::from(hope == Hope::Little);
                        last = format!("{}: {why}", self.url(member));
                        tracing::debug!("{last}");
                        self.reach.note_failure(&last);
                        self.leave(member);
                    }
                    Err(NoResult::StaleToken) if !has_new_token => {
                        has_new_token = true;
                        *self.token() = None;
                    }
                    Err(NoResult::StaleToken) => {
                        return Err(Problem::Refused("it does not accept its own token".into()));
                    }
                    Err(NoResult::Final(problem)) => return Err(problem),
                }
            }
            if hopeless == self.urls.len() {
                return Err(Problem::Refused(last));
            }
            let asked = start.elapsed();
            if refused == self.urls.len() && asked >= PAUSE && self.reach.is_at_once() {
                return Err(Problem::Unreachable(last));
            }
            let left = within.saturating_sub(asked);
            std::thread::sleep(PAUSE.mul_f64(0.5 + fastrand::f64()).min(left));
        }
    }

    fn ask(
        &self,
        member: usize,
        path: &str,
        body: &str,
        left: Duration,
    ) -> Result<Value, NoResult> {
        let token = self.known_or_new_token(member, left)?;
        self.post(member, path, token.as_deref(), body, left)
    }

    /// Returns the user's token, if there is a user: the last one, or else a new one.
    fn known_or_new_token(
        &self,
        member: usize,
        left: Duration,
    ) -> Result<Option<String>, NoResult> {
        let Some(login) = &self.login else { return Ok(None) };
        // The mutex is not held while a member is asked: other threads may have less time.
        let known = self.token().clone();
        if known.is_some() {
            return Ok(known);
        }
        let body = json!({ "name": login.user, "password": login.password }).to_string();
        let answer = self.post(member, "/v3/auth/authenticate", None, &body, left)?;
        let new = answer["token"].as_str().map(str::to_owned);
        self.token().clone_from(&new);
        Ok(new)
    }

    fn post(
        &self,
        member: usize,
        path: &str,
        token: Option<&str>,
        body: &str,
        left: Duration,
    ) -> Result<Value, NoResult> {
        let within = left.min(self.answer_within);
        let failed = |why: ureq::Error| verdict::of_failure(&why, ANSWER_MAX);
        let request = self.request(member, path, token, within, within);
        let mut response = request.send(body).map_err(failed)?;
        let text = response.body_mut().with_config().limit(ANSWER_MAX).read_to_string();
        let text = text.map_err(failed)?;
        let answer = verdict::of_answer(response.status(), &text, self.login.is_some())?;
        self.check_cluster(&answer)?;
        Ok(answer)
    }

    /// Refuses an answer from another cluster than before: both would grant the same lock.
    fn check_cluster(&self, answer: &Value) -> Result<(), NoResult> {
        let cluster = verdict::cluster_id(answer).to_string();
        if *self.cluster.get_or_init(|| cluster.clone()) == cluster {
            return Ok(());
        }
        let why = "the members in the address belong to different clusters";
        Err(NoResult::Final(Problem::Refused(why.into())))
    }

    /// Opens an answer that goes on, such as a watch. Of one member only, and at most `largest`
    /// bytes of it.
    pub(super) fn stream(
        &self,
        path: &str,
        body: &Value,
        largest: u64,
        within: Duration,
    ) -> Option<Stream> {
        let member = self.current.load(Ordering::Relaxed);
        // Other requests came before this one, so there is a token if one is needed.
        let token = self.token().clone();
        let first = within.min(self.answer_within);
        let request = self.request(member, path, token.as_deref(), first, within);
        match request.send(body.to_string()) {
            Ok(response) => {
                let said = response.into_body().into_reader().take(largest);
                Some(Stream { lines: BufReader::new(Box::new(said)), member })
            }
            Err(error) => {
                tracing::debug!("{}: {error}", self.url(member));
                self.leave(member);
                None
            }
        }
    }

    /// Prepares a request that a member must begin to answer within `first`, and must have answered
    /// within `within`.
    fn request(
        &self,
        member: usize,
        path: &str,
        token: Option<&str>,
        first: Duration,
        within: Duration,
    ) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
        let url = format!("{}{path}", self.url(member));
        let mut request = self.agent.post(url).content_type("application/json");
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        request
            .config()
            .timeout_resolve(Some(first))
            .timeout_connect(Some(first))
            .timeout_recv_response(Some(first))
            .timeout_global(Some(within))
            .build()
    }

    /// Moves on to the next member, unless another thread already has.
    pub(super) fn leave(&self, member: usize) {
        let next = (member + 1) % self.urls.len();
        let now = Ordering::Relaxed;
        _ = self.current.compare_exchange(member, next, now, now);
    }

    fn url(&self, member: usize) -> &str {
        &self.urls[member % self.urls.len()]
    }

    fn token(&self) -> MutexGuard<'_, Option<String>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
