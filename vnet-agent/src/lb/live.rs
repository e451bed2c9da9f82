//! The load balancer's rows as they are in the maps, and the single writes that change them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use vnet_common::addr::{Address, V4, V6};
use vnet_common::hash::{self, FILTER_BITS};
use vnet_common::lb::{Filter, GroupRow, MemberRow, VipKey, VipRow};
use vnet_common::map::MAGLEV_BLOCK;

use super::compile::Member;
use super::table;
use crate::resource::Protocol;

/// 64-bit words of the filters, of VIPs and of members.
pub const FILTER_WORDS: usize = 2 * (FILTER_BITS / 64) as usize;

/// What the maps say, but for the slots of the pick tables: their fingerprints stand for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// All VIP rows.
    pub vips: HashMap<VipKey, VipRow>,
    /// The group rows that were ever written (`serial` is not 0).
    pub groups: BTreeMap<u32, LiveGroup>,
    /// The member rows that were ever written (`serial` is not 0).
    pub members: BTreeMap<u32, MemberRow>,
    /// The filters.
    pub filter: Vec<u64>,
}

/// A group row and its table's fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LiveGroup {
    /// The row.
    pub row: GroupRow,
    /// See [`table::fingerprint`]; 0 if the table is empty.
    pub fingerprint: u64,
}

/// One change of one row, or of one table that nobody reads yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Blocks of a new pick table, from `first` on.
    Blocks {
        /// The first block.
        first: u32,
        /// Their content.
        blocks: Vec<[u32; MAGLEV_BLOCK]>,
    },
    /// Sets the counters of a member row to 0, before another member gets it.
    ResetCounters {
        /// The row.
        row: u32,
    },
    /// A member row.
    Member {
        /// The row.
        row: u32,
        /// Its content.
        value: MemberRow,
    },
    /// A group row.
    Group {
        /// The row.
        row: u32,
        /// Its content.
        value: LiveGroup,
    },
    /// A VIP row.
    Vip {
        /// The key.
        key: VipKey,
        /// `None` removes it.
        value: Option<VipRow>,
    },
    /// A word of the filters.
    Filter {
        /// Which.
        word: u32,
        /// Its content.
        bits: u64,
    },
}

impl Write {
    /// For messages.
    pub fn what(&self) -> String {
        match self {
            Self::Blocks { first, blocks } => format!("{} blocks of a pick table from {first} on (map MAGLEV)", blocks.len()),
            Self::ResetCounters { row } => format!("the counters of member row {row} (map MEMBER_COUNTERS)"),
            Self::Member { row, .. } => format!("member row {row} (map MEMBERS)"),
            Self::Group { row, .. } => format!("group row {row} (map GROUPS)"),
            Self::Vip { value: Some(_), .. } => "a VIP row (map VIPS)".to_owned(),
            Self::Vip { value: None, .. } => "the removal of a VIP row (map VIPS)".to_owned(),
            Self::Filter { word, .. } => format!("filter word {word} (map FILTERS)"),
        }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self { vips: HashMap::new(), groups: BTreeMap::new(), members: BTreeMap::new(), filter: vec![0; FILTER_WORDS] }
    }
}

impl Live {
    /// Does to this copy what `write` does to the maps.
    pub fn record(&mut self, write: &Write) {
        match write {
            Write::Blocks { .. } | Write::ResetCounters { .. } => {}
            Write::Member { row, value } => drop(self.members.insert(*row, *value)),
            Write::Group { row, value } => drop(self.groups.insert(*row, *value)),
            Write::Vip { key, value: Some(value) } => drop(self.vips.insert(*key, *value)),
            Write::Vip { key, value: None } => drop(self.vips.remove(key)),
            Write::Filter { word, bits } => {
                if let Some(w) = self.filter.get_mut(*word as usize) {
                    *w = *bits;
                }
            }
        }
    }

    /// The group that a VIP row leads to, if it is still the one that the row means.
    pub fn group_of(&self, key: &VipKey) -> Option<(u32, &LiveGroup)> {
        let vip = self.vips.get(key)?;
        let group = self.groups.get(&vip.group)?;
        (group.row.serial == vip.serial).then_some((vip.group, group))
    }
}

/// [`GroupRow::table`] for a table at block `first`.
pub fn table_word(first: u32, slots: u32) -> u64 {
    u64::from(first) << 32 | u64::from(slots)
}

/// The blocks that a table takes.
pub fn table_blocks(word: u64) -> std::ops::Range<u32> {
    let first = (word >> 32) as u32;
    first..first + table::blocks(word as u32)
}

/// An address as it lies in a row.
pub fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => V4::from(a).widen(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// The key of the row of a VIP's port, or of the address itself (port and protocol 0), in the default network.
pub fn vip_key(address: IpAddr, port: u16, protocol: u8) -> VipKey {
    let version = if address.is_ipv4() { 4 } else { 6 };
    VipKey { network: 0, addr: wide(address), port: port.to_be_bytes(), protocol, version }
}

/// The keys of the rows that lead from a VIP's ports, from `first` to `last`, to a group: one, or as many as the range needs
/// (at most 30).
pub fn port_keys(address: IpAddr, (first, last): (u16, u16), protocol: u8) -> Vec<VipKey> {
    if first == last {
        return vec![vip_key(address, first, protocol)];
    }
    let mut keys = Vec::new();
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    while at < end {
        // The largest aligned block that begins here and does not go beyond the end.
        let aligned = if at == 0 { 16 } else { at.trailing_zeros().min(16) };
        let size = aligned.min((end - at).ilog2());
        let key = vip_key(address, at as u16, protocol);
        keys.push(if size == 0 { key } else { key.range(16 - size) });
        at += 1 << size;
    }
    keys
}

/// The bit in the row of an address that says that it has rows as `key`; 0 for one of a single port.
pub fn length_bit(key: &VipKey) -> u32 {
    if key.is_range() { 1 << (key.version >> 4) } else { 0 }
}

/// The number of a protocol in packets.
pub fn protocol_number(p: Protocol) -> u8 {
    match p {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// Group row, address and port of a member: what it is known by.
pub type MemberKey = (u32, [u8; 16], [u8; 2]);

/// What `m` is known by in the group in row `group`.
pub fn member_key(group: u32, m: &Member) -> MemberKey {
    (group, wide(m.address), m.port.to_be_bytes())
}

/// Where an address's bit is in a filter: word, and bit in it.
pub fn filter_bit(kind: Filter, address: IpAddr) -> (usize, u64) {
    let hash = match address {
        IpAddr::V4(a) => hash::filter(0, &V4::from(a)),
        IpAddr::V6(a) => hash::filter(0, &V6::from(a)),
    };
    let (word, bit) = kind.place(hash);
    (word as usize, 1 << bit)
}
