//! Events of the real programs, and flows of endpoints, as the agent reads them. Needs root.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::policing::{Endpoint, compile, enforce, names, subject};
use support::{MEMBER, Machine, PORT, become_host, forward, open, serve_tcp, wait_for};
use vnet_agent::datapath::Datapath;
use vnet_agent::observe::events::{Filter, Follower};
use vnet_agent::observe::{Observer, Reader, Settings, flows};
use vnet_common::api::Event;
use vnet_common::event::kind;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

const POLICY: &str = r"
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: web }
spec:
  defaults: { egress: deny, ingress: allow }
  egress:
    - { name: quiet, peers: [{ cidr: 10.0.2.2/32 }], ports: [{ protocol: TCP, port: 80 }], action: allow }
    - { name: told, peers: [{ cidr: 10.0.2.2/32 }], ports: [{ protocol: UDP, port: 53 }], action: allow, log: true }
---
apiVersion: vnet/v1alpha1
kind: Policy
metadata: { name: trial }
spec:
  tier: app
  appliedTo: { groups: [web] }
  mode: staged
  egress:
    - { name: no-dns, ports: [{ protocol: UDP, port: 53 }], action: deny }
";

/// A policed client and a member behind the host, which routes.
struct Scene {
    datapath: Arc<Datapath>,
    observer: Observer,
    client: Machine,
    _member: Machine,
}

fn scene() -> Scene {
    become_host();
    forward();
    let (client, member) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    serve_tcp(&member);
    let datapath = Arc::new(open().0);
    let endpoints: [Endpoint<'_>; 1] = [("vm-1", client.ifindex(), CLIENT.into(), "web")];
    let image = compile(POLICY, endpoints.iter().map(subject).collect(), &[]);
    enforce(&datapath, &image, &endpoints);
    datapath.attach(client.ifindex()).unwrap();
    let observer = Observer::default();
    observer.names.update(|n| *n = names(&image, &endpoints, |_| 100));
    Scene { datapath, observer, client, _member: member }
}

fn send(client: &Machine, to: impl Into<IpAddr>, port: u16) {
    let to = SocketAddr::new(to.into(), port);
    client.inside(|| UdpSocket::bind("0.0.0.0:5000").unwrap().send_to(b"hello", to).unwrap());
}

fn next(follower: &mut Follower) -> Event {
    let mut event = None;
    wait_for("an event", || {
        event = follower.ready();
        event.is_some()
    });
    event.unwrap()
}

fn rule(event: &Event) -> &str {
    event.rule.as_ref().map_or("", |r| &r.rule)
}

#[test]
fn what_rules_decide_is_reported_with_names() {
    let s = scene();
    let _reader = Reader::start(&s.observer, &s.datapath, Settings::default()).unwrap();
    let mut follower = s.observer.events.read(Filter::default(), None, true);
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    send(&s.client, MEMBER, 54);
    let event = next(&mut follower);
    assert_eq!((&*event.kind, &*event.endpoint, &*event.direction, &*event.reason), ("drop", "vm-1", "egress", "denied"));
    assert_eq!((rule(&event), event.number, event.count), ("default", 1, 1));
    assert!(event.at_ms >= before - 20 && event.at_ms <= before + 10_000, "{} {before}", event.at_ms);
    let p = event.packet.unwrap();
    assert_eq!((&*p.protocol, &*p.src, &*p.dst), ("UDP", "10.0.1.2", "10.0.2.2"));
    assert_eq!((p.sport, p.dport, p.bytes), (Some(5000), Some(54), 47));

    // A staged rule would have denied what another one allows, and logs.
    send(&s.client, MEMBER, 53);
    let (staged, logged) = (next(&mut follower), next(&mut follower));
    assert_eq!((&*staged.kind, rule(&staged)), ("staged", "no-dns"));
    assert_eq!((&*logged.kind, rule(&logged), &*logged.reason), ("log", "told", "allowed"));

    // Nobody asks for flows.
    drop(direct(&s.client));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(follower.ready(), None);
    let filter = Filter { kinds: vec!["flow".into()], ..Filter::default() };
    let mut flows = s.observer.events.read(filter, None, true);
    wait_for("the programs to report flows", || s.datapath.maps().events().unwrap() & kind::FLOW != 0);
    drop(direct(&s.client));
    let flow = next(&mut flows);
    assert_eq!((&*flow.kind, rule(&flow), flow.packet.as_ref().unwrap().dport), ("flow", "quiet", Some(PORT)));
    drop(flows);
    wait_for("the programs to report none", || s.datapath.maps().events().unwrap() & kind::FLOW == 0);
}

/// A connection to the member itself.
fn direct(client: &Machine) -> std::net::TcpStream {
    client.inside(|| std::net::TcpStream::connect_timeout(&(MEMBER, PORT).into(), Duration::from_secs(5)).expect("connecting"))
}

#[test]
fn more_than_the_rate_is_counted_and_told() {
    const PACKETS: u32 = 500;
    let s = scene();
    let settings = Settings { kinds: kind::DROP, rate: 100 };
    let _reader = Reader::start(&s.observer, &s.datapath, settings).unwrap();
    let mut follower = s.observer.events.read(Filter::default(), None, true);
    s.client.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:5000").unwrap();
        for _ in 0..PACKETS {
            socket.send_to(b"hello", (MEMBER, 54)).unwrap();
        }
    });
    let (mut dropped, mut suppressed) = (0, 0);
    wait_for("all to be told", || {
        while let Some(event) = follower.ready() {
            match &*event.kind {
                "drop" => dropped += event.count,
                "suppressed" => suppressed += event.count,
                other => panic!("{other}"),
            }
        }
        dropped + suppressed >= u64::from(PACKETS)
    });
    assert_eq!(dropped + suppressed, u64::from(PACKETS));
    assert!(dropped >= 1 && suppressed > u64::from(PACKETS) / 2, "{dropped} {suppressed}");
    let budget = s.datapath.maps().event_budget().unwrap();
    assert_eq!((budget.reported, budget.suppressed), (dropped, suppressed));
}

#[test]
fn what_is_not_wanted_is_not_reported() {
    let s = scene();
    let reader = Reader::start(&s.observer, &s.datapath, Settings { kinds: 0, rate: 100 }).unwrap();
    send(&s.client, MEMBER, 54);
    let counters = s.datapath.maps().endpoint_counters(0).unwrap();
    assert_eq!(counters.packets[0][vnet_common::verdict::Reason::Denied as usize], 1, "nothing was dropped");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(s.observer.events.read(Filter::default(), None, false).ready(), None);
    let budget = s.datapath.maps().event_budget().unwrap();
    assert_eq!((budget.reported, budget.suppressed), (0, 0));
    // The thread ends with the reader, and has nothing that the datapath would have to wait for.
    let start = Instant::now();
    drop(reader);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(Arc::strong_count(&s.datapath), 1);
}

#[test]
fn what_was_reported_while_no_agent_read_is_read_by_the_next() {
    let s = scene();
    s.datapath.maps().set_events(kind::DROP, 100).unwrap();
    send(&s.client, MEMBER, 54);
    let _reader = Reader::start(&s.observer, &s.datapath, Settings::default()).unwrap();
    let mut follower = s.observer.events.read(Filter::default(), Some(0), true);
    assert_eq!(next(&mut follower).packet.unwrap().dport, Some(54));
}

#[test]
fn flows_of_an_endpoint_are_listed_with_rule_and_peer() {
    let s = scene();
    let mut out = direct(&s.client);
    support::echo(&mut out);
    // Opened by the other side.
    let listener = s.client.inside(|| std::net::TcpListener::bind("0.0.0.0:7000").unwrap());
    let inward = std::net::TcpStream::connect_timeout(&(CLIENT, 7000).into(), Duration::from_secs(5)).expect("connecting");
    let accepted = listener.accept().unwrap();
    let names = s.observer.names.get();
    let list = flows::list(&s.datapath, &names, Some(100), 10).unwrap();
    assert_eq!((list.total, list.flows.len()), (2, 2), "{list:#?}");
    let out_flow = list.flows.iter().find(|f| f.opened == "out").expect("the flow that it opened");
    assert_eq!((&*out_flow.endpoint, &*out_flow.protocol, &*out_flow.state), ("vm-1", "TCP", "established"));
    assert_eq!(
        (out_flow.local.as_str(), out_flow.remote.as_str()),
        (out.local_addr().unwrap().to_string().as_str(), "10.0.2.2:80")
    );
    assert_eq!((&*out_flow.verdict, out_flow.rule.as_ref().map(|r| &*r.rule)), ("allowed", Some("quiet")));
    assert_eq!((&out_flow.member, &out_flow.lb), (&None, &None));
    assert!(out_flow.packets[0] >= 3 && out_flow.packets[1] >= 2, "{out_flow:?}");
    let in_flow = list.flows.iter().find(|f| f.opened == "in").expect("the flow that was opened to it");
    assert_eq!((in_flow.local.as_str(), in_flow.rule.as_ref().map(|r| &*r.rule)), ("10.0.1.2:7000", Some("default")));
    assert_eq!(in_flow.remote, inward.local_addr().unwrap().to_string());
    assert_eq!(s.datapath.flows(10, |_| true).unwrap().1, 0, "none of them is balanced");
    assert_eq!(flows::list(&s.datapath, &names, Some(7), 10).unwrap().total, 0);
    drop(accepted);
}
