//! Hosts' addresses, also for a program that has the C library in it.
//!
//! getaddrinfo(3) loads modules by nsswitch.conf(5), and a static program can do that only beside
//! the very version of the C library that it was linked with. getent(1) belongs to the one that is
//! there. A connection lasts for many questions, so a process for each costs nothing to speak of.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError, mpsc};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::child::{self, reap};

/// So many addresses are taken of a host: the room that there is for them.
const MOST: usize = 16;

/// Asks `getent ahosts`; where that is not there, the C library.
#[derive(Debug, Default)]
pub(super) struct Getent {
    otherwise: DefaultResolver,
    /// What it said last, for when it says nothing: who ends COMMAND may end it, too.
    known: Mutex<HashMap<String, Vec<IpAddr>>>,
}

impl Resolver for Getent {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or_default();
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return self.all([address].into_iter(), port);
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let name = host.to_owned();
        // It ends when getent does, which may take longer than anybody waits for it.
        std::thread::Builder::new().name("names".into()).spawn(move || {
            _ = sender.send(ask(&name));
        })?;
        let why = match receiver.recv_timeout(*timeout.after) {
            Ok(Ok(found)) if !found.is_empty() => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(host.to_owned(), found.clone());
                return self.all(found.into_iter(), port);
            }
            Ok(Ok(_)) => Error::HostNotFound,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return self.otherwise.resolve(uri, config, timeout);
            }
            Ok(Err(error)) => error.into(),
            Err(_) => Error::Timeout(timeout.reason),
        };
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(host).map_or(Err(why), |known| self.all(known.iter().copied(), port))
    }
}

impl Getent {
    fn all(
        &self,
        addresses: impl Iterator<Item = IpAddr>,
        port: u16,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let mut all = self.empty();
        addresses.take(MOST).for_each(|address| all.push(SocketAddr::new(address, port)));
        if all.is_empty() { Err(Error::HostNotFound) } else { Ok(all) }
    }
}

/// The addresses that it prints: none for a name that is unknown.
fn ask(host: &str) -> std::io::Result<Vec<IpAddr>> {
    let getent = duct::cmd("getent", ["ahosts", host]);
    let getent = getent.stdin_null().stderr_null().stdout_capture().unchecked();
    let _child_is_ours = reap::pause();
    let said = child::ended_with_us(getent).run()?;
    let said = String::from_utf8_lossy(&said.stdout);
    // A line for each kind of socket.
    let lines = said.lines().filter(|line| line.contains(" STREAM"));
    Ok(lines.filter_map(|line| line.split(' ').next()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve_with(getent: &Getent, uri: &str) -> Result<Vec<SocketAddr>, Error> {
        let timeout = NextTimeout {
            after: ureq::unversioned::transport::time::Duration::from_secs(30),
            ..NextTimeout::default()
        };
        let found = getent.resolve(&uri.parse().unwrap(), &Config::default(), timeout)?;
        Ok(found.to_vec())
    }

    fn resolve(uri: &str) -> Result<Vec<SocketAddr>, Error> {
        resolve_with(&Getent::default(), uri)
    }

    #[test]
    fn a_host_has_the_addresses_that_the_system_knows() {
        let found = resolve("http://localhost:2379").unwrap();
        assert!(!found.is_empty(), "localhost is unknown");
        assert!(found.iter().all(|it| it.ip().is_loopback() && it.port() == 2379), "{found:?}");
        assert!(matches!(resolve("http://no-such-host.invalid:1"), Err(Error::HostNotFound)));
    }

    #[test]
    fn what_was_known_is_used_when_nobody_says_anything() {
        let getent = Getent::default();
        getent.known.lock().unwrap().insert("gone.invalid".into(), vec![[127, 0, 0, 9].into()]);
        let found = resolve_with(&getent, "http://gone.invalid:3").unwrap();
        assert_eq!(found, ["127.0.0.9:3".parse().unwrap()]);
    }

    #[test]
    fn an_address_needs_nobody_to_be_asked() {
        assert_eq!(resolve("http://127.0.0.7:1").unwrap(), ["127.0.0.7:1".parse().unwrap()]);
        assert_eq!(resolve("http://[::1]:2").unwrap(), ["[::1]:2".parse().unwrap()]);
    }
}
