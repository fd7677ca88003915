//! The fingerprint of a build's inputs at one moment, and what has changed since another one.

use std::sync::Arc;

use super::bases::Base;
use super::file_list::FileList;
use super::stamp::Time;
use super::value::{Kind, Value};
use super::way::Step;
use crate::image::LABEL;

/// The fingerprint of a build's inputs at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Fingerprint {
    pub(super) value: Value,
    pub(super) never_skipped: Option<String>,
    pub(super) bases: Vec<Base>,
    /// What is in the folders that count.
    pub(super) files: Arc<FileList>,
    /// When a file, a link or a Dockerfile was last changed.
    pub(super) newest_change: Option<Time>,
    /// When something was last created in a folder, or removed from it.
    pub(super) newest_folder_change: Option<Time>,
    /// The links and folders on the ways to what is read.
    pub(super) steps: Arc<Vec<Step>>,
    /// Whether another user can exchange one of them and leave no trace in the end.
    pub(super) is_exchangeable: bool,
    /// Whether everybody can exchange one of them, perhaps with no other trace than files that came
    /// and went.
    pub(super) is_open: bool,
}

/// How inputs have changed since the start of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Something that counts was changed, perhaps there and back again.
    Contents,
    /// Something was created in a folder or removed from it that does not count now.
    Folders,
}

impl Fingerprint {
    /// Returns the label's value.
    pub(crate) fn value(&self) -> &str {
        self.value.as_str()
    }

    /// Returns the label: `NAME=VALUE`.
    pub(crate) fn label(&self) -> String {
        format!("{LABEL}={}", self.value())
    }

    /// Returns why such a build is never skipped, if it is not.
    pub(crate) fn never_skipped(&self) -> Option<&str> {
        self.never_skipped.as_deref()
    }

    /// Returns whether an image can have been built from something else without a trace.
    pub(crate) fn is_exchangeable(&self) -> bool {
        self.is_exchangeable
    }

    /// Takes into account that files came and went in folders, in each of two builds.
    pub(crate) fn folders_changed(&mut self) {
        self.is_exchangeable |= self.is_open;
    }

    /// Says in what the inputs differ from those of an image with this label.
    pub(crate) fn difference(&self, label: Option<&str>) -> String {
        self.value.difference(label)
    }

    /// Says the same, with one line for each kind of input, and with the names of files if they are
    /// remembered.
    pub(crate) fn differences(&self, label: Option<&str>) -> Vec<String> {
        let Some(Ok(kinds)) = label.map(|label| self.value.kinds_unlike(label)) else {
            return vec![self.difference(label)];
        };
        if kinds.is_empty() {
            return vec![self.difference(label)];
        }
        let list = label.and_then(FileList::read);
        let line = |kind: Kind| {
            let files = list.as_ref().and_then(|list| list.difference(kind, &self.files));
            let files = files.filter(|_| matches!(kind, Kind::Context | Kind::Paths));
            let files = files.map(|files| format!(": {files}")).unwrap_or_default();
            format!("{} changed{files}", kind.name())
        };
        kinds.into_iter().map(line).collect()
    }

    /// Remembers the names of the files, for [`Fingerprint::differences`].
    pub(crate) fn remember_files(&self) {
        if let Err(reason) = self.files.remember(self.value()) {
            tracing::debug!("the names of the inputs are not remembered: {reason}");
        }
    }

    /// Returns how the inputs have changed between this moment and a later one.
    pub(crate) fn change(&self, later: &Fingerprint) -> Option<Change> {
        let is_same = |kind: Kind| self.value.part(kind) == later.value.part(kind);
        let are_same_bases = self.bases.len() == later.bases.len()
            && later.bases.iter().zip(&self.bases).all(|(now, before)| now.still_is(before));
        let others = Kind::ALL.into_iter().filter(|&kind| kind != Kind::Bases);
        if !others.into_iter().all(is_same)
            || !are_same_bases
            || self.newest_change != later.newest_change
            || self.steps != later.steps
        {
            return Some(Change::Contents);
        }
        (self.newest_folder_change != later.newest_folder_change).then_some(Change::Folders)
    }

    /// Says what has changed between this moment and a later one.
    pub(crate) fn what_changed(&self, later: &Fingerprint) -> String {
        match self.change(later) {
            Some(Change::Contents) if self.value == later.value => {
                "a file was changed and changed back".to_owned()
            }
            Some(Change::Folders) => "files came and went in a folder".to_owned(),
            _ => later.difference(Some(self.value())),
        }
    }

    /// Returns when any input was last changed.
    pub(super) fn newest(&self) -> Option<Time> {
        self.newest_change.max(self.newest_folder_change)
    }
}
