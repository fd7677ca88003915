//! Which tools may share a cache folder, and which need a lock around it.
//!
//! The sources are in `docs/lint.md`; a tool is here only if there is one. A lock protects a
//! cache mount only if its file lies *inside* the mount: everything else in the container is its
//! own.

use std::collections::HashMap;

use super::shell::Call;

/// What happens when two builds use the same folder at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They can break each other: the tool, and why, as the second half of a sentence.
    Races(&'static str),
    /// The tool sees to it itself, or nothing is written there.
    Safe,
    /// Nobody has looked at what writes there.
    Unknown,
}

/// A kind of cache folder.
#[derive(Debug, PartialEq, Eq)]
struct Tool {
    /// The programs that use it, and in whose words its version may be seen.
    programs: &'static [&'static str],
    /// Ends of paths, by component: `*` is any one, `**` any number at the end, and a leading `/`
    /// means the whole path.
    paths: &'static [&'static str],
    /// The path could be anybody's: the RUN must start one of the programs.
    must_start: bool,
    races: bool,
    /// The package and the version of it from which on it does not race any more.
    until: Option<(&'static str, &'static [u32])>,
    /// Why, as the second half of a sentence.
    why: &'static str,
}

impl Tool {
    /// Is its folder the one that the other's lies in?
    fn is_around(&self, other: &Tool) -> bool {
        let is_in = |outer: &str, inner: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
        };
        self.programs == other.programs
            && self.paths.iter().any(|outer| other.paths.iter().any(|inner| is_in(outer, inner)))
    }
}

const SAFE: Tool =
    Tool { programs: &[], paths: &[], must_start: false, races: false, until: None, why: "" };
const RACES: Tool = Tool { races: true, ..SAFE };

/// The first match counts.
const TOOLS: &[Tool] = &[
    Tool {
        programs: &["cargo"],
        paths: &[".cargo/registry/**", "cargo/registry/**", ".cargo/git/**", "cargo/git/**"],
        why: "cargo's lock, .package-cache, lies beside this folder and not in it",
        ..RACES
    },
    Tool {
        programs: &["cargo"],
        paths: &["registry", "registry/cache", "registry/index", "registry/src", "git", "git/db"],
        must_start: true,
        why: "cargo's lock, .package-cache, lies beside this folder and not in it",
        ..RACES
    },
    Tool {
        // cargo's lock, .package-cache, is in it.
        programs: &["cargo"],
        paths: &[".cargo", "/usr/local/cargo"],
        ..SAFE
    },
    Tool {
        programs: &["cargo"],
        paths: &[
            "target/*/deps",
            "target/*/build",
            "target/*/incremental",
            "target/*/.fingerprint",
            "target/*/*/deps",
            "target/*/*/build",
            "target/*/*/incremental",
            "target/*/*/.fingerprint",
        ],
        must_start: true,
        why: "cargo's lock, .cargo-lock, lies beside this folder and not in it",
        ..RACES
    },
    Tool {
        // cargo's lock, .cargo-lock, is in it.
        programs: &["cargo"],
        paths: &["target", "target/*", "target/*/debug", "target/*/release"],
        must_start: true,
        ..SAFE
    },
    Tool {
        programs: &["sccache"],
        paths: &[".cache/sccache/**", "sccache/**"],
        why: "sccache does not support two servers on one folder, and each build starts its own",
        ..RACES
    },
    Tool {
        // ccache renames finished files into place.
        programs: &["ccache"],
        paths: &[".ccache/**", "ccache/**"],
        ..SAFE
    },
    Tool {
        programs: &["apt"],
        paths: &["/var/cache/apt/**", "/var/lib/apt/**"],
        why: "apt needs it for itself: with another one in it, it fails instead of waiting",
        ..RACES
    },
    Tool {
        programs: &["npx"],
        paths: &["_npx/**"],
        until: Some(("npm", &[11, 6, 1])),
        why: "npx does not lock what it installs there before npm 11.6.1",
        ..RACES
    },
    Tool {
        programs: &["npx"],
        paths: &[".npm"],
        must_start: true,
        until: Some(("npm", &[11, 6, 1])),
        why: "npx does not lock what it installs in its _npx before npm 11.6.1",
        ..RACES
    },
    Tool {
        // npm's cache is addressed by content and made for concurrent access.
        programs: &["npm", "npx"],
        paths: &[".npm/**", "_cacache/**"],
        ..SAFE
    },
    Tool {
        programs: &["yarn"],
        paths: &["/usr/local/share/.cache", "share/.cache/yarn/**", ".cache/yarn/**"],
        until: Some(("yarn", &[2])),
        why: "yarn 1 does not lock its cache (that is what its --mutex is for)",
        ..RACES
    },
    Tool {
        // yarn 2 and later lock each archive in it.
        programs: &["yarn"],
        paths: &[".yarn/berry/**", ".yarn/cache/**"],
        ..SAFE
    },
    Tool {
        // pnpm's store is addressed by content and supports concurrent installs.
        programs: &["pnpm"],
        paths: &["pnpm/store/**", ".pnpm-store/**"],
        ..SAFE
    },
    Tool {
        programs: &["pip"],
        paths: &[".cache/pip/**"],
        until: Some(("pip", &[25, 3])),
        why: "pip before 25.3 copies the wheels that it has built into place",
        ..RACES
    },
    Tool {
        // uv's cache is made for concurrent readers and writers.
        programs: &["uv", "uvx"],
        paths: &[".cache/uv/**"],
        ..SAFE
    },
    Tool {
        // go's locks are in it.
        programs: &["go"],
        paths: &["/go", "/root/go", "go/pkg", "pkg/mod", "pkg/mod/cache"],
        ..SAFE
    },
    Tool {
        // go's build cache may be shared by the processes of one machine.
        programs: &["go"],
        paths: &[".cache/go-build/**", "go-build"],
        ..SAFE
    },
    Tool {
        programs: &["golangci-lint"],
        paths: &[".cache/golangci-lint/**"],
        why: "golangci-lint's lock, golangci-lint.lock, is in $TMPDIR and not in it",
        ..RACES
    },
    Tool {
        programs: &["microdnf"],
        paths: &["/var/cache/yum/**"],
        must_start: true,
        why: "microdnf looks in its lock for a process number, and each container has its own ones",
        ..RACES
    },
    Tool {
        programs: &["mvn"],
        paths: &[".m2/**"],
        why: "Maven up to 3.9 locks its local repository within one process only",
        ..RACES
    },
    Tool {
        programs: &["gradle"],
        paths: &[".gradle/**"],
        why: "Gradle hands its locks over by network, which does not reach another container",
        ..RACES
    },
    Tool {
        programs: &["composer"],
        paths: &[".composer/**", ".cache/composer/**"],
        why: "composer does not lock its cache, and copies archives into place",
        ..RACES
    },
    Tool {
        programs: &["composer"],
        paths: &["/tmp/cache/**", "composer/**"],
        must_start: true,
        why: "composer does not lock its cache, and copies archives into place",
        ..RACES
    },
    Tool {
        programs: &["bundle"],
        paths: &["/usr/local/bundle"],
        why: "bundler removes its lock, bundler.lock, while others wait for it",
        ..RACES
    },
    Tool {
        programs: &["bundle"],
        paths: &["vendor/bundle"],
        must_start: true,
        why: "bundler removes its lock, bundler.lock, while others wait for it",
        ..RACES
    },
    Tool {
        programs: &["dotnet", "nuget"],
        paths: &[".nuget/**", ".local/share/NuGet/**"],
        why: "NuGet's locks are in /tmp/NuGetScratch and not in it",
        ..RACES
    },
];

/// Variables that move a cache, and where it is without them (in the official images, where there
/// are some). So `$CARGO_HOME/registry` can be told whatever the value.
pub const VARIABLES: &[(&str, &str)] = &[
    ("BUNDLE_PATH", "/usr/local/bundle"),
    ("CARGO_HOME", "/usr/local/cargo"),
    ("CCACHE_DIR", "/root/.cache/ccache"),
    ("COMPOSER_CACHE_DIR", "/root/.cache/composer"),
    ("COMPOSER_HOME", "/root/.composer"),
    ("GOCACHE", "/root/.cache/go-build"),
    ("GOLANGCI_LINT_CACHE", "/root/.cache/golangci-lint"),
    ("GOMODCACHE", "/go/pkg/mod"),
    ("GOPATH", "/go"),
    ("GRADLE_USER_HOME", "/root/.gradle"),
    ("HOME", "/root"),
    ("NPM_CONFIG_CACHE", "/root/.npm"),
    ("NUGET_PACKAGES", "/root/.nuget/packages"),
    ("PIP_CACHE_DIR", "/root/.cache/pip"),
    ("SCCACHE_DIR", "/root/.cache/sccache"),
    ("UV_CACHE_DIR", "/root/.cache/uv"),
    ("XDG_CACHE_HOME", "/root/.cache"),
    ("YARN_CACHE_FOLDER", "/usr/local/share/.cache/yarn"),
    ("npm_config_cache", "/root/.npm"),
];

/// Where a cache is usually that only an option or a variable without a usual value moves.
pub(super) const MOVED: &[(&str, &str)] = &[
    ("CARGO_TARGET_DIR", "/target"),
    ("MAVEN_REPOSITORY", "/root/.m2/repository"),
    ("PNPM_STORE", "/root/.local/share/pnpm/store"),
];

/// Options that move a cache, and the variable that does the same.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("cargo", "--target-dir", "CARGO_TARGET_DIR"),
    ("gradle", "--gradle-user-home", "GRADLE_USER_HOME"),
    ("gradle", "-g", "GRADLE_USER_HOME"),
    ("mvn", "-Dmaven.repo.local", "MAVEN_REPOSITORY"),
    ("npm", "--cache", "NPM_CONFIG_CACHE"),
    ("npx", "--cache", "NPM_CONFIG_CACHE"),
    ("pip", "--cache-dir", "PIP_CACHE_DIR"),
    ("pnpm", "--store-dir", "PNPM_STORE"),
    ("uv", "--cache-dir", "UV_CACHE_DIR"),
    ("yarn", "--cache-folder", "YARN_CACHE_FOLDER"),
];

/// Calls that empty a cache, and which (where it usually is).
const EMPTIES: &[(&str, &[&str], &str)] = &[
    ("cargo", &["clean"], "/target"),
    ("go", &["clean", "-cache"], "/root/.cache/go-build"),
    ("go", &["clean", "-modcache"], "/go/pkg/mod"),
    ("npm", &["cache", "clean"], "/root/.npm"),
    ("npm", &["cache", "clear"], "/root/.npm"),
    ("pip", &["cache", "purge"], "/root/.cache/pip"),
    ("yarn", &["cache", "clean"], "/usr/local/share/.cache/yarn"),
];

/// Programs that start nothing else, and use no cache but their own.
const HARMLESS: &[&str] = &[
    ":", "[", "apk", "apt", "cat", "cd", "chmod", "chown", "cp", "curl", "dnf", "echo", "export",
    "fi", "git", "go", "grep", "ln", "ls", "microdnf", "mkdir", "mv", "printf", "pwd", "rm", "sed",
    "set", "tar", "test", "touch", "true", "uv", "wget", "yum",
];

/// What the RUNs of a stage have said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Ran {
    /// Versions of packages: `pip==25.3`, `npm@11.6.1`.
    versions: HashMap<String, Vec<u32>>,
    /// npm has installed what the project depends on.
    has_node_modules: bool,
}

impl Ran {
    /// Takes note of what these calls say.
    pub(super) fn note(&mut self, calls: &[Call]) {
        for call in calls {
            self.has_node_modules |= call.program() == "npm"
                && ["ci", "i", "install"].iter().any(|word| call.says(word))
                && !call.says("-g")
                && !call.says("--global");
            for word in call.words.iter().skip(1) {
                let split = |operator: &str| word.split_once(operator);
                let parts = ["==", ">=", "~=", "@"].iter().find_map(|it| split(it));
                let Some((package, version)) = parts else { continue };
                let numbers = version.split('.').map_while(|part| part.parse().ok());
                let numbers: Vec<u32> = numbers.collect();
                let matters = || {
                    let mut fixed = TOOLS.iter().filter_map(|tool| tool.until);
                    fixed.any(|(name, _)| name == package)
                };
                if !numbers.is_empty() && matters() {
                    self.versions.insert(package.to_owned(), numbers);
                }
            }
        }
    }
}

/// Where a mount's folder would usually be.
#[derive(Debug)]
pub(super) struct Place {
    /// The usual path of what is there.
    pub(super) path: String,
    /// It is only a part of the mount: it counts if the RUN starts what uses it.
    pub(super) is_part: bool,
}

/// What calls say of where caches are: the variable, and its value as it is written.
pub(super) fn moves(calls: &[Call]) -> Vec<(&'static str, String)> {
    let names = || VARIABLES.iter().chain(MOVED).map(|(name, _)| *name);
    let mut moves = Vec::new();
    for call in calls {
        for (name, value) in &call.env {
            moves.extend(names().find(|it| it == name).map(|name| (name, value.clone())));
        }
        for (program, option, variable) in OPTIONS {
            if call.program() == *program {
                moves.extend(call.option(option).map(|value| (*variable, value.to_owned())));
            }
        }
    }
    moves
}

/// Judges a cache mount by where its folder would usually be, and by what the RUN starts.
pub(super) fn judge(target: &str, places: &[Place], calls: &[Call], ran: &Ran) -> Verdict {
    let starts = |tool: &Tool| {
        let uses = |call: &&Call| tool.programs.contains(&call.program());
        calls.iter().filter(uses).any(|call| !leaves_cache_alone(call, ran))
    };
    let has = |tool: &Tool, place: &Place| {
        let path: Vec<_> = components(&place.path).collect();
        tool.paths.iter().any(|pattern| matches(pattern, &path))
    };
    let holds = |tool: &Tool, place: &Place| {
        let path: Vec<_> = components(&place.path).collect();
        tool.paths.iter().any(|pattern| is_above(pattern, &path))
    };
    let is_emptied = |(program, words, usual): &&(&str, &[&str], &str)| {
        let empties =
            |call: &Call| call.program() == *program && words.iter().all(|word| call.says(word));
        let usual = Place { path: (*usual).to_owned(), is_part: false };
        let is_it =
            |tool: &Tool| places.iter().any(|it| has(tool, it) || holds(tool, it) && starts(tool));
        calls.iter().any(empties) && TOOLS.iter().any(|tool| has(tool, &usual) && is_it(tool))
    };
    let all = format!("{}/*", target.trim_end_matches('/'));
    let is_removed = calls.iter().any(|call| {
        call.program() == "rm" && call.words.iter().any(|word| word == target || *word == all)
    });
    if is_removed || EMPTIES.iter().any(|it| is_emptied(&it)) {
        return Verdict::Races("the RUN empties it while other builds may be using it");
    }
    let mut direct: Vec<&Tool> = places
        .iter()
        .filter_map(|place| {
            let counts = |tool: &&Tool| !(tool.must_start || place.is_part) || starts(tool);
            TOOLS.iter().filter(|tool| has(tool, place)).find(counts)
        })
        .collect();
    if direct.iter().any(|tool| starts(tool)) {
        direct.retain(|tool| starts(tool));
    }
    let is_part = |tool: &&Tool| places.iter().any(|place| holds(tool, place)) && starts(tool);
    let parts: Vec<&Tool> = TOOLS.iter().filter(is_part).collect();
    let is_safe = |tool: &Tool| {
        let seen = |(package, fixed): (&str, &[u32])| {
            ran.versions.get(package).is_some_and(|version| version.as_slice() >= fixed)
        };
        // It is started, but told to leave its cache alone; or uv does its work.
        let only_harmless = || {
            let spares = |call: &Call| {
                tool.programs.contains(&call.program()) && leaves_cache_alone(call, ran)
            };
            let replaces = |call: &Call| {
                call.program() == "uv" && tool.programs.iter().any(|it| call.says(it))
            };
            calls.iter().any(|call| spares(call) || replaces(call))
                && calls.iter().all(|call| HARMLESS.contains(&call.program()) || spares(call))
        };
        !tool.races || tool.until.is_some_and(seen) || !starts(tool) && only_harmless()
    };
    // What a tool's own folder says counts for more than what is in it: its lock may be there.
    let says_more = |part: &&&Tool| {
        let own = direct.iter().any(|tool| tool.programs == part.programs);
        let lock = parts.iter().any(|tool| is_safe(tool) && tool.is_around(part));
        !own && !lock
    };
    let unsafe_part = parts.iter().filter(says_more).find(|tool| !is_safe(tool));
    match direct.iter().find(|tool| !is_safe(tool)).or(unsafe_part) {
        Some(tool) => Verdict::Races(tool.why),
        None if direct.is_empty() && parts.is_empty() => Verdict::Unknown,
        None => Verdict::Safe,
    }
}

/// A call that does not write to its tool's cache.
fn leaves_cache_alone(call: &Call, ran: &Ran) -> bool {
    let is_set = |name: &str| {
        let value = call.env.iter().rev().find(|(variable, _)| variable == name);
        value.is_some_and(|(_, value)| !["", "0", "false", "no", "off"].contains(&value.as_str()))
    };
    match call.program() {
        "pip" => call.says("--no-cache-dir") || is_set("PIP_NO_CACHE_DIR"),
        "npx" => {
            let downloads = ["-y", "--yes", "-p", "--package"].iter().any(|word| call.says(word));
            let package = call.words.iter().skip(1).find(|word| !word.starts_with('-'));
            let has_version = package.is_some_and(|package| package[1..].contains('@'));
            call.says("--no-install")
                || call.says("--no")
                || ran.has_node_modules && !downloads && !has_version
        }
        _ => false,
    }
}

/// Is the path that of a folder above what the pattern means?
fn is_above(pattern: &str, path: &[&str]) -> bool {
    let mut wanted: Vec<&str> = components(pattern).collect();
    if wanted.last() == Some(&"**") {
        wanted.pop();
    }
    if pattern.starts_with('/') {
        return !path.is_empty() && path.len() < wanted.len() && wanted.starts_with(path);
    }
    let is_home = matches!(path, ["root"] | ["home", _]);
    let ends_so = |count: &usize| path.ends_with(&wanted[..*count]);
    is_home && wanted[0].starts_with('.') || (1..wanted.len()).any(|count| ends_so(&count))
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    let mut components = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => _ = components.pop(),
            _ => components.push(component),
        }
    }
    components.into_iter()
}

/// Does the path end as the pattern says?
fn matches(pattern: &str, path: &[&str]) -> bool {
    let wanted: Vec<&str> = components(pattern).collect();
    let starts = if pattern.starts_with('/') { 0..1 } else { 0..path.len() };
    starts.filter_map(|start| path.get(start..)).any(|rest| {
        let (wanted, below) = match wanted.split_last() {
            Some((&"**", wanted)) => (wanted, true),
            _ => (wanted.as_slice(), false),
        };
        let same = |(wanted, there): (&&str, &&str)| *wanted == "*" || wanted == there;
        let long_enough =
            if below { rest.len() >= wanted.len() } else { rest.len() == wanted.len() };
        long_enough && wanted.iter().zip(rest).all(same)
    })
}

#[cfg(test)]
mod tests {
    use super::super::shell::calls;
    use super::*;

    fn races(target: &str, command: &str) -> Option<bool> {
        let place = Place { path: target.to_owned(), is_part: false };
        let calls = calls(command);
        let mut ran = Ran::default();
        ran.note(&calls);
        match judge(target, &[place], &calls, &ran) {
            Verdict::Races(_) => Some(true),
            Verdict::Safe => Some(false),
            Verdict::Unknown => None,
        }
    }

    #[test]
    fn a_lock_protects_only_the_mount_that_it_lies_in() {
        assert_eq!(races("/usr/local/cargo/registry", ""), Some(true));
        assert_eq!(races("/usr/local/cargo/registry/cache/", ""), Some(true));
        assert_eq!(races("/usr/local/cargo", ""), Some(false));
        assert_eq!(races("/home/me/.cargo//./git/db", ""), Some(true));
        assert_eq!(races("/opt/home/registry", "cargo fetch"), Some(true));
        assert_eq!(races("/opt/home/registry", "cargofetch"), None);
        assert_eq!(races("/src/target", "cargo build"), Some(false));
        assert_eq!(races("/src/target", "mvn package"), None);
        assert_eq!(races("target/release", "cd a&&cargo build"), Some(false));
        assert_eq!(races("/src/target/release/deps", "cargo build"), Some(true));
    }

    #[test]
    fn a_pattern_is_the_end_of_a_path_by_component() {
        assert_eq!(races("/srv/var/cache/apt", ""), None);
        assert_eq!(races("/var/cache/aptitude", ""), None);
        assert_eq!(races("/var/cache/apt/archives", ""), Some(true));
        assert_eq!(races("/go", ""), Some(false));
        assert_eq!(races("/src/go", ""), None);
        assert_eq!(races("/", ""), None);
        assert_eq!(races("", ""), None);
    }

    #[test]
    fn variables_that_move_a_cache_lead_to_one_that_is_known() {
        for (name, path) in VARIABLES {
            if !["HOME", "XDG_CACHE_HOME"].contains(name) {
                assert_ne!(races(path, ""), None, "{name}");
            }
        }
    }
}
