//! Whether stdin can be read a second time.

use rustix::fs::{FileType, SeekFrom};

/// Would a second run of the build command find the same stdin as the first one? True if stdin is
/// closed, a device, or a file of which nothing has been read.
pub(crate) fn stdin_can_be_read_again() -> bool {
    let stdin = std::io::stdin();
    let Ok(stat) = rustix::fs::fstat(&stdin) else { return true };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => true,
        FileType::RegularFile => rustix::fs::seek(&stdin, SeekFrom::Current(0)) == Ok(0),
        _ => false,
    }
}
