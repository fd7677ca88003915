//! A cache as typed on the command line.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A cache that the build command writes, as typed: `ID` or `ID=FILE,...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    pub(super) id: String,
    pub(super) files: Vec<PathBuf>,
}

impl Use {
    /// Reads `ID` or `ID=FILE,...`.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn parse(text: &OsStr) -> Result<Self, &'static str> {
        /// In bytes: the id appears in messages and in the lock file, which people read.
        const LONGEST: usize = 1024;
        let mut parts = text.as_bytes().splitn(2, |&c| c == b'=');
        let id = parts.next().unwrap_or_default();
        let id = std::str::from_utf8(id).map_err(|_| "a cache's id must be UTF-8")?;
        if id.is_empty() {
            return Err("a cache needs an id");
        }
        if id.len() > LONGEST {
            return Err("a cache's id has at most 1,024 bytes");
        }
        if id.chars().any(char::is_control) {
            return Err("a cache's id has no control characters");
        }
        let files = match parts.next() {
            None => Vec::new(),
            Some(files) => {
                files.split(|&c| c == b',').map(|it| OsStr::from_bytes(it).into()).collect()
            }
        };
        if files.iter().any(|file: &PathBuf| file.as_os_str().is_empty()) {
            return Err("a file name is missing after '=' or ','");
        }
        Ok(Use { id: id.to_owned(), files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Use, &'static str> {
        Use::parse(OsStr::new(text))
    }

    #[test]
    fn a_cache_is_an_id_with_or_without_files() {
        let of = |id: &str, files: &[&str]| {
            Ok(Use { id: id.into(), files: files.iter().map(PathBuf::from).collect() })
        };
        assert_eq!(parse("cargo"), of("cargo", &[]));
        assert_eq!(parse("cargo=Cargo.lock"), of("cargo", &["Cargo.lock"]));
        assert_eq!(parse("npm cache=a/b,c=d"), of("npm cache", &["a/b", "c=d"]));
    }

    #[test]
    fn what_is_no_cache_is_refused() {
        for text in ["", "=a", "a=", "a=b,", "a=,b", "a\n", "\u{7f}", &"x".repeat(1025)] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
