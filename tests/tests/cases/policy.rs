//! Rules: who may open a flow to whom, and what goes on with it.

use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::event::kind;
use vnet_common::policy::{action, rule_flags};
use vnet_common::verdict::Reason;

use super::guard::fragment;
use super::judged_again::refusal;
use super::packet::{ACK, L4, Packet, RST, SYN, UDP};
use super::row::{Row, row, run};
use super::rules::{Rule, SET, allow, default, deny, reject, rule};
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, NEAR, World};

pub const FRIEND: u32 = 100;
pub const NETWORK: u32 = 101;

/// A policed client; a friend at `net 5, host 1`, everybody else of that network another identity.
pub fn world(f: Family, egress: &[Rule], ingress: &[Rule]) -> World {
    let mut w = World::new();
    w.police(CLIENT, SET);
    w.set(SET, egress, ingress);
    w.identity(f.ip(5, 1), FRIEND);
    w.network(f.ip(5, 0), if f == Family::V4 { 24 } else { 112 }, NETWORK);
    w
}

pub fn each<T>(f: impl Fn(Family) -> T) -> Vec<T> {
    FAMILIES.into_iter().map(f).collect()
}

#[test]
fn replies_of_what_is_allowed_pass() {
    run(each(|f| {
        let w = world(f, &[allow(1).peer(FRIEND).port(UDP, 53), default(2, action::DENY)], &[default(3, action::DENY)]);
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        let mut r = row(format!("{f:?}: a question is allowed, its answer passes"), w)
            .ingress(CLIENT, &ask.clone().back())
            .dropped(Reason::Denied)
            .decided(3)
            .egress(CLIENT, &ask)
            .passes(Reason::Allowed)
            .decided(1);
        for _ in 0..3 {
            r = r.ingress(CLIENT, &ask.clone().back()).passes(Reason::Established);
            r = r.egress(CLIENT, &ask).passes(Reason::Established);
        }
        r.egress(CLIENT, &Packet::udp(f.client(), 4000, f.ip(5, 2), 53))
            .dropped(Reason::Denied)
            .decided(2)
            .egress(CLIENT, &Packet::udp(f.client(), 4000, f.ip(5, 1), 54))
            .dropped(Reason::Denied)
            .decided(2)
            .quota(1, 1)
            .holds(1, 0)
    }));
}

#[test]
fn connections_from_and_to_the_endpoint() {
    run(each(|f| {
        let w = world(f, &[allow(1)], &[allow(2).peer(NETWORK).ports(6, 20, 30), default(3, action::REJECT)]);
        let out = Packet::tcp(f.client(), 4000, f.ip(5, 1), 80, SYN);
        let into = Packet::tcp(f.ip(5, 7), 5000, f.client(), 22, SYN);
        let refused = Packet::tcp(f.ip(5, 7), 5000, f.client(), 31, SYN);
        row(format!("{f:?}: opened from both sides"), w)
            .egress(CLIENT, &out)
            .passes(Reason::Allowed)
            .decided(1)
            .ingress(CLIENT, &out.clone().back().flags(SYN | ACK))
            .passes(Reason::HalfOpen)
            .egress(CLIENT, &out.clone().flags(ACK))
            .passes(Reason::Established)
            .ingress(CLIENT, &out.clone().back().flags(ACK))
            .passes(Reason::Established)
            .ingress(CLIENT, &into)
            .passes(Reason::Allowed)
            .decided(2)
            .egress(CLIENT, &into.clone().back().flags(SYN | ACK))
            .passes(Reason::HalfOpen)
            .ingress(CLIENT, &into.clone().flags(ACK))
            .passes(Reason::Established)
            .egress(CLIENT, &into.clone().back().flags(ACK))
            .passes(Reason::Established)
            .ingress(CLIENT, &refused)
            .bounced(Reason::Rejected, &refused.clone().back().flags(RST | ACK).numbers(0, 1001).answer().window(0))
            .decided(3)
            .quota(1, 2)
            .holds(2, 0)
    }));
}

#[test]
fn a_new_generation_cuts_what_is_denied_now() {
    run(each(|f| {
        let w = world(f, &[allow(1)], &[default(3, action::DENY)]);
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        row(format!("{f:?}: cut in both directions"), w)
            .egress(CLIENT, &ask)
            .passes(Reason::Allowed)
            .decided(1)
            .ingress(CLIENT, &ask.clone().back())
            .passes(Reason::Established)
            .change(|w| {
                w.set(SET + 1, &[deny(4).flags(rule_flags::QUARANTINE)], &[deny(5).flags(rule_flags::QUARANTINE)]);
                w.at(CLIENT).set = SET + 1;
                w.bump();
            })
            .ingress(CLIENT, &ask.clone().back())
            .dropped(Reason::Quarantined)
            .decided(4)
            .ingress(CLIENT, &ask.clone().back())
            .dropped(Reason::Quarantined)
            .decided(5)
            .egress(CLIENT, &ask)
            .dropped(Reason::Quarantined)
            .decided(4)
    }));
}

#[test]
fn tiers_staged_rules_and_events() {
    run(each(|f| {
        let rules = [
            rule(1, action::PASS).peer(FRIEND).next(2),
            deny(2).ports(UDP, 0, 65535),
            reject(3).port(UDP, 54).flags(rule_flags::STAGED),
            allow(4).flags(rule_flags::LOG),
        ];
        let w = world(f, &rules, &[default(9, action::DENY)]);
        w.maps.events.set(15);
        let ask = |to, port| Packet::udp(f.client(), 4000, f.ip(5, to), port);
        row(format!("{f:?}: pass, staged"), w)
            .egress(CLIENT, &ask(2, 53))
            .dropped(Reason::Denied)
            .decided(2)
            .egress(CLIENT, &ask(1, 53))
            .passes(Reason::Allowed)
            .decided(4)
            .egress(CLIENT, &ask(1, 54))
            .passes(Reason::Allowed)
            .decided(4)
            .staged(3)
            .quota(1, 2)
            .holds(2, 0)
    }));
}

#[test]
fn pings_and_errors_about_flows() {
    run(each(|f| {
        let (icmp, kind, answer, unreachable) = if f == Family::V4 { (1, 8, 0, 3) } else { (58, 128, 129, 1) };
        let egress = [allow(1).ports(icmp, kind << 8, kind << 8 | 255), allow(2).port(UDP, 53), default(3, action::DENY)];
        let w = world(f, &egress, &[default(4, action::DENY)]);
        let ping = Packet::ping(f.client(), f.ip(5, 1));
        let mut pong = ping.clone().back();
        if let L4::Icmp { kind, .. } = &mut pong.l4 {
            *kind = answer;
        }
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        let error = ask.error(unreachable, 1, 0);
        row(format!("{f:?}: echo, unreachable"), w)
            .ingress(CLIENT, &pong)
            .dropped(Reason::Denied)
            .decided(4)
            .egress(CLIENT, &ping)
            .passes(Reason::Allowed)
            .decided(1)
            .ingress(CLIENT, &pong)
            .passes(Reason::Established)
            .ingress(CLIENT, &error)
            .dropped(Reason::Denied)
            .decided(4)
            .egress(CLIENT, &ask)
            .passes(Reason::Allowed)
            .decided(2)
            .ingress(CLIENT, &error)
            .passes(Reason::Related)
            .quota(1, 2)
            .holds(2, 0)
    }));
}

/// What was decided is reported as it was asked for.
#[test]
fn events_of_rules() {
    use kind::{DROP, FLOW, LOG, STAGED};
    run(each(|f| {
        let egress = [
            deny(1).port(UDP, 1),
            allow(2).port(UDP, 2).flags(rule_flags::LOG),
            deny(3).port(UDP, 3).flags(rule_flags::LOG),
            deny(4).port(UDP, 4).flags(rule_flags::STAGED),
            default(5, action::ALLOW),
        ];
        let ask = |port| Packet::udp(f.client(), 4000, f.ip(5, 1), port);
        let mut rows = Vec::new();
        for wanted in [0, DROP, LOG, STAGED, FLOW, DROP | LOG | STAGED | FLOW] {
            let w = world(f, &egress, &[default(6, action::DENY)]);
            w.maps.events.set(wanted);
            let maybe = |r: Row, kind, rule, reason| if wanted & kind != 0 { r.reported(kind, rule, reason) } else { r };
            let mut r = row(format!("{f:?}: events {wanted:#x}"), w).no_reports();
            r = maybe(r.egress(CLIENT, &ask(1)).dropped(Reason::Denied).decided(1), DROP, 1, Reason::Denied);
            r = maybe(r.egress(CLIENT, &ask(2)).passes(Reason::Allowed).decided(2), LOG, 2, Reason::Allowed);
            r = maybe(r.egress(CLIENT, &ask(3)).dropped(Reason::Denied).decided(3), DROP, 3, Reason::Denied);
            r = r.egress(CLIENT, &ask(4)).passes(Reason::Allowed).decided(5).staged(4);
            r = maybe(maybe(r, STAGED, 4, Reason::Allowed), FLOW, 5, Reason::Allowed);
            r = r.ingress(CLIENT, &ask(9).back()).dropped(Reason::Denied).decided(6);
            r = maybe(r, DROP, 6, Reason::Denied);
            rows.push(r.egress(CLIENT, &ask(2)).passes(Reason::Established).holds(2, 0).quota(1, 2));
        }
        rows
    })
    .into_iter()
    .flatten());
}

/// What a bridge floods to an endpoint's port is not refused in the name of its real receiver; an endpoint with a checked MAC does not get it.
#[test]
fn flooded_frames() {
    run(each(|f| {
        let w = world(f, &[allow(1)], &[allow(2).port(UDP, 1), default(3, action::REJECT)]);
        let [allowed, refused] = [1, 2].map(|port| Packet::udp(f.ip(5, 1), 4000, f.client(), port));
        let stray = |p: &Packet| p.clone().macs([2, 0, 0, 0, 0, 9], HOST_MAC);
        let told = |r: Row| r.ingress(CLIENT, &refused).bounced(Reason::Rejected, &refusal(&refused)).decided(3);
        let silent = |r: Row, p: &Packet| r.ingress(CLIENT, p).dropped(Reason::RejectSilent).decided(3);
        let mut r = silent(told(row(format!("{f:?}: flooded"), w)), &stray(&refused));
        for byte in 0..6 {
            let mut p = refused.clone();
            p.dst_mac[byte] ^= 4;
            r = silent(r, &p);
        }
        r = r.ingress(CLIENT, &stray(&allowed)).passes(Reason::Allowed).decided(2);
        // Of who has but one MAC:
        r = told(r.change(|w| w.at(CLIENT).flags |= endpoint_flags::CHECK_MAC));
        for p in [&allowed, &refused] {
            r = r.ingress(CLIENT, &stray(&p.clone().sport(5000))).dropped(Reason::Flooded);
        }
        r = r.ingress(CLIENT, &stray(&allowed)).passes(Reason::Established);
        r = silent(r, &refused.clone().macs([0xff; 6], HOST_MAC));
        // Where its MAC is not known, nobody can tell.
        r = r.change(|w| (w.at(CLIENT).flags, w.at(CLIENT).mac) = (w.at(CLIENT).flags & !endpoint_flags::CHECK_MAC, [0; 6]));
        told(r).holds(1, 0).quota(1, 1)
    }));
}

/// Two endpoints that refuse each other's packets aloud: neither answers an error, nor a fragment.
#[test]
fn refusals_are_not_refused() {
    run(each(|f| {
        let mut w = world(f, &[allow(1)], &[default(2, action::REJECT)]);
        let mac = [2, 0, 0, 0, 0, 2];
        w.endpoint(NEAR, 2, mac);
        w.local(f.ip(5, 1), NEAR);
        w.police(NEAR, SET);
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53).macs(mac, CLIENT_MAC);
        let told = refusal(&ask);
        let silent = |r: Row| r.dropped(Reason::RejectSilent).decided(2);
        let mut r = row(format!("{f:?}: refused by both"), w);
        // Of a flow it knows of, an error passes.
        r = r.egress(CLIENT, &ask).passes(Reason::Allowed).decided(1);
        r = r.ingress(NEAR, &ask).bounced(Reason::Rejected, &told).decided(2);
        r = r.ingress(CLIENT, &told).passes(Reason::Related);
        // Of one it does not know of:
        let stray = refusal(&ask.clone().sport(4001));
        r = silent(r.ingress(CLIENT, &stray));
        let kinds: &[u8] = if f == Family::V4 { &[3, 4, 5, 11, 12] } else { &[0, 1, 2, 3, 4, 127] };
        for kind in kinds {
            r = silent(r.ingress(CLIENT, &ask.clone().sport(4001).error(*kind, 0, 0)));
        }
        for p in [
            ask.clone(),
            Packet { l4: L4::Tcp { sport: 4000, dport: 80, flags: SYN, seq: 1, ack: 0, options: vec![] }, ..ask.clone() },
        ] {
            for (at, more) in [(0, true), (8, true), (8, false)] {
                let piece = fragment(p.clone().with(&[0; 64]), at, more);
                r = silent(r.ingress(NEAR, &piece));
            }
        }
        r.holds(1, 0).quota(1, 1)
    }));
}

#[test]
fn who_is_not_policed_may_not_tunnel_either() {
    run(each(|f| {
        let mut w = World::new();
        w.maps.tunnel_ports = vec![4789u16.to_be_bytes()];
        let packet = Packet::udp(f.client(), 4000, f.ip(5, 1), 4789);
        row(format!("{f:?}: a tunnel's port, and another"), w)
            .egress(CLIENT, &packet)
            .dropped(Reason::TunnelForbidden)
            .egress(CLIENT, &packet.clone().to(f.ip(5, 1), 4790))
            .passes(Reason::NotOurs)
            .change(|w| w.at(CLIENT).flags |= endpoint_flags::TUNNELS)
            .egress(CLIENT, &packet)
            .passes(Reason::NotOurs)
    }));
}

/// Nor behind more extension headers than are followed.
#[test]
fn nor_behind_many_headers() {
    let f = Family::V6;
    let mut w = World::new();
    w.maps.tunnel_ports = vec![4789u16.to_be_bytes()];
    let behind =
        |n| Packet { extensions: vec![(60, vec![1, 4, 0, 0, 0, 0]); n], ..Packet::udp(f.client(), 4000, f.ip(5, 1), 4789) };
    run([row("behind extension headers", w)
        .egress(CLIENT, &behind(4))
        .dropped(Reason::TunnelForbidden)
        .egress(CLIENT, &behind(5))
        .dropped(Reason::Malformed)
        .ingress(CLIENT, &behind(5).back())
        .passes(Reason::Malformed)
        .change(|w| w.at(CLIENT).flags |= endpoint_flags::TUNNELS)
        .egress(CLIENT, &behind(5))
        .passes(Reason::Malformed)]);
}
