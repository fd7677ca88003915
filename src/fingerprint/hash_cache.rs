//! Remembers the hashes of a context's files, so that files which have not changed are not read.
//!
//! There is one file for each context folder, in the user's cache folder. Whatever happens to it
//! costs time only: a file that is damaged, foreign, or from another version is not used.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;

use super::cache_folder::{self, is_short_hash};
use super::clock::Clock;
use super::own_folder::OwnFolder;
use super::stamp::{Stamp, Time};

/// The content of a file, as a hash.
pub(super) type Digest = [u8; 32];

/// In bytes: a stamp and a digest.
const RECORD: usize = KEY + 32;
const KEY: usize = 48;
/// Changes with the format, and with what a hash covers.
const MAGIC: &[u8; 16] = b"buildlock-hash1\n";
/// In bytes; that is a context of several million files.
const LARGEST: u64 = 512 << 20;
/// In seconds. A file that was changed later than this before the walk can change again without
/// getting other times: that is how coarse the times of some file systems are.
const GRANULARITY: i64 = 2;

type Record = [u8; RECORD];

/// The hashes of a context's files.
#[derive(Debug)]
pub struct HashCache {
    /// None: nothing can be remembered.
    place: Option<Place>,
    /// When this walk began.
    clock: Clock,
    /// Sorted.
    known: Vec<Record>,
    /// Those that the walk has met.
    met: Vec<Record>,
    has_news: bool,
}

#[derive(Debug)]
struct Place {
    folder: OwnFolder,
    name: String,
    /// The context, which the file names.
    context: PathBuf,
}

impl HashCache {
    /// Opens the cache for a context. Without one, or if it cannot be trusted, nothing is known.
    pub fn open(context: &Path) -> Self {
        match cache_folder::home() {
            Some(home) => Self::open_in(&home, context),
            None => Self::none(),
        }
    }

    /// Opens the cache for a context below another folder than `$XDG_CACHE_HOME`.
    pub fn open_in(home: &Path, context: &Path) -> Self {
        let mut cache = Self::none();
        match place(home, context) {
            Ok(place) => {
                cache.known = read(&place, &cache.clock).unwrap_or_else(|reason| {
                    tracing::debug!("hash cache {}: not used: {reason}", place.name);
                    Vec::new()
                });
                cache.place = Some(place);
            }
            Err(reason) => tracing::debug!("no hash cache: {reason}"),
        }
        cache
    }

    /// Returns a cache that knows nothing, and remembers nothing.
    pub fn none() -> Self {
        let (known, met) = (Vec::new(), Vec::new());
        Self { place: None, clock: Clock::now(), known, met, has_news: false }
    }

    /// Returns the hash of a file that has not changed since it was computed.
    pub(super) fn get(&mut self, stamp: &Stamp) -> Option<Digest> {
        let key = key(stamp);
        let at = self.known.binary_search_by(|record| record[..KEY].cmp(&key)).ok()?;
        let record = self.known[at];
        self.met.push(record);
        record[KEY..].try_into().ok()
    }

    /// Remembers the hash of a file, unless the file has only just been changed.
    pub(super) fn put(&mut self, stamp: &Stamp, digest: &Digest) {
        if self.place.is_none() || !self.is_settled(stamp) {
            return;
        }
        let mut record = [0; RECORD];
        record[..KEY].copy_from_slice(&key(stamp));
        record[KEY..].copy_from_slice(digest);
        self.met.push(record);
        self.has_news = true;
    }

    /// Returns whether another change would give the file other times. That is git's rule for files
    /// that are "racily clean".
    fn is_settled(&self, stamp: &Stamp) -> bool {
        let newest = stamp.modified.max(stamp.changed);
        newest < (self.clock.time.0 - GRANULARITY, self.clock.time.1)
    }

    /// Writes what is known now. If that fails, the next walk takes longer.
    pub fn save(mut self) {
        let Some(place) = self.place.take() else { return };
        // A walk by other rules may have met other files. Those that nobody meets go at some time.
        let is_worn = self.met.len() * 2 < self.known.len();
        if !self.has_news && !is_worn {
            return;
        }
        let mut records = self.met;
        if !is_worn {
            records.append(&mut self.known);
        }
        records.sort_unstable();
        records.dedup_by(|a, b| a[..KEY] == b[..KEY]);
        if let Err(error) = write(&place, &self.clock, &records) {
            tracing::debug!("hash cache {}: not written: {error}", place.name);
            return;
        }
        /// One write in so many looks for files that are of no use any more.
        const SWEEP: u8 = 16;
        if fastrand::u8(..SWEEP) == 0 {
            sweep(&place.folder);
        }
    }
}

fn key(stamp: &Stamp) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&stamp.device.to_be_bytes());
    key[8..16].copy_from_slice(&stamp.inode.to_be_bytes());
    key[16..24].copy_from_slice(&stamp.size.to_be_bytes());
    key[24..36].copy_from_slice(&time(stamp.modified));
    key[36..].copy_from_slice(&time(stamp.changed));
    key
}

fn time((seconds, nanoseconds): Time) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&seconds.to_be_bytes());
    bytes[8..].copy_from_slice(&nanoseconds.to_be_bytes());
    bytes
}

/// Finds the file for a context.
fn place(home: &Path, context: &Path) -> Result<Place, String> {
    let context = context.canonicalize().map_err(|error| format!("the context: {error}"))?;
    let folder = cache_folder::open_in(home)?;
    let name = blake3::hash(context.as_os_str().as_bytes()).to_hex()[..32].to_owned();
    Ok(Place { folder, name, context })
}

/// Reads the records of a context. The file is: [`MAGIC`], the clock, the context's path and its
/// length, the records, and a checksum of all that.
fn read(place: &Place, now: &Clock) -> Result<Vec<Record>, String> {
    let damaged = || "it is damaged, or from another version".to_owned();
    let (mut file, size) = place.folder.open_file(&place.name, LARGEST)?;
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
    file.read_to_end(&mut content).map_err(|error| error.to_string())?;
    let (content, checksum) = content.split_last_chunk::<32>().ok_or_else(damaged)?;
    if blake3::hash(content).as_bytes() != checksum {
        return Err(damaged());
    }
    let rest = content.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (clock, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
    let (context, records) = split_path(rest).ok_or_else(damaged)?;
    if context != place.context.as_os_str().as_bytes() {
        return Err("it is about another folder".to_owned());
    }
    if !now.is_after(&Clock::from_bytes(clock)) {
        return Err("the clock has been set back since".to_owned());
    }
    let records = records.chunks_exact(RECORD).map(|record| record.try_into());
    records.collect::<Result<_, _>>().map_err(|_| damaged())
}

/// Splits a path with its length from what follows.
fn split_path(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

fn write(place: &Place, clock: &Clock, records: &[Record]) -> Result<(), std::io::Error> {
    let path = place.context.as_os_str().as_bytes();
    let mut content = Vec::with_capacity(path.len() + records.len() * RECORD + 128);
    content.extend(MAGIC);
    content.extend(clock.to_bytes());
    content.extend(u32::try_from(path.len()).unwrap_or_default().to_be_bytes());
    content.extend(path);
    records.iter().for_each(|record| content.extend(record));
    content.extend(blake3::hash(&content).as_bytes());

    place.folder.write(&place.name, &content)
}

/// Removes caches of folders that are gone, and what interrupted writes have left.
fn sweep(folder: &OwnFolder) {
    /// So that a sweep takes little time. The next one may begin elsewhere.
    const AT_ONCE: usize = 256;
    folder.remove_leftovers(AT_ONCE, |name| is_short_hash(name) && is_about_nothing(folder, name));
}

/// Returns whether a cache names a folder that does not exist.
fn is_about_nothing(folder: &OwnFolder, name: &str) -> bool {
    const PATH_MAX: u64 = 4096;
    let Ok((file, _)) = folder.open_file(name, LARGEST) else { return false };
    let mut start = Vec::new();
    let limit = (MAGIC.len() + Clock::SIZE + 4) as u64 + PATH_MAX;
    if file.take(limit).read_to_end(&mut start).is_err() {
        return false;
    }
    let path = start.strip_prefix(MAGIC).and_then(|rest| split_path(rest.get(Clock::SIZE..)?));
    path.is_some_and(|(path, _)| {
        rustix::fs::statat(CWD, path, AtFlags::empty()).is_err_and(|it| it == Errno::NOENT)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;

    struct Fixture {
        home: TempDir,
        context: TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let (home, context) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            Self { home, context }
        }

        fn open(&self) -> HashCache {
            HashCache::open_in(self.home.path(), self.context.path())
        }

        fn file(&self) -> PathBuf {
            let mut files = fs::read_dir(self.home.path().join("buildlock")).unwrap();
            files.next().unwrap().unwrap().path()
        }

        /// Remembers one hash, and returns its file's stamp.
        fn remember(&self) -> Stamp {
            let mut cache = self.open();
            let stamp = stamp(cache.clock.time.0 - 10);
            cache.put(&stamp, &[7; 32]);
            cache.save();
            stamp
        }

        fn knows(&self, stamp: &Stamp) -> bool {
            let found = self.open().get(stamp);
            assert!(found.is_none() || found == Some([7; 32]));
            found.is_some()
        }
    }

    fn stamp(seconds: i64) -> Stamp {
        Stamp { device: 1, inode: 2, size: 3, modified: (5, 6), changed: (seconds, 8) }
    }

    #[test]
    fn hash_is_remembered_for_the_very_file() {
        let f = Fixture::new();
        let stamp = f.remember();
        assert!(f.knows(&stamp));
        for other in [
            Stamp { inode: 9, ..stamp },
            Stamp { size: 9, ..stamp },
            Stamp { modified: (5, 7), ..stamp },
            Stamp { changed: (stamp.changed.0, 9), ..stamp },
        ] {
            assert!(!f.knows(&other));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&f.file()), mode(f.file().parent().unwrap())), (0o600, 0o700));
    }

    #[test]
    fn file_that_has_just_changed_is_not_remembered() {
        let f = Fixture::new();
        for age in [-100, 0, 1] {
            let mut cache = f.open();
            let stamp = stamp(cache.clock.time.0 - age);
            cache.put(&stamp, &[7; 32]);
            cache.save();
            assert!(!f.knows(&stamp), "{age}");
        }
    }

    #[test]
    fn damaged_cache_is_not_used_and_replaced() {
        let f = Fixture::new();
        let stamp = f.remember();
        let whole = fs::read(f.file()).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(f.file(), &damaged).unwrap();
            assert!(!f.knows(&stamp), "byte {at}");
            fs::write(f.file(), &whole[..at]).unwrap();
            assert!(!f.knows(&stamp), "{at} bytes");
        }
        f.remember();
        assert!(f.knows(&stamp) || f.open().known.len() == 1);
    }

    #[test]
    fn foreign_cache_is_not_used() {
        let f = Fixture::new();
        let stamp = f.remember();
        fs::set_permissions(f.file(), Permissions::from_mode(0o622)).unwrap();
        assert!(!f.knows(&stamp), "others may write it");
        fs::set_permissions(f.file(), Permissions::from_mode(0o600)).unwrap();
        assert!(f.knows(&stamp));

        let file = f.file();
        let elsewhere = f.home.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        assert!(!f.knows(&stamp), "it is a link");
        fs::remove_file(&file).unwrap();
        fs::rename(&elsewhere, &file).unwrap();

        fs::set_permissions(file.parent().unwrap(), Permissions::from_mode(0o777)).unwrap();
        assert!(!f.knows(&stamp), "others may put files there");
    }

    #[test]
    fn folder_that_everybody_can_exchange_is_not_used() {
        let f = Fixture::new();
        fs::set_permissions(f.home.path(), Permissions::from_mode(0o777)).unwrap();
        let stamp = f.remember();
        assert!(!f.knows(&stamp) && !f.home.path().join("buildlock").exists());
    }

    #[test]
    fn nothing_is_remembered_where_nothing_can_be_written() {
        let f = Fixture::new();
        fs::write(f.home.path().join("buildlock"), "a file").unwrap();
        let stamp = f.remember();
        assert!(!f.knows(&stamp));
    }

    #[test]
    fn cache_of_a_later_time_is_not_used() {
        let f = Fixture::new();
        let stamp = f.remember();
        let mut cache = f.open();
        cache.clock.time.0 += 3600;
        let place = cache.place.take().unwrap();
        write(&place, &cache.clock, &cache.known).unwrap();
        assert!(!f.knows(&stamp));
    }

    #[test]
    fn only_files_of_our_own_are_removed() {
        let f = Fixture::new();
        f.remember();
        let folder = f.open().place.unwrap().folder;
        let ours = ["new-1-00ff00ff"];
        let others =
            ["new-plan.txt", "new-1-00ff00ff.txt", "new--00ff00ff", "new-1-", "new-x-00ff00ff"];
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 24 * 3600);
        let at = |name: &str| f.home.path().join("buildlock").join(name);
        for name in ours.iter().chain(&others) {
            let file = fs::File::create(at(name)).unwrap();
            file.set_times(fs::FileTimes::new().set_modified(old)).unwrap();
        }
        sweep(&folder);
        assert_eq!(ours.map(|name| at(name).exists()), [false]);
        assert_eq!(others.map(|name| at(name).exists()), [true; 5]);
    }

    #[test]
    fn link_of_another_user_to_our_own_folder_is_not_followed() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let f = Fixture::new();
        let theirs = TempDir::new().unwrap();
        symlink(f.home.path(), theirs.path().join(".cache")).unwrap();
        std::os::unix::fs::chown(theirs.path(), Some(65534), None).unwrap();
        let cache = HashCache::open_in(&theirs.path().join(".cache"), f.context.path());
        assert!(cache.place.is_none());
        assert_eq!(fs::read_dir(f.home.path()).unwrap().count(), 0);
    }

    #[test]
    fn caches_of_folders_that_are_gone_are_removed() {
        let f = Fixture::new();
        f.remember();
        let file = f.file();
        let folder = f.open().place.unwrap().folder;
        sweep(&folder);
        assert!(file.exists());
        drop(f.context);
        sweep(&folder);
        assert!(!file.exists());
    }
}
