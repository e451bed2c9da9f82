//! From what is in the maps to what should be: the writes, in an order in which each of them leaves the datapath whole.
//!
//! A plan is made from the rows alone, so that an agent that was killed half-way through one heals it with the next.
//! Groups are recognised by their VIP rows, members by group, address and port; both keep row and serial as long as
//! they exist. What is added appears from the leaves up (tables, members, groups, VIPs, filter of VIPs), what is removed
//! disappears from the root down. The filter of members, which finds replies, covers all that flows may have. A table is never changed: a new one is written elsewhere, and the group's `table`
//! word switches to it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;

use vnet_common::lb::{Filter, GroupRow, MemberRow, VipKey, VipRow, flags, state};

use super::compile::{Group, Member};
use super::free::{FreeBlocks, FreeRows};
use super::live::{
    FILTER_WORDS, Live, LiveGroup, MemberKey, Write, filter_bit, member_key, protocol_number, table_blocks, table_word, vip_key,
    wide,
};
use super::maglev;

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

/// How to get from `live` to `desired`. `busy` are blocks that were freed a moment ago ([`Plan::freed`]).
pub fn plan(desired: &[Group], live: &Live, limits: &Limits, busy: &[Range<u32>]) -> Result<Plan, NoRoom> {
    let mut planner = Planner::new(live, limits, busy);
    let rows = planner.assign_groups(desired);
    for (group, row) in desired.iter().zip(rows) {
        planner.group(group, row)?;
    }
    planner.remove_rest();
    planner.filter();
    Ok(planner.finish())
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
    live: &'a Live,
    limits: &'a Limits,
    /// Live members by group, address and port.
    members: HashMap<MemberKey, u32>,
    free_groups: FreeRows,
    free_members: FreeRows,
    free_blocks: FreeBlocks,
    serial: u32,
    used_groups: BTreeSet<u32>,
    vips: HashMap<VipKey, VipRow>,
    added_vips: u32,
    kept_groups: BTreeSet<u32>,
    kept_members: HashSet<u32>,
    filter: Vec<u64>,
    out: Stages,
    bump: bool,
    freed: Vec<Range<u32>>,
}

impl<'a> Planner<'a> {
    fn new(live: &'a Live, limits: &'a Limits, busy: &[Range<u32>]) -> Self {
        let in_use: BTreeSet<u32> = live.vips.keys().filter_map(|k| live.group_of(k)).map(|(row, _)| row).collect();
        let tables = live.groups.values().map(|g| table_blocks(g.row.table));
        let mut members = HashMap::new();
        for (row, m) in live.members.iter().filter(|(_, m)| m.state != state::NONE) {
            members.insert((m.group, m.addr, m.port), *row);
        }
        let groups = live.groups.iter().map(|(row, g)| (*row, g.row.serial, in_use.contains(row)));
        let rows = live.members.iter().map(|(row, m)| (*row, m.serial, m.state != state::NONE));
        Self {
            free_groups: FreeRows::new(limits.groups, groups),
            free_members: FreeRows::new(limits.members, rows),
            free_blocks: FreeBlocks::new(limits.blocks, tables.chain(busy.iter().cloned())),
            serial: live.last_serial(),
            used_groups: in_use,
            vips: HashMap::new(),
            added_vips: 0,
            kept_groups: BTreeSet::new(),
            kept_members: HashSet::new(),
            filter: vec![0; FILTER_WORDS],
            out: Stages::default(),
            bump: false,
            freed: Vec::new(),
            live,
            limits,
            members,
        }
    }

    /// Finds the row that each desired group has now. Of two that share a live group (its VIPs were split), the first
    /// in order keeps it.
    fn assign_groups(&mut self, desired: &[Group]) -> Vec<Option<u32>> {
        let mut rows = Vec::with_capacity(desired.len());
        for g in desired {
            let protocol = protocol_number(g.protocol);
            let found = g.vips.iter().filter_map(|v| self.live.group_of(&vip_key(*v, g.port, protocol)));
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
                    .take()
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
    fn group_members(&mut self, group: &Group, group_row: u32) -> Result<Vec<maglev::Entry>, NoRoom> {
        let mut entries = Vec::new();
        for (i, m) in group.members.iter().enumerate() {
            let known = self.members.get(&member_key(group_row, m)).copied();
            let old = known.and_then(|row| Some((row, *self.live.members.get(&row)?)));
            let (row, serial) = match old {
                Some((row, live)) => (row, live.serial),
                None => match self.free_members.take() {
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
            self.mark(Filter::Member, m.address);
            if m.state == state::ACTIVE {
                entries.push(maglev::Entry { key: maglev::key(m.address, m.port), weight: m.weight, row });
            }
        }
        Ok(entries)
    }

    /// The group's table: the one it has, if that was made from the same members.
    fn table(&mut self, group: &Group, old: Option<LiveGroup>, entries: &[maglev::Entry]) -> Result<(u64, u64), NoRoom> {
        let slots = if entries.is_empty() { 0 } else { maglev::slots(group.members.iter().map(|m| m.weight)) };
        let fingerprint = if slots == 0 { 0 } else { maglev::fingerprint(slots, entries) };
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
        let needed = maglev::blocks(slots);
        let first = self.free_blocks.take(needed).ok_or_else(|| {
            let count = (needed, self.free_blocks.left(), self.limits.blocks);
            let refused = no_room(group, "its pick table", "MAGLEV", count, "--maglev-blocks");
            NoRoom { hint: " in one piece, beside the table that it replaces", ..refused }
        })?;
        let blocks = maglev::pack(&maglev::table(slots, entries), fingerprint);
        self.out.blocks.push(Write::Blocks { first, blocks });
        Ok((table_word(first, slots), fingerprint))
    }

    fn group_vips(&mut self, group: &Group, value: VipRow) -> Result<(), NoRoom> {
        for vip in &group.vips {
            self.mark(Filter::Vip, *vip);
            let port = (vip_key(*vip, group.port, protocol_number(group.protocol)), value);
            let itself = (vip_key(*vip, 0, 0), VipRow::default());
            for (key, value) in [port, itself] {
                if self.vips.insert(key, value) == Some(value) {
                    continue;
                }
                match self.live.vips.get(&key) {
                    Some(old) if *old == value => continue,
                    Some(_) => self.bump = true,
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
        }
        Ok(())
    }

    fn mark(&mut self, kind: Filter, address: IpAddr) {
        let (word, bit) = filter_bit(kind, address);
        self.filter[word] |= bit;
    }

    /// Takes away what no group asked for.
    fn remove_rest(&mut self) {
        let mut gone: Vec<VipKey> = self.live.vips.keys().filter(|k| !self.vips.contains_key(k)).copied().collect();
        // Ports before the address itself: an address without its ports would refuse what its ports took.
        gone.sort_unstable_by_key(|k| (k.port == [0, 0], k.version, k.addr, k.port, k.protocol));
        self.bump |= !gone.is_empty();
        self.out.vips_removed.extend(gone.into_iter().map(|key| Write::Vip { key, value: None }));
        let live = self.live;
        for (row, g) in &live.groups {
            let written = g.row.table != 0 || g.row.flags != 0 || self.used_groups.contains(row);
            if self.kept_groups.contains(row) || !written {
                continue;
            }
            let value = LiveGroup { row: GroupRow { serial: self.next_serial(), ..GroupRow::default() }, fingerprint: 0 };
            self.out.groups_removed.push(Write::Group { row: *row, value });
            if g.row.table as u32 != 0 {
                self.freed.push(table_blocks(g.row.table));
            }
        }
        for (row, m) in &live.members {
            if m.state != state::NONE && !self.kept_members.contains(row) {
                // The serial says since when the row is free, and no flow finds its member here any more.
                let value = MemberRow { serial: self.next_serial(), ..MemberRow::default() };
                self.out.members_removed.push(Write::Member { row: *row, value });
                self.bump = true;
            }
        }
    }

    /// A word whose bits are both set and cleared is written twice.
    fn filter(&mut self) {
        let first_of_members = FILTER_WORDS / 2;
        for (word, (want, is)) in self.filter.iter().zip(&self.live.filter).enumerate() {
            let (set, cleared) = if word < first_of_members {
                (&mut self.out.vip_bits_set, &mut self.out.vip_bits_cleared)
            } else {
                (&mut self.out.member_bits_set, &mut self.out.member_bits_cleared)
            };
            let both = want | is;
            if both != *is {
                set.push(Write::Filter { word: word as u32, bits: both });
            }
            if both != *want {
                cleared.push(Write::Filter { word: word as u32, bits: *want });
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
