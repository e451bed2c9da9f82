//! `apply --canary`: a rollout begins.

use std::cell::OnceCell;

use anyhow::{Result, bail};
use serde::Serialize;
use vnet_common::api::fleet::{FleetStatus, Proposal, ProposeRequest, Proposed};
use vnet_common::api::{ApplyResponse, File};
use vnet_common::etcd::Snapshot;
use vnet_common::fleet::Key;

use super::record::{self, Record};
use crate::fleet::{self, InForce, Made, WaitArgs, Wanted, Written};
use crate::output::Session;
use crate::{apply, human};

/// What was begun, for programs.
#[derive(Serialize)]
struct Begun<'a> {
    rollout: &'a str,
    hosts: &'a [String],
    #[serde(flatten)]
    response: ApplyResponse,
    #[serde(rename = "inForce", skip_serializing_if = "Option::is_none")]
    force: Option<InForce>,
}

/// Writes what `files` change as a rollout for `hosts`, and waits until these have it in force.
pub async fn begin(
    session: &Session,
    fleet: &FleetStatus,
    files: Vec<File>,
    hosts: &[String],
    name: Option<String>,
    wait: WaitArgs,
) -> Result<u8> {
    fleet::known(fleet, hosts)?;
    let chosen = OnceCell::new();
    let name = |writes: &[Proposed]| chosen.get_or_init(|| name.clone().unwrap_or_else(|| usual(writes))).clone();
    let instead = |desired: &Snapshot, writes: &[Proposed]| {
        let name = name(writes);
        alone(desired, &name, hosts, writes)?;
        Ok(Proposed {
            key: Key::Rollout(name.clone()).to_string(),
            what: format!("rollout/{name}"),
            value: Some(record::new(hosts, writes)),
            base: 0,
            before: None,
        })
    };
    let wanted = Wanted { request: ProposeRequest::Apply { files }, what: "apply --canary".to_owned(), instead: Some(&instead) };
    let hear = |proposal: &Proposal| {
        apply::hear(session, proposal, false)?;
        if proposal.writes.is_empty() {
            bail!("there is nothing to roll out: the fleet has all of this already");
        }
        Ok(())
    };
    let made = fleet::make(session, fleet, &wanted, hear).await?;
    let Made { response, revision } = made;
    for warning in &response.warnings {
        session.warn(warning);
    }
    let rollout = name(&[]);
    let note = format!(" on {}", human::list(hosts));
    let text = format!("{}rollout/{rollout} begun\n", apply::lines(&response.changes, &note, session.paint));
    let written = Written { revision, limit: wait.wait, hosts: Some(hosts) };
    fleet::say(session, written, &text, |force| Begun { rollout: &rollout, hosts, response, force }).await?;
    if session.for_people() {
        session
            .note(&format!("for all hosts: vnet-ctl rollout promote {rollout}; back again: vnet-ctl rollout rollback {rollout}"));
    }
    Ok(0)
}

/// The name of a rollout that was given none.
fn usual(writes: &[Proposed]) -> String {
    let first = writes.first().map(|write| write.what.replace('/', "-")).unwrap_or_default();
    // As long as a name may be.
    first.chars().take(64).collect()
}

/// That no other rollout has its name, or changes the same on the same hosts.
fn alone(desired: &Snapshot, name: &str, hosts: &[String], writes: &[Proposed]) -> Result<()> {
    let ways = "promote it, roll it back, or";
    let others = record::all(desired)?;
    if others.iter().any(|(other, _)| other == name) {
        bail!("there is a rollout '{name}' already: {ways} give this one another --name");
    }
    let same = |(_, other): &&(String, Record)| {
        let changes = |write: &Proposed| other.changes.iter().any(|change| change.key == write.key);
        other.hosts.iter().any(|host| hosts.contains(host)) && writes.iter().any(changes)
    };
    match others.iter().find(same) {
        Some((other, _)) => bail!("the rollout '{other}' changes the same on the same hosts: {ways} choose other hosts"),
        None => Ok(()),
    }
}
