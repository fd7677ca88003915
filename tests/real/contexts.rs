//! The walk over a context covers exactly what the engine copies into an image.
//!
//! Contexts and ignore files are generated. `BUILDLOCK_TEST_CONTEXTS=2000` makes more of them, and
//! `BUILDLOCK_TEST_SEED=7` others.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use buildlock::fingerprint::context::{ContextDigest, hash_context};
use buildlock::fingerprint::hash_cache::HashCache;
use buildlock::fingerprint::ignore::{Dialect, IgnoreRules};
use fastrand::Rng;

use crate::support::engine::{Client, Site, for_each_builder};

/// For each client and builder. That takes less than a minute.
const CASES: u64 = 20;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// Names that patterns treat in a special way, and some that differ in one letter.
const NAMES: [&str; 18] = [
    "a",
    "b",
    "ab",
    "abc",
    "a.b",
    "x.log",
    "y.log",
    ".hidden",
    "dir",
    "node_modules",
    "é",
    "a b",
    "a*b",
    "#x",
    "!x",
    "c+d",
    "(y)",
    "z^",
];

struct Case {
    ignore_file: String,
    seed: u64,
}

/// Fills a folder, down to this depth. Returns the paths in it.
fn fill(
    folder: &Path,
    modes: &[u32],
    rng: &mut Rng,
    depth: usize,
    above: &str,
    paths: &mut Vec<String>,
) {
    let mut names = NAMES.to_vec();
    rng.shuffle(&mut names);
    for name in names.iter().take(rng.usize(1..6)) {
        let path = folder.join(name);
        let relative = format!("{above}{name}");
        match rng.u8(0..10) {
            0..=3 if depth > 0 => {
                fs::create_dir(&path).unwrap();
                if rng.u8(0..8) != 0 {
                    fill(&path, modes, rng, depth - 1, &format!("{relative}/"), paths);
                }
            }
            4 => symlink(rng.choice(NAMES).unwrap(), &path).unwrap(),
            _ => {
                fs::write(&path, format!("{}", rng.u8(0..4))).unwrap();
                let mode = *rng.choice(modes).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
        }
        paths.push(relative);
    }
}

/// Makes a pattern that has something to do with a path.
fn pattern(path: &str, rng: &mut Rng) -> String {
    let mut names: Vec<String> = path.split('/').map(str::to_owned).collect();
    for name in &mut names {
        match rng.u8(0..16) {
            0 => *name = "*".into(),
            1 => *name = "**".into(),
            2 => name.push('*'),
            3 => name.insert(0, '*'),
            4 => *name = name.chars().map(|_| '?').collect(),
            5 => *name = format!("[{}a-c]*", name.chars().next().unwrap()),
            // In front of a letter, a backslash has other meanings, which buildlock leaves to Docker.
            6 if name.starts_with(|c: char| c.is_ascii_punctuation()) => name.insert(0, '\\'),
            7 => *name = format!("[^{}]*", name.chars().next().unwrap()),
            8 => *name = format!("**{name}"),
            9 => *name = format!("{name}/."),
            _ => {}
        }
    }
    match rng.u8(0..10) {
        0 => names.insert(0, "**".into()),
        1 => names.push("**".into()),
        2 => names.push(String::new()),
        3 => names.insert(0, String::new()),
        4 if names.len() > 1 => _ = names.remove(0),
        5 if names.len() > 1 => _ = names.pop(),
        6 => names.push("*".into()),
        _ => {}
    }
    let pattern = names.join("/");
    match rng.u8(0..8) {
        0..=2 => format!("!{pattern}"),
        3 => format!("  {pattern}\t"),
        _ => pattern,
    }
}

fn ignore_file(paths: &[String], rng: &mut Rng) -> String {
    let mut lines = Vec::new();
    if rng.u8(0..4) == 0 {
        lines.push((*rng.choice(&["*", "**", "*/*", "# nothing", ""]).unwrap()).to_owned());
    }
    for _ in 0..rng.usize(1..7) {
        lines.push(pattern(rng.choice(paths).unwrap(), rng));
    }
    match rng.u8(0..8) {
        0 => lines.push("Dockerfile".into()),
        1 => lines.push(".dockerignore".into()),
        2 => lines[0].insert(0, '\u{feff}'),
        _ => {}
    }
    lines.join(if rng.bool() { "\n" } else { "\r\n" })
}

/// Makes a context with an ignore file that Docker takes.
fn generate(context: &Path, seed: u64, dialect: Dialect) -> (Case, IgnoreRules) {
    let mut rng = Rng::with_seed(seed);
    let mut paths = Vec::new();
    // The legacy builder changes the owner last, which takes setuid away.
    let special = if is_legacy(dialect) { 0o711 } else { 0o4755 };
    fill(context, &[0o644, 0o755, 0o600, 0o1666, special], &mut rng, 3, "", &mut paths);
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    loop {
        let ignore_file = ignore_file(&paths, &mut rng);
        // So do these, to old clients.
        if is_old(dialect) && ignore_file.contains(['+', '(', ')']) {
            continue;
        }
        if let Ok(rules) = IgnoreRules::read(ignore_file.as_bytes(), &[dialect]) {
            fs::write(context.join(".dockerignore"), &ignore_file).unwrap();
            return (Case { ignore_file, seed }, rules);
        }
    }
}

fn is_old(dialect: Dialect) -> bool {
    matches!(dialect, Dialect::OldBuildKit | Dialect::OldLegacy)
}

fn is_legacy(dialect: Dialect) -> bool {
    matches!(dialect, Dialect::Legacy | Dialect::OldLegacy)
}

/// How this client reads ignore files.
fn dialect(client: &Client) -> Dialect {
    let version = client.ask(["version", "--format", "{{.Client.Version}}"]);
    let major: u32 = version.split('.').next().unwrap().parse().unwrap();
    match (client.buildkit, major >= 23) {
        (true, true) => Dialect::BuildKit,
        (true, false) => Dialect::OldBuildKit,
        (false, true) => Dialect::Legacy,
        (false, false) => Dialect::OldLegacy,
    }
}

/// Builds an image from a context, and unpacks what is in it. If the build fails, returns its
/// messages.
fn build(site: &Site, context: &Path, to: &Path) -> Result<(), String> {
    let client = &site.client;
    let archive = site.f.path("work/image.tar");
    if client.buildkit {
        let output = format!("type=tar,dest={}", archive.display());
        let words = [OsStr::new("build"), "-q".as_ref(), "-o".as_ref(), output.as_ref()];
        let built = client.docker(words.iter().copied().chain([context.as_os_str()]));
        if !built.status.success() {
            return Err(messages(&built));
        }
        unpack(&archive, to);
        return Ok(());
    }
    let tag = format!("{}:1", site.name("context"));
    let words = ["build", "-q", "--no-cache", "-t", &tag].map(OsStr::new);
    let built = client.docker(words.into_iter().chain([context.as_os_str()]));
    if !built.status.success() {
        return Err(messages(&built));
    }
    let saved = client.docker(["save", "-o", archive.to_str().unwrap(), &tag]);
    client.ask(["image", "rm", &tag]);
    if !saved.status.success() {
        return Err(messages(&saved));
    }
    let image = tempfile::tempdir_in(site.f.path("work")).unwrap();
    unpack(&archive, image.path());
    let manifest = fs::read(image.path().join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for layer in manifest[0]["Layers"].as_array().unwrap_or(&Vec::new()) {
        unpack(&image.path().join(layer.as_str().unwrap()), to);
    }
    Ok(())
}

fn messages(built: &Output) -> String {
    String::from_utf8_lossy(&built.stderr).into_owned()
}

fn unpack(archive: &Path, to: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["--same-permissions", "--numeric-owner", "-xf"]).arg(archive).arg("-C").arg(to);
    let done = tar.output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

fn walk(folder: &Path, rules: &IgnoreRules) -> ContextDigest {
    hash_context(folder, rules, &[], &mut HashCache::none()).unwrap()
}

fn nothing_excluded() -> IgnoreRules {
    IgnoreRules::read(b"", &[Dialect::BuildKit]).unwrap()
}

/// Builds some contexts with a client, and compares.
fn agrees(site: &Site) {
    let dialect = dialect(&site.client);
    let seed = number("BUILDLOCK_TEST_SEED", 1) * 1_000_000;
    let (mut built, mut excluded) = (0, 0);
    for n in 0..number("BUILDLOCK_TEST_CONTEXTS", CASES) {
        let context = tempfile::tempdir_in(site.f.path("work")).unwrap();
        let image = tempfile::tempdir_in(site.f.path("work")).unwrap();
        let (case, rules) = generate(context.path(), seed + n, dialect);
        let covered = walk(context.path(), &rules);
        if let Err(messages) = build(site, context.path(), image.path()) {
            // Builders do not like to copy nothing.
            assert!(
                covered.entries.is_empty(),
                "{}: {:?}: {messages}",
                case.seed,
                case.ignore_file
            );
            continue;
        }
        built += 1;
        assert_same(&case, dialect, &covered, image.path());
        excluded += usize::from(covered.digest != walk(context.path(), &nothing_excluded()).digest);

        // A caller that does not know the client covers at least as much.
        let all = IgnoreRules::read(case.ignore_file.as_bytes(), &Dialect::ALL);
        let covered_by_all = walk(context.path(), &all.unwrap());
        for entry in &covered.entries {
            assert!(covered_by_all.entries.contains(entry), "{}: {entry:?}", case.seed);
        }
    }
    assert!(built > 0 && excluded > 0, "{built} images; no ignore file has excluded anything");
}

fn assert_same(case: &Case, dialect: Dialect, covered: &ContextDigest, folder: &Path) {
    let image = walk(folder, &nothing_excluded());
    if covered.digest == image.digest {
        return;
    }
    let by_path = |of: &ContextDigest| -> BTreeMap<PathBuf, u64> {
        of.entries.iter().map(|entry| (entry.path.clone(), entry.digest)).collect()
    };
    let (covered, image) = (by_path(covered), by_path(&image));
    let missing: Vec<_> = image.iter().filter(|(path, _)| !covered.contains_key(*path)).collect();
    let more: Vec<_> = covered.iter().filter(|(path, _)| !image.contains_key(*path)).collect();
    let mut differ: Vec<_> = covered
        .iter()
        .filter(|(path, it)| image.get(*path).is_some_and(|own| own != *it))
        .map(|(path, _)| path)
        .collect();
    // BuildKit looks at a path twice, first to send the entry and then to send the content. The two
    // looks can disagree; then it sends an empty file.
    let is_emptied = |path: &Path| fs::read(folder.join(path)).is_ok_and(|it| it.is_empty());
    differ.retain(|path| dialect != Dialect::BuildKit || !is_emptied(path));
    if missing.is_empty() && more.is_empty() && differ.is_empty() {
        return;
    }
    panic!(
        "BUILDLOCK_TEST_SEED case {}, {dialect:?}, ignore file {:?}\nonly in the image: {missing:?}\n\
         only covered: {more:?}\ndiffer: {differ:?}",
        case.seed, case.ignore_file
    );
}

#[test]
fn walk_covers_what_the_engine_copies() {
    for_each_builder(agrees);
}
