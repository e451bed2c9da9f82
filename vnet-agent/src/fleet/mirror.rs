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
        let inherited = std::mem::take(&mut self.inherited);
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
        self.inherited.clear();
        for (key, entry) in self.entries.iter().filter(|(key, _)| may_stay(key)) {
            let there = snapshot.entries.get(key);
            if there.is_none_or(|there| is_held(entry) && !is_held(there)) {
                let there = snapshot.entries.insert(key.clone(), entry.clone());
                self.inherited.insert(key.clone(), there);
            }
        }
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
        assert_eq!((watched.revision(), watched.moment().desired), (5, 3));
        let changed = watched.apply(
            vec![change(&desired("a"), None, 6), change(&desired("b"), Some("3"), 7), change("/vnet/v1/state/x", Some("4"), 8)],
            8,
        );
        assert_eq!(changed.len(), 3);
        assert_eq!((watched.revision(), watched.moment().desired), (8, 7));
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

    const HELD: &str = r#"{"group":"isolated","quarantined":true,"identity":0}"#;
    const FREE: &str = r#"{"group":"web","identity":0}"#;

    fn endpoint(host: &str, name: &str) -> String {
        Key::Endpoint(host.into(), name.into()).to_string()
    }

    fn alive(host: &str) -> String {
        Key::Alive(host.into()).to_string()
    }

    fn settled(m: &mut Mirror, seconds: u32, linger: u32) -> Vec<String> {
        (0..seconds).flat_map(|_| m.settle(linger)).collect()
    }

    #[test]
    fn what_another_store_does_not_know_stays_until_its_host_is_back() {
        let desired = format!("{DESIRED}resources/Policy/a");
        let mut m = Mirror::default();
        let before = [
            (desired, entry("1", 3)),
            (alive("b"), entry("{}", 3)),
            (endpoint("own", "vm"), entry(FREE, 4)),
            (endpoint("b", "stays"), entry(FREE, 5)),
            (endpoint("b", "goes"), entry(HELD, 6)),
            (endpoint("dead", "free"), entry(FREE, 7)),
            (endpoint("dead", "held"), entry(HELD, 8)),
        ];
        m.replace(Snapshot { revision: 9, entries: before.into() });
        assert_eq!((m.newest(), m.moment().another), (8, false));
        let changed = m.replace_by_another(Snapshot { revision: 2, entries: BTreeMap::new() }, "own");
        assert_eq!(changed.len(), 3, "what is desired, who is alive, and what this host said itself: {changed:?}");
        assert_eq!((m.entries().len(), m.revision(), m.newest()), (4, 2, 0));
        assert_eq!(settled(&mut m, 20, 300), Vec::<String>::new());
        m.apply(vec![change(&alive("b"), Some("{}"), 3), change(&endpoint("b", "stays"), Some(FREE), 3)], 3);
        assert_eq!(settled(&mut m, BACK, 300), Vec::<String>::new(), "it may not have said everything yet");
        // To be read again, or by an agent that was restarted, makes no difference.
        let there = [(alive("b"), entry("{}", 3)), (endpoint("b", "stays"), entry(FREE, 3))];
        m.replace(Snapshot { revision: 4, entries: there.clone().into() });
        let inherited = m.entries().keys().filter(|key| m.inherits(key)).cloned().collect();
        let recalled = Recalled { entries: m.entries().clone(), inherited, revision: 4 };
        let mut again = Mirror::recalled(recalled, true);
        assert_eq!(again.known(), 0, "all of it is to be read again");
        again.replace(Snapshot { revision: 900, entries: there.into() });
        assert_eq!(again.entries(), m.entries());
        for mut m in [m, again] {
            assert_eq!(settled(&mut m, BACK + 1, 300), [endpoint("b", "goes")]);
            assert_eq!(settled(&mut m, 300, 300), [endpoint("dead", "free")]);
            assert_eq!(settled(&mut m, 300, 300), Vec::<String>::new(), "who is held stays so");
            assert_eq!(m.entries().keys().collect::<Vec<_>>(), [&alive("b"), &endpoint("b", "stays"), &endpoint("dead", "held")]);
        }
    }

    #[test]
    fn who_was_free_when_the_store_was_saved_and_is_held_stays_so() {
        let mut m = Mirror::default();
        m.replace(Snapshot { revision: 9, entries: [(endpoint("b", "vm"), entry(HELD, 8))].into() });
        let saved =
            Snapshot { revision: 5, entries: [(endpoint("b", "vm"), entry(FREE, 4)), (alive("b"), entry("{}", 2))].into() };
        assert!(m.is_set_back(&saved));
        assert_eq!(m.replace_by_another(saved.clone(), "own"), [alive("b")]);
        assert!(!m.is_set_back(&saved), "once is enough");
        assert_eq!(m.get(&endpoint("b", "vm")), Some(&entry(HELD, 8)));
        // Its lease came with the store.
        assert_eq!(settled(&mut m, ALIVE_SECONDS as u32, 300), Vec::<String>::new());
        m.apply(vec![change(&alive("b"), None, 6)], 6);
        assert_eq!(settled(&mut m, 600, 300), Vec::<String>::new(), "a host that is gone lets nobody go");
        m.apply(vec![change(&alive("b"), Some("{}"), 7)], 7);
        assert_eq!(settled(&mut m, BACK + 1, 300), [endpoint("b", "vm")]);
        assert_eq!(m.get(&endpoint("b", "vm")), Some(&entry(FREE, 4)), "it let it go meanwhile, and the store says so already");
    }

    #[test]
    fn a_store_that_was_set_back_is_known_by_what_it_has() {
        let mut m = Mirror::default();
        m.replace(Snapshot { revision: 9, entries: [("k".into(), entry("1", 5)), ("l".into(), entry("2", 7))].into() });
        let snapshot = |revision, entries: &[(&str, i64)]| Snapshot {
            revision,
            entries: entries.iter().map(|(key, modified)| ((*key).to_owned(), entry("3", *modified))).collect(),
        };
        for (there, expected, what) in [
            (snapshot(9, &[("k", 5), ("l", 7)]), false, "the same"),
            (snapshot(12, &[("k", 11), ("m", 12)]), false, "further on"),
            (snapshot(8, &[("k", 5), ("l", 7)]), true, "not as far"),
            (snapshot(12, &[("k", 4), ("l", 12)]), true, "a value from before"),
            (snapshot(12, &[("k", 5), ("l", 8)]), true, "a value of a revision of which it was not"),
            (snapshot(12, &[("k", 5), ("l", 7), ("m", 6)]), true, "a key of a revision that had none"),
            (snapshot(9 + BUMP + 1, &[("k", 5)]), true, "told to count from further on"),
        ] {
            assert_eq!(m.is_set_back(&there), expected, "{what}");
        }
        let recalled = Mirror::recalled(Recalled { entries: m.entries().clone(), ..Recalled::default() }, false);
        assert!(!recalled.is_set_back(&snapshot(9, &[("k", 5), ("l", 7), ("m", 6)])), "the disk does not have everything");
        assert!(recalled.is_set_back(&snapshot(9, &[("k", 4)])));
        assert!(!Mirror::default().is_set_back(&snapshot(2 * BUMP, &[("k", 4)])), "nothing was known");
    }

    #[test]
    fn what_is_on_the_disk_is_what_the_store_had_in_one_revision() {
        let mut m = Mirror::default();
        m.replace(Snapshot { revision: 6, entries: [(SERIAL.to_owned(), entry("", 3)), ("k".into(), entry("1", 5))].into() });
        m.apply(vec![change("l", Some("2"), 7), change("k", None, 8)], 8);
        let (unkept, revision) = m.take_unkept();
        assert_eq!((unkept, revision), (BTreeSet::from([SERIAL.to_owned(), "k".into(), "l".into()]), 8));
        assert!(m.take_unkept().0.is_empty());
        m.keep_later(["l".to_owned()]);
        assert_eq!(m.take_unkept().0.len(), 1);
        let recalled =
            |inherited, another| Mirror::recalled(Recalled { entries: m.entries().clone(), inherited, revision }, another);
        let mut again = recalled(BTreeSet::new(), false);
        assert_eq!((again.revision(), again.known(), again.take_untold().len()), (0, 8, 2));
        assert_eq!(recalled(BTreeSet::from(["l".into()]), false).known(), 0, "what another store had is nothing to go on from");
        assert_eq!(recalled(BTreeSet::new(), true).known(), 0);
        again.replace(Snapshot { revision: 9, entries: m.entries().clone() });
        assert_eq!((again.known(), again.take_untold().len()), (9, 0));
    }

    #[test]
    fn what_became_ours_is_the_store_that_was_looked_at() {
        let mut m = Mirror::default();
        m.replace_by_another(Snapshot::default(), "own");
        let first = m.moment();
        m.replace_by_another(Snapshot::default(), "own");
        assert!(first.another && !m.is_ours(first.replaced) && m.moment().another);
        assert!(m.is_ours(m.moment().replaced) && !m.moment().another);
        assert!(!m.is_ours(m.moment().replaced), "no news");
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
