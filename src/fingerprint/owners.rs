//! Who can change an input without the caller: other users, by what they own or may write.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rustix::fs::Stat;

use crate::user;

/// Everybody may write.
pub(super) const ALL_MAY_WRITE: u32 = 0o002;
/// The group may write.
const GROUP_MAY_WRITE: u32 = 0o020;
/// The group or everybody may write.
pub(super) const OTHERS_MAY_WRITE: u32 = ALL_MAY_WRITE | GROUP_MAY_WRITE;

/// Returns whether a user is root, the caller, or the one who called us as root with sudo.
pub(super) fn is_trusted(user: u32) -> bool {
    let ours = rustix::process::geteuid();
    let by_sudo = || std::env::var("SUDO_UID").ok()?.parse::<u32>().ok();
    is_root_or_caller(user) || ours.is_root() && by_sudo() == Some(user)
}

/// Returns whether a user is root or the caller.
pub(super) fn is_root_or_caller(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

/// Returns whether nobody else may write a file. Others may be writing theirs at this moment: one
/// long write, or one through a mapping, need not give the file another time.
pub(super) fn only_we_may_write(stat: &Stat) -> bool {
    is_trusted(stat.st_uid)
        && stat.st_mode & ALL_MAY_WRITE == 0
        && (stat.st_mode & GROUP_MAY_WRITE == 0 || is_alone_in_group(stat.st_uid, stat.st_gid))
}

/// Returns whether no other user is in this group: many systems give each user a group of their own,
/// and let it write. It is found out once.
fn is_alone_in_group(user: u32, group: u32) -> bool {
    static KNOWN: Mutex<BTreeMap<(u32, u32), bool>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry((user, group)).or_insert_with(|| user::is_alone_in_group(user, group))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    #[test]
    fn file_that_others_may_write_is_not_only_ours() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let with_mode = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(file.path(), mode).unwrap();
            only_we_may_write(&rustix::fs::stat(file.path()).unwrap())
        };
        assert!(with_mode(0o644) && !with_mode(0o666));
        if rustix::process::geteuid().is_root() {
            // The group of root has no other user in it, and that of the others is not known.
            assert!(with_mode(0o664));
            chown(file.path(), None, Some(4_000_000)).unwrap();
            assert!(!with_mode(0o664) && with_mode(0o644));
        }
    }
}
