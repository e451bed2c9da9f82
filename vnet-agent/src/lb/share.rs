//! Who of a group gets new flows, and how many: preference, health, backups, load feedback and slow start.
//!
//! The preferred members serve while enough of them are healthy; else the next wider circle is asked, and at last everyone.
//! Where even of all members too few are healthy it is rather the check that is wrong: health is ignored then.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vnet_common::lb::state;

use super::compile::{Group, Member};
use crate::resource::{LoadBalancerSpec, Preference};

/// What a member of weight 1 has of [`Member::share`]: slow start and load feedback divide it.
pub const WHOLE: u32 = 100;
/// What a member begins a slow start with, in percent.
const FIRST_PERCENT: u32 = 10;

/// Sets the members' shares.
pub fn share(members: &mut [Member], spec: &LoadBalancerSpec, zone: Option<&str>) {
    let serving: BTreeSet<usize> = choose(members, spec, zone).into_iter().collect();
    for (i, m) in members.iter_mut().enumerate() {
        m.share = if serving.contains(&i) { of(u32::from(m.weight) * WHOLE, m.hint.whole_percent()) } else { 0 };
    }
}

/// So many percent of it.
fn of(share: u32, percent: u32) -> u32 {
    u32::try_from(u64::from(share) * u64::from(percent) / 100).unwrap_or(u32::MAX)
}

/// The members that get new flows.
fn choose(members: &[Member], spec: &LoadBalancerSpec, zone: Option<&str>) -> Vec<usize> {
    let willing = |i: &usize| members[*i].state != state::DRAINING && members[*i].weight > 0;
    let healthy = |i: &usize| members[*i].state == state::ACTIVE;
    let (backups, primaries): (Vec<usize>, Vec<usize>) = (0..members.len()).filter(willing).partition(|i| members[*i].backup);
    let local = |i: &usize| members[*i].place.ifindex != 0;
    let near = |i: &usize| local(i) || zone.is_some() && members[*i].zone.as_deref() == zone;
    let circles: &[&dyn Fn(&usize) -> bool] = match spec.prefer {
        Preference::Any => &[&|_| true],
        Preference::Zone => &[&near, &|_| true],
        Preference::Local => &[&local, &near, &|_| true],
    };
    let weight = |of: &[usize]| of.iter().map(|i| u64::from(members[*i].weight)).sum::<u64>();
    for circle in circles {
        let all: Vec<usize> = primaries.iter().copied().filter(circle).collect();
        let well: Vec<usize> = all.iter().copied().filter(healthy).collect();
        if !well.is_empty() && weight(&well) * 100 >= weight(&all) * u64::from(spec.min_healthy_percent) {
            return well;
        }
    }
    let well = |of: &[usize]| of.iter().copied().filter(healthy).collect::<Vec<usize>>();
    match (well(&primaries), well(&backups)) {
        (none, backups) if none.is_empty() && !backups.is_empty() => backups,
        (well, _) if spec.min_healthy_percent == 0 => well,
        _ => primaries,
    }
}

/// A member of a group, by load balancer, the group's first port, and the member's address and port.
type Who = (String, u16, IpAddr, u16);

/// Members that came, or came back, a moment ago.
#[derive(Debug, Default)]
pub struct Warming(HashMap<Who, Instant>);

impl Warming {
    /// Lowers the shares of the members of `new`, the groups of `lb`, that were not serving in `old`, or were not for long.
    pub fn apply(&mut self, lb: &str, old: &[Group], new: &mut [Group], slow_start: Duration, now: Instant) {
        let is_there = |(_, port, address, own): &Who| {
            new.iter().any(|g| g.port == *port && g.members.iter().any(|m| (m.address, m.port) == (*address, *own)))
        };
        self.0.retain(|who, _| who.0 != lb || is_there(who));
        for g in new {
            let was =
                old.iter().find(|o| (o.port, o.last_port, o.protocol, &o.vips) == (g.port, g.last_port, g.protocol, &g.vips));
            let serving = |m: &&Member| m.share > 0;
            // In a group that nobody served nobody has to be spared.
            let others = was.is_some_and(|was| was.members.iter().any(|m| serving(&m)));
            for m in &mut g.members {
                let who = (g.lb.clone(), g.port, m.address, m.port);
                let place = |o: &&Member| (o.address, o.port) == (m.address, m.port);
                if m.share == 0 || slow_start.is_zero() {
                    self.0.remove(&who);
                    continue;
                }
                let served = was.is_some_and(|was| was.members.iter().filter(serving).any(|o| place(&o)));
                if others && !served {
                    self.0.insert(who.clone(), now);
                }
                let Some(since) = self.0.get(&who) else { continue };
                let past = now.saturating_duration_since(*since);
                if past >= slow_start {
                    self.0.remove(&who);
                    continue;
                }
                let rest = f64::from(100 - FIRST_PERCENT) * past.as_secs_f64() / slow_start.as_secs_f64();
                m.share = of(m.share, FIRST_PERCENT + rest as u32).max(1);
            }
        }
    }

    /// The load balancers that have members which are not at their full share.
    pub fn load_balancers(&self) -> BTreeSet<String> {
        self.0.keys().map(|(lb, ..)| lb.clone()).collect()
    }

    /// Forgets those of load balancers that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|(lb, ..), _| is_there(lb));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::compile::fixtures::{Input, compile, ip, lb, member};

    /// Members as `zone state weight`, with `b` for backups, `l` for those on this host.
    fn members(text: &str) -> Vec<Member> {
        let input = |n: usize| lb("x", &["10.0.0.1"], (1..=n).map(|i| member(&format!("10.9.0.{i}"))).collect());
        let words: Vec<&str> = text.split_whitespace().collect();
        let compiled = compile(&Input { load_balancers: vec![input(words.len())], ..Input::default() });
        let mut members = compiled.groups()[0].members.clone();
        for (m, word) in members.iter_mut().zip(words) {
            m.zone = word.chars().find(char::is_ascii_uppercase).map(String::from);
            m.state = match () {
                () if word.contains('-') => state::DOWN,
                () if word.contains('d') => state::DRAINING,
                () => state::ACTIVE,
            };
            m.backup = word.contains('b');
            m.place.ifindex = u32::from(word.contains('l'));
            m.weight = word.chars().find(char::is_ascii_digit).map_or(1, |c| c as u16 - '0' as u16);
        }
        members
    }

    fn serving(text: &str, prefer: Preference, min: u8) -> String {
        let mut all = members(text);
        let mut spec = lb("x", &["10.0.0.1"], vec![]).spec;
        (spec.prefer, spec.min_healthy_percent) = (prefer, min);
        share(&mut all, &spec, Some("A"));
        all.iter().map(|m| if m.share > 0 { '+' } else { '.' }).collect()
    }

    #[test]
    fn who_serves() {
        use Preference::{Any, Local, Zone};
        for (members, prefer, min, want) in [
            ("A B", Any, 1, "++"),
            ("A B-", Any, 1, "+."),
            ("A0 Bd C", Any, 1, "..+"),
            ("A- B-", Any, 1, "++"), // no one is well: the check is wrong
            ("A- B-", Any, 0, ".."),
            ("A- Bd", Any, 1, "+."), // but drained is drained
            ("A B- C- D-", Any, 50, "++++"),
            ("A B C- D-", Any, 50, "++.."),
            ("A9 B- C- D-", Any, 50, "+..."),
            // Preference.
            ("A B A", Zone, 1, "+.+"),
            ("A- B A", Zone, 1, "..+"),
            ("A- B A", Zone, 60, ".++"), // too few in the zone: any
            ("A- B A-", Zone, 1, ".+."),
            ("A- B- A-", Zone, 1, "+++"),
            ("A Bl B", Local, 1, ".+."),
            ("A Bl- B", Local, 1, "+.."),
            ("A- Bl- B", Local, 1, "..+"),
            ("A Bl B", Zone, 1, "++."), // what is on this host is near
            ("B B", Zone, 1, "++"),
            // Backups.
            ("A Ab", Any, 1, "+."),
            ("A- Ab", Any, 1, ".+"),
            ("A- Ab-", Any, 1, "+."),
            ("A- A Ab", Any, 60, "++."), // one is well: no backup, too few: all
            ("Ab", Any, 1, "+"),
        ] {
            assert_eq!(serving(members, prefer, min), want, "{members} {prefer:?} {min}");
        }
    }

    #[test]
    fn the_largest_weight_may_be_multiplied() {
        let mut all = members("A");
        (all[0].weight, all[0].hint.percent) = (u16::MAX, 10_000);
        share(&mut all, &lb("x", &["10.0.0.1"], vec![]).spec, None);
        assert_eq!(all[0].share, 655_350_000);
    }

    #[test]
    fn who_comes_back_gets_more_and_more() {
        let groups = |m: &[&str], down: &[&str]| {
            let x = lb("x", &["10.0.0.1"], m.iter().map(|m| member(m)).collect());
            let mut groups = compile(&Input { load_balancers: vec![x.clone()], ..Input::default() }).groups().to_vec();
            for m in &mut groups[0].members {
                m.state = if down.iter().any(|d| ip(d) == m.address) { state::DOWN } else { state::ACTIVE };
            }
            share(&mut groups[0].members, &x.spec, None);
            groups
        };
        let shares = |g: &[Group]| g[0].members.iter().map(|m| m.share).collect::<Vec<_>>();
        let (start, ten) = (Instant::now(), Duration::from_secs(10));
        let at = |s: u64| start + Duration::from_secs(s);
        let mut warming = Warming::default();
        let mut first = groups(&["10.9.0.1", "10.9.0.2"], &["10.9.0.2"]);
        warming.apply("x", &[], &mut first, ten, at(0));
        assert_eq!(shares(&first), [100, 0], "a group that is new is served at once");
        let mut back = groups(&["10.9.0.1", "10.9.0.2", "10.9.0.3"], &[]);
        warming.apply("x", &first, &mut back, ten, at(1));
        assert_eq!(shares(&back), [100, 10, 10]);
        assert_eq!(warming.load_balancers(), BTreeSet::from(["x".to_owned()]));
        for (s, want) in [(2, 19), (6, 55), (10, 91), (11, 100)] {
            let mut next = groups(&["10.9.0.1", "10.9.0.2", "10.9.0.3"], &[]);
            warming.apply("x", &back, &mut next, ten, at(s));
            assert_eq!(shares(&next), [100, want, want], "after {s} s");
            back = next;
        }
        assert!(warming.load_balancers().is_empty());
        let mut gone = groups(&["10.9.0.1", "10.9.0.2", "10.9.0.3"], &["10.9.0.3"]);
        warming.apply("x", &back, &mut gone, ten, at(20));
        let mut again = groups(&["10.9.0.1", "10.9.0.2", "10.9.0.3"], &[]);
        warming.apply("x", &gone, &mut again, ten, at(21));
        assert_eq!(shares(&again), [100, 100, 10]);
    }
}
