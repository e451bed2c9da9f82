//! Every equivalence class of example policies: each identity, each class of protocol and port, both directions, both families. A naive
//! reading of the rules, the pipeline on the host and the loaded programs must agree on the deciding rule, the staged one and the outcome.

use std::collections::BTreeSet;
use std::net::IpAddr;

use vnet_common::event::{EventRow, kind};
use vnet_common::host::Frame;
use vnet_common::policy::{action, identity, rule_flags};
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::fuzz::random::Random;
use super::kernel::{self, Kernel};
use super::packet::{L4, Packet, SYN, TCP, UDP};
use super::row::{action, on_host};
use super::rules::{Rule, SET, decide, port_key, rule};
use super::world::{CLIENT, FAMILIES, Family, World};

/// Identities that the rules tell apart, those that are always there among them.
const IDENTITIES: [u32; 24] = [
    identity::UNKNOWN,
    identity::HOST,
    identity::REMOTE_HOST,
    identity::WORLD,
    identity::HEALTH,
    100,
    101,
    102,
    103,
    104,
    105,
    106,
    107,
    108,
    109,
    110,
    111,
    112,
    113,
    114,
    115,
    116,
    117,
    118,
];
const SETS: u32 = 3;

/// Rules as an operator may have written them: five tiers, of which some pass on, a group's own rules, its default.
fn rules(r: &mut Random, first: u32, group: u32) -> Vec<Rule> {
    let (tiers, of_tier) = (6, 16);
    let mut rules = Vec::new();
    for tier in 0..tiers {
        for n in 0..of_tier {
            let id = first + tier * of_tier + n + 1;
            let choice = r.of(&[action::ALLOW, action::ALLOW, action::DENY, action::REJECT, action::PASS, action::REDIRECT]);
            let mut new = rule(id, choice).next(((tier + 1) * of_tier) as u16);
            (new.row.group, new.row.serial) = (group, 500 + group);
            for _ in 0..r.below(4) {
                new = new.peer(r.of(&IDENTITIES));
            }
            for _ in 0..=r.below(2) {
                let port = r.of(&[22, 53, 80, 443, 1024, 8080, 65535]);
                new = match r.below(8) {
                    0 => new.ports(UDP, port, port),
                    1..=2 => new.ports(TCP, port, port),
                    3 => new.ports(TCP, port / 2, port),
                    4 => new.ports(r.of(&[TCP, UDP]), 0, 65535),
                    5 => new.ports(132, 0, 65535),
                    _ => {
                        let (kind, protocol) = r.of(&[(8, 1), (3, 1), (128, 58), (1, 58), (135, 58)]);
                        new.ports(protocol, kind << 8, kind << 8 | r.of(&[0, 3, 255]))
                    }
                };
            }
            rules.push(new.flags(r.of(&[0, 0, 0, 0, rule_flags::STAGED, rule_flags::LOG, rule_flags::QUARANTINE])));
        }
    }
    let last = r.of(&[action::ALLOW, action::DENY]);
    rules.push(rule(first + tiers * of_tier + 1, last).flags(rule_flags::DEFAULT));
    rules
}

/// One packet of each class: the first and the last protocol and port of each stretch between two bounds of any rule.
fn classes(rules: &[Rule]) -> BTreeSet<u32> {
    let mut keys = BTreeSet::from([0, port_key(TCP, 0), port_key(UDP, 0), port_key(132, 0), port_key(47, 0)]);
    for &(protocol, from, to) in rules.iter().flat_map(|r| &r.ports) {
        let (from, to) = (port_key(protocol, from), port_key(protocol, to));
        keys.extend([from.saturating_sub(1), from, to, to + 1]);
    }
    keys
}

/// A packet that opens a flow of this class; `None` where there is none.
fn opens(key: u32, from: IpAddr, to: IpAddr, n: u32) -> Option<Packet> {
    let (protocol, port) = ((key >> 16) as u8, key as u16);
    let sport = 1024 + (n % 60_000) as u16;
    let icmp = if from.is_ipv4() { 1 } else { 58 };
    Some(match protocol {
        TCP => Packet::tcp(from, sport, to, port, SYN),
        UDP => Packet::udp(from, sport, to, port),
        p if p == icmp => {
            let [kind, code] = port.to_be_bytes();
            let [a, b] = sport.to_be_bytes();
            Packet::new(from, to, L4::Icmp { kind, code, rest: [a, b, 0, 1] }).with(&[0; 8])
        }
        // Extension headers of IPv6, and the other family's ICMP, are no protocols of this one.
        0 | 1 | 43 | 44 | 58 | 60 => return None,
        p if port == 0 => Packet::new(from, to, L4::Other(p)).with(&[0; 24]),
        _ => return None,
    })
}

/// The rule that decided, and the staged one, of the events about one packet.
fn told(events: &[EventRow]) -> (u32, u32) {
    let staged = events.iter().find(|e| e.kind == kind::STAGED).map_or(0, |e| e.rule);
    let decided = events.iter().find(|e| e.kind != kind::STAGED).map_or(0, |e| e.rule);
    (decided, staged)
}

/// What must become of it.
fn outcome(action: u8, direction: Direction, key: u32) -> &'static str {
    let steerable = direction == Direction::Egress && matches!((key >> 16) as u8, TCP | UDP);
    match action {
        action::ALLOW => "allowed",
        action::REJECT => "refused",
        action::REDIRECT if steerable => "steered",
        _ => "dropped",
    }
}

fn seen(v: Verdict) -> &'static str {
    match v {
        Verdict::Next(Reason::Allowed) => "allowed",
        Verdict::Next(Reason::Steered) => "steered",
        Verdict::Reply(_) | Verdict::Bounce(_) => "refused",
        // An answer that must not be given: an ICMP error's.
        Verdict::Drop(Reason::RejectSilent) => "refused",
        Verdict::Drop(_) => "dropped",
        _ => "otherwise",
    }
}

struct Example {
    world: World,
    sets: Vec<[Vec<Rule>; 2]>,
}

/// The address of a peer, another for each set and direction: no two packets of the test belong to one flow.
fn address(f: Family, set: u32, direction: Direction, place: usize) -> IpAddr {
    f.ip(20 + 2 * set as u8 + direction as u8, 1 + place as u8)
}

fn example(seed: u64) -> Example {
    let mut r = Random::new(seed);
    let mut w = World::new();
    w.police(CLIENT, SET);
    w.maps.flow_quota = u32::MAX >> 1;
    w.maps.capacity = 1 << 20;
    w.maps.events.set(0xf);
    let group = w.group(Family::V4.ip(8, 1), 6, 1);
    w.member(group, Family::V4.ip(8, 9), 8443);
    let mut sets = Vec::new();
    for n in 0..SETS {
        let both = [rules(&mut r, n * 1000, group), rules(&mut r, n * 1000 + 500, group)];
        w.set(SET + n, &both[0], &both[1]);
        sets.push(both);
        for (place, &number) in IDENTITIES.iter().enumerate() {
            for (f, direction) in FAMILIES.into_iter().flat_map(|f| [Direction::Egress, Direction::Ingress].map(|d| (f, d))) {
                let addr = address(f, n, direction, place);
                match r.below(3) {
                    _ if number == identity::UNKNOWN => {}
                    0 => w.network(addr, if f == Family::V4 { 32 } else { 128 }, number),
                    _ => w.identity(addr, number),
                }
            }
        }
    }
    Example { world: w, sets }
}

fn check(e: &mut Example, kernel: &mut Kernel, failures: &mut Vec<String>) -> u32 {
    kernel.configure(&e.world.maps);
    kernel.reset();
    let mut asked = 0;
    for set in 0..SETS {
        e.world.at(CLIENT).set = SET + set;
        kernel.configure(&e.world.maps);
        for (f, direction) in FAMILIES.into_iter().flat_map(|f| [Direction::Egress, Direction::Ingress].map(|d| (f, d))) {
            let rules = &e.sets[set as usize][direction as usize];
            for (place, &number) in IDENTITIES.iter().enumerate() {
                let peer = address(f, set, direction, place);
                let (from, to) = if direction == Direction::Egress { (f.client(), peer) } else { (peer, f.client()) };
                for key in classes(rules) {
                    let Some(packet) = opens(key, from, to, asked) else { continue };
                    asked += 1;
                    let (decides, staged) = decide(rules, number, key);
                    let expected = (outcome(decides.action, direction, key), decides.id, staged);
                    let mut frame = Frame::from(&packet);
                    let verdict = on_host(&e.world, direction, CLIENT, &mut frame, false);
                    let events = std::mem::take(&mut *e.world.maps.reported.borrow_mut());
                    let (decided, would) = told(&events);
                    let host = (seen(verdict), decided, would);
                    let ran = kernel.run(direction, CLIENT, &Frame::from(&packet));
                    let theirs = (told(&kernel.events()), ran.action, ran.bytes);
                    if host != expected || theirs != ((decided, would), action(verdict), frame.bytes) {
                        failures.push(format!(
                            "{f:?} {direction:?}, set {set}, identity {number}, class {key:#x}: expected {expected:?}, host {host:?}, \
                             kernel rules {:?}, action {}",
                            theirs.0, theirs.1
                        ));
                    }
                }
            }
        }
    }
    asked
}

#[test]
fn every_class_of_the_examples() {
    let mut kernel = kernel::lock();
    let (mut failures, mut asked) = (Vec::new(), 0);
    for seed in 0..if std::env::var_os("VNET_LONG").is_some() { 8 } else { 1 } {
        asked += check(&mut example(seed), &mut kernel, &mut failures);
    }
    println!("{asked} questions");
    assert!(asked > 10_000, "only {asked} questions");
    failures.truncate(10);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
