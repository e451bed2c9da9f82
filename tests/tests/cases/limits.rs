//! Quotas, full tables, and what the flow cache may hold back.

use vnet_common::addr::V4;
use vnet_common::endpoint::EndpointMaps;
use vnet_common::flow::{CACHE_WAYS, FLUSH_JIFFIES, FlowEntry, FlowKey};
use vnet_common::host::Frame;
use vnet_common::lb::MemberEvent::{Established, NewFlow};
use vnet_common::verdict::{Direction, Reason, Verdict};

use super::packet::{ACK, Packet, SYN, UDP};
use super::policy;
use super::row::{Row, on_host, row, run};
use super::rules::{SET, allow, deny};
use super::tcp::{Connection, tcp_member};
use super::udp::udp_member;
use super::world::{CLIENT, FAMILIES, Family, World};

const HALF_OPEN: usize = vnet_common::endpoint::HALF_OPEN_QUOTA as usize;

#[test]
fn half_open_connections() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let (old, m) = (Connection::new(f, 8080), tcp_member(f));
        let flood = |n: usize| Connection { sport: 1000 + n as u16, ..old };
        let mut r = old.talk(old.open(row(format!("{f:?}: a flood replaces its own oldest"), World::balanced(8080))));
        for n in 0..HALF_OPEN + 2 {
            r = flood(n).syn(r);
        }
        // The first three had lost their places (the open connection had one before it was open): two more to go round.
        r = old.talk(r);
        r = r.ingress(CLIENT, &flood(0).down(SYN | ACK)).passes(Reason::NotOurs);
        r = r.ingress(CLIENT, &flood(1).down(SYN | ACK)).passes(Reason::NotOurs);
        let late = flood(HALF_OPEN + 1);
        r = late.sends(late.gets(r, SYN | ACK, Reason::HalfOpen), ACK, Reason::Established).event(m, Established);
        // A client that goes on all the same is picked up in mid-stream.
        let lost = flood(0);
        r = lost.sends(r, ACK, Reason::NewFlow).event(m, NewFlow);
        rows.push(r.holds(2, HALF_OPEN - 1).quota(1, 2));
    }
    run(rows);
}

fn ask(r: Row, f: Family, sport: u16) -> Row {
    let p = Packet::udp(f.client(), sport, f.vip(), 80);
    let m = udp_member(f);
    let r = r.egress(CLIENT, &p).becomes(Reason::NewFlow, &p.clone().to(f.member(0), 8080)).by(m);
    r.event(m, NewFlow).event(m, Established)
}

fn refused(r: Row, f: Family, sport: u16, reason: Reason) -> Row {
    r.egress(CLIENT, &Packet::udp(f.client(), sport, f.vip(), 80)).dropped(reason)
}

#[test]
fn flows_of_an_endpoint() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        let world = || {
            let mut w = World::balanced(8080);
            w.maps.flow_quota = 2;
            w
        };
        let c = Connection::new(f, 8080);
        let r = ask(ask(row(format!("{f:?}: a third UDP flow"), world()), f, 1), f, 2);
        rows.push(refused(r, f, 3, Reason::FlowQuota).holds(2, 0).quota(1, 2));
        // A connection may be opened, but not established; the client sends again, and gets through when there is room.
        let r = c.half_open(ask(ask(row(format!("{f:?}: a third connection"), world()), f, 1), f, 2));
        let r = r.egress(CLIENT, &c.up(ACK)).dropped(Reason::FlowQuota);
        let r = r.egress(CLIENT, &c.up(ACK)).dropped(Reason::FlowQuota);
        let r = r.change(|w| w.maps.flow_quota = 3);
        let r = c.sends(r, ACK, Reason::Established).event(c.member, Established);
        rows.push(r.holds(3, 0).quota(1, 3));
    }
    let r = ask(ask(row("the quota is both families'", World::balanced(8080)), Family::V4, 1), Family::V6, 1);
    let r = r.change(|w| w.maps.flow_quota = 2);
    rows.push(refused(r, Family::V4, 2, Reason::FlowQuota).holds(2, 0).quota(1, 2));
    run(rows);
}

/// Two CPUs may each remove one of the two entries of a flow: its quota is given back once.
#[test]
fn a_quota_is_given_back_once() {
    run(FAMILIES.into_iter().flat_map(|f| {
        [Direction::Egress, Direction::Ingress].map(|removed| {
            let mut w = policy::world(f, &[allow(1)], &[allow(2)]);
            w.maps.flow_quota = 1;
            let ask = |port| Packet::udp(f.client(), 4000, f.ip(5, 1), port);
            let r = row(format!("{f:?}: another CPU removed the {removed:?} entry"), w).host_only();
            let r = r.egress(CLIENT, &ask(1)).passes(Reason::Allowed);
            let r = r.change(move |w| {
                w.maps.flows4.main.borrow_mut().retain(|key, _| key.direction != removed as u8);
                w.maps.flows6.main.borrow_mut().retain(|key, _| key.direction != removed as u8);
                if removed == Direction::Egress {
                    w.maps.give_flow(1);
                }
                w.set(SET, &[deny(3).port(UDP, 1), allow(1)], &[deny(4).port(UDP, 4000)]);
                w.bump();
            });
            let r = match removed {
                Direction::Egress => r.ingress(CLIENT, &ask(1).back()).dropped(Reason::Denied),
                Direction::Ingress => r.egress(CLIENT, &ask(1)).dropped(Reason::Denied),
            };
            let r = r.egress(CLIENT, &ask(2)).passes(Reason::Allowed);
            r.egress(CLIENT, &ask(3)).dropped(Reason::FlowQuota).holds(1, 0).quota(1, 1)
        })
    }));
}

/// A reverse entry without a forward one: for a moment another CPU may be making the flow, later it is dead.
#[test]
fn another_cpu_makes_the_flow() {
    run(FAMILIES.into_iter().flat_map(|f| {
        let unfinished = |w: &mut World| {
            w.maps.flows4.main.borrow_mut().retain(|key, _| key.direction == Direction::Ingress as u8);
            w.maps.flows6.main.borrow_mut().retain(|key, _| key.direction == Direction::Ingress as u8);
            w.maps.give_flow(1);
        };
        let later = |w: &mut World| w.maps.now.set(w.maps.now.get() + 2);
        let p = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        let r = row(format!("{f:?}: a flow that is not rewritten"), policy::world(f, &[allow(1)], &[allow(2)])).host_only();
        let r = r.egress(CLIENT, &p).passes(Reason::Allowed).change(unfinished);
        let r = r.egress(CLIENT, &p).dropped(Reason::FlowCollision).change(later).egress(CLIENT, &p).passes(Reason::Allowed);
        let plain = r.egress(CLIENT, &p).passes(Reason::Established).holds(1, 0).quota(1, 1);
        let (m, port) = (udp_member(f), 1);
        let again = Packet::udp(f.client(), port, f.vip(), 80);
        let there = again.clone().to(f.member(0), 8080);
        let r = row(format!("{f:?}: a balanced one"), World::balanced(8080)).host_only();
        let r = ask(r, f, port).change(unfinished);
        let r = r.egress(CLIENT, &again).dropped(Reason::FlowCollision).change(later);
        let r = ask(r, f, port).egress(CLIENT, &again).becomes(Reason::Established, &there).by(m);
        [plain, r.holds(1, 0).quota(1, 1)]
    }));
}

/// Should more have been given back than was taken, the endpoint has flows all the same.
#[test]
fn a_quota_below_nothing() {
    run(FAMILIES.map(|f| {
        let w = policy::world(f, &[allow(1)], &[allow(2)]);
        w.maps.flow_counts.borrow_mut().insert(1, u32::MAX);
        let ask = Packet::udp(f.client(), 4000, f.ip(5, 1), 53);
        row(format!("{f:?}: one too many was given back"), w).host_only().egress(CLIENT, &ask).passes(Reason::Allowed).holds(1, 0)
    }));
}

#[test]
fn full_tables() {
    let mut rows = Vec::new();
    for f in FAMILIES {
        // 3 entries: the second flow finds room for its reverse entry only, and takes it back.
        for capacity in [2, 3] {
            let world = || {
                let mut w = World::balanced(8080);
                w.maps.capacity = capacity;
                w
            };
            let start = |name: &str| row(format!("{f:?}, {capacity} entries: {name}"), world()).host_only();
            let c = Connection::new(f, 8080);
            rows.push(refused(ask(start("UDP"), f, 1), f, 2, Reason::FlowTableFull).holds(1, 0).quota(1, 1));
            let r = c.syn(start("half-open"));
            let other = Connection { sport: 40001, ..c };
            rows.push(r.egress(CLIENT, &other.up(SYN)).dropped(Reason::FlowTableFull).holds(0, 1));
            let r = c.half_open(ask(start("established"), f, 1));
            rows.push(r.egress(CLIENT, &c.up(ACK)).dropped(Reason::FlowTableFull).holds(1, 1).quota(1, 1));
        }
    }
    run(rows);
}

/// The main entry of the client's UDP flow.
fn entry(w: &World) -> FlowEntry<V4> {
    let main = w.maps.flows4.main.borrow();
    let (_, e) = main.iter().find(|(k, _)| k.direction == Direction::Egress as u8).expect("the flow");
    *e
}

fn send(w: &World, frame: &Frame) {
    let verdict = on_host(w, Direction::Egress, CLIENT, &mut frame.clone(), false);
    assert!(matches!(verdict, Verdict::Next(Reason::NewFlow | Reason::Established)), "{verdict:?}");
}

fn wait(w: &World, jiffies: u32) {
    w.maps.now.set(w.maps.now.get().wrapping_add(jiffies));
}

/// Row [`udp_member`] of IPv4: packets that its counters show.
fn counted(w: &World) -> u64 {
    w.maps.member_counters.borrow()[&1].packets[0]
}

#[test]
fn the_cache_writes_back() {
    // Across the point where the low half of jiffies wraps.
    for start in [1000, u32::MAX - FLUSH_JIFFIES / 2] {
        let w = World::balanced(8080);
        w.maps.now.set(start);
        let p: Frame = (&Packet::udp(Family::V4.client(), 5353, Family::V4.vip(), 80)).into();
        let len = p.bytes.len() as u64;
        send(&w, &p); // counted in the entry
        send(&w, &p); // counted too, and the flow put into the cache
        for _ in 0..5 {
            wait(&w, 1);
            send(&w, &p);
        }
        assert_eq!((entry(&w).packets, counted(&w)), (2, 2), "the cache holds five");
        wait(&w, FLUSH_JIFFIES - 5 - 1);
        send(&w, &p);
        assert_eq!((entry(&w).packets, counted(&w)), (2, 2), "one jiffy too early");
        wait(&w, 1);
        send(&w, &p);
        let e = entry(&w);
        assert_eq!((e.packets, e.bytes, counted(&w)), (9, 9 * len, 9), "written back");
        assert_eq!(e.last_seen, w.maps.now.get());
    }
}

#[test]
fn an_idle_flow_gives_up_its_slot_and_its_counts() {
    let mut w = World::balanced(8080);
    w.maps.cache_slots = CACHE_WAYS;
    let from = |sport| (&Packet::udp(Family::V4.client(), sport, Family::V4.vip(), 80)).into();
    let old: Vec<Frame> = (0..CACHE_WAYS as u16).map(|n| from(5353 + n)).collect();
    let new: Frame = from(6000);
    for f in old.iter().cycle().take(4 * old.len()) {
        send(&w, f);
    }
    let first = u64::from(CACHE_WAYS);
    assert_eq!(counted(&w), 2 * first, "the cache holds two of each");
    send(&w, &new);
    send(&w, &new);
    assert_eq!(counted(&w), 2 * first + 2, "the slots are taken: counted at once");
    wait(&w, 2 * FLUSH_JIFFIES);
    send(&w, &new);
    assert_eq!(counted(&w), 2 * first + 2 + 3, "an idle flow's two were written back, and the packet was counted");
    let main = w.maps.flows4.main.borrow();
    let is_old = |k: &FlowKey<V4>| k.direction == Direction::Egress as u8 && k.sport != 6000u16.to_be_bytes();
    let mut packets: Vec<u64> = main.iter().filter(|(k, _)| is_old(k)).map(|(_, e)| e.packets).collect();
    packets.sort_unstable();
    assert_eq!(packets, [2, 2, 2, 4]);
}

#[test]
fn a_copy_that_is_void_again_and_again_is_still_written_back() {
    use vnet_common::flow::FlowMaps;
    use vnet_common::hash;
    let w = World::balanced(8080);
    let p: Frame = (&Packet::udp(Family::V4.client(), 5353, Family::V4.vip(), 80)).into();
    send(&w, &p);
    let key = *w.maps.flows4.main.borrow().keys().find(|k| k.direction == 0).expect("the flow");
    for _ in 0..10 {
        wait(&w, FLUSH_JIFFIES / 2);
        // As when another flow with the same stamp goes.
        FlowMaps::<V4>::bump_stamp(&w.maps, hash::flow(&key));
        send(&w, &p);
    }
    assert!(w.maps.now.get() - entry(&w).last_seen < FLUSH_JIFFIES, "an active flow looks idle");
    assert_eq!(entry(&w).packets, 11);
}

/// The entry's last-seen time is what decides whether it is collected.
#[test]
fn a_flow_that_comes_into_the_cache_late_was_seen_just_now() {
    let mut w = World::balanced(8080);
    w.maps.cache_slots = CACHE_WAYS;
    let p: Frame = (&Packet::udp(Family::V4.client(), 5353, Family::V4.vip(), 80)).into();
    send(&w, &p);
    wait(&w, 100 * FLUSH_JIFFIES);
    send(&w, &p);
    assert_eq!(entry(&w).last_seen, w.maps.now.get());
    // Its slot goes to others, long after: that is no sign of life.
    w.maps.flows4.cache.borrow_mut().values_mut().for_each(|s| s.packets = u32::from(s.key.endpoint != 0));
    let last = w.maps.now.get();
    for n in 0..64 {
        wait(&w, 100 * FLUSH_JIFFIES);
        let other: Frame = (&Packet::udp(Family::V4.client(), 6000 + n, Family::V4.vip(), 80)).into();
        (0..2).for_each(|_| send(&w, &other));
    }
    let main = w.maps.flows4.main.borrow();
    let (_, e) = main.iter().find(|(k, _)| k.direction == 0 && k.sport == 5353u16.to_be_bytes()).expect("the flow");
    assert!(e.last_seen.wrapping_sub(last) <= FLUSH_JIFFIES, "{} jiffies later", e.last_seen.wrapping_sub(last));
}
