//! From what is in the maps to what should be: the writes, in an order in which each of them leaves the datapath whole.
//!
//! A plan is made from the rows alone, so that an agent that was killed half-way through one heals it with the next.
//! Groups are recognised by their VIP rows, members by group, address and port; both keep row and serial as long as
//! they exist. What is added appears from the leaves up (tables, members, groups, VIPs, filter of VIPs), what is removed
//! disappears from the root down. The filter of members, which finds replies, covers all that flows may have. A table is never changed: a new one is written elsewhere, and the group's `table`
//! word switches to it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use vnet_common::lb::{GroupRow, MemberRow, VipKey, VipRow, flags, state};

use super::compile::{Group, Member};
use super::free::FreeBlocks;
use super::known::Known;
use super::live::{
    FILTER_WORDS, Live, LiveGroup, Write, member_key, port_keys, protocol_number, table_blocks, table_word, vip_key, wide,
};
use super::table;
use super::tally::Tally;

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// VIP rows.
    pub vips: u32,
    /// Group rows.
    pub groups: u32,
    /// Member rows.
    pub members: u32,
    /// Blocks of pick tables.
    pub blocks: u32,
}

/// What to write, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes.
    pub writes: Vec<Write>,
    /// Flows must be judged again once all is written: something that they may depend on went away.
    pub bump: bool,
    /// Blocks that no group uses after the last write. A packet may still be reading them: they must not be used again
    /// at once.
    pub freed: Vec<Range<u32>>,
}

/// Something does not fit. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "load balancer {lb}: no room for {what} in map {map} ({needed} more needed, {free} of {capacity} free){hint}; start the agent with a larger {knob}"
)]
pub struct NoRoom {
    /// The load balancer that did not fit.
    pub lb: String,
    /// What there is no room for.
    pub what: &'static str,
    /// The map.
    pub map: &'static str,
    /// How many it would take.
    pub needed: u32,
    /// How many there are.
    pub free: u32,
    /// How many there are in all.
    pub capacity: u32,
    /// More about it.
    pub hint: &'static str,
    /// The option that sets the capacity.
    pub knob: &'static str,
}

/// How to get from what is known to be in the maps to `desired`. `busy` are blocks that were freed a moment ago
/// ([`Plan::freed`]).
pub fn plan(desired: &[Group], known: &Known, limits: &Limits, busy: &[Range<u32>]) -> Result<Plan, NoRoom> {
    let tally = Tally::of(desired);
    let mut planner = Planner::new(known, limits, busy);
    planner.lengths = tally.lengths_after(&Tally::default());
    planner.groups(desired)?;
    let live = known.live();
    planner.remove(live.vips.keys(), live.groups.keys().copied(), live.members.keys().copied());
    planner.filter(tally.filter());
    Ok(planner.finish())
}

/// The same as [`plan`] where the maps say all that they should but for `old`, of which `new` takes the place; what does not
/// change is not looked at. `tally` is of all the groups that the maps stand for, those of `old` among them. No group of
/// `new` has a VIP's port that one has which stays.
pub fn plan_change(
    (old, new): (&[Group], &[Group]),
    known: &Known,
    tally: &Tally,
    limits: &Limits,
    busy: &[Range<u32>],
) -> Result<Plan, NoRoom> {
    let change = Tally::between(old, new);
    let mut planner = Planner::new(known, limits, busy);
    planner.lengths = tally.lengths_after(&change);
    planner.groups(new)?;
    let ports: Vec<VipKey> = old.iter().flat_map(ports).collect();
    let addresses: Vec<VipKey> = tally.given_up(&change).collect();
    planner.lengths_of(change.with_ranges().filter(|key| !addresses.contains(key)));
    let groups: BTreeSet<u32> = ports.iter().filter_map(|k| known.live().group_of(k)).map(|(row, _)| row).collect();
    let members: BTreeSet<u32> = groups.iter().flat_map(|row| known.members_of(*row)).collect();
    planner.remove(ports.iter().chain(&addresses), groups.into_iter(), members.into_iter());
    planner.filter(tally.filter_after(&change, &known.live().filter));
    Ok(planner.finish())
}

/// The keys of the VIP rows that lead to a group.
fn ports(g: &Group) -> impl Iterator<Item = VipKey> {
    g.vips.iter().flat_map(|vip| port_keys(*vip, (g.port, g.last_port), protocol_number(g.protocol)))
}

/// The writes of a plan by what they are, each list to be written after those before it.
#[derive(Default)]
struct Stages {
    blocks: Vec<Write>,
    members: Vec<Write>,
    member_bits_set: Vec<Write>,
    groups: Vec<Write>,
    vips: Vec<Write>,
    vip_bits_set: Vec<Write>,
    vip_bits_cleared: Vec<Write>,
    vips_removed: Vec<Write>,
    groups_removed: Vec<Write>,
    members_removed: Vec<Write>,
    member_bits_cleared: Vec<Write>,
}

struct Planner<'a> {
    known: &'a Known,
    live: &'a Live,
    limits: &'a Limits,
    free_groups: Box<dyn Iterator<Item = u32> + 'a>,
    free_members: Box<dyn Iterator<Item = u32> + 'a>,
    free_blocks: FreeBlocks,
    serial: u32,
    vips: HashMap<VipKey, VipRow>,
    /// What the rows of addresses say, where that is not zero.
    lengths: HashMap<VipKey, u32>,
    added_vips: u32,
    kept_groups: BTreeSet<u32>,
    kept_members: HashSet<u32>,
    out: Stages,
    bump: bool,
    freed: Vec<Range<u32>>,
}

impl<'a> Planner<'a> {
    fn new(known: &'a Known, limits: &'a Limits, busy: &[Range<u32>]) -> Self {
        Self {
            free_groups: Box::new(known.free_groups().take(limits.groups)),
            free_members: Box::new(known.free_members().take(limits.members)),
            free_blocks: FreeBlocks::new(limits.blocks, known.tables().chain(busy.iter().cloned())),
            serial: known.last_serial(),
            vips: HashMap::new(),
            lengths: HashMap::new(),
            added_vips: 0,
            kept_groups: BTreeSet::new(),
            kept_members: HashSet::new(),
            out: Stages::default(),
            bump: false,
            freed: Vec::new(),
            live: known.live(),
            known,
            limits,
        }
    }

    fn groups(&mut self, desired: &[Group]) -> Result<(), NoRoom> {
        let rows = self.assign_groups(desired);
        desired.iter().zip(rows).try_for_each(|(group, row)| self.group(group, row))
    }

    /// Finds the row that each desired group has now. Of two that share a live group (its VIPs were split), the first
    /// in order keeps it.
    fn assign_groups(&mut self, desired: &[Group]) -> Vec<Option<u32>> {
        let mut rows = Vec::with_capacity(desired.len());
        for g in desired {
            let found = ports(g).filter_map(|k| self.live.group_of(&k));
            let row = found.map(|(row, _)| row).find(|row| !self.kept_groups.contains(row));
            self.kept_groups.extend(row);
            rows.push(row);
        }
        rows
    }

    fn group(&mut self, group: &Group, row: Option<u32>) -> Result<(), NoRoom> {
        let (row, serial) = match row.and_then(|row| Some((row, self.live.groups.get(&row)?))) {
            Some((row, live)) => (row, live.row.serial),
            None => {
                let capacity = self.limits.groups;
                let row = self
                    .free_groups
                    .next()
                    .ok_or_else(|| no_room(group, "the group", "GROUPS", (1, 0, capacity), "--max-groups"))?;
                self.kept_groups.insert(row);
                (row, self.next_serial())
            }
        };
        let entries = self.group_members(group, row)?;
        let old = self.live.groups.get(&row).copied().filter(|g| g.row.serial == serial);
        let (table, fingerprint) = self.table(group, old, &entries)?;
        let value = LiveGroup { row: GroupRow { table, serial, flags: group.flags }, fingerprint };
        if old != Some(value) {
            self.out.groups.push(Write::Group { row, value });
            self.bump |= old.is_some_and(|g| g.row.flags != group.flags);
        }
        self.group_vips(group, VipRow { group: row, serial })
    }

    /// Writes what is new of the group's members; gives those that take new flows.
    fn group_members(&mut self, group: &Group, group_row: u32) -> Result<Vec<table::Entry>, NoRoom> {
        let mut entries = Vec::new();
        for (i, m) in group.members.iter().enumerate() {
            let known = self.known.member(&member_key(group_row, m));
            let old = known.and_then(|row| Some((row, *self.live.members.get(&row)?)));
            let (row, serial) = match old {
                Some((row, live)) => (row, live.serial),
                None => match self.free_members.next() {
                    Some(row) => (row, self.next_serial()),
                    None => {
                        let missing = (group.members.len() - i) as u32;
                        return Err(no_room(group, "its members", "MEMBERS", (missing, 0, self.limits.members), "--max-members"));
                    }
                },
            };
            let value = member_row(m, group_row, serial);
            match old {
                Some((_, live)) if live == value => {}
                Some((_, live)) => {
                    // Flows remember that they are redirected: a member that moved must not get them where it was.
                    self.bump |= group.flags & flags::REDIRECT != 0 && live.ifindex != value.ifindex;
                    self.out.members.push(Write::Member { row, value });
                }
                None => {
                    self.out.members.push(Write::ResetCounters { row });
                    self.out.members.push(Write::Member { row, value });
                }
            }
            self.kept_members.insert(row);
            if m.share > 0 {
                entries.push(table::Entry { key: table::key(m.address, m.port), weight: m.share, row });
            }
        }
        Ok(entries)
    }

    /// The group's table: the one it has, if that was made from the same members.
    fn table(&mut self, group: &Group, old: Option<LiveGroup>, entries: &[table::Entry]) -> Result<(u64, u64), NoRoom> {
        let algorithm = group.flags & flags::ALGORITHM;
        let slots = table::slots(algorithm, entries, group.members.iter().map(|m| m.weight));
        let fingerprint = if slots == 0 { 0 } else { table::fingerprint(algorithm, slots, entries) };
        let old_table = old.map_or(0, |g| g.row.table);
        if let Some(old) = old.filter(|g| g.row.table as u32 == slots && g.fingerprint == fingerprint) {
            return Ok((old.row.table, fingerprint));
        }
        if old_table as u32 != 0 {
            self.freed.push(table_blocks(old_table));
        }
        if slots == 0 {
            return Ok((0, 0));
        }
        let needed = table::blocks(slots);
        let first = self.free_blocks.take(needed).ok_or_else(|| {
            let count = (needed, self.free_blocks.left(), self.limits.blocks);
            let refused = no_room(group, "its pick table", "MAGLEV", count, "--maglev-blocks");
            NoRoom { hint: " in one piece, beside the table that it replaces", ..refused }
        })?;
        let blocks = table::pack(&table::fill(algorithm, slots, entries), fingerprint);
        self.out.blocks.push(Write::Blocks { first, blocks });
        Ok((table_word(first, slots), fingerprint))
    }

    fn group_vips(&mut self, group: &Group, value: VipRow) -> Result<(), NoRoom> {
        let ports = ports(group).map(|key| (key, value));
        let addresses: Vec<_> = group.vips.iter().map(|vip| vip_key(*vip, 0, 0)).map(|key| (key, self.address(&key))).collect();
        for (key, value) in ports.chain(addresses) {
            if self.vips.insert(key, value) == Some(value) {
                continue;
            }
            match self.live.vips.get(&key) {
                Some(old) if *old == value => continue,
                Some(_) => self.bump |= !key.is_address(),
                None => self.added_vips += 1,
            }
            let capacity = self.limits.vips;
            // What is removed by this plan is still there when this is written.
            if self.live.vips.len() as u32 + self.added_vips > capacity {
                let free = capacity.saturating_sub(self.live.vips.len() as u32);
                return Err(no_room(group, "its VIPs and ports", "VIPS", (self.added_vips, free, capacity), "--max-vips"));
            }
            self.out.vips.push(Write::Vip { key, value: Some(value) });
        }
        Ok(())
    }

    /// The row of an address.
    fn address(&self, key: &VipKey) -> VipRow {
        VipRow { group: self.lengths.get(key).copied().unwrap_or(0), serial: 0 }
    }

    /// Writes what the rows of these addresses say that are there, and stay.
    fn lengths_of(&mut self, addresses: impl Iterator<Item = VipKey>) {
        for key in addresses.collect::<BTreeSet<VipKey>>() {
            let value = self.address(&key);
            if !self.vips.contains_key(&key) && self.live.vips.get(&key).is_some_and(|old| *old != value) {
                self.out.vips.push(Write::Vip { key, value: Some(value) });
            }
        }
    }

    /// Takes away what of these rows no group asked for. Groups and members come in the order of their rows.
    fn remove<'k>(
        &mut self,
        vips: impl Iterator<Item = &'k VipKey>,
        groups: impl Iterator<Item = u32>,
        members: impl Iterator<Item = u32>,
    ) {
        let live = self.live;
        let mut gone: Vec<VipKey> = vips.filter(|k| live.vips.contains_key(k) && !self.vips.contains_key(k)).copied().collect();
        // Ports before the address itself: an address without its ports would refuse what its ports took.
        gone.sort_unstable_by_key(|k| (k.is_address(), k.version, k.addr, k.port, k.protocol));
        self.bump |= !gone.is_empty();
        self.out.vips_removed.extend(gone.into_iter().map(|key| Write::Vip { key, value: None }));
        for (row, g) in groups.filter_map(|row| Some((row, live.groups.get(&row)?))) {
            let written = g.row.table != 0 || g.row.flags != 0 || self.known.is_led_to(row);
            if self.kept_groups.contains(&row) || !written {
                continue;
            }
            let value = LiveGroup { row: GroupRow { serial: self.next_serial(), ..GroupRow::default() }, fingerprint: 0 };
            self.out.groups_removed.push(Write::Group { row, value });
            if g.row.table as u32 != 0 {
                self.freed.push(table_blocks(g.row.table));
            }
        }
        for (row, m) in members.filter_map(|row| Some((row, live.members.get(&row)?))) {
            if m.state != state::NONE && !self.kept_members.contains(&row) {
                // The serial says since when the row is free, and no flow finds its member here any more.
                let value = MemberRow { serial: self.next_serial(), ..MemberRow::default() };
                self.out.members_removed.push(Write::Member { row, value });
                self.bump = true;
            }
        }
    }

    /// Writes what these words should be. A word whose bits are both set and cleared is written twice.
    fn filter(&mut self, words: BTreeMap<usize, u64>) {
        let first_of_members = FILTER_WORDS / 2;
        for (word, want) in words {
            let is = self.live.filter.get(word).copied().unwrap_or(0);
            let (set, cleared) = if word < first_of_members {
                (&mut self.out.vip_bits_set, &mut self.out.vip_bits_cleared)
            } else {
                (&mut self.out.member_bits_set, &mut self.out.member_bits_cleared)
            };
            let both = want | is;
            if both != is {
                set.push(Write::Filter { word: word as u32, bits: both });
            }
            if both != want {
                cleared.push(Write::Filter { word: word as u32, bits: want });
            }
        }
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1).max(1);
        self.serial
    }

    fn finish(self) -> Plan {
        let s = self.out;
        let stages = [
            s.blocks,
            s.members,
            s.member_bits_set,
            s.groups,
            s.vips,
            s.vip_bits_set,
            s.vip_bits_cleared,
            s.vips_removed,
            s.groups_removed,
            s.members_removed,
            s.member_bits_cleared,
        ];
        Plan { writes: stages.into_iter().flatten().collect(), bump: self.bump, freed: self.freed }
    }
}

fn member_row(m: &Member, group: u32, serial: u32) -> MemberRow {
    MemberRow {
        addr: wide(m.address),
        mac: m.place.mac,
        port: m.port.to_be_bytes(),
        serial,
        group,
        ifindex: m.place.ifindex,
        segment: m.place.segment,
        state: m.state,
        share: m.share,
        elsewhere: m.hint.elsewhere,
        ..MemberRow::default()
    }
}

fn no_room(
    group: &Group,
    what: &'static str,
    map: &'static str,
    (needed, free, capacity): (u32, u32, u32),
    knob: &'static str,
) -> NoRoom {
    NoRoom { lb: group.lb.clone(), what, map, needed, free, capacity, hint: "", knob }
}

#[cfg(test)]
mod tests;
