//! etcd's API over its JSON gateway: a POST with JSON for each call
//! (<https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>). Keys and values are base64, numbers
//! are strings, and what is zero or empty is left out.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::StatusCode;

use super::reach::Reach;

/// Largest answer that is read, in bytes: a listing of some ten thousand who hold or want locks.
const ANSWER_MAX: u64 = 16 << 20;
/// The same for all that a watch says. It is of one key.
const WATCH_MAX: u64 = 1 << 20;
/// Longest message of a server that is repeated, in characters.
const MESSAGE_MAX: usize = 500;
/// What one member has at least, where several share the time for a question.
const SHARE_MIN: Duration = Duration::from_millis(250);
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
    /// What it answers cannot be.
    Nonsense(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Unreachable(why) => write!(f, "no member of etcd can be reached: {why}"),
            Problem::NoLease => f.write_str("its lease is gone"),
            Problem::Refused(why) => write!(f, "etcd refuses: {why}"),
            Problem::Nonsense(what) => write!(f, "etcd's answer makes no sense: {what}"),
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
    /// Whether anybody answers.
    pub(super) reach: Reach,
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
    /// How often a leader had been elected, as it says that.
    term: Value,
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
        let (token, cluster, reach) = (Mutex::default(), OnceLock::new(), Reach::default());
        Client { agent, members, current, login, token, cluster, answer_within, reach }
    }

    /// A lease for so long: its id, and for how long it may be believed to last. The cluster may
    /// have granted a longer one, as it has a least of its own; that only keeps others waiting.
    pub(super) fn grant(
        &self,
        ttl: Duration,
        within: Duration,
    ) -> Result<(i64, Duration), Problem> {
        let granted = self.call("/v3/lease/grant", &json!({ "TTL": ttl.as_secs() }), within)?;
        let id = number(&granted, "ID", 1)?;
        Ok((id, ttl.min(seconds(number(&granted, "TTL", 1)?))))
    }

    /// Renews a lease, and says for how long it is from now on, `ttl` at most; and what each of
    /// `looks` reads after that.
    ///
    /// Who leads renews a lease without asking the others, and so does one who does not know yet
    /// that another leads by now (etcd-io/etcd#15247), whose word is nothing to that one. What is
    /// read is agreed upon. The term of an answer is that of the last entry which its member has
    /// applied, with a renewal as it was before: if both are of one term, nobody else led when it
    /// was renewed.
    pub(super) fn keep_alive(
        &self,
        lease: i64,
        ttl: Duration,
        looks: &[Vec<Value>],
        within: Duration,
    ) -> Result<(Duration, Vec<Vec<Entry>>), Problem> {
        let deadline = Instant::now() + within;
        let left = || deadline.saturating_duration_since(Instant::now());
        loop {
            let body = json!({ "ID": lease.to_string() });
            let kept = self.call("/v3/lease/keepalive", &body, left())?;
            let ttl = match number(&kept, "TTL", 0)? {
                0 => return Err(Problem::NoLease),
                kept => ttl.min(seconds(kept)),
            };
            let mut read = Vec::new();
            let mut is_of_one_term = true;
            for look in looks {
                let agreed = self.transact(&[], look, &[], left())?;
                if agreed.read.len() != look.len() {
                    return Err(Problem::Nonsense("it does not say what was read".into()));
                }
                is_of_one_term &= agreed.term == kept["header"]["raft_term"];
                read.extend(agreed.read);
            }
            if is_of_one_term {
                return Ok((ttl, read));
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
            revision: number(&answer["header"], "revision", 0)?,
            term: answer["header"]["raft_term"].clone(),
            succeeded: answer["succeeded"] == true,
            read: read.map(entries).collect::<Result<_, Problem>>()?,
        })
    }

    /// Waits until a key is deleted after the revision `from`. A member that is cut off never says
    /// so: after `within`, it is time to look again.
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
        let first = within.min(self.answer_within);
        let request = self.request(at, "/v3/watch", token.as_deref(), first, within);
        let response = match request.send(watch.to_string()) {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!("{}: {error}", self.members[at % self.members.len()]);
                self.leave(at);
                return Watched::LookAgain;
            }
        };
        let said = response.into_body().into_reader().take(WATCH_MAX);
        for line in BufReader::new(said).lines() {
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

    /// Asks the cluster something.
    fn call(&self, path: &str, body: &Value, within: Duration) -> Result<Value, Problem> {
        if within.is_zero() {
            return Err(Problem::Unreachable(self.reach.why()));
        }
        self.reach.asks();
        let answer = self.ask_members(path, &body.to_string(), within);
        match &answer {
            Err(Problem::Unreachable(_)) => self.reach.gave_up(),
            _ => self.reach.answered(),
        }
        answer
    }

    /// Asks one member after the other until one answers.
    fn ask_members(&self, path: &str, body: &str, within: Duration) -> Result<Value, Problem> {
        let start = Instant::now();
        let mut last = self.reach.why();
        let mut authenticated = false;
        loop {
            let (mut hopeless, mut refused) = (0, 0);
            for others in (1..=self.members.len()).rev() {
                let left = within.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return Err(Problem::Unreachable(last));
                }
                // A silent one leaves time to ask the others.
                let share = (left / others.try_into().unwrap_or(u32::MAX)).max(SHARE_MIN).min(left);
                let at = self.current.load(Ordering::Relaxed);
                match self.ask(at, path, body, share) {
                    Ok(answer) => return Ok(answer),
                    Err(Asked::Elsewhere(why, hope)) => {
                        hopeless += usize::from(hope == Hope::None);
                        refused += usize::from(hope == Hope::Little);
                        last = format!("{}: {why}", self.members[at % self.members.len()]);
                        tracing::debug!("{last}");
                        self.reach.missed(&last);
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
            let asked = start.elapsed();
            if refused == self.members.len() && asked >= PAUSE && self.reach.is_at_once() {
                return Err(Problem::Unreachable(last));
            }
            let left = within.saturating_sub(asked);
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
        // Not kept locked while a member is asked: others have less time than that may take.
        let token = || self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let known = token().clone();
        if known.is_some() {
            return Ok(known);
        }
        let body = json!({ "name": login.user, "password": login.password }).to_string();
        let answer = self.post(at, "/v3/auth/authenticate", None, &body, left)?;
        let new = answer["token"].as_str().map(str::to_owned);
        token().clone_from(&new);
        Ok(new)
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
        let elsewhere = |why: ureq::Error| match why {
            ureq::Error::BodyExceedsLimit(_) => {
                let what = format!("it has more than {} MiB", ANSWER_MAX >> 20);
                Asked::Not(Problem::Nonsense(what))
            }
            ureq::Error::Timeout(_) => Asked::Elsewhere("no answer".into(), Hope::Some),
            why => Asked::Elsewhere(why.to_string(), Hope::of(&why)),
        };
        let request = self.request(at, path, token, within, within);
        let mut response = request.send(body).map_err(elsewhere)?;
        let text = response.body_mut().with_config().limit(ANSWER_MAX).read_to_string();
        let text = text.map_err(elsewhere)?;
        let mut answer: Value = serde_json::from_str(&text).unwrap_or_default();
        // What is a stream in the API comes wrapped.
        if let Some(result) = answer.get_mut("result").map(Value::take) {
            answer = result;
        }
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
        let code = |name: &str| int(&error[name]).unwrap_or_default();
        Err(match code("code").max(code("grpc_code")) {
            // "mvcc: database space exceeded", until somebody sees to it.
            code::RESOURCE_EXHAUSTED if message.contains("space exceeded") => {
                Asked::Not(Problem::Refused(shown(message, MESSAGE_MAX)))
            }
            code::UNAVAILABLE
            | code::DEADLINE_EXCEEDED
            | code::RESOURCE_EXHAUSTED
            | code::CANCELED
            | code::UNKNOWN
            | code::ABORTED
            | code::INTERNAL => Asked::Elsewhere(shown(message, MESSAGE_MAX), Hope::Some),
            code::UNAUTHENTICATED if self.login.is_some() => Asked::Anew,
            // Users or roles were changed since the token was given.
            _ if self.login.is_some() && message.contains("auth store is old") => Asked::Anew,
            code::NOT_FOUND if message.contains("lease") => Asked::Not(Problem::NoLease),
            _ => Asked::Not(Problem::Refused(shown(message, MESSAGE_MAX))),
        })
    }

    /// A request that a member has to take up within `first`, and to have answered after `within`.
    fn request(
        &self,
        at: usize,
        path: &str,
        token: Option<&str>,
        first: Duration,
        within: Duration,
    ) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
        let url = format!("{}{path}", self.members[at % self.members.len()]);
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
    /// Nobody listens there. Somebody may be about to.
    Little,
    None,
}

impl Hope {
    /// Certificates that do not fit stay so, and what speaks no HTTP learns none.
    fn of(why: &ureq::Error) -> Self {
        match why {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Protocol(_) => Hope::None,
            // So rustls has it.
            ureq::Error::Io(why) if why.kind() == ErrorKind::InvalidData => Hope::None,
            ureq::Error::Io(why) if why.kind() == ErrorKind::ConnectionRefused => Hope::Little,
            _ => Hope::Some,
        }
    }
}

fn no_etcd(said: &str) -> Problem {
    Problem::Refused(format!("what answers is no etcd: {}", shown(said, 200)))
}

/// What people get to see of what a server says: so many characters at most.
fn shown(said: &str, most: usize) -> String {
    let start: String = said.chars().take(most).collect();
    crate::visible::escaped(&start)
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

/// A comparison: the key has this value, or there is no such key.
pub(super) fn has_value(key: &str, value: Option<&[u8]>) -> Value {
    match value {
        Some(value) => json!({ "key": encode(key), "target": "VALUE", "result": "EQUAL",
                               "value": BASE64.encode(value) }),
        None => json!({ "key": encode(key), "target": "CREATE", "result": "EQUAL",
                        "create_revision": "0" }),
    }
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

/// A key with its value. One that cannot be read is refused, for it may be the holder's.
fn entry(kv: &Value) -> Result<Entry, Problem> {
    let bytes = |name: &str| match &kv[name] {
        Value::Null => Ok(Vec::new()),
        text => text
            .as_str()
            .and_then(|text| BASE64.decode(text).ok())
            .ok_or_else(|| nonsense(name, text)),
    };
    Ok(Entry {
        key: String::from_utf8_lossy(&bytes("key")?).into_owned(),
        value: bytes("value")?,
        created: number(kv, "create_revision", 1)?,
    })
}

/// A number of an answer, which has to be `least` at least. There is a larger one than each.
fn number(answer: &Value, name: &str, least: i64) -> Result<i64, Problem> {
    let number = int(&answer[name]).filter(|number| (least..i64::MAX).contains(number));
    number.ok_or_else(|| nonsense(name, &answer[name]))
}

fn nonsense(name: &str, value: &Value) -> Problem {
    Problem::Nonsense(format!("{name} is {}", shown(&value.to_string(), 50)))
}

fn seconds(number: i64) -> Duration {
    Duration::from_secs(number.try_into().unwrap_or_default())
}

/// What is zero is left out. None for what is no whole number.
fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Null => Some(0),
        Value::String(text) => text.parse().ok(),
        number => number.as_i64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    /// A client of a member that answers a watch with these bytes, and then with what `goes_on`
    /// does.
    fn watched_member(said: String, goes_on: fn(&mut TcpStream)) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let member = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            _ = stream.read(&mut [0; 4096]);
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            _ = write!(stream, "{:x}\r\n{said}\r\n", said.len());
            goes_on(&mut stream);
        });
        Client::new(Agent::new_with_defaults(), vec![member], None, Duration::from_secs(5))
    }

    /// How long a watch of `within` takes that has nothing to tell.
    fn watch(client: &Client, within: Duration) -> Duration {
        let start = Instant::now();
        assert_eq!(client.wait_deleted("/k", 1, within), Watched::LookAgain);
        start.elapsed()
    }

    #[test]
    fn a_watch_that_is_cancelled_is_over_at_once() {
        let line = r#"{"result":{"canceled":true,"compact_revision":"9"}}"#;
        // It says no more, and stays.
        let client = watched_member(format!("{line}\n"), |stream| _ = stream.read(&mut [0; 1]));
        let took = watch(&client, Duration::from_secs(20));
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn a_watch_ends_in_time_although_the_member_goes_on_and_on() {
        let client = watched_member("x".into(), |stream| {
            while stream.write_all(b"1\r\nx\r\n").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let took = watch(&client, Duration::from_millis(500));
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    #[test]
    fn a_watch_reads_no_line_without_an_end() {
        let client = watched_member("x".repeat(2 << 20), |stream| _ = stream.read(&mut [0; 1]));
        let took = watch(&client, Duration::from_secs(20));
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn numbers_are_whole_and_within_their_bounds() {
        let answer =
            json!({ "a": "7", "b": 7, "max": i64::MAX.to_string(), "c": "7.5", "d": 1e300 });
        assert_eq!((number(&answer, "a", 1), number(&answer, "b", 1)), (Ok(7), Ok(7)));
        assert_eq!(number(&answer, "left out", 0), Ok(0));
        for name in ["left out", "max", "c", "d"] {
            assert!(matches!(number(&answer, name, 1), Err(Problem::Nonsense(_))), "{name}");
        }
    }
}
