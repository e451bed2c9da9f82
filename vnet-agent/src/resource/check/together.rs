//! Faults between resources.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

use super::super::format::parse_mac;
use super::super::similar::similar;
use super::super::source::Faults;
use super::super::{Endpoint, LoadBalancer, LoadBalancerSpec, Located, PortRange, Protocol, Resource};
use super::{reference, source};

/// Looks at `applied` beside each other and beside `others`, which are in force. Those of the same name are replaced.
pub(in super::super) fn together(applied: &[Located], others: &[&Resource], faults: &mut Faults) {
    let mut by_name: HashMap<(&str, &str), &Located> = HashMap::new();
    for located in applied {
        let (kind, name) = (located.resource.kind(), located.resource.name());
        match by_name.entry((kind, name)) {
            Entry::Vacant(entry) => drop(entry.insert(located)),
            Entry::Occupied(first) => {
                let message = format!("{kind} `{name}` is at {} already: remove one, or rename it", first.get().place());
                faults.push(located.fault("/metadata/name", message));
            }
        }
    }
    let all = parties(applied, others);
    let owners = vips(&all, faults);
    hosts(&all, &owners, faults);
    endpoints(&all, faults);
    tag_sources(&all, faults);
    cycles(&all, faults);
}

/// Looks at what resources name: that must be in `applied` or `others`.
pub(in super::super) fn named(applied: &[Located], others: &[&Resource], faults: &mut Faults) {
    references(&parties(applied, others), faults);
}

/// All there will be. What is in force comes first: the fault is then in the files, where it can be corrected.
fn parties<'a>(applied: &'a [Located], others: &[&'a Resource]) -> Vec<Party<'a>> {
    let replaced: HashSet<(&str, &str)> = applied.iter().map(|l| (l.resource.kind(), l.resource.name())).collect();
    let stay = others.iter().copied().filter(|other| !replaced.contains(&(other.kind(), other.name())));
    stay.map(Party::in_force).chain(applied.iter().map(Party::applied)).collect()
}

/// A resource, and where it was written if it is in the files.
#[derive(Clone, Copy)]
struct Party<'a> {
    resource: &'a Resource,
    located: Option<&'a Located>,
}

impl<'a> Party<'a> {
    fn applied(located: &'a Located) -> Self {
        Self { resource: &located.resource, located: Some(located) }
    }

    fn in_force(resource: &'a Resource) -> Self {
        Self { resource, located: None }
    }

    fn report(&self, faults: &mut Faults, pointer: &str, message: String) {
        if let Some(located) = self.located {
            faults.push(located.fault(pointer, message));
        }
    }

    fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.resource, other.resource)
    }
}

impl std::fmt::Display for Party<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = self.located.map_or_else(|| "in force".to_owned(), Located::place);
        write!(f, "{} `{}` ({place})", self.resource.kind(), self.resource.name())
    }
}

/// Who has each VIP, with the VIP's index.
type Owners<'a> = HashMap<IpAddr, (Party<'a>, usize)>;

/// A load balancer with a VIP, and the VIP's index.
type Use<'a> = (&'a LoadBalancer, Party<'a>, usize);

/// One VIP, protocol and port belongs to one load balancer.
fn vips<'a>(all: &[Party<'a>], faults: &mut Faults) -> Owners<'a> {
    let mut owners = Owners::new();
    let mut sharing: BTreeMap<(IpAddr, Protocol), Vec<Use<'a>>> = BTreeMap::new();
    for party in all {
        let Resource::LoadBalancer(load_balancer) = party.resource else { continue };
        for (index, vip) in load_balancer.spec.vips.iter().enumerate() {
            owners.entry(*vip).or_insert((*party, index));
            sharing.entry((*vip, load_balancer.spec.protocol)).or_default().push((load_balancer, *party, index));
        }
    }
    for ((vip, protocol), users) in sharing.into_iter().filter(|(_, users)| users.len() > 1) {
        let mut taken = Taken::default();
        for (load_balancer, party, index) in users {
            for (other, ports) in overlaps(&mut taken, &load_balancer.spec, party) {
                let (protocol, name) = (protocol_name(protocol), party.resource.name());
                let message = format!(
                    "VIP {vip} {protocol} port {ports} of LoadBalancer `{name}` belongs to {other}: use another VIP or port"
                );
                party.report(faults, &format!("/spec/vips/{index}"), message);
            }
        }
    }
    owners
}

/// Takes the ports of `spec` for `party`: gives those that others have taken, by who has them. A single port may be taken out
/// of somebody's range, and a range out of all ports.
fn overlaps<'a>(taken: &mut Taken<'a>, spec: &LoadBalancerSpec, party: Party<'a>) -> Vec<(Party<'a>, String)> {
    let mut overlaps: Vec<(Party<'a>, String)> = Vec::new();
    let mut add = |first: Party<'a>, ports: String| match overlaps.iter_mut().find(|(other, _)| other.is(&first)) {
        _ if first.is(&party) => {}
        Some((_, text)) => *text += &format!(", {ports}"),
        None => overlaps.push((first, ports)),
    };
    for port in &spec.ports {
        add(*taken.single.entry(*port).or_insert(party), port.to_string());
    }
    for range in &spec.port_ranges {
        let PortRange { port, end_port } = *range;
        for (_, first) in taken.ranges.iter().filter(|(other, _)| other.port <= end_port && port <= other.end_port) {
            add(*first, format!("{port}-{end_port}"));
        }
        taken.ranges.push((*range, party));
    }
    if spec.any_port {
        add(*taken.any.get_or_insert(party), "any".to_owned());
    }
    overlaps
}

/// Who has which ports of a VIP.
#[derive(Default)]
struct Taken<'a> {
    single: HashMap<u16, Party<'a>>,
    ranges: Vec<(PortRange, Party<'a>)>,
    any: Option<Party<'a>>,
}

/// Nothing contains itself.
fn cycles(all: &[Party<'_>], faults: &mut Faults) {
    let groups = |party: &Party<'_>| match party.resource {
        Resource::LoadBalancer(it) => it.spec.member_groups.iter().map(|g| g.load_balancer.clone()).collect(),
        _ => Vec::new(),
    };
    let contained: HashMap<String, Vec<String>> =
        all.iter().map(|p| (p.resource.name().to_owned(), groups(p))).filter(|(_, groups)| !groups.is_empty()).collect();
    for party in all {
        for (index, first) in groups(party).iter().enumerate() {
            let Some(way) = way_back(party.resource.name(), first, &contained) else { continue };
            let message = format!("LoadBalancer `{}` would contain itself: {}", party.resource.name(), way.join(" contains "));
            party.report(faults, &format!("/spec/memberGroups/{index}/loadBalancer"), message);
        }
    }
}

/// How one gets from `start` over `first` back to `start`, by who contains whom.
fn way_back(start: &str, first: &str, contained: &HashMap<String, Vec<String>>) -> Option<Vec<String>> {
    let mut seen = HashSet::from([first.to_owned()]);
    let mut ways = vec![vec![start.to_owned(), first.to_owned()]];
    while let Some(way) = ways.pop() {
        let last = way.last()?;
        if last == start {
            return Some(way);
        }
        for next in contained.get(last).into_iter().flatten().filter(|next| *next == start || seen.insert((*next).clone())) {
            ways.push(way.iter().cloned().chain([next.clone()]).collect());
        }
    }
    None
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// A VIP is no host's address: what a host sends to it would be balanced, not delivered.
fn hosts(all: &[Party<'_>], owners: &Owners<'_>, faults: &mut Faults) {
    for party in all {
        let (addresses, list): (Vec<IpAddr>, &str) = match party.resource {
            Resource::LoadBalancer(it) => (it.spec.members.iter().map(|member| member.address).collect(), "members"),
            Resource::Endpoint(it) => (it.spec.addresses.clone(), "addresses"),
            Resource::SecurityGroup(_) | Resource::Policy(_) | Resource::TagSource(_) => continue,
        };
        for (index, address) in addresses.into_iter().enumerate() {
            let Some((owner, vip)) = owners.get(&address) else { continue };
            if party.located.is_some() {
                let field = if list == "members" { "/address" } else { "" };
                let message = format!("{address} is a VIP of {owner}, and cannot be the address of a host");
                party.report(faults, &format!("/spec/{list}/{index}{field}"), message);
            } else {
                let message = format!("the VIP {address} is a host's address in {party}: use another");
                owner.report(faults, &format!("/spec/vips/{vip}"), message);
            }
        }
    }
}

/// A device, a MAC and an address belong to one endpoint.
fn endpoints(all: &[Party<'_>], faults: &mut Faults) {
    let mut devices = Devices::default();
    let mut macs = Claims::default();
    let mut addresses = Claims::default();
    for party in all {
        let Resource::Endpoint(Endpoint { spec, .. }) = party.resource else { continue };
        devices.claim(&spec.device, spec.host.as_deref(), *party, faults);
        if let Some((text, mac)) = spec.mac.as_deref().and_then(|text| Some((text, parse_mac(text)?))) {
            macs.claim(mac, *party, "/spec/mac", &format!("MAC {text}"), faults);
        }
        for (index, address) in spec.addresses.iter().enumerate() {
            addresses.claim(*address, *party, &format!("/spec/addresses/{index}"), &format!("address {address}"), faults);
        }
    }
}

/// Who has which device. Hosts name theirs alike: a device is one of each host, unless no host is named.
#[derive(Default)]
struct Devices<'a> {
    first: HashMap<&'a str, Party<'a>>,
    anywhere: HashMap<&'a str, Party<'a>>,
    of_hosts: HashMap<(&'a str, &'a str), Party<'a>>,
}

impl<'a> Devices<'a> {
    fn claim(&mut self, device: &'a str, host: Option<&'a str>, party: Party<'a>, faults: &mut Faults) {
        let first = *self.first.entry(device).or_insert(party);
        let there = match host {
            Some(host) => {
                let there = *self.of_hosts.entry((device, host)).or_insert(party);
                if there.is(&party) { self.anywhere.get(device).copied() } else { Some(there) }
            }
            None => {
                self.anywhere.entry(device).or_insert(party);
                Some(first)
            }
        };
        if let Some(there) = there.filter(|there| !there.is(&party)) {
            party.report(faults, "/spec/device", format!("{there} has device `{device}` already: two cannot share it"));
        }
    }
}

/// What a resource names is there, and of the right sort.
fn references(all: &[Party<'_>], faults: &mut Faults) {
    let by_key: HashMap<(&str, &str), Party<'_>> = all.iter().map(|p| ((p.resource.kind(), p.resource.name()), *p)).collect();
    for party in all {
        for reference in reference::of(party.resource) {
            let found = by_key.get(&(reference.kind, reference.name));
            let Some(wrong) = reference.wrong(found.map(|party| party.resource)) else { continue };
            match found {
                // It was made one that is held in, or one that is not, under whoever names it.
                Some(named) if party.located.is_none() => {
                    let message = format!("{party} {} it{}: {wrong}", reference.what, reference.by);
                    named.report(faults, "/spec/quarantine", message);
                }
                _ => {
                    let names = by_key.keys().filter(|(kind, _)| *kind == reference.kind).map(|(_, name)| *name);
                    let hint = similar(reference.name, &names.collect::<Vec<_>>()).filter(|_| found.is_none());
                    let hint = hint.map(|name| format!(": did you mean `{name}`?")).unwrap_or_default();
                    party.report(faults, &reference.pointer, format!("{wrong}{hint}"));
                }
            }
        }
    }
}

/// Each tag source is reached in a place of its own.
fn tag_sources(all: &[Party<'_>], faults: &mut Faults) {
    let mut places = Claims::default();
    for party in all {
        let Resource::TagSource(source) = party.resource else { continue };
        for (what, pointer) in source::claims(&source.spec) {
            places.claim(what.clone(), *party, pointer, &what, faults);
        }
    }
}

/// Who was first to claim what.
struct Claims<'a, K>(HashMap<K, Party<'a>>);

impl<K> Default for Claims<'_, K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<'a, K: Eq + Hash> Claims<'a, K> {
    fn claim(&mut self, key: K, party: Party<'a>, pointer: &str, what: &str, faults: &mut Faults) {
        let first = *self.0.entry(key).or_insert(party);
        if !first.is(&party) {
            party.report(faults, pointer, format!("{first} has {what} already: two cannot share it"));
        }
    }
}
