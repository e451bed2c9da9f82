//! Single rows, as a program would find them: what a packet would meet can be told without copying whole maps.

use anyhow::Result;
use vnet_common::addr::{Address, V4, V6};
use vnet_common::flow::fragment::{FragmentKey, FragmentRow};
use vnet_common::flow::{FlowEntry, FlowKey, Table};
use vnet_common::lb::{AffinityKey, AffinityRow, Filter, LocalKey, VipKey, VipRow};
use vnet_common::map::MAGLEV_BLOCK;
use vnet_common::policy::{PeerKey, PortRow, RuleRow, SetRow};

use super::maps::Maps;

/// An address family whose flow tables can be asked.
pub trait Family: Address {
    /// The entry of `key`.
    fn flow(maps: &Maps, table: Table, key: &FlowKey<Self>) -> Result<Option<FlowEntry<Self>>>;
}

impl Family for V4 {
    fn flow(maps: &Maps, table: Table, key: &FlowKey<Self>) -> Result<Option<FlowEntry<Self>>> {
        maps.flows4.entries(table).get(key)
    }
}

impl Family for V6 {
    fn flow(maps: &Maps, table: Table, key: &FlowKey<Self>) -> Result<Option<FlowEntry<Self>>> {
        maps.flows6.entries(table).get(key)
    }
}

impl Maps {
    /// A VIP row.
    pub fn vip(&self, key: &VipKey) -> Result<Option<VipRow>> {
        self.vips.get(key)
    }

    /// The device of the endpoint of this host that has the address.
    pub fn local(&self, key: &LocalKey) -> Result<Option<u32>> {
        self.locals.get(key)
    }

    /// Is a filter's bit set?
    pub fn filter(&self, kind: Filter, hash: u32) -> bool {
        let (word, bit) = kind.place(hash);
        self.filters.load(word).is_some_and(|w| w >> bit & 1 != 0)
    }

    /// The member row in a slot of the pick table that begins with `block`.
    pub fn pick(&self, block: u32, slot: u32) -> Result<Option<u32>> {
        let size = MAGLEV_BLOCK as u32;
        let row = self.maglev.get(&(block + slot / size))?;
        Ok(row.and_then(|members| members.get((slot % size) as usize).copied()))
    }

    /// How many flows were given turns in a group.
    pub fn turn(&self, group: u32) -> u32 {
        self.turns.load(group).unwrap_or(0) as u32
    }

    /// How many flows a member has, about.
    pub fn active(&self, member: u32) -> u32 {
        self.active.load(member).map_or(0, |n| u32::try_from(n as i64).unwrap_or(0))
    }

    /// Where a client's new flows go.
    pub fn affinity(&self, key: &AffinityKey) -> Result<Option<AffinityRow>> {
        self.affinity.get(key)
    }

    /// What the first fragment of a datagram said.
    pub fn fragment(&self, key: &FragmentKey) -> Result<Option<FragmentRow>> {
        self.fragments.get(key)
    }

    /// A set.
    pub fn set(&self, row: u32) -> Option<SetRow> {
        self.policy.sets.load(row)
    }

    /// The first word of the bits of a peer.
    pub fn peer(&self, key: &PeerKey) -> Result<Option<u32>> {
        self.policy.peers.get(key)
    }

    /// A row of ports.
    pub fn port(&self, row: u32) -> Option<PortRow> {
        self.policy.ports.load(row)
    }

    /// A word of bits.
    pub fn word(&self, word: u32) -> Option<u64> {
        self.policy.bits.load(word)
    }

    /// A rule.
    pub fn rule(&self, row: u32) -> Option<RuleRow> {
        self.policy.rules.load(row)
    }
}
