//! Numbers of identities: the same at every host, given out by none in particular.
//!
//! What rules can tell of an endpoint, its security group and its labels, is its *identity*, and has a number. Each host gives out numbers
//! of its own: the upper half is the host's, which an operator gave it when it was registered, so that no two hosts can give the
//! same one. A host that needs a number for what has one takes that; two that need one at the same moment both give one, and both
//! numbers mean the same: afterwards everyone takes the older.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use vnet_common::fleet::IdentityLabels;

use super::view::View;

/// How long a number that nobody has is kept: endpoints that come and go keep theirs.
pub const UNUSED: Duration = Duration::from_secs(600);

/// The numbers that this host gave out.
#[derive(Debug, Default)]
pub struct Numbers {
    own: BTreeMap<u32, IdentityLabels>,
    by_labels: HashMap<IdentityLabels, u32>,
    /// How far what the store says of this host's numbers was looked at, and the upper half that it had then.
    recalled: (u64, Option<u16>),
    /// The lower half of the number that was given out last.
    last: u16,
    /// Those that nobody has, and since when.
    unused: BTreeMap<u32, Instant>,
    /// Those that were taken back, and that the store may still have.
    over: BTreeSet<u32>,
}

impl Numbers {
    /// The number of an identity, and whether it is new. `host` is this host's name, `upper` the upper half of its numbers; `None`: it was
    /// not registered, and gives none out.
    pub fn number(&mut self, view: &View, host: &str, upper: Option<u16>, labels: &IdentityLabels) -> u32 {
        self.recall(view, host, upper);
        if let Some(number) = view.identities.number(labels).or_else(|| self.by_labels.get(labels).copied()) {
            return number;
        }
        let Some(number) = upper.and_then(|upper| self.free(upper)) else { return 0 };
        self.keep(number, labels);
        number
    }

    fn keep(&mut self, number: u32, labels: &IdentityLabels) {
        self.own.insert(number, labels.clone());
        self.by_labels.entry(labels.clone()).or_insert(number);
    }

    /// An agent before this one gave these out. Those of another upper half are of a registration that is over: another host may have that.
    fn recall(&mut self, view: &View, host: &str, upper: Option<u16>) {
        let now = (view.identities.changes(), upper);
        let before = std::mem::replace(&mut self.recalled, now);
        if before == now {
            return;
        }
        let is_ours = |number: u32| upper.is_none_or(|upper| number >> 16 == u32::from(upper));
        if before.1 != upper {
            let foreign: Vec<u32> = self.own.keys().copied().filter(|number| !is_ours(*number)).collect();
            foreign.into_iter().for_each(|number| self.take_back(number));
        }
        let there: BTreeSet<u32> = view.identities.of(host).map(|(number, _)| number).collect();
        self.over.retain(|number| there.contains(number));
        for (number, labels) in view.identities.of(host) {
            if is_ours(number) && !self.own.contains_key(&number) && !self.over.contains(&number) {
                self.keep(number, labels);
                self.last = self.last.max(number as u16);
            }
        }
    }

    fn take_back(&mut self, number: u32) {
        if let Some(labels) = self.own.remove(&number)
            && self.by_labels.get(&labels) == Some(&number)
        {
            self.by_labels.remove(&labels);
        }
        self.unused.remove(&number);
        self.over.insert(number);
    }

    /// A number that was not given out, not even a while ago unless there is no other.
    fn free(&mut self, upper: u16) -> Option<u32> {
        for _ in 0..u32::from(u16::MAX) {
            self.last = self.last.checked_add(1).unwrap_or(1);
            let number = u32::from(upper) << 16 | u32::from(self.last);
            if !self.own.contains_key(&number) && !self.over.contains(&number) {
                return Some(number);
            }
        }
        None
    }

    /// What this host gave out. Those that no endpoint has had for [`UNUSED`] are taken back; `ours` are those of this host's endpoints.
    pub fn settle(&mut self, view: &View, ours: &BTreeSet<u32>, now: Instant) -> &BTreeMap<u32, IdentityLabels> {
        let is_used = |number: &u32| ours.contains(number) || view.endpoints.has_identity(*number);
        self.unused.retain(|number, _| !is_used(number));
        for number in self.own.keys().filter(|n| !is_used(n)) {
            self.unused.entry(*number).or_insert(now);
        }
        let over: Vec<u32> =
            self.unused.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= UNUSED).map(|(n, _)| *n).collect();
        over.into_iter().for_each(|number| self.take_back(number));
        &self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnet_common::fleet::EndpointState;

    fn labels(group: &str) -> IdentityLabels {
        IdentityLabels { group: group.into(), labels: BTreeMap::new() }
    }

    fn said(view: &mut View, host: &str, number: u32, since: i64, group: &str) {
        view.identities.put(host, number, Some((since, labels(group))));
    }

    #[test]
    fn hosts_that_hear_of_each_other_take_the_same_number() {
        let (mut a, mut b, mut view) = (Numbers::default(), Numbers::default(), View::default());
        // At the same moment: each gives one out.
        let (of_a, of_b) = (a.number(&view, "a", Some(1), &labels("web")), b.number(&view, "b", Some(2), &labels("web")));
        assert_eq!((of_a, of_b), (0x1_0001, 0x2_0001));
        assert_eq!(a.number(&view, "a", Some(1), &labels("web")), of_a, "also before it is in the store");
        said(&mut view, "b", of_b, 5, "web");
        said(&mut view, "a", of_a, 6, "web");
        assert_eq!(a.number(&view, "a", Some(1), &labels("web")), of_b);
        assert_eq!(b.number(&view, "b", Some(2), &labels("web")), of_b);
        assert_eq!(b.number(&view, "b", Some(2), &labels("db")), 0x2_0002);
        assert_eq!(Numbers::default().number(&view, "c", None, &labels("new")), 0, "who was not registered gives none");
        assert_eq!(Numbers::default().number(&view, "c", None, &labels("web")), of_b);
    }

    #[test]
    fn restarts_keep_numbers_and_give_none_twice() {
        let mut view = View::default();
        said(&mut view, "a", 0x1_0007, 3, "web");
        let mut again = Numbers::default();
        assert_eq!(again.number(&view, "a", Some(1), &labels("web")), 0x1_0007);
        assert_eq!(again.number(&view, "a", Some(1), &labels("db")), 0x1_0008);
    }

    #[test]
    fn numbers_of_a_registration_that_is_over_are_given_up() {
        let mut view = View::default();
        said(&mut view, "a", 0x1_0007, 3, "web");
        let mut a = Numbers::default();
        assert_eq!(a.number(&view, "a", Some(1), &labels("web")), 0x1_0007);
        // It was taken out of the fleet, and is back; what it said is not any more.
        view.identities.put("a", 0x1_0007, None);
        let none = BTreeSet::new();
        assert_eq!(a.number(&view, "a", Some(2), &labels("web")), 0x2_0008);
        assert_eq!(a.settle(&view, &none, Instant::now()).keys().collect::<Vec<_>>(), [&0x2_0008]);
        // Also an agent that finds them in a store.
        said(&mut view, "a", 0x1_0007, 3, "web");
        let mut again = Numbers::default();
        again.number(&view, "a", Some(2), &labels("db"));
        assert_eq!(again.settle(&view, &none, Instant::now()).keys().collect::<Vec<_>>(), [&0x2_0001]);
    }

    #[test]
    fn what_was_taken_back_is_not_recalled_from_a_store_that_still_has_it() {
        let (mut a, mut view, start, none) = (Numbers::default(), View::default(), Instant::now(), BTreeSet::new());
        let number = a.number(&view, "a", Some(1), &labels("web"));
        said(&mut view, "a", number, 3, "web");
        a.settle(&view, &none, start);
        assert!(a.settle(&view, &none, start + UNUSED).is_empty());
        said(&mut view, "b", 0x2_0001, 4, "db");
        assert_eq!(a.number(&view, "a", Some(1), &labels("db")), 0x2_0001);
        assert!(a.settle(&view, &none, start + UNUSED).is_empty());
        view.identities.put("a", number, None);
        assert_eq!(a.number(&view, "a", Some(1), &labels("web")), 0x1_0002);
    }

    #[test]
    fn what_nobody_has_is_taken_back_after_a_while() {
        let (mut a, mut view, start) = (Numbers::default(), View::default(), Instant::now());
        let number = a.number(&view, "a", Some(1), &labels("web"));
        view.endpoints.put("vm", "b", Some((1, EndpointState { identity: number, ..EndpointState::default() })));
        let none = BTreeSet::new();
        let there = |a: &mut Numbers, view: &View, after: Duration| a.settle(view, &none, start + after).contains_key(&number);
        assert!(there(&mut a, &view, Duration::ZERO));
        assert!(there(&mut a, &view, UNUSED * 2), "another host's endpoint has it");
        view.endpoints.put("vm", "b", None);
        assert!(there(&mut a, &view, UNUSED * 2));
        assert!(there(&mut a, &view, UNUSED * 3 - Duration::from_secs(1)));
        assert!(a.settle(&view, &BTreeSet::from([number]), start + UNUSED * 3).contains_key(&number), "ours has it");
        assert!(there(&mut a, &view, UNUSED * 4));
        assert!(!there(&mut a, &view, UNUSED * 5));
        assert_eq!(a.number(&view, "a", Some(1), &labels("other")), 0x1_0002, "not the same number for something else at once");
    }
}
