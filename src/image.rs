//! Is the image present?
//!
//! The engine that the build command will use is asked: over its API where it listens on a local
//! socket, otherwise through its own client. With `--check`, its registry or a command is asked
//! instead. Anything but a certain answer is an error, never "missing".
//!
//! - `engine/`: how each engine is asked.
//! - `present/`: what "present" means; each meaning is one file.

mod answer;
pub mod check;
mod description;
mod engine;
mod images;
mod missing;
mod platform;
mod present;
mod retry;
mod wanted;

pub(crate) use self::answer::{ANSWER_WITHIN, CacheMount, EngineProcess, Identity, excerpt};
pub(crate) use self::check::Check;
pub(crate) use self::description::{Description, LABEL};
pub(crate) use self::engine::backend::OwnBuilder;
pub(crate) use self::engine::compose::{bake_plan, compose_config};
pub(crate) use self::engine::docker::buildx;
pub(crate) use self::engine::podman::is_buildah;
pub(crate) use self::images::{Images, UpToDate};
pub(crate) use self::missing::{Instead, Missing, Why};
pub(crate) use self::platform::Platform;

/// Readers of what engines, clients and registries say, for the fuzz targets.
pub mod readers {
    pub use super::answer::{Answer, Unanswered};
    pub use super::engine::client::ClientOutput;
    pub use super::engine::docker::api::read_image;
    pub use super::engine::docker::context::{context_in, host_in};
    pub use super::engine::docker::distribution::read_distribution;
    pub use super::engine::docker::http::{Response, receive};
    pub use super::engine::docker::imagetools::read_imagetools;
    pub use super::engine::inspect::read_inspect;
    pub use super::engine::podman::read_exists;
    pub use super::engine::podman::skopeo::read_skopeo;
}
