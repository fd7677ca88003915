//! Why a file is not a Dockerfile.

/// The first thing in a file that BuildKit would refuse.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// Its first byte in the file.
    pub(crate) at: usize,
    pub(crate) why: String,
}

impl Unreadable {
    pub(crate) fn new(at: usize, why: impl Into<String>) -> Self {
        Unreadable { at, why: why.into() }
    }
}
