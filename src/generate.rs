//! Completions and manual pages, made from the command line's types.

use std::io::Write;

use anyhow::{Result, bail};
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;

/// Prints a completion script for `shell`.
///
/// # Errors
/// Nobody takes the output.
pub fn completions(shell: clap_complete::Shell, out: &mut impl Write) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "buildlock", &mut script);
    Ok(out.write_all(&script)?)
}

/// Prints the manual page of `subcommand`, or buildlock(1).
///
/// # Errors
/// There is no such subcommand, or nobody takes the output.
pub fn man(subcommand: Option<&str>, out: &mut impl Write) -> Result<()> {
    let mut grammar = Cli::command().disable_help_subcommand(true);
    grammar.build();
    let Some(name) = subcommand else {
        return main_page(grammar, out);
    };
    let Some(found) = grammar.find_subcommand(name) else {
        bail!("there is no subcommand '{name}'");
    };
    let page =
        found.clone().name(format!("buildlock-{name}")).bin_name(format!("buildlock {name}"));
    let man = Man::new(page);
    let mut text = Vec::new();
    man.render(&mut text)?;
    Ok(out.write_all(&text)?)
}

fn main_page(grammar: clap::Command, out: &mut impl Write) -> Result<()> {
    let man = Man::new(grammar.after_long_help("").after_help(""));
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    man.render_subcommands_section(&mut text)?;
    sections().to_writer(&mut text)?;
    man.render_version_section(&mut text)?;
    Ok(out.write_all(&text)?)
}

/// What the types do not know.
fn sections() -> Roff {
    const STATUS: &[(&str, &str)] = &[
        ("0", "The image exists: built now, or before."),
        (
            "124",
            "A time limit passed: --timeout (where -E gives another status, that), or --build-timeout.",
        ),
        (
            "125",
            "buildlock itself failed: wrong usage, the lock folder, an engine that cannot be asked, no image after a build that ended with 0.",
        ),
        ("126", "COMMAND cannot be executed."),
        ("127", "COMMAND was not found."),
        (
            "128+N",
            "COMMAND, or buildlock while waiting, was ended by signal N. buildlock then ends by that signal itself; a shell shows it as 128+N.",
        ),
        ("other", "COMMAND's own status."),
    ];
    const ENVIRONMENT: &[(&str, &str)] = &[
        (
            "BUILDLOCK_TIMEOUT, BUILDLOCK_BUILD_TIMEOUT, BUILDLOCK_ON_FAILURE, BUILDLOCK_ENGINE, BUILDLOCK_CHECK, BUILDLOCK_DIR, BUILDLOCK_STORE, BUILDLOCK_LOG_FORMAT",
            "What the options of the same names default to. Options win. A variable that is set to nothing counts as unset.",
        ),
        (
            "BUILDLOCK_ETCD_USER, BUILDLOCK_ETCD_PASSWORD, BUILDLOCK_ETCD_PASSWORD_FILE, BUILDLOCK_ETCD_CACERT, BUILDLOCK_ETCD_CERT, BUILDLOCK_ETCD_KEY",
            "How to be let into a store for many hosts (--store etcd://, etcds://): a user, its password or a file with it; in PEM, who signed its members' certificates, and a certificate of our own with its key.",
        ),
        (
            "BUILDLOCK_FENCE",
            "Set for COMMAND by a store for many hosts: larger for each later holder of its first tag's lock.",
        ),
        (
            "BUILDLOCK_LOG",
            "A filter for the log, as tracing has them: warn, debug, buildlock=debug. -q and -v win.",
        ),
        (
            "DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CONFIG, DOCKER_AUTH_CONFIG, DOCKER_DEFAULT_PLATFORM",
            "As for docker(1): the image is looked up where COMMAND will build it.",
        ),
        ("NO_COLOR", "No colours (see --color)."),
    ];
    const FILES: &[(&str, &str)] = &[
        (
            "/tmp/buildlock/image-locks/<sha256 of the tag>.lock",
            "The lock of a tag, taken with flock(2). The tag is Docker's familiar form with an explicit tag (env:latest). While it is held, one line of JSON in it says by whom; that is for people only.",
        ),
        ("/tmp/buildlock/named-locks/<sha256 of the name>.lock", "The lock of a name (--lock)."),
    ];
    let mut roff = Roff::new();
    for (title, entries) in
        [("EXIT STATUS", STATUS), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)]
    {
        roff.control("SH", [title]);
        for (term, text) in entries {
            roff.control("TP", []).text([bold(*term)]).text([roman(*text)]);
        }
    }
    roff.control("SH", ["EXAMPLES"]);
    for (command, text) in [
        (
            "buildlock -- docker build -t env:abc .",
            "Build env:abc unless it is there, once, however many ask.",
        ),
        (
            "buildlock -t env:abc -w 10m -- make image",
            "The same through make, waiting ten minutes at the most.",
        ),
        ("exec 9<\"$(buildlock path env:abc)\"; flock 9", "Take the same lock in a shell script."),
    ] {
        roff.control("TP", []).text([bold(command)]).text([roman(text)]);
    }
    roff.control("SH", ["SEE ALSO"])
        .text([roman("flock(1), timeout(1), docker-build(1), flock(2)")]);
    roff
}
