//! What is remembered of the build that last had a tag.
//!
//! Labels are inherited: `FROM app:dev` with `-t app:dev`, and `docker commit`, give another image
//! the label of the first. So there is a note beside the tag's lock. Anybody may write or remove it:
//! that can cause a build, but a skip needs a note where others cannot write ([`Proofs`]).

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::proofs::{Noted, Proofs};
use crate::image::Why;
use crate::lock::{Key, Notes};
use crate::reference::Tag;

/// What is remembered of a tag, as one line of JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    tag: String,
    /// The fingerprint of the build's inputs.
    inputs: String,
    /// Whether the build has ended, and its image was verified.
    verified: bool,
    /// The ID of its image, if it is on an engine.
    image: Option<String>,
}

/// The notes of all tags.
pub(crate) struct Ledger<'n> {
    /// The notes beside the locks.
    pub(crate) shared: &'n dyn Notes,
    /// Where the locks are in a folder of this machine, for everybody to write: that folder.
    pub(crate) lock_folder: Option<PathBuf>,
}

impl Ledger<'_> {
    fn proofs(&self) -> Option<Proofs> {
        self.lock_folder.as_deref().map(Proofs::of)
    }

    /// Makes sure that what is verified can be noted, so that nobody can take the note away.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn check(&self) -> Result<()> {
        self.proofs().map_or(Ok(()), |proofs| proofs.check())
    }

    /// Returns why an image with this label and ID does not count, if it does not. In a registry,
    /// images have no ID.
    pub(crate) fn distrust(&self, tag: &Tag, inputs: &str, id: Option<&str>) -> Option<Why> {
        let shared = self.shared_note(tag);
        let Some(proofs) = self.proofs() else {
            return judge(&shared, tag, inputs, id).and_then(Result::err);
        };
        let own = proofs.read(tag);
        let all = own.iter().chain([&shared]);
        let verdicts: Vec<_> = all.clone().map(|noted| judge(noted, tag, inputs, id)).collect();
        if verdicts[..own.len()].contains(&Some(Ok(()))) {
            return None;
        }
        if let Some(why) = verdicts.into_iter().flatten().find_map(Result::err) {
            return Some(why);
        }
        // What was pulled has no notes here, and its label is believed.
        let is_unknown = all.clone().all(|noted| *noted == Noted::Nothing);
        let is_unreadable = all.clone().any(|noted| *noted == Noted::Untrusted);
        (is_unreadable || id.is_some() && !is_unknown).then_some(Why::Unproved)
    }

    fn shared_note(&self, tag: &Tag) -> Noted {
        let key = Key::new(tag.into());
        if let Some(line) = self.shared.note(&key) {
            return Noted::Line(line);
        }
        let path =
            self.lock_folder.as_ref().map(|folder| folder.join(key.memory().relative_path()));
        match path.map(std::fs::symlink_metadata) {
            None => Noted::Nothing,
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Noted::Nothing,
            Some(_) => Noted::Untrusted,
        }
    }

    /// Notes that a build from these inputs begins. If it does not end, its image counts as
    /// unverified.
    ///
    /// # Errors
    /// The note cannot be written.
    pub(crate) fn begin(&self, tag: &Tag, inputs: &str) -> Result<()> {
        self.write(tag, inputs, false, None)
    }

    /// Notes that the image of a build from these inputs was verified.
    ///
    /// # Errors
    /// The note cannot be written.
    pub(crate) fn verified(&self, tag: &Tag, inputs: &str, id: Option<&str>) -> Result<()> {
        self.write(tag, inputs, true, id)
    }

    fn write(&self, tag: &Tag, inputs: &str, verified: bool, image: Option<&str>) -> Result<()> {
        let (tag_text, inputs) = (tag.as_str().to_owned(), inputs.to_owned());
        let note = Note { tag: tag_text, inputs, verified, image: image.map(str::to_owned) };
        let line = serde_json::to_vec(&note)?;
        let shared = self.shared.update_note(&Key::new(tag.into()), &mut |_| Some(line.clone()));
        let Some(proofs) = self.proofs() else { return shared };
        proofs.write(tag, &line)?;
        // It tells others that the tag was built here. So does whatever is in its place.
        if self.shared_note(tag) == Noted::Nothing { shared } else { Ok(()) }
    }
}

/// Says whether a note vouches for an image, or why the image does not count. Returns none if it is
/// about other inputs.
fn judge(noted: &Noted, tag: &Tag, inputs: &str, id: Option<&str>) -> Option<Result<(), Why>> {
    let Noted::Line(line) = noted else { return None };
    let note: Note = serde_json::from_slice(line).ok()?;
    if note.tag != tag.as_str() || note.inputs != inputs {
        return None;
    }
    if !note.verified {
        return Some(Err(Why::Unverified));
    }
    let is_another = note.image.is_some_and(|image| id.is_some_and(|id| image != id));
    Some(if is_another { Err(Why::Inherited) } else { Ok(()) })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown};
    use std::path::Path;
    use std::sync::Mutex;

    use tempfile::TempDir;

    use super::*;

    /// Keeps one note.
    #[derive(Default)]
    struct One(Mutex<Option<Vec<u8>>>);

    impl Notes for One {
        fn note(&self, _: &Key) -> Option<Vec<u8>> {
            self.0.lock().unwrap().clone()
        }

        fn each_note(&self, _: &str, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
            self.note(&Key::new((&tag()).into())).iter().for_each(|line| visit(line));
            Ok(())
        }

        fn replace_note(&self, _: &Key, _: Option<&[u8]>, after: Option<&[u8]>) -> Result<bool> {
            *self.0.lock().unwrap() = after.map(<[u8]>::to_vec);
            Ok(true)
        }
    }

    fn tag() -> Tag {
        "app:dev".parse().unwrap()
    }

    #[test]
    fn note_distrusts_an_image_with_the_same_label_and_another_id() {
        let ledger = Ledger { shared: &One::default(), lock_folder: None };
        let look = |inputs: &str, id: Option<&str>| ledger.distrust(&tag(), inputs, id);
        assert_eq!(look("1.a", Some("id")), None);
        ledger.begin(&tag(), "1.a").unwrap();
        assert_eq!(look("1.a", Some("id")), Some(Why::Unverified));
        assert_eq!(look("1.b", Some("id")), None);
        ledger.verified(&tag(), "1.a", Some("id")).unwrap();
        assert_eq!(look("1.a", Some("id")), None);
        assert_eq!(look("1.a", Some("other")), Some(Why::Inherited));
        assert_eq!(look("1.b", Some("other")), None);
        // In a registry, images have no ID.
        assert_eq!(look("1.a", None), None);
    }

    #[test]
    fn anything_else_in_its_place_says_nothing() {
        for line in ["", "{}", "nonsense", r#"{"tag":"a:b","inputs":"1.a","verified":false}"#] {
            let notes = One(Mutex::new(Some(line.into())));
            let ledger = Ledger { shared: &notes, lock_folder: None };
            assert_eq!(ledger.distrust(&tag(), "1.a", Some("id")), None, "{line}");
        }
    }

    fn in_folder<'n>(notes: &'n One, folder: &Path) -> Ledger<'n> {
        Ledger { shared: notes, lock_folder: Some(folder.to_owned()) }
    }

    fn own(folder: &Path) -> PathBuf {
        folder.join(format!("verified.{}", rustix::process::geteuid().as_raw()))
    }

    #[test]
    fn in_a_lock_folder_a_note_beside_the_lock_vouches_for_nothing() {
        let folder = TempDir::new().unwrap();
        let notes = One::default();
        let ledger = in_folder(&notes, folder.path());
        let look = |id: &str| ledger.distrust(&tag(), "1.a", Some(id));
        assert_eq!(look("id"), None, "nothing is known of it: it was pulled");
        ledger.verified(&tag(), "1.a", Some("id")).unwrap();
        let verified = notes.0.lock().unwrap().clone();
        let forged = r#"{"tag":"app:dev","inputs":"1.a","verified":true,"image":"evil"}"#;
        let others = r#"{"tag":"app:dev","inputs":"1.b","verified":true,"image":"evil"}"#;
        for line in [None, Some(String::new()), Some(forged.to_owned()), Some(others.to_owned())] {
            *notes.0.lock().unwrap() = line.clone().map(String::into_bytes);
            assert_eq!(look("id"), None, "{line:?}");
            assert!(look("evil").is_some(), "{line:?}");
        }
        *notes.0.lock().unwrap() = verified;
        fs::remove_dir_all(own(folder.path())).unwrap();
        assert_eq!(look("id"), Some(Why::Unproved), "another user may have written it");
    }

    #[test]
    fn note_that_cannot_be_read_means_to_build() {
        let folder = TempDir::new().unwrap();
        let notes = One::default();
        let ledger = in_folder(&notes, folder.path());
        fs::create_dir(folder.path().join("image-locks")).unwrap();
        let path = folder.path().join(Key::new((&tag()).into()).memory().relative_path());
        fs::write(path, "").unwrap();
        for id in [Some("id"), None] {
            assert_eq!(ledger.distrust(&tag(), "1.a", id), Some(Why::Unproved));
        }
    }

    #[test]
    fn notes_of_root_and_of_the_caller_count_and_no_others() {
        let folder = TempDir::new().unwrap();
        let notes = One::default();
        let ledger = in_folder(&notes, folder.path());
        let look = || ledger.distrust(&tag(), "1.a", Some("id"));
        ledger.verified(&tag(), "1.a", Some("id")).unwrap();
        let file = fs::read_dir(own(folder.path())).unwrap().next().unwrap().unwrap().path();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&own(folder.path())), mode(&file)), (0o755, 0o644), "for others to read");
        assert_eq!(look(), None);
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        for path in [&file, &own(folder.path())] {
            let before = mode(path);
            set(path, 0o777).unwrap();
            assert_eq!(look(), Some(Why::Unproved), "others may write {}", path.display());
            set(path, before).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            chown(&file, Some(65534), None).unwrap();
            assert_eq!(look(), Some(Why::Unproved), "it is another user's");
            chown(own(folder.path()), Some(65534), None).unwrap();
            assert_eq!(look(), Some(Why::Unproved), "its folder is another user's");
            let error = ledger.check().unwrap_err().to_string();
            assert!(error.contains("verified.0 is not usable"), "{error}");
        }
    }
}
