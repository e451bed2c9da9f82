//! How far hosts have come, by what they say in the store.

use anyhow::Result;
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
        Ok(match applied.trouble {
            _ if applied.revision >= revision => Self::InForce,
            Some(why) => Self::Refused(why),
            None => Self::NotYet(applied.revision),
        })
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
