//! Variables and options that move a cache.

use super::super::shell::Call;

/// Variables that move a cache, and where it is without them (in the official image, where there
/// is one). This is how `$CARGO_HOME/registry` is understood whatever the value.
pub(in crate::lint) const VARIABLES: &[(&str, &str)] = &[
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

/// The usual places of caches that are moved by an option, or by a variable without a usual value.
pub(in crate::lint) const MOVED: &[(&str, &str)] = &[
    ("CARGO_TARGET_DIR", "/target"),
    ("MAVEN_REPOSITORY", "/root/.m2/repository"),
    ("PNPM_STORE", "/root/.local/share/pnpm/store"),
];

/// Options that move a cache: the program, the option, and the variable with the same effect.
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

/// A cache's folder as a call has it.
#[derive(Debug)]
pub(in crate::lint) struct Move {
    /// The variable that moves the cache, or has the same effect as the option.
    pub(in crate::lint) variable: &'static str,
    /// As the call has it, with its variables.
    pub(in crate::lint) value: String,
}

/// Returns what calls say about where caches are.
pub(in crate::lint) fn moves(calls: &[Call]) -> Vec<Move> {
    calls.iter().flat_map(moves_of).collect()
}

fn moves_of(call: &Call) -> impl Iterator<Item = Move> {
    let names = || VARIABLES.iter().chain(MOVED).map(|(name, _)| *name);
    let by_variable = call.env.iter().filter_map(move |(name, value)| {
        names().find(|it| it == name).map(|variable| Move { variable, value: value.clone() })
    });
    let options = OPTIONS.iter().filter(|(program, ..)| call.program() == *program);
    let by_option = options.filter_map(|(_, option, variable)| {
        call.option(option).map(|value| Move { variable, value: value.to_owned() })
    });
    by_variable.chain(by_option)
}
