use std::collections::HashMap;

use vnet_common::api::EVENT_KINDS;

use super::*;

fn names() -> Names {
    let rule = RuleRef { id: 3, kind: "Policy".into(), resource: "web".into(), rule: "no-telnet".into(), ..RuleRef::default() };
    Names {
        endpoints: Arc::new(HashMap::from([(7, "vm-1".into())])),
        addresses: Arc::new(HashMap::from([([10, 0, 0, 9].into(), "vm-2".into())])),
        rules: Arc::new(HashMap::from([(3, Arc::new(rule))])),
        ..Names::default()
    }
}

fn row() -> EventRow {
    EventRow {
        endpoint: 7,
        rule: 3,
        peer: 20,
        bytes: 74,
        src: *b"\x0a\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0",
        dst: *b"\x0a\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\0",
        sport: [0x9c, 0x40],
        dport: [0, 23],
        protocol: protocol::TCP,
        version: 4,
        reason: Reason::NoMember as u8,
        kind: kind::DROP,
        tcp: 0x12,
        ..EventRow::default()
    }
}

fn put(events: &Events, rows: &[EventRow]) {
    events.packets(rows, &names(), |row| 1000 + row.jiffies);
}

fn all(events: &Events, filter: Filter) -> Vec<Event> {
    let mut reader = events.read(filter, None, false);
    std::iter::from_fn(|| reader.ready()).collect()
}

#[test]
fn a_packet_is_told_with_names() {
    let events = Events::default();
    put(&events, &[EventRow { jiffies: 5, ..row() }]);
    let [event] = &all(&events, Filter::default())[..] else { panic!() };
    assert_eq!((event.number, event.at_ms, event.count), (1, 1005, 1));
    assert_eq!((&*event.kind, &*event.endpoint, &*event.direction, &*event.reason), ("drop", "vm-1", "egress", "no-member"));
    assert_eq!(event.rule.as_ref().unwrap().rule, "no-telnet");
    let p = event.packet.as_ref().unwrap();
    assert_eq!((&*p.protocol, &*p.src, &*p.dst, &*p.peer, &*p.flags), ("TCP", "10.0.0.1", "10.0.0.9", "vm-2", "SA"));
    assert_eq!((p.sport, p.dport, p.icmp, p.bytes), (Some(40000), Some(23), None, 74));
}

#[test]
fn peers_that_are_no_endpoints_are_called_by_their_identity() {
    let events = Events::default();
    let stranger = EventRow { dst: [8; 16], ..row() };
    let incoming = EventRow { src: stranger.dst, dst: row().src, direction: Direction::Ingress as u8, peer: 3, ..row() };
    let rows = [
        EventRow { peer: 3, ..stranger },
        EventRow { peer: 20, ..stranger },
        // Not looked up.
        EventRow { peer: 0, ..stranger },
        EventRow { peer: 0, ..row() },
        incoming,
    ];
    put(&events, &rows);
    let peers: Vec<_> = all(&events, Filter::default()).into_iter().map(|e| e.packet.unwrap().peer).collect();
    assert_eq!(peers, ["world", "", "", "vm-2", "world"]);
}

#[test]
fn other_protocols_have_what_they_have() {
    let events = Events::default();
    let ping = EventRow { protocol: protocol::ICMPV6, version: 6, dport: [128, 1], tcp: 0, ..row() };
    let arp = EventRow { version: 0, protocol: 0, ethertype: ethertype::ARP, tcp: 0, ..row() };
    let gre = EventRow { protocol: 47, tcp: 0, endpoint: 8, rule: 4, reason: 255, ..row() };
    put(&events, &[ping, arp, gre]);
    let events = all(&events, Filter::default());
    let packet = |i: usize| events[i].packet.clone().unwrap();
    assert_eq!((packet(0).protocol, packet(0).icmp, packet(0).dport), ("ICMPv6".into(), Some((128, 1)), None));
    assert_eq!((packet(1).protocol, packet(1).src), ("ARP".into(), String::new()));
    assert_eq!((packet(2).protocol, packet(2).sport), ("47".into(), None));
    // What is no more has its number.
    assert_eq!(events[2].endpoint, "(gone, number 8)");
    assert_eq!(events[2].rule.as_ref().map(|r| (r.id, &*r.rule)), Some((4, "(removed)")));
    assert_eq!(events[2].reason, "(of a newer datapath)");
}

#[test]
fn filters_are_all_true_at_once_and_what_was_suppressed_is_always_told() {
    let events = Events::default();
    put(&events, &[row(), EventRow { kind: kind::LOG, ..row() }, EventRow { endpoint: 9, ..row() }]);
    events.suppressed(12);
    events.say(Saying::Move, "vm-1", "quarantined", "vm-1 was moved");
    let numbers = |filter: Filter| all(&events, filter).iter().map(|e| e.number).collect::<Vec<_>>();
    let list = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    assert_eq!(numbers(Filter::default()), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(Filter { endpoints: list(&["vm-1"]), ..Filter::default() }), [1, 2, 4, 5]);
    assert_eq!(numbers(Filter { kinds: list(&["log", "move"]), ..Filter::default() }), [2, 4, 5]);
    assert_eq!(numbers(Filter { reasons: list(&["no-member"]), ..Filter::default() }), [1, 2, 3, 4]);
    let both = Filter { endpoints: list(&["vm-1"]), kinds: list(&["drop"]), ..Filter::default() };
    assert_eq!(numbers(both), [1, 4]);
    let said = all(&events, Filter { kinds: list(&["move"]), ..Filter::default() }).pop().unwrap();
    assert_eq!((&*said.reason, &*said.message, said.packet), ("quarantined", "vm-1 was moved", None));
}

#[test]
fn what_was_left_out_is_told_with_its_cause() {
    let events = Events::default();
    events.suppressed(12);
    events.untold(7);
    let told: Vec<_> = all(&events, Filter::default()).into_iter().map(|e| (e.kind, e.count, e.message)).collect();
    assert!(told.iter().all(|(kind, ..)| kind == "suppressed"));
    assert!(told[0].1 == 12 && told[0].2.contains("--event-rate"), "{told:?}");
    assert!(told[1].1 == 7 && told[1].2.contains("quarantine log"), "{told:?}");
}

#[test]
fn the_newest_are_kept() {
    let events = Events::default();
    let rows = vec![row(); KEPT / 2 + 1];
    put(&events, &rows);
    put(&events, &rows);
    let mut reader = events.read(Filter::default(), None, false);
    assert_eq!(reader.ready().unwrap().number, 3, "two were too many");
    let mut later = events.read(Filter::default(), Some(KEPT as u64), false);
    assert_eq!(later.ready().unwrap().number, KEPT as u64 + 1);
}

#[tokio::test]
async fn who_follows_gets_what_comes() {
    let events = Events::default();
    put(&events, &[row()]);
    let mut new = events.read(Filter::default(), Some(1), true);
    let mut since = events.read(Filter::default(), None, true);
    put(&events, &[row()]);
    assert_eq!(new.next().await.unwrap().number, 2);
    assert_eq!((since.next().await.unwrap().number, since.next().await.unwrap().number), (1, 2));
    assert_eq!(events.followers(), 2);
    assert!(!events.wants_flows());
    let flows = events.read(Filter { kinds: vec!["flow".into()], ..Filter::default() }, None, true);
    assert!(events.wants_flows());
    drop((flows, new));
    assert!(!events.wants_flows());
    assert_eq!(events.followers(), 1);
    events.close();
    assert!(since.next().await.is_none(), "the agent has ended");
    assert!(events.read(Filter::default(), Some(2), true).next().await.is_none());
}

#[test]
fn who_is_too_slow_is_told_how_many_it_missed() {
    let events = Events::default();
    let mut slow = events.read(Filter::default(), None, true);
    let mut other = events.read(Filter { reasons: vec!["nothing".into()], ..Filter::default() }, None, true);
    put(&events, &vec![row(); QUEUE + 10]);
    let first: Vec<_> = (0..QUEUE).map(|_| slow.ready().unwrap()).collect();
    assert!(first.iter().all(|e| e.kind == "drop") && slow.ready().is_none());
    put(&events, &[row()]);
    let missed = slow.ready().unwrap();
    assert_eq!((&*missed.kind, missed.count, missed.number), ("suppressed", 10, QUEUE as u64 + 10));
    assert_eq!(slow.ready().unwrap().number, QUEUE as u64 + 11);
    assert!(other.ready().is_none(), "it missed nothing that it wants");
}

#[test]
fn a_hundred_thousand_packets_that_nobody_follows_are_taken() {
    let (events, names, rows) = (Events::default(), names(), vec![row(); 1000]);
    let start = std::time::Instant::now();
    for _ in 0..100 {
        events.packets(&rows, &names, |_| 0);
    }
    println!("{:?} for each event that nobody follows", start.elapsed() / 100_000);
}

#[test]
fn kinds_have_names() {
    let said = [Saying::Move, Saying::Tag, Saying::Health, Saying::Device, Saying::Policy, Saying::Source, Saying::Store];
    let named: Vec<_> = PACKETS.into_iter().map(|(_, name)| name).chain([SUPPRESSED]).chain(said.map(Saying::name)).collect();
    assert_eq!(named, EVENT_KINDS, "what may be asked for is what is reported");
    assert_eq!(packet_kinds(&["flow".into(), "drop".into(), "move".into()]), kind::FLOW | kind::DROP);
}
