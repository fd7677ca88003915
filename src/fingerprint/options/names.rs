//! What is known about the options of the build commands.
//!
//! The lists come from the help and the sources of docker 20.10 and 28, buildx 0.30, podman and
//! buildah 1.28 to 1.43, and nerdctl 2. An option that is on none of them counts.

use crate::command::{Engine, OTHER_TARGETS};

/// What an option means for the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It does not influence the image, or something else looks after it.
    Nothing,
    /// It is read in a way of its own.
    Special,
    /// The user asks for a build.
    Rebuild,
    /// It makes the build read what buildlock does not look into.
    Unseen,
    /// It makes the build command build other targets, too, and read them.
    OtherTargets,
    /// It names a file whose content counts.
    File,
    /// It counts. Of several, the last one does.
    LastCounts,
    /// Each one counts, in order.
    AllCount,
}

/// Returns the whole name of an option that was given by its letter.
pub(super) fn long_name(name: &str, engine: Engine) -> &str {
    match name {
        "c" => "cpu-shares",
        "f" => "file",
        "m" => "memory",
        "o" => "output",
        "q" => "quiet",
        "t" => "tag",
        "v" => "volume",
        "D" if engine == Engine::Podman => "disable-compression",
        "D" => "debug",
        other => other,
    }
}

/// Options that influence how the build goes, what it writes and where, or who may build, but not
/// the image.
const NOTHING: &[&str] = &[
    "authfile",
    "builder",
    "buildkit-host",
    "cache-from",
    "cache-to",
    "cert-dir",
    "cgroup-parent",
    "compress",
    "cpu-period",
    "cpu-quota",
    "cpu-shares",
    "cpuset-cpus",
    "cpuset-mems",
    "creds",
    "debug",
    "decryption-key",
    "detach",
    "force-rm",
    "iidfile",
    "iidfile-raw",
    "jobs",
    "load",
    "log-rusage",
    "logfile",
    "logsplit",
    "manifest",
    "memory",
    "memory-swap",
    "metadata-file",
    "progress",
    "push",
    "quiet",
    "resource",
    "retry",
    "retry-delay",
    "rm",
    "rusage-logfile",
    "tag",
    "tls-verify",
    // Secrets. Documented: they do not count.
    "secret",
    "ssh",
    // Other parts of the fingerprint.
    "arch",
    "os",
    "platform",
    "variant",
];

/// Options that name a file which the build writes beside the image.
pub(super) const WRITTEN: &[&str] =
    &["iidfile", "iidfile-raw", "logfile", "metadata-file", "rusage-logfile"];

const SPECIAL: &[&str] = &[
    "build-arg",
    "build-context",
    "env",
    "file",
    "from",
    "ignorefile",
    "label",
    "output",
    "target",
];

const REBUILD: &[&str] = &["no-cache", "no-cache-filter", "pull", "pull-always"];

/// Options that make a build read folders, programs or images that are not among its inputs.
const UNSEEN: &[&str] = &[
    // Its arguments can change which images the Dockerfile names.
    "build-arg-file",
    "cpp-flag",
    "device",
    "hooks-dir",
    "mount",
    "policy",
    "sbom-scanner-image",
    // It can put another image in the place of one that the Dockerfile names.
    "source-policy-file",
    "stdin",
    "volume",
];

const FILES: &[&str] = &["env-file"];

/// Options that take one value. Switches are known by having none.
const LAST_COUNTS: &[&str] = &[
    "cgroupns",
    "compression-format",
    "compression-level",
    "format",
    "ipc",
    "isolation",
    "network",
    "os-version",
    "pid",
    "provenance",
    "sbom",
    "shm-size",
    "sign-by",
    "source-date-epoch",
    "timestamp",
    "userns",
    "uts",
];

pub(super) fn meaning(name: &str) -> Meaning {
    let lists = [
        (NOTHING, Meaning::Nothing),
        (SPECIAL, Meaning::Special),
        (REBUILD, Meaning::Rebuild),
        (UNSEEN, Meaning::Unseen),
        (FILES, Meaning::File),
        (LAST_COUNTS, Meaning::LastCounts),
    ];
    if name == OTHER_TARGETS {
        return Meaning::OtherTargets;
    }
    let list = lists.into_iter().find(|(list, _)| list.contains(&name));
    list.map_or(Meaning::AllCount, |(_, meaning)| meaning)
}

/// Variables that change the image.
pub(super) fn variables(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::Docker => &[
            // Also a build argument, for buildx.
            "SOURCE_DATE_EPOCH",
            "BUILDX_NO_DEFAULT_ATTESTATIONS",
            "BUILDX_NO_DEFAULT_OCI_ARTIFACT",
        ],
        Engine::Podman => &[
            "SOURCE_DATE_EPOCH",
            "BUILDAH_CPPFLAGS",
            "BUILDAH_FORMAT",
            "BUILDAH_HISTORY",
            "BUILDAH_ISOLATION",
            "BUILDAH_LAYERS",
        ],
        Engine::Nerdctl => &["SOURCE_DATE_EPOCH"],
    }
}
