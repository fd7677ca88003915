//! The builder that a build command uses.

use std::collections::BTreeMap;

use crate::command::{Client, Command};
use crate::go_json;
use crate::image::buildx;

/// Returns the builder that the build command chooses with an option or a variable, or that
/// `docker buildx use` has chosen for it.
pub(super) fn chosen_builder(command: &Command, client: &Client) -> Option<String> {
    if !command.is_buildx() && buildx::is_turned_off(client) {
        return None;
    }
    let by_variable = || client.variable("BUILDX_BUILDER")?.into_string().ok();
    let by_use = || buildx::chosen_builder(command.is_buildx(), client);
    command.builder().map(str::to_owned).or_else(by_variable).or_else(by_use)
}

/// Returns the chosen builder if it is known to run in a container and not to give its images to
/// the engine.
pub(super) fn container_builder(command: &Command, client: &Client) -> Option<String> {
    let builder = chosen_builder(command, client)?;
    let file = buildx::instance(&buildx::folder(client)?, &builder)?;
    let instance: Instance = go_json::read(&std::fs::read(file).ok()?).ok()?;
    instance.keeps_images().then_some(builder)
}

/// A builder, as buildx describes it in its file.
#[derive(Default)]
struct Instance {
    driver: String,
    nodes: Vec<Node>,
}
go_json::fields!(Instance { "Driver" => driver, "Nodes" => nodes });

#[derive(Default)]
struct Node {
    driver_opts: BTreeMap<String, String>,
}
go_json::fields!(Node { "DriverOpts" => driver_opts });

impl Instance {
    fn keeps_images(&self) -> bool {
        !matches!(self.driver.as_str(), "" | "docker") && !self.nodes.iter().any(Node::loads)
    }
}

impl Node {
    /// Tells whether its images go to the engine without `--load`.
    fn loads(&self) -> bool {
        self.driver_opts.get("default-load").is_some_and(|value| value == "true")
    }
}
