//! Watches the other services.

fn main() -> anyhow::Result<()> {
    common::start(env!("CARGO_PKG_NAME"))
}
