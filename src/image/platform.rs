//! Platforms of images: how docker and OCI write them, and when one fits another.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// An image's platform as docker writes it, normalized as in containerd
/// (<https://pkg.go.dev/github.com/containerd/platforms#Normalize>).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(rename = "Os", default)]
    os: String,
    #[serde(rename = "Architecture", default)]
    architecture: String,
    #[serde(rename = "Variant", default)]
    variant: String,
}

impl Platform {
    pub(crate) fn new(os: String, architecture: String, variant: String) -> Self {
        Platform { os, architecture, variant }.normalized()
    }

    /// Parses `linux/arm64`, `linux/arm/v7` or `amd64`. Anything else (`local`) is not a platform.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (os, architecture) = match (parts.next()?, parts.next()) {
            (architecture, None) if is_architecture(architecture) => ("linux", architecture),
            (_, None) => return None,
            (os, Some(architecture)) => (os, architecture),
        };
        let variant = parts.next().unwrap_or_default();
        let lower = |text: &str| text.to_ascii_lowercase();
        Some(Self::new(lower(os), lower(architecture), lower(variant)))
    }

    pub(crate) fn os(&self) -> &str {
        &self.os
    }

    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
    }

    pub(crate) fn variant(&self) -> &str {
        &self.variant
    }

    /// Returns the platform, or nothing if the engine did not name one.
    pub(crate) fn known(self) -> Option<Self> {
        (!self.os.is_empty() && !self.architecture.is_empty()).then_some(self)
    }

    fn normalized(mut self) -> Self {
        let (architecture, variant) = match (self.architecture.as_str(), self.variant.as_str()) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686", _) => ("386", ""),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("amd64", "v1") => ("amd64", ""),
            same => same,
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }

    /// Returns whether `docker build --platform self` would accept an image of the platform
    /// `there`.
    pub(crate) fn is_met_by(&self, there: &Platform) -> bool {
        let there = there.clone().normalized();
        // Older engines do not name the variant.
        let same_variant =
            there.variant == self.variant || there.variant.is_empty() || self.architecture != "arm";
        there.os == self.os && there.architecture == self.architecture && same_variant
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

fn is_architecture(text: &str) -> bool {
    matches!(
        text,
        "amd64"
            | "x86_64"
            | "x86-64"
            | "386"
            | "i386"
            | "arm64"
            | "aarch64"
            | "arm"
            | "armhf"
            | "armel"
            | "ppc64le"
            | "s390x"
            | "riscv64"
            | "mips64le"
            | "loong64"
    )
}

/// Lists platforms for a message.
pub(crate) fn list<'p>(platforms: impl IntoIterator<Item = &'p Platform>) -> String {
    platforms.into_iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

/// A platform as OCI writes it.
#[derive(Deserialize)]
pub(crate) struct OciPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl OciPlatform {
    /// Returns the platform, or nothing for what is not an image, such as an attestation
    /// (`unknown/unknown`).
    pub(crate) fn known(self) -> Option<Platform> {
        let OciPlatform { os, architecture, variant } = self;
        let platform = Platform { os, architecture, variant }.known()?;
        (platform.os != "unknown").then_some(platform)
    }

    /// Reads the platform that a JSON object names, if any.
    pub(crate) fn read(json: &Value) -> Option<Platform> {
        serde_json::from_value::<Self>(json.clone()).ok()?.known()
    }
}

/// Returns the platforms in a manifest list, or in a single image's configuration.
pub(crate) fn platforms_in(json: &Value) -> Vec<Platform> {
    let manifests = json["manifests"].as_array().into_iter().flatten();
    let platforms = manifests.map(|manifest| &manifest["platform"]).chain([json]);
    platforms.filter_map(OciPlatform::read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_normalized_as_in_containerd() {
        let platform = |text: &str| Platform::parse(text).map(|platform| platform.to_string());
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(platform(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(platform("local"), None);
        assert_eq!(platform(""), None);
    }

    #[test]
    fn an_image_for_another_platform_does_not_count() {
        let meets = |wanted: &str, there: &str| {
            Platform::parse(wanted).unwrap().is_met_by(&Platform::parse(there).unwrap())
        };
        assert!(meets("linux/amd64", "linux/amd64"));
        assert!(meets("linux/arm64", "linux/arm64/v8"));
        assert!(!meets("linux/arm64", "linux/amd64"));
        assert!(!meets("linux/arm/v6", "linux/arm/v7"));
        assert!(!meets("linux/amd64", "windows/amd64"));
    }
}
