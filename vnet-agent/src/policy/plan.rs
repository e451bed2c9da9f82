//! From what is in the maps to an image: what to write, in an order in which each write leaves the datapath right.
//!
//! 1. Sets that are not there, and rows of new identities in all that are: nothing leads there yet.
//! 2. Addresses and networks get their identities. Sets that are still in force know the new ones too (`Atoms`).
//! 3. The caller leads endpoints to their sets.
//! 4. A new generation: flows are judged again.
//! 5. What nothing leads to any more is taken out (`Known::sweep`), once no program can be reading it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use vnet_common::policy::{AddressKey, PeerKey, PortRow, SetRow, Side, action};

use super::ids::RuleIds;
use super::image::{Image, Version};
use super::known::{Known, Loaded, PeerIndex, Room, flags, peer_key, side_row};
use super::live::{CidrKey, Limits, Write, cidr_key};
use super::refused::{Refused, rule_name};
use super::rules::DIRECTIONS;
use super::set::{Bits, Set, SideImage};
use crate::resource::Cidr;

/// What the datapath is to know of an endpoint of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The endpoint.
    pub name: Arc<str>,
    /// The row of its set.
    pub set: u32,
    /// Its identity.
    pub identity: u32,
    /// Whether its rules do anything but allow everything: also those about peers that are held elsewhere, while somebody is.
    pub policed: bool,
}

/// How to get to an image. Made by [`Applier::plan`](super::apply::Applier::plan).
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Before endpoints are led to their sets, in order.
    pub writes: Vec<Write>,
    /// Every endpoint of this host, by its name.
    pub assigned: BTreeMap<Arc<str>, Assignment>,
    /// Something changes for flows that are: they must be judged again.
    pub bump: bool,
    pub(super) ids: RuleIds,
    /// The sets of quarantine groups.
    pub(super) quarantine: BTreeMap<Arc<str>, u32>,
    pub(super) sets: Vec<(u32, Loaded)>,
    /// Rows of bits, and their words, that sets of this plan use.
    pub(super) words: HashMap<u32, u32>,
    pub(super) pool: HashMap<Bits, u32>,
    /// Rows of sets that are there already.
    pub(super) peers: Vec<(PeerKey, u32)>,
    pub(super) added_peers: u32,
    pub(super) leaving: Vec<u32>,
    pub(super) new_identities: Vec<u32>,
    pub(super) gone_identities: Vec<u32>,
    pub(super) addresses: Vec<(AddressKey, u32)>,
    added_addresses: u32,
    pub(super) gone_addresses: Vec<AddressKey>,
    pub(super) cidrs: Vec<(CidrKey, u32)>,
    pub(super) gone_cidrs: Vec<CidrKey>,
    pub(super) room: Room,
    pub(super) serial: u32,
    pub(super) version: Arc<Version>,
    pub(super) regions: Arc<BTreeMap<Cidr, u32>>,
}

/// Whose sets are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Those of all endpoints of this host, and of all quarantine groups.
    All,
    /// Those of these endpoints of this host.
    Endpoints(&'a HashSet<&'a str>),
}

/// How to get from what is known to be in the maps to `image`.
pub fn plan(image: &Image, known: &Known, limits: &Limits, scope: Scope<'_>) -> Result<Plan, Refused> {
    let mut planner = Planner { image, known, limits, out: Plan::default(), out_peers: Vec::new() };
    planner.out.room = known.room.clone();
    planner.out.serial = known.serial;
    (planner.out.version, planner.out.regions) = (Arc::clone(&image.version), Arc::clone(&image.regions));
    let rows = planner.sets(scope)?;
    planner.identities()?;
    planner.places()?;
    planner.assign(&rows, scope);
    Ok(planner.finish())
}

impl Scope<'_> {
    /// Is it about this endpoint?
    pub fn has(&self, endpoint: &str) -> bool {
        match self {
            Self::All => true,
            Self::Endpoints(names) => names.contains(endpoint),
        }
    }
}

struct Planner<'a> {
    image: &'a Image,
    known: &'a Known,
    limits: &'a Limits,
    out: Plan,
    /// Rows of peers in new sets.
    out_peers: Vec<(PeerKey, u32)>,
}

impl Planner<'_> {
    /// Finds a row for every set that there should be.
    fn sets(&mut self, scope: Scope<'_>) -> Result<HashMap<Arc<Set>, u32>, Refused> {
        let mut rows: HashMap<Arc<Set>, u32> = HashMap::new();
        let mut free = self.known.free_sets(self.limits);
        let mut index = None;
        for (about, set) in self.image.wanted(scope) {
            if rows.contains_key(set) {
                continue;
            }
            let row = match self.known.rows.get(set) {
                Some(row) => *row,
                None => {
                    let row =
                        free.next().ok_or_else(|| self.no_room(about, "its set of rules", "SETS", (1, 0, self.limits.sets)))?;
                    self.load(set, row, index.get_or_insert_with(|| PeerIndex::new(self.image)))?;
                    row
                }
            };
            rows.insert(Arc::clone(set), row);
        }
        drop(free);
        self.out.leaving = self.known.rows.iter().filter(|(set, _)| !rows.contains_key(*set)).map(|(_, row)| *row).collect();
        Ok(rows)
    }

    /// A set that is not there yet.
    fn load(&mut self, set: &Arc<Set>, row: u32, index: &PeerIndex) -> Result<(), Refused> {
        self.out.serial = self.out.serial.wrapping_add(1).max(1);
        let (flags, serial) = (flags(set), self.out.serial);
        let mut loaded = Loaded {
            set: Some(Arc::clone(set)),
            row: SetRow { flags, serial, ..SetRow::default() },
            peers: Default::default(),
            bits: HashSet::new(),
        };
        for (d, image) in DIRECTIONS.into_iter().zip(&set.sides) {
            let mut side = side_row(image);
            side.any_peer = self.bits(&image.any_peer, image, &mut loaded)?;
            side.enforced = self.bits(&image.enforced, image, &mut loaded)?;
            self.lists(image, &mut side, &mut loaded)?;
            loaded.row.sides[d as usize] = side;
            for (identity, bits) in index.rows(image) {
                let first = self.bits(&bits, image, &mut loaded)?;
                loaded.peers[d as usize].insert(identity, first);
                self.out_peers.push((peer_key(row, d, identity), first));
            }
            self.count_peers(|| self.broadest(image))?;
        }
        self.out.sets.push((row, loaded));
        Ok(())
    }

    fn lists(&mut self, image: &SideImage, side: &mut Side, loaded: &mut Loaded) -> Result<(), Refused> {
        let count = image.rules.len() as u32;
        let room = |out: &mut Plan| out.room.rules.take(count);
        side.rules = room(&mut self.out).ok_or_else(|| {
            let free = (count, self.out.room.rules.left(), self.limits.rules);
            self.no_room(self.last(image), "its list of rules, in one piece", "RULES", free)
        })?;
        self.out.writes.push(Write::Rules(side.rules, image.rules.clone()));
        let ports = image.ports.iter();
        let ports = ports.map(|(start, bits)| Ok(PortRow { start: *start, bits: self.bits(bits, image, loaded)? }));
        let ports: Vec<PortRow> = ports.collect::<Result<_, Refused>>()?;
        side.ports = self.out.room.ports.take(side.port_rows).ok_or_else(|| {
            let free = (side.port_rows, self.out.room.ports.left(), self.limits.ports);
            self.no_room(self.most_ports(image), "the ports of its list, in one piece", "PORTS", free)
        })?;
        self.out.writes.push(Write::Ports(side.ports, ports));
        Ok(())
    }

    /// Where a row of bits is; sets share them.
    fn bits(&mut self, bits: &[u64], image: &SideImage, loaded: &mut Loaded) -> Result<u32, Refused> {
        let first = self.row_of_bits(bits, image)?;
        loaded.bits.insert(first);
        Ok(first)
    }

    fn row_of_bits(&mut self, bits: &[u64], image: &SideImage) -> Result<u32, Refused> {
        if let Some(first) = self.known.pool.get(bits).or_else(|| self.out.pool.get(bits)) {
            self.out.words.insert(*first, bits.len() as u32);
            return Ok(*first);
        }
        let words = bits.len() as u32;
        let first = self.out.room.bits.take(words).ok_or_else(|| {
            let free = (words, self.out.room.bits.left(), self.limits.bits);
            self.no_room(self.last(image), "which of its rules match", "BITS", free)
        })?;
        self.out.words.insert(first, words);
        self.out.pool.insert(bits.into(), first);
        Ok(first)
    }

    /// Rows of identities that were not there, in sets that are.
    fn identities(&mut self) -> Result<(), Refused> {
        let known = self.known;
        let now: HashMap<u32, _> = self.image.meanings().collect();
        self.out.gone_identities = known.identities.iter().filter(|number| !now.contains_key(number)).copied().collect();
        let mut new: Vec<_> = now.into_iter().filter(|(number, _)| !known.identities.contains(number)).collect();
        new.sort_unstable_by_key(|(number, _)| *number);
        for (set, row) in &known.rows {
            for (d, image) in DIRECTIONS.into_iter().zip(&set.sides) {
                let there = known.sets.get(row).map(|loaded| &loaded.peers[d as usize]);
                for (number, atoms) in &new {
                    if there.is_some_and(|there| there.contains_key(number)) {
                        continue;
                    }
                    let Some(bits) = image.peer(atoms) else { continue };
                    let first = self.row_of_bits(&bits, image)?;
                    self.out.peers.push((peer_key(*row, d, *number), first));
                }
                self.count_peers(|| self.broadest(image))?;
            }
        }
        self.out.new_identities = new.into_iter().map(|(number, _)| number).collect();
        Ok(())
    }

    fn count_peers(&self, cause: impl Fn() -> String) -> Result<(), Refused> {
        let needed = (self.out_peers.len() + self.out.peers.len()) as u32;
        let free = self.limits.peers.saturating_sub(self.known.peer_rows);
        if needed > free {
            return Err(self.no_room(cause(), "the peers of its list", "PEERS", (needed, free, self.limits.peers)));
        }
        Ok(())
    }

    /// Identities of addresses and networks.
    fn places(&mut self) -> Result<(), Refused> {
        match self.image.touched_since(self.known.version.as_ref()) {
            Some(touched) => touched.iter().try_for_each(|key| self.address(key))?,
            None => {
                let image = self.image;
                image.addresses.keys().try_for_each(|key| self.address(key))?;
                let gone = self.known.addresses.keys().filter(|key| !image.addresses.contains_key(key));
                self.out.gone_addresses = gone.copied().collect();
            }
        }
        self.networks()
    }

    fn address(&mut self, key: &AddressKey) -> Result<(), Refused> {
        let before = self.known.addresses.get(key);
        let Some(claim) = self.image.addresses.get(key).and_then(|claims| claims.first()) else {
            self.out.gone_addresses.extend(before.map(|_| *key));
            return Ok(());
        };
        if before == Some(&claim.identity) {
            return Ok(());
        }
        self.out.added_addresses += u32::from(before.is_none());
        let (added, capacity) = (self.out.added_addresses, self.limits.addresses);
        let free = capacity.saturating_sub(self.known.addresses.len() as u32);
        if added > free {
            let cause = if claim.rank.is_host() { "a host".to_owned() } else { format!("endpoint `{}`", claim.owner) };
            return Err(self.no_room(cause, "its addresses", "IPCACHE", (added, free, capacity)));
        }
        self.out.addresses.push((*key, claim.identity));
        Ok(())
    }

    fn networks(&mut self) -> Result<(), Refused> {
        let known = self.known;
        if known.regions.as_ref().is_some_and(|regions| Arc::ptr_eq(regions, &self.image.regions)) {
            return Ok(());
        }
        let mut added = 0;
        let free = self.limits.cidrs.saturating_sub(known.cidrs.len() as u32);
        let mut wanted = HashSet::new();
        for (cidr, number) in self.image.regions.iter() {
            let key = cidr_key(cidr);
            let before = known.cidrs.get(&key);
            added += u32::from(before.is_none());
            if added > free {
                let rule = self.image.rule_with(cidr).map(rule_name);
                let cause = rule.unwrap_or_else(|| format!("the network {cidr}"));
                return Err(self.no_room(cause, "its networks", "CIDRS", (added, free, self.limits.cidrs)));
            }
            if before != Some(number) {
                self.out.cidrs.push((key, *number));
            }
            wanted.insert(key);
        }
        self.out.gone_cidrs = known.cidrs.keys().filter(|key| !wanted.contains(key)).copied().collect();
        Ok(())
    }

    fn assign(&mut self, rows: &HashMap<Arc<Set>, u32>, scope: Scope<'_>) {
        let quarantine = self.image.quarantine.iter().filter_map(|(name, set)| Some((Arc::clone(name), *rows.get(set)?)));
        self.out.quarantine = quarantine.collect();
        for (placed, local) in self.image.locals().filter(|(placed, _)| scope.has(&placed.subject.name)) {
            let Some(set) = rows.get(&local.set).copied() else { continue };
            let name = Arc::clone(&placed.subject.name);
            let policed = local.set.decides() || self.image.holds_elsewhere();
            let assignment = Assignment { name: Arc::clone(&name), set, identity: placed.identity, policed };
            self.out.assigned.insert(name, assignment);
        }
    }

    fn finish(self) -> Plan {
        let Self { mut out, mut out_peers, .. } = self;
        out_peers.extend(&out.peers);
        out.added_peers = out_peers.len() as u32;
        let mut bits: Vec<(u32, &Bits)> = out.pool.iter().map(|(bits, first)| (*first, bits)).collect();
        bits.sort_unstable_by_key(|(first, _)| *first);
        let mut writes: Vec<Write> = joined(bits).into_iter().map(|(first, words)| Write::Bits(first, words)).collect();
        writes.append(&mut out.writes);
        let mut push = |write: Write, empty: bool| {
            if !empty {
                writes.push(write)
            }
        };
        push(Write::Peers(out_peers.clone()), out_peers.is_empty());
        out.sets.iter().for_each(|(row, loaded)| push(Write::Set(*row, loaded.row), false));
        push(Write::Addresses(out.addresses.clone()), out.addresses.is_empty());
        push(Write::Cidrs(out.cidrs.clone()), out.cidrs.is_empty());
        push(Write::RemoveAddresses(out.gone_addresses.clone()), out.gone_addresses.is_empty());
        push(Write::RemoveCidrs(out.gone_cidrs.clone()), out.gone_cidrs.is_empty());
        out.bump =
            !(out.addresses.is_empty() && out.gone_addresses.is_empty() && out.cidrs.is_empty() && out.gone_cidrs.is_empty());
        out.writes = writes;
        out
    }

    fn no_room(
        &self,
        cause: String,
        what: &'static str,
        map: &'static str,
        (needed, free, capacity): (u32, u32, u32),
    ) -> Refused {
        Refused::Room { cause, what, map, needed, free, capacity }
    }

    /// The rule that is last but for defaults.
    fn last(&self, image: &SideImage) -> String {
        let written = |id: &&u32| self.image.rule(**id).is_some_and(|(r, _)| r.rule != super::rules::DEFAULT_RULE);
        let ids: Vec<u32> = image.rules.iter().filter(|r| r.action != action::REDIRECT).map(|r| r.id).collect();
        self.named(ids.iter().rev().find(written).or(ids.last()).copied())
    }

    /// The rule whose peers are most atoms.
    fn broadest(&self, image: &SideImage) -> String {
        let atoms = |at: usize| image.atoms.values().filter(|bits| bits[at / 64] >> (at % 64) & 1 == 1).count();
        self.named((0..image.rules.len()).max_by_key(|at| atoms(*at)).and_then(|at| image.rules.get(at)).map(|r| r.id))
    }

    /// The rule that most ports are because of.
    fn most_ports(&self, image: &SideImage) -> String {
        let has = |bits: &Bits, at: usize| bits[at / 64] >> (at % 64) & 1;
        let turns = |at: usize| image.ports.windows(2).filter(|pair| has(&pair[0].1, at) != has(&pair[1].1, at)).count();
        self.named((0..image.rules.len()).max_by_key(|at| turns(*at)).and_then(|at| image.rules.get(at)).map(|r| r.id))
    }

    fn named(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.image.rule(id)).map(|(r, _)| rule_name(r)).unwrap_or_default()
    }
}

/// Rows that are next to each other, as one.
fn joined(rows: Vec<(u32, &Bits)>) -> Vec<(u32, Vec<u64>)> {
    let mut out: Vec<(u32, Vec<u64>)> = Vec::new();
    for (first, bits) in rows {
        match out.last_mut() {
            Some((start, words)) if *start + words.len() as u32 == first => words.extend(bits.iter()),
            _ => out.push((first, bits.to_vec())),
        }
    }
    out
}
