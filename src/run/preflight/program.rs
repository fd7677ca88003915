//! Whether the build command's program can be executed.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::Command;
use crate::exit::{self, Failure};
use crate::interpreter;

/// Returns where the build command's program is, after checking that it may be executed.
///
/// # Errors
/// Fails with the status of env(1): 127 if the program is not there, 126 if it cannot be executed.
pub(crate) fn program(command: &Command) -> Result<PathBuf> {
    // execvp(3) uses this path if PATH is not set.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let here = std::env::current_dir().unwrap_or_default();
    which::which_in(command.program(), Some(&path), here)
        .map_err(|_| why_not_found(command.program(), &path).into())
}

fn why_not_found(program: &OsStr, path: &OsStr) -> Failure {
    let has_folder =
        program.as_encoded_bytes().contains(&b'/') || [".", ".."].iter().any(|it| program == *it);
    let candidates: Vec<PathBuf> = match has_folder {
        true => vec![program.into()],
        false => std::env::split_paths(path).map(|folder| folder.join(program)).collect(),
    };
    let why = candidates
        .into_iter()
        .find_map(|candidate| Some((why_not_executed(&candidate, has_folder)?, candidate)));
    match why {
        Some((why, candidate)) => Failure::new(
            exit::CANNOT_EXECUTE,
            format!("the build command cannot be executed: {}: {why}", candidate.display()),
        ),
        None => Failure::new(
            exit::NOT_FOUND,
            format!("the build command was not found: {}", program.display()),
        ),
    }
}

/// Returns why a file cannot be executed, or none if it does not count: execvp(3) then goes on to
/// the next folder in PATH.
fn why_not_executed(candidate: &Path, has_folder: bool) -> Option<String> {
    match candidate.metadata() {
        // A folder of that name in PATH is not what the user means, unlike one given by its path.
        Ok(found) if found.is_dir() && !has_folder => None,
        Ok(found) => Some(cannot_execute(&found).to_owned()),
        Err(error) if is_not_there(&error, has_folder) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn cannot_execute(found: &Metadata) -> &'static str {
    if found.is_dir() { "it is a folder" } else { "permission denied" }
}

/// Tells whether there is no file of that name. A file in PATH in place of a folder means the same.
fn is_not_there(error: &std::io::Error, has_folder: bool) -> bool {
    error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::NotADirectory && !has_folder
}

/// Checks that the interpreter of a script can be executed.
///
/// This means reading the script, so it is done only if there is something to build.
///
/// # Errors
/// Fails with the status of a shell and env(1): 127 if the interpreter is not there, 126 if it
/// cannot be executed.
pub(crate) fn check_interpreter(command: &Command) -> Result<()> {
    // If a script in PATH lacks its interpreter, execvp(3) goes on to the next folder.
    if !command.program().as_encoded_bytes().contains(&b'/') {
        return Ok(());
    }
    let Some(broken) = interpreter::broken_of_script(Path::new(command.program())) else {
        return Ok(());
    };
    let status = if broken.is_missing() { exit::NOT_FOUND } else { exit::CANNOT_EXECUTE };
    Err(does_not_run(command, status, &broken.to_string()))
}

/// Returns the error for a program that does not start.
pub(crate) fn does_not_run(command: &Command, status: u8, why: &str) -> anyhow::Error {
    let program = command.program().display();
    Failure::new(status, format!("the build command cannot be run: {program}: {why}")).into()
}
