//! A lock that this process holds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use super::answer::Answer;
use super::client::Client;
use super::keys::own_key;
use super::problem::Problem;
use super::queue::Queue;
use super::reach::{Reach, SHORTLY, WITHIN};
use super::record::{Record, last_failure};
use super::request;
use super::session::{OwnKey, Session};
use crate::expiry::Expiry;
use crate::lock::{Held, LockMode};
use crate::record::{FailedBuild, Holder};
use crate::subject::Subject;

/// How long the end of a failed build is kept for those that waited for it.
const RESULT_KEPT: Duration = Duration::from_secs(300);

/// A lock that this process holds.
pub(super) struct HeldKey {
    session: Arc<Session>,
    own: OwnKey,
    mode: LockMode,
    place: Place,
}

/// Where in the cluster a lock is, and what it is for.
pub(super) struct Place {
    /// The lock's folder, with a slash at its end.
    pub(super) folder: String,
    pub(super) result_key: String,
    /// What the record says of this process, except for the lock and the time.
    pub(super) ourselves: Holder,
    /// The lock as shown to the user.
    pub(super) location: PathBuf,
    pub(super) subject: Subject,
    /// Whether an ancestor holds the lock for the same subject.
    pub(super) is_nested: bool,
}

impl HeldKey {
    /// Takes charge of a lock that was acquired with a key created at the revision `created`.
    pub(super) fn new(session: Arc<Session>, place: Place, mode: LockMode, created: i64) -> Self {
        let own = OwnKey { key: own_key(&place.folder, mode, session.lease), created };
        session.hold(own.clone());
        HeldKey { session, own, mode, place }
    }

    fn client(&self) -> &Client {
        &self.session.client
    }

    fn reach(&self) -> &Reach {
        self.client().reach()
    }

    /// Does something in the cluster, if the key still exists.
    fn if_ours(&self, then: &[Value], within: Duration) -> Result<Answer, Problem> {
        self.client().transact(&[self.is_ours()], then, &[], within)
    }

    fn is_ours(&self) -> Value {
        request::created_at(&self.own.key, self.own.created)
    }

    /// Keeps the end of a failed build under the result key. Returns the change to make.
    fn result_change(&self, failure: Option<&FailedBuild>) -> Value {
        let failure = failure.filter(|_| self.place.subject.cache().is_none());
        let within = || self.reach().limited(SHORTLY);
        let kept = failure.and_then(|failure| {
            let (lease, _) = self.client().grant(RESULT_KEPT, within()).ok()?;
            Some((failure, lease))
        });
        match kept {
            Some((failure, lease)) => {
                let text = serde_json::to_vec(failure).unwrap_or_default();
                request::put(&self.place.result_key, &text, lease)
            }
            None => request::delete(&self.place.result_key),
        }
    }
}

impl Held for HeldKey {
    fn subject(&self) -> &Subject {
        &self.place.subject
    }

    fn record(&self) {
        let text = Record::line(&self.place.ourselves, &self.place.subject);
        let put = request::put(&self.own.key, &text, self.session.lease);
        if let Err(why) = self.if_ours(&[put], self.reach().limited(SHORTLY)) {
            let location = self.place.location.display();
            tracing::debug!("{location}: cannot record who holds the lock: {why}");
        }
    }

    fn last_failure(&self) -> Option<FailedBuild> {
        last_failure(self.client(), &self.place.result_key)
    }

    fn lost(&self) -> Option<String> {
        // One member alone would answer a transaction that neither reads nor writes.
        let read = [request::read(&self.own.key)];
        let within = self.reach().unless_silent();
        let why = self.session.lost().or_else(|| match self.if_ours(&read, within) {
            Ok(answer) if answer.succeeded => None,
            Ok(_) => Some(self.own.gone()),
            // The lease tells.
            Err(_) => None,
        })?;
        Some(format!("{} was lost while it was held: {why}", self.place.location.display()))
    }

    fn mode(&self) -> LockMode {
        self.mode
    }

    fn share(&mut self) -> Result<bool> {
        let shared = own_key(&self.place.folder, LockMode::Shared, self.session.lease);
        let old = request::read(&self.own.key);
        let old = self.client().transact(&[], &[old], &[], WITHIN)?;
        let value = old.entries().next().unwrap_or_default().value;
        let look = request::read_all(&self.place.folder);
        let change = [
            request::put(&shared, &value, self.session.lease),
            request::delete(&self.own.key),
            look.clone(),
        ];
        self.session.forget(&self.own.key);
        let ours = self.is_ours();
        let queue = Queue::of(self.client().transact(&[ours], &change, &[look], WITHIN)?);
        // If a member failed after the others had agreed, the change was made before.
        let Some(created) = queue.created(&shared) else {
            bail!("{} was lost while it was held", self.place.location.display());
        };
        (self.own, self.mode) = (OwnKey { key: shared, created }, LockMode::Shared);
        let has_it = queue.blocker(created, self.mode, self.session.lease).is_none();
        if has_it {
            self.session.hold(self.own.clone());
        } else {
            _ = self.if_ours(&[request::delete(&self.own.key)], WITHIN);
        }
        Ok(has_it)
    }

    /// The build command is about to run under the lock.
    fn expiry(&self) -> Option<Arc<Expiry>> {
        self.reach().end_wait();
        Some(Arc::clone(&self.session.expiry))
    }

    fn fence(&self) -> Option<i64> {
        (!self.place.is_nested).then_some(self.own.created)
    }

    fn release(self: Box<Self>, failure: Option<&FailedBuild>) {
        self.session.forget(&self.own.key);
        if self.session.lost().is_some() {
            return;
        }
        let changes = [request::delete(&self.own.key), self.result_change(failure)];
        if let Err(why) = self.if_ours(&changes, self.reach().limited(SHORTLY)) {
            let location = self.place.location.display();
            tracing::warn!(
                "{location}: cannot release the lock now; it is free when its lease runs out: {why}"
            );
        }
    }
}
