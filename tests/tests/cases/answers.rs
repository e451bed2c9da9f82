//! What a VIP answers itself: echo, closed ports, and groups without a member.

use vnet_common::lb::{flags, state};
use vnet_common::verdict::Reason;

use super::packet::{ACK, FIN, L4, Packet, RST, SYN};
use super::row::{Row, row, run};
use super::world::{CLIENT, FAMILIES, Family, World};

fn world() -> World {
    World::balanced(8080)
}

/// The reset that answers `p`: RFC 9293 §3.10.7.1.
pub fn reset(p: &Packet) -> Packet {
    let L4::Tcp { flags, seq, ack, .. } = p.l4 else { panic!("{p:?} is not TCP") };
    let taken = p.payload.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let (seq, ack, flags) = if flags & ACK != 0 { (ack, 0, RST) } else { (0, seq.wrapping_add(taken), RST | ACK) };
    let mut r = Packet::new(p.src, p.dst, p.l4.clone()).macs(p.dst_mac, p.src_mac).back().answer();
    if let L4::Tcp { options, .. } = &mut r.l4 {
        options.clear();
    }
    let r = r.numbers(seq, ack).flags(flags);
    Packet { window: 0, ..r }
}

/// ICMP: port unreachable.
pub fn closed(p: &Packet) -> Packet {
    if p.src.is_ipv4() { p.error(3, 3, 0) } else { p.error(1, 4, 0) }
}

#[test]
fn echo() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let reply = |p: &Packet| {
            let L4::Icmp { kind, code, rest } = p.l4 else { panic!("{p:?} is not ICMP") };
            let kind = if kind == 8 { 0 } else { kind + 1 };
            Packet { l4: L4::Icmp { kind, code, rest }, ..p.clone().back().ttl(64) }
        };
        let ping = Packet::ping(f.client(), f.vip());
        for (name, p) in [
            ("echo", ping.clone()),
            ("echo with TTL 1", ping.clone().ttl(1)),
            ("echo without data", ping.clone().with(&[])),
            ("echo of odd length", ping.clone().with(b"odd")),
            ("large echo", ping.clone().with(&[0xa5; 1400])),
            ("echo with padding", Packet { padding: 7, ..ping.clone() }),
        ] {
            rows.push(row(format!("{f:?} {name}"), world()).egress(CLIENT, &p).answered(Reason::VipEcho, &reply(&p)));
        }
        let silent =
            |name: &str, p: Packet| row(format!("{f:?} {name}"), world()).egress(CLIENT, &p).dropped(Reason::RejectSilent);
        let unreachable = if f == Family::V4 { 3 } else { 1 };
        rows.push(silent(
            "an ICMP error to a VIP",
            Packet { l4: L4::Icmp { kind: unreachable, code: 0, rest: [0; 4] }, ..ping.clone() },
        ));
        rows.push(silent("an echo reply to a VIP", reply(&ping).back()));
        if f == Family::V4 {
            rows.push(silent("echo with IP options", Packet { options: vec![1, 1, 1, 0], ..ping.clone() }));
        } else {
            rows.push(silent(
                "echo with an extension header",
                Packet { extensions: vec![(60, vec![1, 4, 0, 0, 0, 0])], ..ping.clone() },
            ));
        }
    }
    run(rows);
}

#[test]
fn closed_ports() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let syn = Packet::tcp(f.client(), 40000, f.vip(), 81, SYN);
        let options = vec![2, 4, 5, 0xb4, 1, 3, 3, 7];
        for (name, p) in [
            ("SYN", syn.clone()),
            ("SYN with options", {
                let l4 = L4::Tcp { sport: 40000, dport: 81, flags: SYN, seq: u32::MAX, ack: 0, options };
                Packet { l4, ..syn.clone() }
            }),
            ("SYN with data (fast open)", syn.clone().with(b"early")),
            ("SYN with padding", Packet { padding: 6, ..syn.clone() }),
            ("ACK", syn.clone().flags(ACK)),
            ("data", syn.clone().flags(ACK).with(b"hello")),
            ("FIN without ACK", syn.clone().flags(FIN).with(b"x")),
            ("no flags", syn.clone().flags(0)),
        ] {
            rows.push(
                row(format!("{f:?} closed port: {name}"), world()).egress(CLIENT, &p).answered(Reason::VipPortClosed, &reset(&p)),
            );
        }
        let silent =
            |name: &str, p: Packet| row(format!("{f:?} {name}"), world()).egress(CLIENT, &p).dropped(Reason::RejectSilent);
        rows.push(silent("closed port: RST", syn.clone().flags(RST)));
        rows.push(silent("closed port: RST+ACK", syn.clone().flags(RST | ACK)));
        let broadcast = |p: &Packet| p.clone().macs([0xff; 6], p.src_mac);
        rows.push(silent("closed port: a SYN in a broadcast frame", broadcast(&syn)));

        let udp = Packet::udp(f.client(), 40000, f.vip(), 81);
        for (name, p) in [
            ("UDP", udp.clone()),
            ("UDP without data", udp.clone().with(&[])),
            ("UDP of odd length", udp.clone().with(b"odd")),
            ("large UDP", udp.clone().with(&[3; 1400])),
            ("UDP with padding", Packet { padding: 11, ..udp.clone() }),
        ] {
            rows.push(
                row(format!("{f:?} closed port: {name}"), world())
                    .egress(CLIENT, &p)
                    .answered(Reason::VipPortClosed, &closed(&p)),
            );
        }
        rows.push(silent("closed port: UDP in a broadcast frame", broadcast(&udp)));
        let sctp = Packet::new(f.client(), f.vip(), L4::Other(132)).with(&[9; 24]);
        let refused = if f == Family::V4 { sctp.error(3, 2, 0) } else { sctp.error(4, 1, 0) };
        let refused = Packet { l4: protocol_unreachable(f), ..refused };
        rows.push(
            row(format!("{f:?} another protocol"), world()).egress(CLIENT, &sctp).answered(Reason::VipPortClosed, &refused),
        );
        rows.extend(not_answered(f, &syn, &udp));
    }
    let zero = Packet::new(Family::V4.client(), Family::V4.vip(), L4::Udp { sport: 40000, dport: 81, checksum: false });
    rows.push(
        row("closed port: UDP without checksum", world()).egress(CLIENT, &zero).answered(Reason::VipPortClosed, &closed(&zero)),
    );
    run(rows);
}

fn protocol_unreachable(f: Family) -> L4 {
    match f {
        Family::V4 => L4::Icmp { kind: 3, code: 2, rest: [0; 4] },
        // RFC 4443 §3.4: unrecognised next header, at offset 6.
        Family::V6 => L4::Icmp { kind: 4, code: 1, rest: [0, 0, 0, 6] },
    }
}

/// What has options in the way is refused silently.
fn not_answered(f: Family, syn: &Packet, udp: &Packet) -> Vec<Row> {
    [syn, udp]
        .into_iter()
        .map(|p| {
            let mut p = p.clone();
            match f {
                Family::V4 => p.options = vec![1, 1, 1, 0],
                Family::V6 => p.extensions = vec![(60, vec![1, 4, 0, 0, 0, 0])],
            }
            row(format!("{f:?} closed port, options in the way"), world()).egress(CLIENT, &p).dropped(Reason::RejectSilent)
        })
        .collect()
}

#[test]
fn fragments_to_a_vip() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let whole = Packet::udp(f.client(), 40000, f.vip(), 80).with(&[1; 64]);
        for (name, offset, more) in [("middle", 8, true), ("last", 8, false)] {
            let mut p = whole.clone();
            match f {
                Family::V4 => (p.fragment_offset, p.more_fragments, p.dont_fragment) = (offset, more, false),
                Family::V6 => p.extensions = vec![fragment_header(offset, more)],
            }
            rows.push(row(format!("{f:?} {name} fragment"), world()).egress(CLIENT, &p).dropped(Reason::Fragment));
            let reply = p.from(f.member(0), 8080).to(f.client(), 40000);
            rows.push(row(format!("{f:?} {name} fragment of a reply"), world()).ingress(CLIENT, &reply).passes(Reason::NotOurs));
        }
    }
    run(rows);
}

/// An IPv6 fragment header (RFC 8200 §4.5).
pub fn fragment_header(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let o = (offset << 3 | u16::from(more)).to_be_bytes();
    (44, vec![o[0], o[1], 0, 0, 0x12, 0x34])
}

#[test]
fn no_member() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for gone in [state::DRAINING, state::DOWN, state::NONE] {
            let world = |flags: u32| {
                let mut w = world();
                for m in 0..4 {
                    w.set_flags(m, flags);
                    w.set_state(m, gone);
                }
                w
            };
            let syn = Packet::tcp(f.client(), 40000, f.vip(), 80, SYN);
            let udp = Packet::udp(f.client(), 40000, f.vip(), 80);
            let name = |n: &str| format!("{f:?}, members in state {gone}: {n}");
            rows.extend([
                row(name("a SYN is refused"), world(0)).egress(CLIENT, &syn).answered(Reason::NoMember, &reset(&syn)),
                row(name("UDP is refused"), world(0)).egress(CLIENT, &udp).answered(Reason::NoMember, &closed(&udp)),
                row(name("a SYN is dropped"), world(flags::EMPTY_DROP)).egress(CLIENT, &syn).dropped(Reason::NoMember),
                row(name("UDP is dropped"), world(flags::EMPTY_DROP)).egress(CLIENT, &udp).dropped(Reason::NoMember),
            ]);
        }
    }
    run(rows);
}
