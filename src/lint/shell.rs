//! The programs that a RUN starts, as far as its text tells.

/// A program with its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    /// Variables that are set for it.
    pub(super) env: Vec<(String, String)>,
    /// Its name without a folder, then its arguments. `python -m pip` is pip, `npm exec` is npx.
    pub(super) words: Vec<String>,
}

impl Call {
    /// What is started.
    pub(super) fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Is this one of its arguments?
    pub(super) fn says(&self, word: &str) -> bool {
        self.words.iter().skip(1).any(|it| it == word)
    }

    /// What an option has: `--option value` or `--option=value`.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        let mut words = self.words.iter().skip(1);
        while let Some(word) = words.next() {
            if word == name {
                return words.next().map(String::as_str);
            }
            if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                return Some(value);
            }
        }
        None
    }
}

/// How often `sh -c` may stand in `sh -c`.
const DEEPEST: usize = 8;

/// What a RUN starts, in either form, with its here-documents. What is not understood is left out
/// or split in pieces, and nothing else depends on it.
pub(super) fn calls(command: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let exec = command.trim_start().starts_with('[');
    match exec.then(|| serde_json::from_str::<Vec<String>>(command).ok()).flatten() {
        Some(words) => add(words, &mut Vec::new(), &mut calls, DEEPEST),
        None => add_all(command, &mut calls, DEEPEST),
    }
    calls
}

fn add_all(command: &str, calls: &mut Vec<Call>, depth: usize) {
    let mut exported = Vec::new();
    for words in simple_commands(command) {
        add(words, &mut exported, calls, depth);
    }
}

/// Words without quotes, split where one command ends and another begins.
fn simple_commands(text: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words) = (Vec::new(), Vec::new());
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    let mut before = '\n';
    while let Some(c) = chars.next() {
        match c {
            '\\' | '`' if ends_line(&chars) => {
                skip_line(&mut chars);
                // Docker leaves comments and empty lines out of a continued line.
                while says_nothing(&chars) && chars.peek().is_some() {
                    skip_line(&mut chars);
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                while let Some(inner) = chars.next().filter(|inner| *inner != c) {
                    match inner {
                        '\\' if c == '"' && ends_line(&chars) => skip_line(&mut chars),
                        '\\' if c == '"' => word.extend(chars.next()),
                        _ => word.push(inner),
                    }
                }
            }
            '#' if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
            // Of 2>&1.
            '&' if before == '>' => {}
            '\n' | ';' | '&' | '|' | '(' | ')' | '`' => {
                words.extend(word.take().filter(|word| word != "$"));
                commands.push(std::mem::take(&mut words));
            }
            '<' | '>' => words.extend(word.take()),
            _ if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
        before = c;
    }
    words.extend(word);
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn ends_line(chars: &Chars<'_>) -> bool {
    chars.clone().find(|c| !matches!(c, ' ' | '\t' | '\r')) == Some('\n')
}

fn says_nothing(chars: &Chars<'_>) -> bool {
    matches!(chars.clone().find(|c| !matches!(c, ' ' | '\t' | '\r')), None | Some('\n' | '#'))
}

fn skip_line(chars: &mut Chars<'_>) {
    while chars.next().is_some_and(|c| c != '\n') {}
}

/// Words that stand in front of a program.
const PREFIXES: &[&str] = &[
    "!", "{", "builtin", "command", "corepack", "do", "elif", "else", "env", "exec", "if", "nice",
    "nohup", "stdbuf", "sudo", "then", "time", "timeout", "until", "while", "xargs",
];

fn add(
    words: Vec<String>,
    exported: &mut Vec<(String, String)>,
    calls: &mut Vec<Call>,
    depth: usize,
) {
    let mut env = exported.clone();
    let mut words = words.into_iter().peekable();
    let mut prefix = String::new();
    while let Some(word) = words.peek() {
        if let Some((name, value)) = assignment(word) {
            env.push((name.to_owned(), value.to_owned()));
        } else if PREFIXES.contains(&word.as_str()) {
            prefix.clone_from(word);
        } else if prefix.is_empty() || !(word.starts_with('-') || is_limit(&prefix, word)) {
            break;
        }
        words.next();
    }
    let mut words: Vec<String> = words.collect();
    let Some(first) = words.first_mut() else {
        // Assignments alone hold from here on.
        *exported = env;
        return;
    };
    *first = named(first.rsplit('/').next().unwrap_or_default());
    let (program, argument) = (first.clone(), words.get(1).cloned());
    match (program.as_str(), argument.as_deref()) {
        ("export", _) => {
            let set = words.iter().filter_map(|word| assignment(word));
            exported.extend(set.map(|(name, value)| (name.to_owned(), value.to_owned())));
            return;
        }
        ("sh" | "bash" | "ash" | "dash" | "zsh", Some(option))
            if option.starts_with('-') && option.ends_with('c') && depth > 0 =>
        {
            let script = words.get(2).map_or("", String::as_str);
            return add_all(script, calls, depth - 1);
        }
        ("python", Some("-m")) if words.len() > 2 => {
            words.drain(..2);
        }
        ("npm", Some("exec" | "x")) => {
            words.remove(0);
            words[0] = "npx".to_owned();
        }
        ("npm", Some("create" | "init" | "innit"))
            if words.get(2).is_some_and(|initializer| !initializer.starts_with('-')) =>
        {
            // Never what the project has installed.
            words.splice(..2, ["npx", "--yes"].map(str::to_owned));
        }
        _ => {}
    }
    calls.push(Call { env, words });
}

/// The number that timeout and nice have in front of a program.
fn is_limit(prefix: &str, word: &str) -> bool {
    ["timeout", "nice"].contains(&prefix) && word.starts_with(|c: char| c.is_ascii_digit())
}

fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(is_name)).then_some((name, value))
}

/// One name for what has several.
fn named(program: &str) -> String {
    let is_version = |rest: &str| rest.chars().all(|c| c.is_ascii_digit() || c == '.');
    for name in ["pip", "python"] {
        if program.strip_prefix(name).is_some_and(is_version) {
            return name.to_owned();
        }
    }
    let name = match program {
        "apt-get" | "aptitude" => "apt",
        "bundler" => "bundle",
        "composer.phar" => "composer",
        "gradlew" => "gradle",
        "mvnw" | "mvnd" => "mvn",
        "yarnpkg" => "yarn",
        _ => program,
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(command: &str) -> Vec<String> {
        calls(command).iter().map(|call| call.words.join(" ")).collect()
    }

    #[test]
    fn programs_are_found_wherever_they_stand() {
        assert_eq!(
            said("cd /a && ./gradlew -q; (npm ci|tee x)"),
            ["cd /a", "gradle -q", "npm ci", "tee x"]
        );
        assert_eq!(said("sudo -E timeout 10 /usr/bin/pip3 install x 2>&1"), ["pip install x 2 1"]);
        assert_eq!(
            said("if ! python3.12 -m pip install 'a b'; then x; fi"),
            ["pip install a b", "x", "fi"]
        );
        assert_eq!(said("[\"bash\", \"-lc\", \"npm exec a\"]"), ["npx a"]);
        assert_eq!(said("v=$(go env X) && npm create y"), ["go env X", "npx --yes y"]);
    }

    #[test]
    fn comments_are_no_commands() {
        assert_eq!(said("a # npx b\nc #d"), ["a", "c"]);
        assert_eq!(
            said("pip install \\\n  # why; npx\n\n  --no-cache-dir a#b"),
            ["pip install --no-cache-dir a#b"]
        );
    }

    #[test]
    fn variables_go_with_what_they_are_set_for() {
        let calls = calls("export A=1; B=2 go build; C=3; go test");
        let env = |n: usize| calls[n].env.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
        assert_eq!(env(0), ["A", "B"]);
        assert_eq!(env(1), ["A", "C"]);
    }

    #[test]
    fn options_have_their_value_in_both_forms() {
        let calls = calls("a --x=1 --y 2 --xy 3");
        assert_eq!((calls[0].option("--x"), calls[0].option("--y")), (Some("1"), Some("2")));
        assert_eq!(calls[0].option("--z"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r#"([\\'"`$(){};&|#<> \n\[,\]=]|\PC|sh -c ){0,60}"#) {
            calls(&text);
        }
    }
}
