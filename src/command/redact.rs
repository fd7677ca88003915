//! The build command as people may see it, without secrets.

mod text;

use std::collections::BTreeMap;
use std::ffi::OsString;

use self::text::{hide_in_script, hide_in_text};
use super::wrappers::{Wrappers, is_assignment};
use crate::visible::is_visible;

/// The longest command that is shown, in bytes. A person reads no more of it in a message.
const LONGEST: usize = 4096;

/// Returns a command for messages and the holder record: quoted as a shell needs it, shortened, and
/// without what may be secret.
///
/// Of `--build-arg` and of bake's `--set` and `--var` it keeps the name, of `--secret` the ID, and of `NAME=value` in front of a
/// program the name. It drops the user and password in URLs.
pub fn describe(argv: &[OsString]) -> String {
    let lossy: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
    let words: Vec<&str> = lossy.iter().map(AsRef::as_ref).collect();
    let program = Wrappers::read(argv, &words).map_or(argv.len(), |wrappers| wrappers.program);
    let of_env = words_of_env(&words, program);
    let login = login_at(&words, program).unwrap_or(words.len());
    let mut shown = Vec::with_capacity(words.len());
    let mut expected = None;
    for (at, word) in words.iter().enumerate() {
        let flag = SecretFlag::of(word);
        let hidden = match (expected, &flag) {
            (Some(secret), _) => hide(secret, word),
            (None, Some(flag)) => flag.without_value(),
            (None, None) if at < program && is_assignment(word) => hide_value(word),
            // docker run -e NAME=value
            (None, None) if at > 0 && words[at - 1] == "-e" && is_assignment(word) => {
                hide_value(word)
            }
            (None, None) if word.strip_prefix("-e").is_some_and(is_assignment) => hide_value(word),
            (None, None) if at > login && words[at - 1] == "-p" => "…".to_owned(),
            (None, None) if at > login && word.len() > 2 && word.starts_with("-p") => {
                "-p…".to_owned()
            }
            (None, None) => match of_env.get(&at) {
                Some(word) => word.hidden(),
                None => hide_in_text(word),
            },
        };
        shown.push(quoted(&hidden));
        // This flag may really be the value of the one before it. Then too much is hidden.
        expected = flag.filter(|flag| flag.value.is_none()).map(|flag| flag.secret);
    }
    shortened(shown.join(" "))
}

/// Returns where `docker login` has its second word. Its `-p` takes a password.
fn login_at(words: &[&str], program: usize) -> Option<usize> {
    (program + 1..words.len()).find(|&at| words[at] == "login" && !words[at - 1].starts_with('-'))
}

/// A word that env(1) takes.
enum OfEnv<'a> {
    /// `NAME=value`, with any name.
    Assignment(&'a str),
    /// A string that it splits, after the option in the same word, if there is one.
    Script(&'a str, &'a str),
}

impl OfEnv<'_> {
    fn hidden(&self) -> String {
        match self {
            OfEnv::Assignment(word) => hide_value(word),
            OfEnv::Script(option, script) => format!("{option}{}", hide_in_script(script)),
        }
    }
}

/// Returns the words that env(1) takes as assignments or splits into some, by their positions. What
/// stands in front of it may be a program that is not known here. But `env` may also be the value of
/// an option.
fn words_of_env<'a>(words: &[&'a str], program: usize) -> BTreeMap<usize, OfEnv<'a>> {
    let mut found = BTreeMap::new();
    let is_env = |at: usize| {
        let word = words[at];
        let is_value = at > program && words[at - 1].starts_with('-');
        let is_path = word.ends_with("/env") && !word.starts_with('-') && !word.contains('=');
        (word == "env" || is_path) && !is_value
    };
    let mut places = 0..words.len();
    while let Some(at) = places.next() {
        if !is_env(at) {
            continue;
        }
        // To the first word that is neither an option nor an assignment: the program.
        while let Some(&word) = words.get(places.start) {
            let n = places.start;
            if !word.starts_with('-') && !word.contains('=') {
                break;
            }
            places.next();
            match option_of_env(word) {
                Some((_, "")) => {
                    if let Some(n) = places.next() {
                        found.insert(n, OfEnv::Script("", words[n]));
                    }
                }
                Some((option, script)) => _ = found.insert(n, OfEnv::Script(option, script)),
                None if matches!(word, "-u" | "--unset" | "-C" | "--chdir") => _ = places.next(),
                None if word.starts_with('-') => {}
                None => _ = found.insert(n, OfEnv::Assignment(word)),
            }
        }
    }
    found
}

/// Splits an option of env(1) that takes a string to split from what follows in the same word.
fn option_of_env(word: &str) -> Option<(&str, &str)> {
    if word == "--split-string" {
        return Some((word, ""));
    }
    let long = "--split-string=";
    if word.starts_with(long) {
        return Some(word.split_at(long.len()));
    }
    let at = word.find('S')?;
    let letters = word.strip_prefix('-')?.get(..at - 1)?;
    letters.chars().all(|c| "iv0".contains(c)).then(|| word.split_at(at + 1))
}

/// Quotes a word for a shell, with spaces in place of characters that a reader would not see.
fn quoted(word: &str) -> String {
    let clean: String = word.chars().map(|c| if is_visible(c) { c } else { ' ' }).collect();
    shlex::try_quote(&clean).map_or_else(|_| clean.clone(), |quoted| quoted.into_owned())
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// How much of a secret value may be shown.
#[derive(Clone, Copy)]
enum Secret {
    /// Of `NAME=value` the name.
    Assignment,
    /// Of `id=name,src=file` the ID.
    Mount,
    /// Nothing.
    Whole,
}

/// An option that takes a secret value.
struct SecretFlag<'a> {
    secret: Secret,
    name: &'a str,
    /// The value, if it is in the same word.
    value: Option<&'a str>,
}

impl<'a> SecretFlag<'a> {
    fn of(word: &'a str) -> Option<Self> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let secret = match name {
            // With bake, --set replaces anything in a target: *.args.NAME=value.
            "--build-arg" | "--env" | "--set" | "--var" => Secret::Assignment,
            "--secret" => Secret::Mount,
            "--creds" | "--password" | "--token" => Secret::Whole,
            _ => return None,
        };
        Some(SecretFlag { secret, name, value })
    }

    fn without_value(&self) -> String {
        match self.value {
            Some(value) => format!("{}={}", self.name, hide(self.secret, value)),
            None => self.name.to_owned(),
        }
    }
}

fn hide(secret: Secret, value: &str) -> String {
    match secret {
        Secret::Assignment => hide_in_text(value.split('=').next().unwrap_or_default()),
        Secret::Mount => {
            let ids = value.split(',').filter(|part| part.starts_with("id="));
            hide_in_text(&ids.collect::<Vec<_>>().join(","))
        }
        Secret::Whole => "…".to_owned(),
    }
}

fn hide_value(assignment: &str) -> String {
    assignment
        .split_once('=')
        .map_or_else(|| assignment.to_owned(), |(name, _)| format!("{name}=…"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_not_shown() {
        for (line, shown) in [
            (
                "docker build --build-arg TOKEN=s3cret -t a .",
                "docker build --build-arg TOKEN -t a .",
            ),
            ("docker build --build-arg=TOKEN=s3cret .", "docker build --build-arg=TOKEN ."),
            ("docker build --build-arg TOKEN .", "docker build --build-arg TOKEN ."),
            ("docker build --secret id=t,env=s3cret .", "docker build --secret id=t ."),
            ("docker build --secret=id=t,src=s3cret .", "docker build --secret=id=t ."),
            (
                "docker buildx bake --set *.args.TOKEN=s3cret --set=a.args.TOKEN=s3cret a",
                "docker buildx bake --set *.args.TOKEN --set=a.args.TOKEN a",
            ),
            (
                "docker buildx bake --var TOKEN=s3cret --var=TOKEN=s3cret a",
                "docker buildx bake --var TOKEN --var=TOKEN a",
            ),
            (
                "docker compose build --build-arg TOKEN=s3cret a",
                "docker compose build --build-arg TOKEN a",
            ),
            (
                "sh -c 'docker buildx bake --set \"*.args.T=s3cret s3cret\" --set=*.args.T=s3cret a'",
                "sh -c docker buildx bake --set *.args.T=… --set=*.args.T=… a",
            ),
            (
                "sh -c 'docker buildx bake --var T=s3cret --var=T=s3cret a --variant b'",
                "sh -c docker buildx bake --var T=… --var=T=… a --variant b",
            ),
            ("podman build --creds u:s3cret .", "podman build --creds … ."),
            ("env TOKEN=s3cret docker build .", "env 'TOKEN=…' docker build ."),
            ("sudo -n TOKEN=s3cret docker build .", "sudo -n 'TOKEN=…' docker build ."),
            ("sudo -u root TOKEN=s3cret make", "sudo -u root TOKEN=… make"),
            ("timeout 60 env -u A TOKEN=s3cret make", "timeout 60 env -u A TOKEN=… make"),
            ("nice -n 5 env TOKEN=s3cret make x=1", "nice -n 5 env TOKEN=… make x=1"),
            ("env -S TOKEN=s3cret make", "env -S TOKEN=… make"),
            (
                "docker build --cache-to type=s3,bucket=b,secret_access_key=s3cret .",
                "docker build --cache-to type=s3,bucket=b,secret_access_key=… .",
            ),
            ("docker build https://u:s3cret@h/r.git", "docker build 'https://…@h/r.git'"),
            ("docker build ssh://git@h/r.git", "docker build ssh://git@h/r.git"),
            (
                "sh -c 'docker build --build-arg TOKEN=s3cret -t a . && x'",
                "sh -c 'docker build --build-arg TOKEN=… -t a . && x'",
            ),
            (
                "sh -c 'docker build --build-arg \"TOKEN=s3cret word\" -t a .; x --secret=id=s3cret'",
                "sh -c 'docker build --build-arg \"TOKEN=… -t a .; x --secret=…'",
            ),
            // A flag may be the value of another flag. What follows is hidden all the same.
            (
                "docker build -t --build-arg --build-arg TOKEN=s3cret .",
                "docker build -t --build-arg --build-arg TOKEN .",
            ),
            ("podman build --secret --creds u:s3cret .", "podman build --secret  … ."),
            (
                "docker build --build-arg https://u:s3cret@h .",
                "docker build --build-arg https://…@h .",
            ),
            (
                "sh -c 'docker build --build-arg\tTOKEN=s3cret --token s3cret --secret --creds s3cret .'",
                "sh -c 'docker build --build-arg TOKEN=… --token … --secret --creds … .'",
            ),
            (
                "sh -c 'docker build --build-arg \\\n  TOKEN=s3cret .'",
                r"sh -c 'docker build --build-arg \\   TOKEN=… .'",
            ),
            (
                "sh -c 'docker build --cache-to type=s3,session_token=s3cret -t a .'",
                "sh -c 'docker build --cache-to type=… -t a .'",
            ),
            (
                "sh -c 'docker build --build-arg \"A --password s3cret B=c'",
                "sh -c 'docker build --build-arg A --password … B=…'",
            ),
            (
                r"sh -c 'x --creds\ --secret s3cret --password a\ --build-arg\ A=s3cret b'",
                r"sh -c 'x --creds…--secret … --password …--build-arg\\ A=… b'",
            ),
            (
                "sh -c 'docker login --password-stdin && x'",
                "sh -c 'docker login --password-stdin && x'",
            ),
            ("docker run -e TOKEN=s3cret x", "docker run -e TOKEN=… x"),
            ("docker run -eTOKEN=s3cret x", "docker run -eTOKEN=… x"),
            ("docker compose run --env TOKEN=s3cret x", "docker compose run --env TOKEN x"),
            ("docker run --env=TOKEN=s3cret x", "docker run --env=TOKEN x"),
            ("docker run -e TOKEN x", "docker run -e TOKEN x"),
            ("sh -ec 'TOKEN=s3cret docker build .'", "sh -ec TOKEN=… docker build ."),
            ("sh -c 'a; TOKEN=s3cret b'", "sh -c a; TOKEN=… b"),
            ("sh -c 'export TOKEN=\"s3cret s3cret\" && b'", "sh -c export TOKEN=… && b"),
            ("sh -c '(TOKEN=s3cret b)'", "sh -c (TOKEN=… b)"),
            ("sh -c 'b $(TOKEN=s3cret c)'", "sh -c b $(TOKEN=… c)"),
            ("sh -c 'TOKEN=$(echo s3cret s3cret) b'", "sh -c TOKEN=… b"),
            ("sh -c 'TOKEN=`echo s3cret s3cret` b'", "sh -c TOKEN=… b"),
            ("sh -c 'docker run -eTOKEN=s3cret x'", "sh -c docker run -eTOKEN=… x"),
            ("sh -c 'docker run --env=TOKEN=s3cret x'", "sh -c docker run --env=TOKEN=… x"),
            ("env -S 'TOKEN=s3cret make'", "env -S TOKEN=…"),
            ("env '-STOKEN=s3cret make'", "env -STOKEN=… make"),
            ("env '-iSTOKEN=s3cret make'", "env -iSTOKEN=… make"),
            ("env '--split-string=TOKEN=s3cret make'", "env --split-string=TOKEN=… make"),
            (
                "env -u A -C /x A.B=s3cret T-X=s3cret make x=1",
                "env -u A -C /x A.B=… T-X=… make x=1",
            ),
            ("env 'TOKEN=s3cret s3cret' make", "env TOKEN=… make"),
            ("env 'TOKEN=-----BEGIN\ns3cret\n' make", "env TOKEN=… make"),
            ("env 'A.B=s3cret s3cret' make", "env A.B=… make"),
            ("./b run --name env -eAWS=s3cret x", "./b run --name env -eAWS=… x"),
            ("./b -C env '-ea1=a s3cret'", "./b -C env -ea1=…"),
            ("docker build -t env --target=a .", "docker build -t env --target=a ."),
            ("./b env --secret -S https://u:s3cret@h/", "./b env --secret  https://…@h/"),
            ("setpriv --reuid 0 env T=s3cret make", "setpriv --reuid 0 env T=… make"),
            ("xargs /usr/bin/env T=s3cret make", "xargs /usr/bin/env T=… make"),
            ("docker build 'https://u:p\"s3cret@h/r.git'", "docker build https://…@h/r.git"),
            ("docker build \"https://u:p's3cret@h/r.git\"", "docker build https://…@h/r.git"),
            ("bash -c 'T+=s3cret docker build .'", "bash -c T+=… docker build ."),
            (
                "bash -c 'docker build \"--build-arg\" \"T=x s3cret\" .'",
                "bash -c docker build --build-arg T=… .",
            ),
            (
                "sh -c 'docker build --build-arg A=`echo s3cret s3cret` .'",
                "sh -c docker build --build-arg A=… .",
            ),
            (
                "sh -c 'docker build \"--build-arg=T=a s3cret\" .'",
                "sh -c docker build --build-arg=T=… .",
            ),
            ("sh -c 'x \"--token=a s3cret\" --y'", "sh -c x --token=… --y"),
            ("sh -c 'docker run \"-eT=a s3cret\" x'", "sh -c docker run -eT=… x"),
            ("sh -c 'docker run \"--env=T=a s3cret\" x'", "sh -c docker run --env=T=… x"),
            ("sh -c 'env \"T=a s3cret\" make'", "sh -c env T=… make"),
            ("sh -c \"env 'T=a s3cret' make\"", "sh -c env T=… make"),
            ("docker login -u u -p s3cret h", "docker login -u u -p … h"),
            ("docker login -ps3cret h", "docker login -p… h"),
            (
                "sh -c 'docker login -u u -p s3cret h && x -p 1'",
                "sh -c docker login -u u -p … h && x -p 1",
            ),
            ("sh -c 'docker login -ps3cret h; x'", "sh -c docker login -p… h; x"),
            ("docker compose -p login build", "docker compose -p login build"),
            (
                "buildctl build --opt build-arg:TOKEN=s3cret",
                "buildctl build --opt 'build-arg:TOKEN=…'",
            ),
        ] {
            let words = shlex::split(line).unwrap();
            let said = describe(&words.into_iter().map(OsString::from).collect::<Vec<_>>());
            assert!(!said.contains("s3cret"), "{said}");
            assert_eq!(said.replace(['\'', '"'], ""), shown.replace(['\'', '"'], ""), "{line}");
        }
    }

    /// A holder's command is read from its process, which may have any words.
    #[test]
    fn many_words_of_env_take_no_time() {
        for word in ["a=/env", "-/env", "/env", "env", "-u", "a=b"] {
            let words = std::iter::once("env").chain(std::iter::repeat_n(word, 100_000));
            let start = std::time::Instant::now();
            describe(&words.map(OsString::from).collect::<Vec<_>>());
            assert!(start.elapsed() < std::time::Duration::from_secs(5), "{word}");
        }
    }

    #[test]
    fn control_characters_and_endless_commands_are_not_shown() {
        let said = describe(&["a\u{1b}[31m\n".into(), "b".repeat(100_000).into()]);
        assert!(!said.contains(char::is_control) && said.len() < 5000, "{said}");
    }

    proptest! {
        #[test]
        fn no_value_of_a_variable_in_a_script_is_shown(
            before in prop_oneof![
                "[a-z ]{0,9}[;&|(\n ]", Just(String::new()), Just("bash -c '".to_owned()),
            ],
            flag in prop_oneof![Just(""), Just("-e"), Just("--env="), Just("export ")],
            quote in prop_oneof![Just(""), Just("'"), Just("\""), Just("`")],
            after in "[a-z ;=']{0,12}",
        ) {
            let script = format!("{before}{flag}TOKEN={quote}s3cret{quote} docker build {after}");
            let said = describe(&["sh".into(), "-c".into(), script.into()]);
            prop_assert!(!said.contains("s3cret"), "{said}");
        }
    }
}
