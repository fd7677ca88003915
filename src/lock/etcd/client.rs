//! etcd's API over its JSON gateway: a POST with JSON for each call
//! (<https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>). Keys and values are base64, numbers
//! are strings, and what is zero or empty is left out.

use std::io::{BufRead, BufReader, ErrorKind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::StatusCode;

/// Largest answer that is read, in bytes: etcd's own bound on a request is 1.5 MiB, and a listing
/// has many.
const ANSWER_MAX: u64 = 64 << 20;
/// The pause before all members are asked again, until one answers.
const PAUSE: Duration = Duration::from_millis(100);

/// Codes of gRPC (<https://grpc.io/docs/guides/status-codes/>), as the gateway gives them.
mod code {
    pub(super) const CANCELED: i64 = 1;
    /// Of errors that etcd has no code for: a leader that is just being replaced, for one
    /// (etcd-io/etcd#21671).
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const DEADLINE_EXCEEDED: i64 = 4;
    pub(super) const NOT_FOUND: i64 = 5;
    pub(super) const RESOURCE_EXHAUSTED: i64 = 8;
    pub(super) const ABORTED: i64 = 10;
    pub(super) const INTERNAL: i64 = 13;
    pub(super) const UNAVAILABLE: i64 = 14;
    pub(super) const UNAUTHENTICATED: i64 = 16;
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// No member could be asked, or none that has a leader. That may pass.
    Unreachable(String),
    /// There is no such lease.
    NoLease,
    /// The cluster does not do it.
    Refused(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Unreachable(why) => write!(f, "no member of etcd can be reached: {why}"),
            Problem::NoLease => f.write_str("its lease is gone"),
            Problem::Refused(why) => write!(f, "etcd refuses: {why}"),
        }
    }
}

impl std::error::Error for Problem {}

/// A user of etcd.
pub(super) struct Login {
    /// Its name.
    pub(super) user: String,
    /// Its password.
    pub(super) password: String,
}

/// The members of a cluster.
pub(super) struct Client {
    agent: Agent,
    /// `http://host:2379`, and the like.
    members: Vec<String>,
    /// Which of them answered last.
    current: AtomicUsize,
    login: Option<Login>,
    token: Mutex<Option<String>>,
    /// The cluster's id, once a member has said it.
    cluster: OnceLock<String>,
    /// How long one member may take.
    answer_within: Duration,
}

/// A key with its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    /// The revision of the store at which the key was created: never that of another one.
    pub(super) created: i64,
}

/// What the cluster answers to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The revision of the store then.
    pub(super) revision: i64,
    /// How often a leader had been elected.
    term: i64,
    /// Whether what was compared was so.
    pub(super) succeeded: bool,
    /// What was read, in one list for each range.
    pub(super) read: Vec<Vec<Entry>>,
}

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// The key was deleted.
    Deleted,
    /// Nothing was heard for a while, or the member went away: look again.
    LookAgain,
}

impl Client {
    pub(super) fn new(
        agent: Agent,
        members: Vec<String>,
        login: Option<Login>,
        answer_within: Duration,
    ) -> Self {
        let current = AtomicUsize::new(fastrand::usize(..members.len().max(1)));
        let (token, cluster) = (Mutex::default(), OnceLock::new());
        Client { agent, members, current, login, token, cluster, answer_within }
    }

    /// A lease for so long, or what the cluster has as its least: its id, and for how long it is.
    pub(super) fn grant(
        &self,
        ttl: Duration,
        within: Duration,
    ) -> Result<(i64, Duration), Problem> {
        let granted = self.call("/v3/lease/grant", &json!({ "TTL": ttl.as_secs() }), within)?;
        match (int(&granted["ID"]), ttl_in(&granted)) {
            (id, Some(ttl)) if id != 0 => Ok((id, ttl)),
            _ => Err(no_etcd(&granted.to_string())),
        }
    }

    /// Renews a lease, and says for how long it is from now on; and what `look` reads after that.
    ///
    /// Who leads renews a lease without asking the others, and so does one who does not know yet that
    /// another leads by now (etcd-io/etcd#15247), whose word is nothing to that one. What is read is
    /// agreed upon. The term of an answer is that of the last entry which its member has applied,
    /// with a renewal as it was before: if both are of one term, nobody else led when it was renewed.
    pub(super) fn keep_alive(
        &self,
        lease: i64,
        look: &[Value],
        within: Duration,
    ) -> Result<(Duration, Vec<Vec<Entry>>), Problem> {
        let deadline = Instant::now() + within;
        let left = || deadline.saturating_duration_since(Instant::now());
        loop {
            let body = json!({ "ID": lease.to_string() });
            let kept = self.call("/v3/lease/keepalive", &body, left())?;
            let ttl = ttl_in(&kept).ok_or(Problem::NoLease)?;
            let agreed = self.transact(&[], look, &[], left())?;
            if agreed.term == int(&kept["header"]["raft_term"]) {
                return Ok((ttl, agreed.read));
            }
            tracing::debug!("lease {lease:x} was renewed while another member began to lead");
            std::thread::sleep(PAUSE.min(left()));
        }
    }

    /// Ends a lease; the keys that hang on it go with it.
    pub(super) fn revoke(&self, lease: i64, within: Duration) -> Result<(), Problem> {
        self.call("/v3/lease/revoke", &json!({ "ID": lease.to_string() }), within).map(drop)
    }

    /// Does `then` if all of `compare` is so, else `otherwise`, in one step.
    pub(super) fn transact(
        &self,
        compare: &[Value],
        then: &[Value],
        otherwise: &[Value],
        within: Duration,
    ) -> Result<Answer, Problem> {
        let body = json!({ "compare": compare, "success": then, "failure": otherwise });
        let answer = self.call("/v3/kv/txn", &body, within)?;
        let read = answer["responses"].as_array().into_iter().flatten();
        let read = read.filter_map(|response| response.get("response_range"));
        let entries =
            |range: &Value| range["kvs"].as_array().into_iter().flatten().map(entry).collect();
        Ok(Answer {
            revision: int(&answer["header"]["revision"]),
            term: int(&answer["header"]["raft_term"]),
            succeeded: answer["succeeded"] == true,
            read: read.map(entries).collect(),
        })
    }

    /// Waits until a key is deleted after the revision `from`. A member that is cut off never says so:
    /// after `within` without a word, it is time to look again.
    pub(super) fn wait_deleted(&self, key: &str, from: i64, within: Duration) -> Watched {
        let start = Instant::now();
        let watched = self.watch(key, from, within);
        if watched == Watched::LookAgain && start.elapsed() < PAUSE {
            // Whatever it is that ends watches at once: nobody is to spin.
            std::thread::sleep(PAUSE.min(within).mul_f64(0.5 + fastrand::f64()));
        }
        watched
    }

    fn watch(&self, key: &str, from: i64, within: Duration) -> Watched {
        let watch = json!({ "create_request": {
            "key": encode(key), "start_revision": from.to_string(), "filters": ["NOPUT"],
        }});
        let at = self.current.load(Ordering::Relaxed);
        // Whoever watches has looked before, and so has a token if one is needed.
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = self.request(at, "/v3/watch", token.as_deref(), Some(within));
        let response = match request.send(watch.to_string()) {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!("{}: {error}", self.members[at % self.members.len()]);
                self.leave(at);
                return Watched::LookAgain;
            }
        };
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let said: Value = match line.map(|line| serde_json::from_str(&line)) {
                Ok(Ok(said)) => said,
                Ok(Err(_)) => continue,
                Err(error) => {
                    if error.kind() != ErrorKind::TimedOut {
                        self.leave(at);
                    }
                    break;
                }
            };
            let events = said["result"]["events"].as_array().into_iter().flatten();
            if events.into_iter().any(|event| event["type"] == "DELETE") {
                return Watched::Deleted;
            }
            // The revision is no longer kept, or the token is not taken: a look tells.
            if said["result"]["canceled"] == true || said.get("error").is_some() {
                break;
            }
        }
        Watched::LookAgain
    }

    /// Asks one member after the other until one answers.
    fn call(&self, path: &str, body: &Value, within: Duration) -> Result<Value, Problem> {
        let deadline = Instant::now() + within;
        let body = body.to_string();
        let mut last = String::from("there was no time to ask");
        let mut authenticated = false;
        loop {
            let mut hopeless = 0;
            for _ in &self.members {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Problem::Unreachable(last));
                }
                let at = self.current.load(Ordering::Relaxed);
                match self.ask(at, path, &body, left) {
                    Ok(answer) => return Ok(answer),
                    Err(Asked::Elsewhere(why, hope)) => {
                        hopeless += usize::from(hope == Hope::None);
                        last = format!("{}: {why}", self.members[at % self.members.len()]);
                        tracing::debug!("{last}");
                        self.leave(at);
                    }
                    Err(Asked::Anew) if !authenticated => {
                        authenticated = true;
                        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    }
                    Err(Asked::Anew) => {
                        return Err(Problem::Refused("its token is not taken".into()));
                    }
                    Err(Asked::Not(problem)) => return Err(problem),
                }
            }
            if hopeless == self.members.len() {
                return Err(Problem::Refused(last));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            std::thread::sleep(PAUSE.mul_f64(0.5 + fastrand::f64()).min(left));
        }
    }

    fn ask(&self, at: usize, path: &str, body: &str, left: Duration) -> Result<Value, Asked> {
        let token = self.token(at, left)?;
        self.post(at, path, token.as_deref(), body, left)
    }

    /// A token for the user, if there is one: from the last time, or a new one.
    fn token(&self, at: usize, left: Duration) -> Result<Option<String>, Asked> {
        let Some(login) = &self.login else { return Ok(None) };
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.is_none() {
            let body = json!({ "name": login.user, "password": login.password }).to_string();
            let answer = self.post(at, "/v3/auth/authenticate", None, &body, left)?;
            *token = answer["token"].as_str().map(str::to_owned);
        }
        Ok(token.clone())
    }

    fn post(
        &self,
        at: usize,
        path: &str,
        token: Option<&str>,
        body: &str,
        left: Duration,
    ) -> Result<Value, Asked> {
        let within = left.min(self.answer_within);
        let elsewhere = |why: ureq::Error| Asked::Elsewhere(why.to_string(), Hope::of(&why));
        let mut response = self
            .request(at, path, token, None)
            .config()
            .timeout_global(Some(within))
            .build()
            .send(body)
            .map_err(elsewhere)?;
        let text = response.body_mut().with_config().limit(ANSWER_MAX).read_to_string();
        let text = text.map_err(elsewhere)?;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        // What is a stream in the API comes wrapped.
        let answer = answer.get("result").cloned().unwrap_or(answer);
        if response.status() == StatusCode::OK && !answer["header"]["cluster_id"].is_null() {
            let cluster = answer["header"]["cluster_id"].to_string();
            if *self.cluster.get_or_init(|| cluster.clone()) == cluster {
                return Ok(answer);
            }
            // Each would give the same lock to somebody.
            let why = "the members that its address names are of different clusters";
            return Err(Asked::Not(Problem::Refused(why.into())));
        }
        let error = answer.get("error").filter(|error| error.is_object()).unwrap_or(&answer);
        let message = error["message"].as_str().or(answer["error"].as_str());
        let Some(message) = message else {
            return Err(match response.status() {
                // What stands in front of a member that is down.
                status if status.is_server_error() => {
                    Asked::Elsewhere(format!("HTTP {status}"), Hope::Some)
                }
                _ => Asked::Not(no_etcd(&text)),
            });
        };
        let number = int(&error["code"]).max(int(&error["grpc_code"]));
        Err(match number {
            // «mvcc: database space exceeded», until somebody sees to it.
            code::RESOURCE_EXHAUSTED if message.contains("space exceeded") => {
                Asked::Not(Problem::Refused(message.to_owned()))
            }
            code::UNAVAILABLE
            | code::DEADLINE_EXCEEDED
            | code::RESOURCE_EXHAUSTED
            | code::CANCELED
            | code::UNKNOWN
            | code::ABORTED
            | code::INTERNAL => Asked::Elsewhere(message.to_owned(), Hope::Some),
            code::UNAUTHENTICATED if self.login.is_some() => Asked::Anew,
            // Users or roles were changed since the token was given.
            _ if self.login.is_some() && message.contains("auth store is old") => Asked::Anew,
            code::NOT_FOUND if message.contains("lease") => Asked::Not(Problem::NoLease),
            _ => Asked::Not(Problem::Refused(message.to_owned())),
        })
    }

    fn request(
        &self,
        at: usize,
        path: &str,
        token: Option<&str>,
        per_read: Option<Duration>,
    ) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
        let url = format!("{}{path}", self.members[at % self.members.len()]);
        let mut request = self.agent.post(url).content_type("application/json");
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        let config = request.config();
        let first = per_read.map_or(self.answer_within, |within| within.min(self.answer_within));
        let config = config.timeout_resolve(Some(first)).timeout_connect(Some(first));
        match per_read {
            None => config.build(),
            Some(within) => {
                config.timeout_recv_response(Some(first)).timeout_per_read(Some(within)).build()
            }
        }
    }

    /// The next one is to be asked, unless somebody has seen to that.
    fn leave(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        let now = Ordering::Relaxed;
        _ = self.current.compare_exchange(at, next, now, now);
    }
}

/// Why one member gave no answer.
enum Asked {
    /// Another one may.
    Elsewhere(String, Hope),
    /// The token is not taken any more.
    Anew,
    /// Nor will another.
    Not(Problem),
}

/// Whether the same one may give an answer later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hope {
    Some,
    None,
}

impl Hope {
    /// Certificates that do not fit stay so, and what speaks no HTTP learns none.
    fn of(why: &ureq::Error) -> Self {
        match why {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Protocol(_) => Hope::None,
            // So rustls has it.
            ureq::Error::Io(why) if why.kind() == ErrorKind::InvalidData => Hope::None,
            _ => Hope::Some,
        }
    }
}

fn no_etcd(said: &str) -> Problem {
    let start: String = said.chars().take(200).collect();
    Problem::Refused(format!("what answers is no etcd: {}", crate::visible::escaped(&start)))
}

/// A compare: no key with this prefix is there.
pub(super) fn none_with_prefix(prefix: &str) -> Value {
    json!({ "target": "CREATE", "result": "EQUAL", "create_revision": "0",
            "key": encode(prefix), "range_end": encode_end(prefix) })
}

/// A compare: the key is there, and the one that was created at that revision; or, with zero, it is
/// not there.
pub(super) fn created_at(key: &str, revision: i64) -> Value {
    json!({ "target": "CREATE", "result": "EQUAL", "create_revision": revision.to_string(),
            "key": encode(key) })
}

/// An operation: put this under the key, for as long as the lease lasts.
pub(super) fn put(key: &str, value: &[u8], lease: i64) -> Value {
    json!({ "request_put": { "key": encode(key), "value": BASE64.encode(value), "lease": lease.to_string() } })
}

/// An operation: delete the key.
pub(super) fn delete(key: &str) -> Value {
    json!({ "request_delete_range": { "key": encode(key) } })
}

/// An operation: read one key.
pub(super) fn read(key: &str) -> Value {
    json!({ "request_range": { "key": encode(key) } })
}

/// An operation: read all keys with this prefix, in the order in which they were created.
pub(super) fn read_all(prefix: &str) -> Value {
    json!({ "request_range": { "key": encode(prefix), "range_end": encode_end(prefix),
            "sort_order": "ASCEND", "sort_target": "CREATE" } })
}

fn encode(key: &str) -> String {
    BASE64.encode(key)
}

/// What comes behind all keys with this prefix.
fn encode_end(prefix: &str) -> String {
    let mut end = prefix.as_bytes().to_vec();
    // A prefix of ours ends with '/', never with 0xff.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    BASE64.encode(end)
}

fn entry(kv: &Value) -> Entry {
    let bytes =
        |name: &str| BASE64.decode(kv[name].as_str().unwrap_or_default()).unwrap_or_default();
    Entry {
        key: String::from_utf8_lossy(&bytes("key")).into_owned(),
        value: bytes("value"),
        created: int(&kv["create_revision"]),
    }
}

fn ttl_in(answer: &Value) -> Option<Duration> {
    let seconds = u64::try_from(int(&answer["TTL"])).ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn int(value: &Value) -> i64 {
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn a_watch_that_is_cancelled_is_over_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let member = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            _ = stream.read(&mut [0; 4096]);
            let line = r#"{"result":{"canceled":true,"compact_revision":"9"}}"#;
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = format!("{head}{:x}\r\n{line}\n\r\n", line.len() + 1);
            _ = stream.write_all(chunk.as_bytes());
            // It says no more, and stays.
            _ = stream.read(&mut [0; 1]);
        });
        let agent = Agent::new_with_defaults();
        let client = Client::new(agent, vec![member], None, Duration::from_secs(5));
        let start = Instant::now();
        let watched = client.wait_deleted("/k", 1, Duration::from_secs(20));
        assert_eq!(watched, Watched::LookAgain);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}
