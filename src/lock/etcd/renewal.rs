//! Starts a session, and the threads that renew its lease and watch its keys.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::SigSet;
use serde_json::Value;

use super::answer::Entry;
use super::client::{Client, Renewal, Watched};
use super::problem::Problem;
use super::reach::{SHORTLY, SILENCE_MAX, WITHIN, pause};
use super::request;
use super::session::{NOT_IN_TIME, OwnKey, Session};
use crate::expiry::{Expiry, Moment};

/// How many keys one transaction reads at a renewal. etcd's default limit is 128 operations.
const READ_MAX: usize = 100;
/// How many keys are watched between renewals, each over a connection of its own.
const WATCH_MAX: usize = 100;

/// Requests a lease, and renews it until the session is over or lost. `probe` is a key to read at a
/// renewal when no lock is held.
pub(super) fn start_session(
    client: &Arc<Client>,
    probe: String,
    ttl: Duration,
    within: Duration,
) -> Result<Arc<Session>, Problem> {
    let sent = Moment::now();
    let (lease, ttl) = client.grant(ttl, within)?;
    let failed = |error: &dyn Display| Problem::Refused(error.to_string());
    let expiry = Expiry::new().map_err(|error| failed(&error))?;
    let session = Arc::new(Session::new(Arc::clone(client), lease, ttl, expiry));
    // If it is too late already, the thread below sees the session as lost.
    _ = session.renewed(sent, ttl);
    let renewing = Arc::clone(&session);
    std::thread::Builder::new()
        .name("lease".into())
        .spawn(move || {
            leave_signals_to_main_thread();
            renew(&renewing, &probe, sent, ttl);
        })
        .map_err(|error| failed(&error))?;
    Ok(session)
}

/// Renews the lease until the session is over or lost. The lease was requested at `sent`, and lasts
/// for `ttl`.
fn renew(session: &Arc<Session>, probe: &str, mut sent: Moment, mut ttl: Duration) {
    let mut watched = Vec::new();
    loop {
        if session.is_over_within(sent.after(ttl / 3).remaining()) {
            return;
        }
        // This process was stopped for too long, or a key is gone. Do not extend a lease that may
        // still exist.
        if session.lost().is_some() {
            return;
        }
        let asked = Moment::now();
        let until = sent.after(ttl * 2 / 3);
        let held = session.held();
        // Ask at least once, however late it is: the lease may still exist.
        let within = until.remaining().max(SHORTLY);
        let reads = existence_reads(&held, probe);
        match session.client.keep_alive(session.lease, session.ttl, &reads, within) {
            Ok(Renewal { ttl: new, found }) => {
                if !session.renewed(asked, new) {
                    return session.lose(NOT_IN_TIME);
                }
                (sent, ttl) = (asked, new);
                if let Err(key) = after_renewal(session, held, &found, &mut watched) {
                    return session.lose(&key.gone());
                }
            }
            Err(Problem::NoLease) => return session.lose(&Problem::NoLease.to_string()),
            // Retry any other problem until time is up.
            Err(why) if until.remaining().is_zero() => return session.lose(&why.to_string()),
            Err(why) => {
                tracing::debug!("the lease is not renewed yet: {why}");
                if session.is_over_within(pause()) {
                    return;
                }
            }
        }
    }
}

/// Checks that the keys in `held` were found at a renewal, and watches those that are held on.
/// Returns a key that is missing as an error.
fn after_renewal(
    session: &Arc<Session>,
    held: Vec<OwnKey>,
    found: &[Vec<Entry>],
    watched: &mut Vec<OwnKey>,
) -> Result<(), OwnKey> {
    // A key that was given back meanwhile is missing for good reason.
    let still_held = session.held();
    if let Some(key) = missing_keys(&held, found).find(|key| still_held.contains(key)) {
        return Err(key.clone());
    }
    watched.retain(|key| still_held.contains(key));
    watch_more(session, watched, held.into_iter().filter(|it| still_held.contains(it)));
    Ok(())
}

/// Returns the reads that show whether the held keys still exist. There is at least one, because a
/// read, unlike a renewal, needs a majority of the cluster.
fn existence_reads(held: &[OwnKey], probe: &str) -> Vec<Vec<Value>> {
    match held {
        [] => vec![vec![request::read(probe)]],
        held => held
            .chunks(READ_MAX)
            .map(|held| held.iter().map(|it| request::read(&it.key)).collect())
            .collect(),
    }
}

/// Returns the held keys that were not found.
fn missing_keys<'a>(held: &'a [OwnKey], found: &[Vec<Entry>]) -> impl Iterator<Item = &'a OwnKey> {
    let is_there = |(at, own): (usize, &OwnKey)| {
        found.get(at).is_none_or(|it| it.iter().any(|it| it.created == own.created))
    };
    held.iter().enumerate().filter(move |it| !is_there(*it)).map(|(_, own)| own)
}

/// Watches keys that are not watched yet. So a holder learns at once that its key is gone; for keys
/// beyond the first 100, it learns at the next renewal.
fn watch_more(
    session: &Arc<Session>,
    watched: &mut Vec<OwnKey>,
    held: impl Iterator<Item = OwnKey>,
) {
    for key in held {
        if watched.len() < WATCH_MAX && !watched.contains(&key) {
            watch(session, key.clone());
            watched.push(key);
        }
    }
}

/// Starts a thread that notices if the key of a held lock is deleted: by hand, or with its lease,
/// which a deposed leader may still end (etcd-io/etcd#15247).
fn watch(session: &Arc<Session>, key: OwnKey) {
    let session = Arc::clone(session);
    let watching = move || {
        leave_signals_to_main_thread();
        watch_while_held(&session, &key);
    };
    if let Err(why) = std::thread::Builder::new().name("watch".into()).spawn(watching) {
        tracing::debug!("no thread watches a lock's key: {why}");
    }
}

fn watch_while_held(session: &Session, key: &OwnKey) {
    while session.depends_on(key) {
        let read = [request::read(&key.key)];
        // If no member answers, `renew` detects a lost lease.
        let Ok(answer) = session.client.transact(&[], &read, &[], WITHIN) else {
            std::thread::sleep(pause());
            continue;
        };
        let from = answer.revision + 1;
        let is_there = answer.entries().any(|it| it.created == key.created);
        let deleted = || session.client.wait_deleted(&key.key, from, SILENCE_MAX);
        if (!is_there || deleted() == Watched::Deleted) && session.depends_on(key) {
            session.lose(&key.gone());
        }
    }
}

fn leave_signals_to_main_thread() {
    // The call can only fail for bad arguments.
    _ = SigSet::all().thread_block();
}
