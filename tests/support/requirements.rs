//! What a test needs of the machine, and what it says where that is missing.

use std::io::Write as _;
use std::process::Command;
use std::sync::OnceLock;

/// Says in one line, past the test runner's capture, what cannot be tested here and why.
///
/// # Panics
/// If root runs the tests with `BUILDLOCK_REQUIRE_ENGINE`, as `.ci/run` does after it has
/// installed everything.
#[track_caller]
pub fn skip(reason: &str) {
    let must = std::env::var_os("BUILDLOCK_REQUIRE_ENGINE").is_some();
    let root = rustix::process::geteuid().is_root();
    assert!(!must || !root, "{reason}, and no test may be skipped");
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Is this root? If not, says that the test is skipped.
#[track_caller]
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("needs root");
    }
    root
}

/// Is this program in PATH? If not, says that the test is skipped.
#[track_caller]
pub fn has(program: &str) -> bool {
    let found = which::which(program).is_ok();
    if !found {
        skip(&format!("needs {program}"));
    }
    found
}

/// Returns Python itself. Behind a shim in PATH, signals and pids would be the shim's for a while.
pub fn python() -> Option<&'static str> {
    static PYTHON: OnceLock<Option<String>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| {
        let show = "import sys; print(sys.executable)";
        let output = Command::new("python3").args(["-c", show]).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !path.is_empty()).then_some(path)
    });
    if python.is_none() {
        skip("needs python3");
    }
    python.as_deref()
}
