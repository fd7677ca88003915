//! Replaces another user's guard by one of root's.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::directory::open_directory;
use super::open::{create_file, is_foreign, is_named, look, open_existing};
use crate::record::is_overgrown;

/// Replaces a file in root's folder that another user owns. Returns whether the name may lead to
/// another file now. A folder is left alone: what is in it could not be removed at once.
pub(super) fn replace_foreign(folder: &OwnedFd, name: &OsStr) -> bool {
    let is_folder = |there: &Stat| FileType::from_raw_mode(there.st_mode).is_dir();
    let there = look(folder, name);
    there.is_ok_and(|there| is_foreign(&there, folder) && !is_folder(&there))
        && match exchange(folder, name) {
            // This file system cannot exchange two files.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::unlinkat(folder, name, AtFlags::empty()).is_ok()
            }
            exchanged => exchanged.is_ok(),
        }
}

/// Puts a new file in the place of one that another user owns.
///
/// Another call of root's may have done so since we looked, and callers may use its file by now. So
/// nothing is removed before it was seen again, out of the reach of others, and what should stay is
/// put back. Nobody can lock the new file meanwhile, because it is locked itself.
fn exchange(folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let aside = format!("replaced-{:016x}", fastrand::u64(..));
    rustix::fs::mkdirat(folder, &*aside, Mode::RWXU)?;
    let exchanged =
        open_directory(folder, &*aside).and_then(|aside| exchange_in(&aside, folder, name));
    // What is too large to be freed now stays there.
    _ = rustix::fs::unlinkat(folder, &*aside, AtFlags::REMOVEDIR);
    exchanged
}

fn exchange_in(aside: &OwnedFd, folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    /// Another call that has our file gives it back at once, unless it is stopped.
    const WITHIN: Duration = Duration::from_secs(5);
    const PAUSE: Duration = Duration::from_micros(200);
    create_file(aside, name)?;
    let ours = open_existing(aside, name).map_err(|_| Errno::IO)?;
    lock_all_of(&ours);
    let until = Instant::now() + WITHIN;
    let swap = || rustix::fs::renameat_with(aside, name, folder, name, RenameFlags::EXCHANGE);
    let is_useless = || {
        is_named(&ours, aside, name) || look(aside, name).is_ok_and(|it| is_foreign(&it, folder))
    };
    let mut exchanged = swap();
    // What is neither ours nor another user's is the guard of root's that was there, or the file of
    // another call like this one.
    while exchanged.is_ok() && !is_useless() && Instant::now() < until {
        std::thread::sleep(PAUSE);
        exchanged = swap();
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let replaced = rustix::fs::openat(aside, name, flags, Mode::empty()).map(File::from);
    if is_useless() && !replaced.is_ok_and(|file| is_overgrown(&file)) {
        _ = rustix::fs::unlinkat(aside, name, AtFlags::empty());
    }
    exchanged
}

/// Locks all bytes of a guard, where the file system can do that.
fn lock_all_of(guard: &File) {
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    _ = fcntl(guard, FcntlArg::F_OFD_SETLK(&all));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, chown};

    use super::*;

    /// Returns a folder with a file `guard`, or nothing if this is not root.
    fn folder() -> Option<(tempfile::TempDir, OwnedFd)> {
        let folder = tempfile::tempdir().unwrap();
        let opened = open_directory(rustix::fs::CWD, folder.path()).unwrap();
        create_file(&opened, OsStr::new("guard")).unwrap();
        rustix::process::geteuid().is_root().then_some((folder, opened))
    }

    fn names(folder: &tempfile::TempDir) -> Vec<std::ffi::OsString> {
        folder.path().read_dir().unwrap().flatten().map(|entry| entry.file_name()).collect()
    }

    #[test]
    fn file_of_another_user_is_replaced_and_removed() {
        let Some((folder, opened)) = folder() else { return };
        let guard = folder.path().join("guard");
        chown(&guard, Some(65_534), None).unwrap();
        assert!(replace_foreign(&opened, OsStr::new("guard")));
        assert_eq!(guard.metadata().unwrap().uid(), 0);
        assert_eq!(names(&folder), ["guard"]);
        assert!(!replace_foreign(&opened, OsStr::new("guard")));
    }

    #[test]
    fn file_of_root_that_has_come_since_is_left_alone() {
        let Some((folder, opened)) = folder() else { return };
        let inode = || folder.path().join("guard").metadata().unwrap().ino();
        let before = inode();
        // As if another call had replaced it after we had looked.
        exchange(&opened, OsStr::new("guard")).unwrap();
        assert_eq!(inode(), before);
        assert_eq!(names(&folder), ["guard"]);
    }

    #[test]
    fn many_calls_that_have_looked_too_early_leave_the_file_alone() {
        let Some((folder, opened)) = folder() else { return };
        let inode = || folder.path().join("guard").metadata().unwrap().ino();
        let before = inode();
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    (0..50).for_each(|_| exchange(&opened, OsStr::new("guard")).unwrap());
                });
            }
        });
        assert_eq!(inode(), before);
        assert_eq!(names(&folder), ["guard"]);
    }
}
