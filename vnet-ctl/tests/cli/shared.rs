//! What the agent answers where there is a fleet: proposals from what is in a real store, and hosts that are made up.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use vnet_agent::api::{Control, Refusal};
use vnet_common::api::fleet::*;
use vnet_common::api::*;
use vnet_common::etcd::{Access, Client, Snapshot, Write};
use vnet_common::fleet::{DESIRED, Key, Rollout, SERIAL};

use crate::support::Memory;

type Fake = State<Arc<Memory>>;
type Answer<T> = Result<Json<T>, Refusal>;

/// A host with this has in force what the store has.
pub const FOLLOWS: i64 = i64::MAX;

/// The fleet that an agent is in.
pub struct Fleet {
    pub access: Access,
    pub hosts: Vec<HostStatus>,
    pub elected: Option<String>,
    pub conflicts: Vec<String>,
    /// What others write before a proposal is made, and after it: one pair for each.
    pub others: Vec<[Vec<Write>; 2]>,
    /// Proposals made from what there was at the first of them.
    pub stale: u32,
    pub seen: Option<Snapshot>,
    /// These requests for a proposal come while the agent takes over a change.
    pub busy: Vec<bool>,
}

impl Fleet {
    /// Of hosts that follow the store.
    pub fn of(access: Access, hosts: &[&str]) -> Self {
        let host = |name: &&str| HostStatus {
            name: (*name).to_owned(),
            alive: true,
            registered: true,
            version: "1.2.3".to_owned(),
            zone: Some("z1".to_owned()),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            endpoints: 4,
            capacity: 100,
            applied: FOLLOWS,
            ..HostStatus::default()
        };
        let hosts: Vec<_> = hosts.iter().map(host).collect();
        let elected = hosts.first().map(|host| host.name.clone());
        Self { access, hosts, elected, conflicts: Vec::new(), others: Vec::new(), stale: 0, seen: None, busy: Vec::new() }
    }

    async fn client(&self) -> Client {
        self.access.connect(&self.access.endpoints()[0]).await.unwrap()
    }
}

/// The routes.
pub fn router(memory: Arc<Memory>) -> Router {
    Router::new()
        .route("/v1/fleet", get(fleet))
        .route("/v1/fleet/propose", post(propose))
        .route("/v1/store/content", get(content))
        .with_state(memory)
}

/// The fleet in short.
pub fn brief(fleet: &Fleet) -> FleetBrief {
    FleetBrief {
        host: fleet.hosts[0].name.clone(),
        store: fleet.access.to_string(),
        connected: Some(fleet.access.endpoints()[0].clone()),
        silent_seconds: 0,
        applied: 0,
        refused: false,
        alive: fleet.hosts.iter().filter(|host| host.alive).count() as u32,
        hosts: fleet.hosts.len() as u32,
    }
}

fn none() -> Refusal {
    Refusal::not_found("this agent keeps a store of its own")
}

async fn fleet(State(memory): Fake) -> Answer<FleetStatus> {
    let guard = memory.fleet.lock().await;
    let fleet = guard.as_ref().ok_or_else(none)?;
    let desired = fleet.client().await.read(DESIRED).await.unwrap();
    let mut hosts = fleet.hosts.clone();
    for host in hosts.iter_mut().filter(|host| host.applied == FOLLOWS) {
        host.applied = desired.revision;
    }
    let rollout = |(key, entry): (&String, &vnet_common::etcd::Entry)| {
        let Some(Key::Rollout(name)) = Key::parse(key) else { return None };
        let rollout: Rollout = serde_json::from_slice(&entry.value).unwrap();
        let changes = rollout.bases.iter().map(|(kind, name, _)| format!("{}/{name}", kind.to_lowercase())).collect();
        Some(RolloutStatus { name, hosts: rollout.hosts, changes })
    };
    let FleetBrief { host, store, connected, .. } = brief(fleet);
    Ok(Json(FleetStatus {
        host,
        store,
        connected,
        revision: desired.revision,
        applied: desired.revision,
        elected: fleet.elected.clone(),
        hosts,
        conflicts: fleet.conflicts.clone(),
        rollouts: desired.entries.iter().filter_map(rollout).collect(),
        ..FleetStatus::default()
    }))
}

async fn propose(State(memory): Fake, Json(request): Json<ProposeRequest>) -> Answer<Proposal> {
    let mut guard = memory.fleet.lock().await;
    let fleet = guard.as_mut().ok_or_else(none)?;
    memory.note("propose", &request);
    if !fleet.busy.is_empty() && fleet.busy.remove(0) {
        return Err(Refusal::conflict("this host is just taking over a change: try again"));
    }
    let mut client = fleet.client().await;
    let [before, after] = if fleet.others.is_empty() { Default::default() } else { fleet.others.remove(0) };
    client.write(&before).await.unwrap();
    let now = client.read(DESIRED).await.unwrap();
    let known = match fleet.stale.checked_sub(1) {
        Some(less) => {
            fleet.stale = less;
            fleet.seen.get_or_insert(now).clone()
        }
        None => now,
    };
    let wanted = match request {
        ProposeRequest::Apply { files } => applied(&memory, files)?,
        ProposeRequest::Delete { resources, ignore_not_found } => deleted(&known, resources, ignore_not_found)?,
        ProposeRequest::Member { lb, member, change } => vec![changed(&memory, &known, &lb, &member, &change)?],
        // The real agent checks it against the whole.
        ProposeRequest::Promote { .. } => Vec::new(),
    };
    let mut response = ApplyResponse { changes: Vec::new(), warnings: Vec::new(), effects: None };
    let mut writes = Vec::new();
    for (key, value) in wanted {
        let entry = known.entries.get(&key.to_string());
        let before: Option<Value> = entry.map(|entry| serde_json::from_slice(&entry.value).unwrap());
        // What is not known stays, as the agent has it.
        let value = value.map(|value| with_unknown(value, before.as_ref()));
        let action = match (&before, &value) {
            (None, _) => Action::Created,
            (Some(_), None) => Action::Deleted,
            (Some(before), Some(value)) if before == value => Action::Unchanged,
            _ => Action::Configured,
        };
        let (kind, name) = match &key {
            Key::Resource(kind, name) => (kind.clone(), name.clone()),
            other => ("member".to_owned(), other.to_string()),
        };
        let what = format!("{}/{name}", kind.to_lowercase());
        if action != Action::Unchanged {
            let base = entry.map_or(0, |entry| entry.modified);
            writes.push(Proposed { key: key.to_string(), what, value, base, before });
        }
        response.changes.push(Change { kind, name, action, diff: String::new() });
    }
    let serial = known.entries.get(SERIAL).map_or(0, |entry| entry.modified);
    client.write(&after).await.unwrap();
    Ok(Json(Proposal { response, serial, writes }))
}

fn with_unknown(mut value: Value, before: Option<&Value>) -> Value {
    if let Some(newer) = before.and_then(|before| before.get("newer")) {
        value["newer"] = newer.clone();
    }
    value
}

fn applied(memory: &Memory, files: Vec<File>) -> Result<Vec<(Key, Option<Value>)>, Refusal> {
    let parsed = files.iter().map(|file| serde_saphyr::from_multiple::<Value>(&file.text).unwrap());
    let documents: Vec<Value> = parsed.flatten().collect();
    // Refuses what has faults.
    memory.apply(ApplyRequest { files, delete: Vec::new(), dry_run: true })?;
    let stored = |document: Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let key = Key::Resource(text(&document["kind"]), text(&document["metadata"]["name"]));
        (key, Some(json!({"resource": document, "origin": {"file": "web.yaml", "line": 1}})))
    };
    Ok(documents.into_iter().map(stored).collect())
}

fn deleted(known: &Snapshot, resources: Vec<(String, String)>, ignore: bool) -> Result<Vec<(Key, Option<Value>)>, Refusal> {
    let keys: Vec<Key> = resources.into_iter().map(|(kind, name)| Key::Resource(kind, name)).collect();
    let (there, missing): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| known.entries.contains_key(&key.to_string()));
    match missing.is_empty() || ignore {
        true => Ok(there.into_iter().map(|key| (key, None)).collect()),
        false => Err(Refusal::not_found("some are not there")),
    }
}

fn changed(
    memory: &Memory,
    known: &Snapshot,
    lb: &str,
    member: &str,
    change: &MemberChange,
) -> Result<(Key, Option<Value>), Refusal> {
    // As the one host that there really is has it, and refuses what it does not know.
    memory.change_member(lb, member, change.clone())?;
    let key = Key::Override(lb.to_owned(), member.to_owned());
    let entry = known.entries.get(&key.to_string());
    let mut value =
        entry.map_or_else(|| json!({"drained": false, "weight": null}), |e| serde_json::from_slice(&e.value).unwrap());
    if let Some(drained) = change.drained {
        value["drained"] = drained.into();
    }
    if let Some(weight) = change.weight {
        value["weight"] = if weight < 0 { Value::Null } else { weight.into() };
    }
    Ok((key, Some(value)))
}

/// What the agent's own store has, with a field that only this agent knows.
async fn content(State(memory): Fake) -> Json<Value> {
    let stored = |resource: Value| json!({"resource": resource, "origin": {"file": "own.yaml", "line": 3}, "newer": true});
    let resources: Vec<Value> = memory.resources(None).unwrap_or_default().into_iter().map(stored).collect();
    let overrides = memory.overrides.lock().unwrap();
    let overrides: Vec<_> = overrides.iter().map(|((lb, member), value)| (lb, member, value)).collect();
    Json(json!({"resources": resources, "overrides": overrides}))
}
