//! Shell patterns in `${NAME#pattern}`, as BuildKit turns them into regular expressions.

use std::collections::HashSet;

/// A pattern: `*` is any text, `?` any character. There are no brackets.
pub(super) struct Pattern(Vec<Token>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Any,
    One,
    Char(char),
}

impl Pattern {
    /// Parses a pattern. Returns none if BuildKit would refuse it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(char) = chars.next() {
            tokens.push(match char {
                '*' => Token::Any,
                '?' => Token::One,
                // These end the pattern in a Dockerfile unless they are escaped.
                '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
                '\\' => Token::Char(chars.next().filter(|it| matches!(it, '*' | '?' | '\\'))?),
                _ => Token::Char(char),
            });
        }
        Some(Pattern(tokens))
    }

    /// Returns a value without the shortest or longest start that matches.
    pub(super) fn without_prefix(&self, value: &str, is_greedy: bool) -> Option<String> {
        let chars = characters(value)?;
        let end = Match::new(&self.0, &chars, is_greedy).end(0).unwrap_or(0);
        Some(chars[end..].iter().collect())
    }

    /// Returns a value without the shortest or longest end that matches.
    pub(super) fn without_suffix(mut self, value: &str, is_greedy: bool) -> Option<String> {
        // Both are read backwards, as in BuildKit.
        self.0.reverse();
        let mut chars = characters(value)?;
        chars.reverse();
        let end = Match::new(&self.0, &chars, is_greedy).end(0).unwrap_or(0);
        Some(chars[end..].iter().rev().collect())
    }

    /// Returns a value with the first match, or with all of them, replaced.
    pub(super) fn replaced(
        &self,
        value: &str,
        replacement: &str,
        is_for_all: bool,
    ) -> Option<String> {
        let matches_nothing = self.0.iter().all(|token| *token == Token::Any);
        // BuildKit expands `$1` in this case, and repeats empty matches by Go's rules.
        if is_for_all && (replacement.contains('$') || matches_nothing) {
            return None;
        }
        let chars = characters(value)?;
        let mut search = Match::new(&self.0, &chars, true);
        let mut replaced = String::new();
        let mut at = 0;
        loop {
            if let Some(end) = search.end(at) {
                replaced.push_str(replacement);
                at = end;
                if !is_for_all {
                    break;
                }
            } else if let Some(char) = chars.get(at) {
                replaced.push(*char);
                at += 1;
            } else {
                break;
            }
        }
        replaced.extend(&chars[at..]);
        Some(replaced)
    }
}

/// Returns the characters of a value. A `.` of Go's does not match a newline.
fn characters(value: &str) -> Option<Vec<char>> {
    (!value.contains('\n')).then(|| value.chars().collect())
}

/// Matches a pattern at places of one text.
struct Match<'a> {
    tokens: &'a [Token],
    chars: &'a [char],
    is_greedy: bool,
    /// Pairs of token and place that are known not to lead to a match. They keep the time
    /// quadratic.
    failed: HashSet<(usize, usize)>,
}

impl<'a> Match<'a> {
    fn new(tokens: &'a [Token], chars: &'a [char], is_greedy: bool) -> Self {
        Match { tokens, chars, is_greedy, failed: HashSet::new() }
    }

    /// Returns where a match that begins here ends.
    fn end(&mut self, start: usize) -> Option<usize> {
        self.end_from(0, start)
    }

    fn end_from(&mut self, mut token: usize, mut at: usize) -> Option<usize> {
        loop {
            let Some(this) = self.tokens.get(token) else { return Some(at) };
            let is_met = match this {
                Token::Any => return self.end_from_any(token, at),
                Token::One => at < self.chars.len(),
                Token::Char(char) => self.chars.get(at) == Some(char),
            };
            if !is_met {
                return None;
            }
            (token, at) = (token + 1, at + 1);
        }
    }

    fn end_from_any(&mut self, token: usize, at: usize) -> Option<usize> {
        let length = self.chars.len() - at;
        for step in 0..=length {
            let next = if self.is_greedy { self.chars.len() - step } else { at + step };
            if self.failed.contains(&(token, next)) {
                continue;
            }
            match self.end_from(token + 1, next) {
                Some(end) => return Some(end),
                None => _ = self.failed.insert((token, next)),
            }
        }
        None
    }
}
