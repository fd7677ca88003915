//! Hashes what a builder can read from a context folder.
//!
//! That is: the path, type and permissions of each file, link and folder that the ignore file does
//! not exclude, and its content or target. Owners and times do not get into an image in a way that
//! a builder's own cache would notice.

use std::ffi::OsStr;
use std::fmt::Display;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::content::{Job, Problem, attributes, hash_all, open_in};
use super::hash_cache::{Digest, HashCache};
use super::ignore::{Folder, IgnoreRules};
use super::owners::only_we_may_write;
use super::stamp::{Stamp, Time, changed, kind, permissions};

/// What a builder can read from a context.
#[derive(Debug)]
pub struct ContextDigest {
    /// Of all entries.
    pub digest: [u8; 32],
    /// Sorted by path.
    pub entries: Vec<Entry>,
    /// The newest change to anything but a folder; none if there is nothing.
    pub newest_change: Option<Time>,
    /// The newest change to the root or a folder that is included; none if the build command itself
    /// writes into each. Whatever is created there or removed counts, even if it is excluded.
    pub newest_folder_change: Option<Time>,
}

/// A file, link or folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the context.
    pub path: PathBuf,
    /// Of everything but the path. It is too short to withstand an attack, and long enough to find
    /// out what has changed.
    pub digest: u64,
}

/// Hashes a context.
///
/// The rules decide what belongs to it. Builders do not see an excluded Dockerfile or ignore file
/// either: it is read on its own, or removed before the first `COPY`. The files that the build
/// command itself has `written` here do not belong to it. Their paths are relative to the context.
///
/// # Errors
/// Something that is included cannot be read, or changes while it is read.
pub fn hash_context(
    root: &Path,
    rules: &IgnoreRules,
    written: &[PathBuf],
    cache: &mut HashCache,
) -> Result<ContextDigest> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty());
    let in_root = |error: Errno| anyhow!("cannot read the context {}: {error}", root.display());
    let fd = opened.map_err(in_root)?;
    let stat = rustix::fs::fstat(&fd).map_err(in_root)?;
    let mut walk = Walk::new(root, fd, rules, written, cache, &stat);
    walk.all_folders()?;
    walk.hash_files()?;
    Ok(walk.finish())
}

/// Something that is included.
struct Found {
    path: Box<[u8]>,
    /// One of [`Found::of`].
    digest: Digest,
}

impl Found {
    fn of(path: &[u8], stat: &Stat, content: &[u8]) -> Self {
        Self { path: path.into(), digest: entry_digest(stat, content) }
    }
}

/// Returns the digest of everything but the path.
fn entry_digest(stat: &Stat, content: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[match kind(stat) {
        FileType::RegularFile => b'f',
        FileType::Directory => b'd',
        FileType::Symlink => b'l',
        FileType::Fifo => b'p',
        FileType::Socket => b's',
        FileType::CharacterDevice => b'c',
        FileType::BlockDevice => b'b',
        FileType::Unknown => b'?',
    }]);
    // Some file systems let the permissions of a link be changed, which means nothing.
    let permissions = if kind(stat) == FileType::Symlink { 0o777 } else { permissions(stat) };
    hasher.update(&permissions.to_be_bytes());
    hasher.update(content);
    *hasher.finalize().as_bytes()
}

/// A folder that the walk has met.
struct Visited {
    path: Box<[u8]>,
    above: Option<usize>,
    rules: Folder,
    is_included: bool,
    /// If it is not included itself, this becomes so as soon as something in it is: the builder
    /// needs a folder to put that in.
    waiting: Option<(Found, Time)>,
}

struct Walk<'a> {
    root: &'a Path,
    fd: OwnedFd,
    rules: &'a IgnoreRules,
    written: &'a [PathBuf],
    cache: &'a mut HashCache,
    /// Only the hashes of its files are remembered. See [`Walk::is_cached`].
    cached_device: Option<u64>,
    found: Vec<Found>,
    folders: Vec<Visited>,
    /// Those that have not been read.
    to_read: Vec<usize>,
    jobs: Vec<Job>,
    newest_change: Option<Time>,
    newest_folder_change: Option<Time>,
}

impl<'a> Walk<'a> {
    fn new(
        root: &'a Path,
        fd: OwnedFd,
        rules: &'a IgnoreRules,
        written: &'a [PathBuf],
        cache: &'a mut HashCache,
        stat: &Stat,
    ) -> Self {
        let top = Visited {
            path: Box::default(),
            above: None,
            rules: rules.root(),
            is_included: true,
            waiting: None,
        };
        let mut walk = Self {
            root,
            rules,
            written,
            cache,
            cached_device: has_reliable_times(&fd).then(|| Stamp::new(stat).device),
            fd,
            found: Vec::new(),
            folders: vec![top],
            to_read: vec![0],
            jobs: Vec::new(),
            newest_change: None,
            newest_folder_change: None,
        };
        walk.note_folder_change(b"", changed(stat));
        walk
    }

    /// Notes when something was created in a folder or removed from it, unless that may have been
    /// the build command.
    fn note_folder_change(&mut self, path: &[u8], changed: Time) {
        let is_here = |file: &PathBuf| file.parent() == Some(Path::new(OsStr::from_bytes(path)));
        if !self.written.iter().any(is_here) {
            self.newest_folder_change = self.newest_folder_change.max(Some(changed));
        }
    }

    fn all_folders(&mut self) -> Result<()> {
        let mut buffer = vec![MaybeUninit::uninit(); 64 * 1024];
        while let Some(folder) = self.to_read.pop() {
            self.folder(folder, &mut buffer)?;
        }
        Ok(())
    }

    fn folder(&mut self, number: usize, buffer: &mut [MaybeUninit<u8>]) -> Result<()> {
        let Visited { path, is_included, .. } = &self.folders[number];
        let (path, is_included) = (path.clone(), *is_included);
        let opened = match &*path {
            b"" => rustix::io::fcntl_dupfd_cloexec(&self.fd, 0),
            path => open_in(&self.fd, path, OFlags::DIRECTORY),
        };
        let fd = match opened {
            // Builders do not complain either.
            Err(Errno::ACCESS) if !is_included => return Ok(()),
            opened => opened.map_err(|error| self.failed(&path, error))?,
        };
        if !path.is_empty() {
            self.enter(number, &path, &fd).map_err(|error| self.failed(&path, error))?;
        }
        let mut name_buffer = path.to_vec();
        if !path.is_empty() {
            name_buffer.push(b'/');
        }
        let start = name_buffer.len();
        let mut entries = RawDir::new(&fd, buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| self.failed(&path, error))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            name_buffer.truncate(start);
            name_buffer.extend(name);
            self.entry(number, &fd, start, &name_buffer, entry.file_type())?;
        }
        Ok(())
    }

    /// Adds a folder itself.
    fn enter(&mut self, number: usize, path: &[u8], fd: &OwnedFd) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        let attributes = attributes(fd)?;
        let content = attributes.map_or_else(Vec::new, |it| it.to_vec());
        let found = (Found::of(path, &stat, &content), changed(&stat));
        self.folders[number].waiting = Some(found);
        if self.folders[number].is_included {
            self.include(number);
        }
        Ok(())
    }

    /// Includes a folder, and those above it.
    fn include(&mut self, number: usize) {
        let mut next = Some(number);
        while let Some(number) = next {
            let folder = &mut self.folders[number];
            let Some((found, changed)) = folder.waiting.take() else { return };
            next = folder.above;
            self.note_folder_change(&found.path, changed);
            self.found.push(found);
        }
    }

    /// Looks at one entry of a folder. Its name begins at `start` in its path.
    fn entry(
        &mut self,
        folder: usize,
        fd: &OwnedFd,
        start: usize,
        path: &[u8],
        listed: FileType,
    ) -> Result<()> {
        let name = &path[start..];
        let (kind, stat) = match listed {
            // The file system does not say.
            FileType::Unknown => {
                let stat = stat_in(fd, name).map_err(|error| self.failed(path, error))?;
                (kind(&stat), Some(stat))
            }
            listed => (listed, None),
        };
        let is_folder = kind == FileType::Directory;
        let is_this = |file: &PathBuf| file.as_os_str().as_bytes() == path;
        if !is_folder && self.written.iter().any(is_this) {
            return Ok(());
        }
        let verdict = self.rules.look(path, is_folder, &self.folders[folder].rules);
        if is_folder {
            if let Some(rules) = verdict.folder {
                let is_included = verdict.is_included;
                let above = Some(folder);
                self.to_read.push(self.folders.len());
                self.folders.push(Visited {
                    path: path.into(),
                    above,
                    rules,
                    is_included,
                    waiting: None,
                });
            }
            return Ok(());
        }
        if !verdict.is_included {
            return Ok(());
        }
        self.include(folder);
        let stat = match stat {
            Some(stat) => stat,
            None => stat_in(fd, name).map_err(|error| self.failed(path, error))?,
        };
        if super::stamp::kind(&stat) != kind {
            return Err(self.problem(path, Problem::Changing));
        }
        self.newest_change = self.newest_change.max(Some(changed(&stat)));
        match kind {
            FileType::RegularFile => self.file(path, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(fd, name, Vec::new());
                let target = target.map_err(|error| self.failed(path, error))?;
                self.found.push(Found::of(path, &stat, target.as_bytes()));
            }
            // FIFOs and sockets have no content, and builders do not open devices.
            _ => {
                let device = stat.st_rdev.to_be_bytes();
                self.found.push(Found::of(path, &stat, &device));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], stat: &Stat) {
        let stamp = Stamp::new(stat);
        let known = if self.is_cached(stat) { self.cache.get(&stamp) } else { None };
        match known {
            Some(digest) => self.found.push(Found::of(path, stat, &digest)),
            None => {
                self.jobs.push(Job { entry: self.found.len(), size: stamp.size });
                self.found.push(Found { path: path.into(), digest: Digest::default() });
            }
        }
    }

    /// Returns whether the hash of a file is remembered: its times tell whether it has changed.
    fn is_cached(&self, stat: &Stat) -> bool {
        Some(Stamp::new(stat).device) == self.cached_device && only_we_may_write(stat)
    }

    fn hash_files(&mut self) -> Result<()> {
        let found = &self.found;
        let hashed = hash_all(&self.fd, &self.jobs, |entry| &found[entry].path);
        let hashed =
            hashed.map_err(|(entry, problem)| self.problem(&found[entry].path, problem))?;
        for file in hashed {
            let stamp = Stamp::new(&file.stat);
            if self.is_cached(&file.stat) {
                self.cache.put(&stamp, &file.digest);
            }
            self.newest_change = self.newest_change.max(Some(stamp.changed));
            self.found[file.entry].digest = entry_digest(&file.stat, &file.digest);
        }
        Ok(())
    }

    fn finish(mut self) -> ContextDigest {
        self.found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let mut hasher = blake3::Hasher::new();
        for found in &self.found {
            hasher.update(&(found.path.len() as u64).to_be_bytes());
            hasher.update(&found.path);
            hasher.update(&found.digest);
        }
        let entries = self.found.into_iter().map(|found| Entry {
            path: std::ffi::OsString::from_vec(found.path.into_vec()).into(),
            digest: u64::from_be_bytes(found.digest.first_chunk().copied().unwrap_or_default()),
        });
        ContextDigest {
            digest: *hasher.finalize().as_bytes(),
            entries: entries.collect(),
            newest_change: self.newest_change,
            newest_folder_change: self.newest_folder_change,
        }
    }

    fn failed(&self, path: &[u8], error: Errno) -> anyhow::Error {
        self.problem(path, error.into())
    }

    fn problem(&self, path: &[u8], problem: Problem) -> anyhow::Error {
        let path = self.root.join(OsStr::from_bytes(path));
        let explain = |why: &dyn Display, what: &str| {
            anyhow!("cannot read {}, which is in the context: {why}; {what}", path.display())
        };
        match problem {
            Problem::Changing => explain(
                &"it changes or vanishes meanwhile",
                "wait for whatever changes it, or exclude it in the ignore file",
            ),
            Problem::Leased => explain(
                &"another program has a lease on it (fcntl, F_SETLEASE)",
                "end that program, or exclude the file in the ignore file",
            ),
            Problem::Failed(error @ Errno::ACCESS) => {
                explain(&error, "make it readable, or exclude it in the ignore file")
            }
            Problem::Failed(error) => explain(&error, "mend it, or exclude it in the ignore file"),
        }
    }
}

fn stat_in(fd: &OwnedFd, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Returns whether each change to a file gives it another time, by this machine's clock. A file
/// server's clock may differ, and what stands behind FUSE is not known.
fn has_reliable_times(fd: &OwnedFd) -> bool {
    /// ext4, xfs, btrfs, f2fs, zfs, bcachefs, tmpfs, overlayfs (linux/magic.h).
    const LOCAL: [u64; 8] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0xf2f5_2010,
        0x2fc1_2fc1,
        0xca45_1a4e,
        0x0102_1994,
        0x794c_7630,
    ];
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
    rustix::fs::fstatfs(fd).is_ok_and(|it| LOCAL.contains(&(it.f_type as u64 & 0xffff_ffff)))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use tempfile::TempDir;

    use super::super::ignore::Dialect;
    use super::*;

    fn context(files: &[&str]) -> TempDir {
        let folder = TempDir::new().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        folder
    }

    fn hash(root: &Path, ignore_file: &str) -> Result<ContextDigest> {
        let rules = IgnoreRules::read(ignore_file.as_bytes(), &Dialect::ALL).unwrap();
        hash_context(root, &rules, &[], &mut HashCache::none())
    }

    fn digest(root: &Path) -> [u8; 32] {
        hash(root, "").unwrap().digest
    }

    fn paths(root: &Path, ignore_file: &str) -> Vec<String> {
        let entries = hash(root, ignore_file).unwrap().entries;
        entries.iter().map(|entry| entry.path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn entries_are_files_links_and_folders_sorted_by_path() {
        let c = context(&["b/x", "a"]);
        fs::create_dir(c.path().join("empty")).unwrap();
        symlink("..", c.path().join("b/loop")).unwrap();
        assert_eq!(paths(c.path(), ""), ["a", "b", "b/loop", "b/x", "empty"]);
        assert_eq!(paths(c.path(), "b\nempty"), ["a"]);
    }

    #[test]
    fn folders_above_an_exception_are_included() {
        let c = context(&["a/b/y", "a/b/z", "a/c/x"]);
        assert_eq!(paths(c.path(), "*\n!a/b/y"), ["a", "a/b", "a/b/y"]);
    }

    #[test]
    fn equal_folders_have_equal_digests() {
        let (one, two) = (context(&["a/x", "b", "c"]), context(&["c", "b", "a/x"]));
        assert_eq!(digest(one.path()), digest(two.path()));
        fs::set_permissions(two.path(), Permissions::from_mode(0o711)).unwrap();
        assert_eq!(digest(one.path()), digest(two.path()), "the root's own mode does not count");
        let link = one.path().join("../").canonicalize().unwrap().join("buildlock-test-link");
        let link = link.with_extension(std::process::id().to_string());
        symlink(two.path(), &link).unwrap();
        let by_link = digest(&link);
        fs::remove_file(&link).unwrap();
        assert_eq!(digest(one.path()), by_link);
    }

    #[test]
    fn every_change_that_counts_changes_the_digest() {
        type Change = (&'static str, fn(&Path));
        let changes: [Change; 8] = [
            ("content", |c| fs::write(c.join("a"), "A").unwrap()),
            ("mode", |c| fs::set_permissions(c.join("a"), Permissions::from_mode(0o600)).unwrap()),
            ("setuid", |c| {
                fs::set_permissions(c.join("a"), Permissions::from_mode(0o4644)).unwrap();
            }),
            ("mode of a folder", |c| {
                fs::set_permissions(c.join("d"), Permissions::from_mode(0o700)).unwrap();
            }),
            ("new file", |c| fs::write(c.join("d/n"), "").unwrap()),
            ("new folder", |c| fs::create_dir(c.join("d/n")).unwrap()),
            ("name", |c| fs::rename(c.join("a"), c.join("b")).unwrap()),
            ("type", |c| {
                fs::remove_file(c.join("a")).unwrap();
                symlink("a", c.join("a")).unwrap();
            }),
        ];
        for (name, change) in changes {
            let c = context(&["a", "d/x"]);
            let before = digest(c.path());
            change(c.path());
            assert_ne!(digest(c.path()), before, "{name}");
        }
        let c = context(&["a"]);
        symlink("a", c.path().join("l")).unwrap();
        let before = digest(c.path());
        fs::remove_file(c.path().join("l")).unwrap();
        symlink("b", c.path().join("l")).unwrap();
        assert_ne!(digest(c.path()), before, "target");
    }

    #[test]
    fn files_that_the_build_command_writes_do_not_count() {
        let c = context(&["a", "d/x"]);
        let rules = IgnoreRules::none();
        let hash = |written: &[&str]| {
            let written: Vec<_> = written.iter().map(PathBuf::from).collect();
            hash_context(c.path(), &rules, &written, &mut HashCache::none()).unwrap()
        };
        let before = hash(&["id", "d/log"]);
        assert_eq!(before.newest_folder_change, None);
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(c.path().join("id"), "1").unwrap();
        fs::write(c.path().join("d/log"), "1").unwrap();
        let after = hash(&["id", "d/log"]);
        assert_eq!((after.digest, after.newest_change), (before.digest, before.newest_change));
        assert_eq!(after.newest_folder_change, None);
        assert!(hash(&["id"]).newest_folder_change.is_some());
        assert_ne!(hash(&["id"]).digest, before.digest);
    }

    #[test]
    fn extended_attributes_count() {
        let c = context(&["a"]);
        let before = digest(c.path());
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(c.path().join("a"), "user.x", b"1", flags).is_ok() {
            assert_ne!(digest(c.path()), before);
        }
    }

    #[test]
    fn names_need_not_be_text() {
        let c = context(&[]);
        let name = OsString::from_vec(b"\xff\xfe".to_vec());
        fs::write(c.path().join(&name), "").unwrap();
        assert_eq!(hash(c.path(), "").unwrap().entries[0].path, PathBuf::from(name));
    }

    #[test]
    fn sockets_and_fifos_are_entries_that_are_not_opened() {
        let c = context(&[]);
        let _socket = UnixListener::bind(c.path().join("socket")).unwrap();
        nix::unistd::mkfifo(&c.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(paths(c.path(), ""), ["fifo", "socket"]);
    }

    #[test]
    fn missing_context_is_an_error_that_names_it() {
        let c = context(&["a"]);
        let message = hash(&c.path().join("no"), "").unwrap_err().to_string();
        assert!(message.contains("/no: No such file"), "{message}");
        let message = hash(&c.path().join("a"), "").unwrap_err().to_string();
        assert!(message.contains("/a: Not a directory"), "{message}");
    }

    #[test]
    fn unreadable_file_is_an_error_unless_it_is_excluded() {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let c = context(&["d/secret"]);
        fs::set_permissions(c.path().join("d/secret"), Permissions::from_mode(0o000)).unwrap();
        let message = hash(c.path(), "").unwrap_err().to_string();
        assert!(message.contains("d/secret") && message.contains("exclude it"), "{message}");
        assert!(hash(c.path(), "**/secret").is_ok());
    }

    #[test]
    fn cached_hashes_are_those_of_the_content() {
        let (c, home) = (context(&["a", "b/c"]), TempDir::new().unwrap());
        for file in ["a", "b/c"] {
            let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
            let file = fs::File::open(c.path().join(file)).unwrap();
            file.set_times(fs::FileTimes::new().set_modified(old)).unwrap();
        }
        // The change of the times is the last one. It has to be older than the granularity.
        std::thread::sleep(std::time::Duration::from_millis(3100));
        let rules = IgnoreRules::read(b"", &Dialect::ALL).unwrap();
        let cold = digest(c.path());
        for _ in 0..2 {
            let mut cache = HashCache::open_in(home.path(), c.path());
            assert_eq!(hash_context(c.path(), &rules, &[], &mut cache).unwrap().digest, cold);
            cache.save();
        }
        // Same size, and the old time of the content.
        let file = c.path().join("a");
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "A").unwrap();
        let times = fs::FileTimes::new().set_modified(modified);
        fs::File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
        let mut cache = HashCache::open_in(home.path(), c.path());
        let now = hash_context(c.path(), &rules, &[], &mut cache).unwrap().digest;
        assert_eq!(now, digest(c.path()));
        assert_ne!(now, cold);
    }

    #[test]
    fn hash_of_a_file_that_others_may_write_is_not_remembered() {
        let modes = [("own", 0o644), ("closed", 0o400), ("all", 0o646)];
        let mut expected = vec![("own", true), ("closed", true), ("all", false)];
        let (c, home) = (context(&modes.map(|(name, _)| name)), TempDir::new().unwrap());
        for (name, mode) in modes {
            fs::set_permissions(c.path().join(name), Permissions::from_mode(mode)).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            fs::write(c.path().join("foreign"), "").unwrap();
            std::os::unix::fs::chown(c.path().join("foreign"), Some(12345), None).unwrap();
            expected.push(("foreign", false));
        }
        // A file has to be older than the granularity.
        std::thread::sleep(std::time::Duration::from_millis(3100));
        let mut cache = HashCache::open_in(home.path(), c.path());
        hash_context(c.path(), &IgnoreRules::none(), &[], &mut cache).unwrap();
        cache.save();
        let mut cache = HashCache::open_in(home.path(), c.path());
        for (name, is_remembered) in expected {
            let stat = rustix::fs::stat(c.path().join(name)).unwrap();
            assert_eq!(cache.get(&Stamp::new(&stat)).is_some(), is_remembered, "{name}");
        }
    }
}
