//! Faults of one resource.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

use super::super::source::Faults;
use super::super::{Endpoint, LoadBalancer, LoadBalancerSpec, Located, PortRange, Resource};
use super::{feedback, group, health, source};

/// Looks at one resource. One that is not `whole` lacks something that was faulty: nothing is said of what it lacks.
pub(in super::super) fn alone(located: &Located, whole: bool, faults: &mut Faults) {
    let mut report = |pointer: &str, message: String| faults.push(located.fault(pointer, message));
    match &located.resource {
        Resource::LoadBalancer(LoadBalancer { spec, .. }) => {
            vips(spec, &mut report);
            ports(spec, &mut report);
            members(spec, &mut report);
            if whole {
                served(spec, &mut report);
                health::health_check(spec, &mut report);
                health::passive_health(spec, &mut report);
                feedback::feedback(spec, &mut report);
            }
        }
        Resource::Endpoint(endpoint) => addresses(endpoint, &mut report),
        Resource::SecurityGroup(group) => group::group(group, whole, &mut report),
        Resource::Policy(policy) => group::policy(policy, whole, &mut report),
        Resource::TagSource(source) => source::source(source, whole, &mut report),
    }
}

/// Takes a JSON pointer and what is wrong there.
pub(super) type Report<'a> = &'a mut dyn FnMut(&str, String);

fn vips(spec: &LoadBalancerSpec, report: Report<'_>) {
    for (index, vip) in spec.vips.iter().enumerate() {
        if let Some(fault) = unusable(*vip) {
            report(&format!("/spec/vips/{index}"), format!("the VIP {vip} {fault}"));
        }
    }
    for (index, _) in repeated(&spec.vips) {
        report(&format!("/spec/vips/{index}"), format!("the VIP {} is listed twice: remove one", spec.vips[index]));
    }
}

fn ports(spec: &LoadBalancerSpec, report: Report<'_>) {
    for (index, _) in repeated(&spec.ports) {
        report(&format!("/spec/ports/{index}"), format!("the port {} is listed twice: remove one", spec.ports[index]));
    }
    for (index, range) in spec.port_ranges.iter().enumerate() {
        let PortRange { port, end_port } = *range;
        let pointer = format!("/spec/portRanges/{index}");
        if port >= end_port {
            report(&pointer, format!("the range from {port} to {end_port} is none: `endPort` must be above `port`"));
            continue;
        }
        if let Some(single) = spec.ports.iter().find(|p| (port..=end_port).contains(p)) {
            report(&pointer, format!("the port {single} is in `ports` and in this range: remove one"));
        }
        let before = spec.port_ranges[..index].iter().find(|r| r.port <= end_port && port <= r.end_port);
        if let Some(other) = before {
            report(&pointer, format!("the range from {} to {} has some of these ports: remove one", other.port, other.end_port));
        }
    }
}

/// Has a group several ports? No check can go to all of them.
pub(super) fn has_ranges(spec: &LoadBalancerSpec) -> bool {
    spec.any_port || !spec.port_ranges.is_empty()
}

fn members(spec: &LoadBalancerSpec, report: Report<'_>) {
    let names: Vec<String> =
        spec.members.iter().map(|member| member.name.clone().unwrap_or_else(|| member.address.to_string())).collect();
    let mut unnamed_twice = HashSet::new();
    for (index, first) in repeated(&names) {
        let pointer = format!("/spec/members/{index}");
        if spec.members[index].name.is_some() {
            let message = format!("member {} has the name `{}` already: choose another", first + 1, names[index]);
            report(&format!("{pointer}/name"), message);
        } else {
            unnamed_twice.insert(index);
            let message = format!("member {} is called {} too: give them names", first + 1, names[index]);
            report(&format!("{pointer}/address"), message);
        }
    }
    for (index, member) in spec.members.iter().enumerate() {
        let pointer = format!("/spec/members/{index}/address");
        if let Some(fault) = unusable(member.address) {
            report(&pointer, format!("the address {} {fault}", member.address));
        }
    }
    for (index, first) in same_place(spec).into_iter().filter(|(index, _)| !unnamed_twice.contains(index)) {
        let message = format!("member {} has the same address and port: remove one, or add up their weights", first + 1);
        report(&format!("/spec/members/{index}/address"), message);
    }
}

/// Members that serve where another does: which, and the other. One without a port serves on each port of the VIP.
fn same_place(spec: &LoadBalancerSpec) -> Vec<(usize, usize)> {
    let ports: HashSet<u16> = spec.ports.iter().copied().collect();
    let mut exact: HashMap<(IpAddr, Option<u16>), usize> = HashMap::new();
    let mut on_vip_port: HashMap<IpAddr, usize> = HashMap::new();
    let mut same = Vec::new();
    for (index, member) in spec.members.iter().enumerate() {
        let through_vip_port = match member.port {
            None => on_vip_port.get(&member.address).copied(),
            Some(port) if ports.contains(&port) => exact.get(&(member.address, None)).copied(),
            Some(_) => None,
        };
        if let Some(first) = exact.get(&(member.address, member.port)).copied().or(through_vip_port) {
            same.push((index, first));
            continue;
        }
        exact.insert((member.address, member.port), index);
        if member.port.is_some_and(|port| ports.contains(&port)) {
            on_vip_port.entry(member.address).or_insert(index);
        }
    }
    same
}

/// Who serves the VIPs.
fn served(spec: &LoadBalancerSpec, report: Report<'_>) {
    if spec.ports.is_empty() && !has_ranges(spec) {
        report("/spec", "`spec` needs `ports`, `portRanges` or `anyPort: true`: what do clients connect to?".to_owned());
    }
    match (spec.members.is_empty(), &spec.member_selector) {
        (true, None) if !spec.member_groups.is_empty() => return,
        (true, None) => report("/spec", "`spec` needs `members`, a `memberSelector` or `memberGroups`: who serves?".to_owned()),
        (false, Some(_)) => {
            report("/spec/memberSelector", "there are `members` as well: keep either these or `memberSelector`".to_owned());
        }
        (true, Some(_)) => return,
        (false, None) => {}
    }
    let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    for (index, vip) in spec.vips.iter().enumerate() {
        let only_these = !spec.members.is_empty() && spec.member_groups.is_empty();
        if only_these && !spec.members.iter().any(|member| member.address.is_ipv4() == vip.is_ipv4()) {
            let family = family(*vip);
            let message = format!("no member has an {family} address to serve the VIP {vip}: add one, or remove the VIP");
            report(&format!("/spec/vips/{index}"), message);
        }
    }
    for (index, member) in spec.members.iter().enumerate() {
        if !spec.vips.iter().any(|vip| vip.is_ipv4() == member.address.is_ipv4()) {
            let family = family(member.address);
            let message = format!("there is no {family} VIP that {} could serve: add one, or remove the member", member.address);
            report(&format!("/spec/members/{index}/address"), message);
        }
    }
}

fn addresses(endpoint: &Endpoint, report: Report<'_>) {
    let addresses = &endpoint.spec.addresses;
    for (index, address) in addresses.iter().enumerate() {
        if let Some(fault) = unusable(*address) {
            report(&format!("/spec/addresses/{index}"), format!("the address {address} {fault}"));
        }
    }
    for (index, _) in repeated(addresses) {
        report(&format!("/spec/addresses/{index}"), format!("the address {} is listed twice: remove one", addresses[index]));
    }
}

/// The items that were there before: which, and the first of them.
pub(super) fn repeated<T: Eq + Hash>(items: &[T]) -> Vec<(usize, usize)> {
    let mut seen = HashMap::new();
    let first = |(index, item)| match *seen.entry(item).or_insert(index) {
        first if first < index => Some((index, first)),
        _ => None,
    };
    items.iter().enumerate().filter_map(first).collect()
}

/// Why no one host can be reached at `address` from everywhere.
fn unusable(address: IpAddr) -> Option<String> {
    let fault = match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "means \"this host\"",
        IpAddr::V4(v4) if v4.is_broadcast() => "is the broadcast address",
        IpAddr::V6(v6) if v6.is_unspecified() => "means \"this host\"",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "is link-local: it means something else on every link",
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => return Some(format!("is an IPv4 address in IPv6 form: write {v4}")),
            None => "",
        },
        IpAddr::V4(_) => "",
    };
    let fault = match fault {
        "" if address.is_loopback() => "is a loopback address",
        "" if address.is_multicast() => "is a multicast address",
        "" => return None,
        fault => fault,
    };
    Some(format!("{fault}: use an address of one host"))
}
