//! Truth values as Go's `strconv.ParseBool` reads them, and so docker, buildx and podman.

/// Reads a truth value. Returns none if Go would refuse the text.
pub(crate) fn parse(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_the_spellings_of_go_are_truth_values() {
        for (text, expected) in [
            ("1", Some(true)),
            ("t", Some(true)),
            ("TRUE", Some(true)),
            ("0", Some(false)),
            ("F", Some(false)),
            ("False", Some(false)),
            ("", None),
            ("yes", None),
            ("tRUE", None),
            (" 1", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
