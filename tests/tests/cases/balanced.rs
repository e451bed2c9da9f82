//! Rules and the load balancer together: the VIP and the member each have their say, and delivery past the stack to and from policed
//! endpoints is judged at their own devices.

use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::event::kind;
use vnet_common::lb::MemberEvent::{Established, NewFlow};
use vnet_common::lb::{flags as group_flags, state};
use vnet_common::policy::{action, rule_flags};
use vnet_common::verdict::Direction::Ingress;
use vnet_common::verdict::Reason;

use super::answers::{closed, reset};
use super::guard::fragment;
use super::judged_again::refusal;
use super::packet::{ACK, Packet, SYN};
use super::policy::each;
use super::row::{Row, row, run};
use super::rules::{Rule, SET, allow, default, deny, reject};
use super::tcp::{Connection, tcp_member};
use super::udp::udp_member;
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, Family, HOST_MAC, NEAR, World};

const VIP: u32 = 300;
const MEMBER: u32 = 301;

fn world(f: Family, egress: &[Rule]) -> World {
    let mut w = World::balanced(8080);
    w.police(CLIENT, SET);
    w.set(SET, egress, &[default(90, action::DENY)]);
    w.identity(f.vip(), VIP);
    w.identity(f.member(0), MEMBER);
    w
}

/// What the rules say of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Allow,
    Deny,
    Reject,
    Nothing,
}
use Says::{Allow, Deny, Nothing, Reject};

fn rule_for(says: Says, id: u32, peer: u32, port: u16) -> Option<Rule> {
    let r = match says {
        Allow => allow(id),
        Deny => deny(id),
        Reject => reject(id),
        Nothing => return None,
    };
    Some(r.peer(peer).port(6, port).port(17, port))
}

/// A rule that denies either decides; else one that allows either; else the default. The order of the rules has no part in it.
#[test]
fn a_vip_and_its_member() {
    let mut rows = Vec::new();
    let all = [Allow, Deny, Reject, Nothing];
    let combinations = all.into_iter().flat_map(|vip| all.into_iter().flat_map(move |m| [true, false].map(|yes| (vip, m, yes))));
    for (vip, member, yes) in combinations {
        for f in FAMILIES {
            let by_default = default(3, if yes { action::ALLOW } else { action::DENY });
            let rules: Vec<Rule> = rule_for(vip, 1, VIP, 80).into_iter().chain(rule_for(member, 2, MEMBER, 8080)).collect();
            let reversed: Vec<Rule> = rules.iter().rev().cloned().collect();
            for rules in [rules, reversed] {
                let rules: Vec<Rule> = rules.into_iter().chain([by_default.clone()]).collect();
                // Of two that deny, the VIP's is named.
                let (says, id) = match (vip, member) {
                    (Deny | Reject, _) => (vip, 1),
                    (_, Deny | Reject) => (member, 2),
                    (Allow, _) => (Allow, 1),
                    (_, Allow) => (Allow, 2),
                    _ => (if yes { Allow } else { Deny }, 3),
                };
                let name = format!("{f:?}: VIP {vip:?}, member {member:?}, default {yes}");
                rows.push(udp(row(format!("{name}, UDP"), world(f, &rules)), f, says, id));
                rows.push(tcp(row(format!("{name}, TCP"), world(f, &rules)), f, says, id));
            }
        }
    }
    run(rows);
}

fn udp(r: Row, f: Family, says: Says, id: u32) -> Row {
    let (p, m) = (Packet::udp(f.client(), 5353, f.vip(), 80), udp_member(f));
    let r = r.egress(CLIENT, &p).decided(id);
    match says {
        Allow => r.becomes(Reason::NewFlow, &p.to(f.member(0), 8080)).by(m).events(m).holds(1, 0).quota(1, 1),
        Reject => r.answered(Reason::Rejected, &refusal(&p)),
        _ => r.dropped(Reason::Denied),
    }
}

fn tcp(r: Row, f: Family, says: Says, id: u32) -> Row {
    let c = Connection::new(f, 8080);
    match says {
        Allow => c.talk(c.open(r)).decided_by(id, c.up(SYN).bytes().len()).holds(1, 0).quota(1, 1),
        Reject => r.egress(CLIENT, &c.up(SYN)).answered(Reason::Rejected, &reset(&c.up(SYN))).decided(id),
        _ => r.egress(CLIENT, &c.up(SYN)).dropped(Reason::Denied).decided(id),
    }
}

/// What is staged for either is counted.
#[test]
fn staged_for_the_vip_or_its_member() {
    let staged = |r: Rule| r.flags(rule_flags::STAGED);
    run(each(|f| {
        let p = Packet::udp(f.client(), 5353, f.vip(), 80);
        let (m, there) = (udp_member(f), p.clone().to(f.member(0), 8080));
        let passes = |name: &str, rules: &[Rule], id, counted: u32| {
            let w = world(f, rules);
            w.maps.events.set(kind::STAGED);
            let r = row(format!("{f:?}: staged for {name}"), w).egress(CLIENT, &p).becomes(Reason::NewFlow, &there);
            let r = r.by(m).events(m).decided(id).staged(counted).reported(kind::STAGED, counted, Reason::Allowed);
            r.holds(1, 0).quota(1, 1)
        };
        [
            passes("the VIP", &[staged(deny(1)).peer(VIP), allow(2).peer(VIP), default(3, action::DENY)], 2, 1),
            passes(
                "the VIP, the member decides",
                &[staged(deny(1)).peer(VIP), allow(2).peer(MEMBER), default(3, action::DENY)],
                2,
                1,
            ),
            passes("the member", &[staged(deny(1)).peer(MEMBER), allow(2).peer(VIP), default(3, action::DENY)], 2, 1),
            passes("the member, by default", &[staged(deny(1)).peer(MEMBER), default(3, action::ALLOW)], 3, 1),
        ]
    })
    .into_iter()
    .flatten());
}

/// What a VIP answers itself is asked about as the VIP.
#[test]
fn what_a_vip_answers() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let ping = Packet::ping(f.client(), f.vip());
        let pong = super::judged_again::answer_to(&ping).ttl(64);
        let other_port = Packet::udp(f.client(), 4000, f.vip(), 81);
        let syn = Packet::tcp(f.client(), 4000, f.vip(), 81, SYN);
        let piece = fragment(Packet::udp(f.client(), 4000, f.vip(), 80), 8, true);
        let of = |rules: &[Rule]| row(format!("{f:?}: {rules:?}"), world(f, rules));
        let yes = of(&[allow(1).peer(VIP), default(2, action::DENY)]);
        rows.push(
            yes.egress(CLIENT, &ping)
                .answered(Reason::VipEcho, &pong)
                .decided(1)
                .egress(CLIENT, &other_port)
                .answered(Reason::VipPortClosed, &closed(&other_port))
                .decided(1)
                .egress(CLIENT, &syn)
                .answered(Reason::VipPortClosed, &reset(&syn))
                .decided(1)
                .egress(CLIENT, &piece)
                .dropped(Reason::Fragment)
                .decided(1),
        );
        let no = of(&[deny(1).peer(VIP), default(2, action::ALLOW)]);
        let no = [&ping, &other_port, &syn, &piece]
            .into_iter()
            .fold(no, |r, p| r.egress(CLIENT, p).dropped(Reason::Denied).decided(1));
        rows.push(no);
        let mut told = of(&[reject(1).peer(VIP), default(2, action::ALLOW)]);
        for p in [&ping, &other_port, &syn] {
            told = told.egress(CLIENT, p).answered(Reason::Rejected, &refusal(p)).decided(1);
        }
        rows.push(told);
        // A group without a member tells those who may ask.
        let empty = |rules: &[Rule]| {
            let mut w = world(f, rules);
            w.set_state(tcp_member(f), state::DRAINING);
            w.set_state(udp_member(f), state::DRAINING);
            row(format!("{f:?}: no member, {rules:?}"), w)
        };
        let (udp, syn) = (other_port.clone().to(f.vip(), 80), syn.clone().to(f.vip(), 80));
        rows.push(
            empty(&[allow(1)])
                .egress(CLIENT, &udp)
                .answered(Reason::NoMember, &closed(&udp))
                .decided(1)
                .egress(CLIENT, &syn)
                .answered(Reason::NoMember, &reset(&syn))
                .decided(1),
        );
        rows.push(
            empty(&[deny(1)])
                .egress(CLIENT, &udp)
                .dropped(Reason::Denied)
                .decided(1)
                .egress(CLIENT, &syn)
                .dropped(Reason::Denied)
                .decided(1),
        );
        rows.push(empty(&[reject(1)]).egress(CLIENT, &syn).answered(Reason::Rejected, &reset(&syn)).decided(1));
    }
    run(rows);
}

const MEMBER_SLOT: u32 = 2;
const MEMBER_MAC: [u8; 6] = [2, 0, 0, 0, 1, MEMBER_SLOT as u8];
const MEMBER_HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0xff, MEMBER_SLOT as u8];
const MEMBER_SET: u32 = SET + 1;

/// Client and member are endpoints of this host, with delivery past the stack; which of them is policed, and can be entered.
#[derive(Clone, Copy, Debug)]
struct Local {
    f: Family,
    client: bool,
    member: bool,
    peer: bool,
}

fn locals() -> Vec<Local> {
    let mut out = Vec::new();
    for f in FAMILIES {
        for (client, member) in [(true, true), (true, false), (false, true)] {
            out.extend([true, false].map(|peer| Local { f, client, member, peer }));
        }
    }
    out
}

impl Local {
    fn world(self) -> World {
        let mut w = World::balanced(8080);
        w.redirected(tcp_member(self.f), NEAR, MEMBER_SLOT, self.peer);
        if self.peer {
            w.at(CLIENT).flags |= endpoint_flags::PEER;
        }
        if self.client {
            w.police(CLIENT, SET);
        }
        if self.member {
            w.police(NEAR, MEMBER_SET);
        }
        w.set(SET, &[allow(1)], &[default(2, action::DENY)]);
        w.set(MEMBER_SET, &[default(3, action::DENY)], &[allow(4).port(6, 8080), default(5, action::DENY)]);
        w
    }
    fn c(self) -> Connection {
        Connection::new(self.f, 8080)
    }
    fn enters_member(self) -> bool {
        self.peer && !self.member
    }
    fn enters_client(self) -> bool {
        self.peer && !self.client
    }
    fn there(self, flags: u8) -> Packet {
        self.c().up_there(flags).macs(MEMBER_MAC, MEMBER_HOST_MAC).ttl(63)
    }
    /// From the client to the member's device, and on through that one's program.
    fn sends(self, r: Row, flags: u8, reason: Reason, at_member: Reason) -> Row {
        let r = r
            .egress(CLIENT, &self.c().up(flags))
            .handed(NEAR, self.enters_member(), reason, &self.there(flags))
            .by(self.c().member);
        if self.enters_member() {
            return r.also(NEAR, Ingress, Reason::NotOurs);
        }
        r.ingress(NEAR, &self.there(flags)).passes(if self.member { at_member } else { Reason::NotOurs })
    }
    /// From the member back; the client's own device has the client's stages.
    fn gets(self, r: Row, flags: u8, reason: Reason) -> Row {
        let sent = self.c().down(flags).macs(MEMBER_HOST_MAC, MEMBER_MAC);
        let moved = |p: Packet| p.macs(CLIENT_MAC, HOST_MAC).ttl(63);
        let r = r.egress(NEAR, &sent);
        if self.client {
            // As it is: the client's device judges it.
            let r = r.handed(CLIENT, false, Reason::Reply, &moved(sent.clone()));
            let r = r.ingress(CLIENT, &moved(sent.clone())).becomes(reason, &moved(self.c().down_there(flags)));
            return r.by(self.c().member);
        }
        let r =
            r.handed(CLIENT, self.enters_client(), reason, &moved(self.c().down_there(flags))).by_as(self.c().member, Ingress);
        if self.enters_client() {
            return r.also(CLIENT, Ingress, reason);
        }
        r.ingress(CLIENT, &moved(self.c().down_there(flags))).passes(Reason::NotOurs)
    }
    fn open(self, r: Row) -> Row {
        let m = self.c().member;
        let r = self.sends(r, SYN, Reason::NewFlow, Reason::Allowed).event(m, NewFlow);
        let bytes = self.c().up(SYN).bytes().len();
        let r = if self.client { r.decided_by(1, bytes) } else { r };
        let r = if self.member { r.decided_by(4, bytes) } else { r };
        let r = self.gets(r, SYN | ACK, Reason::HalfOpen);
        let mut r = self.sends(r, ACK, Reason::Established, Reason::Established).event(m, Established);
        for _ in 0..3 {
            r = self.gets(r, ACK, Reason::Reply);
            r = self.sends(r, ACK, Reason::Established, Reason::Established);
        }
        r
    }
    fn held(self, r: Row) -> Row {
        let r = r.holds(1 + usize::from(self.member), 0).quota(1, 1);
        if self.member { r.quota(MEMBER_SLOT, 1) } else { r }
    }
}

#[test]
fn past_the_stack_there_and_back() {
    run(locals().into_iter().map(|l| l.held(l.open(row(format!("{l:?}: a connection"), l.world())))));
}

/// The member's own rules have the last word, whoever let the client do it; and they are told to the client, if they are to be.
#[test]
fn denied_at_the_member() {
    let mut rows = Vec::new();
    for l in locals().into_iter().filter(|l| l.member) {
        for told in [false, true] {
            let rule = move || if told { reject(6) } else { deny(6) };
            let mut w = l.world();
            w.set(MEMBER_SET, &[default(3, action::DENY)], &[rule()]);
            let m = l.c().member;
            let r = row(format!("{l:?}: denied at the member, told: {told}"), w).egress(CLIENT, &l.c().up(SYN));
            let r = r.handed(NEAR, false, Reason::NewFlow, &l.there(SYN)).by(m).event(m, NewFlow);
            let r = if l.client { r.decided(1) } else { r };
            let r = r.ingress(NEAR, &l.there(SYN)).decided(6);
            let refused =
                |r: Row, p: Packet| if told { r.bounced(Reason::Rejected, &reset(&p)) } else { r.dropped(Reason::Denied) };
            rows.push(refused(r, l.there(SYN)).holds(0, 1));

            // The same of an open connection.
            let r = l.open(row(format!("{l:?}: denied later, told: {told}"), l.world())).change(move |w| {
                w.set(MEMBER_SET + 1, &[default(3, action::DENY)], &[rule()]);
                w.at(NEAR).set = MEMBER_SET + 1;
                w.bump();
            });
            let r = r.egress(CLIENT, &l.c().up(ACK)).handed(NEAR, false, Reason::Established, &l.there(ACK)).by(m);
            let r = refused(r.ingress(NEAR, &l.there(ACK)).decided(6), l.there(ACK));
            // And its answers are those of a flow that nobody allowed.
            let answer = l.c().down(ACK).macs(MEMBER_HOST_MAC, MEMBER_MAC);
            rows.push(r.egress(NEAR, &answer).dropped(Reason::Denied).decided(3).holds(1, 0).quota(1, 1));
        }
    }
    run(rows);
}

/// A client that is cut off gets nothing more of its flows, though they come past the stack.
#[test]
fn a_client_is_cut_off() {
    let mut rows = Vec::new();
    for l in locals().into_iter().filter(|l| l.client) {
        let r = l.open(row(format!("{l:?}: the client is cut off"), l.world())).change(|w| {
            w.set(SET + 4, &[deny(7).flags(rule_flags::QUARANTINE)], &[deny(8).flags(rule_flags::QUARANTINE)]);
            w.at(CLIENT).set = SET + 4;
            w.bump();
        });
        let sent = l.c().down(ACK).macs(MEMBER_HOST_MAC, MEMBER_MAC);
        let moved = sent.clone().macs(CLIENT_MAC, HOST_MAC).ttl(63);
        let r = r.egress(NEAR, &sent).handed(CLIENT, false, Reason::Reply, &moved);
        let r = r.ingress(CLIENT, &moved).dropped(Reason::Quarantined).decided(7);
        // The flow is gone: the next answer goes by the stack, as it would have without vnet.
        let at_member = if l.member { Reason::Established } else { Reason::NotOurs };
        let r = r.egress(NEAR, &sent).passes(at_member);
        let r = r.ingress(CLIENT, &sent).dropped(Reason::Quarantined).decided(8);
        let r = r.egress(CLIENT, &l.c().up(ACK)).dropped(Reason::Quarantined).decided(7);
        rows.push(if l.member { r.holds(1, 0).quota(MEMBER_SLOT, 1) } else { r });
    }
    run(rows);
}

/// A policed member that talks to others than its clients: by the stack.
#[test]
fn other_packets_of_a_policed_member() {
    let mut rows = Vec::new();
    for l in locals().into_iter().filter(|l| l.member) {
        let mut w = l.world();
        w.set(MEMBER_SET, &[allow(3)], &[allow(4)]);
        let name = |n: &str| format!("{l:?}: {n}");
        let mut r = row(name("to a client of this host, of no balanced flow"), w);
        let ask = Packet::udp(l.f.member(0), 8080, l.f.client(), 40000).macs(MEMBER_HOST_MAC, MEMBER_MAC);
        r = r.egress(NEAR, &ask).passes(Reason::Allowed).decided(3);
        for _ in 0..3 {
            r = r.egress(NEAR, &ask).passes(Reason::Established);
        }
        let out = Packet::udp(l.f.member(0), 8080, l.f.outside(), 40000).macs(MEMBER_HOST_MAC, MEMBER_MAC);
        r = r.egress(NEAR, &out).passes(Reason::Allowed).decided(3);
        for _ in 0..3 {
            r = r.egress(NEAR, &out).passes(Reason::Established);
        }
        rows.push(r.holds(2, 0).quota(MEMBER_SLOT, 2));
        // What does not fit the client's device, or is at the end of its time, goes by the stack.
        let r = l.open(row(name("too big for the client"), l.world())).change(|w| w.at(CLIENT).mtu = 600);
        let big = l.c().down(ACK).macs(MEMBER_HOST_MAC, MEMBER_MAC).with(&[1; 900]);
        let r = r.egress(NEAR, &big).passes(Reason::Established).egress(NEAR, &big).passes(Reason::Established);
        let late = l.c().down(ACK).macs(MEMBER_HOST_MAC, MEMBER_MAC).ttl(1);
        rows.push(l.held(r.egress(NEAR, &late).passes(Reason::Established)));
    }
    run(rows);
}

/// The flow went by the stack, since its group says so: the answers do too, also those that are cached.
#[test]
fn answers_of_flows_that_went_by_the_stack() {
    let mut rows = Vec::new();
    for l in locals() {
        let mut w = l.world();
        w.set_flags(w.maps.members[l.c().member as usize].group, 0);
        let (c, m) = (l.c(), l.c().member);
        let r = row(format!("{l:?}: by the stack"), w);
        let up = |r: Row, flags, reason| r.egress(CLIENT, &c.up(flags)).becomes(reason, &c.up_there(flags)).by(m);
        let at =
            |r: Row, flags, reason| r.ingress(NEAR, &c.up_there(flags)).passes(if l.member { reason } else { Reason::NotOurs });
        let down = |r: Row, flags, at_member, reason| {
            let sent = c.down(flags).macs(MEMBER_HOST_MAC, MEMBER_MAC);
            let r = r.egress(NEAR, &sent).passes(if l.member { at_member } else { Reason::NotOurs });
            r.ingress(CLIENT, &sent).becomes(reason, &sent.clone().from(l.f.vip(), 80)).by(m)
        };
        let r = at(up(r, SYN, Reason::NewFlow).event(m, NewFlow), SYN, Reason::Allowed);
        let bytes = c.up(SYN).bytes().len();
        let r = if l.client { r.decided_by(1, bytes) } else { r };
        let r = if l.member { r.decided_by(4, bytes) } else { r };
        let r = down(r, SYN | ACK, Reason::HalfOpen, Reason::HalfOpen);
        let mut r = at(up(r, ACK, Reason::Established).event(m, Established), ACK, Reason::Established);
        for _ in 0..3 {
            r = at(up(down(r, ACK, Reason::Established, Reason::Reply), ACK, Reason::Established), ACK, Reason::Established);
        }
        rows.push(l.held(r));
    }
    run(rows);
}

/// A member that left this host, or whose address does not fit the policy of the group: no way past the stack is a way past the rules.
#[test]
fn steered_past_the_stack() {
    run(locals().into_iter().filter(|l| l.client).map(|l| {
        let mut w = l.world();
        let group = w.maps.members[l.c().member as usize].group;
        let mut steer = super::rules::rule(9, action::REDIRECT).flags(rule_flags::QUARANTINE);
        (steer.row.group, steer.row.serial) = (group, 500 + group);
        w.set(SET, &[steer], &[default(2, action::DENY)]);
        w.set_flags(group, group_flags::REDIRECT);
        let m = l.c().member;
        let up = |flags| Packet::tcp(l.f.client(), 40000, l.f.outside(), 443, flags);
        let sends = |r: Row, flags, reason, at_member| {
            let r = r.egress(CLIENT, &up(flags)).handed(NEAR, l.enters_member(), reason, &l.there(flags)).by(m);
            if l.enters_member() {
                return r.also(NEAR, Ingress, Reason::NotOurs);
            }
            r.ingress(NEAR, &l.there(flags)).passes(if l.member { at_member } else { Reason::NotOurs })
        };
        let gets = |r: Row, flags, reason| {
            let sent = l.c().down(flags).macs(MEMBER_HOST_MAC, MEMBER_MAC);
            let moved = sent.clone().macs(CLIENT_MAC, HOST_MAC).ttl(63);
            let r = r.egress(NEAR, &sent).handed(CLIENT, false, Reason::Reply, &moved);
            r.ingress(CLIENT, &moved).becomes(reason, &moved.clone().from(l.f.outside(), 443)).by(m)
        };
        let bytes = up(SYN).bytes().len();
        let r = sends(row(format!("{l:?}: steered"), w), SYN, Reason::Steered, Reason::Allowed)
            .event(m, NewFlow)
            .decided_by(9, bytes);
        let r = if l.member { r.decided_by(4, bytes) } else { r };
        let r = gets(r, SYN | ACK, Reason::HalfOpen);
        let mut r = sends(r, ACK, Reason::Established, Reason::Established).event(m, Established);
        for _ in 0..3 {
            r = sends(gets(r, ACK, Reason::Reply), ACK, Reason::Established, Reason::Established);
        }
        l.held(r)
    }));
}
