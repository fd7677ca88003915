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
    with_number(number).map_or_else(|| number.to_string(), |user| user.name)
}

/// Returns whether no other user is in this group, as far as `/etc/passwd` and `/etc/group` tell.
pub(crate) fn is_alone_in_group(user: u32, group: u32) -> bool {
    let read = |path| std::fs::read(path).unwrap_or_default();
    is_alone(&read("/etc/passwd"), &read("/etc/group"), user, group)
}

fn is_alone(passwd: &[u8], groups: &[u8], user: u32, group: u32) -> bool {
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u32>().ok();
    let lines = |file| <[u8]>::split(file, |&c| c == b'\n').map(fields);
    let mut has_ours = user == group;
    for line in lines(groups) {
        let [_, _, its_number, members, ..] = line[..] else { continue };
        if number(its_number) != Some(group) {
            continue;
        }
        has_ours = true;
        let mut members = members.split(|&c| c == b',').filter(|name| !name.is_empty());
        let ours = find(passwd, user).map(|user| user.name);
        if members.any(|name| ours.as_deref().map(str::as_bytes) != Some(name)) {
            return false;
        }
    }
    has_ours
        && lines(passwd).all(|line| {
            let [_, _, its_user, its_group, ..] = line[..] else { return true };
            number(its_group) != Some(group) || number(its_user) == Some(user)
        })
}

fn fields(line: &[u8]) -> Vec<&[u8]> {
    line.split(|&c| c == b':').collect()
}

fn with_number(number: u32) -> Option<User> {
    find(&std::fs::read("/etc/passwd").ok()?, number)
}

/// Returns the user in the first line that has this number.
fn find(passwd: &[u8], number: u32) -> Option<User> {
    passwd.split(|&c| c == b'\n').find_map(|line| {
        let [name, _, uid, _, _, home, ..] = fields(line)[..] else { return None };
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
    fn group_that_others_are_in_is_not_a_users_own() {
        let groups = b"root:x:0:\nalice:x:1000:alice\nstaff:x:50:\ndev:x:60:alice,bob\n";
        let is_alone = |passwd, user, group| is_alone(passwd, groups, user, group);
        let apart = b"root:x:0:0::/:\nalice:x:1000:1000::/:\nbob:x:1001:50::/:\n";
        assert!(is_alone(apart, 0, 0));
        assert!(is_alone(apart, 1000, 1000));
        assert!(!is_alone(apart, 0, 60));
        assert!(!is_alone(apart, 0, 50), "it is bob's first group");
        assert!(!is_alone(apart, 0, 70), "only a directory service knows the group");
        assert!(is_alone(apart, 2000, 2000), "a directory service knows the user");
    }

    #[test]
    fn this_process_has_a_user() {
        assert!(!our_name().is_empty());
    }
}
