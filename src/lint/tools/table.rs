//! Facts about tools and their caches. `docs/lint.md` has the sources; a tool without a source is
//! not here.

/// A kind of cache folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tool {
    /// The programs that use the folder.
    pub(super) programs: &'static [&'static str],
    /// Patterns for the path, see [`super::pattern`].
    pub(super) paths: &'static [&'static str],
    /// Whether the path alone does not tell: the `RUN` must start one of the programs.
    pub(super) must_start: bool,
    pub(super) races: bool,
    /// The package, and its first version that no longer races.
    pub(super) until: Option<(&'static str, &'static [u32])>,
    /// Why it races, as the second half of a sentence.
    pub(super) why: &'static str,
}

impl Tool {
    /// Returns whether the other cache lies in this one's folder.
    pub(super) fn is_around(&self, other: &Tool) -> bool {
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
pub(super) const TOOLS: &[Tool] = &[
    Tool {
        programs: &["cargo"],
        paths: &[".cargo/registry/**", "cargo/registry/**", ".cargo/git/**", "cargo/git/**"],
        why: "cargo's lock, .package-cache, is beside this folder and not in it",
        ..RACES
    },
    Tool {
        programs: &["cargo"],
        paths: &["registry", "registry/cache", "registry/index", "registry/src", "git", "git/db"],
        must_start: true,
        why: "cargo's lock, .package-cache, is beside this folder and not in it",
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
        why: "cargo's lock, .cargo-lock, is beside this folder and not in it",
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
        why: "apt needs the folder to itself: a second apt fails instead of waiting",
        ..RACES
    },
    Tool {
        programs: &["npx"],
        paths: &["_npx/**"],
        until: Some(("npm", &[11, 6, 1])),
        why: "npx before npm 11.6.1 does not lock what it installs there",
        ..RACES
    },
    Tool {
        programs: &["npx"],
        paths: &[".npm"],
        must_start: true,
        until: Some(("npm", &[11, 6, 1])),
        why: "npx before npm 11.6.1 does not lock what it installs in _npx",
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
        why: "yarn 1 does not lock its cache (its --mutex exists for that)",
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
        why: "pip before 25.3 copies the wheels it has built into place",
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
        why: "microdnf's lock has a process number in it, and each container has its own numbers",
        ..RACES
    },
    Tool {
        programs: &["mvn"],
        paths: &[".m2/**"],
        why: "Maven up to 3.9 locks its repository only within one process",
        ..RACES
    },
    Tool {
        programs: &["gradle"],
        paths: &[".gradle/**"],
        why: "Gradle hands its locks over through the network, which does not reach other containers",
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
        why: "bundler removes its lock, bundler.lock, while other processes wait for it",
        ..RACES
    },
    Tool {
        programs: &["bundle"],
        paths: &["vendor/bundle"],
        must_start: true,
        why: "bundler removes its lock, bundler.lock, while other processes wait for it",
        ..RACES
    },
    Tool {
        programs: &["dotnet", "nuget"],
        paths: &[".nuget/**", ".local/share/NuGet/**"],
        why: "NuGet's locks are in /tmp/NuGetScratch and not in it",
        ..RACES
    },
];

/// Calls that empty a cache: the program, its words, and the cache's usual path.
pub(super) const EMPTIES: &[(&str, &[&str], &str)] = &[
    ("cargo", &["clean"], "/target"),
    ("go", &["clean", "-cache"], "/root/.cache/go-build"),
    ("go", &["clean", "-modcache"], "/go/pkg/mod"),
    ("npm", &["cache", "clean"], "/root/.npm"),
    ("npm", &["cache", "clear"], "/root/.npm"),
    ("pip", &["cache", "purge"], "/root/.cache/pip"),
    ("yarn", &["cache", "clean"], "/usr/local/share/.cache/yarn"),
];

/// Programs that start no other program and use no cache but their own.
pub(super) const HARMLESS: &[&str] = &[
    ":", "[", "apk", "apt", "cat", "cd", "chmod", "chown", "cp", "curl", "dnf", "echo", "export",
    "fi", "git", "go", "grep", "ln", "ls", "microdnf", "mkdir", "mv", "printf", "pwd", "rm", "sed",
    "set", "tar", "test", "touch", "true", "uv", "wget", "yum",
];
