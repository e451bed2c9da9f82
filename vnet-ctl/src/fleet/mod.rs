//! The fleet that the agent is part of, if it is: what operators want is in a store that its hosts share, and this program writes it.

mod access;
mod change;
mod commit;
mod conflict;
mod edit;
mod force;
mod said;
mod standing;

use anyhow::{Result, bail};
use serde_json::Value;
use vnet_common::api::fleet::FleetStatus;

use crate::client::Agent;
use crate::failure::{Misused, is_not_found};
use crate::near;
use crate::output::Session;

pub use access::{Etcd, Need, StoreOptions, open};
pub use change::{Made, OPERATIONS, Wanted, make, propose, put, serial, told};
pub use conflict::{Conflict, explain};
pub use edit::{Plan, begin, edit};
pub use force::{InForce, WaitArgs, wait, wait_for};
pub use said::{Written, say};
pub use standing::{Standing, alive};

/// The fleet as the agent sees it; `None`: the agent keeps a store of its own.
pub async fn status(agent: &Agent) -> Result<Option<FleetStatus>> {
    match agent.get("/v1/fleet").await {
        Err(error) if is_not_found(&error) => Ok(None),
        found => found.map(Some),
    }
}

/// The fleet, for what makes no sense without one.
pub async fn required(session: &Session) -> Result<FleetStatus> {
    match status(&session.agent).await? {
        Some(fleet) => Ok(fleet),
        None => bail!("this host is in no fleet: its agent keeps a store of its own. docs/FLEET.md says how to make a fleet"),
    }
}

/// Where the store is: as the options say, or the agent.
pub async fn address(session: &Session) -> Result<String> {
    if let Some(store) = &session.store.address {
        return Ok(store.clone());
    }
    match status(&session.agent).await? {
        Some(fleet) => Ok(fleet.store),
        None => Err(Misused(
            "which store? Say it with --store etcd://HOST:PORT,… or VNET_STORE: the agent of this host is in no fleet that would tell"
                .to_owned(),
        )
        .into()),
    }
}

/// That the fleet knows these hosts.
pub fn known(fleet: &FleetStatus, hosts: &[String]) -> Result<()> {
    for host in hosts {
        if fleet.hosts.iter().all(|known| known.name != *host) {
            let hint = near::hint(host, fleet.hosts.iter().map(|known| known.name.as_str()), "hosts");
            bail!("the fleet has no host '{host}'; {hint}");
        }
    }
    Ok(())
}

/// The kind and name of a resource as the store has it.
pub fn place(stored: &Value) -> Option<(String, String)> {
    let resource = &stored["resource"];
    Some((resource["kind"].as_str()?.to_owned(), resource["metadata"]["name"].as_str()?.to_owned()))
}

/// A name that a host, an operator or a rollout can have: it is a user of the store, and part of its keys.
pub fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
        return Err("a name has 1 to 64 letters, digits, '-', '.' and '_'".to_owned());
    }
    if text == vnet_common::etcd::ROOT_USER {
        return Err("'root' is the store's own user".to_owned());
    }
    Ok(text.to_owned())
}

/// A name that a host can have: what an agent takes with --host.
pub fn host_name(text: &str) -> Result<String, String> {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inside = |c: char| edge(c) || "-.".contains(c);
    if text.len() > 253 || !text.chars().all(inside) || !text.starts_with(edge) || !text.ends_with(edge) {
        return Err(
            "a host's name has 1 to 253 lower-case letters, digits, '-' and '.', and begins and ends with a letter or digit"
                .to_owned(),
        );
    }
    if text == vnet_common::etcd::ROOT_USER {
        return Err("'root' is the store's own user".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_let_in_by_names_that_their_agents_take() {
        let long = "a".repeat(253);
        for text in ["host-a", "10.h", &long, "", "Host", "a_b", "-a", "a.", "a/b", &(long.clone() + "a")] {
            assert_eq!(host_name(text).is_ok(), vnet_agent::resource::is_name(text), "{text}");
        }
        assert!(host_name("root").is_err());
    }
}
