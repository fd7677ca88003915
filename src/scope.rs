//! Whether something counts on this host alone or on several.

/// The hosts among which something counts: a store's locks, or what distinguishes an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This host.
    ThisHost,
    /// All hosts that use the same store.
    AllHosts,
}

impl Scope {
    /// Returns this host's name if other hosts matter, and otherwise nothing.
    pub(crate) fn host(self) -> String {
        match self {
            Scope::ThisHost => String::new(),
            Scope::AllHosts => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    /// Returns what distinguishes this user on this host from others.
    pub(crate) fn user_and_host(self) -> String {
        format!("{} {}", rustix::process::getuid().as_raw(), self.host())
    }
}
