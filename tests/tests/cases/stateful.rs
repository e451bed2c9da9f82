//! Flows of policed endpoints from their first packet to their last: both sides at once, resets, ports that are used again, errors about
//! them, and what there is no room for.

use vnet_common::event::kind;
use vnet_common::flow::FLUSH_JIFFIES;
use vnet_common::policy::{action, rule_flags};
use vnet_common::verdict::Reason;

use super::guard::fragment;
use super::judged_again::answer_to;
use super::packet::{ACK, FIN, L4, Packet, RST, SYN, TCP, UDP};
use super::policy::{each, world};
use super::row::{Row, row, run};
use super::rules::{SET, allow, default, deny};
use super::udp::udp_member;
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, World};

/// Everything may be opened, by either side.
fn open_world(f: Family) -> World {
    world(f, &[allow(1)], &[allow(2)])
}

/// A connection that the client opens (`out`), or the peer.
#[derive(Clone, Copy)]
struct Tcp {
    f: Family,
    out: bool,
}

impl Tcp {
    fn there(self, flags: u8) -> Packet {
        let (a, b) = if self.out { (self.f.client(), self.f.ip(5, 1)) } else { (self.f.ip(5, 1), self.f.client()) };
        Packet::tcp(a, 4000, b, 22, flags)
    }
    fn sends(self, r: Row, flags: u8, reason: Reason) -> Row {
        let p = self.there(flags);
        if self.out { r.egress(CLIENT, &p) } else { r.ingress(CLIENT, &p) }.passes(reason)
    }
    fn gets(self, r: Row, flags: u8, reason: Reason) -> Row {
        let p = self.there(flags).back();
        if self.out { r.ingress(CLIENT, &p) } else { r.egress(CLIENT, &p) }.passes(reason)
    }
    fn rule(self) -> u32 {
        if self.out { 1 } else { 2 }
    }
    fn open(self, r: Row) -> Row {
        let r = self.sends(r, SYN, Reason::Allowed).decided(self.rule());
        let r = self.gets(r, SYN | ACK, Reason::HalfOpen);
        let r = self.sends(r, ACK, Reason::Established);
        let r = self.gets(self.sends(r, ACK, Reason::Established), ACK, Reason::Established);
        self.gets(self.sends(r, ACK, Reason::Established), ACK, Reason::Established)
    }
    fn row(self, name: &str) -> Row {
        row(format!("{:?}, out: {}: {name}", self.f, self.out), open_world(self.f))
    }
}

fn all() -> Vec<Tcp> {
    FAMILIES.into_iter().flat_map(|f| [true, false].map(|out| Tcp { f, out })).collect()
}

#[test]
fn connections_end_and_their_ports_are_used_again() {
    for t in all() {
        let closed = |name: &str| {
            let r = t.gets(t.sends(t.open(t.row(name)), FIN | ACK, Reason::Established), FIN | ACK, Reason::Established);
            t.sends(r, ACK, Reason::Established)
        };
        let reset = |name: &str| t.gets(t.open(t.row(name)), RST, Reason::Established);
        let denied = |r: Row| {
            r.change(|w| {
                // No new generation: only what is new is asked about.
                w.set(SET, &[deny(3)], &[deny(4)]);
            })
        };
        let no = |r: Row, there: bool, flags| {
            let p = if there { t.there(flags) } else { t.there(flags).back() };
            let egress = there == t.out;
            let r = if egress { r.egress(CLIENT, &p) } else { r.ingress(CLIENT, &p) };
            r.dropped(Reason::Denied).decided(if egress { 3 } else { 4 })
        };
        let again = |r: Row| t.sends(r, SYN, Reason::Allowed).decided(t.rule());
        run([
            closed("closed").holds(1, 0).quota(1, 1),
            again(closed("closed, opened again")).holds(0, 1),
            again(reset("reset, opened again")).holds(0, 1),
            // What was allowed is over: a SYN is asked about, whoever sends it. The rest is only what was still on its way.
            no(denied(closed("closed, and denied")), true, SYN),
            no(denied(closed("closed, the other side opens, and is denied")), false, SYN),
            no(denied(reset("reset, and denied")), true, SYN),
            no(denied(reset("reset, the other side opens, and is denied")), false, SYN),
            t.gets(denied(closed("closed, a late segment")), ACK, Reason::Established).holds(1, 0).quota(1, 1),
            // Of an open connection a SYN is a packet like others: the host at the other end knows what to do with it.
            t.sends(denied(t.open(t.row("a SYN amid the connection"))), SYN, Reason::Established).holds(1, 0).quota(1, 1),
            t.gets(denied(t.open(t.row("a SYN of the other side"))), SYN, Reason::Established).holds(1, 0).quota(1, 1),
            t.gets(t.sends(t.row("refused"), SYN, Reason::Allowed).decided(t.rule()), RST | ACK, Reason::HalfOpen).holds(0, 0),
            t.sends(t.sends(t.row("given up"), SYN, Reason::Allowed).decided(t.rule()), RST, Reason::HalfOpen).holds(0, 0),
            // A reset of no connection is asked about, and makes none.
            t.sends(t.row("a reset out of the blue"), RST, Reason::Allowed).decided(t.rule()).holds(0, 0),
            t.gets(t.sends(t.row("picked up in mid-stream"), ACK, Reason::Allowed).decided(t.rule()), ACK, Reason::HalfOpen)
                .holds(0, 1),
        ]);
    }
}

#[test]
fn both_sides_open_at_once() {
    run(all().into_iter().map(|t| {
        let r = t.sends(t.row("simultaneous open"), SYN, Reason::Allowed).decided(t.rule());
        let r = t.gets(r, SYN, Reason::HalfOpen);
        let r = t.sends(r, SYN | ACK, Reason::HalfOpen);
        let r = t.gets(r, SYN | ACK, Reason::HalfOpen);
        let mut r = t.sends(r, ACK, Reason::Established);
        for _ in 0..3 {
            r = t.sends(t.gets(r, ACK, Reason::Established), ACK, Reason::Established);
        }
        r.holds(1, 0).quota(1, 1)
    }));
}

/// What answers the opening of a connection that nobody saw is asked about as what the other side opened, and so is what follows.
#[test]
fn answers_to_what_nobody_saw() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let out = Packet::tcp(f.client(), 4000, f.ip(5, 1), 22, SYN);
        let into = Packet::tcp(f.ip(5, 1), 4000, f.client(), 22, SYN).macs(CLIENT_MAC, HOST_MAC);
        let answer = |p: &Packet| p.clone().back().flags(SYN | ACK);
        // Rules of the one side say no where those of the other are to be asked.
        let w = || world(f, &[allow(1).port(TCP, 22), deny(2)], &[allow(3).port(TCP, 22), deny(4)]);
        let r = row(format!("{f:?}: it was opened to the endpoint"), w());
        let r = r.egress(CLIENT, &answer(&into)).passes(Reason::Allowed).decided(3);
        let r = r.egress(CLIENT, &answer(&into)).passes(Reason::HalfOpen);
        let r = r.ingress(CLIENT, &into.clone().flags(ACK)).passes(Reason::Established);
        let r = r.change(|w| w.bump()).egress(CLIENT, &into.clone().back().flags(ACK)).passes(Reason::Established);
        rows.push(r.holds(1, 0).quota(1, 1));
        let r = row(format!("{f:?}: the endpoint opened it"), w());
        let r = r.ingress(CLIENT, &answer(&out)).passes(Reason::Allowed).decided(1);
        let r = r.egress(CLIENT, &out.clone().flags(ACK)).passes(Reason::Established);
        let r = r.change(|w| w.bump()).ingress(CLIENT, &out.clone().back().flags(ACK)).passes(Reason::Established);
        rows.push(r.holds(1, 0).quota(1, 1));
        let r = row(format!("{f:?}: it could not be opened"), w());
        let r = r.egress(CLIENT, &answer(&into.clone().to(f.client(), 4000))).dropped(Reason::Denied).decided(4);
        rows.push(r.ingress(CLIENT, &answer(&out.clone().to(f.ip(5, 1), 4000))).dropped(Reason::Denied).decided(2));
    }
    run(rows);
}

#[test]
fn what_makes_no_flow() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        let ping = Packet::ping(f.client(), f.ip(5, 1));
        let with_code = |p: &Packet, c| match p.l4 {
            L4::Icmp { kind, rest, .. } => Packet { l4: L4::Icmp { kind, code: c, rest }, ..p.clone() },
            _ => p.clone(),
        };
        let error = Packet::udp(f.ip(5, 1), 9, f.client(), 9).error(if f == Family::V4 { 3 } else { 1 }, 0, 0);
        for (name, p) in [
            ("the last fragment", fragment(ask.clone(), 8, false)),
            ("an answer to no ping", answer_to(&ping)),
            ("a ping with a code", with_code(&ping, 1)),
            ("an error about nothing", error),
        ] {
            let out = if p.src == f.client() { p.clone() } else { p.clone().back() };
            let mut r = row(format!("{f:?}: {name}"), open_world(f));
            for _ in 0..3 {
                r = r.egress(CLIENT, &out).passes(Reason::Allowed).decided(1);
                r = r.ingress(CLIENT, &out.clone().back()).passes(Reason::Allowed).decided(2);
            }
            rows.push(r.holds(0, 0));
        }
    }
    run(rows);
}

/// The first fragment is asked about as the packet is: a `deny` with a port is not passed in pieces. Later ones have no ports: rules without match.
#[test]
fn fragments_are_asked_about_as_far_as_they_say() {
    run(each(|f| {
        let w = world(
            f,
            &[allow(1).port(UDP, 53), deny(2).ports(UDP, 1, 65535), deny(5).port(TCP, 22), allow(3)],
            &[default(4, action::DENY)],
        );
        let ask = |port| Packet::udp(f.client(), 4000, f.ip(5, 1), port).with(&[0; 64]);
        let syn = Packet::tcp(f.client(), 4000, f.ip(5, 1), 22, SYN);
        // Of another datagram, whose first is yet to come.
        let other = |mut p: Packet| {
            p.id ^= 1;
            p.extensions.iter_mut().for_each(|(_, bytes)| bytes[5] ^= 1);
            p
        };
        row(format!("{f:?}: fragments"), w)
            .egress(CLIENT, &fragment(ask(53), 0, true))
            .passes(Reason::Allowed)
            .decided(1)
            .egress(CLIENT, &fragment(ask(54), 0, true))
            .dropped(Reason::Denied)
            .decided(2)
            .egress(CLIENT, &fragment(syn.clone(), 0, true))
            .dropped(Reason::Denied)
            .decided(5)
            .egress(CLIENT, &fragment(syn.to(f.ip(5, 1), 23), 0, true))
            .passes(Reason::Allowed)
            .decided(3)
            .egress(CLIENT, &ask(53))
            .passes(Reason::Established)
            .egress(CLIENT, &other(fragment(ask(54), 8, false)))
            .passes(Reason::Allowed)
            .decided(3)
            .holds(1, 1)
            .quota(1, 1)
    }));
}

/// Behind an IPv6 fragment header there may be further ones: a `deny` with a protocol is not passed behind them.
#[test]
fn first_fragments_with_further_headers() {
    let f = Family::V6;
    let rows = [0, 43, 60].map(|kind| {
        let w = world(f, &[deny(1).ports(TCP, 0, 65535), allow(2)], &[default(3, action::DENY)]);
        let mut p = fragment(Packet::tcp(f.client(), 4000, f.ip(5, 1), 22, SYN), 0, true);
        p.extensions.push((kind, vec![1, 4, 0, 0, 0, 0]));
        let r = row(format!("extension header {kind}"), w).egress(CLIENT, &p).dropped(Reason::Denied).decided(1);
        // One that ends before them (RFC 7112):
        let cut = Packet { l4: L4::Other(kind), payload: vec![TCP, 2, 1, 14, 0, 0, 0, 0], ..p.clone() };
        r.egress(CLIENT, &cut).dropped(Reason::Malformed)
    });
    run(rows);
}

/// The first fragment has a whole L4 header, or it is malformed (RFC 1858).
#[test]
fn first_fragments_that_are_too_short() {
    run(each(|f| {
        let w = world(f, &[allow(1)], &[allow(2)]);
        let short =
            |protocol, len| fragment(Packet::new(f.client(), f.ip(5, 1), L4::Other(protocol)).with(&vec![0x50; len]), 0, true);
        let icmp = if f == Family::V4 { 1 } else { 58 };
        let mut r = row(format!("{f:?}: too short"), w);
        for (protocol, whole) in [(TCP, 20), (UDP, 8), (icmp, 8)] {
            for len in [0, whole - 1] {
                r = r.egress(CLIENT, &short(protocol, len)).dropped(Reason::Malformed);
                r = r.ingress(CLIENT, &short(protocol, len).back()).dropped(Reason::Malformed);
            }
            r = r.egress(CLIENT, &short(protocol, whole)).passes(Reason::Allowed).decided(1);
        }
        r.holds(1, 1).quota(1, 1)
    }));
}

/// A later fragment of an ICMP packet is of no type that a rule can name: not of 0, an echo's answer.
#[test]
fn fragments_of_icmp() {
    run(each(|f| {
        let (icmp, request, answer) = if f == Family::V4 { (1, 8, 0) } else { (58, 128, 129) };
        let all = |kind: u16| (kind << 8, kind << 8 | 255);
        let ((a, b), (c, d)) = (all(answer), all(request));
        let w = world(
            f,
            &[allow(1).ports(icmp, a, b), allow(2).ports(icmp, c, d), default(3, action::DENY)],
            &[default(4, action::DENY)],
        );
        let ping = Packet::ping(f.client(), f.ip(5, 1)).with(&[7; 64]);
        let r = row(format!("{f:?}: fragments of ICMP"), w);
        let r = r.egress(CLIENT, &fragment(ping.clone(), 8, false)).dropped(Reason::Denied).decided(3);
        let r = r.egress(CLIENT, &fragment(ping, 0, true)).passes(Reason::Allowed).decided(2);
        r.holds(1, 0).quota(1, 1)
    }));
}

/// Types and codes of ICMP are what ports are elsewhere.
#[test]
fn icmp_by_type_and_code() {
    run(each(|f| {
        let (icmp, echo, other) = if f == Family::V4 { (1, 8u16, 13) } else { (58, 128, 139) };
        let rules =
            [allow(1).port(icmp, echo << 8), allow(2).ports(icmp, other << 8 | 3, other << 8 | 4), default(3, action::DENY)];
        let w = world(f, &rules, &[default(4, action::DENY)]);
        let of = |kind: u16, code| {
            let l4 = L4::Icmp { kind: kind as u8, code, rest: [1, 2, 3, 4] };
            Packet::new(f.client(), f.ip(5, 1), l4).with(b"x")
        };
        let mut r = row(format!("{f:?}: types and codes"), w);
        // The flow of the echo has no part in what has another code.
        for (kind, code, reason, rule) in [
            (echo, 0, Reason::Allowed, 1),
            (echo, 0, Reason::Established, 0),
            (echo, 1, Reason::Denied, 3),
            (other, 2, Reason::Denied, 3),
            (other, 3, Reason::Allowed, 2),
            (other, 3, Reason::Allowed, 2),
            (other, 4, Reason::Allowed, 2),
            (other, 5, Reason::Denied, 3),
        ] {
            r = r.egress(CLIENT, &of(kind, code));
            r = if reason == Reason::Denied { r.dropped(reason) } else { r.passes(reason) };
            r = if rule == 0 { r } else { r.decided(rule) };
        }
        r.holds(1, 0).quota(1, 1)
    }));
}

/// ICMP errors about the flows of an endpoint: from anyone on the way, about packets of either side.
#[test]
fn errors_about_flows() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let kinds: &[u8] = if f == Family::V4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
        let udp = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        let tcp = Packet::tcp(f.client(), 4000, f.ip(5, 1), 22, SYN);
        let ping = Packet::ping(f.client(), f.ip(5, 1));
        let sctp = Packet::new(f.client(), f.ip(5, 1), L4::Other(132)).with(&[7; 24]);
        for p in [udp.clone(), tcp, ping, sctp] {
            for out in [true, false] {
                let w = world(f, &[allow(1), default(3, action::DENY)], &[allow(2), default(4, action::DENY)]);
                let p = if out { p.clone() } else { p.clone().back() };
                let sends = |r: Row, p: &Packet, from_opener: bool| {
                    if out == from_opener { r.egress(CLIENT, p) } else { r.ingress(CLIENT, p) }
                };
                let r = row(format!("{f:?}, out: {out}: errors about {:?}", p.l4), w);
                let mut r = sends(r, &p, true).passes(Reason::Allowed).decided(if out { 1 } else { 2 });
                r = r.change(|w| {
                    w.set(SET, &[deny(5)], &[deny(6)]);
                });
                let back = answer_to(&p);
                for kind in kinds {
                    // About the opener's packet, from a router, to the opener; and about the answer.
                    let mut e = p.error(*kind, 1, 0);
                    e.src = f.outside();
                    r = sends(r, &e, false).passes(Reason::Related);
                    r = sends(r, &back.error(*kind, 1, 0), true).passes(Reason::Related);
                }
                // Of other types, to another host, about another flow, cut off in what it quotes: none of it is about this flow.
                let (no, other) = if out { (6, 5) } else { (5, 6) };
                let e = p.error(kinds[0], 1, 0);
                let redirect = p.error(if f == Family::V4 { 5 } else { 137 }, 1, 0);
                r = sends(r, &redirect, false).dropped(Reason::Denied).decided(no);
                let mut quoted_other = e.clone();
                let at = if f == Family::V4 { 19 } else { 39 };
                quoted_other.payload[at] ^= 1;
                r = sends(r, &quoted_other, false).dropped(Reason::Denied).decided(no);
                let mut quoted_source = e.clone();
                let at = if f == Family::V4 { 15 } else { 23 };
                quoted_source.payload[at] ^= 1;
                r = sends(r, &quoted_source, false).dropped(Reason::Denied).decided(no);
                let mut short = e.clone();
                short.payload.truncate(if f == Family::V4 { 20 } else { 40 });
                r = sends(r, &short, false).dropped(Reason::Denied).decided(no);
                r = sends(r, &back.error(5, 1, 0), true).dropped(Reason::Denied).decided(other);
                rows.push(if matches!(p.l4, L4::Tcp { .. }) { r.holds(0, 1) } else { r.holds(1, 0).quota(1, 1) });
            }
        }
    }
    run(rows);
}

/// A flow that was not judged since the policy changed vouches for nothing; once the packet that is quoted was, it does.
#[test]
fn errors_about_flows_of_another_generation() {
    run(each(|f| {
        let (kind, code) = if f == Family::V4 { (3, 4) } else { (2, 0) };
        let w = world(f, &[allow(1)], &[default(3, action::DENY)]);
        let big = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        let too_big = big.error(kind, code, 1280);
        row(format!("{f:?}: too big, after a change"), w)
            .egress(CLIENT, &big)
            .passes(Reason::Allowed)
            .decided(1)
            .ingress(CLIENT, &big.clone().back())
            .passes(Reason::Established)
            .change(World::bump)
            .ingress(CLIENT, &too_big)
            .dropped(Reason::Denied)
            .decided(3)
            .egress(CLIENT, &big)
            .passes(Reason::Established)
            .ingress(CLIENT, &too_big)
            .passes(Reason::Related)
            .change(|w| {
                w.set(SET, &[deny(4)], &[default(3, action::DENY)]);
                w.bump();
            })
            .egress(CLIENT, &big)
            .dropped(Reason::Denied)
            .decided(4)
            .ingress(CLIENT, &too_big)
            .dropped(Reason::Denied)
            .decided(3)
    }));
}

#[test]
fn quota_of_flows() {
    run(each(|f| {
        let mut w = open_world(f);
        w.maps.flow_quota = 2;
        w.maps.events.set(kind::DROP);
        let ask = |port| Packet::udp(f.client(), port, f.ip(5, 1), 53);
        let ping = Packet::ping(f.client(), f.ip(5, 1));
        let t = Tcp { f, out: false };
        let r = row(format!("{f:?}: quota"), w)
            .egress(CLIENT, &ask(1))
            .passes(Reason::Allowed)
            .decided(1)
            .ingress(CLIENT, &ask(2).back())
            .passes(Reason::Allowed)
            .decided(2)
            .egress(CLIENT, &ask(3))
            .dropped(Reason::FlowQuota)
            .decided(1)
            .reported(kind::DROP, 1, Reason::FlowQuota)
            .ingress(CLIENT, &ask(4).back())
            .dropped(Reason::FlowQuota)
            .decided(2)
            .reported(kind::DROP, 2, Reason::FlowQuota)
            .egress(CLIENT, &ping)
            .dropped(Reason::FlowQuota)
            .decided(1)
            .reported(kind::DROP, 1, Reason::FlowQuota);
        // A connection may be opened, but not established.
        let r = t.gets(t.sends(r, SYN, Reason::Allowed).decided(2), SYN | ACK, Reason::HalfOpen);
        let r = r.ingress(CLIENT, &t.there(ACK)).dropped(Reason::FlowQuota).reported(kind::DROP, 0, Reason::FlowQuota);
        // A flow that is cut makes room.
        let r = r.change(|w| {
            w.set(SET, &[deny(3).port(UDP, 53), allow(1)], &[allow(2)]);
            w.bump();
        });
        let r = r.egress(CLIENT, &ask(1)).dropped(Reason::Denied).decided(3).reported(kind::DROP, 3, Reason::Denied);
        let r = r.egress(CLIENT, &ping).passes(Reason::Allowed).decided(1);
        r.holds(2, 1).quota(1, 2)
    }));
}

/// A connection's oldest half-open ones make room, whoever opened them.
#[test]
fn half_open_connections_from_outside() {
    const HALF_OPEN: u16 = vnet_common::endpoint::HALF_OPEN_QUOTA as u16;
    run(each(|f| {
        let syn = |n: u16| Packet::tcp(f.ip(5, 1), 1000 + n, f.client(), 22, SYN);
        let mut r = row(format!("{f:?}: a flood"), open_world(f));
        for n in 0..HALF_OPEN + 2 {
            r = r.ingress(CLIENT, &syn(n)).passes(Reason::Allowed).decided(2);
        }
        r = r.egress(CLIENT, &syn(0).back().flags(SYN | ACK)).passes(Reason::Allowed).decided(2);
        r = r.egress(CLIENT, &syn(HALF_OPEN).back().flags(SYN | ACK)).passes(Reason::HalfOpen);
        r.holds(0, usize::from(HALF_OPEN))
    }));
}

/// Two flows of one endpoint whose packets look the same on one side cannot both be.
#[test]
fn collisions_of_plain_and_balanced_flows() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let m = udp_member(f);
        let world = || {
            let mut w = World::balanced(8080);
            w.police(CLIENT, SET);
            w.set(SET, &[allow(1)], &[allow(2)]);
            w
        };
        let (vip, direct) = (Packet::udp(f.client(), 4000, f.vip(), 80), Packet::udp(f.client(), 4000, f.member(0), 8080));
        let balanced = |r: Row| r.egress(CLIENT, &vip).becomes(Reason::NewFlow, &direct).by(m).events(m).decided(1);
        // First by the VIP, then directly from the same port: the answers would look alike.
        let r = balanced(row(format!("{f:?}: a plain flow collides"), world()));
        let r = r.egress(CLIENT, &direct).dropped(Reason::FlowCollision).decided(1);
        rows.push(
            r.ingress(CLIENT, &direct.clone().back()).becomes(Reason::Reply, &vip.clone().back()).by(m).holds(1, 0).quota(1, 1),
        );
        // The other way round another port of the client is used.
        let r = row(format!("{f:?}: a balanced flow gets another port"), world());
        let r = r.egress(CLIENT, &direct).passes(Reason::Allowed).decided(1).egress(CLIENT, &vip);
        let member = super::world::wide(f.member(0));
        let translated = move |b: &[u8]| {
            let (dst, l4) = if b[12] == 8 { (&b[30..34], 34) } else { (&b[38..54], 54) };
            let (sport, dport) = (u16::from_be_bytes([b[l4], b[l4 + 1]]), u16::from_be_bytes([b[l4 + 2], b[l4 + 3]]));
            let ok = dst == &member[..dst.len()] && dport == 8080 && sport >= 49152;
            if ok { Ok(()) } else { Err(format!("to {dst:?} {dport}, from {sport}")) }
        };
        let r = r.becomes_some(Reason::NewFlow, translated).by(m).events(m).decided(1);
        let r = r.ingress(CLIENT, &direct.clone().back()).passes(Reason::Established);
        rows.push(r.holds(2, 0).quota(1, 2));
        // An inbound flow has the tuple of the answers.
        let r = row(format!("{f:?}: an inbound flow"), world()).ingress(CLIENT, &direct.clone().back());
        let r = r.passes(Reason::Allowed).decided(2).egress(CLIENT, &direct).passes(Reason::Established);
        rows.push(r.holds(1, 0).quota(1, 1));
        // The entry of a dead flow makes room: the connection to the VIP is over.
        let c = super::tcp::Connection { sport: 4000, ..super::tcp::Connection::new(f, 8080) };
        let r = c.open(row(format!("{f:?}: the balanced connection is over"), world())).decided_by(1, c.up(SYN).bytes().len());
        let r = c.gets(c.sends(r, FIN | ACK, Reason::Established), FIN | ACK, Reason::Reply);
        rows.push(r.egress(CLIENT, &c.up_there(SYN)).passes(Reason::Allowed).decided(1).holds(0, 1));
    }
    run(rows);
}

#[test]
fn full_tables() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for capacity in [0, 1] {
            let mut w = open_world(f);
            w.maps.capacity = capacity;
            let r = row(format!("{f:?}: room for {capacity}"), w).host_only();
            let udp = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
            let r = r.egress(CLIENT, &udp).dropped(Reason::FlowTableFull).decided(1);
            let r = r.ingress(CLIENT, &udp.back()).dropped(Reason::FlowTableFull).decided(2);
            let syn = Packet::tcp(f.client(), 4000, f.ip(5, 1), 22, SYN);
            rows.push(r.egress(CLIENT, &syn).dropped(Reason::FlowTableFull).decided(1));
        }
    }
    run(rows);
}

/// Counts of a flow that is not balanced are written back like those of others.
#[test]
fn counts_are_written_back() {
    use super::row::on_host;
    use vnet_common::host::Frame;
    use vnet_common::verdict::Direction;
    let w = open_world(Family::V4);
    let p: Frame = (&Packet::udp(Family::V4.client(), 4000, Family::V4.ip(5, 1), 53)).into();
    for n in 0..10 {
        w.maps.now.set(w.maps.now.get() + if n == 8 { FLUSH_JIFFIES } else { 1 });
        let verdict = on_host(&w, Direction::Egress, CLIENT, &mut p.clone(), false);
        assert_eq!(verdict.reason(), if n == 0 { Reason::Allowed } else { Reason::Established });
    }
    let main = w.maps.flows4.main.borrow();
    let of = |direction| main.iter().find(|(k, _)| k.direction == direction as u8).map(|(_, e)| *e).expect("the flow");
    let (out, back) = (of(Direction::Egress), of(Direction::Ingress));
    assert_eq!((out.packets, out.bytes, out.rule), (9, 9 * p.bytes.len() as u64, 1));
    assert_eq!((back.packets, back.rule), (0, 1));
    assert!(w.maps.member_counters.borrow().is_empty(), "no member has a part in it");
}

/// A quarantine's rule that lets nothing new in keeps nothing that is old.
#[test]
fn new_flow_of_a_balanced_endpoint_that_is_denied_leaves_nothing() {
    run(each(|f| {
        let mut w = World::balanced(8080);
        w.police(CLIENT, SET);
        w.set(SET, &[deny(1).flags(rule_flags::QUARANTINE)], &[default(2, action::DENY)]);
        let r = row(format!("{f:?}: denied"), w);
        let udp = Packet::udp(f.client(), 4000, f.vip(), 80);
        let tcp = Packet::tcp(f.client(), 4000, f.vip(), 80, SYN);
        let r = r.egress(CLIENT, &udp).dropped(Reason::Quarantined).decided(1);
        r.egress(CLIENT, &tcp).dropped(Reason::Quarantined).decided(1).holds(0, 0)
    }));
}
