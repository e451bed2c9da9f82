//! Who asks which member if it serves: a few hosts each, and all the others believe them.
//!
//! Every host works out by itself who asks ([`probers`], a rendezvous hash: Thaler and Ravishankar, "Using name-based mappings to increase
//! hit rates", 1998), so nobody hands that out; a host that comes or goes changes only what it asks itself. What a host has found out
//! by itself counts there before what others say.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use vnet_common::fleet::HealthReport;

use crate::lb::health::{Check, Health};

/// Hosts that ask each member: one may be wrong, or gone.
pub const PROBERS: usize = 3;
/// How long a host that saw connections to a member fail asks it by itself.
const SUSPECTED: Duration = Duration::from_secs(60);
/// Until those who should ask must have said something, beyond what a check itself takes.
const SILENT: Duration = Duration::from_secs(10);

/// A check's name among hosts. What is asked may be secret: it goes in as a hash.
#[must_use]
pub fn name(check: &Check) -> String {
    format!("{} {:016x}", check.target, fnv(format!("{check:?}").as_bytes()))
}

/// FNV-1a, 64 bits: the same in every version.
fn fnv(bytes: &[u8]) -> u64 {
    fnv_on(0xCBF2_9CE4_8422_2325, bytes)
}

/// The hash of what has hash `h`, and these bytes behind it.
fn fnv_on(h: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(h, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// The hosts that ask, of all that are alive.
#[must_use]
pub fn probers<'a>(check: &str, hosts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    // FNV's upper bits know little of the last bytes: mixed once more (the finaliser of MurmurHash3).
    let of_check = fnv_on(fnv(check.as_bytes()), &[0]);
    let weight = |host: &str| {
        let mut h = fnv_on(of_check, host.as_bytes());
        h = (h ^ h >> 33).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        h ^ h >> 33
    };
    let mut all: Vec<(u64, &str)> = hosts.map(|host| (weight(host), host)).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.into_iter().take(PROBERS).map(|(_, host)| host).collect()
}

/// What this host does about a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Asks by itself.
    Ask,
    /// Believes this.
    Believe(Health, Option<String>),
}

/// What this host knows of the members' health by others.
#[derive(Debug, Default)]
pub struct Probing {
    /// Checks of which nobody who should has said anything, and since when.
    unheard: HashMap<Check, Instant>,
    /// Members whose connections failed from here.
    suspected: HashMap<Check, Instant>,
    /// The names of checks, and who of `among` makes them: with ten thousand members this is not worked out each time.
    assigned: HashMap<Check, (String, Vec<String>)>,
    among: Vec<String>,
}

/// Who there is, as far as this host knows.
pub struct Around<'a> {
    /// This host.
    pub own: &'a str,
    /// The hosts that are alive and may ask, this one among them. Alone when the store is not heard of.
    pub hosts: &'a [&'a str],
    /// What they say.
    pub reports: &'a BTreeMap<String, HealthReport>,
}

impl Probing {
    /// Connections to this member fail from here: it is asked from here for a while.
    pub fn suspect(&mut self, check: &Check, now: Instant) {
        self.suspected.insert(check.clone(), now);
    }

    /// This host asks a member, and finds it down: if it was suspected, it still is. Believing others again would send connections there.
    pub fn found_down(&mut self, check: &Check, now: Instant) {
        if let Some(since) = self.suspected.get_mut(check) {
            *since = now;
        }
    }

    /// What to do about a check.
    pub fn duty(&mut self, check: &Check, around: &Around<'_>, now: Instant) -> Duty {
        if let Some(since) = self.suspected.get(check) {
            if now.saturating_duration_since(*since) < SUSPECTED {
                return Duty::Ask;
            }
            self.suspected.remove(check);
        }
        if !self.among.iter().map(String::as_str).eq(around.hosts.iter().copied()) {
            self.assigned.clear();
            self.among = around.hosts.iter().map(|host| (*host).to_owned()).collect();
        }
        let (name, asking) = self.assigned.entry(check.clone()).or_insert_with(|| {
            let name = name(check);
            let asking = probers(&name, around.hosts.iter().copied()).into_iter().map(str::to_owned).collect();
            (name, asking)
        });
        if asking.iter().any(|host| host == around.own) {
            self.unheard.remove(check);
            return Duty::Ask;
        }
        let said: Vec<&Result<(), String>> =
            asking.iter().filter_map(|host| around.reports.get(host)?.checks.get(name)).collect();
        if said.is_empty() {
            // They may not have this member, or be about to.
            let since = *self.unheard.entry(check.clone()).or_insert(now);
            let patience = check.interval * u32::from(check.fall) + check.timeout + SILENT;
            return match now.saturating_duration_since(since) >= patience {
                true => Duty::Ask,
                false => Duty::Believe(Health::Unknown, None),
            };
        }
        self.unheard.remove(check);
        let down: Vec<&String> = said.iter().filter_map(|s| s.as_ref().err()).collect();
        match down.first() {
            Some(why) if down.len() * 2 > said.len() => {
                Duty::Believe(Health::Down, Some(format!("{why} (as {} of {} hosts say)", down.len(), said.len())))
            }
            _ => Duty::Believe(Health::Up, None),
        }
    }

    /// Forgets checks that nobody wants any more.
    pub fn retain(&mut self, wanted: impl Fn(&Check) -> bool) {
        self.unheard.retain(|check, _| wanted(check));
        self.suspected.retain(|check, _| wanted(check));
        self.assigned.retain(|check, _| wanted(check));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::health::Kind;
    use std::net::SocketAddr;

    fn check(port: u16) -> Check {
        let (interval, timeout) = (Duration::from_secs(1), Duration::from_secs(1));
        Check { target: SocketAddr::from(([10, 0, 0, 1], port)), kind: Kind::Tcp, interval, timeout, rise: 2, fall: 3 }
    }

    fn hosts(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("host-{i}")).collect()
    }

    #[test]
    fn probes_of_a_member_stay_the_same_as_hosts_grow_and_are_spread() {
        for n in [1, 2, 3, 10, 100] {
            let hosts = hosts(n);
            let mut work: BTreeMap<&str, usize> = BTreeMap::new();
            for port in 1..=1000 {
                let asking = probers(&name(&check(port)), hosts.iter().map(String::as_str));
                assert_eq!(asking.len(), n.min(PROBERS));
                asking.into_iter().for_each(|host| *work.entry(host).or_default() += 1);
            }
            let (most, mean) = (work.values().max().copied().unwrap_or(0), 1000 * n.min(PROBERS) / n);
            println!("{n} hosts: at most {most} of 1000 members each, {mean} on average");
            assert!(work.len() == n && most < mean * 2 + 10, "{n} hosts: {most}");
        }
    }

    #[test]
    fn a_host_that_goes_changes_only_what_it_asked() {
        let all = hosts(20);
        for port in 1..=200 {
            let name = name(&check(port));
            let before = probers(&name, all.iter().map(String::as_str));
            let after = probers(&name, all[1..].iter().map(String::as_str));
            let kept = before.iter().filter(|h| after.contains(h)).count();
            assert_eq!(kept, PROBERS - usize::from(before.contains(&"host-0")));
        }
    }

    /// A host that does not ask, and those that do.
    fn bystander() -> (Vec<String>, String, Vec<String>) {
        let all = hosts(6);
        let asking: Vec<String> =
            probers(&name(&check(80)), all.iter().map(String::as_str)).into_iter().map(str::to_owned).collect();
        let own = all.iter().find(|h| !asking.contains(h)).unwrap().clone();
        (all, own, asking)
    }

    #[test]
    fn others_are_believed_and_the_majority_counts() {
        let (all, own, asking) = bystander();
        let names: Vec<&str> = all.iter().map(String::as_str).collect();
        let report = |ok: bool| HealthReport {
            checks: [(name(&check(80)), if ok { Ok(()) } else { Err("no answer".to_owned()) })].into(),
        };
        let (mut probing, now) = (Probing::default(), Instant::now());
        for (said, expected) in [
            (&[true, true, false][..], Health::Up),
            (&[false, true, false], Health::Down),
            (&[true, false], Health::Up),
            (&[false], Health::Down),
        ] {
            let reports: BTreeMap<String, HealthReport> = asking.iter().cloned().zip(said.iter().map(|ok| report(*ok))).collect();
            let around = Around { own: &own, hosts: &names, reports: &reports };
            let Duty::Believe(health, why) = probing.duty(&check(80), &around, now) else { panic!("it asks by itself") };
            assert_eq!((health, why.is_some()), (expected, expected == Health::Down), "{said:?}");
        }
        // Of a host that does not ask, and of one that is gone, nothing counts.
        let reports = [(own.clone(), report(false)), ("gone".to_owned(), report(false))].into();
        let around = Around { own: &own, hosts: &names, reports: &reports };
        assert_eq!(probing.duty(&check(80), &around, now), Duty::Believe(Health::Unknown, None));
    }

    #[test]
    fn who_hears_nothing_or_sees_connections_fail_asks_by_itself() {
        let (all, own, asking) = bystander();
        let names: Vec<&str> = all.iter().map(String::as_str).collect();
        let none = BTreeMap::new();
        let around = Around { own: &own, hosts: &names, reports: &none };
        let (mut probing, start) = (Probing::default(), Instant::now());
        assert!(matches!(probing.duty(&check(80), &around, start), Duty::Believe(Health::Unknown, None)));
        assert!(matches!(probing.duty(&check(80), &around, start + SILENT), Duty::Believe(..)));
        assert_eq!(probing.duty(&check(80), &around, start + SILENT + Duration::from_secs(4)), Duty::Ask);
        let alone = Around { own: &own, hosts: &[own.as_str()], reports: &none };
        assert_eq!(Probing::default().duty(&check(80), &alone, start), Duty::Ask, "the store is away");
        let up: BTreeMap<String, HealthReport> =
            asking.iter().map(|h| (h.clone(), HealthReport { checks: [(name(&check(80)), Ok(()))].into() })).collect();
        let around = Around { reports: &up, ..around };
        assert_eq!(probing.duty(&check(80), &around, start), Duty::Believe(Health::Up, None));
        probing.suspect(&check(80), start);
        assert_eq!(probing.duty(&check(80), &around, start), Duty::Ask);
        probing.found_down(&check(80), start + SUSPECTED / 2);
        assert_eq!(probing.duty(&check(80), &around, start + SUSPECTED), Duty::Ask);
        let (later, up) = (start + SUSPECTED * 3 / 2, Duty::Believe(Health::Up, None));
        assert_eq!(probing.duty(&check(80), &around, later), up);
        // Nobody suspects what others say is down.
        probing.found_down(&check(80), later);
        assert_eq!(probing.duty(&check(80), &around, later), up);
    }
}
