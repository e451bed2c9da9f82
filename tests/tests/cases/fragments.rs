//! Datagrams in fragments: the others go where the first went.

use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::flow::fragment::FragmentRow;
use vnet_common::lb::MemberEvent::{Established, NewFlow};
use vnet_common::lb::flags::REDIRECT;
use vnet_common::policy::action;
use vnet_common::verdict::Direction::Ingress;
use vnet_common::verdict::Reason;

use super::guard::fragment;
use super::packet::{ACK, L4, Packet, SYN, TCP, UDP};
use super::policy::each;
use super::row::{Row, row, run};
use super::rules::{SET, allow, default, deny};
use super::tcp::{Connection, tcp_member};
use super::udp::udp_member;
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, NEAR, World};

/// The port that the members serve at.
const PORT: u16 = 5300;

/// The three fragments of a datagram of which this is the start.
fn pieces(first: &Packet) -> [Packet; 3] {
    let protocol = if matches!(first.l4, L4::Udp { .. }) { UDP } else { TCP };
    let later = |byte, at, more| fragment(Packet { l4: L4::Other(protocol), ..first.clone() }.with(&[byte; 64]), at, more);
    [fragment(first.clone(), 0, true), later(2, 8, true), later(3, 16, false)]
}

fn question(f: Family) -> Packet {
    Packet::udp(f.client(), 5353, f.vip(), 80).with(&[1; 56])
}

fn answer(f: Family) -> Packet {
    Packet::udp(f.member(0), PORT, f.client(), 5353).with(&[4; 56])
}

/// The same datagram under another identification.
fn renumbered(mut p: Packet) -> Packet {
    p.id ^= 1;
    p.extensions.iter_mut().for_each(|(_, bytes)| bytes[5] ^= 1);
    p
}

/// A client that is policed, and one that is not.
fn worlds() -> [(&'static str, World); 2] {
    let mut policed = World::balanced(PORT);
    policed.police(CLIENT, SET);
    policed.set(SET, &[allow(1)], &[default(2, action::DENY)]);
    [("open", World::balanced(PORT)), ("policed", policed)]
}

fn asks(r: Row, f: Family, reason: Reason) -> Row {
    let m = udp_member(f);
    let [a, b, c] = pieces(&question(f));
    let [x, y, z] = pieces(&question(f).to(f.member(0), PORT));
    let r = r.egress(CLIENT, &a).becomes(reason, &x).by(m);
    let r = if reason == Reason::NewFlow { r.events(m) } else { r };
    // In any order, and again.
    let r = r.egress(CLIENT, &c).becomes(Reason::Established, &z).by(m);
    let r = r.egress(CLIENT, &b).becomes(Reason::Established, &y).by(m);
    r.egress(CLIENT, &c).becomes(Reason::Established, &z).by(m)
}

#[test]
fn questions_and_answers() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for (name, w) in worlds() {
            let m = udp_member(f);
            let r = asks(row(format!("{f:?}, {name}: fragments of a balanced datagram"), w), f, Reason::NewFlow);
            let mut r = asks(r, f, Reason::Established);
            for (piece, there) in pieces(&answer(f)).iter().zip(&pieces(&answer(f).from(f.vip(), 80))) {
                r = r.ingress(CLIENT, piece).becomes(Reason::Reply, there).by(m);
            }
            rows.push(r.holds(1, 0).quota(1, 1));
        }
    }
    run(rows);
}

/// What finds no first fragment is dropped and counted: it came before, or is of another datagram.
#[test]
fn before_the_first() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for (name, w) in worlds() {
            let policed = name == "policed";
            let [_, b, c] = pieces(&question(f));
            let drop = |r: Row, p: &Packet| r.egress(CLIENT, p).dropped(Reason::Fragment);
            let r = drop(row(format!("{f:?}, {name}: before the first"), w), &c);
            let r = drop(asks(r, f, Reason::NewFlow), &renumbered(b));
            let [_, late, _] = pieces(&answer(f));
            let r = r.ingress(CLIENT, &late);
            let r = if policed { r.dropped(Reason::Denied) } else { r.passes(Reason::NotOurs) };
            rows.push(r.holds(1, 0).quota(1, 1));
        }
    }
    run(rows);
}

/// A datagram's fragments are not waited for longer than the receiver waits.
#[test]
fn after_its_time() {
    run(FAMILIES.map(|f| {
        let [_, b, _] = pieces(&question(f));
        let to = |seconds| move |w: &mut World| w.maps.seconds.set(w.maps.seconds.get() + seconds);
        let r = asks(row(format!("{f:?}: after its time"), World::balanced(PORT)).host_only(), f, Reason::NewFlow);
        let there = &pieces(&question(f).to(f.member(0), PORT))[1];
        let time = if f == Family::V4 { 30 } else { 60 };
        let r = r.change(to(time)).egress(CLIENT, &b).becomes(Reason::Established, there).by(udp_member(f));
        r.change(to(1)).egress(CLIENT, &b).dropped(Reason::Fragment).holds(1, 0).quota(1, 1)
    }));
}

/// TCP in fragments, too, though hosts do not send it so. What would write over the header of the first is malformed (RFC 3128).
#[test]
fn connections() {
    run(each(|f| {
        let (c, m) = (Connection::new(f, PORT), tcp_member(f));
        let r = c.half_open(row(format!("{f:?}: a connection in fragments"), World::balanced(PORT)));
        let (sent, there) = (pieces(&c.up(ACK).with(&[7; 44])), pieces(&c.up_there(ACK).with(&[7; 44])));
        let r = r.egress(CLIENT, &sent[0]).becomes(Reason::Established, &there[0]).by(m).event(m, Established);
        let r = r.egress(CLIENT, &sent[2]).becomes(Reason::Established, &there[2]).by(m);
        let over = |at| fragment(Packet { l4: L4::Other(TCP), ..c.up(ACK) }.with(&[7; 64]), at, true);
        // IPv6 of who may not tunnel is not left to the stack.
        let malformed = |r: Row| if f == Family::V4 { r.passes(Reason::Malformed) } else { r.dropped(Reason::Malformed) };
        let r = malformed(r.egress(CLIENT, &over(1)));
        let r = malformed(r.egress(CLIENT, &over(2)));
        r.egress(CLIENT, &over(3))
            .becomes(Reason::Established, &fragment(there[1].clone().with(&[7; 64]), 3, true))
            .by(m)
            .holds(1, 0)
            .quota(1, 1)
    }));
}

/// All of a datagram goes by the stack, also where its flow goes past it.
#[test]
fn past_the_stack() {
    run(each(|f| {
        let mut w = World::balanced(PORT);
        let m = udp_member(f);
        w.redirected(m, NEAR, 2, true);
        w.set_flags(w.maps.members[m as usize].group, REDIRECT);
        asks(row(format!("{f:?}: delivered past the stack"), w), f, Reason::NewFlow).holds(1, 0).quota(1, 1)
    }));
}

/// Of a client that is its own member.
#[test]
fn hairpin() {
    run(each(|f| {
        let mut w = World::new();
        let group = w.group(f.vip(), UDP, 80);
        w.member(group, f.client(), PORT);
        let between = |out: bool, sport, dport| {
            let (src, dst) = if out { (f.client(), f.vip()) } else { (f.vip(), f.client()) };
            let (to, from) = if out { (HOST_MAC, CLIENT_MAC) } else { (CLIENT_MAC, HOST_MAC) };
            Packet::udp(src, sport, dst, dport).macs(to, from).with(&[5; 56])
        };
        let mut r = row(format!("{f:?}: hairpin"), w);
        let both = |p: &Packet, there: &Packet| pieces(p).into_iter().zip(pieces(there));
        for (i, (p, there)) in both(&between(true, 4000, 80), &between(false, 4000, PORT)).enumerate() {
            let reason = if i == 0 { Reason::NewFlow } else { Reason::Established };
            r = r.egress(CLIENT, &p).answered(reason, &there).by(0);
            r = if i == 0 { r.events(0) } else { r };
        }
        for (p, there) in both(&between(true, PORT, 4000), &between(false, 80, 4000)) {
            let (p, there) = (renumbered(p), renumbered(there));
            r = r.egress(CLIENT, &p).answered(Reason::Reply, &there).by_as(0, Ingress);
        }
        r.holds(1, 0).quota(1, 1)
    }));
}

/// Where a rule with a port lets the first fragment pass, the others follow; not those of a first one that may not pass, nor after the rules changed.
#[test]
fn of_allowed_flows() {
    run(each(|f| {
        let mut w = World::new();
        w.police(CLIENT, SET);
        w.set(SET, &[allow(1).port(UDP, 53), default(2, action::DENY)], &[deny(3).ports(UDP, 1, 9), default(4, action::DENY)]);
        let ask = |port| Packet::udp(f.client(), 4000, f.ip(5, 1), port).with(&[1; 56]);
        let ([a, b, c], [x, y, _]) = (pieces(&ask(53)), pieces(&ask(54)));
        let [d, e, _] = pieces(&ask(53).back());
        row(format!("{f:?}: fragments of an allowed flow"), w)
            .egress(CLIENT, &b)
            .dropped(Reason::Denied)
            .decided(2)
            .egress(CLIENT, &a)
            .passes(Reason::Allowed)
            .decided(1)
            .egress(CLIENT, &b)
            .passes(Reason::Established)
            .ingress(CLIENT, &e)
            .dropped(Reason::Denied)
            .decided(4)
            .ingress(CLIENT, &d)
            .passes(Reason::Established)
            .ingress(CLIENT, &e)
            .passes(Reason::Established)
            .egress(CLIENT, &renumbered(x))
            .dropped(Reason::Denied)
            .decided(2)
            .egress(CLIENT, &renumbered(y))
            .dropped(Reason::Denied)
            .decided(2)
            .change(World::bump)
            .egress(CLIENT, &c)
            .dropped(Reason::Denied)
            .decided(2)
            .holds(1, 0)
            .quota(1, 1)
    }));
}

/// An echo request larger than the MTU, and its answer.
#[test]
fn large_pings() {
    run(each(|f| {
        let mut w = World::new();
        w.police(CLIENT, SET);
        let (icmp, kind) = if f == Family::V4 { (1, 8) } else { (58, 128) };
        w.set(SET, &[allow(1).port(icmp, kind << 8), default(2, action::DENY)], &[default(3, action::DENY)]);
        let ping = Packet::ping(f.client(), f.ip(5, 1)).with(&[7; 56]);
        let rest = |p: &Packet| fragment(Packet { l4: L4::Other(icmp), ..p.clone() }.with(&[8; 64]), 8, false);
        let pong = super::judged_again::answer_to(&ping);
        row(format!("{f:?}: a large ping"), w)
            .egress(CLIENT, &fragment(ping.clone(), 0, true))
            .passes(Reason::Allowed)
            .decided(1)
            .egress(CLIENT, &rest(&ping))
            .passes(Reason::Established)
            .ingress(CLIENT, &fragment(pong.clone(), 0, true))
            .passes(Reason::Established)
            .ingress(CLIENT, &rest(&pong))
            .passes(Reason::Established)
            .holds(1, 0)
            .quota(1, 1)
    }));
}

/// What is noted names the flow's treatment, under the whole identification: IPv6 has 32 bits of it.
#[test]
fn what_is_noted() {
    run(FAMILIES.map(|f| {
        let r = row(format!("{f:?}: noted"), World::balanced(PORT)).host_only();
        let r = r.egress(CLIENT, &pieces(&question(f))[0]);
        let r = r
            .becomes(Reason::NewFlow, &pieces(&question(f).to(f.member(0), PORT))[0])
            .by(udp_member(f))
            .event(udp_member(f), NewFlow);
        r.event(udp_member(f), Established).holds(1, 0).quota(1, 1).finally(move |w| {
            let notes: Vec<_> = w.maps.fragments.borrow().iter().map(|(k, r)| (k.id, k.protocol, *r)).collect();
            let [(id, 17, FragmentRow { member, flags, .. })] = notes[..] else { return Err(format!("{notes:?}")) };
            let expected = (if f == Family::V4 { 0x1234 } else { 7 }, udp_member(f), vnet_common::flow::flags::DNAT);
            if (id, member, flags) == expected { Ok(()) } else { Err(format!("{notes:?}")) }
        })
    }));
}

/// Where a shared segment is between client and member, all fragments are addressed to the member.
#[test]
fn on_a_segment() {
    run(each(|f| {
        let mut w = World::balanced(PORT);
        let m = udp_member(f);
        w.at(CLIENT).segment = 77;
        let row_of = w.edit(m);
        (row_of.segment, row_of.mac) = (77, [2, 9, 9, 9, 9, 9]);
        let mut r = row(format!("{f:?}: on a segment"), w);
        for (i, (p, there)) in pieces(&question(f)).iter().zip(pieces(&question(f).to(f.member(0), PORT))).enumerate() {
            let there = there.macs([2, 9, 9, 9, 9, 9], CLIENT_MAC);
            let reason = if i == 0 { Reason::NewFlow } else { Reason::Established };
            r = r.egress(CLIENT, p).becomes(reason, &there).by(m);
            r = if i == 0 { r.events(m) } else { r };
        }
        r.holds(1, 0).quota(1, 1)
    }));
}

/// A tunnel's first fragment is stopped, so nothing is noted, and the others find nothing.
#[test]
fn of_tunnels() {
    run(each(|f| {
        let mut w = World::balanced(PORT);
        w.maps.tunnel_ports = vec![80u16.to_be_bytes()];
        w.at(CLIENT).flags &= !endpoint_flags::TUNNELS;
        let [a, b, _] = pieces(&question(f));
        let r = row(format!("{f:?}: a tunnel in fragments"), w).egress(CLIENT, &a).dropped(Reason::TunnelForbidden);
        r.egress(CLIENT, &b).dropped(Reason::Fragment)
    }));
}

/// Between fragment header and L4 the first may have further headers, which the others do not name: they could write over what was judged.
#[test]
fn behind_further_headers() {
    let f = Family::V6;
    let mut w = World::new();
    w.police(CLIENT, SET);
    w.set(SET, &[allow(1).port(TCP, 443), default(2, action::DENY)], &[default(3, action::DENY)]);
    let mut first = fragment(Packet::tcp(f.client(), 4000, f.ip(5, 1), 443, SYN), 0, true);
    first.extensions.push((60, vec![1, 4, 0, 0, 0, 0]));
    let over = fragment(
        Packet { l4: L4::Other(TCP), ..Packet::tcp(f.client(), 4000, f.ip(5, 1), 443, SYN) }.with(&[0x16; 64]),
        3,
        false,
    );
    let r = row("options before TCP", w).egress(CLIENT, &first).passes(Reason::Allowed).decided(1);
    run([r.egress(CLIENT, &over).dropped(Reason::Denied).decided(2).holds(0, 1)]);
}

/// A change of what is balanced ends no datagram that is under way, unless its member is gone; a change of rules ends it.
#[test]
fn after_a_change() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for (name, w) in worlds() {
            let ([a, b, c], there) = (pieces(&question(f)), pieces(&question(f).to(f.member(0), PORT)));
            let m = udp_member(f);
            let mut r = asks(row(format!("{f:?}, {name}: after a change"), w), f, Reason::NewFlow).change(World::bump);
            if name == "policed" {
                r = r.egress(CLIENT, &b).dropped(Reason::Fragment);
                r = r.egress(CLIENT, &a).becomes(Reason::Established, &there[0]).by(m);
            }
            r = r.egress(CLIENT, &b).becomes(Reason::Established, &there[1]).by(m);
            let gone = move |w: &mut World| {
                w.edit(m).serial += 1;
                w.bump();
            };
            rows.push(r.change(gone).egress(CLIENT, &c).dropped(Reason::Fragment).holds(1, 0).quota(1, 1));
        }
    }
    run(rows);
}
