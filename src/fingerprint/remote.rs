//! Sources that a builder fetches over the network, and whether they can change.
//!
//! See BuildKit's `dfgitutil.ParseGitRef`.

use crate::dockerfile::Dialect;

/// Whether what stands behind a source can change without a change of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remote {
    /// A checksum or a full commit holds it in place.
    Pinned,
    Moving,
}

impl Remote {
    /// Reads the source of an `ADD`, with the value of its `--checksum`. Returns none if it is a
    /// path.
    pub(super) fn of_add(source: &str, checksum: Option<&str>, dialect: Dialect) -> Option<Self> {
        let git = git_parts(source);
        if git.is_none() && !is_url(source) {
            return None;
        }
        // Other builders fetch a page where BuildKit fetches a commit.
        let is_pinned = dialect == Dialect::BuildKit
            && match git {
                Some(git) => git.is_pinned() || checksum.is_some_and(is_commit),
                None => checksum.is_some_and(is_digest),
            };
        Some(if is_pinned { Remote::Pinned } else { Remote::Moving })
    }

    /// Reads a build context. Returns none if it is a path.
    pub(crate) fn of_context(context: &str) -> Option<Self> {
        let is_short = context.starts_with("github.com/");
        let git = if is_short { Some(Git::of(context)) } else { git_parts(context) };
        match git {
            Some(git) if git.is_pinned() => Some(Remote::Pinned),
            Some(_) => Some(Remote::Moving),
            None => is_url(context).then_some(Remote::Moving),
        }
    }
}

/// Returns whether a source of `ADD` whose text is only known up to here could be remote.
pub(super) fn could_become_remote(start: &str, dialect: Dialect) -> bool {
    if dialect == Dialect::Legacy {
        return ["http://", "https://"]
            .iter()
            .any(|it| start.starts_with(it) || it.starts_with(start));
    }
    // A scheme or a user comes first, and neither contains these.
    let first = start.find(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
    first.is_none_or(|at| matches!(start.as_bytes()[at], b':' | b'@'))
}

/// What a git URL says behind the repository.
struct Git<'a> {
    query: &'a str,
    /// Behind the `#`, up to a folder.
    reference: &'a str,
}

impl<'a> Git<'a> {
    fn of(url: &'a str) -> Self {
        let (url, fragment) = url.split_once('#').unwrap_or((url, ""));
        let (_, query) = url.split_once('?').unwrap_or((url, ""));
        let reference = fragment.split(':').next().unwrap_or_default();
        Git { query, reference }
    }

    fn is_pinned(&self) -> bool {
        let fields = self.query.split('&').filter_map(|field| field.split_once('='));
        let mut commits = fields.filter(|(key, _)| matches!(*key, "ref" | "checksum" | "commit"));
        is_commit(self.reference) || commits.any(|(_, value)| is_commit(value))
    }
}

/// Reads a URL that BuildKit fetches with git.
fn git_parts(source: &str) -> Option<Git<'_>> {
    let path = source.split(['#', '?']).next().unwrap_or_default();
    let is_git = match path.split_once("://") {
        Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
            "git" | "ssh" => true,
            "http" | "https" => rest.ends_with(".git"),
            _ => false,
        },
        None => is_scp(path),
    };
    is_git.then(|| Git::of(source))
}

/// Matches `user@host:path`.
fn is_scp(path: &str) -> bool {
    let is_part = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    path.split_once('@').is_some_and(|(user, rest)| {
        is_part(user, "-_.") && rest.split_once(':').is_some_and(|(host, _)| is_part(host, "-_."))
    })
}

fn is_url(source: &str) -> bool {
    let scheme = source.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|it| !it.is_empty() && it.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// Returns whether a text is the whole hash of a commit.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && is_hex(text)
}

/// Returns whether a text is a whole digest.
fn is_digest(text: &str) -> bool {
    let is_whole = |hex: &str| matches!(hex.len(), 64 | 96 | 128) && is_hex(hex);
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        matches!(algorithm, "sha256" | "sha384" | "sha512") && is_whole(hex)
    })
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn only_whole_hashes_pin_what_is_fetched() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = |url: &str| url.replace("COMMIT", COMMIT);
        for (source, checksum, wanted) in [
            ("a/b.tar", None, None),
            ("a@b/c:d", None, None),
            ("https.tar", None, None),
            ("https://h/a.tar", None, Some(Remote::Moving)),
            ("HTTPS://h/a.tar", None, Some(Remote::Moving)),
            ("https://h/a.tar", Some(digest.as_str()), Some(Remote::Pinned)),
            ("https://h/a.tar", Some("sha256:aa"), Some(Remote::Moving)),
            ("https://h/a.git#main", None, Some(Remote::Moving)),
            ("https://h/a.git#main", Some(COMMIT), Some(Remote::Pinned)),
            ("https://h/a.git#0123456", None, Some(Remote::Moving)),
            ("https://h/a.git#COMMIT", None, Some(Remote::Pinned)),
            ("https://h/a.git#COMMIT:sub/dir", None, Some(Remote::Pinned)),
            ("https://h/a.git?branch=main", None, Some(Remote::Moving)),
            ("https://h/a.git?branch=main&commit=COMMIT", None, Some(Remote::Pinned)),
            ("https://h/a#COMMIT", None, Some(Remote::Moving)),
            ("git@h:a/b#COMMIT", None, Some(Remote::Pinned)),
            ("git@h:a/b", None, Some(Remote::Moving)),
            ("ssh://git@h/a", None, Some(Remote::Moving)),
            ("git://h/a.git", None, Some(Remote::Moving)),
        ] {
            let source = pinned(source);
            let read = Remote::of_add(&source, checksum, Dialect::BuildKit);
            assert_eq!(read, wanted, "{source}");
            let legacy = Remote::of_add(&source, checksum, Dialect::Legacy);
            assert_eq!(legacy, wanted.map(|_| Remote::Moving), "{source}");
        }
    }

    #[test]
    fn contexts_are_paths_or_pinned_or_moving() {
        for (context, wanted) in [
            (".".to_owned(), None),
            ("github.com".to_owned(), None),
            ("github.com/a/b".to_owned(), Some(Remote::Moving)),
            (format!("github.com/a/b#{COMMIT}"), Some(Remote::Pinned)),
            ("https://h/context.tar.gz".to_owned(), Some(Remote::Moving)),
            (format!("https://h/a.git#{COMMIT}:sub"), Some(Remote::Pinned)),
            (format!("https://h/a.tar#{COMMIT}"), Some(Remote::Moving)),
        ] {
            assert_eq!(Remote::of_context(&context), wanted, "{context}");
        }
    }

    #[test]
    fn start_of_a_source_may_rule_out_that_it_is_remote() {
        let could = could_become_remote;
        for start in ["", "http", "https://h/", "git@", "user-1"] {
            assert!(could(start, Dialect::BuildKit), "{start}");
        }
        for start in ["./", "dist/a-", "a.tar", "/"] {
            assert!(!could(start, Dialect::BuildKit), "{start}");
        }
        assert!(could("ht", Dialect::Legacy) && could("http://h", Dialect::Legacy));
        assert!(!could("app-", Dialect::Legacy));
    }
}
