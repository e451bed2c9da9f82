//! A member that is its own client: it sees the VIP at the other end of both connections.

use std::net::IpAddr;

use vnet_common::lb::MemberEvent::{Established, NewFlow, Reset};
use vnet_common::policy::action;
use vnet_common::verdict::Direction::Ingress;
use vnet_common::verdict::Reason;

use super::packet::{ACK, FIN, L4, Packet, RST, SYN, UDP};
use super::row::{Row, row, run};
use super::rules::{SET, allow, default, deny};
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, World};

/// The VIP's port 80 leads to the client's own port.
fn world(f: Family, protocol: u8, port: u16, policed: bool) -> World {
    let mut w = World::new();
    let group = w.group(f.vip(), protocol, 80);
    w.member(group, f.client(), port);
    if policed {
        w.police(CLIENT, SET);
        w.set(SET, &[allow(1)], &[default(2, action::DENY)]);
    }
    w
}

/// Between the VIP and the client, from or to which the packet is.
fn between(f: Family, out: bool, l4: L4) -> Packet {
    let (src, dst): (IpAddr, IpAddr) = if out { (f.client(), f.vip()) } else { (f.vip(), f.client()) };
    let (to, from) = if out { (HOST_MAC, CLIENT_MAC) } else { (CLIENT_MAC, HOST_MAC) };
    Packet::new(src, dst, l4).macs(to, from)
}

fn tcp(f: Family, out: bool, sport: u16, dport: u16, flags: u8) -> Packet {
    between(f, out, L4::Tcp { sport, dport, flags, seq: 1, ack: 2, options: Vec::new() })
}

fn udp(f: Family, out: bool, sport: u16, dport: u16) -> Packet {
    between(f, out, L4::Udp { sport, dport, checksum: true }).with(b"question")
}

/// A packet of the client's connection, and the server's answer to it.
fn asks(r: Row, f: Family, port: u16, flags: u8, reason: Reason) -> Row {
    r.egress(CLIENT, &tcp(f, true, 4000, 80, flags)).answered(reason, &tcp(f, false, 4000, port, flags)).by(0)
}

fn replies(r: Row, f: Family, port: u16, flags: u8, reason: Reason) -> Row {
    r.egress(CLIENT, &tcp(f, true, port, 4000, flags)).answered(reason, &tcp(f, false, 80, 4000, flags)).by_as(0, Ingress)
}

fn variants() -> Vec<(Family, u16, bool)> {
    let each = |f| [(f, 80, false), (f, 8080, false), (f, 8080, true)];
    FAMILIES.into_iter().flat_map(each).collect()
}

fn open(r: Row, f: Family, port: u16) -> Row {
    let r = asks(r, f, port, SYN, Reason::NewFlow).event(0, NewFlow);
    let r = replies(r, f, port, SYN | ACK, Reason::HalfOpen);
    let mut r = asks(r, f, port, ACK, Reason::Established).event(0, Established);
    for _ in 0..3 {
        r = replies(asks(r, f, port, ACK, Reason::Established), f, port, ACK, Reason::Reply);
    }
    r
}

#[test]
fn connections() {
    let mut rows = Vec::new();
    for (f, port, policed) in variants() {
        let start = |name: &str| row(format!("{f:?}, port {port}, policed {policed}: {name}"), world(f, 6, port, policed));
        rows.push(open(start("open"), f, port).holds(1, 0).quota(1, 1));
        let r = open(start("closed, and opened again"), f, port);
        let r = replies(asks(r, f, port, FIN | ACK, Reason::Established), f, port, FIN | ACK, Reason::Reply);
        let r = asks(r, f, port, SYN, Reason::NewFlow).event(0, NewFlow);
        rows.push(r.holds(0, 1));
        let r = asks(start("refused"), f, port, SYN, Reason::NewFlow).event(0, NewFlow);
        rows.push(replies(r, f, port, RST | ACK, Reason::HalfOpen).event(0, Reset));
        // Judged again, from either side.
        let r = open(start("another generation"), f, port).change(World::bump);
        let r = replies(r, f, port, ACK, Reason::Reply);
        rows.push(asks(r, f, port, ACK, Reason::Established).holds(1, 0).quota(1, 1));
        if !policed {
            let r = open(start("what only looks like an answer"), f, port).change(World::bump);
            rows.push(r.egress(CLIENT, &tcp(f, true, port, 4001, RST)).dropped(Reason::RejectSilent).holds(1, 0).quota(1, 1));
        }
    }
    run(rows);
}

#[test]
fn questions() {
    let mut rows = Vec::new();
    for (f, port, policed) in variants() {
        for partial in [false, true] {
            let name = format!("{f:?}, port {port}, policed {policed}, partial {partial}");
            let (out, back) = (udp(f, true, 4000, 80), udp(f, true, port, 4000));
            let (there, got) = (udp(f, false, 4000, port), udp(f, false, 80, 4000));
            let send = |r: Row, p: &Packet| {
                if partial { r.egress(CLIENT, p.partial()).completed(p.l4_at(), 6) } else { r.egress(CLIENT, p) }
            };
            let mut r = send(row(name, world(f, UDP, port, policed)), &out).answered(Reason::NewFlow, &there).by(0).events(0);
            for _ in 0..3 {
                r = send(r, &back).answered(Reason::Reply, &got).by_as(0, Ingress);
                r = send(r, &out).answered(Reason::Established, &there).by(0);
            }
            rows.push(r.holds(1, 0).quota(1, 1));
        }
    }
    run(rows);
}

/// The errors of either socket are about the other's packets.
#[test]
fn errors() {
    let mut rows = Vec::new();
    for (f, port, policed) in variants() {
        let r = row(format!("{f:?}, port {port}, policed {policed}"), world(f, UDP, port, policed));
        let (out, back) = (udp(f, true, 4000, 80), udp(f, true, port, 4000));
        let (there, got) = (udp(f, false, 4000, port), udp(f, false, 80, 4000));
        let r = r.egress(CLIENT, &out).answered(Reason::NewFlow, &there).by(0).events(0);
        let (kind, code) = if f == Family::V4 { (3, 3) } else { (1, 4) };
        let r = r.egress(CLIENT, &there.error(kind, code, 0)).answered(Reason::Related, &out.error(kind, code, 0));
        let r = r.egress(CLIENT, &got.error(kind, code, 0)).answered(Reason::Related, &back.error(kind, code, 0));
        rows.push(r.holds(1, 0).quota(1, 1));
    }
    run(rows);
}

/// Rules are asked as for any flow to the VIP; a denied one is cut from either side.
#[test]
fn denied() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let none = |w: &mut World| {
            w.set(SET + 1, &[deny(3)], &[deny(4)]);
            w.at(CLIENT).set = SET + 1;
            w.bump();
        };
        let start = |name: &str| row(format!("{f:?}: {name}"), world(f, 6, 8080, true));
        let syn = tcp(f, true, 4000, 80, SYN);
        rows.push(start("a new one").change(none).egress(CLIENT, &syn).dropped(Reason::Denied));
        let r = open(start("by the client's packet"), f, 8080).change(none);
        rows.push(r.egress(CLIENT, &tcp(f, true, 4000, 80, ACK)).dropped(Reason::Denied));
        let r = open(start("by the server's packet"), f, 8080).change(none);
        rows.push(r.egress(CLIENT, &tcp(f, true, 8080, 4000, ACK)).dropped(Reason::Denied));
    }
    run(rows);
}

/// Where questions and answers would look alike, the client's port is translated; and what claims to come from the VIP is dropped.
#[test]
fn alike() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let out = udp(f, true, 80, 80);
        let told = |frame: &[u8]| {
            let l4 = if frame[12] == 8 { 34 } else { 54 };
            let (sport, dport) =
                (u16::from_be_bytes([frame[l4], frame[l4 + 1]]), u16::from_be_bytes([frame[l4 + 2], frame[l4 + 3]]));
            if sport >= 49_152 && dport == 80 { Ok(()) } else { Err(format!("from {sport} to {dport}")) }
        };
        let r = row(format!("{f:?}: one port"), world(f, UDP, 80, false));
        let r = r.egress(CLIENT, &out).answered_some(Reason::NewFlow, told).by(0).events(0);
        rows.push(r.holds(1, 0).quota(1, 1));
        let land = Packet { src: f.vip(), ..out };
        rows.push(
            row(format!("{f:?}: from the VIP to itself"), world(f, UDP, 81, false))
                .egress(CLIENT, &land)
                .dropped(Reason::RejectSilent),
        );
    }
    run(rows);
}
