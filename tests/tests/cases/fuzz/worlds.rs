//! Random tables, and what an agent may change in them.

use std::net::IpAddr;

use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::lb::state;
use vnet_common::policy::{action, identity, rule_flags};

use super::super::rules::{Rule, rule};
use super::super::world::{CLIENT, FAMILIES, FAR, Family, NEAR, World};
use super::random::Random;

/// Rows of sets that endpoints have.
const SETS: u32 = 4;
/// The UDP port that is a tunnel's, in worlds that have one.
pub const TUNNEL: u16 = 81;

pub fn vip(f: Family, n: u8) -> IpAddr {
    f.ip(9, n + 1)
}

/// A peer that is no member.
pub fn peer(f: Family, n: u8) -> IpAddr {
    f.ip(5, n)
}

/// The client, two endpoints that are members and clients too, two VIPs with two ports in each family; in two of three worlds some of
/// them are policed.
pub fn random_world(r: &mut Random) -> World {
    let mut w = World::new();
    let segment = r.of(&[0, 0, 7]);
    for (ifindex, slot) in [(NEAR, 2), (FAR, 3)] {
        w.endpoint(ifindex, slot, [2, 0, 0, 0, 1, slot as u8]);
        let row = w.at(ifindex);
        row.flags = r.of(&[0, endpoint_flags::REDIRECT_BACK, endpoint_flags::REDIRECT_BACK | endpoint_flags::PEER]);
        row.mtu = r.of(&[1500, 1500, 576, 100]);
    }
    w.at(CLIENT).flags = r.of(&[0, endpoint_flags::PEER]);
    for ifindex in [CLIENT, NEAR, FAR] {
        w.at(ifindex).segment = segment;
    }
    for f in FAMILIES {
        w.local(f.member(0), NEAR);
        w.local(f.member(1), FAR);
        for (n, protocol, port) in [(0, 6, 80), (0, 17, 80), (1, 6, 80), (1, 17, 53)] {
            let g = w.group(vip(f, n), protocol, port);
            w.set_flags(g, random_flags(r));
            if r.one_in(4) {
                // The client is its own member.
                let index = w.member(g, f.client(), r.of(&[80, 8080]));
                w.edit(index).ifindex = r.of(&[0, CLIENT]);
            }
            for m in 0..=r.below(3) as u8 {
                let index = w.member(g, f.member(m), r.of(&[80, 8080]));
                let row = w.edit(index);
                row.ifindex = [NEAR, FAR, 0][usize::from(m)];
                row.segment = segment;
                row.mac = r.of(&[[0; 6], [2, 0, 0, 0, 1, 2 + m]]);
                row.elsewhere = r.of(&[0, 0, 5]);
                w.set_state(index, r.of(&[state::ACTIVE, state::ACTIVE, state::ACTIVE, state::DRAINING, state::NONE]));
            }
        }
    }
    w.maps.flow_quota = r.of(&[1 << 16, 3]);
    if !r.one_in(3) {
        random_policy(r, &mut w);
    }
    w
}

/// How a group picks, and what it does besides.
fn random_flags(r: &mut Random) -> u32 {
    use vnet_common::lb::flags::{LEAST_CONNECTIONS, MAGLEV, ROUND_ROBIN, SOURCE_HASH, affinity};
    let algorithm = r.of(&[MAGLEV, MAGLEV, ROUND_ROBIN, LEAST_CONNECTIONS, SOURCE_HASH]);
    r.below(8) as u32 | algorithm | r.of(&[0, 0, 0, affinity(600)])
}

fn random_policy(r: &mut Random, w: &mut World) {
    w.maps.events.set(r.of(&[0, 1, 0xf, 0xf]));
    if !r.one_in(3) {
        w.maps.tunnel_ports = vec![TUNNEL.to_be_bytes()];
    }
    for row in 1..=SETS {
        random_set(r, w, row);
    }
    for f in FAMILIES {
        for addr in [f.client(), f.member(0), f.member(1), vip(f, 0), vip(f, 1), peer(f, 1), peer(f, 2), f.outside()] {
            random_identity(r, w, addr);
        }
    }
    for ifindex in [CLIENT, NEAR, FAR] {
        police(r, w, ifindex);
    }
}

fn random_identity(r: &mut Random, w: &mut World, addr: IpAddr) {
    let number = r.of(&[identity::HOST, identity::WORLD, 100, 101, 102]);
    match r.below(4) {
        0 => {}
        1 => {
            let all = if addr.is_ipv4() { 32 } else { 128 };
            w.network(addr, all - r.below(26) as u32, number);
        }
        _ => w.identity(addr, number),
    }
}

/// Gives an endpoint random policing.
fn police(r: &mut Random, w: &mut World, ifindex: u32) {
    use endpoint_flags::{CHECK_IP, CHECK_MAC, DHCP, NEIGHBORS, POLICED, QUARANTINED, ROUTER, TUNNELS};
    let mut on = 0;
    for (flag, one_in) in [(CHECK_MAC, 2), (CHECK_IP, 3), (QUARANTINED, 4), (ROUTER, 4), (TUNNELS, 4)] {
        on |= if r.one_in(one_in) { flag } else { 0 };
    }
    on |= if r.one_in(4) { 0 } else { NEIGHBORS | DHCP };
    on |= if r.one_in(4) { 0 } else { POLICED };
    let set = 1 + r.below(u64::from(SETS)) as u32;
    let row = w.at(ifindex);
    row.flags = row.flags & (endpoint_flags::REDIRECT_BACK | endpoint_flags::PEER) | on;
    row.set = set;
}

fn random_set(r: &mut Random, w: &mut World, row: u32) {
    let (egress, ingress) = (random_rules(r, w, row << 8), random_rules(r, w, row << 8 | 0x80));
    w.set(row, &egress, &ingress);
}

/// Random rules, numbered from `first` on; the last one matches everything.
fn random_rules(r: &mut Random, w: &World, first: u32) -> Vec<Rule> {
    let count = r.of(&[0, 1, 3, 3, 6, 6, 70]);
    let mut rules: Vec<Rule> = (0..count).map(|n| random_rule(r, w, first + n + 1, n as u16, count as u16)).collect();
    let quarantine = r.of(&[0, 0, rule_flags::QUARANTINE]);
    let default = r.of(&[action::ALLOW, action::ALLOW, action::DENY, action::REJECT]);
    rules.push(rule(first + count + 1, default).flags(rule_flags::DEFAULT | quarantine));
    rules
}

fn random_rule(r: &mut Random, w: &World, id: u32, place: u16, last: u16) -> Rule {
    use action::{ALLOW, DENY, PASS, REDIRECT, REJECT};
    let mut new = rule(id, r.of(&[ALLOW, ALLOW, ALLOW, ALLOW, DENY, REJECT, PASS, REDIRECT]));
    for _ in 0..r.below(3) {
        new = new.peer(r.of(&[identity::UNKNOWN, identity::HOST, identity::WORLD, 100, 101, 102]));
    }
    for _ in 0..r.below(3) {
        let (protocol, port) = (r.of(&[6, 6, 17, 17, 1, 58]), r.of(&[80, 80, 53, 8080, 40000, 8 << 8, 128 << 8]));
        new = new.ports(protocol, port - r.of(&[0, 0, 30]), port + r.of(&[0, 0, 7]));
    }
    new = new.flags(r.of(&[0, 0, 0, rule_flags::STAGED, rule_flags::LOG, rule_flags::QUARANTINE]));
    if new.row.action == PASS {
        new = new.next(place + 1 + r.below(u64::from(last - place)) as u16);
    }
    let group = r.below(w.maps.groups.len() as u64) as u32;
    if new.row.action == REDIRECT {
        // Now and then of a group that is no more.
        (new.row.group, new.row.serial) = (group, 500 + group + u32::from(r.one_in(8)));
    }
    new
}

/// What the agent may change between packets.
pub fn random_change(r: &mut Random, w: &mut World) {
    if w.maps.policy.sets.is_empty() || r.one_in(2) {
        random_balancing(r, w);
        if r.one_in(2) {
            w.bump();
        }
        return;
    }
    let ifindex = r.of(&[CLIENT, CLIENT, NEAR, FAR]);
    match r.below(4) {
        0 => {
            let row = 1 + r.below(u64::from(SETS)) as u32;
            random_set(r, w, row);
        }
        1 => {
            let f = r.of(&FAMILIES);
            let addr = r.of(&[f.member(0), vip(f, 0), peer(f, 1), f.outside()]);
            random_identity(r, w, addr);
        }
        2 => w.at(ifindex).set = 1 + r.below(u64::from(SETS)) as u32,
        _ => police(r, w, ifindex),
    }
    w.bump();
}

fn random_balancing(r: &mut Random, w: &mut World) {
    let member = r.below(w.maps.members.len() as u64) as u32;
    match r.below(4) {
        0 => w.set_state(member, r.of(&[state::ACTIVE, state::DRAINING, state::NONE])),
        1 => w.edit(member).serial += 100,
        2 => w.edit(member).ifindex = r.of(&[0, NEAR, FAR]),
        _ => {
            let group = r.below(w.maps.groups.len() as u64) as u32;
            w.set_flags(group, random_flags(r));
        }
    }
}
