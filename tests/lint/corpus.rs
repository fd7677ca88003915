//! The corpus and the forms in `tests/lint/`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use super::files::write;
use super::support::Fixture;

#[test]
fn every_dockerfile_of_the_corpus_has_the_findings_in_the_file_beside_it() {
    let f = Fixture::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lint");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "Dockerfile") {
            continue;
        }
        let wanted = fs::read_to_string(path.with_extension("expected")).unwrap();
        let run = f.buildlock(["lint", "--format", "json"]).arg(&path).run();
        let found: Vec<Value> = serde_json::from_slice(&run.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let lines = found.iter().map(|it| {
            format!(
                "{}:{} {} {}\n",
                it["line"],
                it["column"],
                text(&it["level"]),
                text(&it["rule"])
            )
        });
        match wanted.as_str() {
            "unreadable\n" => assert_eq!(run.assert_code(125).stdout, b"[]\n"),
            _ => {
                assert_eq!(lines.collect::<String>(), wanted, "{path:?}");
                run.assert_code(i32::from(wanted.contains(" error ")));
            }
        }
        seen += 1;
    }
    assert!(seen >= 40, "only {seen}");
}

/// The rules that `# RULE, RULE` above a form of `tests/lint/forms/` stands for. `None` for other
/// comments.
fn wanted_rules(line: &str) -> Option<Vec<&str>> {
    const RULES: [&str; 4] = ["race", "mixed", "unknown", "variable"];
    match line.strip_prefix("# ")? {
        "clean" => Some(Vec::new()),
        rules => {
            let rules: Vec<_> = rules.split(", ").collect();
            rules.iter().all(|rule| RULES.contains(rule)).then_some(rules)
        }
    }
}

#[test]
fn every_real_world_form_has_the_verdict_above_it() {
    let f = Fixture::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lint/forms");
    let mut wanted = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let mut name = String::new();
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(rules) = wanted_rules(line) {
                name = format!("{stem}-line-{number}.Dockerfile");
                write(&f, &name, "FROM a\n");
                let rules = rules.iter().map(|rule| format!("cache-mount-{}", of_output(rule)));
                wanted.insert(name.clone(), rules.collect::<Vec<_>>());
            }
            let file = fs::File::options().append(true).open(f.work_dir().join(&name));
            writeln!(file.unwrap(), "{line}").unwrap();
        }
    }
    let run = f.buildlock(["lint", "--format", "json"]).run();
    run.assert_stderr(&format!("looked at {} files", wanted.len()));
    let mut found: BTreeMap<_, Vec<String>> =
        wanted.keys().map(|name| (name.clone(), Vec::new())).collect();
    for finding in serde_json::from_slice::<Vec<Value>>(&run.stdout).unwrap() {
        let text = |key: &str| finding[key].as_str().unwrap().to_owned();
        found.get_mut(&text("path")).unwrap().push(text("rule"));
    }
    let wrong: Vec<_> = wanted.iter().filter(|(name, rules)| found[*name] != **rules).collect();
    let is: Vec<_> = wrong.iter().map(|(name, _)| &found[*name]).collect();
    assert!(wrong.is_empty(), "wanted {wrong:#?}, found {is:#?}");
    assert!(wanted.len() >= 250, "only {}", wanted.len());
}

/// The rule's name in lint's output.
fn of_output(rule: &str) -> &str {
    if rule == "mixed" { "mixed-sharing" } else { rule }
}
