//! The base image of the tests' builds: a static busybox.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::clients::is_elf;

/// Returns a busybox that runs in an image that has nothing else.
pub fn static_busybox() -> Option<PathBuf> {
    let folders = ["/bin", "/usr/bin", "/usr/local/bin", "/sbin"];
    let mut programs = folders.iter().flat_map(|folder| {
        ["busybox", "busybox.static", "busybox-static"].map(|name| Path::new(folder).join(name))
    });
    programs.find(|program| {
        // A dynamic program names its loader.
        let ldd = Command::new("ldd").arg(program).output();
        is_elf(program) && ldd.is_ok_and(|ldd| !ldd.status.success())
    })
}

/// Makes a root folder for images: busybox under the names of its applets.
fn make_root_folder(folder: &Path) {
    let busybox = static_busybox().expect("looked for before");
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for name in ["tmp", "etc", "proc", "sys", "dev"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    fs::copy(busybox, bin.join("busybox")).unwrap();
    fs::set_permissions(bin.join("busybox"), Permissions::from_mode(0o755)).unwrap();
    for name in ["sh", "sleep", "cat", "true", "echo"] {
        symlink("busybox", bin.join(name)).unwrap();
    }
}

/// Returns the archive of a root folder.
///
/// The bytes are the same each time, so that the engine keeps one layer instead of one per test.
pub fn root_archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        make_root_folder(&dir.path().join("root"));
        let tar = Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-C"])
            .arg(dir.path().join("root"))
            .args(["-c", "."])
            .output()
            .unwrap();
        assert!(tar.status.success(), "{tar:?}");
        tar.stdout
    })
}
