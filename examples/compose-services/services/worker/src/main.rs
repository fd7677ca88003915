//! Does the work that the executor leaves for later.

fn main() -> anyhow::Result<()> {
    common::start(env!("CARGO_PKG_NAME"))
}
