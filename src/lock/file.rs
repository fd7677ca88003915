//! The default store: `flock(2)` on files in a folder that all users of a machine share.
//!
//! The kernel releases such a lock when its last holder ends, however that happens. No other folder
//! of the source calls flock.

mod directory;
mod exchange;
mod folder;
mod guard;
mod held;
mod inspect;
mod locks;
mod notes;
mod open;
mod outer;
mod real_path;
mod several;
mod umask;

pub use self::folder::FileStore;
