//! Rules in their order.
//!
//! About an endpoint are, in this order: the policies that apply to it, by tier, priority and name; its security group's rules; that
//! group's default. One in a quarantine group has that group's rules and defaults only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use vnet_common::api::RuleRef;
use vnet_common::parse::protocol;
use vnet_common::policy::{MAX_TIERS, action, port_key, rule_flags};
use vnet_common::verdict::Direction;

use super::ids::{RuleIds, RuleKey};
use super::peers::{Atom, AtomId, Atoms, atom};
use super::refused::rule_name;
use super::selector::{Candidate, Known, Selectors};
use crate::resource::{
    self, Action, Cidr, DefaultAction, Origin, Policy, PolicyMode, PortMatch, Protocol, SecurityGroup, SecurityGroupSpec, Tier,
};

/// The group of endpoints that no other selects.
pub const DEFAULT_GROUP: &str = "default";
/// The rule that matches everything, at the end of a group's.
pub const DEFAULT_RULE: &str = "default";
/// What sends a quarantined endpoint's flows elsewhere.
pub const REDIRECT_RULE: &str = "redirect";

/// A group's rules come after all tiers.
const GROUP_RANK: u8 = 5;
/// Its default comes last.
const DEFAULT_RANK: u8 = 6;
const _: () = assert!((DEFAULT_RANK as u32) < MAX_TIERS);

/// A member group of a load balancer that a quarantine may send flows to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether it is for IPv4.
    pub v4: bool,
    /// The protocol.
    pub protocol: Protocol,
    /// The load balancer's port.
    pub port: u16,
    /// The group's row.
    pub group: u32,
    /// That row's serial.
    pub serial: u32,
}

/// What rules come from.
pub struct Written<'a> {
    /// Security groups.
    pub groups: Vec<&'a SecurityGroup>,
    /// Policies.
    pub policies: Vec<&'a Policy>,
    /// Where they were written, by kind and name.
    pub origins: &'a HashMap<(String, String), Origin>,
    /// The groups of a load balancer that are loaded, in the order of its ports.
    pub targets: &'a dyn Fn(&str) -> Vec<Target>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub id: u32,
    /// The atoms that match peers; `None`: everyone.
    pub peers: Option<Vec<AtomId>>,
    /// Ranges of [`port_key`]s, in order, none touching another. Empty: all.
    pub ports: Vec<(u32, u32)>,
    /// See [`action`].
    pub action: u8,
    /// See [`rule_flags`].
    pub flags: u8,
    /// [`action::REDIRECT`]: row and serial.
    pub target: (u32, u32),
    /// A `pass` leads to the next rule of a higher one.
    pub rank: u8,
}

/// A resource's rules, by [`Direction`]: places in [`Rules::rule`].
type Lists = [Vec<usize>; 2];

/// A policy.
#[derive(Debug)]
struct Ordered {
    name: String,
    tier: Tier,
    priority: u16,
    groups: BTreeSet<Arc<str>>,
    lists: Lists,
}

/// A security group.
#[derive(Debug)]
struct GroupRules {
    quarantine: bool,
    lists: Lists,
}

/// All rules.
#[derive(Debug)]
pub struct Rules {
    table: Vec<Rule>,
    refs: Vec<(RuleRef, &'static str)>,
    by_id: HashMap<u32, usize>,
    /// In their order.
    policies: Vec<Ordered>,
    /// Policies with a selector.
    selecting: Selectors<u32>,
    /// Those without: of everyone, and by group.
    everywhere: Vec<u32>,
    by_group: HashMap<Arc<str>, Vec<u32>>,
    groups: HashMap<Arc<str>, GroupRules>,
}

/// What the rules about an endpoint follow from: policies in their order, and the group.
pub type Combination = (Arc<[u32]>, Arc<str>);

impl Rules {
    /// From resources. `ids` has the number of every rule.
    pub fn new(written: &Written<'_>, ids: &RuleIds, atoms: &Atoms, ready: (&mut Known, Option<&Known>)) -> Self {
        let mut make = Maker { ids, atoms, origins: written.origins, table: Vec::new(), refs: Vec::new() };
        let mut policies: Vec<&Policy> = written.policies.clone();
        policies.sort_by_key(|p| (p.spec.tier, p.spec.priority, p.metadata.name.clone()));
        let (mut everywhere, mut by_group, mut selecting) = (Vec::new(), HashMap::<_, Vec<u32>>::new(), Vec::new());
        let mut ordered = Vec::new();
        for (at, policy) in policies.into_iter().enumerate() {
            let applied = &policy.spec.applied_to;
            let groups: BTreeSet<Arc<str>> = applied.groups.iter().map(|g| g.as_str().into()).collect();
            match &applied.selector {
                Some(selector) => selecting.push((at as u32, ready.0.ready(selector, ready.1))),
                None if groups.is_empty() => everywhere.push(at as u32),
                None => groups.iter().for_each(|g| by_group.entry(Arc::clone(g)).or_default().push(at as u32)),
            }
            let (name, tier, priority) = (policy.metadata.name.clone(), policy.spec.tier, policy.spec.priority);
            ordered.push(Ordered { name, tier, priority, groups, lists: make.policy(policy) });
        }
        let mut groups: HashMap<Arc<str>, GroupRules> = HashMap::new();
        for group in &written.groups {
            let rules = GroupRules { quarantine: group.spec.quarantine.is_some(), lists: make.group(group, written.targets) };
            groups.insert(group.metadata.name.as_str().into(), rules);
        }
        groups.entry(DEFAULT_GROUP.into()).or_insert_with(|| GroupRules { quarantine: false, lists: make.built_in() });
        let Maker { table, refs, .. } = make;
        let by_id = table.iter().enumerate().map(|(at, rule)| (rule.id, at)).collect();
        Self { table, refs, by_id, policies: ordered, selecting: Selectors::new(selecting), everywhere, by_group, groups }
    }

    /// The policies that apply to an endpoint, in order, with its group; and selectors that could not be asked.
    pub fn about(&self, candidate: Candidate<'_>, group: &Arc<str>) -> (Combination, Vec<String>) {
        if self.is_quarantine(group) {
            return ((Arc::new([]), Arc::clone(group)), Vec::new());
        }
        let (selected, faults) = self.selecting.matching(candidate);
        let in_group = |at: &u32| {
            let groups = self.policies.get(*at as usize).map(|p| &p.groups);
            groups.is_some_and(|groups| groups.is_empty() || groups.contains(group))
        };
        let mut policies: Vec<u32> = selected.into_iter().filter(in_group).collect();
        policies.extend(self.everywhere.iter().chain(self.by_group.get(group).into_iter().flatten()));
        policies.sort_unstable();
        ((policies.into(), Arc::clone(group)), faults.into_iter().map(|(_, why)| why).collect())
    }

    /// Is it a quarantine group?
    pub fn is_quarantine(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(|g| g.quarantine)
    }

    /// The groups that endpoints are moved into.
    pub fn quarantine_groups(&self) -> impl Iterator<Item = &Arc<str>> {
        self.groups.iter().filter(|(_, g)| g.quarantine).map(|(name, _)| name)
    }

    /// Is there a group of this name?
    pub fn has_group(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    /// The rules of one direction, in order.
    pub fn list(&self, (policies, group): &Combination, direction: Direction) -> Vec<&Rule> {
        let policies = policies.iter().filter_map(|at| self.policies.get(*at as usize)).map(|p| &p.lists);
        let lists = policies.chain(self.groups.get(group).map(|g| &g.lists));
        lists.flat_map(|lists| &lists[direction as usize]).filter_map(|at| self.table.get(*at)).collect()
    }

    /// A rule as somebody wrote it, and its tier.
    pub fn reference(&self, id: u32) -> Option<&(RuleRef, &'static str)> {
        self.refs.get(*self.by_id.get(&id)?)
    }

    /// All of them; a rule that has several rows comes once.
    pub fn references(&self) -> impl Iterator<Item = &(RuleRef, &'static str)> {
        self.refs.iter().enumerate().filter(|(at, (r, _))| self.by_id.get(&r.id) == Some(at)).map(|(_, r)| r)
    }

    /// A rule that has one of these atoms as a peer.
    pub fn with_peer(&self, atoms: &[AtomId]) -> Option<&RuleRef> {
        let has = |rule: &Rule| rule.peers.iter().flatten().any(|atom| atoms.contains(atom));
        let at = self.table.iter().position(has)?;
        self.refs.get(at).map(|(reference, _)| reference)
    }

    /// Policies of one tier and priority among these.
    pub fn ties(&self, policies: &[u32]) -> Vec<(Tier, u16, Vec<&str>)> {
        let mut by_place: BTreeMap<(Tier, u16), Vec<&str>> = BTreeMap::new();
        for policy in policies.iter().filter_map(|at| self.policies.get(*at as usize)) {
            by_place.entry((policy.tier, policy.priority)).or_default().push(&policy.name);
        }
        by_place.into_iter().filter(|(_, names)| names.len() > 1).map(|((tier, p), names)| (tier, p, names)).collect()
    }
}

/// Every rule's key, defaults among them: a key that several rows share comes once.
pub fn keys(written: &Written<'_>) -> Vec<RuleKey> {
    let mut keys = Vec::new();
    let mut add = |kind: &str, name: &str, lists: [&[resource::Rule]; 2], more: &[(Direction, &str)]| {
        for (direction, list) in DIRECTIONS.into_iter().zip(lists) {
            keys.extend(list.iter().map(|rule| RuleKey::new(kind, name, direction, &rule.name)));
        }
        keys.extend(more.iter().map(|(direction, rule)| RuleKey::new(kind, name, *direction, rule)));
    };
    let defaults = DIRECTIONS.map(|d| (d, DEFAULT_RULE));
    for p in &written.policies {
        add("Policy", &p.metadata.name, [&p.spec.egress, &p.spec.ingress], &[]);
    }
    for g in &written.groups {
        let redirects = g.spec.quarantine.as_ref().is_some_and(|q| q.redirect_to.is_some());
        let more = [defaults[0], defaults[1], (Direction::Egress, REDIRECT_RULE)];
        add("SecurityGroup", &g.metadata.name, [&g.spec.egress, &g.spec.ingress], &more[..2 + usize::from(redirects)]);
    }
    add("built-in", DEFAULT_GROUP, [&[], &[]], &defaults);
    keys
}

/// A rule that there is no number for, as people know it.
pub fn unnumbered(written: &Written<'_>, key: RuleKey) -> String {
    let origin = written.origins.get(&(key.kind.clone(), key.resource.clone()));
    let place = origin.map(|o| o.place(o.line)).unwrap_or_default();
    rule_name(&RuleRef { kind: key.kind, resource: key.resource, rule: key.rule, place, ..RuleRef::default() })
}

/// Every atom that these rules have.
pub fn atoms(written: &Written<'_>) -> BTreeSet<Atom> {
    let policies = written.policies.iter().flat_map(|p| p.spec.egress.iter().chain(&p.spec.ingress));
    let groups = written.groups.iter().flat_map(|g| g.spec.egress.iter().chain(&g.spec.ingress));
    let mut atoms: BTreeSet<Atom> = policies.chain(groups).flat_map(|rule| &rule.peers).filter_map(atom).collect();
    if written.groups.iter().any(|g| g.spec.quarantine.as_ref().is_some_and(|q| q.redirect_to.is_some())) {
        atoms.extend([family(true), family(false)]);
    }
    atoms
}

/// Every address of a family: a flow cannot go to a member of the other one.
fn family(v4: bool) -> Atom {
    Atom::Network(if v4 { Cidr::ALL_V4 } else { Cidr::ALL_V6 }, Vec::new())
}

/// By their numbers.
pub const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// A tier's name, as it is written.
pub fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Emergency => "emergency",
        Tier::Security => "security",
        Tier::Ops => "ops",
        Tier::App => "app",
        Tier::Baseline => "baseline",
    }
}

/// Whose rules are being made.
#[derive(Clone, Copy)]
struct Owner<'a> {
    kind: &'static str,
    name: &'a str,
    origin: Option<&'a Origin>,
    tier: &'static str,
    rank: u8,
    flags: u8,
}

struct Maker<'a> {
    ids: &'a RuleIds,
    atoms: &'a Atoms,
    origins: &'a HashMap<(String, String), Origin>,
    table: Vec<Rule>,
    refs: Vec<(RuleRef, &'static str)>,
}

impl<'a> Maker<'a> {
    fn origin(&self, kind: &str, name: &str) -> Option<&'a Origin> {
        self.origins.get(&(kind.to_owned(), name.to_owned()))
    }

    fn policy(&mut self, policy: &Policy) -> Lists {
        let name = policy.metadata.name.as_str();
        let flags = if policy.spec.mode == PolicyMode::Staged { rule_flags::STAGED } else { 0 };
        let origin = self.origin("Policy", name);
        let (tier, rank) = (tier_name(policy.spec.tier), policy.spec.tier as u8);
        let owner = Owner { kind: "Policy", name, origin, tier, rank, flags };
        [(Direction::Egress, &policy.spec.egress), (Direction::Ingress, &policy.spec.ingress)]
            .map(|(direction, list)| self.written(owner, direction, list))
    }

    fn group(&mut self, group: &SecurityGroup, targets: &dyn Fn(&str) -> Vec<Target>) -> Lists {
        let (name, spec) = (group.metadata.name.as_str(), &group.spec);
        let (tier, flags) = if spec.quarantine.is_some() { ("quarantine", rule_flags::QUARANTINE) } else { ("group", 0) };
        let origin = self.origin("SecurityGroup", name);
        let owner = Owner { kind: "SecurityGroup", name, origin, tier, rank: GROUP_RANK, flags };
        let mut egress = self.written(owner, Direction::Egress, &spec.egress);
        let mut ingress = self.written(owner, Direction::Ingress, &spec.ingress);
        if let Some(lb) = spec.quarantine.as_ref().and_then(|q| q.redirect_to.as_deref()) {
            egress.extend(self.redirects(owner, &targets(lb)));
        }
        let [to_outside, to_it] = defaults(spec);
        egress.push(self.default(owner, Direction::Egress, to_outside));
        ingress.push(self.default(owner, Direction::Ingress, to_it));
        [egress, ingress]
    }

    /// The group `default`, where no resource has that name: everything is allowed.
    fn built_in(&mut self) -> Lists {
        let owner = Owner { kind: "built-in", name: DEFAULT_GROUP, origin: None, tier: "default", rank: GROUP_RANK, flags: 0 };
        DIRECTIONS.map(|direction| vec![self.default(owner, direction, action::ALLOW)])
    }

    fn written(&mut self, owner: Owner<'_>, direction: Direction, list: &[resource::Rule]) -> Vec<usize> {
        let lines = owner.origin.map(|o| if direction == Direction::Egress { &o.egress } else { &o.ingress });
        let each = list.iter().enumerate().map(|(at, rule)| {
            let peers = (!rule.peers.is_empty())
                .then(|| rule.peers.iter().filter_map(atom).filter_map(|atom| self.atoms.id(&atom)).collect());
            let made = Rule {
                id: 0,
                peers,
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

    fn default(&mut self, owner: Owner<'_>, direction: Direction, action: u8) -> usize {
        let flags = owner.flags | rule_flags::DEFAULT;
        let rule = Rule { id: 0, peers: None, ports: Vec::new(), action, flags, target: (0, 0), rank: DEFAULT_RANK };
        let tier = if owner.tier == "group" { "default" } else { owner.tier };
        self.add(Owner { tier, ..owner }, direction, DEFAULT_RULE, owner.origin.map(|o| o.line), rule)
    }

    /// To the load balancer's group for the port that the flow is for, else to its first.
    fn redirects(&mut self, owner: Owner<'_>, targets: &[Target]) -> Vec<usize> {
        let mut rows = Vec::new();
        for v4 in [true, false] {
            let of_family: Vec<&Target> = targets.iter().filter(|t| t.v4 == v4).collect();
            let exact = of_family.iter().map(|t| (**t, Some(t.port)));
            for (target, port) in exact.chain(of_family.first().map(|t| (**t, None))) {
                let number = if target.protocol == Protocol::Tcp { protocol::TCP } else { protocol::UDP };
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

    fn add(&mut self, owner: Owner<'_>, direction: Direction, name: &str, line: Option<u32>, rule: Rule) -> usize {
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
fn defaults(spec: &SecurityGroupSpec) -> [u8; 2] {
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

fn action_number(a: Action) -> u8 {
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

fn range(ports: &PortMatch) -> Option<(u32, u32)> {
    let number = resource::protocol_number(&ports.protocol)?;
    Some(match (ports.icmp_type, ports.code) {
        (Some(kind), Some(code)) => (port_key(number, [kind, code]), port_key(number, [kind, code])),
        (Some(kind), None) => (port_key(number, [kind, 0]), port_key(number, [kind, u8::MAX])),
        (None, _) => port_range(number, ports.port, ports.end_port.or(ports.port)),
    })
}

fn port_range(number: u8, first: Option<u16>, last: Option<u16>) -> (u32, u32) {
    let key = |port: u16| port_key(number, port.to_be_bytes());
    (key(first.unwrap_or(0)), key(last.unwrap_or(u16::MAX)))
}

/// The same ranges in order, none touching another.
fn merged(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
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
