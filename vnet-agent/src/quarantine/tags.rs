//! The tags that endpoints have: told apart by (subject, source, name, instance), and bounded in number.
//!
//! When there are too many, a new tag takes the place of one that is less severe, or as severe and older, of its own source
//! if possible; one that is less severe than all is not taken. What is refreshed is never turned away. So a flood, however
//! long, leaves the newest state of what is most severe; all that fell out is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::clock::Now;

/// What tags are told apart by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TagKey {
    /// The endpoint.
    pub subject: String,
    /// Who set it.
    pub source: String,
    /// Its name.
    pub name: String,
    /// Tells tags of one name apart; mostly empty.
    pub instance: String,
}

/// A tag, but for its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagState {
    /// Its value.
    pub value: String,
    /// 0 to 10.
    pub severity: u8,
    /// In per cent.
    pub confidence: u8,
    /// What shows it.
    pub evidence: String,
    /// When it was set last ([`Now::at`]).
    pub set: u64,
    /// The same in milliseconds since 1970.
    pub set_wall: u64,
    /// When it expires ([`Now::at`]); `None`: never.
    pub expires: Option<u64>,
    /// Its expiry only marks it.
    pub hold_on_expiry: bool,
    /// It has expired, and holds on.
    pub expired: bool,
    /// Tags that were set later, or again, have a higher one.
    pub order: u64,
    /// The store may have it.
    #[serde(skip)]
    pub stored: bool,
}

impl TagState {
    fn same(&self, other: &Self) -> bool {
        let what = |s: &Self| (s.severity, s.confidence, s.hold_on_expiry, s.expired, s.expires.is_some());
        self.value == other.value && what(self) == what(other)
    }
}

/// A tag that is to be stored, or to be taken out of the store.
#[derive(Clone, Debug)]
pub struct TagWrite {
    /// Its key.
    pub key: Arc<TagKey>,
    /// `None`: it is gone.
    pub state: Option<TagState>,
    /// The store has never had it.
    pub fresh: bool,
}

/// How many tags there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of one source on one endpoint.
    pub endpoint_source: usize,
    /// On one endpoint.
    pub endpoint: usize,
    /// Of one source.
    pub source: usize,
    /// In all.
    pub total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { endpoint_source: 64, endpoint: 256, source: 65_536, total: 131_072 }
    }
}

/// What became of a tag that was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOutcome {
    /// It was not there.
    New,
    /// It was there, and differs.
    Changed,
    /// It was there like this; it counts as set anew.
    Refreshed,
    /// There are too many that are more severe.
    Dropped,
}

type Rank = BTreeSet<(u8, u64, Arc<TagKey>)>;

/// All tags.
#[derive(Debug, Default)]
pub struct TagTable {
    limits: Limits,
    subjects: HashMap<String, BTreeMap<Arc<TagKey>, TagState>>,
    /// By source: the least severe first, then the oldest.
    ranks: HashMap<String, Rank>,
    expiries: BTreeSet<(u64, Arc<TagKey>)>,
    /// Sources whose tags do not expire for the time being.
    stopped: BTreeSet<String>,
    total: usize,
    order: u64,
    touched: BTreeSet<Arc<TagKey>>,
}

impl TagTable {
    /// What was stored. Tags of sources that are `stopped` do not expire before [`TagTable::go_on`].
    #[must_use]
    pub fn load(rows: Vec<(TagKey, TagState)>, stopped: BTreeSet<String>) -> Self {
        let mut table = Self { stopped, ..Self::default() };
        for (key, state) in rows {
            table.order = table.order.max(state.order);
            table.insert(Arc::new(key), TagState { stored: true, ..state });
        }
        table
    }

    /// The highest order that a tag ever had.
    #[must_use]
    pub fn order(&self) -> u64 {
        self.order
    }

    /// Makes the next tag's order higher than this: what has been stored may know of a tag that is gone.
    pub fn skip_to(&mut self, order: u64) {
        self.order = self.order.max(order);
    }

    /// Sets a tag; `state.order` is given here. Also gives those that had to make room for it.
    pub fn set(&mut self, key: TagKey, mut state: TagState) -> (SetOutcome, Vec<Arc<TagKey>>) {
        self.order += 1;
        state.order = self.order;
        let known = self.subjects.get(&key.subject).and_then(|tags| tags.get_key_value(&key));
        if let Some((known, old)) = known {
            let outcome = if old.same(&state) { SetOutcome::Refreshed } else { SetOutcome::Changed };
            state.stored = old.stored;
            let known = Arc::clone(known);
            self.take(&known);
            self.touched.insert(Arc::clone(&known));
            self.insert(known, state);
            return (outcome, Vec::new());
        }
        let mut evicted = Vec::new();
        while let Some(victim) = self.victim(&key) {
            match victim {
                Some((severity, victim)) if severity <= state.severity => {
                    self.remove(&victim);
                    evicted.push(victim);
                }
                _ => return (SetOutcome::Dropped, evicted),
            }
        }
        let key = Arc::new(key);
        // It is still to be taken out of the store.
        state.stored = !self.touched.insert(Arc::clone(&key));
        self.insert(key, state);
        (SetOutcome::New, evicted)
    }

    /// `None`: there is room. Else the tag that would have to go first, if one may.
    #[allow(clippy::option_option)]
    fn victim(&self, key: &TagKey) -> Option<Option<(u8, Arc<TagKey>)>> {
        let rank = |(key, state): (&Arc<TagKey>, &TagState)| (state.severity, state.order, Arc::clone(key));
        let strip = |(severity, _, key): (u8, u64, Arc<TagKey>)| (severity, key);
        if let Some(tags) = self.subjects.get(&key.subject) {
            let own = tags.iter().filter(|(k, _)| k.source == key.source);
            let count = own.clone().count();
            if count >= self.limits.endpoint_source || (count > 0 && tags.len() >= self.limits.endpoint) {
                return Some(own.map(rank).min().map(strip));
            }
            if tags.len() >= self.limits.endpoint {
                return Some(tags.iter().map(rank).min().map(strip));
            }
        }
        let first = |rank: &Rank| rank.first().map(|(severity, _, key)| (*severity, Arc::clone(key)));
        let own = self.ranks.get(&key.source);
        if own.is_some_and(|own| own.len() >= self.limits.source) {
            return Some(own.and_then(first));
        }
        if self.total >= self.limits.total {
            return Some(self.ranks.values().max_by_key(|rank| rank.len()).and_then(first));
        }
        None
    }

    /// Takes a tag away; gives what it was.
    pub fn clear(&mut self, key: &TagKey) -> Option<TagState> {
        let (key, _) = self.subjects.get(&key.subject)?.get_key_value(key)?;
        let key = Arc::clone(key);
        self.remove(&key)
    }

    /// Tags that expired: those that are gone, with `true`, and those that only were marked.
    pub fn expire(&mut self, at: u64) -> Vec<(Arc<TagKey>, TagState, bool)> {
        let mut expired = Vec::new();
        while self.expiries.first().is_some_and(|(due, _)| *due <= at) {
            let Some((_, key)) = self.expiries.pop_first() else { break };
            let Some(state) = self.subjects.get_mut(&key.subject).and_then(|tags| tags.get_mut(&key)) else { continue };
            if state.hold_on_expiry {
                state.expired = true;
                let state = state.clone();
                self.touched.insert(Arc::clone(&key));
                expired.push((key, state, false));
            } else if let Some(state) = self.remove(&key) {
                expired.push((key, state, true));
            }
        }
        expired
    }

    /// When the next tag expires ([`Now::at`]).
    #[must_use]
    pub fn next_expiry(&self) -> Option<u64> {
        self.expiries.first().map(|(due, _)| *due)
    }

    /// The time of this source's tags stands still.
    pub fn stop(&mut self, source: &str) {
        self.stopped.insert(source.to_owned());
        let tags = self.ranks.get(source).into_iter().flatten().map(|(_, _, key)| Arc::clone(key));
        for key in tags.collect::<Vec<_>>() {
            if let Some(due) = self.get(&key).and_then(|state| state.expires) {
                self.expiries.remove(&(due, key));
            }
        }
    }

    /// It goes on, having stood still for so many milliseconds.
    pub fn go_on(&mut self, source: &str, stood: u64) {
        self.stopped.remove(source);
        let tags = self.ranks.get(source).into_iter().flatten().map(|(_, _, key)| Arc::clone(key));
        for key in tags.collect::<Vec<_>>() {
            let Some(state) = self.subjects.get_mut(&key.subject).and_then(|tags| tags.get_mut(&key)) else { continue };
            if let (Some(due), false) = (&mut state.expires, state.expired) {
                *due += stood;
                self.expiries.insert((*due, Arc::clone(&key)));
                self.touched.insert(key);
            }
        }
    }

    /// A tag.
    #[must_use]
    pub fn get(&self, key: &TagKey) -> Option<&TagState> {
        self.subjects.get(&key.subject)?.get(key)
    }

    /// The tags of an endpoint, in order.
    pub fn of(&self, subject: &str) -> impl Iterator<Item = (&TagKey, &TagState)> + Clone {
        self.subjects.get(subject).into_iter().flatten().map(|(key, state)| (key.as_ref(), state))
    }

    /// Endpoints that have tags.
    pub fn subjects(&self) -> impl Iterator<Item = &str> {
        self.subjects.keys().map(String::as_str)
    }

    /// Tags of each source.
    pub fn counts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.ranks.iter().map(|(source, rank)| (source.as_str(), rank.len()))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.total
    }

    /// The tags that changed, or went, since this was asked last.
    pub fn take_touched(&mut self) -> Vec<TagWrite> {
        let touched = std::mem::take(&mut self.touched);
        let mut writes = Vec::with_capacity(touched.len());
        for key in touched {
            let state = self.subjects.get_mut(&key.subject).and_then(|tags| tags.get_mut(&key));
            let fresh = state.as_ref().is_some_and(|state| !state.stored);
            let state = state.map(|state| {
                state.stored = true;
                state.clone()
            });
            writes.push(TagWrite { key, state, fresh });
        }
        writes
    }

    /// Those could not be stored: they will be asked for again.
    pub fn give_back(&mut self, writes: Vec<TagWrite>) {
        for TagWrite { key, fresh, .. } in writes {
            let state = self.subjects.get_mut(&key.subject).and_then(|tags| tags.get_mut(&key));
            match state {
                Some(state) => state.stored &= !fresh,
                // It came and went: nothing has to be said of it.
                None if fresh => {
                    self.touched.remove(&key);
                    continue;
                }
                None => {}
            }
            self.touched.insert(key);
        }
    }

    /// Did any change?
    #[must_use]
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    fn insert(&mut self, key: Arc<TagKey>, state: TagState) {
        self.total += 1;
        if let Some(due) = state.expires.filter(|_| !state.expired && !self.stopped.contains(&key.source)) {
            self.expiries.insert((due, Arc::clone(&key)));
        }
        let rank = (state.severity, state.order, Arc::clone(&key));
        match self.ranks.get_mut(&key.source) {
            Some(ranks) => drop(ranks.insert(rank)),
            None => drop(self.ranks.insert(key.source.clone(), Rank::from([rank]))),
        }
        match self.subjects.get_mut(&key.subject) {
            Some(tags) => drop(tags.insert(key, state)),
            None => drop(self.subjects.insert(key.subject.clone(), BTreeMap::from([(key, state)]))),
        }
    }

    /// Removes a tag. One that the store never had is not to be taken out of it: however many come and go, they leave nothing.
    fn remove(&mut self, key: &Arc<TagKey>) -> Option<TagState> {
        let state = self.take(key)?;
        match state.stored {
            true => self.touched.insert(Arc::clone(key)),
            false => self.touched.remove(key),
        };
        Some(state)
    }

    fn take(&mut self, key: &Arc<TagKey>) -> Option<TagState> {
        let tags = self.subjects.get_mut(&key.subject)?;
        let state = tags.remove(key)?;
        if tags.is_empty() {
            self.subjects.remove(&key.subject);
        }
        self.total -= 1;
        if let Some(due) = state.expires {
            self.expiries.remove(&(due, Arc::clone(key)));
        }
        if let Some(ranks) = self.ranks.get_mut(&key.source) {
            ranks.remove(&(state.severity, state.order, Arc::clone(key)));
            if ranks.is_empty() {
                self.ranks.remove(&key.source);
            }
        }
        Some(state)
    }
}

/// A tag as people see it.
#[must_use]
pub fn view(key: &TagKey, state: &TagState, now: Now) -> vnet_common::api::Tag {
    vnet_common::api::Tag {
        subject: key.subject.clone(),
        name: key.name.clone(),
        value: state.value.clone(),
        instance: key.instance.clone(),
        severity: state.severity,
        confidence: state.confidence,
        source: key.source.clone(),
        evidence: state.evidence.clone(),
        set_at_ms: state.set_wall,
        expires_at_ms: state.expires.map(|due| now.wall_at(due)),
        hold_on_expiry: state.hold_on_expiry,
        expired: state.expired,
    }
}

/// A tag in few words: `source/name=value`.
#[must_use]
pub fn brief(key: &TagKey, state: &TagState) -> String {
    let instance = if key.instance.is_empty() { String::new() } else { format!("[{}]", key.instance) };
    let value = if state.value.is_empty() { String::new() } else { format!("={}", state.value) };
    format!("{}/{}{instance}{value}", key.source, key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(subject: &str, source: &str, name: &str, instance: &str) -> TagKey {
        TagKey { subject: subject.into(), source: source.into(), name: name.into(), instance: instance.into() }
    }

    fn state(severity: u8, expires: Option<u64>) -> TagState {
        TagState { severity, expires, ..TagState::default() }
    }

    fn small() -> TagTable {
        TagTable { limits: Limits { endpoint_source: 3, endpoint: 5, source: 8, total: 12 }, ..TagTable::default() }
    }

    #[test]
    fn tags_are_told_apart_by_four_things() {
        let mut t = TagTable::default();
        for (n, k) in [
            key("a", "s", "x", ""),
            key("b", "s", "x", ""),
            key("a", "r", "x", ""),
            key("a", "s", "y", ""),
            key("a", "s", "x", "1"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(t.set(k, state(1, None)).0, SetOutcome::New);
            assert_eq!(t.count(), n + 1);
        }
        assert_eq!(t.set(key("a", "s", "x", ""), state(1, None)).0, SetOutcome::Refreshed);
        assert_eq!(t.set(key("a", "s", "x", ""), state(2, None)).0, SetOutcome::Changed);
        assert_eq!(t.clear(&key("a", "s", "x", "")).map(|s| s.severity), Some(2));
        assert_eq!(t.clear(&key("a", "s", "x", "")), None);
        assert_eq!((t.of("a").count(), t.count(), t.take_touched().len()), (3, 4, 4));
    }

    #[test]
    fn tags_expire_are_marked_or_go_and_stand_still() {
        let mut t = TagTable::default();
        t.set(key("a", "s", "x", ""), state(1, Some(10)));
        t.set(key("a", "s", "y", ""), TagState { hold_on_expiry: true, ..state(1, Some(20)) });
        assert_eq!((t.next_expiry(), t.expire(9).len()), (Some(10), 0));
        t.set(key("a", "s", "x", ""), state(1, Some(15)));
        assert_eq!((t.next_expiry(), t.expire(14).len()), (Some(15), 0));
        let gone = t.expire(25);
        assert_eq!(gone.iter().map(|(k, _, gone)| (k.name.as_str(), *gone)).collect::<Vec<_>>(), [("x", true), ("y", false)]);
        assert!(t.of("a").all(|(_, s)| s.expired) && t.next_expiry().is_none());

        t.set(key("b", "s", "z", ""), state(1, Some(30)));
        t.stop("s");
        assert!(t.expire(1000).is_empty());
        t.go_on("s", 975);
        assert_eq!((t.expire(1004).len(), t.expire(1005).len()), (0, 1));
        assert_eq!(t.count(), 1, "what expired is not expired again");
    }

    #[test]
    fn what_is_more_severe_or_newer_stays() {
        let mut t = small();
        for (name, severity) in [("a", 5), ("b", 2), ("c", 9)] {
            t.set(key("v", "s", name, ""), state(severity, None));
        }
        let (outcome, evicted) = t.set(key("v", "s", "d", ""), state(5, None));
        assert_eq!((outcome, evicted[0].name.as_str()), (SetOutcome::New, "b"));
        assert_eq!(t.set(key("v", "s", "e", ""), state(4, None)), (SetOutcome::Dropped, vec![]));
        let (_, evicted) = t.set(key("v", "s", "f", ""), state(5, None));
        assert_eq!(evicted[0].name, "a", "as severe, but older");
        assert_eq!(
            t.set(key("v", "s", "d", ""), state(0, None)).0,
            SetOutcome::Changed,
            "what is there is updated whatever it is"
        );
        // Other sources have their own room on the endpoint, up to its end.
        for (source, name) in [("r", "a"), ("q", "a")] {
            assert_eq!(t.set(key("v", source, name, ""), state(9, None)).0, SetOutcome::New);
        }
        let (_, evicted) = t.set(key("v", "p", "a", ""), state(1, None));
        assert_eq!(evicted[0].name, "d");
    }

    #[test]
    fn a_source_and_the_whole_have_limits() {
        let mut t = small();
        for n in 0..20 {
            t.set(key(&format!("v{n}"), "s", "x", ""), state(1, None));
        }
        assert_eq!(t.count(), 8);
        assert!(t.of("v19").count() == 1 && t.of("v11").count() == 0);
        for n in 0..20 {
            t.set(key(&format!("v{n}"), "r", "x", ""), state(2, None));
        }
        assert_eq!(t.count(), 12);
        let counts: BTreeMap<&str, usize> = t.counts().collect();
        assert_eq!((counts["s"] + counts["r"], counts["r"] >= 5), (12, true));
    }

    #[test]
    fn a_flood_leaves_the_newest_state_of_the_most_severe() {
        let mut t = TagTable::default();
        t.set(key("v", "ids", "malware", ""), state(9, None));
        let mut dropped = 0;
        for n in 0..100_000_u32 {
            let (outcome, evicted) = t.set(key("v", "ids", "scan", &n.to_string()), state(3, None));
            dropped += evicted.len() + usize::from(outcome == SetOutcome::Dropped);
        }
        t.set(key("v", "ids", "malware", ""), TagState { value: "new".into(), ..state(8, None) });
        assert_eq!((t.count(), dropped), (64, 100_001 - 64));
        assert_eq!(t.get(&key("v", "ids", "malware", "")).map(|s| (s.value.as_str(), s.severity)), Some(("new", 8)));
        assert!(t.get(&key("v", "ids", "scan", "99999")).is_some() && t.get(&key("v", "ids", "scan", "5")).is_none());
        assert!(t.subjects.len() == 1 && t.ranks["ids"].len() == 64 && t.expiries.is_empty() && t.touched.len() == 64);
    }

    #[test]
    fn what_could_not_be_stored_is_asked_for_again() {
        let mut t = small();
        let names = |writes: &[TagWrite]| {
            writes
                .iter()
                .map(|w| format!("{}{}{}", w.key.name, u8::from(w.state.is_some()), u8::from(w.fresh)))
                .collect::<Vec<_>>()
        };
        t.set(key("v", "s", "a", ""), state(1, None));
        t.set(key("v", "s", "b", ""), state(1, None));
        let writes = t.take_touched();
        assert_eq!((names(&writes), t.is_touched()), (vec!["a11".to_owned(), "b11".to_owned()], false));
        t.clear(&key("v", "s", "a", ""));
        t.give_back(writes);
        assert_eq!(names(&t.take_touched()), ["b11"], "`a` came and went");
        t.clear(&key("v", "s", "b", ""));
        let writes = t.take_touched();
        assert_eq!(names(&writes), ["b00"]);
        t.give_back(writes);
        t.set(key("v", "s", "b", ""), state(1, None));
        t.clear(&key("v", "s", "b", ""));
        assert_eq!(names(&t.take_touched()), ["b00"], "the store still has it");
    }
}
