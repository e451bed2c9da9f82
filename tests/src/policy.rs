//! Policy at the size that the goals are for: 10,000 endpoints of which 200 are on this host, 1,000 security groups, 10,000 rules.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use vnet_agent::policy::{HostKind, Image, Inputs, Previous, Refused, Subject, Written};
use vnet_agent::resource::{
    API_VERSION, Action, AppliedTo, Cidr, DefaultAction, Defaults, Entity, Metadata, Peer, Policy, PolicyMode, PolicySpec,
    PortMatch, Rule, SecurityGroup, SecurityGroupSpec, Selector, Tier,
};

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Endpoints.
    pub endpoints: u32,
    /// Those of them on this host, each in another group.
    pub local: u32,
    /// Security groups.
    pub groups: u32,
    /// Rules, of groups and policies.
    pub rules: u32,
}

impl Scale {
    /// What the goals are for.
    pub const GOAL: Self = Self { endpoints: 10_000, local: 200, groups: 1_000, rules: 10_000 };
}

/// Rules that a group has of its own, and rules of a policy.
const GROUP_RULES: u32 = 4;
const POLICY_RULES: u32 = 10;
/// Of so many policies, one is for everyone with a label, the others for one group each.
const BROAD: u32 = 10;
const TEAMS: u32 = 50;

/// Resources and endpoints.
#[derive(Clone, Debug)]
pub struct World {
    /// Security groups.
    pub groups: Vec<SecurityGroup>,
    /// Policies.
    pub policies: Vec<Policy>,
    /// Endpoints.
    pub subjects: Vec<Subject>,
}

impl World {
    /// Of that size: always the same.
    #[must_use]
    pub fn new(scale: Scale) -> Self {
        let policies = scale.rules.saturating_sub(scale.groups * GROUP_RULES) / POLICY_RULES;
        Self {
            groups: (0..scale.groups).map(|i| group(i, scale)).collect(),
            policies: (0..policies).map(|i| policy(i, scale)).collect(),
            subjects: (0..scale.endpoints).map(|i| subject(i, scale, i < scale.local)).collect(),
        }
    }

    /// Compiles it.
    ///
    /// # Errors
    /// It is more than the datapath takes.
    pub fn compile(&self, previous: Previous<'_>) -> Result<Image, Refused> {
        let origins = HashMap::new();
        let (groups, policies) = (self.groups.iter().collect(), self.policies.iter().collect());
        let inputs = Inputs {
            written: Written { groups, policies, origins: &origins, targets: &|_| Vec::new(), elsewhere: Some(&|_| Vec::new()) },
            subjects: self.subjects.clone(),
            hosts: vec![(IpAddr::from([10, 255, 0, 1]), HostKind::This), (IpAddr::from([10, 255, 0, 2]), HostKind::Remote)],
            networks: vec![Cidr::new(IpAddr::from([10, 128, 0, 0]), 9)],
        };
        Image::compile(&inputs, previous)
    }
}

fn metadata(name: String) -> Metadata {
    Metadata { name, labels: BTreeMap::new(), resource_version: None }
}

fn group_name(i: u32) -> String {
    format!("app-{i}")
}

fn subject(i: u32, scale: Scale, local: bool) -> Subject {
    // Those of this host are in different groups: no two have the same set.
    let group = i.wrapping_mul(7) % scale.groups;
    let labels = [
        ("app", group_name(group)),
        ("team", format!("team-{}", group % TEAMS)),
        ("env", if group % 10 < 6 { "prod" } else { "test" }.to_owned()),
        ("zone", format!("zone-{}", i % 4)),
    ];
    Subject {
        name: format!("vm-{i}").into(),
        labels: Arc::new(labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        addresses: vec![Ipv4Addr::from_bits(0x0A80_0000 + i + 1).into()],
        learned: Vec::new(),
        group: group_name(group).into(),
        local,
        held: false,
        network: 0,
    }
}

fn rule(name: String, peer: Peer, ports: &[(&str, u16)], action: Action) -> Rule {
    let port = |(protocol, port): &(&str, u16)| PortMatch {
        protocol: (*protocol).to_owned(),
        port: Some(*port),
        end_port: None,
        icmp_type: None,
        code: None,
    };
    Rule { name, peers: vec![peer], ports: ports.iter().map(port).collect(), action, log: false }
}

fn of_group(i: u32) -> Peer {
    Peer { group: Some(group_name(i)), ..Peer::default() }
}

fn labelled(pairs: &[(&str, String)]) -> Selector {
    Selector { match_labels: pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(), expression: None }
}

fn selected(pairs: &[(&str, String)]) -> Peer {
    Peer { selector: Some(labelled(pairs)), ..Peer::default() }
}

fn network(i: u32) -> Peer {
    let [_, _, a, b] = i.to_be_bytes();
    Peer { cidr: Some(format!("172.{}.{b}.0/24", 16 + a % 16)), ..Peer::default() }
}

fn group(i: u32, scale: Scale) -> SecurityGroup {
    let other = |n: u32| (i + n * 37) % scale.groups;
    let ingress = vec![
        rule("clients".into(), of_group(other(1)), &[("TCP", 443), ("TCP", 8443)], Action::Allow),
        rule(
            "team".into(),
            selected(&[("team", format!("team-{}", i % TEAMS)), ("env", "prod".into())]),
            &[("TCP", 22)],
            Action::Allow,
        ),
    ];
    let egress = vec![
        rule("servers".into(), of_group(other(2)), &[("TCP", 5432)], Action::Allow),
        rule("outside".into(), network(i % 500), &[("TCP", 443), ("UDP", 53)], Action::Allow),
    ];
    SecurityGroup {
        api_version: API_VERSION.into(),
        metadata: metadata(group_name(i)),
        spec: SecurityGroupSpec {
            selector: Some(labelled(&[("app", group_name(i))])),
            precedence: 1000,
            defaults: Defaults { ingress: Some(DefaultAction::Deny), egress: None },
            ingress,
            egress,
            transfers: Vec::new(),
            brakes: None,
            quarantine: None,
        },
    }
}

fn policy(i: u32, scale: Scale) -> Policy {
    let broad = i.is_multiple_of(BROAD);
    let applied_to = if broad {
        AppliedTo { groups: Vec::new(), selector: Some(labelled(&[("team", format!("team-{}", i / BROAD % TEAMS))])) }
    } else {
        AppliedTo { groups: vec![group_name(i.wrapping_mul(7) % scale.groups)], selector: None }
    };
    let peer = |n: u32| match (i + n) % 6 {
        0 => of_group((i + n * 11) % scale.groups),
        1 => selected(&[("app", group_name((i * 3 + n) % scale.groups)), ("zone", format!("zone-{}", n % 4))]),
        2 => selected(&[("team", format!("team-{}", (i + n) % TEAMS))]),
        3 => network((i * 10 + n) % 2000),
        4 if broad && i.is_multiple_of(50) => Peer {
            selector: Some(Selector { expression: Some("labels.env == 'test'".into()), ..Selector::default() }),
            ..Peer::default()
        },
        _ => Peer { entity: Some(Entity::World), ..Peer::default() },
    };
    let rules = |from: u32| -> Vec<Rule> {
        let action = |n: u32| if n.is_multiple_of(5) { Action::Deny } else { Action::Allow };
        let port = |n: u32| ("TCP", 1000 + ((i * 10 + n) % 3000) as u16);
        (from..from + POLICY_RULES / 2).map(|n| rule(format!("r{n}"), peer(n), &[port(n)], action(n))).collect()
    };
    Policy {
        api_version: API_VERSION.into(),
        metadata: metadata(format!("policy-{i}")),
        spec: PolicySpec {
            tier: if broad { Tier::Security } else { Tier::App },
            priority: (i % 10_000) as u16,
            applied_to,
            mode: PolicyMode::Enforce,
            ingress: rules(0),
            egress: rules(POLICY_RULES / 2),
        },
    }
}
