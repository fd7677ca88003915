//! The parts of the program `buildlock`, for `main.rs` and for the fuzz targets.
//!
//! Nothing in here is an interface for others: what they may rely on is the program.

#[cfg(not(target_os = "linux"))]
compile_error!("buildlock needs Linux: it relies on /proc, signalfd(2) and PR_SET_PDEATHSIG");

pub mod cache;
pub mod child;
pub mod cli;
pub mod command;
pub mod duration;
pub mod exit;
pub mod expiry;
pub mod generate;
pub mod go_json;
pub mod image;
pub mod interpreter;
pub mod lint;
pub mod lock;
pub mod log;
pub mod proc;
pub mod record;
pub mod reference;
pub mod run;
pub mod signals;
mod spawn;
pub mod status;
pub mod subject;
mod terminal;
pub mod user;
pub mod visible;
