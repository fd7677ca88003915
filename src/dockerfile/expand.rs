//! Variables in a Dockerfile, as BuildKit's `shell.Lex` expands them
//! (<https://github.com/moby/buildkit/blob/v0.30/frontend/dockerfile/shell/lex.go>).

use std::iter::Peekable;
use std::str::Chars;

use super::pattern::Pattern;

/// What is known about a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Known(String),
    /// It certainly has no value.
    Unset,
    /// Declared without a value. A caller may give it one.
    Declared,
    /// Known only to the build.
    Unknown,
}

/// The longest path in bytes (PATH_MAX), and more than any image reference has. Without a bound,
/// variables that contain each other twice would fill the memory, and nested defaults would fill
/// the stack.
const LONGEST: usize = 4096;

/// Removes quotes, and replaces variables by what `value` knows of them. Returns `None` if only the
/// build knows the result, if the text has a form that is not known here, or if the result is
/// longer than a path can be.
pub(crate) fn expand(text: &str, escape: char, value: &impl Fn(&str) -> Value) -> Option<String> {
    // Go's scanner drops a byte order mark.
    if text.len() > LONGEST || text.starts_with('\u{feff}') {
        return None;
    }
    let mut lexer = Lexer { chars: text.chars().peekable(), escape, keeps_escapes: false, value };
    lexer.until(None).ok()?.filter(|expanded| expanded.len() <= LONGEST)
}

/// BuildKit would refuse the text, or has learnt a form that is not known here.
struct Refused;

/// What a part of the text expands to. `None` if only the build knows.
type Expanded = Option<String>;

struct Lexer<'t, V> {
    chars: Peekable<Chars<'t>>,
    escape: char,
    /// Whether escape characters stay in the result: in patterns, which have their own.
    keeps_escapes: bool,
    value: &'t V,
}

impl<V: Fn(&str) -> Value> Lexer<'_, V> {
    /// Expands the text up to this character, or up to its end.
    fn until(&mut self, stop: Option<char>) -> Result<Expanded, Refused> {
        let mut expanded = Some(String::new());
        while let Some(char) = self.chars.next() {
            if Some(char) == stop {
                return Ok(expanded);
            }
            match char {
                '$' => add(&mut expanded, self.variable()?),
                '\'' => add(&mut expanded, self.single_quoted()?),
                '"' => add(&mut expanded, self.double_quoted()?),
                _ if char == self.escape => {
                    push(&mut expanded, Some(char).filter(|_| self.keeps_escapes));
                    push(&mut expanded, self.chars.next());
                }
                _ => push(&mut expanded, Some(char)),
            }
        }
        if stop.is_some() { Err(Refused) } else { Ok(expanded) }
    }

    fn single_quoted(&mut self) -> Result<Expanded, Refused> {
        let mut quoted = String::new();
        loop {
            match self.chars.next().ok_or(Refused)? {
                '\'' => return Ok(Some(quoted)),
                char => quoted.push(char),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<Expanded, Refused> {
        let mut quoted = Some(String::new());
        loop {
            match self.chars.next().ok_or(Refused)? {
                '"' => return Ok(quoted),
                '$' => add(&mut quoted, self.variable()?),
                char if char == self.escape => {
                    push(&mut quoted, Some(char).filter(|_| self.keeps_escapes));
                    let escape = self.escape;
                    let escaped = |next: &char| matches!(next, '"' | '$') || *next == escape;
                    match self.chars.next_if(escaped) {
                        Some(next) => push(&mut quoted, Some(next)),
                        // It escapes nothing here, and stays.
                        None if self.chars.peek().is_some() => push(&mut quoted, Some(char)),
                        None => {}
                    }
                }
                char => push(&mut quoted, Some(char)),
            }
        }
    }

    /// Expands what stands behind a `$`.
    fn variable(&mut self) -> Result<Expanded, Refused> {
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name()?;
            if name.is_empty() {
                return Ok(Some("$".to_owned()));
            }
            return Ok(plain((self.value)(&name)));
        }
        let name = self.name()?;
        if name.is_empty() {
            return Err(Refused);
        }
        match self.chars.next().ok_or(Refused)? {
            '}' => Ok(plain((self.value)(&name))),
            ':' => {
                let operator = self.chars.next().ok_or(Refused)?;
                if matches!(operator, '#' | '%') {
                    return Err(Refused);
                }
                self.conditional(&name, operator, Empty::CountsAsUnset)
            }
            operator @ ('-' | '+' | '?') => self.conditional(&name, operator, Empty::IsAValue),
            operator @ ('#' | '%') => self.trimmed(&name, operator),
            '/' => self.replaced(&name),
            _ => Err(Refused),
        }
    }

    /// Reads a name: letters and digits, or one special parameter.
    fn name(&mut self) -> Result<String, Refused> {
        let mut name = String::new();
        match self.chars.peek() {
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!' | '0') => {
                name.extend(self.chars.next());
                return Ok(name);
            }
            Some('1'..='9') => {
                while let Some(digit) = self.chars.next_if(char::is_ascii_digit) {
                    name.push(digit);
                }
                return Ok(name);
            }
            _ => {}
        }
        let is_part = |char: &char| char.is_alphanumeric() || *char == '_';
        while let Some(char) = self.chars.next_if(is_part) {
            // Unicode's tables are not the same everywhere.
            if !char.is_ascii() {
                return Err(Refused);
            }
            name.push(char);
        }
        Ok(name)
    }

    /// Expands a word up to the closing brace or to this character.
    fn operand(&mut self, stop: char, keeps_escapes: bool) -> Result<Expanded, Refused> {
        let before = std::mem::replace(&mut self.keeps_escapes, keeps_escapes);
        let word = self.until(Some(stop));
        self.keeps_escapes = before;
        word
    }

    /// Expands `${NAME-word}`, `${NAME:+word}` and the like.
    fn conditional(
        &mut self,
        name: &str,
        operator: char,
        empty: Empty,
    ) -> Result<Expanded, Refused> {
        let word = self.operand('}', false)?;
        let value = match (self.value)(name) {
            Value::Known(value) if value.is_empty() && empty == Empty::CountsAsUnset => {
                Value::Unset
            }
            value => value,
        };
        match (operator, value) {
            ('-' | '+' | '?', Value::Unknown) | ('?', Value::Declared) => Ok(None),
            ('-' | '?', Value::Known(value)) => Ok(Some(value)),
            ('-', Value::Unset | Value::Declared) | ('+', Value::Known(_)) => Ok(word),
            ('+', Value::Unset | Value::Declared) => Ok(Some(String::new())),
            _ => Err(Refused),
        }
    }

    /// Expands `${NAME#pattern}` and `${NAME%pattern}`.
    fn trimmed(&mut self, name: &str, operator: char) -> Result<Expanded, Refused> {
        let word = self.operand('}', true)?;
        let (Some(word), Some(value)) = (word, plain((self.value)(name))) else { return Ok(None) };
        let (pattern, is_greedy) = match word.strip_prefix(operator) {
            Some(pattern) => (pattern, true),
            None => (word.as_str(), false),
        };
        let pattern = Pattern::parse(pattern).ok_or(Refused)?;
        match operator {
            '#' => pattern.without_prefix(&value, is_greedy),
            _ => pattern.without_suffix(&value, is_greedy),
        }
        .map(Some)
        .ok_or(Refused)
    }

    /// Expands `${NAME/pattern/replacement}` and `${NAME//pattern/replacement}`.
    fn replaced(&mut self, name: &str) -> Result<Expanded, Refused> {
        let is_for_all = self.chars.next_if_eq(&'/').is_some();
        let pattern = self.operand('/', true)?;
        let replacement = self.operand('}', true)?;
        let value = plain((self.value)(name));
        let (Some(pattern), Some(replacement), Some(value)) = (pattern, replacement, value) else {
            return Ok(None);
        };
        let pattern = Pattern::parse(&pattern).ok_or(Refused)?;
        let replaced = pattern.replaced(&value, &replacement, is_for_all);
        replaced.map(Some).ok_or(Refused)
    }
}

/// Whether an empty value is one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Empty {
    IsAValue,
    /// `:-` and not `-`.
    CountsAsUnset,
}

fn plain(value: Value) -> Expanded {
    match value {
        Value::Known(value) => Some(value),
        Value::Unset => Some(String::new()),
        Value::Declared | Value::Unknown => None,
    }
}

fn add(text: &mut Expanded, more: Expanded) {
    match (text.as_mut(), more) {
        (Some(text), Some(more)) if text.len() <= LONGEST => text.push_str(&more),
        _ => *text = None,
    }
}

fn push(text: &mut Expanded, char: Option<char>) {
    if let Some(text) = text {
        text.extend(char);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(name: &str) -> Value {
        match name {
            "A" => Value::Known("x".to_owned()),
            "V" => Value::Known("a/b/c:1.2-x".to_owned()),
            "EMPTY" => Value::Known(String::new()),
            "UNSET" => Value::Unset,
            "DECLARED" => Value::Declared,
            _ => Value::Unknown,
        }
    }

    #[track_caller]
    fn check(cases: &[(&str, &str)]) {
        for (text, wanted) in cases {
            assert_eq!(expand(text, '\\', &value).as_deref(), Some(*wanted), "{text}");
        }
    }

    #[test]
    fn variables_and_their_defaults_are_expanded() {
        check(&[
            ("a", "a"),
            ("$A/b", "x/b"),
            ("${A}b", "xb"),
            ("$EMPTY$UNSET", ""),
            ("${EMPTY:-$A}", "x"),
            ("${EMPTY-y}", ""),
            ("${UNSET-${A}}z", "xz"),
            ("${DECLARED:-y}${DECLARED+z}", "y"),
            ("${A:+y}", "y"),
            ("${EMPTY:+y}", ""),
            ("${EMPTY+y}", "y"),
            ("${UNSET+$OTHER}", ""),
            ("${A:-$OTHER}", "x"),
            ("${A?}${A:?why}${EMPTY?}", "xx"),
            ("${UNSET:-a{b}c}", "a{bc}"),
            ("$", "$"),
            ("a$/b", "a$/b"),
        ]);
    }

    #[test]
    fn what_cannot_be_told_is_never_told() {
        for text in [
            "$OTHER",
            "${OTHER:-a}",
            "${OTHER+a}",
            "$DECLARED",
            "${DECLARED#a}",
            "${A",
            "${A:}",
            "${A:-a",
            "${}",
            "${:-a}",
            "${A:#x}",
            "${A^^}",
            "${A@Q}",
            "${A:1:2}",
            "${UNSET?}",
            "${EMPTY:?why}",
            "$é",
            "'a",
            "\"a",
            "${A#\\q}",
            "${A//a/$1}",
        ] {
            assert_eq!(expand(text, '\\', &value), None, "{text}");
        }
    }

    #[test]
    fn quotes_and_escapes_keep_a_dollar_from_being_a_variable() {
        check(&[
            ("'$A'", "$A"),
            ("\"$A b\"", "x b"),
            ("\\$A", "$A"),
            ("\"\\$A\\a\\\\\"", "$A\\a\\"),
            ("''", ""),
            ("a\\", "a"),
            ("${UNSET:-'}'}", "}"),
            ("${UNSET:-\\}}", "}"),
            ("\"${UNSET:-\"a b\"}\"", "a b"),
        ]);
        assert_eq!(expand("`$A\\$A", '`', &value).as_deref(), Some("$A\\x"));
    }

    #[test]
    fn patterns_cut_and_replace() {
        check(&[
            ("${V#*/}", "b/c:1.2-x"),
            ("${V##*/}", "c:1.2-x"),
            ("${V%-*}", "a/b/c:1.2"),
            ("${V%/*}", "a/b"),
            ("${V%%/*}", "a"),
            ("${V%$A}", "a/b/c:1.2-"),
            ("${V#nothing}", "a/b/c:1.2-x"),
            ("${V/\\//_}", "a_b/c:1.2-x"),
            ("${V//\\//_}", "a_b_c:1.2-x"),
            ("${V/:*/}", "a/b/c"),
            ("${V//?./n}", "a/b/c:n2-x"),
            ("${UNSET#a}${UNSET/a/b}", ""),
        ]);
    }

    #[test]
    fn variables_that_double_each_other_end() {
        let long = "x".repeat(3000);
        let value = |_: &str| Value::Known(long.clone());
        assert_eq!(expand("$A", '\\', &value).map(|it| it.len()), Some(3000));
        assert_eq!(expand("$A$A$A$A", '\\', &value), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r#"([$]\{?|[AVE#%/:?+*}'"\\`-]|\PC){0,60}"#) {
            let _ = expand(&text, '\\', &value);
            let _ = expand(&text, '`', &value);
        }
    }
}
