//! What is remembered beside a tag's lock of the build that last had it.
//!
//! Labels are inherited: `FROM app:dev` with `-t app:dev`, and `docker commit`, give another image
//! the label of the first. A note can only distrust such an image. Anybody may have written
//! anything there, and so cause a build, but never a skip.

use anyhow::Result;
use serde::{Deserialize, Serialize};

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

/// Returns why an image with this label and ID does not count, if a note says so.
pub(crate) fn distrust(
    notes: &dyn Notes,
    tag: &Tag,
    inputs: &str,
    id: Option<&str>,
) -> Option<Why> {
    let line = notes.note(&Key::new(tag.into()))?;
    let note: Note = serde_json::from_slice(&line).ok()?;
    if note.tag != tag.as_str() || note.inputs != inputs {
        return None;
    }
    if !note.verified {
        return Some(Why::Unverified);
    }
    let is_another = note.image.is_some_and(|image| id.is_some_and(|id| image != id));
    is_another.then_some(Why::Inherited)
}

/// Notes that a build from these inputs begins. If it does not end, its image counts as unverified.
///
/// # Errors
/// The note cannot be written.
pub(crate) fn begin(notes: &dyn Notes, tag: &Tag, inputs: &str) -> Result<()> {
    write(notes, tag, inputs, false, None)
}

/// Notes that the image of a build from these inputs was verified.
///
/// # Errors
/// The note cannot be written.
pub(crate) fn verified(notes: &dyn Notes, tag: &Tag, inputs: &str, id: Option<&str>) -> Result<()> {
    write(notes, tag, inputs, true, id)
}

fn write(
    notes: &dyn Notes,
    tag: &Tag,
    inputs: &str,
    verified: bool,
    image: Option<&str>,
) -> Result<()> {
    let (tag_text, inputs) = (tag.as_str().to_owned(), inputs.to_owned());
    let note = Note { tag: tag_text, inputs, verified, image: image.map(str::to_owned) };
    let line = serde_json::to_vec(&note)?;
    notes.update_note(&Key::new(tag.into()), &mut |_| Some(line.clone()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

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
        let notes = One::default();
        let look = |inputs: &str, id: Option<&str>| distrust(&notes, &tag(), inputs, id);
        assert_eq!(look("1.a", Some("id")), None);
        begin(&notes, &tag(), "1.a").unwrap();
        assert_eq!(look("1.a", Some("id")), Some(Why::Unverified));
        assert_eq!(look("1.b", Some("id")), None);
        verified(&notes, &tag(), "1.a", Some("id")).unwrap();
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
            assert_eq!(distrust(&notes, &tag(), "1.a", Some("id")), None, "{line}");
        }
    }
}
