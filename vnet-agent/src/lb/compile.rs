//! From resources to what the maps should say: one group for each load balancer, address family and port.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use vnet_common::lb::{flags, state};

use super::eject::Ejected;
use super::feedback::{Hint, Hints};
use super::health::{Check, Health, Kind};
use super::share::share;
use crate::resource::{
    Algorithm, Delivery, HealthCheck, LoadBalancer, MemberSelector, OnMemberRemoved, OnNoMember, Protocol, parse_mac,
};
use crate::store::MemberOverride;

pub use super::surroundings::{Local, Mac, Neighbour, Place, Surroundings};

/// What the groups of a load balancer follow from, beside itself.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// What operators changed, by load balancer and member name.
    pub overrides: &'a HashMap<(String, String), MemberOverride>,
    /// What is known of the members' health.
    pub health: &'a HashMap<Check, (Health, Option<String>)>,
    /// Members that are out, since their connections failed.
    pub ejected: &'a Ejected,
    /// What load feedback says of members.
    pub feedback: &'a Hints,
    /// Where members may be.
    pub surroundings: &'a Surroundings,
    /// This host's zone.
    pub zone: Option<&'a str>,
    /// The load balancer of a name.
    pub load_balancer: &'a dyn Fn(&str) -> Option<&'a LoadBalancer>,
}

/// A load balancer's members of one family, for one port or range of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The load balancer's name.
    pub lb: String,
    /// The VIPs that lead here: of one family, sorted.
    pub vips: Vec<IpAddr>,
    /// The port that clients connect to, or the first of them. 0 for every port.
    pub port: u16,
    /// The last such port.
    pub last_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// See [`flags`].
    pub flags: u32,
    /// By address and port, no two the same.
    pub members: Vec<Member>,
}

impl Group {
    /// The device of the member's endpoint, if packets are redirected there.
    fn redirects_to(&self, m: &Member) -> Option<u32> {
        (self.flags & flags::REDIRECT != 0 && m.place.ifindex != 0).then_some(m.place.ifindex)
    }
}

/// Members with their groups.
pub fn members(groups: &[Group]) -> impl Iterator<Item = (&Group, &Member)> {
    groups.iter().flat_map(|g| g.members.iter().map(move |m| (g, m)))
}

/// One member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it serves.
    pub address: IpAddr,
    /// The port it serves on; 0: that which the client connects to.
    pub port: u16,
    /// Its weight as configured; drained or down members keep it.
    pub weight: u16,
    /// Its share of new flows against those of the others, in hundredths of weight 1; 0: none. See [`super::share`].
    pub share: u32,
    /// What load feedback says of it.
    pub hint: Hint,
    /// Its zone.
    pub zone: Option<String>,
    /// It serves only while no other member does.
    pub backup: bool,
    /// See [`state`].
    pub state: u8,
    /// Where it is.
    pub place: Place,
    /// How it is checked.
    pub check: Option<Check>,
}

/// What should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// By load balancer, family and port.
    groups: Vec<Group>,
    /// Who asks for a check.
    checks: Index<Check>,
    /// Who has a member with this address.
    members: Index<IpAddr>,
    /// Who sends to the endpoint on this device by redirect.
    redirect: Index<u32>,
    /// What selects members.
    selectors: BTreeMap<String, MemberSelector>,
}

impl Desired {
    /// The groups, by load balancer, family and port.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The groups of one load balancer.
    pub fn of(&self, lb: &str) -> &[Group] {
        &self.groups[self.range(lb)]
    }

    fn range(&self, lb: &str) -> Range<usize> {
        let first = self.groups.partition_point(|g| g.lb.as_str() < lb);
        first..first + self.groups[first..].partition_point(|g| g.lb == lb)
    }

    /// Makes these the groups of the load balancer `name`, and gives those that it had. `lb` is `None` if it is gone.
    pub fn put(&mut self, name: &str, lb: Option<&LoadBalancer>, groups: Vec<Group>) -> Vec<Group> {
        let range = self.range(name);
        for (g, m) in members(&self.groups[range.clone()]) {
            remove(&mut self.members, &m.address, name);
            m.check.iter().for_each(|check| remove(&mut self.checks, check, name));
            g.redirects_to(m).iter().for_each(|device| remove(&mut self.redirect, device, name));
        }
        for (g, m) in members(&groups) {
            add(&mut self.members, m.address, name);
            m.check.iter().for_each(|check| add(&mut self.checks, check.clone(), name));
            g.redirects_to(m).into_iter().for_each(|device| add(&mut self.redirect, device, name));
        }
        match lb.and_then(|lb| lb.spec.member_selector.clone()) {
            Some(selector) => drop(self.selectors.insert(name.to_owned(), selector)),
            None => drop(self.selectors.remove(name)),
        }
        self.groups.splice(range, groups).collect()
    }

    /// Whether a group asks for this check.
    pub fn has_check(&self, check: &Check) -> bool {
        self.checks.contains_key(check)
    }

    /// Every check that a group asks for.
    pub fn checks(&self) -> impl Iterator<Item = &Check> {
        self.checks.keys()
    }

    /// The load balancers that ask for a check.
    pub fn checked_by(&self, check: &Check) -> impl Iterator<Item = &String> {
        self.checks.get(check).into_iter().flatten()
    }

    /// The load balancers that have a member with this address.
    pub fn with_member(&self, address: &IpAddr) -> impl Iterator<Item = &String> {
        self.members.get(address).into_iter().flatten()
    }

    /// What selects members, by load balancer.
    pub fn selectors(&self) -> impl Iterator<Item = (&String, &MemberSelector)> {
        self.selectors.iter()
    }

    /// The devices whose endpoints are members that get packets by redirect, and answer the same way.
    pub fn redirect_members(&self) -> HashSet<u32> {
        self.redirect.keys().copied().collect()
    }

    /// Things worth knowing that do not stop anything.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for g in self.groups.iter().filter(|g| g.members.is_empty()) {
            let family = if g.vips.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" };
            warnings.push(format!("load balancer {}: no member has an {family} address, but a VIP does", g.lb));
        }
        // One for all ports.
        warnings.dedup();
        warnings
    }
}

/// By something, the load balancers that have to do with it.
type Index<K> = HashMap<K, BTreeSet<String>>;

fn add<K: Hash + Eq>(index: &mut Index<K>, key: K, name: &str) {
    index.entry(key).or_default().insert(name.to_owned());
}

fn remove<K: Hash + Eq>(index: &mut Index<K>, key: &K, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

/// What the maps should say of a load balancer.
pub fn compile(lb: &LoadBalancer, context: Context<'_>) -> Vec<Group> {
    let mut groups = Vec::new();
    let candidates = candidates(lb, context);
    for v4 in [true, false] {
        let vips: BTreeSet<IpAddr> = lb.spec.vips.iter().copied().filter(|v| v.is_ipv4() == v4).collect();
        if vips.is_empty() {
            continue;
        }
        let members: Vec<&Candidate> = candidates.iter().filter(|m| m.address.is_ipv4() == v4).collect();
        let vips: Vec<IpAddr> = vips.into_iter().collect();
        for ports in ports(lb) {
            groups.push(group(lb, vips.clone(), ports, &members, context));
        }
    }
    groups
}

/// Each port and range, in order.
fn ports(lb: &LoadBalancer) -> BTreeSet<(u16, u16)> {
    let single = lb.spec.ports.iter().map(|port| (*port, *port));
    let ranges = lb.spec.port_ranges.iter().map(|range| (range.port, range.end_port));
    single.chain(ranges).chain(lb.spec.any_port.then_some((0, u16::MAX))).collect()
}

fn group(
    lb: &LoadBalancer,
    vips: Vec<IpAddr>,
    (port, last_port): (u16, u16),
    candidates: &[&Candidate],
    context: Context<'_>,
) -> Group {
    let (first_port, own_port) = (port, if port == last_port { port } else { 0 });
    let is_down = |check: &Check| context.health.get(check).is_some_and(|(health, _)| *health == Health::Down);
    let checked = lb.spec.health_check.as_ref().map(|h| (h, Kind::of(h)));
    let ejected = context.ejected.get(&lb.metadata.name);
    let hints = lb.spec.active_feedback().and_then(|_| context.feedback.get(&lb.metadata.name));
    let mut members = BTreeMap::new();
    for c in candidates {
        let port = c.port.unwrap_or(own_port);
        let check = checked.as_ref().map(|(h, kind)| check(h, kind, c.address, port));
        let at = (first_port, SocketAddr::new(c.address, port));
        let state = match &check {
            _ if c.drained || c.weight == 0 || context.surroundings.is_drained(&c.address) => state::DRAINING,
            Some(check) if is_down(check) => state::DOWN,
            _ if ejected.is_some_and(|out| out.contains_key(&at)) => state::DOWN,
            _ => state::ACTIVE,
        };
        let hint = hints.and_then(|hints| hints.get(&at)).copied().unwrap_or_default();
        let member = Member {
            name: c.name.clone(),
            address: c.address,
            port,
            weight: c.weight,
            share: 0,
            hint,
            zone: c.zone.clone(),
            backup: c.backup,
            state,
            place: context.surroundings.find(&c.address, c.mac),
            check,
        };
        members.entry((c.address, port)).or_insert(member);
    }
    let mut members: Vec<Member> = members.into_values().collect();
    share(&mut members, &lb.spec, context.zone);
    Group { lb: lb.metadata.name.clone(), vips, port, last_port, protocol: lb.spec.protocol, flags: group_flags(lb), members }
}

fn group_flags(lb: &LoadBalancer) -> u32 {
    let mut bits = 0;
    if lb.spec.on_no_member == OnNoMember::Drop {
        bits |= flags::EMPTY_DROP;
    }
    if lb.spec.on_member_removed == OnMemberRemoved::Repick {
        bits |= flags::REMOVED_REPICK;
    }
    if lb.spec.delivery == Delivery::Redirect {
        bits |= flags::REDIRECT;
    }
    bits |= match lb.spec.algorithm {
        Algorithm::Maglev => flags::MAGLEV,
        Algorithm::RoundRobin => flags::ROUND_ROBIN,
        Algorithm::LeastConnections => flags::LEAST_CONNECTIONS,
        Algorithm::SourceHash => flags::SOURCE_HASH,
    };
    bits | lb.spec.affinity.map_or(0, |a| flags::affinity(a.timeout_seconds))
}

fn check(h: &HealthCheck, kind: &Kind, address: IpAddr, port: u16) -> Check {
    // A ping goes to no port: one is enough for all.
    let port = if *kind == Kind::Icmp { 0 } else { h.port.unwrap_or(port) };
    Check {
        target: SocketAddr::new(address, port),
        kind: kind.clone(),
        interval: Duration::from_millis(h.interval_ms.into()),
        timeout: Duration::from_millis(h.timeout_ms.into()),
        rise: h.rise,
        fall: h.fall,
    }
}

/// A member before it is known on which port, and where it is.
struct Candidate {
    name: String,
    address: IpAddr,
    port: Option<u16>,
    weight: u16,
    drained: bool,
    mac: Option<Mac>,
    zone: Option<String>,
    backup: bool,
}

fn candidates(lb: &LoadBalancer, context: Context<'_>) -> Vec<Candidate> {
    let mut out = own_candidates(lb, context);
    // Nobody contains itself: that is refused when resources are applied. This is for what was stored by others.
    let mut seen = BTreeSet::from([lb.metadata.name.as_str()]);
    let mut left: Vec<(&str, bool)> = included(lb, false).collect();
    while let Some((name, backup)) = left.pop() {
        if !seen.insert(name) {
            continue;
        }
        let Some(other) = (context.load_balancer)(name) else { continue };
        left.extend(included(other, backup));
        let mut theirs = own_candidates(other, context);
        override_members(&mut theirs, other, context);
        out.extend(theirs.into_iter().map(|c| Candidate { name: format!("{name}/{}", c.name), backup: c.backup || backup, ..c }));
    }
    override_members(&mut out, lb, context);
    out
}

/// What operators changed about the members of `lb`. One that is drained where it comes from stays so.
fn override_members(members: &mut [Candidate], lb: &LoadBalancer, context: Context<'_>) {
    for m in members {
        if let Some(o) = context.overrides.get(&(lb.metadata.name.clone(), m.name.clone())) {
            m.drained |= o.drained;
            m.weight = o.weight.unwrap_or(m.weight);
        }
    }
}

/// The load balancers that this one has the members of, and whether these are backups.
fn included(lb: &LoadBalancer, backup: bool) -> impl Iterator<Item = (&str, bool)> {
    lb.spec.member_groups.iter().map(move |g| (g.load_balancer.as_str(), g.backup || backup))
}

fn own_candidates(lb: &LoadBalancer, context: Context<'_>) -> Vec<Candidate> {
    let mut out = Vec::new();
    for m in &lb.spec.members {
        let name = m.name.clone().unwrap_or_else(|| m.address.to_string());
        let mac = m.mac.as_deref().and_then(parse_mac);
        let (zone, backup) = (m.zone.clone(), m.backup);
        out.push(Candidate { name, address: m.address, port: m.port, weight: m.weight, drained: false, mac, zone, backup });
    }
    if let Some(selector) = &lb.spec.member_selector {
        for e in context.surroundings.selected(selector) {
            let member = |a: &IpAddr| Candidate {
                name: e.name.to_owned(),
                address: *a,
                port: selector.port,
                weight: 1,
                drained: false,
                mac: None,
                zone: e.zone.map(str::to_owned),
                backup: false,
            };
            out.extend(e.addresses.iter().map(member));
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
