//! UDP flows, options and extension headers, and checksums that are absent.

use vnet_common::lb::MemberEvent::{Established, NewFlow};
use vnet_common::verdict::Reason;

use super::packet::{L4, Packet, SYN};
use super::row::{Row, row, run};
use super::tcp::tcp_member;
use super::world::{CLIENT, FAMILIES, Family, World};

/// Member row of a family's UDP group in [`World::balanced`].
pub fn udp_member(f: Family) -> u32 {
    tcp_member(f) + 1
}

/// A question, and what the member gets.
fn question(f: Family, port: u16) -> (Packet, Packet) {
    let p = Packet::udp(f.client(), 5353, f.vip(), 80);
    (p.clone(), p.to(f.member(0), port))
}

/// The member's answer, and what the client gets.
fn answer(f: Family, port: u16) -> (Packet, Packet) {
    let p = Packet::udp(f.member(0), port, f.client(), 5353).with(b"the answer");
    (p.clone(), p.from(f.vip(), 80))
}

fn first(r: Row, f: Family, (p, there): &(Packet, Packet)) -> Row {
    let m = udp_member(f);
    r.egress(CLIENT, p).becomes(Reason::NewFlow, there).by(m).event(m, NewFlow).event(m, Established)
}

#[test]
fn questions_and_answers() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for port in [80, 53] {
            let m = udp_member(f);
            let (q, a) = (question(f, port), answer(f, port));
            let start = |name: &str| row(format!("{f:?} UDP, member port {port}: {name}"), World::balanced(port));
            rows.push(first(start("question"), f, &q).holds(1, 0).quota(1, 1));
            let mut r = first(start("question and answer, again and again"), f, &q);
            for _ in 0..3 {
                r = r.ingress(CLIENT, &a.0).becomes(Reason::Reply, &a.1).by(m);
                r = r.egress(CLIENT, &q.0).becomes(Reason::Established, &q.1).by(m);
            }
            rows.push(r.holds(1, 0).quota(1, 1));
            rows.push(start("an answer to no question").ingress(CLIENT, &a.0).passes(Reason::NotOurs));
            let wrong = Packet::udp(f.member(0), port + 1, f.client(), 5353);
            rows.push(
                first(start("an answer from another port"), f, &q)
                    .ingress(CLIENT, &wrong)
                    .passes(Reason::NotOurs)
                    .holds(1, 0)
                    .quota(1, 1),
            );
        }
    }
    run(rows);
}

/// On the client's bridge a member gets the packet addressed to its MAC; one elsewhere, or of unknown MAC, by the stack.
#[test]
fn over_the_clients_bridge() {
    const BRIDGE: u32 = 7;
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
    let mut rows = Vec::new();
    for f in FAMILIES {
        for (segment, mac, near) in [(BRIDGE, MAC, true), (BRIDGE, [0; 6], false), (BRIDGE + 1, MAC, false), (0, MAC, false)] {
            let m = udp_member(f);
            let mut w = World::balanced(8080);
            w.at(CLIENT).segment = BRIDGE;
            (w.edit(m).segment, w.edit(m).mac) = (segment, mac);
            let (ask, there) = question(f, 8080);
            let there = if near { there.clone().macs(MAC, there.src_mac) } else { there };
            let mut r = row(format!("{f:?}: member {mac:?} on bridge {segment}"), w);
            for reason in [Reason::NewFlow, Reason::Established, Reason::Established, Reason::Established] {
                r = r.egress(CLIENT, &ask).becomes(reason, &there).by(m);
            }
            rows.push(r.event(m, NewFlow).event(m, Established).holds(1, 0).quota(1, 1));
        }
    }
    run(rows);
}

#[test]
fn without_a_checksum() {
    let bare = |p: Packet| {
        let (s, d) = match p.l4 {
            L4::Udp { sport, dport, .. } => (sport, dport),
            other => panic!("{other:?}"),
        };
        Packet { l4: L4::Udp { sport: s, dport: d, checksum: false }, ..p }
    };
    let mut rows = Vec::new();
    for f in FAMILIES {
        for port in [80, 53] {
            let r = row(format!("{f:?} UDP without checksum, member port {port}"), World::balanced(port));
            let (q, a) = (question(f, port), answer(f, port));
            let r = first(r, f, &(bare(q.0), bare(q.1)));
            let r = r.ingress(CLIENT, &bare(a.0)).becomes(Reason::Reply, &bare(a.1)).by(udp_member(f));
            rows.push(r.holds(1, 0).quota(1, 1));
        }
    }
    run(rows);
}

/// Every value of a checksum: the field takes all of 0x0000..=0xffff before the rewrite, or after.
#[test]
fn checksums_at_the_edges() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for port in [80, 53] {
            // The payload that makes the checksum of the packet, or of its rewritten form, come out as 0xffff, 0x0001, 0xfffe.
            for rewritten in [false, true] {
                for wanted in [0xffff_u16, 0x0001, 0xfffe] {
                    let (p, there) = question(f, port);
                    let payload = payload_for(if rewritten { &there } else { &p }, wanted);
                    let pair = (p.with(&payload), there.with(&payload));
                    let name = format!("{f:?} port {port}, checksum {wanted:#06x}, after the rewrite: {rewritten}");
                    rows.push(first(row(name, World::balanced(port)), f, &pair).holds(1, 0).quota(1, 1));
                }
            }
        }
    }
    run(rows);
}

/// Two bytes that give the UDP packet this checksum.
fn payload_for(p: &Packet, wanted: u16) -> [u8; 2] {
    let at = p.l4_at() + 6;
    for n in 0..=u16::MAX {
        let bytes = p.clone().with(&n.to_be_bytes()).bytes();
        if bytes[at..at + 2] == wanted.to_be_bytes() {
            return n.to_be_bytes();
        }
    }
    panic!("no payload gives {wanted:#06x}")
}

#[test]
fn options_and_extension_headers() {
    let mut rows = Vec::new();
    let hop_by_hop = || (0, vec![1, 4, 0, 0, 0, 0]);
    let long = || (60, [&[1, 12][..], &[0; 12]].concat());
    let routing = || (43, vec![0, 0, 0, 0, 0, 0]);
    let atomic = || (44, vec![0, 0, 0, 0, 9, 9]);
    let go = |name: &str, f: Family, change: &dyn Fn(&mut Packet)| {
        let mut rows = Vec::new();
        for port in [80, 53] {
            let (mut p, mut there) = question(f, port);
            change(&mut p);
            change(&mut there);
            let r = row(format!("{f:?} {name}, member port {port}"), World::balanced(port));
            rows.push(first(r, f, &(p, there)).holds(1, 0).quota(1, 1));
        }
        rows
    };
    rows.extend(go("4 bytes of options", Family::V4, &|p| p.options = vec![1, 1, 1, 0]));
    rows.extend(go("40 bytes of options", Family::V4, &|p| p.options = vec![1; 40]));
    rows.extend(go("hop-by-hop", Family::V6, &|p| p.extensions = vec![hop_by_hop()]));
    rows.extend(go("a long header", Family::V6, &|p| p.extensions = vec![long()]));
    rows.extend(go("an atomic fragment", Family::V6, &|p| p.extensions = vec![atomic()]));
    rows.extend(go("three headers", Family::V6, &|p| p.extensions = vec![hop_by_hop(), routing(), long()]));
    rows.extend(go("four headers", Family::V6, &|p| p.extensions = vec![hop_by_hop(), long(), routing(), atomic()]));

    let mut five = question(Family::V6, 80).0;
    five.extensions = vec![hop_by_hop(), long(), routing(), atomic(), long()];
    rows.push(row("five headers are too many", World::balanced(80)).egress(CLIENT, &five).dropped(Reason::Malformed));
    let f = Family::V6;
    let mut none = Packet::new(f.client(), f.vip(), L4::Other(59));
    none.extensions = vec![long()];
    rows.push(row("a header, and nothing behind it", World::balanced(80)).egress(CLIENT, &none).dropped(Reason::RejectSilent));
    let mut syn = Packet::tcp(f.client(), 40000, f.vip(), 80, SYN);
    let mut there = syn.clone().to(f.member(0), 8080);
    syn.extensions = vec![hop_by_hop(), routing()];
    there.extensions = syn.extensions.clone();
    rows.push(
        row("TCP behind two headers", World::balanced(8080))
            .egress(CLIENT, &syn)
            .becomes(Reason::NewFlow, &there)
            .by(2)
            .event(2, NewFlow)
            .holds(0, 1),
    );
    run(rows);
}
