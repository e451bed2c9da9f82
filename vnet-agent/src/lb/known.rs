//! What is in the maps, with what plans ask of it at hand: kept right with every write, so that a plan need not look at
//! rows that it has nothing to do with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use vnet_common::lb::{MemberRow, VipKey, VipRow, state};

use super::free::{FreeRows, RowUse};
use super::live::{Live, LiveGroup, MemberKey, Write, table_blocks};

/// The rows, and indices over them that follow from nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    live: Live,
    /// Members by what they are known by, and so those of a group side by side.
    members: BTreeMap<MemberKey, u32>,
    /// How many VIP rows lead to a group, by its row and serial.
    leads: HashMap<(u32, u32), u32>,
    /// The blocks of pick tables, by whose they are.
    tables: BTreeSet<(u32, u32, u32)>,
    free_groups: FreeRows,
    free_members: FreeRows,
    last_serial: u32,
}

impl Known {
    /// Of rows that were read.
    pub fn new(live: Live) -> Self {
        let mut known = Self { live, ..Self::default() };
        for row in known.live.vips.values() {
            *known.leads.entry((row.group, row.serial)).or_default() += 1;
        }
        for (row, g) in &known.live.groups {
            known.tables.extend(table_entry(*row, g));
            known.last_serial = known.last_serial.max(g.row.serial);
            let used = known.leads.contains_key(&(*row, g.row.serial));
            known.free_groups.change(*row, RowUse::Never, RowUse::since(g.row.serial, used));
        }
        for (row, m) in &known.live.members {
            known.last_serial = known.last_serial.max(m.serial);
            known.free_members.change(*row, RowUse::Never, member_use(Some(m)));
            if m.state != state::NONE {
                known.members.insert(key(m), *row);
            }
        }
        known
    }

    /// The rows.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The row of a group's member.
    pub fn member(&self, key: &MemberKey) -> Option<u32> {
        self.members.get(key).copied()
    }

    /// The rows of a group's members.
    pub fn members_of(&self, group: u32) -> impl Iterator<Item = u32> {
        let (first, last) = ((group, [0; 16], [0; 2]), (group, [u8::MAX; 16], [u8::MAX; 2]));
        self.members.range(first..=last).map(|(_, row)| *row)
    }

    /// Whether a VIP leads to the group in this row.
    pub fn is_led_to(&self, group: u32) -> bool {
        self.live.groups.get(&group).is_some_and(|g| self.leads.contains_key(&(group, g.row.serial)))
    }

    /// The blocks that pick tables have, in order.
    pub fn tables(&self) -> impl Iterator<Item = Range<u32>> {
        self.tables.iter().map(|(first, end, _)| *first..*end)
    }

    /// Group rows that no VIP leads to.
    pub fn free_groups(&self) -> &FreeRows {
        &self.free_groups
    }

    /// Member rows without a member.
    pub fn free_members(&self) -> &FreeRows {
        &self.free_members
    }

    /// The highest serial that any row has or had.
    pub fn last_serial(&self) -> u32 {
        self.last_serial
    }

    /// Does to this what `write` does to the maps.
    pub fn record(&mut self, write: &Write) {
        match write {
            Write::Member { row, value } => self.record_member(*row, value),
            Write::Group { row, value } => self.record_group(*row, value),
            Write::Vip { key, value } => self.record_vip(key, *value),
            Write::Blocks { .. } | Write::ResetCounters { .. } | Write::Filter { .. } => {}
        }
        self.live.record(write);
    }

    fn record_member(&mut self, row: u32, value: &MemberRow) {
        let old = self.live.members.get(&row);
        self.free_members.change(row, member_use(old), member_use(Some(value)));
        if let Some(old) = old.filter(|old| old.state != state::NONE && self.members.get(&key(old)) == Some(&row)) {
            self.members.remove(&key(old));
        }
        if value.state != state::NONE {
            self.members.insert(key(value), row);
        }
        self.last_serial = self.last_serial.max(value.serial);
    }

    fn record_group(&mut self, row: u32, value: &LiveGroup) {
        let old = self.live.groups.get(&row);
        let used = |g: &LiveGroup| RowUse::since(g.row.serial, self.leads.contains_key(&(row, g.row.serial)));
        self.free_groups.change(row, old.map_or(RowUse::Never, used), used(value));
        if let Some(entry) = old.and_then(|old| table_entry(row, old)) {
            self.tables.remove(&entry);
        }
        self.tables.extend(table_entry(row, value));
        self.last_serial = self.last_serial.max(value.row.serial);
    }

    fn record_vip(&mut self, key: &VipKey, value: Option<VipRow>) {
        let old = self.live.vips.get(key).copied();
        if old == value {
            return;
        }
        if let Some(row) = value {
            self.lead(row, 1);
        }
        if let Some(row) = old {
            self.lead(row, -1);
        }
    }

    /// One VIP row more or less leads to a group.
    fn lead(&mut self, to: VipRow, more: i32) {
        let id = (to.group, to.serial);
        let before = self.leads.get(&id).copied().unwrap_or(0);
        let after = before.saturating_add_signed(more);
        if after == 0 {
            self.leads.remove(&id);
        } else {
            self.leads.insert(id, after);
        }
        if self.live.groups.get(&to.group).is_some_and(|g| g.row.serial == to.serial) {
            let used = |leads: u32| RowUse::since(to.serial, leads != 0);
            self.free_groups.change(to.group, used(before), used(after));
        }
    }
}

fn key(m: &MemberRow) -> MemberKey {
    (m.group, m.addr, m.port)
}

fn member_use(m: Option<&MemberRow>) -> RowUse {
    m.map_or(RowUse::Never, |m| RowUse::since(m.serial, m.state != state::NONE))
}

fn table_entry(row: u32, g: &LiveGroup) -> Option<(u32, u32, u32)> {
    let blocks = table_blocks(g.row.table);
    (!blocks.is_empty()).then_some((blocks.start, blocks.end, row))
}
