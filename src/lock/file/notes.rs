//! Notes beside lock files.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::super::key::{Key, LockMode};
use super::super::store::Notes;
use super::folder::{FileStore, NOTE, entries};
use super::held::LockFile;
use super::open::open_existing;
use crate::record::{empty, read_line, replace_text};

/// How long to wait for another writer, which needs next to no time.
const WRITERS_GRACE: Duration = Duration::from_millis(500);

impl Notes for FileStore {
    fn note(&self, key: &Key) -> Option<Vec<u8>> {
        let folder = self.existing_folder(key.folder()).ok()??;
        let relative = key.memory().relative_path();
        read_line(&open_existing(&folder, relative.file_name()?).ok()?)
    }

    fn each_note(&self, folder: &str, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        let Some(folder_fd) = self.existing_folder(folder)? else { return Ok(()) };
        for entry in entries(&folder_fd, &self.path.join(folder), NOTE)? {
            let Ok(file) = open_existing(&folder_fd, &entry.name) else { continue };
            read_line(&file).iter().for_each(|line| visit(line));
        }
        Ok(())
    }

    fn replace_note(&self, key: &Key, before: Option<&[u8]>, after: Option<&[u8]>) -> Result<bool> {
        let key = key.memory();
        let start = Instant::now();
        let LockFile { file, path, .. } = loop {
            if after.is_none() && !self.is_there(&key) {
                return Ok(before.is_none());
            }
            // One writer at a time, and none into a file that is being removed.
            if let Some(lock) = self.try_lock(&key, LockMode::Exclusive)?.ours() {
                break lock;
            }
            if start.elapsed() >= WRITERS_GRACE {
                bail!("another process keeps {} locked", self.path_of(&key).display());
            }
            std::thread::sleep(Duration::from_millis(fastrand::u64(1..4)));
        };
        if read_line(&file).as_deref() != before {
            return Ok(false);
        }
        let written = match after {
            Some(line) => replace_text(&file, line),
            None => empty(&file),
        };
        written.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(true)
    }
}
