//! Bake files.

use serde_json::Value;

use super::files::write;
use super::support::Fixture;

const TWO_OF_ONE: &str = r#"{
  "group": {"default": {"targets": ["a", "all"]}, "all": {"targets": ["b"]}},
  "target": {
    "a": {"tags": ["x:1"]},
    "b": {"tags": ["y:1", "x:1"]},
    "c": {"tags": ["y:1"]},
    "d": {"tags": ["x:1"], "output": ["type=local,dest=out"]}
  }
}
"#;

/// Returns the level, line and message of each finding.
fn findings(f: &Fixture, args: &[&str], code: i32) -> Vec<(String, u64, String)> {
    let all = ["lint", "--format", "json"].iter().chain(args);
    let run = f.buildlock(all).run();
    let found: Vec<Value> = serde_json::from_slice(&run.assert_code(code).stdout).unwrap();
    let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
    found
        .iter()
        .inspect(|it| assert_eq!(it["rule"], "bake-same-image"))
        .map(|it| (text(it, "level"), it["line"].as_u64().unwrap(), text(it, "message")))
        .collect()
}

#[test]
fn targets_that_build_one_image_are_found_without_buildx() {
    let f = Fixture::new();
    write(&f, "docker-bake.json", TWO_OF_ONE);
    let found = findings(&f, &[], 1);
    assert_eq!(
        found,
        [
            ("error".to_owned(), 5, "the targets a and b both build x:1".to_owned()),
            (
                "note".to_owned(),
                6,
                "the targets b and c both build y:1, if they are built together".to_owned()
            ),
        ]
    );
    write(&f, "docker-bake.json", &TWO_OF_ONE.replace("\"y:1\", \"x:1\"", "\"y:1\""));
    assert_eq!(findings(&f, &[], 0).len(), 1);
    write(&f, "docker-bake.json", "{");
    f.buildlock(["lint", "docker-bake.json"]).run().assert_code(125).assert_stderr("not JSON");
}

/// A stand-in for buildx, which prints `plan` for all targets and `default` for none.
fn install_buildx(f: &Fixture, plan: &str, default: &str) {
    write(f, "plan", plan);
    write(f, "default", default);
    let script = "#!/bin/sh\n\
        case \"$*\" in\n\
        'buildx version') ;;\n\
        'buildx bake '*' --print') cat default ;;\n\
        'buildx bake '*' --print '*) echo \"$*\" >>asked; cat plan ;;\n\
        *) exit 1 ;;\n\
        esac\n";
    f.install_script("docker", script);
}

#[test]
fn bake_itself_says_which_tags_its_targets_have() {
    let f = Fixture::new();
    let hcl = "# target \"no\" {\nvariable \"TAG\" { default = \"1\" }\n\
               target \"one\" {\n  tags = [\"x:${TAG}\"]\n}\n\n\
               target \"many\" {\n  name = \"many-${v}\"\n  matrix = { v = [\"a\", \"b\"] }\n}\n";
    write(&f, "docker-bake.hcl", hcl);
    write(&f, "docker-bake.override.hcl", "");
    let plan = r#"{
        "group": {"default": {"targets": ["many", "one"]}, "many": {"targets": ["many-a"]}},
        "target": {"many-a": {"tags": ["x:1"]}, "one": {"tags": ["x:1"]}}
    }"#;
    install_buildx(&f, plan, r#"{"group": {"default": {"targets": ["one"]}}, "target": {}}"#);
    let found = findings(&f, &[], 0);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].1, 3);
    let asked = f.lines("work/asked");
    let words = "buildx bake -f docker-bake.hcl -f docker-bake.override.hcl --print many one";
    assert_eq!(asked, [words]);
    // Both in one call.
    install_buildx(&f, plan, plan);
    assert_eq!(findings(&f, &["docker-bake.hcl"], 1)[0].0, "error");
}
