//! `rollout promote` and `rollout rollback`.

use anyhow::{Result, bail};
use serde::Serialize;
use vnet_common::api::fleet::ProposeRequest;
use vnet_common::etcd::{Snapshot, Write};
use vnet_common::fleet::{DESIRED, SERIAL};

use super::record::{self, Change, Record};
use super::{PromoteArgs, RollbackArgs};
use crate::fleet::{self, Conflict, Etcd, InForce, Plan, Standing, Written};
use crate::output::Session;
use crate::style::{Look, Paint};

/// How often a rollout is checked while others write.
const TRIES: u32 = 10;

/// What became of a rollout, for programs.
#[derive(Serialize)]
struct Finished {
    rollout: String,
    /// `promoted` or `rolled back`.
    action: &'static str,
    /// What it changed.
    changes: Vec<String>,
    #[serde(rename = "inForce", skip_serializing_if = "Option::is_none")]
    force: Option<InForce>,
}

/// Runs `rollout promote`.
pub async fn promote(session: &Session, args: PromoteArgs) -> Result<u8> {
    let name = &args.which.name;
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    let record = record::find(&etcd.read(DESIRED).await?, name)?;
    tried(session, &mut etcd, name, &record, args.force).await?;
    let request = ProposeRequest::Promote { rollout: name.clone() };
    for _ in 0..TRIES {
        // What fits the hosts that try it need not fit what all have by now.
        let checked = fleet::propose(session, &request).await?.serial;
        let plan = |snapshot: &Snapshot| promotion(session, snapshot, name, checked);
        // Nothing: something else was changed meanwhile, and the whole is to be checked again.
        if let (revision, Some(changes)) = fleet::edit(&mut etcd, &format!("promote {name}"), plan).await? {
            let written = Written { revision, limit: args.wait.wait, hosts: None };
            return tell(session, written, Finished { rollout: name.clone(), action: "promoted", changes, force: None }).await;
        }
    }
    bail!("rollout '{name}' was not promoted: others change the store all the time; try again")
}

/// What is to be written, and what it changes; nothing if what is desired is not what was `checked`.
fn promotion(session: &Session, snapshot: &Snapshot, name: &str, checked: i64) -> Result<Plan<Option<Vec<String>>>> {
    let record = record::find(snapshot, name)?;
    let last = snapshot.entries.get(SERIAL);
    if last.map(|entry| entry.modified) != Some(checked) {
        return Ok(Plan { writes: Vec::new(), about: None });
    }
    let conflicts: Vec<_> = record.changes.iter().filter_map(|change| conflict(snapshot, change)).collect();
    if !conflicts.is_empty() {
        return Err(fleet::explain(session, &conflicts, &fleet::told(last)));
    }
    let write = |change: &Change| match &change.value {
        Some(value) => fleet::put(&change.key, value),
        None => Write::Delete(change.key.clone()),
    };
    let mut writes: Vec<_> = record.changes.iter().map(write).collect();
    writes.push(Write::Delete(record.key.clone()));
    Ok(Plan { writes, about: Some(record.changes.iter().map(|change| change.what.clone()).collect()) })
}

/// That the hosts that were to try it have it in force, or that this does not matter.
async fn tried(session: &Session, etcd: &mut Etcd, name: &str, record: &Record, force: bool) -> Result<()> {
    for host in &record.hosts {
        let standing = Standing::of(etcd, host, record.revision).await?;
        match standing {
            Standing::InForce => {}
            other if force => session.warn(&format!("host {host} does not have it in force: {}", other.why())),
            other => bail!(
                "host {host} was to try the rollout '{name}', and does not have it in force ({}): see to it, or promote it all the same \
                 with --force",
                other.why()
            ),
        }
    }
    Ok(())
}

/// What somebody else made of a resource since the rollout was begun; unless it is what this would make of it.
fn conflict(snapshot: &Snapshot, change: &Change) -> Option<Conflict> {
    let now = snapshot.entries.get(&change.key).and_then(|entry| serde_json::from_slice(&entry.value).ok());
    let other = !change.fits(snapshot) && now != change.value;
    other.then(|| Conflict { what: change.what.clone(), was: None, now, wanted: change.value.clone() })
}

/// Runs `rollout rollback`.
pub async fn rollback(session: &Session, args: RollbackArgs) -> Result<u8> {
    let name = &args.which.name;
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    let plan = |snapshot: &Snapshot| {
        let record = record::find(snapshot, name)?;
        Ok(Plan { writes: vec![Write::Delete(record.key.clone())], about: record })
    };
    let (revision, record) = fleet::edit(&mut etcd, &format!("rollback {name}"), plan).await?;
    let written = Written { revision, limit: args.wait.wait, hosts: Some(&record.hosts) };
    let changes = record.changes.into_iter().map(|change| change.what).collect();
    tell(session, written, Finished { rollout: name.clone(), action: "rolled back", changes, force: None }).await
}

async fn tell(session: &Session, written: Written<'_>, finished: Finished) -> Result<u8> {
    let text = text(&finished, session.paint);
    fleet::say(session, written, &text, |force| Finished { force, ..finished }).await?;
    Ok(0)
}

fn text(finished: &Finished, paint: Paint) -> String {
    let action = paint.paint(Look::Yellow, finished.action);
    let changes: String = finished.changes.iter().map(|what| format!("{what} {action}\n")).collect();
    format!("{changes}rollout/{} {action}\n", finished.rollout)
}
