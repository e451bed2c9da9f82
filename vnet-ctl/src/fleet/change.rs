//! A change: the agent says what it would be, and this program writes it if nothing was changed meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::time::sleep;
use vnet_common::api::ApplyResponse;
use vnet_common::api::fleet::{FleetStatus, Proposal, ProposeRequest, Proposed};
use vnet_common::etcd::{Condition, Entry, Outcome, Snapshot, Write};
use vnet_common::fleet::{DESIRED, SERIAL};

use super::conflict::{Conflict, explain};
use super::{Etcd, open};
use crate::failure::is_busy;
use crate::output::Session;
use crate::{human, progress};

/// What is written in one transaction, with [`SERIAL`]: etcd takes 128, unless it is told otherwise.
pub const OPERATIONS: usize = 120;
/// Its size in bytes; etcd takes 1.5 MiB.
const BYTES: usize = 1 << 20;
/// How often it is tried while others write.
pub(super) const TRIES: u32 = 10;

/// A change that was made.
#[derive(Debug)]
pub struct Made {
    /// What became of the resources.
    pub response: ApplyResponse,
    /// The store's revision that has it; `None`: there was nothing to write.
    pub revision: Option<i64>,
}

/// What became of a try.
enum Tried {
    Done(i64),
    /// Others changed something else.
    Again,
}

/// What is written in place of what the agent proposes, by all that is desired; or why it cannot be.
type Instead<'a> = dyn Fn(&Snapshot, &[Proposed]) -> Result<Proposed> + 'a;

/// A change that is wanted.
pub struct Wanted<'a> {
    /// What the agent is asked.
    pub request: ProposeRequest,
    /// What others are told of it.
    pub what: String,
    /// What is written in place of what the agent says, if not just that.
    pub instead: Option<&'a Instead<'a>>,
}

/// Makes a change. `hear` is told what it would be, before it is made.
///
/// # Errors
/// The agent refuses it, the store cannot be written, or somebody else changed the same (then the difference has been shown).
pub async fn make(
    session: &Session,
    fleet: &FleetStatus,
    wanted: &Wanted<'_>,
    hear: impl FnOnce(&Proposal) -> Result<()>,
) -> Result<Made> {
    let store = session.store.address.as_ref().unwrap_or(&fleet.store);
    // Before the agent is asked: without a certificate nothing comes of it.
    session.store.access(store)?;
    let mut proposal: Proposal = propose(session, &wanted.request).await?;
    hear(&proposal)?;
    if proposal.writes.is_empty() {
        return Ok(Made { response: proposal.response, revision: None });
    }
    let response = proposal.response.clone();
    let first: BTreeMap<String, Proposed> = proposal.writes.iter().map(|write| (write.key.clone(), write.clone())).collect();
    let mut etcd = progress::during(open(session, store)).await?;
    for again in 0..TRIES {
        check_size(&proposal.writes)?;
        let writes = match wanted.instead {
            Some(instead) => vec![instead(&etcd.read(DESIRED).await?, &proposal.writes)?],
            None => proposal.writes.clone(),
        };
        match attempt(session, &mut etcd, &proposal, &writes, &wanted.what).await? {
            Tried::Done(revision) => return Ok(Made { response, revision: Some(revision) }),
            Tried::Again => sleep(pause(again)).await,
        }
        proposal = propose(session, &wanted.request).await?;
        moved(session, &mut etcd, &first, &proposal.writes).await?;
        if proposal.writes.is_empty() {
            return Ok(Made { response: proposal.response, revision: None });
        }
    }
    bail!(
        "nothing was written: others change the store at {store} all the time, or the agent of this host does not keep up with it \
         (vnet-ctl status says); try again"
    )
}

/// What a change would be. An agent that is just taking over another one is asked again.
///
/// # Errors
/// The agent refuses it.
pub async fn propose(session: &Session, request: &ProposeRequest) -> Result<Proposal> {
    for again in 1..TRIES {
        match session.agent.post("/v1/fleet/propose", request).await {
            Err(error) if is_busy(&error) => sleep(pause(again)).await,
            done => return done,
        }
    }
    session.agent.post("/v1/fleet/propose", request).await
}

/// Between two tries, the more the longer: the agent has to hear of what others wrote.
pub(super) fn pause(tries: u32) -> Duration {
    Duration::from_millis(100 << tries.min(3))
}

/// What [`SERIAL`] gets: who does what.
pub fn serial(what: &str) -> Value {
    let name = |uid| nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let uid = nix::unistd::getuid();
    // Who became root with sudo is of more interest than root.
    let sudo = std::env::var("SUDO_USER").ok().filter(|user| uid.is_root() && !user.is_empty());
    let user = sudo.or_else(|| name(uid)).unwrap_or_else(|| uid.to_string());
    let host = nix::sys::utsname::uname().map(|names| names.nodename().to_string_lossy().into_owned()).unwrap_or_default();
    Value::String(format!("{user}@{host}: {what}"))
}

/// What whoever wrote last said of it.
pub fn told(entry: Option<&Entry>) -> String {
    let text = entry.and_then(|entry| serde_json::from_slice::<String>(&entry.value).ok());
    human::clean(&text.unwrap_or_else(|| "by somebody who did not say who".to_owned()))
}

/// As the store has it.
pub fn put(key: &str, value: &Value) -> Write {
    Write::Put(key.to_owned(), value.to_string().into_bytes(), 0)
}

/// That one transaction has room for it.
fn check_size(writes: &[Proposed]) -> Result<()> {
    if writes.len() >= OPERATIONS {
        bail!(
            "nothing was written: this changes {} resources, and the store takes {} in one change. Make several of it, each of them \
             right by itself",
            writes.len(),
            OPERATIONS - 1
        );
    }
    let bytes: usize = writes.iter().map(|write| write.key.len() + write.value.as_ref().map_or(0, |v| v.to_string().len())).sum();
    if bytes > BYTES {
        bail!(
            "nothing was written: this change has {}, and the store takes {} in one. Make several of it, each of them right by itself",
            human::bytes(bytes as u64),
            human::bytes(BYTES as u64)
        );
    }
    Ok(())
}

/// Writes it if nothing that is desired was changed since it was proposed.
async fn attempt(session: &Session, etcd: &mut Etcd, proposal: &Proposal, writes: &[Proposed], what: &str) -> Result<Tried> {
    // A rollout is one key, which is about others: these must be as they were, too.
    let compared: BTreeMap<&str, i64> = proposal.writes.iter().chain(writes).map(|write| (&*write.key, write.base)).collect();
    let compared = compared.into_iter().chain([(SERIAL, proposal.serial)]);
    let conditions: Vec<_> = compared.map(|(key, revision)| Condition { key: key.to_owned(), revision }).collect();
    let serial = [put(SERIAL, &serial(what))];
    let operations: Vec<_> = writes.iter().map(write).chain(serial).collect();
    match etcd.commit(&conditions, &operations, proposal.serial).await? {
        Outcome::Done(revision) => Ok(Tried::Done(revision)),
        Outcome::Conflict => look(session, etcd, writes).await,
    }
}

fn write(write: &Proposed) -> Write {
    match &write.value {
        Some(value) => put(&write.key, value),
        None => Write::Delete(write.key.clone()),
    }
}

/// What has become of the keys that were to be written: all of them are like this already (a write whose answer was lost), or others
/// changed none of them; else the difference is shown and this is an error.
async fn look(session: &Session, etcd: &mut Etcd, writes: &[Proposed]) -> Result<Tried> {
    let mut newest = 0;
    let mut all = true;
    let mut conflicts = Vec::new();
    for write in writes {
        let now = etcd.get(&write.key).await?;
        let value: Option<Value> = now.as_ref().and_then(|entry| serde_json::from_slice(&entry.value).ok());
        let revision = now.as_ref().map_or(0, |entry| entry.modified);
        newest = newest.max(revision);
        if value == write.value && revision != write.base {
            continue;
        }
        all = false;
        if revision != write.base {
            conflicts.push(Conflict {
                what: write.what.clone(),
                was: Some(write.before.clone()),
                now: value,
                wanted: write.value.clone(),
            });
        }
    }
    if conflicts.is_empty() {
        // What was deleted has no revision any more: that of the last change is not older.
        let serial = etcd.get(SERIAL).await?.map_or(0, |entry| entry.modified);
        return Ok(if all { Tried::Done(newest.max(serial)) } else { Tried::Again });
    }
    Err(lost(session, etcd, &conflicts).await)
}

/// That nobody changed what is to be written since it was proposed for the first time: otherwise a new proposal would hide it.
async fn moved(session: &Session, etcd: &mut Etcd, first: &BTreeMap<String, Proposed>, writes: &[Proposed]) -> Result<()> {
    let conflict = |write: &Proposed| {
        let was = match first.get(&write.key) {
            Some(first) if first.base == write.base => return None,
            Some(first) => first.before.clone(),
            // It was like this already.
            None => write.value.clone(),
        };
        Some(Conflict { what: write.what.clone(), was: Some(was), now: write.before.clone(), wanted: write.value.clone() })
    };
    let conflicts: Vec<_> = writes.iter().filter_map(conflict).collect();
    if conflicts.is_empty() { Ok(()) } else { Err(lost(session, etcd, &conflicts).await) }
}

/// Shows what others changed; the error that follows from it.
async fn lost(session: &Session, etcd: &mut Etcd, conflicts: &[Conflict]) -> anyhow::Error {
    let last = match etcd.get(SERIAL).await {
        Ok(entry) => told(entry.as_ref()),
        Err(error) => return error,
    };
    explain(session, conflicts, &last)
}
