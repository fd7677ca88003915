//! Finds users by their number in `/etc/passwd` (passwd(5)).
//!
//! getpwuid(3) is no alternative, because it loads modules into the process. A statically linked
//! program survives that only beside the exact C library that it was linked with. docker's client
//! and other static programs read the file, too.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A line of `/etc/passwd`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
}

/// Returns the user of this process, if the file has it.
pub(crate) fn ourselves() -> Option<User> {
    with_number(rustix::process::getuid().as_raw())
}

/// Returns the name of this process's user. A user that only a directory service knows gets the
/// name from the session's environment, or else the number.
pub(crate) fn our_name() -> String {
    let number = || rustix::process::getuid().as_raw().to_string();
    let session = || {
        let names = ["LOGNAME", "USER"].iter().filter_map(|name| std::env::var(name).ok());
        names.into_iter().find(|name| !name.is_empty())
    };
    ourselves().map(|user| user.name).or_else(session).unwrap_or_else(number)
}

/// Returns the name of a user, or the number if the file has no name for it.
pub(crate) fn name(number: u32) -> String {
    find_name(number).unwrap_or_else(|| number.to_string())
}

/// Returns the name of a user, if the file has one.
pub(crate) fn find_name(number: u32) -> Option<String> {
    with_number(number).map(|user| user.name)
}

/// Returns whether a user who is missing from the file may have this name, because a directory
/// service may know that user. It must look like a name, and must not belong to a user in the file.
pub(crate) fn may_be_called(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
    let is_taken = || {
        let mut names =
            passwd.split(|&c| c == b'\n').filter_map(|line| line.split(|&c| c == b':').next());
        names.any(|taken| taken == name.as_bytes())
    };
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(is_plain) && !is_taken()
}

fn with_number(number: u32) -> Option<User> {
    find(&std::fs::read("/etc/passwd").ok()?, number)
}

/// Returns the user in the first line that has this number.
fn find(passwd: &[u8], number: u32) -> Option<User> {
    passwd.split(|&c| c == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&c| c == b':').collect();
        let [name, _, uid, _, _, home, ..] = fields[..] else { return None };
        let uid: u32 = std::str::from_utf8(uid).ok()?.parse().ok()?;
        (uid == number && !name.is_empty()).then(|| User {
            name: String::from_utf8_lossy(name).into_owned(),
            home: OsStr::from_bytes(home).into(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\n# alice\nbob:x:none:1::/b:/bin/sh\n\
        +::::::\nalice:x:1000:1000:Alice,,,:/home/alice:/bin/zsh\nshort:x:1001\n\
        again:x:1000:1:::\n\xff:x:1002:1::/home/\xff:";

    #[test]
    fn the_first_line_with_the_number_counts() {
        let alice = User { name: "alice".into(), home: "/home/alice".into() };
        assert_eq!(find(PASSWD, 1000), Some(alice));
        assert_eq!(find(PASSWD, 0).map(|user| user.name).as_deref(), Some("root"));
    }

    #[test]
    fn incomplete_lines_name_no_user() {
        assert_eq!(find(PASSWD, 1001), None);
        assert_eq!(find(b"", 0), None);
    }

    #[test]
    fn names_need_not_be_utf_8() {
        let user = find(PASSWD, 1002);
        assert_eq!(user.map(|user| user.home), Some(OsStr::from_bytes(b"/home/\xff").into()));
    }

    #[test]
    fn this_process_has_a_user() {
        assert!(!our_name().is_empty());
    }
}
