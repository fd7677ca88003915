//! Whether callers in other containers use the same lock folder.

use std::path::Path;

use crate::image::{EngineProcess, Images};

/// Warns in a container if the engine does not see the lock folder. Callers elsewhere then use
/// another folder.
pub(crate) fn warn_if_engine_sees_another_folder(folder: &Path, images: &Images) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !is_container(&mounts) || is_mounted(folder, &mounts) {
        return;
    }
    let is_own = match images.engine_process() {
        Some(EngineProcess::Visible(pid)) => sees_another(pid, folder),
        Some(EngineProcess::Elsewhere) => true,
        None => has_container_mark(),
    };
    if is_own {
        tracing::warn!(
            "the engine does not see the lock folder {}, which is this container's own, so builds \
             outside of this container may run at the same time; mount the host's folder there, or \
             name a folder that is mounted with --lock-dir",
            folder.display()
        );
    }
}

/// Tells whether a process sees another folder of that name, or none. Returns false if we may not
/// look.
fn sees_another(pid: u32, folder: &Path) -> bool {
    let Some(root) = crate::proc::path(pid, "root") else { return false };
    // Reading the link takes the same permission as following it.
    if std::fs::read_link(&root).is_err() {
        return false;
    }
    let place = |folder: &Path| rustix::fs::stat(folder).map(|found| (found.st_dev, found.st_ino));
    match (place(folder), place(&root.join(folder.strip_prefix("/").unwrap_or(folder)))) {
        (Ok(ours), Ok(theirs)) => ours != theirs,
        (Ok(_), Err(error)) => error == rustix::io::Errno::NOENT,
        (Err(_), _) => false,
    }
}

/// Looks for the files that docker and podman leave in their containers.
fn has_container_mark() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists())
}

/// Tells a container from a machine by its root, in the format of proc_pid_mountinfo(5).
///
/// A machine that was made from a container image has the files of a container. But its root is a
/// whole disk, which a container's is not.
fn is_container(mounts: &str) -> bool {
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"));
    let whole_disk = root.is_some_and(|line| {
        let source = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
        line.split(' ').nth(3) == Some("/")
            && source.is_some_and(|source| source.starts_with("/dev/"))
    });
    !whole_disk
}

/// Tells whether the folder, or one above it, is a mount point.
fn is_mounted(folder: &Path, mounts: &str) -> bool {
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    points.any(|point| point != Path::new("/") && folder.starts_with(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_tells_a_container_from_a_machine() {
        let machine = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw";
        let overlay = "600 500 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/l";
        let vfs = "600 500 254:0 /var/lib/docker/vfs/dir/0 / rw - ext4 /dev/vda rw";
        assert!(!is_container(machine) && is_container(overlay) && is_container(vfs));
    }

    #[test]
    fn a_lock_folder_is_mounted_if_it_or_a_folder_above_is() {
        let mounts = |point: &str| {
            format!("1 0 0:1 / / rw - overlay o rw\n2 1 0:2 / {point} rw - ext4 /dev/vda rw")
        };
        let folder = Path::new("/tmp/buildlock");
        assert!(
            is_mounted(folder, &mounts("/tmp/buildlock")) && is_mounted(folder, &mounts("/tmp"))
        );
        assert!(!is_mounted(folder, &mounts("/var")) && !is_mounted(folder, &mounts("/tmp/build")));
    }
}
