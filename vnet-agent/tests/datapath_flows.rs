//! The flow table in the kernel, as the agent reads it and cleans it up. Needs root.

mod support;

use std::time::{Duration, Instant};

use support::{
    CLIENT_ID, MEMBER, Machine, PORT, VIP, balance, become_host, connect, echo, forward, open, options, row, serve_tcp,
};
use vnet_agent::datapath::flows::FlowState;
use vnet_agent::datapath::gc::{Collected, Collector};
use vnet_agent::datapath::{Datapath, Sizes};
use vnet_common::addr::V4;
use vnet_common::flow::{FlowEntry, FlowKey, Rewrite};

/// A whole sweep over all tables.
fn sweep(c: &mut Collector, d: &Datapath) -> Collected {
    let mut all = Collected::default();
    while !all.swept {
        let one = c.tick(d).unwrap();
        all = Collected {
            read: all.read + one.read,
            removed: all.removed + one.removed,
            corrected: all.corrected + one.corrected,
            swept: one.swept,
            took: all.took + one.took,
        };
    }
    all
}

#[test]
fn a_connection_is_listed_with_what_caches_hold() {
    become_host();
    forward();
    let (client, member) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    serve_tcp(&member);
    let (d, _) = open();
    d.maps().set_endpoint(&row(client.ifindex(), CLIENT_ID, 0)).unwrap();
    balance(&d, MEMBER);
    d.attach(client.ifindex()).unwrap();
    let mut stream = connect(&client);
    let started = Instant::now();
    for _ in 0..50 {
        echo(&mut stream);
    }
    let (flows, total) = d.flows(10, |_| true).unwrap();
    assert_eq!((flows.len(), total), (1, 1));
    let f = &flows[0];
    assert_eq!((f.endpoint, f.protocol, f.state), (CLIENT_ID, 6, FlowState::Established));
    assert_eq!(f.client, stream.local_addr().unwrap());
    assert_eq!(f.vip, (VIP, PORT).into());
    assert_eq!((f.member, f.member_row, f.serial, f.group), ((MEMBER, PORT).into(), 0, 100, 0));
    // SYN, ACK, then one packet each way for each echo and perhaps an ACK; Ethernet, IP and TCP headers are 66 bytes.
    assert!(f.traffic[0].packets >= 52 && f.traffic[1].packets >= 51, "{f:?}");
    assert!(f.traffic[0].bytes >= 52 * 66 + 50 * 5, "{f:?}");
    let counters = d.maps().member_counters(0).unwrap();
    let held = d.maps().pending().unwrap().member(0);
    assert_eq!(counters.packets[0] + held[0].packets, f.traffic[0].packets);
    assert_eq!(counters.bytes[1] + held[1].bytes, f.traffic[1].bytes);
    assert!(held[0].packets > 0, "nothing was in a cache: this tested less than it says");
    assert_eq!((counters.new_flows, counters.established), (1, 1));
    assert!(f.age <= started.elapsed() + Duration::from_millis(50) && f.idle <= f.age, "{f:?}");
    assert_eq!(d.maps().active_flows().unwrap().get(&(0, 100)), Some(&1));
    assert_eq!(d.flows(10, |group| group == 1).unwrap().1, 0);

    stream.shutdown(std::net::Shutdown::Write).unwrap();
    support::wait_for("the flow to close", || d.flows(10, |_| true).unwrap().0[0].state == FlowState::Closed);
    drop(d);
}

fn key(n: u32, endpoint: u32) -> FlowKey<V4> {
    let [_, b, c, d] = n.to_be_bytes();
    FlowKey {
        endpoint,
        src: V4::from([11, b, c, d]),
        dst: V4::from(VIP),
        sport: [4, 210],
        dport: PORT.to_be_bytes(),
        protocol: 17,
        ..FlowKey::default()
    }
}

/// Both entries of a flow.
type Pair = [(FlowKey<V4>, FlowEntry<V4>); 2];

fn pair(n: u32, endpoint: u32, last_seen: [u32; 2]) -> Pair {
    let key = key(n, endpoint);
    let rewrite = Rewrite { addr: V4::from(MEMBER), port: PORT.to_be_bytes(), client_port: key.sport };
    let forward = FlowEntry { rewrite, last_seen: last_seen[0], serial: 1, ..FlowEntry::default() };
    let reverse = FlowEntry { rewrite: key.unrewrite(), last_seen: last_seen[1], ..forward };
    [(key, forward), (key.partner(&rewrite), reverse)]
}

fn fill(d: &Datapath, flows: impl Iterator<Item = Pair>) {
    let (keys, entries): (Vec<_>, Vec<_>) = flows.flatten().unzip();
    d.maps().import_flows4(&keys, &entries).unwrap();
}

#[test]
fn a_pair_lives_as_long_as_either_side_was_seen() {
    become_host();
    let (d, _) = open();
    d.maps().set_endpoint(&row(99, CLIENT_ID, 0)).unwrap();
    let (now, second) = (d.now().unwrap(), d.ticks_per_second());
    let ago = |seconds: u32| now.wrapping_sub(seconds * second);
    fill(
        &d,
        [
            pair(1, CLIENT_ID, [ago(1), ago(1)]),
            pair(2, CLIENT_ID, [ago(31), ago(1)]),
            pair(3, CLIENT_ID, [ago(1), ago(31)]),
            pair(4, CLIENT_ID, [ago(31), ago(31)]),
        ]
        .into_iter(),
    );
    let removed = sweep(&mut Collector::default(), &d);
    assert_eq!((removed.read, removed.removed), (8, 1));
    let mut left: Vec<_> = d.flows(10, |_| true).unwrap().0.iter().map(|f| f.client.ip().to_string()).collect();
    left.sort();
    assert_eq!(left, ["11.0.0.1", "11.0.0.2", "11.0.0.3"]);
    // The quota had not counted them: it does now.
    assert_eq!((removed.corrected, d.maps().flow_count(0)), (1, Some(3)));
    let status = d.maps().status().unwrap();
    let used = |name: &str| status.iter().find(|m| m.name == name).unwrap().used;
    assert_eq!((used("FLOWS4"), used("FLOWS6"), used("GROUPS")), (Some(8), Some(0), None));
    assert_eq!(sweep(&mut Collector::default(), &d).read, 6);
}

#[test]
fn half_a_flow_and_flows_of_nobody_go_after_a_minute() {
    become_host();
    let (d, _) = open();
    d.maps().set_endpoint(&row(99, CLIENT_ID, 0)).unwrap();
    let (now, second) = (d.now().unwrap(), d.ticks_per_second());
    let ago = |seconds: u32| now.wrapping_sub(seconds * second);
    let [_, reverse] = pair(1, CLIENT_ID, [ago(61), ago(61)]);
    let [_, young] = pair(2, CLIENT_ID, [ago(59), ago(59)]);
    let established = pair(3, 1234, [ago(61), ago(61)]).map(|(k, e)| (FlowKey { protocol: 6, ..k }, e));
    d.maps().import_flows4(&[reverse.0, young.0], &[reverse.1, young.1]).unwrap();
    fill(&d, [established].into_iter());
    let removed = sweep(&mut Collector::default(), &d);
    assert_eq!((removed.read, removed.removed), (4, 2));
    assert_eq!(sweep(&mut Collector::default(), &d).read, 1);
}

#[test]
fn removing_a_flow_changes_its_stamps_and_frees_its_quota() {
    become_host();
    let (d, _) = open();
    d.maps().set_endpoint(&row(99, CLIENT_ID, 0)).unwrap();
    let second = d.ticks_per_second();
    let now = d.now().unwrap();
    let flow = pair(1, CLIENT_ID, [now, now]);
    fill(&d, [flow].into_iter());
    let mut c = Collector::default();
    assert_eq!(sweep(&mut c, &d).corrected, 1);
    assert_eq!(d.maps().flow_count(0), Some(1));
    let stamps = flow.map(|(k, _)| d.maps().stamp(&k).unwrap());
    let old = now.wrapping_sub(31 * second);
    fill(&d, [pair(1, CLIENT_ID, [old, old])].into_iter());
    assert_eq!(sweep(&mut c, &d).removed, 1);
    assert_eq!(d.maps().flow_count(0), Some(0));
    assert_eq!(flow.map(|(k, _)| d.maps().stamp(&k).unwrap()), stamps.map(|s| s + 1));
}

#[test]
fn half_a_million_entries_are_read_quickly() {
    const FLOWS: u32 = 250_000;
    become_host();
    let mut options = options();
    options.sizes = Sizes { flows: [1 << 19, 1024], ..options.sizes };
    let (d, _) = Datapath::open(&options).unwrap();
    d.maps().set_endpoint(&row(99, CLIENT_ID, 0)).unwrap();
    let now = d.now().unwrap();
    fill(&d, (0..FLOWS).map(|n| pair(n, CLIENT_ID, [now, now])));
    let alive = sweep(&mut Collector::default(), &d);
    assert_eq!((alive.read, alive.removed), (2 * FLOWS as usize, 0));
    let old = now.wrapping_sub(200 * d.ticks_per_second());
    fill(&d, (0..FLOWS).map(|n| pair(n, CLIENT_ID, [old, old])));
    let over = sweep(&mut Collector::default(), &d);
    assert_eq!(over.removed, FLOWS);
    let started = Instant::now();
    let (_, total) = d.flows(100, |_| true).unwrap();
    assert_eq!(total, 0);
    println!(
        "{} entries: read in {:?}, all {FLOWS} flows removed in {:?}, an empty table listed in {:?}",
        alive.read,
        alive.took,
        over.took,
        started.elapsed()
    );
}

#[test]
fn ticks_are_counted_at_the_rate_that_the_kernel_says() {
    become_host();
    let (d, _) = open();
    let rate = d.ticks_per_second();
    assert!([100, 250, 300, 1000].contains(&rate), "{rate}");
    let (start, first) = (Instant::now(), d.now().unwrap());
    std::thread::sleep(Duration::from_millis(500));
    let (ticks, elapsed) = (d.now().unwrap().wrapping_sub(first), start.elapsed());
    let ratio = f64::from(ticks) / f64::from(rate) / elapsed.as_secs_f64();
    assert!((0.8..1.2).contains(&ratio), "{ticks} ticks in {elapsed:?} at {rate} a second");
}
