//! What all test binaries share.
//!
//! A [`Fixture`] is a temporary folder with a stand-in engine and a lock folder:
//!
//! ```ignore
//! let f = Fixture::new();
//! f.hold_builds();                                  // builds stop at a gate
//! let first = f.docker_build("env:abc").start();    // buildlock -t env:abc -- docker build ...
//! f.wait_for_builds(1);                             // until the stand-in has begun
//! let second = f.docker_build("env:abc").start();
//! f.wait_for_waiters(&f.lock_file("env:abc"), 1);   // until the kernel says that it waits
//! f.release_builds();
//! first.wait().assert_code(0);
//! second.wait().assert_code(0).assert_stderr("env:abc");
//! assert_eq!(f.build_count("env:abc"), 1);
//! ```
//!
//! `f.buildlock([...])` takes any arguments, `.env(...)`, `.stdin(...)`; `.run()` starts the
//! program and waits for its end. `f.steer("STANDIN_BUILD_STATUS=3")` orders faults, also while
//! programs run; the head of `tests/stand-in/docker` lists them.
//!
//! Everything waits for events, and fails after [`BOUND`] with everything there is to see. When a
//! fixture goes, the processes that its test has left behind are killed.
//!
//! Tests that build for real start with [`engine`].
// Each test binary uses a part of it.
#![allow(dead_code, unreachable_pub, unused_imports)]

mod builds;
pub mod engine;
pub mod fake_engine;
mod faults;
mod fixture;
mod gate;
mod hang;
mod locks;
mod mounts;
pub mod notes;
mod process;
mod program;
mod recorder;
pub mod registry;
mod requirements;
mod scripts;
mod terminal;
mod users;

pub use builds::{BuildEvent, stand_in};
pub use faults::{opening_lock_file, opening_nameless, with_faults};
pub use fixture::{BOUND, Fixture, sha256};
pub use gate::Gate;
pub use hang::Hang;
pub use locks::{ForeignLock, KernelLock, holders, is_free, kernel_locks, waiters};
pub use mounts::Namespace;
pub use process::{
    cpu_seconds, descriptors, is_alive, is_in, number, send_signal, signal_mask, state,
};
pub use program::{Finished, Invocation, Running, buildlock_path};
pub use recorder::Recorder;
pub use requirements::{has, is_root, python, skip};
pub use scripts::{build_that_sees_overlap, install_polite, install_stubborn};
pub use terminal::Terminal;
pub use users::{OTHER_USER, as_other_user, open_to_everybody};
