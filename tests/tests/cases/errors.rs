//! ICMP errors about balanced flows: the client finds the VIP in what they quote, the member its own address.

use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::host::Frame;
use vnet_common::policy::action;
use vnet_common::verdict::Direction::Ingress;
use vnet_common::verdict::Reason;

use super::packet::{ACK, L4, Packet, SYN};
use super::policy::each;
use super::row::{Row, row, run};
use super::rules::{SET, allow, default, deny};
use super::tcp::{Connection, tcp_member};
use super::udp::udp_member;
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, NEAR, World};

/// Types and codes: fragmentation needed or packet too big, port unreachable, time exceeded.
fn kinds(f: Family) -> [(u8, u8, u16); 3] {
    if f == Family::V4 { [(3, 4, 1280), (3, 3, 0), (11, 0, 0)] } else { [(2, 0, 1280), (1, 4, 0), (3, 0, 0)] }
}

/// The port that the members serve at, and the client's question there.
const PORT: u16 = 5300;

fn question(f: Family) -> Packet {
    Packet::udp(f.client(), 5353, f.vip(), 80)
}

fn answer(f: Family) -> Packet {
    Packet::udp(f.member(0), PORT, f.client(), 5353)
}

fn asks(r: Row, f: Family) -> Row {
    let m = udp_member(f);
    r.egress(CLIENT, &question(f)).becomes(Reason::NewFlow, &question(f).to(f.member(0), PORT)).by(m).events(m)
}

/// A router's error about a packet.
fn from_router(f: Family, p: &Packet, (kind, code, mtu): (u8, u8, u16)) -> Packet {
    Packet { src: f.ip(50, 1), ..p.error(kind, code, mtu) }
}

/// Errors about both sides' packets, from the other end and (to the client) from a router.
fn errors(mut r: Row, f: Family, [sent, there]: [&Packet; 2], [back, got]: [&Packet; 2]) -> Row {
    for (kind, code, mtu) in kinds(f) {
        r = r.ingress(CLIENT, &there.error(kind, code, mtu)).becomes(Reason::Related, &sent.error(kind, code, mtu));
        let router = |p| from_router(f, p, (kind, code, mtu));
        r = r.ingress(CLIENT, &router(there)).becomes(Reason::Related, &router(sent));
        r = r.egress(CLIENT, &got.error(kind, code, mtu)).becomes(Reason::Related, &back.error(kind, code, mtu));
    }
    r
}

/// Of a client that is policed, and of one that is not.
fn worlds(port: u16) -> [World; 2] {
    let mut policed = World::balanced(port);
    policed.police(CLIENT, SET);
    policed.set(SET, &[allow(1)], &[default(2, action::DENY)]);
    [World::balanced(port), policed]
}

#[test]
fn about_udp_and_tcp() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for port in [PORT, 80] {
            for w in worlds(port) {
                let (q, a) = (question(f), answer(f).from(f.member(0), port));
                let (there, got, m) = (q.clone().to(f.member(0), port), a.clone().from(f.vip(), 80), udp_member(f));
                let r = row(format!("{f:?}: errors about UDP, member port {port}"), w);
                let r = r.egress(CLIENT, &q).becomes(Reason::NewFlow, &there).by(m).events(m);
                rows.push(errors(r, f, [&q, &there], [&a, &got]).holds(1, 0).quota(1, 1));
            }
            for w in worlds(port) {
                let c = Connection::new(f, port);
                let r = c.half_open(row(format!("{f:?}: errors about TCP, member port {port}"), w));
                let r = errors(r, f, [&c.up(SYN), &c.up_there(SYN)], [&c.down(ACK), &c.down_there(ACK)]);
                rows.push(r.holds(0, 1));
            }
        }
    }
    run(rows);
}

/// RFC 792 asks for no more than eight bytes of the quoted L4 header; UDP over IPv4 may have no checksum; options may be in the way.
#[test]
fn quoted_otherwise() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let (kind, code, mtu) = kinds(f)[0];
        let c = Connection::new(f, 8080);
        let short = |p: Packet| {
            let mut e = p.error(kind, code, mtu);
            e.payload.truncate(e.payload.len() - 12);
            e
        };
        let r = c.syn(row(format!("{f:?}: eight bytes of TCP"), World::balanced(8080)));
        let r = r.ingress(CLIENT, &short(c.up_there(ACK))).becomes(Reason::Related, &short(c.up(ACK)));
        let r = r.egress(CLIENT, &short(c.down_there(ACK))).becomes(Reason::Related, &short(c.down(ACK)));
        rows.push(r.holds(0, 1));

        let bare = |mut p: Packet| {
            if let L4::Udp { checksum, .. } = &mut p.l4 {
                *checksum = false;
            }
            p
        };
        let r = asks(row(format!("{f:?}: UDP without a checksum"), World::balanced(PORT)), f);
        let [sent, there] = [question(f), question(f).to(f.member(0), PORT)].map(bare);
        let [back, got] = [answer(f), answer(f).from(f.vip(), 80)].map(bare);
        rows.push(errors(r, f, [&sent, &there], [&back, &got]).holds(1, 0).quota(1, 1));

        // The program of a policed member made its answer of a packet that no device had completed yet.
        let [sent, there] = [question(f), question(f).to(f.member(0), PORT)].map(|p| p.error(kind, code, mtu));
        let field = there.l4_at() + 8 + question(f).l4_at() - 14 + 6;
        let frame = completed_later(&there, field);
        let r = asks(row(format!("{f:?}: the quoted checksum is partial"), World::balanced(PORT)), f);
        let r = r.ingress(CLIENT, frame).completed(field - 6, 6).becomes_some(Reason::Related, move |out| {
            let same = |from: usize, to: usize| out[from..to] == sent.bytes()[from..to];
            let quoted = sent.l4_at() + 8;
            // All but both checksums, of which the caller looks at the error's.
            let done = same(0, sent.l4_at() + 2) && same(quoted, field) && same(field + 2, out.len());
            if done { Ok(()) } else { Err(format!("it quotes something else: {out:02x?}")) }
        });
        rows.push(r.holds(1, 0).quota(1, 1));
    }
    let f = Family::V4;
    let options = |p: Packet| Packet { options: vec![1, 1, 1, 0], ..p };
    let r = asks(row("options in the quoted header", World::balanced(PORT)), f);
    let [sent, there] = [question(f), question(f).to(f.member(0), PORT)].map(options);
    let [back, got] = [answer(f), answer(f).from(f.vip(), 80)].map(options);
    rows.push(errors(r, f, [&sent, &there], [&back, &got]).holds(1, 0).quota(1, 1));
    // The error has some itself.
    let r = asks(row("options in the error's header", World::balanced(PORT)), f);
    let e = options(there.error(3, 3, 0));
    let r = r.ingress(CLIENT, &e).becomes(Reason::Related, &options(sent.error(3, 3, 0)));
    rows.push(r.holds(1, 0).quota(1, 1));
    run(rows);
}

/// An error whose quoted UDP checksum, at `field`, is still to be completed, and whose own checksum counts on that.
fn completed_later(e: &Packet, field: usize) -> Frame {
    let mut seed = e.clone();
    let at = field - e.l4_at() - 8;
    // What the device will write there is the complement of the sum from the quoted L4 header on.
    let start = at - 6;
    seed.payload[at..at + 2].copy_from_slice(&[0x12, 0x34]);
    let mut whole = seed.clone();
    let sum = super::sums::plain(&whole.payload[start..]);
    whole.payload[at..at + 2].copy_from_slice(&sum);
    let (whole, mut bytes) = (whole.bytes(), seed.bytes());
    let own = e.l4_at() + 2;
    bytes[own..own + 2].copy_from_slice(&whole[own..own + 2]);
    Frame { bytes, partial: true, ..Frame::default() }
}

/// Two clients' ports, one member: the second one's port is translated, which is in the quoted packet too.
#[test]
fn about_a_translated_port() {
    for f in FAMILIES {
        let mut w = World::balanced(PORT);
        // The other VIP leads to the same member and port.
        let group = w.group(f.ip(9, 2), 17, 80);
        let member = w.member(group, f.member(0), PORT);
        let second = Packet::udp(f.client(), 5353, f.ip(9, 2), 80);
        let mut first = Frame::from(&question(f));
        let go = |direction, frame: &mut Frame| super::row::on_host(&w, direction, CLIENT, frame, false);
        let _ = go(vnet_common::verdict::Direction::Egress, &mut first);
        let mut there = Frame::from(&second);
        let _ = go(vnet_common::verdict::Direction::Egress, &mut there);
        let l4 = second.l4_at();
        let port = u16::from_be_bytes([there.bytes[l4], there.bytes[l4 + 1]]);
        assert!(port >= 49152, "translated: {port}");

        let sent = second.clone();
        let there = second.to(f.member(0), PORT).sport(port);
        let back = Packet::udp(f.member(0), PORT, f.client(), port).macs(CLIENT_MAC, HOST_MAC);
        let got = back.clone().from(f.ip(9, 2), 80).to(f.client(), 5353);
        let mut fresh = World::balanced(PORT);
        let group = fresh.group(f.ip(9, 2), 17, 80);
        assert_eq!(fresh.member(group, f.member(0), PORT), member);
        let r = asks(row(format!("{f:?}: errors about a translated port"), fresh), f);
        let r = r.egress(CLIENT, &sent).becomes(Reason::NewFlow, &there).by(member).events(member);
        run([errors(r, f, [&sent, &there], [&back, &got]).holds(2, 0).quota(1, 2)]);
    }
}

/// The client's errors go the way of its packets: over its bridge, or past the stack.
#[test]
fn the_way_to_the_member() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let (kind, code, mtu) = kinds(f)[0];
        let (c, m) = (Connection::new(f, 8080), tcp_member(f));
        let (told, there) = (c.down_there(ACK).error(kind, code, mtu), c.down(ACK).error(kind, code, mtu));
        let mac = [2, 0, 0, 0, 7, 7];
        let mut w = World::balanced(8080);
        w.at(CLIENT).segment = 5;
        w.edit(m).segment = 5;
        w.edit(m).mac = mac;
        let near = |p: Packet| p.macs(mac, CLIENT_MAC);
        let r = row(format!("{f:?}: over the bridge"), w);
        let r = r.egress(CLIENT, &c.up(SYN)).becomes(Reason::NewFlow, &near(c.up_there(SYN))).by(m);
        let r = r.event(m, vnet_common::lb::MemberEvent::NewFlow);
        rows.push(r.egress(CLIENT, &told).becomes(Reason::Related, &near(there.clone())).holds(0, 1));

        for (peer, policed) in [(false, false), (true, false), (true, true)] {
            let mut w = World::balanced(8080);
            w.redirected(m, NEAR, 2, peer);
            if policed {
                w.police(NEAR, SET);
                w.set(SET, &[allow(1)], &[deny(2)]);
            }
            let entered = peer && !policed;
            let past = |p: Packet| p.macs([2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 0xff, 2]).ttl(63);
            let r = row(format!("{f:?}: past the stack, peer: {peer}, policed: {policed}"), w);
            let r = r.egress(CLIENT, &c.up(SYN)).handed(NEAR, entered, Reason::NewFlow, &past(c.up_there(SYN))).by(m);
            let r = r.event(m, vnet_common::lb::MemberEvent::NewFlow);
            let r = if entered { r.also(NEAR, Ingress, Reason::NotOurs) } else { r };
            let r = r.egress(CLIENT, &told).handed(NEAR, entered, Reason::Related, &past(there.clone()));
            rows.push(if entered { r.also(NEAR, Ingress, Reason::NotOurs) } else { r }.holds(0, 1));
        }
    }
    assert!(rows.len() == 8 && endpoint_flags::PEER != 0);
    run(rows);
}

/// What is about no flow, or about one that was not judged since the policy changed, is left alone; so is a quoted later fragment, which has no ports.
#[test]
fn about_no_flow() {
    run(each(|f| {
        let (kind, code, mtu) = kinds(f)[0];
        let there = question(f).to(f.member(0), PORT);
        let error = |p: &Packet| p.error(kind, code, mtu);
        let other = error(&there.clone().sport(5354));
        let later = error(&Packet { fragment_offset: 8, ..there.clone() });
        let r = asks(row(format!("{f:?}: about no flow"), World::balanced(PORT)), f);
        let r = r.ingress(CLIENT, &other).passes(Reason::NotOurs);
        let r = if f == Family::V4 { r.ingress(CLIENT, &later).passes(Reason::NotOurs) } else { r };
        let r = r.ingress(CLIENT, &error(&there)).becomes(Reason::Related, &error(&question(f)));
        let r = r.egress(CLIENT, &error(&answer(f).from(f.vip(), 81))).dropped(Reason::RejectSilent);
        let r = r.change(World::bump).ingress(CLIENT, &error(&there)).passes(Reason::NotOurs);
        let r = r.egress(CLIENT, &question(f)).becomes(Reason::Established, &there).by(udp_member(f));
        let r = r.ingress(CLIENT, &error(&there)).becomes(Reason::Related, &error(&question(f)));
        r.holds(1, 0).quota(1, 1)
    }));
}

/// An error about a first fragment quotes its ports: a path that is too narrow is told to who sends fragments, too.
#[test]
fn about_first_fragments() {
    run(each(|f| {
        let (kind, code, mtu) = kinds(f)[0];
        let piece = |p: &Packet| super::guard::fragment(p.clone().with(&[1; 56]), 0, true);
        let (sent, there, m) = (piece(&question(f)), piece(&question(f).to(f.member(0), PORT)), udp_member(f));
        let r = row(format!("{f:?}: about a first fragment"), World::balanced(PORT));
        let r = r.egress(CLIENT, &sent).becomes(Reason::NewFlow, &there).by(m).events(m);
        let router = |p| from_router(f, p, (kind, code, mtu));
        let r = r.ingress(CLIENT, &router(&there)).becomes(Reason::Related, &router(&sent));
        r.holds(1, 0).quota(1, 1)
    }));
}
