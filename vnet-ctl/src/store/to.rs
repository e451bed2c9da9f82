//! `store migrate --to`: from the agent's own store into an etcd.

use anyhow::{Result, bail};
use serde_json::Value;
use vnet_common::etcd::Write;
use vnet_common::fleet::{DESIRED, SERIAL};

use super::Report;
use super::content::{Desired, counted, few, what};
use super::write::Writing;
use crate::fleet;
use crate::output::Session;

/// Runs it.
pub async fn run(session: &Session, store: &str, replace: bool) -> Result<u8> {
    // Of a store that was lost what its hosts have in force is all that is left.
    let member = fleet::status(&session.agent).await?;
    if let Some(fleet) = member.as_ref().filter(|fleet| !fleet.another) {
        bail!("the agent of this host is in a fleet already, with {}: `store backup` and `store restore` move that", fleet.store);
    }
    let wanted = content(session).await?;
    let mut etcd = fleet::open(session, store).await?;
    let snapshot = etcd.read(DESIRED).await?;
    let found = Desired::of_store(&snapshot)?.without_hosts();
    let same = |a: &Value, b: &Value| a == b;
    if !found.0.is_empty() && !replace && !wanted.differences(&found, same).is_empty() {
        let names: Vec<String> = found.0.keys().map(|key| what(key)).collect();
        bail!(
            "nothing was written: {store} has resources already ({}); --replace deletes what the agent does not have",
            few(&names)
        );
    }
    let gone = found.0.keys().filter(|key| !wanted.0.contains_key(*key)).map(|key| Write::Delete(key.clone()));
    let new = wanted.0.iter().filter(|(key, kept)| found.0.get(*key).is_none_or(|found| found.value != kept.value));
    let writes: Vec<Write> = new.map(|(key, kept)| fleet::put(key, &kept.value)).chain(gone).collect();
    let serial = snapshot.entries.get(SERIAL).map_or(0, |entry| entry.modified);
    Writing::new(&mut etcd, serial, "store migrate").finish(&writes).await?;
    let read = Desired::of_store(&etcd.read(DESIRED).await?)?.without_hosts();
    let differences = wanted.differences(&read, same);
    if !differences.is_empty() {
        bail!("what was read back from {store} is not what the agent has: {}", few(&differences));
    }
    let meanwhile = wanted.differences(&content(session).await?, same);
    if !meanwhile.is_empty() {
        bail!("the agent's resources were changed meanwhile ({}): do it again, with --replace", few(&meanwhile));
    }
    let mut report = Report::default();
    report.done.push(format!("{} are in {}, read back and compared", counted(&wanted.counts()), etcd.access));
    report.next = if member.is_some() {
        vec!["the hosts of the fleet follow the store from now on: vnet-ctl host ls".to_owned()]
    } else {
        vec![
            format!("if that was not done: vnet-ctl store init --store {} --operator NAME --host HOST", etcd.access),
            format!("start the agent with --store {} (and its certificate, see docs/FLEET.md)", etcd.access),
            "until then, change nothing on this host: it would not be in the store".to_owned(),
        ]
    };
    report.show(session)
}

/// What the agent has in its own store.
pub async fn content(session: &Session) -> Result<Desired> {
    Desired::of_agent(&session.agent.get::<Value>("/v1/store/content").await?)
}
