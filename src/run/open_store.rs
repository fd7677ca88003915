//! The store while a call waits and builds, and the signals meanwhile.

use std::sync::Arc;

use anyhow::Result;

use super::job::Job;
use crate::child::signals::{Signals, Work};
use crate::exit::Exit;
use crate::lock::Store;
use crate::scope::Scope;

/// Closes the store at the end, and lets no signal end this process before that.
pub(super) struct OpenStore {
    store: Arc<dyn Store>,
    signals: Option<Signals>,
    stays_open: bool,
}

impl OpenStore {
    /// Handles signals from now on if the store needs it: a signal that kills a waiter releases its
    /// locks on this host, but not its keys in a cluster.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub(super) fn new(store: &Arc<dyn Store>) -> Result<Self> {
        let needs_closing = store.scope() == Scope::AllHosts;
        let signals = needs_closing.then(Signals::take_in).transpose()?;
        Ok(OpenStore { store: Arc::clone(store), signals, stays_open: false })
    }

    /// Does `work`, and watches for terminating signals if they do not end this process at once.
    ///
    /// # Errors
    /// The work failed, or no thread could be started for it.
    pub(super) fn unless_interrupted<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Work<T>> {
        match &self.signals {
            Some(signals) => signals.unless_interrupted(work),
            None => work().map(Work::Done),
        }
    }

    /// Skips the build.
    ///
    /// # Errors
    /// As for [`Job::skip`].
    pub(super) fn skip(&self, job: &Arc<Job>) -> Result<Exit> {
        let job = Arc::clone(job);
        Ok(match self.unless_interrupted(move || job.skip())? {
            Work::Done(exit) => exit,
            Work::Interrupted(signal) => Exit::Signal(signal),
        })
    }

    /// Returns the signals. From here on buildlock handles them itself, because it passes them on to
    /// the build command.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub(super) fn signals(&mut self) -> Result<&Signals> {
        Ok(match &mut self.signals {
            Some(signals) => signals,
            none => none.insert(Signals::take_in()?),
        })
    }

    /// Leaves what the store keeps for this process to processes that still need it.
    pub(super) fn leave_open(&mut self) {
        self.stays_open = true;
    }
}

impl Drop for OpenStore {
    fn drop(&mut self) {
        if !self.stays_open {
            self.store.close();
        }
        // A pending signal is delivered now, when nothing is left to give back.
    }
}
