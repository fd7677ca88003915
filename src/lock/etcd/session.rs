//! The session of this process: the lease that all its keys are attached to, while it lasts.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::Client;
use crate::expiry::{Expiry, Moment};

/// Why a lease that may still exist counts as lost.
pub(super) const NOT_IN_TIME: &str = "its lease was not renewed in time";

/// A lease of this process.
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    pub(super) lease: i64,
    /// How long the lease lasts unless it is renewed.
    pub(super) ttl: Duration,
    pub(super) expiry: Arc<Expiry>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether nothing needs the session any more.
    is_over: bool,
    /// Why the session is lost, if it is. It stays lost.
    lost: Option<String>,
    /// When everything that runs under the lease must be dead.
    kill: Option<Moment>,
    /// The keys of the locks that this process holds.
    held: Vec<OwnKey>,
}

/// A key of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnKey {
    pub(super) key: String,
    /// The revision at which it was created.
    pub(super) created: i64,
}

impl OwnKey {
    /// Says why a lock is lost although its lease may still exist.
    pub(super) fn gone(&self) -> String {
        format!("the key {} is gone", self.key)
    }
}

impl Session {
    pub(super) fn new(client: Arc<Client>, lease: i64, ttl: Duration, expiry: Expiry) -> Self {
        let expiry = Arc::new(expiry);
        Session { client, lease, ttl, expiry, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Sets the timers for a lease that was requested at `sent` and lasts for `ttl`. Returns false
    /// if that was too late, and what runs under the lease has been told to end.
    ///
    /// The cluster counts from later than `sent`. What runs may use two thirds of the ttl, and the
    /// last third is for ending it. In the second half of that third nothing runs any more: this is
    /// a margin for clocks that run at different rates, and for engines that take a moment to
    /// cancel a build.
    #[must_use]
    pub(super) fn renewed(&self, sent: Moment, ttl: Duration) -> bool {
        let mut state = self.state();
        if self.lost_by(&mut state).is_some() {
            return false;
        }
        let kill = sent.after(ttl * 5 / 6);
        state.kill = Some(kill);
        self.expiry.set(sent.after(ttl * 2 / 3), kill);
        true
    }

    /// Waits for a time, or until nothing needs the session any more. Returns whether the latter
    /// is so.
    pub(super) fn is_over_within(&self, duration: Duration) -> bool {
        let state = self.state();
        let waited = self.changed.wait_timeout_while(state, duration, |state| !state.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_over
    }

    /// Counts the session as lost from now on.
    pub(super) fn lose(&self, why: &str) {
        let mut state = self.state();
        state.lost.get_or_insert_with(|| why.to_owned());
        // Another process may hold the lock already. What runs gets a moment to end in order, but
        // never more time than it had.
        let now = Moment::now();
        let soon = now.after(self.ttl / 6);
        self.expiry.set(now, state.kill.map_or(soon, |kill| kill.min(soon)));
    }

    /// Returns why the session is lost, if it is.
    pub(super) fn lost(&self) -> Option<String> {
        self.lost_by(&mut self.state())
    }

    /// A session that has run out by our clock stays lost.
    fn lost_by(&self, state: &mut State) -> Option<String> {
        if self.expiry.must_end() {
            state.lost.get_or_insert_with(|| NOT_IN_TIME.to_owned());
        }
        state.lost.clone()
    }

    /// Gives the lease back.
    pub(super) fn end(&self) {
        self.state().is_over = true;
        self.changed.notify_all();
        // A lost lease may still have keys. But its cluster may well not answer.
        let within = self.client.reach().to_leave(self.lost().is_some());
        if let Err(why) = self.client.revoke(self.lease, within) {
            tracing::debug!("lease {:x} is not given back, and runs out: {why}", self.lease);
        }
    }

    /// Adds a key to those that are looked after.
    pub(super) fn hold(&self, key: OwnKey) {
        self.state().held.push(key);
    }

    /// Stops looking after a key, which is about to be deleted for good reason.
    pub(super) fn forget(&self, key: &str) {
        self.state().held.retain(|held| held.key != key);
    }

    pub(super) fn held(&self) -> Vec<OwnKey> {
        self.state().held.clone()
    }

    /// Returns whether a build still depends on the key.
    pub(super) fn depends_on(&self, key: &OwnKey) -> bool {
        let state = self.state();
        !state.is_over && state.lost.is_none() && state.held.contains(key)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
