//! Prints completion scripts and man pages, both made from the types of the command line.

use std::io::Write;

use anyhow::{Result, bail};
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;
use crate::exit;

/// Prints a completion script for `shell`.
///
/// # Errors
/// The output cannot be written.
pub fn completions(shell: clap_complete::Shell, out: &mut impl Write) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "buildlock", &mut script);
    Ok(out.write_all(&script)?)
}

/// Prints the man page of `subcommand`, or buildlock(1) without one.
///
/// # Errors
/// There is no such subcommand, or the output cannot be written.
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
    written_sections().to_writer(&mut text)?;
    man.render_version_section(&mut text)?;
    Ok(out.write_all(&text)?)
}

/// Variables that buildlock reads or sets, in the order of the man page.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "BUILDLOCK_TIMEOUT, BUILDLOCK_BUILD_TIMEOUT, BUILDLOCK_IF_CHANGED, BUILDLOCK_ON_FAILURE, BUILDLOCK_MAX_BUILDS, BUILDLOCK_ENGINE, BUILDLOCK_CHECK, BUILDLOCK_DIR, BUILDLOCK_STORE, BUILDLOCK_LOG_FORMAT",
        "Defaults for the options with these names. Options win. An empty variable counts as unset.",
    ),
    (
        "BUILDLOCK_ETCD_USER, BUILDLOCK_ETCD_PASSWORD, BUILDLOCK_ETCD_PASSWORD_FILE, BUILDLOCK_ETCD_CACERT, BUILDLOCK_ETCD_CERT, BUILDLOCK_ETCD_KEY",
        "Credentials for a store for many hosts (--store etcd://, etcds://): a user, and its password or a file that contains the password. In PEM: the CA certificate for the cluster's members, and a client certificate with its key.",
    ),
    (
        "BUILDLOCK_FENCE",
        "Set for the build command by a store for many hosts. The number grows with each holder of the first tag's lock.",
    ),
    (
        "BUILDLOCK_LABEL",
        "Set for the build command with --if-changed: the label for the image, NAME=VALUE. A known build command gets it as --label.",
    ),
    (
        "BUILDLOCK_LOG",
        "A log filter in the syntax of tracing: warn, debug, buildlock=debug. -q and -v win.",
    ),
    (
        "DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CONFIG, DOCKER_AUTH_CONFIG, DOCKER_DEFAULT_PLATFORM",
        "Read as docker(1) reads them: the image is looked up where the build command will build it.",
    ),
    ("NO_COLOR", "No colours (see --color)."),
];

const FILES: &[(&str, &str)] = &[
    (
        "/tmp/buildlock/image-locks/<sha256 of the tag>.lock",
        "The lock of a tag, taken with flock(2). The tag is Docker's familiar form with an explicit tag (env:latest). While the lock is held, one line of JSON in the file names the holder. That line is for people only.",
    ),
    (
        "/tmp/buildlock/named-locks/<sha256 of the name>.lock",
        "The lock of a name (--lock, --share).",
    ),
    (
        "/tmp/buildlock/build-slots/<number>.lock",
        "A slot (--max-builds). *.bell.lock and *.turnstile.lock are for those that wait.",
    ),
    (
        "$XDG_CACHE_HOME/buildlock/ (~/.cache/buildlock/)",
        "Hashes of files, so that --if-changed need not read them again, and their names, for \
         buildlock fingerprint --diff. May be deleted at any time.",
    ),
];

const EXAMPLES: &[(&str, &str)] = &[
    (
        "buildlock -- docker build -t env:abc .",
        "Build env:abc if it does not exist; once, however many processes ask for it.",
    ),
    (
        "buildlock -t env:abc -w 10m -- make image",
        "The same through make, waiting ten minutes at most.",
    ),
    ("exec 9<\"$(buildlock path env:abc)\"; flock 9", "Take the same lock in a shell script."),
];

/// Returns the sections that cannot be made from the types.
fn written_sections() -> Roff {
    let mut roff = Roff::new();
    add_list(&mut roff, "EXIT STATUS", &exit::MEANINGS);
    roff.control("PP", []).text([roman(
        "When a signal ends the build command, buildlock ends by the same signal. A shell shows \
         that as 128+N. Subcommands exit with 2 for wrong usage.",
    )]);
    add_list(&mut roff, "ENVIRONMENT", ENVIRONMENT);
    add_list(&mut roff, "FILES", FILES);
    add_list(&mut roff, "EXAMPLES", EXAMPLES);
    roff.control("SH", ["SEE ALSO"])
        .text([roman("flock(1), timeout(1), docker-build(1), flock(2)")]);
    roff
}

/// Adds a section that explains terms.
fn add_list(roff: &mut Roff, title: &str, entries: &[(&str, &str)]) {
    roff.control("SH", [title]);
    for (term, text) in entries {
        roff.control("TP", []).text([bold(*term)]).text([roman(*text)]);
    }
}
