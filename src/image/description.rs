//! What an engine or a registry says about one image: its label, its identity, and what an image
//! that is built upon it inherits.

use serde_json::{Map, Value};

use super::platform::Platform;

/// The label that carries the fingerprint of the inputs (docs/if-changed.md).
pub(crate) const LABEL: &str = "buildlock.inputs";

/// What is known of an image.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// Its ID, as `image inspect` shows it. None in a registry.
    pub(crate) id: Option<String>,
    pub(crate) platform: Option<Platform>,
    /// The value of our label.
    pub(crate) inputs: Option<String>,
    /// The digests of its layers, uncompressed.
    pub(crate) layers: Vec<String>,
    /// What an image that is built upon it inherits, without our label, in a fixed order.
    pub(crate) inherited: String,
    /// The instructions that a build upon it executes (`ONBUILD`).
    pub(crate) on_build: Vec<String>,
    /// Whether there may be such instructions that the engine does not show.
    pub(crate) may_hide_on_build: bool,
}

impl Description {
    /// Reads what `image inspect` or the engine's API shows. Returns none if it is not an image.
    pub(crate) fn of_engine(image: &Value) -> Option<Self> {
        let id = image["Id"].as_str().filter(|id| !id.is_empty())?.to_owned();
        let platform = serde_json::from_value::<Platform>(image.clone()).ok()?.known();
        let layers = &image["RootFS"]["Layers"];
        Some(Self { id: Some(id), platform, ..Self::of_config(&image["Config"], layers) })
    }

    /// Reads what `podman image inspect` shows. That has neither `ONBUILD` nor `SHELL`, but the
    /// image's history tells of both. Returns none if it is not an image.
    pub(crate) fn of_podman(image: &Value) -> Option<Self> {
        let mut this = Self::of_engine(image)?;
        let history = image["History"].as_array();
        let steps: Vec<&str> =
            history.into_iter().flatten().filter_map(|step| step["created_by"].as_str()).collect();
        // Triggers that the image itself has executed are among them, too.
        this.may_hide_on_build =
            steps.is_empty() || steps.iter().any(|it| it.to_ascii_uppercase().contains("ONBUILD"));
        this.inherited = format!("{}\n{}", this.inherited, steps.join("\n"));
        Some(this)
    }

    /// Reads a configuration in OCI's format, from a registry or from buildah.
    pub(crate) fn of_oci(image: &Value) -> Self {
        let platform = super::platform::OciPlatform::read(image);
        let layers = &image["rootfs"]["diff_ids"];
        Self { platform, ..Self::of_config(&image["config"], layers) }
    }

    fn of_config(config: &Value, layers: &Value) -> Self {
        Description {
            id: None,
            platform: None,
            inputs: config["Labels"][LABEL].as_str().map(str::to_owned),
            layers: texts(layers),
            inherited: inherited(config).to_string(),
            on_build: texts(&config["OnBuild"]),
            may_hide_on_build: false,
        }
    }
}

/// For the log. What is inherited may contain secrets, so only the names are shown.
impl std::fmt::Debug for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Description")
            .field("id", &self.id)
            .field("platform", &self.platform)
            .field("inputs", &self.inputs)
            .field("layers", &self.layers)
            .field("inherited", &names(&self.inherited))
            .field("triggers", &self.on_build.len())
            .field("may_hide_on_build", &self.may_hide_on_build)
            .finish()
    }
}

/// Returns the names in what [`inherited`] returns, and those of the variables there.
fn names(inherited: &str) -> Vec<String> {
    // Behind it, podman's has the history.
    let config = inherited.lines().next().unwrap_or_default();
    let config: Map<String, Value> = serde_json::from_str(config).unwrap_or_default();
    let variables = texts(config.get("Env").unwrap_or(&Value::Null)).into_iter();
    let variable = |it: String| it.split('=').next().unwrap_or_default().to_owned();
    let fields = config.keys().filter(|name| *name != "Env").cloned();
    fields.chain(variables.map(variable)).collect()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|it| Some(it.as_str()?.to_owned())).collect()
}

/// Returns the part of a configuration that an image built upon this one inherits. The rest
/// describes the container in which a builder ran.
fn inherited(config: &Value) -> Value {
    // From moby's container.Config and OCI's ImageConfig.
    const INHERITED: [&str; 13] = [
        "ArgsEscaped",
        "Cmd",
        "Entrypoint",
        "Env",
        "ExposedPorts",
        "Healthcheck",
        "Labels",
        "OnBuild",
        "Shell",
        "StopSignal",
        "User",
        "Volumes",
        "WorkingDir",
    ];
    let mut kept = Map::new();
    for name in INHERITED {
        let mut value = config[name].clone();
        if let Some(labels) = value.as_object_mut() {
            labels.remove(LABEL);
        }
        if !is_empty(&value) {
            kept.insert(name.to_owned(), value);
        }
    }
    let mut kept = Value::Object(kept);
    kept.sort_all_objects();
    kept
}

/// Returns whether a value says nothing. Engines write an unset one as null, as an empty list, or
/// not at all.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn log_shows_the_names_of_what_is_inherited_and_no_values() {
        let config = json!({"Env": ["PATH=/bin", "TOKEN=s3cret"], "Cmd": ["s3cret"],
                            "Labels": {"x": "s3cret"}, "OnBuild": ["ENV A=s3cret"]});
        let image = json!({"Id": "1", "Os": "linux", "Architecture": "amd64", "Config": config,
                           "History": [{"created_by": "ENV TOKEN=s3cret"}]});
        for image in [Description::of_engine(&image), Description::of_podman(&image)] {
            let said = format!("{image:?}");
            assert!(said.contains("TOKEN") && said.contains("Cmd"), "{said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn image_counts_by_what_is_inherited_and_not_by_its_id_or_our_label() {
        let image = |id: &str, labels: Value, cmd: Value| {
            Description::of_engine(&json!({
                "Id": id,
                "Os": "linux",
                "Architecture": "amd64",
                "RootFS": {"Layers": ["sha256:1", "sha256:2"]},
                "Config": {"Image": id, "Hostname": id, "Cmd": cmd, "Labels": labels,
                           "OnBuild": ["RUN x"], "Volumes": null},
            }))
            .unwrap()
        };
        let plain = image("a", json!({"x": "y"}), json!(["sh"]));
        let labelled = image("b", json!({"x": "y", LABEL: "1.a"}), json!(["sh"]));
        assert_eq!(plain.inherited, labelled.inherited);
        assert_eq!((plain.inputs, labelled.inputs), (None, Some("1.a".into())));
        assert_eq!(plain.layers, ["sha256:1", "sha256:2"]);
        assert_eq!(plain.on_build, ["RUN x"]);
        assert_ne!(plain.inherited, image("a", json!({"x": "z"}), json!(["sh"])).inherited);
        assert_ne!(plain.inherited, image("a", json!({"x": "y"}), json!(["bash"])).inherited);
        assert_eq!(
            image("a", json!({LABEL: "1.a"}), json!(null)).inherited,
            image("a", json!(null), json!([])).inherited
        );
    }

    #[test]
    fn history_of_podmans_image_stands_for_what_its_configuration_does_not_show() {
        let image = |steps: &[&str]| {
            let steps: Vec<_> = steps.iter().map(|step| json!({"created_by": step})).collect();
            let image = json!({"Id": "a", "Os": "linux", "Architecture": "amd64",
                               "Config": {}, "History": steps});
            Description::of_podman(&image).unwrap()
        };
        let plain = image(&["ADD file:1 in /"]);
        assert!(!plain.may_hide_on_build);
        let shell = image(&["ADD file:1 in /", "/bin/sh -c #(nop) SHELL [\"/bin/ash\"]"]);
        assert_ne!(plain.inherited, shell.inherited);
        assert!(
            image(&["ADD file:1 in /", "/bin/sh -c #(nop) ONBUILD COPY . /"]).may_hide_on_build
        );
        assert!(image(&[]).may_hide_on_build, "no history");
    }

    #[test]
    fn configuration_in_ocis_format_is_read() {
        let image = Description::of_oci(&json!({
            "os": "linux", "architecture": "arm64",
            "config": {"Labels": {LABEL: "1.a"}, "User": "u"},
            "rootfs": {"diff_ids": ["sha256:1"]},
        }));
        assert_eq!(image.inputs.as_deref(), Some("1.a"));
        assert_eq!(image.inherited, r#"{"User":"u"}"#);
        assert_eq!(image.platform.unwrap().to_string(), "linux/arm64");
        assert_eq!(image.layers, ["sha256:1"]);
    }

    #[test]
    fn answer_without_an_id_is_not_an_image() {
        assert_eq!(Description::of_engine(&json!({})), None);
        assert_eq!(Description::of_engine(&json!({"Id": ""})), None);
    }
}
