//! Tests that disturb others on the same machine, so that they have a binary to themselves.
//!
//! They fill the kernel's list of locks, which every other call then takes long to read.

#[path = "../support/mod.rs"]
mod support;

mod adversary;
