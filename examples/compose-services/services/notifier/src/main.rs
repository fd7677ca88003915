//! Tells people what happened.

fn main() -> anyhow::Result<()> {
    common::start(env!("CARGO_PKG_NAME"))
}
