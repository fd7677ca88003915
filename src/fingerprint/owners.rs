//! Who can change an input without the caller: other users, by what they own or may write.

use rustix::fs::Stat;

/// Everybody may write.
pub(super) const ALL_MAY_WRITE: u32 = 0o002;
/// The group or everybody may write.
pub(super) const OTHERS_MAY_WRITE: u32 = 0o022;

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
    is_trusted(stat.st_uid) && stat.st_mode & OTHERS_MAY_WRITE == 0
}
