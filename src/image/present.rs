//! What "present" means. Each meaning is a file of its own, behind `Meaning`.

mod command;
mod local;
pub(super) mod meaning;
mod registry;

use anyhow::Result;

use self::command::FromCommand;
use self::local::OnEngine;
use self::meaning::Meaning;
use self::registry::InRegistry;
use super::check::Check;
use super::engine::backend::Backend;

/// Returns the meaning that `check` names, for images of `engine`.
///
/// # Errors
/// The engine cannot look there.
pub(super) fn of(check: &Check, engine: &dyn Backend) -> Result<Box<dyn Meaning>> {
    Ok(match check {
        Check::Local => Box::new(OnEngine),
        Check::Registry => Box::new(InRegistry::of(engine)?),
        Check::Command(command) => Box::new(FromCommand::new(command.clone())),
    })
}
