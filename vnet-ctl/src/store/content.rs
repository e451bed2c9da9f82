//! All that operators want, wherever it comes from: values by their keys in the store.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vnet_common::etcd::Snapshot;
use vnet_common::fleet::{Key, SERIAL};

use crate::fleet::place;
use crate::human;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The store's revision that has it; 0: it is from no etcd.
    pub revision: i64,
    /// As it is: also what this version does not know.
    pub value: Value,
}

/// Values by their keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired(pub BTreeMap<String, Kept>);

/// How many there are, by what they are.
pub type Counts = BTreeMap<String, u64>;

/// Differences that are named.
const NAMED: usize = 10;

impl Desired {
    /// What the store has.
    ///
    /// # Errors
    /// A value is no JSON.
    pub fn of_store(snapshot: &Snapshot) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (key, entry) in snapshot.entries.iter().filter(|(key, _)| *key != SERIAL) {
            let value = serde_json::from_slice(&entry.value);
            let value = value.with_context(|| format!("{key} in the store is no JSON: no vnet-ctl wrote it"))?;
            all.insert(key.clone(), Kept { revision: entry.modified, value });
        }
        Ok(Self(all))
    }

    /// What an agent has in a store of its own: the answer to `GET /v1/store/content`.
    ///
    /// # Errors
    /// It is something else.
    pub fn of_agent(content: &Value) -> Result<Self> {
        let mut all = BTreeMap::new();
        let mut add = |key: Key, value: &Value| all.insert(key.to_string(), Kept { revision: 0, value: value.clone() });
        let list = |name: &str| content[name].as_array().with_context(|| format!("the agent's answer has no list of {name}"));
        for stored in list("resources")? {
            let (kind, name) = place(stored).context("a resource in the agent's answer has no kind and name")?;
            add(Key::Resource(kind, name), stored);
        }
        for change in list("overrides")? {
            let (Some(lb), Some(member)) = (change[0].as_str(), change[1].as_str()) else {
                bail!("a change of a member in the agent's answer does not say of which");
            };
            add(Key::Override(lb.to_owned(), member.to_owned()), &change[2]);
        }
        Ok(Self(all))
    }

    /// Those that this version knows, and for which this is true of their key.
    pub fn filter(&self, which: impl Fn(&Key) -> bool) -> Self {
        let wanted = |key: &&String| Key::parse(key).is_some_and(|key| which(&key));
        Self(self.0.iter().filter(|(key, _)| wanted(key)).map(|(key, kept)| (key.clone(), kept.clone())).collect())
    }

    /// All but the hosts, also what this version does not know.
    pub fn without_hosts(&self) -> Self {
        let others = self.0.iter().filter(|(key, _)| !matches!(Key::parse(key), Some(Key::Registration(_))));
        Self(others.map(|(key, kept)| (key.clone(), kept.clone())).collect())
    }

    /// Resources, and what was changed of members: what an agent can have in a store of its own.
    pub fn of_one_host(&self) -> Self {
        self.filter(|key| matches!(key, Key::Resource(..) | Key::Override(..)))
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for key in self.0.keys() {
            *counts.entry(sort(key).to_owned()).or_default() += 1;
        }
        counts
    }

    /// What is not the same in `found`, each as `loadbalancer/web is missing`; what is more there, too.
    pub fn differences(&self, found: &Self, same: impl Fn(&Value, &Value) -> bool) -> Vec<String> {
        let missing = self.0.iter().filter_map(|(key, kept)| match found.0.get(key) {
            None => Some(format!("{} is missing", what(key))),
            Some(other) if !same(&kept.value, &other.value) => Some(format!("{} differs", what(key))),
            Some(_) => None,
        });
        let more = found.0.keys().filter(|key| !self.0.contains_key(*key)).map(|key| format!("{} is there as well", what(key)));
        missing.chain(more).collect()
    }
}

/// `3 resources, 1 member, 2 hosts`.
pub fn counted(counts: &Counts) -> String {
    let named: Vec<String> = counts.iter().map(|(sort, number)| human::count(*number, sort)).collect();
    if named.is_empty() { "nothing".to_owned() } else { named.join(", ") }
}

/// The first of them, and how many more there are.
pub fn few(items: &[String]) -> String {
    let more = items.len().saturating_sub(NAMED);
    let shown = items[..items.len() - more].join(", ");
    if more > 0 { format!("{shown}, and {more} more") } else { shown }
}

/// What a key is about, in one word.
fn sort(key: &str) -> &'static str {
    match Key::parse(key) {
        Some(Key::Resource(..)) => "resource",
        Some(Key::Override(..)) => "member change",
        Some(Key::Registration(_)) => "host",
        Some(Key::Rollout(_)) => "rollout",
        _ => "unknown value",
    }
}

/// What a key is about, as `loadbalancer/web`.
pub fn what(key: &str) -> String {
    match Key::parse(key) {
        Some(Key::Resource(kind, name)) => format!("{}/{name}", kind.to_lowercase()),
        Some(Key::Override(lb, member)) => format!("member {lb}/{member}"),
        Some(Key::Registration(host)) => format!("host/{host}"),
        Some(Key::Rollout(name)) => format!("rollout/{name}"),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_an_agent_has_lies_where_the_store_would_have_it() {
        let lb = json!({"resource": {"kind": "LoadBalancer", "metadata": {"name": "web"}}, "later": 1});
        let content = json!({"resources": [lb], "overrides": [["web", "a", {"drained": true, "weight": null}]]});
        let all = Desired::of_agent(&content).unwrap();
        let keys: Vec<_> = all.0.keys().map(String::as_str).collect();
        assert_eq!(keys, ["/vnet/v1/desired/overrides/web/a", "/vnet/v1/desired/resources/LoadBalancer/web"]);
        assert_eq!(all.0[keys[1]].value, lb);
        assert_eq!(counted(&all.counts()), "1 member change, 1 resource");
        for wrong in [json!({}), json!({"resources": [{}], "overrides": []}), json!({"resources": [], "overrides": [["a"]]})] {
            assert!(Desired::of_agent(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_difference_is_named() {
        let of = |values: &[(&str, i64)]| {
            let key = |name: &str| Key::Resource("Policy".into(), name.into()).to_string();
            Desired(values.iter().map(|(name, n)| (key(name), Kept { revision: *n, value: json!(n) })).collect())
        };
        let same = |a: &Value, b: &Value| a == b;
        assert_eq!(of(&[("a", 1), ("b", 2)]).differences(&of(&[("a", 1), ("b", 2)]), same), Vec::<String>::new());
        let differences = of(&[("a", 1), ("b", 2), ("c", 3)]).differences(&of(&[("a", 1), ("b", 9), ("d", 4)]), same);
        assert_eq!(differences, ["policy/b differs", "policy/c is missing", "policy/d is there as well"]);
        assert_eq!(few(&differences[..2]), "policy/b differs, policy/c is missing");
    }
}
