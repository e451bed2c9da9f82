//! From resources and endpoints to an [`Image`].
//!
//! A change of rules makes everything anew, but numbers stay: of rules, atoms and identities. A change of an endpoint looks at that
//! endpoint only. An image is never changed: whoever has one can go back to it.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use vnet_common::policy::{AddressKey, identity};

use super::identity::Identities;
use super::ids::RuleIds;
use super::live::{Tables, cidr_key};
use super::networks::{Networks, Region};
use super::peers::{AtomId, Atoms, entity};
use super::rules::held::{Own, held_in};
use super::rules::{self, Combination, DIRECTIONS, Rules, Written};
use super::selector::{Candidate, Known};
use super::set::Set;
use super::subject::{HostKind, Subject};

pub use super::image::Image;

use super::image::{Claim, Local, Placed, Program, Rank, Version};
use super::refused::{Refused, rule_name};
use crate::resource::{Cidr, Entity};

/// What an image follows from.
pub struct Inputs<'a> {
    /// Resources.
    pub written: Written<'a>,
    /// Every endpoint, on this host and others. Names are unique.
    pub subjects: Vec<Subject>,
    /// Addresses of hosts.
    pub hosts: Vec<(IpAddr, HostKind)>,
    /// Networks that endpoints are in: their other addresses are `unknown`, not `world`.
    pub networks: Vec<Cidr>,
}

/// What was before: whose numbers are kept.
#[derive(Clone, Copy)]
pub enum Previous<'a> {
    /// An image: the one in force.
    Image(&'a Image),
    /// Nothing that is known, but what an agent before this one left.
    Start {
        /// Numbers of rules, from the store.
        ids: &'a RuleIds,
        /// What the maps say.
        tables: &'a Tables,
    },
}

/// What is known of an endpoint or host before identities have numbers.
struct Draft {
    subject: Subject,
    /// Its addresses, each with all atoms that match there.
    addresses: Vec<(AddressKey, Rank, Arc<[AtomId]>)>,
    /// It is held on another host.
    held: bool,
    /// What its rules follow from, if it is on this host.
    combination: Option<Combination>,
    faults: Vec<String>,
}

/// Addresses of hosts, each with all atoms that match there.
type Hosts = BTreeMap<AddressKey, (Rank, Arc<[AtomId]>)>;

impl Image {
    /// The image that follows from these. All that can be too much is found here, but for what the maps hold.
    pub fn compile(inputs: &Inputs<'_>, previous: Previous<'_>) -> Result<Self, Refused> {
        let program = Arc::new(program(&inputs.written, &inputs.networks, previous)?);
        let drafts: Vec<Draft> = inputs.subjects.iter().map(|s| program.draft(s.clone())).collect::<Result<_, _>>()?;
        let hosts = program.hosts(&inputs.hosts);
        let regions: Vec<(Cidr, Vec<AtomId>)> =
            program.networks.regions().into_iter().map(|(cidr, region)| (cidr, region_atoms(region))).collect();
        let identities = numbers(&program, &drafts, &hosts, &regions, previous);
        let mut image = Self::empty(program, identities);
        let before = match previous {
            Previous::Image(image) => image.ids(),
            Previous::Start { ids, .. } => ids,
        };
        image.fresh = image.ids().change_since(before).given.into_iter().map(|(_, id)| id).collect();
        image.put_hosts(hosts);
        image.regions = Arc::new(regions.into_iter().map(|(cidr, atoms)| (cidr, image.identities.take(&atoms))).collect());
        for group in image.program.rules.quarantine_groups().cloned().collect::<Vec<_>>() {
            let combination = Combination::of(&group);
            let set = image.set(&combination, &format!("quarantine group `{group}`"))?;
            image.quarantine.insert(group, set);
        }
        drafts.into_iter().try_for_each(|draft| image.place(draft))?;
        image.identities.settle();
        Ok(image)
    }

    /// The same with some endpoints added or changed, and others gone.
    pub fn with(&self, changed: Vec<Subject>, gone: &[Arc<str>]) -> Result<Self, Refused> {
        self.with_hosts(changed, gone, None)
    }

    /// The same, with other addresses of hosts.
    pub fn with_hosts(
        &self,
        changed: Vec<Subject>,
        gone: &[Arc<str>],
        hosts: Option<&[(IpAddr, HostKind)]>,
    ) -> Result<Self, Refused> {
        let mut image = Self { fresh: Vec::new(), ..self.clone() };
        let keys = |placed: &Arc<Placed>| placed.claims.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        let names = changed.iter().map(|s| &s.name).chain(gone).cloned().collect::<Vec<_>>();
        let mut touched: Vec<AddressKey> = names.iter().filter_map(|name| self.subjects.get(name)).flat_map(keys).collect();
        for subject in changed {
            let draft = image.program.draft(subject)?;
            let before = image.subjects.remove(&draft.subject.name);
            // The new state takes its numbers before the old one gives back its own: what is the same stays.
            before.iter().for_each(|b| image.unclaim(b));
            image.place(draft)?;
            before.iter().for_each(|b| image.give_back(b));
        }
        if let Some(hosts) = hosts {
            touched.extend(image.put_hosts(image.program.hosts(hosts)));
        }
        for before in gone.iter().filter_map(|name| image.subjects.remove(name)).collect::<Vec<_>>() {
            image.unclaim(&before);
            image.give_back(&before);
            image.locals.remove(&before.subject.name);
        }
        touched.extend(names.iter().filter_map(|name| image.subjects.get(name)).flat_map(keys));
        touched.sort_unstable();
        touched.dedup();
        image.version = Arc::new(Version { from: Some(Arc::downgrade(&self.version)), touched });
        Ok(image)
    }

    fn place(&mut self, draft: Draft) -> Result<(), Refused> {
        let Draft { subject, addresses, held, combination, faults } = draft;
        let about = || format!("endpoint `{}`", subject.name);
        let local = match combination {
            Some(combination) => Some(Local { set: self.set(&combination, &about())?, combination }),
            None => None,
        };
        let mut claims = Vec::with_capacity(addresses.len());
        for (key, rank, atoms) in addresses {
            let claim = Claim { rank, held, owner: Arc::clone(&subject.name), identity: self.identities.take(&atoms) };
            claims.push((key, claim.identity));
            self.claim(key, claim);
        }
        let identity = claims.first().map_or(identity::UNKNOWN, |(_, identity)| *identity);
        let placed = Placed { identity, claims, local, held, faults, subject };
        self.held += u32::from(placed.is_held_off());
        let (name, placed) = (Arc::clone(&placed.subject.name), Arc::new(placed));
        match placed.local {
            Some(_) => self.locals.insert(Arc::clone(&name), Arc::clone(&placed)),
            None => self.locals.remove(&name),
        };
        self.subjects.insert(name, placed);
        Ok(())
    }

    /// The set of this combination; one more endpoint or quarantine group has it.
    fn set(&mut self, combination: &Combination, about: &str) -> Result<Arc<Set>, Refused> {
        if let Some((set, users)) = self.sets.get_mut(combination) {
            *users += 1;
            return Ok(Arc::clone(set));
        }
        let rules = &self.program.rules;
        let lists = DIRECTIONS.map(|direction| rules.list(combination, direction));
        let set = Set::new([&lists[0], &lists[1]]).map_err(|too_long| {
            let rule = lists.get(too_long.direction as usize).and_then(|list| list.get(too_long.at));
            let reference = rule.and_then(|rule| rules.reference(rule.id)).map(|(r, _)| rule_name(r));
            Refused::long(reference.unwrap_or_default(), about.to_owned(), too_long)
        })?;
        let set = Arc::new(set);
        self.sets.insert(combination.clone(), (Arc::clone(&set), 1));
        Ok(set)
    }

    /// One fewer has what an endpoint had.
    fn give_back(&mut self, placed: &Placed) {
        self.held -= u32::from(placed.is_held_off());
        placed.claims.iter().for_each(|(_, identity)| self.identities.give_back(*identity));
        if let Some(Local { combination, .. }) = &placed.local
            && let Some((_, users)) = self.sets.get_mut(combination)
        {
            *users -= 1;
            if *users == 0 {
                self.sets.remove(combination);
            }
        }
    }

    fn claim(&mut self, key: AddressKey, claim: Claim) {
        let mut all: Vec<Claim> = self.addresses.get(&key).map(|claims| claims.to_vec()).unwrap_or_default();
        all.push(claim);
        all.sort_unstable_by(|a, b| (a.rank, !a.held, &a.owner).cmp(&(b.rank, !b.held, &b.owner)));
        self.addresses.insert(key, all.into());
    }

    fn unclaim(&mut self, placed: &Placed) {
        for (key, _) in &placed.claims {
            self.leave(key, |c| c.rank.is_host() || c.owner != placed.subject.name);
        }
    }

    /// Only these claims of an address stay.
    fn leave(&mut self, key: &AddressKey, stays: impl Fn(&Claim) -> bool) {
        let claims = self.addresses.get(key).into_iter().flat_map(|claims| claims.iter());
        let left: Vec<Claim> = claims.filter(|c| stays(c)).cloned().collect();
        if left.is_empty() {
            self.addresses.remove(key);
        } else {
            self.addresses.insert(*key, left.into());
        }
    }

    /// Makes these the hosts' addresses; gives those of which that is new, or is so no more.
    fn put_hosts(&mut self, hosts: Hosts) -> Vec<AddressKey> {
        let before = Arc::clone(&self.hosts);
        let (mut after, mut touched) = (BTreeMap::new(), Vec::new());
        for (key, (rank, atoms)) in hosts {
            // As with endpoints: what stays the same takes its number before that is given back.
            let identity = self.identities.take(&atoms);
            after.insert(key, (rank, identity));
            if before.get(&key) != Some(&(rank, identity)) {
                self.leave(&key, |c| !c.rank.is_host());
                self.claim(key, Claim { rank, held: false, owner: "".into(), identity });
                touched.push(key);
            }
        }
        for (key, (_, identity)) in before.iter() {
            self.identities.give_back(*identity);
            if !after.contains_key(key) {
                self.leave(key, |c| !c.rank.is_host());
                touched.push(*key);
            }
        }
        self.hosts = Arc::new(after);
        touched
    }
}

impl Program {
    fn draft(&self, subject: Subject) -> Result<Draft, Refused> {
        let group = Some(&subject.group).filter(|group| self.rules.has_group(group));
        if group.is_none() && subject.local {
            return Err(Refused::Group { endpoint: subject.name.to_string(), group: subject.group.to_string() });
        }
        let candidate = Candidate { name: &subject.name, labels: &subject.labels };
        let (atoms, mut faults) = self.atoms.of_endpoint(candidate, group);
        let quarantine = Some(&*subject.group).filter(|group| self.rules.is_quarantine(group));
        let held = !subject.local && (subject.held || quarantine.is_some());
        let [given, learned] =
            if subject.local { [Rank::Given, Rank::Learned] } else { [Rank::GivenElsewhere, Rank::LearnedElsewhere] };
        let given = subject.addresses.iter().map(|a| (*a, given));
        let mut addresses: Vec<(AddressKey, Rank, Arc<[AtomId]>)> = Vec::new();
        for (address, rank) in given.chain(subject.learned.iter().map(|a| (*a, learned))) {
            let key = address_key(subject.network, address);
            if addresses.iter().all(|(k, ..)| *k != key) {
                let atom = if held { self.atoms.id(&held_in(quarantine, address.is_ipv4())) } else { None };
                addresses.push((key, rank, self.at(&atoms, atom, address)));
            }
        }
        let combination = subject.local.then(|| {
            let at: Vec<(AddressKey, &[AtomId])> = addresses.iter().map(|(key, _, atoms)| (*key, &**atoms)).collect();
            let own = Own { atoms: &atoms, addresses: &at };
            let (combination, more) = self.rules.about(candidate, &subject.group, own);
            faults.extend(more);
            combination
        });
        Ok(Draft { subject, addresses, held, combination, faults })
    }

    /// The addresses of hosts. One that this host and another have is this one's.
    fn hosts(&self, hosts: &[(IpAddr, HostKind)]) -> Hosts {
        let mut all = Hosts::new();
        for (address, kind) in hosts {
            let (rank, what) = match kind {
                HostKind::This => (Rank::ThisHost, Entity::Host),
                HostKind::Remote => (Rank::RemoteHost, Entity::RemoteHost),
            };
            let key = address_key(0, *address);
            if all.get(&key).is_none_or(|(there, _)| rank < *there) {
                all.insert(key, (rank, self.at(&[entity(what)], None, *address)));
            }
        }
        all
    }

    /// These atoms, and those of the networks that an address is in.
    fn at(&self, atoms: &[AtomId], more: Option<AtomId>, address: IpAddr) -> Arc<[AtomId]> {
        let networks = self.networks.find(address).map(|(_, region)| &region.atoms[..]).unwrap_or_default();
        let mut all = [atoms, more.as_slice(), networks].concat();
        all.sort_unstable();
        all.into()
    }
}

fn program(written: &Written<'_>, networks: &[Cidr], previous: Previous<'_>) -> Result<Program, Refused> {
    let before = match previous {
        Previous::Image(image) => Some(&*image.program),
        Previous::Start { .. } => None,
    };
    let ids = match previous {
        Previous::Image(image) => image.program.ids.of(rules::keys(written)),
        Previous::Start { ids, .. } => ids.of(rules::keys(written)),
    };
    let ids = ids.map_err(|key| Refused::Numbers { rule: rules::unnumbered(written, key) })?;
    let (mut ready, known) = (Known::default(), before.map(|b| &b.ready));
    let atoms = Atoms::new(rules::atoms(written), before.map(|b| &b.atoms), (&mut ready, known));
    let rules = Rules::new(written, &ids, &atoms, (&mut ready, known));
    let networks = Networks::new(atoms.networks(), networks);
    let by_number = Arc::new(rules.references().map(|(rule, _)| (rule.id, Arc::new(rule.clone()))).collect());
    Ok(Program { rules, by_number, atoms, ids, networks, ready })
}

/// Numbers for all that there is, those before kept where they can be.
fn numbers(
    program: &Program,
    drafts: &[Draft],
    hosts: &Hosts,
    regions: &[(Cidr, Vec<AtomId>)],
    previous: Previous<'_>,
) -> Identities {
    let mut classes: BTreeMap<Arc<[AtomId]>, Vec<u32>> = BTreeMap::new();
    let mut holds = |atoms: Arc<[AtomId]>, number: Option<u32>| {
        classes.entry(atoms).or_default().extend(number.filter(|n| *n >= identity::FIRST));
    };
    let hosts = hosts.iter().map(|(key, (_, atoms))| (key, atoms));
    for (key, atoms) in drafts.iter().flat_map(|d| &d.addresses).map(|(key, _, atoms)| (key, atoms)).chain(hosts) {
        let number = match previous {
            Previous::Start { tables, .. } => tables.addresses.get(key).copied(),
            Previous::Image(image) => image.addresses.get(key).and_then(|claims| claims.first()).map(|c| c.identity),
        };
        holds(Arc::clone(atoms), number);
    }
    for (cidr, atoms) in regions {
        let number = match previous {
            Previous::Start { tables, .. } => tables.cidrs.get(&cidr_key(cidr)).copied(),
            Previous::Image(image) => image.regions.get(cidr).copied(),
        };
        holds(atoms.clone().into(), number);
    }
    match previous {
        Previous::Start { tables, .. } => Identities::adopt(tables, &classes),
        Previous::Image(image) => {
            let stays: HashSet<AtomId> = program.atoms.numbers().collect();
            Identities::inherit(&image.identities, &classes, &stays, image.program.atoms.next())
        }
    }
}

fn region_atoms(region: &Region) -> Vec<AtomId> {
    let base = if region.base == identity::UNKNOWN { Entity::Unknown } else { Entity::World };
    let mut atoms = vec![entity(base)];
    atoms.extend(region.atoms.iter());
    atoms.sort_unstable();
    atoms
}

/// An address as the maps have it.
pub fn address_key(network: u32, address: IpAddr) -> AddressKey {
    let mut addr = [0; 16];
    let version = match address {
        IpAddr::V4(v4) => {
            addr[..4].copy_from_slice(&v4.octets());
            4
        }
        IpAddr::V6(v6) => {
            addr = v6.octets();
            6
        }
    };
    AddressKey { network, version, addr }
}
