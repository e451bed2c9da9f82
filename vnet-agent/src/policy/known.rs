//! What is known to be in the maps, with what plans ask of it at hand.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem::take;
use std::ops::Range;
use std::sync::Arc;

use vnet_common::policy::{AddressKey, PeerKey, SetRow, Side, identity, set_flags};
use vnet_common::verdict::Direction;

use super::identity::RESERVED;
use super::image::{Image, Version};
use super::live::{CidrKey, Limits, Tables, Write};
use super::peers::{AtomId, entity};
use super::plan::{Plan, Scope};
use super::rules::DIRECTIONS;
use super::set::{Bits, Set, SideImage};
use crate::lb::free::FreeBlocks;
use crate::resource::Cidr;

/// A set that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What it says; `None` for one of which that is not known, and which is to go.
    pub set: Option<Arc<Set>>,
    /// Its row.
    pub row: SetRow,
    /// By [`Direction`], the rows that lead to bits, by identity.
    pub peers: [HashMap<u32, u32>; 2],
    /// The rows of bits that it uses.
    pub bits: HashSet<u32>,
}

impl Loaded {
    fn rules(&self) -> impl Iterator<Item = Range<u32>> {
        let count = |d: usize| self.set.as_ref().map_or(0, |set| set.sides[d].rules.len() as u32);
        let sides = self.row.sides.iter().enumerate();
        sides.map(move |(d, side)| side.rules..side.rules.saturating_add(count(d))).collect::<Vec<_>>().into_iter()
    }

    fn ports(&self) -> impl Iterator<Item = Range<u32>> {
        self.row.sides.map(|side| side.ports..side.ports.saturating_add(side.port_rows)).into_iter()
    }
}

/// The key of a set's peer.
pub fn peer_key(row: u32, direction: Direction, identity: u32) -> PeerKey {
    PeerKey { side: row << 1 | direction as u32, identity }
}

/// Room in the flat maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// In `RULES`.
    pub rules: FreeBlocks,
    /// In `PORTS`.
    pub ports: FreeBlocks,
    /// In `BITS`.
    pub bits: FreeBlocks,
}

/// The rows, and what follows from them.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Loaded sets by row.
    pub sets: BTreeMap<u32, Loaded>,
    /// Those of which it is known what they say, and that are to stay.
    pub rows: HashMap<Arc<Set>, u32>,
    /// Rows of bits: where they are.
    pub pool: HashMap<Bits, u32>,
    /// How many sets use a row of bits, and its words.
    users: HashMap<u32, (u32, u32)>,
    /// Identities that every set in `rows` has its rows for, but for the reserved ones.
    pub identities: HashSet<u32>,
    /// What is free.
    pub room: Room,
    /// Given out last.
    pub serial: u32,
    /// `IPCACHE`.
    pub addresses: HashMap<AddressKey, u32>,
    /// `CIDRS`.
    pub cidrs: BTreeMap<CidrKey, u32>,
    /// Sets and identities that nothing leads to, and whose rows are still there.
    garbage: Garbage,
    /// Rows of `PEERS`.
    pub peer_rows: u32,
    /// The image whose addresses and networks those are.
    pub version: Option<Arc<Version>>,
    /// Its networks.
    pub regions: Option<Arc<BTreeMap<Cidr, u32>>>,
}

#[derive(Clone, Debug, Default)]
struct Garbage {
    sets: BTreeSet<u32>,
    identities: Vec<u32>,
    /// Rows that belong to no set that is known.
    peers: Vec<PeerKey>,
}

impl Known {
    /// Of maps that were read. Sets that `image` wants are found by what they say; others are to go.
    pub fn new(tables: Tables, image: &Image, limits: &Limits) -> Self {
        let mut known = Self { serial: tables.sets.values().map(|s| s.serial).max().unwrap_or(0), ..Self::default() };
        known.peer_rows = tables.peers.len() as u32;
        let mut peers: HashMap<u32, Vec<(u32, u32)>> = HashMap::new();
        for (key, first) in &tables.peers {
            peers.entry(key.side).or_default().push((key.identity, *first));
        }
        known.identities = image.meanings().map(|(number, _)| number).collect();
        if tables == Tables::default() {
            known.room = known.measure(limits);
            return known;
        }
        let index = PeerIndex::new(image);
        let wanted: HashSet<&Arc<Set>> = image.wanted(Scope::All).into_iter().map(|(_, set)| set).collect();
        for (row, set_row) in &tables.sets {
            let rows = DIRECTIONS.map(|d| peers.remove(&(row << 1 | d as u32)).unwrap_or_default());
            let found = wanted.iter().find(|set| says(&tables, set_row, set, &rows, &index, &known.identities));
            known.adopt(&tables, *row, *set_row, found.map(|set| Arc::clone(set)), rows);
        }
        let orphans =
            peers.into_iter().flat_map(|(side, rows)| rows.into_iter().map(move |(identity, _)| PeerKey { side, identity }));
        known.garbage.peers.extend(orphans);
        known.room = known.measure(limits);
        (known.addresses, known.cidrs) = (tables.addresses, tables.cidrs);
        known
    }

    fn adopt(&mut self, tables: &Tables, row: u32, set_row: SetRow, set: Option<Arc<Set>>, peers: [Vec<(u32, u32)>; 2]) {
        let mut loaded = Loaded { set, row: set_row, peers: Default::default(), bits: HashSet::new() };
        let keep = loaded.set.as_ref().is_some_and(|set| !self.rows.contains_key(set));
        for ((side, rows), d) in set_row.sides.iter().zip(peers).zip(DIRECTIONS) {
            let ports = (side.ports..side.ports.saturating_add(side.port_rows)).filter_map(|p| tables.ports.get(p as usize));
            let bits = ports.map(|p| p.bits).chain([side.any_peer, side.enforced]);
            for first in bits.chain(rows.iter().map(|(_, first)| *first)).collect::<HashSet<u32>>() {
                if let Some(words) = tables.row_of_bits(first, side.words) {
                    self.pool.entry(words.into()).or_insert(first);
                }
                loaded.bits.insert(first);
                self.users.entry(first).or_insert((0, side.words)).1 = side.words;
            }
            for (identity, first) in rows {
                if keep && !is_reserved(identity) && !self.identities.contains(&identity) {
                    self.garbage.peers.push(peer_key(row, d, identity));
                } else {
                    loaded.peers[d as usize].insert(identity, first);
                }
            }
        }
        loaded.bits.iter().for_each(|first| self.users.entry(*first).or_default().0 += 1);
        match loaded.set.as_ref().filter(|_| keep) {
            Some(set) => drop(self.rows.insert(Arc::clone(set), row)),
            None => drop(self.garbage.sets.insert(row)),
        }
        self.sets.insert(row, loaded);
    }

    /// What no set uses.
    fn measure(&self, limits: &Limits) -> Room {
        let rules = self.sets.values().flat_map(|loaded| match loaded.set {
            Some(_) => loaded.rules().collect::<Vec<_>>(),
            // It is not known how many rules it has: at most as many as its bits.
            None => loaded.row.sides.map(|s| s.rules..s.rules.saturating_add(s.words.saturating_mul(64))).to_vec(),
        });
        let bits = self.users.iter().map(|(first, (_, words))| *first..first.saturating_add(*words));
        Room {
            rules: FreeBlocks::new(limits.rules, rules),
            ports: FreeBlocks::new(limits.ports, self.sets.values().flat_map(Loaded::ports)),
            bits: FreeBlocks::new(limits.bits, bits),
        }
    }

    /// Rows of `SETS` that a new set can have.
    pub fn free_sets(&self, limits: &Limits) -> impl Iterator<Item = u32> {
        let unclean: HashSet<u32> = self.garbage.peers.iter().map(|key| key.side >> 1).collect();
        (1..limits.sets).filter(move |row| !self.sets.contains_key(row) && !unclean.contains(row))
    }

    /// The plan was carried out.
    pub fn record(&mut self, plan: &mut Plan) {
        for (key, first) in &plan.peers {
            if let Some(loaded) = self.sets.get_mut(&(key.side >> 1)) {
                loaded.peers[(key.side & 1) as usize].insert(key.identity, *first);
                if loaded.bits.insert(*first) {
                    self.users.entry(*first).or_insert((0, loaded.row.sides[(key.side & 1) as usize].words)).0 += 1;
                }
            }
        }
        for (row, loaded) in take(&mut plan.sets) {
            for first in &loaded.bits {
                let words = plan.words.get(first).copied().unwrap_or_default();
                self.users.entry(*first).or_insert((0, words)).0 += 1;
            }
            self.rows.extend(loaded.set.as_ref().map(|set| (Arc::clone(set), row)));
            self.sets.insert(row, loaded);
        }
        self.pool.extend(take(&mut plan.pool));
        self.room = take(&mut plan.room);
        self.serial = plan.serial;
        (self.version, self.regions) = (Some(Arc::clone(&plan.version)), Some(Arc::clone(&plan.regions)));
        self.peer_rows += plan.added_peers;
        for row in &plan.leaving {
            if let Some(set) = self.sets.get(row).and_then(|loaded| loaded.set.as_ref()) {
                self.rows.remove(set);
            }
            self.garbage.sets.insert(*row);
        }
        self.identities.extend(&plan.new_identities);
        // Whoever goes back to an image before this one has numbers again that were to go.
        self.garbage.identities.retain(|number| !self.identities.contains(number));
        remove_all(&plan.gone_identities, |number| self.identities.remove(number));
        self.garbage.identities.extend(&plan.gone_identities);
        self.addresses.extend(plan.addresses.iter().copied());
        remove_all(&plan.gone_addresses, |key| self.addresses.remove(key));
        self.cidrs.extend(plan.cidrs.iter().copied());
        remove_all(&plan.gone_cidrs, |key| self.cidrs.remove(key));
    }

    /// Is there something to be swept?
    pub fn has_garbage(&self) -> bool {
        !(self.garbage.sets.is_empty() && self.garbage.identities.is_empty() && self.garbage.peers.is_empty())
    }

    /// Takes out what nothing leads to: the writes that do the same to the maps. No program may be reading it any more.
    pub fn sweep(&mut self, limits: &Limits) -> Vec<Write> {
        let Garbage { sets, identities, mut peers } = take(&mut self.garbage);
        let mut writes: Vec<Write> = sets.iter().map(|row| Write::Set(*row, SetRow::default())).collect();
        let gone: Vec<Loaded> = sets
            .iter()
            .filter_map(|row| {
                let loaded = self.sets.remove(row)?;
                for (by_identity, d) in loaded.peers.iter().zip(DIRECTIONS) {
                    peers.extend(by_identity.keys().map(|identity| peer_key(*row, d, *identity)));
                }
                Some(loaded)
            })
            .collect();
        for (row, loaded) in &mut self.sets {
            for (by_identity, d) in loaded.peers.iter_mut().zip(DIRECTIONS) {
                let had = identities.iter().filter(|identity| by_identity.remove(identity).is_some());
                peers.extend(had.map(|identity| peer_key(*row, d, *identity)));
            }
        }
        self.peer_rows = self.peer_rows.saturating_sub(peers.len() as u32);
        if !peers.is_empty() {
            writes.push(Write::RemovePeers(peers));
        }
        self.free(&gone, limits);
        writes
    }

    fn free(&mut self, gone: &[Loaded], limits: &Limits) {
        let mut unused: HashMap<u32, u32> = HashMap::new();
        for first in gone.iter().flat_map(|loaded| &loaded.bits) {
            if let Some((users, words)) = self.users.get_mut(first) {
                *users -= 1;
                if *users == 0 {
                    unused.insert(*first, *words);
                    self.users.remove(first);
                }
            }
        }
        if !unused.is_empty() {
            self.pool.retain(|_, first| !unused.contains_key(first));
        }
        if gone.iter().any(|loaded| loaded.set.is_none()) {
            self.room = self.measure(limits);
            return;
        }
        for loaded in gone {
            loaded.rules().for_each(|range| self.room.rules.give(range));
            loaded.ports().for_each(|range| self.room.ports.give(range));
        }
        unused.into_iter().for_each(|(first, words)| self.room.bits.give(first..first + words));
    }
}

/// Takes each of these out.
pub fn remove_all<K, T>(keys: &[K], mut remove: impl FnMut(&K) -> T) {
    for key in keys {
        remove(key);
    }
}

fn is_reserved(number: u32) -> bool {
    number < identity::FIRST
}

/// Does a row of `SETS` say what this set says, to every identity?
fn says(
    tables: &Tables,
    row: &SetRow,
    set: &Set,
    peers: &[Vec<(u32, u32)>; 2],
    index: &PeerIndex,
    identities: &HashSet<u32>,
) -> bool {
    if row.flags != flags(set) {
        return false;
    }
    let each = row.sides.iter().zip(&set.sides).zip(peers);
    each.into_iter().all(|((side, image), peers)| {
        let bits = |first: u32, bits: &[u64]| tables.row_of_bits(first, side.words) == Some(bits);
        let rules = tables.rules.get(side.rules as usize..).and_then(|rules| rules.get(..image.rules.len()));
        let ports = tables.ports.get(side.ports as usize..).and_then(|ports| ports.get(..side.port_rows as usize));
        let same_ports = |ports: &[vnet_common::policy::PortRow]| {
            ports.len() == image.ports.len()
                && ports.iter().zip(&image.ports).all(|(row, (start, b))| row.start == *start && bits(row.bits, b))
        };
        let shape = side.words == image.words()
            && rules == Some(&image.rules[..])
            && ports.is_some_and(same_ports)
            && bits(side.any_peer, &image.any_peer)
            && bits(side.enforced, &image.enforced);
        if !shape {
            return false;
        }
        let wanted: HashMap<u32, Vec<u64>> = index.rows(image).into_iter().collect();
        let meant = peers.iter().filter(|(number, _)| is_reserved(*number) || identities.contains(number));
        meant.clone().count() == wanted.len()
            && meant.clone().all(|(number, first)| wanted.get(number).is_some_and(|w| bits(*first, w)))
    })
}

/// The flags of a set's row.
pub fn flags(set: &Set) -> u32 {
    let [egress, ingress] = &set.sides;
    let flag = |is: bool, flag| if is { flag } else { 0 };
    flag(egress.staged, set_flags::STAGED_EGRESS) | flag(ingress.staged, set_flags::STAGED_INGRESS)
}

/// Identities by the atoms that they stand for.
pub struct PeerIndex {
    by_atom: HashMap<AtomId, Vec<u32>>,
    atoms: HashMap<u32, Arc<[AtomId]>>,
}

impl PeerIndex {
    /// Of an image's identities, the reserved ones among them.
    pub fn new(image: &Image) -> Self {
        let reserved = RESERVED.iter().map(|(number, e)| (*number, [entity(*e)].into()));
        let atoms: HashMap<u32, Arc<[AtomId]>> =
            image.meanings().map(|(number, atoms)| (number, Arc::clone(atoms))).chain(reserved).collect();
        let mut by_atom: HashMap<AtomId, Vec<u32>> = HashMap::new();
        for (number, all) in &atoms {
            all.iter().for_each(|atom| by_atom.entry(*atom).or_default().push(*number));
        }
        Self { by_atom, atoms }
    }

    /// The identities that rules of this side tell from any peer, with the bits of each.
    pub fn rows(&self, side: &SideImage) -> Vec<(u32, Vec<u64>)> {
        let told = side.atoms.keys().filter_map(|atom| self.by_atom.get(atom)).flatten();
        let mut told: Vec<u32> = told.copied().collect();
        told.sort_unstable();
        told.dedup();
        told.into_iter().filter_map(|number| Some((number, side.peer(self.atoms.get(&number)?)?))).collect()
    }
}

/// A side's row, but for where its parts are.
pub fn side_row(image: &SideImage) -> Side {
    Side { words: image.words(), port_rows: image.ports.len() as u32, ..Side::default() }
}
