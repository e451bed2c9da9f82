//! Making the store check who its clients are, so that nobody is locked out.

use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

use super::error::Told;
use super::{Access, Client, Failure, ROOT_USER, RoleSet};

/// Users whose names begin so were made for a way back.
const RESCUER: &str = "vnet-rescue-";
/// Until members that do not answer are given up.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);

impl RoleSet<'_> {
    /// Makes the store check who its clients are, from now on.
    ///
    /// # Errors
    /// See [`RoleSet::operators`].
    pub async fn enable(&mut self) -> Result<()> {
        self.user(ROOT_USER, ROOT_USER).await?;
        let enabled = self.0.inner.auth_enable().await.map_err(Told::from);
        enabled.map(drop).context("making the store check its clients")
    }

    /// [`RoleSet::enable`], if the store takes `access` for root's then; else it is as before. A store that does not look at the names in
    /// certificates could never be asked for anything again.
    ///
    /// # Errors
    /// See [`RoleSet::operators`]; or the store does not take us for root. The error says so if it could not be made as before.
    pub async fn enable_for(&mut self, access: &Access) -> Result<()> {
        // Another root, with a password that nobody knows, for the way back.
        let (rescuer, password) = (format!("{RESCUER}{}", random()?), random()?);
        if let Err(error) = self.begin(access, &rescuer, &password).await {
            // It cannot do anything; the next who sets this store up removes it, too.
            let _ = removed(access, &rescuer).await;
            return Err(error);
        }
        let asked = async |endpoint: &str| {
            let mut client = access.connect(endpoint).await?;
            RoleSet(&mut client).users().await
        };
        let Err(error) = patiently(access, asked).await else { return removed(access, &rescuer).await };
        let back = async |endpoint: &str| {
            let mut client = access.connect_as(endpoint, &rescuer, &password).await?;
            client.inner.auth_disable().await.map(drop).map_err(|error| Told::from(error).into())
        };
        if let Err(why) = patiently(access, back).await {
            bail!(
                "the store checks its clients from now on, but took this certificate for {ROOT_USER}'s at no member ({error:#}), and \
                 could not be made to check nobody again ({why:#}). When its members answer, do this again. If they do not know {ROOT_USER} \
                 by this certificate, restart them with --client-cert-auth and --trusted-ca-file: then they do"
            );
        }
        // Its token is worth nothing any more.
        let _ = removed(access, &rescuer).await;
        bail!(
            "the store did not take this certificate for {ROOT_USER}'s, and checks nobody, as before ({error:#}): its members must run \
             with --client-cert-auth and --trusted-ca-file"
        )
    }

    /// Makes the way back, and makes the store check its clients.
    async fn begin(&mut self, access: &Access, rescuer: &str, password: &str) -> Result<()> {
        self.role_of_root().await?;
        let made = self.0.inner.user_add(rescuer, password, None).await.map_err(Told::from);
        made.with_context(|| format!("making the store's user {rescuer}"))?;
        let granted = self.0.inner.user_grant_role(rescuer, ROOT_USER).await.map_err(Told::from);
        granted.with_context(|| format!("giving the store's user {rescuer} the role {ROOT_USER}"))?;
        let Err(error) = self.enable().await else { return Ok(()) };
        // Its answer may have been lost.
        match patiently(access, async |endpoint| Self::is_enabled(access, endpoint).await).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(error),
        }
    }

    /// Removes those who were made for a way back, and stayed as the connection broke.
    ///
    /// # Errors
    /// See [`RoleSet::operators`].
    pub async fn remove_rescuers(&mut self) -> Result<()> {
        for user in self.users().await?.iter().filter(|user| user.starts_with(RESCUER)) {
            self.remove_user(user).await?;
        }
        Ok(())
    }
}

async fn removed(access: &Access, rescuer: &str) -> Result<()> {
    let remove = async |endpoint: &str| {
        let mut client: Client = access.connect(endpoint).await?;
        RoleSet(&mut client).remove_user(rescuer).await
    };
    patiently(access, remove).await
}

/// Asks one member after the other until one answers, for a while; not again if each says that we may not.
async fn patiently<T>(access: &Access, ask: impl AsyncFn(&str) -> Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut last = None;
        let mut denied = 0;
        for endpoint in access.endpoints() {
            match ask(endpoint).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    denied += usize::from(Failure::in_error(&error) == Failure::Denied);
                    last = Some(error);
                }
            }
        }
        match last {
            Some(error) if denied == access.endpoints().len() || Instant::now() >= end => return Err(error),
            _ => sleep(PAUSE).await,
        }
    }
}

/// What nobody guesses, in hexadecimal digits.
fn random() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("reading /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
