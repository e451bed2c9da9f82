//! Leases: what a host says of itself is gone when it does not keep its lease.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use etcd_client::{Error, LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::timeout;

use super::Client;
use super::error::Told;

/// A lease, and the stream on which it is kept.
#[derive(Debug)]
pub struct Lease {
    id: i64,
    ttl: i64,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

/// Until a lease that is not answered for is given up with its connection.
const PATIENCE: Duration = Duration::from_secs(3);

impl Client {
    /// Takes a lease again that this host had (`former`), if it is still there and of `ttl` seconds; else a new one.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn lease(&mut self, former: Option<i64>, ttl: i64) -> Result<Lease> {
        if let Some(id) = former
            && let Some(mut lease) = self.keep(id, ttl).await?
            && lease.renewed().await? == ttl
        {
            return Ok(lease);
        }
        let granted = self.inner.lease_grant(ttl, None).await.map_err(Told::from);
        let id = granted.with_context(|| format!("taking a lease at the store at {}", self.endpoint()))?.id();
        let kept = self.keep(id, ttl).await?;
        kept.with_context(|| format!("a lease that was just taken at the store at {} is gone", self.endpoint()))
    }

    /// Renews it, and can from then on; `None`: it is gone.
    async fn keep(&mut self, id: i64, ttl: i64) -> Result<Option<Lease>> {
        match self.inner.lease_keep_alive(id).await {
            Ok((keeper, answers)) => Ok(Some(Lease { id, ttl, keeper, answers })),
            // The library renews it once, and this is how it says that there was nothing to renew.
            Err(Error::LeaseKeepAliveError(why)) if why == "lease not found" => Ok(None),
            Err(e) => Err(Told::from(e)).with_context(|| format!("keeping a lease at the store at {}", self.endpoint())),
        }
    }

    /// Gives up a lease, and all that has it.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn revoke(&mut self, id: i64) -> Result<()> {
        let revoked = self.inner.lease_revoke(id).await.map_err(Told::from);
        revoked.map(drop).with_context(|| format!("giving up a lease at the store at {}", self.endpoint()))
    }
}

impl Lease {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Between two renewals: so that two may fail.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_secs_f64(self.ttl as f64 / 3.0)
    }

    /// Renews it; `false`: it is gone, and all that had it.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn renew(&mut self) -> Result<bool> {
        Ok(self.renewed().await? > 0)
    }

    /// Renews it. Gives the seconds for which it is there without that.
    async fn renewed(&mut self) -> Result<i64> {
        let renewed = async {
            self.keeper.keep_alive().await.map_err(Told::from)?;
            match self.answers.message().await.map_err(Told::from)? {
                Some(answer) => Ok(answer.ttl()),
                None => bail!("the store ended the stream on which leases are kept"),
            }
        };
        match timeout(PATIENCE, renewed).await {
            Ok(result) => result.context("keeping the lease"),
            Err(_) => bail!("the store does not answer for the lease"),
        }
    }
}
