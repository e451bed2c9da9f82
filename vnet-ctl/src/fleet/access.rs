//! Getting into the store as an operator.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep};
use vnet_common::etcd::{Access, Client, Entry, Failure, Rotation, Snapshot, Tls};

use crate::output::Session;

/// Where the store is and who we are to it, as options, environment and files say.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// As `etcd://…`.
    pub address: Option<String>,
    /// Authorities, certificate and key.
    pub files: [Option<PathBuf>; 3],
}

/// Until members that have no leader are given up.
const ELECTION: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// What the options of [`StoreOptions::files`] are called.
const OPTIONS: [&str; 3] = ["--store-ca", "--store-cert", "--store-key"];
/// How a missing certificate is come by.
const HOW: &str = "give an operator's with --store-ca, --store-cert and --store-key (or VNET_STORE_CA, VNET_STORE_CERT and \
                   VNET_STORE_KEY), or put ca.crt, tls.crt and tls.key into ~/.config/vnet/operator; docs/FLEET.md says how to make one";

/// What is done with the store, for the error that we may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Something is read.
    Read,
    /// What is desired is written.
    Policy,
    /// Users and roles are.
    Roles,
}

/// A connection to the store.
pub struct Etcd {
    /// Of which member.
    pub client: Client,
    /// How it came about.
    pub access: Access,
    user: Option<String>,
}

impl StoreOptions {
    /// How to get into `store`.
    ///
    /// # Errors
    /// It is no address of a store, or leads over a network while there is no certificate; some files are given, and others are not.
    pub fn access(&self, store: &str) -> Result<Access> {
        let missing: Vec<&str> =
            OPTIONS.into_iter().zip(&self.files).filter(|(_, file)| file.is_none()).map(|(name, _)| name).collect();
        let tls = match &self.files {
            [Some(ca), Some(cert), Some(key)] => Some(Tls { ca: ca.clone(), cert: cert.clone(), key: key.clone() }),
            [None, None, None] => usual(),
            _ => return Err(anyhow!("a certificate for the store is three files, and there is no {}", missing.join(" and no "))),
        };
        let certain = tls.is_some();
        Access::new(store, tls).map_err(|error| match format!("{error:#}") {
            text if !certain && text.contains("there are no certificates") => {
                anyhow!("the store {store} is to be written by this program, and it has no certificate for it: {HOW}")
            }
            text => anyhow!(text),
        })
    }
}

/// The files that are there without being named, if all of them are.
fn usual() -> Option<Tls> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    let directory = PathBuf::from(home).join(".config/vnet/operator");
    let [ca, cert, key] = ["ca.crt", "tls.crt", "tls.key"].map(|name| directory.join(name));
    (ca.exists() && cert.exists() && key.exists()).then_some(Tls { ca, cert, key })
}

/// Connects to a member of `store`.
///
/// # Errors
/// See [`StoreOptions::access`] and [`Access::connect`]; the error says what to do.
pub async fn open(session: &Session, store: &str) -> Result<Etcd> {
    let access = session.store.access(store)?;
    let user = access.tls().map(Tls::user).transpose()?;
    match connect(&access).await {
        Ok(client) => Ok(Etcd { client, access, user }),
        // Asked without TLS, a member that wants it does not say so.
        Err(error) if user.is_none() => Err(anyhow!("{error:#}; if the store wants a certificate, {HOW}")),
        Err(error) => Err(teach(error, user.as_deref(), Need::Read)),
    }
}

/// Connects to any member. They may be choosing another leader, since the one they had is gone: that is over in seconds.
async fn connect(access: &Access) -> Result<Client> {
    let end = Instant::now() + ELECTION;
    loop {
        let connected = Rotation::new(access.clone(), 0).connect_any().await;
        match &connected {
            Err(error) if format!("{error:#}").contains("no leader") && Instant::now() < end => sleep(PAUSE).await,
            _ => return connected,
        }
    }
}

impl Etcd {
    /// Who we are to it, if we have a certificate.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Every key that begins with `prefix`, at one moment.
    pub async fn read(&mut self, prefix: &str) -> Result<Snapshot> {
        let read = self.client.read(prefix).await;
        read.map_err(|error| self.teach(error, Need::Read))
    }

    /// One key.
    pub async fn get(&mut self, key: &str) -> Result<Option<Entry>> {
        let got = self.client.get(key).await;
        got.map_err(|error| self.teach(error, Need::Read))
    }

    /// Connects anew, to any member.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.client = connect(&self.access).await?;
        Ok(())
    }

    /// An error, with what to do if it is that we may not do this.
    pub fn teach(&self, error: anyhow::Error, need: Need) -> anyhow::Error {
        teach(error, self.user.as_deref(), need)
    }
}

fn teach(error: anyhow::Error, user: Option<&str>, need: Need) -> anyhow::Error {
    // What `connect_any` puts together of several errors is text only.
    let denied = Failure::in_error(&error) == Failure::Denied || format!("{error:#}").contains("permission denied");
    let (may_not, instead) = match need {
        _ if !denied => return error,
        Need::Read => ("read what vnet keeps in the store", "use an operator's"),
        Need::Policy => ("write policy", "use an operator's"),
        Need::Roles => ("change the store's users and roles", "use root's"),
    };
    match user {
        Some(user) => {
            error.context(format!("the certificate's user {user} may not {may_not}: {instead} (--store-cert and --store-key)"))
        }
        None => error.context(format!("whoever has no certificate may not {may_not}: {HOW}")),
    }
}
