//! All keys of the store, as this host last heard of them.

use std::collections::{BTreeMap, BTreeSet};

use vnet_common::etcd::{Change, Entry, Snapshot};
use vnet_common::fleet::{ALIVE_SECONDS, DESIRED, EndpointState, Key, SERIAL};

use super::disk::Recalled;

/// For so many seconds without a break a host has to be alive, until it has said all that it has to say: one whose lease came with the
/// store is gone by then, and whoever waited to connect again is back.
const BACK: u32 = ALIVE_SECONDS as u32 + 5;
/// No store comes so far meanwhile: it was set back, and told to count from further on (`etcdutl snapshot restore --bump-revision`).
const BUMP: i64 = 500_000_000;

/// A copy of the store's keys.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    entries: BTreeMap<String, Entry>,
    revision: i64,
    desired: i64,
    /// Keys with other values than when they were told last.
    untold: BTreeSet<String>,
    /// Keys with other values than on the disk.
    unkept: BTreeSet<String>,
    /// The revision up to which the disk was, as long as nothing else is known; 0: it is not to be gone by.
    kept: i64,
    /// What hosts said in the store that was there before, and what this one has instead: they have not said it again.
    inherited: BTreeMap<String, Option<Entry>>,
    /// For so many seconds this store has been heard of since it took that one's place.
    since: u32,
    /// The same, for hosts that are alive, since they are.
    back: BTreeMap<String, u32>,
    replaced: u64,
    another: bool,
}

/// How far a mirror had come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The revision of the store; 0: it has not been read since the agent started.
    pub revision: i64,
    /// The newest revision in which something that is desired changed.
    pub desired: i64,
    /// That of the key which is written with all that is desired; `None`: the store was never set up.
    pub serial: Option<i64>,
    /// How often the store was another than before, or was set back.
    pub replaced: u64,
    /// It is, and nothing of it has been in force here yet.
    pub another: bool,
}

/// Does it say of an endpoint that it is held?
fn is_held(entry: &Entry) -> bool {
    serde_json::from_slice::<EndpointState>(&entry.value).is_ok_and(|state| state.quarantined)
}

impl Mirror {
    /// Of what was written to the disk: values that were good once.
    #[must_use]
    pub fn recalled(recalled: Recalled, another: bool) -> Self {
        let Recalled { entries, inherited, revision } = recalled;
        // Of those that are inherited the store knew nothing.
        let inherited: BTreeMap<_, _> =
            inherited.into_iter().filter(|key| entries.contains_key(key)).map(|key| (key, None)).collect();
        let untold = entries.keys().cloned().collect();
        let kept = if another || !inherited.is_empty() { 0 } else { revision };
        Self { entries, inherited, untold, kept, another, replaced: another.into(), ..Self::default() }
    }

    /// The revision from which the store can be followed without reading all of it again; 0: none.
    #[must_use]
    pub fn known(&self) -> i64 {
        if self.revision > 0 { self.revision } else { self.kept }
    }

    fn newest_desired(&self) -> i64 {
        self.below(DESIRED).map(|(_, entry)| entry.modified).max().unwrap_or(0)
    }

    fn noted(&mut self, changed: Vec<String>) -> Vec<String> {
        self.untold.extend(changed.iter().cloned());
        self.unkept.extend(changed.iter().cloned());
        changed
    }

    /// The keys that are not on the disk as they are here, and the revision that it is of when they are.
    pub fn take_unkept(&mut self) -> (BTreeSet<String>, i64) {
        (std::mem::take(&mut self.unkept), self.revision)
    }

    /// These could not be written.
    pub fn keep_later(&mut self, keys: impl IntoIterator<Item = String>) {
        self.unkept.extend(keys);
    }

    /// The revision of the store up to which this is; 0: it has not been read since the agent started.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// How far this has come.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            revision: self.revision,
            desired: self.desired,
            serial: self.get(SERIAL).map(|entry| entry.modified),
            replaced: self.replaced,
            another: self.another,
        }
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

    /// The keys that changed since this was asked last.
    pub fn take_untold(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.untold)
    }

    /// The store may be another than the one that this host had something in force from, until [`Mirror::is_ours`] says that it is this host's.
    pub fn distrust(&mut self) {
        (self.replaced, self.another) = (self.replaced + 1, true);
    }

    /// What the store had when it was replaced for this often is in force here. Says whether that is news.
    pub fn is_ours(&mut self, replaced: u64) -> bool {
        replaced == self.replaced && std::mem::replace(&mut self.another, false)
    }

    /// Is the store that this was read from not the same, further on? All that this has up to its revision, the same store has, too.
    #[must_use]
    pub fn is_set_back(&self, snapshot: &Snapshot) -> bool {
        let is_other = |(key, there): (&String, &Entry)| {
            let known = self.entries.get(key).map(|entry| entry.modified);
            let is_older = known.is_some_and(|known| there.modified < known);
            let is_new = self.revision > 0 && there.modified <= self.revision && known != Some(there.modified);
            !self.inherits(key) && (is_older || is_new)
        };
        let known = self.revision.max(self.newest());
        snapshot.revision < known || known > 0 && snapshot.revision - known > BUMP || snapshot.entries.iter().any(is_other)
    }

    /// Everything was read: gives the keys that are not as they were. Their leases are on no disk, and nobody's but this host's concern.
    pub fn replace(&mut self, snapshot: Snapshot) -> Vec<String> {
        let inherited = self.inherited.clone();
        self.take(snapshot, |key| inherited.contains_key(key))
    }

    /// The same, of a store that is another than the one before, or was set back. What hosts other than `own` said there stays until they
    /// have said it again: that the store forgot them makes nobody a stranger, and who is held no less so.
    pub fn replace_by_another(&mut self, snapshot: Snapshot, own: &str) -> Vec<String> {
        self.distrust();
        (self.since, self.back) = (0, BTreeMap::new());
        let of_others =
            |key: &str| matches!(Key::parse(key), Some(Key::Endpoint(host, _) | Key::Identity(host, _)) if host != own);
        self.take(snapshot, of_others)
    }

    fn take(&mut self, mut snapshot: Snapshot, may_stay: impl Fn(&str) -> bool) -> Vec<String> {
        // What is inherited, and what is not any more, has to be known again after a restart, though the value may be the same.
        self.unkept.extend(std::mem::take(&mut self.inherited).into_keys());
        for (key, entry) in self.entries.iter().filter(|(key, _)| may_stay(key)) {
            let there = snapshot.entries.get(key);
            if there.is_none_or(|there| is_held(entry) && !is_held(there)) {
                let there = snapshot.entries.insert(key.clone(), entry.clone());
                self.inherited.insert(key.clone(), there);
            }
        }
        self.unkept.extend(self.inherited.keys().cloned());
        let Snapshot { revision, entries } = snapshot;
        let is_same = |a: &Entry, b: &Entry| (a.created, a.modified) == (b.created, b.modified) && a.value == b.value;
        let known = |key: &String, entry: &Entry| self.entries.get(key).is_some_and(|there| is_same(there, entry));
        let mut changed: Vec<String> = entries.iter().filter(|(k, e)| !known(k, e)).map(|(k, _)| k.clone()).collect();
        changed.extend(self.entries.keys().filter(|k| !entries.contains_key(*k)).cloned());
        (self.entries, self.revision, self.kept) = (entries, revision, 0);
        self.desired = self.newest_desired();
        self.noted(changed)
    }

    /// One second more in which this store was heard of. Forgets what hosts have not said again though they have been back for a while;
    /// those that are not have `linger` seconds, but for whom they hold. Gives the keys.
    pub fn settle(&mut self, linger: u32) -> Vec<String> {
        if self.inherited.is_empty() {
            return Vec::new();
        }
        let host = |key: &str| Key::parse(key).and_then(|key| key.host().map(str::to_owned)).unwrap_or_default();
        let hosts: BTreeSet<String> = self.inherited.keys().map(|key| host(key)).collect();
        let alive = hosts.into_iter().filter(|host| self.entries.contains_key(&Key::Alive(host.clone()).to_string()));
        self.back =
            alive.map(|host| (self.back.get(&host).map_or(0, |seconds| seconds + 1), host)).map(|(n, h)| (h, n)).collect();
        self.since += 1;
        let over = self.since > linger;
        let held = |key: &str| self.entries.get(key).is_some_and(is_held);
        let is_back = |key: &str| self.back.get(&host(key)).is_some_and(|seconds| *seconds >= BACK);
        let gone = |key: &&String| is_back(key) || over && !held(key);
        let forgotten: Vec<String> = self.inherited.keys().filter(gone).cloned().collect();
        for key in &forgotten {
            match self.inherited.remove(key).flatten() {
                Some(there) => drop(self.entries.insert(key.clone(), there)),
                None => drop(self.entries.remove(key)),
            }
        }
        self.noted(forgotten)
    }

    /// Is this what a host said in the store that was there before?
    #[must_use]
    pub fn inherits(&self, key: &str) -> bool {
        self.inherited.contains_key(key)
    }

    /// The newest revision that anything here is of.
    #[must_use]
    pub fn newest(&self) -> i64 {
        let of_this = self.entries.iter().filter(|(key, _)| !self.inherits(key));
        of_this.map(|(_, entry)| entry.modified).max().unwrap_or(0)
    }

    /// These happened, and everything up to `revision` was told: gives the keys.
    pub fn apply(&mut self, changes: Vec<Change>, revision: i64) -> Vec<String> {
        let (mut changed, is_progress) = (Vec::with_capacity(changes.len()), changes.is_empty());
        for Change { key, entry, revision } in changes {
            if key.starts_with(DESIRED) {
                self.desired = self.desired.max(revision);
            }
            self.revision = self.revision.max(revision);
            self.inherited.remove(&key);
            match entry {
                Some(entry) => drop(self.entries.insert(key.clone(), entry)),
                None => drop(self.entries.remove(&key)),
            }
            changed.push(key);
        }
        // The header may be ahead of the events: what it counts has then been told, or comes with a larger revision.
        if is_progress {
            self.revision = self.revision.max(revision);
        }
        self.noted(changed)
    }
}

#[cfg(test)]
mod tests;
