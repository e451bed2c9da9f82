//! What rules mean: a walk over all of them.

use std::net::IpAddr;

use vnet_common::policy::action;
use vnet_common::policy::evaluate::{Judged, Question, evaluate};
use vnet_common::verdict::Direction;

use super::super::compile::address_key;
use super::super::rules::held::{UNKNOWN_GROUP, UNKNOWN_RULE};
use super::super::subject::{HostKind, Subject};
use super::world::{EXPRESSIONS, World};
use super::*;
use crate::random::Random;
use crate::resource::{Action, Cidr, DefaultAction, Entity, Peer, PolicyMode, PortMatch, Protocol, Rule, Selector};

/// A decision: kind, resource and rule; what is done; the rule that would decide otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub rule: (String, String),
    pub action: u8,
    pub target: (u32, u32),
    pub staged: Option<(String, String)>,
}

/// A flow that an endpoint of this host opens, or that is opened to it.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub direction: Direction,
    pub peer: IpAddr,
    pub protocol: u8,
    pub port: u16,
}

/// A rule in its place.
struct Step<'a> {
    name: (String, String),
    tier: usize,
    staged: bool,
    action: u8,
    target: (u32, u32),
    matches: Box<dyn Fn(&Packet) -> bool + 'a>,
}

fn selects(s: &Selector, e: &Subject) -> bool {
    let app = e.labels.get("app").map(String::as_str);
    let expression = |text: &str| match EXPRESSIONS.iter().position(|x| *x == text).unwrap() {
        0 => app == Some("a"),
        1 => matches!(app, Some("a" | "b")),
        _ => e.name.ends_with('1'),
    };
    s.match_labels.iter().all(|(k, v)| e.labels.get(k) == Some(v)) && s.expression.as_deref().is_none_or(expression)
}

impl World {
    fn owner(&self, a: IpAddr) -> Option<&Subject> {
        let host = self.hosts.iter().any(|(h, _)| *h == a);
        self.subjects.iter().filter(|_| !host).find(|s| s.addresses.contains(&a) || s.learned.contains(&a))
    }

    /// The group that holds the owner of an address on another host; `None` inside: one that is not known here.
    fn held(&self, a: IpAddr) -> Option<Option<&str>> {
        let o = self.owner(a).filter(|o| !o.local)?;
        let quarantine = self.groups.iter().find(|g| *g.metadata.name == *o.group && g.spec.quarantine.is_some());
        (o.held || quarantine.is_some()).then(|| quarantine.map(|g| g.metadata.name.as_str()))
    }

    /// Does a rule of a quarantine group elsewhere count for this endpoint, for flows of one family? `passes`: it lets through.
    fn is_about(&self, rule: &Rule, e: &Subject, v4: bool, passes: bool) -> bool {
        if rule.peers.is_empty() {
            return true;
        }
        let own: Vec<IpAddr> = e.addresses.iter().chain(&e.learned).copied().filter(|a| a.is_ipv4() == v4).collect();
        let at = |a: &IpAddr| rule.peers.iter().any(|peer| self.is_peer(peer, *a));
        if own.is_empty() {
            let anywhere = |p: &Peer| match (&p.group, &p.selector, p.entity) {
                (Some(group), ..) => *e.group == **group,
                (_, Some(selector), _) => selects(selector, e),
                (.., entity) => entity == Some(Entity::Endpoints),
            };
            return !passes || rule.peers.iter().any(anywhere);
        }
        if passes { own.iter().all(at) } else { own.iter().any(at) }
    }

    /// What quarantine groups say of peers that they hold elsewhere.
    fn mirrored<'a>(&'a self, e: &'a Subject, direction: Direction) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        let mut add = |group: Option<&'a str>, rule: &str, action: u8, matches: Box<dyn Fn(&Packet) -> bool + 'a>| {
            let matches = Box::new(move |p: &Packet| self.held(p.peer) == Some(group) && matches(p));
            let name = (group.unwrap_or(UNKNOWN_GROUP).to_owned(), rule.to_owned());
            let action = if action == action::ALLOW { action::PASS } else { action };
            steps.push(Step { name, tier: 0, staged: false, action, target: (0, 0), matches });
        };
        for group in self.groups.iter().filter(|g| g.spec.quarantine.is_some()) {
            let (spec, name) = (&group.spec, Some(group.metadata.name.as_str()));
            // What opens to the endpoint is opened by who is held.
            let opened = direction == Direction::Ingress;
            for rule in if opened { &spec.egress } else { &spec.ingress } {
                let action = match rule.action {
                    Action::Reject => action::REJECT,
                    Action::Allow => action::ALLOW,
                    _ => action::DENY,
                };
                let passes = action == action::ALLOW;
                let ports = |p: &Packet| rule.ports.is_empty() || rule.ports.iter().any(|ports| is_port(ports, p));
                let about = [false, true].map(|v4| self.is_about(rule, e, v4, passes));
                add(name, &rule.name, action, Box::new(move |p| about[usize::from(p.peer.is_ipv4())] && ports(p)));
            }
            let redirects = spec.quarantine.as_ref().is_some_and(|q| !q.redirect_to.is_empty());
            let own = |a: IpAddr| e.addresses.contains(&a) || e.learned.contains(&a);
            for led in self.led.iter().filter(|led| opened && redirects && own(led.address)) {
                let matches = move |p: &Packet| p.peer.is_ipv4() && p.protocol == 6 && (led.port == 0 || led.port == p.port);
                add(name, "redirect", action::ALLOW, Box::new(matches));
            }
            let given = if opened { spec.defaults.egress } else { spec.defaults.ingress };
            let default = match given {
                Some(DefaultAction::Allow) => action::ALLOW,
                Some(DefaultAction::Reject) => action::REJECT,
                _ => action::DENY,
            };
            add(name, "default", default, Box::new(|_| true));
        }
        add(None, UNKNOWN_RULE, action::DENY, Box::new(|_| true));
        steps
    }

    fn is_peer(&self, p: &Peer, a: IpAddr) -> bool {
        let owner = self.owner(a);
        let host = self.hosts.iter().find(|(h, _)| *h == a).map(|(_, kind)| *kind);
        let known_network = self.networks.iter().any(|n| n.contains(&a.into()));
        if let Some(group) = &p.group {
            return owner.is_some_and(|o| *o.group == **group);
        }
        if let Some(s) = &p.selector {
            return owner.is_some_and(|o| selects(s, o));
        }
        if let Some(cidr) = &p.cidr {
            let within = |text: &String| Cidr::parse(text).unwrap().contains(&a.into());
            return within(cidr) && !p.except.iter().any(within);
        }
        match p.entity.unwrap() {
            Entity::Host => host == Some(HostKind::This),
            Entity::RemoteHost => host == Some(HostKind::Remote),
            Entity::World => owner.is_none() && host.is_none() && !known_network,
            Entity::Unknown => owner.is_none() && host.is_none() && known_network,
            Entity::Health => false,
            Entity::Endpoints => owner.is_some(),
        }
    }

    fn matches(&self, rule: &Rule, p: &Packet) -> bool {
        let peer = rule.peers.is_empty() || rule.peers.iter().any(|peer| self.is_peer(peer, p.peer));
        peer && (rule.ports.is_empty() || rule.ports.iter().any(|ports| is_port(ports, p)))
    }

    fn steps<'a>(&'a self, e: &'a Subject, direction: Direction) -> Vec<Step<'a>> {
        let egress = direction == Direction::Egress;
        let group = self.groups.iter().find(|g| *g.metadata.name == *e.group);
        let quarantine = group.is_some_and(|g| g.spec.quarantine.is_some());
        let mut steps = if self.fleet && !quarantine { self.mirrored(e, direction) } else { Vec::new() };
        let mut add = |resource: &str, tier: usize, staged: bool, rules: &'a [Rule]| {
            for rule in rules {
                let name = (resource.to_owned(), rule.name.clone());
                let action = match rule.action {
                    Action::Allow => action::ALLOW,
                    Action::Deny => action::DENY,
                    Action::Reject => action::REJECT,
                    Action::Pass => action::PASS,
                };
                steps.push(Step { name, tier, staged, action, target: (0, 0), matches: Box::new(|p| self.matches(rule, p)) });
            }
        };
        let mut policies: Vec<_> = self.policies.iter().collect();
        policies.sort_by_key(|p| (p.spec.tier, p.spec.priority, p.metadata.name.clone()));
        for policy in policies.into_iter().filter(|_| !quarantine) {
            let to = &policy.spec.applied_to;
            if (to.groups.is_empty() || to.groups.iter().any(|g| **g == *e.group))
                && to.selector.as_ref().is_none_or(|s| selects(s, e))
            {
                let rules = if egress { &policy.spec.egress } else { &policy.spec.ingress };
                add(&policy.metadata.name, 1 + policy.spec.tier as usize, policy.spec.mode == PolicyMode::Staged, rules);
            }
        }
        let last = |name: &str, rule: &str, action, target, matches| Step {
            name: (name.to_owned(), rule.to_owned()),
            tier: 10,
            staged: false,
            action,
            target,
            matches,
        };
        let Some(group) = group else {
            steps.push(last("default", "default", action::ALLOW, (0, 0), Box::new(|_| true)));
            return steps;
        };
        add(&group.metadata.name, 9, false, if egress { &group.spec.egress } else { &group.spec.ingress });
        let redirects = egress && group.spec.quarantine.as_ref().is_some_and(|q| !q.redirect_to.is_empty());
        for exact in [true, false] {
            for t in self.targets.iter().filter(|_| redirects) {
                let protocol = if t.protocol == Protocol::Tcp { 6 } else { 17 };
                let matches =
                    move |p: &Packet| p.peer.is_ipv4() == t.v4 && p.protocol == protocol && (!exact || p.port == t.port);
                steps.push(last(&group.metadata.name, "redirect", action::REDIRECT, (t.group, t.serial), Box::new(matches)));
            }
        }
        let given = if egress { group.spec.defaults.egress } else { group.spec.defaults.ingress };
        let default = match given {
            Some(DefaultAction::Allow) => action::ALLOW,
            Some(DefaultAction::Reject) => action::REJECT,
            None if !quarantine => action::ALLOW,
            _ => action::DENY,
        };
        steps.push(last(&group.metadata.name, "default", default, (0, 0), Box::new(|_| true)));
        steps
    }

    /// What becomes of a packet of the endpoint, or to it.
    pub fn decide(&self, endpoint: &str, p: &Packet) -> Option<Decision> {
        let e = self.subjects.iter().find(|s| *s.name == *endpoint)?;
        let steps = self.steps(e, p.direction);
        let walk = |enforced: bool| {
            let mut least = 0;
            for step in &steps {
                if step.tier < least || (enforced && step.staged) || !(step.matches)(p) {
                    continue;
                }
                if step.action != action::PASS || (!enforced && step.staged) {
                    return step;
                }
                least = step.tier + 1;
            }
            panic!("the last step matches everything")
        };
        let (decides, staged) = (walk(true), walk(false));
        let staged = (!std::ptr::eq(decides, staged)).then(|| staged.name.clone());
        Some(Decision { rule: decides.name.clone(), action: decides.action, target: decides.target, staged })
    }
}

fn is_port(ports: &PortMatch, p: &Packet) -> bool {
    let protocol = match ports.protocol.as_str() {
        "TCP" => 6,
        "UDP" => 17,
        "ICMP" => 1,
        other => other.parse().unwrap(),
    };
    let port = ports.port.is_none_or(|first| (first..=ports.end_port.unwrap_or(first)).contains(&p.port));
    protocol == p.protocol && port && ports.icmp_type.is_none_or(|t| u16::from(t) == p.port >> 8)
}

/// What the rows say of it, to the datapath's own code.
pub fn decided(tables: &Tables, image: &Image, set: u32, p: &Packet) -> Decision {
    let port = vnet_common::policy::port_key(p.protocol, p.port.to_be_bytes());
    let question = Question { peer: address_key(0, p.peer), set, direction: p.direction as u32, port };
    let mut judged = Judged::default();
    assert!(evaluate(tables, &question, &mut judged), "the last rule matches everything");
    let Judged { rule, staged, .. } = judged;
    let name = |id| image.rule(id).map(|(r, _)| (r.resource.clone(), r.rule.clone()));
    Decision {
        rule: name(rule.id).unwrap_or_default(),
        action: rule.action,
        target: (rule.group, rule.serial),
        staged: name(staged),
    }
}

pub fn packet(random: &mut Random) -> Packet {
    let v6 = |n: u8| IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]);
    let peer = match random.index(6) {
        0 | 1 => [10, 0, 0, random.byte(20)].into(),
        2 => [10, 0, 1, random.byte(20)].into(),
        3 => v6(random.byte(20)),
        4 => {
            *[[10, 0, 0, 250], [192, 168, 0, 2], [192, 168, 0, 3], [10, 9, 9, 9]].map(IpAddr::from).get(random.index(4)).unwrap()
        }
        _ => *[IpAddr::from([8, 8, 8, 8]), "2001:db8::1".parse().unwrap()].get(random.index(2)).unwrap(),
    };
    let (protocol, port) =
        [(6, 80), (6, 443), (6, 22), (6, 99), (17, 53), (17, 80), (1, 8 << 8), (1, 0), (47, 0), (6, 0)][random.index(10)];
    Packet { direction: if random.one_in(2) { Direction::Egress } else { Direction::Ingress }, peer, protocol, port }
}

#[test]
fn rows_of_bits_decide_as_the_rules_do() {
    let mut random = Random(0x5eed_0001);
    let (mut seen, mut staged) = ([0; 6], 0);
    for _ in 0..60 {
        let world = World::new(&mut random);
        let image = start(&world);
        let local: Vec<&str> = image.endpoints().filter(|p| p.local.is_some()).map(|p| &*p.subject.name).collect();
        let (tables, assigned) = image.fill(&local).unwrap();
        for (name, assignment) in &assigned {
            for _ in 0..400 {
                let p = packet(&mut random);
                let expected = world.decide(name, &p).unwrap();
                let found = decided(&tables, &image, assignment.set, &p);
                assert_eq!(found, expected, "{name} {p:?}\n{world:#?}");
                seen[usize::from(found.action)] += 1;
                staged += u32::from(found.staged.is_some());
            }
        }
    }
    assert!(
        seen[1..].iter().enumerate().all(|(i, n)| i + 1 == usize::from(action::PASS) || *n > 100) && staged > 100,
        "{seen:?} {staged}"
    );
}
