//! Character classes and escapes in patterns: the rules of Go's `filepath.Match`, by which Docker
//! checks a pattern, and those of Go's `regexp`, by which it matches.

/// A set of characters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Set {
    Char(char),
    NotNewline,
    Class { is_negated: bool, ranges: Vec<(char, char)> },
}

impl Set {
    pub(super) fn contains(&self, c: char) -> bool {
        match self {
            Set::Char(own) => *own == c,
            Set::NotNewline => c != '\n',
            Set::Class { is_negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *is_negated
            }
        }
    }
}

/// Why an expression cannot be matched here.
pub(super) enum NotMatchable {
    /// Go refuses it.
    Refused,
    /// Go gives it a meaning that is not written here.
    Unclear,
}

/// Reads what follows a backslash in Go's regular expressions.
pub(super) fn escaped(rest: &mut &str) -> Result<char, NotMatchable> {
    /// These stand for classes of characters, places, or characters by number.
    const SPECIAL: &str = "AbBQzpPdDsSwWx01234567";
    let c = rest.chars().next().ok_or(NotMatchable::Refused)?;
    *rest = &rest[c.len_utf8()..];
    match c {
        'a' => Ok('\x07'),
        'f' => Ok('\x0c'),
        'n' => Ok('\n'),
        'r' => Ok('\r'),
        't' => Ok('\t'),
        'v' => Ok('\x0b'),
        c if SPECIAL.contains(c) => Err(NotMatchable::Unclear),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(c),
        _ => Err(NotMatchable::Refused),
    }
}

/// Reads the rest of a class, after its `[`.
pub(super) fn class(rest: &mut &str) -> Result<Set, NotMatchable> {
    let is_negated = take(rest, "^");
    let mut ranges = Vec::new();
    let mut is_first = true;
    while is_first || !take(rest, "]") {
        is_first = false;
        if rest.starts_with("[:") {
            return Err(NotMatchable::Unclear);
        }
        let low = class_char(rest)?;
        let is_range = rest.starts_with('-') && rest.len() > 1 && !rest.starts_with("-]");
        let high = if is_range && take(rest, "-") { class_char(rest)? } else { low };
        if high < low {
            return Err(NotMatchable::Refused);
        }
        ranges.push((low, high));
    }
    Ok(Set::Class { is_negated, ranges })
}

fn class_char(rest: &mut &str) -> Result<char, NotMatchable> {
    if take(rest, "\\") {
        return escaped(rest);
    }
    let c = rest.chars().next().ok_or(NotMatchable::Refused)?;
    *rest = &rest[c.len_utf8()..];
    Ok(c)
}

fn take(rest: &mut &str, word: &str) -> bool {
    let after = rest.strip_prefix(word);
    *rest = after.unwrap_or(rest);
    after.is_some()
}

/// Returns whether `filepath.Match` takes a pattern. What it takes can still be refused as a regular
/// expression (`[z-a]`).
pub(super) fn is_valid(pattern: &str) -> bool {
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let is_valid = match c {
            '\\' => drop_char(&mut rest),
            '[' => skip_class(&mut rest).is_some(),
            _ => true,
        };
        if !is_valid {
            return false;
        }
    }
    true
}

fn drop_char(rest: &mut &str) -> bool {
    let mut chars = rest.chars();
    let dropped = chars.next().is_some();
    *rest = chars.as_str();
    dropped
}

fn skip_class(rest: &mut &str) -> Option<()> {
    take(rest, "^");
    let mut is_first = true;
    while is_first || !take(rest, "]") {
        is_first = false;
        skip_class_char(rest)?;
        if take(rest, "-") {
            skip_class_char(rest)?;
        }
    }
    Some(())
}

/// A class must go on after each of its characters.
fn skip_class_char(rest: &mut &str) -> Option<()> {
    if rest.starts_with(['-', ']']) {
        return None;
    }
    take(rest, "\\");
    (drop_char(rest) && !rest.is_empty()).then_some(())
}
