//! Answers requests from outside.

fn main() -> anyhow::Result<()> {
    common::start(env!("CARGO_PKG_NAME"))
}
