//! The words of `ENV` and `ARG`, as BuildKit's `parseWords` separates them
//! (frontend/dockerfile/parser/line_parsers.go). Quotes and variables stay in them.

use super::joined::BLANKS;

/// Returns the names and values of an `ENV`, or none where BuildKit would refuse it.
pub(crate) fn env_pairs(arguments: &str, escape: char) -> Option<Vec<(String, String)>> {
    let words = words(arguments, escape);
    if words.first()?.contains('=') {
        let pair = |word: &String| {
            word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        return words.iter().map(pair).collect();
    }
    // ENV name the rest is the value
    let (name, value) = arguments.trim().split_once(char::is_whitespace)?;
    Some(vec![(name.to_owned(), value.trim_start().to_owned())])
}

/// Returns the names that an `ARG` declares, with their defaults.
pub(crate) fn arg_pairs(arguments: &str, escape: char) -> Vec<(String, Option<String>)> {
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word, None),
    };
    words(arguments, escape).into_iter().map(pair).collect()
}

/// Returns the words of a `COPY` or `ADD`, which may also be a list in JSON.
pub(crate) fn words_or_list(arguments: &str) -> Vec<String> {
    let arguments = arguments.trim();
    // What follows the list does not count.
    let list = serde_json::Deserializer::from_str(arguments).into_iter().next();
    match list {
        Some(Ok(list)) => list,
        _ => {
            let words = arguments.split(BLANKS).filter(|word| !word.is_empty());
            words.map(str::to_owned).collect()
        }
    }
}

/// Splits a text at blanks that are neither quoted nor escaped.
fn words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if quote.is_none() && char.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match quote {
            Some(open) if char == open => quote = None,
            None if matches!(char, '"' | '\'') => quote = Some(char),
            None | Some('"') if char == escape => {
                // An escape character at the end is dropped.
                let Some(escaped) = chars.next() else { break };
                word.push(char);
                word.push(escaped);
                continue;
            }
            _ => {}
        }
        word.push(char);
    }
    words.extend(word.filter(|word| !word.is_empty()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_quotes_and_end_at_bare_blanks() {
        for (text, wanted) in [
            ("a  b", &["a", "b"] as &[_]),
            ("a='b c' \"d e\"f", &["a='b c'", "\"d e\"f"]),
            ("a\\ b c", &["a\\ b", "c"]),
            ("\"a\\\" b\" c", &["\"a\\\" b\"", "c"]),
            ("'a\\' b", &["'a\\'", "b"]),
            ("a \\", &["a"]),
            ("''", &["''"]),
            ("", &[]),
        ] {
            assert_eq!(words(text, '\\'), wanted, "{text}");
        }
        assert_eq!(words("a` b\\ c", '`'), ["a` b\\", "c"]);
    }

    #[test]
    fn env_has_two_forms_and_arg_takes_several_names() {
        let env = |text: &str| env_pairs(text, '\\');
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(env("a=b c='d e'"), Some(vec![pair("a", "b"), pair("c", "'d e'")]));
        assert_eq!(env("a \t b  c=d"), Some(vec![pair("a", "b  c=d")]));
        assert_eq!([env("a"), env("a=b c"), env("")], [None, None, None]);
        let b = Some("$c=d".to_owned());
        assert_eq!(arg_pairs("a b=$c=d", '\\'), [("a".to_owned(), None), ("b".to_owned(), b)]);
    }

    #[test]
    fn sources_are_words_or_a_list() {
        let both = ["a b", "c"];
        assert_eq!(words_or_list("[\"a b\", \"c\"]"), both);
        assert_eq!(words_or_list(" [\"a b\",\"c\"] rest"), both);
        assert_eq!(words_or_list("a \t'b c'"), ["a", "'b", "c'"]);
        assert_eq!(words_or_list("[1, 2]"), ["[1,", "2]"]);
        assert_eq!(words_or_list("\"a\""), ["\"a\""]);
    }
}
