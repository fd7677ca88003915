//! What the command gives to the Dockerfile.

use std::collections::BTreeMap;

use crate::dockerfile::Dialect;
use crate::fingerprint::contexts::NamedContext;
use crate::image::Platform;

/// What the command gives to the Dockerfile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Build<'b> {
    pub(crate) dialect: Dialect,
    /// The values of `--build-arg`. A name without a value is not among them.
    pub(crate) build_args: &'b BTreeMap<String, String>,
    pub(crate) contexts: &'b [NamedContext],
    /// The image that takes the place of the first one (`--from` of buildah).
    pub(crate) from: Option<&'b str>,
    /// The platform that the image is for. With several, the Dockerfile is read for each.
    pub(crate) target: Option<&'b Platform>,
    /// The platform of the builder.
    pub(crate) native: Option<&'b Platform>,
}
