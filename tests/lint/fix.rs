//! What `--fix` writes.

use std::fs;
use std::path::Path;

use super::files::{RACE, stdout, write};
use super::support::Namespace;
use super::support::{self, Fixture};
use super::support::{OTHER_USER, as_other_user, has, open_to_everybody};

#[test]
fn fix_adds_the_lock_keeps_the_mode_and_leaves_clean_files_alone() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let f = Fixture::new();
    let path = f.work_dir().join("Dockerfile");
    let text = "FROM a\r\nRUN --mount=type=cache,target=/root/.m2 mvn\r\n";
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    f.buildlock(["lint"]).run().assert_code(1);
    f.buildlock(["lint", "--fix"]).run().assert_code(0);
    let fixed = text.replace(".m2 ", ".m2,sharing=locked ");
    assert_eq!(fs::read_to_string(&path).unwrap(), fixed);
    let before = fs::metadata(&path).unwrap();
    assert_eq!(before.permissions().mode() & 0o7777, 0o640);
    f.buildlock(["lint", "--fix"]).run().assert_code(0).assert_stdout("");
    assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
    f.buildlock(["lint", "--fix", "-"]).stdin(text).run().assert_code(0).assert_stdout(fixed);
}

#[test]
fn fix_keeps_links() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let f = Fixture::new();
    let work = f.work_dir();
    let fixed = RACE.replace(".m2 ", ".m2,sharing=locked ");
    write(&f, "real", RACE);
    symlink("real", work.join("linked.Dockerfile")).unwrap();
    f.buildlock(["lint", "--fix", "linked.Dockerfile"]).run().assert_code(0);
    assert!(fs::symlink_metadata(work.join("linked.Dockerfile")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(work.join("real")).unwrap(), fixed);

    write(&f, "one.Dockerfile", RACE);
    fs::hard_link(work.join("one.Dockerfile"), work.join("other")).unwrap();
    f.buildlock(["lint", "--fix", "one.Dockerfile"]).run().assert_code(0);
    assert_eq!(fs::read_to_string(work.join("other")).unwrap(), fixed);
    assert_eq!(fs::metadata(work.join("other")).unwrap().nlink(), 2);
}

// The owner of a link can have it lead anywhere, also while lint runs.
#[test]
fn fix_as_root_follows_no_link_of_another_user() {
    use std::os::unix::fs::{lchown, symlink};
    if !support::is_root() {
        support::skip("needs root");
        return;
    }
    let f = Fixture::new();
    let folder = f.work_dir().join("closed");
    let victim = folder.join("Dockerfile");
    fs::create_dir(&folder).unwrap();
    fs::write(&victim, RACE).unwrap();
    symlink("closed", f.work_dir().join("folder")).unwrap();
    symlink("closed/Dockerfile", f.work_dir().join("linked.Dockerfile")).unwrap();
    for path in ["folder/Dockerfile", "linked.Dockerfile"] {
        let link = f.work_dir().join(path.split('/').next().unwrap());
        lchown(&link, Some(OTHER_USER), None).unwrap();
        let run = f.buildlock(["lint", "--fix", path]).run();
        run.assert_code(125).assert_stderr("cannot write").assert_stderr("a symbolic link");
        assert_eq!(fs::read_to_string(&victim).unwrap(), RACE);
        lchown(&link, Some(0), None).unwrap();
        f.buildlock(["lint", "--fix", path]).run().assert_code(0);
        assert_ne!(fs::read_to_string(&victim).unwrap(), RACE);
        fs::write(&victim, RACE).unwrap();
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn fix_as_root_mends_a_users_own_file_and_refuses_one_that_was_put_beside_it() {
    use std::os::unix::fs::{MetadataExt, chown};
    if !support::is_root() {
        support::skip("needs root");
        return;
    }
    let f = Fixture::new();
    let folder = f.work_dir().join("theirs");
    let path = folder.join("Dockerfile");
    fs::create_dir(&folder).unwrap();
    fs::write(&path, RACE).unwrap();
    chown(&folder, Some(OTHER_USER), None).unwrap();
    let run = f.buildlock(["lint", "--fix", "theirs"]).run();
    run.assert_code(125).assert_stderr("may have put it there");
    assert_eq!(fs::read_to_string(&path).unwrap(), RACE);
    chown(&path, Some(OTHER_USER), None).unwrap();
    f.buildlock(["lint", "--fix", "theirs"]).run().assert_code(0);
    assert_ne!(fs::read_to_string(&path).unwrap(), RACE);
    assert_eq!(fs::metadata(&path).unwrap().uid(), OTHER_USER);
}

#[test]
fn fix_needs_to_write_the_file_but_not_its_folder() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let f = Fixture::new();
    let folder = f.work_dir().join("closed");
    let path = folder.join("Dockerfile");
    fs::create_dir(&folder).unwrap();
    fs::write(&path, RACE).unwrap();
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // Modes do not stop root.
    let root = rustix::process::geteuid().is_root();
    if root && !has("setpriv") {
        support::skip("needs setpriv");
        return;
    }
    let program = root.then(|| open_to_everybody(&f));
    let fix = || match &program {
        Some(program) => as_other_user(&f, program).args(["lint", "--fix"]).arg(&path).run(),
        None => f.buildlock(["lint", "--fix"]).arg(&path).run(),
    };
    if root {
        chown(&path, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    }
    mode(&folder, 0o555);

    mode(&path, 0o444);
    let run = fix();
    run.assert_code(125).assert_stderr("cannot write");
    assert!(stdout(&run).contains("error: "), "{}", stdout(&run));
    assert_eq!(fs::read_to_string(&path).unwrap(), RACE);

    mode(&path, 0o644);
    let before = fs::metadata(&path).unwrap().ino();
    fix().assert_code(0);
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
    assert_eq!(fs::read_to_string(&path).unwrap(), RACE.replace(".m2 ", ".m2,sharing=locked "));
    mode(&folder, 0o755);
}

#[test]
fn fix_keeps_attributes() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let f = Fixture::new();
    write(&f, "Dockerfile", RACE);
    let path = f.work_dir().join("Dockerfile");
    if setxattr(&path, "user.whose", b"mine", XattrFlags::empty()).is_err() {
        support::skip("needs a file system with attributes");
        return;
    }
    f.buildlock(["lint", "--fix"]).run().assert_code(0);
    assert!(fs::read_to_string(&path).unwrap().contains("sharing=locked"));
    let mut value = [0; 8];
    let length = getxattr(&path, "user.whose", &mut value);
    assert_eq!(length.map(|length| &value[..length]), Ok(&b"mine"[..]));
}

#[test]
fn disk_without_room_for_the_fix_leaves_the_file_as_it_was() {
    let f = Fixture::new();
    let folder = f.work_dir().join("full");
    fs::create_dir(&folder).unwrap();
    // The disk has two pages.
    let script = "mount -t tmpfs -o size=8k none \"$STANDIN/work/full\"";
    let Some(there) = Namespace::new(&f, script) else { return };
    let inside = there.path(&folder);
    // A little less than a page: the fix needs a second one.
    let whole = format!("{RACE}{}\n", "#".repeat(4090 - RACE.len()));
    fs::write(inside.join("Dockerfile"), &whole).unwrap();
    fs::write(inside.join("other"), [0; 4096]).unwrap();
    let assert_unchanged = || {
        let run = there.buildlock(["lint", "--fix", "full/Dockerfile"]).run();
        run.assert_code(125).assert_stderr("cannot write");
        assert!(stdout(&run).contains("error: "), "{}", stdout(&run));
        assert_eq!(fs::read_to_string(inside.join("Dockerfile")).unwrap(), whole);
    };
    let written = || fs::metadata(inside.join("Dockerfile")).unwrap().modified().unwrap();
    let before = written();
    assert_unchanged();
    assert_eq!(written(), before);
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 2);
    // A file with two names is not replaced, but written.
    fs::hard_link(inside.join("Dockerfile"), inside.join("same")).unwrap();
    assert_unchanged();
}

#[test]
fn fix_leaves_no_other_file_behind() {
    let f = Fixture::new();
    write(&f, "Dockerfile", RACE);
    f.buildlock(["lint", "--fix"]).run().assert_code(0);
    let names: Vec<_> =
        fs::read_dir(f.work_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["Dockerfile"]);
}
