use std::collections::BTreeMap;

use super::*;
use crate::fleet::claims::Claims;

/// A host as far as its quarantine and its claim go.
#[derive(Default)]
struct Host {
    here: bool,
    held: bool,
    said: Said,
}

/// Hosts whose claims all see at once.
#[derive(Default)]
struct Fleet {
    hosts: BTreeMap<&'static str, Host>,
    claims: Claims,
    /// How many claims were made.
    made: i64,
}

impl Fleet {
    /// The host whose claim counts for all, as nobody is placed.
    fn owner(&self) -> Option<String> {
        let claims = self.claims.of("vm")?;
        claims
            .iter()
            .min_by_key(|(host, (since, state))| (state.gone, !self.hosts.contains_key(host.as_str()), *since))
            .map(|(host, _)| host.clone())
    }

    /// A host looks, does what follows and says it. Gives whether it did anything.
    fn look(&mut self, name: &'static str) -> bool {
        let owner = self.owner();
        let host = self.hosts.entry(name).or_default();
        let claims = self.claims.of("vm");
        if host.here {
            let (turn, then) = follow(host.said, host.held, &Newest::of_others(claims, name, owner.as_deref()));
            match then {
                Then::Stay => {}
                Then::Hold { .. } => host.held = true,
                Then::Release { .. } => host.held = false,
            }
            host.said = Said { turn, held: host.held };
        }
        let mut says = host.here;
        if !host.here {
            let (said, away) = away(host.said, host.held, claims, name, owner.as_deref());
            host.said = said;
            if let Away::TakenOver { .. } = away {
                (host.held, host.said.held) = (false, false);
            }
            says = away == Away::Said;
        }
        let state = EndpointState { turn: host.said.turn, quarantined: host.held, gone: !host.here, ..EndpointState::default() };
        let claim = says.then_some(state);
        let before = claims.and_then(|claims| claims.get(name)).map(|(since, state)| (*since, (**state).clone()));
        let changed = before.as_ref().map(|(_, state)| state) != claim.as_ref();
        self.made += 1;
        let since = before.map_or(self.made, |(since, _)| since);
        self.claims.put("vm", name, claim.map(|state| (since, state)));
        changed
    }

    /// All look until nothing changes.
    fn settle(&mut self) {
        let names: Vec<&str> = self.hosts.keys().copied().collect();
        for _ in 0..20 {
            let changed = names.iter().filter(|name| self.look(name)).count();
            if changed == 0 {
                return;
            }
        }
        panic!("it never ends");
    }

    fn set(&mut self, name: &'static str, here: bool) {
        self.hosts.entry(name).or_default().here = here;
        self.settle();
    }

    fn hold(&mut self, name: &'static str, held: bool) {
        self.hosts.entry(name).or_default().held = held;
        self.settle();
    }

    fn held(&self) -> bool {
        let (Some(claims), Some(owner)) = (self.claims.of("vm"), self.owner()) else { return false };
        let state = &claims.get(&owner).unwrap().1;
        state.quarantined || Newest::of_others(Some(claims), &owner, Some(&owner)).holds(state).is_some()
    }

    fn who(&self) -> String {
        let each = self.hosts.iter().filter(|(_, host)| host.held).map(|(name, _)| *name);
        each.collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_hold_goes_along_and_ends_for_all() {
    for live in [false, true] {
        let mut f = Fleet::default();
        f.set("a", true);
        f.hold("a", true);
        if !live {
            f.set("a", false);
            assert!(f.held(), "it is nowhere, and held");
        }
        f.set("b", true);
        assert!(f.hosts["b"].held);
        f.set("a", false);
        assert_eq!((f.who().as_str(), f.held()), ("b", true), "a has handed it over");
        assert!(f.claims.of("vm").is_some_and(|claims| !claims.contains_key("a")));
        f.hold("b", false);
        assert!(!f.held());
        f.set("b", false);
        f.set("a", true);
        assert_eq!((f.who().as_str(), f.held()), ("", false));
        assert!(f.claims.of("vm").is_some_and(|claims| claims.len() == 1), "nobody says anything for who held it");
    }
}

#[test]
fn who_is_nowhere_may_be_let_go_where_it_was() {
    let mut f = Fleet::default();
    f.set("a", true);
    f.hold("a", true);
    f.set("a", false);
    f.hold("a", false);
    assert!(!f.held());
    assert!(f.claims.of("vm").is_none());
    f.set("b", true);
    assert!(!f.hosts["b"].held);
}

#[test]
fn while_two_hosts_have_it_that_whose_it_is_lets_it_go_for_both() {
    for (by, left) in [("a", ("", false)), ("b", ("a", true))] {
        let mut f = Fleet::default();
        f.set("a", true);
        f.hold("a", true);
        f.set("b", true);
        assert_eq!(f.who(), "a b");
        f.hold(by, false);
        assert_eq!((f.who().as_str(), f.held()), left);
        f.hold(by, true);
        assert_eq!(f.who(), "a b", "anew");
    }
}

#[test]
fn a_host_that_died_holds_it_until_it_is_released_elsewhere() {
    let mut f = Fleet::default();
    f.set("a", true);
    f.hold("a", true);
    // Its claim stays, and it looks no more.
    let dead = f.hosts.remove("a").unwrap();
    f.set("b", true);
    assert!(f.hosts["b"].held);
    f.hold("b", false);
    assert!(!f.held());
    // It is known there for as long as the dead host's claim is there; as long as it is nowhere, that counts.
    f.set("b", false);
    f.set("b", true);
    assert!(!f.hosts["b"].held && !f.held());
    f.set("b", false);
    // A host that never had it finds that one held it, and that another, which it is not on, did not.
    f.set("c", true);
    assert!(f.hosts["c"].held);
    f.hold("c", false);
    f.hosts.insert("a", Host { here: false, ..dead });
    f.settle();
    assert_eq!((f.who().as_str(), f.held()), ("", false));
    assert!(f.claims.of("vm").is_some_and(|claims| claims.keys().eq(["c"])));
}

#[test]
fn what_a_host_of_before_says_counts_until_somebody_knows_better() {
    let mut f = Fleet::default();
    f.claims.put("vm", "old", Some((1, EndpointState { quarantined: true, ..EndpointState::default() })));
    f.claims.put(
        "vm",
        "other",
        Some((1, EndpointState { quarantined: true, discovered: true, turn: 9, ..EndpointState::default() })),
    );
    f.set("b", true);
    assert!(f.hosts["b"].held);
    f.hold("b", false);
    assert!(!f.held(), "only a device that is named alike is");
}

#[test]
fn a_host_that_claims_what_it_never_had_lets_nobody_go_and_holds_nobody() {
    let claim = |quarantined, turn| Some((100, EndpointState { quarantined, turn, ..EndpointState::default() }));
    let mut f = Fleet::default();
    f.set("b", true);
    f.claims.put("vm", "a", claim(true, u32::MAX));
    f.settle();
    assert!(!f.hosts["b"].held && !f.held());
    f.hold("b", true);
    f.claims.put("vm", "a", claim(false, u32::MAX));
    f.settle();
    assert!(f.hosts["b"].held && f.held());
    f.hold("b", false);
    assert!(!f.held());
}
