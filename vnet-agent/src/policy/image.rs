//! What the maps should say of policy.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use vnet_common::api::RuleRef;
use vnet_common::policy::AddressKey;
use vnet_common::verdict::Direction;

use super::compile::address_key;
use super::identity::{Identities, RESERVED};
use super::ids::RuleIds;
use super::networks::Networks;
use super::peers::{AtomId, Atoms, entity};
use super::plan::Scope;
use super::rules::{Combination, Rules, tier_name};
use super::selector::Known;
use super::set::Set;
use super::subject::Subject;
use crate::resource::Cidr;

/// Names in one warning, at most.
const NAMED: usize = 5;

/// What follows from resources and networks alone.
#[derive(Debug)]
pub struct Program {
    pub(super) rules: Rules,
    pub(super) by_number: Arc<HashMap<u32, Arc<RuleRef>>>,
    pub(super) atoms: Atoms,
    pub(super) ids: RuleIds,
    pub(super) networks: Networks,
    pub(super) ready: Known,
}

/// What the maps should say. Made by [`Image::compile`].
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) program: Arc<Program>,
    pub(super) subjects: HashMap<Arc<str>, Arc<Placed>>,
    /// Those on this host.
    pub(super) locals: BTreeMap<Arc<str>, Arc<Placed>>,
    /// Who claims an address; the first has it.
    pub(super) addresses: HashMap<AddressKey, Arc<[Claim]>>,
    pub(super) identities: Identities,
    pub(super) regions: Arc<BTreeMap<Cidr, u32>>,
    /// Sets, and how many endpoints and quarantine groups have them.
    pub(super) sets: HashMap<Combination, (Arc<Set>, u32)>,
    pub(super) quarantine: BTreeMap<Arc<str>, Arc<Set>>,
    /// Hosts' addresses, with their identities.
    pub(super) hosts: Arc<BTreeMap<AddressKey, (Rank, u32)>>,
    /// How many endpoints with addresses are held on other hosts.
    pub(super) held: u32,
    /// Numbers that rules have for the first time.
    pub(super) fresh: Vec<u32>,
    /// Tells images apart.
    pub(super) version: Arc<Version>,
}

/// Which image this is, and what of its addresses is other than in the one that it was made from.
#[derive(Debug, Default)]
pub struct Version {
    pub(super) from: Option<Weak<Version>>,
    pub(super) touched: Vec<AddressKey>,
}

/// How good a claim to an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It is this host's.
    ThisHost,
    /// It is another host's.
    RemoteHost,
    /// An endpoint of this host was given it.
    Given,
    /// One of another host was.
    GivenElsewhere,
    /// An endpoint of this host uses it.
    Learned,
    /// One of another host does.
    LearnedElsewhere,
}

impl Rank {
    /// Is it a host's?
    pub fn is_host(self) -> bool {
        self <= Self::RemoteHost
    }
}

/// A claim to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// How good it is.
    pub rank: Rank,
    /// The endpoint is held on another host: of equal claims the stricter counts.
    pub held: bool,
    /// The endpoint; empty for hosts.
    pub owner: Arc<str>,
    /// What it is there.
    pub identity: u32,
}

/// An endpoint in the image.
#[derive(Debug)]
pub struct Placed {
    /// The endpoint.
    pub subject: Subject,
    /// Its own identity: that of its first address; unknown while it has none.
    pub identity: u32,
    /// If it is on this host, its rules.
    pub local: Option<Local>,
    /// It is held on another host.
    pub held: bool,
    /// Its addresses, with their identities.
    pub claims: Vec<(AddressKey, u32)>,
    /// Selectors that could not be asked.
    pub faults: Vec<String>,
}

impl Placed {
    /// Are there addresses of which packets must be held off, because the endpoint is held on another host?
    pub(super) fn is_held_off(&self) -> bool {
        self.held && !self.claims.is_empty()
    }
}

/// What is only of endpoints on this host.
#[derive(Debug)]
pub struct Local {
    /// What its rules follow from.
    pub combination: Combination,
    /// Its rules.
    pub set: Arc<Set>,
}

impl Image {
    pub(super) fn empty(program: Arc<Program>, identities: Identities) -> Self {
        Self {
            program,
            identities,
            subjects: HashMap::new(),
            locals: BTreeMap::new(),
            addresses: HashMap::new(),
            regions: Arc::default(),
            sets: HashMap::new(),
            quarantine: BTreeMap::new(),
            hosts: Arc::default(),
            held: 0,
            fresh: Vec::new(),
            version: Arc::default(),
        }
    }

    /// The endpoint of this name.
    pub fn endpoint(&self, name: &str) -> Option<&Placed> {
        self.subjects.get(name).map(|placed| &**placed)
    }

    /// Every endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = &Placed> {
        self.subjects.values().map(|placed| &**placed)
    }

    /// Those on this host, by their names.
    pub fn locals(&self) -> impl Iterator<Item = (&Placed, &Local)> {
        self.locals.values().filter_map(|placed| Some((&**placed, placed.local.as_ref()?)))
    }

    /// The addresses of which something may be other than in the image of this version; all, if that is not known.
    pub(super) fn touched_since(&self, version: Option<&Arc<Version>>) -> Option<&[AddressKey]> {
        if version.is_some_and(|v| Arc::ptr_eq(v, &self.version)) {
            return Some(&[]);
        }
        let from = self.version.from.as_ref().filter(|from| version.is_some_and(|v| from.as_ptr() == Arc::as_ptr(v)));
        from.map(|_| &self.version.touched[..])
    }

    /// The numbers of rules, to be stored.
    pub fn ids(&self) -> &RuleIds {
        &self.program.ids
    }

    /// A rule as somebody wrote it, and its tier: `quarantine`, `peer-quarantine`, a tier, `group` or `default`.
    pub fn rule(&self, id: u32) -> Option<(&RuleRef, &'static str)> {
        self.program.rules.reference(id).map(|(rule, tier)| (rule, *tier))
    }

    /// Every rule likewise.
    pub fn rules(&self) -> impl Iterator<Item = (&RuleRef, &'static str)> {
        self.program.rules.references().map(|(rule, tier)| (rule, *tier))
    }

    /// All rules by their numbers. A change of endpoints leaves it as it is.
    pub fn rules_by_number(&self) -> Arc<HashMap<u32, Arc<RuleRef>>> {
        Arc::clone(&self.program.by_number)
    }

    /// How many endpoints of this host have each rule in their set, by the rule's number.
    pub fn rule_users(&self) -> HashMap<u32, u32> {
        let mut users = HashMap::new();
        for (_, local) in self.locals() {
            let mut ids: Vec<u32> = local.set.sides.iter().flat_map(|side| &side.rules).map(|rule| rule.id).collect();
            ids.sort_unstable();
            ids.dedup();
            ids.into_iter().for_each(|id| *users.entry(id).or_default() += 1);
        }
        users
    }

    /// The numbers of an endpoint's rules in their order, if it is on this host.
    pub fn rules_of(&self, endpoint: &str, direction: Direction) -> Option<Vec<u32>> {
        let side = &self.endpoint(endpoint)?.local.as_ref()?.set.sides[direction as usize];
        Some(side.rules.iter().map(|rule| rule.id).collect())
    }

    /// Who has an address: an endpoint or a host.
    pub fn owner(&self, network: u32, address: IpAddr) -> Option<&Claim> {
        self.addresses.get(&address_key(network, address))?.first()
    }

    /// The identity of an address, as the datapath finds it.
    pub fn identity(&self, network: u32, address: IpAddr) -> u32 {
        if let Some(claim) = self.owner(network, address) {
            return claim.identity;
        }
        let region = self.program.networks.find(address).filter(|_| network == 0);
        region.and_then(|(prefix, _)| self.regions.get(&prefix)).copied().unwrap_or(vnet_common::policy::identity::UNKNOWN)
    }

    /// Identities of addresses that no endpoint has, in networks that rules name: with the reserved identity that they would have otherwise.
    pub fn places(&self) -> impl Iterator<Item = (u32, u32)> {
        self.meanings().filter_map(|(number, atoms)| {
            let place = RESERVED.iter().find(|(_, e)| atoms.contains(&entity(*e)))?;
            Some((number, place.0))
        })
    }

    /// How many identities there are, but for the reserved ones.
    pub fn identities(&self) -> usize {
        self.identities.len()
    }

    /// The sets that should be loaded, each with whom it is of.
    pub(super) fn wanted(&self, scope: Scope<'_>) -> Vec<(String, &Arc<Set>)> {
        let groups = self.quarantine.iter().filter(|_| matches!(scope, Scope::All));
        let groups = groups.map(|(name, set)| (format!("quarantine group `{name}`"), set));
        let endpoints = self.locals().filter(|(p, _)| scope.has(&p.subject.name));
        groups.chain(endpoints.map(|(p, local)| (format!("endpoint `{}`", p.subject.name), &local.set))).collect()
    }

    /// A rule that names this network.
    pub(super) fn rule_with(&self, network: &Cidr) -> Option<&RuleRef> {
        let atoms: Vec<AtomId> = self
            .program
            .atoms
            .networks()
            .filter(|(_, cidr, except)| cidr == network || except.contains(network))
            .map(|(id, ..)| id)
            .collect();
        self.program.rules.with_peer(&atoms)
    }

    /// Identities, with what they stand for.
    pub(super) fn meanings(&self) -> impl Iterator<Item = (u32, &Arc<[AtomId]>)> {
        self.identities.iter()
    }

    /// Is somebody held on another host? Then every endpoint is policed.
    pub fn holds_elsewhere(&self) -> bool {
        self.held != 0
    }

    /// Things worth knowing that do not stop anything: policies whose order is only that of their names, selectors that could not be
    /// asked, addresses that several endpoints claim, security groups that only other hosts have.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.ties();
        warnings.extend(self.unknown_groups());
        let mut faults: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for placed in self.subjects.values() {
            placed.faults.iter().for_each(|why| faults.entry(why).or_default().push(&placed.subject.name));
        }
        warnings.extend(faults.into_iter().map(|(why, names)| format!("the selector {why}: it does not select {}", some(names))));
        let contested = self.addresses.iter().filter(|(_, claims)| claims.len() > 1);
        let mut contested: Vec<(IpAddr, &Arc<[Claim]>)> = contested.map(|(key, claims)| (address(key), claims)).collect();
        contested.sort_unstable_by_key(|(address, _)| *address);
        for (address, claims) in contested {
            let name = |c: &Claim| if c.rank.is_host() { "a host".to_owned() } else { format!("`{}`", c.owner) };
            let names: Vec<String> = claims.iter().map(name).collect();
            let (first, others) = names.split_first().map(|(f, o)| (f.as_str(), o.join(", "))).unwrap_or_default();
            warnings.push(format!("the address {address} of {first} is claimed by {others} too: it counts as {first}'s"));
        }
        warnings
    }

    /// Groups that endpoints of other hosts are in, and that are not there, or hold nobody here.
    fn unknown_groups(&self) -> Vec<String> {
        let rules = &self.program.rules;
        let mut unknown: BTreeMap<(&str, bool), Vec<&str>> = BTreeMap::new();
        for placed in self.subjects.values().filter(|placed| placed.local.is_none()) {
            let group = &placed.subject.group;
            let known = if placed.held { rules.is_quarantine(group) } else { rules.has_group(group) };
            if !known {
                unknown.entry((group, placed.held)).or_default().push(&placed.subject.name);
            }
        }
        let warn = |((group, held), names): ((&str, bool), Vec<&str>)| match held {
            true => format!(
                "this host has no quarantine group `{group}`, which holds {} on other hosts: nothing passes to or from there",
                some(names)
            ),
            false => format!(
                "this host has no security group `{group}`, in which {} of other hosts are: to rules here they are in none",
                some(names)
            ),
        };
        unknown.into_iter().map(warn).collect()
    }

    fn ties(&self) -> Vec<String> {
        let mut tied: BTreeMap<_, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
        for (placed, Local { combination, .. }) in self.locals() {
            for (tier, priority, names) in self.program.rules.ties(&combination.policies) {
                let (policies, endpoints) = tied.entry((tier, priority)).or_default();
                policies.extend(names);
                endpoints.push(&placed.subject.name);
            }
        }
        let warn = |((tier, priority), (policies, endpoints)): ((_, u16), (Vec<&str>, Vec<&str>))| {
            let (tier, policies, endpoints) = (tier_name(tier), some(policies), some(endpoints));
            format!(
                "the policies {policies} have tier {tier} and priority {priority}, and are about the same endpoints ({endpoints}): \
                 their order is that of their names; give them different priorities"
            )
        };
        tied.into_iter().map(warn).collect()
    }
}

/// Some of these names, in backticks.
fn some(mut names: Vec<&str>) -> String {
    names.sort_unstable();
    names.dedup();
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn address(key: &AddressKey) -> IpAddr {
    let [a, b, c, d, ..] = key.addr;
    if key.version == 4 { IpAddr::from([a, b, c, d]) } else { IpAddr::from(key.addr) }
}
