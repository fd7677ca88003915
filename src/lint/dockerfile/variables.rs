//! Words with quotes and variables, as BuildKit reads them in `ENV`, `ARG` and flags.

/// A character of a word whose quotes are gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Char {
    pub(super) char: char,
    /// Whether a `$` here begins a variable. It does not within single quotes or behind a
    /// backslash.
    expands: bool,
}

impl Char {
    /// Returns a text without quotes as characters.
    pub(super) fn all(text: &str) -> Vec<Char> {
        text.chars().map(|char| Char { char, expands: true }).collect()
    }
}

/// What is known about a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Known(String),
    /// Declared without a value.
    Unset,
    /// Known only to the build.
    Unknown,
}

/// The longest path in bytes (PATH_MAX). Without a bound, variables that contain each other twice
/// would fill the memory, and nested defaults would fill the stack.
const LONGEST: usize = 4096;

/// Splits the arguments of `ENV` and `ARG` into words.
pub(super) fn words(text: &str, escape: char) -> Vec<Vec<Char>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<Char>> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (None, _) if char.is_whitespace() => {
                words.extend(word.take());
                continue;
            }
            (Some(open), _) if char == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None | Some('"'), _) if char == escape => {
                let escaped = chars.next().map(|char| Char { char, expands: false });
                word.get_or_insert_default().extend(escaped);
            }
            _ => word.get_or_insert_default().push(Char { char, expands: quote != Some('\'') }),
        }
    }
    words.extend(word);
    words
}

/// Splits `name=value`. A name alone has no value.
pub(super) fn assignment(word: &[Char]) -> (String, Option<&[Char]>) {
    let name = word.iter().take_while(|it| it.char != '=').count();
    (string(&word[..name]), word.get(name + 1..))
}

/// Replaces variables by what `value` knows of them. Returns `None` if only the build knows the
/// result, or if it is longer than a path can be.
pub(super) fn expand(text: &[Char], value: &impl Fn(&str) -> Value) -> Option<String> {
    if text.len() > LONGEST {
        return None;
    }
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        if first.char == '$' && first.expands {
            let (variable, behind) = Variable::read(behind)?;
            expanded.push_str(&variable.expand(value)?);
            rest = behind;
        } else {
            expanded.push(first.char);
            rest = behind;
        }
    }
    (expanded.len() <= LONGEST).then_some(expanded)
}

/// `$NAME`, `${NAME}` or `${NAME:-word}`.
struct Variable<'a> {
    name: String,
    operation: Option<Operation<'a>>,
}

struct Operation<'a> {
    operator: char,
    word: &'a [Char],
    /// Whether an empty value counts as a value: `-` and not `:-`.
    takes_empty: bool,
}

impl<'a> Variable<'a> {
    /// Reads what stands behind a `$`. Returns the variable with the rest of the text.
    fn read(text: &'a [Char]) -> Option<(Self, &'a [Char])> {
        let has_braces = text.first().is_some_and(|it| it.char == '{');
        let text = if has_braces { &text[1..] } else { text };
        let is_name = |it: &&Char| it.char.is_ascii_alphanumeric() || it.char == '_';
        let (name, rest) = text.split_at(text.iter().take_while(is_name).count());
        let name = string(name);
        if !has_braces {
            return (!name.is_empty()).then_some((Variable { name, operation: None }, rest));
        }
        let end = closing_brace(rest)?;
        let operation = match &rest[..end] {
            [] => None,
            [Char { char: ':', .. }, Char { char, .. }, word @ ..] => {
                Some(Operation { operator: *char, word, takes_empty: false })
            }
            [Char { char, .. }, word @ ..] => {
                Some(Operation { operator: *char, word, takes_empty: true })
            }
        };
        Some((Variable { name, operation }, &rest[end + 1..]))
    }

    fn expand(&self, value: &impl Fn(&str) -> Value) -> Option<String> {
        let known = match value(&self.name) {
            Value::Known(value) => Some(value),
            Value::Unset => None,
            Value::Unknown => return None,
        };
        let Some(Operation { operator, word, takes_empty }) = &self.operation else {
            return known;
        };
        let counting = known.filter(|known| *takes_empty || !known.is_empty());
        match (operator, counting) {
            ('-', Some(value)) => Some(value),
            ('-', None) | ('+', Some(_)) => expand(word, value),
            ('+', None) => Some(String::new()),
            _ => None,
        }
    }
}

/// Returns where the `}` is that belongs to a `{` before the text.
fn closing_brace(text: &[Char]) -> Option<usize> {
    let mut depth = 0;
    text.iter().position(|it| match it.char {
        '{' => {
            depth += 1;
            false
        }
        '}' if depth > 0 => {
            depth -= 1;
            false
        }
        '}' => true,
        _ => false,
    })
}

/// Returns the characters as text.
pub(super) fn string(chars: &[Char]) -> String {
    chars.iter().map(|it| it.char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Option<String> {
        expand(&Char::all(text), &|name| match name {
            "A" => Value::Known("x".to_owned()),
            "EMPTY" => Value::Known(String::new()),
            "UNSET" => Value::Unset,
            _ => Value::Unknown,
        })
    }

    #[test]
    fn variables_and_their_defaults_are_expanded() {
        for (text, wanted) in [
            ("a", Some("a")),
            ("$A/b", Some("x/b")),
            ("${A}b", Some("xb")),
            ("$EMPTY", Some("")),
            ("${EMPTY:-$A}", Some("x")),
            ("${EMPTY-y}", Some("")),
            ("${UNSET-${A}}z", Some("xz")),
            ("${A:+y}", Some("y")),
            ("${EMPTY:+y}", Some("")),
            ("${EMPTY+y}", Some("y")),
        ] {
            assert_eq!(expanded(text).as_deref(), wanted, "{text}");
        }
        for text in ["$OTHER", "${OTHER:-a}", "$UNSET", "${A#a}", "${A", "$", "${A:}"] {
            assert_eq!(expanded(text), None, "{text}");
        }
    }

    #[test]
    fn quotes_and_escapes_keep_a_dollar_from_being_a_variable() {
        let expanded = |text: &str| {
            let words = words(text, '\\');
            let value = |_: &str| Value::Known("x".to_owned());
            words.iter().map(|word| expand(word, &value).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(expanded("a'$A' \"$A b\" \\$A ''"), ["a$A", "x b", "$A", ""]);
    }
}
