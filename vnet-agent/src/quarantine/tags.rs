//! The tags that endpoints have: told apart by (subject, source, name, instance), and bounded in number.
//!
//! When there are too many, a new tag takes the place of one that is less severe, or as severe and older, of its own source
//! if possible; one that is less severe than all is not taken. What is refreshed is never turned away. So a flood, however
//! long, leaves the newest state of what is most severe; all that fell out is counted.

#[cfg(test)]
mod tests;

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
    /// It was there like this, but for its evidence; it counts as set anew.
    Refreshed,
    /// Only the time differs.
    Unchanged,
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
            let outcome = match old.same(&state) {
                false => SetOutcome::Changed,
                true if old.evidence != state.evidence => SetOutcome::Refreshed,
                true => SetOutcome::Unchanged,
            };
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

    /// Tags that expired, at most so many: those that are gone, with `true`, and those that only were marked.
    pub fn expire(&mut self, at: u64, most: usize) -> Vec<(Arc<TagKey>, TagState, bool)> {
        let mut expired = Vec::new();
        while expired.len() < most && self.expiries.first().is_some_and(|(due, _)| *due <= at) {
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

/// A tag, and what shows it.
pub fn shown(key: &TagKey, state: &TagState) -> String {
    let evidence = if state.evidence.is_empty() { String::new() } else { format!(": {}", state.evidence) };
    format!("{} (severity {}){evidence}", brief(key, state), state.severity)
}
