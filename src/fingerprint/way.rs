//! The links and folders on the way to a folder. Who can exchange one of them can put another folder
//! in its place, and the first one back.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::owners::{ALL_MAY_WRITE, OTHERS_MAY_WRITE};
use super::stamp::{Time, changed, kind};
use crate::user;

/// Only owners may remove what is in the folder.
const STICKY: u32 = 0o1000;

/// The links and folders on the way to a folder, and itself.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) steps: Vec<Step>,
    /// When a link among them was last changed, or a folder that everybody can exchange. Not the last
    /// folder, which has a new time when something is created in it.
    pub(super) changed: Option<Time>,
    /// Whether everybody can exchange one of them. That gives it another time.
    pub(super) is_open: bool,
    /// One that other users can exchange: its path, and who.
    pub(super) exchangeable: Option<(PathBuf, String)>,
}

/// The device and the inode of a link or folder.
pub(super) type Step = (u64, u64);

impl Way {
    /// Goes to a folder, as far as there is anything. Others can exchange what they own themselves,
    /// or what is in a folder of theirs, unless one `trusts` them. A folder's group is trusted.
    ///
    /// # Errors
    /// A folder cannot be looked at.
    pub(super) fn to(path: &Path, trusts: fn(u32) -> bool) -> Result<Self, Errno> {
        /// As in the kernel.
        const MOST_LINKS: usize = 40;
        let mut way = Way::default();
        let mut links = 0;
        let mut at = PathBuf::from("/");
        let mut above = rustix::fs::lstat(&at)?;
        let mut left = parts(&absolute(path));
        while let Some(part) = left.pop() {
            let next = at.join(&part);
            if part == ".." {
                at.pop();
                above = rustix::fs::lstat(&at)?;
                continue;
            }
            let stat = match rustix::fs::lstat(&next) {
                Err(Errno::NOENT | Errno::NOTDIR) => break,
                stat => stat?,
            };
            way.add(&above, &next, &stat, trusts);
            if everybody_may_exchange(&above) {
                way.is_open = true;
                if !left.is_empty() {
                    way.changed = way.changed.max(Some(changed(&stat)));
                }
            }
            if kind(&stat) != FileType::Symlink {
                (at, above) = (next, stat);
                continue;
            }
            links += 1;
            let target = std::fs::read_link(&next);
            let target =
                target.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            if links > MOST_LINKS {
                return Err(Errno::LOOP);
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
                above = rustix::fs::lstat(&at)?;
            }
            left.append(&mut parts(&target));
        }
        Ok(way)
    }

    fn add(&mut self, above: &Stat, path: &Path, stat: &Stat, trusts: fn(u32) -> bool) {
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        self.steps.push((stat.st_dev.into(), stat.st_ino as u64));
        if kind(stat) == FileType::Symlink {
            self.changed = self.changed.max(Some(changed(stat)));
        }
        if let (None, Some(who)) = (&self.exchangeable, who_can_exchange(above, stat, trusts)) {
            self.exchangeable = Some((path.to_owned(), who));
        }
    }
}

/// Returns whether everybody can exchange anything in a folder.
fn everybody_may_exchange(above: &Stat) -> bool {
    above.st_mode & (STICKY | ALL_MAY_WRITE) == ALL_MAY_WRITE
}

/// Returns which other user can exchange something in the folder `above`.
fn who_can_exchange(above: &Stat, stat: &Stat, trusts: fn(u32) -> bool) -> Option<String> {
    if !trusts(above.st_uid) {
        return Some(user::name(above.st_uid));
    }
    let is_sticky = above.st_mode & STICKY != 0;
    let is_open = above.st_mode & OTHERS_MAY_WRITE != 0;
    (is_sticky && is_open && !trusts(stat.st_uid)).then(|| user::name(stat.st_uid))
}

/// Returns a path from the root, by way of the working folder as the environment has it, if that is
/// right: Docker's client goes that way.
fn absolute(path: &Path) -> PathBuf {
    if path.is_absolute() {
        return path.to_owned();
    }
    let place = |path: &Path| rustix::fs::stat(path).ok().map(|it| (it.st_dev, it.st_ino));
    let named = std::env::var_os("PWD").map(PathBuf::from).filter(|it| it.is_absolute());
    let named = named.filter(|it| place(it).is_some() && place(it) == place(Path::new(".")));
    named.or_else(|| std::env::current_dir().ok()).unwrap_or_default().join(path)
}

/// Returns the parts of a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let counts = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().rev().filter(counts).map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir, rename, set_permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};

    use super::super::owners::is_trusted;
    use super::*;

    const OTHER: u32 = 65534;

    fn exchangeable(path: &Path) -> Option<String> {
        Way::to(path, is_trusted).unwrap().exchangeable.map(|(_, who)| who)
    }

    #[test]
    fn link_that_was_turned_away_and_back_is_another_way() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for folder in ["good", "evil"] {
            create_dir(at(folder)).unwrap();
            create_dir(at(folder).join("context")).unwrap();
        }
        symlink("good", at("current")).unwrap();
        let look = || {
            let way = Way::to(&at("current/context"), is_trusted).unwrap();
            (way.steps, way.changed)
        };
        let before = look();
        assert_eq!(look(), before);
        std::thread::sleep(std::time::Duration::from_millis(20));
        rename(at("current"), at("kept")).unwrap();
        symlink("evil", at("current")).unwrap();
        assert_ne!(look().0, before.0);
        rename(at("kept"), at("current")).unwrap();
        assert_eq!(look().0, before.0);
        assert_ne!(look().1, before.1, "the very link is back, with another time");
    }

    #[test]
    fn folder_that_everybody_can_exchange_has_another_time_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        create_dir(at("open")).unwrap();
        create_dir(at("open/project")).unwrap();
        create_dir(at("open/project/context")).unwrap();
        let look = || Way::to(&at("open/project/context"), is_trusted).unwrap();
        for (mode, is_open) in [(0o755, false), (0o775, false), (0o1777, false), (0o777, true)] {
            set_permissions(at("open"), Permissions::from_mode(mode)).unwrap();
            let before = look();
            assert_eq!((before.is_open, before.exchangeable), (is_open, None), "{mode:o}");
            std::thread::sleep(std::time::Duration::from_millis(20));
            rename(at("open/project"), at("open/kept")).unwrap();
            rename(at("open/kept"), at("open/project")).unwrap();
            assert_eq!(look().changed != before.changed, is_open, "{mode:o}");
        }
    }

    #[test]
    fn owner_of_a_folder_or_of_a_link_in_a_sticky_one_can_exchange_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let other = Some(user::name(OTHER));
        create_dir(at("theirs")).unwrap();
        create_dir(at("theirs/ours")).unwrap();
        symlink("theirs", at("link")).unwrap();
        chown(at("theirs"), Some(OTHER), None).unwrap();
        lchown(at("link"), Some(OTHER), None).unwrap();
        set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        // Nobody else can exchange what is in a folder of ours that is closed.
        assert_eq!([exchangeable(&at("theirs")), exchangeable(&at("link"))], [None, None]);
        assert_eq!(exchangeable(&at("theirs/ours")), other);
        assert_eq!(exchangeable(&at("link/ours")), other);
        set_permissions(root.path(), Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(
            [exchangeable(&at("theirs")), exchangeable(&at("link"))],
            [other.clone(), other]
        );
    }
}
