//! After any change of the policy, each side of each kind of flow is judged again with its next packet: it stays, ends, is refused, or is
//! led elsewhere.

use vnet_common::addr::{V4, V6};
use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::flow::FlowEntry;
use vnet_common::lb::MemberEvent::{Established, NewFlow, Reset};
use vnet_common::policy::{action, rule_flags};
use vnet_common::verdict::Reason;

use super::answers::reset;
use super::packet::{ACK, L4, Packet, SYN};
use super::policy::{each, world};
use super::row::{Row, row, run};
use super::rules::{Rule, SET, allow, default, deny, reject, rule};
use super::tcp::Connection;
use super::udp::udp_member;
use super::world::{CLIENT, FAMILIES, Family, World};

/// The set after the change, and its rules for who opened the flow, and for the other direction.
const NEXT: u32 = SET + 1;
const NOW: u32 = 11;
const OTHERWISE: u32 = 19;

/// The refusal of a packet for which a rule asks.
pub fn refusal(p: &Packet) -> Packet {
    match p.l4 {
        L4::Tcp { .. } => reset(p),
        _ if p.src.is_ipv4() => p.error(3, 13, 0),
        _ => p.error(1, 1, 0),
    }
}

/// An echo reply to an echo request, or the other packet's way back.
pub fn answer_to(p: &Packet) -> Packet {
    let mut back = p.clone().back();
    if let L4::Icmp { kind, .. } = &mut back.l4 {
        *kind = if *kind == 8 { 0 } else { 129 };
    }
    back
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Udp,
    Tcp,
    HalfOpen,
    Ping,
    Sctp,
}

/// A flow that is not balanced; `out`: the client opened it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    f: Family,
    kind: Kind,
    out: bool,
}

fn flows() -> Vec<Flow> {
    let kinds = [Kind::Udp, Kind::Tcp, Kind::HalfOpen, Kind::Ping, Kind::Sctp];
    let each = |f| kinds.into_iter().flat_map(move |kind| [true, false].map(|out| Flow { f, kind, out }));
    FAMILIES.into_iter().flat_map(each).collect()
}

impl Flow {
    /// From who opened it.
    fn there(self, flags: u8) -> Packet {
        let (a, b) = if self.out { (self.f.client(), self.f.ip(5, 1)) } else { (self.f.ip(5, 1), self.f.client()) };
        match self.kind {
            Kind::Udp => Packet::udp(a, 4000, b, 53),
            Kind::Tcp | Kind::HalfOpen => Packet::tcp(a, 4000, b, 53, flags),
            Kind::Ping => Packet::ping(a, b),
            Kind::Sctp => Packet::new(a, b, L4::Other(132)).with(&[7; 24]),
        }
    }
    /// From the other side.
    fn back(self, flags: u8) -> Packet {
        answer_to(&self.there(flags))
    }
    fn sends(self, r: Row, back: bool, flags: u8) -> Row {
        let p = if back { self.back(flags) } else { self.there(flags) };
        if back == self.out { r.ingress(CLIENT, &p) } else { r.egress(CLIENT, &p) }
    }
    /// The next packet of one side, once the flow is there.
    fn goes_on(self, r: Row, back: bool) -> Row {
        let flags = if self.kind == Kind::HalfOpen { if back { SYN | ACK } else { SYN } } else { ACK };
        self.sends(r, back, flags)
    }
    fn usual(self) -> Reason {
        if self.kind == Kind::HalfOpen { Reason::HalfOpen } else { Reason::Established }
    }
    fn opened(self, name: String, w: World) -> Row {
        let r = self.sends(row(name, w), false, SYN).passes(Reason::Allowed).decided(if self.out { 1 } else { 2 });
        let r = match self.kind {
            Kind::Tcp => {
                let r = self.sends(r, true, SYN | ACK).passes(Reason::HalfOpen);
                self.sends(r, false, ACK).passes(Reason::Established)
            }
            _ => self.goes_on(r, true).passes(self.usual()),
        };
        // Both sides into the cache.
        let r = self.goes_on(self.goes_on(r, false).passes(self.usual()), true).passes(self.usual());
        self.goes_on(self.goes_on(r, false).passes(self.usual()), true).passes(self.usual())
    }
    fn held(self, r: Row) -> Row {
        if self.kind == Kind::HalfOpen { r.holds(0, 1) } else { r.holds(1, 0).quota(1, 1) }
    }
    /// What the other side sends after the flow is gone: by the rule for who opens one as it would, which denies. But a SYN-ACK is the answer to what
    /// the first side opened, to be `decided` about by the rule for that.
    fn after(self, r: Row, decided: impl FnOnce(Row, &Packet) -> Row) -> Row {
        let r = self.goes_on(r, true);
        match self.kind {
            Kind::HalfOpen => decided(r, &self.back(SYN | ACK)).decided(NOW),
            _ => r.dropped(Reason::Denied).decided(OTHERWISE),
        }
    }
    /// Another set: `rule` for who opens a flow as this one is.
    fn change(self, r: Row, rule: Rule) -> Row {
        r.change(move |w| {
            let other = [default(OTHERWISE, action::DENY)];
            let (egress, ingress) = if self.out { ([rule.clone()], other) } else { (other, [rule.clone()]) };
            w.set(NEXT, &egress, &ingress);
            w.at(CLIENT).set = NEXT;
            w.bump();
        })
    }
}

/// The numbers of the rules in all entries.
fn rules_in(w: &World) -> Vec<u32> {
    fn of<A: vnet_common::addr::Address>(flows: &vnet_common::host::Flows<A>) -> Vec<u32> {
        let rule = |e: &FlowEntry<A>| e.rule;
        let (main, half_open) = (flows.main.borrow(), flows.half_open.borrow());
        main.values().map(rule).chain(half_open.values().map(rule)).collect()
    }
    [of::<V4>(&w.maps.flows4), of::<V6>(&w.maps.flows6)].concat()
}

fn all_by(rule: u32) -> impl Fn(&World) -> Result<(), String> {
    move |w| {
        let rules = rules_in(w);
        if rules.iter().all(|r| *r == rule) { Ok(()) } else { Err(format!("entries are by rules {rules:?}, not {rule}")) }
    }
}

/// Every flow, with a packet of either side first.
fn both_sides(f: impl Fn(Flow, bool, &dyn Fn(Rule) -> Row) -> Option<Row>) -> Vec<Row> {
    let mut rows = Vec::new();
    for flow in flows() {
        for back in [false, true] {
            let start = |rule: Rule| {
                let name = format!("{flow:?}, {} first, {rule:?}", if back { "back" } else { "there" });
                flow.change(flow.opened(name, world(flow.f, &[allow(1)], &[allow(2)])), rule)
            };
            rows.extend(f(flow, back, &start));
        }
    }
    rows
}

#[test]
fn what_is_still_allowed_goes_on() {
    run(both_sides(|flow, back, start| {
        let mut r = start(allow(NOW));
        for side in [back, back, !back, !back, back] {
            r = flow.goes_on(r, side).passes(flow.usual());
        }
        Some(flow.held(r).finally(all_by(NOW)))
    }));
}

#[test]
fn what_is_denied_now_ends() {
    for (flags, reason) in [(0, Reason::Denied), (rule_flags::QUARANTINE, Reason::Quarantined)] {
        run(both_sides(|flow, back, start| {
            let mut r = flow.goes_on(start(deny(NOW).flags(flags)), back).dropped(reason).decided(NOW);
            // It is gone: each side is asked about as if it began a flow.
            for side in [false, true, false, true] {
                r = if side {
                    flow.after(r, |r, _| r.dropped(reason))
                } else {
                    flow.goes_on(r, side).dropped(reason).decided(NOW)
                };
            }
            Some(r)
        }));
    }
}

#[test]
fn what_is_refused_now_is_told() {
    run(both_sides(|flow, back, start| {
        let flags = if flow.kind == Kind::HalfOpen { if back { SYN | ACK } else { SYN } } else { ACK };
        let told = refusal(&if back { flow.back(flags) } else { flow.there(flags) });
        let r = flow.goes_on(start(reject(NOW)), back);
        let r = if back == flow.out { r.bounced(Reason::Rejected, &told) } else { r.answered(Reason::Rejected, &told) };
        Some(flow.after(r.decided(NOW), |r, p| match flow.out {
            true => r.bounced(Reason::Rejected, &refusal(p)),
            false => r.answered(Reason::Rejected, &refusal(p)),
        }))
    }));
}

/// The remediation service: groups without a VIP of the policy's, one for each family and protocol, each with a member.
fn remedy(w: &mut World, f: Family, host: u8) -> [(u32, u32); 2] {
    [6, 17].map(|protocol| {
        let group = w.group(f.ip(8, host), protocol, 1);
        (group, w.member(group, f.ip(8, 100 + host), 8080))
    })
}

fn steer(id: u32, group: u32) -> Rule {
    let mut r = rule(id, action::REDIRECT).flags(rule_flags::QUARANTINE);
    (r.row.group, r.row.serial) = (group, 500 + group);
    r
}

#[test]
fn what_is_led_elsewhere_now() {
    let mut rows = Vec::new();
    for flow in flows() {
        for back in [false, true] {
            let name = format!("{flow:?}, {} first, steered", if back { "back" } else { "there" });
            let mut w = world(flow.f, &[allow(1)], &[allow(2)]);
            let [tcp, udp] = remedy(&mut w, flow.f, 1);
            let (group, member) = if flow.kind == Kind::Udp { udp } else { tcp };
            let r = flow.change(flow.opened(name, w), steer(NOW, group));
            let steerable = flow.out && matches!(flow.kind, Kind::Udp | Kind::Tcp | Kind::HalfOpen);
            if !steerable {
                // Nothing but TCP and UDP that the client opens can be led elsewhere.
                let r = flow.goes_on(r, back).dropped(Reason::Quarantined).decided(NOW);
                rows.push(flow.goes_on(r, false).dropped(Reason::Quarantined).decided(NOW));
                continue;
            }
            let r = if back { flow.goes_on(r, true).dropped(Reason::Quarantined) } else { r };
            let r = if flow.kind == Kind::Tcp {
                // In mid-stream: the client is told, and begins anew.
                flow.goes_on(r, false).answered(Reason::Quarantined, &reset(&flow.there(ACK)))
            } else {
                r
            };
            let r = flow.sends(r, false, SYN);
            let r = r.becomes(Reason::Steered, &flow.there(SYN).to(flow.f.ip(8, 101), 8080)).decided(NOW);
            let r = r.by(member).event(member, NewFlow);
            rows.push(if flow.kind == Kind::Udp { r.event(member, Established).holds(1, 0).quota(1, 1) } else { r.holds(0, 1) });
        }
    }
    run(rows);
}

/// A flow that a quarantine leads to its service: a question by UDP, or a connection.
#[derive(Clone, Copy, Debug)]
struct Led {
    f: Family,
    tcp: bool,
}

impl Led {
    fn there(self, flags: u8) -> Packet {
        let (a, b) = (self.f.client(), self.f.ip(5, 1));
        if self.tcp { Packet::tcp(a, 4000, b, 53, flags) } else { Packet::udp(a, 4000, b, 53) }
    }
    fn back(self, flags: u8) -> Packet {
        self.there(flags).to(self.f.ip(8, 101), 8080).back()
    }
    fn sends(self, r: Row, flags: u8, reason: Reason, m: u32) -> Row {
        r.egress(CLIENT, &self.there(flags)).becomes(reason, &self.there(flags).to(self.f.ip(8, 101), 8080)).by(m)
    }
    fn gets(self, r: Row, flags: u8, reason: Reason, m: u32) -> Row {
        r.ingress(CLIENT, &self.back(flags)).becomes(reason, &self.back(flags).from(self.f.ip(5, 1), 53)).by(m)
    }
    /// The flow, open and cached.
    fn opened(self, name: &str) -> (Row, u32, [u32; 2]) {
        let mut w = world(self.f, &[allow(1)], &[default(2, action::DENY)]);
        let ([tcp, udp], [tcp2, udp2]) = (remedy(&mut w, self.f, 1), remedy(&mut w, self.f, 2));
        let (group, m) = if self.tcp { tcp } else { udp };
        let other = if self.tcp { tcp2 } else { udp2 };
        w.set(SET, &[steer(1, group)], &[default(2, action::DENY)]);
        let r = self.sends(row(format!("{self:?}: {name}"), w), SYN, Reason::Steered, m).decided(1).event(m, NewFlow);
        let mut r = if self.tcp {
            let r = self.gets(r, SYN | ACK, Reason::HalfOpen, m);
            self.sends(r, ACK, Reason::Established, m)
        } else {
            r
        };
        r = r.event(m, Established);
        for _ in 0..3 {
            r = self.gets(r, ACK, Reason::Reply, m);
            r = self.sends(r, ACK, Reason::Established, m);
        }
        (r, m, [group, other.0])
    }
    fn change(self, r: Row, rule: Rule) -> Row {
        Flow { f: self.f, kind: Kind::Udp, out: true }.change(r, rule)
    }
}

fn led() -> impl Iterator<Item = (Led, bool)> {
    let one = |f| [(true, true), (true, false), (false, true), (false, false)].map(|(tcp, back)| (Led { f, tcp }, back));
    FAMILIES.into_iter().flat_map(one)
}

#[test]
fn a_steered_flow_stays_with_its_service() {
    run(led().map(|(l, back)| {
        let (r, m, [group, _]) = l.opened(&format!("the same service, {back}"));
        let mut r = l.change(r, steer(NOW, group));
        for back in [back, !back, back] {
            r = if back { l.gets(r, ACK, Reason::Reply, m) } else { l.sends(r, ACK, Reason::Established, m) };
        }
        r.holds(1, 0).quota(1, 1).finally(all_by(NOW))
    }));
}

/// What ends a steered flow: release, another service, the end of all policy; of which a connection is told by a reset.
#[test]
fn a_steered_flow_ends() {
    let mut rows = Vec::new();
    for (l, back) in led() {
        for end in ["released", "another service", "another serial", "not policed", "denied", "refused", "member gone"] {
            let (r, m, [group, other]) = l.opened(&format!("{end}, back first: {back}"));
            let mut reason = Reason::Quarantined;
            let r = match end {
                "released" => l.change(r, allow(NOW)),
                "another service" => l.change(r, steer(NOW, other)),
                "another serial" => r.change(move |w| {
                    w.maps.groups[group as usize].serial += 100;
                    w.bump();
                }),
                "not policed" => r.change(|w| {
                    w.at(CLIENT).flags &= !endpoint_flags::POLICED;
                    w.bump();
                }),
                "denied" => l.change(r, deny(NOW)),
                "refused" => l.change(r, reject(NOW)),
                _ => r.change(move |w| {
                    w.edit(m).serial += 100;
                    w.bump();
                }),
            };
            if matches!(end, "another serial" | "member gone") {
                reason = Reason::MemberRemoved;
            }
            rows.push(match end {
                "denied" if back => r.ingress(CLIENT, &l.back(ACK)).dropped(Reason::Denied).decided(NOW),
                "denied" => r.egress(CLIENT, &l.there(ACK)).dropped(Reason::Denied).decided(NOW),
                "refused" if back => {
                    r.ingress(CLIENT, &l.back(ACK)).bounced(Reason::Rejected, &refusal(&l.back(ACK))).decided(NOW)
                }
                "refused" => r.egress(CLIENT, &l.there(ACK)).answered(Reason::Rejected, &refusal(&l.there(ACK))).decided(NOW),
                _ => ends(l, back, r, end, reason, m),
            });
        }
    }
    run(rows);
}

fn ends(l: Led, back: bool, r: Row, end: &str, reason: Reason, m: u32) -> Row {
    // The service's packets are for nobody any more; the entry waits for the client, who is told.
    let r = if back { r.ingress(CLIENT, &l.back(ACK)).dropped(reason).ingress(CLIENT, &l.back(ACK)).dropped(reason) } else { r };
    if end == "not policed" {
        // Nobody looks at what it sends, if it is to no VIP: where that goes the connection is unknown. The entry lies until it is collected.
        return r.egress(CLIENT, &l.there(ACK)).passes(Reason::NotOurs).holds(1, 0).quota(1, 1);
    }
    let r = if l.tcp { r.egress(CLIENT, &l.there(ACK)).answered(reason, &reset(&l.there(ACK))) } else { r };
    let r = r.egress(CLIENT, &l.there(SYN));
    let held = |r: Row| if l.tcp { r.holds(0, 1) } else { r.holds(1, 0).quota(1, 1) };
    match end {
        "released" => held(r.passes(Reason::Allowed).decided(NOW)),
        // The rule names a group that is no more: nothing goes.
        "another serial" => r.dropped(Reason::BadRow).decided(1),
        "another service" => {
            let (m2, there) = (m + 2, l.there(SYN).to(l.f.ip(8, 102), 8080));
            let r = r.becomes(Reason::Steered, &there).by(m2).event(m2, NewFlow).decided(NOW);
            held(if l.tcp { r } else { r.event(m2, Established) })
        }
        _ => {
            let r = r.becomes(Reason::Steered, &l.there(SYN).to(l.f.ip(8, 101), 8080)).by(m).event(m, NewFlow).decided(1);
            held(if l.tcp { r } else { r.event(m, Established) })
        }
    }
}

/// Balanced flows: the VIP and the member are asked about anew.
#[test]
fn balanced_flows() {
    const VIP: u32 = 300;
    const MEMBER: u32 = 301;
    let mut rows = Vec::new();
    for f in FAMILIES {
        for (tcp, back) in [(true, true), (true, false), (false, true), (false, false)] {
            let (c, m) = (Connection::new(f, 8080), if tcp { super::tcp::tcp_member(f) } else { udp_member(f) });
            let up = if tcp { c.up(ACK) } else { Packet::udp(f.client(), 5353, f.vip(), 80) };
            let up_there = up.clone().to(f.member(0), 8080);
            let down = up_there.clone().back();
            let down_there = down.clone().from(f.vip(), 80);
            let start = |name: &str| {
                let mut w = World::balanced(8080);
                w.police(CLIENT, SET);
                w.set(SET, &[allow(1)], &[default(2, action::DENY)]);
                w.identity(f.vip(), VIP);
                w.identity(f.member(0), MEMBER);
                let r = row(format!("{f:?}, TCP: {tcp}, back first: {back}: {name}"), w);
                if tcp {
                    return c.talk(c.open(r).decided_by(1, c.up(SYN).bytes().len()));
                }
                let mut r = r.egress(CLIENT, &up).becomes(Reason::NewFlow, &up_there).by(m).events(m).decided(1);
                for _ in 0..3 {
                    r = r.ingress(CLIENT, &down).becomes(Reason::Reply, &down_there).by(m);
                    r = r.egress(CLIENT, &up).becomes(Reason::Established, &up_there).by(m);
                }
                r
            };
            let to = |r: Row, egress: &'static [fn() -> Rule]| {
                r.change(move |w| {
                    let rules: Vec<Rule> = egress.iter().map(|r| r()).collect();
                    w.set(NEXT, &rules, &[default(OTHERWISE, action::DENY)]);
                    w.at(CLIENT).set = NEXT;
                    w.bump();
                })
            };
            let packet = |r: Row| if back { r.ingress(CLIENT, &down) } else { r.egress(CLIENT, &up) };
            let goes = |r: Row| {
                let mut r = r;
                for back in [back, !back, back] {
                    r = if back {
                        r.ingress(CLIENT, &down).becomes(Reason::Reply, &down_there)
                    } else {
                        r.egress(CLIENT, &up).becomes(Reason::Established, &up_there)
                    };
                    r = r.by(m);
                }
                r.holds(1, 0).quota(1, 1)
            };
            rows.push(
                goes(to(start("VIP allowed"), &[|| allow(NOW).peer(VIP), || default(12, action::DENY)])).finally(all_by(NOW)),
            );
            rows.push(
                goes(to(
                    start("member allowed"),
                    &[|| allow(NOW).peer(MEMBER).port(6, 8080).port(17, 8080), || default(12, action::DENY)],
                ))
                .finally(all_by(NOW)),
            );
            rows.push(goes(to(start("by default"), &[|| default(12, action::ALLOW)])).finally(all_by(12)));
            for (name, rules) in [
                ("VIP denied", &[|| deny(NOW).peer(VIP), || allow(12)] as &[fn() -> Rule]),
                ("member denied", &[|| deny(NOW).peer(MEMBER), || allow(12)]),
                (
                    "member denied, VIP allowed",
                    &[|| deny(NOW).peer(MEMBER), || allow(12).peer(VIP), || default(13, action::ALLOW)],
                ),
                ("VIP's port denied", &[|| deny(NOW).port(6, 80).port(17, 80), || allow(12)]),
                ("member's port denied", &[|| deny(NOW).port(6, 8080).port(17, 8080), || allow(12)]),
            ] {
                let r = packet(to(start(name), rules)).dropped(Reason::Denied).decided(NOW);
                let r = r.ingress(CLIENT, &down).dropped(Reason::Denied).decided(OTHERWISE);
                rows.push(r.egress(CLIENT, &up).dropped(Reason::Denied).decided(NOW));
            }
            let r = packet(to(start("member refused"), &[|| reject(NOW).peer(MEMBER), || allow(12)]));
            let told = refusal(if back { &down } else { &up });
            rows.push(if back { r.bounced(Reason::Rejected, &told) } else { r.answered(Reason::Rejected, &told) }.decided(NOW));
        }
    }
    run(rows);
}

/// While nobody asks, entries lie; once somebody asks again, they say nothing.
#[test]
fn policed_no_more_and_again() {
    run(both_sides(|flow, back, _| {
        let name = format!("{flow:?}, {} first: not policed, and again", if back { "back" } else { "there" });
        let r = flow.opened(name, world(flow.f, &[allow(1)], &[allow(2)]));
        let police = |on: bool| {
            move |w: &mut World| {
                let row = w.at(CLIENT);
                row.flags = if on { row.flags | endpoint_flags::POLICED } else { row.flags & !endpoint_flags::POLICED };
                w.bump();
            }
        };
        let mut r = r.change(police(false));
        for side in [back, !back, back] {
            r = flow.goes_on(r, side).passes(Reason::NotOurs);
        }
        let r = flow.change(r.change(police(true)), deny(NOW));
        let r = flow.goes_on(r, back).dropped(Reason::Denied).decided(NOW);
        Some(flow.after(r, |r, _| r.dropped(Reason::Denied)))
    }));
    // Balanced flows live on.
    run(each(|f| {
        let (up, m) = (Packet::udp(f.client(), 5353, f.vip(), 80), udp_member(f));
        let there = up.clone().to(f.member(0), 8080);
        let mut w = World::balanced(8080);
        w.police(CLIENT, SET);
        w.set(SET, &[allow(1)], &[default(2, action::DENY)]);
        let r = row(format!("{f:?}: balanced, not policed, and again"), w);
        let mut r = r.egress(CLIENT, &up).becomes(Reason::NewFlow, &there).by(m).events(m).decided(1);
        for on in [false, true, false] {
            r = r.change(move |w| {
                let row = w.at(CLIENT);
                row.flags = if on { row.flags | endpoint_flags::POLICED } else { row.flags & !endpoint_flags::POLICED };
                w.bump();
            });
            for _ in 0..2 {
                r = r.egress(CLIENT, &up).becomes(Reason::Established, &there).by(m);
                r = r.ingress(CLIENT, &there.clone().back()).becomes(Reason::Reply, &up.clone().back()).by(m);
            }
        }
        r.holds(1, 0).quota(1, 1).finally(all_by(0))
    }));
}

/// A reset ends what is led elsewhere; its copies in the cache are void.
#[test]
fn resets_of_steered_connections() {
    run(each(|f| {
        let l = Led { f, tcp: true };
        let (r, m, _) = l.opened("the service resets");
        let r = l.gets(r, super::packet::RST, Reason::Reply, m).event(m, Reset);
        let r = l.sends(r, SYN, Reason::Steered, m).decided(1).event(m, NewFlow);
        r.holds(0, 1)
    }));
}
