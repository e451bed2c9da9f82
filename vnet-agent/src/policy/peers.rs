//! Peers of rules, each distinct one known by a number: an *atom*. What rules can tell of an address is which atoms match it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::selector::{Candidate, Known, Selectors};
use crate::resource::{Cidr, Entity, Peer, Selector};

/// An atom's number: the same for as long as any rule has it, and for one change longer.
pub type AtomId = u32;

/// Something that a rule's peer can be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Atom {
    /// The endpoints of a security group.
    Group(Arc<str>),
    /// The endpoints that this selects.
    Selector(Selector),
    /// Whoever has an address in the network, and in none of the others.
    Network(Cidr, Vec<Cidr>),
    /// Something reserved.
    Entity(Entity),
    /// The endpoints of other hosts that a quarantine group holds, `None`: one that this host does not have; at their IPv4 or their IPv6
    /// addresses.
    Held(Option<Arc<str>>, bool),
}

/// The number of a reserved peer's atom: these are always there.
pub fn entity(entity: Entity) -> AtomId {
    ENTITIES.iter().position(|e| *e == entity).unwrap_or_default() as AtomId
}

const ENTITIES: [Entity; 6] =
    [Entity::Host, Entity::RemoteHost, Entity::World, Entity::Unknown, Entity::Health, Entity::Endpoints];

/// What one field of a peer says; `None` if it says nothing that can be understood, which checks do not let through.
pub fn atom(peer: &Peer) -> Option<Atom> {
    if let Some(group) = &peer.group {
        return Some(Atom::Group(group.as_str().into()));
    }
    if let Some(selector) = &peer.selector {
        return Some(Atom::Selector(selector.clone()));
    }
    if let Some(cidr) = &peer.cidr {
        let mut except = peer.except.iter().map(|e| Cidr::parse(e).ok()).collect::<Option<Vec<Cidr>>>()?;
        except.sort_unstable();
        except.dedup();
        return Some(Atom::Network(Cidr::parse(cidr).ok()?, except));
    }
    peer.entity.map(Atom::Entity)
}

/// The atoms of all rules that are, and of those that were before them: while the old rules are still in force, identities must mean
/// something to both.
#[derive(Debug)]
pub struct Atoms {
    ids: HashMap<Atom, AtomId>,
    /// The first number that was not given out.
    next: AtomId,
    /// Those that some rule has now.
    own: BTreeSet<Atom>,
    selectors: Selectors<AtomId>,
}

impl Atoms {
    /// Of the rules that are to be, and those before them. `ready` has selectors that are ready, and gets those that are made so.
    pub fn new(wanted: BTreeSet<Atom>, previous: Option<&Self>, ready: (&mut Known, Option<&Known>)) -> Self {
        let mut ids: HashMap<Atom, AtomId> = ENTITIES.iter().map(|e| (Atom::Entity(*e), entity(*e))).collect();
        let mut next = previous.map_or(ENTITIES.len() as AtomId, |p| p.next);
        let leaving = previous.into_iter().flat_map(|p| p.own.iter().filter_map(|atom| Some((atom.clone(), p.id(atom)?))));
        ids.extend(leaving);
        for atom in &wanted {
            let id = previous.and_then(|p| p.id(atom)).or_else(|| ids.get(atom).copied()).unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            ids.insert(atom.clone(), id);
        }
        let selectors = ids.iter().filter_map(|(atom, id)| match atom {
            Atom::Selector(selector) => Some((*id, ready.0.ready(selector, ready.1))),
            _ => None,
        });
        Self { selectors: Selectors::new(selectors.collect::<Vec<_>>()), ids, next, own: wanted }
    }

    /// An atom's number.
    pub fn id(&self, atom: &Atom) -> Option<AtomId> {
        self.ids.get(atom).copied()
    }

    /// The first number that was not given out so far.
    pub fn next(&self) -> AtomId {
        self.next
    }

    /// The numbers of all.
    pub fn numbers(&self) -> impl Iterator<Item = AtomId> {
        self.ids.values().copied()
    }

    /// The atoms of networks.
    pub fn networks(&self) -> impl Iterator<Item = (AtomId, Cidr, &[Cidr])> {
        self.ids.iter().filter_map(|(atom, id)| match atom {
            Atom::Network(cidr, except) => Some((*id, *cidr, except.as_slice())),
            _ => None,
        })
    }

    /// Those that match an endpoint, whatever its addresses are, in order; and selectors that could not be asked. `group`: `None` for one
    /// that is not known.
    pub fn of_endpoint(&self, candidate: Candidate<'_>, group: Option<&Arc<str>>) -> (Vec<AtomId>, Vec<String>) {
        let (mut atoms, faults) = self.selectors.matching(candidate);
        atoms.push(entity(Entity::Endpoints));
        atoms.extend(group.and_then(|group| self.id(&Atom::Group(Arc::clone(group)))));
        atoms.sort_unstable();
        (atoms, faults.into_iter().map(|(_, why)| why).collect())
    }
}
