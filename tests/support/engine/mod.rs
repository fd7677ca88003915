//! Docker as it is on this machine, for the tests that build for real.
//!
//! [`for_each_builder`] runs a test with every client in PATH and every builder of it that can be
//! shown to work. Each run has a [`Site`]: a [`Fixture`](super::Fixture) (folder, lock folder,
//! processes) plus names for images that nobody else has. All of them are removed afterwards.

mod base_image;
mod client;
mod clients;
pub mod debian13;
mod events;
mod relay;
pub mod rust_image;
mod second;
mod site;
mod steps;

pub use base_image::{root_archive, static_busybox};
pub use client::Client;
pub use clients::{
    for_each_builder, for_each_client, for_each_store, for_one_client, site, site_of_this_machine,
    skip, with_a_client,
};
pub use events::{all_output, count, events};
pub use relay::Relay;
pub use second::SecondEngine;
pub use site::{Recipe, Site};
pub use steps::{descendants, end_steps, pause, process_ids, program_name, runs_step};
