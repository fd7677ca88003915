//! `--store etcd://…`: what many hosts can rely on, tested on clusters of real members.
//!
//! If etcd is not installed, each test says so in one line and is skipped. With
//! `BUILDLOCK_REQUIRE_ENGINE=1`, it fails instead. The stand-in plays the engine, so both hosts see
//! the same images.

#[path = "etcd/access.rs"]
mod access;
#[path = "etcd/caches.rs"]
mod caches;
#[path = "etcd/cluster.rs"]
mod cluster;
#[path = "etcd/failing.rs"]
mod failing;
#[path = "etcd/limits.rs"]
mod limits;
#[path = "etcd/lost.rs"]
mod lost;
#[path = "etcd/member.rs"]
mod member;
#[path = "etcd/nested.rs"]
mod nested;
#[path = "etcd/network.rs"]
mod network;
#[path = "etcd/nonsense.rs"]
mod nonsense;
#[path = "etcd/one_build.rs"]
mod one_build;
#[path = "etcd/site.rs"]
mod site;
#[path = "etcd/subcommands.rs"]
mod subcommands;
mod support;
#[path = "etcd/waiting.rs"]
mod waiting;
