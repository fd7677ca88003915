//! Mounts that only one test sees.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::fixture::Fixture;
use super::program::{Invocation, Running, buildlock_path};
use super::requirements::{is_root, skip};

/// A mount namespace. Its mounts are gone with the last of its processes.
pub struct Namespace<'f> {
    f: &'f Fixture,
    keeper: Running<'f>,
}

impl<'f> Namespace<'f> {
    /// Makes one in which `script` has mounted something, with the lock folder as `$BUILDLOCK_DIR`.
    /// Returns none where nothing may be mounted.
    pub fn new(f: &'f Fixture, script: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let try_it = ["--mount", "--propagation", "private", "mount", "-t", "tmpfs", "x", "/mnt"];
        let may = Command::new("unshare").args(try_it).stderr(Stdio::null()).status();
        if !may.is_ok_and(|status| status.success()) {
            skip("needs to mount");
            return None;
        }
        std::fs::create_dir_all(f.lock_dir()).unwrap();
        let script =
            format!("set -e\n{script}\necho ready >\"$STANDIN/mounted\"\nexec sleep 600\n");
        let keeper = f.program("unshare").args(["--mount", "--propagation", "private"]);
        let mut keeper = keeper.args(["sh", "-c", &script]).start();
        let mut ended = false;
        f.wait_for("the mounts", || {
            ended = keeper.has_ended();
            ended || f.path("mounted").exists()
        });
        assert!(!ended, "cannot mount: {}", keeper.stderr());
        Some(Self { f, keeper })
    }

    /// Prepares a program in there.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Invocation<'f> {
        let inside = format!("--mount=/proc/{}/ns/mnt", self.keeper.pid());
        let nsenter = self.f.program("nsenter").args([&inside, "--", "env", "-C"]);
        nsenter.arg(self.f.work_dir()).arg(program)
    }

    /// Prepares `buildlock ARGS` in there.
    pub fn buildlock<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation<'f> {
        self.program(buildlock_path()).args(args)
    }

    /// Prepares `buildlock -t TAG -- docker build -t TAG .` in there.
    pub fn docker_build(&self, tag: &str) -> Invocation<'f> {
        self.buildlock(["-t", tag, "--", "docker", "build", "-t", tag, "."])
    }

    /// Returns where the test sees what is at `path` in there.
    pub fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.pid()));
        root.join(path.strip_prefix("/").unwrap())
    }
}
