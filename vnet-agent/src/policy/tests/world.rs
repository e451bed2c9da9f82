//! Small worlds in which much happens.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::rules::held::Led;
use super::super::rules::{Target, Written};
use super::super::subject::{HostKind, Subject};
use super::{Image, Inputs, Previous};
use crate::random::Random;
use crate::resource::{
    API_VERSION, Action, AppliedTo, Cidr, DefaultAction, Defaults, Entity, Metadata, Peer, Policy, PolicyMode, PolicySpec,
    PortMatch, Protocol, Quarantine, Rule, SecurityGroup, SecurityGroupSpec, Selector, Tier,
};

pub const EXPRESSIONS: [&str; 3] = ["labels.app == 'a'", "labels.app in ['a', 'b']", "name.endsWith('1')"];
const NETWORKS: [&str; 9] =
    ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/28", "10.0.0.4", "0.0.0.0/0", "::/0", "fd00::/64", "10.0.1.0/24", "192.168.0.0/16"];
const ENTITIES: [Entity; 6] =
    [Entity::Host, Entity::RemoteHost, Entity::World, Entity::Unknown, Entity::Health, Entity::Endpoints];
/// Those that there are, and one that only other hosts have.
const GROUPS: [&str; 7] = ["g0", "g1", "g2", "default", "q0", "q1", "gone"];

#[derive(Clone, Debug)]
pub struct World {
    pub groups: Vec<SecurityGroup>,
    pub policies: Vec<Policy>,
    pub subjects: Vec<Subject>,
    pub hosts: Vec<(IpAddr, HostKind)>,
    pub networks: Vec<Cidr>,
    pub targets: Vec<Target>,
    /// Where the load balancer of those leads to.
    pub led: Vec<Led>,
    /// There are other hosts.
    pub fleet: bool,
}

fn pick<'a, T>(random: &mut Random, all: &'a [T]) -> &'a T {
    &all[random.index(all.len())]
}

fn metadata(name: &str) -> Metadata {
    Metadata { name: name.to_owned(), labels: BTreeMap::new(), resource_version: None }
}

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn selector(random: &mut Random) -> Selector {
    let pairs = [("app", *pick(random, &["a", "b", "c"])), ("env", *pick(random, &["p", "d"]))];
    let some = &pairs[random.index(2)..=random.index(2).max(1)];
    match random.index(3) {
        0 => Selector { match_labels: BTreeMap::new(), expression: Some((*pick(random, &EXPRESSIONS)).to_owned()) },
        1 => Selector { match_labels: labels(&pairs[..1]), expression: Some((*pick(random, &EXPRESSIONS)).to_owned()) },
        _ => Selector { match_labels: labels(some), expression: None },
    }
}

fn peer(random: &mut Random) -> Peer {
    match random.index(4) {
        0 => Peer { group: Some((*pick(random, &["g0", "g1", "g2", "q0", "default"])).to_owned()), ..Peer::default() },
        1 => Peer { selector: Some(selector(random)), ..Peer::default() },
        2 => {
            let cidr = Cidr::parse(NETWORKS[random.index(NETWORKS.len())]).unwrap();
            let inside = NETWORKS.iter().filter(|n| cidr.contains(&Cidr::parse(n).unwrap()));
            let except = inside.filter(|_| random.one_in(5)).map(|n| (*n).to_owned()).collect();
            Peer { cidr: Some(cidr.to_string()), except, ..Peer::default() }
        }
        _ => Peer { entity: Some(*pick(random, &ENTITIES)), ..Peer::default() },
    }
}

fn ports(random: &mut Random) -> PortMatch {
    let none = PortMatch { protocol: String::new(), port: None, end_port: None, icmp_type: None, code: None };
    match random.index(6) {
        0 => PortMatch { protocol: "ICMP".into(), icmp_type: Some(8), ..none },
        1 => PortMatch { protocol: "ICMP".into(), ..none },
        2 => PortMatch { protocol: "47".into(), ..none },
        3 => PortMatch { protocol: "UDP".into(), port: Some(53), ..none },
        4 => PortMatch { protocol: "TCP".into(), port: Some(20), end_port: Some(90), ..none },
        _ => PortMatch { protocol: "TCP".into(), port: Some(*pick(random, &[80, 443])), ..none },
    }
}

fn rules(random: &mut Random, most: usize, pass: bool) -> Vec<Rule> {
    let actions = [Action::Allow, Action::Deny, Action::Reject, Action::Pass];
    let count = random.index(most + 1);
    let rule = |i: usize, random: &mut Random| Rule {
        name: format!("r{i}"),
        peers: (0..random.index(4)).map(|_| peer(random)).collect(),
        ports: (0..random.index(3)).map(|_| ports(random)).collect(),
        action: actions[random.index(if pass { 4 } else { 3 })],
        log: random.one_in(4),
    };
    (0..count).map(|i| rule(i, random)).collect()
}

pub fn policy(random: &mut Random, name: &str) -> Policy {
    let tiers = [Tier::Emergency, Tier::Security, Tier::Ops, Tier::App, Tier::Baseline];
    let groups = (0..random.index(3)).map(|_| (*pick(random, &["g0", "g1", "g2"])).to_owned()).collect();
    let many = if random.one_in(4) { 80 } else { 4 };
    Policy {
        api_version: API_VERSION.into(),
        metadata: metadata(name),
        spec: PolicySpec {
            tier: *pick(random, &tiers),
            priority: random.byte(3).into(),
            applied_to: AppliedTo { groups, selector: random.one_in(2).then(|| selector(random)) },
            mode: if random.one_in(4) { PolicyMode::Staged } else { PolicyMode::Enforce },
            ingress: rules(random, many, true),
            egress: rules(random, many, true),
        },
    }
}

pub fn group(random: &mut Random, name: &str, quarantine: bool) -> SecurityGroup {
    let actions = [Some(DefaultAction::Allow), Some(DefaultAction::Deny), Some(DefaultAction::Reject), None];
    let redirect_to = Vec::from_iter(random.one_in(2).then(|| "lb".to_owned()));
    SecurityGroup {
        api_version: API_VERSION.into(),
        metadata: metadata(name),
        spec: SecurityGroupSpec {
            selector: None,
            precedence: 1000,
            defaults: Defaults { ingress: *pick(random, &actions), egress: *pick(random, &actions) },
            ingress: rules(random, 4, false),
            egress: rules(random, 4, false),
            transfers: Vec::new(),
            brakes: None,
            quarantine: quarantine.then(|| Quarantine { redirect_to, ..Quarantine::default() }),
        },
    }
}

pub fn subject(random: &mut Random, at: u8) -> Subject {
    let mut pairs = vec![("app", *pick(random, &["a", "b", "c"])), ("env", *pick(random, &["p", "d"]))];
    if random.one_in(5) {
        pairs.remove(0);
    }
    let mut v6 = [0; 16];
    (v6[0], v6[15]) = (0xfd, at);
    let mut addresses: Vec<IpAddr> = vec![IpAddr::from([10, 0, 0, at]), IpAddr::from(v6)];
    addresses.truncate(random.index(4).min(2));
    let local = random.one_in(2);
    let groups: &[&str] = if local { &GROUPS[..6] } else { &GROUPS };
    Subject {
        name: format!("e{at}").into(),
        labels: Arc::new(labels(&pairs)),
        addresses,
        learned: if random.one_in(3) { vec![[10, 0, 1, at].into()] } else { vec![] },
        group: (*pick(random, groups)).into(),
        local,
        held: !local && random.one_in(4),
        network: 0,
    }
}

impl World {
    pub fn new(random: &mut Random) -> Self {
        let target = |v4, port, group| Target { v4, protocol: Protocol::Tcp, port, group, serial: 7 };
        let led = |at: [u8; 4], port| Led { address: at.into(), protocol: Protocol::Tcp, port };
        let networks = ["10.0.0.0/24", "fd00::/64", "10.0.1.0/28"];
        Self {
            groups: [("g0", false), ("g1", false), ("g2", false), ("q0", true), ("q1", true)]
                .map(|(n, q)| group(random, n, q))
                .into(),
            policies: (0..6).map(|i| policy(random, &format!("p{i}"))).collect(),
            subjects: (1..14).map(|at| subject(random, at)).collect(),
            hosts: vec![([10, 0, 0, 250].into(), HostKind::This), ([192, 168, 0, 2].into(), HostKind::Remote)],
            networks: networks[..random.index(4)].iter().map(|n| Cidr::parse(n).unwrap()).collect(),
            targets: vec![target(true, 80, 3), target(true, 443, 4), target(false, 80, 5)],
            led: vec![led([10, 0, 0, 3], 443), led([10, 0, 0, 5], 0), led([10, 0, 0, 7], 80), led([10, 0, 1, 7], 80)],
            fleet: true,
        }
    }

    pub fn compile(&self, previous: Previous<'_>) -> Image {
        let (origins, targets, led) = (HashMap::new(), |_: &str| self.targets.clone(), |_: &str| self.led.clone());
        let (groups, policies) = (self.groups.iter().collect(), self.policies.iter().collect());
        let inputs = Inputs {
            written: Written { groups, policies, origins: &origins, targets: &targets, elsewhere: self.fleet.then_some(&led) },
            subjects: self.subjects.clone(),
            hosts: self.hosts.clone(),
            networks: self.networks.clone(),
        };
        Image::compile(&inputs, previous).unwrap()
    }

    /// Something changes; says whether it is only about endpoints.
    pub fn change(&mut self, random: &mut Random) -> bool {
        match random.index(8) {
            0..4 => {
                let at = 1 + random.byte(13);
                let i = self.subjects.iter().position(|s| *s.name == *format!("e{at}"));
                match i {
                    Some(i) if random.one_in(4) => drop(self.subjects.remove(i)),
                    Some(i) => self.subjects[i] = subject(random, at),
                    None => self.subjects.push(subject(random, at)),
                }
                return true;
            }
            4 => {
                let i = random.index(self.groups.len());
                let (name, quarantine) = (self.groups[i].metadata.name.clone(), self.groups[i].spec.quarantine.is_some());
                self.groups[i] = group(random, &name, quarantine);
            }
            5 => drop(self.policies.pop()),
            6 => {
                let name = format!("p{}", random.index(8));
                self.policies.retain(|p| p.metadata.name != name);
                self.policies.push(policy(random, &name));
            }
            _ => self.networks = NETWORKS[..random.index(4)].iter().map(|n| Cidr::parse(n).unwrap()).collect(),
        }
        false
    }
}
