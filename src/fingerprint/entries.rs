//! The options that count, in a form that can be hashed and in one that can be shown.

use std::ffi::OsString;

use crate::command;

/// One thing that counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    /// The name of the option, the argument, the label or the variable.
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EntryKind {
    Option,
    BuildArg,
    Label,
    Variable,
}

impl EntryKind {
    fn name(self) -> &'static str {
        match self {
            EntryKind::Option => "option",
            EntryKind::BuildArg => "build-arg",
            EntryKind::Label => "label",
            EntryKind::Variable => "variable",
        }
    }
}

/// Returns entries as bytes that no other entries have: each text follows its length.
pub(crate) fn to_bytes(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = (entries.len() as u64).to_le_bytes().to_vec();
    for entry in entries {
        for text in [entry.kind.name(), &entry.name, &entry.value] {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// Returns whether the value of a variable is no secret.
fn is_shown(variable: &str) -> bool {
    const SHOWN: [&str; 4] =
        ["SOURCE_DATE_EPOCH", "BUILDAH_FORMAT", "BUILDAH_LAYERS", "BUILDAH_ISOLATION"];
    SHOWN.contains(&variable) || variable.starts_with("BUILDX_")
}

impl std::fmt::Display for Entry {
    /// Writes the entry as the build command has it, without what may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Entry { kind, name, value } = self;
        let words = match kind {
            EntryKind::Option if name == "context" => vec![value.clone()],
            EntryKind::Option if value.is_empty() => vec![format!("--{name}")],
            EntryKind::Option if name == "annotation" => {
                let key = value.split('=').next().unwrap_or_default();
                vec![format!("--{name}"), key.to_owned()]
            }
            EntryKind::Option => vec![format!("--{name}"), value.clone()],
            EntryKind::BuildArg => vec!["--build-arg".to_owned(), format!("{name}={value}")],
            EntryKind::Label => vec!["--label".to_owned(), format!("{name}={value}")],
            EntryKind::Variable if is_shown(name) => return write!(f, "{name}={value}"),
            EntryKind::Variable => return f.write_str(name),
        };
        // The first word would be a program, and is not shown.
        let words: Vec<_> =
            ["build".to_owned()].into_iter().chain(words).map(OsString::from).collect();
        let shown = command::describe(&words);
        f.write_str(shown.strip_prefix("build ").unwrap_or(&shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: EntryKind, name: &str, value: &str) -> Entry {
        Entry { kind, name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn bytes_tell_where_each_text_ends() {
        let one = to_bytes(&[entry(EntryKind::Label, "ab", "c")]);
        assert_ne!(one, to_bytes(&[entry(EntryKind::Label, "a", "bc")]));
        assert_ne!(one, to_bytes(&[entry(EntryKind::BuildArg, "ab", "c")]));
        assert_eq!(to_bytes(&[]), [0; 8]);
    }

    #[test]
    fn secrets_are_not_shown() {
        // Without the quotes that a shell needs.
        let shown =
            |kind, name: &str, value: &str| entry(kind, name, value).to_string().replace('\'', "");
        assert_eq!(shown(EntryKind::BuildArg, "TOKEN", "s3cret"), "--build-arg TOKEN");
        assert_eq!(shown(EntryKind::Label, "a", "b"), "--label a=b");
        assert_eq!(shown(EntryKind::Option, "squash", ""), "--squash");
        assert_eq!(shown(EntryKind::Option, "creds", "u:s3cret"), "--creds …");
        assert_eq!(shown(EntryKind::Option, "network", "host"), "--network host");
        assert_eq!(shown(EntryKind::Option, "context", "https://u:p@h/a"), "https://…@h/a");
        assert_eq!(shown(EntryKind::Variable, "BUILDAH_FORMAT", "oci"), "BUILDAH_FORMAT=oci");
        assert_eq!(shown(EntryKind::Variable, "BUILDX_A", "1"), "BUILDX_A=1");
        assert_eq!(shown(EntryKind::Variable, "BUILDAH_CPPFLAGS", "-Ds3cret"), "BUILDAH_CPPFLAGS");
        assert_eq!(shown(EntryKind::Option, "annotation", "a=s3cret"), "--annotation a");
    }
}
