//! Which images a Dockerfile reads: buildlock's reader beside the builders themselves.
//!
//! A registry that has no image hears which one the builder asks for, and the build fails at once.

use std::collections::BTreeMap;

use buildlock::fingerprint::readers::base_images;

use crate::support::engine::for_each_builder;
use crate::support::registry::{OddRegistry, Says};

/// What stands in front of the first FROM. `GIVEN` comes from the command line.
const ARGUMENTS: &str = r#"ARG NONE
ARG EMPTY=
ARG A=one
ARG B="t wo" C='$A' D=$A-$GIVEN
ARG GIVEN=not-this
ARG E=${NONE:-x${A}y} V=a/b/c-1.2
"#;

/// What stands behind `FROM REGISTRY/`.
const IMAGES: &[&str] = &[
    "plain",
    "plain:1",
    "$A",
    "${A}",
    "x-$A:$GIVEN",
    "x-$D",
    "$E:${A}",
    "$V",
    "x$EMPTY",
    "x${NONE}y",
    "x$UNDECLARED",
    "${NONE:-n}",
    "${EMPTY:-e}",
    "${A:-n}",
    "x${A:+set}",
    "x${NONE:+set}",
    "${NONE:-${EMPTY:-$A}}",
    "${NONE:-'q'}",
    "'q'\"r\"",
    "\"$A\"",
    "x\\-y",
    "x${NONE:-\\}}",
    "\"${NONE:-\"inner\"}\"",
    "'$A'",
    "\\$A",
    "$C",
    "x$",
    "$1x",
    "x$@y",
    "${A",
    "${}",
    "${A:?}",
    "${NONE:?why}",
    "${NONE-n}",
    "${EMPTY-n}x",
    "${A+set}",
    "${V#*/}",
    "${V##*/}",
    "${V%-*}",
    "${V/b/x}",
    "${V//[/]/_}",
    "x-${TARGETARCH:-none}",
    "x-${BUILDOS:-none}",
    "${A^^}",
    "${HTTP_PROXY:-none}",
];

#[test]
fn names_of_base_images_are_those_that_the_builders_ask_for() {
    for_each_builder(|site| {
        // With this store, the engine does not fall back to HTTP. The builders are the same.
        if site.client.has_containerds_store() {
            return;
        }
        let unknown = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        let says = Says::This("404 Not Found", "application/json", unknown.to_owned());
        let registry = OddRegistry::start(says);
        let address = registry.address();
        let _bridge = site.client.reaches(&address);
        let build_args = BTreeMap::from([("GIVEN".to_owned(), "given".to_owned())]);
        let mut compared = 0;
        for image in IMAGES {
            let text = format!("{ARGUMENTS}FROM {address}/{image}\n");
            let context = site.context(&text);
            let args = ["build", "--build-arg", "GIVEN=given", context.to_str().unwrap()];
            let before = registry.asked();
            let built = site.client.docker(args);
            assert!(!built.status.success(), "{image}");
            let requests = registry.requests().split_off(before);
            let platform = std::env::consts::ARCH;
            let read =
                base_images(text.as_bytes(), site.client.buildkit, &build_args, platform).unwrap();
            let [read] = read.as_slice() else { panic!("{image}: {read:?}") };
            let asked = requests.iter().find(|request| request.contains("/manifests/"));
            // An older builder refuses what a newer one knows.
            if let (Some(read), Some(asked)) = (read, asked) {
                let name = read.strip_prefix(&format!("{address}/")).unwrap();
                let (name, tag) = name.split_once(':').unwrap_or((name, "latest"));
                let wanted = format!(" /v2/{name}/manifests/{tag} ");
                assert!(asked.contains(&wanted), "{image}: read {read}, but {asked}\n{built:?}");
                compared += 1;
            }
        }
        assert!(compared > 20, "only {compared} names could be compared");
    });
}
