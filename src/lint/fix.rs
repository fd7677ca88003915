//! Inserts the missing lock into a text.

/// What makes a cache mount safe for concurrent builds.
const LOCKED: &str = ",sharing=locked";

/// Returns the text with the lock inserted at these bytes, which are in order.
pub(super) fn apply(text: &[u8], places: &[usize]) -> Vec<u8> {
    let mut fixed = Vec::with_capacity(text.len() + places.len() * LOCKED.len());
    let mut from = 0;
    for &place in places {
        fixed.extend(&text[from..place]);
        fixed.extend(LOCKED.as_bytes());
        from = place;
    }
    fixed.extend(&text[from..]);
    fixed
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::dockerfile;
    use super::super::finding::Rule;
    use super::*;

    fn places(text: &[u8]) -> Vec<usize> {
        let found = dockerfile::check(text, false).expect("a Dockerfile");
        found.iter().filter_map(|found| found.fix).collect()
    }

    /// Fixes a text, and checks that nothing else has changed and nothing is left to fix.
    fn assert_fixed(text: &[u8]) -> usize {
        let places = places(text);
        let once = apply(text, &places);
        let mut undone = once.clone();
        for place in &places {
            let there: Vec<u8> = undone.drain(*place..*place + LOCKED.len()).collect();
            assert_eq!(there, LOCKED.as_bytes());
        }
        assert_eq!(undone, text, "something else has changed");
        assert_eq!(
            self::places(&once),
            Vec::<usize>::new(),
            "in {:?}",
            String::from_utf8_lossy(&once)
        );
        places.len()
    }

    /// A text, and how many of its mounts race.
    type Piece = (String, usize);

    /// Selects a text. `\n` stands for any end of line, `\u{1}` for the escape character.
    fn piece(texts: &'static [(&'static str, usize)]) -> impl Strategy<Value = Piece> {
        proptest::sample::select(texts).prop_map(|(text, races)| (text.to_owned(), races))
    }

    fn flag() -> impl Strategy<Value = Piece> {
        piece(&[
            ("--mount=type=cache,target=/root/.m2", 1),
            ("--mount=type=cache,\u{1}\ntarget=/root/\u{1} \n# no\n.m2,id=a", 1),
            ("--mount=\"type=cache,target=/root/.m2\"", 1),
            ("--mount='type=cache,target=/root/.m2'", 1),
            ("--mount=type=cache,dst=\"/root/.gradle\"", 1),
            ("--mount='type=cache,\"target=/a,b/.m2\"'", 1),
            ("--\"mount=type=cache,target=/root/.m2\"", 1),
            ("--mo'un't=type=cache,target=/root/.m2", 1),
            ("--moun\\t=type=cache,\u{1}\ntarget=\"/root/.m2\"", 1),
            ("--mount=type=cache,target=\"/grüße 😀/.m2\"", 1),
            ("--mount=type=cache,target=/root/.m2,sharing=locked", 0),
            ("--mount=type=cache,target=/root/.m2,sharing=shared", 0),
            ("--mount=type=cache,target=/root/.m2,ro", 0),
            ("--mount=type=cache,target=/root/.npm", 0),
            ("--mount=type=bind,target=/root/.m2", 0),
            ("--network=none", 0),
        ])
    }

    fn gap() -> impl Strategy<Value = Piece> {
        piece(&[
            (" ", 0),
            ("\t  ", 0),
            (" \u{1}\n", 0),
            (" \u{1}\n\u{a0}# no\n\u{2003}\n ", 0),
            (" \u{1} \t\n  # a comment \u{1}\n\n    ", 0),
            ("\u{1}\n# --mount=type=cache,target=/root/.m2\n ", 0),
        ])
    }

    fn command() -> impl Strategy<Value = Piece> {
        piece(&[
            ("mvn --mount=type=cache,target=/root/.m2\n", 0),
            ("mvn \u{1}\n && \u{1}\n# no\n true\n", 0),
            ("[\"mvn\", \"<<EOF\"]\n", 0),
            ("<<<EOF mvn\n", 0),
            ("<<EOF\nRUN --mount=type=cache,target=/root/.m2 a\nEOF \n\u{1}\nEOF\n", 0),
            ("sh <<-'A B' && cat 3<<B\nFROM x\n\t\tA B\nRUN <<EOF\n\nB\n", 0),
        ])
    }

    fn run() -> impl Strategy<Value = Piece> {
        let keyword = piece(&[
            ("RUN", 0),
            ("run", 0),
            (" \tONBUILD RUN", 0),
            ("R\u{1}\nUN", 0),
            ("\u{2003}\u{a0}RUN", 0),
        ]);
        let flags = vec((gap(), flag()), 0..4);
        (keyword, flags, gap(), command()).prop_map(|(keyword, flags, gap, command)| {
            let flags = flags.into_iter().flat_map(|(gap, flag)| [gap, flag]);
            joined([keyword].into_iter().chain(flags).chain([gap, command]))
        })
    }

    fn joined(pieces: impl IntoIterator<Item = Piece>) -> Piece {
        pieces
            .into_iter()
            .fold((String::new(), 0), |(text, races), (more, also)| (text + &more, races + also))
    }

    fn instruction() -> impl Strategy<Value = Piece> {
        prop_oneof![
            3 => run(),
            1 => piece(&[
                ("\n", 0),
                ("# RUN --mount=type=cache,target=/root/.m2 a \u{1}\n", 0),
                ("FROM b AS c\n", 0),
                ("ENV A=b \u{1}\n  # no\n  C=\"d e\"\n", 0),
                ("COPY <<A <<\"B\" /x/\nRUN --mount=type=cache,target=/root/.m2 a\nA\n<<C\nB\n", 0),
                ("LABEL a=\"<<EOF\"\n", 0),
                ("ENTRYPOINT []\n\u{3000}onbuild entry\u{1}\npoint\n", 0),
                ("SHELL [\"/bin/sh\", \u{1}\n# no\n\"-c\"] # a\n", 0),
                ("COPY \u{1}\n<<A [\nRUN --mount=type=cache,target=/root/.m2 a\nA\n", 0),
                ("\u{a0} # RUN --mount=type=cache,target=/root/.m2 a\n", 0),
            ]),
        ]
    }

    fn dockerfile() -> impl Strategy<Value = (Vec<u8>, usize)> {
        let body = vec(instruction(), 0..8);
        let blanks = proptest::sample::select(&["", " \t", "\u{a0}"][..]);
        (body, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), blanks).prop_map(
            |(body, crlf, backtick, mark, cut, blanks)| {
                let (mut text, races) = joined(body);
                text.insert_str(0, if backtick { "# escape=`\nFROM a\n" } else { "FROM a\n" });
                text.insert_str(0, blanks);
                text = text.replace('\u{1}', if backtick { "`" } else { "\\" });
                if cut {
                    text.truncate(text.trim_end_matches('\n').len());
                }
                text = if crlf { text.replace('\n', "\r\n") } else { text };
                let mut bytes = if mark { "\u{feff}".into() } else { String::new() }.into_bytes();
                bytes.extend(text.bytes());
                (bytes, races)
            },
        )
    }

    proptest! {
        #[test]
        fn every_mount_that_races_is_found_and_fixed_and_nothing_else_changes(
            (text, races) in dockerfile(),
        ) {
            prop_assert_eq!(assert_fixed(&text), races, "{}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn whatever_is_read_as_a_dockerfile_is_fixed_at_once(
            text in "(# escape=`\n)?FROM a\n([a-c\\\\`\"'<$ \t\r\n#,=]|RUN |--mount=|type=cache,|target=/|<<EOF|\nEOF\n|\\$\\{A:-|--|mount|CMD |é|\u{a0}){0,60}",
        ) {
            if dockerfile::check(text.as_bytes(), false).is_ok() {
                assert_fixed(text.as_bytes());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(text in vec(any::<u8>(), 0..200)) {
            let mut dockerfile = b"FROM a\nRUN --mount=".to_vec();
            dockerfile.extend(text);
            _ = dockerfile::check(&dockerfile, false);
        }
    }

    #[test]
    fn lock_is_inserted_within_the_quotes_around_the_whole_flag_or_value() {
        let after = |text: &str| {
            let text = format!("FROM a\nRUN {text} mvn\n");
            let fixed = apply(text.as_bytes(), &places(text.as_bytes()));
            String::from_utf8(fixed).unwrap().lines().nth(1).unwrap().to_owned()
        };
        assert_eq!(
            after("--mount=\"type=cache,target=/root/.m2\""),
            "RUN --mount=\"type=cache,target=/root/.m2,sharing=locked\" mvn"
        );
        assert_eq!(
            after("--\"mount=type=cache,target=/root/.m2\""),
            "RUN --\"mount=type=cache,target=/root/.m2,sharing=locked\" mvn"
        );
        assert_eq!(
            after("--\"mount\"=type=cache,target=/root/.m2"),
            "RUN --\"mount\"=type=cache,target=/root/.m2,sharing=locked mvn"
        );
        assert_eq!(
            after("--mount=type=cache,target=\"/root/.m2\""),
            "RUN --mount=type=cache,target=\"/root/.m2\",sharing=locked mvn"
        );
        assert_eq!(
            after("--mount=\"type=cache\",target=\"/root/.m2\""),
            "RUN --mount=\"type=cache\",target=\"/root/.m2\",sharing=locked mvn"
        );
        assert_eq!(
            after("--mount=type=cache,target=/root/.m2\\\n"),
            "RUN --mount=type=cache,target=/root/.m2,sharing=locked\\"
        );
    }

    #[test]
    fn nothing_is_inserted_into_a_character_that_buildkit_cuts() {
        let text = "FROM a\nRUN --mount=type=cache,target=/root/.m2,id=a\u{a0}mvn\n";
        let found = dockerfile::check(text.as_bytes(), false).unwrap();
        assert_eq!((found.len(), found[0].fix), (1, None));
        assert!(found[0].advice.contains("half of a character"), "{}", found[0].advice);
        assert_fixed(text.as_bytes());
    }

    #[test]
    fn variables_fill_neither_the_memory_nor_the_stack() {
        let doubled = "ENV A=$A$A\n".repeat(60);
        let nested = format!("{}{}", "${B:-".repeat(100_000), "}".repeat(100_000));
        for text in [
            format!("FROM a\nENV A=xy\n{doubled}RUN --mount=type=cache,target=$A/.m2 mvn\n"),
            format!("FROM a\nARG B\nRUN --mount=type=cache,target={nested}/.m2 mvn\n"),
        ] {
            let found = dockerfile::check(text.as_bytes(), false).unwrap();
            assert_eq!(found.iter().map(|it| it.rule).collect::<Vec<_>>(), [Rule::Variable]);
        }
    }
}
