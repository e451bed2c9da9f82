//! Packets that a device is to finish: partial checksums and segmentation. What comes out must be right on the wire.

use vnet_common::host::Frame;
use vnet_common::lb::MemberEvent::{Established, NewFlow};
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::answers::{closed, reset};
use super::packet::{ACK, L4, Packet, SYN};
use super::policy;
use super::row::{Row, on_host, row, run};
use super::rules::{allow, deny};
use super::tcp::{Connection, tcp_member};
use super::udp::udp_member;
use super::world::{CLIENT, FAMILIES, Family, NEAR, World};

/// Where the checksum is in the L4 header.
fn field(p: &Packet) -> usize {
    if matches!(p.l4, L4::Tcp { .. }) { 16 } else { 6 }
}

/// Ports as they are and rewritten, payloads of even and odd length: every path of the checksum's update.
fn variants() -> Vec<(Family, u16, Vec<u8>)> {
    let mut out = Vec::new();
    for f in FAMILIES {
        for port in [80, 8080] {
            for payload in [&b""[..], b"x", b"even", &[0x99; 1001]] {
                out.push((f, port, payload.to_vec()));
            }
        }
    }
    out
}

#[test]
fn partial_checksums_there_and_back() {
    let mut rows = Vec::new();
    for (f, port, payload) in variants() {
        let start =
            |what: &str| row(format!("{f:?} port {port}, {} bytes: partial {what}", payload.len()), World::balanced(port));
        let c = Connection::new(f, port);
        let (syn, there) = (c.up(SYN).with(&payload), c.up_there(SYN).with(&payload));
        let (synack, back) = (c.down(SYN | ACK).with(&payload), c.down_there(SYN | ACK).with(&payload));
        let r = start("TCP").egress(CLIENT, syn.partial()).completed(syn.l4_at(), 16).becomes(Reason::NewFlow, &there);
        let r = r.by(c.member).event(c.member, NewFlow).ingress(CLIENT, synack.partial()).completed(synack.l4_at(), 16);
        rows.push(r.becomes(Reason::HalfOpen, &back).by(c.member).holds(0, 1));

        let m = udp_member(f);
        let q = Packet::udp(f.client(), 5353, f.vip(), 80).with(&payload);
        let a = Packet::udp(f.member(0), port, f.client(), 5353).with(&payload);
        let r = start("UDP").egress(CLIENT, q.partial()).completed(q.l4_at(), 6);
        let r = r.becomes(Reason::NewFlow, &q.clone().to(f.member(0), port)).by(m).event(m, NewFlow).event(m, Established);
        let r = r.ingress(CLIENT, a.partial()).completed(a.l4_at(), 6);
        rows.push(r.becomes(Reason::Reply, &a.clone().from(f.vip(), 80)).by(m).holds(1, 0).quota(1, 1));
    }
    run(rows);
}

/// Where a packet's payload lies in pages its headers are read all the same; packets of established flows leave it there.
#[test]
fn payload_in_pages() {
    for f in FAMILIES {
        let w = policy::world(f, &[allow(1)], &[deny(2)]);
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53).with(&[7; 600]);
        // What becomes of a packet with so many linear bytes, and how many it has then.
        let go = |direction, p: &Packet, linear: usize| {
            let mut frame = Frame::from(p);
            frame.paged = frame.bytes.len() - linear;
            let verdict = on_host(&w, direction, CLIENT, &mut frame, false);
            (verdict, frame.bytes.len() - frame.paged)
        };
        let (ethernet, plain) = (14, ask.l4_at() + 20);
        assert_eq!(go(Direction::Egress, &ask, ethernet), (Verdict::Next(Reason::Allowed), 136));
        assert_eq!(go(Direction::Egress, &ask, plain), (Verdict::Next(Reason::Established), 136));
        for linear in [ethernet, plain] {
            assert_eq!(go(Direction::Egress, &ask, linear), (Verdict::Next(Reason::Established), plain));
        }
        // An error has the headers that it quotes far back.
        let error = ask.error(if f == Family::V4 { 3 } else { 1 }, 1, 0);
        let all = error.bytes().len().min(136);
        assert_eq!(go(Direction::Ingress, &error, ethernet), (Verdict::Next(Reason::Related), all));
    }
}

/// Addresses of members for which complete and partial fields change alike, or the difference is nil.
#[test]
fn partial_checksums_with_any_difference() {
    let mut rows = Vec::new();
    for host in (0..=255).step_by(5) {
        let f = Family::V4;
        let mut w = World::new();
        let g = w.group(f.vip(), 17, 80);
        let addr = std::net::IpAddr::from([10, 0, 9_u8.wrapping_add(host), 1_u8.wrapping_sub(host)]);
        let m = w.member(g, addr, 80 + u16::from(host % 2));
        let q = Packet::udp(f.client(), 5353, f.vip(), 80);
        let there = q.clone().to(addr, 80 + u16::from(host % 2));
        let r = row(format!("partial UDP to {addr}"), w).egress(CLIENT, q.partial()).completed(q.l4_at(), 6);
        let done = |r: Row| r.by(m).event(m, NewFlow).event(m, Established).holds(1, 0).quota(1, 1);
        rows.push(done(r.becomes(Reason::NewFlow, &there)));
        let mut w = World::new();
        let g = w.group(f.vip(), 17, 80);
        w.member(g, addr, 80 + u16::from(host % 2));
        rows.push(done(row(format!("complete UDP to {addr}"), w).egress(CLIENT, &q).becomes(Reason::NewFlow, &there)));
    }
    run(rows);
}

#[test]
fn answers_to_partial_checksums() {
    let mut rows = Vec::new();
    for (f, _, payload) in variants() {
        let start = |what: &str| row(format!("{f:?} {} bytes: {what}", payload.len()), World::balanced(80));
        for flags in [SYN, ACK] {
            let p = Packet::tcp(f.client(), 40000, f.vip(), 81, flags).with(&payload);
            let r = start("reset").egress(CLIENT, p.partial()).completed(p.l4_at(), 16);
            rows.push(r.answered(Reason::VipPortClosed, &reset(&p)));
        }
        let p = Packet::udp(f.client(), 40000, f.vip(), 81).with(&payload);
        // The device completes the quoted checksum: over the part that is quoted, which is less than it was of.
        let pushed = if f == Family::V4 { 28 } else { 48 };
        let r = start("port unreachable").egress(CLIENT, p.partial()).completed(p.l4_at() + pushed, 6);
        rows.push(r.answered_bytes(Reason::VipPortClosed, quoting(&closed(&p), &p)));
    }
    run(rows);
}

/// An ICMP error about a packet whose checksum was partial: the quoted field holds what the device made of it, and the
/// ICMP checksum is right all the same.
fn quoting(error: &Packet, p: &Packet) -> Vec<u8> {
    let mut e = error.clone();
    let at = p.l4_at() - 14;
    let field = at + field(p);
    let partial = p.partial().bytes;
    e.payload[field..field + 2].copy_from_slice(&partial[14 + field..14 + field + 2]);
    let sum = super::sums::plain(&e.payload[at..]);
    e.payload[field..field + 2].copy_from_slice(&sum);
    e.bytes()
}

#[test]
fn too_big_with_partial_checksums() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let (kind, code) = if f == Family::V4 { (3, 4) } else { (2, 0) };
        for (m, p) in [
            (tcp_member(f), Packet::tcp(f.client(), 40000, f.vip(), 80, SYN).with(&[3; 900])),
            (udp_member(f), Packet::udp(f.client(), 40000, f.vip(), 80).with(&[3; 901])),
        ] {
            let mut w = World::balanced(8080);
            w.redirected(m, NEAR, 2, true);
            w.at(NEAR).mtu = 700;
            let pushed = if f == Family::V4 { 28 } else { 48 };
            let tcp = field(&p) == 16;
            let r = row(format!("{f:?} too big, partial, TCP: {tcp}"), w).egress(CLIENT, p.partial());
            let r = r.completed(p.l4_at() + pushed, field(&p));
            let r = r.answered_bytes(Reason::PacketTooBig, quoting(&p.error(kind, code, 700), &p)).by(m).event(m, NewFlow);
            rows.push(if tcp { r.holds(0, 1) } else { r.event(m, Established).holds(1, 0).quota(1, 1) });
        }
    }
    run(rows);
}

#[test]
fn segmentation() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let c = Connection::new(f, 8080);
        let data = vec![0x42; 3000];
        let r = row(format!("{f:?}: to be cut into segments"), World::balanced(8080)).egress(CLIENT, &c.up(ACK).with(&data));
        let r = r.segment(1400).becomes(Reason::NewFlow, &c.up_there(ACK).with(&data)).by(c.member).event(c.member, NewFlow);
        rows.push(r.holds(0, 1));
        let closed_port = Packet::tcp(f.client(), 40000, f.vip(), 81, ACK).with(&data);
        let r = row(format!("{f:?}: segments to a closed port"), World::balanced(8080)).egress(CLIENT, &closed_port);
        rows.push(r.segment(1400).answered(Reason::VipPortClosed, &reset(&closed_port)));
        let udp = Packet::udp(f.client(), 40000, f.vip(), 81).with(&data);
        let r = row(format!("{f:?}: datagrams to a closed port"), World::balanced(8080)).egress(CLIENT, &udp);
        rows.push(r.segment(1400).answered(Reason::VipPortClosed, &closed(&udp)));
    }
    run(rows);
}

/// Over 64 KiB the IP header says length 0 (BIG TCP).
#[test]
fn big_tcp() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let c = Connection::new(f, 8080);
        let big = |p: Packet| {
            let mut b = p.with(&[0x42; 70]).bytes();
            let at = if f == Family::V4 { 16 } else { 18 };
            let len = u32::from(u16::from_be_bytes([b[at], b[at + 1]]));
            b[at..at + 2].fill(0);
            if f == Family::V4 {
                let sum = u32::from(u16::from_be_bytes([b[24], b[25]])) + len;
                b[24..26].copy_from_slice(&((sum + (sum >> 16)) as u16).to_be_bytes());
            }
            b
        };
        let there = big(c.up_there(ACK));
        let frame = Frame { bytes: big(c.up(ACK)), segment: 1400, ..Frame::default() };
        let r = row(format!("{f:?}: a length of 0"), World::balanced(8080)).egress(CLIENT, frame);
        let same = move |out: &[u8]| if out == there { Ok(()) } else { Err(super::row::hex(out)) };
        rows.push(r.becomes_some(Reason::NewFlow, same).by(c.member).event(c.member, NewFlow).holds(0, 1));
    }
    run(rows);
}
