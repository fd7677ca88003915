//! Patterns for paths, component by component.
//!
//! A pattern describes the end of a path. `*` stands for any component, `**` at the end for any
//! number of them, and a leading `/` means the whole path.

/// Splits a path, and resolves `.` and `..`.
pub(super) fn components(path: &str) -> Vec<&str> {
    let mut components = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => _ = components.pop(),
            _ => components.push(component),
        }
    }
    components
}

/// Returns whether the path ends as the pattern has it.
pub(super) fn matches(pattern: &str, path: &[&str]) -> bool {
    let wanted = components(pattern);
    let (wanted, below) = match wanted.split_last() {
        Some((&"**", wanted)) => (wanted, true),
        _ => (wanted.as_slice(), false),
    };
    let starts = if pattern.starts_with('/') { 0..1 } else { 0..path.len() };
    starts.filter_map(|start| path.get(start..)).any(|rest| {
        let is_same = |(wanted, there): (&&str, &&str)| *wanted == "*" || wanted == there;
        let has_length =
            if below { rest.len() >= wanted.len() } else { rest.len() == wanted.len() };
        has_length && wanted.iter().zip(rest).all(is_same)
    })
}

/// Returns whether the path is that of a folder above those that the pattern describes.
pub(super) fn is_above(pattern: &str, path: &[&str]) -> bool {
    let mut wanted = components(pattern);
    if wanted.last() == Some(&"**") {
        wanted.pop();
    }
    if pattern.starts_with('/') {
        return !path.is_empty() && path.len() < wanted.len() && wanted.starts_with(path);
    }
    let is_home = matches!(path, ["root"] | ["home", _]);
    let ends_with = |count: usize| path.ends_with(&wanted[..count]);
    is_home && wanted[0].starts_with('.') || (1..wanted.len()).any(ends_with)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_is_the_end_of_a_path_or_all_of_it() {
        let matches = |pattern, path| matches(pattern, &components(path));
        assert!(matches("a/b", "/x/./a//b/"));
        assert!(matches("a/b", "/x/y/../a/b"));
        assert!(!matches("a/b", "/x/a/b/c"));
        assert!(!matches("a/b", "/xa/b"));
        assert!(matches("a/**", "/x/a") && matches("a/**", "/x/a/b/c"));
        assert!(matches("a/*/c", "/a/b/c") && !matches("a/*/c", "/a/c"));
        assert!(matches("/a/b", "/a/b") && !matches("/a/b", "/x/a/b"));
    }

    #[test]
    fn folders_above_a_pattern_are_known() {
        let is_above = |pattern, path| is_above(pattern, &components(path));
        assert!(is_above(".cache/pip/**", "/x/.cache") && is_above(".cache/pip/**", "/root"));
        assert!(is_above(".cache/pip/**", "/home/me") && !is_above(".cache/pip/**", "/home"));
        assert!(is_above("/var/cache/apt/**", "/var/cache") && !is_above("/var/cache", "/x/var"));
        assert!(!is_above("/var/cache", "/"));
    }
}
