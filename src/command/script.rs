//! Build commands in a script for a shell (`sh -c '…'`).
//!
//! buildlock locks only what it is told of a script. What is found here makes a message helpful.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::known;
use super::task::Task;
use super::wrappers::is_assignment;

const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "ash"];

/// Returns the script that a shell is given as an argument, if the command calls a shell.
pub(super) fn of_shell<'a>(program: &OsStr, arguments: &'a [OsString]) -> Option<&'a OsStr> {
    let name = Path::new(program).file_name()?.to_str()?;
    if !SHELLS.contains(&name) {
        return None;
    }
    // -c, also among other letters: -ec.
    let takes_script = |word: &OsString| {
        let word = word.to_string_lossy();
        word.starts_with('-') && !word.starts_with("--") && word.contains('c')
    };
    let option = arguments.iter().position(takes_script)?;
    arguments.get(option + 1).map(OsString::as_os_str)
}

/// Returns the tags of the build commands in a script, as far as its text tells.
pub(super) fn tags(script: &str) -> Vec<String> {
    let parts = script.split(['\n', ';', '&', '|', '(', ')']);
    let commands = parts.filter_map(shlex::split);
    let tags = commands.flat_map(|words| tags_of_command(&words));
    // Nothing here knows what a variable expands to.
    tags.filter(|tag| !tag.contains(['$', '`'])).collect()
}

fn tags_of_command(words: &[String]) -> Vec<String> {
    // Assignments in front of a command belong to the shell.
    let words: Vec<&str> =
        words.iter().map(String::as_str).skip_while(|word| is_assignment(word)).collect();
    let argv: Vec<OsString> = words.iter().map(OsString::from).collect();
    match known::recognize(&argv, &words).map(|known| known.task) {
        Some(Task::Build(build)) => build.tags,
        _ => Vec::new(),
    }
}
