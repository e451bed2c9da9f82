//! What flow caches have counted and not yet added to the flow table.

use std::collections::HashMap;
use std::hash::Hash;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use vnet_common::addr::{Address, V4, V6};
use vnet_common::flow::{CacheSlot, FlowKey};

use super::flows::FlowTables;
use super::maps::Maps;
use super::mmap::Mapped;

/// Cache slots that are in the agent's memory at a time.
const WINDOW: u32 = 1 << 14;

/// Packets and bytes that were seen, and lie in flow caches still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Traffic {
    fn add<A: Address>(&mut self, slot: &CacheSlot<A>) {
        self.packets += u64::from(slot.packets);
        self.bytes += u64::from(slot.bytes);
    }
}

/// What flow caches hold of counts, by flow and by member row.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    pub(super) flows4: HashMap<FlowKey<V4>, Traffic>,
    pub(super) flows6: HashMap<FlowKey<V6>, Traffic>,
    members: HashMap<u32, [Traffic; 2]>,
}

impl Pending {
    /// Of a member, by [`vnet_common::verdict::Direction`].
    pub fn member(&self, row: u32) -> [Traffic; 2] {
        self.members.get(&row).copied().unwrap_or_default()
    }
}

fn gather<A: Address + Hash>(
    tables: &FlowTables<A>,
    flows: &mut HashMap<FlowKey<A>, Traffic>,
    members: &mut HashMap<u32, [Traffic; 2]>,
) -> Result<()> {
    tables.cached(|slot| {
        flows.entry(slot.key).or_default().add(slot);
        members.entry(slot.member).or_default()[usize::from(slot.key.direction & 1)].add(slot);
    })
}

impl<A: Address> FlowTables<A> {
    /// Calls `f` on every cache slot that holds counts.
    fn cached(&self, mut f: impl FnMut(&CacheSlot<A>)) -> Result<()> {
        for first in (0..self.cache_slots).step_by(WINDOW as usize) {
            let rows = WINDOW.min(self.cache_slots - first);
            let slots = Mapped::<CacheSlot<A>>::window(self.cache.fd().as_fd(), first, rows).context("mapping a flow cache")?;
            for row in 0..rows {
                let Some(slot) = slots.load(row) else { continue };
                // A program may be putting another flow into it: then it is not read.
                if slot.packets != 0 && slot.key.endpoint != 0 && slots.load(row).is_some_and(|again| again.key == slot.key) {
                    f(&slot);
                }
            }
        }
        Ok(())
    }
}

impl Maps {
    /// What flow caches hold.
    pub fn pending(&self) -> Result<Pending> {
        let mut p = Pending::default();
        gather(&self.flows4, &mut p.flows4, &mut p.members)?;
        gather(&self.flows6, &mut p.flows6, &mut p.members)?;
        Ok(p)
    }
}
