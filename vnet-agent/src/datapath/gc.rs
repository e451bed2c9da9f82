//! Removing flows that are over.
//!
//! A flow is over when neither of its entries was used for the time that its state gives it. [`Collector::tick`] is called
//! every second or so and reads a part of the tables; a sweep over all of them takes as many calls as it needs.
//!
//! A packet can arrive between the last look at an entry and its removal: its flow was idle for the whole timeout to the
//! microsecond, and is then judged anew.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use vnet_common::addr::Address;
use vnet_common::endpoint::FlowCount;
use vnet_common::flow::{FlowEntry, FlowKey, flags, tcp};
use vnet_common::verdict::Direction;

use super::Datapath;
use super::batch::Cursor;
use super::flows::{FlowState, FlowTable, ticks_since};
use super::maps::Maps;

/// How long a flow may be idle, by its state, in seconds.
///
/// Established TCP: longer than the two hours of TCP keep-alive (RFC 1122, 4.2.3.6). UDP: RFC 4787 asks for two minutes.
pub fn timeout(state: FlowState) -> u32 {
    match state {
        FlowState::HalfOpen => 30,
        FlowState::Established => 8000,
        FlowState::Closing => 60,
        FlowState::Closed => 10,
        FlowState::New => 30,
        FlowState::Replied => 120,
    }
}

/// The shortest [`timeout`]: who was seen since is not looked at any closer.
const SHORTEST: u32 = 10;
/// An entry whose other half is gone, or whose endpoint is, in seconds.
const ORPHAN: u32 = 60;
/// Entries read in one call.
const BUDGET: usize = 1 << 17;

/// What one call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries read.
    pub read: usize,
    /// Flows removed.
    pub removed: u32,
    /// Endpoints whose count of flows was wrong and was corrected.
    pub corrected: u32,
    /// The sweep over all tables ended.
    pub swept: bool,
    /// How long it took.
    pub took: Duration,
}

/// Removes flows that are over, a part of the tables at a time.
#[derive(Debug, Default)]
pub struct Collector {
    /// Which of the four tables is being read.
    table: usize,
    cursor: Cursor,
    /// Entries of that table so far.
    entries: u32,
    /// Flows in the main tables found in this sweep, by endpoint.
    flows: HashMap<u32, u32>,
    /// What the quotas said when the sweep began.
    counts: Vec<FlowCount>,
    /// Flows that are not closed found in this sweep, by member.
    active: HashMap<u32, i64>,
    /// What was counted of them when the sweep began, where that is not 0.
    active_before: HashMap<u32, i64>,
}

/// What the time is, and who is there.
struct Now {
    ticks: u32,
    rate: u32,
    /// Slots by endpoint.
    slots: HashMap<u32, u32>,
}

impl Now {
    fn idle<A: Address>(&self, entry: &FlowEntry<A>) -> u32 {
        ticks_since(self.ticks, entry.last_seen) / self.rate
    }
}

impl Collector {
    /// Reads on where the call before stopped.
    pub fn tick(&mut self, datapath: &Datapath) -> Result<Collected> {
        let (start, maps) = (Instant::now(), datapath.maps());
        let slots = maps.endpoints()?.iter().map(|e| (e.id, e.slot)).collect();
        let now = Now { ticks: datapath.clock.now(maps)?, rate: datapath.clock.rate(), slots };
        let mut done = Collected::default();
        if self.table == 0 && self.entries == 0 {
            self.counts = (0..maps.flow_counts.rows()).filter_map(|row| maps.flow_counts.load(row)).collect();
            self.active_before = active_counts(maps).collect();
        }
        while done.read < BUDGET && !done.swept {
            match self.table {
                0 => self.sweep(maps, &maps.flows4.main, false, &now, &mut done)?,
                1 => self.sweep(maps, &maps.flows4.half_open, true, &now, &mut done)?,
                2 => self.sweep(maps, &maps.flows6.main, false, &now, &mut done)?,
                _ => self.sweep(maps, &maps.flows6.half_open, true, &now, &mut done)?,
            }
            if self.table == 4 {
                done.corrected = self.correct_counts(maps, &now);
                self.correct_active(maps);
                done.swept = true;
                *self = Self::default();
            }
        }
        done.took = start.elapsed();
        Ok(done)
    }

    /// Reads a part of one table, and goes to the next at its end.
    fn sweep<A: Address>(
        &mut self,
        maps: &Maps,
        table: &FlowTable<A>,
        half_open: bool,
        now: &Now,
        done: &mut Collected,
    ) -> Result<()> {
        let mut idle = Vec::new();
        let read = table.entries.scan(&mut self.cursor, BUDGET - done.read, |key, entry| {
            if !half_open && key.direction == Direction::Egress as u8 {
                *self.flows.entry(key.endpoint).or_default() += 1;
            }
            if is_active(&entry) {
                *self.active.entry(entry.member).or_default() += 1;
            }
            if now.idle(&entry) >= SHORTEST {
                idle.push(key);
            }
            ControlFlow::Continue(())
        })?;
        for key in idle {
            if let Some((forward, reverse)) = over(table, half_open, now, &key)? {
                let active = table.entries.get(&forward)?.filter(is_active).map(|entry| entry.member);
                let removed = self.remove(maps, table, half_open, now, &forward, &reverse)?;
                if let Some(member) = active.filter(|_| removed) {
                    *self.active.entry(member).or_default() -= 1;
                    add_active(maps, member, -1);
                }
                done.removed += u32::from(removed);
            }
        }
        done.read += read;
        self.entries += read as u32;
        if self.cursor.is_done() {
            table.set_found(self.entries);
            (self.table, self.entries, self.cursor) = (self.table + 1, 0, Cursor::default());
        }
        Ok(())
    }

    /// Removes both entries as the programs do it; says if there was one.
    fn remove<A: Address>(
        &mut self,
        maps: &Maps,
        table: &FlowTable<A>,
        half_open: bool,
        now: &Now,
        forward: &FlowKey<A>,
        reverse: &FlowKey<A>,
    ) -> Result<bool> {
        let one = table.entries.remove(forward)?;
        let other = table.entries.remove(reverse)?;
        if half_open {
            return Ok(one || other);
        }
        for key in [forward, reverse] {
            maps.bump_stamp(key);
        }
        // As a program does: whoever removes the egress entry gives back the quota.
        if one && let Some(n) = self.flows.get_mut(&forward.endpoint) {
            *n -= 1;
        }
        if one && let Some(removed) = now.slots.get(&forward.endpoint).and_then(|slot| maps.flow_counts.word32(*slot, 1)) {
            removed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(one || other)
    }

    /// Programs count a member's flows where they begin and end; two CPUs that see the end of one flow count it twice, and one
    /// that makes room for another is not counted at all. By more than what changed during the sweep, a count is surely wrong.
    fn correct_active(&self, maps: &Maps) {
        let members: HashSet<u32> = active_counts(maps).map(|(row, _)| row).chain(self.active.keys().copied()).collect();
        for member in members {
            let found = self.active.get(&member).copied().unwrap_or(0);
            let before = self.active_before.get(&member).copied().unwrap_or(0);
            let after = maps.active.load(member).map_or(0, |n| n as i64);
            if (after - found).abs() > (after - before).abs() {
                add_active(maps, member, found - after);
            }
        }
    }

    /// An endpoint's quota is counted where flows are made and removed. A program that was stopped between the two, or an
    /// endpoint that was away, can leave it wrong; by more than what changed during the sweep, it is surely wrong.
    fn correct_counts(&self, maps: &Maps, now: &Now) -> u32 {
        let mut corrected = 0;
        for (endpoint, slot) in &now.slots {
            let (Some(before), Some(after)) = (self.counts.get(*slot as usize), maps.flow_counts.load(*slot)) else { continue };
            let found = self.flows.get(endpoint).copied().unwrap_or(0);
            let changed = after.created.wrapping_sub(before.created).saturating_add(after.removed.wrapping_sub(before.removed));
            let excess = after.created.wrapping_sub(after.removed).wrapping_sub(found);
            if (excess as i32).unsigned_abs() > changed
                && let Some(removed) = maps.flow_counts.word32(*slot, 1)
            {
                removed.fetch_add(excess, Ordering::Relaxed);
                corrected += 1;
            }
        }
        corrected
    }
}

/// The forward entry of a balanced flow that is not closed.
fn is_active<A: Address>(entry: &FlowEntry<A>) -> bool {
    entry.flags & flags::DNAT != 0 && !tcp::is_closed(entry.tcp)
}

fn active_counts(maps: &Maps) -> impl Iterator<Item = (u32, i64)> {
    let count = |row| maps.active.load(row).map(|n| (row, n as i64)).filter(|(_, n)| *n != 0);
    (0..maps.active.rows()).filter_map(count)
}

pub(super) fn add_active(maps: &Maps, member: u32, n: i64) {
    if let Some(count) = maps.active.word64(member, 0) {
        count.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Looks closer at an entry that was idle: gives both keys of its flow if that is over.
fn over<A: Address>(
    table: &FlowTable<A>,
    half_open: bool,
    now: &Now,
    key: &FlowKey<A>,
) -> Result<Option<(FlowKey<A>, FlowKey<A>)>> {
    let Some(entry) = table.entries.get(key)? else { return Ok(None) };
    let partner_key = key.partner(&entry.rewrite);
    // Where flows collided, the entry there may be another flow's.
    let partner = table.entries.get(&partner_key)?.filter(|p| partner_key.partner(&p.rewrite) == *key);
    if key.direction == Direction::Ingress as u8 {
        // A whole flow is judged at its forward entry.
        let orphan = partner.is_none() && now.idle(&entry) >= ORPHAN;
        return Ok(orphan.then_some((partner_key, *key)));
    }
    let idle = now.idle(&entry).min(partner.map_or(u32::MAX, |p| now.idle(&p)));
    let mut limit = timeout(FlowState::new(key.protocol, half_open, &entry, partner.as_ref()));
    if !now.slots.contains_key(&key.endpoint) {
        limit = limit.min(ORPHAN);
    }
    Ok((idle >= limit).then_some((*key, partner_key)))
}
