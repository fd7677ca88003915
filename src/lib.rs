//! The modules of the program `buildlock`, for `main.rs`, the fuzz targets and one test.
//!
//! This is not a public interface. Other programs can rely only on the command line.

#[cfg(not(target_os = "linux"))]
compile_error!("buildlock needs Linux: it relies on /proc, signalfd(2) and PR_SET_PDEATHSIG");

pub mod cache;
mod child;
pub mod cli;
pub mod command;
mod components;
mod dockerfile;
pub mod duration;
pub mod each;
pub mod exit;
#[cfg_attr(not(feature = "etcd"), allow(dead_code, reason = "only locks in etcd run out"))]
mod expiry;
pub mod fingerprint;
pub mod generate;
mod go_bool;
mod go_json;
pub mod image;
mod interpreter;
pub mod lint;
pub mod lock;
pub mod log;
mod proc;
pub mod record;
pub mod reference;
pub mod run;
mod scope;
pub mod signals;
mod spawn;
pub mod status;
pub mod subject;
mod targets;
mod terminal;
mod user;
mod visible;
mod yaml;
