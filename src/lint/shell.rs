//! Finds the programs that a `RUN` starts, as far as its text tells.

/// A program with its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    /// Variables that are set for it.
    pub(super) env: Vec<(String, String)>,
    /// Its name without a folder, then its arguments. `python -m pip` is pip, `npm exec` is npx.
    pub(super) words: Vec<String>,
}

impl Call {
    pub(super) fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Returns whether this is one of its arguments.
    pub(super) fn has_argument(&self, word: &str) -> bool {
        self.words.iter().skip(1).any(|it| it == word)
    }

    /// Returns the value of an option: `--option value` or `--option=value`.
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

/// How many levels of nested `sh -c` are followed.
const NESTED_MAX: usize = 8;

/// Returns what a command calls, in shell or exec form. Its lines are joined already, and the lines
/// of its here-documents come after it. What is not understood is left out or split into pieces.
pub(super) fn calls(command: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let is_exec_form = command.starts_with('[');
    match is_exec_form.then(|| serde_json::from_str::<Vec<String>>(command).ok()).flatten() {
        Some(words) => add_call(words, &mut Vec::new(), &mut calls, NESTED_MAX),
        None => add_script(command, &mut calls, NESTED_MAX),
    }
    calls
}

type Variables = Vec<(String, String)>;

fn add_script(script: &str, calls: &mut Vec<Call>, depth: usize) {
    let mut exported = Vec::new();
    for words in simple_commands(script) {
        add_call(words, &mut exported, calls, depth);
    }
}

/// Splits a script into words without quotes, one list for each command.
fn simple_commands(text: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words) = (Vec::new(), Vec::new());
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    let mut before = '\n';
    while let Some(c) = chars.next() {
        match c {
            '\\' if skip_line_end(&mut chars) => {}
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '\'' | '"' => add_quoted(c, &mut chars, word.get_or_insert_default()),
            '#' if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
            // `2>&1` does not end a command.
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

/// Adds the text up to the closing quote.
fn add_quoted(quote: char, chars: &mut Chars<'_>, word: &mut String) {
    while let Some(c) = chars.next().filter(|c| *c != quote) {
        match c {
            '\\' if quote == '"' && skip_line_end(chars) => {}
            '\\' if quote == '"' => word.extend(chars.next()),
            _ => word.push(c),
        }
    }
}

/// Skips the end of a line, if it is next.
fn skip_line_end(chars: &mut Chars<'_>) -> bool {
    let mut ahead = chars.clone();
    while ahead.next_if_eq(&'\r').is_some() {}
    let is_next = ahead.next() == Some('\n');
    if is_next {
        *chars = ahead;
    }
    is_next
}

/// Words that stand in front of a program.
const PREFIXES: &[&str] = &[
    "!", "{", "builtin", "command", "corepack", "do", "elif", "else", "env", "exec", "if", "nice",
    "nohup", "stdbuf", "sudo", "then", "time", "timeout", "until", "while", "xargs",
];

/// Adds the call that a simple command makes, or those of its `sh -c` script.
fn add_call(words: Vec<String>, exported: &mut Variables, calls: &mut Vec<Call>, depth: usize) {
    let (env, mut words) = without_prefixes(words, exported);
    let Some(first) = words.first_mut() else {
        // Assignments without a program stay set for later commands.
        *exported = env;
        return;
    };
    *first = canonical_name(first.rsplit('/').next().unwrap_or_default());
    if words[0] == "export" {
        let set = words.iter().filter_map(|word| assignment(word));
        exported.extend(set.map(|(name, value)| (name.to_owned(), value.to_owned())));
    } else if let Some(script) = script(&words).filter(|_| depth > 0) {
        add_script(script, calls, depth - 1);
    } else {
        calls.push(Call { env, words: resolved(words) });
    }
}

/// Takes the variables and the words such as `sudo` from the front of a command. Returns all
/// variables that are set for the program, and the program with its arguments.
fn without_prefixes(words: Vec<String>, exported: &Variables) -> (Variables, Vec<String>) {
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
    (env, words.collect())
}

/// Returns whether this is the number that timeout and nice have in front of a program.
fn is_limit(prefix: &str, word: &str) -> bool {
    ["timeout", "nice"].contains(&prefix) && word.starts_with(|c: char| c.is_ascii_digit())
}

/// Returns the script of `sh -c`.
fn script(words: &[String]) -> Option<&str> {
    let is_shell = ["sh", "bash", "ash", "dash", "zsh"].contains(&words[0].as_str());
    let takes_script = words.get(1).is_some_and(|it| it.starts_with('-') && it.ends_with('c'));
    (is_shell && takes_script).then(|| words.get(2).map_or("", String::as_str))
}

/// Replaces a program with the one that it starts.
fn resolved(mut words: Vec<String>) -> Vec<String> {
    let argument = words.get(1).cloned();
    match (words[0].as_str(), argument.as_deref()) {
        ("python", Some("-m")) if words.len() > 2 => _ = words.drain(..2),
        ("npm", Some("exec" | "x")) => _ = words.splice(..2, ["npx".to_owned()]),
        ("npm", Some("create" | "init" | "innit"))
            if words.get(2).is_some_and(|initializer| !initializer.starts_with('-')) =>
        {
            // npm never takes an initializer from the project's dependencies.
            _ = words.splice(..2, ["npx", "--yes"].map(str::to_owned));
        }
        _ => {}
    }
    words
}

fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(is_name)).then_some((name, value))
}

/// Returns one name for programs that have several, or that run another one: `xx-…` are the wrappers
/// of <https://github.com/tonistiigi/xx>, and gotestsum runs `go test`.
fn canonical_name(program: &str) -> String {
    let is_version = |rest: &str| rest.chars().all(|c| c.is_ascii_digit() || c == '.');
    for name in ["pip", "python"] {
        if program.strip_prefix(name).is_some_and(is_version) {
            return name.to_owned();
        }
    }
    let name = match program {
        "apt-get" | "aptitude" | "xx-apt" | "xx-apt-get" => "apt",
        "bundler" => "bundle",
        "composer.phar" => "composer",
        "gotestsum" | "xx-go" => "go",
        "xx-cargo" => "cargo",
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
        assert_eq!(
            said("xx-go build && xx-cargo build && gotestsum"),
            ["go build", "cargo build", "go"]
        );
    }

    #[test]
    fn comments_are_not_commands() {
        assert_eq!(said("a # npx b\nc #d"), ["a", "c"]);
        assert_eq!(said("pip install a#b"), ["pip install a#b"]);
    }

    #[test]
    fn continued_lines_are_joined() {
        assert_eq!(said("a\nb \\\n c \"d \\\r\n e\"\nf"), ["a", "b c d  e", "f"]);
    }

    #[test]
    fn backticks_run_a_command() {
        assert_eq!(said("a=`b`\nc"), ["b", "c"]);
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
