//! Present: a command of the user's says so (`--check CMD`).

use super::meaning::Meaning;
use crate::image::answer::{ANSWER_WITHIN, Answer, Unanswered};
use crate::image::description::Description;
use crate::image::engine::backend::Backend;
use crate::image::engine::client::run_expression;
use crate::image::wanted::Wanted;
use crate::reference::Tag;

/// What the command is called in messages.
const NAME: &str = "the command of --check";

/// A command for `sh -c` finds the image.
#[derive(Debug)]
pub(crate) struct FromCommand {
    command: String,
}

impl FromCommand {
    pub(crate) fn new(command: String) -> Self {
        FromCommand { command }
    }
}

impl Meaning for FromCommand {
    /// Runs the command. It exits with 0 if the image is present and with 1 if it is missing.
    fn look(&self, _: &dyn Backend, _: &Wanted, tag: &Tag) -> Result<Answer, Unanswered> {
        let shell = duct::cmd("sh", ["-c", &self.command]).env("BUILDLOCK_TAG", tag.as_str());
        // If it hangs, the culprit may be something it has started.
        let (shell, _alive) = crate::spawn::killed_with_all_it_starts(shell)
            .map_err(|error| Unanswered::permanent(format!("cannot run {NAME}: {error}")))?;
        let said = run_expression(&NAME, shell, ANSWER_WITHIN)?;
        match said.status {
            Some(0) => Ok(Answer::Present(Vec::new())),
            Some(1) => Ok(Answer::Missing),
            // The command itself decides what deserves a second try.
            _ => Err(Unanswered { is_transient: false, ..said.unanswered(&NAME) }),
        }
    }

    /// A command says only whether the image is present, not from which inputs it was built.
    fn describe(
        &self,
        _: &dyn Backend,
        _: &Wanted,
        _: &Tag,
    ) -> Result<Option<Vec<Description>>, Unanswered> {
        Err(Unanswered::permanent(format!("{NAME} cannot tell from which inputs it was built")))
    }
}
