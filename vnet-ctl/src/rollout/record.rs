//! What the store has of a rollout.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vnet_common::api::fleet::Proposed;
use vnet_common::etcd::{Entry, Snapshot};
use vnet_common::fleet::{Key, Rollout};

use crate::fleet::place;
use crate::near;

/// A rollout in the store.
#[derive(Debug)]
pub struct Record {
    /// Its key.
    pub key: String,
    /// Its hosts.
    pub hosts: Vec<String>,
    /// What it changes.
    pub changes: Vec<Change>,
    /// The store's revision in which it was begun.
    pub revision: i64,
}

/// A resource that a rollout changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The resource, as `loadbalancer/web`.
    pub what: String,
    /// Its key.
    pub key: String,
    /// What it is to be, as it came from the agent: also what this version does not know. `None`: it is deleted.
    pub value: Option<Value>,
    /// The revision that this was compared with; 0: it was not there.
    pub base: i64,
}

impl Change {
    /// What it was compared with is there still.
    pub fn fits(&self, snapshot: &Snapshot) -> bool {
        snapshot.entries.get(&self.key).map_or(0, |entry| entry.modified) == self.base
    }
}

/// The value for hosts that are to have these writes.
pub fn new(hosts: &[String], writes: &[Proposed]) -> Value {
    let named = |write: &Proposed| match Key::parse(&write.key) {
        Some(Key::Resource(kind, name)) => Some((kind, name)),
        _ => None,
    };
    let puts: Vec<&Value> = writes.iter().filter_map(|write| write.value.as_ref()).collect();
    let deletes: Vec<_> = writes.iter().filter(|write| write.value.is_none()).filter_map(named).collect();
    let bases: Vec<_> = writes.iter().filter_map(|write| named(write).map(|(kind, name)| (kind, name, write.base))).collect();
    json!({ "hosts": hosts, "put": puts, "delete": deletes, "bases": bases })
}

/// The rollout of this name among all that is desired.
///
/// # Errors
/// There is none, or it is nothing that this version understands.
pub fn find(snapshot: &Snapshot, name: &str) -> Result<Record> {
    let key = Key::Rollout(name.to_owned()).to_string();
    let Some(entry) = snapshot.entries.get(&key) else {
        let named = |key: &String| match Key::parse(key) {
            Some(Key::Rollout(name)) => Some(name),
            _ => None,
        };
        let names: Vec<String> = snapshot.entries.keys().filter_map(named).collect();
        bail!("there is no rollout '{name}'; {}", near::hint(name, names.iter().map(String::as_str), "rollouts"));
    };
    read(&key, entry).with_context(|| format!("reading the rollout '{name}', which a newer vnet-ctl may have written"))
}

/// All rollouts among what is desired, by their names.
///
/// # Errors
/// See [`find`].
pub fn all(snapshot: &Snapshot) -> Result<Vec<(String, Record)>> {
    let named = snapshot.entries.keys().filter_map(|key| match Key::parse(key) {
        Some(Key::Rollout(name)) => Some(name),
        _ => None,
    });
    named.map(|name| find(snapshot, &name).map(|record| (name, record))).collect()
}

fn read(key: &str, entry: &Entry) -> Result<Record> {
    let raw: Value = serde_json::from_slice(&entry.value)?;
    let known: Rollout = serde_json::from_slice(&entry.value)?;
    let mut changes = Vec::new();
    for value in raw["put"].as_array().into_iter().flatten() {
        let (kind, name) = place(value).context("a resource in it has no kind and name")?;
        changes.push((kind, name, Some(value.clone())));
    }
    changes.extend(known.delete.iter().map(|(kind, name)| (kind.clone(), name.clone(), None)));
    let change = |(kind, name, value): (String, String, Option<Value>)| {
        let base = known.bases.iter().find(|(k, n, _)| *k == kind && *n == name).map(|(.., base)| *base);
        let what = format!("{}/{name}", kind.to_lowercase());
        let base = base.with_context(|| format!("it does not say what {what} was compared with"))?;
        Ok(Change { what, key: Key::Resource(kind, name).to_string(), value, base })
    };
    let changes = changes.into_iter().map(change).collect::<Result<_>>()?;
    Ok(Record { key: key.to_owned(), hosts: known.hosts, changes, revision: entry.modified })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rollout_has_comes_back_with_what_nobody_knows() {
        let stored = json!({ "resource": { "kind": "LoadBalancer", "metadata": { "name": "web" }, "later": 1 }, "newer": [2] });
        let write = |name: &str, value: Option<Value>, base| Proposed {
            key: Key::Resource("LoadBalancer".into(), name.into()).to_string(),
            what: format!("loadbalancer/{name}"),
            value,
            base,
            before: None,
        };
        let writes = [write("web", Some(stored.clone()), 7), write("old", None, 3)];
        let value = new(&["h1".to_owned()], &writes).to_string().into_bytes();
        let record = read("k", &Entry { value, created: 9, modified: 9, lease: 0 }).unwrap();
        assert_eq!((record.hosts.as_slice(), record.revision), (&["h1".to_owned()][..], 9));
        let change = |write: &Proposed| Change {
            what: write.what.clone(),
            key: write.key.clone(),
            value: write.value.clone(),
            base: write.base,
        };
        assert_eq!(record.changes, writes.iter().map(change).collect::<Vec<_>>());
    }
}
