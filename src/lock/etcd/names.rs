//! Looking up the addresses of hosts, even in a statically linked buildlock.
//!
//! getaddrinfo(3) loads modules named in nsswitch.conf(5). A static program can do that only where
//! the very version of the C library is installed that it was linked with. getent(1) belongs to the
//! installed one. A connection serves many questions, so one process for each hardly counts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError, mpsc};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::child::reap;
use crate::spawn;

/// The most addresses of one host that are used: ureq has no room for more.
const MOST: usize = 16;

/// Asks `getent ahosts`, or the C library if there is no getent.
#[derive(Debug, Default)]
pub(super) struct Getent {
    otherwise: DefaultResolver,
    /// The last answers, for when getent fails: whatever ends the build command may end it, too.
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
        // The thread ends when getent does, which may be after the time limit.
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

/// Returns the addresses that getent prints: none if the name is unknown.
fn ask(host: &str) -> std::io::Result<Vec<IpAddr>> {
    let getent = duct::cmd("getent", ["ahosts", host]);
    let getent = getent.stdin_null().stderr_null().stdout_capture().unchecked();
    let _child_is_ours = reap::pause();
    let said = spawn::ended_with_us(getent).run()?;
    let said = String::from_utf8_lossy(&said.stdout);
    // getent prints a line for each type of socket.
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
    fn a_host_has_the_addresses_the_system_knows() {
        let found = resolve("http://localhost:2379").unwrap();
        assert!(!found.is_empty(), "localhost is unknown");
        assert!(found.iter().all(|it| it.ip().is_loopback() && it.port() == 2379), "{found:?}");
        assert!(matches!(resolve("http://no-such-host.invalid:1"), Err(Error::HostNotFound)));
    }

    #[test]
    fn last_answer_is_used_when_the_look_up_fails() {
        let getent = Getent::default();
        getent.known.lock().unwrap().insert("gone.invalid".into(), vec![[127, 0, 0, 9].into()]);
        let found = resolve_with(&getent, "http://gone.invalid:3").unwrap();
        assert_eq!(found, ["127.0.0.9:3".parse().unwrap()]);
    }

    #[test]
    fn an_address_needs_no_look_up() {
        assert_eq!(resolve("http://127.0.0.7:1").unwrap(), ["127.0.0.7:1".parse().unwrap()]);
        assert_eq!(resolve("http://[::1]:2").unwrap(), ["[::1]:2".parse().unwrap()]);
    }
}
