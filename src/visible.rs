//! Tells which characters are safe to show. Records, arguments and answers may contain any.

/// Returns whether a reader sees `c` as it is, and its neighbours too. Control characters move the
/// cursor. Bidirectional ones change the order of the text
/// (<https://www.unicode.org/reports/tr9/>). Those without width make different texts look the
/// same.
pub(crate) fn is_visible(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Escapes the characters of `text` that are not visible, as `\u{…}` or `\n`.
pub(crate) fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_visible(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    shown
}

/// Escapes text that anybody may have written, and shortens it to what a person may read.
pub(crate) fn escaped_and_shortened(text: &str) -> String {
    /// In characters. buildlock itself writes less.
    const LONGEST: usize = 8192;
    let mut text = escaped(text);
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_invisible_characters_are_escaped() {
        assert_eq!(escaped("env:1 \"ü\" שלום 日本 🐳 \\"), "env:1 \"ü\" שלום 日本 🐳 \\");
        for (text, shown) in [
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\nb", "a\\nb"),
            ("\u{85}", "\\u{85}"),
            ("\u{202e}cod", "\\u{202e}cod"),
            ("\u{2066}\u{2069}", "\\u{2066}\\u{2069}"),
            ("a\u{200b}b", "a\\u{200b}b"),
            ("\u{2028}", "\\u{2028}"),
            ("\u{feff}", "\\u{feff}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }
}
