//! Delivery past the stack to members that are endpoints of this host, and the way back.

use vnet_common::endpoint::flags as endpoint_flags;
use vnet_common::lb::MemberEvent::{Established, NewFlow};
use vnet_common::verdict::Direction::Ingress;
use vnet_common::verdict::Reason;

use super::packet::{ACK, Packet, SYN};
use super::row::{Row, row, run};
use super::tcp::{Connection, tcp_member};
use super::udp::udp_member;
use super::world::{CLIENT, CLIENT_MAC, FAMILIES, FAR, Family, HOST_MAC, NEAR, World};

const MEMBER_SLOT: u32 = 2;
const MEMBER_MAC: [u8; 6] = [2, 0, 0, 0, 1, MEMBER_SLOT as u8];
const MEMBER_HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0xff, MEMBER_SLOT as u8];
const BRIDGE: u32 = 7;

/// How client and member are attached.
#[derive(Clone, Copy, Debug)]
struct Setting {
    f: Family,
    peer: bool,
    bridged: bool,
}

fn settings() -> Vec<Setting> {
    let each = |f: Family| {
        [(false, false), (true, false), (false, true), (true, true)].map(|(peer, bridged)| Setting { f, peer, bridged })
    };
    FAMILIES.into_iter().flat_map(each).collect()
}

impl Setting {
    fn world(self) -> World {
        let mut w = World::balanced(8080);
        for member in [tcp_member(self.f), udp_member(self.f)] {
            w.redirected(member, NEAR, MEMBER_SLOT, self.peer);
        }
        if self.peer {
            w.at(CLIENT).flags = endpoint_flags::PEER;
        }
        if self.bridged {
            w.at(CLIENT).segment = BRIDGE;
            w.at(NEAR).segment = BRIDGE;
        }
        w
    }
    fn row(self, name: &str) -> Row {
        row(format!("{self:?}: {name}"), self.world())
    }
    /// The packet as it is put onto the member's device.
    fn onto_member(self, p: Packet) -> Packet {
        let (src, ttl) = if self.bridged { (p.src_mac, p.ttl) } else { (MEMBER_HOST_MAC, p.ttl - 1) };
        p.macs(MEMBER_MAC, src).ttl(ttl)
    }
    /// And onto the client's.
    fn onto_client(self, p: Packet) -> Packet {
        let (src, ttl) = if self.bridged { (p.src_mac, p.ttl) } else { (HOST_MAC, p.ttl - 1) };
        p.macs(CLIENT_MAC, src).ttl(ttl)
    }
    fn sends(self, r: Row, c: Connection, flags: u8, reason: Reason) -> Row {
        let r = r.egress(CLIENT, &c.up(flags)).handed(NEAR, self.peer, reason, &self.onto_member(c.up_there(flags))).by(c.member);
        if self.peer { r.also(NEAR, Ingress, Reason::NotOurs) } else { r }
    }
    fn gets(self, r: Row, c: Connection, flags: u8, reason: Reason) -> Row {
        let sent = c.down(flags).macs(MEMBER_HOST_MAC, MEMBER_MAC);
        let there = self.onto_client(c.down_there(flags).macs(MEMBER_HOST_MAC, MEMBER_MAC));
        let r = r.egress(NEAR, &sent).handed(CLIENT, self.peer, reason, &there).by_as(c.member, Ingress);
        if self.peer { r.also(CLIENT, Ingress, reason) } else { r }
    }
}

#[test]
fn there_and_back() {
    run(settings().into_iter().map(|s| {
        let c = Connection::new(s.f, 8080);
        let r = s.sends(s.row("a connection"), c, SYN, Reason::NewFlow).event(c.member, NewFlow);
        let r = s.gets(r, c, SYN | ACK, Reason::HalfOpen);
        let mut r = s.sends(r, c, ACK, Reason::Established).event(c.member, Established);
        for _ in 0..3 {
            r = s.gets(r, c, ACK, Reason::Reply);
            r = s.sends(r, c, ACK, Reason::Established);
        }
        r.holds(1, 0).quota(1, 1)
    }));
}

#[test]
fn time_to_live() {
    let mut rows = Vec::new();
    for s in settings() {
        let c = Connection::new(s.f, 8080);
        let start = || s.sends(s.row("TTL 1"), c, SYN, Reason::NewFlow).event(c.member, NewFlow).holds(0, 1);
        if s.bridged {
            rows.push(s.sends(start(), c, SYN, Reason::HalfOpen));
            continue;
        }
        // The stack answers that the time is over; the packet is on its way to the member already.
        let r = start().egress(CLIENT, &c.up(SYN).ttl(1)).becomes(Reason::HalfOpen, &c.up_there(SYN).ttl(1)).by(c.member);
        rows.push(r.egress(NEAR, &c.down(SYN | ACK).ttl(1)).passes(Reason::NotOurs));
        let two = s.onto_member(c.up_there(SYN).ttl(2));
        let r = start().egress(CLIENT, &c.up(SYN).ttl(2)).handed(NEAR, s.peer, Reason::HalfOpen, &two).by(c.member);
        rows.push(if s.peer { r.also(NEAR, Ingress, Reason::NotOurs) } else { r });
    }
    run(rows);
}

#[test]
fn mtu() {
    let mut rows = Vec::new();
    for s in settings() {
        let m = udp_member(s.f);
        let world = || {
            let mut w = s.world();
            w.at(NEAR).mtu = 1400;
            w
        };
        let headers = if s.f == Family::V4 { 28 } else { 48 };
        let fits = Packet::udp(s.f.client(), 5353, s.f.vip(), 80).with(&vec![0x5a; 1400 - headers]);
        let there = |p: &Packet| p.clone().to(s.f.member(0), 8080);
        let first = |r: Row| r.by(m).event(m, NewFlow).event(m, Established).holds(1, 0).quota(1, 1);
        let r = row(format!("{s:?}: as large as fits"), world()).egress(CLIENT, &fits);
        let r = first(r.handed(NEAR, s.peer, Reason::NewFlow, &s.onto_member(there(&fits))));
        rows.push(if s.peer { r.also(NEAR, Ingress, Reason::NotOurs) } else { r });

        let big = fits.clone().with(&vec![0x5a; 1400 - headers + 1]);
        let r = row(format!("{s:?}: one byte more"), world()).egress(CLIENT, &big);
        rows.push(first(if s.bridged {
            r.becomes(Reason::NewFlow, &there(&big)) // the bridge's to judge
        } else {
            let (kind, code) = if s.f == Family::V4 { (3, 4) } else { (2, 0) };
            r.answered(Reason::PacketTooBig, &big.error(kind, code, 1400))
        }));
        if s.f == Family::V4 {
            let may_be_cut = Packet { dont_fragment: false, ..big.clone() };
            let r = row(format!("{s:?}: one byte more, may be fragmented"), world()).egress(CLIENT, &may_be_cut);
            rows.push(first(r.becomes(Reason::NewFlow, &there(&may_be_cut))));
        }
        let segmented = fits.clone().with(&vec![0x5a; 3000]);
        let r = row(format!("{s:?}: cut into segments that fit"), world()).egress(CLIENT, &segmented).segment(1300);
        let r = first(r.handed(NEAR, s.peer, Reason::NewFlow, &s.onto_member(there(&segmented))));
        rows.push(if s.peer { r.also(NEAR, Ingress, Reason::NotOurs) } else { r });
    }
    run(rows);
}

#[test]
fn a_connection_too_big_for_the_member() {
    let mut rows = Vec::new();
    for s in settings().into_iter().filter(|s| !s.bridged) {
        let c = Connection::new(s.f, 8080);
        let mut w = s.world();
        w.at(NEAR).mtu = 600;
        let big = c.up(ACK).with(&[0x11; 900]);
        let (kind, code) = if s.f == Family::V4 { (3, 4) } else { (2, 0) };
        let r = row(format!("{s:?}: data too big for the member"), w).egress(CLIENT, &big);
        let r = r.answered(Reason::PacketTooBig, &big.error(kind, code, 600)).by(c.member).event(c.member, NewFlow);
        // What comes back and does not fit the client goes by the stack, which says so to the member.
        let small = |w: &mut World| w.at(CLIENT).mtu = 600;
        rows.push(r.change(small).egress(NEAR, &c.down(ACK).with(&[1; 900])).passes(Reason::NotOurs).holds(0, 1));
    }
    run(rows);
}

#[test]
fn by_the_stack_after_all() {
    let mut rows = Vec::new();
    for s in settings() {
        let c = Connection::new(s.f, 8080);
        let first = |r: Row| s.sends(r, c, SYN, Reason::NewFlow).event(c.member, NewFlow).holds(0, 1);
        let stack = |r: Row| r.egress(CLIENT, &c.up(SYN)).becomes(Reason::HalfOpen, &c.up_there(SYN)).by(c.member);
        let member = c.member;
        rows.push(stack(first(s.row("the member left this host")).change(move |w| w.edit(member).ifindex = 0)));
        rows.push(stack(first(s.row("the member's endpoint is gone")).change(|w| {
            w.maps.endpoints.remove(&NEAR);
        })));
        let mut w = s.world();
        w.maps.locals.clear();
        let r = row(format!("{s:?}: the client's address is not its endpoint's"), w).egress(CLIENT, &c.up(SYN));
        rows.push(r.becomes(Reason::NewFlow, &c.up_there(SYN)).by(c.member).event(c.member, NewFlow).holds(0, 1));
    }
    run(rows);
}

/// Whose MAC is not known is not handed frames for nobody: the stack finds it out.
#[test]
fn by_the_stack_until_the_mac_is_known() {
    run(settings().into_iter().map(|s| {
        let (p, m) = (Packet::udp(s.f.client(), 5353, s.f.vip(), 80), udp_member(s.f));
        let there = p.clone().to(s.f.member(0), 8080);
        let handed = |r: Row, reason| {
            let r = r.egress(CLIENT, &p).handed(NEAR, s.peer, reason, &s.onto_member(there.clone())).by(m);
            if s.peer { r.also(NEAR, Ingress, Reason::NotOurs) } else { r }
        };
        let stack = |r: Row, reason| r.egress(CLIENT, &p).becomes(reason, &there).by(m);
        let unknown = |w: &mut World| w.at(NEAR).mac = [0; 6];
        let mut r = stack(s.row("the member's MAC is not known yet").change(unknown), Reason::NewFlow).events(m);
        r = stack(stack(r, Reason::Established), Reason::Established).change(|w| w.at(NEAR).mac = MEMBER_MAC);
        r = handed(handed(r, Reason::Established), Reason::Established).change(unknown);
        r = stack(stack(r, Reason::Established), Reason::Established);
        // And back.
        r = r.change(|w| (w.at(NEAR).mac, w.at(CLIENT).mac) = (MEMBER_MAC, [0; 6]));
        let back = there.clone().back().macs(MEMBER_HOST_MAC, MEMBER_MAC);
        for _ in 0..3 {
            r = r.egress(NEAR, &back).passes(Reason::NotOurs);
        }
        r.holds(1, 0).quota(1, 1)
    }));
}

#[test]
fn replies_of_flows_that_went_by_the_stack() {
    // The member belongs to a second group, which delivers by the stack: its replies pass, and are counted once, at the client.
    let mut rows = Vec::new();
    for s in settings() {
        let mut w = s.world();
        let group = w.group(s.f.vip(), 6, 81);
        let member = w.member(group, s.f.member(0), 9000);
        let up = Packet::tcp(s.f.client(), 40000, s.f.vip(), 81, SYN);
        let down = Packet::tcp(s.f.member(0), 9000, s.f.client(), 40000, SYN | ACK);
        let r = row(format!("{s:?}: a flow that goes by the stack"), w).egress(CLIENT, &up);
        let r = r.becomes(Reason::NewFlow, &up.clone().to(s.f.member(0), 9000)).by(member).event(member, NewFlow);
        let r = r.egress(NEAR, &down).passes(Reason::NotOurs);
        let r = r.ingress(CLIENT, &down).becomes(Reason::HalfOpen, &down.clone().from(s.f.vip(), 81)).by(member);
        let up = up.flags(ACK);
        let r = r.egress(CLIENT, &up).becomes(Reason::Established, &up.clone().to(s.f.member(0), 9000)).by(member);
        let mut r = r.event(member, Established);
        let down = down.flags(ACK);
        for _ in 0..3 {
            r = r.egress(NEAR, &down).passes(Reason::NotOurs);
            r = r.ingress(CLIENT, &down).becomes(Reason::Reply, &down.clone().from(s.f.vip(), 81)).by(member);
        }
        rows.push(r.holds(1, 0).quota(1, 1));
    }
    run(rows);
}

#[test]
fn other_packets_of_a_member() {
    let mut rows = Vec::new();
    for s in settings() {
        let pass = |name: &str, p: Packet| s.row(name).egress(NEAR, &p).passes(Reason::NotOurs);
        let (member, client) = (s.f.member(0), s.f.client());
        rows.push(pass("to a local client, of no flow", Packet::tcp(member, 8080, client, 40000, ACK)));
        rows.push(pass("to somebody else", Packet::tcp(member, 8080, s.f.outside(), 40000, ACK)));
        rows.push(pass("ping", Packet::ping(member, client)));
    }
    run(rows);
}

/// The member is a client of another VIP, whose member is the first client; both talk from the ports they serve.
#[test]
fn a_member_that_is_itself_a_client() {
    let mut rows = Vec::new();
    for s in settings() {
        let mut w = s.world();
        let other_vip = s.f.ip(9, 2);
        let group = w.group(other_vip, 17, 80);
        let back = w.member(group, s.f.client(), 5353);
        w.redirected(back, FAR, 3, s.peer); // makes the group redirect; the member is at the client's device:
        w.maps.endpoints.remove(&FAR);
        w.edit(back).ifindex = CLIENT;
        w.local(s.f.client(), CLIENT);
        w.at(CLIENT).flags |= endpoint_flags::REDIRECT_BACK;

        // Member → other VIP → client.
        let ask = Packet::udp(s.f.member(0), 8080, other_vip, 80).macs(MEMBER_HOST_MAC, MEMBER_MAC);
        let asked = s.onto_client(ask.clone().to(s.f.client(), 5353));
        let r = row(format!("{s:?}: the member asks the client"), w).egress(NEAR, &ask);
        let r = r.handed(CLIENT, s.peer, Reason::NewFlow, &asked).by(back).event(back, NewFlow).event(back, Established);
        let r = if s.peer { r.also(CLIENT, Ingress, Reason::NotOurs) } else { r };
        // Client → VIP → member, with the ports of the flow above: at the member it is that flow's answer.
        let m = udp_member(s.f);
        let tell = Packet::udp(s.f.client(), 5353, s.f.vip(), 80);
        let told = tell.clone().to(s.f.member(0), 8080);
        let out = s.onto_member(if s.peer { told.from(other_vip, 80) } else { told }); // not the peer: its device's own program follows
        let mut r = r;
        // The flow is cached from the second packet on; the member's ingress stages are passed all the same.
        for reason in [Reason::NewFlow, Reason::Established, Reason::Established, Reason::Established] {
            r = r.egress(CLIENT, &tell).handed(NEAR, s.peer, reason, &out).by(m);
            if s.peer {
                r = r.also(NEAR, Ingress, Reason::Reply).by_as(back, Ingress);
            }
        }
        rows.push(r.event(m, NewFlow).event(m, Established).holds(2, 0).quota(1, 1).quota(MEMBER_SLOT, 1));
    }
    run(rows);
}
