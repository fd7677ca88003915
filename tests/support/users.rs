//! Other users.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::builds::stand_in;
use super::fixture::Fixture;
use super::program::{Invocation, buildlock_path};

/// The id of another user: nobody's.
pub const OTHER_USER: u32 = 65534;

/// Makes a fixture usable for every user, and returns a copy of buildlock that all may run.
pub fn open_to_everybody(f: &Fixture) -> PathBuf {
    // The checkout and its target folder may lie where others cannot look.
    let program = f.install(&buildlock_path(), "buildlock");
    fs::remove_file(f.path("bin/docker")).unwrap();
    f.install(&stand_in(), "bin/docker");
    let set = |path: PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for folder in ["images", "work"] {
        set(f.path(folder), 0o777);
    }
    // As /tmp is. Otherwise everybody could replace the lock folder.
    set(f.path(""), 0o1777);
    for log in ["builds.log", "looks.log", "args.log"] {
        fs::write(f.path(log), "").unwrap();
        set(f.path(log), 0o666);
    }
    program
}

/// Returns a program that runs as [`OTHER_USER`]; only root can start it.
pub fn as_other_user<'f>(f: &'f Fixture, program: &Path) -> Invocation<'f> {
    let id = OTHER_USER.to_string();
    f.program("setpriv").args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program)
}
