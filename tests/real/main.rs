//! Real engines, podman, compose and registries.
//!
//! Where something is missing on this machine, each test says so in one line and is skipped; with
//! `BUILDLOCK_REQUIRE_ENGINE=1` it fails instead.

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "etcd")]
#[path = "../etcd/cluster.rs"]
mod cluster;
#[cfg(feature = "etcd")]
#[path = "../etcd/network.rs"]
mod network;

mod compose;
mod contexts;
mod dockerfile;
mod examples;
#[cfg(feature = "etcd")]
mod hosts;
mod if_changed;
mod podman;
mod real_engine;
mod registry;
mod several;
mod silence;
