//! Why a file is not a Dockerfile.

/// The first thing in a file that BuildKit would refuse.
#[derive(Debug)]
pub(in crate::lint) struct Unreadable {
    /// Its first byte in the file.
    pub(in crate::lint) at: usize,
    pub(in crate::lint) why: String,
}

impl Unreadable {
    pub(super) fn new(at: usize, why: impl Into<String>) -> Self {
        Unreadable { at, why: why.into() }
    }
}
