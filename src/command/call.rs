//! The call of a program that a build command comes to, and what buildlock makes of it.

use std::ffi::OsString;
use std::path::Path;

use super::builder::BuilderUse;
use super::client::Client;
use super::engine::Engine;
use super::options::{Names, Valued, skip_options};
use super::task::Task;
use super::wrappers::Front;

/// A call of a program, behind wrappers such as sudo and env.
pub(super) struct Call<'a> {
    pub front: Front,
    /// The program, as the build command names it.
    pub program: &'a str,
    /// The program's file name.
    pub name: &'a str,
    /// The program's arguments.
    pub words: &'a [&'a str],
    /// The same call, if the program is an engine's client.
    pub of_client: Option<ClientCall<'a>>,
}

/// A call of an engine's client, such as `docker --context ci buildx --builder b bake api`.
pub(super) struct ClientCall<'a> {
    pub client: Client,
    pub builder: BuilderUse,
    /// The arguments behind the global options.
    pub words: &'a [&'a str],
    /// The verb, such as `build`; not a group it belongs to, such as `buildx` or `image`.
    pub verb: Option<&'a str>,
    /// The arguments behind the verb.
    pub rest: &'a [&'a str],
}

/// A call that buildlock knows.
#[derive(Debug)]
pub(super) struct Known {
    pub client: Client,
    pub task: Task,
    pub builder: BuilderUse,
    /// Whether a wrapper in front of the program may read stdin.
    pub front_may_read_stdin: bool,
}

impl<'a> Call<'a> {
    /// Reads what the command `argv` calls. `words` is `argv` as text.
    pub(super) fn read(argv: &'a [OsString], words: &'a [&'a str]) -> Option<Self> {
        let front = Front::read(argv, words)?;
        let program = argv.get(front.program)?;
        let name = Path::new(program).file_name()?.to_str()?;
        let behind = front.program + 1;
        let of_client =
            Engine::of_client(name).map(|engine| ClientCall::read(engine, &front, argv, words));
        Some(Call {
            program: words[front.program],
            name,
            words: &words[behind..],
            of_client,
            front,
        })
    }

    /// Returns the result for this call.
    pub(super) fn known(&self, client: Client, task: Task, builder: BuilderUse) -> Known {
        Known { client, task, builder, front_may_read_stdin: self.front.may_read_stdin }
    }
}

impl<'a> ClientCall<'a> {
    fn read(engine: Engine, front: &Front, argv: &[OsString], words: &'a [&'a str]) -> Self {
        const BUILDX_GLOBALS: Valued = Valued::Only(Names { short: "", long: &["builder"] });
        let program = &argv[front.program];
        let (argv, words) = (&argv[front.program + 1..], &words[front.program + 1..]);
        let is_standalone = Path::new(program).ends_with("docker-buildx");
        let globals = match is_standalone {
            true => 0,
            false => skip_options(words, engine.global_options(), |_| ()),
        };
        let words = &words[globals..];
        let mut builder = BuilderUse {
            is_buildx: is_standalone || words.first() == Some(&"buildx"),
            ..BuilderUse::default()
        };
        let is_group = matches!(words.first(), Some(&("buildx" | "image" | "builder")));
        let mut verb = usize::from(is_group && !is_standalone);
        if builder.is_buildx {
            verb += skip_options(&words[verb..], BUILDX_GLOBALS, |opt| builder.note(opt));
        }
        ClientCall {
            client: Client::behind(
                front,
                engine,
                if is_standalone { "docker".into() } else { program.clone() },
                argv[..globals].to_vec(),
            ),
            builder,
            words,
            verb: words.get(verb).copied(),
            rest: words.get(verb + 1..).unwrap_or_default(),
        }
    }
}
