//! Which tools may share a cache folder, and which need a lock around it.
//!
//! The sources are in `docs/build-races.md`; a tool is here only if there is one. A lock protects a
//! cache mount only if its file lies *inside* the mount: everything else in the container is its
//! own.

/// What happens when two builds use the same folder at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They can break each other.
    Races(&'static Tool),
    /// The tool sees to it itself.
    Safe(&'static Tool),
    /// Nobody has looked at what writes there.
    Unknown,
}

/// A kind of cache folder.
#[derive(Debug, PartialEq, Eq)]
pub struct Tool {
    /// Whose it is.
    pub name: &'static str,
    /// Ends of paths, by component: `*` is any one, `**` any number at the end, and a leading `/`
    /// means the whole path.
    paths: &'static [&'static str],
    /// Programs, one of which the RUN must name; none: the path alone tells.
    programs: &'static [&'static str],
    races: bool,
    /// Why, as the second half of a sentence.
    pub why: &'static str,
}

/// The first match counts.
const TOOLS: &[Tool] = &[
    Tool {
        name: "cargo",
        paths: &[".cargo/registry/**", "cargo/registry/**", ".cargo/git/**", "cargo/git/**"],
        programs: &[],
        races: true,
        why: "cargo's lock, .package-cache, lies beside this folder and not in it",
    },
    Tool {
        name: "cargo",
        paths: &["registry", "registry/cache", "registry/index", "registry/src", "git", "git/db"],
        programs: &["cargo"],
        races: true,
        why: "cargo's lock, .package-cache, lies beside this folder and not in it",
    },
    Tool {
        name: "cargo",
        paths: &[".cargo", "/usr/local/cargo"],
        programs: &[],
        races: false,
        why: "cargo's lock, .package-cache, is in it",
    },
    Tool {
        name: "cargo",
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
        programs: &["cargo"],
        races: true,
        why: "cargo's lock, .cargo-lock, lies beside this folder and not in it",
    },
    Tool {
        name: "cargo",
        paths: &["target", "target/*", "target/*/debug", "target/*/release"],
        programs: &["cargo"],
        races: false,
        why: "cargo's lock, .cargo-lock, is in it",
    },
    Tool {
        name: "sccache",
        paths: &[".cache/sccache/**", "sccache/**"],
        programs: &[],
        races: true,
        why: "sccache does not support two servers on one folder, and each build starts its own",
    },
    Tool {
        name: "ccache",
        paths: &[".ccache/**", "ccache/**"],
        programs: &[],
        races: false,
        why: "ccache renames finished files into place",
    },
    Tool {
        name: "apt",
        paths: &["/var/cache/apt/**", "/var/lib/apt/**"],
        programs: &[],
        races: true,
        why: "apt needs it for itself: with another one in it, it fails instead of waiting",
    },
    Tool {
        name: "npx",
        paths: &["_npx/**"],
        programs: &[],
        races: true,
        why: "npx does not lock what it installs there before npm 11.6.1",
    },
    Tool {
        name: "npx",
        paths: &[".npm"],
        programs: &["npx"],
        races: true,
        why: "npx does not lock what it installs in its _npx before npm 11.6.1",
    },
    Tool {
        name: "npm",
        paths: &[".npm/**", "_cacache/**"],
        programs: &[],
        races: false,
        why: "npm's cache is addressed by content and made for concurrent access",
    },
    Tool {
        name: "yarn",
        paths: &["/usr/local/share/.cache", "share/.cache/yarn/**", ".cache/yarn/**"],
        programs: &[],
        races: true,
        why: "yarn 1 does not lock its cache (that is what its --mutex is for)",
    },
    Tool {
        name: "pnpm",
        paths: &["pnpm/store/**", ".pnpm-store/**"],
        programs: &[],
        races: false,
        why: "pnpm's store is addressed by content and supports concurrent installs",
    },
    Tool {
        name: "pip",
        paths: &[".cache/pip/**"],
        programs: &[],
        races: true,
        why: "pip copies the wheels that it has built into place",
    },
    Tool {
        name: "uv",
        paths: &[".cache/uv/**"],
        programs: &[],
        races: false,
        why: "uv's cache is made for concurrent readers and writers",
    },
    Tool {
        name: "go",
        paths: &["/go", "/root/go", "go/pkg", "pkg/mod", "pkg/mod/cache"],
        programs: &[],
        races: false,
        why: "go's locks are in it",
    },
    Tool {
        name: "go",
        paths: &[".cache/go-build/**", "go-build"],
        programs: &[],
        races: false,
        why: "go's build cache may be shared by the processes of one machine",
    },
    Tool {
        name: "maven",
        paths: &[".m2/**"],
        programs: &[],
        races: true,
        why: "Maven up to 3.9 locks its local repository within one process only",
    },
    Tool {
        name: "gradle",
        paths: &[".gradle/**"],
        programs: &[],
        races: true,
        why: "Gradle hands its locks over by network, which does not reach another container",
    },
    Tool {
        name: "composer",
        paths: &[".composer/**", ".cache/composer/**"],
        programs: &[],
        races: true,
        why: "composer does not lock its cache, and copies archives into place",
    },
    Tool {
        name: "composer",
        paths: &["/tmp/cache/**", "composer/**"],
        programs: &["composer"],
        races: true,
        why: "composer does not lock its cache, and copies archives into place",
    },
    Tool {
        name: "bundler",
        paths: &["/usr/local/bundle"],
        programs: &[],
        races: true,
        why: "bundler removes its lock, bundler.lock, while others wait for it",
    },
    Tool {
        name: "bundler",
        paths: &["vendor/bundle"],
        programs: &["bundle", "bundler"],
        races: true,
        why: "bundler removes its lock, bundler.lock, while others wait for it",
    },
    Tool {
        name: "nuget",
        paths: &[".nuget/**", ".local/share/NuGet/**"],
        programs: &[],
        races: true,
        why: "NuGet's locks are in /tmp/NuGetScratch and not in it",
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

/// Judges a cache mount by its target and by what the RUN says.
pub fn judge(target: &str, command: &str) -> Verdict {
    let components: Vec<&str> = components(target).collect();
    let names = |program: &str| {
        let mut words = command.split(|c: char| !c.is_alphanumeric() && !"-_.".contains(c));
        words.any(|word| word == program)
    };
    let is_it = |tool: &&Tool| {
        tool.paths.iter().any(|pattern| matches(pattern, &components))
            && (tool.programs.is_empty() || tool.programs.iter().any(|program| names(program)))
    };
    match TOOLS.iter().find(is_it) {
        Some(tool) if tool.races => Verdict::Races(tool),
        Some(tool) => Verdict::Safe(tool),
        None => Verdict::Unknown,
    }
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|component| !component.is_empty() && *component != ".")
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
    use super::*;

    fn races(target: &str, command: &str) -> Option<bool> {
        match judge(target, command) {
            Verdict::Races(_) => Some(true),
            Verdict::Safe(_) => Some(false),
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
