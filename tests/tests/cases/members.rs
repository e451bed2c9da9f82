//! Members that come, go, drain and fail, and two VIPs that lead to one member.

use vnet_common::lb::MemberEvent::{Established, NewFlow, Reset};
use vnet_common::lb::{flags, state};
use vnet_common::verdict::{Direction, Reason};

use super::answers::reset;
use super::packet::{ACK, FIN, Packet, SYN};
use super::row::{Row, on_host, row, run};
use super::tcp::Connection;
use super::udp::udp_member;
use super::world::{CLIENT, FAMILIES, Family, World};

/// A row for each family, with an open connection and a cached copy of it.
fn each_open(name: &str, f: impl Fn(Connection, Row) -> Row) -> Vec<Row> {
    let open = |family| {
        let c = Connection::new(family, 8080);
        f(c, c.talk(c.open(row(format!("{family:?}: {name}"), World::balanced(8080)))))
    };
    FAMILIES.into_iter().map(open).collect()
}

#[test]
fn judged_again() {
    run(each_open("another generation", |c, r| c.talk(r.change(World::bump)).holds(1, 0).quota(1, 1)));
    run(each_open("many generations", |c, mut r| {
        for _ in 0..4 {
            r = c.talk(r.change(World::bump));
        }
        r.holds(1, 0).quota(1, 1)
    }));
    for s in [state::DRAINING, state::DOWN] {
        run(each_open(&format!("a member in state {s} keeps its connections"), |c, r| {
            let m = c.member;
            let r = r.change(move |w| {
                w.set_state(m, s);
                w.bump();
            });
            c.talk(r).holds(1, 0).quota(1, 1)
        }));
    }
    run(FAMILIES.into_iter().map(|f| {
        let c = Connection::new(f, 8080);
        let r = c.half_open(row(format!("{f:?}: another generation in the handshake"), World::balanced(8080)));
        let r = c.gets(r.change(World::bump), SYN | ACK, Reason::HalfOpen);
        c.sends(r, ACK, Reason::Established).event(c.member, Established).holds(1, 0).quota(1, 1)
    }));
}

/// What may become of a member or its group so that its flows cannot go on.
type Removal = (&'static str, fn(&mut World, Connection));

const REMOVALS: [Removal; 3] = [
    ("the member is removed", |w, c| w.set_state(c.member, state::NONE)),
    ("the member's row has another member", |w, c| w.edit(c.member).serial += 100),
    ("the member's row is another group's", |w, c| w.edit(c.member).group += 100),
];

#[test]
fn removed_and_reset() {
    for (name, remove) in REMOVALS {
        run(each_open(&format!("{name}: reset"), |c, r| {
            let r = r.change(move |w| {
                remove(w, c);
                w.bump();
            });
            let r = r.ingress(CLIENT, &c.down(ACK)).dropped(Reason::MemberRemoved);
            r.egress(CLIENT, &c.up(ACK)).answered(Reason::MemberRemoved, &reset(&c.up(ACK))).holds(0, 0)
        }));
    }
    run(each_open("the member is removed: a SYN is a new connection", |c, r| {
        let r = r.change(move |w| {
            w.edit(c.member).serial += 100;
            w.bump();
        });
        c.syn(r).holds(0, 1)
    }));
    run(each_open("the VIP's port is removed", |c, r| {
        let r = r.change(move |w| {
            w.maps.vips.remove(&World::vip_key(c.f.vip(), 6, 80));
            w.bump();
        });
        let r = r.egress(CLIENT, &c.up(ACK)).answered(Reason::MemberRemoved, &reset(&c.up(ACK)));
        r.egress(CLIENT, &c.up(ACK)).answered(Reason::VipPortClosed, &reset(&c.up(ACK))).holds(0, 0)
    }));
}

#[test]
fn removed_and_picked_anew() {
    run(FAMILIES.into_iter().map(|f| {
        let c = Connection::new(f, 8080);
        let mut w = World::balanced(8080);
        w.set_flags(c.member, flags::REMOVED_REPICK);
        let other = w.member(c.member, f.member(1), 8080);
        w.set_state(other, state::DOWN);
        let r = c.talk(c.open(row(format!("{f:?}: removed, another is picked"), w)));
        let r = r.change(move |w| {
            w.set_state(c.member, state::NONE);
            w.set_state(other, state::ACTIVE);
            w.bump();
        });
        let there = c.up(ACK).to(f.member(1), 8080);
        let r = r.egress(CLIENT, &c.up(ACK)).becomes(Reason::NewFlow, &there).by(other).event(other, NewFlow);
        // The new member has no such connection; its reset reaches the client from the VIP.
        let down = Packet::tcp(f.member(1), 8080, f.client(), c.sport, super::packet::RST);
        let r = r.ingress(CLIENT, &down).becomes(Reason::HalfOpen, &down.clone().from(f.vip(), 80)).by(other);
        r.event(other, Reset).holds(0, 0)
    }));
    run(FAMILIES.into_iter().map(|f| {
        let m = udp_member(f);
        let q = Packet::udp(f.client(), 5353, f.vip(), 80);
        let new = |r: Row| {
            let r = r.egress(CLIENT, &q).becomes(Reason::NewFlow, &q.clone().to(f.member(0), 8080)).by(m);
            r.event(m, NewFlow).event(m, Established)
        };
        let r = new(row(format!("{f:?}: UDP, the member's row has another member"), World::balanced(8080)));
        let r = r.change(move |w| {
            w.edit(m).serial += 100;
            w.bump();
        });
        new(r).holds(1, 0).quota(1, 1)
    }));
}

#[test]
fn drained() {
    run(FAMILIES.into_iter().map(|f| {
        let c = Connection::new(f, 8080);
        let mut w = World::balanced(8080);
        let other = w.member(c.member, f.member(1), 8080);
        w.set_state(other, state::DOWN);
        let r = c.talk(c.open(row(format!("{f:?}: drained"), w)));
        // No generation passes: draining is a change of the pick table.
        let r = r.change(move |w| {
            w.set_state(c.member, state::DRAINING);
            w.set_state(other, state::ACTIVE);
        });
        let new = c.up(SYN).sport(40001);
        let r = r.egress(CLIENT, &new).becomes(Reason::NewFlow, &new.clone().to(f.member(1), 8080)).by(other);
        c.talk(r.event(other, NewFlow)).holds(1, 1).quota(1, 1)
    }));
}

#[test]
fn rows_that_contradict() {
    let f = Family::V4;
    let c = Connection::new(f, 8080);
    let broken = |name: &str, change: fn(&mut World)| {
        let mut w = World::balanced(8080);
        change(&mut w);
        row(name, w).egress(CLIENT, &c.up(SYN)).dropped(Reason::BadRow)
    };
    run([
        broken("the group's row is another group's", |w| w.maps.groups[0].serial += 1),
        broken("the pick table names a free row", |w| w.maps.members[0].state = state::NONE),
        broken("the pick table names another group's member", |w| w.maps.members[0].group = 9),
    ]);
}

/// Two VIPs, port 80, whose groups share members: VIP 1 has member 0, VIP 2 the first `second` members.
fn two_vips(f: Family, protocol: u8, second: u8) -> World {
    let mut w = World::new();
    let one = w.group(f.vip(), protocol, 80);
    w.member(one, f.member(0), 8080); // row 0
    let two = w.group(f.ip(9, 2), protocol, 80);
    for n in 0..second {
        w.member(two, f.member(n), 8080); // rows 1 and up
    }
    w
}

fn syn(f: Family, vip: u8, sport: u16) -> Packet {
    Packet::tcp(f.client(), sport, f.ip(9, vip), 80, SYN)
}

/// Where the pipeline sends a SYN from `sport` to VIP 2: destination and source port. What it picks is its own business;
/// rows want to know beforehand.
fn lead(w: &World, f: Family, sport: u16) -> (Vec<u8>, u16) {
    let mut frame = (&syn(f, 2, sport)).into();
    let _ = on_host(w, Direction::Egress, CLIENT, &mut frame, false);
    let (dst, l4) = if f == Family::V4 { (30..34, 34) } else { (38..54, 54) };
    (frame.bytes[dst].to_vec(), u16::from_be_bytes([frame.bytes[l4], frame.bytes[l4 + 1]]))
}

/// A world in which the client's `sport` leads to VIP 1's member already.
fn taken(f: Family, second: u8, sport: u16) -> World {
    let w = two_vips(f, 6, second);
    let _ = on_host(&w, Direction::Egress, CLIENT, &mut (&syn(f, 1, sport)).into(), false);
    w
}

fn octets(a: std::net::IpAddr) -> Vec<u8> {
    match a {
        std::net::IpAddr::V4(a) => a.octets().to_vec(),
        std::net::IpAddr::V6(a) => a.octets().to_vec(),
    }
}

#[test]
fn two_vips_one_member() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let sport = 40000;
        let (_, port) = lead(&taken(f, 1, sport), f, sport);
        assert!(port >= 49152, "a translated port is a dynamic one, not {port}");
        let (one, two) = (syn(f, 1, sport), syn(f, 2, sport));
        let r = row(format!("{f:?}: the second connection gets another source port"), two_vips(f, 6, 1));
        let r = r.egress(CLIENT, &one).becomes(Reason::NewFlow, &one.clone().to(f.member(0), 8080)).by(0).event(0, NewFlow);
        let there = |p: &Packet| p.clone().to(f.member(0), 8080).sport(port);
        let r = r.egress(CLIENT, &two).becomes(Reason::NewFlow, &there(&two)).by(1).event(1, NewFlow);
        // Replies find their own flow each, and get back address and both ports.
        let down = Packet::tcp(f.member(0), 8080, f.client(), sport, SYN | ACK);
        let r = r.ingress(CLIENT, &down).becomes(Reason::HalfOpen, &down.clone().from(f.vip(), 80)).by(0);
        let down = Packet::tcp(f.member(0), 8080, f.client(), port, SYN | ACK);
        let client = |p: &Packet| p.clone().from(f.ip(9, 2), 80).to(f.client(), sport);
        let r = r.ingress(CLIENT, &down).becomes(Reason::HalfOpen, &client(&down)).by(1);
        let two = two.flags(ACK);
        let mut r = r.egress(CLIENT, &two).becomes(Reason::Established, &there(&two)).by(1).event(1, Established);
        let down = down.flags(ACK);
        for _ in 0..2 {
            r = r.ingress(CLIENT, &down).becomes(Reason::Reply, &client(&down)).by(1);
            r = r.egress(CLIENT, &two).becomes(Reason::Established, &there(&two)).by(1);
        }
        rows.push(r.holds(1, 1).quota(1, 1));
    }
    run(rows);
}

#[test]
fn two_vips_two_members() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        // A source port that VIP 2 would lead to the member that VIP 1 has for it, and that then goes to the other.
        let moves = |p: &u16| {
            let first = lead(&two_vips(f, 6, 2), f, *p).0;
            first == octets(f.member(0)) && lead(&taken(f, 2, *p), f, *p) == (octets(f.member(1)), *p)
        };
        let sport = (40000..41000).find(moves).expect("one in four ports does");
        let (one, two) = (syn(f, 1, sport), syn(f, 2, sport));
        let r = row(format!("{f:?}: the second connection gets the other member"), two_vips(f, 6, 2));
        let r = r.egress(CLIENT, &one).becomes(Reason::NewFlow, &one.clone().to(f.member(0), 8080)).by(0).event(0, NewFlow);
        let r = r.egress(CLIENT, &two).becomes(Reason::NewFlow, &two.clone().to(f.member(1), 8080)).by(2).event(2, NewFlow);
        rows.push(r.holds(0, 2));
    }
    run(rows);
}

#[test]
fn two_vips_one_after_the_other() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let (one, two) = (syn(f, 1, 40000), syn(f, 2, 40000));
        let there = |p: &Packet| p.clone().to(f.member(0), 8080);
        let r = row(format!("{f:?}: a closed connection leaves its tuple"), two_vips(f, 6, 1));
        let r = r.egress(CLIENT, &one).becomes(Reason::NewFlow, &there(&one)).by(0).event(0, NewFlow);
        let down = |flags| Packet::tcp(f.member(0), 8080, f.client(), 40000, flags);
        let back = |flags| down(flags).from(f.vip(), 80);
        let r = r.ingress(CLIENT, &down(SYN | ACK)).becomes(Reason::HalfOpen, &back(SYN | ACK)).by(0);
        let fin = one.flags(FIN | ACK);
        let r = r.egress(CLIENT, &fin).becomes(Reason::Established, &there(&fin)).by(0).event(0, Established);
        let r = r.ingress(CLIENT, &down(FIN | ACK)).becomes(Reason::Reply, &back(FIN | ACK)).by(0);
        let r = r.egress(CLIENT, &two).becomes(Reason::NewFlow, &there(&two)).by(1).event(1, NewFlow);
        rows.push(r.holds(0, 1));
    }
    run(rows);
}
