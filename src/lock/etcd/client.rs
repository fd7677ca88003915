//! etcd's API over its JSON gateway: each call is a POST with JSON
//! (<https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>).

use std::io::{BufRead, ErrorKind};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;

use super::answer::{Answer, Entry, number, seconds};
use super::members::{Login, Members, PAUSE};
use super::problem::Problem;
use super::reach::Reach;
use super::request;

/// The most that a watch may say, in bytes. It is of one key.
const WATCH_MAX: u64 = 1 << 20;

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// The key was deleted.
    Deleted,
    /// The member was silent for a while, or has gone: look again.
    LookAgain,
}

/// A lease that was granted or renewed, and what was read after a renewal.
pub(super) struct Renewal {
    /// How long the lease may be relied upon from now on.
    pub(super) ttl: Duration,
    /// What the looks read, one list for each key.
    pub(super) found: Vec<Vec<Entry>>,
}

/// A client of one cluster.
pub(super) struct Client {
    members: Members,
}

impl Client {
    pub(super) fn new(
        agent: Agent,
        members: Vec<String>,
        login: Option<Login>,
        answer_within: Duration,
    ) -> Self {
        Client { members: Members::new(agent, members, login, answer_within) }
    }

    /// Returns what is known of the cluster's answers.
    pub(super) fn reach(&self) -> &Reach {
        &self.members.reach
    }

    /// Requests a lease. Returns its id, and how long it may be relied upon.
    ///
    /// The cluster may grant a longer lease, since it has a minimum of its own. That only keeps
    /// others waiting.
    pub(super) fn grant(
        &self,
        ttl: Duration,
        within: Duration,
    ) -> Result<(i64, Duration), Problem> {
        let body = json!({ "TTL": ttl.as_secs() });
        let granted = self.members.call("/v3/lease/grant", &body, within)?;
        let id = number(&granted, "ID", 1)?;
        Ok((id, ttl.min(seconds(number(&granted, "TTL", 1)?))))
    }

    /// Renews a lease for at most `ttl`, and then reads what `looks` name.
    ///
    /// A leader renews a lease without asking the other members. So does a leader that does not
    /// know yet that it was replaced (etcd-io/etcd#15247), and the new leader ignores such a
    /// renewal. Reads, in contrast, are agreed upon. Each answer names the term of the last entry
    /// that its member has applied. If the renewal and the reads are of one term, no other member
    /// led when the lease was renewed.
    pub(super) fn keep_alive(
        &self,
        lease: i64,
        ttl: Duration,
        looks: &[Vec<Value>],
        within: Duration,
    ) -> Result<Renewal, Problem> {
        let deadline = Instant::now() + within;
        let left = || deadline.saturating_duration_since(Instant::now());
        loop {
            let body = json!({ "ID": lease.to_string() });
            let kept = self.members.call("/v3/lease/keepalive", &body, left())?;
            let ttl = match number(&kept, "TTL", 0)? {
                0 => return Err(Problem::NoLease),
                kept => ttl.min(seconds(kept)),
            };
            let mut found = Vec::new();
            let mut is_of_one_term = true;
            for look in looks {
                let agreed = self.transact(&[], look, &[], left())?;
                if agreed.read.len() != look.len() {
                    return Err(Problem::Nonsense("it does not say what was read".into()));
                }
                is_of_one_term &= agreed.is_of_same_term(&kept);
                found.extend(agreed.read);
            }
            if is_of_one_term {
                return Ok(Renewal { ttl, found });
            }
            tracing::debug!("lease {lease:x} was renewed while another member began to lead");
            std::thread::sleep(PAUSE.min(left()));
        }
    }

    /// Ends a lease, and with it the keys that are attached to it.
    pub(super) fn revoke(&self, lease: i64, within: Duration) -> Result<(), Problem> {
        let body = json!({ "ID": lease.to_string() });
        self.members.call("/v3/lease/revoke", &body, within).map(drop)
    }

    /// Does `then` if all of `compare` holds, and otherwise `otherwise`, in one atomic step.
    pub(super) fn transact(
        &self,
        compare: &[Value],
        then: &[Value],
        otherwise: &[Value],
        within: Duration,
    ) -> Result<Answer, Problem> {
        let body = json!({ "compare": compare, "success": then, "failure": otherwise });
        Answer::of(&self.members.call("/v3/kv/txn", &body, within)?)
    }

    /// Waits until a key is deleted after the revision `from`, or until it is time to look again: a
    /// member that is cut off from the others never says so.
    pub(super) fn wait_deleted(&self, key: &str, from: i64, within: Duration) -> Watched {
        let start = Instant::now();
        let watched = self.watch(key, from, within);
        if watched == Watched::LookAgain && start.elapsed() < PAUSE {
            // Something ends watches at once: do not spin.
            std::thread::sleep(PAUSE.min(within).mul_f64(0.5 + fastrand::f64()));
        }
        watched
    }

    fn watch(&self, key: &str, from: i64, within: Duration) -> Watched {
        let body = request::watch_deletion(key, from);
        let Some(stream) = self.members.stream("/v3/watch", &body, WATCH_MAX, within) else {
            return Watched::LookAgain;
        };
        for line in stream.lines.lines() {
            let said: Value = match line.map(|line| serde_json::from_str(&line)) {
                Ok(Ok(said)) => said,
                Ok(Err(_)) => continue,
                Err(error) => {
                    if error.kind() != ErrorKind::TimedOut {
                        self.members.leave(stream.member);
                    }
                    break;
                }
            };
            let mut events = said["result"]["events"].as_array().into_iter().flatten();
            if events.any(|event| event["type"] == "DELETE") {
                return Watched::Deleted;
            }
            // The revision was compacted, or the token is not accepted. A look will tell.
            if said["result"]["canceled"] == true || said.get("error").is_some() {
                break;
            }
        }
        Watched::LookAgain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
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
}
