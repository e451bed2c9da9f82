//! Endpoint rows.
//!
//! A device's row is number `ifindex % ENDPOINT_ROWS`, or, where another live device has that, in the overflow table.
//! A row says what the programs on a device take it for. They run only on the instance of the device that they were
//! attached to, so: write the row, then attach; detach, then remove the row.
//!
//! A row in the direct table is written word by word; what has to change at once is in one word (a set and its identity; a
//! group and the number of the move into it). Rows are changed by one thread at a time.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use vnet_common::endpoint::{EndpointCounters, EndpointRow, FlowCount, HALF_OPEN_QUOTA, flags};
use vnet_common::map::ENDPOINT_ROWS;

use super::maps::Maps;

/// The word of a row that has the flags; the set and the identity; the group and the moves; the mirror.
const FLAGS: usize = 4;
const SET: usize = 5;
const MEMBERSHIP: usize = 6;
const MIRROR: usize = 7;

/// What a move into another security group changes about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// See [`EndpointRow`].
    pub set: u32,
    /// See [`EndpointRow`].
    pub identity: u32,
    /// See [`EndpointRow`].
    pub group: u32,
    /// See [`EndpointRow`].
    pub moves: u32,
    /// See [`EndpointRow`].
    pub mirror: u32,
    /// Of [`Placement::FLAGS`], those that are set from now on.
    pub flags: u16,
}

impl Placement {
    /// The flags that a move may change.
    pub const FLAGS: u16 = flags::POLICED | flags::QUARANTINED | flags::NEIGHBORS | flags::DHCP;

    fn of(&self, row: EndpointRow) -> EndpointRow {
        let flags = row.flags & !Self::FLAGS | self.flags & Self::FLAGS;
        EndpointRow { set: self.set, identity: self.identity, flags, ..row }
            .with_membership(self.group, self.moves)
            .with_mirror(self.mirror)
    }
}

impl Maps {
    /// Every endpoint row.
    pub fn endpoints(&self) -> Result<Vec<EndpointRow>> {
        let mut rows: Vec<EndpointRow> =
            (0..ENDPOINT_ROWS).filter_map(|row| self.endpoints.load(row)).filter(|e| e.ifindex != 0).collect();
        self.endpoints_more.for_each(|_, row| rows.push(row))?;
        Ok(rows)
    }

    /// The row of a device.
    pub fn endpoint(&self, ifindex: u32) -> Result<Option<EndpointRow>> {
        match self.endpoints.load(ifindex % ENDPOINT_ROWS) {
            Some(row) if row.ifindex == ifindex => Ok(Some(row)),
            _ => self.endpoints_more.get(&ifindex),
        }
    }

    /// A place in the per-endpoint tables for an endpoint: the one that it has, or a free one, cleared.
    pub fn slot_for(&self, id: u32) -> Result<u32> {
        let taken: BTreeMap<u32, u32> = self.endpoints()?.iter().map(|e| (e.slot, e.id)).collect();
        if let Some((slot, _)) = taken.iter().find(|(_, other)| **other == id) {
            return Ok(*slot);
        }
        let size = self.flow_counts.rows();
        let Some(slot) = (0..size).find(|slot| !taken.contains_key(slot)) else {
            bail!("there is no room for another endpoint: all {size} are in use; start the agent with more endpoints");
        };
        self.clear_slot(slot, id)?;
        Ok(slot)
    }

    /// Whoever had the slot before is gone. The endpoint `id` may have flows from before it went away.
    fn clear_slot(&self, slot: u32, id: u32) -> Result<()> {
        self.endpoint_counters.reset(slot)?;
        let flows = self.flows4.pairs_of(id)? + self.flows6.pairs_of(id)?;
        self.flow_counts.store(slot, &FlowCount { created: flows, removed: 0 });
        self.flows4.clear_ring(slot, HALF_OPEN_QUOTA)?;
        self.flows6.clear_ring(slot, HALF_OPEN_QUOTA)
    }

    /// Writes the row of a device.
    pub fn set_endpoint(&self, row: &EndpointRow) -> Result<()> {
        if row.ifindex == 0 || row.id == 0 {
            bail!("endpoint row of device {} for endpoint {}: neither may be 0", row.ifindex, row.id);
        }
        if row.slot >= self.flow_counts.rows() {
            bail!("endpoint row of device {}: there are {} slots, it names {}", row.ifindex, self.flow_counts.rows(), row.slot);
        }
        let direct = row.ifindex % ENDPOINT_ROWS;
        let there = self.endpoints.load(direct).context("map ENDPOINTS is too small")?;
        if there.ifindex != 0 && there.ifindex != row.ifindex {
            return self.endpoints_more.put(&row.ifindex, row);
        }
        if (there.ifindex, there.id) != (row.ifindex, row.id) {
            // No program may take half a new row for the old endpoint's.
            self.endpoints.store(direct, &EndpointRow { ifindex: 0, id: 0, ..there });
        } else if there.flags & flags::POLICED != 0 && row.flags & flags::POLICED == 0 {
            // Before its set goes: a policed endpoint without one may nothing.
            self.endpoints.store_words(direct, row, [FLAGS]);
        }
        self.endpoints.store(direct, row);
        self.endpoints_more.remove(&row.ifindex).map(drop)
    }

    /// Moves a device's endpoint into quarantine or out of it; says if there is such a row. Whoever reads the row in between, a
    /// program or the next agent, finds the stricter of the two states. In force from the next [`Maps::bump_generation`] on.
    pub fn set_quarantine(&self, ifindex: u32, to: &Placement) -> Result<bool> {
        let order: &[usize] = match to.flags & flags::QUARANTINED != 0 {
            true => &[MEMBERSHIP, SET, MIRROR, FLAGS],
            false => &[SET, FLAGS, MIRROR, MEMBERSHIP],
        };
        self.change(ifindex, |row| to.of(row), order)
    }

    /// Changes these words of a row. In the overflow table that replaces it as a whole.
    fn change(&self, ifindex: u32, f: impl FnOnce(EndpointRow) -> EndpointRow, words: &[usize]) -> Result<bool> {
        let direct = ifindex % ENDPOINT_ROWS;
        match self.endpoints.load(direct) {
            Some(there) if there.ifindex == ifindex => {
                let words = words.iter().copied().filter(|w| *w < size_of::<EndpointRow>() / 8);
                Ok(self.endpoints.store_words(direct, &f(there), words))
            }
            _ => match self.endpoints_more.get(&ifindex)? {
                Some(there) => self.endpoints_more.put(&ifindex, &f(there)).map(|()| true),
                None => Ok(false),
            },
        }
    }

    /// Removes the row of a device; says if there was one.
    pub fn remove_endpoint(&self, ifindex: u32) -> Result<bool> {
        let direct = ifindex % ENDPOINT_ROWS;
        let there = self.endpoints.load(direct).context("map ENDPOINTS is too small")?;
        if there.ifindex != ifindex {
            return self.endpoints_more.remove(&ifindex);
        }
        self.endpoints.store(direct, &EndpointRow { ifindex: 0, id: 0, ..there });
        self.endpoints.store(direct, &EndpointRow::default());
        Ok(true)
    }

    /// An endpoint's counters, all CPUs together.
    pub fn endpoint_counters(&self, slot: u32) -> Result<EndpointCounters> {
        let mut sum = EndpointCounters::default();
        for c in self.endpoint_counters.get(slot)? {
            for d in 0..2 {
                sum.bytes[d] += c.bytes[d];
                for (s, n) in sum.packets[d].iter_mut().zip(c.packets[d]) {
                    *s += n;
                }
            }
        }
        Ok(sum)
    }

    /// How many flows an endpoint has in the main tables.
    pub fn flow_count(&self, slot: u32) -> Option<u32> {
        Some(self.flow_counts.load(slot)?.flows())
    }
}
