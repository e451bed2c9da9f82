//! Where the store is, and who we are to it.

use std::fmt;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use super::{Client, certificate};

/// Until a member that does not answer is given up.
const CONNECT: Duration = Duration::from_secs(2);
/// The same of a request.
const REQUEST: Duration = Duration::from_secs(5);
/// A connection that is silent is asked, and given up without an answer: a member whose machine is gone says nothing at all.
const PING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));
const SCHEME: &str = "etcd://";

/// Where the store is, and the files with which a connection proves who it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    endpoints: Vec<String>,
    tls: Option<Tls>,
}

/// Files in PEM. They are read at every connection, so that they can be replaced while an agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of those who may have signed the members' certificates.
    pub ca: PathBuf,
    /// The own certificate; its common name is the user's.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Which files there were: device, inode, time of the last change and length of each. One that was made earlier, and is moved into place,
/// has an older time than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([(u64, u64, i64, i64, u64); 3]);

impl Access {
    /// Of `etcd://host:port,host:port`.
    ///
    /// # Errors
    /// It is no such address, or would lead over a network without TLS.
    pub fn new(store: &str, tls: Option<Tls>) -> Result<Self> {
        let form = "a store is given as etcd://HOST:PORT, or several of them with commas between";
        let list = store.strip_prefix(SCHEME).with_context(|| format!("the store `{store}`: {form}"))?;
        let endpoints: Vec<String> = list.trim_end_matches('/').split(',').map(str::to_owned).collect();
        for endpoint in &endpoints {
            let (host, port) = endpoint.rsplit_once(':').with_context(|| format!("`{endpoint}` has no port: {form}"))?;
            ensure!(!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0), "`{endpoint}` is no HOST:PORT: {form}");
            ensure!(!host.contains(['/', '@', ' ']), "`{endpoint}` is no HOST:PORT: {form}");
            let name = host.trim_start_matches('[').trim_end_matches(']');
            let is_here = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            if tls.is_none() && !is_here {
                bail!(
                    "`{endpoint}` is not on this machine, and there are no certificates: give --store-ca, --store-cert and --store-key"
                );
            }
        }
        Ok(Self { endpoints, tls })
    }

    /// The members, as `host:port`.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The files; `None`: without TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Connects to one member, which has a leader.
    ///
    /// # Errors
    /// A file cannot be read, or is none of its kind; the member does not answer, is not whom it should be, or does not let us in.
    pub async fn connect(&self, endpoint: &str) -> Result<Client> {
        // Before they are read: what is replaced from here on is seen to have been.
        let stamp = self.stamp();
        let (url, options) = self.options(endpoint)?;
        let client = Client::open(&url, endpoint, options).await.map_err(|error| self.taught(error))?;
        Ok(client.with_files(stamp))
    }

    /// A member that does not take a certificate closes the connection, and that is all that is heard of it.
    fn taught(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}").to_lowercase();
        let closed = ["broken pipe", "connection closed", "connection reset", "alert"].iter().any(|sign| text.contains(sign));
        match &self.tls {
            Some(tls) if closed => error.context(format!(
                "the connection was closed, as a member does that does not take the certificate {}: see that it has not expired, \
                 and is from an authority that the members believe",
                tls.cert.display()
            )),
            _ => error,
        }
    }

    /// The same, as a user who has a password.
    pub(super) async fn connect_as(&self, endpoint: &str, user: &str, password: &str) -> Result<Client> {
        let (url, options) = self.options(endpoint)?;
        Client::open(&url, endpoint, options.with_user(user, password)).await
    }

    /// The member's URL, and what a connection to it is like.
    fn options(&self, endpoint: &str) -> Result<(String, ConnectOptions)> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_timeout(REQUEST)
            .with_keep_alive(PING.0, PING.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        Ok(match &self.tls {
            Some(tls) => (format!("https://{endpoint}"), options.with_tls(tls.read()?)),
            None => (format!("http://{endpoint}"), options),
        })
    }

    /// What tells the files from those that are put in their place; `None` without TLS, or while one is not there.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        let tls = self.tls.as_ref()?;
        let of = |file: &Path| std::fs::metadata(file).ok().map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.len()));
        Some(Stamp([of(&tls.ca)?, of(&tls.cert)?, of(&tls.key)?]))
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.endpoints.join(","))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Tls {
    /// Who the certificate says that we are: the user, to a store that checks its clients.
    ///
    /// # Errors
    /// The file cannot be read, or is no certificate with a common name.
    pub fn user(&self) -> Result<String> {
        certificate::user(&self.cert)
    }

    fn read(&self) -> Result<TlsOptions> {
        let read = |file: &Path, what: &str| std::fs::read(file).with_context(|| format!("reading {what} {}", file.display()));
        let ca = Certificate::from_pem(read(&self.ca, "the store's certificate authority")?);
        let identity =
            Identity::from_pem(read(&self.cert, "the certificate for the store")?, read(&self.key, "the key for the store")?);
        Ok(TlsOptions::new().ca_certificate(ca).identity(identity))
    }
}

/// Takes turns on the endpoints.
#[derive(Debug)]
pub struct Rotation {
    access: Access,
    next: usize,
}

impl Rotation {
    /// Begins with the endpoint at `first`, of as many as there are: agents that begin at different ones share the load.
    #[must_use]
    pub fn new(access: Access, first: usize) -> Self {
        Self { access, next: first }
    }

    /// Where this goes.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Connects to the next endpoint; after an error the one after that is next.
    ///
    /// # Errors
    /// See [`Access::connect`].
    pub async fn connect(&mut self) -> Result<Client> {
        let endpoint = &self.access.endpoints[self.next % self.access.endpoints.len()];
        self.next = self.next.wrapping_add(1);
        self.access.connect(endpoint).await
    }

    /// Connects to any endpoint: asks each once.
    ///
    /// # Errors
    /// None of them lets us in; the error names all reasons.
    pub async fn connect_any(&mut self) -> Result<Client> {
        let mut reasons = Vec::new();
        for _ in 0..self.access.endpoints.len() {
            match self.connect().await {
                Ok(client) => return Ok(client),
                Err(e) => reasons.push(format!("{e:#}")),
            }
        }
        bail!("no member of the store can be used: {}", reasons.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_put_in_place_of_others_are_told_from_them() {
        let directory = std::env::temp_dir().join(format!("vnet-stamp-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let [ca, cert, key, new] = ["ca", "cert", "key", "new"].map(|name| directory.join(name));
        let earlier = std::time::SystemTime::now() - Duration::from_secs(3600);
        for file in [&new, &ca, &cert, &key] {
            std::fs::write(file, "text").unwrap();
        }
        let access = Access::new("etcd://a:1", Some(Tls { ca, cert: cert.clone(), key })).unwrap();
        let first = access.stamp();
        assert!(first.is_some() && access.stamp() == first);
        std::fs::File::open(&new).unwrap().set_modified(earlier).unwrap();
        std::fs::rename(&new, &cert).unwrap();
        let second = access.stamp();
        assert!(second.is_some() && second != first, "it was made before the others");
        std::fs::remove_file(&cert).unwrap();
        assert_eq!(access.stamp(), None);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn addresses_of_stores() {
        let tls = || Some(Tls { ca: "a".into(), cert: "b".into(), key: "c".into() });
        let all = Access::new("etcd://a:1,[fd00::1]:2379,10.0.0.1:3", tls()).unwrap();
        assert_eq!(all.endpoints(), ["a:1", "[fd00::1]:2379", "10.0.0.1:3"]);
        assert_eq!(all.to_string(), "etcd://a:1,[fd00::1]:2379,10.0.0.1:3");
        for plain in ["etcd://localhost:2379", "etcd://127.0.0.1:2379,[::1]:2379/"] {
            assert!(Access::new(plain, None).is_ok(), "{plain}");
        }
        for (text, why) in [
            ("redb", "a store is given as"),
            ("http://a:1", "a store is given as"),
            ("etcd://", "has no port"),
            ("etcd://a", "has no port"),
            ("etcd://a:0", "no HOST:PORT"),
            ("etcd://a:x", "no HOST:PORT"),
            ("etcd://a:1,,b:2", "has no port"),
            ("etcd://user@a:1", "no HOST:PORT"),
        ] {
            let e = Access::new(text, tls()).unwrap_err();
            assert!(format!("{e:#}").contains(why), "{text}: {e:#}");
        }
        let e = Access::new("etcd://10.0.0.1:2379", None).unwrap_err();
        assert!(format!("{e:#}").contains("--store-cert"), "{e:#}");
    }
}
