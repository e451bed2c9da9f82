//! Other hosts and their endpoints, and who is held there.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use vnet_common::policy::action;
use vnet_common::policy::identity::{HOST, REMOTE_HOST, WORLD};
use vnet_common::verdict::Direction::{self, Egress, Ingress};

use super::super::rules::held::Led;
use super::super::rules::{Target, Written};
use super::super::subject::{HostKind, Subject};
use super::naive::{Packet, decided};
use super::*;
use crate::resource::{Protocol, Resource, parse};
use vnet_common::api::File;

/// Rules as users write them, and who there is.
#[derive(Clone)]
struct Scene {
    yaml: String,
    subjects: Vec<Subject>,
    hosts: Vec<(IpAddr, HostKind)>,
    led: Option<Vec<Led>>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `local` endpoints are on this host; others whose group ends with `!` are held there.
fn subject(name: &str, group: &str, local: bool, addresses: &[&str]) -> Subject {
    Subject {
        name: name.into(),
        labels: Arc::default(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        learned: vec![],
        group: group.trim_end_matches('!').into(),
        local,
        held: group.ends_with('!'),
        network: 0,
    }
}

/// Security groups: name and spec.
fn groups(all: &[(&str, &str)]) -> String {
    let group = |(name, spec): &(&str, &str)| {
        format!("apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n---\n")
    };
    all.iter().map(group).collect()
}

impl Scene {
    fn new(all: &[(&str, &str)], subjects: Vec<Subject>) -> Self {
        Self { yaml: groups(all), subjects, hosts: vec![], led: Some(vec![]) }
    }

    fn compile(&self, previous: Previous<'_>) -> Image {
        let resources = parse(&[File { name: "t.yaml".into(), text: self.yaml.clone() }]).unwrap();
        let (mut groups, mut policies) = (vec![], vec![]);
        for l in &resources {
            match &l.resource {
                Resource::SecurityGroup(g) => groups.push(g),
                Resource::Policy(p) => policies.push(p),
                other => panic!("{} is no policy", other.kind()),
            }
        }
        let target = Target { v4: true, protocol: Protocol::Tcp, port: 80, group: 3, serial: 7 };
        let led = self.led.clone().map(|led| move |_: &str| led.clone());
        let written = Written {
            groups,
            policies,
            origins: &HashMap::new(),
            targets: &|_| vec![target],
            elsewhere: led.as_ref().map(|led| led as &dyn Fn(&str) -> Vec<Led>),
        };
        let inputs = Inputs { written, subjects: self.subjects.clone(), hosts: self.hosts.clone(), networks: vec![] };
        Image::compile(&inputs, previous).unwrap()
    }

    fn start(&self) -> Image {
        self.compile(Previous::Start { ids: &RuleIds::default(), tables: &Tables::default() })
    }

    fn force(&self) -> Force {
        let mut force = Force { maps: Maps::default(), applier: Applier::default(), image: self.start() };
        force.put(force.image.clone());
        force
    }
}

/// An image in force.
struct Force {
    maps: Maps,
    applier: Applier,
    image: Image,
}

impl Force {
    /// Gives the writes, and whether flows are judged again.
    fn put(&mut self, image: Image) -> (Vec<Write>, bool) {
        let plan = self.applier.plan(&self.maps, &image).unwrap();
        let (writes, generation) = (plan.writes.clone(), self.maps.generation.get());
        self.applier.run(&self.maps, plan, &mut |a| self.maps.switch(a)).unwrap();
        self.image = image;
        (writes, self.maps.generation.get() > generation)
    }

    fn change(&mut self, subjects: Vec<Subject>) -> (Vec<Write>, bool) {
        self.put(self.image.with(subjects, &[]).unwrap())
    }

    fn policed(&self, name: &str) -> bool {
        self.applier.assignment(name).unwrap().policed
    }

    /// The deciding rule and what it does, of a TCP flow between an endpoint and a peer.
    fn decides(&self, endpoint: &str, direction: Direction, peer: &str, port: u16) -> String {
        let p = Packet { direction, peer: ip(peer), protocol: 6, port };
        let set = self.applier.assignment(endpoint).unwrap().set;
        let d = decided(&self.maps.tables.borrow(), &self.image, set, &p);
        let names = [(action::ALLOW, "allow"), (action::DENY, "deny"), (action::REJECT, "reject")];
        let name = names.iter().find(|(number, _)| *number == d.action).map_or("?", |(_, name)| name);
        format!("{} {} {name}", d.rule.0, d.rule.1)
    }
}

const OPEN: (&str, &str) = ("isolated", "quarantine: {}");

#[test]
fn who_is_held_elsewhere_is_held_off_by_all_at_once() {
    let scene = Scene::new(
        &[OPEN, ("db", "egress: [{ name: all, action: allow }], ingress: [{ name: all, action: allow }]")],
        vec![
            subject("plain", "default", true, &["10.0.0.1"]),
            subject("ruled", "db", true, &["10.0.0.2"]),
            subject("far", "default", false, &["10.0.0.7", "fd00::7"]),
            subject("other", "default", false, &["10.0.0.8"]),
        ],
    );
    let mut force = scene.force();
    assert_eq!((force.policed("plain"), force.policed("ruled")), (false, true), "who is asked about nobody pays for nothing");
    let free = |force: &Force| {
        for (direction, peer) in [(Egress, "10.0.0.7"), (Ingress, "10.0.0.7"), (Egress, "10.0.0.8"), (Ingress, "fd00::7")] {
            assert_eq!(force.decides("plain", direction, peer, 80), "default default allow");
            assert_eq!(force.decides("ruled", direction, peer, 80), "db all allow");
        }
    };
    free(&force);
    let (writes, bump) = force.change(vec![subject("far", "isolated!", false, &["10.0.0.7", "fd00::7"])]);
    assert!(bump, "flows that are known are asked about again");
    let new = |w: &Write| matches!(w, Write::Set(..) | Write::Rules(..) | Write::Ports(..));
    assert!(!writes.iter().any(new), "no set is made for it: {writes:?}");
    for endpoint in ["plain", "ruled"] {
        assert!(force.policed(endpoint));
        for (direction, peer) in [(Egress, "10.0.0.7"), (Ingress, "10.0.0.7"), (Egress, "fd00::7"), (Ingress, "fd00::7")] {
            assert_eq!(force.decides(endpoint, direction, peer, 80), "isolated default deny");
        }
    }
    assert_eq!(force.decides("plain", Egress, "10.0.0.8", 80), "default default allow");
    let (_, bump) = force.change(vec![subject("far", "default", false, &["10.0.0.7", "fd00::7"])]);
    assert!(bump);
    free(&force);
    assert_eq!((force.policed("plain"), force.policed("ruled")), (false, true));
    // One without an address cannot be met.
    force.change(vec![subject("far", "isolated!", false, &[])]);
    assert!(!force.policed("plain"));
}

#[test]
fn what_the_quarantine_allows_is_left_to_the_endpoints_own_rules() {
    let isolated = "quarantine: {}, defaults: { ingress: reject }, \
        egress: [{ name: bad, peers: [{ cidr: 10.0.0.2 }], ports: [{ protocol: TCP, port: 99 }], action: deny }, \
                 { name: dns, peers: [{ cidr: 10.0.0.0/30 }], ports: [{ protocol: TCP, port: 53 }, { protocol: TCP, port: 99 }], action: allow }, \
                 { name: six, peers: [{ cidr: 'fd00::/64' }], action: allow }], \
        ingress: [{ name: admins, peers: [{ group: admins }], ports: [{ protocol: TCP, port: 22 }], action: allow }]";
    let scene = Scene::new(
        &[
            ("isolated", isolated),
            ("admins", "defaults: { egress: deny, ingress: deny }, egress: [{ name: ssh, action: allow }]"),
        ],
        vec![
            subject("near", "default", true, &["10.0.0.1"]),
            subject("both", "default", true, &["10.0.0.2", "fd00::2"]),
            subject("wide", "default", true, &["10.0.0.3", "10.0.9.3"]),
            subject("out", "default", true, &["10.0.9.4"]),
            subject("unknown", "default", true, &[]),
            subject("admin", "admins", true, &["10.0.0.0"]),
            subject("far", "isolated!", false, &["10.0.0.7", "fd00::7"]),
        ],
    );
    let force = scene.force();
    let (denied, own) = ("isolated default deny", "default default allow");
    for (endpoint, direction, peer, port, expected) in [
        ("near", Ingress, "10.0.0.7", 53, own),
        ("near", Ingress, "10.0.0.7", 99, own),
        ("near", Ingress, "10.0.0.7", 54, denied),
        ("near", Egress, "10.0.0.7", 53, "isolated default reject"),
        ("near", Ingress, "fd00::7", 53, denied),
        ("both", Ingress, "10.0.0.7", 53, own),
        ("both", Ingress, "10.0.0.7", 99, "isolated bad deny"),
        ("both", Ingress, "fd00::7", 99, own),
        // One of its addresses may not.
        ("wide", Ingress, "10.0.0.7", 53, denied),
        ("out", Ingress, "10.0.0.7", 53, denied),
        ("unknown", Ingress, "10.0.0.7", 53, denied),
        ("unknown", Ingress, "10.0.0.7", 99, "isolated bad deny"),
        ("admin", Egress, "10.0.0.7", 22, "admins ssh allow"),
        ("admin", Egress, "10.0.0.7", 23, "isolated default reject"),
        ("admin", Ingress, "10.0.0.7", 53, "admins default deny"),
    ] {
        assert_eq!(force.decides(endpoint, direction, peer, port), expected, "{endpoint} {direction:?} {peer} {port}");
    }
    let rule = |name: &str, direction: &str| {
        let mut rules =
            force.image.rules().filter(|(r, _)| r.kind == "PeerQuarantine" && r.rule == name && r.direction == direction);
        rules.next().map(|(r, tier)| format!("{} {} {tier}", r.resource, r.action))
    };
    assert_eq!(rule("dns", "ingress").as_deref(), Some("isolated pass peer-quarantine"));
    assert_eq!(rule("admins", "egress").as_deref(), Some("isolated pass peer-quarantine"));
    assert_eq!((rule("dns", "egress"), rule("default", "egress").as_deref()), (None, Some("isolated reject peer-quarantine")));
}

#[test]
fn where_a_quarantine_sends_flows_to_they_are_let_in() {
    let mut scene = Scene::new(
        &[("isolated", "quarantine: { redirectTo: [portal] }")],
        vec![
            subject("portal", "default", true, &["10.0.0.1"]),
            subject("other", "default", true, &["10.0.0.2"]),
            subject("far", "isolated!", false, &["10.0.0.7"]),
        ],
    );
    scene.led = Some(vec![Led { address: ip("10.0.0.1"), protocol: Protocol::Tcp, port: 8080 }]);
    let force = scene.force();
    let (denied, own) = ("isolated default deny", "default default allow");
    assert_eq!(force.decides("portal", Ingress, "10.0.0.7", 8080), own);
    assert_eq!(force.decides("portal", Ingress, "10.0.0.7", 80), denied);
    assert_eq!(force.decides("portal", Egress, "10.0.0.7", 8080), denied);
    assert_eq!(force.decides("other", Ingress, "10.0.0.7", 8080), denied);
}

#[test]
fn what_is_held_in_a_group_that_is_not_here_is_held_off_by_all() {
    let subjects = vec![
        subject("plain", "default", true, &["10.0.0.1"]),
        subject("held", "isolated", true, &["10.0.0.2"]),
        subject("far", "later!", false, &["10.0.0.7"]),
        subject("strange", "default!", false, &["10.0.0.8"]),
        subject("grouped", "later", false, &["10.0.0.9"]),
        // This host knows that group as one of quarantine; the other does not say so.
        subject("mute", "isolated", false, &["10.0.0.6"]),
    ];
    let isolated = "quarantine: {}, egress: [{ name: all, action: allow }]";
    let force = Scene::new(&[("isolated", isolated)], subjects).force();
    for peer in ["10.0.0.7", "10.0.0.8"] {
        for direction in [Egress, Ingress] {
            assert_eq!(force.decides("plain", direction, peer, 80), "peer held-elsewhere deny");
        }
        // Who is held itself has the rules of its own quarantine.
        assert_eq!(force.decides("held", Egress, peer, 80), "isolated all allow");
    }
    assert_eq!(force.decides("plain", Ingress, "10.0.0.9", 80), "default default allow");
    assert_eq!(force.decides("plain", Egress, "10.0.0.6", 80), "isolated default deny");
    assert_eq!(force.decides("plain", Ingress, "10.0.0.6", 80), "default default allow");
    assert_eq!(
        force.image.warnings(),
        [
            "this host has no quarantine group `default`, which holds `strange` on other hosts: nothing passes to or from there",
            "this host has no security group `later`, in which `grouped` of other hosts are: to rules here they are in none",
            "this host has no quarantine group `later`, which holds `far` on other hosts: nothing passes to or from there",
        ]
    );
    // The group comes.
    let mut scene = Scene::new(&[("isolated", isolated), ("later", "quarantine: {}")], vec![]);
    scene.subjects = force.image.endpoints().map(|p| p.subject.clone()).collect();
    let image = scene.compile(Previous::Image(&force.image));
    let mut force = force;
    force.put(image);
    assert_eq!(force.decides("plain", Egress, "10.0.0.7", 80), "later default deny");
}

#[test]
fn addresses_are_of_this_hosts_endpoints_first_then_of_who_is_held() {
    let learned = |s: Subject| Subject { learned: s.addresses.clone(), addresses: vec![], ..s };
    let all = |addresses: &[(&str, &str, bool, bool)]| {
        let subject = |(name, group, local, given): &(&str, &str, bool, bool)| {
            let s = subject(name, group, *local, &["10.0.0.7"]);
            if *given { s } else { learned(s) }
        };
        let scene = Scene::new(&[OPEN], addresses.iter().map(subject).collect());
        scene.start().owner(0, ip("10.0.0.7")).unwrap().owner.to_string()
    };
    assert_eq!(all(&[("a", "default", false, true), ("b", "default", true, true)]), "b");
    assert_eq!(all(&[("a", "isolated!", false, false), ("b", "default", true, false)]), "b");
    assert_eq!(all(&[("a", "default", true, false), ("b", "default", false, true)]), "b", "it was given it");
    assert_eq!(all(&[("a", "default", false, false), ("b", "isolated!", false, false)]), "b");
    assert_eq!(all(&[("a", "default", false, true), ("b", "isolated!", false, false)]), "a");
}

#[test]
fn hosts_come_and_go() {
    let mut scene = Scene::new(
        &[(
            "g",
            "egress: [{ name: hosts, peers: [{ entity: remote-host }], action: deny }, { name: lan, peers: [{ cidr: 10.9.0.0/16 }], action: reject }]",
        )],
        vec![subject("plain", "g", true, &["10.0.0.1"]), subject("far", "default", false, &["10.8.0.9"])],
    );
    let (this, remote) = (HostKind::This, HostKind::Remote);
    scene.hosts = vec![(ip("10.8.0.1"), this), (ip("10.8.0.2"), remote), (ip("10.9.0.2"), remote)];
    let mut force = scene.force();
    let identities = |force: &Force| ["10.8.0.1", "10.8.0.2", "10.8.0.9", "10.8.0.3"].map(|a| force.image.identity(0, ip(a)));
    let far = force.image.endpoint("far").unwrap().identity;
    assert_eq!(identities(&force), [HOST, REMOTE_HOST, far, WORLD]);
    assert_eq!(force.decides("plain", Egress, "10.9.0.2", 80), "g hosts deny");
    // Another host gets what was this one's, and what an endpoint has; one goes.
    let hosts = [(ip("10.8.0.1"), remote), (ip("10.8.0.9"), remote), (ip("10.8.0.3"), this), (ip("10.8.0.3"), remote)];
    let (_, bump) = force.put(force.image.with_hosts(vec![], &[], Some(&hosts)).unwrap());
    assert!(bump);
    assert_eq!(identities(&force), [REMOTE_HOST, WORLD, REMOTE_HOST, HOST]);
    assert_eq!(force.decides("plain", Egress, "10.9.0.2", 80), "g lan reject");
    assert_eq!(force.decides("plain", Egress, "10.8.0.1", 80), "g hosts deny");
    let again = Scene { hosts: hosts.to_vec(), ..scene.clone() }.compile(Previous::Image(&force.image));
    assert_eq!(force.put(again), (vec![], false), "as if it had been compiled so");
    let (writes, _) = force.put(force.image.with_hosts(vec![], &[], Some(&scene.hosts)).unwrap());
    assert!(!writes.is_empty());
    assert_eq!(identities(&force), [HOST, REMOTE_HOST, far, WORLD]);
}

#[test]
fn alone_there_are_no_rules_about_others() {
    let mut scene = Scene::new(&[OPEN], vec![subject("plain", "default", true, &["10.0.0.1"])]);
    let rules = |scene: &Scene| scene.start().rules().filter(|(_, tier)| *tier == "peer-quarantine").count();
    assert_eq!(rules(&scene), 4);
    scene.led = None;
    assert_eq!(rules(&scene), 0);
}

/// Prints how long things take; what it asserts is that they were done.
#[test]
fn many_endpoints_elsewhere() {
    let all = [("isolated", "quarantine: {}, egress: [{ name: dns, peers: [{ cidr: 10.0.0.53 }], action: allow }]")];
    let mut subjects: Vec<Subject> = Vec::new();
    for i in 0..10_100_u32 {
        let (mut labels, local) = (BTreeMap::new(), i < 100);
        labels.insert("app".to_owned(), format!("app-{}", i % 500));
        let address = IpAddr::from((0x0a80_0000_u32 + i).to_be_bytes());
        let s = subject(&format!("vm-{i}"), "default", local, &[]);
        subjects.push(Subject { labels: Arc::new(labels), addresses: vec![address], ..s });
    }
    let rules: String = (0..500)
        .map(|i| format!("{{ name: r{i}, peers: [{{ selector: {{ matchLabels: {{ app: app-{i} }} }} }}], action: allow }},"))
        .collect();
    let policy = format!("apiVersion: vnet/v1alpha1\nkind: Policy\nmetadata: {{ name: p }}\nspec: {{ egress: [{rules}] }}\n");
    let mut scene = Scene::new(&all, subjects.clone());
    scene.yaml += &policy;
    let start = Instant::now();
    let mut force = scene.force();
    println!("10,000 endpoints elsewhere, 100 here, 500 rules: compiled and planned in {:?}", start.elapsed());
    let mut held = subjects[5000].clone();
    (held.group, held.held) = ("isolated".into(), true);
    let address = held.addresses[0].to_string();
    for (what, subject) in [("held", held), ("let go", subjects[5000].clone())] {
        let start = Instant::now();
        force.change(vec![subject.clone()]);
        println!("one of them is {what}: in {:?}", start.elapsed());
        let expected = if subject.held { "isolated default deny" } else { "p r0 allow" };
        assert_eq!(force.decides("vm-7", Egress, &address, 80), expected);
    }
}
