//! Endless recursion: a `docker` in PATH calls `buildlock -- docker "$@"`, which finds the same
//! `docker` again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::command::Command;
use crate::interpreter;
use crate::proc;

/// Refuses to run inside another call with the same build command in the same folder.
///
/// # Errors
/// Fails if there is such a call. Its build command is a wrapper that called buildlock again.
pub(super) fn refuse(command: &Command) -> Result<()> {
    let Some(here) = folder_of(std::process::id()) else { return Ok(()) };
    let does_the_same = |&pid: &u32| {
        folder_of(pid).is_some_and(|it| it == here)
            && (has_same_words(pid, command) || reads_a_file_of(pid, command))
    };
    let Some(outer) = proc::ancestors().into_iter().find(does_the_same) else {
        return Ok(());
    };
    let program = command.program();
    let advice = match real_program(program) {
        Some(real) => format!("as in: buildlock -- {} ...", real.display()),
        None => "by its full path".to_owned(),
    };
    bail!(
        "this call runs inside another one with the same build command in the same folder (pid \
         {outer}): '{}' is a wrapper that calls buildlock again, and would do so endlessly; have \
         the wrapper name the real program, {advice}",
        program.display()
    )
}

fn folder_of(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(proc::path(pid, "cwd")?).ok()
}

/// Tells whether a process is a buildlock of our user with the same build command.
///
/// Reading another user's command line means reading that process's memory, which could block for
/// ever. So other users' processes are skipped.
fn has_same_words(pid: u32, command: &Command) -> bool {
    if proc::user(pid) != Some(rustix::process::getuid().as_raw()) {
        return false;
    }
    let line = proc::path(pid, "cmdline").and_then(|file| std::fs::read(file).ok());
    let line = line.unwrap_or_default();
    let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|&c| c == 0);
    let mut words = words.map(OsStr::from_bytes);
    let is_buildlock =
        words.next().is_some_and(|name| name.as_encoded_bytes().ends_with(b"buildlock"));
    // With --each, buildlock calls itself, perhaps with the same build command.
    let is_each = words.by_ref().take_while(|&word| word != "--").any(|word| word == "--each");
    is_buildlock && !is_each && words.eq(without_our_label(command))
}

/// Tells whether the command reads a file that the process `pid` has made for its own build command:
/// compose's file with a label.
fn reads_a_file_of(pid: u32, command: &Command) -> bool {
    let ours = format!("/proc/{pid}/fd/");
    command.arguments().iter().any(|word| word.to_string_lossy().starts_with(&ours))
}

/// Returns the words of a command, without the label that an outer call has added to it.
fn without_our_label(command: &Command) -> impl Iterator<Item = &OsStr> {
    let label = std::env::var_os("BUILDLOCK_LABEL").unwrap_or_default();
    let arguments = command.arguments();
    let is_it = |pair: &[OsString]| pair[0] == "--label" && pair[1] == label;
    let at = arguments.windows(2).position(is_it);
    let words = arguments.iter().enumerate();
    let kept = words.filter(move |(n, _)| at.is_none_or(|at| *n != at && *n != at + 1));
    std::iter::once(command.program()).chain(kept.map(|(_, word)| word.as_os_str()))
}

/// Returns the program in PATH that the wrapper `name`, the first in PATH, probably stands for: the
/// next one that is not a script, or else the next one.
fn real_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        return None;
    }
    let mut others = which::which_all(name).ok()?.skip(1).peekable();
    let next = others.peek().cloned();
    others.find(|path| !interpreter::is_script(path)).or(next)
}
