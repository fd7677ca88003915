//! The program call inside a build command, once wrappers such as sudo and env are removed.

use std::ffi::OsString;
use std::path::Path;

use super::builder::BuilderUse;
use super::client::Client;
use super::engine::Engine;
use super::options::{Names, Valued, skip_options};
use super::task::Task;
use super::wrappers::Wrappers;

/// A call of a program, and the wrappers before it.
pub(super) struct Call<'a> {
    pub wrappers: Wrappers,
    /// The program, as the build command names it.
    pub program: &'a str,
    /// The program's file name.
    pub name: &'a str,
    /// The program's arguments.
    pub arguments: &'a [&'a str],
    /// The same call, if the program is an engine's client.
    pub client_call: Option<ClientCall<'a>>,
}

/// A call of an engine's client, such as `docker --context ci buildx --builder b bake api`.
pub(super) struct ClientCall<'a> {
    pub client: Client,
    pub builder: BuilderUse,
    /// The arguments after the global options.
    pub arguments: &'a [&'a str],
    /// The verb, such as `build`; not a group it belongs to, such as `buildx` or `image`.
    pub verb: Option<&'a str>,
    /// The arguments after the verb.
    pub rest: &'a [&'a str],
}

/// A call that buildlock recognizes.
#[derive(Debug)]
pub(super) struct Known {
    pub client: Client,
    pub task: Task,
    pub builder: BuilderUse,
    /// Where the arguments after the verb begin in the command.
    pub after_verb: usize,
    /// Whether a wrapper may read stdin.
    pub wrapper_may_read_stdin: bool,
}

impl<'a> Call<'a> {
    /// Reads what the command `argv` calls. `words` is `argv` as text.
    pub(super) fn read(argv: &'a [OsString], words: &'a [&'a str]) -> Option<Self> {
        let wrappers = Wrappers::read(argv, words)?;
        let program = argv.get(wrappers.program)?;
        let name = Path::new(program).file_name()?.to_str()?;
        let after_program = wrappers.program + 1;
        let client_call =
            Engine::of_client(name).map(|engine| ClientCall::read(engine, &wrappers, argv, words));
        Some(Call {
            program: words[wrappers.program],
            name,
            arguments: &words[after_program..],
            client_call,
            wrappers,
        })
    }

    /// Returns where `rest`, the last words of the command, begins in it.
    pub(super) fn position(&self, rest: &[&str]) -> usize {
        self.wrappers.program + 1 + self.arguments.len() - rest.len()
    }

    /// Returns this call as a recognized one that does `task`.
    pub(super) fn known(&self, client: Client, task: Task, builder: BuilderUse) -> Known {
        let rest = self.client_call.as_ref().map_or(&[][..], |call| call.rest);
        Known {
            client,
            task,
            builder,
            after_verb: self.position(rest),
            wrapper_may_read_stdin: self.wrappers.may_read_stdin,
        }
    }
}

impl<'a> ClientCall<'a> {
    fn read(engine: Engine, wrappers: &Wrappers, argv: &[OsString], words: &'a [&'a str]) -> Self {
        let program = &argv[wrappers.program];
        let after_program = wrappers.program + 1;
        let (argv, words) = (&argv[after_program..], &words[after_program..]);
        let is_standalone = Path::new(program).ends_with("docker-buildx");
        let globals =
            if is_standalone { 0 } else { skip_options(words, engine.global_options(), |_| ()) };
        // docker-buildx cannot inspect images on the engine; ask docker.
        let program = if is_standalone { "docker".into() } else { program.clone() };
        let client = Client::with_wrappers(wrappers, engine, program, argv[..globals].to_vec());
        let arguments = &words[globals..];
        let (verb, builder) = find_verb(arguments, is_standalone);
        ClientCall {
            client,
            builder,
            arguments,
            verb: arguments.get(verb).copied(),
            rest: arguments.get(verb + 1..).unwrap_or_default(),
        }
    }
}

/// Returns the index of the verb, and what the words before it say about the builder.
/// `is_standalone` means that they are the arguments of `docker-buildx`.
fn find_verb(arguments: &[&str], is_standalone: bool) -> (usize, BuilderUse) {
    const BUILDX_GLOBALS: Valued = Valued::Only(Names { short: "", long: &["builder"] });
    let first = arguments.first().copied();
    let is_buildx = is_standalone || first == Some("buildx");
    let mut builder_use = BuilderUse { is_buildx, ..BuilderUse::default() };
    let is_group = !is_standalone && matches!(first, Some("buildx" | "image" | "builder"));
    let mut verb = usize::from(is_group);
    if is_buildx {
        verb += skip_options(&arguments[verb..], BUILDX_GLOBALS, |opt| builder_use.note(opt));
    }
    (verb, builder_use)
}
