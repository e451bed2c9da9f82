//! Rules in their order.
//!
//! About an endpoint are, in this order: what quarantine groups mean for the peers of whom they hold elsewhere ([`held`]); the policies
//! that apply to it, by tier, priority and name; its security group's rules; that group's default. One in a quarantine group has that
//! group's rules and defaults only.

pub mod held;
mod make;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use vnet_common::api::RuleRef;
use vnet_common::policy::MAX_TIERS;
use vnet_common::verdict::Direction;

use super::ids::{RuleIds, RuleKey};
use super::peers::{Atom, AtomId, Atoms, atom};
use super::refused::rule_name;
use super::selector::{Candidate, Known, Selectors};
use crate::resource::{self, Cidr, DEFAULT_GROUP, Origin, Policy, Protocol, SecurityGroup, Tier};
use held::{Leads, Led, Mirrored, Own, PEER_QUARANTINE, UNKNOWN_GROUP, UNKNOWN_RULE, held_in};
use make::Maker;

/// The rule that matches everything, at the end of a group's.
pub const DEFAULT_RULE: &str = "default";
/// What sends a quarantined endpoint's flows elsewhere.
pub const REDIRECT_RULE: &str = "redirect";

/// What is about peers that are held elsewhere comes before all tiers.
pub const HELD_RANK: u8 = 0;
/// The rank of the first tier.
const FIRST_TIER: u8 = 1;
/// A group's rules come after all tiers.
const GROUP_RANK: u8 = 6;
/// Its default comes last.
const DEFAULT_RANK: u8 = 7;
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
    /// Where a load balancer leads flows to, if there are other hosts: who is held there is held off by rules of those here.
    pub elsewhere: Option<&'a Leads<'a>>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub id: u32,
    /// The atoms that match peers; `None`: everyone.
    pub peers: Option<Vec<AtomId>>,
    /// Ranges of [`vnet_common::policy::port_key`]s, in order, none touching another. Empty: all.
    pub ports: Vec<(u32, u32)>,
    /// See [`vnet_common::policy::action`].
    pub action: u8,
    /// See [`vnet_common::policy::rule_flags`].
    pub flags: u8,
    /// [`vnet_common::policy::action::REDIRECT`]: row and serial.
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
    /// By [`Direction`]: about peers that are held elsewhere.
    mirrored: [Vec<Mirrored>; 2],
}

/// What the rules about an endpoint follow from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Combination {
    /// By [`Direction`], the rules about peers that are held elsewhere: places in the table.
    mirrored: [Arc<[usize]>; 2],
    /// The policies, in their order.
    pub policies: Arc<[u32]>,
    /// The group.
    group: Arc<str>,
}

impl Combination {
    /// Only a group.
    pub fn of(group: &Arc<str>) -> Self {
        Self { mirrored: [Arc::new([]), Arc::new([])], policies: Arc::new([]), group: Arc::clone(group) }
    }
}

impl Rules {
    /// From resources. `ids` has the number of every rule.
    pub fn new(written: &Written<'_>, ids: &RuleIds, atoms: &Atoms, ready: (&mut Known, Option<&Known>)) -> Self {
        let mut make = Maker { ids, atoms, origins: written.origins, table: Vec::new(), refs: Vec::new() };
        let mut policies: Vec<&Policy> = written.policies.clone();
        policies.sort_by_key(|p| (p.spec.tier, p.spec.priority, p.metadata.name.clone()));
        let mirrored = written.elsewhere.map(|led| mirrored(&mut make, written, led)).unwrap_or_default();
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
        Self {
            table,
            refs,
            by_id,
            policies: ordered,
            selecting: Selectors::new(selecting),
            everywhere,
            by_group,
            groups,
            mirrored,
        }
    }

    /// What the rules about an endpoint of this host follow from; and selectors that could not be asked.
    pub fn about(&self, candidate: Candidate<'_>, group: &Arc<str>, own: Own<'_>) -> (Combination, Vec<String>) {
        if self.is_quarantine(group) {
            return (Combination::of(group), Vec::new());
        }
        let (selected, faults) = self.selecting.matching(candidate);
        let in_group = |at: &u32| {
            let groups = self.policies.get(*at as usize).map(|p| &p.groups);
            groups.is_some_and(|groups| groups.is_empty() || groups.contains(group))
        };
        let mut policies: Vec<u32> = selected.into_iter().filter(in_group).collect();
        policies.extend(self.everywhere.iter().chain(self.by_group.get(group).into_iter().flatten()));
        policies.sort_unstable();
        let mirrored = DIRECTIONS.map(|d| self.mirrored[d as usize].iter().filter_map(|rule| rule.row(own)).collect());
        let combination = Combination { mirrored, policies: policies.into(), group: Arc::clone(group) };
        (combination, faults.into_iter().map(|(_, why)| why).collect())
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
    pub fn list(&self, about: &Combination, direction: Direction) -> Vec<&Rule> {
        let policies = about.policies.iter().filter_map(|at| self.policies.get(*at as usize)).map(|p| &p.lists);
        let lists = policies.chain(self.groups.get(&about.group).map(|g| &g.lists));
        let places = about.mirrored[direction as usize].iter().chain(lists.flat_map(|lists| &lists[direction as usize]));
        places.filter_map(|at| self.table.get(*at)).collect()
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

/// The rules about peers that are held elsewhere.
fn mirrored(make: &mut Maker<'_>, written: &Written<'_>, led: &Leads<'_>) -> [Vec<Mirrored>; 2] {
    let mut all = <[Vec<Mirrored>; 2]>::default();
    let mut add = |lists: [Vec<Mirrored>; 2]| all.iter_mut().zip(lists).for_each(|(all, list)| all.extend(list));
    for group in &written.groups {
        let Some(quarantine) = &group.spec.quarantine else { continue };
        let led: Vec<Led> = quarantine.redirect_to.iter().flat_map(|lb| led(lb)).collect();
        add(make.mirrored(group, &led));
    }
    add(make.unknown().map(|rule| vec![rule]));
    all
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
        let redirects = g.spec.quarantine.as_ref().is_some_and(|q| !q.redirect_to.is_empty());
        let more = [defaults[0], defaults[1], (Direction::Egress, REDIRECT_RULE)];
        add("SecurityGroup", &g.metadata.name, [&g.spec.egress, &g.spec.ingress], &more[..2 + usize::from(redirects)]);
    }
    add("built-in", DEFAULT_GROUP, [&[], &[]], &defaults);
    if written.elsewhere.is_some() {
        for g in &written.groups {
            let Some(quarantine) = &g.spec.quarantine else { continue };
            let more = [defaults[0], defaults[1], (Direction::Ingress, REDIRECT_RULE)];
            let more = &more[..2 + usize::from(!quarantine.redirect_to.is_empty())];
            add(PEER_QUARANTINE, &g.metadata.name, [&g.spec.ingress, &g.spec.egress], more);
        }
        add("built-in", UNKNOWN_GROUP, [&[], &[]], &DIRECTIONS.map(|d| (d, UNKNOWN_RULE)));
    }
    keys
}

/// A rule that there is no number for, as people know it.
pub fn unnumbered(written: &Written<'_>, key: RuleKey) -> String {
    let kind = if key.kind == PEER_QUARANTINE { "SecurityGroup" } else { &key.kind };
    let origin = written.origins.get(&(kind.to_owned(), key.resource.clone()));
    let place = origin.map(|o| o.place(o.line)).unwrap_or_default();
    rule_name(&RuleRef { kind: key.kind, resource: key.resource, rule: key.rule, place, ..RuleRef::default() })
}

/// Every atom that these rules have.
pub fn atoms(written: &Written<'_>) -> BTreeSet<Atom> {
    let policies = written.policies.iter().flat_map(|p| p.spec.egress.iter().chain(&p.spec.ingress));
    let groups = written.groups.iter().flat_map(|g| g.spec.egress.iter().chain(&g.spec.ingress));
    let mut atoms: BTreeSet<Atom> = policies.chain(groups).flat_map(|rule| &rule.peers).filter_map(atom).collect();
    if written.groups.iter().any(|g| g.spec.quarantine.as_ref().is_some_and(|q| !q.redirect_to.is_empty())) {
        atoms.extend([family(true), family(false)]);
    }
    if written.elsewhere.is_some() {
        let quarantines = written.groups.iter().filter(|g| g.spec.quarantine.is_some()).map(|g| Some(g.metadata.name.as_str()));
        atoms.extend(quarantines.chain([None]).flat_map(|group| [held_in(group, true), held_in(group, false)]));
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
