//! Numbers of rules, as counters, flows and events have them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vnet_common::verdict::Direction;

/// Rule numbers are below this: as many counters there are.
pub const MAX_ID: u32 = 1 << 16;

/// What a rule is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleKey {
    /// `Policy`, `SecurityGroup`, `PeerQuarantine` or `built-in`.
    pub kind: String,
    /// The resource's name.
    pub resource: String,
    /// Whether it is about flows that the endpoint opens.
    pub egress: bool,
    /// Its name in that list.
    pub rule: String,
}

impl RuleKey {
    /// Of a rule in one of a resource's lists.
    pub fn new(kind: &str, resource: &str, direction: Direction, rule: &str) -> Self {
        let egress = direction == Direction::Egress;
        Self { kind: kind.to_owned(), resource: resource.to_owned(), egress, rule: rule.to_owned() }
    }
}

/// Which rule has which number: the same for as long as there is the rule. Clones share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleIds {
    by_key: Arc<BTreeMap<RuleKey, u32>>,
    /// Given out last.
    last: u32,
}

/// Rules that got a number, and rules that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdChange {
    /// Rules with their new numbers.
    pub given: Vec<(RuleKey, u32)>,
    /// Rules whose number is free again.
    pub freed: Vec<RuleKey>,
}

impl RuleIds {
    /// As they were stored.
    pub fn new(stored: impl IntoIterator<Item = (RuleKey, u32)>) -> Self {
        let by_key: BTreeMap<RuleKey, u32> = stored.into_iter().collect();
        let last = by_key.values().copied().max().unwrap_or(0);
        Self { by_key: Arc::new(by_key), last }
    }

    /// The number of a rule.
    pub fn id(&self, key: &RuleKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The numbers of these rules, and of no others: those that had one keep it. A number that was freed is used again as late as
    /// possible.
    ///
    /// # Errors
    /// The first rule that there is no number for.
    pub fn of(&self, rules: impl IntoIterator<Item = RuleKey>) -> Result<Self, RuleKey> {
        let rules: Vec<RuleKey> = rules.into_iter().collect();
        let kept = rules.iter().filter_map(|key| Some((key.clone(), self.id(key)?)));
        let (mut by_key, mut last): (BTreeMap<RuleKey, u32>, u32) = (kept.collect(), self.last);
        let mut used: BTreeSet<u32> = by_key.values().copied().collect();
        for key in rules {
            if by_key.contains_key(&key) {
                continue;
            }
            let Some(id) = (1..MAX_ID).map(|step| (last + step - 1) % (MAX_ID - 1) + 1).find(|id| !used.contains(id)) else {
                return Err(key);
            };
            used.insert(id);
            last = id;
            by_key.insert(key, id);
        }
        Ok(Self { by_key: Arc::new(by_key), last })
    }

    /// What is other than it was before.
    pub fn change_since(&self, before: &Self) -> IdChange {
        if Arc::ptr_eq(&self.by_key, &before.by_key) {
            return IdChange::default();
        }
        let given = self.by_key.iter().filter(|(key, id)| before.id(key) != Some(**id));
        let freed = before.by_key.keys().filter(|key| !self.by_key.contains_key(*key));
        IdChange { given: given.map(|(key, id)| (key.clone(), *id)).collect(), freed: freed.cloned().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> RuleKey {
        RuleKey::new("Policy", "p", Direction::Egress, &n.to_string())
    }

    #[test]
    fn numbers_stay_and_are_used_again_late() {
        let first = RuleIds::default().of((0..3).map(key)).unwrap();
        assert_eq!((0..3).map(|n| first.id(&key(n))).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
        let second = first.of([key(2), key(5)]).unwrap();
        assert_eq!((second.id(&key(2)), second.id(&key(5)), second.id(&key(0))), (Some(3), Some(4), None));
        let change = second.change_since(&first);
        assert_eq!((change.given, change.freed), (vec![(key(5), 4)], vec![key(0), key(1)]));
        let stored = RuleIds::new([(key(2), 3), (key(5), MAX_ID - 1)]);
        let third = stored.of([key(2), key(5), key(6), key(7), key(8)]).unwrap();
        assert_eq!((6..9).map(|n| third.id(&key(n))).collect::<Vec<_>>(), [Some(1), Some(2), Some(4)], "3 is taken");
    }

    #[test]
    fn more_rules_than_numbers_are_refused() {
        let most = RuleIds::default().of((1..MAX_ID).map(key)).unwrap();
        assert_eq!(most.of((1..=MAX_ID).map(key)), Err(key(MAX_ID)));
        assert_eq!(most.of((2..=MAX_ID).map(key)).unwrap().id(&key(MAX_ID)), Some(1));
    }
}
