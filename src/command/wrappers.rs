//! Programs that run another one: sudo, env, nice and the like.

use std::ffi::OsString;
use std::path::Path;

use super::options::{Names, Opt, Valued, read_option};

/// How to read the words of a wrapper, up to the program that it runs.
struct Wrapper {
    names: &'static [&'static str],
    valued: Names,
    /// How many operands of its own come before the program.
    operands: usize,
    /// Whether `NAME=value` may come before the program.
    assignments: bool,
    influence: Influence,
}

/// Whether a wrapper decides which images its program sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Influence {
    /// It does not, so a look-up can do without it: nice, time.
    None,
    /// It does, so a look-up must go through it: sudo.
    Always,
    /// It does with options such as `-i`, `-u` and `-C`. Without them, it only sets
    /// variables: env.
    WithOptions,
}

impl Influence {
    /// Returns whether the program may run in another folder because of this option.
    fn changes_folder(self, opt: &Opt<'_>) -> bool {
        match self {
            Influence::None => false,
            Influence::Always => {
                matches!(opt.name, "D" | "chdir" | "R" | "chroot" | "i" | "login")
            }
            Influence::WithOptions => matches!(opt.name, "C" | "chdir"),
        }
    }
}

const PLAIN: Wrapper = Wrapper {
    names: &[],
    valued: Names::NONE,
    operands: 0,
    assignments: false,
    influence: Influence::None,
};

const WRAPPERS: &[Wrapper] = &[
    Wrapper {
        names: &["sudo"],
        valued: Names {
            short: "CDghpRrtTUu",
            long: &[
                "close-from",
                "chdir",
                "group",
                "host",
                "prompt",
                "chroot",
                "role",
                "type",
                "command-timeout",
                "other-user",
                "user",
            ],
        },
        assignments: true,
        influence: Influence::Always,
        ..PLAIN
    },
    Wrapper {
        names: &["doas"],
        valued: Names { short: "Cu", long: &[] },
        influence: Influence::Always,
        ..PLAIN
    },
    Wrapper {
        names: &["env"],
        valued: Names { short: "uC", long: &["unset", "chdir"] },
        assignments: true,
        influence: Influence::WithOptions,
        ..PLAIN
    },
    Wrapper { names: &["nice"], valued: Names { short: "n", long: &["adjustment"] }, ..PLAIN },
    Wrapper {
        names: &["ionice"],
        valued: Names { short: "cn", long: &["class", "classdata"] },
        ..PLAIN
    },
    Wrapper {
        names: &["time"],
        valued: Names { short: "fo", long: &["format", "output"] },
        ..PLAIN
    },
    Wrapper {
        names: &["timeout"],
        valued: Names { short: "ks", long: &["kill-after", "signal"] },
        operands: 1,
        ..PLAIN
    },
    Wrapper {
        names: &["stdbuf"],
        valued: Names { short: "ioe", long: &["input", "output", "error"] },
        ..PLAIN
    },
    Wrapper { names: &["nohup", "setsid", "chronic", "unbuffer"], ..PLAIN },
];

impl Wrapper {
    fn called(word: &str) -> Option<&'static Self> {
        let name = Path::new(word).file_name()?.to_str()?;
        WRAPPERS.iter().find(|wrapper| wrapper.names.contains(&name))
    }
}

/// The wrappers in front of the actual program.
#[derive(Clone, Debug, Default)]
pub(super) struct Wrappers {
    /// The index of that program.
    pub program: usize,
    /// The words that a look-up must go through.
    pub kept: Vec<OsString>,
    /// Whether one of the wrappers changes the user or the environment.
    pub change_user_or_env: bool,
    /// Whether the program may run in another folder.
    pub may_run_elsewhere: bool,
    /// Whether one of the wrappers may read stdin.
    pub may_read_stdin: bool,
    /// The variables that the wrappers set.
    pub environment: Vec<(OsString, OsString)>,
}

impl Wrappers {
    /// Reads the wrappers at the start of a command. `words` is `argv` as text.
    ///
    /// Returns `None` for `env -S`, which splits a string by rules of its own.
    pub(super) fn read(argv: &[OsString], words: &[&str]) -> Option<Self> {
        let mut wrappers = Wrappers::default();
        while let Some(wrapper) = words.get(wrappers.program).and_then(|word| Wrapper::called(word))
        {
            wrappers.read_wrapper(wrapper, argv, words)?;
        }
        Some(wrappers)
    }

    fn read_wrapper(&mut self, wrapper: &Wrapper, argv: &[OsString], words: &[&str]) -> Option<()> {
        let start = self.program;
        let influence = wrapper.influence;
        let mut at = start + 1;
        let mut has_options = false;
        // This includes `nice -10`, and a lone dash, which env reads as -i.
        while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
            if *word == "--" {
                at += 1;
                break;
            }
            has_options = true;
            if influence == Influence::WithOptions && splits_a_string(word) {
                return None;
            }
            at += read_option(&words[at..], Valued::Only(wrapper.valued), |opt| {
                self.may_run_elsewhere |= influence.changes_folder(&opt);
            });
        }
        at += wrapper.operands;
        while wrapper.assignments && words.get(at).is_some_and(|word| is_assignment(word)) {
            if let Some((name, value)) = words[at].split_once('=') {
                self.environment.push((name.into(), value.into()));
            }
            at += 1;
        }
        self.change_user_or_env |= match influence {
            Influence::None => false,
            Influence::Always => true,
            Influence::WithOptions => has_options,
        };
        // sudo may ask for a password.
        self.may_read_stdin |= influence == Influence::Always;
        if influence != Influence::None {
            self.kept.extend_from_slice(argv.get(start..at)?);
        }
        self.program = at;
        Some(())
    }
}

/// Recognizes `env -S 'A=1 docker build'`, also as `-vS…` and `--split-string=…`.
fn splits_a_string(word: &str) -> bool {
    word.starts_with("--split-string")
        || (!word.starts_with("--") && word.contains('S') && !word.contains(['u', 'C']))
}

/// Returns whether a word sets a variable: `NAME=value`.
pub(super) fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
    })
}
