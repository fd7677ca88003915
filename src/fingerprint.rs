//! What a build command reads, as one value that changes with it (`--if-changed`).
//!
//! The rule behind every detail: build once too often rather than skip once wrongly.
//!
//! - `inputs.rs`, `known.rs`: what a build command reads. `sum.rs`, `moment.rs`: the fingerprint of it all.
//! - `context.rs`: the walk over a context, as `ignore.rs` leaves it, with a cache of hashes.
//! - `dockerfile.rs`, `bases.rs`: the images that a Dockerfile reads, and what they are now.
//! - `options.rs`: what counts of the command's options.
//! - `way.rs`, `owners.rs`: who else can change an input, or put another one in its place.
//! - `value.rs`: how the fingerprint is written. `note.rs`, `proofs.rs`: what is remembered of images.
//!   `file_list.rs`: what is remembered of the files, for messages.

mod bases;
mod builder;
mod cache_folder;
mod classes;
mod clock;
mod content;
pub mod context;
mod contexts;
mod dockerfile;
mod entries;
mod file;
mod file_list;
pub mod hash_cache;
pub mod ignore;
mod inputs;
mod known;
mod moment;
pub(crate) mod note;
mod options;
mod own_folder;
mod owners;
mod pattern;
pub(crate) mod proofs;
mod remote;
mod source;
mod stamp;
mod sum;
mod syntax;
mod value;
mod way;

pub(crate) use self::inputs::Inputs;
pub(crate) use self::moment::{Change, Fingerprint};
pub(crate) use self::sum::Detail;
pub(crate) use self::value::Kind;

/// Readers of what the builders read, for the tests.
pub mod readers {
    use std::collections::BTreeMap;

    use super::dockerfile::{Build, Reader, Reference};
    use crate::dockerfile::Dialect;
    use crate::image::Platform;

    /// Returns the images that a Dockerfile reads on a machine of this platform; none where only
    /// the build knows the name.
    ///
    /// # Errors
    /// The builder would refuse the Dockerfile.
    pub fn base_images(
        dockerfile: &[u8],
        is_buildkit: bool,
        build_args: &BTreeMap<String, String>,
        platform: &str,
    ) -> Result<Vec<Option<String>>, String> {
        let platform = Platform::parse(platform);
        let build = Build {
            dialect: if is_buildkit { Dialect::BuildKit } else { Dialect::Legacy },
            build_args,
            contexts: &[],
            from: None,
            target: platform.as_ref(),
            native: platform.as_ref(),
        };
        let reader = Reader::read(dockerfile, &build)
            .map_err(|error| format!("line {}: {}", error.line, error.why))?;
        let image = |reference: &Reference| match reference {
            Reference::Image(image) => Some(image.clone()),
            Reference::Unknown(_) => None,
        };
        Ok(reader.reads().bases.iter().map(|base| image(&base.reference)).collect())
    }
}
