//! An endpoint in quarantine: cut off, let through to what helps, led to a service, copied, kept alive or not; and our own packets, which
//! are never held.

use std::net::IpAddr;

use vnet_common::endpoint::flags;
use vnet_common::event::kind;
use vnet_common::host::Frame;
use vnet_common::lb::MemberEvent::{Established, NewFlow};
use vnet_common::policy::{MARK_OURS, MARK_PROBE, action, rule_flags};
use vnet_common::verdict::Reason;

use super::answers::reset;
use super::guard::fragment;
use super::judged_again::{answer_to, refusal};
use super::neighbors::{frame, solicitation, source_option, who_has};
use super::packet::{ACK, L4, Packet, RST, SYN, TCP, UDP};
use super::policy::each;
use super::row::{Row, row, run};
use super::rules::{Rule, SET, allow, default, reject, rule};
use super::udp::udp_member;
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, STRANGER, World};

/// The set of the quarantine group.
const HELD: u32 = SET + 1;
/// The default of its egress side, and of its ingress side.
const OUT: u32 = 21;
const IN: u32 = 22;
const HELPER: u32 = 400;

fn held_by_default(id: u32, action: u8) -> Rule {
    default(id, action).flags(rule_flags::QUARANTINE)
}

/// A client that is free, and sets for it to be held by: `egress` and then nothing.
fn world(f: Family, egress: &[Rule], otherwise: Rule) -> World {
    let mut w = World::balanced(8080);
    w.police(CLIENT, SET);
    w.at(CLIENT).flags |= flags::CHECK_MAC | flags::CHECK_IP;
    w.set(SET, &[allow(1)], &[allow(2)]);
    w.set(HELD, &[egress, &[otherwise]].concat(), &[held_by_default(IN, action::DENY)]);
    w.identity(f.ip(6, 6), HELPER);
    w.maps.events.set(kind::DROP);
    w
}

/// Moves the client into quarantine. `alive`: ARP, neighbour discovery and DHCP are kept alive.
fn hold(alive: bool) -> impl Fn(&mut World) {
    move |w| {
        let row = w.at(CLIENT);
        row.set = HELD;
        row.flags |= flags::QUARANTINED;
        if !alive {
            row.flags &= !(flags::NEIGHBORS | flags::DHCP);
        }
        w.bump();
    }
}

fn release(w: &mut World) {
    let row = w.at(CLIENT);
    row.set = SET;
    row.flags = row.flags & !flags::QUARANTINED | flags::NEIGHBORS | flags::DHCP;
    w.bump();
}

/// Packets of all sorts from the client.
fn sorts(f: Family) -> Vec<Packet> {
    let (me, there) = (f.client(), f.outside());
    vec![
        Packet::udp(me, 4000, there, 53),
        Packet::tcp(me, 4000, there, 22, SYN),
        Packet::tcp(me, 4000, there, 22, ACK).with(b"data"),
        Packet::ping(me, there),
        Packet::new(me, there, L4::Other(47)).with(&[1; 20]),
        fragment(Packet::udp(me, 4000, there, 53), 8, false),
        Packet::udp(me, 4000, f.vip(), 80),
        Packet::tcp(me, 4000, f.vip(), 80, SYN),
        Packet::ping(me, f.vip()),
        Packet::udp(me, 4000, f.vip(), 81),
    ]
}

fn refused(r: Row, rule: u32) -> Row {
    r.dropped(Reason::Quarantined).decided(rule).reported(kind::DROP, rule, Reason::Quarantined)
}

#[test]
fn cut_off() {
    run(each(|f| {
        let w = world(f, &[], held_by_default(OUT, action::DENY));
        let mut r = row(format!("{f:?}: everything is dropped"), w).change(hold(true));
        for p in sorts(f) {
            r = refused(r.egress(CLIENT, &p), OUT);
            r = refused(r.ingress(CLIENT, &p.back()), IN);
        }
        r
    }));
}

/// Connections that were open when it was held, and new ones; all comes back with the release, but what was cut stays cut.
#[test]
fn held_and_released() {
    run(each(|f| {
        let up = Packet::tcp(f.client(), 4000, f.outside(), 22, ACK);
        let down = up.clone().back();
        let r = row(format!("{f:?}: an open connection"), world(f, &[], held_by_default(OUT, action::DENY))).no_reports();
        let r = r.egress(CLIENT, &up.clone().flags(SYN)).passes(Reason::Allowed).decided(1);
        let r = r.ingress(CLIENT, &down.clone().flags(SYN | ACK)).passes(Reason::HalfOpen);
        let mut r = r.egress(CLIENT, &up).passes(Reason::Established);
        for _ in 0..3 {
            r = r.ingress(CLIENT, &down).passes(Reason::Established).egress(CLIENT, &up).passes(Reason::Established);
        }
        let mut r = r.change(hold(true));
        for rule in [OUT, IN, IN] {
            // The first decides about the flow as it was opened.
            r = refused(r.ingress(CLIENT, &down), rule);
        }
        for _ in 0..3 {
            r = refused(r.egress(CLIENT, &up), OUT);
        }
        let r = r.change(release).egress(CLIENT, &up).passes(Reason::Allowed).decided(1);
        r.ingress(CLIENT, &down).passes(Reason::HalfOpen).holds(0, 1)
    }));
}

#[test]
fn only_what_helps() {
    run(each(|f| {
        let helper = [allow(11).peer(HELPER).port(TCP, 443).flags(rule_flags::QUARANTINE), allow(12).port(UDP, 53)];
        let w = world(f, &helper, held_by_default(OUT, action::REJECT));
        let (https, dns) = (Packet::tcp(f.client(), 4000, f.ip(6, 6), 443, SYN), Packet::udp(f.client(), 4000, f.outside(), 53));
        let r = row(format!("{f:?}: an allow-list"), w).no_reports().egress(CLIENT, &dns).passes(Reason::Allowed).decided(1);
        let r = r.ingress(CLIENT, &dns.clone().back()).passes(Reason::Established).change(hold(true));
        // A flow that is on the list goes on, by its new rule.
        let r = r.ingress(CLIENT, &dns.clone().back()).passes(Reason::Established);
        let r = r.egress(CLIENT, &dns).passes(Reason::Established);
        let r = r.egress(CLIENT, &https).passes(Reason::Allowed).decided(11);
        let r = r.ingress(CLIENT, &https.clone().back().flags(SYN | ACK)).passes(Reason::HalfOpen);
        let r = r.egress(CLIENT, &https.clone().flags(ACK)).passes(Reason::Established);
        let told = |r: Row, p: &Packet| {
            let r = r.egress(CLIENT, p).answered(Reason::Quarantined, &refusal(p)).decided(OUT);
            r.reported(kind::DROP, OUT, Reason::Quarantined)
        };
        let r = told(r, &https.clone().to(f.ip(6, 6), 80));
        let r = told(r, &https.clone().to(f.outside(), 443));
        let r = told(r, &Packet::udp(f.client(), 4000, f.ip(6, 6), 443));
        let r = told(r, &Packet::ping(f.client(), f.ip(6, 6)));
        let r = refused(r.ingress(CLIENT, &Packet::tcp(f.ip(6, 6), 443, f.client(), 5000, SYN)), IN);
        r.holds(2, 0).quota(1, 2)
    }));
}

/// Everything that TCP and UDP can carry is led to the service; the client sees its own destinations answer.
#[test]
fn led_to_a_service() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let world = || {
            let mut w = world(f, &[allow(11).port(UDP, 53)], held_by_default(OUT, action::DENY));
            let [tcp, udp] = [TCP, UDP].map(|protocol| {
                let group = w.group(f.ip(8, 1), protocol, 1);
                (group, w.member(group, f.ip(8, 9), 8443))
            });
            let led = |id, (group, _): (u32, u32)| {
                let mut r = rule(id, action::REDIRECT).flags(rule_flags::QUARANTINE);
                (r.row.group, r.row.serial) = (group, 500 + group);
                r
            };
            let egress = [
                allow(11).port(UDP, 53),
                led(12, tcp).ports(TCP, 0, 65535),
                led(13, udp).ports(UDP, 0, 65535),
                held_by_default(OUT, action::DENY),
            ];
            w.set(HELD, &egress, &[held_by_default(IN, action::DENY)]);
            (w, tcp.1, udp.1)
        };
        let (w, m, _) = world();
        // Mid-stream: a reset in the name of who it was talking to, and its next attempt goes to the service.
        let up = Packet::tcp(f.client(), 4000, f.outside(), 22, ACK);
        let down = up.clone().back();
        let r = row(format!("{f:?}: a connection"), w).no_reports();
        let r = r.egress(CLIENT, &up.clone().flags(SYN)).passes(Reason::Allowed).decided(1);
        let r = r.ingress(CLIENT, &down.clone().flags(SYN | ACK)).passes(Reason::HalfOpen);
        let r = r.egress(CLIENT, &up).passes(Reason::Established).change(hold(true));
        let r = r.ingress(CLIENT, &down).dropped(Reason::Quarantined).ingress(CLIENT, &down).dropped(Reason::Quarantined);
        let r = r.egress(CLIENT, &up).answered(Reason::Quarantined, &reset(&up));
        let r = refused(r.ingress(CLIENT, &down), IN);
        let there = |p: &Packet| p.clone().to(f.ip(8, 9), 8443);
        let syn = up.clone().flags(SYN);
        let r = r.egress(CLIENT, &syn).becomes(Reason::Steered, &there(&syn)).by(m).event(m, NewFlow).decided(12);
        let from = there(&up).back();
        let r = r.ingress(CLIENT, &from.clone().flags(SYN | ACK)).becomes(Reason::HalfOpen, &down.clone().flags(SYN | ACK)).by(m);
        let mut r = r.egress(CLIENT, &up).becomes(Reason::Established, &there(&up)).by(m).event(m, Established);
        for _ in 0..3 {
            r = r.ingress(CLIENT, &from).becomes(Reason::Reply, &down).by(m);
            r = r.egress(CLIENT, &up).becomes(Reason::Established, &there(&up)).by(m);
        }
        // Who it was talking to is not heard any more.
        let r = refused(r.ingress(CLIENT, &down), IN);
        // Released: told again, and back to where it wanted to.
        let r = r.change(release).egress(CLIENT, &up).answered(Reason::Quarantined, &reset(&up));
        let r = r.egress(CLIENT, &syn).passes(Reason::Allowed).decided(1);
        rows.push(r.holds(0, 1));

        // UDP moves there and back without a word.
        let (w, _, m) = world();
        let ask = Packet::udp(f.client(), 4000, f.outside(), 123);
        let r = row(format!("{f:?}: questions"), w).no_reports().egress(CLIENT, &ask).passes(Reason::Allowed).decided(1);
        let r = r.egress(CLIENT, &ask).passes(Reason::Established).change(hold(true));
        let mut r = r.egress(CLIENT, &ask).becomes(Reason::Steered, &there(&ask)).by(m).events(m).decided(13);
        for _ in 0..3 {
            r = r.ingress(CLIENT, &there(&ask).back()).becomes(Reason::Reply, &ask.clone().back()).by(m);
            r = r.egress(CLIENT, &ask).becomes(Reason::Established, &there(&ask)).by(m);
        }
        let r = refused(r.ingress(CLIENT, &ask.clone().back()), IN);
        let r = r.change(release).egress(CLIENT, &ask).passes(Reason::Allowed).decided(1);
        rows.push(r.ingress(CLIENT, &ask.clone().back()).passes(Reason::Established).holds(1, 0).quota(1, 1));

        // A VIP's flows are led away too, whatever the VIP would have done with them; the list comes first.
        let (w, tcp, udp) = world();
        let dns = Packet::udp(f.client(), 4000, f.outside(), 53);
        let mut r = row(format!("{f:?}: to VIPs, and what cannot be led"), w).no_reports().change(hold(true));
        for (n, port) in [(0, 80), (1, 81)] {
            let p = Packet::udp(f.client(), 4000 + n, f.vip(), port);
            r = r.egress(CLIENT, &p).becomes(Reason::Steered, &there(&p)).by(udp).events(udp).decided(13);
            let p = Packet::tcp(f.client(), 4000 + n, f.vip(), port, SYN);
            r = r.egress(CLIENT, &p).becomes(Reason::Steered, &there(&p)).by(tcp).event(tcp, NewFlow).decided(12);
        }
        r = r.egress(CLIENT, &dns).passes(Reason::Allowed).decided(11);
        r = refused(r.egress(CLIENT, &Packet::ping(f.client(), f.outside())), OUT);
        r = refused(r.egress(CLIENT, &Packet::ping(f.client(), f.vip())), OUT);
        r = r.egress(CLIENT, &Packet::tcp(f.client(), 9, f.outside(), 9, RST)).dropped(Reason::RejectSilent).decided(12);
        rows.push(r.holds(3, 2).quota(1, 3));
    }
    run(rows);
}

/// What a quarantine allows it does not lead elsewhere: not a VIP that is allowed, nor one whose member is.
#[test]
fn an_allowed_vip_is_not_led_elsewhere() {
    run(each(|f| f).into_iter().flat_map(|f| {
        [f.vip(), f.member(0)].map(|allowed| {
            let mut w = world(f, &[], held_by_default(OUT, action::DENY));
            let group = w.group(f.ip(8, 1), UDP, 1);
            w.member(group, f.ip(8, 9), 8443);
            w.identity(allowed, HELPER);
            let mut led = rule(12, action::REDIRECT).flags(rule_flags::QUARANTINE).ports(UDP, 0, 65535);
            (led.row.group, led.row.serial) = (group, 500 + group);
            let egress = [allow(11).peer(HELPER).flags(rule_flags::QUARANTINE), led, held_by_default(OUT, action::DENY)];
            w.set(HELD, &egress, &[held_by_default(IN, action::DENY)]);
            let (ask, m) = (Packet::udp(f.client(), 4000, f.vip(), 80), udp_member(f));
            let there = ask.clone().to(f.member(0), 8080);
            let r = row(format!("{f:?}: {allowed} is allowed"), w).no_reports().change(hold(true));
            let r = r.egress(CLIENT, &ask).becomes(Reason::NewFlow, &there).by(m).events(m).decided(11);
            let r = r.change(|w| w.bump()).egress(CLIENT, &ask).becomes(Reason::Established, &there).by(m);
            r.ingress(CLIENT, &there.back()).becomes(Reason::Reply, &ask.back()).by(m).holds(1, 0).quota(1, 1)
        })
    }));
}

/// The first fragment is led like a whole packet, and the others follow. One that comes before it has no ports to lead it by: the rule that would denies it.
#[test]
fn fragments_are_led_after_their_first() {
    run(each(|f| {
        let mut w = world(f, &[], held_by_default(OUT, action::DENY));
        let group = w.group(f.ip(8, 1), UDP, 1);
        w.member(group, f.ip(8, 9), 8443);
        let mut led = rule(12, action::REDIRECT).flags(rule_flags::QUARANTINE);
        (led.row.group, led.row.serial) = (group, 500 + group);
        w.set(HELD, &[led.clone()], &[led]);
        let (served, m) = (f.ip(8, 9), w.maps.members.len() as u32 - 1);
        let first = Packet::udp(f.client(), 4000, f.outside(), 53).with(&[1; 56]);
        let last = |p: &Packet| fragment(Packet { l4: L4::Other(UDP), ..p.clone() }.with(&[2; 64]), 8, false);
        let to_vip = Packet { dst: f.vip(), ..first.clone() };
        let r = row(format!("{f:?}: fragments"), w).change(hold(true));
        let r = refused(r.egress(CLIENT, &last(&first)), 12);
        let r = refused(r.egress(CLIENT, &last(&to_vip)), 12);
        let led = first.clone().to(served, 8443);
        let r = r.egress(CLIENT, &fragment(first.clone(), 0, true)).becomes(Reason::Steered, &fragment(led.clone(), 0, true));
        let r = r.by(m).events(m).decided(12);
        let r = r.egress(CLIENT, &last(&first)).becomes(Reason::Established, &last(&led)).by(m).holds(1, 0).quota(1, 1);
        // Nor can what answers elsewhere: the service would have been asked.
        let answer = Packet::tcp(f.outside(), 22, f.client(), 4000, SYN | ACK).macs(CLIENT_MAC, HOST_MAC);
        let r = refused(r.ingress(CLIENT, &answer), 12);
        // Nor can what others open.
        refused(r.ingress(CLIENT, &Packet::udp(f.outside(), 4000, f.client(), 53)), 12)
    }));
}

#[test]
fn kept_alive_or_not() {
    let v4 = Family::V4;
    let arp = || frame(who_has(v4.outside(), v4.client()));
    let discover = Packet::udp(IpAddr::from([0; 4]), 68, IpAddr::from([255; 4]), 67);
    let offer = Packet::udp(v4.outside(), 67, v4.client(), 68);
    let ask = solicitation(Family::V6.client(), Family::V6.outside(), &source_option());
    let of = |name: &str, alive| row(name, world(v4, &[], held_by_default(OUT, action::DENY))).change(hold(alive));
    let mut on = of("kept alive", true).no_reports();
    for f in [arp(), (&discover).into(), (&ask).into()] as [Frame; 3] {
        on = on.egress(CLIENT, f).passes(Reason::System);
    }
    for f in [arp(), (&offer).into(), (&ask).into()] as [Frame; 3] {
        on = on.ingress(CLIENT, f).passes(Reason::System);
    }
    let mut off = of("not kept alive", false);
    for f in [arp(), (&discover).into(), (&ask).into()] as [Frame; 3] {
        off = off.egress(CLIENT, f).dropped(Reason::Quarantined).reported(kind::DROP, 0, Reason::Quarantined);
    }
    for f in [arp(), (&ask).into()] as [Frame; 2] {
        off = off.ingress(CLIENT, f).dropped(Reason::Quarantined).reported(kind::DROP, 0, Reason::Quarantined);
    }
    off = refused(off.ingress(CLIENT, &offer), IN);
    run([on, off]);
}

/// A copy of everything goes to the service node as it came, whatever becomes of it; of what was made by us there is none.
#[test]
fn copied() {
    run(each(|f| {
        let mut w = world(f, &[allow(11).peer(HELPER)], held_by_default(OUT, action::DENY));
        w.set(HELD, &[allow(11).port(UDP, 80), held_by_default(OUT, action::DENY)], &[held_by_default(IN, action::DENY)]);
        w.at(CLIENT).mirror = STRANGER;
        let (vip, m) = (Packet::udp(f.client(), 4000, f.vip(), 80), udp_member(f));
        let there = vip.clone().to(f.member(0), 8080);
        let mut r = row(format!("{f:?}: copies"), w).no_reports().egress(CLIENT, &vip);
        r = r.becomes(Reason::NewFlow, &there).by(m).events(m).decided(1).copied(STRANGER);
        for _ in 0..3 {
            // Also on the short way; before anything is rewritten.
            r = r.ingress(CLIENT, &there.clone().back()).becomes(Reason::Reply, &vip.clone().back()).by(m).copied(STRANGER);
            r = r.egress(CLIENT, &vip).becomes(Reason::Established, &there).by(m).copied(STRANGER);
        }
        r = r.change(hold(true));
        r = r.egress(CLIENT, &vip).becomes(Reason::Established, &there).by(m).copied(STRANGER);
        let no = Packet::udp(f.client(), 4000, f.outside(), 53);
        r = refused(r.egress(CLIENT, &no), OUT).copied(STRANGER);
        r = refused(r.ingress(CLIENT, &no.clone().back()), IN).copied(STRANGER);
        let forged = no.clone().macs([2; 6], [4; 6]);
        r = r.egress(CLIENT, &forged).dropped(Reason::SpoofedMac).reported(kind::DROP, 0, Reason::SpoofedMac).copied(STRANGER);
        r = r.egress(CLIENT, frame(who_has(Family::V4.outside(), Family::V4.client()))).passes(Reason::System).copied(STRANGER);
        r = r.ingress(CLIENT, &fragment(no.clone().back(), 8, false)).mark(MARK_PROBE).passes(Reason::Probe);
        r = r.ingress(CLIENT, &no.clone().back()).mark(MARK_OURS).passes(Reason::Ours);
        // No longer copied; and not policed, nobody is.
        r = r.change(|w| w.at(CLIENT).mirror = 0);
        r = refused(r.egress(CLIENT, &no), OUT);
        r = r.change(|w| {
            w.at(CLIENT).mirror = STRANGER;
            w.at(CLIENT).flags &= !flags::POLICED;
        });
        r.egress(CLIENT, &no).passes(Reason::NotOurs).holds(1, 0).quota(1, 1)
    }));
    let mut w = world(Family::V4, &[], held_by_default(OUT, action::DENY));
    w.at(CLIENT).mirror = STRANGER;
    let udp = Packet::udp(Family::V4.client(), 4000, Family::V4.outside(), 53);
    run([row("a tag beside the packet", w).egress(CLIENT, &udp).vlan().dropped(Reason::Vlan).copied(STRANGER)]);
}

/// What the agent and the programs themselves send passes, whatever the rules say, and its mark ends there; other marks mean nothing to us.
#[test]
fn our_own_packets() {
    run(each(|f| {
        let w = world(f, &[], held_by_default(OUT, action::DENY));
        let syn = Packet::tcp(f.client(), 4000, f.outside(), 80, SYN).back();
        let mut r = row(format!("{f:?}: marks"), w).change(hold(false));
        for p in [syn.clone(), Packet::ping(f.client(), f.outside()).back(), fragment(syn.clone(), 8, false)] {
            r = r.ingress(CLIENT, &p).mark(MARK_OURS).passes(Reason::Ours);
            r = refused(r.ingress(CLIENT, &p).mark(MARK_PROBE + 2), IN);
            r = refused(r.ingress(CLIENT, &p).mark(1), IN);
            r = refused(r.ingress(CLIENT, &p), IN);
        }
        // What was bounced in its name comes in at its device.
        let answer = syn.back().flags(RST | ACK);
        r = r.egress(CLIENT, &answer).mark(MARK_OURS).passes(Reason::Ours);
        r = r.egress(CLIENT, &answer.clone().macs([2; 6], [4; 6])).mark(MARK_OURS).passes(Reason::Ours);
        r = refused(r.egress(CLIENT, &answer).mark(MARK_PROBE), OUT);
        refused(r.egress(CLIENT, &answer).mark(7), OUT)
    }));
    // Not policed, it is nobody's business.
    run(each(|f| {
        let mut w = world(f, &[], held_by_default(OUT, action::DENY));
        w.at(CLIENT).flags &= !flags::POLICED;
        let p = Packet::udp(f.outside(), 4000, f.client(), 80);
        let r = row(format!("{f:?}: marks, not policed"), w).ingress(CLIENT, &p).mark(MARK_PROBE).passes(Reason::NotOurs);
        r.egress(CLIENT, &p.back()).mark(MARK_OURS).passes(Reason::NotOurs)
    }));
}

/// The agent's probes reach an endpoint that nobody else does, and are answered; also over a change of the policy.
#[test]
fn probes() {
    run(each(|f| {
        let syn = Packet::tcp(f.client(), 4000, f.outside(), 80, SYN).back();
        let ping = Packet::ping(f.client(), f.outside()).back();
        let of =
            |name: &str| row(format!("{f:?}: {name}"), world(f, &[], held_by_default(OUT, action::DENY))).change(hold(false));
        let probe = |r: Row, p: &Packet| r.ingress(CLIENT, p).mark(MARK_PROBE).passes(Reason::Probe);
        let (answer, ack) = (syn.clone().back().flags(SYN | ACK), syn.clone().flags(ACK));

        let r = probe(of("a connection"), &syn).egress(CLIENT, &answer).passes(Reason::HalfOpen).change(World::bump);
        let r = probe(r, &ack).egress(CLIENT, &answer.clone().flags(ACK)).passes(Reason::Established).change(World::bump);
        let r = probe(r, &ack).egress(CLIENT, &answer.clone().flags(ACK)).passes(Reason::Established);
        // Only what is marked opens; what belongs to it passes by itself.
        let r = r.ingress(CLIENT, &ack).passes(Reason::Established);
        let r = refused(r.ingress(CLIENT, &syn.clone().sport(4001)), IN);
        let r = probe(r, &syn.clone().flags(RST));
        // Reset: the next probe may come from the same port.
        let r = probe(r, &syn).egress(CLIENT, &answer).passes(Reason::HalfOpen);
        let connection = r.holds(0, 1);

        let r = probe(of("a ping"), &ping).egress(CLIENT, &answer_to(&ping)).passes(Reason::Established).change(World::bump);
        let r = r.egress(CLIENT, &answer_to(&ping)).passes(Reason::Established);
        let r = refused(r.egress(CLIENT, &ping.clone().back()), OUT);
        let ping = r.holds(1, 0).quota(1, 1);

        let question = Packet::udp(f.client(), 4000, f.outside(), 53).back();
        let answered = question.clone().back();
        let r = probe(of("a datagram"), &question).egress(CLIENT, &answered).passes(Reason::Established).change(World::bump);
        let r = r.egress(CLIENT, &answered).passes(Reason::Established);
        let r = refused(r.egress(CLIENT, &Packet::udp(f.client(), 4001, f.outside(), 53)), OUT);
        let datagram = r.holds(1, 0).quota(1, 1);

        let r = of("no room").change(|w| w.maps.flow_quota = 0);
        let r = probe(probe(r, &syn), &question).egress(CLIENT, &answered).passes(Reason::Established);
        let r = r.egress(CLIENT, &answer).passes(Reason::HalfOpen);
        // Not promoted; its answers pass all the same.
        let r = probe(r, &ack).egress(CLIENT, &answer.clone().flags(ACK)).passes(Reason::HalfOpen);
        let crowded = r.holds(1, 1).quota(1, 1);

        let mut r = of("nothing that makes a flow");
        for p in [
            fragment(syn.clone(), 8, false),
            syn.clone().flags(RST),
            Packet::ping(f.client(), f.outside()).back().error(3, 1, 0).back(),
        ] {
            r = probe(r, &p);
        }
        let mut cut = syn.bytes();
        cut.truncate(cut.len() - 1);
        let r = r.ingress(CLIENT, frame(cut)).mark(MARK_PROBE).passes(Reason::Probe);
        let r =
            r.ingress(CLIENT, frame(who_has(Family::V4.outside(), Family::V4.client()))).mark(MARK_PROBE).passes(Reason::Probe);
        [connection, ping, datagram, crowded, r]
    })
    .into_iter()
    .flatten());
}

/// What is refused aloud to others is told in the endpoint's name; what must not be answered is not.
#[test]
fn refusals() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        for (flag, reason) in [(0, Reason::Rejected), (rule_flags::QUARANTINE, Reason::Quarantined)] {
            let world = || {
                let mut w = world(f, &[], held_by_default(OUT, action::DENY));
                w.set(SET, &[reject(1).flags(flag)], &[reject(2).flags(flag)]);
                w.maps.events.set(0);
                w
            };
            let (me, peer) = (f.client(), f.outside());
            let tcp = Packet::tcp(me, 4000, peer, 22, SYN);
            for p in [
                tcp.clone(),
                tcp.clone().flags(ACK).with(b"data"),
                tcp.clone().flags(SYN | ACK),
                Packet { padding: 6, ..tcp.clone() },
                Packet::udp(me, 4000, peer, 53),
                Packet::udp(me, 4000, peer, 53).with(&[5; 1400]),
                Packet { l4: L4::Udp { sport: 1, dport: 2, checksum: f == Family::V6 }, ..Packet::udp(me, 1, peer, 2) },
                Packet::ping(me, peer),
                Packet::new(me, peer, L4::Other(132)).with(&[7; 24]),
            ] {
                let back = p.clone().back();
                let r = row(format!("{f:?}, {reason:?}: {:?}", p.l4), world());
                let r = r.egress(CLIENT, &p).answered(reason, &refusal(&p)).decided(1);
                rows.push(r.ingress(CLIENT, &back).bounced(reason, &refusal(&back)).decided(2));
            }
            let to_all = Packet::udp(me, 4000, peer, 53).macs([0xff; 6], [2, 0, 0, 0, 0, 1]);
            for p in [tcp.clone().flags(RST), to_all] {
                let r = row(format!("{f:?}, {reason:?}: silent: {:?}", p.l4), world());
                let r = r.egress(CLIENT, &p).dropped(Reason::RejectSilent).decided(1);
                let back = Packet { dst_mac: [0xff; 6], ..p.back() };
                rows.push(r.ingress(CLIENT, &back).dropped(Reason::RejectSilent).decided(2));
            }
        }
    }
    run(rows);
}
