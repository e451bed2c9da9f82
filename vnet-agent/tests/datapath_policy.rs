//! Policy rows in the kernel: what is written is what is read, also by an agent with larger maps. Needs root.

mod support;

use std::time::Instant;

use support::{become_host, open, options, row};
use vnet_agent::datapath::endpoints::Placement;
use vnet_agent::datapath::{Datapath, Options, Origin, PolicySizes, Sizes};
use vnet_common::endpoint::{EndpointRow, flags};
use vnet_common::event::kind;
use vnet_common::map::ENDPOINT_ROWS;
use vnet_common::policy::{ADDRESS_BITS, AddressKey, NetworkKey, PeerKey, PortRow, RuleRow, SetRow, Side, action, identity};

fn address(addr: [u8; 4]) -> AddressKey {
    let [a, b, c, d] = addr;
    AddressKey { network: 0, version: 4, addr: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }
}

fn network(addr: [u8; 4], prefix: u32) -> NetworkKey {
    NetworkKey { bits: ADDRESS_BITS + prefix, address: address(addr) }
}

fn set() -> SetRow {
    let side = Side { rules: 7, words: 1, ports: 3, port_rows: 2, any_peer: 4, enforced: 5 };
    SetRow { sides: [side, Side { rules: 8, ..side }], flags: 1, serial: 9, pad: [0; 2] }
}

/// One row of everything.
fn fill(d: &Datapath) {
    let maps = d.maps();
    maps.put_bits(4, &[0b101, u64::MAX]).unwrap();
    maps.put_ports(3, &[PortRow { start: 0, bits: 4 }, PortRow { start: 6 << 16 | 22, bits: 5 }]).unwrap();
    maps.put_rules(7, &[RuleRow { id: 1, action: action::DENY, ..RuleRow::default() }]).unwrap();
    maps.put_set(1, &set()).unwrap();
    maps.put_peers(&[(PeerKey { side: 2, identity: 16 }, 4), (PeerKey { side: 3, identity: 17 }, 5)]).unwrap();
    maps.put_identities(&[(address([10, 0, 0, 1]), 16)]).unwrap();
    maps.put_networks(&[(network([10, 0, 0, 0], 8), 17), (network([10, 1, 0, 0], 16), 18), (network([0, 0, 0, 0], 0), 3)])
        .unwrap();
}

fn is_filled(d: &Datapath) {
    let maps = d.maps();
    assert_eq!(maps.bits(3, 4).unwrap(), [0, 0b101, u64::MAX, 0]);
    assert_eq!(maps.ports(4, 1).unwrap(), [PortRow { start: 6 << 16 | 22, bits: 5 }]);
    assert_eq!(maps.rules(7, 1).unwrap()[0].id, 1);
    assert_eq!(maps.sets().into_iter().collect::<Vec<_>>(), [(1, set())]);
    let mut peers = maps.peers().unwrap();
    peers.sort_unstable();
    assert_eq!(peers, [(PeerKey { side: 2, identity: 16 }, 4), (PeerKey { side: 3, identity: 17 }, 5)]);
    assert_eq!(maps.identities().unwrap(), [(address([10, 0, 0, 1]), 16)]);
    let mut networks = maps.networks().unwrap();
    networks.sort_unstable_by_key(|n| n.1);
    assert_eq!(networks.iter().map(|n| (n.0.bits - ADDRESS_BITS, n.1)).collect::<Vec<_>>(), [(0, 3), (8, 17), (16, 18)]);
}

#[test]
fn what_is_written_is_read_and_removed_rows_are_gone() {
    become_host();
    let (d, _) = open();
    fill(&d);
    is_filled(&d);
    let maps = d.maps();
    let of = |a: [u8; 4]| maps.identity_of(&address(a)).unwrap();
    assert_eq!([of([10, 0, 0, 1]), of([10, 0, 0, 2]), of([10, 1, 2, 3]), of([8, 8, 8, 8])], [16, 17, 18, identity::WORLD]);
    let v6 = AddressKey { version: 6, ..address([10, 0, 0, 1]) };
    assert_eq!(maps.identity_of(&v6).unwrap(), identity::UNKNOWN);
    let other = AddressKey { network: 1, ..address([10, 0, 0, 1]) };
    assert_eq!(maps.identity_of(&other).unwrap(), identity::UNKNOWN);

    // One that is not there, in front, between and behind.
    let key = |identity| PeerKey { side: 2, identity };
    maps.remove_peers(&[key(99), key(16), key(98), PeerKey { side: 3, identity: 17 }, key(97)]).unwrap();
    assert_eq!(maps.peers().unwrap(), []);
    maps.remove_networks(&[network([10, 0, 0, 0], 8), network([10, 0, 0, 0], 9)]).unwrap();
    assert_eq!(of([10, 0, 0, 2]), identity::WORLD);
    maps.remove_identities(&[address([10, 0, 0, 1])]).unwrap();
    assert_eq!(maps.identities().unwrap(), []);

    let error = maps.put_rules(1023, &[RuleRow::default(); 2]).unwrap_err();
    assert!(error.to_string().contains("RULES"), "{error}");
    assert!(maps.bits(4095, 2).unwrap_err().to_string().contains("BITS"));
    assert!(maps.put_set(64, &set()).is_err());
}

#[test]
fn more_peers_than_fit_are_refused_with_the_map_s_name() {
    become_host();
    let (d, _) = open();
    let rows: Vec<_> = (0..5000).map(|n| (PeerKey { side: 2, identity: n }, n)).collect();
    let error = format!("{:#}", d.maps().put_peers(&rows).unwrap_err());
    assert!(error.contains("map PEERS") && error.contains("4096"), "{error}");
}

#[test]
fn larger_maps_keep_the_policy() {
    become_host();
    let (d, _) = open();
    fill(&d);
    drop(d);
    let p = support::sizes().policy;
    let larger = |n: u32| 2 * n;
    let policy = PolicySizes {
        sets: larger(p.sets),
        rules: larger(p.rules),
        ports: larger(p.ports),
        bits: larger(p.bits),
        peers: larger(p.peers),
        addresses: larger(p.addresses),
        networks: larger(p.networks),
        counters: larger(p.counters),
        events: larger(p.events),
    };
    let (d, report) = Datapath::open(&Options { sizes: Sizes { policy, ..support::sizes() }, ..options() }).unwrap();
    assert!(matches!(report.origin, Origin::Migrated { .. }), "{report:?}");
    is_filled(&d);
    for (name, before) in [("SETS", p.sets), ("CIDRS", p.networks), ("RULE_COUNTERS", p.counters), ("EVENTS", p.events)] {
        assert_eq!(d.maps().capacity(name), Some(2 * before), "{name}");
    }
}

#[test]
fn a_move_changes_what_follows_from_rules_and_nothing_else() {
    become_host();
    let (d, _) = open();
    // The second has its row in the overflow table: the first one's is in its place.
    for (ifindex, slot) in [(9, 0), (9 + ENDPOINT_ROWS, 1)] {
        let before = EndpointRow { flags: flags::PEER | flags::NEIGHBORS, mac: [2; 6], ..row(ifindex, 7 + slot, slot) };
        d.maps().set_endpoint(&before).unwrap();
        let held = flags::POLICED | flags::QUARANTINED | flags::DHCP;
        // REDIRECT_BACK is none of a move's business.
        let to = Placement { set: 6, identity: 18, group: 3, moves: 41, mirror: 12, flags: held | flags::REDIRECT_BACK };
        assert!(d.maps().set_quarantine(ifindex, &to).unwrap());
        let moved = EndpointRow { set: 6, identity: 18, flags: flags::PEER | held, ..before };
        let moved = moved.with_membership(3, 41).with_mirror(12);
        assert_eq!(d.maps().endpoint(ifindex).unwrap().unwrap(), moved);

        let back = Placement { set: 5, identity: 17, group: 1, moves: 42, mirror: 0, flags: flags::POLICED };
        assert!(d.maps().set_quarantine(ifindex, &back).unwrap());
        let released = EndpointRow { set: 5, identity: 17, flags: flags::PEER | flags::POLICED, ..before };
        assert_eq!(d.maps().endpoint(ifindex).unwrap().unwrap(), released.with_membership(1, 42));
    }
    assert!(!d.maps().set_quarantine(10, &Placement::default()).unwrap());
}

#[test]
fn switches_are_words_of_their_own() {
    become_host();
    let (d, _) = open();
    let maps = d.maps();
    maps.set_flow_quota(77).unwrap();
    maps.set_tunnel_ports(&[4789, 6081]).unwrap();
    maps.set_events(kind::DROP | kind::LOG, 500).unwrap();
    assert_eq!(maps.tunnel_ports().unwrap(), [4789, 6081]);
    assert_eq!((maps.events().unwrap(), maps.flow_quota().unwrap()), (kind::DROP | kind::LOG, 77));
    assert!(maps.set_tunnel_ports(&[1, 2, 3, 4, 5]).unwrap_err().to_string().contains("at most 4"));
    assert_eq!(maps.tunnel_ports().unwrap(), [4789, 6081]);
    maps.set_tunnel_ports(&[]).unwrap();
    assert!(maps.tunnel_ports().unwrap().is_empty());
    let budget = maps.event_budget().unwrap();
    assert_eq!((budget.reported, budget.suppressed), (0, 0));
}

#[test]
fn thousands_of_rows_are_written_and_counters_read_quickly() {
    const ROWS: u32 = 100_000;
    become_host();
    let policy = PolicySizes { peers: 1 << 17, addresses: 1 << 17, counters: 1 << 16, ..support::sizes().policy };
    let (d, _) = Datapath::open(&Options { sizes: Sizes { policy, ..support::sizes() }, ..options() }).unwrap();
    let maps = d.maps();
    let peers: Vec<_> = (0..ROWS).map(|n| (PeerKey { side: n % 128, identity: n / 128 }, n)).collect();
    let start = Instant::now();
    maps.put_peers(&peers).unwrap();
    let (put, start) = (start.elapsed(), Instant::now());
    assert_eq!(maps.peers().unwrap().len(), ROWS as usize);
    let (read, start) = (start.elapsed(), Instant::now());
    maps.remove_peers(&peers.iter().map(|p| p.0).collect::<Vec<_>>()).unwrap();
    let (removed, start) = (start.elapsed(), Instant::now());
    let counters = maps.rule_counters(10_000).unwrap();
    println!(
        "{ROWS} peers: written in {put:?}, read in {read:?}, removed in {removed:?}; 10,000 counters in {:?}",
        start.elapsed()
    );
    assert_eq!((counters.len(), maps.peers().unwrap().len()), (10_000, 0));
    assert!(maps.rule_counters((1 << 16) + 1).is_err());
}
