//! The place where `--check` looks for an image.

/// Where an image has to be, to count as present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// On the engine.
    Local,
    /// In the registry that its name says.
    Registry,
    /// Wherever this command for `sh -c` looks.
    Command(String),
}
