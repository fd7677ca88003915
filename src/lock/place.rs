//! Chooses the store: `--store URL`, or else the lock folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};

#[cfg(feature = "etcd")]
use super::etcd::{Address, EtcdStore};
use super::file::FileStore;
use super::store::Store;
#[cfg(feature = "etcd")]
use crate::record::Holder;
use crate::record::Ourselves;
use crate::subject::Subject;

/// Where locks live.
#[derive(Debug)]
pub enum Place {
    /// In the lock folder of this machine.
    Folder(PathBuf),
    /// In an etcd cluster.
    #[cfg(feature = "etcd")]
    Cluster(Address),
}

impl Place {
    /// Reads the value of `--store`. Without one, and for `file:`, locks live in `folder`.
    ///
    /// # Errors
    /// The value names no known store, or a variable contains a relative path.
    pub fn of(store: Option<&str>, folder: &Path) -> Result<Self> {
        let Some(url) = store else {
            refuse_relative("BUILDLOCK_DIR", folder.as_os_str(), folder)?;
            return Ok(Place::Folder(folder.to_owned()));
        };
        if let Some(path) = url.strip_prefix("file:") {
            // file:///tmp/locks, file:/tmp/locks, file:locks
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Place::of(None, folder);
            }
            refuse_relative("BUILDLOCK_STORE", url.as_ref(), Path::new(path))?;
            return Ok(Place::Folder(path.into()));
        }
        #[cfg(feature = "etcd")]
        if Address::is_one(url) {
            return Ok(Place::Cluster(Address::parse(url)?));
        }
        #[cfg(not(feature = "etcd"))]
        if url.starts_with("etcd") {
            bail!("--store: this buildlock was built without etcd (the cargo feature 'etcd')");
        }
        // Only the scheme is shown, because the rest may be an address with a password.
        let scheme = crate::visible::escaped(url.split("://").next().unwrap_or_default());
        bail!("--store: '{scheme}' is not a store; use file:, etcd:// or etcds://")
    }

    /// Returns the lock folder, if the locks are in a folder.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Place::Folder(folder) => Some(folder),
            #[cfg(feature = "etcd")]
            Place::Cluster(_) => None,
        }
    }

    /// Opens the store for taking locks on these subjects. Creates the lock folder if it does not
    /// exist.
    ///
    /// # Errors
    /// The store cannot be opened or created.
    pub fn open(self, ourselves: Ourselves, subjects: &[Subject]) -> Result<Arc<dyn Store>> {
        match self {
            Place::Folder(folder) => Ok(Arc::new(FileStore::open(&folder, ourselves, subjects)?)),
            #[cfg(feature = "etcd")]
            Place::Cluster(address) => Ok(Arc::new(EtcdStore::new(address, ourselves()))),
        }
    }

    /// Opens the store for looking at it. Creates nothing.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub fn look(self) -> Result<Box<dyn Store>> {
        match self {
            Place::Folder(folder) => Ok(Box::new(FileStore::at(&folder)?)),
            #[cfg(feature = "etcd")]
            Place::Cluster(address) => Ok(Box::new(EtcdStore::new(address, Holder::default()))),
        }
    }
}

/// Refuses a relative path in a variable. The variable reaches callers in any folder, and in each
/// folder the path leads to a different lock folder. The callers would not exclude each other.
fn refuse_relative(variable: &str, value: &OsStr, folder: &Path) -> Result<()> {
    if folder.is_relative() && std::env::var_os(variable).is_some_and(|set| set == value) {
        bail!(
            "{variable}: '{}' leads to a different lock folder from each folder where buildlock runs; \
             set an absolute path",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(store: Option<&str>) -> Option<PathBuf> {
        Place::of(store, Path::new("/default")).ok()?.folder().map(Path::to_owned)
    }

    #[test]
    fn file_is_a_folder_or_the_lock_folder() {
        for (store, expected) in [
            (None, "/default"),
            (Some("file:"), "/default"),
            (Some("file:///tmp/locks"), "/tmp/locks"),
            (Some("file:/tmp/locks"), "/tmp/locks"),
            (Some("file:locks"), "locks"),
        ] {
            assert_eq!(folder(store).as_deref(), Some(Path::new(expected)), "{store:?}");
        }
    }

    #[test]
    fn unknown_store_is_refused_without_its_secrets() {
        for store in ["redis://me:secret@host/", "etc", "/tmp/locks", ""] {
            let why = Place::of(Some(store), Path::new("/default")).unwrap_err().to_string();
            assert!(why.starts_with("--store: ") && !why.contains("secret"), "{why}");
        }
    }

    #[cfg(not(feature = "etcd"))]
    #[test]
    fn cluster_is_refused_by_a_program_that_knows_none() {
        let why = Place::of(Some("etcd://host/p"), Path::new("/default")).unwrap_err();
        assert!(why.to_string().contains("without etcd"), "{why}");
    }
}
