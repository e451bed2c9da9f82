//! What the elected host makes of all reports.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Instant;

use vnet_common::fleet::{Global, LoadReport, MemberKey, MemberLoad};

use super::controller::{Controller, Load, Settings};
use super::{STALE, busiest};

/// Members among which the load is to be levelled.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The load balancer.
    pub lb: String,
    /// The port that clients connect to, or the first of them.
    pub port: u16,
    /// Where members are preferred that are near: these members' zone. Load does not go from one to the other.
    pub zone: Option<String>,
    /// How.
    pub settings: Settings,
    /// Those that take new flows, of one family, with their weights, not 0.
    pub members: Vec<(SocketAddr, u16)>,
}

/// Load balancer, port, whether it is IPv4, zone.
type GroupKey = (String, u16, bool, Option<String>);

impl Group {
    fn key(&self) -> GroupKey {
        let v4 = self.members.first().is_none_or(|(at, _)| at.is_ipv4());
        (self.lb.clone(), self.port, v4, self.zone.clone())
    }

    fn member(&self, at: SocketAddr) -> MemberKey {
        MemberKey { lb: self.lb.clone(), port: self.port, at }
    }
}

/// A host's newest report.
#[derive(Debug)]
struct Heard {
    report: LoadReport,
    /// When it was new.
    came: Instant,
}

/// Adds up what hosts report, and adjusts weights.
#[derive(Debug, Default)]
pub struct Aggregator {
    serial: u64,
    heard: BTreeMap<String, Heard>,
    controllers: HashMap<GroupKey, Controller>,
    /// What another host's answer said last.
    inherited: HashMap<MemberKey, f64>,
}

impl Aggregator {
    /// One that goes on from what another host handed out last, if that is known.
    #[must_use]
    pub fn new(last: Option<&Global>) -> Self {
        let factors = last.into_iter().flat_map(|global| &global.factors);
        let inherited = factors.map(|(key, percent)| (key.clone(), f64::from(*percent) / 100.0)).collect();
        // If that was this host's own, the next must not look as if it had been seen.
        Self { serial: last.map_or(0, |global| global.serial), inherited, ..Self::default() }
    }

    /// A host reports. What was heard before says nothing new.
    pub fn hear(&mut self, host: &str, report: LoadReport, now: Instant) {
        match self.heard.get(host) {
            Some(heard) if heard.report.serial == report.serial => {}
            _ => drop(self.heard.insert(host.to_owned(), Heard { report, came: now })),
        }
    }

    /// The answer to the reports of the hosts that are alive; `None` if there are none. To be called once a window. `groups` are those
    /// whose weights follow the load.
    pub fn step(&mut self, is_alive: impl Fn(&str) -> bool, groups: &[Group], now: Instant) -> Option<Global> {
        self.heard.retain(|host, heard| is_alive(host) && now.saturating_duration_since(heard.came) <= STALE);
        if self.heard.is_empty() {
            return None;
        }
        let (mut sums, mut loads) = (HashMap::new(), HashMap::new());
        for report in self.heard.values().map(|heard| &heard.report) {
            for (key, load) in &report.members {
                add(sums.entry(key.clone()).or_default(), load);
                loads.entry(key).or_insert_with(Load::default).add(&of(load, report.window_ms));
            }
        }
        let there: HashSet<GroupKey> = groups.iter().map(Group::key).collect();
        self.controllers.retain(|key, _| there.contains(key));
        let mut factors = Vec::new();
        for group in groups {
            let controller = self.controllers.entry(group.key()).or_insert_with(|| {
                let inherited = |at: SocketAddr| Some((at, *self.inherited.get(&group.member(at))?));
                Controller::new(group.members.iter().filter_map(|(at, _)| inherited(*at)))
            });
            let load = |at: SocketAddr| loads.get(&group.member(at)).copied().unwrap_or_default();
            let members: Vec<_> = group.members.iter().map(|(at, weight)| (*at, *weight, load(*at))).collect();
            controller.step(&group.settings, &members);
            let percents: Vec<(MemberKey, u32)> = group
                .members
                .iter()
                .map(|(at, _)| (group.member(*at), (controller.factor(*at) * 100.0).round() as u32))
                .collect();
            if percents.iter().any(|(_, percent)| *percent != 100) {
                factors.extend(percents);
            }
        }
        self.inherited.clear();
        self.serial += 1;
        Some(Global {
            serial: self.serial,
            hosts: self.heard.keys().cloned().collect(),
            serials: self.heard.values().map(|heard| heard.report.serial).collect(),
            window_ms: self.heard.values().map(|heard| heard.report.window_ms).max().unwrap_or(0),
            members: busiest(sums.into_iter().collect()),
            factors,
        })
    }
}

fn add(sum: &mut MemberLoad, load: &MemberLoad) {
    // What a host reports may be any number.
    let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
    add(&mut sum.new, load.new);
    add(&mut sum.ended, load.ended);
    add(&mut sum.active, load.active);
    add(&mut sum.packets, load.packets);
    add(&mut sum.bytes, load.bytes);
    add(&mut sum.resets, load.resets);
    add(&mut sum.connected, load.connected);
    add(&mut sum.connect_us, load.connect_us);
}

/// What a host's report says of a member.
fn of(load: &MemberLoad, window_ms: u64) -> Load {
    let seconds = window_ms.max(1) as f64 / 1000.0;
    let (new, ended, open) = (load.new as f64, load.ended as f64, load.active as f64);
    // In the middle of the window.
    let between = (open - (new - ended) / 2.0).max(0.0);
    Load {
        open,
        rate: new / seconds,
        new,
        ended,
        flow_seconds: between * seconds,
        refused: load.resets.min(load.new.saturating_sub(load.connected)) as f64,
        connected: load.connected as f64,
        connect_us: load.connect_us as f64,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::controller::Aim;
    use super::*;

    fn at(member: u8) -> SocketAddr {
        SocketAddr::from(([10, 9, 0, member], 80))
    }

    fn key(member: u8) -> MemberKey {
        MemberKey { lb: "web".into(), port: 80, at: at(member) }
    }

    fn report(serial: u64, loads: &[(u8, u64)]) -> LoadReport {
        let load = |active| MemberLoad { new: active, ended: active, active, connected: active, ..MemberLoad::default() };
        LoadReport { serial, window_ms: 2000, members: loads.iter().map(|(m, n)| (key(*m), load(*n))).collect() }
    }

    fn group(members: &[u8]) -> Group {
        let settings = Settings { aim: Aim::LeastLoad, gain: 1.0, damping: 0.5, min: 0.1, max: 4.0 };
        Group { lb: "web".into(), port: 80, zone: None, settings, members: members.iter().map(|m| (at(*m), 1)).collect() }
    }

    fn active(global: &Global) -> Vec<(u8, u64)> {
        let last = |key: &MemberKey| key.at.ip().to_string().rsplit('.').next().unwrap().parse().unwrap();
        global.members.iter().map(|(key, load)| (last(key), load.active)).collect()
    }

    #[test]
    fn reports_of_hosts_that_are_alive_are_added_up() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut a = Aggregator::default();
        assert_eq!(a.step(|_| true, &[], start), None);
        a.hear("h1", report(1, &[(1, 10), (2, 5)]), start);
        a.hear("h2", report(7, &[(2, 5), (3, 1)]), start);
        let global = a.step(|_| true, &[], at(1)).unwrap();
        assert_eq!((global.serial, &global.hosts, &global.serials), (1, &vec!["h1".to_owned(), "h2".to_owned()], &vec![1, 7]));
        assert_eq!(active(&global), [(1, 10), (2, 10), (3, 1)]);
        assert!(global.factors.is_empty(), "nobody's weights follow the load");
        // The report of the one is the same for too long; the other has another.
        a.hear("h1", report(1, &[(1, 10), (2, 5)]), at(5));
        a.hear("h2", report(8, &[(2, 6)]), at(5));
        assert_eq!(active(&a.step(|_| true, &[], at(6)).unwrap()), [(1, 10), (2, 11)]);
        assert_eq!(active(&a.step(|_| true, &[], at(7)).unwrap()), [(2, 6)]);
        assert_eq!(a.step(|host| host != "h2", &[], at(8)), None, "it is gone");
        // One that counts anew.
        a.hear("h1", report(1, &[(1, 1)]), at(9));
        assert_eq!(active(&a.step(|_| true, &[], at(9)).unwrap()), [(1, 1)]);
    }

    #[test]
    fn each_group_is_levelled_by_itself() {
        let now = Instant::now();
        let mut a = Aggregator::default();
        let other = Group { lb: "dns".into(), ..group(&[1, 2]) };
        let zones = [group(&[1, 2]), Group { zone: Some("b".into()), ..group(&[3, 4]) }];
        let groups = [&zones[..], &[other]].concat();
        let mut global = Global::default();
        for serial in 1..20 {
            // Members 3 and 4 have twice what 1 and 2 have; flows of member 2 stay for longer than those of 1.
            let mut r = report(serial, &[(1, 100), (2, 100), (3, 300), (4, 300)]);
            (r.members[1].1.new, r.members[1].1.ended) = (50, 50);
            a.hear("h1", r, now);
            global = a.step(|_| true, &groups, now).unwrap();
        }
        let factors: Vec<(String, u32)> = global.factors.iter().map(|(key, f)| (key.at.ip().to_string(), *f)).collect();
        let of = |member: usize| factors[member].1;
        assert_eq!(factors.len(), 2, "who is level, or idle, keeps its weights: {factors:?}");
        assert!((120..150).contains(&of(0)) && (50..80).contains(&of(1)), "{factors:?}");
        a.hear("h1", report(99, &[]), now);
        assert!(a.step(|_| true, &[], now).unwrap().factors.is_empty());
    }

    #[test]
    fn another_host_goes_on_from_the_last_answer() {
        let now = Instant::now();
        let last = Global { serial: 40, factors: vec![(key(1), 150), (key(2), 50)], ..Global::default() };
        let mut a = Aggregator::new(Some(&last));
        // As they are where flows of member 2 stay three times as long.
        let mut r = report(1, &[(1, 300), (2, 300)]);
        (r.members[1].1.new, r.members[1].1.ended) = (100, 100);
        r.window_ms = 300;
        a.hear("h1", r, now);
        let global = a.step(|_| true, &[group(&[1, 2])], now).unwrap();
        assert_eq!(global.serial, 41);
        assert!(global.factors[0].1.abs_diff(150) <= 3 && global.factors[1].1.abs_diff(50) <= 3, "{:?}", global.factors);
    }
}
