//! Networks of network namespaces, whose cables tests can unplug.
#![allow(dead_code, unreachable_pub)]

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{has, skip};

/// Network namespaces, each connected by a cable of its own to the hub, which is one, too.
pub struct Network {
    pub hub: String,
    pub ends: Vec<End>,
}

/// One namespace, and its end of the cable.
pub struct End {
    pub namespace: String,
    pub address: String,
    /// The cable's other end, in the hub.
    port: String,
}

impl Network {
    /// Creates a network with this many ends. If that is not allowed, says so and returns none.
    #[track_caller]
    pub fn new(ends: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !has("ip") {
            skip("needs root, and ip(8), for networks of its own");
            return None;
        }
        let name = format!("buildlock-{}-{:x}", std::process::id(), number_of_network());
        let hub = format!("{name}-hub");
        let mut network = Network { hub: hub.clone(), ends: Vec::new() };
        if !ip(&["netns", "add", &hub]) {
            skip("network namespaces are not available");
            return None;
        }
        let in_hub = |words: &[&str]| ip(&[&["-n", &hub], words].concat());
        let made = in_hub(&["link", "set", "lo", "up"])
            && in_hub(&["link", "add", "bridge", "type", "bridge"])
            && in_hub(&["addr", "add", "10.99.0.1/24", "dev", "bridge"])
            && in_hub(&["link", "set", "bridge", "up"]);
        if !made {
            skip("network bridges are not available");
            return None;
        }
        for n in 0..ends {
            let (namespace, port) = (format!("{name}-{n}"), format!("port{n}"));
            let address = format!("10.99.0.{}", n + 10);
            assert!(ip(&["netns", "add", &namespace]));
            let in_it = |words: &[&str]| ip(&[&["-n", &namespace], words].concat());
            let made = in_hub(&[
                "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
            ]) && in_hub(&["link", "set", &port, "master", "bridge"])
                && in_hub(&["link", "set", &port, "up"])
                && in_it(&["link", "set", "lo", "up"])
                && in_it(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])
                && in_it(&["link", "set", "eth0", "up"]);
            network.ends.push(End { namespace, address, port });
            if !made {
                skip("cables between network namespaces are not available");
                return None;
            }
        }
        Some(network)
    }

    /// Unplugs an end's cable.
    pub fn cut(&self, n: usize) {
        assert!(ip(&["-n", &self.hub, "link", "set", &self.ends[n].port, "down"]));
    }

    /// Plugs the cable in again.
    pub fn mend(&self, n: usize) {
        assert!(ip(&["-n", &self.hub, "link", "set", &self.ends[n].port, "up"]));
    }

    /// Returns the words in front of a program that run it at an end.
    pub fn at(&self, n: usize) -> Vec<String> {
        enter(&self.ends[n].namespace)
    }

    /// Returns the words in front of a program that run it in the hub.
    pub fn at_hub(&self) -> Vec<String> {
        enter(&self.hub)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for end in &self.ends {
            ip(&["netns", "delete", &end.namespace]);
        }
        ip(&["netns", "delete", &self.hub]);
    }
}

/// Returns the words in front of a program that run it in a namespace.
pub fn enter(namespace: &str) -> Vec<String> {
    ["ip", "netns", "exec", namespace].map(str::to_owned).to_vec()
}

fn ip(words: &[&str]) -> bool {
    let mut ip = Command::new("ip");
    ip.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ip.status().is_ok_and(|status| status.success())
}

/// Returns a number that differs between the networks of one process.
fn number_of_network() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
