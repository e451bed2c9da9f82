//! How far hosts have come, by what they say in the store.

use anyhow::Result;
use vnet_common::api::fleet::HostStatus;
use vnet_common::fleet::{Applied, Key};

use super::Etcd;
use crate::style::Look;

/// What a host made of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has it in force.
    InForce,
    /// It goes on with what it had.
    Refused(String),
    /// It has come so far.
    NotYet(i64),
    /// It is not alive.
    Silent,
}

impl Standing {
    /// Of `host`, about what the store has had since `revision`.
    pub async fn of(etcd: &mut Etcd, host: &str, revision: i64) -> Result<Self> {
        if !alive(etcd, host).await? {
            return Ok(Self::Silent);
        }
        let entry = etcd.get(&Key::Applied(host.to_owned()).to_string()).await?;
        let applied: Applied = entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default();
        Ok(Self::new(applied.revision, applied.refused, applied.trouble.as_ref(), revision))
    }

    /// Of a host that is alive, has `applied` in force, and does not have `refused` because of a trouble.
    pub fn new(applied: i64, refused: Option<i64>, trouble: Option<&String>, revision: i64) -> Self {
        match trouble {
            _ if applied >= revision => Self::InForce,
            // What it refused before may be mended by what it is just taking over.
            Some(why) if refused.is_none_or(|refused| refused >= revision) => Self::Refused(why.clone()),
            _ => Self::NotYet(applied),
        }
    }

    /// In few words.
    pub fn word(&self) -> &'static str {
        match self {
            Self::InForce => "in force",
            Self::Refused(_) => "refused",
            Self::NotYet(_) => "not yet",
            Self::Silent => "silent",
        }
    }

    /// Why it is not in force.
    pub fn why(&self) -> String {
        match self {
            Self::InForce => String::new(),
            Self::Refused(why) => why.clone(),
            Self::NotYet(applied) => format!("it has revision {applied}"),
            Self::Silent => "it is not alive".to_owned(),
        }
    }

    /// As an agent tells it of a host.
    pub fn told(host: &HostStatus, revision: i64) -> Self {
        match host.alive {
            false => Self::Silent,
            true => Self::new(host.applied, host.refused_revision, host.refused.as_ref(), revision),
        }
    }

    /// How [`Standing::word`] looks.
    pub fn look(&self) -> Look {
        match self {
            Self::InForce => Look::Green,
            Self::Refused(_) => Look::Red,
            Self::NotYet(_) | Self::Silent => Look::Yellow,
        }
    }
}

/// Does the host keep its lease?
pub async fn alive(etcd: &mut Etcd, host: &str) -> Result<bool> {
    Ok(etcd.get(&Key::Alive(host.to_owned()).to_string()).await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_refused_before_says_nothing_of_what_came_since() {
        let why = "no room".to_owned();
        let refused = Standing::Refused(why.clone());
        for (applied, at, trouble, expected) in [
            (50, None, None, Standing::InForce),
            (40, None, None, Standing::NotYet(40)),
            (40, Some(50), Some(&why), refused.clone()),
            (40, Some(60), Some(&why), refused.clone()),
            (40, Some(45), Some(&why), Standing::NotYet(40)),
            (50, Some(60), Some(&why), Standing::InForce),
            // By an agent that does not say which.
            (40, None, Some(&why), refused),
        ] {
            assert_eq!(Standing::new(applied, at, trouble, 50), expected, "{applied} {at:?}");
        }
    }
}
