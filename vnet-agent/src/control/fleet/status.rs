//! The fleet, as users see it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vnet_common::api::fleet::{FleetBrief, FleetStatus, HostStatus, RolloutStatus};

use super::super::State;
use crate::fleet::Link;

/// A store that has not been heard of for this long is worth an alarm: members are restarted now and then.
const SILENT: Duration = Duration::from_secs(5);

impl State {
    /// The whole of it; `None` if there is none.
    pub(in super::super) fn fleet_status(&self) -> Option<FleetStatus> {
        let sharing = self.sharing.as_ref()?;
        let (fleet, view, link) = (&sharing.fleet, &sharing.view, sharing.fleet.link());
        let endpoints: BTreeMap<&str, u32> = view.endpoints.hosts().map(|(host, count)| (host.as_str(), count)).collect();
        let names: BTreeSet<&String> =
            view.registered.keys().chain(view.alive.keys()).chain(view.endpoints.hosts().map(|(host, _)| host)).collect();
        let host = |name: &String| {
            let (registered, alive, applied) = (view.registered.get(name), view.alive.get(name), view.applied.get(name));
            let state = alive.map(|(_, state)| state.clone()).unwrap_or_default();
            HostStatus {
                name: name.clone(),
                alive: alive.is_some(),
                drained: registered.is_some_and(|r| r.drained),
                registered: registered.is_some(),
                version: state.version,
                zone: state.zone,
                addresses: state.addresses,
                endpoints: endpoints.get(name.as_str()).copied().unwrap_or(0),
                capacity: state.capacity,
                applied: applied.map_or(0, |a| a.revision),
                refused: applied.and_then(|a| a.trouble.clone()),
                refused_revision: applied.and_then(|a| a.refused),
            }
        };
        let rollouts = view.rollouts.iter().map(|(name, rollout)| RolloutStatus {
            name: name.clone(),
            hosts: rollout.hosts.clone(),
            changes: changes(rollout),
        });
        Some(FleetStatus {
            host: fleet.host().to_owned(),
            store: fleet.access().to_string(),
            silent_seconds: link.silent().as_secs(),
            connected: link.connected,
            trouble: link.trouble,
            revision: fleet.mirror().revision(),
            applied: sharing.desired.applied,
            refused: sharing.desired.refused.clone(),
            another: view.moment.another,
            elected: view.elected().map(str::to_owned),
            hosts: names.into_iter().map(host).collect(),
            conflicts: sharing.conflicts.iter().cloned().collect(),
            rollouts: rollouts.collect(),
        })
    }

    /// The fleet in short.
    pub(in super::super) fn fleet_brief(&self) -> Option<FleetBrief> {
        let sharing = self.sharing.as_ref()?;
        let (view, link) = (&sharing.view, sharing.fleet.link());
        let names: BTreeSet<&String> = view.registered.keys().chain(view.alive.keys()).collect();
        Some(FleetBrief {
            host: sharing.fleet.host().to_owned(),
            store: sharing.fleet.access().to_string(),
            silent_seconds: link.silent().as_secs(),
            connected: link.connected,
            applied: sharing.desired.applied,
            refused: sharing.desired.refused.is_some(),
            alive: view.alive.len() as u32,
            hosts: names.len() as u32,
        })
    }

    /// What an operator should look at.
    pub(in super::super) fn fleet_alarms(&self) -> Vec<String> {
        let Some(sharing) = self.sharing.as_ref() else { return Vec::new() };
        let mut alarms: Vec<String> = link_alarm(&sharing.fleet.link()).into_iter().collect();
        let refused = sharing.desired.refused.as_ref();
        alarms.extend(
            refused.map(|why| format!("what the store says is not in force on this host, which keeps what it had: {why}")),
        );
        alarms.extend(sharing.conflicts.iter().cloned());
        alarms.extend(sharing.desired.unknown.iter().cloned());
        let host = sharing.fleet.host();
        if sharing.is_read() && !sharing.view.registered.contains_key(host) {
            alarms.push(format!("this host is not registered: vnet-ctl host add {host}"));
        }
        alarms
    }
}

fn changes(rollout: &vnet_common::fleet::Rollout) -> Vec<String> {
    let field = |value: &serde_json::Value, at: &str| value.pointer(at).and_then(|v| v.as_str()).unwrap_or("?").to_owned();
    let put = rollout
        .put
        .iter()
        .map(|s| format!("{}/{}", field(&s.resource, "/kind").to_lowercase(), field(&s.resource, "/metadata/name")));
    put.chain(rollout.delete.iter().map(|(kind, name)| format!("{}/{name}", kind.to_lowercase()))).collect()
}

fn link_alarm(link: &Link) -> Option<String> {
    let why = link.trouble.as_deref().unwrap_or("no reason known");
    match &link.connected {
        Some(_) => link.trouble.clone(),
        None if link.silent() < SILENT => None,
        None => Some(format!(
            "the store has not been heard of for {} s: {why}. Policies, and what is known of other hosts, stay as they were",
            link.silent().as_secs()
        )),
    }
}
