//! Where an etcd cluster is, `etcd://HOST:PORT[,HOST:PORT...]/PREFIX?ttl=15s`, and the credentials
//! for it. These come from the environment and from files, never from the address, which everyone
//! on the machine can read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::{Connector, RustlsConnector, TcpConnector};

use super::client::Client;
use super::members::Login;
use super::names::Getent;
use super::punctual::Punctual;

/// The default time to live of a lease.
const TTL: Duration = Duration::from_secs(15);
/// Shorter leases leave no time to end a build. Longer ones keep a dead holder's lock for too long.
const TTL_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(5)..=Duration::from_secs(600);
/// The default port of etcd's members.
const PORT: u16 = 2379;
/// Longest prefix of keys, in bytes.
const PREFIX_MAX: usize = 512;

/// A cluster, and the credentials for it.
#[derive(Debug)]
pub struct Address {
    /// `etcd://…` as typed, without the query.
    shown: String,
    members: Vec<String>,
    /// In front of all keys; without a slash at its end.
    pub(super) prefix: String,
    /// How long a lease lasts unless it is renewed.
    pub(super) ttl: Duration,
    login: Option<Login>,
    roots: Option<Vec<Certificate<'static>>>,
    certificate: Option<ClientCert>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Address {
    /// Returns whether this is the address of a cluster, rather than a folder.
    pub fn is_one(url: &str) -> bool {
        url.starts_with("etcd://") || url.starts_with("etcds://")
    }

    /// Reads an address, and the files that the environment names (BUILDLOCK_ETCD_*).
    ///
    /// # Errors
    /// The address is not valid, or a file cannot be read or has the wrong content.
    pub fn parse(url: &str) -> Result<Self> {
        let address = Self::parse_with(url, |name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        })
        .with_context(|| format!("--store: {}", crate::visible::escaped(&without_user(url))))?;
        if address.shows_the_password() {
            tracing::warn!(
                "{address}: the password goes over the network unencrypted; use etcds://"
            );
        }
        Ok(address)
    }

    /// Returns whether an eavesdropper on the way to a member can read the password.
    fn shows_the_password(&self) -> bool {
        let is_far = |member: &String| {
            let host = member.strip_prefix("http://").unwrap_or_default();
            !member.starts_with("https:")
                && !["127.", "localhost:", "[::1]:"].iter().any(|near| host.starts_with(near))
        };
        self.login.is_some() && self.members.iter().any(is_far)
    }

    fn parse_with(url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let is_secure = scheme == "etcds";
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // A password may contain a slash, so look beyond the hosts.
        if url.contains('@') {
            bail!(
                "the address names a user, and everyone on this machine can read it; \
                 set BUILDLOCK_ETCD_USER and BUILDLOCK_ETCD_PASSWORD, or BUILDLOCK_ETCD_PASSWORD_FILE"
            );
        }
        let members: Vec<String> =
            hosts.split(',').map(|host| member(host, is_secure)).collect::<Result<_>>()?;
        let prefix = prefix.trim_matches('/');
        if prefix.len() > PREFIX_MAX || prefix.chars().any(|c| c.is_control() || c == '#') {
            bail!("a prefix has at most {PREFIX_MAX} bytes, no '#' and no control characters");
        }
        let ttl = ttl_in(query)?;
        let login = login(&variable)?;
        let file = |name: &str| variable(name).map(PathBuf::from);
        let roots = file("BUILDLOCK_ETCD_CACERT").map(|file| certificates(&file)).transpose()?;
        let certificate = match (file("BUILDLOCK_ETCD_CERT"), file("BUILDLOCK_ETCD_KEY")) {
            (Some(cert), Some(key)) => {
                Some(ClientCert::new_with_certs(&certificates(&cert)?, private_key(&key)?))
            }
            (None, None) => None,
            _ => bail!("BUILDLOCK_ETCD_CERT and BUILDLOCK_ETCD_KEY must be set together"),
        };
        if !is_secure && (roots.is_some() || certificate.is_some()) {
            bail!("certificates for etcd are set, but only an etcds:// address uses them");
        }
        let slash = if prefix.is_empty() { "" } else { "/" };
        Ok(Address {
            shown: format!("{scheme}://{hosts}{slash}{prefix}"),
            members,
            prefix: format!("/{prefix}").trim_end_matches('/').to_owned(),
            ttl,
            login,
            roots,
            certificate,
        })
    }

    pub(super) fn client(&self) -> Client {
        let roots = self.roots.as_deref().map_or(RootCerts::WebPki, RootCerts::new_with_certs);
        let tls = TlsConfig::builder().root_certs(roots).client_cert(self.certificate.clone());
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A lock is requested from its cluster directly.
            .proxy(None)
            .user_agent(concat!("buildlock/", env!("CARGO_PKG_VERSION")));
        // A silent member must leave time to ask another.
        let within = (self.ttl / 8).clamp(Duration::from_secs(1), Duration::from_secs(5));
        let connector = ().chain(TcpConnector::default()).chain(Punctual);
        let connector = connector.chain(RustlsConnector::default());
        let agent = Agent::with_parts(config.build(), connector, Getent::default());
        Client::new(agent, self.members.clone(), self.login.clone(), within)
    }
}

/// Reads `ttl=` from an address.
fn ttl_in(query: &str) -> Result<Duration> {
    let mut ttl = TTL;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let Some(("ttl", value)) = part.split_once('=') else {
            bail!("'{part}' is unknown; only ttl= may follow the '?'");
        };
        let limit = crate::duration::parse_limit(value).map_err(anyhow::Error::msg)?;
        ttl = limit
            .unless_zero()
            .filter(|ttl| TTL_RANGE.contains(ttl))
            .with_context(|| format!("ttl={value}: a lease lasts from 5s to 10m"))?;
    }
    Ok(ttl)
}

/// Reads the user and the password from the environment, if there is a user.
fn login(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Login>> {
    let password = match variable("BUILDLOCK_ETCD_PASSWORD") {
        Some(password) => Some(password),
        None => {
            variable("BUILDLOCK_ETCD_PASSWORD_FILE").map(|file| password_in(&file)).transpose()?
        }
    };
    match (variable("BUILDLOCK_ETCD_USER"), password) {
        (Some(user), Some(password)) => Ok(Some(Login { user, password })),
        (None, None) => Ok(None),
        (Some(_), None) => bail!(
            "BUILDLOCK_ETCD_USER is set without BUILDLOCK_ETCD_PASSWORD or \
             BUILDLOCK_ETCD_PASSWORD_FILE"
        ),
        (None, Some(_)) => bail!("a password for etcd is set without BUILDLOCK_ETCD_USER"),
    }
}

fn password_in(file: &str) -> Result<String> {
    let text =
        String::from_utf8(read(Path::new(file))?).with_context(|| format!("{file} is not text"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Returns `http://HOST:PORT` for `HOST[:PORT]`.
fn member(host: &str, is_secure: bool) -> Result<String> {
    let scheme = if is_secure { "https" } else { "http" };
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, rest)) => (format!("[{name}]"), rest.strip_prefix(':')),
        None => match host.split_once(':') {
            Some((name, port)) => (name.to_owned(), Some(port)),
            None => (host.to_owned(), None),
        },
    };
    let port = port.map_or(Ok(PORT), str::parse::<u16>);
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
    match port {
        Ok(port) if !name.is_empty() && name.chars().all(is_name) => {
            Ok(format!("{scheme}://{name}:{port}"))
        }
        _ => bail!("'{host}' is not HOST or HOST:PORT"),
    }
}

/// Removes credentials from an address, since messages are for everyone to read.
fn without_user(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or_default())
        }
        None => url.to_owned(),
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    // Check before opening: a FIFO would block until its other end is opened.
    let about =
        std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    if !about.is_file() {
        bail!("{} is not a regular file", file.display());
    }
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>> {
    let text = read(file)?;
    let found: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        bail!("{} contains no certificate in PEM format", file.display());
    }
    Ok(found)
}

fn private_key(file: &Path) -> Result<PrivateKey<'static>> {
    PrivateKey::from_pem(&read(file)?)
        .ok()
        .with_context(|| format!("{} contains no private key in PEM format", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address> {
        Address::parse_with(url, |_| None)
    }

    #[test]
    fn an_address_has_members_a_prefix_and_a_lease() {
        let address = parse("etcd://a:1,b,[::1]:3/ci/locks/?ttl=1m").unwrap();
        assert_eq!(address.members, ["http://a:1", "http://b:2379", "http://[::1]:3"]);
        assert_eq!((address.prefix.as_str(), address.ttl), ("/ci/locks", Duration::from_secs(60)));
        let address = parse("etcds://a").unwrap();
        assert_eq!(address.members, ["https://a:2379"]);
        assert_eq!((address.prefix.as_str(), address.ttl), ("", TTL));
        assert_eq!(address.to_string(), "etcds://a");
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for url in [
            "etcd://",
            "etcd:///p",
            "etcd://a:b",
            "etcd://a,,b",
            "etcd://a/p?ttl=1s",
            "etcd://a/p?ttl=none",
            "etcd://a/p?tls=1",
            "etcd://me:secret@a/p",
            "etcd://a/p\n",
        ] {
            assert!(parse(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn password_in_an_address_is_not_repeated() {
        for url in ["etcd://me:secret@a/p", "etcd://me:secret/x@a/p", "etcd://me:secret?@x@a/p"] {
            let shown = format!("{:#}", Address::parse(url).unwrap_err());
            assert!(shown.contains("etcd://a/p") && !shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn password_that_others_can_read_causes_a_warning() {
        let login = |name: &str| {
            ["BUILDLOCK_ETCD_USER", "BUILDLOCK_ETCD_PASSWORD"].contains(&name).then(|| "x".into())
        };
        let shown = |url: &str| Address::parse_with(url, login).unwrap().shows_the_password();
        assert!(shown("etcd://127.0.0.1,far/p") && shown("etcd://far"));
        for url in ["etcds://far", "etcd://127.0.0.1,localhost:1,[::1]:2"] {
            assert!(!shown(url), "{url}");
        }
        assert!(!parse("etcd://far").unwrap().shows_the_password());
    }

    #[test]
    fn variables_must_fit_together() {
        for variables in [
            &[("BUILDLOCK_ETCD_USER", "me")][..],
            &[("BUILDLOCK_ETCD_PASSWORD", "x")],
            &[("BUILDLOCK_ETCD_CERT", "/dev/null")],
            &[("BUILDLOCK_ETCD_CACERT", "/dev/null")],
            &[("BUILDLOCK_ETCD_USER", "me"), ("BUILDLOCK_ETCD_PASSWORD_FILE", "/none")],
        ] {
            let variable = |name: &str| {
                let found = variables.iter().find(|(given, _)| *given == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            assert!(Address::parse_with("etcds://a/p", variable).is_err(), "{variables:?}");
        }
    }
}
