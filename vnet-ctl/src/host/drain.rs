//! `host drain` and `host undrain`.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vnet_common::etcd::Snapshot;
use vnet_common::fleet::Key;

use super::{Done, DrainArgs};
use crate::fleet::{self, Plan, Written};
use crate::near;
use crate::output::Session;

/// Runs it.
pub async fn run(session: &Session, args: DrainArgs, drained: bool) -> Result<u8> {
    let name = &args.name;
    let store = fleet::address(session).await?;
    let mut etcd = fleet::open(session, &store).await?;
    let plan = |snapshot: &Snapshot| {
        let (key, mut registration) = registration(snapshot, name)?;
        let was = registration["drained"].as_bool().unwrap_or(false);
        registration["drained"] = drained.into();
        let writes = if was == drained { Vec::new() } else { vec![fleet::put(&key, &registration)] };
        Ok(Plan { writes, about: () })
    };
    let word = if drained { "drain" } else { "undrain" };
    let (revision, ()) = fleet::edit(&mut etcd, &format!("{word} host {name}"), plan).await?;
    let action = match (revision, drained) {
        (None, true) => "drained already",
        (None, false) => "not drained",
        (Some(_), true) => "drained",
        (Some(_), false) => "undrained",
    };
    let written = Written { revision, limit: args.wait.wait, hosts: None };
    let done = |force| Done { host: name.clone(), action, number: None, force };
    fleet::say(session, written, &done(None).line(), done).await?;
    Ok(0)
}

/// A host's registration: its key and what it says, also what this version does not know.
pub fn registration(snapshot: &Snapshot, name: &str) -> Result<(String, Value)> {
    let key = Key::Registration(name.to_owned()).to_string();
    let Some(entry) = snapshot.entries.get(&key) else {
        let named = |key: &String| match Key::parse(key) {
            Some(Key::Registration(name)) => Some(name),
            _ => None,
        };
        let names: Vec<String> = snapshot.entries.keys().filter_map(named).collect();
        bail!("host '{name}' is not registered; {}", near::hint(name, names.iter().map(String::as_str), "registered hosts"));
    };
    let value: Value = serde_json::from_slice(&entry.value).with_context(|| format!("reading {key} from the store"))?;
    match value.is_object() {
        true => Ok((key, value)),
        false => bail!("{key} in the store is no registration of a host"),
    }
}
