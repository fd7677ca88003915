//! What this process holds of slots.

use std::os::fd::BorrowedFd;

use super::super::key::LockMode;
use super::super::store::Held;
use crate::record::FailedBuild;
use crate::subject::Subject;

/// The door or the place at the head of the line, which is released when this is dropped.
pub(super) struct Brief(Option<Box<dyn Held>>);

impl Brief {
    pub(super) fn new(held: Box<dyn Held>) -> Self {
        Brief(Some(held))
    }
}

impl Drop for Brief {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            held.release(None);
        }
    }
}

/// A slot with its bell. Whoever inherits the slot inherits the bell.
pub(super) struct HeldSlot {
    slot: Box<dyn Held>,
    bell: Box<dyn Held>,
}

impl HeldSlot {
    pub(super) fn new(slot: Box<dyn Held>, bell: Box<dyn Held>) -> Self {
        HeldSlot { slot, bell }
    }
}

impl Held for HeldSlot {
    fn subject(&self) -> &Subject {
        self.slot.subject()
    }

    fn record(&self) {
        self.slot.record();
    }

    fn last_failure(&self) -> Option<FailedBuild> {
        None
    }

    fn lost(&self) -> Option<String> {
        self.slot.lost()
    }

    fn mode(&self) -> LockMode {
        LockMode::Exclusive
    }

    fn share(&mut self) -> anyhow::Result<bool> {
        anyhow::bail!("a slot is for one build")
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        // The kernel closes descriptors in the order of their numbers, so the slot goes first.
        self.slot.descriptors().into_iter().chain(self.bell.descriptors()).collect()
    }

    /// A build that failed says nothing about the next one in its slot.
    fn release(self: Box<Self>, _failure: Option<&FailedBuild>) {
        // Whoever hears the bell must find the slot free.
        self.slot.release(None);
        self.bell.release(None);
    }
}
