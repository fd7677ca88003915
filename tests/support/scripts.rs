//! Scripts that play a part of a build, and a build that sees whether they still run.

use super::fixture::Fixture;
use super::gate::Gate;
use super::program::Invocation;

/// Puts `stubborn` into PATH. It holds `alive` for as long as it runs, ignores TERM, writes its
/// pid to `stubborn.pid`, and ends once the gate lets it.
pub fn install_stubborn(f: &Fixture) -> Gate {
    let gate = Gate::new(f, "stubborn.gate");
    f.install_script(
        "stubborn",
        r#"#!/bin/sh
trap '' TERM
exec 8>>"$STANDIN/alive"
flock 8
echo $$ >"$STANDIN/stubborn.pid"
read _ <"$STANDIN/stubborn.gate"
"#,
    );
    gate
}

/// Puts `polite` into PATH. It holds `alive` for as long as it runs, and writes its pid to
/// `polite.pid`. On TERM it notes that in `polite.term` and ends.
pub fn install_polite(f: &Fixture) -> Gate {
    let gate = Gate::new(f, "polite.gate");
    f.install_script(
        "polite",
        r#"#!/bin/sh
trap 'echo term >>"$STANDIN/polite.term"; exit 0' TERM
exec 8>>"$STANDIN/alive"
flock 8
echo $$ >"$STANDIN/polite.pid"
read _ <"$STANDIN/polite.gate"
"#,
    );
    gate
}

/// Returns a build of `env:abc` that notes in `overlap` if it runs beside `stubborn` or `polite`.
///
/// It asks the kernel for the lock on `alive`, so zombies and reused pids cannot mislead it.
pub fn build_that_sees_overlap(f: &Fixture) -> Invocation<'_> {
    f.install_script(
        "alone",
        r#"#!/bin/sh
flock -n "$STANDIN/alive" true || echo overlap >>"$STANDIN/overlap"
exec docker build -t env:abc .
"#,
    );
    f.buildlock(["-t", "env:abc", "--", "alone"])
}
