//! Explanations on the real maps, and the kernel's programs on the same packets. Needs root.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::policing::{Endpoint, compile, enforce, names, subject};
use support::{MEMBER, Machine, VIP, balance, become_host, forward, open, serve_tcp};
use vnet_agent::datapath::{Datapath, Options, PolicySizes, Sizes};
use vnet_agent::explain::rows::{Image, Live};
use vnet_agent::explain::target::{Place, Scene};
use vnet_agent::explain::{Rehearsals, explain, loaded};
use vnet_common::api::{ExplainRequest, Explanation, Hop};
use vnet_common::endpoint::EndpointRow;
use vnet_common::verdict::Reason;

const WEB: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);

const POLICY: &str = r"
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: web }
spec:
  defaults: { egress: deny, ingress: deny }
  egress:
    - { name: to-db, peers: [{ group: db }], ports: [{ protocol: TCP, port: 80 }], action: allow }
    - { name: to-db-again, peers: [{ group: db }], action: allow }
    - { name: ping, peers: [{ cidr: 10.0.0.0/8 }], ports: [{ protocol: ICMP, type: 8 }], action: allow }
    - { name: vip, peers: [{ cidr: 10.9.9.9/32 }], action: allow }
  ingress:
    - { name: ssh, peers: [{ cidr: 10.7.0.0/16 }], ports: [{ protocol: TCP, port: 22 }], action: allow }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: db }
spec:
  defaults: { egress: allow, ingress: allow }
  ingress:
    - { name: no-telnet, ports: [{ protocol: TCP, port: 23 }], action: reject }
---
apiVersion: vnet/v1alpha1
kind: Policy
metadata: { name: first }
spec:
  tier: security
  appliedTo: { groups: [web] }
  egress:
    - { name: hand-on, peers: [{ group: db }], action: pass }
    - { name: never-asked, peers: [{ group: db }], action: deny }
---
apiVersion: vnet/v1alpha1
kind: Policy
metadata: { name: trial }
spec:
  tier: ops
  appliedTo: { groups: [web] }
  mode: staged
  egress:
    - { name: would-cut, peers: [{ group: db }], ports: [{ protocol: TCP, port: 80 }], action: deny }
";

struct World {
    datapath: Arc<Datapath>,
    scene: Scene,
    rehearsals: Rehearsals,
    client: Machine,
    _member: Machine,
}

fn place(machine: &Machine, name: &str, address: Ipv4Addr) -> Place {
    let (device, ifindex) = (machine.device.clone(), machine.ifindex());
    Place { name: name.into(), device, ifindex, mac: [2; 6], host_mac: [4; 6], addresses: vec![address.into()] }
}

/// `web` and `db` are endpoints of this host, `far` is one elsewhere.
fn world(policy: &str) -> World {
    world_with(policy, "web")
}

fn world_with(policy: &str, far: &str) -> World {
    become_host();
    forward();
    let (client, member) = (Machine::new(1, "c0"), Machine::new(2, "m0"));
    serve_tcp(&member);
    let datapath = Arc::new(open().0);
    let endpoints: [Endpoint<'_>; 3] = [
        ("web", client.ifindex(), WEB.into(), "web"),
        ("db", member.ifindex(), MEMBER.into(), "db"),
        ("far", 0, FAR.into(), far),
    ];
    let image = compile(policy, endpoints.iter().map(subject).collect(), &[IpAddr::from([10, 0, 1, 1])]);
    balance(&datapath, MEMBER);
    enforce(&datapath, &image, &endpoints);
    let maps = datapath.maps();
    for machine in [&client, &member] {
        datapath.attach(machine.ifindex()).unwrap();
    }
    let names = names(&image, &endpoints, |name| if name == "web" { 100 } else { 101 });
    let places = vec![place(&client, "web", WEB), place(&member, "db", MEMBER)];
    assert_eq!(maps.endpoint(client.ifindex()).unwrap().map(|r: EndpointRow| r.id), Some(100));
    let scene = Scene { places, host: vec![[10, 0, 1, 1].into()], names };
    World { datapath, scene, rehearsals: Rehearsals::default(), client, _member: member }
}

fn request(from: &str, to: &str) -> ExplainRequest {
    ExplainRequest { from: from.into(), to: to.into(), live: true, ..ExplainRequest::default() }
}

impl World {
    /// The answer, in which the kernel agrees.
    fn ask(&self, request: &ExplainRequest) -> Explanation {
        let answer = loaded(&self.datapath, &self.rehearsals, &self.scene, request).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(answer.differences.as_deref(), Some(&[][..]), "{request:?}\n{answer:#?}");
        answer
    }

    fn refused(&self, request: &ExplainRequest) -> String {
        loaded(&self.datapath, &self.rehearsals, &self.scene, request).unwrap_err().to_string()
    }
}

fn rule(hop: &Hop) -> &str {
    hop.rule.as_ref().map_or("", |r| &r.rule)
}

fn stage<'a>(hop: &'a Hop, stage: &str) -> Vec<&'a str> {
    hop.stages.iter().filter(|s| s.stage == stage).map(|s| &*s.found).collect()
}

/// From, to, outcome and reason; then of each hop the reason and the rule.
type Case = (&'static str, &'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

#[test]
fn every_kind_of_packet_is_explained_as_the_kernel_treats_it() {
    let w = world(POLICY);
    let cases: [Case; 11] = [
        ("web", "db:80", "allowed", "allowed", &[("allowed", "to-db"), ("allowed", "default")]),
        ("web", "10.0.2.2:443/tcp", "allowed", "allowed", &[("allowed", "to-db-again"), ("allowed", "default")]),
        ("web", "db:23", "refused", "rejected", &[("allowed", "to-db-again"), ("rejected", "no-telnet")]),
        ("web", "8.8.8.8:53/udp", "dropped", "denied", &[("denied", "default")]),
        ("web", "10.5.0.1/icmp", "allowed", "allowed", &[("allowed", "ping")]),
        ("web", "10.9.9.9:80", "allowed", "allowed", &[("new-flow", "vip"), ("allowed", "default")]),
        ("web", "10.9.9.9:81", "refused", "vip-port-closed", &[("vip-port-closed", "vip")]),
        ("web", "10.9.9.9/icmp", "answered", "vip-echo", &[("vip-echo", "ping")]),
        ("far", "web:22", "allowed", "allowed", &[("allowed", "ssh")]),
        ("far", "web:80", "dropped", "denied", &[("denied", "default")]),
        ("world", "web:22", "dropped", "denied", &[("denied", "default")]),
    ];
    let start = Instant::now();
    w.ask(&request("web", "db:80"));
    println!("the first with the kernel's programs: {:?}", start.elapsed());
    let start = Instant::now();
    w.ask(&request("web", "db:80"));
    println!("the second: {:?}", start.elapsed());
    for (from, to, outcome, reason, hops) in cases {
        let answer = w.ask(&request(from, to));
        let found: Vec<_> = answer.hops.iter().map(|h| (&*h.reason, rule(h))).collect();
        assert_eq!((&*answer.outcome, &*answer.reason, found), (outcome, reason, hops.to_vec()), "{from} {to}: {answer:#?}");
    }
    // Nothing of it is in the maps that serve. (IPv6 has a life of its own.)
    let flows = w.datapath.endpoint_flows(10, |_| true).unwrap().0;
    assert!(flows.iter().all(|f| f.client.ip().is_ipv6()), "{flows:?}");
    let counters = w.datapath.maps().endpoint_counters(0).unwrap();
    let counted = [Reason::NewFlow, Reason::VipPortClosed, Reason::VipEcho].map(|r| counters.packets[0][r as usize]);
    assert_eq!(counted, [0; 3]);
}

#[test]
fn stages_come_in_order_with_shadowed_passed_and_staged_rules() {
    let w = world(POLICY);
    let answer = w.ask(&request("web", "db:80"));
    let hop = &answer.hops[0];
    let stages: Vec<_> = hop.stages.iter().map(|s| &*s.stage).collect();
    assert_eq!(stages, ["endpoint", "parse", "anti-spoofing", "flow", "identity", "policy", "policy", "policy", "deliver"]);
    assert_eq!(hop.packet, "TCP 10.0.1.2:50000 > 10.0.2.2:80 [S], 54 bytes");
    let policy = stage(hop, "policy").join("; ");
    assert!(policy.contains("'hand-on' of Policy first") && policy.contains("passes it on"), "{policy}");
    assert!(policy.contains("'to-db' of SecurityGroup web") && policy.contains("allows it"), "{policy}");
    assert!(policy.contains("'would-cut' of Policy trial would decide"), "{policy}");
    assert!(stage(hop, "identity")[0].starts_with("10.0.2.2 is db: identity "), "{:?}", stage(hop, "identity"));
    let shadowed: Vec<_> = hop.shadowed.iter().map(|r| &*r.rule).collect();
    assert_eq!(shadowed, ["never-asked", "to-db-again", "default"]);
    assert_eq!((&*hop.verdict, &hop.rewritten), ("next", &None));
}

/// What holds `far` at its host.
const ISOLATED: &str = r"
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: isolated }
spec:
  quarantine: {}
  egress:
    - { name: db, peers: [{ group: db }], ports: [{ protocol: TCP }], action: allow }
";

#[test]
fn who_is_held_at_another_host_is_held_off_and_that_is_told() {
    let open = world(&format!("{POLICY}{ISOLATED}"));
    assert_eq!(open.ask(&request("db", "far:80")).outcome, "allowed");
    drop(open);
    let w = world_with(&format!("{POLICY}{ISOLATED}"), "isolated!");
    let answer = w.ask(&request("db", "far:80"));
    let hop = &answer.hops[0];
    assert_eq!((&*answer.outcome, &*answer.reason, rule(hop)), ("dropped", "quarantined", "default"));
    assert_eq!(hop.rule.as_ref().map(|r| (&*r.kind, &*r.resource)), Some(("PeerQuarantine", "isolated")));
    let identity = stage(hop, "identity")[0];
    assert!(identity.starts_with("10.7.0.1 is endpoint far on host b: identity "), "{identity}");
    assert!(identity.ends_with(&format!(" (at its host {})", support::policing::THERE)), "{identity}");
    let policy = stage(hop, "policy").join("; ");
    assert_eq!(policy, "rule 'default' of quarantine group isolated, which holds the peer, denies it (no. 1 of its list)");
    // What it may do at its host is decided by the endpoint's own rules here.
    let answer = w.ask(&request("far", "db:80"));
    assert_eq!((&*answer.outcome, rule(&answer.hops[0])), ("allowed", "default"));
    let answer = w.ask(&request("far", "db:23"));
    assert_eq!((&*answer.outcome, rule(&answer.hops[0])), ("refused", "no-telnet"));
    let policy = stage(&answer.hops[0], "policy").join("; ");
    assert!(policy.starts_with("rule 'db' of quarantine group isolated, which holds the peer, passes it on"), "{policy}");
    let answer = w.ask(&request("far", "web:22"));
    assert_eq!((&*answer.reason, rule(&answer.hops[0])), ("quarantined", "default"), "its own rules would let it in");
    assert_eq!(w.ask(&request("web", "db:80")).outcome, "allowed");
    // A rule allows the VIP; the member is held.
    assert_eq!(w.ask(&request("web", "10.9.9.9:80")).outcome, "allowed");
    balance(&w.datapath, FAR);
    let answer = w.ask(&request("web", "10.9.9.9:80"));
    assert_eq!((&*answer.reason, rule(&answer.hops[0])), ("quarantined", "default"));
}

#[test]
fn the_rewritten_packet_and_the_member_are_told() {
    let w = world(POLICY);
    let answer = w.ask(&request("web", "10.9.9.9:80"));
    let hop = &answer.hops[0];
    assert_eq!(hop.rewritten.as_deref(), Some("TCP 10.0.1.2:50000 > 10.0.2.2:80 [S], 54 bytes"));
    assert_eq!(stage(hop, "lb"), ["goes to member 10.0.2.2, port 80"]);
    assert_eq!(answer.hops[1].packet, "TCP 10.0.1.2:50000 > 10.0.2.2:80 [S], 54 bytes");
    let reject = w.ask(&request("web", "10.9.9.9:81"));
    assert_eq!(reject.hops[0].rewritten.as_deref(), Some("TCP 10.9.9.9:81 > 10.0.1.2:50000 [RA], 54 bytes"));
}

#[test]
fn a_packet_of_a_live_flow_follows_it() {
    let w = world(POLICY);
    let mut stream = w.client.inside(|| {
        std::net::TcpStream::connect_timeout(&(VIP, support::PORT).into(), Duration::from_secs(5)).expect("connecting")
    });
    support::echo(&mut stream);
    let sport = stream.local_addr().unwrap().port();
    let data = ExplainRequest { sport: Some(sport), flags: Some("A".into()), ..request("web", "10.9.9.9:80") };
    let answer = w.ask(&data);
    assert_eq!(answer.hops[0].reason, "established");
    let flow = stage(&answer.hops[0], "flow");
    assert!(flow[0].starts_with("known, opened by the endpoint, ") && flow[0].contains("what was decided holds"), "{flow:?}");
    assert_eq!((rule(&answer.hops[0]), stage(&answer.hops[0], "policy").len()), ("vip", 1));
    // After a change of the policy it is judged again; still nothing is changed in the maps that serve.
    w.datapath.maps().bump_generation().unwrap();
    for _ in 0..2 {
        let again = w.ask(&data);
        assert!(stage(&again.hops[0], "flow")[0].contains("judged again"), "{again:#?}");
        assert_eq!(again.hops[0].reason, "established");
    }
    // The other one's flow is none of it.
    assert_eq!(w.ask(&ExplainRequest { flags: Some("A".into()), ..request("web", "10.9.9.9:80") }).hops[0].reason, "new-flow");
    support::echo(&mut stream);
}

#[test]
fn a_frame_can_be_given_and_spoofing_is_seen() {
    let w = world(POLICY);
    let spoofed = "020000000001 020202020202 0800 4500001c00000000401100000a000163 08080808 13880035 00080000";
    let frame = |frame: &str, direction: &str| ExplainRequest {
        from: "web".into(),
        frame: Some(frame.into()),
        direction: Some(direction.into()),
        live: true,
        ..ExplainRequest::default()
    };
    let answer = w.ask(&frame(spoofed, "egress"));
    assert_eq!((&*answer.outcome, &*answer.reason), ("dropped", "spoofed-address"));
    assert_eq!(stage(&answer.hops[0], "anti-spoofing"), ["the source address is not the endpoint's"]);
    // As what reaches the endpoint it is from somebody else, and nobody checks that.
    assert_eq!(w.ask(&frame(spoofed, "ingress")).reason, "denied");
    assert!(w.refused(&frame("zz", "egress")).contains("hexadecimal"));
    assert!(w.refused(&frame(spoofed, "sideways")).contains("egress or ingress"));
    assert!(w.refused(&ExplainRequest { from: "far".into(), ..frame(spoofed, "egress") }).contains("no endpoint 'far'"));
}

#[test]
fn what_this_host_cannot_see_is_refused() {
    let w = world(POLICY);
    assert!(w.refused(&request("far", "8.8.8.8:80")).contains("no program of this host"));
    let mut scene = w.scene.clone();
    scene.places[0].ifindex = 0;
    let gone = loaded(&w.datapath, &w.rehearsals, &scene, &request("web", "8.8.8.8:80")).unwrap_err();
    assert!(gone.to_string().contains("does not exist"), "{gone}");
}

#[test]
fn files_that_are_not_applied_are_explained_without_touching_anything() {
    let w = world(POLICY);
    let stricter = POLICY.replace(
        "{ name: to-db, peers: [{ group: db }], ports: [{ protocol: TCP, port: 80 }], action: allow }",
        "{ name: closed, peers: [{ group: db }], ports: [{ protocol: TCP, port: 80 }], action: deny }",
    );
    let device = w.client.ifindex();
    let endpoints: [Endpoint<'_>; 2] = [("web", device, WEB.into(), "web"), ("db", 0, MEMBER.into(), "db")];
    let image = compile(&stricter, endpoints.iter().map(subject).collect(), &[]);
    let (tables, assigned) = image.fill(&["web"]).unwrap_or_else(|e| panic!("{e}"));
    let live = Live::new(&w.datapath).unwrap();
    let mut rows = Image::new(&live, tables);
    let (row, to) = (w.datapath.maps().endpoint(device).unwrap().unwrap(), &assigned["web"]);
    rows.endpoints.insert(device, EndpointRow { set: to.set, identity: to.identity, ..row });
    let scene = Scene { names: names(&image, &endpoints, |_| 100), ..w.scene.clone() };
    let answer = explain(&scene, &rows, &request("web", "db:80"), None).unwrap();
    assert_eq!((&*answer.outcome, rule(&answer.hops[0])), ("dropped", "closed"));
    assert_eq!(answer.differences, None);
    // The kernel runs what is loaded: that is another policy, which does not stay hidden.
    let asked = request("web", "db:80");
    let compared = w.rehearsals.with(&w.datapath, |stage| Ok(explain(&scene, &rows, &asked, Some(stage)).unwrap())).unwrap();
    assert_eq!(
        compared.differences.unwrap(),
        [
            "web: egress: the kernel's program returned next, expected was drop",
            "web: egress: the kernel's program counted allowed, expected was denied"
        ]
    );
    live.check().unwrap();
    assert_eq!(w.ask(&request("web", "db:80")).outcome, "allowed");
}

/// 10,000 endpoints in 1,000 groups with 10 rules each; 200 of them are on this host.
#[test]
fn an_explanation_among_10_000_rules_takes_milliseconds() {
    const GROUPS: u32 = 1000;
    become_host();
    let policy = PolicySizes { counters: 1 << 15, ..PolicySizes::default() };
    let sizes = Sizes { policy, endpoints: 256, ..support::sizes() };
    let datapath = Arc::new(Datapath::open(&Options { sizes, ..support::options() }).unwrap().0);
    let mut yaml = String::new();
    for g in 0..GROUPS {
        yaml += &format!(
            "---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: g{g} }}\nspec:\n  defaults: {{ egress: deny, ingress: deny }}\n  \
             egress:\n"
        );
        for r in 0..10 {
            let (peer, port) = ((g * 7 + r) % GROUPS, 1000 + r);
            yaml += &format!(
                "    - {{ name: r{r}, peers: [{{ group: g{peer} }}], ports: [{{ protocol: TCP, port: {port} }}], action: allow }}\n"
            );
        }
    }
    let address = |n: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n + 1));
    let texts: Vec<(String, String)> = (0..10 * GROUPS).map(|n| (format!("e{n}"), format!("g{}", n % GROUPS))).collect();
    let endpoints: Vec<Endpoint<'_>> = (0..)
        .zip(&texts)
        .map(|(n, (name, group))| (name.as_str(), if n < 200 { 1000 + n } else { 0 }, address(n), group.as_str()))
        .collect();
    let image = compile(&yaml, endpoints.iter().map(subject).collect(), &[]);
    enforce(&datapath, &image, &endpoints);
    let place = |n: u32| Place { name: format!("e{n}"), ifindex: 1000 + n, addresses: vec![address(n)], ..Place::default() };
    let names = names(&image, &endpoints, |name| 100 + name[1..].parse::<u32>().unwrap());
    let scene = Scene { places: (0..200).map(place).collect(), host: Vec::new(), names };
    let (rehearsals, mut took) = (Rehearsals::default(), Vec::new());
    for n in 0..200 {
        let asked =
            ExplainRequest { live: false, ..request(&format!("e{n}"), &format!("e{}:1003", (n * 7 + 3) % GROUPS + 3000)) };
        let start = Instant::now();
        let answer = loaded(&datapath, &rehearsals, &scene, &asked).unwrap();
        took.push(start.elapsed());
        assert_eq!((&*answer.outcome, rule(&answer.hops[0])), ("allowed", "r3"), "{answer:#?}");
    }
    took.sort_unstable();
    // The slowest of them on a busy machine is the machine's.
    println!("an explanation: median {:?}, slowest {:?}", took[100], took[199]);
    assert!(took[100] < Duration::from_millis(10), "{took:?}");
    assert!(!rehearsals.is_loaded());
}
