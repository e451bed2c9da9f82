//! Rules of resources, as rows.

use std::collections::HashMap;

use vnet_common::api::RuleRef;
use vnet_common::parse::protocol;
use vnet_common::policy::{action, port_key, rule_flags};
use vnet_common::verdict::Direction;

use super::super::ids::{RuleIds, RuleKey};
use super::super::peers::{AtomId, Atoms, atom};
use super::{
    DEFAULT_RANK, DEFAULT_RULE, DIRECTIONS, FIRST_TIER, GROUP_RANK, Lists, REDIRECT_RULE, Rule, Target, family, tier_name,
};
use crate::resource::{
    self, Action, DEFAULT_GROUP, DefaultAction, Origin, Policy, PolicyMode, PortMatch, Protocol, SecurityGroup, SecurityGroupSpec,
};

/// Whose rules are being made.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) kind: &'static str,
    pub(super) name: &'a str,
    pub(super) origin: Option<&'a Origin>,
    pub(super) tier: &'static str,
    pub(super) rank: u8,
    pub(super) flags: u8,
}

/// Makes rules.
pub(super) struct Maker<'a> {
    pub(super) ids: &'a RuleIds,
    pub(super) atoms: &'a Atoms,
    pub(super) origins: &'a HashMap<(String, String), Origin>,
    /// All so far.
    pub(super) table: Vec<Rule>,
    /// The same as somebody wrote them, with their tiers.
    pub(super) refs: Vec<(RuleRef, &'static str)>,
}

impl<'a> Maker<'a> {
    pub(super) fn origin(&self, kind: &str, name: &str) -> Option<&'a Origin> {
        self.origins.get(&(kind.to_owned(), name.to_owned()))
    }

    /// A policy's.
    pub(super) fn policy(&mut self, policy: &Policy) -> Lists {
        let name = policy.metadata.name.as_str();
        let flags = if policy.spec.mode == PolicyMode::Staged { rule_flags::STAGED } else { 0 };
        let origin = self.origin("Policy", name);
        let (tier, rank) = (tier_name(policy.spec.tier), FIRST_TIER + policy.spec.tier as u8);
        let owner = Owner { kind: "Policy", name, origin, tier, rank, flags };
        [(Direction::Egress, &policy.spec.egress), (Direction::Ingress, &policy.spec.ingress)]
            .map(|(direction, list)| self.written(owner, direction, list))
    }

    /// A security group's, its defaults among them.
    pub(super) fn group(&mut self, group: &SecurityGroup, targets: &dyn Fn(&str) -> Vec<Target>) -> Lists {
        let (name, spec) = (group.metadata.name.as_str(), &group.spec);
        let (tier, flags) = if spec.quarantine.is_some() { ("quarantine", rule_flags::QUARANTINE) } else { ("group", 0) };
        let origin = self.origin("SecurityGroup", name);
        let owner = Owner { kind: "SecurityGroup", name, origin, tier, rank: GROUP_RANK, flags };
        let mut egress = self.written(owner, Direction::Egress, &spec.egress);
        let mut ingress = self.written(owner, Direction::Ingress, &spec.ingress);
        let redirects = spec.quarantine.iter().flat_map(|q| &q.redirect_to).flat_map(|lb| targets(lb)).collect::<Vec<_>>();
        egress.extend(self.redirects(owner, &redirects));
        let [to_outside, to_it] = defaults(spec);
        egress.push(self.default(owner, Direction::Egress, to_outside));
        ingress.push(self.default(owner, Direction::Ingress, to_it));
        [egress, ingress]
    }

    /// The group `default`, where no resource has that name: everything is allowed.
    pub(super) fn built_in(&mut self) -> Lists {
        let owner = Owner { kind: "built-in", name: DEFAULT_GROUP, origin: None, tier: "default", rank: GROUP_RANK, flags: 0 };
        DIRECTIONS.map(|direction| vec![self.default(owner, direction, action::ALLOW)])
    }

    fn written(&mut self, owner: Owner<'_>, direction: Direction, list: &[resource::Rule]) -> Vec<usize> {
        let lines = owner.origin.map(|o| if direction == Direction::Egress { &o.egress } else { &o.ingress });
        let each = list.iter().enumerate().map(|(at, rule)| {
            let made = Rule {
                id: 0,
                peers: self.peers(rule),
                ports: merged(rule.ports.iter().filter_map(range).collect()),
                action: action_number(rule.action),
                flags: owner.flags | if rule.log { rule_flags::LOG } else { 0 },
                target: (0, 0),
                rank: owner.rank,
            };
            self.add(owner, direction, &rule.name, lines.and_then(|lines| lines.get(at)).copied(), made)
        });
        each.collect()
    }

    /// The atoms of a rule's peers.
    pub(super) fn peers(&self, rule: &resource::Rule) -> Option<Vec<AtomId>> {
        let atoms = || rule.peers.iter().filter_map(atom).filter_map(|atom| self.atoms.id(&atom));
        (!rule.peers.is_empty()).then(|| atoms().collect())
    }

    fn default(&mut self, owner: Owner<'_>, direction: Direction, action: u8) -> usize {
        let flags = owner.flags | rule_flags::DEFAULT;
        let rule = Rule { id: 0, peers: None, ports: Vec::new(), action, flags, target: (0, 0), rank: DEFAULT_RANK };
        let tier = if owner.tier == "group" { "default" } else { owner.tier };
        self.add(Owner { tier, ..owner }, direction, DEFAULT_RULE, owner.origin.map(|o| o.line), rule)
    }

    /// To the load balancers' group for the port that the flow is for, else to the first of its protocol.
    fn redirects(&mut self, owner: Owner<'_>, targets: &[Target]) -> Vec<usize> {
        let mut rows = Vec::new();
        let numbers = [(Protocol::Tcp, protocol::TCP), (Protocol::Udp, protocol::UDP)];
        for (v4, (of, number)) in [true, false].into_iter().flat_map(|v4| numbers.map(|p| (v4, p))) {
            let these: Vec<&Target> = targets.iter().filter(|t| t.v4 == v4 && t.protocol == of).collect();
            let exact = these.iter().map(|t| (**t, Some(t.port)));
            for (target, port) in exact.chain(these.first().map(|t| (**t, None))) {
                let ports = vec![port_range(number, port, port)];
                let peers = Some(self.atoms.id(&family(v4)).into_iter().collect());
                let (id, action) = (0, action::REDIRECT);
                let target = (target.group, target.serial);
                let rule = Rule { id, peers, ports, action, flags: owner.flags, target, rank: GROUP_RANK };
                rows.push(self.add(owner, Direction::Egress, REDIRECT_RULE, owner.origin.map(|o| o.line), rule));
            }
        }
        rows
    }

    pub(super) fn add(&mut self, owner: Owner<'_>, direction: Direction, name: &str, line: Option<u32>, rule: Rule) -> usize {
        let id = self.ids.id(&RuleKey::new(owner.kind, owner.name, direction, name)).unwrap_or_default();
        let reference = RuleRef {
            id,
            kind: owner.kind.to_owned(),
            resource: owner.name.to_owned(),
            rule: name.to_owned(),
            direction: direction_name(direction).to_owned(),
            action: action_name(rule.action).to_owned(),
            staged: rule.flags & rule_flags::STAGED != 0,
            place: owner.origin.zip(line).map(|(o, line)| o.place(line)).unwrap_or_default(),
        };
        self.table.push(Rule { id, ..rule });
        self.refs.push((reference, owner.tier));
        self.table.len() - 1
    }
}

/// What becomes of flows that no rule of a group matches, by [`Direction`].
pub(super) fn defaults(spec: &SecurityGroupSpec) -> [u8; 2] {
    let otherwise = if spec.quarantine.is_some() { DefaultAction::Deny } else { DefaultAction::Allow };
    [spec.defaults.egress, spec.defaults.ingress].map(|given| match given.unwrap_or(otherwise) {
        DefaultAction::Allow => action::ALLOW,
        DefaultAction::Deny => action::DENY,
        DefaultAction::Reject => action::REJECT,
    })
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}

pub(super) fn action_number(a: Action) -> u8 {
    match a {
        Action::Allow => action::ALLOW,
        Action::Deny => action::DENY,
        Action::Reject => action::REJECT,
        Action::Pass => action::PASS,
    }
}

fn action_name(number: u8) -> &'static str {
    match number {
        action::ALLOW => "allow",
        action::REJECT => "reject",
        action::PASS => "pass",
        action::REDIRECT => "redirect",
        _ => "deny",
    }
}

pub(super) fn range(ports: &PortMatch) -> Option<(u32, u32)> {
    let number = resource::protocol_number(&ports.protocol)?;
    Some(match (ports.icmp_type, ports.code) {
        (Some(kind), Some(code)) => (port_key(number, [kind, code]), port_key(number, [kind, code])),
        (Some(kind), None) => (port_key(number, [kind, 0]), port_key(number, [kind, u8::MAX])),
        (None, _) => port_range(number, ports.port, ports.end_port.or(ports.port)),
    })
}

pub(super) fn port_range(number: u8, first: Option<u16>, last: Option<u16>) -> (u32, u32) {
    let key = |port: u16| port_key(number, port.to_be_bytes());
    (key(first.unwrap_or(0)), key(last.unwrap_or(u16::MAX)))
}

/// The same ranges in order, none touching another.
pub(super) fn merged(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_are_keys_that_do_not_touch() {
        let ports = |protocol: &str, port, end_port, icmp_type, code| {
            range(&PortMatch { protocol: protocol.to_owned(), port, end_port, icmp_type, code })
        };
        assert_eq!(ports("TCP", None, None, None, None), Some((0x6_0000, 0x6_ffff)));
        assert_eq!(ports("UDP", Some(53), None, None, None), Some((0x11_0035, 0x11_0035)));
        assert_eq!(ports("17", Some(53), Some(54), None, None), Some((0x11_0035, 0x11_0036)));
        assert_eq!(ports("ICMP", None, None, Some(8), None), Some((0x1_0800, 0x1_08ff)));
        assert_eq!(ports("ICMPv6", None, None, Some(1), Some(4)), Some((0x3a_0104, 0x3a_0104)));
        assert_eq!(ports("300", None, None, None, None), None);
        assert_eq!(merged(vec![(5, 9), (1, 2), (3, 3), (7, 20), (22, 30), (8, 9)]), [(1, 3), (5, 20), (22, 30)]);
    }
}
