//! Which rule decides: the first of many that matches, by peer, protocol and port, over tiers, and past those that are only staged.

use vnet_common::event::kind;
use vnet_common::policy::{AddressKey, MAX_PORT_ROWS, MAX_RULES, action, rule_flags};
use vnet_common::verdict::Reason;

use super::packet::{L4, Packet, SYN, TCP, UDP};
use super::policy::{FRIEND, NETWORK, each, world};
use super::row::{Row, row, run};
use super::rules::{Rule, SET, allow, decide, default, deny, port_key, rule};
use super::world::{CLIENT, FAMILIES, Family, World};

/// One UDP question each to these peers and ports; what the rules say is known from [`decide`].
fn asked(name: String, w: World, egress: &[Rule], peers: &[(u8, u32)], f: Family, ports: impl Iterator<Item = u16>) -> Row {
    let mut r = row(name, w);
    let mut flows = 0;
    for port in ports {
        for &(host, identity) in peers {
            let (decides, staged) = decide(egress, identity, port_key(UDP, port));
            r = r.egress(CLIENT, &Packet::udp(f.client(), 4000, f.ip(5, host), port)).decided(decides.id);
            if staged != 0 {
                r = r.staged(staged);
            }
            if decides.action == action::ALLOW {
                flows += 1;
                r = r.passes(Reason::Allowed);
            } else {
                r = r.dropped(Reason::Denied);
            }
        }
    }
    r.holds(flows, 0).quota(1, flows as u32)
}

/// As many rules, that differ in peer and port; every second allows, every seventh is staged.
fn many(rules: u32) -> Vec<Rule> {
    let one = |n: u32| {
        let r = if n.is_multiple_of(2) { allow(n + 1) } else { deny(n + 1) };
        let r = r.peer(FRIEND + n % 8).port(UDP, 1000 + (n / 8) as u16);
        if n % 7 == 3 { r.flags(rule_flags::STAGED) } else { r }
    };
    (0..rules - 1).map(one).chain([default(rules, action::DENY)]).collect()
}

#[test]
fn the_first_of_many_rules() {
    let mut rows = Vec::new();
    for rules in [1, 2, 63, 64, 65, 66, 128, 129, 192, 1000, 4095, MAX_RULES] {
        let egress = many(rules);
        // Both families have the same rules: the large ones once.
        for f in FAMILIES.into_iter().take(if rules > 200 { 1 } else { 2 }) {
            let mut w = World::new();
            w.police(CLIENT, SET);
            w.set(SET, &egress, &[default(rules + 1, action::DENY)]);
            let peers: Vec<_> = (0..8).map(|n| (1 + n as u8, FRIEND + n)).collect();
            peers.iter().for_each(|&(host, identity)| w.identity(f.ip(5, host), identity));
            let last = 1000 + (rules / 8) as u16;
            let ports = (999..=last + 1).filter(|p| *p < 1010 || *p % 61 == 0 || *p + 3 > last);
            rows.push(asked(format!("{f:?}: {rules} rules"), w, &egress, &peers, f, ports));
        }
    }
    run(rows);
}

/// The last word of bits, and those in front of it are empty for the peer: found all the same.
#[test]
fn the_last_of_many_rules_alone() {
    let mut egress: Vec<Rule> = (1..MAX_RULES).map(|n| deny(n).peer(NETWORK)).collect();
    egress.push(default(MAX_RULES, action::ALLOW));
    run(each(|f| {
        let mut w = World::new();
        w.police(CLIENT, SET);
        w.set(SET, &egress, &egress);
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        let r =
            row(format!("{f:?}: only the default matches"), w).egress(CLIENT, &ask).passes(Reason::Allowed).decided(MAX_RULES);
        let other = ask.back().sport(54);
        r.ingress(CLIENT, &other).passes(Reason::Allowed).decided(MAX_RULES).holds(2, 0).quota(1, 2)
    }));
}

#[test]
fn ports_in_many_rows() {
    let mut rows = Vec::new();
    // Single ports with gaps between them make two rows each.
    for ports in [1, 2, 3, 31, 32, 33, 500, (MAX_PORT_ROWS / 2 - 2) as u16] {
        let of = |n: u16| 100 + 4 * n;
        let egress: Vec<Rule> = (0..63u16)
            .map(|rule| {
                let rule_ports = (0..ports).filter(|n| n % 63 == rule).map(of);
                let r = if rule % 2 == 0 { allow(u32::from(rule) + 1) } else { deny(u32::from(rule) + 1) };
                // A rule without ports would match all.
                rule_ports.fold(r.port(TCP, 1), |r, port| r.port(UDP, port))
            })
            .chain([default(64, action::DENY)])
            .collect();
        let f = FAMILIES[usize::from(ports % 2)];
        let w = world(f, &egress, &[default(65, action::DENY)]);
        assert!(w.maps.policy.sets[&SET].sides[0].port_rows <= MAX_PORT_ROWS);
        let (first, last) = (of(0), of(ports - 1));
        let near = [first, first + 4, of(ports / 2), of(ports / 3), last - 4, last];
        let mut edges: Vec<u16> = near.into_iter().flat_map(|p| [p - 1, p, p + 1]).chain([0, 65535]).collect();
        edges.sort_unstable();
        edges.dedup();
        rows.push(asked(format!("{f:?}: {ports} ports"), w, &egress, &[(1, FRIEND)], f, edges.into_iter()));
    }
    run(rows);
}

/// Ranges that overlap, touch and nest; protocols next to each other.
#[test]
fn ranges_of_ports() {
    let egress = [
        deny(1).ports(UDP, 100, 200),
        allow(2).ports(UDP, 50, 149),
        allow(3).ports(UDP, 150, 250).ports(TCP, 0, 65535),
        deny(4).ports(UDP, 251, 251),
        allow(5).ports(UDP, 65535, 65535).ports(UDP, 0, 0),
        allow(6).ports(18, 0, 65535),
        default(7, action::DENY),
    ];
    run(each(|f| {
        let w = world(f, &egress, &[default(8, action::DENY)]);
        let ports = [0, 1, 49, 50, 99, 100, 149, 150, 200, 201, 250, 251, 252, 65534, 65535];
        asked(format!("{f:?}: ranges"), w, &egress, &[(1, FRIEND)], f, ports.into_iter())
    }));
    run(each(|f| {
        let w = world(f, &egress, &[default(8, action::DENY)]);
        let of = |protocol| Packet::new(f.client(), f.ip(5, 1), L4::Other(protocol)).with(&[7; 20]);
        let tcp = Packet::tcp(f.client(), 4000, f.ip(5, 1), 65535, SYN);
        row(format!("{f:?}: the protocols beside UDP"), w)
            .egress(CLIENT, &of(18))
            .passes(Reason::Allowed)
            .decided(6)
            .egress(CLIENT, &of(19))
            .dropped(Reason::Denied)
            .decided(7)
            .egress(CLIENT, &of(18))
            .passes(Reason::Established)
            .ingress(CLIENT, &of(18).back())
            .passes(Reason::Established)
            .egress(CLIENT, &tcp)
            .passes(Reason::Allowed)
            .decided(3)
            .quota(1, 1)
            .holds(1, 1)
    }));
}

#[test]
fn identities_by_address_and_network() {
    const WIDE: u32 = 201;
    const NARROW: u32 = 202;
    const ONE: u32 = 203;
    const EXACT: u32 = 204;
    run(each(|f| {
        let [wide, narrow, one] = if f == Family::V4 { [8, 24, 32] } else { [16, 112, 128] };
        let rules: Vec<Rule> = [WIDE, NARROW, ONE, EXACT].iter().map(|id| allow(*id - 200).peer(*id)).collect();
        let rules = [rules, vec![allow(5).peer(0), default(6, action::DENY)]].concat();
        let mut w = World::new();
        w.police(CLIENT, SET);
        w.set(SET, &rules, &rules);
        w.network(f.ip(0, 0), wide, WIDE);
        w.network(f.ip(5, 0), narrow, NARROW);
        w.network(f.ip(5, 1), one, ONE);
        w.network(f.ip(5, 2), one, ONE);
        w.identity(f.ip(5, 2), EXACT);
        // Another network's, and the other family's with the same first bytes.
        let outside = if f == Family::V4 { [11, 0, 0, 1].into() } else { [0xfc00, 0, 0, 0, 0, 0, 0, 1].into() };
        let elsewhere = |w: &mut World, addr, identity| {
            let key = AddressKey { network: 1, ..World::address_key(addr) };
            w.maps.policy.ipcache.insert(key, identity);
        };
        elsewhere(&mut w, outside, WIDE);
        let mut r = row(format!("{f:?}: longest prefix, exact address, unknown"), w);
        for (addr, rule) in [(f.ip(77, 7), 1), (f.ip(5, 9), 2), (f.ip(5, 1), 3), (f.ip(5, 2), 4), (outside, 5)] {
            let ask = Packet::udp(f.client(), 4000, addr, 53);
            r = r.egress(CLIENT, &ask).passes(Reason::Allowed).decided(rule);
            r = r.ingress(CLIENT, &Packet::udp(addr, 4000, f.client(), 53)).passes(Reason::Allowed).decided(rule);
        }
        r.holds(10, 0).quota(1, 10)
    }));
}

/// Through every tier to the group's default, and from a tier in the middle.
#[test]
fn passes_through_tiers() {
    let pass = |id: u32, next: u16| rule(id, action::PASS).next(next);
    let egress = [
        pass(1, 2),                    // emergency
        deny(2),                       // not reached
        pass(3, 5).ports(UDP, 1, 100), // security
        deny(4).ports(UDP, 1, 100),    // not reached
        deny(5).port(UDP, 200),
        pass(6, 7),               // ops
        deny(7),                  // not reached
        pass(8, 8).peer(NETWORK), // app
        pass(9, 10).peer(FRIEND).port(UDP, 60).flags(rule_flags::STAGED),
        pass(10, 11).peer(FRIEND), // baseline
        deny(11),
        default(12, action::ALLOW),
    ];
    run(each(|f| {
        let w = world(f, &egress, &[default(13, action::DENY)]);
        asked(format!("{f:?}: tiers"), w, &egress, &[(1, FRIEND), (2, NETWORK)], f, [50, 60, 200, 300].into_iter())
    }));
    // A pass to nowhere is a contradiction, which no compiler makes: nothing goes.
    run(each(|f| {
        let w = world(f, &[pass(1, 0), default(2, action::ALLOW)], &[pass(3, 9), default(4, action::ALLOW)]);
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        row(format!("{f:?}: in a ring, or past the end"), w)
            .egress(CLIENT, &ask)
            .dropped(Reason::BadRow)
            .decided(0)
            .ingress(CLIENT, &ask.back())
            .dropped(Reason::BadRow)
            .decided(0)
    }));
}

#[test]
fn staged_rules_count_only() {
    let staged = |r: Rule| r.flags(rule_flags::STAGED);
    let pass = |id: u32, next: u16| rule(id, action::PASS).next(next);
    let egress = [
        staged(deny(1).port(UDP, 1)),
        staged(allow(2).port(UDP, 2)), // as the rule that decides
        staged(pass(3, 5).port(UDP, 3)),
        pass(4, 6).port(UDP, 4),
        deny(5).port(UDP, 3),
        deny(6).port(UDP, 4),
        staged(deny(7).port(UDP, 4)), // after a pass
        allow(8).ports(UDP, 1, 5),
        staged(deny(9).port(UDP, 5)), // too late
        default(10, action::DENY),
    ];
    run(each(|f| {
        let w = world(f, &egress, &[default(11, action::DENY)]);
        w.maps.events.set(kind::STAGED);
        let mut r = asked(format!("{f:?}: staged"), w, &egress, &[(1, FRIEND)], f, 1..=6);
        // The next packets of the flow ask nobody.
        r = r.egress(CLIENT, &Packet::udp(f.client(), 4000, f.ip(5, 1), 1)).passes(Reason::Established);
        r
    }));
    run(each(|f| {
        let w = world(f, &[staged(deny(1)), default(2, action::ALLOW)], &[staged(deny(3)), default(4, action::ALLOW)]);
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        let answer = Packet::udp(f.ip(5, 1), 9, f.client(), 53);
        row(format!("{f:?}: both sides"), w)
            .egress(CLIENT, &ask)
            .passes(Reason::Allowed)
            .decided(2)
            .staged(1)
            .ingress(CLIENT, &answer)
            .passes(Reason::Allowed)
            .decided(4)
            .staged(3)
            .holds(2, 0)
            .quota(1, 2)
    }));
}
