//! Comments that accept a finding: `# buildlock ignore=cache-mount-race: one builder`.

/// What the comments directly above an instruction accept.
#[derive(Debug, Default)]
pub(super) struct Accepted<'a> {
    rules: Vec<&'a str>,
    has_reason: bool,
}

/// What the comments say about a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted,
    /// They accept it, but give no reason.
    WithoutReason,
    Nothing,
}

impl<'a> Accepted<'a> {
    /// Reads the comments above the instruction that begins at this byte.
    pub(super) fn above(text: &'a str, at: usize) -> Self {
        let before = &text[..text[..at].rfind('\n').map_or(0, |newline| newline + 1)];
        let lines = before.trim_end_matches('\n').rsplit('\n').map(str::trim);
        let comments = lines.map_while(|line| line.strip_prefix('#')).map(str::trim_start);
        let Some(said) = comments.filter_map(|it| it.strip_prefix("buildlock ignore=")).next()
        else {
            return Self::default();
        };
        let is_end = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == ',');
        let (rules, reason) = said.split_at(said.find(is_end).unwrap_or(said.len()));
        let has_reason = reason.contains(|c: char| c.is_alphanumeric());
        Accepted { rules: rules.split(',').collect(), has_reason }
    }

    /// Returns what the comments say about a rule.
    pub(super) fn answer(&self, rule: &str) -> Answer {
        match (self.rules.contains(&rule), self.has_reason) {
            (true, true) => Answer::Accepted,
            (true, false) => Answer::WithoutReason,
            (false, _) => Answer::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(above: &str) -> Answer {
        let text = format!("FROM a\n{above}RUN x");
        Accepted::above(&text, text.len() - 1).answer("a-b")
    }

    #[test]
    fn only_comments_directly_above_count_and_only_with_a_reason() {
        assert_eq!(answer("# buildlock ignore=a-b: why\n"), Answer::Accepted);
        assert_eq!(answer("#buildlock ignore=c,a-b why\n# more\n"), Answer::Accepted);
        assert_eq!(answer("# buildlock ignore=a-b\n"), Answer::WithoutReason);
        assert_eq!(answer("# buildlock ignore=a-b: \n"), Answer::WithoutReason);
        assert_eq!(answer("# buildlock ignore=a-bc: why\n"), Answer::Nothing);
        assert_eq!(answer("# buildlock ignore=a-b: why\nRUN y\n"), Answer::Nothing);
        assert_eq!(Accepted::above("RUN x", 0).answer("a-b"), Answer::Nothing);
    }
}
