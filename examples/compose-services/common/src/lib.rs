//! Code that the five services share.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};

/// The line that a service prints when it starts.
#[derive(Serialize)]
struct Started<'a> {
    service: &'a str,
    version: &'a str,
    settings: Map<String, Value>,
}

/// Prints a line of JSON with the service's name, version and settings. The settings are the JSON
/// object in the variable `SETTINGS`.
///
/// # Errors
/// Fails if `SETTINGS` is set to anything but a JSON object.
pub fn start(service: &str) -> Result<()> {
    let settings = std::env::var("SETTINGS").unwrap_or_else(|_| "{}".to_owned());
    let settings = serde_json::from_str(&settings).context("SETTINGS is not a JSON object")?;
    let started = Started { service, version: env!("CARGO_PKG_VERSION"), settings };
    println!("{}", serde_json::to_string(&started)?);
    Ok(())
}
