//! Which member a new flow gets: by algorithm, affinity, and ranges of ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vnet_common::host::Frame;
use vnet_common::lb::MemberEvent::Reset;
use vnet_common::lb::flags::{self, LEAST_CONNECTIONS, ROUND_ROBIN, SOURCE_HASH};
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::packet::{ACK, FIN, Packet, RST};
use super::policy::each;
use super::row::{Row, on_host, row, run};
use super::tcp::Connection;
use super::world::{CLIENT, FAMILIES, Family, World};

/// The first ports of the clients' flows.
const FIRST: u16 = 2000;

/// A VIP whose UDP port 53 has three members at port 5300.
fn three(f: Family, bits: u32) -> World {
    let mut w = World::new();
    let group = w.group(f.vip(), 17, 53);
    for n in 0..3 {
        w.member(group, f.member(n), 5300);
    }
    w.set_flags(group, bits);
    w
}

fn question(f: Family, from: IpAddr, port: u16) -> Packet {
    Packet::udp(from, port, f.vip(), 53)
}

/// A packet of a new flow as it goes on, on the host.
fn sent(w: &World, p: &Packet) -> Frame {
    let mut frame = Frame::from(p);
    let verdict = on_host(w, Direction::Egress, CLIENT, &mut frame, false);
    assert_eq!(verdict, Verdict::Next(Reason::NewFlow));
    frame
}

/// A row in which each of `flows` goes to the member that is named.
fn flows(name: &str, f: Family, w: World, flows: &[(IpAddr, u16, u8)]) -> Row {
    let mut r = row(format!("{f:?}: {name}"), w);
    for (from, port, member) in flows {
        let p = question(f, *from, *port);
        r = r.egress(CLIENT, &p).becomes(Reason::NewFlow, &p.clone().to(f.member(*member), 5300));
        r = r.by(u32::from(*member)).events(u32::from(*member));
    }
    r.holds(flows.len(), 0).quota(1, flows.len() as u32)
}

#[test]
fn in_turn() {
    run(each(|f| {
        let turns: Vec<_> = (0..7).map(|n| (f.client(), FIRST + n, (n % 3) as u8)).collect();
        flows("round robin", f, three(f, ROUND_ROBIN), &turns)
    }));
}

/// In each family: who has fewest gets the next; a flow that ends makes room.
#[test]
fn the_fewest_connections() {
    run(each(|f| {
        let w = three(f, LEAST_CONNECTIONS);
        for (member, n) in [(0, 2), (1, 0), (2, 1)] {
            w.maps.active.borrow_mut().insert(member, n);
        }
        // The kernel's counts begin at 0: this row is about what one host does.
        let firsts = flows("fewest", f, w, &[(f.client(), FIRST, 1)]);
        firsts.host_only()
    }));
    // What the members have from other hosts counts like their own.
    run(each(|f| {
        let mut w = three(f, LEAST_CONNECTIONS);
        w.edit(0).elsewhere = 3;
        w.edit(2).elsewhere = 2;
        flows("fewest of all hosts", f, w, &[(f.client(), FIRST, 1), (f.client(), FIRST + 1, 1)])
    }));
    let mut counts = BTreeMap::new();
    for f in FAMILIES {
        let mut w = three(f, LEAST_CONNECTIONS);
        w.edit(0).share = 200;
        for port in 0..400 {
            sent(&w, &question(f, f.client(), FIRST + port));
        }
        counts = w.maps.active.borrow().iter().map(|(m, n)| (*m, *n)).collect();
        assert_eq!(counts, BTreeMap::from([(0, 200), (1, 100), (2, 100)]), "{f:?}: exactly as the weights say");
    }
    assert!(!counts.is_empty());
}

/// Of more members than are compared: those that are looked at come at random, and yet nobody has much more than its share.
#[test]
fn the_fewest_connections_of_many() {
    const MEMBERS: u8 = 40;
    const FLOWS: u16 = 6000;
    for f in FAMILIES {
        let mut w = World::new();
        let group = w.group(f.vip(), 17, 53);
        for n in 0..MEMBERS {
            let member = w.member(group, f.member(n), 5300);
            // Every fourth is twice as heavy.
            w.edit(member).share = if n % 4 == 0 { 200 } else { 100 };
        }
        w.set_flags(group, LEAST_CONNECTIONS);
        for port in 0..FLOWS {
            sent(&w, &question(f, f.client(), FIRST + port));
        }
        let counts: Vec<i64> = (0..u32::from(MEMBERS)).map(|m| w.maps.active.borrow().get(&m).copied().unwrap_or(0)).collect();
        let mean = |heavy: bool| i64::from(FLOWS) / 50 * if heavy { 2 } else { 1 };
        let off = counts.iter().enumerate().map(|(m, n)| (n - mean(m % 4 == 0)).abs()).max();
        println!("{f:?}: nobody is off its share of {} or {} flows by more than {off:?}", mean(false), mean(true));
        assert!(off <= Some(3), "{f:?}: {counts:?}");
    }
}

#[test]
fn by_the_clients_address() {
    run(each(|f| {
        let w = three(f, SOURCE_HASH);
        sent(&w, &question(f, f.client(), FIRST));
        let member = *w.maps.active.borrow().keys().next().unwrap() as u8;
        let all: Vec<_> = (0..6).map(|n| (f.client(), FIRST + n, member)).collect();
        flows("source hash", f, three(f, SOURCE_HASH), &all)
    }));
    // Other clients go elsewhere.
    for f in FAMILIES {
        let w = three(f, SOURCE_HASH);
        for host in 0..200 {
            sent(&w, &question(f, f.ip(5, host), FIRST));
        }
        let counts: Vec<i64> = w.maps.active.borrow().values().copied().collect();
        assert!(counts.len() == 3 && counts.iter().all(|n| (40..95).contains(n)), "{f:?}: {counts:?}");
    }
}

/// A client's flows stay where the first went, in spite of the algorithm, until its time is over or the member takes no more.
#[test]
fn affinity() {
    run(each(|f| {
        let w = three(f, ROUND_ROBIN | flags::affinity(60));
        flows("affinity", f, w, &[(f.client(), FIRST, 0), (f.client(), FIRST + 1, 0), (f.client(), FIRST + 2, 0)])
    }));
    for f in FAMILIES {
        let mut w = three(f, ROUND_ROBIN | flags::affinity(60));
        let next = |w: &World, host: u8, port: u16| {
            let frame = sent(w, &question(f, f.ip(0, host), port));
            let p = question(f, f.ip(0, host), port);
            (0..3).find(|n| frame.bytes == p.clone().to(f.member(*n), 5300).bytes()).unwrap()
        };
        assert_eq!([next(&w, 10, 1), next(&w, 10, 2), next(&w, 11, 3), next(&w, 10, 4)], [0, 0, 1, 0], "{f:?}");
        w.maps.seconds.set(w.maps.seconds.get() + 60);
        assert_eq!(next(&w, 10, 5), 0, "{f:?}: at the last moment");
        w.maps.seconds.set(w.maps.seconds.get() + 61);
        assert_eq!([next(&w, 10, 6), next(&w, 10, 7)], [2, 2], "{f:?}: its time was over");
        w.edit(2).share = 0;
        assert_ne!(next(&w, 10, 8), 2, "{f:?}: the member takes no new flows");
        let stuck = next(&w, 10, 9);
        w.edit(u32::from(stuck)).serial += 1;
        let after: Vec<_> = (10..13).map(|port| next(&w, 10, port)).collect();
        assert!(after.iter().all(|m| *m == after[0]), "{f:?}: another member in its row; then it sticks to that: {after:?}");
    }
}

/// A range of ports leads to members at the port that the client wants, or at their own; one port of it may lead elsewhere.
#[test]
fn ranges_of_ports() {
    run(each(|f| {
        let mut w = World::new();
        let group = w.group(f.vip(), 17, 8005);
        let single = w.member(group, f.member(0), 5300);
        let range = w.maps.groups.len() as u32;
        let other = w.group(f.ip(9, 9), 17, 1);
        assert_eq!(range, other);
        let wide = w.member(other, f.member(1), 0);
        // 8000 to 8063, and all others.
        w.range(f.vip(), 17, 8000, 10, other);
        let all = w.group(f.ip(9, 8), 17, 1);
        let any = w.member(all, f.member(2), 7);
        w.range(f.vip(), 17, 0, 0, all);
        let mut r = row(format!("{f:?}: ranges"), w);
        let flows = [(8005, 0, 5300, single), (8000, 1, 8000, wide), (8063, 1, 8063, wide), (8064, 2, 7, any), (1, 2, 7, any)];
        for (port, member, at, index) in flows {
            // Each from a port of its own: two to one member's port would be kept apart by another.
            let p = Packet::udp(f.client(), FIRST + port, f.vip(), port);
            r = r.egress(CLIENT, &p).becomes(Reason::NewFlow, &p.clone().to(f.member(member), at)).by(index).events(index);
            let answer = Packet::udp(f.member(member), at, f.client(), FIRST + port);
            r = r.ingress(CLIENT, &answer).becomes(Reason::Reply, &answer.clone().from(f.vip(), port)).by(index);
        }
        // Still theirs in another generation.
        r = r.change(World::bump);
        let p = Packet::udp(f.client(), FIRST + 8063, f.vip(), 8063);
        r = r.egress(CLIENT, &p).becomes(Reason::Established, &p.clone().to(f.member(1), 8063)).by(wide);
        r.holds(flows.len(), 0).quota(1, flows.len() as u32)
    }));
}

/// What a member has: from the first packet on until a connection is closed from both sides, or reset.
#[test]
fn connections_are_counted_while_they_are_open() {
    let active = |w: &World, n: i64| match w.maps.active.borrow().values().sum::<i64>() {
        is if is == n => Ok(()),
        is => Err(format!("{is} active instead of {n}")),
    };
    run(each(|f| {
        let c = Connection::new(f, 8080);
        let fresh = |name: &str| row(format!("{f:?}: {name}"), World::balanced(8080));
        // Closed by the client only.
        let half = || c.sends(c.open(fresh("closing")), FIN | ACK, Reason::Established);
        [
            c.half_open(fresh("half-open")).holds(0, 1).finally(move |w| active(w, 1)),
            c.talk(c.open(fresh("open"))).holds(1, 0).quota(1, 1).finally(move |w| active(w, 1)),
            c.sends(half(), ACK, Reason::Established).holds(1, 0).quota(1, 1).finally(move |w| active(w, 1)),
            c.gets(half(), FIN | ACK, Reason::Reply).holds(1, 0).quota(1, 1).finally(move |w| active(w, 0)),
            c.gets(c.syn(fresh("refused")), RST | ACK, Reason::HalfOpen).event(c.member, Reset).finally(move |w| active(w, 0)),
        ]
    })
    .into_iter()
    .flatten());
}
