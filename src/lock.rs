//! Locks: what they protect, who holds them, and how to wait for one.
//!
//! A [`Store`] knows how to take one lock and how to wait for it. Everything else (the name of the
//! holder, nested calls, the order of waiting, the deadline) is the same for every store and lies in
//! [`acquire`] and [`wait`]. Nothing here knows of images.

pub mod acquire;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod file;
mod held_locks;
pub mod holder;
pub mod kernel;
pub mod key;
pub mod place;
mod slots;
pub mod store;
mod wait;

pub use self::acquire::{Patience, Turn, take, take_in_turn, try_in_turn, try_take};
pub use self::held_locks::HeldLocks;
pub use self::key::{BUILD_SLOTS, CACHE_LOCKS, IMAGE_LOCKS, Key, LockMode, NAMED_LOCKS};
pub(crate) use self::slots::SLOTS_MAX;
pub use self::slots::{Slots, Turned};
pub use self::store::{
    Held, HeldLock, Inspect, Locks, Notes, Overview, Passing, Pruned, Several, Store, Try, Woken,
};
