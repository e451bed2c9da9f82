//! From resources to what the maps should say: one group for each load balancer, address family and port.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vnet_common::lb::{flags, state};

use super::health::Check;
use crate::resource::{Delivery, HealthCheck, LoadBalancer, OnMemberRemoved, OnNoMember, Protocol, parse_mac};
use crate::store::MemberOverride;

/// A MAC; zero when not known.
pub type Mac = [u8; 6];

/// Everything that the groups follow from.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// The load balancers in force.
    pub load_balancers: Vec<LoadBalancer>,
    /// What operators changed, by load balancer and member name.
    pub overrides: HashMap<(String, String), MemberOverride>,
    /// The endpoints on this host.
    pub endpoints: Vec<Local>,
    /// Who else is on the bridges of this host.
    pub neighbours: HashMap<IpAddr, Neighbour>,
    /// The checks that fail.
    pub down: HashSet<Check>,
}

/// An endpoint on this host, as a member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses, configured or learned.
    pub addresses: Vec<IpAddr>,
    /// The host-side device; 0 while there is none.
    pub ifindex: u32,
    /// The bridge that the device is a port of, or 0.
    pub segment: u32,
    /// Its MAC.
    pub mac: Mac,
}

/// What the neighbour table of a bridge says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The bridge.
    pub segment: u32,
    /// The MAC.
    pub mac: Mac,
}

/// A load balancer's members of one family, for one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The load balancer's name.
    pub lb: String,
    /// The VIPs that lead here: of one family, sorted.
    pub vips: Vec<IpAddr>,
    /// The port that clients connect to.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
    /// See [`flags`].
    pub flags: u32,
    /// By address and port, no two the same.
    pub members: Vec<Member>,
}

/// One member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it serves.
    pub address: IpAddr,
    /// The port it serves on.
    pub port: u16,
    /// Its share of new flows; drained or down members have none, but keep their weight.
    pub weight: u16,
    /// See [`state`].
    pub state: u8,
    /// Where it is.
    pub place: Place,
    /// How it is checked.
    pub check: Option<Check>,
}

/// Where a member is; zeros where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its MAC.
    pub mac: Mac,
    /// Its host-side device, if it is on this host.
    pub ifindex: u32,
    /// The bridge on which it can be reached by its MAC.
    pub segment: u32,
}

/// What should be, and what users should know about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The groups, by load balancer, family and port.
    pub groups: Vec<Group>,
    /// Things worth knowing that do not stop anything.
    pub warnings: Vec<String>,
}

impl Desired {
    /// The checks that the groups ask for.
    pub fn checks(&self) -> HashSet<Check> {
        self.groups.iter().flat_map(|g| &g.members).filter_map(|m| m.check).collect()
    }

    /// The devices whose endpoints are members that get packets by redirect, and answer the same way.
    pub fn redirect_members(&self) -> HashSet<u32> {
        let redirect = self.groups.iter().filter(|g| g.flags & flags::REDIRECT != 0);
        redirect.flat_map(|g| &g.members).map(|m| m.place.ifindex).filter(|i| *i != 0).collect()
    }
}

/// What the maps should say.
pub fn compile(input: &Input) -> Desired {
    let places = Places::new(input);
    let mut out = Desired::default();
    let mut sorted: Vec<&LoadBalancer> = input.load_balancers.iter().collect();
    sorted.sort_by_key(|lb| &lb.metadata.name);
    for lb in sorted {
        let candidates = candidates(lb, input);
        for v4 in [true, false] {
            let vips: BTreeSet<IpAddr> = lb.spec.vips.iter().copied().filter(|v| v.is_ipv4() == v4).collect();
            if vips.is_empty() {
                continue;
            }
            let members: Vec<&Candidate> = candidates.iter().filter(|m| m.address.is_ipv4() == v4).collect();
            if members.is_empty() {
                let family = if v4 { "IPv4" } else { "IPv6" };
                out.warnings
                    .push(format!("load balancer {}: no member has an {family} address, but a VIP does", lb.metadata.name));
            }
            let vips: Vec<IpAddr> = vips.into_iter().collect();
            for port in lb.spec.ports.iter().copied().collect::<BTreeSet<u16>>() {
                out.groups.push(group(lb, vips.clone(), port, &members, input, &places));
            }
        }
    }
    out
}

fn group(lb: &LoadBalancer, vips: Vec<IpAddr>, port: u16, candidates: &[&Candidate], input: &Input, places: &Places) -> Group {
    let mut members = BTreeMap::new();
    for c in candidates {
        let port = c.port.unwrap_or(port);
        let check = lb.spec.health_check.as_ref().map(|h| check(h, c.address, port));
        let state = match check {
            _ if c.drained || c.weight == 0 => state::DRAINING,
            Some(check) if input.down.contains(&check) => state::DOWN,
            _ => state::ACTIVE,
        };
        let place = places.find(c);
        let member = Member { name: c.name.clone(), address: c.address, port, weight: c.weight, state, place, check };
        members.entry((c.address, port)).or_insert(member);
    }
    let members = members.into_values().collect();
    Group { lb: lb.metadata.name.clone(), vips, port, protocol: lb.spec.protocol, flags: group_flags(lb), members }
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
    bits
}

fn check(h: &HealthCheck, address: IpAddr, port: u16) -> Check {
    Check {
        target: SocketAddr::new(address, h.port.unwrap_or(port)),
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
}

fn candidates(lb: &LoadBalancer, input: &Input) -> Vec<Candidate> {
    let mut out = Vec::new();
    for m in &lb.spec.members {
        let name = m.name.clone().unwrap_or_else(|| m.address.to_string());
        let mac = m.mac.as_deref().and_then(parse_mac);
        out.push(Candidate { name, address: m.address, port: m.port, weight: m.weight, drained: false, mac });
    }
    if let Some(selector) = &lb.spec.member_selector {
        let matches = |e: &&Local| selector.match_labels.iter().all(|(k, v)| e.labels.get(k) == Some(v));
        for e in input.endpoints.iter().filter(matches) {
            let member = |a: &IpAddr| Candidate {
                name: e.name.clone(),
                address: *a,
                port: selector.port,
                weight: 1,
                drained: false,
                mac: None,
            };
            out.extend(e.addresses.iter().map(member));
        }
    }
    for m in &mut out {
        if let Some(o) = input.overrides.get(&(lb.metadata.name.clone(), m.name.clone())) {
            m.drained = o.drained;
            m.weight = o.weight.unwrap_or(m.weight);
        }
    }
    out
}

/// Finds where members are.
struct Places<'a> {
    local: HashMap<IpAddr, &'a Local>,
    neighbours: &'a HashMap<IpAddr, Neighbour>,
    /// The one bridge that this host has endpoints on; 0 if there are none or several.
    only_segment: u32,
}

impl<'a> Places<'a> {
    fn new(input: &'a Input) -> Self {
        let local = input.endpoints.iter().flat_map(|e| e.addresses.iter().map(move |a| (*a, e))).collect();
        let segments: BTreeSet<u32> = input.endpoints.iter().map(|e| e.segment).filter(|s| *s != 0).collect();
        let only_segment = if segments.len() == 1 { segments.first().copied().unwrap_or(0) } else { 0 };
        Self { local, neighbours: &input.neighbours, only_segment }
    }

    fn find(&self, c: &Candidate) -> Place {
        let explicit = c.mac.unwrap_or_default();
        let or_explicit = |mac: Mac| if c.mac.is_some() { explicit } else { mac };
        if let Some(e) = self.local.get(&c.address).filter(|e| e.ifindex != 0) {
            return Place { mac: or_explicit(e.mac), ifindex: e.ifindex, segment: e.segment };
        }
        if let Some(n) = self.neighbours.get(&c.address) {
            return Place { mac: or_explicit(n.mac), ifindex: 0, segment: n.segment };
        }
        // Not seen here so far: a MAC in the resource says that it is on the clients' segment.
        let segment = if c.mac.is_some() { self.only_segment } else { 0 };
        Place { mac: explicit, ifindex: 0, segment }
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
