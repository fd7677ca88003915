//! The shape of the source: imports run one way, and the ground floor imports nothing from above.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Files that everything else may use, and that use only each other.
const GROUND_FLOOR: &[&str] = &[
    "components",
    "duration",
    "exit",
    "expiry",
    "go_json",
    "interpreter",
    "proc",
    "record",
    "reference",
    "scope",
    "signals",
    "subject",
    "terminal",
    "user",
    "visible",
];

/// The modules of a program, by path (`lock::file`), with their source.
type Source = BTreeMap<String, String>;
/// For each module, the modules that it imports from.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn read(folder: &Path, prefix: &str, source: &mut Source) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            read(&path, &format!("{prefix}{name}::"), source);
        } else if path.extension().is_some_and(|it| it == "rs") {
            source.insert(format!("{prefix}{name}"), fs::read_to_string(&path).unwrap());
        }
    }
}

/// Drops comments, and unit tests, which stand at the end of a file.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns all paths that begin with `crate`, `super` or `self`, with the braces of `use` expanded.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for first in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(first) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !is_word(c) && c != ':') {
                expand(&code[at..], Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Reads one path or tree of paths at the start of `text`. Returns what follows.
fn expand<'t>(text: &'t str, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> &'t str {
    let mut rest = text.trim_start();
    loop {
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            while !rest.trim_start().starts_with('}') {
                let after = expand(rest, path.clone(), found).trim_start();
                let after = after.strip_prefix(',').unwrap_or(after);
                if after.len() == rest.len() {
                    return after;
                }
                rest = after;
            }
            return &rest.trim_start()[1..];
        }
        let word = rest.len() - rest.trim_start_matches(is_word).len();
        path.push(rest[..word].to_owned());
        rest = &rest[word..];
        match rest.strip_prefix("::") {
            Some(next) => rest = next.trim_start(),
            None => break,
        }
    }
    found.push(path);
    match rest.trim_start().strip_prefix("as ") {
        Some(renamed) => renamed.trim_start_matches(is_word),
        None => rest,
    }
}

/// Returns the module of the source that a path in `module` leads into.
fn resolve(module: &str, path: &[String], source: &Source) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").collect();
    let mut path = path.iter().map(String::as_str).peekable();
    if path.next_if_eq(&"crate").is_some() {
        at.clear();
    }
    while let Some(step) = path.next_if(|step| matches!(*step, "super" | "self")) {
        if step == "super" {
            at.pop();
        }
    }
    at.extend(path);
    while !at.is_empty() {
        let name = at.join("::");
        if source.contains_key(&name) {
            return Some(name);
        }
        at.pop();
    }
    None
}

fn imports(source: &Source) -> Imports {
    let of = |(module, text): (&String, &String)| {
        let paths = paths(&code(text));
        let used = paths.iter().filter_map(|path| resolve(module, path, source));
        (module.clone(), used.filter(|used| used != module).collect())
    };
    source.iter().map(of).collect()
}

/// Returns a circle of imports, if there is one.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    fn walk(
        module: &str,
        imports: &Imports,
        above: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(at) = above.iter().position(|it| it == module) {
            return Some(above[at..].to_vec());
        }
        if done.contains(module) {
            return None;
        }
        above.push(module.to_owned());
        let circle = imports[module].iter().find_map(|next| walk(next, imports, above, done));
        above.pop();
        done.insert(module.to_owned());
        circle
    }
    let mut done = BTreeSet::new();
    imports.keys().find_map(|module| walk(module, imports, &mut Vec::new(), &mut done))
}

fn program() -> Source {
    let mut source = Source::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut source);
    source.remove("main");
    source.remove("lib");
    source
}

fn planted(files: &[(&str, &str)]) -> Imports {
    imports(&files.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect())
}

#[test]
fn imports_run_one_way() {
    let imports = imports(&program());
    let count: usize = imports.values().map(BTreeSet::len).sum();
    assert!(count > 100, "only {count} imports were found: {imports:?}");
    assert_eq!(circle(&imports), None, "these files import each other in a circle");
}

#[test]
fn ground_floor_imports_nothing_from_above() {
    let imports = imports(&program());
    for module in GROUND_FLOOR {
        let above: Vec<&String> =
            imports[*module].iter().filter(|it| !GROUND_FLOOR.contains(&it.as_str())).collect();
        assert!(above.is_empty(), "{module} imports {above:?}");
    }
}

#[test]
fn planted_circle_is_found() {
    let files = [
        ("a", "use std::fs;\nuse crate::b::{c::{self, D}, E as F};\n"),
        ("b", "// use crate::a;\n"),
        ("b::c", "use super::super::d::G;\n"),
        ("d", "fn f() { crate::a::h() }\n#[cfg(test)]\nmod tests { use crate::b; }\n"),
    ];
    assert_eq!(circle(&planted(&files)), Some(vec!["a".into(), "b::c".into(), "d".into()]));
    let [a, b, c, (d, _)] = files;
    assert_eq!(circle(&planted(&[a, b, c, (d, "// crate::a\n")])), None);
}
