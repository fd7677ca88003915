//! The engines, and the global options of their clients.

use clap::ValueEnum;

use super::options::{Names, Valued};

/// An engine whose client buildlock can talk through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// Docker Engine
    Docker,
    /// Podman
    Podman,
    /// containerd, through nerdctl
    Nerdctl,
}

impl Engine {
    /// Returns the name of the engine's client.
    pub(crate) fn client(self) -> &'static str {
        match self {
            Engine::Docker => "docker",
            Engine::Podman => "podman",
            Engine::Nerdctl => "nerdctl",
        }
    }

    /// Returns the engine that the program `name` is a client of.
    pub(super) fn of_client(name: &str) -> Option<Self> {
        match name {
            "docker" | "docker-buildx" => Some(Engine::Docker),
            // They share their storage.
            "podman" | "buildah" => Some(Engine::Podman),
            "nerdctl" => Some(Engine::Nerdctl),
            _ => None,
        }
    }

    /// Returns the client's global options that take a value, as its own help lists them.
    pub(super) fn global_options(self) -> Valued {
        Valued::Only(match self {
            Engine::Docker => DOCKER_GLOBALS,
            Engine::Podman => PODMAN_GLOBALS,
            Engine::Nerdctl => NERDCTL_GLOBALS,
        })
    }
}

const DOCKER_GLOBALS: Names = Names {
    short: "cHl",
    long: &["config", "context", "host", "log-level", "tlscacert", "tlscert", "tlskey"],
};

const PODMAN_GLOBALS: Names = Names {
    short: "cH",
    long: &[
        "cdi-spec-dir",
        "cgroup-manager",
        "config",
        "conmon",
        "connection",
        "context",
        "cpu-profile",
        "default-mounts-file",
        "events-backend",
        "hooks-dir",
        "host",
        "identity",
        "imagestore",
        "log-level",
        "max-workers",
        "memory-profile",
        "module",
        "namespace",
        "network-backend",
        "network-cmd-path",
        "network-config-dir",
        "out",
        "pull-option",
        "registries-conf",
        "registries-conf-dir",
        "root",
        "runroot",
        "runtime",
        "runtime-flag",
        "short-name-alias-conf",
        "ssh",
        "storage-driver",
        "storage-opt",
        "tls-ca",
        "tls-cert",
        "tls-details",
        "tls-key",
        "tmpdir",
        "url",
        "userns-gid-map",
        "userns-uid-map",
        "volumepath",
    ],
};

const NERDCTL_GLOBALS: Names = Names {
    short: "aHn",
    long: &[
        "address",
        "bridge-ip",
        "cdi-spec-dirs",
        "cgroup-manager",
        "cni-netconfpath",
        "cni-path",
        "data-root",
        "global-dns",
        "global-dns-opts",
        "global-dns-search",
        "host",
        "host-gateway-ip",
        "hosts-dir",
        "namespace",
        "snapshotter",
        "storage-driver",
        "userns-remap",
    ],
};
