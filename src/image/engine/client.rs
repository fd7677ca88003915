//! Asking by running a client: the engine's own, or another program that answers questions.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::time::Duration;

use crate::command::{Client, Engine};
use crate::image::answer::{ANSWER_WITHIN, Unanswered, excerpt};
use crate::spawn;

/// How a client ended, and what it printed.
#[derive(Debug)]
pub struct ClientOutput {
    /// Its exit status, or `None` if a signal ended it.
    pub status: Option<i32>,
    /// Its output.
    pub stdout: Vec<u8>,
    /// Its complaints.
    pub stderr: Vec<u8>,
}

impl ClientOutput {
    /// Makes an error of words that are not a certain answer.
    pub(crate) fn unanswered(&self, client: &dyn Display) -> Unanswered {
        let said = if self.stderr.trim_ascii().is_empty() {
            excerpt(&self.stdout)
        } else {
            excerpt(&self.stderr)
        };
        let how = match self.status {
            Some(status) => format!("exited with status {status}"),
            None => "was ended by a signal".to_owned(),
        };
        Unanswered::transient(format!("{client} {how} and said: {said}"))
    }
}

/// Runs the client of the build command with other arguments.
pub(crate) fn run(client: &Client, arguments: &[&str]) -> Result<ClientOutput, Unanswered> {
    run_within(client, arguments, ANSWER_WITHIN)
}

pub(crate) fn run_within(
    client: &Client,
    arguments: &[&str],
    limit: Duration,
) -> Result<ClientOutput, Unanswered> {
    let (program, rest) = client.words(arguments);
    if let Err(error) = which::which(&program) {
        return Err(Unanswered::permanent(format!(
            "the client {client} was not found: {error}; images are looked up through it (see \
             --engine)"
        )));
    }
    run_expression(client, duct::cmd(program, rest), limit)
}

/// Runs a program that messages call `name`. Its stdin is empty unless the expression sets one.
pub(crate) fn run_expression(
    name: &dyn Display,
    expression: duct::Expression,
    limit: Duration,
) -> Result<ClientOutput, Unanswered> {
    let output = spawn::output_within(expression, limit);
    let output = output.map_err(|why| Unanswered::permanent(why.about(name)))?;
    Ok(ClientOutput { status: output.status.code(), stdout: output.stdout, stderr: output.stderr })
}

impl Client {
    /// Returns the engine's client without any flags.
    pub(crate) fn plain(engine: Engine) -> Self {
        Client {
            engine,
            program: engine.client().into(),
            globals: Vec::new(),
            wrapper_words: Vec::new(),
            wrapper_changes_user_or_env: false,
            may_run_elsewhere: false,
            environment: Vec::new(),
        }
    }

    /// Splits the client's words and these arguments into the program and the rest.
    fn words(&self, arguments: &[&str]) -> (OsString, Vec<OsString>) {
        let arguments = arguments.iter().map(OsString::from);
        let mut words = self
            .wrapper_words
            .iter()
            .chain([&self.program])
            .chain(&self.globals)
            .cloned()
            .chain(arguments);
        let program = words.next().unwrap_or_default();
        (program, words.collect())
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (program, rest) = self.words(&[]);
        let words: Vec<OsString> = [program].into_iter().chain(rest).collect();
        write!(f, "'{}'", crate::command::describe(&words))
    }
}
