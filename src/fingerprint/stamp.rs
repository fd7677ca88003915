//! What the kernel says of a file, without its content.

use rustix::fs::{FileType, Stat};

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// Tells whether a file is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) modified: Time,
    pub(super) changed: Time,
}

impl Stamp {
    pub(super) fn new(stat: &Stat) -> Self {
        // The types differ between architectures.
        #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, clippy::useless_conversion)]
        Self {
            device: stat.st_dev.into(),
            inode: stat.st_ino as u64,
            size: stat.st_size as u64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            changed: changed(stat),
        }
    }
}

/// Returns when a file was last changed, in content or otherwise.
pub(super) fn changed(stat: &Stat) -> Time {
    #[allow(clippy::unnecessary_cast)]
    (stat.st_ctime as i64, stat.st_ctime_nsec as u32)
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Returns the permissions, with setuid, setgid and sticky bits.
pub(super) fn permissions(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}
