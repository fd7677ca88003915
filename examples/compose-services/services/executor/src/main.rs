//! Runs what the API was asked to run.

fn main() -> anyhow::Result<()> {
    common::start(env!("CARGO_PKG_NAME"))
}
