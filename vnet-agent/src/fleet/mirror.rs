//! All keys of the store, as this host last heard of them.

use std::collections::BTreeMap;

use vnet_common::etcd::{Change, Entry, Snapshot};
use vnet_common::fleet::DESIRED;

/// A copy of the store's keys.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    entries: BTreeMap<String, Entry>,
    revision: i64,
    desired: i64,
}

impl Mirror {
    /// Of what was written to the disk: values that were good once. Nothing is watched from there.
    #[must_use]
    pub fn recalled(entries: BTreeMap<String, Entry>) -> Self {
        Self { entries, revision: 0, desired: 0 }
    }

    /// The revision of the store up to which this is; 0: it has not been read since the agent started.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The newest revision in which something that is desired changed.
    #[must_use]
    pub fn desired_revision(&self) -> i64 {
        self.desired
    }

    /// What a key has.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The keys that begin with `prefix`, in order.
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.entries.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// All keys.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Everything was read: gives the keys that are not as they were. Their leases are on no disk, and nobody's but this host's concern.
    pub fn replace(&mut self, snapshot: Snapshot) -> Vec<String> {
        let Snapshot { revision, entries } = snapshot;
        let is_same = |a: &Entry, b: &Entry| (a.created, a.modified) == (b.created, b.modified) && a.value == b.value;
        let known = |key: &String, entry: &Entry| self.entries.get(key).is_some_and(|there| is_same(there, entry));
        let mut changed: Vec<String> = entries.iter().filter(|(k, e)| !known(k, e)).map(|(k, _)| k.clone()).collect();
        changed.extend(self.entries.keys().filter(|k| !entries.contains_key(*k)).cloned());
        let is_desired = |(key, entry): (&String, &Entry)| key.starts_with(DESIRED).then_some(entry.modified);
        self.desired = entries.iter().filter_map(is_desired).max().unwrap_or(0);
        (self.entries, self.revision) = (entries, revision);
        changed
    }

    /// These happened, and everything up to `revision` was told: gives the keys.
    pub fn apply(&mut self, changes: Vec<Change>, revision: i64) -> Vec<String> {
        let mut changed = Vec::with_capacity(changes.len());
        for Change { key, entry, revision } in changes {
            if key.starts_with(DESIRED) {
                self.desired = self.desired.max(revision);
            }
            match entry {
                Some(entry) => drop(self.entries.insert(key.clone(), entry)),
                None => drop(self.entries.remove(&key)),
            }
            self.revision = self.revision.max(revision);
            changed.push(key);
        }
        // The header may be ahead of the events: what it counts has then been told, or comes with a larger revision.
        if changed.is_empty() {
            self.revision = self.revision.max(revision);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: &str, modified: i64) -> Entry {
        Entry { value: value.into(), created: 1, modified, lease: 0 }
    }

    fn change(key: &str, value: Option<&str>, revision: i64) -> Change {
        Change { key: key.into(), entry: value.map(|v| entry(v, revision)), revision }
    }

    #[test]
    fn what_is_read_anew_and_what_is_watched_give_the_same() {
        let desired = |name: &str| format!("{DESIRED}resources/Policy/{name}");
        let mut watched = Mirror::default();
        let first =
            Snapshot { revision: 5, entries: [(desired("a"), entry("1", 3)), ("/vnet/v1/state/x".into(), entry("2", 4))].into() };
        assert_eq!(watched.replace(first.clone()).len(), 2);
        assert_eq!((watched.revision(), watched.desired_revision()), (5, 3));
        let changed = watched.apply(
            vec![change(&desired("a"), None, 6), change(&desired("b"), Some("3"), 7), change("/vnet/v1/state/x", Some("4"), 8)],
            8,
        );
        assert_eq!(changed.len(), 3);
        assert_eq!((watched.revision(), watched.desired_revision()), (8, 7));
        let mut read = Mirror::default();
        read.replace(first);
        let all = [(desired("b"), entry("3", 7)), ("/vnet/v1/state/x".into(), entry("4", 8))].into();
        let mut changed = read.replace(Snapshot { revision: 8, entries: all });
        changed.sort();
        assert_eq!(changed, [desired("a"), desired("b"), "/vnet/v1/state/x".to_owned()]);
        assert_eq!((read.entries(), read.revision()), (watched.entries(), watched.revision()));
        let mut same = read.entries().clone();
        same.values_mut().for_each(|entry| entry.lease = 7);
        assert_eq!(read.replace(Snapshot { revision: 9, entries: same }), Vec::<String>::new(), "nothing new");
        assert!(read.entries().values().all(|entry| entry.lease == 7));
    }

    #[test]
    fn progress_without_changes_moves_the_revision() {
        let mut m = Mirror::default();
        m.replace(Snapshot { revision: 5, entries: BTreeMap::new() });
        m.apply(vec![], 9);
        assert_eq!(m.revision(), 9);
        m.apply(vec![change("k", Some("v"), 11)], 12);
        assert_eq!(m.revision(), 11, "more of the same moment may come");
    }
}
