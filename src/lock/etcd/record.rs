//! What stands under a key: who holds the lock, or how the last build failed. It is for people, and
//! for shared failures. Locking does not depend on it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::answer::{Answer, Entry};
use super::client::Client;
use super::reach::SHORTLY;
use super::request;
use crate::lock::holder;
use crate::record::{FailedBuild, Holder};
use crate::subject::Subject;

/// What stands under a key of a lock.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) holder: Holder,
    /// Identifies the process among all processes of all hosts, present and past.
    #[serde(default)]
    process: String,
}

impl Record {
    /// Returns what to write for this process, which holds or waits for the lock from now on.
    pub(super) fn line(holder: &Holder, subject: &Subject) -> Vec<u8> {
        let since = Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        let record = Record {
            holder: Holder { since, ..holder.clone() }.of_lock(subject),
            process: holder::process_everywhere(std::process::id()).unwrap_or_default(),
        };
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// Reads a record, which may contain anything.
    pub(super) fn of(entry: &Entry) -> Self {
        let record: Record = serde_json::from_slice(&entry.value).unwrap_or_default();
        Record { holder: record.holder.escaped(), ..record }
    }

    pub(super) fn is_one_of(&self, processes: &[String]) -> bool {
        !self.process.is_empty() && processes.contains(&self.process)
    }

    pub(super) fn into_holder(self, ancestors: &[String]) -> Holder {
        let is_our_ancestor = self.is_one_of(ancestors);
        Holder { is_our_ancestor, ..self.holder }
    }
}

/// Returns this process's chain of parents, as records name processes.
pub(super) fn ancestors_everywhere() -> Vec<String> {
    crate::proc::ancestors().into_iter().filter_map(holder::process_everywhere).collect()
}

/// Reads how the last build failed, if it did.
pub(super) fn last_failure(client: &Client, key: &str) -> Option<FailedBuild> {
    let within = client.reach().limited(SHORTLY);
    let answer = client.transact(&[], &[request::read(key)], &[], within).ok()?;
    failure_in(&answer, key)
}

/// Returns how the last build failed, if the answer says so under this key.
pub(super) fn failure_in(answer: &Answer, key: &str) -> Option<FailedBuild> {
    let entry = answer.read.iter().flatten().find(|entry| entry.key == key)?;
    serde_json::from_slice(&entry.value).ok()
}
