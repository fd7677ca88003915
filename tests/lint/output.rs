//! Levels, and the formats of the report.

use serde_json::Value;

use super::files::{RACE, UNKNOWN, stdout, write};
use super::support::Fixture;

#[test]
fn unknown_cache_is_a_note_and_with_strict_an_error() {
    let f = Fixture::new();
    write(&f, "Dockerfile", UNKNOWN);
    let noted = f.buildlock(["lint"]).run();
    let text = String::from_utf8(noted.assert_code(0).stdout.clone()).unwrap();
    assert!(text.starts_with("Dockerfile:2:5: note: "), "{text}");
    let strict = f.buildlock(["lint", "--strict"]).run();
    let text = String::from_utf8(strict.assert_code(1).stdout.clone()).unwrap();
    assert!(text.starts_with("Dockerfile:2:5: error: "), "{text}");
}

#[test]
fn quiet_lint_prints_no_notes() {
    let f = Fixture::new();
    write(&f, "a.Dockerfile", UNKNOWN);
    f.buildlock(["lint", "-q"]).run().assert_code(0).assert_stdout("");
    f.buildlock(["lint", "-q", "--format", "json"]).run().assert_stdout("[]\n");
    write(&f, "b.Dockerfile", RACE);
    let run = f.buildlock(["lint", "-q"]).run();
    assert_eq!(stdout(run.assert_code(1)).lines().count(), 1, "{}", stdout(&run));
    f.buildlock(["lint", "-q", "--strict", "a.Dockerfile"]).run().assert_code(1);
}

#[test]
fn github_gets_workflow_commands() {
    let f = Fixture::new();
    write(&f, "a,b:c%.Dockerfile", RACE);
    let run = f.buildlock(["lint", "--format", "github", "a,b:c%.Dockerfile"]).run();
    let text = String::from_utf8(run.assert_code(1).stdout.clone()).unwrap();
    let start = "::error file=a%2Cb%3Ac%25.Dockerfile,line=2,col=5,title=cache-mount-race::";
    assert!(text.starts_with(start) && text.lines().count() == 1, "{text}");
    // The file's text must not control the terminal of someone who reads the log.
    write(&f, "Dockerfile", &UNKNOWN.replace("/strange", "/100%\u{1b}[2J"));
    let run = f.buildlock(["lint", "--format", "github"]).run();
    let text = stdout(&run);
    assert!(text.contains("cache mount /100%25\\u{1b}[2J is"), "{text}");
    // Nor must its name.
    write(&f, "\u{1b}[2J\n::error::.Dockerfile", RACE);
    let text = stdout(&f.buildlock(["lint", "--format", "github"]).run());
    assert!(text.contains("::error file=\\u{1b}[2J\\n%3A%3Aerror%3A%3A.Dockerfile,line"), "{text}");
}

#[test]
fn sarif_has_the_rule_the_file_and_the_position() {
    let f = Fixture::new();
    write(&f, "Dockerfile", &format!("{RACE}{}", "RUN --mount=type=cache,target=/strange x\n"));
    let run = f.buildlock(["lint", "--format", "sarif"]).run();
    let sarif: Value = serde_json::from_slice(&run.assert_code(1).stdout).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    let rules = sarif["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
    let found: Vec<_> = results.iter().map(|it| (&it["ruleId"], &it["level"])).collect();
    assert_eq!(found.len(), 2, "{sarif}");
    assert_eq!(
        (found[0].0.as_str(), found[0].1.as_str()),
        (Some("cache-mount-race"), Some("error"))
    );
    assert_eq!(found[1].1, "note");
    assert!(found.iter().all(|(id, _)| rules.iter().any(|rule| rule["id"] == **id)), "{sarif}");
    let place = &results[0]["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "Dockerfile");
    assert_eq!(place["region"]["startLine"], 2);
}
