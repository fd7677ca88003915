//! A reader of command-line options, by the rules that pflag and getopt share.

use crate::go_bool;

/// Options of one program, by letter and by name.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub short: &'static str,
    pub long: &'static [&'static str],
}

impl Names {
    pub(super) const NONE: Names = Names { short: "", long: &[] };

    fn has(self, name: &str) -> bool {
        match name.len() {
            1 => self.short.contains(name),
            _ => self.long.contains(&name),
        }
    }
}

/// Which options of a program take a value.
#[derive(Clone, Copy)]
pub(super) enum Valued {
    Only(Names),
    AllBut(Names),
}

impl Valued {
    pub(super) fn has(self, name: &str) -> bool {
        match self {
            Valued::Only(names) => names.has(name),
            Valued::AllBut(names) => !names.has(name),
        }
    }
}

/// One option.
#[derive(Clone, Copy)]
pub(super) struct Opt<'a> {
    /// The letter or the name, without dashes.
    pub name: &'a str,
    pub value: Option<&'a str>,
}

impl Opt<'_> {
    /// Returns whether this switch is on: `--load`, `--load=true`.
    pub(super) fn is_on(&self) -> bool {
        self.value.and_then(go_bool::parse) != Some(false)
    }
}

/// Returns whether a word is an option. A lone dash is an operand.
pub(super) fn is_option(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-')
}

/// Reads the option at the start of `words` and returns how many words it took.
///
/// Calls `each` once for every letter that a word such as `-qt` combines.
pub(super) fn read_option<'a>(
    words: &[&'a str],
    valued: Valued,
    mut each: impl FnMut(Opt<'a>),
) -> usize {
    let word = words[0];
    let next = words.get(1).copied();
    let taken = match word.strip_prefix("--") {
        Some(long) => {
            let (opt, taken) = read_long(long, next, valued);
            each(opt);
            taken
        }
        None => read_letters(&word[1..], next, valued, each),
    };
    taken.min(words.len())
}

/// Reads `--name`, `--name=value` or `--name value`, given without its dashes.
fn read_long<'a>(long: &'a str, next: Option<&'a str>, valued: Valued) -> (Opt<'a>, usize) {
    match long.split_once('=') {
        Some((name, value)) => (Opt { name, value: Some(value) }, 1),
        None if valued.has(long) => (Opt { name: long, value: next }, 2),
        None => (Opt { name: long, value: None }, 1),
    }
}

/// Reads letters up to the first that takes a value: `-q`, `-qt x`, `-tx`, `-t=x`.
fn read_letters<'a>(
    letters: &'a str,
    next: Option<&'a str>,
    valued: Valued,
    mut each: impl FnMut(Opt<'a>),
) -> usize {
    for (at, letter) in letters.char_indices() {
        let (name, rest) = letters[at..].split_at(letter.len_utf8());
        if !valued.has(name) {
            each(Opt { name, value: None });
            continue;
        }
        let (value, taken) = match rest {
            "" => (next, 2),
            _ => (Some(rest.strip_prefix('=').unwrap_or(rest)), 1),
        };
        each(Opt { name, value });
        return taken;
    }
    1
}

/// Reads the options at the start of `words`, and returns where the first operand stands.
pub(super) fn skip_options<'a>(
    words: &[&'a str],
    valued: Valued,
    mut each: impl FnMut(Opt<'a>),
) -> usize {
    let mut at = 0;
    while words.get(at).is_some_and(|word| is_option(word)) {
        if words[at] == "--" {
            return at + 1;
        }
        at += read_option(&words[at..], valued, &mut each);
    }
    at
}

/// Reads options and operands in any order, and returns where the operands stand.
pub(super) fn operands(
    words: &[&str],
    valued: Valued,
    mut each: impl FnMut(Opt<'_>),
) -> Vec<usize> {
    let mut operands = Vec::new();
    let mut at = 0;
    while let Some(&word) = words.get(at) {
        if word == "--" {
            operands.extend(at + 1..words.len());
            break;
        }
        if is_option(word) {
            at += read_option(&words[at..], valued, &mut each);
        } else {
            operands.push(at);
            at += 1;
        }
    }
    operands
}
