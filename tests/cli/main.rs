//! Everything that works with a stand-in for the engine.
//!
//! `cargo test --test cli locks::` runs what is in `locks.rs`. Some tests need root or programs of
//! the machine, and otherwise say in one line what was skipped.

#[path = "../support/mod.rs"]
mod support;

mod caches;
mod check;
mod cleaner;
mod command_line;
mod engine_api;
mod exit_status;
mod file_systems;
mod fingerprint;
mod generated;
mod hostility;
mod hung_programs;
mod keeper;
mod limits;
mod lock_folder;
mod locks;
mod logs;
mod named_locks;
mod nesting;
mod one_build;
mod several;
mod signal_matrix;
mod signals;
mod slots;
mod status;
mod structure;
mod time_limits;
mod usage;
mod users;
mod waiting;
mod words;
