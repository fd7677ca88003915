//! Creates files and folders with a mode that the umask does not change.

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::spawn;

/// Makes calls that create something with its final mode from the first moment on. Changing the mode
/// afterwards would be too late: another process may already have met the wrong one.
///
/// A process of its own makes them. The mask belongs to all threads of a process, so another thread
/// could meanwhile create a file, or start the build command, without one. `create` makes system
/// calls only.
pub(super) fn whatever_the_umask(create: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let created = spawn::first_to_end(1, |_| {
        rustix::process::umask(Mode::empty());
        create().map_err(std::io::Error::from)
    });
    match created {
        Ok(_) => Ok(()),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn other_threads_keep_their_umask_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let mode_of_new = |name: &str| {
            let file = std::fs::File::create_new(folder.path().join(name)).unwrap();
            file.metadata().unwrap().permissions().mode() & 0o777
        };
        let before = mode_of_new("before");
        let ((began, begin), (go, end)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let path = folder.path().join("made");
        let create = || {
            rustix::io::write(&begin, b"x")?;
            rustix::io::read(&go, &mut [0])?;
            rustix::fs::mkdir(&path, Mode::from_raw_mode(0o777))
        };
        std::thread::scope(|threads| {
            let made = threads.spawn(|| whatever_the_umask(create));
            rustix::io::read(&began, &mut [0]).unwrap();
            assert_eq!(mode_of_new("meanwhile"), before);
            rustix::io::write(&end, b"x").unwrap();
            made.join().unwrap().unwrap();
        });
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o777);
    }

    #[test]
    fn error_of_the_call_is_returned() {
        assert_eq!(whatever_the_umask(|| Err(Errno::NOSPC)), Err(Errno::NOSPC));
    }
}
